//! `cargo xtask demo`: two machines, from power-off to a login and back.

use std::time::Duration;

use anyhow::Context;
use rackhand_common::machine::Firmware;

use crate::{
    machine::Machine,
    narrator::Narrator,
    network::Cabling,
    operator::Operator,
    rack::{self, Parts, Rack},
    story::{address, name},
};

const NAME: &str = "demo";
const NUMBER: u8 = 1;
const PATIENCE: Duration = Duration::from_secs(900);

/// Shows the whole way; leaves the rack running when told to `keep` it.
pub(crate) fn run(parts: &Parts, keep: bool) -> anyhow::Result<()> {
    println!("A virtual rack: a controller, a rack node, one BIOS and one UEFI machine.\n");
    let mut rack = Rack::build(NAME, NUMBER, parts, &[Firmware::Bios, Firmware::Uefi], |what| println!("   {what}"))?;
    let result = show(&mut rack);
    if let Err(error) = result {
        println!("\nThe demo stopped. Logs, consoles and disks: {}", rack.files.directory.display());
        println!("Clean up with: cargo xtask demo down");
        return Err(error);
    }
    where_to_look(&rack);
    if keep {
        println!("\nEverything is left running; end it with: cargo xtask demo down");
    } else {
        rack.tear_down();
        println!("\nEverything was ended and removed; `cargo xtask demo --keep` leaves it running.");
    }
    Ok(())
}

/// Removes whatever a demo left, in whatever state.
pub(crate) fn down() {
    Cabling::new(NAME, NUMBER).cut();
    let _ = std::fs::remove_dir_all(rack::directory(NAME));
    println!("The demo's processes, namespaces and files are gone.");
}

fn show(rack: &mut Rack) -> anyhow::Result<()> {
    println!("\n$ rackhand image import debian-12.raw --name debian-12");
    rack.import()?;
    let mut narrator = Narrator::default();
    let machines = rack.machines.clone();

    for machine in &machines {
        narrator.chapter(machine, "someone presses the power button");
        machine.power_on()?;
    }
    narrator.until(rack, &machines, PATIENCE, |operator| all(operator, &machines, "discovered"))?;

    for machine in &machines {
        let known = rack.operator.machine(machine.label.mac)?.context("the machine is gone")?;
        narrator.chapter(
            machine,
            &format!("$ rackhand machine adopt {0}; rackhand machine deploy {0} --image debian-12", name(&known)?),
        );
        rack.operator.ask(&["machine", "adopt", name(&known)?])?;
        let key = rack.ssh_key()?.with_extension("pub");
        rack.operator.wait_for_lifecycle(machine.label.mac, "ready", PATIENCE)?;
        rack.operator.ask(&[
            "machine",
            "deploy",
            name(&known)?,
            "--image",
            "debian-12",
            "--ssh-key",
            &key.to_string_lossy(),
        ])?;
    }
    narrator.until(rack, &machines, PATIENCE, |operator| all(operator, &machines, "active"))?;

    for machine in &machines {
        let known = rack.operator.machine(machine.label.mac)?.context("the machine is gone")?;
        println!("\n$ ssh debian@{} 'hostname; uname -r; uptime -p'", address(&known)?);
        print!("{}", rack.ssh(address(&known)?, "hostname; uname -r; uptime -p", PATIENCE)?);
    }

    let first = &machines[..1];
    let known = rack.operator.machine(first[0].label.mac)?.context("the machine is gone")?;
    narrator.chapter(&first[0], &format!("$ rackhand machine release {}", name(&known)?));
    rack.operator.ask(&["machine", "release", name(&known)?])?;
    narrator.until(rack, first, PATIENCE, |operator| all(operator, first, "ready"))?;
    println!();
    rack.operator.show(&["machine", "list"])
}

fn all(operator: &Operator, machines: &[Machine], lifecycle: &str) -> anyhow::Result<bool> {
    for machine in machines {
        if operator.machine(machine.label.mac)?.is_none_or(|seen| seen["lifecycle"] != lifecycle) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn where_to_look(rack: &Rack) {
    let operator = &rack.operator;
    println!("\nWhere to look next (while it runs):");
    println!("  export RACKHAND_CONTROLLER={} RACKHAND_CA={} \\", operator.controller, operator.ca.display());
    println!("         RACKHAND_TOKEN={}", operator.token);
    println!("  {} machine list        every machine; also: run list, image list, --help", operator.program.display());
    println!(
        "  curl --cacert $RACKHAND_CA -H \"Authorization: Bearer $RACKHAND_TOKEN\" {}/v1/openapi.json",
        operator.controller
    );
    println!("  {}   logs of controller, agent and boot", rack.files.directory.join("logs").display());
    for machine in &rack.machines {
        println!("  {}   serial console of {}", machine.console_log().display(), machine.label.serial);
    }
}
