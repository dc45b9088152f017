//! Runs that are tried again, and whose machines are afterwards.

use rackhand_controller_core::ipam::Family;

use super::*;
use crate::{
    addresses::{NewClaim, NewHolder, Wanted},
    store::{AnnouncementFilter, Source, tests::new_pool},
    verbs::Retried,
};

/// Gives the machine to a new project.
async fn give(world: &World) -> rackhand_common::id::ProjectId {
    let mut tx = world.store.begin().await.unwrap();
    let acme = tx.insert_organisation(at(0).wall, "acme").await.unwrap();
    let shop = tx.insert_project(at(0).wall, &acme, "shop").await.unwrap();
    let machine = tx.machine("m-3456").await.unwrap();
    tx.assign(at(0).wall, &machine, Some((shop.id, shop.full_name()))).await.unwrap();
    tx.commit().await.unwrap();
    shop.id
}

async fn retry(world: &World, run: &Run, user_data: Option<&str>) -> Result<Retried, Denied> {
    let mut tx = world.store.begin().await.unwrap();
    let stands = tx.standing(crate::store::Thing::Run, &run.id.to_string()).await.unwrap();
    let run = tx.run(run.id).await.unwrap();
    let machine = tx.machine("m-3456").await.unwrap();
    let retried = tx.retry(at(0).wall, &run, stands.place.project, &machine, user_data.map(Into::into)).await?;
    tx.commit().await.unwrap();
    Ok(retried)
}

async fn a_deploy_that_failed_is_done_when_it_is_tried_again(on: On) {
    let mut world = World::new(on, Behaviour { failing: Some((9, event::Cause::Image)), ..Behaviour::default() }).await;
    give(&world).await;
    let run = world.deploy().await;
    assert!(matches!(retry(&world, &run, None).await, Err(Denied::Busy(id)) if id == run.id));
    let failed = world.finish(&run).await;
    assert_eq!((failed.status, world.machine().await.lifecycle), (RunStatus::Failed, Lifecycle::Ready));
    // What its system was to be told is not kept, and is not left out in silence.
    assert!(matches!(retry(&world, &run, None).await, Err(Denied::UserDataForgotten)));
    world.node.state.lock().unwrap().behaviour.failing = None;
    let again = retry(&world, &run, Some("#cloud-config")).await.unwrap().run;
    let (Parameters::Deploy(first), Parameters::Deploy(second)) = (&failed.parameters, &again.parameters) else {
        panic!("both are deploys")
    };
    assert_eq!((&second.image, &second.manifest, &second.disk), (&first.image, &first.manifest, &first.disk));
    assert_eq!((&second.host.name, &second.host.ssh_keys), (&first.host.name, &first.host.ssh_keys));
    assert_eq!(second.host.user_data.as_deref(), Some("#cloud-config"));
    let again = world.finish(&again).await;
    assert_eq!((again.status, world.machine().await.lifecycle), (RunStatus::Done, Lifecycle::Active));
    // Neither can be tried again: one was done, and what the other began for is over.
    assert!(matches!(retry(&world, &again, None).await, Err(Denied::RunDone)));
    assert!(matches!(retry(&world, &run, Some("x")).await, Err(Denied::Outlived(_))));
}

async fn a_release_that_failed_erases_nothing_when_the_machine_was_given_out_since(on: On) {
    let mut world = World::new(on, Behaviour::default()).await;
    let project = give(&world).await;
    let run = world.deploy().await;
    world.finish(&run).await;
    world.node.state.lock().unwrap().behaviour.failing = Some((9, event::Cause::Verify));
    let failed = world.release().await;
    assert_eq!(world.finish(&failed).await.status, RunStatus::Failed);
    // Not all of it is known to be erased: it stays whose it is.
    assert_eq!(world.machine().await.project, Some(project));
    assert!(matches!(retry(&world, &failed, Some("x")).await, Err(Denied::NoUserData)));
    world.node.state.lock().unwrap().behaviour.failing = None;
    let again = retry(&world, &failed, None).await.unwrap().run;
    assert_eq!(world.finish(&again).await.status, RunStatus::Done);
    assert_eq!((world.machine().await.lifecycle, world.machine().await.project), (Lifecycle::Ready, None));

    let next = world.deploy().await;
    assert_eq!(world.finish(&next).await.status, RunStatus::Done);
    assert!(matches!(retry(&world, &failed, None).await, Err(Denied::Outlived(_))));
    assert_eq!(world.machine().await.lifecycle, Lifecycle::Active);
}

async fn a_run_of_another_project_is_not_tried_again(on: On) {
    let mut world = World::new(on, Behaviour { failing: Some((9, event::Cause::Image)), ..Behaviour::default() }).await;
    let run = world.deploy().await;
    world.finish(&run).await;
    give(&world).await;
    assert!(matches!(retry(&world, &run, Some("x")).await, Err(Denied::Outlived(_))));
}

async fn a_project_that_gives_a_machine_back_keeps_the_addresses_it_held(on: On) {
    let mut world = World::new(on, Behaviour::default()).await;
    let project = give(&world).await;
    let run = world.deploy().await;
    world.finish(&run).await;
    let mut tx = world.store.begin().await.unwrap();
    let (now, vrf) = (at(0).wall, tx.vrf("default").await.unwrap());
    let space = "10.9.0.0/24".parse().unwrap();
    tx.add_aggregate(now, &vrf, space, &Source::Private).await.unwrap();
    let pool = tx.insert_pool(now, &new_pool("p", &vrf, Family::V4)).await.unwrap();
    tx.extend_pool(now, &pool, space).await.unwrap();
    let wish = NewClaim {
        pool: "p".into(),
        wanted: Wanted::Any,
        holder: NewHolder::Machine("m-3456".into(), None),
        reserved: false,
        project: Some(project),
        purpose: String::new(),
    };
    let held = tx.hand_out(now, &wish, "me").await.unwrap();
    let machine = tx.machine("m-3456").await.unwrap();
    tx.announce(now, &held, &pool, &machine, "me").await.unwrap();
    tx.commit().await.unwrap();
    let run = world.release().await;
    assert_eq!(world.finish(&run).await.status, RunStatus::Done);
    assert_eq!(world.machine().await.project, None);
    let kept = world.store.claim(held.id).await.unwrap();
    assert_eq!((kept.holder.machine, kept.holder.name.as_str()), (None, "m-3456"));
    assert_eq!((kept.project, kept.until), (Some(project), None));
    assert_eq!(world.store.announcements(&AnnouncementFilter::default(), None, 10).await.unwrap(), []);
}

on_both! {
    a_project_that_gives_a_machine_back_keeps_the_addresses_it_held,
    a_deploy_that_failed_is_done_when_it_is_tried_again,
    a_release_that_failed_erases_nothing_when_the_machine_was_given_out_since,
    a_run_of_another_project_is_not_tried_again,
}
