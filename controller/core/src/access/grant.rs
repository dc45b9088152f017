//! Grants: who may do what with a pool's or a claim's addresses, beside having the role for it.
//!
//! A role says what somebody may do in their project; a grant, whose project may do it with these
//! addresses. Both are needed.

use std::collections::BTreeSet;

use rackhand_common::id::ProjectId;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Action, Binding, Place, Role};

/// What a grant lets do with addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Use {
    /// Claim them, and say who holds them.
    Assign,
    /// Have machines announce them by BGP.
    Announce,
    /// Say which names reverse DNS answers for them.
    Reverse,
}

/// Who has a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grantee {
    /// Whoever has the role for it.
    Everyone,
    /// Whoever does it for this project.
    Project(ProjectId),
    /// Whoever has this very role there.
    Role(Role),
    /// Whoever has this token.
    Token(Uuid),
}

/// What somebody may do with addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Who.
    pub to: Grantee,
    /// What.
    pub may: BTreeSet<Use>,
}

/// Who wants to use addresses, and where they are to stand.
#[derive(Clone, Copy, Debug)]
pub struct Wanting<'a> {
    /// Their roles.
    pub bindings: &'a [Binding],
    /// Their token.
    pub token: Uuid,
    /// The project that the addresses are given to, and where they stand.
    pub place: Place,
}

impl Use {
    /// All.
    pub const ALL: [Self; 3] = [Self::Assign, Self::Announce, Self::Reverse];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Assign => "assign",
            Self::Announce => "announce",
            Self::Reverse => "reverse",
        }
    }

    /// The action that the role has to have.
    pub fn action(self) -> Action {
        match self {
            Self::Assign => Action::AddressClaim,
            Self::Announce => Action::AddressAnnounce,
            Self::Reverse => Action::AddressName,
        }
    }
}

impl Grant {
    /// What everyone may with the addresses of a pool that is shared: all but have them announced, which
    /// the world would see.
    pub fn to_everyone() -> Self {
        Self { to: Grantee::Everyone, may: [Use::Assign, Use::Reverse].into() }
    }

    /// Whether it lets them.
    pub fn lets(&self, wanted: Use, who: Wanting<'_>) -> bool {
        self.may.contains(&wanted)
            && match self.to {
                Grantee::Everyone => true,
                Grantee::Project(project) => who.place.project == Some(project),
                Grantee::Role(role) => {
                    who.bindings.iter().any(|binding| binding.role == role && binding.scope.contains(who.place))
                }
                Grantee::Token(token) => who.token == token,
            }
    }
}
