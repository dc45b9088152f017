//! What controller, agent and boot need of the system they run on, in one place: their logs, the
//! signals they are told by, systemd, taking over a changed configuration while they run, the
//! places of their connections, and a memory that nobody else reads.
//!
//! Invariants:
//! - A configuration that cannot be read changes nothing.
//! - systemd is told that a reload has ended, however it ended: it waits for that.

pub mod console;
pub mod log;
pub mod memory;
pub mod place;
pub mod reload;
pub mod signals;
pub mod systemd;

pub use log::{Filter, Format, Log};
pub use reload::Taken;
pub use signals::Signals;
