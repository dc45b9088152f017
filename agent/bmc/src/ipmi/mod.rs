//! IPMI 2.0 (specification of 2013-10-01, revision 1.1) over LAN, with RMCP+ sessions.
//!
//! Read in this order: [`packet`] (§13.1–13.8) is bytes, [`crypto`] (§13.20–13.33) is keys,
//! [`session`] is the sans-IO core of one session; [`device`] (§20), [`chassis`] (§28), [`sdr`]
//! (§33, §43), [`sensor`] (§35, §36), [`states`] (§42), [`sel`] (§31, §32), [`fru`] (§34 and the
//! FRU storage definition), [`dcmi`], [`lan`] (§23) and [`user`] (§22.26) are what is said inside
//! one, for the most part in `rackhand-ipmi`; [`client`] sends it. [`sol`] (§15, §24, §26) is the bytes of a
//! serial console, [`console`] the session of its own in which it is held.
//!
//! Invariants:
//! - Every parser takes any bytes and never panics; those for a fuzzer are in [`PARSERS`].
//! - Only cipher suites 17 and 3 are used, so that nothing is sent in the clear but the login.
//! - One session and one request at a time; each call has a deadline.
//!
//! Deliberately not here: IPMI 1.5 sessions, cipher suites without encryption, BMC keys (Kg),
//! bridging to other controllers than the BMC.

pub mod chassis;
pub mod client;
pub mod console;
pub mod crypto;
pub mod dcmi;
pub mod sdr;
pub mod sel;
pub mod sensor;
pub mod session;
pub mod sol;
pub mod states;

pub use client::Ipmi;
pub use console::Console;
pub use rackhand_ipmi::{device, fru, lan, packet, text, user};

/// A parser, which says whether the bytes have a meaning.
pub type Parser = fn(&[u8]) -> bool;

/// Every parser of a BMC's bytes, by name, for a fuzzer.
pub const PARSERS: [(&str, Parser); 9] = [
    ("packet", |bytes| packet::datagram(bytes).is_ok()),
    ("message", |bytes| packet::response(bytes).is_ok()),
    ("open", |bytes| session::open_response(bytes).is_ok()),
    ("rakp2", |bytes| session::rakp2(bytes).is_ok()),
    ("rakp4", |bytes| session::rakp4(bytes).is_ok()),
    ("sol", |bytes| sol::packet(bytes).is_ok()),
    ("sdr", |bytes| sdr::record(bytes).is_ok()),
    ("sel", |bytes| sel::record(bytes).is_ok()),
    ("fru", |bytes| fru::parse(bytes).is_ok()),
];
