//! Roles that follow from the groups that a person is in elsewhere.
//!
//! Invariant: what was granted by hand is neither given nor taken here.

use std::collections::BTreeSet;

use super::Binding;

/// What has to be done so that somebody's roles are those of their groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// To be granted.
    pub grant: BTreeSet<Binding>,
    /// To be taken away.
    pub take: BTreeSet<Binding>,
}

/// What turns the roles that somebody has by their groups into those `wanted`, beside what they were
/// granted by hand.
pub fn turn(wanted: &BTreeSet<Binding>, by_groups: &BTreeSet<Binding>, by_hand: &BTreeSet<Binding>) -> Turn {
    let grant = wanted.iter().filter(|one| !by_groups.contains(one) && !by_hand.contains(one));
    Turn { grant: grant.copied().collect(), take: by_groups.difference(wanted).copied().collect() }
}

#[cfg(test)]
mod tests {
    use super::{super::Role, super::Scope, *};

    #[test]
    fn roles_follow_groups_and_those_granted_by_hand_stay() {
        let set = |roles: &[Role]| roles.iter().map(|role| Binding { role: *role, scope: Scope::Everything }).collect();
        let (viewer, operator, billing) = (Role::Viewer, Role::Operator, Role::Billing);
        let turned = turn(&set(&[viewer, operator]), &set(&[billing]), &set(&[viewer]));
        assert_eq!(turned, Turn { grant: set(&[operator]), take: set(&[billing]) });
        assert_eq!(turn(&set(&[viewer]), &set(&[viewer]), &set(&[])), Turn::default());
        assert_eq!(turn(&set(&[]), &set(&[]), &set(&[operator])), Turn::default());
    }
}
