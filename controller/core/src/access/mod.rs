//! Who may do what where (role-based access control, with scopes).
//!
//! A person has *bindings*: a role at a scope. A role is a set of actions, a scope a set of
//! places. An object stands in one place: given to a project of an organisation, in a rack of a
//! site, or in none of them.
//!
//! Invariants:
//! - What no binding permits is refused.
//! - A token acts with its owner's bindings, less what it is restricted to, and never with more.
//! - Nobody can grant what they could not do themselves, everywhere they grant it.

mod action;
mod attempts;
mod grant;
mod groups;
mod pending;
mod role;
#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, fmt};

use rackhand_common::id::{OrganisationId, ProjectId, RackId, SiteId};

pub use self::{
    action::{Action, NoAction},
    attempts::{Attempts, Limit},
    grant::{Grant, Grantee, Use, Wanting},
    groups::{Turn, turn},
    pending::Pending,
    role::{NoRole, Role},
};

/// Where a role counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// The whole installation.
    Everything,
    /// What is given to an organisation's projects.
    Organisation(OrganisationId),
    /// What is given to a project.
    Project(ProjectId),
    /// What stands in a site's racks.
    Site(SiteId),
    /// What stands in a rack.
    Rack(RackId),
}

/// Where an object stands. One that stands nowhere is the whole installation's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Place {
    /// The organisation it is given to.
    pub organisation: Option<OrganisationId>,
    /// The project it is given to.
    pub project: Option<ProjectId>,
    /// The site it stands in.
    pub site: Option<SiteId>,
    /// The rack it stands in.
    pub rack: Option<RackId>,
}

impl Place {
    /// The whole installation.
    pub const EVERYTHING: Self = Self { organisation: None, project: None, site: None, rack: None };

    /// Where both are true: in the rack of one, and given to the project of the other.
    pub fn given_to(self, project: Self) -> Self {
        Self { organisation: project.organisation, project: project.project, ..self }
    }
}

impl Scope {
    /// Whether what stands there is in this scope.
    pub fn contains(self, place: Place) -> bool {
        match self {
            Self::Everything => true,
            Self::Organisation(id) => place.organisation == Some(id),
            Self::Project(id) => place.project == Some(id),
            Self::Site(id) => place.site == Some(id),
            Self::Rack(id) => place.rack == Some(id),
        }
    }

    /// The word for its kind.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Everything => "everything",
            Self::Organisation(_) => "organisation",
            Self::Project(_) => "project",
            Self::Site(_) => "site",
            Self::Rack(_) => "rack",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everything => f.write_str("everything"),
            Self::Organisation(id) => write!(f, "organisation {id}"),
            Self::Project(id) => write!(f, "project {id}"),
            Self::Site(id) => write!(f, "site {id}"),
            Self::Rack(id) => write!(f, "rack {id}"),
        }
    }
}

/// A role at a scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Binding {
    /// What may be done.
    pub role: Role,
    /// Where.
    pub scope: Scope,
}

/// Whether bindings permit an action at a place.
pub fn permits(bindings: &[Binding], action: Action, place: Place) -> bool {
    bindings.iter().any(|binding| binding.role.may(action) && binding.scope.contains(place))
}

/// What somebody may do with a token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    /// Of the token's owner.
    pub bindings: Vec<Binding>,
    /// Only these; all when `None`.
    pub actions: Option<BTreeSet<Action>>,
    /// Only there; everywhere when `None`.
    pub scopes: Option<BTreeSet<Scope>>,
}

/// Which objects of a list somebody may see: those that are in a scope of each of these sets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sight(Vec<BTreeSet<Scope>>);

impl Sight {
    /// All there are.
    pub const ALL: Self = Self(Vec::new());

    /// The sets, each of which an object must be in a scope of; none means all objects.
    pub fn sets(&self) -> &[BTreeSet<Scope>] {
        &self.0
    }

    /// Whether an object at this place can be seen.
    pub fn shows(&self, place: Place) -> bool {
        self.0.iter().all(|set| set.iter().any(|scope| scope.contains(place)))
    }
}

impl Rights {
    /// Whether the token was made for this action at all, whatever its owner may do.
    pub fn is_for(&self, action: Action) -> bool {
        self.actions.as_ref().is_none_or(|actions| actions.contains(&action))
    }

    /// Whether an action is permitted at a place.
    pub fn permit(&self, action: Action, place: Place) -> bool {
        self.is_for(action)
            && permits(&self.bindings, action, place)
            && self.scopes.as_ref().is_none_or(|scopes| scopes.iter().any(|scope| scope.contains(place)))
    }

    /// Which objects an action is permitted on; `None` when there can be none.
    pub fn sight(&self, action: Action) -> Option<Sight> {
        if !self.is_for(action) {
            return None;
        }
        let bound: BTreeSet<_> =
            self.bindings.iter().filter(|binding| binding.role.may(action)).map(|binding| binding.scope).collect();
        let sets = [Some(bound), self.scopes.clone()].into_iter().flatten();
        let sets: Vec<_> = sets.filter(|set| !set.contains(&Scope::Everything)).collect();
        if sets.iter().any(BTreeSet::is_empty) { None } else { Some(Sight(sets)) }
    }

    /// Whether everything that `role` may do at `place` (the place of a scope itself) is
    /// permitted there: the measure of what may be granted, and of whom one may manage.
    pub fn covers(&self, role: Role, place: Place) -> bool {
        Action::ALL.iter().filter(|action| role.may(**action)).all(|action| self.permit(*action, place))
    }
}
