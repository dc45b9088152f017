//! Machines' health, decided by rules from what their BMCs tell.

use std::{sync::Arc, time::Duration};

use jiff::SignedDuration;
use rackhand_agent::health::{Config, rules::Rules};
use rackhand_bmc_sim::Personality;
use rackhand_common::{
    explanation::{Explanation, Stands},
    health::{Standing, State},
    time::Clock as _,
    wire::{LocalRequest, LocalResponse},
};
use rackhand_tests::{Machine, Model, VirtualRack, operator::PATIENCE, rack::Service, wait};
use reqwest::Method;
use serde_json::{Value, json};

use super::bmc::{bmc, reach};

/// A fan counts at once, and is over when it was for three seconds.
const RULES: &str = r#"
[[rule]]
name = "fan"
clear = "3s"
while_on = true
part = "replace the fan {subject}"
reading = { kind = ["fan"], by_bmc = true }
"#;

/// What a fan reads that stands, and one that turns.
const STANDS: f64 = 0.0;
const TURNS: f64 = 8400.0;

/// Has the agent look every second.
fn look_often(rack: &VirtualRack) {
    let rules = Arc::new(Rules::with(&[("story.toml".into(), RULES.into())]).unwrap());
    let second = Duration::from_secs(1);
    let told = rack.reload_agent(|config| config.health = Config { sensors: second, log: second, at_once: 2, rules });
    assert!(told.unwrap().contains("health"), "it is not taken over");
}

async fn path(rack: &VirtualRack, machine: &Machine) -> String {
    let row = rack.operator.machine(machine.mac()).await.unwrap().unwrap();
    format!("/v1/machines/{}/health", row["id"].as_str().unwrap())
}

/// Waits until a machine fares so, as the controller has it.
async fn fares(rack: &VirtualRack, machine: &Machine, state: &str) -> Value {
    let path = path(rack, machine).await;
    let fares = async || match rack.operator.get(&path).await {
        Ok(health) if health["state"] == state && !health["since"].is_null() => Ok(health),
        other => Err(format!("{other:?}")),
    };
    wait::until(&format!("the machine is {state}"), PATIENCE, fares).await
}

/// How it fares, as its node has it.
async fn fares_there(rack: &VirtualRack, machine: &Machine) -> Standing {
    let mut agent = rackhand_agent::local::Client::connect(&rack.path("agent.sock")).await.unwrap();
    let answer = agent.ask(&LocalRequest::Health(Some(machine.mac().to_string()))).await.unwrap();
    let LocalResponse::Health(told) = answer else { panic!("{answer:?}") };
    serde_json::from_str::<Vec<Standing>>(&told).unwrap().remove(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_critical_machine_is_given_to_nobody_until_it_is_well_and_an_active_one_is_left_alone() {
    let mut rack = VirtualRack::new().await;
    rack.image("sim-1", 3).await;
    let machine = rack.machine(Model::default());
    rack.ready(&machine).await;
    let (running, _behind) = bmc(&machine, Personality::generic(1)).await;
    look_often(&rack);
    reach(&rack, &machine, "ipmi", running.ipmi).await;
    let well = fares(&rack, &machine, "ok").await;
    assert_eq!(well["causes"], json!([]), "{well}");

    assert!(running.bmc.inject("Fan1", STANDS));
    let critical = fares(&rack, &machine, "critical").await;
    let cause = &critical["causes"][0];
    assert_eq!(
        (&cause["rule"], &cause["subject"], &cause["part"]),
        (&json!("fan"), &json!("Fan1"), &json!("replace the fan Fan1"))
    );
    assert!(cause["reading"].as_str().unwrap().starts_with("0 rpm"), "{cause}");
    let listed = rack.operator.get("/v1/machines?health=critical").await.unwrap();
    assert_eq!(listed["items"][0]["health"], "critical", "{listed}");
    let refused = format!("{:#}", rack.operator.deploy(machine.mac(), "sim-1").await.unwrap_err());
    for words in ["is critical", "Fan1: 0 rpm", "replace the fan Fan1", "rackhand machine health override"] {
        assert!(refused.contains(words), "{refused}");
    }
    let [(_, controller), (_, agent)] = rack.metrics().await.unwrap();
    assert!(controller.contains("rackhand_machines_health{state=\"critical\"} 1"), "{controller}");
    assert!(controller.contains("rackhand_machines{lifecycle=\"ready\"} 1"), "{controller}");
    assert!(agent.contains(",state=\"critical\"} 1") && agent.contains("sensor=\"Fan1\",unit=\"rpm\"} 0"), "{agent}");

    running.bmc.inject("Fan1", TURNS);
    let well = fares(&rack, &machine, "ok").await;
    let states: Vec<_> = well["transitions"].as_array().unwrap().iter().map(|told| told["state"].clone()).collect();
    assert_eq!(states, ["ok", "critical", "ok"]);
    rack.operator.deploy(machine.mac(), "sim-1").await.unwrap();
    rack.becomes(&machine, "active").await;

    running.bmc.inject("Fan2", STANDS);
    fares(&rack, &machine, "critical").await;
    let row = rack.operator.machine(machine.mac()).await.unwrap().unwrap();
    assert_eq!((&row["lifecycle"], &row["run"], &row["power"]), (&json!("active"), &Value::Null, &json!("on")));
    let told = rack.operator.history(machine.mac()).await.unwrap();
    assert!(told.iter().any(|(_, text)| text.contains("health is critical: Fan2")), "{told:?}");
    rack.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_override_has_a_critical_machine_given_out_and_ends_by_itself() {
    let mut rack = VirtualRack::new().await;
    rack.image("sim-1", 3).await;
    let machine = rack.machine(Model::default());
    rack.ready(&machine).await;
    let (running, _behind) = bmc(&machine, Personality::generic(1)).await;
    running.bmc.inject("Fan1", STANDS);
    look_often(&rack);
    reach(&rack, &machine, "ipmi", running.ipmi).await;
    fares(&rack, &machine, "critical").await;
    let path = path(&rack, &machine).await;
    let until = |hours| rack.wall.now().wall + SignedDuration::from_hours(hours);
    let set = async |hours| {
        let body = json!({"reason": "the fan is ordered", "expires": until(hours)});
        rack.operator.ask(Method::PUT, &format!("{path}/override"), Some(body)).await
    };
    assert!(set(24 * 91).await.is_err() && set(-1).await.is_err(), "an override without an end");
    set(1).await.unwrap();
    assert_eq!(rack.operator.get(&path).await.unwrap()["override"]["reason"], "the fan is ordered");
    rack.wall.forward(SignedDuration::from_hours(2));
    assert_eq!(rack.operator.get(&path).await.unwrap()["override"], Value::Null);
    let refused = rack.operator.deploy(machine.mac(), "sim-1").await.unwrap_err();
    assert!(format!("{refused:#}").contains("is critical"), "{refused:#}");
    set(1).await.unwrap();
    rack.operator.deploy(machine.mac(), "sim-1").await.unwrap();
    rack.becomes(&machine, "active").await;
    rack.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_found_while_the_controller_is_away_outlives_a_kill_and_is_told_later() {
    let mut rack = VirtualRack::new().await;
    let machine = rack.machine(Model::default());
    rack.ready(&machine).await;
    let (running, _behind) = bmc(&machine, Personality::generic(1)).await;
    look_often(&rack);
    reach(&rack, &machine, "redfish", running.redfish).await;
    fares(&rack, &machine, "ok").await;
    // What is read is written within a few seconds, what is found at once.
    let series = format!("{}/series?sensor=Fan1", path(&rack, &machine).await);
    let told = async |rack: &VirtualRack| match rack.operator.get(&series).await {
        Ok(series) if !series["points"].as_array().unwrap().is_empty() => Ok(series),
        other => Err(format!("{other:?}")),
    };
    let before = wait::until("the series is told", PATIENCE, async || told(&rack).await).await;

    rack.kill(Service::Controller).await;
    running.bmc.inject("Fan1", STANDS);
    let found = async || match fares_there(&rack, &machine).await {
        Standing { verdict: Some(verdict), .. } if verdict.state == State::Critical => Ok(()),
        other => Err(format!("{other:?}")),
    };
    wait::until("the node finds it", PATIENCE, found).await;
    rack.kill(Service::Agent).await;
    // Nobody can find it again.
    running.bmc.inject("Fan1", TURNS);
    drop(running);
    rack.start(Service::Agent).await;
    let kept = fares_there(&rack, &machine).await.verdict.unwrap();
    assert_eq!((kept.state, kept.causes[0].subject.as_str()), (State::Critical, "Fan1"));
    rack.start(Service::Controller).await;
    let late = fares(&rack, &machine, "critical").await;
    assert_eq!(late["causes"][0]["subject"], "Fan1", "{late}");

    let after = wait::until("the series is told", PATIENCE, async || told(&rack).await).await;
    assert_eq!((&after["points"][0], &after["unit"]), (&before["points"][0], &json!("rpm")), "{after}");
    let other = format!("{}/series?sensor=Fan99", path(&rack, &machine).await);
    let refused = format!("{:#}", rack.operator.get(&other).await.unwrap_err());
    assert!(refused.contains("there are:") && refused.contains("Fan1"), "{refused}");
    rack.stop().await.unwrap();
}

/// What the node concludes of a machine.
async fn explained(rack: &VirtualRack, machine: &Machine) -> Explanation {
    let mut agent = rackhand_agent::local::Client::connect(&rack.path("agent.sock")).await.unwrap();
    let answer = agent.ask(&LocalRequest::Why(machine.mac().to_string())).await.unwrap();
    let LocalResponse::Why(told) = answer else { panic!("{answer:?}") };
    serde_json::from_str(&told).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_technician_is_told_what_is_wrong_and_the_right_lamp_is_lit_with_the_controller_away() {
    let mut rack = VirtualRack::new().await;
    let machine = rack.machine(Model::default());
    rack.ready(&machine).await;
    let (running, _behind) = bmc(&machine, Personality::generic(1)).await;
    look_often(&rack);
    reach(&rack, &machine, "ipmi", running.ipmi).await;
    fares(&rack, &machine, "ok").await;
    let well = explained(&rack, &machine).await;
    assert_eq!((well.stands, well.part), (Stands::Well, None), "{}", well.verdict);

    rack.kill(Service::Controller).await;
    assert!(running.bmc.inject("Fan1", STANDS));
    let told = wait::until("the fan is to blame, and the controller away", PATIENCE, async || {
        let told = explained(&rack, &machine).await;
        let is_away = told.also.iter().any(|also| also.contains("controller is out of reach"));
        if told.stands == Stands::Faulty && is_away { Ok(told) } else { Err(format!("{told:?}")) }
    })
    .await;
    assert_eq!(told.part.as_deref(), Some("replace the fan Fan1"), "{told:?}");

    let mut agent = rackhand_agent::local::Client::connect(&rack.path("agent.sock")).await.unwrap();
    let mut light = async |seconds| {
        let answer = agent.ask(&LocalRequest::Identify(machine.mac().to_string(), seconds)).await.unwrap();
        assert_eq!(answer, LocalResponse::Identified);
    };
    let is_lit = || running.bmc.is_identified();
    light(3600).await;
    assert!(is_lit());
    light(0).await;
    assert!(!is_lit());
    light(1).await;
    let dark = async || if is_lit() { Err("lit".to_owned()) } else { Ok(()) };
    wait::until("the lamp goes out by itself", PATIENCE, dark).await;
    light(3600).await;
    rack.stop().await.unwrap();
    assert!(!is_lit(), "an agent that ends leaves a lamp lit");
}

/// Has the agent look at sensors every two seconds, and at the log once in an hour.
fn look_at_logs_seldom(rack: &VirtualRack) {
    let rules = Arc::new(Rules::with(&[]).unwrap());
    let (sensors, log) = (Duration::from_secs(2), Duration::from_secs(3600));
    let told = rack.reload_agent(|config| config.health = Config { sensors, log, at_once: 2, rules });
    assert!(told.unwrap().contains("health"), "it is not taken over");
}

/// An uncorrectable ECC error of a memory module (IPMI 2.0 table 42-3).
fn memory_fails(running: &rackhand_bmc_sim::Running) {
    let mut record = [0; 16];
    (record[2], record[7], record[9]) = (0x02, 0x20, 0x04);
    (record[10], record[11], record[12], record[13]) = (0x0c, 0x01, 0x6f, 0x01);
    running.bmc.lock().log.add(jiff::Timestamp::now(), record).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_of_a_bmc_is_seen_at_once_is_only_a_hint_and_its_subscription_is_kept_up() {
    let mut rack = VirtualRack::new().await;
    rack.take_events().await;
    let machine = rack.machine(Model::default());
    rack.ready(&machine).await;
    let (running, _behind) = bmc(&machine, Personality::generic(1)).await;
    look_at_logs_seldom(&rack);
    reach(&rack, &machine, "redfish", running.redfish).await;
    fares(&rack, &machine, "ok").await;
    let there = || running.bmc.lock().subscriptions.clone();
    let base = format!("https://{}:8446/", rack.host(1));
    let subscribed = async || match &there()[..] {
        [(_, destination, context)] if destination.starts_with(&base) && destination.ends_with(context.as_str()) => {
            Ok(destination.clone())
        }
        other => Err(format!("{other:?}")),
    };
    let destination = wait::until("the BMC was told where to post", PATIENCE, subscribed).await;

    // Its log is read in its turn in an hour.
    let failed = std::time::Instant::now();
    memory_fails(&running);
    let critical = fares(&rack, &machine, "critical").await;
    assert_eq!(critical["causes"][0]["rule"], "memory-uncorrectable", "{critical}");
    assert!(failed.elapsed() < Duration::from_secs(20), "{:?}", failed.elapsed());

    // Whoever posts a thousand that are not so causes a look once in a while, and changes nothing.
    let client = reqwest::Client::builder().tls_danger_accept_invalid_certs(true).no_proxy().build().unwrap();
    let transitions = critical["transitions"].as_array().unwrap().len();
    let before = running.bmc.lock().requests;
    let began = std::time::Instant::now();
    let forged = json!({"Events": [{"MessageSeverity": "OK", "Message": "all is well"}]}).to_string();
    for number in 0..300 {
        let to = if number % 2 == 0 { destination.clone() } else { format!("{base}redfish-events/0123") };
        // Some are refused: only so many connections are taken.
        let _ = client.post(to).body(forged.clone()).send().await;
    }
    let looks = running.bmc.lock().requests - before;
    let most = (began.elapsed().as_secs() / 2 + 2) * 60;
    assert!(looks < most, "{looks} requests, more than {most}");
    let fares_still = rack.operator.get(&path(&rack, &machine).await).await.unwrap();
    assert_eq!(fares_still["state"], "critical", "{fares_still}");
    assert_eq!(fares_still["transitions"].as_array().unwrap().len(), transitions, "{fares_still}");

    // A BMC that forgot it in a restart is told again; so is one whose agent was killed, at another name, and
    // what was there before is ended. One that stops takes it back.
    running.bmc.lock().subscriptions.clear();
    running.bmc.restart(SignedDuration::from_secs(10));
    wait::until("the BMC was told again", PATIENCE, subscribed).await;
    rack.kill(Service::Agent).await;
    rack.start(Service::Agent).await;
    look_at_logs_seldom(&rack);
    let anew = async || match subscribed().await {
        Ok(now) if now != destination => Ok(()),
        other => Err(format!("{other:?}")),
    };
    wait::until("the BMC was told by the new process", PATIENCE, anew).await;
    rack.stop().await.unwrap();
    assert_eq!(there(), [], "it stopped, and the BMC still posts");
}
