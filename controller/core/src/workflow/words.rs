//! The words for what a run waits for, and for the hop of a boot it waits at.

use std::fmt;

use rackhand_common::event::Stage;
use serde::{Deserialize, Serialize};

/// What a run waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WaitFor {
    /// The rack's agent, which is not connected.
    Agent,
    /// A power driver.
    Power,
    /// The machine's first request for an address.
    Dhcp,
    /// The installer, on its way through loader, kernel and inventory.
    Installer,
    /// The image, being written.
    Image,
    /// The disks, being erased.
    Erasure,
    /// The installed system's call.
    System,
    /// The machine's BMC.
    Bmc,
    /// The controller itself, which has not looked at it yet. What a later version waited for and
    /// this one has no word for is read as this: it looks, and says what it waits for itself.
    #[serde(other)]
    Controller,
}

impl WaitFor {
    const ALL: [Self; 9] = [
        Self::Agent,
        Self::Power,
        Self::Dhcp,
        Self::Installer,
        Self::Image,
        Self::Erasure,
        Self::System,
        Self::Bmc,
        Self::Controller,
    ];

    /// What the word it is stored and shown as says.
    pub fn of_word(word: &str) -> Self {
        Self::ALL.into_iter().find(|waiting| waiting.to_string() == word).unwrap_or(Self::Controller)
    }
}

impl fmt::Display for WaitFor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Agent => "agent",
            Self::Power => "power",
            Self::Dhcp => "DHCP",
            Self::Installer => "installer",
            Self::Image => "image",
            Self::Erasure => "erasure",
            Self::System => "operating system",
            Self::Bmc => "BMC",
            Self::Controller => "controller",
        })
    }
}

/// What a machine has not done yet after `stage`, its latest hop since it was started.
pub fn hop(stage: Option<&Stage>) -> (WaitFor, &'static str) {
    match stage {
        None => (WaitFor::Dhcp, "restarted, has not asked for an address"),
        Some(Stage::PoweredOn) => (WaitFor::Dhcp, "powered on, has not asked for an address"),
        Some(Stage::RomDhcp(_)) => (WaitFor::Installer, "got an offer, never asked for its loader"),
        Some(Stage::Loader(_)) => (WaitFor::Installer, "fetched its loader, which has not asked for an address"),
        Some(Stage::IpxeDhcp) => (WaitFor::Installer, "iPXE has its address, has not fetched its boot script"),
        Some(Stage::Script(_)) => (WaitFor::Installer, "fetched its boot script, has not fetched the kernel"),
        Some(Stage::Kernel) => (WaitFor::Installer, "fetched the kernel, has not fetched the initial RAM disk"),
        Some(Stage::Initramfs) => (WaitFor::Installer, "fetched the initial RAM disk, its installer has not connected"),
        Some(Stage::Installer | Stage::Inventoried) => {
            (WaitFor::Installer, "installer connected, its inventory has not arrived")
        }
        Some(Stage::OrderStarted(_) | Stage::ImageWritten | Stage::SettingsWritten | Stage::Erased) => {
            (WaitFor::Installer, "installer is at work, has not asked what is next")
        }
        Some(Stage::Rebooting) => (WaitFor::System, "restarts into its own disk, system has not asked for an address"),
        Some(Stage::OsDhcp) => (WaitFor::System, "system has its address, has not called home"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_later_version_waits_for_is_read_as_a_wait_for_the_controller() {
        for known in WaitFor::ALL {
            assert_eq!(WaitFor::of_word(&known.to_string()), known);
            let stored = serde_json::to_string(&known).unwrap();
            assert_eq!(serde_json::from_str::<WaitFor>(&stored).unwrap(), known);
        }
        assert_eq!(WaitFor::of_word("fabric"), WaitFor::Controller);
        assert_eq!(serde_json::from_str::<WaitFor>("\"fabric\"").unwrap(), WaitFor::Controller);
    }
}
