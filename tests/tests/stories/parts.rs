//! A technician replaces parts at the node, with the controller away and with processes killed.

use std::{
    path::PathBuf,
    process::{Command, Output},
};

use rackhand_agent::local::Client;
use rackhand_common::{
    hardware::{Dimm, Hardware},
    machine::Power,
    replacement::Ask,
    wire::{LocalRequest, LocalResponse},
};
use rackhand_tests::{Machine, Model, Service, VirtualRack, machine::Effect, operator::PATIENCE, wait};
use serde_json::{Value, json};

/// `rackhand-diag replace-part` by ada, at the agent behind this socket.
async fn replace(socket: PathBuf, machine: Machine, flags: &str) -> Output {
    let test = std::env::current_exe().unwrap();
    let diag = test.parent().and_then(|deps| deps.parent()).unwrap().join("rackhand-diag");
    let mut command = Command::new(diag);
    command.args(["replace-part", &machine.mac().to_string(), "--by", "ada", "--socket"]).arg(socket);
    command.args(flags.split(' ').filter(|flag| !flag.is_empty()));
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

/// What it prints when it succeeds.
async fn done(rack: &VirtualRack, machine: &Machine, flags: &str) -> String {
    let output = replace(rack.path("agent.sock"), machine.clone(), flags).await;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{flags}: {out}{err}{}", machine.screen());
    out.into_owned()
}

/// What it says when it does not.
async fn refused(rack: &VirtualRack, machine: &Machine, flags: &str) -> String {
    let output = replace(rack.path("agent.sock"), machine.clone(), flags).await;
    assert!(!output.status.success(), "{flags}: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

async fn row(rack: &VirtualRack, machine: &Machine) -> Value {
    rack.operator.machine(machine.mac()).await.unwrap().unwrap()
}

/// Returns once the node has been told that the machine is in this lifecycle, with no run at work on it, and what
/// is in it.
pub(crate) async fn known(rack: &VirtualRack, machine: &Machine, lifecycle: &str, part: &str) {
    let id = row(rack, machine).await["id"].clone();
    wait::until("the node knows the machine and its parts", PATIENCE, async || {
        let lives: Value = serde_json::from_slice(&std::fs::read(rack.path("agent/lives.json")).unwrap_or_default())
            .unwrap_or_default();
        let intent = std::fs::read_to_string(rack.path("agent/intent.json")).unwrap_or_default();
        let told = refused(rack, machine, "").await;
        let is_told = lives["machines"].as_array().is_some_and(|all| all.contains(&json!([id, lifecycle])));
        let is_idle = intent.contains(id.as_str().unwrap()) && !intent.contains("\"test\"");
        if is_told && is_idle && told.contains(part) { Ok(()) } else { Err(format!("{lives}\n{told}")) }
    })
    .await;
}

/// The texts of its history.
async fn history(rack: &VirtualRack, machine: &Machine) -> Vec<String> {
    rack.operator.history(machine.mac()).await.unwrap().into_iter().map(|(_, text)| text).collect()
}

fn dimm(slot: &str, serial: &str) -> Dimm {
    Dimm { slot: slot.into(), serial: serial.into(), size: 16 << 30, ..Dimm::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_is_replaced_while_the_controller_is_away_and_processes_are_killed() {
    let mut rack = VirtualRack::new().await;
    let machine = rack.machine(Model::default());
    rack.ready(&machine).await;
    known(&rack, &machine, "ready", "serial-1").await;
    rack.kill(Service::Controller).await;

    // Nothing is done before somebody has said that it may be.
    for (flags, says) in [("--slot vda", "if it may be: --yes"), ("--slot sdz --yes", "has no part \"sdz\"")] {
        let told = refused(&rack, &machine, flags).await;
        assert!(told.contains(says), "{flags}: {told}");
    }
    assert_eq!((machine.power(), machine.effects().len()), (Power::On, 0));

    let off = done(&rack, &machine, "--slot serial-1 --yes").await;
    assert!(off.contains("is off. Replace disk vda (SIMDISK"), "{off}");
    assert_eq!((machine.power(), machine.effects()), (Power::Off, vec![Effect::Off]));
    rack.restart(Service::Agent).await;
    assert!(done(&rack, &machine, "").await.contains("is off. Replace disk vda"));
    assert!(refused(&rack, &machine, "--slot serial-9 --yes").await.contains("ada replaces disk vda"));

    // The old one is still in: that is seen, whatever is typed.
    let doubt = refused(&rack, &machine, "--new-serial serial-7").await;
    assert!(doubt.contains("serial-1) is still there: it is the old one"), "{doubt}");
    assert!(done(&rack, &machine, "--again").await.contains("is off"));
    machine.swap_drive(rack.drive("serial-7", 32 << 20));

    // Killed while the machine starts, the agent goes on with it.
    let swapped = serde_json::to_string(&Ask::Swapped { typed: Some("serial-8".into()) }).unwrap();
    let mut agent = Client::connect(&rack.path("agent.sock")).await.unwrap();
    let told = agent.ask(&LocalRequest::Replacement(machine.mac().to_string(), swapped)).await.unwrap();
    assert!(matches!(told, LocalResponse::Replacement(_)), "{told:?}");
    drop(agent);
    rack.restart(Service::Agent).await;
    let said = done(&rack, &machine, "--swapped").await;
    assert!(said.contains("ada has replaced disk vda") && said.contains("serial-7"), "{said}");
    assert!(said.contains("\"serial-8\" was typed, and the new one says that it is \"serial-7\""), "{said}");
    rack.restart(Service::Agent).await;
    assert!(done(&rack, &machine, "--swapped").await.contains("ada has replaced disk vda"));

    // The controller takes it over: accepted, tested, in service.
    rack.start(Service::Controller).await;
    let is_back = |row: &Value| row["lifecycle"] == "ready" && row["changes"] == json!([]) && row["run"].is_null();
    wait::until("it is tested", PATIENCE, async || {
        let tested = machine.tested();
        if tested.contains(&"disk-read".to_owned()) { Ok(()) } else { Err(machine.screen()) }
    })
    .await;
    let back = rack.wait_for(&machine, "back in service", is_back).await;
    assert_eq!((&back["alert"], &back["held"]), (&json!(null), &json!(null)), "{back:#}");
    assert_eq!(machine.tested(), ["smart", "disk-read"]);
    let history = history(&rack, &machine).await;
    let order = [
        "ada replaces disk vda",
        "maintenance until",
        "ada has replaced disk vda",
        "the part that ada put in is accepted: disk SIMDISK/serial-1 is gone; disk SIMDISK/serial-7 is new",
        "test begins",
        "in service again: ready",
    ];
    let mut rest = history.iter();
    for wanted in order {
        assert!(rest.any(|text| text.starts_with(wanted)), "{wanted}: {history:#?}");
    }
    rack.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_is_open_is_given_to_nobody_and_whose_it_is_decides() {
    let mut rack = VirtualRack::new().await;
    rack.image("sim-1", 3).await;
    let (machine, tenants) = (rack.machine(Model::default()), rack.machine(Model::default()));
    let slots = |serial: &str| Hardware { memory: vec![dimm("A1", "M1"), dimm("A2", serial)], ..Hardware::default() };
    machine.fit(slots("M2"));
    rack.active(&tenants, "sim-1").await;
    rack.ready(&machine).await;
    known(&rack, &machine, "ready", "M2").await;
    known(&rack, &tenants, "active", "serial-2").await;
    let effects = tenants.effects();
    let denied = refused(&rack, &tenants, "--slot vda --yes").await;
    assert!(denied.contains("is active, and is not touched"), "{denied}");
    assert_eq!(tenants.effects(), effects);

    // The controller hears of it at once, and has nobody else do anything with the machine.
    done(&rack, &machine, "--slot A2 --yes").await;
    let held = rack.becomes(&machine, "maintenance").await;
    assert!(held["held"]["reason"].as_str().unwrap().starts_with("ada replaces memory module A2"), "{held:#}");
    let denied = rack.operator.deploy(machine.mac(), "sim-1").await.unwrap_err().to_string();
    assert!(denied.contains("maintenance"), "{denied}");
    assert_eq!(machine.power(), Power::Off);

    // Another module sits loose, and then well.
    machine.fit(Hardware { memory: vec![dimm("A2", "M9")], ..Hardware::default() });
    let doubt = refused(&rack, &machine, "--swapped").await;
    assert!(doubt.contains("memory module A1 (16 GiB, M1) is gone, too: does it sit well?"), "{doubt}");
    done(&rack, &machine, "--again").await;
    machine.fit(slots("M9"));
    machine.fail_test("memory", Some("module A2: 1 error"));
    done(&rack, &machine, "--swapped").await;
    let is_tested = |row: &Value| row["alert"].to_string().contains("tests not passed: memory") && row["run"].is_null();
    let failed = rack.wait_for(&machine, "tested, and has not passed", is_tested).await;
    assert_eq!(failed["lifecycle"], "maintenance", "{failed:#}");

    // A good one at last; given up when it is in, as nothing that tells machines apart changed.
    machine.fail_test("memory", None);
    known(&rack, &machine, "maintenance", "M9").await;
    done(&rack, &machine, "--slot A2 --yes").await;
    done(&rack, &machine, "--abandon").await;
    wait::until("it was given up", PATIENCE, async || {
        let history = history(&rack, &machine).await;
        let is_over = history.iter().any(|text| text.starts_with("ada does not replace memory module A2"));
        if is_over { Ok(()) } else { Err(format!("{history:#?}")) }
    })
    .await;
    // It was in maintenance already, and stays there until an operator says otherwise.
    assert_eq!(row(&rack, &machine).await["lifecycle"], "maintenance");
    rack.stop().await.unwrap();
}
