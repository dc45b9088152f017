//! Machines that are switched by their BMCs.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use rackhand_bmc_sim::{Addresses, Boot, Chassis, Faults, Personality, Running, Simulator, ToldUuid};
use rackhand_common::{
    bmc::Look,
    wire::{LocalRequest, LocalResponse},
};
use rackhand_tests::{Machine, Model, VirtualRack, operator::PATIENCE, rack::Service, wait};
use reqwest::Method;
use serde_json::{Value, json};

/// What must be found nowhere but with the BMC and sealed.
const PASSWORD: &str = "canary-b3c0";

/// A machine, and how often its BMC changed its power.
pub(super) struct Behind {
    machine: Machine,
    switched: AtomicU32,
}

impl Behind {
    /// How often its BMC changed its power.
    pub(super) fn switched(&self) -> u32 {
        self.switched.load(Ordering::Relaxed)
    }
}

impl Chassis for Behind {
    fn power(&self) -> bool {
        Chassis::power(&self.machine)
    }

    fn set_power(&self, on: bool) -> Result<(), String> {
        self.switched.fetch_add(1, Ordering::Relaxed);
        Chassis::set_power(&self.machine, on)
    }

    fn set_boot(&self, boot: &Boot) -> Result<(), String> {
        self.machine.set_boot(boot)
    }
}

/// Puts a BMC in front of a machine.
pub(super) async fn bmc(machine: &Machine, mut personality: Personality) -> (Running, Arc<Behind>) {
    (personality.serial, personality.uuid) = machine.mainboard();
    personality.users[0].name = "rackhand".into();
    personality.users[0].password = PASSWORD.into();
    bmc_at(machine, personality, Addresses::default()).await
}

/// The same of this personality, there.
pub(super) async fn bmc_at(machine: &Machine, personality: Personality, there: Addresses) -> (Running, Arc<Behind>) {
    let behind = behind(machine);
    (Simulator::start(personality, behind.clone(), there).await.unwrap(), behind)
}

/// What a machine's BMC switches.
pub(super) fn behind(machine: &Machine) -> Arc<Behind> {
    Arc::new(Behind { machine: machine.clone(), switched: AtomicU32::new(0) })
}

/// The path of a machine's BMC.
pub(super) async fn path(rack: &VirtualRack, machine: &Machine) -> String {
    let row = rack.operator.machine(machine.mac()).await.unwrap().unwrap();
    format!("/v1/racks/r1/bmcs/{}", row["id"].as_str().unwrap())
}

pub(super) async fn reach(rack: &VirtualRack, machine: &Machine, protocol: &str, at: SocketAddr) {
    let access = json!({
        "address": at.to_string(), "protocol": protocol, "user": "rackhand", "password": PASSWORD,
    });
    let told = rack.operator.ask(Method::PUT, &path(rack, machine).await, Some(access)).await.unwrap();
    assert!(!told.to_string().contains(PASSWORD), "{told}");
}

/// Asks until the agent has been told.
async fn look(rack: &VirtualRack, machine: &Machine, what: &str) -> Value {
    let path = format!("{}/{what}", path(rack, machine).await);
    let look = async || rack.operator.get(&path).await.map_err(|error| format!("{error:#}"));
    wait::until("the BMC is asked", PATIENCE, look).await
}

async fn there_and_back(protocol: &str) {
    let mut rack = VirtualRack::new().await;
    rack.image("sim-1", 3).await;
    let machine = rack.machine(Model::default());
    rack.ready(&machine).await;
    let (running, behind) = bmc(&machine, Personality::generic(1)).await;
    let at = if protocol == "ipmi" { running.ipmi } else { running.redfish };
    reach(&rack, &machine, protocol, at).await;
    let row = rack.operator.machine(machine.mac()).await.unwrap().unwrap();
    let listed = rack.operator.get("/v1/racks/r1/bmcs").await.unwrap();
    let listed = &listed["items"][0];
    assert_eq!((&listed["machine"], &listed["machine_name"]), (&row["id"], &row["name"]));

    let identity = look(&rack, &machine, "identity").await;
    assert_eq!((&identity["identity"]["power"], &identity["identity"]["protocol"]), (&json!("on"), &json!(protocol)));
    let sensors = look(&rack, &machine, "sensors").await;
    assert!(sensors["sensors"]["readings"].as_array().unwrap().len() > 5, "{sensors}");

    rack.operator.deploy(machine.mac(), "sim-1").await.unwrap();
    rack.becomes(&machine, "active").await;
    rack.operator.act(machine.mac(), "release", json!({})).await.unwrap();
    rack.becomes(&machine, "ready").await;
    assert!(behind.switched.load(Ordering::Relaxed) >= 2, "it was switched in another way");
    for line in rack.operator.history(machine.mac()).await.unwrap() {
        assert!(!format!("{line:?}").contains(PASSWORD), "{line:?}");
    }
    rack.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_is_released_by_its_bmc_over_ipmi() {
    there_and_back("ipmi").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_is_released_by_its_bmc_over_redfish() {
    there_and_back("redfish").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_controller_away_and_the_agent_started_anew_a_bmc_is_still_known_and_its_certificate_too() {
    let mut rack = VirtualRack::new().await;
    let machine = rack.machine(Model::default());
    rack.ready(&machine).await;
    let (running, behind) = bmc(&machine, Personality::generic(1)).await;
    let at = running.redfish;
    reach(&rack, &machine, "redfish", at).await;
    look(&rack, &machine, "identity").await;
    let stored = std::fs::read_to_string(rack.path("agent").join("bmcs.json")).unwrap();
    assert!(!stored.contains(PASSWORD), "a password is stored in clear");

    rack.kill(Service::Controller).await;
    rack.restart(Service::Agent).await;
    let answer = ask_node(&rack, &machine).await;
    assert!(matches!(answer, LocalResponse::Seen(_)), "{answer:?}");

    // Somebody else answers there now.
    drop(running);
    let there = Addresses { redfish: at, ..Addresses::default() };
    let start = async || {
        let started = Simulator::start(Personality::generic(2), behind.clone(), there).await;
        started.map_err(|error| error.to_string())
    };
    let _other = wait::until("another BMC is there", PATIENCE, start).await;
    let look = async || match ask_node(&rack, &machine).await {
        LocalResponse::Unavailable(reason) if reason.contains("not the BMC it was") => Ok(reason),
        other => Err(format!("{other:?}")),
    };
    let answer = wait::until("it is not believed", PATIENCE, look).await;
    assert!(!answer.contains(PASSWORD), "{answer}");
    rack.stop().await.unwrap();
}

/// What the node's own tool is answered.
async fn ask_node(rack: &VirtualRack, machine: &Machine) -> LocalResponse {
    let mut agent = rackhand_agent::local::Client::connect(&rack.path("agent.sock")).await.unwrap();
    agent.ask(&LocalRequest::Look(machine.mac().to_string(), Look::Sensors)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bmc_of_another_machine_switches_nothing_and_is_named() {
    let mut rack = VirtualRack::new().await;
    let machine = rack.machine(Model::default());
    rack.ready(&machine).await;
    let (running, behind) = bmc(&machine, Personality::generic(1)).await;
    running.bmc.lock().personality.serial = "ANOTHER".into();
    running.bmc.set_faults(Faults { uuid: ToldUuid::Wrong, ..Faults::default() });
    reach(&rack, &machine, "redfish", running.redfish).await;
    look(&rack, &machine, "identity").await;

    rack.operator.act(machine.mac(), "power", json!({"action": "off"})).await.unwrap();
    let is_over = async || {
        let row = rack.operator.machine(machine.mac()).await.unwrap().unwrap();
        row["run"].is_null().then_some(()).ok_or_else(|| row.to_string())
    };
    wait::until("the run is over", PATIENCE, is_over).await;
    let runs = rack.operator.get("/v1/runs?limit=1").await.unwrap();
    let detail = runs["items"][0].to_string();
    assert!(detail.contains("serial number ANOTHER") && detail.contains("failed"), "{detail}");
    assert_eq!(behind.switched.load(Ordering::Relaxed), 0, "another machine was switched");
    rack.stop().await.unwrap();
}

/// What the API says of a machine's BMC, once it is as wanted.
pub(super) async fn bmc_becomes(
    rack: &VirtualRack,
    machine: &Machine,
    what: &str,
    is_so: impl Fn(&Value) -> bool,
) -> Value {
    let look = async || {
        let path = path(rack, machine).await;
        let told = rack.operator.get(&path).await.map_err(|error| format!("{error:#}"))?;
        if is_so(&told) { Ok(told) } else { Err(told.to_string()) }
    };
    wait::until(what, PATIENCE, look).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bmc_of_a_manifest_is_joined_to_its_machine_when_that_is_discovered_and_gets_a_password_of_its_own() {
    let mut rack = VirtualRack::new().await;
    let machine = rack.machine(Model::default());
    let (running, behind) = bmc(&machine, Personality::generic(1)).await;
    let row = |serial: &str, at: &str| json!({"serial": serial, "address": at, "protocol": "redfish", "user": "rackhand", "password": PASSWORD});
    let (ours, at) = (machine.mainboard().0, running.redfish.to_string());
    let import = async |rows: Value| {
        let body = json!({"bmcs": rows, "rotate": true});
        rack.operator.ask(Method::POST, "/v1/racks/r1/expected-bmcs", Some(body)).await
    };
    let refused = import(json!([row(&ours, &at), row("OTHER", "nowhere")])).await.unwrap_err();
    assert!(format!("{refused:#}").contains("line 2: /address"), "{refused:#}");
    let made = import(json!([row(&ours, &at), row("OTHER", "127.0.0.1:9")])).await.unwrap();
    assert_eq!((&made["waiting"], &made["set"]), (&json!(2), &json!(0)), "{made}");

    rack.ready(&machine).await;
    let told = bmc_becomes(&rack, &machine, "the BMC has another password", |told| told["rotated"].is_string()).await;
    assert!(told["rotation"].is_null() && !told.to_string().contains(PASSWORD), "{told}");
    let now = String::from_utf8(running.bmc.lock().users[1].password.clone()).unwrap();
    assert!(now != PASSWORD && now.len() == 16, "{now}");
    let identity = look(&rack, &machine, "identity").await;
    assert_eq!(identity["identity"]["identity"]["serial"], json!(ours));
    // The next password comes first, as another agent may have set it.
    assert!(running.bmc.lock().denied.1.get() <= 1, "more than one login was denied");

    // The same manifest again is of no effect; the other one goes on waiting.
    let made = import(json!([row(&ours, &at), row("OTHER", "127.0.0.1:9")])).await.unwrap();
    assert_eq!((&made["unchanged"], &made["waiting"]), (&json!(1), &json!(1)), "{made}");
    look(&rack, &machine, "identity").await;
    rack.operator.act(machine.mac(), "power", json!({"action": "cycle"})).await.unwrap();
    let is_switched = async || match behind.switched.load(Ordering::Relaxed) {
        0 | 1 => Err("not yet".to_owned()),
        _ => Ok(()),
    };
    wait::until("it is switched by its BMC", PATIENCE, is_switched).await;
    for file in ["agent/bmcs.json", "agent/bmcs.new"] {
        let text = std::fs::read_to_string(rack.path(file)).unwrap_or_default();
        assert!(!text.contains(&now) && !text.contains(PASSWORD), "a password is in {file}");
    }
    rack.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_goes_on_when_agent_and_controller_are_killed_in_it() {
    let mut rack = VirtualRack::new().await;
    let machine = rack.machine(Model::default());
    rack.ready(&machine).await;
    let (running, _behind) = bmc(&machine, Personality::generic(1)).await;
    reach(&rack, &machine, "redfish", running.redfish).await;
    look(&rack, &machine, "identity").await;
    running.bmc.set_faults(Faults { locks_after: 3, ..Faults::default() });
    let of_machine = path(&rack, &machine).await;
    let rotate = format!("{of_machine}/rotate");
    let mut before = PASSWORD.to_owned();
    for (round, service) in
        [Service::Agent, Service::Controller, Service::Agent, Service::Controller].iter().enumerate()
    {
        // So slow that it is killed somewhere in between.
        running.bmc.set_faults(Faults { locks_after: 3, slow_ms: 200, ..Faults::default() });
        rack.operator.ask(Method::POST, &rotate, None).await.unwrap();
        // Between the phases: it is set, and not yet proved; or at its beginning.
        let is_reached = async || {
            let is_set = running.bmc.lock().users[1].password != before.as_bytes();
            let told = rack.operator.get(&of_machine).await.map_err(|error| format!("{error:#}"))?;
            let is_begun = round >= 2 && told["rotation"]["is_begun"] == json!(true);
            (is_set || is_begun).then_some(()).ok_or_else(|| told.to_string())
        };
        wait::until("the rotation is under way", PATIENCE, is_reached).await;
        rack.kill(*service).await;
        running.bmc.set_faults(Faults { locks_after: 3, ..Faults::default() });
        rack.start(*service).await;
        bmc_becomes(&rack, &machine, "the BMC has another password", |told| told["rotation"].is_null()).await;
        let now = String::from_utf8(running.bmc.lock().users[1].password.clone()).unwrap();
        assert_ne!(now, before, "round {round}");
        look(&rack, &machine, "identity").await;
        assert!(!running.bmc.lock().is_locked(), "round {round}");
        before = now;
    }
    rack.stop().await.unwrap();
}
