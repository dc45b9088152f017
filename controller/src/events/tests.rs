use super::*;

use expect_test::{Expect, expect};
use rackhand_common::event;

use crate::store::{
    EventFilter, Run,
    tests::{Bench, address, at, inventory, mac},
};

fn connection(mac_number: u8, address_number: u8) -> What {
    What::Connected { mac: mac(mac_number), address: address(address_number), inventory: inventory(mac_number) }
}

fn of(machine: MachineId, what: What) -> Event {
    Event { at: at(9), machine: Some(machine), what }
}

/// Takes these events as the next ones, twice.
async fn take_next(bench: &Bench, events: Vec<Event>) {
    let mut tx = bench.store.begin().await.unwrap();
    let first = tx.agent(bench.agent).await.unwrap().next_event;
    drop(tx);
    let next = first + events.len() as u64;
    for _ in 0..2 {
        assert_eq!(take(&bench.store, bench.rack, bench.agent, first, events.clone()).await.unwrap(), next);
    }
}

async fn history(bench: &Bench, expect: Expect) {
    let mut out = String::new();
    for event in bench.store.events(0, EventFilter::default(), 99).await.unwrap() {
        let text = match event.body {
            Happened::Told(what) => what.to_string(),
            other => format!("{other:?}"),
        };
        out += &format!("{} {text}\n", event.id);
    }
    expect.assert_eq(&out);
}

#[tokio::test]
async fn an_event_is_taken_once_however_batches_overlap() {
    let bench = Bench::new().await;
    let id = MachineId::fresh();
    let events: Vec<Event> = [Stage::Kernel, Stage::Initramfs, Stage::Installer]
        .into_iter()
        .map(|stage| of(id, What::Stage(stage)))
        .collect();
    let take = |first, events| take(&bench.store, bench.rack, bench.agent, first, events);
    assert_eq!(take(1, events[..2].to_vec()).await.unwrap(), 3);
    assert_eq!(take(1, events.clone()).await.unwrap(), 4);
    assert_eq!(take(2, events[1..].to_vec()).await.unwrap(), 4);
    assert_eq!(take(4, Vec::new()).await.unwrap(), 4);
    // Four to eight never came.
    assert_eq!(take(9, events[..1].to_vec()).await.unwrap(), 10);
    history(
        &bench,
        expect![[r#"
            1 fetched kernel
            2 fetched initial RAM disk
            3 installer connected
            4 5 events were dropped here: the spool was full
            5 fetched kernel
        "#]],
    )
    .await;
}

#[tokio::test]
async fn an_unknown_machine_is_discovered_and_a_known_one_recognised_by_its_mac() {
    let bench = Bench::new().await;
    let id = MachineId::fresh();
    take_next(&bench, vec![of(id, connection(100, 100))]).await;
    let machine = bench.store.machine(&id.to_string()).await.unwrap();
    assert_eq!(
        (machine.lifecycle, machine.address, machine.macs),
        (Lifecycle::Discovered, address(100), vec![mac(100)])
    );
    let revision = bench.store.rack_revision(bench.rack).await.unwrap();
    // A node that lost its tables: another id, another address.
    take_next(&bench, vec![of(id, What::Lost), of(MachineId::fresh(), connection(100, 120))]).await;
    let machine = bench.store.machine(&id.to_string()).await.unwrap();
    assert_eq!((machine.address, machine.connected), (address(100), true));
    assert!(bench.store.rack_revision(bench.rack).await.unwrap() > revision);
    assert_eq!(bench.store.machines(None, None, 9).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_stranger_at_a_machines_address_changes_nothing_but_raises_an_alert() {
    let bench = Bench::new().await;
    let machine = bench.adopted(100).await;
    take_next(&bench, vec![of(MachineId::fresh(), connection(66, 100))]).await;
    let now = bench.store.machine("m100").await.unwrap();
    assert_eq!((&now.macs, now.connection), (&machine.macs, machine.connection));
    assert!(now.alert.unwrap().contains("m100"));
    assert_eq!(bench.store.machines(None, None, 9).await.unwrap().len(), 1);
}

#[tokio::test]
async fn an_installer_on_an_active_machine_changes_nothing_but_raises_an_alert() {
    let bench = Bench::new().await;
    let mut machine = bench.machine(100);
    (machine.lifecycle, machine.boot, machine.connected) = (Lifecycle::Active, Boot::Disk, false);
    bench.insert(&machine).await.unwrap();
    let revision = bench.store.rack_revision(bench.rack).await.unwrap();
    take_next(&bench, vec![of(machine.id, connection(100, 100))]).await;
    let now = bench.store.machine("m100").await.unwrap();
    assert_eq!((now.connected, now.connection), (false, 0));
    assert!(now.alert.unwrap().contains("active"));
    assert_eq!(bench.store.rack_revision(bench.rack).await.unwrap(), revision);
}

#[tokio::test]
async fn another_racks_machine_is_not_touched() {
    let bench = Bench::new().await;
    let machine = bench.adopted(100).await;
    let other = Bench::new().await;
    // The same database, told by an agent of another rack.
    let rack = other.rack;
    for what in [connection(100, 100), What::Lost, What::Power(Power::Off)] {
        let mut tx = bench.store.begin().await.unwrap();
        apply(&mut tx, rack, bench.agent, of(machine.id, what)).await.unwrap();
        tx.commit().await.unwrap();
    }
    assert_eq!(bench.store.machine("m100").await.unwrap(), machine);
}

#[tokio::test]
async fn a_lost_installer_is_no_longer_connected_and_a_gap_is_on_record() {
    let bench = Bench::new().await;
    let machine = bench.adopted(100).await;
    let gap = Event { at: at(9), machine: None, what: What::Gap { lost: 7 } };
    take_next(&bench, vec![of(machine.id, What::Lost), gap]).await;
    assert!(!bench.store.machine("m100").await.unwrap().connected);
    history(
        &bench,
        expect![[r#"
            1 Adopted
            2 installer no longer heard of
            3 7 events were dropped here: the spool was full
        "#]],
    )
    .await;
}

#[tokio::test]
async fn what_belongs_to_another_run_or_try_is_on_record_and_changes_no_run() {
    let bench = Bench::new().await;
    let machine = bench.adopted(100).await;
    let run = bench.deploy(&machine).await.unwrap();
    let old = RunId::fresh();
    let failed = |run, attempt| What::Failed { run, attempt, cause: event::Cause::Image, detail: "x".to_owned() };
    let done = |run, attempt| What::Done { run, attempt, disks: Vec::new() };
    let stale = vec![
        of(machine.id, failed(old, 1)),
        of(machine.id, done(old, 1)),
        of(machine.id, What::PhonedHome { run: old }),
        of(machine.id, What::Progress { run: old, done: 1, total: 2 }),
    ];
    take_next(&bench, stale).await;
    assert_eq!(bench.store.run(run.id).await.unwrap(), run);
    take_next(&bench, vec![of(machine.id, done(run.id, 2)), of(machine.id, failed(run.id, 1))]).await;
    let Run { result, .. } = bench.store.run(run.id).await.unwrap();
    assert_eq!(result, Some(OrderResult { attempt: 2, end: OrderEnd::Done(Vec::new()) }));
    take_next(&bench, vec![of(machine.id, What::PhonedHome { run: run.id })]).await;
    assert!(bench.store.run(run.id).await.unwrap().phoned_home);
}
