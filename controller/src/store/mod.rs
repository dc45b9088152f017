//! The controller's database; the only place that contains SQL.
//!
//! SQLite (WAL, `synchronous = FULL`) through sqlx. Queries are written so that PostgreSQL
//! can join with one set of them: numbered placeholders (`$1`), no SQLite-only functions,
//! uniqueness and compare-and-set instead of locks. Ids are stored as text, times as
//! microseconds since 1970 (UTC), structures as JSON text.
//!
//! A transaction is short and never open while we talk to a device, an agent or a peer.

mod agents;
mod commands;
mod events;
mod health;
mod images;
mod machines;
mod racks;
mod runs;
mod tokens;

use std::{fmt, path::Path, str::FromStr, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use sqlx::{
    Sqlite, SqlitePool, Transaction,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

pub use self::{
    agents::Agent,
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
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

/// A handle on the database; clones share one pool.
#[derive(Clone, Debug)]
pub struct Store {
    pool: SqlitePool,
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
    /// Opens the database, making it where there is none, and brings its schema up to date.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
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
        Ok(Self { pool, gate: None })
    }

    /// The same database, every commit of which goes through `gate`.
    pub fn gated(self, gate: Arc<dyn Gate>) -> Self {
        Self { gate: Some(gate), ..self }
    }

    /// A transaction for writing. It takes the write lock at once, so that what it reads
    /// is still true when it writes; dropped without [`Tx::commit`], it changed nothing.
    pub async fn begin(&self) -> Result<Tx, StoreError> {
        Ok(Tx { inner: self.pool.begin_with("BEGIN IMMEDIATE").await?, gate: self.gate.clone() })
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
    gate: Option<Arc<dyn Gate>>,
}

impl Tx {
    /// Makes everything done in it durable.
    pub async fn commit(self) -> Result<(), StoreError> {
        let Some(gate) = self.gate else { return Ok(self.inner.commit().await?) };
        gate.before().await?;
        self.inner.commit().await?;
        gate.after().await;
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
