use std::{collections::HashMap, fmt::Write, net::Ipv4Addr, time::Duration};

use dhcproto::{Decodable, Decoder, v4};
use expect_test::{Expect, expect};
use jiff::Timestamp;
use proptest::prelude::*;
use rackhand_common::{
    id::{Epoch, MachineId, RackId},
    intent::{Boot, Intent, MachineIntent, Network},
    machine::{Firmware, Mac},
    time::{Mono, Now},
};

use super::{Client, Destination, HEARD_LASTS, Holder, Kind, LEASE_LASTS, Malformed, Reply, Request, Server, Settings};

pub(crate) fn known(n: u128) -> MachineId {
    MachineId(uuid::Uuid::from_u128(n))
}

/// One machine, `m`, at 10.0.0.50, which has a second card, `n`; three delegated addresses.
pub(crate) fn intent() -> Intent {
    Intent {
        revision: 1,
        rack: RackId(uuid::Uuid::from_u128(1)),
        name: "r1".into(),
        network: Network {
            node: "10.0.0.1/24".parse().unwrap(),
            gateway: Some("10.0.0.1".parse().unwrap()),
            dns: vec!["10.0.0.2".parse().unwrap()],
            delegated: ("10.0.0.9".parse().unwrap(), "10.0.0.11".parse().unwrap()),
        },
        machines: vec![MachineIntent {
            id: known(1),
            name: "m1".into(),
            macs: vec![mac("m"), mac("n")],
            address: "10.0.0.50".parse().unwrap(),
            epoch: Epoch(1),
            boot: Boot::Installer,
            order: None,
        }],
    }
}

const NODE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

fn settings() -> Settings {
    Settings { node: NODE, http: Some("10.0.0.1:8080".parse().unwrap()), lease: LEASE_LASTS }
}

/// The card named by a letter.
fn mac(name: &str) -> Mac {
    Mac([0x52, 0x54, 0, 0, 0, name.as_bytes()[0]])
}

fn at(seconds: u64) -> Now {
    Now { mono: Mono(Duration::from_secs(seconds)), wall: Timestamp::UNIX_EPOCH }
}

/// Bytes as a client sends them.
struct Packet(Vec<u8>);

impl Packet {
    fn new(mac: Mac) -> Self {
        let mut bytes = vec![0; 240];
        bytes[..4].copy_from_slice(&[1, 1, 6, 0]);
        bytes[4..8].copy_from_slice(&[0xde, 0xad, 0xbe, 0xef]);
        bytes[28..34].copy_from_slice(&mac.0);
        bytes[236..].copy_from_slice(&[0x63, 0x82, 0x53, 0x63]);
        Self(bytes)
    }

    fn set(mut self, at: usize, value: &[u8]) -> Self {
        self.0[at..at + value.len()].copy_from_slice(value);
        self
    }

    fn option(mut self, code: u8, value: &[u8]) -> Self {
        self.0.extend_from_slice(&[code, u8::try_from(value.len()).unwrap()]);
        self.0.extend_from_slice(value);
        self
    }

    /// What each program adds to its messages, as seen on the wire.
    fn client(self, client: &str) -> Self {
        match client {
            "os" => self.option(61, &[1, 2, 3, 4]).option(12, b"host"),
            // The iPXE ROM of QEMU's cards, 2019.
            "ipxe" => self
                .option(57, &[0x05, 0xc0])
                .option(93, &[0, 0])
                .option(94, &[1, 2, 1])
                .option(60, b"PXEClient:Arch:00000:UNDI:002001")
                .option(77, b"iPXE")
                .option(61, &[1, 0x52, 0x54, 0, 0, 0, 1])
                .option(97, &[0; 17])
                .option(175, &[0xb1, 5, 1, 0x1a, 0xf4, 0x10, 0, 0x13, 1, 1]),
            // snponly.efi.
            "ipxe-efi" => self.option(93, &[0, 7]).option(77, b"iPXE").option(175, &[0x13, 1, 1]),
            // OVMF.
            "uefi" => self
                .option(57, &[0x05, 0xc0])
                .option(97, &[0; 17])
                .option(94, &[1, 3, 0])
                .option(93, &[0, 7])
                .option(60, b"PXEClient:Arch:00007:UNDI:003000"),
            "bios" => self.option(93, &[0, 0]).option(94, &[1, 2, 1]).option(60, b"PXEClient:Arch:00000:UNDI:002001"),
            "arm" => self.option(93, &[0, 11]).option(60, b"PXEClient:Arch:00011:UNDI:003000"),
            other => panic!("{other}"),
        }
    }

    fn parse(&self) -> Result<Request, Malformed> {
        Request::parse(&self.0)
    }
}

/// `discover`, `select A`, `select-other A`, `init-reboot A`, `renew A`, `decline A`, `release A`, `inform A`.
fn packet(card: &str, client: &str, verb: &str, address: Option<Ipv4Addr>) -> Packet {
    let packet = Packet::new(mac(card));
    let address = address.map(|address| address.octets()).unwrap_or_default();
    let node = NODE.octets();
    let packet = match verb {
        "discover" => packet.option(53, &[1]),
        "select" => packet.option(53, &[3]).option(54, &node).option(50, &address),
        "select-other" => packet.option(53, &[3]).option(54, &[10, 0, 0, 250]).option(50, &address),
        "init-reboot" => packet.option(53, &[3]).option(50, &address),
        "renew" => packet.set(12, &address).option(53, &[3]),
        "decline" => packet.option(53, &[4]).option(54, &node).option(50, &address),
        "release" => packet.set(12, &address).option(53, &[7]).option(54, &node),
        "inform" => packet.set(12, &address).option(53, &[8]),
        other => panic!("{other}"),
    };
    packet.client(client)
}

/// The reply as a codec reads it that nobody here wrote.
fn decode(reply: &Reply) -> v4::Message {
    v4::Message::decode(&mut Decoder::new(&reply.message)).unwrap()
}

fn show(reply: &Reply) -> String {
    let message = decode(reply);
    let mut out = format!("{:?}", message.opts().msg_type().unwrap()).to_lowercase();
    if !message.yiaddr().is_unspecified() {
        write!(out, " {}", message.yiaddr()).unwrap();
    }
    match reply.to {
        Destination::Raw(..) => {}
        Destination::Broadcast => out.push_str(" to all"),
        Destination::Unicast(address) => write!(out, " to {address}").unwrap(),
        Destination::Relay(address) => write!(out, " by {address}").unwrap(),
    }
    if let Some(v4::DhcpOption::BootfileName(file)) = message.opts().get(v4::OptionCode::BootfileName) {
        write!(out, " load {}", String::from_utf8_lossy(file)).unwrap();
    }
    if let Some(holder) = &reply.commit {
        write!(out, ", commit machine {}", holder.machine.0.as_u128()).unwrap();
    }
    if let Some((_, stage)) = &reply.stage {
        write!(out, ", record: {stage}").unwrap();
    }
    out
}

/// Line by line: seconds, card and program, message or `heard`, address. The nth line's fresh machine
/// would be number 100 + n.
fn check_with(intent: &Intent, script: &str, expect: Expect) {
    let mut server = Server::new(at(0), settings(), []);
    server.follow(intent);
    let mut out = String::new();
    for (n, line) in script.lines().enumerate() {
        let words: Vec<_> = line.split_whitespace().collect();
        let seconds = words[0].trim_end_matches('s').parse().unwrap();
        let (card, client) = words[1].split_once('/').unwrap_or((words[1], "os"));
        if words[2] == "heard" {
            server.heard(at(seconds), mac(card));
            continue;
        }
        let address = words.get(3).map(|address| address.parse().unwrap());
        let request = packet(card, client, words[2], address).parse().unwrap();
        let reply = server.reply(at(seconds), &request, known(100 + n as u128));
        if let Some(holder) = reply.as_ref().and_then(|reply| reply.commit) {
            server.committed(holder.mac);
        }
        let said = reply.as_ref().map_or("silence".into(), show);
        writeln!(out, "{} {}: {said}", words[0], words[1]).unwrap();
    }
    expect.assert_eq(&out);
}

fn check(script: &str, expect: Expect) {
    check_with(&intent(), script, expect);
}

#[test]
fn unanswered_offer_returns_to_the_pool() {
    check(
        "0s a discover\n0s b discover\n0s c discover\n59s d discover\n61s d discover\n61s e discover",
        expect![[r#"
        0s a: offer 10.0.0.9
        0s b: offer 10.0.0.10
        0s c: offer 10.0.0.11
        59s d: silence
        61s d: offer 10.0.0.9
        61s e: offer 10.0.0.10
    "#]],
    );
}

#[test]
fn one_card_keeps_one_address_through_rom_ipxe_installer_and_system() {
    check(
        "0s a/uefi discover\n0s a/uefi select 10.0.0.9\n5s a/ipxe-efi discover\n5s a/ipxe-efi select 10.0.0.9\n\
         9s a/os discover\n9s a/os select 10.0.0.9\n1000s a/os renew 10.0.0.9",
        expect![[r#"
            0s a/uefi: offer 10.0.0.9 load snponly.efi
            0s a/uefi: ack 10.0.0.9 load snponly.efi, commit machine 100, record: UEFI boot ROM asked for an address
            5s a/ipxe-efi: offer 10.0.0.9 load http://10.0.0.1:8080/boot.ipxe?mac=52-54-00-00-00-61
            5s a/ipxe-efi: ack 10.0.0.9 load http://10.0.0.1:8080/boot.ipxe?mac=52-54-00-00-00-61, record: iPXE has its address
            9s a/os: offer 10.0.0.9
            9s a/os: ack 10.0.0.9
            1000s a/os: ack 10.0.0.9 to 10.0.0.9
        "#]],
    );
}

#[test]
fn a_known_machine_gets_its_planned_address_and_its_second_card_another() {
    check(
        "0s m/ipxe discover\n0s m/ipxe select 10.0.0.50\n0s n discover\n0s n select 10.0.0.9\n0s m select 10.0.0.9",
        expect![[r#"
            0s m/ipxe: offer 10.0.0.50 load http://10.0.0.1:8080/boot.ipxe?mac=52-54-00-00-00-6d
            0s m/ipxe: ack 10.0.0.50 load http://10.0.0.1:8080/boot.ipxe?mac=52-54-00-00-00-6d, record: BIOS boot ROM asked for an address
            0s n: offer 10.0.0.9
            0s n: ack 10.0.0.9, commit machine 1
            0s m: nak to all
        "#]],
    );
}

#[test]
fn each_program_is_told_what_it_can_load() {
    check(
        "0s m/bios discover\n0s m/uefi discover\n0s m/arm discover\n0s m/ipxe discover\n0s m/os discover",
        expect![[r#"
            0s m/bios: offer 10.0.0.50 load undionly.kpxe
            0s m/uefi: offer 10.0.0.50 load snponly.efi
            0s m/arm: offer 10.0.0.50
            0s m/ipxe: offer 10.0.0.50 load http://10.0.0.1:8080/boot.ipxe?mac=52-54-00-00-00-6d
            0s m/os: offer 10.0.0.50
        "#]],
    );
}

#[test]
fn a_stranger_that_restarts_gets_silence_and_one_from_another_network_a_refusal() {
    check(
        "0s a init-reboot 10.0.0.9\n0s a init-reboot 192.168.1.9\n0s a renew 10.0.0.9\n\
         0s m init-reboot 10.0.0.50\n0s m init-reboot 10.0.0.9\n0s m init-reboot 192.168.1.9\n0s m renew 10.0.0.50",
        expect![[r#"
            0s a: silence
            0s a: nak to all
            0s a: silence
            0s m: ack 10.0.0.50, record: installed system has its address
            0s m: nak to all
            0s m: nak to all
            0s m: ack 10.0.0.50 to 10.0.0.50
        "#]],
    );
}

#[test]
fn an_offer_not_taken_is_free_at_once() {
    check(
        "0s a discover\n1s a select-other 10.0.0.250\n1s b discover",
        expect![[r#"
        0s a: offer 10.0.0.9
        1s a: silence
        1s b: offer 10.0.0.9
    "#]],
    );
}

#[test]
fn an_offer_from_before_a_restart_is_honoured_if_it_is_free() {
    check(
        "0s a select 10.0.0.10\n0s b select 10.0.0.10\n0s b select 10.0.0.50\n0s b select 10.0.0.1",
        expect![[r#"
        0s a: ack 10.0.0.10, commit machine 100
        0s b: nak to all
        0s b: nak to all
        0s b: nak to all
    "#]],
    );
}

#[test]
fn a_full_range_means_silence_for_newcomers_only() {
    check(
        "0s a select 10.0.0.9\n0s b select 10.0.0.10\n0s c select 10.0.0.11\n3599s d discover\n3599s a discover\n3599s m discover",
        expect![[r#"
            0s a: ack 10.0.0.9, commit machine 100
            0s b: ack 10.0.0.10, commit machine 101
            0s c: ack 10.0.0.11, commit machine 102
            3599s d: silence
            3599s a: offer 10.0.0.9
            3599s m: offer 10.0.0.50
        "#]],
    );
}

#[test]
fn in_a_full_range_the_lease_goes_that_could_have_gone_longest() {
    check(
        "0s a select 10.0.0.9\n1s b select 10.0.0.10\n2s c select 10.0.0.11\n2000s a renew 10.0.0.9\n\
         3600s d discover\n3601s d discover\n3602s e discover\n3602s f discover\n3602s d select 10.0.0.10\n\
         3602s b renew 10.0.0.10\n5600s b discover\n5600s a discover",
        expect![[r#"
            0s a: ack 10.0.0.9, commit machine 100
            1s b: ack 10.0.0.10, commit machine 101
            2s c: ack 10.0.0.11, commit machine 102
            2000s a: ack 10.0.0.9 to 10.0.0.9
            3600s d: silence
            3601s d: offer 10.0.0.10
            3602s e: offer 10.0.0.11
            3602s f: silence
            3602s d: ack 10.0.0.10, commit machine 105
            3602s b: silence
            5600s b: offer 10.0.0.11
            5600s a: offer 10.0.0.9
        "#]],
    );
}

#[test]
fn a_card_heard_at_its_address_keeps_it_for_a_day_and_a_known_machines_for_ever() {
    check(
        "0s a select 10.0.0.9\n0s b select 10.0.0.10\n0s n select 10.0.0.11\n100s a heard\n3600s c discover\n\
         3600s d discover\n86499s e discover\n86499s a discover\n86500s e discover\n999999s f discover\n999999s n renew 10.0.0.11",
        expect![[r#"
            0s a: ack 10.0.0.9, commit machine 100
            0s b: ack 10.0.0.10, commit machine 101
            0s n: ack 10.0.0.11, commit machine 1
            3600s c: offer 10.0.0.10
            3600s d: silence
            86499s e: offer 10.0.0.10
            86499s a: offer 10.0.0.9
            86500s e: offer 10.0.0.10
            999999s f: offer 10.0.0.10
            999999s n: ack 10.0.0.11 to 10.0.0.11
        "#]],
    );
}

/// When its clients were told of a lease is not stored: it counts from the start.
#[test]
fn a_lease_found_on_disk_is_kept_for_the_whole_time_a_client_may_have_been_told() {
    let lease = |last: u8| Holder {
        machine: known(last.into()),
        mac: Mac([2, 0, 0, 0, 0, last]),
        address: Ipv4Addr::new(10, 0, 0, last),
    };
    let mut server = Server::new(at(500), settings(), [lease(9), lease(10), lease(11)]);
    server.follow(&intent());
    let mut offered =
        |now| server.reply(at(now), &packet("a", "os", "discover", None).parse().unwrap(), known(1)).is_some();
    assert!(!offered(500) && !offered(4099));
    assert!(offered(4100));
}

#[test]
fn nobody_ends_a_lease_with_anothers_card_or_a_planned_one_at_all() {
    check(
        "0s a select 10.0.0.9\n1s b release 10.0.0.9\n1s b decline 10.0.0.9\n1s a renew 10.0.0.9\n\
         1s a release 10.0.0.9\n1s b discover\n1s a renew 10.0.0.9\n1s m decline 10.0.0.50\n1s m discover",
        expect![[r#"
            0s a: ack 10.0.0.9, commit machine 100
            1s b: silence
            1s b: silence
            1s a: ack 10.0.0.9 to 10.0.0.9
            1s a: silence
            1s b: offer 10.0.0.10
            1s a: ack 10.0.0.9 to 10.0.0.9
            1s m: silence
            1s m: offer 10.0.0.50
        "#]],
    );
}

#[test]
fn a_declined_address_rests_and_its_machine_keeps_its_name() {
    check(
        "0s a select 10.0.0.9\n1s a decline 10.0.0.9\n2s b discover\n2s a discover\n2s a select 10.0.0.11",
        expect![[r#"
            0s a: ack 10.0.0.9, commit machine 100
            1s a: silence
            2s b: offer 10.0.0.10
            2s a: offer 10.0.0.11
            2s a: ack 10.0.0.11, commit machine 100
        "#]],
    );
}

/// Of a range of three, one: whoever declines in all names leaves the others theirs.
#[test]
fn a_quarter_of_the_range_rests_at_most_and_comes_back() {
    check(
        "0s a select 10.0.0.9\n0s b select 10.0.0.10\n0s a decline 10.0.0.9\n0s b decline 10.0.0.10\n0s b renew 10.0.0.10\n\
         1s a select 10.0.0.11\n1s a decline 10.0.0.11\n1s c discover\n61s a discover\n3601s b decline 10.0.0.10\n3601s d discover\n3601s e discover",
        expect![[r#"
            0s a: ack 10.0.0.9, commit machine 100
            0s b: ack 10.0.0.10, commit machine 101
            0s a: silence
            0s b: silence
            0s b: ack 10.0.0.10 to 10.0.0.10
            1s a: ack 10.0.0.11, commit machine 100
            1s a: silence
            1s c: offer 10.0.0.9
            61s a: offer 10.0.0.9
            3601s b: silence
            3601s d: offer 10.0.0.9
            3601s e: offer 10.0.0.11
        "#]],
    );
}

/// The address of a machine that works there is given to nobody, whoever declines it.
#[test]
fn a_forged_decline_gives_no_address_in_use_to_another() {
    check(
        "0s a select 10.0.0.9\n5s a heard\n6s a decline 10.0.0.9\n80000s a heard\n86406s b discover\n86406s c discover\n\
         86406s d discover\n86406s a discover\n166400s e discover",
        expect![[r#"
            0s a: ack 10.0.0.9, commit machine 100
            6s a: silence
            86406s b: offer 10.0.0.10
            86406s c: offer 10.0.0.11
            86406s d: silence
            86406s a: silence
            166400s e: offer 10.0.0.9
        "#]],
    );
}

#[test]
fn an_inform_changes_nothing() {
    check(
        "0s a inform 10.0.0.77\n0s a inform 192.168.1.1\n0s a renew 10.0.0.77",
        expect![[r#"
        0s a: ack to 10.0.0.77
        0s a: silence
        0s a: silence
    "#]],
    );
    let mut server = Server::new(at(0), settings(), []);
    server.follow(&intent());
    let request = packet("a", "os", "inform", Some(Ipv4Addr::new(10, 0, 0, 77))).parse().unwrap();
    let message = decode(&server.reply(at(0), &request, known(9)).unwrap());
    assert_eq!(message.opts().get(v4::OptionCode::AddressLeaseTime), None);
    assert!(message.yiaddr().is_unspecified());
}

#[test]
fn hops_are_recorded_once_and_the_systems_only_when_it_should_run() {
    let mut intent = intent();
    intent.machines[0].boot = Boot::Disk;
    check_with(
        &intent,
        "0s m/uefi select 10.0.0.50\n1s m/uefi select 10.0.0.50\n4s m/ipxe-efi select 10.0.0.50\n30s m/os select 10.0.0.50\n\
         31s m/os select 10.0.0.50\n300s m/ipxe select 10.0.0.50\n999s m/os renew 10.0.0.50",
        expect![[r#"
            0s m/uefi: ack 10.0.0.50 load snponly.efi, record: UEFI boot ROM asked for an address
            1s m/uefi: ack 10.0.0.50 load snponly.efi
            4s m/ipxe-efi: ack 10.0.0.50 load http://10.0.0.1:8080/boot.ipxe?mac=52-54-00-00-00-6d, record: iPXE has its address
            30s m/os: ack 10.0.0.50, record: installed system has its address
            31s m/os: ack 10.0.0.50
            300s m/ipxe: ack 10.0.0.50 load http://10.0.0.1:8080/boot.ipxe?mac=52-54-00-00-00-6d, record: BIOS boot ROM asked for an address
            999s m/os: ack 10.0.0.50 to 10.0.0.50
        "#]],
    );
}

#[test]
fn a_server_without_a_plan_is_silent() {
    let mut server = Server::new(at(0), settings(), []);
    let request = packet("a", "os", "discover", None).parse().unwrap();
    assert_eq!(server.reply(at(0), &request, known(9)), None);
}

#[test]
fn a_lease_is_committed_until_it_is_known_to_be_on_disk() {
    let mut server = Server::new(at(0), settings(), []);
    server.follow(&intent());
    let request = packet("a", "os", "select", Some(Ipv4Addr::new(10, 0, 0, 9))).parse().unwrap();
    let lease = Some(Holder { machine: known(9), mac: mac("a"), address: Ipv4Addr::new(10, 0, 0, 9) });
    assert_eq!(server.reply(at(0), &request, known(9)).unwrap().commit, lease);
    assert_eq!(server.reply(at(1), &request, known(10)).unwrap().commit, lease);
    server.committed(mac("a"));
    assert_eq!(server.reply(at(2), &request, known(11)).unwrap().commit, None);
}

#[test]
fn a_machine_that_becomes_known_keeps_its_address_and_others_yield_theirs() {
    let mut server = Server::new(
        at(0),
        settings(),
        ["a", "b"].map(|card| Holder {
            machine: known(card.as_bytes()[0].into()),
            mac: mac(card),
            address: Ipv4Addr::new(10, 0, 0, if card == "a" { 9 } else { 10 }),
        }),
    );
    let mut intent = intent();
    intent.machines[0].macs = vec![mac("a")];
    intent.machines[0].address = Ipv4Addr::new(10, 0, 0, 9);
    assert_eq!(server.follow(&intent), [mac("a")]);
    intent.machines[0].address = Ipv4Addr::new(10, 0, 0, 10);
    assert_eq!(server.follow(&intent), [mac("b")]);
    let request = packet("b", "os", "renew", Some(Ipv4Addr::new(10, 0, 0, 10))).parse().unwrap();
    assert_eq!(server.reply(at(0), &request, known(9)), None);
    let request = packet("b", "os", "discover", None).parse().unwrap();
    assert_eq!(decode(&server.reply(at(0), &request, known(9)).unwrap()).yiaddr(), Ipv4Addr::new(10, 0, 0, 9));
}

#[test]
fn a_rom_finds_its_file_wherever_it_looks() {
    let mut server = Server::new(at(0), settings(), []);
    server.follow(&intent());
    let reply = server.reply(at(0), &packet("m", "uefi", "discover", None).parse().unwrap(), known(9)).unwrap();
    let message = decode(&reply);
    assert_eq!(message.xid(), 0xdead_beef);
    assert_eq!(message.siaddr(), NODE);
    assert_eq!(message.fname_str().unwrap().unwrap().trim_end_matches('\0'), "snponly.efi");
    assert_eq!(message.sname_str().unwrap().unwrap().trim_end_matches('\0'), "10.0.0.1");
    let mut options: Vec<_> = message.opts().iter().map(|(_, option)| format!("{option:?}")).collect();
    options.sort();
    expect![[r#"
        [
            "AddressLeaseTime(3600)",
            "BootfileName([115, 110, 112, 111, 110, 108, 121, 46, 101, 102, 105])",
            "ClassIdentifier([80, 88, 69, 67, 108, 105, 101, 110, 116])",
            "ClientMachineIdentifier([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])",
            "DomainNameServer([10.0.0.2])",
            "MessageType(Offer)",
            "Rebinding(3150)",
            "Renewal(1800)",
            "Router([10.0.0.1])",
            "ServerIdentifier(10.0.0.1)",
            "SubnetMask(255.255.255.0)",
            "TFTPServerName([49, 48, 46, 48, 46, 48, 46, 49])",
            "VendorExtensions([6, 1, 8, 255])",
        ]
    "#]]
    .assert_debug_eq(&options);
    assert!(reply.message.len() <= 1500 - 28);
}

#[test]
fn ipxe_is_told_not_to_wait_for_a_proxy() {
    let mut server = Server::new(at(0), settings(), []);
    server.follow(&intent());
    let reply = server.reply(at(0), &packet("m", "ipxe", "discover", None).parse().unwrap(), known(9)).unwrap();
    assert!(reply.message.windows(5).any(|part| part == [175, 3, 176, 1, 1]));
    assert!(!reply.message.windows(11).any(|part| part == b"\x3c\x09PXEClient"), "it would look for a boot menu");
}

#[test]
fn relays_and_the_broadcast_flag_direct_the_answer() {
    let mut server = Server::new(at(0), settings(), []);
    server.follow(&intent());
    let mut to = |packet: Packet| server.reply(at(0), &packet.parse().unwrap(), known(9)).map(|reply| reply.to);
    let discover = || packet("m", "os", "discover", None);
    let relay = Ipv4Addr::new(10, 0, 0, 3);
    assert_eq!(to(discover()), Some(Destination::Raw(mac("m"), Ipv4Addr::new(10, 0, 0, 50))));
    assert_eq!(to(discover().set(10, &[0x80, 0])), Some(Destination::Broadcast));
    assert_eq!(to(discover().set(24, &relay.octets())), Some(Destination::Relay(relay)));
    assert_eq!(to(discover().set(24, &[10, 9, 9, 9])), None);
    let refused = packet("m", "os", "init-reboot", Some(relay)).set(24, &relay.octets());
    let reply = server.reply(at(0), &refused.parse().unwrap(), known(9)).unwrap();
    assert_eq!(reply.to, Destination::Relay(relay));
    assert!(decode(&reply).flags().broadcast());
}

#[test]
fn a_small_client_gets_what_matters_within_its_limit() {
    let mut server = Server::new(at(0), settings(), []);
    server.follow(&intent());
    let packet = packet("m", "os", "discover", None).option(61, &[9; 255]).option(61, &[9; 200]);
    let reply = server.reply(at(0), &packet.parse().unwrap(), known(9)).unwrap();
    assert!(reply.message.len() <= 548);
    let message = decode(&reply);
    assert!(message.opts().get(v4::OptionCode::SubnetMask).is_some());
    assert!(message.opts().get(v4::OptionCode::AddressLeaseTime).is_some());
}

#[test]
fn overloaded_and_split_options_are_put_together() {
    let packet = Packet::new(mac("a"))
        .option(53, &[3])
        .option(52, &[3])
        .set(108, &[54, 2, 10, 0, 54, 2, 0, 1, 255])
        .set(44, &[50, 4, 10, 0, 0, 9, 255]);
    assert_eq!(packet.parse().unwrap().kind, Kind::Selecting { server: NODE, address: Ipv4Addr::new(10, 0, 0, 9) });
}

#[test]
fn odd_but_legal_clients_are_understood() {
    let client = |packet: Packet| packet.option(53, &[1]).parse().unwrap().client;
    let new = || Packet::new(mac("a"));
    assert_eq!(client(new().option(93, &[0, 6, 0, 9]).option(60, b"PXEClient")), Client::Rom(Some(Firmware::Uefi)));
    assert_eq!(client(new().option(60, b"PXEClient:Arch:00000:UNDI:002001")), Client::Rom(Some(Firmware::Bios)));
    assert_eq!(client(new().option(60, b"PXEClient").option(93, &[7])), Client::Rom(None));
    assert_eq!(client(new().option(77, b"\x04iPXE")), Client::Ipxe(None));
    let http = || new().option(60, b"HTTPClient:Arch:00016:UNDI:003000");
    assert_eq!(client(http().option(93, &[0, 16])), Client::Http(Some(Firmware::Uefi)));
    assert_eq!(client(http()), Client::Http(Some(Firmware::Uefi)));
    assert_eq!(client(new().option(60, b"HTTPClient").option(93, &[0, 19])), Client::Http(None));
    // A wrong length in option 94, control characters and an empty client identifier.
    assert_eq!(client(new().option(94, &[1]).option(12, b"\0\n\x1b").option(61, &[])), Client::System);
}

#[test]
fn what_is_no_request_is_ignored() {
    let new = || Packet::new(mac("a"));
    assert_eq!(Request::parse(&[]), Err(Malformed::Short));
    assert_eq!(new().parse(), Err(Malformed::NotDhcp));
    assert_eq!(new().option(53, &[5]).parse(), Err(Malformed::NotDhcp));
    assert_eq!(new().option(53, &[1]).set(0, &[2]).parse(), Err(Malformed::NotARequest));
    assert_eq!(new().option(53, &[1]).set(28, &[0xff; 6]).parse(), Err(Malformed::NotARequest));
    assert_eq!(new().option(53, &[1]).set(28, &[0; 6]).parse(), Err(Malformed::NotARequest));
    assert_eq!(new().option(53, &[1]).set(2, &[16]).parse(), Err(Malformed::NotARequest));
    assert_eq!(new().option(53, &[3]).parse(), Err(Malformed::Incomplete));
    assert_eq!(new().option(53, &[4]).option(50, &[1, 2, 3]).parse(), Err(Malformed::Incomplete));
}

proptest! {
    #[test]
    fn no_bytes_break_the_parser_or_the_server(
        tail in proptest::collection::vec(any::<u8>(), 0..600),
        header in proptest::collection::vec((0usize..236, any::<u8>()), 0..20),
        kind in 0u8..9,
    ) {
        let _ = Request::parse(&tail);
        let mut packet = Packet::new(mac("a")).option(53, &[kind]);
        for (at, byte) in header {
            packet.0[at] = byte;
        }
        packet.0.extend(tail);
        let mut server = Server::new(at(0), settings(), []);
        server.follow(&intent());
        if let Ok(request) = packet.parse()
            && let Some(reply) = server.reply(at(0), &request, known(9))
        {
            prop_assert!(reply.message.len() <= 1472);
            decode(&reply);
        }
    }

    /// Whatever is said and however long nothing is: a card has its address for the whole time
    /// it was told, and for a day after it was heard there, unless its name was used to decline
    /// it; also across restarts. Once all of that is over, a newcomer is given an address.
    #[test]
    fn no_two_holders_share_an_address_and_offers_return(
        steps in proptest::collection::vec((0u8..8, 0usize..10, 5u8..15, 0u64..40, 0u8..12), 1..150),
    ) {
        let mut server = Server::new(at(0), settings(), []);
        let intent = intent();
        server.follow(&intent);
        let mut now = 0;
        let planned = intent.machines[0].address;
        // By address: its card, and the end of its time.
        let mut held: HashMap<Ipv4Addr, (Mac, u64)> = HashMap::from([(planned, (mac("m"), u64::MAX))]);
        let mut rows: HashMap<Mac, Holder> = HashMap::new();
        for (n, (card, verb, last, passed, pause)) in steps.into_iter().enumerate() {
            now += match pause {
                0 => 3600,
                1 => 90_000,
                2 => 1500,
                _ => passed,
            };
            let card = ["a", "b", "c", "d", "e", "f", "m", "n"][usize::from(card)];
            let verbs =
                ["discover", "discover", "select", "select", "renew", "decline", "release", "select-other", "heard", "restart"];
            let (verb, mut address) = (verbs[verb], Ipv4Addr::new(10, 0, 0, last));
            match verb {
                "heard" => {
                    server.heard(at(now), mac(card));
                    // Whoever is heard there has the address still, or its last one.
                    let row = rows.get(&mac(card)).map(|row| row.address);
                    let theirs = |(holder, until): &&mut (Mac, u64)| *holder == mac(card) && *until > now;
                    if let Some((_, until)) = row.and_then(|row| held.get_mut(&row)).filter(theirs) {
                        *until = (*until).max(now + HEARD_LASTS.as_secs());
                    }
                    continue;
                }
                "restart" => {
                    server = Server::new(at(now), settings(), rows.values().copied());
                    server.follow(&intent);
                    // What was declined is forgotten, and its card's lease was on disk.
                    for row in rows.values() {
                        held.entry(row.address).or_insert((row.mac, now + LEASE_LASTS.as_secs()));
                    }
                    for (holder, until) in held.values_mut().filter(|(holder, _)| *holder != mac("m")) {
                        // What was heard is told again by the shell, which knows it from disk.
                        if *until > now {
                            server.heard(at(now), *holder);
                            *until = (*until).max(now + LEASE_LASTS.as_secs());
                        }
                    }
                    continue;
                }
                _ => {}
            }
            // Half of the time it takes what it is offered.
            if verb == "select" && passed % 2 == 0 {
                let discover = packet(card, "os", "discover", None).parse().unwrap();
                let Some(offer) = server.reply(at(now), &discover, known(n as u128)) else { continue };
                address = decode(&offer).yiaddr();
                let other = held.get(&address).filter(|(holder, until)| *holder != mac(card) && *until > now);
                prop_assert!(other.is_none(), "offered {}, which is {:?}'s", address, other);
            }
            let request = packet(card, "os", verb, Some(address)).parse().unwrap();
            let mut reply = server.reply(at(now), &request, known(n as u128));
            if verb == "decline" && card != "m" && held.get(&address).is_some_and(|(holder, _)| *holder == mac(card)) {
                // Whether it was believed shows when its card renews.
                reply = server.reply(at(now), &packet(card, "os", "renew", Some(address)).parse().unwrap(), known(0));
                if reply.is_none() {
                    held.remove(&address);
                }
            }
            let Some(reply) = reply else { continue };
            if let Some(made) = reply.commit {
                rows.retain(|_, row| row.address != made.address);
                rows.insert(made.mac, made);
                server.committed(made.mac);
            }
            if decode(&reply).opts().msg_type() == Some(v4::MessageType::Ack) {
                let address = decode(&reply).yiaddr();
                let told = now + LEASE_LASTS.as_secs();
                let (holder, until) = held.entry(address).or_insert((mac(card), told));
                prop_assert!(*holder == mac(card) || *until <= now, "{} has two holders", address);
                *until = if *holder == mac(card) { (*until).max(told) } else { told };
                *holder = mac(card);
                let has = |(holder, until): &&(Mac, u64)| *holder == mac(card) && *until > now;
                prop_assert_eq!(held.values().filter(has).count(), 1, "a card has two addresses");
            }
        }
        let discover = packet("z", "os", "discover", None).parse().unwrap();
        // Once offers ran out, a newcomer is refused only if leases and rests fill the range...
        let delegated = held.keys().filter(|address| address.octets()[3] < 12).count();
        if server.reply(at(now + 61), &discover, known(0)).is_none() {
            prop_assert!(delegated + server.resting() >= 3);
        }
        // ...and never when all their time is over, but for those of a known machine's cards.
        prop_assert!(server.reply(at(now + 200_000), &discover, known(0)).is_some());
    }
}
