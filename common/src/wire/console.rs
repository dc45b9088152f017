//! A machine's serial console as it travels: over a QUIC stream that the controller opened towards
//! the agent, or over the node's unix socket.
//!
//! Both ways go messages with their length before them (four bytes, big-endian), none longer than
//! [`MAX_CONSOLE`]. A stream that begins with [`CONSOLE_STREAM`] is one: no other message begins so.

use serde::{Deserialize, Serialize};

use crate::id::MachineId;

/// The first byte of a QUIC stream that carries a console; behind it comes [`ConsoleRequest`].
pub const CONSOLE_STREAM: u8 = 0xff;

/// The longest message of a console, in bytes.
pub const MAX_CONSOLE: usize = 40 << 10;

/// The most bytes of a console in one message.
pub const MAX_CONSOLE_BYTES: usize = 32 << 10;

/// Opens a console: the first message of its stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleRequest {
    /// Whose.
    pub machine: MachineId,
    /// Who watches, for the others who do.
    pub who: String,
}

/// What a watcher says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToConsole {
    /// Typed; of no effect while somebody else has the keyboard.
    Typed(Vec<u8>),
    /// Give me the keyboard, whoever has it; and the console, if another session at the BMC has it.
    Take,
    /// I need the keyboard no more.
    Give,
    /// Send a break; of no effect while somebody else has the keyboard.
    Break,
}

/// What a watcher is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromConsole {
    /// Printed by the machine: first what was printed lately, then what is printed now. Between it
    /// stand lines of the agent's own, in brackets.
    Printed(Vec<u8>),
    /// Who has the keyboard now.
    Writer {
        /// Nobody when absent.
        who: Option<String>,
        /// Whether it is this watcher.
        is_you: bool,
    },
    /// This watcher was too slow for so many bytes, which are not sent.
    Lost(u64),
    /// There is no console, or no more, and why.
    Ended(String),
}
