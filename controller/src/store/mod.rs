//! The controller's database; the only place that contains SQL.
//!
//! SQLite (WAL, `synchronous = FULL`) through sqlx. Queries are written so that PostgreSQL
//! can join with one set of them: numbered placeholders (`$1`), no SQLite-only functions,
//! uniqueness and compare-and-set instead of locks. Ids are stored as text, times as
//! microseconds since 1970 (UTC), structures as JSON text.
//!
//! A transaction is short and never open while we talk to a device, an agent or a peer.
//! Secrets that must be readable again are sealed in it with a key that lies elsewhere; rows
//! from before that are sealed when the database is opened.

mod agents;
mod backup;
mod commands;
mod events;
mod health;
mod images;
mod machines;
mod racks;
mod runs;
mod tokens;

use std::{fmt, os::unix::fs::OpenOptionsExt as _, path::Path, str::FromStr, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use rackhand_common::{
    intent::Order,
    seal::{Seal, Sealed as _},
};
use rackhand_fail_points::fail_point;
use sqlx::{
    Row as _, Sqlite, SqlitePool, Transaction,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

pub use self::{
    agents::Agent,
    backup::{Contents, Examined, examine, read_backup, write_backup},
    commands::StoredCommand,
    events::{EventFilter, Happened, StoredEvent},
    images::{Image, ImageState, Stored},
    machines::Machine,
    racks::{Rack, SoundNetwork, Unsound},
    runs::{Deploy, OrderEnd, OrderResult, Parameters, PowerChange, Release, Run, RunStatus},
    tokens::Token,
};

/// Why the store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no such row.
    #[error("no such {0}")]
    NotFound(&'static str),
    /// A uniqueness rule forbids it: the name of what is taken.
    #[error("{0} is already taken")]
    Taken(&'static str),
    /// The row changed since it was read.
    #[error("{0} was changed by someone else")]
    Changed(&'static str),
    /// The database failed.
    #[error("database failed")]
    Database(#[source] sqlx::Error),
    /// A stored value cannot be read: damage, or a newer version's.
    #[error("stored {0} cannot be read")]
    Damaged(&'static str, #[source] Box<dyn std::error::Error + Send + Sync>),
    /// Its secrets cannot be read with the key at hand.
    #[error("the database is sealed with another key: put back the `seal.key` that belongs to it")]
    OtherKey,
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

impl From<std::io::Error> for StoreError {
    fn from(error: std::io::Error) -> Self {
        Self::Database(sqlx::Error::Io(error))
    }
}

/// A handle on the database; clones share one pool.
#[derive(Clone, Debug)]
pub struct Store {
    pool: SqlitePool,
    seal: Arc<Seal>,
    gate: Option<Arc<dyn Gate>>,
}

/// What a simulation puts around every commit: where a process dies, or its disk fails.
pub trait Gate: fmt::Debug + Send + Sync + 'static {
    /// Before it; an error keeps the transaction from being committed.
    fn before(&self) -> BoxFuture<'_, Result<(), StoreError>>;
    /// After it, before anybody knows.
    fn after(&self) -> BoxFuture<'_, ()>;
}

impl Store {
    /// Opens the database, making it where there is none, and brings its schema up to date. Its
    /// secrets are sealed with `seal`, always the same for one database.
    pub async fn open(path: &Path, seal: Seal) -> Result<Self, StoreError> {
        // SQLite takes an empty file for a new database, and gives its mode to those beside it.
        match std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(StoreError::Database(sqlx::Error::Io(error)));
            }
            _ => {}
        }
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            // What is blanked is to be gone from the file too: user data holds passwords.
            .pragma("secure_delete", "ON")
            // SQLite has one writer; others wait for it this long before they fail.
            .busy_timeout(Duration::from_secs(10));
        // Four connections: one writer, and readers for the API that it does not block.
        let pool = SqlitePoolOptions::new().max_connections(4).connect_with(options).await?;
        sqlx::migrate!("migrations/sqlite").run(&pool).await.map_err(|error| StoreError::Database(error.into()))?;
        let store = Self { pool, seal: Arc::new(seal), gate: None };
        store.seal_rows().await?;
        Ok(store)
    }

    /// Checks the key against the one this database is sealed with; seals what is in clear when
    /// there has been none.
    async fn seal_rows(&self) -> Result<(), StoreError> {
        const PROBE: &str = "probe";
        let mut tx = self.begin().await?;
        let probe: Option<String> = sqlx::query_scalar("SELECT probe FROM seal").fetch_optional(&mut *tx.inner).await?;
        if let Some(probe) = probe {
            return self.seal.open(PROBE, &probe).map(drop).map_err(|_| StoreError::OtherKey);
        }
        for row in sqlx::query("SELECT id, parameters FROM runs").fetch_all(&mut *tx.inner).await? {
            let parameters: Parameters = from_json("run parameters", row.try_get("parameters")?)?;
            let run = id(row.try_get("id")?)?;
            sqlx::query("UPDATE runs SET parameters = $2 WHERE id = $1")
                .bind(row.try_get::<&str, _>("id")?)
                .bind(json(&parameters.sealed(&self.seal, run)))
                .execute(&mut *tx.inner)
                .await?;
        }
        for row in
            sqlx::query("SELECT id, orders FROM machines WHERE orders IS NOT NULL").fetch_all(&mut *tx.inner).await?
        {
            let order: Order = from_json("order", row.try_get("orders")?)?;
            sqlx::query("UPDATE machines SET orders = $2 WHERE id = $1")
                .bind(row.try_get::<&str, _>("id")?)
                .bind(json(&order.sealed(&self.seal, order.run)))
                .execute(&mut *tx.inner)
                .await?;
        }
        sqlx::query("INSERT INTO seal (id, probe) VALUES (1, $1)")
            .bind(self.seal.seal(PROBE, PROBE))
            .execute(&mut *tx.inner)
            .await?;
        tx.commit().await?;
        // The log still has the rows as they were.
        sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&self.pool).await?;
        Ok(())
    }

    /// The same database, every commit of which goes through `gate`.
    pub fn gated(self, gate: Arc<dyn Gate>) -> Self {
        Self { gate: Some(gate), ..self }
    }

    /// A transaction for writing. It takes the write lock at once, so that what it reads
    /// is still true when it writes; dropped without [`Tx::commit`], it changed nothing.
    pub async fn begin(&self) -> Result<Tx, StoreError> {
        let inner = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        Ok(Tx { inner, seal: self.seal.clone(), gate: self.gate.clone() })
    }

    /// Waits for statements in flight and closes.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

/// A write transaction; each noun's file adds its queries to it.
#[derive(Debug)]
pub struct Tx {
    inner: Transaction<'static, Sqlite>,
    seal: Arc<Seal>,
    gate: Option<Arc<dyn Gate>>,
}

impl Tx {
    /// Makes everything done in it durable.
    pub async fn commit(self) -> Result<(), StoreError> {
        if let Some(gate) = &self.gate {
            gate.before().await?;
        }
        fail_point!(once "store.commit", self.inner.commit().await)?;
        if let Some(gate) = &self.gate {
            gate.after().await;
        }
        Ok(())
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
        _ => StoreError::Database(error),
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
