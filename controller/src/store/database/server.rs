//! Transactions on PostgreSQL.
//!
//! Invariants:
//! - A connection that goes back into the pool is in no transaction: one that is dropped is undone.
//! - A transaction whose last statement failed is not committed. PostgreSQL would undo it and call
//!   that a success.

use sqlx::{PgConnection, PgPool, Postgres, SqlSafeStr as _};

/// The lock that every write transaction holds: "rackhand" as a number.
const WRITER: i64 = i64::from_be_bytes(*b"rackhand");

/// A write transaction.
#[derive(Debug)]
pub(in crate::store) struct Writing {
    inner: sqlx::Transaction<'static, Postgres>,
    /// The server takes nothing any more but that it is undone, to a mark or all of it.
    has_failed: bool,
}

impl Writing {
    /// Begins it, once no other transaction holds the lock. Every later statement sees all that
    /// was committed by then.
    pub(super) async fn begin(pool: PgPool) -> Result<Self, sqlx::Error> {
        // A task, as it goes on when whoever waits for it is gone: sqlx takes a connection for
        // one that is in no transaction until it has heard of its beginning.
        let begun = tokio::spawn(async move {
            let begin = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE".into_sql_str();
            sqlx::Transaction::begin(pool.acquire().await?, Some(begin)).await
        });
        let inner = begun.await.map_err(|_| sqlx::Error::WorkerCrashed)??;
        let mut this = Self { inner, has_failed: false };
        sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(WRITER).execute(this.connection()).await?;
        Ok(this)
    }

    /// Makes everything done in it durable.
    pub(super) async fn commit(self) -> Result<(), sqlx::Error> {
        if self.has_failed {
            return Err(sqlx::Error::Protocol("a statement of the transaction failed: it is undone".into()));
        }
        self.inner.commit().await
    }

    /// Undoes everything done in it.
    pub(super) async fn rollback(self) -> Result<(), sqlx::Error> {
        self.inner.rollback().await
    }

    /// The connection, for a statement that is in it.
    pub(super) fn connection(&mut self) -> &mut PgConnection {
        &mut self.inner
    }

    /// Takes note of how a statement ended.
    pub(super) fn told<T>(&mut self, result: Result<T, sqlx::Error>) -> Result<T, sqlx::Error> {
        self.has_failed = result.is_err();
        result
    }
}
