//! The metal installer image on hardware it is for: a machine with an e1000 card, a SATA disk at an
//! AHCI controller and an NVMe disk is found with all of it, and with what firmware and disks tell of
//! themselves. The cloud image boots a virtual machine beside it, and both are measured.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, ensure};
use jiff::Timestamp;
use rackhand_common::machine::Firmware;

use crate::{
    bench::{TO_INSTALLER, Table},
    machine::{Body, DIMM},
    narrator::node_timeline,
    rack::{Care, Parts, Rack},
    story::name,
};

const PATIENCE: Duration = Duration::from_secs(300);

/// Boots a machine of each kind `repeat` times; `cloud` is the directory of the other image.
pub(crate) fn run(parts: &Parts, cloud: &Path, repeat: usize) -> anyhow::Result<()> {
    let cloud = Parts { binaries: parts.binaries.clone(), installer: cloud.to_owned(), image: parts.image.clone() };
    for (title, parts, body) in [("cloud", &cloud, Body::Virtual), ("metal", parts, Body::Metal)] {
        let mut table = Table::default();
        for _ in 0..repeat {
            let rack = Rack::build("metal", 8, parts, &[Firmware::Bios], Care::Strict, |_| {})?;
            let machine = rack.machines[0].clone().of(body)?;
            let start = Timestamp::now();
            machine.power_on()?;
            let found = rack.operator.wait_for_lifecycle(machine.label.mac, "discovered", PATIENCE)?;
            let events = node_timeline(&rack, &machine)?;
            table.add("power-on → installer connected", TO_INSTALLER, start, &events);
            if body == Body::Metal {
                let name = name(&found)?;
                // It is told behind the connection.
                rack.wait_for("hardware", |rack| {
                    let hardware = rack.operator.ask(&["machine", "findings", name])?;
                    is_all_there(&found["inventory"], &hardware["hardware"])
                        .with_context(|| format!("found: {:#}\n{hardware:#}", found["inventory"]))
                })?;
            }
            machine.power_off()?;
            rack.tear_down();
        }
        let size = |file: &str| fs::metadata(parts.installer.join(file)).map(|file| file.len() >> 10);
        println!("\n### {title}: kernel {} KiB, initramfs {} KiB\n", size("kernel")?, size("initramfs")?);
        table.print();
    }
    Ok(())
}

/// What was put into the machine is what its installer found.
fn is_all_there(inventory: &serde_json::Value, hardware: &serde_json::Value) -> anyhow::Result<()> {
    ensure!(inventory["nics"][0]["driver"] == "e1000", "the network card is not found by its driver");
    let disks = inventory["disks"].as_array().context("no disks")?;
    let names: Vec<_> = disks.iter().filter_map(|disk| disk["name"].as_str()).collect();
    ensure!(names == ["nvme0n1", "sda"], "not both disks are found: {names:?}");
    let dimm = &hardware["memory"][0];
    let slot = dimm["slot"].as_str().unwrap_or_default();
    ensure!(slot.starts_with(DIMM) && dimm["part"] == "PART-17" && dimm["speed"] == 3200, "wrong memory: {dimm}");
    ensure!(hardware["bios"]["version"] == "rackhand-metal", "wrong firmware version");
    let of = |name: &str| hardware["drives"].as_array().into_iter().flatten().find(|drive| drive["name"] == name);
    for disk in ["nvme0n1", "sda"] {
        let health = &of(disk).with_context(|| format!("{disk} tells nothing"))?["health"];
        ensure!(health["failing"] == serde_json::json!([]), "{disk} does not tell that it is well: {health}");
    }
    let drivers: Vec<_> =
        hardware["devices"].as_array().into_iter().flatten().filter_map(|device| device["driver"].as_str()).collect();
    ensure!(["ahci", "e1000", "nvme"].iter().all(|driver| drivers.contains(driver)), "wrong devices: {drivers:?}");
    ensure!(hardware["ports"][0]["permanent"] == inventory["nics"][0]["mac"], "the card's own address is not told");
    Ok(())
}
