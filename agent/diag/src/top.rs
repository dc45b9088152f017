//! `rackhand-diag top`: the rack's machines on one screen, and one of them with its verdict, its start and its
//! console, as they change.
//!
//! It asks what the other commands ask, of the same socket. `state` decides and `view` draws, without IO;
//! here are the terminal, and threads that talk to the agent: one that asks how things stand, one for a console
//! that is open, one for a lamp.
//!
//! Invariant: the terminal is as before when this is over: by a key, a signal, an error or a panic.

mod emulator;
mod keys;
mod node;
mod state;
mod threads;
mod view;

#[cfg(test)]
mod tests;

use std::{
    io::{self, IsTerminal as _, Write as _},
    net::Shutdown,
    os::unix::net::UnixStream,
    path::Path,
    sync::{
        Mutex, Once,
        mpsc::{Receiver, RecvTimeoutError, sync_channel},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use jiff::Timestamp;
use nix::sys::{
    signal::{SigSet, Signal},
    termios::{self, SetArg, Termios},
};
use ratatui::{
    Terminal,
    backend::CrosstermBackend,
    crossterm::{
        cursor::Show,
        execute,
        terminal::{EnterAlternateScreen, LeaveAlternateScreen},
    },
    layout::{Position, Rect},
};

use self::{
    state::{Act, Input, Top},
    threads::Told,
};
use crate::{Output, connect, console::say_to, raw::Raw};

/// How many things may wait to be taken in.
const WAITING: usize = 64;

/// How many are taken in before what they made is drawn.
const AT_ONCE: usize = 64;

/// What is written as "so long ago" is drawn anew this often.
const TICK: Duration = Duration::from_secs(1);

/// How long the rest of a key's bytes may take.
const KEY: Duration = Duration::from_millis(50);

/// Shows the rack until somebody leaves.
pub(crate) fn show(socket: &Path, output: Output) -> Result<()> {
    if output == Output::Json {
        bail!("`top` is for people; for programs: rackhand-diag machines -o json, rackhand-diag why MACHINE -o json");
    }
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        bail!("`top` needs a terminal; `rackhand-diag machines` and `rackhand-diag why` say the same without");
    }
    // Whoever may not ask is told so before there is another screen.
    drop(connect(socket)?);
    let (tell, told) = sync_channel(WAITING);
    // Blocked before there are threads, so that none of them is ended by these.
    let signals: SigSet =
        [Signal::SIGHUP, Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGWINCH].into_iter().collect();
    signals.thread_block().context("cannot block signals")?;
    threads::spawn(&tell, move || signals.wait().map(Told::Signal).map_err(io::Error::from));
    threads::keyboard(&tell);
    let follow = threads::rack(socket, &tell);
    let mut screen = Screen::enter()?;
    let mut console = Console { number: 0, stream: None };
    let mut top = Top::new(in_colour());
    loop {
        screen.terminal.draw(|frame| view::draw(frame, &top, Timestamp::now()))?;
        for told in next(&told, if top.is_waiting_for_a_key() { KEY } else { TICK }) {
            let input = match told {
                Told::Input(input) => input,
                Told::Signal(Signal::SIGWINCH) => continue,
                Told::Signal(_) | Told::Gone => return Ok(()),
                Told::Opened(number, stream) => {
                    console.opened(number, stream);
                    continue;
                }
            };
            for act in top.on(input, Timestamp::now()) {
                match act {
                    Act::Quit => return Ok(()),
                    Act::Refresh => screen.refresh()?,
                    Act::Follow(machine) => follow(machine),
                    Act::Open(number, machine) => {
                        console.number = number;
                        threads::console(socket, number, machine, &tell);
                    }
                    Act::Close => console.close(),
                    Act::Say(said) => {
                        // One that is gone says so itself.
                        if let Some(stream) = &mut console.stream {
                            let _ = say_to(stream, &said);
                        }
                    }
                    Act::Identify(machine, name, seconds) => threads::lamp(socket, machine, name, seconds, &tell),
                }
            }
        }
    }
}

/// What happened next, all of it that is there; or that nothing did for so long.
fn next(told: &Receiver<Told>, patience: Duration) -> Vec<Told> {
    match told.recv_timeout(patience) {
        Ok(first) => {
            let mut all = vec![first];
            all.extend(told.try_iter().take(AT_ONCE));
            all
        }
        Err(RecvTimeoutError::Timeout) => vec![Told::Input(Input::Quiet)],
        Err(RecvTimeoutError::Disconnected) => vec![Told::Gone],
    }
}

/// Whether colours are wanted: <https://no-color.org>.
fn in_colour() -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    !is_set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// The connection of the console that is open.
struct Console {
    /// The latest that was asked for.
    number: u64,
    stream: Option<UnixStream>,
}

impl Console {
    /// One is open: unless another was asked for, or none, in the meantime.
    fn opened(&mut self, number: u64, stream: UnixStream) {
        if number == self.number {
            self.stream = Some(stream);
        } else {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Its thread ends by this.
    fn close(&mut self) {
        self.number = 0;
        if let Some(stream) = self.stream.take() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// The terminal, on its other screen and raw; as before when this is dropped.
struct Screen {
    terminal: Terminal<CrosstermBackend<io::Stdout>>,
    _other: OtherScreen,
    _raw: Option<Raw>,
}

struct OtherScreen;

impl Screen {
    fn enter() -> Result<Self> {
        let before = termios::tcgetattr(io::stdin()).context("cannot read the terminal's modes")?;
        restore_at_a_panic(before);
        let raw = Raw::stdin().context("cannot make the terminal raw")?;
        let other = OtherScreen;
        let mut out = io::stdout();
        execute!(out, EnterAlternateScreen).context("cannot write to the terminal")?;
        let terminal = Terminal::new(CrosstermBackend::new(out)).context("cannot tell the terminal's size")?;
        let mut screen = Self { terminal, _other: other, _raw: raw };
        screen.refresh().context("cannot write to the terminal")?;
        Ok(screen)
    }

    /// All of it is drawn next. [`Terminal::clear`] would ask the terminal where its cursor is, and the answer comes
    /// by the keyboard.
    fn refresh(&mut self) -> io::Result<()> {
        let size = self.terminal.size()?;
        self.terminal.resize(Rect::from((Position::ORIGIN, size)))
    }
}

impl Drop for OtherScreen {
    fn drop(&mut self) {
        leave();
    }
}

/// Nothing can be done about a terminal that is gone.
fn leave() {
    let _ = execute!(io::stdout(), LeaveAlternateScreen, Show);
    let _ = io::stdout().flush();
}

/// What a panic says is to be read on the screen it was started from.
fn restore_at_a_panic(before: Termios) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let (before, usual) = (Mutex::new(before), std::panic::take_hook());
        std::panic::set_hook(Box::new(move |panic| {
            leave();
            if let Ok(before) = before.lock() {
                let _ = termios::tcsetattr(io::stdin(), SetArg::TCSADRAIN, &before);
            }
            usual(panic);
        }));
    });
}
