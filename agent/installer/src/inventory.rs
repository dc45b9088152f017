//! What this machine is made of, read from the kernel's files. Reading never fails as a
//! whole: what cannot be read is left empty.

use std::{fs, path::Path};

use rackhand_common::machine::{Content, Cpu, Disk, Firmware, Inventory, Mac, Nic, System};

use crate::disk::{BlockDevice, Buffer};

/// Looks at everything, now.
pub fn take() -> Inventory {
    Inventory {
        firmware: firmware(),
        system: system(),
        cpu: cpu(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
        memory: memory(&fs::read_to_string("/proc/meminfo").unwrap_or_default()),
        nics: cards(),
        disks: disks(),
    }
}

/// How the machine was booted.
pub fn firmware() -> Firmware {
    if Path::new("/sys/firmware/efi").exists() { Firmware::Uefi } else { Firmware::Bios }
}

/// SMBIOS type 1.
pub fn system() -> System {
    let field = |name: &str| text(&Path::new("/sys/class/dmi/id").join(name));
    let uuid = field("product_uuid").parse::<uuid::Uuid>().ok();
    System {
        vendor: field("sys_vendor"),
        product: field("product_name"),
        serial: field("product_serial"),
        uuid: uuid.filter(|uuid| !uuid.is_nil() && !uuid.is_max()),
    }
}

/// Network cards, by name.
pub fn cards() -> Vec<Nic> {
    let mut cards: Vec<_> = names("/sys/class/net")
        .into_iter()
        .filter_map(|name| {
            let card = Path::new("/sys/class/net").join(&name);
            // Only hardware has a device behind it.
            let driver = fs::read_link(card.join("device/driver")).ok()?;
            let mac = text(&card.join("address")).parse::<Mac>().ok()?;
            let link = text(&card.join("carrier")) == "1";
            let driver = driver.file_name()?.to_string_lossy().into_owned();
            Some(Nic { name, mac, driver, link })
        })
        .collect();
    cards.sort_by(|a, b| a.name.cmp(&b.name));
    cards
}

/// Whole disks that stay, by name.
pub fn disks() -> Vec<Disk> {
    let mut disks: Vec<_> = names("/sys/block").into_iter().filter_map(disk).collect();
    disks.sort_by(|a, b| a.name.cmp(&b.name));
    disks
}

/// Whether the kernel has found any disk yet.
pub fn any_disk() -> bool {
    names("/sys/block").iter().any(|name| Path::new("/sys/block").join(name).join("device").exists())
}

fn disk(name: String) -> Option<Disk> {
    let block = Path::new("/sys/block").join(&name);
    let field = |name: &str| text(&block.join(name));
    let removable = field("removable") == "1";
    let size = field("size").parse::<u64>().ok()? * 512;
    // Loop devices, RAM disks and the like have no device behind them; CD drives are type 5.
    if !block.join("device").exists() || removable || size == 0 || field("device/type") == "5" {
        return None;
    }
    let serial = [field("serial"), field("device/serial"), vital_serial(&block)];
    let wwn = [field("wwid"), field("device/wwid")].into_iter().find(|wwn| is_wwn(wwn));
    let content = BlockDevice::open(&name).map_or_else(
        |error| Content::Data(format!("cannot be read: {error}")),
        |disk| look(&disk).unwrap_or_else(|error| Content::Data(format!("cannot be read: {error}"))),
    );
    Some(Disk {
        model: field("device/model"),
        serial: serial.into_iter().find(|serial| !serial.is_empty()).unwrap_or_default(),
        wwn,
        size,
        sector: field("queue/logical_block_size").parse().ok()?,
        rotational: field("queue/rotational") == "1",
        content,
        name,
    })
}

/// Only names given by a registry count; vendors' own (`t10.`) repeat model and serial.
fn is_wwn(text: &str) -> bool {
    let name = ["naa.", "eui.", "uuid."].iter().find_map(|kind| text.strip_prefix(kind));
    name.is_some_and(|name| name.bytes().any(|byte| byte.is_ascii_hexdigit() && byte != b'0'))
}

/// The unit serial number page of a SCSI disk (SPC-4 §7.8.18).
fn vital_serial(block: &Path) -> String {
    let page = fs::read(block.join("device/vpd_pg80")).unwrap_or_default();
    String::from_utf8_lossy(page.get(4..).unwrap_or_default()).trim_matches(['\0', ' ']).to_owned()
}

/// How much of a disk's start and end is looked at.
const SAMPLE: u64 = 1 << 20;

/// What a disk holds, as far as its first and last MiB and fifteen places between tell.
pub fn look(disk: &dyn crate::disk::Disk) -> std::io::Result<Content> {
    let sample = SAMPLE.min(disk.size());
    let mut head = Buffer::zeroed(sample as usize);
    disk.read_at(0, &mut head)?;
    if let Ok(table) = crate::gpt::Table::read(&head, disk.sector()) {
        let count = table.partitions().count();
        return Ok(Content::Data(format!("GPT, {count} partition{}", if count == 1 { "" } else { "s" })));
    }
    if head.get(510..512) == Some(&[0x55, 0xaa]) {
        return Ok(Content::Data("MBR or boot sector".to_owned()));
    }
    if let Some(name) = signature(&head) {
        return Ok(Content::Data(name.to_owned()));
    }
    let sector = u64::from(disk.sector());
    let places = (1..=16).map(|part| (disk.size() - sample) / 16 * part / sector * sector);
    let mut bytes = Buffer::zeroed(sample as usize);
    let mut data = head.iter().any(|byte| *byte != 0);
    for at in places {
        if data {
            break;
        }
        // Between the ends a little is enough; the end itself may hold RAID metadata.
        bytes.set_len(if at + sample + sector > disk.size() { sample } else { 4096.min(sample) } as usize);
        disk.read_at(at, &mut bytes)?;
        data = bytes.iter().any(|byte| *byte != 0);
    }
    Ok(if data { Content::Data("data without a partition table".to_owned()) } else { Content::Blank })
}

fn signature(head: &[u8]) -> Option<&'static str> {
    let known: [(usize, &[u8], &str); 6] = [
        (0x438, &[0x53, 0xef], "ext file system"),
        (0, b"XFSB", "XFS file system"),
        (0x10040, b"_BHRfS_M", "Btrfs file system"),
        (0x218, b"LVM2 001", "LVM physical volume"),
        (0, b"LUKS\xba\xbe", "LUKS volume"),
        (0x1000, &[0xfc, 0x4e, 0x2b, 0xa9], "Linux RAID member"),
    ];
    known.into_iter().find(|(at, magic, _)| head.get(*at..at + magic.len()) == Some(*magic)).map(|(_, _, name)| name)
}

fn cpu(cpuinfo: &str) -> Cpu {
    let values = |key: &'static str| {
        cpuinfo.lines().filter_map(move |line| {
            let (name, value) = line.split_once(':')?;
            (name.trim() == key).then_some(value.trim())
        })
    };
    let model = values("model name").next().unwrap_or_default().to_owned();
    Cpu { model, threads: values("processor").count() as u32 }
}

fn memory(meminfo: &str) -> u64 {
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB"));
    total.and_then(|kib| kib.trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}

fn names(directory: &str) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn text(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::disk::FileDisk;

    #[test]
    fn the_kernels_files_are_understood() {
        let cpu = cpu("processor\t: 0\nmodel name\t: QEMU TCG CPU\n\nprocessor\t: 1\nmodel name\t: QEMU TCG CPU\n");
        assert_eq!((cpu.model.as_str(), cpu.threads), ("QEMU TCG CPU", 2));
        assert_eq!(memory("MemTotal:        1000224 kB\nMemFree: 1 kB\n"), 1_000_224 * 1024);
        assert!(is_wwn("naa.5000c500a1b2c3d4") && !is_wwn("t10.ATA QEMU") && !is_wwn("eui.0000000000000000"));
    }

    #[test]
    fn what_a_disk_holds_is_told_in_words() {
        let mut told = String::new();
        for (name, at, bytes) in [
            ("empty", 0, &[][..]),
            ("boot sector", 510, &[0x55, 0xaa]),
            ("ext4", 0x438, &[0x53, 0xef]),
            ("end", (8 << 20) - 1, &[1]),
            ("first MiB", 700_000, &[1]),
        ] {
            let file = tempfile::NamedTempFile::new().unwrap();
            let mut disk = vec![0; 8 << 20];
            disk[at..at + bytes.len()].copy_from_slice(bytes);
            fs::write(file.path(), disk).unwrap();
            told += &format!("{name}: {:?}\n", look(&FileDisk::open(file.path()).unwrap()).unwrap());
        }
        expect![[r#"
            empty: Blank
            boot sector: Data("MBR or boot sector")
            ext4: Data("ext file system")
            end: Data("data without a partition table")
            first MiB: Data("data without a partition table")
        "#]]
        .assert_eq(&told);
    }
}
