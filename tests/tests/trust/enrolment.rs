//! Codes over the network, as an attacker and an operator see them.

use crate::bench::*;

#[tokio::test(flavor = "multi_thread")]
async fn guessing_codes_is_slowed_down_and_an_honest_code_survives_it() {
    let controller = Controller::new(ahead(0)).await;
    let code = controller.code().await;
    let (_, pin) = code.rsplit_once('.').unwrap();
    let node = Node::blank();
    let mut refusals = Vec::new();
    for n in 0..8 {
        let guess = format!("RH1.guess{n}.{pin}");
        refusals.push(node.enrol(&controller, &guess).await.unwrap_err().to_string());
    }
    assert!(refusals[..5].iter().all(|words| words.contains("wrong, was used, or has expired")), "{refusals:?}");
    assert!(refusals[5..].iter().all(|words| words.contains("too many attempts")), "{refusals:?}");
    // From this address even the right code has to wait, and is not used up by that.
    assert!(node.enrol(&controller, &code).await.is_err());
    wait_for("the enrolment", async || node.enrol(&controller, &code).await.map_err(|error| error.to_string())).await;
    assert_eq!(controller.events("agent_enrolled").await, [format!("agent {} enrolled", node.id())]);
    assert!(!std::fs::read_dir(controller.pki().parent().unwrap()).unwrap().any(|entry| {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap_or_default();
        let secret = code.split('.').nth(1).unwrap().as_bytes();
        bytes.windows(secret.len()).any(|window| window == secret)
    }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_a_code_of_another_controller_tells_it_nothing() {
    let (ours, theirs) = (Controller::new(ahead(0)).await, Controller::new(ahead(0)).await);
    let node = Node::blank();
    let error = format!("{:#}", node.enrol(&theirs, &ours.code().await).await.unwrap_err());
    assert!(error.contains("cannot connect"), "{error}");
}
