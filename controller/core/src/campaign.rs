//! Updates of many machines, few at a time: which are begun next, and when it is over.
//!
//! Invariants:
//! - No more machines are being updated at once than the budget has, which is one at least.
//! - Once as many failed as end it, none is begun any more; nor while it is paused, nor after it was
//!   cancelled.
//! - What was begun is waited for. It ends as soon as none is being updated and none is to be begun.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What it goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    /// How many of its machines may be updated at once, in percent; one at least.
    pub at_most: u8,
    /// After so many failures none is begun any more.
    pub stop_after: u32,
}

/// What an operator wants of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wish {
    /// To go on.
    Run,
    /// To begin no other machine for now.
    Pause,
    /// To begin no other machine any more.
    Cancel,
}

/// How far one of its machines is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Member {
    /// Not begun.
    Waiting,
    /// Being updated.
    Running,
    /// Has what is wanted.
    Done,
    /// Was not updated, or not as it should be.
    Failed,
    /// Was somebody's when its turn came.
    Skipped,
}

/// What is to be done with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// These are begun, by their places.
    Begin(Vec<usize>),
    /// Nothing before one of its machines moves on, or an operator wants something else.
    Wait,
    /// It is over.
    Over(Outcome),
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Every machine had its turn.
    Done,
    /// Too many failed: the others had no turn.
    Stopped,
    /// An operator cancelled it.
    Cancelled,
}

impl Rules {
    /// How many may be updated at once, of so many in all.
    pub fn budget(&self, machines: usize) -> usize {
        (machines * usize::from(self.at_most) / 100).max(1)
    }

    /// What is to be done, with its machines as they are.
    pub fn next(&self, wish: Wish, members: &[Member]) -> Next {
        let count = |wanted: Member| members.iter().filter(|member| **member == wanted).count();
        let (running, failed) = (count(Member::Running), count(Member::Failed));
        let is_stopped = failed >= self.stop_after.max(1) as usize;
        let waiting = members.iter().enumerate().filter(|(_, member)| **member == Member::Waiting);
        let mut waiting: Vec<usize> = waiting.map(|(place, _)| place).collect();
        let ended = match wish {
            _ if waiting.is_empty() => Some(Outcome::Done),
            Wish::Cancel => Some(Outcome::Cancelled),
            _ if is_stopped => Some(Outcome::Stopped),
            Wish::Run | Wish::Pause => None,
        };
        match (ended, wish) {
            (Some(outcome), _) if running == 0 => Next::Over(outcome),
            (Some(_), _) | (None, Wish::Pause | Wish::Cancel) => Next::Wait,
            (None, Wish::Run) => {
                waiting.truncate(self.budget(members.len()).saturating_sub(running));
                if waiting.is_empty() { Next::Wait } else { Next::Begin(waiting) }
            }
        }
    }
}

impl fmt::Display for Wish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Run => "run",
            Self::Pause => "pause",
            Self::Cancel => "cancel",
        })
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
        })
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Done => "done",
            Self::Stopped => "stopped",
            Self::Cancelled => "cancelled",
        })
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use proptest::prelude::*;

    use super::*;

    fn members(word: &str) -> Vec<Member> {
        let member = |c| match c {
            '.' => Member::Waiting,
            'r' => Member::Running,
            'd' => Member::Done,
            'f' => Member::Failed,
            _ => Member::Skipped,
        };
        word.chars().map(member).collect()
    }

    #[test]
    fn what_is_begun_next() {
        let mut table = String::new();
        for (at_most, stop_after, wish, machines) in [
            (10, 1, Wish::Run, ".........."),
            (10, 1, Wish::Run, "r........."),
            (10, 1, Wish::Run, "d........."),
            (30, 1, Wish::Run, "dr........"),
            (1, 1, Wish::Run, ".."),
            (100, 1, Wish::Run, "...."),
            (50, 1, Wish::Run, "fr.."),
            (50, 1, Wish::Run, "fd.."),
            (50, 2, Wish::Run, "fd.."),
            (50, 1, Wish::Run, "fd"),
            (50, 1, Wish::Pause, "dr.."),
            (50, 1, Wish::Pause, "dd.."),
            (50, 1, Wish::Pause, "ddds"),
            (50, 1, Wish::Cancel, "dr.."),
            (50, 1, Wish::Cancel, "dd.."),
            (50, 1, Wish::Run, ""),
        ] {
            let next = Rules { at_most, stop_after }.next(wish, &members(machines));
            table += &format!("{at_most} % stop after {stop_after} {wish} {machines:?}: {next:?}\n");
        }
        expect![[r#"
            10 % stop after 1 run "..........": Begin([0])
            10 % stop after 1 run "r.........": Wait
            10 % stop after 1 run "d.........": Begin([1])
            30 % stop after 1 run "dr........": Begin([2, 3])
            1 % stop after 1 run "..": Begin([0])
            100 % stop after 1 run "....": Begin([0, 1, 2, 3])
            50 % stop after 1 run "fr..": Wait
            50 % stop after 1 run "fd..": Over(Stopped)
            50 % stop after 2 run "fd..": Begin([2, 3])
            50 % stop after 1 run "fd": Over(Done)
            50 % stop after 1 pause "dr..": Wait
            50 % stop after 1 pause "dd..": Wait
            50 % stop after 1 pause "ddds": Over(Done)
            50 % stop after 1 cancel "dr..": Wait
            50 % stop after 1 cancel "dd..": Over(Cancelled)
            50 % stop after 1 run "": Over(Done)
        "#]]
        .assert_eq(&table);
    }

    proptest! {
        /// Machines end well or not, in any order; an operator may pause and cancel it.
        #[test]
        fn never_more_than_the_budget_never_after_a_stop_and_everything_ends(
            count in 0..40_usize, at_most in 1..=100_u8, stop_after in 1..4_u32,
            ends in prop::collection::vec((any::<prop::sample::Index>(), 0..4_u8), 1..100),
            cancel_at in prop::option::of(0..40_usize), pause_at in prop::option::of(0..40_usize),
        ) {
            let rules = Rules { at_most, stop_after };
            let mut members = vec![Member::Waiting; count];
            let mut over = None;
            for round in 0..400 {
                let wish = match () {
                    () if cancel_at.is_some_and(|at| round >= at) => Wish::Cancel,
                    () if pause_at.is_some_and(|at| (at..at + 5).contains(&round)) => Wish::Pause,
                    () => Wish::Run,
                };
                let failed = members.iter().filter(|member| **member == Member::Failed).count();
                match rules.next(wish, &members) {
                    Next::Begin(places) => {
                        prop_assert!(!places.is_empty() && wish == Wish::Run && failed < stop_after as usize);
                        for place in places {
                            prop_assert_eq!(members[place], Member::Waiting);
                            members[place] = Member::Running;
                        }
                    }
                    Next::Wait => {}
                    Next::Over(outcome) => {
                        over = Some(outcome);
                        break;
                    }
                }
                let running: Vec<_> = (0..count).filter(|place| members[*place] == Member::Running).collect();
                prop_assert!(running.len() <= rules.budget(count));
                let (which, end) = &ends[round % ends.len()];
                // Some take their time.
                if !running.is_empty() && *end < 3 {
                    let place = running[which.index(running.len())];
                    members[place] = [Member::Done, Member::Failed, Member::Skipped][usize::from(*end)];
                }
                // But not for ever.
                if round >= 200 && let Some(place) = running.first() {
                    members[*place] = Member::Done;
                }
            }
            let over = over.expect("it has not ended");
            prop_assert!(!members.contains(&Member::Running));
            prop_assert_eq!(over == Outcome::Done, !members.contains(&Member::Waiting));
        }
    }
}
