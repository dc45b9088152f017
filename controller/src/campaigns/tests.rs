use super::*;

use std::collections::BTreeMap;

use rackhand_common::bmc::{Access, Protocol};
use rackhand_controller_core::{campaign::Outcome, expects::Expects, firmware::Manifest, plan};

use crate::store::{
    Machine, Run,
    tests::{Bench, On, at, on_both},
};

const TOY: &str = include_str!("../../../firmware-scripts/firmware/toy-bmc.toml");

/// So many ready machines with BMCs, whose plan wants the toy's firmware.
async fn bench(on: On, count: u8) -> (Bench, Vec<Machine>) {
    let bench = Bench::new(on).await;
    let mut machines = Vec::new();
    let mut tx = bench.store.begin().await.unwrap();
    let id = tx.insert_firmware(at(0), TOY, &Manifest::parse(TOY).unwrap()).await.unwrap();
    tx.firmware_is_here(at(0), id).await.unwrap();
    let expects = Expects { baseline: vec!["toy-bmc-2.18".to_owned()], ..Expects::default() };
    let rules = plan::Rules { expects: Some(expects), ..plan::Rules::default() };
    tx.insert_plan(at(0), "toys", "", &rules).await.unwrap();
    tx.commit().await.unwrap();
    for number in 1..=count {
        let mut machine = bench.adopted(number).await;
        Arc::make_mut(&mut machine.inventory).system.vendor = "Rackhand".to_owned();
        let access = Access {
            machine: machine.id,
            at: format!("10.20.0.{number}").parse().unwrap(),
            protocol: Protocol::Redfish,
            user: "rackhand".to_owned(),
            password: "first".to_owned(),
            fingerprint: None,
            mainboard: None,
        };
        let mut tx = bench.store.begin().await.unwrap();
        tx.update_machine(at(1), &mut machine).await.unwrap();
        tx.reach_bmc(at(1), &machine, &access).await.unwrap();
        tx.commit().await.unwrap();
        machines.push(machine);
    }
    (bench, machines)
}

async fn made(bench: &Bench, at_most: u8, stop_after: u32) -> Campaign {
    let mut tx = bench.store.begin().await.unwrap();
    let rules = Rules { at_most, stop_after };
    let campaign = choose(&mut tx, at(2), bench.rack, Some("toys".to_owned()), rules, "ada").await.unwrap();
    tx.insert_campaign(&campaign).await.unwrap();
    tx.commit().await.unwrap();
    campaign
}

/// How far its machines are, by their names.
async fn states(bench: &Bench, campaign: &Campaign) -> BTreeMap<String, String> {
    let campaign = bench.store.campaign(bench.rack, campaign.id).await.unwrap();
    campaign.machines.into_iter().map(|member| (member.name, member.state.to_string())).collect()
}

async fn looked(bench: &Bench, campaign: &Campaign) -> String {
    look(&bench.store, at(3)).await.unwrap();
    let states = states(bench, campaign).await;
    states.into_values().collect::<Vec<_>>().join(" ")
}

/// Ends every run in progress so.
async fn end(bench: &Bench, status: RunStatus) {
    for run in bench.store.runs_in_progress().await.unwrap() {
        let mut tx = bench.store.begin().await.unwrap();
        tx.save_run(at(3), &Run { status, detail: Some("2.17 was read".to_owned()), ..run }).await.unwrap();
        tx.commit().await.unwrap();
    }
}

async fn machines_have_their_turn_within_the_budget_until_one_fails(on: On) {
    let (bench, machines) = bench(on, 4).await;
    let campaign = made(&bench, 50, 1).await;
    assert_eq!(campaign.machines.len(), 4);
    assert_eq!(looked(&bench, &campaign).await, "running running waiting waiting");
    // Asked again, as after a restart of the controller, none is begun twice.
    assert_eq!(looked(&bench, &campaign).await, "running running waiting waiting");
    assert_eq!(bench.store.runs_in_progress().await.unwrap().len(), 2);
    end(&bench, RunStatus::Done).await;
    // Somebody took one meanwhile.
    let mut taken = bench.store.machine(&machines[2].id.to_string()).await.unwrap();
    taken.lifecycle = Lifecycle::Active;
    let mut tx = bench.store.begin().await.unwrap();
    tx.update_machine(at(3), &mut taken).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(looked(&bench, &campaign).await, "done done skipped running");
    end(&bench, RunStatus::Failed).await;
    assert_eq!(looked(&bench, &campaign).await, "done done skipped failed");
    let over = bench.store.campaign(bench.rack, campaign.id).await.unwrap();
    assert_eq!((over.outcome, over.machines[3].detail.as_str()), (Some(Outcome::Done), "2.17 was read"));
    assert!(bench.store.open_campaigns().await.unwrap().is_empty());
}

async fn a_failure_stops_it_and_an_operator_pauses_and_cancels_it(on: On) {
    let (bench, _) = bench(on, 3).await;
    let campaign = made(&bench, 1, 1).await;
    assert_eq!(looked(&bench, &campaign).await, "running waiting waiting");
    end(&bench, RunStatus::Failed).await;
    assert_eq!(looked(&bench, &campaign).await, "failed waiting waiting");
    let over = bench.store.campaign(bench.rack, campaign.id).await.unwrap();
    assert_eq!((over.outcome, over.ended), (Some(Outcome::Stopped), Some(at(3))));

    let campaign = made(&bench, 1, 5).await;
    let want = async |wish| {
        let mut tx = bench.store.begin().await.unwrap();
        let mut campaign = tx.campaign(bench.rack, campaign.id).await.unwrap();
        campaign.wish = wish;
        tx.update_campaign(&campaign).await.unwrap();
        let stale = tx.update_campaign(&campaign).await;
        assert!(matches!(stale, Err(StoreError::Changed(_))), "{stale:?}");
        tx.commit().await.unwrap();
    };
    want(Wish::Pause).await;
    assert_eq!(looked(&bench, &campaign).await, "waiting waiting waiting");
    want(Wish::Run).await;
    assert_eq!(looked(&bench, &campaign).await, "running waiting waiting");
    want(Wish::Cancel).await;
    assert_eq!(looked(&bench, &campaign).await, "running waiting waiting");
    end(&bench, RunStatus::Done).await;
    assert_eq!(looked(&bench, &campaign).await, "done waiting waiting");
    let over = bench.store.campaign(bench.rack, campaign.id).await.unwrap();
    assert_eq!(over.outcome, Some(Outcome::Cancelled));
}

on_both! {
    machines_have_their_turn_within_the_budget_until_one_fails,
    a_failure_stops_it_and_an_operator_pauses_and_cancels_it,
}
