//! What boot knows of the machines whose installers it serves: inventory, whether they are
//! there, and which orders they have ended. [`duty`] decides what an installer is to do.
//!
//! Invariants:
//! - An order that was reported done or failed is not handed out again under the same run
//!   and attempt, also after a restart; one that was only started is: the machine was reset. A
//!   rescue is never done: whoever is given it lets people log in until it is taken back.
//! - An installer that has not asked for [`PATIENCE`] is reported lost, once; when it asks
//!   again it is reported connected again.

use std::{
    collections::HashMap,
    net::Ipv4Addr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rackhand_common::{
    channel::{Begun, HOLD, Kept},
    commission::Tested,
    erasure::DriveErasure,
    event::{Event, Stage, What},
    hardware::Hardware,
    id::{MachineId, RunId},
    intent::{Boot, MachineIntent, Order},
    machine::{Inventory, Mac},
    pki::KeyPin,
    time::{Clock, Mono},
};
use rackhand_fail_points::fail_point;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::turn::Turn;
use crate::spool::Spool;

/// How long an installer may be silent before it is reported lost.
pub const PATIENCE: Duration = HOLD.saturating_mul(3);

/// How often silent installers are looked for.
const LOOK: Duration = Duration::from_secs(5);

/// An installer that was told to restart and is there all the same is told to be connected
/// again, with its inventory, only so long after its last.
const AGAIN: Duration = Duration::from_secs(5);

/// At most one progress report of a machine in this time goes on.
const PROGRESS: Duration = Duration::from_secs(2);

/// By machine: its [`Record`], as JSON.
const RECORDS: TableDefinition<'_, u128, &[u8]> = TableDefinition::new("installers");

/// What an installer is to do, decided from the intent and what it has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duty<'a> {
    /// Stay connected.
    Wait,
    /// Carry this out.
    Work(&'a Order),
    /// Restart, so that the machine boots what its intent says.
    Reboot,
}

/// Decides the duty of a machine's installer. A machine nobody knows waits.
pub fn duty(machine: Option<&MachineIntent>, ended: Option<(RunId, u32)>) -> Duty<'_> {
    let Some(machine) = machine else { return Duty::Wait };
    match (&machine.order, machine.boot) {
        (Some(order), Boot::Installer) if ended != Some((order.run, order.attempt)) => Duty::Work(order),
        (_, Boot::Installer) => Duty::Wait,
        (_, Boot::Disk) => Duty::Reboot,
    }
}

/// What is kept of a machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    mac: Mac,
    address: Ipv4Addr,
    inventory: Option<Inventory>,
    connected: bool,
    /// Run and attempt of the last order that was reported done or failed.
    ended: Option<(RunId, u32)>,
    /// How far an order to erase is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    erasing: Option<Erasing>,
    /// How far an order to test is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    testing: Option<Testing>,
    /// Run and attempt of the update of firmware whose script was begun last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    updating: Option<(RunId, u32)>,
}

/// How far an order to test is: what the next installer does not begin again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Testing {
    run: RunId,
    attempt: u32,
    /// Those that are over.
    pub done: Vec<String>,
    /// Those that were begun, and are not over.
    pub begun: Vec<String>,
}

impl Testing {
    fn is_of(&self, run: RunId, attempt: u32) -> bool {
        (self.run, self.attempt) == (run, attempt)
    }

    /// There are no more entries than tests in the order.
    fn forget(&mut self, script: &str) {
        self.done.retain(|done| done != script);
        self.begun.retain(|begun| begun != script);
    }
}

/// How far an order to erase is, disk by disk: what the next installer does not begin again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Erasing {
    run: RunId,
    attempt: u32,
    /// Those that are proven clean.
    pub done: Vec<Kept>,
    /// What was begun on others.
    pub begun: Vec<Begun>,
}

impl Erasing {
    fn of(run: RunId, attempt: u32) -> Self {
        Self { run, attempt, done: Vec::new(), begun: Vec::new() }
    }

    fn is_of(&self, run: RunId, attempt: u32) -> bool {
        (self.run, self.attempt) == (run, attempt)
    }

    /// Only the latest of each disk counts: there are no more entries than disks in the order.
    fn forget(&mut self, disk: &str) {
        self.done.retain(|kept| kept.disk != disk);
        self.begun.retain(|begun| begun.disk != disk);
    }
}

#[derive(Debug)]
struct Entry {
    record: Record,
    /// The key of the installer that sent the inventory, when it was this process that took it.
    key: Option<KeyPin>,
    heard: Mono,
    /// When it told its inventory last, in this process.
    told: Option<Mono>,
    /// What is in the machine, as this installer told.
    hardware: Option<Hardware>,
    progress: Option<Mono>,
}

/// The machines' records; clones share them.
#[derive(Clone)]
pub struct Sessions {
    db: Arc<Database>,
    clock: Arc<dyn Clock>,
    spool: Spool,
    entries: Arc<Mutex<HashMap<MachineId, Entry>>>,
    /// Counts changes that may change a duty.
    changes: watch::Sender<u64>,
    turn: Turn,
}

/// A record cannot be read, written or told.
#[derive(Debug, thiserror::Error)]
pub enum NotKept {
    /// The table fails.
    #[error("the installers' table is not usable")]
    Table(#[source] Box<redb::Error>),
    /// The spool fails.
    #[error("what happened cannot be recorded")]
    Spool(#[from] crate::spool::SpoolError),
    /// The machine's installer has not told its inventory.
    #[error("nothing is known of the machine's installer")]
    NoRecord,
}

impl<E: Into<redb::Error>> From<E> for NotKept {
    fn from(error: E) -> Self {
        Self::Table(Box::new(error.into()))
    }
}

impl Sessions {
    /// Reads the table, which is made if it is not there. Installers that were connected are
    /// given the usual time to ask again.
    pub fn open(db: Arc<Database>, clock: Arc<dyn Clock>, spool: Spool) -> Result<Self, NotKept> {
        let transaction = db.begin_write()?;
        transaction.open_table(RECORDS)?;
        transaction.commit()?;
        let heard = clock.now().mono;
        let mut entries = HashMap::new();
        for row in db.begin_read()?.open_table(RECORDS)?.iter()? {
            let (machine, record) = row?;
            let machine = MachineId(uuid::Uuid::from_u128(machine.value()));
            match serde_json::from_slice(record.value()) {
                Ok(record) => {
                    drop(entries.insert(
                        machine,
                        Entry { record, key: None, heard, told: None, hardware: None, progress: None },
                    ))
                }
                Err(error) => {
                    tracing::error!(%machine, %error, "an installer's record cannot be read and is forgotten")
                }
            }
        }
        Ok(Self {
            db,
            clock,
            spool,
            entries: Arc::new(Mutex::new(entries)),
            changes: watch::Sender::new(0),
            turn: Turn::default(),
        })
    }

    /// Something that may change a duty happened.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Run and attempt of the order the machine's installer ended last.
    pub fn ended(&self, machine: MachineId) -> Option<(RunId, u32)> {
        self.lock().get(&machine).and_then(|entry| entry.record.ended)
    }

    /// A machine's installer sent its inventory: it is connected. An installer that sends the
    /// same again has nothing new to tell.
    pub async fn connected(
        &self,
        machine: MachineId,
        mac: Mac,
        address: Ipv4Addr,
        key: Option<KeyPin>,
        inventory: Inventory,
        hardware: Option<Hardware>,
    ) -> Result<(), NotKept> {
        let heard = self.clock.now().mono;
        if let Some(Entry { record, heard: last, .. }) = self.lock().get_mut(&machine).filter(|entry| {
            let record = &entry.record;
            let same = (record.mac, record.address, record.inventory.as_ref()) == (mac, address, Some(&inventory));
            record.connected && same && key.is_some() && entry.key == key
        }) {
            tracing::debug!(%machine, mac = %record.mac, "the same inventory again");
            *last = heard;
            return Ok(());
        }
        let before = self.lock().get(&machine).map(|entry| entry.record.clone());
        let (ended, erasing, testing, updating) =
            before.map(|record| (record.ended, record.erasing, record.testing, record.updating)).unwrap_or_default();
        let inventoried = Some(inventory.clone());
        let record =
            Record { mac, address, inventory: inventoried, connected: true, ended, erasing, testing, updating };
        let mut whats = vec![What::Stage(Stage::Inventoried), What::Connected { mac, address, inventory }];
        // Behind the connection, by which the controller comes to know a new machine.
        whats.extend(hardware.clone().map(|hardware| What::Hardware { mac, hardware: hardware.into() }));
        self.spool.append(whats.into_iter().map(|what| self.event(machine, what)).collect()).await?;
        self.lock()
            .insert(machine, Entry { record: record.clone(), key, heard, told: Some(heard), hardware, progress: None });
        self.write(machine, record).await
    }

    /// A machine's installer told what is in it, behind its inventory. The same again is nothing new.
    pub async fn told_hardware(&self, machine: MachineId, mac: Mac, hardware: Hardware) -> Result<(), NotKept> {
        let known = self.lock().get(&machine).and_then(|entry| entry.hardware.clone());
        if known.as_ref() == Some(&hardware) {
            return Ok(());
        }
        let what = What::Hardware { mac, hardware: hardware.clone().into() };
        self.spool.append(vec![self.event(machine, what)]).await?;
        if let Some(entry) = self.lock().get_mut(&machine) {
            entry.hardware = Some(hardware);
        }
        Ok(())
    }

    /// A machine's installer was heard. One that had been lost is connected again.
    pub async fn heard(&self, machine: MachineId) -> Result<(), NotKept> {
        let now = self.clock.now().mono;
        let back = {
            let mut entries = self.lock();
            let Some(entry) = entries.get_mut(&machine) else { return Ok(()) };
            entry.heard = now;
            let lately = entry.told.is_some_and(|last| last.until(now) < AGAIN);
            (!entry.record.connected && !lately).then(|| (entry.key, entry.record.clone()))
        };
        match back {
            Some((key, Record { mac, address, inventory: Some(inventory), .. })) => {
                self.connected(machine, mac, address, key, inventory, None).await
            }
            _ => Ok(()),
        }
    }

    /// A machine's installer was told to restart, and is therefore not connected any more.
    pub async fn rebooting(&self, machine: MachineId) -> Result<(), NotKept> {
        self.disconnect(machine, What::Stage(Stage::Rebooting)).await
    }

    /// A machine's installer ended an order; `events` tell how. On disk on return.
    pub async fn ended_order(
        &self,
        machine: MachineId,
        run: RunId,
        attempt: u32,
        events: Vec<What>,
    ) -> Result<(), NotKept> {
        // Told before it is noted: a crash in between makes the installer report again.
        self.spool.append(events.into_iter().map(|what| self.event(machine, what)).collect()).await?;
        let record = {
            let mut entries = self.lock();
            entries.get_mut(&machine).map(|entry| {
                entry.record.ended = Some((run, attempt));
                entry.record.clone()
            })
        };
        if let Some(record) = record {
            self.write(machine, record).await?;
        }
        self.changes.send_modify(|changes| *changes += 1);
        Ok(())
    }

    /// A machine's rescue system takes logins, as `login` says. On disk on return.
    pub async fn rescued(&self, machine: MachineId, login: What) -> Result<(), NotKept> {
        Ok(self.spool.append(vec![self.event(machine, login)]).await?)
    }

    /// How far the machine's installers are with this order to erase.
    pub fn erasing(&self, machine: MachineId, run: RunId, attempt: u32) -> Option<Erasing> {
        let erasing = self.lock().get(&machine)?.record.erasing.clone()?;
        erasing.is_of(run, attempt).then_some(erasing)
    }

    /// A method was begun on a disk of an order's. On disk on return.
    pub async fn erasure_begun(
        &self,
        machine: MachineId,
        run: RunId,
        attempt: u32,
        begun: Begun,
    ) -> Result<(), NotKept> {
        self.note_erasure(machine, run, attempt, |erasing| {
            erasing.forget(&begun.disk);
            erasing.begun.push(begun);
        })
        .await
    }

    /// A disk of an order's was erased, or not. On disk on return.
    pub async fn erased(
        &self,
        machine: MachineId,
        run: RunId,
        attempt: u32,
        drive: Box<DriveErasure>,
    ) -> Result<(), NotKept> {
        // Told before it is noted: a crash in between has the disk looked at, or erased, again.
        let told = What::Erased { run, attempt, drive: drive.clone() };
        self.spool.append(vec![self.event(machine, told)]).await?;
        self.note_erasure(machine, run, attempt, |erasing| {
            erasing.forget(&drive.disk);
            if let Some(method) = drive.method {
                erasing.done.push(Kept { disk: drive.disk, method, digest: drive.samples.digest });
            }
        })
        .await
    }

    async fn note_erasure(
        &self,
        machine: MachineId,
        run: RunId,
        attempt: u32,
        change: impl FnOnce(&mut Erasing),
    ) -> Result<(), NotKept> {
        let record = {
            let mut entries = self.lock();
            let Some(entry) = entries.get_mut(&machine) else { return Ok(()) };
            let mut erasing = entry.record.erasing.take().filter(|erasing| erasing.is_of(run, attempt));
            change(erasing.get_or_insert_with(|| Erasing::of(run, attempt)));
            entry.record.erasing = erasing;
            entry.record.clone()
        };
        self.write(machine, record).await
    }

    /// How far the machine's installers are with this order to test.
    pub fn testing(&self, machine: MachineId, run: RunId, attempt: u32) -> Option<Testing> {
        let testing = self.lock().get(&machine)?.record.testing.clone()?;
        testing.is_of(run, attempt).then_some(testing)
    }

    /// A test of an order's begins. On disk on return.
    pub async fn test_begun(
        &self,
        machine: MachineId,
        run: RunId,
        attempt: u32,
        script: String,
    ) -> Result<(), NotKept> {
        self.note_test(machine, run, attempt, |testing| {
            testing.forget(&script);
            testing.begun.push(script);
        })
        .await
    }

    /// A test of an order's is over. On disk on return.
    pub async fn tested(
        &self,
        machine: MachineId,
        run: RunId,
        attempt: u32,
        tested: Box<Tested>,
    ) -> Result<(), NotKept> {
        // Told before it is noted: a crash in between has the installer tell it again.
        let told = What::Tested { run, attempt, tested: tested.clone() };
        self.spool.append(vec![self.event(machine, told)]).await?;
        self.note_test(machine, run, attempt, |testing| {
            testing.forget(&tested.script);
            testing.done.push(tested.script);
        })
        .await
    }

    async fn note_test(
        &self,
        machine: MachineId,
        run: RunId,
        attempt: u32,
        change: impl FnOnce(&mut Testing),
    ) -> Result<(), NotKept> {
        let record = {
            let mut entries = self.lock();
            let Some(entry) = entries.get_mut(&machine) else { return Ok(()) };
            let testing = entry.record.testing.take().filter(|testing| testing.is_of(run, attempt));
            let mut testing = testing.unwrap_or_else(|| Testing { run, attempt, done: Vec::new(), begun: Vec::new() });
            change(&mut testing);
            entry.record.testing = Some(testing);
            entry.record.clone()
        };
        self.write(machine, record).await
    }

    /// Whether the script of this update of firmware may have been begun by one of the machine's installers.
    pub fn is_update_begun(&self, machine: MachineId, run: RunId, attempt: u32) -> bool {
        self.lock().get(&machine).is_some_and(|entry| entry.record.updating == Some((run, attempt)))
    }

    /// The script of an update of firmware begins. On disk on return.
    pub async fn update_begun(&self, machine: MachineId, run: RunId, attempt: u32) -> Result<(), NotKept> {
        let record = {
            let mut entries = self.lock();
            let Some(entry) = entries.get_mut(&machine) else { return Err(NotKept::NoRecord) };
            entry.record.updating = Some((run, attempt));
            entry.record.clone()
        };
        self.write(machine, record).await
    }

    /// Progress goes on now and then only.
    pub fn progress(&self, machine: MachineId, run: RunId, done: u64, total: u64) {
        let now = self.clock.now().mono;
        let mut entries = self.lock();
        let Some(entry) = entries.get_mut(&machine) else { return };
        if entry.progress.is_some_and(|last| last.until(now) < PROGRESS) {
            return;
        }
        entry.progress = Some(now);
        drop(entries);
        self.tell(machine, What::Progress { run, done, total });
    }

    /// Puts an event into the spool without waiting.
    pub fn tell(&self, machine: MachineId, what: What) {
        self.spool.offer(self.event(machine, what));
    }

    /// Reports silent installers as lost, until `shutdown`.
    pub async fn watch(self, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
            self.look().await;
        }
    }

    /// Reports those as lost that are silent by now, in the order of their ids.
    pub async fn look(&self) {
        let now = self.clock.now().mono;
        let mut silent: Vec<MachineId> = self
            .lock()
            .iter()
            .filter(|(_, entry)| entry.record.connected && entry.heard.until(now) > PATIENCE)
            .map(|(machine, _)| *machine)
            .collect();
        silent.sort();
        for machine in silent {
            tracing::warn!(%machine, "installer lost");
            if let Err(error) = self.disconnect(machine, What::Lost).await {
                tracing::error!(%machine, %error, "cannot record that an installer is lost");
            }
        }
    }

    async fn disconnect(&self, machine: MachineId, what: What) -> Result<(), NotKept> {
        let record = {
            let mut entries = self.lock();
            let Some(entry) = entries.get_mut(&machine).filter(|entry| entry.record.connected) else { return Ok(()) };
            entry.record.connected = false;
            entry.record.clone()
        };
        self.spool.append(vec![self.event(machine, what)]).await?;
        self.write(machine, record).await
    }

    async fn write(&self, machine: MachineId, record: Record) -> Result<(), NotKept> {
        let db = self.db.clone();
        let write = move || {
            let json = serde_json::to_vec(&record).expect("records always serialize");
            let transaction = db.begin_write()?;
            transaction.open_table(RECORDS)?.insert(machine.0.as_u128(), json.as_slice())?;
            fail_point!(once "installer.record", transaction.commit())?;
            Ok(())
        };
        self.turn.take(write).await
    }

    fn event(&self, machine: MachineId, what: What) -> Event {
        Event { at: self.clock.now().wall, machine: Some(machine), what }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<MachineId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use rackhand_common::{
        hardware::Board,
        id::Epoch,
        intent::{Rescue, Work},
    };

    use super::*;

    fn machine(boot: Boot, order: Option<Order>) -> MachineIntent {
        MachineIntent {
            id: MachineId::fresh(),
            name: "m-1".into(),
            macs: vec![],
            address: Ipv4Addr::LOCALHOST,
            epoch: Epoch(1),
            boot,
            order,
        }
    }

    #[test]
    fn an_order_is_handed_out_until_it_was_reported_ended() {
        let order = Order { run: RunId::fresh(), attempt: 2, disks: vec![], work: Work::Erase };
        let known = machine(Boot::Installer, Some(order.clone()));
        assert_eq!(duty(Some(&known), None), Duty::Work(&order));
        assert_eq!(duty(Some(&known), Some((order.run, 1))), Duty::Work(&order));
        assert_eq!(duty(Some(&known), Some((order.run, 2))), Duty::Wait);
    }

    #[test]
    fn a_rescue_is_handed_out_for_as_long_as_it_stands() {
        let work = Work::Rescue(Rescue { ssh_keys: vec![], mainboard: None });
        let order = Order { run: RunId::fresh(), attempt: 1, disks: vec![], work };
        assert_eq!(duty(Some(&machine(Boot::Installer, Some(order.clone()))), None), Duty::Work(&order));
        assert_eq!(duty(Some(&machine(Boot::Disk, None)), None), Duty::Reboot);
    }

    #[test]
    fn a_machine_that_shall_run_from_its_disk_restarts_and_is_given_no_order() {
        let order = Order { run: RunId::fresh(), attempt: 1, disks: vec![], work: Work::Erase };
        assert_eq!(duty(Some(&machine(Boot::Disk, None)), None), Duty::Reboot);
        assert_eq!(duty(Some(&machine(Boot::Disk, Some(order))), None), Duty::Reboot);
    }

    fn inventory(memory: u64) -> Inventory {
        serde_json::from_value(serde_json::json!({
            "firmware": "bios", "system": {"vendor": "", "product": "", "serial": "", "uuid": null},
            "cpu": {"model": "", "threads": 1}, "memory": memory, "nics": [], "disks": [],
        }))
        .unwrap()
    }

    #[tokio::test]
    async fn the_same_inventory_of_one_installer_is_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(&dir.path().join("events.redb"), 1000).unwrap();
        let db = crate::spool::open_database(&dir.path().join("boot.redb")).unwrap();
        let sessions = Sessions::open(db, Arc::new(crate::clock::SystemClock::default()), spool.clone()).unwrap();
        let (machine, mac, at) = (MachineId::fresh(), Mac([2, 0, 0, 0, 0, 1]), Ipv4Addr::new(10, 0, 0, 9));
        let key = |n| Some(KeyPin([n; 32]));
        for (installer, memory) in [(1, 1), (1, 1), (1, 1), (1, 2), (2, 2), (2, 2)] {
            sessions.connected(machine, mac, at, key(installer), inventory(memory), None).await.unwrap();
        }
        // Another inventory, and another installer, each with two events.
        assert_eq!(spool.waiting(), 6);
        sessions.rebooting(machine).await.unwrap();
        sessions.connected(machine, mac, at, key(2), inventory(2), None).await.unwrap();
        assert_eq!(spool.waiting(), 9);
        // What is in it comes behind, once for each installer.
        let board = |serial: &str| Hardware {
            board: Board { serial: serial.into(), ..Board::default() },
            ..Hardware::default()
        };
        for serial in ["A", "A", "B"] {
            sessions.told_hardware(machine, mac, board(serial)).await.unwrap();
        }
        assert_eq!(spool.waiting(), 11);
        sessions.connected(machine, mac, at, key(3), inventory(2), None).await.unwrap();
        sessions.told_hardware(machine, mac, board("B")).await.unwrap();
        assert_eq!(spool.waiting(), 14);
    }

    #[tokio::test]
    async fn an_installer_that_does_not_restart_as_told_fills_no_spool_with_its_inventory() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(&dir.path().join("events.redb"), 1000).unwrap();
        let db = crate::spool::open_database(&dir.path().join("boot.redb")).unwrap();
        let sessions = Sessions::open(db, Arc::new(crate::clock::SystemClock::default()), spool.clone()).unwrap();
        let (machine, run) = (MachineId::fresh(), RunId::fresh());
        let inventory = inventory(1);
        sessions.connected(machine, Mac([2, 0, 0, 0, 0, 1]), Ipv4Addr::LOCALHOST, None, inventory, None).await.unwrap();
        for _ in 0..100 {
            sessions.heard(machine).await.unwrap();
            sessions.rebooting(machine).await.unwrap();
            sessions.progress(machine, run, 7, 7);
        }
        spool.append(vec![]).await.unwrap();
        // Inventory, connected, restarting, progress.
        assert_eq!(spool.waiting(), 4);
    }

    #[tokio::test]
    async fn what_was_erased_is_known_to_the_next_installer_of_the_order_and_to_no_other() {
        use rackhand_common::erasure::Method;
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(&dir.path().join("events.redb"), 1000).unwrap();
        let open = || {
            let db = crate::spool::open_database(&dir.path().join("boot.redb")).unwrap();
            Sessions::open(db, Arc::new(crate::clock::SystemClock::default()), spool.clone()).unwrap()
        };
        let sessions = open();
        let (machine, run) = (MachineId::fresh(), RunId::fresh());
        sessions
            .connected(machine, Mac([2, 0, 0, 0, 0, 1]), Ipv4Addr::LOCALHOST, None, inventory(1), None)
            .await
            .unwrap();
        let begun = |disk: &str| Begun { disk: disk.into(), method: Method::NvmeSanitizeCrypto };
        sessions.erasure_begun(machine, run, 1, begun("d1")).await.unwrap();
        sessions.erasure_begun(machine, run, 1, begun("d2")).await.unwrap();
        let drive = rackhand_common::erasure::DriveErasure::example("d1");
        sessions.erased(machine, run, 1, Box::new(drive.clone())).await.unwrap();
        drop(sessions);
        // The node and the machine were restarted.
        let sessions = open();
        sessions
            .connected(machine, Mac([2, 0, 0, 0, 0, 1]), Ipv4Addr::LOCALHOST, None, inventory(2), None)
            .await
            .unwrap();
        let known = sessions.erasing(machine, run, 1).unwrap();
        let kept = Kept { disk: "d1".into(), method: drive.method.unwrap(), digest: drive.samples.digest };
        assert_eq!((known.done, known.begun), (vec![kept], vec![begun("d2")]));
        assert!(sessions.erasing(machine, run, 2).is_none() && sessions.erasing(machine, RunId::fresh(), 1).is_none());
    }

    #[tokio::test]
    async fn a_test_that_was_begun_and_not_told_of_is_known_to_the_next_installer_of_the_order() {
        use rackhand_common::commission::{Outcome, script};
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(&dir.path().join("events.redb"), 1000).unwrap();
        let open = || {
            let db = crate::spool::open_database(&dir.path().join("boot.redb")).unwrap();
            Sessions::open(db, Arc::new(crate::clock::SystemClock::default()), spool.clone()).unwrap()
        };
        let sessions = open();
        let (machine, run) = (MachineId::fresh(), RunId::fresh());
        sessions
            .connected(machine, Mac([2, 0, 0, 0, 0, 1]), Ipv4Addr::LOCALHOST, None, inventory(1), None)
            .await
            .unwrap();
        for name in ["memory", "smart"] {
            sessions.test_begun(machine, run, 1, name.into()).await.unwrap();
        }
        let now = jiff::Timestamp::UNIX_EPOCH;
        let tested = script("smart").unwrap().not_run(Outcome::Skipped, "no disk", now);
        sessions.tested(machine, run, 1, Box::new(tested)).await.unwrap();
        drop(sessions);
        // The node and the machine were restarted.
        let sessions = open();
        sessions
            .connected(machine, Mac([2, 0, 0, 0, 0, 1]), Ipv4Addr::LOCALHOST, None, inventory(2), None)
            .await
            .unwrap();
        let known = sessions.testing(machine, run, 1).unwrap();
        assert_eq!((known.done, known.begun), (vec!["smart".to_owned()], vec!["memory".to_owned()]));
        assert!(sessions.testing(machine, run, 2).is_none() && sessions.testing(machine, RunId::fresh(), 1).is_none());
    }

    #[test]
    fn a_machine_nobody_knows_waits() {
        assert_eq!(duty(None, None), Duty::Wait);
    }
}
