//! Machines are tested, and say what was found.

use rackhand_tests::{Machine, Model, VirtualRack, operator::PATIENCE, wait};
use serde_json::{Value, json};

async fn results(rack: &VirtualRack, machine: &Machine) -> Vec<Value> {
    let row = rack.operator.machine(machine.mac()).await.unwrap().unwrap();
    let path = format!("/v1/machines/{}/tests?latest=true", row["id"].as_str().unwrap());
    rack.operator.get(&path).await.unwrap()["items"].as_array().unwrap().clone()
}

fn outcomes(results: &[Value]) -> Vec<(String, String)> {
    let word = |result: &Value, key: &str| result[key].as_str().unwrap().to_owned();
    let mut outcomes: Vec<_> = results.iter().map(|result| (word(result, "test"), word(result, "outcome"))).collect();
    outcomes.sort();
    outcomes
}

async fn tested(rack: &VirtualRack, machine: &Machine, body: Value) -> Value {
    let run = rack.operator.act(machine.mac(), "test", body).await.unwrap();
    let run = rack.operator.wait_for_end(&run).await;
    assert_eq!(run["status"], "done", "{run:#}");
    run
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_did_not_pass_says_what_to_look_at_until_it_passes() {
    let mut rack = VirtualRack::new().await;
    rack.image("sim-1", 3).await;
    let machine = rack.machine(Model::default());
    rack.ready(&machine).await;
    let before = machine.drive().writes();
    let starts = machine.starts();

    machine.fail_test("memory", Some("module DIMM_A1: 2 errors"));
    tested(&rack, &machine, json!({})).await;
    let row = rack.operator.machine(machine.mac()).await.unwrap().unwrap();
    let alert = "tests not passed: memory (module DIMM_A1: 2 errors; look at a memory module)";
    assert_eq!((&row["lifecycle"], &row["alert"]), (&json!("ready"), &json!(alert)));
    let found = results(&rack, &machine).await;
    let expected = [
        ("clock", "passed"),
        ("cpu", "passed"),
        ("disk-read", "passed"),
        ("memory", "failed"),
        ("nic", "passed"),
        ("nvme", "skipped"),
        ("smart", "passed"),
    ];
    assert_eq!(outcomes(&found), expected.map(|(name, outcome)| (name.to_owned(), outcome.to_owned())));
    let memory = found.iter().find(|result| result["test"] == "memory").unwrap();
    assert_eq!(memory["result"]["findings"], json!(["module DIMM_A1: 2 errors"]));
    assert_eq!(memory["output"], "memory of a simulated machine\n");
    // It waited in its installer, and was not restarted; nothing was written.
    assert_eq!((machine.starts(), machine.drive().writes()), (starts, before.clone()));

    // Another test passes: memory still has not.
    tested(&rack, &machine, json!({"only": ["cpu"]})).await;
    assert_eq!(rack.operator.machine(machine.mac()).await.unwrap().unwrap()["alert"], alert);
    machine.fail_test("memory", None);
    tested(&rack, &machine, json!({"only": ["memory"]})).await;
    assert_eq!(rack.operator.machine(machine.mac()).await.unwrap().unwrap()["alert"], json!(null));

    // What destroys is asked for by name, and twice.
    let refused = rack.operator.act(machine.mac(), "test", json!({"only": ["disk-write"]})).await.unwrap_err();
    assert!(refused.to_string().contains("accept_data_loss"), "{refused}");
    let refused = rack.operator.act(machine.mac(), "test", json!({"only": ["gpu"]})).await.unwrap_err().to_string();
    assert!(refused.contains("is no test; there are clock, cpu"), "{refused}");
    assert!(!machine.tested().contains(&"disk-write".to_owned()));
    tested(&rack, &machine, json!({"only": ["disk-write"], "accept_data_loss": true})).await;
    assert_eq!(machine.tested().last().unwrap(), "disk-write");

    rack.operator.deploy(machine.mac(), "sim-1").await.unwrap();
    rack.becomes(&machine, "active").await;
    let refused = rack.operator.act(machine.mac(), "test", json!({})).await.unwrap_err().to_string();
    assert!(refused.contains("cannot test a machine that is active"), "{refused}");
    rack.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_restarts_in_a_test_is_told_of_and_the_tests_go_on_behind_it() {
    let mut rack = VirtualRack::new().await;
    let machine = rack.machine(Model::default());
    rack.ready(&machine).await;
    machine.hang_in_test("memory");
    let run = rack.operator.act(machine.mac(), "test", json!({"only": ["smart", "cpu", "memory"]})).await.unwrap();
    wait::until("the memory is tested", PATIENCE, async || {
        let tested = machine.tested();
        if tested.contains(&"memory".to_owned()) { Ok(()) } else { Err(format!("{tested:?}")) }
    })
    .await;
    machine.reset(true);
    let run = rack.operator.wait_for_end(&run).await;
    assert_eq!(run["status"], "done", "{run:#}");
    let found = results(&rack, &machine).await;
    let expected = [("cpu", "passed"), ("memory", "failed"), ("smart", "passed")];
    assert_eq!(outcomes(&found), expected.map(|(name, outcome)| (name.to_owned(), outcome.to_owned())));
    let memory = found.iter().find(|result| result["test"] == "memory").unwrap();
    assert!(memory["reason"].as_str().unwrap().contains("the machine restarted while this test ran"), "{memory:#}");
    // Each was run once: what was over is not run again, nor what the machine restarted in.
    assert_eq!(machine.tested(), ["smart", "cpu", "memory"]);
    rack.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tests_that_are_cancelled_end_and_the_machine_is_as_it_was() {
    let mut rack = VirtualRack::new().await;
    let machine = rack.machine(Model::default());
    rack.ready(&machine).await;
    machine.hang_in_test("cpu");
    let run = rack.operator.act(machine.mac(), "test", json!({"only": ["cpu"]})).await.unwrap();
    wait::until("a processor is tested", PATIENCE, async || {
        if machine.tested() == ["cpu"] { Ok(()) } else { Err(machine.screen()) }
    })
    .await;
    rack.operator.post(&format!("/v1/runs/{}/cancel", run["id"].as_str().unwrap()), json!({})).await.unwrap();
    assert_eq!(rack.operator.wait_for_end(&run).await["status"], "cancelled");
    let row = rack.becomes(&machine, "ready").await;
    assert_eq!((&row["alert"], &row["run"]), (&json!(null), &json!(null)));
    assert!(results(&rack, &machine).await.is_empty());
    rack.stop().await.unwrap();
}
