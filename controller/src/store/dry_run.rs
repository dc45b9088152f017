//! Dry runs: what a request does is taken back where it would be committed.

use super::{StoreError, Tx};

tokio::task_local! {
    /// There while this task only tries what it does.
    static DRY: ();
}

/// Has every transaction that `work` commits taken back, with success.
pub async fn dry_run<T>(work: impl Future<Output = T>) -> T {
    DRY.scope((), work).await
}

/// Whether this task only tries what it does.
pub fn is_dry_run() -> bool {
    DRY.try_with(|()| ()).is_ok()
}

impl Tx {
    /// Undoes everything done in it.
    pub(crate) async fn undo(self) -> Result<(), StoreError> {
        let Self { inner, turn, .. } = self;
        inner.rollback().await?;
        drop(turn);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use sqlx::AssertSqlSafe;

    use crate::store::{
        Store,
        audit::digest,
        database::{Database, query, query_scalar},
    };

    impl Store {
        /// A digest of every row there is, with its table.
        pub(crate) async fn dump(&self) -> Vec<String> {
            let tables = match self.pool {
                Database::Sqlite(_) => "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE '_sqlx%'",
                Database::Postgres(_) => {
                    "SELECT CAST(tablename AS TEXT) FROM pg_tables WHERE schemaname = 'public' AND tablename NOT LIKE '_sqlx%'"
                }
            };
            let tables: Vec<String> = query_scalar(tables).fetch_all(&self.pool).await.unwrap();
            let mut dump = Vec::new();
            for table in tables {
                let rows = query(AssertSqlSafe(format!("SELECT * FROM {table}")));
                let rows = rows.fetch_all(&self.pool).await.unwrap();
                dump.extend(rows.iter().map(|row| format!("{table} {}", digest(row).unwrap())));
            }
            dump.sort();
            dump
        }
    }
}
