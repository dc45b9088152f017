use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;

/// Climbs with a machine that goes by these ways as is said, each otherwise as by `_`: the ways, and
/// then what is reported.
fn check(ways: Ways, goes: &[(Option<Rung>, &Went)], expected: Expect) {
    let (mut tries, mut told) = (Vec::new(), String::new());
    loop {
        match next(ways, &tries) {
            Next::Report(report) => break told += &format!("{report}\n"),
            Next::Start(rung) => {
                told += &format!("{rung}\n");
                let went = goes.iter().find(|(of, _)| of.is_none_or(|of| of == rung)).unwrap().1.clone();
                tries.push(Try { rung, went });
            }
        }
    }
    expected.assert_eq(&told);
}

const REDFISH: Ways = Ways { switch: Switch::Redfish, firmware: Firmware::Uefi, before: None };
const NOTHING: &Went = &Went::Started(Seen::Nothing);

#[test]
fn a_machine_of_which_nothing_is_seen_is_started_in_every_way() {
    check(
        REDFISH,
        &[(None, NOTHING)],
        expect![[r#"
            UEFI HTTP boot, once
            network boot, once
            network boot, at every start
            virtual media
            its installer did not come: UEFI HTTP boot, once: nothing came from its network card; network boot, once: nothing came from its network card; network boot, at every start: nothing came from its network card; virtual media: nothing came from its network card. Look at: does it pass its self-test (its screen, or its console), is the card it boots from cabled, and is network boot of that card enabled in its firmware
        "#]],
    );
}

#[test]
fn what_a_bmc_does_not_have_is_passed_over_and_named() {
    let no = &Went::Unsupported("it has no such drive".to_owned());
    check(
        Ways { firmware: Firmware::Bios, ..REDFISH },
        &[(Some(Rung::Media), no), (None, &Went::Started(Seen::Disk))],
        expect![[r#"
            network boot, once
            network boot, at every start
            virtual media
            its installer did not come: network boot, once: it started what is on its disk; network boot, at every start: it started what is on its disk; virtual media: not possible, it has no such drive. Look at: its firmware does not follow its BMC: put the network first in its boot order
        "#]],
    );
}

#[test]
fn over_ipmi_it_is_once_then_lasting_then_a_report() {
    check(
        Ways { switch: Switch::Ipmi, ..REDFISH },
        &[(None, NOTHING)],
        expect![[r#"
            network boot, once
            network boot, at every start
            its installer did not come: network boot, once: nothing came from its network card; network boot, at every start: nothing came from its network card. Look at: does it pass its self-test (its screen, or its console), is the card it boots from cabled, and is network boot of that card enabled in its firmware
        "#]],
    );
}

#[test]
fn firmware_that_followed_is_not_asked_to_follow_always() {
    check(
        REDFISH,
        &[(None, &Went::Started(Seen::Address))],
        expect![[r#"
            UEFI HTTP boot, once
            network boot, once
            virtual media
            its installer did not come: UEFI HTTP boot, once: its firmware asked for an address and fetched no loader; network boot, once: its firmware asked for an address and fetched no loader; virtual media: its firmware asked for an address and fetched no loader. Look at: does a switch or another DHCP server stand between it and its node, and is TFTP let through
        "#]],
    );
}

#[test]
fn a_machine_that_loads_the_kernel_is_started_once_more_and_in_no_other_way() {
    check(
        REDFISH,
        &[(None, &Went::Started(Seen::Kernel))],
        expect![[r#"
            UEFI HTTP boot, once
            UEFI HTTP boot, once
            its installer did not come: UEFI HTTP boot, once: it fetched the installer's kernel, and no installer connected; UEFI HTTP boot, once: it fetched the installer's kernel, and no installer connected. Look at: its screen or its console: the installer was given to it and does not start
        "#]],
    );
}

#[test]
fn an_operators_command_is_run_twice() {
    check(
        Ways { switch: Switch::Command, ..REDFISH },
        &[(None, &Went::Started(Seen::Disk))],
        expect![[r#"
            network boot, once
            network boot, once
            its installer did not come: network boot, once: it started what is on its disk; network boot, once: it started what is on its disk. Look at: its firmware does not follow its BMC: put the network first in its boot order
        "#]],
    );
}

#[test]
fn whoever_does_not_switch_it_is_not_asked_for_ever() {
    check(
        REDFISH,
        &[(None, &Went::NotStarted("no answer".to_owned()))],
        expect![[r#"
            UEFI HTTP boot, once
            UEFI HTTP boot, once
            network boot, once
            its installer did not come: UEFI HTTP boot, once: not started, no answer; UEFI HTTP boot, once: not started, no answer; network boot, once: not started, no answer. Look at: its BMC, or the command that switches it: the machine was never started
        "#]],
    );
}

#[test]
fn what_worked_before_is_tried_first() {
    let ways = Ways { before: Some(Rung::Media), ..REDFISH };
    assert_eq!(next(ways, &[]), Next::Start(Rung::Media));
    let tried = [Try { rung: Rung::Media, went: NOTHING.clone() }];
    assert_eq!(next(ways, &tried), Next::Start(Rung::Http));
    // What it cannot be any more does not count.
    let ways = Ways { switch: Switch::Command, ..ways };
    assert_eq!(next(ways, &[]), Next::Start(Rung::Network));
}

#[test]
fn how_far_a_start_came_is_its_furthest_hop() {
    assert_eq!(Seen::of([]), Seen::Nothing);
    assert_eq!(Seen::of(&[Stage::PoweredOn, Stage::OsDhcp]), Seen::Disk);
    assert_eq!(Seen::of(&[Stage::PoweredOn, Stage::RomDhcp(Firmware::Uefi), Stage::OsDhcp]), Seen::Address);
    assert_eq!(Seen::of(&[Stage::IpxeDhcp, Stage::Script("installer".into()), Stage::Kernel]), Seen::Kernel);
}

fn any_went() -> impl Strategy<Value = Went> {
    prop_oneof![
        Just(Went::Unsupported("no".to_owned())),
        Just(Went::NotStarted("no".to_owned())),
        proptest::sample::select(vec![
            Seen::Nothing,
            Seen::Disk,
            Seen::Address,
            Seen::Loader,
            Seen::Script,
            Seen::Kernel
        ])
        .prop_map(Went::Started),
    ]
}

fn any_ways() -> impl Strategy<Value = Ways> {
    let switch = proptest::sample::select(vec![Switch::Command, Switch::Ipmi, Switch::Redfish]);
    let firmware = proptest::sample::select(vec![Firmware::Bios, Firmware::Uefi]);
    let before = proptest::option::of(proptest::sample::select(Rung::ALL.to_vec()));
    (switch, firmware, before).prop_map(|(switch, firmware, before)| Ways { switch, firmware, before })
}

proptest! {
    #[test]
    fn every_climb_ends_with_a_report_of_all_of_it_and_repeats_nothing_that_cannot_help(
        ways in any_ways(),
        wents in proptest::collection::vec(any_went(), MAX_TRIES + 1),
    ) {
        let mut tries: Vec<Try> = Vec::new();
        let mut wents = wents.into_iter();
        let report = loop {
            match next(ways, &tries) {
                Next::Report(report) => break report,
                Next::Start(rung) => {
                    // Never again what the machine has not, and no way that a start showed to be of no use.
                    let before: Vec<_> = tries.iter().filter(|tried| tried.rung == rung).collect();
                    prop_assert!(!before.iter().any(|tried| matches!(tried.went, Went::Unsupported(_))), "{tries:?}");
                    prop_assert!(before.len() <= 2, "{tries:?}");
                    prop_assert!(rung != Rung::Media || ways.switch == Switch::Redfish);
                    prop_assert!(rung != Rung::Http || ways.firmware == Firmware::Uefi);
                    tries.push(Try { rung, went: wents.next().expect("a climb ends") });
                }
            }
        };
        prop_assert!(tries.len() <= MAX_TRIES);
        for tried in &tries {
            prop_assert!(report.contains(&tried.rung.to_string()));
        }
        let starts = tries.iter().filter(|tried| matches!(tried.went, Went::Started(_))).count();
        let is_dead = tries.iter().filter(|tried| matches!(tried.went, Went::NotStarted(_))).count() >= 3;
        let is_all = ways.rungs().iter().all(|rung| tries.iter().any(|tried| tried.rung == *rung));
        prop_assert!(starts >= 1 || is_dead || is_all, "{tries:?}");
    }
}
