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
    a_plan_is_made_of_a_machine_that_then_matches_it,
    a_wrong_plan_is_told_what_is_wrong,
}
