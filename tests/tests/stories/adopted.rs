//! Machines that were never seen, and are adopted while they run systems that were not installed from here.

use rackhand_bmc_sim::{Addresses, Personality};
use rackhand_tests::{Machine, Model, VirtualRack, operator::PATIENCE, rack::Service, wait};
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    bmc::bmc_at,
    deploy::{holds, is_empty},
};

/// Where all BMCs of this rack speak.
const IPMI: u16 = 6230;
const REDFISH: u16 = 4431;

const PATH: &str = "/v1/racks/r1/running-machines";

/// A machine that runs a system of its own, on a disk full of it; what is on that.
async fn in_production(rack: &mut VirtualRack) -> (Machine, Vec<u8>) {
    let raw = rack.image("production", 4).await;
    let machine = rack.machine(Model::default());
    machine.drive().scribble(0, &raw).unwrap();
    machine.drive().scribble(20 << 20, b"what its people keep").unwrap();
    let before = machine.drive().contents().unwrap();
    machine.power_on();
    starts_disk(&machine, 1).await;
    (machine, before)
}

/// Waits until it was started so often, and each time from its own disk.
async fn starts_disk(machine: &Machine, times: usize) {
    let started = async || {
        let screen = machine.screen();
        if screen.matches("starting from disk").count() == times { Ok(()) } else { Err(screen) }
    };
    wait::until("it starts its own disk", PATIENCE, started).await;
    assert_eq!(machine.starts() as usize, times, "{}", machine.screen());
}

/// That nobody has done anything to it.
fn is_untouched(machine: &Machine, before: &[u8]) {
    assert_eq!(machine.effects(), [], "its power was switched");
    assert!(machine.drive().contents().unwrap() == before, "its disk was written to");
    assert_eq!(machine.installer_line(), None, "it was given an installer");
}

async fn until(rack: &VirtualRack, what: &str, path: &str, is: impl Fn(&Value) -> bool) -> Value {
    let look = async || {
        let told = rack.operator.get(path).await.map_err(|error| format!("{error:#}"))?;
        if is(&told) { Ok(told) } else { Err(told.to_string()) }
    };
    wait::until(what, PATIENCE, look).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_is_adopted_from_its_bmc_while_it_runs_and_nothing_happens_to_it_before_its_release() {
    let mut rack = VirtualRack::new().await;
    let (machine, before) = in_production(&mut rack).await;
    let mut personality = Personality::dell_like(1);
    (personality.serial, personality.uuid) = machine.mainboard();
    personality.nics.truncate(1);
    personality.nics[0].mac = machine.mac().0;
    let at = |port| (rack.host(58), port).into();
    let there = Addresses { ipmi: at(IPMI), redfish: at(REDFISH), plain: None };
    let (running, behind) = bmc_at(&machine, personality, there).await;
    let network = format!("{}/29", rack.host(56)).parse().unwrap();
    let looking = |config: &mut rackhand_agent::agent::Config| {
        config.discovery.networks = vec![network];
        config.discovery.every = std::time::Duration::from_secs(1);
        config.discovery.per_second = 100;
        (config.discovery.ipmi, config.discovery.redfish) = (IPMI, REDFISH);
    };
    rack.reload_agent(looking).unwrap();
    let row = json!({
        "serial": machine.mainboard().0, "address": format!("{}:{REDFISH}", rack.host(58)), "protocol": "redfish",
        "user": "root", "password": "calvin",
    });
    rack.operator.post("/v1/racks/r1/expected-bmcs", json!({"bmcs": [row]})).await.unwrap();
    let is_met = |found: &Value| found["items"][0]["state"] == "met" && found["items"][0]["identity"].is_object();
    until(&rack, "its BMC has said whose it is", "/v1/racks/r1/found-bmcs", is_met).await;

    rack.operator.post("/v1/organisations", json!({"name": "acme"})).await.unwrap();
    rack.operator.post("/v1/projects", json!({"name": "shop", "organisation": "acme"})).await.unwrap();
    rack.operator.post("/v1/aggregates", json!({"prefix": "10.0.0.0/8", "source": "private"})).await.unwrap();
    let pool = json!({"name": "p4", "kind": "private", "prefixes": ["10.9.0.0/24"]});
    rack.operator.post("/v1/pools", pool).await.unwrap();

    // What cannot be kept whole is not kept at all.
    let said =
        json!({"name": "web-1", "bmc": rack.host(58), "project": "acme:shop", "holds": ["10.9.0.7", "10.8.0.1"]});
    let refused = rack.operator.post(PATH, said).await.unwrap_err().to_string();
    assert!(refused.contains("10.8.0.1/32 is in no pool"), "{refused}");
    assert_eq!(rack.operator.get("/v1/machines").await.unwrap()["items"], json!([]));

    let said = json!({
        "name": "web-1", "bmc": rack.host(58), "project": "acme:shop", "holds": ["10.9.0.7"], "seen": ["10.8.0.1"],
    });
    let adopted = rack.operator.post(PATH, said.clone()).await.unwrap();
    let row = &adopted["machine"];
    assert_eq!((&row["lifecycle"], &row["project"]), (&json!("active"), &json!("acme:shop")), "{adopted:#}");
    assert_eq!((&adopted["claimed"], &adopted["unclaimed"]), (&json!(["10.9.0.7/32"]), &json!(["10.8.0.1/32"])));
    assert_eq!(row["address"], json!(rack.host(2)), "not one that its node gives to strangers");
    assert!(row["not_inspected"].as_str().unwrap().contains("network cards"), "{adopted:#}");
    assert!(row["inventory"]["firmware"].is_null() && row["inventory"]["disks"] == json!([]), "{adopted:#}");

    // Its BMC is joined, tells its cards and what is in it, and how it fares; nobody is asked for a password again.
    let is_told = |row: &Value| {
        let disks = row["inventory"]["disks"].as_array().unwrap();
        row["macs"] == json!([machine.mac()]) && !disks.is_empty() && row["health"].is_string()
    };
    let row = until(&rack, "its BMC has told what is in it", "/v1/machines/web-1", is_told).await;
    assert!(row["inventory"]["memory"].as_u64().unwrap() > 1 << 30, "{row:#}");
    assert!(row["not_inspected"].as_str().unwrap().contains("its disks are learnt"), "{row:#}");
    assert_eq!((&row["changes"], &row["alert"], &row["run"]), (&json!([]), &Value::Null, &Value::Null), "{row:#}");
    assert_eq!(running.bmc.lock().users[1].password, b"calvin".to_vec());

    // Said again, it is as it was.
    let again = rack.operator.post(PATH, said).await.unwrap();
    assert_eq!((&again["was_known"], &again["machine"]["id"]), (&json!(true), &row["id"]), "{again:#}");
    assert_eq!(again["claimed"], json!(["10.9.0.7/32"]));
    let claims = rack.operator.get("/v1/claims?machine=web-1").await.unwrap();
    assert_eq!(claims["items"].as_array().unwrap().len(), 1, "{claims:#}");

    // By chance it starts from the network, also while the controller is away: it is told to start its disk.
    let is_known = async || {
        let intent = std::fs::read_to_string(rack.path("agent/intent.json")).unwrap_or_default();
        if intent.contains(&machine.mac().to_string()) { Ok(()) } else { Err(intent) }
    };
    wait::until("its node knows its card", PATIENCE, is_known).await;
    for service in [Service::Boot, Service::Agent] {
        rack.restart(service).await;
    }
    rack.kill(Service::Controller).await;
    machine.reset(true);
    starts_disk(&machine, 2).await;
    rack.start(Service::Controller).await;
    is_untouched(&machine, &before);
    assert_eq!(behind.switched(), 0);

    // Its project gives it back: what is in it is learnt before any of it is erased.
    rack.operator.ask(Method::DELETE, &claim(&claims), None).await.unwrap();
    let run = rack.operator.act(machine.mac(), "release", json!({})).await.unwrap();
    let run = rack.operator.wait_for_end(&run).await;
    assert_eq!(run["status"], "done", "{run:#}");
    let row = rack.becomes(&machine, "ready").await;
    is_empty(&machine);
    assert_eq!((&row["not_inspected"], &row["changes"]), (&Value::Null, &json!([])), "{row:#}");
    assert_eq!(row["inventory"]["disks"][0]["serial"], "serial-1");
    assert!(behind.switched() >= 1, "it was switched in another way");
    let erased = rack.operator.get("/v1/machines/web-1/erasures").await.unwrap();
    assert_eq!(erased["items"].as_array().unwrap().len(), 1, "{erased:#}");
    let history = rack.operator.history(machine.mac()).await.unwrap();
    let kinds: Vec<_> = history.iter().map(|(kind, _)| kind.as_str()).collect();
    let at =
        |kind: &str| kinds.iter().position(|known| *known == kind).unwrap_or_else(|| panic!("no {kind}: {kinds:?}"));
    assert!(at("adopted_running") < at("told_by_bmc") && at("told_by_bmc") < at("inspected"), "{kinds:?}");
    assert!(at("inspected") < at("erased"), "{kinds:?}");
    rack.stop().await.unwrap();
}

fn claim(claims: &Value) -> String {
    format!("/v1/claims/{}", claims["items"][0]["id"].as_str().unwrap())
}

/// What an operator says of it.
fn said(machine: &Machine) -> Value {
    json!({
        "name": "web-1", "serial": machine.mainboard().0, "uuid": machine.mainboard().1, "macs": [machine.mac()],
        "disks": [{"model": "as it is called there", "serial": "serial-1"}],
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_is_not_the_one_that_was_adopted_keeps_what_is_on_it() {
    let mut rack = VirtualRack::new().await;
    let (machine, before) = in_production(&mut rack).await;
    rack.operator.post(PATH, said(&machine)).await.unwrap();
    rack.becomes(&machine, "active").await;
    machine.swap_mainboard("ANOTHER");
    let reinstalled = rack.operator.act(machine.mac(), "reinstall", json!({"image": "production"})).await.unwrap();
    let run = rack.operator.wait_for_end(&reinstalled).await;
    assert_eq!(run["status"], "failed", "{run:#}");
    let words = run["detail"].as_str().unwrap();
    assert!(words.contains("ANOTHER") && words.contains("replace-part web-1"), "{run:#}");
    // Nothing was written, and it runs again what it ran.
    let row = rack.wait_for(&machine, "active again", |row| row["lifecycle"] == "active" && row["run"].is_null()).await;
    let is_back = async || {
        let screen = machine.screen();
        if screen.trim_end().contains("starting from disk") && machine.system().is_none() {
            Ok(())
        } else {
            Err(screen)
        }
    };
    wait::until("it runs what it ran", PATIENCE, is_back).await;
    assert!(machine.drive().contents().unwrap() == before, "it was written to");
    assert!(row["not_inspected"].is_string() && row["alert"].as_str().unwrap().contains("ANOTHER"), "{row:#}");
    assert_eq!(row["changes"][0]["part"], "mainboard", "{row:#}");
    let refused = rack.operator.act(machine.mac(), "release", json!({})).await.unwrap_err().to_string();
    assert!(refused.contains("its parts changed"), "{refused}");
    assert!(machine.drive().contents().unwrap() == before, "it was written to");

    // Somebody has looked: it is a new board in the same machine.
    let accepted = json!({"accept_data": true});
    let row = rack.operator.act(machine.mac(), "replace-part", accepted).await.unwrap();
    assert_eq!((&row["not_inspected"], &row["changes"]), (&Value::Null, &json!([])), "{row:#}");
    rack.operator.act(machine.mac(), "release", json!({})).await.unwrap();
    rack.becomes(&machine, "ready").await;
    is_empty(&machine);
    rack.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_was_adopted_while_it_ran_is_rescued_and_reinstalled_whoever_is_killed_meanwhile() {
    let mut rack = VirtualRack::new().await;
    let raw = rack.image("sim-1", 3).await;
    let (machine, before) = in_production(&mut rack).await;
    rack.operator.post(PATH, said(&machine)).await.unwrap();
    rack.becomes(&machine, "active").await;
    is_untouched(&machine, &before);
    let keys = json!({"ssh_keys": [rackhand_tests::operator::KEY]});
    let run = rack.operator.act(machine.mac(), "rescue", keys).await.unwrap();
    let run = rack.operator.wait_for_end(&run).await;
    assert_eq!(run["status"], "done", "{run:#}");
    // Its installer has looked into it, and touched nothing.
    let row = rack.becomes(&machine, "rescue").await;
    assert_eq!(row["not_inspected"], Value::Null, "{row:#}");
    assert!(machine.drive().contents().unwrap() == before, "it was written to");

    let body = json!({"image": "sim-1", "hostname": "web-1", "ssh_keys": [rackhand_tests::operator::KEY]});
    rack.operator.act(machine.mac(), "reinstall", body).await.unwrap();
    for service in [Service::Controller, Service::Agent, Service::Boot] {
        rack.restart(service).await;
    }
    let is = |row: &Value| row["lifecycle"] == "active" && row["run"].is_null() && row["image"] == "sim-1";
    rack.wait_for(&machine, "reinstalled", is).await;
    assert_eq!(machine.system_up(PATIENCE).await.hostname, "web-1");
    holds(&machine, &raw);
    rack.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_nobody_looked_into_is_reinstalled_from_what_its_installer_finds_though_the_controller_is_killed() {
    let mut rack = VirtualRack::new().await;
    let raw = rack.image("sim-1", 3).await;
    let (machine, _) = in_production(&mut rack).await;
    rack.operator.post(PATH, said(&machine)).await.unwrap();
    rack.becomes(&machine, "active").await;
    let body = json!({"image": "sim-1", "hostname": "web-1", "ssh_keys": [rackhand_tests::operator::KEY]});
    rack.operator.act(machine.mac(), "reinstall", body).await.unwrap();
    rack.wait_for(&machine, "looked into", |row| row["not_inspected"].is_null()).await;
    rack.restart(Service::Controller).await;
    let is = |row: &Value| row["lifecycle"] == "active" && row["run"].is_null() && row["image"] == "sim-1";
    rack.wait_for(&machine, "reinstalled", is).await;
    machine.system_up(PATIENCE).await;
    holds(&machine, &raw);
    rack.stop().await.unwrap();
}
