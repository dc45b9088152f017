//! Running other programs, and how long they took.

use std::{
    ffi::OsString,
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context, ensure};

/// A program and its arguments, about to run in the repository's root.
#[derive(Debug)]
pub(crate) struct Shell {
    command: Command,
    quiet: bool,
}

impl Shell {
    pub(crate) fn new(words: &[&str]) -> Self {
        let (program, arguments) = words.split_first().expect("a command has a name");
        let mut command = Command::new(program);
        command.args(arguments).current_dir(root());
        Self { command, quiet: false }
    }

    /// The same with root's rights, by sudo where we have not got them.
    pub(crate) fn as_root(words: &[&str]) -> Self {
        if is_root() { Self::new(words) } else { Self::new(&[&["sudo"], words].concat()) }
    }

    pub(crate) fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.command.arg(argument.into());
        self
    }

    pub(crate) fn args(mut self, arguments: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.command.args(arguments.into_iter().map(Into::into));
        self
    }

    /// Shows the program's output only when it fails.
    pub(crate) fn quiet(mut self) -> Self {
        self.quiet = true;
        self
    }

    pub(crate) fn run(mut self) -> anyhow::Result<()> {
        if self.quiet {
            return with_signs_of_life(|| self.read().map(drop));
        }
        let status =
            self.command.stdin(Stdio::null()).status().with_context(|| format!("cannot start {:?}", self.command))?;
        ensure!(status.success(), "{:?} failed ({status})", self.command);
        Ok(())
    }

    /// Goes on as this program: an interrupt is for it alone. Returns only when it cannot.
    pub(crate) fn become_it(mut self) -> anyhow::Result<()> {
        Err(self.command.stdin(Stdio::null()).exec()).with_context(|| format!("cannot start {:?}", self.command))
    }

    /// Shows its standard output, and gives each line to `read` as well.
    pub(crate) fn run_reading(mut self, mut read: impl FnMut(&str)) -> anyhow::Result<()> {
        let mut child = self
            .command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {:?}", self.command))?;
        let output = child.stdout.take().context("its standard output is not piped")?;
        for line in BufReader::new(output).split(b'\n') {
            let line = String::from_utf8_lossy(&line?).into_owned();
            println!("{line}");
            read(&line);
        }
        let status = child.wait()?;
        ensure!(status.success(), "{:?} failed ({status})", self.command);
        Ok(())
    }

    /// Its standard output.
    pub(crate) fn read(mut self) -> anyhow::Result<String> {
        let output =
            self.command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {:?}", self.command))?;
        ensure!(
            output.status.success(),
            "{:?} failed ({})\n{}{}",
            self.command,
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// Does work that says nothing, and says every now and then that it goes on.
fn with_signs_of_life<T>(work: impl FnOnce() -> T) -> T {
    let (over, is_over) = mpsc::channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            while is_over.recv_timeout(SIGN_OF_LIFE) == Err(mpsc::RecvTimeoutError::Timeout) {
                println!("   … still at it");
            }
        });
        let done = work();
        drop(over);
        done
    })
}

/// How long a command may be silent before whoever watches wonders.
pub(crate) const SIGN_OF_LIFE: Duration = Duration::from_secs(10);

pub(crate) fn is_root() -> bool {
    // `id -u` rather than a dependency for one number.
    Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n")
}

/// The repository.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the repository").to_owned()
}

/// Where built things go.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Where images are kept between runs.
pub(crate) fn cache() -> PathBuf {
    target().join("images")
}

/// Runs a program to its end, in sight of whoever watches.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("cannot start {name}: is it installed?"))?;
    ensure!(status.success(), "{name} failed ({status})");
    Ok(())
}

/// What a program prints on standard output.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stderr(Stdio::inherit()).output().with_context(|| format!("cannot start {name}"))?;
    ensure!(output.status.success(), "{name} failed ({})", output.status);
    Ok(String::from_utf8(output.stdout)?)
}
