//! Roles: sets of actions, with names.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::Action;

/// A set of actions that somebody has at a scope. What each may do stands in [`Action`]'s table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// All there is, also to make others owners.
    Owner,
    /// All but what ends an organisation: people, roles, address space, racks.
    Admin,
    /// Racks, machines, images and addresses; not people.
    Operator,
    /// Hands in the rack: puts parts and nodes in, switches power; erases and installs nothing.
    Technician,
    /// Uses what its project was given: installs, releases, claims addresses.
    Collaborator,
    /// Sees what is used, to charge for it.
    Billing,
    /// Sees, and changes nothing.
    Viewer,
}

/// What is no role.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no role; there are {all}", all = Role::ALL.map(|role| role.name()).join(", "))]
pub struct NoRole(pub String);

impl Role {
    /// All, in the order of the table's columns.
    pub const ALL: [Self; 7] =
        [Self::Owner, Self::Admin, Self::Operator, Self::Technician, Self::Collaborator, Self::Billing, Self::Viewer];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::Admin => "admin",
            Self::Operator => "operator",
            Self::Technician => "technician",
            Self::Collaborator => "collaborator",
            Self::Billing => "billing",
            Self::Viewer => "viewer",
        }
    }

    /// Whether the action is one of its.
    pub fn may(self, action: Action) -> bool {
        action.roles().contains(&self)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Role {
    type Err = NoRole;

    fn from_str(text: &str) -> Result<Self, NoRole> {
        Self::ALL.into_iter().find(|role| role.name() == text).ok_or_else(|| NoRole(text.into()))
    }
}
