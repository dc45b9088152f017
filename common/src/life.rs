//! Where each machine of a rack is in its life, as the controller told its node: by this alone a node
//! knows, while the controller is away, which machines are nobody's.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::{MachineId, RackId};

/// Where a machine is in its life. Grows at the end only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Life {
    /// Nobody has said that it is ours.
    Discovered,
    /// Ours, and nobody's.
    Ready,
    /// A system is being installed on it.
    Deploying,
    /// Someone's: its system runs.
    Active,
    /// Someone's, who works on it in the rescue system.
    Rescue,
    /// It is being taken back and erased.
    Releasing,
    /// Somebody has to look at it.
    Quarantined,
    /// Somebody works on it.
    Maintenance,
    /// Out of service for good.
    Retired,
}

impl Life {
    /// Whether it is ours and nobody's, so that a technician may open it.
    pub fn is_idle(self) -> bool {
        matches!(self, Self::Ready | Self::Quarantined | Self::Maintenance)
    }
}

impl fmt::Display for Life {
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

/// The lives of a rack's machines. Sent before the intent of the same revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lives {
    /// The rack's revision they are of.
    pub revision: u64,
    /// The rack they are for; a node of another rack refuses them.
    pub rack: RackId,
    /// Every machine that the intent lists.
    pub machines: Vec<(MachineId, Life)>,
}

impl Lives {
    /// Of this machine.
    pub fn of(&self, machine: MachineId) -> Option<Life> {
        self.machines.iter().find(|(id, _)| *id == machine).map(|(_, life)| *life)
    }
}
