//! A system anew on a machine that keeps its owner, and machines out of service and back.

use rackhand_tests::{Model, VirtualRack, operator::PATIENCE};
use serde_json::json;

use crate::deploy::holds;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_active_machine_is_reinstalled_with_what_it_had_and_its_other_disks_are_not_touched() {
    let mut rack = VirtualRack::new().await;
    rack.image("sim-1", 3).await;
    let raw = rack.image("sim-2", 3).await;
    let machine = rack.machine(Model::default());
    rack.active(&machine, "sim-1").await;
    let before = machine.system_up(PATIENCE).await;

    let run = rack.operator.act(machine.mac(), "reinstall", json!({"image": "sim-2"})).await.unwrap();
    assert_eq!(rack.wait_for(&machine, "reinstalled", |row| row["run"] == run["id"]).await["lifecycle"], "active");
    let run = rack.operator.wait_for_end(&run).await;
    assert_eq!(run["status"], "done", "{run:#}");
    let row = rack.becomes(&machine, "active").await;
    assert_eq!((&row["image"], &row["alert"]), (&json!("sim-2"), &json!(null)));
    let after = machine.system_up(PATIENCE).await;
    assert_eq!((&after.hostname, &after.ssh_keys), (&before.hostname, &before.ssh_keys));
    assert_ne!(after.instance, before.instance);
    holds(&machine, &raw);

    // As it is now, and from there back.
    let run = rack.operator.act(machine.mac(), "reinstall", json!({})).await.unwrap();
    assert_eq!(rack.operator.wait_for_end(&run).await["status"], "done");
    assert_eq!(rack.becomes(&machine, "active").await["image"], "sim-2");
    rack.operator.act(machine.mac(), "release", json!({})).await.unwrap();
    rack.becomes(&machine, "ready").await;
    rack.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_out_of_service_is_given_to_nobody_until_it_is_back() {
    let mut rack = VirtualRack::new().await;
    rack.image("sim-1", 3).await;
    let machine = rack.machine(Model::default());
    rack.ready(&machine).await;

    let why = json!({"reason": "fan 3 is loud"});
    let row = rack.operator.act(machine.mac(), "maintain", why.clone()).await.unwrap();
    assert_eq!((&row["lifecycle"], &row["held"]["reason"]), (&json!("maintenance"), &why["reason"]));
    assert!(row["held"]["until"].is_string(), "{row}");
    let refused = rack.operator.deploy(machine.mac(), "sim-1").await.unwrap_err().to_string();
    assert!(refused.contains("cannot deploy a machine that is maintenance; possible now: release, power"), "{refused}");

    // What was found in it by hand is what it tells.
    let found = rack.operator.machine(machine.mac()).await.unwrap().unwrap();
    let run = rack.operator.act(machine.mac(), "inspect", json!({})).await.unwrap();
    assert_eq!(rack.operator.wait_for_end(&run).await["status"], "done");
    let row = rack.operator.machine(machine.mac()).await.unwrap().unwrap();
    assert_eq!((&row["lifecycle"], &row["epoch"]), (&json!("maintenance"), &found["epoch"]));

    let row = rack.operator.act(machine.mac(), "resume", json!({})).await.unwrap();
    assert_eq!((&row["lifecycle"], &row["held"]), (&json!("ready"), &json!(null)));
    rack.operator.deploy(machine.mac(), "sim-1").await.unwrap();
    rack.becomes(&machine, "active").await;
    let refused = rack.operator.act(machine.mac(), "maintain", why.clone()).await.unwrap_err().to_string();
    assert!(refused.contains("active"), "{refused}");
    rack.operator.act(machine.mac(), "release", json!({})).await.unwrap();
    rack.becomes(&machine, "ready").await;

    for (verb, lifecycle) in [("retire", "retired"), ("quarantine", "quarantined")] {
        let row = rack.operator.act(machine.mac(), verb, why.clone()).await.unwrap();
        assert_eq!((&row["lifecycle"], &row["held"]["reason"]), (&json!(lifecycle), &why["reason"]));
        assert!(rack.operator.deploy(machine.mac(), "sim-1").await.is_err(), "{verb}");
    }
    rack.operator.act(machine.mac(), "release", json!({})).await.unwrap();
    assert_eq!(rack.becomes(&machine, "ready").await["held"], json!(null));
    rack.stop().await.unwrap();
}
