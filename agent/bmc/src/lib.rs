//! Baseboard management controllers: IPMI 2.0 over RMCP+ and Redfish (DSP0266), behind one trait.
//!
//! Read in this order: [`bmc`] says what a BMC is asked, [`told`] what it answers; [`ipmi`] and
//! [`redfish`] are the two ways to ask; [`probe`] finds out whether there is a BMC at all.
//!
//! Invariants:
//! - Every byte of a BMC is hostile: no answer panics, grows memory without bound or is waited for
//!   without a deadline.
//! - What a BMC says that cannot be understood is skipped and reported, and the rest is used.
//! - Nothing is toggled: power, boot and identification are set to a state.
//! - No password is shown by `Debug`, `Display` or a log line.

pub mod bmc;
pub mod ipmi;
pub mod probe;
pub mod redfish;

/// What a BMC tells.
pub use rackhand_common::bmc as told;

pub use bmc::{Answer, Bmc, BmcError, Credentials, Image, Logins, Task};
