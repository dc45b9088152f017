//! Whether a machine is still the one it was accepted as: its parts as an operator accepted
//! them, against those its installer found last.
//!
//! Evidence, not names: a part that differs renames nobody and erases nothing. It is shown
//! with both sides, and stops what would destroy data until an operator has decided.

use std::{collections::BTreeSet, fmt};

use rackhand_common::machine::{Content, Disk, Inventory, Mainboard};
use serde::{Deserialize, Serialize};

/// A kind of part that tells machines apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// By serial number and UUID in its SMBIOS.
    Mainboard,
    /// By Ethernet address.
    NetworkCard,
    /// By [`Disk::identity`].
    Disk,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mainboard => "mainboard",
            Self::NetworkCard => "network card",
            Self::Disk => "disk",
        })
    }
}

/// A part that is not what was accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Which kind.
    pub part: Part,
    /// What was accepted; `None` for a part that is new.
    pub was: Option<String>,
    /// What was found; `None` for a part that is gone.
    pub is: Option<String>,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { part, was, is } = self;
        match (was, is) {
            (Some(was), Some(is)) => write!(f, "{part} was {was}, is {is}"),
            (Some(was), None) => write!(f, "{part} {was} is gone"),
            (None, Some(is)) => write!(f, "{part} {is} is new"),
            (None, None) => write!(f, "{part} changed"),
        }
    }
}

/// What differs, mainboard first.
pub fn compare(accepted: &Inventory, found: &Inventory) -> Vec<Change> {
    let mut changes = Vec::new();
    // As a rule: lists of machines are read far more often than machines change.
    if accepted == found {
        return changes;
    }
    if let (Some(was), Some(is)) = (accepted.system.mainboard(), found.system.mainboard())
        && was.is_other(&is)
    {
        changes.push(Change { part: Part::Mainboard, was: Some(was.to_string()), is: Some(is.to_string()) });
    }
    let macs = |inventory: &Inventory| inventory.nics.iter().map(|nic| nic.mac.to_string()).collect();
    changes.extend(differing(Part::NetworkCard, macs(accepted), macs(found)));
    let disks = |inventory: &Inventory| inventory.disks.iter().map(disk_name).collect();
    changes.extend(differing(Part::Disk, disks(accepted), disks(found)).map(|change| with_content(change, found)));
    changes
}

/// What a machine has otherwise than it was said to have before any installer looked into it: another
/// mainboard, or a part that is not there. What nobody spoke of is no contradiction.
pub fn contradictions(told: &Inventory, found: &Inventory) -> Vec<Change> {
    let boards = told.system.mainboard().zip(found.system.mainboard());
    let is_other = boards.is_some_and(|(told, found)| is_other_board(&told, &found));
    let has_serial = |name: &str| {
        let told = told.disks.iter().find(|disk| disk_name(disk) == name);
        // A disk that was told by its serial number alone may have a WWN as well.
        told.is_none_or(|told| told.identity().is_none() || found.disks.iter().any(|disk| is_same_serial(told, disk)))
    };
    let mut changes = compare(told, found);
    changes.retain(|change| match (change.part, &change.was, &change.is) {
        (Part::Mainboard, ..) => is_other,
        (Part::NetworkCard, Some(_), None) => true,
        (Part::Disk, Some(was), None) => !has_serial(was),
        _ => false,
    });
    changes
}

/// BMCs tell the UUID in either order of its bytes (SMBIOS, RFC 4122).
fn is_other_board(told: &Mainboard, found: &Mainboard) -> bool {
    let uuid = told.uuid.map(|uuid| uuid::Uuid::from_bytes(uuid.to_bytes_le()));
    told.is_other(found) && Mainboard { uuid, ..told.clone() }.is_other(found)
}

fn is_same_serial(told: &Disk, found: &Disk) -> bool {
    !told.serial.is_empty() && told.serial == found.serial
}

/// Whether exactly this part is another one: of its kind `was` is gone and `is` is new, each under the names
/// that [`compare`] tells them by, and nothing else changed.
pub fn only_replaced(accepted: &Inventory, found: &Inventory, part: Part, was: &[&str], is: &[&str]) -> bool {
    let changes = compare(&without_content(accepted), &without_content(found));
    let told = |side: fn(&Change) -> Option<&String>| -> BTreeSet<&str> {
        changes.iter().filter_map(side).map(String::as_str).collect()
    };
    changes.iter().all(|change| change.part == part)
        && told(|change| change.was.as_ref()) == was.iter().copied().collect()
        && told(|change| change.is.as_ref()) == is.iter().copied().collect()
}

/// What is on a disk is no part of its name.
fn without_content(inventory: &Inventory) -> Inventory {
    let mut inventory = inventory.clone();
    inventory.disks.iter_mut().for_each(|disk| disk.content = Content::Blank);
    inventory
}

/// What makes a machine's parts known again, by kind, for finding them in another machine. A
/// mainboard without a UUID and a disk without an identity are not among them.
pub fn marks(inventory: &Inventory) -> BTreeSet<(Part, String)> {
    let uuid = inventory.system.uuid.map(|uuid| (Part::Mainboard, uuid.to_string()));
    let disks = inventory.disks.iter().filter_map(Disk::identity).map(|identity| (Part::Disk, identity));
    uuid.into_iter().chain(disks).collect()
}

fn disk_name(disk: &Disk) -> String {
    disk.identity().unwrap_or_else(|| format!("{} without serial number", disk.name))
}

fn differing(part: Part, was: BTreeSet<String>, is: BTreeSet<String>) -> impl Iterator<Item = Change> {
    let gone: Vec<_> = was.difference(&is).cloned().map(|was| Change { part, was: Some(was), is: None }).collect();
    let new: Vec<_> = is.difference(&was).cloned().map(|is| Change { part, was: None, is: Some(is) }).collect();
    gone.into_iter().chain(new)
}

fn with_content(change: Change, found: &Inventory) -> Change {
    let content = found.disks.iter().find(|disk| Some(disk_name(disk)) == change.is).map(|disk| &disk.content);
    match (content, change.is) {
        (Some(Content::Data(words)), Some(is)) => Change { is: Some(format!("{is} ({words})")), ..change },
        (_, is) => Change { is, ..change },
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use rackhand_common::machine::{Cpu, Firmware, Mac, Nic, System};

    use super::*;

    fn machine() -> Inventory {
        Inventory {
            firmware: Firmware::Bios,
            system: System { serial: "S1".into(), uuid: Some(uuid::Uuid::from_u128(1)), ..System::default() },
            cpu: Cpu::default(),
            memory: 1 << 30,
            nics: vec![nic(1)],
            disks: vec![disk("D1", Content::Blank), disk("D2", Content::Blank)],
        }
    }

    fn nic(last: u8) -> Nic {
        Nic { name: "eth0".into(), mac: Mac([2, 0, 0, 0, 0, last]), driver: String::new(), link: true }
    }

    fn disk(serial: &str, content: Content) -> Disk {
        Disk {
            name: "vda".into(),
            model: "m".into(),
            serial: serial.into(),
            wwn: None,
            size: 1 << 30,
            sector: 512,
            rotational: false,
            content,
        }
    }

    fn check(change: impl FnOnce(&mut Inventory), expected: Expect) {
        let mut found = machine();
        change(&mut found);
        let lines: Vec<_> = compare(&machine(), &found).iter().map(ToString::to_string).collect();
        expected.assert_eq(&lines.join("\n"));
    }

    #[test]
    fn what_a_machine_goes_through_without_becoming_another_is_no_change() {
        check(|_| (), expect![""]);
        check(
            |found| {
                found.disks.reverse();
                found.disks[0].name = "sdb".into();
                found.disks[0].content = Content::Data("GPT".into());
                found.memory = 2 << 30;
                found.nics[0].link = false;
            },
            expect![""],
        );
    }

    #[test]
    fn one_part_is_another_only_if_nothing_else_is() {
        let with = |change: fn(&mut Inventory)| {
            let mut found = machine();
            change(&mut found);
            found
        };
        let disk_2 = |found: &Inventory| only_replaced(&machine(), found, Part::Disk, &["m/D2"], &["m/D9"]);
        let full: fn(&mut Inventory) = |found| found.disks[1] = disk("D9", Content::Data("GPT".into()));
        assert!(disk_2(&with(full)));
        let others: [fn(&mut Inventory); 5] = [
            |_| (),
            |found| found.disks[1] = disk("D8", Content::Blank),
            |found| {
                found.disks = vec![disk("D1", Content::Blank), disk("D9", Content::Blank), disk("D7", Content::Blank)]
            },
            |found| found.disks = vec![disk("D9", Content::Blank)],
            |found| {
                found.disks[1] = disk("D9", Content::Blank);
                found.nics = vec![nic(1), nic(2)];
            },
        ];
        for (index, other) in others.into_iter().enumerate() {
            assert!(!disk_2(&with(other)), "{index}");
        }
        let cards = with(|found| found.nics = vec![nic(7)]);
        let (was, is) = (["02:00:00:00:00:01"], ["02:00:00:00:00:07"]);
        assert!(only_replaced(&machine(), &cards, Part::NetworkCard, &was, &is));
        assert!(!only_replaced(&machine(), &cards, Part::Disk, &was, &is));
    }

    #[test]
    fn what_was_told_is_contradicted_by_another_board_or_a_part_that_is_not_there_and_by_nothing_new() {
        let check = |told: fn(&mut Inventory), expected: Expect| {
            let mut before = machine();
            told(&mut before);
            let found = contradictions(&before, &machine());
            expected.assert_eq(&found.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"));
        };
        check(|told| (told.nics, told.disks) = (vec![nic(1)], Vec::new()), expect![""]);
        check(
            |told| told.system.uuid = Some(uuid::Uuid::from_bytes(uuid::Uuid::from_u128(1).to_bytes_le())),
            expect![""],
        );
        check(
            |told| told.disks = vec![Disk { model: "as its BMC calls it".into(), ..disk("D2", Content::Blank) }],
            expect![""],
        );
        check(|told| told.disks = vec![disk("", Content::Blank)], expect![""]);
        check(
            |told| {
                told.system.serial = "S9".into();
                told.nics = vec![nic(1), nic(7)];
                told.disks = vec![disk("D9", Content::Blank)];
            },
            expect![[r#"
                mainboard was S9 (00000000-0000-0000-0000-000000000001), is S1 (00000000-0000-0000-0000-000000000001)
                network card 02:00:00:00:00:07 is gone
                disk m/D9 is gone"#]],
        );
    }

    #[test]
    fn each_part_that_differs_is_named_with_both_sides() {
        check(
            |found| found.system = System { serial: "S2".into(), ..System::default() },
            expect!["mainboard was S1 (00000000-0000-0000-0000-000000000001), is S2 (no UUID)"],
        );
        check(|found| found.nics = vec![nic(1), nic(2)], expect!["network card 02:00:00:00:00:02 is new"]);
        check(
            |found| found.disks[1] = disk("D9", Content::Data("GPT, 3 partitions".into())),
            expect![[r#"
                disk m/D2 is gone
                disk m/D9 (GPT, 3 partitions) is new"#]],
        );
    }
}
