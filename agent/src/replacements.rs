//! Parts that a technician replaces at this node, with or without the controller: the machine is switched
//! off, opened, started into its installer, and what is in it is held against what was.
//!
//! Each replacement is a record in the agent's store, written in one transaction with the event that tells
//! of it. The controller takes the events once it is there, and decides about the machine.
//!
//! Invariants:
//! - Only a machine that is nobody's is touched: looked at when it begins and before each power command.
//! - While one is under way, no power command but its own is carried out on the machine ([`Hands`]).
//! - A step that was under way when the process was killed is done again: each can be repeated.
//! - That a part is replaced is told only when exactly that part is another one ([`judge`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use rackhand_common::{
    event::{Event, Outcome, What},
    health::Verdict,
    id::{CommandId, MachineId},
    intent::{Boot, MachineIntent},
    replacement::{Ask, Kind, Part, PartReplaced, Shown, Stage, Step, View, judge, parts, printable},
    time::Clock,
    wire::{Action, Command, ControllerResponse},
};
use redb::{Database, ReadableTable, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Notify, mpsc, oneshot},
    task::JoinSet,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    intent,
    lights::Lights,
    lives,
    power::{Call, Hands},
    spool::{Spool, SpoolError},
    timeline::Timelines,
};

/// By machine: its latest [`Record`], as JSON.
const TABLE: TableDefinition<u128, &[u8]> = TableDefinition::new("replacements");

/// How long the lamp is lit at most, when nobody says that they are done.
const LAMP: Duration = Duration::from_secs(4 * 60 * 60);

/// How long a machine may take to tell what is in it: large ones train their memory for ten minutes
/// once a module is another one.
const STARTS_WITHIN: Duration = Duration::from_secs(30 * 60);

/// How long after its inventory an installer may tell the rest.
const DETAILS_WITHIN: Duration = Duration::from_secs(20);

/// How often it is looked whether something is over.
const LOOK: Duration = Duration::from_millis(300);

/// How long a power command may wait for those before it.
const WITHIN: Duration = Duration::from_secs(300);

/// A replacement as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    id: uuid::Uuid,
    by: String,
    began: Timestamp,
    old: Part,
    /// The machine's parts before.
    was: Vec<Part>,
    typed: Option<String>,
    /// Whether the machine was told to start, and the number of its latest event by then.
    started: Option<Option<u64>>,
    stage: Stage,
}

impl Record {
    fn told(&self, machine: MachineId, at: Timestamp, step: Step) -> Event {
        let Self { id, by, began, old, .. } = self.clone();
        Event {
            at,
            machine: Some(machine),
            what: What::PartReplaced(Box::new(PartReplaced { id, by, began, old, step })),
        }
    }

    fn shown(&self) -> Shown {
        let Self { by, began, old, stage, .. } = self.clone();
        Shown { by, began, old, stage }
    }
}

/// What replacements are made with.
pub struct Bench {
    /// Which machines are ours.
    pub intent: intent::Store,
    /// Which of them are nobody's.
    pub lives: lives::Store,
    /// Where what happened is told.
    pub spool: Spool,
    /// What was found in machines.
    pub timelines: Timelines,
    /// Their lamps.
    pub lights: Lights,
    /// Where power commands are given.
    pub calls: mpsc::Sender<Call>,
    /// Who may switch what.
    pub hands: Hands,
    /// The present.
    pub clock: Arc<dyn Clock>,
}

/// A handle to the replacements of a rack.
#[derive(Clone)]
pub struct Replacements(Arc<Inner>);

struct Inner {
    bench: Bench,
    records: Mutex<BTreeMap<MachineId, Record>>,
    /// Held while a record is changed.
    writing: tokio::sync::Mutex<()>,
    changed: Notify,
}

impl Replacements {
    /// Those in this store, which go on once this [runs](Self::run).
    ///
    /// # Errors
    ///
    /// The store fails.
    pub fn open(database: &Database, bench: Bench) -> Result<Self, SpoolError> {
        let tx = database.begin_write()?;
        let mut records = BTreeMap::new();
        for entry in tx.open_table(TABLE)?.iter()? {
            let (machine, record) = entry?;
            let machine = MachineId(uuid::Uuid::from_u128(machine.value()));
            match serde_json::from_slice::<Record>(record.value()) {
                Ok(record) => drop(records.insert(machine, record)),
                Err(error) => tracing::error!(%machine, %error, "the record of a replacement cannot be read"),
            }
        }
        tx.commit()?;
        for (machine, record) in &records {
            bench.hands.set(*machine, held(record));
        }
        let records = Mutex::new(records);
        Ok(Self(Arc::new(Inner { bench, records, writing: tokio::sync::Mutex::new(()), changed: Notify::new() })))
    }

    /// Does what the replacements wait for, until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut works = JoinSet::new();
        let mut busy = BTreeSet::new();
        loop {
            let waiting: Vec<_> = self
                .lock()
                .iter()
                .filter(|(_, record)| matches!(record.stage, Stage::SwitchingOff | Stage::Starting { .. }))
                .map(|(machine, _)| *machine)
                .filter(|machine| !busy.contains(machine))
                .collect();
            for machine in waiting {
                busy.insert(machine);
                let replacements = self.clone();
                works.spawn(async move {
                    if let Err(error) = replacements.work(machine).await {
                        tracing::error!(%machine, %error, "a replacement cannot be written down");
                        tokio::time::sleep(LOOK).await;
                    }
                    machine
                });
            }
            tokio::select! {
                done = works.join_next(), if !works.is_empty() => match done {
                    Some(Ok(machine)) => drop(busy.remove(&machine)),
                    // Whoever panicked has said why; all are looked at again.
                    _ => busy.clear(),
                },
                () = self.0.changed.notified() => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// What is under way in this machine, in words.
    pub fn under_way(&self, machine: MachineId) -> Option<String> {
        self.lock().get(&machine).filter(|record| record.stage.is_under_way()).map(words)
    }

    /// Does what a technician asks, and says how it stands then; or why it is not done. `verdict` is what
    /// the rules of health make of the machine.
    ///
    /// # Errors
    ///
    /// Why not, for people.
    pub async fn ask(
        &self,
        name: &str,
        machine: MachineId,
        ask: Ask,
        verdict: Option<&Verdict>,
    ) -> Result<View, String> {
        match ask {
            Ask::Show => {}
            Ask::Begin { part, by } => self.begin(name, machine, &part, &by).await?,
            Ask::Swapped { typed } => {
                let typed = typed.map(|typed| printable(&typed)).filter(|typed| !typed.is_empty());
                let since = self.0.bench.clock.now().wall;
                self.advance(name, machine, |record| match record.stage {
                    Stage::SwitchingOff => Err(format!("{name} is still being switched off: wait until it is")),
                    Stage::Starting { .. } => {
                        record.typed = typed.or(record.typed.take());
                        Ok(None)
                    }
                    _ => {
                        (record.typed, record.started) = (typed, None);
                        record.stage = Stage::Starting { since, why: None };
                        Ok(None)
                    }
                })
                .await?;
            }
            Ask::Again => {
                self.advance(name, machine, |record| {
                    record.stage = Stage::SwitchingOff;
                    Ok(None)
                })
                .await?;
            }
            Ask::Abandon => {
                self.advance(name, machine, |record| {
                    record.stage = Stage::Abandoned;
                    Ok(Some(Step::Abandoned))
                })
                .await?;
                self.put_out(machine).await;
            }
        }
        let mut parts =
            self.0.bench.timelines.found(machine, None).map(|found| parts(&found.inventory, &found.hardware));
        for part in parts.iter_mut().flatten().filter(|part| part.fault.is_empty()) {
            part.fault = verdict.and_then(|verdict| complaint(part, verdict)).unwrap_or_default();
        }
        let replacement = self.lock().get(&machine).map(Record::shown);
        Ok(View { machine: name.to_owned(), parts: parts.unwrap_or_default(), replacement })
    }

    async fn begin(&self, name: &str, machine: MachineId, wanted: &str, by: &str) -> Result<(), String> {
        let by = Some(printable(by)).filter(|by| !by.is_empty()).ok_or("say who you are: --by NAME")?;
        let wish = self.open_to_hands(name, machine)?;
        let found = self.0.bench.timelines.found(machine, None).ok_or_else(|| {
            format!("this node has not seen what is in {name}: start it into its installer once, from the network")
        })?;
        let was = parts(&found.inventory, &found.hardware);
        let old = match was.iter().filter(|part| part.is_meant_by(wanted)).collect::<Vec<_>>().as_slice() {
            [only] => (*only).clone(),
            [] => {
                return Err(format!(
                    "{name} has no part {:?}: `rackhand-diag replace-part {name}` lists them",
                    printable(wanted)
                ));
            }
            _ => {
                return Err(format!(
                    "{:?} may be more than one part of {name}: say the serial number",
                    printable(wanted)
                ));
            }
        };
        if old.identity.is_empty() {
            return Err(format!("{old}: it could not be told from another one"));
        }
        let boots_from = wish.macs.first().map(ToString::to_string);
        if old.kind == Kind::NetworkCard && boots_from.is_some_and(|mac| old.identity.split(' ').any(|own| own == mac))
        {
            return Err(format!(
                "{old} is the card {name} boots from: with another one it is discovered as a new machine, which \
                 `rackhand machine merge` joins to {name} (docs/operator/changed-parts.md)"
            ));
        }
        let _writing = self.0.writing.lock().await;
        let present = self.lock().get(&machine).filter(|record| record.stage.is_under_way()).cloned();
        match present {
            Some(present) if present.old == old => return Ok(()),
            Some(present) => {
                return Err(format!(
                    "{} already: end that first, `rackhand-diag replace-part {name} --abandon`",
                    words(&present)
                ));
            }
            None => {}
        }
        let now = self.0.bench.clock.now().wall;
        let began = Timestamp::from_second(now.as_second()).expect("a second of a time is a time");
        let (id, stage) = (uuid::Uuid::now_v7(), Stage::SwitchingOff);
        let record = Record { id, by, began, old, was, typed: None, started: None, stage };
        let told = record.told(machine, now, Step::Begun);
        self.write(machine, record, vec![told]).await.map_err(|error| format!("it cannot be written down: {error}"))
    }

    /// The machine, when a technician may open it now.
    fn open_to_hands(&self, name: &str, machine: MachineId) -> Result<MachineIntent, String> {
        let intent = self.0.bench.intent.current();
        let wish = intent.as_ref().and_then(|intent| intent.machines.iter().find(|known| known.id == machine));
        let wish = wish.ok_or_else(|| format!("the controller has not named {name}: an operator adopts it first"))?;
        match self.0.bench.lives.of(machine) {
            Some(life) if life.is_idle() => {}
            Some(life) => {
                return Err(format!(
                    "{name} is {life}, and is not touched: only a machine that is ready, quarantined or in maintenance is \
                     opened; an operator gets it there, `rackhand machine release {name}`"
                ));
            }
            None => {
                return Err(format!(
                    "this node was never told whether {name} is somebody's: its controller is of an earlier version, or has \
                     not been reached since this node was upgraded"
                ));
            }
        }
        if wish.order.is_some() || wish.boot != Boot::Installer {
            return Err(format!("a run is at work on {name}: wait until it is over, or have an operator cancel it"));
        }
        Ok(wish.clone())
    }

    /// Changes the replacement that is under way.
    async fn advance(
        &self,
        name: &str,
        machine: MachineId,
        change: impl FnOnce(&mut Record) -> Result<Option<Step>, String>,
    ) -> Result<(), String> {
        let _writing = self.0.writing.lock().await;
        let present = self.lock().get(&machine).filter(|record| record.stage.is_under_way()).cloned();
        let mut record = present.ok_or_else(|| {
            format!("no part of {name} is being replaced: begin with `rackhand-diag replace-part {name} --slot SLOT`")
        })?;
        let before = record.clone();
        let step = change(&mut record)?;
        if record == before {
            return Ok(());
        }
        let told = step.map(|step| record.told(machine, self.0.bench.clock.now().wall, step));
        let written = self.write(machine, record, told.into_iter().collect()).await;
        written.map_err(|error| format!("it cannot be written down: {error}"))
    }

    /// The same by this process itself, as long as it is `before`.
    async fn move_on(
        &self,
        machine: MachineId,
        before: &Record,
        after: Record,
        step: Option<Step>,
    ) -> Result<(), SpoolError> {
        let _writing = self.0.writing.lock().await;
        if self.lock().get(&machine) != Some(before) {
            return Ok(());
        }
        let told = step.map(|step| after.told(machine, self.0.bench.clock.now().wall, step));
        self.write(machine, after, told.into_iter().collect()).await
    }

    async fn write(&self, machine: MachineId, record: Record, told: Vec<Event>) -> Result<(), SpoolError> {
        let bytes = serde_json::to_vec(&record).expect("records always serialize");
        let put = move |tx: &WriteTransaction| {
            tx.open_table(TABLE)?.insert(machine.0.as_u128(), bytes.as_slice())?;
            Ok(())
        };
        // Before it is written: nothing is switched on by others that is about to be opened.
        self.0.bench.hands.set(machine, held(&record));
        let written = self.0.bench.spool.append_with(told, Box::new(put)).await;
        match written {
            Ok(()) => drop(self.lock().insert(machine, record)),
            Err(error) => {
                self.0.bench.hands.set(machine, self.lock().get(&machine).and_then(held));
                return Err(error);
            }
        }
        self.0.changed.notify_one();
        Ok(())
    }

    /// Does what a replacement waits for.
    async fn work(&self, machine: MachineId) -> Result<(), SpoolError> {
        let Some(record) = self.lock().get(&machine).cloned() else { return Ok(()) };
        match (&record.stage, record.started) {
            (Stage::SwitchingOff, _) => {
                if let Err(reason) = self.0.bench.lights.identify(machine, LAMP).await {
                    tracing::info!(%machine, reason, "the lamp of a machine that is opened is not lit");
                }
                let why = self.command(machine, Action::PowerOff).await.err();
                let why = why.map(|why| format!("it is not switched off by this node ({why}): switch it off yourself"));
                self.move_on(machine, &record, Record { stage: Stage::Swap { why }, ..record.clone() }, None).await
            }
            (Stage::Starting { since, .. }, None) => {
                let why = self.command(machine, Action::NetworkBoot).await.err();
                let why = why
                    .map(|why| format!("it is not started by this node ({why}): start it from the network yourself"));
                let stage = Stage::Starting { since: *since, why };
                let started = Some(self.0.bench.timelines.latest_number(machine));
                self.adopt_typed(machine, Record { stage, started, ..record }).await
            }
            (Stage::Starting { .. }, Some(from)) => self.compare(machine, from).await,
            _ => Ok(()),
        }
    }

    /// Moves on unless somebody else has; what was typed meanwhile counts.
    async fn adopt_typed(&self, machine: MachineId, after: Record) -> Result<(), SpoolError> {
        let present = self.lock().get(&machine).cloned();
        let Some(present) = present.filter(|present| matches!(present.stage, Stage::Starting { .. })) else {
            return Ok(());
        };
        let after = Record { typed: present.typed.clone(), ..after };
        self.move_on(machine, &present, after, None).await
    }

    /// Waits for what the installer finds, and holds it against what was.
    async fn compare(&self, machine: MachineId, from: Option<u64>) -> Result<(), SpoolError> {
        let until = Instant::now() + STARTS_WITHIN;
        let mut seen: Option<Instant> = None;
        loop {
            let Some(record) = self.lock().get(&machine).cloned() else { return Ok(()) };
            if !matches!(record.stage, Stage::Starting { .. }) || record.started != Some(from) {
                return Ok(());
            }
            if let Some(found) = self.0.bench.timelines.found(machine, Some(from)) {
                let first = *seen.get_or_insert_with(Instant::now);
                if found.is_detailed || first.elapsed() >= DETAILS_WITHIN {
                    let is = parts(&found.inventory, &found.hardware);
                    let found = judge(&record.old, &record.was, &is, record.typed.as_deref());
                    let (stage, step) = match &found.new {
                        Some(new) if found.problems.is_empty() => {
                            let (new, notes) = (new.clone(), found.notes.clone());
                            let typed = record.typed.clone().unwrap_or_default();
                            (Stage::Done(found), Some(Step::Done { new, typed, notes }))
                        }
                        _ => (Stage::Doubtful(found), None),
                    };
                    let is_done = step.is_some();
                    self.move_on(machine, &record, Record { stage, ..record.clone() }, step).await?;
                    if is_done {
                        self.put_out(machine).await;
                    }
                    return Ok(());
                }
            } else if Instant::now() >= until {
                let minutes = STARTS_WITHIN.as_secs() / 60;
                let why =
                    format!("its installer has not told what is in it for {minutes} min: does the part sit well?");
                let stage = Stage::Swap { why: Some(why) };
                return self.move_on(machine, &record, Record { stage, ..record.clone() }, None).await;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Has this node's own power command carried out; or why it was not, at the third try: a device may be
    /// slow, and a process that stops refuses whatever comes.
    async fn command(&self, machine: MachineId, action: Action) -> Result<(), String> {
        for _ in 0..2 {
            if self.try_command(machine, action).await.is_ok() {
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
        self.try_command(machine, action).await
    }

    async fn try_command(&self, machine: MachineId, action: Action) -> Result<(), String> {
        let wish = self.open_to_hands("it", machine)?;
        let id = CommandId::fresh();
        self.0.bench.hands.permit(machine, id);
        let command = Command { id, machine, epoch: wish.epoch, within: WITHIN, action };
        loop {
            let (answer, answered) = oneshot::channel();
            let call = Call { command: command.clone(), answer };
            let answer = match self.0.bench.calls.send(call).await {
                Ok(()) => answered.await.ok(),
                Err(_) => None,
            };
            match answer {
                Some(ControllerResponse::Known(Outcome::Done)) => return Ok(()),
                Some(ControllerResponse::Known(outcome)) => return Err(outcome.to_string()),
                Some(ControllerResponse::Refused(reason)) => return Err(reason),
                Some(_) => tokio::time::sleep(LOOK).await,
                // The agent stops, and begins this step again when it is back.
                None => std::future::pending().await,
            }
        }
    }

    async fn put_out(&self, machine: MachineId) {
        if let Err(reason) = self.0.bench.lights.identify(machine, Duration::ZERO).await {
            tracing::info!(%machine, reason, "the lamp of a machine that was opened is not put out");
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<MachineId, Record>> {
        self.0.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is under way, in words.
fn words(record: &Record) -> String {
    format!("{} replaces {}", record.by, record.old)
}

/// Why nobody else switches the machine, while that is so.
fn held(record: &Record) -> Option<String> {
    record.stage.is_under_way().then(|| format!("{}: nobody else switches the machine meanwhile", words(record)))
}

/// What the rules of health say of this part, when a cause names its slot or serial number.
fn complaint(part: &Part, verdict: &Verdict) -> Option<String> {
    let names = |text: &str| {
        let mut tokens = text.split(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '_' | '-' | ':'));
        tokens.any(|token| token.len() > 1 && part.is_meant_by(token))
    };
    let causes = verdict.causes.iter();
    let mut about = causes.filter(|cause| names(&cause.subject) || cause.part.as_deref().is_some_and(names));
    about.next().map(|cause| format!("{}: {}", cause.subject, cause.reading))
}

#[cfg(test)]
mod tests {
    use rackhand_common::health::{Cause, State};

    use super::*;

    #[test]
    fn a_part_is_said_to_be_broken_when_a_cause_names_it() {
        let part = |slot: &str| Part {
            kind: Kind::Memory,
            slot: slot.into(),
            identity: "M1".into(),
            serial: "M1".into(),
            about: String::new(),
            amount: 1,
            fault: String::new(),
        };
        let cause = |subject: &str, part: Option<&str>| Cause {
            rule: "memory".into(),
            state: State::Critical,
            subject: subject.into(),
            reading: "uncorrectable".into(),
            since: Timestamp::UNIX_EPOCH,
            part: part.map(Into::into),
        };
        let verdict = |cause| Verdict { state: State::Critical, since: Timestamp::UNIX_EPOCH, causes: vec![cause] };
        let says = |slot, subject, of| complaint(&part(slot), &verdict(cause(subject, of)));
        assert_eq!(says("DIMM_A1", "ECC, DIMM_A1", None).as_deref(), Some("ECC, DIMM_A1: uncorrectable"));
        assert_eq!(says("A1", "ECC", Some("replace the memory module A1")).as_deref(), Some("ECC: uncorrectable"));
        assert_eq!(says("A1", "A10", None), None);
        assert_eq!(says("A", "a fan", None), None);
    }
}
