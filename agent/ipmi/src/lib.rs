//! What is said to a BMC and what it answers, as bytes (IPMI 2.0, specification of 2013-10-01, revision
//! 1.1), whichever way they go: over LAN from a rack's node (`rackhand-bmc`), or in-band from the machine
//! itself (`rackhand-installer`). A crate of its own so that the installer gets no HTTP client.
//!
//! [`packet`] (§13.1–13.8) is messages and datagrams; [`device`] (§20), [`lan`] (§22.24, §23), [`user`]
//! (§22.26) and [`fru`] (§34 and the FRU storage definition) are what is said in them; [`regain`] is in which order a
//! BMC is given its user back.
//!
//! Invariants:
//! - Every parser takes any bytes and never panics.
//! - No IO and no clock.

pub mod device;
pub mod fru;
pub mod lan;
pub mod packet;
pub mod regain;
pub mod text;
pub mod user;
