//! A BMC whose DHCP client nobody here wrote: busybox's udhcpc, which OpenBMC and many others have, on the
//! management network's card. Its lease has it found, logged in to and joined to its machine.

use std::{
    fs::{self, File},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::Path,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use rackhand_common::machine::{Firmware, Mac};
use serde_json::Value;

use crate::{
    facts::{self, Then},
    matrix::computer::{Computer, Tender},
    network::Place,
    operator::items,
    rack::{Care, Parts, Rack},
    run::{outcome, run},
    services::Service,
};

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// How often it is looked.
const LOOK: Duration = Duration::from_millis(200);

const DISK: u64 = 32 << 20;

/// The BMC's card, and that of something else on its network.
const CARD: Mac = Mac([0x02, 0x00, 0x00, 0x79, 0x01, 0x01]);
const STRANGER: Mac = Mac([0x02, 0x00, 0x00, 0x79, 0x01, 0x02]);

/// What udhcpc calls when it has learnt something: what that is, in a file, and the address on the card.
const SCRIPT: &str = r#"#!/bin/sh
directory=$(dirname "$0")
case "$1" in
    bound|renew)
        env > "$directory/told"
        ip addr flush dev "$interface"
        ip addr add "$ip/24" dev "$interface"
        echo "$1 $ip" >> "$directory/leases" ;;
    deconfig)
        ip addr flush dev "$interface"
        ip link set "$interface" up ;;
esac
"#;

type Fact = fn(&mut World) -> anyhow::Result<()>;

const FACTS: &[(&str, Fact)] = &[
    ("what_is_no_bmc_is_given_no_address_on_the_management_network", stranger),
    ("a_bmc_with_udhcpc_is_found_by_its_lease_and_joined_to_its_machine", joined),
    ("it_renews_its_lease_although_boot_was_killed", renewed),
];

struct World {
    rack: Rack,
    computer: Computer,
    _tender: Tender,
    processes: Vec<Process>,
}

/// A process of the BMC's, which ends with the world.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Tries everything; ends with how many facts held.
pub(crate) fn tell(parts: &Parts) -> anyhow::Result<()> {
    let mut world = World::build(parts)?;
    let tally = facts::tell(
        &mut world,
        FACTS,
        |_| true,
        |world, fact| fact(world).and_then(|()| world.rack.check()).map(|()| String::new()),
        |_| Ok(Then::Stop),
    )?;
    let World { rack, _tender, processes, .. } = world;
    drop((_tender, processes));
    if tally.all_held() {
        rack.tear_down();
    } else {
        println!("the logs are in {}", rack.files.directory.join("logs").display());
        rack.cabling.cut();
    }
    tally.end()
}

impl World {
    fn build(parts: &Parts) -> anyhow::Result<Self> {
        let rack = Rack::build("leased", 18, parts, &[], Care::Strict, |what| println!("   {what}"))?;
        let directory = rack.files.directory.join("computers");
        let computer = Computer::make(&directory, 0, Firmware::Uefi, DISK)?;
        rack.cabling.plug(Place::Computer(0), computer.label.mac)?;
        let append = |service, text: String| -> anyhow::Result<()> {
            let path = rack.files.config(service);
            Ok(fs::write(&path, fs::read_to_string(&path)? + &text)?)
        };
        // Whoever waits for a sweep waits for an hour.
        append(Service::Agent, "\n[discovery]\nevery = 3600\n".into())?;
        let config = fs::read_to_string(rack.files.config(Service::Agent))?;
        let driver = [std::env::current_exe()?.display().to_string(), "computer-power".into(), "--computers".into()];
        let command: Vec<_> = driver.into_iter().chain([directory.display().to_string()]).collect();
        let lines = config.lines().map(|line| match line.starts_with("command = ") {
            true => format!("command = {command:?}\n"),
            false => format!("{line}\n"),
        });
        fs::write(rack.files.config(Service::Agent), lines.collect::<String>())?;
        append(
            Service::Boot,
            "\n[management]\ninterface = \"mgmt0\"\naddress = \"10.79.0.1/24\"\n\
             range = [\"10.79.0.100\", \"10.79.0.109\"]\nlease = 120\n"
                .into(),
        )?;
        for service in [Service::Agent, Service::Boot] {
            rack.kill(service)?;
            rack.start(service)?;
        }
        let tender = Tender::spawn(computer.clone(), rack.cabling.clone());
        computer.power_on()?;
        let mac = computer.label.mac;
        let found = rack.operator.wait_for_lifecycle(mac, "discovered", PATIENCE)?;
        rack.operator.ask(&["machine", "adopt", found["name"].as_str().context("it has no name")?])?;
        rack.operator.wait_for_lifecycle(mac, "ready", PATIENCE)?;
        rack.operator.ask(&["bmc", "import", "--rack", "r1", "--try-factory", "yes"])?;
        Ok(Self { rack, computer, _tender: tender, processes: Vec::new() })
    }

    fn directory(&self) -> std::path::PathBuf {
        self.rack.files.directory.join("bmc")
    }

    /// The words of udhcpc on the BMC's card.
    fn udhcpc(&self, more: &[&str]) -> anyhow::Result<std::process::Command> {
        let directory = self.directory();
        fs::create_dir_all(&directory)?;
        let script = directory.join("script");
        fs::write(&script, SCRIPT)?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        let mut command = self.rack.cabling.command(Place::Management, "busybox");
        command.args(["udhcpc", "-f", "-i", "bmc0", "-s"]).arg(script).args(more).stdin(Stdio::null());
        Ok(command)
    }

    fn has_card(&self, mac: Mac) -> anyhow::Result<()> {
        let namespace = self.rack.cabling.namespace(Place::Management);
        run("ip", &["-n", &namespace, "link", "set", "bmc0", "down"])?;
        run("ip", &["-n", &namespace, "link", "set", "bmc0", "address", &mac.to_string(), "up"]).map(drop)
    }

    /// The only BMC that was found, once it is as wanted.
    fn found(&self, what: &str, is: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
        let end = Instant::now() + PATIENCE;
        loop {
            let told = self.rack.operator.ask(&["bmc", "found", "r1"])?;
            if let [bmc] = &items(&told)?[..]
                && is(bmc)
            {
                return Ok(bmc.clone());
            }
            ensure!(Instant::now() < end, "not {what}: {told:#}");
            std::thread::sleep(LOOK);
        }
    }

    /// What stands in a file of the BMC's, once it is as wanted.
    fn wait(&self, name: &str, is: impl Fn(&str) -> bool) -> anyhow::Result<String> {
        let end = Instant::now() + PATIENCE;
        loop {
            let said = fs::read_to_string(self.directory().join(name)).unwrap_or_default();
            if is(&said) {
                return Ok(said);
            }
            ensure!(Instant::now() < end, "{name} is not as wanted:\n{said}");
            std::thread::sleep(LOOK);
        }
    }

    /// Has a process in the BMC's namespace run on.
    fn keeps(&mut self, mut command: std::process::Command, log: &str) -> anyhow::Result<u32> {
        let log = File::create(self.directory().join(log))?;
        let child = command.stdout(log.try_clone()?).stderr(log).process_group(0).spawn()?;
        let pid = child.id();
        self.processes.push(Process(child));
        Ok(pid)
    }
}

fn stranger(world: &mut World) -> anyhow::Result<()> {
    world.has_card(STRANGER)?;
    let words = ["-n", "-q", "-t", "3", "-T", "1", "-V", "MSFT 5.0", "-x", "hostname:laptop"];
    let (ok, said, complaint) = outcome(&mut world.udhcpc(&words)?)?;
    let said = said + &complaint;
    ensure!(!ok && said.contains("no lease"), "it was given an address:\n{said}");
    ensure!(items(&world.rack.operator.ask(&["bmc", "found", "r1"])?)?.is_empty(), "it counts as a BMC");
    let end = Instant::now() + PATIENCE;
    while !fs::read_to_string(world.rack.files.log(Service::Boot))?.contains(&STRANGER.to_string()) {
        ensure!(Instant::now() < end, "boot does not say that it was there");
        std::thread::sleep(LOOK);
    }
    let log = fs::read_to_string(world.rack.files.log(Service::Boot))?;
    let times = log.lines().filter(|line| line.contains(&STRANGER.to_string())).count();
    ensure!(times == 1, "it is told {times} times:\n{log}");
    Ok(())
}

fn joined(world: &mut World) -> anyhow::Result<()> {
    world.has_card(CARD)?;
    let client = world.udhcpc(&["-x", "hostname:romulus-bmc"])?;
    let _ = fs::remove_file(world.directory().join("udhcpc.pid"));
    let pid = world.keeps(client, "udhcpc.log")?;
    fs::write(world.directory().join("udhcpc.pid"), pid.to_string())?;
    let leases = world.wait("leases", |said| said.starts_with("bound "))?;
    let address = leases.trim().trim_start_matches("bound ").to_owned();
    ensure!(address.starts_with("10.79.0.10"), "{leases}");
    let told = fs::read_to_string(world.directory().join("told"))?;
    let boots = |line: &&str| ["siaddr=", "boot_file=", "tftp=", "sname="].iter().any(|name| line.starts_with(name));
    ensure!(told.lines().find(boots).is_none(), "it is told what to boot:\n{told}");
    let found = world.found("listed", |bmc| bmc["mac"] == CARD.to_string())?;
    ensure!(found["found_by"][0] == "dhcp" && found["hostname"] == "romulus-bmc", "{found:#}");
    ensure!(found["vendor_class"].as_str().is_some_and(|class| class.starts_with("udhcp ")), "{found:#}");

    let (serial, uuid) = (world.computer.serial(), world.computer.uuid().to_string());
    let program = world.rack.files.binary("rackhand-bmc-sim");
    let mut bmc = world.rack.cabling.command(Place::Management, &program.to_string_lossy());
    bmc.args(["--listen", &address, "--personality", "dell-like", "--serial", &serial, "--uuid", &uuid, "--nvram"]);
    bmc.arg(world.directory().join("nvram"));
    world.keeps(bmc, "bmc.log")?;
    let found = world.found("joined", |bmc| bmc["state"] == "joined")?;
    ensure!(found["address"] == address.as_str() && found["found_by"][0] == "dhcp", "{found:#}");
    let end = Instant::now() + PATIENCE;
    loop {
        let bmcs = world.rack.operator.ask(&["bmc", "list", "r1"])?;
        if items(&bmcs)?.iter().any(|bmc| bmc["rotated"].is_string()) {
            return Ok(());
        }
        ensure!(Instant::now() < end, "it has the password from the factory: {bmcs:#}");
        std::thread::sleep(LOOK);
    }
}

fn renewed(world: &mut World) -> anyhow::Result<()> {
    let before = fs::read_to_string(world.directory().join("leases"))?;
    let address = before.trim().trim_start_matches("bound ").to_owned();
    world.rack.kill(Service::Boot)?;
    world.rack.start(Service::Boot)?;
    let is_up =
        |path: &Path| Ok::<_, anyhow::Error>(fs::read_to_string(path)?.matches("giving addresses").count() >= 2);
    let end = Instant::now() + PATIENCE;
    while !is_up(&world.rack.files.log(Service::Boot))? {
        ensure!(Instant::now() < end, "boot does not serve the management network again");
        std::thread::sleep(LOOK);
    }
    run("kill", &["-USR1", &fs::read_to_string(world.directory().join("udhcpc.pid"))?])?;
    let wanted = format!("renew {address}");
    world.wait("leases", |said| said.lines().any(|line| line == wanted))?;
    Ok(())
}
