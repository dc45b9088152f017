//! Threads that wait for the agent, the keyboard and signals, and tell what comes.
//!
//! Each ends when nobody listens any more, or when what it waits for is over. How much waits to be taken in is
//! bounded: a machine that prints faster is held up at its agent, which says what was lost.

use std::{
    io::{self, Read as _},
    os::unix::net::UnixStream,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{RecvTimeoutError, SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;
use rackhand_common::{
    health::Standing,
    id::MachineId,
    wire::{FromConsole, LocalRequest, LocalResponse},
};

use super::state::{Input, Rack, Row};
use crate::{ask, connect, console, refusal, timeline, user};

/// How often the agent is asked how things stand.
const LOOK: Duration = Duration::from_secs(1);

/// How much is read of the keyboard at once.
const PIECE: usize = 4096;

/// How long an agent may take to take what is typed: this is waited for by who types.
const TYPED: Duration = Duration::from_secs(2);

/// What comes from without.
pub(super) enum Told {
    /// It is for the core.
    Input(Input),
    Signal(Signal),
    /// A console is open; what is said to it goes here.
    Opened(u64, UnixStream),
    /// The keyboard is gone.
    Gone,
}

/// A thread that tells what comes, until that fails or nobody listens.
pub(super) fn spawn(tell: &SyncSender<Told>, mut next: impl FnMut() -> io::Result<Told> + Send + 'static) {
    let tell = tell.clone();
    thread::spawn(move || {
        while let Ok(told) = next() {
            let is_last = matches!(told, Told::Gone);
            if tell.send(told).is_err() || is_last {
                return;
            }
        }
    });
}

/// Tells what is typed.
pub(super) fn keyboard(tell: &SyncSender<Told>) {
    spawn(tell, || {
        let mut buffer = [0; PIECE];
        match io::stdin().read(&mut buffer) {
            Ok(0) | Err(_) => Ok(Told::Gone),
            Ok(length) => Ok(Told::Input(Input::Typed(buffer[..length].to_vec()))),
        }
    });
}

/// Tells how the rack stands, again and again; and the timeline of the machine that the function returned is
/// called with.
pub(super) fn rack(socket: &Path, tell: &SyncSender<Told>) -> impl Fn(Option<MachineId>) + use<> {
    let followed = Arc::new(Mutex::new(None));
    // One that waits is enough: whoever is woken looks at what is followed then.
    let (wake, woken) = sync_channel::<()>(1);
    let (socket, tell, machine) = (socket.to_owned(), tell.clone(), followed.clone());
    thread::spawn(move || {
        let mut agent = None;
        loop {
            let machine = *machine.lock().unwrap_or_else(PoisonError::into_inner);
            let inputs = look(&socket, &mut agent, machine).unwrap_or_else(|error| {
                // What else comes on this connection may answer something else.
                agent = None;
                vec![Input::Silent(first_line(&error))]
            });
            for input in inputs {
                if tell.send(Told::Input(input)).is_err() {
                    return;
                }
            }
            if woken.recv_timeout(LOOK) == Err(RecvTimeoutError::Disconnected) {
                return;
            }
        }
    });
    move |machine| {
        *followed.lock().unwrap_or_else(PoisonError::into_inner) = machine;
        let _ = wake.try_send(());
    }
}

fn look(socket: &Path, agent: &mut Option<UnixStream>, machine: Option<MachineId>) -> Result<Vec<Input>> {
    let agent = match agent {
        Some(agent) => agent,
        none => none.insert(connect(socket)?),
    };
    let mut inputs = Vec::new();
    // First, as somebody looks at just that.
    if let Some(machine) = machine
        && let Ok((_, events)) = timeline(agent, &machine.to_string())
    {
        inputs.push(Input::Timeline(machine, events));
    }
    let node = match ask(agent, &LocalRequest::Status)? {
        LocalResponse::Status(node) => node,
        other => bail!(refusal(other)),
    };
    let views = match ask(agent, &LocalRequest::Machines)? {
        LocalResponse::Machines(views) => views,
        other => bail!(refusal(other)),
    };
    let standings: Vec<Standing> = match ask(agent, &LocalRequest::Health(None))? {
        LocalResponse::Health(told) => serde_json::from_str(&told).context("what the agent tells is not understood")?,
        other => bail!(refusal(other)),
    };
    let mut machines = Vec::with_capacity(views.len());
    for view in views {
        let explanation = match ask(agent, &LocalRequest::Why(view.id.to_string()))? {
            LocalResponse::Why(told) => {
                Some(serde_json::from_str(&told).context("what the agent tells is not understood")?)
            }
            // It went since.
            _ => None,
        };
        let mut row = Row { view, explanation, health: None };
        let name = row.name();
        row.health = standings
            .iter()
            .find(|standing| standing.machine == name)
            .map(|standing| standing.verdict.as_ref().map(|verdict| verdict.state).unwrap_or_default());
        machines.push(row);
    }
    inputs.push(Input::Rack(Box::new(Rack { node, machines })));
    Ok(inputs)
}

/// Lights a lamp, or puts it out, and tells whether that was done.
pub(super) fn lamp(socket: &Path, machine: MachineId, name: String, seconds: u32, tell: &SyncSender<Told>) {
    let (socket, tell) = (socket.to_owned(), tell.clone());
    thread::spawn(move || {
        let asked = connect(&socket)
            .and_then(|mut agent| ask(&mut agent, &LocalRequest::Identify(machine.to_string(), seconds)));
        let done = match asked {
            Ok(LocalResponse::Identified) => Ok(()),
            Ok(other) => Err(refusal(other)),
            Err(error) => Err(first_line(&error)),
        };
        let _ = tell.send(Told::Input(Input::Lamp(name, seconds, done)));
    });
}

/// Opens a machine's console under this number, and tells what it tells until it is over.
pub(super) fn console(socket: &Path, number: u64, machine: MachineId, tell: &SyncSender<Told>) {
    let (socket, tell) = (socket.to_owned(), tell.clone());
    thread::spawn(move || {
        let listens = |told| tell.send(Told::Input(Input::Console(number, told))).is_ok();
        let opened = || -> Result<(UnixStream, UnixStream)> {
            let mut agent = connect(&socket)?;
            let who = format!("{} on the node", user().as_deref().unwrap_or("a technician"));
            match ask(&mut agent, &LocalRequest::Console { machine: machine.to_string(), who })? {
                LocalResponse::Console => {}
                other => bail!(refusal(other)),
            }
            agent.set_read_timeout(None)?;
            agent.set_write_timeout(Some(TYPED))?;
            Ok((agent.try_clone()?, agent))
        };
        let mut agent = match opened() {
            Ok((writes, reads)) => {
                if tell.send(Told::Opened(number, writes)).is_err() {
                    return;
                }
                reads
            }
            Err(error) => {
                listens(FromConsole::Ended(first_line(&error)));
                return;
            }
        };
        loop {
            let told = console::receive(&mut agent)
                .unwrap_or_else(|error| FromConsole::Ended(format!("the agent is gone: {error}")));
            let is_last = matches!(told, FromConsole::Ended(_));
            if !listens(told) || is_last {
                return;
            }
        }
    });
}

/// What failed, without advice that takes several lines.
fn first_line(error: &anyhow::Error) -> String {
    format!("{error:#}").lines().next().unwrap_or_default().to_owned()
}
