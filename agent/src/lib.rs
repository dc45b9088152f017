//! The per-rack node, in two processes of one binary.
//!
//! `rackhand-agent serve` ([`agent`]) dials the controller, keeps intent, ledger and spool on
//! disk and drives power; it never parses a machine's packet. `rackhand-agent boot`
//! ([`boot`]) answers machines and installers; it holds no controller, BMC or switch
//! credentials. They talk over the node's unix socket ([`local`]).

pub mod agent;
mod backoff;
pub mod bmcs;
pub mod boot;
pub mod clock;
pub mod console;
mod data_files;
pub mod discovery;
pub mod doctor;
pub mod firmware;
pub mod health;
pub mod intent;
pub mod ledger;
pub mod lights;
pub mod lives;
pub mod local;
mod patient_file;
pub mod power;
pub mod replacements;
pub mod spool;
pub mod timeline;
pub mod uplink;
mod why;
