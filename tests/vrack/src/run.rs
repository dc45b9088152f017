//! Running other programs.

use std::{
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::{Context, bail, ensure};

/// Whether this virtual rack is being taken apart: from then on nothing is started any more.
static ENDING: AtomicBool = AtomicBool::new(false);

/// From now on nothing is started any more, but for what takes the rack apart.
pub(crate) fn end() {
    ENDING.store(true, Ordering::SeqCst);
}

pub(crate) fn is_ending() -> bool {
    ENDING.load(Ordering::SeqCst)
}

/// Runs a program to its end; its standard output, or an error that quotes what it said.
pub(crate) fn run(program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    output(Command::new(program).args(arguments))
}

/// The same for a prepared command.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    let (ok, said, complaint) = outcome(command)?;
    if !ok {
        bail!("{command:?} failed: {}", complaint.trim());
    }
    Ok(said)
}

/// Whether a program succeeded, and what it said on standard output and standard error.
pub(crate) fn outcome(command: &mut Command) -> anyhow::Result<(bool, String, String)> {
    ensure!(!is_ending(), "the virtual rack is being taken apart");
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {command:?}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((output.status.success(), text(&output.stdout), text(&output.stderr)))
}

/// Runs a program whose failure is expected and means nothing (removing what may be absent);
/// its standard output.
pub(crate) fn quiet(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
}
