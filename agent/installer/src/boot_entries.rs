//! Boot entries that a system, or whoever had root in it, left in UEFI's variables: they go when the
//! machine's disks were erased (UEFI specification §3.1, §3.3, §10.3).
//!
//! The firmware's own entries say which device to start from, or an application in the firmware itself.
//! One that names a partition, a file or an address to start from was written by a system or by a
//! person, and stays for nobody else: neither do drivers and preparations of that kind, nor what was
//! to be started once. Invariant: what remains keeps its order.

use crate::boot_order::{Change, Variables};

/// Lists of numbers, and the entries that each is of.
const LISTS: [(&str, &str); 3] = [("BootOrder", "Boot"), ("DriverOrder", "Driver"), ("SysPrepOrder", "SysPrep")];

/// What changes in `found` leave the firmware's own entries alone.
pub fn plan(found: &Variables) -> Vec<Change> {
    let mut changes = Vec::new();
    for (list, kind) in LISTS {
        let entries = || found.iter().filter_map(|(name, option)| Some((number(kind, name)?, name, option)));
        let foreign: Vec<_> = entries().filter(|(_, _, option)| !is_firmwares(option)).collect();
        if let Some(old) = found.get(list) {
            let numbers = old.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
            let stays = |wanted: &u16| {
                entries().any(|(taken, ..)| taken == *wanted) && foreign.iter().all(|(gone, ..)| gone != wanted)
            };
            let order: Vec<u8> = numbers.filter(stays).flat_map(u16::to_le_bytes).collect();
            // Before the entries: a loss of power in between leaves no order with what is not there.
            match order.is_empty() {
                true => changes.push(Change::Remove(list.to_owned())),
                false if order != *old => changes.push(Change::Write(list.to_owned(), order)),
                false => {}
            }
        }
        changes.extend(foreign.into_iter().map(|(_, name, _)| Change::Remove(name.clone())));
    }
    changes.extend(found.contains_key("BootNext").then(|| Change::Remove("BootNext".to_owned())));
    changes
}

/// The number of an entry of this kind: four hexadecimal digits (§3.1.1).
fn number(kind: &str, name: &str) -> Option<u16> {
    let digits = name.strip_prefix(kind).filter(|digits| digits.len() == 4)?;
    u16::from_str_radix(digits, 16).ok()
}

/// Whether an `EFI_LOAD_OPTION` (§3.1.3) is one that the firmware makes itself. What cannot be read is not.
fn is_firmwares(option: &[u8]) -> bool {
    let Some(length) = option.get(4..6).map(|length| usize::from(u16::from_le_bytes([length[0], length[1]]))) else {
        return false;
    };
    let description = option[6..].chunks_exact(2).position(|unit| unit == [0, 0]);
    let Some(path) = description.and_then(|end| option[6..].get(2 * (end + 1)..)?.get(..length)) else { return false };
    nodes(path).is_some_and(|nodes| nodes.iter().all(|node| !is_somebodys(node)))
}

/// A node of a device path: type, subtype, and what is in it.
type Node<'a> = (u8, u8, &'a [u8]);

/// The nodes of a device path up to its end (§10.3.1); `None` when it is none.
fn nodes(mut path: &[u8]) -> Option<Vec<Node<'_>>> {
    let mut nodes = Vec::new();
    while let [kind, sub, low, high, ..] = *path {
        let length = usize::from(u16::from_le_bytes([low, high]));
        if length < 4 || length > path.len() {
            return None;
        }
        if (kind, sub) == (0x7f, 0xff) {
            return (!nodes.is_empty()).then_some(nodes);
        }
        nodes.push((kind, sub, &path[4..length]));
        path = &path[length..];
    }
    None
}

/// Whether a node says what no firmware says by itself.
fn is_somebodys((kind, sub, data): &Node<'_>) -> bool {
    match (kind, sub) {
        // A partition, a file (§10.3.5.1, §10.3.5.4).
        (4, 1 | 4) => true,
        // An address to start from (§10.3.4.23); the firmware's own has none, which is "as DHCP says".
        (3, 24) => !data.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const END: &[u8] = &[0x7f, 0xff, 4, 0];

    fn node(kind: u8, sub: u8, data: &[u8]) -> Vec<u8> {
        [&[kind, sub][..], &(4 + data.len() as u16).to_le_bytes(), data].concat()
    }

    fn option(nodes: &[Vec<u8>]) -> Vec<u8> {
        let path = [&nodes.concat()[..], END].concat();
        let name: Vec<u8> = "entry".encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
        [&1_u32.to_le_bytes()[..], &(path.len() as u16).to_le_bytes(), &name, &path, b"optional data"].concat()
    }

    /// PCI, and a card's Ethernet address with IPv4: what a firmware makes for network boot.
    fn network(uri: &[u8]) -> Vec<u8> {
        option(&[node(1, 1, &[0, 3]), node(3, 11, &[0; 33]), node(3, 12, &[0; 23]), node(3, 24, uri)])
    }

    fn system() -> Vec<u8> {
        option(&[node(4, 1, &[0; 38]), node(4, 4, b"\\\0E\0F\0I\0\0\0")])
    }

    fn found(entries: &[(&str, Vec<u8>)]) -> Variables {
        entries.iter().map(|(name, data)| ((*name).to_owned(), data.clone())).collect()
    }

    fn after(mut variables: Variables, changes: Vec<Change>) -> Variables {
        for change in changes {
            match change {
                Change::Write(name, data) => drop(variables.insert(name, data)),
                Change::Remove(name) => drop(variables.remove(&name)),
            }
        }
        variables
    }

    #[test]
    fn what_a_tenant_planted_goes_and_the_firmwares_own_keeps_its_order() {
        let firmware = || {
            vec![
                ("Boot0000", option(&[node(4, 7, &[1; 16]), node(4, 6, &[2; 16])])),
                ("Boot0001", network(b"")),
                ("Boot0002", option(&[node(1, 1, &[0, 4]), node(3, 10, &[3; 16])])),
            ]
        };
        let planted = [
            ("Boot0003", system()),
            ("Boot0004", network(b"http://198.51.100.7/door.efi")),
            ("Boot0005", b"no load option".to_vec()),
            ("BootOrder", vec![3, 0, 2, 0, 4, 0, 9, 0, 1, 0, 0, 0]),
            ("BootNext", vec![4, 0]),
            ("Driver0000", system()),
            ("DriverOrder", vec![0, 0]),
            ("SysPrep0000", system()),
            ("SysPrepOrder", vec![0, 0]),
        ];
        let all = found(&[firmware(), planted.to_vec()].concat());
        let clean = after(all.clone(), plan(&all));
        let order = ("BootOrder", vec![2, 0, 1, 0, 0, 0]);
        assert_eq!(clean, found(&[firmware(), vec![order]].concat()));
        assert_eq!(plan(&clean), []);
    }

    proptest! {
        #[test]
        fn no_variable_makes_the_reader_panic_and_what_was_planned_once_leaves_nothing_to_do(
            entries in prop::collection::btree_map(
                prop_oneof!["Boot000[0-3]", "Driver000[0-3]", Just("BootOrder".to_owned()), Just("BootNext".to_owned())],
                prop_oneof![
                    prop::collection::vec(any::<u8>(), 0..80), Just(network(b"")), Just(system()),
                ],
                0..8,
            ),
        ) {
            let clean = after(entries.clone(), plan(&entries));
            prop_assert_eq!(plan(&clean), []);
        }
    }
}
