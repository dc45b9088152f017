//! Plans, and which machines are of them.

use super::*;

async fn a_plan_is_made_of_a_machine_that_then_matches_it(on: On) {
    let bench = Bench::new(on).await;
    let machine = discovered(&bench).await;
    let (_, rules) = bench.ask(Method::GET, &format!("/v1/machines/{machine}/suggested-plan"), "").await;
    assert_eq!(rules["disks"], json!([{"count": 1, "kind": "ssd", "size": 1_000_000_000}]), "{rules}");
    let new = json!({"name": "small", "description": "for tests", "rules": rules}).to_string();
    let (status, plan) = bench.ask(Method::POST, "/v1/plans", new.clone()).await;
    assert_eq!((status, &plan["rules"]), (StatusCode::CREATED, &rules), "{plan}");
    assert_eq!(bench.ask(Method::POST, "/v1/plans", new).await.0, StatusCode::CONFLICT);

    let (_, matched) = bench.ask(Method::GET, "/v1/plans/small/machines", "").await;
    assert_eq!(matched["items"], json!([{"plan": "small", "machine": machine, "matches": true, "mismatches": []}]));
    let listed = async |query: &str| {
        let (status, page) = bench.ask(Method::GET, &format!("/v1/machines?{query}"), "").await;
        assert_eq!(status, StatusCode::OK, "{page}");
        page["items"].as_array().unwrap().len()
    };
    assert_eq!(listed("plan=small").await, 1);
    assert_eq!(listed("plan=small&lifecycle=ready").await, 0);
    assert_eq!(listed("plan=small&sort=name&limit=1").await, 1);

    let larger = json!({"rules": {"threads": 64, "disks": [{"count": 2}]}}).to_string();
    assert_eq!(bench.ask(Method::PATCH, "/v1/plans/small", larger).await.0, StatusCode::OK);
    assert_eq!(listed("plan=small").await, 0);
    let (_, lacks) = bench.ask(Method::GET, &format!("/v1/machines/{machine}/plans"), "").await;
    assert_eq!(
        lacks["items"][0]["mismatches"],
        json!([
            {"rule": "threads", "wanted": "64", "found": "0"},
            {"rule": "disks/0", "wanted": "2 disks", "found": "SSD 1073741824"},
        ])
    );
    assert_eq!(bench.ask(Method::DELETE, "/v1/plans/small", "").await.0, StatusCode::NO_CONTENT);
    assert_eq!(bench.ask(Method::GET, "/v1/machines?plan=small", "").await.0, StatusCode::NOT_FOUND);
}

async fn a_critical_machine_that_is_ready_is_of_no_plan_unless_somebody_says_otherwise(on: On) {
    let bench = Bench::new(on).await;
    let machine = discovered(&bench).await;
    let adopt = json!({"accept_data": true}).to_string();
    assert_eq!(bench.ask(Method::POST, &format!("/v1/machines/{machine}/adopt"), adopt).await.0, StatusCode::OK);
    let new = json!({"name": "any", "rules": {"threads": 0}}).to_string();
    assert_eq!(bench.ask(Method::POST, "/v1/plans", new).await.0, StatusCode::CREATED);
    let listed = async |query: &str| {
        let (status, page) = bench.ask(Method::GET, &format!("/v1/machines?{query}"), "").await;
        assert_eq!(status, StatusCode::OK, "{page}");
        page["items"].as_array().unwrap().len()
    };
    assert_eq!((listed("plan=any").await, listed("health=unknown").await), (1, 1));
    let uri = format!("/v1/machines/{machine}/health");
    let (_, health) = bench.ask(Method::GET, &uri, "").await;
    assert_eq!((&health["state"], &health["since"]), (&json!("unknown"), &Value::Null), "{health}");

    let since = Timestamp::UNIX_EPOCH;
    let cause = rackhand_common::health::Cause {
        rule: "fan".into(),
        state: rackhand_common::health::State::Critical,
        subject: "FAN1".into(),
        reading: "0 rpm".into(),
        since,
        part: Some("replace the fan FAN1".into()),
    };
    let verdict = rackhand_common::health::Verdict { state: cause.state, since, causes: vec![cause] };
    let mut tx = bench.app.store.begin().await.unwrap();
    let id = tx.machine(&machine).await.unwrap().id;
    tx.set_machine_health(since, id, &verdict).await.unwrap();
    tx.commit().await.unwrap();
    let (_, told) = bench.ask(Method::GET, "/v1/plans/any/machines", "").await;
    let found = "critical: FAN1: 0 rpm (replace the fan FAN1)";
    let lacks = json!([{"rule": "health", "wanted": "not critical", "found": found}]);
    assert_eq!(told["items"][0]["mismatches"], lacks, "{told}");
    assert_eq!((listed("plan=any").await, listed("health=critical").await, listed("health=ok").await), (0, 1, 0));
    let wrong = bench.ask(Method::GET, "/v1/machines?health=well", "").await;
    assert_eq!(wrong.0, StatusCode::UNPROCESSABLE_ENTITY, "{}", wrong.1);

    let over = format!("{uri}/override");
    let body = |reason: &str, expires: &str| json!({"reason": reason, "expires": expires}).to_string();
    for wrong in
        [body(" ", "1970-01-02T00:00:00Z"), body("x", "1970-01-01T00:00:00Z"), body("x", "1971-01-01T00:00:00Z")]
    {
        assert_eq!(bench.ask(Method::PUT, &over, wrong).await.0, StatusCode::UNPROCESSABLE_ENTITY);
    }
    let (status, made) = bench.ask(Method::PUT, &over, body("ordered", "1970-01-02T00:00:00Z")).await;
    assert_eq!((status, &made["by"]), (StatusCode::OK, &json!("admin")), "{made}");
    assert_eq!((listed("plan=any").await, listed("health=critical").await), (1, 1));
    assert_eq!(bench.ask(Method::DELETE, &over, "").await.0, StatusCode::NO_CONTENT);
    assert_eq!(listed("plan=any").await, 0);
    let (_, events) = bench.ask(Method::GET, "/v1/events", "").await;
    let kinds: Vec<_> = events["items"].as_array().unwrap().iter().map(|event| event["kind"].clone()).collect();
    assert!(kinds.ends_with(&[json!("health_overridden"), json!("health_override_removed")]), "{kinds:?}");
}

async fn a_wrong_plan_is_told_what_is_wrong(on: On) {
    let bench = Bench::new(on).await;
    let refused = async |body: Value, expected: Expect| {
        bench.check(Method::POST, "/v1/plans", body.to_string(), expected).await;
    };
    refused(
        json!({"name": "x", "rules": {"disks": [{"count": 0}]}}),
        expect!["422 invalid: /rules: a `count` is at least 1; leave out what is not looked at"],
    )
    .await;
    refused(
        json!({"name": "x", "rules": {"disks": vec![json!({"count": 1}); 33]}}),
        expect!["422 invalid: /rules: at most 32 rules of one kind"],
    )
    .await;
    refused(
        json!({"name": "x", "rules": {"cpu": "a\nb"}}),
        expect!["422 invalid: /rules/cpu: one line, without control characters"],
    )
    .await;
    let (status, _) = bench.ask(Method::POST, "/v1/plans", r#"{"name": "x", "rules": {"speed": 1}}"#).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
}

on_both! {
    a_critical_machine_that_is_ready_is_of_no_plan_unless_somebody_says_otherwise,
    a_plan_is_made_of_a_machine_that_then_matches_it,
    a_wrong_plan_is_told_what_is_wrong,
}
