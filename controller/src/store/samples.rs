//! How much of each pool was used on which day.
//!
//! Invariants:
//! - A pool has one sample of a day at most: the first that was taken on it.
//! - Of each pool the latest [`KEPT`] are kept, however far apart they are: a clock that jumps ahead
//!   for a while costs one of them, and not all.

use jiff::{SignedDuration, civil::Date};
use rackhand_controller_core::ipam::{Sample, Usage};
use sqlx::AssertSqlSafe;

use super::{
    Pool, Store, StoreError, Tx,
    address_space::{POOLS, read_pool},
    database::{Row, query},
    machines::parsed,
};

/// So many samples of a pool are kept: two years of days.
pub const KEPT: u32 = 731;

impl Store {
    /// Pools of which there is no sample of this day, at most `limit`.
    pub async fn unsampled(&self, day: Date, limit: u32) -> Result<Vec<Pool>, StoreError> {
        query(AssertSqlSafe(format!(
            "{POOLS} WHERE NOT EXISTS (
                 SELECT 1 FROM pool_samples WHERE pool_samples.pool = found.number AND pool_samples.day = $1)
             ORDER BY number LIMIT $2"
        )))
        .bind(number(day))
        .bind(limit)
        .fetch_all(&self.pool)
        .await?
        .iter()
        .map(read_pool)
        .collect()
    }

    /// The latest samples of a pool, in the order of their days.
    pub async fn samples(&self, pool: &Pool) -> Result<Vec<Sample>, StoreError> {
        query("SELECT * FROM pool_samples WHERE pool = $1 ORDER BY day")
            .bind(pool.number)
            .fetch_all(&self.pool)
            .await?
            .iter()
            .map(read)
            .collect()
    }
}

impl Tx {
    /// Writes a sample of a pool, unless there is one of its day or the pool is gone; removes those that
    /// are more than are kept.
    pub async fn insert_sample(&mut self, pool: &Pool, sample: &Sample) -> Result<(), StoreError> {
        let Usage { free, claimed, reserved, quarantined, blocks, largest, .. } = sample.usage;
        query(
            "INSERT INTO pool_samples (pool, day, free, claimed, reserved, quarantined, blocks, largest)
             SELECT number, $2, $3, $4, $5, $6, $7, $8 FROM pools WHERE number = $1
             ON CONFLICT (pool, day) DO NOTHING",
        )
        .bind(pool.number)
        .bind(number(sample.day))
        .bind(free.to_string())
        .bind(claimed.to_string())
        .bind(reserved.to_string())
        .bind(quarantined.to_string())
        .bind(blocks.to_string())
        .bind(largest.to_string())
        .execute(&mut self.inner)
        .await?;
        query(
            "DELETE FROM pool_samples WHERE pool = $1
             AND day < (SELECT day FROM pool_samples WHERE pool = $1 ORDER BY day DESC LIMIT 1 OFFSET $2)",
        )
        .bind(pool.number)
        .bind(KEPT - 1)
        .execute(&mut self.inner)
        .await?;
        Ok(())
    }
}

/// Days since the first of 1970.
fn number(day: Date) -> i64 {
    day.duration_since(EPOCH).as_hours() / 24
}

const EPOCH: Date = jiff::civil::date(1970, 1, 1);

fn read(row: &Row) -> Result<Sample, StoreError> {
    let addresses = |column| parsed::<u128>("number of addresses", row.try_get(column)?);
    let mut usage = Usage {
        total: 0,
        free: addresses("free")?,
        claimed: addresses("claimed")?,
        reserved: addresses("reserved")?,
        quarantined: addresses("quarantined")?,
        blocks: addresses("blocks")?,
        largest: addresses("largest")?,
    };
    let parts = [usage.free, usage.claimed, usage.reserved, usage.quarantined, usage.blocks];
    usage.total = parts.into_iter().fold(0, u128::saturating_add);
    let days = SignedDuration::from_hours(24 * row.try_get::<i64, _>("day")?);
    let day = EPOCH.checked_add(days).map_err(|error| StoreError::Damaged("day of a sample", error.into()))?;
    Ok(Sample { day, usage })
}
