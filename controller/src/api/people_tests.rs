//! People against each other: what one sees of another's, who grants what, tokens and logins.

use axum::http::{Method, StatusCode};
use expect_test::expect;
use rackhand_controller_core::access::{Binding, Role, Scope};
use serde_json::{Value, json};

use super::{tests::Bench, walk::World};
use crate::{
    store::tests::{On, on_both},
    totp,
};

async fn post(bench: &Bench, uri: &str, body: Value) -> (StatusCode, Value) {
    bench.ask(Method::POST, uri, body.to_string()).await
}

async fn count(bench: &Bench, uri: &str) -> usize {
    let (status, page) = bench.ask(Method::GET, uri, "").await;
    assert_eq!(status, StatusCode::OK, "{uri}: {page}");
    page["items"].as_array().unwrap().len()
}

async fn a_project_sees_what_is_given_to_it_and_nothing_of_another_in_lists_and_histories(on: On) {
    let mut world = World::new(on).await;
    let admin = world.bench.token.clone();
    let machine = world.names["machine"].clone();
    let lists = [
        "/v1/machines",
        "/v1/machines?sort=name",
        "/v1/runs",
        "/v1/events",
        "/v1/claims",
        "/v1/claims?address=10.9.0.0",
        "/v1/addresses/10.9.0.0/history",
        "/v1/addresses/10.9.0.0/history?at=1970-01-01T00:00:00Z",
    ];
    let mut seen = String::new();
    for (name, scope) in world.scopes.clone() {
        let token = format!("see-{}", name.replace(' ', "-"));
        world.bench.token = world.token(&token, Binding { role: Role::Operator, scope }).await;
        seen += &format!("{name}:");
        for list in lists {
            seen += &format!(" {}", count(&world.bench, list).await);
        }
        let (status, _) = world.bench.ask(Method::GET, &format!("/v1/events?machine={machine}"), "").await;
        seen += &format!(" {}\n", status.as_u16());
    }
    world.bench.token = admin;
    expect![[r#"
        everything: 1 1 1 5 1 1 1 1 200
        its organisation: 1 1 1 2 1 1 1 1 200
        another organisation: 0 0 0 0 0 0 0 0 404
        its project: 1 1 1 2 1 1 1 1 200
        another project: 0 0 0 0 0 0 0 0 404
        its site: 1 1 1 5 1 1 1 1 200
        another site: 0 0 0 0 0 0 0 0 404
        its rack: 1 1 1 5 1 1 1 1 200
        another rack: 0 0 0 0 0 0 0 0 404
    "#]]
    .assert_eq(&seen);
}

async fn nobody_grants_or_takes_away_what_they_have_not_and_somebody_always_owns_everything(on: On) {
    let mut world = World::new(on).await;
    let owner = world.bench.token.clone();
    let grant = |role: &str, scope: Value| json!({"person": "bob", "role": role, "scope": scope});
    let (everything, shop) = (json!({"kind": "everything"}), json!({"kind": "project", "name": "acme:shop"}));
    let (_, bindings) = world.bench.ask(Method::GET, "/v1/bindings", "").await;
    let first = format!("/v1/bindings/{}", bindings["items"][0]["id"].as_str().unwrap());
    world
        .bench
        .check(
            Method::DELETE,
            &first,
            "",
            expect!["409 conflict: nobody else owns everything; make another person an owner first"],
        )
        .await;
    world
        .bench
        .check(
            Method::DELETE,
            "/v1/people/admin",
            "",
            expect!["409 conflict: nobody else owns everything; make another person an owner first"],
        )
        .await;

    let all = Binding { role: Role::Admin, scope: Scope::Everything };
    world.bench.token = world.token("root", all).await;
    world
        .bench
        .check(
            Method::POST,
            "/v1/bindings",
            grant("owner", everything.clone()).to_string(),
            expect!["403 forbidden: the role owner may do more there than you, and nobody can give what they have not"],
        )
        .await;
    world
        .bench
        .check(
            Method::DELETE,
            &first,
            "",
            expect!["403 forbidden: the role owner may do more there than you, and nobody can give what they have not"],
        )
        .await;
    world
        .bench
        .check(
            Method::PATCH,
            "/v1/people/admin",
            r#"{"password":"let me in, please"}"#,
            expect!["403 forbidden: the role owner may do more there than you, and nobody can give what they have not"],
        )
        .await;
    assert_eq!(post(&world.bench, "/v1/bindings", grant("admin", everything.clone())).await.0, StatusCode::CREATED);

    let of_shop = Binding { role: Role::Admin, scope: world.scopes[3].1 };
    world.bench.token = world.token("shopkeeper", of_shop).await;
    world
        .bench
        .check(
            Method::POST,
            "/v1/bindings",
            grant("viewer", everything).to_string(),
            expect!["403 forbidden: role.grant needs one of the roles owner, admin there"],
        )
        .await;
    assert_eq!(post(&world.bench, "/v1/bindings", grant("viewer", shop)).await.0, StatusCode::CREATED);
    let theirs = json!({"kind": "project", "name": "other:theirs"});
    world
        .bench
        .check(
            Method::POST,
            "/v1/bindings",
            grant("viewer", theirs).to_string(),
            expect!["404 not-found: there is no such project"],
        )
        .await;

    world.bench.token = owner;
    let another = json!({"person": "root", "role": "owner", "scope": {"kind": "everything"}});
    assert_eq!(post(&world.bench, "/v1/bindings", another).await.0, StatusCode::CREATED);
    assert_eq!(world.bench.ask(Method::DELETE, &first, "").await.0, StatusCode::NO_CONTENT);
    assert_eq!(world.bench.ask(Method::GET, "/v1/people", "").await.0, StatusCode::FORBIDDEN);
}

async fn a_token_is_shown_once_and_may_no_more_than_the_one_it_is_made_with(on: On) {
    let mut world = World::new(on).await;
    let made =
        json!({"name": "power", "actions": ["machine.read", "token.own"], "scopes": [{"kind": "rack", "name": "lab"}]});
    let (status, made) = post(&world.bench, "/v1/tokens", made).await;
    assert_eq!((status, &made["token"]["owner"]), (StatusCode::CREATED, &json!("admin")), "{made}");
    let secret = made["secret"].as_str().unwrap().to_owned();
    let (_, listed) = world.bench.ask(Method::GET, "/v1/tokens", "").await;
    assert!(!listed.to_string().contains(&secret) && listed.to_string().contains(&secret[..9]), "{listed}");
    let (admin, machine) = (world.bench.token.clone(), world.names["machine"].clone());

    world.bench.token = secret;
    assert_eq!(count(&world.bench, "/v1/machines").await, 1);
    let power = format!("/v1/machines/{machine}/power");
    world
        .bench
        .check(
            Method::POST,
            &power,
            r#"{"action":"on"}"#,
            expect!["403 forbidden: this token was not made for machine.power; `rackhand whoami` says for what"],
        )
        .await;
    let more = json!({"name": "more", "actions": ["machine.power"]}).to_string();
    world
        .bench
        .check(
            Method::POST,
            "/v1/tokens",
            more,
            expect!["403 forbidden: the token that you use is not good for machine.power itself"],
        )
        .await;
    let elsewhere = json!({"name": "far", "scopes": [{"kind": "everything"}]}).to_string();
    world
        .bench
        .check(
            Method::POST,
            "/v1/tokens",
            elsewhere,
            expect!["403 forbidden: the token that you use is not good there itself"],
        )
        .await;
    let longer = json!({"name": "longer", "days": 0}).to_string();
    world
        .bench
        .check(
            Method::POST,
            "/v1/tokens",
            longer,
            expect!["422 invalid: /days: a token cannot outlive the restricted one that it is made with"],
        )
        .await;
    let (_, less) = post(&world.bench, "/v1/tokens", json!({"name": "less", "days": 1})).await;
    assert_eq!(less["token"]["actions"], json!(["machine.read", "token.own"]), "{less}");

    let gone = format!("/v1/tokens/{}", made["token"]["id"].as_str().unwrap());
    world.bench.token = admin;
    assert_eq!(world.bench.ask(Method::DELETE, &gone, "").await.0, StatusCode::NO_CONTENT);
    let service = json!({"name": "ci", "project": "shop", "role": "viewer"});
    let (_, service) = post(&world.bench, "/v1/tokens", service).await;
    world.bench.token = service["secret"].as_str().unwrap().to_owned();
    let (_, who) = world.bench.ask(Method::GET, "/v1/whoami", "").await;
    assert_eq!((&who["name"], &who["roles"][0]["role"]), (&json!("acme:shop"), &json!("viewer")), "{who}");
    assert_eq!(count(&world.bench, "/v1/machines").await, 1);
    world.bench.check(Method::POST, &power, r#"{"action":"on"}"#, expect!["403 forbidden: machine.power needs one of the roles owner, admin, operator, technician, collaborator there"]).await;
}

async fn a_login_wants_password_and_code_takes_a_code_once_and_is_recorded(on: On) {
    let mut bench = Bench::new(on).await;
    let admin = bench.token.clone();
    let new = json!({"new": "correct horse battery"}).to_string();
    assert_eq!(bench.ask(Method::PUT, "/v1/password", new).await.0, StatusCode::NO_CONTENT);
    let login = |password: &str, code: Option<&str>| json!({"name": "admin", "password": password, "code": code});
    let (status, token) = post(&bench, "/v1/login", login("correct horse battery", None)).await;
    assert_eq!(status, StatusCode::OK, "{token}");
    bench.token = token["token"].as_str().unwrap().to_owned();
    assert_eq!(bench.ask(Method::GET, "/v1/whoami", "").await.1["name"], "admin");

    bench
        .check(
            Method::POST,
            "/v1/totp",
            r#"{"password":"wrong"}"#,
            expect!["403 forbidden: the present password is wrong"],
        )
        .await;
    let (status, factor) = post(&bench, "/v1/totp", json!({"password": "correct horse battery"})).await;
    assert_eq!(status, StatusCode::CREATED, "{factor}");
    let secret = bench.app.store.person("admin").await.unwrap().totp.unwrap().secret;
    assert_eq!(factor["secret"], totp::base32(&secret));
    // The clock of the bench stands at 1970.
    let code = |step| totp::code_at(&secret, step);
    assert_eq!(post(&bench, "/v1/totp/confirm", json!({"code": code(5)})).await.0, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(post(&bench, "/v1/totp/confirm", json!({"code": code(1)})).await.0, StatusCode::NO_CONTENT);
    let wrong = [login("correct horse battery", None), login("correct horse battery", Some(&code(1)))];
    let nobody = json!({"name": "nobody", "password": "correct horse battery"});
    for wrong in wrong.into_iter().chain([nobody]) {
        let begun = std::time::Instant::now();
        bench
            .check(
                Method::POST,
                "/v1/login",
                wrong.to_string(),
                expect!["401 unauthenticated: name, password or code is wrong"],
            )
            .await;
        assert!(begun.elapsed() >= std::time::Duration::from_secs(1));
    }
    // Two were tried of five.
    for _ in 0..3 {
        post(&bench, "/v1/login", login("wrong", None)).await;
    }
    bench
        .check(
            Method::POST,
            "/v1/login",
            login("wrong", None).to_string(),
            expect!["429 too-many: too many logins were tried; try again in 31 seconds"],
        )
        .await;

    bench.token = admin;
    bench.app.store.link_records().await.unwrap();
    let (_, records) = bench.ask(Method::GET, "/v1/audit?by=admin&limit=200", "").await;
    let actions: Vec<_> = records["items"].as_array().unwrap().iter().map(|record| record["action"].clone()).collect();
    assert_eq!(actions.iter().filter(|action| **action == "POST /v1/login").count(), 1, "{actions:?}");
    assert_eq!(actions.iter().filter(|action| **action == "POST /v1/login (refused)").count(), 5, "{actions:?}");
    assert_eq!(count(&bench, "/v1/audit?by=nobody").await, 1);
}

on_both! {
    a_project_sees_what_is_given_to_it_and_nothing_of_another_in_lists_and_histories,
    nobody_grants_or_takes_away_what_they_have_not_and_somebody_always_owns_everything,
    a_token_is_shown_once_and_may_no_more_than_the_one_it_is_made_with,
    a_login_wants_password_and_code_takes_a_code_once_and_is_recorded,
}
