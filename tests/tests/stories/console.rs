//! Machines' serial consoles, by simulated BMCs.

use std::{sync::Arc, time::Duration};

use rackhand_bmc_sim::{Addresses, Boot, Chassis, Personality, Running, Simulator};
use rackhand_common::wire::{self, FromConsole, LocalRequest, LocalResponse, ToConsole};
use rackhand_tests::{Console, Machine, Model, VirtualRack, operator::PATIENCE, rack::Service, wait};
use reqwest::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

struct Behind(Machine);

impl Chassis for Behind {
    fn power(&self) -> bool {
        Chassis::power(&self.0)
    }

    fn set_power(&self, on: bool) -> Result<(), String> {
        Chassis::set_power(&self.0, on)
    }

    fn set_boot(&self, boot: &Boot) -> Result<(), String> {
        self.0.set_boot(boot)
    }
}

/// Puts a BMC in front of a ready machine, and says how it is reached; and the machine's id.
pub(crate) async fn bmc(rack: &VirtualRack, machine: &Machine) -> (Running, String) {
    let mut personality = Personality::generic(1);
    (personality.serial, personality.uuid) = machine.mainboard();
    personality.users[0].name = "rackhand".into();
    personality.users[0].password = "secret".into();
    let running = Simulator::start(personality, Arc::new(Behind(machine.clone())), Addresses::default()).await.unwrap();
    let row = rack.operator.machine(machine.mac()).await.unwrap().unwrap();
    let id = row["id"].as_str().unwrap().to_owned();
    let access =
        json!({"address": running.ipmi.to_string(), "protocol": "ipmi", "user": "rackhand", "password": "secret"});
    rack.operator.ask(Method::PUT, &format!("/v1/racks/r1/bmcs/{id}"), Some(access)).await.unwrap();
    (running, id)
}

/// A machine that answers what is typed in capitals.
pub(crate) fn answers(running: &Running) {
    let mut line = running.bmc.serial_line().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 512];
        while let Ok(length @ 1..) = line.read(&mut buffer).await {
            let answer = buffer[..length].to_ascii_uppercase();
            if line.write_all(&answer).await.is_err() {
                return;
            }
        }
    });
}

/// Opens a console once the agent has been told of its BMC.
pub(crate) async fn open(rack: &VirtualRack, id: &str) -> Console {
    let open = async || rack.operator.console(id).await.map_err(|error| format!("{error:#}"));
    wait::until("the console is opened", PATIENCE, open).await
}

/// The operator's program shows what was printed, too.
async fn shown_by_the_program(rack: &VirtualRack, machine: &str, wanted: &str) {
    let test = std::env::current_exe().unwrap();
    let mut program = tokio::process::Command::new(test.parent().unwrap().parent().unwrap().join("rackhand"))
        .args(["console", machine, "--watch"])
        .env("RACKHAND_CONTROLLER", rack.operator.url())
        .env("RACKHAND_TOKEN", rack.operator.token())
        .env("RACKHAND_CA", rack.path("controller/pki/ca.pem"))
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("`cargo build --workspace --bins` was run before");
    let mut printed = program.stdout.take().unwrap();
    let mut shown = Vec::new();
    let look = async {
        while !String::from_utf8_lossy(&shown).contains(wanted) {
            assert!(printed.read_buf(&mut shown).await.unwrap() > 0, "it ended: {}", String::from_utf8_lossy(&shown));
        }
    };
    tokio::time::timeout(PATIENCE, look).await.expect("the program shows the console");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_watch_a_console_one_writes_and_an_agent_that_starts_anew_has_it_back() {
    let mut rack = VirtualRack::new().await;
    let machine = rack.machine(Model::default());
    rack.ready(&machine).await;
    let row = rack.operator.machine(machine.mac()).await.unwrap().unwrap();
    let refused = rack.operator.console(row["id"].as_str().unwrap()).await.unwrap_err().to_string();
    assert!(refused.contains("rackhand bmc set"), "{refused}");
    let (running, id) = bmc(&rack, &machine).await;
    answers(&running);

    let mut ada = open(&rack, &id).await;
    ada.shows("the console is open").await;
    ada.type_in("hello").await;
    ada.shows("HELLO").await;
    ada.keyboard(Some("admin"), true).await;

    // Who comes later sees what was printed before, and has no keyboard.
    let mut bob = open(&rack, &id).await;
    bob.shows("HELLO").await;
    bob.keyboard(Some("admin"), false).await;
    bob.type_in("dropped").await;
    bob.wish("take").await;
    bob.keyboard(Some("admin"), true).await;
    ada.keyboard(Some("admin"), false).await;
    ada.type_in("nothing").await;
    // Of the two, in which order they are heard is not known.
    ada.listen(Duration::from_millis(500)).await;
    bob.type_in("mine").await;
    bob.shows("MINE").await;
    ada.shows("MINE").await;
    assert!(!bob.shown.contains("DROPPED") && !bob.shown.contains("NOTHING"), "{}", bob.shown);

    // The keyboard of who leaves is free.
    bob.leave().await;
    ada.keyboard(None, false).await;
    ada.type_in("again").await;
    ada.shows("AGAIN").await;
    shown_by_the_program(&rack, &id, "AGAIN").await;

    let recorded = async || {
        let records = rack.operator.get(&format!("/v1/audit?about={id}&limit=200")).await.unwrap().to_string();
        let is_there =
            ["(opened)", "(has the keyboard)", "(left, 4 bytes typed)"].iter().all(|what| records.contains(what));
        is_there.then_some(records.clone()).ok_or(records)
    };
    let records = wait::until("all of it is in the record", PATIENCE, recorded).await;
    assert!(!records.contains("hello") && !records.contains("mine"), "{records}");

    // An agent that is killed leaves the BMC with a session that nobody has.
    rack.kill(Service::Agent).await;
    ada.until("the end is told", |console| console.told.iter().any(|told| told["event"] == "ended")).await;
    rack.start(Service::Agent).await;
    let mut ada = open(&rack, &id).await;
    ada.shows("open elsewhere").await;
    ada.wish("take").await;
    ada.shows("the console is open").await;
    ada.type_in("back").await;
    ada.shows("BACK").await;

    // With the controller away, the node's own tool has it.
    rack.kill(Service::Controller).await;
    let mut node = tokio::net::UnixStream::connect(rack.path("agent.sock")).await.unwrap();
    let request = LocalRequest::Console { machine: machine.mac().to_string(), who: "tech".into() };
    node.write_all(&wire::frame(&request)).await.unwrap();
    let mut shown = String::new();
    assert_eq!(told::<LocalResponse>(&mut node).await, LocalResponse::Console);
    node.write_all(&wire::frame(&ToConsole::Take)).await.unwrap();
    node.write_all(&wire::frame(&ToConsole::Typed(b"local".to_vec()))).await.unwrap();
    while !shown.contains("LOCAL") {
        if let FromConsole::Printed(bytes) = told(&mut node).await {
            shown += &String::from_utf8_lossy(&bytes);
        }
    }
    rack.stop().await.unwrap();
}

async fn told<T: serde::de::DeserializeOwned>(node: &mut tokio::net::UnixStream) -> T {
    let read = async {
        let mut prefix = [0; 4];
        node.read_exact(&mut prefix).await.unwrap();
        let mut body = vec![0; wire::frame_len(prefix).unwrap()];
        node.read_exact(&mut body).await.unwrap();
        wire::decode(&body).unwrap()
    };
    tokio::time::timeout(PATIENCE, read).await.expect("the agent tells something")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_is_recorded_and_the_session_is_given_back_when_the_bmc_loses_it() {
    let mut rack = VirtualRack::new().await;
    rack.image("sim-1", 3).await;
    let machine = rack.machine(Model::default());
    rack.ready(&machine).await;
    let (running, id) = bmc(&rack, &machine).await;
    let mut line = running.bmc.serial_line().unwrap();
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_millis(50));
        for number in 0_u32.. {
            ticks.tick().await;
            if line.write_all(format!("tick {number}\r\n").as_bytes()).await.is_err() {
                return;
            }
        }
    });
    let mut watcher = open(&rack, &id).await;
    watcher.shows("tick").await;
    let run = rack.operator.deploy(machine.mac(), "sim-1").await.unwrap();
    let run = run["id"].as_str().unwrap();
    rack.becomes(&machine, "active").await;
    let recorded = async || {
        let text = rack.operator.text(&format!("/v1/machines/{id}/console/log?run={run}")).await;
        let text = text.map_err(|error| format!("{error:#}"))?;
        if text.contains("tick") { Ok(text) } else { Err(text) }
    };
    wait::until("the run was recorded", PATIENCE, recorded).await;
    let latest = rack.operator.text(&format!("/v1/machines/{id}/console/log")).await.unwrap();
    assert!(latest.contains("tick"), "{latest}");

    // A BMC that forgets its sessions says nothing: it is found out.
    let before = watcher.shown.matches("the console is open").count();
    running.bmc.restart(jiff::SignedDuration::from_secs(1));
    watcher.until("it is open again", |console| console.shown.matches("the console is open").count() > before).await;
    let ticks = watcher.shown.matches("tick").count();
    watcher.until("more is printed", |console| console.shown.matches("tick").count() > ticks).await;
    rack.stop().await.unwrap();
}
