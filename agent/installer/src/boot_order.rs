//! The UEFI boot order: the disk first, everything else behind it in its old order, and no
//! one-time override left (UEFI specification §3). A BIOS keeps its order to itself; there
//! the disk must be first already, and the network comes by a one-time override.
//!
//! Entries that the firmware or an operator made are never changed; those with our
//! [`LABEL`] are ours, and all but the one in use are removed.

use std::{collections::BTreeMap, fs, io, path::PathBuf};

use crate::gpt::{ESP, Guid, Table};

/// What our boot entry is called in the firmware's menu.
pub const LABEL: &str = "Rackhand disk";

/// Variables by their names, without vendor and attributes: `Boot0001`, `BootOrder`…
pub type Variables = BTreeMap<String, Vec<u8>>;

/// A change of one variable: its new contents, or its removal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Make or replace.
    Write(String, Vec<u8>),
    /// Remove.
    Remove(String),
}

/// The disk has no EFI system partition to boot from.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the disk has no EFI system partition")]
pub struct NoEsp;

/// What changes in `found` make this disk the first to boot.
pub fn plan(found: &Variables, table: &Table) -> Result<Vec<Change>, NoEsp> {
    let wanted = load_option(table)?;
    let entries = || found.iter().filter_map(|(name, option)| Some((entry_number(name)?, name, option)));
    let ours = |option: &[u8]| option.get(6..).is_some_and(|rest| rest.starts_with(&utf16(LABEL)));

    let existing = entries().find(|(_, _, option)| **option == wanted).map(|(number, ..)| number);
    let free = || (0..=u16::MAX).find(|number| entries().all(|(taken, ..)| taken != *number));
    let chosen = existing.or_else(free).unwrap_or(0);

    let mut changes = Vec::new();
    if existing.is_none() {
        changes.push(Change::Write(format!("Boot{chosen:04X}"), wanted));
    }
    let stale: Vec<_> = entries().filter(|(number, _, option)| *number != chosen && ours(option)).collect();
    let old = found.get("BootOrder").map(Vec::as_slice).unwrap_or_default();
    let old_numbers = old.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    let others = old_numbers.filter(|number| *number != chosen && stale.iter().all(|(gone, ..)| gone != number));
    let order: Vec<_> = std::iter::once(chosen).chain(others).flat_map(u16::to_le_bytes).collect();
    // The order comes before removals: a loss of power in between leaves no order without us.
    if order != old {
        changes.push(Change::Write("BootOrder".to_owned(), order));
    }
    changes.extend(stale.into_iter().map(|(_, name, _)| Change::Remove(name.clone())));
    if found.contains_key("BootNext") {
        changes.push(Change::Remove("BootNext".to_owned()));
    }
    Ok(changes)
}

/// `EFI_LOAD_OPTION` (§3.1.3) of the fallback loader on the disk's system partition.
fn load_option(table: &Table) -> Result<Vec<u8>, NoEsp> {
    let esp = table.partitions().find(|partition| partition.kind == ESP).ok_or(NoEsp)?;
    let mut path = Vec::new();
    // Hard drive media device path (§10.3.5.1): GPT, signature is a GUID.
    path.extend([0x04, 0x01, 42, 0]);
    path.extend(esp.number.to_le_bytes());
    path.extend(esp.first.to_le_bytes());
    path.extend((esp.last - esp.first + 1).to_le_bytes());
    let Guid(id) = esp.id;
    path.extend(id);
    path.extend([0x02, 0x02]);
    // File path (§10.3.5.4).
    let file = utf16(FALLBACK_LOADER);
    path.extend([0x04, 0x04]);
    path.extend((4 + file.len() as u16).to_le_bytes());
    path.extend(file);
    path.extend([0x7f, 0xff, 4, 0]);

    let mut option = ACTIVE.to_le_bytes().to_vec();
    option.extend((path.len() as u16).to_le_bytes());
    option.extend(utf16(LABEL));
    option.extend(path);
    Ok(option)
}

#[cfg(target_arch = "aarch64")]
const FALLBACK_LOADER: &str = r"\EFI\BOOT\BOOTAA64.EFI";
#[cfg(not(target_arch = "aarch64"))]
const FALLBACK_LOADER: &str = r"\EFI\BOOT\BOOTX64.EFI";
const ACTIVE: u32 = 1;

fn entry_number(name: &str) -> Option<u16> {
    let digits = name.strip_prefix("Boot").filter(|digits| digits.len() == 4)?;
    u16::from_str_radix(digits, 16).ok()
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect()
}

const VARIABLES: &str = "/sys/firmware/efi/efivars";
const GLOBAL: &str = "8be4df61-93ca-11d2-aa0d-00e098032b8c";
/// Non-volatile, for boot services and for running systems.
const ATTRIBUTES: u32 = 7;

/// This machine's boot variables.
pub fn read() -> io::Result<Variables> {
    let mut found = Variables::new();
    for entry in fs::read_dir(VARIABLES)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(name) = name.strip_suffix(GLOBAL).and_then(|name| name.strip_suffix('-'))
            && ["Boot", "Driver", "SysPrep"].iter().any(|kind| name.starts_with(kind))
        {
            let contents = fs::read(entry.path())?;
            found.insert(name.to_owned(), contents.get(4..).unwrap_or_default().to_vec());
        }
    }
    Ok(found)
}

/// Changes this machine's boot variables.
pub fn apply(changes: &[Change]) -> io::Result<()> {
    let path = |name: &str| PathBuf::from(VARIABLES).join(format!("{name}-{GLOBAL}"));
    for change in changes {
        match change {
            // In one write, or the kernel takes the first piece for the whole.
            Change::Write(name, data) => fs::write(path(name), [&ATTRIBUTES.to_le_bytes()[..], data].concat())?,
            Change::Remove(name) => fs::remove_file(path(name))?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(id: u8) -> Table {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), vec![0; 8 << 20]).unwrap();
        let unique = format!("1:{}", Guid([id; 16]));
        let made = std::process::Command::new("sgdisk")
            .args(["-n", "1:2048:+1M", "-t", "1:ef00", "-u", &unique])
            .arg(file.path())
            .output()
            .unwrap();
        assert!(made.status.success());
        Table::read(&fs::read(file.path()).unwrap(), 512).unwrap()
    }

    fn after(mut variables: Variables, changes: &[Change]) -> Variables {
        for change in changes {
            match change {
                Change::Write(name, data) => drop(variables.insert(name.clone(), data.clone())),
                Change::Remove(name) => drop(variables.remove(name)),
            }
        }
        variables
    }

    fn order(variables: &Variables) -> Vec<u8> {
        variables["BootOrder"].iter().step_by(2).copied().collect()
    }

    fn firmware() -> Variables {
        [("Boot0000", vec![1]), ("Boot0001", vec![2]), ("BootOrder", vec![1, 0, 0, 0]), ("BootNext", vec![1, 0])]
            .map(|(name, data)| (name.to_owned(), data))
            .into()
    }

    #[test]
    fn the_disk_comes_first_and_the_others_keep_their_order() {
        let found = after(firmware(), &plan(&firmware(), &table(7)).unwrap());
        assert_eq!(order(&found), [2, 1, 0]);
        assert!(!found.contains_key("BootNext"));
        assert_eq!(found["Boot0000"], [1]);
    }

    #[test]
    fn planning_again_changes_nothing() {
        let found = after(firmware(), &plan(&firmware(), &table(7)).unwrap());
        assert_eq!(plan(&found, &table(7)).unwrap(), []);
    }

    #[test]
    fn the_entry_of_an_earlier_image_is_replaced() {
        let found = after(firmware(), &plan(&firmware(), &table(7)).unwrap());
        let found = after(found.clone(), &plan(&found, &table(9)).unwrap());
        assert_eq!(found.keys().filter(|name| entry_number(name).is_some()).count(), 3);
        assert_eq!(order(&found).len(), 3);
        assert!(found.values().any(|option| option.windows(16).any(|bytes| bytes == [9; 16])));
        assert!(!found.values().any(|option| option.windows(16).any(|bytes| bytes == [7; 16])));
    }
}
