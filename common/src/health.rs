//! How machines fare: what a rack's agent decided by its rules from what BMCs tell, and what it
//! kept of their sensors.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::bmc::SensorKind;

/// The most causes that are told of one machine, the worst first.
pub const MAX_CAUSES: usize = 32;

/// Causes that are named in one line for people.
const NAMED: usize = 3;

/// The most points of a series in one answer.
pub const MAX_POINTS: usize = 2000;

/// How a machine fares, better states first. Grows at the end only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// No rule finds anything.
    Ok,
    /// It cannot be told: its BMC does not answer.
    #[default]
    Unknown,
    /// To be looked at.
    Warning,
    /// To be acted upon: it is not given to anybody.
    Critical,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Ok, Self::Unknown, Self::Warning, Self::Critical];

    /// In a word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unknown => "unknown",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// The word names no state.
#[derive(Debug, thiserror::Error)]
#[error("is `ok`, `warning`, `critical` or `unknown`")]
pub struct NoState;

impl std::str::FromStr for State {
    type Err = NoState;

    fn from_str(word: &str) -> Result<Self, NoState> {
        Self::ALL.into_iter().find(|state| state.word() == word).ok_or(NoState)
    }
}

/// Why a machine is in a state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// The rule that says so.
    pub rule: String,
    /// Which state it leads to.
    pub state: State,
    /// The sensor or part it is about, as the BMC calls it.
    pub subject: String,
    /// What it read, with its unit.
    pub reading: String,
    /// Since when, by the node's clock.
    pub since: Timestamp,
    /// What to replace or to look at, in words.
    pub part: Option<String>,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.reading)?;
        match &self.part {
            Some(part) => write!(f, " ({part})"),
            None => Ok(()),
        }
    }
}

/// What the rules make of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// How it fares.
    pub state: State,
    /// Since when, by the node's clock.
    pub since: Timestamp,
    /// Why, the worst first; at most [`MAX_CAUSES`].
    pub causes: Vec<Cause>,
}

impl Verdict {
    /// Whether both say the same, but for what was read in the meantime.
    pub fn says_as(&self, other: &Self) -> bool {
        let says = |verdict: &Self| -> Vec<_> {
            verdict.causes.iter().map(|cause| (cause.rule.clone(), cause.subject.clone(), cause.state)).collect()
        };
        self.state == other.state && says(self) == says(other)
    }

    /// Its causes in one line, for people; empty when there are none.
    pub fn reasons(&self) -> String {
        let named: Vec<_> = self.causes.iter().take(NAMED).map(Cause::to_string).collect();
        match self.causes.len().saturating_sub(NAMED) {
            0 => named.join("; "),
            more => format!("{}; and {more} more", named.join("; ")),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "health is {}", self.state)?;
        if self.causes.is_empty() { Ok(()) } else { write!(f, ": {}", self.reasons()) }
    }
}

/// A machine as the node's own tool shows it. Travels as JSON, so that it may grow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// The machine's name, or its id while it has none.
    pub machine: String,
    /// How it fares; absent while its BMC was never read.
    pub verdict: Option<Verdict>,
    /// When its BMC answered last, since the agent was started.
    pub answered: Option<Timestamp>,
    /// Why its BMC did not answer last, if it did not.
    pub silent: Option<String>,
}

/// Which part of a sensor's series is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeriesQuery {
    /// The sensor, as the BMC calls it.
    pub sensor: String,
    /// From then on.
    pub from: Timestamp,
    /// Until then.
    pub to: Timestamp,
}

/// What was kept of a sensor. Travels as JSON, so that it may grow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// The sensor.
    pub sensor: String,
    /// What it measures.
    pub kind: SensorKind,
    /// The unit of its values.
    pub unit: String,
    /// Seconds that one point stands for; zero: each is one reading.
    pub step: u32,
    /// Oldest first; at most [`MAX_POINTS`].
    pub points: Vec<Point>,
}

/// A moment, or a span, of a series.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// When it was, or began.
    pub at: Timestamp,
    /// The lowest reading.
    pub min: f64,
    /// The mean of all.
    pub mean: f64,
    /// The highest.
    pub max: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cause(subject: &str, reading: &str) -> Cause {
        Cause {
            rule: "fans".into(),
            state: State::Critical,
            subject: subject.into(),
            reading: reading.into(),
            since: Timestamp::UNIX_EPOCH,
            part: Some(format!("replace fan {subject}")),
        }
    }

    #[test]
    fn a_verdict_reads_as_a_sentence_and_is_the_same_whatever_was_read_meanwhile() {
        let verdict = |causes| Verdict { state: State::Critical, since: Timestamp::UNIX_EPOCH, causes };
        let one = verdict(vec![cause("FAN1", "0 rpm")]);
        assert_eq!(one.to_string(), "health is critical: FAN1: 0 rpm (replace fan FAN1)");
        assert!(one.says_as(&verdict(vec![cause("FAN1", "12 rpm")])));
        assert!(!one.says_as(&verdict(vec![cause("FAN2", "0 rpm")])));
        let many = verdict((1..=5).map(|n| cause(&format!("FAN{n}"), "0 rpm")).collect());
        assert!(many.to_string().ends_with("; and 2 more"), "{many}");
        assert!(State::Ok < State::Unknown && State::Unknown < State::Warning && State::Warning < State::Critical);
    }
}
