//! Who has how many addresses, and where in a pool there is room.

use std::collections::BTreeMap;

use jiff::Timestamp;
use rackhand_common::id::ProjectId;
use rackhand_controller_core::{
    access::Sight,
    ipam::{Family, Prefix, Usage},
};

use super::{
    Pool, Store, StoreError, Vrf, address_space, claims,
    database::{Builder, Row, query},
    id,
    machines::parsed,
    micros,
    prefixes::prefix,
    project_blocks,
};

/// What IPv4 addresses are stored behind (RFC 4291 §2.5.5.2).
const MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

/// What addresses are counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The project they are given to.
    Project,
    /// The site they stand in.
    Site,
}

/// How many addresses of a family somebody has: the id of the project or site, `None` what is
/// nobody's in particular.
pub type Held = BTreeMap<(Option<String>, Family), Usage>;

/// A block that is given to a project.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// Which addresses.
    pub prefix: Prefix,
    /// Name of the pool they are from.
    pub pool: String,
    /// Whose they are.
    pub project: ProjectId,
}

impl Store {
    /// How many addresses of each family each has, or had at a time, of those that can be seen: claimed,
    /// reserved, and for projects what is in blocks of their own. It counts all claims.
    pub async fn held(&self, sight: &Sight, by: By, at: Option<Timestamp>) -> Result<Held, StoreError> {
        let key = match by {
            By::Project => "claims.project",
            By::Site => "COALESCE(racks.site, claims.site)",
        };
        // A pool that was deleted since tells its family no more; the addresses do.
        let mut query = Builder::new(format!(
            "SELECT holder, mapped, depth, state, COUNT(*) AS count FROM (
             SELECT {key} AS holder, substr(claims.start, 1, 12) AS mapped, claims.depth AS depth,
                CASE WHEN claims.reserved = 1 THEN 'reserved' ELSE 'claimed' END AS state
             FROM claims LEFT JOIN racks ON racks.id = claims.rack WHERE "
        ));
        during(&mut query, "claims", at);
        claims::STANDS.push(&mut query, sight);
        query.push(") AS held GROUP BY holder, mapped, depth, state");
        let mut held = Held::new();
        for row in query.build().fetch_all(&self.pool).await? {
            let count = row.try_get::<i64, _>("count")?.unsigned_abs();
            let state = parsed("state of a prefix", row.try_get("state")?)?;
            held.entry(holder(&row)?).or_default().add(state, row.try_get("depth")?, count);
        }
        if by == By::Project {
            let mut blocks = Builder::new(
                "SELECT holder, mapped, depth, COUNT(*) AS count FROM (
                 SELECT project_blocks.project AS holder, substr(project_blocks.start, 1, 12) AS mapped,
                    project_blocks.depth AS depth
                 FROM project_blocks WHERE ",
            );
            during(&mut blocks, "project_blocks", at);
            project_blocks::STANDS.push(&mut blocks, sight);
            blocks.push(") AS held GROUP BY holder, mapped, depth");
            for row in blocks.build().fetch_all(&self.pool).await? {
                let count = row.try_get::<i64, _>("count")?.unsigned_abs();
                held.entry(holder(&row)?).or_default().add_blocks(row.try_get("depth")?, count);
            }
        }
        Ok(held)
    }

    /// What of a VRF's space that is ours by a registry is given to projects out of public and global pools,
    /// by its first address, behind `after`, at most `limit`: their own blocks, as a whole, and what they
    /// have claimed outside of those.
    pub async fn assignments(
        &self,
        sight: &Sight,
        vrf: &Vrf,
        after: Option<Prefix>,
        limit: u32,
    ) -> Result<Vec<Assignment>, StoreError> {
        // No assignment contains another, so that each has a first address of its own.
        let after = after.map(|prefix| prefix.key().to_vec()).unwrap_or_default();
        let ours = "aggregate IN (SELECT number FROM aggregates WHERE source LIKE '{\"registry\":%')";
        let mut query = Builder::new(
            "SELECT * FROM (SELECT pool_prefixes.start, pool_prefixes.depth, found.name AS pool, found.project
             FROM pool_prefixes JOIN pools AS found ON found.number = pool_prefixes.pool
             WHERE found.project IS NOT NULL AND found.kind IN ('public', 'global') AND found.vrf = ",
        );
        query.push_bind(vrf.number).push(format_args!(" AND pool_prefixes.{ours} AND pool_prefixes.start > "));
        query.push_bind(after.clone());
        address_space::STANDS.push(&mut query, sight);
        query.push(" ORDER BY pool_prefixes.start LIMIT ").push_bind(limit).push(
            ") AS blocks UNION ALL
             SELECT * FROM (SELECT claims.start, claims.depth, pools.name AS pool, claims.project
             FROM claims JOIN pools ON pools.number = claims.pool
             WHERE claims.until = 9223372036854775807 AND claims.reserved = 0 AND claims.project IS NOT NULL
                AND pools.project IS NULL AND pools.kind IN ('public', 'global') AND claims.vrf = ",
        );
        query.push_bind(vrf.number).push(format_args!(" AND claims.{ours} AND claims.start > ")).push_bind(after);
        claims::STANDS.push(&mut query, sight);
        query.push(" ORDER BY claims.start LIMIT ").push_bind(limit);
        query.push(") AS single ORDER BY start LIMIT ").push_bind(limit);
        let read = |row: &Row| {
            let project = id(row.try_get("project")?)?;
            Ok(Assignment { prefix: prefix(row)?, pool: row.try_get("pool")?, project })
        };
        query.build().fetch_all(&self.pool).await?.iter().map(read).collect()
    }

    /// What is free of a pool, at most `limit` prefixes, the largest first.
    pub async fn free_space(&self, pool: &Pool, limit: u32) -> Result<Vec<Prefix>, StoreError> {
        query("SELECT start, depth FROM prefixes WHERE pool = $1 AND state = 'free' ORDER BY depth, start LIMIT $2")
            .bind(pool.number)
            .bind(limit)
            .fetch_all(&self.pool)
            .await?
            .iter()
            .map(prefix)
            .collect()
    }
}

/// Adds that a row of the table is, or was at a time.
fn during(query: &mut Builder, table: &str, at: Option<Timestamp>) {
    match at.map(micros) {
        None => query.push(format_args!("{table}.until = 9223372036854775807")),
        Some(at) => {
            query.push(format_args!("{table}.since <= ")).push_bind(at);
            query.push(format_args!(" AND {table}.until > ")).push_bind(at)
        }
    };
}

fn holder(row: &Row) -> Result<(Option<String>, Family), StoreError> {
    let is_mapped = row.try_get::<&[u8], _>("mapped")? == MAPPED;
    Ok((row.try_get("holder")?, if is_mapped { Family::V4 } else { Family::V6 }))
}
