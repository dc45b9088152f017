//! A simulated BMC: a server of IPMI 2.0 and Redfish (DSP0266, DSP0268), written from the
//! standards and sharing nothing with the client it judges.
//!
//! Read in this order: [`chassis`] is the machine behind it, [`personality`] what it comes as,
//! [`state`] what it is now, with its [`sensor`]s and its [`log`], [`faults`] what can be wrong;
//! [`ipmi`] and [`redfish`] speak for it. [`Simulator`] starts one.
//!
//! Invariants:
//! - Both protocols show one state: what one changes, the other tells.
//! - State and protocols are functions of what arrives and of the time; only the shells have
//!   sockets.

pub mod chassis;
pub mod control;
pub mod faults;
pub mod ipmi;
pub mod keys;
pub mod log;
pub mod nvram;
pub mod personality;
pub mod redfish;
pub mod sensor;
pub mod simulator;
pub mod state;

pub use chassis::{Act, Bench, Boot, Chassis, Script, Source};
pub use faults::{Faults, Flashing, Follows, Rotation, Settings, ToldUuid};
pub use keys::{Keys, certificate};
pub use nvram::Nvram;
pub use personality::{Personality, Role};
pub use simulator::{Addresses, Bmc, Running, Simulator};
pub use state::User;
