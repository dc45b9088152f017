//! What is in a machine's slots, what its plan expects there, and who is not deployed for it.

use rackhand_common::hardware::{Device, Dimm, Drive, DriveHealth, Hardware, Link, Slot};
use rackhand_tests::{Model, VirtualRack, operator::PATIENCE, wait};
use serde_json::{Value, json};

fn server() -> Hardware {
    let dimm = |slot: &str| Dimm { slot: slot.into(), size: 16 << 30, kind: "DDR4".into(), ..Dimm::default() };
    let link = Link { speed: 8000, lanes: 16 };
    Hardware {
        memory: ["A1", "A2", "A3", "A4"].map(dimm).into(),
        slots: vec![Slot { name: "PCIE2".into(), lanes: 16, address: Some("0000:3b:00.0".into()), ..Slot::default() }],
        devices: vec![Device {
            address: "0000:3b:00.0".into(),
            vendor: 0x15b3,
            device: 0x1017,
            class: 0x02_0000,
            slot: Some("PCIE2".into()),
            link: Some(link),
            most: Some(link),
            ..Device::default()
        }],
        ..Hardware::default()
    }
}

/// The texts of what was found in the machine, once its installer told of hardware with so many modules.
async fn findings(rack: &VirtualRack, machine: &str, modules: usize) -> Vec<String> {
    let path = format!("/v1/machines/{machine}/hardware");
    wait::until("its installer told what is in it", PATIENCE, async || {
        let known = rack.operator.get(&path).await.map_err(|error| format!("{error:#}"))?;
        let memory = known["hardware"]["memory"].as_array().into_iter().flatten();
        if memory.filter(|dimm| dimm["size"].as_u64() > Some(0)).count() != modules {
            return Err(known.to_string());
        }
        let texts = known["findings"].as_array().into_iter().flatten();
        Ok(texts.map(|finding| finding["text"].as_str().unwrap_or_default().to_owned()).collect())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_lacks_a_module_is_told_by_its_slot_and_not_deployed_by_a_strict_plan() {
    let mut rack = VirtualRack::new().await;
    rack.image("sim-1", 3).await;
    let machine = rack.machine(Model::default());
    machine.fit(server());
    let row = rack.ready(&machine).await;
    let name = row["name"].as_str().unwrap().to_owned();
    assert_eq!(findings(&rack, &name, 4).await, Vec::<String>::new());

    let mut rules: Value = rack.operator.get(&format!("/v1/machines/{name}/suggested-plan")).await.unwrap();
    assert_eq!(rules["expects"]["memory"]["slots"], json!(["A1", "A2", "A3", "A4"]));
    rules["expects"]["strict"] = json!(true);
    rack.operator.post("/v1/plans", json!({"name": "large", "rules": rules})).await.unwrap();

    // A module falls out, a card comes up with half its lanes, a disk says that it fails.
    let mut broken = server();
    broken.memory[2].size = 0;
    broken.devices[0].link = Some(Link { speed: 8000, lanes: 8 });
    let failing = DriveHealth { failing: vec!["media is read-only".into()], ..DriveHealth::default() };
    broken.drives = vec![Drive { name: "vda".into(), health: Some(failing), ..Drive::default() }];
    machine.fit(broken);
    let run = rack.operator.act(machine.mac(), "inspect", json!({})).await.unwrap();
    assert_eq!(rack.operator.wait_for_end(&run).await["status"], "done");
    let found = findings(&rack, &name, 3).await;
    assert_eq!(found[0], "DIMM A3 is missing: 3 of 4");
    assert_eq!(found[1], "x8 link in the x16 slot PCIE2 (0000:3b:00.0, Mellanox network card 15b3:1017)");
    assert!(found[2].ends_with("fails: media is read-only"), "{found:?}");
    let refused = rack.operator.deploy(machine.mac(), "sim-1").await.unwrap_err().to_string();
    assert!(refused.contains("is not as plan large expects: DIMM A3 is missing: 3 of 4; x8 link"), "{refused}");

    // Whoever does not mind says so in the plan.
    rules["expects"]["strict"] = json!(false);
    let lenient = json!({"rules": rules});
    rack.operator.ask(reqwest::Method::PATCH, "/v1/plans/large", Some(lenient)).await.unwrap();
    rack.operator.deploy(machine.mac(), "sim-1").await.unwrap();
    rack.becomes(&machine, "active").await;

    // Put right while it was in use, it is told by the installer that erases it.
    machine.fit(server());
    rack.operator.act(machine.mac(), "release", json!({})).await.unwrap();
    rack.becomes(&machine, "ready").await;
    assert_eq!(findings(&rack, &name, 4).await, Vec::<String>::new());
    rack.stop().await.unwrap();
}
