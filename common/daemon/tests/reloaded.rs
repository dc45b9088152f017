//! A process that is told to reload by SIGHUP, and what systemd is told of it.

use std::{
    fs,
    os::unix::net::UnixDatagram,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::Context as _;
use expect_test::expect;
use rackhand_daemon::{Filter, Format, Log, Signals, Taken, systemd};
use serde::Deserialize;

const PATH: &str = "RACKHAND_TEST_CONFIGURATION";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    log: Filter,
    port: u16,
}

/// Run by the test below in a process of its own; does nothing otherwise.
#[tokio::test]
async fn serves_until_it_is_told_to_stop() {
    let Ok(path) = std::env::var(PATH) else { return };
    let log = Log::begin(Format::Text);
    let signals = Signals::listen().unwrap();
    let load = move || {
        let text = fs::read_to_string(&path)?;
        toml::from_str::<File>(&text).with_context(|| format!("{path} is not usable"))
    };
    let shutdown = signals.shutdown.clone();
    let used = std::sync::Mutex::new(load().unwrap());
    tokio::spawn(signals.reload_by(move || {
        let fresh = load()?;
        let mut taken = Taken::default();
        let mut used = used.lock().unwrap();
        taken.take("log", &mut used.log, &fresh.log);
        taken.keep("port", &used.port, &fresh.port);
        log.take(&fresh.log);
        tracing::debug!("a debug line");
        Ok(taken)
    }));
    systemd::attend(async || true, shutdown).await;
}

/// The next messages, one line each; the time is any.
fn told(socket: &UnixDatagram, count: usize) -> String {
    let mut buffer = [0; 4096];
    let mut text = String::new();
    for _ in 0..count {
        let length = socket.recv(&mut buffer).expect("systemd is told within 30 s");
        for line in String::from_utf8_lossy(&buffer[..length]).lines() {
            text += if line.starts_with("MONOTONIC_USEC=") { "MONOTONIC_USEC=…" } else { line };
            text += "\n";
        }
    }
    text
}

#[test]
fn systemd_is_told_when_a_reload_begins_and_ends_and_what_needs_a_restart_or_a_mend() {
    let dir = tempfile::tempdir().unwrap();
    let (path, at) = (dir.path().join("program.toml"), dir.path().join("notify"));
    let write = |text: &str| fs::write(&path, text).unwrap();
    let socket = UnixDatagram::bind(&at).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    write("log = \"info\"\nport = 1\n");
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "serves_until_it_is_told_to_stop", "--nocapture"])
        .env(PATH, &path)
        .env("NOTIFY_SOCKET", &at)
        .env_remove("WATCHDOG_USEC")
        .env_remove("RUST_LOG")
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let signal = |name: &str| {
        assert!(Command::new("kill").args(["-s", name, &child.id().to_string()]).status().unwrap().success());
    };
    assert_eq!(told(&socket, 1), "READY=1\n");

    signal("HUP");
    expect![[r#"
        RELOADING=1
        MONOTONIC_USEC=…
        READY=1
        STATUS=reloaded: nothing has changed
    "#]]
    .assert_eq(&told(&socket, 2));
    write("log = \"debug\"\nport = 2\n");
    signal("HUP");
    expect![[r#"
        RELOADING=1
        MONOTONIC_USEC=…
        READY=1
        STATUS=reloaded: taken over: log; restart to take over: port
    "#]]
    .assert_eq(&told(&socket, 2));
    write("log = \"warn\"\nprot = 3\n");
    signal("HUP");
    expect![[r#"
        RELOADING=1
        MONOTONIC_USEC=…
        READY=1
        STATUS=not reloaded, all stays as it was: program.toml is not usable: TOML parse error at line 2, column 1: unknown field `prot`, expected `log` or `port`
    "#]]
    .assert_eq(&told(&socket, 2).replace(&format!("{}/", dir.path().display()), ""));
    signal("TERM");
    assert_eq!(told(&socket, 1), "STOPPING=1\n");

    let output = child.wait_with_output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{log}");
    assert!(log.contains("ERROR told to reload, and all stays as it was: "), "{log}");
    let debugged = log.matches("a debug line").count();
    assert_eq!(debugged, 1, "the filter is the one of the second reload, and stays:\n{log}");
}
