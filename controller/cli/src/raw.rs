//! Standard input as a raw terminal: every key is passed on as it is.
//!
//! Invariant: the terminal is as before when its [`Raw`] is gone, also by a panic.

use std::io::{self, IsTerminal as _};

use nix::sys::termios::{self, SetArg, Termios};

/// Standard input as a raw terminal; as it was before when this is dropped.
#[derive(Debug)]
pub(crate) struct Raw {
    before: Termios,
}

impl Raw {
    /// Makes it raw; `None` when it is no terminal.
    pub(crate) fn stdin() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before = termios::tcgetattr(&stdin)?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(&stdin, SetArg::TCSADRAIN, &raw)?;
        Ok(Some(Self { before }))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Nothing can be done about a terminal that is gone.
        let _ = termios::tcsetattr(io::stdin(), SetArg::TCSADRAIN, &self.before);
    }
}
