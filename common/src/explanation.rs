//! Why a machine is as it is, and what to do: what a node concludes from all it knows, for
//! whoever stands in front of the machine.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// How a machine stands, better ones first. Grows at the end only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stands {
    /// Nothing speaks against it.
    Well,
    /// It is at something that takes its time.
    Busy,
    /// It goes on, but somebody should look.
    Doubtful,
    /// It should have gone on by now.
    Stuck,
    /// It cannot go on before somebody has done something.
    Faulty,
}

impl Stands {
    /// In a word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Well => "well",
            Self::Busy => "busy",
            Self::Doubtful => "doubtful",
            Self::Stuck => "stuck",
            Self::Faulty => "faulty",
        }
    }
}

/// One verdict, with what speaks for it. Travels as JSON, so that it may grow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The machine's name, or its id while it has none.
    pub machine: String,
    /// How it stands.
    pub stands: Stands,
    /// Why, in one sentence.
    pub verdict: String,
    /// Since when, by the node's clock.
    pub since: Option<Timestamp>,
    /// The part it is about, and where that is, as far as it is a part.
    pub part: Option<String>,
    /// What to do, the most promising first.
    pub next: Vec<String>,
    /// What it is concluded from.
    pub because: Vec<String>,
    /// What else is wrong, the worst first.
    pub also: Vec<String>,
}
