//! Bugs planted at the seams, each of which an oracle must catch. The product is as it is: it is
//! handed something else, or what it said is not done.

use std::time::Duration;

use crate::{
    fault::{Fault, Kind, Part, Process, Trouble},
    oracle::Promise,
    version::Version,
};

/// A planted bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plant {
    /// The agent takes commands of any epoch, and old ones come again under new ids.
    AgentForgetsEpoch,
    /// The disk of boot says that it has synced and has not.
    BootDiskLies,
    /// Boot writes leases to memory only: what it acknowledged is gone with the process.
    BootLosesLeases,
    /// Boot answers machines only while the controller is there.
    BootAsksController,
    /// The agent's ledger is empty after a restart.
    LedgerForgets,
    /// The runner looks at runs in progress every seven minutes.
    RunnerSleeps,
    /// The controller takes events that it has taken before.
    EventsTakenTwice,
    /// The controller takes every third event for another one.
    EventsMistaken,
    /// The agent starts again from an old copy of its intent.
    IntentGoesBack,
    /// The controller's database is an old copy when it starts again, and the agent does not
    /// say what it knows.
    ConnectionsGoBack,
    /// The revision of an intent rises whenever somebody looks.
    IntentFlaps,
    /// The agent dials once.
    UplinkGivesUp,
    /// The agent begins commands also when their time is over.
    AgentForgetsDeadline,
    /// The runner takes its last look at power, before it hands a machine over, for answered.
    RunnerForgetsToLook,
    /// The disk of the controller's database says that it has flushed and has not.
    ControllerDiskLies,
    /// Boot of the next version does not start from stores of this one.
    NextBootRefusesStores,
    /// Boot of the next version starts without its intent.
    NextBootForgetsIntent,
    /// A controller ends the connection when it does not know an event.
    UnknownEventEndsSession,
    /// The installer begins an order without a look at the machine it is on.
    InstallerForgetsToLook,
}

impl Plant {
    /// All of them.
    pub const ALL: [Self; 19] = [
        Self::AgentForgetsEpoch,
        Self::BootDiskLies,
        Self::BootLosesLeases,
        Self::BootAsksController,
        Self::LedgerForgets,
        Self::RunnerSleeps,
        Self::EventsTakenTwice,
        Self::EventsMistaken,
        Self::IntentGoesBack,
        Self::ConnectionsGoBack,
        Self::IntentFlaps,
        Self::UplinkGivesUp,
        Self::AgentForgetsDeadline,
        Self::RunnerForgetsToLook,
        Self::ControllerDiskLies,
        Self::NextBootRefusesStores,
        Self::NextBootForgetsIntent,
        Self::UnknownEventEndsSession,
        Self::InstallerForgetsToLook,
    ];

    /// The promise it breaks.
    pub fn breaks(self) -> Promise {
        match self {
            Self::AgentForgetsEpoch
            | Self::RunnerForgetsToLook
            | Self::ControllerDiskLies
            | Self::InstallerForgetsToLook => Promise::P1,
            Self::BootDiskLies => Promise::P2,
            Self::BootLosesLeases => Promise::P3,
            Self::BootAsksController | Self::NextBootRefusesStores | Self::NextBootForgetsIntent => Promise::P4,
            Self::LedgerForgets | Self::AgentForgetsDeadline => Promise::P5,
            Self::RunnerSleeps => Promise::P6,
            Self::EventsTakenTwice | Self::EventsMistaken => Promise::P7,
            Self::IntentGoesBack | Self::ConnectionsGoBack => Promise::Forward,
            Self::IntentFlaps | Self::UplinkGivesUp | Self::UnknownEventEndsSession => Promise::Converges,
        }
    }

    /// Faults in the first rack that give it occasion, beside those of the seed.
    pub fn occasions(self) -> Vec<Fault> {
        let next = |part| Kind::Replaced { process: Process::Node { rack: 0, part }, version: Version::Next };
        let fault = |at, lasts, kind| Fault { at: Duration::from_secs(at), lasts: Duration::from_secs(lasts), kind };
        match self {
            // Boot forgets what it gave to machines that the controller has not heard of yet.
            Self::BootDiskLies | Self::BootLosesLeases => {
                let cuts = (0..12).map(|turn| fault(60 + 25 * turn, 2, Kind::NodePowerCut(0)));
                cuts.chain([fault(5, 900, Kind::Partition(0))]).collect()
            }
            Self::BootAsksController => {
                let resets = (0..5).map(|turn| fault(1300 + 60 * turn, 0, Kind::MachineReset { rack: 0, machine: 0 }));
                resets.chain([fault(1200, 1800, Kind::Partition(0))]).collect()
            }
            Self::LedgerForgets => {
                let slow = fault(400, 3000, Kind::Bmc { rack: 0, machine: 0, trouble: Trouble::Slow });
                (0..20).map(|turn| fault(500 + 150 * turn, 1, Kind::KillAgent(0))).chain([slow]).collect()
            }
            Self::RunnerSleeps => vec![fault(400, 3000, Kind::InstallerHangs { rack: 0, machine: 0 })],
            Self::IntentGoesBack => vec![fault(900, 5, Kind::KillAgent(0))],
            Self::ConnectionsGoBack => vec![fault(900, 5, Kind::KillController)],
            Self::UplinkGivesUp => vec![fault(900, 60, Kind::Partition(0))],
            Self::EventsTakenTwice => vec![fault(300, 1500, Kind::LossyUplink(0))],
            // Commands wait in an agent that stands still.
            Self::ControllerDiskLies => vec![fault(900, 600, Kind::ControllerPowerCut(0))],
            Self::AgentForgetsDeadline => {
                (0..8).map(|turn| fault(400 + 300 * turn, 200, Kind::AgentStalls(0))).collect()
            }
            Self::RunnerForgetsToLook => {
                let slow = fault(300, 3300, Kind::Bmc { rack: 0, machine: 0, trouble: Trouble::Slow });
                let lossy = fault(300, 3300, Kind::LossyRack(0));
                let stalls = (0..20).map(|turn| fault(400 + 150 * turn, 100, Kind::AgentStalls(0)));
                stalls.chain([slow, lossy]).collect()
            }
            // Its agent could tell it at once.
            Self::NextBootRefusesStores | Self::NextBootForgetsIntent => {
                let replaced = fault(1300, 3, next(Part::Boot));
                let resets = (0..20).map(|turn| fault(1310 + 60 * turn, 0, Kind::MachineReset { rack: 0, machine: 0 }));
                resets.chain([replaced, fault(1290, 1500, Kind::SocketGone(0))]).collect()
            }
            Self::InstallerForgetsToLook => vec![fault(300, 0, Kind::DiskSwapped { rack: 0, machine: 0 })],
            Self::UnknownEventEndsSession => vec![fault(900, 3, next(Part::Agent))],
            Self::AgentForgetsEpoch | Self::EventsMistaken | Self::IntentFlaps => Vec::new(),
        }
    }

    /// Its name on the command line.
    pub fn name(self) -> String {
        let mut name = String::new();
        for letter in format!("{self:?}").chars() {
            if letter.is_uppercase() && !name.is_empty() {
                name.push('-');
            }
            name.push(letter.to_ascii_lowercase());
        }
        name
    }
}
