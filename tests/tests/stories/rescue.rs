//! A machine that its owner logs in to beside its own system, and back.

use rackhand_tests::{
    Model, VirtualRack,
    operator::{KEY, PATIENCE},
    rack::Service,
    wait,
};
use serde_json::{Value, json};

use crate::deploy::holds;

/// Where to log in, once the machine and the controller agree on it.
async fn login(rack: &VirtualRack, machine: &rackhand_tests::Machine, not: &Value) -> Value {
    let is = |row: &Value| {
        let told = machine.rescue().map(|rescue| Value::from(rescue.host_key));
        row["rescue"]["host_key"] != *not && told.is_some_and(|told| row["rescue"]["host_key"] == told)
    };
    rack.wait_for(machine, "told where to log in", is).await["rescue"].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_logs_in_to_the_rescue_system_through_restarts_of_everything_and_the_disk_stays_as_it_was() {
    let mut rack = VirtualRack::new().await;
    let raw = rack.image("sim-1", 3).await;
    let machine = rack.machine(Model::default());
    rack.active(&machine, "sim-1").await;
    let before = machine.system_up(PATIENCE).await;

    let run = rack.operator.act(machine.mac(), "rescue", json!({})).await.unwrap();
    let run = rack.operator.wait_for_end(&run).await;
    assert_eq!(run["status"], "done", "{run:#}");
    let row = rack.becomes(&machine, "rescue").await;
    assert!(row["held"]["until"].is_string(), "{row:#}");
    let first = login(&rack, &machine, &Value::Null).await;
    assert_eq!(
        (&first["user"], &first["address"], &first["port"]),
        (&json!("root"), &row["address"], &json!(22)),
        "{first:#}"
    );
    // Nobody said whose keys: those that the machine was deployed with.
    assert_eq!(machine.rescue().unwrap().keys, [KEY]);
    assert!(machine.system().is_none(), "its own system runs on");

    // Who is logged in notices nothing of what happens to the node, or to the controller.
    let starts = machine.starts();
    for service in [Service::Boot, Service::Agent, Service::Controller] {
        rack.restart(service).await;
    }
    rack.wait_for(&machine, "in rescue still", |row| row["installer"] == true).await;
    assert_eq!((login(&rack, &machine, &Value::Null).await, machine.starts()), (first.clone(), starts));

    // Restarted from the network, it is a rescue system again, with another key.
    machine.reset(true);
    login(&rack, &machine, &first["host_key"]).await;
    assert_eq!(machine.rescue().unwrap().keys, [KEY]);

    let run = rack.operator.act(machine.mac(), "leave-rescue", json!({})).await.unwrap();
    let run = rack.operator.wait_for_end(&run).await;
    assert_eq!(run["status"], "done", "{run:#}");
    let row = rack.becomes(&machine, "active").await;
    assert_eq!(
        (&row["image"], &row["rescue"], &row["held"], &row["alert"]),
        (&json!("sim-1"), &Value::Null, &Value::Null, &Value::Null)
    );
    let after = machine.system_up(PATIENCE).await;
    assert_eq!((&after.hostname, &after.instance), (&before.hostname, &before.instance));
    assert_eq!(machine.rescue(), None);
    holds(&machine, &raw);
    rack.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_toolbox_a_rescue_fails_by_name_and_the_machines_own_system_runs_again() {
    let mut rack = VirtualRack::new().await;
    rack.image("sim-1", 3).await;
    let machine = rack.machine(Model::default());
    rack.active(&machine, "sim-1").await;
    std::fs::remove_file(rack.path("toolbox")).unwrap();
    let starts = machine.starts();
    let body = json!({"ssh_keys": ["ssh-ed25519 AAAA another"]});
    let run = rack.operator.act(machine.mac(), "rescue", body).await.unwrap();
    let run = rack.operator.wait_for_end(&run).await;
    assert_eq!(run["status"], "failed", "{run:#}");
    assert!(run["detail"].as_str().unwrap().contains("has no toolbox"), "{run:#}");
    let row = rack.becomes(&machine, "active").await;
    assert_eq!((&row["rescue"], &row["alert"]), (&Value::Null, &Value::Null));
    wait::until("its own system runs", PATIENCE, async || {
        let is_up = machine.system().is_some() && machine.starts() > starts + 1;
        is_up.then_some(()).ok_or_else(|| machine.screen())
    })
    .await;
    rack.stop().await.unwrap();
}
