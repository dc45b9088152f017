//! The controller's database; the only place that contains SQL.
//!
//! SQLite (WAL, `synchronous = FULL`) or PostgreSQL, through sqlx, by one set of queries
//! ([`database`]): numbered placeholders (`$1`), no functions that one of them does not have,
//! uniqueness and compare-and-set instead of locks. Ids are stored as text, times as
//! microseconds since 1970 (UTC), structures as JSON text.
//!
//! A transaction is short and never open while we talk to a device, an agent or a peer.
//! Secrets that must be readable again are sealed in it with a key that lies elsewhere; rows
//! from before that are sealed when the database is opened.

mod address_space;
mod agents;
mod announcements;
mod audit;
mod backup;
mod baselines;
mod bindings;
mod bmc_leases;
mod bmcs;
mod campaigns;
mod claims;
mod commands;
mod database;
mod dry_run;
mod erasures;
mod error;
mod events;
mod expected_bmcs;
mod filled;
mod firmware;
mod found_bmcs;
mod hardware;
mod health;
mod images;
mod machine_health;
mod machines;
mod organisations;
mod people;
mod place;
mod places;
mod plans;
mod prefixes;
mod project_blocks;
mod projects;
mod queue;
mod racks;
mod reports;
mod requests;
mod reverse;
mod runs;
mod samples;
pub(crate) mod seal;
mod sites;
mod sole;
mod ssh_keys;
mod test_results;
mod tokens;
mod transfer;
mod webhooks;

use std::{
    fmt,
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, atomic::AtomicU32},
};

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use prometheus_client::{metrics::counter::Counter, registry::Registry};
use rackhand_common::{audit::Record, seal::Seal};
use rackhand_fail_points::fail_point;
use tokio::sync::Notify;

pub use self::{
    address_space::{Aggregate, Blocks, NewPool, Pool, Proof, ProofKind, ProofState, Source, Vrf, Within},
    agents::{Agent, Measured},
    announcements::{Announcement, AnnouncementFilter},
    audit::{Asked, AuditFilter, ChainEnd},
    backup::{Contents, Examined, examine, fill, is_occupied, is_sealed_with, read_backup, write_backup, write_copy},
    baselines::StoredBaseline,
    bindings::{Binding, BindingFilter},
    bmc_leases::{Moved, StoredLease},
    bmcs::{Next, Rotation, StoredBmc},
    campaigns::{Campaign, CampaignMachine},
    claims::{Claim, ClaimFilter, Holder},
    commands::StoredCommand,
    dry_run::{dry_run, is_dry_run},
    error::StoreError,
    events::{EventFilter, Happened, StoredEvent},
    expected_bmcs::ExpectedBmc,
    firmware::{Firmware, FirmwareUpdate, Told, UpdateState},
    found_bmcs::{FoundBmc, Intake, MetBmc},
    hardware::KnownHardware,
    images::{Image, ImageState, ImageVersion, NewImage, Stored},
    machine_health::{HealthOverride, HealthTransition, MachineHealth},
    machines::{Hold, Machine, MachineFilter, MachineOrder, Uninspected},
    organisations::Organisation,
    people::{Factor, Person},
    place::{NoPlace, Place},
    places::{Standing, Thing},
    plans::Plan,
    project_blocks::ProjectBlock,
    projects::Project,
    racks::{Rack, SoundNetwork, Unsound},
    reports::{Assignment, By, Held},
    requests::{KeyedRequest, Known, UnderWay},
    reverse::ReverseName,
    runs::{
        Deploy, FirmwareUpdates, OrderEnd, OrderResult, Parameters, PowerChange, Release, Rescue, Run, RunStatus, Tests,
    },
    samples::KEPT,
    sites::{DEFAULT_SITE, Site},
    sole::Sole,
    ssh_keys::{NewSshKey, SshKey},
    test_results::TestResult,
    tokens::{NewToken, Owner, Token},
};
pub(crate) use self::{audit::Present, claims::ClaimRow, prefixes::Leaf};
use self::{
    audit::Watched,
    database::{Database, Transaction, query},
    queue::{Queue, Turn},
};

/// A handle on the database; clones share one pool.
#[derive(Clone, Debug)]
pub struct Store {
    pool: Database,
    queue: Queue,
    seal: Arc<Seal>,
    gate: Option<Arc<dyn Gate>>,
    condition: Arc<Condition>,
    recorded: Arc<Notify>,
    keyed: Arc<AtomicU32>,
    carried: requests::Carried,
}

/// Whether the database takes what is written to it, as far as anybody tried.
#[derive(Debug, Default)]
struct Condition {
    refused: Counter,
    latest: Mutex<Option<&'static str>>,
}

/// What a simulation puts around every commit: where a process dies, or its disk fails.
pub trait Gate: fmt::Debug + Send + Sync + 'static {
    /// What the disk has for a transaction that begins now.
    fn space(&self) -> Space;
    /// Before it; an error keeps the transaction from being committed.
    fn before(&self) -> BoxFuture<'_, Result<(), StoreError>>;
    /// After it, before anybody knows; an error is told although it was committed.
    fn after(&self) -> BoxFuture<'_, Result<(), StoreError>>;
}

/// What a simulated disk has for a transaction; SQLite itself refuses what does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// Room.
    Room,
    /// No further page.
    Full,
    /// Nothing: the file system was mounted read-only, as it is after errors.
    ReadOnly,
}

impl Store {
    /// Opens the database, making its file where there is none, and brings its schema up to date. Its
    /// secrets are sealed with `seal`, always the same for one database until [`Store::reseal`].
    pub async fn open(place: impl Into<Place>, seal: Seal) -> Result<Self, StoreError> {
        let pool = Database::open(&place.into()).await?;
        let store = Self {
            pool,
            queue: Queue::new(),
            seal: Arc::new(seal),
            gate: None,
            condition: Arc::default(),
            recorded: Arc::default(),
            keyed: Arc::default(),
            carried: Arc::default(),
        };
        store.seal_rows().await?;
        Ok(store)
    }

    /// The same database, every commit of which goes through `gate`.
    pub fn gated(self, gate: Arc<dyn Gate>) -> Self {
        Self { gate: Some(gate), ..self }
    }

    /// A transaction for writing, once those that asked before have theirs. Nobody else writes
    /// meanwhile, so that what it reads is still true when it writes; dropped without
    /// [`Tx::commit`], it changed nothing.
    pub async fn begin(&self) -> Result<Tx, StoreError> {
        let turn = self.queue.turn().await?;
        let before = match &self.gate {
            None => Vec::new(),
            Some(gate) => {
                let (pages, only) = match gate.space() {
                    Space::Room => (u32::MAX - 1, "OFF"),
                    // Fewer than there are means those there are.
                    Space::Full => (1, "OFF"),
                    Space::ReadOnly => (u32::MAX - 1, "ON"),
                };
                vec![format!("PRAGMA max_page_count = {pages}"), format!("PRAGMA query_only = {only}")]
            }
        };
        Ok(Tx {
            inner: self.pool.begin(&before).await?,
            turn,
            seal: self.seal.clone(),
            gate: self.gate.clone(),
            condition: self.condition.clone(),
            watched: Vec::new(),
            records: Vec::new(),
            recorded: self.recorded.clone(),
        })
    }

    /// Takes note of an error: that the database cannot be written is told to those who watch
    /// the controller, until something is written again.
    pub fn note(&self, error: &StoreError) {
        self.condition.note(error);
    }

    /// Why the latest write failed, when it did.
    pub fn unwritable(&self) -> Option<&'static str> {
        *self.condition.latest()
    }

    /// Adds what is counted here to the metrics.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "rackhand_controller_writes_refused",
            "Writes that the database refused because its disk was full or failed",
            self.condition.refused.clone(),
        );
    }

    /// Waits for statements in flight and closes.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

/// A write transaction; each noun's file adds its queries to it.
#[derive(Debug)]
pub struct Tx {
    inner: Transaction,
    // Behind the transaction, which ends first.
    turn: Turn,
    seal: Arc<Seal>,
    gate: Option<Arc<dyn Gate>>,
    condition: Arc<Condition>,
    watched: Vec<Watched>,
    /// Of requests that were settled; written with the commit.
    records: Vec<Record>,
    recorded: Arc<Notify>,
}

impl Tx {
    /// Has what is to be kept of the present request written with the commit: that it was done, and
    /// what it changed.
    pub(crate) async fn settle(&mut self) -> Result<(), StoreError> {
        if is_dry_run() {
            return Ok(());
        }
        self.mark_request().await?;
        self.make_record().await
    }

    /// Marks a place in this transaction to go back to.
    pub(crate) async fn mark(&mut self) -> Result<(), StoreError> {
        self.say("SAVEPOINT attempt").await
    }

    /// Undoes what was done since the mark, and forgets the mark.
    pub(crate) async fn go_back(&mut self) -> Result<(), StoreError> {
        self.watched.clear();
        self.say("ROLLBACK TO attempt").await?;
        self.say("RELEASE attempt").await
    }

    /// Keeps what was done since the mark, and forgets the mark.
    pub(crate) async fn go_on(&mut self) -> Result<(), StoreError> {
        self.say("RELEASE attempt").await
    }

    async fn say(&mut self, words: &'static str) -> Result<(), StoreError> {
        query(words).execute(&mut self.inner).await?;
        Ok(())
    }

    /// Makes everything done in it durable; in a dry run, undoes it.
    pub async fn commit(mut self) -> Result<(), StoreError> {
        if is_dry_run() {
            return self.undo().await;
        }
        self.settle().await?;
        let has_records = self.write_records().await?;
        let Self { inner, turn, gate, condition, recorded, .. } = self;
        let committed = async {
            if let Some(gate) = &gate {
                gate.before().await?;
            }
            fail_point!(once "store.commit", inner.commit().await)?;
            match &gate {
                Some(gate) => gate.after().await,
                None => Ok(()),
            }
        };
        let committed = committed.await;
        drop(turn);
        match &committed {
            Ok(()) => {
                *condition.latest() = None;
                if has_records {
                    recorded.notify_one();
                }
            }
            Err(error) => condition.note(error),
        }
        committed
    }
}

impl Condition {
    fn note(&self, error: &StoreError) {
        let reason = match error {
            StoreError::Full(_) => "the disk of the database is full",
            StoreError::Unwritable(_) => "the database cannot be written",
            StoreError::Unreachable(_) => "the server of the database does not answer",
            _ => return,
        };
        self.refused.inc();
        *self.latest() = Some(reason);
    }

    fn latest(&self) -> MutexGuard<'_, Option<&'static str>> {
        self.latest.lock().expect("nothing panics while it is held")
    }
}

/// A time as it is stored: microseconds since 1970.
fn micros(time: Timestamp) -> i64 {
    time.as_microsecond()
}

/// A stored time.
fn timestamp(micros: i64) -> Result<Timestamp, StoreError> {
    Timestamp::from_microsecond(micros).map_err(|error| StoreError::Damaged("time", error.into()))
}

/// `what` when a uniqueness rule was broken, the database's error otherwise.
fn taken(what: &'static str) -> impl FnOnce(sqlx::Error) -> StoreError {
    move |error| match &error {
        sqlx::Error::Database(database) if database.is_unique_violation() => StoreError::Taken(what),
        _ => error.into(),
    }
}

/// A structure as it is stored.
fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("stored types always serialize")
}

/// A stored structure.
fn from_json<T: serde::de::DeserializeOwned>(what: &'static str, text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|error| StoreError::Damaged(what, error.into()))
}

/// A stored id.
fn id<T: FromStr<Err = uuid::Error>>(text: &str) -> Result<T, StoreError> {
    text.parse().map_err(|error: uuid::Error| StoreError::Damaged("id", error.into()))
}

#[cfg(test)]
pub(crate) mod tests;
