//! A program on a terminal of its own, with somebody in front of it: keys go in, and what is seen is what a
//! terminal emulator makes of what comes out.
//!
//! The terminal is that of util-linux's `script`.

use std::{
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, ChildStdin, Command},
};

use crate::{operator::PATIENCE, wait};

/// Who sits in front of a terminal; the program is killed with it.
#[derive(Debug)]
pub struct Seat {
    child: Child,
    keys: Option<ChildStdin>,
    seen: Arc<Mutex<Seen>>,
    notes: PathBuf,
}

struct Seen {
    parser: vt100::Parser,
    /// All that was written to the terminal.
    written: Vec<u8>,
}

impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.parser.screen().contents())
    }
}

impl Seat {
    /// Starts a program, in words for a shell, on a terminal of this size. What this keeps goes to the directory
    /// `notes`, which is made.
    pub async fn start(notes: &Path, columns: u16, rows: u16, program: &str) -> Self {
        std::fs::create_dir_all(notes).expect("a directory is made");
        // The terminal's modes before and after stand beside each other, and the program's own id is known.
        let line = format!(
            "stty cols {columns} rows {rows}; cd '{}'; tty > tty; stty -g > before; \
             sh -c 'echo $$ > pid; exec {program}'; code=$?; stty -g > after; exit $code",
            notes.display()
        );
        let mut command = Command::new("script");
        command.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
        command.env("SHELL", "/bin/sh").env("TERM", "xterm-256color").env("LC_ALL", "C.UTF-8").env_remove("NO_COLOR");
        command.env_remove("SUDO_USER").env("USER", "ada");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().expect("util-linux is installed");
        let keys = child.stdin.take();
        let mut written = child.stdout.take().expect("it is a pipe");
        let seen = Seen { parser: vt100::Parser::new(rows, columns, 0), written: Vec::new() };
        let seen = Arc::new(Mutex::new(seen));
        let sees = seen.clone();
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = written.read(&mut buffer).await {
                let mut seen = sees.lock().unwrap_or_else(PoisonError::into_inner);
                seen.parser.process(&buffer[..length]);
                seen.written.extend_from_slice(&buffer[..length]);
            }
        });
        Self { child, keys, seen, notes: notes.to_owned() }
    }

    /// Presses keys.
    pub async fn type_in(&mut self, keys: &str) {
        let pipe = self.keys.as_mut().expect("nobody has left");
        pipe.write_all(keys.as_bytes()).await.expect("the program reads its terminal");
        pipe.flush().await.expect("the program reads its terminal");
    }

    /// What is on the screen now.
    pub fn screen(&self) -> String {
        self.look(|seen| seen.parser.screen().contents())
    }

    /// All that was written to the terminal, as it was.
    pub fn written(&self) -> String {
        self.look(|seen| String::from_utf8_lossy(&seen.written).into_owned())
    }

    /// Whether the terminal is on the screen that programs borrow.
    pub fn is_on_other_screen(&self) -> bool {
        self.look(|seen| seen.parser.screen().alternate_screen())
    }

    /// Waits until this is on the screen.
    pub async fn shows(&self, wanted: &str) {
        self.until(wanted, |screen| screen.contains(wanted)).await;
    }

    /// Waits until the screen is so.
    pub async fn until(&self, wanted: &str, is_so: impl Fn(&str) -> bool) {
        wait::until(wanted, PATIENCE, async || {
            let screen = self.screen();
            if is_so(&screen) { Ok(()) } else { Err(screen) }
        })
        .await;
    }

    /// The terminal has another size from now on.
    pub async fn resize(&self, columns: u16, rows: u16) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).parser.screen_mut().set_size(rows, columns);
        let terminal = self.note("tty").await;
        let done = Command::new("stty")
            .args(["-F", &terminal, "cols", &columns.to_string(), "rows", &rows.to_string()])
            .status()
            .await;
        assert!(done.expect("coreutils are installed").success(), "the terminal {terminal} is resized");
    }

    /// Sends the program a signal, by its name.
    pub async fn signal(&self, signal: &str) {
        let program = self.note("pid").await;
        let sent = Command::new("sh").args(["-c", &format!("kill -s {signal} {program}")]).status().await;
        assert!(sent.expect("there is a shell").success(), "{signal} is sent to {program}");
    }

    /// Waits for the program's end; the terminal is as it was before.
    pub async fn left(&mut self) -> ExitStatus {
        let ended = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        let ended = ended.unwrap_or_else(|_| panic!("it goes on: {}", self.screen())).expect("it can be waited for");
        assert_eq!(self.note("before").await, self.note("after").await, "the terminal's modes");
        wait::until("the usual screen is back", PATIENCE, async || {
            if self.is_on_other_screen() { Err(self.screen()) } else { Ok(()) }
        })
        .await;
        assert!(!self.look(|seen| seen.parser.screen().hide_cursor()), "there is no cursor");
        ended
    }

    fn look<T>(&self, at: impl FnOnce(&Seen) -> T) -> T {
        at(&self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn note(&self, name: &str) -> String {
        wait::until(name, PATIENCE, async || match std::fs::read_to_string(self.notes.join(name)) {
            Ok(text) if text.ends_with('\n') => Ok(text.trim().to_owned()),
            other => Err(format!("{other:?}")),
        })
        .await
    }
}
