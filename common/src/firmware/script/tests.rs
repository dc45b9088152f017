use expect_test::expect;
use jiff::Timestamp;
use proptest::prelude::*;

use super::*;

fn order(restart: bool, confirm: bool) -> Order {
    Order {
        name: "toy-2".into(),
        by: Scripted { script: "nvme".into(), arguments: Vec::new(), parts: Parts::Drives("Toy".into()) },
        version: "2".into(),
        from: vec!["1".into()],
        file: "toy.bin".into(),
        size: 8,
        sha256: "0".repeat(64),
        restart,
        confirm,
        timeout: 60,
        settle: 5,
        mainboard: None,
    }
}

fn found(versions: &[&str]) -> BTreeMap<String, String> {
    versions.iter().enumerate().map(|(at, version)| (format!("nvme{at}n1"), (*version).to_owned())).collect()
}

fn tested(outcome: commission::Outcome) -> Tested {
    let script = script("nvme").unwrap();
    let reason = if outcome == commission::Outcome::Passed { "" } else { "it is warm" };
    script.not_run(outcome, reason, Timestamp::UNIX_EPOCH)
}

#[test]
fn every_script_of_this_repository_is_read_and_named_as_its_file() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../firmware-scripts/firmware");
    let files = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = files.filter_map(|file| file.strip_suffix(".sh").map(str::to_owned)).collect();
    names.sort();
    let known: Vec<_> = scripts().iter().map(|script| script.name.clone()).collect();
    assert_eq!(known, names);
}

#[test]
fn what_is_done_follows_from_what_was_begun_and_the_versions() {
    let mut table = String::new();
    for versions in [&[][..], &["1"], &["2"], &["0"], &["1", "2"], &["1", ""]] {
        for (begun, confirm) in [(false, false), (true, false), (true, true)] {
            let next = order(false, confirm).next(begun, &found(versions));
            let begun = if begun { ", begun" } else { "" };
            let confirm = if confirm { ", started anew" } else { "" };
            table += &format!("{versions:?}{begun}{confirm}: {next:?}\n");
        }
    }
    expect![[r#"
        []: End(Refused("the machine tells of no drives Toy"))
        [], begun: End(Failed("the machine started anew while the script ran, which is not run again: drives Toy should have 2 by now, and none of them is told of"))
        [], begun, started anew: End(Failed("drives Toy should have 2 by now, and none of them is told of"))
        ["1"]: Run(["nvme0n1"])
        ["1"], begun: End(Failed("the machine started anew while the script ran, which is not run again: drives Toy should have 2 by now, and nvme0n1 has 1"))
        ["1"], begun, started anew: End(Failed("drives Toy should have 2 by now, and nvme0n1 has 1"))
        ["2"]: End(Installed)
        ["2"], begun: End(Installed)
        ["2"], begun, started anew: End(Installed)
        ["0"]: End(Refused("nvme0n1 has 0, and this is installed over 1 only"))
        ["0"], begun: End(Failed("the machine started anew while the script ran, which is not run again: drives Toy should have 2 by now, and nvme0n1 has 0"))
        ["0"], begun, started anew: End(Failed("drives Toy should have 2 by now, and nvme0n1 has 0"))
        ["1", "2"]: Run(["nvme0n1"])
        ["1", "2"], begun: End(Failed("the machine started anew while the script ran, which is not run again: drives Toy should have 2 by now, and nvme0n1 has 1"))
        ["1", "2"], begun, started anew: End(Failed("drives Toy should have 2 by now, and nvme0n1 has 1"))
        ["1", ""]: End(Refused("nvme1n1 tells no version, so that nothing would prove that it is installed"))
        ["1", ""], begun: End(Failed("the machine started anew while the script ran, which is not run again: drives Toy should have 2 by now, and nvme0n1 has 1, nvme1n1 tells none"))
        ["1", ""], begun, started anew: End(Failed("drives Toy should have 2 by now, and nvme0n1 has 1, nvme1n1 tells none"))
    "#]]
    .assert_eq(&table);
}

#[test]
fn only_the_version_says_that_it_is_installed_and_only_what_changed_nothing_is_refused() {
    let was = found(&["1"]);
    let mut table = String::new();
    for outcome in [
        commission::Outcome::Passed,
        commission::Outcome::Failed,
        commission::Outcome::Skipped,
        commission::Outcome::Broken,
    ] {
        for (version, restart) in [("1", false), ("1", true), ("1.5", false), ("2", true)] {
            let ended = order(restart, false).judge(&tested(outcome), &was, &found(&[version]));
            let restart = if restart { ", wants a start" } else { "" };
            table += &format!("{outcome}, {version}{restart}: {ended:?}\n");
        }
    }
    expect![[r#"
        passed, 1: Failed("the script says that all is well, and drives Toy should have 2 by now, and nvme0n1 has 1")
        passed, 1, wants a start: Staged
        passed, 1.5: Failed("the script says that all is well, and drives Toy should have 2 by now, and nvme0n1 has 1.5")
        passed, 2, wants a start: Installed
        failed, 1: Failed("test nvme failed: it is warm; drives Toy should have 2 by now, and nvme0n1 has 1")
        failed, 1, wants a start: Failed("test nvme failed: it is warm; drives Toy should have 2 by now, and nvme0n1 has 1")
        failed, 1.5: Failed("test nvme failed: it is warm; drives Toy should have 2 by now, and nvme0n1 has 1.5")
        failed, 2, wants a start: Installed
        skipped, 1: Refused("it is warm")
        skipped, 1, wants a start: Refused("it is warm")
        skipped, 1.5: Failed("test nvme skipped: it is warm; drives Toy should have 2 by now, and nvme0n1 has 1.5")
        skipped, 2, wants a start: Installed
        broken, 1: Failed("test nvme broken: it is warm; drives Toy should have 2 by now, and nvme0n1 has 1")
        broken, 1, wants a start: Failed("test nvme broken: it is warm; drives Toy should have 2 by now, and nvme0n1 has 1")
        broken, 1.5: Failed("test nvme broken: it is warm; drives Toy should have 2 by now, and nvme0n1 has 1.5")
        broken, 2, wants a start: Installed
    "#]]
    .assert_eq(&table);
}

proptest! {
    #[test]
    fn what_may_have_begun_is_never_run_and_what_is_told_is_sound(
        versions in prop::collection::btree_map("[a-z0-9\u{7}é]{0,9}", "[0-9.\u{1b}]{0,700}|2", 0..200),
        begun: bool, confirm: bool, restart: bool,
    ) {
        let order = order(restart, confirm);
        let all = !versions.is_empty() && versions.values().all(|version| version == "2");
        let outcome = match order.next(begun, &versions) {
            Next::Run(parts) => {
                prop_assert!(!begun && !confirm && !parts.is_empty());
                prop_assert!(parts.iter().all(|part| versions[part] == "1"));
                Outcome::Staged
            }
            Next::End(outcome) => outcome,
        };
        prop_assert_eq!(all, outcome == Outcome::Installed);
        let updated = Updated { name: "toy".into(), outcome, was: versions, tested: None }.sound();
        prop_assert!(updated.is_sound(), "{updated:?}");
    }
}
