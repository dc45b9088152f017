//! The unit files, as systemd reads them.

#![expect(clippy::unwrap_used, reason = "the lint does not take helpers in here for tests")]

use std::{fs, path::Path, process::Command};

const UNITS: [&str; 2] = ["rackhand-agent.service", "rackhand-boot.service"];

/// The units in a directory of their own, with a program in `ExecStart` that exists here.
fn units() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for unit in UNITS {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd").join(unit);
        let text = fs::read_to_string(source).unwrap();
        assert!(text.contains("ExecStart=/usr/bin/rackhand-agent "), "{unit}");
        let text = text.replace("ExecStart=/usr/bin/rackhand-agent ", "ExecStart=/bin/true ");
        fs::write(dir.path().join(unit), text).unwrap();
    }
    dir
}

fn analyze(arguments: &[&str], dir: &Path) -> std::process::Output {
    Command::new("systemd-analyze")
        .args(arguments)
        .args(UNITS.map(|unit| dir.join(unit)))
        .env("SYSTEMD_UNIT_PATH", format!("{}:", dir.display()))
        .output()
        .expect("systemd-analyze cannot be run: apt-get install systemd")
}

#[test]
fn systemd_understands_every_line_of_the_units() {
    let dir = units();
    let output = analyze(&["verify", "--man=no"], dir.path());
    let said = String::from_utf8_lossy(&output.stderr);
    // Units of the machine this runs on are read as well and are none of ours.
    let ours: Vec<_> = said.lines().filter(|line| line.contains("rackhand")).collect();
    assert!(ours.is_empty(), "{said}");
    assert!(output.status.success(), "{said}");
}

#[test]
fn the_units_are_confined() {
    let dir = units();
    let output = analyze(&["security", "--offline=true", "--threshold=25", "--no-pager"], dir.path());
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "exposure above 2.5:\n{said}\n{}", String::from_utf8_lossy(&output.stderr));
}
