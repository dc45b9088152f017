//! The runner: moves every run in progress on, from rows alone.
//!
//! A pass looks at each run: what the engine names is performed ([`steps`](crate::steps)),
//! what came of it is stored together with its events, until the run waits or is over. The
//! runner is told when something may have changed and does the same thing when it is not.
//!
//! Invariants:
//! - After a crash anywhere the next start finds each run where its row says, and repeats
//!   at most the step it was at.
//! - Deadlines of a run are held on monotonic time as long as this process lives; rows hold
//!   what is left of them.
//! - What the run's end means for the machine is written with that end.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use prometheus_client::{metrics::counter::Counter, registry::Registry};
use rackhand_common::{
    bmc::baseline::{Answered, Ask},
    commission::Tested,
    event, firmware,
    id::{Epoch, MachineId, RackId, RunId},
    intent::Boot,
    time::{Clock, Now},
    wire::{Command, ControllerResponse},
};
use rackhand_controller_core::{
    lifecycle::Event,
    workflow::{self, Cause, Ended, Fault, Next, Note, Step, WaitFor, Workflow},
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{
    steps::Look,
    store::{
        Happened, Hold, ImageVersion, Machine, OrderEnd, OrderResult, Parameters, Run, RunStatus, Store, StoreError, Tx,
    },
};

/// What a run needs of the racks' agents.
pub trait Commands: Send + Sync + 'static {
    /// Whether an agent of the rack is there to be given a command.
    fn reachable(&self, _rack: RackId) -> impl Future<Output = Result<(), Unreachable>> + Send {
        std::future::ready(Ok(()))
    }

    /// Gives a command to the rack's agent.
    fn command(
        &self,
        rack: RackId,
        command: Command,
    ) -> impl Future<Output = Result<ControllerResponse, Unreachable>> + Send;

    /// Has the rack's agent read the BMC of a machine in this epoch, and put it back before when
    /// there is a record; nothing when it is of an earlier version and cannot.
    fn baseline(
        &self,
        _rack: RackId,
        _machine: MachineId,
        _epoch: Epoch,
        _ask: Ask,
    ) -> impl Future<Output = Result<Option<Answered>, Unreachable>> + Send {
        std::future::ready(Ok(Some(Answered::Failed("no BMC is reached from here".to_owned()))))
    }

    /// Has the rack's agent update firmware of a machine in this epoch; nothing when it is of an earlier
    /// version and cannot.
    fn firmware(
        &self,
        _rack: RackId,
        _machine: MachineId,
        _epoch: Epoch,
        _ask: firmware::Ask,
    ) -> impl Future<Output = Result<Option<firmware::Answered>, Unreachable>> + Send {
        std::future::ready(Ok(Some(firmware::Answered::Refused("no BMC is reached from here".to_owned()))))
    }

    /// The rack's intent may have changed.
    fn wake(&self, rack: RackId);
}

/// No agent of the rack answers now; ask again later.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("agent of rack {rack} is not connected")]
pub struct Unreachable {
    /// The rack's name.
    pub rack: String,
}

/// A handle on the runner; clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Workflows {
    changed: Arc<Notify>,
    overdue: Counter,
}

impl Workflows {
    /// A handle, before its runner runs.
    pub fn new() -> Self {
        Self::default()
    }

    /// Something may have changed: a run was asked for or cancelled, a rack has told news.
    pub fn wake(&self) {
        self.changed.notify_one();
    }

    /// Adds what is counted here to the metrics.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "rackhand_run_steps_overdue",
            "Steps of runs that passed their deadline",
            self.overdue.clone(),
        );
    }
}

/// How often runs are looked at when nothing wakes the runner. A wake can be lost with the
/// process that was to send it, and a deadline passes silently: an alert is due 60 s after it.
pub(crate) const TICK: Duration = Duration::from_secs(2);

/// Runs looked at at once: an agent that answers slowly holds up one of them only.
const AT_ONCE: usize = 16;

/// How often one pass may perform steps of one run; more would be an engine that spins.
const STEPS_PER_PASS: usize = 64;

/// Moves runs on until `shutdown`. A pass that has begun is finished: it holds nothing that
/// could not be repeated, but a command answered is best noted.
pub async fn run<C: Commands>(
    workflows: Workflows,
    store: Store,
    commands: C,
    clock: Arc<dyn Clock>,
    shutdown: CancellationToken,
) {
    let runner = Runner::new(workflows, store, commands, clock, AT_ONCE);
    while !shutdown.is_cancelled() {
        if let Err(error) = runner.pass().await {
            tracing::error!(error = chain(&error), "runs in progress cannot be read");
        }
        tokio::select! {
            () = runner.workflows.changed.notified() => {}
            () = tokio::time::sleep(TICK) => {}
            () = shutdown.cancelled() => {}
        }
    }
}

/// Looks at runs and moves them on.
pub struct Runner<C> {
    workflows: Workflows,
    store: Store,
    commands: C,
    clock: Arc<dyn Clock>,
    at_once: usize,
    /// Runs with their deadlines on this process's monotonic time.
    live: Mutex<HashMap<RunId, workflow::Run>>,
}

impl<C: Commands> Runner<C> {
    /// A runner that knows nothing but the rows, and looks at so many runs at once.
    pub fn new(workflows: Workflows, store: Store, commands: C, clock: Arc<dyn Clock>, at_once: usize) -> Self {
        Self { workflows, store, commands, clock, at_once, live: Mutex::default() }
    }

    /// Looks at every run in progress once.
    pub async fn pass(&self) -> Result<(), StoreError> {
        let runs = self.store.runs_in_progress().await?;
        self.live().retain(|id, _| runs.iter().any(|run| run.id == *id));
        stream::iter(runs)
            .for_each_concurrent(self.at_once, |run| async move {
                let id = run.id;
                if let Err(error) = self.drive(run).await {
                    // Its row is as it was: the next pass tries again.
                    self.live().remove(&id);
                    self.store.note(&error);
                    tracing::error!(run = %id, error = chain(&error), "a run cannot be moved on");
                }
            })
            .await;
        Ok(())
    }

    async fn drive(&self, mut run: Run) -> Result<(), StoreError> {
        let known = self.live().get(&run.id).cloned();
        let is_new = known.is_none();
        let mut engine = known.unwrap_or_else(|| run.engine.resume(self.clock.now()));
        if is_new {
            // Whoever asked for it may have crashed before the rack was told.
            self.commands.wake(run.rack);
        }
        engine.wake();
        let mut stored = engine.clone();
        let mut notes = if run.cancel { engine.cancel() } else { Vec::new() };
        for _ in 0..STEPS_PER_PASS {
            if engine != stored || is_new {
                if matches!(engine.next(self.clock.now()), Next::Finished(ref ended) if *ended != Ended::Done)
                    && let Some((step, attempt, undo)) = stored.position()
                {
                    let now = self.clock.now();
                    let look =
                        Look { store: &self.store, commands: &self.commands, now, run: &run, step, attempt, undo };
                    look.end_boot().await?;
                }
                self.save(&mut run, &engine, &notes).await?;
                stored = engine.clone();
            }
            if engine.position().is_none() {
                self.live().remove(&run.id);
                return Ok(());
            }
            self.live().insert(run.id, engine.clone());
            let now = self.clock.now();
            let (step, attempt, undo) = match engine.next(now) {
                Next::Do { step, attempt } => (step, attempt, false),
                Next::Undo { step, attempt } => (step, attempt, true),
                Next::Wait { .. } | Next::Finished(_) => return Ok(()),
            };
            let look = Look { store: &self.store, commands: &self.commands, now, run: &run, step, attempt, undo };
            let report = look.perform().await?;
            notes = engine.record(self.clock.now(), report);
            // What the rack told meanwhile is seen at the next step.
            let fresh = self.store.run(run.id).await?;
            (run.done, run.total, run.begun, run.result, run.phoned_home, run.way, run.parameters) = (
                fresh.done,
                fresh.total,
                fresh.begun,
                fresh.result,
                fresh.phoned_home,
                fresh.way,
                // The disks of a machine that nobody had looked into are learnt in it.
                fresh.parameters,
            );
        }
        tracing::error!(run = %run.id, "a run goes on without end; it is left until the next look");
        Ok(())
    }

    /// Stores where the engine is, with the events and, at its end, what that means for the
    /// machine.
    async fn save(&self, run: &mut Run, engine: &workflow::Run, notes: &[Note]) -> Result<(), StoreError> {
        let now = self.clock.now();
        let waited_for = run.waiting_for;
        describe(run, engine, now);
        let mut tx = self.store.begin().await?;
        for note in notes {
            self.tell(&mut tx, now.wall, run, note).await?;
            if let Note::Ended(ended) = note {
                end(&mut tx, now.wall, run, ended).await?;
            }
        }
        if let (Some(waiting), Some(detail)) = (run.waiting_for.filter(|_| run.waiting_for != waited_for), &run.detail)
        {
            let (waiting, detail, until) = (waiting.to_string(), detail.clone(), run.waiting_until);
            insert(&mut tx, now.wall, run, Happened::Waits { waiting, detail, until }).await?;
        }
        tx.save_run(now.wall, run).await?;
        if engine.position().is_none() {
            tx.forget_user_data(run).await?;
        }
        tx.commit().await?;
        if engine.position().is_none() {
            self.commands.wake(run.rack);
        }
        Ok(())
    }

    async fn tell(&self, tx: &mut Tx, now: Timestamp, run: &Run, note: &Note) -> Result<(), StoreError> {
        let overdue = match note {
            Note::Again { fault, .. } | Note::Undoing(fault) => Some(fault),
            Note::LeftBehind(leftover) => Some(&leftover.fault),
            _ => None,
        };
        if let Some(fault) = overdue.filter(|fault| fault.cause == Cause::Overdue) {
            self.workflows.overdue.inc();
            tracing::warn!(run = %run.id, machine = %run.machine, detail = fault.detail, "a run is overdue");
            let reason = format!("{} is overdue: {}", run.parameters.workflow(), fault.detail);
            insert(tx, now, run, Happened::Alert { reason }).await?;
        }
        let happened = match note.clone() {
            Note::StepDone(step) => Happened::StepDone { step },
            Note::Again { step, attempt, fault: Fault { cause, detail } } => {
                Happened::Again { step, attempt, cause, detail }
            }
            Note::Undoing(Fault { cause, detail }) => Happened::Undoing { cause, detail },
            Note::StepUndone(step) => Happened::StepUndone { step },
            Note::LeftBehind(leftover) => Happened::LeftBehind { step: leftover.step, detail: leftover.fault.detail },
            Note::Ended(ended) => {
                let cause = fault_of(&ended).map(|fault| fault.cause);
                Happened::RunEnded { status: status(&ended), cause, detail: closing(run, &ended) }
            }
        };
        tracing::info!(run = %run.id, machine = %run.machine, ?happened, "run");
        insert(tx, now, run, happened).await
    }

    fn live(&self) -> std::sync::MutexGuard<'_, HashMap<RunId, workflow::Run>> {
        self.live.lock().expect("no holder of this lock panics")
    }
}

async fn insert(tx: &mut Tx, now: Timestamp, run: &Run, happened: Happened) -> Result<(), StoreError> {
    tx.insert_event(now, run.rack, Some(run.machine), Some(run.id), &happened).await?;
    Ok(())
}

/// Fills the columns that say where a run is.
fn describe(run: &mut Run, engine: &workflow::Run, now: Now) {
    run.engine = engine.store(now);
    if let Some((step, attempt, undoing)) = engine.position() {
        (run.step, run.attempt, run.undoing) = (Some(step), attempt, undoing);
    }
    let waited_for = run.waiting_for;
    (run.waiting_for, run.waiting_until, run.detail) = match engine.waiting() {
        Some((waiting, detail, until)) => {
            let left = now.mono.until(until);
            (Some(waiting), now.wall.checked_add(left).ok(), Some(detail.to_owned()))
        }
        // It moves on as soon as it is looked at, unless that cannot be written down.
        None => (Some(WaitFor::Controller), now.wall.checked_add(TICK).ok(), None),
    };
    if run.waiting_for != waited_for || run.waiting_since.is_none() {
        run.waiting_since = Some(now.wall);
    }
    run.cause = engine.fault().map(|fault| fault.cause.to_string());
    if let Next::Finished(ended) = engine.next(now) {
        (run.waiting_for, run.waiting_since, run.waiting_until) = (None, None, None);
        run.status = status(&ended);
        run.ended = Some(now.wall);
        run.detail = closing(run, &ended);
    }
}

/// Who takes a machine's addresses from it when its project gives it back.
const RELEASE: &str = "release";

/// Writes what a run's end means for its machine.
async fn end(tx: &mut Tx, now: Timestamp, run: &Run, ended: &Ended) -> Result<(), StoreError> {
    let workflow = run.parameters.workflow();
    let Some(event) = workflow.event(ended) else { return Ok(()) };
    let mut machine = tx.machine(&run.machine.to_string()).await?;
    match machine.lifecycle.on(event) {
        Ok(lifecycle) => machine.lifecycle = lifecycle,
        // Only this run moves the machine while it is in progress.
        Err(forbidden) => return Err(StoreError::Damaged("lifecycle", forbidden.into())),
    }
    if event == Event::Updated {
        return updated(tx, now, run, machine, ended).await;
    }
    if event == Event::Tested {
        machine.order = None;
        return tested(tx, now, run, machine, ended).await;
    }
    let had = machine.project;
    hand_over(&mut machine, run, workflow, ended);
    machine.held = match (event, fault_of(ended)) {
        (Event::Rescued, _) => {
            let until = match &run.parameters {
                Parameters::Rescue(rescue) => Some(rescue.until),
                _ => None,
            };
            Some(Hold { reason: "in rescue".to_owned(), since: now, until })
        }
        (Event::Broke, Some(fault)) => {
            let reason = format!("{workflow} {}: {}", fault.cause, fault.detail);
            Some(Hold { reason, since: now, until: None })
        }
        _ => None,
    };
    if had.is_some() && machine.project.is_none() {
        tx.leave_addresses(now, &machine, RELEASE).await?;
    }
    tx.update_machine(now, &mut machine).await
}

/// What begins the alert of a machine that did not pass its tests.
pub(crate) const NOT_PASSED: &str = "tests not passed: ";

/// Has a machine's alert say what its tests found; what earlier ones found is said until these tests pass.
async fn tested(tx: &mut Tx, now: Timestamp, run: &Run, mut machine: Machine, ended: &Ended) -> Result<(), StoreError> {
    if matches!(ended, Ended::Stuck { .. }) {
        hand_over(&mut machine, run, Workflow::Test, ended);
        return tx.update_machine(now, &mut machine).await;
    }
    let found = tx.not_passed(machine.id).await?;
    let reasons: Vec<_> = found
        .iter()
        .map(|Tested { script, reason, part, .. }| match part.is_empty() {
            true => format!("{script} ({reason})"),
            false => format!("{script} ({reason}; look at {part})"),
        })
        .collect();
    let alert = (!reasons.is_empty()).then(|| format!("{NOT_PASSED}{}", reasons.join(", ")));
    if let Some(reason) = alert.clone().filter(|_| machine.alert != alert) {
        insert(tx, now, run, Happened::Alert { reason }).await?;
    }
    machine.alert = match machine.alert {
        Some(other) if !other.starts_with(NOT_PASSED) => alert.or(Some(other)),
        _ => alert,
    };
    if let (Parameters::Test(tests), Ended::Done, Ok(lifecycle)) =
        (&run.parameters, ended, machine.lifecycle.on(Event::Resume))
        && tests.resumes
        && machine.alert.is_none()
    {
        (machine.lifecycle, machine.held) = (lifecycle, None);
        insert(tx, now, run, Happened::Resumed { lifecycle }).await?;
    }
    tx.update_machine(now, &mut machine).await
}

/// Has a machine stay out of service when an update left in doubt what its devices have: until somebody looked,
/// nobody is given it. One of which nothing was changed is as it was.
async fn updated(
    tx: &mut Tx,
    now: Timestamp,
    run: &Run,
    mut machine: Machine,
    ended: &Ended,
) -> Result<(), StoreError> {
    machine.order = None;
    let updates = tx.updates_of(run.id).await?;
    let is_in_doubt = updates.values().any(|update| !update.state.is_settled());
    if let Some(fault) = fault_of(ended).filter(|_| is_in_doubt) {
        machine.lifecycle = machine
            .lifecycle
            .on(Event::UpdateFailed)
            .map_err(|forbidden| StoreError::Damaged("lifecycle", forbidden.into()))?;
        let reason = format!("{} {}: {}", Workflow::UpdateFirmware, fault.cause, fault.detail);
        machine.alert = Some(reason.clone());
        machine.held = Some(Hold { reason: reason.clone(), since: now, until: None });
        insert(tx, now, run, Happened::Alert { reason }).await?;
    }
    tx.update_machine(now, &mut machine).await
}

fn hand_over(machine: &mut Machine, run: &Run, workflow: Workflow, ended: &Ended) {
    if let (Parameters::Rescue(_), Ended::Done) = (&run.parameters, ended) {
        // What it boots and its order stay: restarted, it is a rescue system again.
        machine.alert = None;
        return;
    }
    (machine.order, machine.rescue) = (None, None);
    match (&run.parameters, ended) {
        (Parameters::Deploy(deploy) | Parameters::Reinstall(deploy), Ended::Done) => {
            machine.boot = Boot::Disk;
            machine.image = Some(ImageVersion { name: deploy.image_name.clone(), version: deploy.image_version });
            machine.connected = false;
            machine.alert = None;
        }
        // Nothing was written: its own system is what it starts, and is its owner's.
        (Parameters::LeaveRescue, Ended::Done) => {
            machine.boot = Boot::Disk;
            machine.connected = false;
            machine.alert = None;
        }
        (Parameters::Rescue(_), Ended::Undone { .. }) => {
            machine.boot = Boot::Disk;
            machine.connected = false;
        }
        (parameters, Ended::Done) => {
            machine.boot = Boot::Installer;
            machine.image = None;
            machine.alert = None;
            if matches!(parameters, Parameters::Release(_)) {
                machine.project = None;
            }
        }
        // Its own system runs, and is its owner's.
        (Parameters::Reinstall(_), Ended::Undone { .. }) if !may_have_written(run) => {
            machine.boot = Boot::Disk;
            machine.connected = false;
        }
        (_, Ended::Undone { fault }) => {
            machine.boot = Boot::Installer;
            if workflow == Workflow::Reinstall {
                machine.image = None;
            }
            if matches!(workflow, Workflow::Release | Workflow::Reinstall) {
                machine.alert = Some(format!("{workflow} {}: {}", fault.cause, fault.detail));
            }
        }
        (parameters, Ended::Stuck { fault, leftovers }) => {
            machine.boot = if matches!(parameters, Parameters::Rescue(_)) { Boot::Disk } else { Boot::Installer };
            let left: Vec<_> = leftovers.iter().map(|left| format!("{}: {}", left.step, left.fault.detail)).collect();
            machine.alert =
                Some(format!("{workflow} {}: {}; not undone: {}", fault.cause, fault.detail, left.join("; ")));
        }
    }
}

/// Why a run failed, and what it left on the machine's disk, for people.
fn closing(run: &Run, ended: &Ended) -> Option<String> {
    let fault = fault_of(ended)?;
    let remark = match (run.parameters.workflow(), run.step) {
        (Workflow::Rescue, _) => "; nothing was written to its disks",
        (Workflow::Reinstall, _) if !may_have_written(run) => "; the system that was there is untouched",
        (Workflow::Deploy | Workflow::Reinstall, Some(Step::WriteImage | Step::StartSystem | Step::LeaveSystem)) => {
            match &run.result {
                Some(OrderResult { end: OrderEnd::Done(_), .. }) => {
                    "; the disk holds a system that was never handed over"
                }
                // An order begun again is refused before its first write too, which was not the first.
                _ if run.done > 0 => "; the disk holds an unfinished system",
                Some(OrderResult { attempt: 1, end: OrderEnd::Failed { cause, .. } }) if is_refusal(*cause) => "",
                _ => "; the disk may hold an unfinished system",
            }
        }
        _ => "",
    };
    Some(format!("{}{remark}", fault.detail))
}

/// Whether the machine's disks may be changed by this run.
pub(crate) fn may_have_written(run: &Run) -> bool {
    if matches!(run.parameters, Parameters::Rescue(_) | Parameters::LeaveRescue | Parameters::RegainBmc) {
        return false;
    }
    match &run.result {
        Some(OrderResult { attempt: 1, end: OrderEnd::Failed { cause, .. } }) if is_refusal(*cause) => run.done > 0,
        result => result.is_some() || run.begun,
    }
}

/// Whether an installer says this before its first write.
fn is_refusal(cause: event::Cause) -> bool {
    use event::Cause::{
        BootOrder, DiskError, DisksDiffer, Image, ImageUnsuitable, Internal, MainboardDiffers, NoSuitableDisk, Tpm,
    };
    match cause {
        event::Cause::WrongMachine | MainboardDiffers | DisksDiffer | NoSuitableDisk | ImageUnsuitable => true,
        Image | DiskError | event::Cause::Verify | BootOrder | Tpm | event::Cause::Bmc | Internal => false,
    }
}

fn fault_of(ended: &Ended) -> Option<&Fault> {
    match ended {
        Ended::Done => None,
        Ended::Undone { fault } | Ended::Stuck { fault, .. } => Some(fault),
    }
}

fn status(ended: &Ended) -> RunStatus {
    match fault_of(ended) {
        None => RunStatus::Done,
        Some(fault) if fault.cause == Cause::Cancelled => RunStatus::Cancelled,
        Some(_) => RunStatus::Failed,
    }
}

/// An error with its sources, for the log.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests;
