//! The process that answers machines: DHCP, TFTP, router advertisements, HTTP boot, the
//! installers' channel, metadata. It parses what hostile machines send and therefore holds
//! nothing that would let them further than their own boot.

pub mod chunks;
pub mod dhcp;
pub mod http;
pub mod installer;
pub mod leases;
pub mod router;
pub mod settings;
pub mod tftp;
pub mod ticket;
