//! Updates by a script of `firmware-scripts/firmware` that the installer runs in the toolbox: what is done next,
//! and what is known of it afterwards.
//!
//! A script has the header of a test ([`commission`](crate::commission)) and says in the same way how it went.
//! It is given the manifest's `arguments`, and in its environment `RACKHAND_FILE`, the file;
//! `RACKHAND_PARTS`, the kernel's names of those parts that have another version than is wanted, with spaces
//! between; `RACKHAND_VERSION`, the version that is wanted; and `RACKHAND_RESULT`, where its result goes.
//!
//! Invariants:
//! - Only the versions that the parts tell say that firmware is installed, whatever the script says.
//! - A script that may have begun is not run again for the same order: what the parts tell is read instead.
//! - A script is run only where each part tells its version before, and may be updated from it.

use std::{collections::BTreeMap, fmt, sync::LazyLock};

use serde::{Deserialize, Serialize};

use super::Parts;
use crate::{
    commission::{self, Script, Tested},
    machine::Mainboard,
};

/// The most arguments, and the longest of them in bytes.
pub const MAX_ARGUMENTS: usize = 32;
/// The longest argument, in bytes.
pub const MAX_ARGUMENT: usize = 128;

/// The most parts that are told of, and the longest that is told of one, in bytes.
const MAX_PARTS: usize = 128;
const MAX_TEXT: usize = 600;

/// The script that an update is done by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scripted {
    /// Its [name](Script::name).
    pub script: String,
    /// What it is given.
    pub arguments: Vec<String>,
    /// Whose version it changes.
    pub parts: Parts,
}

/// What an installer is ordered. Its form does not change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// The name of its manifest.
    pub name: String,
    /// What is run.
    pub by: Scripted,
    /// The version that its parts have afterwards, exactly.
    pub version: String,
    /// Versions that they may be updated from; empty for any.
    pub from: Vec<String>,
    /// What the file is called.
    pub file: String,
    /// Bytes of the file.
    pub size: u64,
    /// SHA-256 of the file, in lower-case hexadecimal.
    pub sha256: String,
    /// Whether the machine has to start anew before the version is in force.
    pub restart: bool,
    /// Whether it was started anew since the script was run: then nothing is run, and versions are only read.
    pub confirm: bool,
    /// How long the script may take, in seconds.
    pub timeout: u32,
    /// How long after that the version may take to show, in seconds.
    pub settle: u32,
    /// The mainboard of the machine that is meant, as far as it is known.
    pub mainboard: Option<Mainboard>,
}

/// How it ended. Grows at the end only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Every part tells the version that was wanted.
    Installed,
    /// The script says that it is done; the machine has to start anew before it is in force.
    Staged,
    /// No script was run, or it says that it changed nothing and nothing is changed.
    Refused(String),
    /// Parts may be other than they were.
    Failed(String),
}

/// What became of an order. Its form does not change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Updated {
    /// The name of its manifest.
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
    /// The versions before, as far as this installer read them before anything was done; of each part.
    pub was: BTreeMap<String, String>,
    /// What the script said, when this installer ran it.
    pub tested: Option<Tested>,
}

/// What is to be done about an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing: this is how it ended.
    End(Outcome),
    /// The script is run for these parts.
    Run(Vec<String>),
}

impl Order {
    /// What is to be done, by the versions that its parts tell; `begun` says whether an earlier installer may
    /// have run the script.
    pub fn next(&self, begun: bool, found: &BTreeMap<String, String>) -> Next {
        let is_done = self.is_installed(found);
        let parts = &self.by.parts;
        let end = match () {
            () if is_done => Outcome::Installed,
            () if self.confirm => Outcome::Failed(self.not_installed(found)),
            () if begun => Outcome::Failed(format!(
                "the machine started anew while the script ran, which is not run again: {}",
                self.not_installed(found)
            )),
            () if found.is_empty() => Outcome::Refused(format!("the machine tells of no {parts}")),
            () => match found.iter().find_map(|(part, version)| self.why_not(part, version)) {
                Some(reason) => Outcome::Refused(reason),
                None => {
                    let others = found.iter().filter(|(_, version)| **version != self.version);
                    return Next::Run(others.map(|(part, _)| part.clone()).collect());
                }
            },
        };
        Next::End(end)
    }

    /// Why a part of this version is not updated.
    fn why_not(&self, part: &str, version: &str) -> Option<String> {
        if version.is_empty() {
            return Some(format!("{part} tells no version, so that nothing would prove that it is installed"));
        }
        let is_from = *version == self.version || self.from.is_empty() || self.from.iter().any(|from| from == version);
        (!is_from).then(|| format!("{part} has {version}, and this is installed over {} only", self.from.join(", ")))
    }

    /// How it ended, by what the script said and by the versions before and after it.
    pub fn judge(&self, tested: &Tested, was: &BTreeMap<String, String>, found: &BTreeMap<String, String>) -> Outcome {
        if self.is_installed(found) {
            return Outcome::Installed;
        }
        match tested.outcome {
            commission::Outcome::Passed if self.restart => Outcome::Staged,
            commission::Outcome::Passed => {
                Outcome::Failed(format!("the script says that all is well, and {}", self.not_installed(found)))
            }
            commission::Outcome::Skipped if was == found => Outcome::Refused(tested.reason.clone()),
            commission::Outcome::Skipped | commission::Outcome::Failed | commission::Outcome::Broken => {
                Outcome::Failed(format!("{tested}; {}", self.not_installed(found)))
            }
        }
    }

    /// Whether every part tells the version that is wanted; not when there is none.
    pub fn is_installed(&self, found: &BTreeMap<String, String>) -> bool {
        !found.is_empty() && found.values().all(|version| *version == self.version)
    }

    fn not_installed(&self, found: &BTreeMap<String, String>) -> String {
        let Self { version: wanted, by: Scripted { parts, .. }, .. } = self;
        let told = match found.is_empty() {
            true => "none of them is told of".to_owned(),
            false => told(found.iter().filter(|(_, version)| **version != *wanted)),
        };
        commission::head(&format!("{parts} should have {wanted} by now, and {told}"), MAX_TEXT / 2).to_owned()
    }
}

/// Versions, in words.
pub fn told<'a>(versions: impl IntoIterator<Item = (&'a String, &'a String)>) -> String {
    let word = |(part, version): (&String, &String)| match version.as_str() {
        "" => format!("{part} tells none"),
        version => format!("{part} has {version}"),
    };
    versions.into_iter().map(word).collect::<Vec<_>>().join(", ")
}

impl Updated {
    /// Whether this is what an installer of ours makes, as far as its form goes: it came from a machine.
    pub fn is_sound(&self) -> bool {
        let line = |text: &str| text.len() <= 2 * MAX_TEXT && !text.chars().any(char::is_control);
        let reason = match &self.outcome {
            Outcome::Installed | Outcome::Staged => "",
            Outcome::Refused(reason) | Outcome::Failed(reason) => reason,
        };
        line(&self.name)
            && line(reason)
            && self.was.len() <= MAX_PARTS
            && self.was.iter().all(|(part, version)| line(part) && line(version))
            && self.tested.as_ref().is_none_or(Tested::is_sound)
    }

    /// The versions before, in words: one, when all parts had the same.
    pub fn before(&self) -> Option<String> {
        let mut versions = self.was.values();
        let first = versions.next()?;
        Some(if versions.all(|version| version == first) { first.clone() } else { told(&self.was) })
    }

    /// With nothing in it that is not shown on terminals, and no longer than it may be.
    #[must_use]
    pub fn sound(mut self) -> Self {
        if let Outcome::Refused(reason) | Outcome::Failed(reason) = &mut self.outcome {
            *reason = commission::head(&commission::clean_line(reason), 2 * MAX_TEXT).to_owned();
        }
        let bound = |text: &String| commission::head(&commission::clean_line(text), MAX_TEXT).to_owned();
        let was = self.was.iter().take(MAX_PARTS).map(|(part, version)| (bound(part), bound(version)));
        self.was = was.collect();
        self
    }
}

impl fmt::Display for Updated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, outcome, .. } = self;
        match outcome {
            Outcome::Installed => write!(f, "firmware {name} is installed"),
            Outcome::Staged => write!(f, "firmware {name} wants a start of the machine"),
            Outcome::Refused(reason) => write!(f, "firmware {name} was not installed: {reason}"),
            Outcome::Failed(reason) => write!(f, "firmware {name} failed: {reason}"),
        }
    }
}

const SCRIPTS: [&str; 2] = [
    include_str!("../../../firmware-scripts/firmware/nvme.sh"),
    include_str!("../../../firmware-scripts/firmware/updater.sh"),
];

/// All scripts that update firmware, by name.
pub fn scripts() -> &'static [Script] {
    static ALL: LazyLock<Vec<Script>> = LazyLock::new(|| commission::of_this_repository(&SCRIPTS));
    &ALL
}

/// The script with this name.
pub fn script(name: &str) -> Option<&'static Script> {
    scripts().iter().find(|script| script.name == name)
}

#[cfg(test)]
mod tests;
