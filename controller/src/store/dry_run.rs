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
        Ok(self.inner.rollback().await?)
    }
}

#[cfg(test)]
mod tests {
    use crate::store::{Store, audit::digest};

    impl Store {
        /// A digest of every row there is, with its table.
        pub(crate) async fn dump(&self) -> Vec<String> {
            let tables = "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name";
            let tables: Vec<String> = sqlx::query_scalar(tables).fetch_all(&self.pool).await.unwrap();
            let mut dump = Vec::new();
            for table in tables {
                let rows = sqlx::query(sqlx::AssertSqlSafe(format!("SELECT * FROM {table}")));
                let rows = rows.fetch_all(&self.pool).await.unwrap();
                dump.extend(rows.iter().map(|row| format!("{table} {}", digest(row).unwrap())));
            }
            dump.sort();
            dump
        }
    }
}
