//! What an agent asks of the controller.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::{
    event::Event,
    id::{AgentId, Incarnation, RackId},
};

/// A request by an agent, each on a stream of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AgentRequest {
    /// The first request of every connection.
    Hello(Hello),
    /// Events from the spool. Numbers are consecutive from `first`; the controller takes
    /// those it has not seen and acknowledges through the last.
    Events {
        /// Number of the first event.
        first: u64,
        /// At most 256 of them.
        events: Vec<Event>,
    },
    /// A fresh certificate for the same agent and a key that never left the node.
    Renew {
        /// PKCS #10 request, DER.
        csr: Vec<u8>,
    },
    /// On an enrolment connection only: a first certificate against a one-time code.
    Enrol {
        /// The secret part of the code.
        secret: String,
        /// PKCS #10 request, DER.
        csr: Vec<u8>,
    },
    /// Where it answers `/metrics`, as it was told to; on every connection.
    Metrics(SocketAddr),
}

/// What an agent says of itself when it connects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// This start of the process.
    pub incarnation: Incarnation,
    /// Version of the software, for people.
    pub version: String,
    /// The newest intent on its disk; zero for none.
    pub revision: u64,
    /// The highest connection number it was ever welcomed with; zero for none.
    pub connection: u64,
}

/// The controller's answer to [`Hello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// Counts up at every connection of this agent. An agent that was welcomed with a higher
    /// number before refuses the connection: it is owned by someone else.
    pub connection: u64,
    /// The number the next event should have for the controller: through the one before it,
    /// all have been taken.
    pub next_event: u64,
}

/// The controller's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AgentResponse {
    /// To `Hello`.
    Welcome(Welcome),
    /// To `Events`: all with lower numbers are stored.
    Next(u64),
    /// To `Renew` and `Enrol`.
    Certificate {
        /// Who you are.
        agent: AgentId,
        /// Your rack.
        rack: RackId,
        /// Leaf first, DER.
        chain: Vec<Vec<u8>>,
        /// The trust bundle, as its JSON text.
        bundle: String,
    },
    /// The request was understood and is not granted.
    Refused(String),
    /// To anything but `Renew`: the certificate has ended, and renewing it is all that can be
    /// done on this connection.
    Lapsed,
    /// The request, or an event in it, is of a later version than the controller: nothing was done.
    NotUnderstood(String),
    /// To `Metrics`: it is known.
    Known,
}
