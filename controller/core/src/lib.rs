//! The controller's rules, without IO: what may be done to a machine in which state of its
//! life, whether it is still the machine it was, and how a workflow goes on after each step.
//! Nothing here reads a clock, a database or a socket.

pub mod identity;
pub mod lifecycle;
pub mod workflow;
