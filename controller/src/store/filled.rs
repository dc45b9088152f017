//! Pools as full as somebody wants them, for measuring (`cargo xtask bench ipam`): written in
//! bulk, which millions of claims would take hours for, into what claims would have left.

use sqlx::AssertSqlSafe;

use super::{
    Pool, Store, StoreError, Tx,
    database::{Database, Transaction, query},
};

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
        let (start, id) = self.numbered();
        for first in (0..blocks).step_by(CHUNK as usize) {
            let mut tx = self.begin().await?;
            tx.take_long().await?;
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
                query(AssertSqlSafe(format!(
                    "WITH RECURSIVE block (number) AS (
                         SELECT $1 + ($6 - $1 % $6) % $6
                         UNION ALL SELECT number + $6 FROM block WHERE number + $6 <= $2)
                     INSERT INTO prefixes (aggregate, start, depth, pool, state)
                     SELECT $3, {start}, $4, $5,
                            CASE WHEN $4 < $9 THEN 'split' WHEN number % $10 = $10 - 1 THEN 'free' ELSE 'claimed' END
                     FROM block WHERE number <= $2"
                )))
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
            query(AssertSqlSafe(format!(
                "WITH RECURSIVE block (number) AS (
                     SELECT $1 UNION ALL SELECT number + 1 FROM block WHERE number < $2)
                 INSERT INTO claims (id, vrf, aggregate, pool, pool_name, start, depth, reserved, name, purpose,
                                     claimed_by, since, until)
                 SELECT {id}, $3, $4, $5, $6, {start}, $9, 0, 'filled', '',
                        'bench', 0, 9223372036854775807
                 FROM block WHERE number % $10 < $10 - 1"
            )))
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
        self.analyze().await?;
        Ok(blocks)
    }

    /// Has all that happened happen again, until there are so many events.
    pub async fn repeat_events(&self, count: u64) -> Result<(), StoreError> {
        const AT_ONCE: u64 = 100_000;
        let known = self.newest_event().await?;
        let mut from = 0;
        for first in (known..count).step_by(AT_ONCE as usize) {
            let wanted = AT_ONCE.min(count - first).min(known);
            from = if from + wanted > known { 0 } else { from };
            let mut tx = self.begin().await?;
            query(
                "INSERT INTO events (at, rack, machine, run, body)
                 SELECT at, rack, machine, run, body FROM events WHERE id > $1 AND id <= $2 ORDER BY id",
            )
            .bind(from as i64)
            .bind((from + wanted) as i64)
            .execute(&mut tx.inner)
            .await?;
            tx.commit().await?;
            from += wanted;
        }
        Ok(())
    }

    /// A block's first address and a claim's id by the block's number, in the database's words.
    fn numbered(&self) -> (&'static str, &'static str) {
        match &self.pool {
            Database::Sqlite(_) => (
                "unhex(printf('00000000000000000000ffff%08x', $7 + number * $8))",
                "printf('01900000-0000-7000-8000-%012x', number)",
            ),
            Database::Postgres(_) => (
                "decode('00000000000000000000ffff' || lpad(to_hex($7 + number * $8), 8, '0'), 'hex')",
                "'01900000-0000-7000-8000-' || lpad(to_hex(number), 12, '0')",
            ),
        }
    }

    /// Makes more of a filled pool free: every `gap`th block.
    pub async fn thin(&self, pool: &Pool, length: u8, gap: u64) -> Result<(), StoreError> {
        let root = self.pool_prefixes(pool, 1).await?.pop().ok_or(StoreError::NotFound("prefix of a pool"))?;
        let blocks = 1u64 << (length - root.length());
        let (start, _) = self.numbered();
        for first in (gap - 1..blocks).step_by((CHUNK / gap * gap) as usize) {
            let last = blocks.min(first + CHUNK / gap * gap) - 1;
            let mut tx = self.begin().await?;
            tx.take_long().await?;
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
                     {update} (SELECT {start} FROM block)"
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
        self.analyze().await
    }

    /// Has what PostgreSQL knows of the tables renewed, which it would do itself by and by.
    async fn analyze(&self) -> Result<(), StoreError> {
        if let Database::Postgres(_) = self.pool {
            query("ANALYZE prefixes").execute(&self.pool).await?;
            query("ANALYZE claims").execute(&self.pool).await?;
        }
        Ok(())
    }
}

impl Tx {
    /// Lifts the limit on how long a statement takes.
    async fn take_long(&mut self) -> Result<(), StoreError> {
        match self.inner {
            Transaction::Sqlite(_) => Ok(()),
            Transaction::Postgres(_) => self.say("SET LOCAL statement_timeout = 0").await,
        }
    }
}

/// The first address of an IPv4 prefix as a number.
fn number(prefix: rackhand_controller_core::ipam::Prefix) -> i64 {
    i64::from(prefix.key()[12..].iter().fold(0u32, |number, byte| number << 8 | u32::from(*byte)))
}
