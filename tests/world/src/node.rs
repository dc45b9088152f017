//! A rack's node: what survives on its disks, and its two processes while they run.

use std::{
    collections::{BTreeMap, VecDeque},
    fs, io,
    net::{Ipv4Addr, SocketAddrV4},
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context as _, Result};
use futures_util::future::BoxFuture;
use rackhand_agent::{
    boot::{self, Services, dhcp},
    health::Metrics,
    intent,
    ledger::Ledger,
    power::{Executor, Hands},
    spool::Spool,
    timeline::Timelines,
};
use rackhand_common::{
    id::{AgentId, Incarnation, MachineId, RackId},
    intent::{Boot as Target, Intent},
    machine::Mac,
    time::{Clock, Mono},
    wire::Command,
};
use redb::TableDefinition;

use crate::{
    disk::Disk,
    fault::Part,
    hub::{Bmcs, Driver},
    plant::Plant,
    rng::Rng,
    time::{ProcessClock, Skew, Time},
    version::{self, Version},
};

/// The fewest events a spool may keep: so that a month fills it.
const EVENTS: u64 = 512;

/// The most events an agent sends at once.
pub const BATCH: usize = 256;

/// A node.
pub struct Node {
    /// Its rack.
    pub rack: RackId,
    /// Its registration.
    pub id: AgentId,
    /// The address on its provisioning network.
    pub address: Ipv4Addr,
    /// Directories of files, on a file system that does not fail.
    pub dir: PathBuf,
    /// How wrong its wall clock is.
    pub skew: Skew,
    /// Under ledger, spool and timelines.
    pub agent_disk: Disk,
    /// Under leases, tickets and installers.
    pub boot_disk: Disk,
    /// Under boot's spool.
    pub events_disk: Disk,
    /// The agent's process.
    pub agent: Option<Agent>,
    /// Boot's process.
    pub boot: Option<Boot>,
    /// Since when boot answers without a break, its disk being sound. Being replaced by another
    /// version is no break.
    pub boot_since: Duration,
    /// Whether boot is down for another version's sake alone.
    pub boot_replaced: bool,
    /// What every machine was given in the latest intent that boot took over.
    pub known: BTreeMap<Mac, (Ipv4Addr, Target)>,
    /// The versions of agent and boot.
    pub versions: [Version; 2],
    /// The machines' power control.
    pub bmcs: Bmcs,
    /// Notes made, for each part.
    pub notes: [u64; 2],
}

/// The agent's process.
pub struct Agent {
    /// Its clock.
    pub clock: Arc<ProcessClock>,
    /// This start.
    pub incarnation: Incarnation,
    /// Its spool.
    pub spool: Spool,
    /// Its ledger.
    pub ledger: Ledger,
    /// What the controller wants.
    pub intent: intent::Store,
    /// Performs commands.
    pub executor: Arc<Executor>,
    /// Commands under way and behind them, by machine.
    pub lanes: BTreeMap<MachineId, VecDeque<Lane>>,
    /// Whether events were sent and not yet answered.
    pub sending: bool,
    /// The most events that are sent at once.
    pub most: usize,
}

/// A command's performance.
pub struct Lane {
    /// The command.
    pub command: Command,
    /// When it was received, by the process's clock.
    pub received: Mono,
    /// Tells performances apart.
    pub number: u64,
    /// Once begun: when, by the world's time.
    pub begun: Option<Duration>,
    /// The performance.
    pub work: BoxFuture<'static, ()>,
}

/// Boot's process.
pub struct Boot {
    /// Its clock.
    pub clock: Arc<ProcessClock>,
    /// What it answers with.
    pub services: Services,
    /// Where DHCP is answered.
    pub desk: dhcp::Desk,
    /// The revision the desk follows.
    pub followed: u64,
}

/// A cable whose answers are kept.
#[derive(Debug, Default)]
pub struct Cable(Mutex<Vec<Vec<u8>>>);

impl Cable {
    /// The answers.
    pub fn answers(self) -> Vec<Vec<u8>> {
        self.0.into_inner().unwrap_or_default()
    }
}

impl dhcp::Link for Cable {
    fn receive(&self) -> BoxFuture<'_, io::Result<Vec<Vec<u8>>>> {
        Box::pin(std::future::pending())
    }

    fn send<'a>(&'a self, _: dhcp::Destination, message: &'a [u8]) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async {
            self.0.lock().map_err(|_| io::ErrorKind::Other)?.push(message.to_vec());
            Ok(())
        })
    }
}

impl Node {
    /// A node that was enrolled and is off.
    pub fn new(time: &Time, rack: RackId, id: AgentId, address: Ipv4Addr, dir: PathBuf, rng: &mut Rng) -> Result<Self> {
        fs::create_dir_all(dir.join("agent"))?;
        fs::create_dir_all(dir.join("boot"))?;
        let mut disk = || Disk::new(Rng::new(rng.draw(), 0));
        Ok(Self {
            rack,
            id,
            address,
            dir,
            skew: Skew::default(),
            agent_disk: disk(),
            boot_disk: disk(),
            events_disk: disk(),
            agent: None,
            boot: None,
            boot_since: Duration::ZERO,
            boot_replaced: false,
            known: BTreeMap::new(),
            versions: [Version::This; 2],
            bmcs: Bmcs::new(time),
            notes: [0; 2],
        })
    }

    /// Starts the agent's process.
    pub async fn start_agent(&mut self, time: &Time, plant: Option<Plant>) -> Result<()> {
        let clock = ProcessClock::start(time, &self.skew);
        let dir = self.dir.join("agent");
        let database = self.agent_disk.open().context("agent's store")?;
        if plant == Some(Plant::LedgerForgets) {
            let tx = database.begin_write()?;
            tx.delete_table(TableDefinition::<u128, &[u8]>::new("ledger_commands"))?;
            tx.commit()?;
        }
        let file = dir.join("intent.json");
        if plant == Some(Plant::IntentGoesBack)
            && let Ok(text) = fs::read(&file)
        {
            let mut old: rackhand_common::intent::Intent = serde_json::from_slice(&text)?;
            old.revision = old.revision.saturating_sub(1);
            fs::write(&file, serde_json::to_vec(&old)?)?;
        }
        let timelines = Timelines::open(&database)?;
        let spool = Spool::simulated(database.clone(), EVENTS, Some(timelines))?;
        let ledger = Ledger::open(database, spool.clone(), clock.now().wall).await?;
        let intent = intent::Store::open_for(&dir, self.rack)?;
        let executor = Arc::new(Executor {
            driver: Arc::new(Driver::new(&self.bmcs)),
            ledger: ledger.clone(),
            spool: spool.clone(),
            intent: intent.clone(),
            // Nobody is waited for: the world hands boot the intent in its own time.
            boot_has: tokio::sync::watch::channel(u64::MAX).1,
            clock: clock.clone(),
            timer: Arc::new(time.clone()),
            metrics: Arc::new(Metrics::default()),
            hands: Hands::default(),
        });
        let incarnation = Incarnation::fresh();
        let (lanes, most) = (BTreeMap::new(), BATCH);
        self.agent = Some(Agent { clock, incarnation, spool, ledger, intent, executor, lanes, sending: false, most });
        Ok(())
    }

    /// Starts boot's process.
    pub fn start_boot(&mut self, time: &Time, plant: Option<Plant>) -> Result<()> {
        let clock = ProcessClock::start(time, &self.skew);
        let state = self.dir.join("boot");
        if self.versions[Part::Boot as usize] == Version::Next {
            match plant {
                Some(Plant::NextBootRefusesStores) => anyhow::bail!("these stores are of an earlier version"),
                Some(Plant::NextBootForgetsIntent) => drop(fs::remove_file(state.join("intent.json"))),
                _ => {}
            }
        }
        if plant == Some(Plant::BootLosesLeases) {
            let database = self.boot_disk.open().context("boot's store")?;
            let tx = database.begin_write()?;
            tx.delete_table(TableDefinition::<&[u8; 6], (u128, u32)>::new("leases"))?;
            tx.commit()?;
        }
        let disk = boot::Disk {
            database: self.boot_disk.open().context("boot's store")?,
            spool: Spool::simulated(self.events_disk.open().context("boot's spool")?, EVENTS, None)?,
        };
        let http = SocketAddrV4::new(self.address, 8080);
        let config = boot::Config {
            socket: state.join("nobody.sock"),
            media: state.join("boot.iso"),
            state,
            interface: "eth0".into(),
            address: self.address,
            http: 8080,
            channel: 8444,
            tftp_port: 69,
            tftp: Default::default(),
            lease: dhcp::LEASE_LASTS,
            cache: 1 << 20,
            installer: Default::default(),
            management: None,
            log: Default::default(),
        };
        let channel = SocketAddrV4::new(self.address, 8444);
        let services = Services::open(&config, disk, clock.clone(), http, channel)?;
        let settings = dhcp::Settings { node: self.address, http: Some(http), lease: config.lease };
        let desk = dhcp::Desk::open(clock.clone(), services.leases.clone(), settings, services.spool.clone());
        self.boot = Some(Boot { clock, services, desk, followed: 0 });
        Ok(())
    }

    /// Boot has taken over this intent.
    pub fn learns(&mut self, intent: &Intent) {
        let machines = intent.machines.iter();
        let cards = machines.flat_map(|known| known.macs.iter().map(|mac| (*mac, (known.address, known.boot))));
        self.known = cards.collect();
    }

    /// This process, which does not run, is of another version from now on; its stores are as the
    /// one before left them.
    pub fn replaced(&mut self, part: Part, version: Version) -> Result<()> {
        let before = std::mem::replace(&mut self.versions[part as usize], version);
        if before <= version {
            return Ok(());
        }
        version::raise_file(&self.dir.join(part.to_string()).join("intent.json"))?;
        let disks = match part {
            Part::Agent => vec![&self.agent_disk],
            Part::Boot => vec![&self.boot_disk, &self.events_disk],
        };
        for disk in disks {
            version::raise(&*disk.open()?)?;
        }
        Ok(())
    }

    /// Whether the power went in the middle of a write of this process.
    pub fn is_cut(&self, part: Part) -> bool {
        match part {
            Part::Agent => self.agent_disk.is_cut(),
            Part::Boot => self.boot_disk.is_cut() || self.events_disk.is_cut(),
        }
    }

    /// Does the same to every disk of this process.
    pub fn each_disk(&self, part: Part, act: impl Fn(&Disk)) {
        match part {
            Part::Agent => act(&self.agent_disk),
            Part::Boot => {
                act(&self.boot_disk);
                act(&self.events_disk);
            }
        }
    }

    /// Whether files of this process cannot be written: a directory stands where the new file
    /// would be made.
    pub fn set_files_full(&self, part: Part, full: bool) -> io::Result<()> {
        let stone = self.dir.join(part.to_string()).join("intent.new");
        if full {
            let _ = fs::remove_file(&stone);
            fs::create_dir_all(&stone)
        } else if stone.is_dir() {
            fs::remove_dir(&stone)
        } else {
            Ok(())
        }
    }
}

impl Agent {
    /// Puts an accepted command behind those of its machine.
    pub fn enqueue(&mut self, number: u64, command: Command, received: Mono) {
        let (executor, performed) = (self.executor.clone(), command.clone());
        let work: Pin<Box<dyn Future<Output = ()> + Send>> =
            Box::pin(async move { executor.perform(performed, received).await });
        let lane = Lane { command: command.clone(), received, number, begun: None, work };
        self.lanes.entry(command.machine).or_default().push_back(lane);
    }
}
