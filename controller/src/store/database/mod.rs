//! SQLite or PostgreSQL behind one set of queries.
//!
//! A query is written once, with numbered placeholders, and both databases take it. Values are of
//! three kinds, as the schema has them: integers, text and bytes; truth is an integer, 0 or 1.
//! What the two do not do alike stands here, and nowhere else.

mod open;
mod query;
mod row;
mod server;

use super::{Place, StoreError};

use sqlx::{AssertSqlSafe, PgPool, SqlSafeStr as _, Sqlite, SqliteConnection, SqlitePool};

pub(super) use self::{
    open::{FILE, connect, is_of_this_version},
    query::{Builder, Value, in_powers_of_two, query, query_scalar},
    row::{Row, Stored},
    server::Writing,
};

/// A pool of connections.
#[derive(Clone, Debug)]
pub(super) enum Database {
    /// To a file.
    Sqlite(SqlitePool),
    /// To a server.
    Postgres(PgPool),
}

/// A write transaction; dropped without [`Transaction::commit`], it changed nothing.
#[derive(Debug)]
pub(super) enum Transaction {
    /// Of a file.
    Sqlite(sqlx::Transaction<'static, Sqlite>),
    /// Of a server.
    Postgres(Writing),
}

/// Where a query is carried out.
#[derive(Debug)]
pub(super) enum Executor<'a> {
    SqlitePool(&'a SqlitePool),
    Sqlite(&'a mut SqliteConnection),
    PgPool(&'a PgPool),
    Postgres(&'a mut Writing),
}

/// What a statement that gives no rows did.
#[derive(Clone, Copy, Debug)]
pub(super) struct Done(u64);

impl Done {
    /// Rows that were put in, changed or removed.
    pub(super) fn rows_affected(self) -> u64 {
        self.0
    }
}

impl Database {
    /// Opens it, and brings its schema up to date.
    pub(super) async fn open(place: &Place) -> Result<Self, StoreError> {
        match place {
            Place::File(path) => open::file(path).await.map(Self::Sqlite),
            Place::Server(options) => open::server(options).await.map(Self::Postgres),
        }
    }

    /// Begins a write transaction that holds the lock all writers take: what it reads is still
    /// true when it writes. `before` is said to the connection first, which only SQLite takes.
    pub(super) async fn begin(&self, before: &[String]) -> Result<Transaction, sqlx::Error> {
        match self {
            Self::Sqlite(pool) => {
                let mut connection = pool.acquire().await?;
                for words in before {
                    sqlx::query(AssertSqlSafe(words.clone())).execute(&mut *connection).await?;
                }
                let begin = Some("BEGIN IMMEDIATE".into_sql_str());
                Ok(Transaction::Sqlite(sqlx::Transaction::begin(connection, begin).await?))
            }
            Self::Postgres(pool) => Ok(Transaction::Postgres(Writing::begin(pool.clone()).await?)),
        }
    }

    /// Waits for statements in flight and closes.
    pub(super) async fn close(&self) {
        match self {
            Self::Sqlite(pool) => pool.close().await,
            Self::Postgres(pool) => pool.close().await,
        }
    }
}

impl Transaction {
    /// Makes everything done in it durable.
    pub(super) async fn commit(self) -> Result<(), sqlx::Error> {
        match self {
            Self::Sqlite(inner) => inner.commit().await,
            Self::Postgres(inner) => inner.commit().await,
        }
    }

    /// Undoes everything done in it, and waits until that is so.
    pub(super) async fn rollback(self) -> Result<(), sqlx::Error> {
        match self {
            Self::Sqlite(inner) => inner.rollback().await,
            Self::Postgres(inner) => inner.rollback().await,
        }
    }
}

impl<'a> From<&'a Database> for Executor<'a> {
    fn from(database: &'a Database) -> Self {
        match database {
            Database::Sqlite(pool) => Self::SqlitePool(pool),
            Database::Postgres(pool) => Self::PgPool(pool),
        }
    }
}

impl<'a> From<&'a mut SqliteConnection> for Executor<'a> {
    fn from(connection: &'a mut SqliteConnection) -> Self {
        Self::Sqlite(connection)
    }
}

impl<'a> From<&'a mut Transaction> for Executor<'a> {
    fn from(transaction: &'a mut Transaction) -> Self {
        match transaction {
            Transaction::Sqlite(inner) => Self::Sqlite(inner),
            Transaction::Postgres(inner) => Self::Postgres(inner),
        }
    }
}
