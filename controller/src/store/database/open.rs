//! How a database is opened and brought up to date.

use std::{os::unix::fs::OpenOptionsExt as _, path::Path, time::Duration};

use sqlx::{
    Connection as _, PgConnection, PgPool, SqlitePool,
    migrate::Migrator,
    postgres::{PgConnectOptions, PgPoolOptions},
    sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use super::super::StoreError;

/// The schema's steps in a file.
pub(in crate::store) static FILE: Migrator = sqlx::migrate!("migrations/sqlite");

/// The schema's steps on a server; those of one number do the same.
static SERVER: Migrator = sqlx::migrate!("migrations/postgres");

/// How long a connection is waited for, and the turn of a writer of another process.
const PATIENCE: Duration = Duration::from_secs(10);

/// Connections to a server: one writer, and readers for the API.
const CONNECTIONS: u32 = 10;

/// Opens a file, making it where there is none.
pub(in crate::store) async fn file(path: &Path) -> Result<SqlitePool, StoreError> {
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
        // Writers of this process take turns; those of others are waited for this long.
        .busy_timeout(PATIENCE);
    // Four connections: one writer, and readers for the API that it does not block.
    // A disk that fails makes SQLite roll back by itself. sqlx does not notice: it counts that
    // connection as in a transaction ever after, and begins none on it.
    let is_free = |connection: &mut SqliteConnection| !connection.is_in_transaction();
    let pool = SqlitePoolOptions::new()
        .max_connections(4)
        .before_acquire(move |connection, _| {
            let free = is_free(connection);
            Box::pin(async move { Ok(free) })
        })
        .connect_with(options)
        .await?;
    FILE.run(&pool).await.map_err(|error| StoreError::Database(error.into()))?;
    Ok(pool)
}

/// Opens a database of a server, which must be there; it may be empty.
pub(in crate::store) async fn server(options: &PgConnectOptions) -> Result<PgPool, StoreError> {
    let mut connection = connect(options).await?;
    SERVER.run_direct(None, &mut connection, false).await.map_err(|error| StoreError::Database(error.into()))?;
    connection.close().await?;
    // What hangs ends by itself: it may hold the lock that all writers wait for.
    let limits =
        [("statement_timeout", "30s"), ("lock_timeout", "10s"), ("idle_in_transaction_session_timeout", "60s")];
    let pool = PgPoolOptions::new()
        .max_connections(CONNECTIONS)
        .acquire_timeout(PATIENCE)
        .connect_with(named(options).options(limits))
        .await?;
    Ok(pool)
}

/// One connection without limits of time, for what takes long.
pub(in crate::store) async fn connect(options: &PgConnectOptions) -> Result<PgConnection, StoreError> {
    let mut connection = PgConnection::connect_with(&named(options)).await?;
    let encoding: String = sqlx::query_scalar("SHOW server_encoding").fetch_one(&mut connection).await?;
    if encoding != "UTF8" {
        let reason = format!("the database is encoded in {encoding}: make one with ENCODING 'UTF8'");
        return Err(StoreError::Database(sqlx::Error::Configuration(reason.into())));
    }
    Ok(connection)
}

/// Whether a server's schema is the one that this version works with.
pub(in crate::store) async fn is_of_this_version(server: &mut PgConnection) -> Result<(), StoreError> {
    let there: Option<i64> =
        sqlx::query_scalar("SELECT MAX(version) FROM _sqlx_migrations WHERE success").fetch_one(server).await?;
    let ours = SERVER.iter().map(|step| step.version).max();
    if there == ours {
        return Ok(());
    }
    let number = |version: Option<i64>| version.map_or("none".to_owned(), |version| version.to_string());
    Err(StoreError::Database(sqlx::Error::Configuration(
        format!(
            "its schema is number {}, and this version's is {}: use the version that serves it",
            number(there),
            number(ours)
        )
        .into(),
    )))
}

fn named(options: &PgConnectOptions) -> PgConnectOptions {
    options.clone().application_name("rackhand-controller")
}
