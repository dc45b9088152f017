//! Address space as a project's people see it: their blocks, their grants, their names.

use rackhand_controller_core::{
    access::{Binding, Role, Scope},
    ipam,
};

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
    let holdings = async |token: &str, by: &str| {
        let (_, page) = ask(token, Method::GET, &format!("/v1/utilisation/{by}"), Value::Null).await;
        let line = |one: &Value| format!("{} {} of {}", one["name"], one["claimed"], one["blocks"]).replace('"', "");
        page["items"].as_array().unwrap_or_else(|| panic!("{page}")).iter().map(line).collect::<Vec<_>>().join(", ")
    };
    expect!["acme:shop 3 of 128, other:theirs 2 of 128"].assert_eq(&holdings(&admin, "projects").await);
    expect!["acme:shop 3 of 128"].assert_eq(&holdings(&ours, "projects").await);
    expect!["null 4 of 0, here 1 of 0"].assert_eq(&holdings(&admin, "sites").await);
    // Before anything was claimed nobody had anything, and since then it is as it is.
    for by in ["projects", "sites"] {
        assert_eq!(holdings(&admin, &format!("{by}?at=1969-12-31T00:00:00Z")).await, "");
        let now = holdings(&admin, &format!("{by}?at=2100-01-01T00:00:00Z")).await;
        assert_eq!(now, holdings(&admin, by).await);
    }
    let (_, first) = ask(&admin, Method::GET, "/v1/utilisation/projects?limit=1", Value::Null).await;
    let next = format!("/v1/utilisation/projects?after={}", first["next"].as_str().unwrap());
    let (_, second) = ask(&admin, Method::GET, &next, Value::Null).await;
    assert_eq!(
        (&first["items"][0]["name"], &second["items"][0]["name"]),
        (&json!("acme:shop"), &json!("other:theirs"))
    );
    let (_, space) = ask(&ours, Method::GET, "/v1/pools/transit/space", Value::Null).await;
    assert_eq!(space["free"][0], json!({"length": 25, "count": 1}), "{space}");
    assert_eq!(space["pictures"][0]["cells"][0], json!(0.5), "two of four addresses");
    assert_eq!(ask(&theirs, Method::GET, "/v1/pools/blocks.shop/space", Value::Null).await.0, StatusCode::NOT_FOUND);

    // Names need a grant of their own.
    let name = async |token: &str, address: &str| {
        let uri = format!("/v1/addresses/{address}/name");
        told(ask(token, Method::PUT, &uri, json!({"name": "Web-1.example.net."})).await)
    };
    expect![[r#"403 pool transit has no grant that lets you reverse its addresses there; an administrator gives one with `rackhand pool grant transit --project NAME --may reverse`"#]]
        .assert_eq(&name(&ours, "10.65.0.0").await);
    let grants = json!({"grants": [{"to": {"project": "acme:shop"}, "may": ["assign", "reverse"]}]});
    assert_eq!(ask(&admin, Method::PATCH, "/v1/pools/transit", grants).await.0, StatusCode::OK);
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
    // As it was read, or not at all.
    let named = async |method: Method, tag: &str, body: &str| {
        let uri = "/v1/addresses/10.65.0.0/name";
        let mut request = request(&ours, method, uri, body.to_owned());
        request.headers_mut().insert("if-match", tag.parse().unwrap());
        request.headers_mut().insert("content-type", "application/json".parse().unwrap());
        let answer = world.bench.router().oneshot(request).await.unwrap();
        let tag = answer.headers().get("etag").map(|tag| tag.to_str().unwrap().to_owned());
        (answer.status(), tag.unwrap_or_default())
    };
    let body = r#"{"name":"web-1.example.net"}"#;
    let (_, tag) = named(Method::GET, "*", "").await;
    for method in [Method::PUT, Method::DELETE] {
        assert_eq!(named(method, "\"1\"", body).await.0, StatusCode::PRECONDITION_FAILED);
    }
    let (status, again) = named(Method::PUT, &tag, body).await;
    assert_eq!((status, &named(Method::GET, "*", "").await.1), (StatusCode::OK, &again));

    // It goes with the claim, whoever gets the address next.
    let (_, claims) = ask(&ours, Method::GET, "/v1/claims?address=10.65.0.0", Value::Null).await;
    let held = format!("/v1/claims/{}", claims["items"][0]["id"].as_str().unwrap());
    assert_eq!(ask(&ours, Method::DELETE, &held, Value::Null).await.0, StatusCode::OK);
    assert_eq!(zone().await, "");
    expect!["201 10.65.0.0/32"].assert_eq(&told(claim(&ours, "transit", "acme:shop").await));
    let (status, _) = ask(&ours, Method::GET, "/v1/addresses/10.65.0.0/name", Value::Null).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}

async fn a_claim_moves_within_its_project_to_where_the_caller_could_have_claimed_it(on: On) {
    let world = World::new(on).await;
    let bench = &world.bench;
    let scope = |name: &str| world.scopes.iter().find(|(is, _)| *is == name).unwrap().1;
    let of = |role: Role, name: &str| Binding { role, scope: scope(name) };
    let ours = world.token("ann", of(Role::Collaborator, "its project")).await;
    let looking = world.token("vic", of(Role::Viewer, "its project")).await;
    let theirs = world.token("eve", of(Role::Collaborator, "another project")).await;
    let admin = bench.token.clone();
    let ask = async |token: &str, method: Method, uri: &str, body: Value| {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        bench.ask_as(token, method, uri, body).await
    };
    let machine = world.names["machine"].clone();
    let wish = json!({"pool": "p4", "name": "vpn", "project": "acme:shop"});
    let (_, claim) = ask(&ours, Method::POST, "/v1/claims", wish).await;
    let (uri, address) = (format!("/v1/claims/{}", claim["id"].as_str().unwrap()), claim["first"].as_str().unwrap());
    let name = format!("/v1/addresses/{address}/name");
    assert_eq!(ask(&ours, Method::PUT, &name, json!({"name": "vpn.example.net"})).await.0, StatusCode::OK);

    let (status, moved) = ask(&ours, Method::PATCH, &uri, json!({"machine": machine})).await;
    assert_eq!(status, StatusCode::OK, "{moved}");
    assert_eq!((&moved["id"], &moved["name"]), (&claim["id"], &json!(machine)));
    assert_eq!((&moved["project"], &moved["prefix"]), (&claim["project"], &claim["prefix"]));
    assert_eq!(ask(&ours, Method::GET, &name, Value::Null).await.1["name"], "vpn.example.net", "the name stays");
    let (_, history) = ask(&ours, Method::GET, &format!("/v1/addresses/{address}/history"), Value::Null).await;
    let (now, then) = (&history["items"][0], &history["items"][1]);
    assert_eq!((&now["id"], &now["until"], &then["name"]), (&claim["id"], &Value::Null, &json!("vpn")));
    assert_eq!((&then["until"], &then["released_by"]), (&now["since"], &now["claimed_by"]));
    let at = format!("/v1/addresses/{address}/history?at={}", now["since"].as_str().unwrap());
    let (_, held) = ask(&ours, Method::GET, &at, Value::Null).await;
    assert_eq!((held["items"].as_array().unwrap().len(), &held["items"][0]["id"]), (1, &claim["id"]));
    // The record of the move names both rows.
    while bench.app.store.link_records().await.unwrap() > 0 {}
    let (_, audit) = ask(&admin, Method::GET, "/v1/audit?order=newest&limit=1", Value::Null).await;
    assert_eq!(audit["items"][0]["action"], format!("PATCH {uri}"), "{audit}");
    let mut changed: Vec<_> = audit["items"][0]["changes"].as_array().unwrap().iter().map(|one| &one["id"]).collect();
    changed.sort_by_key(|id| id.as_str());
    let mut both = [&now["id"], &then["id"]];
    both.sort_by_key(|id| id.as_str());
    assert_eq!(changed, both);

    // The machine's events tell of it, both ways.
    assert_eq!(ask(&ours, Method::PATCH, &uri, json!({"name": "vpn-2"})).await.0, StatusCode::OK);
    let (_, events) = ask(&ours, Method::GET, &format!("/v1/events?machine={machine}&limit=200"), Value::Null).await;
    let told = events["items"].as_array().unwrap().iter().filter(|event| event["kind"] == "addresses_moved");
    let told: Vec<_> = told.map(|event| event["text"].as_str().unwrap()).collect();
    let prefix = claim["prefix"].as_str().unwrap();
    let expected = [format!("{prefix} moved from vpn to {machine}"), format!("{prefix} moved from {machine} to vpn-2")];
    assert_eq!(told, expected);

    // Not by those who may only look or see nothing of it, and not to what is another project's.
    let to = json!({"name": "x"});
    assert_eq!(ask(&looking, Method::PATCH, &uri, to.clone()).await.0, StatusCode::FORBIDDEN);
    assert_eq!(ask(&theirs, Method::PATCH, &uri, to.clone()).await.0, StatusCode::NOT_FOUND);
    let rack = bench.app.store.rack("lab").await.unwrap().id;
    appears(bench, rack, 2).await;
    let (_, found) = ask(&admin, Method::GET, "/v1/machines?lifecycle=discovered", Value::Null).await;
    let other = found["items"][0]["id"].as_str().unwrap().to_owned();
    let adopt = json!({"accept_data": true});
    assert_eq!(ask(&admin, Method::POST, &format!("/v1/machines/{other}/adopt"), adopt).await.0, StatusCode::OK);
    let given = json!({"project": "other:theirs"});
    assert_eq!(ask(&admin, Method::POST, &format!("/v1/machines/{other}/assign"), given).await.0, StatusCode::OK);
    let elsewhere = json!({"machine": other});
    assert_eq!(ask(&ours, Method::PATCH, &uri, elsewhere.clone()).await.0, StatusCode::NOT_FOUND);
    let (status, problem) = ask(&admin, Method::PATCH, &uri, elsewhere).await;
    assert_eq!(status, StatusCode::CONFLICT, "{problem}");
    assert!(problem["detail"].as_str().unwrap().ends_with("is another project's: what it holds is that project's too"));
    // It takes the grant that a claim takes.
    let grants = json!({"grants": [{"to": {"project": "other:theirs"}, "may": ["assign"]}]});
    assert_eq!(ask(&admin, Method::PATCH, "/v1/pools/p4", grants).await.0, StatusCode::OK);
    assert_eq!(ask(&ours, Method::PATCH, &uri, to.clone()).await.0, StatusCode::FORBIDDEN);
    assert_eq!(ask(&ours, Method::PATCH, &uri, json!({"purpose": "office"})).await.1["purpose"], "office");
    for wrong in [json!({"mac": "52:54:00:00:00:01"}), json!({"name": "x", "machine": "y"}), json!({"name": " "})] {
        assert_eq!(ask(&admin, Method::PATCH, &uri, wrong).await.0, StatusCode::UNPROCESSABLE_ENTITY);
    }
    assert_eq!(ask(&ours, Method::DELETE, &uri, Value::Null).await.0, StatusCode::OK);
    assert_eq!(ask(&admin, Method::PATCH, &uri, to).await.0, StatusCode::CONFLICT, "it is over");
}

async fn a_claims_own_grants_say_who_moves_announces_and_names_it(on: On) {
    let world = World::new(on).await;
    let bench = &world.bench;
    let scope = |name: &str| world.scopes.iter().find(|(is, _)| *is == name).unwrap().1;
    let of = |role: Role, name: &str| Binding { role, scope: scope(name) };
    let ours = world.token("ann", of(Role::Collaborator, "its project")).await;
    let ops = world.token("ops", of(Role::Operator, "its project")).await;
    let theirs = world.token("eve", of(Role::Collaborator, "another project")).await;
    let admin = bench.token.clone();
    let ask = async |token: &str, method: Method, uri: &str, body: Value| {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        bench.ask_as(token, method, uri, body).await
    };
    let told = |(status, answer): (StatusCode, Value)| {
        let detail = answer["detail"].as_str().or(answer["prefix"].as_str()).unwrap_or_default().to_owned();
        format!("{} {detail}", status.as_u16())
    };
    let machine = world.names["machine"].clone();
    let pool = json!({"name": "anycast", "kind": "private", "prefixes": ["10.66.0.0/24"]});
    assert_eq!(ask(&admin, Method::POST, "/v1/pools", pool).await.0, StatusCode::CREATED);
    let wish = json!({"pool": "anycast", "name": "dns", "project": "acme:shop"});
    let (_, claim) = ask(&ours, Method::POST, "/v1/claims", wish).await;
    assert_eq!(claim["grants"], Value::Null);
    let uri = format!("/v1/claims/{}", claim["id"].as_str().unwrap());
    let (grants, announcement) = (format!("{uri}/grants"), format!("{uri}/announcements/{machine}"));
    let announce = async |token: &str| told(ask(token, Method::PUT, &announcement, Value::Null).await);
    let name = async |token: &str| {
        let uri = "/v1/addresses/10.66.0.0/name";
        told(ask(token, Method::PUT, uri, json!({"name": "dns.example.net"})).await)
    };
    let rename = async |token: &str| told(ask(token, Method::PATCH, &uri, json!({"purpose": "dns"})).await);
    let move_it = async |token: &str, to: &str| told(ask(token, Method::PATCH, &uri, json!({"name": to})).await);

    // A new pool is for everyone to use, and not to announce.
    expect![[r#"403 pool anycast has no grant that lets you announce its addresses there; an administrator gives one with `rackhand pool grant anycast --project NAME --may announce`"#]]
        .assert_eq(&announce(&ours).await);
    // Nobody of a project gives grants.
    let own = json!({"grants": [
        {"to": {"project": "acme:shop"}, "may": ["announce"]},
        {"to": {"role": "operator"}, "may": ["assign"]},
    ]});
    expect!["403 address.space needs one of the roles owner, admin there"]
        .assert_eq(&told(ask(&ours, Method::PUT, &grants, own.clone()).await));
    let (status, granted) = ask(&admin, Method::PUT, &grants, own.clone()).await;
    assert_eq!((status, &granted["grants"]), (StatusCode::OK, &own["grants"]), "{granted}");
    let (_, listed) = ask(&ours, Method::GET, "/v1/claims?pool=anycast", Value::Null).await;
    assert_eq!(listed["items"][0], granted, "{listed}");

    // From now on they count, and no more those of the pool.
    expect!["200 10.66.0.0/32"].assert_eq(&announce(&ours).await);
    expect!["404 there is no such claim"].assert_eq(&announce(&theirs).await);
    expect![[r#"403 10.66.0.0/32 has grants of its own, none of which lets you reverse it there; an administrator gives one with `rackhand ip grant 10.66.0.0/32 --project NAME --may reverse`"#]]
        .assert_eq(&name(&ours).await);
    expect![[r#"403 10.66.0.0/32 has grants of its own, none of which lets you assign it there; an administrator gives one with `rackhand ip grant 10.66.0.0/32 --project NAME --may assign`"#]]
        .assert_eq(&move_it(&ours, "dns-2").await);
    expect!["200 10.66.0.0/32"].assert_eq(&move_it(&ops, "dns-2").await);
    // What it is for is nobody's use of it, and whoever sets up address space needs no grant.
    expect!["200 10.66.0.0/32"].assert_eq(&rename(&ours).await);
    expect!["200 "].assert_eq(&name(&admin).await);

    // Who announces it is for those to see who see the claim, or the machine's rack.
    let listed = async |token: &str, uri: &str| {
        let (status, page) = ask(token, Method::GET, uri, Value::Null).await;
        assert_eq!(status, StatusCode::OK, "{uri}: {page}");
        let line =
            |one: &Value| format!("{} {} {} {}", one["name"], one["prefix"], one["project"], one["announced_by"]);
        let lines = page["items"].as_array().unwrap().iter().map(|one| line(one).replace('"', ""));
        lines.collect::<Vec<_>>().join(", ").replace(&machine, "MACHINE")
    };
    let technician = world.token("tec", of(Role::Technician, "its rack")).await;
    let by_it = format!("/v1/announcements?machine={machine}&project=shop");
    for token in [&ours, &technician, &admin] {
        expect!["MACHINE 10.66.0.0/32 acme:shop ann"]
            .assert_eq(&listed(token, &by_it.replace("&project=shop", "")).await);
        expect!["MACHINE 10.66.0.0/32 acme:shop ann"]
            .assert_eq(&listed(token, "/v1/addresses/10.66.0.0/announcements").await);
    }
    expect!["MACHINE 10.66.0.0/32 acme:shop ann"].assert_eq(&listed(&ours, &by_it).await);
    expect![""].assert_eq(&listed(&theirs, "/v1/announcements").await);
    expect![""].assert_eq(&listed(&theirs, "/v1/addresses/10.66.0.0/announcements").await);
    // The record of a change names the row.
    while bench.app.store.link_records().await.unwrap() > 0 {}
    let (_, audit) = ask(&admin, Method::GET, "/v1/audit?order=newest&limit=20", Value::Null).await;
    let records = audit["items"].as_array().unwrap();
    let record = records.iter().find(|one| one["action"] == format!("PUT {announcement}")).unwrap();
    assert_eq!(record["changes"][0]["kind"], "announcement", "{record}");

    // A project's own administrator needs a grant as everybody else.
    let head = world.token("head", of(Role::Admin, "its project")).await;
    expect![[r#"403 10.66.0.0/32 has grants of its own, none of which lets you assign it there; an administrator gives one with `rackhand ip grant 10.66.0.0/32 --project NAME --may assign`"#]]
        .assert_eq(&move_it(&head, "dns-3").await);
    // The grants that count are read with whose they are.
    let (_, counting) = ask(&ours, Method::GET, &grants, Value::Null).await;
    assert_eq!(counting, json!({"own": true, "grants": own["grants"]}));
    // Granted what is granted already, it is as it was.
    let (_, before) = ask(&ours, Method::GET, &uri, Value::Null).await;
    let (status, same) = ask(&admin, Method::PUT, &grants, own.clone()).await;
    assert_eq!((status, &same), (StatusCode::OK, &before));
    // Whoever answers for the machine can withdraw, too; who sees neither finds nothing.
    expect!["404 there is no such announcement; `rackhand ip announcements` lists them"]
        .assert_eq(&told(ask(&theirs, Method::DELETE, &announcement, Value::Null).await));
    let rack = world.token("rack", of(Role::Operator, "its rack")).await;
    expect!["204 "].assert_eq(&told(ask(&rack, Method::DELETE, &announcement, Value::Null).await));
    expect!["200 10.66.0.0/32"].assert_eq(&announce(&ours).await);

    // Taken back, those of the pool count again; what is announced goes on until it is withdrawn.
    let (status, plain) = ask(&admin, Method::DELETE, &grants, Value::Null).await;
    assert_eq!((status, &plain["grants"]), (StatusCode::OK, &Value::Null), "{plain}");
    expect!["200 "].assert_eq(&name(&ours).await);
    expect!["204 "].assert_eq(&told(ask(&ours, Method::DELETE, &announcement, Value::Null).await));
    let (status, _) = ask(&ours, Method::DELETE, &announcement, Value::Null).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    expect![""].assert_eq(&listed(&admin, "/v1/announcements").await);
    let (_, past) = ask(&ours, Method::GET, "/v1/addresses/10.66.0.0/announcements", Value::Null).await;
    assert_eq!(past["items"][0]["withdrawn_by"], "ann", "{past}");
    // What is over has no grants to give.
    assert_eq!(ask(&ours, Method::DELETE, &uri, Value::Null).await.0, StatusCode::OK);
    assert_eq!(ask(&admin, Method::PUT, &grants, own).await.0, StatusCode::CONFLICT);
}

async fn what_a_project_may_announce_of_a_pool_it_may_of_its_own_blocks(on: On) {
    let world = World::new(on).await;
    let bench = &world.bench;
    let scope = world.scopes.iter().find(|(is, _)| *is == "its project").unwrap().1;
    let ours = world.token("ann", Binding { role: Role::Collaborator, scope }).await;
    let grants = json!([
        {"to": "everyone", "may": ["assign", "reverse"]},
        {"to": {"project": "acme:shop"}, "may": ["assign", "announce"]},
    ]);
    let pool = json!({
        "name": "blocks", "kind": "private", "prefixes": ["10.64.0.0/16"], "blocks": {"length": 25}, "grants": grants,
    });
    assert_eq!(bench.ask(Method::POST, "/v1/pools", pool.to_string()).await.0, StatusCode::CREATED);
    let wish = json!({"pool": "blocks", "name": "dns", "project": "acme:shop"}).to_string();
    let (_, claim) = bench.ask_as(&ours, Method::POST, "/v1/claims", wish.clone()).await;
    let uri = format!("/v1/claims/{}/announcements/{}", claim["id"].as_str().unwrap(), world.names["machine"]);
    let (status, announced) = bench.ask_as(&ours, Method::PUT, &uri, String::new()).await;
    assert_eq!((status, &announced["prefix"]), (StatusCode::OK, &json!("10.64.0.0/32")), "{announced}");
    // Nor more than that, once it is taken back there; what is announced goes on.
    let taken = json!({"grants": [{"to": "everyone", "may": ["assign", "reverse"]}]}).to_string();
    assert_eq!(bench.ask(Method::PATCH, "/v1/pools/blocks", taken).await.0, StatusCode::OK);
    let (_, second) = bench.ask_as(&ours, Method::POST, "/v1/claims", wish).await;
    let second = format!("/v1/claims/{}/announcements/{}", second["id"].as_str().unwrap(), world.names["machine"]);
    assert_eq!(bench.ask_as(&ours, Method::PUT, &second, String::new()).await.0, StatusCode::FORBIDDEN);
    let (_, all) = bench.ask(Method::GET, "/v1/announcements?rack=lab", "").await;
    assert_eq!(all["items"].as_array().unwrap().len(), 1, "{all}");
    // A machine that announces for a project is not deployed for another.
    let deploy = json!({"project": "other:theirs", "image": "none", "ssh_keys": []}).to_string();
    let (status, problem) =
        bench.ask(Method::POST, &format!("/v1/machines/{}/deploy", world.names["machine"]), deploy).await;
    assert_eq!(status, StatusCode::CONFLICT, "{problem}");
    let told = problem["detail"].as_str().unwrap();
    assert!(told.contains("holds or announces addresses of another project"), "{told}");
    let (_, blocks) = bench.ask_as(&ours, Method::GET, "/v1/addresses/10.64.0.5/blocks", String::new()).await;
    let block = &blocks["items"][0];
    assert_eq!((&block["prefix"], &block["project"]), (&json!("10.64.0.0/25"), &json!("acme:shop")), "{blocks}");
    let scope = world.scopes.iter().find(|(is, _)| *is == "another project").unwrap().1;
    let theirs = world.token("eve", Binding { role: Role::Collaborator, scope }).await;
    let (_, blocks) = bench.ask_as(&theirs, Method::GET, "/v1/addresses/10.64.0.5/blocks", String::new()).await;
    assert_eq!(blocks["items"], json!([]));
}

async fn what_was_used_of_a_pool_day_by_day_is_told_with_where_it_is_heading(on: On) {
    let world = World::new(on).await;
    let bench = &world.bench;
    let get = async |uri: &str| bench.ask(Method::GET, uri, "").await;
    let (status, nothing) = get("/v1/pools/p4/trend").await;
    assert_eq!((status, &nothing["samples"], &nothing["change"]), (StatusCode::OK, &json!([]), &Value::Null));
    let pool = bench.app.store.pool("p4").await.unwrap();
    let used = |claimed: u128| ipam::Usage {
        total: 256,
        claimed,
        free: 256 - claimed,
        largest: if claimed < 128 { 128 } else { 1 },
        ..ipam::Usage::default()
    };
    let mut tx = bench.app.store.begin().await.unwrap();
    for (day, claimed) in [("2026-10-01", 4), ("2026-10-30", 16), ("2026-11-28", 60), ("2026-11-29", 64)] {
        let sample = ipam::Sample { day: day.parse().unwrap(), usage: used(claimed) };
        tx.insert_sample(&pool, &sample).await.unwrap();
    }
    tx.commit().await.unwrap();
    let (_, trend) = get("/v1/pools/p4/trend").await;
    let change = json!({"since": "2026-10-30", "addresses": "48", "full": "2027-03-29"});
    assert_eq!((trend["samples"].as_array().unwrap().len(), &trend["change"]), (4, &change));
    let latest = json!({
        "day": "2026-11-29", "total": "256", "claimed": "64", "reserved": "0", "quarantined": "0", "blocks": "0",
        "free": "192", "used": 0.25, "largest_free": 25,
    });
    assert_eq!(trend["samples"][3], latest);
    // Fewer days are shown; where it is heading is the same.
    let (_, two) = get("/v1/pools/p4/trend?days=2").await;
    assert_eq!((two["samples"].as_array().unwrap().len(), &two["change"]), (2, &change));
    let uri = "/v1/pools/p4/trend?days=40&format=csv";
    let (status, text) = bench.text(request(&bench.token, Method::GET, uri, "")).await;
    assert_eq!(status, StatusCode::OK, "{text}");
    expect![[r#"
        day,total,claimed,reserved,quarantined,blocks,free,used,largest_free
        2026-10-30,256,16,0,0,0,240,0.0625,25
        2026-11-28,256,60,0,0,0,196,0.234375,25
        2026-11-29,256,64,0,0,0,192,0.25,25
    "#]]
    .assert_eq(&text.replace("\r\n", "\n"));
    for wrong in ["0", "732"] {
        let uri = format!("/v1/pools/p4/trend?days={wrong}");
        assert_eq!(get(&uri).await.0, StatusCode::UNPROCESSABLE_ENTITY);
    }
}

async fn a_registry_is_told_of_projects_blocks_and_claims_of_its_space_and_of_no_others(on: On) {
    let world = World::new(on).await;
    let bench = &world.bench;
    let post = async |uri: &str, body: Value| {
        let (status, answer) = bench.ask(Method::POST, uri, body.to_string()).await;
        assert!(status.is_success(), "{uri}: {answer}");
        answer
    };
    let registry = json!({"registry": {"name": "RIPE ORG-EX1-RIPE"}});
    let proof = json!({"kind": "loa", "reference": "letter"});
    let customer = json!({"customer": {"name": "shop", "proof": proof}});
    for (prefix, source) in
        [("198.51.100.0/22", &registry), ("2001:db8::/32", &registry), ("203.0.113.0/24", &customer)]
    {
        let aggregate = post("/v1/aggregates", json!({"prefix": prefix, "source": source})).await;
        if source == &customer {
            let prove = format!("/v1/aggregates/{}/proof", aggregate["id"].as_str().unwrap());
            post(&prove, json!({"state": "verified"})).await;
        }
    }
    let blocks = |length: u8| json!({"length": length});
    for (name, prefix, blocks) in [
        ("six", "2001:db8:100::/40", blocks(56)),
        ("four", "198.51.100.0/24", blocks(25)),
        ("plain", "198.51.101.0/24", Value::Null),
        ("brought", "203.0.113.0/24", Value::Null),
    ] {
        post("/v1/pools", json!({"name": name, "kind": "public", "prefixes": [prefix], "blocks": blocks})).await;
    }
    let claim = |pool: &str, project: Value| json!({"pool": pool, "name": "x", "project": project});
    for (pool, project) in [
        ("six", "acme:shop"),
        ("four", "other:theirs"),
        // Of one block there is one assignment, whatever is claimed of it.
        ("four", "acme:shop"),
        ("four", "acme:shop"),
        ("plain", "acme:shop"),
        // Neither private space, nor what a customer brought.
        ("p4", "acme:shop"),
        ("brought", "acme:shop"),
    ] {
        post("/v1/claims", claim(pool, json!(project))).await;
    }
    // Nor what is nobody's, or reserved, or not any more.
    post("/v1/claims", claim("plain", Value::Null)).await;
    post("/v1/claims", json!({"pool": "plain", "name": "x", "project": "acme:shop", "reserve": true})).await;
    let gone = post("/v1/claims", claim("plain", json!("acme:shop"))).await;
    let gone = format!("/v1/claims/{}", gone["id"].as_str().unwrap());
    assert_eq!(bench.ask(Method::DELETE, &gone, "").await.0, StatusCode::OK);

    let text = async |token: &str, uri: &str| {
        let (status, text) = bench.text(request(token, Method::GET, uri, "")).await;
        assert_eq!(status, StatusCode::OK, "{text}");
        text.replace("\r\n", "\n")
    };
    expect![[r#"
        prefix,first,last,project,netname,pool
        198.51.100.0/25,198.51.100.0,198.51.100.127,other:theirs,OTHER-THEIRS,four.theirs
        198.51.100.128/25,198.51.100.128,198.51.100.255,acme:shop,ACME-SHOP,four.shop
        198.51.101.0/32,198.51.101.0,198.51.101.0,acme:shop,ACME-SHOP,plain
        2001:db8:100::/56,2001:db8:100::,2001:db8:100:ff:ffff:ffff:ffff:ffff,acme:shop,ACME-SHOP,six.shop
    "#]]
    .assert_eq(&text(&bench.token, "/v1/assignments?format=csv").await);
    let said = |country: &str, source: &str| {
        format!("/v1/assignments?format=rpsl&{country}&admin_c=EX1-RIPE&tech_c=EX2-RIPE&mnt_by=EX-MNT{source}")
    };
    let scope = world.scopes.iter().find(|(is, _)| *is == "another project").unwrap().1;
    let theirs = world.token("eve", Binding { role: Role::Collaborator, scope }).await;
    expect![[r#"
        inetnum:        198.51.100.0 - 198.51.100.127
        netname:        OTHER-THEIRS
        descr:          other:theirs
        country:        NL
        admin-c:        EX1-RIPE
        tech-c:         EX2-RIPE
        status:         ASSIGNED PA
        mnt-by:         EX-MNT
        source:         RIPE

    "#]]
    .assert_eq(&text(&theirs, &said("country=nl", "&source=RIPE")).await);
    // By pages it is the same.
    let (_, all) = bench.ask(Method::GET, "/v1/assignments", "").await;
    let (mut paged, mut uri) = (Vec::new(), "/v1/assignments?limit=1".to_owned());
    loop {
        let (_, page) = bench.ask(Method::GET, &uri, "").await;
        paged.extend(page["items"].as_array().unwrap_or_else(|| panic!("{page}")).clone());
        let Some(next) = page["next"].as_str() else { break };
        uri = format!("/v1/assignments?limit=1&after={next}");
    }
    assert_eq!(json!(paged), all["items"]);
    // Nothing in an object is made up, or breaks it.
    for (uri, field) in [
        (said("country=nl", ""), "source"),
        (said("", "&source=RIPE"), "country"),
        (said("country=nld", "&source=RIPE"), "country"),
        (said("country=nl", "&source=RIPE%0Aremarks:"), "source"),
    ] {
        let (status, problem) = bench.ask(Method::GET, &uri, "").await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{uri}: {problem}");
        assert_eq!(problem["errors"][0]["field"], field, "{problem}");
    }
}

async fn a_pool_of_a_site_is_for_its_machines_and_its_people_see_what_stands_in_no_rack(on: On) {
    let world = World::new(on).await;
    let bench = &world.bench;
    let scope = |name: &str| world.scopes.iter().find(|(is, _)| *is == name).unwrap().1;
    let of = |name: &str| Binding { role: Role::Operator, scope: scope(name) };
    let (here, there) = (world.token("ann", of("its site")).await, world.token("eve", of("another site")).await);
    let admin = bench.token.clone();
    let ask = async |token: &str, method: Method, uri: &str, body: Value| {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        bench.ask_as(token, method, uri, body).await
    };
    let pool =
        |name: &str, net: &str, site: &str| json!({"name": name, "kind": "private", "prefixes": [net], "site": site});
    let (status, made) = ask(&admin, Method::POST, "/v1/pools", pool("here-4", "10.20.0.0/24", "here")).await;
    assert_eq!((status, &made["site"], &made["rack"]), (StatusCode::CREATED, &json!("here"), &Value::Null), "{made}");
    let (_, made) = ask(&admin, Method::POST, "/v1/pools", pool("there-4", "10.21.0.0/24", "there")).await;
    let uri = format!("/v1/pools/{}", made["id"].as_str().unwrap());
    assert_eq!(ask(&there, Method::GET, &uri, Value::Null).await.1["site"], "there");

    // Its machines are those of its racks.
    let machine = &world.names["machine"];
    let wish = |pool: &str| json!({"pool": pool, "machine": machine, "project": "acme:shop"});
    assert_eq!(ask(&admin, Method::POST, "/v1/claims", wish("here-4")).await.0, StatusCode::CREATED);
    let (status, problem) = ask(&admin, Method::POST, "/v1/claims", wish("there-4")).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert!(problem["detail"].as_str().unwrap().ends_with("is in another; claim from a pool of its site"), "{problem}");

    // What no machine holds stands in the site: its people claim it, see it, move it and release it.
    let (status, claim) = ask(&here, Method::POST, "/v1/claims", json!({"pool": "here-4", "name": "vpn"})).await;
    assert_eq!(status, StatusCode::CREATED, "{claim}");
    let uri = format!("/v1/claims/{}", claim["id"].as_str().unwrap());
    let seen = async |token: &str| {
        let mut seen = Vec::new();
        for list in ["/v1/claims?pool=here-4", "/v1/claims?address=10.20.0.1"] {
            let (_, page) = ask(token, Method::GET, list, Value::Null).await;
            seen.push(page["items"].as_array().unwrap().iter().any(|one| one["id"] == claim["id"]));
        }
        seen.push(ask(token, Method::GET, &uri, Value::Null).await.0 == StatusCode::OK);
        seen
    };
    assert_eq!((seen(&here).await, seen(&there).await), (vec![true; 3], vec![false; 3]));
    let (_, sites) = ask(&admin, Method::GET, "/v1/utilisation/sites", Value::Null).await;
    let of_here = sites["items"].as_array().unwrap().iter().find(|one| one["name"] == "here").unwrap();
    assert_eq!(of_here["claimed"], "3", "the world's, the machine's and this: {sites}");
    assert_eq!(
        ask(&there, Method::POST, "/v1/claims", json!({"pool": "here-4", "name": "x"})).await.0,
        StatusCode::FORBIDDEN
    );
    assert_eq!(ask(&here, Method::PATCH, &uri, json!({"name": "vpn-2"})).await.0, StatusCode::OK);
    assert_eq!((seen(&here).await, seen(&there).await), (vec![true; 3], vec![false; 3]));
    assert_eq!(ask(&here, Method::DELETE, &uri, Value::Null).await.0, StatusCode::OK);

    // A site is not deleted while there are pools for it.
    assert_eq!(ask(&admin, Method::POST, "/v1/sites", json!({"name": "new"})).await.0, StatusCode::CREATED);
    assert_eq!(
        ask(&admin, Method::POST, "/v1/pools", pool("new-4", "10.22.0.0/24", "new")).await.0,
        StatusCode::CREATED
    );
    assert_eq!(ask(&admin, Method::DELETE, "/v1/sites/new", Value::Null).await.0, StatusCode::CONFLICT);
    assert_eq!(ask(&admin, Method::DELETE, "/v1/pools/new-4", Value::Null).await.0, StatusCode::NO_CONTENT);
    assert_eq!(ask(&admin, Method::DELETE, "/v1/sites/new", Value::Null).await.0, StatusCode::NO_CONTENT);
    let both = json!({"name": "x", "kind": "private", "prefixes": ["10.23.0.0/24"], "site": "here", "rack": "lab"});
    assert_eq!(ask(&admin, Method::POST, "/v1/pools", both).await.0, StatusCode::UNPROCESSABLE_ENTITY);
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
            Method::PATCH,
            "/v1/pools/p4",
            json!({"grants": [{"to": "everyone", "may": []}]}),
            expect!["422 invalid: /grants/0/may: say what: assign, announce or reverse, one or several"],
        ),
        (
            Method::PATCH,
            "/v1/pools/p4",
            json!({"grants": [{"to": {"role": "king"}, "may": ["assign"]}]}),
            expect![
                "422 invalid: /grants/0/to: `king` is no role; there are owner, admin, operator, technician, collaborator, billing, viewer"
            ],
        ),
        (
            Method::PATCH,
            "/v1/pools/p4",
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
    a_claim_moves_within_its_project_to_where_the_caller_could_have_claimed_it,
    a_claims_own_grants_say_who_moves_announces_and_names_it,
    what_a_project_may_announce_of_a_pool_it_may_of_its_own_blocks,
    what_was_used_of_a_pool_day_by_day_is_told_with_where_it_is_heading,
    a_registry_is_told_of_projects_blocks_and_claims_of_its_space_and_of_no_others,
    a_pool_of_a_site_is_for_its_machines_and_its_people_see_what_stands_in_no_rack,
    a_wrong_pool_grant_or_name_is_told_what_is_wrong,
}
