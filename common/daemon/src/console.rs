//! How a console's messages come off a stream, at either end.

use std::io;

use rackhand_common::wire::{self, MAX_CONSOLE};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// The next message; `None` when the peer has ended. One longer than [`MAX_CONSOLE`] is refused before there is
/// room for it.
pub async fn receive<T: DeserializeOwned>(read: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<T>> {
    let mut prefix = [0; 4];
    match read.read_exact(&mut prefix).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    };
    let length = u32::from_be_bytes(prefix) as usize;
    if length > MAX_CONSOLE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message that is too long for a console"));
    }
    let mut body = vec![0; length];
    read.read_exact(&mut body).await?;
    wire::decode(&body).map(Some).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}
