//! Readings of the nodes' own health. One is told every minute and the newest tells all, so
//! only that is kept, and it is no event.

use jiff::Timestamp;
use rackhand_common::{event::NodeHealth, id::AgentId};

use super::{Store, StoreError, Tx, database::query, from_json, json, micros, timestamp};

impl Store {
    /// The newest reading of an agent's node, and when it was taken by the node's clock.
    pub async fn node_health(&self, agent: AgentId) -> Result<Option<(Timestamp, NodeHealth)>, StoreError> {
        query("SELECT at, reading FROM node_health WHERE agent = $1")
            .bind(agent.to_string())
            .fetch_optional(&self.pool)
            .await?
            .map(|row| Ok((timestamp(row.try_get("at")?)?, from_json("node health", row.try_get("reading")?)?)))
            .transpose()
    }
}

impl Tx {
    /// Keeps a reading in the place of the one before.
    pub async fn set_node_health(
        &mut self,
        at: Timestamp,
        agent: AgentId,
        reading: &NodeHealth,
    ) -> Result<(), StoreError> {
        query(
            "INSERT INTO node_health (agent, at, reading) VALUES ($1, $2, $3)
             ON CONFLICT (agent) DO UPDATE SET at = excluded.at, reading = excluded.reading",
        )
        .bind(agent.to_string())
        .bind(micros(at))
        .bind(json(reading))
        .execute(&mut self.inner)
        .await?;
        Ok(())
    }
}
