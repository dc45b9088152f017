//! The machine the installer runs on, as the work sees it: the seam between the work and the
//! hardware. [`Hardware`] is this machine; a simulated one has files for disks.
//!
//! Everything here blocks, and is called from threads that may.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::Timestamp;
use nix::{sys::time::TimeSpec, time::ClockId};
use rackhand_common::{
    hardware,
    machine::{Disk, Firmware, Inventory},
};

use crate::{
    bmc, boot_entries, boot_order,
    disk::{self, BlockDevice},
    gpt::Table,
    inventory,
    modules::{Modules, Need},
    toolbox::{self, Toolbox, ToolboxError, Tools},
    tpm::{Device, Tpm},
};

/// A machine to work on.
pub trait Machine: Send + Sync + 'static {
    /// What it is made of, now.
    fn inventory(&self) -> Inventory;
    /// What is in it in detail, beside what the inventory tells.
    fn details(&self, inventory: &Inventory) -> hardware::Hardware;
    /// What its BMC says in-band, where it has one that answers. May hang for as long as that does.
    fn bmc(&self) -> Option<hardware::Bmc>;
    /// The way to its BMC in-band, where it has one. May hang for as long as that does.
    fn bmc_interface(&self) -> io::Result<Option<Box<dyn bmc::Interface>>>;
    /// Opens one of its disks for writing, for nobody else.
    fn open(&self, disk: &Disk) -> io::Result<Arc<dyn disk::Disk>>;
    /// Makes the disk with this partition table the first that its firmware boots.
    fn boot_from(&self, table: &Table) -> Result<(), BootOrderError>;
    /// Leaves nothing in its firmware's boot variables but the firmware's own entries.
    fn forget_systems(&self) -> Result<(), BootOrderError>;
    /// Its TPM, when it has one that can be asked.
    fn tpm(&self) -> io::Result<Option<Box<dyn Tpm>>>;
    /// Sets its clock.
    fn set_clock(&self, now: Timestamp);
    /// Makes room in its memory for a toolbox of this many bytes: the file to write it into. What an
    /// earlier one left there is gone.
    fn room_for_toolbox(&self, size: u64) -> Result<PathBuf, ToolboxError>;
    /// Makes the programs of the toolbox in this file ready to run. It is known to be what boot says.
    fn open_toolbox(&self, file: &Path) -> Result<Arc<dyn Tools>, ToolboxError>;
}

/// Why the boot order is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum BootOrderError {
    /// The image has nothing this firmware boots.
    #[error("the image cannot be booted by UEFI")]
    Image(#[source] boot_order::NoEsp),
    /// The firmware's variables cannot be read or written.
    #[error("the firmware's boot variables cannot be {0}")]
    Variables(&'static str, #[source] io::Error),
    /// The firmware accepted the change, and did not keep it.
    #[error("the firmware did not keep its new boot order")]
    NotKept,
}

impl From<io::Error> for BootOrderError {
    fn from(error: io::Error) -> Self {
        Self::Variables("written", error)
    }
}

/// The machine this process runs on.
pub struct Hardware;

/// Has this machine's boot variables be as planned, and reads them again: the plan has to be empty then.
fn change_variables(
    plan: impl Fn(&boot_order::Variables) -> Result<Vec<boot_order::Change>, BootOrderError>,
) -> Result<(), BootOrderError> {
    if inventory::firmware() == Firmware::Bios {
        return Ok(());
    }
    let changes = || plan(&boot_order::read().map_err(|error| BootOrderError::Variables("read", error))?);
    boot_order::apply(&changes()?).map_err(|error| BootOrderError::Variables("written", error))?;
    if changes()?.is_empty() { Ok(()) } else { Err(BootOrderError::NotKept) }
}

impl Machine for Hardware {
    fn inventory(&self) -> Inventory {
        inventory::take()
    }

    fn details(&self, inventory: &Inventory) -> hardware::Hardware {
        load(|modules| modules.load_for(Need::Telling));
        crate::hardware::take(inventory)
    }

    fn bmc(&self) -> Option<hardware::Bmc> {
        load(|modules| modules.load_for(Need::Bmc));
        bmc::look()
    }

    fn bmc_interface(&self) -> io::Result<Option<Box<dyn bmc::Interface>>> {
        load(|modules| modules.load_for(Need::Bmc));
        bmc::system_interface()
    }

    fn open(&self, disk: &Disk) -> io::Result<Arc<dyn disk::Disk>> {
        Ok(Arc::new(BlockDevice::open_with_admin(&disk.name)?))
    }

    fn boot_from(&self, table: &Table) -> Result<(), BootOrderError> {
        change_variables(|found| boot_order::plan(found, table).map_err(BootOrderError::Image))
    }

    fn forget_systems(&self) -> Result<(), BootOrderError> {
        change_variables(|found| Ok(boot_entries::plan(found)))
    }

    fn tpm(&self) -> io::Result<Option<Box<dyn Tpm>>> {
        Ok(Device::find()?.map(|device| Box::new(device) as _))
    }

    fn set_clock(&self, now: Timestamp) {
        let time = TimeSpec::new(now.as_second(), now.subsec_nanosecond().into());
        if let Err(errno) = nix::time::clock_settime(ClockId::CLOCK_REALTIME, time) {
            tracing::warn!(%errno, "cannot set the clock");
        }
    }

    fn room_for_toolbox(&self, size: u64) -> Result<PathBuf, ToolboxError> {
        toolbox::make_room(Path::new(TOOLBOX), size)
    }

    fn open_toolbox(&self, file: &Path) -> Result<Arc<dyn Tools>, ToolboxError> {
        load(|modules| ["loop", "squashfs", "overlay"].into_iter().for_each(|name| modules.load(name)));
        Ok(Arc::new(Toolbox::mount(Path::new(TOOLBOX), file)?))
    }
}

/// Has modules loaded; what the kernel has built in has to do where that cannot be.
fn load(what: impl FnOnce(&mut Modules)) {
    match Modules::of_running_kernel() {
        Ok(mut modules) => what(&mut modules),
        Err(error) => tracing::warn!(%error, "no module tables: what the kernel has built in has to do"),
    }
}

/// Where the toolbox is.
const TOOLBOX: &str = "/run/toolbox";
