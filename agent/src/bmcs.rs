//! The BMCs of this rack: how each is reached, as the controller says, and the one conversation
//! that is kept with it.
//!
//! Invariants:
//! - What [`Bmcs::store`] returned for is on stable storage, whole, with its passwords sealed. The
//!   revision only moves forward, and is that of the intent it came before.
//! - Boot is never told.
//! - A machine's BMC is asked in one conversation, as most have few sessions to give; what is not
//!   asked any more is closed.
//! - The certificate that a BMC showed first is the only one that it is given its password over, as
//!   long as it is at the same place; whoever has one is not asked by IPMI instead. A serial console
//!   is in IPMI alone: who does not want it asked for that either, says `redfish`.
//! - Nothing is changed by a BMC that is on another mainboard than the machine.
//! - A person who asks goes before what is read regularly.
//! - What is put back is read again afterwards, and nothing else proves it ([`baseline`]).
//! - Logins that were denied are counted on disk, and none is tried that could lock an account
//!   ([`guard`]), whether it is a machine's BMC or one that is met for the first time ([`meeting`]).

mod baseline;
mod guard;
mod meeting;
mod profile;
mod rotation;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs, io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;
use ipnet::IpNet;
use rackhand_bmc::{
    Bmc, BmcError, Credentials, Logins,
    ipmi::{
        Console, Ipmi,
        console::{ConsoleError, Told},
    },
    redfish::{Bounds, Fingerprint, Redfish, Target, Which},
};
use rackhand_common::{
    bmc::{self, Access, At, Beside, Identity, Log, Look, Protocol, Seen, Sensors, Standing},
    id::{MachineId, RackId},
    machine::Power,
    seal::{NotOpened, Seal},
    time::Clock,
};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Notify, OwnedMutexGuard, watch},
    time::timeout,
};

use guard::Guard;
pub use profile::{BadProfile, Profiles};

use crate::intent::{Refused, key, replace};

/// Name of the file in the state directory.
const FILE: &str = "bmcs.json";

/// Ports of the protocols (IPMI 2.0 §13.1.2).
const IPMI: u16 = 623;
const HTTPS: u16 = 443;

/// How long one look may take: the controller waits a little longer.
const LOOK: Duration = Duration::from_secs(12);

/// How long the end of a session may take.
const CLOSE: Duration = Duration::from_secs(3);

/// A handle on the BMCs; clones are the same.
#[derive(Clone)]
pub struct Bmcs(Arc<Inner>);

struct Inner {
    file: PathBuf,
    seal: Seal,
    rack: RackId,
    networks: Option<Vec<IpNet>>,
    profiles: Profiles,
    clock: Arc<dyn Clock>,
    stored: Mutex<Stored>,
    /// Held while the file is being replaced.
    writing: Arc<tokio::sync::Mutex<()>>,
    conversations: Mutex<HashMap<MachineId, Arc<Conversation>>>,
    /// Of which revision they are.
    changes: watch::Sender<u64>,
    turns: Mutex<HashMap<MachineId, Turns>>,
    /// What BMCs told of themselves that are on another mainboard than the machine's.
    others: Mutex<HashMap<MachineId, Identity>>,
    /// First logins under way, or whose end nobody was told.
    meetings: Mutex<HashMap<IpAddr, meeting::Meeting>>,
}

/// Whose turn it is at one BMC.
#[derive(Clone, Default)]
struct Turns {
    /// Held by whoever finds out, or changes, which password it has.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// Its rotation.
    under: Arc<tokio::sync::Mutex<rotation::Under>>,
    /// Its being compared with its record.
    baseline: Arc<tokio::sync::Mutex<Option<baseline::Under>>>,
}

/// What is in the file.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Stored {
    revision: u64,
    bmcs: BTreeMap<MachineId, Known>,
    /// Denied logins at BMCs that belong to no machine.
    #[serde(default)]
    strangers: BTreeMap<IpAddr, Guard>,
}

/// A BMC, in the file.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    access: Access,
    /// SHA-256 of the certificate that it showed first, in hexadecimal.
    shown: Option<String>,
    /// Counts how often an operator has said how it is reached.
    #[serde(default)]
    set: u64,
    /// The password that it is to have from now on.
    #[serde(default)]
    next: Option<String>,
    /// Whether it may have been given that.
    #[serde(default)]
    is_begun: bool,
    /// Whether it did not take the next one when that was tried last.
    #[serde(default)]
    is_present_first: bool,
    /// Whether its installer was told the next password, to set it in-band.
    #[serde(default)]
    is_in_band: bool,
    /// The password that it was logged in to with after a rotation, until the controller says it, too.
    #[serde(default)]
    proved: Option<String>,
    /// Its logins that were denied.
    #[serde(default)]
    guard: Guard,
}

// No password in a log line.
impl std::fmt::Debug for Known {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Known").field("access", &self.access).field("guard", &self.guard).finish_non_exhaustive()
    }
}

impl Known {
    fn believed(&self) -> Option<&str> {
        self.access.fingerprint.as_deref().or(self.shown.as_deref())
    }

    /// Where its serial console is.
    fn console_at(&self) -> Result<SocketAddr, BmcError> {
        let Access { at, protocol, .. } = &self.access;
        match protocol {
            Protocol::Ipmi => Ok(at.or(IPMI)),
            Protocol::Either => Ok((at.address, IPMI).into()),
            Protocol::Redfish => Err(BmcError::Unsupported(
                "a serial console is in IPMI only, and its BMC is to be asked by Redfish alone: \
                 `rackhand bmc set` with --protocol either"
                    .to_owned(),
            )),
        }
    }

    /// As the controller says now, with what is kept of what was here before.
    fn told(access: Access, beside: Option<Beside>, here: Option<&Self>) -> Self {
        let same_place = here.filter(|known| known.access.at == access.at);
        let before = here.map(|known| (known.set, known.next.clone(), known.is_begun));
        let (set, next, is_begun) = match (beside, before) {
            (Some(beside), _) => (beside.set, beside.next, beside.is_begun),
            // A controller of an earlier version says nothing of it.
            (None, before) => before.unwrap_or_default(),
        };
        let same = same_place.filter(|known| known.set == set);
        let next = next.filter(|next| *next != access.password);
        let was = here.filter(|known| next.is_some() && known.next == next);
        let is_in_band = was.is_some_and(|known| known.is_in_band);
        let guard = match same {
            Some(known) => known.guard.clone(),
            // What an installer set is tried once: it may have changed nothing.
            None if is_in_band => Guard::once(),
            None => Guard::default(),
        };
        Self {
            shown: same_place.and_then(|known| known.shown.clone()),
            set,
            is_begun: next.is_some() && (is_begun || was.is_some_and(|known| known.is_begun)),
            is_present_first: was.is_some_and(|known| known.is_present_first),
            next,
            proved: same.and_then(|known| known.proved.clone()).filter(|proved| *proved != access.password),
            is_in_band: is_in_band && same.is_some(),
            guard,
            access,
        }
    }

    fn sealed(&self, seal: &Seal) -> Self {
        let place = Access::place_of_next(self.access.machine);
        let secret = |text: &Option<String>| text.as_ref().map(|text| seal.seal(&place, text));
        Self {
            access: self.access.sealed(seal),
            next: secret(&self.next),
            proved: secret(&self.proved),
            ..self.clone()
        }
    }

    fn opened(self, seal: &Seal) -> Result<Self, NotOpened> {
        let place = Access::place_of_next(self.access.machine);
        let secret = |text: &Option<String>| text.as_ref().map(|text| seal.open(&place, text)).transpose();
        let (next, proved) = (secret(&self.next)?, secret(&self.proved)?);
        Ok(Self { access: self.access.opened(seal)?, next, proved, ..self })
    }
}

/// What is kept of a BMC as long as it is reached in the same way.
struct Conversation {
    access: Access,
    /// The password that it may have as well.
    doubt: Option<String>,
    line: tokio::sync::OnceCell<Line>,
    /// One look at a time: a BMC is slow, and does one thing after another.
    look: tokio::sync::Mutex<()>,
    /// Held by the person who asks, or waits to.
    person: tokio::sync::Mutex<()>,
    /// Told when a person waits: whoever reads regularly gives way.
    wanted: Notify,
}

impl Conversation {
    fn with(known: &Known, line: Option<Line>) -> Self {
        let (access, doubt) = known.way();
        let line = tokio::sync::OnceCell::new_with(line);
        let (look, person, wanted) = (Default::default(), Default::default(), Notify::new());
        Self { access, doubt, line, look, person, wanted }
    }

    /// Whether it is with this BMC as it is reached now.
    fn goes_by(&self, known: &Known) -> bool {
        let (access, doubt) = known.way();
        (&self.access, &self.doubt) == (&access, &doubt)
    }

    /// Ends its session, when there is one.
    async fn close(&self) {
        let Some(line) = self.line.get() else { return };
        match timeout(CLOSE, line.bmc.close()).await {
            Ok(Ok(())) => {}
            // It ends by itself, in a minute or some.
            unended => tracing::debug!(bmc = %self.access.at, ?unended, "the session of a BMC is not ended"),
        }
    }
}

/// What a BMC turned out to speak.
#[derive(Clone)]
struct Line {
    protocol: Protocol,
    bmc: Arc<dyn Bmc>,
    /// The certificate it shows.
    fingerprint: Option<String>,
}

impl Bmcs {
    /// Those in this directory of a node that serves `rack`, asked in these networks only.
    pub fn open(
        dir: &Path,
        rack: RackId,
        networks: Option<Vec<IpNet>>,
        profiles: Profiles,
        clock: Arc<dyn Clock>,
    ) -> io::Result<Self> {
        let file = dir.join(FILE);
        let seal = Seal::new(&key(dir)?);
        let stored = match fs::read(&file) {
            Ok(bytes) => opened(&bytes, &seal).unwrap_or_else(|reason| {
                tracing::error!(reason, "the stored BMCs cannot be used; the controller will send them again");
                Stored::default()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Stored::default(),
            Err(error) => return Err(error),
        };
        let changes = watch::Sender::new(stored.revision);
        Ok(Self(Arc::new(Inner {
            file,
            seal,
            rack,
            networks,
            profiles,
            clock,
            stored: Mutex::new(stored),
            writing: Arc::default(),
            conversations: Mutex::default(),
            changes,
            turns: Mutex::default(),
            others: Mutex::default(),
            meetings: Mutex::default(),
        })))
    }

    /// Of which revision they are; zero for none.
    pub fn revision(&self) -> u64 {
        self.stored().revision
    }

    /// Stores how the BMCs are reached, unless that is newer here already; gives the revision that
    /// is now on disk.
    pub async fn store(&self, wanted: bmc::Bmcs, beside: Vec<Beside>) -> Result<u64, Refused> {
        if wanted.rack != self.0.rack {
            return Err(Refused::OtherRack { wanted: wanted.rack, ours: self.0.rack });
        }
        let writing = self.0.writing.clone().lock_owned().await;
        let before = self.stored().clone();
        if before.revision >= wanted.revision {
            return Ok(before.revision);
        }
        let mut beside: HashMap<_, _> = beside.into_iter().map(|beside| (beside.machine, beside)).collect();
        let known = |access: Access| {
            let machine = access.machine;
            let here = before.bmcs.get(&machine);
            let stranger = before.strangers.get(&access.at.address).filter(|_| here.is_none());
            let mut known = Known::told(access, beside.remove(&machine), here);
            // What was denied while it was nobody's counts on.
            if let Some(guard) = stranger {
                known.guard = guard.clone();
            }
            (machine, known)
        };
        let bmcs = wanted.bmcs.into_iter().map(known).collect();
        let stored = Stored { revision: wanted.revision, bmcs, strangers: before.strangers.clone() };
        let is_same = |known: &Known| {
            let here = before.bmcs.get(&known.access.machine);
            here.is_some_and(|here| {
                (here.access.at, &here.access.mainboard) == (known.access.at, &known.access.mainboard)
            })
        };
        let same = stored.bmcs.values().filter(|known| is_same(known)).map(|known| known.access.machine);
        let same: BTreeSet<_> = same.collect();
        let revision = self.write(stored, writing).await?;
        self.0.changes.send_replace(revision);
        self.others().retain(|machine, _| same.contains(machine));
        let over = self.over();
        join_all(over.iter().map(|conversation| conversation.close())).await;
        Ok(revision)
    }

    /// Ends all sessions; what is asked afterwards begins others.
    pub async fn close(&self) {
        let all: Vec<_> = self.conversations().drain().map(|(_, conversation)| conversation).collect();
        join_all(all.iter().map(|conversation| conversation.close())).await;
    }

    /// Takes away the conversations with BMCs that are reached in another way by now, or not at all.
    fn over(&self) -> Vec<Arc<Conversation>> {
        let stored = self.stored();
        let is_over = |machine: &MachineId, conversation: &mut Arc<Conversation>| {
            stored.bmcs.get(machine).is_none_or(|known| !conversation.goes_by(known))
        };
        self.conversations().extract_if(is_over).map(|(_, conversation)| conversation).collect()
    }

    /// The BMC of a machine, when it is said how it is reached.
    pub fn of(&self, machine: MachineId) -> Option<Reached> {
        let known = self.known(machine)?;
        let mut conversations = self.conversations();
        let conversation = match conversations.get(&machine) {
            Some(conversation) if conversation.goes_by(&known) => conversation.clone(),
            _ => {
                let fresh = Arc::new(Conversation::with(&known, None));
                conversations.insert(machine, fresh.clone());
                fresh
            }
        };
        Some(Reached { bmcs: self.clone(), conversation, known })
    }

    /// Whether a machine has a serial console that we can open, or why not in words.
    pub fn has_console(&self, machine: MachineId) -> Result<(), String> {
        let stored = self.stored();
        let known = stored.bmcs.get(&machine).ok_or("nobody has said how its BMC is reached: `rackhand bmc set`")?;
        known.console_at().map(drop).map_err(|error| error.to_string())
    }

    /// Asks the BMC of a machine now: [`Seen`] as JSON, or why not in words.
    pub async fn look(&self, machine: MachineId, look: Look) -> Result<String, String> {
        let reached = self.reached(machine)?;
        let conversation = reached.conversation.clone();
        let Ok(_person) = conversation.person.try_lock() else {
            return Err("its BMC is being asked just now; ask again in a moment".into());
        };
        let seen = answered(reached.before_all_else(reached.look(look))).await?;
        Ok(serde_json::to_string(&seen).expect("what was seen always serializes"))
    }

    /// Has a machine's identification light on for so long, or off when there is no time left. Waits for
    /// whoever else asks its BMC.
    pub async fn identify(&self, machine: MachineId, lit: Duration) -> Result<(), String> {
        let reached = self.reached(machine)?;
        let conversation = reached.conversation.clone();
        answered(async {
            let _person = conversation.person.lock().await;
            reached.before_all_else(async { reached.of_this_machine().await?.identify(lit).await }).await
        })
        .await
    }

    fn reached(&self, machine: MachineId) -> Result<Reached, String> {
        self.of(machine).ok_or_else(|| "nobody has said how its BMC is reached: `rackhand bmc set`".to_owned())
    }

    /// Reads what is read of a machine regularly, unless a person asks its BMC.
    pub async fn read(&self, machine: MachineId, with_log: bool) -> Result<Read, NotRead> {
        let reached = self.of(machine).ok_or(NotRead::Gone)?;
        reached.in_turn(reached.read(with_log)).await
    }

    /// Has a machine's BMC post its events to `base` followed by `name`, unless a person asks it.
    pub async fn subscribe(&self, machine: MachineId, base: &str, name: &str) -> Result<(), NotRead> {
        let reached = self.of(machine).ok_or(NotRead::Gone)?;
        reached.in_turn(async { reached.of_this_machine().await?.subscribe(base, name).await }).await
    }

    /// Has a machine's BMC post its events nowhere below `base` any more.
    pub async fn unsubscribe(&self, machine: MachineId, base: &str) -> Result<(), NotRead> {
        let reached = self.of(machine).ok_or(NotRead::Gone)?;
        reached.in_turn(async { reached.bmc().await?.unsubscribe(base).await }).await
    }

    /// The machines whose BMCs are reached.
    pub fn machines(&self) -> Vec<MachineId> {
        self.stored().bmcs.keys().copied().collect()
    }

    /// Of which revision they are, now and whenever that changes.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// Writes on although its caller may wait no longer, and lets nobody else before that is done.
    async fn write(&self, stored: Stored, writing: OwnedMutexGuard<()>) -> Result<u64, Refused> {
        let (bmcs, bytes) = (self.clone(), sealed(&stored, &self.0.seal));
        let write = move || {
            let _writing = writing;
            replace(&bmcs.0.file, &bytes)?;
            let revision = stored.revision;
            *bmcs.stored() = stored;
            Ok(revision)
        };
        let written = tokio::task::spawn_blocking(write).await.map_err(io::Error::other);
        written.flatten().map_err(|source| Refused::Disk { path: self.0.file.clone(), source })
    }

    /// What is known of the BMCs without asking them.
    pub fn standings(&self) -> Vec<Standing> {
        let (now, others) = (self.0.clock.now().wall, self.others().clone());
        let standing = |(machine, known): (&MachineId, &Known)| Standing {
            machine: *machine,
            denied: known.guard.denied,
            rests_until: known.guard.rests_until(now),
            other: others.get(machine).cloned(),
        };
        self.stored().bmcs.iter().map(standing).collect()
    }

    fn known(&self, machine: MachineId) -> Option<Known> {
        self.stored().bmcs.get(&machine).cloned()
    }

    /// Writes down a change of what is known of a BMC.
    async fn note(&self, machine: MachineId, change: impl FnOnce(&mut Known)) -> Result<(), Refused> {
        let writing = self.0.writing.clone().lock_owned().await;
        let mut stored = self.stored().clone();
        let Some(known) = stored.bmcs.get_mut(&machine) else { return Ok(()) };
        let before = known.clone();
        change(known);
        if *known == before {
            return Ok(());
        }
        self.write(stored, writing).await.map(drop)
    }

    /// Whether a login may be tried now.
    fn may_log_in(&self, machine: MachineId) -> Result<(), String> {
        let Some(known) = self.known(machine) else { return Ok(()) };
        let Some(until) = known.guard.rests_until(self.0.clock.now().wall) else { return Ok(()) };
        Err(format!(
            "{} logins were denied, and so that the account is not locked none is tried before {}; when the password is \
             known, `rackhand bmc set` has it tried at once",
            known.guard.denied,
            until.strftime("%Y-%m-%d %H:%M UTC")
        ))
    }

    /// Whose turn it is at a machine's BMC. There are as many as machines ever had one.
    fn turns(&self, machine: MachineId) -> Turns {
        self.0.turns.lock().unwrap_or_else(PoisonError::into_inner).entry(machine).or_default().clone()
    }

    fn others(&self) -> MutexGuard<'_, HashMap<MachineId, Identity>> {
        self.0.others.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails when a BMC tells another mainboard than the machine's.
    async fn check_mainboard(&self, access: &Access, bmc: &dyn Bmc) -> Result<(), BmcError> {
        let Some(mainboard) = &access.mainboard else { return Ok(()) };
        let told = bmc.identity().await?;
        if !self.compare(access, &told) {
            return Ok(());
        }
        let serial = told.serial.as_deref().unwrap_or("unknown");
        Err(BmcError::Refused(format!(
            "the BMC at {} is of the machine with serial number {serial}, and not of the one with {mainboard}; is its \
             address right? (`rackhand bmc set`)",
            access.at
        )))
    }

    /// Whether a BMC is on another mainboard than the machine's, by what it told; kept for whoever
    /// asks how it stands.
    fn compare(&self, access: &Access, told: &Identity) -> bool {
        let is_other = access.mainboard.as_ref().is_some_and(|mainboard| told.is_other(mainboard));
        if is_other {
            self.others().insert(access.machine, told.clone());
        } else {
            self.others().remove(&access.machine);
        }
        is_other
    }

    /// Keeps the certificate that a BMC showed first.
    async fn keep(&self, access: &Access, fingerprint: &str) -> Result<(), Refused> {
        let writing = self.0.writing.clone().lock_owned().await;
        let mut stored = self.stored().clone();
        match stored.bmcs.get_mut(&access.machine) {
            Some(known) if known.access == *access && known.shown.is_none() => known.shown = Some(fingerprint.into()),
            _ => return Ok(()),
        }
        self.write(stored, writing).await.map(drop)
    }

    fn conversations(&self) -> MutexGuard<'_, HashMap<MachineId, Arc<Conversation>>> {
        self.0.conversations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stored(&self) -> MutexGuard<'_, Stored> {
        self.0.stored.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is read of a machine regularly.
#[derive(Clone, Debug, PartialEq)]
pub struct Read {
    /// Chassis power, when it could be told.
    pub power: Option<Power>,
    /// What its sensors read.
    pub sensors: Sensors,
    /// The hardware's event log, when it was asked for and could be read.
    pub log: Option<Log>,
}

/// Why a machine was not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotRead {
    /// Its BMC is not reached any more.
    Gone,
    /// A person asks its BMC.
    Busy,
    /// Its BMC did not answer, or not so that it could be used.
    Failed(String),
}

/// A BMC that can be asked.
pub struct Reached {
    bmcs: Bmcs,
    conversation: Arc<Conversation>,
    known: Known,
}

/// What a BMC answers a person, or why it does not, in words.
async fn answered<T>(asking: impl Future<Output = Result<T, BmcError>>) -> Result<T, String> {
    let answered = timeout(LOOK, asking).await;
    let answered = answered.map_err(|_| format!("its BMC did not answer within {} s", LOOK.as_secs()))?;
    answered.map_err(|error| format!("its BMC: {error}"))
}

impl Reached {
    /// Asks for a person, before whatever is read regularly.
    async fn before_all_else<T>(&self, ask: impl Future<Output = T>) -> T {
        self.conversation.wanted.notify_one();
        self.alone(ask).await
    }

    /// Asks what is asked regularly, unless a person asks, or comes to.
    async fn in_turn<T>(&self, ask: impl Future<Output = Result<T, BmcError>>) -> Result<T, NotRead> {
        let conversation = &self.conversation;
        if conversation.person.try_lock().is_err() {
            return Err(NotRead::Busy);
        }
        let Ok(_alone) = conversation.look.try_lock() else { return Err(NotRead::Busy) };
        let answer = tokio::select! {
            () = conversation.wanted.notified() => return Err(NotRead::Busy),
            answer = timeout(LOOK, ask) => answer,
        };
        let answer = answer.map_err(|_| NotRead::Failed(format!("does not answer within {} s", LOOK.as_secs())))?;
        answer.map_err(|error| NotRead::Failed(error.to_string()))
    }

    /// Who is asked; on the first call it is found out what the BMC speaks.
    pub async fn bmc(&self) -> Result<Arc<dyn Bmc>, BmcError> {
        Ok(self.line().await?.bmc.clone())
    }

    /// The same, when it is on the machine's mainboard: for whoever changes something by it.
    pub async fn of_this_machine(&self) -> Result<Arc<dyn Bmc>, BmcError> {
        let bmc = self.bmc().await?;
        self.bmcs.check_mainboard(&self.known.access, &*bmc).await?;
        Ok(bmc)
    }

    /// Asks what takes its time, while nobody else asks.
    pub async fn alone<T>(&self, ask: impl Future<Output = T>) -> T {
        let _alone = self.conversation.look.lock().await;
        ask.await
    }

    /// Opens the machine's serial console, from its present holder if it `takes_over`; in a session
    /// of its own, whose login counts as any other.
    pub async fn console(&self, takes_over: bool) -> Result<Console, ConsoleError> {
        let (Access { machine, at, user, password, mainboard, .. }, doubt) = self.known.way();
        if doubt.is_some() {
            return Err(BmcError::Unreachable("its password is being changed just now".to_owned()).into());
        }
        let console = self.known.console_at()?;
        check_place(at.address, self.bmcs.0.networks.as_deref())?;
        // Whoever types changes something.
        if mainboard.is_some() {
            self.of_this_machine().await?;
        }
        let logins = Counted { bmcs: self.bmcs.clone(), machine, is_next: None };
        logins.may().map_err(BmcError::Denied)?;
        let credentials = Credentials { user, password: password.into() };
        let mut console = Console::open(console, &credentials, takes_over).await?;
        let ended = loop {
            match console.next().await {
                Ok(Told::Opened) => break Ok(()),
                Ok(_) => {}
                Err(error) => break Err(error),
            }
        };
        match &ended {
            Ok(()) | Err(ConsoleError::InUse) => logins.ended(true).await,
            Err(ConsoleError::Bmc(BmcError::Denied(_))) => logins.ended(false).await,
            Err(_) => {}
        }
        match ended {
            Ok(()) => Ok(console),
            Err(error) => {
                console.close().await;
                Err(error)
            }
        }
    }

    /// Asks it now.
    async fn look(&self, look: Look) -> Result<Seen, BmcError> {
        let line = self.line().await?;
        Ok(match look {
            Look::Identity => {
                let identity = line.bmc.identity().await?;
                self.bmcs.compare(&self.known.access, &identity);
                let (power, protocol) = (line.bmc.power().await.ok(), line.protocol);
                Seen::Identity { identity, power, protocol, fingerprint: line.fingerprint.clone() }
            }
            Look::Sensors => Seen::Sensors(line.bmc.sensors().await?),
            Look::Log => Seen::Log(line.bmc.log().await?),
            Look::Parts => Seen::Parts(line.bmc.parts().await?),
        })
    }

    /// Reads what is read regularly. With the log, it is looked whether it is the machine's BMC, too:
    /// another's sensors say nothing about it.
    async fn read(&self, with_log: bool) -> Result<Read, BmcError> {
        let bmc = if with_log { self.of_this_machine().await? } else { self.bmc().await? };
        let (power, sensors) = (bmc.power().await.ok(), bmc.sensors().await?);
        let log = if with_log {
            let log = bmc.log().await;
            log.inspect_err(|error| tracing::debug!(bmc = %self.known.access.at, %error, "its log cannot be read")).ok()
        } else {
            None
        };
        Ok(Read { power, sensors, log })
    }

    async fn line(&self) -> Result<&Line, BmcError> {
        self.conversation.line.get_or_try_init(|| self.begin()).await
    }

    async fn begin(&self) -> Result<Line, BmcError> {
        let machine = self.known.access.machine;
        let turn = self.bmcs.turns(machine).turn;
        let _alone = turn.lock().await;
        // What was in doubt may be settled by now.
        let known = self.bmcs.known(machine).filter(|known| known.access.at == self.known.access.at);
        let known = known.unwrap_or_else(|| self.known.clone());
        if known.doubt().is_none() {
            return self.bmcs.connect(&known, known.present()).await;
        }
        let (line, _) = self.bmcs.settle(&known).await?;
        // Others go on in the same conversation.
        if let Some(settled) = self.bmcs.known(machine) {
            let conversation = Arc::new(Conversation::with(&settled, Some(line.clone())));
            self.bmcs.conversations().insert(machine, conversation);
        }
        Ok(line)
    }
}

impl Bmcs {
    /// Finds out what a BMC speaks; whether it takes this password is not asked yet.
    async fn connect(&self, known: &Known, password: &str) -> Result<Line, BmcError> {
        let Access { machine, at, protocol, user, .. } = &known.access;
        let credentials = Credentials { user: user.clone(), password: password.to_owned().into() };
        let is_next = known.doubt().map(|next| next == password);
        let logins = Arc::new(Counted { bmcs: self.clone(), machine: *machine, is_next });
        let line = self.line(*at, *protocol, credentials, known.believed(), logins).await?;
        if let Some(fingerprint) = line.fingerprint.as_deref().filter(|_| known.believed().is_none()) {
            self.keep(&known.access, fingerprint).await.map_err(unwritten)?;
        }
        Ok(line)
    }

    /// The same of a BMC at a place; of one that is `believed`, only with that certificate.
    async fn line(
        &self,
        at: At,
        protocol: Protocol,
        credentials: Credentials,
        believed: Option<&str>,
        logins: Arc<dyn Logins>,
    ) -> Result<Line, BmcError> {
        check_place(at.address, self.0.networks.as_deref())?;
        let ipmi = || {
            let bmc: Arc<dyn Bmc> = Arc::new(Ipmi::new(at.or(IPMI), credentials.clone()).counted(logins.clone()));
            Line { protocol: Protocol::Ipmi, bmc, fingerprint: None }
        };
        if protocol == Protocol::Ipmi {
            return Ok(ipmi());
        }
        let redfish = Redfish::new(Target {
            url: format!("https://{}", at.or(HTTPS)),
            credentials: credentials.clone(),
            fingerprint: believed.map(fingerprint).transpose()?,
            system: Which::Only,
            bounds: Bounds::default(),
        })?
        .counted(logins.clone());
        if let Err(error) = redfish.greet().await {
            // Whoever was met by a certificate is not given the password in another way.
            if protocol == Protocol::Redfish || believed.is_some() || matches!(error, BmcError::Changed(_)) {
                return Err(error);
            }
            // It may only be starting: what it speaks is what it has answered in.
            let line = ipmi();
            let answered = line.bmc.power().await;
            tracing::debug!(bmc = %at, %error, ?answered, "no Redfish there: it is asked by IPMI");
            return match answered {
                Ok(_) => Ok(line),
                Err(BmcError::Unreachable(other)) => {
                    Err(BmcError::Unreachable(format!("neither by Redfish ({error}) nor by IPMI ({other})")))
                }
                Err(error) => Err(error),
            };
        }
        let fingerprint = redfish.fingerprint().map(|fingerprint| fingerprint.to_string());
        Ok(Line { protocol: Protocol::Redfish, bmc: Arc::new(redfish), fingerprint })
    }
}

/// Counts the logins of one BMC on disk.
struct Counted {
    bmcs: Bmcs,
    machine: MachineId,
    /// Whether it is with the next password, while it is not known which of both it has.
    is_next: Option<bool>,
}

impl Logins for Counted {
    fn may(&self) -> Result<(), String> {
        self.bmcs.may_log_in(self.machine)
    }

    fn ended(&self, is_taken: bool) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        let now = self.bmcs.0.clock.now().wall;
        Box::pin(async move {
            let count = |known: &mut Known| {
                if is_taken {
                    return known.guard.taken();
                }
                known.guard.denied(now);
                // In one with the count: whoever is killed here does not try the same one again.
                known.is_present_first = self.is_next.unwrap_or(known.is_present_first);
            };
            if let Err(error) = self.bmcs.note(self.machine, count).await {
                let error = format!("{:#}", anyhow::Error::from(error));
                tracing::error!(machine = %self.machine, error, "a login at a BMC cannot be written down");
            }
        })
    }
}

fn unwritten(error: Refused) -> BmcError {
    BmcError::Refused(format!("this cannot be written down: {:#}", anyhow::Error::from(error)))
}

/// That a BMC can be at this address: what the controller says must not make the node talk to
/// itself.
pub(crate) fn check_place(address: IpAddr, networks: Option<&[IpNet]>) -> Result<(), BmcError> {
    let is_there = match networks {
        // Inward only where that is meant: everything is no such network.
        Some(networks) => networks.iter().any(|network| {
            network.contains(&address)
                && (!is_inward(address) || (network.prefix_len() > 0 && is_inward(network.network())))
        }),
        None => !is_inward(address),
    };
    let advice = "is in none of the networks in which this node asks BMCs (`bmc.networks` in agent.toml)";
    is_there.then_some(()).ok_or_else(|| BmcError::Refused(format!("{address} {advice}")))
}

fn is_inward(address: IpAddr) -> bool {
    address.is_loopback()
        || address.is_unspecified()
        || address.is_multicast()
        || match address {
            IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
            IpAddr::V6(address) => {
                address.is_unicast_link_local() || address.to_ipv4_mapped().is_some_and(|inner| is_inward(inner.into()))
            }
        }
}

fn fingerprint(digits: &str) -> Result<Fingerprint, BmcError> {
    let mut bytes = [0; 32];
    let decoded = hex::decode_to_slice(digits, &mut bytes);
    decoded.map_err(|_| BmcError::Refused("its fingerprint is not 64 hexadecimal digits".into()))?;
    Ok(Fingerprint(bytes))
}

fn sealed(stored: &Stored, seal: &Seal) -> Vec<u8> {
    let seal = |(machine, known): (&MachineId, &Known)| (*machine, known.sealed(seal));
    let stored = Stored { bmcs: stored.bmcs.iter().map(seal).collect(), ..stored.clone() };
    serde_json::to_vec_pretty(&stored).expect("what is stored always serializes")
}

fn opened(bytes: &[u8], seal: &Seal) -> Result<Stored, String> {
    let stored: Stored = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let open =
        |(machine, known): (MachineId, Known)| Ok((machine, known.opened(seal).map_err(|error| error.to_string())?));
    let bmcs = stored.bmcs.into_iter().map(open).collect::<Result<_, String>>()?;
    Ok(Stored { bmcs, ..stored })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(machine: MachineId, at: &str) -> Access {
        Access {
            machine,
            at: at.parse().unwrap(),
            protocol: Protocol::Either,
            user: "admin".into(),
            password: "canary-91aa".into(),
            fingerprint: None,
            mainboard: None,
        }
    }

    fn open(dir: &Path, rack: RackId) -> io::Result<Bmcs> {
        Bmcs::open(dir, rack, None, Profiles::default(), Arc::new(crate::clock::SystemClock::default()))
    }

    fn wanted(rack: RackId, revision: u64, bmcs: Vec<Access>) -> bmc::Bmcs {
        bmc::Bmcs { revision, rack, bmcs }
    }

    #[tokio::test]
    async fn bmcs_survive_a_restart_with_their_passwords_sealed_and_revisions_only_move_forward() {
        let dir = tempfile::tempdir().unwrap();
        let (rack, machine) = (RackId::fresh(), MachineId::fresh());
        let bmcs = open(dir.path(), rack).unwrap();
        assert_eq!(bmcs.revision(), 0);
        assert_eq!(bmcs.store(wanted(rack, 3, vec![access(machine, "10.0.0.5")]), Vec::new()).await.unwrap(), 3);
        assert_eq!(bmcs.store(wanted(rack, 2, Vec::new()), Vec::new()).await.unwrap(), 3);
        let text = fs::read_to_string(dir.path().join(FILE)).unwrap();
        assert!(!text.contains("canary") && text.contains("10.0.0.5"), "{text}");
        let again = open(dir.path(), rack).unwrap();
        assert_eq!(again.revision(), 3);
        assert_eq!(again.of(machine).unwrap().known.access, access(machine, "10.0.0.5"));
        assert!(again.of(MachineId::fresh()).is_none());
        let refused = again.store(wanted(RackId::fresh(), 9, Vec::new()), Vec::new()).await;
        assert!(matches!(refused, Err(Refused::OtherRack { .. })), "{refused:?}");
    }

    #[tokio::test]
    async fn a_certificate_is_kept_as_long_as_the_bmc_is_at_the_same_place() {
        let dir = tempfile::tempdir().unwrap();
        let (rack, machine) = (RackId::fresh(), MachineId::fresh());
        let bmcs = open(dir.path(), rack).unwrap();
        let here = access(machine, "10.0.0.5");
        bmcs.store(wanted(rack, 1, vec![here.clone()]), Vec::new()).await.unwrap();
        bmcs.keep(&here, "aa").await.unwrap();
        bmcs.keep(&here, "bb").await.unwrap();
        bmcs.store(wanted(rack, 2, vec![here.clone()]), Vec::new()).await.unwrap();
        let again = open(dir.path(), rack).unwrap();
        assert_eq!(again.of(machine).unwrap().known.believed(), Some("aa"));
        // Another password is given to the same BMC alone.
        let changed = Access { password: "another".into(), ..here.clone() };
        again.store(wanted(rack, 3, vec![changed]), Vec::new()).await.unwrap();
        assert_eq!(again.of(machine).unwrap().known.believed(), Some("aa"));
        again.store(wanted(rack, 4, vec![access(machine, "10.0.0.6")]), Vec::new()).await.unwrap();
        assert_eq!(again.of(machine).unwrap().known.believed(), None);
        let told = Access { fingerprint: Some("cc".into()), ..here };
        again.store(wanted(rack, 5, vec![told]), Vec::new()).await.unwrap();
        assert_eq!(again.of(machine).unwrap().known.believed(), Some("cc"));
    }

    #[tokio::test]
    async fn a_conversation_is_kept_as_long_as_the_bmc_is_reached_in_the_same_way() {
        let dir = tempfile::tempdir().unwrap();
        let (rack, machine) = (RackId::fresh(), MachineId::fresh());
        let bmcs = open(dir.path(), rack).unwrap();
        bmcs.store(wanted(rack, 1, vec![access(machine, "10.0.0.5")]), Vec::new()).await.unwrap();
        let first = bmcs.of(machine).unwrap().conversation;
        assert!(Arc::ptr_eq(&first, &bmcs.of(machine).unwrap().conversation));
        bmcs.store(wanted(rack, 2, vec![access(machine, "10.0.0.6")]), Vec::new()).await.unwrap();
        assert!(bmcs.conversations().is_empty(), "the one before is kept, with its password");
        assert!(!Arc::ptr_eq(&first, &bmcs.of(machine).unwrap().conversation));
    }

    #[test]
    fn bmcs_are_asked_where_they_may_be_and_never_at_the_node_itself() {
        let refused =
            |address: &str, networks: Option<&[IpNet]>| check_place(address.parse().unwrap(), networks).is_err();
        for inward in ["127.0.0.1", "::1", "0.0.0.0", "169.254.169.254", "224.0.0.1", "fe80::1", "::ffff:127.0.0.1"] {
            assert!(refused(inward, None), "{inward}");
        }
        assert!(!refused("10.20.0.5", None) && !refused("2001:db8::5", None));
        let management = ["10.20.0.0/16".parse().unwrap()];
        assert!(!refused("10.20.0.5", Some(&management)));
        assert!(refused("10.21.0.5", Some(&management)) && refused("2001:db8::5", Some(&management)));
        assert!(refused("127.0.0.1", Some(&["0.0.0.0/0".parse().unwrap()])));
        assert!(!refused("127.0.0.1", Some(&["127.0.0.0/8".parse().unwrap()])));
    }

    #[tokio::test]
    async fn a_damaged_file_is_no_reason_not_to_start() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), "{").unwrap();
        let bmcs = open(dir.path(), RackId::fresh()).unwrap();
        assert_eq!(bmcs.revision(), 0);
    }
}
