//! What a machine is made of (DSP0268 Processor, Memory, Storage, Drive, SimpleStorage,
//! NetworkAdapter, EthernetInterface, PCIeDevice, Chassis, PowerSupply, Fan, SoftwareInventory).
//!
//! Invariant: an empty slot is a part of size 0, so that a module that has vanished shows.

use std::collections::HashSet;

use rackhand_common::machine::Mac;

use crate::{
    bmc::BmcError,
    told::{MAX_ITEMS, Part, PartKind, Parts},
};

use super::{
    Redfish,
    lan::mac,
    resource::{Node, Resource},
    tree::Service,
    walk::{Walk, keep},
};

/// The most ports of one card.
const MAX_PORTS: usize = 64;

/// What every part says in the same words.
pub fn part(kind: PartKind, node: Node<'_>) -> Option<Part> {
    let place = |name: &str| node.at(name).at("PartLocation").text("ServiceLabel");
    let slot = place("Location")
        .or_else(|| place("PhysicalLocation"))
        .or_else(|| node.first_text(&["DeviceLocator", "Socket", "Name", "FanName", "Id", "MemberId"]))?;
    Some(Part {
        kind,
        slot,
        vendor: node.text("Manufacturer"),
        model: node.first_text(&["Model", "ProcessorModel"]),
        part_number: node.first_text(&["PartNumber", "SparePartNumber"]),
        serial: node.text("SerialNumber"),
        firmware: node.first_text(&["FirmwareVersion", "Revision", "Version"]),
        size: node.is_absent().then_some(0),
        macs: Vec::new(),
        severity: node.severity(),
    })
}

/// A processor of any kind; graphics and the like are cards.
pub fn processor(node: Node<'_>) -> Option<Part> {
    let kind = match node.word("ProcessorType") {
        None | Some("CPU" | "Core") => PartKind::Processor,
        Some(_) => PartKind::Card,
    };
    let mut part = part(kind, node)?;
    // `Version` is that of the processor, as is its firmware's in `FirmwareVersion`.
    part.firmware = node.text("FirmwareVersion");
    part.size = part.size.or_else(|| node.count("TotalCores"));
    Some(part)
}

/// A memory module or its empty slot.
pub fn memory(node: Node<'_>) -> Option<Part> {
    let mut part = part(PartKind::Memory, node)?;
    part.size = part.size.or_else(|| node.count("CapacityMiB")?.checked_mul(1 << 20));
    Some(part)
}

/// A drive, or a device of SimpleStorage.
pub fn drive(node: Node<'_>) -> Option<Part> {
    let mut part = part(PartKind::Drive, node)?;
    let bytes = || node.number("CapacityBytes").filter(|bytes| *bytes >= 0.0).map(|bytes| bytes as u64);
    part.size = part.size.or_else(|| node.count("CapacityBytes").or_else(bytes));
    Some(part)
}

/// The Ethernet addresses that a port, a function or an interface says it has.
pub fn macs(node: Node<'_>) -> Vec<Mac> {
    let ethernet = node.at("Ethernet");
    let single = [
        node.word("PermanentMACAddress"),
        node.word("MACAddress"),
        ethernet.word("PermanentMACAddress"),
        ethernet.word("MACAddress"),
    ];
    let single = single.into_iter().flatten().next();
    let several = node.words("AssociatedNetworkAddresses").into_iter().chain(ethernet.words("AssociatedMACAddresses"));
    let mut macs: Vec<Mac> = single.into_iter().chain(several).filter_map(mac).collect();
    macs.sort_unstable();
    macs.dedup();
    macs.truncate(MAX_PORTS);
    macs
}

/// Interfaces that belong to no card that is known, as cards of their own; cards that are known as
/// network cards only once.
pub fn merged(mut parts: Vec<Part>, interfaces: Vec<Part>) -> Vec<Part> {
    let mut known: HashSet<Mac> = parts.iter().flat_map(|part| part.macs.iter().copied()).collect();
    for interface in interfaces {
        if !interface.macs.iter().any(|mac| known.contains(mac)) {
            known.extend(&interface.macs);
            keep(&mut parts, [interface]);
        }
    }
    let nics: HashSet<String> =
        parts.iter().filter(|part| part.kind == PartKind::Nic).filter_map(|part| part.serial.clone()).collect();
    parts.retain(|part| part.kind != PartKind::Card || !part.serial.as_ref().is_some_and(|s| nics.contains(s)));
    parts
}

impl Redfish {
    pub(super) async fn read_parts(&self) -> Result<Parts, BmcError> {
        let service = self.service().await?;
        let system = self.system().await?;
        let mut walk = self.walk(&service);
        let mut parts = of_system(&system, &mut walk).await?;
        for link in &service.chassis {
            if parts.len() >= MAX_ITEMS {
                walk.skip(link, "this and what follows: it has too many parts");
                break;
            }
            let Some(chassis) = walk.read(link).await? else { continue };
            keep(&mut parts, of_chassis(&chassis, &mut walk).await?);
        }
        keep(&mut parts, firmware(&service, &mut walk).await?);
        let interfaces = walk.members_at(system.node(), "EthernetInterfaces").await?;
        let interfaces = interfaces.iter().filter_map(|interface| {
            let part = part(PartKind::Nic, interface.node())?;
            let macs = macs(interface.node());
            (!macs.is_empty()).then_some(Part { macs, ..part })
        });
        let parts = merged(parts, interfaces.collect());
        Ok(Parts { parts, skipped: walk.skipped })
    }
}

async fn of_system(system: &Resource, walk: &mut Walk<'_>) -> Result<Vec<Part>, BmcError> {
    let node = system.node();
    let mut parts = Vec::new();
    for (name, parse) in [("Processors", processor as fn(Node<'_>) -> Option<Part>), ("Memory", memory)] {
        for resource in walk.members_at(node, name).await? {
            match parse(resource.node()) {
                Some(part) => keep(&mut parts, [part]),
                None => walk.skip(&resource.link, "a part without a name"),
            }
        }
    }
    let mut has_drives = false;
    for storage in walk.members_at(node, "Storage").await? {
        let inline = storage.node().items("StorageControllers");
        keep(&mut parts, inline.filter_map(|controller| part(PartKind::Card, controller)));
        let linked = walk.members_at(storage.node(), "Controllers").await?;
        keep(&mut parts, linked.iter().filter_map(|controller| part(PartKind::Card, controller.node())));
        let drives = walk.members_at(storage.node(), "Drives").await?;
        has_drives |= !drives.is_empty();
        keep(&mut parts, drives.iter().filter_map(|found| drive(found.node())));
    }
    if !has_drives {
        for storage in walk.members_at(node, "SimpleStorage").await? {
            keep(&mut parts, storage.node().items("Devices").filter_map(drive));
        }
    }
    let cards = walk.members_at(node, "PCIeDevices").await?;
    keep(&mut parts, cards.iter().filter_map(|card| part(PartKind::Card, card.node())));
    Ok(parts)
}

async fn of_chassis(chassis: &Resource, walk: &mut Walk<'_>) -> Result<Vec<Part>, BmcError> {
    let node = chassis.node();
    let mut parts: Vec<Part> = part(PartKind::Chassis, node).into_iter().collect();
    for adapter in walk.members_at(node, "NetworkAdapters").await? {
        let Some(mut nic) = part(PartKind::Nic, adapter.node()) else { continue };
        let controller = adapter.node().items("Controllers").next();
        nic.firmware = nic.firmware.or_else(|| controller.and_then(|found| found.text("FirmwarePackageVersion")));
        for ports in ["NetworkPorts", "Ports", "NetworkDeviceFunctions"] {
            if nic.macs.is_empty() {
                let found = walk.members_at(adapter.node(), ports).await?;
                nic.macs.extend(found.iter().flat_map(|port| macs(port.node())).take(MAX_PORTS));
            }
        }
        keep(&mut parts, [nic]);
    }
    let cards = walk.members_at(node, "PCIeDevices").await?;
    keep(&mut parts, cards.iter().filter_map(|card| part(PartKind::Card, card.node())));
    for drives in [walk.members_at(node, "Drives").await?, walk.members_at(node.at("Links"), "Drives").await?] {
        keep(&mut parts, drives.iter().filter_map(|found| drive(found.node())));
    }
    for (subsystem, collection, old, kind) in [
        ("PowerSubsystem", "PowerSupplies", "Power", PartKind::PowerSupply),
        ("ThermalSubsystem", "Fans", "Thermal", PartKind::Fan),
    ] {
        let mut found = Vec::new();
        if let Some(subsystem) = walk.follow(node, subsystem).await? {
            let members = walk.members_at(subsystem.node(), collection).await?;
            keep(&mut found, members.iter().filter_map(|member| part(kind, member.node())));
        }
        if found.is_empty()
            && let Some(old) = walk.follow(node, old).await?
        {
            keep(&mut found, old.node().items(collection).filter_map(|member| part(kind, member)));
        }
        keep(&mut parts, found);
    }
    Ok(parts)
}

async fn firmware(service: &Service, walk: &mut Walk<'_>) -> Result<Vec<Part>, BmcError> {
    let Some(updates) = walk.follow(service.root.node(), "UpdateService").await? else { return Ok(Vec::new()) };
    let found = walk.members_at(updates.node(), "FirmwareInventory").await?;
    Ok(found.iter().filter_map(|member| part(PartKind::Firmware, member.node())).collect())
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::{super::resource::tests::any_json, *};

    fn check(parse: fn(Node<'_>) -> Option<Part>, told: Value, expected: Expect) {
        let part = parse(Node(Some(&told))).map(|part| {
            let Part { kind, slot, vendor, model, part_number, serial, firmware, size, severity, .. } = part;
            let words =
                [vendor, model, part_number, serial, firmware].map(|word| word.unwrap_or_else(|| "-".to_owned()));
            format!("{kind:?} {slot}: {} size={size:?} {severity:?}", words.join(" | "))
        });
        expected.assert_eq(&part.unwrap_or_default());
    }

    #[test]
    fn parts_are_read() {
        check(
            memory,
            json!({"Id": "DIMM.Socket.A1", "Name": "DIMM A1", "DeviceLocator": "DIMM A1", "CapacityMiB": 32768, "Manufacturer": "Hynix Semiconductor ",
                   "PartNumber": "HMA84GR7CJR4N-XN", "SerialNumber": "2E4A8F0B", "Status": {"Health": "OK", "State": "Enabled"}}),
            expect![
                "Memory DIMM A1: Hynix Semiconductor | - | HMA84GR7CJR4N-XN | 2E4A8F0B | - size=Some(34359738368) Some(Ok)"
            ],
        );
        check(
            memory,
            json!({"Id": "proc1dimm2", "Name": "proc1dimm2", "CapacityMiB": 0, "Status": {"State": "Absent"}}),
            expect!["Memory proc1dimm2: - | - | - | - | - size=Some(0) None"],
        );
        check(
            processor,
            json!({"Id": "CPU1", "Socket": "CPU 1", "Model": "Intel(R) Xeon(R) Gold 6130", "TotalCores": 16, "Version": "x", "Manufacturer": null}),
            expect!["Processor CPU 1: - | Intel(R) Xeon(R) Gold 6130 | - | - | - size=Some(16) None"],
        );
        check(
            processor,
            json!({"Id": "GPU1", "ProcessorType": "GPU", "TotalCores": "2"}),
            expect!["Card GPU1: - | - | - | - | - size=None None"],
        );
        check(
            drive,
            json!({"Id": "Disk.Bay.0", "Name": "SSD 0", "CapacityBytes": 480_103_981_056.0, "Revision": "DL63", "SerialNumber": "S4",
                   "PhysicalLocation": {"PartLocation": {"ServiceLabel": "Bay 0"}}, "Status": {"Health": "Critical"}}),
            expect!["Drive Bay 0: - | - | - | S4 | DL63 size=Some(480103981056) Some(Critical)"],
        );
        check(drive, json!({"CapacityBytes": 3}), expect![[""]]);
    }

    #[test]
    fn an_interface_of_a_known_card_is_no_card_of_its_own() {
        let nic = |slot: &str, mac: &str| {
            let told = json!({"Name": slot, "MACAddress": mac, "SerialNumber": "S1"});
            Part { macs: macs(Node(Some(&told))), ..part(PartKind::Nic, Node(Some(&told))).unwrap() }
        };
        let card = Part { kind: PartKind::Card, ..nic("Slot 1", "") };
        let parts = merged(
            vec![nic("Card 1", "00:11:22:33:44:55"), card],
            vec![nic("eth0", "00-11-22-33-44-55"), nic("eth1", "00:11:22:33:44:56")],
        );
        let slots: Vec<&str> = parts.iter().map(|part| part.slot.as_str()).collect();
        assert_eq!(slots, ["Card 1", "eth1"]);
    }

    proptest! {
        #[test]
        fn no_json_makes_the_readers_panic(json in any_json()) {
            let node = Node(Some(&json));
            let _ = (processor(node), memory(node), drive(node), macs(node));
        }
    }
}
