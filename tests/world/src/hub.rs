//! What connects the processes: the uplinks with commands on them, and the machines' power
//! control. The product calls these seams in the middle of its own work,
//! so they share state behind locks instead of the world's.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rackhand_agent::{
    clock::Timer as _,
    power::{Answer, Executor, Power, PowerError, Response, Target},
};
use rackhand_common::{
    event::Outcome,
    id::{CommandId, Epoch, MachineId, RackId, RunId},
    machine::{Mac, Power as State},
    time::{Clock, Mono},
    wire::{Action, Command, ControllerResponse},
};
use rackhand_controller::{
    store::{Parameters, Store},
    workflows::{Commands, Unreachable},
};

use crate::{database::DeathGate, fault::Trouble, history::History, plant::Plant, rng::Rng, time::Time};

/// A message's fate on a lossy uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It arrives, this much later.
    Arrives(Duration),
    /// It arrives, and again this much later.
    Twice(Duration),
    /// It does not arrive.
    Lost,
}

/// An uplink as both ends see it.
#[derive(Default)]
pub struct Uplink {
    /// The rack.
    pub rack: Option<RackId>,
    /// The connection the controller serves.
    pub controller: Option<u64>,
    /// The connection the agent uses.
    pub agent: Option<u64>,
    /// Partitions that stand.
    pub cut: u32,
    /// Lossy spells that stand.
    pub lossy: u32,
    /// Who takes commands there, and his clock.
    pub executor: Option<(Arc<Executor>, Arc<dyn Clock>)>,
    /// Accepted and not yet begun.
    pub fresh: Vec<(Command, Mono)>,
    /// Commands under way, with the connection they were sent on.
    pub late: Vec<(Duration, u64, Command)>,
}

/// What a command was for, as its sender knew it.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The run that wants it.
    pub run: Option<RunId>,
    /// Whether an operator's power run.
    pub is_power: bool,
    /// Its epoch.
    pub epoch: Epoch,
    /// What it does.
    pub action: Action,
}

/// All uplinks.
#[derive(Clone)]
pub struct Hub {
    inner: Arc<Mutex<HubInner>>,
    gate: Arc<DeathGate>,
    history: History,
    plant: Option<Plant>,
}

/// Their state.
pub struct HubInner {
    /// By rack.
    pub uplinks: Vec<Uplink>,
    /// Every command ever sent.
    pub asked: BTreeMap<CommandId, Asked>,
    /// The controller's database.
    pub truth: Store,
    rng: Rng,
}

impl Hub {
    /// Uplinks that nobody uses yet.
    pub fn new(
        racks: usize,
        truth: Store,
        gate: Arc<DeathGate>,
        history: History,
        rng: Rng,
        plant: Option<Plant>,
    ) -> Self {
        let uplinks = (0..racks).map(|_| Uplink::default()).collect();
        let inner = HubInner { uplinks, asked: BTreeMap::new(), truth, rng };
        Self { inner: Arc::new(Mutex::new(inner)), gate, history, plant }
    }

    /// Their state.
    pub fn lock(&self) -> MutexGuard<'_, HubInner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What becomes of a message on the uplink of this rack now.
    pub fn fate(&self, rack: usize) -> Fate {
        self.lock().fate(rack)
    }

    /// Gives a command to the rack's agent, if he is there.
    pub async fn deliver(&self, rack: usize, mut command: Command) -> Option<ControllerResponse> {
        let (executor, clock) = self.lock().uplinks[rack].executor.clone()?;
        if self.plant == Some(Plant::AgentForgetsEpoch) {
            let intent = executor.intent.current()?;
            if let Some(machine) = intent.machines.iter().find(|machine| machine.id == command.machine) {
                command.epoch = machine.epoch;
            }
        }
        if self.plant == Some(Plant::AgentForgetsDeadline) {
            command.within = Duration::from_secs(86400);
        }
        let received = clock.now().mono;
        let response = executor.accept(&command, received).await;
        self.history.say(&format!("r{}/agent", rack + 1), format!("command {}: {response:?}", command.id));
        if response == Response::Fresh {
            self.lock().uplinks[rack].fresh.push((command, received));
        }
        Some(response.into())
    }

    async fn ask(&self, rack: usize, command: Command) -> Option<ControllerResponse> {
        let (connection, fate) = {
            let mut inner = self.lock();
            (inner.uplinks[rack].controller, inner.fate(rack))
        };
        let connection = connection?;
        if self.plant == Some(Plant::AgentForgetsEpoch) {
            let mut inner = self.lock();
            for _ in 0..3 {
                let after = inner.rng.between(Duration::from_secs(60), Duration::from_secs(3600));
                let again = Command { id: CommandId::fresh(), ..command.clone() };
                if let Some(asked) = inner.asked.get(&command.id).cloned() {
                    inner.asked.insert(again.id, asked);
                }
                inner.uplinks[rack].late.push((after, u64::MAX, again));
            }
        }
        match fate {
            Fate::Lost => None,
            Fate::Arrives(after) if after > Duration::from_secs(1) => {
                self.lock().uplinks[rack].late.push((after, connection, command));
                None
            }
            fate => {
                if let Fate::Twice(after) = fate {
                    self.lock().uplinks[rack].late.push((after, connection, command.clone()));
                }
                // A connection that only one end has carries nothing.
                if self.lock().uplinks[rack].agent != Some(connection) {
                    return None;
                }
                let answer = self.deliver(rack, command).await;
                let heard = !matches!(self.fate(rack), Fate::Lost);
                answer.filter(|_| heard)
            }
        }
    }
}

impl HubInner {
    fn fate(&mut self, rack: usize) -> Fate {
        let (cut, lossy) = (self.uplinks[rack].cut, self.uplinks[rack].lossy);
        let rng = &mut self.rng;
        let soon = rng.between(Duration::from_millis(1), Duration::from_millis(40));
        match lossy {
            _ if cut > 0 => Fate::Lost,
            0 => Fate::Arrives(soon),
            _ => match rng.below(10) {
                0..3 => Fate::Lost,
                3..5 => Fate::Arrives(rng.spread(Duration::from_secs(1), Duration::from_secs(30))),
                5..7 => Fate::Twice(rng.spread(Duration::from_secs(1), Duration::from_secs(30))),
                _ => Fate::Arrives(soon),
            },
        }
    }
}

impl Commands for Hub {
    async fn command(&self, rack: RackId, command: Command) -> Result<ControllerResponse, Unreachable> {
        let index = self.lock().uplinks.iter().position(|uplink| uplink.rack == Some(rack)).unwrap_or_default();
        self.gate.pass().await;
        let truth = self.lock().truth.clone();
        let runs = truth.runs_in_progress().await.unwrap_or_default();
        let run = runs.iter().find(|run| run.machine == command.machine);
        let asked = Asked {
            run: run.map(|run| run.id),
            is_power: run.is_some_and(|run| matches!(run.parameters, Parameters::Power(_))),
            epoch: command.epoch,
            action: command.action,
        };
        self.lock().asked.entry(command.id).or_insert(asked);
        if self.plant == Some(Plant::RunnerForgetsToLook) && command.action == Action::PowerStatus {
            return Ok(ControllerResponse::Known(Outcome::Done));
        }
        let (id, machine, action, epoch) = (command.id, command.machine, command.action, command.epoch);
        let answer = self.ask(index, command).await;
        let heard = answer.as_ref().map_or("no answer".to_owned(), |answer| format!("{answer:?}"));
        self.history.say("controller", format!("command {id} {action:?} {machine} epoch {epoch}: {heard}"));
        self.gate.pass().await;
        answer.ok_or(Unreachable { rack: format!("r{}", index + 1) })
    }

    fn wake(&self, _: RackId) {}
}

/// What a power driver did to a machine.
#[derive(Clone, Debug)]
pub struct Effect {
    /// Its card.
    pub mac: Mac,
    /// The command that was being performed.
    pub command: Option<CommandId>,
    /// What was done.
    pub what: Done,
}

/// The kinds of effects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// It was switched.
    Switched(State),
    /// Its next start is from the network.
    NetworkBootSet,
}

/// The BMCs of a rack.
#[derive(Clone)]
pub struct Bmcs {
    time: Time,
    inner: Arc<Mutex<BmcsInner>>,
}

/// Their state.
#[derive(Default)]
pub struct BmcsInner {
    /// By card.
    pub machines: BTreeMap<Mac, Bmc>,
    /// The command whose performance is being polled.
    pub performing: Option<CommandId>,
    /// What was done since somebody looked.
    pub effects: Vec<Effect>,
    /// Switchings that come late: when, whom, what, by which command.
    pub later: BTreeSet<(Duration, Mac, bool, Option<CommandId>)>,
}

/// One machine's.
#[derive(Debug)]
pub struct Bmc {
    /// Chassis power.
    pub power: State,
    /// Whether the next start is from the network.
    pub network_once: bool,
    /// What is wrong with it.
    pub trouble: Option<Trouble>,
}

impl Bmcs {
    /// None yet.
    pub fn new(time: &Time) -> Self {
        Self { time: time.clone(), inner: Arc::default() }
    }

    /// Their state.
    pub fn lock(&self) -> MutexGuard<'_, BmcsInner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits as long as the machine's BMC needs; its trouble.
    async fn reach(&self, target: &Target) -> Result<(Mac, Option<Trouble>), PowerError> {
        let mac = *target.macs.first().ok_or(PowerError::Refused("no card".into()))?;
        // Half of a command's time passes on either side of each look and act.
        self.time.sleep(Duration::from_millis(40)).await;
        let trouble = self.lock().machines.get(&mac).ok_or(PowerError::Refused("no such machine".into()))?.trouble;
        match trouble {
            Some(Trouble::Dead) => {
                self.time.sleep(Duration::from_secs(10)).await;
                Err(PowerError::Unreachable("no answer".into()))
            }
            Some(Trouble::Slow) => {
                self.time.sleep(Duration::from_secs(28)).await;
                Ok((mac, trouble))
            }
            _ => Ok((mac, trouble)),
        }
    }
}

impl BmcsInner {
    /// Switches a machine.
    pub fn switch(&mut self, mac: Mac, wanted: State, command: Option<CommandId>) {
        let Some(bmc) = self.machines.get_mut(&mac) else { return };
        if bmc.power != wanted {
            bmc.power = wanted;
            self.effects.push(Effect { mac, command, what: Done::Switched(wanted) });
        }
    }
}

/// What a command's performance reaches the BMCs through.
pub struct Driver {
    bmcs: Bmcs,
}

impl Driver {
    /// For this rack.
    pub fn new(bmcs: &Bmcs) -> Self {
        Self { bmcs: bmcs.clone() }
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").finish_non_exhaustive()
    }
}

impl Power for Driver {
    fn status<'a>(&'a self, target: &'a Target) -> Answer<'a, State> {
        Box::pin(async {
            let (mac, _) = self.bmcs.reach(target).await?;
            Ok(self.bmcs.lock().machines[&mac].power)
        })
    }

    fn set<'a>(&'a self, target: &'a Target, wanted: State) -> Answer<'a, ()> {
        Box::pin(async move {
            let (mac, trouble) = self.bmcs.reach(target).await?;
            let now = self.bmcs.time.passed();
            let mut bmcs = self.bmcs.lock();
            let command = bmcs.performing;
            match trouble {
                Some(Trouble::Stubborn) => {}
                Some(Trouble::Late) => {
                    // One that is told again what it is about to do does it once.
                    let on = wanted == State::On;
                    if !bmcs.later.iter().any(|later| (later.1, later.2) == (mac, on)) {
                        bmcs.later.insert((now + Duration::from_secs(90), mac, on, command));
                    }
                }
                _ => bmcs.switch(mac, wanted, command),
            }
            Ok(())
        })
    }

    fn network_boot_once<'a>(&'a self, target: &'a Target) -> Answer<'a, ()> {
        Box::pin(async {
            let (mac, _) = self.bmcs.reach(target).await?;
            let mut bmcs = self.bmcs.lock();
            let command = bmcs.performing;
            bmcs.machines.get_mut(&mac).expect("it was reached").network_once = true;
            bmcs.effects.push(Effect { mac, command, what: Done::NetworkBootSet });
            Ok(())
        })
    }
}

/// Names a machine of the world.
pub type Place = (usize, usize);

/// Ids of machines by their card, as the controller has them.
pub type Ids = BTreeMap<Mac, MachineId>;
