//! The world of one seed: a controller, racks with their nodes and machines, operators, and a
//! queue of what happens next. One thing happens at a time, to its end, before the next does.
//!
//! This file makes the world and has the queue; what happens to whom is in the files beside it:
//! [`operators`], [`controller`], [`uplink`], [`nodes`] (agent and boot), [`commands`],
//! [`machines`], [`troubles`] (faults) and [`rest`] (the end).

mod commands;
mod controller;
mod machines;
mod nodes;
mod operators;
mod rest;
mod troubles;
mod uplink;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Result;
use rackhand_common::{
    id::AgentId,
    image::{Digest, Settings},
    intent::Network,
    machine::{Firmware, Power},
    pki::KeyPin,
    time::Clock as _,
};
use rackhand_controller::store::{DEFAULT_SITE, NewImage, SoundNetwork, Store, Stored};

use self::{controller::Controller, troubles::Troubles, uplink::Message};
use crate::{
    database::{DeathGate, Disk},
    fault::{self, Fault, Kind, MONTH, Part},
    history::History,
    hub::{Bmc, Hub},
    machine::Machine,
    node::Node,
    oracle::{Oracles, Violation},
    plant::Plant,
    rng::Rng,
    time::{ProcessClock, Skew, Time},
    version::Version,
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
    pub replaced: u64,
    pub swapped: u64,
    pub boots: u64,
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
    /// The controller answers that events below this number are stored.
    Answers(usize, u64, u64),
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
    /// By rack: whether its commands stood still at the last look.
    stalled: Vec<bool>,
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

/// One seed in so many has a partition of a month.
const MONTH_IN: u64 = 8;

/// In one seed of so many the fleet goes to the next version and back.
const ROLLOUT_IN: u64 = 3;

/// In one seed of so many somebody puts another disk into a machine.
const SWAP_IN: u64 = 4;

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
        let mut faults = fault::plan(&mut rng, Self::size(options.seed), options.length, month);
        // A planted bug has occasions of its own, and is found by them.
        if options.plant.is_some() {
            return faults;
        }
        if Rng::new(options.seed, 7).below(ROLLOUT_IN) == 0 {
            faults.extend(Self::rollout(options.seed, options.length));
        }
        let (mut swap, size) = (Rng::new(options.seed, 9), Self::size(options.seed));
        if swap.below(SWAP_IN) == 0 {
            let (at, lasts) = (swap.between(seconds(1), options.length * 3 / 4), Duration::ZERO);
            let place = (swap.below(size.racks as u64) as usize, swap.below(size.machines as u64) as usize);
            faults.push(Fault { at, lasts, kind: Kind::DiskSwapped { rack: place.0, machine: place.1 } });
        }
        faults.sort_by_key(|fault| fault.at);
        faults
    }

    /// Nothing but the fleet's way to the next version and back.
    pub fn rollout(seed: u64, length: Duration) -> Vec<Fault> {
        fault::rollout(&mut Rng::new(seed, 8), Self::size(seed), length)
    }

    /// How large the world of a seed is.
    pub fn size(seed: u64) -> Size {
        let mut rng = Rng::new(seed, 5);
        Size { racks: 1 + rng.below(3) as usize, machines: 1 + rng.below(4) as usize }
    }

    async fn new(options: Options) -> Result<Self> {
        let planned = Self::planned(&options);
        let Options { seed, length, faults, plant } = options;
        let time = Time::default();
        let rng = Rng::new(seed, 1);
        let size = Self::size(seed);
        let faults = faults.unwrap_or(planned);
        let month = faults.iter().any(|fault| fault.lasts >= MONTH);
        let history = History::new(&time);
        let dir = tempfile::Builder::new().prefix("rackhand-world-").tempdir_in(scratch())?;
        let gate = Arc::new(DeathGate::default());
        let (disk, truth) = Disk::new(dir.path(), gate.clone(), Rng::new(seed, 6)).await?;
        let hub = Hub::new(size.racks, truth.clone(), gate.clone(), history.clone(), Rng::new(seed, 3), plant);
        let skew = Skew::default();
        let clock = ProcessClock::start(&time, &skew);
        let store = truth.clone().gated(disk.clone());
        let controller = Controller {
            runner: None,
            store,
            disk,
            version: Version::This,
            gate,
            clock,
            skew,
            up_since: Duration::ZERO,
            sound_since: Duration::ZERO,
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
            stalled: vec![false; size.racks],
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
        let image = tx
            .start_import(now, &NewImage { name: "debian-12", settings: Settings::Cidata, os: None }, "storing", 0)
            .await?;
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
            let rack = tx.insert_rack(now, &name, DEFAULT_SITE, &SoundNetwork::try_from(network)?).await?;
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
        if self.plant == Some(Plant::ControllerDiskLies) {
            self.controller.disk.lie()?;
        }
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
        let mut told = 0;
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
            for violation in &self.oracles.violations[told..] {
                self.say("BROKEN", format!("{}: {}", violation.promise, violation.what));
            }
            told = self.oracles.violations.len();
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
            Happens::Answers(rack, connection, next) => self.answers(rack, connection, next),
            Happens::Silent(rack, connection) => self.silent(rack, connection),
            Happens::Local(rack) => self.local(rack).await,
            Happens::Tick(rack) => self.tick(rack).await,
            Happens::Poll(rack) => self.poll_all(rack).await,
            Happens::Note(rack) => self.note(rack).await,
            Happens::Machine(at, start) => self.machine_steps(at, start).await,
            Happens::CallsHome(at, start) => self.calls_home(at, start).await,
            Happens::Button(at) => self.power_button(at),
            Happens::Begins(fault) => self.fault_begins(fault).await,
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
