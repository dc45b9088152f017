//! Memory of our processes, which holds keys and tokens, and somebody who has got hold of the
//! user they run as.

use std::{
    fs,
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use nix::{sys::stat::Mode, unistd::mkfifo};

use super::range::{PATIENCE, Range};

/// A user that owns nothing.
const NOBODY: u32 = 65_534;

/// The kernel gives what it shows of a process that may be dumped to the process's user, and of
/// one that may not to root (proc(5)).
pub(super) fn closed(range: &mut Range) -> anyhow::Result<String> {
    // Somewhere that any user may execute it, and with a configuration that it waits for.
    let (program, config) = (range.files.directory.join("program"), range.files.directory.join("waits"));
    mkfifo(&config, Mode::from_bits_truncate(0o644))?;
    for (name, verb) in [("rackhand-controller", "serve"), ("rackhand-agent", "serve"), ("rackhand-agent", "boot")] {
        let _ = fs::remove_file(&program);
        fs::copy(range.files.binary(name), &program)?;
        let mut child = Command::new(&program)
            .args([verb, "--config"])
            .arg(&config)
            .uid(NOBODY)
            .gid(NOBODY)
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        let process = child.id();
        let owner = || anyhow::Ok(fs::metadata(format!("/proc/{process}/environ"))?.uid());
        let end = Instant::now() + PATIENCE;
        let mut seen = owner();
        while !matches!(seen, Ok(0)) && Instant::now() < end {
            thread::sleep(Duration::from_millis(20));
            seen = owner();
        }
        child.kill()?;
        child.wait()?;
        let seen = seen.with_context(|| format!("{name} {verb} has ended"))?;
        ensure!(seen == 0, "what {name} {verb} has in memory is its user's to read and to dump");
    }
    Ok(String::new())
}
