//! What is found in machines that are not as expected.

use expect_test::{Expect, expect};
use proptest::prelude::*;
use rackhand_common::{
    hardware::{Bios, Device, Drive, DriveHealth, Ecc, Link, Port, Slot, Socket},
    machine::{self, Content, Cpu, Mac, Nic, System},
};

use super::*;

const TB: u64 = 1_000_000_000_000;

fn disk(name: &str, size: u64) -> Disk {
    Disk {
        name: name.into(),
        model: "PM9A3".into(),
        serial: format!("S-{name}"),
        wwn: None,
        size,
        sector: 512,
        rotational: false,
        content: Content::Blank,
    }
}

fn server() -> (Inventory, Hardware) {
    let nic = |name: &str, last| Nic {
        name: name.into(),
        mac: Mac([2, 0, 0, 0, 0, last]),
        driver: "mlx5_core".into(),
        link: true,
    };
    let inventory = Inventory {
        firmware: machine::Firmware::Uefi,
        system: System { vendor: "Dell Inc.".into(), product: "PowerEdge R640".into(), ..System::default() },
        cpu: Cpu { model: "Intel(R) Xeon(R) Gold 6130 CPU @ 2.10GHz".into(), threads: 64 },
        memory: 500 << 30,
        nics: vec![nic("eth0", 1), nic("eth1", 2)],
        disks: vec![disk("nvme0n1", TB), disk("nvme1n1", TB + TB / 50)],
    };
    let slots = ["A1", "A2", "A3", "A4"].map(|slot| Dimm {
        slot: slot.into(),
        size: 32 << 30,
        kind: "DDR4".into(),
        speed: 2933,
        ..Dimm::default()
    });
    let empty = Dimm { slot: "B1".into(), ..Dimm::default() };
    let socket = |slot: &str, populated| Socket { slot: slot.into(), populated, ..Socket::default() };
    let device = Device {
        address: "0000:3b:00.0".into(),
        vendor: 0x15b3,
        device: 0x1017,
        class: 0x02_0000,
        slot: Some("PCIE2".into()),
        link: Some(Link { speed: 8000, lanes: 16 }),
        most: Some(Link { speed: 8000, lanes: 16 }),
        ..Device::default()
    };
    let port = |name: &str| Port {
        name: name.into(),
        speed: Some(25_000),
        firmware: "14.31.1014 (DEL0000000016)".into(),
        ..Port::default()
    };
    let hardware = Hardware {
        bios: Bios { version: "2.10.2".into(), ..Bios::default() },
        processors: vec![socket("CPU1", true), socket("CPU2", true)],
        memory: slots.into_iter().chain([empty]).collect(),
        slots: vec![Slot { name: "PCIE2".into(), lanes: 16, ..Slot::default() }],
        devices: vec![device],
        ports: vec![port("eth0"), port("eth1")],
        drives: ["nvme0n1", "nvme1n1"]
            .map(|name| Drive { name: name.into(), firmware: "GDC5602Q".into(), ..Drive::default() })
            .into(),
        ..Hardware::default()
    };
    (inventory, hardware)
}

/// What is found once a machine was changed, by a plan that was suggested before.
fn check(change: impl FnOnce(&mut Inventory, &mut Hardware), expected: Expect) {
    let (mut inventory, mut hardware) = server();
    let rules = Rules { expects: Some(Expects::suggest(&inventory, &hardware)), ..Rules::suggest(&inventory) };
    assert_eq!(examine([("large", &rules)], &inventory, Some(&hardware)).findings, []);
    change(&mut inventory, &mut hardware);
    let examined = examine([("large", &rules)], &inventory, Some(&hardware));
    assert_eq!(examined.plan.as_deref(), Some("large"));
    let lines: Vec<_> = examined
        .findings
        .iter()
        .map(|finding| format!("{:?} {}: {finding}", finding.component, finding.place))
        .collect();
    expected.assert_eq(&lines.join("\n"));
}

#[test]
fn a_missing_module_is_named_by_its_slot() {
    check(|_, hardware| hardware.memory[2].size = 0, expect!["Memory A3: DIMM A3 is missing: 3 of 4"]);
    check(
        |_, hardware| {
            hardware.memory[4].size = 32 << 30;
            hardware.memory[0].size = 16 << 30;
            hardware.memory[1].speed = 2666;
        },
        expect![[r#"
            Memory B1: DIMM B1 is not expected there
            Memory A1: DIMM A1 has 16.0 GiB, 32.0 GiB is expected
            Memory A2: DIMM A2 runs at 2666 MT/s, 2933 is expected"#]],
    );
}

#[test]
fn a_narrow_link_is_named_by_its_slot_with_the_card_in_it() {
    let narrow = |hardware: &mut Hardware| hardware.devices[0].link = Some(Link { speed: 8000, lanes: 8 });
    check(
        |_, hardware| narrow(hardware),
        expect!["Device PCIE2: x8 link in the x16 slot PCIE2 (0000:3b:00.0, Mellanox network card 15b3:1017)"],
    );
    check(
        |_, hardware| {
            narrow(hardware);
            hardware.devices[0].slot = None;
        },
        expect!["Device 0000:3b:00.0: x8 link, x16 is possible (0000:3b:00.0, Mellanox network card 15b3:1017)"],
    );
    // In a slot that cannot do more, which no fault but the plan tells.
    check(
        |_, hardware| {
            narrow(hardware);
            hardware.devices[0].most = Some(Link { speed: 8000, lanes: 8 });
        },
        expect!["Device PCIE2: x8 link in PCIE2, x16 is expected (0000:3b:00.0, Mellanox network card 15b3:1017)"],
    );
}

#[test]
fn processors_disks_ports_and_firmware_are_told() {
    check(
        |inventory, hardware| {
            hardware.processors[1].populated = false;
            inventory.disks[1] = disk("nvme1n1", 2 * TB);
            hardware.ports[1].speed = Some(10_000);
            hardware.bios.version = "2.9.4".into();
        },
        expect![[r#"
            Processor CPU2: processor CPU2 is missing: 1 of 2
            Disk nvme1n1: disk PM9A3/S-nvme1n1 is not expected: NVMe of 1862.6 GiB
            Disk : a NVMe disk of at least 884.7 GiB is missing: 1 of 2
            Port eth1: port eth1 (02:00:00:00:00:02) runs at 10000 Mb/s, 25000 is expected
            Firmware the BIOS: firmware of the BIOS is 2.9.4, at least 2.10.2 is expected"#]],
    );
}

#[test]
fn a_fault_needs_no_plan() {
    let (inventory, mut hardware) = server();
    hardware.ecc = vec![Ecc { label: "CPU#0 DIMM#1".into(), corrected: 9, uncorrected: 2 }];
    let failing = DriveHealth { failing: vec!["media is read-only".into()], ..DriveHealth::default() };
    hardware.drives[1].health = Some(failing);
    let examined = examine([], &inventory, Some(&hardware));
    let texts: Vec<_> = examined.findings.iter().map(ToString::to_string).collect();
    assert_eq!(examined.plan, None);
    assert_eq!(
        texts,
        [
            "memory CPU#0 DIMM#1 had 2 errors that could not be corrected",
            "disk PM9A3/S-nvme1n1 fails: media is read-only"
        ]
    );
}

#[test]
fn a_machine_is_held_against_the_plan_it_comes_nearest_to() {
    let (inventory, hardware) = server();
    let plan = |slots: &[&str], product: &str| Rules {
        product: Some(product.into()),
        expects: Some(Expects {
            memory: Some(Memory { slots: slots.iter().map(|slot| (*slot).into()).collect(), ..Memory::default() }),
            ..Expects::default()
        }),
        ..Rules::default()
    };
    let small = plan(&["A1", "A2"], "PowerEdge R640");
    let large = plan(&["A1", "A2", "A3", "A4"], "PowerEdge R640");
    let other = plan(&["Z1"], "PowerEdge R750");
    let nothing = Rules::default();
    let all = [("small", &small), ("large", &large), ("other", &other), ("nothing", &nothing)];
    let nearest = |lost: usize| {
        let mut hardware = hardware.clone();
        hardware.memory.drain(..lost);
        let examined = examine(all, &inventory, Some(&hardware));
        (examined.plan.unwrap(), examined.findings.len())
    };
    assert_eq!(nearest(0), ("large".into(), 0));
    assert_eq!(nearest(1), ("large".into(), 1));
    // Of a machine that tells nothing it is not known how near it is to which; what is known is that.
    let unknown = examine(all, &inventory, None);
    assert_eq!((unknown.plan.as_deref(), unknown.findings[0].component), (Some("large"), Component::Machine));
    assert_eq!(examine([("nothing", &nothing)], &inventory, None), Examined::default());
}

#[test]
fn versions_are_compared_as_their_makers_mean_them() {
    let ascending = [&["1.9", "1.10", "1.10a", "1.10b", "2.0", "14.31.1014"][..], &["U30", "U46 v2", "U46 v10"]];
    for pair in ascending.iter().flat_map(|versions| versions.windows(2)) {
        assert_eq!(by_version(pair[0], pair[1]), Ordering::Less, "{pair:?}");
    }
    assert_eq!(by_version("v1.08", "V1.8"), Ordering::Equal);
    assert_eq!(by_version("99999999999999999999999", "100000000000000000000000"), Ordering::Less);
}

#[test]
fn what_is_expected_is_bounded() {
    let devices =
        |id: &str| Expects { devices: vec![Devices { count: 1, id: id.into(), lanes: None }], ..Expects::default() };
    assert_eq!(devices("15b3:1017").unsound(), None);
    assert!(devices("15b3").unsound().is_some());
    let many = Expects { devices: vec![devices("15b3:1017").devices[0].clone(); 129], ..Expects::default() };
    assert!(many.unsound().is_some());
    let long = Memory { slots: vec!["x".repeat(65)], ..Memory::default() };
    assert!(Expects { memory: Some(long), ..Expects::default() }.unsound().is_some());
    // Counts that no machine has end too.
    let (inventory, hardware) = server();
    let absurd = Disks { count: u32::MAX, kind: Kind::Hdd, least: 0, most: u64::MAX };
    let absurd = Expects { disks: vec![absurd], ..Expects::default() };
    assert!(compare(&absurd, &inventory, Some(&hardware)).len() < 200);
}

fn any_server() -> impl Strategy<Value = (Inventory, Hardware)> {
    let disks = proptest::collection::vec((0usize..3, 1u64..20 * TB), 0..10);
    let dimms = proptest::collection::vec((0u64..3, 1u32..6), 0..16);
    let nics = proptest::collection::vec((0usize..2, proptest::option::of(1u32..100)), 0..6);
    let devices = proptest::collection::vec((0u16..3, proptest::option::of(1u32..16)), 0..6);
    (disks, dimms, nics, devices).prop_map(|(disks, dimms, nics, devices)| {
        let (mut inventory, mut hardware) = server();
        inventory.disks = disks.into_iter().map(|(kind, size)| disk(["nvme0n1", "sda", "vda"][kind], size)).collect();
        let dimm = |(at, (size, speed)): (usize, (u64, u32))| Dimm {
            slot: format!("S{at}"),
            size: size << 34,
            speed: speed * 400,
            ..Dimm::default()
        };
        hardware.memory = dimms.into_iter().enumerate().map(dimm).collect();
        inventory.nics.truncate(0);
        hardware.ports.truncate(0);
        for (at, (driver, speed)) in nics.into_iter().enumerate() {
            let name = format!("eth{at}");
            let driver = ["tg3", "ice"][driver].to_owned();
            inventory.nics.push(Nic { name: name.clone(), mac: Mac([2, 0, 0, 0, 0, at as u8]), driver, link: true });
            hardware.ports.push(Port { name, speed, ..Port::default() });
        }
        let link = |lanes| Link { speed: 8000, lanes };
        hardware.devices = devices
            .into_iter()
            .map(|(device, lanes)| Device { device, link: lanes.map(link), most: lanes.map(link), ..Device::default() })
            .collect();
        (inventory, hardware)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_suggested_finds_nothing_and_every_part_that_goes((inventory, hardware) in any_server()) {
        let expects = Expects::suggest(&inventory, &hardware);
        prop_assert_eq!(expects.unsound(), None);
        prop_assert_eq!(compare(&expects, &inventory, Some(&hardware)), vec![]);
        let json = serde_json::to_string(&expects).unwrap();
        prop_assert_eq!(&serde_json::from_str::<Expects>(&json).unwrap(), &expects);
        for at in 0..inventory.disks.len() {
            let mut less = inventory.clone();
            less.disks.remove(at);
            prop_assert!(!compare(&expects, &less, Some(&hardware)).is_empty());
        }
        for at in 0..inventory.nics.len() {
            let mut less = inventory.clone();
            less.nics.remove(at);
            prop_assert!(!compare(&expects, &less, Some(&hardware)).is_empty());
        }
        let full = hardware.memory.iter().filter(|dimm| dimm.size > 0).count();
        for at in 0..hardware.memory.len() {
            let mut less = hardware.clone();
            let gone = std::mem::take(&mut less.memory[at].size) > 0;
            // With its last module a machine tells nothing of memory, and does not run.
            prop_assert_eq!(compare(&expects, &inventory, Some(&less)).is_empty(), !gone || full == 1);
        }
        for at in 0..hardware.devices.len() {
            let mut less = hardware.clone();
            less.devices.remove(at);
            prop_assert!(!compare(&expects, &inventory, Some(&less)).is_empty());
        }
    }
}
