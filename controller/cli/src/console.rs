//! `rackhand console`: a machine's serial line in this terminal.

use std::io::{Read as _, Write as _};

use anyhow::{bail, ensure};
use clap::Args;
use futures_util::{SinkExt as _, StreamExt as _};
use rackhand_common::terminal::{Escapes, HELP, Key};
use serde::Deserialize;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, protocol::Role},
};

use crate::{client::Client, raw::Raw};

/// How much is read of the keyboard at once, and how many such pieces may wait for the controller.
const PIECE: usize = 4096;
const PIECES: usize = 16;

#[derive(Args)]
pub(crate) struct Console {
    /// Name or id
    machine: String,
    /// Only watch: nothing is typed
    #[arg(long, conflicts_with = "take")]
    watch: bool,
    /// Take the keyboard, whoever has it, and the console, when another session at the BMC has it
    #[arg(long)]
    take: bool,
    /// Print what was recorded during a run
    #[arg(long, conflicts_with_all = ["watch", "take"])]
    log: bool,
    /// Of this run; otherwise of the latest that was recorded
    #[arg(long, requires = "log", value_name = "ID")]
    run: Option<String>,
}

/// What the controller tells beside what is printed.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
enum Notice {
    Writer {
        who: Option<String>,
        you: bool,
    },
    Lost {
        bytes: u64,
    },
    Ended {
        why: String,
    },
    /// Of a later version.
    #[serde(other)]
    Other,
}

pub(crate) async fn run(client: &Client, command: Console) -> anyhow::Result<String> {
    let Console { machine, watch, take, log, run } = command;
    let path = format!("/v1/machines/{machine}/console");
    if log {
        let query: Vec<_> = run.into_iter().map(|run| ("run", run)).collect();
        return client.text(&format!("{path}/log"), &query).await;
    }
    ensure!(!client.is_dry(), "a console cannot be tried");
    let connection = client.websocket(&path).await?;
    let socket = WebSocketStream::from_raw_socket(connection, Role::Client, None).await;
    let raw = Raw::stdin()?;
    let escapes = if raw.is_some() { Escapes::Fresh } else { Escapes::Off };
    let left = show(socket, escapes, watch, take).await;
    // Before anything else is printed.
    drop(raw);
    eprintln!();
    left?;
    Ok(String::new())
}

/// Until it is left, or ends.
async fn show(
    mut socket: WebSocketStream<reqwest::Upgraded>,
    mut escapes: Escapes,
    watch: bool,
    take: bool,
) -> anyhow::Result<()> {
    let mut typed = keyboard();
    let mut has_keys = true;
    let (mut hangup, mut terminate) = (signal(SignalKind::hangup())?, signal(SignalKind::terminate())?);
    let mut interrupt = signal(SignalKind::interrupt())?;
    // Said once, and again when it is another's.
    let mut writer: Option<String> = None;
    let mut is_mine = false;
    if take {
        socket.send(wish("take")).await?;
    }
    if escapes != Escapes::Off {
        say("at the beginning of a line: ~. leaves, ~? tells more");
    }
    loop {
        tokio::select! {
            _ = hangup.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            message = socket.next() => match message {
                Some(Ok(Message::Binary(bytes))) => print(&bytes)?,
                Some(Ok(Message::Text(text))) => match serde_json::from_str(&text)? {
                    Notice::Writer { who, you } => {
                        if you && !is_mine {
                            say("you have the keyboard");
                        } else if !you && who.is_some() && who != writer {
                            say(&format!("{} has the keyboard; ~w takes it", who.as_deref().unwrap_or_default()));
                        }
                        (writer, is_mine) = (who, you);
                    }
                    Notice::Lost { bytes } => say(&format!("{bytes} bytes are missing: this end was too slow")),
                    Notice::Ended { why } => bail!("{why}"),
                    Notice::Other => {}
                },
                Some(Ok(Message::Close(_))) | None => bail!("the controller ended the console"),
                Some(Ok(_)) => {}
                Some(Err(error)) => bail!("the connection to the controller broke: {error}"),
            },
            bytes = typed.recv(), if has_keys => {
                // A file that is at its end: what is printed is shown all the same.
                let Some(bytes) = bytes else {
                    has_keys = false;
                    continue;
                };
                for key in escapes.read(&bytes) {
                    match key {
                        Key::Leave => {
                            let _ = socket.close(None).await;
                            return Ok(());
                        }
                        Key::Help => eprint!("{HELP}"),
                        _ if watch => {}
                        Key::Type(_) if writer.is_some() && !is_mine => {
                            say(&format!("{} has the keyboard; ~w takes it", writer.as_deref().unwrap_or_default()));
                        }
                        Key::Type(bytes) => socket.send(Message::Binary(bytes.into())).await?,
                        Key::Take => socket.send(wish("take")).await?,
                        Key::Give => socket.send(wish("give")).await?,
                        Key::Break => socket.send(wish("break")).await?,
                    }
                }
            }
        }
    }
}

fn wish(what: &str) -> Message {
    Message::Text(serde_json::json!({ "do": what }).to_string().into())
}

/// In a raw terminal a line begins with a carriage return.
fn say(words: &str) {
    eprint!("\r\n[rackhand: {words}]\r\n");
}

fn print(bytes: &[u8]) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

/// What is typed, read by a thread of its own: one that waits for a key ends with the process.
fn keyboard() -> mpsc::Receiver<Vec<u8>> {
    let (sender, typed) = mpsc::channel(PIECES);
    std::thread::spawn(move || {
        let mut buffer = [0; PIECE];
        while let Ok(length @ 1..) = std::io::stdin().read(&mut buffer) {
            if sender.blocking_send(buffer[..length].to_vec()).is_err() {
                return;
            }
        }
    });
    typed
}
