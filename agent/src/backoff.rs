//! How long to wait before the next attempt: twice as long each time, up to a bound, and
//! never the same for all racks, so that a controller that restarts is not met by all at once.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(30);

/// The waits of one spell of failures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The next wait: between half of its bound and all of it, as `chance` (any number) has it.
    pub(crate) fn next(&mut self, chance: u32) -> Duration {
        let bound = FIRST.saturating_mul(1 << self.failures.min(10)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        bound / 2 + (bound / 2).mul_f64(f64::from(chance) / f64::from(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_bound_and_are_spread() {
        let waits = |chance| {
            let mut backoff = Backoff::default();
            (0..9).map(|_| backoff.next(chance).as_millis()).collect::<Vec<_>>()
        };
        assert_eq!(waits(u32::MAX), [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000]);
        assert_eq!(waits(0), [250, 500, 1000, 2000, 4000, 8000, 15_000, 15_000, 15_000]);
    }
}
