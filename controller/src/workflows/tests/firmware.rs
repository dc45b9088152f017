//! Firmware of a machine that nobody has.

use rackhand_common::firmware::{self, Answered, Ask, Updated};
use rackhand_controller_core::firmware::Manifest;

use super::*;
use crate::store::UpdateState;

const TOY: &str = include_str!("../../../../firmware-scripts/firmware/toy-bmc.toml");

const BMC: &str = "toy-bmc-2.18";
const BIOS: &str = "toy-bios";
const DRIVE: &str = "toy-drive";

/// What the simulated agent answers, and what it was asked.
#[derive(Default)]
pub(super) struct Simulated {
    /// By name, and whether the machine was started anew; the last is given again and again.
    answers: BTreeMap<(String, bool), VecDeque<Answered>>,
    asked: Vec<(String, bool)>,
    /// Whether scripts leave the old version.
    drive_fails: bool,
}

impl Simulated {
    pub(super) fn answer(&mut self, ask: Ask) -> Answered {
        let asked = (ask.update.name, ask.confirm);
        self.asked.push(asked.clone());
        let answers = self.answers.entry(asked).or_default();
        match answers.len() {
            0 => Answered::Later("nothing comes".to_owned()),
            1 => answers[0].clone(),
            _ => answers.pop_front().unwrap(),
        }
    }
}

impl Simulated {
    /// What an installer tells of an order; a drive had 1 before.
    pub(super) fn told_by_installer(&mut self, order: &firmware::Order) -> Updated {
        self.asked.push((order.name.clone(), order.confirm));
        let outcome = match (self.drive_fails, order.restart && !order.confirm) {
            (true, _) => firmware::Outcome::Failed("nvme0n1 has 1".to_owned()),
            (false, true) => firmware::Outcome::Staged,
            (false, false) => firmware::Outcome::Installed,
        };
        let was = if order.confirm { [].into() } else { [("nvme0n1".to_owned(), "1".to_owned())].into() };
        Updated { name: order.name.clone(), outcome, was, tested: None }
    }
}

fn under_way() -> Answered {
    Answered::UnderWay { detail: "40 %".to_owned(), mark: 40 }
}

fn installed() -> Answered {
    Answered::Installed { was: Some("2.17".to_owned()) }
}

/// A world whose machine has a BMC, with two files for it: the toy's, and another for its BIOS.
async fn world(on: On, answers: &[(&str, bool, &[Answered])]) -> (World, Run) {
    world_for(on, answers, &[BIOS, BMC]).await
}

/// The same, with a drive that a script is for, whose turn is between the two.
async fn world_for(on: On, answers: &[(&str, bool, &[Answered])], names: &[&str]) -> (World, Run) {
    let world = World::with_bmc(on).await;
    let answers =
        answers.iter().map(|(name, confirm, told)| (((*name).to_owned(), *confirm), told.iter().cloned().collect()));
    world.node.state.lock().unwrap().firmware.answers = answers.collect();
    let bios = TOY.replace("toy-bmc-2.18", "toy-bios").replace("component = \"bmc\"", "component = \"bios\"");
    let bios = bios.replace("order = 10", "order = 20");
    let drive = TOY.replace(BMC, DRIVE).replace("component = \"bmc\"", "component = \"nvme\"");
    let drive = drive.replace("\"redfish\"", "\"script\"\nscript = \"nvme\"").replace("order = 10", "order = 15");
    let drive = drive.replace("restart = false", "restart = true").replace("vendor = \"Rackhand\"", "model = \"Toy\"");
    let mut tx = world.store.begin().await.unwrap();
    for text in [TOY, &bios, &drive] {
        let manifest = Manifest::parse(text).unwrap();
        let id = tx.insert_firmware(at(0).wall, text, &manifest).await.unwrap();
        tx.firmware_is_here(at(0).wall, id).await.unwrap();
    }
    let mut machine = tx.machine("m-3456").await.unwrap();
    let inventory = Arc::make_mut(&mut machine.inventory);
    inventory.system.vendor = "Rackhand".to_owned();
    inventory.disks.iter_mut().for_each(|disk| disk.model = "Toy".to_owned());
    tx.update_machine(at(0).wall, &mut machine).await.unwrap();
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    let run = tx.start_firmware(at(0).wall, &machine, Some(names)).await.unwrap();
    tx.commit().await.unwrap();
    (world, run)
}

async fn states(world: &World, run: &Run) -> Vec<(String, UpdateState)> {
    let updates = world.store.begin().await.unwrap().updates_of(run.id).await.unwrap();
    updates.into_values().map(|update| (update.name, update.state)).collect()
}

fn each(bios: UpdateState, bmc: UpdateState) -> Vec<(String, UpdateState)> {
    vec![("toy-bios".to_owned(), bios), ("toy-bmc-2.18".to_owned(), bmc)]
}

async fn versions_are_brought_one_after_the_other_with_a_start_where_one_is_needed(on: On) {
    for process in Process::ALL {
        let answers: [(&str, bool, &[Answered]); 3] = [
            (BMC, false, &[under_way(), installed()]),
            (BIOS, false, &[under_way(), Answered::Staged]),
            (BIOS, true, &[under_way(), installed()]),
        ];
        let (mut world, run) = world(on, &answers).await;
        world.process = process;
        let run = world.finish(&run).await;
        assert_eq!(run.status, RunStatus::Done, "{:?}", run.detail);
        assert_eq!(states(&world, &run).await, each(UpdateState::Installed, UpdateState::Installed));
        let machine = world.machine().await;
        assert_eq!((machine.lifecycle, machine.alert, machine.held), (Lifecycle::Ready, None, None));
        if matches!(world.process, Process::Steady) {
            let state = world.node.state.lock().unwrap();
            assert_eq!(state.network_boots, 1);
            let mut asked = state.firmware.asked.clone();
            asked.dedup();
            let asked: Vec<_> = asked.iter().map(|(name, confirm)| (name.as_str(), *confirm)).collect();
            assert_eq!(asked, [(BMC, false), (BIOS, false), (BIOS, true)]);
        }
    }
}

async fn what_is_left_in_doubt_keeps_its_machine_out_of_service_and_the_next_is_not_begun(on: On) {
    let lie = Answered::Failed("bmc should have 2.18 by now, and 2.17 was read".to_owned());
    let (mut world, run) = world(on, &[(BMC, false, &[lie])]).await;
    let run = world.finish(&run).await;
    assert_eq!((run.status, run.cause.as_deref()), (RunStatus::Failed, Some("firmware")));
    let failed = [("toy-bmc-2.18".to_owned(), UpdateState::Failed)];
    assert_eq!(states(&world, &run).await, failed);
    let machine = world.machine().await;
    assert_eq!(machine.lifecycle, Lifecycle::Quarantined);
    let reason = machine.held.unwrap().reason;
    assert_eq!(reason, "update-firmware firmware: toy-bmc-2.18: bmc should have 2.18 by now, and 2.17 was read");
}

async fn what_nothing_was_done_to_stays_in_service(on: On) {
    let refused = Answered::Refused("bios has 1.0".to_owned());
    let (mut world, run) = world(on, &[(BMC, false, &[installed()]), (BIOS, false, &[refused])]).await;
    let run = world.finish(&run).await;
    assert_eq!(run.status, RunStatus::Failed);
    assert_eq!(states(&world, &run).await, each(UpdateState::Refused, UpdateState::Installed));
    let machine = world.machine().await;
    assert_eq!((machine.lifecycle, machine.alert), (Lifecycle::Ready, None));
}

async fn a_script_has_its_turn_by_order_and_its_machine_a_start_however_the_controller_lives(on: On) {
    for process in Process::ALL {
        let answers: [(&str, bool, &[Answered]); 3] = [
            (BMC, false, &[under_way(), installed()]),
            (BIOS, false, &[Answered::Staged]),
            (BIOS, true, &[installed()]),
        ];
        let (mut world, run) = world_for(on, &answers, &[BIOS, DRIVE, BMC]).await;
        world.process = process;
        let run = world.finish(&run).await;
        assert_eq!(run.status, RunStatus::Done, "{:?}", run.detail);
        let updates = world.store.begin().await.unwrap().updates_of(run.id).await.unwrap();
        assert!(updates.values().all(|update| update.state == UpdateState::Installed), "{updates:?}");
        assert_eq!(updates[DRIVE].was.as_deref(), Some("1"));
        let state = world.node.state.lock().unwrap();
        let mut asked = state.firmware.asked.clone();
        asked.dedup();
        let asked: Vec<_> = asked.iter().map(|(name, confirm)| (name.as_str(), *confirm)).collect();
        assert_eq!(asked, [(BMC, false), (DRIVE, false), (DRIVE, true), (BIOS, false), (BIOS, true)]);
    }
}

async fn a_script_that_left_the_old_version_keeps_its_machine_out_of_service(on: On) {
    let (mut world, run) = world_for(on, &[(BMC, false, &[installed()])], &[BIOS, DRIVE, BMC]).await;
    world.node.state.lock().unwrap().firmware.drive_fails = true;
    let run = world.finish(&run).await;
    assert_eq!(run.detail.as_deref(), Some("toy-drive: nvme0n1 has 1"));
    let machine = world.machine().await;
    assert_eq!((machine.lifecycle, machine.order), (Lifecycle::Quarantined, None));
    let updates = world.store.begin().await.unwrap().updates_of(run.id).await.unwrap();
    assert_eq!(updates.keys().collect::<Vec<_>>(), [BMC, DRIVE]);
}

async fn an_installer_that_does_not_take_its_order_leaves_the_machine_in_doubt(on: On) {
    let (mut world, run) = world_for(on, &[], &[DRIVE]).await;
    world.node.state.lock().unwrap().behaviour.failing = Some((9, event::Cause::MainboardDiffers));
    let run = world.finish(&run).await;
    assert_eq!(run.status, RunStatus::Failed);
    assert!(run.detail.unwrap().contains("its installer does not do it: as the test wants"));
    assert_eq!(world.machine().await.lifecycle, Lifecycle::Quarantined);
}

async fn a_cancel_waits_for_what_was_begun_and_begins_nothing_else(on: On) {
    let (mut world, run) = world(on, &[(BMC, false, &[under_way(), under_way(), under_way(), installed()])]).await;
    for _ in 0..200 {
        if !states(&world, &run).await.is_empty() {
            break;
        }
        world.turn().await;
        world.node.settle().await;
    }
    let mut tx = world.store.begin().await.unwrap();
    tx.cancel(at(0).wall, run.id).await.unwrap();
    tx.commit().await.unwrap();
    let run = world.finish(&run).await;
    assert_eq!(run.status, RunStatus::Cancelled, "{:?}", run.detail);
    assert_eq!(states(&world, &run).await, [("toy-bmc-2.18".to_owned(), UpdateState::Installed)]);
    assert_eq!(world.machine().await.lifecycle, Lifecycle::Ready);
}

async fn an_update_whose_node_was_given_up_is_in_doubt_and_asked_of_no_other(on: On) {
    let (mut world, run) = world(on, &[(BMC, false, &[under_way()])]).await;
    for _ in 0..200 {
        if !states(&world, &run).await.is_empty() {
            break;
        }
        world.turn().await;
        world.node.settle().await;
    }
    let mut tx = world.store.begin().await.unwrap();
    let lost = *world.node.agent.lock().unwrap();
    tx.revoke(at(0).wall, lost).await.unwrap();
    tx.commit().await.unwrap();
    world.new_node().await;
    let asked = world.node.state.lock().unwrap().firmware.asked.len();
    let run = world.finish(&run).await;
    assert_eq!(run.status, RunStatus::Failed);
    assert!(run.detail.unwrap().contains("was given up in the middle of it"));
    assert_eq!(world.node.state.lock().unwrap().firmware.asked.len(), asked);
    assert_eq!(world.machine().await.lifecycle, Lifecycle::Quarantined);
}

on_both! {
    a_script_has_its_turn_by_order_and_its_machine_a_start_however_the_controller_lives,
    a_script_that_left_the_old_version_keeps_its_machine_out_of_service,
    an_installer_that_does_not_take_its_order_leaves_the_machine_in_doubt,
    an_update_whose_node_was_given_up_is_in_doubt_and_asked_of_no_other,
    versions_are_brought_one_after_the_other_with_a_start_where_one_is_needed,
    what_is_left_in_doubt_keeps_its_machine_out_of_service_and_the_next_is_not_begun,
    what_nothing_was_done_to_stays_in_service,
    a_cancel_waits_for_what_was_begun_and_begins_nothing_else,
}
