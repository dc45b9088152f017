//! A UEFI variable store as OVMF keeps it in a flash file: enough to do what a BMC's
//! "boot from the network once" does, which is to set `BootNext`.
//!
//! The layout is a firmware volume (PI specification vol. 3 §3.2.1) that holds one
//! authenticated variable store: variables follow each other on four-byte boundaries, and a
//! variable is replaced by marking the old one deleted and appending another.

use anyhow::{Context, bail, ensure};

const GLOBAL: [u8; 16] =
    [0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c];
const HEADER: usize = 60;
const ADDED: u8 = 0x3f;
const DELETED: u8 = 0x3c;
/// Non-volatile, boot service and runtime access.
const ATTRIBUTES: u32 = 7;

struct Variable {
    at: usize,
    state: u8,
    name: String,
    global: bool,
    data: std::ops::Range<usize>,
}

/// Sets `BootNext` to the first PXE-over-IPv4 entry. `false` when the firmware has not made
/// one yet: it does at its first start.
pub(crate) fn boot_from_network_once(store: &mut [u8]) -> anyhow::Result<bool> {
    let (variables, free) = variables(store)?;
    let live = || variables.iter().filter(|variable| variable.state == ADDED && variable.global);
    let Some(entry) = live().find(|variable| is_pxe4(&variable.name, &store[variable.data.clone()])) else {
        return Ok(false);
    };
    let number = u16::from_str_radix(&entry.name[4..], 16).context("boot entry's number")?;
    let old: Vec<usize> = live().filter(|variable| variable.name == "BootNext").map(|variable| variable.at).collect();
    for at in old {
        store[at + 2] = DELETED;
    }
    append(store, free, "BootNext", &number.to_le_bytes())?;
    Ok(true)
}

fn is_pxe4(name: &str, load_option: &[u8]) -> bool {
    let is_entry = name.len() == 8 && name.starts_with("Boot") && name[4..].bytes().all(|b| b.is_ascii_hexdigit());
    // EFI_LOAD_OPTION: attributes (4), length of the path (2), then the description.
    is_entry && load_option.get(6..).map(utf16).is_some_and(|description| description.contains("PXEv4"))
}

fn utf16(bytes: &[u8]) -> String {
    let units = bytes.chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]])).take_while(|unit| *unit != 0);
    char::decode_utf16(units).map(|c| c.unwrap_or('?')).collect()
}

fn number(store: &[u8], at: usize, len: usize) -> anyhow::Result<usize> {
    let bytes = store.get(at..at + len).context("variable store ends early")?;
    Ok(bytes.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte)))
}

/// All variables, and where the next one goes.
fn variables(store: &[u8]) -> anyhow::Result<(Vec<Variable>, usize)> {
    ensure!(store.get(0x28..0x2c) == Some(b"_FVH"), "not a firmware volume");
    let mut at = number(store, 0x30, 2)?;
    ensure!(
        number(store, at + 20, 1)? == 0x5a && number(store, at + 21, 1)? == 0xfe,
        "variable store is not formatted"
    );
    let end = at + number(store, at + 16, 4)?;
    at += 28;
    let mut found = Vec::new();
    while at + HEADER <= end && number(store, at, 2)? == 0x55aa {
        let (name, data) = (number(store, at + 36, 4)?, number(store, at + 40, 4)?);
        let start = at + HEADER;
        ensure!(start + name + data <= end, "variable runs over the store's end");
        found.push(Variable {
            at,
            state: store[at + 2],
            name: utf16(&store[start..start + name]),
            global: store[at + 44..at + 60] == GLOBAL,
            data: start + name..start + name + data,
        });
        at = (start + name + data).next_multiple_of(4);
    }
    Ok((found, at))
}

fn append(store: &mut [u8], at: usize, name: &str, data: &[u8]) -> anyhow::Result<()> {
    let name: Vec<u8> = name.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
    let mut variable = vec![0; HEADER];
    variable[..2].copy_from_slice(&0x55aa_u16.to_le_bytes());
    variable[2] = ADDED;
    variable[4..8].copy_from_slice(&ATTRIBUTES.to_le_bytes());
    variable[36..40].copy_from_slice(&(name.len() as u32).to_le_bytes());
    variable[40..44].copy_from_slice(&(data.len() as u32).to_le_bytes());
    variable[44..60].copy_from_slice(&GLOBAL);
    variable.extend(name);
    variable.extend(data);
    match store.get_mut(at..at + variable.len()) {
        Some(place) if place.iter().all(|byte| *byte == 0xff) => place.copy_from_slice(&variable),
        _ => bail!("variable store is full"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(entries: &[(&str, &str)]) -> Vec<u8> {
        let mut store = vec![0xff; 4096];
        store[0x28..0x2c].copy_from_slice(b"_FVH");
        store[0x30..0x32].copy_from_slice(&0x48_u16.to_le_bytes());
        store[0x48 + 16..0x48 + 20].copy_from_slice(&3000_u32.to_le_bytes());
        store[0x48 + 20] = 0x5a;
        store[0x48 + 21] = 0xfe;
        for (name, description) in entries {
            let mut option = vec![1, 0, 0, 0, 0, 0];
            option.extend(description.encode_utf16().chain([0]).flat_map(u16::to_le_bytes));
            let (_, free) = variables(&store).unwrap();
            append(&mut store, free, name, &option).unwrap();
        }
        store
    }

    #[test]
    fn boot_next_names_the_network_entry_and_is_replaced_not_doubled() {
        let mut store = store(&[("Boot0001", "UEFI Misc Device"), ("Boot0004", "UEFI PXEv4 (MAC:525400000001)")]);
        assert!(boot_from_network_once(&mut store).unwrap());
        assert!(boot_from_network_once(&mut store).unwrap());
        let (variables, _) = variables(&store).unwrap();
        let next: Vec<_> = variables.iter().filter(|v| v.name == "BootNext" && v.state == ADDED).collect();
        assert_eq!(next.len(), 1);
        assert_eq!(store[next[0].data.clone()], [4, 0]);
    }

    #[test]
    fn a_firmware_that_never_started_has_no_network_entry() {
        assert!(!boot_from_network_once(&mut store(&[])).unwrap());
    }

    #[test]
    fn a_file_that_is_no_variable_store_is_refused() {
        assert!(boot_from_network_once(&mut [0; 64]).is_err());
    }
}
