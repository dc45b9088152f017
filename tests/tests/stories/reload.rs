//! A configuration is taken over while everything goes on.

use std::path::PathBuf;

use rackhand_agent::{
    clock::SystemClock,
    ledger::Ledger,
    spool::{Spool, open_database},
};
use rackhand_common::time::Clock as _;
use rackhand_tests::{Machine, Model, Service, VirtualRack, operator::PATIENCE, wait};
use serde_json::json;

use crate::deploy::{holds, is_empty};

/// Has all three daemons take over another configuration than the last time.
fn reload(rack: &VirtualRack, round: u64) {
    let said = rack.reload_controller(|config| {
        config.names.push(name(round));
        config.images.limit = (1 << 30) + round;
        config.agents_address = Some(format!("{}:4433", name(round)));
    });
    assert_eq!(said.unwrap(), "taken over: names, certificate, agents.address, images.limit");
    let said = rack.reload_agent(|config| {
        let power = json!({ "command": ["/bin/false", round.to_string()] });
        let power = serde_json::from_value::<rackhand_agent::power::ExecFile>(power).unwrap();
        config.power = power.try_into().unwrap();
    });
    assert_eq!(said.unwrap(), "taken over: power");
    let said = rack.reload_boot(|config| {
        for file in config.tftp.values_mut().chain([&mut config.installer.kernel, &mut config.installer.initramfs]) {
            *file = copy(file, round);
        }
        config.cache = round;
    });
    assert_eq!(said.unwrap(), "taken over: tftp, installer, cache");
}

fn name(round: u64) -> String {
    format!("round-{round}.example")
}

/// The same file under another name; the one of the round before last is gone.
fn copy(file: &PathBuf, round: u64) -> PathBuf {
    let at = |round: u64| file.with_extension(round.to_string());
    std::fs::copy(file, at(round)).unwrap();
    let _ = std::fs::remove_file(at(round.wrapping_sub(2)));
    at(round)
}

/// Waits for a lifecycle, with a reload of everything at each look.
async fn becomes(rack: &VirtualRack, machine: &Machine, lifecycle: &str, round: &mut u64) {
    wait::until(lifecycle, PATIENCE, async || {
        *round += 1;
        reload(rack, *round);
        match rack.operator.machine(machine.mac()).await {
            Ok(Some(row)) if row["lifecycle"] == lifecycle => Ok(()),
            seen => Err(format!("{seen:?}; its screen: {}", machine.screen())),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_is_deployed_and_released_while_all_daemons_are_reloaded_and_the_agent_stays_connected() {
    let mut rack = VirtualRack::new().await;
    let raw = rack.image("sim-1", 3).await;
    let machine = rack.machine(Model::default());
    let mut round = 0;
    machine.power_on();
    becomes(&rack, &machine, "discovered", &mut round).await;
    rack.operator.act(machine.mac(), "adopt", json!({})).await.unwrap();
    becomes(&rack, &machine, "ready", &mut round).await;
    rack.operator.deploy(machine.mac(), "sim-1").await.unwrap();
    becomes(&rack, &machine, "active", &mut round).await;
    holds(&machine, &raw);
    rack.operator.act(machine.mac(), "release", json!({})).await.unwrap();
    becomes(&rack, &machine, "ready", &mut round).await;
    is_empty(&machine);

    // Each run ended at its first attempt, nothing having been lost under way.
    let starts = machine.starts();
    assert_eq!(starts, 3, "installer, system, installer");

    // Whoever comes now is met by the newest certificate, which has no former name.
    rack.newcomer(&name(round)).unwrap().get("/v1/racks").await.unwrap();
    let former = rack.newcomer(&name(1)).unwrap().get("/v1/racks").await.unwrap_err();
    assert!(format!("{former:#}").contains("ertificate"), "{former:#}");
    let code = rack.operator.post("/v1/racks/r1/enrolment-codes", json!({})).await.unwrap();
    assert!(code.to_string().contains(&format!("--controller {}:4433", name(round))), "{code}");

    rack.kill(Service::Agent).await;
    let database = open_database(&rack.path("agent/agent.redb")).unwrap();
    let spool = Spool::within(database.clone(), 1000, None).unwrap();
    let ledger = Ledger::open(database, spool, SystemClock::default().now().wall).await.unwrap();
    assert_eq!(ledger.connection().await.unwrap(), 1, "the agent has connected once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_reload_cannot_take_over_is_named_and_a_smaller_limit_counts_from_the_next_image() {
    let rack = VirtualRack::new().await;
    let said = rack.reload_controller(|config| {
        config.api.set_port(1);
        config.agents.set_port(2);
        config.data = "/elsewhere".into();
        config.images.limit = 4096;
    });
    let named = "taken over: images.limit; restart to take over: data, api.listen, agents.listen";
    assert_eq!(said.unwrap(), named);
    let refused = rack.operator.import("sim-1", vec![0; 8192]).await.unwrap_err();
    assert!(format!("{refused:#}").contains("this controller takes 4096"), "{refused:#}");

    let said = rack.reload_agent(|config| {
        config.state = "/elsewhere".into();
        config.metrics.set_port(1);
        config.events += 1;
    });
    assert_eq!(said.unwrap(), "restart to take over: state, metrics, events");
    let said = rack.reload_boot(|config| {
        config.http += 1;
        config.interface = "eth7".into();
    });
    assert_eq!(said.unwrap(), "restart to take over: interface, http");
    assert_eq!(rack.reload_boot(|_| ()).unwrap(), "nothing has changed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_put_beside_a_running_agent_is_taken_over_and_another_nodes_is_not() {
    let rack = VirtualRack::new().await;
    // The trust bundle comes before the intent, and is written into the same file.
    let told = async || {
        let agents = rack.operator.get("/v1/agents").await.map_err(|error| format!("{error:#}"))?;
        let revision = agents["items"][0]["revision"].as_u64();
        revision.filter(|revision| *revision > 0).ok_or_else(|| agents.to_string())
    };
    wait::until("the agent has its intent", PATIENCE, told).await;
    let identity = rack.path("agent/identity.json");
    let read = || serde_json::from_slice::<serde_json::Value>(&std::fs::read(&identity).unwrap()).unwrap();
    let write = |value: &serde_json::Value| std::fs::write(&identity, value.to_string()).unwrap();
    let first = read();
    let mut changed = first.clone();
    changed["api"] = json!("elsewhere.example:8443");
    write(&changed);
    assert_eq!(rack.reload_agent(|_| ()).unwrap(), "taken over: certificate");
    assert_eq!(rack.reload_agent(|_| ()).unwrap(), "nothing has changed");
    changed["agent"] = json!(rackhand_common::id::AgentId::fresh());
    write(&changed);
    assert_eq!(rack.reload_agent(|_| ()).unwrap(), "restart to take over: enrolment");
    std::fs::write(&identity, "{").unwrap();
    let error = rack
        .reload_agent(|config| {
            config.power =
                rackhand_agent::power::ExecFile { command: Some(vec!["/bin/true".into()]), ..Default::default() }
                    .try_into()
                    .unwrap()
        })
        .unwrap_err();
    assert!(format!("{error:#}").contains("damaged"), "{error:#}");
    write(&first);
    assert_eq!(rack.reload_agent(|_| ()).unwrap(), "taken over: certificate", "and nothing before: power is as it was");
}
