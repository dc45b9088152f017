//! Anything may be killed at any time, and a machine reset: every run ends as it should.

use std::collections::BTreeSet;

use rackhand_common::{image::CHUNK, machine::Power};
use rackhand_tests::{Machine, Model, Service, VirtualRack, machine::Effect, operator::PATIENCE, wait};
use serde_json::json;

use crate::deploy::{holds, is_empty};

/// More chunks than the installer fetches ahead: some are asked for after a kill.
const MANY: u64 = 14;
const LARGE: Model = Model { firmware: rackhand_common::machine::Firmware::Bios, disk: 72 << 20 };

/// A machine whose installer has written the image's second chunk and is held up at the third.
async fn held_in_mid_write(rack: &mut VirtualRack) -> (Machine, Vec<u8>) {
    let raw = rack.image("sim-1", MANY).await;
    let machine = rack.machine(LARGE);
    rack.ready(&machine).await;
    machine.drive().hold_from(2 * CHUNK);
    rack.operator.deploy(machine.mac(), "sim-1").await.unwrap();
    machine.drive().held(PATIENCE).await;
    (machine, raw)
}

/// The image is on the disk, each chunk of its middle written this often.
fn written(machine: &Machine, raw: &[u8], times: u32) {
    holds(machine, raw);
    let middle: Vec<_> = machine.drive().writes().into_iter().filter(|(chunk, _)| (1..MANY).contains(chunk)).collect();
    assert!(middle.iter().all(|(_, count)| *count == times), "chunks were written so often: {middle:?}");
}

/// Nothing switched the machine more often than it was commanded to.
async fn at_most_one_effect_per_command(rack: &VirtualRack, machine: &Machine) {
    let history = rack.operator.history(machine.mac()).await.unwrap();
    let commands = history.iter().filter(|(kind, _)| kind == "commanded").count();
    let effects = machine.effects();
    for effect in [Effect::On, Effect::Off, Effect::NetworkOnce] {
        let count = effects.iter().filter(|one| **one == effect).count();
        assert!(count <= commands, "{effects:?} by {commands} commands: {history:#?}");
    }
}

async fn killed_in_mid_write(service: Service) {
    let mut rack = VirtualRack::new().await;
    let (machine, raw) = held_in_mid_write(&mut rack).await;
    rack.kill(service).await;
    machine.drive().let_go();
    rack.start(service).await;
    rack.becomes(&machine, "active").await;
    written(&machine, &raw, 1);
    assert_eq!(machine.effects(), [], "it waited in the installer: nothing had to be switched");
    assert_eq!(machine.starts(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deploy_goes_on_when_the_controller_is_killed_in_mid_write() {
    killed_in_mid_write(Service::Controller).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deploy_goes_on_when_the_agent_is_killed_in_mid_write() {
    killed_in_mid_write(Service::Agent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deploy_goes_on_when_boot_is_killed_in_mid_write() {
    killed_in_mid_write(Service::Boot).await;
}

/// The machine was off: the run switches it on, and `service` is killed while it is doing so.
async fn killed_in_mid_command(service: Service) {
    let mut rack = VirtualRack::new().await;
    rack.image("sim-1", 3).await;
    let machine = rack.machine(Model::default());
    rack.active(&machine, "sim-1").await;
    rack.operator.act(machine.mac(), "release", json!({})).await.unwrap();
    wait::until("the command has switched it off", PATIENCE, async || match machine.power() {
        Power::Off => Ok(()),
        Power::On => Err(format!("{:?}{}", machine.effects(), machine.screen())),
    })
    .await;
    rack.restart(service).await;
    rack.becomes(&machine, "ready").await;
    is_empty(&machine);
    at_most_one_effect_per_command(&rack, &machine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_killed_while_it_switches_a_machine_does_not_do_it_twice() {
    killed_in_mid_command(Service::Agent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_killed_while_a_machine_is_switched_does_not_have_it_done_twice() {
    killed_in_mid_command(Service::Controller).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_reset_in_mid_write_becomes_active() {
    let mut rack = VirtualRack::new().await;
    let (machine, raw) = held_in_mid_write(&mut rack).await;
    // Nothing bootable is on the disk by now: it comes back from the network by itself.
    machine.reset(false);
    machine.drive().let_go();
    rack.becomes(&machine, "active").await;
    holds(&machine, &raw);
    let of: BTreeSet<_> = machine.drive().writes().into_iter().filter(|(chunk, _)| *chunk == 1).collect();
    assert_eq!(of, BTreeSet::from([(1, 2)]), "written again from the start, once");
    at_most_one_effect_per_command(&rack, &machine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deploy_cancelled_in_mid_write_ends_ready_with_its_order_taken_back() {
    let mut rack = VirtualRack::new().await;
    let (machine, _) = held_in_mid_write(&mut rack).await;
    let row = rack.operator.machine(machine.mac()).await.unwrap().unwrap();
    let run = rack.operator.get(&format!("/v1/runs/{}", row["run"].as_str().unwrap())).await.unwrap();
    rack.operator.post(&format!("/v1/runs/{}/cancel", run["id"].as_str().unwrap()), json!({})).await.unwrap();
    machine.drive().let_go();
    let run = rack.operator.wait_for_end(&run).await;
    assert_eq!(run["status"], "cancelled", "{run:#}");
    let ready = rack.becomes(&machine, "ready").await;
    assert_eq!((&ready["image"], &ready["run"]), (&json!(null), &json!(null)));

    // Started anew, it is given nothing to do, and writes nothing.
    let written = machine.drive().writes();
    let starts = machine.starts();
    machine.reset(true);
    rack.wait_for(&machine, "back in the installer", |row| row["installer"] == true && machine.starts() > starts).await;
    assert_eq!(machine.drive().writes(), written);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn known_machines_boot_with_the_controller_gone_and_the_node_restarted() {
    let mut rack = VirtualRack::new().await;
    rack.image("sim-1", 3).await;
    let (deployed, idle) = (rack.machine(Model::default()), rack.machine(Model::default()));
    rack.active(&deployed, "sim-1").await;
    rack.ready(&idle).await;
    let line = idle.installer_line();

    rack.kill(Service::Controller).await;
    rack.restart(Service::Agent).await;
    rack.restart(Service::Boot).await;
    // One starts its system, told so by the rack; the other its installer, with a new ticket.
    deployed.reset(true);
    idle.reset(false);
    deployed.system_up(PATIENCE).await;
    wait::until("the idle machine is in its installer", PATIENCE, async || {
        if idle.installer_line() != line { Ok(()) } else { Err(idle.screen()) }
    })
    .await;

    rack.start(Service::Controller).await;
    rack.wait_for(&idle, "ready and connected", |row| row["installer"] == true).await;
    assert_eq!(rack.becomes(&deployed, "active").await["alert"], json!(null));
}
