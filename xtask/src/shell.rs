//! Running other programs, and how long they took.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::{Command, Stdio},
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
            return self.read().map(drop);
        }
        let status =
            self.command.stdin(Stdio::null()).status().with_context(|| format!("cannot start {:?}", self.command))?;
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
