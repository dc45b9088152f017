//! Tests of machines: scripts of `firmware-scripts/commission` that the installer runs in the toolbox, and what
//! became of them.
//!
//! A script begins with a header, lines of `# key: value` behind its first line:
//!
//! | key | value |
//! |---|---|
//! | `name` | what it is asked for by: lower-case letters, digits and hyphens |
//! | `title` | what is known when it passed |
//! | `limit` | how long it may take: `90s`, `30m`; at most [`MAX_LIMIT`] |
//! | `programs` | programs of the toolbox it needs, if any |
//! | `devices` | classes of devices without which it does not apply: `disk`, `nvme`, `nic` |
//! | `destructive` | `yes` when what is on disks is lost |
//! | `alone` | `yes` when nothing else may run meanwhile |
//! | `part` | what to look at when it fails |
//! | `result` | a field of its result and its type, `errors integer`; once for each |
//!
//! It writes its result, a JSON object, into the file `$RACKHAND_RESULT`, with exactly the fields it declares
//! and optionally `findings`, a list of texts that each name a part and what is wrong with it. It ends with 0
//! when it passed, 1 when it failed and 77 when it does not apply to this machine. Whatever else it does
//! means that it could not be carried out.
//!
//! Invariants:
//! - A test passes only if its script says so in each way: by how it ends, by a result as it declared it, and
//!   by no finding.
//! - What a machine tells is bounded and has no control characters in it: it is shown on terminals.

use std::{collections::BTreeMap, fmt, sync::LazyLock, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The longest that a script may take.
pub const MAX_LIMIT: Duration = Duration::from_secs(2 * 60 * 60);

/// The longest output that is kept, in bytes: its end.
pub const MAX_OUTPUT: usize = 4 << 10;

/// The longest result, in bytes of JSON.
pub const MAX_RESULT: usize = 4 << 10;

/// The longest reason, in bytes.
pub const MAX_REASON: usize = 500;

/// The most tests that are asked for at once.
pub const MAX_TESTS: usize = 64;

const MAX_NAME: usize = 40;

/// A test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    /// What it is asked for by.
    pub name: String,
    /// What is known when it passed.
    pub title: String,
    /// How long it may take.
    pub limit: Duration,
    /// Programs of the toolbox it needs.
    pub programs: Vec<String>,
    /// Devices without which it does not apply.
    pub devices: Vec<Device>,
    /// Whether what is on disks is lost.
    pub destructive: bool,
    /// Whether nothing else may run meanwhile.
    pub alone: bool,
    /// What to look at when it fails.
    pub part: String,
    /// The fields of its result.
    pub results: BTreeMap<String, Kind>,
    /// All of it.
    pub text: String,
}

/// A class of devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// A disk of any kind.
    Disk,
    /// A disk behind NVMe.
    Nvme,
    /// A network card.
    Nic,
}

/// What a field of a result may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A whole number.
    Integer,
    /// A number.
    Number,
    /// True or false.
    Boolean,
    /// A text.
    Text,
    /// A list of texts.
    Texts,
}

impl Kind {
    fn permits(self, value: &Value) -> bool {
        match self {
            Self::Integer => value.is_i64() || value.is_u64(),
            Self::Number => value.is_number(),
            Self::Boolean => value.is_boolean(),
            Self::Text => value.is_string(),
            Self::Texts => value.as_array().is_some_and(|texts| texts.iter().all(Value::is_string)),
        }
    }
}

/// Why a script is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAScript {
    /// A key is missing.
    #[error("its header has no `{0}`")]
    Missing(&'static str),
    /// A key that there is not.
    #[error("its header has a line `{0}`, which means nothing")]
    Unknown(String),
    /// A key that stands there twice.
    #[error("its header has `{0}` twice")]
    Twice(String),
    /// A value that cannot be read.
    #[error("its header has for `{key}` the value `{value}`: {wanted}")]
    Value {
        /// The key.
        key: &'static str,
        /// What stands there.
        value: String,
        /// What might.
        wanted: &'static str,
    },
}

impl Script {
    /// Reads a script's header.
    pub fn parse(text: &str) -> Result<Self, NotAScript> {
        let mut found = BTreeMap::new();
        let mut results = BTreeMap::new();
        for line in text.lines().skip(1).map_while(|line| line.strip_prefix("# ")) {
            let (key, value) = line.split_once(':').ok_or_else(|| NotAScript::Unknown(line.to_owned()))?;
            let value = value.trim();
            if key == "result" {
                let field = field(value).ok_or_else(|| NotAScript::Value {
                    key: "result",
                    value: value.to_owned(),
                    wanted: "a field and its type, as `errors integer`; types are integer, number, boolean, text, texts",
                })?;
                if results.insert(field.0.clone(), field.1).is_some() {
                    return Err(NotAScript::Twice(format!("result: {}", field.0)));
                }
            } else if !KEYS.contains(&key) {
                return Err(NotAScript::Unknown(line.to_owned()));
            } else if found.insert(key, value).is_some() {
                return Err(NotAScript::Twice(key.to_owned()));
            }
        }
        let said = |key: &'static str| found.get(key).copied().ok_or(NotAScript::Missing(key));
        let read = |key: &'static str, wanted, ok: bool| match said(key)? {
            value if ok => Ok(value),
            value => Err(NotAScript::Value { key, value: value.to_owned(), wanted }),
        };
        let yes = |key: &'static str| match said(key)? {
            "yes" => Ok(true),
            "no" => Ok(false),
            value => Err(NotAScript::Value { key, value: value.to_owned(), wanted: "`yes` or `no`" }),
        };
        let words = |key| found.get(key).copied().unwrap_or_default().split_whitespace();
        let line = |key| read(key, "a few words", said(key).is_ok_and(is_line));
        let limit = duration(said("limit")?).ok_or_else(|| NotAScript::Value {
            key: "limit",
            value: found["limit"].to_owned(),
            wanted: "a time such as `90s` or `30m`, at most two hours",
        })?;
        let mut devices = Vec::new();
        for word in words("devices") {
            devices.push(match word {
                "disk" => Device::Disk,
                "nvme" => Device::Nvme,
                "nic" => Device::Nic,
                _ => {
                    let value = word.to_owned();
                    return Err(NotAScript::Value { key: "devices", value, wanted: "`disk`, `nvme` or `nic`" });
                }
            });
        }
        Ok(Self {
            name: read("name", "lower-case letters, digits and hyphens", said("name").is_ok_and(is_name))?.to_owned(),
            title: line("title")?.to_owned(),
            limit,
            programs: words("programs").map(str::to_owned).collect(),
            devices,
            destructive: yes("destructive")?,
            alone: yes("alone")?,
            part: line("part")?.to_owned(),
            results,
            text: text.to_owned(),
        })
    }

    /// The result of a script that ended, as it declared it; or what is wrong with it.
    fn result(&self, written: &[u8]) -> Result<(String, Vec<String>), String> {
        if written.is_empty() {
            return Err("it wrote no result".to_owned());
        }
        if written.len() > MAX_RESULT {
            return Err(format!("its result is longer than {MAX_RESULT} bytes"));
        }
        let value: serde_json::Map<String, Value> =
            serde_json::from_slice(written).map_err(|error| format!("its result is no JSON object: {error}"))?;
        for (name, kind) in &self.results {
            match value.get(name) {
                None => return Err(format!("its result has no `{name}`")),
                Some(value) if !kind.permits(value) => return Err(format!("its result has for `{name}` another type")),
                Some(_) => {}
            }
        }
        let mut findings = Vec::new();
        for (name, value) in &value {
            match value {
                Value::Array(found) if name == FINDINGS && Kind::Texts.permits(value) => {
                    findings = found.iter().filter_map(Value::as_str).map(clean_line).collect();
                }
                _ if self.results.contains_key(name) => {}
                _ => return Err(format!("its result has `{}`, which it did not declare", clean_line(name))),
            }
        }
        let json = serde_json::to_string(&value).expect("what was JSON is");
        // Escaped again it may be longer than it came.
        if json.len() > MAX_RESULT { Err("its result is too long".to_owned()) } else { Ok((json, findings)) }
    }

    /// What a script that was run has shown.
    pub fn judge(&self, ran: &Ran, started: Timestamp) -> Tested {
        let output = tail(&clean(&String::from_utf8_lossy(&ran.output)), MAX_OUTPUT).to_owned();
        let last = || output.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default().to_owned();
        let (outcome, reason, result) = match (&ran.exit, self.result(&ran.result)) {
            (Exit::Code(0), Ok((json, findings))) if findings.is_empty() => (Outcome::Passed, String::new(), json),
            (Exit::Code(0), Ok((json, _))) => (Outcome::Broken, "it passed, and has findings".to_owned(), json),
            (Exit::Code(1), Ok((json, findings))) if findings.is_empty() => (Outcome::Failed, last(), json),
            (Exit::Code(1), Ok((json, findings))) => (Outcome::Failed, findings.join("; "), json),
            (Exit::Code(77), _) => (Outcome::Skipped, last(), String::new()),
            (Exit::Code(0 | 1), Err(wrong)) => (Outcome::Broken, wrong, String::new()),
            (exit, _) => (Outcome::Broken, format!("it {exit}: {}", last()), String::new()),
        };
        let reason =
            if reason.is_empty() && outcome != Outcome::Passed { "it does not say why".into() } else { reason };
        Tested {
            script: self.name.clone(),
            outcome,
            reason: head(&clean_line(&reason), MAX_REASON).to_owned(),
            part: self.part.clone(),
            output,
            result,
            started,
            milliseconds: u64::try_from(ran.took.as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// What is told of a script that was not run.
    pub fn not_run(&self, outcome: Outcome, reason: &str, started: Timestamp) -> Tested {
        Tested {
            script: self.name.clone(),
            outcome,
            reason: head(&clean_line(reason), MAX_REASON).to_owned(),
            part: self.part.clone(),
            output: String::new(),
            result: String::new(),
            started,
            milliseconds: 0,
        }
    }
}

const KEYS: [&str; 8] = ["name", "title", "limit", "programs", "devices", "destructive", "alone", "part"];

/// The field of any result that lists what is wrong.
const FINDINGS: &str = "findings";

fn field(text: &str) -> Option<(String, Kind)> {
    let (name, kind) = text.split_once(' ')?;
    let kind = match kind.trim() {
        "integer" => Kind::Integer,
        "number" => Kind::Number,
        "boolean" => Kind::Boolean,
        "text" => Kind::Text,
        "texts" => Kind::Texts,
        _ => return None,
    };
    let is_field = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    (is_field && name != FINDINGS && !name.is_empty() && name.len() <= MAX_NAME).then(|| (name.to_owned(), kind))
}

fn duration(text: &str) -> Option<Duration> {
    let unit = match text.chars().last()? {
        's' => 1,
        'm' => 60,
        _ => return None,
    };
    let number = &text[..text.len() - 1];
    let number: u64 = number.bytes().all(|byte| byte.is_ascii_digit()).then(|| number.parse().ok())??;
    let limit = Duration::from_secs(number.checked_mul(unit)?);
    (!limit.is_zero() && limit <= MAX_LIMIT).then_some(limit)
}

fn is_name(text: &str) -> bool {
    let letters = text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    letters && !text.is_empty() && text.len() <= MAX_NAME && !text.starts_with('-')
}

fn is_line(text: &str) -> bool {
    !text.is_empty() && text.len() <= 200 && !text.chars().any(char::is_control)
}

/// How a script ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this status.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// It was ended: its limit had passed.
    Limit,
    /// It could not be started.
    NotStarted(String),
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "ended with {code}"),
            Self::Signal(signal) => write!(f, "was ended by signal {signal}"),
            Self::Limit => f.write_str("was not done within its limit"),
            Self::NotStarted(why) => write!(f, "could not be started ({why})"),
        }
    }
}

/// What a script did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// How it ended.
    pub exit: Exit,
    /// What it said, its end.
    pub output: Vec<u8>,
    /// What it wrote as its result.
    pub result: Vec<u8>,
    /// How long it took.
    pub took: Duration,
}

/// What a test showed. Grows at the end only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// All is well.
    Passed,
    /// Something is not; the reason says what.
    Failed,
    /// It does not apply to this machine.
    Skipped,
    /// It could not be carried out: nothing is known.
    Broken,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
            Self::Broken => "broken",
        })
    }
}

/// What became of one test.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tested {
    /// Its name.
    pub script: String,
    /// What it showed.
    pub outcome: Outcome,
    /// Why, where it did not pass, in one line.
    pub reason: String,
    /// What to look at.
    pub part: String,
    /// The end of what it said.
    pub output: String,
    /// Its result as JSON; empty when there is none.
    pub result: String,
    /// When it began, by the machine's clock, which boot set.
    pub started: Timestamp,
    /// How long it took.
    pub milliseconds: u64,
}

impl Tested {
    /// Whether this is what [`Script::judge`] makes, as far as its form goes: it came from a machine.
    pub fn is_sound(&self) -> bool {
        let line = |text: &str, longest| text.len() <= longest && !text.chars().any(char::is_control);
        is_name(&self.script)
            && line(&self.reason, MAX_REASON)
            && line(&self.part, 200)
            && self.output.len() <= MAX_OUTPUT
            && self.output.chars().all(|char| char == '\n' || !char.is_control())
            && self.result.len() <= MAX_RESULT
            && (self.result.is_empty() || serde_json::from_str::<serde_json::Map<String, Value>>(&self.result).is_ok())
    }
}

impl fmt::Display for Tested {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "test {} {}", self.script, self.outcome)?;
        if self.reason.is_empty() { Ok(()) } else { write!(f, ": {}", self.reason) }
    }
}

/// What may be shown: without control characters, but for ends of lines.
fn clean(text: &str) -> String {
    text.chars()
        .filter_map(|char| match char {
            '\n' => Some('\n'),
            '\t' => Some(' '),
            char if char.is_control() => None,
            char => Some(char),
        })
        .collect()
}

pub(crate) fn clean_line(text: &str) -> String {
    clean(text).replace('\n', " ")
}

/// At most so many bytes of the end.
fn tail(text: &str, longest: usize) -> &str {
    let mut start = text.len().saturating_sub(longest);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

/// At most so many bytes of the beginning.
pub(crate) fn head(text: &str, longest: usize) -> &str {
    let mut end = text.len().min(longest);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// In which order tests are run: those that may run beside others all at once, then the others one by one.
pub fn batches(scripts: &[&'static Script]) -> Vec<Vec<&'static Script>> {
    let (alone, together): (Vec<_>, Vec<_>) = scripts.iter().copied().partition(|script| script.alone);
    let together = Some(together).filter(|together| !together.is_empty());
    together.into_iter().chain(alone.into_iter().map(|script| vec![script])).collect()
}

const SCRIPTS: [&str; 8] = [
    include_str!("../../firmware-scripts/commission/clock.sh"),
    include_str!("../../firmware-scripts/commission/cpu.sh"),
    include_str!("../../firmware-scripts/commission/disk-read.sh"),
    include_str!("../../firmware-scripts/commission/disk-write.sh"),
    include_str!("../../firmware-scripts/commission/memory.sh"),
    include_str!("../../firmware-scripts/commission/nic.sh"),
    include_str!("../../firmware-scripts/commission/nvme.sh"),
    include_str!("../../firmware-scripts/commission/smart.sh"),
];

/// Scripts that come with the product.
pub(crate) fn of_this_repository(texts: &[&str]) -> Vec<Script> {
    let parse = |text| Script::parse(text).expect("a test reads every script of this repository");
    texts.iter().copied().map(parse).collect()
}

/// All tests, by name.
pub fn scripts() -> &'static [Script] {
    static ALL: LazyLock<Vec<Script>> = LazyLock::new(|| of_this_repository(&SCRIPTS));
    &ALL
}

/// The test with this name.
pub fn script(name: &str) -> Option<&'static Script> {
    scripts().iter().find(|script| script.name == name)
}

#[cfg(test)]
mod tests;
