//! Runs: tried again by those who may, and what is known of them.

use rackhand_controller_core::{
    access::{Binding, Role, Scope},
    workflow::{Cause, Step},
};

use super::*;
use crate::{
    api::walk::World,
    store::{Happened, Run, RunStatus},
};

/// The run of this world's machine, ended so.
async fn end(bench: &Bench, run: &str, status: RunStatus) -> Run {
    let mut tx = bench.app.store.begin().await.unwrap();
    let run = tx.run(run.parse().unwrap()).await.unwrap();
    let ended = Run { status, ended: Some(Timestamp::UNIX_EPOCH), ..run };
    tx.save_run(Timestamp::UNIX_EPOCH, &ended).await.unwrap();
    tx.commit().await.unwrap();
    ended
}

async fn a_run_is_tried_again_by_those_who_may_do_what_it_does(on: On) {
    let mut world = World::new(on).await;
    let (run, scopes) = (world.names["run"].clone(), world.scopes.clone());
    let uri = format!("/v1/runs/{run}/retry");
    let (status, problem) = world.bench.ask(Method::POST, &uri, "{}").await;
    assert_eq!(status, StatusCode::CONFLICT, "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("in progress"), "{problem}");
    end(&world.bench, &run, RunStatus::Done).await;
    let done = expect!["409 conflict: the run did what it was to do; ask for another one"];
    world.bench.check(Method::POST, &uri, "{}", done).await;
    end(&world.bench, &run, RunStatus::Failed).await;
    let scope = |name: &str| scopes.iter().find(|(known, _)| *known == name).unwrap().1;
    let mut answered = String::new();
    for (role, scope, wanted) in [
        (Role::Viewer, scope("its project"), StatusCode::FORBIDDEN),
        (Role::Owner, scope("another organisation"), StatusCode::NOT_FOUND),
        (Role::Owner, scope("another rack"), StatusCode::NOT_FOUND),
        // Switching power is a technician's.
        (Role::Technician, scope("its rack"), StatusCode::ACCEPTED),
    ] {
        world.bench.token = world.token(&format!("{role}-{}", scope.kind()), Binding { role, scope }).await;
        let (status, answer) = world.bench.ask(Method::POST, &uri, "{}").await;
        assert_eq!(status, wanted, "{role}: {answer}");
        if status == StatusCode::ACCEPTED {
            assert_ne!(answer["id"], run.as_str());
            answered = answer["id"].as_str().unwrap().to_owned();
            assert_eq!((&answer["kind"], &answer["status"]), (&json!("power"), &json!("running")));
        }
    }
    // The new one is in progress now.
    world.bench.token = world.token("last", Binding { role: Role::Owner, scope: Scope::Everything }).await;
    let (status, problem) = world.bench.ask(Method::POST, &uri, "{}").await;
    assert_eq!(status, StatusCode::CONFLICT, "{problem}");
    end(&world.bench, answered.as_str(), RunStatus::Failed).await;
    let no_data = expect!["422 invalid: /user_data: the run had no user data; ask for another one to tell it some"];
    world.bench.check(Method::POST, &uri, r#"{"user_data": "x"}"#, no_data).await;
}

async fn what_is_known_of_a_run_is_its_steps_and_what_happened_meanwhile(on: On) {
    let world = World::new(on).await;
    let bench = &world.bench;
    let run = end(bench, &world.names["run"], RunStatus::Failed).await;
    let mut tx = bench.app.store.begin().await.unwrap();
    let at = |second: i64| Timestamp::from_second(second).unwrap();
    let (cause, detail) = (Cause::Overdue, "no answer".to_owned());
    let again = Happened::Again { step: Step::SwitchPower, attempt: 2, cause, detail: detail.clone() };
    let ended = Happened::RunEnded { status: RunStatus::Failed, cause: Some(cause), detail: Some(detail.clone()) };
    for (second, of, body) in [
        (3, Some(run.id), again),
        (4, None, Happened::Alert { reason: "something else".into() }),
        (5, Some(run.id), Happened::Undoing { cause, detail }),
        (5, Some(run.id), ended),
        (6, None, Happened::Alert { reason: "afterwards".into() }),
    ] {
        tx.insert_event(at(second), run.rack, Some(run.machine), of, &body).await.unwrap();
    }
    tx.commit().await.unwrap();
    let uri = format!("/v1/runs/{}/logs", run.id);
    let (status, logs) = bench.ask(Method::GET, &uri, "").await;
    assert_eq!(status, StatusCode::OK, "{logs}");
    let texts = |logs: &Value| {
        let events = logs["events"].as_array().unwrap().clone();
        events.iter().map(|event| event["text"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let all = texts(&logs);
    let wanted = [
        "power begins",
        "switch power failed (overdue: no answer); attempt 2 follows",
        "ALERT: something else",
        "undoing what was done (overdue: no answer)",
        "run failed: overdue: no answer",
    ];
    assert_eq!(all, wanted);
    let steps = logs["steps"].as_array().unwrap();
    let told = steps.iter().map(|step| [&step["step"], &step["attempt"], &step["outcome"], &step["ended"]]);
    let third = json!("1970-01-01T00:00:03Z");
    let wanted = [
        [&json!("switch power"), &json!(1), &json!("failed"), &third],
        [&json!("switch power"), &json!(2), &json!("failed"), &json!("1970-01-01T00:00:05Z")],
    ];
    assert_eq!(told.collect::<Vec<_>>(), wanted);
    assert_eq!((&steps[1]["began"], &steps[1]["cause"]), (&third, &json!("overdue")));
    assert_eq!(logs["next"], Value::Null);

    let (mut paged, mut after) = (Vec::new(), String::new());
    loop {
        let (_, page) = bench.ask(Method::GET, &format!("{uri}?limit=2{after}"), "").await;
        paged.extend(texts(&page));
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    assert_eq!(paged, all);

    let request = Request::get(format!("{uri}?format=text&limit=3"))
        .header("authorization", format!("Bearer {}", bench.token))
        .body(Body::empty())
        .unwrap();
    let response = bench.router().oneshot(request).await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/plain; charset=utf-8");
    assert!(response.headers().contains_key("rackhand-next"));
    let text = response.into_body().collect().await.unwrap().to_bytes();
    let text = String::from_utf8(text.to_vec()).unwrap().replace(&run.id.to_string(), "RUN");
    let text = text.replace(&world.names["machine"], "MACHINE");
    expect![[r#"
        power MACHINE  run RUN  failed
        1970-01-01T00:00:00Z  1970-01-01T00:00:03Z  switch power, attempt 1: failed: overdue: no answer
        1970-01-01T00:00:03Z  1970-01-01T00:00:05Z  switch power, attempt 2: failed: overdue: no answer
        1970-01-01T00:00:00Z  power begins
        1970-01-01T00:00:03Z  switch power failed (overdue: no answer); attempt 2 follows
        1970-01-01T00:00:04Z  ALERT: something else
    "#]]
    .assert_eq(&text);
}

on_both! {
    a_run_is_tried_again_by_those_who_may_do_what_it_does,
    what_is_known_of_a_run_is_its_steps_and_what_happened_meanwhile,
}
