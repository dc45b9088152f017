//! A BMC that lets us in no more is regained in-band, by the installer of the machine that it is in.

use jiff::SignedDuration;
use rackhand_bmc_sim::{Faults, Personality, Role, Rotation, Running, User};
use rackhand_tests::{Machine, Model, VirtualRack, operator::PATIENCE, rack::Service, wait};
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    baseline::handed_out,
    bmc::{bmc, path, reach},
};

/// What a tenant with root tells the BMC by the system interface, as `ipmitool` would.
fn in_band(running: &Running, command: u8, data: &[u8]) {
    running.bmc.in_band(0x06, command, data).unwrap();
}

/// A password of the tenant's, where ours was, and a way of theirs.
fn take(running: &Running) {
    let mut data = [0; 18];
    data[..2].copy_from_slice(&[2, 2]);
    data[2..14].copy_from_slice(b"canary-taken");
    in_band(running, 0x47, &data);
    running.bmc.lock().users[4] = User {
        name: "support".into(),
        password: b"canary-door".to_vec(),
        is_long: false,
        is_enabled: true,
        role: Some(Role::Administrator),
    };
    // Who is logged in stays so at many BMCs, until they start anew.
    running.bmc.restart(SignedDuration::ZERO);
}

fn password(running: &Running) -> String {
    let state = running.bmc.lock();
    let (_, user) = state.user("rackhand").expect("it has our user");
    String::from_utf8(user.password.clone()).unwrap()
}

/// Waits until the latest run has a detail that says so.
async fn run_says(rack: &VirtualRack, words: &str) -> Value {
    let says = async || {
        let runs = rack.operator.get("/v1/runs").await.map_err(|error| format!("{error:#}"))?;
        let run = runs["items"][0].clone();
        let is_so = run["detail"].as_str().is_some_and(|detail| detail.contains(words));
        is_so.then(|| run.clone()).ok_or_else(|| run.to_string())
    };
    wait::until(&format!("the run says {words:?}"), PATIENCE, says).await
}

/// Nobody has seen this password: not the history, not the runs, not what is told of BMCs.
async fn is_secret(rack: &VirtualRack, machine: &Machine, password: &str) {
    let mut told: Vec<String> = Vec::new();
    for line in rack.operator.history(machine.mac()).await.unwrap() {
        told.push(format!("{line:?}"));
    }
    for path in ["/v1/runs", "/v1/racks/r1/bmcs", "/v1/machines"] {
        told.push(rack.operator.get(path).await.unwrap().to_string());
    }
    let seen = told.iter().find(|told| told.contains(password) || told.contains("canary-taken"));
    assert_eq!(seen, None);
}

async fn taken_and_released(protocol: &str, sabotage: impl Fn(&Running)) {
    let mut rack = VirtualRack::new().await;
    let (machine, running) = handed_out(&mut rack, protocol).await;
    machine.wire(running.bmc.clone());
    running.bmc.set_faults(Faults { locks_after: 3, ..Faults::default() });
    take(&running);
    sabotage(&running);

    rack.operator.act(machine.mac(), "release", json!({})).await.unwrap();
    // Its BMC switches it no more: a person does.
    run_says(&rack, "by hand").await;
    machine.reset(true);
    rack.becomes(&machine, "ready").await;

    let ours = password(&running);
    assert_ne!(ours, "canary-taken");
    {
        let state = running.bmc.lock();
        assert!(!state.is_locked(), "the account is locked");
        assert!(state.user("support").is_none_or(|(_, user)| !user.is_enabled), "somebody's account is left");
    }
    is_secret(&rack, &machine, &ours).await;
    let listed = rack.operator.get(&path(&rack, &machine).await).await.unwrap();
    assert!(listed["rotated"].is_string() && listed["rotation"].is_null() && listed["denied"] == json!(0), "{listed}");
    let identity = rack.operator.get(&format!("{}/identity", path(&rack, &machine).await)).await.unwrap();
    assert_eq!(identity["identity"]["power"], json!("on"));
    rack.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bmc_whose_password_a_tenant_changed_is_regained_in_its_release_over_redfish() {
    taken_and_released("redfish", |_| {}).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bmc_that_a_tenant_took_our_user_from_is_regained_in_its_release_over_ipmi() {
    let remove = |running: &Running| in_band(running, 0x45, &[&[2][..], &[0; 16]].concat());
    taken_and_released("ipmi", remove).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bmc_that_lies_about_its_password_quarantines_its_machine_with_the_reason() {
    let mut rack = VirtualRack::new().await;
    let (machine, running) = handed_out(&mut rack, "redfish").await;
    machine.wire(running.bmc.clone());
    take(&running);
    running.bmc.set_faults(Faults { password: Rotation::SaidNotDone, locks_after: 4, ..Faults::default() });
    rack.operator.act(machine.mac(), "release", json!({})).await.unwrap();
    run_says(&rack, "by hand").await;
    machine.reset(true);
    let told = rack.becomes(&machine, "quarantined").await;
    let reason = told["held"]["reason"].as_str().unwrap_or_else(|| panic!("{told}")).to_owned();
    assert!(reason.starts_with("release bmc: its BMC was not given another password: "), "{reason}");
    assert!(reason.contains("not regained in-band") || reason.contains("nor was it regained in-band"), "{reason}");
    assert!(reason.contains("does not know the password"), "{reason}");
    assert_eq!(password(&running), "canary-taken");
    assert!(!running.bmc.lock().is_locked(), "the account is locked");

    // When it does what it is told again, it is regained by whoever asks for that.
    running.bmc.set_faults(Faults { locks_after: 4, ..Faults::default() });
    rack.wait_for(&machine, "in its installer", |row| row["installer"] == json!(true)).await;
    let regain = format!("{}/regain", path(&rack, &machine).await);
    rack.operator.ask(Method::POST, &regain, Some(json!({}))).await.unwrap();
    let done = async || {
        let runs = rack.operator.get("/v1/runs").await.map_err(|error| format!("{error:#}"))?;
        let run = runs["items"][0].clone();
        (run["status"] == json!("done")).then_some(()).ok_or_else(|| run.to_string())
    };
    wait::until("the BMC is regained", PATIENCE, done).await;
    assert_ne!(password(&running), "canary-taken");
    rack.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bmc_is_regained_although_whoever_does_it_is_killed_in_the_middle() {
    let mut rack = VirtualRack::new().await;
    let (machine, running) = handed_out(&mut rack, "redfish").await;
    machine.wire(running.bmc.clone());
    running.bmc.set_faults(Faults { locks_after: 3, ..Faults::default() });
    take(&running);
    rack.operator.act(machine.mac(), "release", json!({})).await.unwrap();
    run_says(&rack, "by hand").await;
    // The machine loses its power when its BMC has a password, and the user is not enabled yet.
    machine.reset_in_band_after(15);
    machine.reset(true);
    let pulled = async || (!machine.resets_in_band()).then_some(()).ok_or_else(|| machine.screen());
    wait::until("the plug was pulled", PATIENCE, pulled).await;
    for service in [Service::Agent, Service::Controller, Service::Boot] {
        rack.restart(service).await;
    }
    rack.becomes(&machine, "ready").await;
    assert_ne!(password(&running), "canary-taken");
    assert!(!running.bmc.lock().is_locked(), "the account is locked");
    rack.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bmc_that_never_knew_us_is_regained_and_one_that_somebody_uses_is_not_touched() {
    let mut rack = VirtualRack::new().await;
    rack.image("sim-1", 3).await;
    let machine = rack.machine(Model::default());
    rack.ready(&machine).await;
    let (running, _behind) = bmc(&machine, Personality::generic(1)).await;
    machine.wire(running.bmc.clone());
    {
        let user = &mut running.bmc.lock().users[1];
        (user.name, user.password) = ("root".into(), b"canary-factory".to_vec());
    }
    // Nor is there a way for IPMI over its LAN.
    in_band(&running, 0x40, &[1, 0x80, 0x84]);
    assert!(running.bmc.lock().is_lan_closed);
    reach(&rack, &machine, "ipmi", running.ipmi).await;
    let bmc = path(&rack, &machine).await;
    rack.operator.ask(Method::POST, &format!("{bmc}/regain"), Some(json!({}))).await.unwrap();
    let regained = async || {
        let told = rack.operator.get(&bmc).await.map_err(|error| format!("{error:#}"))?;
        told["rotated"].is_string().then_some(()).ok_or_else(|| told.to_string())
    };
    wait::until("the BMC has a password of ours", PATIENCE, regained).await;
    assert_eq!(running.bmc.lock().users[1].password, b"canary-factory", "another's account was touched");
    assert!(!running.bmc.lock().is_lan_closed);
    rack.wait_for(&machine, "idle", |row| row["run"].is_null()).await;

    rack.operator.deploy(machine.mac(), "sim-1").await.unwrap();
    rack.becomes(&machine, "active").await;
    let before = password(&running);
    let refused = rack.operator.ask(Method::POST, &format!("{bmc}/regain"), Some(json!({}))).await.unwrap_err();
    assert!(format!("{refused:#}").contains("cannot regain-bmc a machine that is active"), "{refused:#}");
    assert_eq!(password(&running), before);
    rack.stop().await.unwrap();
}
