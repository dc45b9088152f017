//! A machine's life from first sight to handed over and back.
//!
//! Invariants:
//! - [`Lifecycle::on`] is the only function that moves a lifecycle.
//! - Only a release leads a machine from its project, and only a complete one leads back to `ready`:
//!   `active` and `rescue` are someone's.
//! - Doubt leads to `quarantined`, and out of there only a release leads to `ready`.
//! - Maintenance is for what is `ready`: it is left to where it was entered from, or to
//!   `quarantined`. What is retired comes back by way of `quarantined`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Where a machine is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lifecycle {
    /// Its installer connected; nobody has said that it is ours.
    Discovered,
    /// Ours, and nobody's: can be deployed.
    Ready,
    /// A run is installing a system on it.
    Deploying,
    /// Someone's: its system runs.
    Active,
    /// Someone's, who works on it in the rescue system.
    Rescue,
    /// A run is taking it back and erasing it.
    Releasing,
    /// Something could not be finished or undone, or an operator doubts it: somebody looks, then
    /// releases it.
    Quarantined,
    /// Somebody works on it: nobody is given it meanwhile.
    Maintenance,
    /// Out of service for good; still known, so that it is not discovered anew.
    Retired,
}

/// What moves a machine on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// An operator says that it is ours.
    Adopt,
    /// An operator says that it is ours and somebody's, and that its system runs: we did not install it.
    AdoptRunning,
    /// An operator wants a system on it.
    Deploy,
    /// The system called home.
    Deployed,
    /// The deploy failed or was cancelled, and everything it did is undone.
    Undone,
    /// An operator wants it back.
    Release,
    /// Every disk is erased and read back.
    Released,
    /// A run could neither finish nor undo what it did.
    Broke,
    /// Its owner wants another system on it, or the same anew.
    Reinstall,
    /// A reinstall is over, however it ended.
    Reinstalled,
    /// Its owner wants to log in to it beside its own system.
    Rescue,
    /// Its owner can.
    Rescued,
    /// Its owner is done with that.
    LeaveRescue,
    /// Its own system was started again.
    LeftRescue,
    /// An operator wants to know what is in it now.
    Inspect,
    /// An operator wants it tested.
    Test,
    /// Its tests are over, however they ended.
    Tested,
    /// An operator wants other firmware in it.
    UpdateFirmware,
    /// Its firmware was updated, or is as it was.
    Updated,
    /// What firmware it has is not known, or not what was wanted.
    UpdateFailed,
    /// An operator wants its BMC back.
    RegainBmc,
    /// An operator doubts it.
    Quarantine,
    /// An operator works on it.
    Maintain,
    /// That work is over.
    Resume,
    /// An operator takes it out of service for good.
    Retire,
    /// An operator switches its power.
    Power,
    /// An operator removes it from the books.
    Forget,
    /// What was done with it is not known: the database was restored from a backup.
    Doubted,
}

/// What an operator can ask for, with the word for it.
const VERBS: [(Event, &str); 16] = [
    (Event::Adopt, "adopt"),
    (Event::Deploy, "deploy"),
    (Event::Reinstall, "reinstall"),
    (Event::Rescue, "rescue"),
    (Event::LeaveRescue, "leave-rescue"),
    (Event::Release, "release"),
    (Event::Power, "power"),
    (Event::Inspect, "inspect"),
    (Event::Test, "test"),
    (Event::UpdateFirmware, "update-firmware"),
    (Event::RegainBmc, "regain-bmc"),
    (Event::Maintain, "maintain"),
    (Event::Resume, "resume"),
    (Event::Quarantine, "quarantine"),
    (Event::Retire, "retire"),
    (Event::Forget, "forget"),
];

impl Lifecycle {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Discovered,
        Self::Ready,
        Self::Deploying,
        Self::Active,
        Self::Rescue,
        Self::Releasing,
        Self::Quarantined,
        Self::Maintenance,
        Self::Retired,
    ];

    /// The state after `event`, or why it cannot happen now.
    pub fn on(self, event: Event) -> Result<Self, Forbidden> {
        self.after(event).ok_or(Forbidden { lifecycle: self, event })
    }

    /// The verbs an operator can use now.
    pub fn verbs(self) -> impl Iterator<Item = &'static str> {
        VERBS.into_iter().filter(move |(event, _)| self.after(*event).is_some()).map(|(_, verb)| verb)
    }

    fn after(self, event: Event) -> Option<Self> {
        match (self, event) {
            (Self::Discovered, Event::Adopt) => Some(Self::Ready),
            (Self::Discovered, Event::AdoptRunning) => Some(Self::Active),
            (Self::Ready, Event::Deploy) => Some(Self::Deploying),
            (Self::Deploying, Event::Deployed) => Some(Self::Active),
            (Self::Deploying, Event::Undone) => Some(Self::Ready),
            (Self::Active | Self::Rescue | Self::Quarantined | Self::Maintenance, Event::Release) => {
                Some(Self::Releasing)
            }
            (Self::Active | Self::Rescue, Event::Reinstall) => Some(Self::Active),
            (Self::Active, Event::Reinstalled) => Some(self),
            // Anew, when the machine has left it by itself.
            (Self::Active | Self::Rescue, Event::Rescue) => Some(self),
            (Self::Active | Self::Rescue, Event::Rescued) => Some(Self::Rescue),
            (Self::Rescue, Event::LeaveRescue) => Some(self),
            (Self::Active | Self::Rescue, Event::LeftRescue) => Some(Self::Active),
            (
                Self::Ready | Self::Quarantined | Self::Maintenance,
                Event::Inspect
                | Event::Test
                | Event::Tested
                | Event::UpdateFirmware
                | Event::Updated
                | Event::RegainBmc,
            ) => Some(self),
            (Self::Ready | Self::Quarantined | Self::Maintenance, Event::UpdateFailed) => Some(Self::Quarantined),
            (Self::Ready, Event::Maintain) => Some(Self::Maintenance),
            (Self::Maintenance, Event::Resume) => Some(Self::Ready),
            (Self::Ready | Self::Maintenance | Self::Retired, Event::Quarantine) => Some(Self::Quarantined),
            (Self::Ready | Self::Quarantined | Self::Maintenance, Event::Retire) => Some(Self::Retired),
            (Self::Releasing, Event::Released) => Some(Self::Ready),
            (Self::Deploying | Self::Releasing, Event::Broke) => Some(Self::Quarantined),
            // Someone's stays someone's: nothing happens to it before its release is asked for.
            (Self::Active | Self::Retired, Event::Doubted) => Some(self),
            (Self::Rescue, Event::Doubted) => Some(Self::Active),
            (_, Event::Doubted) => Some(Self::Quarantined),
            (
                Self::Ready | Self::Active | Self::Rescue | Self::Quarantined | Self::Maintenance | Self::Retired,
                Event::Power,
            ) => Some(self),
            (Self::Discovered | Self::Ready | Self::Quarantined | Self::Retired, Event::Forget) => Some(self),
            _ => None,
        }
    }
}

impl fmt::Display for Lifecycle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Discovered => "discovered",
            Self::Ready => "ready",
            Self::Deploying => "deploying",
            Self::Active => "active",
            Self::Rescue => "rescue",
            Self::Releasing => "releasing",
            Self::Quarantined => "quarantined",
            Self::Maintenance => "maintenance",
            Self::Retired => "retired",
        })
    }
}

/// The word names no lifecycle.
#[derive(Debug, thiserror::Error)]
#[error("not a lifecycle")]
pub struct NotALifecycle;

impl FromStr for Lifecycle {
    type Err = NotALifecycle;

    fn from_str(text: &str) -> Result<Self, NotALifecycle> {
        Self::ALL.into_iter().find(|lifecycle| lifecycle.to_string() == text).ok_or(NotALifecycle)
    }
}

/// The machine's state does not permit it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forbidden {
    /// The state it is in.
    pub lifecycle: Lifecycle,
    /// What was asked for.
    pub event: Event,
}

impl std::error::Error for Forbidden {}

impl fmt::Display for Forbidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match VERBS.iter().find(|(event, _)| *event == self.event) {
            Some((_, verb)) => write!(f, "cannot {verb} a machine that is {}", self.lifecycle)?,
            None => write!(f, "a machine that is {} cannot have {:?}", self.lifecycle, self.event)?,
        }
        let verbs: Vec<_> = self.lifecycle.verbs().collect();
        match verbs.as_slice() {
            [] => f.write_str("; its run has to end first"),
            verbs => write!(f, "; possible now: {}", verbs.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use expect_test::expect;

    const EVENTS: [Event; 28] = [
        Event::Adopt,
        Event::AdoptRunning,
        Event::Deploy,
        Event::Deployed,
        Event::Undone,
        Event::Release,
        Event::Released,
        Event::Broke,
        Event::Reinstall,
        Event::Reinstalled,
        Event::Rescue,
        Event::Rescued,
        Event::LeaveRescue,
        Event::LeftRescue,
        Event::Inspect,
        Event::Test,
        Event::Tested,
        Event::UpdateFirmware,
        Event::Updated,
        Event::UpdateFailed,
        Event::RegainBmc,
        Event::Quarantine,
        Event::Maintain,
        Event::Resume,
        Event::Retire,
        Event::Power,
        Event::Forget,
        Event::Doubted,
    ];

    #[test]
    fn every_state_answers_every_event() {
        let mut table = String::new();
        for lifecycle in Lifecycle::ALL {
            for event in EVENTS {
                if let Ok(next) = lifecycle.on(event) {
                    table += &format!("{lifecycle} {event:?}: {next}\n");
                }
            }
        }
        expect![[r#"
            discovered Adopt: ready
            discovered AdoptRunning: active
            discovered Forget: discovered
            discovered Doubted: quarantined
            ready Deploy: deploying
            ready Inspect: ready
            ready Test: ready
            ready Tested: ready
            ready UpdateFirmware: ready
            ready Updated: ready
            ready UpdateFailed: quarantined
            ready RegainBmc: ready
            ready Quarantine: quarantined
            ready Maintain: maintenance
            ready Retire: retired
            ready Power: ready
            ready Forget: ready
            ready Doubted: quarantined
            deploying Deployed: active
            deploying Undone: ready
            deploying Broke: quarantined
            deploying Doubted: quarantined
            active Release: releasing
            active Reinstall: active
            active Reinstalled: active
            active Rescue: active
            active Rescued: rescue
            active LeftRescue: active
            active Power: active
            active Doubted: active
            rescue Release: releasing
            rescue Reinstall: active
            rescue Rescue: rescue
            rescue Rescued: rescue
            rescue LeaveRescue: rescue
            rescue LeftRescue: active
            rescue Power: rescue
            rescue Doubted: active
            releasing Released: ready
            releasing Broke: quarantined
            releasing Doubted: quarantined
            quarantined Release: releasing
            quarantined Inspect: quarantined
            quarantined Test: quarantined
            quarantined Tested: quarantined
            quarantined UpdateFirmware: quarantined
            quarantined Updated: quarantined
            quarantined UpdateFailed: quarantined
            quarantined RegainBmc: quarantined
            quarantined Retire: retired
            quarantined Power: quarantined
            quarantined Forget: quarantined
            quarantined Doubted: quarantined
            maintenance Release: releasing
            maintenance Inspect: maintenance
            maintenance Test: maintenance
            maintenance Tested: maintenance
            maintenance UpdateFirmware: maintenance
            maintenance Updated: maintenance
            maintenance UpdateFailed: quarantined
            maintenance RegainBmc: maintenance
            maintenance Quarantine: quarantined
            maintenance Resume: ready
            maintenance Retire: retired
            maintenance Power: maintenance
            maintenance Doubted: quarantined
            retired Quarantine: quarantined
            retired Power: retired
            retired Forget: retired
            retired Doubted: retired
        "#]]
        .assert_eq(&table);
    }

    #[test]
    fn a_refusal_says_what_is_possible() {
        let refusal = |lifecycle: Lifecycle, event| lifecycle.on(event).unwrap_err().to_string();
        expect!["cannot deploy a machine that is active; possible now: reinstall, rescue, release, power"]
            .assert_eq(&refusal(Lifecycle::Active, Event::Deploy));
        expect!["cannot release a machine that is deploying; its run has to end first"]
            .assert_eq(&refusal(Lifecycle::Deploying, Event::Release));
    }

    #[test]
    fn a_lifecycle_is_read_as_it_is_printed() {
        for lifecycle in Lifecycle::ALL {
            assert_eq!(lifecycle.to_string().parse::<Lifecycle>().unwrap(), lifecycle);
            assert_eq!(serde_json::to_string(&lifecycle).unwrap(), format!("\"{lifecycle}\""));
        }
    }
}
