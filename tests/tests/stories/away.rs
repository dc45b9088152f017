//! A rack and its machines come back after a very long time.

use jiff::SignedDuration;
use rackhand_common::image::CHUNK;
use rackhand_tests::{Model, Service, VirtualRack, clock::Wall, operator::PATIENCE, wait};
use serde_json::json;

use crate::{deploy::holds, identity::uplink};

/// Two years: the controller's own certificate is made anew meanwhile, the node's has long ended.
const AWAY: SignedDuration = SignedDuration::from_hours(2 * 365 * 24);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machines_that_come_back_after_two_years_are_not_erased() {
    let mut rack = VirtualRack::at(Wall::ago(AWAY)).await;
    let raw = rack.image("sim-1", 14).await;
    let large = Model { disk: 72 << 20, ..Model::default() };
    let [tenants, halfway, another] = [large; 3].map(|model| rack.machine(model));
    let known = rack.active(&tenants, "sim-1").await;
    rack.active(&another, "sim-1").await;
    rack.ready(&halfway).await;

    // Two are switched off with their tenants' systems, one in the middle of a deploy.
    tenants.power_off();
    halfway.drive().hold_from(2 * CHUNK);
    let deploy = rack.operator.deploy(halfway.mac(), "sim-1").await.unwrap();
    halfway.drive().held(PATIENCE).await;
    halfway.power_off();
    halfway.drive().let_go();
    let stale = halfway.installer_line().unwrap();
    let controller = std::fs::read(rack.path("controller/pki/controller.pem")).unwrap();
    for service in [Service::Boot, Service::Agent, Service::Controller] {
        rack.kill(service).await;
    }
    another.power_off();
    let before = [&tenants, &halfway, &another].map(|machine| machine.drive().contents().unwrap());

    rack.wall.forward(AWAY);
    rack.start(Service::Controller).await;
    assert_ne!(std::fs::read(rack.path("controller/pki/controller.pem")).unwrap(), controller);
    rack.start(Service::Agent).await;
    rack.start(Service::Boot).await;
    wait::until("the node says what it needs", PATIENCE, async || {
        let shown = uplink(&rack, "agent.sock").await;
        if shown.contains("ENDED") && shown.contains("rackhand agent enrol --rack") { Ok(()) } else { Err(shown) }
    })
    .await;
    // Its machines boot already: the tenant's own system, without the controller.
    tenants.reset(true);
    tenants.system_up(PATIENCE).await;

    // An installer with what the rack told it then is refused, and writes nothing.
    let sleeper = rack.machine(Model::default());
    sleeper.power_on_forged(rackhand_installer::cmdline::parse(&stale).unwrap());
    rack.kill(Service::Agent).await;
    let replaced = rack.operator.post("/v1/agents/r1/replace", json!({})).await.unwrap();
    rack.enrol(replaced["code"].as_str().unwrap(), &rack.path("agent")).await.unwrap();
    rack.start(Service::Agent).await;

    let run = rack.operator.wait_for_end(&deploy).await;
    assert_eq!((&run["status"], &run["cause"]), (&json!("failed"), &json!("overdue")), "{run:#}");
    let row = rack.becomes(&halfway, "ready").await;
    assert_eq!(row["run"], json!(null), "{row:#}");
    let row = rack.becomes(&tenants, "active").await;
    assert_eq!((&row["id"], &row["address"]), (&known["id"], &known["address"]));
    another.power_off();
    another.power_on();
    let row = rack.becomes(&another, "active").await;
    assert_eq!(row["run"], json!(null), "{row:#}");
    let after = [&tenants, &halfway, &another].map(|machine| machine.drive().contents().unwrap());
    assert!(before == after, "a disk was written");
    assert_eq!(sleeper.drive().writes(), []);
    let refused = rack.operator.history(halfway.mac()).await.unwrap();
    assert!(refused.iter().any(|(kind, _)| kind == "ticket_refused"), "{refused:#?}");
    holds(&tenants, &raw);
    holds(&another, &raw);
}
