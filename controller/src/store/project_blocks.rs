//! Which blocks of pools are a project's own, and whose they were.
//!
//! Invariants:
//! - A row stays when the block goes back and is the history: it is written in the transaction that
//!   carves the block, and ended in the one that deletes its pool.

use jiff::Timestamp;
use rackhand_common::id::ProjectId;
use rackhand_controller_core::{access::Sight, ipam::Prefix};

use super::{
    Pool, Store, StoreError, Tx, Vrf,
    claims::{STILL, candidates},
    database::{Builder, Row, query},
    id, micros,
    places::Columns,
    prefixes::prefix,
    timestamp,
};

/// A block that is, or was, a project's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProjectBlock {
    /// Its number.
    pub number: i64,
    /// Which addresses.
    pub prefix: Prefix,
    /// Name of the project's pool, when it got the block.
    pub pool: String,
    /// The project.
    pub project: ProjectId,
    /// Its name, as ORGANISATION:NAME, when it got the block.
    pub project_name: String,
    /// Since when.
    pub since: Timestamp,
    /// Until when; `None` while it is.
    pub until: Option<Timestamp>,
}

/// Where blocks stand.
pub(super) const STANDS: Columns = Columns {
    organisation: Some("(SELECT organisation FROM projects WHERE projects.id = project_blocks.project)"),
    project: Some("project_blocks.project"),
    site: None,
    rack: None,
};

impl Store {
    /// In whose blocks an address is or was, the latest first, before the one of this number; with `at`
    /// only in whose it was then.
    pub async fn project_blocks(
        &self,
        sight: &Sight,
        vrf: &Vrf,
        address: Prefix,
        at: Option<Timestamp>,
        before: Option<i64>,
        limit: u32,
    ) -> Result<Vec<ProjectBlock>, StoreError> {
        let mut query = Builder::new("");
        candidates(&mut query, address);
        query
            .push(
                "SELECT project_blocks.* FROM candidate CROSS JOIN project_blocks
                 WHERE project_blocks.start = candidate.start AND project_blocks.depth = candidate.depth
                    AND project_blocks.vrf = ",
            )
            .push_bind(vrf.number);
        if let Some(at) = at {
            query.push(" AND project_blocks.until > ").push_bind(micros(at));
            query.push(" AND project_blocks.since <= ").push_bind(micros(at));
        }
        if let Some(before) = before {
            query.push(" AND project_blocks.number < ").push_bind(before);
        }
        STANDS.push(&mut query, sight);
        query.push(" ORDER BY project_blocks.number DESC LIMIT ").push_bind(limit);
        query.build().fetch_all(&self.pool).await?.iter().map(read).collect()
    }
}

impl Tx {
    /// Writes that a block is of a project's pool from now on.
    pub(super) async fn insert_project_block(
        &mut self,
        now: Timestamp,
        pool: &Pool,
        prefix: Prefix,
    ) -> Result<(), StoreError> {
        let now = self.address_time(now).await?;
        query(
            "INSERT INTO project_blocks (vrf, start, depth, pool, pool_name, project, project_name, since, until)
             SELECT $1, $2, $3, $4, $5, projects.id, organisations.name || ':' || projects.name, $7, $8
             FROM projects JOIN organisations ON organisations.id = projects.organisation WHERE projects.id = $6",
        )
        .bind(pool.vrf_number)
        .bind(prefix.key().to_vec())
        .bind(prefix.depth())
        .bind(pool.number)
        .bind(&pool.name)
        .bind(pool.project.map(|project| project.to_string()))
        .bind(micros(now))
        .bind(STILL)
        .execute(&mut self.inner)
        .await?;
        Ok(())
    }

    /// Writes that a pool's blocks have gone back.
    pub(super) async fn end_project_blocks(&mut self, now: Timestamp, pool: &Pool) -> Result<(), StoreError> {
        let now = self.address_time(now).await?;
        query("UPDATE project_blocks SET until = $2 WHERE pool = $1 AND until = 9223372036854775807")
            .bind(pool.number)
            .bind(micros(now))
            .execute(&mut self.inner)
            .await?;
        Ok(())
    }
}

fn read(row: &Row) -> Result<ProjectBlock, StoreError> {
    let until = row.try_get::<i64, _>("until")?;
    Ok(ProjectBlock {
        number: row.try_get("number")?,
        prefix: prefix(row)?,
        pool: row.try_get("pool_name")?,
        project: id(row.try_get("project")?)?,
        project_name: row.try_get("project_name")?,
        since: timestamp(row.try_get("since")?)?,
        until: (until != STILL).then(|| timestamp(until)).transpose()?,
    })
}
