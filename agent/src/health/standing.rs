//! What the rules make of one machine, from one look at its BMC to the next. No IO, no clock.
//!
//! Invariants:
//! - A finding begins when it has been so for as long as its rule says, and ends when it has been
//!   over for as long: between two changes of a finding lies at least the shorter of both.
//! - What nobody can read proves nothing: a finding stays as it is while its sensor reads nothing,
//!   until it is [forgotten](FORGET).
//! - What was found is found again after a restart; what was only beginning begins anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::Timestamp;
use rackhand_common::{
    bmc::{Log, LogEntry, Reading, SensorKind, Sensors},
    health::{Cause, MAX_CAUSES, State, Verdict},
    machine::Power,
    time::{Mono, Now, Remaining},
};
use serde::{Deserialize, Serialize};

use super::rules::{Rule, Rules, Test};

/// The most sensors of one machine that are looked at.
pub const MAX_SENSORS: usize = 512;

/// The most findings of one machine, those that are only beginning included.
const MAX_FINDINGS: usize = 4096;

/// The most entries of a log that are counted at a time.
const MAX_ARRIVALS: usize = 8192;

/// How long a sensor may read nothing before it is not waited for any more.
const FORGET: Duration = Duration::from_secs(7 * 24 * 3600);

/// What a rule that is about the BMC itself finds.
const BMC: &str = "BMC";

/// States that a rule can lead to, each of which begins and ends by itself.
const BAD: [State; 3] = [State::Unknown, State::Warning, State::Critical];

/// Something that counts once it has been so for a while, and until it has not for a while.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latch {
    on: bool,
    /// Since when it is otherwise.
    against: Option<Mono>,
}

impl Latch {
    /// How it is now.
    pub fn see(&mut self, now: Mono, is_so: bool, holds: Duration, clears: Duration) {
        if is_so == self.on {
            self.against = None;
            return;
        }
        let since = *self.against.get_or_insert(now);
        if since.until(now) >= if self.on { clears } else { holds } {
            *self = Self { on: is_so, against: None };
        }
    }

    /// Whether it counts.
    pub fn is_on(self) -> bool {
        self.on
    }
}

/// What one rule makes of one sensor or part.
#[derive(Clone, Debug, PartialEq)]
struct Finding {
    /// Of each of [`BAD`].
    latches: [Latch; 3],
    /// What was read last.
    reading: String,
    part: Option<String>,
    /// When its state changed last.
    since: Timestamp,
    /// When it could be told last.
    told: Mono,
}

impl Finding {
    fn new(now: Now) -> Self {
        Self { latches: [Latch::default(); 3], reading: String::new(), part: None, since: now.wall, told: now.mono }
    }

    fn state(&self) -> State {
        let on = BAD.into_iter().zip(self.latches).filter(|(_, latch)| latch.is_on());
        on.map(|(state, _)| state).max().unwrap_or(State::Ok)
    }

    /// Whether there is anything to remember.
    fn is_idle(&self) -> bool {
        self.latches.iter().all(|latch| *latch == Latch::default())
    }
}

/// An entry of a log that still counts.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Arrival {
    rule: String,
    subject: String,
    message: String,
    /// Until when.
    until: Mono,
}

/// How far the log was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    id: String,
    message: String,
}

/// One machine, as far as the rules have looked at it.
#[derive(Clone, Debug, PartialEq)]
pub struct Watched {
    findings: BTreeMap<(String, String), Finding>,
    /// Sensors that have read something, and when they last did.
    sensors: BTreeMap<String, (SensorKind, Mono)>,
    arrivals: Vec<Arrival>,
    /// The newest entry that was read, `None` of an empty log; absent before the first look.
    mark: Option<Option<Mark>>,
    power: Option<Power>,
    state: State,
    since: Timestamp,
    /// Whether anything was decided yet.
    is_known: bool,
    /// What was told last.
    told: Option<Verdict>,
    /// Whether there is something to remember that is not yet.
    is_changed: bool,
}

/// What is remembered of a machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Memory {
    findings: Vec<Remembered>,
    sensors: BTreeMap<String, SensorKind>,
    arrivals: Vec<(String, String, String, Remaining)>,
    mark: Option<Option<Mark>>,
    state: State,
    since: Timestamp,
    is_known: bool,
    told: Option<Verdict>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Remembered {
    rule: String,
    subject: String,
    on: Vec<State>,
    reading: String,
    part: Option<String>,
    since: Timestamp,
}

impl Watched {
    /// A machine that nothing is known of.
    pub fn new(now: Now) -> Self {
        Self {
            findings: BTreeMap::new(),
            sensors: BTreeMap::new(),
            arrivals: Vec::new(),
            mark: None,
            power: None,
            state: State::Unknown,
            since: now.wall,
            is_known: false,
            told: None,
            is_changed: false,
        }
    }

    /// One that this is remembered of.
    pub fn of(memory: Memory, now: Now) -> Self {
        let finding = |remembered: Remembered| {
            let Remembered { rule, subject, on, reading, part, since } = remembered;
            let latches = BAD.map(|state| Latch { on: on.contains(&state), against: None });
            ((rule, subject), Finding { latches, reading, part, since, told: now.mono })
        };
        let arrival = |(rule, subject, message, left): (String, String, String, Remaining)| Arrival {
            rule,
            subject,
            message,
            until: left.anchor(now),
        };
        Self {
            findings: memory.findings.into_iter().map(finding).collect(),
            sensors: memory.sensors.into_iter().map(|(name, kind)| (name, (kind, now.mono))).collect(),
            arrivals: memory.arrivals.into_iter().map(arrival).collect(),
            mark: memory.mark,
            power: None,
            state: memory.state,
            since: memory.since,
            is_known: memory.is_known,
            told: memory.told,
            is_changed: false,
        }
    }

    /// What is to be remembered of it.
    pub fn memory(&self, now: Now) -> Memory {
        let found = self.findings.iter().filter(|(_, finding)| finding.state() != State::Ok);
        let remembered = |((rule, subject), finding): (&(String, String), &Finding)| Remembered {
            rule: rule.clone(),
            subject: subject.clone(),
            on: BAD
                .into_iter()
                .zip(finding.latches)
                .filter(|(_, latch)| latch.is_on())
                .map(|(state, _)| state)
                .collect(),
            reading: finding.reading.clone(),
            part: finding.part.clone(),
            since: finding.since,
        };
        let arrival = |arrival: &Arrival| {
            let Arrival { rule, subject, message, until } = arrival.clone();
            (rule, subject, message, Remaining::of(now, until))
        };
        Memory {
            findings: found.map(remembered).collect(),
            sensors: self.sensors.iter().map(|(name, (kind, _))| (name.clone(), *kind)).collect(),
            arrivals: self.arrivals.iter().map(arrival).collect(),
            mark: self.mark.clone(),
            state: self.state,
            since: self.since,
            is_known: self.is_known,
            told: self.told.clone(),
        }
    }

    /// How it fares; `None` while that was never decided.
    pub fn verdict(&self) -> Option<Verdict> {
        if !self.is_known {
            return None;
        }
        let mut causes: Vec<Cause> = self
            .findings
            .iter()
            .filter(|(_, finding)| finding.state() != State::Ok)
            .map(|((rule, subject), finding)| Cause {
                rule: rule.clone(),
                state: finding.state(),
                subject: subject.clone(),
                reading: finding.reading.clone(),
                since: finding.since,
                part: finding.part.clone(),
            })
            .collect();
        causes.sort_by_key(|cause| std::cmp::Reverse(cause.state));
        causes.truncate(MAX_CAUSES);
        Some(Verdict { state: self.state, since: self.since, causes })
    }

    /// The verdict, when it says something else than was told last.
    pub fn news(&self) -> Option<Verdict> {
        let verdict = self.verdict()?;
        (!self.told.as_ref().is_some_and(|told| told.says_as(&verdict))).then_some(verdict)
    }

    /// This was told.
    pub fn has_told(&mut self, verdict: Verdict) {
        self.told = Some(verdict);
        self.is_changed = true;
    }

    /// Whether there is something to remember that is not yet.
    pub fn is_changed(&self) -> bool {
        self.is_changed
    }

    /// What there was to remember is.
    pub fn has_remembered(&mut self) {
        self.is_changed = false;
    }

    /// Its BMC told what its sensors read, and whether the machine is switched on, as far as it
    /// knows.
    pub fn sensors(&mut self, rules: &Rules, now: Now, power: Option<Power>, sensors: &Sensors) {
        self.power = power;
        self.is_known = true;
        let readings: BTreeMap<String, &Reading> = distinct(sensors).into_iter().collect();
        for (name, reading) in &readings {
            if reads(reading) && self.sensors.insert(name.clone(), (reading.kind, now.mono)).is_none() {
                self.is_changed = true;
            }
        }
        self.sensors.retain(|_, (_, read)| read.until(now.mono) < FORGET);
        let mut told = BTreeSet::new();
        for rule in rules.iter() {
            if rule.while_on && self.power == Some(Power::Off) {
                continue;
            }
            match &rule.test {
                Test::Reading(test) => {
                    for (name, reading) in &readings {
                        if !test.which.is_about(name, reading.kind) {
                            continue;
                        }
                        let key = (rule.name.clone(), name.clone());
                        let was = self.findings.get(&key).map(|finding| finding.latches).unwrap_or_default();
                        let is = |state, latch: Latch| test.is(state, reading, latch.is_on());
                        let (warning, critical) = (is(State::Warning, was[1]), is(State::Critical, was[2]));
                        told.insert(key);
                        if warning.is_some() || critical.is_some() {
                            let levels = [Some(false), Some(warning == Some(true) || critical == Some(true)), critical];
                            self.find(rule, now, name, levels, || in_words(reading));
                        }
                    }
                }
                Test::AbsentSensor(which, state) => {
                    let known: Vec<_> = self.sensors.iter().map(|(name, (kind, _))| (name.clone(), *kind)).collect();
                    for (name, _) in known.into_iter().filter(|(name, kind)| which.is_about(name, *kind)) {
                        let is_absent = !readings.get(&name).is_some_and(|reading| reads(reading));
                        told.insert((rule.name.clone(), name.clone()));
                        self.find(rule, now, &name, only(*state, is_absent), || "reads nothing".into());
                    }
                }
                Test::AbsentBmc(state) => {
                    told.insert((rule.name.clone(), BMC.to_owned()));
                    self.find(rule, now, BMC, only(*state, false), String::new);
                }
                Test::Log(_) => {}
            }
        }
        // What no rule is about any more, and what nobody could tell for too long.
        let before = self.findings.len();
        self.findings.retain(|key, finding| {
            let rule = rules.named(&key.0);
            match rule.map(|rule| &rule.test) {
                None => false,
                Some(Test::Log(_)) => true,
                Some(_) if told.contains(key) => true,
                Some(_) if rule.is_some_and(|rule| rule.while_on) && power == Some(Power::Off) => true,
                Some(_) => !readings.contains_key(&key.1) && finding.told.until(now.mono) < FORGET,
            }
        });
        self.is_changed |= self.findings.len() != before;
        self.count(rules, now);
        self.settle(now);
    }

    /// Its BMC told what is in the hardware's event log.
    pub fn log(&mut self, rules: &Rules, now: Now, log: &Log) {
        let entries: &[LogEntry] = match &self.mark {
            // What was there before counts for nothing: nobody knows when it was looked at.
            None => &[],
            Some(None) => &log.entries,
            Some(Some(mark)) => {
                let is_it = |entry: &LogEntry| entry.id == mark.id && entry.message == mark.message;
                // A log without it was cleared, or went round.
                log.entries.iter().rposition(is_it).map_or(&log.entries[..], |at| &log.entries[at + 1..])
            }
        };
        for rule in rules.iter() {
            let Test::Log(test) = &rule.test else { continue };
            for entry in entries.iter().filter(|entry| test.is_about(entry)) {
                self.arrivals.push(Arrival {
                    rule: rule.name.clone(),
                    subject: entry.subject.clone().unwrap_or_else(|| "the machine".into()),
                    message: entry.message.clone(),
                    until: now.mono.plus(test.within),
                });
            }
        }
        // The oldest go: more than any rule asks for came since.
        let too_many = self.arrivals.len().saturating_sub(MAX_ARRIVALS);
        self.arrivals.drain(..too_many);
        let newest = log.entries.last();
        let mark = Some(newest.map(|entry| Mark { id: entry.id.clone(), message: entry.message.clone() }));
        self.is_changed |= mark != self.mark || !entries.is_empty();
        self.mark = mark;
        self.count(rules, now);
        self.settle(now);
    }

    /// Its BMC did not answer, for this reason.
    pub fn silent(&mut self, rules: &Rules, now: Now, reason: &str) {
        for rule in rules.iter() {
            if let Test::AbsentBmc(state) = &rule.test {
                self.find(rule, now, BMC, only(*state, true), || reason.to_owned());
            }
        }
        self.count(rules, now);
        self.settle(now);
        // That it does not answer is decided once it has not for a while.
        self.is_known |= self.state != State::Ok;
    }

    /// Counts what came in the log lately.
    fn count(&mut self, rules: &Rules, now: Now) {
        self.arrivals.retain(|arrival| arrival.until > now.mono);
        let mut counted: BTreeMap<(String, String), (u32, String)> = BTreeMap::new();
        for arrival in &self.arrivals {
            let count = counted.entry((arrival.rule.clone(), arrival.subject.clone())).or_default();
            *count = (count.0 + 1, arrival.message.clone());
        }
        for rule in rules.iter() {
            let Test::Log(test) = &rule.test else { continue };
            let known = self.findings.keys().filter(|(name, _)| *name == rule.name).map(|(_, subject)| subject.clone());
            let came = counted.keys().filter(|(name, _)| *name == rule.name).map(|(_, subject)| subject.clone());
            for subject in known.chain(came).collect::<BTreeSet<_>>() {
                let (count, message) = counted.get(&(rule.name.clone(), subject.clone())).cloned().unwrap_or_default();
                let hours = test.within.as_secs().div_ceil(3600);
                let words = || match count {
                    1 => format!("in the log: {message}"),
                    _ => format!("{count} times in the log within {hours} h: {message}"),
                };
                self.find(rule, now, &subject, only(test.state, count >= test.at_least), words);
            }
        }
    }

    /// What a rule finds now, of each of [`BAD`], as far as that can be told.
    fn find(&mut self, rule: &Rule, now: Now, subject: &str, is: [Option<bool>; 3], words: impl FnOnce() -> String) {
        let key = (rule.name.clone(), subject.to_owned());
        let is_found = is.contains(&Some(true));
        if !self.findings.contains_key(&key) && (!is_found || self.findings.len() >= MAX_FINDINGS) {
            return;
        }
        let finding = self.findings.entry(key.clone()).or_insert_with(|| Finding::new(now));
        let before = finding.state();
        for (latch, is_so) in finding.latches.iter_mut().zip(is) {
            if let Some(is_so) = is_so {
                latch.see(now.mono, is_so, rule.holds, rule.clears);
            }
        }
        finding.told = now.mono;
        if is_found {
            finding.reading = words();
            finding.part = rule.part(subject);
        }
        if finding.state() != before {
            finding.since = now.wall;
            self.is_changed = true;
        }
        if finding.is_idle() {
            self.findings.remove(&key);
        }
    }

    fn settle(&mut self, now: Now) {
        let state = self.findings.values().map(Finding::state).max().unwrap_or(State::Ok);
        if state != self.state {
            (self.state, self.since) = (state, now.wall);
            self.is_changed = true;
        }
    }
}

/// Only this of [`BAD`].
fn only(state: State, is_so: bool) -> [Option<bool>; 3] {
    BAD.map(|bad| Some(bad == state && is_so))
}

/// Whether a sensor reads anything.
fn reads(reading: &Reading) -> bool {
    reading.value.is_some_and(f64::is_finite) || !reading.states.is_empty()
}

/// Sensors under names of which there is one each: a second one of a name is `NAME (2)`.
pub fn distinct(sensors: &Sensors) -> Vec<(String, &Reading)> {
    let mut seen: BTreeMap<&str, u32> = BTreeMap::new();
    let mut named = Vec::new();
    for reading in sensors.readings.iter().take(MAX_SENSORS) {
        let name = &reading.name;
        let number = seen.entry(name).or_default();
        *number += 1;
        named.push((if *number == 1 { name.clone() } else { format!("{name} ({number})") }, reading));
    }
    named
}

/// What a sensor reads, and where its line is, for people.
fn in_words(reading: &Reading) -> String {
    let unit = reading.kind.unit();
    let valued = |value: f64| format!("{} {unit}", (value * 1000.0).round() / 1000.0).trim_end().to_owned();
    let states = reading.states.join(", ");
    let Some(value) = reading.value.filter(|value| value.is_finite()) else {
        return if states.is_empty() { "not as it should be, says its BMC".into() } else { states };
    };
    let limits = &reading.thresholds;
    let over = [limits.upper_critical, limits.upper_warning].into_iter().flatten().find(|line| value >= *line);
    let under = [limits.lower_critical, limits.lower_warning].into_iter().flatten().find(|line| value <= *line);
    match (over, under) {
        (Some(line), _) => format!("{}, at most {}", valued(value), valued(line)),
        (None, Some(line)) => format!("{}, at least {}", valued(value), valued(line)),
        (None, None) => valued(value),
    }
}

#[cfg(test)]
mod tests;
