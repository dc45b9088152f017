//! Who may have consoles and recordings.

use rackhand_controller_core::{
    access::{Binding, Role},
    lifecycle::Lifecycle,
};

use super::*;
use crate::{api::walk::World, store};

async fn get(world: &World, role: Role, scope: &str, uri: &str) -> (StatusCode, String) {
    let (name, scope) = world.scopes.iter().find(|(name, _)| *name == scope).unwrap();
    let unique = format!("{role}-{}-{}", name.replace(' ', "-"), uuid::Uuid::now_v7().simple());
    let token = world.token(&unique, Binding { role, scope: *scope }).await;
    world.bench.text(request(&token, Method::GET, uri, "")).await
}

async fn a_recording_is_shown_to_who_may_see_its_run(on: On) {
    let world = World::new(on).await;
    let (machine, run) = (&world.names["machine"], &world.names["run"]);
    let log = format!("/v1/machines/{machine}/console/log");
    let recorded = format!("recorded in {run}");
    for uri in [log.clone(), format!("{log}?run={run}")] {
        for (role, scope) in [(Role::Collaborator, "its project"), (Role::Technician, "its rack")] {
            assert_eq!(get(&world, role, scope, &uri).await, (StatusCode::OK, recorded.clone()), "{role} of {scope}");
        }
        assert_eq!(get(&world, Role::Collaborator, "another project", &uri).await.0, StatusCode::NOT_FOUND);
        assert_eq!(get(&world, Role::Viewer, "its project", &uri).await.0, StatusCode::FORBIDDEN);
    }
    let other = format!("{log}?run={}", uuid::Uuid::now_v7());
    assert_eq!(get(&world, Role::Admin, "everything", &other).await.0, StatusCode::NOT_FOUND);
}

async fn the_console_of_a_machine_in_use_is_its_projects(on: On) {
    let world = World::new(on).await;
    let console = format!("/v1/machines/{}/console", world.names["machine"]);
    // Who may is told what a console is.
    let in_use = async |role, scope| match get(&world, role, scope, &console).await {
        (StatusCode::BAD_REQUEST, text) if text.contains("websocket") => "may",
        (StatusCode::FORBIDDEN, text) if text.contains("its project's") => "is its project's",
        (StatusCode::FORBIDDEN, _) => "may not",
        (StatusCode::NOT_FOUND, _) => "is not there",
        (status, text) => panic!("{status}: {text}"),
    };
    assert_eq!(in_use(Role::Technician, "its rack").await, "may");
    let mut tx = world.bench.app.store.begin().await.unwrap();
    let mut machine = tx.machine(&world.names["machine"]).await.unwrap();
    let run = tx.run_in_progress(machine.id).await.unwrap().unwrap();
    let ended = store::Run { status: store::RunStatus::Done, ..tx.run(run).await.unwrap() };
    tx.save_run(Timestamp::UNIX_EPOCH, &ended).await.unwrap();
    machine.lifecycle = Lifecycle::Active;
    tx.update_machine(Timestamp::UNIX_EPOCH, &mut machine).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(in_use(Role::Technician, "its rack").await, "is its project's");
    assert_eq!(in_use(Role::Operator, "its site").await, "is its project's");
    assert_eq!(in_use(Role::Collaborator, "its project").await, "may");
    assert_eq!(in_use(Role::Collaborator, "its organisation").await, "may");
    assert_eq!(in_use(Role::Admin, "everything").await, "may");
    assert_eq!(in_use(Role::Viewer, "its project").await, "may not");
    assert_eq!(in_use(Role::Owner, "another organisation").await, "is not there");
}

on_both! {
    a_recording_is_shown_to_who_may_see_its_run,
    the_console_of_a_machine_in_use_is_its_projects,
}
