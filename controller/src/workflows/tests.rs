//! The runner over a simulated rack: a node that has its intent, a ledger and one machine.

use super::*;

use std::{
    collections::{BTreeMap, VecDeque},
    future::poll_fn,
    pin::pin,
    task::Poll,
};

use expect_test::{Expect, expect};
use rackhand_common::{
    commission,
    erasure::{Class, DriveErasure},
    event::{DiskWork, Event, Outcome, Stage, What},
    id::{AgentId, CommandId, Epoch, MachineId},
    image::{Digest, Settings},
    intent::{DiskRule, Host},
    machine::{Content, Cpu, Disk, Firmware, Inventory, Mac, Nic, Power, System},
    pki::KeyPin,
    time::Mono,
    wire::Action,
};
use rackhand_controller_core::{access::Sight, lifecycle::Lifecycle};

use crate::{
    intent,
    store::{
        DEFAULT_SITE, EventFilter, NewImage, PowerChange, SoundNetwork, Stored,
        tests::{Ground, On, on_both},
    },
    succession::Which,
    verbs::{Accept, Denied, DeployRequest},
};

mod bmc;
mod commissioning;
mod firmware;
mod ladder;
mod reinstall;
mod rescue;
mod retry;

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
    /// Commands take this many turns.
    delay: u32,
    /// The system calls home only when it is about to be switched off and on.
    late: bool,
    /// The machine is reset in the middle of its first order.
    resets: bool,
    /// The installer falls silent in the middle of its first order.
    vanishes: bool,
    /// A disk is told not to be erased, and the order to be done all the same.
    remnant: bool,
    /// Tests fail.
    flaw: bool,
    /// Only this command has the machine ask the network.
    comes_by: Option<Action>,
    /// The machine cannot be started by this one.
    lacks: Option<Action>,
}

struct Node {
    rack: RackId,
    agent: Mutex<AgentId>,
    machine: MachineId,
    store: Store,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    behaviour: Behaviour,
    next: u64,
    events: Vec<What>,
    turn: u32,
    ledger: BTreeMap<CommandId, Option<Outcome>>,
    /// Accepted, and the turn they are performed in.
    pending: VecDeque<(u32, Command)>,
    network_boots: u32,
    /// Commands that its BMC took from nobody.
    refused: u32,
    /// What was done, in order.
    sent: Vec<Action>,
    installer: bool,
    worked: Option<(RunId, u32)>,
    written: Option<RunId>,
    writes: Vec<(Epoch, &'static str)>,
    bmc: bmc::Simulated,
    firmware: firmware::Simulated,
}

impl Commands for Arc<Node> {
    async fn reachable(&self, _: RackId) -> Result<(), Unreachable> {
        let away = self.state.lock().unwrap().behaviour.unreachable;
        if away { Err(Unreachable { rack: "r1".to_owned() }) } else { Ok(()) }
    }

    async fn command(&self, rack: RackId, command: Command) -> Result<ControllerResponse, Unreachable> {
        assert_eq!(rack, self.rack);
        let row = self.store.machine(&command.machine.to_string()).await.unwrap();
        self.check_command(&row, &command).await;
        let mut state = self.state.lock().unwrap();
        if state.behaviour.unreachable {
            return Err(Unreachable { rack: "r1".to_owned() });
        }
        match state.ledger.get(&command.id) {
            Some(Some(outcome)) => return Ok(ControllerResponse::Known(outcome.clone())),
            Some(None) => return Ok(ControllerResponse::Accepted),
            None => {}
        }
        assert_eq!(row.epoch, command.epoch, "a command of another epoch");
        if state.behaviour.unknown {
            state.behaviour.unknown = false;
            state.end(command.id, Outcome::Unknown);
        } else {
            state.ledger.insert(command.id, None);
            let due = state.turn + state.behaviour.delay;
            state.pending.push_back((due, command));
        }
        Ok(ControllerResponse::Accepted)
    }

    async fn baseline(
        &self,
        rack: RackId,
        machine: MachineId,
        epoch: Epoch,
        ask: Ask,
    ) -> Result<Option<Answered>, Unreachable> {
        assert_eq!((rack, machine), (self.rack, self.machine));
        let row = self.store.machine(&machine.to_string()).await.unwrap();
        assert_eq!(row.epoch, epoch, "a BMC is put back in another epoch");
        assert_ne!(row.lifecycle, Lifecycle::Active, "the BMC of an active machine is put back");
        Ok(Some(self.state.lock().unwrap().bmc.answer(ask)))
    }

    async fn firmware(
        &self,
        rack: RackId,
        machine: MachineId,
        epoch: Epoch,
        ask: rackhand_common::firmware::Ask,
    ) -> Result<Option<rackhand_common::firmware::Answered>, Unreachable> {
        assert_eq!((rack, machine), (self.rack, self.machine));
        let row = self.store.machine(&machine.to_string()).await.unwrap();
        assert_eq!(row.epoch, epoch, "firmware is updated in another epoch");
        assert!(row.project.is_none(), "firmware of somebody's machine is updated");
        Ok(Some(self.state.lock().unwrap().firmware.answer(ask)))
    }

    fn wake(&self, _: RackId) {}
}

impl Node {
    /// P1: whatever changes the power of an active machine belongs to a run that its owner
    /// asked for since it became active. There, only power runs, reinstalls and rescues can be in progress.
    async fn check_command(&self, row: &Machine, command: &Command) {
        if !matches!(row.lifecycle, Lifecycle::Active | Lifecycle::Rescue) || command.action == Action::PowerStatus {
            return;
        }
        let runs = self.store.runs_in_progress().await.unwrap();
        let [run] = runs.as_slice() else { panic!("{:?} of an active machine without a run", command.action) };
        assert_eq!(run.epoch, row.epoch);
        match run.parameters {
            Parameters::Power(change) => assert_eq!(change.action(), command.action),
            Parameters::Reinstall(_) | Parameters::Rescue(_) | Parameters::LeaveRescue => {}
            _ => panic!("{:?} of an active machine", command.action),
        }
    }

    /// P1: an active machine is told nothing but to start its own disk, unless its owner has another
    /// system put on it, and for as long as a part of one may be on it.
    async fn check_intent(&self) {
        // At one moment: what a killed pass was committing may still be on its way.
        let mut tx = self.store.begin().await.unwrap();
        let row = tx.machine(&self.machine.to_string()).await;
        let Ok(row) = row else { return };
        let told = intent::machine(&row);
        match row.lifecycle {
            Lifecycle::Active => {
                let latest = self.store.runs(&Sight::ALL, Some(self.machine), None, 1).await.unwrap().remove(0);
                let is_reinstall = matches!(latest.parameters, Parameters::Reinstall(_));
                let is_rescue = matches!(latest.parameters, Parameters::Rescue(_));
                match (told.boot, told.order) {
                    (Boot::Installer, order) if is_rescue && latest.status == RunStatus::Running => {
                        assert!(order.is_none_or(|order| order.run == latest.id && order.work.rescue().is_some()));
                    }
                    (Boot::Disk, None) => assert!(!is_reinstall || latest.step != Some(Step::WriteImage)),
                    (Boot::Installer, Some(order)) => {
                        assert!(is_reinstall && latest.status == RunStatus::Running && order.run == latest.id);
                        assert!(matches!(latest.step, Some(Step::WriteImage)) && latest.epoch == row.epoch);
                    }
                    (Boot::Installer, None) => {
                        assert!(is_reinstall && (latest.status == RunStatus::Running || may_have_written(&latest)));
                    }
                    told => panic!("{told:?}"),
                }
            }
            // Whatever is wanted of it, nothing is that writes.
            Lifecycle::Rescue => match (told.boot, told.order) {
                (Boot::Installer, order) => assert!(order.is_none_or(|order| order.work.rescue().is_some())),
                (Boot::Disk, order) => assert_eq!(order, None),
            },
            Lifecycle::Deploying | Lifecycle::Releasing => {
                let Some(order) = told.order else { return };
                let run = tx.run(order.run).await.unwrap();
                assert_eq!((run.status, run.epoch), (RunStatus::Running, row.epoch));
                // Only after the installer was there for it.
                assert!(!matches!(run.step, Some(Step::BootInstaller | Step::RestartInstaller)));
            }
            // Nothing is done to a machine that nobody has but tests, updates and what its BMC needs, while their run goes on.
            _ => {
                assert_eq!(told.boot, Boot::Installer);
                let Some(order) = told.order else { return };
                let run = tx.run(order.run).await.unwrap();
                assert_eq!((run.status, run.epoch), (RunStatus::Running, row.epoch));
                let work = &order.work;
                assert!(work.test().is_some() || work.firmware().is_some() || work.regains_bmc(), "{work:?}");
            }
        }
    }

    /// Performs the commands that are due.
    async fn perform(&self) {
        self.check_intent().await;
        loop {
            let command = {
                let mut state = self.state.lock().unwrap();
                let turn = state.turn;
                match state.pending.front() {
                    Some((due, _)) if *due <= turn => state.pending.pop_front().unwrap().1,
                    _ => break,
                }
            };
            let row = self.store.machine(&command.machine.to_string()).await.unwrap();
            if row.epoch == command.epoch {
                self.check_command(&row, &command).await;
                self.state.lock().unwrap().act(&command);
            } else {
                self.state.lock().unwrap().end(command.id, Outcome::Refused("another epoch".to_owned()));
            }
        }
        self.state.lock().unwrap().turn += 1;
    }

    /// Tells what happened, then lets the machine do what its intent says.
    async fn settle(&self) {
        self.perform().await;
        let (intent, ..) = intent::of(&self.store, self.rack).await.unwrap();
        let wanted = intent.machines.iter().find(|machine| machine.id == self.machine).cloned();
        let (first, events) = {
            let mut state = self.state.lock().unwrap();
            let cycled = state.pending.iter().any(|(_, command)| command.action == Action::PowerCycle);
            if let Some(run) = state.written.filter(|_| state.behaviour.late && cycled) {
                state.behaviour.late = false;
                state.events.push(What::PhonedHome { run });
            }
            let has = |wanted: fn(&Stage) -> bool| {
                state.events.iter().any(|what| matches!(what, What::Stage(stage) if wanted(stage)))
            };
            let booting = has(|stage| matches!(stage, Stage::RomDhcp(_)));
            let admitted = has(|stage| *stage == Stage::Installer);
            let told: Vec<What> = state.events.drain(..).collect();
            if booting && wanted.as_ref().is_none_or(|machine| machine.boot == Boot::Installer) {
                state.events.push(What::Stage(Stage::Installer));
            }
            // Its inventory comes in another batch than its admission.
            if admitted {
                state.installer = true;
                state.events.extend([What::Stage(Stage::Inventoried), connection()]);
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
        let agent = *self.agent.lock().unwrap();
        // Sent twice, as after a lost acknowledgement.
        for _ in 0..2 {
            crate::events::take(&self.store, &crate::events::unsigned, self.rack, agent, first, events.clone())
                .await
                .unwrap();
        }
    }
}

impl State {
    fn end(&mut self, command: CommandId, outcome: Outcome) {
        self.ledger.insert(command, Some(outcome.clone()));
        self.events.push(What::Commanded { command, outcome });
    }

    fn act(&mut self, command: &Command) {
        self.sent.push(command.action);
        if self.bmc.denies() {
            self.refused += 1;
            if self.refused == 3 {
                // Somebody goes there.
                self.installer = false;
                self.events.extend([What::Stage(Stage::PoweredOn), What::Stage(Stage::RomDhcp(Firmware::Bios))]);
            }
            return self.end(command.id, Outcome::Refused("by its BMC: denied".to_owned()));
        }
        if self.behaviour.lacks == Some(command.action) {
            return self.end(command.id, Outcome::Unsupported("as the test wants".to_owned()));
        }
        match command.action {
            Action::EndBoot => {}
            Action::PowerStatus => self.events.push(What::Power(Power::On)),
            Action::PowerOff => self.events.push(What::Power(Power::Off)),
            Action::PowerOn => self.events.push(What::Power(Power::On)),
            Action::NetworkBoot | Action::HttpBoot | Action::LastingNetworkBoot | Action::MediaBoot => {
                self.network_boots += 1;
                self.bmc.start();
                self.installer = false;
                self.events.push(What::Stage(Stage::PoweredOn));
                if self.behaviour.comes_by.is_none_or(|comes_by| comes_by == command.action) {
                    self.events.push(What::Stage(Stage::RomDhcp(Firmware::Bios)));
                }
            }
            Action::PowerCycle => {
                self.installer = false;
                self.events.push(What::Stage(Stage::PoweredOn));
            }
        }
        self.end(command.id, Outcome::Done);
    }

    fn work(&mut self, machine: &rackhand_common::intent::MachineIntent) {
        match &machine.order {
            Some(order) if self.worked != Some((order.run, order.attempt)) && !self.behaviour.hangs => {
                let (run, attempt) = (order.run, order.attempt);
                if self.behaviour.resets || self.behaviour.vanishes {
                    self.installer = false;
                    self.events.push(What::Stage(Stage::OrderStarted(run)));
                    self.events.push(What::Progress { run, done: 1, total: 2 });
                    self.events.push(if self.behaviour.resets {
                        What::Stage(Stage::RomDhcp(Firmware::Bios))
                    } else {
                        What::Lost
                    });
                    (self.behaviour.resets, self.behaviour.vanishes) = (false, false);
                    return;
                }
                self.worked = Some((run, attempt));
                if order.work.rescue().is_none() {
                    self.events.push(What::Stage(Stage::OrderStarted(run)));
                }
                if let Some((_, cause)) = self.behaviour.failing.filter(|(until, _)| attempt <= *until) {
                    self.events.push(What::Failed { run, attempt, cause, detail: "as the test wants".to_owned() });
                    return;
                }
                if order.work.regains_bmc() {
                    assert!(order.disks.is_empty());
                    let told = self.bmc.regained().then_some(What::Done { run, attempt, disks: Vec::new() });
                    let detail = "no place is left\n\nits log".to_owned();
                    self.events.push(told.unwrap_or(What::Failed { run, attempt, cause: event::Cause::Bmc, detail }));
                    return;
                }
                if let Some(test) = order.work.test() {
                    for script in &test.scripts {
                        let (failed, passed) = (commission::Outcome::Failed, commission::Outcome::Passed);
                        let outcome = if self.behaviour.flaw { failed } else { passed };
                        let reason = if self.behaviour.flaw { "as the test wants" } else { "" };
                        let known = commission::script(script).unwrap();
                        let tested = Box::new(known.not_run(outcome, reason, at(0).wall));
                        self.events.push(What::Tested { run, attempt, tested });
                    }
                    self.events.push(What::Done { run, attempt, disks: Vec::new() });
                    return;
                }
                if let Some(update) = order.work.firmware() {
                    let updated = Box::new(self.firmware.told_by_installer(update));
                    self.events.push(What::Updated { run, attempt, updated });
                    return;
                }
                if order.work.rescue().is_some() {
                    self.events.push(rescue::login(run, attempt, 'A'));
                    return;
                }
                let work = if order.work.deploy().is_none() { "overwrite" } else { "image" };
                self.writes.push((machine.epoch, work));
                self.written = Some(run).filter(|_| work == "image");
                let disk = DiskWork { disk: order.disks[0].clone(), method: work.to_owned(), bytes: 1, verified: 1 };
                self.events.push(What::Progress { run, done: 1, total: 1 });
                if self.behaviour.remnant {
                    let drive = DriveErasure {
                        method: None,
                        class: Class::None,
                        reason: Some("it lies".to_owned()),
                        ..DriveErasure::example(&order.disks[0])
                    };
                    self.events.push(What::Erased { run, attempt, drive: Box::new(drive) });
                }
                self.events.push(What::Done { run, attempt, disks: vec![disk] });
            }
            None if machine.boot == Boot::Disk => {
                self.installer = false;
                self.events.push(What::Stage(Stage::Rebooting));
                self.events.push(What::Stage(Stage::OsDhcp));
                if let Some(run) = self.written.filter(|_| !self.behaviour.silent && !self.behaviour.late) {
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
    ground: Ground,
    store: Store,
    node: Arc<Node>,
    clock: Arc<Hand>,
    runner: Runner<Arc<Node>>,
    process: Process,
    cancel_at: Option<u32>,
    turns: u32,
}

/// How the controller's process lives.
#[derive(Clone, Copy, Debug)]
enum Process {
    Steady,
    /// Starts again before every look at its runs.
    Restarts,
    /// Killed in the middle of every look, anywhere; the state of a generator.
    Killed(u64),
}

impl Process {
    const ALL: [Self; 4] = [Self::Steady, Self::Restarts, Self::Killed(1), Self::Killed(2)];
}

/// Polls `future` at most so often, then drops it.
async fn up_to(polls: u64, future: impl Future) {
    let (mut future, mut left) = (pin!(future), polls);
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(());
        }
        left -= 1;
        future.as_mut().poll(context).map(drop)
    })
    .await;
}

impl World {
    /// A rack with one machine, discovered and adopted, and an image.
    async fn new(on: On, behaviour: Behaviour) -> Self {
        let ground = Ground::new(on);
        let store = ground.store().await;
        let network = rackhand_common::intent::Network {
            node: "10.77.0.1/24".parse().unwrap(),
            gateway: None,
            dns: Vec::new(),
            delegated: ("10.77.0.100".parse().unwrap(), "10.77.0.150".parse().unwrap()),
        };
        let (now, agent) = (at(0).wall, AgentId::fresh());
        let mut tx = store.begin().await.unwrap();
        let rack = tx.insert_rack(now, "r1", DEFAULT_SITE, &SoundNetwork::try_from(network).unwrap()).await.unwrap();
        tx.insert_agent(now, agent, rack, KeyPin([0; 32]), now).await.unwrap();
        let image = tx
            .start_import(now, &NewImage { name: "debian-12", settings: Settings::Cidata, os: None }, "storing", 0)
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
        tx.finish_import(image, &stored).await.unwrap();
        tx.commit().await.unwrap();
        let state = State { next: 1, installer: true, events: vec![connection()], ..State::default() };
        let (agent, state, machine) = (Mutex::new(agent), Mutex::new(state), MachineId::fresh());
        let node = Arc::new(Node { rack, agent, machine, store: store.clone(), state });
        let clock = Arc::new(Hand::default());
        let runner = runner(&store, &node, &clock);
        let world = Self { ground, store, node, clock, runner, process: Process::Steady, cancel_at: None, turns: 0 };
        world.node.settle().await;
        let mut tx = world.store.begin().await.unwrap();
        let machine = tx.machine(&world.node.machine.to_string()).await.unwrap();
        assert_eq!((machine.lifecycle, machine.name.as_str()), (Lifecycle::Discovered, "m-3456"));
        assert!(matches!(tx.adopt(now, &machine, Accept::default()).await, Err(Denied::HasData(_))));
        tx.adopt(now, &machine, Accept { data: true, parts: false }).await.unwrap();
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
        let host = Host { name: "web".to_owned(), ssh_keys: Vec::new(), user_data: Some("passphrase ".repeat(2000)) };
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
        self.rotate().await;
        match &mut self.process {
            Process::Steady => self.runner.pass().await.unwrap(),
            Process::Restarts => {
                self.runner = runner(&self.store, &self.node, &self.clock);
                self.runner.pass().await.unwrap();
            }
            Process::Killed(state) => {
                // Knuth's generator; a look takes fewer polls than this in most cases.
                *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let polls = (*state >> 33) % 150;
                self.runner = runner(&self.store, &self.node, &self.clock);
                up_to(polls, self.runner.pass()).await;
            }
        }
        self.node.settle().await;
        *self.clock.0.lock().unwrap() += 10;
        self.turns += 1;
    }

    async fn cancel(&self, run: &Run) -> Result<Run, Denied> {
        let mut tx = self.store.begin().await.unwrap();
        let run = tx.cancel(at(0).wall, run.id).await?;
        tx.commit().await.unwrap();
        Ok(run)
    }

    async fn finish(&mut self, run: &Run) -> Run {
        for _ in 0..3000 {
            let now = self.store.run(run.id).await.unwrap();
            if now.status != RunStatus::Running {
                if let Some(deploy) = now.parameters.install() {
                    assert_eq!(deploy.host.user_data, None);
                }
                let stays = matches!(now.parameters, Parameters::Rescue(_)) && now.status == RunStatus::Done;
                assert_eq!(self.machine().await.order.is_some(), stays);
                return now;
            }
            if self.cancel_at == Some(self.turns) {
                self.cancel(run).await.unwrap();
            }
            self.turn().await;
        }
        panic!("the run never ended: {:?}", self.store.run(run.id).await);
    }
}

fn runner(store: &Store, node: &Arc<Node>, clock: &Arc<Hand>) -> Runner<Arc<Node>> {
    Runner::new(Workflows::new(), store.clone(), node.clone(), clock.clone(), AT_ONCE)
}

async fn a_machine_is_deployed_and_released_also_when_the_runner_restarts_at_every_pass(on: On) {
    for process in Process::ALL {
        let mut world = World::new(on, Behaviour::default()).await;
        world.process = process;
        let run = world.deploy().await;
        assert_eq!(world.finish(&run).await.status, RunStatus::Done);
        let machine = world.machine().await;
        assert_eq!((machine.lifecycle, machine.boot, machine.order.is_some()), (Lifecycle::Active, Boot::Disk, false));
        assert_eq!(machine.image.clone().unwrap().to_string(), "debian-12@1");

        let run = world.release().await;
        assert_eq!(world.finish(&run).await.status, RunStatus::Done);
        let machine = world.machine().await;
        assert_eq!((machine.lifecycle, machine.connected, machine.image), (Lifecycle::Ready, true, None));
        let state = world.node.state.lock().unwrap();
        assert_eq!(state.network_boots, 1);
        assert_eq!(state.writes, [(Epoch(2), "image"), (Epoch(3), "overwrite")]);
    }
}

async fn an_order_that_fails_for_its_image_is_given_once_more(on: On) {
    for (until, status) in [(1, RunStatus::Done), (2, RunStatus::Failed)] {
        let mut world =
            World::new(on, Behaviour { failing: Some((until, event::Cause::Image)), ..Behaviour::default() }).await;
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

async fn a_release_that_fails_ends_in_quarantine_and_names_why(on: On) {
    let mut world = World::new(on, Behaviour::default()).await;
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

async fn a_machine_of_which_a_disk_is_not_known_to_be_clean_is_not_ready_whatever_else_was_told(on: On) {
    let mut world = World::new(on, Behaviour::default()).await;
    let run = world.deploy().await;
    world.finish(&run).await;
    world.node.state.lock().unwrap().behaviour.remnant = true;
    let run = world.release().await;
    let run = world.finish(&run).await;
    assert_eq!((run.status, run.cause.as_deref()), (RunStatus::Failed, Some("verify")));
    assert_eq!(run.detail.as_deref(), Some("not every disk is known to be erased: disk/S1"));
    assert_eq!(world.machine().await.lifecycle, Lifecycle::Quarantined);
}

async fn an_installer_that_hangs_is_restarted_before_the_machine_is_ready_again(on: On) {
    let mut world = World::new(on, Behaviour { hangs: true, ..Behaviour::default() }).await;
    let run = world.deploy().await;
    let run = world.finish(&run).await;
    assert_eq!((run.status, run.cause.as_deref()), (RunStatus::Failed, Some("overdue")));
    assert_eq!(world.machine().await.lifecycle, Lifecycle::Ready);
    assert_eq!(world.node.state.lock().unwrap().network_boots, 1);
    let events =
        world.store.events(0, &EventFilter { run: Some(run.id), ..EventFilter::default() }, 100).await.unwrap();
    assert!(events.iter().any(|event| matches!(event.body, Happened::Alert { .. })));
}

async fn a_system_that_never_calls_home_leaves_the_machine_ready_and_in_its_installer(on: On) {
    let mut world = World::new(on, Behaviour { silent: true, ..Behaviour::default() }).await;
    let run = world.deploy().await;
    let run = world.finish(&run).await;
    assert_eq!((run.status, run.cause.as_deref()), (RunStatus::Failed, Some("overdue")));
    let machine = world.machine().await;
    assert_eq!((machine.lifecycle, machine.connected), (Lifecycle::Ready, true));
}

async fn a_cancel_waits_for_the_installer_and_leaves_the_machine_ready(on: On) {
    let mut world = World::new(on, Behaviour { hangs: true, ..Behaviour::default() }).await;
    let run = world.deploy().await;
    world.turn().await;
    world.cancel(&run).await.unwrap();
    world.turn().await;
    assert_eq!(world.store.run(run.id).await.unwrap().status, RunStatus::Running);
    world.node.state.lock().unwrap().behaviour.hangs = false;
    assert_eq!(world.finish(&run).await.status, RunStatus::Cancelled);
    let machine = world.machine().await;
    assert_eq!((machine.lifecycle, machine.order), (Lifecycle::Ready, None));
}

async fn a_run_whose_agent_is_away_says_so_and_goes_on_when_it_is_back(on: On) {
    let mut world = World::new(on, Behaviour::default()).await;
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

async fn a_cycle_whose_outcome_is_unknown_is_looked_into_and_not_done_twice(on: On) {
    let mut world = World::new(on, Behaviour { unknown: true, ..Behaviour::default() }).await;
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

/// Deploys, and releases what came of it; however the controller's process lives.
async fn check(on: On, behaviour: Behaviour, cancel_at: Option<u32>, expect: Expect) {
    let mut outs = Vec::new();
    for process in Process::ALL {
        let mut world = World::new(on, behaviour).await;
        (world.process, world.cancel_at) = (process, cancel_at);
        let mut out = String::new();
        for verb in ["deploy", "release"] {
            let run = match verb {
                "deploy" => world.deploy().await,
                _ if world.machine().await.lifecycle == Lifecycle::Ready => break,
                _ => world.release().await,
            };
            let run = world.finish(&run).await;
            // What was sent late has its effect now, if it has one.
            for _ in 0..10 {
                world.turn().await;
            }
            let why = match (&run.cause, &run.detail) {
                (Some(cause), Some(detail)) => format!(" ({cause}: {detail})"),
                _ => String::new(),
            };
            out += &format!("{verb} {}{why}: {}\n", run.status.word(), world.machine().await.lifecycle);
        }
        let state = world.node.state.lock().unwrap();
        out += &format!("network boots: {}\n", state.network_boots);
        outs.push(out);
    }
    for (process, out) in Process::ALL.iter().zip(&outs) {
        assert_eq!(outs[0], *out, "{process:?}");
    }
    expect.assert_eq(&outs[0]);
}

async fn a_system_that_calls_home_while_it_is_switched_off_is_handed_over_afterwards(on: On) {
    check(
        on,
        Behaviour { late: true, delay: 4, ..Behaviour::default() },
        None,
        expect![[r#"
            deploy done: active
            release done: ready
            network boots: 1
        "#]],
    )
    .await;
}

async fn a_machine_reset_in_mid_write_is_given_the_same_order_again(on: On) {
    check(
        on,
        Behaviour { resets: true, ..Behaviour::default() },
        None,
        expect![[r#"
            deploy done: active
            release done: ready
            network boots: 1
        "#]],
    )
    .await;
}

async fn an_installer_that_falls_silent_in_mid_write_is_brought_back_and_goes_on(on: On) {
    check(
        on,
        Behaviour { vanishes: true, ..Behaviour::default() },
        None,
        expect![[r#"
            deploy done: active
            release done: ready
            network boots: 2
        "#]],
    )
    .await;
}

async fn an_agent_that_dies_in_a_restart_is_looked_into_before_another(on: On) {
    check(
        on,
        Behaviour { unknown: true, ..Behaviour::default() },
        None,
        expect![[r#"
            deploy done: active
            release done: ready
            network boots: 1
        "#]],
    )
    .await;
}

async fn slow_commands_are_waited_for(on: On) {
    check(
        on,
        Behaviour { delay: 7, ..Behaviour::default() },
        None,
        expect![[r#"
            deploy done: active
            release done: ready
            network boots: 1
        "#]],
    )
    .await;
}

async fn an_image_that_never_arrives_fails_the_deploy(on: On) {
    check(
        on,
        Behaviour { failing: Some((2, event::Cause::Image)), ..Behaviour::default() },
        None,
        expect![[r#"
            deploy failed (image: as the test wants; the disk may hold an unfinished system): ready
            network boots: 0
        "#]],
    )
    .await;
}

async fn disks_that_differ_fail_the_deploy_before_anything_is_written(on: On) {
    check(
        on,
        Behaviour { failing: Some((9, event::Cause::DisksDiffer)), ..Behaviour::default() },
        None,
        expect![[r#"
            deploy failed (disks_differ: as the test wants): ready
            network boots: 0
        "#]],
    )
    .await;
}

async fn a_hanging_installer_fails_the_deploy(on: On) {
    check(on, Behaviour { hangs: true, ..Behaviour::default() }, None, expect![[r#"
        deploy failed (overdue: waited for image stream too long: installer has not begun; the disk may hold an unfinished system): ready
        network boots: 1
    "#]]).await;
}

async fn a_silent_system_fails_the_deploy(on: On) {
    check(on, Behaviour { silent: true, ..Behaviour::default() }, None, expect![[r#"
        deploy failed (overdue: waited for POST too long: powered on, has not asked for an address; the disk holds a system that was never handed over): ready
        network boots: 1
    "#]]).await;
}

async fn a_cancel_at_once_undoes_the_deploy(on: On) {
    check(
        on,
        Behaviour { hangs: true, ..Behaviour::default() },
        Some(0),
        expect![[r#"
            deploy cancelled (cancelled: cancelled by an operator): ready
            network boots: 0
        "#]],
    )
    .await;
}

async fn a_cancel_at_any_moment_ends_in_a_named_state(on: On) {
    for cancel_at in 0..6 {
        for delay in [0, 3] {
            let mut world = World::new(on, Behaviour { late: true, delay, ..Behaviour::default() }).await;
            (world.process, world.cancel_at) = (Process::Killed(u64::from(cancel_at)), Some(cancel_at));
            let run = world.deploy().await;
            let run = world.finish(&run).await;
            assert_eq!(run.status, RunStatus::Cancelled, "at {cancel_at}");
            assert_eq!(world.machine().await.lifecycle, Lifecycle::Ready, "at {cancel_at}");
        }
    }
}

async fn a_power_command_that_comes_late_does_not_reach_the_system_deployed_meanwhile(on: On) {
    for process in Process::ALL {
        // Longer than a power run waits, shorter than the deploy and the turns after it.
        let mut world = World::new(on, Behaviour { delay: 45, ..Behaviour::default() }).await;
        world.process = process;
        let mut tx = world.store.begin().await.unwrap();
        let machine = tx.machine("m-3456").await.unwrap();
        let run = tx.start_power(at(0).wall, &machine, PowerChange::Off).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(world.finish(&run).await.cause.as_deref(), Some("overdue"));
        let run = world.deploy().await;
        assert_eq!(world.finish(&run).await.status, RunStatus::Done);
        for _ in 0..50 {
            world.turn().await;
        }
        assert_eq!(world.machine().await.lifecycle, Lifecycle::Active);
        let state = world.node.state.lock().unwrap();
        let refused = |outcome: &Option<Outcome>| matches!(outcome, Some(Outcome::Refused(_)));
        assert!(state.ledger.values().any(refused), "{:?}", state.ledger);
    }
}

async fn the_owner_of_an_active_machine_switches_its_power_once(on: On) {
    for process in Process::ALL {
        let mut world = World::new(on, Behaviour { delay: 3, ..Behaviour::default() }).await;
        world.process = process;
        let run = world.deploy().await;
        world.finish(&run).await;
        let mut tx = world.store.begin().await.unwrap();
        let machine = tx.machine("m-3456").await.unwrap();
        let run = tx.start_power(at(0).wall, &machine, PowerChange::Off).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(world.finish(&run).await.status, RunStatus::Done);
        let machine = world.machine().await;
        assert_eq!((machine.lifecycle, machine.power), (Lifecycle::Active, Some(Power::Off)));
        assert_eq!(world.node.state.lock().unwrap().ledger.len(), 1);
    }
}

#[tokio::test]
async fn user_data_is_sealed_in_the_database_and_gone_from_it_after_the_run() {
    let mut world = World::new(On::Sqlite, Behaviour::default()).await;
    let run = world.deploy().await;
    let file = world.ground.file();
    let is_there = |text: &str| {
        let bytes = |path: &std::path::Path| std::fs::read(path).unwrap_or_default();
        let both = [bytes(&file), bytes(&file.with_extension("db-wal"))].concat();
        both.windows(text.len()).any(|window| window == text.as_bytes())
    };
    let place = format!("user-data of run {}", run.id);
    let sealed = "user_data\":\"sealed-1:";
    assert!(is_there(sealed) && !is_there("passphrase") && !is_there(&place));
    world.finish(&run).await;
    // Empties the write-ahead log.
    world.store.close().await;
    assert!(!is_there(sealed) && !is_there("passphrase"));
}

/// A deploy of a machine that is not in its installer, up to where the node has the command that
/// restarts it and has not told how it ended.
async fn with_a_command_in_flight(on: On) -> (World, Run) {
    let mut world = World::new(on, Behaviour { delay: 1000, ..Behaviour::default() }).await;
    let mut tx = world.store.begin().await.unwrap();
    let mut machine = tx.machine("m-3456").await.unwrap();
    machine.connected = false;
    tx.update_machine(at(0).wall, &mut machine).await.unwrap();
    tx.commit().await.unwrap();
    world.node.state.lock().unwrap().installer = false;
    let run = world.deploy().await;
    world.turn().await;
    assert_eq!(world.node.state.lock().unwrap().pending.len(), 1);
    (world, run)
}

impl World {
    /// The node burns down; what it had not told is lost.
    async fn replace_node(&self) {
        let now = self.clock.now().wall;
        let mut tx = self.store.begin().await.unwrap();
        let replaced = tx.replace_node(now, &Which::Rack("r1".to_owned()), "admin").await.unwrap();
        assert_eq!((replaced.agent, replaced.unknown), (Some(*self.node.agent.lock().unwrap()), 1));
        tx.commit().await.unwrap();
        let mut state = self.node.state.lock().unwrap();
        (state.behaviour.unreachable, state.behaviour.delay) = (true, 0);
        state.ledger.clear();
        state.pending.clear();
        state.events.clear();
    }

    /// Another one enrols.
    async fn new_node(&self) {
        let agent = AgentId::fresh();
        let mut tx = self.store.begin().await.unwrap();
        let now = self.clock.now().wall;
        assert!(tx.insert_agent(now, agent, self.node.rack, KeyPin([1; 32]), now).await.unwrap().is_empty());
        tx.commit().await.unwrap();
        *self.node.agent.lock().unwrap() = agent;
        let mut state = self.node.state.lock().unwrap();
        (state.behaviour.unreachable, state.next) = (false, 1);
    }
}

async fn a_command_of_a_node_that_is_lost_is_looked_into_by_the_node_that_follows_before_it_is_done_again(on: On) {
    let (mut world, run) = with_a_command_in_flight(on).await;
    let lost = *world.node.state.lock().unwrap().ledger.keys().next().unwrap();
    world.replace_node().await;
    // At once, not when the command's time is over: a node is waited for, to look.
    world.runner.pass().await.unwrap();
    let waiting = world.store.run(run.id).await.unwrap();
    assert_eq!(waiting.detail.as_deref(), Some("agent of rack r1 is not connected"));
    world.new_node().await;
    let replaced = world.clock.now().wall;
    world.runner.pass().await.unwrap();
    {
        let state = world.node.state.lock().unwrap();
        let actions: Vec<_> = state.pending.iter().map(|(_, command)| command.action).collect();
        assert_eq!(actions, [Action::PowerStatus]);
    }
    world.node.settle().await;
    let run = world.finish(&run).await;
    assert_eq!((run.status, world.machine().await.lifecycle), (RunStatus::Done, Lifecycle::Active));
    assert!(!world.node.state.lock().unwrap().ledger.contains_key(&lost), "the lost command was sent again");
    assert_eq!(world.node.state.lock().unwrap().network_boots, 1);
    let told = world.store.events(0, &EventFilter { run: Some(run.id), ..EventFilter::default() }, 200).await.unwrap();
    assert!(told.iter().any(|event| matches!(event.body, Happened::CommandLost { command, .. } if command == lost)));
    // The old node may be alive, and switch it still: nobody is given the machine meanwhile.
    let handed_over = Duration::try_from(run.ended.unwrap().duration_since(replaced)).unwrap();
    assert!(handed_over >= Duration::from_secs(360), "{handed_over:?}");
}

async fn a_command_that_no_node_was_offered_waits_for_the_node_that_follows(on: On) {
    let mut world = World::new(on, Behaviour::default()).await;
    let run = world.deploy().await;
    world.finish(&run).await;
    world.node.state.lock().unwrap().behaviour.unreachable = true;
    let run = world.release().await;
    world.turn().await;
    let mut tx = world.store.begin().await.unwrap();
    assert!(tx.has_open_command(run.id).await.unwrap());
    assert_eq!(tx.lose_commands(at(0).wall, run.rack).await.unwrap(), []);
    tx.commit().await.unwrap();
    world.node.state.lock().unwrap().behaviour.unreachable = false;
    let run = world.finish(&run).await;
    assert_eq!((run.status, run.attempt), (RunStatus::Done, 1));
    // The release's restart, and nothing that looks.
    assert_eq!(world.node.state.lock().unwrap().ledger.len(), 1);
}

async fn a_restart_that_the_lost_node_did_carry_out_is_not_done_again(on: On) {
    let (mut world, run) = with_a_command_in_flight(on).await;
    let started = {
        let mut state = world.node.state.lock().unwrap();
        let (_, command) = state.pending.pop_front().unwrap();
        state.act(&command);
        std::mem::take(&mut state.events)
    };
    world.replace_node().await;
    world.new_node().await;
    // It asks the network until somebody answers.
    world.node.state.lock().unwrap().events = vec![started[1].clone()];
    world.node.settle().await;
    let run = world.finish(&run).await;
    assert_eq!((run.status, world.machine().await.lifecycle), (RunStatus::Done, Lifecycle::Active));
    assert_eq!(world.node.state.lock().unwrap().network_boots, 1);
}

on_both! {
    a_command_of_a_node_that_is_lost_is_looked_into_by_the_node_that_follows_before_it_is_done_again,
    a_restart_that_the_lost_node_did_carry_out_is_not_done_again,
    a_system_that_calls_home_while_it_is_switched_off_is_handed_over_afterwards,
    a_machine_reset_in_mid_write_is_given_the_same_order_again,
    an_installer_that_falls_silent_in_mid_write_is_brought_back_and_goes_on,
    an_agent_that_dies_in_a_restart_is_looked_into_before_another,
    slow_commands_are_waited_for,
    an_image_that_never_arrives_fails_the_deploy,
    disks_that_differ_fail_the_deploy_before_anything_is_written,
    a_hanging_installer_fails_the_deploy,
    a_silent_system_fails_the_deploy,
    a_cancel_at_once_undoes_the_deploy,
    a_machine_is_deployed_and_released_also_when_the_runner_restarts_at_every_pass,
    an_order_that_fails_for_its_image_is_given_once_more,
    a_release_that_fails_ends_in_quarantine_and_names_why,
    a_machine_of_which_a_disk_is_not_known_to_be_clean_is_not_ready_whatever_else_was_told,
    an_installer_that_hangs_is_restarted_before_the_machine_is_ready_again,
    a_system_that_never_calls_home_leaves_the_machine_ready_and_in_its_installer,
    a_cancel_waits_for_the_installer_and_leaves_the_machine_ready,
    a_run_whose_agent_is_away_says_so_and_goes_on_when_it_is_back,
    a_cycle_whose_outcome_is_unknown_is_looked_into_and_not_done_twice,
    a_cancel_at_any_moment_ends_in_a_named_state,
    a_power_command_that_comes_late_does_not_reach_the_system_deployed_meanwhile,
    the_owner_of_an_active_machine_switches_its_power_once,
    a_command_that_no_node_was_offered_waits_for_the_node_that_follows,
}
