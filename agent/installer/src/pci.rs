//! PCI devices as the kernel shows them under `/sys/bus/pci/devices`, each with the slot that it is
//! in by the addresses of SMBIOS's expansion slots.
//!
//! A slot's address is that of the device in it with some makers, and that of the port it hangs off
//! with others: the nearest of both, from the device towards the root, is its slot.

use std::{fs, path::Path};

use rackhand_common::hardware::{Device, Link, MAX_ITEMS, Slot};

/// Devices that do work, by address. `sys` is where sysfs is mounted.
pub fn devices(sys: &Path, slots: &[Slot]) -> Vec<Device> {
    let entries = fs::read_dir(sys.join("bus/pci/devices")).into_iter().flatten().flatten();
    let mut addresses: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    addresses.sort();
    addresses.into_iter().filter_map(|address| device(sys, address, slots)).take(MAX_ITEMS).collect()
}

fn device(sys: &Path, address: String, slots: &[Slot]) -> Option<Device> {
    let place = sys.join("bus/pci/devices").join(&address);
    let read = |name: &str| fs::read_to_string(place.join(name)).unwrap_or_default();
    let number = |name: &str| u32::from_str_radix(read(name).trim().strip_prefix("0x")?, 16).ok();
    let class = number("class")?;
    if !works(class) {
        return None;
    }
    // The way from the root to it: its ports, and itself.
    let way = fs::canonicalize(&place).unwrap_or(place.clone());
    let ports: Vec<_> =
        way.iter().map(|part| part.to_string_lossy().into_owned()).filter(|part| is_address(part)).collect();
    let driver = fs::read_link(place.join("driver")).ok();
    let driver = driver.and_then(|driver| Some(driver.file_name()?.to_string_lossy().into_owned()));
    let port = way.parent().filter(|parent| parent.file_name().is_some_and(|name| is_address(&name.to_string_lossy())));
    let errors = |file: &str, total: &str| {
        let text = read(file);
        let line = text.lines().find_map(|line| line.strip_prefix(total));
        line.and_then(|count| count.trim().parse::<u64>().ok()).unwrap_or(0)
    };
    let uncorrected = [("aer_dev_fatal", "TOTAL_ERR_FATAL"), ("aer_dev_nonfatal", "TOTAL_ERR_NONFATAL")];
    Some(Device {
        vendor: number("vendor")? as u16,
        device: number("device")? as u16,
        class,
        driver: driver.unwrap_or_default(),
        slot: slot(&ports, slots),
        link: link(&read("current_link_speed"), &read("current_link_width")),
        most: most(
            link(&read("max_link_speed"), &read("max_link_width")),
            port.and_then(|port| {
                let read = |name: &str| fs::read_to_string(port.join(name)).unwrap_or_default();
                link(&read("max_link_speed"), &read("max_link_width"))
            }),
        ),
        corrected: errors("aer_dev_correctable", "TOTAL_ERR_COR"),
        uncorrected: uncorrected.iter().map(|(file, total)| errors(file, total)).fold(0, u64::saturating_add),
        address,
    })
}

/// Storage, network, display, and accelerators (PCI Code and ID Assignment §1).
fn works(class: u32) -> bool {
    matches!(class >> 16, 0x01 | 0x02 | 0x03 | 0x12)
}

/// Whether this is a device's place on a bus: `0000:3b:00.0`.
fn is_address(text: &str) -> bool {
    let bytes = text.as_bytes();
    text.len() >= 12 && bytes[bytes.len() - 2] == b'.' && text.matches(':').count() == 2 && !text.starts_with("pci")
}

/// `8.0 GT/s PCIe` and `16`. A device that has no link says 0 or 255, or nothing.
fn link(speed: &str, lanes: &str) -> Option<Link> {
    let lanes: u32 = lanes.trim().parse().ok().filter(|lanes| (1..=32).contains(lanes))?;
    let (whole, part) = speed.split_whitespace().next()?.split_once('.')?;
    let (whole, part): (u32, u32) = (whole.parse().ok()?, part.get(..1)?.parse().ok()?);
    Some(Link { speed: whole.checked_mul(1000)?.checked_add(part * 100)?, lanes })
}

/// What both ends can do.
fn most(device: Option<Link>, port: Option<Link>) -> Option<Link> {
    match (device, port) {
        (Some(device), Some(port)) => {
            Some(Link { speed: device.speed.min(port.speed), lanes: device.lanes.min(port.lanes) })
        }
        (device, _) => device,
    }
}

/// The slot of a device by the way to it from the root. The device in a slot may have several
/// functions; of ports each function is one of its own.
fn slot(way: &[String], slots: &[Slot]) -> Option<String> {
    let found = |address: &str| slots.iter().find(|slot| slot.address.as_deref() == Some(address));
    let device = way.last()?;
    let whole = |address: &str| address.split('.').next().map(str::to_owned);
    let same = |slot: &&Slot| slot.address.as_deref().and_then(whole) == whole(device);
    // Devices of the board share bus 0 with ports, and there a function is one of its own too.
    let own = slots.iter().find(same).filter(|_| way.len() > 1);
    let ports = || way.iter().rev().find_map(|address| found(address));
    own.or_else(ports).map(|slot| slot.name.clone())
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::symlink, path::PathBuf};

    use proptest::prelude::*;

    use super::*;

    /// A sysfs with these devices: their way from the root, and their files.
    fn sysfs(devices: &[(&str, &[(&str, &str)])]) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let sys = directory.path().to_owned();
        fs::create_dir_all(sys.join("bus/pci/devices")).unwrap();
        fs::create_dir_all(sys.join("bus/pci/drivers/mlx5_core")).unwrap();
        for (way, files) in devices {
            let place = sys.join("devices/pci0000:3a").join(way);
            fs::create_dir_all(&place).unwrap();
            for (name, text) in *files {
                fs::write(place.join(name), text).unwrap();
            }
            let address = place.file_name().unwrap();
            symlink(&place, sys.join("bus/pci/devices").join(address)).unwrap();
        }
        (directory, sys)
    }

    #[test]
    fn a_card_is_told_with_its_slot_its_link_and_what_that_could_be() {
        let card: &[(&str, &str)] = &[
            ("vendor", "0x15b3\n"),
            ("device", "0x1017\n"),
            ("class", "0x020000\n"),
            ("current_link_speed", "8.0 GT/s PCIe\n"),
            ("current_link_width", "8\n"),
            ("max_link_speed", "16.0 GT/s PCIe\n"),
            ("max_link_width", "16\n"),
            ("aer_dev_correctable", "RxErr 3\nBadTLP 1\nTOTAL_ERR_COR 4\n"),
            ("aer_dev_fatal", "TOTAL_ERR_FATAL 1\n"),
        ];
        let port: &[(&str, &str)] =
            &[("class", "0x060400\n"), ("max_link_speed", "8.0 GT/s PCIe\n"), ("max_link_width", "16\n")];
        let (_kept, sys) = sysfs(&[("0000:3a:00.0", port), ("0000:3a:00.0/0000:3b:00.1", card)]);
        symlink(sys.join("bus/pci/drivers/mlx5_core"), sys.join("devices/pci0000:3a/0000:3a:00.0/0000:3b:00.1/driver"))
            .unwrap();
        let slots = [Slot { name: "PCIE2".into(), address: Some("0000:3b:00.0".into()), ..Slot::default() }];
        let found = devices(&sys, &slots);
        let [device] = &found[..] else { panic!("the port does no work, the card does: {found:?}") };
        assert_eq!((device.vendor, device.device, &*device.driver), (0x15b3, 0x1017, "mlx5_core"));
        assert_eq!(device.slot.as_deref(), Some("PCIE2"));
        assert_eq!(device.link, Some(Link { speed: 8000, lanes: 8 }));
        assert_eq!(device.most, Some(Link { speed: 8000, lanes: 16 }));
        assert_eq!((device.corrected, device.uncorrected), (4, 1));
    }

    #[test]
    fn a_slot_may_have_the_address_of_its_port() {
        let slot_of = |way: &[&str], address: &str| {
            let slots = [Slot { name: "S1".into(), address: Some(address.into()), ..Slot::default() }];
            slot(&way.iter().map(|part| (*part).to_owned()).collect::<Vec<_>>(), &slots).is_some()
        };
        assert!(slot_of(&["0000:00:1c.4", "0000:05:00.0"], "0000:00:1c.4"));
        assert!(!slot_of(&["0000:00:1c.4", "0000:05:00.0"], "0000:00:1c.0"));
        assert!(slot_of(&["0000:00:1c.4", "0000:05:00.3"], "0000:05:00.0"));
        // Behind a bridge on the card.
        assert!(slot_of(&["0000:00:1c.4", "0000:05:00.0", "0000:06:08.0"], "0000:05:00.0"));
        assert!(!slot_of(&["0000:00:1f.2"], "0000:00:1f.0"));
        assert!(!slot_of(&[], "0000:00:1f.0"));
    }

    #[test]
    fn a_device_without_a_link_has_none() {
        assert_eq!(link("Unknown\n", "0\n"), None);
        assert_eq!(link("2.5 GT/s PCIe", "255"), None);
        assert_eq!(link("", ""), None);
        assert_eq!(link("2.5 GT/s PCIe", "1"), Some(Link { speed: 2500, lanes: 1 }));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_text_is_a_link_or_none(speed in ".{0,20}", lanes in ".{0,5}") {
            let _ = link(&speed, &lanes);
        }
    }
}
