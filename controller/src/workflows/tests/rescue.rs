//! A machine that its owner logs in to beside its own system, and back.

use super::{reinstall::active, *};

use rackhand_common::event::Login;

use crate::verbs::RescueRequest;

/// What a rescue system tells whose host key's fingerprint consists of this.
pub(super) fn login(run: RunId, attempt: u32, key: char) -> What {
    let host_key = format!("SHA256:{}", key.to_string().repeat(43));
    What::Rescue { run, attempt, login: Login { address: "10.77.0.100".parse().unwrap(), port: 22, host_key } }
}

async fn rescue(world: &World) -> Run {
    let mut tx = world.store.begin().await.unwrap();
    let machine = tx.machine("m-3456").await.unwrap();
    let request = RescueRequest { ssh_keys: vec!["ssh-ed25519 AAAA me".to_owned()], until: at(7200).wall };
    let run = tx.start_rescue(at(0).wall, &machine, request).await.unwrap();
    tx.commit().await.unwrap();
    run
}

async fn leave(world: &World) -> Run {
    let mut tx = world.store.begin().await.unwrap();
    let machine = tx.machine("m-3456").await.unwrap();
    let run = tx.start_leave_rescue(at(0).wall, &machine).await.unwrap();
    tx.commit().await.unwrap();
    run
}

async fn a_machine_is_rescued_and_left_and_nothing_is_written_however_the_controller_lives(on: On) {
    for process in Process::ALL {
        let mut world = active(on, Behaviour::default()).await;
        let before = world.machine().await;
        world.process = process;
        let run = rescue(&world).await;
        assert_eq!(world.finish(&run).await.status, RunStatus::Done);
        let machine = world.machine().await;
        assert_eq!((machine.lifecycle, machine.boot), (Lifecycle::Rescue, Boot::Installer));
        assert_eq!((machine.epoch, machine.project, &machine.image), (before.epoch, before.project, &before.image));
        assert_eq!(machine.held.as_ref().unwrap().until, Some(at(7200).wall));
        let host_key = machine.rescue.unwrap().host_key;
        assert!(Login::is_fingerprint(&host_key), "{host_key}");

        // Restarted, it lets the same people in, and is known by another key.
        let order = machine.order.unwrap();
        assert_eq!(order.work.rescue().unwrap().ssh_keys, ["ssh-ed25519 AAAA me"]);
        world.node.state.lock().unwrap().events.push(login(order.run, order.attempt, 'B'));
        world.turn().await;
        assert_eq!(world.machine().await.rescue.unwrap().host_key, format!("SHA256:{}", "B".repeat(43)));

        let run = leave(&world).await;
        assert_eq!(world.finish(&run).await.status, RunStatus::Done);
        let machine = world.machine().await;
        assert_eq!((machine.lifecycle, machine.boot, machine.connected), (Lifecycle::Active, Boot::Disk, false));
        assert_eq!((machine.rescue, machine.held, machine.alert, machine.image), (None, None, None, before.image));
        assert_eq!(world.node.state.lock().unwrap().writes, [(Epoch(2), "image")]);
    }
}

async fn a_rescue_that_lets_nobody_in_has_the_machines_own_system_run_again(on: On) {
    let failing = Behaviour { failing: Some((9, event::Cause::Internal)), ..Behaviour::default() };
    let mut world = active(on, failing).await;
    let run = rescue(&world).await;
    let run = world.finish(&run).await;
    let detail = "as the test wants; nothing was written to its disks";
    assert_eq!((run.status, run.detail.as_deref()), (RunStatus::Failed, Some(detail)));
    let machine = world.machine().await;
    assert_eq!((machine.lifecycle, machine.boot, machine.alert), (Lifecycle::Active, Boot::Disk, None));
    assert_eq!((machine.rescue, machine.held), (None, None));
    assert!(!world.node.state.lock().unwrap().installer, "it was switched off and on");
}

async fn a_rescue_cancelled_at_any_moment_has_the_machines_own_system_run_again(on: On) {
    let mut ends = std::collections::BTreeSet::new();
    for cancel_at in 0..12 {
        for delay in [0, 3] {
            let mut world = active(on, Behaviour { delay, ..Behaviour::default() }).await;
            (world.process, world.cancel_at) = (Process::Killed(u64::from(cancel_at)), Some(cancel_at));
            let run = rescue(&world).await;
            let run = world.finish(&run).await;
            let machine = world.machine().await;
            let wanted = match run.status {
                RunStatus::Cancelled => (Lifecycle::Active, Boot::Disk, false),
                _ => (Lifecycle::Rescue, Boot::Installer, true),
            };
            assert_eq!((machine.lifecycle, machine.boot, machine.rescue.is_some()), wanted, "at {cancel_at}, {delay}");
            assert_eq!(world.node.state.lock().unwrap().writes.len(), 1);
            ends.insert(run.status.word());
        }
    }
    assert_eq!(ends.into_iter().collect::<Vec<_>>(), ["cancelled", "done"]);
}

async fn a_machine_that_is_lost_in_rescue_is_switched_off_and_on_to_leave_it(on: On) {
    let mut world = active(on, Behaviour::default()).await;
    let run = rescue(&world).await;
    world.finish(&run).await;
    {
        let mut state = world.node.state.lock().unwrap();
        state.installer = false;
        state.events.push(What::Lost);
    }
    world.turn().await;
    let run = leave(&world).await;
    let ended = world.finish(&run).await;
    assert_eq!((ended.status, world.machine().await.lifecycle), (RunStatus::Done, Lifecycle::Active));
    let mut tx = world.store.begin().await.unwrap();
    let command = tx.command(run.id, "end rescue 1: cycle").await.unwrap().unwrap();
    assert_eq!((command.action, command.outcome), (Action::PowerCycle, Some(Outcome::Done)));
}

async fn a_rescue_that_nobody_can_log_in_to_any_more_or_that_is_over_has_an_alert(on: On) {
    let mut world = active(on, Behaviour::default()).await;
    let run = rescue(&world).await;
    world.finish(&run).await;
    assert_eq!(crate::overdue::tell(&world.store, at(7199).wall).await.unwrap(), 0);
    assert_eq!(crate::overdue::tell(&world.store, at(7200).wall).await.unwrap(), 1);
    assert!(world.machine().await.alert.unwrap().contains("machine leave-rescue m-3456"));
    let failed =
        What::Failed { run: run.id, attempt: 1, cause: event::Cause::Internal, detail: "no memory".to_owned() };
    world.node.state.lock().unwrap().events.push(failed);
    world.turn().await;
    let machine = world.machine().await;
    assert_eq!((machine.lifecycle, machine.rescue), (Lifecycle::Rescue, None));
    let alert = "its rescue system started again, and nobody can log in: no memory";
    assert_eq!(machine.alert.as_deref(), Some(alert));
    // Begun anew, it is as good as the first.
    let run = rescue(&world).await;
    assert_eq!(world.finish(&run).await.status, RunStatus::Done);
    let machine = world.machine().await;
    assert_eq!((machine.rescue.is_some(), machine.alert), (true, None));
    let run = world.release().await;
    assert_eq!(world.finish(&run).await.status, RunStatus::Done);
    let machine = world.machine().await;
    assert_eq!((machine.lifecycle, machine.rescue, machine.held), (Lifecycle::Ready, None, None));
}

on_both! {
    a_machine_is_rescued_and_left_and_nothing_is_written_however_the_controller_lives,
    a_rescue_that_lets_nobody_in_has_the_machines_own_system_run_again,
    a_rescue_cancelled_at_any_moment_has_the_machines_own_system_run_again,
    a_machine_that_is_lost_in_rescue_is_switched_off_and_on_to_leave_it,
    a_rescue_that_nobody_can_log_in_to_any_more_or_that_is_over_has_an_alert,
}
