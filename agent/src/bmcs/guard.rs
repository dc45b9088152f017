//! How often a BMC may be shown a password that it does not take.
//!
//! Invariants:
//! - Fewer logins are denied in a row, and in any [`REST`], than lock an account anywhere: vendors
//!   lock after three to five.
//! - After each further one the rest is twice as long: some BMCs count without forgetting.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// So many logins may be denied one after the other.
pub(super) const DENIED: u32 = 2;

/// How long no login is tried after that; doubled by each that is denied again.
pub(super) const REST: Duration = Duration::from_secs(15 * 60);

/// The longest rest.
pub(super) const LONGEST: Duration = Duration::from_secs(8 * 3600);

/// What is counted of one BMC.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Guard {
    /// Logins denied since one was taken.
    pub(super) denied: u32,
    /// When the last one was.
    last: Option<Timestamp>,
}

impl Guard {
    /// One login may be tried before there is a rest.
    pub(super) fn once() -> Self {
        Self { denied: DENIED - 1, last: None }
    }

    /// A login was denied.
    pub(super) fn denied(&mut self, now: Timestamp) {
        self.denied = self.denied.saturating_add(1);
        self.last = Some(now);
    }

    /// A login was taken.
    pub(super) fn taken(&mut self) {
        *self = Self::default();
    }

    /// When a login was denied last.
    pub(super) fn last(&self) -> Option<Timestamp> {
        self.last
    }

    /// Until when no login may be tried, when it rests.
    pub(super) fn rests_until(&self, now: Timestamp) -> Option<Timestamp> {
        let again = self.denied.checked_sub(DENIED)?;
        let rest = REST.saturating_mul(1 << again.min(16)).min(LONGEST);
        // A clock that was put back must not make the rest longer than it is.
        let until = self.last?.min(now).saturating_add(rest).ok()?;
        (until > now).then_some(until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_denied_logins_are_followed_by_a_rest_that_doubles_and_a_taken_one_ends_it() {
        let at = |minute: i64| Timestamp::from_second(minute * 60).unwrap();
        let mut guard = Guard::default();
        guard.denied(at(0));
        assert_eq!(guard.rests_until(at(0)), None);
        guard.denied(at(1));
        assert_eq!(guard.rests_until(at(1)), Some(at(16)));
        assert_eq!(guard.rests_until(at(16)), None);
        guard.denied(at(16));
        assert_eq!(guard.rests_until(at(17)), Some(at(46)));
        for _ in 0..40 {
            guard.denied(at(50));
        }
        assert_eq!(guard.rests_until(at(51)), Some(at(50 + 8 * 60)));
        guard.taken();
        assert_eq!((guard.rests_until(at(51)), guard.denied), (None, 0));
    }

    #[test]
    fn at_most_two_logins_are_denied_in_any_rest() {
        let (mut guard, mut denied) = (Guard::default(), Vec::new());
        for second in 0..100_000 {
            let now = Timestamp::from_second(second).unwrap();
            if guard.rests_until(now).is_none() {
                guard.denied(now);
                denied.push(second);
            }
        }
        let most = denied.windows(3).map(|three| three[2] - three[0]).min().unwrap();
        assert!(most >= 15 * 60, "{denied:?}");
        assert!(denied.len() < 12, "{denied:?}");
    }
}
