//! BMCs that nobody has said anything of: found on the management network, logged in to, joined to
//! their machines and given passwords of their own.

use std::time::Duration;

use rackhand_agent::bmcs::Bmcs;
use rackhand_bmc_sim::{Addresses, Faults, Personality, Running};
use rackhand_common::{
    bmc::{Met, Protocol, Stranger},
    hardware::{Bmc, BmcLan, Hardware},
};
use rackhand_tests::{Machine, Model, VirtualRack, operator::PATIENCE, rack::Service, wait};
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    bmc::{bmc_at, bmc_becomes, path},
    rotation::{Bench, FIRST},
};

/// Where all BMCs of this rack speak.
pub(super) const IPMI: u16 = 6230;
pub(super) const REDFISH: u16 = 4431;

pub(super) fn there(rack: &VirtualRack, last: u8) -> Addresses {
    let at = |port| (rack.host(last), port).into();
    Addresses { ipmi: at(IPMI), redfish: at(REDFISH), plain: None }
}

/// A BMC as it comes from the factory, of this machine as far as it tells; its account is locked
/// after three wrong passwords.
pub(super) fn fresh(machine: &Machine) -> Personality {
    let mut personality = Personality::dell_like(1);
    (personality.serial, personality.uuid) = machine.mainboard();
    personality
}

fn locks(running: &Running) {
    running.bmc.set_faults(Faults { locks_after: 3, ..Faults::default() });
}

/// Has the node look for BMCs in the last eight addresses below 64.
fn look(rack: &VirtualRack) {
    let network = format!("{}/29", rack.host(56)).parse().unwrap();
    let looking = |config: &mut rackhand_agent::agent::Config| {
        config.discovery.networks = vec![network];
        config.discovery.every = Duration::from_secs(1);
        config.discovery.per_second = 100;
        (config.discovery.ipmi, config.discovery.redfish) = (IPMI, REDFISH);
    };
    let taken = rack.reload_agent(looking).unwrap();
    assert!(taken.contains("discovery"), "{taken}");
}

pub(super) async fn try_factory(rack: &VirtualRack) {
    let body = json!({"bmcs": [], "try_factory": true});
    rack.operator.ask(Method::POST, "/v1/racks/r1/expected-bmcs", Some(body)).await.unwrap();
}

/// What was found, by the last numbers of the addresses, once that is as wanted.
pub(super) async fn found(rack: &VirtualRack, what: &str, is_so: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    let look = async || {
        let told = rack.operator.get("/v1/racks/r1/found-bmcs").await.map_err(|error| format!("{error:#}"))?;
        let items = told["items"].as_array().unwrap();
        if is_so(items) { Ok(items.clone()) } else { Err(told.to_string()) }
    };
    wait::until(what, PATIENCE, look).await
}

pub(super) fn is(states: &[&str]) -> impl Fn(&[Value]) -> bool {
    move |found| found.iter().map(|bmc| bmc["state"].as_str().unwrap()).eq(states.iter().copied())
}

fn password(running: &Running) -> String {
    String::from_utf8(running.bmc.lock().users[1].password.clone()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bmc_with_its_factory_password_is_found_joined_given_another_one_and_switches_its_machine() {
    let mut rack = VirtualRack::new().await;
    let machine = rack.machine(Model::default());
    rack.ready(&machine).await;
    let (running, behind) = bmc_at(&machine, fresh(&machine), there(&rack, 58)).await;
    locks(&running);
    look(&rack);
    let told = found(&rack, "it is found", is(&["found"])).await;
    assert_eq!(told[0]["address"], json!(rack.host(58)));
    assert_eq!((&told[0]["ipmi"], &told[0]["redfish"]), (&json!(IPMI), &json!(REDFISH)));
    assert!(told[0]["vendor"].as_str().unwrap().starts_with("Dell"), "{told:?}");
    let is_explained = |found: &[Value]| found[0]["detail"].as_str().is_some_and(|words| words.contains("bmc import"));
    found(&rack, "it is said why it is not logged in to", is_explained).await;
    assert_eq!(running.bmc.lock().denied.1.get(), 0);

    try_factory(&rack).await;
    let told = found(&rack, "it is its machine's", is(&["joined"])).await;
    let row = rack.operator.machine(machine.mac()).await.unwrap().unwrap();
    assert_eq!((&told[0]["machine"], &told[0]["machine_name"]), (&row["id"], &row["name"]));
    let told = bmc_becomes(&rack, &machine, "it has another password", |told| told["rotated"].is_string()).await;
    assert!(told["fingerprint"].is_string() && !told.to_string().contains("calvin"), "{told}");
    assert!(password(&running) != "calvin" && password(&running).len() == 16);
    assert!(!running.bmc.lock().is_locked());

    rack.operator.act(machine.mac(), "power", json!({"action": "cycle"})).await.unwrap();
    let is_switched = async || if behind.switched() >= 2 { Ok(()) } else { Err(behind.switched().to_string()) };
    wait::until("it is switched by its BMC", PATIENCE, is_switched).await;

    drop(running);
    found(&rack, "it is gone", is(&[])).await;
    rack.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_factory_password_that_is_wrong_locks_no_account_and_the_right_one_is_taken_from_a_manifest() {
    let mut rack = VirtualRack::new().await;
    let machine = rack.machine(Model::default());
    rack.ready(&machine).await;
    let mut personality = fresh(&machine);
    personality.users[0].password = "of-its-label".into();
    let (running, _behind) = bmc_at(&machine, personality, there(&rack, 58)).await;
    locks(&running);
    look(&rack);
    try_factory(&rack).await;
    found(&rack, "it does not take it", is(&["denied"])).await;
    assert_eq!(running.bmc.lock().denied.1.get(), 1);
    // Whoever insists is told to wait.
    try_factory(&rack).await;
    found(&rack, "nor the second time", is(&["denied"])).await;
    try_factory(&rack).await;
    let rests =
        |found: &[Value]| found[0]["detail"].as_str().is_some_and(|words| words.contains("none is tried before"));
    found(&rack, "it rests", rests).await;
    assert_eq!(running.bmc.lock().denied.1.get(), 2);
    assert!(!running.bmc.lock().is_locked());

    let row = json!({
        "serial": machine.mainboard().0, "address": format!("{}:{REDFISH}", rack.host(58)), "protocol": "redfish",
        "user": "root", "password": "of-its-label",
    });
    let import = json!({"bmcs": [row]});
    let made = rack.operator.ask(Method::POST, "/v1/racks/r1/expected-bmcs", Some(import)).await.unwrap();
    // Its machine is known: it is reached at once, and what was denied counts on.
    assert_eq!(made["set"], json!(1), "{made}");
    let told = bmc_becomes(&rack, &machine, "it rests", |told| told["rests_until"].is_string()).await;
    assert_eq!(told["denied"], json!(2), "{told}");
    found(&rack, "it is its machine's", is(&["joined"])).await;
    assert_eq!(running.bmc.lock().denied.1.get(), 2);
    // An operator who says it again knows better.
    let body = json!({
        "address": format!("{}:{REDFISH}", rack.host(58)), "protocol": "redfish", "user": "root",
        "password": "of-its-label",
    });
    rack.operator.ask(Method::PUT, &path(&rack, &machine).await, Some(body)).await.unwrap();
    let identity = format!("{}/identity", path(&rack, &machine).await);
    let ask = async || rack.operator.get(&identity).await.map_err(|error| format!("{error:#}"));
    wait::until("it is asked", PATIENCE, ask).await;
    rack.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bmc_that_was_met_before_its_machine_is_joined_when_that_is_discovered_whoever_is_killed_meanwhile() {
    let mut rack = VirtualRack::new().await;
    let machine = rack.machine(Model::default());
    let (running, _behind) = bmc_at(&machine, fresh(&machine), there(&rack, 58)).await;
    running.bmc.set_faults(Faults { locks_after: 3, slow_ms: 300, ..Faults::default() });
    look(&rack);
    try_factory(&rack).await;
    let under_way = |found: &[Value]| {
        let detail = found.first().and_then(|bmc| bmc["detail"].as_str());
        found.first().is_some_and(|bmc| bmc["state"] == "met")
            || detail.is_some_and(|words| words.contains("logged in"))
    };
    found(&rack, "it is being logged in to", under_way).await;
    rack.restart(Service::Agent).await;
    look(&rack);
    rack.restart(Service::Controller).await;
    let met = |found: &[Value]| is(&["met"])(found) && found[0]["identity"].is_object();
    let told = found(&rack, "it says whose it is", met).await;
    assert_eq!(told[0]["identity"]["serial"], json!(machine.mainboard().0));
    running.bmc.set_faults(Faults { locks_after: 3, ..Faults::default() });

    rack.ready(&machine).await;
    found(&rack, "it is its machine's", is(&["joined"])).await;
    bmc_becomes(&rack, &machine, "it has another password", |told| told["rotated"].is_string()).await;
    assert_ne!(password(&running), "calvin");
    assert!(!running.bmc.lock().is_locked());
    let stored = std::fs::read_to_string(rack.path("agent/bmcs.json")).unwrap();
    assert!(!stored.contains("calvin") && !stored.contains(&password(&running)), "{stored}");
    rack.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whose_bmc_it_is_is_disputed_with_both_sides_shown_and_nobody_is_joined() {
    let mut rack = VirtualRack::new().await;
    let (machine, other) = (rack.machine(Model::default()), rack.machine(Model::default()));
    rack.ready(&machine).await;
    // Two say that they are of one machine, and a third is not whose the manifest says.
    let (_one, _) = bmc_at(&machine, fresh(&machine), there(&rack, 57)).await;
    let (_two, _) = bmc_at(&machine, fresh(&machine), there(&rack, 58)).await;
    let (three, _) = bmc_at(&other, fresh(&other), there(&rack, 59)).await;
    let row = json!({
        "serial": "ANOTHER", "address": format!("{}:{REDFISH}", rack.host(59)), "protocol": "redfish",
        "user": "root", "password": "calvin",
    });
    let import = json!({"bmcs": [row]});
    rack.operator.ask(Method::POST, "/v1/racks/r1/expected-bmcs", Some(import)).await.unwrap();
    look(&rack);
    let is_any = |found: &[Value]| found.len() == 3 && found[2]["state"] == "disputed";
    let told = found(&rack, "the third is disputed", is_any).await;
    let words = told[2]["detail"].as_str().unwrap();
    assert!(words.contains("ANOTHER") && words.contains(&other.mainboard().0), "{words}");
    assert_eq!(password(&three), "calvin");

    try_factory(&rack).await;
    let told = found(&rack, "nobody chooses between two", is(&["disputed"; 3])).await;
    let words = told.iter().filter_map(|bmc| bmc["detail"].as_str()).collect::<Vec<_>>().join("\n");
    for side in [rack.host(57).to_string(), rack.host(58).to_string(), machine.mainboard().0] {
        assert!(words.contains(&side), "{side}: {words}");
    }
    let bmcs = rack.operator.get("/v1/racks/r1/bmcs").await.unwrap();
    assert_eq!(bmcs["items"], json!([]), "one of two was chosen");
    rack.stop().await.unwrap();
}

/// Has a machine reach its own BMC in-band, at this address.
fn answers_in_band(rack: &VirtualRack, machine: &Machine, last: u8) {
    let lan = BmcLan { channel: 1, address: Some(rack.host(last).into()), is_dhcp: Some(true), ..BmcLan::default() };
    let bmc = Some(Bmc { maker: "Dell".into(), lan: vec![lan], ..Bmc::default() });
    machine.fit(Hardware { bmc, ..Hardware::default() });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bmc_that_answers_a_machine_in_band_is_its_own_and_one_that_says_otherwise_is_disputed() {
    let mut rack = VirtualRack::new().await;
    let (machine, other) = (rack.machine(Model::default()), rack.machine(Model::default()));
    answers_in_band(&rack, &machine, 57);
    answers_in_band(&rack, &other, 60);
    for machine in [&machine, &other] {
        let name = rack.ready(machine).await["name"].as_str().unwrap().to_owned();
        let told = async || {
            let known = rack.operator.get(&format!("/v1/machines/{name}/hardware")).await.unwrap();
            if known["hardware"]["bmc"]["lan"][0]["channel"] == 1 { Ok(()) } else { Err(known.to_string()) }
        };
        wait::until("it tells which BMC it has", PATIENCE, told).await;
    }
    // One says nothing of whose it is; the other says that it is the machine's that finds its own elsewhere.
    let silent = Personality { serial: String::new(), uuid: uuid::Uuid::nil(), ..fresh(&machine) };
    let (_one, _) = bmc_at(&machine, silent, there(&rack, 57)).await;
    let (two, _) = bmc_at(&other, fresh(&other), there(&rack, 58)).await;
    look(&rack);
    try_factory(&rack).await;
    let told = found(&rack, "one is joined and one disputed", is(&["joined", "disputed"])).await;
    let row = rack.operator.machine(machine.mac()).await.unwrap().unwrap();
    assert_eq!(told[0]["machine"], row["id"]);
    let words = told[1]["detail"].as_str().unwrap();
    for side in [rack.host(58).to_string(), rack.host(60).to_string(), other.mainboard().0] {
        assert!(words.contains(&side), "{side}: {words}");
    }
    assert_eq!(password(&two), "calvin");
    rack.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_killed_anywhere_in_a_first_login_locks_no_account_and_gets_in_with_the_right_password() {
    for protocol in [Protocol::Ipmi, Protocol::Redfish] {
        let mut kills = 0;
        for turns in 1.. {
            // Another node each time: nothing was denied yet.
            let bench = Bench::new(protocol, Personality::generic(1)).await;
            let stranger = |password: &str| Stranger {
                at: bench.at().to_string().parse().unwrap(),
                protocol,
                user: "rackhand".into(),
                password: password.into(),
                fingerprint: None,
            };
            let mut is_killed = false;
            for _ in 0..4 {
                let wrong = stranger("wrong");
                let login = async move |agent: Bmcs| drop(agent.first_login(wrong).await);
                let is_now = bench.killed_in(turns, login).await;
                kills += usize::from(is_now);
                is_killed |= is_now;
            }
            let (denied, is_locked) = bench.denied();
            assert!(denied <= 2 && !is_locked, "after {turns} turns {denied} logins were denied");
            if !is_killed {
                let met = bench.agent().first_login(stranger(FIRST)).await;
                assert!(matches!(met, Met::Rests { .. }), "{met:?}");
                break;
            }
        }
        // How often a login waits depends on how soon the BMC answers: a few times in any case.
        assert!(kills > 2, "it was killed {kills} times only");
        let bench = Bench::new(protocol, Personality::generic(1)).await;
        let stranger = Stranger {
            at: bench.at().to_string().parse().unwrap(),
            protocol,
            user: "rackhand".into(),
            password: FIRST.into(),
            fingerprint: None,
        };
        // A login that was taken is no denied one, however often it is made.
        for _ in 0..4 {
            let met = bench.agent().meet(stranger.clone()).await;
            let Met::In { identity, .. } = met else { panic!("{met:?}") };
            assert_eq!(identity.serial.as_deref(), Some("SN000001"));
        }
    }
}
