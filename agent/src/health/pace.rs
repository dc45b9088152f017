//! When a BMC is looked at next: in its turn, or at once when it says that something happened.
//!
//! Invariants:
//! - No BMC is kept busy for more than a fifth of the time, whatever it says.
//! - However much is said, it causes one look in [`APART`].
//! - What is said is never forgotten: it causes a look that begins after it.

use std::time::{Duration, Instant};

/// So many times as long as a look took a BMC is left alone after it.
const REST: u32 = 4;

/// From one look that was asked for to the next at the soonest.
const APART: Duration = Duration::from_secs(5);

/// After how long a BMC that somebody else was asking is read again.
const AGAIN: Duration = Duration::from_secs(2);

/// How a look ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Looked {
    /// The BMC answered.
    Answered,
    /// It did not.
    Silent,
    /// A person went first.
    Yielded,
}

/// When one BMC is looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// Its next turn.
    due: Instant,
    /// It is left alone until then.
    rested: Instant,
    /// Its log is read from then on; `None` for now.
    log_due: Option<Instant>,
    /// It was asked for a look.
    is_asked: bool,
}

impl Pace {
    /// Its first turn is then.
    pub(super) fn first(due: Instant) -> Self {
        Self { due, rested: due, log_due: None, is_asked: false }
    }

    /// When it is looked at.
    pub(super) fn next(&self) -> Instant {
        if self.is_asked { self.rested.min(self.due) } else { self.due }
    }

    /// Something is said to have happened.
    pub(super) fn ask(&mut self) {
        self.is_asked = true;
    }

    /// A look begins; whether at the log, too.
    pub(super) fn begin(&mut self, now: Instant) -> bool {
        let with_log = std::mem::take(&mut self.is_asked) || self.log_due.is_none_or(|due| now >= due);
        if with_log {
            // Until it was read.
            self.log_due = None;
        }
        with_log
    }

    /// A look has ended that began then; the next turn is a `period` after that, and the log's a `log`.
    pub(super) fn end(&mut self, looked: Looked, (began, now): (Instant, Instant), period: Duration, log: Duration) {
        if looked == Looked::Yielded {
            self.due = now + AGAIN;
            return;
        }
        let rest = (now - began).saturating_mul(REST);
        self.due = (began + period).max(now + rest);
        self.rested = (began + APART).max(now + rest);
        match looked {
            // What it had to say meanwhile is in its log.
            Looked::Silent => self.log_due = None,
            _ => self.log_due = self.log_due.or(Some(began + log)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Duration = Duration::from_secs(60);
    const LOG: Duration = Duration::from_secs(600);

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    /// One look, which takes so long; when it began, and whether the log was read.
    fn look(pace: &mut Pace, took: u64, looked: Looked) -> (Instant, bool) {
        let began = pace.next();
        let with_log = pace.begin(began);
        pace.end(looked, (began, began + seconds(took)), PERIOD, LOG);
        (began, with_log)
    }

    #[test]
    fn turns_come_at_their_pace_and_the_log_with_some_of_them() {
        let start = Instant::now();
        let mut pace = Pace::first(start);
        let looks: Vec<_> = (0..12).map(|_| look(&mut pace, 1, Looked::Answered)).collect();
        let logs: Vec<_> = looks.iter().map(|(_, with_log)| *with_log).collect();
        assert_eq!(logs.iter().filter(|with_log| **with_log).count(), 2, "{logs:?}");
        assert!(logs[0] && logs[10]);
        assert_eq!(looks[11].0, start + PERIOD * 11);
        // One that is slow gets its rest.
        let slow = look(&mut pace, 30, Looked::Answered).0;
        assert_eq!(pace.next(), slow + seconds(30 + 120));
    }

    #[test]
    fn an_event_has_the_log_read_at_once_and_a_flood_once_in_a_while() {
        let start = Instant::now();
        let mut pace = Pace::first(start);
        look(&mut pace, 1, Looked::Answered);
        pace.ask();
        let (began, with_log) = look(&mut pace, 1, Looked::Answered);
        assert!(with_log && began == start + APART, "at once, but for its rest");
        let mut asked = 0;
        loop {
            pace.ask();
            if pace.next() >= start + seconds(60) {
                break;
            }
            assert!(look(&mut pace, 1, Looked::Answered).1);
            asked += 1;
        }
        assert_eq!(asked, 10, "one look in five seconds");
        // One that is asked for in a look follows it.
        let began = pace.next();
        pace.begin(began);
        pace.ask();
        pace.end(Looked::Answered, (began, began + seconds(1)), PERIOD, LOG);
        assert_eq!(pace.next(), began + APART);
    }

    #[test]
    fn a_look_that_a_person_kept_away_is_made_up_for_and_after_silence_the_log_is_read() {
        let start = Instant::now();
        let mut pace = Pace::first(start);
        assert_eq!(look(&mut pace, 0, Looked::Yielded), (start, true));
        assert_eq!(look(&mut pace, 1, Looked::Answered), (start + AGAIN, true));
        assert!(!look(&mut pace, 1, Looked::Silent).1);
        assert!(look(&mut pace, 1, Looked::Answered).1);
        assert!(!look(&mut pace, 1, Looked::Answered).1);
    }
}
