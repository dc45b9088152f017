//! Where the use of some space is heading, from how much of it was used on days before.

use jiff::{SignedDuration, civil::Date};

use super::Usage;

/// The days whose rate is reckoned.
pub const RATE_DAYS: i64 = 30;

/// How much was used on a day.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// The day, of UTC.
    pub day: Date,
    /// How much of what.
    pub usage: Usage,
}

/// Where it is heading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trend {
    /// The day that the latest is compared with: [`RATE_DAYS`] before it, or the nearest to that of which
    /// something is known.
    pub since: Date,
    /// How many addresses more are not free than were then.
    pub change: i128,
    /// The day on which nothing is free any more, if it goes on so; `None` when it does not get fuller, or
    /// is not full within a hundred years.
    pub full: Option<Date>,
}

/// Where it is heading. `samples` are in the order of their days; of one there is no trend.
///
/// What is compared is what is not free, so that space that is given to a pool or taken from it is no change.
pub fn trend(samples: &[Sample]) -> Option<Trend> {
    let (latest, before) = samples.split_last()?;
    let then = before.iter().rfind(|sample| days(sample.day, latest.day) >= RATE_DAYS).or(before.first())?;
    let used = |usage: &Usage| i128::try_from(usage.total - usage.free.min(usage.total)).unwrap_or(i128::MAX);
    let change = used(&latest.usage) - used(&then.usage);
    Some(Trend { since: then.day, change, full: full(latest, change, days(then.day, latest.day)) })
}

/// When all that is free is used at the rate of `change` addresses in so many days.
fn full(latest: &Sample, change: i128, within: i64) -> Option<Date> {
    const LIMIT: u128 = 36_525;
    if latest.usage.total == 0 || change <= 0 {
        return (latest.usage.free == 0 && latest.usage.total > 0).then_some(latest.day);
    }
    let (rate, within) = (change.unsigned_abs(), u128::from(within.unsigned_abs()));
    let (whole, rest) = (latest.usage.free / rate, latest.usage.free % rate);
    if whole > LIMIT {
        return None;
    }
    // Of the largest IPv6 pools the product is no number of 128 bits; the rate is one that can be divided then.
    let rest = rest.checked_mul(within).map_or_else(|| rest.div_ceil(rate / within), |part| part.div_ceil(rate));
    let days = Some(whole * within + rest).filter(|days| *days <= LIMIT)?;
    let days = i64::try_from(days).ok()?;
    latest.day.checked_add(SignedDuration::from_hours(24 * days)).ok()
}

fn days(from: Date, to: Date) -> i64 {
    from.duration_until(to).as_hours() / 24
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;

    /// Of a day of 2026 by its number, how much of how many is used.
    fn sample(day: i64, used: u128, total: u128) -> Sample {
        let first: Date = "2026-01-01".parse().unwrap();
        let day = first.checked_add(SignedDuration::from_hours(24 * day)).unwrap();
        Sample { day, usage: Usage { total, claimed: used, free: total - used, ..Usage::default() } }
    }

    fn check(samples: &[(i64, u128, u128)], expected: Expect) {
        let samples: Vec<_> = samples.iter().map(|(day, used, total)| sample(*day, *used, *total)).collect();
        let told = match trend(&samples) {
            None => "no trend".into(),
            Some(Trend { since, change, full }) => {
                format!("{change:+} since {since}, full {}", full.map_or("never".into(), |day| day.to_string()))
            }
        };
        expected.assert_eq(&told);
    }

    #[test]
    fn a_pool_is_full_on_the_day_that_the_rate_of_thirty_days_leads_to() {
        check(&[], expect!["no trend"]);
        check(&[(0, 5, 100)], expect!["no trend"]);
        // 30 addresses in 30 days, and 40 are free.
        check(
            &[(0, 0, 100), (10, 30, 100), (25, 40, 100), (40, 60, 100)],
            expect!["+30 since 2026-01-11, full 2026-03-22"],
        );
        // Less is known than thirty days.
        check(&[(0, 10, 100), (4, 20, 100)], expect!["+10 since 2026-01-01, full 2026-02-06"]);
        // A day that was lost: the one before it.
        check(&[(0, 10, 100), (5, 20, 100), (36, 50, 100)], expect!["+30 since 2026-01-06, full 2026-03-30"]);
        check(&[(0, 10, 100), (30, 10, 100)], expect!["+0 since 2026-01-01, full never"]);
        check(&[(0, 90, 100), (30, 10, 100)], expect!["-80 since 2026-01-01, full never"]);
        check(&[(0, 1, 100), (30, 100, 100)], expect!["+99 since 2026-01-01, full 2026-01-31"]);
        check(&[(0, 100, 100), (30, 100, 100)], expect!["+0 since 2026-01-01, full 2026-01-31"]);
        check(&[(0, 0, 0), (30, 0, 0)], expect!["+0 since 2026-01-01, full never"]);
    }

    #[test]
    fn addresses_that_a_pool_is_given_are_no_change_and_make_it_last_longer() {
        check(&[(0, 10, 100), (30, 20, 100)], expect!["+10 since 2026-01-01, full 2026-09-28"]);
        check(&[(0, 10, 100), (30, 20, 200)], expect!["+10 since 2026-01-01, full 2027-07-25"]);
    }

    #[test]
    fn the_largest_pools_of_ipv6_have_a_trend_too() {
        check(
            &[(0, 0, u128::MAX), (30, 1 << 100, u128::MAX)],
            expect!["+1267650600228229401496703205376 since 2026-01-01, full never"],
        );
        check(
            &[(0, 0, u128::MAX), (30, 1 << 125, u128::MAX)],
            expect!["+42535295865117307932921825928971026432 since 2026-01-01, full 2026-08-30"],
        );
    }

    proptest! {
        /// On the day before it was not full yet, and on the day it is.
        #[test]
        fn it_is_full_on_that_day_and_not_before(
            within in 1i64..60, before in 0u128..10_000, change in 1u128..10_000, free in 0u128..10_000,
        ) {
            let total = before + change + free;
            let found = trend(&[sample(0, before, total), sample(within, before + change, total)]).unwrap();
            if let Some(full) = found.full {
                let after = days(sample(within, 0, 0).day, full) as u128;
                prop_assert!(change * after >= free * within as u128);
                prop_assert!(after == 0 || change * (after - 1) < free * within as u128);
            } else {
                prop_assert!(free * within as u128 > change * 36_525);
            }
        }
    }
}
