//! Updates of firmware by a machine's BMC: the file fetched and proven, sent at most once, and the version
//! read back, which alone says that it is installed.
//!
//! Invariants:
//! - A file that has not the digest that the controller named is sent to nobody.
//! - That a file is sent is on stable storage before its first byte leaves. Of a run's update it is never sent
//!   again: after a crash its task, or the version, is looked at instead.
//! - Only the version that is read tells that firmware is installed, whatever the BMC says.
//! - A BMC that is not there is waited for, as long as the manifest lets it take.
//! - A file is read as it is sent: none is in memory whole.

use std::{
    collections::HashMap,
    fs,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use rackhand_bmc::{Bmc, BmcError, Image, Task};
use rackhand_common::{
    channel::MAX_PIECE,
    firmware::{Answered, Ask, MAX_FILE, Update},
    id::{MachineId, RunId},
};
use serde::{Deserialize, Serialize};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use crate::{
    bmcs::{Bmcs, Reached},
    intent::replace,
    local::{FetchError, Source},
};

/// Name of the directory in the state directory.
const DIRECTORY: &str = "firmware";

/// So many files are kept for other machines of the rack.
const FILES: usize = 8;

/// How often a BMC that is at it is looked at.
const LOOK: Duration = Duration::from_secs(2);

/// How long the controller is let wait for an answer.
const ANSWER: Duration = Duration::from_secs(8);

/// A handle on the updates; clones are the same.
#[derive(Clone)]
pub struct Updates(Arc<Inner>);

struct Inner {
    dir: PathBuf,
    bmcs: Bmcs,
    source: Arc<dyn Source>,
    slots: Mutex<HashMap<MachineId, Slot>>,
    /// Held while files are fetched: two machines want the same one.
    fetching: tokio::sync::Mutex<()>,
}

type Slot = Arc<tokio::sync::Mutex<Option<Under>>>;

/// One that is under way, or whose end nobody was told.
struct Under {
    ask: Ask,
    told: Told,
    task: JoinHandle<Answered>,
}

/// Where it is, for people, and a number that changes when it moves.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<(String, u64)>>);

impl Told {
    fn say(&self, detail: impl Into<String>, mark: u64) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (detail.into(), mark);
    }

    fn said(&self) -> Answered {
        let (detail, mark) = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Answered::UnderWay { detail, mark }
    }
}

/// What is on disk of a machine's latest update, from before the file is sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    run: RunId,
    name: String,
    /// The version before.
    was: Option<String>,
    /// What became of the file, as far as the BMC said.
    sent: Sent,
    /// How it ended.
    ended: Option<Answered>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Sent {
    /// It may have been sent, and nobody was told.
    Begun,
    /// It became this task, or none that has a name.
    Taken(Option<String>),
}

/// What is to be done next.
#[derive(Debug, PartialEq, Eq)]
enum Act {
    /// Say this; it is over.
    End(Answered),
    /// Send the file.
    Send,
    /// Look at what became of the file.
    Watch,
    /// Read the version until it is the one that is wanted, or no longer.
    Confirm,
}

/// What is to be done about an update, by what is on disk of it and the version as it was read.
fn next(ask: &Ask, record: Option<&Record>, version: Option<&str>) -> Act {
    let Update { version: wanted, from, place, .. } = &ask.update;
    match record {
        Some(Record { ended: Some(ended), .. }) if !(ask.confirm && *ended == Answered::Staged) => {
            Act::End(ended.clone())
        }
        _ if version == Some(wanted) => {
            let was = record.map_or(Some(wanted.clone()), |record| record.was.clone());
            Act::End(Answered::Installed { was })
        }
        _ if ask.confirm => Act::Confirm,
        Some(_) => Act::Watch,
        None => match version {
            None => Act::End(Answered::Refused(format!(
                "its BMC tells no version of {place}, so that nothing would prove that it is installed"
            ))),
            Some(version) if !from.is_empty() && !from.iter().any(|from| from == version) => {
                let why = format!("{place} has {version}, and this is installed over {} only", from.join(", "));
                Act::End(Answered::Refused(why))
            }
            Some(_) => Act::Send,
        },
    }
}

impl Updates {
    /// With their records and files below this directory of a node.
    pub fn open(state: &Path, bmcs: Bmcs, source: Arc<dyn Source>) -> io::Result<Self> {
        let dir = state.join(DIRECTORY);
        fs::create_dir_all(dir.join("files"))?;
        let (slots, fetching) = Default::default();
        Ok(Self(Arc::new(Inner { dir, bmcs, source, slots, fetching })))
    }

    /// Updates firmware of a machine ([`Ask`] as JSON). Answers in a while, and goes on.
    pub async fn update(&self, machine: MachineId, ask: &str) -> Answered {
        let Ok(ask) = serde_json::from_str::<Ask>(ask) else {
            return Answered::Later("the rack's agent does not understand what it is asked: upgrade it".to_owned());
        };
        let slot = self.0.slots.lock().unwrap_or_else(PoisonError::into_inner).entry(machine).or_default().clone();
        // Somebody else waits for the same.
        let Ok(mut slot) = slot.try_lock() else {
            return Answered::UnderWay { detail: "it is being asked about".to_owned(), mark: 0 };
        };
        if slot.as_ref().is_some_and(|under| under.ask != ask && under.task.is_finished()) {
            *slot = None;
        }
        let under = slot.get_or_insert_with(|| {
            let (updates, asked, told) = (self.clone(), ask.clone(), Told::default());
            told.say("begins", 0);
            let telling = told.clone();
            let task = tokio::spawn(async move { updates.carry_out(machine, &asked, &telling).await });
            Under { ask: ask.clone(), told, task }
        });
        if under.ask != ask {
            return Answered::UnderWay { detail: "another update of it is under way".to_owned(), mark: 0 };
        }
        let Ok(ended) = timeout(ANSWER, &mut under.task).await else { return under.told.said() };
        *slot = None;
        ended.unwrap_or_else(|error| Answered::Later(error.to_string()))
    }

    async fn carry_out(&self, machine: MachineId, ask: &Ask, told: &Told) -> Answered {
        let ended = match self.work(machine, ask, told).await {
            Ok(ended) => ended,
            Err(later) => return Answered::Later(later),
        };
        tracing::info!(%machine, run = %ask.run, update = ask.update.name, ?ended, "firmware");
        ended
    }

    /// Does it, from whatever is found of it; why it cannot be gone on with now.
    async fn work(&self, machine: MachineId, ask: &Ask, told: &Told) -> Result<Answered, String> {
        let unknown = "nobody has told the rack's agent how its BMC is reached".to_owned();
        let reached = self.0.bmcs.of(machine).ok_or(unknown)?;
        let mut record = self.record(machine, ask)?;
        let version = match self.version(&reached, &ask.update).await {
            Ok(version) => version,
            // It may be starting anew, with what it was sent.
            Err(BmcError::Unreachable(reason)) if record.is_none() => return Err(reason),
            Err(BmcError::Unreachable(_)) => None,
            Err(error) if record.is_none() => return Ok(Answered::Refused(error.to_string())),
            Err(error) => {
                told.say(error.to_string(), 0);
                None
            }
        };
        let ended = match next(ask, record.as_ref(), version.as_deref()) {
            Act::End(ended) => ended,
            Act::Confirm => self.confirm(&reached, &ask.update, record.as_ref(), told).await,
            Act::Watch => self.watch(&reached, ask, record.as_ref(), told).await,
            Act::Send => {
                told.say("fetches the file", 1);
                let file = match self.file(&ask.update.sha256, ask.update.size).await {
                    Ok(file) => file,
                    Err(FetchError::NotFound(why)) => return Ok(Answered::Refused(why)),
                    Err(FetchError::Unavailable(why)) => return Err(why),
                };
                let begun = Record {
                    run: ask.run,
                    name: ask.update.name.clone(),
                    was: version,
                    sent: Sent::Begun,
                    ended: None,
                };
                self.write(machine, &begun)?;
                let record = record.insert(begun);
                told.say("sends the file", 2);
                match self.send(&reached, &ask.update, file).await {
                    Ok(task) => {
                        record.sent = Sent::Taken(task);
                        self.write(machine, record)?;
                        self.watch(&reached, ask, Some(&*record), told).await
                    }
                    // It may have taken it.
                    Err(BmcError::Unreachable(_) | BmcError::Malformed(_)) => {
                        self.watch(&reached, ask, Some(&*record), told).await
                    }
                    Err(error) => Answered::Refused(format!("its BMC did not take the file: {error}")),
                }
            }
        };
        if let Some(record) = &mut record {
            record.ended = Some(ended.clone());
            self.write(machine, record)?;
        }
        Ok(ended)
    }

    /// Waits for what became of the file.
    async fn watch(&self, reached: &Reached, ask: &Ask, record: Option<&Record>, told: &Told) -> Answered {
        let update = &ask.update;
        let task = record.and_then(|record| match &record.sent {
            Sent::Taken(task) => task.as_deref(),
            Sent::Begun => None,
        });
        let end = Instant::now() + Duration::from_secs(update.timeout.into());
        let mut last = "its BMC was sent the file".to_owned();
        loop {
            let looked = async {
                let bmc = reached.bmc().await?;
                match task {
                    Some(task) => bmc.task(task).await.map(Some),
                    None => Ok(None),
                }
            };
            match looked.await {
                Ok(Some(Task::Running(percent))) => {
                    last = match percent {
                        Some(percent) => format!("its BMC installs it, {percent} %"),
                        None => "its BMC installs it".to_owned(),
                    };
                    told.say(last.clone(), 3 + u64::from(percent.unwrap_or(0)));
                }
                Ok(Some(Task::Failed(why))) => return Answered::Failed(format!("its BMC says: {why}")),
                Ok(Some(Task::Done)) => break,
                // Tasks are forgotten when a BMC starts anew: then the version tells.
                Err(BmcError::Unsupported(_)) => break,
                Ok(None) => {}
                Err(error) => {
                    last = format!("its BMC was sent the file; since then: {error}");
                    told.say(last.clone(), 3);
                }
            }
            if task.is_none() && self.is_there(reached, update).await {
                break;
            }
            if Instant::now() >= end {
                let took = update.timeout;
                return Answered::Failed(format!(
                    "not over within {took} s, and it is not known what it has now: {last}"
                ));
            }
            sleep(LOOK.min(Duration::from_secs(update.timeout.into()))).await;
        }
        if update.restart && !self.is_there(reached, update).await {
            return Answered::Staged;
        }
        self.confirm(reached, update, record, told).await
    }

    /// Reads the version until it is the one that is wanted, or as long as it may take to show.
    async fn confirm(&self, reached: &Reached, update: &Update, record: Option<&Record>, told: &Told) -> Answered {
        told.say("reads the version back", 200);
        let end = Instant::now() + Duration::from_secs(update.settle.into());
        loop {
            let read = self.version(reached, update).await;
            if matches!(&read, Ok(Some(version)) if *version == update.version) {
                return Answered::Installed { was: record.and_then(|record| record.was.clone()) };
            }
            if Instant::now() >= end {
                let Update { place, version: wanted, .. } = update;
                let found = match read {
                    Ok(Some(version)) => format!("{version} was read"),
                    Ok(None) => "no version is told".to_owned(),
                    Err(error) => format!("it cannot be read: {error}"),
                };
                return Answered::Failed(format!("{place} should have {wanted} by now, and {found}"));
            }
            sleep(LOOK.min(Duration::from_millis(u64::from(update.settle) * 250))).await;
        }
    }

    async fn is_there(&self, reached: &Reached, update: &Update) -> bool {
        matches!(self.version(reached, update).await, Ok(Some(version)) if version == update.version)
    }

    async fn version(&self, reached: &Reached, update: &Update) -> Result<Option<String>, BmcError> {
        let bmc: Arc<dyn Bmc> = reached.of_this_machine().await?;
        bmc.version(&update.place).await
    }

    /// Sends the file. Nobody else asks the BMC meanwhile.
    async fn send(&self, reached: &Reached, update: &Update, path: PathBuf) -> Result<Option<String>, BmcError> {
        let bmc = reached.of_this_machine().await?;
        let Update { file, size, targets, .. } = update.clone();
        let image = Image { name: file, path, size, targets };
        reached.alone(bmc.update(&image)).await
    }

    /// A piece of a file, at most [`MAX_PIECE`] of it, for boot, which gives it to an installer. A file that
    /// comes slowly is to be asked for again.
    pub async fn piece(&self, sha256: &str, size: u64, offset: u64) -> Result<Vec<u8>, FetchError> {
        let is_name = sha256.len() == 64 && sha256.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if !is_name || size > MAX_FILE || offset >= size {
            return Err(FetchError::NotFound("no file of firmware has such a piece".to_owned()));
        }
        let (updates, name) = (self.clone(), sha256.to_owned());
        // It goes on when nobody waits for it any more.
        let fetching = tokio::spawn(async move { updates.file(&name, size).await });
        let fetched = timeout(ANSWER, fetching).await;
        let fetched = fetched.map_err(|_| FetchError::Unavailable("the file is being fetched".to_owned()))?;
        let path = fetched.map_err(io::Error::other).map_err(unkept)??;
        blocking(move || {
            let mut file = fs::File::open(path)?;
            file.seek(SeekFrom::Start(offset))?;
            let mut piece = Vec::new();
            file.take(MAX_PIECE as u64).read_to_end(&mut piece)?;
            Ok(piece)
        })
        .await
    }

    /// The file, on this node's disk.
    async fn file(&self, sha256: &str, size: u64) -> Result<PathBuf, FetchError> {
        let _alone = self.0.fetching.lock().await;
        let files = self.0.dir.join("files");
        let path = files.join(sha256);
        let here = path.clone();
        let is_here = blocking(move || Ok(fs::metadata(&here).is_ok())).await?;
        if !is_here {
            let fresh = files.join(format!("{sha256}.new"));
            self.0.source.firmware(sha256, size, &fresh).await?;
            let to = path.clone();
            blocking(move || {
                fs::File::open(&fresh)?.sync_all()?;
                fs::rename(&fresh, &to)?;
                keep_newest(&files)
            })
            .await?;
        }
        Ok(path)
    }

    fn place_of(&self, machine: MachineId) -> PathBuf {
        self.0.dir.join(format!("{machine}.json"))
    }

    /// What is on disk of this very update of the machine.
    fn record(&self, machine: MachineId, ask: &Ask) -> Result<Option<Record>, String> {
        let path = self.place_of(machine);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(format!("{} cannot be read: {error}", path.display())),
        };
        let record: Record = match serde_json::from_slice(&bytes) {
            Ok(record) => record,
            Err(error) => return Err(format!("{} is damaged ({error}): remove it", path.display())),
        };
        Ok(Some(record).filter(|record| record.run == ask.run && record.name == ask.update.name))
    }

    fn write(&self, machine: MachineId, record: &Record) -> Result<(), String> {
        let bytes = serde_json::to_vec(record).expect("a record always serializes");
        let path = self.place_of(machine);
        replace(&path, &bytes).map_err(|error| format!("{} cannot be written: {error}", path.display()))
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T, FetchError> {
    let done = tokio::task::spawn_blocking(work).await.map_err(io::Error::other).flatten();
    done.map_err(unkept)
}

fn unkept(error: io::Error) -> FetchError {
    FetchError::Unavailable(format!("firmware cannot be kept on this node: {error}"))
}

/// Removes all but the files that came last.
fn keep_newest(files: &Path) -> io::Result<()> {
    let mut all = Vec::new();
    for entry in fs::read_dir(files)? {
        let entry = entry?;
        all.push((entry.metadata()?.modified().unwrap_or(SystemTime::UNIX_EPOCH), entry.path()));
    }
    all.sort();
    let surplus = all.len().saturating_sub(FILES);
    all.into_iter().take(surplus).try_for_each(|(_, path)| fs::remove_file(path))
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use rackhand_common::firmware::Place;

    use super::*;

    fn ask(confirm: bool) -> Ask {
        let update = Update {
            name: "toy".into(),
            place: Place::Bmc,
            version: "2.18".into(),
            from: vec!["2.17".into()],
            file: "bmc-2.18.bin".into(),
            size: 8,
            sha256: "0".repeat(64),
            targets: Vec::new(),
            restart: false,
            timeout: 30,
            settle: 5,
            script: None,
        };
        Ask { run: RunId(uuid::Uuid::nil()), update, confirm }
    }

    #[test]
    fn what_is_done_follows_from_what_is_on_disk_and_the_version() {
        let record = |ended| Record {
            run: RunId(uuid::Uuid::nil()),
            name: "toy".into(),
            was: Some("2.17".into()),
            sent: Sent::Begun,
            ended,
        };
        let records = [
            ("none", None),
            ("begun", Some(record(None))),
            ("staged", Some(record(Some(Answered::Staged)))),
            ("failed", Some(record(Some(Answered::Failed("why".into()))))),
        ];
        let mut table = String::new();
        for (name, record) in &records {
            for version in [None, Some("2.16"), Some("2.17"), Some("2.18")] {
                for confirm in [false, true] {
                    let act = next(&ask(confirm), record.as_ref(), version);
                    let confirm = if confirm { ", started anew" } else { "" };
                    table += &format!("{name}, {}{confirm}: {act:?}\n", version.unwrap_or("-"));
                }
            }
        }
        expect![[r#"
            none, -: End(Refused("its BMC tells no version of bmc, so that nothing would prove that it is installed"))
            none, -, started anew: Confirm
            none, 2.16: End(Refused("bmc has 2.16, and this is installed over 2.17 only"))
            none, 2.16, started anew: Confirm
            none, 2.17: Send
            none, 2.17, started anew: Confirm
            none, 2.18: End(Installed { was: Some("2.18") })
            none, 2.18, started anew: End(Installed { was: Some("2.18") })
            begun, -: Watch
            begun, -, started anew: Confirm
            begun, 2.16: Watch
            begun, 2.16, started anew: Confirm
            begun, 2.17: Watch
            begun, 2.17, started anew: Confirm
            begun, 2.18: End(Installed { was: Some("2.17") })
            begun, 2.18, started anew: End(Installed { was: Some("2.17") })
            staged, -: End(Staged)
            staged, -, started anew: Confirm
            staged, 2.16: End(Staged)
            staged, 2.16, started anew: Confirm
            staged, 2.17: End(Staged)
            staged, 2.17, started anew: Confirm
            staged, 2.18: End(Staged)
            staged, 2.18, started anew: End(Installed { was: Some("2.17") })
            failed, -: End(Failed("why"))
            failed, -, started anew: End(Failed("why"))
            failed, 2.16: End(Failed("why"))
            failed, 2.16, started anew: End(Failed("why"))
            failed, 2.17: End(Failed("why"))
            failed, 2.17, started anew: End(Failed("why"))
            failed, 2.18: End(Failed("why"))
            failed, 2.18, started anew: End(Failed("why"))
        "#]]
        .assert_eq(&table);
    }

    #[test]
    fn files_that_came_last_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..FILES as u64 + 2 {
            let file = fs::File::create(dir.path().join(number.to_string())).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(number)).unwrap();
        }
        keep_newest(dir.path()).unwrap();
        let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["2", "3", "4", "5", "6", "7", "8", "9"]);
    }
}
