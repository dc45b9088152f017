//! The installed system of a simulated machine: starts from what is on the disk, and knows of
//! itself what its config drive says, as cloud-init with its NoCloud source would.

use std::{collections::BTreeMap, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use rackhand_common::machine::{Firmware, Mac};
use serde_json::Value;

use crate::{
    dhcp::{self, Program},
    image,
    segment::Cable,
};

/// A partition, as a GUID partition table lists it (UEFI specification §5.3.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its name.
    pub name: String,
    /// Byte offset of its first byte.
    pub first: u64,
    /// Byte offset behind its last.
    pub end: u64,
}

/// The partitions on a disk; none when there is no table.
pub fn partitions(disk: &[u8]) -> Vec<Partition> {
    let u64_at =
        |at: usize| disk.get(at..at + 8).map_or(0, |bytes| u64::from_le_bytes(bytes.try_into().expect("eight")));
    if disk.get(512..520) != Some(b"EFI PART") {
        return Vec::new();
    }
    let entries = usize::try_from(u64_at(512 + 72) * 512).unwrap_or(usize::MAX);
    let Some(table) = entries.checked_add(128 * 128).and_then(|end| disk.get(entries..end)) else { return Vec::new() };
    let used = table.chunks_exact(128).enumerate().filter(|(_, entry)| entry[..16] != [0; 16]);
    used.map(|(number, entry)| {
        let units: Vec<u16> =
            entry[56..128].chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]])).collect();
        let name = String::from_utf16_lossy(&units).trim_end_matches('\0').to_owned();
        let at = entries + number * 128;
        Partition { name, first: u64_at(at + 32) * 512, end: (u64_at(at + 40) + 1) * 512 }
    })
    .collect()
}

/// Whether firmware finds something to start on the disk.
pub fn starts(disk: &[u8], firmware: Firmware) -> bool {
    match firmware {
        Firmware::Bios => disk[510..512] == [0x55, 0xaa] && disk[..440].iter().any(|byte| *byte != 0),
        Firmware::Uefi => partitions(disk).first().is_some_and(|esp| has(disk, esp.first, image::LOADER)),
    }
}

fn has(disk: &[u8], at: u64, bytes: &[u8]) -> bool {
    usize::try_from(at).ok().and_then(|at| disk.get(at..at + bytes.len())) == Some(bytes)
}

/// A system that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct System {
    /// Its name.
    pub hostname: String,
    /// Who may log in.
    pub ssh_keys: Vec<String>,
    /// cloud-init's instance, new with every installation.
    pub instance: String,
    /// The tenant's own settings.
    pub user_data: String,
    /// Where to call home.
    phone_home: String,
}

/// The files of the config drive of this disk, read by mtools.
pub fn config_drive(path: &Path, disk: &[u8]) -> Result<BTreeMap<String, String>> {
    let drive = partitions(disk).into_iter().find(|partition| partition.name == "cidata").context("no config drive")?;
    let place = format!("{}@@{}", path.display(), drive.first);
    let read = |name: &str| {
        let output = Command::new("mcopy")
            .args(["-i", &place, &format!("::{name}"), "-"])
            .output()
            .context("mcopy does not start: is mtools installed?")?;
        ensure!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        Ok((name.to_owned(), String::from_utf8(output.stdout)?))
    };
    ["meta-data", "network-config", "user-data", "vendor-data"].into_iter().map(read).collect()
}

impl System {
    /// The system on this disk, for a machine with this card. A kernel panic when it is not whole.
    pub fn start(path: &Path, disk: &[u8], mac: Mac) -> Result<Self> {
        let partitions = partitions(disk);
        let root = partitions.get(1).context("panic: no root file system")?;
        ensure!(has(disk, root.first, image::ROOT), "panic: the root file system's beginning is not there");
        ensure!(has(disk, root.end - 512, image::ROOT), "panic: the root file system's end is not there");
        let files = config_drive(path, disk)?;
        let json = |name: &str| {
            let text = files[name].trim_start_matches("#cloud-config\n");
            serde_json::from_str::<Value>(text).with_context(|| format!("{name} cannot be read: {text}"))
        };
        let (meta, network, vendor) = (json("meta-data")?, json("network-config")?, json("vendor-data")?);
        let card = &network["ethernets"]["provisioning"];
        ensure!(card["match"]["macaddress"] == mac.to_string() && card["dhcp4"] == true, "no such card: {network}");
        let text = |value: &Value| value.as_str().map(str::to_owned).with_context(|| format!("no text: {value}"));
        let keys = vendor["ssh_authorized_keys"].as_array().context("no list of keys")?;
        Ok(Self {
            hostname: text(&meta["local-hostname"])?,
            instance: text(&meta["instance-id"])?,
            ssh_keys: keys.iter().map(text).collect::<Result<_>>()?,
            user_data: files["user-data"].clone(),
            phone_home: text(&vendor["phone_home"]["url"])?,
        })
    }

    /// Gets its address and calls home, as often as cloud-init tries.
    pub async fn run(&self, cable: &dyn Cable, mac: Mac) -> Result<()> {
        let lease = dhcp::obtain(&mut *cable.card(mac), mac, Program::System(&self.hostname)).await;
        let client =
            reqwest::Client::builder().no_proxy().local_address(std::net::IpAddr::V4(lease.address)).build()?;
        let body = format!("instance_id={}&hostname={}", self.instance, self.hostname);
        let mut last = String::new();
        for _ in 0..10 {
            let call = client
                .post(&self.phone_home)
                .header("content-type", "application/x-www-form-urlencoded")
                .body(body.clone())
                .send()
                .await;
            match call.and_then(reqwest::Response::error_for_status) {
                Ok(_) => return Ok(()),
                Err(error) => last = error.to_string(),
            }
            tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        }
        anyhow::bail!("nobody at home: {last}")
    }
}
