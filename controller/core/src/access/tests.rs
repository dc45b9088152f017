use expect_test::expect;
use proptest::prelude::*;
use uuid::Uuid;

use super::*;

const O1: OrganisationId = OrganisationId(Uuid::from_u128(1));
const O2: OrganisationId = OrganisationId(Uuid::from_u128(2));
const P1: ProjectId = ProjectId(Uuid::from_u128(11));
const P2: ProjectId = ProjectId(Uuid::from_u128(12));
const S1: SiteId = SiteId(Uuid::from_u128(21));
const S2: SiteId = SiteId(Uuid::from_u128(22));
const R1: RackId = RackId(Uuid::from_u128(31));
const R2: RackId = RackId(Uuid::from_u128(32));

/// Every scope of a small world, with the place of the scope itself.
const SCOPES: [(Scope, Place); 9] = [
    (Scope::Everything, Place::EVERYTHING),
    (Scope::Organisation(O1), Place { organisation: Some(O1), ..Place::EVERYTHING }),
    (Scope::Organisation(O2), Place { organisation: Some(O2), ..Place::EVERYTHING }),
    (Scope::Project(P1), Place { organisation: Some(O1), project: Some(P1), ..Place::EVERYTHING }),
    (Scope::Project(P2), Place { organisation: Some(O2), project: Some(P2), ..Place::EVERYTHING }),
    (Scope::Site(S1), Place { site: Some(S1), ..Place::EVERYTHING }),
    (Scope::Site(S2), Place { site: Some(S2), ..Place::EVERYTHING }),
    (Scope::Rack(R1), Place { site: Some(S1), rack: Some(R1), ..Place::EVERYTHING }),
    (Scope::Rack(R2), Place { site: Some(S2), rack: Some(R2), ..Place::EVERYTHING }),
];

/// Every place there is in it, also those of machines that are given away.
fn places() -> Vec<Place> {
    let own: Vec<_> = SCOPES.iter().map(|(_, place)| *place).collect();
    let mut all = own.clone();
    for rack in &own[7..] {
        all.extend(own[3..5].iter().map(|project| rack.given_to(*project)));
    }
    all
}

/// All that is permitted, as pairs.
fn all_of(rights: &Rights) -> BTreeSet<(Action, usize)> {
    let places = places();
    let pairs = Action::ALL.iter().flat_map(|action| (0..places.len()).map(|place| (*action, place)));
    pairs.filter(|(action, place)| rights.permit(*action, places[*place])).collect()
}

fn table() -> String {
    let mut table = format!("{:20}", "");
    for role in Role::ALL {
        table += &format!("{:13}", role.name());
    }
    for action in Action::ALL {
        table = format!("{}\n{:20}", table.trim_end(), action.name());
        for role in Role::ALL {
            table += &format!("{:13}", if role.may(*action) { "yes" } else { "-" });
        }
    }
    table.trim_end().to_owned() + "\n"
}

#[test]
fn a_grant_is_for_a_project_a_role_there_a_token_or_everyone_and_for_what_it_says() {
    let (mine, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
    let bindings = [Binding { role: Role::Collaborator, scope: Scope::Project(P1) }];
    let place = |project| SCOPES.iter().find(|(scope, _)| *scope == Scope::Project(project)).unwrap().1;
    let mut told = String::new();
    for to in [
        Grantee::Everyone,
        Grantee::Project(P1),
        Grantee::Project(P2),
        Grantee::Role(Role::Collaborator),
        Grantee::Role(Role::Operator),
        Grantee::Token(mine),
        Grantee::Token(other),
    ] {
        let grant = Grant { to, may: [Use::Assign].into() };
        let lets = |of, project| grant.lets(of, Wanting { bindings: &bindings, token: mine, place: place(project) });
        assert!(!lets(Use::Reverse, P1) && !lets(Use::Reverse, P2));
        told += &format!("{to:?}: {}, elsewhere {}\n", lets(Use::Assign, P1), lets(Use::Assign, P2));
    }
    expect![[r#"
        Everyone: true, elsewhere true
        Project(ProjectId(00000000-0000-0000-0000-00000000000b)): true, elsewhere false
        Project(ProjectId(00000000-0000-0000-0000-00000000000c)): false, elsewhere true
        Role(Collaborator): true, elsewhere false
        Role(Operator): false, elsewhere false
        Token(00000000-0000-0000-0000-000000000001): true, elsewhere true
        Token(00000000-0000-0000-0000-000000000002): false, elsewhere false
    "#]]
    .assert_eq(&told);
    let stored = serde_json::to_string(&[Grant::to_everyone()]).unwrap();
    assert_eq!(stored, r#"[{"to":"everyone","may":["assign","reverse"]}]"#, "as the migration has it");
}

#[test]
fn the_table_of_roles_is_this_and_stands_in_the_documentation() {
    let table = table();
    let document = include_str!("../../../../docs/operator/people.md");
    assert!(document.contains(&table), "docs/operator/people.md has another table than:\n{table}");
    expect![[r#"
                            owner        admin        operator     technician   collaborator billing      viewer
        organisation.read   yes          yes          yes          -            yes          yes          yes
        organisation.manage yes          -            -            -            -            -            -
        project.read        yes          yes          yes          -            yes          yes          yes
        project.manage      yes          yes          -            -            -            -            -
        project.use         yes          yes          yes          -            yes          -            -
        site.read           yes          yes          yes          yes          -            -            yes
        site.manage         yes          yes          -            -            -            -            -
        rack.read           yes          yes          yes          yes          -            -            yes
        rack.manage         yes          yes          yes          -            -            -            -
        agent.read          yes          yes          yes          yes          -            -            yes
        agent.enrol         yes          yes          yes          yes          -            -            -
        agent.revoke        yes          yes          yes          -            -            -            -
        machine.read        yes          yes          yes          yes          yes          yes          yes
        machine.adopt       yes          yes          yes          yes          -            -            -
        machine.forget      yes          yes          yes          -            -            -            -
        machine.assign      yes          yes          yes          -            -            -            -
        machine.deploy      yes          yes          yes          -            yes          -            -
        machine.release     yes          yes          yes          -            yes          -            -
        machine.power       yes          yes          yes          yes          yes          -            -
        machine.maintain    yes          yes          yes          yes          -            -            -
        run.read            yes          yes          yes          yes          yes          -            yes
        run.cancel          yes          yes          yes          -            yes          -            -
        image.read          yes          yes          yes          yes          yes          -            yes
        image.manage        yes          yes          yes          -            -            -            -
        address.read        yes          yes          yes          yes          yes          yes          yes
        address.claim       yes          yes          yes          -            yes          -            -
        address.announce    yes          yes          yes          -            yes          -            -
        address.name        yes          yes          yes          -            yes          -            -
        address.space       yes          yes          -            -            -            -            -
        event.read          yes          yes          yes          yes          yes          -            yes
        audit.read          yes          yes          -            -            -            -            -
        person.read         yes          yes          -            -            -            -            -
        person.manage       yes          yes          -            -            -            -            -
        role.read           yes          yes          -            -            -            -            -
        role.grant          yes          yes          -            -            -            -            -
        token.own           yes          yes          yes          yes          yes          yes          yes
        token.read          yes          yes          -            -            -            -            -
        token.manage        yes          yes          -            -            -            -            -
    "#]]
    .assert_eq(&table);
}

#[test]
fn names_are_read_back() {
    for action in Action::ALL {
        assert_eq!(action.name().parse(), Ok(*action));
    }
    for role in Role::ALL {
        assert_eq!(role.name().parse(), Ok(role));
    }
    expect!["`root` is no role; there are owner, admin, operator, technician, collaborator, billing, viewer"]
        .assert_eq(&"root".parse::<Role>().unwrap_err().to_string());
}

#[test]
fn each_role_may_less_than_an_owner_and_whoever_changes_may_see() {
    for role in Role::ALL {
        for action in Action::ALL.iter().filter(|action| role.may(**action)) {
            assert!(Role::Owner.may(*action));
            let Some(read) = action.reads() else { continue };
            assert!(role.may(read), "a {role} may {action} and not {read}");
        }
    }
}

#[test]
fn a_scope_contains_what_is_below_it_and_nothing_beside_it() {
    let machine = SCOPES[7].1.given_to(SCOPES[4].1);
    let containing: Vec<_> =
        SCOPES.iter().filter(|(scope, _)| scope.contains(machine)).map(|(scope, _)| scope.kind()).collect();
    expect!["everything organisation project site rack"].assert_eq(&containing.join(" "));
    let place = |at: usize| SCOPES[at].1;
    assert!(Scope::Organisation(O2).contains(place(4)) && !Scope::Organisation(O1).contains(place(4)));
    assert!(!Scope::Project(P1).contains(place(1)), "a project does not contain its organisation");
    assert!(!Scope::Rack(R1).contains(place(5)) && !Scope::Site(S1).contains(Place::EVERYTHING));
}

#[test]
fn nothing_is_permitted_without_a_binding() {
    assert!(all_of(&Rights::default()).is_empty());
    assert!(Rights::default().sight(Action::MachineRead).is_none());
}

fn binding() -> impl Strategy<Value = Binding> {
    (0..Role::ALL.len(), 0..SCOPES.len())
        .prop_map(|(role, scope)| Binding { role: Role::ALL[role], scope: SCOPES[scope].0 })
}

fn rights() -> impl Strategy<Value = Rights> {
    let actions = proptest::option::of(proptest::collection::btree_set(0..Action::ALL.len(), 0..30));
    let scopes = proptest::option::of(proptest::collection::btree_set(0..SCOPES.len(), 0..3));
    (proptest::collection::vec(binding(), 0..4), actions, scopes).prop_map(|(bindings, actions, scopes)| Rights {
        bindings,
        actions: actions.map(|all| all.into_iter().map(|at| Action::ALL[at]).collect()),
        scopes: scopes.map(|all| all.into_iter().map(|at| SCOPES[at].0).collect()),
    })
}

proptest! {
    #[test]
    fn a_token_may_no_more_than_its_owner(token in rights()) {
        let owner = Rights { bindings: token.bindings.clone(), actions: None, scopes: None };
        prop_assert!(all_of(&token).is_subset(&all_of(&owner)));
    }

    #[test]
    fn a_list_shows_exactly_what_could_be_looked_at_one_by_one(token in rights()) {
        for action in [Action::MachineRead, Action::EventRead, Action::ProjectRead] {
            let sight = token.sight(action);
            for place in places() {
                let shown = sight.as_ref().is_some_and(|sight| sight.shows(place));
                prop_assert_eq!(shown, token.permit(action, place), "{} at {:?}", action, place);
            }
        }
    }

    #[test]
    fn what_covers_a_scope_covers_all_below_it(token in rights(), wanted in binding()) {
        let (_, at) = SCOPES.into_iter().find(|(scope, _)| *scope == wanted.scope).unwrap();
        if token.covers(wanted.role, at) {
            let granted = Rights { bindings: vec![wanted], ..Rights::default() };
            prop_assert!(all_of(&granted).is_subset(&all_of(&token)));
        }
    }

    /// Whoever begins with something, and whoever is granted something in turn: all of them
    /// together never may what none of the first could.
    #[test]
    fn no_sequence_of_grants_raises_anyone(
        first in proptest::collection::vec(rights(), 1..3),
        grants in proptest::collection::vec((0..4usize, 0..4usize, binding()), 0..60),
    ) {
        let mut people = first.clone();
        people.resize(4, Rights::default());
        let could: BTreeSet<_> = first.iter().flat_map(all_of).collect();
        for (from, to, wanted) in grants {
            let (_, at) = SCOPES.into_iter().find(|(scope, _)| *scope == wanted.scope).unwrap();
            if people[from].permit(Action::RoleGrant, at) && people[from].covers(wanted.role, at) {
                people[to].bindings.push(wanted);
            }
        }
        for person in &people {
            prop_assert!(all_of(person).is_subset(&could));
        }
    }
}
