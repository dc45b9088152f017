//! Why the store did not do what was asked, and what the databases' errors mean.

use sqlx::postgres::PgDatabaseError;

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
    /// Too many others write, or somebody's writing takes too long.
    #[error("the controller's database is busy with what others write, and this was not stored: try again later")]
    Busy(#[source] Option<sqlx::Error>),
    /// The database found no room for what was to be written; nothing of it was.
    #[error("the disk of the controller's database is full, and this was not stored: make room on its file system")]
    Full(#[source] sqlx::Error),
    /// Writing failed: whether this was stored is not known.
    #[error("the controller's database cannot be written: look at its disk and file system, and at the kernel's log")]
    Unwritable(#[source] sqlx::Error),
    /// The server does not answer: whether this was stored is not known.
    #[error("the server of the controller's database does not answer: look whether it runs, and at the way to it")]
    Unreachable(#[source] sqlx::Error),
    /// The database failed.
    #[error("database failed")]
    Database(#[source] sqlx::Error),
    /// A stored value cannot be read: damage, or a newer version's.
    #[error("stored {0} cannot be read")]
    Damaged(&'static str, #[source] Box<dyn std::error::Error + Send + Sync>),
    /// Another controller has the database: from where, since when.
    #[error(
        "another controller runs on this database, {0}: a database is one controller's, so stop that one, or give this \
         one another by `database.url` in its configuration"
    )]
    Served(String),
    /// Its secrets cannot be read with the key at hand.
    #[error("the database is sealed with another key: put back the `seal.key` that belongs to it")]
    OtherKey,
}

impl StoreError {
    /// Whether the database is at fault, and not what was asked: it can be asked again later.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Full(_) | Self::Unwritable(_) | Self::Unreachable(_) | Self::Busy(_))
    }
}

impl From<std::io::Error> for StoreError {
    fn from(error: std::io::Error) -> Self {
        Self::Unwritable(sqlx::Error::Io(error))
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let class = match &error {
            sqlx::Error::Database(told) => match told.try_downcast_ref::<PgDatabaseError>() {
                Some(told) => of_postgres(told.code()),
                None => of_sqlite(told.code().and_then(|code| code.parse().ok()).unwrap_or(0)),
            },
            // SQLite tells of its files by codes of its own.
            sqlx::Error::Io(_) | sqlx::Error::Tls(_) => Self::Unreachable,
            sqlx::Error::PoolTimedOut => busy,
            _ => Self::Database,
        };
        class(error)
    }
}

/// What a kind of error becomes.
type Class = fn(sqlx::Error) -> StoreError;

fn busy(error: sqlx::Error) -> StoreError {
    StoreError::Busy(Some(error))
}

/// By SQLite's result code: its lowest byte is the kind of failure, those above it where it was met.
fn of_sqlite(code: u32) -> Class {
    match code & 0xFF {
        // SQLITE_BUSY, SQLITE_LOCKED.
        5 | 6 => busy,
        // SQLITE_READONLY, SQLITE_IOERR.
        8 | 10 => StoreError::Unwritable,
        // SQLITE_FULL.
        13 => StoreError::Full,
        _ => StoreError::Database,
    }
}

/// By SQLSTATE.
fn of_postgres(state: &str) -> Class {
    match state {
        // disk_full.
        "53100" => StoreError::Full,
        // read_only_sql_transaction (a standby), io_error.
        "25006" | "58030" => StoreError::Unwritable,
        // lock_not_available, query_canceled (its time is up), too_many_connections, and
        // serialization_failure and deadlock_detected: nothing was stored.
        "55P03" | "57014" | "53300" | "40001" | "40P01" => busy,
        // The server ends the session, starts or stops; connection exceptions.
        "57P01" | "57P02" | "57P03" | "57P05" | "25P03" => StoreError::Unreachable,
        _ if state.starts_with("08") => StoreError::Unreachable,
        _ => StoreError::Database,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_by_itself_is_told_from_what_does_not() {
        for (code, passes) in [("53100", true), ("08006", true), ("55P03", true), ("23505", false), ("25P02", false)] {
            assert_eq!(of_postgres(code)(sqlx::Error::WorkerCrashed).is_passing(), passes, "{code}");
        }
        // Their extended codes too: SQLITE_IOERR_FSYNC, SQLITE_BUSY_SNAPSHOT, SQLITE_CONSTRAINT_UNIQUE.
        for (code, passes) in [(1034, true), (517, true), (2067, false), (13, true)] {
            assert_eq!(of_sqlite(code)(sqlx::Error::WorkerCrashed).is_passing(), passes, "{code}");
        }
    }
}
