//! `rackhand machine adopt-running`: machines that run systems which were not installed from here.

use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use clap::Args;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{
    client::Client,
    machine::page,
    output::{Output, print, read},
    views::Machine,
};

/// What a running machine tells of itself by, as JSON.
pub(crate) const SCRIPT: &str = include_str!("../../../firmware-scripts/facts/facts.sh");

pub(crate) const EXAMPLES: &str = "  rackhand machine facts-script | ssh root@web-1 sh > web-1.json
  rackhand machine adopt-running web-1 --rack r1 --facts web-1.json --project acme:shop --dry-run
  rackhand machine adopt-running web-1 --rack r1 --bmc 10.20.0.5 --mac 52:54:00:12:34:56
  rackhand machine adopt-running web-1 --rack r1 --serial 7G00001 --mac 52:54:00:12:34:56 --holds 198.51.100.7

Nothing is switched, written or started. The machine is active from then on, boots its own disk when it asks the
network, and is erased by nothing but a reinstall or a release that is asked for afterwards.

What is said here counts before what the facts say. Addresses among the facts are claimed where a pool has them;
each of --holds has to be in one.";

#[derive(Args)]
pub(crate) struct RunningMachine {
    /// The name it gets
    name: String,
    /// Name or id of the rack it stands in
    #[arg(long)]
    rack: String,
    /// File that its facts are in, as facts-script has it tell them
    #[arg(long, value_name = "FILE")]
    facts: Option<PathBuf>,
    /// Address of its BMC, one of those that `rackhand bmc found` lists
    #[arg(long, value_name = "ADDRESS")]
    bmc: Option<String>,
    /// Serial number of its mainboard
    #[arg(long)]
    serial: Option<String>,
    /// UUID of its mainboard
    #[arg(long)]
    uuid: Option<String>,
    /// A network card of it, the one that it boots from first; may be repeated
    #[arg(long = "mac", value_name = "MAC")]
    macs: Vec<String>,
    /// Give it to this project (name, ORGANISATION:NAME or id); otherwise it is in use and no project's
    #[arg(long)]
    project: Option<String>,
    /// Its address on the provisioning network; otherwise one that it holds there, or a free one
    #[arg(long, value_name = "ADDRESS")]
    address: Option<String>,
    /// An address or block that it has, which is claimed for it; may be repeated
    #[arg(long, value_name = "PREFIX")]
    holds: Vec<String>,
}

/// What came of it.
#[derive(Deserialize)]
struct Adopted {
    machine: Machine,
    was_known: bool,
    claimed: Vec<String>,
    unclaimed: Vec<String>,
}

pub(crate) async fn run(client: &Client, running: RunningMachine, output: Output) -> anyhow::Result<String> {
    let facts = running.facts.as_deref().map(read).transpose()?;
    let path = format!("/v1/racks/{}/running-machines", running.rack);
    let value = client.post(&path, body(running, facts.as_deref())?).await?;
    print(output, value, |adopted: Adopted| told(&adopted))
}

/// What the controller is asked: the facts, and in their place what was said.
fn body(running: RunningMachine, facts: Option<&str>) -> anyhow::Result<Value> {
    let mut body = match facts {
        Some(facts) => serde_json::from_str::<Map<String, Value>>(facts).context("the facts are no JSON object")?,
        None => Map::new(),
    };
    for field in ["name", "project"] {
        ensure!(!body.contains_key(field), "the facts say `{field}`, which is not theirs to say");
    }
    let RunningMachine { name, rack: _, facts: _, bmc, serial, uuid, mut macs, project, address, holds } = running;
    // Those that the facts have come behind those that were said.
    let known = body.get("macs").and_then(Value::as_array).cloned().unwrap_or_default();
    let known = known.iter().filter_map(Value::as_str);
    let more: Vec<_> = known.filter(|mac| !macs.iter().any(|said| said.eq_ignore_ascii_case(mac))).collect();
    macs.extend(more.into_iter().map(str::to_owned));
    body.insert("name".to_owned(), json!(name));
    body.insert("macs".to_owned(), json!(macs));
    body.insert("holds".to_owned(), json!(holds));
    let said = [("bmc", bmc), ("serial", serial), ("uuid", uuid), ("project", project), ("address", address)];
    for (field, value) in said {
        if let Some(value) = value {
            body.insert(field.to_owned(), json!(value));
        }
    }
    Ok(Value::Object(body))
}

fn told(adopted: &Adopted) -> String {
    let mut lines = vec![page(&adopted.machine)];
    if adopted.was_known {
        lines.push("It had been adopted before.".to_owned());
    }
    if !adopted.claimed.is_empty() {
        lines.push(format!("Holds: {}", adopted.claimed.join(", ")));
    }
    if !adopted.unclaimed.is_empty() {
        lines.push(format!("Has, and no pool does: {}", adopted.unclaimed.join(", ")));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, path::Path, process::Command};

    use super::*;

    fn running() -> RunningMachine {
        RunningMachine {
            name: "web-1".into(),
            rack: "r1".into(),
            facts: None,
            bmc: None,
            serial: None,
            uuid: None,
            macs: vec!["52:54:00:00:00:02".into()],
            project: Some("acme:shop".into()),
            address: None,
            holds: vec!["198.51.100.7".into()],
        }
    }

    #[test]
    fn what_is_said_counts_before_what_the_facts_say() {
        let facts = json!({
            "serial": "S1", "macs": ["52:54:00:00:00:01", "52:54:00:00:00:02"], "seen": ["10.9.0.5"], "memory": 5,
        });
        let said = body(RunningMachine { serial: Some("S2".into()), ..running() }, Some(&facts.to_string())).unwrap();
        assert_eq!(
            said,
            json!({
                "name": "web-1", "serial": "S2", "macs": ["52:54:00:00:00:02", "52:54:00:00:00:01"], "memory": 5,
                "seen": ["10.9.0.5"], "holds": ["198.51.100.7"], "project": "acme:shop",
            })
        );
        for wrong in ["[]", "{", r#"{"project": "theirs"}"#] {
            assert!(body(running(), Some(wrong)).is_err(), "{wrong}");
        }
    }

    fn script(root: Option<&Path>) -> Value {
        let mut command = Command::new("sh");
        command.arg("-c").arg(SCRIPT);
        if let Some(root) = root {
            command.env("RACKHAND_FACTS_ROOT", root);
        }
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{text}");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    #[test]
    fn the_script_runs_on_this_machine() {
        let facts = script(None);
        let threads = fs::read_to_string("/proc/cpuinfo").unwrap().matches("\nprocessor\t").count() as u64 + 1;
        assert_eq!(facts["threads"], threads);
        assert!(facts["memory"].as_u64().unwrap() > 1 << 28, "{facts}");
        assert!(facts["macs"].is_array() && facts["disks"].is_array() && facts["seen"].is_array(), "{facts}");
    }

    #[test]
    fn the_script_tells_a_machines_parts_as_an_installer_names_them_and_whatever_they_are_called_it_is_json() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &[u8]| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("sys/class/dmi/id/product_serial", b" 7G00001 \n");
        write("sys/class/dmi/id/product_uuid", b"4c4c4544-0051-4810-8052-b4c04f4c4d32\n");
        write("sys/class/dmi/id/sys_vendor", b"Quote \" and \\ \xff`touch nothing` $(id)\n");
        write("sys/class/dmi/id/product_name", b"Default string\n");
        write("sys/firmware/efi/systab", b"");
        write("proc/cpuinfo", b"processor\t: 0\nmodel name\t: A CPU\nprocessor\t: 1\nmodel name\t: A CPU\n");
        write("proc/meminfo", b"MemTotal:        1048576 kB\n");
        write("devices/pci/eth0/x", b"");
        write("devices/usb1/eth9/x", b"");
        for (card, mac, device) in [
            ("eth0", "52:54:00:00:00:01", Some("pci/eth0")),
            ("eth1", "52:54:00:00:00:aa", Some("pci/eth0")),
            ("usb0", "52:54:00:00:00:03", Some("usb1/eth9")),
            ("br0", "52:54:00:00:00:04", None),
        ] {
            write(&format!("sys/class/net/{card}/address"), format!("{mac}\n").as_bytes());
            write(&format!("sys/class/net/{card}/type"), b"1\n");
            if let Some(device) = device {
                let link = root.path().join(format!("sys/class/net/{card}/device"));
                symlink(root.path().join("devices").join(device), link).unwrap();
            }
        }
        write("sys/class/net/eth1/bonding_slave/perm_hwaddr", b"52:54:00:00:00:02\n");
        write("sys/block/nvme0n1/size", b"2048\n");
        write("sys/block/nvme0n1/wwid", b"eui.0025388b710116a1\n");
        write("sys/block/nvme0n1/device/serial", b"S1    \n");
        write("sys/block/nvme0n1/device/model", b"A disk\n");
        write("sys/block/sda/size", b"4096\n");
        write("sys/block/sda/device/wwid", b"t10.ATA repeats itself\n");
        write("sys/block/sda/device/vpd_pg80", b"\0\x80\0\x08  ZA1234");
        write("sys/block/sdb/size", b"4096\n");
        write("sys/block/sdb/removable", b"1\n");
        write("sys/block/loop0/size", b"4096\n");
        let mut facts = script(Some(root.path()));
        // Those of this machine.
        facts.as_object_mut().unwrap().remove("seen");
        assert_eq!(
            facts,
            json!({
                "serial": "7G00001", "uuid": "4c4c4544-0051-4810-8052-b4c04f4c4d32",
                "vendor": "Quote \" and \\ `touch nothing` $(id)", "product": "Default string", "firmware": "uefi",
                "cpu": "A CPU", "threads": 2, "memory": 1u64 << 30,
                "macs": ["52:54:00:00:00:01", "52:54:00:00:00:02"],
                "disks": [
                    {"name": "nvme0n1", "model": "A disk", "serial": "S1", "wwn": "eui.0025388b710116a1", "size": 1 << 20},
                    {"name": "sda", "model": "", "serial": "ZA1234", "size": 2 << 20},
                ],
            })
        );
    }
}
