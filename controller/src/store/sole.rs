//! A server's database is one controller's: it holds a lock there for as long as it runs.
//!
//! A file lies in the controller's own data directory, which it locks. A server's database can be
//! reached from anywhere: two controllers on it would both move runs on, switch machines and think
//! that they have all agents. The lock is a session's, so that it ends with its process, however
//! that ends. A host that died without a word is noticed by the server within half a minute.
//!
//! It does not go through a pooler that gives a session to several clients in turn.

use std::{future::Future, pin::pin, sync::Arc, time::Duration};

use sqlx::{
    Connection as _, PgConnection,
    postgres::{PgConnectOptions, PgDatabaseError},
};
use tokio::{
    sync::Mutex,
    time::{sleep, timeout},
};

use super::{Place, StoreError, database::connect};

/// The lock's number, in the database.
const SOLE: i64 = i64::from_be_bytes(*b"rh.sole\0");

/// How often it is looked whether it is still held, and how long an answer is waited for.
const EVERY: Duration = Duration::from_secs(5);

/// `lock_not_available`: [`PATIENCE`] is over.
const NOT_AVAILABLE: &str = "55P03";

/// How long whoever holds it is waited for: one that was killed just now is gone by then.
const PATIENCE: &str = "5s";

/// The lock, until the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Sole(Arc<Mutex<Held>>);

#[derive(Debug)]
struct Held {
    options: Box<PgConnectOptions>,
    connection: PgConnection,
}

impl Sole {
    /// Takes it; nothing for a file. [`StoreError::Served`] when another controller has it.
    pub async fn take(place: &Place) -> Result<Option<Self>, StoreError> {
        let Place::Server(options) = place else { return Ok(None) };
        let connection = lock(options).await?;
        Ok(Some(Self(Arc::new(Mutex::new(Held { options: options.clone(), connection })))))
    }

    /// Holds it until `done`, taking it again when the server was away. [`StoreError::Served`] when
    /// another controller was quicker then: it has to be left to that one.
    pub async fn keep(self, done: impl Future<Output = ()>) -> Result<(), StoreError> {
        let mut done = pin!(done);
        let mut was_lost = false;
        loop {
            tokio::select! {
                () = sleep(EVERY) => (),
                () = &mut done => return Ok(()),
            }
            let mut held = self.0.lock().await;
            if matches!(timeout(EVERY, held.connection.ping()).await, Ok(Ok(()))) {
                continue;
            }
            if !was_lost {
                tracing::warn!(
                    "the server of the database does not answer: whether another controller took it is not known"
                );
            }
            was_lost = true;
            match timeout(2 * EVERY, lock(&held.options)).await {
                Ok(Ok(connection)) => {
                    held.connection = connection;
                    was_lost = false;
                    tracing::info!("the database is this controller's again");
                }
                Ok(Err(error @ StoreError::Served(_))) => return Err(error),
                Ok(Err(_)) | Err(_) => (),
            }
        }
    }
}

async fn lock(options: &PgConnectOptions) -> Result<PgConnection, StoreError> {
    let limits = [
        ("lock_timeout", PATIENCE),
        // By these the server finds out that our host is gone.
        ("tcp_keepalives_idle", "10"),
        ("tcp_keepalives_interval", "5"),
        ("tcp_keepalives_count", "3"),
    ];
    let mut connection = connect(&options.clone().options(limits)).await?;
    match sqlx::query("SELECT pg_advisory_lock($1)").bind(SOLE).execute(&mut connection).await {
        Ok(_) => Ok(connection),
        Err(sqlx::Error::Database(told))
            if told.try_downcast_ref::<PgDatabaseError>().is_some_and(|told| told.code() == NOT_AVAILABLE) =>
        {
            Err(StoreError::Served(holder(&mut connection).await))
        }
        Err(error) => Err(error.into()),
    }
}

/// Who has it, for people.
async fn holder(connection: &mut PgConnection) -> String {
    let holder = sqlx::query_as::<_, (Option<String>, Option<String>)>(
        "SELECT host(client_addr), to_char(backend_start AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS \"UTC\"') \
         FROM pg_stat_activity WHERE pid IN (SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted \
         AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
         AND (classid::bigint << 32) + objid::bigint = $1 AND objsubid = 1)",
    )
    .bind(SOLE)
    .fetch_optional(connection)
    .await;
    match holder {
        Ok(Some((from, since))) => {
            let from = from.map_or("the server's own host".to_owned(), |from| format!("{from:.45}"));
            format!("from {from} since {:.40}", since.as_deref().unwrap_or("a time that is not told"))
        }
        Ok(None) | Err(_) => "but ended just now".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;
    use crate::store::tests::{Ground, On};

    async fn refused(place: &Place) -> String {
        let error = Sole::take(place).await.unwrap_err();
        assert!(matches!(error, StoreError::Served(_)), "{error:?}");
        error.to_string()
    }

    #[tokio::test]
    async fn a_server_s_database_is_had_by_one_at_a_time_and_a_file_is_locked_elsewhere() {
        let ground = Ground::new(On::Postgres);
        let first = Sole::take(&ground.place()).await.unwrap().unwrap();
        let told = refused(&ground.place()).await;
        assert!(
            told.contains("another controller runs on this database, from the server's own host since 20"),
            "{told}"
        );
        // Another database of the same server is another controller's.
        let other = Ground::new(On::Postgres);
        assert!(Sole::take(&other.place()).await.unwrap().is_some());
        drop(first);
        assert!(Sole::take(&ground.place()).await.unwrap().is_some());
        assert!(Sole::take(&Ground::new(On::Sqlite).place()).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn it_is_taken_again_after_the_server_was_away_unless_another_was_quicker() {
        let ground = Ground::new(On::Postgres);
        let ended = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 \
                     AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
        let first = Sole::take(&ground.place()).await.unwrap().unwrap();
        let kept = tokio::spawn(first.clone().keep(pending()));
        ground.say(ended).unwrap();
        timeout(Duration::from_secs(30), async {
            while first.0.lock().await.connection.ping().await.is_err() {
                sleep(Duration::from_millis(100)).await;
            }
        })
        .await
        .expect("it is taken again");
        refused(&ground.place()).await;
        assert!(!kept.is_finished());

        ground.say(ended).unwrap();
        let second = Sole::take(&ground.place()).await.unwrap().unwrap();
        let lost = timeout(Duration::from_secs(30), kept).await.expect("it gives up").unwrap();
        assert!(matches!(lost, Err(StoreError::Served(_))), "{lost:?}");
        second.keep(std::future::ready(())).await.unwrap();
    }
}
