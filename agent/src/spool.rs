//! Events on disk until somebody takes them: boot's until the agent has them, the agent's
//! until the controller has them.
//!
//! One thread writes. It takes whatever is queued, puts it into one transaction and commits
//! once (group commit), so that a burst costs one flush to stable storage. A simulation has
//! no such thread ([`Spool::simulated`]): whoever asks writes, so that one seed has one history.
//!
//! Invariants:
//! - An event that [`Spool::append`] returned for is on stable storage. A process killed or
//!   a machine cut off at any instruction leaves the events of whole transactions.
//! - Events leave in the order in which they came. The numbers told with them are
//!   consecutive from 1 for the life of the spool, and an event that was once told under a
//!   number keeps it: the receiver recognises repetitions by the number alone. Only a
//!   receiver that has seen higher numbers than any here moves them on.
//! - A spool that is full, by count or by [`MAX_BYTES`], drops its oldest events but for the
//!   first batch, which may be under way, and puts one [`What::Gap`] in their place that counts
//!   them. Nothing is dropped without being counted.
//! - A batch fits a message, whatever machines put into their inventories.
//!
//! An event's number is the number of the oldest one plus its position; what is stored is
//! only that number and the order. A gap therefore takes one number, whatever it counts.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use jiff::Timestamp;
use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition, WriteTransaction};
use tokio::sync::{mpsc, oneshot, watch};
use uuid::Uuid;

use rackhand_common::event::{Event, What};
use rackhand_fail_points::fail_point;

use crate::{
    patient_file::PatientFile,
    timeline::{Noted, Timelines},
};

/// The most events handed out at once, and the number of oldest events that are never
/// dropped: they may have been taken without our knowing yet.
pub const MAX_BATCH: usize = 256;

/// The most bytes of events handed out at once, unless the first event alone has more. A
/// message may have four times as many.
const BATCH_BYTES: u64 = 4 << 20;

/// The most bytes of events stored, as JSON: machines send inventories of up to 64 KiB, and
/// anyone can be a machine. The file takes up to about three times as much.
pub const MAX_BYTES: u64 = 64 << 20;

/// Requests waiting for the writer. At some hundred events a second, which is a rack whose
/// machines all boot at once, this is ten seconds of a disk that does not answer. When it is
/// full, offered events are counted into a gap and appending waits.
const QUEUE: usize = 4096;

/// The most requests committed together: bounds the memory of one transaction.
const GROUP: usize = 1024;

const EVENTS: TableDefinition<u64, &[u8]> = TableDefinition::new("spool_events");
const NUMBERS: TableDefinition<&str, u64> = TableDefinition::new("spool_numbers");
const IDENTITY: TableDefinition<&str, u128> = TableDefinition::new("spool_identity");
const SOURCES: TableDefinition<u128, u64> = TableDefinition::new("spool_sources");

/// [`NUMBERS`]: the number of the oldest event still here.
const FIRST: &str = "first";
/// [`NUMBERS`]: the key the next event is stored under; never reused.
const NEXT_KEY: &str = "next_key";
/// [`IDENTITY`]: this spool's own id.
const ID: &str = "id";

/// Why the spool cannot do what was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SpoolError {
    /// The file cannot be opened: damaged, not ours, or in use by another process.
    #[error("cannot open {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// What the store says.
        #[source]
        source: Arc<redb::Error>,
    },
    /// The disk is full or failing; what was appended is not stored.
    #[error("the spool cannot be read or written")]
    Storage(#[source] Arc<redb::Error>),
    /// The writer has ended.
    #[error("the spool is closed")]
    Closed,
}

impl<E: Into<redb::Error>> From<E> for SpoolError {
    fn from(error: E) -> Self {
        Self::Storage(Arc::new(error.into()))
    }
}

/// A further change committed in one transaction with the events it belongs to.
pub(crate) type Also = Box<dyn FnOnce(&WriteTransaction) -> Result<(), redb::Error> + Send>;

/// Bytes of a store that are kept in memory. What comes with redb is a GiB, which a store of years fills.
const CACHE: usize = 8 << 20;

/// Opens a store of ours, making it when there is none. It gets its name when it is whole: a
/// process that is killed while it makes one leaves nothing that the next could not open.
pub fn open_database(path: &Path) -> Result<Arc<Database>, SpoolError> {
    let open = |path: &Path| redb::Builder::new().set_cache_size(CACHE).create_with_backend(PatientFile::open(path)?);
    let opened = if path.exists() {
        open(path)
    } else {
        let fresh = path.with_extension("new");
        let made = match std::fs::remove_file(&fresh) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(redb::StorageError::from(error).into()),
            _ => open(&fresh).map(drop),
        };
        made.and_then(|()| Ok(std::fs::rename(&fresh, path).map_err(redb::StorageError::from)?))
            .and_then(|()| open(path))
    };
    match opened {
        Ok(database) => Ok(Arc::new(database)),
        Err(error) => Err(SpoolError::Open { path: path.to_owned(), source: Arc::new(error.into()) }),
    }
}

/// A handle to a spool; the last one dropped waits until what was queued is written.
#[derive(Clone, Debug)]
pub struct Spool(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    database: Arc<Database>,
    id: Uuid,
    queue: Queue,
    /// Offered events that found the queue full; the writer turns them into a gap.
    lost: Arc<AtomicU64>,
    waiting: watch::Receiver<u64>,
    writer: Option<JoinHandle<()>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.queue = Queue::Closed;
        if let Some(writer) = self.writer.take() {
            // The writer ends by itself once the queue is closed and empty.
            let _ = writer.join();
        }
    }
}

impl Spool {
    /// The spool in this file, made when there is none, holding at most `limit` events.
    pub fn open(path: &Path, limit: u64) -> Result<Self, SpoolError> {
        Self::within(open_database(path)?, limit, None)
    }

    /// The spool in a store that holds other tables too. `limit` is at least twice
    /// [`MAX_BATCH`]. Every event is noted in `timelines` as it is stored.
    pub fn within(database: Arc<Database>, limit: u64, timelines: Option<Timelines>) -> Result<Self, SpoolError> {
        Self::with_bounds(database, Bounds::of(limit), timelines)
    }

    fn with_bounds(database: Arc<Database>, bounds: Bounds, timelines: Option<Timelines>) -> Result<Self, SpoolError> {
        Self::opened(database, bounds, timelines, true)
    }

    /// A spool without a thread: a request is written, with all that was offered before it, by
    /// whoever makes it. What is offered waits for the next request, as in a queue.
    pub fn simulated(database: Arc<Database>, limit: u64, timelines: Option<Timelines>) -> Result<Self, SpoolError> {
        Self::opened(database, Bounds::of(limit), timelines, false)
    }

    fn opened(
        database: Arc<Database>,
        bounds: Bounds,
        timelines: Option<Timelines>,
        threaded: bool,
    ) -> Result<Self, SpoolError> {
        let tx = database.begin_write()?;
        let stored = {
            let mut identity = tx.open_table(IDENTITY)?;
            let known = identity.get(ID)?.map(|id| id.value());
            let id = known.unwrap_or_else(|| Uuid::new_v4().as_u128());
            identity.insert(ID, id)?;
            tx.open_table(NUMBERS)?;
            tx.open_table(SOURCES)?;
            let events = tx.open_table(EVENTS)?;
            let mut bytes = 0;
            for entry in events.iter()? {
                bytes += entry?.1.value().len() as u64;
            }
            (Uuid::from_u128(id), events.len()?, bytes)
        };
        tx.commit()?;
        let (id, length, bytes) = stored;

        let (length_changed, waiting) = watch::channel(length);
        let lost = Arc::new(AtomicU64::new(0));
        let writer =
            Writer { database: database.clone(), bounds, timelines, lost: lost.clone(), length: length_changed, bytes };
        let (queue, thread) = if threaded {
            let (queue, requests) = mpsc::channel(QUEUE);
            let thread = std::thread::Builder::new().name("spool".into());
            let thread = thread.spawn(move || writer.run(requests)).map_err(redb::Error::Io)?;
            (Queue::Thread(queue), Some(thread))
        } else {
            (Queue::Inline(Mutex::new(Inline { writer, offered: Vec::new() })), None)
        };
        Ok(Self(Arc::new(Inner { database, id, queue, lost, waiting, writer: thread })))
    }

    /// Names this spool: numbers begin again in another.
    pub fn id(&self) -> Uuid {
        self.0.id
    }

    /// Stores these events, in this order; they are on stable storage on return. Without
    /// events it returns when everything queued before is.
    pub async fn append(&self, events: Vec<Event>) -> Result<(), SpoolError> {
        self.request(|answer| Write::Append { events, also: None, answer: Some(answer) }).await
    }

    /// Stores these events and another change in one transaction.
    pub(crate) async fn append_with(&self, events: Vec<Event>, also: Also) -> Result<(), SpoolError> {
        self.request(|answer| Write::Append { events, also: Some(also), answer: Some(answer) }).await
    }

    /// Queues an event for the writer without waiting. When the queue is full the event is
    /// dropped, and counted in the gap that stands in its place.
    pub fn offer(&self, event: Event) {
        let write = Write::Append { events: vec![event], also: None, answer: None };
        let queued = match &self.0.queue {
            Queue::Thread(queue) => queue.try_send(write).is_ok(),
            Queue::Inline(inline) => lock(inline).offer(write),
            Queue::Closed => false,
        };
        if !queued {
            self.0.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Stores events of another spool, numbered consecutively from `first`, but for those
    /// that were stored before; gives the number that comes next. Numbers that were never
    /// seen and are left out become a gap.
    pub async fn take(&self, source: Uuid, first: u64, events: Vec<Event>) -> Result<u64, SpoolError> {
        self.request(|answer| Write::Take { source, first, events, answer }).await
    }

    /// The oldest events that nobody has acknowledged, and the number of the first. Waits
    /// until there is one. At most [`MAX_BATCH`], whatever `max` is, and no more than fit a message.
    pub async fn batch(&self, max: usize) -> Result<(u64, Vec<Event>), SpoolError> {
        let mut waiting = self.0.waiting.clone();
        let max = max.clamp(1, MAX_BATCH);
        loop {
            waiting.wait_for(|length| *length > 0).await.map_err(|_| SpoolError::Closed)?;
            let database = self.0.database.clone();
            let (first, events) = blocking(move || read(&database, max)).await?;
            if !events.is_empty() {
                return Ok((first, events));
            }
            // Acknowledged between the length's change and our look.
            waiting.changed().await.map_err(|_| SpoolError::Closed)?;
        }
    }

    /// All events with lower numbers have been taken and may go. A number that is too low
    /// changes nothing. One that is higher than any here was given by a spool of which this is
    /// an older copy, or the successor: what waits here is told under numbers from there on.
    pub async fn acknowledge(&self, next: u64) -> Result<(), SpoolError> {
        self.request(|answer| Write::Acknowledge { next, answer }).await
    }

    /// How many events nobody has acknowledged.
    pub fn waiting(&self) -> u64 {
        *self.0.waiting.borrow()
    }

    async fn request<T>(
        &self,
        write: impl FnOnce(oneshot::Sender<Result<T, SpoolError>>) -> Write,
    ) -> Result<T, SpoolError> {
        let (answer, answered) = oneshot::channel();
        match &self.0.queue {
            Queue::Thread(queue) => queue.send(write(answer)).await.map_err(|_| SpoolError::Closed)?,
            Queue::Inline(inline) => lock(inline).write(write(answer)),
            Queue::Closed => return Err(SpoolError::Closed),
        }
        answered.await.map_err(|_| SpoolError::Closed)?
    }
}

/// Runs storage work where it may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SpoolError> + Send + 'static,
) -> Result<T, SpoolError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| SpoolError::Closed)?
}

fn read(database: &Database, max: usize) -> Result<(u64, Vec<Event>), SpoolError> {
    let tx = database.begin_read()?;
    let first = tx.open_table(NUMBERS)?.get(FIRST)?.map_or(1, |first| first.value());
    let (mut events, mut bytes) = (Vec::new(), 0);
    for entry in tx.open_table(EVENTS)?.iter()?.take(max) {
        let event = entry?.1;
        bytes += event.value().len() as u64;
        if bytes > BATCH_BYTES && !events.is_empty() {
            break;
        }
        events.push(decode(event.value()));
    }
    Ok((first, events))
}

#[derive(Clone, Copy, Debug)]
struct Bounds {
    /// The most events stored.
    limit: u64,
    /// The most bytes of them.
    bytes: u64,
    /// How many of the oldest are never dropped, unless they are more than a batch's bytes.
    kept: u64,
}

impl Bounds {
    fn of(limit: u64) -> Self {
        Self { limit: limit.max(2 * MAX_BATCH as u64), bytes: MAX_BYTES, kept: MAX_BATCH as u64 }
    }
}

type Answer<T> = oneshot::Sender<Result<T, SpoolError>>;

enum Write {
    Append { events: Vec<Event>, also: Option<Also>, answer: Option<Answer<()>> },
    Take { source: Uuid, first: u64, events: Vec<Event>, answer: Answer<u64> },
    Acknowledge { next: u64, answer: Answer<()> },
}

impl std::fmt::Debug for Write {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Append { .. } => "Append",
            Self::Take { .. } => "Take",
            Self::Acknowledge { .. } => "Acknowledge",
        })
    }
}

/// Answers kept back until the transaction they belong to is committed.
enum Pending {
    Nobody { events: u64 },
    Done(Answer<()>),
    Next(Answer<u64>, u64),
}

/// How requests reach the writer.
#[derive(Debug)]
enum Queue {
    /// It has a thread of its own.
    Thread(mpsc::Sender<Write>),
    /// Whoever asks does its work.
    Inline(Mutex<Inline>),
    /// The last handle has gone.
    Closed,
}

#[derive(Debug)]
struct Inline {
    writer: Writer,
    offered: Vec<Write>,
}

impl Inline {
    fn offer(&mut self, write: Write) -> bool {
        let room = self.offered.len() < QUEUE;
        if room {
            self.offered.push(write);
        }
        room
    }

    fn write(&mut self, write: Write) {
        let mut group = std::mem::take(&mut self.offered);
        group.push(write);
        self.writer.commit(group);
    }
}

fn lock(inline: &Mutex<Inline>) -> MutexGuard<'_, Inline> {
    inline.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
struct Writer {
    database: Arc<Database>,
    bounds: Bounds,
    timelines: Option<Timelines>,
    lost: Arc<AtomicU64>,
    length: watch::Sender<u64>,
    /// Bytes of the events stored.
    bytes: u64,
}

impl Writer {
    fn run(mut self, mut requests: mpsc::Receiver<Write>) {
        while let Some(first) = requests.blocking_recv() {
            let mut group = vec![first];
            while group.len() < GROUP
                && let Ok(next) = requests.try_recv()
            {
                group.push(next);
            }
            self.commit(group);
        }
    }

    fn commit(&mut self, group: Vec<Write>) {
        let lost = self.lost.swap(0, Ordering::Relaxed);
        let mut pending = Vec::with_capacity(group.len());
        match self.transact(group, lost, &mut pending) {
            Ok((length, noted)) => {
                if let Some(timelines) = &self.timelines {
                    timelines.committed(noted);
                }
                self.length.send_replace(length);
                for one in pending {
                    match one {
                        Pending::Nobody { .. } => {}
                        Pending::Done(answer) => drop(answer.send(Ok(()))),
                        Pending::Next(answer, next) => drop(answer.send(Ok(next))),
                    }
                }
            }
            Err(error) => {
                tracing::error!(error = chain(&error), "events cannot be stored");
                let mut uncounted = lost;
                for one in pending {
                    match one {
                        Pending::Nobody { events } => uncounted += events,
                        Pending::Done(answer) => drop(answer.send(Err(error.clone()))),
                        Pending::Next(answer, _) => drop(answer.send(Err(error.clone()))),
                    }
                }
                self.lost.fetch_add(uncounted, Ordering::Relaxed);
            }
        }
    }

    /// Fills `pending` for the whole group before anything can fail, so that everybody is
    /// answered and every offered event is counted.
    fn transact(
        &mut self,
        group: Vec<Write>,
        lost: u64,
        pending: &mut Vec<Pending>,
    ) -> Result<(u64, Noted), SpoolError> {
        let mut stored = Vec::new();
        let mut works = Vec::with_capacity(group.len());
        for write in group {
            match write {
                Write::Append { events, also, answer } => {
                    let count = events.len() as u64;
                    pending.push(answer.map_or(Pending::Nobody { events: count }, Pending::Done));
                    works.push(Work::Append(events, also));
                }
                Write::Take { source, first, events, answer } => {
                    works.push(Work::Take { source, first, events, at: pending.len() });
                    pending.push(Pending::Next(answer, 0));
                }
                Write::Acknowledge { next, answer } => {
                    pending.push(Pending::Done(answer));
                    works.push(Work::Acknowledge(next));
                }
            }
        }

        let tx = self.database.begin_write()?;
        let (length, bytes) = {
            let mut store = Store::open(&tx, self.bytes)?;
            for work in works {
                match work {
                    Work::Append(events, also) => {
                        store.append(&events)?;
                        stored.extend(events);
                        if let Some(also) = also {
                            also(&tx)?;
                        }
                    }
                    Work::Take { source, first, events, at } => {
                        let (next, fresh) = store.take(source, first, events)?;
                        stored.extend(fresh);
                        if let Pending::Next(_, number) = &mut pending[at] {
                            *number = next;
                        }
                    }
                    Work::Acknowledge(next) => store.acknowledge(next)?,
                }
            }
            if lost > 0 {
                let gap = gap(lost);
                store.append(std::slice::from_ref(&gap))?;
                stored.push(gap);
            }
            store.trim(self.bounds)?;
            (store.length()?, store.bytes)
        };
        let noted = match &self.timelines {
            Some(timelines) => timelines.store(&tx, &stored)?,
            None => Noted::default(),
        };
        fail_point!(once "spool.commit", tx.commit())?;
        self.bytes = bytes;
        Ok((length, noted))
    }
}

enum Work {
    Append(Vec<Event>, Option<Also>),
    Take { source: Uuid, first: u64, events: Vec<Event>, at: usize },
    Acknowledge(u64),
}

/// The tables within one transaction.
struct Store<'tx> {
    events: redb::Table<'tx, u64, &'static [u8]>,
    numbers: redb::Table<'tx, &'static str, u64>,
    sources: redb::Table<'tx, u128, u64>,
    /// Bytes of the events.
    bytes: u64,
}

impl<'tx> Store<'tx> {
    fn open(tx: &'tx WriteTransaction, bytes: u64) -> Result<Self, SpoolError> {
        let (events, numbers) = (tx.open_table(EVENTS)?, tx.open_table(NUMBERS)?);
        Ok(Self { events, numbers, sources: tx.open_table(SOURCES)?, bytes })
    }

    fn length(&self) -> Result<u64, SpoolError> {
        Ok(self.events.len()?)
    }

    fn append(&mut self, events: &[Event]) -> Result<(), SpoolError> {
        if events.is_empty() {
            return Ok(());
        }
        let mut key = self.numbers.get(NEXT_KEY)?.map_or(0, |key| key.value());
        for event in events {
            self.insert(key, event)?;
            key += 1;
        }
        self.numbers.insert(NEXT_KEY, key)?;
        Ok(())
    }

    fn insert(&mut self, key: u64, event: &Event) -> Result<(), SpoolError> {
        let bytes = encode(event);
        self.events.insert(key, bytes.as_slice())?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Gives the number that comes next, and what was stored.
    fn take(&mut self, source: Uuid, first: u64, events: Vec<Event>) -> Result<(u64, Vec<Event>), SpoolError> {
        // A source never seen may begin anywhere: what came before was taken by the node
        // whose disk this one replaces.
        let expected = self.sources.get(source.as_u128())?.map_or(first, |next| next.value());
        let seen = usize::try_from(expected.saturating_sub(first)).unwrap_or(usize::MAX);
        let end = first.saturating_add(events.len() as u64);
        let mut fresh: Vec<Event> = events.into_iter().skip(seen).collect();
        if first > expected {
            // We once knew less than we had said: our disk is an older copy.
            fresh.insert(0, gap(first - expected));
        }
        self.append(&fresh)?;
        let next = end.max(expected);
        self.sources.insert(source.as_u128(), next)?;
        Ok((next, fresh))
    }

    fn acknowledge(&mut self, next: u64) -> Result<(), SpoolError> {
        let mut first = self.numbers.get(FIRST)?.map_or(1, |first| first.value());
        if next > first + self.length()? {
            tracing::warn!(next, "events were taken that are not here: their numbers are passed over");
            first = next;
        }
        while first < next
            && let Some((_, taken)) = self.events.pop_first()?
        {
            self.bytes = self.bytes.saturating_sub(taken.value().len() as u64);
            first += 1;
        }
        self.numbers.insert(FIRST, first)?;
        Ok(())
    }

    /// Brings the spool back under its limits by a sixteenth of them, so that a full spool does
    /// not pay for every event.
    fn trim(&mut self, bounds: Bounds) -> Result<(), SpoolError> {
        let mut length = self.length()?;
        if length <= bounds.limit && self.bytes <= bounds.bytes {
            return Ok(());
        }
        let target = (bounds.limit - bounds.limit / 16).max(bounds.kept + 1);
        let bytes_target = bounds.bytes - bounds.bytes / 16;
        length += 1; // the gap itself takes a place
        let (mut dropped, mut kept_bytes, mut left) = (Vec::new(), 0, self.bytes);
        for (at, entry) in self.events.iter()?.enumerate() {
            if length <= target && left <= bytes_target {
                break;
            }
            let (key, event) = entry?;
            let bytes = event.value().len() as u64;
            kept_bytes += bytes;
            // A batch is no longer than this.
            if at == 0 || ((at as u64) < bounds.kept && kept_bytes <= BATCH_BYTES) {
                continue;
            }
            dropped.push(key.value());
            length -= 1;
            left -= bytes;
        }
        let (mut lost, mut place) = (0, None);
        for key in dropped {
            let event = self.events.remove(key)?.map(|event| decode(event.value()).what);
            lost += match event {
                Some(What::Gap { lost }) => lost,
                _ => 1,
            };
            place = Some(key);
        }
        self.bytes = left;
        if let Some(key) = place {
            self.insert(key, &gap(lost))?;
            tracing::warn!(lost, "the spool is full: its oldest events are dropped");
        }
        Ok(())
    }
}

fn gap(lost: u64) -> Event {
    Event { at: Timestamp::now(), machine: None, what: What::Gap { lost } }
}

fn encode(event: &Event) -> Vec<u8> {
    serde_json::to_vec(event).expect("events always serialize")
}

/// An event that cannot be read, having been stored by a newer version, is a gap of one: it
/// must not keep those behind it from leaving.
fn decode(bytes: &[u8]) -> Event {
    serde_json::from_slice(bytes).unwrap_or_else(|error| {
        tracing::error!(%error, "a stored event cannot be read");
        gap(1)
    })
}

/// An error with its sources, for a log line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Whether the spool can be written: a disk that failed once is refused by the store until the
/// process is restarted, so the process that cannot is as good as dead.
pub(crate) async fn written(spool: Spool) -> bool {
    spool.append(Vec::new()).await.is_ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use rackhand_common::id::MachineId;

    use super::*;

    fn event(number: u64) -> Event {
        let at = Timestamp::from_second(number.try_into().unwrap()).unwrap();
        Event { at, machine: None, what: What::Lost }
    }

    fn number(event: &Event) -> u64 {
        event.at.as_second().try_into().unwrap()
    }

    fn small(database: Arc<Database>, limit: u64, kept: u64) -> Spool {
        Spool::with_bounds(database, Bounds { limit, bytes: MAX_BYTES, kept }, None).unwrap()
    }

    #[tokio::test]
    async fn events_leave_in_order_and_are_numbered_from_one() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(&dir.path().join("spool.redb"), 1000).unwrap();
        spool.append(vec![event(10), event(11)]).await.unwrap();
        spool.offer(event(12));
        spool.append(Vec::new()).await.unwrap();
        assert_eq!(spool.batch(2).await.unwrap(), (1, vec![event(10), event(11)]));
        spool.acknowledge(3).await.unwrap();
        assert_eq!(spool.batch(256).await.unwrap(), (3, vec![event(12)]));
        spool.acknowledge(2).await.unwrap();
        assert_eq!(spool.waiting(), 1);
    }

    #[tokio::test]
    async fn an_older_copy_of_a_spool_tells_its_events_under_numbers_not_yet_seen() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(&dir.path().join("spool.redb"), 1000).unwrap();
        spool.append(vec![event(10), event(11)]).await.unwrap();
        spool.acknowledge(15).await.unwrap();
        assert_eq!(spool.batch(256).await.unwrap(), (15, vec![event(10), event(11)]));
        spool.acknowledge(17).await.unwrap();
        spool.append(vec![event(12)]).await.unwrap();
        assert_eq!(spool.batch(256).await.unwrap(), (17, vec![event(12)]));
    }

    #[tokio::test]
    async fn a_batch_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(&dir.path().join("spool.redb"), 1000).unwrap();
        let (taken, ()) = tokio::join!(spool.batch(10), async {
            tokio::task::yield_now().await;
            spool.append(vec![event(1)]).await.unwrap();
        });
        assert_eq!(taken.unwrap().0, 1);
    }

    #[tokio::test]
    async fn what_was_appended_and_its_numbers_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("spool.redb");
        let spool = Spool::open(&path, 1000).unwrap();
        let id = spool.id();
        spool.append(vec![event(1), event(2), event(3)]).await.unwrap();
        spool.acknowledge(2).await.unwrap();
        drop(spool);
        let spool = Spool::open(&path, 1000).unwrap();
        assert_eq!(spool.id(), id);
        assert_eq!(spool.waiting(), 2);
        assert_eq!(spool.batch(256).await.unwrap(), (2, vec![event(2), event(3)]));
    }

    #[tokio::test]
    async fn a_second_process_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("spool.redb");
        let _spool = Spool::open(&path, 1000).unwrap();
        let error = Spool::open(&path, 1000).unwrap_err();
        assert!(chain(&error).contains("already open"), "{}", chain(&error));
    }

    #[tokio::test]
    async fn events_of_another_spool_are_stored_once() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(&dir.path().join("spool.redb"), 1000).unwrap();
        let boot = Uuid::new_v4();
        assert_eq!(spool.take(boot, 1, vec![event(1), event(2)]).await.unwrap(), 3);
        assert_eq!(spool.take(boot, 1, vec![event(1), event(2)]).await.unwrap(), 3);
        assert_eq!(spool.take(boot, 2, vec![event(2), event(3)]).await.unwrap(), 4);
        assert_eq!(spool.take(boot, 4, Vec::new()).await.unwrap(), 4);
        assert_eq!(spool.batch(256).await.unwrap().1, vec![event(1), event(2), event(3)]);
    }

    #[tokio::test]
    async fn numbers_left_out_by_another_spool_become_a_gap() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(&dir.path().join("spool.redb"), 1000).unwrap();
        let boot = Uuid::new_v4();
        spool.take(boot, 1, vec![event(1)]).await.unwrap();
        assert_eq!(spool.take(boot, 5, vec![event(5)]).await.unwrap(), 6);
        let whats: Vec<_> = spool.batch(256).await.unwrap().1.into_iter().map(|event| event.what).collect();
        assert_eq!(whats, [What::Lost, What::Gap { lost: 3 }, What::Lost]);
    }

    #[tokio::test]
    async fn a_gap_stands_where_the_dropped_events_stood_and_counts_them() {
        let dir = tempfile::tempdir().unwrap();
        let spool = small(open_database(&dir.path().join("spool.redb")).unwrap(), 10, 4);
        for number in 1..=11 {
            spool.append(vec![event(number)]).await.unwrap();
        }
        let (first, events) = spool.batch(256).await.unwrap();
        assert_eq!(first, 1);
        assert_eq!(events[..4], [event(1), event(2), event(3), event(4)], "these may be under way");
        assert_eq!(events[4].what, What::Gap { lost: 2 });
        assert_eq!(events[5..], [event(7), event(8), event(9), event(10), event(11)]);
    }

    /// A machine's words, this many bytes of them.
    fn wordy(bytes: usize) -> Event {
        Event { what: What::TicketRefused { reason: "x".repeat(bytes) }, ..event(1) }
    }

    #[tokio::test]
    async fn a_spool_is_bounded_by_bytes_and_the_gap_counts_what_went() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("spool.redb");
        let bytes = 16 << 20;
        let bounds = Bounds { bytes, ..Bounds::of(100_000) };
        let mut spool = Spool::with_bounds(open_database(&path).unwrap(), bounds, None).unwrap();
        for round in 0..30 {
            // What is stored is known again after a restart.
            if round == 15 {
                drop(spool);
                spool = Spool::with_bounds(open_database(&path).unwrap(), bounds, None).unwrap();
            }
            spool.append((0..32).map(|_| wordy(64 << 10)).collect()).await.unwrap();
            let stored = spool.waiting() << 16;
            // Gaps are shorter than that.
            assert!(stored <= bytes + (1 << 20), "{stored} bytes");
        }
        assert!(std::fs::metadata(&path).unwrap().len() < 3 * bytes);
        let (mut counted, mut gaps) = (0, 0);
        while spool.waiting() > 0 {
            let (first, events) = spool.batch(MAX_BATCH).await.unwrap();
            for event in &events {
                counted += match event.what {
                    What::Gap { lost } => lost,
                    _ => 1,
                };
                gaps += u64::from(matches!(event.what, What::Gap { .. }));
            }
            spool.acknowledge(first + events.len() as u64).await.unwrap();
        }
        assert_eq!(counted, 30 * 32);
        assert!(gaps > 0);
        // What was taken is off the account.
        spool.append((0..200).map(|_| wordy(64 << 10)).collect()).await.unwrap();
        assert_eq!(spool.waiting(), 200);
    }

    /// 256 inventories as long as they may be are more than a message may carry: they must not
    /// keep all others from leaving for ever.
    #[tokio::test]
    async fn a_batch_fits_a_message_however_long_its_events_are() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(&dir.path().join("spool.redb"), 1000).unwrap();
        let mut events: Vec<_> = (0..MAX_BATCH).map(|_| wordy(72 << 10)).collect();
        events.insert(0, wordy(6 << 20));
        spool.append(events).await.unwrap();
        let mut sizes = Vec::new();
        while spool.waiting() > 0 {
            let (first, events) = spool.batch(MAX_BATCH).await.unwrap();
            sizes.push(events.len());
            let next = first + events.len() as u64;
            let message = rackhand_common::wire::LocalRequest::Events { spool: spool.id(), first, events };
            assert!(rackhand_common::wire::frame(&message).len() <= rackhand_common::wire::MAX_LEN);
            spool.acknowledge(next).await.unwrap();
        }
        assert_eq!((sizes[0], sizes.iter().sum::<usize>()), (1, MAX_BATCH + 1));
    }

    #[tokio::test]
    async fn an_event_of_a_newer_version_is_counted_and_lets_the_others_pass() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("spool.redb");
        let spool = Spool::open(&path, 1000).unwrap();
        spool.append(vec![event(1), event(2), event(3)]).await.unwrap();
        drop(spool);
        let database = open_database(&path).unwrap();
        let tx = database.begin_write().unwrap();
        tx.open_table(EVENTS).unwrap().insert(1, br#"{"what":"levitated"}"#.as_slice()).unwrap();
        tx.commit().unwrap();
        drop(database);
        let spool = Spool::open(&path, 1000).unwrap();
        let whats: Vec<_> = spool.batch(256).await.unwrap().1.into_iter().map(|event| event.what).collect();
        assert_eq!(whats, [What::Lost, What::Gap { lost: 1 }, What::Lost]);
    }

    /// Far more than the queue holds, faster than any disk: offering never waits, and what
    /// found the queue full is counted.
    #[tokio::test]
    async fn a_flood_of_offers_is_stored_or_counted() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(&dir.path().join("spool.redb"), 100_000).unwrap();
        let machine = Some(MachineId::fresh());
        for number in 0..20_000 {
            spool.offer(Event { machine, ..event(number) });
        }
        // The first one sees everything queued; the second whatever was lost meanwhile.
        spool.append(Vec::new()).await.unwrap();
        spool.append(Vec::new()).await.unwrap();
        let mut counted = 0;
        while spool.waiting() > 0 {
            let (first, events) = spool.batch(256).await.unwrap();
            counted += events
                .iter()
                .map(|event| match event.what {
                    What::Gap { lost } => lost,
                    _ => 1,
                })
                .sum::<u64>();
            spool.acknowledge(first + events.len() as u64).await.unwrap();
        }
        assert_eq!(counted, 20_000);
    }

    #[derive(Clone, Debug)]
    enum Act {
        Append(u8),
        Offer(u8),
        Acknowledge(u8),
        Reopen,
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let act = prop_oneof![
            4 => (0u8..9).prop_map(Act::Append),
            4 => (0u8..9).prop_map(Act::Offer),
            3 => (0u8..7).prop_map(Act::Acknowledge),
            1 => Just(Act::Reopen),
        ];
        prop::collection::vec(act, 1..40)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

        /// Whatever is appended, taken and restarted: the taker sees each event once, in order,
        /// or a gap in its place that counts it, under numbers consecutive from one.
        #[test]
        fn the_taker_sees_every_event_once_or_counted(acts in acts()) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let dir = tempfile::tempdir().unwrap();
                let path = dir.path().join("spool.redb");
                let mut spool = small(open_database(&path).unwrap(), 20, 6);
                let (mut made, mut next, mut seen) = (0, 1, Vec::new());
                let take = async |spool: &Spool, max: usize, next: &mut u64, seen: &mut Vec<Event>| {
                    let limit = Duration::from_secs(10);
                    let (first, events) = tokio::time::timeout(limit, spool.batch(max.clamp(1, 6))).await.unwrap().unwrap();
                    assert_eq!(first, *next, "numbers are consecutive");
                    *next += events.len() as u64;
                    seen.extend(events);
                    spool.acknowledge(*next).await.unwrap();
                };
                for act in acts {
                    match act {
                        Act::Append(count) => {
                            let events = (0..u64::from(count)).map(|n| event(made + n)).collect();
                            made += u64::from(count);
                            spool.append(events).await.unwrap();
                        }
                        Act::Offer(count) => {
                            for _ in 0..count {
                                spool.offer(event(made));
                                made += 1;
                            }
                        }
                        Act::Acknowledge(max) => {
                            spool.append(Vec::new()).await.unwrap();
                            if spool.waiting() > 0 {
                                take(&spool, max.into(), &mut next, &mut seen).await;
                            }
                        }
                        Act::Reopen => {
                            drop(spool);
                            spool = small(open_database(&path).unwrap(), 20, 6);
                        }
                    }
                }
                spool.append(Vec::new()).await.unwrap();
                assert!(spool.waiting() <= 20);
                while spool.waiting() > 0 {
                    take(&spool, 6, &mut next, &mut seen).await;
                }
                let mut expected = 0;
                for event in &seen {
                    match event.what {
                        What::Gap { lost } => expected += lost,
                        _ => {
                            assert_eq!(number(event), expected);
                            expected += 1;
                        }
                    }
                }
                assert_eq!(expected, made);
            });
        }
    }
}
