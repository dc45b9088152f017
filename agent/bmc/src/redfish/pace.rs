//! How long a BMC is waited for: learned from how long it took before, within bounds.
//!
//! Invariants:
//! - A deadline is never shorter than the first one nor longer than the longest one.
//! - What timed out gets twice as long the next time; what answers quickly again gets less.

use std::{collections::HashMap, time::Duration};

/// The most endpoints that are told apart.
const MAX_ENDPOINTS: usize = 512;

/// How often an endpoint may take longer than it last did before it is given up.
const SLACK: u32 = 4;

/// How long each endpoint of one BMC is waited for.
#[derive(Debug)]
pub struct Pace {
    shortest: Duration,
    longest: Duration,
    slowest: HashMap<String, Duration>,
}

impl Pace {
    /// Waits this long for an endpoint that has not been asked before, and at most that long for
    /// any.
    pub fn new(shortest: Duration, longest: Duration) -> Self {
        Self { shortest: shortest.min(longest), longest, slowest: HashMap::new() }
    }

    /// How long to wait for this endpoint.
    pub fn deadline(&self, endpoint: &str) -> Duration {
        let usual = self.slowest.get(endpoint).copied().unwrap_or_default();
        usual.saturating_mul(SLACK).clamp(self.shortest, self.longest)
    }

    /// Learns that it answered after so long.
    pub fn answered(&mut self, endpoint: &str, took: Duration) {
        let usual = self.slowest.get(endpoint).copied().unwrap_or_default();
        self.learn(endpoint, took.max(usual / 2));
    }

    /// Learns that it did not answer within its deadline.
    pub fn timed_out(&mut self, endpoint: &str) {
        self.learn(endpoint, self.deadline(endpoint).saturating_mul(2) / SLACK);
    }

    fn learn(&mut self, endpoint: &str, usual: Duration) {
        if self.slowest.len() < MAX_ENDPOINTS || self.slowest.contains_key(endpoint) {
            self.slowest.insert(endpoint.to_owned(), usual);
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_slow_endpoint_gets_more() {
        let mut pace = Pace::new(10 * SECOND, 60 * SECOND);
        let mut told = vec![pace.deadline("a")];
        for _ in 0..4 {
            pace.timed_out("a");
            told.push(pace.deadline("a"));
        }
        for _ in 0..4 {
            pace.answered("a", SECOND);
            told.push(pace.deadline("a"));
        }
        told.push(pace.deadline("b"));
        expect!["[10s, 20s, 40s, 60s, 60s, 60s, 30s, 15s, 10s, 10s]"].assert_eq(&format!("{told:?}"));
    }

    proptest! {
        #[test]
        fn a_deadline_stays_within_bounds(steps in prop::collection::vec((0_u8..3, any::<u64>()), 0..50)) {
            let mut pace = Pace::new(SECOND, 5 * SECOND);
            for (endpoint, took) in steps {
                let endpoint = endpoint.to_string();
                if took % 3 == 0 { pace.timed_out(&endpoint) } else { pace.answered(&endpoint, Duration::from_millis(took)) }
                prop_assert!((SECOND..=5 * SECOND).contains(&pace.deadline(&endpoint)));
            }
        }
    }
}
