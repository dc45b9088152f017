//! A machine that is tested.

use super::*;

use crate::store::TestResult;

async fn test(world: &World, scripts: &[&str]) -> Run {
    let mut tx = world.store.begin().await.unwrap();
    let machine = tx.machine("m-3456").await.unwrap();
    let scripts = scripts.iter().map(|name| (*name).to_owned()).collect();
    let run = tx.start_test(at(0).wall, &machine, scripts, false, false).await.unwrap();
    tx.commit().await.unwrap();
    run
}

async fn results(world: &World) -> Vec<String> {
    let results = world.store.test_results(world.node.machine, None, true, None, 100).await.unwrap();
    let mut told: Vec<_> = results.iter().map(|TestResult { tested, .. }| tested.to_string()).collect();
    told.sort();
    told
}

async fn a_machine_is_tested_and_stays_what_it_was_however_controller_and_machine_live(on: On) {
    for process in Process::ALL {
        for behaviour in [
            Behaviour::default(),
            Behaviour { resets: true, ..Behaviour::default() },
            Behaviour { vanishes: true, ..Behaviour::default() },
        ] {
            let mut world = World::new(on, behaviour).await;
            world.process = process;
            let before = world.machine().await;
            let run = test(&world, &["memory", "smart"]).await;
            let run = world.finish(&run).await;
            assert_eq!(run.status, RunStatus::Done, "{behaviour:?}: {:?}", run.detail);
            let after = world.machine().await;
            assert_eq!((after.lifecycle, after.epoch, after.alert), (before.lifecycle, before.epoch, None));
            assert_eq!(results(&world).await, ["test memory passed", "test smart passed"]);
        }
    }
}

async fn a_machine_that_failed_says_so_until_that_test_passes(on: On) {
    let mut world = World::new(on, Behaviour { flaw: true, ..Behaviour::default() }).await;
    let run = test(&world, &["memory"]).await;
    assert_eq!(world.finish(&run).await.status, RunStatus::Done);
    let alert = "tests not passed: memory (as the test wants; look at a memory module)";
    assert_eq!(world.machine().await.alert.as_deref(), Some(alert));
    world.node.state.lock().unwrap().behaviour = Behaviour::default();
    for (script, expected) in [("smart", Some(alert)), ("memory", None)] {
        let run = test(&world, &[script]).await;
        assert_eq!(world.finish(&run).await.status, RunStatus::Done);
        assert_eq!(world.machine().await.alert.as_deref(), expected, "after {script}");
    }
}

async fn tests_that_are_refused_or_cancelled_leave_the_machine_as_it_was(on: On) {
    let failing = Some((9, event::Cause::Internal));
    for (behaviour, cancel_at, status) in [
        (Behaviour { failing, ..Behaviour::default() }, None, RunStatus::Failed),
        (Behaviour { hangs: true, ..Behaviour::default() }, Some(2), RunStatus::Cancelled),
    ] {
        let mut world = World::new(on, behaviour).await;
        world.cancel_at = cancel_at;
        let run = test(&world, &["memory"]).await;
        assert_eq!(world.finish(&run).await.status, status);
        let machine = world.machine().await;
        assert_eq!((machine.lifecycle, machine.order, machine.alert), (Lifecycle::Ready, None, None));
        assert!(results(&world).await.is_empty());
    }
}

async fn what_destroys_is_not_run_without_a_word(on: On) {
    let world = World::new(on, Behaviour::default()).await;
    let mut tx = world.store.begin().await.unwrap();
    let machine = tx.machine("m-3456").await.unwrap();
    let scripts = vec!["smart".to_owned(), "disk-write".to_owned()];
    let denied = tx.start_test(at(0).wall, &machine, scripts.clone(), false, false).await.unwrap_err();
    assert!(matches!(denied, Denied::Destructive(named) if named == ["disk-write"]));
    tx.start_test(at(0).wall, &machine, scripts, true, false).await.unwrap();
}

async fn of_each_test_the_newest_are_kept_and_none_of_another_run(on: On) {
    let mut world = World::new(on, Behaviour::default()).await;
    let run = test(&world, &["memory"]).await;
    world.finish(&run).await;
    let machine = world.machine().await;
    let tested = commission::script("memory").unwrap().not_run(commission::Outcome::Passed, "", at(0).wall);
    let mut tx = world.store.begin().await.unwrap();
    for attempt in 0..60 {
        tx.insert_test(at(0).wall, &machine, run.id, attempt / 2, &tested).await.unwrap();
    }
    for _ in 0..40 {
        tx.insert_test(at(0).wall, &machine, RunId::fresh(), 1, &tested).await.unwrap();
    }
    tx.commit().await.unwrap();
    let of =
        async |script, latest, before| world.store.test_results(machine.id, script, latest, before, 100).await.unwrap();
    let all = of(Some("memory"), false, None).await;
    // Told again counts once.
    assert_eq!(all.len(), 50);
    assert_eq!(of(None, true, None).await, all[..1]);
    assert_eq!(of(None, false, Some(all[9].id)).await, all[10..]);
    assert!(of(Some("cpu"), false, None).await.is_empty());
}

on_both! {
    a_machine_is_tested_and_stays_what_it_was_however_controller_and_machine_live,
    a_machine_that_failed_says_so_until_that_test_passes,
    tests_that_are_refused_or_cancelled_leave_the_machine_as_it_was,
    what_destroys_is_not_run_without_a_word,
    of_each_test_the_newest_are_kept_and_none_of_another_run,
}
