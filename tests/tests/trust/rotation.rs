//! Replacing the root of trust under agents that are registered.

use jiff::Timestamp;
use rackhand_common::wire::ALPN;
use rackhand_controller::controller::rotation;
use reqwest::Method;
use serde_json::json;

use crate::bench::*;

/// Waits until every agent is shown with these words.
async fn status_shows(controller: &Controller, words: &str) {
    wait_for(words, async || {
        let shown = rotation::status(&controller.config).await.unwrap();
        if shown.contains(words) { Ok(()) } else { Err(shown) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_root_is_replaced_in_steps_that_shut_no_agent_out() {
    let mut controller = Controller::new(ahead(0)).await;
    controller.create_rack("r2").await;
    let mut node = Node::enrolled(&controller, &controller.code().await).await;
    let absent = Node::enrolled(&controller, &controller.code_for("r2").await).await;
    let old_code = controller.code_for("r2").await;
    node.start(ahead(0)).await;
    controller.sees(&node).await;
    status_shows(&controller, "root 1; has these roots").await;
    let of_root_1 = node.stolen();

    // While the controller runs nothing is changed, and then nothing that shuts an agent out.
    let running = rotation::rotate(&controller.config).await.unwrap_err();
    assert!(running.to_string().contains("another controller runs"), "{running:#}");
    controller.stop().await;
    let early = rotation::rotate(&controller.config).await.unwrap_err().to_string();
    assert!(early.contains(&absent.id()) && early.contains("rack r2") && !early.contains(&node.id()), "{early}");
    assert!(rotation::next(&controller.config, Timestamp::now()).await.is_err(), "a third root");
    controller.start(ahead(0)).await;
    controller.ask(Method::POST, &format!("/v1/agents/{}/revoke", absent.id()), json!({})).await;
    controller.stop().await;
    rotation::rotate(&controller.config).await.unwrap();
    let early = rotation::retire(&controller.config).await.unwrap_err().to_string();
    assert!(early.contains(&node.id()), "{early}");

    // Both roots are believed: a certificate of the old one, and the controller of the new.
    controller.start(ahead(0)).await;
    controller.sees(&node).await;
    assert!(absent.enrol(&controller, &old_code).await.is_err());
    absent.enrol(&controller, &controller.code_for("r2").await).await.unwrap();
    controller.ask(Method::POST, &format!("/v1/agents/{}/revoke", absent.id()), json!({})).await;
    node.stop().await;
    node.start(ahead(30)).await;
    status_shows(&controller, "root 2; has these roots").await;

    controller.stop().await;
    rotation::retire(&controller.config).await.unwrap();
    assert!(!controller.pki().join("root-1.key").exists());
    controller.start(ahead(0)).await;
    controller.sees(&node).await;
    status_shows(&controller, "root 2; has these roots").await;
    let old = controller.dial(of_root_1, ALPN).await;
    assert!(old.is_err() || old.unwrap().ask(&hello()).await.is_err());

    // And the next one.
    controller.stop().await;
    rotation::next(&controller.config, Timestamp::now()).await.unwrap();
    let early = rotation::rotate(&controller.config).await.unwrap_err().to_string();
    assert!(early.contains(&node.id()), "{early}");
    controller.start(ahead(0)).await;
    controller.sees(&node).await;
    status_shows(&controller, "root 2; has these roots").await;
    let root_3 = std::fs::read_to_string(controller.pki().join("root-3.pem")).unwrap();
    assert_eq!(node.stored()["bundle"]["roots"][1], root_3);
    controller.stop().await;
    rotation::rotate(&controller.config).await.unwrap();
    controller.start(ahead(0)).await;
    controller.sees(&node).await;
}
