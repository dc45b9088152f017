//! What a look into an image finds.

use serde::{Deserialize, Serialize};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// As it should be.
    Good,
    /// Nobody looked, and why.
    NotExamined,
    /// It works, and on some machines or some day will not.
    Warning,
    /// A machine with it will not start, not be reached, or be taken for another.
    Error,
}

/// One thing that was looked at in an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What was looked at: a word or two, always the same.
    pub subject: String,
    /// What was found.
    pub found: String,
    /// What to do; empty when there is nothing to do.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub advice: String,
}
