//! The world of one seed: a controller, racks with their nodes and machines, operators, and a
//! queue of what happens next. One thing happens at a time, to its end, before the next does.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    task::{Context, Waker},
    time::Duration,
};

use anyhow::{Context as _, Result};
use rackhand_common::{
    event::{Event, What},
    id::AgentId,
    image::{Digest, Settings},
    intent::{Boot, DiskRule, Host, Intent, Network},
    machine::{Firmware, Power},
    pki::KeyPin,
    seal::Seal,
    time::Clock as _,
    wire::{Command, Hello},
};
use rackhand_controller::{
    events, intent,
    store::{EventFilter, PowerChange, SoundNetwork, Store, Stored},
    verbs::{Accept, Denied, DeployRequest},
    workflows::{Runner, Workflows},
};
use rackhand_controller_core::lifecycle::Lifecycle;

use crate::{
    fault::{self, Fault, Kind, MONTH, Part},
    history::History,
    hub::{Bmc, DeathGate, Done, Effect, Fate, Hub},
    machine::Machine,
    node::Node,
    oracle::{Oracles, Performance, Promise, Violation, note_text},
    plant::Plant,
    rng::Rng,
    time::{ProcessClock, Skew, Time},
};

/// How many racks, and machines in each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Racks.
    pub racks: usize,
    /// Machines in each.
    pub machines: usize,
}

/// What a run of the world is given.
#[derive(Clone, Debug)]
pub struct Options {
    /// Everything that is left to chance.
    pub seed: u64,
    /// How long operators and faults go on; then all comes to rest.
    pub length: Duration,
    /// The faults, when they are not the seed's.
    pub faults: Option<Vec<Fault>>,
    /// A planted bug.
    pub plant: Option<Plant>,
}

impl Options {
    /// The usual world of a seed.
    pub fn of(seed: u64, length: Duration) -> Self {
        Self { seed, length, faults: None, plant: None }
    }
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// What happened.
    pub history: String,
    /// What did not hold.
    pub violations: Vec<Violation>,
    /// What went wrong on purpose.
    pub faults: Vec<Fault>,
    /// What it was worth.
    pub tally: Tally,
}

/// What happened in numbers, so that a quiet world is seen to be one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "their names say it")]
pub struct Tally {
    pub lived: Duration,
    pub steps: u64,
    pub deploys: u64,
    pub releases: u64,
    pub failed: u64,
    pub switched: u64,
    pub restarts: u64,
    pub notes: u64,
}

/// What can happen.
#[derive(Debug)]
pub(crate) enum Happens {
    /// The runner looks; the number tells schedules apart.
    Pass(u64),
    Operator,
    Dial(usize),
    Forward(usize),
    Push(usize),
    Arrives(usize, u64, Message),
    /// An end of this connection finds that it is dead.
    Silent(usize, u64),
    Local(usize),
    Tick(usize),
    Poll(usize),
    Note(usize),
    Machine((usize, usize), u64),
    CallsHome((usize, usize), u64),
    Button((usize, usize)),
    Begins(usize),
    Ends(usize),
    ControllerStarts,
    AgentStarts(usize),
    BootStarts(usize),
    Look,
}

/// What travels on an uplink.
#[derive(Debug)]
pub(crate) enum Message {
    Events(u64, Vec<Event>),
    Next(u64),
    Intent(Box<Intent>),
    Stored(u64),
    Command(Command),
}

/// Spells of trouble that stand in a rack.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Troubles {
    pub(crate) lossy: u32,
    pub(crate) socket: u32,
    pub(crate) boot_disk: u32,
    pub(crate) agent_disk: u32,
    pub(crate) no_image: u32,
}

struct Controller {
    runner: Option<Runner<Hub>>,
    store: Store,
    gate: Arc<DeathGate>,
    clock: Arc<ProcessClock>,
    skew: Skew,
    up_since: Duration,
    schedule: u64,
    /// By rack: the revision on the agent's disk, and whether an intent is on its way.
    pushes: Vec<(u64, bool)>,
    busy: bool,
}

/// The world.
pub struct World {
    pub(crate) time: Time,
    pub(crate) rng: Rng,
    pub(crate) history: History,
    pub(crate) oracles: Oracles,
    pub(crate) plant: Option<Plant>,
    pub(crate) hub: Hub,
    pub(crate) nodes: Vec<Node>,
    pub(crate) machines: Vec<Vec<Machine>>,
    pub(crate) troubles: Vec<Troubles>,
    operator: Rng,
    truth: Store,
    controller: Controller,
    faults: Vec<Fault>,
    month: bool,
    length: Duration,
    queue: BTreeMap<(Duration, u64), Happens>,
    queued: u64,
    performances: u64,
    local: Vec<bool>,
    /// Since when all rest, with the revisions of then.
    rests: Option<(Duration, Vec<u64>, u64)>,
    tally: Tally,
    /// When the planted bug raised a revision last.
    flapped: Duration,
    over: bool,
    _dir: tempfile::TempDir,
}

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A dead connection is noticed after this long (QUIC's idle timeout, on both ends).
const IDLE: Duration = seconds(15);

/// How long all has to come to rest after the faults: the limits of a deploy's steps and undos.
const REST_WITHIN: Duration = seconds(10 * 3600);

/// How long it then has to stay at rest.
const REST: Duration = seconds(900);

/// One seed in so many has a partition of a month.
const MONTH_IN: u64 = 8;

impl World {
    /// Runs a world to its end.
    pub fn run(options: Options) -> Outcome {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(1)
            .build()
            .expect("a runtime can be built");
        let outcome = runtime.block_on(async {
            let mut world = World::new(options).await.expect("a world can be made");
            world.live().await;
            world.end().await
        });
        runtime.shutdown_background();
        outcome
    }

    /// The faults of a world with these options.
    pub fn planned(options: &Options) -> Vec<Fault> {
        let mut rng = Rng::new(options.seed, 2);
        let month = rng.below(MONTH_IN) == 0;
        fault::plan(&mut rng, size(options.seed), options.length, month)
    }

    async fn new(options: Options) -> Result<Self> {
        let planned = Self::planned(&options);
        let Options { seed, length, faults, plant } = options;
        let time = Time::default();
        let rng = Rng::new(seed, 1);
        let size = size(seed);
        let faults = faults.unwrap_or(planned);
        let month = faults.iter().any(|fault| fault.lasts >= MONTH);
        let history = History::new(&time);
        let dir = tempfile::Builder::new().prefix("rackhand-world-").tempdir_in(scratch())?;
        let truth = database(dir.path()).await?;
        let gate = Arc::new(DeathGate::default());
        let hub = Hub::new(size.racks, truth.clone(), gate.clone(), history.clone(), Rng::new(seed, 3), plant);
        let skew = Skew::default();
        let clock = ProcessClock::start(&time, &skew);
        let store = truth.clone().gated(gate.clone());
        let controller = Controller {
            runner: None,
            store,
            gate,
            clock,
            skew,
            up_since: Duration::ZERO,
            schedule: 0,
            pushes: vec![(0, false); size.racks],
            busy: false,
        };
        let mut world = Self {
            time,
            rng,
            history,
            oracles: Oracles::default(),
            plant,
            hub,
            nodes: Vec::new(),
            machines: Vec::new(),
            troubles: vec![Troubles::default(); size.racks],
            operator: Rng::new(seed, 4),
            truth,
            controller,
            faults,
            month,
            length,
            queue: BTreeMap::new(),
            queued: 0,
            performances: 0,
            local: vec![false; size.racks],
            rests: None,
            tally: Tally::default(),
            flapped: Duration::ZERO,
            over: false,
            _dir: dir,
        };
        world.build(size).await?;
        Ok(world)
    }

    /// Racks, nodes, machines and an image; everything is switched on.
    async fn build(&mut self, size: Size) -> Result<()> {
        let now = self.controller.clock.now().wall;
        let mut tx = self.truth.begin().await?;
        let image = tx.start_import(now, "debian-12", Settings::Cidata, "storing", 0).await?;
        let stored = Stored {
            manifest: Digest::of(b"manifest"),
            size: 1 << 30,
            stored: 1,
            sector: 512,
            firmware: vec![Firmware::Bios],
            sha256: String::new(),
        };
        tx.finish_import(image, &stored).await?;
        for index in 0..size.racks {
            let address = format!("10.77.{}.1", index + 1).parse()?;
            let network = Network {
                node: format!("10.77.{}.1/24", index + 1).parse()?,
                gateway: None,
                dns: Vec::new(),
                delegated: (format!("10.77.{}.100", index + 1).parse()?, format!("10.77.{}.150", index + 1).parse()?),
            };
            let name = format!("r{}", index + 1);
            let rack = tx.insert_rack(now, &name, &SoundNetwork::try_from(network)?).await?;
            let agent = AgentId::fresh();
            tx.insert_agent(now, agent, rack, key(index), now).await?;
            self.history.name(rack, &name);
            self.hub.lock().uplinks[index].rack = Some(rack);
            let dir = self._dir.path().join(&name);
            let node = Node::new(&self.time, rack, agent, address, dir, &mut self.rng)?;
            let machines: Vec<_> = (0..size.machines).map(|number| Machine::new(index, number)).collect();
            for machine in &machines {
                let bmc = Bmc { power: Power::Off, network_once: false, trouble: None };
                node.bmcs.lock().machines.insert(machine.mac, bmc);
            }
            node.boot_disk.set_lying(self.plant == Some(Plant::BootDiskLies));
            self.nodes.push(node);
            self.machines.push(machines);
        }
        tx.commit().await?;
        self.controller_starts();
        for rack in 0..size.racks {
            self.agent_starts(rack).await;
            self.boot_starts(rack).await;
            self.after(seconds(20), Happens::Tick(rack));
            self.after(seconds(60), Happens::Note(rack));
            for machine in 0..size.machines {
                let wait = self.rng.between(seconds(10), seconds(300));
                self.after(wait, Happens::Button((rack, machine)));
            }
        }
        self.after(seconds(240), Happens::Operator);
        for (index, fault) in self.faults.clone().iter().enumerate() {
            self.at(fault.at, Happens::Begins(index));
        }
        let end = self.faults_end();
        self.at(end, Happens::Look);
        Ok(())
    }

    fn faults_end(&self) -> Duration {
        let last = self.faults.iter().map(|fault| fault.at + fault.lasts).max().unwrap_or_default();
        last.max(self.length) + seconds(1)
    }

    async fn live(&mut self) {
        while !self.over {
            let next = self.queue.keys().next().map(|(at, _)| *at);
            let wake = self.time.next_wake();
            if let Some(wake) = wake.filter(|wake| next.is_none_or(|next| *wake < next)) {
                self.time.advance_to(wake);
            } else {
                let Some(((at, _), what)) = self.queue.pop_first() else { break };
                self.time.advance_to(at);
                self.happens(what).await;
            }
            self.tally.steps += 1;
            self.perform().await;
        }
    }

    async fn happens(&mut self, what: Happens) {
        match what {
            Happens::Pass(schedule) => self.pass(schedule).await,
            Happens::Operator => self.operates().await,
            Happens::Dial(rack) => self.dial(rack).await,
            Happens::Forward(rack) => self.forward(rack).await,
            Happens::Push(rack) => self.push(rack).await,
            Happens::Arrives(rack, connection, message) => self.arrives(rack, connection, message).await,
            Happens::Silent(rack, connection) => self.silent(rack, connection),
            Happens::Local(rack) => self.local(rack).await,
            Happens::Tick(rack) => self.tick(rack).await,
            Happens::Poll(rack) => self.poll_all(rack).await,
            Happens::Note(rack) => self.note(rack).await,
            Happens::Machine(at, start) => self.machine_steps(at, start).await,
            Happens::CallsHome(at, start) => self.calls_home(at, start).await,
            Happens::Button(at) => self.power_button(at),
            Happens::Begins(fault) => self.fault_begins(fault),
            Happens::Ends(fault) => self.fault_ends(fault),
            Happens::ControllerStarts => self.controller_starts(),
            Happens::AgentStarts(rack) => self.agent_starts(rack).await,
            Happens::BootStarts(rack) => self.boot_starts(rack).await,
            Happens::Look => self.look().await,
        }
    }

    pub(crate) fn at(&mut self, at: Duration, what: Happens) {
        self.queued += 1;
        self.queue.insert((at, self.queued), what);
    }

    pub(crate) fn after(&mut self, wait: Duration, what: Happens) {
        self.at(self.time.passed() + wait, what);
    }

    pub(crate) fn machine(&mut self, at: (usize, usize)) -> &mut Machine {
        &mut self.machines[at.0][at.1]
    }

    pub(crate) fn say_machine(&self, at: (usize, usize), what: impl AsRef<str>) {
        self.history.say(&self.machines[at.0][at.1].name, what);
    }

    fn say(&self, who: &str, what: impl AsRef<str>) {
        self.history.say(who, what);
    }

    // The controller.

    fn controller_starts(&mut self) {
        if self.controller.runner.is_some() {
            return;
        }
        self.controller.clock = ProcessClock::start(&self.time, &self.controller.skew);
        let (store, clock) = (self.controller.store.clone(), self.controller.clock.clone());
        self.controller.runner = Some(Runner::new(Workflows::new(), store, self.hub.clone(), clock, 1));
        self.controller.up_since = self.time.passed();
        self.oracles.runner_restarted(self.time.passed());
        self.say("controller", "starts");
        self.wake_runner(seconds(1));
        for rack in 0..self.nodes.len() {
            self.controller.pushes[rack] = (0, false);
        }
    }

    fn controller_dies(&mut self, lasts: Duration) {
        if self.controller.runner.take().is_none() {
            return;
        }
        self.tally.restarts += 1;
        self.controller.gate.disarm();
        self.say("controller", "dies");
        for rack in 0..self.nodes.len() {
            let dead = self.hub.lock().uplinks[rack].controller.take();
            if let Some(connection) = dead {
                self.after(IDLE, Happens::Silent(rack, connection));
            }
        }
        self.after(lasts.max(seconds(1)), Happens::ControllerStarts);
    }

    /// Has the controller do something; nothing when it died of it.
    async fn controlled<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        let gate = self.controller.gate.clone();
        let done = tokio::select! {
            biased;
            () = gate.died() => None,
            done = work => Some(done),
        };
        if done.is_none() {
            let lasts = self.rng.spread(seconds(1), seconds(90));
            self.controller_dies(lasts);
        }
        self.late_commands();
        done
    }

    fn late_commands(&mut self) {
        for rack in 0..self.nodes.len() {
            let late = std::mem::take(&mut self.hub.lock().uplinks[rack].late);
            for (wait, connection, command) in late {
                self.after(wait, Happens::Arrives(rack, connection, Message::Command(command)));
            }
        }
    }

    fn wake_runner(&mut self, wait: Duration) {
        if self.plant == Some(Plant::RunnerSleeps) && wait < seconds(1) && self.controller.busy {
            return;
        }
        self.controller.schedule += 1;
        let schedule = self.controller.schedule;
        self.after(wait, Happens::Pass(schedule));
    }

    async fn pass(&mut self, schedule: u64) {
        if schedule != self.controller.schedule {
            return;
        }
        let Some(runner) = self.controller.runner.take() else { return };
        let before = self.tally.restarts;
        // Put back before it can die.
        let gate = self.controller.gate.clone();
        let done = tokio::select! {
            biased;
            () = gate.died() => None,
            done = runner.pass() => Some(done),
        };
        self.controller.runner = Some(runner);
        self.late_commands();
        match done {
            None => {
                let lasts = self.rng.spread(seconds(1), seconds(90));
                self.controller_dies(lasts);
                return;
            }
            Some(Err(error)) => self.say("controller", format!("cannot look at its runs: {error}")),
            Some(Ok(())) => {}
        }
        debug_assert_eq!(before, self.tally.restarts);
        if self.plant == Some(Plant::IntentFlaps)
            && self.flapped + seconds(60) < self.time.passed()
            && let Ok(mut tx) = self.truth.begin().await
        {
            self.flapped = self.time.passed();
            let _ = tx.touch_rack(self.nodes[0].rack).await;
            let _ = tx.commit().await;
        }
        let runs = self.truth.runs_in_progress().await.unwrap_or_default();
        let (now, wall) = (self.time.passed(), self.controller.clock.now().wall);
        self.oracles.runs(now, wall, self.controller.up_since, &runs);
        self.controller.busy = !runs.is_empty();
        for rack in 0..self.nodes.len() {
            self.push(rack).await;
        }
        let wait = if self.plant == Some(Plant::RunnerSleeps) {
            seconds(437)
        } else if self.controller.busy {
            seconds(20)
        } else {
            self.pause()
        };
        if self.controller.runner.is_some() {
            self.wake_runner(wait);
        }
    }

    /// How long nobody looks at a world in which nothing happens.
    fn pause(&self) -> Duration {
        if self.month && self.time.passed() < self.faults_end() { seconds(4 * 3600) } else { seconds(300) }
    }

    async fn operates(&mut self) {
        if self.time.passed() >= self.length.max(self.faults_end().saturating_sub(seconds(3600))) {
            return;
        }
        let wait = if self.month {
            self.operator.spread(seconds(60), seconds(3 * 86400))
        } else {
            self.operator.spread(seconds(20), seconds(900))
        };
        self.after(wait, Happens::Operator);
        if self.controller.runner.is_none() {
            return;
        }
        let machines = self.truth.machines(None, None, 100).await.unwrap_or_default();
        let dice = self.operator.below(100);
        let Some(machine) = self.operator.choose(&machines).cloned() else { return };
        let now = self.controller.clock.now().wall;
        let store = self.controller.store.clone();
        let change = [PowerChange::On, PowerChange::Off, PowerChange::Cycle][self.operator.below(3) as usize];
        let id = machine.id;
        let (verb, result) = match machine.lifecycle {
            Lifecycle::Discovered => {
                let adopt = self.controlled(async move {
                    let mut tx = store.begin().await?;
                    let machine = tx.machine(&id.to_string()).await?;
                    tx.adopt(now, &machine, Accept { data: true, parts: false }).await?;
                    tx.commit().await?;
                    Ok::<_, Denied>(None)
                });
                ("adopt", adopt.await)
            }
            Lifecycle::Ready if dice < 75 => {
                let deploy = self.controlled(async move {
                    let mut tx = store.begin().await?;
                    let machine = tx.machine(&id.to_string()).await?;
                    let image = tx.image("debian-12").await?;
                    let host = Host { name: "web".into(), ssh_keys: Vec::new(), user_data: None };
                    let request = DeployRequest { disk: DiskRule::Smallest, host };
                    let run = tx.start_deploy(now, &machine, &image, request).await?;
                    tx.commit().await?;
                    Ok(Some(run.id))
                });
                ("deploy", deploy.await)
            }
            Lifecycle::Active | Lifecycle::Quarantined if dice < 40 => {
                let release = self.controlled(async move {
                    let mut tx = store.begin().await?;
                    let machine = tx.machine(&id.to_string()).await?;
                    let run = tx.start_release(now, &machine).await?;
                    tx.commit().await?;
                    Ok(Some(run.id))
                });
                ("release", release.await)
            }
            Lifecycle::Deploying | Lifecycle::Releasing if dice < 20 => {
                let cancel = self.controlled(async move {
                    let mut tx = store.begin().await?;
                    let Some(run) = tx.run_in_progress(id).await? else { return Ok(None) };
                    tx.cancel(now, run).await?;
                    tx.commit().await?;
                    Ok(Some(run))
                });
                ("cancel", cancel.await)
            }
            Lifecycle::Ready | Lifecycle::Active | Lifecycle::Quarantined if dice < 85 => {
                let power = self.controlled(async move {
                    let mut tx = store.begin().await?;
                    let machine = tx.machine(&id.to_string()).await?;
                    let run = tx.start_power(now, &machine, change).await?;
                    tx.commit().await?;
                    Ok(Some(run.id))
                });
                ("power", power.await)
            }
            _ => return,
        };
        let what = if verb == "power" { format!("power {change:?}") } else { verb.to_owned() };
        match result {
            None => self.say("operator", format!("{what} {id}: no answer")),
            Some(Ok(run)) => {
                let run = run.map(|run| format!(", run {run}")).unwrap_or_default();
                self.say("operator", format!("{what} {id}{run}"));
            }
            Some(Err(denied)) => self.say("operator", format!("{what} {id}: {denied}")),
        }
        if self.controller.runner.is_some() {
            self.wake_runner(Duration::from_millis(10));
        }
    }

    // The uplink.

    async fn dial(&mut self, rack: usize) {
        if self.nodes[rack].agent.is_none() || self.hub.lock().uplinks[rack].agent.is_some() {
            return;
        }
        let again = self.rng.between(seconds(1), seconds(30));
        let again = if self.month { again * 20 } else { again };
        let lost = self.hub.fate(rack) == Fate::Lost;
        if lost || self.controller.runner.is_none() {
            return self.after(again, Happens::Dial(rack));
        }
        let Some(agent) = &self.nodes[rack].agent else { return };
        let (incarnation, revision) = (agent.incarnation, agent.intent.revision());
        let Ok(highest) = agent.ledger.connection().await else {
            return self.after(again, Happens::Dial(rack));
        };
        let (store, id, now) = (self.controller.store.clone(), self.nodes[rack].id, self.controller.clock.now().wall);
        let welcomed = self.controlled(async move {
            let mut tx = store.begin().await?;
            let hello = Hello { incarnation, version: "0".into(), revision, connection: highest };
            let row = tx.welcome(now, id, (key(rack), None), &hello).await?;
            tx.commit().await?;
            Ok::<_, rackhand_controller::store::StoreError>(row)
        });
        let Some(Ok(row)) = welcomed.await else { return self.after(again, Happens::Dial(rack)) };
        let mut number = row.connection;
        if self.plant == Some(Plant::ConnectionsGoBack) && self.controller.up_since > Duration::ZERO {
            number = number.saturating_sub(3);
        }
        self.hub.lock().uplinks[rack].controller = Some(number);
        self.controller.pushes[rack] = (revision, false);
        self.after(Duration::from_millis(30), Happens::Push(rack));
        if self.hub.fate(rack) == Fate::Lost {
            return self.after(again, Happens::Dial(rack));
        }
        let Some(agent) = &mut self.nodes[rack].agent else { return };
        agent.sending = false;
        let believed = number >= highest || self.plant.is_some();
        let noted =
            agent.ledger.welcomed(number).await.is_ok() && agent.spool.acknowledge(row.next_event).await.is_ok();
        if self.agent_worked(rack) || !noted || !believed {
            return self.after(again, Happens::Dial(rack));
        }
        self.oracles.connection(self.time.passed(), rack, number);
        self.hub.lock().uplinks[rack].agent = Some(number);
        self.say(&format!("r{}/agent", rack + 1), format!("is connected, number {number}"));
        self.after(Duration::from_millis(30), Happens::Forward(rack));
    }

    /// An end of a connection notices that the other is gone.
    fn silent(&mut self, rack: usize, connection: u64) {
        let mut hub = self.hub.lock();
        let uplink = &mut hub.uplinks[rack];
        if uplink.controller == Some(connection) {
            uplink.controller = None;
        }
        if uplink.agent == Some(connection) {
            uplink.agent = None;
            drop(hub);
            self.say(&format!("r{}/agent", rack + 1), format!("loses connection {connection}"));
            if self.plant != Some(Plant::UplinkGivesUp) {
                let wait = self.rng.between(Duration::from_millis(200), seconds(2));
                self.after(wait, Happens::Dial(rack));
            }
        }
    }

    fn send(&mut self, rack: usize, connection: u64, message: Message, again: Option<Message>) {
        match self.hub.fate(rack) {
            Fate::Lost => self.after(IDLE, Happens::Silent(rack, connection)),
            Fate::Arrives(wait) => self.after(wait, Happens::Arrives(rack, connection, message)),
            Fate::Twice(wait) => {
                self.after(Duration::from_millis(5), Happens::Arrives(rack, connection, message));
                if let Some(again) = again {
                    self.after(wait, Happens::Arrives(rack, connection, again));
                }
            }
        }
    }

    async fn forward(&mut self, rack: usize) {
        let Some(connection) = self.hub.lock().uplinks[rack].agent else { return };
        let Some(agent) = &mut self.nodes[rack].agent else { return };
        if agent.sending || agent.spool.waiting() == 0 {
            return;
        }
        let Ok((first, events)) = agent.spool.batch(256).await else { return };
        agent.sending = true;
        let again = Message::Events(first, events.clone());
        self.send(rack, connection, Message::Events(first, events), Some(again));
    }

    async fn push(&mut self, rack: usize) {
        let Some(connection) = self.hub.lock().uplinks[rack].controller else { return };
        if self.controller.runner.is_none() || self.controller.pushes[rack].1 {
            return;
        }
        let id = self.nodes[rack].rack;
        let revision = self.truth.rack_revision(id).await.unwrap_or_default();
        if revision <= self.controller.pushes[rack].0 {
            return;
        }
        let store = self.controller.store.clone();
        let Some(Ok(wanted)) = self.controlled(async move { intent::of(&store, id).await }).await else { return };
        self.controller.pushes[rack].1 = true;
        let again = Message::Intent(Box::new(wanted.clone()));
        self.send(rack, connection, Message::Intent(Box::new(wanted)), Some(again));
    }

    async fn arrives(&mut self, rack: usize, connection: u64, message: Message) {
        let (at_controller, at_agent) = {
            let hub = self.hub.lock();
            (hub.uplinks[rack].controller == Some(connection), hub.uplinks[rack].agent == Some(connection))
        };
        match message {
            Message::Events(first, events) => {
                if !at_controller || self.controller.runner.is_none() {
                    return self.after(seconds(1), Happens::Silent(rack, connection));
                }
                self.take(rack, connection, first, events).await;
            }
            Message::Stored(revision) => {
                if !at_controller || self.controller.runner.is_none() {
                    return;
                }
                let (store, id, now) =
                    (self.controller.store.clone(), self.nodes[rack].id, self.controller.clock.now().wall);
                let acknowledged = self.controlled(async move {
                    let mut tx = store.begin().await?;
                    tx.acknowledged(now, id, revision).await?;
                    tx.commit().await
                });
                if acknowledged.await.is_some() {
                    self.controller.pushes[rack] = (revision, false);
                    self.wake_runner(Duration::from_millis(10));
                    self.push(rack).await;
                }
            }
            Message::Next(next) => {
                let Some(agent) = self.nodes[rack].agent.as_mut().filter(|_| at_agent) else { return };
                agent.sending = false;
                let _ = agent.spool.acknowledge(next).await;
                if !self.agent_worked(rack) {
                    self.after(Duration::from_millis(20), Happens::Forward(rack));
                }
            }
            Message::Intent(wanted) => {
                if !at_agent || self.nodes[rack].agent.is_none() {
                    return self.after(seconds(1), Happens::Silent(rack, connection));
                }
                let Some(agent) = &self.nodes[rack].agent else { return };
                match agent.intent.store(*wanted).await {
                    Ok(revision) => {
                        if let Some(intent) = agent.intent.current() {
                            self.oracles.intent(self.time.passed(), rack, "agent", &intent);
                        }
                        self.say(&format!("r{}/agent", rack + 1), format!("stores intent {revision}"));
                        self.send(rack, connection, Message::Stored(revision), None);
                        self.local_soon(rack);
                    }
                    Err(refused) => {
                        self.say(&format!("r{}/agent", rack + 1), format!("does not store an intent: {refused}"));
                        self.controller.pushes[rack].1 = false;
                        self.after(seconds(30), Happens::Push(rack));
                    }
                }
            }
            Message::Command(command) => {
                let any = connection == u64::MAX;
                if self.nodes[rack].agent.is_some() && (at_agent || any) {
                    self.say(&format!("r{}/agent", rack + 1), format!("a late command {} arrives", command.id));
                    let _ = self.hub.deliver(rack, command).await;
                    self.agent_worked(rack);
                }
            }
        }
    }

    async fn take(&mut self, rack: usize, connection: u64, mut first: u64, mut events: Vec<Event>) {
        let (store, id, agent) = (self.controller.store.clone(), self.nodes[rack].rack, self.nodes[rack].id);
        if self.plant == Some(Plant::EventsTakenTwice)
            && let Ok(row) = self.truth.agent(agent).await
        {
            first = first.max(row.next_event);
        }
        if self.plant == Some(Plant::EventsMistaken) {
            events.iter_mut().skip(2).step_by(3).for_each(|event| event.what = What::Lost);
        }
        for event in &events {
            let machine = event.machine.map(|id| format!("{id}: ")).unwrap_or_default();
            if !matches!(&event.what, What::Progress { .. } | What::TicketRefused { .. }) {
                self.say("controller", format!("hears {machine}{}", event.what));
            }
        }
        let taken = self.controlled(async move { events::take(&store, id, agent, first, events).await });
        match taken.await {
            Some(Ok(next)) => {
                self.send(rack, connection, Message::Next(next), Some(Message::Next(next)));
                self.wake_runner(Duration::from_millis(10));
                self.push(rack).await;
            }
            Some(Err(error)) => {
                self.say("controller", format!("cannot take events: {error}"));
                self.after(seconds(1), Happens::Silent(rack, connection));
            }
            None => {}
        }
    }

    // The node.

    async fn agent_starts(&mut self, rack: usize) {
        if self.nodes[rack].agent.is_some() {
            return;
        }
        let who = format!("r{}/agent", rack + 1);
        let (time, plant) = (self.time.clone(), self.plant);
        if let Err(error) = self.nodes[rack].start_agent(&time, plant).await {
            self.say(&who, format!("does not start: {error:#}"));
            self.nodes[rack].agent = None;
            if self.nodes[rack].is_cut(Part::Agent) {
                self.nodes[rack].each_disk(Part::Agent, crate::disk::Disk::power_cut);
            } else {
                self.nodes[rack].each_disk(Part::Agent, crate::disk::Disk::killed);
            }
            return self.after(seconds(10), Happens::AgentStarts(rack));
        }
        self.say(&who, "starts");
        let Some(agent) = &self.nodes[rack].agent else { return };
        if let Some(intent) = agent.intent.current() {
            self.oracles.intent(self.time.passed(), rack, "agent", &intent);
        }
        let executor = (agent.executor.clone(), agent.clock.clone() as Arc<dyn rackhand_common::time::Clock>);
        self.hub.lock().uplinks[rack].executor = Some(executor);
        let wait = self.rng.between(Duration::from_millis(200), seconds(2));
        self.after(wait, Happens::Dial(rack));
        self.local_soon(rack);
    }

    fn agent_dies(&mut self, rack: usize, lasts: Duration) {
        if self.nodes[rack].agent.take().is_none() {
            return;
        }
        self.tally.restarts += 1;
        self.say(&format!("r{}/agent", rack + 1), "dies");
        let connection = {
            let mut hub = self.hub.lock();
            let uplink = &mut hub.uplinks[rack];
            uplink.executor = None;
            uplink.fresh.clear();
            uplink.agent.take()
        };
        if let Some(connection) = connection {
            self.after(IDLE, Happens::Silent(rack, connection));
        }
        self.after(lasts.max(seconds(1)), Happens::AgentStarts(rack));
    }

    async fn boot_starts(&mut self, rack: usize) {
        if self.nodes[rack].boot.is_some() {
            return;
        }
        let who = format!("r{}/boot", rack + 1);
        let (time, plant) = (self.time.clone(), self.plant);
        if let Err(error) = self.nodes[rack].start_boot(&time, plant) {
            self.say(&who, format!("does not start: {error:#}"));
            self.nodes[rack].boot = None;
            if self.nodes[rack].is_cut(Part::Boot) {
                self.nodes[rack].each_disk(Part::Boot, crate::disk::Disk::power_cut);
            } else {
                self.nodes[rack].each_disk(Part::Boot, crate::disk::Disk::killed);
            }
            return self.after(seconds(10), Happens::BootStarts(rack));
        }
        self.say(&who, "starts");
        self.nodes[rack].boot_since = self.time.passed();
        let Some(boot) = &self.nodes[rack].boot else { return };
        let intent = boot.services.intent.current();
        if let Some(intent) = &intent {
            self.oracles.intent(self.time.passed(), rack, "boot", intent);
        }
        let leases = boot.services.leases.clone();
        self.oracles.restarted(self.time.passed(), rack, |mac| {
            let planned = intent.iter().flat_map(|intent| &intent.machines).any(|known| known.macs.contains(&mac));
            leases.holder(mac).map(|holder| (holder.address, planned))
        });
        self.local_soon(rack);
        self.after(seconds(2), Happens::Poll(rack));
    }

    fn boot_dies(&mut self, rack: usize, lasts: Duration) {
        if self.nodes[rack].boot.take().is_none() {
            return;
        }
        self.tally.restarts += 1;
        self.say(&format!("r{}/boot", rack + 1), "dies");
        self.after(lasts.max(seconds(1)), Happens::BootStarts(rack));
    }

    /// The power went in the middle of a write: the process is gone.
    pub(crate) fn power_went(&mut self, rack: usize, part: Part) {
        self.say(&format!("r{}/{part}", rack + 1), "loses power in the middle of a write");
        let lasts = self.rng.spread(seconds(1), seconds(90));
        match part {
            Part::Agent => self.agent_dies(rack, lasts),
            Part::Boot => self.boot_dies(rack, lasts),
        }
        self.nodes[rack].each_disk(part, crate::disk::Disk::power_cut);
    }

    /// The agent did something. Whether it died of it.
    fn agent_worked(&mut self, rack: usize) -> bool {
        if self.nodes[rack].agent.is_some() && self.nodes[rack].is_cut(Part::Agent) {
            self.power_went(rack, Part::Agent);
            return true;
        }
        false
    }

    pub(crate) fn local_soon(&mut self, rack: usize) {
        if !std::mem::replace(&mut self.local[rack], true) {
            let wait = self.rng.between(Duration::from_millis(5), Duration::from_millis(400));
            self.after(wait, Happens::Local(rack));
        }
    }

    /// Boot takes the intent over and hands its events over.
    async fn local(&mut self, rack: usize) {
        self.local[rack] = false;
        if let Some(boot) = &self.nodes[rack].boot {
            // What was offered is written sooner or later.
            let _ = boot.services.spool.append(Vec::new()).await;
            if self.nodes[rack].is_cut(Part::Boot) {
                return self.power_went(rack, Part::Boot);
            }
        }
        if self.troubles[rack].socket > 0 {
            return;
        }
        let node = &self.nodes[rack];
        let (Some(agent), Some(boot)) = (&node.agent, &node.boot) else { return };
        let newer = agent.intent.current().filter(|intent| intent.revision > boot.services.intent.revision());
        if let Some(intent) = newer {
            let revision = intent.revision;
            match boot.services.intent.store((*intent).clone()).await {
                Ok(_) => {
                    if let Some(intent) = boot.services.intent.current() {
                        self.oracles.intent(self.time.passed(), rack, "boot", &intent);
                    }
                    self.say(&format!("r{}/boot", rack + 1), format!("takes over intent {revision}"));
                    self.after(Duration::from_millis(30), Happens::Poll(rack));
                }
                Err(refused) => self.say(&format!("r{}/boot", rack + 1), format!("{refused}")),
            }
        }
        self.hand_over(rack).await;
    }

    async fn hand_over(&mut self, rack: usize) {
        let node = &self.nodes[rack];
        let (Some(agent), Some(boot)) = (&node.agent, &node.boot) else { return };
        if boot.services.spool.waiting() == 0 {
            return self.after(Duration::from_millis(30), Happens::Forward(rack));
        }
        let Ok((first, events)) = boot.services.spool.batch(256).await else { return };
        let Ok(next) = agent.spool.take(boot.services.spool.id(), first, events).await else {
            self.agent_worked(rack);
            return;
        };
        if self.agent_worked(rack) {
            return;
        }
        // The answer is lost with either process.
        if self.rng.percent(97)
            && let Some(boot) = &self.nodes[rack].boot
        {
            let _ = boot.services.spool.acknowledge(next).await;
            if self.nodes[rack].is_cut(Part::Boot) {
                return self.power_went(rack, Part::Boot);
            }
        }
        let more = self.nodes[rack].boot.as_ref().is_some_and(|boot| boot.services.spool.waiting() > 0);
        if more {
            self.local_soon(rack);
        }
        self.after(Duration::from_millis(30), Happens::Forward(rack));
    }

    /// Silent installers are looked for, and disks that failed end their process.
    async fn tick(&mut self, rack: usize) {
        self.poll_all(rack).await;
        if let Some(boot) = &self.nodes[rack].boot {
            boot.services.sessions.look().await;
            let alive = boot.services.spool.append(Vec::new()).await.is_ok();
            if self.nodes[rack].is_cut(Part::Boot) {
                self.power_went(rack, Part::Boot);
            } else if !alive {
                self.boot_dies(rack, seconds(5));
                self.nodes[rack].each_disk(Part::Boot, crate::disk::Disk::killed);
            }
        }
        if let Some(agent) = &self.nodes[rack].agent {
            let alive = agent.spool.append(Vec::new()).await.is_ok();
            if !self.agent_worked(rack) && !alive {
                self.agent_dies(rack, seconds(5));
                self.nodes[rack].each_disk(Part::Agent, crate::disk::Disk::killed);
            }
        }
        self.local_soon(rack);
        self.after(Duration::from_millis(600), Happens::Forward(rack));
        let calm = !self.controller.busy && self.machines[rack].iter().all(Machine::rests);
        let wait = if calm { self.pause() } else { seconds(20) };
        self.after(wait, Happens::Tick(rack));
    }

    async fn poll_all(&mut self, rack: usize) {
        for machine in 0..self.machines[rack].len() {
            self.polls((rack, machine)).await;
        }
    }

    /// A numbered event of the node itself, for the oracle of events.
    async fn note(&mut self, rack: usize) {
        for part in [Part::Agent, Part::Boot] {
            let node = &mut self.nodes[rack];
            let (spool, clock) = match part {
                Part::Agent => node.agent.as_ref().map(|agent| (agent.spool.clone(), agent.clock.clone())),
                Part::Boot => node.boot.as_ref().map(|boot| (boot.services.spool.clone(), boot.clock.clone())),
            }
            .unzip();
            let (Some(spool), Some(clock)) = (spool, clock) else { continue };
            // Now and then so many that a spool nobody takes from has to drop some.
            let count = if self.rng.percent(3) { 200 } else { 1 };
            let first = node.notes[part as usize] + 1;
            node.notes[part as usize] += count;
            let (numbers, source) = (first..first + count, source(rack, part));
            let note = |number| What::TicketRefused { reason: note_text(number, &source) };
            let at = clock.now().wall;
            let events = numbers.clone().map(|number| Event { at, machine: None, what: note(number) }).collect();
            let stored = spool.append(events).await.is_ok();
            let cut = self.nodes[rack].is_cut(part);
            if stored && !cut {
                numbers.for_each(|number| self.oracles.noted(&source, number));
            }
            if cut {
                self.power_went(rack, part);
            }
        }
        self.local_soon(rack);
        if self.time.passed() < self.faults_end() {
            let wait = if self.month { seconds(6 * 3600) } else { seconds(400) };
            self.after(wait, Happens::Note(rack));
        }
    }

    /// Goes on with commands that are under way.
    async fn perform(&mut self) {
        let due = self.time.next_wake().is_some_and(|wake| wake <= self.time.passed());
        self.time.woken();
        for rack in 0..self.nodes.len() {
            let fresh = std::mem::take(&mut self.hub.lock().uplinks[rack].fresh);
            let has_fresh = !fresh.is_empty();
            for (command, received) in fresh {
                self.performances += 1;
                let number = self.performances;
                if let Some(agent) = &mut self.nodes[rack].agent {
                    agent.enqueue(number, command, received);
                }
            }
            if due || has_fresh {
                self.perform_in(rack).await;
            }
            let now = self.time.passed();
            {
                let mut bmcs = self.nodes[rack].bmcs.lock();
                while let Some(later) = bmcs.later.first().copied().filter(|later| later.0 <= now) {
                    bmcs.later.remove(&later);
                    bmcs.switch(later.1, if later.2 { Power::On } else { Power::Off }, later.3);
                }
            }
            let effects = std::mem::take(&mut self.nodes[rack].bmcs.lock().effects);
            for effect in effects {
                self.switched(rack, effect, None).await;
            }
        }
    }

    async fn perform_in(&mut self, rack: usize) {
        let machines: Vec<_> = self.nodes[rack].agent.iter().flat_map(|agent| agent.lanes.keys().copied()).collect();
        for machine in machines {
            loop {
                let now = self.time.passed();
                let bmcs = self.nodes[rack].bmcs.clone();
                let Some(agent) = &mut self.nodes[rack].agent else { return };
                let epoch = agent.intent.current().and_then(|intent| {
                    intent.machines.iter().find(|known| known.id == machine).map(|known| known.epoch)
                });
                let age = agent.clock.now().mono;
                let Some(lane) = agent.lanes.get_mut(&machine).and_then(|lanes| lanes.front_mut()) else { break };
                let begun = *lane.begun.get_or_insert(now);
                let performance = Performance {
                    number: lane.number,
                    received: now - lane.received.until(age),
                    begun,
                    within: seconds(120),
                    epoch,
                };
                bmcs.lock().performing = Some(lane.command.id);
                let ended = lane.work.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready();
                bmcs.lock().performing = None;
                if ended {
                    agent.lanes.get_mut(&machine).map(|lanes| lanes.pop_front());
                }
                let effects = std::mem::take(&mut bmcs.lock().effects);
                for effect in effects {
                    self.switched(rack, effect, Some(performance)).await;
                }
                if self.agent_worked(rack) {
                    return;
                }
                if !ended {
                    break;
                }
                self.local_soon(rack);
            }
        }
        if let Some(agent) = &mut self.nodes[rack].agent {
            agent.lanes.retain(|_, lanes| !lanes.is_empty());
        }
        self.after(Duration::from_millis(20), Happens::Forward(rack));
    }

    /// A machine's power changed.
    async fn switched(&mut self, rack: usize, effect: Effect, performance: Option<Performance>) {
        let Some(index) = self.machines[rack].iter().position(|machine| machine.mac == effect.mac) else { return };
        let at = (rack, index);
        let now = self.time.passed();
        if let Some(command) = effect.command {
            let asked = self.hub.lock().asked.get(&command).cloned();
            let name = self.machines[rack][index].name.clone();
            if let Some(asked) = asked {
                if let Some(performance) = performance {
                    self.oracles.effect(now, command, &asked, performance);
                }
                if matches!(effect.what, Done::Switched(_)) {
                    let row = self.row(at).await;
                    self.oracles.switches(now, &name, row.as_ref(), command, &asked);
                }
            }
            self.tally.switched += 1;
            self.say_machine(at, format!("{:?} by command {command}", effect.what));
        }
        match effect.what {
            Done::Switched(Power::On) => self.machine_starts(at),
            Done::Switched(Power::Off) => self.machine_stops(at),
            Done::NetworkBootSet => {}
        }
    }

    /// What the controller's database says of a machine.
    async fn row(&mut self, at: (usize, usize)) -> Option<rackhand_controller::store::Machine> {
        let mac = self.machines[at.0][at.1].mac;
        let rows = self.truth.machines(Some(self.nodes[at.0].rack), None, 100).await.unwrap_or_default();
        rows.into_iter().find(|row| row.macs.contains(&mac))
    }

    /// P1: an installer writes.
    pub(crate) async fn judge_write(
        &mut self,
        at: (usize, usize),
        run: rackhand_common::id::RunId,
        epoch: rackhand_common::id::Epoch,
    ) {
        let row = self.row(at).await;
        let name = self.machines[at.0][at.1].name.clone();
        self.oracles.writes(self.time.passed(), &name, row.as_ref(), run, epoch);
    }

    // Faults.

    fn fault_begins(&mut self, index: usize) {
        let Fault { lasts, kind, .. } = self.faults[index].clone();
        self.say("FAULT", self.faults[index].to_string());
        let mut ends = true;
        match kind {
            Kind::KillController => self.controller_dies(lasts),
            Kind::KillControllerAtPoint(point) => self.controller.gate.arm(point),
            Kind::KillAgent(rack) => {
                self.agent_dies(rack, lasts);
                self.nodes[rack].each_disk(Part::Agent, crate::disk::Disk::killed);
            }
            Kind::KillBoot(rack) => {
                self.boot_dies(rack, lasts);
                self.nodes[rack].each_disk(Part::Boot, crate::disk::Disk::killed);
            }
            Kind::NodePowerCut(rack) => {
                self.agent_dies(rack, lasts);
                self.boot_dies(rack, lasts);
                for part in [Part::Agent, Part::Boot] {
                    self.nodes[rack].each_disk(part, crate::disk::Disk::power_cut);
                }
            }
            Kind::PowerCutAtSync { rack, part, sync } => match part {
                Part::Agent => self.nodes[rack].agent_disk.cut_at_sync(sync),
                Part::Boot if sync % 2 == 0 => self.nodes[rack].boot_disk.cut_at_sync(sync / 2),
                Part::Boot => self.nodes[rack].events_disk.cut_at_sync(sync / 2),
            },
            Kind::Partition(rack) => {
                let (controller, agent) = {
                    let mut hub = self.hub.lock();
                    hub.uplinks[rack].cut += 1;
                    (hub.uplinks[rack].controller, hub.uplinks[rack].agent)
                };
                // Each end notices by itself, unless the network comes back before.
                if lasts > IDLE {
                    for connection in controller.into_iter().chain(agent) {
                        self.after(IDLE, Happens::Silent(rack, connection));
                    }
                }
            }
            Kind::LossyUplink(rack) => self.hub.lock().uplinks[rack].lossy += 1,
            Kind::SocketGone(rack) => self.troubles[rack].socket += 1,
            Kind::LossyRack(rack) => self.troubles[rack].lossy += 1,
            Kind::DiskFull { rack, part } => {
                *self.disk_troubles(rack, part) += 1;
                self.nodes[rack].each_disk(part, |disk| disk.set_full(true));
                let _ = self.nodes[rack].set_files_full(part, true);
            }
            Kind::DiskFails { rack, part } => {
                *self.disk_troubles(rack, part) += 1;
                self.nodes[rack].each_disk(part, |disk| disk.set_failing(true));
            }
            Kind::ClockJump { rack, seconds } => {
                let skew = rack.map_or(&self.controller.skew, |rack| &self.nodes[rack].skew);
                skew.fetch_add(seconds * 1000, std::sync::atomic::Ordering::Relaxed);
                ends = false;
            }
            Kind::MachineReset { rack, machine } => {
                let mac = self.machines[rack][machine].mac;
                let on = self.nodes[rack].bmcs.lock().machines.get(&mac).is_some_and(|bmc| bmc.power == Power::On);
                if on {
                    self.machine_starts((rack, machine));
                }
                ends = false;
            }
            Kind::Bmc { rack, machine, trouble } => {
                let mac = self.machines[rack][machine].mac;
                if let Some(bmc) = self.nodes[rack].bmcs.lock().machines.get_mut(&mac) {
                    bmc.trouble = Some(trouble);
                }
            }
            Kind::InstallerHangs { rack, machine } => self.machines[rack][machine].hangs += 1,
            Kind::MachineDiskFails { rack, machine } => self.machines[rack][machine].disk_fails += 1,
            Kind::NoImage(rack) => self.troubles[rack].no_image += 1,
        }
        if ends {
            self.after(lasts, Happens::Ends(index));
        }
    }

    fn disk_troubles(&mut self, rack: usize, part: Part) -> &mut u32 {
        match part {
            Part::Agent => &mut self.troubles[rack].agent_disk,
            Part::Boot => &mut self.troubles[rack].boot_disk,
        }
    }

    fn fault_ends(&mut self, index: usize) {
        match self.faults[index].kind.clone() {
            Kind::KillControllerAtPoint(_) => self.controller.gate.disarm(),
            Kind::Partition(rack) => {
                self.hub.lock().uplinks[rack].cut -= 1;
                self.say("FAULT", format!("r{} is reached again", rack + 1));
            }
            Kind::LossyUplink(rack) => self.hub.lock().uplinks[rack].lossy -= 1,
            Kind::SocketGone(rack) => {
                self.troubles[rack].socket -= 1;
                self.local_soon(rack);
            }
            Kind::LossyRack(rack) => self.troubles[rack].lossy -= 1,
            Kind::DiskFull { rack, part } | Kind::DiskFails { rack, part } => {
                let left = self.disk_troubles(rack, part);
                *left -= 1;
                if *left == 0 {
                    self.nodes[rack].each_disk(part, |disk| {
                        disk.set_full(false);
                        disk.set_failing(false);
                    });
                    let _ = self.nodes[rack].set_files_full(part, false);
                    if part == Part::Boot {
                        self.nodes[rack].boot_since = self.time.passed();
                    }
                }
                self.say("FAULT", format!("the disk of r{}'s {part} is as it was", rack + 1));
                self.local_soon(rack);
                self.after(seconds(1), Happens::Push(rack));
            }
            Kind::Bmc { rack, machine, .. } => {
                let mac = self.machines[rack][machine].mac;
                if let Some(bmc) = self.nodes[rack].bmcs.lock().machines.get_mut(&mac) {
                    bmc.trouble = None;
                }
            }
            Kind::InstallerHangs { rack, machine } => self.machines[rack][machine].hangs -= 1,
            Kind::MachineDiskFails { rack, machine } => self.machines[rack][machine].disk_fails -= 1,
            Kind::NoImage(rack) => self.troubles[rack].no_image -= 1,
            Kind::KillController
            | Kind::KillAgent(_)
            | Kind::KillBoot(_)
            | Kind::NodePowerCut(_)
            | Kind::PowerCutAtSync { .. }
            | Kind::ClockJump { .. }
            | Kind::MachineReset { .. } => {}
        }
    }

    // The end.

    /// What is not at rest yet.
    async fn restless(&mut self) -> Option<String> {
        if self.controller.runner.is_none() {
            return Some("the controller is down".into());
        }
        if let Some(run) = self.truth.runs_in_progress().await.unwrap_or_default().first() {
            let waiting = run.waiting_for.map(|waiting| waiting.to_string()).unwrap_or_default();
            return Some(format!("run {} of {} waits for {waiting}", run.id, run.machine));
        }
        for rack in 0..self.nodes.len() {
            let name = format!("r{}", rack + 1);
            let node = &self.nodes[rack];
            let (Some(agent), Some(boot)) = (&node.agent, &node.boot) else {
                return Some(format!("{name}'s node is down"));
            };
            let wanted = self.truth.rack_revision(node.rack).await.unwrap_or_default();
            let (at_agent, at_boot) = (agent.intent.revision(), boot.services.intent.revision());
            if (at_agent, at_boot) != (wanted, wanted) {
                return Some(format!(
                    "{name} is wanted at revision {wanted}, its agent has {at_agent}, boot {at_boot}"
                ));
            }
            if boot.services.spool.waiting() > 0 || agent.spool.waiting() > 0 {
                return Some(format!("{name} has events that nobody took"));
            }
            if let Some(machine) = self.machines[rack].iter().find(|machine| !machine.rests()) {
                return Some(format!("{} is at {:?}", machine.name, machine.phase));
            }
        }
        None
    }

    async fn look(&mut self) {
        let now = self.time.passed();
        let restless = self.restless().await;
        let mut revisions = Vec::new();
        for node in &self.nodes {
            revisions.push(self.truth.rack_revision(node.rack).await.unwrap_or_default());
        }
        let switched = self.tally.switched;
        match (&restless, &self.rests) {
            (None, None) => self.rests = Some((now, revisions, switched)),
            (None, Some((since, before, times))) => {
                if (before, *times) != (&revisions, switched) {
                    self.rests = Some((now, revisions, switched));
                } else if now - *since > REST {
                    self.over = true;
                }
            }
            (Some(_), _) => self.rests = None,
        }
        if now > self.faults_end() + REST_WITHIN {
            let what = restless.unwrap_or_else(|| "it moves again and again".into());
            self.oracles.broken(
                Promise::Converges,
                now,
                format!("not at rest {} s later: {what}", REST_WITHIN.as_secs()),
            );
            self.over = true;
        }
        if !self.over {
            self.after(seconds(90), Happens::Look);
        }
    }

    async fn end(&mut self) -> Outcome {
        let now = self.time.passed();
        for rack in 0..self.nodes.len() {
            let filter = EventFilter { rack: Some(self.nodes[rack].rack), ..EventFilter::default() };
            let (mut all, mut after) = (Vec::new(), 0);
            while let Ok(page) = self.truth.events(after, filter, 1000).await {
                let Some(last) = page.last() else { break };
                after = last.id;
                all.extend(page);
            }
            let at_rest = self.oracles.violations.iter().all(|known| known.promise != Promise::Converges);
            if at_rest {
                let sources = [source(rack, Part::Agent), source(rack, Part::Boot)];
                self.oracles.events(now, &sources, &all);
            }
            // Active machines run from their disks.
            let rows = self.truth.machines(Some(self.nodes[rack].rack), None, 100).await.unwrap_or_default();
            for row in rows {
                if row.lifecycle == Lifecycle::Active && row.boot != Boot::Disk {
                    self.oracles.broken(Promise::P1, now, format!("{} is active and told to boot ours", row.name));
                }
            }
        }
        for run in self.truth.runs(None, None, 10_000).await.unwrap_or_default() {
            use rackhand_controller::store::{Parameters, RunStatus};
            match (&run.parameters, run.status) {
                (Parameters::Deploy(_), RunStatus::Done) => self.tally.deploys += 1,
                (Parameters::Release(_), RunStatus::Done) => self.tally.releases += 1,
                (_, RunStatus::Failed) => self.tally.failed += 1,
                _ => {}
            }
        }
        self.tally.lived = now;
        self.tally.notes = self.oracles.notes() as u64;
        let renamed =
            |violation: &Violation| Violation { what: self.history.renamed(&violation.what), ..violation.clone() };
        let violations = self.oracles.violations.iter().map(renamed).collect();
        Outcome { history: self.history.text(), violations, faults: self.faults.clone(), tally: self.tally }
    }
}

fn size(seed: u64) -> Size {
    let mut rng = Rng::new(seed, 5);
    Size { racks: 1 + rng.below(3) as usize, machines: 1 + rng.below(4) as usize }
}

fn source(rack: usize, part: Part) -> String {
    format!("r{}/{part}", rack + 1)
}

/// A directory in memory, where there is one.
fn scratch() -> PathBuf {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() }
}

/// The key of a rack's agent.
fn key(rack: usize) -> KeyPin {
    KeyPin([rack as u8; 32])
}

/// A database with its schema, copied from one made once per process.
async fn database(dir: &Path) -> Result<Store> {
    static TEMPLATE: OnceLock<Vec<u8>> = OnceLock::new();
    let path = dir.join("controller.db");
    match TEMPLATE.get() {
        Some(template) => std::fs::write(&path, template)?,
        None => {
            Store::open(&path, Seal::new(&[0; 32])).await?.close().await;
            let _ = TEMPLATE.set(std::fs::read(&path)?);
        }
    }
    Store::open(&path, Seal::new(&[0; 32])).await.context("the controller's database")
}
