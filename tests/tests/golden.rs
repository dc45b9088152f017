//! Stores as released versions left them on disk: today's code opens each and reads all of it.
//!
//! A directory of `tests/golden` holds a controller's database and a node's files, made by the
//! version it is named after, and is never changed afterwards: if reading one fails, the change
//! is wrong, not the store. `UPDATE_EXPECT=1 cargo test --workspace --test golden` makes the
//! directory of the present version where there is none.

#![expect(clippy::unwrap_used, reason = "the lint does not take helpers in here for tests")]

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::Timestamp;
use rackhand_agent::{
    boot::{leases::Holder, leases::Leases, sessions::Sessions, ticket::Tickets},
    clock::SystemClock,
    intent,
    ledger::{Begun, Ledger},
    spool::{self, Spool},
    timeline::Timelines,
};
use rackhand_common::{
    event::{Cause, Event, NodeHealth, Outcome, Stage, What},
    id::{AgentId, CommandId, Epoch, Incarnation, MachineId, RackId, RunId},
    image::{Digest, Settings},
    intent::{Boot, Deploy, DiskRule, Host, Intent, MachineIntent, Network, Order, Work},
    machine::{Content, Cpu, Disk, Firmware, Inventory, Mac, Nic, Power, System},
    pki::KeyPin,
    seal::Seal,
    time::Clock as _,
    wire::{Action, Command, Hello},
};
use rackhand_controller::{
    store::{
        DEFAULT_SITE, EventFilter, Happened, ImageState, Machine, NewImage, RunStatus, SoundNetwork, Store, Stored,
    },
    verbs::{Accept, DeployRequest},
};
use rackhand_controller_core::{access::Sight, lifecycle::Lifecycle};
use rackhand_world::version;

const FILES: [&str; 6] = ["controller.db", "agent.redb", "boot.redb", "events.redb", "intent.json", "seal.key"];

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

/// The version without its last number: stored formats do not change within a minor version.
fn present() -> &'static str {
    env!("CARGO_PKG_VERSION").rsplit_once('.').unwrap().0
}

#[tokio::test(flavor = "multi_thread")]
async fn stores_of_every_release_are_read_fully() {
    if !golden().join(present()).exists() && std::env::var_os("UPDATE_EXPECT").is_some() {
        make().await;
    }
    let mut seen = Vec::new();
    for release in fs::read_dir(golden()).unwrap() {
        let release = release.unwrap();
        let dir = tempfile::tempdir().unwrap();
        for file in FILES {
            let packed = fs::read(release.path().join(format!("{file}.zst"))).unwrap();
            fs::write(dir.path().join(file), zstd::decode_all(&packed[..]).unwrap()).unwrap();
        }
        read_controller(&dir.path().join("controller.db")).await;
        read_node(dir.path()).await;
        seen.push(release.file_name().into_string().unwrap());
    }
    assert!(seen.iter().any(|version| version == present()), "there is none of {}: see above", present());
}

/// A node's stores after the next version has worked on them and this one is installed again.
#[tokio::test(flavor = "multi_thread")]
async fn stores_that_the_next_version_added_fields_to_are_read_fully() {
    let dir = tempfile::tempdir().unwrap();
    for file in FILES {
        let packed = fs::read(golden().join(present()).join(format!("{file}.zst"))).unwrap();
        fs::write(dir.path().join(file), zstd::decode_all(&packed[..]).unwrap()).unwrap();
    }
    let mut raised = version::raise_file(&dir.path().join("intent.json")).unwrap();
    for file in ["agent.redb", "boot.redb", "events.redb"] {
        raised += version::raise(&spool::open_database(&dir.path().join(file)).unwrap()).unwrap();
    }
    // The intent; of two commands, two installers' tables and four spools' and timelines' events.
    assert!(raised > 8, "{raised}");
    read_node(dir.path()).await;
}

/// Fills stores and keeps them.
async fn make() {
    let dir = tempfile::tempdir().unwrap();
    fill_controller(&dir.path().join("filled.db")).await;
    let contents = rackhand_controller::store::Contents {
        made: at(0),
        version: present().into(),
        pki: [("key".to_owned(), b"secret".to_vec())].into(),
        objects: [("manifests/one".to_owned(), 1)].into(),
    };
    // The form a backup has too: one file, no log beside it.
    fs::write(dir.path().join("controller.db"), b"").unwrap();
    rackhand_controller::store::write_backup(
        &dir.path().join("filled.db").into(),
        &dir.path().join("controller.db"),
        &contents,
    )
    .await
    .unwrap();
    fill_node(dir.path()).await;
    let out = golden().join(present());
    fs::create_dir_all(&out).unwrap();
    for file in FILES {
        let bytes = fs::read(dir.path().join(file)).unwrap();
        fs::write(out.join(format!("{file}.zst")), zstd::encode_all(&bytes[..], 19).unwrap()).unwrap();
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

fn uuid(n: u8) -> uuid::Uuid {
    uuid::Uuid::from_bytes([n; 16])
}

fn mac(n: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, n])
}

fn network() -> Network {
    Network {
        node: "10.77.0.1/24".parse().unwrap(),
        gateway: Some([10, 77, 0, 254].into()),
        dns: vec![[10, 77, 0, 253].into()],
        delegated: ([10, 77, 0, 100].into(), [10, 77, 0, 199].into()),
    }
}

fn inventory(n: u8) -> Inventory {
    let disk = Disk {
        name: "vda".into(),
        model: "model".into(),
        serial: format!("S{n}"),
        wwn: Some(format!("naa.{n}")),
        size: 8 << 30,
        sector: 512,
        rotational: false,
        content: Content::Blank,
    };
    Inventory {
        firmware: Firmware::Uefi,
        system: System { vendor: "v".into(), product: "p".into(), serial: "s".into(), uuid: Some(uuid(9)) },
        cpu: Cpu { model: "cpu".into(), threads: 4 },
        memory: 1 << 30,
        nics: vec![Nic { name: "eth0".into(), mac: mac(n), driver: "virtio_net".into(), link: true }],
        disks: vec![disk, Disk { content: Content::Data("ext4".into()), serial: format!("T{n}"), ..disk_of(n) }],
    }
}

fn disk_of(n: u8) -> Disk {
    Disk {
        name: "vdb".into(),
        model: String::new(),
        serial: format!("T{n}"),
        wwn: None,
        size: 4 << 30,
        sector: 4096,
        rotational: true,
        content: Content::Blank,
    }
}

fn host() -> Host {
    Host { name: "web-1".into(), ssh_keys: vec!["ssh-ed25519 AAAA".into()], user_data: Some("#!/bin/sh\n".into()) }
}

const HASH: [u8; 32] = [7; 32];
const SEAL: [u8; 32] = [9; 32];
const READING: NodeHealth = NodeHealth { load: 120, memory: (1, 2), disk: (3, 4), uptime: 5 };

async fn fill_controller(path: &Path) {
    let store = Store::open(path, Seal::new(&SEAL)).await.unwrap();
    let mut tx = store.begin().await.unwrap();
    let rack = tx.insert_rack(at(0), "r1", DEFAULT_SITE, &SoundNetwork::try_from(network()).unwrap()).await.unwrap();
    tx.insert_code(at(0), &HASH, rack, at(3600), None).await.unwrap();
    let agent = AgentId(uuid(4));
    tx.insert_agent(at(1), agent, rack, KeyPin([5; 32]), at(7200)).await.unwrap();
    let hello = Hello { incarnation: Incarnation(uuid(6)), version: "0.1.0".into(), revision: 3, connection: 6 };
    tx.welcome(at(2), agent, (KeyPin([5; 32]), None), &hello).await.unwrap();
    tx.set_next_event(agent, 40).await.unwrap();
    tx.set_node_health(at(3), agent, &READING).await.unwrap();
    tx.insert_first_token(at(0), "admin", &HASH).await.unwrap();

    let machine = Machine {
        id: MachineId(uuid(1)),
        rack,
        project: None,
        name: "m-1".into(),
        lifecycle: Lifecycle::Discovered,
        epoch: Epoch(1),
        boot: Boot::Installer,
        address: [10, 77, 0, 101].into(),
        macs: vec![mac(1), mac(2)],
        inventory: inventory(1).into(),
        accepted: None,
        connection: 1,
        connected: true,
        power: Some(Power::On),
        stage: Some(Stage::Loader("snponly.efi".into())),
        stage_event: 1,
        power_event: 1,
        order: None,
        image: None,
        alert: Some("look".into()),
        held: None,
        uninspected: None,
        rescue: None,
        created: at(4),
        updated: at(4),
        version: 1,
    };
    tx.insert_machine(&machine).await.unwrap();
    let second = Machine {
        id: MachineId(uuid(2)),
        name: "m-2".into(),
        address: [10, 77, 0, 102].into(),
        macs: vec![mac(3)],
        ..machine.clone()
    };
    tx.insert_machine(&second).await.unwrap();

    let image = tx
        .start_import(at(5), &NewImage { name: "debian-12", settings: Settings::Cidata, os: None }, "storing", 9)
        .await
        .unwrap();
    let stored = Stored {
        manifest: Digest([3; 32]),
        size: 1 << 30,
        stored: 1 << 20,
        sector: 512,
        firmware: vec![Firmware::Bios, Firmware::Uefi],
        sha256: "ab".into(),
    };
    tx.finish_import(image, &stored).await.unwrap();
    let failed = tx
        .start_import(at(5), &NewImage { name: "broken", settings: Settings::None, os: None }, "storing", 9)
        .await
        .unwrap();
    tx.fail_import(failed, "empty", "the file is empty").await.unwrap();

    let image = tx.image("debian-12").await.unwrap();
    let machine = tx.adopt(at(6), &machine, Accept { data: true, parts: false }).await.unwrap();
    let request = DeployRequest { disk: DiskRule::Smallest, host: host() };
    let run = tx.start_deploy(at(7), &machine, &image, request).await.unwrap();
    let command = tx.issue(at(8), &run, "network-boot 1", Action::NetworkBoot).await.unwrap();
    tx.command_sent(at(9), command.id).await.unwrap();
    tx.command_ended(rack, command.id, &Outcome::Failed("no answer".into())).await.unwrap();
    let told = Happened::Told(What::Failed { run: run.id, attempt: 1, cause: Cause::DisksDiffer, detail: "d9".into() });
    tx.insert_event(at(10), rack, Some(machine.id), Some(run.id), &told).await.unwrap();
    let mut busy = tx.machine("m-1").await.unwrap();
    busy.order = Some(order(run.id));
    tx.update_machine(at(11), &mut busy).await.unwrap();
    tx.commit().await.unwrap();
    store.close().await;
}

async fn read_controller(path: &Path) {
    let contents = rackhand_controller::store::read_backup(path).await.unwrap();
    assert_eq!((contents.pki.len(), contents.objects.len(), contents.made), (1, 1, at(0)));
    let store = Store::open(path, Seal::new(&SEAL)).await.unwrap();
    let racks = store.racks(&Sight::ALL, None, 10).await.unwrap();
    let [rack] = racks.as_slice() else { panic!("{racks:?}") };
    assert_eq!((rack.name.as_str(), &rack.network, rack.created), ("r1", &network(), at(0)));
    let agent = store.agent(AgentId(uuid(4))).await.unwrap();
    assert_eq!((agent.connection, agent.next_event, agent.revision), (7, 40, 3));
    assert_eq!((agent.key, agent.incarnation), (KeyPin([5; 32]), Some(Incarnation(uuid(6)))));
    assert_eq!(store.node_health(agent.id).await.unwrap(), Some((at(3), READING)));
    assert_eq!(store.token(at(20), &HASH).await.unwrap().0.owner_name, "admin");

    let machine = store.machine("m-1").await.unwrap();
    assert_eq!((machine.id, machine.lifecycle, machine.epoch), (MachineId(uuid(1)), Lifecycle::Deploying, Epoch(2)));
    assert_eq!((&machine.macs, &*machine.inventory), (&vec![mac(1), mac(2)], &inventory(1)));
    assert_eq!((machine.stage, machine.power), (Some(Stage::Loader("snponly.efi".into())), Some(Power::On)));
    assert_eq!(store.machine("m-2").await.unwrap().lifecycle, Lifecycle::Discovered);

    let images = store.images(None, 10).await.unwrap();
    assert_eq!(images.len(), 2);
    let debian = store.image("debian-12").await.unwrap();
    assert_eq!(debian.stored().unwrap().manifest, Digest([3; 32]));
    assert!(matches!(store.image("broken").await.unwrap().state, ImageState::Failed { .. }));

    let runs = store.runs_in_progress().await.unwrap();
    let [run] = runs.as_slice() else { panic!("{runs:?}") };
    assert_eq!((run.machine, run.epoch, run.status), (machine.id, Epoch(2), RunStatus::Running));
    assert_eq!(machine.order, Some(order(run.id)));
    // The engine goes on from what is stored.
    assert!(run.engine.resume(SystemClock::default().now()).position().is_some());
    let events = store.events(0, &EventFilter::default(), 100).await.unwrap();
    assert!(events.iter().any(|event| event.body == Happened::Adopted));
    assert!(events.iter().any(|event| matches!(event.body, Happened::Told(What::Failed { .. }))));
    let mut tx = store.begin().await.unwrap();
    let command = tx.command(run.id, "network-boot 1").await.unwrap().unwrap();
    assert_eq!((command.action, command.outcome), (Action::NetworkBoot, Some(Outcome::Failed("no answer".into()))));
    assert_eq!(tx.redeem(at(30), &HASH, AgentId(uuid(8)), [10, 0, 0, 1].into()).await.unwrap(), rack.id);
}

fn order(run: RunId) -> Order {
    let work = Work::Deploy(Deploy { manifest: Digest([3; 32]), disk: DiskRule::Identity("S1".into()), host: host() });
    Order { run, attempt: 2, disks: vec!["S1".into(), "T1".into()], work }
}

fn wanted() -> Intent {
    let machine = MachineIntent {
        id: MachineId(uuid(1)),
        name: "m-1".into(),
        macs: vec![mac(1), mac(2)],
        address: [10, 77, 0, 101].into(),
        epoch: Epoch(2),
        boot: Boot::Installer,
        order: Some(order(RunId(uuid(5)))),
    };
    let erased = Order { work: Work::Erase, ..order(RunId(uuid(6))) };
    let second = MachineIntent {
        id: MachineId(uuid(2)),
        macs: vec![mac(3)],
        address: [10, 77, 0, 102].into(),
        boot: Boot::Disk,
        order: Some(erased),
        ..machine.clone()
    };
    Intent {
        revision: 9,
        rack: RackId(uuid(3)),
        name: "r1".into(),
        network: network(),
        machines: vec![machine, second],
    }
}

fn events() -> Vec<Event> {
    let event = |what| Event { at: at(0), machine: Some(MachineId(uuid(1))), what };
    let address = [10, 77, 0, 101].into();
    vec![
        event(What::Stage(Stage::RomDhcp(Firmware::Uefi))),
        event(What::Connected { mac: mac(1), address, inventory: inventory(1) }),
        event(What::Progress { run: RunId(uuid(5)), done: 1, total: 2 }),
        Event { machine: None, ..event(What::Node(READING)) },
    ]
}

fn command(n: u8) -> Command {
    Command {
        id: CommandId(uuid(n)),
        machine: MachineId(uuid(1)),
        epoch: Epoch(2),
        within: std::time::Duration::from_secs(60),
        action: Action::PowerCycle,
    }
}

const LEASE: Holder = Holder {
    machine: MachineId(uuid::Uuid::from_bytes([8; 16])),
    mac: Mac([2, 0, 0, 0, 0, 8]),
    address: Ipv4Addr::new(10, 77, 0, 108),
};

async fn fill_node(dir: &Path) {
    let database = spool::open_database(&dir.join("agent.redb")).unwrap();
    let timelines = Timelines::open(&database).unwrap();
    let spool = Spool::within(database.clone(), 1000, Some(timelines)).unwrap();
    let ledger = Ledger::open(database, spool.clone(), at(0)).await.unwrap();
    ledger.welcomed(7).await.unwrap();
    spool.append(events()).await.unwrap();
    spool.take(uuid(7), 1, events()).await.unwrap();
    for n in [1, 2] {
        assert_eq!(ledger.accept(&command(n), at(1)).await.unwrap(), Begun::Fresh);
        ledger.begin(command(n).id).await.unwrap();
    }
    ledger.end(command(1).id, command(1).machine, Outcome::Done, at(2)).await.unwrap();
    spool.acknowledge(2).await.unwrap();
    drop((spool, ledger));

    let store = intent::Store::open(dir).unwrap();
    store.store(wanted()).await.unwrap();
    let database = spool::open_database(&dir.join("boot.redb")).unwrap();
    let spool = Spool::open(&dir.join("events.redb"), 1000).unwrap();
    let leases = Leases::open(database.clone(), store.subscribe()).unwrap();
    leases.commit(vec![LEASE], Vec::new()).await.unwrap();
    let clock = Arc::new(SystemClock::default());
    let tickets = Tickets::open(clock.now(), database.clone()).unwrap();
    let ticket = tickets.mint(clock.now(), MachineId(uuid(1)), mac(1)).await.unwrap().unwrap();
    tickets.present(clock.now(), hex(&ticket), mac(1), KeyPin([6; 32])).await.unwrap();
    let sessions = Sessions::open(database, clock, spool.clone()).unwrap();
    sessions.connected(MachineId(uuid(1)), mac(1), [10, 77, 0, 101].into(), None, inventory(1), None).await.unwrap();
    let done = What::Failed { run: RunId(uuid(5)), attempt: 1, cause: Cause::Image, detail: "x".into() };
    sessions.ended_order(MachineId(uuid(1)), RunId(uuid(5)), 1, vec![done]).await.unwrap();
}

async fn read_node(dir: &Path) {
    let database = spool::open_database(&dir.join("agent.redb")).unwrap();
    let timelines = Timelines::open(&database).unwrap();
    assert!(timelines.events(MachineId(uuid(1))).len() >= 3);
    let spool = Spool::within(database.clone(), 1000, Some(timelines)).unwrap();
    let ledger = Ledger::open(database, spool.clone(), at(3)).await.unwrap();
    assert_eq!(ledger.connection().await.unwrap(), 7);
    assert_eq!(ledger.accept(&command(1), at(3)).await.unwrap(), Begun::Known(Outcome::Done));
    // It had begun when the power went.
    assert_eq!(ledger.accept(&command(2), at(3)).await.unwrap(), Begun::Known(Outcome::Unknown));
    let (first, batch) = spool.batch(100).await.unwrap();
    assert_eq!((first, &batch[..3]), (2, &events()[1..]));
    // Boot's events up to number four were taken.
    assert_eq!(spool.take(uuid(7), 1, events()).await.unwrap(), 5);

    let store = intent::Store::open_for(dir, RackId(uuid(3))).unwrap();
    assert_eq!(store.current().as_deref(), Some(&wanted()));
    let database = spool::open_database(&dir.join("boot.redb")).unwrap();
    let spool = Spool::open(&dir.join("events.redb"), 1000).unwrap();
    let leases = Leases::open(database.clone(), store.subscribe()).unwrap();
    assert_eq!(leases.all(), [LEASE]);
    let clock = Arc::new(SystemClock::default());
    let tickets = Tickets::open(clock.now(), database.clone()).unwrap();
    assert_eq!(tickets.session(KeyPin([6; 32])).map(|session| session.machine), Some(MachineId(uuid(1))));
    let sessions = Sessions::open(database, clock, spool.clone()).unwrap();
    assert_eq!(sessions.ended(MachineId(uuid(1))), Some((RunId(uuid(5)), 1)));
    let (first, batch) = spool.batch(100).await.unwrap();
    assert_eq!(first, 1);
    assert!(batch.iter().any(|event| matches!(event.what, What::Connected { .. })), "{batch:?}");
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
