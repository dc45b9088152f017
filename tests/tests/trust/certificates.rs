//! Revoking, and coming back with a certificate that has ended.

use std::time::{Duration, Instant};

use rackhand_common::wire::{ALPN, AgentRequest, AgentResponse, Closing, LocalRequest, LocalResponse};
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::bench::*;

const DAY: i64 = 24;

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_agent_is_cut_off_within_five_seconds_and_gets_nothing_any_more() {
    let controller = Controller::new(ahead(0)).await;
    let mut node = Node::enrolled(&controller, &controller.code().await).await;
    node.start(ahead(0)).await;
    node.connected().await;
    let (agent, thief) = (node.id(), node.stolen());
    wait_for("the intent", async || {
        let row = controller.agent(&agent).await;
        if row["revision"].as_u64() > Some(0) { Ok(()) } else { Err(row.to_string()) }
    })
    .await;
    assert_eq!(chunk_as(&controller, thief.clone()).await, StatusCode::NOT_FOUND);

    let revoke = format!("/v1/agents/{agent}/revoke");
    let began = Instant::now();
    let revoked = controller.ask(Method::POST, &revoke, json!({})).await;
    let shown = node.shows("REVOKED").await;
    assert!(shown.contains("rackhand agent enrol --rack"), "{shown}");
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!((&revoked["id"], &revoked["connected"]), (&json!(agent), &json!(false)));
    assert!(revoked["revoked"].is_string(), "{revoked}");

    let (_, csr) = csr();
    for request in [hello(), AgentRequest::Renew { csr }, AgentRequest::Events { first: 1, events: Vec::new() }] {
        let again = controller.dial(thief.clone(), ALPN).await.unwrap();
        assert!(again.ask(&request).await.is_err());
        assert_eq!(again.closed().await, Some(Closing::Revoked));
    }
    assert_eq!(chunk_as(&controller, thief).await, StatusCode::FORBIDDEN);

    // Twice is once, and it stands in the record with the name of the token.
    assert_eq!(controller.ask(Method::POST, &revoke, json!({})).await["revoked"], revoked["revoked"]);
    assert_eq!(controller.events("agent_revoked").await, [format!("agent {agent} revoked by admin")]);
    let (status, _) = controller.try_ask(Method::POST, "/v1/agents/nobody/revoke", json!({})).await;
    assert_eq!(status, StatusCode::NOT_FOUND);

    // The rack is served from the node's disk, and a new code lets the node in again.
    let intent = node.ask(&LocalRequest::Intent { after: 0 }).await;
    assert!(matches!(&intent, LocalResponse::Intent(Some(intent)) if intent.name == "r1"), "{intent:?}");
    node.stop().await;
    node.enrol(&controller, &controller.code().await).await.unwrap();
    node.start(ahead(0)).await;
    node.connected().await;
    assert_ne!(node.id(), agent);
}

#[tokio::test(flavor = "multi_thread")]
async fn enrolling_another_node_cuts_off_the_racks_agent() {
    let controller = Controller::new(ahead(0)).await;
    let mut old = Node::enrolled(&controller, &controller.code().await).await;
    old.start(ahead(0)).await;
    old.connected().await;
    let mut new = Node::enrolled(&controller, &controller.code().await).await;
    let shown = old.shows("REVOKED").await;
    assert!(shown.contains("another node was enrolled") || shown.contains("its registration was revoked"), "{shown}");
    new.start(ahead(0)).await;
    new.connected().await;
    let by = format!("agent {} revoked by the enrolment of agent {}", old.id(), new.id());
    assert_eq!(controller.events("agent_revoked").await, [by]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rack_cut_off_for_thirty_days_comes_back_by_itself() {
    // Enrolled 32 days ago, with a certificate for two.
    let mut controller = Controller::new(ahead(-32 * DAY)).await;
    let mut node = Node::enrolled(&controller, &controller.code().await).await;
    controller.stop().await;
    let ended = node.stolen();
    controller.start(ahead(0)).await;

    // Renewing is all that can be done with it.
    assert_eq!(chunk_as(&controller, ended.clone()).await, StatusCode::UNAUTHORIZED);
    let lapsed = controller.dial(ended.clone(), ALPN).await.unwrap();
    for request in [hello(), AgentRequest::Events { first: 1, events: Vec::new() }] {
        assert_eq!(lapsed.ask(&request).await.unwrap(), AgentResponse::Lapsed);
    }
    // The answer to a renewal was lost: what is on the node's disk still lets it in.
    let AgentResponse::Certificate { .. } = lapsed.ask(&AgentRequest::Renew { csr: csr().1 }).await.unwrap() else {
        panic!("not renewed")
    };
    drop(lapsed);

    node.start(ahead(0)).await;
    node.connected().await;
    assert!(node.status().await.certificate_until > jiff::Timestamp::now());
    assert_eq!(controller.agent(&node.id()).await["connected"], true);

    // Now another key is registered, and the old one is good for nothing.
    let old = controller.dial(ended, ALPN).await.unwrap();
    assert!(old.ask(&AgentRequest::Renew { csr: csr().1 }).await.is_err());
    assert_eq!(old.closed().await, Some(Closing::Ended));
}

#[tokio::test(flavor = "multi_thread")]
async fn after_forty_five_days_a_new_code_is_needed_and_the_node_says_so() {
    let mut controller = Controller::new(ahead(-48 * DAY)).await;
    let mut node = Node::enrolled(&controller, &controller.code().await).await;
    controller.stop().await;
    controller.start(ahead(0)).await;
    node.start(ahead(0)).await;
    let shown = node.shows("ENDED").await;
    assert!(shown.contains("rackhand agent enrol --rack"), "{shown}");
    let late = controller.dial(node.stolen(), ALPN).await.unwrap();
    assert!(late.ask(&AgentRequest::Renew { csr: csr().1 }).await.is_err());
    assert_eq!(late.closed().await, Some(Closing::Ended));

    node.stop().await;
    node.enrol(&controller, &controller.code().await).await.unwrap();
    node.start(ahead(0)).await;
    node.connected().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_at_half_of_its_life_and_once_only_by_a_clock_that_is_ahead() {
    let controller = Controller::new(ahead(0)).await;
    let mut node = Node::enrolled(&controller, &controller.code().await).await;
    let first = node.stored()["key"].clone();
    node.start(ahead(30)).await;
    wait_for("a renewal", async || {
        let key = node.stored()["key"].clone();
        if key == first { Err(key.to_string()) } else { Ok(key) }
    })
    .await;
    node.connected().await;
    // By this clock the new certificate is past its half as well: a loop would show by now.
    let second = node.stored()["key"].clone();
    for _ in 0..500 {
        node.status().await;
    }
    node.stop().await;
    assert_eq!(node.stored()["key"], second);
}
