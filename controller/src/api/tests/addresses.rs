//! Address space as a project's people see it: their blocks, their grants, their names.

use rackhand_controller_core::access::{Binding, Role, Scope};

use super::*;
use crate::api::walk::World;

async fn a_project_uses_what_it_is_granted_and_does_not_see_anothers_blocks(on: On) {
    let world = World::new(on).await;
    let scope = |name: &str| world.scopes.iter().find(|(is, _)| *is == name).unwrap().1;
    let of = |scope: Scope| Binding { role: Role::Collaborator, scope };
    let (ours, theirs) =
        (world.token("ann", of(scope("its project"))).await, world.token("eve", of(scope("another project"))).await);
    let admin = world.bench.token.clone();
    let ask = async |token: &str, method: Method, uri: &str, body: Value| {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        world.bench.ask_as(token, method, uri, body).await
    };
    let told = |(status, answer): (StatusCode, Value)| {
        let detail = answer["detail"].as_str().or(answer["prefix"].as_str()).unwrap_or_default().to_owned();
        format!("{} {detail}", status.as_u16())
    };

    // A pool of which each project gets blocks, and one that is for one project alone.
    let blocks = json!({"name": "blocks", "kind": "private", "prefixes": ["10.64.0.0/16"], "blocks": {"length": 25}});
    assert_eq!(ask(&admin, Method::POST, "/v1/pools", blocks).await.0, StatusCode::CREATED);
    let transit = json!({
        "name": "transit", "kind": "private", "prefixes": ["10.65.0.0/24"], "quarantine_minutes": 0,
        "grants": [{"to": {"project": "acme:shop"}, "may": ["assign"]}],
    });
    assert_eq!(ask(&admin, Method::POST, "/v1/pools", transit).await.0, StatusCode::CREATED);
    let claim = async |token: &str, pool: &str, project: &str| {
        ask(token, Method::POST, "/v1/claims", json!({"pool": pool, "name": "x", "project": project})).await
    };
    expect!["201 10.64.0.0/32"].assert_eq(&told(claim(&ours, "blocks", "acme:shop").await));
    expect!["201 10.64.0.128/32"].assert_eq(&told(claim(&theirs, "blocks", "other:theirs").await));
    expect!["201 10.65.0.0/32"].assert_eq(&told(claim(&ours, "transit", "acme:shop").await));
    expect![[r#"403 pool transit has no grant that lets you assign its addresses there; an administrator gives one with `rackhand pool grant transit --project NAME --may assign`"#]]
        .assert_eq(&told(claim(&theirs, "transit", "other:theirs").await));
    // Whoever sets it up needs no grant.
    expect!["201 10.65.0.1/32"].assert_eq(&told(claim(&admin, "transit", "other:theirs").await));

    // Each sees its own blocks, and those that are shared.
    let pools = async |token: &str| {
        let (_, page) = ask(token, Method::GET, "/v1/pools", Value::Null).await;
        let name = |pool: &Value| pool["name"].as_str().unwrap().to_owned();
        page["items"].as_array().unwrap().iter().map(name).collect::<Vec<_>>().join(" ")
    };
    expect!["p4 blocks transit blocks.shop"].assert_eq(&pools(&ours).await);
    expect!["p4 blocks transit blocks.theirs"].assert_eq(&pools(&theirs).await);
    expect!["p4 blocks transit blocks.shop blocks.theirs"].assert_eq(&pools(&admin).await);
    for uri in ["/v1/pools/blocks.shop", "/v1/utilisation?pool=blocks.shop", "/v1/claims?pool=blocks.shop"] {
        assert_eq!(ask(&ours, Method::GET, uri, Value::Null).await.0, StatusCode::OK, "{uri}");
        assert_eq!(ask(&theirs, Method::GET, uri, Value::Null).await.0, StatusCode::NOT_FOUND, "{uri}");
    }
    expect!["404 there is no such pool"].assert_eq(&told(claim(&theirs, "blocks.shop", "other:theirs").await));
    let (_, shown) = ask(&ours, Method::GET, "/v1/pools/blocks.shop", Value::Null).await;
    assert_eq!(
        (&shown["project"], &shown["parent"], &shown["prefixes"]),
        (&json!("acme:shop"), &json!("blocks"), &json!(["10.64.0.0/25"]))
    );
    let (_, used) = ask(&ours, Method::GET, "/v1/utilisation?pool=blocks", Value::Null).await;
    assert_eq!((&used["items"][0]["blocks"], &used["items"][0]["total"]), (&json!("256"), &json!("65536")));

    // Names need a grant of their own.
    let name = async |token: &str, address: &str| {
        let uri = format!("/v1/addresses/{address}/name");
        told(ask(token, Method::PUT, &uri, json!({"name": "Web-1.example.net."})).await)
    };
    expect![[r#"403 pool transit has no grant that lets you reverse its addresses there; an administrator gives one with `rackhand pool grant transit --project NAME --may reverse`"#]]
        .assert_eq(&name(&ours, "10.65.0.0").await);
    let grants = json!({"grants": [{"to": {"project": "acme:shop"}, "may": ["assign", "reverse"]}]});
    assert_eq!(ask(&admin, Method::PUT, "/v1/pools/transit/grants", grants).await.0, StatusCode::OK);
    expect!["200 "].assert_eq(&name(&ours, "10.65.0.0").await);
    expect!["404 nobody holds 10.65.0.0; claim it first"].assert_eq(&name(&theirs, "10.65.0.0").await);
    expect!["404 nobody holds 10.65.0.9; claim it first"].assert_eq(&name(&ours, "10.65.0.9").await);
    let zone = async || {
        let uri = "/v1/reverse-zone?prefix=10.65.0.0/24&servers=ns1.example.net";
        let (status, text) = world.bench.text(request(&admin, Method::GET, uri, "")).await;
        assert_eq!(status, StatusCode::OK, "{text}");
        text.lines().filter(|line| line.contains("PTR")).collect::<Vec<_>>().join("\n")
    };
    expect!["0 IN PTR web-1.example.net."].assert_eq(&zone().await);

    // It goes with the claim, whoever gets the address next.
    let (_, claims) = ask(&ours, Method::GET, "/v1/claims?address=10.65.0.0", Value::Null).await;
    let held = format!("/v1/claims/{}", claims["items"][0]["id"].as_str().unwrap());
    assert_eq!(ask(&ours, Method::DELETE, &held, Value::Null).await.0, StatusCode::OK);
    assert_eq!(zone().await, "");
    expect!["201 10.65.0.0/32"].assert_eq(&told(claim(&ours, "transit", "acme:shop").await));
    let (status, _) = ask(&ours, Method::GET, "/v1/addresses/10.65.0.0/name", Value::Null).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}

async fn a_wrong_pool_grant_or_name_is_told_what_is_wrong(on: On) {
    let world = World::new(on).await;
    let bench = &world.bench;
    for (method, uri, body, expected) in [
        (
            Method::POST,
            "/v1/pools",
            json!({"name": "x", "kind": "private", "prefixes": ["10.64.0.0/16"], "blocks": {"length": 33}}),
            expect!["422 invalid: /blocks/length: between 1 and 32"],
        ),
        (
            Method::POST,
            "/v1/pools",
            json!({"name": "x", "kind": "private", "prefixes": ["10.64.0.0/16"], "blocks": {"length": 25, "most": 0}}),
            expect!["422 invalid: /blocks/most: between 1 and 1024"],
        ),
        (
            Method::PUT,
            "/v1/pools/p4/grants",
            json!({"grants": [{"to": "everyone", "may": []}]}),
            expect!["422 invalid: /grants/0/may: say what: assign, reverse, or both"],
        ),
        (
            Method::PUT,
            "/v1/pools/p4/grants",
            json!({"grants": [{"to": {"role": "king"}, "may": ["assign"]}]}),
            expect![
                "422 invalid: /grants/0/to: `king` is no role; there are owner, admin, operator, technician, collaborator, billing, viewer"
            ],
        ),
        (
            Method::PUT,
            "/v1/pools/p4/grants",
            json!({"grants": [{"to": {"token": uuid::Uuid::nil()}, "may": ["assign"]}]}),
            expect!["422 invalid: /grants/0/to: there is no such token"],
        ),
        (
            Method::PUT,
            "/v1/addresses/10.9.0.0/name",
            json!({"name": "x IN A 10.0.0.1"}),
            expect![
                "422 invalid: /name: a host's name in full, as web-1.example.net: at least two labels of letters, digits and `-`, each at most 63 and all at most 253 long"
            ],
        ),
        (
            Method::GET,
            "/v1/reverse-zone?prefix=10.64.0.0/15",
            Value::Null,
            expect![
                "422 invalid: prefix: reverse DNS has no zone for 10.64.0.0/15: say a prefix whose length is 8, 16, 24, or 25 to 31"
            ],
        ),
        (
            Method::GET,
            "/v1/reverse-zone?prefix=10.64.0.0/16&servers=ns1",
            Value::Null,
            expect![
                "422 invalid: servers: a host's name in full, as web-1.example.net: at least two labels of letters, digits and `-`, each at most 63 and all at most 253 long"
            ],
        ),
    ] {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        bench.check(method, uri, body, expected).await;
    }
}

on_both! {
    a_project_uses_what_it_is_granted_and_does_not_see_anothers_blocks,
    a_wrong_pool_grant_or_name_is_told_what_is_wrong,
}
