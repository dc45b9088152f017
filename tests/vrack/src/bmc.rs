//! The BMCs of the virtual rack's machines: simulated ones, each a process with an address of its
//! own on the management network, in front of a QEMU machine.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

use crate::{
    machine::Machine,
    network::{Cabling, Place},
    rack::Rack,
    run::{is_ending, output},
    services::Files,
};

/// How long one may take to start.
const START: Duration = Duration::from_secs(20);

/// Who logs in to all of them.
const USER: &str = "rackhand";

/// The password; nothing may show it.
const PASSWORD: &str = "canary-0d51-of-bmc";

/// How the BMC of a machine is: one of each protocol.
struct Kind {
    personality: &'static str,
    protocol: &'static str,
}

fn kind(machine: &Machine) -> Kind {
    match machine.slot() % 2 {
        0 => Kind { personality: "supermicro-like", protocol: "ipmi" },
        _ => Kind { personality: "dell-like", protocol: "redfish" },
    }
}

/// Puts a BMC in front of a machine.
pub(crate) fn install(files: &Files, cabling: &Cabling, machine: &Machine) -> anyhow::Result<()> {
    let log = File::create(machine.directory().join("bmc.log"))?;
    let mut command = cabling.command(Place::Management, &files.binary("rackhand-bmc-sim").to_string_lossy());
    command.args(["--listen", &cabling.bmc(machine.slot()), "--personality", kind(machine).personality]);
    command.args(["--control", &control(machine), "--nvram"]).arg(machine.directory().join("bmc"));
    command.args(["--serial", &machine.label.serial, "--uuid", &machine.uuid().to_string(), "--user", USER]);
    command.arg("--machine-command").arg(std::env::current_exe()?);
    command.args(["power", "--machines"]).arg(files.machines());
    command.env("RACKHAND_MAC", machine.label.mac.to_string()).env("RACKHAND_BMC_PASSWORD", PASSWORD);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
    let child = command.spawn().context("starting a BMC")?;
    fs::write(machine.directory().join("bmc.pid"), child.id().to_string())?;
    let end = Instant::now() + START;
    while !fs::read_to_string(machine.directory().join("bmc.log"))?.lines().any(|line| line == "ready") {
        if Instant::now() > end {
            bail!("the BMC of {} does not start", machine.label.serial);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Where the BMC of a machine is told what its sensors read, on the management network's loopback.
fn control(machine: &Machine) -> String {
    format!("127.0.0.1:{}", 9000 + machine.slot())
}

/// Has a sensor of a machine read this.
pub(crate) fn reads(rack: &Rack, machine: &Machine, sensor: &str, value: f64) -> anyhow::Result<()> {
    let program = rack.files.binary("rackhand-bmc-sim");
    let mut command = rack.cabling.command(Place::Management, &program.to_string_lossy());
    command.args(["ctl", "--control", &control(machine), "sensor", sensor, &value.to_string()]);
    output(&mut command).map(drop)
}

/// Starts the BMC of a machine again when it was killed; whether it was.
pub(crate) fn reinstall_ended(files: &Files, cabling: &Cabling, machine: &Machine) -> anyhow::Result<bool> {
    let Ok(pid) = fs::read_to_string(machine.directory().join("bmc.pid")) else { return Ok(false) };
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    if is_ending() || (stat.contains("(rackhand-bmc-si") && !stat.contains(") Z ")) {
        return Ok(false);
    }
    install(files, cabling, machine)?;
    Ok(true)
}

/// Writes what came with these machines: a manifest of their BMCs, which an operator imports.
pub(crate) fn manifest(rack: &Rack) -> anyhow::Result<PathBuf> {
    let mut lines = String::from("serial,address,protocol,user,password\n");
    for machine in &rack.machines {
        let (serial, address) = (&machine.label.serial, rack.cabling.bmc(machine.slot()));
        lines += &format!("{serial},{address},{},{USER},{PASSWORD}\n", kind(machine).protocol);
    }
    let file = rack.files.directory.join("delivery.csv");
    fs::write(&file, lines)?;
    Ok(file)
}

/// The words with which an operator says how the BMC of a machine is reached; the password is in
/// the file that comes last.
pub(crate) fn words(rack: &Rack, machine: &Machine, name: &str) -> anyhow::Result<Vec<String>> {
    let file = rack.files.directory.join("bmc-password");
    fs::write(&file, PASSWORD)?;
    let protocol = kind(machine).protocol;
    let words = ["bmc", "set", name, "--address", &rack.cabling.bmc(machine.slot()), "--user", USER];
    let rest = ["--protocol", protocol, "--password-file", &file.to_string_lossy()];
    Ok(words.into_iter().chain(rest).map(str::to_owned).collect())
}
