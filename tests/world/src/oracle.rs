//! What must hold of every history, named after the promises (`docs/promises.md`).

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::Ipv4Addr,
    time::Duration,
};

use jiff::Timestamp;
use rackhand_common::{
    event::What,
    id::{CommandId, Epoch, MachineId, RunId},
    intent::Intent,
    machine::{Disk, Mac},
};
use rackhand_controller::store::{Happened, Machine, Run, StoredEvent};
use rackhand_controller_core::lifecycle::Lifecycle;

use crate::{history::clock, hub::Asked};

/// What was promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Promise {
    /// No erase, image or power change of an allocated machine but by a run asked for since.
    P1,
    /// No address on two machines.
    P2,
    /// An acknowledged lease is there after a crash.
    P3,
    /// Known machines boot while their rack is cut off.
    P4,
    /// A command has its effect at most once, in its time and epoch.
    P5,
    /// Every run waits for something named, and is overdue in time.
    P6,
    /// Events arrive once, in order, or are counted.
    P7,
    /// Revisions, connection numbers and epochs only rise.
    Forward,
    /// After faults stop, everything comes to rest.
    Converges,
}

impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// A promise that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub promise: Promise,
    /// When.
    pub at: Duration,
    /// How, for people.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} broken at {}: {}", self.promise, clock(self.at), self.what)
    }
}

/// How long after its limit a run that stands still has to be noticed.
const ALERT: Duration = Duration::from_secs(60);

/// A command's performance, as the agent's process that performs it knows it.
#[derive(Clone, Copy, Debug)]
pub struct Performance {
    /// Tells performances apart.
    pub number: u64,
    /// When the command was received, by the world's time.
    pub received: Duration,
    /// When it was begun.
    pub begun: Duration,
    /// How long after its receipt it might be begun.
    pub within: Duration,
    /// The machine's epoch in the agent's intent when it was begun.
    pub epoch: Option<Epoch>,
}

/// Everything the oracles remember.
#[derive(Debug, Default)]
pub struct Oracles {
    /// What did not hold; of each promise the first time.
    pub violations: Vec<Violation>,
    leases: BTreeMap<(usize, Mac), Ipv4Addr>,
    performances: BTreeMap<CommandId, u64>,
    limits: BTreeMap<RunId, Limit>,
    revisions: BTreeMap<(usize, &'static str), u64>,
    epochs: BTreeMap<(usize, &'static str, MachineId), Epoch>,
    connections: BTreeMap<usize, u64>,
    /// Notes whose storing was confirmed, by source.
    noted: BTreeMap<String, BTreeSet<u64>>,
}

#[derive(Debug)]
struct Limit {
    until: Timestamp,
    left: Duration,
    deadline: Duration,
}

impl Oracles {
    /// Something did not hold.
    pub fn broken(&mut self, promise: Promise, at: Duration, what: impl Into<String>) {
        if self.violations.iter().all(|known| known.promise != promise) {
            self.violations.push(Violation { promise, at, what: what.into() });
        }
    }

    /// P1: an installer writes for this order, on a machine with these disks.
    pub fn writes(
        &mut self,
        at: Duration,
        place: &str,
        row: Option<&Machine>,
        (run, epoch): (RunId, Epoch),
        disks: &[String],
    ) {
        let Some(row) = row else {
            return self.broken(Promise::P1, at, format!("{place}, which nobody knows, is written by run {run}"));
        };
        let allocated = matches!(row.lifecycle, Lifecycle::Active | Lifecycle::Deploying | Lifecycle::Releasing);
        if row.lifecycle == Lifecycle::Active || (allocated && row.epoch != epoch) {
            let what = format!(
                "{place} is {} in epoch {} and is written by run {run} of epoch {epoch}",
                row.lifecycle, row.epoch
            );
            self.broken(Promise::P1, at, what);
        }
        let accepted = row.accepted.iter().flat_map(|parts| &parts.disks);
        let accepted: BTreeSet<_> = accepted.filter_map(Disk::identity).collect();
        if let Some(other) = disks.iter().find(|disk| !accepted.contains(*disk)) {
            let what = format!("run {run} writes on {place} with disk {other}, which nobody accepted");
            self.broken(Promise::P1, at, what);
        }
    }

    /// P1: a machine is switched by this command.
    pub fn switches(&mut self, at: Duration, place: &str, row: Option<&Machine>, command: CommandId, asked: &Asked) {
        let Some(row) = row else { return };
        let allocated = matches!(row.lifecycle, Lifecycle::Active | Lifecycle::Deploying | Lifecycle::Releasing);
        let foreign = row.lifecycle == Lifecycle::Active && !asked.is_power;
        if allocated && (foreign || row.epoch != asked.epoch) {
            let what = format!(
                "{place} is {} in epoch {} and is switched by command {command} of epoch {}",
                row.lifecycle, row.epoch, asked.epoch
            );
            self.broken(Promise::P1, at, what);
        }
    }

    /// P5: a performance of a command has an effect.
    pub fn effect(&mut self, at: Duration, command: CommandId, asked: &Asked, performance: Performance) {
        let first = *self.performances.entry(command).or_insert(performance.number);
        if first != performance.number {
            self.broken(Promise::P5, at, format!("command {command} has its effect a second time"));
        }
        if performance.begun > performance.received + performance.within {
            self.broken(Promise::P5, at, format!("command {command} is begun after its time"));
        }
        if performance.epoch != Some(asked.epoch) {
            let what = format!("command {command} of epoch {} is begun in {:?}", asked.epoch, performance.epoch);
            self.broken(Promise::P5, at, what);
        }
    }

    /// P2: a machine was acknowledged an address; those of the rack that run hold these.
    pub fn acknowledged(
        &mut self,
        at: Duration,
        (rack, place, mac, address): (usize, &str, Mac, Ipv4Addr),
        others: impl Iterator<Item = (String, Ipv4Addr)>,
        planned: bool,
    ) {
        for (other, held) in others {
            if held == address {
                self.broken(Promise::P2, at, format!("{place} is given {address}, which {other} has"));
            }
        }
        if planned {
            self.leases.remove(&(rack, mac));
            return;
        }
        if let Some(before) = self.leases.insert((rack, mac), address)
            && before != address
        {
            self.broken(Promise::P3, at, format!("{place} had {before} and is given {address}"));
        }
    }

    /// P3: boot has started and says who has which address.
    pub fn restarted(&mut self, at: Duration, rack: usize, holder: impl Fn(Mac) -> Option<(Ipv4Addr, bool)>) {
        let known: Vec<_> = self.leases.iter().filter(|((of, _), _)| *of == rack).map(|(k, v)| (*k, *v)).collect();
        for ((_, mac), address) in known {
            match holder(mac) {
                Some((_, true)) => drop(self.leases.remove(&(rack, mac))),
                Some((found, false)) if found == address => {}
                found => {
                    let found = found.map_or("nothing".to_owned(), |(found, _)| found.to_string());
                    self.broken(Promise::P3, at, format!("{mac} was given {address}; after the crash it has {found}"));
                }
            }
        }
    }

    /// P6: the runs in progress after a pass of the runner.
    pub fn runs(&mut self, at: Duration, wall: Timestamp, up_since: Duration, runs: &[Run]) {
        // Those that have moved on since the last look, perhaps because they were overdue.
        let moved = |id: &RunId, limit: &Limit| {
            runs.iter().find(|run| run.id == *id).is_none_or(|run| run.waiting_until != Some(limit.until))
        };
        let overdue =
            self.limits.iter().filter(|(id, limit)| moved(id, limit) && at > limit.deadline.max(up_since) + ALERT);
        let late: Vec<_> = overdue.map(|(id, limit)| (*id, (at - limit.deadline).as_secs())).collect();
        for (run, late) in late {
            self.broken(Promise::P6, at, format!("run {run} was looked at {late} s after its limit"));
        }
        self.limits.retain(|id, _| runs.iter().any(|run| run.id == *id));
        for run in runs {
            let (Some(waiting), Some(until)) = (run.waiting_for, run.waiting_until) else {
                self.broken(Promise::P6, at, format!("run {} waits for nothing that has a name", run.id));
                continue;
            };
            let known = self.limits.get(&run.id).filter(|known| known.until == until);
            let deadline = match known {
                Some(known) => known.deadline,
                None => {
                    let left = Duration::try_from(until.duration_since(wall)).unwrap_or_default();
                    self.limits.insert(run.id, Limit { until, left, deadline: at + left });
                    at + left
                }
            };
            if at > deadline.max(up_since) + ALERT {
                let late = (at - deadline).as_secs();
                let what = format!("run {} has waited for {waiting} {late} s longer than it may", run.id);
                self.broken(Promise::P6, at, what);
            }
        }
    }

    /// The runner starts anew: deadlines are what was left of them when they were stored.
    pub fn runner_restarted(&mut self, at: Duration) {
        for limit in self.limits.values_mut() {
            limit.deadline = at + limit.left;
        }
    }

    /// Revisions and epochs of an intent somebody has on disk.
    pub fn intent(&mut self, at: Duration, rack: usize, who: &'static str, intent: &Intent) {
        let last = self.revisions.entry((rack, who)).or_default();
        if intent.revision < *last {
            let what = format!("r{}'s {who} went from revision {last} to {}", rack + 1, intent.revision);
            self.broken(Promise::Forward, at, what);
        } else {
            *last = intent.revision;
        }
        for machine in &intent.machines {
            let last = self.epochs.entry((rack, who, machine.id)).or_insert(machine.epoch);
            if machine.epoch < *last {
                let what = format!("r{}'s {who} went from epoch {last} to {}", rack + 1, machine.epoch);
                self.broken(Promise::Forward, at, what);
            } else {
                *last = machine.epoch;
            }
        }
    }

    /// Somebody has started and has no intent.
    pub fn without_intent(&mut self, at: Duration, rack: usize, who: &'static str) {
        if let Some(last) = self.revisions.get(&(rack, who)) {
            let what = format!("r{}'s {who} had an intent of revision {last} and starts without one", rack + 1);
            self.broken(Promise::Forward, at, what);
        }
    }

    /// An agent takes a connection's number.
    pub fn connection(&mut self, at: Duration, rack: usize, number: u64) {
        let last = self.connections.entry(rack).or_default();
        if number <= *last {
            let what = format!("r{}'s agent went from connection {last} to {number}", rack + 1);
            self.broken(Promise::Forward, at, what);
        } else {
            *last = number;
        }
    }

    /// P7: a note is on a spool's disk.
    pub fn noted(&mut self, source: &str, number: u64) {
        self.noted.entry(source.to_owned()).or_default().insert(number);
    }

    /// How many notes were stored.
    pub fn notes(&self) -> usize {
        self.noted.values().map(BTreeSet::len).sum()
    }

    /// P7: everything the controller has of a rack, when all spools are empty.
    pub fn events(&mut self, at: Duration, sources: &[String], events: &[StoredEvent]) {
        let mut lost = 0;
        let mut last: BTreeMap<&str, u64> = BTreeMap::new();
        let mut arrived: BTreeMap<&str, BTreeSet<u64>> = BTreeMap::new();
        for event in events {
            match &event.body {
                Happened::Told(What::Gap { lost: count }) => lost += count,
                Happened::Told(What::TicketRefused { reason }) => {
                    let Some((number, source)) = note(reason) else { continue };
                    let last = last.entry(source).or_default();
                    if number <= *last {
                        let what = format!("note {number} of {source} comes after note {last}");
                        self.broken(Promise::P7, at, what);
                    }
                    *last = number;
                    arrived.entry(source).or_default().insert(number);
                }
                _ => {}
            }
        }
        let mut missing = Vec::new();
        for source in sources {
            let Some(noted) = self.noted.get(source) else { continue };
            let empty = BTreeSet::new();
            let arrived = arrived.get(source.as_str()).unwrap_or(&empty);
            missing.extend(noted.difference(arrived).map(|number| format!("{number} of {source}")));
        }
        if missing.len() as u64 > lost {
            let what = format!("notes {} are missing, {lost} are counted in gaps", missing.join(", "));
            self.broken(Promise::P7, at, what);
        }
    }
}

/// The text of a note.
pub fn note_text(number: u64, source: &str) -> String {
    format!("note {number} of {source}")
}

fn note(text: &str) -> Option<(u64, &str)> {
    let (number, source) = text.strip_prefix("note ")?.split_once(" of ")?;
    Some((number.parse().ok()?, source))
}
