//! Whose BMC it is that was found on the management network: told by what it says once it is logged
//! in to, what a manifest says, and what machines found in themselves: above all which BMC answers them
//! [in-band](in_band), where they have a way to it.
//!
//! Invariants:
//! - What two sides say differently is a [disagreement](Owner::Disputed) that names both, and never
//!   decided here.

pub mod factory;
mod in_band;
pub mod moved;

use std::{collections::BTreeSet, net::IpAddr};

use rackhand_common::{bmc::Identity, hardware, id::MachineId, machine::Mainboard};
use uuid::Uuid;

/// A machine, as far as it is known.
#[derive(Clone, Debug)]
pub struct Known {
    /// Its id.
    pub id: MachineId,
    /// Its name.
    pub name: String,
    /// Its mainboard, as it found that in itself.
    pub mainboard: Option<Mainboard>,
    /// What its own BMC says to it.
    pub in_band: Option<hardware::Bmc>,
    /// Where its BMC is.
    pub bmc: Option<IpAddr>,
}

/// A BMC that a manifest says is at an address.
#[derive(Clone, Debug)]
pub struct Expected {
    /// Serial number of its machine's mainboard.
    pub serial: String,
    /// Where it is said to be.
    pub address: IpAddr,
}

/// A found BMC that was logged in to.
#[derive(Clone, Debug)]
pub struct Told {
    /// Where it is.
    pub address: IpAddr,
    /// What it says it is.
    pub identity: Identity,
}

/// Whose a BMC is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// This machine's.
    Machine(MachineId),
    /// A machine's that nobody has seen, or that tells nothing to know it by.
    Unknown(String),
    /// That of one or the other: both sides in words.
    Disputed(String),
}

/// Whose the BMC is that told this; `others` are all that were found and logged in to.
pub fn owner(told: &Told, others: &[Told], expected: &[Expected], machines: &[Known]) -> Owner {
    let Told { address, identity } = told;
    let says = words(identity);
    if let (Some(here), Some(serial)) = (expected.iter().find(|row| row.address == *address), &identity.serial)
        && here.serial != *serial
    {
        return Owner::Disputed(format!(
            "the manifest says that the BMC at {address} is of the mainboard {}, and the BMC says {says}",
            here.serial
        ));
    }
    if let Some(row) = expected.iter().find(|row| Some(&row.serial) == identity.serial.as_ref())
        && row.address != *address
    {
        return Owner::Disputed(format!(
            "the manifest says that the BMC of {} is at {}, and the one at {address} says {says}",
            row.serial, row.address
        ));
    }
    let in_band = in_band::naming(told, machines);
    // Boards come with the same GUID from the factory: the one that a machine is wired to is known all the same.
    let is_at = |known: &Known| known.in_band.as_ref().and_then(|bmc| in_band::is_at(bmc, *address));
    let is_wired = matches!(&in_band[..], [known] if is_at(known) == Some(true));
    let is_same = |other: &&Told| other.address != *address && is_same(&other.identity, identity);
    if let Some(other) = others.iter().find(is_same).filter(|_| !is_wired) {
        return Owner::Disputed(format!(
            "the BMC at {address} says {says}, and the one at {} says {}",
            other.address,
            words(&other.identity)
        ));
    }
    let serial_is = |known: &&Known| {
        let serial = known.mainboard.as_ref().map(|board| &board.serial).filter(|serial| !serial.is_empty());
        serial.is_some() && serial == identity.serial.as_ref()
    };
    let uuid_is = |known: &&Known| {
        let uuid = known.mainboard.as_ref().and_then(|board| board.uuid);
        uuid.zip(identity.uuid).is_some_and(|(known, told)| is_same_uuid(known, told))
    };
    let by_serial: Vec<_> = machines.iter().filter(serial_is).collect();
    let by_uuid: Vec<_> = machines.iter().filter(uuid_is).collect();
    let all: BTreeSet<_> = by_serial.iter().chain(&by_uuid).map(|known| known.id).collect();
    let names = || {
        let both = by_serial.iter().filter(|known| !by_uuid.iter().any(|other| other.id == known.id)).chain(&by_uuid);
        both.map(|known| side(known)).collect::<Vec<_>>().join(", and ")
    };
    let has_other_serial = |known: &Known| {
        let board = known.mainboard.as_ref().map(|board| &board.serial).filter(|serial| !serial.is_empty());
        board.zip(identity.serial.as_ref()).is_some_and(|(board, told)| board != told)
    };
    let owner = match (&in_band[..], (all.len(), by_serial.first(), by_uuid.first())) {
        ([known], _) if all.iter().any(|other| *other != known.id) => {
            let wired = in_band::words(known);
            return Owner::Disputed(format!("{wired}; the BMC at {address} says {says}, which fits {}", names()));
        }
        ([known], _) if has_other_serial(known) => {
            let wired = in_band::words(known);
            return Owner::Disputed(format!("{wired}; the BMC at {address} says {says}, and {}", side(known)));
        }
        // Nothing but the address fits.
        ([known], (0, ..)) if known.in_band.as_ref().and_then(|bmc| in_band::has_guid(bmc, told)) == Some(false) => {
            let wired = in_band::words(known);
            return Owner::Disputed(format!("{wired}; the BMC at {address} says {says}"));
        }
        ([known], _) => known,
        ([_, ..], _) => {
            let wired: Vec<_> = in_band.iter().map(|known| in_band::words(known)).collect();
            return Owner::Disputed(format!("the BMC at {address} says {says}; {}", wired.join(", and ")));
        }
        ([], (0, ..)) if identity.serial.is_none() && identity.uuid.is_none() => {
            return Owner::Unknown(
                "it tells neither a serial number nor a UUID: say whose it is, by `rackhand bmc set`".into(),
            );
        }
        ([], (0, ..)) => {
            return Owner::Unknown(format!("it says {says}, which is no machine's that was seen yet"));
        }
        // BMCs tell a UUID of their own over IPMI: beside the same serial number another one says nothing.
        ([], (1, Some(known), _)) => known,
        ([], (1, None, Some(known))) => {
            if has_other_serial(known) {
                return Owner::Disputed(format!("the BMC at {address} says {says}, and {}", side(known)));
            }
            known
        }
        ([], _) => return Owner::Disputed(format!("the BMC at {address} says {says}, which fits {}", names())),
    };
    if in_band.is_empty() && is_at(owner) == Some(false) {
        let wired = in_band::words(owner);
        return Owner::Disputed(format!("the BMC at {address} says {says}, and {}; {wired}", side(owner)));
    }
    match owner.bmc {
        Some(other) if other != *address => Owner::Disputed(format!(
            "the BMC at {address} says {says}, which is {}'s; that machine's BMC is at {other}",
            owner.name
        )),
        _ => Owner::Machine(owner.id),
    }
}

/// What a BMC says, in words.
fn words(identity: &Identity) -> String {
    let serial = identity.serial.as_ref().map(|serial| format!("serial number {serial}"));
    let uuid = identity.uuid.map(|uuid| format!("UUID {uuid}"));
    match (serial, uuid) {
        (Some(serial), Some(uuid)) => format!("{serial}, {uuid}"),
        (one, other) => one.or(other).unwrap_or_else(|| "nothing".to_owned()),
    }
}

/// What a machine found in itself, in words.
fn side(known: &Known) -> String {
    let board = known.mainboard.as_ref().map_or_else(|| "nothing".to_owned(), ToString::to_string);
    format!("{} found {board} in itself", known.name)
}

/// Whether two BMCs say that they are of one machine.
fn is_same(one: &Identity, other: &Identity) -> bool {
    let serials = one.serial.as_ref().zip(other.serial.as_ref());
    let uuids = one.uuid.zip(other.uuid);
    match serials {
        // Boards come with the same UUID from the factory; then the serial number tells them apart.
        Some((one, other)) => one == other,
        None => uuids.is_some_and(|(one, other)| is_same_uuid(one, other)),
    }
}

/// BMCs tell the UUID in either order of its bytes (SMBIOS, RFC 4122).
fn is_same_uuid(one: Uuid, other: Uuid) -> bool {
    one == other || one == Uuid::from_bytes(other.to_bytes_le())
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use proptest::prelude::*;
    use rackhand_common::hardware::BmcLan;

    use super::*;

    fn uuid(number: u8) -> Uuid {
        Uuid::from_bytes([number, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15])
    }

    fn told(last: u8, serial: &str, number: u8) -> Told {
        let serial = (!serial.is_empty()).then(|| serial.to_owned());
        let identity = Identity { serial, uuid: (number > 0).then(|| uuid(number)), ..Identity::default() };
        Told { address: [10, 0, 0, last].into(), identity }
    }

    fn machine(number: u8, serial: &str, bmc: Option<u8>) -> Known {
        Known {
            id: MachineId(uuid(number)),
            name: format!("m-{number}"),
            mainboard: Some(Mainboard { serial: serial.into(), uuid: Some(uuid(number)) }),
            in_band: None,
            bmc: bmc.map(|last| [10, 0, 0, last].into()),
        }
    }

    /// A machine that reaches its own BMC in-band, at this address and with this GUID; zero is none.
    fn wired(number: u8, serial: &str, last: u8, guid: u8) -> Known {
        let lan = BmcLan { channel: 1, address: (last > 0).then(|| [10, 0, 0, last].into()), ..BmcLan::default() };
        let guid = (guid > 0).then(|| uuid(guid));
        let in_band = Some(hardware::Bmc { guid, lan: vec![lan], ..hardware::Bmc::default() });
        Known { in_band, ..machine(number, serial, None) }
    }

    fn check(told: &Told, others: &[Told], expected: &[(&str, u8)], machines: &[Known], printed: Expect) {
        let row =
            |(serial, last): &(&str, u8)| Expected { serial: (*serial).into(), address: [10, 0, 0, *last].into() };
        let expected: Vec<_> = expected.iter().map(row).collect();
        let text = match owner(told, others, &expected, machines) {
            Owner::Machine(id) => {
                format!("of {}", machines.iter().find(|known| known.id == id).map_or("?", |known| &known.name))
            }
            Owner::Unknown(words) => format!("unknown: {words}"),
            Owner::Disputed(words) => format!("disputed: {words}"),
        };
        printed.assert_eq(&text);
    }

    #[test]
    fn a_bmc_is_known_by_serial_number_or_by_uuid_in_either_order_of_its_bytes() {
        let machines = [machine(1, "A", None), machine(2, "B", Some(9)), machine(3, "", None)];
        check(&told(5, "A", 0), &[], &[], &machines, expect!["of m-1"]);
        check(&told(9, "B", 2), &[], &[("B", 9)], &machines, expect!["of m-2"]);
        check(&told(5, "A", 77), &[], &[], &machines, expect!["of m-1"]);
        check(&told(5, "C", 3), &[], &[], &machines, expect!["of m-3"]);
        let mut swapped = told(5, "", 1);
        swapped.identity.uuid = swapped.identity.uuid.map(|uuid| Uuid::from_bytes(uuid.to_bytes_le()));
        check(&swapped, &[], &[], &machines, expect!["of m-1"]);
        check(
            &told(5, "D", 9),
            &[],
            &[],
            &machines,
            expect![
                "unknown: it says serial number D, UUID 09010203-0405-0607-0809-0a0b0c0d0e0f, which is no machine's that was seen yet"
            ],
        );
        check(
            &told(5, "", 0),
            &[],
            &[],
            &machines,
            expect!["unknown: it tells neither a serial number nor a UUID: say whose it is, by `rackhand bmc set`"],
        );
    }

    #[test]
    fn whoever_says_otherwise_is_named_beside_the_bmc() {
        let machines = [machine(1, "A", None), machine(2, "B", Some(9))];
        // The manifest.
        check(
            &told(5, "A", 0),
            &[],
            &[("X", 5)],
            &machines,
            expect![
                "disputed: the manifest says that the BMC at 10.0.0.5 is of the mainboard X, and the BMC says serial number A"
            ],
        );
        check(
            &told(5, "A", 0),
            &[],
            &[("A", 6)],
            &machines,
            expect![
                "disputed: the manifest says that the BMC of A is at 10.0.0.6, and the one at 10.0.0.5 says serial number A"
            ],
        );
        // The machine itself.
        check(
            &told(5, "Z", 1),
            &[],
            &[],
            &machines,
            expect![
                "disputed: the BMC at 10.0.0.5 says serial number Z, UUID 01010203-0405-0607-0809-0a0b0c0d0e0f, and m-1 found A (01010203-0405-0607-0809-0a0b0c0d0e0f) in itself"
            ],
        );
        check(
            &told(5, "A", 2),
            &[],
            &[],
            &machines,
            expect![
                "disputed: the BMC at 10.0.0.5 says serial number A, UUID 02010203-0405-0607-0809-0a0b0c0d0e0f, which fits m-1 found A (01010203-0405-0607-0809-0a0b0c0d0e0f) in itself, and m-2 found B (02010203-0405-0607-0809-0a0b0c0d0e0f) in itself"
            ],
        );
        // Another BMC: one that was found, and one that is the machine's already.
        check(
            &told(5, "A", 0),
            &[told(5, "A", 0), told(7, "A", 1)],
            &[],
            &machines,
            expect![
                "disputed: the BMC at 10.0.0.5 says serial number A, and the one at 10.0.0.7 says serial number A, UUID 01010203-0405-0607-0809-0a0b0c0d0e0f"
            ],
        );
        check(
            &told(5, "B", 0),
            &[],
            &[],
            &machines,
            expect![
                "disputed: the BMC at 10.0.0.5 says serial number B, which is m-2's; that machine's BMC is at 10.0.0.9"
            ],
        );
    }

    #[test]
    fn a_bmc_that_answers_a_machine_in_band_is_its_own_whatever_else_is_not_told() {
        let machines = [wired(1, "A", 5, 71), wired(2, "", 6, 71), wired(3, "C", 0, 73)];
        // By address and GUID, of boards that have the same one from the factory; in either order of its bytes.
        check(&told(5, "", 71), &[told(6, "", 71)], &[], &machines, expect!["of m-1"]);
        check(&told(6, "", 71), &[told(5, "", 71)], &[], &machines, expect!["of m-2"]);
        let mut swapped = told(9, "", 73);
        swapped.identity.uuid = swapped.identity.uuid.map(|uuid| Uuid::from_bytes(uuid.to_bytes_le()));
        check(&swapped, &[], &[], &machines, expect!["of m-3"]);
        // By address alone, and beside a serial number; Redfish tells the mainboard's UUID.
        check(&told(5, "", 0), &[], &[], &machines, expect!["of m-1"]);
        check(&told(5, "A", 1), &[], &[], &machines, expect!["of m-1"]);
        // It has another address by now.
        check(&told(9, "C", 73), &[], &[], &machines, expect!["of m-3"]);
        check(&told(8, "A", 71), &[], &[], &machines[..1], expect!["of m-1"]);
    }

    #[test]
    fn what_is_told_in_band_and_by_serial_number_otherwise_is_disputed_with_both_sides() {
        let machines = [wired(1, "A", 5, 71), wired(2, "B", 6, 72)];
        check(
            &told(5, "B", 0),
            &[],
            &[],
            &machines,
            expect![
                "disputed: m-1 finds its own BMC in-band at 10.0.0.5, GUID 47010203-0405-0607-0809-0a0b0c0d0e0f; the BMC at 10.0.0.5 says serial number B, which fits m-2 found B (02010203-0405-0607-0809-0a0b0c0d0e0f) in itself"
            ],
        );
        check(
            &told(5, "Z", 71),
            &[],
            &[],
            &machines,
            expect![
                "disputed: m-1 finds its own BMC in-band at 10.0.0.5, GUID 47010203-0405-0607-0809-0a0b0c0d0e0f; the BMC at 10.0.0.5 says serial number Z, UUID 47010203-0405-0607-0809-0a0b0c0d0e0f, and m-1 found A (01010203-0405-0607-0809-0a0b0c0d0e0f) in itself"
            ],
        );
        check(
            &told(7, "A", 0),
            &[],
            &[],
            &machines,
            expect![
                "disputed: the BMC at 10.0.0.7 says serial number A, and m-1 found A (01010203-0405-0607-0809-0a0b0c0d0e0f) in itself; m-1 finds its own BMC in-band at 10.0.0.5, GUID 47010203-0405-0607-0809-0a0b0c0d0e0f"
            ],
        );
        check(
            &told(5, "", 99),
            &[],
            &[],
            &machines,
            expect![
                "disputed: m-1 finds its own BMC in-band at 10.0.0.5, GUID 47010203-0405-0607-0809-0a0b0c0d0e0f; the BMC at 10.0.0.5 says UUID 63010203-0405-0607-0809-0a0b0c0d0e0f"
            ],
        );
        check(
            &told(5, "", 72),
            &[],
            &[],
            &machines,
            expect![
                "disputed: the BMC at 10.0.0.5 says UUID 48010203-0405-0607-0809-0a0b0c0d0e0f; m-1 finds its own BMC in-band at 10.0.0.5, GUID 47010203-0405-0607-0809-0a0b0c0d0e0f, and m-2 finds its own BMC in-band at 10.0.0.6, GUID 48010203-0405-0607-0809-0a0b0c0d0e0f"
            ],
        );
        check(
            &told(5, "", 0),
            &[],
            &[],
            &[wired(1, "A", 5, 0), wired(2, "B", 5, 0)],
            expect![
                "disputed: the BMC at 10.0.0.5 says nothing; m-1 finds its own BMC in-band at 10.0.0.5, and m-2 finds its own BMC in-band at 10.0.0.5"
            ],
        );
    }

    proptest! {
        /// Whatever is told, whoever is chosen is not contradicted by another side.
        #[test]
        fn nobody_is_chosen_whom_a_side_contradicts(
            last in 0u8..3, serial in 0u8..3, number in 0u8..3,
            sides in prop::collection::vec((0u8..3, 0u8..3, 0u8..3), 1..4),
        ) {
            let name = |number: u8| ["", "A", "B"][usize::from(number)];
            let told = told(last + 1, name(serial), number);
            let known =
                |(number, (serial, last, guid)): (u8, &(u8, u8, u8))| wired(number, name(*serial), *last, *guid);
            let machines: Vec<_> = (100..).zip(&sides).map(known).collect();
            if let Owner::Machine(id) = owner(&told, &[], &[], &machines) {
                for known in &machines {
                    let bmc = known.in_band.as_ref().unwrap();
                    let is_at = in_band::is_at(bmc, told.address) == Some(true);
                    let is_elsewhere = in_band::is_at(bmc, told.address) == Some(false);
                    let has_guid = in_band::has_guid(bmc, &told) == Some(true);
                    let board = &known.mainboard.as_ref().unwrap().serial;
                    let is_serial = !board.is_empty() && Some(board) == told.identity.serial.as_ref();
                    if known.id == id {
                        prop_assert!(is_at || has_guid || (is_serial && !is_elsewhere));
                        prop_assert!(is_serial || board.is_empty() || told.identity.serial.is_none());
                    } else {
                        prop_assert!(!(is_serial || is_at && has_guid));
                    }
                }
            }
        }
    }
}
