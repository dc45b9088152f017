//! What boot and the technician's tool ask of the agent on the same node, over a unix socket.
//! One connection carries any number of requests, one at a time.

use serde::{Deserialize, Serialize};

use crate::{
    bmc::{InBandUser, Look},
    event::{Event, NodeHealth},
    id::{AgentId, MachineId, RackId, RunId},
    image::Digest,
    intent::Intent,
    machine::Power,
};

/// A request on the node's socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LocalRequest {
    /// By boot: the intent, held until it is newer than this revision or 20 s have passed.
    Intent {
        /// The revision boot has; zero for none.
        after: u64,
    },
    /// By boot: events from its spool, numbered consecutively from `first`.
    Events {
        /// Names boot's spool; numbers start again in another.
        spool: uuid::Uuid,
        /// Number of the first event.
        first: u64,
        /// At most 256 of them.
        events: Vec<Event>,
    },
    /// By boot: a chunk, which the agent fetches with its certificate.
    Chunk(Digest),
    /// By boot: a signed manifest, checked by the agent against the trust bundle.
    Manifest(Digest),
    /// By the technician: how the node fares.
    Status,
    /// By the technician: all machines.
    Machines,
    /// By the technician: the latest events of one machine (by id, name or MAC), oldest first.
    Timeline(String),
    /// By the technician: ask the BMC of a machine (by id, name or MAC) now.
    Look(String, Look),
    /// By the technician: how one machine (by id, name or MAC) fares, or all of them.
    Health(Option<String>),
    /// By the technician: the serial console of a machine (by id, name or MAC).
    /// [`ToConsole`](super::ToConsole) and [`FromConsole`](super::FromConsole) follow, until the
    /// connection ends.
    Console {
        /// Whose.
        machine: String,
        /// Who watches.
        who: String,
    },
    /// By the technician: what was recorded of a machine's console (by id, name or MAC) last.
    Recording {
        /// Whose.
        machine: String,
        /// How many bytes to leave out at its beginning.
        offset: u64,
    },
    /// By the technician: why a machine (by id, name or MAC) is as it is.
    Why(String),
    /// By the technician: light the lamp of a machine (by id, name or MAC) for so many seconds, zero
    /// puts it out.
    Identify(String, u32),
    /// By the technician: a part of a machine (by id, name or MAC) is replaced, an
    /// [`Ask`](crate::replacement::Ask) as JSON.
    Replacement(String, String),
    /// By boot: a piece of a file of firmware, which the agent fetches with its certificate and keeps.
    Firmware {
        /// SHA-256 of the file, in lower-case hexadecimal.
        sha256: String,
        /// Bytes of the file.
        size: u64,
        /// Where the piece begins.
        offset: u64,
    },
    /// By boot: what the installer of a machine is to set at its BMC by the order of this run and try.
    BmcUser(MachineId, RunId, u32),
}

/// The agent's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LocalResponse {
    /// To `Intent`; `None` when there is none newer.
    Intent(Option<Intent>),
    /// To `Events`: all with lower numbers are stored.
    Next(u64),
    /// To `Chunk`: its compressed bytes.
    Chunk(Vec<u8>),
    /// To `Manifest`: its JSON text and signature.
    Manifest {
        /// As signed.
        manifest: String,
        /// Hexadecimal.
        signature: String,
    },
    /// To `Status`.
    Status(NodeView),
    /// To `Machines`.
    Machines(Vec<MachineView>),
    /// To `Timeline`.
    Timeline {
        /// The machine found.
        machine: MachineView,
        /// Its events.
        events: Vec<Event>,
    },
    /// There is no such thing.
    NotFound(String),
    /// Not now: the controller or the store cannot be reached.
    Unavailable(String),
    /// To `Look`: [`Seen`](crate::bmc::Seen) as JSON.
    Seen(String),
    /// To `Health`: a list of [`Standing`](crate::health::Standing) as JSON.
    Health(String),
    /// To `Console`: it is open.
    Console,
    /// To `Recording`: some of it, at most 1 MiB; nothing behind its end.
    Recording(Vec<u8>),
    /// To `Why`: an [`Explanation`](crate::explanation::Explanation) as JSON.
    Why(String),
    /// To `Identify`: its BMC has done it.
    Identified,
    /// To `Replacement`: a [`View`](crate::replacement::View) as JSON.
    Replacement(String),
    /// To `Firmware`: at most [`MAX_PIECE`](crate::channel::MAX_PIECE) of its bytes.
    Firmware(Vec<u8>),
    /// To `BmcUser`: it is on this node's disk that the BMC may have this password from now on.
    BmcUser(InBandUser),
}

/// The node as the technician sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeView {
    /// Software version.
    pub version: String,
    /// The agent's registration.
    pub agent: AgentId,
    /// The rack it serves.
    pub rack: RackId,
    /// The rack's name, when an intent told it.
    pub rack_name: Option<String>,
    /// Whether the controller is connected, and since or until when in words.
    pub uplink: String,
    /// The intent acted on; zero for none.
    pub revision: u64,
    /// Events waiting to be taken by the controller.
    pub spooled: u64,
    /// When the certificate ends.
    pub certificate_until: jiff::Timestamp,
    /// Seconds since boot was last heard of; `None` for never.
    pub boot_heard: Option<u64>,
    /// The node's own health.
    pub health: Option<NodeHealth>,
}

/// A machine as the technician sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineView {
    /// Its id.
    pub id: MachineId,
    /// Its name, when the controller gave one.
    pub name: Option<String>,
    /// The card it boots from.
    pub mac: Option<crate::machine::Mac>,
    /// Its address.
    pub address: Option<std::net::Ipv4Addr>,
    /// Chassis power as last read.
    pub power: Option<Power>,
    /// Whether its installer is connected.
    pub installer: bool,
    /// Where it stands, in words.
    pub latest: String,
    /// When that was.
    pub since: Option<jiff::Timestamp>,
}
