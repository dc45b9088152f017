//! The system that runs from RAM on a machine: it connects to the rack's boot node, tells what
//! the machine is made of, waits, and writes or erases disks when ordered.
//!
//! Read in this order: [`session`] is the whole story; [`task`] carries out one order by means
//! of [`image`], [`gpt`], [`config_drive`], [`boot_order`], [`erase`] and [`tpm`], or of [`commission`] in the [`toolbox`]; [`machine`],
//! [`disk`] and [`admin`] are the seams to the hardware, which [`inventory`] looks at, and [`hardware`] in detail, by
//! [`smbios`], [`pci`], [`ethtool`] and [`drive_health`]; [`bmc`] asks the machine's BMC in-band; [`channel`] and [`cmdline`] lead to boot; [`pid1`], [`modules`], [`network`] and [`log`] make a system of a
//! kernel. The installer never mounts a file system that a tenant wrote.

#![expect(unsafe_code, reason = "ioctls of block devices, drives, network cards and BMCs have no safe form")]

pub mod admin;
#[cfg(test)]
mod bench;
pub mod bmc;
pub mod boot_entries;
pub mod boot_order;
pub mod channel;
pub mod cmdline;
pub mod commission;
pub mod config_drive;
pub mod disk;
pub mod drive_health;
pub mod erase;
pub mod ethtool;
pub mod firmware;
pub mod gpt;
pub mod hardware;
pub mod image;
pub mod inventory;
pub mod log;
pub mod machine;
pub mod modules;
pub mod network;
pub mod pci;
pub mod pid1;
pub mod rescue;
pub mod session;
pub mod smbios;
pub mod task;
pub mod toolbox;
pub mod tpm;
