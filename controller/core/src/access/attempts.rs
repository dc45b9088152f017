//! How often one may try to log in: a bucket of tries for each account and for each source, that
//! fills again with time.
//!
//! Invariant: no more keys are kept than [`KEPT`]; the one that was used longest ago gives way.

use std::{collections::HashMap, time::Duration};

use rackhand_common::time::Mono;

/// Keys that are kept.
const KEPT: usize = 10_000;

/// Tries of one kind of key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// So many at once.
    pub burst: u32,
    /// And one more after each of these.
    pub refill: Duration,
}

/// Tries that were made.
#[derive(Debug)]
pub struct Attempts {
    limit: Limit,
    /// When the bucket of a key is full again, and when it was used last.
    full: HashMap<String, (Mono, Mono)>,
}

impl Attempts {
    /// No tries were made yet.
    pub fn new(limit: Limit) -> Self {
        Self { limit, full: HashMap::new() }
    }

    /// Takes a try; `Err` says how long there is none.
    pub fn take(&mut self, now: Mono, key: &str) -> Result<(), Duration> {
        let full = self.full.get(key).map_or(now, |(full, _)| (*full).max(now));
        let after = Mono(full.0 + self.limit.refill);
        let most = Mono(now.0 + self.limit.refill * self.limit.burst);
        if after > most {
            return Err(after.0 - most.0);
        }
        if !self.full.contains_key(key) && self.full.len() >= KEPT {
            let oldest = self.full.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| key.clone());
            self.full.retain(|key, _| Some(key) != oldest.as_ref());
        }
        self.full.insert(key.to_owned(), (after, now));
        Ok(())
    }

    /// Gives all tries back: it was the right one.
    pub fn forget(&mut self, key: &str) {
        self.full.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Mono {
        Mono(Duration::from_secs(seconds))
    }

    fn attempts() -> Attempts {
        Attempts::new(Limit { burst: 3, refill: Duration::from_secs(30) })
    }

    #[test]
    fn tries_run_out_and_come_back_one_by_one() {
        let mut attempts = attempts();
        for _ in 0..3 {
            assert_eq!(attempts.take(at(100), "ada"), Ok(()));
        }
        assert_eq!(attempts.take(at(100), "ada"), Err(Duration::from_secs(30)));
        assert_eq!(attempts.take(at(110), "ada"), Err(Duration::from_secs(20)));
        assert_eq!(attempts.take(at(110), "bob"), Ok(()));
        assert_eq!(attempts.take(at(130), "ada"), Ok(()));
        assert!(attempts.take(at(130), "ada").is_err());
        attempts.forget("ada");
        assert_eq!(attempts.take(at(130), "ada"), Ok(()));
    }

    #[test]
    fn names_by_the_thousand_take_no_more_memory() {
        let mut attempts = attempts();
        for number in 0..(KEPT as u64 + 100) {
            assert_eq!(attempts.take(at(number), &number.to_string()), Ok(()));
        }
        assert_eq!(attempts.full.len(), KEPT);
    }
}
