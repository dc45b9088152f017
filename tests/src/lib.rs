//! The whole product in one process over loopback, without root: [`VirtualRack`] runs the real
//! controller, agent and boot, and simulated machines boot from them, run the real installer
//! and then a simulated system. The stories told on it are in `tests/stories`.
//!
//! Machines are written from the standards' side: what they send and accept follows the RFCs
//! and what real firmware does, not our own code. The seams are the product's own: a DHCP
//! link, a power driver, and the installer's machine and disks.
//!
//! Differences from a real rack: TFTP is at another port than 69, and firmware hurries, with
//! tenths of a second where real firmware takes seconds.

pub mod clock;
pub mod console;
pub mod dhcp;
pub mod disk;
pub mod image;
pub mod ipxe;
pub mod machine;
pub mod operator;
pub mod process;
pub mod rack;
pub mod seat;
pub mod segment;
pub mod system;
pub mod tftp;
pub mod toy;
pub mod tpm;
pub mod wait;

pub use console::Console;
pub use machine::{Machine, Model};
pub use operator::Operator;
pub use rack::{Service, VirtualRack};
pub use seat::Seat;
