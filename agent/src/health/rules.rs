//! Rules by which a machine's health is decided, as data: what comes with the product
//! (`firmware-scripts/health`) and what an operator puts beside it. No IO.
//!
//! A rule of a later file takes the place of one of the same name in an earlier file. A mistake is
//! told with its file and line, and then none of the rules is taken.

use std::time::Duration;

use rackhand_common::{
    bmc::{LogEntry, Reading, SensorKind, Severity},
    health::State,
};
use serde::Deserialize;
use toml::Spanned;

/// The most rules.
pub const MAX_RULES: usize = 256;

/// The longest pattern, name or part, in bytes.
const MAX_WORDS: usize = 128;

/// The most patterns in one list.
const MAX_PATTERNS: usize = 64;

/// The longest time in a rule.
const MAX_TIME: Duration = Duration::from_secs(31 * 24 * 3600);

/// The most entries of a log that a rule may ask for.
pub const MAX_ENTRIES: u32 = 1000;

/// The rules that come with the product.
const OURS: [(&str, &str); 3] = [
    ("sensors.toml", include_str!("../../../firmware-scripts/health/sensors.toml")),
    ("log.toml", include_str!("../../../firmware-scripts/health/log.toml")),
    ("absence.toml", include_str!("../../../firmware-scripts/health/absence.toml")),
];

/// Why rules cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}, line {line}: {why}")]
pub struct BadRule {
    /// In which file.
    pub file: String,
    /// In which line, from 1.
    pub line: usize,
    /// What is wrong.
    pub why: String,
}

/// All rules that are gone by.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rules(Vec<Rule>);

/// One rule.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// What it is called; no other rule is.
    pub name: String,
    /// How long it has to be so before it counts.
    pub holds: Duration,
    /// How long it has to be over before that counts.
    pub clears: Duration,
    /// Whether it only counts while the machine is switched on.
    pub while_on: bool,
    /// What to replace or to look at; `{subject}` stands for the sensor or part.
    pub part: Option<String>,
    /// What it looks at.
    pub test: Test,
}

/// What a rule looks at.
#[derive(Clone, Debug, PartialEq)]
pub enum Test {
    /// What a sensor reads.
    Reading(ReadingTest),
    /// How often something is in the hardware's event log.
    Log(LogTest),
    /// A sensor that was there and is not, or reads nothing.
    AbsentSensor(Which, State),
    /// A BMC that does not answer.
    AbsentBmc(State),
}

/// Which sensors.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Which {
    /// Only of these kinds; of every kind when empty.
    pub kinds: Vec<SensorKind>,
    /// Only with such a name; with every name when empty.
    pub names: Vec<Pattern>,
    /// But not with such a name.
    pub except: Vec<Pattern>,
}

/// A test of what a sensor reads.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReadingTest {
    /// Which sensors.
    pub which: Which,
    /// Go by what the BMC thinks of it, and by its lines.
    pub by_bmc: bool,
    /// Lines of a warning.
    pub warning: Lines,
    /// Lines of what is critical.
    pub critical: Lines,
    /// States of a discrete sensor that are a warning.
    pub warning_states: Vec<Pattern>,
    /// States of a discrete sensor that are critical.
    pub critical_states: Vec<Pattern>,
    /// How far inside its line a value has to be before that counts, in the sensor's unit.
    pub slack: f64,
}

/// Lines between which a value has to be, in the sensor's unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lines {
    /// It is past when it is above this.
    pub above: Option<f64>,
    /// It is past when it is below this.
    pub below: Option<f64>,
}

/// A test of the hardware's event log.
#[derive(Clone, Debug, PartialEq)]
pub struct LogTest {
    /// Entries with such a message; all when empty.
    pub messages: Vec<Pattern>,
    /// Entries about such a sensor or part; all when empty.
    pub subjects: Vec<Pattern>,
    /// Entries at least so bad.
    pub severity: Option<Severity>,
    /// So many of them, about one sensor or part,
    pub at_least: u32,
    /// came within this time.
    pub within: Duration,
    /// What that leads to.
    pub state: State,
}

impl Which {
    /// Whether it is about this sensor.
    pub fn is_about(&self, name: &str, kind: SensorKind) -> bool {
        (self.kinds.is_empty() || self.kinds.contains(&kind))
            && any_or_all(&self.names, name)
            && !self.except.iter().any(|pattern| pattern.matches(name))
    }
}

impl Lines {
    fn is_none(self) -> bool {
        self.above.is_none() && self.below.is_none()
    }

    /// Whether a value is past them; one that was before, until it is inside by `slack`.
    fn are_passed(self, value: f64, slack: f64) -> bool {
        self.above.is_some_and(|line| value > line - slack) || self.below.is_some_and(|line| value < line + slack)
    }
}

impl ReadingTest {
    /// Whether a sensor is as bad as `state` now; `None` when it says nothing about that. `was`:
    /// whether it has counted as that until now.
    pub fn is(&self, state: State, reading: &Reading, was: bool) -> Option<bool> {
        let value = reading.value.filter(|value| value.is_finite());
        let slack = if was { self.slack } else { 0.0 };
        let (lines, states) = match state {
            State::Warning => (self.warning, &self.warning_states),
            _ => (self.critical, &self.critical_states),
        };
        let told = [
            value.filter(|_| !lines.is_none()).map(|value| lines.are_passed(value, slack)),
            (!states.is_empty() && (!reading.states.is_empty() || value.is_some()))
                .then(|| reading.states.iter().any(|told| states.iter().any(|pattern| pattern.matches(told)))),
            self.by_bmc.then(|| by_bmc(state, reading, value, slack)).flatten(),
        ];
        told.into_iter().flatten().reduce(|one, other| one || other)
    }
}

/// What the BMC thinks of it. Its lines are crossed by whoever is at them (IPMI 2.0 §35.14).
fn by_bmc(state: State, reading: &Reading, value: Option<f64>, slack: f64) -> Option<bool> {
    let wanted = if state == State::Warning { Severity::Warning } else { Severity::Critical };
    let thresholds = &reading.thresholds;
    let (lower, upper) = match state {
        State::Warning => (thresholds.lower_warning, thresholds.upper_warning),
        _ => (thresholds.lower_critical, thresholds.upper_critical),
    };
    let lines = Lines { above: upper, below: lower };
    let severity = reading.severity.map(|severity| severity >= wanted);
    let value = value.filter(|_| !lines.is_none());
    match (severity, value) {
        (Some(true), _) => Some(true),
        // The BMC's own hysteresis is over; ours may not be.
        (Some(false), Some(value)) if slack > 0.0 => Some(lines.are_passed(value, slack)),
        (Some(false), _) => Some(false),
        (None, Some(value)) => Some(
            lines.are_passed(value, slack)
                || upper.is_some_and(|line| value >= line)
                || lower.is_some_and(|line| value <= line),
        ),
        (None, None) => None,
    }
}

impl LogTest {
    /// Whether it is about this entry. One that tells that something is over is never meant.
    pub fn is_about(&self, entry: &LogEntry) -> bool {
        !entry.is_over
            && any_or_all(&self.messages, &entry.message)
            && any_or_all(&self.subjects, entry.subject.as_deref().unwrap_or_default())
            && self.severity.is_none_or(|least| entry.severity.is_some_and(|severity| severity >= least))
    }
}

impl Rule {
    /// What to replace or to look at, of this subject.
    pub fn part(&self, subject: &str) -> Option<String> {
        self.part.as_ref().map(|part| part.replace("{subject}", subject))
    }

    fn is_ok(&self) -> Result<(), String> {
        if self.name.is_empty() || self.name.len() > MAX_WORDS || self.name.chars().any(|c| !is_of_name(c)) {
            return Err("`name` is lower-case letters, digits and `-`".into());
        }
        if let Some(part) = &self.part
            && (part.len() > MAX_WORDS || part.replace("{subject}", "").contains(['{', '}']) || part.is_empty())
        {
            return Err(format!("`part` is at most {MAX_WORDS} bytes, and knows `{{subject}}` alone"));
        }
        match &self.test {
            Test::Reading(test) => test.is_ok(),
            Test::Log(test) => test.is_ok(),
            Test::AbsentSensor(_, state) | Test::AbsentBmc(state) => is_bad(*state),
        }
    }
}

fn is_of_name(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'
}

fn is_bad(state: State) -> Result<(), String> {
    if state == State::Ok { Err("`state` is unknown, warning or critical".into()) } else { Ok(()) }
}

impl ReadingTest {
    fn is_ok(&self) -> Result<(), String> {
        let has_states = !self.warning_states.is_empty() || !self.critical_states.is_empty();
        if !self.by_bmc && !has_states && self.warning.is_none() && self.critical.is_none() {
            return Err("`reading` says nothing: it takes `by_bmc`, `warning`, `critical`, or states of them".into());
        }
        let numbers = [self.warning.above, self.warning.below, self.critical.above, self.critical.below];
        if numbers.iter().flatten().chain([&self.slack]).any(|number| !number.is_finite()) || self.slack < 0.0 {
            return Err("`slack` and lines are numbers, and `slack` is not negative".into());
        }
        let before = |one: Option<f64>, other: Option<f64>| one.zip(other).is_none_or(|(one, other)| one <= other);
        if !before(self.warning.above, self.critical.above) || !before(self.critical.below, self.warning.below) {
            return Err("`critical` begins before `warning` does".into());
        }
        for lines in [self.warning, self.critical] {
            if lines.below.zip(lines.above).is_some_and(|(below, above)| below + 2.0 * self.slack >= above) {
                return Err("no value is inside: `below` and `above` are closer than twice `slack`".into());
            }
        }
        Ok(())
    }
}

impl LogTest {
    fn is_ok(&self) -> Result<(), String> {
        if !(1..=MAX_ENTRIES).contains(&self.at_least) {
            return Err(format!("`at_least` is 1 to {MAX_ENTRIES}"));
        }
        if self.within.is_zero() {
            return Err("`within` is a time".into());
        }
        if self.messages.is_empty() && self.subjects.is_empty() && self.severity.is_none() {
            return Err("`log` is about every entry: it takes `message`, `subject` or `severity`".into());
        }
        is_bad(self.state)
    }
}

impl Rules {
    /// Those that come with the product, and then these files, told with their names.
    pub fn with(files: &[(String, String)]) -> Result<Self, BadRule> {
        let ours = OURS.iter().map(|(file, text)| (*file, *text));
        Self::read(ours.chain(files.iter().map(|(file, text)| (file.as_str(), text.as_str()))))
    }

    /// Those in these files, told with their names.
    pub fn read<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, BadRule> {
        let mut rules: Vec<Rule> = Vec::new();
        for (file, text) in files {
            let bad = |at: usize, why: String| BadRule { file: file.into(), line: line(text, at), why };
            let read: File = toml::from_str(text)
                .map_err(|error| bad(error.span().map_or(0, |span| span.start), error.message().to_owned()))?;
            let mut names = std::collections::BTreeSet::new();
            for rule in read.rule {
                let at = rule.span().start;
                let written = rule.into_inner();
                if !names.insert(written.name.clone()) {
                    return Err(bad(at, format!("there are two rules `{}` in this file", written.name)));
                }
                let of_rule = |why: String| bad(at, why);
                rules.retain(|known| known.name != written.name);
                if written.off {
                    continue;
                }
                let name = written.name.clone();
                let rule = Rule::try_from(written).and_then(|rule| rule.is_ok().map(|()| rule));
                rules.push(rule.map_err(|why| of_rule(format!("rule `{name}`: {why}")))?);
                if rules.len() > MAX_RULES {
                    return Err(of_rule(format!("there are more than {MAX_RULES} rules")));
                }
            }
        }
        Ok(Self(rules))
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Rule> {
        self.0.iter()
    }

    /// The one of this name.
    pub fn named(&self, name: &str) -> Option<&Rule> {
        self.0.iter().find(|rule| rule.name == name)
    }
}

/// The line that this byte is in.
fn line(text: &str, at: usize) -> usize {
    text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count() + 1
}

/// Words with `*` for any letters and `?` for one; the case does not matter.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Pattern(Vec<char>);

impl TryFrom<String> for Pattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text.is_empty() || text.len() > MAX_WORDS {
            return Err(format!("a pattern has 1 to {MAX_WORDS} bytes"));
        }
        Ok(Self(text.to_lowercase().chars().collect()))
    }
}

impl Pattern {
    /// Whether all of the text is as it says.
    pub fn matches(&self, text: &str) -> bool {
        let text: Vec<char> = text.to_lowercase().chars().collect();
        let pattern = &self.0;
        let (mut at, mut read) = (0, 0);
        // The latest `*`, and how much of the text it stands for.
        let mut star: Option<(usize, usize)> = None;
        while read < text.len() {
            match pattern.get(at) {
                Some('*') => {
                    star = Some((at, read));
                    at += 1;
                }
                Some(c) if *c == '?' || *c == text[read] => (at, read) = (at + 1, read + 1),
                _ => match star {
                    Some((stood, took)) => {
                        star = Some((stood, took + 1));
                        (at, read) = (stood + 1, took + 1);
                    }
                    None => return false,
                },
            }
        }
        pattern[at..].iter().all(|c| *c == '*')
    }
}

fn any_or_all(patterns: &[Pattern], text: &str) -> bool {
    patterns.is_empty() || patterns.iter().any(|pattern| pattern.matches(text))
}

/// A time as it is written: `90s`, `5m`, `24h`, `7d`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
struct Time(Duration);

impl TryFrom<String> for Time {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || "is a time such as `90s`, `5m`, `24h` or `7d`, at most 31d".to_owned();
        let unit = match text.chars().last() {
            Some('s') => 1,
            Some('m') => 60,
            Some('h') => 3600,
            Some('d') => 86400,
            _ => return Err(wrong()),
        };
        let number: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
        let time = Duration::from_secs(number.saturating_mul(unit));
        if time > MAX_TIME { Err(wrong()) } else { Ok(Self(time)) }
    }
}

/// A file as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    rule: Vec<Spanned<Written>>,
}

/// `[[rule]]` as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    name: String,
    /// There is no such rule.
    #[serde(default)]
    off: bool,
    #[serde(default, rename = "for")]
    holds: Time,
    #[serde(default)]
    clear: Time,
    #[serde(default)]
    while_on: bool,
    part: Option<String>,
    reading: Option<WrittenReading>,
    log: Option<WrittenLog>,
    absent: Option<WrittenAbsent>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenReading {
    #[serde(default)]
    kind: Vec<SensorKind>,
    #[serde(default)]
    name: Vec<Pattern>,
    #[serde(default)]
    except: Vec<Pattern>,
    #[serde(default)]
    by_bmc: bool,
    #[serde(default)]
    warning: Lines,
    #[serde(default)]
    critical: Lines,
    #[serde(default)]
    warning_states: Vec<Pattern>,
    #[serde(default)]
    critical_states: Vec<Pattern>,
    #[serde(default)]
    slack: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenLog {
    #[serde(default)]
    message: Vec<Pattern>,
    #[serde(default)]
    subject: Vec<Pattern>,
    severity: Option<Severity>,
    at_least: u32,
    within: Time,
    state: State,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenAbsent {
    of: Absent,
    #[serde(default)]
    kind: Vec<SensorKind>,
    #[serde(default)]
    name: Vec<Pattern>,
    #[serde(default)]
    except: Vec<Pattern>,
    state: State,
}

#[derive(PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Absent {
    Bmc,
    Sensor,
}

impl TryFrom<Written> for Rule {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let Written { name, off: _, holds, clear, while_on, part, reading, log, absent } = written;
        let test = match (reading, log, absent) {
            (Some(reading), None, None) => Test::Reading(ReadingTest {
                which: which(reading.kind, reading.name, reading.except)?,
                by_bmc: reading.by_bmc,
                warning: reading.warning,
                critical: reading.critical,
                warning_states: few(reading.warning_states)?,
                critical_states: few(reading.critical_states)?,
                slack: reading.slack,
            }),
            (None, Some(log), None) => Test::Log(LogTest {
                messages: few(log.message)?,
                subjects: few(log.subject)?,
                severity: log.severity,
                at_least: log.at_least,
                within: log.within.0,
                state: log.state,
            }),
            (None, None, Some(absent)) => {
                let sensors = which(absent.kind, absent.name, absent.except)?;
                match absent.of {
                    Absent::Sensor => Test::AbsentSensor(sensors, absent.state),
                    Absent::Bmc if sensors != Which::default() => {
                        return Err("the absence of a BMC is no sensor's: it takes no `kind` and no names".into());
                    }
                    Absent::Bmc => Test::AbsentBmc(absent.state),
                }
            }
            _ => return Err("takes exactly one of `reading`, `log` and `absent`".into()),
        };
        Ok(Self { name, holds: holds.0, clears: clear.0, while_on, part, test })
    }
}

fn which(kinds: Vec<SensorKind>, names: Vec<Pattern>, except: Vec<Pattern>) -> Result<Which, String> {
    Ok(Which { kinds, names: few(names)?, except: few(except)? })
}

fn few(patterns: Vec<Pattern>) -> Result<Vec<Pattern>, String> {
    if patterns.len() > MAX_PATTERNS {
        return Err(format!("there are more than {MAX_PATTERNS} patterns in a list"));
    }
    Ok(patterns)
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_rules_that_come_with_the_product_are_right() {
        let rules = Rules::with(&[]).unwrap();
        let names: Vec<_> = rules.iter().map(|rule| rule.name.as_str()).collect();
        expect![[r#"temperature fan voltage power-supply drive processor memory-sensor memory-uncorrectable memory-correctable memory-correctable-storm pcie-fatal drive-predicted machine-check fan-absent bmc-silent"#]]
            .assert_eq(&names.join(" "));
    }

    #[test]
    fn a_mistake_is_told_with_its_file_and_line() {
        let check = |text: &str, expected: Expect| {
            let told = Rules::read([("site.toml", text)]).err().map(|bad| bad.to_string());
            expected.assert_eq(&told.unwrap_or_default());
        };
        let rule = |rest: &str| format!("# ours\n\n[[rule]]\nname = \"hot\"\n{rest}");
        check(
            &rule("[rule.reading]\nby_bmc = treu"),
            expect![[r#"site.toml, line 6: invalid boolean, expected `true`"#]],
        );
        check(
            &rule("colour = 1"),
            expect![[
                r#"site.toml, line 5: unknown field `colour`, expected one of `name`, `off`, `for`, `clear`, `while_on`, `part`, `reading`, `log`, `absent`"#
            ]],
        );
        check(
            &rule("for = \"soon\""),
            expect![[r#"site.toml, line 5: is a time such as `90s`, `5m`, `24h` or `7d`, at most 31d"#]],
        );
        check(&rule(""), expect!["site.toml, line 3: rule `hot`: takes exactly one of `reading`, `log` and `absent`"]);
        check(
            &rule("reading = {}"),
            expect![
                "site.toml, line 3: rule `hot`: `reading` says nothing: it takes `by_bmc`, `warning`, `critical`, or states of them"
            ],
        );
        check(
            &rule("reading = { warning = { above = 80 }, critical = { above = 70 } }"),
            expect!["site.toml, line 3: rule `hot`: `critical` begins before `warning` does"],
        );
        check(
            &rule("reading = { warning = { above = 80, below = 78 }, slack = 2 }"),
            expect![
                "site.toml, line 3: rule `hot`: no value is inside: `below` and `above` are closer than twice `slack`"
            ],
        );
        check(
            &rule("log = { at_least = 1, within = \"1h\", state = \"warning\" }"),
            expect![
                "site.toml, line 3: rule `hot`: `log` is about every entry: it takes `message`, `subject` or `severity`"
            ],
        );
        check(
            &rule("absent = { of = \"bmc\", state = \"ok\" }"),
            expect!["site.toml, line 3: rule `hot`: `state` is unknown, warning or critical"],
        );
        check(
            &rule("part = \"fan {slot}\"\nreading = { by_bmc = true }"),
            expect!["site.toml, line 3: rule `hot`: `part` is at most 128 bytes, and knows `{subject}` alone"],
        );
        let twice = format!("{}\n{}", rule("reading = { by_bmc = true }"), rule("reading = { by_bmc = true }"));
        check(&twice, expect!["site.toml, line 8: there are two rules `hot` in this file"]);
    }

    #[test]
    fn a_rule_of_a_later_file_takes_the_place_of_an_earlier_one_or_removes_it() {
        let own = "[[rule]]\nname = \"fan\"\noff = true\n\n[[rule]]\nname = \"temperature\"\nreading = { warning = { above = 30 } }\n";
        let rules = Rules::with(&[("site.toml".into(), own.into())]).unwrap();
        assert_eq!(rules.named("fan"), None);
        let Test::Reading(test) = &rules.named("temperature").unwrap().test else { panic!() };
        assert_eq!(test.warning.above, Some(30.0));
    }

    #[test]
    fn patterns_stand_for_all_of_a_name() {
        for (pattern, text, expected) in [
            ("*ecc*", "Correctable ECC / other", true),
            ("fan?", "FAN1", true),
            ("fan?", "FAN12", false),
            ("cpu* temp", "CPU1 DTS Temp", true),
            ("*a*b*", "xxaxxb", true),
            ("*a*b", "xxaxxbx", false),
            ("temp", "temperature", false),
            ("*", "", true),
        ] {
            assert_eq!(Pattern::try_from(pattern.to_owned()).unwrap().matches(text), expected, "{pattern} {text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_is_a_panic(text in "\\PC{0,200}") {
            let _ = Rules::read([("any.toml", text.as_str())]);
        }

        #[test]
        fn a_pattern_between_stars_is_found_wherever_it_is(before in "[a-z]{0,9}", word in "[a-z]{1,5}", after in "[a-z]{0,9}") {
            let pattern = Pattern::try_from(format!("*{word}*")).unwrap();
            let with = format!("{before}{word}{after}");
            prop_assert!(pattern.matches(&with));
            let without = format!("{before}{after}");
            prop_assert_eq!(pattern.matches(&without), without.contains(&word));
        }
    }
}
