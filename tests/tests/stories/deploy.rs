//! A machine's way from first sight to handed over and back.

use rackhand_common::machine::Firmware;
use rackhand_tests::{Machine, Model, VirtualRack, operator::KEY, operator::PATIENCE, system};
use serde_json::json;

/// The disk is the image, but for its partition tables and what lies behind it.
pub(crate) fn holds(machine: &Machine, raw: &[u8]) {
    let disk = machine.drive().contents().unwrap();
    // The protective MBR's length, the header and the entries: one was added.
    let table = 440..34 * 512;
    assert!(disk[..table.start] == raw[..table.start], "the boot code is not the image's");
    // The image ends in its own backup table, which is no one's any more.
    assert!(disk[table.end..raw.len()] == raw[table.end..], "the disk differs from the image");
    let before = system::partitions(raw);
    let partitions = system::partitions(&disk);
    assert_eq!(partitions[..before.len()], before[..]);
    assert_eq!(partitions.len(), before.len() + 1);
    let verified = std::process::Command::new("sgdisk").arg("-v").arg(machine.drive().path()).output().unwrap();
    let said = String::from_utf8_lossy(&verified.stdout);
    assert!(said.contains("No problems found."), "{said}");
}

/// Nothing is left on the disk.
pub(crate) fn is_empty(machine: &Machine) {
    let (disk, zeros) = (machine.drive().contents().unwrap(), vec![0; 1 << 20]);
    assert!(disk.chunks(zeros.len()).all(|piece| *piece == zeros[..piece.len()]), "something is left on the disk");
}

async fn there_and_back(firmware: Firmware) {
    let mut rack = VirtualRack::new().await;
    let raw = rack.image("sim-1", 3).await;
    let machine = rack.machine(Model { firmware, ..Model::default() });
    rack.ready(&machine).await;
    rack.operator.deploy(machine.mac(), "sim-1").await.unwrap();
    let active = rack.becomes(&machine, "active").await;

    let system = machine.system_up(PATIENCE).await;
    assert_eq!((system.hostname.as_str(), system.ssh_keys.as_slice()), ("web-1", &[KEY.to_owned()][..]));
    assert_eq!(active["image"], "sim-1");
    holds(&machine, &raw);
    assert!(machine.drive().writes().iter().all(|(chunk, times)| *times == 1 || *chunk == 0 || *chunk >= 3));

    rack.operator.act(machine.mac(), "release", json!({})).await.unwrap();
    rack.becomes(&machine, "ready").await;
    is_empty(&machine);
    rack.stop().await.unwrap();
}

/// A deploy of `image` that hands this user data through; what the system then knows.
async fn deployed(rack: &VirtualRack, machine: &Machine, image: &str, user_data: &str) -> system::System {
    let wanted = json!({"image": image, "hostname": "web-1", "ssh_keys": [KEY], "user_data": user_data});
    rack.operator.act(machine.mac(), "deploy", wanted).await.unwrap();
    rack.becomes(machine, "active").await;
    machine.system_up(PATIENCE).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_system_is_told_its_settings_in_the_format_of_its_image() {
    let mut rack = VirtualRack::new().await;
    let raw = rack.image("sim-1", 3).await;
    for settings in ["config-2", "ignition"] {
        rack.operator.import_told(settings, settings, raw.clone()).await.unwrap();
    }
    let machine = rack.machine(Model::default());
    rack.ready(&machine).await;
    let (cloud_config, ignition) = ("#cloud-config\npackages: [jq]\n", r#"{"ignition":{"version":"3.3.0"}}"#);
    let mut instances = Vec::new();
    for (image, own) in [("config-2", cloud_config), ("ignition", ignition)] {
        let system = deployed(&rack, &machine, image, own).await;
        assert_eq!((system.hostname.as_str(), system.user_data.as_str()), ("web-1", own), "{image}");
        assert_eq!(system.ssh_keys, [KEY], "{image}");
        instances.push(system.instance);
        holds(&machine, &raw);
        rack.operator.act(machine.mac(), "release", json!({})).await.unwrap();
        rack.becomes(&machine, "ready").await;
    }
    assert_ne!(instances[0], instances[1]);

    let wrong = json!({"image": "ignition", "user_data": cloud_config});
    let refused = rack.operator.act(machine.mac(), "deploy", wrong).await.unwrap_err().to_string();
    assert!(refused.contains("is told its settings by Ignition"), "{refused}");
    rack.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bios_machine_is_discovered_adopted_deployed_and_released_empty() {
    there_and_back(Firmware::Bios).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_uefi_machine_is_discovered_adopted_deployed_and_released_empty() {
    there_and_back(Firmware::Uefi).await;
}
