//! A whole installation in one process: a controller, racks with agent and boot, machines and
//! operators, under one seed, in virtual time, with faults. The product's own decisions and as
//! much of its shells as have seams; what is not the product is listed below. The same seed
//! gives the same history byte for byte.
//!
//! Read [`world`] first: everything that happens is in its queue, and beside it what happens to
//! whom. [`node`] holds a rack's two processes, [`machine`] a machine, [`hub`] and [`database`]
//! the seams that the product calls in the middle of its own work, [`fault`] what goes wrong, [`oracle`] what must
//! hold nevertheless, [`plant`] the bugs that prove the oracles awake, [`search`] many seeds and
//! how a failing one is cut down, [`version`] what processes of the next version leave and send.
//!
//! Simulated, not the product: QUIC and the unix socket (their messages are lost, late and
//! repeated within a connection), the fleet's and the uplink's loops around them, TFTP, chunks
//! and manifests, the installer's writing of disks, power drivers, and everything of a machine.

pub mod database;
pub mod disk;
pub mod fault;
pub mod history;
pub mod hub;
pub mod machine;
pub mod node;
pub mod oracle;
pub mod plant;
pub mod rng;
pub mod search;
pub mod time;
pub mod version;
pub mod world;
