//! How a console travels: framed messages both ways, until either end has enough.

use std::io;

use rackhand_common::wire::{self, FromConsole, MAX_CONSOLE, ToConsole};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::Watch;

/// Carries a console over this stream until its peer is gone or the console ends.
pub(crate) async fn serve(
    mut watch: Watch,
    mut read: impl AsyncRead + Unpin,
    mut write: impl AsyncWrite + Unpin,
) -> io::Result<()> {
    let voice = watch.voice();
    let hear = async {
        while let Some(said) = receive::<ToConsole>(&mut read).await? {
            voice.say(said).await;
        }
        Ok(())
    };
    let show = async {
        loop {
            let told = watch.next().await;
            write.write_all(&wire::frame(&told)).await?;
            if matches!(told, FromConsole::Ended(_)) {
                write.shutdown().await?;
                return Ok(());
            }
        }
    };
    tokio::select! {
        ended = hear => ended,
        ended = show => ended,
    }
}

/// The next message; `None` when the peer has ended.
pub(crate) async fn receive<T: DeserializeOwned>(read: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<T>> {
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
