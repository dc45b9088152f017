//! A rack's node is lost, and another one takes its place.

use jiff::SignedDuration;
use rackhand_common::machine::Power;
use rackhand_tests::{Model, Service, VirtualRack, machine::Effect, operator::PATIENCE, wait};
use serde_json::{Value, json};

use crate::{deploy::holds, identity::uplink};

/// The rack's agents: those let in, and those that are not.
async fn agents(rack: &VirtualRack) -> (Vec<Value>, Vec<Value>) {
    let agents = rack.operator.get("/v1/agents").await.unwrap();
    agents["items"].as_array().unwrap().iter().cloned().partition(|agent| agent["revoked"].is_null())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rack_whose_node_is_lost_in_the_middle_of_a_deploy_goes_on_with_another() {
    let mut rack = VirtualRack::new().await;
    let raw = rack.image("sim-1", 3).await;
    let (tenants, stranger, machine) =
        (rack.machine(Model::default()), rack.machine(Model::default()), rack.machine(Model::default()));
    let known = rack.active(&tenants, "sim-1").await;
    stranger.power_on();
    let discovered = rack.becomes(&stranger, "discovered").await;
    let line = stranger.installer_line();
    rack.ready(&machine).await;
    rack.operator.act(machine.mac(), "power", json!({ "action": "off" })).await.unwrap();
    rack.wait_for(&machine, "off", |row| row["power"] == "off" && row["run"].is_null()).await;

    // The deploy has it started from the network; its node burns down while it does so.
    let run = rack.operator.deploy(machine.mac(), "sim-1").await.unwrap();
    wait::until("the node has begun to switch it", PATIENCE, async || {
        let effects = machine.effects();
        if effects.contains(&Effect::NetworkOnce) { Ok(()) } else { Err(format!("{effects:?}")) }
    })
    .await;
    rack.kill(Service::Agent).await;
    rack.kill(Service::Boot).await;
    let told_before = agents(&rack).await.0[0].clone();
    std::fs::rename(rack.path("agent"), rack.path("burnt")).unwrap();
    std::fs::remove_dir_all(rack.path("boot")).unwrap();

    // An operator says so; its command's outcome is unknown from now on, and a code is there.
    let first = rack.operator.post("/v1/agents/r1/replace", json!({})).await.unwrap();
    assert_eq!((&first["agent"], &first["unknown_commands"]), (&told_before["id"], &json!(1)), "{first:#}");
    let replaced = rack.operator.post("/v1/agents/r1/replace", json!({})).await.unwrap();
    assert_eq!(replaced["agent"], json!(null));
    let code = |made: &Value| made["code"].as_str().unwrap().to_owned();
    let void = rack.enrol(&code(&first), &rack.path("agent")).await.unwrap_err();
    assert!(format!("{void:#}").contains("the enrolment code is not valid"), "{void:#}");

    rack.enrol(&code(&replaced), &rack.path("agent")).await.unwrap();
    rack.start(Service::Agent).await;
    rack.start(Service::Boot).await;
    let path = format!("/v1/runs/{}", run["id"].as_str().unwrap());
    wait::until("the system runs, and is held back while the old node may act", PATIENCE, async || {
        let run = rack.operator.get(&path).await.unwrap();
        let held = run["detail"].to_string().contains("given up may act");
        if held { Ok(()) } else { Err(format!("{run:#}{}", machine.screen())) }
    })
    .await;
    rack.wall.forward(SignedDuration::from_mins(7));
    rack.becomes(&machine, "active").await;
    holds(&machine, &raw);
    let history = rack.operator.history(machine.mac()).await.unwrap();
    let looked = history.iter().position(|(kind, _)| kind == "command_lost").unwrap();
    let commands = history.iter().filter(|(kind, _)| kind == "commanded" || kind == "command_lost").count();
    let next = history[looked..].iter().find(|(kind, _)| kind == "power" || kind == "stage").unwrap();
    assert_eq!(next.1, "power is off", "it was looked at first: {history:#?}");
    for effect in [Effect::On, Effect::Off, Effect::NetworkOnce] {
        let count = machine.effects().iter().filter(|one| **one == effect).count();
        assert!(count <= commands, "{:?} by {commands} commands: {history:#?}", machine.effects());
    }
    assert_eq!(machine.effects().iter().filter(|one| **one == Effect::On).count(), 1, "{history:#?}");

    // Who was known is the same, adopted or not, at the same address.
    let (tenant_starts, stranger_starts) = (tenants.starts(), stranger.starts());
    tenants.reset(true);
    stranger.reset(false);
    tenants.system_up(PATIENCE).await;
    wait::until("the stranger is in its installer again", PATIENCE, async || {
        let again = stranger.installer_line();
        if again != line && stranger.starts() > stranger_starts { Ok(()) } else { Err(stranger.screen()) }
    })
    .await;
    let row = rack.wait_for(&stranger, "in its installer", |row| row["installer"] == true).await;
    assert_eq!((&row["id"], &row["address"]), (&discovered["id"], &discovered["address"]));
    let row = rack.becomes(&tenants, "active").await;
    assert_eq!((&row["id"], &row["address"], &row["alert"]), (&known["id"], &known["address"], &json!(null)));
    assert!(tenants.starts() > tenant_starts);

    // The burnt node was not burnt: it is given nothing, which is told with both names.
    let (serving, revoked) = agents(&rack).await;
    let ([serving], [revoked]) = (serving.as_slice(), revoked.as_slice()) else { panic!("{serving:#?} {revoked:#?}") };
    assert!(serving["revision"].as_u64() > told_before["revision"].as_u64(), "{serving} after {told_before}");
    let (effects, alerts) = (machine.effects(), rack.operator.alerts().await.unwrap());
    assert!(!alerts.iter().any(|alert| alert.contains("is alive")), "{alerts:#?}");
    let burnt = rack.agent(&rack.path("burnt"), "burnt.sock").await.unwrap();
    let alert = wait::until("the old node is told of", PATIENCE, async || {
        let alerts = rack.operator.alerts().await.unwrap();
        alerts.iter().find(|alert| alert.contains("is alive")).cloned().ok_or(format!("{alerts:#?}"))
    })
    .await;
    for both in
        [&revoked["id"], &serving["id"], &json!("rack r1"), &json!("dials from 127."), &json!("connected from 127.")]
    {
        assert!(alert.contains(both.as_str().unwrap()), "{both} in {alert}");
    }
    wait::until("its technician is told", PATIENCE, async || {
        let shown = uplink(&rack, "burnt.sock").await;
        if shown.contains("REVOKED") { Ok(()) } else { Err(shown) }
    })
    .await;
    rack.operator.act(machine.mac(), "power", json!({ "action": "off" })).await.unwrap();
    rack.wait_for(&machine, "off", |row| row["power"] == "off" && row["run"].is_null()).await;
    assert_eq!((machine.power(), machine.effects().len()), (Power::Off, effects.len() + 1));
    burnt.stop().await.unwrap();
    let told = rack.operator.alerts().await.unwrap();
    assert_eq!(told.iter().filter(|alert| alert.contains("is alive")).count(), 1, "{told:#?}");
}
