//! Pools as full as somebody wants them, for measuring (`cargo xtask bench ipam`): written in
//! bulk, which millions of claims would take hours for, into what claims would have left.

use sqlx::AssertSqlSafe;

use super::{Pool, Store, StoreError, database::query};

/// Blocks in one transaction.
const CHUNK: u64 = 1 << 19;

impl Store {
    /// Fills an empty pool of one IPv4 prefix with claims of blocks of this length, but for every
    /// `gap`th, which stays free. So no two that are free are beside each other.
    pub async fn fill(&self, pool: &Pool, length: u8, gap: u64) -> Result<u64, StoreError> {
        let root = self.pool_prefixes(pool, 1).await?.pop().ok_or(StoreError::NotFound("prefix of a pool"))?;
        let mut tx = self.begin().await?;
        let (aggregate, _) =
            tx.pool_prefix(pool.number, root).await?.ok_or(StoreError::NotFound("prefix of a pool"))?;
        tx.commit().await?;
        let blocks = 1u64 << (length - root.length());
        for first in (0..blocks).step_by(CHUNK as usize) {
            let mut tx = self.begin().await?;
            let last = blocks.min(first + CHUNK) - 1;
            if first == 0 {
                query("DELETE FROM prefixes WHERE pool = $1 AND state = 'free'")
                    .bind(pool.number)
                    .execute(&mut tx.inner)
                    .await?;
            }
            // The leaves, and above them every prefix that begins in this chunk.
            for depth in root.depth()..=length + 96 {
                let step = 1u64 << (length + 96 - depth);
                query(
                    "WITH RECURSIVE block (number) AS (
                         SELECT $1 + ($6 - $1 % $6) % $6
                         UNION ALL SELECT number + $6 FROM block WHERE number + $6 <= $2)
                     INSERT INTO prefixes (aggregate, start, depth, pool, state)
                     SELECT $3, unhex(printf('00000000000000000000ffff%08x', $7 + number * $8)), $4, $5,
                            CASE WHEN $4 < $9 THEN 'split' WHEN number % $10 = $10 - 1 THEN 'free' ELSE 'claimed' END
                     FROM block WHERE number <= $2",
                )
                .bind(first as i64)
                .bind(last as i64)
                .bind(aggregate)
                .bind(depth)
                .bind(pool.number)
                .bind(step as i64)
                .bind(number(root))
                .bind(1i64 << (32 - length))
                .bind(length + 96)
                .bind(gap as i64)
                .execute(&mut tx.inner)
                .await?;
            }
            query(
                "WITH RECURSIVE block (number) AS (
                     SELECT $1 UNION ALL SELECT number + 1 FROM block WHERE number < $2)
                 INSERT INTO claims (id, vrf, aggregate, pool, pool_name, start, depth, reserved, name, purpose,
                                     claimed_by, since, until)
                 SELECT printf('01900000-0000-7000-8000-%012x', number), $3, $4, $5, $6,
                        unhex(printf('00000000000000000000ffff%08x', $7 + number * $8)), $9, 0, 'filled', '',
                        'bench', 0, 9223372036854775807
                 FROM block WHERE number % $10 < $10 - 1",
            )
            .bind(first as i64)
            .bind(last as i64)
            .bind(pool.vrf_number)
            .bind(aggregate)
            .bind(pool.number)
            .bind(&pool.name)
            .bind(number(root))
            .bind(1i64 << (32 - length))
            .bind(length + 96)
            .bind(gap as i64)
            .execute(&mut tx.inner)
            .await?;
            tx.commit().await?;
        }
        Ok(blocks)
    }

    /// Makes more of a filled pool free: every `gap`th block.
    pub async fn thin(&self, pool: &Pool, length: u8, gap: u64) -> Result<(), StoreError> {
        let root = self.pool_prefixes(pool, 1).await?.pop().ok_or(StoreError::NotFound("prefix of a pool"))?;
        let blocks = 1u64 << (length - root.length());
        for first in (gap - 1..blocks).step_by((CHUNK / gap * gap) as usize) {
            let last = blocks.min(first + CHUNK / gap * gap) - 1;
            let mut tx = self.begin().await?;
            for update in [
                // Unary plus: rows are looked for by their start, not by their pool.
                "UPDATE prefixes SET state = 'free'
                 WHERE aggregate = (SELECT aggregate FROM pool_prefixes WHERE pool = $4) AND +pool = $4
                 AND state = 'claimed' AND depth = $5 AND start IN",
                "UPDATE claims SET until = 1
                 WHERE vrf = $3 AND depth = $5 AND until = 9223372036854775807 AND start IN",
            ] {
                query(AssertSqlSafe(format!(
                    "WITH RECURSIVE block (number) AS (
                         SELECT $1 UNION ALL SELECT number + $6 FROM block WHERE number + $6 <= $2)
                     {update} (SELECT unhex(printf('00000000000000000000ffff%08x', $7 + number * $8)) FROM block)"
                )))
                .bind(first as i64)
                .bind(last as i64)
                .bind(pool.vrf_number)
                .bind(pool.number)
                .bind(length + 96)
                .bind(gap as i64)
                .bind(number(root))
                .bind(1i64 << (32 - length))
                .execute(&mut tx.inner)
                .await?;
            }
            tx.commit().await?;
        }
        Ok(())
    }
}

/// The first address of an IPv4 prefix as a number.
fn number(prefix: rackhand_controller_core::ipam::Prefix) -> i64 {
    i64::from(prefix.key()[12..].iter().fold(0u32, |number, byte| number << 8 | u32::from(*byte)))
}
