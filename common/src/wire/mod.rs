//! Messages between controller, agent and boot, and how they become bytes.
//!
//! bincode 2 with its standard configuration, behind [`encode`] and [`decode`] only. Enums
//! grow at the end; structs never change; the bytes of every version we speak are pinned by
//! `golden.rs`. Never stored on disk: what is stored is JSON.
//!
//! Over QUIC a message is the whole of a stream's one direction, a request and its response
//! one bidirectional stream. What a peer of a later version says and this one does not know is
//! answered `NotUnderstood`, and the connection stays. Over the unix socket a message is preceded by its length as
//! four bytes, big-endian ([`frame_len`]). A console is a stream of such messages both ways
//! ([`ConsoleRequest`]).

mod agent;
mod console;
mod controller;
mod local;

pub use agent::{AgentRequest, AgentResponse, Hello, Welcome};
pub use console::{CONSOLE_STREAM, ConsoleRequest, FromConsole, MAX_CONSOLE, MAX_CONSOLE_BYTES, ToConsole};
pub use controller::{Action, Command, ControllerRequest, ControllerResponse};
pub use local::{LocalRequest, LocalResponse, MachineView, NodeView};

use bincode::error::DecodeError;
use serde::{Serialize, de::DeserializeOwned};

/// The longest message either side accepts, in bytes. The largest are a whole intent of
/// [`MAX_MACHINES`](crate::intent::MAX_MACHINES) machines and a compressed chunk.
pub const MAX_LEN: usize = 16 << 20;

/// ALPN of an enrolled agent's connection; the number is the protocol version.
pub const ALPN: &[u8] = b"rackhand/1";

/// Offered besides HTTP by an agent that fetches objects, to be shown the certificate of our own
/// roots whatever others are shown; never chosen.
pub const ALPN_OBJECTS: &[u8] = b"rackhand-objects/1";

/// ALPN of a node that has a code and no certificate yet.
pub const ALPN_ENROL: &[u8] = b"rackhand-enrol/1";

/// Why one end closes a connection: QUIC's application error code. Grows at the end only; the
/// reason that travels with it is for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closing {
    /// The work is done, or the process stops.
    Done = 0,
    /// A newer connection of the same agent took over.
    Replaced = 1,
    /// The peer is not let in, or broke the protocol.
    Refused = 2,
    /// The agent's registration was revoked: it is never let in again.
    Revoked = 3,
    /// The agent's certificate ended too long ago to be renewed.
    Ended = 4,
}

impl Closing {
    /// The reason with this code.
    pub fn of(code: u64) -> Option<Self> {
        [Self::Done, Self::Replaced, Self::Refused, Self::Revoked, Self::Ended]
            .into_iter()
            .find(|closing| *closing as u64 == code)
    }
}

/// Why bytes are not a message.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    /// Longer than [`MAX_LEN`].
    #[error("message of {0} bytes is over the limit of {MAX_LEN}")]
    TooLong(usize),
    /// A message with a kind of request, event or action that came with a later version.
    #[error("message holds something that version {} does not know", env!("CARGO_PKG_VERSION"))]
    Unknown(#[source] DecodeError),
    /// Not a message of the expected type.
    #[error("message cannot be decoded")]
    Undecodable(#[source] DecodeError),
    /// A message, followed by something else.
    #[error("message is followed by {0} bytes that do not belong to it")]
    Trailing(usize),
}

/// The bytes of a message.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    bincode::serde::encode_to_vec(message, bincode::config::standard()).expect("wire types always serialize")
}

/// The message in these bytes, all of them.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Malformed> {
    if bytes.len() > MAX_LEN {
        return Err(Malformed::TooLong(bytes.len()));
    }
    let config = bincode::config::standard().with_limit::<MAX_LEN>();
    let (message, used) = bincode::serde::decode_from_slice(bytes, config).map_err(|error| match error {
        // What serde says of an enum's variant beyond the last one it has; bincode passes it on as text.
        DecodeError::OtherString(text) if text.contains("expected variant index") => {
            Malformed::Unknown(DecodeError::OtherString(text))
        }
        error => Malformed::Undecodable(error),
    })?;
    if used < bytes.len() {
        return Err(Malformed::Trailing(bytes.len() - used));
    }
    Ok(message)
}

/// The length of the frame that follows this prefix, if it is acceptable.
pub fn frame_len(prefix: [u8; 4]) -> Result<usize, Malformed> {
    let len = u32::from_be_bytes(prefix) as usize;
    if len > MAX_LEN { Err(Malformed::TooLong(len)) } else { Ok(len) }
}

/// A message with its length before it, as the unix socket carries it.
pub fn frame<T: Serialize>(message: &T) -> Vec<u8> {
    let body = encode(message);
    let mut framed = Vec::with_capacity(body.len() + 4);
    framed.extend_from_slice(&u32::try_from(body.len()).expect("messages are shorter than 4 GiB").to_be_bytes());
    framed.extend_from_slice(&body);
    framed
}

#[cfg(test)]
mod golden;
