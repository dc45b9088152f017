//! Who is who: machines, installers and agents are not taken for one another.

use rackhand_agent::local::Client;
use rackhand_common::wire::{LocalRequest, LocalResponse};
use rackhand_installer::cmdline;
use rackhand_tests::{Model, Service, VirtualRack, operator::PATIENCE, wait};
use serde_json::json;

use crate::deploy::holds;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_neighbours_installer_cannot_use_a_ticket_and_the_rightful_one_is_not_disturbed() {
    let mut rack = VirtualRack::new().await;
    let raw = rack.image("sim-1", 3).await;
    let machine = rack.machine(Model::default());
    let adopted = rack.ready(&machine).await;

    // With all that the victim's command line said, and with the ticket but its own card.
    let stolen = cmdline::parse(&machine.installer_line().unwrap()).unwrap();
    let (liar, thief) = (rack.machine(Model::default()), rack.machine(Model::default()));
    let own_card = cmdline::Parameters { mac: thief.mac(), ..stolen.clone() };
    liar.power_on_forged(stolen);
    thief.power_on_forged(own_card);
    wait::until("both are refused, and it is told", PATIENCE, async || {
        let history = rack.operator.history(machine.mac()).await.map_err(|error| error.to_string())?;
        let refused: Vec<_> = history.iter().filter(|(kind, _)| kind == "ticket_refused").collect();
        let told = |words: &str| refused.iter().any(|(_, text)| text.contains(words));
        let card = format!("for card {}", thief.mac());
        if told("already used by another installer") && told(&card) { Ok(()) } else { Err(format!("{refused:?}")) }
    })
    .await;

    rack.operator.deploy(machine.mac(), "sim-1").await.unwrap();
    let active = rack.becomes(&machine, "active").await;
    assert_eq!(active["id"], adopted["id"]);
    assert_eq!(machine.starts(), 2, "it was restarted in between");
    assert_eq!((liar.drive().writes(), thief.drive().writes()), (vec![], vec![]));
    holds(&machine, &raw);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_keeps_its_identity_and_address_through_all_its_programs() {
    let mut rack = VirtualRack::new().await;
    rack.image("sim-1", 3).await;
    let machine = rack.machine(Model { firmware: rackhand_common::machine::Firmware::Uefi, ..Model::default() });
    let ready = rack.ready(&machine).await;
    rack.operator.deploy(machine.mac(), "sim-1").await.unwrap();
    rack.becomes(&machine, "active").await;
    machine.reset(true);
    machine.system_up(PATIENCE).await;
    let machines = rack.operator.get("/v1/machines").await.unwrap();
    let [one] = machines["items"].as_array().unwrap().as_slice() else { panic!("{machines:#}") };
    assert_eq!((&one["id"], &one["address"], &one["alert"]), (&ready["id"], &ready["address"], &json!(null)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_enrolment_code_works_once() {
    let rack = VirtualRack::new().await;
    let code = rack.code().await.unwrap();
    rack.enrol(&code, &rack.path("second")).await.unwrap();
    let refused = rack.enrol(&code, &rack.path("third")).await.unwrap_err();
    assert!(format!("{refused:#}").contains("the controller refused"), "{refused:#}");
    assert!(!rack.path("third/identity.json").exists());
    // The node that was the rack's until then is revoked: one agent acts for a rack.
    let agents = rack.operator.get("/v1/agents").await.unwrap();
    let agents = agents["items"].as_array().unwrap();
    let revoked = agents.iter().filter(|agent| !agent["revoked"].is_null()).count();
    assert_eq!((agents.len(), revoked), (2, 1), "{agents:#?}");
}

/// What the technician of the agent behind this socket is told of its uplink.
pub(crate) async fn uplink(rack: &VirtualRack, socket: &str) -> String {
    let mut client = Client::connect(&rack.path(socket)).await.unwrap();
    let LocalResponse::Status(view) = client.ask(&LocalRequest::Status).await.unwrap() else { panic!("no status") };
    view.uplink
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_starts_of_one_agent_the_newest_is_served_and_the_older_stops_acting() {
    let mut rack = VirtualRack::new().await;
    let machine = rack.machine(Model::default());
    rack.ready(&machine).await;

    // One that was killed and starts again is no second process.
    rack.restart(Service::Agent).await;
    let connected = async |socket: &str| {
        wait::until("the agent is connected", PATIENCE, async || {
            let shown = uplink(&rack, socket).await;
            if shown.starts_with("connected") { Ok(()) } else { Err(shown) }
        })
        .await;
    };
    connected("agent.sock").await;

    // A node that was cloned, identity and all.
    std::fs::create_dir(rack.path("clone")).unwrap();
    std::fs::copy(rack.path("agent/identity.json"), rack.path("clone/identity.json")).unwrap();
    let clone = rack.agent(&rack.path("clone"), "clone.sock").await.unwrap();
    wait::until("the older has stood down", PATIENCE, async || {
        let (older, newer) = (uplink(&rack, "agent.sock").await, uplink(&rack, "clone.sock").await);
        let stood_down = older.contains("newer process") && newer.starts_with("connected");
        if stood_down { Ok(()) } else { Err(format!("older: {older}; newer: {newer}")) }
    })
    .await;

    // What is asked for now is done by the newest, once.
    rack.operator.act(machine.mac(), "power", json!({ "action": "off" })).await.unwrap();
    rack.wait_for(&machine, "off", |machine| machine["power"] == "off" && machine["run"].is_null()).await;
    assert_eq!(machine.effects(), [rackhand_tests::machine::Effect::Off]);
    assert!(uplink(&rack, "clone.sock").await.starts_with("connected"), "the older came back");
    // Which is told once, with both.
    let alerts = rack.operator.alerts().await.unwrap();
    let [alert] = alerts.as_slice() else { panic!("{alerts:#?}") };
    let node = rack.operator.get("/v1/agents").await.unwrap()["items"][0]["id"].as_str().unwrap().to_owned();
    assert!(alert.contains(&format!("two processes run as agent {node} of rack r1")), "{alert}");
    assert_eq!((alert.matches(" from 127.").count(), alert.matches(" since ").count()), (2, 2), "{alert}");
    clone.stop().await.unwrap();

    // Restarted, the older is the newest.
    rack.restart(Service::Agent).await;
    rack.operator.act(machine.mac(), "power", json!({ "action": "on" })).await.unwrap();
    rack.wait_for(&machine, "on", |machine| machine["power"] == "on" && machine["run"].is_null()).await;
}
