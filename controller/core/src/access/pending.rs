//! Logins that were begun and wait for their end, while the person is at who vouches for them.
//!
//! Invariants:
//! - What was begun is ended once, and not after its time.
//! - No more than [`KEPT`] wait; the one that began first gives way.

use std::{collections::HashMap, time::Duration};

use rackhand_common::time::Mono;

/// So many wait at once.
const KEPT: usize = 1000;

/// What was begun, by the secret that whoever began it was given.
#[derive(Debug)]
pub struct Pending<T> {
    life: Duration,
    begun: HashMap<String, (Mono, T)>,
}

impl<T> Pending<T> {
    /// Nothing was begun yet; each waits so long.
    pub fn new(life: Duration) -> Self {
        Self { life, begun: HashMap::new() }
    }

    /// Keeps what was begun.
    pub fn begin(&mut self, now: Mono, secret: String, what: T) {
        let life = self.life;
        self.begun.retain(|_, (begun, _)| now.0 < begun.0 + life);
        if self.begun.len() >= KEPT {
            let first = self.begun.iter().min_by_key(|(_, (begun, _))| *begun).map(|(secret, _)| secret.clone());
            self.begun.retain(|secret, _| Some(secret) != first.as_ref());
        }
        self.begun.insert(secret, (now, what));
    }

    /// What was begun with this secret, which it was the only time to ask for.
    pub fn take(&mut self, now: Mono, secret: &str) -> Option<T> {
        let (begun, what) = self.begun.remove(secret)?;
        (now.0 < begun.0 + self.life).then_some(what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Mono {
        Mono(Duration::from_secs(seconds))
    }

    #[test]
    fn what_was_begun_is_ended_once_and_in_time() {
        let mut pending = Pending::new(Duration::from_secs(600));
        pending.begin(at(0), "a".into(), 1);
        pending.begin(at(0), "b".into(), 2);
        assert_eq!(pending.take(at(599), "a"), Some(1));
        assert_eq!(pending.take(at(599), "a"), None);
        assert_eq!(pending.take(at(600), "b"), None);
        assert_eq!(pending.take(at(0), "c"), None);
    }

    #[test]
    fn the_first_gives_way_and_what_is_over_leaves_room() {
        let mut pending = Pending::new(Duration::from_secs(600));
        for number in 0..=KEPT as u64 {
            pending.begin(at(number / 10), number.to_string(), number);
        }
        assert_eq!(pending.begun.len(), KEPT);
        assert_eq!(pending.take(at(100), &KEPT.to_string()), Some(KEPT as u64));
        pending.begin(at(1000), "late".into(), 0);
        assert_eq!(pending.begun.len(), 1);
    }
}
