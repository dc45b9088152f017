//! How a console travels: framed messages both ways, until either end has enough.

use std::io;

use rackhand_common::wire::{self, FromConsole, ToConsole};
use rackhand_daemon::console::receive;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};

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
