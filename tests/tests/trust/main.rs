//! Who may connect, for how long and with what: a real controller, real agents and hostile
//! peers over loopback, each with ports and directories of its own.

#![expect(clippy::unwrap_used, reason = "the lint does not take helpers in here for tests")]

mod bench;

mod certificates;
mod enrolment;
mod hostile;
mod rotation;
mod versions;
