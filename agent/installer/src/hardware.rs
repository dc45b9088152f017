//! What is in this machine in detail, beside what [`inventory`](crate::inventory) tells of what it
//! is; its BMC is asked by [`bmc`](crate::bmc). Reading never fails as a whole: what cannot be read is left empty. Disks are asked side by
//! side, each with a bound on its time.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use rackhand_common::{
    bmc::baseline::DATABASES,
    hardware::{Drive, Ecc, Hardware, MAX_ITEMS, Port},
    image::Digest,
    machine::{Disk, Inventory, Nic},
};

use crate::{admin::Passthrough, drive_health, ethtool::Ethtool, pci, smbios};

/// Looks at everything that the inventory names, now.
pub fn take(inventory: &Inventory) -> Hardware {
    let sys = Path::new("/sys");
    let table = fs::read(sys.join("firmware/dmi/tables/DMI")).unwrap_or_default();
    let told = smbios::parse(&table);
    let ethtool = Ethtool::open().ok();
    Hardware {
        devices: pci::devices(sys, &told.slots),
        ports: inventory.nics.iter().map(|nic| port(sys, nic, ethtool.as_ref())).collect(),
        drives: drives(sys, &inventory.disks),
        ecc: ecc(sys),
        tpm: tpm(sys).or(told.tpm),
        secure_boot: secure_boot(sys),
        secure_boot_keys: secure_boot_keys(sys),
        bmc: None,
        board: told.board,
        bios: told.bios,
        chassis: told.chassis,
        processors: told.processors,
        memory: told.memory,
        slots: told.slots,
    }
    .sound()
}

fn port(sys: &Path, nic: &Nic, ethtool: Option<&Ethtool>) -> Port {
    let card = sys.join("class/net").join(&nic.name);
    let device = fs::canonicalize(card.join("device")).unwrap_or_default();
    // A virtio card's device is on a bus of its own, below the PCI device.
    let address = device.ancestors().find(|place| place.join("vendor").exists() && place.join("class").exists());
    let address = address.and_then(|place| Some(place.file_name()?.to_string_lossy().into_owned()));
    Port {
        name: nic.name.clone(),
        permanent: ethtool.and_then(|ethtool| ethtool.permanent(&nic.name)),
        link: nic.link,
        // Without a link it is -1, or an error; a virtual one may not tell.
        speed: text(&card.join("speed")).parse().ok().filter(|speed| *speed > 0),
        firmware: ethtool.and_then(|ethtool| ethtool.firmware(&nic.name)).unwrap_or_default(),
        address: address.unwrap_or_default(),
        optics: ethtool.and_then(|ethtool| ethtool.optics(&nic.name)),
        crc_errors: text(&card.join("statistics/rx_crc_errors")).parse().unwrap_or(0),
    }
}

fn drives(sys: &Path, disks: &[Disk]) -> Vec<Drive> {
    thread::scope(|scope| {
        let asked: Vec<_> =
            disks.iter().take(MAX_ITEMS).map(|disk| scope.spawn(move || drive(sys, &disk.name))).collect();
        asked.into_iter().filter_map(|thread| thread.join().ok()).collect()
    })
}

fn drive(sys: &Path, name: &str) -> Drive {
    let block = sys.join("block").join(name);
    let revisions = [text(&block.join("device/firmware_rev")), text(&block.join("device/rev"))];
    let file = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(Path::new("/dev").join(name));
    let admin = file.ok().and_then(|file| Passthrough::find(name, Arc::new(file)));
    Drive {
        name: name.to_owned(),
        firmware: revisions.into_iter().find(|revision| !revision.is_empty()).unwrap_or_default(),
        physical_sector: text(&block.join("queue/physical_block_size")).parse().unwrap_or(0),
        health: admin.and_then(|admin| drive_health::ask(&admin)),
    }
}

/// What the kernel counts of each memory module (EDAC), where it has a driver for the controller.
fn ecc(sys: &Path) -> Vec<Ecc> {
    let controllers = names(&sys.join("devices/system/edac/mc"), "mc");
    let modules = controllers.iter().flat_map(|place| names(place, "dimm"));
    let counted = modules.map(|place| {
        let count = |name: &str| text(&place.join(name)).parse().unwrap_or(0);
        let label = text(&place.join("dimm_label"));
        Ecc { label, corrected: count("dimm_ce_count"), uncorrected: count("dimm_ue_count") }
    });
    counted.take(MAX_ITEMS).collect()
}

/// The kernel's word for it, when it has a driver.
fn tpm(sys: &Path) -> Option<String> {
    match text(&sys.join("class/tpm/tpm0/tpm_version_major")).as_str() {
        "1" => Some("1.2".into()),
        "2" => Some("2.0".into()),
        _ => None,
    }
}

/// The global variable SecureBoot (UEFI 2.10 §3.3): four bytes of attributes, then 0 or 1.
fn secure_boot(sys: &Path) -> Option<bool> {
    let variable = "firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";
    fs::read(sys.join(variable)).ok()?.get(4).map(|value| *value == 1)
}

/// The key databases (UEFI 2.10 §32.3): what is in each after its four bytes of attributes, by its digest. One that is
/// not there is empty, where there are any variables at all.
fn secure_boot_keys(sys: &Path) -> BTreeMap<String, String> {
    const GLOBAL: &str = "8be4df61-93ca-11d2-aa0d-00e098032b8c";
    const SECURITY: &str = "d719b2cb-3d3a-4596-a3bc-dad00e67656f";
    let variables = sys.join("firmware/efi/efivars");
    let read = |name: &str| {
        let vendor = if matches!(name, "PK" | "KEK") { GLOBAL } else { SECURITY };
        let contents = match fs::read(variables.join(format!("{name}-{vendor}"))) {
            Ok(contents) => contents,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(_) => return None,
        };
        Some((name.to_owned(), Digest::of(contents.get(4..).unwrap_or_default()).to_string()))
    };
    // Mounted, and with the variable that every UEFI with Secure Boot has.
    match secure_boot(sys) {
        Some(_) => DATABASES.into_iter().filter_map(read).collect(),
        None => BTreeMap::new(),
    }
}

/// Entries that are called so and numbered, by their numbers.
fn names(directory: &Path, stem: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let numbered = entries.filter_map(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let number: u32 = name.strip_prefix(stem)?.parse().ok()?;
        Some((number, entry.path()))
    });
    let mut found: Vec<_> = numbered.collect();
    found.sort();
    found.into_iter().map(|(_, path)| path).collect()
}

fn text(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rackhand_common::machine::Mac;

    use super::*;

    #[test]
    fn the_kernels_counters_and_words_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let sys = directory.path();
        let write = |path: &str, bytes: &[u8]| {
            let path = sys.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        };
        for (number, corrected) in [(0, "0\n"), (10, "7\n"), (2, "1\n")] {
            let place = format!("devices/system/edac/mc/mc0/dimm{number}");
            write(&format!("{place}/dimm_label"), format!("CPU#0 Channel#{number}\n").as_bytes());
            write(&format!("{place}/dimm_ce_count"), corrected.as_bytes());
        }
        write("class/tpm/tpm0/tpm_version_major", b"2\n");
        write("firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c", &[6, 0, 0, 0, 1]);
        write("firmware/efi/efivars/db-d719b2cb-3d3a-4596-a3bc-dad00e67656f", &[6, 0, 0, 0, 7, 7]);
        let keys = secure_boot_keys(sys);
        assert_eq!(keys.keys().collect::<Vec<_>>(), ["KEK", "PK", "db", "dbx"]);
        assert_eq!((&keys["db"], &keys["dbx"]), (&Digest::of(&[7, 7]).to_string(), &Digest::of(&[]).to_string()));
        let counted = ecc(sys);
        let counts: Vec<_> = counted.iter().map(|ecc| (&*ecc.label, ecc.corrected)).collect();
        assert_eq!(counts, [("CPU#0 Channel#0", 0), ("CPU#0 Channel#2", 1), ("CPU#0 Channel#10", 7)]);
        assert_eq!((tpm(sys).as_deref(), secure_boot(sys)), (Some("2.0"), Some(true)));

        write("devices/pci0000:00/0000:00:03.0/vendor", b"0x1af4");
        write("devices/pci0000:00/0000:00:03.0/class", b"0x020000");
        write("devices/pci0000:00/0000:00:03.0/virtio0/net/eth0/speed", b"-1\n");
        write("devices/pci0000:00/0000:00:03.0/virtio0/net/eth0/statistics/rx_crc_errors", b"5\n");
        let card = sys.join("devices/pci0000:00/0000:00:03.0/virtio0/net/eth0");
        symlink(sys.join("devices/pci0000:00/0000:00:03.0/virtio0"), card.join("device")).unwrap();
        fs::create_dir_all(sys.join("class/net")).unwrap();
        symlink(&card, sys.join("class/net/eth0")).unwrap();
        let nic = Nic { name: "eth0".into(), mac: Mac([0; 6]), driver: "virtio_net".into(), link: false };
        let port = port(sys, &nic, None);
        assert_eq!((&*port.address, port.speed, port.crc_errors), ("0000:00:03.0", None, 5));
    }

    #[test]
    fn a_machine_that_tells_nothing_has_no_details() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(ecc(directory.path()), []);
        assert_eq!((tpm(directory.path()), secure_boot(directory.path())), (None, None));
        assert_eq!(pci::devices(directory.path(), &[]), []);
    }
}
