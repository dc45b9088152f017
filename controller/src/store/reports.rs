//! Who has how many addresses, and where in a pool there is room.

use std::collections::BTreeMap;

use rackhand_controller_core::{
    access::Sight,
    ipam::{Family, Prefix, Usage},
};

use super::{
    Pool, Store, StoreError, address_space, claims,
    database::{Builder, Row, query},
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

impl Store {
    /// How many addresses of each family each has, of those that can be seen: claimed, reserved,
    /// and for projects what is in blocks of their own. It counts all claims.
    pub async fn held(&self, sight: &Sight, by: By) -> Result<Held, StoreError> {
        let key = match by {
            By::Project => "claims.project",
            By::Site => "racks.site",
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
