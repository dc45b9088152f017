//! The controller's rules, without IO: what may be done to a machine in which state of its
//! life, what is known of one that was adopted while it runs, which systems there are, by which way it is started into the installer, whether it is still
//! the machine it was, how a workflow goes on after each step, how its BMC comes by a password, which firmware it is to have
//! and how a rack's machines get it, which addresses are handed out, and who may do what where. Nothing here
//! reads a clock, a database or a socket.

pub mod access;
pub mod adoption;
pub mod boot_ladder;
pub mod campaign;
pub mod expects;
pub mod firmware;
pub mod identity;
pub mod intake;
pub mod ipam;
pub mod lifecycle;
pub mod os;
pub mod plan;
pub mod regain;
pub mod workflow;
