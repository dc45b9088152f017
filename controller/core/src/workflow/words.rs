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
    /// The machine's self-test: it was started, and nothing has come from it.
    Post,
    /// A program in the machine that has not asked for its address.
    Dhcp,
    /// A loader: firmware that fetches one, or one that fetches what it is to boot.
    Loader,
    /// The installer, on its way through kernel, initial RAM disk and inventory.
    Installer,
    /// The image, being written.
    Image,
    /// The disks, being erased.
    Erasure,
    /// The machine's start from its own disk.
    DiskBoot,
    /// The installed system's call.
    System,
    /// Tests, being run.
    Tests,
    /// The machine's BMC.
    Bmc,
    /// Firmware, being installed.
    Firmware,
    /// The controller itself, which has not looked at it yet. What a later version waited for and
    /// this one has no word for is read as this: it looks, and says what it waits for itself.
    #[serde(other)]
    Controller,
}

impl WaitFor {
    const ALL: [Self; 14] = [
        Self::Agent,
        Self::Power,
        Self::Post,
        Self::Dhcp,
        Self::Loader,
        Self::Installer,
        Self::Image,
        Self::Erasure,
        Self::DiskBoot,
        Self::System,
        Self::Tests,
        Self::Bmc,
        Self::Firmware,
        Self::Controller,
    ];

    /// What the word it is stored and shown as says, or was in an earlier version.
    pub fn of_word(word: &str) -> Self {
        if word == "image" {
            return Self::Image;
        }
        Self::ALL.into_iter().find(|waiting| waiting.to_string() == word).unwrap_or(Self::Controller)
    }
}

impl fmt::Display for WaitFor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Agent => "agent",
            Self::Power => "power",
            Self::Post => "POST",
            Self::Dhcp => "DHCP",
            Self::Loader => "loader",
            Self::Installer => "installer",
            Self::Image => "image stream",
            Self::Erasure => "erasure",
            Self::DiskBoot => "disk boot",
            Self::System => "operating system",
            Self::Tests => "tests",
            Self::Bmc => "BMC",
            Self::Firmware => "firmware",
            Self::Controller => "controller",
        })
    }
}

/// What a machine has not done yet after `stage`, its latest hop since it was started.
pub fn hop(stage: Option<&Stage>) -> (WaitFor, &'static str) {
    let Some(stage) = stage else { return (WaitFor::Post, "restarted, has not asked for an address") };
    let waits = match stage {
        Stage::PoweredOn => WaitFor::Post,
        Stage::RomDhcp(_) | Stage::IpxeDhcp | Stage::Script(_) => WaitFor::Loader,
        Stage::Loader(_) => WaitFor::Dhcp,
        Stage::Rebooting => WaitFor::DiskBoot,
        Stage::OsDhcp => WaitFor::System,
        _ => WaitFor::Installer,
    };
    (waits, stage.not_yet())
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
