//! Chassis power: the seam to whatever switches a machine, and the task that carries out
//! commands through it.
//!
//! Invariants:
//! - A command takes effect at most once: it is in the [ledger](crate::ledger) before the
//!   driver hears of it, and one that began before a crash is never begun again.
//! - A command is refused when its epoch is not the machine's, when the machine is not ours,
//!   or when its time to start has passed; looked at on receipt and again at the moment
//!   before acting.
//! - Power is set to a state and read back until it is there; nothing is ever toggled.
//! - A machine that a technician has open ([`Hands`]) is switched by nobody else.
//! - One command at a time per machine, in the order of receipt.
//! - A machine is restarted into the network only when boot knows what it shall boot there, or
//!   has not been heard of for [`BOOT_FOLLOWS`].

mod bmc;
pub mod ways;

use std::{
    collections::HashMap,
    pin::Pin,
    process::Stdio,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rackhand_fail_points::fail_point;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process,
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use rackhand_common::{
    event::{Event, Outcome, Stage, What},
    id::{CommandId, MachineId},
    machine::{Mac, Power as State},
    time::{Clock, Mono},
    wire::{Action, Command, ControllerResponse},
};

use crate::{
    clock::Timer,
    health::Metrics,
    intent,
    ledger::{Begun, Ledger},
    spool::{Spool, chain},
};

pub use bmc::Drivers;

/// Switches machines. Every call may be repeated.
pub trait Power: Send + Sync + 'static {
    /// Chassis power as it is now.
    fn status<'a>(&'a self, machine: &'a Target) -> Answer<'a, State>;
    /// Asks for power to be in this state; it may get there later.
    fn set<'a>(&'a self, machine: &'a Target, wanted: State) -> Answer<'a, ()>;
    /// Makes the machine's next start, and only that, boot from the network.
    fn network_boot_once<'a>(&'a self, machine: &'a Target) -> Answer<'a, ()>;
    /// Makes the machine's next start go another way; whoever can only switch power cannot.
    fn boot_by<'a>(&'a self, _: &'a Target, _: Way) -> Answer<'a, ()> {
        Box::pin(async { Err(PowerError::Unsupported("the command that switches it knows no such way".to_owned())) })
    }
    /// Has the machine boot by its own order again, as far as that was changed here and stands.
    fn end_boot<'a>(&'a self, _: &'a Target) -> Answer<'a, ()> {
        Box::pin(async { Ok(()) })
    }
}

/// Another way into the installer than the network at the next start only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// UEFI HTTP boot at the next start only.
    Http,
    /// The network at every start.
    LastingNetwork,
    /// An image in a virtual drive of the BMC, at the next start only.
    Media,
}

/// What a driver answers, in time.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, PowerError>> + Send + 'a>>;

/// The machine a driver is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Which machine.
    pub id: MachineId,
    /// The operator's name for it.
    pub name: String,
    /// Its network cards; the first is the one it boots from.
    pub macs: Vec<Mac>,
}

/// Why a driver did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PowerError {
    /// The device, or whoever configured it, said no: asking again is useless.
    #[error("refused: {0}")]
    Refused(String),
    /// It did not answer: ask again later.
    #[error("unreachable: {0}")]
    Unreachable(String),
    /// It answered something that has no meaning.
    #[error("malformed answer: {0}")]
    Malformed(String),
    /// The machine cannot be started in this way.
    #[error("{0}")]
    Unsupported(String),
}

impl From<std::io::Error> for PowerError {
    fn from(error: std::io::Error) -> Self {
        Self::Unreachable(error.to_string())
    }
}

/// A command from the controller, and where its answer goes.
#[derive(Debug)]
pub struct Call {
    /// The command as received just now.
    pub command: Command,
    /// [`ControllerResponse::Accepted`], `Known` or `Refused`.
    pub answer: oneshot::Sender<ControllerResponse>,
}

/// Machines that somebody has their hands in: nothing is switched there but by whoever watches over them.
#[derive(Clone, Debug, Default)]
pub struct Hands(Arc<Mutex<HashMap<MachineId, Held>>>);

#[derive(Debug)]
struct Held {
    why: String,
    permitted: Option<CommandId>,
}

impl Hands {
    /// From now on somebody has their hands in this machine, and why; or nobody any more.
    pub fn set(&self, machine: MachineId, why: Option<String>) {
        let mut held = self.lock();
        match why {
            Some(why) => held.entry(machine).or_insert(Held { why: String::new(), permitted: None }).why = why,
            None => drop(held.remove(&machine)),
        }
    }

    /// This command, and no other, may be carried out on a machine all the same.
    pub fn permit(&self, machine: MachineId, command: CommandId) {
        if let Some(held) = self.lock().get_mut(&machine) {
            held.permitted = Some(command);
        }
    }

    fn check(&self, command: &Command) -> Result<(), String> {
        match self.lock().get(&command.machine) {
            // Whoever reads switches nothing.
            Some(held) if held.permitted != Some(command.id) && command.action != Action::PowerStatus => {
                Err(held.why.clone())
            }
            _ => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<MachineId, Held>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How often, and after how long each time, an outcome is written down when the disk refuses.
const END_TRIES: u32 = 600;
const END_AGAIN: Duration = Duration::from_secs(1);

/// How long power may take to reach a state; a slow server needs half a minute to let go.
const SETTLE: Duration = Duration::from_secs(120);

/// A device that has not moved for this long is asked again.
const REPEAT: Duration = Duration::from_secs(30);

/// How often power is read back.
const POLL: Duration = Duration::from_secs(1);

/// How long boot may take to follow the intent before a machine is restarted all the same.
/// Boot stores it with two flushes to disk, which a busy one delays by seconds.
const BOOT_FOLLOWS: Duration = Duration::from_secs(15);

/// Off time within a cycle: power supplies want to notice.
const PAUSE: Duration = Duration::from_secs(2);

/// Carries out commands.
pub struct Executor {
    /// Whom to ask.
    pub driver: Arc<dyn Power>,
    /// Where commands are written down.
    pub ledger: Ledger,
    /// Where what happened is told.
    pub spool: Spool,
    /// Which machines are ours, and their epochs.
    pub intent: intent::Store,
    /// The revision of it that boot has.
    pub boot_has: watch::Receiver<u64>,
    /// The present.
    pub clock: Arc<dyn Clock>,
    /// How a slow device is waited for.
    pub timer: Arc<dyn Timer>,
    /// Where commands are counted.
    pub metrics: Arc<Metrics>,
    /// Which machines are not to be switched now.
    pub hands: Hands,
}

impl Executor {
    /// Takes commands until `shutdown`, then waits for those that have begun. Those that have
    /// not are refused at the next start.
    pub async fn run(self, mut calls: mpsc::Receiver<Call>, shutdown: CancellationToken) {
        let executor = Arc::new(self);
        let works = TaskTracker::new();
        let mut latest: HashMap<MachineId, JoinHandle<()>> = HashMap::new();
        loop {
            let call = tokio::select! {
                call = calls.recv() => call,
                () = shutdown.cancelled() => break,
            };
            let Some(Call { command, answer }) = call else { break };
            let received = executor.clock.now().mono;
            let response = executor.accept(&command, received).await;
            if response == Response::Fresh {
                latest.retain(|_, work| !work.is_finished());
                let before = latest.remove(&command.machine);
                let (executor, shutdown, machine) = (executor.clone(), shutdown.clone(), command.machine);
                let work = works.spawn(async move {
                    if let Some(before) = before {
                        // One that panicked was logged by whoever panicked; its turn is over.
                        let _ = before.await;
                    }
                    if !shutdown.is_cancelled() {
                        executor.perform(command, received).await;
                    }
                });
                latest.insert(machine, work);
            }
            // The uplink may have gone meanwhile; the controller will ask again.
            let _ = answer.send(response.into());
        }
        works.close();
        works.wait().await;
    }

    /// Judges a command that came at `received` and writes it down; a fresh one is to be
    /// [performed](Self::perform) after those of its machine that came before. For one task only.
    pub async fn accept(&self, command: &Command, received: Mono) -> Response {
        if let Err(reason) = self.judge(command, received) {
            return Response::Refused(reason);
        }
        match self.ledger.accept(command, self.clock.now().wall).await {
            Ok(Begun::Fresh) => Response::Fresh,
            Ok(Begun::Running) => Response::Running,
            Ok(Begun::Known(outcome)) => Response::Known(outcome),
            Err(error) => {
                tracing::error!(command = %command.id, error = chain(&error), "a power command cannot be written down");
                Response::Refused(format!("it cannot be written down: {error}"))
            }
        }
    }

    /// The machine the command is for, when it may be acted on now.
    fn judge(&self, command: &Command, received: Mono) -> Result<Target, String> {
        let intent = self.intent.current().ok_or("this node has no intent yet")?;
        let machine =
            intent.machines.iter().find(|machine| machine.id == command.machine).ok_or_else(|| {
                format!("machine {} is not in this rack's intent {}", command.machine, intent.revision)
            })?;
        if machine.epoch != command.epoch {
            return Err(format!("it was made in epoch {}, the machine is in epoch {}", command.epoch, machine.epoch));
        }
        self.hands.check(command)?;
        if self.clock.now().mono > received.plus(command.within) {
            return Err(format!("it was to be started within {} s", command.within.as_secs()));
        }
        Ok(Target { id: machine.id, name: machine.name.clone(), macs: machine.macs.clone() })
    }

    /// Performs an accepted command, or refuses it when its time or epoch is over by now.
    pub async fn perform(&self, command: Command, received: Mono) {
        if matches!(
            command.action,
            Action::NetworkBoot | Action::HttpBoot | Action::LastingNetworkBoot | Action::MediaBoot
        ) {
            self.wait_for_boot().await;
        }
        let outcome = match self.judge(&command, received) {
            Err(reason) => Outcome::Refused(reason),
            Ok(target) => match self.ledger.begin(command.id).await {
                Ok(()) => match self.act(&target, command.action).await {
                    Ok(()) => Outcome::Done,
                    Err(PowerError::Unsupported(reason)) => Outcome::Unsupported(reason),
                    Err(error) => Outcome::Failed(error.to_string()),
                },
                Err(error) => {
                    tracing::error!(command = %command.id, error = chain(&error), "a power command cannot be begun");
                    Outcome::Refused(format!("it could not be written down, and was not done: {error}"))
                }
            },
        };
        tracing::info!(command = %command.id, machine = %command.machine, action = ?command.action, %outcome, "power command");
        self.metrics.commanded(&outcome);
        self.end(&command, outcome).await;
    }

    /// Writes down how a command ended. A disk that refuses is asked again: until it is written
    /// down, the controller does not know, and after a restart nobody does.
    async fn end(&self, command: &Command, outcome: Outcome) {
        for _ in 0..END_TRIES {
            let now = self.clock.now().wall;
            let Err(error) = self.ledger.end(command.id, command.machine, outcome.clone(), now).await else { return };
            tracing::error!(command = %command.id, error = chain(&error), "a power command's outcome cannot be written down");
            self.timer.sleep(END_AGAIN).await;
        }
    }

    /// A machine that is restarted before boot has the intent we act on would be given what
    /// an older one says, its own disk as a rule.
    async fn wait_for_boot(&self) {
        let (wanted, mut boot_has) = (self.intent.revision(), self.boot_has.clone());
        if timeout(BOOT_FOLLOWS, boot_has.wait_for(|revision| *revision >= wanted)).await.is_err() {
            tracing::warn!(wanted, has = *self.boot_has.borrow(), "boot does not follow the intent");
        }
    }

    async fn act(&self, target: &Target, action: Action) -> Result<(), PowerError> {
        match action {
            Action::PowerStatus => {
                let state = patiently(&*self.timer, || self.driver.status(target)).await?;
                self.tell(target, vec![What::Power(state)]).await;
                Ok(())
            }
            Action::PowerOn => {
                self.leave_way(target).await;
                self.bring(target, State::On).await
            }
            Action::PowerOff => self.bring(target, State::Off).await,
            Action::PowerCycle => {
                self.leave_way(target).await;
                self.cycle(target).await
            }
            Action::NetworkBoot => {
                patiently(&*self.timer, || network_boot_once(&*self.driver, target)).await?;
                self.cycle(target).await
            }
            Action::HttpBoot => self.start_by(target, Way::Http).await,
            Action::LastingNetworkBoot => self.start_by(target, Way::LastingNetwork).await,
            Action::MediaBoot => self.start_by(target, Way::Media).await,
            Action::EndBoot => patiently(&*self.timer, || self.driver.end_boot(target)).await,
        }
    }

    async fn start_by(&self, target: &Target, way: Way) -> Result<(), PowerError> {
        match patiently(&*self.timer, || boot_by(&*self.driver, target, way)).await {
            Ok(()) => self.cycle(target).await,
            // Nothing was restarted, and asking again is useless: another way may do.
            Err(PowerError::Refused(reason) | PowerError::Malformed(reason)) => Err(PowerError::Unsupported(reason)),
            Err(error) => Err(error),
        }
    }

    /// A start that is to go by the machine's own order does. What cannot be put back now is by
    /// [`ways`], later.
    async fn leave_way(&self, target: &Target) {
        if let Err(error) = self.driver.end_boot(target).await {
            tracing::warn!(machine = %target.id, %error, "a machine's boot order cannot be put back before its start");
        }
    }

    async fn cycle(&self, target: &Target) -> Result<(), PowerError> {
        self.bring(target, State::Off).await?;
        self.timer.sleep(PAUSE).await;
        self.bring(target, State::On).await
    }

    async fn bring(&self, target: &Target, wanted: State) -> Result<(), PowerError> {
        let mut was_told = false;
        let asked = || {
            // Before the machine has come any further: told later, it would look like another start.
            if wanted == State::On && !std::mem::replace(&mut was_told, true) {
                let (at, what) = (self.clock.now().wall, What::Stage(Stage::PoweredOn));
                self.spool.offer(Event { at, machine: Some(target.id), what });
            }
        };
        settle(&*self.timer, &*self.driver, target, wanted, asked).await?;
        self.tell(target, vec![What::Power(wanted)]).await;
        Ok(())
    }

    async fn tell(&self, target: &Target, news: Vec<What>) {
        let at = self.clock.now().wall;
        let events = news.into_iter().map(|what| Event { at, machine: Some(target.id), what }).collect();
        if let Err(error) = self.spool.append(events).await {
            tracing::error!(machine = %target.id, error = chain(&error), "power cannot be reported");
        }
    }
}

/// What became of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// It is in the ledger now, and to be performed.
    Fresh,
    /// It came before and has not ended.
    Running,
    /// It has ended.
    Known(Outcome),
    /// It is not in the ledger and has no effect.
    Refused(String),
}

impl From<Response> for ControllerResponse {
    fn from(response: Response) -> Self {
        match response {
            Response::Fresh | Response::Running => Self::Accepted,
            Response::Known(outcome) => Self::Known(outcome),
            Response::Refused(reason) => Self::Refused(reason),
        }
    }
}

/// Brings power to a state and reads it back. A device that does not answer is asked again until
/// [`SETTLE`] has passed, one that says no is not. `asked` is called whenever it took the request.
pub async fn settle(
    timer: &dyn Timer,
    driver: &dyn Power,
    target: &Target,
    wanted: State,
    mut asked: impl FnMut(),
) -> Result<(), PowerError> {
    if patiently(timer, || driver.status(target)).await? == wanted {
        return Ok(());
    }
    let until = timer.now().plus(SETTLE);
    loop {
        patiently(timer, || set(driver, target, wanted)).await?;
        asked();
        let again = timer.now().plus(REPEAT);
        loop {
            if patiently(timer, || driver.status(target)).await? == wanted {
                return Ok(());
            }
            if timer.now() > until {
                let state = if wanted == State::On { "off" } else { "on" };
                return Err(PowerError::Unreachable(format!("power is still {state} after {} s", SETTLE.as_secs())));
            }
            if timer.now() > again {
                break;
            }
            timer.sleep(POLL).await;
        }
    }
}

fn set<'a>(driver: &'a dyn Power, target: &'a Target, wanted: State) -> Answer<'a, ()> {
    Box::pin(async move { fail_point!("power.act", driver.set(target, wanted).await) })
}

fn network_boot_once<'a>(driver: &'a dyn Power, target: &'a Target) -> Answer<'a, ()> {
    Box::pin(async move { fail_point!("power.act", driver.network_boot_once(target).await) })
}

fn boot_by<'a>(driver: &'a dyn Power, target: &'a Target, way: Way) -> Answer<'a, ()> {
    Box::pin(async move { fail_point!("power.act", driver.boot_by(target, way).await) })
}

/// Asks until there is an answer, or a refusal, or three silences.
async fn patiently<'a, T>(timer: &dyn Timer, ask: impl Fn() -> Answer<'a, T>) -> Result<T, PowerError> {
    for _ in 0..2 {
        match ask().await {
            Err(PowerError::Unreachable(reason)) => {
                tracing::debug!(reason, "a power driver did not answer; asking again");
                timer.sleep(2 * POLL).await;
            }
            answer => return answer,
        }
    }
    ask().await
}

/// Switches machines through an operator's command, for PDUs, labs and whatever has no
/// driver of its own.
///
/// The command is run with one more argument: `status` (prints `on` or `off`), `on`, `off` or
/// `network-boot-once`. The machine is told in the environment: `RACKHAND_MACHINE` (id),
/// `RACKHAND_NAME` and `RACKHAND_MAC` (of the card it boots from). Exit status 0 is success;
/// 64, 77 and 78 (usage, permission, configuration; `sysexits.h`) mean that asking again is
/// useless; anything else means that it may help. It runs as the agent's user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exec {
    default: Option<Vec<String>>,
    machines: HashMap<Mac, Vec<String>>,
    limit: Duration,
}

/// `[power]` in agent.toml.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecFile {
    /// Program and arguments for machines that have none of their own.
    pub command: Option<Vec<String>>,
    /// Seconds one call may take; 60 when absent.
    pub timeout: Option<u64>,
    /// `[[power.machine]]`: commands of single machines.
    #[serde(default)]
    pub machine: Vec<ExecMachine>,
}

/// `[[power.machine]]` in agent.toml.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecMachine {
    /// Any of the machine's network cards.
    pub mac: Mac,
    /// Program and arguments.
    pub command: Vec<String>,
}

impl TryFrom<ExecFile> for Exec {
    type Error = String;

    fn try_from(file: ExecFile) -> Result<Self, String> {
        let runnable = |command: &Vec<String>| command.first().is_some_and(|program| !program.is_empty());
        if file.command.as_ref().is_some_and(|command| !runnable(command)) {
            return Err("power.command names no program".into());
        }
        let mut machines = HashMap::new();
        for machine in file.machine {
            if !runnable(&machine.command) {
                return Err(format!("the power.machine with mac {} names no program", machine.mac));
            }
            if machines.insert(machine.mac, machine.command).is_some() {
                return Err(format!("there are two power.machine with mac {}", machine.mac));
            }
        }
        let limit = file.timeout.map_or(Duration::from_secs(60), Duration::from_secs);
        if limit.is_zero() {
            return Err("power.timeout must be at least one second".into());
        }
        Ok(Self { default: file.command, machines, limit })
    }
}

/// The driver of the configuration, as it is at each call: a restart that is under way when
/// the configuration changes is finished by the new one.
#[derive(Clone, Debug)]
pub struct Configured(watch::Receiver<Arc<Exec>>);

impl Configured {
    /// This one, and where others are put.
    pub fn new(exec: Exec) -> (watch::Sender<Arc<Exec>>, Self) {
        let (sender, receiver) = watch::channel(Arc::new(exec));
        (sender, Self(receiver))
    }

    fn exec(&self) -> Arc<Exec> {
        self.0.borrow().clone()
    }
}

impl Power for Configured {
    fn status<'a>(&'a self, machine: &'a Target) -> Answer<'a, State> {
        let exec = self.exec();
        Box::pin(async move { exec.status(machine).await })
    }

    fn set<'a>(&'a self, machine: &'a Target, wanted: State) -> Answer<'a, ()> {
        let exec = self.exec();
        Box::pin(async move { exec.set(machine, wanted).await })
    }

    fn network_boot_once<'a>(&'a self, machine: &'a Target) -> Answer<'a, ()> {
        let exec = self.exec();
        Box::pin(async move { exec.network_boot_once(machine).await })
    }
}

/// What is kept of a command's output, in bytes; the rest is read and dropped.
const OUTPUT: usize = 4 << 10;

/// How long output is waited for once the command itself has ended: something it started may
/// hold the pipe open for ever.
const LINGER: Duration = Duration::from_millis(300);

impl Exec {
    async fn call(&self, target: &Target, verb: &str) -> Result<String, PowerError> {
        let own = target.macs.iter().find_map(|mac| self.machines.get(mac));
        let command = own.or(self.default.as_ref()).ok_or_else(|| {
            PowerError::Refused("no power command is configured for it: set power.command in agent.toml".into())
        })?;
        let (program, arguments) = command.split_first().expect("commands name a program");
        let shown = format!("{} {verb}", command.join(" "));

        let mut child = process::Command::new(program)
            .args(arguments)
            .arg(verb)
            .env("RACKHAND_MACHINE", target.id.to_string())
            .env("RACKHAND_NAME", &target.name)
            .env("RACKHAND_MAC", target.macs.first().map(Mac::to_string).unwrap_or_default())
            .env_remove("NOTIFY_SOCKET")
            .env_remove("WATCHDOG_USEC")
            .env_remove("WATCHDOG_PID")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0) // so that a timeout ends its children too
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| PowerError::Refused(format!("cannot run {program}: {error}")))?;

        let group = child.id();
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let (mut output, mut errors) = (Vec::new(), Vec::new());
        let ended = {
            let gathered = async { tokio::join!(gather(stdout, &mut output), gather(stderr, &mut errors)) };
            tokio::pin!(gathered);
            let work = async {
                let status = tokio::select! {
                    status = child.wait() => status,
                    _ = &mut gathered => return child.wait().await,
                };
                let _ = timeout(LINGER, &mut gathered).await;
                status
            };
            timeout(self.limit, work).await
        };
        match ended {
            Err(_) => {
                if let Some(group) = group.and_then(|id| i32::try_from(id).ok()) {
                    let group = nix::unistd::Pid::from_raw(group);
                    // It may have ended this very moment.
                    let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
                }
                let _ = child.wait().await;
                Err(PowerError::Unreachable(format!("`{shown}` was killed after {} s", self.limit.as_secs())))
            }
            Ok(Err(error)) => Err(PowerError::Unreachable(format!("`{shown}` was lost: {error}"))),
            Ok(Ok(status)) if status.success() => Ok(String::from_utf8_lossy(&output).trim().to_owned()),
            Ok(Ok(status)) => {
                let said = if errors.is_empty() { output } else { errors };
                let text = format!("`{shown}` ended with {status}: {}", quote(&String::from_utf8_lossy(&said)));
                match status.code() {
                    Some(64 | 77 | 78) => Err(PowerError::Refused(text)),
                    _ => Err(PowerError::Unreachable(text)),
                }
            }
        }
    }
}

impl Power for Exec {
    fn status<'a>(&'a self, machine: &'a Target) -> Answer<'a, State> {
        Box::pin(async move {
            let said = self.call(machine, "status").await?;
            match said.to_ascii_lowercase().as_str() {
                "on" => Ok(State::On),
                "off" => Ok(State::Off),
                _ => Err(PowerError::Malformed(format!("`status` printed {}, not `on` or `off`", quote(&said)))),
            }
        })
    }

    fn set<'a>(&'a self, machine: &'a Target, wanted: State) -> Answer<'a, ()> {
        let verb = match wanted {
            State::On => "on",
            State::Off => "off",
        };
        Box::pin(async move { self.call(machine, verb).await.map(drop) })
    }

    fn network_boot_once<'a>(&'a self, machine: &'a Target) -> Answer<'a, ()> {
        Box::pin(async move { self.call(machine, "network-boot-once").await.map(drop) })
    }
}

/// Reads to the end, keeping the first [`OUTPUT`] bytes.
async fn gather(pipe: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>) {
    let Some(mut pipe) = pipe else { return };
    let mut buffer = [0; 1024];
    while let Ok(read @ 1..) = pipe.read(&mut buffer).await {
        let room = OUTPUT.saturating_sub(kept.len());
        kept.extend_from_slice(&buffer[..read.min(room)]);
    }
}

/// The last line or so of what a program said, on one line, safe to show.
fn quote(said: &str) -> String {
    let tail: Vec<_> = said.trim().lines().rev().take(3).collect();
    let text = tail.into_iter().rev().collect::<Vec<_>>().join(" / ");
    format!("{:?}", text.chars().take(400).collect::<String>())
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt as _, path::Path};

    use rackhand_common::{
        id::{CommandId, Epoch, RackId},
        intent::{Boot, Intent, MachineIntent, Network},
    };

    use tokio::time::Instant;

    use super::*;
    use crate::{
        clock::{SystemClock, SystemTimer},
        spool::open_database,
    };

    /// A machine on a bench: what it was asked is written down.
    struct Bench {
        state: Mutex<State>,
        asked: Mutex<Vec<&'static str>>,
        /// Answers nothing this many times.
        silent: Mutex<u32>,
        /// Says yes and does nothing.
        stuck: bool,
    }

    impl Bench {
        fn new(state: State) -> Self {
            Self { state: Mutex::new(state), asked: Mutex::default(), silent: Mutex::new(0), stuck: false }
        }

        fn hear(&self, what: &'static str) -> Result<(), PowerError> {
            let mut silent = self.silent.lock().unwrap();
            if *silent > 0 {
                *silent -= 1;
                return Err(PowerError::Unreachable("no answer".into()));
            }
            self.asked.lock().unwrap().push(what);
            Ok(())
        }

        fn acts(&self) -> Vec<&'static str> {
            self.asked.lock().unwrap().iter().copied().filter(|asked| *asked != "status").collect()
        }
    }

    impl Power for Bench {
        fn status<'a>(&'a self, _: &'a Target) -> Answer<'a, State> {
            Box::pin(async { self.hear("status").map(|()| *self.state.lock().unwrap()) })
        }

        fn set<'a>(&'a self, _: &'a Target, wanted: State) -> Answer<'a, ()> {
            Box::pin(async move {
                self.hear(if wanted == State::On { "on" } else { "off" })?;
                if !self.stuck {
                    *self.state.lock().unwrap() = wanted;
                }
                Ok(())
            })
        }

        fn network_boot_once<'a>(&'a self, _: &'a Target) -> Answer<'a, ()> {
            Box::pin(async { self.hear("network-boot-once") })
        }
    }

    fn target() -> Target {
        Target { id: MachineId::fresh(), name: "m1".into(), macs: vec!["52:54:00:12:34:56".parse().unwrap()] }
    }

    /// How often the bench took the request.
    async fn brought(bench: &Bench, wanted: State) -> Result<u32, PowerError> {
        let mut asked = 0;
        settle(&SystemTimer::default(), bench, &target(), wanted, || asked += 1).await?;
        Ok(asked)
    }

    #[tokio::test(start_paused = true)]
    async fn a_machine_that_is_there_already_is_not_touched() {
        let bench = Bench::new(State::On);
        assert_eq!(brought(&bench, State::On).await.unwrap(), 0);
        assert_eq!(bench.acts(), [""; 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_driver_that_is_silent_twice_is_asked_again() {
        let bench = Bench { silent: Mutex::new(2), ..Bench::new(State::Off) };
        assert_eq!(brought(&bench, State::On).await.unwrap(), 1);
        let dead = Bench { silent: Mutex::new(3), ..Bench::new(State::Off) };
        assert!(matches!(brought(&dead, State::On).await, Err(PowerError::Unreachable(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_device_that_says_yes_and_does_nothing_is_named_in_the_end() {
        let bench = Bench { stuck: true, ..Bench::new(State::On) };
        let start = Instant::now();
        let error = brought(&bench, State::Off).await.unwrap_err();
        assert_eq!(error.to_string(), "unreachable: power is still on after 120 s");
        assert!(start.elapsed() < SETTLE + 2 * REPEAT);
        assert!(bench.acts().len() <= 5, "asked again now and then: {:?}", bench.acts());
    }

    struct Rack {
        _dir: tempfile::TempDir,
        bench: Arc<Bench>,
        calls: mpsc::Sender<Call>,
        spool: Spool,
        machine: MachineId,
        /// The revision that boot has.
        boot: watch::Sender<u64>,
    }

    impl Rack {
        async fn with(bench: Bench) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let database = open_database(&dir.path().join("agent.redb")).unwrap();
            let spool = Spool::within(database.clone(), 1000, None).unwrap();
            let clock = Arc::new(SystemClock::default());
            let ledger = Ledger::open(database, spool.clone(), clock.now().wall).await.unwrap();
            let intent = intent::Store::open(dir.path()).unwrap();
            let machine = MachineId::fresh();
            intent.store(one_machine(machine)).await.unwrap();
            let (calls, receiver) = mpsc::channel(8);
            let bench = Arc::new(bench);
            let metrics = Arc::new(Metrics::default());
            let (boot, timer) = (watch::Sender::new(1), Arc::new(SystemTimer::default()));
            let executor = Executor {
                driver: bench.clone(),
                ledger,
                spool: spool.clone(),
                intent,
                boot_has: boot.subscribe(),
                clock,
                timer,
                metrics,
                hands: Hands::default(),
            };
            tokio::spawn(executor.run(receiver, CancellationToken::new()));
            Self { _dir: dir, bench, calls, spool, machine, boot }
        }

        fn command(&self, action: Action) -> Command {
            Command {
                id: CommandId::fresh(),
                machine: self.machine,
                epoch: Epoch(3),
                within: Duration::from_secs(60),
                action,
            }
        }

        async fn call(&self, command: &Command) -> ControllerResponse {
            let (answer, answered) = oneshot::channel();
            self.calls.send(Call { command: command.clone(), answer }).await.unwrap();
            answered.await.unwrap()
        }

        /// Everything told until the command's outcome.
        async fn told(&self) -> Vec<String> {
            let mut told = Vec::new();
            loop {
                let (first, events) = self.spool.batch(256).await.unwrap();
                self.spool.acknowledge(first + events.len() as u64).await.unwrap();
                told.extend(events.iter().map(|event| event.what.to_string()));
                if matches!(events.last().unwrap().what, What::Commanded { .. }) {
                    return told;
                }
            }
        }
    }

    fn one_machine(machine: MachineId) -> Intent {
        let network = Network {
            node: "10.77.0.1/24".parse().unwrap(),
            gateway: None,
            dns: Vec::new(),
            delegated: ("10.77.0.200".parse().unwrap(), "10.77.0.250".parse().unwrap()),
        };
        let machine = MachineIntent {
            id: machine,
            name: "m1".into(),
            macs: target().macs,
            address: "10.77.0.9".parse().unwrap(),
            epoch: Epoch(3),
            boot: Boot::Installer,
            order: None,
        };
        Intent { revision: 1, rack: RackId::fresh(), name: "r1".into(), network, machines: vec![machine] }
    }

    #[tokio::test(start_paused = true)]
    async fn a_machine_is_not_restarted_into_the_network_before_boot_knows_what_for() {
        let rack = Rack::with(Bench::new(State::On)).await;
        rack.boot.send_replace(0);
        let start = Instant::now();
        assert_eq!(rack.call(&rack.command(Action::NetworkBoot)).await, ControllerResponse::Accepted);
        let follows = async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            rack.boot.send_replace(1);
        };
        let (told, ()) = tokio::join!(rack.told(), follows);
        assert_eq!(told.last().unwrap(), "power command: done");
        assert!((Duration::from_secs(7)..BOOT_FOLLOWS).contains(&start.elapsed()), "{:?}", start.elapsed());

        // One that is away does not keep the machine from its next try.
        rack.boot.send_replace(0);
        rack.call(&rack.command(Action::NetworkBoot)).await;
        assert_eq!(rack.told().await.last().unwrap(), "power command: done");
        assert_eq!(rack.bench.acts(), ["network-boot-once", "off", "on"].repeat(2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_network_boot_is_set_before_the_power_is_cycled_and_told_in_order() {
        let rack = Rack::with(Bench::new(State::On)).await;
        assert_eq!(rack.call(&rack.command(Action::NetworkBoot)).await, ControllerResponse::Accepted);
        assert_eq!(rack.told().await, ["power is off", "powered on", "power is on", "power command: done"]);
        assert_eq!(rack.bench.acts(), ["network-boot-once", "off", "on"]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_command_again_has_no_effect() {
        let rack = Rack::with(Bench::new(State::On)).await;
        let command = rack.command(Action::PowerOff);
        rack.call(&command).await;
        rack.told().await;
        *rack.bench.state.lock().unwrap() = State::On;
        assert_eq!(rack.call(&command).await, ControllerResponse::Known(Outcome::Done));
        assert_eq!(rack.bench.acts(), ["off"]);
    }

    #[tokio::test(start_paused = true)]
    async fn another_epoch_another_machine_and_a_command_too_late_are_refused() {
        let rack = Rack::with(Bench::new(State::On)).await;
        for command in [
            Command { epoch: Epoch(2), ..rack.command(Action::PowerOff) },
            Command { epoch: Epoch(4), ..rack.command(Action::PowerOff) },
            Command { machine: MachineId::fresh(), ..rack.command(Action::PowerOff) },
        ] {
            let response = rack.call(&command).await;
            assert!(matches!(response, ControllerResponse::Refused(_)), "{response:?}");
        }
        let late = Command { within: Duration::ZERO, ..rack.command(Action::PowerOff) };
        match rack.call(&late).await {
            ControllerResponse::Refused(_) => {}
            _ => assert_eq!(rack.told().await, ["power command: refused: it was to be started within 0 s"]),
        }
        assert_eq!(rack.bench.acts(), [""; 0]);
    }

    fn script(dir: &Path, text: &str) -> Exec {
        let path = dir.join("power");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let file = ExecFile {
            command: Some(vec![path.display().to_string(), "--lab".into()]),
            timeout: Some(1),
            machine: Vec::new(),
        };
        Exec::try_from(file).unwrap()
    }

    async fn state(text: &str) -> Result<State, String> {
        let dir = tempfile::tempdir().unwrap();
        script(dir.path(), text)
            .status(&target())
            .await
            .map_err(|error| error.to_string().replace(&dir.path().display().to_string(), "DIR"))
    }

    #[test]
    fn a_machine_that_somebody_has_open_is_switched_by_their_commands_alone() {
        let (hands, machine) = (Hands::default(), MachineId::fresh());
        let command = |action, machine| Command {
            id: CommandId::fresh(),
            machine,
            epoch: Epoch(3),
            within: Duration::from_secs(60),
            action,
        };
        hands.set(machine, Some("ada replaces a disk".into()));
        let own = command(Action::PowerOff, machine);
        assert_eq!(hands.check(&own), Err("ada replaces a disk".into()));
        hands.permit(machine, own.id);
        assert_eq!(hands.check(&own), Ok(()));
        assert!(hands.check(&command(Action::PowerOn, machine)).is_err());
        assert_eq!(hands.check(&command(Action::PowerStatus, machine)), Ok(()));
        assert_eq!(hands.check(&command(Action::PowerOn, MachineId::fresh())), Ok(()));
        hands.set(machine, None);
        assert_eq!(hands.check(&command(Action::PowerOn, machine)), Ok(()));
    }

    #[tokio::test]
    async fn the_command_is_told_the_verb_and_the_machine() {
        let answer =
            state(r#"[ "$1 $2 $RACKHAND_MAC $RACKHAND_NAME" = "--lab status 52:54:00:12:34:56 m1" ] && echo On"#);
        assert_eq!(answer.await, Ok(State::On));
    }

    #[tokio::test]
    async fn a_failure_is_quoted_and_its_status_says_whether_to_ask_again() {
        assert_eq!(
            state("echo the PDU is away >&2; exit 1").await.unwrap_err(),
            "unreachable: `DIR/power --lab status` ended with exit status: 1: \"the PDU is away\""
        );
        assert_eq!(
            state("echo no such outlet >&2; exit 78").await.unwrap_err(),
            "refused: `DIR/power --lab status` ended with exit status: 78: \"no such outlet\""
        );
        assert_eq!(
            state("echo perhaps").await.unwrap_err(),
            "malformed answer: `status` printed \"perhaps\", not `on` or `off`"
        );
    }

    #[tokio::test]
    async fn a_command_that_hangs_is_killed_with_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let child = dir.path().join("child");
        let exec = script(dir.path(), &format!("sleep 600 & echo $! > {}; wait", child.display()));
        let error = exec.status(&target()).await.unwrap_err();
        assert!(error.to_string().ends_with("was killed after 1 s"), "{error}");
        let child: i32 = std::fs::read_to_string(child).unwrap().trim().parse().unwrap();
        let gone = async {
            let stat = format!("/proc/{child}/stat");
            // Killed, whether or not somebody has collected it yet.
            while std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(10), gone).await.expect("the child lives on");
    }

    #[tokio::test]
    async fn what_a_command_leaves_running_does_not_hold_up_its_answer() {
        let start = Instant::now();
        assert_eq!(state("sleep 600 & echo off").await, Ok(State::Off));
        assert!(start.elapsed() < Duration::from_secs(1));
    }

    #[tokio::test]
    async fn a_flood_of_output_is_cut() {
        assert_eq!(state("head -c 3000000 /dev/zero; exit 1").await.unwrap_err().len(), {
            let quoted = format!("{:?}", "\0".repeat(400));
            "unreachable: `DIR/power --lab status` ended with exit status: 1: ".len() + quoted.len()
        });
    }

    #[tokio::test]
    async fn a_machine_without_a_command_is_refused_with_advice() {
        let exec = Exec::try_from(ExecFile::default()).unwrap();
        let error = exec.status(&target()).await.unwrap_err();
        assert!(error.to_string().contains("agent.toml"), "{error}");
    }
}
