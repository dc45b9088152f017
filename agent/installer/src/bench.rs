//! What tests of the installer work on: a machine with one disk and one network card, and no images.

use std::{io, path::PathBuf, sync::Arc};

use jiff::Timestamp;
use rackhand_common::{
    hardware::{Bmc, Hardware},
    image::Chunk,
    machine::{Content, Cpu, Disk, Firmware, Inventory, Mac, Nic, System},
};

use crate::{
    bmc, disk,
    gpt::Table,
    image::{ImageError, Source},
    machine::{BootOrderError, Machine},
    toolbox::{ToolboxError, Tools},
    tpm::Tpm,
};

/// A machine whose details are what is said here; it has no BMC, no TPM and no toolbox.
pub(crate) struct Bench<D>(pub(crate) D);

impl<D: Fn() -> Hardware + Send + Sync + 'static> Machine for Bench<D> {
    fn inventory(&self) -> Inventory {
        let disk = Disk {
            name: "sda".into(),
            model: "Toy ".into(),
            serial: "d1".into(),
            wwn: None,
            size: 1 << 30,
            sector: 512,
            rotational: false,
            content: Content::Blank,
        };
        Inventory {
            firmware: Firmware::Bios,
            system: System { serial: "S1".into(), ..System::default() },
            cpu: Cpu::default(),
            memory: 1 << 30,
            nics: vec![Nic { name: "eth0".into(), mac: Mac([2, 0, 0, 0, 0, 1]), driver: "sim".into(), link: true }],
            disks: vec![disk],
        }
    }
    fn details(&self, _: &Inventory) -> Hardware {
        (self.0)()
    }
    fn bmc(&self) -> Option<Bmc> {
        None
    }
    fn bmc_interface(&self) -> io::Result<Option<Box<dyn bmc::Interface>>> {
        Ok(None)
    }
    fn open(&self, _: &Disk) -> io::Result<Arc<dyn disk::Disk>> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn boot_from(&self, _: &Table) -> Result<(), BootOrderError> {
        Ok(())
    }
    fn forget_systems(&self) -> Result<(), BootOrderError> {
        Ok(())
    }
    fn tpm(&self) -> io::Result<Option<Box<dyn Tpm>>> {
        Ok(None)
    }
    fn set_clock(&self, _: Timestamp) {}
    fn room_for_toolbox(&self, _: u64) -> Result<PathBuf, ToolboxError> {
        Err(ToolboxError::NotThere)
    }
    fn open_toolbox(&self, _: &std::path::Path) -> Result<Arc<dyn Tools>, ToolboxError> {
        Err(ToolboxError::NotThere)
    }
}

/// Where no chunk of any image is.
pub(crate) struct NoImages;

impl Source for NoImages {
    async fn fetch(&self, chunk: Chunk) -> Result<bytes::Bytes, ImageError> {
        Err(ImageError::WrongDigest(chunk.digest, 0))
    }
}
