//! How the rack's machines fare: their BMCs are read in turn, the rules decide, and what changes
//! is told to the controller.
//!
//! Invariants:
//! - What is told is in the spool, and what was told remembered, in one transaction: a kill tells
//!   nothing twice and forgets nothing that was found.
//! - Only what changes is told, but for all of it whenever the controller is connected anew, and
//!   from [time to time](RESTATE): a telling that was lost leaves nothing wrong for ever.
//! - A person who asks a BMC goes first. No BMC is kept busy for more than a fifth of the time.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use jiff::Timestamp;
use rackhand_common::{
    bmc::SensorKind,
    event::{Event, What},
    health::{SeriesQuery, Standing, Verdict},
    id::MachineId,
    time::Clock,
};
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use serde::Deserialize;
use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    events::Events,
    pace::{Looked, Pace},
    rules::{BadRule, Rules},
    series::{Sample, Series},
    standing::{self, Memory, Watched},
};
use crate::{
    bmcs::{Bmcs, NotRead},
    data_files::{NoFiles, toml_files},
    local::UplinkView,
    spool::{Spool, SpoolError, blocking, chain},
};

/// How often all that is known is told again.
const RESTATE: Duration = Duration::from_secs(3600);

/// How often it is looked which machines there are, when nobody says that they changed.
const MACHINES: Duration = Duration::from_secs(30);

/// How long BMCs have at the end to be told that they post no more events.
const FAREWELL: Duration = Duration::from_secs(3);

/// By machine: [`Memory`] as JSON.
const TABLE: TableDefinition<u128, &[u8]> = TableDefinition::new("health");

/// `[health]` in agent.toml.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthFile {
    /// Seconds from one look at a machine's sensors to the next; default 60.
    #[serde(default = "default_sensors")]
    pub sensors: u64,
    /// Seconds from one look at the hardware's event log to the next; default 600.
    #[serde(default = "default_log")]
    pub log: u64,
    /// BMCs that are read at a time; default 4.
    #[serde(default = "default_at_once")]
    pub at_once: usize,
    /// Directory with rules beside those that come with the product; default `/etc/rackhand/health`.
    #[serde(default = "default_rules")]
    pub rules: PathBuf,
    /// Where BMCs post their events (TCP), such as `10.20.0.1:8446`: by this address they reach the node; default
    /// is nowhere.
    pub events: Option<SocketAddr>,
}

impl Default for HealthFile {
    fn default() -> Self {
        Self {
            sensors: default_sensors(),
            log: default_log(),
            at_once: default_at_once(),
            rules: default_rules(),
            events: None,
        }
    }
}

fn default_sensors() -> u64 {
    60
}

fn default_log() -> u64 {
    600
}

fn default_at_once() -> usize {
    4
}

fn default_rules() -> PathBuf {
    "/etc/rackhand/health".into()
}

/// How machines are looked at, and decided about.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// From one look at a machine's sensors to the next.
    pub sensors: Duration,
    /// From one look at the hardware's event log to the next.
    pub log: Duration,
    /// BMCs that are read at a time.
    pub at_once: usize,
    /// By which it is decided.
    pub rules: Arc<Rules>,
}

impl TryFrom<HealthFile> for Config {
    type Error = String;

    fn try_from(file: HealthFile) -> Result<Self, String> {
        let day = 1..=86400;
        if !day.contains(&file.sensors) || !day.contains(&file.log) {
            return Err("health.sensors and health.log are 1 to 86400 seconds".into());
        }
        if !(1..=64).contains(&file.at_once) {
            return Err("health.at_once is 1 to 64: so many BMCs are read at a time".into());
        }
        let rules = rules_in(&file.rules).map_err(|error| format!("health.rules: {error}"))?;
        Ok(Self {
            sensors: Duration::from_secs(file.sensors),
            log: Duration::from_secs(file.log),
            at_once: file.at_once,
            rules: Arc::new(rules),
        })
    }
}

/// Why there are no rules.
#[derive(Debug, thiserror::Error)]
enum NoRules {
    #[error(transparent)]
    Bad(#[from] BadRule),
    #[error(transparent)]
    Files(#[from] NoFiles),
}

/// The rules that come with the product and those in this directory, by the names of its files; it
/// need not be there.
fn rules_in(directory: &Path) -> Result<Rules, NoRules> {
    Ok(Rules::with(&toml_files(directory)?)?)
}

/// A handle on all machines; clones are the same.
#[derive(Clone)]
pub struct Machines(Arc<Inner>);

struct Inner {
    bmcs: Bmcs,
    spool: Spool,
    series: Series,
    clock: Arc<dyn Clock>,
    config: watch::Receiver<Config>,
    /// What BMCs say happened, if they are to.
    events: Option<Events>,
    watched: Mutex<HashMap<MachineId, Arc<tokio::sync::Mutex<Watched>>>>,
    latest: Mutex<BTreeMap<MachineId, Latest>>,
}

/// What is shown of a machine.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Latest {
    /// How it fares.
    pub verdict: Option<Verdict>,
    /// Its sensors, what they measure and what they read last.
    pub readings: Vec<(String, SensorKind, f64)>,
    /// When its BMC answered last.
    pub answered: Option<Timestamp>,
    /// Why it did not, the last time.
    pub silent: Option<String>,
}

impl Machines {
    /// All machines that something is remembered of in this store, whose spool is `spool`.
    pub async fn open(
        database: Arc<Database>,
        bmcs: Bmcs,
        spool: Spool,
        series: Series,
        clock: Arc<dyn Clock>,
        config: watch::Receiver<Config>,
        events: Option<Events>,
    ) -> Result<Self, SpoolError> {
        let now = clock.now();
        let remembered = blocking(move || remembered(&database)).await?;
        let watched: Vec<_> = remembered.into_iter().map(|(id, memory)| (id, Watched::of(memory, now))).collect();
        let latest =
            |(id, watched): &(MachineId, Watched)| (*id, Latest { verdict: watched.verdict(), ..Latest::default() });
        let latest = watched.iter().map(latest).collect();
        let watched = watched.into_iter().map(|(id, watched)| (id, Arc::new(tokio::sync::Mutex::new(watched))));
        let watched = Mutex::new(watched.collect());
        Ok(Self(Arc::new(Inner { bmcs, spool, series, clock, config, events, watched, latest: Mutex::new(latest) })))
    }

    /// Reads BMCs in turn until `shutdown`.
    pub async fn run(self, mut uplink: watch::Receiver<UplinkView>, shutdown: CancellationToken) {
        let mut changes = self.0.bmcs.changes();
        let mut config = self.0.config.clone();
        let mut places = Arc::new(Semaphore::new(config.borrow_and_update().at_once));
        let mut attended: BTreeMap<MachineId, CancellationToken> = BTreeMap::new();
        let mut parts = JoinSet::new();
        let mut restate = tokio::time::interval(RESTATE);
        restate.reset();
        let mut connected = false;
        loop {
            let wanted: BTreeSet<_> = self.0.bmcs.machines().into_iter().collect();
            for (machine, token) in attended.extract_if(.., |machine, _| !wanted.contains(machine)) {
                token.cancel();
                self.forget(machine).await;
            }
            let gone: Vec<_> = self.latest().keys().filter(|machine| !wanted.contains(machine)).copied().collect();
            for machine in gone {
                self.forget(machine).await;
            }
            for machine in wanted {
                attended.entry(machine).or_insert_with(|| {
                    let token = shutdown.child_token();
                    parts.spawn(self.clone().attend(machine, places.clone(), token.clone()));
                    token
                });
            }
            tokio::select! {
                // Whoever says so may be gone: then nothing changes any more.
                Ok(()) = changes.changed() => {}
                Ok(()) = config.changed() => {
                    // Whoever is looking just now may end; all others begin with the new places.
                    places = Arc::new(Semaphore::new(config.borrow_and_update().at_once));
                    for token in std::mem::take(&mut attended).into_values() {
                        token.cancel();
                    }
                }
                Ok(()) = uplink.changed() => {
                    let before = std::mem::replace(&mut connected, uplink.borrow_and_update().connected);
                    if connected && !before {
                        self.restate().await;
                    }
                }
                _ = restate.tick() => self.restate().await,
                Some(_) = parts.join_next(), if !parts.is_empty() => {}
                () = tokio::time::sleep(MACHINES) => {}
                () = shutdown.cancelled() => break,
            }
        }
        while parts.join_next().await.is_some() {}
        if let Some(events) = &self.0.events {
            let ended = events.subscribed().into_iter().map(|machine| self.0.bmcs.unsubscribe(machine, events.base()));
            // What is left is ended at the next start, or posts to nobody.
            let _ = timeout(FAREWELL, join_all(ended)).await;
        }
    }

    /// Reads one machine's BMC again and again.
    async fn attend(self, machine: MachineId, places: Arc<Semaphore>, stop: CancellationToken) {
        let around = |period: Duration| period.mul_f64(0.9 + 0.2 * rand::random::<f64>());
        let bell = self.0.events.as_ref().map(|events| (events, events.bell(machine)));
        let rings = async || match &bell {
            Some((_, bell)) => bell.rings().await,
            None => std::future::pending().await,
        };
        let first = self.0.config.borrow().sensors.mul_f64(rand::random());
        let mut pace = Pace::first(Instant::now() + first);
        loop {
            tokio::select! {
                () = sleep_until(pace.next().into()) => {}
                () = rings() => {
                    pace.ask();
                    continue;
                }
                () = stop.cancelled() => return,
            }
            let _place = tokio::select! {
                place = places.acquire() => place.expect("the semaphore is never closed"),
                () = stop.cancelled() => return,
            };
            let config = self.0.config.borrow().clone();
            let began = Instant::now();
            let with_log = pace.begin(began);
            // What was begun ends: a session that is cut off is one of a BMC's few.
            let looked = self.look(machine, &config.rules, with_log).await;
            if let Some((events, bell)) = &bell
                && with_log
                && looked == Looked::Answered
            {
                self.subscribe(machine, events, &bell.name).await;
            }
            pace.end(looked, (began, Instant::now()), around(config.sensors), around(config.log));
        }
    }

    async fn look(&self, machine: MachineId, rules: &Rules, with_log: bool) -> Looked {
        let read = self.0.bmcs.read(machine, with_log).await;
        let now = self.0.clock.now();
        let entry = self.watched(machine);
        let mut watched = entry.lock().await;
        let looked = match read {
            Ok(read) => {
                watched.sensors(rules, now, read.power, &read.sensors);
                if let Some(log) = &read.log {
                    watched.log(rules, now, log);
                }
                let named = standing::distinct(&read.sensors).into_iter();
                let valued = named.filter_map(|(name, reading)| {
                    Some((name, reading.kind, reading.value.filter(|value| value.is_finite())?))
                });
                let readings: Vec<_> = valued.collect();
                self.0.series.offer(Sample { machine, at: now.wall, readings: readings.clone() });
                let mut latest = self.latest();
                let shown = latest.entry(machine).or_default();
                (shown.readings, shown.answered, shown.silent) = (readings, Some(now.wall), None);
                Looked::Answered
            }
            Err(NotRead::Busy) => return Looked::Yielded,
            Err(NotRead::Gone) => return Looked::Silent,
            Err(NotRead::Failed(reason)) => {
                watched.silent(rules, now, &reason);
                self.latest().entry(machine).or_default().silent = Some(reason);
                Looked::Silent
            }
        };
        let news = watched.news();
        self.settle(machine, &mut watched, news).await;
        looked
    }

    /// Has a machine's BMC post its events, or looks whether it still does. What cannot is read in its turn.
    async fn subscribe(&self, machine: MachineId, events: &Events, name: &str) {
        match self.0.bmcs.subscribe(machine, events.base(), name).await {
            Ok(()) => events.note_subscribed(machine, true),
            Err(NotRead::Busy) => {}
            Err(why) => {
                tracing::debug!(%machine, ?why, "its BMC posts no events");
                events.note_subscribed(machine, false);
            }
        }
    }

    /// Tells and remembers what there is to tell and to remember; what cannot be written now is
    /// at the next look.
    async fn settle(&self, machine: MachineId, watched: &mut Watched, tell: Option<Verdict>) {
        self.latest().entry(machine).or_default().verdict = watched.verdict();
        if tell.is_none() && !watched.is_changed() {
            return;
        }
        let now = self.0.clock.now();
        let mut after = watched.clone();
        if let Some(verdict) = &tell {
            after.has_told(verdict.clone());
        }
        let bytes = serde_json::to_vec(&after.memory(now)).expect("what is remembered always serializes");
        let also = Box::new(move |tx: &redb::WriteTransaction| {
            tx.open_table(TABLE)?.insert(machine.0.as_u128(), bytes.as_slice())?;
            Ok(())
        });
        let event = |verdict| Event { at: now.wall, machine: Some(machine), what: What::Health(verdict) };
        match self.0.spool.append_with(tell.into_iter().map(event).collect(), also).await {
            Ok(()) => {
                after.has_remembered();
                *watched = after;
            }
            Err(error) => {
                tracing::error!(%machine, error = chain(&error), "how a machine fares cannot be written down")
            }
        }
    }

    /// Tells of every machine how it fares.
    async fn restate(&self) {
        let all: Vec<_> = self.lock_watched().iter().map(|(machine, watched)| (*machine, watched.clone())).collect();
        for (machine, entry) in all {
            let mut watched = entry.lock().await;
            let verdict = watched.verdict();
            if verdict.is_some() {
                self.settle(machine, &mut watched, verdict).await;
            }
        }
    }

    /// Forgets a machine whose BMC is not reached any more.
    async fn forget(&self, machine: MachineId) {
        self.lock_watched().remove(&machine);
        self.latest().remove(&machine);
        if let Some(events) = &self.0.events {
            events.forget(machine);
        }
        let also = Box::new(move |tx: &redb::WriteTransaction| {
            tx.open_table(TABLE)?.remove(machine.0.as_u128())?;
            Ok(())
        });
        if let Err(error) = self.0.spool.append_with(Vec::new(), also).await {
            tracing::error!(%machine, error = chain(&error), "a machine cannot be forgotten");
        }
    }

    /// What is shown of every machine whose BMC is read.
    pub fn shown(&self) -> BTreeMap<MachineId, Latest> {
        self.latest().clone()
    }

    /// What the node's tool is told of this machine.
    pub fn standing(&self, machine: MachineId, name: String) -> Standing {
        let Latest { verdict, answered, silent, .. } = self.latest().get(&machine).cloned().unwrap_or_default();
        Standing { machine: name, verdict, answered, silent }
    }

    /// What was kept of a sensor, as JSON, or why not in words.
    pub async fn series(&self, machine: MachineId, query: SeriesQuery) -> Result<String, String> {
        let read = self.0.series.read(self.0.clock.now().wall, machine, query).await;
        let series = read.map_err(|error| chain(&error))?;
        Ok(serde_json::to_string(&series).expect("series always serialize"))
    }

    fn watched(&self, machine: MachineId) -> Arc<tokio::sync::Mutex<Watched>> {
        let fresh = || Arc::new(tokio::sync::Mutex::new(Watched::new(self.0.clock.now())));
        self.lock_watched().entry(machine).or_insert_with(fresh).clone()
    }

    fn lock_watched(&self) -> MutexGuard<'_, HashMap<MachineId, Arc<tokio::sync::Mutex<Watched>>>> {
        self.0.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn latest(&self) -> MutexGuard<'_, BTreeMap<MachineId, Latest>> {
        self.0.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
impl Machines {
    /// Those of a rack whose BMCs nobody reads.
    pub(crate) fn unread(bmcs: Bmcs, spool: Spool, dir: &Path) -> Self {
        let (series, _) = Series::open(&dir.join("series.redb")).unwrap();
        let config = watch::channel(Config::try_from(HealthFile::default()).unwrap()).1;
        let clock = Arc::new(crate::clock::SystemClock::default());
        let inner = Inner {
            bmcs,
            spool,
            series,
            clock,
            config,
            events: None,
            watched: Mutex::default(),
            latest: Mutex::default(),
        };
        Self(Arc::new(inner))
    }
}

/// What is remembered of machines; what cannot be read is forgotten.
fn remembered(database: &Database) -> Result<Vec<(MachineId, Memory)>, SpoolError> {
    let tx = database.begin_read()?;
    let table = match tx.open_table(TABLE) {
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
        table => table?,
    };
    let mut all = Vec::new();
    for entry in table.iter()? {
        let (machine, bytes) = entry?;
        if let Ok(memory) = serde_json::from_slice(bytes.value()) {
            all.push((MachineId(uuid::Uuid::from_u128(machine.value())), memory));
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_of_a_directory_come_in_the_order_of_its_files_and_mistakes_name_theirs() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(rules_in(&dir.path().join("absent")).unwrap(), Rules::with(&[]).unwrap());
        let rule = |above| format!("[[rule]]\nname = \"own\"\nreading = {{ warning = {{ above = {above} }} }}\n");
        std::fs::write(dir.path().join("20.toml"), rule(20)).unwrap();
        std::fs::write(dir.path().join("10.toml"), rule(10)).unwrap();
        std::fs::write(dir.path().join("notes.txt"), "not a rule").unwrap();
        let rules = rules_in(dir.path()).unwrap();
        let only = rule(20);
        assert_eq!(rules.named("own"), Rules::read([("only", only.as_str())]).unwrap().named("own"));
        std::fs::write(dir.path().join("30.toml"), format!("{}colour = 1\n", rule(1))).unwrap();
        let file = HealthFile { rules: dir.path().to_owned(), ..HealthFile::default() };
        let error = Config::try_from(file).unwrap_err();
        assert!(error.contains("30.toml, line 4: unknown field `colour`"), "{error}");
    }
}
