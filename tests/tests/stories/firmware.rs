//! Firmware is updated by BMCs that start anew in the middle of it, lie about it, or want a start of their
//! machine.

use rackhand_bmc_sim::{Faults, Flashing, Personality, Running};
use rackhand_tests::{Machine, Model, VirtualRack, operator::PATIENCE, rack::Service, wait};
use reqwest::Method;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::bmc::{bmc, reach};

/// More than is read or sent at once, and no text.
fn file() -> Vec<u8> {
    (0..200_000_u32).flat_map(|number| (number as u8 ^ (number >> 8) as u8).to_be_bytes()).collect()
}

/// Imports firmware for simulated machines.
async fn import(rack: &VirtualRack, name: &str, restart: bool) {
    let file = file();
    let manifest = format!(
        "name = {name:?}\ncomponent = \"bmc\"\nversion = \"2.18\"\nfrom = [\"2.17\"]\nmethod = \"redfish\"\n\
         file = \"bmc-2.18.bin\"\nsize = {}\nsha256 = \"{}\"\nrestart = {restart}\ntimeout = 60\nsettle = 2\n\
         [match]\nvendor = \"Simulated\"\n",
        file.len(),
        hex::encode(Sha256::digest(&file)),
    );
    let kept = rack.operator.firmware(&manifest, &file).await.unwrap();
    assert!(kept["here"].is_string(), "{kept}");
}

/// A ready machine whose BMC has 2.17.
async fn with_bmc(rack: &mut VirtualRack, flashing: Flashing) -> (Machine, Running) {
    let machine = rack.machine(Model::default());
    rack.ready(&machine).await;
    let (running, _behind) = bmc(&machine, Personality::generic(1)).await;
    running.bmc.set_faults(Faults { flashing, ..Faults::default() });
    reach(rack, &machine, "redfish", running.redfish).await;
    (machine, running)
}

/// Of its firmware, what is not as its plan has it.
async fn drift(rack: &VirtualRack, machine: &Machine) -> Vec<String> {
    let row = rack.operator.machine(machine.mac()).await.unwrap().unwrap();
    let told = rack.operator.get(&format!("/v1/machines/{}/hardware", row["id"].as_str().unwrap())).await.unwrap();
    let findings = told["findings"].as_array().unwrap().iter();
    let of_firmware = findings.filter(|finding| finding["component"] == "firmware");
    of_firmware.map(|finding| finding["text"].as_str().unwrap().to_owned()).collect()
}

async fn wants(rack: &VirtualRack, name: &str) {
    let rules = json!({"vendor": "Simulated", "expects": {"baseline": [name]}});
    rack.operator.post("/v1/plans", json!({"name": "toys", "rules": rules})).await.unwrap();
}

fn sent(running: &Running) -> usize {
    running.bmc.lock().flashes.len()
}

fn taken(running: &Running) -> Result<(), String> {
    if sent(running) > 0 { Ok(()) } else { Err("nothing was sent to it".to_owned()) }
}

async fn updates(rack: &VirtualRack, machine: &Machine) -> Value {
    let row = rack.operator.machine(machine.mac()).await.unwrap().unwrap();
    let path = format!("/v1/machines/{}/firmware-updates", row["id"].as_str().unwrap());
    rack.operator.get(&path).await.unwrap()["items"].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn firmware_is_sent_once_and_read_back_although_bmc_agent_and_controller_go_down_meanwhile() {
    let mut rack = VirtualRack::new().await;
    import(&rack, "toy-bmc-2.18", false).await;
    wants(&rack, "toy-bmc-2.18").await;
    let (machine, running) = with_bmc(&mut rack, Flashing::Restarts).await;
    assert_eq!(drift(&rack, &machine).await, ["firmware of bmc was never read, 2.18 is wanted (toy-bmc-2.18)"]);
    let run = rack.operator.act(machine.mac(), "update-firmware", json!({})).await.unwrap();
    wait::until("the BMC was sent the file", PATIENCE, async || taken(&running)).await;
    for service in [Service::Agent, Service::Controller] {
        rack.kill(service).await;
        rack.start(service).await;
    }
    let run = rack.operator.wait_for_end(&run).await;
    assert_eq!(run["status"], "done", "{run:#}");
    assert_eq!((sent(&running), running.bmc.lock().firmware.as_str()), (1, "2.18"));
    assert_eq!(drift(&rack, &machine).await, [""; 0]);
    let told = updates(&rack, &machine).await;
    assert_eq!((&told[0]["was"], &told[0]["state"]), (&json!("2.17"), &json!("installed")), "{told}");

    // It has what is wanted: there is nothing to do, and what is asked for all the same sends nothing.
    let refused = rack.operator.act(machine.mac(), "update-firmware", json!({})).await.unwrap_err().to_string();
    assert!(refused.contains("nothing of the firmware"), "{refused}");
    let again = json!({"firmware": ["toy-bmc-2.18"]});
    let run = rack.operator.act(machine.mac(), "update-firmware", again).await.unwrap();
    assert_eq!(rack.operator.wait_for_end(&run).await["status"], "done");
    assert_eq!(sent(&running), 1);
    rack.becomes(&machine, "ready").await;
    rack.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_needs_a_start_of_the_machine_gets_one() {
    let mut rack = VirtualRack::new().await;
    import(&rack, "toy-staged", true).await;
    let (machine, running) = with_bmc(&mut rack, Flashing::Staged).await;
    let starts = machine.starts();
    let run = rack.operator.act(machine.mac(), "update-firmware", json!({"firmware": ["toy-staged"]})).await.unwrap();
    let run = rack.operator.wait_for_end(&run).await;
    assert_eq!(run["status"], "done", "{run:#}");
    assert_eq!((machine.starts(), running.bmc.lock().firmware.as_str()), (starts + 1, "2.18"));
    rack.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bmc_that_lies_about_its_update_keeps_its_machine_out_of_service() {
    let mut rack = VirtualRack::new().await;
    import(&rack, "toy-bmc-2.18", false).await;
    let (machine, running) = with_bmc(&mut rack, Flashing::Refused).await;
    let update = json!({"firmware": ["toy-bmc-2.18"]});
    // One that takes nothing has what it had, and its machine stays in service.
    let run = rack.operator.act(machine.mac(), "update-firmware", update.clone()).await.unwrap();
    let run = rack.operator.wait_for_end(&run).await;
    assert!(run["detail"].as_str().unwrap().contains("Verification of image"), "{run:#}");
    rack.becomes(&machine, "ready").await;

    running.bmc.set_faults(Faults { flashing: Flashing::Lies, ..Faults::default() });
    let run = rack.operator.act(machine.mac(), "update-firmware", update.clone()).await.unwrap();
    let run = rack.operator.wait_for_end(&run).await;
    assert_eq!(run["status"], "failed", "{run:#}");
    let row = rack.becomes(&machine, "quarantined").await;
    let reason = row["held"]["reason"].as_str().unwrap();
    assert!(reason.contains("bmc should have 2.18 by now, and 2.17 was read"), "{reason}");

    // Quarantined as it is, it can be updated again; what its task says then is told.
    running.bmc.set_faults(Faults { flashing: Flashing::Fails, ..Faults::default() });
    let run = rack.operator.act(machine.mac(), "update-firmware", update).await.unwrap();
    let run = rack.operator.wait_for_end(&run).await;
    assert!(run["detail"].as_str().unwrap().contains("its BMC says: Verification of image"), "{run:#}");
    assert_eq!(updates(&rack, &machine).await.as_array().unwrap().len(), 3);
    rack.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rack_is_updated_one_at_a_time_until_one_fails() {
    let mut rack = VirtualRack::new().await;
    import(&rack, "toy-bmc-2.18", false).await;
    wants(&rack, "toy-bmc-2.18").await;
    let mut all = Vec::new();
    for flashing in [Flashing::Works, Flashing::Lies, Flashing::Works] {
        all.push(with_bmc(&mut rack, flashing).await);
    }
    // They have their turn by their names, which are those of their cards.
    let made = rack.operator.post("/v1/racks/r1/firmware-campaigns", json!({"plan": "toys"})).await.unwrap();
    assert_eq!(made["machines"].as_array().unwrap().len(), 3, "{made}");
    let refused = rack.operator.post("/v1/racks/r1/firmware-campaigns", json!({})).await.unwrap_err().to_string();
    assert!(refused.contains("goes on"), "{refused}");
    let path = format!("/v1/racks/r1/firmware-campaigns/{}", made["id"].as_str().unwrap());
    wait::until("the first machine is updated", PATIENCE, async || {
        assert_eq!(sent(&all[2].1), 0, "the third had its turn before the first");
        taken(&all[0].1)
    })
    .await;
    rack.kill(Service::Controller).await;
    rack.start(Service::Controller).await;
    let over = wait::until("the campaign is over", PATIENCE, async || {
        let campaign = rack.operator.get(&path).await.map_err(|error| format!("{error:#}"))?;
        let running = campaign["machines"].as_array().unwrap().iter().filter(|member| member["state"] == "running");
        assert!(running.count() <= 1, "{campaign:#}");
        if campaign["outcome"].is_null() { Err(campaign.to_string()) } else { Ok(campaign) }
    })
    .await;
    let states: Vec<_> = over["machines"].as_array().unwrap().iter().map(|member| member["state"].clone()).collect();
    assert_eq!((states, &over["outcome"]), (vec![json!("done"), json!("failed"), json!("waiting")], &json!("stopped")));
    assert_eq!(all.iter().map(|(_, running)| sent(running)).collect::<Vec<_>>(), [1, 1, 0]);
    let refused = rack.operator.ask(Method::PATCH, &path, Some(json!({"wish": "run"}))).await.unwrap_err().to_string();
    assert!(refused.contains("it is over: stopped"), "{refused}");
    rack.stop().await.unwrap();
}
