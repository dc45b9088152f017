//! Firmware is updated by scripts in the toolbox, of a toy drive that takes it, lies about it, hangs, or wants a
//! start of its machine; the scripts are the real ones.

use rackhand_bmc_sim::{Faults, Flashing, Personality, Running};
use rackhand_tests::{
    Machine, Model, VirtualRack,
    operator::PATIENCE,
    rack::Service,
    toy::{ToyDrive, Way},
    wait,
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::bmc::{bmc, reach};

/// More than one piece of it, and no text behind its first line, which is its version.
fn file() -> Vec<u8> {
    let noise = (0..400_000_u32).flat_map(|number| (number ^ (number >> 7)).to_be_bytes());
    b"2.0\n".iter().copied().chain(noise).collect()
}

/// Imports firmware of simulated drives; `with` are lines of its manifest.
async fn import(rack: &VirtualRack, name: &str, with: &str) {
    let file = file();
    let manifest = format!(
        "name = {name:?}\ncomponent = \"nvme\"\nversion = \"2.0\"\nfrom = [\"1.0\"]\nmethod = \"script\"\n\
         script = \"nvme\"\nfile = \"drive-2.0.bin\"\nsize = {}\nsha256 = \"{}\"\nsettle = 1\n{with}\n\
         [match]\nmodel = \"SIMDISK\"\n",
        file.len(),
        hex::encode(Sha256::digest(&file)),
    );
    let kept = rack.operator.firmware(&manifest, &file).await.unwrap();
    assert!(kept["here"].is_string(), "{kept}");
}

const AT_ONCE: &str = "arguments = [\"activate\"]\ntimeout = 60";

/// A ready machine whose first disk is a toy with 1.0.
async fn with_toy(rack: &mut VirtualRack, way: Way) -> (Machine, ToyDrive) {
    let (machine, toy) = (rack.machine(Model::default()), ToyDrive::new("1.0").unwrap());
    toy.become_(way).unwrap();
    machine.fit_toy(&toy);
    rack.ready(&machine).await;
    (machine, toy)
}

async fn ask(rack: &VirtualRack, machine: &Machine, what: &str) -> Value {
    let row = rack.operator.machine(machine.mac()).await.unwrap().unwrap();
    rack.operator.get(&format!("/v1/machines/{}/{what}", row["id"].as_str().unwrap())).await.unwrap()
}

/// Of its firmware, what is not as its plan has it.
async fn drift(rack: &VirtualRack, machine: &Machine) -> Vec<String> {
    let told = ask(rack, machine, "hardware").await;
    let findings = told["findings"].as_array().unwrap().iter();
    let of_firmware = findings.filter(|finding| finding["component"] == "firmware");
    of_firmware.map(|finding| finding["text"].as_str().unwrap().to_owned()).collect()
}

async fn begin(rack: &VirtualRack, machine: &Machine, names: &[&str]) -> Value {
    rack.operator.act(machine.mac(), "update-firmware", json!({"firmware": names})).await.unwrap()
}

/// The machine's updates, after this run has ended so.
async fn ended(rack: &VirtualRack, machine: &Machine, run: &Value, status: &str) -> (String, Value) {
    let run = rack.operator.wait_for_end(run).await;
    assert_eq!(run["status"], status, "{run:#}");
    let detail = run["detail"].as_str().unwrap_or_default().to_owned();
    (detail, ask(rack, machine, "firmware-updates").await["items"].clone())
}

async fn is_sent(toy: &ToyDrive, machine: &Machine) {
    wait::until("the drive is told to take firmware", PATIENCE, async || {
        if toy.sent() > 0 { Ok(()) } else { Err(machine.screen()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_script_updates_a_drive_once_although_agent_boot_and_controller_go_down_meanwhile() {
    let mut rack = VirtualRack::new().await;
    import(&rack, "toy-2.0", AT_ONCE).await;
    let rules = json!({"vendor": "Simulated", "expects": {"baseline": ["toy-2.0"]}});
    rack.operator.post("/v1/plans", json!({"name": "toys", "rules": rules})).await.unwrap();
    let (machine, toy) = with_toy(&mut rack, Way::Waits).await;
    wait::until("its drive is told of", PATIENCE, async || {
        let found = drift(&rack, &machine).await;
        if found == ["firmware of nvme is 1.0, 2.0 is wanted (toy-2.0)"] { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
    let starts = machine.starts();
    let run = rack.operator.act(machine.mac(), "update-firmware", json!({})).await.unwrap();
    is_sent(&toy, &machine).await;
    for service in [Service::Agent, Service::Boot, Service::Controller] {
        rack.kill(service).await;
        rack.start(service).await;
    }
    toy.go_on().unwrap();
    let (_, told) = ended(&rack, &machine, &run, "done").await;
    assert_eq!((toy.sent(), toy.version(), machine.starts()), (1, "2.0".to_owned(), starts));
    let first = &told[0];
    assert_eq!(
        (&first["was"], &first["state"], &first["place"]),
        (&json!("1.0"), &json!("installed"), &json!("drives SIMDISK"))
    );
    assert_eq!(first["result"], json!({"drives": 1, "findings": []}));
    assert!(first["output"].as_str().unwrap().contains("vda:  (status 0)"), "{first}");
    assert_eq!(drift(&rack, &machine).await, [""; 0]);
    rack.becomes(&machine, "ready").await;

    // It has what is wanted: nothing is run.
    let run = begin(&rack, &machine, &["toy-2.0"]).await;
    ended(&rack, &machine, &run, "done").await;
    assert_eq!(toy.sent(), 1);
    rack.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_is_reset_in_an_update_is_read_and_the_script_is_not_run_again() {
    let mut rack = VirtualRack::new().await;
    import(&rack, "toy-2.0", AT_ONCE).await;
    let (machine, toy) = with_toy(&mut rack, Way::Waits).await;
    let run = begin(&rack, &machine, &["toy-2.0"]).await;
    is_sent(&toy, &machine).await;
    machine.reset(true);
    let (why, _) = ended(&rack, &machine, &run, "failed").await;
    assert!(why.contains("the machine started anew while the script ran, which is not run again"), "{why}");
    assert_eq!((toy.sent(), toy.version().as_str()), (1, "1.0"));
    rack.becomes(&machine, "quarantined").await;

    // Whoever looks at it may have it done again, which reads first.
    toy.become_(Way::Works).unwrap();
    let run = begin(&rack, &machine, &["toy-2.0"]).await;
    ended(&rack, &machine, &run, "done").await;
    assert_eq!((toy.sent(), toy.version().as_str()), (2, "2.0"));
    rack.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scripts_that_lie_hang_or_fail_say_why_and_keep_their_machine_out_of_service() {
    let mut rack = VirtualRack::new().await;
    import(&rack, "toy-2.0", AT_ONCE).await;
    import(&rack, "toy-hasty", "arguments = [\"activate\"]\ntimeout = 1").await;
    import(&rack, "toy-odd", "arguments = [\"prayer\"]\ntimeout = 60").await;
    let (machine, toy) = with_toy(&mut rack, Way::Works).await;
    // What its script refuses changes nothing.
    let run = begin(&rack, &machine, &["toy-odd"]).await;
    let (why, _) = ended(&rack, &machine, &run, "failed").await;
    assert!(why.contains("nothing is changed: unknown argument prayer"), "{why}");
    rack.becomes(&machine, "ready").await;
    for (way, name, wanted) in [
        (Way::Lies, "toy-2.0", "all is well, and drives SIMDISK should have 2.0 by now, and vda has 1.0"),
        (Way::Fails, "toy-2.0", "Invalid Firmware Image; drives SIMDISK should have 2.0 by now, and vda has 1.0"),
        (Way::Hangs, "toy-hasty", "was not done within its limit"),
    ] {
        toy.become_(way).unwrap();
        let run = begin(&rack, &machine, &[name]).await;
        let (why, told) = ended(&rack, &machine, &run, "failed").await;
        assert!(why.contains(wanted), "{way:?}: {why}");
        assert_eq!(told[0]["state"], "failed");
        let row = rack.becomes(&machine, "quarantined").await;
        assert!(row["held"]["reason"].as_str().unwrap().contains(wanted), "{row:#}");
    }
    rack.stop().await.unwrap();
}

fn flashes(running: &Running) -> usize {
    running.bmc.lock().flashes.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_run_has_a_script_and_a_bmc_update_in_their_order_with_a_start_where_one_is_needed() {
    let mut rack = VirtualRack::new().await;
    import(&rack, "toy-drive", "restart = true\ntimeout = 60\norder = 20").await;
    let file = b"bmc";
    let manifest = format!(
        "name = \"toy-bmc\"\ncomponent = \"bmc\"\nversion = \"2.18\"\nmethod = \"redfish\"\nfile = \"bmc-2.18.bin\"\n\
         size = {}\nsha256 = \"{}\"\ntimeout = 60\nsettle = 2\norder = 30\n[match]\nvendor = \"Simulated\"\n",
        file.len(),
        hex::encode(Sha256::digest(file)),
    );
    rack.operator.firmware(&manifest, file).await.unwrap();
    let (machine, toy) = with_toy(&mut rack, Way::Lies).await;
    let (running, _behind) = bmc(&machine, Personality::generic(1)).await;
    running.bmc.set_faults(Faults { flashing: Flashing::Works, ..Faults::default() });
    reach(&rack, &machine, "redfish", running.redfish).await;
    // The drive comes first, and the BMC's turn does not come.
    let starts = machine.starts();
    let run = begin(&rack, &machine, &["toy-bmc", "toy-drive"]).await;
    let (why, _) = ended(&rack, &machine, &run, "failed").await;
    assert!(why.contains("drives SIMDISK should have 2.0 by now, and vda has 1.0"), "{why}");
    assert_eq!((machine.starts(), toy.sent(), flashes(&running)), (starts + 1, 1, 0));
    rack.becomes(&machine, "quarantined").await;

    toy.become_(Way::Works).unwrap();
    let run = begin(&rack, &machine, &["toy-bmc", "toy-drive"]).await;
    let (_, told) = ended(&rack, &machine, &run, "done").await;
    assert_eq!((machine.starts(), toy.sent(), flashes(&running)), (starts + 2, 2, 1));
    assert_eq!((toy.version().as_str(), running.bmc.lock().firmware.as_str()), ("2.0", "2.18"));
    let states: Vec<_> = told.as_array().unwrap().iter().take(2).map(|update| update["state"].clone()).collect();
    assert_eq!(states, ["installed", "installed"]);
    rack.stop().await.unwrap();
}
