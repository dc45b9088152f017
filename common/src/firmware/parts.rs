//! Parts of a machine whose firmware the installer tells the version of, with what else is in it.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use crate::{hardware::Hardware, machine::Inventory};

/// All parts of one kind that are in a machine. Grows at the end only.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Parts {
    /// Drives of this model, letters' case aside.
    Drives(String),
    /// Network cards of this PCI vendor and device, four hexadecimal digits each: `15b3:1017`.
    Cards(String),
}

impl Parts {
    /// Those that are in this machine, by the kernel's names of drives and network ports, each with the
    /// version that it tells; empty when it tells none.
    pub fn found(&self, machine: &Inventory, hardware: &Hardware) -> BTreeMap<String, String> {
        match self {
            Self::Drives(model) => {
                let of_model = machine.disks.iter().filter(|disk| is_same(&disk.model, model));
                let version = |name: &str| {
                    let drive = hardware.drives.iter().find(|drive| drive.name == name);
                    drive.map(|drive| drive.firmware.trim().to_owned()).unwrap_or_default()
                };
                of_model.map(|disk| (disk.name.clone(), version(&disk.name))).collect()
            }
            Self::Cards(ids) => {
                let of_ids = hardware
                    .devices
                    .iter()
                    .filter(|found| is_same(&format!("{:04x}:{:04x}", found.vendor, found.device), ids));
                let ports = of_ids.flat_map(|card| hardware.ports.iter().filter(|port| port.address == card.address));
                ports.map(|port| (port.name.clone(), port.firmware.trim().to_owned())).collect()
            }
        }
    }
}

fn is_same(found: &str, wanted: &str) -> bool {
    found.trim().eq_ignore_ascii_case(wanted.trim())
}

impl fmt::Display for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Drives(model) => write!(f, "drives {model}"),
            Self::Cards(ids) => write!(f, "network cards {ids}"),
        }
    }
}
