//! `rackhand console`: a machine's serial line in this terminal.

use std::io::{Read as _, Write as _};

use anyhow::{bail, ensure};
use clap::Args;
use futures_util::{SinkExt as _, StreamExt as _};
use rackhand_common::{
    terminal::{Act, Keys, Terminal, notice},
    wire::ToConsole,
};
use serde::Deserialize;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, protocol::Role},
};

use crate::{
    client::Client,
    output::{Output, print},
    raw::Raw,
};

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
    /// Say how to open it with `ssh`, and by which key the controller is known there
    #[arg(long, conflicts_with_all = ["watch", "take", "log"])]
    ssh: bool,
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

/// Where consoles are to be had by SSH.
#[derive(Deserialize)]
struct Door {
    port: u16,
    key: String,
    fingerprint: String,
}

pub(crate) async fn run(client: &Client, command: Console, output: Output) -> anyhow::Result<String> {
    let Console { machine, watch, take, log, ssh, run } = command;
    if ssh {
        let host = client.host()?;
        return print(output, client.get("/v1/ssh").await?, |door: Door| by_ssh(&machine, &host, &door));
    }
    let path = format!("/v1/machines/{machine}/console");
    if log {
        let query: Vec<_> = run.into_iter().map(|run| ("run", run)).collect();
        return client.text(&format!("{path}/log"), &query).await;
    }
    ensure!(!client.is_dry(), "a console cannot be tried");
    let connection = client.websocket(&path).await?;
    let socket = WebSocketStream::from_raw_socket(connection, Role::Client, None).await;
    let raw = Raw::stdin()?;
    let keys = if raw.is_some() { Keys::Keyboard } else { Keys::File };
    let left = show(socket, Terminal::new(keys, watch), take).await;
    // Before anything else is printed.
    drop(raw);
    eprintln!();
    left?;
    Ok(String::new())
}

/// What to type, and what `ssh` should find there.
fn by_ssh(machine: &str, host: &str, door: &Door) -> String {
    let Door { port, key, fingerprint } = door;
    // As ssh looks for it there.
    let known = if *port == 22 { host.to_owned() } else { format!("[{host}]:{port}") };
    format!(
        "ssh -p {port} {machine}@{host}\n\nwatch only:  ssh -t -p {port} {machine}@{host} watch\ntake the \
         keyboard: ssh -t -p {port} {machine}@{host} take\n\nThe controller's key is {fingerprint}; \
         for ~/.ssh/known_hosts:\n\n{known} {key}"
    )
}

/// Until it is left, or ends.
async fn show(
    mut socket: WebSocketStream<reqwest::Upgraded>,
    mut terminal: Terminal,
    take: bool,
) -> anyhow::Result<()> {
    let mut typed = keyboard();
    let mut has_keys = true;
    let (mut hangup, mut terminate) = (signal(SignalKind::hangup())?, signal(SignalKind::terminate())?);
    let mut interrupt = signal(SignalKind::interrupt())?;
    if take {
        socket.send(wish("take")).await?;
    }
    if let Some(greeting) = terminal.greeting() {
        eprint!("{greeting}");
    }
    loop {
        tokio::select! {
            _ = hangup.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            message = socket.next() => match message {
                Some(Ok(Message::Binary(bytes))) => show_bytes(&bytes)?,
                Some(Ok(Message::Text(text))) => match serde_json::from_str(&text)? {
                    Notice::Writer { who, you } => {
                        if let Some(shown) = terminal.writer(who, you) {
                            eprint!("{shown}");
                        }
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
                for act in terminal.typed(&bytes) {
                    match act {
                        Act::Leave => {
                            let _ = socket.close(None).await;
                            return Ok(());
                        }
                        Act::Show(text) => eprint!("{text}"),
                        Act::Say(ToConsole::Typed(bytes)) => socket.send(Message::Binary(bytes.into())).await?,
                        Act::Say(ToConsole::Take) => socket.send(wish("take")).await?,
                        Act::Say(ToConsole::Give) => socket.send(wish("give")).await?,
                        Act::Say(ToConsole::Break) => socket.send(wish("break")).await?,
                    }
                }
            }
        }
    }
}

fn wish(what: &str) -> Message {
    Message::Text(serde_json::json!({ "do": what }).to_string().into())
}

fn say(words: &str) {
    eprint!("{}", notice(words));
}

fn show_bytes(bytes: &[u8]) -> std::io::Result<()> {
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
