use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;
use crate::{
    commission,
    hardware::{Device, Dimm, Drive, DriveHealth, Port},
    machine::{Content, Cpu, Disk, Firmware, Nic, System},
};

fn disk(name: &str, serial: &str, gib: u64) -> Disk {
    Disk {
        name: name.into(),
        model: "SSD".into(),
        serial: serial.into(),
        wwn: None,
        size: gib << 30,
        sector: 512,
        rotational: false,
        content: Content::Blank,
    }
}

fn dimm(slot: &str, serial: &str, gib: u64) -> Dimm {
    Dimm { slot: slot.into(), serial: serial.into(), size: gib << 30, vendor: "Acme".into(), ..Dimm::default() }
}

fn nic(name: &str, last: u8, link: bool) -> Nic {
    Nic { name: name.into(), mac: Mac([2, 0, 0, 0, 0, last]), driver: "mlx5_core".into(), link }
}

fn port(name: &str, address: &str) -> Port {
    Port { name: name.into(), address: address.into(), ..Port::default() }
}

fn machine() -> (Inventory, Hardware) {
    let inventory = Inventory {
        firmware: Firmware::Uefi,
        system: System::default(),
        cpu: Cpu::default(),
        memory: 64 << 30,
        nics: vec![nic("eth0", 1, true), nic("eth1", 2, true), nic("eth2", 3, true)],
        disks: vec![disk("sda", "D1", 100), disk("sdb", "D2", 100)],
    };
    let device = Device {
        address: "0000:3b:00.0".into(),
        vendor: 0x15b3,
        class: 0x02_0000,
        slot: Some("PCIe 3".into()),
        ..Device::default()
    };
    let hardware = Hardware {
        memory: vec![dimm("A1", "M1", 32), dimm("A2", "M2", 32), dimm("B1", "", 0)],
        devices: vec![device],
        ports: vec![port("eth0", "0000:01:00.0"), port("eth1", "0000:3b:00.0"), port("eth2", "0000:3b:00.1")],
        ..Hardware::default()
    };
    (inventory, hardware)
}

fn check(part: &str, change: impl FnOnce(&mut Inventory, &mut Hardware), typed: Option<&str>, expected: Expect) {
    let (mut inventory, mut hardware) = machine();
    let was = parts(&inventory, &hardware);
    let old = was.iter().find(|known| known.is_meant_by(part)).expect("the machine has it").clone();
    change(&mut inventory, &mut hardware);
    let Found { new, problems, notes } = judge(&old, &was, &parts(&inventory, &hardware), typed);
    let mut text = format!("{old} -> {}\n", new.map_or_else(|| "?".to_owned(), |new| new.to_string()));
    text.extend(problems.iter().map(|line| format!("problem: {line}\n")));
    text.extend(notes.iter().map(|line| format!("note: {line}\n")));
    expected.assert_eq(&text);
}

#[test]
fn exactly_the_named_part_is_another_one() {
    check(
        "d2",
        |inventory, _| inventory.disks = vec![disk("sda", "D9", 100), disk("sdb", "D1", 100)],
        Some(" d9 "),
        expect![[r#"
            disk sdb (SSD 100 GiB, D2) -> disk sda (SSD 100 GiB, D9)
        "#]],
    );
    check(
        "A2",
        |_, hardware| hardware.memory[1] = dimm("A2", "M9", 32),
        None,
        expect![[r#"
            memory module A2 (Acme 32 GiB, M2) -> memory module A2 (Acme 32 GiB, M9)
        "#]],
    );
    check(
        "PCIe 3",
        |inventory, _| inventory.nics[1..].clone_from_slice(&[nic("eth1", 8, true), nic("eth2", 9, true)]),
        None,
        expect![[r#"
            network card PCIe 3 (Mellanox network card, 02:00:00:00:00:02) -> network card PCIe 3 (Mellanox network card, 02:00:00:00:00:08)
        "#]],
    );
}

#[test]
fn what_is_typed_is_shown_where_it_differs_and_decides_nothing() {
    check(
        "sda",
        |inventory, _| inventory.disks[0] = disk("sda", "D9", 100),
        Some("D8\u{1b}[2J"),
        expect![[r#"
            disk sda (SSD 100 GiB, D1) -> disk sda (SSD 100 GiB, D9)
            note: "D8[2J" was typed, and the new one says that it is "D9"
        "#]],
    );
}

#[test]
fn whatever_else_is_other_or_missing_is_told_by_its_slot() {
    check(
        "A1",
        |_, _| (),
        None,
        expect![[r#"
        memory module A1 (Acme 32 GiB, M1) -> ?
        problem: memory module A1 (Acme 32 GiB, M1) is still there: it is the old one
    "#]],
    );
    check(
        "D1",
        |inventory, hardware| {
            inventory.disks.remove(0);
            hardware.memory[0].size = 0;
            hardware.memory[1] = dimm("A2", "M7", 32);
        },
        None,
        expect![[r#"
            disk sda (SSD 100 GiB, D1) -> ?
            problem: disk sda (SSD 100 GiB, D1) is gone, and no new one is found: does it sit well?
            problem: memory module A1 (Acme 32 GiB, M1) is gone, too: does it sit well?
            problem: memory module A2 (Acme 32 GiB, M2) is another one, too: memory module A2 (Acme 32 GiB, M7)
        "#]],
    );
    check(
        "A1",
        |_, hardware| hardware.memory[0] = dimm("B1", "M1", 32),
        None,
        expect![[r#"
            memory module A1 (Acme 32 GiB, M1) -> memory module B1 (Acme 32 GiB, M1)
            problem: memory module B1 (Acme 32 GiB, M1) is the old one, in another slot
        "#]],
    );
    // The wrong disk was pulled.
    check(
        "D1",
        |inventory, _| inventory.disks[1] = disk("sdb", "D9", 100),
        None,
        expect![[r#"
            disk sda (SSD 100 GiB, D1) -> ?
            problem: disk sda (SSD 100 GiB, D1) is still there: it is the old one
            problem: disk sdb (SSD 100 GiB, D2) is gone, too: does it sit well?
            problem: disk sdb (SSD 100 GiB, D9) is new, too
        "#]],
    );
}

#[test]
fn a_new_part_that_does_less_or_tells_nothing_is_a_problem() {
    check(
        "D2",
        |inventory, hardware| {
            inventory.disks[1] = disk("sdb", "D9", 50);
            let health = DriveHealth { failing: vec!["spare below threshold".into()], ..DriveHealth::default() };
            hardware.drives = vec![Drive { name: "sdb".into(), health: Some(health), ..Drive::default() }];
        },
        None,
        expect![[r#"
            disk sdb (SSD 100 GiB, D2) -> disk sdb (SSD 50 GiB, D9)
            problem: disk sdb (SSD 50 GiB, D9) says that it is failing: spare below threshold
            problem: disk sdb (SSD 50 GiB, D9) is smaller than the old one, which had 100 GiB
        "#]],
    );
    check(
        "A1",
        |_, hardware| hardware.memory[0].serial.clear(),
        None,
        expect![[r#"
        memory module A1 (Acme 32 GiB, M1) -> memory module A1 (Acme 32 GiB, tells no serial number)
        problem: memory module A1 (Acme 32 GiB, tells no serial number): it cannot be told from the old one
    "#]],
    );
    check(
        "02:00:00:00:00:02",
        |inventory, _| inventory.nics[1..].clone_from_slice(&[nic("eth1", 8, true), nic("eth2", 9, false)]),
        None,
        expect![[r#"
            network card PCIe 3 (Mellanox network card, 02:00:00:00:00:02) -> network card PCIe 3 (Mellanox network card, 02:00:00:00:00:08)
            problem: network card PCIe 3 (Mellanox network card, 02:00:00:00:00:08) has a link on 1 ports, the old one had on 2: look at its cables
        "#]],
    );
}

#[test]
fn every_kind_is_given_tests_that_there_are_and_that_destroy_nothing() {
    for kind in [Kind::Disk, Kind::Memory, Kind::NetworkCard] {
        for test in kind.tests() {
            assert!(!commission::script(test).expect("it is one").destructive, "{test}");
        }
    }
}

fn any_part() -> impl Strategy<Value = Part> {
    let kind = prop_oneof![Just(Kind::Disk), Just(Kind::Memory), Just(Kind::NetworkCard)];
    (kind, "[a-c][0-3]", "[A-D]?").prop_map(|(kind, slot, identity)| Part {
        kind,
        slot,
        serial: identity.clone(),
        identity,
        about: String::new(),
        amount: 1,
        fault: String::new(),
    })
}

fn some_parts() -> impl Strategy<Value = Vec<Part>> {
    prop::collection::vec(any_part(), 0..8).prop_map(|parts| {
        let mut seen = BTreeSet::new();
        parts.into_iter().filter(|part| seen.insert((part.kind, part.place().1.to_owned()))).collect()
    })
}

proptest! {
    #[test]
    fn nothing_is_wrong_only_if_exactly_the_named_part_is_another(
        was in some_parts(), is in some_parts(), which in any::<prop::sample::Index>(),
    ) {
        prop_assume!(!was.is_empty());
        let old = which.get(&was).clone();
        let found = judge(&old, &was, &is, None);
        if found.problems.is_empty() {
            let new = found.new.expect("something is in its place");
            prop_assert!(!new.identity.is_empty() && new.identity != old.identity);
            let rest = |parts: &[Part], without: &Part| -> BTreeSet<(Kind, String, String)> {
                let others = parts.iter().filter(|part| part.place() != without.place());
                others.map(|part| (part.kind, part.place().1.to_owned(), part.identity.clone())).collect()
            };
            prop_assert_eq!(rest(&was, &old), rest(&is, &new));
        }
    }

    #[test]
    fn swapping_one_part_is_always_found(was in some_parts(), which in any::<prop::sample::Index>()) {
        prop_assume!(!was.is_empty());
        let at = which.index(was.len());
        prop_assume!(was.iter().all(|part| part.kind != Kind::Disk || !part.identity.is_empty()));
        let mut is = was.clone();
        is[at].identity = "new".into();
        let found = judge(&was[at], &was, &is, None);
        prop_assert_eq!(found, Found { new: Some(is[at].clone()), ..Found::default() });
    }
}
