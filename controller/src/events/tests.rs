use super::*;

use expect_test::{Expect, expect};
use rackhand_common::{
    bmc::{Access, Protocol},
    erasure::Class,
    event,
    health::{Cause, State},
    machine::{self, Content},
    replacement::{Kind, Part, PartReplaced, Step},
};
use rackhand_controller_core::access::Sight;

use crate::{
    store::{
        EventFilter, MachineFilter, MachineOrder, Run, Thing,
        tests::{Bench, On, address, at, inventory, mac, on_both},
    },
    verbs::{Accept, Denied},
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
        assert_eq!(take(&bench.store, &unsigned, bench.rack, bench.agent, first, events.clone()).await.unwrap(), next);
    }
}

async fn history(bench: &Bench, expect: Expect) {
    let mut out = String::new();
    for event in bench.store.events(0, &EventFilter::default(), 99).await.unwrap() {
        let text = match event.body {
            Happened::Told(what) => what.to_string(),
            other => format!("{other:?}"),
        };
        out += &format!("{} {text}\n", event.id);
    }
    expect.assert_eq(&out);
}

async fn an_event_is_taken_once_however_batches_overlap(on: On) {
    let bench = Bench::new(on).await;
    let id = MachineId::fresh();
    let events: Vec<Event> = [Stage::Kernel, Stage::Initramfs, Stage::Installer]
        .into_iter()
        .map(|stage| of(id, What::Stage(stage)))
        .collect();
    let take = |first, events| take(&bench.store, &unsigned, bench.rack, bench.agent, first, events);
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

async fn an_unknown_machine_is_discovered_and_a_known_one_recognised_by_its_mac(on: On) {
    let bench = Bench::new(on).await;
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
    assert_eq!(bench.store.machines(&MachineFilter::default(), MachineOrder::default(), 9).await.unwrap().len(), 1);
}

async fn a_stranger_at_a_machines_address_changes_nothing_but_raises_an_alert(on: On) {
    let bench = Bench::new(on).await;
    let machine = bench.adopted(100).await;
    take_next(&bench, vec![of(MachineId::fresh(), connection(66, 100))]).await;
    let now = bench.store.machine("m100").await.unwrap();
    assert_eq!((&now.macs, now.connection), (&machine.macs, machine.connection));
    assert!(now.alert.unwrap().contains("m100"));
    assert_eq!(bench.store.machines(&MachineFilter::default(), MachineOrder::default(), 9).await.unwrap().len(), 1);
}

async fn an_installer_on_an_active_machine_changes_nothing_but_raises_an_alert(on: On) {
    let bench = Bench::new(on).await;
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

async fn an_installer_that_connected_before_its_machine_was_switched_on_anew_is_gone(on: On) {
    let bench = Bench::new(on).await;
    let mut machine = bench.machine(100);
    (machine.lifecycle, machine.boot, machine.connected) = (Lifecycle::Active, Boot::Disk, false);
    bench.insert(&machine).await.unwrap();
    let after = |second| Event { at: at(second), ..of(machine.id, connection(100, 100)) };
    take_next(&bench, vec![of(machine.id, What::Stage(Stage::PoweredOn)), after(8)]).await;
    let now = bench.store.machine("m100").await.unwrap();
    assert_eq!((now.connected, now.alert), (false, None));
    take_next(&bench, vec![after(10)]).await;
    let now = bench.store.machine("m100").await.unwrap();
    assert!(!now.connected && now.alert.unwrap().contains("active"));
}

async fn another_racks_machine_is_not_touched(on: On) {
    let bench = Bench::new(on).await;
    let machine = bench.adopted(100).await;
    let other = Bench::new(on).await;
    // The same database, told by an agent of another rack.
    let rack = other.rack;
    for what in [connection(100, 100), What::Lost, What::Power(Power::Off)] {
        let mut tx = bench.store.begin().await.unwrap();
        apply(&mut tx, &unsigned, rack, bench.agent, of(machine.id, what)).await.unwrap();
        tx.commit().await.unwrap();
    }
    assert_eq!(bench.store.machine("m100").await.unwrap(), machine);
}

async fn a_lost_installer_is_no_longer_connected_and_a_gap_is_on_record(on: On) {
    let bench = Bench::new(on).await;
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

async fn a_verdict_is_on_record_when_it_is_new_and_only_while_somebody_reads_the_bmc(on: On) {
    let bench = Bench::new(on).await;
    let machine = bench.adopted(100).await;
    let verdict = |state, causes| What::Health(Verdict { state, since: at(1), causes });
    let cause = Cause {
        rule: "fan".into(),
        state: State::Critical,
        subject: "FAN1".into(),
        reading: "0 rpm".into(),
        since: at(1),
        part: None,
    };
    let (ok, critical) = (verdict(State::Ok, Vec::new()), verdict(State::Critical, vec![cause]));
    // A node that was not yet told that nobody reads it.
    take_next(&bench, vec![of(machine.id, critical.clone()), of(MachineId::fresh(), critical.clone())]).await;
    assert_eq!(bench.store.machine_health(machine.id).await.unwrap(), None);
    let access = Access {
        machine: machine.id,
        at: "10.0.0.5".parse().unwrap(),
        protocol: Protocol::Ipmi,
        user: "admin".into(),
        password: "secret".into(),
        fingerprint: None,
        mainboard: None,
    };
    let mut tx = bench.store.begin().await.unwrap();
    tx.set_bmc(at(1), &machine, &access).await.unwrap();
    tx.commit().await.unwrap();
    let told = [ok.clone(), ok.clone(), critical.clone(), critical, ok.clone(), ok];
    take_next(&bench, told.into_iter().map(|what| of(machine.id, what)).collect()).await;
    history(
        &bench,
        expect![[r#"
            1 Adopted
            2 health is critical: FAN1: 0 rpm
            3 health is ok
        "#]],
    )
    .await;
    assert_eq!(bench.store.machine_health(machine.id).await.unwrap().unwrap().verdict.state, State::Ok);
    let mut tx = bench.store.begin().await.unwrap();
    tx.delete_bmc(&machine).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(bench.store.machine_health(machine.id).await.unwrap(), None);
}

async fn a_full_range_is_an_alert_of_its_rack(on: On) {
    let bench = Bench::new(on).await;
    let full = Event { at: at(9), machine: None, what: What::RangeFull { unanswered: 7 } };
    take_next(&bench, vec![full]).await;
    history(&bench, expect![[r#"
        1 Alert { reason: "no delegated address is free: 7 requests of new machines were not answered; enlarge the rack's range, or look for cards nobody knows" }
    "#]]).await;
}

async fn what_belongs_to_another_run_or_try_is_on_record_and_changes_no_run(on: On) {
    let bench = Bench::new(on).await;
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

/// The machine's parts as its installer finds them now, told by a new connection.
async fn found(bench: &Bench, machine: &Machine, inventory: Inventory) -> Machine {
    let what = What::Connected { mac: machine.macs[0], address: machine.address, inventory };
    take_next(bench, vec![of(machine.id, What::Lost), of(machine.id, what)]).await;
    bench.store.machine(&machine.id.to_string()).await.unwrap()
}

fn words(machine: &Machine) -> Vec<String> {
    machine.changes().iter().map(ToString::to_string).collect()
}

async fn a_swapped_disk_stops_deploy_and_release_until_an_operator_has_decided(on: On) {
    let bench = Bench::new(on).await;
    let machine = bench.adopted(100).await;
    let mut swapped = inventory(100);
    swapped.disks[0].serial = "S9".into();
    swapped.disks[0].content = Content::Data("GPT, 3 partitions".into());
    let machine = found(&bench, &machine, swapped).await;
    assert_eq!(words(&machine), ["disk disk/S100 is gone", "disk disk/S9 (GPT, 3 partitions) is new"]);
    assert!(matches!(bench.deploy(&machine).await, Err(Denied::Changed(_))));
    let mut tx = bench.store.begin().await.unwrap();
    let quarantined = Machine { lifecycle: Lifecycle::Quarantined, ..machine.clone() };
    assert!(matches!(tx.start_release(at(9), &quarantined).await, Err(Denied::Changed(_))));
    assert!(matches!(tx.replace_part(at(9), &machine, Accept::default()).await, Err(Denied::HasData(_))));
    let accepted = tx.replace_part(at(9), &machine, Accept { data: true, parts: false }).await.unwrap();
    assert!(matches!(tx.replace_part(at(9), &accepted, Accept::default()).await, Err(Denied::Unchanged)));
    tx.commit().await.unwrap();
    bench.deploy(&accepted).await.unwrap();
}

/// What a technician tells who replaces the disk of a machine.
async fn replaced(bench: &Bench, machine: &Machine, step: Step) -> Machine {
    let told = PartReplaced { id: uuid::Uuid::nil(), by: "ada".into(), began: at(5), old: disk("S100"), step };
    take_next(bench, vec![of(machine.id, What::PartReplaced(Box::new(told)))]).await;
    bench.store.machine(&machine.id.to_string()).await.unwrap()
}

fn disk(serial: &str) -> Part {
    Part {
        kind: Kind::Disk,
        slot: "vda".into(),
        identity: format!("disk/{serial}"),
        serial: serial.into(),
        about: String::new(),
        amount: 1,
        fault: String::new(),
    }
}

fn put_in(serial: &str) -> Step {
    Step::Done { new: disk(serial), typed: String::new(), notes: Vec::new() }
}

async fn a_part_that_a_technician_replaced_is_accepted_and_tested_and_the_machine_goes_on(on: On) {
    let bench = Bench::new(on).await;
    let machine = bench.adopted(100).await;
    let held = replaced(&bench, &machine, Step::Begun).await;
    assert_eq!(held.lifecycle, Lifecycle::Maintenance);
    assert!(held.held.unwrap().reason.starts_with("ada replaces disk vda"));
    let back = replaced(&bench, &machine, Step::Abandoned).await;
    assert_eq!((back.lifecycle, back.held, back.alert), (Lifecycle::Ready, None, None));

    replaced(&bench, &machine, Step::Begun).await;
    let mut swapped = inventory(100);
    swapped.disks[0].serial = "S9".into();
    found(&bench, &machine, swapped).await;
    let accepted = replaced(&bench, &machine, put_in("S9")).await;
    assert_eq!((words(&accepted), &accepted.alert), (Vec::new(), &None));
    let mut tx = bench.store.begin().await.unwrap();
    let run = tx.run_in_progress(machine.id).await.unwrap().expect("it is tested");
    let Parameters::Test(tests) = tx.run(run).await.unwrap().parameters else { panic!("no test") };
    assert_eq!((tests.scripts, tests.resumes), (["smart", "nvme", "disk-read"].map(str::to_owned).to_vec(), true));
}

async fn a_part_that_a_technician_replaced_is_not_accepted_with_data_nor_with_anything_else(on: On) {
    type Change = fn(&mut Inventory);
    let with_data: Change = |found| {
        found.disks[0].serial = "S9".into();
        found.disks[0].content = Content::Data("GPT".into());
    };
    let with_another: Change = |found| {
        let more = found.disks[0].clone();
        found.disks[0].serial = "S9".into();
        found.disks.push(machine::Disk { serial: "S8".into(), ..more });
    };
    let other_than_told: Change = |found| found.disks[0].serial = "S7".into();
    let cases = [(with_data, "--accept-data`"), (with_another, "S8 is new"), (other_than_told, "S7 is new")];
    for (change, alert) in cases {
        let bench = Bench::new(on).await;
        let machine = bench.adopted(100).await;
        replaced(&bench, &machine, Step::Begun).await;
        let mut swapped = inventory(100);
        change(&mut swapped);
        found(&bench, &machine, swapped).await;
        let stays = replaced(&bench, &machine, put_in("S9")).await;
        assert_eq!(stays.lifecycle, Lifecycle::Maintenance);
        assert!(!words(&stays).is_empty());
        assert!(stays.alert.as_ref().is_some_and(|told| told.contains(alert)), "{alert}: {:?}", stays.alert);
        assert_eq!(bench.store.begin().await.unwrap().run_in_progress(machine.id).await.unwrap(), None);
        // Whoever gives it up leaves it like this.
        assert_eq!(replaced(&bench, &machine, Step::Abandoned).await.lifecycle, Lifecycle::Maintenance);
    }
}

async fn a_machine_in_use_is_not_moved_by_what_a_technician_tells(on: On) {
    let bench = Bench::new(on).await;
    let mut machine = bench.machine(100);
    (machine.lifecycle, machine.boot) = (Lifecycle::Active, Boot::Disk);
    bench.insert(&machine).await.unwrap();
    for step in [Step::Begun, put_in("S9"), Step::Abandoned] {
        let now = replaced(&bench, &machine, step).await;
        assert_eq!((now.lifecycle, &now.accepted, now.epoch), (Lifecycle::Active, &machine.accepted, machine.epoch));
    }
}

async fn a_part_of_another_machine_is_named_and_never_taken_silently(on: On) {
    let bench = Bench::new(on).await;
    let owner = bench.adopted(100).await;
    let stranger = bench.machine(101);
    let mut with_its_disk = inventory(101);
    with_its_disk.disks.push(inventory(100).disks.remove(0));
    let what = What::Connected { mac: mac(101), address: address(101), inventory: with_its_disk };
    take_next(&bench, vec![of(stranger.id, what)]).await;
    let stranger = bench.store.machine(&stranger.id.to_string()).await.unwrap();
    assert_eq!(stranger.alert.as_deref(), Some("disk disk/S100 is m100's"));
    let mut tx = bench.store.begin().await.unwrap();
    assert!(matches!(tx.adopt(at(9), &stranger, Accept::default()).await, Err(Denied::Elsewhere(_))));
    let stranger = tx.adopt(at(9), &stranger, Accept { data: false, parts: true }).await.unwrap();
    assert_eq!((stranger.lifecycle, stranger.alert), (Lifecycle::Ready, None));
    tx.commit().await.unwrap();
    // The one it was taken from shows what is gone when it is looked at next.
    let mut without = inventory(100);
    without.disks.clear();
    assert_eq!(words(&found(&bench, &owner, without).await), ["disk disk/S100 is gone"]);
}

async fn a_new_mainboard_with_new_cards_is_merged_and_keeps_name_address_and_history(on: On) {
    let bench = Bench::new(on).await;
    let machine = bench.adopted(100).await;
    let run = bench.deploy(&machine).await.unwrap();
    let stranger = MachineId::fresh();
    let mut board = inventory(100);
    board.nics[0].mac = mac(50);
    board.system.serial = "B2".into();
    let what = What::Connected { mac: mac(50), address: address(150), inventory: board };
    take_next(&bench, vec![of(stranger, what)]).await;
    let stranger = bench.store.machine(&stranger.to_string()).await.unwrap();
    let revision = bench.store.rack_revision(bench.rack).await.unwrap();

    let mut tx = bench.store.begin().await.unwrap();
    let busy = tx.machine("m100").await.unwrap();
    assert!(matches!(tx.merge(at(9), &stranger, &busy).await, Err(Denied::Busy(_))));
    let ended = Run { status: crate::store::RunStatus::Done, ..run };
    tx.save_run(at(9), &ended).await.unwrap();
    assert!(matches!(tx.merge(at(9), &busy, &stranger).await, Err(Denied::NotNew(..))));
    assert!(matches!(tx.merge(at(9), &busy, &busy).await, Err(Denied::Same)));
    let merged = tx.merge(at(9), &stranger, &busy).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!((merged.id, merged.address, &merged.macs), (machine.id, address(100), &vec![mac(50)]));
    assert_eq!(words(&merged), ["network card 52:54:00:00:00:64 is gone", "network card 52:54:00:00:00:32 is new"]);
    assert!(bench.store.rack_revision(bench.rack).await.unwrap() > revision);
    assert!(matches!(bench.store.machine(&stranger.id.to_string()).await, Err(StoreError::NotFound(_))));
    let told = EventFilter { machine: Some(machine.id), ..EventFilter::default() };
    let told = bench.store.events(0, &told, 99).await.unwrap();
    assert!(told.iter().any(|event| matches!(&event.body, Happened::Discovered { name } if *name == stranger.name)));
    // Its installer still runs under the other id, and asks again.
    let what = What::Connected { mac: mac(50), address: address(150), inventory: inventory(50) };
    take_next(&bench, vec![of(stranger.id, what)]).await;
    assert_eq!(bench.store.machines(&MachineFilter::default(), MachineOrder::default(), 9).await.unwrap().len(), 1);
}

async fn a_machine_moved_to_another_rack_is_found_by_its_parts_and_goes_there_by_an_operators_word(on: On) {
    let bench = Bench::new(on).await;
    let machine = bench.adopted(100).await;
    let (rack, agent) = bench.another_rack().await;
    let stranger = MachineId::fresh();
    take(&bench.store, &unsigned, rack, agent, 1, vec![of(stranger, connection(100, 7))]).await.unwrap();
    let stranger = bench.store.machine(&stranger.to_string()).await.unwrap();
    assert_eq!((stranger.rack, stranger.alert.as_deref()), (rack, Some("disk disk/S100 is m100's")));
    let mut tx = bench.store.begin().await.unwrap();
    let merged = tx.merge(at(9), &stranger, &machine).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!((merged.id, merged.rack, merged.address), (machine.id, rack, address(7)));
    assert_eq!(words(&merged), Vec::<String>::new());
    for (of, there) in [(bench.rack, 0), (rack, 1)] {
        assert_eq!(crate::intent::of(&bench.store, of).await.unwrap().0.machines.len(), there);
    }
}

async fn a_machine_that_is_forgotten_is_discovered_anew_and_somebodys_is_not_forgotten(on: On) {
    let bench = Bench::new(on).await;
    let machine = bench.adopted(100).await;
    let mut tx = bench.store.begin().await.unwrap();
    let active = Machine { lifecycle: Lifecycle::Active, ..machine.clone() };
    assert!(matches!(tx.forget(at(9), &active).await, Err(Denied::Forbidden(_))));
    tx.forget(at(9), &machine).await.unwrap();
    tx.commit().await.unwrap();
    assert!(crate::intent::of(&bench.store, bench.rack).await.unwrap().0.machines.is_empty());
    let id = MachineId::fresh();
    take_next(&bench, vec![of(id, connection(100, 100))]).await;
    let again = bench.store.machine(&id.to_string()).await.unwrap();
    assert_eq!((again.lifecycle, again.alert), (Lifecycle::Discovered, None));
}

async fn what_became_of_a_disk_is_signed_kept_and_outlives_its_machine(on: On) {
    let bench = Bench::new(on).await;
    let machine = bench.adopted(100).await;
    let mut tx = bench.store.begin().await.unwrap();
    let mut quarantined = Machine { lifecycle: Lifecycle::Quarantined, ..machine.clone() };
    tx.update_machine(at(9), &mut quarantined).await.unwrap();
    let release = tx.start_release(at(9), &quarantined).await.unwrap().id;
    tx.commit().await.unwrap();
    let told = |run, drive| of(machine.id, What::Erased { run, attempt: 1, drive: Box::new(drive) });
    let clean = DriveErasure::example("disk/S100");
    let dirty = DriveErasure { method: None, class: Class::None, reason: Some("it is locked".into()), ..clean.clone() };
    let unproven = async || bench.store.begin().await.unwrap().unproven_in(release).await.unwrap();
    take_next(&bench, vec![told(release, dirty.clone())]).await;
    assert_eq!(unproven().await, ["disk/S100"]);
    take_next(
        &bench,
        vec![
            told(release, clean.clone()),
            // Of another disk, of no run, and one that claims what it does not show.
            told(release, DriveErasure::example("another")),
            told(RunId::fresh(), clean.clone()),
            told(release, DriveErasure { tried: Vec::new(), ..clean.clone() }),
        ],
    )
    .await;
    assert_eq!(unproven().await, Vec::<String>::new());
    let all = async |machine, serial: Option<&str>| {
        let found = bench.store.erasures(&Sight::ALL, machine, serial, None, 10).await.unwrap();
        found.into_iter().map(|signed| signed.unverified().unwrap().drive).collect::<Vec<_>>()
    };
    let kept = vec![clean, dirty];
    assert_eq!(all(Some(machine.id), None).await, kept);
    let mut tx = bench.store.begin().await.unwrap();
    let ended = Run { status: RunStatus::Done, ..tx.run(release).await.unwrap() };
    tx.save_run(at(9), &ended).await.unwrap();
    tx.commit().await.unwrap();
    // The run is over: nothing more of it is kept.
    take_next(&bench, vec![told(release, DriveErasure::example("disk/S100"))]).await;
    let mut tx = bench.store.begin().await.unwrap();
    let mut ready = Machine { lifecycle: Lifecycle::Ready, ..tx.machine("m100").await.unwrap() };
    tx.update_machine(at(9), &mut ready).await.unwrap();
    tx.forget(at(9), &ready).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(all(None, Some("S1")).await, kept);
    let standing = bench.store.erasures(&Sight::ALL, None, None, None, 1).await.unwrap();
    let id = standing[0].unverified().unwrap().erasure.to_string();
    let standing = bench.store.standing(Thing::Erasure, &id).await.unwrap();
    assert_eq!((standing.id, standing.place.rack), (id, Some(bench.rack)));
}

on_both! {
    what_became_of_a_disk_is_signed_kept_and_outlives_its_machine,
    an_event_is_taken_once_however_batches_overlap,
    an_unknown_machine_is_discovered_and_a_known_one_recognised_by_its_mac,
    a_stranger_at_a_machines_address_changes_nothing_but_raises_an_alert,
    an_installer_on_an_active_machine_changes_nothing_but_raises_an_alert,
    an_installer_that_connected_before_its_machine_was_switched_on_anew_is_gone,
    another_racks_machine_is_not_touched,
    a_lost_installer_is_no_longer_connected_and_a_gap_is_on_record,
    a_verdict_is_on_record_when_it_is_new_and_only_while_somebody_reads_the_bmc,
    a_full_range_is_an_alert_of_its_rack,
    what_belongs_to_another_run_or_try_is_on_record_and_changes_no_run,
    a_swapped_disk_stops_deploy_and_release_until_an_operator_has_decided,
    a_part_that_a_technician_replaced_is_accepted_and_tested_and_the_machine_goes_on,
    a_part_that_a_technician_replaced_is_not_accepted_with_data_nor_with_anything_else,
    a_machine_in_use_is_not_moved_by_what_a_technician_tells,
    a_part_of_another_machine_is_named_and_never_taken_silently,
    a_new_mainboard_with_new_cards_is_merged_and_keeps_name_address_and_history,
    a_machine_moved_to_another_rack_is_found_by_its_parts_and_goes_there_by_an_operators_word,
    a_machine_that_is_forgotten_is_discovered_anew_and_somebodys_is_not_forgotten,
}
