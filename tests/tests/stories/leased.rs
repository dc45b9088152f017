//! BMCs that ask the rack's node itself for an address: found by that, joined, and followed when their cards
//! are given another one.

use std::time::Duration;

use rackhand_bmc_sim::{Addresses, Faults, Nvram, Running, Simulator};
use rackhand_common::machine::Mac;
use rackhand_tests::{
    Machine, Model, VirtualRack,
    dhcp::{Lease, Program, ask_once, obtain},
    operator::PATIENCE,
    rack::Service,
    wait,
};
use serde_json::{Value, json};

use super::{
    bmc::{behind, bmc_becomes},
    discovery::{IPMI, REDFISH, found, fresh, is, there, try_factory},
};

/// The card of the only BMC.
const CARD: Mac = Mac([0x02, 0, 0, 0, 0x0b, 0x01]);

/// How long a client waits that is to get nothing: whether it does is seen from what was told of it, too.
const NOTHING: Duration = Duration::from_millis(200);

/// Has the node ask leased addresses where the BMCs here speak, and sweep nothing.
fn look_at_leases(rack: &VirtualRack) {
    let looking = |config: &mut rackhand_agent::agent::Config| {
        // Whoever waits for a sweep waits longer than any story.
        config.discovery.every = Duration::from_secs(3600);
        (config.discovery.ipmi, config.discovery.redfish) = (IPMI, REDFISH);
    };
    rack.reload_agent(looking).unwrap();
}

async fn leased(rack: &VirtualRack, mac: Mac) -> Lease {
    let mut card = rack.management_card(mac);
    obtain(&mut *card, mac, Program::Bmc("iDRAC", "idrac-9QD4VG2")).await
}

/// A BMC that keeps its certificate and its users here, at this place.
async fn bmc_of(machine: &Machine, kept: &std::path::Path, there: Addresses) -> Running {
    let nvram = Some(Nvram::open(kept.to_owned()).unwrap());
    let running = Simulator::start_with(fresh(machine), behind(machine), there, nvram).await.unwrap();
    running.bmc.set_faults(Faults { locks_after: 3, ..Faults::default() });
    running
}

async fn events_of_rack(rack: &VirtualRack, kind: &str) -> Vec<String> {
    let events = rack.operator.get("/v1/events?limit=200").await.unwrap();
    let items = events["items"].as_array().unwrap().iter().filter(|event| event["kind"] == kind);
    items.map(|event| event["text"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bmc_that_asks_the_node_for_an_address_is_found_at_once_joined_and_followed_to_another_one() {
    let mut rack = VirtualRack::new().await;
    let machine = rack.machine(Model::default());
    rack.ready(&machine).await;
    rack.give_bmcs(56, 56).await;
    look_at_leases(&rack);
    try_factory(&rack).await;

    let lease = leased(&rack, CARD).await;
    assert_eq!(lease.address, rack.host(56));
    assert_eq!((lease.file.as_str(), lease.next_server.is_unspecified()), ("", true), "it is told what to boot");
    let silent = |found: &[Value]| {
        is(&["found"])(found) && found[0]["detail"].as_str().is_some_and(|words| words.contains("does not answer yet"))
    };
    let told = found(&rack, "it is listed before it answers", silent).await;
    assert_eq!(told[0]["found_by"], json!(["dhcp"]), "{told:?}");
    assert_eq!((&told[0]["mac"], &told[0]["hostname"]), (&json!(CARD), &json!("idrac-9QD4VG2")));
    assert_eq!(told[0]["vendor_class"], "iDRAC");
    assert_eq!(told[0]["known_by"], "vendor class and host name of Dell");

    // Whoever was told of the lease goes, and knows it when it is back.
    rack.restart(Service::Agent).await;
    look_at_leases(&rack);
    let kept = rack.path("nvram");
    let running = bmc_of(&machine, &kept, there(&rack, 56)).await;
    let told = found(&rack, "it is its machine's", is(&["joined"])).await;
    assert_eq!(told[0]["found_by"], json!(["dhcp"]));
    bmc_becomes(&rack, &machine, "it has another password", |told| told["rotated"].is_string()).await;

    // Another range: its card is given another address, and the same BMC answers there.
    drop(running);
    rack.give_bmcs(60, 60).await;
    assert_eq!(leased(&rack, CARD).await.address, rack.host(60));
    let running = bmc_of(&machine, &kept, there(&rack, 60)).await;
    let at = format!("{}:{REDFISH}", rack.host(60));
    bmc_becomes(&rack, &machine, "it is followed", |told| told["address"] == at.as_str()).await;
    let history = rack.operator.history(machine.mac()).await.unwrap();
    let told: Vec<_> = history.iter().filter(|(kind, _)| kind == "management").collect();
    let (from, to) = (rack.host(56), rack.host(60));
    assert_eq!(told.len(), 1, "{history:?}");
    assert_eq!(told[0].1, format!("its BMC is followed from {from} to {to}, by its card {CARD}"));
    let is_there = |found: &[Value]| found.iter().any(|bmc| bmc["address"] == json!(to) && bmc["state"] == "joined");
    found(&rack, "it is its machine's there", is_there).await;
    assert_eq!(running.bmc.lock().denied.1.get(), 0, "a password was tried that it has not");
    rack.operator.act(machine.mac(), "power", json!({"action": "cycle"})).await.unwrap();
    let is_asked = async || {
        let identity = format!("{}/identity", super::bmc::path(&rack, &machine).await);
        rack.operator.get(&identity).await.map_err(|error| format!("{error:#}"))
    };
    wait::until("it is asked there", PATIENCE, is_asked).await;
    rack.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_has_the_card_of_a_machines_bmc_and_another_certificate_is_told_no_password() {
    let mut rack = VirtualRack::new().await;
    let machine = rack.machine(Model::default());
    rack.ready(&machine).await;
    rack.give_bmcs(56, 56).await;
    look_at_leases(&rack);
    try_factory(&rack).await;
    leased(&rack, CARD).await;
    let running = bmc_of(&machine, &rack.path("nvram"), there(&rack, 56)).await;
    bmc_becomes(&rack, &machine, "it has another password", |told| told["rotated"].is_string()).await;

    drop(running);
    rack.give_bmcs(60, 60).await;
    leased(&rack, CARD).await;
    let rogue = bmc_of(&machine, &rack.path("rogue"), there(&rack, 60)).await;
    let is_refused = |found: &[Value]| {
        let there = found.iter().find(|bmc| bmc["address"] == json!(rack.host(60)));
        there.is_some_and(|bmc| bmc["state"] == "disputed" && bmc["detail"].as_str().unwrap().contains("certificate"))
    };
    found(&rack, "it is not followed", is_refused).await;
    assert_eq!(rogue.bmc.lock().denied.1.get(), 0, "it was logged in to");
    let at = format!("{}:{REDFISH}", rack.host(56));
    bmc_becomes(&rack, &machine, "it is where it was", |told| told["address"] == at.as_str()).await;
    let alerts = rack.operator.history(machine.mac()).await.unwrap();
    let alerts: Vec<_> =
        alerts.iter().filter(|(kind, text)| kind == "alert" && text.contains("not followed")).collect();
    assert_eq!(alerts.len(), 1, "{alerts:?}");
    rack.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_look_like_a_bmc_is_given_no_address_and_told_once() {
    let mut rack = VirtualRack::new().await;
    rack.give_bmcs(56, 57).await;
    let stranger = Mac([0x02, 0, 0, 0, 0x0c, 0x01]);
    let rom = Mac([0x02, 0, 0, 0, 0x0c, 0x02]);
    let mut card = rack.management_card(stranger);
    let mut other = rack.management_card(rom);
    for _ in 0..3 {
        let got = ask_once(&mut *card, stranger, Program::Bmc("MSFT 5.0", "laptop"), NOTHING).await;
        assert_eq!(got, None);
        let uefi = Program::Rom(rackhand_common::machine::Firmware::Uefi, uuid::Uuid::nil());
        assert_eq!(ask_once(&mut *other, rom, uefi, NOTHING).await, None);
    }
    // In many names: no more are told than are kept, and whoever is a BMC has its address all the same.
    for number in 0..=255_u8 {
        let mac = Mac([0x02, 0, 0, 0, 0x0d, number]);
        let mut card = rack.management_card(mac);
        assert_eq!(ask_once(&mut *card, mac, Program::System("laptop"), Duration::ZERO).await, None);
    }
    assert_eq!(leased(&rack, CARD).await.address, rack.host(56));
    let told = async || {
        let told = events_of_rack(&rack, "management").await;
        if told.iter().any(|text| text.contains(&CARD.to_string())) { Ok(told) } else { Err(format!("{told:?}")) }
    };
    let told = wait::until("it is told", PATIENCE, told).await;
    let of = |mac: Mac| told.iter().filter(|text| text.contains(&mac.to_string())).count();
    assert_eq!((of(stranger), of(rom), of(CARD)), (1, 1, 1), "{told:?}");
    assert_eq!(told.iter().filter(|text| text.contains("does not look like a BMC")).count(), 64, "{told:?}");
    rack.stop().await.unwrap();
}
