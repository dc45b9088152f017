//! The queries on a database of its own per test.

use super::*;

use std::net::Ipv4Addr;

use rackhand_common::{
    erasure::{Certificate, DriveErasure, FORMAT},
    event::{Cause, Event, NodeHealth, Outcome, What},
    id::{AgentId, Epoch, MachineId, RackId, RunId},
    image::{Digest, Settings},
    intent::{self, Boot, DiskRule, Host, Network, Order},
    machine::{Content, Cpu, Disk, Firmware, Inventory, Mac, Nic, Power, System},
    pki::KeyPin,
    seal::Seal,
    wire::{Action, Hello},
};
use rackhand_controller_core::{
    access::Sight,
    ipam::{Family, Kind},
    lifecycle::Lifecycle,
    workflow::{self, Step, WaitFor},
};

use crate::verbs::{Accept, Denied, DeployRequest};

/// The database a test is on.
#[derive(Clone, Copy, Debug)]
pub(crate) enum On {
    Sqlite,
    Postgres,
}

/// Where a test's own database is, as long as it is.
pub(crate) struct Ground {
    dir: tempfile::TempDir,
    server: Option<rackhand_postgres::Database>,
}

impl Ground {
    pub(crate) fn new(on: On) -> Self {
        let server = match on {
            On::Sqlite => None,
            On::Postgres => Some(rackhand_postgres::Server::of_this_process().database(migrate)),
        };
        Self { dir: tempfile::tempdir().unwrap(), server }
    }

    pub(crate) fn place(&self) -> Place {
        match &self.server {
            None => self.file().into(),
            Some(_) => Place::of_url(&self.url(), None).unwrap(),
        }
    }

    /// The URL, where it is on a server.
    pub(crate) fn url(&self) -> String {
        self.server.as_ref().unwrap().url()
    }

    /// Says something to the server, as its superuser.
    pub(crate) fn say(&self, words: &str) -> anyhow::Result<String> {
        self.server.as_ref().unwrap().say(words)
    }

    /// A directory of the test's own.
    pub(crate) fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    /// The file, where it is one.
    pub(crate) fn file(&self) -> std::path::PathBuf {
        self.dir.path().join("test.db")
    }

    pub(crate) async fn store(&self) -> Store {
        Store::open(self.place(), Seal::new(&[7; 32])).await.unwrap()
    }
}

/// Brings a database to the present schema, for others to be copies of it.
fn migrate(url: &str) {
    let place = Place::of_url(url, None).unwrap();
    let migrated = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { Database::open(&place).await.unwrap().close().await })
    });
    migrated.join().unwrap();
}

/// Makes two tests of each function, on SQLite and on PostgreSQL; one that is in no list is never
/// used, which the compiler tells.
macro_rules! on_both {
    (in parallel: $($test:ident),* $(,)?) => {
        mod in_parallel {
            on_both! { @ sqlite Sqlite [tokio::test(flavor = "multi_thread", worker_threads = 4)] $($test)* }
            on_both! { @ postgres Postgres [tokio::test(flavor = "multi_thread", worker_threads = 4)] $($test)* }
            use super::*;
        }
    };
    ($($test:ident),* $(,)?) => {
        on_both! { @ sqlite Sqlite [tokio::test] $($test)* }
        on_both! { @ postgres Postgres [tokio::test] $($test)* }
    };
    (@ $module:ident $on:ident [$attribute:meta] $($test:ident)*) => {
        mod $module {
            $(
                #[$attribute]
                async fn $test() {
                    super::$test($crate::store::tests::On::$on).await;
                }
            )*
        }
    };
}
pub(crate) use on_both;

/// A database with a rack and its agent.
pub(crate) struct Bench {
    pub(crate) ground: Ground,
    pub(crate) store: Store,
    pub(crate) rack: RackId,
    pub(crate) agent: AgentId,
}

/// A certificate of erasure.
pub(crate) fn erasure(run: RunId, machine: MachineId, drive: DriveErasure) -> Certificate {
    Certificate {
        format: FORMAT.into(),
        erasure: uuid::Uuid::now_v7(),
        run,
        machine,
        machine_name: "m100".into(),
        rack_name: "lab".into(),
        signed: at(9),
        drive,
    }
}

pub(crate) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

/// A private pool without anything, for whoever sets it up.
pub(crate) fn new_pool<'a>(name: &'a str, vrf: &'a Vrf, family: Family) -> NewPool<'a> {
    NewPool {
        name,
        vrf,
        family,
        kind: Kind::Private,
        within: Within::Everywhere,
        quarantine: 0,
        purpose: "",
        blocks: None,
        carved: None,
        grants: &[],
    }
}

pub(crate) fn mac(last: u8) -> Mac {
    Mac([0x52, 0x54, 0, 0, 0, last])
}

pub(crate) fn address(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, last)
}

pub(crate) fn inventory(last: u8) -> Inventory {
    let disk = Disk {
        name: "vda".to_owned(),
        model: "disk".to_owned(),
        serial: format!("S{last}"),
        wwn: None,
        size: 8 << 30,
        sector: 512,
        rotational: false,
        content: Content::Blank,
    };
    Inventory {
        firmware: Firmware::Bios,
        system: System::default(),
        cpu: Cpu::default(),
        memory: 1 << 30,
        nics: vec![Nic { name: "eth0".to_owned(), mac: mac(last), driver: "virtio_net".to_owned(), link: true }],
        disks: vec![disk],
    }
}

impl Bench {
    pub(crate) async fn new(on: On) -> Self {
        let ground = Ground::new(on);
        let store = ground.store().await;
        let agent = AgentId::fresh();
        let mut tx = store.begin().await.unwrap();
        let rack = tx.insert_rack(at(0), "r1", DEFAULT_SITE, &network()).await.unwrap();
        tx.insert_agent(at(0), agent, rack, KeyPin([0; 32]), at(0)).await.unwrap();
        tx.commit().await.unwrap();
        Self { ground, store, rack, agent }
    }

    /// A second rack in the same database, and its agent.
    pub(crate) async fn another_rack(&self) -> (RackId, AgentId) {
        let agent = AgentId::fresh();
        let mut tx = self.store.begin().await.unwrap();
        let rack = tx.insert_rack(at(0), "r2", DEFAULT_SITE, &network()).await.unwrap();
        tx.insert_agent(at(0), agent, rack, KeyPin([1; 32]), at(0)).await.unwrap();
        tx.commit().await.unwrap();
        (rack, agent)
    }

    /// A row for a discovered machine with this number.
    pub(crate) fn machine(&self, number: u8) -> Machine {
        Machine {
            id: MachineId::fresh(),
            rack: self.rack,
            project: None,
            name: format!("m{number}"),
            lifecycle: Lifecycle::Discovered,
            epoch: Epoch(1),
            boot: Boot::Installer,
            address: address(number),
            macs: vec![mac(number)],
            inventory: inventory(number).into(),
            accepted: None,
            connection: 0,
            connected: true,
            power: Some(Power::On),
            stage: None,
            stage_event: 0,
            power_event: 0,
            order: None,
            image: None,
            alert: None,
            held: None,
            uninspected: None,
            rescue: None,
            created: at(0),
            updated: at(0),
            version: 1,
        }
    }

    pub(crate) async fn insert(&self, machine: &Machine) -> Result<(), StoreError> {
        let mut tx = self.store.begin().await?;
        tx.insert_machine(machine).await?;
        tx.commit().await
    }

    pub(crate) async fn adopted(&self, number: u8) -> Machine {
        let machine = self.machine(number);
        self.insert(&machine).await.unwrap();
        let mut tx = self.store.begin().await.unwrap();
        let machine = tx.adopt(at(1), &machine, Accept::default()).await.unwrap();
        tx.commit().await.unwrap();
        machine
    }

    pub(crate) async fn deploy(&self, machine: &Machine) -> Result<Run, Denied> {
        let mut tx = self.store.begin().await.unwrap();
        let image = match tx.image("debian-12").await {
            Ok(image) => image,
            Err(_) => {
                let id = tx
                    .start_import(
                        at(0),
                        &NewImage { name: "debian-12", settings: Settings::Cidata, os: None },
                        "storing",
                        0,
                    )
                    .await
                    .unwrap();
                let stored = Stored {
                    manifest: Digest::of(b"manifest"),
                    size: 1 << 30,
                    stored: 1,
                    sector: 512,
                    firmware: vec![Firmware::Bios],
                    sha256: String::new(),
                };
                tx.finish_import(id, &stored).await.unwrap();
                tx.image("debian-12").await.unwrap()
            }
        };
        let host = Host { name: "web".to_owned(), ssh_keys: Vec::new(), user_data: Some("password".to_owned()) };
        let run = tx.start_deploy(at(2), machine, &image, DeployRequest { disk: DiskRule::Smallest, host }).await?;
        tx.commit().await.unwrap();
        Ok(run)
    }
}

fn network() -> SoundNetwork {
    let network = Network {
        node: "10.77.0.1/24".parse().unwrap(),
        gateway: None,
        dns: Vec::new(),
        delegated: (address(100), address(150)),
    };
    SoundNetwork::try_from(network).unwrap()
}

async fn a_machine_is_read_as_it_was_written(on: On) {
    let bench = Bench::new(on).await;
    let mut machine = bench.machine(100);
    machine.macs.push(mac(7));
    bench.insert(&machine).await.unwrap();
    assert_eq!(bench.store.machine("m100").await.unwrap(), machine);

    (machine.name, machine.alert, machine.boot) = ("web".to_owned(), Some("look".to_owned()), Boot::Disk);
    (machine.connected, machine.connection, machine.stage_event, machine.power_event) = (false, 3, 4, 5);
    machine.macs = vec![mac(9), mac(100)];
    let stale = machine.clone();
    let mut tx = bench.store.begin().await.unwrap();
    tx.update_machine(at(9), &mut machine).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!((machine.version, machine.updated), (2, at(9)));
    assert_eq!(bench.store.machine(&machine.id.to_string()).await.unwrap(), machine);
    assert!(matches!(bench.store.machine("m100").await, Err(StoreError::NotFound(_))));

    let mut stale = Machine { alert: None, ..stale };
    let mut tx = bench.store.begin().await.unwrap();
    assert!(matches!(tx.update_machine(at(9), &mut stale).await, Err(StoreError::Changed(_))));
    assert_eq!(tx.machine_by_macs(bench.rack, &[mac(7), mac(9)]).await.unwrap().unwrap().id, machine.id);
    assert_eq!(tx.machine_by_macs(bench.rack, &[mac(7)]).await.unwrap(), None);
    assert_eq!(tx.machine_by_address(bench.rack, address(100)).await.unwrap().unwrap().id, machine.id);
}

async fn a_name_an_address_and_a_mac_are_one_machines(on: On) {
    let bench = Bench::new(on).await;
    bench.insert(&bench.machine(100)).await.unwrap();
    let other = bench.machine(101);
    for twin in [
        Machine { name: "m100".to_owned(), ..other.clone() },
        Machine { address: address(100), ..other.clone() },
        Machine { macs: vec![mac(101), mac(100)], ..other.clone() },
    ] {
        assert!(matches!(bench.insert(&twin).await, Err(StoreError::Taken(_))), "{twin:?}");
    }
    bench.insert(&other).await.unwrap();
}

async fn machines_racks_runs_and_events_are_read_page_by_page(on: On) {
    let bench = Bench::new(on).await;
    let (mut machines, mut runs, mut racks) = (Vec::new(), Vec::new(), vec![bench.rack]);
    for number in 100..105 {
        let machine = bench.adopted(number).await;
        runs.insert(0, bench.deploy(&machine).await.unwrap().id);
        machines.push(machine.id);
        let mut tx = bench.store.begin().await.unwrap();
        racks.push(tx.insert_rack(at(0), &format!("rack {number}"), DEFAULT_SITE, &network()).await.unwrap());
        tx.commit().await.unwrap();
        // PostgreSQL takes nothing in a transaction behind a statement that failed.
        let mut tx = bench.store.begin().await.unwrap();
        assert!(matches!(tx.insert_rack(at(0), "r1", DEFAULT_SITE, &network()).await, Err(StoreError::Taken(_))));
    }
    machines.sort();
    runs.sort();
    runs.reverse();
    racks.sort();

    let mut seen = Vec::new();
    while let Some(machine) = {
        let order = MachineOrder::Discovered(seen.last().copied());
        bench.store.machines(&MachineFilter::of(bench.rack), order, 1).await.unwrap().pop()
    } {
        seen.push(machine.id);
    }
    assert_eq!(seen, machines);
    let elsewhere = racks.iter().copied().find(|id| *id != bench.rack);
    assert_eq!(
        bench.store.machines(&MachineFilter::of(elsewhere.unwrap()), MachineOrder::default(), 9).await.unwrap(),
        []
    );
    let mut seen = Vec::new();
    while let Some(run) = bench.store.runs(&Sight::ALL, None, seen.last().copied(), 1).await.unwrap().pop() {
        seen.push(run.id);
    }
    assert_eq!(seen, runs);
    assert_eq!(bench.store.runs(&Sight::ALL, Some(machines[2]), None, 9).await.unwrap().len(), 1);
    let mut seen = Vec::new();
    while let Some(rack) = bench.store.racks(&Sight::ALL, seen.last().copied(), 1).await.unwrap().pop() {
        seen.push(rack.id);
    }
    assert_eq!(seen, racks);

    // Per machine: adopted, run started.
    let all = bench.store.events(0, &EventFilter::default(), 99).await.unwrap();
    assert_eq!(all.len(), 10);
    assert!(all.windows(2).all(|pair| pair[0].id < pair[1].id));
    assert_eq!(bench.store.events(all[6].id, &EventFilter::default(), 2).await.unwrap(), all[7..9]);
    let (rack, machine, run) = (Some(bench.rack), Some(machines[1]), Some(runs[1]));
    for (filter, count) in [
        (EventFilter { rack, ..EventFilter::default() }, 10),
        (EventFilter { rack, machine, ..EventFilter::default() }, 2),
        (EventFilter { run, ..EventFilter::default() }, 1),
        (EventFilter { rack: elsewhere, machine, ..EventFilter::default() }, 0),
    ] {
        assert_eq!(bench.store.events(0, &filter, 99).await.unwrap().len(), count, "{filter:?}");
    }
    assert_eq!(bench.store.newest_event().await.unwrap(), all[9].id);
}

async fn a_machine_has_one_run_in_progress(on: On) {
    let bench = Bench::new(on).await;
    let machine = bench.adopted(100).await;
    let mut run = bench.deploy(&machine).await.unwrap();
    assert_eq!(bench.store.run(run.id).await.unwrap(), run);
    assert_eq!(bench.store.machine("m100").await.unwrap().epoch, Epoch(2));
    let mut tx = bench.store.begin().await.unwrap();
    let second = Run { id: RunId::fresh(), ..run.clone() };
    assert!(matches!(tx.insert_run(&second).await, Err(StoreError::Taken(_))));
    drop(tx);

    (run.status, run.step, run.attempt, run.undoing) = (RunStatus::Failed, None, 2, true);
    (run.waiting_for, run.waiting_until) = (Some(WaitFor::System), Some(at(77)));
    (run.detail, run.cause, run.ended, run.updated) =
        (Some("it".to_owned()), Some("power".to_owned()), Some(at(5)), at(5));
    let mut tx = bench.store.begin().await.unwrap();
    tx.save_run(at(5), &run).await.unwrap();
    tx.forget_user_data(&mut run).await.unwrap();
    tx.insert_run(&second).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(bench.store.run(run.id).await.unwrap(), run);
    let Parameters::Deploy(deploy) = &run.parameters else { panic!() };
    assert_eq!(deploy.host.user_data, None);
    assert_eq!(bench.store.runs_in_progress().await.unwrap(), [second]);
}

async fn what_a_rack_tells_of_a_run_is_kept_only_while_it_runs_and_never_goes_back(on: On) {
    let bench = Bench::new(on).await;
    let machine = bench.adopted(100).await;
    let other = bench.adopted(101).await;
    let mut run = bench.deploy(&machine).await.unwrap();
    let failed =
        |attempt| OrderResult { attempt, end: OrderEnd::Failed { cause: Cause::Image, detail: "x".to_owned() } };
    let done = |attempt| OrderResult { attempt, end: OrderEnd::Done(Vec::new()) };
    let mut tx = bench.store.begin().await.unwrap();
    tx.run_result(at(3), other.id, run.id, &done(1)).await.unwrap();
    tx.run_result(at(3), machine.id, RunId::fresh(), &done(1)).await.unwrap();
    tx.run_phoned_home(at(3), other.id, run.id).await.unwrap();
    tx.run_progress(at(3), other.id, run.id, 1, 2).await.unwrap();
    assert_eq!(tx.run(run.id).await.unwrap(), run);
    tx.run_result(at(3), machine.id, run.id, &done(2)).await.unwrap();
    tx.run_result(at(3), machine.id, run.id, &failed(1)).await.unwrap();
    tx.run_result(at(3), machine.id, run.id, &failed(2)).await.unwrap();
    tx.run_progress(at(3), machine.id, run.id, 1, 2).await.unwrap();
    let now = tx.run(run.id).await.unwrap();
    assert_eq!((now.result, now.done, now.total, now.phoned_home), (Some(done(2)), 1, 2, false));
    run.status = RunStatus::Done;
    tx.save_run(at(4), &run).await.unwrap();
    tx.run_phoned_home(at(5), machine.id, run.id).await.unwrap();
    tx.run_result(at(5), machine.id, run.id, &failed(3)).await.unwrap();
    tx.run_progress(at(5), machine.id, run.id, 2, 2).await.unwrap();
    let now = tx.run(run.id).await.unwrap();
    assert_eq!((now.result, now.done, now.phoned_home), (Some(done(2)), 1, false));
}

async fn a_command_is_issued_once_per_purpose_and_its_first_outcome_stands(on: On) {
    let bench = Bench::new(on).await;
    let machine = bench.adopted(100).await;
    let run = bench.deploy(&machine).await.unwrap();
    let mut tx = bench.store.begin().await.unwrap();
    assert!(!tx.has_open_command(run.id).await.unwrap());
    let command = tx.issue(at(3), &run, "restart", Action::NetworkBoot).await.unwrap();
    assert_eq!(tx.issue(at(4), &run, "restart", Action::NetworkBoot).await.unwrap(), command);
    assert_eq!((command.epoch, command.after), (Epoch(2), 2));
    assert!(tx.has_open_command(run.id).await.unwrap());
    tx.command_sent(at(5), command.id).await.unwrap();
    assert_eq!(tx.command_ended(RackId::fresh(), command.id, &Outcome::Done).await.unwrap(), None);
    for outcome in [Outcome::Unknown, Outcome::Done] {
        let known = tx.command_ended(bench.rack, command.id, &outcome).await.unwrap().unwrap();
        assert_eq!((known.outcome, known.sent), (Some(Outcome::Unknown), Some(at(5))));
    }
    assert!(!tx.has_open_command(run.id).await.unwrap());
    assert_eq!(tx.command(run.id, "another").await.unwrap(), None);
}

async fn a_nodes_newest_health_replaces_the_one_before(on: On) {
    let bench = Bench::new(on).await;
    assert_eq!(bench.store.node_health(bench.agent).await.unwrap(), None);
    for load in [1, 2] {
        let health = NodeHealth { load, memory: (1, 2), disk: (1, 2), uptime: 1 };
        let event = rackhand_common::event::Event { at: at(1), machine: None, what: What::Node(health.clone()) };
        crate::events::take(
            &bench.store,
            &crate::events::unsigned,
            bench.rack,
            bench.agent,
            u64::from(load),
            vec![event],
        )
        .await
        .unwrap();
        assert_eq!(bench.store.node_health(bench.agent).await.unwrap(), Some((at(1), health)));
    }
    assert_eq!(bench.store.newest_event().await.unwrap(), 0);
}

#[tokio::test]
async fn secrets_in_clear_are_sealed_when_the_database_is_opened_and_only_the_same_key_opens_them() {
    const CANARY: &str = "canary-7d1f-in-user-data";
    let bench = Bench::new(On::Sqlite).await;
    let file = bench.ground.file();
    let machine = bench.adopted(1).await;
    let run = bench.deploy(&machine).await.unwrap();
    // As an earlier version left it.
    let Parameters::Deploy(mut deploy) = run.parameters.clone() else { panic!("{run:?}") };
    deploy.host.user_data = Some(CANARY.to_owned());
    let order = Order {
        run: run.id,
        attempt: 1,
        disks: vec!["S1".to_owned()],
        work: rackhand_common::intent::Work::Deploy(rackhand_common::intent::Deploy {
            manifest: deploy.manifest,
            disk: DiskRule::Smallest,
            host: deploy.host.clone(),
        }),
    };
    let parameters = Parameters::Deploy(deploy);
    query("UPDATE runs SET parameters = $1").bind(json(&parameters)).execute(&bench.store.pool).await.unwrap();
    query("UPDATE machines SET orders = $1").bind(json(&order)).execute(&bench.store.pool).await.unwrap();
    query("DELETE FROM seal").execute(&bench.store.pool).await.unwrap();
    bench.store.close().await;
    let is_there = || {
        let entries = std::fs::read_dir(bench.ground.dir.path()).unwrap();
        entries
            .map(|entry| std::fs::read(entry.unwrap().path()).unwrap())
            .any(|bytes| bytes.windows(CANARY.len()).any(|window| window == CANARY.as_bytes()))
    };
    assert!(is_there());

    for _ in 0..2 {
        let store = Store::open(&file, Seal::new(&[7; 32])).await.unwrap();
        assert!(!is_there());
        assert_eq!(store.run(run.id).await.unwrap().parameters, parameters);
        assert_eq!(store.machine(&machine.name).await.unwrap().order, Some(order.clone()));
        store.close().await;
        assert!(!is_there());
    }
    let other = Store::open(&file, Seal::new(&[8; 32])).await;
    assert!(matches!(other, Err(StoreError::OtherKey)), "{other:?}");
}

async fn a_key_is_registered_when_it_is_used_and_the_one_before_it_until_then(on: On) {
    let bench = Bench::new(on).await;
    let [one, two, three] = [0, 2, 3].map(|n| KeyPin([n; 32]));
    let agent = async || bench.store.agent(bench.agent).await.unwrap();
    let issue = async |key| {
        let mut tx = bench.store.begin().await.unwrap();
        tx.issued(bench.agent, key, at(9)).await.unwrap();
        tx.commit().await.unwrap();
    };
    let connect = async |key| {
        let mut tx = bench.store.begin().await.unwrap();
        let incarnation = rackhand_common::id::Incarnation::fresh();
        let hello = Hello { incarnation, version: "1".to_owned(), revision: 0, connection: 0 };
        tx.welcome(at(1), bench.agent, (key, None), &hello).await.unwrap();
        tx.commit().await.unwrap();
    };
    issue(two).await;
    assert!(agent().await.has(one) && agent().await.has(two));
    // The answer was lost: it comes with the old one again, and gets a third.
    connect(one).await;
    issue(three).await;
    assert!(agent().await.has(one) && agent().await.has(three) && !agent().await.has(two));
    connect(three).await;
    assert!(agent().await.has(three) && !agent().await.has(one));

    let mut tx = bench.store.begin().await.unwrap();
    assert!(tx.revoke(at(2), bench.agent).await.unwrap());
    assert!(!tx.revoke(at(3), bench.agent).await.unwrap());
    assert!(matches!(tx.issued(bench.agent, one, at(9)).await, Err(StoreError::NotFound(_))));
    tx.commit().await.unwrap();
    assert_eq!(agent().await.revoked, Some(at(2)));
}

async fn a_node_is_given_up_once_and_its_codes_and_connections_count_on(on: On) {
    use crate::succession::{NotReplaced, Which};
    let bench = Bench::new(on).await;
    let hello = |connection| {
        let incarnation = rackhand_common::id::Incarnation::fresh();
        Hello { incarnation, version: "1".to_owned(), revision: 0, connection }
    };
    let mut tx = bench.store.begin().await.unwrap();
    let before = tx.welcome(at(1), bench.agent, (KeyPin([0; 32]), None), &hello(41)).await.unwrap();
    tx.insert_code(at(1), &[1; 32], bench.rack, at(100), None).await.unwrap();
    let given_up = tx.replace_node(at(2), &Which::Agent(bench.agent), "admin").await.unwrap();
    assert_eq!((given_up.rack, given_up.agent, given_up.unknown), (bench.rack, Some(bench.agent), 0));
    tx.insert_code(at(2), &[2; 32], bench.rack, at(100), None).await.unwrap();
    // Again, before anybody has enrolled: nothing is left to revoke, and the code before is void.
    let again = tx.replace_node(at(3), &Which::Agent(bench.agent), "admin").await.unwrap();
    assert_eq!(again.agent, None);
    tx.insert_code(at(3), &[3; 32], bench.rack, at(100), None).await.unwrap();
    let new = AgentId::fresh();
    for void in [1, 2] {
        assert!(matches!(tx.redeem(at(4), &[void; 32], new, [10, 0, 0, 1].into()).await, Err(StoreError::NotFound(_))));
    }
    assert_eq!(tx.redeem(at(4), &[3; 32], new, [10, 0, 0, 1].into()).await.unwrap(), bench.rack);
    assert_eq!(tx.insert_agent(at(4), new, bench.rack, KeyPin([1; 32]), at(9)).await.unwrap(), []);
    let after = tx.welcome(at(5), new, (KeyPin([1; 32]), None), &hello(0)).await.unwrap();
    assert!(after.connection > before.connection, "{} after {}", after.connection, before.connection);

    // Whoever says it again of the old one does not lose the new one.
    let refused = tx.replace_node(at(6), &Which::Agent(bench.agent), "admin").await;
    assert!(matches!(refused, Err(NotReplaced::Before { by, .. }) if by == new), "{refused:?}");
    assert_eq!(tx.agent(new).await.unwrap().revoked, None);
    let by_rack = tx.replace_node(at(7), &Which::Rack("r1".to_owned()), "admin").await.unwrap();
    assert_eq!(by_rack.agent, Some(new));
    tx.commit().await.unwrap();
}

/// A disk whose space is what the test says, and whose commits fail when it says so.
#[derive(Debug)]
struct Narrow {
    space: std::sync::Mutex<Space>,
    fails: std::sync::atomic::AtomicBool,
}

impl Gate for Narrow {
    fn space(&self) -> Space {
        *self.space.lock().unwrap()
    }

    fn before(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async { Ok(()) })
    }

    fn after(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async {
            match self.fails.load(std::sync::atomic::Ordering::Relaxed) {
                true => Err(StoreError::from(std::io::Error::from_raw_os_error(5))),
                false => Ok(()),
            }
        })
    }
}

#[tokio::test]
async fn a_full_disk_is_named_takes_nothing_and_is_as_before_once_there_is_room() {
    let bench = Bench::new(On::Sqlite).await;
    let disk = Arc::new(Narrow { space: std::sync::Mutex::new(Space::Room), fails: false.into() });
    let store = bench.store.clone().gated(disk.clone());
    let events = |from: u64| {
        let told = |number| Event {
            at: at(0),
            machine: None,
            what: What::TicketRefused { reason: format!("{number} {}", "x".repeat(2000)) },
        };
        (from..from + 20).map(told).collect::<Vec<_>>()
    };
    let take = async |first| {
        crate::events::take(&store, &crate::events::unsigned, bench.rack, bench.agent, first, events(first)).await
    };
    let next = take(1).await.unwrap();
    let kept = store.newest_event().await.unwrap();

    for (space, reason, text) in [
        (Space::Full, "the disk of the database is full", "the disk of the controller's database is full"),
        (Space::ReadOnly, "the database cannot be written", "the controller's database cannot be written"),
    ] {
        *disk.space.lock().unwrap() = space;
        let error = take(next).await.unwrap_err();
        assert!(error.is_passing() && error.to_string().starts_with(text), "{error}");
        assert_eq!(store.unwritable(), Some(reason));
        assert_eq!(store.newest_event().await.unwrap(), kept, "nothing of it is there");
    }

    *disk.space.lock().unwrap() = Space::Room;
    let next = take(next).await.unwrap();
    assert_eq!(next, 41);
    assert_eq!(store.unwritable(), None);

    // Stored, and told that it was not: told again, it is not taken a second time.
    disk.fails.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(take(next).await.unwrap_err().is_passing());
    disk.fails.store(false, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(take(next).await.unwrap(), 61);
    let all = store.events(0, &EventFilter::default(), 1000).await.unwrap();
    assert_eq!(all.len(), 60);
}

#[tokio::test]
async fn a_transaction_that_sqlite_rolled_back_by_itself_spoils_no_connection() {
    let bench = Bench::new(On::Sqlite).await;
    for _ in 0..8 {
        let mut tx = bench.store.begin().await.unwrap();
        query("ROLLBACK").execute(&mut tx.inner).await.unwrap();
        assert!(tx.commit().await.is_err());
    }
    for _ in 0..8 {
        bench.store.begin().await.unwrap().commit().await.unwrap();
    }
}

/// Adds a field that this version does not know to every structure; an object of one field may be
/// an enum's kind, and a duration's form is the standard library's.
fn raise(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(fields) => {
            fields.values_mut().for_each(raise);
            if fields.len() > 1 && !fields.contains_key("nanos") {
                fields.insert("came_later".to_owned(), serde_json::json!({ "of": [1, "next"] }));
            }
        }
        serde_json::Value::Array(values) => values.iter_mut().for_each(raise),
        _ => {}
    }
}

/// A run that waits in its first step.
async fn waiting(bench: &Bench) -> Run {
    let machine = bench.adopted(100).await;
    let mut run = bench.deploy(&machine).await.unwrap();
    let now = rackhand_common::time::Now { mono: Default::default(), wall: at(3) };
    let mut engine = workflow::Run::new(workflow::Workflow::Deploy);
    let waiting = workflow::Report::Waiting { waiting: WaitFor::Dhcp, detail: "on".to_owned(), mark: 3 };
    assert_eq!(engine.record(now, waiting), []);
    (run.engine, run.waiting_for, run.step) = (engine.store(now), Some(WaitFor::Dhcp), Some(Step::BootInstaller));
    let mut tx = bench.store.begin().await.unwrap();
    tx.save_run(at(2), &run).await.unwrap();
    let mut machine = tx.machine("m100").await.unwrap();
    let work = intent::Work::Erase;
    machine.order = Some(intent::Order { run: run.id, attempt: 1, disks: vec!["S100".to_owned()], work });
    tx.update_machine(at(3), &mut machine).await.unwrap();
    let result = OrderResult { attempt: 1, end: OrderEnd::Failed { cause: Cause::Image, detail: "x".to_owned() } };
    tx.run_result(at(3), machine.id, run.id, &result).await.unwrap();
    tx.commit().await.unwrap();
    bench.store.run(run.id).await.unwrap()
}

#[tokio::test]
async fn rows_of_the_next_version_with_further_fields_in_them_are_read_fully() {
    let bench = Bench::new(On::Sqlite).await;
    let run = waiting(&bench).await;
    let mut tx = bench.store.begin().await.unwrap();
    let vrf = tx.vrf("default").await.unwrap();
    let proof = Proof { kind: ProofKind::Loa, reference: "ticket 7".into(), state: ProofState::Pending };
    let source = Source::Customer { name: "shop".into(), proof };
    tx.add_aggregate(at(1), &vrf, "198.51.100.0/24".parse().unwrap(), &source).await.unwrap();
    tx.commit().await.unwrap();
    let all = async || {
        let machines = bench.store.machines(&MachineFilter::default(), MachineOrder::default(), 10).await.unwrap();
        let events = bench.store.events(0, &EventFilter::default(), 100).await.unwrap();
        let images = bench.store.images(None, 10).await.unwrap();
        let racks = bench.store.racks(&Sight::ALL, None, 10).await.unwrap();
        let aggregates = bench.store.aggregates(None, 10).await.unwrap();
        (bench.store.run(run.id).await.unwrap(), machines, format!("{events:?} {images:?} {racks:?} {aggregates:?}"))
    };
    let before = all().await;
    let Database::Sqlite(pool) = &bench.store.pool else { panic!("{:?}", bench.store) };
    let columns: Vec<(String, String)> = sqlx::query_as(
        "SELECT tables.name, columns.name FROM sqlite_master tables JOIN pragma_table_info(tables.name) columns
         WHERE tables.type = 'table' AND tables.name NOT LIKE '\\_%' ESCAPE '\\'
         AND tables.sql NOT LIKE '%WITHOUT ROWID%'", // Those have no structures in them.
    )
    .fetch_all(pool)
    .await
    .unwrap();
    let mut raised = std::collections::BTreeSet::new();
    for (table, column) in columns {
        let select = format!("SELECT rowid, {column} FROM {table} WHERE typeof({column}) = 'text'");
        let update = format!("UPDATE {table} SET {column} = $2 WHERE rowid = $1");
        let rows: Vec<(i64, String)> = sqlx::query_as(sqlx::AssertSqlSafe(select)).fetch_all(pool).await.unwrap();
        for (row, text) in rows {
            let Ok(mut value) = serde_json::from_str(&text) else { continue };
            raise(&mut value);
            let later = value.to_string();
            if later.contains("came_later") {
                raised.insert(format!("{table}.{column}"));
                let query = sqlx::query(sqlx::AssertSqlSafe(update.clone())).bind(row).bind(later);
                query.execute(pool).await.unwrap();
            }
        }
    }
    for column in [
        "machines.inventory",
        "machines.orders",
        "runs.parameters",
        "runs.engine",
        "racks.network",
        "aggregates.source",
    ] {
        assert!(raised.contains(column), "{column} is not among {raised:?}");
    }
    assert_eq!(all().await, before);
}

async fn a_run_that_waits_for_what_only_a_later_version_knows_is_read_and_goes_on(on: On) {
    let bench = Bench::new(on).await;
    let run = waiting(&bench).await;
    let later = "UPDATE runs SET waiting_for = 'fabric', engine = replace(engine, '\"dhcp\"', '\"fabric\"')";
    assert_eq!(query(later).execute(&bench.store.pool).await.unwrap().rows_affected(), 1);
    let runs = bench.store.runs_in_progress().await.unwrap();
    let [read] = runs.as_slice() else { panic!("{runs:?}") };
    assert_ne!(read.engine, run.engine);
    assert_eq!((read.id, read.waiting_for), (run.id, Some(WaitFor::Controller)));
    let now = rackhand_common::time::Now { mono: Default::default(), wall: at(4) };
    let next = read.engine.resume(now).next(now);
    assert_eq!(next, workflow::Next::Do { step: Step::BootInstaller, attempt: 1 });
}

on_both! {
    a_machine_is_read_as_it_was_written,
    a_name_an_address_and_a_mac_are_one_machines,
    machines_racks_runs_and_events_are_read_page_by_page,
    a_machine_has_one_run_in_progress,
    what_a_rack_tells_of_a_run_is_kept_only_while_it_runs_and_never_goes_back,
    a_command_is_issued_once_per_purpose_and_its_first_outcome_stands,
    a_nodes_newest_health_replaces_the_one_before,
    a_key_is_registered_when_it_is_used_and_the_one_before_it_until_then,
    a_node_is_given_up_once_and_its_codes_and_connections_count_on,
    a_run_that_waits_for_what_only_a_later_version_knows_is_read_and_goes_on,
}
