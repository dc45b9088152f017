//! What the controller asks of an agent.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    bmc::{Beside, Bmcs, Look, Stranger},
    event::Outcome,
    health::SeriesQuery,
    id::{CommandId, Epoch, MachineId, RunId},
    intent::Intent,
    life::Lives,
};

/// A request by the controller, each on a stream of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ControllerRequest {
    /// Store this intent durably, then act on it.
    Intent(Intent),
    /// Change hardware, at most once.
    Command(Command),
    /// Believe this trust bundle from now on, given as its JSON text.
    Trust(String),
    /// Tell the intent on your disk: asked by a controller whose database was restored.
    Report,
    /// Store how the BMCs are reached durably; sent before the intent of the same revision.
    Bmcs(Bmcs),
    /// Ask the BMC of this machine now.
    Look(MachineId, Look),
    /// Tell what you kept of a sensor of this machine.
    Series(MachineId, SeriesQuery),
    /// Whether this machine has a serial console: asked before one is opened.
    Console(MachineId),
    /// Tell what was recorded of this machine's console.
    Recording {
        /// Whose.
        machine: MachineId,
        /// During which run; the latest recording when absent.
        run: Option<RunId>,
        /// How many bytes to leave out at its beginning.
        offset: u64,
    },
    /// As `Bmcs`, with what there is beside each.
    BmcsBeside(Bmcs, Vec<Beside>),
    /// Give the BMC of this machine its next password, as it is in the BMCs of this revision or a
    /// newer one; asked again and again until that is done.
    Rotate(MachineId, u64),
    /// Tell what is known of the rack's BMCs without asking them.
    Standings,
    /// Log in to a BMC that belongs to no machine yet, and say whose it is; asked again until that is
    /// done.
    Meet(Stranger),
    /// Read the BMC of this machine in this allocation epoch, and put it back before when there is a
    /// record: an [`Ask`](crate::bmc::baseline::Ask) as JSON. Asked again and again until that is done.
    Baseline(MachineId, Epoch, String),
    /// Update firmware of this machine in this allocation epoch by its BMC: an
    /// [`Ask`](crate::firmware::Ask) as JSON. Asked again and again until that is over.
    Firmware(MachineId, Epoch, String),
    /// Store where each machine is in its life durably; sent before the intent of the same revision, and at
    /// the beginning of a connection.
    Lives(Lives),
}

/// A command that changes hardware. Its id goes into the agent's ledger before it is acted
/// on: the same id again is answered with the recorded outcome and has no effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// Names the command.
    pub id: CommandId,
    /// The machine it is for.
    pub machine: MachineId,
    /// The allocation epoch it was made in; refused in any other.
    pub epoch: Epoch,
    /// How long after its receipt it may still be started.
    pub within: Duration,
    /// What to do.
    pub action: Action,
}

/// What a command does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Switch on; nothing when it is on.
    PowerOn,
    /// Switch off at once; nothing when it is off.
    PowerOff,
    /// Off, then on; on when it was off.
    PowerCycle,
    /// Boot from the network at the next start only, then cycle.
    NetworkBoot,
    /// Read chassis power.
    PowerStatus,
    /// Boot the node's own loader by UEFI HTTP boot at the next start only, then cycle.
    HttpBoot,
    /// Boot from the network at every start, then cycle.
    LastingNetworkBoot,
    /// Boot the node's own image from a virtual drive of the BMC at the next start, then cycle.
    MediaBoot,
    /// Have the machine boot by its own order again, and the virtual drive empty, as far as this
    /// node changed that.
    EndBoot,
}

/// An agent's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ControllerResponse {
    /// To `Intent`, `Bmcs`, `BmcsBeside` and `Lives`: this revision, or a newer one, is on disk.
    Stored(u64),
    /// To `Command`: it is in the ledger; its outcome follows as an event.
    Accepted,
    /// To `Command`: the ledger knows it already, with this outcome.
    Known(Outcome),
    /// The request was understood and is not granted.
    Refused(String),
    /// To `Trust`: the bundle is on disk and in use.
    Trusted,
    /// To `Report`: the intent acted on, if there is one.
    Reported(Option<Intent>),
    /// The request, or something in it, is of a later version than the agent: nothing was done.
    NotUnderstood(String),
    /// To `Look`: [`Seen`](crate::bmc::Seen) as JSON; to `Series`: a
    /// [`Series`](crate::health::Series).
    Seen(String),
    /// To `Console`: it has.
    Console,
    /// To `Recording`: some of it, at most 1 MiB; nothing behind its end.
    Recording(Vec<u8>),
    /// To `Rotate`: [`Rotated`](crate::bmc::Rotated) as JSON.
    Rotated(String),
    /// To `Standings`: a list of [`Standing`](crate::bmc::Standing) as JSON.
    Standings(String),
    /// To `Meet`: [`Met`](crate::bmc::Met) as JSON.
    Met(String),
    /// To `Baseline`: [`Answered`](crate::bmc::baseline::Answered) as JSON.
    Baseline(String),
    /// To `Firmware`: [`Answered`](crate::firmware::Answered) as JSON.
    Firmware(String),
}
