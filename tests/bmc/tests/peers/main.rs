//! The simulated BMC judged by peers that nobody here wrote.

#![expect(clippy::unwrap_used, reason = "the lint does not take helpers in here for tests")]

mod bench;
mod faults;
mod ipmi;
mod process;
mod redfish;
mod validators;
