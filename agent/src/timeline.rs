//! What happened to each machine lately, for the technician who stands in front of it with
//! the controller out of reach.
//!
//! Every event the agent's spool stores is noted here in the same transaction, and stays
//! after the controller has taken it. Bounded: the latest [`PER_MACHINE`] events of each of
//! at most [`MACHINES`] machines; the machine that was silent longest makes room. What its installer found
//! in it last is kept however old it is.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use redb::{Database, ReadableTable, TableDefinition, WriteTransaction};

use rackhand_common::{
    event::{Event, Stage, What},
    hardware::Hardware,
    health::Verdict,
    id::MachineId,
    machine::{Inventory, Mac, Power},
};

use crate::spool::SpoolError;

/// Events kept of one machine: a deploy makes about twenty.
pub const PER_MACHINE: usize = 200;

/// Machines kept: twice the most a rack's intent lists.
pub const MACHINES: usize = 2 * rackhand_common::intent::MAX_MACHINES;

/// By machine and by a number that counts up.
const TABLE: TableDefinition<(u128, u64), &[u8]> = TableDefinition::new("timelines");

/// A handle to the machines' timelines.
#[derive(Clone, Debug, Default)]
pub struct Timelines(Arc<Mutex<BTreeMap<MachineId, History>>>);

/// One machine's latest events and what they tell together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// Oldest first, with the numbers they are stored under.
    events: VecDeque<(u64, Event)>,
    /// The card its installer last connected from.
    pub mac: Option<Mac>,
    /// The address its installer last connected from.
    pub address: Option<std::net::Ipv4Addr>,
    /// Chassis power as last read.
    pub power: Option<Power>,
    /// Whether its installer is connected.
    pub installer: bool,
    /// How it fares, as was told last.
    pub health: Option<Verdict>,
}

/// What an installer found in its machine.
#[derive(Clone, Debug)]
pub struct Found {
    /// What it is.
    pub inventory: Inventory,
    /// What is in its slots, as far as it was told.
    pub hardware: Hardware,
    /// Whether that was told.
    pub is_detailed: bool,
}

/// What one transaction changes, to be known once it is committed.
#[derive(Debug, Default)]
pub(crate) struct Noted {
    touched: BTreeMap<MachineId, History>,
    evicted: Vec<MachineId>,
}

impl Timelines {
    /// The timelines in this store.
    pub fn open(database: &Database) -> Result<Self, SpoolError> {
        let tx = database.begin_write()?;
        let mut histories = BTreeMap::<MachineId, History>::new();
        for entry in tx.open_table(TABLE)?.iter()? {
            let (key, value) = entry?;
            let (machine, number) = key.value();
            // An event of a newer version that an older one cannot read is left out.
            if let Ok(event) = serde_json::from_slice::<Event>(value.value()) {
                let history = histories.entry(MachineId(uuid::Uuid::from_u128(machine))).or_default();
                history.learn(&event.what);
                history.events.push_back((number, event));
            }
        }
        tx.commit()?;
        Ok(Self(Arc::new(Mutex::new(histories))))
    }

    /// One machine's events, oldest first.
    pub fn events(&self, machine: MachineId) -> Vec<Event> {
        self.lock().get(&machine).map(|history| history.events().cloned().collect()).unwrap_or_default()
    }

    /// The number of a machine's latest event: later ones are higher.
    pub fn latest_number(&self, machine: MachineId) -> Option<u64> {
        self.lock().get(&machine)?.events.back().map(|(number, _)| *number)
    }

    /// What a machine's installer found in it last, by an event with a higher number than `after` when that
    /// is given; inside, `None` is before the first.
    pub fn found(&self, machine: MachineId, after: Option<Option<u64>>) -> Option<Found> {
        self.lock().get(&machine)?.found(after)
    }

    /// All machines that anything is known of.
    pub fn all(&self) -> BTreeMap<MachineId, History> {
        self.lock().clone()
    }

    /// Notes these events within the transaction that stores them. The result is to be given
    /// to [`Timelines::committed`] when that is on disk.
    pub(crate) fn store(&self, tx: &WriteTransaction, events: &[Event]) -> Result<Noted, SpoolError> {
        let mut noted = Noted::default();
        if events.iter().all(|event| event.machine.is_none()) {
            return Ok(noted);
        }
        let mut table = tx.open_table(TABLE)?;
        for event in events {
            let Some(machine) = event.machine else { continue };
            if !noted.touched.contains_key(&machine) {
                let known = self.lock().get(&machine).cloned();
                if known.is_none()
                    && let Some(evicted) = self.room(&noted)
                {
                    table.retain_in((evicted.0.as_u128(), 0)..=(evicted.0.as_u128(), u64::MAX), |_, _| false)?;
                    noted.touched.remove(&evicted);
                    noted.evicted.push(evicted);
                }
                noted.touched.insert(machine, known.unwrap_or_default());
            }
            let history = noted.touched.get_mut(&machine).expect("inserted above");
            // Told again from time to time: it would push everything else out.
            if let (What::Health(verdict), Some(known)) = (&event.what, &history.health)
                && known.says_as(verdict)
            {
                continue;
            }
            let (number, removed) = history.note(event);
            let bytes = serde_json::to_vec(event).expect("events always serialize");
            table.insert((machine.0.as_u128(), number), bytes.as_slice())?;
            for number in removed {
                table.remove((machine.0.as_u128(), number))?;
            }
        }
        Ok(noted)
    }

    /// What was noted is on disk.
    pub(crate) fn committed(&self, noted: Noted) {
        let mut histories = self.lock();
        for machine in noted.evicted {
            histories.remove(&machine);
        }
        histories.extend(noted.touched);
    }

    /// The machine that must go for another to find a place, if one must.
    fn room(&self, noted: &Noted) -> Option<MachineId> {
        let histories = self.lock();
        let fresh = noted.touched.keys().filter(|machine| !histories.contains_key(machine)).count();
        if histories.len() + fresh < MACHINES + noted.evicted.len() {
            return None;
        }
        histories
            .iter()
            .filter(|(machine, _)| !noted.evicted.contains(machine))
            .min_by_key(|(_, history)| history.since())
            .map(|(machine, _)| *machine)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<MachineId, History>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl History {
    /// Its events, oldest first.
    pub fn events(&self) -> impl Iterator<Item = &Event> {
        self.events.iter().map(|(_, event)| event)
    }

    /// The latest of them.
    pub fn latest(&self) -> Option<&Event> {
        self.events.back().map(|(_, event)| event)
    }

    fn since(&self) -> Option<Timestamp> {
        self.latest().map(|event| event.at)
    }

    /// Notes one event; gives the number it is stored under and those to remove. Progress of
    /// a run replaces the progress before it: it would push everything else out.
    fn note(&mut self, event: &Event) -> (u64, Vec<u64>) {
        self.learn(&event.what);
        let number = self.events.back().map_or(0, |(number, _)| number + 1);
        let mut removed = Vec::new();
        let replaces = matches!(
            (self.latest().map(|latest| &latest.what), &event.what),
            (Some(What::Progress { run: before, .. }), What::Progress { run, .. }) if before == run
        );
        if replaces {
            removed.extend(self.events.pop_back().map(|(number, _)| number));
        }
        self.events.push_back((number, event.clone()));
        while self.events.len() > PER_MACHINE {
            let kept = [self.latest_that(is_connected), self.latest_that(is_hardware)];
            let oldest = (0..self.events.len()).find(|index| !kept.contains(&Some(*index)));
            removed.extend(oldest.and_then(|index| self.events.remove(index)).map(|(number, _)| number));
        }
        (number, removed)
    }

    fn latest_that(&self, is: fn(&What) -> bool) -> Option<usize> {
        self.events.iter().rposition(|(_, event)| is(&event.what))
    }

    fn found(&self, after: Option<Option<u64>>) -> Option<Found> {
        let at = self.latest_that(is_connected)?;
        let (number, event) = self.events.get(at)?;
        if after.is_some_and(|after| Some(*number) <= after) {
            return None;
        }
        let What::Connected { inventory, .. } = &event.what else { return None };
        let hardware = self.latest_that(is_hardware).filter(|index| *index > at);
        let hardware = hardware.and_then(|index| self.events.get(index)).and_then(|(_, event)| match &event.what {
            What::Hardware { hardware, .. } => Some(hardware.as_ref().clone()),
            _ => None,
        });
        let (inventory, is_detailed) = (inventory.clone(), hardware.is_some());
        Some(Found { inventory, hardware: hardware.unwrap_or_default(), is_detailed })
    }

    fn learn(&mut self, what: &What) {
        match what {
            What::Connected { mac, address, .. } => {
                self.mac = Some(*mac);
                self.address = Some(*address);
                self.installer = true;
                self.power = Some(Power::On);
            }
            What::Stage(Stage::Installer) => self.installer = true,
            What::Health(verdict) => self.health = Some(verdict.clone()),
            What::Stage(Stage::Rebooting | Stage::PoweredOn) | What::Lost | What::PhonedHome { .. } => {
                self.installer = false;
            }
            What::Power(power) => {
                self.power = Some(*power);
                self.installer &= *power == Power::On;
            }
            _ => {}
        }
    }
}

fn is_connected(what: &What) -> bool {
    matches!(what, What::Connected { .. })
}

fn is_hardware(what: &What) -> bool {
    matches!(what, What::Hardware { .. })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rackhand_common::id::RunId;

    use super::*;
    use crate::spool::{Spool, open_database};

    fn event(machine: MachineId, second: i64, what: What) -> Event {
        Event { at: Timestamp::from_second(second).unwrap(), machine: Some(machine), what }
    }

    fn open(dir: &tempfile::TempDir) -> (Timelines, Spool, Arc<Database>) {
        let database = open_database(&dir.path().join("agent.redb")).unwrap();
        let timelines = Timelines::open(&database).unwrap();
        let spool = Spool::within(database.clone(), 100_000, Some(timelines.clone())).unwrap();
        (timelines, spool, database)
    }

    #[tokio::test]
    async fn the_latest_events_stay_after_they_are_taken_and_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let (timelines, spool, database) = open(&dir);
        let machine = MachineId::fresh();
        let events = (0..250).map(|second| event(machine, second, What::Lost)).collect::<Vec<_>>();
        spool.append(events.clone()).await.unwrap();
        spool.acknowledge(251).await.unwrap();
        assert_eq!(timelines.events(machine), events[50..]);
        drop((timelines, spool, database));
        assert_eq!(open(&dir).0.events(machine), events[50..]);
    }

    #[tokio::test]
    async fn what_an_installer_found_last_is_kept_however_old_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let (timelines, spool, database) = open(&dir);
        let machine = MachineId::fresh();
        let mac: Mac = "52:54:00:12:34:56".parse().unwrap();
        let connected = |serial: &str| What::Connected {
            mac,
            address: "10.77.0.9".parse().unwrap(),
            inventory: Inventory {
                firmware: rackhand_common::machine::Firmware::Uefi,
                system: rackhand_common::machine::System { serial: serial.into(), ..Default::default() },
                cpu: Default::default(),
                memory: 1,
                nics: Vec::new(),
                disks: Vec::new(),
            },
        };
        let hardware =
            || What::Hardware { mac, hardware: Box::new(Hardware { tpm: Some("2.0".into()), ..Default::default() }) };
        let told = [connected("first"), hardware(), connected("last"), hardware()];
        let more = (0..300).map(|_| What::Lost);
        spool
            .append(told.into_iter().chain(more).zip(0..).map(|(what, at)| event(machine, at, what)).collect())
            .await
            .unwrap();
        let serial = |found: Option<Found>| found.map(|found| (found.inventory.system.serial, found.hardware.tpm));
        let last = Some(("last".to_owned(), Some("2.0".to_owned())));
        assert_eq!(timelines.events(machine).len(), PER_MACHINE);
        assert_eq!(serial(timelines.found(machine, None)), last);
        // It is number 2, counted from 0.
        assert_eq!(serial(timelines.found(machine, Some(Some(1)))), last);
        assert!(timelines.found(machine, Some(Some(2))).is_none());
        // Until the details of a new one are told, those of the one before are another machine's.
        spool.append(vec![event(machine, 400, connected("fresh"))]).await.unwrap();
        let fresh = timelines.found(machine, None).unwrap();
        assert_eq!((fresh.is_detailed, fresh.hardware), (false, Hardware::default()));
        drop((timelines, spool, database));
        assert_eq!(serial(open(&dir).0.found(machine, None)), Some(("fresh".to_owned(), None)));
    }

    #[tokio::test]
    async fn progress_of_a_run_takes_one_place() {
        let dir = tempfile::tempdir().unwrap();
        let (timelines, spool, database) = open(&dir);
        let (machine, run) = (MachineId::fresh(), RunId::fresh());
        let progress =
            |second: i64| event(machine, second, What::Progress { run, done: second.unsigned_abs(), total: 100 });
        let start = event(machine, 0, What::Stage(Stage::OrderStarted(run)));
        for one in [start.clone(), progress(1), progress(2), progress(3)] {
            spool.append(vec![one]).await.unwrap();
        }
        assert_eq!(timelines.events(machine), [start.clone(), progress(3)]);
        drop((timelines, spool, database));
        assert_eq!(open(&dir).0.events(machine), [start, progress(3)]);
    }

    #[tokio::test]
    async fn the_machine_silent_longest_makes_room() {
        let dir = tempfile::tempdir().unwrap();
        let (timelines, spool, database) = open(&dir);
        let machines: Vec<_> = (0..=MACHINES).map(|_| MachineId::fresh()).collect();
        let mut events: Vec<_> =
            machines.iter().zip(1..).map(|(machine, second)| event(*machine, second, What::Lost)).collect();
        let last = events.pop().unwrap();
        spool.append(events).await.unwrap();
        spool.append(vec![last]).await.unwrap();
        assert!(timelines.events(machines[0]).is_empty());
        let check = |timelines: &Timelines| {
            assert_eq!(timelines.all().len(), MACHINES);
            assert!(timelines.events(machines[MACHINES]).len() == 1);
        };
        check(&timelines);
        spool.append(vec![event(MachineId::fresh(), 5000, What::Lost)]).await.unwrap();
        assert_eq!(timelines.all().len(), MACHINES);
        drop((timelines, spool, database));
        check(&open(&dir).0);
    }
}
