//! Serial consoles of the rack's machines: for each at most one session at its BMC, however many
//! watch.
//!
//! Read in this order: [`scrollback`] is what was printed lately, [`recording`] what is kept of it on
//! disk, [`line`] the session at a BMC, [`stream`] how a console travels.
//!
//! Invariants:
//! - A session is there as long as somebody watches or a run is recorded, and [`LINGER`] longer.
//! - One watcher has the keyboard, or none; what others type is dropped.
//! - A watcher that is slow, or a disk, holds up nobody else: it loses the oldest bytes and is told.
//! - Watchers are counted: at most [`WATCHERS`] of one machine and [`ALL_WATCHERS`] of all.
//! - What is typed is neither logged nor kept; what the machine echoes of it is.
//!
//! Deliberately not here: who may. The controller decides, and on the node whoever may open the
//! agent's socket.

mod line;
mod recording;
mod scrollback;
mod stream;

pub(crate) use stream::serve;

use std::{
    collections::{BTreeMap, HashMap, HashSet, hash_map::Entry},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rackhand_common::{
    id::{MachineId, RunId},
    intent::Intent,
    wire::{FromConsole, MAX_CONSOLE_BYTES, ToConsole},
};
use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    line::Order,
    recording::{Recording, Shelf},
    scrollback::{Read, Scrollback},
};
use crate::bmcs::Bmcs;

/// How long a session outlives its last watcher: whoever looks again soon finds what was printed.
const LINGER: Duration = Duration::from_secs(20);

/// How many may watch one machine.
const WATCHERS: usize = 16;

/// How many may watch at the same time, all together.
const ALL_WATCHERS: usize = 48;

/// How many bytes of what is typed are handed to the line at once, and how many such pieces may
/// wait: then whoever types waits.
const TYPED: usize = 1024;
const ORDERS: usize = 8;

/// How often a recording is written.
const WRITE: Duration = Duration::from_millis(500);

/// How long a machine is recorded after its order ended: the system starts.
const TAIL: Duration = Duration::from_secs(60);

/// How long a watcher's name may be, in characters.
const NAME: usize = 64;

/// A handle on the consoles; clones are the same.
#[derive(Clone, Debug)]
pub struct Consoles(Arc<Inner>);

struct Inner {
    bmcs: Bmcs,
    shelf: Shelf,
    lines: Mutex<HashMap<MachineId, Arc<Line>>>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Consoles").finish_non_exhaustive()
    }
}

/// A machine's serial line, as those see it who watch.
struct Line {
    machine: MachineId,
    shared: Mutex<Shared>,
    /// Says that what is shared has changed.
    changed: watch::Sender<()>,
    /// To whoever holds the session.
    orders: mpsc::Sender<Order>,
}

#[derive(Default)]
struct Shared {
    scrollback: Scrollback,
    watchers: BTreeMap<u64, String>,
    next: u64,
    writer: Option<u64>,
    /// How many recordings are made; one, or for a moment two.
    recorders: usize,
}

impl Shared {
    fn is_wanted(&self) -> bool {
        !self.watchers.is_empty() || self.recorders > 0
    }
}

impl Line {
    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn print(&self, bytes: &[u8]) {
        self.shared().scrollback.print(bytes);
        self.changed.send_replace(());
    }

    /// A line of our own in what is printed.
    fn say(&self, words: &str) {
        self.print(format!("\r\n[rackhand: {words}]\r\n").as_bytes());
    }

    fn is_wanted(&self) -> bool {
        self.shared().is_wanted()
    }
}

impl Consoles {
    /// Those of an agent with this state directory, until shutdown.
    pub fn new(bmcs: Bmcs, state: &Path, shutdown: CancellationToken) -> Self {
        let (shelf, lines, tasks) = (Shelf::within(state), Mutex::default(), TaskTracker::new());
        Self(Arc::new(Inner { bmcs, shelf, lines, tasks, shutdown }))
    }

    /// Records each run as long as the machine has an order of it, until shutdown; then closes all
    /// sessions.
    pub async fn run(self, mut intent: watch::Receiver<Option<Arc<Intent>>>) {
        let mut recorded: HashMap<(MachineId, RunId), CancellationToken> = HashMap::new();
        loop {
            let wanted = intent.borrow_and_update().as_deref().map(|intent| self.runs(intent)).unwrap_or_default();
            recorded.retain(|run, over| {
                let goes_on = wanted.contains(run);
                if !goes_on {
                    over.cancel();
                }
                goes_on
            });
            for (machine, run) in wanted {
                if let Entry::Vacant(vacant) = recorded.entry((machine, run)) {
                    let over = CancellationToken::new();
                    self.0.tasks.spawn(self.clone().record(machine, run, over.clone()));
                    vacant.insert(over);
                }
            }
            tokio::select! {
                () = self.0.shutdown.cancelled() => break,
                changed = intent.changed() => if changed.is_err() { break },
            }
        }
        self.0.shutdown.cancelled().await;
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    /// The runs that are to be recorded: orders of machines whose BMC has a console that we know.
    fn runs(&self, intent: &Intent) -> HashSet<(MachineId, RunId)> {
        let orders = intent.machines.iter().filter_map(|machine| Some((machine.id, machine.order.as_ref()?.run)));
        orders.filter(|(machine, _)| self.0.bmcs.has_console(*machine).is_ok()).collect()
    }

    /// Whether a machine has a console, or why not in words.
    pub fn check(&self, machine: MachineId) -> Result<(), String> {
        self.0.bmcs.has_console(machine)
    }

    /// Watches the console of a machine, from what was printed lately on; or why not in words.
    pub fn watch(&self, machine: MachineId, who: &str) -> Result<Watch, String> {
        self.check(machine)?;
        let mut lines = self.lines();
        let all: usize = lines.values().map(|line| line.shared().watchers.len()).sum();
        if all >= ALL_WATCHERS {
            return Err(format!("{all} consoles of this rack are being watched, which is the most there can be"));
        }
        let line = self.line(&mut lines, machine);
        let (id, at) = {
            let mut shared = line.shared();
            if shared.watchers.len() >= WATCHERS {
                let there: Vec<_> = shared.watchers.values().map(String::as_str).collect();
                return Err(format!("it is watched by {WATCHERS} already: {}", there.join(", ")));
            }
            let id = shared.next;
            shared.next += 1;
            shared.watchers.insert(id, who.chars().filter(|letter| !letter.is_control()).take(NAME).collect());
            (id, shared.scrollback.start())
        };
        line.changed.send_replace(());
        let (changed, shutdown) = (line.changed.subscribe(), self.0.shutdown.clone());
        Ok(Watch { voice: Voice { line, id }, at, told: None, changed, shutdown })
    }

    /// Some of what was recorded of a machine behind so many bytes, during a run or last; or why
    /// there is none in words.
    pub async fn recording(&self, machine: MachineId, run: Option<RunId>, offset: u64) -> Result<Vec<u8>, String> {
        let shelf = self.0.shelf.clone();
        let read = tokio::task::spawn_blocking(move || shelf.read(machine, run, offset)).await;
        match read.map_err(std::io::Error::other).flatten() {
            Ok(Some(bytes)) => Ok(bytes),
            Ok(None) if run.is_some() => Err("its console was not recorded during this run, or not kept".into()),
            Ok(None) => Err("its console was not recorded yet: it is during runs, when its BMC is set".into()),
            Err(error) => Err(format!("the recording cannot be read: {error}")),
        }
    }

    fn lines(&self) -> MutexGuard<'_, HashMap<MachineId, Arc<Line>>> {
        self.0.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The line of a machine; whoever holds its session is started when there is none.
    fn line(&self, lines: &mut HashMap<MachineId, Arc<Line>>, machine: MachineId) -> Arc<Line> {
        let new = || {
            let (orders, given) = mpsc::channel(ORDERS);
            let (shared, changed) = (Mutex::default(), watch::Sender::new(()));
            let line = Arc::new(Line { machine, shared, changed, orders });
            self.0.tasks.spawn(line::hold(self.clone(), line.clone(), given));
            line
        };
        lines.entry(machine).or_insert_with(new).clone()
    }

    /// Forgets a line that nobody wants; whether that is so.
    fn forget(&self, line: &Line) -> bool {
        let mut lines = self.lines();
        let is_unwanted = !line.is_wanted();
        if is_unwanted {
            lines.remove(&line.machine);
        }
        is_unwanted
    }

    /// Records a run until it is over.
    async fn record(self, machine: MachineId, run: RunId, over: CancellationToken) {
        let line = {
            let mut lines = self.lines();
            let line = self.line(&mut lines, machine);
            line.shared().recorders += 1;
            line
        };
        if let Err(error) = self.recorded(&line, run, &over).await {
            tracing::warn!(%machine, %run, %error, "the console is not recorded any more");
        }
        line.shared().recorders -= 1;
        line.changed.send_replace(());
    }

    async fn recorded(&self, line: &Line, run: RunId, over: &CancellationToken) -> std::io::Result<()> {
        let (shelf, machine) = (self.0.shelf.clone(), line.machine);
        let opened = tokio::task::spawn_blocking(move || shelf.record(machine, run)).await;
        let (mut recording, was_there) = opened.map_err(std::io::Error::other).flatten()?;
        if was_there {
            let words = b"\r\n[rackhand: the recording goes on: the agent was started anew]\r\n";
            recording = add(recording, words.to_vec()).await?.0;
        }
        let mut changed = line.changed.subscribe();
        // Only what is printed from now on is this run's.
        let mut at = line.shared().scrollback.end();
        let mut end = std::pin::pin!(async {
            tokio::select! {
                () = self.0.shutdown.cancelled() => {}
                () = async { over.cancelled().await; sleep(TAIL).await } => {}
            }
        });
        let mut is_over = false;
        loop {
            changed.borrow_and_update();
            let read = line.shared().scrollback.read(&mut at, MAX_CONSOLE_BYTES);
            let bytes = match read {
                Read::Nothing if is_over => break,
                Read::Nothing => {
                    tokio::select! {
                        () = &mut end => is_over = true,
                        // Several bytes at a time, and not each by itself.
                        _ = changed.changed() => is_over = timeout(WRITE, &mut end).await.is_ok(),
                    }
                    continue;
                }
                Read::Lost(lost) => format!("\r\n[rackhand: {lost} bytes are missing]\r\n").into_bytes(),
                Read::Bytes(bytes) => bytes,
            };
            let has_room;
            (recording, has_room) = add(recording, bytes).await?;
            if !has_room {
                break;
            }
        }
        tokio::task::spawn_blocking(move || recording.end()).await.map_err(std::io::Error::other).flatten()
    }
}

/// Adds bytes to a recording; whether it has room for more.
async fn add(mut recording: Recording, bytes: Vec<u8>) -> std::io::Result<(Recording, bool)> {
    let add = move || recording.add(&bytes).map(|has_room| (recording, has_room));
    tokio::task::spawn_blocking(add).await.map_err(std::io::Error::other).flatten()
}

/// Somebody who watches a console.
pub struct Watch {
    voice: Voice,
    /// The number of the byte that is shown next.
    at: u64,
    /// Who has the keyboard, as it was told last.
    told: Option<Option<u64>>,
    changed: watch::Receiver<()>,
    shutdown: CancellationToken,
}

/// What a watcher speaks with; the watcher is gone when the [`Watch`] is.
#[derive(Clone)]
pub struct Voice {
    line: Arc<Line>,
    id: u64,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("machine", &self.voice.line.machine).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Voice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Voice").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Watch {
    /// What this watcher speaks with.
    pub fn voice(&self) -> Voice {
        self.voice.clone()
    }

    /// What this watcher is told next. May be cancelled: nothing is lost.
    pub async fn next(&mut self) -> FromConsole {
        loop {
            self.changed.borrow_and_update();
            {
                let shared = self.voice.line.shared();
                if self.told != Some(shared.writer) {
                    self.told = Some(shared.writer);
                    let who = shared.writer.and_then(|writer| shared.watchers.get(&writer).cloned());
                    return FromConsole::Writer { who, is_you: shared.writer == Some(self.voice.id) };
                }
                match shared.scrollback.read(&mut self.at, MAX_CONSOLE_BYTES) {
                    Read::Lost(lost) => return FromConsole::Lost(lost),
                    Read::Bytes(bytes) => return FromConsole::Printed(bytes),
                    Read::Nothing => {}
                }
            }
            tokio::select! {
                // The sender is in our hands: it only ever says that something changed.
                _ = self.changed.changed() => {}
                () = self.shutdown.cancelled() => {
                    return FromConsole::Ended("the rack's agent stops; it is back soon if it is only restarted".into());
                }
            }
        }
    }
}

impl Voice {
    /// What this watcher says. It waits while what was typed before is not sent yet.
    pub async fn say(&self, said: ToConsole) {
        match said {
            ToConsole::Typed(bytes) => {
                for piece in bytes.chunks(TYPED) {
                    if self.writes() {
                        // Nobody is there to take it only when the agent stops.
                        let _ = self.line.orders.send(Order::Type(piece.to_vec())).await;
                    }
                }
            }
            ToConsole::Break => {
                if self.writes() {
                    let _ = self.line.orders.send(Order::Break).await;
                }
            }
            ToConsole::Take => {
                self.line.shared().writer = Some(self.id);
                self.line.changed.send_replace(());
                let _ = self.line.orders.send(Order::TakeOver).await;
            }
            ToConsole::Give => self.give(),
        }
    }

    /// Whether this watcher has the keyboard; who types while nobody has it gets it.
    fn writes(&self) -> bool {
        let mut shared = self.line.shared();
        match shared.writer {
            Some(writer) => writer == self.id,
            None => {
                shared.writer = Some(self.id);
                drop(shared);
                self.line.changed.send_replace(());
                true
            }
        }
    }

    fn give(&self) {
        self.line.shared().writer.take_if(|writer| *writer == self.id);
        self.line.changed.send_replace(());
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.voice.line.shared().watchers.remove(&self.voice.id);
        self.voice.give();
    }
}
