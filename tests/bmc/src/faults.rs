//! What can be wrong with a BMC, settable while it runs.

use serde::{Deserialize, Serialize};

use crate::chassis::{Boot, Source};

/// What is wrong just now; the default is nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// Every answer is late by so many milliseconds.
    pub slow_ms: u64,
    /// Each n-th datagram that arrives is lost; 0 loses none.
    pub dropping: u64,
    /// Says yes to power, boot and identification, and changes nothing.
    pub lying: bool,
    /// How changes of accounts, but for passwords, of the network and of the firmware's settings go.
    pub settings: Settings,
    /// How firmware that is sent to be installed fares.
    pub flashing: Flashing,
    /// How the next changes of a password go wrong.
    pub password: Rotation,
    /// Locks its accounts for good after so many logins in a row that were denied; 0 never does.
    pub locks_after: u32,
    /// Answers everything with "busy": 0xC0, 503.
    pub busy: bool,
    /// Has no room for another session.
    pub no_sessions: bool,
    /// Members of resources have another type than their schema says.
    pub malformed_members: bool,
    /// Collections name members that are not there.
    pub dangling_links: bool,
    /// Systems have no `Actions`.
    pub no_actions: bool,
    /// What the machine's firmware makes of a boot override that its BMC took.
    pub follows: Follows,
    /// A boot override is taken and used, but not shown when it is read.
    pub override_hidden: bool,
    /// The system UUID that is told.
    pub uuid: ToldUuid,
    /// Every Redfish resource answers with a redirect to another host.
    pub redirects: bool,
}

/// What firmware makes of an override: all are taken and shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Follows {
    /// It does what it says.
    #[default]
    All,
    /// It passes over overrides for one start.
    Lasting,
    /// It starts from a virtual drive, and passes over all other overrides.
    Media,
    /// It goes by its own order, whatever is said.
    Nothing,
}

impl Follows {
    /// Whether it does what this override says.
    pub fn does(self, boot: &Boot) -> bool {
        match self {
            Self::All => true,
            Self::Lasting => boot.is_lasting,
            Self::Media => boot.source == Some(Source::Cd),
            Self::Nothing => false,
        }
    }
}

/// How changes of what is set go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Settings {
    /// As asked.
    #[default]
    Works,
    /// Success is answered, and nothing is changed.
    Ignored,
    /// Success is answered, and every second change is made.
    Half,
}

/// How firmware that is sent to be installed fares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Flashing {
    /// It is installed, and its task says so.
    #[default]
    Works,
    /// The BMC starts anew in the middle of it, answers nothing meanwhile, and has forgotten its tasks
    /// afterwards; the firmware is installed.
    Restarts,
    /// The file is not taken.
    Refused,
    /// Its task fails, and nothing is installed.
    Fails,
    /// Its task never ends, and nothing is installed.
    Hangs,
    /// Its task says that all is well, and nothing is installed.
    Lies,
    /// It is installed with the machine's next start.
    Staged,
}

/// How the change of a password goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rotation {
    /// As asked.
    #[default]
    Works,
    /// Success is answered, and the password is as before.
    SaidNotDone,
    /// The password is changed, and nothing is answered.
    DoneNotSaid,
    /// Nothing is changed, and nothing is answered.
    Silent,
    /// Success is answered, and the password is changed but cut to its first 16 bytes.
    Cut,
}

/// The system UUID that is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToldUuid {
    /// The machine's own.
    #[default]
    Right,
    /// Another machine's.
    Wrong,
    /// All zeros.
    Zero,
    /// All ones.
    Ones,
}
