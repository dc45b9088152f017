//! DHCPv4 for the provisioning network of one rack (RFC 2131, 2132; PXE 2.1).
//!
//! [`Request::parse`] turns foreign bytes into a request that means something; [`Server`]
//! decides; a [`Reply`] says what must be on disk before it may leave, and by which way.

mod gate;
mod message;
mod server;
#[cfg(test)]
pub(crate) mod tests;

pub use gate::{Gate, Guest, MAX_STRANGERS};
pub use message::{Client, Kind, Malformed, Request};
pub use server::{Destination, HEARD_LASTS, Holder, LEASE_LASTS, Reply, Server, Settings};
