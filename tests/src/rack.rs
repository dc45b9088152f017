//! A rack with its controller: the real daemons, each in a runtime of its own, on a loopback
//! network that no other rack uses.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Instant,
};

use anyhow::{Context as _, Result};
use rackhand_agent::{agent, boot, uplink};
use rackhand_common::{image::Digest, machine::Mac, pki};
use rackhand_controller::controller;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::{
    clock::Wall,
    disk::Drive,
    image,
    machine::{Machine, Model, Place, PowerDriver},
    operator::{self, Operator, PATIENCE},
    process::Process,
    segment::{Cable as _, Card, Segment},
    wait,
};

/// A daemon that can be killed and started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// `rackhand-controller serve`.
    Controller,
    /// `rackhand-agent serve`.
    Agent,
    /// `rackhand-agent boot`.
    Boot,
}

/// A network of addresses 127.x.y.0/24. Every rack of this host has another, so that its
/// ports can be the same in each and nobody takes them while a daemon is away.
#[derive(Debug)]
struct Subnet {
    node: Ipv4Addr,
    /// Claims the subnet.
    _claim: TcpListener,
}

impl Subnet {
    fn claim() -> Result<Self> {
        static NEXT: AtomicU8 = AtomicU8::new(0);
        for _ in 0..64 {
            let [x, y, ..] = *uuid::Uuid::new_v4().as_bytes();
            let y = y.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
            let node = Ipv4Addr::new(127, x.clamp(2, 253), y, 1);
            if let Ok(claim) = TcpListener::bind((node, CLAIM)) {
                return Ok(Self { node, _claim: claim });
            }
        }
        anyhow::bail!("no loopback network is free")
    }

    fn host(&self, last: u8) -> Ipv4Addr {
        let [a, b, c, _] = self.node.octets();
        Ipv4Addr::new(a, b, c, last)
    }
}

const CLAIM: u16 = 4430;
const API: u16 = 8443;
const AGENTS: u16 = 4433;
const SSH: u16 = 2222;
const EVENTS: u16 = 8446;
const HTTP: u16 = 8080;
const CHANNEL: u16 = 8444;
/// 69 is for root.
const TFTP: u16 = 6969;

/// A controller, a node and its machines.
#[derive(Debug)]
pub struct VirtualRack {
    /// The operator.
    pub operator: Operator,
    /// The clock on the wall, which all daemons go by.
    pub wall: Wall,
    subnet: Subnet,
    segment: Segment,
    management: Segment,
    /// The range of addresses that BMCs are given, by their last numbers.
    bmcs_from: Option<(u8, u8)>,
    chassis: PowerDriver,
    machines: Vec<Machine>,
    controller: Option<Process>,
    agent: Option<Process>,
    boot: Option<Process>,
    settings: Settings,
    /// Where the agent answers what it counts.
    metrics: Option<SocketAddr>,
    /// Whether BMCs may post events to the agent.
    takes_events: bool,
    directory: TempDir,
}

/// The configurations of the daemons that run.
#[derive(Debug, Default)]
struct Settings {
    controller: Option<controller::Settings>,
    agent: Option<agent::Settings>,
    boot: Option<boot::Settings>,
}

impl VirtualRack {
    /// A rack without machines: controller made and started, agent enrolled, boot running.
    pub async fn new() -> Self {
        Self::at(Wall::default()).await
    }

    /// The same, by this clock.
    pub async fn at(wall: Wall) -> Self {
        Self::build(wall).await.expect("a virtual rack starts")
    }

    async fn build(wall: Wall) -> Result<Self> {
        pki::install_crypto();
        log();
        let (subnet, directory) = (Subnet::claim()?, tempfile::tempdir()?);
        for (file, contents) in [("kernel", KERNEL), ("initramfs", INITRAMFS), ("loader", LOADER), ("toolbox", TOOLBOX)]
        {
            fs::write(directory.path().join(file), contents.repeat(1000))?;
        }
        let config = controller_config(&subnet, directory.path())?;
        let (token, ca) = operator::init(&config, controller::Seams { clock: Arc::new(wall.clone()) }).await?;
        let operator = Operator::new(config.url(), &ca, token)?;
        let mut rack = Self {
            operator,
            wall,
            subnet,
            segment: Segment::default(),
            management: Segment::default(),
            bmcs_from: None,
            chassis: PowerDriver::default(),
            machines: Vec::new(),
            controller: None,
            agent: None,
            boot: None,
            settings: Settings::default(),
            metrics: None,
            takes_events: false,
            directory,
        };
        rack.begin(Service::Controller).await?;
        let network = json!({
            "node": format!("{}/24", rack.subnet.node),
            "delegated": [rack.subnet.host(100), rack.subnet.host(199)],
        });
        rack.operator.post("/v1/racks", json!({ "name": "r1", "network": network })).await?;
        let code = rack.code().await?;
        rack.enrol(&code, &rack.path("agent")).await?;
        rack.begin(Service::Agent).await?;
        rack.begin(Service::Boot).await?;
        Ok(rack)
    }

    /// A fresh enrolment code for the rack.
    pub async fn code(&self) -> Result<String> {
        let made = self.operator.post("/v1/racks/r1/enrolment-codes", json!({})).await?;
        Ok(made["code"].as_str().context("no code")?.to_owned())
    }

    /// Enrols a node with its state in this directory.
    pub async fn enrol(&self, code: &str, state: &Path) -> Result<()> {
        agent::prepare(state)?;
        let (controller, api) = (format!("{}:{AGENTS}", self.subnet.node), format!("{}:{API}", self.subnet.node));
        uplink::enrol(state, &controller, Some(&api), code).await?;
        Ok(())
    }

    /// Starts a daemon that is not running.
    pub async fn start(&mut self, service: Service) {
        self.begin(service).await.expect("a daemon that was killed starts again");
    }

    /// Starts a daemon, also when its files are still locked: a program that another story
    /// starts in this moment inherits them until it is executed.
    async fn begin(&mut self, service: Service) -> Result<()> {
        let end = Instant::now() + PATIENCE / 4;
        loop {
            match self.try_begin(service).await {
                Err(error) if Instant::now() < end && is_locked(&error) => tokio::task::yield_now().await,
                began => return began,
            }
        }
    }

    async fn try_begin(&mut self, service: Service) -> Result<()> {
        let shutdown = CancellationToken::new();
        match service {
            Service::Controller => {
                let (config, token) = (controller_config(&self.subnet, self.directory.path())?, shutdown.clone());
                let seams = controller::Seams { clock: Arc::new(self.wall.clone()) };
                let start = async move {
                    let running = controller::start(config, seams, token).await?;
                    Ok((running.settings.clone(), Box::pin(running.ended()) as _))
                };
                let (process, settings) = Process::spawn("controller", shutdown, start).await?;
                (self.controller, self.settings.controller) = (Some(process), Some(settings));
            }
            Service::Agent => {
                let (process, (settings, metrics)) = self.spawn_agent(&self.path("agent"), "agent.sock").await?;
                (self.agent, self.settings.agent, self.metrics) = (Some(process), Some(settings), Some(metrics));
            }
            Service::Boot => {
                let (config, link, token) = (self.boot_config()?, self.segment.server(), shutdown.clone());
                let management = Some(self.management.server());
                let seams = boot::Seams { link: Some(link), management, clock: Arc::new(self.wall.clone()) };
                let start = async move {
                    let running = boot::start(&config, seams, token).await?;
                    Ok((running.settings.clone(), Box::pin(running.ended()) as _))
                };
                let (process, settings) = Process::spawn("boot", shutdown, start).await?;
                (self.boot, self.settings.boot) = (Some(process), Some(settings));
            }
        }
        Ok(())
    }

    /// An agent on the state in this directory, with a socket of this name.
    pub async fn agent(&self, state: &Path, socket: &str) -> Result<Process> {
        Ok(self.spawn_agent(state, socket).await?.0)
    }

    async fn spawn_agent(&self, state: &Path, socket: &str) -> Result<(Process, (agent::Settings, SocketAddr))> {
        let config = self.agent_config(state, socket)?;
        let (shutdown, driver) = (CancellationToken::new(), Arc::new(self.chassis.clone()));
        let token = shutdown.clone();
        let seams = agent::Seams { power: Some(driver), clock: Arc::new(self.wall.clone()) };
        let start = async move {
            let running = agent::start(&config, seams, token).await?;
            Ok(((running.settings.clone(), running.metrics), Box::pin(running.wait()) as _))
        };
        Process::spawn("agent", shutdown, start).await
    }

    /// What controller and agent, which run, answer at `/metrics`.
    pub async fn metrics(&self) -> Result<[(&'static str, String); 2]> {
        let agent = self.metrics.context("the agent was never started")?;
        let agent = reqwest::get(format!("http://{agent}/metrics")).await?.error_for_status()?.text().await?;
        Ok([("the controller's metrics", self.operator.metrics().await?), ("the agent's metrics", agent)])
    }

    /// Has an agent take the events of BMCs from now on; it is killed for that.
    pub async fn take_events(&mut self) {
        self.takes_events = true;
        self.restart(Service::Agent).await;
    }

    fn agent_config(&self, state: &Path, socket: &str) -> Result<agent::Config> {
        let text = format!(
            "state = {state:?}\nsocket = {:?}\nmetrics = \"{}:0\"\n[bmc]\nnetworks = [\"127.0.0.0/8\"]\n",
            self.path(socket),
            self.subnet.node
        );
        let events = format!("[health]\nevents = \"{}:{EVENTS}\"\n", self.subnet.node);
        let text = if self.takes_events { text + &events } else { text };
        agent::Config::try_from(toml::from_str::<agent::File>(&text)?).map_err(anyhow::Error::msg)
    }

    /// Has the running controller take over its first configuration changed like this; what it
    /// says of that.
    pub fn reload_controller(&self, change: impl FnOnce(&mut controller::Config)) -> Result<String> {
        let mut config = controller_config(&self.subnet, self.directory.path())?;
        change(&mut config);
        let settings = self.settings.controller.as_ref().context("it does not run")?;
        Ok(settings.take_over(&config)?.to_string())
    }

    /// The same of the agent.
    pub fn reload_agent(&self, change: impl FnOnce(&mut agent::Config)) -> Result<String> {
        let mut config = self.agent_config(&self.path("agent"), "agent.sock")?;
        change(&mut config);
        Ok(self.settings.agent.as_ref().context("it does not run")?.take_over(&config)?.to_string())
    }

    /// The same of boot.
    pub fn reload_boot(&self, change: impl FnOnce(&mut boot::Config)) -> Result<String> {
        let mut config = self.boot_config()?;
        change(&mut config);
        Ok(self.settings.boot.as_ref().context("it does not run")?.take_over(&config).to_string())
    }

    /// An operator of the same rights who connects afresh, to the controller under this name.
    pub fn newcomer(&self, name: &str) -> Result<Operator> {
        let ca = self.path("controller/pki/ca.pem");
        self.operator.under(name, (self.subnet.node, API).into(), &ca)
    }

    fn boot_config(&self) -> Result<boot::Config> {
        let text = format!(
            "state = {:?}\nsocket = {:?}\ninterface = \"lo\"\naddress = \"{}\"\nhttp = {HTTP}\nchannel = {CHANNEL}\n\
             tftp_port = {TFTP}\nmedia = {:?}\ntftp = {{ \"snponly.efi\" = {:?} }}\ninstaller = {{ kernel = {:?}, initramfs = {:?}, toolbox = {:?} }}\n",
            self.path("boot"),
            self.path("agent.sock"),
            self.subnet.node,
            self.path("loader"),
            self.path("loader"),
            self.path("kernel"),
            self.path("initramfs"),
            self.path("toolbox"),
        );
        let management = self.bmcs_from.map(|(first, last)| {
            format!(
                "[management]\ninterface = \"lo1\"\naddress = \"{}/24\"\nrange = [\"{}\", \"{}\"]\n",
                self.subnet.node,
                self.host(first),
                self.host(last)
            )
        });
        let text = text + management.as_deref().unwrap_or_default();
        boot::Config::try_from(toml::from_str::<boot::File>(&text)?).map_err(anyhow::Error::msg)
    }

    /// Has boot give BMCs addresses from now on, those with these last numbers; it is killed for that.
    pub async fn give_bmcs(&mut self, first: u8, last: u8) {
        self.bmcs_from = Some((first, last));
        self.restart(Service::Boot).await;
    }

    /// A card on the management network.
    pub fn management_card(&self, mac: Mac) -> Box<dyn Card> {
        self.management.card(mac)
    }

    /// Kills a daemon, as by SIGKILL.
    pub async fn kill(&mut self, service: Service) {
        // What is left of a process's settings holds its ports.
        let process = match service {
            Service::Controller => {
                self.settings.controller = None;
                self.controller.take()
            }
            Service::Agent => {
                self.settings.agent = None;
                self.agent.take()
            }
            Service::Boot => {
                self.settings.boot = None;
                self.boot.take()
            }
        };
        process.expect("only what runs is killed").kill().await;
    }

    /// Kills a daemon and starts it again.
    pub async fn restart(&mut self, service: Service) {
        self.kill(service).await;
        self.start(service).await;
    }

    /// Stops everything in order; what went wrong with that.
    pub async fn stop(mut self) -> Result<()> {
        for process in [self.boot.take(), self.agent.take(), self.controller.take()].into_iter().flatten() {
            process.stop().await?;
        }
        Ok(())
    }

    /// An address in the rack's network, which is this host's.
    pub fn host(&self, last: u8) -> Ipv4Addr {
        self.subnet.host(last)
    }

    /// A new machine with a blank disk, off.
    pub fn machine(&mut self, model: Model) -> Machine {
        let number = u8::try_from(self.machines.len() + 1).expect("a rack here has few machines");
        let [_, x, y, _] = self.subnet.node.octets();
        let mac = Mac([0x52, 0x54, 0, x, y, number]);
        let drive = self.drive(&format!("serial-{number}"), model.disk);
        let place = Place { cable: Arc::new(self.segment.clone()), tftp: TFTP, loader: LOADER.repeat(1000) };
        let machine = Machine::new(mac, model.firmware, place, vec![drive]);
        self.chassis.add(machine.clone());
        self.machines.push(machine.clone());
        machine
    }

    /// A disk in nobody's machine.
    pub fn drive(&self, serial: &str, size: u64) -> Drive {
        Drive::blank(self.directory.path(), serial, size).expect("a sparse file can be made")
    }

    /// Makes an image of this many chunks and has it imported; its raw bytes.
    pub async fn image(&self, name: &str, chunks: u64) -> Vec<u8> {
        let path = self.path(&format!("{name}.raw"));
        let raw = tokio::task::spawn_blocking(move || image::make(&path, chunks)).await;
        let raw = raw.expect("making an image does not panic").expect("an image can be made");
        self.operator.import(name, raw.clone()).await.expect("the image is imported");
        raw
    }

    /// Waits until a machine is as wanted; its row. A controller that is away is waited for.
    pub async fn wait_for(&self, machine: &Machine, wanted: &str, is: impl Fn(&Value) -> bool) -> Value {
        let wanted = format!("machine {} is {wanted}", machine.mac());
        wait::until(&wanted, PATIENCE, async || match self.operator.machine(machine.mac()).await {
            Ok(Some(row)) if is(&row) => Ok(row),
            Ok(Some(row)) => Err(self.report(machine, &row).await),
            Ok(None) => Err(format!("the controller does not know it; its screen:{}", machine.screen())),
            Err(error) => Err(format!("{error:#}; its screen:{}", machine.screen())),
        })
        .await
    }

    /// Waits for a lifecycle.
    pub async fn becomes(&self, machine: &Machine, lifecycle: &str) -> Value {
        self.wait_for(machine, lifecycle, |row| row["lifecycle"] == lifecycle).await
    }

    /// How it stands with a machine, for the message of a failure.
    async fn report(&self, machine: &Machine, row: &Value) -> String {
        let run = match &row["run"] {
            Value::String(run) => self.operator.get(&format!("/v1/runs/{run}")).await.unwrap_or_default(),
            _ => Value::Null,
        };
        let history = self.operator.history(machine.mac()).await.unwrap_or_default();
        let history: String = history.iter().rev().take(25).rev().map(|(_, text)| format!("\n    {text}")).collect();
        format!(
            "{}, power {}, alert {}, run {run:#}\nhistory:{history}\nits screen:{}\npower effects: {:?}",
            row["lifecycle"],
            row["power"],
            row["alert"],
            machine.screen(),
            machine.effects()
        )
    }

    /// A machine that was switched on, discovered and adopted; its row.
    pub async fn ready(&self, machine: &Machine) -> Value {
        machine.power_on();
        self.becomes(machine, "discovered").await;
        self.operator.act(machine.mac(), "adopt", json!({})).await.expect("a blank machine is adopted");
        self.wait_for(machine, "ready and waiting in the installer", waiting).await
    }

    /// A ready machine that runs this image.
    pub async fn active(&self, machine: &Machine, image: &str) -> Value {
        self.ready(machine).await;
        self.operator.deploy(machine.mac(), image).await.expect("a ready machine is deployed");
        self.becomes(machine, "active").await
    }

    /// The controller's copies of an image's chunks.
    pub fn objects(&self) -> Vec<PathBuf> {
        files(&self.path("controller/objects/chunks"))
    }

    /// Boot's copies of chunks, those that are whole.
    pub fn cached(&self) -> Vec<PathBuf> {
        let cached = files(&self.path("boot/chunks"));
        let is_chunk = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<Digest>().ok());
            fs::read(path).is_ok_and(|bytes| name == Some(Digest::of(&bytes)))
        };
        cached.into_iter().filter(is_chunk).collect()
    }

    /// A file or directory of this rack's.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

impl Drop for VirtualRack {
    fn drop(&mut self) {
        for machine in &self.machines {
            machine.power_off();
        }
    }
}

fn is_locked(error: &anyhow::Error) -> bool {
    let text = format!("{error:#}");
    text.contains("another controller runs") || text.contains("already open")
}

/// Whether a machine waits in the installer, nobody's and ready.
fn waiting(machine: &Value) -> bool {
    machine["lifecycle"] == "ready" && machine["installer"] == true
}

fn controller_config(subnet: &Subnet, directory: &Path) -> Result<controller::Config> {
    let text = format!(
        "data = {:?}\nnames = [\"{node}\"]\n[api]\nlisten = \"{node}:{API}\"\n[agents]\nlisten = \"{node}:{AGENTS}\"\n\
         [ssh]\nlisten = \"{node}:{SSH}\"\n",
        directory.join("controller"),
        node = subnet.node,
    );
    controller::Config::try_from(toml::from_str::<controller::File>(&text)?).map_err(anyhow::Error::msg)
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut found: Vec<_> = entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect();
    found.sort();
    found
}

/// The daemons' logs, for whoever sets RUST_LOG.
fn log() {
    if std::env::var_os("RUST_LOG").is_some() {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
    }
}

const KERNEL: &[u8] = b"kernel";
const INITRAMFS: &[u8] = b"initramfs";
const TOOLBOX: &[u8] = b"toolbox";
const LOADER: &[u8] = b"iPXE";
