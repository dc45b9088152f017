//! Bugs planted at the seams, each of which an oracle must catch. The product is as it is: it is
//! handed something else, or what it said is not done.

use crate::oracle::Promise;

/// A planted bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plant {
    /// The agent takes commands of any epoch, and the network repeats them long after.
    AgentForgetsEpoch,
    /// The disk of boot says that it has synced and has not.
    BootDiskLies,
    /// Boot writes leases to memory only: what it acknowledged is gone with the process.
    BootLosesLeases,
    /// Boot answers machines only while the controller is there.
    BootAsksController,
    /// The agent's ledger is empty after a restart.
    LedgerForgets,
    /// A command that comes late is started all the same.
    AgentForgetsDeadline,
    /// The runner looks only when it is woken.
    RunnerSleeps,
    /// The controller takes events that it has taken before.
    EventsTakenTwice,
    /// The agent forgets events when it has sent them.
    EventsForgottenWhenSent,
    /// The agent starts again from an old copy of its intent.
    IntentGoesBack,
    /// The controller's database is an old copy when it starts again, and the agent does not
    /// say what it knows.
    ConnectionsGoBack,
    /// The revision of an intent rises whenever somebody looks.
    IntentFlaps,
    /// The agent dials once.
    UplinkGivesUp,
}

impl Plant {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::AgentForgetsEpoch,
        Self::BootDiskLies,
        Self::BootLosesLeases,
        Self::BootAsksController,
        Self::LedgerForgets,
        Self::AgentForgetsDeadline,
        Self::RunnerSleeps,
        Self::EventsTakenTwice,
        Self::EventsForgottenWhenSent,
        Self::IntentGoesBack,
        Self::ConnectionsGoBack,
        Self::IntentFlaps,
        Self::UplinkGivesUp,
    ];

    /// The promise it breaks.
    pub fn breaks(self) -> Promise {
        match self {
            Self::AgentForgetsEpoch => Promise::P1,
            Self::BootDiskLies => Promise::P2,
            Self::BootLosesLeases => Promise::P3,
            Self::BootAsksController => Promise::P4,
            Self::LedgerForgets | Self::AgentForgetsDeadline => Promise::P5,
            Self::RunnerSleeps => Promise::P6,
            Self::EventsTakenTwice | Self::EventsForgottenWhenSent => Promise::P7,
            Self::IntentGoesBack | Self::ConnectionsGoBack => Promise::Forward,
            Self::IntentFlaps | Self::UplinkGivesUp => Promise::Converges,
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
