//! Machines whose firmware does not do what their BMC was told: by which way they start into the installer,
//! and that nothing of it is left.

use rackhand_bmc_sim::{Boot, Faults, Follows, Personality, Running};
use rackhand_common::machine::Firmware;
use rackhand_tests::{Machine, Model, VirtualRack, machine::Effect, operator::PATIENCE, rack::Service, wait};
use serde_json::{Value, json};

use super::bmc::{bmc, reach};

/// A machine that somebody has, with a BMC whose overrides its firmware follows so far.
async fn handed_out(
    rack: &mut VirtualRack,
    protocol: &str,
    firmware: Firmware,
    follows: Follows,
) -> (Machine, Running) {
    rack.image("sim-1", 3).await;
    let machine = rack.machine(Model { firmware, ..Model::default() });
    rack.ready(&machine).await;
    let (running, _behind) = bmc(&machine, Personality::generic(1)).await;
    let at = if protocol == "ipmi" { running.ipmi } else { running.redfish };
    reach(rack, &machine, protocol, at).await;
    rack.operator.deploy(machine.mac(), "sim-1").await.unwrap();
    rack.becomes(&machine, "active").await;
    running.bmc.set_faults(Faults { follows, ..Faults::default() });
    // A system that asks for its address twice within 20 s has started once, for all that boot knows.
    rack.restart(Service::Boot).await;
    (machine, running)
}

/// The run that is in progress or was last.
async fn run(rack: &VirtualRack) -> Result<Value, String> {
    let runs = rack.operator.get("/v1/runs?limit=1").await.map_err(|error| format!("{error:#}"))?;
    Ok(runs["items"][0].clone())
}

/// Waits until the release goes this way, from the first try on in which it may.
async fn goes(rack: &mut VirtualRack, way: &str) {
    let goes = async || {
        let run = run(rack).await?;
        if run["way"] == way { Ok(()) } else { Err(run.to_string()) }
    };
    wait::until(&format!("the release goes by {way}"), PATIENCE, goes).await;
    rack.restart(Service::Boot).await;
}

/// Waits until neither the BMC nor the machine knows of an override, and no drive has anything in it.
async fn is_put_back(machine: &Machine, running: &Running) {
    let look = async || {
        let (boot, media) = {
            let state = running.bmc.lock();
            (state.boot.clone(), state.media.clone())
        };
        let is_clean = boot == Boot::default() && media.is_none() && !machine.is_overridden();
        is_clean.then_some(()).ok_or_else(|| format!("{boot:?}, {media:?}"))
    };
    wait::until("nothing of the ways is left", PATIENCE, look).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn firmware_that_passes_over_one_time_overrides_gets_a_lasting_one_that_is_put_back_whoever_is_killed() {
    for protocol in ["redfish", "ipmi"] {
        let mut rack = VirtualRack::new().await;
        let (machine, running) = handed_out(&mut rack, protocol, Firmware::Bios, Follows::Lasting).await;
        rack.operator.act(machine.mac(), "release", json!({})).await.unwrap();
        let is_set = async || {
            let effects = machine.effects();
            effects.contains(&Effect::NetworkAlways).then_some(()).ok_or_else(|| format!("{effects:?}"))
        };
        wait::until("a lasting override is set", PATIENCE, is_set).await;
        rack.restart(Service::Agent).await;
        rack.restart(Service::Controller).await;
        rack.becomes(&machine, "ready").await;
        is_put_back(&machine, &running).await;
        assert_eq!(run(&rack).await.unwrap()["way"], "network boot, at every start");
        rack.stop().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn firmware_that_follows_no_override_starts_from_virtual_media_which_is_taken_out_again() {
    let mut rack = VirtualRack::new().await;
    let (machine, running) = handed_out(&mut rack, "redfish", Firmware::Bios, Follows::Media).await;
    rack.operator.act(machine.mac(), "release", json!({})).await.unwrap();
    goes(&mut rack, "network boot, at every start").await;
    rack.becomes(&machine, "ready").await;
    is_put_back(&machine, &running).await;
    let ended = run(&rack).await.unwrap();
    assert_eq!((&ended["way"], &ended["status"]), (&json!("virtual media"), &json!("done")), "{ended}");

    // The next time nothing else is tried before.
    rack.operator.deploy(machine.mac(), "sim-1").await.unwrap();
    rack.becomes(&machine, "active").await;
    let before = machine.effects().len();
    rack.operator.act(machine.mac(), "release", json!({})).await.unwrap();
    rack.becomes(&machine, "ready").await;
    let effects = machine.effects().split_off(before);
    assert!(effects.contains(&Effect::MediaOnce) && !effects.contains(&Effect::NetworkOnce), "{effects:?}");
    is_put_back(&machine, &running).await;
    rack.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_uefi_machine_is_started_by_http_boot_when_its_bmc_can_tell_it_where_from() {
    let mut rack = VirtualRack::new().await;
    let (machine, running) = handed_out(&mut rack, "redfish", Firmware::Uefi, Follows::All).await;
    rack.operator.act(machine.mac(), "release", json!({})).await.unwrap();
    rack.becomes(&machine, "ready").await;
    let effects = machine.effects();
    assert!(effects.contains(&Effect::HttpOnce) && !effects.contains(&Effect::NetworkOnce), "{effects:?}");
    is_put_back(&machine, &running).await;
    rack.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_comes_by_no_way_is_quarantined_with_all_that_was_tried_and_nothing_is_left() {
    let mut rack = VirtualRack::new().await;
    let (machine, running) = handed_out(&mut rack, "redfish", Firmware::Bios, Follows::Nothing).await;
    rack.operator.act(machine.mac(), "release", json!({})).await.unwrap();
    goes(&mut rack, "network boot, at every start").await;
    goes(&mut rack, "virtual media").await;
    let told = rack.becomes(&machine, "quarantined").await;
    let reason = told["held"]["reason"].as_str().unwrap_or_else(|| panic!("{told}"));
    for part in [
        "release not_booted: its installer did not come",
        "network boot, once: it started what is on its disk",
        "network boot, at every start: it started what is on its disk",
        "virtual media: it started what is on its disk",
        "Look at: its firmware does not follow its BMC",
    ] {
        assert!(reason.contains(part), "{part}: {reason}");
    }
    is_put_back(&machine, &running).await;
    rack.stop().await.unwrap();
}
