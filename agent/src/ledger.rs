//! Which hardware commands were accepted, begun and finished: written before acting, so that
//! each takes effect at most once. Also remembers the highest connection number the
//! controller ever welcomed this node with.
//!
//! Invariants:
//! - [`Ledger::accept`] and [`Ledger::begin`] return after their entry is on stable storage.
//! - A command that had begun when the process ended is [`Outcome::Unknown`]; one that was
//!   only accepted is refused. Neither is begun again.
//! - An outcome and the events that tell it are stored in one transaction.
//! - Finished entries stay for [`KEPT`] and are at most [`ENTRIES`]: longer than any command
//!   may be started after it was given. The newest [`ALWAYS`] stay whatever the clock says.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};

use rackhand_common::{
    event::{Event, Outcome, What},
    id::{CommandId, MachineId},
    wire::{Action, Command},
};

use rackhand_fail_points::fail_point;

use crate::spool::{Spool, SpoolError, blocking};

/// How long a finished command is remembered.
pub const KEPT: Duration = Duration::from_secs(24 * 3600);

/// The most finished commands remembered.
pub const ENTRIES: usize = 10_000;

/// Finished commands remembered also when the wall clock jumps.
pub const ALWAYS: usize = 100;

const COMMANDS: TableDefinition<u128, &[u8]> = TableDefinition::new("ledger_commands");
const NUMBERS: TableDefinition<&str, u64> = TableDefinition::new("ledger_numbers");
/// [`NUMBERS`]: the highest connection number.
const CONNECTION: &str = "connection";

/// A handle to the ledger.
#[derive(Clone, Debug)]
pub struct Ledger {
    database: Arc<Database>,
    spool: Spool,
}

/// What the ledger knows of a command that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begun {
    /// Nothing: it is in the ledger now.
    Fresh,
    /// It was accepted before and has not ended.
    Running,
    /// It has ended.
    Known(Outcome),
}

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    machine: MachineId,
    action: Action,
    accepted: Timestamp,
    state: State,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Accepted,
    Begun,
    Ended { at: Timestamp, outcome: Outcome },
}

impl Ledger {
    /// The ledger in this store, whose spool is `spool`. Commands that had not ended when the
    /// process before this one did are ended, and reported as events.
    pub async fn open(database: Arc<Database>, spool: Spool, now: Timestamp) -> Result<Self, SpoolError> {
        let found = {
            let database = database.clone();
            blocking(move || unended(&database)).await?
        };
        let ledger = Self { database, spool };
        for (id, entry) in found {
            let outcome = match entry.state {
                State::Accepted => Outcome::Refused("the agent restarted before it was started".into()),
                State::Begun | State::Ended { .. } => Outcome::Unknown,
            };
            tracing::warn!(command = %id, machine = %entry.machine, action = ?entry.action, %outcome,
                "a power command had not ended when the agent stopped");
            ledger.end(id, entry.machine, outcome, now).await?;
        }
        Ok(ledger)
    }

    /// Writes down that a command was accepted, unless it is known. For one task only: the
    /// look and the entry are two steps.
    pub async fn accept(&self, command: &Command, now: Timestamp) -> Result<Begun, SpoolError> {
        let id = command.id;
        let database = self.database.clone();
        match blocking(move || known(&database, id)).await? {
            Begun::Fresh => {}
            known => return Ok(known),
        }
        let fresh = Entry { machine: command.machine, action: command.action, accepted: now, state: State::Accepted };
        let also = Box::new(move |tx: &WriteTransaction| put(tx, id, &fresh));
        fail_point!(once "ledger.accept", self.spool.append_with(Vec::new(), also).await)?;
        Ok(Begun::Fresh)
    }

    /// Writes down that an accepted command is about to act.
    pub async fn begin(&self, id: CommandId) -> Result<(), SpoolError> {
        let also = move || Box::new(move |tx: &WriteTransaction| change(tx, id, State::Begun));
        fail_point!("ledger.begin", self.spool.append_with(Vec::new(), also()).await)
    }

    /// Writes down how a command ended, together with the event that tells it.
    pub async fn end(
        &self,
        id: CommandId,
        machine: MachineId,
        outcome: Outcome,
        now: Timestamp,
    ) -> Result<(), SpoolError> {
        let what = What::Commanded { command: id, outcome: outcome.clone() };
        let told = Event { at: now, machine: Some(machine), what };
        let also = Box::new(move |tx: &WriteTransaction| {
            change(tx, id, State::Ended { at: now, outcome })?;
            forget(tx, now)
        });
        fail_point!(once "ledger.end", self.spool.append_with(vec![told], also).await)
    }

    /// The highest connection number this node was ever welcomed with; zero for none.
    pub async fn connection(&self) -> Result<u64, SpoolError> {
        let database = self.database.clone();
        blocking(move || {
            let tx = database.begin_read()?;
            match tx.open_table(NUMBERS) {
                Ok(numbers) => Ok(numbers.get(CONNECTION)?.map_or(0, |number| number.value())),
                Err(redb::TableError::TableDoesNotExist(_)) => Ok(0),
                Err(error) => Err(error.into()),
            }
        })
        .await
    }

    /// Remembers a connection number; a lower one changes nothing.
    pub async fn welcomed(&self, connection: u64) -> Result<(), SpoolError> {
        let also = Box::new(move |tx: &WriteTransaction| {
            let mut numbers = tx.open_table(NUMBERS)?;
            let known = numbers.get(CONNECTION)?.map_or(0, |number| number.value());
            numbers.insert(CONNECTION, known.max(connection))?;
            Ok(())
        });
        fail_point!(once "ledger.welcomed", self.spool.append_with(Vec::new(), also).await)
    }
}

fn known(database: &Database, id: CommandId) -> Result<Begun, SpoolError> {
    let tx = database.begin_read()?;
    let commands = match tx.open_table(COMMANDS) {
        Ok(commands) => commands,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Begun::Fresh),
        Err(error) => return Err(error.into()),
    };
    let Some(entry) = commands.get(id.0.as_u128())? else { return Ok(Begun::Fresh) };
    Ok(match parse(entry.value()).map(|entry| entry.state) {
        Some(State::Accepted | State::Begun) => Begun::Running,
        Some(State::Ended { outcome, .. }) => Begun::Known(outcome),
        None => Begun::Known(Outcome::Unknown),
    })
}

fn unended(database: &Database) -> Result<Vec<(CommandId, Entry)>, SpoolError> {
    let tx = database.begin_read()?;
    let commands = match tx.open_table(COMMANDS) {
        Ok(commands) => commands,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let mut found = Vec::new();
    for row in commands.iter()? {
        let (id, bytes) = row?;
        if let Some(entry) = parse(bytes.value()).filter(|entry| !matches!(entry.state, State::Ended { .. })) {
            found.push((CommandId(uuid::Uuid::from_u128(id.value())), entry));
        }
    }
    Ok(found)
}

/// An entry that cannot be read any more stands for a command whose outcome is unknown.
fn parse(bytes: &[u8]) -> Option<Entry> {
    serde_json::from_slice(bytes).inspect_err(|error| tracing::error!(%error, "a ledger entry cannot be read")).ok()
}

fn put(tx: &WriteTransaction, id: CommandId, entry: &Entry) -> Result<(), redb::Error> {
    let bytes = serde_json::to_vec(entry).expect("entries always serialize");
    tx.open_table(COMMANDS)?.insert(id.0.as_u128(), bytes.as_slice())?;
    Ok(())
}

fn change(tx: &WriteTransaction, id: CommandId, state: State) -> Result<(), redb::Error> {
    let known = tx.open_table(COMMANDS)?.get(id.0.as_u128())?.and_then(|entry| parse(entry.value()));
    match known {
        Some(entry) => put(tx, id, &Entry { state, ..entry }),
        None => Ok(()),
    }
}

/// Drops finished entries that are too old or too many. Ids sort by the time they were made.
fn forget(tx: &WriteTransaction, now: Timestamp) -> Result<(), redb::Error> {
    let mut commands = tx.open_table(COMMANDS)?;
    let mut ended = Vec::new();
    for row in commands.iter()? {
        let (id, bytes) = row?;
        match parse(bytes.value()).map(|entry| entry.state) {
            Some(State::Accepted | State::Begun) => {}
            Some(State::Ended { at, .. }) => ended.push((id.value(), at)),
            None => ended.push((id.value(), Timestamp::MIN)),
        }
    }
    let surplus = ended.len().saturating_sub(ENTRIES);
    let oldest = ended.len().saturating_sub(ALWAYS);
    for (index, (id, at)) in ended.into_iter().enumerate() {
        let age = Duration::try_from(now.duration_since(at)).unwrap_or_default();
        if index < surplus || (index < oldest && age > KEPT) {
            commands.remove(id)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rackhand_common::id::Epoch;

    use super::*;
    use crate::spool::open_database;

    fn command() -> Command {
        Command {
            id: CommandId::fresh(),
            machine: MachineId::fresh(),
            epoch: Epoch(1),
            within: Duration::from_secs(60),
            action: Action::PowerCycle,
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    async fn open(dir: &tempfile::TempDir) -> (Ledger, Spool) {
        let database = open_database(&dir.path().join("agent.redb")).unwrap();
        let spool = Spool::within(database.clone(), 10_000, None).unwrap();
        (Ledger::open(database, spool.clone(), at(100)).await.unwrap(), spool)
    }

    async fn told(spool: &Spool) -> Vec<(CommandId, Outcome)> {
        if spool.waiting() == 0 {
            return Vec::new();
        }
        let (_, events) = spool.batch(256).await.unwrap();
        let outcome = |event: Event| match event.what {
            What::Commanded { command, outcome } => (command, outcome),
            other => panic!("{other:?}"),
        };
        events.into_iter().map(outcome).collect()
    }

    #[tokio::test]
    async fn a_command_that_comes_again_is_not_fresh() {
        let dir = tempfile::tempdir().unwrap();
        let (ledger, spool) = open(&dir).await;
        let command = command();
        assert_eq!(ledger.accept(&command, at(1)).await.unwrap(), Begun::Fresh);
        assert_eq!(ledger.accept(&command, at(2)).await.unwrap(), Begun::Running);
        ledger.begin(command.id).await.unwrap();
        assert_eq!(ledger.accept(&command, at(3)).await.unwrap(), Begun::Running);
        ledger.end(command.id, command.machine, Outcome::Done, at(4)).await.unwrap();
        assert_eq!(ledger.accept(&command, at(5)).await.unwrap(), Begun::Known(Outcome::Done));
        assert_eq!(told(&spool).await, [(command.id, Outcome::Done)]);
    }

    /// The crash matrix: before, between and after accept, begin and end.
    #[tokio::test]
    async fn a_restart_ends_what_had_not_ended_and_tells_it_once() {
        let dir = tempfile::tempdir().unwrap();
        let (accepted, begun, ended) = (command(), command(), command());
        let (ledger, spool) = open(&dir).await;
        for command in [&accepted, &begun, &ended] {
            ledger.accept(command, at(1)).await.unwrap();
        }
        for command in [&begun, &ended] {
            ledger.begin(command.id).await.unwrap();
        }
        ledger.end(ended.id, ended.machine, Outcome::Done, at(2)).await.unwrap();
        drop((ledger, spool));

        let refused = Outcome::Refused("the agent restarted before it was started".into());
        for _ in 0..2 {
            let (ledger, spool) = open(&dir).await;
            let mut news = told(&spool).await;
            news.sort_by_key(|(id, _)| *id);
            let expected = [(accepted.id, refused.clone()), (begun.id, Outcome::Unknown), (ended.id, Outcome::Done)];
            assert_eq!(news, expected);
            for (command, (_, outcome)) in [&accepted, &begun, &ended].into_iter().zip(expected) {
                assert_eq!(ledger.accept(command, at(200)).await.unwrap(), Begun::Known(outcome));
            }
        }
    }

    #[tokio::test]
    async fn a_finished_command_is_forgotten_after_a_day_but_for_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let (ledger, _spool) = open(&dir).await;
        let commands: Vec<_> = (0..ALWAYS + 2).map(|_| command()).collect();
        let day = i64::try_from(KEPT.as_secs()).unwrap();
        for (index, command) in commands.iter().enumerate() {
            // The clock jumps by more than a day before the last.
            let now = at(if index > ALWAYS { 10 + day + 1 } else { 10 });
            ledger.accept(command, now).await.unwrap();
            ledger.end(command.id, command.machine, Outcome::Done, now).await.unwrap();
        }
        assert_eq!(ledger.accept(&commands[0], at(20)).await.unwrap(), Begun::Fresh);
        assert_eq!(ledger.accept(&commands[1], at(20)).await.unwrap(), Begun::Fresh);
        for command in &commands[2..] {
            assert_eq!(ledger.accept(command, at(20)).await.unwrap(), Begun::Known(Outcome::Done));
        }
    }

    #[tokio::test]
    async fn the_connection_number_only_grows() {
        let dir = tempfile::tempdir().unwrap();
        let (ledger, spool) = open(&dir).await;
        assert_eq!(ledger.connection().await.unwrap(), 0);
        ledger.welcomed(7).await.unwrap();
        ledger.welcomed(5).await.unwrap();
        drop((ledger, spool));
        assert_eq!(open(&dir).await.0.connection().await.unwrap(), 7);
    }
}
