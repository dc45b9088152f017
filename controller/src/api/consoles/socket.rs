//! A watcher's end of a console that is a websocket.

use std::time::Duration;

use axum::extract::ws::{Message, WebSocket};
use rackhand_common::wire::{FromConsole, ToConsole};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::carry::{End, Left};

/// How long a client that says nothing, not even that it is there, is kept.
const GONE: Duration = Duration::from_secs(60);

/// What a client says as text.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case", tag = "do", deny_unknown_fields)]
enum Wish {
    /// Give me the keyboard.
    Take,
    /// I need it no more.
    Give,
    /// Send a break.
    Break,
}

/// What a client is told as text.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case", tag = "event")]
enum Notice {
    /// Who has the keyboard.
    Writer { who: Option<String>, you: bool },
    /// So many bytes were not sent, since the client was too slow.
    Lost { bytes: u64 },
    /// It is over.
    Ended { why: String },
}

/// The websocket of a client.
pub(super) struct Socket {
    socket: WebSocket,
    /// When anything came from the client.
    heard: Instant,
}

impl Socket {
    pub(super) fn new(socket: WebSocket) -> Self {
        Self { socket, heard: Instant::now() }
    }

    async fn send(&mut self, message: Message) -> Result<(), Left> {
        self.socket.send(message).await.map_err(|_| Left::Gone("the client left"))
    }
}

impl End for Socket {
    async fn said(&mut self) -> Result<ToConsole, Left> {
        loop {
            let received = self.socket.recv().await;
            self.heard = Instant::now();
            return Ok(match received {
                Some(Ok(Message::Binary(bytes))) => ToConsole::Typed(bytes.to_vec()),
                Some(Ok(Message::Text(text))) => match serde_json::from_str(&text) {
                    Ok(Wish::Take) => ToConsole::Take,
                    Ok(Wish::Give) => ToConsole::Give,
                    Ok(Wish::Break) => ToConsole::Break,
                    Err(error) => return Err(Left::Told(format!("what was said is not understood: {error}"))),
                },
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                Some(Ok(Message::Close(_)) | Err(_)) | None => return Err(Left::Gone("the client left")),
            });
        }
    }

    async fn tell(&mut self, told: FromConsole) -> Result<(), Left> {
        let is_over = matches!(told, FromConsole::Ended(_));
        let notice = match told {
            FromConsole::Printed(bytes) => return self.send(Message::Binary(bytes.into())).await,
            FromConsole::Writer { who, is_you } => Notice::Writer { who, you: is_you },
            FromConsole::Lost(bytes) => Notice::Lost { bytes },
            FromConsole::Ended(why) => Notice::Ended { why },
        };
        let text = serde_json::to_string(&notice).expect("notices always serialize");
        self.send(Message::Text(text.into())).await?;
        match is_over {
            true => self.send(Message::Close(None)).await,
            false => Ok(()),
        }
    }

    async fn look(&mut self, hears: bool) -> Result<(), Left> {
        // While it is typed faster than the line takes it, the client is not listened to.
        if self.heard.elapsed() > GONE && hears {
            return Err(Left::Gone("the client is gone"));
        }
        self.send(Message::Ping(Default::default())).await
    }
}
