//! The trees of address space. Every change of a row says which state it expects to find, and
//! that it found it is checked: whoever comes second gets [`StoreError::Changed`].

use jiff::Timestamp;
use rackhand_controller_core::ipam::{Prefix, Shares, State, carve, join};

use super::{
    Store, StoreError, Tx,
    database::{Builder, Row, in_powers_of_two, query, query_scalar},
    machines::parsed,
    micros, timestamp,
};

/// A leaf of a tree: a prefix that is not split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Leaf {
    /// The aggregate whose tree it is in.
    pub(crate) aggregate: i64,
    /// Which.
    pub(crate) prefix: Prefix,
    /// The pool it belongs to.
    pub(crate) pool: Option<i64>,
    /// What it is.
    pub(crate) state: State,
    /// When its quarantine ends.
    pub(crate) until: Option<Timestamp>,
}

impl Tx {
    /// The tree of a new aggregate: all of it is free.
    pub(super) async fn plant(&mut self, aggregate: i64, root: Prefix) -> Result<(), StoreError> {
        self.insert_prefixes(None, &[(aggregate, root, State::Free)]).await
    }

    /// Removes the tree of an aggregate, all of which must be free and in no pool.
    pub(super) async fn uproot(&mut self, aggregate: i64, root: Prefix) -> Result<(), StoreError> {
        let gone = query(
            "DELETE FROM prefixes
             WHERE aggregate = $1 AND start = $2 AND depth = $3 AND state = 'free' AND pool IS NULL",
        )
        .bind(aggregate)
        .bind(root.key().to_vec())
        .bind(root.depth())
        .execute(&mut self.inner)
        .await?;
        one(gone.rows_affected())
    }

    /// The leaf that holds the first address of `prefix`. The aggregate has to contain it.
    pub(crate) async fn leaf(&mut self, aggregate: i64, prefix: Prefix) -> Result<Leaf, StoreError> {
        // No row begins between a leaf's first and its last address, but the leaf.
        let row = query(
            "SELECT * FROM prefixes WHERE aggregate = $1 AND start <= $2 ORDER BY start DESC, depth DESC LIMIT 1",
        )
        .bind(aggregate)
        .bind(prefix.key().to_vec())
        .fetch_optional(&mut self.inner)
        .await?
        .ok_or(StoreError::NotFound("prefix"))?;
        read(&row)
    }

    /// The free prefix of a pool that gives one of this depth: the smallest that can, the lowest
    /// of those.
    pub(crate) async fn next_free(&mut self, pool: i64, depth: u8) -> Result<Option<Leaf>, StoreError> {
        Ok(self.next_free_some(pool, depth, 1).await?.pop())
    }

    /// The first `limit` of the free prefixes that give one of this depth, in that order.
    pub(crate) async fn next_free_some(&mut self, pool: i64, depth: u8, limit: usize) -> Result<Vec<Leaf>, StoreError> {
        query(
            "SELECT * FROM prefixes WHERE pool = $1 AND state = 'free' AND depth <= $2
             ORDER BY depth DESC, start LIMIT $3",
        )
        .bind(pool)
        .bind(depth)
        .bind(limit as i64)
        .fetch_all(&mut self.inner)
        .await?
        .iter()
        .map(read)
        .collect()
    }

    /// The largest free prefix of a pool.
    pub(crate) async fn largest_free(&mut self, pool: i64) -> Result<Option<Prefix>, StoreError> {
        let row = query("SELECT * FROM prefixes WHERE pool = $1 AND state = 'free' ORDER BY depth, start LIMIT 1")
            .bind(pool)
            .fetch_optional(&mut self.inner)
            .await?;
        Ok(row.as_ref().map(read).transpose()?.map(|leaf| leaf.prefix))
    }

    /// Carves `wanted` out of the free leaf it is in and makes it `state`.
    pub(crate) async fn take(&mut self, free: Leaf, wanted: Prefix, state: State) -> Result<(), StoreError> {
        let carved = carve(free.prefix, wanted).ok_or(StoreError::NotFound("free prefix"))?;
        if carved.split.is_empty() {
            return self.turn(free.aggregate, wanted, State::Free, state, None).await;
        }
        self.turn(free.aggregate, free.prefix, State::Free, State::Split, None).await?;
        let split = carved.split[1..].iter().map(|prefix| (free.aggregate, *prefix, State::Split));
        let rest = carved.free.iter().map(|prefix| (free.aggregate, *prefix, State::Free));
        let rows: Vec<_> = split.chain(rest).chain([(free.aggregate, wanted, state)]).collect();
        self.insert_prefixes(free.pool, &rows).await
    }

    /// Carves shares out of free leaves of a pool and has them claimed; the aggregate of each.
    pub(crate) async fn take_shares(
        &mut self,
        pool: i64,
        free: &[Leaf],
        shares: &Shares,
    ) -> Result<Vec<(i64, Prefix)>, StoreError> {
        let within = |prefix: Prefix| {
            let leaf = free.iter().find(|leaf| leaf.prefix.contains(prefix));
            leaf.map(|leaf| (leaf.aggregate, prefix)).ok_or(StoreError::NotFound("free prefix"))
        };
        let all = |prefixes: &[Prefix]| prefixes.iter().copied().map(within).collect::<Result<Vec<_>, _>>();
        self.turn_free(&all(&shares.whole)?, State::Claimed).await?;
        self.turn_free(&all(&shares.split)?, State::Split).await?;
        let made = shares.made.iter().map(|(prefix, state)| within(*prefix).map(|(of, prefix)| (of, prefix, *state)));
        self.insert_prefixes(Some(pool), &made.collect::<Result<Vec<_>, _>>()?).await?;
        all(&shares.taken)
    }

    /// Puts a claimed prefix to rest.
    pub(crate) async fn rest(&mut self, aggregate: i64, prefix: Prefix, until: Timestamp) -> Result<(), StoreError> {
        self.turn(aggregate, prefix, State::Claimed, State::Quarantined, Some(until)).await
    }

    /// Makes a leaf free, and joins it with what is free beside it, within `root`.
    pub(crate) async fn set_free(&mut self, leaf: Leaf, root: Prefix) -> Result<(), StoreError> {
        let Leaf { aggregate, prefix, pool, state, .. } = leaf;
        self.turn(aggregate, prefix, state, State::Free, None).await?;
        let mut freed = prefix;
        while let Some((buddy, parent)) = join(freed, root) {
            let free: Option<i64> = query_scalar(
                // Free space of a pool and free space beside the pool are not one.
                "SELECT 1 FROM prefixes
                 WHERE aggregate = $1 AND start = $2 AND depth = $3 AND state = 'free' AND pool IS NOT DISTINCT FROM $4",
            )
            .bind(aggregate)
            .bind(buddy.key().to_vec())
            .bind(buddy.depth())
            .bind(pool)
            .fetch_optional(&mut self.inner)
            .await?;
            if free.is_none() {
                break;
            }
            freed = parent;
        }
        if freed == prefix {
            return Ok(());
        }
        let gone = query("DELETE FROM prefixes WHERE aggregate = $1 AND start BETWEEN $2 AND $3 AND depth > $4")
            .bind(aggregate)
            .bind(freed.key().to_vec())
            .bind(freed.last_key().to_vec())
            .bind(freed.depth())
            .execute(&mut self.inner)
            .await?;
        // Two of each depth it went up: whatever else was in there would be lost.
        match gone.rows_affected() == 2 * u64::from(prefix.depth() - freed.depth()) {
            true => self.turn(aggregate, freed, State::Split, State::Free, None).await,
            false => Err(StoreError::Changed("prefix")),
        }
    }

    /// Leaves of a pool whose quarantine is over, those that ended first first.
    pub(crate) async fn rested(&mut self, pool: i64, now: Timestamp, limit: u32) -> Result<Vec<Leaf>, StoreError> {
        query(
            "SELECT * FROM prefixes WHERE pool = $1 AND state = 'quarantined' AND until <= $2 ORDER BY until LIMIT $3",
        )
        .bind(pool)
        .bind(micros(now))
        .bind(limit)
        .fetch_all(&mut self.inner)
        .await?
        .iter()
        .map(read)
        .collect()
    }

    /// Leaves whose quarantine is over, in any pool.
    pub(crate) async fn rested_anywhere(&mut self, now: Timestamp, limit: u32) -> Result<Vec<Leaf>, StoreError> {
        query(
            "SELECT prefixes.* FROM pools CROSS JOIN prefixes
             WHERE prefixes.pool = pools.number AND prefixes.state = 'quarantined' AND prefixes.until <= $1 LIMIT $2",
        )
        .bind(micros(now))
        .bind(limit)
        .fetch_all(&mut self.inner)
        .await?
        .iter()
        .map(read)
        .collect()
    }

    /// A leaf within a prefix that is claimed or reserved: the lowest.
    pub(crate) async fn taken_within(&mut self, aggregate: i64, within: Prefix) -> Result<Option<Leaf>, StoreError> {
        query(
            "SELECT * FROM prefixes WHERE aggregate = $1 AND start BETWEEN $2 AND $3
             AND state IN ('claimed', 'reserved') ORDER BY start LIMIT 1",
        )
        .bind(aggregate)
        .bind(within.key().to_vec())
        .bind(within.last_key().to_vec())
        .fetch_optional(&mut self.inner)
        .await?
        .as_ref()
        .map(read)
        .transpose()
    }

    /// Leaves within a prefix that are in quarantine, the one that is longest first.
    pub(crate) async fn resting_within(
        &mut self,
        aggregate: i64,
        within: Prefix,
        limit: u32,
    ) -> Result<Vec<Leaf>, StoreError> {
        query(
            "SELECT * FROM prefixes WHERE aggregate = $1 AND start BETWEEN $2 AND $3 AND state = 'quarantined'
             ORDER BY until DESC LIMIT $4",
        )
        .bind(aggregate)
        .bind(within.key().to_vec())
        .bind(within.last_key().to_vec())
        .bind(limit)
        .fetch_all(&mut self.inner)
        .await?
        .iter()
        .map(read)
        .collect()
    }

    /// Gives a free prefix of an aggregate, or all of a pool's, to another: the pool `to`, or none.
    pub(super) async fn hand_over(
        &mut self,
        aggregate: i64,
        prefix: Prefix,
        from: Option<i64>,
        to: Option<i64>,
    ) -> Result<(), StoreError> {
        let changed = query(
            "UPDATE prefixes SET pool = $5
             WHERE aggregate = $1 AND start = $2 AND depth = $3 AND state = 'free' AND pool IS NOT DISTINCT FROM $4",
        )
        .bind(aggregate)
        .bind(prefix.key().to_vec())
        .bind(prefix.depth())
        .bind(from)
        .bind(to)
        .execute(&mut self.inner)
        .await?;
        one(changed.rows_affected())
    }

    async fn turn(
        &mut self,
        aggregate: i64,
        prefix: Prefix,
        from: State,
        to: State,
        until: Option<Timestamp>,
    ) -> Result<(), StoreError> {
        let changed = query(
            "UPDATE prefixes SET state = $5, until = $6
             WHERE aggregate = $1 AND start = $2 AND depth = $3 AND state = $4",
        )
        .bind(aggregate)
        .bind(prefix.key().to_vec())
        .bind(prefix.depth())
        .bind(from.to_string())
        .bind(to.to_string())
        .bind(until.map(micros))
        .execute(&mut self.inner)
        .await?;
        one(changed.rows_affected())
    }

    /// [`Self::turn`] of several that are free.
    async fn turn_free(&mut self, prefixes: &[(i64, Prefix)], to: State) -> Result<(), StoreError> {
        for some in in_powers_of_two(prefixes) {
            let mut query = Builder::new("UPDATE prefixes SET state = ");
            query.push_bind(to.to_string());
            query.push(" WHERE state = 'free' AND (aggregate, start, depth) IN (");
            query.push_values(some, |mut row, (aggregate, prefix)| {
                row.push_bind(*aggregate).push_bind(prefix.key().to_vec()).push_bind(prefix.depth());
            });
            query.push(")");
            let changed = query.build().execute(&mut self.inner).await?;
            if changed.rows_affected() != some.len() as u64 {
                return Err(StoreError::Changed("prefix"));
            }
        }
        Ok(())
    }

    async fn insert_prefixes(&mut self, pool: Option<i64>, rows: &[(i64, Prefix, State)]) -> Result<(), StoreError> {
        for some in in_powers_of_two(rows) {
            let mut query = Builder::new("INSERT INTO prefixes (aggregate, start, depth, pool, state) ");
            query.push_values(some, |mut row, (aggregate, prefix, state)| {
                row.push_bind(*aggregate)
                    .push_bind(prefix.key().to_vec())
                    .push_bind(prefix.depth())
                    .push_bind(pool)
                    .push_bind(state.to_string());
            });
            query.build().execute(&mut self.inner).await.map_err(super::taken("prefix"))?;
        }
        Ok(())
    }
}

impl Store {
    /// Whether the quarantine of anything is over.
    pub(crate) async fn any_rested(&self, now: Timestamp) -> Result<bool, StoreError> {
        let row = query(
            "SELECT 1 FROM pools CROSS JOIN prefixes
             WHERE prefixes.pool = pools.number AND prefixes.state = 'quarantined' AND prefixes.until <= $1 LIMIT 1",
        )
        .bind(micros(now))
        .fetch_optional(&self.pool)
        .await?;
        Ok(row.is_some())
    }
}

/// A compare-and-set took place, or somebody else was first.
fn one(rows: u64) -> Result<(), StoreError> {
    if rows == 1 { Ok(()) } else { Err(StoreError::Changed("prefix")) }
}

/// A stored prefix.
pub(super) fn prefix(row: &Row) -> Result<Prefix, StoreError> {
    prefix_of(row.try_get("start")?, row.try_get("depth")?)
}

/// A stored prefix, by its columns.
pub(super) fn prefix_of(key: &[u8], depth: u8) -> Result<Prefix, StoreError> {
    let damaged = || StoreError::Damaged("prefix", "no prefix".into());
    Prefix::stored(key.try_into().map_err(|_| damaged())?, depth).ok_or_else(damaged)
}

fn read(row: &Row) -> Result<Leaf, StoreError> {
    Ok(Leaf {
        aggregate: row.try_get("aggregate")?,
        prefix: prefix(row)?,
        pool: row.try_get("pool")?,
        state: parsed("state of a prefix", row.try_get("state")?)?,
        until: row.try_get::<Option<i64>, _>("until")?.map(timestamp).transpose()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::{Bench, On, on_both};

    impl Tx {
        /// All leaves of a pool, lowest first.
        pub(crate) async fn leaves(&mut self, pool: i64) -> Result<Vec<Leaf>, StoreError> {
            query("SELECT * FROM prefixes WHERE pool = $1 AND state <> 'split' ORDER BY start")
                .bind(pool)
                .fetch_all(&mut self.inner)
                .await?
                .iter()
                .map(read)
                .collect()
        }
    }

    async fn plan(store: &Store, planned: &'static str) -> String {
        let rows = query(sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {planned}"))).fetch_all(&store.pool).await;
        let details: Vec<String> = rows.unwrap().iter().map(|row| row.try_get("detail").unwrap()).collect();
        details.join("\n")
    }

    /// However full a pool is: a search in an index that has them in the order asked for.
    #[tokio::test]
    async fn what_is_next_free_and_what_is_at_an_address_are_one_seek() {
        let bench = Bench::new(On::Sqlite).await;
        let next = plan(
            &bench.store,
            "SELECT * FROM prefixes WHERE pool = $1 AND state = 'free' AND depth <= $2
             ORDER BY depth DESC, start LIMIT 1",
        )
        .await;
        assert_eq!(next, "SEARCH prefixes USING INDEX prefixes_next (pool=? AND state=? AND depth<?)");
        let leaf =
            "SELECT * FROM prefixes WHERE aggregate = $1 AND start <= $2 ORDER BY start DESC, depth DESC LIMIT 1";
        assert_eq!(plan(&bench.store, leaf).await, "SEARCH prefixes USING PRIMARY KEY (aggregate=? AND start<?)");
    }

    async fn whoever_comes_second_changes_nothing(on: On) {
        let bench = Bench::new(on).await;
        let mut tx = bench.store.begin().await.unwrap();
        let root: Prefix = "10.0.0.0/8".parse().unwrap();
        let vrf = tx.vrf("default").await.unwrap();
        let source = crate::store::Source::Private;
        tx.insert_aggregate(Timestamp::UNIX_EPOCH, &vrf, root, &source).await.unwrap();
        let aggregate = tx.aggregate_at("default", root).await.unwrap().unwrap().number;
        // Both have seen the same leaf.
        let free = tx.leaf(aggregate, root).await.unwrap();
        let block = "10.0.0.0/30".parse().unwrap();
        tx.take(free, block, State::Claimed).await.unwrap();
        for inside in ["10.0.0.0/31", "10.0.0.0/30", "10.64.0.0/10", "10.0.0.0/8"] {
            let second = tx.take(free, inside.parse().unwrap(), State::Claimed).await;
            assert!(matches!(second, Err(StoreError::Changed(_))), "{inside}");
        }
        assert!(matches!(tx.uproot(aggregate, root).await, Err(StoreError::Changed(_))));
        let leaf = tx.leaf(aggregate, block).await.unwrap();
        tx.set_free(leaf, root).await.unwrap();
        assert!(matches!(tx.set_free(leaf, root).await, Err(StoreError::Changed(_))));
        tx.uproot(aggregate, root).await.unwrap();
    }

    on_both! {
        whoever_comes_second_changes_nothing,
    }
}
