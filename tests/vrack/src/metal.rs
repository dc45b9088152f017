//! The metal installer image on hardware it is for: a machine with an e1000 card, a SATA disk at an
//! AHCI controller and an NVMe disk is found with all of it, and with what firmware and disks tell of
//! themselves. Its BMC, which it reaches in-band by KCS, is OpenIPMI's simulator. The cloud image boots a
//! virtual machine beside it, and both are measured.

use std::{
    fs::{self, File},
    net::Ipv4Addr,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context, ensure};
use jiff::Timestamp;
use rackhand_common::machine::{Firmware, Mac};

use crate::{
    bench::{TO_INSTALLER, Table},
    machine::{Body, DIMM, IPMI, Machine},
    narrator::node_timeline,
    network::{Cabling, Place},
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
            let _bmc = (body == Body::Metal).then(|| Bmc::start(&rack.cabling, &machine)).transpose()?;
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
    let lan = serde_json::json!([{"channel": 1, "mac": MAC, "address": ADDRESS, "is_dhcp": true}]);
    let bmc = &hardware["bmc"];
    // OpenIPMI's simulator has a GUID for those who ask over LAN alone.
    ensure!(bmc["lan"] == lan && bmc["firmware"] == "9.08", "the BMC tells something else in-band: {bmc}");
    ensure!(hardware["ports"][0]["permanent"] == inventory["nics"][0]["mac"], "the card's own address is not told");
    Ok(())
}

/// What the BMC has for a network.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 20, 0, 9);
const MAC: Mac = Mac([2, 0, 0, 0, 0, 9]);

/// Tells `ipmi_sim` what its network is.
const LAN: &str = r#"#!/bin/sh
[ "$2" = get ] || exit 0
shift 2
for parameter; do
    case $parameter in
    ip_addr) echo "$parameter:ADDRESS" ;;
    ip_addr_src) echo "$parameter:dhcp" ;;
    mac_addr) echo "$parameter:MAC" ;;
    subnet_mask) echo "$parameter:255.255.255.0" ;;
    *gw_ip_addr) echo "$parameter:0.0.0.0" ;;
    *gw_mac_addr) echo "$parameter:00:00:00:00:00:00" ;;
    esac
done
"#;

/// OpenIPMI's simulator as the BMC of a machine: nobody here wrote it. Ends when it is dropped.
struct Bmc(Child);

impl Bmc {
    fn start(cabling: &Cabling, machine: &Machine) -> anyhow::Result<Self> {
        let directory = machine.directory().join("ipmi");
        fs::create_dir_all(directory.join("state"))?;
        let lan = directory.join("lan");
        fs::write(&lan, LAN.replace("ADDRESS", &ADDRESS.to_string()).replace("MAC", &MAC.to_string()))?;
        fs::set_permissions(&lan, fs::Permissions::from_mode(0o755))?;
        let (lan, port) = (lan.display(), machine.ipmi_port());
        let config = format!(
            "name \"metal\"\nset_working_mc 0x20\n  startlan 1\n    addr {IPMI} {port}\n    priv_limit admin\n    \
             lan_config_program \"{lan} eth0\"\n  endlan\n  serial 15 {IPMI} {port} codec VM\n"
        );
        fs::write(directory.join("lan.conf"), config)?;
        let commands = "mc_setbmc 0x20\nmc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02\nmc_enable 0x20\n";
        fs::write(directory.join("bmc.emu"), commands)?;
        let log = File::create(directory.join("log"))?;
        let mut command = cabling.command(Place::Lan, "ipmi_sim");
        command.args(["-n", "-c"]).arg(directory.join("lan.conf")).arg("-f").arg(directory.join("bmc.emu"));
        command.arg("-s").arg(directory.join("state"));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(Self(command.spawn().context("starting ipmi_sim: is Debian's package openipmi installed?")?))
    }
}

impl Drop for Bmc {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
