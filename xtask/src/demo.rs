//! `cargo xtask demo down`: removes a demo in whatever state it is. It needs nothing that was
//! built, so that it also works when the build is what failed.
//!
//! What a demo consists of is said by `tests/vrack`: processes named `rackhand-vrack` on this
//! machine, everything in five network namespaces, a link, a directory and a lock.

use std::{fs, thread, time::Duration};

use anyhow::ensure;

use crate::shell::Shell;

const NAMESPACES: &[&str] = &[
    "rackhand-demo-client",
    "rackhand-demo-controller",
    "rackhand-demo-node",
    "rackhand-demo-management",
    "rackhand-demo-lan",
];
const LINK: &str = "rh-demo";
const DIRECTORY: &str = "/var/tmp/rackhand-demo";
const LOCK: &str = "/run/rackhand-demo.lock";

/// Ends and removes everything; says what there was.
pub(crate) fn down() -> anyhow::Result<()> {
    let mut ended = 0;
    // First whoever would start again what is ended below.
    for pid in keepers() {
        ended += end(&pid);
    }
    for namespace in NAMESPACES.iter().filter(|name| fs::exists(format!("/run/netns/{name}")).unwrap_or(false)) {
        // More than once: what was just starting another has started it by then.
        for _ in 0..10 {
            let pids = Shell::as_root(&["ip", "netns", "pids", namespace]).read().unwrap_or_default();
            if pids.trim().is_empty() {
                break;
            }
            ended += pids.split_whitespace().map(end).sum::<usize>();
            thread::sleep(Duration::from_millis(50));
        }
        Shell::as_root(&["ip", "netns", "del", namespace]).quiet().run()?;
    }
    if fs::exists(format!("/sys/class/net/{LINK}"))? {
        // It goes with the namespace of its other end, unless that was never made.
        let _ = Shell::as_root(&["ip", "link", "del", LINK]).quiet().run();
    }
    Shell::as_root(&["rm", "-rf", DIRECTORY, LOCK]).run()?;
    let left = keepers();
    ensure!(left.is_empty(), "these processes do not end: {}", left.join(" "));
    println!("The demo is gone: {ended} processes ended; its namespaces and files are removed.");
    Ok(())
}

/// Processes that run a demo or look after one, by what they were started as.
fn keepers() -> Vec<String> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    processes
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|pid| pid.bytes().all(|byte| byte.is_ascii_digit()))
        .filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let mut words = line.split(|byte| *byte == 0);
            words.next().is_some_and(|program| program.ends_with(b"rackhand-vrack"))
                && words.next().is_some_and(|verb| verb == b"demo" || verb == b"tend")
        })
        .collect()
}

/// SIGKILL; how many were ended by it.
fn end(pid: &str) -> usize {
    let killed = Shell::as_root(&["kill", "-9", pid]).quiet().run().is_ok();
    for _ in 0..100 {
        if !fs::exists(format!("/proc/{pid}/root")).unwrap_or(false) {
            break;
        }
        thread::sleep(Duration::from_millis(20));
    }
    usize::from(killed)
}
