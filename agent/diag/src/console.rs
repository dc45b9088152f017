//! `rackhand-diag console`: a machine's serial line in this terminal, by the agent on this node.

use std::{
    io::{self, Read as _, Write as _},
    os::unix::net::UnixStream,
    sync::mpsc::{SyncSender, sync_channel},
    thread,
};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{SigSet, Signal};
use rackhand_common::{
    terminal::{Act, Keys, Terminal, notice},
    wire::{self, FromConsole, LocalRequest, LocalResponse, MAX_CONSOLE, ToConsole},
};

use crate::{ask, raw::Raw, refusal, user};

/// How much is read of the keyboard at once.
const PIECE: usize = 4096;

/// How many things may wait to be shown or typed.
const WAITING: usize = 16;

/// What happens.
enum Happens {
    Told(FromConsole),
    Typed(Vec<u8>),
    /// The agent is gone, and why.
    Gone(String),
    /// Somebody wants this process to end.
    Signal,
}

/// Prints what was recorded of a machine last.
pub(crate) fn recorded(agent: &mut UnixStream, machine: &str, out: &mut impl io::Write) -> Result<()> {
    let mut offset = 0;
    loop {
        match ask(agent, &LocalRequest::Recording { machine: machine.to_owned(), offset })? {
            LocalResponse::Recording(bytes) if bytes.is_empty() => return Ok(()),
            LocalResponse::Recording(bytes) => {
                out.write_all(&bytes)?;
                offset += bytes.len() as u64;
            }
            other => bail!(refusal(other)),
        }
    }
}

/// Shows a machine's console until it is left, or ends.
pub(crate) fn show(mut agent: UnixStream, machine: String, watch: bool, take: bool) -> Result<()> {
    let who = format!("{} on the node", user().as_deref().unwrap_or("a technician"));
    match ask(&mut agent, &LocalRequest::Console { machine, who })? {
        LocalResponse::Console => {}
        other => bail!(refusal(other)),
    }
    agent.set_read_timeout(None)?;
    let (happens, happened) = sync_channel(WAITING);
    // Blocked before there are threads, so that none of them is ended by these.
    let signals: SigSet = [Signal::SIGHUP, Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
    signals.thread_block().context("cannot block signals")?;
    spawn(&happens, move || signals.wait().map(|_| Happens::Signal).map_err(io::Error::from));
    let mut told = agent.try_clone()?;
    spawn(&happens, move || Ok(receive(&mut told).map_or_else(|why| Happens::Gone(why.to_string()), Happens::Told)));
    let raw = Raw::stdin()?;
    let mut terminal = Terminal::new(if raw.is_some() { Keys::Keyboard } else { Keys::File }, watch);
    spawn(&happens, move || {
        let mut buffer = [0; PIECE];
        match io::stdin().read(&mut buffer)? {
            // A file that is at its end: what is printed is shown all the same.
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            length => Ok(Happens::Typed(buffer[..length].to_vec())),
        }
    });
    if take {
        say_to(&mut agent, &ToConsole::Take)?;
    }
    if let Some(greeting) = terminal.greeting() {
        eprint!("{greeting}");
    }
    let ended = loop {
        // A thread that has ended has said why.
        let Ok(what) = happened.recv() else { break Ok(()) };
        match what {
            Happens::Signal => break Ok(()),
            Happens::Gone(why) => break Err(anyhow::anyhow!("the agent is gone: {why}")),
            Happens::Told(FromConsole::Printed(bytes)) => {
                let mut out = io::stdout().lock();
                out.write_all(&bytes)?;
                out.flush()?;
            }
            Happens::Told(FromConsole::Writer { who, is_you }) => {
                if let Some(shown) = terminal.writer(who, is_you) {
                    eprint!("{shown}");
                }
            }
            Happens::Told(FromConsole::Lost(bytes)) => say(&format!("{bytes} bytes are missing")),
            Happens::Told(FromConsole::Ended(why)) => break Err(anyhow::anyhow!(why)),
            Happens::Typed(bytes) => {
                let acts = terminal.typed(&bytes);
                if acts.contains(&Act::Leave) {
                    break Ok(());
                }
                for act in acts {
                    match act {
                        Act::Show(text) => eprint!("{text}"),
                        Act::Say(said) => say_to(&mut agent, &said)?,
                        Act::Leave => {}
                    }
                }
            }
        }
    };
    drop(raw);
    eprintln!();
    ended
}

/// A thread that says what happens, until it fails or nobody listens.
fn spawn(happens: &SyncSender<Happens>, mut next: impl FnMut() -> io::Result<Happens> + Send + 'static) {
    let happens = happens.clone();
    thread::spawn(move || {
        while let Ok(what) = next() {
            let is_last = matches!(what, Happens::Gone(_));
            if happens.send(what).is_err() || is_last {
                return;
            }
        }
    });
}

/// Says something to a console.
pub(crate) fn say_to(agent: &mut UnixStream, said: &ToConsole) -> Result<()> {
    agent.write_all(&wire::frame(said)).context("the agent does not take what is typed")
}

fn say(words: &str) {
    eprint!("{}", notice(words));
}

/// The next that a console tells.
pub(crate) fn receive(told: &mut UnixStream) -> io::Result<FromConsole> {
    let mut prefix = [0; 4];
    told.read_exact(&mut prefix)?;
    let length = u32::from_be_bytes(prefix) as usize;
    if length > MAX_CONSOLE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message that is too long for a console"));
    }
    let mut body = vec![0; length];
    told.read_exact(&mut body)?;
    wire::decode(&body).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}
