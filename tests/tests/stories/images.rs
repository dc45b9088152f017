//! Chunks that are not what they should be reach no disk.

use std::fs;

use rackhand_tests::{Model, VirtualRack};
use serde_json::json;

use crate::deploy::holds;

/// Changes a byte in the middle.
fn corrupt(path: &std::path::Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_damaged_in_the_nodes_cache_is_fetched_again() {
    let mut rack = VirtualRack::new().await;
    let raw = rack.image("sim-1", 3).await;
    let first = rack.machine(Model::default());
    rack.active(&first, "sim-1").await;
    let cached = rack.cached();
    assert_eq!(cached.len(), rack.objects().len());
    for chunk in &cached {
        corrupt(chunk);
    }
    assert_eq!(rack.cached(), Vec::<std::path::PathBuf>::new());

    let second = rack.machine(Model::default());
    rack.active(&second, "sim-1").await;
    holds(&second, &raw);
    assert_eq!(rack.cached(), cached);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_damaged_at_the_controller_fails_the_deploy_in_its_name_until_the_image_is_imported_again() {
    let mut rack = VirtualRack::new().await;
    let raw = rack.image("sim-1", 3).await;
    let machine = rack.machine(Model::default());
    rack.ready(&machine).await;
    let objects = rack.objects();
    let damaged = objects.last().unwrap();
    corrupt(damaged);
    let run = rack.operator.deploy(machine.mac(), "sim-1").await.unwrap();
    let run = rack.operator.wait_for_end(&run).await;

    assert_eq!((&run["status"], &run["cause"]), (&json!("failed"), &json!("image")), "{run:#}");
    let detail = run["detail"].as_str().unwrap();
    let name = damaged.file_name().unwrap().to_str().unwrap();
    assert!(detail.contains(name) && detail.contains("is damaged"), "{detail}");
    rack.becomes(&machine, "ready").await;

    // The same file under another name: both images are whole again.
    rack.operator.import("sim-2", raw.clone()).await.unwrap();
    rack.operator.deploy(machine.mac(), "sim-1").await.unwrap();
    rack.becomes(&machine, "active").await;
    holds(&machine, &raw);
}
