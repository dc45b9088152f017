//! Plans: classes of machines by what is in them. Which machines match is asked of the core each
//! time: an inventory changes with every start of the installer.

use jiff::Timestamp;
use rackhand_controller_core::plan::Rules;
use uuid::Uuid;

use super::{
    Store, StoreError, Tx,
    database::{Executor, Row, query},
    from_json, id, json, micros, taken, timestamp,
};

/// A plan as it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Names it for programs.
    pub id: Uuid,
    /// Names it for people; unique.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// What a machine of it has.
    pub rules: Rules,
    /// When it was made.
    pub created: Timestamp,
    /// Counts its changes.
    pub revision: u64,
}

impl Store {
    /// The plan with this id or name.
    pub async fn plan(&self, id_or_name: &str) -> Result<Plan, StoreError> {
        plan(&self.pool, id_or_name).await
    }

    /// Plans in the order they were made, after `after`, at most `limit`.
    pub async fn plans(&self, after: Option<Uuid>, limit: u32) -> Result<Vec<Plan>, StoreError> {
        query("SELECT * FROM plans WHERE id > $1 ORDER BY id LIMIT $2")
            .bind(after.map(|id| id.to_string()).unwrap_or_default())
            .bind(limit)
            .fetch_all(&self.pool)
            .await?
            .iter()
            .map(read)
            .collect()
    }
}

impl Tx {
    /// The plan with this id or name.
    pub async fn plan(&mut self, id_or_name: &str) -> Result<Plan, StoreError> {
        plan(&mut self.inner, id_or_name).await
    }

    /// Makes a plan.
    pub async fn insert_plan(
        &mut self,
        now: Timestamp,
        name: &str,
        description: &str,
        rules: &Rules,
    ) -> Result<Uuid, StoreError> {
        let id = Uuid::now_v7();
        self.watch("plans", id).await?;
        query("INSERT INTO plans (id, name, description, rules, created, revision) VALUES ($1, $2, $3, $4, $5, 1)")
            .bind(id.to_string())
            .bind(name)
            .bind(description)
            .bind(json(rules))
            .bind(micros(now))
            .execute(&mut self.inner)
            .await
            .map_err(taken("plan name"))?;
        Ok(id)
    }

    /// Writes a plan's description and rules. Fails with [`StoreError::Changed`] when somebody
    /// else did since it was read.
    pub async fn update_plan(&mut self, plan: &Plan) -> Result<(), StoreError> {
        self.watch("plans", plan.id).await?;
        let changed = query(
            "UPDATE plans SET description = $3, rules = $4, revision = revision + 1 WHERE id = $1 AND revision = $2",
        )
        .bind(plan.id.to_string())
        .bind(plan.revision as i64)
        .bind(&plan.description)
        .bind(json(&plan.rules))
        .execute(&mut self.inner)
        .await?;
        if changed.rows_affected() == 1 { Ok(()) } else { Err(StoreError::Changed("plan")) }
    }

    /// Removes a plan. Machines stay what they are.
    pub async fn delete_plan(&mut self, id: Uuid) -> Result<(), StoreError> {
        self.watch("plans", id).await?;
        query("DELETE FROM plans WHERE id = $1").bind(id.to_string()).execute(&mut self.inner).await?;
        Ok(())
    }
}

/// All plans: an operator makes few.
pub(super) async fn all(executor: impl Into<Executor<'_>>) -> Result<Vec<Plan>, StoreError> {
    query("SELECT * FROM plans ORDER BY id").fetch_all(executor).await?.iter().map(read).collect()
}

async fn plan(executor: impl Into<Executor<'_>>, id_or_name: &str) -> Result<Plan, StoreError> {
    let row = query("SELECT * FROM plans WHERE id = $1 OR name = $1")
        .bind(id_or_name)
        .fetch_optional(executor)
        .await?
        .ok_or(StoreError::NotFound("plan"))?;
    read(&row)
}

fn read(row: &Row) -> Result<Plan, StoreError> {
    Ok(Plan {
        id: id(row.try_get("id")?)?,
        name: row.try_get("name")?,
        description: row.try_get("description")?,
        rules: from_json("plan's rules", row.try_get("rules")?)?,
        created: timestamp(row.try_get("created")?)?,
        revision: row.try_get::<i64, _>("revision")? as u64,
    })
}
