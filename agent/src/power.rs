//! Chassis power: the seam to whatever switches a machine, and the task that carries out
//! commands through it.
//!
//! Invariants:
//! - A command takes effect at most once: it is in the [ledger](crate::ledger) before the
//!   driver hears of it, and one that began before a crash is never begun again.
//! - A command is refused when its epoch is not the machine's, when the machine is not ours,
//!   or when its time to start has passed; looked at on receipt and again at the moment
//!   before acting.
//! - Power is set to a state and read back until it is there; nothing is ever toggled.
//! - One command at a time per machine, in the order of receipt.

use std::{collections::HashMap, path::PathBuf, pin::Pin, process::Stdio, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process,
    sync::{mpsc, oneshot},
    time::{Instant, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use rackhand_common::{
    event::{Event, Outcome, Stage, What},
    id::MachineId,
    machine::{Mac, Power as State},
    time::{Clock, Mono},
    wire::{Action, Command, ControllerResponse},
};

use crate::{
    intent,
    ledger::{Begun, Ledger},
    spool::chain,
};

/// Switches machines. Every call may be repeated.
pub trait Power: Send + Sync + 'static {
    /// Chassis power as it is now.
    fn status<'a>(&'a self, machine: &'a Target) -> Answer<'a, State>;
    /// Asks for power to be in this state; it may get there later.
    fn set<'a>(&'a self, machine: &'a Target, wanted: State) -> Answer<'a, ()>;
    /// Makes the machine's next start, and only that, boot from the network.
    fn network_boot_once<'a>(&'a self, machine: &'a Target) -> Answer<'a, ()>;
}

/// What a driver answers, in time.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, PowerError>> + Send + 'a>>;

/// The machine a driver is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Which machine.
    pub id: MachineId,
    /// The operator's name for it.
    pub name: String,
    /// Its network cards; the first is the one it boots from.
    pub macs: Vec<Mac>,
}

/// Why a driver did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PowerError {
    /// The device, or whoever configured it, said no: asking again is useless.
    #[error("refused: {0}")]
    Refused(String),
    /// It did not answer: ask again later.
    #[error("unreachable: {0}")]
    Unreachable(String),
    /// It answered something that has no meaning.
    #[error("malformed answer: {0}")]
    Malformed(String),
}

/// A command from the controller, and where its answer goes.
#[derive(Debug)]
pub struct Call {
    /// The command as received just now.
    pub command: Command,
    /// [`ControllerResponse::Accepted`], `Known` or `Refused`.
    pub answer: oneshot::Sender<ControllerResponse>,
}
