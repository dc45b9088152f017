use expect_test::expect;
use proptest::prelude::*;
use rackhand_common::{
    hardware::{Board, Device},
    machine::{Cpu, Firmware, System},
};

use super::*;

const TOY: &str = include_str!("../../../../firmware-scripts/firmware/toy-bmc.toml");

fn toy() -> Manifest {
    Manifest::parse(TOY).unwrap()
}

fn machine(vendor: &str) -> Inventory {
    Inventory {
        firmware: Firmware::Uefi,
        system: System { vendor: vendor.into(), product: "One".into(), serial: "S1".into(), uuid: None },
        cpu: Cpu { model: "cpu".into(), threads: 4 },
        memory: 1 << 30,
        nics: Vec::new(),
        disks: Vec::new(),
    }
}

#[test]
fn the_example_is_a_manifest() {
    let update = toy().update().unwrap();
    assert_eq!((update.place, update.version.as_str(), update.size), (Place::Bmc, "2.18", 8));
    assert_eq!(toy().unfit(&machine("rackhand"), None), None);
}

#[test]
fn what_is_wrong_with_a_manifest_is_said_with_its_line() {
    let with = |from: &str, to: &str| {
        assert!(TOY.contains(from), "{from}");
        match Manifest::parse(&TOY.replace(from, to)) {
            Ok(_) => "is taken".to_owned(),
            Err(error) => error.to_string(),
        }
    };
    let wrong = [
        with("name = \"toy-bmc-2.18\"", "name = \"Toy BMC\""),
        with("component = \"bmc\"", "component = \"nic\""),
        with("component = \"bmc\"", "component = \"nic\"\ninventory = \"../BMC\""),
        with("\"2.16\"", "\"2.18\""),
        with("method = \"redfish\"", "method = \"prayer\""),
        with("bmc-2.18.bin", "../bmc-2.18.bin"),
        with("size = 8", "size = 0"),
        with("sha256 = \"", "sha256 = \"X"),
        with("timeout = 30", "timeout = 0"),
        with("order = 10", "order = 10\nforce = true"),
        with("vendor = \"Rackhand\"", "product = \"One\""),
        with("vendor = \"Rackhand\"", "device = \"15b3\""),
        with("version = \"2.18\"", "version = \"\""),
        with("[match]", "[match"),
        Manifest::parse(&format!("# {}", "x".repeat(MAX_MANIFEST))).unwrap_err().to_string(),
        Manifest::parse("").unwrap_err().to_string(),
    ];
    expect![[r#"
        line 3: `name` is of lower-case letters, digits, `.`, `-` and `_`, at most 63
        line 17: `inventory` is needed: nothing else tells the version of a nic
        line 5: `inventory` is the id of one member, and "../BMC" is none
        line 6: `from` has the very version that is to be there afterwards
        line 7: unknown variant `prayer`, expected `redfish` or `script`
        line 8: `file` is a name, without directories
        line 9: `size` is of 1 to 1073741824 bytes
        line 10: `sha256` is of 64 digits in lower-case hexadecimal, as `sha256sum` prints them
        line 13: `timeout` is of 1 to 14400 seconds
        line 12: unknown field `force`, expected one of `name`, `component`, `version`, `from`, `method`, `script`, `arguments`, `file`, `size`, `sha256`, `inventory`, `targets`, `restart`, `order`, `timeout`, `settle`, `match`
        line 16: `match` names a vendor, a board, a device or a model: firmware is for nobody else's
        line 17: `device` is of two ids of four hexadecimal digits (`15b3:1017`), and "15b3" is none
        line 5: `version` is a word of at most 128 bytes
        line 16: unclosed table, expected `]`
        line 1: it is longer than 16384 bytes
        line 1: missing field `name`"#]]
    .assert_eq(&wrong.join("\n"));
}

#[test]
fn firmware_is_for_machines_that_have_all_that_it_names() {
    let hardware = Hardware {
        board: Board { product: "X11".into(), ..Board::default() },
        devices: vec![Device { vendor: 0x15b3, device: 0x1017, ..Device::default() }],
        ..Hardware::default()
    };
    let fits = |matches: Match, hardware: Option<&Hardware>| {
        Manifest { matches, ..toy() }.unfit(&machine("Acme"), hardware).is_none()
    };
    let word = |text: &str| Some(text.to_owned());
    let board = Match { board: word("x11"), ..Match::default() };
    let device = Match { device: word("15B3:1017"), ..Match::default() };
    let both = Match { vendor: word("acme"), ..device.clone() };
    assert!(fits(board.clone(), Some(&hardware)) && !fits(board, None));
    assert!(fits(device.clone(), Some(&hardware)) && !fits(device, None));
    assert!(fits(both.clone(), Some(&hardware)));
    assert!(!fits(Match { product: word("Two"), ..both.clone() }, Some(&hardware)));
    assert!(!fits(Match { device: word("15b3:1018"), ..both }, Some(&hardware)));
}

#[test]
fn drift_is_what_was_read_last_beside_what_is_wanted() {
    let second = |second: i64| Timestamp::from_second(second).unwrap();
    let reading = |version: &str, at| Reading { place: Place::Bmc, version: version.into(), at: second(at) };
    let manifests = BTreeMap::from([
        ("toy-bmc-2.18".to_owned(), toy()),
        ("other".to_owned(), Manifest { matches: Match { vendor: Some("Acme".into()), ..Match::default() }, ..toy() }),
    ]);
    let told = |names: &[&str], readings: &[Reading]| {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let found = drift(&names, &manifests, &machine("Rackhand"), None, readings);
        found.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    let toy = ["toy-bmc-2.18", "other", "toy-bmc-2.18"];
    assert_eq!(told(&toy, &[]), "firmware of bmc was never read, 2.18 is wanted (toy-bmc-2.18)");
    let old = [reading("2.18", 1), reading("2.17", 2)];
    assert_eq!(told(&toy, &old), "firmware of bmc is 2.17, 2.18 is wanted (toy-bmc-2.18)");
    assert_eq!(told(&toy, &[reading("2.18", 3), reading("2.17", 2)]), "");
    // Later is not better: what is wanted is what the plan names.
    assert_eq!(told(&toy, &[reading("2.19", 3)]), "firmware of bmc is 2.19, 2.18 is wanted (toy-bmc-2.18)");
    assert_eq!(told(&["gone"], &[]), "firmware gone of the plan is not imported");
}

#[test]
fn manifests_are_installed_by_order_and_then_by_name() {
    let named = |name: &str, order| Manifest { name: name.into(), order, ..toy() };
    let mut all = [named("b", 20), named("c", 10), named("a", 20)];
    in_order(&mut all);
    assert_eq!(all.map(|manifest| manifest.name), ["c", "a", "b"]);
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in "\\PC{0,200}", at in 0..700_usize) {
        let _ = Manifest::parse(&text).map_err(|error| error.to_string());
        let at = (0..=at.min(TOY.len())).rev().find(|at| TOY.is_char_boundary(*at)).unwrap_or(0);
        let spoilt = format!("{}{text}{}", &TOY[..at], &TOY[at..]);
        if let Err(BadManifest { line, .. }) = Manifest::parse(&spoilt) {
            prop_assert!((1..=spoilt.lines().count().max(1) + 1).contains(&line));
        }
    }
}

const DRIVE: &str = "name = \"drive-2\"\ncomponent = \"nvme\"\nversion = \"2\"\nmethod = \"script\"\nscript = \"nvme\"\n\
     arguments = [\"activate\"]\nfile = \"drive.bin\"\nsize = 8\n\
     sha256 = \"58252aa7490ee595ad5e68d21029416d067b7160f2734c5ac57c3f19c134e5e7\"\n[match]\nmodel = \"Acme NV\"\n";

#[test]
fn a_script_is_named_with_the_parts_that_it_updates() {
    let update = Manifest::parse(DRIVE).unwrap().update().unwrap();
    assert_eq!(update.place, Place::Parts(Parts::Drives("Acme NV".into())));
    let by = update.script.unwrap();
    assert_eq!((by.script.as_str(), by.arguments.as_slice()), ("nvme", &["activate".to_owned()][..]));
    let with = |from: &str, to: &str| {
        assert!(DRIVE.contains(from), "{from}");
        Manifest::parse(&DRIVE.replace(from, to)).map_or_else(|error| error.to_string(), |_| "is taken".to_owned())
    };
    let wrong = [
        with("script = \"nvme\"\n", ""),
        with("\"nvme\"\narg", "\"prayer\"\narg"),
        with("\"activate\"", "\"\""),
        with("method = \"script\"", "method = \"redfish\"\ninventory = \"NVMe.1\""),
        with("size", "inventory = \"NVMe.1\"\nsize"),
        with("size", "targets = [\"/redfish/v1/UpdateService/FirmwareInventory/1\"]\nsize"),
        with("model = \"Acme NV\"", "vendor = \"Acme\""),
        with("model = \"Acme NV\"", "model = \"Acme NV\"\ndevice = \"15b3:1017\""),
        with("model = \"Acme NV\"", "device = \"15B3:1017\""),
    ];
    expect![[r#"
        line 4: `method` `script` needs a `script`: one of nvme, updater
        line 5: `script` is one of nvme, updater, and "prayer" is none
        line 6: `arguments` are at most 32 words of at most 128 bytes
        line 6: `script` goes with the method `script`
        line 8: `inventory` is a BMC's, and a script's versions are read by the installer
        line 8: `targets` are a BMC's, and goes with the method `redfish`
        line 10: `match` names the parts that a script updates: either `device`, of a network card, or `model`, of a drive
        line 10: `match` names the parts that a script updates: either `device`, of a network card, or `model`, of a drive
        is taken"#]].assert_eq(&wrong.join("\n"));
}

#[test]
fn what_parts_have_is_what_the_installer_told_of_all_of_them() {
    use rackhand_common::{
        hardware::{Drive, Port},
        machine::{Content, Disk},
    };
    let disk = |name: &str, model: &str| Disk {
        name: name.into(),
        model: model.into(),
        serial: name.into(),
        wwn: None,
        size: 1 << 30,
        sector: 512,
        rotational: false,
        content: Content::Blank,
    };
    let disks = vec![disk("nvme0n1", "ACME NV "), disk("nvme1n1", "Acme NV"), disk("sda", "Other")];
    let machine = Inventory { disks, ..machine("Acme") };
    let drive = |name: &str, firmware: &str| Drive { name: name.into(), firmware: firmware.into(), ..Drive::default() };
    let hardware = |first: &str, second: &str| Hardware {
        drives: vec![drive("nvme0n1", first), drive("nvme1n1", second), drive("sda", "9")],
        devices: vec![Device { address: "0000:3b:00.0".into(), vendor: 0x15b3, device: 0x1017, ..Device::default() }],
        ports: vec![
            Port { name: "eth0".into(), firmware: "14.1".into(), address: "0000:3b:00.0".into(), ..Port::default() },
            Port { name: "eth1".into(), firmware: "7".into(), ..Port::default() },
        ],
        ..Hardware::default()
    };
    let card = DRIVE.replace("drive-2", "card-2").replace("model = \"Acme NV\"", "device = \"15B3:1017\"");
    let manifests = [DRIVE, &card].map(|text| Manifest::parse(text).unwrap());
    let manifests = manifests.map(|manifest| (manifest.name.clone(), manifest)).into();
    let told = |hardware: Option<&Hardware>| {
        let found = drift(&["drive-2".to_owned(), "card-2".to_owned()], &manifests, &machine, hardware, &[]);
        found.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    let told =
        [told(None), told(Some(&hardware("1", "2"))), told(Some(&hardware("2", ""))), told(Some(&hardware("2", "2 ")))];
    expect![[r#"
        firmware of nvme was never read, 2 is wanted (drive-2)

        firmware of nvme is 1 and 2, 2 is wanted (drive-2)
        firmware of nvme is 14.1, 2 is wanted (card-2)

        firmware of nvme was never read, 2 is wanted (drive-2)
        firmware of nvme is 14.1, 2 is wanted (card-2)

        firmware of nvme is 14.1, 2 is wanted (card-2)"#]]
    .assert_eq(&told.join("\n\n"));
    assert!(manifests["drive-2"].unfit(&Inventory { disks: Vec::new(), ..machine.clone() }, None).is_some());
}
