//! The process `rackhand-controller`: its making ([`init`]) and its running ([`start`]), where
//! everything long-lived is built and spawned.
//!
//! Invariants:
//! - One process serves a data directory, and a server's database: it holds the lock of each ([`alone`]).
//! - [`init`] ends with the first token, in one transaction: interrupted before that it can be
//!   repeated and goes on where it was; after that it refuses.
//! - Shutdown: no new work; what is under way may end, until the [deadline](GRACE), where
//!   whoever is late is named and left behind. All of it can be repeated after the next start.

mod alone;
pub mod people;
mod reload;
pub mod rotation;
pub mod sealing;

pub(crate) use alone::Alone;
pub use reload::Settings;

use std::{
    collections::HashMap,
    fs,
    io::Write,
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use rackhand_common::{erasure::Certificate, pki::KeyPin, time::Clock};
use rackhand_daemon::{Filter, Log, Signals, systemd};
use rustls_pki_types::ServerName;
use serde::Deserialize;
use tokio::{net::TcpListener, sync::watch, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    acme::{self, Acme},
    addresses::Addresses,
    adoptions, api, audit,
    authority::Authority,
    campaigns,
    certificates::Certificates,
    clock::SystemClock,
    enrol, events,
    fleet::{self, Fleet},
    https,
    images::{self, Images},
    intakes,
    oidc::{self, Oidc},
    overdue,
    passwords::Passwords,
    rotations::{self, Rotations},
    samples, seal_key,
    ssh::{self, HostKey},
    store::{Place, Store, StoreError},
    telemetry::Telemetry,
    webhooks::{self, Webhooks},
    workflows::{self, Workflows},
};

/// How long shutdown waits for what is under way.
pub const GRACE: Duration = Duration::from_secs(20);

/// `/etc/rackhand/controller.toml` as written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Directory of everything that must survive a restart; default `/var/lib/rackhand/controller`.
    pub data: Option<PathBuf>,
    /// DNS names and addresses under which operators and agents reach this controller. They are
    /// in its certificate; the first is the one that new agents are told.
    #[serde(default)]
    pub names: Vec<String>,
    /// The database, when it is not a file in `data`.
    pub database: Option<DatabaseFile>,
    /// The operators' API.
    #[serde(default)]
    pub api: ApiFile,
    /// The agents' connections.
    #[serde(default)]
    pub agents: AgentsFile,
    /// Consoles by SSH.
    #[serde(default)]
    pub ssh: SshFile,
    /// Operating system images.
    #[serde(default)]
    pub images: ImagesFile,
    /// Who vouches for people, beside their passwords here.
    pub oidc: Option<oidc::File>,
    /// Programs that are told what happens.
    #[serde(default)]
    pub webhooks: Vec<webhooks::File>,
    /// What is logged; default `info`.
    #[serde(default)]
    pub log: Filter,
}

/// `[database]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatabaseFile {
    /// A database of a PostgreSQL server, such as `postgresql://rackhand@db.example.net/rackhand`.
    pub url: String,
    /// The file that has the password in it; default is what `PGPASSWORD` in the environment says.
    pub password_file: Option<PathBuf>,
}

/// `[api]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiFile {
    /// Where HTTPS is served (TCP); default `0.0.0.0:8443`.
    pub listen: Option<SocketAddr>,
    /// Requests that one token may make each second, five seconds' worth at once; default 100.
    pub requests_per_second: Option<NonZeroU32>,
    /// A certificate for operators in place of our own: its chain and its key, PEM.
    pub certificate: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
    /// The same from an authority, renewed by itself.
    pub acme: Option<Acme>,
}

/// `[agents]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentsFile {
    /// Where agents connect to (UDP); default `0.0.0.0:4433`.
    pub listen: Option<SocketAddr>,
    /// What new agents are told, as `HOST:PORT`; default is the first of `names` and the port
    /// of `listen`. Needed when a router or balancer in between changes the port.
    pub address: Option<String>,
}

/// `[ssh]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SshFile {
    /// Where machines' consoles are to be had by SSH (TCP), such as `[::]:2222`; default is nowhere.
    pub listen: Option<SocketAddr>,
}

/// `[images]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImagesFile {
    /// The largest image that is accepted, in bytes when raw; default 64 GiB.
    pub limit: Option<u64>,
    /// Directory from which files on this host may be imported; default `import` below `data`.
    pub import: Option<PathBuf>,
    /// Prefixes and hosts from which images may be fetched although they are within private or
    /// local networks; default none.
    #[serde(default)]
    pub sources: Vec<String>,
}

impl File {
    /// What is written in this file; `None` when there is no such file.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        let text = match fs::read_to_string(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            read => read.with_context(|| format!("cannot read {}", path.display()))?,
        };
        toml::from_str(&text).map(Some).with_context(|| format!("{} is not usable", path.display()))
    }
}

/// Where the certificate is from that operators are shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Public {
    /// Our own authority: they need `ca.pem`.
    Ours,
    /// These files, certificate and key, read at the start and at each reload.
    Files(PathBuf, PathBuf),
    /// An authority on the network.
    Acme(Acme),
}

/// The configuration as used.
#[derive(Clone, Debug)]
pub struct Config {
    /// Directory of everything that must survive a restart.
    pub data: PathBuf,
    /// Names and addresses of this controller; at least one.
    pub names: Vec<String>,
    /// The database, when it is not a file in `data`.
    pub server: Option<DatabaseFile>,
    /// Where HTTPS is served.
    pub api: SocketAddr,
    /// Requests that one token may make each second.
    pub requests_per_second: NonZeroU32,
    /// What operators are shown in place of our own certificate.
    pub public: Public,
    /// Where agents connect to.
    pub agents: SocketAddr,
    /// What agents are told, when it is not the first name and the port.
    pub agents_address: Option<String>,
    /// Where consoles are to be had by SSH.
    pub ssh: Option<SocketAddr>,
    /// Operating system images.
    pub images: images::Config,
    /// Who vouches for people.
    pub oidc: Option<oidc::Config>,
    /// Programs that are told what happens.
    pub webhooks: Vec<webhooks::Config>,
    /// What is logged.
    pub log: Filter,
}

impl TryFrom<File> for Config {
    type Error = String;

    fn try_from(file: File) -> Result<Self, String> {
        if file.names.is_empty() {
            return Err("names is empty: list the DNS names or addresses under which operators and agents reach \
                 this controller, the agents' first, such as names = [\"rackhand.example.net\"]"
                .into());
        }
        for name in &file.names {
            if ServerName::try_from(name.as_str()).is_err() {
                return Err(format!(
                    "names: `{name}` is neither a DNS name nor an address; a port does not belong here"
                ));
            }
        }
        if let Some(address) = &file.agents.address
            && !address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        {
            return Err(format!("agents.address: `{address}` is not HOST:PORT"));
        }
        let public = match (file.api.certificate, file.api.key, file.api.acme) {
            (None, None, None) => Public::Ours,
            (Some(certificate), Some(key), None) => Public::Files(certificate, key),
            (None, None, Some(acme)) => Public::Acme(acme),
            (_, _, Some(_)) => return Err("api: take `certificate` and `key`, or `acme`, not both".into()),
            _ => return Err("api: `certificate` and `key` belong together; one file can be both".into()),
        };
        if let Public::Acme(_) = public
            && !file.names.iter().any(|name| is_dns_name(name))
        {
            return Err("api.acme: an authority certifies DNS names, and `names` has addresses only".into());
        }
        if let Some(database) = &file.database {
            Place::of_url(&database.url, None).map_err(|error| format!("database.url: {error}"))?;
        }
        let data = file.data.unwrap_or_else(|| "/var/lib/rackhand/controller".into());
        let mut images = images::Config::below(&data);
        if let Some(limit) = file.images.limit {
            images.limit = limit;
        }
        if let Some(import) = file.images.import {
            images.import = import;
        }
        for source in &file.images.sources {
            images.sources.push(source.parse().map_err(|error| format!("images.sources: `{source}` is {error}"))?);
        }
        Ok(Self {
            data,
            names: file.names,
            server: file.database,
            api: file.api.listen.unwrap_or(SocketAddr::from(([0, 0, 0, 0], 8443))),
            requests_per_second: file.api.requests_per_second.unwrap_or(api::USUAL),
            public,
            agents: file.agents.listen.unwrap_or(SocketAddr::from(([0, 0, 0, 0], 4433))),
            agents_address: file.agents.address,
            ssh: file.ssh.listen,
            images,
            oidc: file.oidc.map(TryInto::try_into).transpose()?,
            webhooks: webhooks::Config::all(file.webhooks)?,
            log: file.log,
        })
    }
}

impl Config {
    /// Keys and certificates.
    pub fn pki(&self) -> PathBuf {
        self.data.join("pki")
    }

    /// The database's file, when it is one.
    pub fn database(&self) -> PathBuf {
        self.data.join("controller.db")
    }

    /// The names that an authority on the network can certify.
    fn dns_names(&self) -> Vec<String> {
        self.names.iter().filter(|name| is_dns_name(name)).cloned().collect()
    }

    /// Where the database is. Reads the password's file, when there is one.
    pub fn place(&self) -> Result<Place> {
        let Some(DatabaseFile { url, password_file }) = &self.server else { return Ok(self.database().into()) };
        let password = match password_file {
            None => None,
            Some(path) => Some(
                fs::read_to_string(path)
                    .with_context(|| format!("cannot read {} (`database.password_file`)", path.display()))?,
            ),
        };
        let password = password.as_deref().map(|text| text.trim_end_matches(['\n', '\r']));
        Place::of_url(url, password).context("cannot use `database.url`")
    }

    /// What new agents are told when the endpoint has this port.
    fn told_to_agents(&self, port: u16) -> String {
        self.agents_address.clone().unwrap_or_else(|| at(&self.names[0], port))
    }

    /// Where operators reach the API.
    pub fn url(&self) -> String {
        format!("https://{}", at(&self.names[0], self.api.port()))
    }
}

/// Whether this is a name and no address.
fn is_dns_name(name: &str) -> bool {
    name.parse::<IpAddr>().is_err()
}

/// `HOST:PORT`.
fn at(name: &str, port: u16) -> String {
    match name.parse::<IpAddr>() {
        Ok(IpAddr::V6(address)) => format!("[{address}]:{port}"),
        _ => format!("{name}:{port}"),
    }
}

/// What a simulation replaces.
pub struct Seams {
    /// The present.
    pub clock: Arc<dyn Clock>,
}

impl Default for Seams {
    fn default() -> Self {
        Self { clock: Arc::new(SystemClock::default()) }
    }
}

/// Makes the data directory: the authority, the database and the first administrator's token.
/// `tell` is given the token and the file of the authority's certificates before the token
/// counts; a token that could not be told never does.
pub async fn init(config: &Config, seams: Seams, tell: impl FnOnce(&str, &Path) -> Result<()>) -> Result<()> {
    let now = seams.clock.now().wall;
    let parent = config.data.parent().map_or(Ok(()), fs::create_dir_all);
    parent
        .and_then(|()| fs::DirBuilder::new().recursive(true).mode(0o700).create(&config.data))
        .with_context(|| format!("cannot make {} (`data` in the configuration)", config.data.display()))?;
    let _alone = Alone::on(config).await?;
    let authority = match config.pki() {
        pki if pki.exists() => Authority::open(&pki),
        pki => Authority::init(&pki, now),
    }
    .context("cannot make the certificate authority")?;
    authority.controller(&config.names, now).context("cannot make the controller's certificate")?;
    let store = open(config).await?;
    let (token, hash) = api::fresh_token();
    let mut tx = store.begin().await?;
    match tx.insert_first_token(now, "admin", &hash).await {
        Err(StoreError::Taken(_)) => bail!(
            "{} is a controller's already, and its first token was told then; nothing was changed",
            config.data.display()
        ),
        done => done?,
    };
    tell(&token, &authority.ca_file())?;
    tx.commit().await?;
    store.close().await;
    Ok(())
}

/// Gives up root's rights for those of the data directory's owner, so that what is written can
/// be read by the service; whoever is not root, and where there is no directory yet, stays.
pub fn become_owner(data: &Path) -> Result<()> {
    use nix::unistd::{Gid, Uid, geteuid, setgid, setgroups, setuid};
    use std::os::unix::fs::MetadataExt as _;
    let owner = match fs::metadata(data) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        read => read.with_context(|| format!("cannot look at {}", data.display()))?,
    };
    if !geteuid().is_root() || owner.uid() == 0 {
        return Ok(());
    }
    setgroups(&[])
        .and_then(|()| setgid(Gid::from_raw(owner.gid())))
        .and_then(|()| setuid(Uid::from_raw(owner.uid())))
        .with_context(|| format!("cannot become the owner of {}", data.display()))
}

async fn open(config: &Config) -> Result<Store> {
    let place = config.place()?;
    let seal = seal_key::seal(&config.pki()).context("cannot use the key of the secrets in the database")?;
    Store::open(place.clone(), seal).await.with_context(|| format!("cannot open the database {place}"))
}

/// A controller that runs.
#[derive(Debug)]
pub struct Running {
    /// Where HTTPS is served; the port that was given when the configuration said 0.
    pub api: SocketAddr,
    /// Where agents connect to.
    pub agents: SocketAddr,
    /// Where consoles are to be had by SSH.
    pub ssh: Option<SocketAddr>,
    /// The pin of the issuing root, as it stands in enrolment codes.
    pub root_pin: KeyPin,
    /// Its health and metrics.
    pub telemetry: Telemetry,
    /// Its configuration, for taking over another.
    pub settings: Settings,
    store: Store,
    parts: Parts,
    shutdown: CancellationToken,
    _alone: Alone,
}

/// Tasks that run until shutdown, by name.
#[derive(Debug, Default)]
struct Parts {
    tasks: JoinSet<()>,
    names: HashMap<tokio::task::Id, &'static str>,
}

impl Parts {
    fn add(&mut self, name: &'static str, part: impl Future<Output = ()> + Send + 'static) {
        let handle = self.tasks.spawn(part);
        self.names.insert(handle.id(), name);
    }

    /// The next that ends, and whether by a panic.
    async fn next(&mut self) -> Option<(&'static str, Result<(), tokio::task::JoinError>)> {
        let (id, ended) = match self.tasks.join_next_with_id().await? {
            Ok((id, ())) => (id, Ok(())),
            Err(error) => (error.id(), Err(error)),
        };
        Some((self.names.remove(&id).unwrap_or("a part"), ended))
    }
}

/// Builds the controller on data that [`init`] has made, and starts it.
pub async fn start(config: Config, seams: Seams, shutdown: CancellationToken) -> Result<Running> {
    let clock = seams.clock;
    let now = clock.now().wall;
    ensure!(
        config.pki().exists(),
        "{} is not a controller's data directory (`data` in the configuration): run `rackhand-controller init` first",
        config.data.display()
    );
    let alone = Alone::on(&config).await?;
    let authority = Arc::new(Authority::open(&config.pki()).context("cannot use the certificate authority")?);
    authority.settle().context("cannot use the certificate authority")?;
    let identity = authority.controller(&config.names, now).context("cannot make the controller's certificate")?;
    sealing::finish(&config, now).await?;
    let store = open(&config).await?;
    let mut tx = store.begin().await?;
    tx.forget_connections().await?;
    tx.commit().await?;

    let sign: images::Sign = {
        let authority = authority.clone();
        Arc::new(move |bytes| authority.sign_image(bytes))
    };
    let images = Images::open(config.images.clone(), store.clone(), sign, clock.clone(), shutdown.clone())
        .await
        .context("cannot use the image store")?;
    let workflows = Workflows::new();
    let certifier = authority.certifier(now).context("cannot make the key of certificates of erasure")?;
    let certify: Arc<events::Certify> = {
        let clock = clock.clone();
        Arc::new(move |certificate| certifier.certify(&Certificate { signed: clock.now().wall, ..certificate }))
    };
    let fleet = Fleet::new(store.clone(), authority.clone(), certify, clock.clone(), workflows.clone());
    let telemetry = Telemetry::new(store.clone(), fleet.clone(), &workflows, shutdown.clone());

    let certificate = identity.chain.first().cloned().context("a chain has a certificate")?;
    let endpoint = fleet::listen(config.agents, &authority, identity.clone())
        .with_context(|| format!("cannot listen for agents on UDP {} (`agents.listen`)", config.agents))?;
    let listener = TcpListener::bind(config.api)
        .await
        .with_context(|| format!("cannot serve the API on TCP {} (`api.listen`)", config.api))?;
    let (api_at, agents_at) = (listener.local_addr()?, endpoint.local_addr()?);
    let door = match config.ssh {
        Some(at) => {
            let key = HostKey::open(&config.pki()).context("cannot use the controller's SSH key")?;
            let listener = TcpListener::bind(at)
                .await
                .with_context(|| format!("cannot serve consoles by SSH on TCP {at} (`ssh.listen`)"))?;
            Some((listener.local_addr()?, listener, key))
        }
        None => None,
    };
    let certificates = Arc::new(Certificates::new(identity.clone())?);
    certificates.show_public(reload::public(&config)?);
    let tls = https::tls(authority.bundle(), identity, certificates.clone())?;
    let (address, agents_address) = watch::channel(config.told_to_agents(agents_at.port()));
    let root_pin = authority.root_pin();
    let rotations = Rotations::default();
    let changed = {
        let (workflows, fleet, rotations) = (workflows.clone(), fleet.clone(), rotations.clone());
        Arc::new(move |rack| {
            workflows.wake();
            rotations.wake();
            fleet.wake(rack);
        })
    };
    let (addresses, hand_out) = Addresses::new(store.clone(), clock.clone(), shutdown.clone());
    let rate = api::Rate::new(config.requests_per_second);
    let oidc = Oidc::new(config.oidc.as_ref())?;
    let webhooks = Webhooks::new(&config.webhooks)?;
    let app = api::App {
        store: store.clone(),
        images: images.clone(),
        addresses,
        passwords: Passwords::default(),
        oidc: oidc.clone(),
        clock: clock.clone(),
        changed,
        look: {
            let fleet = fleet.clone();
            Arc::new(move |rack, machine, look| {
                let fleet = fleet.clone();
                Box::pin(async move { fleet.look(rack, machine, look).await })
            })
        },
        series: {
            let fleet = fleet.clone();
            Arc::new(move |rack, machine, query| {
                let fleet = fleet.clone();
                Box::pin(async move { fleet.series(rack, machine, query).await })
            })
        },
        agents: Arc::new(fleet.clone()),
        seats: api::Seats::default(),
        ssh: door.as_ref().map(|(at, _, key)| Arc::new(key.door(at.port()))),
        standings: {
            let fleet = fleet.clone();
            Arc::new(move |rack| {
                let fleet = fleet.clone();
                Box::pin(async move { fleet.standings(rack).await })
            })
        },
        baseline: {
            let fleet = fleet.clone();
            Arc::new(move |rack, machine, epoch, ask| {
                let fleet = fleet.clone();
                Box::pin(async move { fleet.baseline(rack, machine, epoch, ask).await })
            })
        },
        cut: {
            let fleet = fleet.clone();
            Arc::new(move |agent| fleet.cut(agent))
        },
        new_code: Arc::new(move || enrol::fresh_code(root_pin)),
        agents_address,
        rate: rate.clone(),
        shutdown: shutdown.clone(),
    };
    let ssh_at = door.as_ref().map(|(at, ..)| *at);
    let ssh = door.map(|(_, listener, key)| ssh::serve(listener, key, app.clone(), shutdown.clone()));
    let router = api::router(app).merge(images.router()).merge(telemetry.router());

    let acme = match &config.public {
        Public::Acme(acme) => Some((acme.clone(), config.dns_names(), config.data.join("acme"))),
        _ => None,
    };
    let settings = Settings::new(reload::Parts {
        config,
        authority: authority.clone(),
        clock: clock.clone(),
        endpoint: endpoint.clone(),
        agents_port: agents_at.port(),
        certificate,
        certificates: certificates.clone(),
        agents_address: address,
        images: images.clone(),
        rate,
        oidc,
        webhooks: webhooks.clone(),
    });
    let mut parts = Parts::default();
    parts.add("the API", https::serve(listener, tls, router, clock.clone(), shutdown.clone()));
    if let Some(part) = ssh {
        parts.add("the consoles by SSH", part);
    }
    if let Some((acme, names, dir)) = acme {
        let part = acme::run(acme, names, dir, certificates, clock.clone(), shutdown.clone());
        parts.add("the certificate by ACME", part);
    }
    parts.add("the addresses", hand_out);
    parts.add("machines that are overdue", overdue::run(store.clone(), clock.clone(), shutdown.clone()));
    parts.add("the samples of pools", samples::run(store.clone(), clock.clone(), shutdown.clone()));
    parts.add("the webhooks", webhooks.run(store.clone(), clock.clone(), shutdown.clone()));
    parts.add("the agents' connections", fleet.clone().run(endpoint, shutdown.clone()));
    let run = intakes::run(store.clone(), fleet.clone(), rotations.clone(), clock.clone(), shutdown.clone());
    parts.add("the BMCs that were found", run);
    let run = adoptions::telling::run(store.clone(), fleet.clone(), clock.clone(), shutdown.clone());
    parts.add("what BMCs tell of machines that run", run);
    let run = rotations::run(rotations, store.clone(), fleet.clone(), clock.clone(), shutdown.clone());
    parts.add("the passwords of BMCs", run);
    let run = campaigns::run(store.clone(), workflows.clone(), clock.clone(), shutdown.clone());
    parts.add("the firmware campaigns", run);
    parts.add("the workflows", workflows::run(workflows, store.clone(), fleet, clock, shutdown.clone()));
    if let Some(database) = alone.database.clone() {
        let shutdown = shutdown.clone();
        parts.add("the lock of the database", async move {
            if let Err(error) = database.keep(shutdown.cancelled_owned()).await {
                tracing::error!(error = &error as &dyn std::error::Error, "this controller stops");
            }
        });
    }
    parts.add("the audit record", audit::run(store.clone(), shutdown.clone()));
    parts.add("the images", {
        let (shutdown, store) = (shutdown.clone(), store.clone());
        async move {
            // What a restored database does not know may be what is deployed.
            let swept = match store.any_restored().await {
                Ok(false) => images.sweep().await,
                Ok(true) => Ok(0),
                Err(error) => Err(error.into()),
            };
            match swept {
                Ok(0) => (),
                Ok(removed) => tracing::info!(removed, "objects of no image were removed"),
                Err(error) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "unused objects cannot be removed");
                }
            }
            shutdown.cancelled().await;
            images.closed().await;
        }
    });
    Ok(Running {
        api: api_at,
        agents: agents_at,
        ssh: ssh_at,
        root_pin,
        telemetry,
        settings,
        store,
        parts,
        shutdown,
        _alone: alone,
    })
}

impl Running {
    /// Its database, for measuring.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Tells systemd that the controller is ready, and is alive for as long as the database
    /// answers; runs until shutdown. When told to, takes over the configuration that `load` reads.
    pub async fn run(
        mut self,
        signals: Signals,
        load: impl Fn() -> Result<Config> + Send + Sync + 'static,
        log: Log,
    ) -> Result<()> {
        let telemetry = self.telemetry.clone();
        let lives = move || {
            let telemetry = telemetry.clone();
            async move { telemetry.unready().await.is_none() }
        };
        self.parts.add("systemd's watchdog", systemd::attend(lives, self.shutdown.clone()));
        let settings = self.settings.clone();
        let reload = move || {
            let fresh = load()?;
            let taken = settings.take_over(&fresh)?;
            log.take(&fresh.log);
            Ok(taken)
        };
        self.parts.add("reloads", signals.reload_by(reload));
        self.ended().await
    }

    /// Waits until shutdown, or until a part ends that should not; then ends all others.
    pub async fn ended(mut self) -> Result<()> {
        let first = self.parts.next().await;
        let early = !self.shutdown.is_cancelled();
        self.shutdown.cancel();
        let mut result = match first {
            Some((name, Err(error))) => Err(error).context(name),
            Some((name, Ok(()))) if early => Err(anyhow::anyhow!("{name} ended by itself")),
            _ => Ok(()),
        };
        let others = async {
            while let Some((name, ended)) = self.parts.next().await {
                if let Err(error) = ended
                    && result.is_ok()
                {
                    result = Err(error).context(name);
                }
            }
        };
        if timeout(GRACE, others).await.is_err() {
            let late: Vec<_> = self.parts.names.values().copied().collect();
            tracing::warn!(late = late.join(", "), "shutdown does not wait any longer");
            self.parts.tasks.abort_all();
        }
        // Waits for every connection that is in use; those of parts left behind may be.
        let _ = timeout(Duration::from_secs(2), self.store.close()).await;
        result
    }
}

/// Writes a first configuration file; fails when there is one.
pub fn write_config(path: &Path, data: Option<&Path>, names: &[String]) -> Result<()> {
    let cannot = || format!("cannot write {}", path.display());
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(cannot)?;
    }
    let mut text = String::from("# rackhand-controller; `rackhand-controller help serve` tells what else there is.\n");
    if let Some(data) = data {
        text += &format!("data = {}\n", toml::Value::from(data.display().to_string()));
    }
    text += &format!("names = {}\n", toml::Value::from(names.to_vec()));
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let mut file = fs::File::create(&fresh).with_context(cannot)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).with_context(cannot)?;
    fs::hard_link(&fresh, path).with_context(cannot)?;
    fs::remove_file(&fresh).with_context(cannot)
}

#[cfg(test)]
mod tests;
