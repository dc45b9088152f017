//! The installed system of a simulated machine: starts from what is on the disk, and knows of
//! itself what its config drive says, as cloud-init with its sources NoCloud and ConfigDrive or
//! Ignition would.

use std::{collections::BTreeMap, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use rackhand_common::machine::{Firmware, Mac};
use serde_json::{Value, json};

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

/// The files of the config drive of this disk by their names, read by mtools.
pub fn config_drive(path: &Path, disk: &[u8]) -> Result<BTreeMap<String, String>> {
    let cidata = ["meta-data", "network-config", "user-data", "vendor-data"];
    let config_2 = ["meta_data.json", "network_data.json", "user_data", "vendor_data.json"];
    let known = [("cidata", "", cidata), ("config-2", "openstack/latest/", config_2)];
    let drives = partitions(disk);
    let (drive, directory, files) = known
        .into_iter()
        .find_map(|(name, directory, files)| {
            Some((drives.iter().find(|partition| partition.name == name)?, directory, files))
        })
        .context("no config drive")?;
    let place = format!("{}@@{}", path.display(), drive.first);
    let read = |name: &str| {
        let output = Command::new("mcopy")
            .args(["-i", &place, &format!("::{directory}{name}"), "-"])
            .output()
            .context("mcopy does not start: is mtools installed?")?;
        ensure!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        Ok((name.to_owned(), String::from_utf8(output.stdout)?))
    };
    files.into_iter().map(read).collect()
}

/// What stands in a file of JSON, which may be marked as a cloud-config.
fn parsed(text: &str) -> Result<Value> {
    let text = text.trim_start_matches("#cloud-config\n");
    serde_json::from_str(text).with_context(|| format!("this cannot be read: {text}"))
}

fn text(value: &Value) -> Result<String> {
    value.as_str().map(str::to_owned).with_context(|| format!("no text: {value}"))
}

/// A list, which is left out when it has nothing in it.
fn texts(values: &Value) -> Result<Vec<String>> {
    match values {
        Value::Null => Ok(Vec::new()),
        values => values.as_array().with_context(|| format!("no list: {values}"))?.iter().map(text).collect(),
    }
}

/// What stands in a `data:` URL.
fn data(url: &Value) -> Result<String> {
    let url = text(url)?;
    let mut bytes = url.strip_prefix("data:,").context("no data URL")?.bytes();
    let mut text = Vec::new();
    while let Some(byte) = bytes.next() {
        let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16)).context("half an escape");
        text.push(match byte {
            b'%' => u8::try_from(digit(bytes.next())? * 16 + digit(bytes.next())?)?,
            byte => byte,
        });
    }
    Ok(String::from_utf8(text)?)
}

impl System {
    /// The system on this disk, for a machine with this card. A kernel panic when it is not whole.
    pub fn start(path: &Path, disk: &[u8], mac: Mac) -> Result<Self> {
        let partitions = partitions(disk);
        let root = partitions.get(1).context("panic: no root file system")?;
        ensure!(has(disk, root.first, image::ROOT), "panic: the root file system's beginning is not there");
        ensure!(has(disk, root.end - 512, image::ROOT), "panic: the root file system's end is not there");
        let files = config_drive(path, disk)?;
        if !files.contains_key("user_data") {
            return Self::by_nocloud(&files, mac);
        }
        let (meta, network) = (parsed(&files["meta_data.json"])?, parsed(&files["network_data.json"])?);
        let card = &network["links"][0];
        let dhcp = json!({"id": "provisioning-ipv4", "type": "ipv4_dhcp", "link": card["id"]});
        ensure!(card["ethernet_mac_address"] == mac.to_string(), "no such card: {network}");
        ensure!(network["networks"][0] == dhcp, "no address: {network}");
        let of_openstack = Self {
            hostname: text(&meta["hostname"])?,
            instance: text(&meta["uuid"])?,
            ssh_keys: Vec::new(),
            user_data: files["user_data"].clone(),
            phone_home: String::new(),
        };
        match parsed(&of_openstack.user_data) {
            Ok(own) if own["ignition"].is_object() => of_openstack.by_ignition(&own, mac),
            _ => {
                let vendor = parsed(&text(&parsed(&files["vendor_data.json"])?["cloud-init"])?)?;
                let ssh_keys = texts(&vendor["ssh_authorized_keys"])?;
                Ok(Self { ssh_keys, phone_home: text(&vendor["phone_home"]["url"])?, ..of_openstack })
            }
        }
    }

    fn by_nocloud(files: &BTreeMap<String, String>, mac: Mac) -> Result<Self> {
        let (meta, network) = (parsed(&files["meta-data"])?, parsed(&files["network-config"])?);
        let vendor = parsed(&files["vendor-data"])?;
        let card = &network["ethernets"]["provisioning"];
        ensure!(card["match"]["macaddress"] == mac.to_string() && card["dhcp4"] == true, "no such card: {network}");
        Ok(Self {
            hostname: text(&meta["local-hostname"])?,
            instance: text(&meta["instance-id"])?,
            ssh_keys: texts(&vendor["ssh_authorized_keys"])?,
            user_data: files["user-data"].clone(),
            phone_home: text(&vendor["phone_home"]["url"])?,
        })
    }

    /// With what Ignition writes from its configuration, and the tenant's that is merged over it.
    fn by_ignition(self, own: &Value, mac: Mac) -> Result<Self> {
        let written = |path: &str| {
            let files = own["storage"]["files"].as_array().context("no files")?;
            let file = files.iter().find(|file| file["path"] == path).with_context(|| format!("no {path}"))?;
            data(&file["contents"]["source"])
        };
        let network = written("/etc/systemd/network/10-provisioning.network")?;
        ensure!(network == format!("[Match]\nMACAddress={mac}\n\n[Network]\nDHCP=ipv4\n"), "no such card: {network}");
        let curl = written("/etc/rackhand/phone-home.curl")?;
        let url = curl.lines().find_map(|line| line.strip_prefix("url = \"")?.strip_suffix('"'));
        let merged = own["ignition"]["config"]["merge"].as_array().context("nothing is merged")?;
        Ok(Self {
            hostname: written("/etc/hostname")?.trim_end().to_owned(),
            ssh_keys: texts(&own["passwd"]["users"][0]["sshAuthorizedKeys"])?,
            user_data: merged.iter().map(|own| data(&own["source"])).collect::<Result<_>>()?,
            phone_home: url.context("no home")?.to_owned(),
            instance: self.instance,
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
