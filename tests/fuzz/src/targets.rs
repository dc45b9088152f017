//! The targets: each takes bytes as a stranger would send them, and panics when something that
//! is promised of them does not hold.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    sync::Mutex,
    time::Duration,
};

use jiff::Timestamp;
use rackhand_bmc::{
    ipmi,
    redfish::{
        accounts, bios, boot, certificates, fault, identity, inventory, lan,
        link::Link,
        log, media, power,
        resource::{MAX_VALUES, Node, Resource},
        secure_boot, sensors, tree, update,
    },
    told::{MAX_TEXT, PartKind},
};
use rackhand_common::{
    channel::{Admitted, Assignment, Present, Report},
    event::Event,
    hardware::{Hardware, MAX_ITEMS, MAX_JSON},
    id::{Epoch, MachineId, RackId},
    image::{Digest, SignedManifest},
    intent::{Boot, Intent, MachineIntent, Network},
    machine::{Inventory, Mac},
    pki::{KeyPin, Role, TrustBundle},
    time::{Mono, Now},
    wire::{self, AgentRequest, AgentResponse, ControllerRequest, ControllerResponse, LocalRequest, LocalResponse},
};
use rackhand_installer::{
    boot_order::{self, Change, Variables},
    cmdline, drive_health, ethtool,
    gpt::{Guid, Table},
    modules::Modules,
    smbios,
};
use rackhand_netboot::{
    dhcp::{Request, Server, Settings},
    ipxe::{self, Script},
    router, tftp,
};
use serde::{Serialize, de::DeserializeOwned};
use uuid::Uuid;

use crate::{layout, qcow2, vmdk};

/// A target.
pub(crate) type Target = fn(&[u8]);

/// All of them, by name.
pub(crate) const TARGETS: &[(&str, Target)] = &[
    ("dhcp", dhcp),
    ("router", router_messages),
    ("tftp", tftp_requests),
    ("tftp_transfer", tftp_transfer),
    ("ipxe", ipxe_scripts),
    ("wire", wire_messages),
    ("channel", channel_messages),
    ("manifest", manifests),
    ("qcow2", qcow2_header),
    ("vmdk", vmdk_headers),
    ("layout", image_layout),
    ("gpt", partition_table),
    ("boot_order", boot_variables),
    ("cmdline", kernel_command_line),
    ("modules", module_tables),
    ("texts", texts),
    ("ipmi", ipmi_answers),
    ("redfish", redfish_resources),
    ("hardware", hardware_told),
];

const NODE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

fn at(seconds: u64) -> Now {
    Now { mono: Mono(Duration::from_secs(seconds)), wall: Timestamp::UNIX_EPOCH }
}

/// Several messages, each with its length before it: what one leaves behind meets the next.
fn messages(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut found = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes(*length) % 700).min(rest.len());
        let (message, rest) = rest.split_at(length);
        found.push(message);
        bytes = rest;
    }
    found
}

/// A server with a small range answers: never longer than a frame, never the same address to
/// two cards.
fn dhcp(bytes: &[u8]) {
    let machine = |number: u8| MachineIntent {
        id: MachineId(Uuid::from_u128(number.into())),
        name: format!("m-{number}"),
        macs: vec![Mac([2, 0, 0, 0, 0, number]), Mac([2, 0, 0, 0, 1, number])],
        address: Ipv4Addr::new(10, 77, 0, 10 + number),
        epoch: Epoch(1),
        boot: if number == 1 { Boot::Installer } else { Boot::Disk },
        order: None,
    };
    let intent = Intent {
        revision: 1,
        rack: RackId(Uuid::from_u128(1)),
        name: "r1".into(),
        network: Network {
            node: "10.77.0.1/24".parse().expect("a network"),
            gateway: Some(Ipv4Addr::new(10, 77, 0, 254)),
            dns: vec![NODE; 4],
            delegated: (Ipv4Addr::new(10, 77, 0, 100), Ipv4Addr::new(10, 77, 0, 103)),
        },
        machines: vec![machine(1), machine(2)],
    };
    let mut server = Server::new(
        at(0),
        // Longer than all messages take together: a holder is one for good.
        Settings { node: NODE, http: Some(SocketAddrV4::new(NODE, 8080)), lease: Duration::from_secs(1 << 24) },
        [],
    );
    server.follow(&intent);
    let mut holders = std::collections::HashMap::new();
    for (number, message) in messages(bytes).into_iter().enumerate() {
        let Ok(request) = Request::parse(message) else { continue };
        let fresh = MachineId(Uuid::from_u128(1000 + number as u128));
        let Some(reply) = server.reply(at(number as u64), &request, fresh) else { continue };
        assert!(reply.message.len() <= 1472, "an answer longer than a frame");
        assert!(reply.message.len() >= 241 && reply.message[0] == 2, "an answer that is none");
        if let Some(holder) = reply.commit {
            let before = holders.insert(holder.address, holder.mac);
            assert!(before.is_none_or(|mac| mac == holder.mac), "one address for two cards");
            server.committed(holder.mac);
        }
    }
}

fn router_messages(bytes: &[u8]) {
    let _ = router::is_solicitation(bytes);
    if let Some(answer) = router::answer(Mac([2, 0, 0, 0, 0, 1]), bytes) {
        assert!(answer.len() <= bytes.len() + 40, "an answer much longer than its question");
    }
}

fn tftp_requests(bytes: &[u8]) {
    match tftp::Request::parse(bytes) {
        Ok(request) => {
            assert!(!request.file.contains(['/', '\\', '\0']), "a name with a directory in it");
            assert!(request.file != "." && request.file != "..");
        }
        Err(refused) => drop(refused.packet()),
    }
}

/// A request, the length of a file, and then what its client sends and how long it waits: one
/// packet at a time leaves, and the transfer ends.
fn tftp_transfer(bytes: &[u8]) {
    let [request, rest @ ..] = &messages(bytes)[..] else { return };
    let Ok(request) = tftp::Request::parse(request) else { return };
    let length = bytes.len() * 37 % 5000;
    let mut now = at(0);
    let mut transfer = tftp::Transfer::new(now, &request, vec![7; length].into());
    for packet in rest {
        if let Some(packet) = transfer.transmit() {
            assert!(packet.len() <= 1472);
        }
        assert!(transfer.transmit().is_none(), "two packets for one");
        if packet.is_empty()
            && let Some(next) = transfer.timeout()
        {
            now.mono = next;
            transfer.handle_timeout(now);
        } else {
            transfer.handle(now, packet);
        }
    }
    for _ in 0..10 {
        if let Some(next) = transfer.timeout() {
            now.mono = next;
            transfer.handle_timeout(now);
        }
    }
    assert!(transfer.ended().is_some(), "a transfer without an end");
}

/// No text can end a line, start a command or expand a setting.
fn ipxe_scripts(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (http, mac) = (SocketAddrV4::new(NODE, 8080), Some(Mac([2, 0, 0, 0, 0, 1])));
    let render = |text: &str| {
        [
            ipxe::render(&Script::Disk { name: text }),
            ipxe::render(&Script::Wait { reason: text, http, mac }),
            ipxe::render(&Script::Error { reason: text, http, mac }),
        ]
    };
    for (script, plain) in render(&text).iter().zip(render("")) {
        assert_eq!(script.lines().count(), plain.lines().count(), "another line");
        for special in ["${", "&&", "||", ";", "#", "\u{1b}", "\r", "\0"] {
            let (found, own) = (script.matches(special).count(), plain.matches(special).count());
            assert_eq!(found, own, "{special:?} got through");
        }
    }
}

/// A message that can be read is written as itself again; a first byte says which type.
fn wire_messages(bytes: &[u8]) {
    fn check<T: Serialize + DeserializeOwned>(bytes: &[u8]) {
        if let Ok(message) = wire::decode::<T>(bytes) {
            let again = wire::encode(&message);
            let message: T = wire::decode(&again).expect("what we write can be read");
            assert_eq!(wire::encode(&message), again);
        }
    }
    let Some((which, rest)) = bytes.split_first() else { return };
    match which % 8 {
        0 => check::<AgentRequest>(rest),
        1 => check::<AgentResponse>(rest),
        2 => check::<ControllerRequest>(rest),
        3 => check::<ControllerResponse>(rest),
        4 => check::<LocalRequest>(rest),
        5 => check::<LocalResponse>(rest),
        6 => check::<Event>(rest),
        _ => check::<Intent>(rest),
    }
    if let Some(prefix) = bytes.first_chunk() {
        let _ = wire::frame_len(*prefix);
    }
}

fn json<T: Serialize + DeserializeOwned>(bytes: &[u8]) {
    if let Ok(message) = serde_json::from_slice::<T>(bytes) {
        let again = serde_json::to_vec(&message).expect("messages always serialize");
        serde_json::from_slice::<T>(&again).expect("what we write can be read");
    }
}

fn channel_messages(bytes: &[u8]) {
    let Some((which, rest)) = bytes.split_first() else { return };
    match which % 7 {
        0 => json::<Present>(rest),
        1 => json::<Admitted>(rest),
        2 => json::<Assignment>(rest),
        3 => json::<Report>(rest),
        4 => json::<Inventory>(rest),
        5 => json::<SignedManifest>(rest),
        _ => json::<Event>(rest),
    }
}

/// What firmware, disks, transceivers and whole installers tell of a machine: any bytes are read, and what is
/// made of them is within its bounds.
fn hardware_told(bytes: &[u8]) {
    let Some((which, rest)) = bytes.split_first() else { return };
    match which % 4 {
        0 => {
            let told = smbios::parse(rest);
            let hardware = Hardware {
                board: told.board,
                bios: told.bios,
                chassis: told.chassis,
                processors: told.processors,
                memory: told.memory,
                slots: told.slots,
                tpm: told.tpm,
                ..Hardware::default()
            };
            hardware_is_bounded(hardware);
        }
        1 => {
            if let Ok(hardware) = serde_json::from_slice(rest) {
                hardware_is_bounded(hardware);
            }
        }
        2 => drop(ethtool::optics(rest)),
        _ => {
            let mut page = [0; 512];
            let len = rest.len().min(page.len());
            page[..len].copy_from_slice(&rest[..len]);
            drive_health::nvme(&page);
            drive_health::ata(Some(&page), len > 256);
            drive_health::scsi(page.first_chunk().expect("it is longer"));
        }
    }
}

fn hardware_is_bounded(hardware: Hardware) {
    let sound = hardware.sound();
    let json = serde_json::to_vec(&sound).expect("it always serializes");
    assert!(json.len() <= MAX_JSON);
    assert!(sound.memory.len() <= MAX_ITEMS && sound.devices.len() <= MAX_ITEMS);
    assert_eq!(serde_json::from_slice::<Hardware>(&json).expect("what we write can be read"), sound);
    assert_eq!(sound.clone().sound(), sound);
}

/// The chunks of a manifest that is believed are the image.
fn manifests(bytes: &[u8]) {
    let signed = serde_json::from_slice(bytes).unwrap_or_else(|_| SignedManifest {
        manifest: String::from_utf8_lossy(bytes).into_owned(),
        signature: String::new(),
    });
    if let Ok(manifest) = signed.parse_unverified() {
        let lengths = (0..manifest.chunks.len()).map(|index| manifest.chunk_len(index) as u64);
        assert_eq!(lengths.sum::<u64>(), manifest.size);
    }
}

fn qcow2_header(bytes: &[u8]) {
    let _ = qcow2::check(&bytes[..bytes.len().min(qcow2::HEADER)]);
    let _ = bytes.starts_with(&qcow2::MAGIC);
}

/// The file's first bytes, and its last ones as the header that stands there.
fn vmdk_headers(bytes: &[u8]) {
    let head = &bytes[..bytes.len().min(vmdk::HEAD)];
    let _ = vmdk::check(head, &bytes[bytes.len().saturating_sub(vmdk::TAIL)..]);
    let _ = head.starts_with(&vmdk::MAGIC) || vmdk::OTHERS.iter().any(|other| head.starts_with(other));
}

/// Bytes at the places where a disk has its boot record, header and entries.
fn disk_of(bytes: &[u8], sector: usize) -> Vec<u8> {
    let mut disk = vec![0; layout::HEAD];
    let length = bytes.len().min(disk.len());
    disk[..length].copy_from_slice(&bytes[..length]);
    // A fuzzer does not find checksums: they are mended, as an attacker would.
    mend(&mut disk, sector);
    disk
}

fn mend(disk: &mut [u8], sector: usize) {
    let le = |disk: &[u8], at: usize| u32::from_le_bytes(disk[at..at + 4].try_into().expect("four bytes"));
    let (count, size) = (le(disk, sector + 80) as usize, le(disk, sector + 84) as usize);
    let start = (le(disk, sector + 72) as usize).saturating_mul(sector);
    let end = count.saturating_mul(size).saturating_add(start);
    if let Some(entries) = disk.get(start..end) {
        let sum = crc32(entries);
        disk[sector + 88..sector + 92].copy_from_slice(&sum.to_le_bytes());
    }
    disk[sector + 16..sector + 20].fill(0);
    let sum = crc32(&disk[sector..sector + 92]);
    disk[sector + 16..sector + 20].copy_from_slice(&sum.to_le_bytes());
}

fn crc32(bytes: &[u8]) -> u32 {
    let step = |sum: u32, byte: &u8| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ (0xedb8_8320 & 0u32.wrapping_sub(sum & 1)))
    };
    !bytes.iter().fold(!0, step)
}

fn image_layout(bytes: &[u8]) {
    let _ = layout::look(bytes);
    for sector in [512, 4096] {
        let seen = layout::look(&disk_of(bytes, sector));
        assert!(seen.firmware.len() <= 2);
    }
}

fn partition_table(bytes: &[u8]) {
    let _ = Table::read(bytes, 512);
    for sector in [512u32, 4096] {
        let Ok(mut table) = Table::read(&disk_of(bytes, sector as usize), sector) else { continue };
        let _ = boot_order::plan(&Variables::new(), &table);
        for size in [0, 1 << 20, 3 << 30, u64::MAX] {
            if table.spread(size).is_err() {
                continue;
            }
            if let Ok(drive) = table.append(64 << 20, Guid([1; 16]), Guid([2; 16]), "config") {
                assert!(drive.first <= drive.last && drive.last <= table.last_usable());
            }
            let primary = table.primary(&[0; 440]);
            let (place, backup) = table.backup();
            assert!(place.checked_add(backup.len() as u64).is_some_and(|end| end <= size));
            let again = Table::read(&primary, sector).expect("what we write can be read");
            assert_eq!(again.partitions().count(), table.partitions().count());
        }
    }
}

/// Variables by length: a name's end, and its value.
fn boot_variables(bytes: &[u8]) {
    let mut found = Variables::new();
    for message in messages(bytes).into_iter().take(64) {
        let (name, value) = message.split_at(message.len().min(8));
        found.insert(format!("Boot{}", String::from_utf8_lossy(name)), value.to_vec());
        if name == b"Order---" {
            found.insert("BootOrder".into(), value.to_vec());
        }
        if let Some((number, _)) = name.split_first_chunk::<2>() {
            found.insert(format!("Boot{:04X}", u16::from_be_bytes(*number)), value.to_vec());
        }
    }
    static TABLE: Mutex<Option<Table>> = Mutex::new(None);
    let mut table = TABLE.lock().expect("nothing panics with the lock held");
    let table = table.get_or_insert_with(bootable);
    let changes = boot_order::plan(&found, table).expect("the disk has a system partition");
    for change in &changes {
        match change {
            Change::Write(name, value) => drop(found.insert(name.clone(), value.clone())),
            Change::Remove(name) => drop(found.remove(name)),
        }
    }
    let again = boot_order::plan(&found, table).expect("the disk has a system partition");
    assert_eq!(again, [], "what is in order needs no change");
}

/// A disk with an EFI system partition.
fn bootable() -> Table {
    let mut disk = vec![0; layout::HEAD];
    let header = &mut disk[512..512 + 92];
    header[..12].copy_from_slice(b"EFI PART\0\0\x01\0");
    header[12] = 92;
    header[24] = 1;
    header[32..40].copy_from_slice(&0xf_ffffu64.to_le_bytes());
    header[40..48].copy_from_slice(&34u64.to_le_bytes());
    header[48..56].copy_from_slice(&0xf_0000u64.to_le_bytes());
    header[72] = 2;
    header[80] = 128;
    header[84] = 128;
    let entry = &mut disk[1024..1152];
    let Guid(esp) = rackhand_installer::gpt::ESP;
    entry[..16].copy_from_slice(&esp);
    entry[16] = 1;
    entry[32..40].copy_from_slice(&2048u64.to_le_bytes());
    entry[40..48].copy_from_slice(&4095u64.to_le_bytes());
    mend(&mut disk, 512);
    Table::read(&disk, 512).expect("a good table")
}

fn kernel_command_line(bytes: &[u8]) {
    let line = String::from_utf8_lossy(bytes);
    if let Ok(parameters) = cmdline::parse(&line) {
        assert!(parameters.length <= 32 && !parameters.ticket.is_empty());
    }
}

/// A device's name for itself, a line end, and depmod's tables.
fn module_tables(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (modalias, tables) = text.split_once('\n').unwrap_or((&text, ""));
    let (alias, dep) = tables.split_once("---").unwrap_or((tables, tables));
    let _ = Modules::parse(alias, dep).wanting(modalias).count();
}

/// Leaf values that come as text: what can be read is written as itself again.
fn texts(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(mac) = text.parse::<Mac>() {
        assert_eq!(mac.to_string().parse::<Mac>().ok(), Some(mac));
    }
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text);
    }
    if let Ok(pin) = text.parse::<KeyPin>() {
        assert_eq!(pin.to_string().parse::<KeyPin>().ok(), Some(pin));
    }
    if let Ok(role) = text.parse::<Role>() {
        assert_eq!(role.to_string().parse::<Role>().ok(), Some(role));
    }
    let _ = (text.parse::<MachineId>(), text.parse::<RackId>());
    let _ = serde_json::from_str::<TrustBundle>(text).map(|bundle| bundle.root_store().is_ok());
}

/// What a BMC answers over RMCP+, to each parser: a stranger chooses what arrives where.
fn ipmi_answers(bytes: &[u8]) {
    for (_, parse) in ipmi::PARSERS {
        let _ = parse(bytes);
    }
}

/// A resource as a Redfish service tells it, to each reader: what is kept of it is fit to print,
/// and its links stay on their host.
fn redfish_resources(bytes: &[u8]) {
    if let Some(link) = std::str::from_utf8(bytes).ok().and_then(Link::parse) {
        assert!(link.as_str().starts_with('/') && !link.as_str().starts_with("//"));
        assert!(!link.as_str().contains(|c: char| c.is_control() || c == '\\' || c == '#'));
        let _ = (link.name(), link.below("x"));
    }
    let resource = match Resource::parse(Link::root(), bytes) {
        Ok(resource) => resource,
        Err(error) => return assert_fit(&error.to_string()),
    };
    assert!(resource.weight.bytes == bytes.len() && resource.weight.values <= MAX_VALUES);
    let whole = resource.node();
    redfish_readers(whole);
    for (_, node) in whole.members() {
        redfish_readers(node);
    }
    for node in ["Members", "Controllers", "Devices"].into_iter().flat_map(|name| whole.items(name)) {
        redfish_readers(node);
    }
    let _ = (log::rank(&resource), media::media(&resource), certificates::certificate(&resource));
    let _ = tree::action(&resource, "ComputerSystem.Reset");
}

fn redfish_readers(node: Node<'_>) {
    let of_several = sensors::thermal(node).into_iter().chain(sensors::power(node)).chain(sensors::metrics("x", node));
    for reading in of_several.chain(sensors::sensor(node)).chain(sensors::fan(node)) {
        assert_fit(&reading.name);
        assert!(reading.value.is_none_or(|value| !value.is_nan()));
    }
    let parts = [inventory::processor(node), inventory::memory(node), inventory::drive(node)];
    let mut parts: Vec<_> = parts.into_iter().chain([inventory::part(PartKind::Card, node)]).flatten().collect();
    for part in &mut parts {
        assert_fit(&part.slot);
        part.macs = inventory::macs(node);
    }
    let _ = inventory::merged(parts.clone(), parts);
    if let Some(entry) = log::entry(node) {
        assert_fit(&entry.message);
        assert_fit(entry.subject.as_deref().unwrap_or_default());
        let _ = log::in_order(vec![entry.clone(), entry]);
    }
    let set = boot::boot(node).set;
    if let Err(error) = boot::change(node, &set) {
        assert_fit(&error.to_string());
    }
    if let Some(words) = fault::words(node, &["secret".into()]) {
        assert_fit(&words);
        assert!(!words.contains("secret"), "a secret came back");
    }
    let _ = (accounts::account(node), bios::attributes(node), identity::identity(node, node), lan::lan(node));
    let _ = (secure_boot::secure_boot(node), update::task(node), power::power(node), power::allowed(node, "ResetType"));
    let _ = (tree::sessions(node), tree::expands(node));
}

/// Text that is kept: bounded, and without what moves a terminal's cursor.
fn assert_fit(text: &str) {
    // An error says what kind it is before its words.
    assert!(text.len() <= MAX_TEXT + 20, "a text too long");
    assert!(!text.contains(char::is_control), "a control character got through");
}
