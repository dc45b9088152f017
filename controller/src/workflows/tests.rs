//! The runner over a simulated rack: a node that has its intent, a ledger and one machine.

use super::*;

use std::collections::BTreeMap;

use rackhand_common::{
    event::{self, DiskWork, Event, Outcome, Stage, What},
    id::{AgentId, CommandId, Epoch, MachineId},
    image::{Digest, Settings},
    intent::{DiskRule, Host, Work},
    machine::{Content, Cpu, Disk, Firmware, Inventory, Mac, Nic, Power, System},
    pki::KeyPin,
    time::Mono,
    wire::Action,
};
use rackhand_controller_core::lifecycle::Lifecycle;

use crate::{
    intent,
    store::{EventFilter, PowerChange, SoundNetwork, Stored},
    verbs::{Denied, DeployRequest},
};

/// How the simulated rack behaves.
#[derive(Clone, Copy, Debug, Default)]
struct Behaviour {
    /// Orders up to this try fail with this cause.
    failing: Option<(u32, event::Cause)>,
    /// The installer takes orders and never reports.
    hangs: bool,
    /// The installed system never calls home.
    silent: bool,
    /// No agent is there.
    unreachable: bool,
    /// The agent dies in the middle of its first command.
    unknown: bool,
}

struct Node {
    rack: RackId,
    agent: AgentId,
    machine: MachineId,
    store: Store,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    behaviour: Behaviour,
    next: u64,
    events: Vec<What>,
    ledger: BTreeMap<CommandId, Outcome>,
    network_boots: u32,
    installer: bool,
    worked: Option<(RunId, u32)>,
    written: Option<RunId>,
    writes: Vec<(Epoch, &'static str)>,
}

impl Commands for Arc<Node> {
    async fn command(&self, rack: RackId, command: Command) -> Result<ControllerResponse, Unreachable> {
        assert_eq!(rack, self.rack);
        let intent = intent::of(&self.store, rack).await.unwrap();
        let machine = intent.machines.iter().find(|machine| machine.id == command.machine).unwrap();
        let mut state = self.state.lock().unwrap();
        if state.behaviour.unreachable {
            return Err(Unreachable { rack: "r1".to_owned() });
        }
        if let Some(outcome) = state.ledger.get(&command.id) {
            return Ok(ControllerResponse::Known(outcome.clone()));
        }
        if machine.epoch != command.epoch {
            return Ok(ControllerResponse::Refused("another epoch".to_owned()));
        }
        if state.behaviour.unknown {
            state.behaviour.unknown = false;
            state.ledger.insert(command.id, Outcome::Unknown);
            state.events.push(What::Commanded { command: command.id, outcome: Outcome::Unknown });
            return Ok(ControllerResponse::Accepted);
        }
        state.ledger.insert(command.id, Outcome::Done);
        state.events.push(What::Commanded { command: command.id, outcome: Outcome::Done });
        match command.action {
            Action::PowerStatus => state.events.push(What::Power(Power::On)),
            Action::PowerOff => state.events.push(What::Power(Power::Off)),
            Action::PowerOn => state.events.push(What::Power(Power::On)),
            Action::NetworkBoot => {
                state.network_boots += 1;
                state.installer = false;
                state.events.push(What::Stage(Stage::PoweredOn));
                state.events.push(What::Stage(Stage::RomDhcp(Firmware::Bios)));
            }
            Action::PowerCycle => {
                state.installer = false;
                state.events.push(What::Stage(Stage::PoweredOn));
            }
        }
        Ok(ControllerResponse::Accepted)
    }

    fn wake(&self, _: RackId) {}
}

impl Node {
    /// Tells what happened, then lets the machine do what its intent says.
    async fn settle(&self) {
        let intent = intent::of(&self.store, self.rack).await.unwrap();
        let wanted = intent.machines.iter().find(|machine| machine.id == self.machine).cloned();
        let (first, events) = {
            let mut state = self.state.lock().unwrap();
            let booting = state.events.iter().any(|what| matches!(what, What::Stage(Stage::RomDhcp(_))));
            let told: Vec<What> = state.events.drain(..).collect();
            if booting && wanted.as_ref().is_none_or(|machine| machine.boot == Boot::Installer) {
                state.installer = true;
                let what = connection();
                state.events.push(what);
            }
            if let Some(machine) = wanted.filter(|_| state.installer) {
                state.work(&machine);
            }
            let first = state.next;
            state.next += told.len() as u64;
            (first, told)
        };
        let events: Vec<Event> =
            events.into_iter().map(|what| Event { at: at(0).wall, machine: Some(self.machine), what }).collect();
        // Sent twice, as after a lost acknowledgement.
        for _ in 0..2 {
            crate::events::take(&self.store, self.rack, self.agent, first, events.clone()).await.unwrap();
        }
    }
}

impl State {
    fn work(&mut self, machine: &rackhand_common::intent::MachineIntent) {
        match &machine.order {
            Some(order) if self.worked != Some((order.run, order.attempt)) && !self.behaviour.hangs => {
                let (run, attempt) = (order.run, order.attempt);
                self.worked = Some((run, attempt));
                self.events.push(What::Stage(Stage::OrderStarted(run)));
                if let Some((_, cause)) = self.behaviour.failing.filter(|(until, _)| attempt <= *until) {
                    self.events.push(What::Failed { run, attempt, cause, detail: "as the test wants".to_owned() });
                    return;
                }
                let work = if matches!(order.work, Work::Erase) { "overwrite" } else { "image" };
                self.writes.push((machine.epoch, work));
                self.written = Some(run).filter(|_| work == "image");
                let disk = DiskWork { disk: order.disks[0].clone(), method: work.to_owned(), bytes: 1, verified: 1 };
                self.events.push(What::Progress { run, done: 1, total: 1 });
                self.events.push(What::Done { run, attempt, disks: vec![disk] });
            }
            None if machine.boot == Boot::Disk => {
                self.installer = false;
                self.events.push(What::Stage(Stage::Rebooting));
                self.events.push(What::Stage(Stage::OsDhcp));
                if let Some(run) = self.written.filter(|_| !self.behaviour.silent) {
                    self.events.push(What::PhonedHome { run });
                }
            }
            _ => {}
        }
    }
}

fn connection() -> What {
    let disk = Disk {
        name: "vda".to_owned(),
        model: "disk".to_owned(),
        serial: "S1".to_owned(),
        wwn: None,
        size: 8 << 30,
        sector: 512,
        rotational: false,
        content: Content::Data("GPT, 1 partition".to_owned()),
    };
    let inventory = Inventory {
        firmware: Firmware::Bios,
        system: System::default(),
        cpu: Cpu::default(),
        memory: 1 << 30,
        nics: vec![Nic { name: "eth0".to_owned(), mac: MAC, driver: "virtio_net".to_owned(), link: true }],
        disks: vec![disk],
    };
    What::Connected { mac: MAC, address: "10.77.0.100".parse().unwrap(), inventory }
}

const MAC: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);

fn at(seconds: u64) -> Now {
    let wall = Timestamp::from_second(1_700_000_000 + seconds as i64).unwrap();
    Now { mono: Mono(Duration::from_secs(seconds)), wall }
}

#[derive(Default)]
struct Hand(Mutex<u64>);

impl Clock for Hand {
    fn now(&self) -> Now {
        at(*self.0.lock().unwrap())
    }
}

struct World {
    _dir: tempfile::TempDir,
    store: Store,
    node: Arc<Node>,
    clock: Arc<Hand>,
    runner: Runner<Arc<Node>>,
    restarts: bool,
}

impl World {
    /// A rack with one machine, discovered and adopted, and an image.
    async fn new(behaviour: Behaviour) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("test.db")).await.unwrap();
        let network = rackhand_common::intent::Network {
            node: "10.77.0.1/24".parse().unwrap(),
            gateway: None,
            dns: Vec::new(),
            delegated: ("10.77.0.100".parse().unwrap(), "10.77.0.150".parse().unwrap()),
        };
        let (now, agent) = (at(0).wall, AgentId::fresh());
        let mut tx = store.begin().await.unwrap();
        let rack = tx.insert_rack(now, "r1", &SoundNetwork::try_from(network).unwrap()).await.unwrap();
        tx.insert_agent(now, agent, rack, KeyPin([0; 32]), now).await.unwrap();
        let image = tx.start_import(now, "debian-12", Settings::Cidata, "storing", 0).await.unwrap();
        let stored = Stored {
            manifest: Digest::of(b"manifest"),
            size: 1 << 30,
            stored: 1,
            sector: 512,
            firmware: vec![Firmware::Bios],
            sha256: String::new(),
        };
        tx.finish_import(image, &stored).await.unwrap();
        tx.commit().await.unwrap();
        let state = State { next: 1, installer: true, events: vec![connection()], ..State::default() };
        let node =
            Arc::new(Node { rack, agent, machine: MachineId::fresh(), store: store.clone(), state: Mutex::new(state) });
        let clock = Arc::new(Hand::default());
        let runner = runner(&store, &node, &clock);
        let world = Self { _dir: dir, store, node, clock, runner, restarts: false };
        world.node.settle().await;
        let mut tx = world.store.begin().await.unwrap();
        let machine = tx.machine(&world.node.machine.to_string()).await.unwrap();
        assert_eq!((machine.lifecycle, machine.name.as_str()), (Lifecycle::Discovered, "m-3456"));
        assert!(matches!(tx.adopt(now, &machine, false).await, Err(Denied::HasData(_))));
        tx.adopt(now, &machine, true).await.unwrap();
        tx.commit().await.unwrap();
        world.node.state.lock().unwrap().behaviour = behaviour;
        world
    }

    async fn machine(&self) -> Machine {
        self.store.machine(&self.node.machine.to_string()).await.unwrap()
    }

    async fn deploy(&self) -> Run {
        let mut tx = self.store.begin().await.unwrap();
        let machine = tx.machine("m-3456").await.unwrap();
        let image = tx.image("debian-12").await.unwrap();
        let host = Host { name: "web".to_owned(), ssh_keys: Vec::new(), user_data: None };
        let request = DeployRequest { disk: DiskRule::Smallest, host };
        let run = tx.start_deploy(at(0).wall, &machine, &image, request).await.unwrap();
        tx.commit().await.unwrap();
        run
    }

    async fn release(&self) -> Run {
        let mut tx = self.store.begin().await.unwrap();
        let machine = tx.machine("m-3456").await.unwrap();
        let run = tx.start_release(at(0).wall, &machine).await.unwrap();
        tx.commit().await.unwrap();
        run
    }

    async fn turn(&mut self) {
        if self.restarts {
            self.runner = runner(&self.store, &self.node, &self.clock);
        }
        self.runner.pass().await.unwrap();
        self.node.settle().await;
        *self.clock.0.lock().unwrap() += 10;
    }

    async fn finish(&mut self, run: &Run) -> Run {
        for _ in 0..1500 {
            let now = self.store.run(run.id).await.unwrap();
            if now.status != RunStatus::Running {
                return now;
            }
            self.turn().await;
        }
        panic!("the run never ended: {:?}", self.store.run(run.id).await);
    }
}

fn runner(store: &Store, node: &Arc<Node>, clock: &Arc<Hand>) -> Runner<Arc<Node>> {
    Runner {
        workflows: Workflows::new(),
        store: store.clone(),
        commands: node.clone(),
        clock: clock.clone(),
        live: Mutex::default(),
    }
}

#[tokio::test]
async fn a_machine_is_deployed_and_released_also_when_the_runner_restarts_at_every_pass() {
    for restarts in [false, true] {
        let mut world = World::new(Behaviour::default()).await;
        world.restarts = restarts;
        let run = world.deploy().await;
        assert_eq!(world.finish(&run).await.status, RunStatus::Done);
        let machine = world.machine().await;
        assert_eq!((machine.lifecycle, machine.boot, machine.order.is_some()), (Lifecycle::Active, Boot::Disk, false));
        assert_eq!(machine.image.as_deref(), Some("debian-12"));

        let run = world.release().await;
        assert_eq!(world.finish(&run).await.status, RunStatus::Done);
        let machine = world.machine().await;
        assert_eq!((machine.lifecycle, machine.connected, machine.image), (Lifecycle::Ready, true, None));
        let state = world.node.state.lock().unwrap();
        assert_eq!(state.network_boots, 1);
        assert_eq!(state.writes, [(Epoch(2), "image"), (Epoch(3), "overwrite")]);
    }
}

#[tokio::test]
async fn an_order_that_fails_for_its_image_is_given_once_more() {
    for (until, status) in [(1, RunStatus::Done), (2, RunStatus::Failed)] {
        let mut world =
            World::new(Behaviour { failing: Some((until, event::Cause::Image)), ..Behaviour::default() }).await;
        let run = world.deploy().await;
        let run = world.finish(&run).await;
        assert_eq!((run.status, run.attempt.max(1)), (status, if status == RunStatus::Done { 1 } else { run.attempt }));
        let machine = world.machine().await;
        if status == RunStatus::Failed {
            assert_eq!(run.cause.as_deref(), Some("image"));
            assert_eq!((machine.lifecycle, machine.boot, machine.order), (Lifecycle::Ready, Boot::Installer, None));
        }
    }
}

#[tokio::test]
async fn a_release_that_fails_ends_in_quarantine_and_names_why() {
    let mut world = World::new(Behaviour::default()).await;
    let run = world.deploy().await;
    world.finish(&run).await;
    world.node.state.lock().unwrap().behaviour.failing = Some((9, event::Cause::Verify));
    let run = world.release().await;
    let run = world.finish(&run).await;
    assert_eq!((run.status, run.cause.as_deref()), (RunStatus::Failed, Some("verify")));
    let machine = world.machine().await;
    assert_eq!((machine.lifecycle, machine.order), (Lifecycle::Quarantined, None));
    assert!(machine.alert.unwrap().contains("verify"));
}

#[tokio::test]
async fn an_installer_that_hangs_is_restarted_before_the_machine_is_ready_again() {
    let mut world = World::new(Behaviour { hangs: true, ..Behaviour::default() }).await;
    let run = world.deploy().await;
    let run = world.finish(&run).await;
    assert_eq!((run.status, run.cause.as_deref()), (RunStatus::Failed, Some("overdue")));
    assert_eq!(world.machine().await.lifecycle, Lifecycle::Ready);
    assert_eq!(world.node.state.lock().unwrap().network_boots, 1);
    let events = world.store.events(0, EventFilter { run: Some(run.id), ..EventFilter::default() }, 100).await.unwrap();
    assert!(events.iter().any(|event| matches!(event.body, Happened::Alert { .. })));
}

#[tokio::test]
async fn a_system_that_never_calls_home_leaves_the_machine_ready_and_in_its_installer() {
    let mut world = World::new(Behaviour { silent: true, ..Behaviour::default() }).await;
    let run = world.deploy().await;
    let run = world.finish(&run).await;
    assert_eq!((run.status, run.cause.as_deref()), (RunStatus::Failed, Some("overdue")));
    let machine = world.machine().await;
    assert_eq!((machine.lifecycle, machine.connected), (Lifecycle::Ready, true));
}

#[tokio::test]
async fn a_cancel_waits_for_the_installer_and_leaves_the_machine_ready() {
    let mut world = World::new(Behaviour { hangs: true, ..Behaviour::default() }).await;
    let run = world.deploy().await;
    world.turn().await;
    let mut tx = world.store.begin().await.unwrap();
    tx.cancel(at(0).wall, run.id).await.unwrap();
    tx.commit().await.unwrap();
    world.turn().await;
    assert_eq!(world.store.run(run.id).await.unwrap().status, RunStatus::Running);
    world.node.state.lock().unwrap().behaviour.hangs = false;
    assert_eq!(world.finish(&run).await.status, RunStatus::Cancelled);
    let machine = world.machine().await;
    assert_eq!((machine.lifecycle, machine.order), (Lifecycle::Ready, None));
}

#[tokio::test]
async fn a_run_whose_agent_is_away_says_so_and_goes_on_when_it_is_back() {
    let mut world = World::new(Behaviour::default()).await;
    let run = world.deploy().await;
    world.finish(&run).await;
    world.node.state.lock().unwrap().behaviour.unreachable = true;
    let run = world.release().await;
    world.turn().await;
    let waiting = world.store.run(run.id).await.unwrap();
    assert_eq!(waiting.detail.as_deref(), Some("agent of rack r1 is not connected"));
    assert!(waiting.waiting_until.is_some());
    world.node.state.lock().unwrap().behaviour.unreachable = false;
    assert_eq!(world.finish(&run).await.status, RunStatus::Done);
}

#[tokio::test]
async fn a_cycle_whose_outcome_is_unknown_is_looked_into_and_not_done_twice() {
    let mut world = World::new(Behaviour { unknown: true, ..Behaviour::default() }).await;
    let mut tx = world.store.begin().await.unwrap();
    let machine = tx.machine("m-3456").await.unwrap();
    let run = tx.start_power(at(0).wall, &machine, PowerChange::Cycle).await.unwrap();
    assert!(matches!(tx.start_power(at(0).wall, &machine, PowerChange::On).await, Err(Denied::Busy(_))));
    tx.commit().await.unwrap();
    let run = world.finish(&run).await;
    assert_eq!((run.status, run.cause.as_deref()), (RunStatus::Failed, Some("power")));
    // The command that was lost, and the look.
    assert_eq!(world.node.state.lock().unwrap().ledger.len(), 2);
}
