//! How far the receivers of events are.

use super::{Store, StoreError, Tx, database::query};

impl Store {
    /// The number of the latest event that a receiver was told or that is none of its; `None` for one
    /// that was never begun.
    pub async fn webhook_told(&self, name: &str) -> Result<Option<u64>, StoreError> {
        let row = query("SELECT told FROM webhooks WHERE name = $1").bind(name).fetch_optional(&self.pool).await?;
        row.map(|row| Ok(row.try_get::<i64, _>("told")? as u64)).transpose()
    }
}

impl Tx {
    /// Begins a receiver: it is told what happens from now on.
    pub async fn begin_webhook(&mut self, name: &str) -> Result<(), StoreError> {
        let newest = self.newest_event().await?;
        query("INSERT INTO webhooks (name, told) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING")
            .bind(name)
            .bind(newest as i64)
            .execute(&mut self.inner)
            .await?;
        Ok(())
    }

    /// Notes how far a receiver is.
    pub async fn set_webhook_told(&mut self, name: &str, told: u64) -> Result<(), StoreError> {
        query("UPDATE webhooks SET told = $2 WHERE name = $1 AND told < $2")
            .bind(name)
            .bind(told as i64)
            .execute(&mut self.inner)
            .await?;
        Ok(())
    }
}
