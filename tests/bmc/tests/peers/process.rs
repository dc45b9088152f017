//! The binary: a BMC as a process of its own, with its control.

use std::{process::Stdio, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_rackhand-bmc-sim");

#[tokio::test]
async fn a_process_drives_its_machine_by_a_command_and_is_controlled() {
    let directory = tempfile::tempdir().unwrap();
    let power = directory.path().join("power");
    let notes = directory.path().join("notes");
    let body = format!(
        "case $0 in status) cat {power};; on|off) echo $0 > {power}; echo $0 $RACKHAND_MAC >> {notes};; *) echo $0 >> {notes};; esac",
        power = power.display(),
        notes = notes.display()
    );
    std::fs::write(&power, "off").unwrap();
    let mut child = Command::new(PROGRAM)
        .args(["--listen", "127.0.0.1", "--ipmi-port", "0", "--redfish-port", "0", "--control", "127.0.0.1:0"])
        .args(["--user", "operator", "--password", "secret-1", "--machine-command", "sh", "-c", &body])
        .env("RACKHAND_MAC", "02:00:00:00:00:01")
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut told = std::collections::BTreeMap::new();
    loop {
        let line = tokio::time::timeout(Duration::from_secs(30), lines.next_line()).await.expect("it starts").unwrap();
        match line.expect("it is ready before it ends").split_once(' ') {
            Some((name, value)) => drop(told.insert(name.to_owned(), value.to_owned())),
            None => break,
        }
    }
    let port = told["ipmi"].rsplit_once(':').unwrap().1;
    let ipmitool = async |arguments: &[&str]| {
        let mut command = std::process::Command::new("ipmitool");
        command.args(["-I", "lanplus", "-H", "127.0.0.1", "-p", port, "-C", "17", "-U", "operator", "-P", "secret-1"]);
        command.args(arguments);
        crate::bench::run(command, "apt-get install ipmitool").await.well()
    };
    ipmitool(&["chassis", "bootdev", "pxe"]).await;
    ipmitool(&["chassis", "power", "on"]).await;
    assert_eq!(std::fs::read_to_string(&notes).unwrap(), "network-boot-once\non 02:00:00:00:00:01\n");
    let ctl = async |arguments: &[&str]| {
        let mut command = std::process::Command::new(PROGRAM);
        command.args(["ctl", "--control", &told["control"]]).args(arguments);
        crate::bench::run(command, "it is built with the tests").await
    };
    ctl(&["sensor", "Inlet Temp", "-7"]).await.well();
    assert!(ipmitool(&["sdr", "elist"]).await.contains("-7 degrees C"));
    assert!(!ctl(&["sensor", "No Such", "1"]).await.is_content);
    assert!(!ctl(&["faults", r#"{"unknown": 1}"#]).await.is_content);
    ctl(&["faults", r#"{"slow_ms": 1}"#]).await.well();
    let state = ctl(&["state"]).await.well();
    assert!(state.contains(r#""slow_ms":1"#) && state.contains(r#""on":true"#), "{state}");
}
