//! A simulated machine: chassis power, firmware that starts the disk or the network, iPXE, the
//! real installer, and the system it installed.

use std::{
    collections::BTreeMap,
    io,
    net::{Ipv4Addr, SocketAddrV4},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use rackhand_agent::power::{Answer, Power, PowerError, Target};
use rackhand_common::{
    commission::{Exit, Kind, Ran, Script},
    hardware,
    machine::{self, Cpu, Firmware, Inventory, Mac, Nic, Power as State},
};
use rackhand_installer::{
    bmc::{self, NoAnswer},
    boot_entries, boot_order, cmdline, disk,
    gpt::Table,
    log::Log,
    machine::{BootOrderError, Machine as Hardware},
    rescue::Ssh,
    session,
    toolbox::{Given, Toolbox, ToolboxError, Tools},
    tpm::Tpm,
};
use rackhand_ipmi::packet::Request;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    dhcp::{self, Program},
    disk::{Drive, Supply},
    ipxe::{End, Ipxe},
    segment::Cable,
    system::{self, System},
    tftp,
    toy::ToyDrive,
    tpm::SimulatedTpm,
    wait,
};

/// What distinguishes one machine from another.
#[derive(Clone, Copy, Debug)]
pub struct Model {
    /// BIOS with iPXE for a boot ROM, or UEFI, whose own PXE client loads iPXE by TFTP.
    pub firmware: Firmware,
    /// Bytes of its disk.
    pub disk: u64,
}

impl Default for Model {
    fn default() -> Self {
        Self { firmware: Firmware::Bios, disk: 32 << 20 }
    }
}

/// The machine's surroundings.
#[derive(Clone, Debug)]
pub struct Place {
    /// The cable in its card.
    pub cable: Arc<dyn Cable>,
    /// The port that stands for TFTP's 69.
    pub tftp: u16,
    /// What the loader that firmware fetches must be.
    pub loader: Vec<u8>,
}

/// What was done to a machine's power from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It went on.
    On,
    /// It went off.
    Off,
    /// Its next start was bound to the network.
    NetworkOnce,
    /// All its starts were.
    NetworkAlways,
    /// Its next start was bound to UEFI HTTP boot.
    HttpOnce,
    /// Its next start was bound to a medium in a virtual drive.
    MediaOnce,
}

/// A machine; clones are the same.
#[derive(Clone, Debug)]
pub struct Machine(Arc<Chassis>);

#[derive(Debug)]
struct Chassis {
    mac: Mac,
    firmware: Firmware,
    place: Place,
    supply: Supply,
    state: Mutex<Inside>,
}

#[derive(Debug, Default)]
struct Inside {
    /// What its mainboard says of itself.
    uuid: Uuid,
    serial: String,
    drives: Vec<Drive>,
    /// What is in its slots.
    hardware: hardware::Hardware,
    tpm: Option<SimulatedTpm>,
    /// What its first disk has for firmware, where it is one that can be updated.
    toy: Option<ToyDrive>,
    /// The BMC that answers it in-band.
    bmc: Option<Arc<rackhand_bmc_sim::Bmc>>,
    /// After so many answers of it the plug is pulled.
    resets_in_band: Option<u32>,
    running: Option<Running>,
    /// What its next start goes by instead of its disk, and whether those after it do too.
    start: Option<(Start, bool)>,
    /// UEFI's boot variables.
    variables: boot_order::Variables,
    variables_changed: Option<fn(&boot_order::Variables)>,
    system: Option<System>,
    /// The kernel command line of the latest installer.
    line: Option<String>,
    /// What its installers are told instead of their own command line.
    forged: Option<cmdline::Parameters>,
    effects: Vec<Effect>,
    screen: Vec<String>,
    starts: u32,
    /// What its installers keep files in.
    memory: Option<tempfile::TempDir>,
    /// Tests that fail, and what each finds.
    fails: BTreeMap<String, String>,
    /// The test that does not end the next time it is run.
    hangs_in: Option<String>,
    /// Tests that were run, in order.
    tested: Vec<String>,
    rescue: Option<Rescue>,
}

/// What a start goes by that is not the disk's.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Start {
    Network,
    /// UEFI HTTP boot of what is at this address.
    Http(String),
    /// The medium of this address in a virtual drive.
    Media(String),
}

/// A machine that is on: a thread of its own.
#[derive(Debug)]
struct Running {
    off: CancellationToken,
    thread: std::thread::JoinHandle<()>,
}

/// Between tries of firmware that found nothing to start.
const RETRY: Duration = Duration::from_millis(200);

impl Machine {
    /// A machine that is off, with these disks.
    pub fn new(mac: Mac, firmware: Firmware, place: Place, drives: Vec<Drive>) -> Self {
        Self::found(mac, Uuid::new_v4(), firmware, place, drives)
    }

    /// The same with a mainboard of this UUID.
    pub fn found(mac: Mac, uuid: Uuid, firmware: Firmware, place: Place, drives: Vec<Drive>) -> Self {
        let inside = Inside { uuid, serial: format!("SN-{mac}"), drives, ..Inside::default() };
        Self(Arc::new(Chassis { mac, firmware, place, supply: Supply::default(), state: Mutex::new(inside) }))
    }

    /// Its card's address.
    pub fn mac(&self) -> Mac {
        self.0.mac
    }

    /// Has this in its slots from now on.
    pub fn fit(&self, hardware: hardware::Hardware) {
        self.lock().hardware = hardware;
    }

    /// Has a toy for its first disk's firmware from now on.
    pub fn fit_toy(&self, toy: &ToyDrive) {
        self.lock().toy = Some(toy.clone());
    }

    /// Has this BMC answer it in-band from now on.
    pub fn wire(&self, bmc: Arc<rackhand_bmc_sim::Bmc>) {
        self.lock().bmc = Some(bmc);
    }

    /// Has its plug pulled, and put in again, after so many further answers of its BMC in-band.
    pub fn reset_in_band_after(&self, answers: u32) {
        self.lock().resets_in_band = Some(answers);
    }

    /// Whether its plug is still to be pulled for that.
    pub fn resets_in_band(&self) -> bool {
        self.lock().resets_in_band.is_some()
    }

    /// Has a TPM from now on.
    pub fn fit_tpm(&self) -> SimulatedTpm {
        self.lock().tpm.get_or_insert_default().clone()
    }

    /// UEFI's boot variables.
    pub fn variables(&self) -> boot_order::Variables {
        self.lock().variables.clone()
    }

    /// Has these boot variables, and says so when the installer has changed them: they outlive
    /// the power.
    pub fn keep_variables(&self, variables: boot_order::Variables, changed: fn(&boot_order::Variables)) {
        let mut inside = self.lock();
        inside.variables = variables;
        inside.variables_changed = Some(changed);
    }

    /// Changes its boot variables.
    pub fn change_variables(&self, changes: Vec<boot_order::Change>) {
        let mut inside = self.lock();
        for change in changes {
            match change {
                boot_order::Change::Write(name, contents) => drop(inside.variables.insert(name, contents)),
                boot_order::Change::Remove(name) => drop(inside.variables.remove(&name)),
            }
        }
        if let Some(changed) = inside.variables_changed {
            changed(&inside.variables);
        }
    }

    /// Its next start is from the network.
    pub fn network_once(&self) {
        self.lock().start = Some((Start::Network, false));
    }

    /// Whether anything but its own order says what its next start goes by.
    pub fn is_overridden(&self) -> bool {
        self.lock().start.is_some()
    }

    /// Its first disk.
    pub fn drive(&self) -> Drive {
        self.lock().drives[0].clone()
    }

    /// Takes out the first disk and puts in another.
    pub fn swap_drive(&self, other: Drive) -> Drive {
        std::mem::replace(&mut self.lock().drives[0], other)
    }

    /// Puts another mainboard under its card and disks.
    pub fn swap_mainboard(&self, serial: &str) {
        let mut inside = self.lock();
        (inside.uuid, inside.serial) = (Uuid::new_v4(), serial.to_owned());
    }

    /// Serial number and UUID of its mainboard.
    pub fn mainboard(&self) -> (String, Uuid) {
        let inside = self.lock();
        (inside.serial.clone(), inside.uuid)
    }

    /// The system that runs on it.
    pub fn system(&self) -> Option<System> {
        self.lock().system.clone()
    }

    /// Whom its rescue system lets in.
    pub fn rescue(&self) -> Option<Rescue> {
        self.lock().rescue.clone()
    }

    /// The kernel command line of its latest installer.
    pub fn installer_line(&self) -> Option<String> {
        self.lock().line.clone()
    }

    /// Has this test find something from now on, or nothing any more.
    pub fn fail_test(&self, test: &str, finding: Option<&str>) {
        let mut inside = self.lock();
        inside.fails.remove(test);
        inside.fails.extend(finding.map(|finding| (test.to_owned(), finding.to_owned())));
    }

    /// Has this test not end the next time it is run, as on a machine that hangs.
    pub fn hang_in_test(&self, test: &str) {
        self.lock().hangs_in = Some(test.to_owned());
    }

    /// The tests that were run on it, in order.
    pub fn tested(&self) -> Vec<String> {
        self.lock().tested.clone()
    }

    /// What was done to its power by a driver, in order.
    pub fn effects(&self) -> Vec<Effect> {
        self.lock().effects.clone()
    }

    /// How often it was started, by power or by itself.
    pub fn starts(&self) -> u32 {
        self.lock().starts
    }

    /// What is on its screen, for the message of a failure.
    pub fn screen(&self) -> String {
        let inside = self.lock();
        let lines = inside.screen.iter().rev().take(12).rev();
        lines.map(|line| format!("\n    {line}")).collect()
    }

    /// Brings its power to this state, from outside.
    fn switch(&self, wanted: State) {
        if self.power() != wanted {
            let effect = if wanted == State::On { Effect::On } else { Effect::Off };
            self.lock().effects.push(effect);
            if wanted == State::On { self.power_on() } else { self.power_off() }
        }
    }

    /// Presses the power button; nothing when it is on.
    pub fn power_on(&self) {
        let mut inside = self.lock();
        if inside.running.is_some() {
            return;
        }
        let (machine, supply, off) = (self.clone(), self.0.supply.now(), CancellationToken::new());
        let until = off.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.expect("a machine gets a runtime");
            runtime.block_on(until.run_until_cancelled(machine.run(supply)));
            // Threads that write to its disks find that there is no power.
            runtime.shutdown_background();
        });
        inside.running = Some(Running { off, thread });
    }

    /// Goes on with an installer that was told this, and not what boot has for this machine.
    pub fn power_on_forged(&self, parameters: cmdline::Parameters) {
        self.lock().forged = Some(parameters);
        self.power_on();
    }

    /// Pulls the plug: whatever it is doing ends here, a write to its disk included.
    pub fn power_off(&self) {
        let running = self.lock().running.take();
        if let Some(Running { off, thread }) = running {
            self.0.supply.cut();
            off.cancel();
            // A thread that panicked has said why.
            let _ = thread.join();
            self.lock().system = None;
        }
    }

    /// Presses the reset button. The next start is from the network if `network` says so, as
    /// a technician would choose in the firmware's menu.
    pub fn reset(&self, network: bool) {
        self.power_off();
        if network {
            self.network_once();
        }
        self.power_on();
    }

    /// Whether it is on.
    pub fn power(&self) -> State {
        if self.lock().running.is_some() { State::On } else { State::Off }
    }

    /// Returns the system when one runs on it.
    pub async fn system_up(&self, patience: Duration) -> System {
        let wanted = format!("a system runs on {}", self.0.mac);
        wait::until(&wanted, patience, async || self.system().ok_or_else(|| self.screen())).await
    }

    fn show(&self, line: impl Into<String>) {
        let line = line.into();
        tracing::debug!(mac = %self.0.mac, "{line}");
        self.lock().screen.push(line);
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From power-on to power-off.
    async fn run(self, supply: Supply) {
        loop {
            let start = {
                let mut inside = self.lock();
                inside.starts += 1;
                if let Some(toy) = &inside.toy {
                    toy.restart();
                }
                inside.system = None;
                inside.tpm.iter().for_each(SimulatedTpm::start);
                let start = inside.start.clone();
                inside.start.take_if(|(_, is_lasting)| !*is_lasting);
                start.map(|(start, _)| start)
            };
            let forged = self.lock().forged.clone();
            let tried = match forged {
                Some(parameters) => self.install(parameters, &supply).await,
                None if start.is_none() && self.has_system() => self.start_disk().await,
                None => self.start_network(start.unwrap_or(Start::Network), &supply).await,
            };
            if let Err(error) = tried {
                self.show(format!("{error:#}"));
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    fn has_system(&self) -> bool {
        self.drive().contents().is_ok_and(|disk| system::starts(&disk, self.0.firmware))
    }

    /// Runs the system on the disk until the power goes.
    async fn start_disk(&self) -> Result<()> {
        self.show("starting from disk");
        let drive = self.drive();
        let system = System::start(drive.path(), &drive.contents()?, self.0.mac);
        match system {
            Ok(system) => {
                self.lock().system = Some(system.clone());
                match system.run(&*self.0.place.cable, self.0.mac).await {
                    Ok(()) => self.show(format!("{} has called home", system.hostname)),
                    Err(error) => self.show(format!("{error:#}")),
                }
            }
            Err(error) => self.show(format!("{error:#}")),
        }
        // Idle, or hung: until someone does something about it.
        std::future::pending().await
    }

    /// Boots from the network; returns when the machine restarts.
    async fn start_network(&self, start: Start, supply: &Supply) -> Result<()> {
        let Chassis { mac, firmware, place, .. } = &*self.0;
        let uuid = self.lock().uuid;
        let mut card = place.cable.card(*mac);
        match start {
            Start::Network if *firmware == Firmware::Bios => {}
            Start::Network => {
                let lease = dhcp::obtain(&mut *card, *mac, Program::Rom(*firmware, uuid)).await;
                ensure!(lease.file == "snponly.efi", "a UEFI machine was told to load {:?}", lease.file);
                let server = SocketAddrV4::new(lease.next_server, place.tftp);
                let loader = tftp::fetch(lease.address, server, &lease.file).await?;
                ensure!(loader == place.loader, "the loader is not the loader");
            }
            Start::Http(url) => {
                let lease = dhcp::obtain(&mut *card, *mac, Program::Http(uuid)).await;
                ensure!(lease.file == url, "UEFI HTTP boot was told {url} by its BMC and {:?} by DHCP", lease.file);
                let loader = crate::ipxe::fetch(&url, lease.address).await?;
                ensure!(loader == place.loader, "the loader is not the loader");
            }
            Start::Media(url) => {
                // Its BMC fetches it.
                let client = reqwest::Client::builder().no_proxy().build()?;
                let fetched = client.get(&url).send().await?.error_for_status()?.bytes().await?;
                ensure!(fetched[..] == place.loader[..], "the medium is not the medium");
            }
        }
        let lease = dhcp::obtain(&mut *card, *mac, Program::Ipxe(*firmware, uuid)).await;
        let mut ipxe = Ipxe::new(*mac, lease.address, *firmware);
        let end = ipxe.run(&lease.file).await;
        for line in std::mem::take(&mut ipxe.screen) {
            self.show(line);
        }
        match end? {
            End::Kernel(line) => self.start_installer(&line, lease.address, supply).await,
            End::Disk | End::Exit if self.has_system() => self.start_disk().await,
            End::Disk | End::Exit => anyhow::bail!("no bootable device"),
        }
    }

    async fn start_installer(&self, line: &str, address: Ipv4Addr, supply: &Supply) -> Result<()> {
        self.lock().line = Some(line.to_owned());
        let parameters = cmdline::parse(line)?;
        ensure!(parameters.address == address, "told {} and given {address}", parameters.address);
        self.install(parameters, supply).await
    }

    /// Runs the real installer until it restarts the machine.
    async fn install(&self, parameters: cmdline::Parameters, supply: &Supply) -> Result<()> {
        let hardware = Powered { machine: self.clone(), supply: supply.clone() };
        session::run(parameters, Arc::new(hardware), Log::default()).await.context("the installer ended")?;
        self.show("the installer restarts the machine");
        Ok(())
    }
}

/// The hardware as the installer finds it, as long as the machine is on.
struct Powered {
    machine: Machine,
    supply: Supply,
}

impl Hardware for Powered {
    fn inventory(&self) -> Inventory {
        let Chassis { mac, firmware, .. } = &*self.machine.0;
        let (uuid, serial, drives) = {
            let inside = self.machine.lock();
            (inside.uuid, inside.serial.clone(), inside.drives.clone())
        };
        Inventory {
            firmware: *firmware,
            system: machine::System { vendor: "Simulated".into(), product: "Machine".into(), serial, uuid: Some(uuid) },
            cpu: Cpu { model: "Simulated CPU".into(), threads: 4 },
            memory: 1 << 30,
            nics: vec![Nic { name: "eth0".into(), mac: *mac, driver: "sim".into(), link: true }],
            disks: drives.iter().zip(["vda", "vdb", "vdc"]).map(|(drive, name)| drive.facts(name)).collect(),
        }
    }

    fn details(&self, _: &Inventory) -> hardware::Hardware {
        let inside = self.machine.lock();
        let mut hardware = inside.hardware.clone();
        if let Some(toy) = &inside.toy {
            let drive = hardware::Drive { name: "vda".into(), firmware: toy.version(), ..Default::default() };
            hardware.drives = vec![drive];
        }
        hardware
    }

    fn bmc(&self) -> Option<hardware::Bmc> {
        self.machine.lock().hardware.bmc.clone()
    }

    fn bmc_interface(&self) -> io::Result<Option<Box<dyn bmc::Interface>>> {
        let bmc = self.machine.lock().bmc.clone();
        let (machine, supply) = (self.machine.clone(), self.supply.clone());
        Ok(bmc.map(|bmc| Box::new(InBand { bmc, machine, supply }) as _))
    }

    fn open(&self, disk: &machine::Disk) -> io::Result<Arc<dyn disk::Disk>> {
        let drives = self.machine.lock().drives.clone();
        let found = drives.iter().zip(["vda", "vdb", "vdc"]).find(|(_, name)| **name == *disk.name);
        found.ok_or(io::ErrorKind::NotFound)?.0.open(self.supply.clone())
    }

    fn boot_from(&self, table: &Table) -> Result<(), BootOrderError> {
        if self.machine.0.firmware == Firmware::Bios {
            return Ok(());
        }
        let changes = boot_order::plan(&self.machine.variables(), table).map_err(BootOrderError::Image)?;
        self.machine.change_variables(changes);
        Ok(())
    }

    fn forget_systems(&self) -> Result<(), BootOrderError> {
        if self.machine.0.firmware == Firmware::Uefi {
            self.machine.change_variables(boot_entries::plan(&self.machine.variables()));
        }
        Ok(())
    }

    fn tpm(&self) -> io::Result<Option<Box<dyn Tpm>>> {
        Ok(self.machine.lock().tpm.clone().map(|tpm| Box::new(tpm) as _))
    }

    fn set_clock(&self, _: Timestamp) {}

    fn room_for_toolbox(&self, _: u64) -> Result<PathBuf, ToolboxError> {
        let mut inside = self.machine.lock();
        if inside.memory.is_none() {
            inside.memory = Some(tempfile::tempdir().map_err(|error| ToolboxError::Mount("making room", error))?);
        }
        Ok(inside.memory.as_ref().expect("it was made").path().join("toolbox"))
    }

    fn open_toolbox(&self, file: &Path) -> Result<Arc<dyn Tools>, ToolboxError> {
        std::fs::read(file).map_err(|error| ToolboxError::Mount("reading it", error))?;
        Ok(Arc::new(SimulatedTools { machine: self.machine.clone(), supply: self.supply.clone() }))
    }
}

/// The way to a simulated machine's own BMC, as long as it is on.
struct InBand {
    bmc: Arc<rackhand_bmc_sim::Bmc>,
    machine: Machine,
    supply: Supply,
}

impl InBand {
    /// Has the plug pulled when it is time: whoever asks is not there to hear of it.
    fn count(&self) {
        let is_time = {
            let mut inside = self.machine.lock();
            match inside.resets_in_band {
                Some(0) => {
                    inside.resets_in_band = None;
                    true
                }
                Some(left) => {
                    inside.resets_in_band = Some(left - 1);
                    false
                }
                None => false,
            }
        };
        if is_time {
            let machine = self.machine.clone();
            std::thread::spawn(move || machine.reset(true));
            while self.supply.check().is_ok() {
                std::thread::park_timeout(RETRY);
            }
        }
    }
}

impl bmc::Interface for InBand {
    fn ask(&mut self, request: &Request, _: Duration) -> Result<Vec<u8>, NoAnswer> {
        self.count();
        self.supply.check().map_err(NoAnswer::Silent)?;
        self.bmc.in_band(request.netfn, request.command, &request.data).map_err(|code| match code {
            Some(code) => NoAnswer::Refused(code),
            None => NoAnswer::Silent(io::ErrorKind::TimedOut.into()),
        })
    }
}

/// What a simulated machine has for programs: its tests pass but for those that it was told to fail, and those
/// that it was told to hang in go on until its power does.
struct SimulatedTools {
    machine: Machine,
    supply: Supply,
}

impl Tools for SimulatedTools {
    fn toolbox(&self) -> Option<&Toolbox> {
        None
    }

    fn has(&self, _: &str) -> bool {
        true
    }

    fn run(&self, script: &Script, withdrawn: &CancellationToken) -> Ran {
        let hangs = {
            let mut inside = self.machine.lock();
            inside.tested.push(script.name.clone());
            inside.hangs_in.take_if(|hangs_in| *hangs_in == script.name).is_some()
        };
        while hangs && !withdrawn.is_cancelled() && self.supply.check().is_ok() {
            std::thread::park_timeout(RETRY);
        }
        let fails = self.machine.lock().fails.get(&script.name).cloned();
        let mut result: serde_json::Map<String, serde_json::Value> = script
            .results
            .iter()
            .map(|(name, kind)| {
                let value = match kind {
                    Kind::Integer | Kind::Number => 0.into(),
                    Kind::Boolean => true.into(),
                    Kind::Text => "simulated".into(),
                    Kind::Texts => serde_json::Value::Array(Vec::new()),
                };
                (name.clone(), value)
            })
            .collect();
        result.insert("findings".to_owned(), fails.iter().cloned().collect::<Vec<_>>().into());
        Ran {
            exit: Exit::Code(i32::from(fails.is_some())),
            output: format!("{} of a simulated machine\n", script.name).into_bytes(),
            result: serde_json::to_vec(&result).expect("maps of JSON serialize"),
            took: Duration::from_millis(10),
        }
    }

    fn room_for_firmware(&self, name: &str) -> io::Result<(PathBuf, String)> {
        let toy = self.machine.lock().toy.clone();
        Ok(toy.ok_or(io::ErrorKind::Unsupported)?.room(name))
    }

    fn update(&self, script: &Script, given: &Given) -> Ran {
        let toy = self.machine.lock().toy.clone();
        let ran = toy.ok_or(io::ErrorKind::Unsupported.into());
        let ran = ran.and_then(|toy| toy.run(script, given, || self.supply.check().is_ok()));
        ran.unwrap_or_else(|error| Ran {
            exit: Exit::NotStarted(error.to_string()),
            output: Vec::new(),
            result: Vec::new(),
            took: Duration::ZERO,
        })
    }

    fn let_in(&self, keys: &[String]) -> io::Result<Box<dyn Ssh>> {
        let letters: String = (0..2).map(|_| Uuid::new_v4().simple().to_string()).collect();
        let host_key = format!("SHA256:{}", &letters[..43]);
        self.machine.lock().rescue = Some(Rescue { keys: keys.to_vec(), host_key: host_key.clone() });
        Ok(Box::new(SimulatedSsh { machine: self.machine.clone(), host_key }))
    }
}

/// Whom a simulated machine lets in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rescue {
    /// The public keys.
    pub keys: Vec<String>,
    /// Fingerprint of the host key that they see.
    pub host_key: String,
}

struct SimulatedSsh {
    machine: Machine,
    host_key: String,
}

impl Ssh for SimulatedSsh {
    fn port(&self) -> u16 {
        22
    }

    fn host_key(&self) -> &str {
        &self.host_key
    }

    fn look(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for SimulatedSsh {
    fn drop(&mut self) {
        // To have everybody leave takes a moment.
        std::thread::park_timeout(RETRY);
        let mut inside = self.machine.lock();
        // A later installer may let others in by now.
        if inside.rescue.as_ref().is_some_and(|rescue| rescue.host_key == self.host_key) {
            inside.rescue = None;
        }
    }
}

/// The power driver of a rack of simulated machines; every effect is noted at the machine.
#[derive(Clone, Debug, Default)]
pub struct PowerDriver(Arc<Mutex<Vec<Machine>>>);

impl PowerDriver {
    /// Racks a machine.
    pub fn add(&self, machine: Machine) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(machine);
    }

    fn find(&self, target: &Target) -> Result<Machine, PowerError> {
        let machines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = machines.iter().find(|machine| target.macs.contains(&machine.0.mac));
        found.cloned().ok_or_else(|| PowerError::Refused(format!("no machine has a card of {:?}", target.macs)))
    }
}

/// The machine as a BMC in front of it has it.
impl rackhand_bmc_sim::Chassis for Machine {
    fn power(&self) -> bool {
        Self::power(self) == State::On
    }

    fn set_power(&self, on: bool) -> Result<(), String> {
        let wanted = if on { State::On } else { State::Off };
        self.switch(wanted);
        Ok(())
    }

    fn set_boot(&self, boot: &rackhand_bmc_sim::Boot) -> Result<(), String> {
        use rackhand_bmc_sim::Source;
        let address = || boot.address.clone().unwrap_or_default();
        let (start, effect) = match boot.source {
            Some(Source::Network) if boot.is_lasting => (Some(Start::Network), Some(Effect::NetworkAlways)),
            Some(Source::Network) => (Some(Start::Network), Some(Effect::NetworkOnce)),
            Some(Source::Http) => (Some(Start::Http(address())), Some(Effect::HttpOnce)),
            Some(Source::Cd) => (Some(Start::Media(address())), Some(Effect::MediaOnce)),
            Some(Source::Disk | Source::Setup) | None => (None, None),
        };
        let mut inside = self.lock();
        inside.effects.extend(effect);
        inside.start = start.map(|start| (start, boot.is_lasting));
        Ok(())
    }
}

impl Power for PowerDriver {
    fn status<'a>(&'a self, target: &'a Target) -> Answer<'a, State> {
        Box::pin(async { Ok(self.find(target)?.power()) })
    }

    fn set<'a>(&'a self, target: &'a Target, wanted: State) -> Answer<'a, ()> {
        Box::pin(async move {
            self.find(target)?.switch(wanted);
            Ok(())
        })
    }

    fn network_boot_once<'a>(&'a self, target: &'a Target) -> Answer<'a, ()> {
        Box::pin(async {
            let machine = self.find(target)?;
            let mut inside = machine.lock();
            inside.effects.push(Effect::NetworkOnce);
            inside.start = Some((Start::Network, false));
            Ok(())
        })
    }
}
