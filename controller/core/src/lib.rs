//! The controller's rules, without IO: what may be done to a machine in which state of its
//! life, which systems there are, by which way it is started into the
//! installer, whether it is still the machine it was, how a workflow goes on after each step, which
//! addresses are handed out, and who may do what where.
//! Nothing here reads a clock, a database or a socket.

pub mod access;
pub mod boot_ladder;
pub mod expects;
pub mod identity;
pub mod intake;
pub mod ipam;
pub mod lifecycle;
pub mod os;
pub mod plan;
pub mod workflow;
