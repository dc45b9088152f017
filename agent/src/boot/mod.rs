//! The process `rackhand-agent boot`, which answers machines: everything long-lived in it is
//! built and spawned here. It parses what hostile machines send and therefore holds nothing
//! that would let them further than their own boot.
//!
//! Invariants:
//! - It starts, and boots the machines it knows, without the agent and without the
//!   controller: its intent, leases, tickets, chunks and key are on its own disk.
//! - One store, `boot.redb`, holds leases, tickets and installers; a second process on the
//!   same state is refused.

mod agent_link;
mod card;
mod chunks;
pub mod dhcp;
mod http;
mod installer;
pub mod leases;
pub mod listener;
pub mod management;
mod media;
mod phone_home;
mod ration;
mod reload;
pub mod router;
mod seldom;
pub mod sessions;
pub mod settings;
pub mod tftp;
pub mod ticket;
mod toolbox;
mod turn;

pub use card::card_is_there;
pub use reload::Settings;

use std::{
    fs,
    io::Write as _,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use axum::Router;
use rackhand_common::{pki, time::Clock};
use rackhand_daemon::{Filter, Log, Signals, systemd};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::Deserialize;
use tokio::{
    net::{TcpListener, UdpSocket},
    sync::watch,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use self::{
    agent_link::AgentLink,
    chunks::Chunks,
    http::ServedFile,
    installer::Channel,
    leases::Leases,
    management::{Management, ManagementFile},
    media::Media,
    phone_home::PhoneHome,
    ration::Rations,
    seldom::Seldom,
    sessions::Sessions,
    ticket::Tickets,
    toolbox::Toolbox,
};
use crate::{
    clock::SystemClock,
    intent,
    spool::{self, Spool, written},
};

/// How long shutdown waits for what is under way.
const GRACE: Duration = Duration::from_secs(10);

/// The most events kept while the agent is away: it is on the same node, and soon back.
const EVENTS: u64 = 50_000;

/// `/etc/rackhand/boot.toml` as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Directory of everything that must survive a restart; default `/var/lib/rackhand/boot`.
    #[serde(default = "default_state")]
    pub state: PathBuf,
    /// The agent's unix socket; default `/run/rackhand/agent.sock`.
    #[serde(default = "default_socket")]
    pub socket: PathBuf,
    /// The network card on the provisioning network.
    pub interface: String,
    /// This node's address on it.
    pub address: Ipv4Addr,
    /// Port of boot scripts and chunks; default 8080.
    #[serde(default = "default_http")]
    pub http: u16,
    /// Port of the installers' channel; default 8444.
    #[serde(default = "default_channel")]
    pub channel: u16,
    /// Port of TFTP; default 69.
    #[serde(default = "default_tftp_port")]
    pub tftp_port: u16,
    /// Files given by TFTP, by the name that is asked for; default: Debian's iPXE.
    #[serde(default = "default_tftp")]
    pub tftp: tftp::Files,
    /// A small bootable image that BMCs put into their machines' virtual drives; default Debian's iPXE,
    /// `/usr/lib/ipxe/ipxe.iso`. It may be missing.
    #[serde(default = "default_media")]
    pub media: PathBuf,
    /// For how many seconds machines are told that an address is theirs; default an hour.
    #[serde(default = "default_lease")]
    pub lease: u32,
    /// Bytes of image chunks kept; default 20 GiB.
    #[serde(default = "default_cache")]
    pub cache: u64,
    /// The installer's files.
    #[serde(default)]
    pub installer: InstallerFiles,
    /// The network on which BMCs are given addresses; default none.
    pub management: Option<ManagementFile>,
    /// What is logged; default `info`.
    #[serde(default)]
    pub log: Filter,
}

/// What the installer boots from.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstallerFiles {
    /// Its kernel; default `/usr/lib/rackhand/installer/kernel`.
    pub kernel: PathBuf,
    /// Its initial RAM disk; default `/usr/lib/rackhand/installer/initramfs`.
    pub initramfs: PathBuf,
    /// The toolbox, which machines are tested and rescued with; default
    /// `/usr/lib/rackhand/installer/toolbox.squashfs`. It may be missing.
    #[serde(default = "default_toolbox")]
    pub toolbox: PathBuf,
}

fn default_toolbox() -> PathBuf {
    "/usr/lib/rackhand/installer/toolbox.squashfs".into()
}

impl Default for InstallerFiles {
    fn default() -> Self {
        let directory = Path::new("/usr/lib/rackhand/installer");
        Self { kernel: directory.join("kernel"), initramfs: directory.join("initramfs"), toolbox: default_toolbox() }
    }
}

fn default_state() -> PathBuf {
    "/var/lib/rackhand/boot".into()
}

fn default_socket() -> PathBuf {
    "/run/rackhand/agent.sock".into()
}

fn default_http() -> u16 {
    8080
}

fn default_channel() -> u16 {
    8444
}

fn default_tftp_port() -> u16 {
    69
}

fn default_lease() -> u32 {
    dhcp::LEASE_LASTS.as_secs() as u32
}

fn default_cache() -> u64 {
    20 << 30
}

fn default_media() -> PathBuf {
    "/usr/lib/ipxe/ipxe.iso".into()
}

/// The names are those that DHCP tells BIOS and UEFI ROMs.
fn default_tftp() -> tftp::Files {
    ["undionly.kpxe", "snponly.efi"].map(|name| (name.to_owned(), Path::new("/usr/lib/ipxe").join(name))).into()
}

/// The configuration as used.
#[derive(Clone, Debug)]
pub struct Config {
    /// Directory of everything that must survive a restart.
    pub state: PathBuf,
    /// The agent's unix socket.
    pub socket: PathBuf,
    /// The network card on the provisioning network.
    pub interface: String,
    /// This node's address on it.
    pub address: Ipv4Addr,
    /// Port of boot scripts and chunks.
    pub http: u16,
    /// Port of the installers' channel.
    pub channel: u16,
    /// Port of TFTP.
    pub tftp_port: u16,
    /// Files given by TFTP.
    pub tftp: tftp::Files,
    /// The image that BMCs put into their machines' virtual drives.
    pub media: PathBuf,
    /// For how long machines are told that an address is theirs.
    pub lease: Duration,
    /// Bytes of image chunks kept.
    pub cache: u64,
    /// The installer's files.
    pub installer: InstallerFiles,
    /// The network on which BMCs are given addresses.
    pub management: Option<Management>,
    /// What is logged.
    pub log: Filter,
}

impl TryFrom<File> for Config {
    type Error = String;

    fn try_from(file: File) -> Result<Self, String> {
        if file.interface.is_empty() || file.interface.len() > 15 {
            return Err("interface must be the name of a network card, as `ip link` shows it".into());
        }
        if file.address.is_unspecified() || file.address.is_broadcast() || file.address.is_multicast() {
            return Err(format!("address {} cannot be this node's", file.address));
        }
        if !(10..=7 * 86_400).contains(&file.lease) {
            return Err(format!("lease must be between 10 seconds and a week, and is {} seconds", file.lease));
        }
        let management = file.management.map(|management| Management::new(management, &file.interface)).transpose()?;
        Ok(Self {
            state: file.state,
            socket: file.socket,
            interface: file.interface,
            address: file.address,
            http: file.http,
            channel: file.channel,
            tftp_port: file.tftp_port,
            tftp: file.tftp,
            media: file.media,
            lease: Duration::from_secs(file.lease.into()),
            cache: file.cache,
            installer: file.installer,
            management,
            log: file.log,
        })
    }
}

impl Config {
    /// The configuration in this file.
    pub fn load(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path)
            .with_context(|| format!("cannot read {}: it must name `interface` and `address`", path.display()))?;
        let file: File = toml::from_str(&text).with_context(|| format!("{} is not usable", path.display()))?;
        Self::try_from(file).map_err(anyhow::Error::msg).with_context(|| format!("{} is not usable", path.display()))
    }
}

/// What a simulation replaces.
pub struct Seams {
    /// The present.
    pub clock: Arc<dyn Clock>,
    /// How DHCP messages come and go; the configured network card when absent. With a link of
    /// its own, a simulation has no router advertisements either.
    pub link: Option<Arc<dyn dhcp::Link>>,
    /// The same on the management network; with a `link` and without this nobody is answered there.
    pub management: Option<Arc<dyn dhcp::Link>>,
}

impl Default for Seams {
    fn default() -> Self {
        Self { clock: Arc::new(SystemClock::default()), link: None, management: None }
    }
}

/// A boot process that runs.
pub struct Running {
    /// Where boot scripts and chunks are served.
    pub http: SocketAddrV4,
    /// Where the installers' channel is.
    pub channel: SocketAddrV4,
    /// Its configuration, for taking over another.
    pub settings: Settings,
    spool: Spool,
    parts: JoinSet<Result<&'static str>>,
    shutdown: CancellationToken,
}

/// Builds and starts everything.
pub async fn start(config: &Config, seams: Seams, shutdown: CancellationToken) -> Result<Running> {
    let clock = seams.clock;
    // Before anything is made: a card that comes late is waited for, one that is mistyped is named.
    let card = match seams.link {
        Some(_) => None,
        None => Some(card::wait(&config.interface, config.address, &shutdown).await?),
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&config.state)
        .with_context(|| format!("cannot make {}", config.state.display()))?;
    let disk = Disk {
        database: spool::open_database(&config.state.join("boot.redb"))?,
        spool: Spool::open(&config.state.join("events.redb"), EVENTS)?,
    };
    let (http_listener, http) = listen(config.address, config.http).await?;
    let (channel_listener, channel) = listen(config.address, config.channel).await?;
    let tftp = UdpSocket::bind((config.address, config.tftp_port))
        .await
        .with_context(|| format!("cannot serve TFTP on {}:{}", config.address, config.tftp_port))?;
    let management = match &config.management {
        Some(wanted) if seams.management.is_some() || seams.link.is_none() => Some(management::Service {
            config: wanted.clone(),
            clock: clock.clone(),
            leases: Leases::of_management(disk.database.clone())?,
            spool: disk.spool.clone(),
            link: seams.management,
        }),
        _ => None,
    };
    let (services, key) = assemble(config, disk, clock.clone(), http, channel)?;
    let Services {
        intent: store,
        leases,
        sessions,
        spool,
        site,
        channel: installers,
        chunks,
        tftp: loaders,
        kernel,
        initramfs,
        toolbox,
        media,
    } = services;
    let files = loaders.subscribe();
    let settings = Settings::new(config.clone(), loaders, kernel, initramfs, toolbox, media, chunks.clone());
    let tls = TlsAcceptor::from(Arc::new(pki::boot_server(key)?));
    let intent = store.subscribe();

    let mut parts = JoinSet::new();
    let link = match seams.link {
        Some(link) => link,
        None => Arc::new(dhcp::System::open(&config.interface, config.address).with_context(|| {
            format!("cannot serve DHCP on {}: is another DHCP server running on this node?", config.interface)
        })?),
    };
    {
        let settings = dhcp::Settings { node: config.address, http: Some(http), lease: config.lease };
        let serve =
            dhcp::serve(link, clock.clone(), intent.clone(), leases.clone(), settings, spool.clone(), shutdown.clone());
        parts.spawn(async { Ok(serve.await.map(|()| "DHCP")?) });
    }
    if let Some(management) = management {
        let shutdown = shutdown.clone();
        parts.spawn(async {
            management.run(shutdown).await;
            Ok("addresses for BMCs")
        });
    }
    {
        let serve = tftp::serve(tftp, files, clock.clone(), leases.clone(), spool.clone(), shutdown.clone());
        parts.spawn(async { Ok(serve.await.map(|()| "TFTP")?) });
    }
    if let Some(card) = card {
        let stays = card.stays(shutdown.clone());
        parts.spawn(async { Ok(stays.await.map(|()| "the network card")?) });
        let serve = router::serve(config.interface.clone(), shutdown.clone());
        parts.spawn(async {
            serve.await;
            Ok("router advertisements")
        });
    }
    {
        let serve = listener::serve(http_listener, None, site, intent.clone(), shutdown.clone());
        parts.spawn(async { Ok(serve.await.map(|()| "HTTP")?) });
    }
    {
        let serve = listener::serve(channel_listener, Some(tls), installers, intent.clone(), shutdown.clone());
        parts.spawn(async { Ok(serve.await.map(|()| "the installers' channel")?) });
    }
    {
        let watch = sessions.watch(shutdown.clone());
        parts.spawn(async {
            watch.await;
            Ok("installers' watch")
        });
        let ahead = chunks.fetch_ahead(intent, shutdown.clone());
        parts.spawn(async {
            ahead.await;
            Ok("chunks ahead")
        });
        let follow = agent_link::follow_intent(config.socket.clone(), store, shutdown.clone());
        parts.spawn(async {
            follow.await;
            Ok("intent from the agent")
        });
        let forward = agent_link::forward_events(config.socket.clone(), spool.clone(), shutdown.clone());
        parts.spawn(async {
            forward.await;
            Ok("events to the agent")
        });
    }
    tracing::info!(%http, %channel, interface = config.interface, "answering machines");
    Ok(Running { http, channel, settings, spool, parts, shutdown })
}

/// What boot keeps, opened.
pub struct Disk {
    /// Leases, tickets and installers.
    pub database: Arc<redb::Database>,
    /// Events on their way to the agent.
    pub spool: Spool,
}

/// Everything that answers machines, without sockets and tasks.
pub struct Services {
    /// What the controller wants of the rack.
    pub intent: intent::Store,
    /// Who has which address; [`dhcp::Desk`] gives them.
    pub leases: Leases,
    /// The machines' installers.
    pub sessions: Sessions,
    /// Events on their way to the agent.
    pub spool: Spool,
    /// Plain HTTP; requests carry a [`listener::Client`] among their extensions.
    pub site: Router,
    /// The installers' channel; likewise.
    pub channel: Router,
    chunks: Chunks,
    tftp: watch::Sender<tftp::Files>,
    kernel: ServedFile,
    initramfs: ServedFile,
    toolbox: Toolbox,
    media: Media,
}

impl Services {
    /// Those of a node whose disk is `disk`; its sockets are said to be at `http` and `channel`.
    pub fn open(
        config: &Config,
        disk: Disk,
        clock: Arc<dyn Clock>,
        http: SocketAddrV4,
        channel: SocketAddrV4,
    ) -> Result<Self> {
        Ok(assemble(config, disk, clock, http, channel)?.0)
    }
}

fn assemble(
    config: &Config,
    Disk { database, spool }: Disk,
    clock: Arc<dyn Clock>,
    http: SocketAddrV4,
    channel: SocketAddrV4,
) -> Result<(Services, PrivateKeyDer<'static>)> {
    let identity = Identity::load(&config.state)?;
    let store = intent::Store::open(&config.state)
        .with_context(|| format!("cannot read the intent in {}", config.state.display()))?;
    let intent = store.subscribe();
    let leases = Leases::open(database.clone(), intent.clone())?;
    let tickets = Tickets::open(clock.now(), database.clone())?;
    leases.heard_before(&tickets.machines());
    let sessions = Sessions::open(database, clock.clone(), spool.clone())?;
    let agent = AgentLink::new(&config.socket);
    let chunks = Chunks::open(&config.state.join("chunks"), config.cache, agent.clone())?;
    let phone_home = PhoneHome::new(identity.phone_home, http);
    let seldom = Seldom::default();
    let kernel = ServedFile::new(config.installer.kernel.clone());
    let initramfs = ServedFile::new(config.installer.initramfs.clone());
    let toolbox = Toolbox::new(config.installer.toolbox.clone());
    let media = Media::new(config.media.clone());
    let tftp = watch::Sender::new(config.tftp.clone());
    let site = http::Site {
        clock: clock.clone(),
        intent: intent.clone(),
        leases: leases.clone(),
        tickets: tickets.clone(),
        chunks: chunks.clone(),
        phone_home: phone_home.clone(),
        spool: spool.clone(),
        kernel: kernel.clone(),
        initramfs: initramfs.clone(),
        toolbox: toolbox.clone(),
        loaders: tftp.subscribe(),
        media: media.clone(),
        http,
        channel,
        pin: pki::pin_of(&identity.key)?,
        home: Arc::default(),
        seldom: seldom.clone(),
    };
    let installers = Channel {
        clock,
        intent,
        leases: leases.clone(),
        tickets,
        sessions: sessions.clone(),
        chunks: chunks.clone(),
        agent,
        toolbox: toolbox.clone(),
        phone_home,
        seldom,
        rations: Rations::default(),
    };
    let (site, channel) = (site.routes(), installers.routes());
    let intent = store;
    let services =
        Services { intent, leases, sessions, spool, site, channel, chunks, tftp, kernel, initramfs, toolbox, media };
    Ok((services, identity.key))
}

impl Running {
    /// Tells systemd that boot is ready, and runs until shutdown; when told to, takes over the
    /// configuration that `load` reads.
    pub async fn run(
        mut self,
        signals: Signals,
        load: impl Fn() -> Result<Config> + Send + Sync + 'static,
        log: Log,
    ) -> Result<()> {
        let (spool, shutdown) = (self.spool.clone(), self.shutdown.clone());
        self.parts.spawn(async {
            systemd::attend(move || written(spool.clone()), shutdown).await;
            Ok("systemd's watchdog")
        });
        let settings = self.settings.clone();
        self.parts.spawn(async {
            signals.reload_by(move || settings.reload(&load, &log)).await;
            Ok("reloads")
        });
        self.ended().await
    }

    /// Waits for shutdown, or for a part that fails; then for the others to end.
    pub async fn ended(mut self) -> Result<()> {
        let mut failed = None;
        let finish = async {
            while let Some(ended) = self.parts.join_next().await {
                match ended.context("a part of boot panicked").and_then(|ended| ended) {
                    Ok(part) if !self.shutdown.is_cancelled() => {
                        failed = Some(anyhow::anyhow!("{part} ended by itself"))
                    }
                    Ok(_) => {}
                    Err(error) => failed = failed.or(Some(error)),
                }
                self.shutdown.cancel();
            }
            failed
        };
        // The deadline counts from shutdown, not from the start.
        let shutdown = self.shutdown.clone();
        tokio::pin!(finish);
        let failed = tokio::select! {
            failed = &mut finish => failed,
            () = shutdown.cancelled() => match timeout(GRACE, &mut finish).await {
                Ok(failed) => failed,
                Err(_) => {
                    tracing::warn!("some requests did not end in time and were cut off");
                    None
                }
            },
        };
        failed.map_or(Ok(()), Err)
    }
}

async fn listen(address: Ipv4Addr, port: u16) -> Result<(TcpListener, SocketAddrV4)> {
    let listener = TcpListener::bind((address, port))
        .await
        .with_context(|| format!("cannot listen on {address}:{port}: is the address configured, and the port free?"))?;
    match listener.local_addr()? {
        SocketAddr::V4(at) => Ok((listener, at)),
        SocketAddr::V6(at) => anyhow::bail!("asked for IPv4 and got {at}"),
    }
}

/// What boot proves itself with; made at the first start, then kept.
struct Identity {
    /// The key machines are told to expect.
    key: PrivateKeyDer<'static>,
    /// Signs the addresses that installed systems call.
    phone_home: [u8; 32],
}

impl Identity {
    fn load(state: &Path) -> Result<Self> {
        let key = keep(&state.join("boot.key"), || Ok(rcgen::KeyPair::generate()?.serialize_der()))?;
        let phone_home = keep(&state.join("phone-home.key"), || Ok(rand::random::<[u8; 32]>().to_vec()))?;
        Ok(Self {
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key)),
            phone_home: phone_home.try_into().map_err(|_| anyhow::anyhow!("phone-home.key is not 32 bytes long"))?,
        })
    }
}

/// The secret in this file, which is made when there is none: whole or not at all, and
/// readable by us alone.
fn keep(path: &Path, make: impl FnOnce() -> Result<Vec<u8>>) -> Result<Vec<u8>> {
    match fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        read => return read.with_context(|| format!("cannot read {}", path.display())),
    }
    let secret = make()?;
    let beside = path.with_extension("new");
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(&secret)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    fs::File::open(path.parent().context("a file has a directory")?)?.sync_all()?;
    Ok(secret)
}
