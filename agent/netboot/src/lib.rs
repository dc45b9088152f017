//! Network boot as pure cores: no sockets, no clock, no randomness. The shells around them are
//! in the agent crate's `boot` module.
//!
//! A machine meets them in this order: [`router`] ends its firmware's wait for IPv6, [`dhcp`]
//! gives it an address and says what to load, [`tftp`] carries the first-stage loader,
//! [`target`] decides what it boots, and [`ipxe`] writes the script that says so.

pub mod dhcp;
pub mod ipxe;
pub mod router;
pub mod target;
pub mod tftp;
