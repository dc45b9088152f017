//! What stands on a disk is not destroyed without a word, nor on a disk nobody spoke of.

use rackhand_common::image::CHUNK;
use rackhand_tests::{Model, VirtualRack, operator::PATIENCE, wait};
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_mainboard_under_a_waiting_installer_stops_the_deploy_and_nothing_is_written() {
    let mut rack = VirtualRack::new().await;
    rack.image("sim-1", 3).await;
    let machine = rack.machine(Model::default());
    rack.ready(&machine).await;

    // The controller still knows the old one, which the order is for.
    machine.swap_mainboard("SN-other");
    let run = rack.operator.deploy(machine.mac(), "sim-1").await.unwrap();
    let run = rack.operator.wait_for_end(&run).await;
    assert_eq!((&run["status"], &run["cause"]), (&json!("failed"), &json!("mainboard_differs")), "{run:#}");
    let detail = run["detail"].as_str().unwrap();
    let (was, is) = (format!("SN-{} (", machine.mac()), "SN-other (");
    assert!(detail.contains(&was) && detail.contains(is), "{detail}");
    assert_eq!(machine.drive().writes(), []);
    rack.becomes(&machine, "ready").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_begun_again_on_another_mainboard_is_refused_before_its_first_write() {
    let mut rack = VirtualRack::new().await;
    rack.image("sim-1", 14).await;
    let machine = rack.machine(Model { disk: 72 << 20, ..Model::default() });
    rack.ready(&machine).await;
    machine.drive().hold_from(2 * CHUNK);
    rack.operator.deploy(machine.mac(), "sim-1").await.unwrap();
    machine.drive().held(PATIENCE).await;
    wait::until("the installer has told how far it is", PATIENCE, async || {
        let row = rack.operator.machine(machine.mac()).await.unwrap().unwrap();
        let run = rack.operator.get(&format!("/v1/runs/{}", row["run"].as_str().unwrap())).await.unwrap();
        if run["progress"]["done"].as_u64() > Some(0) { Ok(()) } else { Err(format!("{run:#}")) }
    })
    .await;

    // Disks and card go into another machine in the middle of the deploy; it comes back with them.
    let run = rack.operator.machine(machine.mac()).await.unwrap().unwrap()["run"].clone();
    machine.power_off();
    machine.swap_mainboard("SN-other");
    let before = machine.drive().writes();
    machine.drive().let_go();
    machine.power_on();
    let run = rack.operator.wait_for_end(&json!({ "id": run })).await;
    assert_eq!((&run["status"], &run["cause"]), (&json!("failed"), &json!("mainboard_differs")), "{run:#}");
    assert!(run["detail"].as_str().unwrap().contains("the disk holds an unfinished system"), "{run:#}");
    assert_eq!(machine.drive().writes(), before);
    let row = rack.becomes(&machine, "ready").await;
    assert!(row["changes"].to_string().contains("SN-other"), "{row:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_mainboard_stops_an_erasure_and_nothing_is_written() {
    let mut rack = VirtualRack::new().await;
    rack.image("sim-1", 3).await;
    let machine = rack.machine(Model::default());
    rack.active(&machine, "sim-1").await;
    let before = (machine.drive().contents().unwrap(), machine.drive().writes());
    // Changed while the tenant's system ran: nobody has looked since.
    machine.swap_mainboard("SN-other");
    let run = rack.operator.act(machine.mac(), "release", json!({})).await.unwrap();
    let run = rack.operator.wait_for_end(&run).await;
    assert_eq!((&run["status"], &run["cause"]), (&json!("failed"), &json!("mainboard_differs")), "{run:#}");
    assert!((machine.drive().contents().unwrap(), machine.drive().writes()) == before, "the disk was written");
    let row = rack.becomes(&machine, "quarantined").await;
    assert!(row["alert"].as_str().unwrap().contains("SN-other"), "{row:#}");
}
