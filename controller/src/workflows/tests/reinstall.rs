//! A system put on a machine that keeps its owner, and a machine that is looked into.

use super::*;

async fn reinstall(world: &World) -> Run {
    let mut tx = world.store.begin().await.unwrap();
    let machine = tx.machine("m-3456").await.unwrap();
    let image = tx.image("debian-12").await.unwrap();
    let host = Host { name: "web".to_owned(), ssh_keys: Vec::new(), user_data: Some("again".to_owned()) };
    let request = DeployRequest { disk: DiskRule::Smallest, host };
    let run = tx.start_reinstall(at(0).wall, &machine, &image, request).await.unwrap();
    tx.commit().await.unwrap();
    run
}

/// A machine with a system on it, in a rack that behaves so from then on.
pub(super) async fn active(on: On, behaviour: Behaviour) -> World {
    let mut world = World::new(on, Behaviour::default()).await;
    let run = world.deploy().await;
    assert_eq!(world.finish(&run).await.status, RunStatus::Done);
    world.node.state.lock().unwrap().behaviour = behaviour;
    (world.turns, world.cancel_at) = (0, None);
    world
}

async fn a_machine_is_reinstalled_and_stays_active_however_the_controller_lives(on: On) {
    for process in Process::ALL {
        let mut world = active(on, Behaviour::default()).await;
        world.process = process;
        let run = reinstall(&world).await;
        assert!(matches!(world.machine().await.lifecycle, Lifecycle::Active));
        let run = world.finish(&run).await;
        let machine = world.machine().await;
        assert_eq!((run.status, machine.lifecycle, machine.boot), (RunStatus::Done, Lifecycle::Active, Boot::Disk));
        assert_eq!(machine.image.unwrap().to_string(), "debian-12@1");
        assert_eq!(world.node.state.lock().unwrap().writes, [(Epoch(2), "image"), (Epoch(3), "image")]);
        let mut tx = world.store.begin().await.unwrap();
        assert_eq!(tx.last_install(world.node.machine).await.unwrap().map(|run| run.id), Some(run.id));
    }
}

async fn a_reinstall_that_wrote_nothing_leaves_the_system_that_was_there(on: On) {
    let refusing = Behaviour { failing: Some((9, event::Cause::NoSuitableDisk)), ..Behaviour::default() };
    let mut world = active(on, refusing).await;
    let run = reinstall(&world).await;
    let run = world.finish(&run).await;
    let detail = "as the test wants; the system that was there is untouched";
    assert_eq!((run.status, run.detail.as_deref()), (RunStatus::Failed, Some(detail)));
    let machine = world.machine().await;
    assert_eq!((machine.lifecycle, machine.boot, machine.alert), (Lifecycle::Active, Boot::Disk, None));
    assert!(machine.image.is_some());
}

async fn a_reinstall_that_may_have_written_says_so_and_can_be_tried_again(on: On) {
    let mut world = active(on, Behaviour { failing: Some((9, event::Cause::Image)), ..Behaviour::default() }).await;
    let run = reinstall(&world).await;
    let run = world.finish(&run).await;
    assert_eq!(run.detail.as_deref(), Some("as the test wants; the disk may hold an unfinished system"));
    let machine = world.machine().await;
    assert_eq!((machine.lifecycle, machine.boot, machine.image), (Lifecycle::Active, Boot::Installer, None));
    assert_eq!(machine.alert.as_deref(), Some("reinstall image: as the test wants"));
    world.node.state.lock().unwrap().behaviour = Behaviour::default();
    let run = reinstall(&world).await;
    assert_eq!(world.finish(&run).await.status, RunStatus::Done);
    assert_eq!((world.machine().await.boot, world.machine().await.alert), (Boot::Disk, None));
}

async fn a_reinstall_cancelled_at_any_moment_leaves_the_old_system_or_says_that_it_is_gone(on: On) {
    for cancel_at in 0..8 {
        for delay in [0, 3] {
            let mut world = active(on, Behaviour { late: true, delay, ..Behaviour::default() }).await;
            (world.process, world.cancel_at) = (Process::Killed(u64::from(cancel_at)), Some(cancel_at));
            let run = reinstall(&world).await;
            let run = world.finish(&run).await;
            let machine = world.machine().await;
            assert_eq!((run.status, machine.lifecycle), (RunStatus::Cancelled, Lifecycle::Active), "at {cancel_at}");
            let wrote = world.node.state.lock().unwrap().writes.len() == 2;
            assert_eq!(machine.boot == Boot::Installer, wrote, "at {cancel_at}, {delay}: {:?}", machine.alert);
            assert_eq!(machine.alert.is_some(), wrote, "at {cancel_at}, {delay}: {:?}", machine.alert);
        }
    }
}

async fn a_ready_machine_is_looked_into_and_stays_ready(on: On) {
    let mut world = World::new(on, Behaviour::default()).await;
    let mut tx = world.store.begin().await.unwrap();
    let machine = tx.machine("m-3456").await.unwrap();
    let run = tx.start_inspect(at(0).wall, &machine).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(world.finish(&run).await.status, RunStatus::Done);
    let after = world.machine().await;
    assert_eq!((after.lifecycle, after.epoch, after.connected), (Lifecycle::Ready, machine.epoch, true));
    assert!(after.connection > machine.connection);
}

async fn a_machine_that_broke_says_why_until_it_is_released(on: On) {
    let mut world = active(on, Behaviour { failing: Some((9, event::Cause::Verify)), ..Behaviour::default() }).await;
    let run = world.release().await;
    world.finish(&run).await;
    let held = world.machine().await.held.unwrap();
    assert_eq!((held.reason.as_str(), held.until), ("release verify: as the test wants", None));
    world.node.state.lock().unwrap().behaviour = Behaviour::default();
    let run = world.release().await;
    assert_eq!(world.finish(&run).await.status, RunStatus::Done);
    assert_eq!((world.machine().await.lifecycle, world.machine().await.held), (Lifecycle::Ready, None));
}

on_both! {
    a_machine_is_reinstalled_and_stays_active_however_the_controller_lives,
    a_reinstall_that_wrote_nothing_leaves_the_system_that_was_there,
    a_reinstall_that_may_have_written_says_so_and_can_be_tried_again,
    a_reinstall_cancelled_at_any_moment_leaves_the_old_system_or_says_that_it_is_gone,
    a_ready_machine_is_looked_into_and_stays_ready,
    a_machine_that_broke_says_why_until_it_is_released,
}
