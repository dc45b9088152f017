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
        line 7: unknown variant `prayer`, expected `redfish`
        line 8: `file` is a name, without directories
        line 9: `size` is of 1 to 1073741824 bytes
        line 10: `sha256` is of 64 digits in lower-case hexadecimal, as `sha256sum` prints them
        line 13: `timeout` is of 1 to 14400 seconds
        line 12: unknown field `force`, expected one of `name`, `component`, `version`, `from`, `method`, `file`, `size`, `sha256`, `inventory`, `targets`, `restart`, `order`, `timeout`, `settle`, `match`
        line 16: `match` names a vendor, a board or a device: firmware is for nobody else's
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
