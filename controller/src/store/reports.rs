//! Who has how many addresses, and where in a pool there is room.

use std::collections::BTreeMap;

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
    prefixes::prefix,
};

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
    /// How many addresses of each family each has, of those that can be seen: claimed, reserved,
    /// and for projects what is in blocks of their own. It counts all claims.
    pub async fn held(&self, sight: &Sight, by: By) -> Result<Held, StoreError> {
        let key = match by {
            By::Project => "claims.project",
            By::Site => "COALESCE(racks.site, claims.site)",
        };
        let mut query = Builder::new(format!(
            "SELECT {key} AS holder, pools.family AS family, claims.depth AS depth,
                CASE WHEN claims.reserved = 1 THEN 'reserved' ELSE 'claimed' END AS state, COUNT(*) AS count
             FROM claims JOIN pools ON pools.number = claims.pool LEFT JOIN racks ON racks.id = claims.rack
             WHERE claims.until = 9223372036854775807"
        ));
        claims::STANDS.push(&mut query, sight);
        query.push(format_args!(" GROUP BY {key}, pools.family, claims.depth, claims.reserved"));
        let mut held = Held::new();
        for row in query.build().fetch_all(&self.pool).await? {
            let count = row.try_get::<i64, _>("count")?.unsigned_abs();
            let state = parsed("state of a prefix", row.try_get("state")?)?;
            held.entry(holder(&row)?).or_default().add(state, row.try_get("depth")?, count);
        }
        if by == By::Project {
            let mut blocks = Builder::new(
                "SELECT found.project AS holder, found.family AS family, pool_prefixes.depth AS depth, COUNT(*) AS count
                 FROM pools AS found JOIN pool_prefixes ON pool_prefixes.pool = found.number
                 WHERE found.project IS NOT NULL",
            );
            address_space::STANDS.push(&mut blocks, sight);
            blocks.push(" GROUP BY found.project, found.family, pool_prefixes.depth");
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

fn holder(row: &Row) -> Result<(Option<String>, Family), StoreError> {
    let family = if row.try_get::<i64, _>("family")? == 4 { Family::V4 } else { Family::V6 };
    Ok((row.try_get("holder")?, family))
}
