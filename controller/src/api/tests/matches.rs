//! What can be changed is sent with an `ETag`, and is changed with `If-Match` only as it was read.

use std::collections::BTreeMap;

use super::*;

/// Status, tag and body of the answer to a request that has read `tag`.
async fn ask(bench: &Bench, method: &str, uri: &str, tag: &str, body: &Value) -> (StatusCode, String, Value) {
    let request = Request::builder()
        .method(method)
        .uri(uri)
        .header("authorization", format!("Bearer {}", bench.token))
        .header("content-type", "application/json")
        .header("if-match", tag)
        .body(Body::from(body.to_string()))
        .unwrap();
    let response = bench.router().oneshot(request).await.unwrap();
    let (status, tag) = (response.status(), response.headers().get("etag").cloned());
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let tag = tag.map(|tag| tag.to_str().unwrap().to_owned()).unwrap_or_default();
    (status, tag, if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() })
}

async fn whatever_can_be_changed_is_changed_as_it_was_read_or_not(on: On) {
    let bench = Bench::new(on).await;
    let machine = discovered(&bench).await;
    for (uri, body) in [
        ("/v1/organisations", json!({"name": "acme"})),
        ("/v1/projects", json!({"name": "shop", "organisation": "acme"})),
        ("/v1/sites", json!({"name": "here"})),
        ("/v1/people", json!({"name": "ada"})),
        ("/v1/aggregates", json!({"prefix": "10.0.0.0/8", "source": "private"})),
        ("/v1/pools", json!({"name": "p4", "kind": "private", "prefixes": ["10.9.0.0/24"]})),
        ("/v1/plans", json!({"name": "large", "rules": {"threads": 2}})),
    ] {
        let (status, made) = bench.ask(Method::POST, uri, body.to_string()).await;
        assert_eq!(status, StatusCode::CREATED, "{uri}: {made}");
    }
    let wish = json!({"pool": "p4", "name": "vpn"}).to_string();
    let claim = bench.ask(Method::POST, "/v1/claims", wish).await.1["id"].as_str().unwrap().to_owned();
    bench.ask(Method::PUT, "/v1/images/debian?firmware=bios", vec![7; 8192]).await;
    bench.app.images.closed().await;
    // One of each, and what to change about it.
    let things = BTreeMap::from([
        ("organisation", ("acme", json!({"name": "other"}))),
        ("project", ("shop", json!({"name": "store"}))),
        ("site", ("here", json!({"name": "there"}))),
        ("person", ("ada", json!({"email": "ada@example.net"}))),
        ("rack", ("lab", json!({"site": "here"}))),
        ("machine", (machine.as_str(), json!({"name": "web-1"}))),
        ("image", ("debian", json!({"deprecated": true}))),
        ("plan", ("large", json!({"description": "databases"}))),
        ("claim", (claim.as_str(), json!({"name": "vpn-2", "purpose": "tunnels"}))),
        ("pool", ("p4", json!({"name": "p", "quarantine_minutes": 5, "purpose": "tunnels"}))),
    ]);
    let document = serde_json::to_value(document()).unwrap();
    let mut seen = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        // What is below a thing, as an address's name, is a value that is replaced as a whole.
        let changes = path.ends_with('}')
            && !VALUES.contains(&path.as_str())
            && ["patch", "put"].into_iter().any(|method| item.get(method).is_some());
        let Some(read) = item.get("get").filter(|_| changes) else { continue };
        let (start, parameter) = path.trim_end_matches('}').split_once('{').unwrap();
        assert!(read["responses"]["200"]["headers"]["ETag"].is_object(), "the document tells no ETag of {path}");
        let (name, change) = things.get(parameter).unwrap_or_else(|| panic!("name a {parameter} here"));
        seen.push(parameter);
        let (status, tag, thing) = ask(&bench, "GET", &format!("{start}{name}"), "*", &Value::Null).await;
        assert_eq!(status, StatusCode::OK, "{path}: {thing}");
        assert!(!tag.is_empty(), "{path} has no ETag");
        let uri = format!("{start}{}", thing["id"].as_str().unwrap());
        for method in ["patch", "delete"].into_iter().filter(|method| item.get(*method).is_some()) {
            let parameters = item[method]["parameters"].as_array().unwrap();
            assert!(parameters.iter().any(|parameter| parameter["name"] == "If-Match"), "{method} {path}");
            let (status, _, problem) = ask(&bench, &method.to_uppercase(), &uri, "\"0\"", change).await;
            assert_eq!(status, StatusCode::PRECONDITION_FAILED, "{method} {path}: {problem}");
            assert!(problem["detail"].as_str().unwrap().contains("read it again"), "{problem}");
        }
        let (status, now, changed) = ask(&bench, "PATCH", &uri, &tag, change).await;
        assert_eq!(status, StatusCode::OK, "{path}: {changed}");
        assert_ne!(now, tag, "{path} was changed and has the same ETag");
        for (field, value) in change.as_object().unwrap() {
            assert_eq!(&changed[field], value, "{path}");
        }
        let (_, read, again) = ask(&bench, "GET", &uri, "*", &Value::Null).await;
        assert_eq!((read, again), (now, changed), "{path} is not what its change was answered with");
        let (status, ..) = ask(&bench, "PATCH", &uri, &tag, change).await;
        assert_eq!(status, StatusCode::PRECONDITION_FAILED, "{path} was changed since");
    }
    seen.sort_unstable();
    assert_eq!(seen, things.keys().copied().collect::<Vec<_>>());
}

async fn more_addresses_and_another_password_are_changes_and_a_login_is_none(on: On) {
    let bench = Bench::new(on).await;
    let post = async |uri: &str, body: Value| bench.ask(Method::POST, uri, body.to_string()).await;
    post("/v1/aggregates", json!({"prefix": "10.0.0.0/8", "source": "private"})).await;
    post("/v1/pools", json!({"name": "p4", "kind": "private", "prefixes": ["10.9.0.0/24"]})).await;
    let (_, before, _) = ask(&bench, "GET", "/v1/pools/p4", "*", &Value::Null).await;
    let more = json!({"prefixes": ["10.9.1.0/24"]});
    let (status, ..) = ask(&bench, "POST", "/v1/pools/p4/prefixes", &before, &more).await;
    assert_eq!(status, StatusCode::OK);
    let (_, after, _) = ask(&bench, "GET", "/v1/pools/p4", "*", &Value::Null).await;
    assert_ne!(before, after);
    let (status, ..) =
        ask(&bench, "POST", "/v1/pools/p4/prefixes", &before, &json!({"prefixes": ["10.9.2.0/24"]})).await;
    assert_eq!(status, StatusCode::PRECONDITION_FAILED);

    post("/v1/people", json!({"name": "ada", "password": "correct horse battery"})).await;
    let (_, before, _) = ask(&bench, "GET", "/v1/people/ada", "*", &Value::Null).await;
    let (status, _) = post("/v1/login", json!({"name": "ada", "password": "correct horse battery"})).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(ask(&bench, "GET", "/v1/people/ada", "*", &Value::Null).await.1, before);
    let another = json!({"password": "another horse battery"});
    assert_eq!(ask(&bench, "PATCH", "/v1/people/ada", &before, &another).await.0, StatusCode::OK);
    assert_ne!(ask(&bench, "GET", "/v1/people/ada", "*", &Value::Null).await.1, before);
}

async fn a_bmc_is_replaced_and_forgotten_as_it_was_read_or_not(on: On) {
    let bench = Bench::new(on).await;
    let uri = &format!("/v1/racks/lab/bmcs/{}", discovered(&bench).await);
    let bmc = |address| json!({"address": address, "user": "admin", "password": "secret"});
    let (status, first, told) = ask(&bench, "PUT", uri, "*", &bmc("10.20.0.5")).await;
    assert_eq!(status, StatusCode::OK, "{told}");
    assert!(told.get("password").is_none(), "{told}");
    assert_eq!(ask(&bench, "GET", uri, "*", &Value::Null).await.1, first);
    let (status, second, _) = ask(&bench, "PUT", uri, &first, &bmc("10.20.0.6")).await;
    assert_eq!(status, StatusCode::OK);
    assert_ne!(first, second);
    assert_eq!(ask(&bench, "PUT", uri, &first, &bmc("10.20.0.7")).await.0, StatusCode::PRECONDITION_FAILED);
    assert_eq!(ask(&bench, "DELETE", uri, &first, &Value::Null).await.0, StatusCode::PRECONDITION_FAILED);
    assert_eq!(ask(&bench, "GET", uri, "*", &Value::Null).await.2["address"], "10.20.0.6");
    assert_eq!(ask(&bench, "DELETE", uri, &second, &Value::Null).await.0, StatusCode::NO_CONTENT);
    assert_eq!(ask(&bench, "GET", uri, "*", &Value::Null).await.0, StatusCode::NOT_FOUND);
}

on_both! {
    a_bmc_is_replaced_and_forgotten_as_it_was_read_or_not,
    whatever_can_be_changed_is_changed_as_it_was_read_or_not,
    more_addresses_and_another_password_are_changes_and_a_login_is_none,
}
