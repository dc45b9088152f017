//! A machine of the matrix: firmware, iPXE, the real installer and the system it installs, as
//! simulated elsewhere in one process, here as a process of its own with a real network card.
//! Killing that process is pulling the plug; whatever it was doing to its disk ends there.
//!
//! All that outlives the power is in a directory: the label, the disk, the firmware's variables,
//! whether the next start is from the network, and what was done to its power.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::Write as _,
    net::Ipv4Addr,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, bail};
use rackhand_common::machine::{Firmware, Mac};
use rackhand_tests::{
    dhcp::{self, Program},
    disk::Drive,
    machine::{Machine, Place as Surroundings},
    segment::{Cable, Card},
};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::{
    attacker::wire,
    network::{Cabling, Place},
    run::{is_ending, run},
};

/// Its network card.
const CARD: &str = "eth0";

/// How often its tender looks at it.
const LOOK: Duration = Duration::from_millis(20);

/// From a crash to the next start.
const RESET: Duration = Duration::from_millis(100);

/// What is on a computer's label.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Label {
    pub(crate) serial: String,
    pub(crate) mac: Mac,
    pub(crate) firmware: Firmware,
    uuid: Uuid,
    /// Which cable is in its card.
    slot: u8,
}

/// A computer, seen from outside.
#[derive(Clone, Debug)]
pub(crate) struct Computer {
    pub(crate) label: Label,
    directory: PathBuf,
}

impl Computer {
    /// Makes one with a blank disk of so many bytes, switched off.
    pub(crate) fn make(parent: &Path, slot: u8, firmware: Firmware, disk: u64) -> anyhow::Result<Self> {
        let serial = format!("MX{slot:04}");
        let directory = parent.join(&serial);
        fs::create_dir_all(directory.join("fail-points"))?;
        let mac = Mac([0x52, 0x54, 0x00, 0x78, 0x00, slot + 1]);
        let label = Label { serial, mac, firmware, uuid: Uuid::new_v4(), slot };
        fs::write(directory.join("label.json"), serde_json::to_vec_pretty(&label)?)?;
        fs::write(directory.join("variables.json"), "{}")?;
        fs::write(directory.join("power"), "off")?;
        fs::write(directory.join("is"), "off")?;
        File::create(directory.join("effects"))?;
        File::create(directory.join("disk"))?.set_len(disk)?;
        Ok(Self { label, directory })
    }

    fn at(directory: PathBuf) -> anyhow::Result<Self> {
        let label = serde_json::from_slice(&fs::read(directory.join("label.json"))?)?;
        Ok(Self { label, directory })
    }

    fn find(parent: &Path, mac: Mac) -> anyhow::Result<Self> {
        for entry in fs::read_dir(parent)? {
            let found = Self::at(entry?.path())?;
            if found.label.mac == mac {
                return Ok(found);
            }
        }
        bail!("no computer has network card {mac}")
    }

    /// The serial number of its mainboard.
    pub(crate) fn serial(&self) -> String {
        format!("SN-{}", self.label.mac)
    }

    /// The UUID of its mainboard.
    pub(crate) fn uuid(&self) -> Uuid {
        self.label.uuid
    }

    /// Its disk.
    pub(crate) fn disk(&self) -> PathBuf {
        self.directory.join("disk")
    }

    /// Where its fail points are armed.
    pub(crate) fn fail_points(&self) -> PathBuf {
        self.directory.join("fail-points")
    }

    /// What is on its screen, of all its starts.
    pub(crate) fn screen(&self) -> PathBuf {
        self.directory.join("screen.log")
    }

    /// Whether it is on.
    pub(crate) fn is_on(&self) -> anyhow::Result<bool> {
        Ok(fs::read_to_string(self.directory.join("is"))? == "on")
    }

    /// Presses the power button of one that is off.
    pub(crate) fn power_on(&self) -> anyhow::Result<()> {
        Ok(fs::write(self.directory.join("power"), "on")?)
    }

    /// What was done to its power by the driver, in order.
    pub(crate) fn effects(&self) -> anyhow::Result<Vec<String>> {
        Ok(fs::read_to_string(self.directory.join("effects"))?.lines().map(str::to_owned).collect())
    }

    /// How often it was started.
    pub(crate) fn starts(&self) -> usize {
        fs::read_to_string(self.directory.join("starts")).unwrap_or_default().lines().count()
    }

    fn note(&self, file: &str, line: &str) -> anyhow::Result<()> {
        let mut file = OpenOptions::new().create(true).append(true).open(self.directory.join(file))?;
        Ok(file.write_all(format!("{line}\n").as_bytes())?)
    }
}

/// The power driver's verbs, which the agent runs as a command.
pub(crate) fn power(parent: &Path, mac: Mac, verb: &str) -> anyhow::Result<String> {
    let computer = Computer::find(parent, mac)?;
    let is = fs::read_to_string(computer.directory.join("is"))?;
    match verb {
        "status" => return Ok(is),
        "on" | "off" if is == verb => {}
        "on" | "off" => {
            computer.note("effects", verb)?;
            fs::write(computer.directory.join("power"), verb)?;
        }
        "network-boot-once" => {
            computer.note("effects", verb)?;
            File::create(computer.directory.join("network-once"))?;
        }
        other => bail!("unknown power verb {other:?}"),
    }
    Ok(String::new())
}

/// The computer's power supply and reset: runs it while its power is on, starts it anew when it
/// crashes. Cuts the power when dropped.
#[derive(Debug)]
pub(crate) struct Tender {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Tender {
    /// Looks after a computer plugged into this cabling.
    pub(crate) fn spawn(computer: Computer, cabling: Cabling) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let until = over.clone();
        let thread = std::thread::spawn(move || {
            let mut running: Option<Child> = None;
            while !until.load(Ordering::Relaxed) && !is_ending() {
                if let Err(error) = tend(&computer, &cabling, &mut running) {
                    // It is what the matrix waits for in vain: its report names the screen.
                    let _ = computer.note("screen.log", &format!("its tender: {error:#}"));
                }
                std::thread::sleep(LOOK);
            }
            unplug(&mut running);
        });
        Self { over, thread: Some(thread) }
    }
}

impl Drop for Tender {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // One that panicked said so on standard error.
            let _ = thread.join();
        }
    }
}

fn tend(computer: &Computer, cabling: &Cabling, running: &mut Option<Child>) -> anyhow::Result<()> {
    let wanted = fs::read_to_string(computer.directory.join("power"))?;
    if let Some(child) = running
        && let Some(status) = child.try_wait()?
    {
        computer.note("screen.log", &format!("-- it ended ({status}) and starts anew"))?;
        *running = None;
        std::thread::sleep(RESET);
    }
    match (wanted.as_str(), running.is_some()) {
        ("on", false) => {
            computer.note("starts", "")?;
            let screen = OpenOptions::new().create(true).append(true).open(computer.screen())?;
            let program = std::env::current_exe()?;
            let mut command = cabling.command(Place::Computer(computer.label.slot), &program.to_string_lossy());
            *running = Some(
                command
                    .args(["computer", "--directory"])
                    .arg(&computer.directory)
                    .env(rackhand_fail_points::DIRECTORY, computer.fail_points())
                    .stdin(Stdio::null())
                    .stdout(screen.try_clone()?)
                    .stderr(screen)
                    .process_group(0)
                    .spawn()?,
            );
        }
        ("off", true) => unplug(running),
        _ => {}
    }
    let is = if running.is_some() { "on" } else { "off" };
    if fs::read_to_string(computer.directory.join("is"))? != is {
        let fresh = computer.directory.join("is.new");
        fs::write(&fresh, is)?;
        fs::rename(fresh, computer.directory.join("is"))?;
    }
    Ok(())
}

fn unplug(running: &mut Option<Child>) {
    if let Some(mut child) = running.take() {
        // It may have crashed this moment.
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Where the running computer keeps its firmware's variables.
static VARIABLES: OnceLock<PathBuf> = OnceLock::new();

/// Is the computer in this directory, from power-on to the end of the process.
pub(crate) fn be(directory: &Path) -> anyhow::Result<()> {
    rackhand_common::pki::install_crypto();
    tracing_subscriber::fmt()
        .with_env_filter("rackhand_tests=debug,rackhand_installer=info,warn")
        .with_ansi(false)
        .init();
    let computer = Computer::at(directory.to_owned())?;
    let Label { serial, mac, firmware, uuid, .. } = computer.label.clone();
    let loader = fs::read("/usr/lib/ipxe/snponly.efi").context("is Debian's package ipxe installed?")?;
    let place = Surroundings { cable: Arc::new(Plugged), tftp: 69, loader };
    let drive = Drive::found(&computer.disk(), &serial)?;
    let machine = Machine::found(mac, uuid, firmware, place, vec![drive]);
    let variables = directory.join("variables.json");
    let kept: BTreeMap<String, Vec<u8>> = serde_json::from_slice(&fs::read(&variables)?)?;
    VARIABLES.get_or_init(|| variables);
    machine.keep_variables(kept, |changed| {
        let file = VARIABLES.get().expect("it was set at the start");
        let fresh = file.with_extension("new");
        let bytes = serde_json::to_vec(changed).expect("variables always serialize");
        fs::write(&fresh, bytes).and_then(|()| fs::rename(&fresh, file)).expect("the firmware keeps its variables");
    });
    if fs::remove_file(directory.join("network-once")).is_ok() {
        machine.network_once();
    }
    machine.power_on();
    loop {
        std::thread::park();
    }
}

/// Asks for a lease with this card, as a machine's firmware; prints the address.
pub(crate) fn lease(mac: Mac) -> anyhow::Result<Ipv4Addr> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut card = Plugged.card(mac);
        Ok(dhcp::obtain(&mut *card, mac, Program::Ipxe(Firmware::Bios, Uuid::from_u128(1))).await.address)
    })
}

/// The cable in the card of this namespace.
#[derive(Debug)]
struct Plugged;

impl Cable for Plugged {
    fn card(&self, mac: Mac) -> Box<dyn Card> {
        let card = wire::Card::open(CARD).expect("a computer has a network card");
        let listening = wire::Card::open(CARD).expect("a computer has a network card");
        let (frames, received) = mpsc::channel(64);
        std::thread::spawn(move || {
            while !frames.is_closed() {
                if let Ok(Some(frame)) = listening.receive() {
                    // A queue that is full loses a frame, as a card does.
                    let _ = frames.try_send(frame);
                }
            }
        });
        Box::new(RawCard { mac, card, received })
    }
}

struct RawCard {
    mac: Mac,
    card: wire::Card,
    received: mpsc::Receiver<Vec<u8>>,
}

impl Card for RawCard {
    fn send(&self, message: Vec<u8>) {
        let (nobody, all) = (Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST);
        let ends = wire::Ends { source: self.mac, destination: wire::EVERYONE, from: (nobody, 68), to: (all, 67) };
        self.card.send(&wire::udp(ends, &message));
    }

    fn receive(&mut self, _: Option<Ipv4Addr>) -> futures_util::future::BoxFuture<'_, Vec<u8>> {
        Box::pin(async {
            loop {
                let Some(frame) = self.received.recv().await else { std::future::pending().await };
                let ours = frame.starts_with(&self.mac.0) || frame.starts_with(&wire::EVERYONE.0);
                if let Some(message) = wire::payload(&frame, 68).filter(|_| ours) {
                    return message.to_vec();
                }
            }
        })
    }

    fn take(&self, address: Ipv4Addr) {
        let has = format!("{address}/24");
        let taken =
            run("ip", &["addr", "flush", "dev", CARD]).and_then(|_| run("ip", &["addr", "add", &has, "dev", CARD]));
        taken.expect("a card takes an address");
    }
}
