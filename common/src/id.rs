//! Identifiers. Each kind of thing has its own type, so that a function's signature says
//! what it wants. All are UUIDv7 (RFC 9562 §5.7): they sort by creation time.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A fresh identifier; later ones sort after earlier ones.
            pub fn fresh() -> Self {
                Self(Uuid::now_v7())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    )*};
}

ids! {
    /// A physical server, whatever its parts; ours, never read from hardware.
    MachineId;
    /// A rack: the provisioning network and the machines of one node.
    RackId;
    /// A node's registration, made at enrolment; survives certificate renewal.
    AgentId;
    /// One start of an agent's process. Of two alive, the newest connection wins.
    Incarnation;
    /// One performance of a workflow on one machine.
    RunId;
    /// An operating system image as imported.
    ImageId;
    /// A command that changes hardware; at most one effect per id.
    CommandId;
    /// Address space of one origin, from which pools are made.
    AggregateId;
    /// Address space to claim from.
    PoolId;
    /// An address or a block while it is somebody's, and afterwards in the history.
    ClaimId;
    /// That a machine announces a claim's addresses, or did.
    AnnouncementId;
    /// A customer, or the provider itself: projects are somebody's.
    OrganisationId;
    /// What machines and addresses are given to.
    ProjectId;
    /// A place with racks.
    SiteId;
    /// Somebody who logs in.
    PersonId;
    /// A role that a person has at a scope.
    BindingId;
}

/// How often a machine has been given to someone or taken back. Destructive orders and
/// commands carry the epoch they were made in, and are refused in any other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_printed_and_parsed_as_a_plain_uuid() {
        let id = MachineId::fresh();
        assert_eq!(id.to_string().parse::<MachineId>().unwrap(), id);
        assert_eq!(serde_json::to_string(&id).unwrap(), format!("\"{id}\""));
    }
}
