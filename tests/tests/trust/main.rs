//! Who may connect, for how long and with what: a real controller, real agents and hostile
//! peers over loopback, each with ports and directories of its own.

mod bench;

mod certificates;
mod enrolment;
mod hostile;
mod rotation;
