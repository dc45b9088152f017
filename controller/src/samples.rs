//! Writes down how much of each pool is used, once on each day of UTC.
//!
//! It looks for pools of which there is nothing of today yet, so that a start, a pool that is new and a
//! clock that jumps need no care: what was written is not written again, and what is missing is made up
//! for as long as the day lasts. A day on which no controller ran has no sample.

use std::{sync::Arc, time::Duration};

use jiff::{civil::Date, tz::TimeZone};
use rackhand_common::time::Clock;
use rackhand_controller_core::ipam::Sample;
use tokio_util::sync::CancellationToken;

use crate::store::{Store, StoreError};

/// How often it is looked. A new day's samples are from its first minutes.
const EVERY: Duration = Duration::from_secs(600);

/// So many pools are written down in one transaction, which others who write wait for.
const TOGETHER: u32 = 64;

/// Writes samples as days come, until shutdown.
pub async fn run(store: Store, clock: Arc<dyn Clock>, shutdown: CancellationToken) {
    let mut due = tokio::time::interval(EVERY);
    due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = due.tick() => (),
            () = shutdown.cancelled() => return,
        }
        let today = TimeZone::UTC.to_datetime(clock.now().wall).date();
        let written = tokio::select! {
            written = write_down(&store, today) => written,
            // What is not committed is made up for at the next start.
            () = shutdown.cancelled() => return,
        };
        if let Err(error) = written {
            store.note(&error);
            tracing::warn!(error = &error as &dyn std::error::Error, "how much of the pools is used was not written");
        }
    }
}

/// Writes what is missing of a day; how many pools.
pub(crate) async fn write_down(store: &Store, day: Date) -> Result<usize, StoreError> {
    let mut written = 0;
    loop {
        let pools = store.unsampled(day, TOGETHER).await?;
        if pools.is_empty() {
            return Ok(written);
        }
        // Counting takes long and is done before anybody has to wait.
        let mut samples = Vec::with_capacity(pools.len());
        for pool in &pools {
            samples.push(Sample { day, usage: store.usage(pool).await? });
        }
        let mut tx = store.begin().await?;
        for (pool, sample) in pools.iter().zip(&samples) {
            tx.insert_sample(pool, sample).await?;
        }
        tx.commit().await?;
        written += pools.len();
    }
}

#[cfg(test)]
mod tests {
    use rackhand_common::time::{Mono, Now};
    use rackhand_controller_core::access::Sight;

    use super::*;
    use crate::{
        addresses::{NewClaim, NewHolder, Wanted},
        store::{
            KEPT, Pool, Source,
            tests::{Bench, On, at, new_pool, on_both},
        },
    };

    /// A pool of 256 addresses.
    async fn pool(bench: &Bench, name: &str, prefix: &str) -> Pool {
        let mut tx = bench.store.begin().await.unwrap();
        let vrf = tx.vrf("default").await.unwrap();
        let prefix = prefix.parse().unwrap();
        tx.add_aggregate(at(0), &vrf, prefix, &Source::Private).await.unwrap();
        let pool = tx.insert_pool(at(0), &new_pool(name, &vrf, prefix.family())).await.unwrap();
        tx.extend_pool(at(1), &pool, prefix).await.unwrap();
        tx.commit().await.unwrap();
        pool
    }

    async fn claim(bench: &Bench, length: u8) {
        let new = NewClaim {
            pool: "p".into(),
            wanted: Wanted::Length(length),
            holder: NewHolder::Name("x".into()),
            reserved: false,
            project: None,
            purpose: String::new(),
        };
        let mut tx = bench.store.begin().await.unwrap();
        tx.hand_out(at(1), &new, "me").await.unwrap();
        tx.commit().await.unwrap();
    }

    async fn told(bench: &Bench, pool: &Pool) -> Vec<String> {
        let samples = bench.store.samples(pool).await.unwrap();
        let told = |Sample { day, usage }: &Sample| format!("{day} {}/{}", usage.claimed, usage.total);
        samples.iter().map(told).collect()
    }

    fn day(text: &str) -> Date {
        text.parse().unwrap()
    }

    async fn each_pool_has_one_sample_of_a_day_the_first_and_new_pools_are_made_up_for(on: On) {
        let bench = Bench::new(on).await;
        let first = pool(&bench, "p", "10.9.0.0/24").await;
        assert_eq!(write_down(&bench.store, day("2026-11-28")).await.unwrap(), 1);
        claim(&bench, 26).await;
        // As after a start on the same day.
        assert_eq!(write_down(&bench.store, day("2026-11-28")).await.unwrap(), 0);
        let second = pool(&bench, "q", "2001:db8::/32").await;
        assert_eq!(write_down(&bench.store, day("2026-11-28")).await.unwrap(), 1);
        assert_eq!(write_down(&bench.store, day("2026-11-29")).await.unwrap(), 2);
        assert_eq!(told(&bench, &first).await, ["2026-11-28 0/256", "2026-11-29 64/256"]);
        assert_eq!(told(&bench, &second).await[1], format!("2026-11-29 0/{}", 1u128 << 96));
        let usage = bench.store.samples(&first).await.unwrap()[1].usage;
        assert_eq!(usage, bench.store.usage(&first).await.unwrap(), "all of it is kept");
        // Samples go with their pool, also one that was counted before.
        let mut tx = bench.store.begin().await.unwrap();
        tx.remove_pool(at(2), &second).await.unwrap();
        tx.insert_sample(&second, &Sample { day: day("2026-11-30"), usage }).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(told(&bench, &second).await, [""; 0]);
        assert_eq!(bench.store.pools(&Sight::ALL, None, 10).await.unwrap().len(), 1);
    }

    async fn more_than_one_transaction_writes_are_all_written_and_old_samples_go_one_by_one(on: On) {
        let bench = Bench::new(on).await;
        for number in 0..=TOGETHER {
            pool(&bench, &format!("p{number}"), &format!("10.{number}.0.0/16")).await;
        }
        let start = day("2024-01-01");
        assert_eq!(write_down(&bench.store, start).await.unwrap(), TOGETHER as usize + 1);
        let one = bench.store.pool("p0").await.unwrap();
        let mut tx = bench.store.begin().await.unwrap();
        let usage = bench.store.usage(&one).await.unwrap();
        for day in start.series(jiff::Span::new().days(1)).take(KEPT as usize + 9) {
            tx.insert_sample(&one, &Sample { day, usage }).await.unwrap();
        }
        // For a moment the clock was far ahead.
        tx.insert_sample(&one, &Sample { day: day("2099-01-01"), usage }).await.unwrap();
        tx.commit().await.unwrap();
        let told = told(&bench, &one).await;
        assert_eq!((told.len(), &told[0][..10]), (KEPT as usize, "2024-01-11"));
    }

    #[derive(Debug)]
    struct Still(i64);

    impl Clock for Still {
        fn now(&self) -> Now {
            Now { mono: Mono(Duration::ZERO), wall: at(self.0) }
        }
    }

    /// Of three starts two are on one day.
    async fn every_start_writes_the_day_of_the_clock_unless_it_is_written(on: On) {
        let bench = Bench::new(on).await;
        let pool = pool(&bench, "p", "10.9.0.0/24").await;
        for (second, days) in [(0, 1), (60, 1), (24 * 3600, 2)] {
            let shutdown = CancellationToken::new();
            let run = tokio::spawn(run(bench.store.clone(), Arc::new(Still(second)), shutdown.clone()));
            let written = async {
                while told(&bench, &pool).await.len() < days {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(20), written).await.expect("nothing was written");
            shutdown.cancel();
            run.await.unwrap();
        }
        assert_eq!(told(&bench, &pool).await, ["2023-11-14 0/256", "2023-11-15 0/256"]);
    }

    on_both! {
        each_pool_has_one_sample_of_a_day_the_first_and_new_pools_are_made_up_for,
        more_than_one_transaction_writes_are_all_written_and_old_samples_go_one_by_one,
        every_start_writes_the_day_of_the_clock_unless_it_is_written,
    }
}
