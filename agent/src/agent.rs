//! The process `rackhand-agent serve`: everything long-lived in it is built and spawned here.
//!
//! Invariants:
//! - One store, `agent.redb`, is opened once; a second agent on the same state is refused.
//! - The process starts, and serves boot and the technician, without the controller.
//! - Shutdown: no new commands or connections; a power command that has begun may end, the
//!   spool is flushed; whoever is late at the [deadline](GRACE) is named and left behind.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use serde::Deserialize;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use rackhand_common::{
    id::{AgentId, RackId},
    time::Clock,
};
use rackhand_daemon::{Filter, Log, Signals, Taken, systemd};

use crate::{
    bmcs::{Bmcs, Profiles},
    clock::{SystemClock, SystemTimer},
    console::Consoles,
    discovery::{self, Discovery, DiscoveryFile, Leased},
    firmware::Updates,
    health::{
        self, HealthFile, Machines, Metrics,
        events::{self, Events},
        series::Series,
    },
    intent,
    ledger::Ledger,
    lights::Lights,
    lives,
    local::{self, Node, Source, UplinkView},
    power::{Call, Configured, Drivers, Exec, ExecFile, Executor, Hands, Power, ways::Ways},
    replacements::{self, Replacements},
    spool::{self, Spool, written},
    timeline::Timelines,
    uplink::{Fetcher, Identity, Reread, Uplink},
};

/// How long shutdown waits for what is under way.
pub const GRACE: Duration = Duration::from_secs(20);

/// Commands received and not yet looked at. A rack's worth; the uplink waits when it is full.
const CALLS: usize = 64;

/// `/etc/rackhand/agent.toml` as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Directory of everything that must survive a restart; default `/var/lib/rackhand/agent`.
    #[serde(default = "default_state")]
    pub state: PathBuf,
    /// The unix socket for boot and the technician; default `/run/rackhand/agent.sock`.
    #[serde(default = "default_socket")]
    pub socket: PathBuf,
    /// Where `/metrics` is answered, and where the controller has Prometheus look for it; default
    /// `127.0.0.1:9633`.
    #[serde(default = "default_metrics")]
    pub metrics: SocketAddr,
    /// The most events kept while the controller is away; default 100000, about 30 MB;
    /// never more than 64 MiB.
    #[serde(default = "default_events")]
    pub events: u64,
    /// How machines are switched.
    #[serde(default)]
    pub power: ExecFile,
    /// Where BMCs may be.
    #[serde(default)]
    pub bmc: BmcFile,
    /// Where BMCs are looked for.
    #[serde(default)]
    pub discovery: DiscoveryFile,
    /// How machines are looked at, and decided about.
    #[serde(default)]
    pub health: HealthFile,
    /// What is logged; default `info`.
    #[serde(default)]
    pub log: Filter,
}

/// Where profiles of firmware settings are when nobody says otherwise.
const PROFILES: &str = "/etc/rackhand/bios";

/// `[bmc]` in agent.toml.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BmcFile {
    /// The networks in which BMCs are asked; when absent, everywhere but at addresses that are the
    /// node itself, link-local or nobody's.
    pub networks: Option<Vec<IpNet>>,
    /// Directory with profiles of firmware settings beside those that come with the product; default
    /// `/etc/rackhand/bios`.
    pub profiles: Option<PathBuf>,
    /// Where machines' firmware and BMCs fetch this node's loader and bootable image: `http://10.0.0.1:8080`;
    /// default: port 8080 at the node's address on the provisioning network.
    pub files: Option<String>,
}

/// The configuration as used.
#[derive(Clone, Debug)]
pub struct Config {
    /// Directory of everything that must survive a restart.
    pub state: PathBuf,
    /// The unix socket for boot and the technician.
    pub socket: PathBuf,
    /// Where `/metrics` is answered.
    pub metrics: SocketAddr,
    /// The most events kept while the controller is away.
    pub events: u64,
    /// How machines are switched.
    pub power: Exec,
    /// The networks in which BMCs are asked.
    pub bmc_networks: Option<Vec<IpNet>>,
    /// Where machines' firmware and BMCs fetch this node's files.
    pub bmc_files: Option<String>,
    /// Where BMCs are looked for.
    pub discovery: discovery::Config,
    /// What settings of machines' firmware are recorded, and are to be.
    pub profiles: Profiles,
    /// How machines are looked at, and decided about.
    pub health: health::Config,
    /// Where BMCs post their events.
    pub bmc_events: Option<SocketAddr>,
    /// What is logged.
    pub log: Filter,
}

fn default_state() -> PathBuf {
    "/var/lib/rackhand/agent".into()
}

fn default_socket() -> PathBuf {
    "/run/rackhand/agent.sock".into()
}

fn default_metrics() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 9633))
}

fn default_events() -> u64 {
    100_000
}

impl TryFrom<File> for Config {
    type Error = String;

    fn try_from(file: File) -> Result<Self, String> {
        if file.events < 1000 {
            return Err("events must be at least 1000: a single deploy makes dozens".into());
        }
        let power = Exec::try_from(file.power)?;
        let bmc_events = file.health.events;
        if bmc_events.is_some_and(|at| at.ip().is_unspecified()) {
            return Err("health.events is an address by which BMCs reach this node, such as 10.20.0.1:8446".into());
        }
        let health = health::Config::try_from(file.health)?;
        let discovery = discovery::Config::new(file.discovery, file.bmc.networks.as_deref())?;
        let File { state, socket, metrics, events, bmc, log, .. } = file;
        let directory = bmc.profiles.as_deref().unwrap_or(Path::new(PROFILES));
        let profiles = Profiles::load(directory).map_err(|error| format!("bmc.profiles: {error}"))?;
        let bmc_files = bmc.files;
        if bmc_files.as_ref().is_some_and(|files| !files.starts_with("http://") && !files.starts_with("https://")) {
            return Err("bmc.files is no address: write http://ADDRESS:PORT of this node".into());
        }
        let bmc_networks = bmc.networks;
        Ok(Self {
            state,
            socket,
            metrics,
            events,
            power,
            bmc_networks,
            bmc_files,
            discovery,
            profiles,
            health,
            bmc_events,
            log,
        })
    }
}

impl Config {
    /// The configuration in this file; all defaults when there is none.
    pub fn load(path: &Path) -> Result<Self> {
        let text = match std::fs::read_to_string(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            read => read.with_context(|| format!("cannot read {}", path.display()))?,
        };
        Self::parse(&text).with_context(|| format!("{} is not usable", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let file: File = toml::from_str(text)?;
        Self::try_from(file).map_err(anyhow::Error::msg)
    }
}

/// What a simulation replaces.
pub struct Seams {
    /// The present.
    pub clock: Arc<dyn Clock>,
    /// What switches machines without a BMC; the configuration's `[power]` when absent.
    pub power: Option<Arc<dyn Power>>,
}

impl Default for Seams {
    fn default() -> Self {
        Self { clock: Arc::new(SystemClock::default()), power: None }
    }
}

/// This node as enrolled, and its way to the controller.
struct Link {
    agent: AgentId,
    rack: RackId,
    source: Arc<dyn Source>,
    view: watch::Receiver<UplinkView>,
}

/// The configuration in use; clones are the same.
#[derive(Clone, Debug)]
pub struct Settings {
    used: Arc<Mutex<Config>>,
    exec: watch::Sender<Arc<Exec>>,
    health: watch::Sender<health::Config>,
    discovery: watch::Sender<discovery::Config>,
    /// Absent in an agent without an uplink.
    identity: Option<Arc<Identity>>,
}

impl Settings {
    /// Takes over of this configuration, and of the node's identity on disk, what can be without
    /// a restart. Commands and connections under way go on.
    pub fn take_over(&self, fresh: &Config) -> Result<Taken> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = Taken::default();
        match self.identity.as_ref().map(|identity| identity.read_again()).transpose()? {
            Some(Reread::Taken) => taken.now.push("certificate"),
            Some(Reread::Another) => taken.at_restart.push("enrolment"),
            Some(Reread::Same) | None => {}
        }
        // A setting that is added is decided on here.
        let Config {
            state,
            socket,
            metrics,
            events,
            power,
            bmc_networks,
            bmc_files,
            discovery,
            profiles,
            health,
            bmc_events,
            log,
        } = fresh;
        if taken.take("power", &mut used.power, power) {
            self.exec.send_replace(Arc::new(power.clone()));
        }
        if taken.take("health", &mut used.health, health) {
            self.health.send_replace(health.clone());
        }
        if taken.take("discovery", &mut used.discovery, discovery) {
            self.discovery.send_replace(discovery.clone());
        }
        taken.take("log", &mut used.log, log);
        taken.keep("state", &used.state, state);
        taken.keep("socket", &used.socket, socket);
        taken.keep("metrics", &used.metrics, metrics);
        taken.keep("events", &used.events, events);
        taken.keep("health.events", &used.bmc_events, bmc_events);
        let used = (&used.bmc_networks, &used.bmc_files, &used.profiles);
        taken.keep("bmc", &used, &(bmc_networks, bmc_files, profiles));
        Ok(taken)
    }
}

/// An agent that runs.
pub struct Running {
    /// Where metrics are answered; the port that was given when the configuration said 0.
    pub metrics: SocketAddr,
    /// The intent acted on.
    pub intent: intent::Store,
    /// How BMCs are reached.
    pub bmcs: Bmcs,
    /// How the machines fare.
    pub machines: Machines,
    /// Where the machines are in their lives.
    pub lives: lives::Store,
    /// Serial consoles.
    pub consoles: Consoles,
    /// Updates of firmware.
    pub updates: Updates,
    /// Events on their way to the controller.
    pub spool: Spool,
    /// Commands written down.
    pub ledger: Ledger,
    /// Where commands are to be given.
    pub calls: mpsc::Sender<Call>,
    /// Its configuration, for taking over another.
    pub settings: Settings,
    parts: JoinSet<Result<&'static str>>,
    shutdown: CancellationToken,
}

/// Builds and starts everything; the node has to be enrolled.
pub async fn start(config: &Config, seams: Seams, shutdown: CancellationToken) -> Result<Running> {
    let identity = Arc::new(Identity::load(&config.state)?);
    let registration = identity.current();
    let (agent, rack) = (registration.agent, registration.rack);
    let (view, shown) = watch::channel(UplinkView {
        connected: false,
        words: "not yet connected".into(),
        certificate_until: registration.until,
    });
    let clock = seams.clock.clone();
    let link = Link { agent, rack, source: Arc::new(Fetcher::new(identity.subscribe())), view: shown };
    let mut running = assemble(config, seams, link, shutdown.clone()).await?;
    running.settings.identity = Some(identity.clone());
    let uplink = Uplink {
        identity,
        intent: running.intent.clone(),
        bmcs: running.bmcs.clone(),
        lives: running.lives.clone(),
        machines: running.machines.clone(),
        consoles: running.consoles.clone(),
        updates: running.updates.clone(),
        metrics: running.metrics,
        spool: running.spool.clone(),
        ledger: running.ledger.clone(),
        calls: running.calls.clone(),
        view,
        clock,
    };
    running.add("uplink", async move {
        uplink.run(shutdown).await;
        Ok(())
    });
    Ok(running)
}

/// Builds the agent and starts all of it but the uplink.
async fn assemble(config: &Config, seams: Seams, link: Link, shutdown: CancellationToken) -> Result<Running> {
    let Seams { clock, power } = seams;
    let path = config.state.join("agent.redb");
    let database = tokio::task::spawn_blocking(move || spool::open_database(&path)).await??;
    let timelines = Timelines::open(&database)?;
    let spool = Spool::within(database.clone(), config.events, Some(timelines.clone()))?;
    let ledger = Ledger::open(database.clone(), spool.clone(), clock.now().wall).await?;
    let intent = intent::Store::open_for(&config.state, link.rack)
        .with_context(|| format!("cannot read the intent in {}", config.state.display()))?;
    let lives = lives::Store::open(&config.state, link.rack)
        .with_context(|| format!("cannot read the machines' lives in {}", config.state.display()))?;
    let bmcs =
        Bmcs::open(&config.state, link.rack, config.bmc_networks.clone(), config.profiles.clone(), clock.clone())
            .with_context(|| format!("cannot read how BMCs are reached in {}", config.state.display()))?;
    let (health_config, configured_health) = watch::channel(config.health.clone());
    let path = config.state.join("series.redb");
    let (series, kept) = tokio::task::spawn_blocking(move || Series::open(&path)).await??;
    let (spooled, of_machines) = (spool.clone(), clock.clone());
    let posted = match config.bmc_events {
        Some(at) => {
            let listener = TcpListener::bind(at)
                .await
                .with_context(|| format!("cannot take events of BMCs on TCP {at} (`health.events` in agent.toml)"))?;
            let at = listener.local_addr()?;
            Some((Events::at(at), listener, events::tls(at)?))
        }
        None => None,
    };
    let said = posted.as_ref().map(|(events, ..)| events.clone());
    let machines =
        Machines::open(database.clone(), bmcs.clone(), spooled, series, of_machines, configured_health, said).await?;
    let consoles = Consoles::new(bmcs.clone(), &config.state, shutdown.clone());
    let lights = Lights::new(bmcs.clone(), shutdown.clone());
    let updates = Updates::open(&config.state, bmcs.clone(), link.source.clone())
        .with_context(|| format!("cannot keep firmware in {}", config.state.display()))?;
    let socket = local::bind(&config.socket)
        .with_context(|| format!("cannot listen on {}: does its directory exist?", config.socket.display()))?;
    let listener = TcpListener::bind(config.metrics)
        .await
        .with_context(|| format!("cannot answer metrics on {} (`metrics` in agent.toml)", config.metrics))?;
    let metrics_at = listener.local_addr()?;

    let counters = Arc::new(Metrics::default());
    let (measured, health) = watch::channel(None);
    let (calls, receiver) = mpsc::channel(CALLS);
    let boot_has = watch::Sender::new(0);
    let (exec, configured) = Configured::new(config.power.clone());
    let mut parts = JoinSet::new();
    let path = config.state.join("ways.json");
    let ways = Ways::open(path.clone(), clock.clone()).with_context(|| format!("cannot read {}", path.display()))?;
    let drivers = Drivers {
        bmcs: bmcs.clone(),
        other: power.unwrap_or_else(|| Arc::new(configured)),
        ways: ways.clone(),
        files: config.bmc_files.clone(),
        intent: intent.clone(),
    };
    {
        let (drivers, intent, timelines) = (drivers.clone(), intent.clone(), timelines.clone());
        let shutdown = shutdown.clone();
        parts.spawn(async move {
            ways.run(drivers, intent, timelines, shutdown).await;
            Ok("boot orders put back")
        });
    }
    let hands = Hands::default();
    let bench = replacements::Bench {
        intent: intent.clone(),
        lives: lives.clone(),
        spool: spool.clone(),
        timelines: timelines.clone(),
        lights: lights.clone(),
        calls: calls.clone(),
        hands: hands.clone(),
        clock: clock.clone(),
    };
    let replacements = Replacements::open(&database, bench)?;
    {
        let (replacements, shutdown) = (replacements.clone(), shutdown.clone());
        parts.spawn(async move {
            replacements.run(shutdown).await;
            Ok("replacements of parts")
        });
    }
    {
        let executor = Executor {
            driver: Arc::new(drivers),
            ledger: ledger.clone(),
            spool: spool.clone(),
            intent: intent.clone(),
            boot_has: boot_has.subscribe(),
            clock: clock.clone(),
            timer: Arc::new(SystemTimer::default()),
            metrics: counters.clone(),
            hands,
        };
        let shutdown = shutdown.clone();
        parts.spawn(async move {
            executor.run(receiver, shutdown).await;
            Ok("power commands")
        });
    }
    let leased = Leased::open(&config.state);
    {
        let node = Node {
            agent: link.agent,
            rack: link.rack,
            intent: intent.clone(),
            bmcs: bmcs.clone(),
            leased: leased.clone(),
            machines: machines.clone(),
            consoles: consoles.clone(),
            lights: lights.clone(),
            updates: updates.clone(),
            replacements,
            boot_has,
            spool: spool.clone(),
            timelines,
            source: link.source,
            uplink: link.view.clone(),
            health: health.clone(),
            clock: clock.clone(),
        };
        let shutdown = shutdown.clone();
        parts.spawn(async move { Ok(local::serve(socket, node, shutdown).await.map(|()| "local socket")?) });
    }
    {
        let (consoles, intent) = (consoles.clone(), intent.subscribe());
        parts.spawn(async move {
            consoles.run(intent).await;
            Ok("consoles")
        });
    }
    parts.spawn(async move {
        lights.run().await;
        Ok("identification lights")
    });
    {
        let (state, spool, clock, shutdown) = (config.state.clone(), spool.clone(), clock.clone(), shutdown.clone());
        parts.spawn(async move {
            health::sample(state, spool, clock, measured, shutdown).await;
            Ok("health")
        });
    }
    {
        let (machines, view, shutdown) = (machines.clone(), link.view.clone(), shutdown.clone());
        parts.spawn(async move {
            machines.run(view, shutdown).await;
            Ok("machines' health")
        });
    }
    if let Some((events, listener, tls)) = posted {
        let shutdown = shutdown.clone();
        parts.spawn(async move {
            events.serve(listener, tls, shutdown).await;
            Ok("events of BMCs")
        });
    }
    let (discovery, configured) = watch::channel(config.discovery.clone());
    {
        let (state, spool, clock) = (config.state.clone(), spool.clone(), clock.clone());
        let (looking, shutdown) = (Discovery { state, spool, clock, config: configured, leased }, shutdown.clone());
        parts.spawn(async move {
            looking.run(shutdown).await;
            Ok("discovery")
        });
    }
    {
        let (clock, shutdown) = (clock.clone(), shutdown.clone());
        parts.spawn(async move {
            kept.run(clock, shutdown).await;
            Ok("sensors' series")
        });
    }
    {
        let (spool, intent, machines) = (spool.clone(), intent.clone(), machines.clone());
        let sources = health::Sources { metrics: counters, spool, intent, uplink: link.view, health, machines, clock };
        let shutdown = shutdown.clone();
        parts.spawn(async move { Ok(health::serve(listener, sources, shutdown).await.map(|()| "metrics")?) });
    }
    let used = Arc::new(Mutex::new(config.clone()));
    let settings = Settings { used, exec, health: health_config, discovery, identity: None };
    Ok(Running {
        metrics: metrics_at,
        intent,
        bmcs,
        machines,
        lives,
        consoles,
        updates,
        spool,
        ledger,
        calls,
        settings,
        parts,
        shutdown,
    })
}

impl Running {
    /// Adds a part that runs until shutdown and is waited for then, such as the uplink.
    fn add(&mut self, name: &'static str, part: impl Future<Output = Result<()>> + Send + 'static) {
        self.parts.spawn(async move { part.await.map(|()| name) });
    }

    /// Tells systemd that the agent is ready, and runs until shutdown; when told to, takes over
    /// the configuration that `load` reads.
    pub async fn run(
        mut self,
        signals: Signals,
        load: impl Fn() -> Result<Config> + Send + Sync + 'static,
        log: Log,
    ) -> Result<()> {
        let (spool, shutdown) = (self.spool.clone(), self.shutdown.clone());
        self.add("systemd's watchdog", async {
            systemd::attend(move || written(spool.clone()), shutdown).await;
            Ok(())
        });
        let settings = self.settings.clone();
        self.add("reloads", async {
            let reload = move || {
                let fresh = load()?;
                let taken = settings.take_over(&fresh)?;
                log.take(&fresh.log);
                Ok(taken)
            };
            signals.reload_by(reload).await;
            Ok(())
        });
        self.wait().await
    }

    /// Waits until shutdown, or until a part ends that should not; then ends all others.
    pub async fn wait(mut self) -> Result<()> {
        let first = self.parts.join_next().await;
        let early = !self.shutdown.is_cancelled();
        self.shutdown.cancel();
        let mut result = match first {
            Some(Ok(Ok(part))) if early => Err(anyhow::anyhow!("{part} ended by itself")),
            Some(Ok(Err(error))) => Err(error),
            Some(Err(error)) => Err(error.into()),
            _ => Ok(()),
        };
        let others = async {
            while let Some(ended) = self.parts.join_next().await {
                let ended = ended.map_err(anyhow::Error::from).and_then(|ended| ended);
                if let Err(error) = ended
                    && result.is_ok()
                {
                    result = Err(error);
                }
            }
        };
        if timeout(GRACE, others).await.is_err() {
            tracing::warn!(late = self.parts.len(), "shutdown does not wait any longer: a power command is under way");
        }
        // Last: power commands may have been under way.
        self.bmcs.close().await;
        self.spool.append(Vec::new()).await?;
        result
    }
}

/// Makes the state directory, for this user alone.
pub fn prepare(state: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(state)
        .with_context(|| format!("cannot make {} (`state` in agent.toml)", state.display()))
}

/// Gives up root's rights for those of the state directory's owner, so that what is written
/// can be read by the service; whoever is not root stays who they are.
pub fn become_owner(state: &Path) -> Result<()> {
    use nix::unistd::{Gid, Uid, geteuid, setgid, setgroups, setuid};
    use std::os::unix::fs::MetadataExt as _;
    let owner = std::fs::metadata(state).with_context(|| format!("cannot look at {}", state.display()))?;
    if !geteuid().is_root() || owner.uid() == 0 {
        return Ok(());
    }
    setgroups(&[])
        .and_then(|()| setgid(Gid::from_raw(owner.gid())))
        .and_then(|()| setuid(Uid::from_raw(owner.uid())))
        .with_context(|| format!("cannot become the owner of {}", state.display()))
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use rackhand_common::{
        image::{Digest, SignedManifest},
        wire::{LocalRequest, LocalResponse},
    };

    use super::*;
    use crate::local::{Client, FetchError, Fetched};

    struct Nothing;

    impl Source for Nothing {
        fn chunk(&self, _: Digest) -> Fetched<'_, Vec<u8>> {
            Box::pin(async { Err(FetchError::Unavailable("no controller".into())) })
        }

        fn manifest(&self, _: Digest) -> Fetched<'_, SignedManifest> {
            Box::pin(async { Err(FetchError::Unavailable("no controller".into())) })
        }

        fn firmware<'a>(&'a self, _: &'a str, _: u64, _: &'a Path) -> Fetched<'a, ()> {
            Box::pin(async { Err(FetchError::Unavailable("no controller".into())) })
        }
    }

    async fn assembled(dir: &Path, shutdown: &CancellationToken) -> Result<Running> {
        let text = format!("state = {dir:?}\nsocket = {:?}\nmetrics = \"127.0.0.1:0\"\n", dir.join("agent.sock"));
        let config = Config::parse(&text).unwrap();
        let view =
            UplinkView { connected: false, words: "away".into(), certificate_until: jiff::Timestamp::UNIX_EPOCH };
        let link = Link {
            agent: AgentId::fresh(),
            rack: RackId(uuid::Uuid::nil()),
            source: Arc::new(Nothing),
            view: watch::channel(view).1,
        };
        assemble(&config, Seams::default(), link, shutdown.clone()).await
    }

    #[tokio::test]
    async fn an_agent_without_a_controller_answers_and_stops_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let shutdown = CancellationToken::new();
        let running = assembled(dir.path(), &shutdown).await.unwrap();
        let metrics = running.metrics;
        let waited = tokio::spawn(running.wait());

        let mut client = Client::connect(&dir.path().join("agent.sock")).await.unwrap();
        let answer = client.ask(&LocalRequest::Status).await.unwrap();
        let LocalResponse::Status(view) = answer else { panic!("{answer:?}") };
        assert_eq!(view.uplink, "away");

        let text = fetched(metrics).await;
        for line in ["rackhand_agent_uplink_connected 0", "rackhand_agent_intent_revision 0", "# EOF"] {
            assert!(text.contains(line), "{text}");
        }

        let second = assembled(dir.path(), &CancellationToken::new()).await.err().unwrap();
        assert!(format!("{second:#}").contains("already open"), "{second:#}");

        shutdown.cancel();
        waited.await.unwrap().unwrap();
        let again = assembled(dir.path(), &shutdown).await.unwrap();
        again.wait().await.unwrap();
    }

    /// One plain HTTP/1.0 exchange.
    async fn fetched(address: SocketAddr) -> String {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[test]
    fn a_configuration_is_checked_and_mistakes_are_named() {
        let check = |text: &str, expected: expect_test::Expect| {
            let error = Config::parse(text).err().map(|error| format!("{error:#}")).unwrap_or_default();
            expected.assert_eq(error.trim_end());
        };
        check("", expect![""]);
        check("events = 10", expect!["events must be at least 1000: a single deploy makes dozens"]);
        check("[power]\ncommand = []", expect!["power.command names no program"]);
        check(
            "[power]\n[[power.machine]]\nmac = \"52:54:00:12:34:56\"\ncommand = [\"pdu\", \"3\"]\n\n[[power.machine]]\nmac = \"52-54-00-12-34-56\"\ncommand = [\"pdu\", \"4\"]",
            expect!["there are two power.machine with mac 52:54:00:12:34:56"],
        );
        check(
            "spcket = \"/x\"",
            expect![[r#"
                TOML parse error at line 1, column 1
                  |
                1 | spcket = "/x"
                  | ^^^^^^
                unknown field `spcket`, expected one of `state`, `socket`, `metrics`, `events`, `power`, `bmc`, `discovery`, `health`, `log`"#]],
        );
    }
}
