//! Machines that do not come into their installer in the first way.

use super::*;

impl World {
    /// One whose machine somebody has, with a BMC, that comes into its installer by this command only, and by the
    /// last one of these not at all.
    async fn that_comes_by(on: On, comes_by: Action, lacks: Option<Action>) -> Self {
        let mut world = Self::with_bmc(on).await;
        let run = world.deploy().await;
        assert_eq!(world.finish(&run).await.status, RunStatus::Done);
        {
            let mut state = world.node.state.lock().unwrap();
            (state.behaviour.comes_by, state.behaviour.lacks) = (Some(comes_by), lacks);
        }
        world
    }

    fn sent(&self) -> Vec<Action> {
        let sent = self.node.state.lock().unwrap().sent.clone();
        sent.into_iter().filter(|action| *action != Action::PowerStatus).collect()
    }

    async fn waits(&self, run: &Run) -> Vec<String> {
        let filter = EventFilter { run: Some(run.id), ..EventFilter::default() };
        let events = self.store.events(0, &filter, 200).await.unwrap();
        let words = events.into_iter().filter_map(|event| match event.body {
            Happened::Waits { waiting, .. } => Some(waiting),
            _ => None,
        });
        words.collect()
    }
}

async fn a_machine_is_started_in_the_next_way_until_one_brings_its_installer(on: On) {
    let mut world = World::that_comes_by(on, Action::MediaBoot, None).await;
    world.process = Process::Restarts;
    let run = world.release().await;
    let run = world.finish(&run).await;
    assert_eq!((run.status, run.way.as_deref()), (RunStatus::Done, Some("virtual media")), "{:?}", run.detail);
    assert_eq!(world.sent(), [Action::NetworkBoot, Action::LastingNetworkBoot, Action::MediaBoot]);
    assert!(world.waits(&run).await.contains(&"POST".to_owned()), "{:?}", world.waits(&run).await);

    // What worked is the first the next time.
    let run = world.deploy().await;
    assert_eq!(world.finish(&run).await.status, RunStatus::Done);
    world.node.state.lock().unwrap().sent.clear();
    let run = world.release().await;
    assert_eq!(world.finish(&run).await.status, RunStatus::Done);
    assert_eq!(world.sent(), [Action::MediaBoot]);
}

async fn a_machine_that_comes_in_no_way_fails_its_run_with_all_that_was_tried_and_its_boot_order_is_put_back(on: On) {
    let mut world = World::that_comes_by(on, Action::PowerStatus, Some(Action::MediaBoot)).await;
    let run = world.release().await;
    let run = world.finish(&run).await;
    assert_eq!((run.status, run.cause.as_deref()), (RunStatus::Failed, Some("not_booted")));
    expect![[r#"its installer did not come: network boot, once: nothing came from its network card; network boot, at every start: nothing came from its network card; virtual media: not possible, as the test wants. Look at: does it pass its self-test (its screen, or its console), is the card it boots from cabled, and is network boot of that card enabled in its firmware"#]]
        .assert_eq(run.detail.as_deref().unwrap());
    assert_eq!(world.machine().await.lifecycle, Lifecycle::Quarantined);
    world.turn().await;
    let sent = [Action::NetworkBoot, Action::LastingNetworkBoot, Action::MediaBoot, Action::EndBoot];
    assert_eq!(world.sent(), sent);
}

async fn a_run_that_is_cancelled_leaves_no_way_behind(on: On) {
    let mut world = World::that_comes_by(on, Action::PowerStatus, None).await;
    let run = world.release().await;
    assert_eq!(world.finish(&run).await.status, RunStatus::Failed);
    world.node.state.lock().unwrap().sent.clear();
    let mut tx = world.store.begin().await.unwrap();
    let machine = tx.machine("m-3456").await.unwrap();
    let run = tx.start_inspect(at(0).wall, &machine).await.unwrap();
    tx.commit().await.unwrap();
    world.turn().await;
    world.turn().await;
    let waiting = world.store.run(run.id).await.unwrap();
    assert_eq!(waiting.waiting_for.map(|what| what.to_string()).as_deref(), Some("POST"), "{:?}", waiting.detail);
    assert!(waiting.waiting_since.is_some() && waiting.waiting_until.is_some());
    world.cancel(&run).await.unwrap();
    assert_eq!(world.finish(&run).await.status, RunStatus::Cancelled);
    world.turn().await;
    assert_eq!(world.sent(), [Action::NetworkBoot, Action::EndBoot]);
}

on_both! {
    a_machine_is_started_in_the_next_way_until_one_brings_its_installer,
    a_machine_that_comes_in_no_way_fails_its_run_with_all_that_was_tried_and_its_boot_order_is_put_back,
    a_run_that_is_cancelled_leaves_no_way_behind,
}
