//! The stories the gate tells on real boot ROMs. Each is a fact; together they follow two
//! machines, so that every boot is used for several.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use rackhand_common::machine::{Firmware, Power};
use serde_json::Value;

use crate::{
    machine::Machine,
    rack::{Parts, Rack},
    services::Service,
};

/// Emulated processors are slow, and the gate's machine has two cores for everything.
const BOOT: Duration = Duration::from_secs(240);
const DEPLOY: Duration = Duration::from_secs(600);

type Story = fn(&mut Rack) -> anyhow::Result<()>;

const STORIES: &[(&str, Story)] = &[
    ("machines_powered_on_for_the_first_time_are_discovered", discovered),
    ("a_uefi_machine_goes_from_adoption_to_a_login_and_back_to_ready", uefi_there_and_back),
    ("a_bios_machine_is_deployed_although_everything_is_killed_meanwhile", bios_through_kills),
    ("a_known_machine_boots_while_the_controller_is_away", controller_away),
    ("a_released_machine_holds_nothing_of_its_tenant", released_clean),
];

/// Tells all stories; ends with how many were true.
pub(crate) fn tell(parts: &Parts) -> anyhow::Result<()> {
    let start = Instant::now();
    let mut rack = Rack::build("test", 2, parts, &[Firmware::Bios, Firmware::Uefi], |what| println!("   {what}"))?;
    rack.import()?;
    let (mut passed, mut failed) = (0, 0);
    for (name, story) in STORIES {
        let began = Instant::now();
        let told = catch_unwind(AssertUnwindSafe(|| story(&mut rack).and_then(|()| rack.check())))
            .unwrap_or_else(|_| Err(anyhow::anyhow!("panicked")));
        let took = began.elapsed().as_secs_f64();
        match told {
            Ok(()) => {
                passed += 1;
                println!("test {name} ... ok ({took:.1} s)");
            }
            Err(error) => {
                failed += 1;
                println!("test {name} ... FAILED ({took:.1} s)\n{error:?}\n");
            }
        }
        // Later stories go on from where earlier ones arrived.
        if failed > 0 {
            failed += STORIES.len() - passed - failed;
            break;
        }
    }
    println!("\nreal boots took {:.1} s", start.elapsed().as_secs_f64());
    if failed == 0 {
        rack.tear_down();
    } else {
        println!("logs, consoles and disks are left in {}", rack.files.directory.display());
        rack.cabling.cut();
    }
    println!("{passed} passed, {failed} failed");
    ensure!(failed == 0, "a story was not true");
    Ok(())
}

fn bios(rack: &Rack) -> Machine {
    rack.machines[0].clone()
}

fn uefi(rack: &Rack) -> Machine {
    rack.machines[1].clone()
}

fn discovered(rack: &mut Rack) -> anyhow::Result<()> {
    for machine in &rack.machines {
        machine.power_on()?;
    }
    for machine in rack.machines.clone() {
        let found = rack.operator.wait_for_lifecycle(machine.label.mac, "discovered", BOOT)?;
        let inventory = &found["inventory"];
        ensure!(inventory["system"]["serial"] == machine.label.serial.as_str(), "wrong serial number: {inventory}");
        ensure!(inventory["disks"].as_array().is_some_and(|disks| disks.len() == 1), "wrong disks: {inventory}");
        ensure!(inventory["disks"][0]["content"] == "blank", "a new disk is not blank: {inventory}");
        rack.operator.ask(&["machine", "adopt", name(&found)?])?;
        rack.operator.wait_for_lifecycle(machine.label.mac, "ready", BOOT)?;
    }
    Ok(())
}

fn uefi_there_and_back(rack: &mut Rack) -> anyhow::Result<()> {
    let machine = uefi(rack);
    deploy(rack, &machine)?;
    let active = rack.operator.wait_for_lifecycle(machine.label.mac, "active", DEPLOY)?;
    logs_in(rack, &active)?;
    let firmware = rack.ssh(address(&active)?, "test -d /sys/firmware/efi && echo UEFI", BOOT)?;
    ensure!(firmware.trim() == "UEFI", "it did not boot by UEFI");
    rack.operator.ask(&["machine", "release", name(&active)?])?;
    rack.operator.wait_for_lifecycle(machine.label.mac, "ready", DEPLOY)?;
    machine.power_off()
}

fn bios_through_kills(rack: &mut Rack) -> anyhow::Result<()> {
    let machine = bios(rack);
    deploy(rack, &machine)?;
    for service in [Service::Boot, Service::Agent, Service::Controller] {
        rack.operator.wait_for(machine.label.mac, "being written", DEPLOY, |seen| {
            seen["lifecycle"] == "deploying" || seen["lifecycle"] == "active"
        })?;
        rack.kill(service)?;
        std::thread::sleep(Duration::from_secs(1));
        rack.start(service)?;
    }
    machine.reset()?;
    let active = rack.operator.wait_for_lifecycle(machine.label.mac, "active", DEPLOY)?;
    logs_in(rack, &active)
}

fn controller_away(rack: &mut Rack) -> anyhow::Result<()> {
    let machine = bios(rack);
    let known = rack.operator.machine(machine.label.mac)?.context("the machine is gone")?;
    rack.kill(Service::Controller)?;
    rack.cabling.set_uplink(false)?;
    // A node that was restarted meanwhile has only its own disk to know the machine from.
    for service in [Service::Agent, Service::Boot] {
        rack.kill(service)?;
        rack.start(service)?;
    }
    machine.power_off()?;
    machine.network_boot_once()?;
    machine.power_on()?;
    let booted = rack.ssh(address(&known)?, "cut -d. -f1 /proc/uptime", BOOT);
    rack.cabling.set_uplink(true)?;
    rack.start(Service::Controller)?;
    let uptime: u64 = booted?.trim().parse().context("no uptime")?;
    ensure!(uptime < BOOT.as_secs(), "it did not start again");
    ensure!(machine.power() == Power::On, "it is off");
    rack.operator.wait_for_lifecycle(machine.label.mac, "active", BOOT).map(drop)
}

fn released_clean(rack: &mut Rack) -> anyhow::Result<()> {
    let machine = bios(rack);
    let active = rack.operator.wait_for_lifecycle(machine.label.mac, "active", BOOT)?;
    rack.ssh(address(&active)?, "echo tenants-canary-7c1e > note && sync", BOOT)?;
    rack.operator.ask(&["machine", "release", name(&active)?])?;
    rack.operator.wait_for_lifecycle(machine.label.mac, "ready", DEPLOY)?;
    machine.power_off()?;
    let disk = std::fs::File::open(machine.disk())?;
    ensure!(all_zeros(disk)?, "the released disk is not all zeros");
    Ok(())
}

/// Deploys Debian with the operator's key; returns once the run is accepted.
fn deploy(rack: &Rack, machine: &Machine) -> anyhow::Result<()> {
    let known = rack.operator.machine(machine.label.mac)?.context("the machine is not known")?;
    let key = rack.ssh_key()?.with_extension("pub");
    rack.operator
        .ask(&["machine", "deploy", name(&known)?, "--image", "debian-12", "--ssh-key", &key.to_string_lossy()])
        .map(drop)
}

fn logs_in(rack: &Rack, machine: &Value) -> anyhow::Result<()> {
    let answer = rack.ssh(address(machine)?, "hostname; . /etc/os-release; echo $VERSION_ID", BOOT)?;
    ensure!(answer == format!("{}\n12\n", name(machine)?), "unexpected answer over SSH: {answer:?}");
    Ok(())
}

pub(crate) fn name(machine: &Value) -> anyhow::Result<&str> {
    machine["name"].as_str().context("the machine has no name")
}

pub(crate) fn address(machine: &Value) -> anyhow::Result<&str> {
    machine["address"].as_str().context("the machine has no address")
}

/// Whether a file reads as zeros; holes are skipped.
fn all_zeros(mut file: std::fs::File) -> anyhow::Result<bool> {
    use std::io::Read;
    let mut block = vec![0; 4 << 20];
    loop {
        let read = file.read(&mut block)?;
        if read == 0 {
            return Ok(true);
        }
        if block[..read].iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
    }
}
