//! Machines that are adopted while they run.

use rackhand_common::{
    bmc::{Found, Identity, Part, PartKind, Parts},
    machine::Nic,
};
use rackhand_controller_core::access::{Binding, Role};

use super::*;
use crate::{
    adoptions::telling,
    api::walk::World,
    store::{Intake, MetBmc},
};

const PATH: &str = "/v1/racks/lab/running-machines";

fn said() -> Value {
    json!({"name": "web-1", "serial": "S1", "macs": ["52:54:00:00:09:01"]})
}

fn with(changes: Value) -> Value {
    let mut said = said();
    said.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    said
}

/// A rack of one discovered machine, a project and a pool.
async fn world(on: On) -> World {
    World::new(on).await
}

async fn told(world: &World, body: Value) -> String {
    let (status, answer) = world.bench.ask(Method::POST, PATH, body.to_string()).await;
    let detail = answer["detail"].as_str().map(str::to_owned);
    format!("{} {}", status.as_u16(), detail.unwrap_or_else(|| answer["machine"]["name"].as_str().unwrap().to_owned()))
}

async fn what_somebody_else_has_is_named_and_nothing_is_kept(on: On) {
    let world = world(on).await;
    let known = world.names["machine"].clone();
    let wish = json!({"pool": "p4", "prefix": "10.9.0.9", "name": "vpn"}).to_string();
    let (status, vpn) = world.bench.ask(Method::POST, "/v1/claims", wish).await;
    assert_eq!(status, StatusCode::CREATED, "{vpn}");
    let vpn = vpn["id"].as_str().unwrap().to_owned();
    assert_eq!(
        told(&world, with(json!({"name": "db-1", "serial": "S0", "macs": ["52:54:00:00:00:10"]}))).await,
        "201 db-1"
    );
    let before = world.bench.app.store.dump().await;
    let (_, machines) = world.bench.ask(Method::GET, "/v1/machines", "").await;
    let theirs = machines["items"].as_array().unwrap().iter().find(|row| row["name"] == known.as_str()).unwrap();
    let mut out = String::new();
    for changes in [
        json!({"macs": [theirs["macs"][0]]}),
        json!({"serial": "S0"}),
        json!({"address": theirs["address"]}),
        json!({"address": "10.77.0.1"}),
        json!({"address": "10.99.0.1"}),
        json!({"holds": ["10.9.0.8", "10.9.0.9"]}),
        json!({"holds": ["172.16.0.1"]}),
        json!({"bmc": "10.20.0.9"}),
        json!({"bmc": "10.20.0.5"}),
        json!({"serial": " ", "uuid": null}),
        json!({"serial": "", "uuid": "ffffffff-ffff-ffff-ffff-ffffffffffff"}),
        json!({"macs": []}),
        json!({"macs": ["01:00:5e:00:00:01"]}),
        json!({"name": "Web 1"}),
        json!({"project": "nowhere"}),
        json!({"name": "db-1"}),
        json!({"lifecycle": "ready"}),
        json!({"serial": "x".repeat(200)}),
        json!({"disks": vec![json!({}); 65]}),
    ] {
        out += &told(&world, with(changes)).await.replace(&known, "KNOWN").replace(&vpn, "CLAIM");
        out.push('\n');
    }
    expect![[r#"
        409 network card 52:54:00:00:00:01 is machine KNOWN's
        409 serial number S0 is machine db-1's
        409 the address 10.77.0.100 on the rack's network is machine KNOWN's
        422 /address: 10.77.0.1 is no machine's address on the rack's network 10.77.0.0/24
        422 /address: 10.99.0.1 is no machine's address on the rack's network 10.77.0.0/24
        409 10.9.0.9/32 is not free: 10.9.0.9/32 is claimed by vpn (claim CLAIM)
        422 /holds/0: 172.16.0.1/32 is in no pool; leave it out, or make one
        422 /bmc: no BMC was found at 10.20.0.9; `rackhand bmc found` lists those that were
        422 /bmc: no BMC was found at 10.20.0.5; `rackhand bmc found` lists those that were
        422 /serial: nobody says which machine it is: say the serial number or UUID of its mainboard, or a BMC that tells one
        422 /serial: nobody says which machine it is: say the serial number or UUID of its mainboard, or a BMC that tells one
        422 /macs: nobody says which network cards it has: were it to start from the network, nobody would know it; say at least the one it boots from
        422 /macs: 01:00:5e:00:00:01 is no card's address
        422 /name: begins with a lower-case letter or digit, continues with those, `.`, `-` or `_`, is at most 63 long and no UUID
        404 there is no such project
        409 machine db-1 is known, and is not what is said here: its mainboard is S0 (no UUID), and not S1 (no UUID)
        422 /lifecycle: unknown field `lifecycle`, expected one of `name`, `bmc`, `serial`, `uuid`, `macs`, `project`, `address`, `holds`, `seen`, `vendor`, `product`, `firmware`, `cpu`, `threads`, `memory`, `disks` at line 1 column 12
        422 /serial: at most 128 characters
        422 /disks: at most 64
    "#]].assert_eq(&out);
    let refused = world.bench.app.store.dump().await;
    assert_eq!(before, refused, "something is left behind");
}

async fn a_machine_that_runs_is_somebodys_told_to_boot_its_disk_and_known_when_it_is_said_again(on: On) {
    let world = world(on).await;
    let body = with(json!({
        "project": "acme:shop", "holds": ["10.9.0.16/30"], "seen": ["10.9.0.20", "10.77.0.50"], "firmware": "uefi",
        "disks": [{"name": "sda", "serial": "D1", "size": 1000}], "threads": 8,
    }));
    let (status, made) = world.bench.ask(Method::POST, PATH, body.to_string()).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    let row = &made["machine"];
    assert_eq!((&row["lifecycle"], &row["project"]), (&json!("active"), &json!("acme:shop")));
    assert_eq!(row["inventory"]["firmware"], "uefi");
    assert_eq!(made["claimed"], json!(["10.9.0.16/30", "10.9.0.20/32"]));
    assert_eq!(made["unclaimed"], json!(["10.77.0.50/32"]));
    assert_eq!(row["address"], "10.77.0.2");
    let machine = world.bench.app.store.machine("web-1").await.unwrap();
    let intent = crate::intent::machine(&machine);
    assert_eq!((intent.boot, intent.order), (rackhand_common::intent::Boot::Disk, None));
    assert!(machine.changes().is_empty());
    let (_, claims) = world.bench.ask(Method::GET, "/v1/claims?machine=web-1", "").await;
    let of_shop = |claim: &Value| claim["project"] == "acme:shop";
    assert!(claims["items"].as_array().unwrap().iter().all(of_shop), "{claims}");

    // Once more, with a card that nobody knew of, and another address.
    let more = with(json!({"macs": ["52:54:00:00:09:02"], "holds": ["10.9.0.16/30", "10.9.0.24"]}));
    let (status, again) = world.bench.ask(Method::POST, PATH, more.to_string()).await;
    assert_eq!((status, &again["was_known"]), (StatusCode::OK, &json!(true)), "{again}");
    assert_eq!(again["machine"]["macs"], json!(["52:54:00:00:09:01", "52:54:00:00:09:02"]));
    assert_eq!(again["claimed"], json!(["10.9.0.16/30", "10.9.0.24/32"]));
    let (_, third) = world.bench.ask(Method::POST, PATH, more.to_string()).await;
    assert_eq!(third["machine"], again["machine"]);
    let refused = told(&world, with(json!({"serial": "S9"}))).await;
    expect![
        "409 machine web-1 is known, and is not what is said here: its mainboard is S1 (no UUID), and not S9 (no UUID)"
    ]
    .assert_eq(&refused);
}

async fn whoever_may_not_adopt_give_or_hand_out_addresses_there_adopts_no_running_machine(on: On) {
    let world = world(on).await;
    let scope = |name: &str| world.scopes.iter().find(|(is, _)| *is == name).unwrap().1;
    let ask = async |token: &str, body: Value| {
        let (status, answer) = world.bench.ask_as(token, Method::POST, PATH, body.to_string()).await;
        (status.as_u16(), answer["detail"].as_str().unwrap_or_default().to_owned())
    };
    let technician = world.token("tom", Binding { role: Role::Technician, scope: scope("its rack") }).await;
    let operator = world.token("ann", Binding { role: Role::Operator, scope: scope("its rack") }).await;
    let elsewhere = world.token("eve", Binding { role: Role::Owner, scope: scope("another rack") }).await;
    let tenant = world.token("sue", Binding { role: Role::Owner, scope: scope("its project") }).await;
    let mut out = String::new();
    for (who, token, body) in [
        ("of another rack", &elsewhere, said()),
        ("a project's owner", &tenant, said()),
        ("an operator who sees no project", &operator, with(json!({"project": "acme:shop"}))),
        ("a technician who may hand out no addresses", &technician, with(json!({"holds": ["10.9.0.8"]}))),
        ("a technician", &technician, said()),
    ] {
        let (status, detail) = ask(token, body).await;
        out += &format!("{who}: {status} {detail}\n");
    }
    expect![[r#"
        of another rack: 404 there is no such rack
        a project's owner: 404 there is no such rack
        an operator who sees no project: 404 there is no such project
        a technician who may hand out no addresses: 403 address.claim needs one of the roles owner, admin, operator, collaborator there
        a technician: 201 
    "#]].assert_eq(&out);
}

/// A BMC that was found and logged in to, and says that it is of this mainboard.
async fn met(world: &World, address: &str, serial: &str) {
    let rack: RackId = world.names["rack"].parse().unwrap();
    let found = Found { vendor: Some("Acme".into()), ..Found::at(address.parse().unwrap()) };
    let mut tx = world.bench.app.store.begin().await.unwrap();
    tx.bmc_is_found(Timestamp::UNIX_EPOCH, rack, &found).await.unwrap();
    let known = tx.found_bmc(rack, address.parse().unwrap()).await.unwrap().unwrap();
    let identity = Identity { serial: Some(serial.into()), model: Some("M1".into()), ..Identity::default() };
    let met = Some(MetBmc { identity, fingerprint: None, by_factory: false });
    tx.note_found_bmc(&crate::store::FoundBmc { intake: Intake::Met, met, ..known }).await.unwrap();
    tx.commit().await.unwrap();
}

async fn what_a_bmc_says_fills_in_what_nobody_said_and_contradicts_what_somebody_did(on: On) {
    let world = world(on).await;
    met(&world, "10.20.0.7", "S7").await;
    let body = json!({"name": "web-1", "bmc": "10.20.0.7"});
    expect!["409 the BMC at 10.20.0.7 says that it is of S7, and you say S1 (no UUID)"]
        .assert_eq(&told(&world, with(json!({"bmc": "10.20.0.7"}))).await);
    assert_eq!(told(&world, body).await, "201 web-1");
    let machine = world.bench.app.store.machine("web-1").await.unwrap();
    assert_eq!((machine.inventory.system.serial.as_str(), machine.inventory.system.product.as_str()), ("S7", "M1"));
    assert!(machine.macs.is_empty());

    // It tells what is in it: another machine's card is not this one's for that.
    let other = world.bench.app.store.machine(&world.names["machine"]).await.unwrap();
    let part = |kind, serial: &str, macs: Vec<Mac>| Part {
        kind,
        slot: "1".into(),
        vendor: None,
        model: Some("m".into()),
        part_number: None,
        serial: Some(serial.into()),
        firmware: None,
        size: Some(1 << 30),
        macs,
        severity: None,
    };
    let own = Mac([2, 0, 0, 0, 0, 7]);
    let parts = vec![
        part(PartKind::Nic, "n", vec![own, other.macs[0]]),
        part(PartKind::Drive, "D7", Vec::new()),
        part(PartKind::Memory, "r", Vec::new()),
    ];
    let parts = Parts { parts, skipped: Vec::new() };
    let store = &world.bench.app.store;
    assert!(telling::keep(store, Timestamp::UNIX_EPOCH, machine.id, &parts).await.unwrap());
    let known = store.machine("web-1").await.unwrap();
    assert_eq!((known.macs.clone(), known.inventory.memory), (vec![own], 1 << 30));
    assert_eq!(known.inventory.disks[0].serial, "D7");
    // Shown, and not accepted.
    assert!(known.accepted.as_ref().unwrap().disks.is_empty() && known.changes().is_empty());

    // Once an installer has looked, a BMC says nothing any more.
    let mut tx = store.begin().await.unwrap();
    let mut seen = known.clone();
    seen.connection = 1;
    seen.inventory = Arc::new(Inventory {
        nics: vec![Nic { name: "eth0".into(), mac: own, driver: String::new(), link: true }],
        ..Inventory::clone(&seen.inventory)
    });
    tx.update_machine(Timestamp::UNIX_EPOCH, &mut seen).await.unwrap();
    tx.commit().await.unwrap();
    assert!(!telling::keep(store, Timestamp::UNIX_EPOCH, machine.id, &parts).await.unwrap());
}

on_both! {
    what_somebody_else_has_is_named_and_nothing_is_kept,
    a_machine_that_runs_is_somebodys_told_to_boot_its_disk_and_known_when_it_is_said_again,
    whoever_may_not_adopt_give_or_hand_out_addresses_there_adopts_no_running_machine,
    what_a_bmc_says_fills_in_what_nobody_said_and_contradicts_what_somebody_did,
}
