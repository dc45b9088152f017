//! A tenant with root has had a machine's BMC: what it is after the release.

use rackhand_bmc_sim::{Faults, Keys, Personality, Role, Running, Settings, User, certificate};
use rackhand_common::machine::Firmware;
use rackhand_installer::boot_order;
use rackhand_tests::{Machine, Model, VirtualRack, operator::PATIENCE, rack::Service, wait};
use reqwest::Method;
use serde_json::{Value, json};

use super::bmc::{bmc, reach};

/// A machine that somebody has, with its BMC.
pub(super) async fn handed_out(rack: &mut VirtualRack, protocol: &str) -> (Machine, Running) {
    rack.image("sim-1", 3).await;
    let machine = rack.machine(Model::default());
    rack.ready(&machine).await;
    let (running, _behind) = bmc(&machine, Personality::generic(1)).await;
    let at = if protocol == "ipmi" { running.ipmi } else { running.redfish };
    reach(rack, &machine, protocol, at).await;
    rack.operator.deploy(machine.mac(), "sim-1").await.unwrap();
    rack.becomes(&machine, "active").await;
    (machine, running)
}

/// What a tenant with root does to a BMC.
fn sabotage(running: &Running) {
    let mut state = running.bmc.lock();
    state.users[4] = User {
        name: "support".into(),
        password: b"canary-door".to_vec(),
        is_long: false,
        is_enabled: true,
        role: Some(Role::Administrator),
    };
    (state.lan.is_dhcp, state.lan.vlan) = (false, Some(12));
    state.bios.insert("SriovGlobalEnable".into(), "Enabled".into());
    // Its own key may sign what starts, and the vendor's may not.
    state.keys.clear("db");
    state.keys.add("db", None, certificate("dGVuYW50"));
    state.keys.add("KEK", None, certificate("dGVuYW50"));
    state.keys.clear("dbx");
}

/// What of that is there.
fn left(running: &Running) -> Vec<&'static str> {
    let state = running.bmc.lock();
    let there = [
        (state.user("support").is_some_and(|(_, user)| user.is_enabled), "account"),
        (!state.lan.is_dhcp, "address source"),
        (state.lan.vlan.is_some(), "VLAN"),
        (state.bios["SriovGlobalEnable"] != "Disabled", "setting"),
        (contents(&state.keys) != contents(&Keys::factory()), "keys"),
    ];
    there.into_iter().filter_map(|(is_there, what)| is_there.then_some(what)).collect()
}

/// What is in the key databases, whatever its places.
fn contents(keys: &Keys) -> Vec<(String, String)> {
    let all = ["PK", "KEK", "db", "dbx"].into_iter().flat_map(|database| keys.of(database));
    let mut contents: Vec<_> = all.map(|key| (key.database.clone(), key.content.clone())).collect();
    contents.sort();
    contents
}

async fn baseline(rack: &VirtualRack, machine: &Machine) -> (String, Value) {
    let row = rack.operator.machine(machine.mac()).await.unwrap().unwrap();
    let path = format!("/v1/machines/{}/baseline", row["id"].as_str().unwrap());
    let told = rack.operator.get(&path).await.unwrap();
    (path, told)
}

async fn put_back(protocol: &str, stays: &[&str]) {
    let mut rack = VirtualRack::new().await;
    let (machine, running) = handed_out(&mut rack, protocol).await;
    let (path, told) = baseline(&rack, &machine).await;
    assert!(told["recorded"].is_string() && told["accepted_by"].is_null(), "{told}");
    sabotage(&running);
    let password = running.bmc.lock().users[1].password.clone();

    // Before anything is done about it, it can be seen.
    let told = rack.operator.ask(Method::POST, &format!("{path}/read"), Some(json!({}))).await.unwrap();
    let seen: Vec<_> = told["differences"].as_array().unwrap().iter().map(|one| one["name"].clone()).collect();
    assert!(seen.contains(&json!("support")) && seen.contains(&json!("VLAN")), "{told}");
    assert_eq!(left(&running), ["account", "address source", "VLAN", "setting", "keys"]);

    rack.operator.act(machine.mac(), "release", json!({})).await.unwrap();
    rack.becomes(&machine, "ready").await;
    assert_eq!(left(&running), stays);
    assert_ne!(running.bmc.lock().users[1].password, password, "it has the password that it had");
    let (_, told) = baseline(&rack, &machine).await;
    assert_eq!((&told["differences"], &told["remarks"]), (&json!([]), &json!([])), "{told}");
    assert!(!told.to_string().contains("canary"), "{told}");
    rack.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_tenant_did_to_a_bmc_is_put_back_and_proven_over_redfish() {
    put_back("redfish", &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_tenant_did_to_a_bmc_is_put_back_and_proven_over_ipmi() {
    // Which has no word for the firmware's settings: nothing was recorded of them.
    put_back("ipmi", &["setting", "keys"]).await;
}

/// A machine whose BMC goes wrong while it is put back, and what is said of it.
async fn wrong(protocol: &str, settings: Settings) -> (VirtualRack, Machine, Running, String) {
    let mut rack = VirtualRack::new().await;
    let (machine, running) = handed_out(&mut rack, protocol).await;
    sabotage(&running);
    running.bmc.set_faults(Faults { settings, ..Faults::default() });
    rack.operator.act(machine.mac(), "release", json!({})).await.unwrap();
    let told = rack.becomes(&machine, "quarantined").await;
    let reason = told["held"]["reason"].as_str().unwrap_or_else(|| panic!("{told}")).to_owned();
    assert!(!left(&running).is_empty(), "it was put back after all");
    (rack, machine, running, reason)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bmc_that_ignores_what_it_is_told_quarantines_its_machine_with_the_reason() {
    let (rack, machine, running, reason) = wrong("redfish", Settings::Ignored).await;
    assert!(reason.contains("account support: Administrator, enabled, recorded nothing"), "{reason}");
    assert!(reason.contains("VLAN: 12, recorded none"), "{reason}");
    let (_, told) = baseline(&rack, &machine).await;
    assert!(told["differences"].as_array().unwrap().len() >= 4, "{told}");
    // When it does what it is told again, so does a release.
    running.bmc.set_faults(Faults::default());
    rack.operator.act(machine.mac(), "release", json!({})).await.unwrap();
    rack.becomes(&machine, "ready").await;
    assert_eq!(left(&running), [""; 0]);
    rack.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bmc_that_does_half_of_what_it_is_told_quarantines_its_machine() {
    for protocol in ["redfish", "ipmi"] {
        let (rack, _machine, _running, reason) = wrong(protocol, Settings::Half).await;
        assert!(reason.starts_with("release bmc: its BMC is not as it was recorded"), "{reason}");
        rack.stop().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_accounts_that_stay_have_a_password_that_no_tenant_knows() {
    let mut rack = VirtualRack::new().await;
    rack.image("sim-1", 3).await;
    let machine = rack.machine(Model::default());
    rack.ready(&machine).await;
    let (running, _behind) = bmc(&machine, Personality::generic(1)).await;
    let set = |password: &[u8]| {
        running.bmc.lock().users[3] = User {
            name: "ops".into(),
            password: password.to_vec(),
            is_long: false,
            is_enabled: true,
            role: Some(Role::Operator),
        };
    };
    set(b"theirs");
    reach(&rack, &machine, "redfish", running.redfish).await;
    rack.operator.deploy(machine.mac(), "sim-1").await.unwrap();
    rack.becomes(&machine, "active").await;
    // In-band, with root: an account that was always there lets in whoever had the machine.
    set(b"canary-door");
    rack.operator.act(machine.mac(), "release", json!({})).await.unwrap();
    rack.becomes(&machine, "ready").await;
    let state = running.bmc.lock().clone();
    assert_eq!(state.log_in("ops", b"canary-door"), None);
    let (_, ops) = state.user("ops").unwrap();
    assert!(ops.is_enabled && ops.role == Some(Role::Operator), "{ops:?}");
    rack.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bmc_is_put_back_although_agent_and_controller_are_killed_while_it_is() {
    let mut rack = VirtualRack::new().await;
    let (machine, running) = handed_out(&mut rack, "redfish").await;
    sabotage(&running);
    rack.operator.act(machine.mac(), "release", json!({})).await.unwrap();
    for service in [Service::Agent, Service::Controller, Service::Agent] {
        // So slow that it is killed somewhere in it.
        running.bmc.set_faults(Faults { slow_ms: 60, ..Faults::default() });
        let is_at_it = async || {
            let runs = rack.operator.get("/v1/runs").await.map_err(|error| format!("{error:#}"))?;
            let run = runs["items"][0].clone();
            (run["step"] == json!("restore BMC")).then_some(()).ok_or_else(|| run.to_string())
        };
        wait::until("the BMC is being put back", PATIENCE, is_at_it).await;
        rack.kill(service).await;
        rack.start(service).await;
    }
    running.bmc.set_faults(Faults::default());
    rack.becomes(&machine, "ready").await;
    assert_eq!(left(&running), [""; 0]);
    rack.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn boot_entries_of_a_tenant_are_gone_with_its_disks() {
    let mut rack = VirtualRack::new().await;
    rack.image("sim-1", 3).await;
    let machine = rack.machine(Model { firmware: Firmware::Uefi, ..Model::default() });
    rack.active(&machine, "sim-1").await;
    let ours = machine.variables();
    assert!(!ours["BootOrder"].is_empty(), "the installer made no entry");
    // What starts once, and in place of everything else: the system's own entry, and a copy of it.
    let (_, entry) = ours.iter().find(|(name, _)| name.as_str() != "BootOrder").unwrap();
    let planted = [("Boot00AA", entry.clone()), ("Driver0001", entry.clone()), ("BootNext", vec![0xaa, 0])];
    let writes = planted.map(|(name, data)| boot_order::Change::Write(name.to_owned(), data));
    machine.change_variables(writes.into());
    rack.operator.act(machine.mac(), "release", json!({})).await.unwrap();
    rack.becomes(&machine, "ready").await;
    assert_eq!(machine.variables(), boot_order::Variables::new());
    rack.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_forbidden_to_start_since_is_accepted_by_a_person_and_by_nobody_else() {
    let mut rack = VirtualRack::new().await;
    let (machine, running) = handed_out(&mut rack, "redfish").await;
    // An update of firmware, or a tenant.
    running.bmc.lock().keys.add("dbx", Some("EFI_CERT_SHA256_GUID".into()), "AB".repeat(32));
    rack.operator.act(machine.mac(), "release", json!({})).await.unwrap();
    let told = rack.becomes(&machine, "quarantined").await;
    let reason = told["held"]["reason"].as_str().unwrap_or_else(|| panic!("{told}"));
    assert!(reason.contains("secure_boot dbx: key ") && reason.contains("recorded nothing"), "{reason}");
    let (path, _) = baseline(&rack, &machine).await;
    rack.operator.ask(Method::POST, &format!("{path}/accept"), Some(json!({}))).await.unwrap();
    rack.operator.act(machine.mac(), "release", json!({})).await.unwrap();
    rack.becomes(&machine, "ready").await;
    assert_eq!(running.bmc.lock().keys.of("dbx").count(), 2);
    rack.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tpm_is_nobodys_any_more_after_a_release_or_its_machine_is_quarantined() {
    let mut rack = VirtualRack::new().await;
    rack.image("sim-1", 3).await;
    let machine = rack.machine(Model::default());
    let tpm = machine.fit_tpm();
    rack.active(&machine, "sim-1").await;
    tpm.take(false);
    rack.operator.act(machine.mac(), "release", json!({})).await.unwrap();
    rack.becomes(&machine, "ready").await;
    assert!(!tpm.is_taken());

    rack.operator.deploy(machine.mac(), "sim-1").await.unwrap();
    rack.becomes(&machine, "active").await;
    // So that nobody but the tenant may clear it.
    tpm.take(true);
    rack.operator.act(machine.mac(), "release", json!({})).await.unwrap();
    let told = rack.becomes(&machine, "quarantined").await;
    let reason = told["held"]["reason"].as_str().unwrap_or_else(|| panic!("{told}"));
    assert!(reason.starts_with("release tpm: ") && reason.contains("lockout password"), "{reason}");
    assert_eq!(tpm.wrong_passwords(), 0, "a password was tried: that locks a TPM");
    // Its firmware was asked, and does it at the next start.
    rack.operator.act(machine.mac(), "release", json!({})).await.unwrap();
    rack.becomes(&machine, "ready").await;
    assert!(!tpm.is_taken());
    rack.stop().await.unwrap();
}
