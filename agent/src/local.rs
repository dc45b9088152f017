//! The node's unix socket: boot takes the intent from here and leaves its events, the
//! technician's tool asks how things stand.
//!
//! Whoever may open the socket is trusted with what is answered here, which is the file's
//! mode and group: 0660 and `rackhand`. Nothing here changes hardware, but for a console's keys, a
//! machine's identification light, and the power of a machine that is nobody's while a part of it is replaced. No
//! password is told here but the next one of a BMC, while the controller wants the machine's installer to set it.
//!
//! Invariants:
//! - Boot's events are on stable storage before they are acknowledged, each once, in order.
//! - At most [`CONNECTIONS`] at a time; a peer that sends half a request, reads no answer or
//!   is idle is cut off.

use std::{
    collections::BTreeMap,
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    sync::{Semaphore, watch},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use rackhand_common::{
    channel::HOLD,
    event::NodeHealth,
    id::{AgentId, MachineId, RackId, RunId},
    image::{Digest, SignedManifest},
    intent::{Intent, MachineIntent},
    time::{Clock, Mono},
    wire::{self, LocalRequest, LocalResponse, MachineView, Malformed, NodeView},
};

use crate::{
    bmcs::Bmcs,
    console::{self, Consoles},
    discovery::Leased,
    firmware::Updates,
    health::Machines,
    intent,
    lights::Lights,
    replacements::Replacements,
    spool::{Spool, chain},
    timeline::{History, Timelines},
    why::{self, Evidence},
};

/// Connections at a time: boot keeps a handful, a technician one per tool.
pub const CONNECTIONS: usize = 64;

/// How long a connection may stand without a request.
const IDLE: Duration = Duration::from_secs(300);

/// How long the rest of a request may take, and an answer to be read.
const FRAME: Duration = Duration::from_secs(30);

/// How long a client waits for an answer: longer than an intent is held or a chunk fetched.
const ANSWER: Duration = Duration::from_secs(90);

/// Where chunks and manifests come from: the controller, or a simulation's store.
pub trait Source: Send + Sync + 'static {
    /// A chunk's compressed bytes, checked against its name.
    fn chunk(&self, digest: Digest) -> Fetched<'_, Vec<u8>>;
    /// A manifest, checked against its name and the trust bundle.
    fn manifest(&self, digest: Digest) -> Fetched<'_, SignedManifest>;
    /// A file of firmware, put where it is wanted: whole, of this size and with this SHA-256, or not at all.
    fn firmware<'a>(&'a self, sha256: &'a str, size: u64, to: &'a Path) -> Fetched<'a, ()>;
}

/// What a [`Source`] gives, in time.
pub type Fetched<'a, T> = Pin<Box<dyn Future<Output = Result<T, FetchError>> + Send + 'a>>;

/// Why a chunk or manifest is not here.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FetchError {
    /// The controller has no such thing, or none that is whole.
    #[error("not found: {0}")]
    NotFound(String),
    /// Ask again later.
    #[error("not available: {0}")]
    Unavailable(String),
}

/// The uplink, as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UplinkView {
    /// Whether the controller is connected.
    pub connected: bool,
    /// Since or until when, and why not, in words.
    pub words: String,
    /// When the certificate ends.
    pub certificate_until: Timestamp,
}

/// What the socket answers from.
pub struct Node {
    /// The agent's registration.
    pub agent: AgentId,
    /// The rack it serves.
    pub rack: RackId,
    /// What the controller wants.
    pub intent: intent::Store,
    /// How BMCs are reached.
    pub bmcs: Bmcs,
    /// Who was given an address on the management network.
    pub leased: Leased,
    /// How the machines fare.
    pub machines: Machines,
    /// Serial consoles.
    pub consoles: Consoles,
    /// Identification lights.
    pub lights: Lights,
    /// Files of firmware.
    pub updates: Updates,
    /// Parts that technicians replace.
    pub replacements: Replacements,
    /// The revision of it that boot has on its disk, as it last said.
    pub boot_has: watch::Sender<u64>,
    /// Where boot's events go.
    pub spool: Spool,
    /// What happened lately.
    pub timelines: Timelines,
    /// Where chunks come from.
    pub source: Arc<dyn Source>,
    /// How the uplink stands.
    pub uplink: watch::Receiver<UplinkView>,
    /// The node's own health, once it was measured.
    pub health: watch::Receiver<Option<NodeHealth>>,
    /// The present.
    pub clock: Arc<dyn Clock>,
}

/// Binds the socket, in the place of one that a dead process left behind.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process answers on this socket"));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

/// Answers requests until `shutdown`.
pub async fn serve(listener: UnixListener, node: Node, shutdown: CancellationToken) -> io::Result<()> {
    let desk = Arc::new(Desk { node, boot_heard: Mutex::new(None) });
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let connections = TaskTracker::new();
    loop {
        let place = tokio::select! {
            place = places.clone().acquire_owned() => place.expect("the semaphore is never closed"),
            () = shutdown.cancelled() => break,
        };
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of file descriptors, or the peer is gone already.
                    tracing::warn!(error = %error, "cannot accept on the node's socket");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            () = shutdown.cancelled() => break,
        };
        let (desk, shutdown) = (desk.clone(), shutdown.clone());
        connections.spawn(async move {
            let _place = place;
            if let Err(error) = desk.converse(stream, shutdown).await {
                tracing::debug!(error = chain(&error), "a connection on the node's socket ended");
            }
        });
    }
    connections.close();
    connections.wait().await;
    Ok(())
}

struct Desk {
    node: Node,
    boot_heard: Mutex<Option<Mono>>,
}

impl Desk {
    async fn converse(&self, mut stream: UnixStream, shutdown: CancellationToken) -> Result<(), LocalError> {
        loop {
            let request = tokio::select! {
                request = receive(&mut stream, IDLE) => request,
                () = shutdown.cancelled() => return Ok(()),
            };
            let answer = match request {
                Ok(Some(LocalRequest::Console { machine, who })) => match self.watch(&machine, &who) {
                    Ok(watch) => {
                        let opened = wire::frame(&LocalResponse::Console);
                        timeout(FRAME, stream.write_all(&opened)).await.map_err(|_| LocalError::TimedOut)??;
                        let (read, write) = stream.into_split();
                        // It ends by itself at shutdown, and says so.
                        return Ok(console::serve(watch, read, write).await?);
                    }
                    Err(refusal) => *refusal,
                },
                Ok(Some(request)) => self.answer(request, &shutdown).await,
                Ok(None) => return Ok(()),
                // Boot was upgraded before this process: it asks again until this one is, too.
                Err(LocalError::Malformed(unknown @ Malformed::Unknown(_))) => {
                    LocalResponse::Unavailable(unknown.to_string())
                }
                Err(error) => return Err(error),
            };
            let mut framed = wire::frame(&answer);
            if framed.len() > wire::MAX_LEN {
                let reason = format!("the answer of {} bytes is too long for this socket", framed.len());
                framed = wire::frame(&LocalResponse::Unavailable(reason));
            }
            timeout(FRAME, stream.write_all(&framed)).await.map_err(|_| LocalError::TimedOut)??;
        }
    }

    async fn answer(&self, request: LocalRequest, shutdown: &CancellationToken) -> LocalResponse {
        match request {
            LocalRequest::Intent { after } => {
                self.hear_boot();
                self.node.boot_has.send_replace(after);
                LocalResponse::Intent(self.newer_intent(after, shutdown).await)
            }
            LocalRequest::Events { spool, first, events } => {
                self.hear_boot();
                // Before boot is told that it is taken.
                if let Err(error) = self.node.leased.note(&events).await {
                    return LocalResponse::Unavailable(chain(&error));
                }
                match self.node.spool.take(spool, first, events).await {
                    Ok(next) => LocalResponse::Next(next),
                    Err(error) => LocalResponse::Unavailable(chain(&error)),
                }
            }
            LocalRequest::Chunk(digest) => match self.node.source.chunk(digest).await {
                Ok(bytes) => LocalResponse::Chunk(bytes),
                Err(error) => error.into(),
            },
            LocalRequest::Manifest(digest) => match self.node.source.manifest(digest).await {
                Ok(SignedManifest { manifest, signature }) => LocalResponse::Manifest { manifest, signature },
                Err(error) => error.into(),
            },
            LocalRequest::Firmware { sha256, size, offset } => {
                match self.node.updates.piece(&sha256, size, offset).await {
                    Ok(bytes) => LocalResponse::Firmware(bytes),
                    Err(error) => error.into(),
                }
            }
            LocalRequest::Status => LocalResponse::Status(self.status()),
            LocalRequest::Machines => LocalResponse::Machines(self.machines()),
            LocalRequest::Look(machine, look) => match self.find(&machine) {
                Some(machine) => match self.node.bmcs.look(machine.id, look).await {
                    Ok(json) => LocalResponse::Seen(json),
                    Err(reason) => LocalResponse::Unavailable(reason),
                },
                None => unknown(&machine),
            },
            LocalRequest::Health(machine) => self.health(machine.as_deref()),
            LocalRequest::Why(machine) => self.why(&machine),
            LocalRequest::Identify(machine, seconds) => match self.find(&machine) {
                Some(machine) => {
                    match self.node.lights.identify(machine.id, Duration::from_secs(seconds.into())).await {
                        Ok(()) => LocalResponse::Identified,
                        Err(reason) => LocalResponse::Unavailable(reason),
                    }
                }
                None => unknown(&machine),
            },
            LocalRequest::Replacement(machine, ask) => match self.replacement(&machine, &ask).await {
                Ok(view) => LocalResponse::Replacement(view),
                Err(refusal) => *refusal,
            },
            LocalRequest::BmcUser(machine, run, attempt) => self.bmc_user(machine, run, attempt).await,
            LocalRequest::Recording { machine, offset } => match self.find(&machine) {
                Some(machine) => match self.node.consoles.recording(machine.id, None, offset).await {
                    Ok(bytes) => LocalResponse::Recording(bytes),
                    Err(reason) => LocalResponse::NotFound(reason),
                },
                None => unknown(&machine),
            },
            LocalRequest::Console { machine, .. } => {
                unreachable!("the console of {machine} takes the whole connection")
            }
            LocalRequest::Timeline(machine) => match self.find(&machine) {
                Some(machine) => {
                    let events = self.node.timelines.events(machine.id);
                    LocalResponse::Timeline { machine, events }
                }
                None => unknown(&machine),
            },
        }
    }

    /// What an installer is to set at its machine's BMC, as long as the controller wants that done.
    async fn bmc_user(&self, machine: MachineId, run: RunId, attempt: u32) -> LocalResponse {
        let intent = self.node.intent.current();
        let known = intent.iter().flat_map(|intent| &intent.machines).find(|known| known.id == machine);
        let is_wanted = known
            .and_then(|known| known.order.as_ref())
            .is_some_and(|order| order.work.regains_bmc() && (order.run, order.attempt) == (run, attempt));
        if !is_wanted {
            return LocalResponse::NotFound("no such order to regain a BMC".to_owned());
        }
        match self.node.bmcs.hand_out(machine).await {
            Ok(user) => LocalResponse::BmcUser(user),
            Err(reason) => LocalResponse::Unavailable(reason),
        }
    }

    /// How one machine fares, or all whose BMCs are read.
    fn health(&self, wanted: Option<&str>) -> LocalResponse {
        let named = |view: MachineView| (view.id, called(&view));
        let asked = match wanted {
            None => {
                let read = self.node.machines.shown();
                self.machines().into_iter().filter(|view| read.contains_key(&view.id)).map(named).collect()
            }
            Some(wanted) => match self.find(wanted) {
                Some(view) => vec![named(view)],
                None => return unknown(wanted),
            },
        };
        let standings: Vec<_> = asked.into_iter().map(|(id, name)| self.node.machines.standing(id, name)).collect();
        LocalResponse::Health(serde_json::to_string(&standings).expect("standings always serialize"))
    }

    /// Why a machine is as it is, from all that is known here.
    fn why(&self, wanted: &str) -> LocalResponse {
        let Some(found) = self.find(wanted) else { return unknown(wanted) };
        let node = &self.node;
        let name = called(&found);
        let (intent, events) = (node.intent.current(), node.timelines.events(found.id));
        let (uplink, health, now) = (node.uplink.borrow().clone(), node.health.borrow().clone(), node.clock.now());
        let explanation = why::explain(&Evidence {
            machine: &name,
            wanted: intent.as_ref().and_then(|intent| intent.machines.iter().find(|machine| machine.id == found.id)),
            events: &events,
            opened: node.replacements.under_way(found.id),
            standing: node.machines.standing(found.id, name.clone()),
            away: (!uplink.connected).then_some(uplink.words.as_str()),
            boot_heard: self.boot_heard().map(|heard| heard.until(now.mono)),
            node: health.as_ref(),
            now: now.wall,
        });
        LocalResponse::Why(serde_json::to_string(&explanation).expect("explanations always serialize"))
    }

    async fn replacement(&self, wanted: &str, ask: &str) -> Result<String, Box<LocalResponse>> {
        let found = self.find(wanted).ok_or_else(|| unknown(wanted))?;
        let unavailable = |reason: String| Box::new(LocalResponse::Unavailable(reason));
        let ask = serde_json::from_str(ask).map_err(|_| {
            unavailable("it is not understood: are rackhand-diag and rackhand-agent of one version?".into())
        })?;
        let name = called(&found);
        let standing = self.node.machines.standing(found.id, name.clone());
        let view =
            self.node.replacements.ask(&name, found.id, ask, standing.verdict.as_ref()).await.map_err(unavailable)?;
        Ok(serde_json::to_string(&view).expect("views always serialize"))
    }

    fn watch(&self, machine: &str, who: &str) -> Result<console::Watch, Box<LocalResponse>> {
        let found = self.find(machine).ok_or_else(|| unknown(machine))?;
        self.node.consoles.watch(found.id, who).map_err(|reason| LocalResponse::Unavailable(reason).into())
    }

    fn hear_boot(&self) {
        *self.boot_heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.node.clock.now().mono);
    }

    fn boot_heard(&self) -> Option<Mono> {
        *self.boot_heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn newer_intent(&self, after: u64, shutdown: &CancellationToken) -> Option<Intent> {
        let mut current = self.node.intent.subscribe();
        let newer = current.wait_for(|intent| intent.as_ref().is_some_and(|intent| intent.revision > after));
        tokio::select! {
            found = timeout(HOLD, newer) => found.ok()?.ok()?.as_deref().cloned(),
            () = shutdown.cancelled() => None,
        }
    }

    fn status(&self) -> NodeView {
        let node = &self.node;
        let uplink = node.uplink.borrow().clone();
        NodeView {
            version: env!("CARGO_PKG_VERSION").into(),
            agent: node.agent,
            rack: node.rack,
            rack_name: node.intent.current().map(|intent| intent.name.clone()),
            uplink: uplink.words,
            revision: node.intent.revision(),
            spooled: node.spool.waiting(),
            certificate_until: uplink.certificate_until,
            boot_heard: self.boot_heard().map(|heard| heard.until(node.clock.now().mono).as_secs()),
            health: node.health.borrow().clone(),
        }
    }

    fn machines(&self) -> Vec<MachineView> {
        let intent = self.node.intent.current();
        let known = intent.as_ref().map(|intent| intent.machines.as_slice()).unwrap_or_default();
        views(known, self.node.timelines.all())
    }

    fn find(&self, wanted: &str) -> Option<MachineView> {
        let id = wanted.parse::<MachineId>().ok();
        let mac = wanted.parse().ok();
        let intent = self.node.intent.current();
        let by_mac = mac.and_then(|mac| {
            let machines = &intent.as_ref()?.machines;
            machines.iter().find(|machine| machine.macs.contains(&mac)).map(|machine| machine.id)
        });
        self.machines().into_iter().find(|machine| {
            Some(machine.id) == id.or(by_mac)
                || machine.name.as_deref() == Some(wanted)
                || (mac.is_some() && machine.mac == mac)
        })
    }
}

/// What people call a machine.
fn called(view: &MachineView) -> String {
    view.name.clone().unwrap_or_else(|| view.id.to_string())
}

fn unknown(machine: &str) -> LocalResponse {
    LocalResponse::NotFound(format!("no machine has the id, name or MAC {machine:?}"))
}

impl From<FetchError> for LocalResponse {
    fn from(error: FetchError) -> Self {
        match error {
            FetchError::NotFound(reason) => Self::NotFound(reason),
            FetchError::Unavailable(reason) => Self::Unavailable(reason),
        }
    }
}

/// The machines the controller named, in its order, then those only seen here.
fn views(known: &[MachineIntent], mut histories: BTreeMap<MachineId, History>) -> Vec<MachineView> {
    let mut views: Vec<_> = known
        .iter()
        .map(|machine| {
            let view = view(machine.id, &histories.remove(&machine.id).unwrap_or_default());
            MachineView {
                name: Some(machine.name.clone()),
                mac: machine.macs.first().copied().or(view.mac),
                address: Some(machine.address),
                ..view
            }
        })
        .collect();
    views.extend(histories.iter().map(|(id, history)| view(*id, history)));
    views
}

fn view(id: MachineId, history: &History) -> MachineView {
    let latest = history.latest();
    MachineView {
        id,
        name: None,
        mac: history.mac,
        address: history.address,
        power: history.power,
        installer: history.installer,
        latest: latest.map_or_else(|| "nothing heard of it".into(), |event| event.what.to_string()),
        since: latest.map(|event| event.at),
    }
}

/// One end of a conversation with the agent on this node. A connection that broke, or whose
/// last answer was not waited for, is made anew at the next request.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    stream: Option<UnixStream>,
}

/// Why the agent did not answer.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// Nobody listens: the agent does not run, or this process may not open its socket.
    #[error("cannot connect to {path}")]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The connection broke.
    #[error("the connection to the agent broke")]
    Broken(#[from] io::Error),
    /// The bytes are not a message.
    #[error("the message is malformed")]
    Malformed(#[from] Malformed),
    /// It took too long.
    #[error("no answer in time")]
    TimedOut,
}

impl Client {
    /// Connects to the agent.
    pub async fn connect(path: &Path) -> Result<Self, LocalError> {
        let stream = Some(open(path).await?);
        Ok(Self { path: path.to_owned(), stream })
    }

    /// Sends a request and waits for its answer. Every request may be repeated.
    pub async fn ask(&mut self, request: &LocalRequest) -> Result<LocalResponse, LocalError> {
        if let Some(stream) = self.stream.take() {
            // The agent may have closed it meanwhile, being restarted or tired of waiting.
            match self.ask_on(stream, request).await {
                Err(LocalError::Broken(_)) => {}
                answered => return answered,
            }
        }
        let stream = open(&self.path).await?;
        self.ask_on(stream, request).await
    }

    async fn ask_on(&mut self, mut stream: UnixStream, request: &LocalRequest) -> Result<LocalResponse, LocalError> {
        let conversation = async {
            stream.write_all(&wire::frame(request)).await?;
            receive(&mut stream, ANSWER).await
        };
        let response = timeout(ANSWER, conversation).await.map_err(|_| LocalError::TimedOut)??;
        let response = response.ok_or(LocalError::Broken(io::ErrorKind::UnexpectedEof.into()))?;
        self.stream = Some(stream);
        Ok(response)
    }
}

async fn open(path: &Path) -> Result<UnixStream, LocalError> {
    UnixStream::connect(path).await.map_err(|source| LocalError::Unreachable { path: path.to_owned(), source })
}

/// The next message, or nothing when the peer has closed between messages or stayed idle.
async fn receive<T: DeserializeOwned>(stream: &mut UnixStream, idle: Duration) -> Result<Option<T>, LocalError> {
    let mut prefix = [0; 4];
    match timeout(idle, stream.read_exact(&mut prefix[..1])).await {
        Err(_) => return Ok(None),
        Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Ok(read) => read?,
    };
    let rest = async {
        stream.read_exact(&mut prefix[1..]).await?;
        let mut body = vec![0; wire::frame_len(prefix)?];
        stream.read_exact(&mut body).await?;
        Ok::<_, LocalError>(body)
    };
    let body = timeout(FRAME, rest).await.map_err(|_| LocalError::TimedOut)??;
    Ok(Some(wire::decode(&body)?))
}

#[cfg(test)]
mod tests {
    use rackhand_common::{
        event::{Event, What},
        id::Epoch,
        intent::{Boot, Network},
    };

    use super::*;
    use crate::{clock::SystemClock, spool::open_database};

    struct Shelf;

    impl Source for Shelf {
        fn chunk(&self, digest: Digest) -> Fetched<'_, Vec<u8>> {
            Box::pin(async move {
                if digest == Digest::of(b"chunk") {
                    Ok(b"chunk".to_vec())
                } else {
                    Err(FetchError::NotFound(digest.to_string()))
                }
            })
        }

        fn manifest(&self, _: Digest) -> Fetched<'_, SignedManifest> {
            Box::pin(async { Err(FetchError::Unavailable("the controller is away".into())) })
        }

        fn firmware<'a>(&'a self, _: &'a str, _: u64, _: &'a Path) -> Fetched<'a, ()> {
            Box::pin(async { Err(FetchError::Unavailable("the controller is away".into())) })
        }
    }

    struct Running {
        dir: tempfile::TempDir,
        intent: intent::Store,
        spool: Spool,
        shutdown: CancellationToken,
        served: tokio::task::JoinHandle<io::Result<()>>,
    }

    impl Running {
        fn start() -> Self {
            Self::start_in(tempfile::tempdir().unwrap())
        }

        fn start_in(dir: tempfile::TempDir) -> Self {
            let database = open_database(&dir.path().join("agent.redb")).unwrap();
            let timelines = Timelines::open(&database).unwrap();
            let spool = Spool::within(database.clone(), 1000, Some(timelines.clone())).unwrap();
            let intent = intent::Store::open(dir.path()).unwrap();
            let uplink =
                UplinkView { connected: false, words: "away".into(), certificate_until: Timestamp::UNIX_EPOCH };
            let rack = RackId::fresh();
            let bmcs =
                Bmcs::open(dir.path(), rack, None, Default::default(), Arc::new(crate::clock::SystemClock::default()))
                    .unwrap();
            let machines = Machines::unread(bmcs.clone(), spool.clone(), dir.path());
            let shutdown = CancellationToken::new();
            let lights = Lights::new(bmcs.clone(), shutdown.clone());
            let bench = crate::replacements::Bench {
                intent: intent.clone(),
                lives: crate::lives::Store::open(dir.path(), rack).unwrap(),
                spool: spool.clone(),
                timelines: timelines.clone(),
                lights: lights.clone(),
                calls: tokio::sync::mpsc::channel(1).0,
                hands: Default::default(),
                clock: Arc::new(SystemClock::default()),
            };
            let replacements = Replacements::open(&database, bench).unwrap();
            let source: Arc<dyn Source> = Arc::new(Shelf);
            let updates = Updates::open(dir.path(), bmcs.clone(), source.clone()).unwrap();
            let node = Node {
                agent: AgentId::fresh(),
                rack,
                intent: intent.clone(),
                machines,
                bmcs: bmcs.clone(),
                leased: Leased::open(dir.path()),
                consoles: Consoles::new(bmcs.clone(), dir.path(), shutdown.clone()),
                lights,
                updates,
                replacements,
                boot_has: watch::Sender::new(0),
                spool: spool.clone(),
                timelines,
                source,
                uplink: watch::channel(uplink).1,
                health: watch::channel(None).1,
                clock: Arc::new(SystemClock::default()),
            };
            let listener = bind(&dir.path().join("sock")).unwrap();
            let served = tokio::spawn(serve(listener, node, shutdown.clone()));
            Self { dir, intent, spool, shutdown, served }
        }

        async fn client(&self) -> Client {
            Client::connect(&self.dir.path().join("sock")).await.unwrap()
        }

        async fn stop(self) -> tempfile::TempDir {
            self.shutdown.cancel();
            self.served.await.unwrap().unwrap();
            self.dir
        }
    }

    fn intent(revision: u64, machines: Vec<MachineIntent>) -> Intent {
        let network = Network {
            node: "10.77.0.1/24".parse().unwrap(),
            gateway: None,
            dns: Vec::new(),
            delegated: ("10.77.0.200".parse().unwrap(), "10.77.0.250".parse().unwrap()),
        };
        Intent { revision, rack: RackId(uuid::Uuid::nil()), name: "r1".into(), network, machines }
    }

    fn machine(id: MachineId) -> MachineIntent {
        MachineIntent {
            id,
            name: "web-1".into(),
            macs: vec!["52:54:00:12:34:56".parse().unwrap(), "52:54:00:12:34:57".parse().unwrap()],
            address: "10.77.0.9".parse().unwrap(),
            epoch: Epoch(1),
            boot: Boot::Disk,
            order: None,
        }
    }

    #[tokio::test]
    async fn an_intent_is_held_until_it_is_newer() {
        let running = Running::start();
        let mut client = running.client().await;
        let (answer, stored) =
            tokio::join!(async { client.ask(&LocalRequest::Intent { after: 4 }).await.unwrap() }, async {
                running.intent.store(intent(4, Vec::new())).await.unwrap();
                running.intent.store(intent(5, Vec::new())).await.unwrap()
            });
        assert_eq!((answer, stored), (LocalResponse::Intent(Some(intent(5, Vec::new()))), 5));
        let answer = client.ask(&LocalRequest::Intent { after: 0 }).await.unwrap();
        assert!(matches!(answer, LocalResponse::Intent(Some(_))));
    }

    #[tokio::test]
    async fn events_of_boot_are_stored_once_and_shown_by_id_name_and_mac() {
        let running = Running::start();
        let id = MachineId::fresh();
        running.intent.store(intent(1, vec![machine(id)])).await.unwrap();
        let mut client = running.client().await;
        let event = Event { at: Timestamp::UNIX_EPOCH, machine: Some(id), what: What::Lost };
        let request =
            LocalRequest::Events { spool: uuid::Uuid::new_v4(), first: 1, events: vec![event.clone(), event.clone()] };
        for _ in 0..2 {
            assert_eq!(client.ask(&request).await.unwrap(), LocalResponse::Next(3));
        }
        assert_eq!(running.spool.waiting(), 2);
        for name in [id.to_string(), "web-1".into(), "52:54:00:12:34:56".into(), "52-54-00-12-34-57".into()] {
            let answer = client.ask(&LocalRequest::Timeline(name)).await.unwrap();
            let LocalResponse::Timeline { machine, events } = answer else { panic!("{answer:?}") };
            assert_eq!((machine.id, events.len()), (id, 2));
        }
        let answer = client.ask(&LocalRequest::Timeline("web-2".into())).await.unwrap();
        assert!(matches!(answer, LocalResponse::NotFound(_)));
    }

    #[tokio::test]
    async fn chunks_come_from_the_source_and_its_refusals_are_passed_on() {
        let running = Running::start();
        let mut client = running.client().await;
        let chunk = client.ask(&LocalRequest::Chunk(Digest::of(b"chunk"))).await.unwrap();
        assert_eq!(chunk, LocalResponse::Chunk(b"chunk".to_vec()));
        let missing = client.ask(&LocalRequest::Chunk(Digest::of(b"other"))).await.unwrap();
        assert!(matches!(missing, LocalResponse::NotFound(_)));
        let away = client.ask(&LocalRequest::Manifest(Digest::of(b"m"))).await.unwrap();
        assert!(matches!(away, LocalResponse::Unavailable(_)));
    }

    #[tokio::test]
    async fn a_piece_of_firmware_is_of_a_file_that_can_be_and_of_nothing_else_on_the_node() {
        let running = Running::start();
        let mut client = running.client().await;
        let digest = "ab".repeat(32);
        for (sha256, size, offset) in [("../../../../etc/passwd", 9, 0), (&digest, 9, 9), (&digest, u64::MAX, 0)] {
            let ask = LocalRequest::Firmware { sha256: sha256.to_owned(), size, offset };
            let answer = client.ask(&ask).await.unwrap();
            assert!(matches!(answer, LocalResponse::NotFound(_)), "{answer:?}");
        }
    }

    #[tokio::test]
    async fn a_client_finds_a_restarted_agent_again_on_the_stale_socket() {
        let running = Running::start();
        let mut client = running.client().await;
        assert!(matches!(client.ask(&LocalRequest::Status).await.unwrap(), LocalResponse::Status(_)));
        assert_eq!(bind(&running.dir.path().join("sock")).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let dir = running.stop().await;
        assert!(matches!(client.ask(&LocalRequest::Status).await, Err(LocalError::Unreachable { .. })));
        let running = Running::start_in(dir);
        assert!(matches!(client.ask(&LocalRequest::Status).await.unwrap(), LocalResponse::Status(_)));
        running.stop().await;
    }

    #[tokio::test]
    async fn rubbish_ends_the_connection_and_nothing_else() {
        let running = Running::start();
        let mut stream = UnixStream::connect(running.dir.path().join("sock")).await.unwrap();
        stream.write_all(&[0xFF; 64]).await.unwrap();
        let mut rest = Vec::new();
        // The peer may close with our bytes unread, which is a reset.
        let _ = timeout(Duration::from_secs(10), stream.read_to_end(&mut rest)).await.unwrap();
        assert!(rest.is_empty());
        assert!(running.client().await.ask(&LocalRequest::Machines).await.is_ok());
    }

    #[tokio::test]
    async fn the_socket_is_for_its_owner_and_group() {
        let running = Running::start();
        let mode = std::fs::metadata(running.dir.path().join("sock")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
    }
}
