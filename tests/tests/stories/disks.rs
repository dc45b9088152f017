//! What stands on a disk is not destroyed without a word, nor on a disk nobody spoke of.

use rackhand_tests::{Model, VirtualRack};
use serde_json::json;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_with_data_stops_the_adoption_until_the_operator_accepts_its_loss() {
    let mut rack = VirtualRack::new().await;
    let machine = rack.machine(Model::default());
    machine.drive().scribble(700_000, b"somebody's").unwrap();
    machine.power_on();
    rack.becomes(&machine, "discovered").await;

    let refused = rack.operator.act(machine.mac(), "adopt", json!({})).await.unwrap_err().to_string();
    assert!(refused.contains("SIMDISK/serial-1 (data without a partition table)"), "{refused}");
    let still = rack.operator.machine(machine.mac()).await.unwrap().unwrap();
    assert_eq!(still["lifecycle"], "discovered");
    assert_eq!(machine.drive().writes(), []);

    rack.operator.act(machine.mac(), "adopt", json!({ "accept_data": true })).await.unwrap();
    rack.becomes(&machine, "ready").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_swapped_after_adoption_stops_the_deploy_and_is_not_written() {
    let mut rack = VirtualRack::new().await;
    rack.image("sim-1", 3).await;
    let machine = rack.machine(Model::default());
    rack.ready(&machine).await;

    // Under the feet of the installer that waits: the controller still knows the old one.
    let other = rack.drive("another-1", 32 << 20);
    other.scribble(5 << 20, b"somebody's").unwrap();
    let before = other.contents().unwrap();
    machine.swap_drive(other.clone());
    let run = rack.operator.deploy(machine.mac(), "sim-1").await.unwrap();
    let run = rack.operator.wait_for_end(&run).await;

    assert_eq!((&run["status"], &run["cause"]), (&json!("failed"), &json!("disks_differ")), "{run:#}");
    assert!(other.contents().unwrap() == before && other.writes().is_empty(), "the other disk was written");
    let machine = rack.becomes(&machine, "ready").await;
    assert_eq!(machine["run"], json!(null));
}
