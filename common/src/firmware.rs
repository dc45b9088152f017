//! Updates of firmware: what one is, as a run keeps it and a rack's agent is told, and what the agent
//! answers.

use serde::{Deserialize, Serialize};

pub use self::{
    parts::Parts,
    script::{Order, Outcome, Scripted, Updated},
};
use crate::id::RunId;

mod parts;
pub mod script;

/// The largest file of firmware, in bytes.
pub const MAX_FILE: u64 = 1 << 30;

/// Whose version is read, and brought to what is wanted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// The BMC's own firmware (DSP0268 Manager, `FirmwareVersion`).
    Bmc,
    /// The machine's firmware (DSP0268 ComputerSystem, `BiosVersion`).
    Bios,
    /// This member of the BMC's firmware inventory (DSP0268 SoftwareInventory, `Version`), by its id.
    Inventory(String),
    /// What the installer tells of these parts of the machine.
    Parts(Parts),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bmc => f.write_str("bmc"),
            Self::Bios => f.write_str("bios"),
            Self::Inventory(id) => f.write_str(id),
            Self::Parts(parts) => parts.fmt(f),
        }
    }
}

/// One update of one machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Update {
    /// The name of its manifest.
    pub name: String,
    /// What is updated.
    pub place: Place,
    /// The version that it has afterwards, exactly.
    pub version: String,
    /// Versions that it may be updated from; empty for any.
    pub from: Vec<String>,
    /// What the device is told that the file is called.
    pub file: String,
    /// Bytes of the file.
    pub size: u64,
    /// SHA-256 of the file, in lower-case hexadecimal.
    pub sha256: String,
    /// What the BMC is told to update, as links of its firmware inventory; empty when the file says it.
    pub targets: Vec<String>,
    /// Whether the machine has to start anew before the version is in force.
    pub restart: bool,
    /// How long the BMC, or the script, may take, in seconds.
    pub timeout: u32,
    /// How long after that the version may take to show, in seconds.
    pub settle: u32,
    /// The script that the machine's installer runs; `None` when its BMC is sent the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub script: Option<Scripted>,
}

/// What a rack's agent is asked, again and again until it is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// The run that wants it.
    pub run: RunId,
    /// What is wanted.
    pub update: Update,
    /// Whether the machine was started anew since the BMC took the file: then nothing is sent, and the
    /// version is only read.
    pub confirm: bool,
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answered {
    /// It goes on.
    UnderWay {
        /// Where it is, for people.
        detail: String,
        /// Changes when it moves.
        mark: u64,
    },
    /// Nothing was sent, and it can be tried again later.
    Later(String),
    /// Nothing was sent, or nothing was taken: the device is as it was.
    Refused(String),
    /// The device may be other than it was.
    Failed(String),
    /// The BMC took it; the machine has to start anew before it is in force.
    Staged,
    /// The version that was read is the one that was wanted.
    Installed {
        /// The version before; the same when nothing had to be done.
        was: Option<String>,
    },
}
