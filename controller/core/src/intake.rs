//! Whose BMC it is that was found on the management network: told by what it says once it is logged
//! in to, what a manifest says, and what machines found in themselves.
//!
//! Invariants:
//! - What two sides say differently is a [disagreement](Owner::Disputed) that names both, and never
//!   decided here.

pub mod factory;

use std::{collections::BTreeSet, net::IpAddr};

use rackhand_common::{bmc::Identity, id::MachineId, machine::Mainboard};
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
    let is_same = |other: &&Told| other.address != *address && is_same(&other.identity, identity);
    if let Some(other) = others.iter().find(is_same) {
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
    let owner = match (all.len(), by_serial.first(), by_uuid.first()) {
        (0, ..) if identity.serial.is_none() && identity.uuid.is_none() => {
            return Owner::Unknown(
                "it tells neither a serial number nor a UUID: say whose it is, by `rackhand bmc set`".into(),
            );
        }
        (0, ..) => return Owner::Unknown(format!("it says {says}, which is no machine's that was seen yet")),
        // BMCs tell a UUID of their own over IPMI: beside the same serial number another one says nothing.
        (1, Some(known), _) => known,
        (1, None, Some(known)) => {
            let has_serial = known.mainboard.as_ref().is_some_and(|board| !board.serial.is_empty());
            if has_serial && identity.serial.is_some() {
                return Owner::Disputed(format!("the BMC at {address} says {says}, and {}", side(known)));
            }
            known
        }
        _ => return Owner::Disputed(format!("the BMC at {address} says {says}, which fits {}", names())),
    };
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
            bmc: bmc.map(|last| [10, 0, 0, last].into()),
        }
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
}
