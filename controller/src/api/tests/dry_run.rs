//! Every operation that changes something, tried and then done.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicU8, AtomicUsize, Ordering},
};

use rackhand_controller_core::lifecycle::Lifecycle;

use super::*;
use crate::{api::dry_run::can_be_tried, store};

/// An API of which is known whom it wakes and cuts, and which operations were tried.
struct Trial {
    bench: Bench,
    woken: Arc<AtomicUsize>,
    tried: BTreeSet<(String, String)>,
}

impl Trial {
    async fn new(on: On) -> Self {
        let mut bench = Bench::new(on).await;
        let woken = Arc::new(AtomicUsize::new(0));
        let (changed, cut) = (woken.clone(), woken.clone());
        bench.app_mut().changed = Arc::new(move |_| _ = changed.fetch_add(1, Ordering::Relaxed));
        bench.app_mut().cut = Arc::new(move |_| _ = cut.fetch_add(1, Ordering::Relaxed));
        let codes = AtomicU8::new(0);
        bench.app_mut().new_code =
            Arc::new(move || ("RH1.secret.pin".into(), [codes.fetch_add(1, Ordering::Relaxed); 32]));
        // When a token was used last is kept of whatever is asked with it.
        bench.ask(Method::GET, "/v1/whoami", "").await;
        Self { bench, woken, tried: BTreeSet::new() }
    }

    /// Asks for it with `Dry-Run: true`: status, and what is in the answer.
    async fn try_it(&self, method: &Method, uri: &str, body: &str) -> (StatusCode, Value) {
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .header("authorization", format!("Bearer {}", self.bench.token))
            .header("content-type", "application/json")
            .header("idempotency-key", "k")
            .header("dry-run", "true")
            .body(Body::from(body.to_owned()))
            .unwrap();
        let response = self.bench.router().oneshot(request).await.unwrap();
        let status = response.status();
        let told = response.headers().get("dry-run").map(|value| value.to_str().unwrap().to_owned());
        assert_eq!(told.as_deref(), Some("true"), "{method} {uri}: {status}");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() })
    }

    /// Tries it, twice, and then does it. `path` is the operation's in the document.
    async fn step(&mut self, method: Method, path: &str, uri: &str, body: Value) -> Value {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let (before, woken) = (self.bench.app.store.dump().await, self.woken.load(Ordering::Relaxed));
        let (tried, answer) = self.try_it(&method, uri, &body).await;
        let (again, _) = self.try_it(&method, uri, &body).await;
        let after = self.bench.app.store.dump().await;
        assert_eq!(before, after, "{method} {uri} left something behind");
        assert_eq!(woken, self.woken.load(Ordering::Relaxed), "{method} {uri} woke somebody");
        let (status, done) = self.bench.ask(method.clone(), uri, body).await;
        assert!(status.is_success(), "{method} {uri}: {status} {done}");
        assert_eq!((tried, again), (status, status), "{method} {uri}: {answer}");
        let fields = |answer: &Value| answer.as_object().map(|fields| fields.keys().cloned().collect::<Vec<_>>());
        assert_eq!(fields(&answer), fields(&done), "{method} {uri}");
        assert_ne!(before, self.bench.app.store.dump().await, "{method} {uri} does nothing that could be left behind");
        self.tried.insert((method.to_string(), path.to_owned()));
        done
    }
}

fn id(thing: &Value) -> &str {
    thing["id"].as_str().unwrap()
}

/// Ends the machine's run, and has the machine be this.
async fn run_is_over(trial: &Trial, machine: &str, lifecycle: Lifecycle) {
    let mut tx = trial.bench.app.store.begin().await.unwrap();
    let mut machine = tx.machine(machine.rsplit('/').next().unwrap()).await.unwrap();
    let run = tx.run_in_progress(machine.id).await.unwrap().unwrap();
    let ended = store::Run { status: store::RunStatus::Done, ..tx.run(run).await.unwrap() };
    tx.save_run(Timestamp::UNIX_EPOCH, &ended).await.unwrap();
    machine.lifecycle = lifecycle;
    tx.update_machine(Timestamp::UNIX_EPOCH, &mut machine).await.unwrap();
    tx.commit().await.unwrap();
}

/// Firmware told of, a campaign made, paused and cancelled, an update begun; the machine is ready before and after.
async fn firmware_is_tried(trial: &mut Trial, machine: &str) {
    let mut tx = trial.bench.app.store.begin().await.unwrap();
    let mut row = tx.machine(machine.rsplit('/').next().unwrap()).await.unwrap();
    Arc::make_mut(&mut row.inventory).system.vendor = "Rackhand".into();
    tx.update_machine(Timestamp::UNIX_EPOCH, &mut row).await.unwrap();
    tx.commit().await.unwrap();
    let toy = include_str!("../../../../firmware-scripts/firmware/toy-bmc.toml");
    let firmware = json!({"manifest": toy});
    trial.step(Method::POST, "/v1/firmware", "/v1/firmware", firmware).await;
    let toy = "/v1/firmware/toy-bmc-2.18";
    let (status, sent) = trial.bench.ask(Method::PUT, &format!("{toy}/file"), "toy 2.18").await;
    assert_eq!(status, StatusCode::OK, "{sent}");
    let bmc = json!({"address": "10.20.0.7", "user": "admin", "password": "secret"});
    let reached = machine.replace("/v1/machines/", "/v1/racks/lab/bmcs/");
    assert_eq!(trial.bench.ask(Method::PUT, &reached, bmc.to_string()).await.0, StatusCode::OK);
    let plan = json!({"name": "wants-toys", "rules": {"expects": {"baseline": ["toy-bmc-2.18"]}}});
    trial.bench.ask(Method::POST, "/v1/plans", plan.to_string()).await;
    let (pattern, campaigns) = ("/v1/racks/{rack}/firmware-campaigns", "/v1/racks/lab/firmware-campaigns");
    let made = trial.step(Method::POST, pattern, campaigns, json!({"plan": "wants-toys"})).await;
    let campaign = format!("{campaigns}/{}", id(&made));
    trial.step(Method::PATCH, &format!("{pattern}/{{campaign}}"), &campaign, json!({"wish": "cancel"})).await;
    let update = json!({"firmware": ["toy-bmc-2.18"]});
    let pattern = "/v1/machines/{machine}/update-firmware";
    trial.step(Method::POST, pattern, &format!("{machine}/update-firmware"), update).await;
    run_is_over(trial, machine, Lifecycle::Ready).await;
    trial.bench.ask(Method::DELETE, "/v1/plans/wants-toys", "").await;
    trial.step(Method::DELETE, "/v1/firmware/{firmware}", toy, Value::Null).await;
}

async fn whatever_is_tried_is_answered_as_when_it_is_done_and_leaves_nothing(on: On) {
    let mut trial = Trial::new(on).await;
    let imports = trial.bench.directory.path().join("import");
    std::fs::create_dir_all(&imports).unwrap();
    std::fs::write(imports.join("debian.raw"), vec![7u8; 8192]).unwrap();

    let rack = trial.step(Method::POST, "/v1/racks", "/v1/racks", serde_json::from_str(RACK).unwrap()).await;
    let rack: RackId = id(&rack).parse().unwrap();
    trial.step(Method::POST, "/v1/racks/{rack}/enrolment-codes", "/v1/racks/lab/enrolment-codes", json!({})).await;
    let image = json!({"name": "debian", "file": "debian.raw", "firmware": ["bios"]});
    trial.step(Method::POST, "/v1/images", "/v1/images", image).await;
    trial.bench.app.images.closed().await;

    let machine = "/v1/machines/{machine}";
    let of = |verb: &str| format!("{machine}/{verb}");
    appears(&trial.bench, rack, 1).await;
    let found = trial.bench.ask(Method::GET, "/v1/machines", "").await.1["items"][0].clone();
    let adopt = json!({"accept_data": true});
    trial.step(Method::POST, &of("adopt"), &format!("/v1/machines/{}/adopt", id(&found)), adopt).await;
    trial.step(Method::PATCH, machine, &format!("/v1/machines/{}", id(&found)), json!({"name": "web-1"})).await;
    appears(&trial.bench, rack, 2).await;
    let bmc = json!({"address": "10.20.0.5", "user": "admin", "password": "secret"});
    trial.step(Method::PUT, "/v1/racks/{rack}/bmcs/{machine}", "/v1/racks/lab/bmcs/web-1", bmc).await;
    let rows = json!([{"serial": "S9", "address": "10.20.0.9", "user": "root", "password": "calvin"}]);
    let manifest = json!({"bmcs": rows});
    let expected = "/v1/racks/{rack}/expected-bmcs";
    trial.step(Method::POST, expected, "/v1/racks/lab/expected-bmcs", manifest).await;
    trial.step(Method::DELETE, expected, "/v1/racks/lab/expected-bmcs", Value::Null).await;
    let running = json!({"name": "runs-1", "serial": "S8", "macs": ["52:54:00:00:00:88"]});
    let pattern = "/v1/racks/{rack}/running-machines";
    trial.step(Method::POST, pattern, "/v1/racks/lab/running-machines", running).await;
    let rotate = "/v1/racks/{rack}/bmcs/{machine}/rotate";
    trial.step(Method::POST, rotate, "/v1/racks/lab/bmcs/web-1/rotate", Value::Null).await;
    let baseline = "/v1/machines/web-1/baseline";
    trial.step(Method::POST, &of("baseline/read"), &format!("{baseline}/read"), json!({})).await;
    trial.step(Method::POST, &of("baseline/accept"), &format!("{baseline}/accept"), json!({})).await;
    trial.step(Method::DELETE, "/v1/racks/{rack}/bmcs/{machine}", "/v1/racks/lab/bmcs/web-1", Value::Null).await;
    let over = "/v1/machines/web-1/health/override";
    let wanted = json!({"reason": "the part is ordered", "expires": "1970-01-02T00:00:00Z"});
    trial.step(Method::PUT, &of("health/override"), over, wanted).await;
    trial.step(Method::DELETE, &of("health/override"), over, Value::Null).await;
    let second = trial.bench.ask(Method::GET, "/v1/machines?lifecycle=discovered", "").await.1["items"][0].clone();
    trial.step(Method::POST, &of("merge"), "/v1/machines/web-1/merge", json!({"from": id(&second)})).await;
    let parts = json!({"accept_data": true, "accept_parts": true});
    trial.step(Method::POST, &of("replace-part"), "/v1/machines/web-1/replace-part", parts).await;
    let deploy = json!({"image": "debian"});
    let run = trial.step(Method::POST, &of("deploy"), "/v1/machines/web-1/deploy", deploy).await;
    let cancel = format!("/v1/runs/{}/cancel", id(&run));
    trial.step(Method::POST, "/v1/runs/{run}/cancel", &cancel, json!({})).await;
    let mut tx = trial.bench.app.store.begin().await.unwrap();
    let cancelled = tx.run(id(&run).parse().unwrap()).await.unwrap();
    let cancelled = store::Run { status: store::RunStatus::Cancelled, ..cancelled };
    tx.save_run(Timestamp::UNIX_EPOCH, &cancelled).await.unwrap();
    let mut idle = tx.machine("web-1").await.unwrap();
    idle.lifecycle = Lifecycle::Ready;
    tx.update_machine(Timestamp::UNIX_EPOCH, &mut idle).await.unwrap();
    tx.commit().await.unwrap();
    let retry = format!("/v1/runs/{}/retry", id(&run));
    trial.step(Method::POST, "/v1/runs/{run}/retry", &retry, json!({})).await;
    appears(&trial.bench, rack, 3).await;
    let third = trial.bench.ask(Method::GET, "/v1/machines?lifecycle=discovered", "").await.1["items"][0].clone();
    let third = format!("/v1/machines/{}", id(&third));
    trial.step(Method::DELETE, machine, &third, Value::Null).await;
    appears(&trial.bench, rack, 4).await;
    let fourth = trial.bench.ask(Method::GET, "/v1/machines?lifecycle=discovered", "").await.1["items"][0].clone();
    let fourth = format!("/v1/machines/{}", id(&fourth));
    trial.bench.ask(Method::POST, &format!("{fourth}/adopt"), r#"{"accept_data":true}"#).await;
    let why = json!({"reason": "a fan is loud"});
    trial.step(Method::POST, &of("maintain"), &format!("{fourth}/maintain"), why.clone()).await;
    trial.step(Method::POST, &of("resume"), &format!("{fourth}/resume"), json!({})).await;
    trial.step(Method::POST, &of("retire"), &format!("{fourth}/retire"), why.clone()).await;
    trial.step(Method::POST, &of("quarantine"), &format!("{fourth}/quarantine"), why).await;
    trial.step(Method::POST, &of("inspect"), &format!("{fourth}/inspect"), json!({})).await;
    run_is_over(&trial, &fourth, Lifecycle::Ready).await;
    trial.step(Method::POST, &of("test"), &format!("{fourth}/test"), json!({"only": ["smart"]})).await;
    run_is_over(&trial, &fourth, Lifecycle::Ready).await;
    firmware_is_tried(&mut trial, &fourth).await;
    let regain = "/v1/racks/{rack}/bmcs/{machine}/regain";
    let here = format!("{}/regain", fourth.replace("/v1/machines/", "/v1/racks/lab/bmcs/"));
    trial.step(Method::POST, regain, &here, json!({})).await;
    run_is_over(&trial, &fourth, Lifecycle::Ready).await;
    trial.step(Method::POST, &of("power"), &format!("{fourth}/power"), json!({"action": "off"})).await;
    run_is_over(&trial, &fourth, Lifecycle::Active).await;
    trial.step(Method::POST, &of("reinstall"), &format!("{fourth}/reinstall"), json!({"image": "debian"})).await;
    run_is_over(&trial, &fourth, Lifecycle::Active).await;
    let keys = json!({"ssh_keys": ["ssh-ed25519 AAAA me"]});
    trial.step(Method::POST, &of("rescue"), &format!("{fourth}/rescue"), keys).await;
    run_is_over(&trial, &fourth, Lifecycle::Rescue).await;
    trial.step(Method::POST, &of("leave-rescue"), &format!("{fourth}/leave-rescue"), json!({})).await;
    run_is_over(&trial, &fourth, Lifecycle::Active).await;
    trial.step(Method::POST, &of("release"), &format!("{fourth}/release"), json!({})).await;

    trial.bench.ask(Method::PUT, "/v1/images/spare?firmware=bios", vec![8u8; 8192]).await;
    trial.bench.app.images.closed().await;
    let expires = json!({"deprecated": true, "expires": "2027-06-30T00:00:00Z"});
    trial.step(Method::PATCH, "/v1/images/{image}", "/v1/images/spare", expires).await;
    trial.step(Method::POST, "/v1/images/{image}/check", "/v1/images/spare/check", json!({})).await;
    trial.step(Method::DELETE, "/v1/images/{image}", "/v1/images/spare", Value::Null).await;

    let plan = json!({"name": "large", "rules": {"threads": 2}});
    trial.step(Method::POST, "/v1/plans", "/v1/plans", plan).await;
    trial.step(Method::PATCH, "/v1/plans/{plan}", "/v1/plans/large", json!({"description": "databases"})).await;
    trial.step(Method::DELETE, "/v1/plans/{plan}", "/v1/plans/large", Value::Null).await;

    trial.step(Method::POST, "/v1/vrfs", "/v1/vrfs", json!({"name": "lab"})).await;
    let own = json!({"prefix": "10.0.0.0/8", "source": "private"});
    let own = trial.step(Method::POST, "/v1/aggregates", "/v1/aggregates", own).await;
    let proof = json!({"kind": "roa", "reference": "AS64500"});
    let brought = json!({"prefix": "198.51.100.0/24", "source": {"customer": {"name": "shop", "proof": proof}}});
    let brought = trial.bench.ask(Method::POST, "/v1/aggregates", brought.to_string()).await.1;
    let prove = format!("/v1/aggregates/{}/proof", id(&brought));
    trial.step(Method::POST, "/v1/aggregates/{aggregate}/proof", &prove, json!({"state": "verified"})).await;
    let pool = json!({"name": "p", "kind": "private", "prefixes": ["10.9.0.0/24"], "quarantine_minutes": 0});
    trial.step(Method::POST, "/v1/pools", "/v1/pools", pool).await;
    let more = json!({"prefixes": ["10.9.1.0/24"]});
    trial.step(Method::POST, "/v1/pools/{pool}/prefixes", "/v1/pools/p/prefixes", more).await;
    trial.step(Method::PATCH, "/v1/pools/{pool}", "/v1/pools/p", json!({"purpose": "tunnels"})).await;
    let wish = json!({"pool": "p", "name": "vpn"});
    let (_, tried) = trial.try_it(&Method::POST, "/v1/claims", &wish.to_string()).await;
    let claim = trial.step(Method::POST, "/v1/claims", "/v1/claims", wish).await;
    assert_eq!(tried["prefix"], claim["prefix"], "no address is used up by trying");
    let name = "/v1/addresses/10.9.0.0/name";
    trial.step(Method::PUT, "/v1/addresses/{address}/name", name, json!({"name": "web-1.example.net"})).await;
    trial.step(Method::DELETE, "/v1/addresses/{address}/name", name, Value::Null).await;
    let claim = format!("/v1/claims/{}", id(&claim));
    trial.step(Method::PATCH, "/v1/claims/{claim}", &claim, json!({"machine": "web-1", "purpose": "moved"})).await;
    let grants = json!({"grants": [{"to": "everyone", "may": ["assign"]}]});
    trial.step(Method::PUT, "/v1/claims/{claim}/grants", &format!("{claim}/grants"), grants).await;
    trial.step(Method::DELETE, "/v1/claims/{claim}/grants", &format!("{claim}/grants"), Value::Null).await;
    let (pattern, announcement) =
        ("/v1/claims/{claim}/announcements/{machine}", format!("{claim}/announcements/web-1"));
    trial.step(Method::PUT, pattern, &announcement, Value::Null).await;
    trial.step(Method::DELETE, pattern, &announcement, Value::Null).await;
    trial.step(Method::DELETE, "/v1/claims/{claim}", &claim, Value::Null).await;
    trial.step(Method::DELETE, "/v1/pools/{pool}", "/v1/pools/p", Value::Null).await;
    let own = format!("/v1/aggregates/{}", id(&own));
    trial.step(Method::DELETE, "/v1/aggregates/{aggregate}", &own, Value::Null).await;

    for (kind, all) in [("organisation", "organisations"), ("site", "sites")] {
        let (list, one) = (format!("/v1/{all}"), format!("/v1/{all}/{{{kind}}}"));
        trial.step(Method::POST, &list, &list, json!({"name": "acme"})).await;
        trial.step(Method::PATCH, &one, &format!("/v1/{all}/acme"), json!({"name": "other"})).await;
        trial.step(Method::DELETE, &one, &format!("/v1/{all}/other"), Value::Null).await;
        trial.bench.ask(Method::POST, &list, r#"{"name":"acme"}"#).await;
    }
    trial.step(Method::PATCH, "/v1/racks/{rack}", "/v1/racks/lab", json!({"site": "acme"})).await;
    let (projects, project) = ("/v1/projects", "/v1/projects/{project}");
    let shop = json!({"name": "shop", "organisation": "acme"});
    trial.step(Method::POST, projects, projects, shop.clone()).await;
    trial.step(Method::PATCH, project, "/v1/projects/shop", json!({"name": "store"})).await;
    trial.step(Method::DELETE, project, "/v1/projects/store", Value::Null).await;
    trial.bench.ask(Method::POST, projects, shop.to_string()).await;
    appears(&trial.bench, rack, 6).await;
    let sixth = trial.bench.ask(Method::GET, "/v1/machines?lifecycle=discovered", "").await.1["items"][0].clone();
    let sixth = format!("/v1/machines/{}", id(&sixth));
    trial.bench.ask(Method::POST, &format!("{sixth}/adopt"), r#"{"accept_data":true}"#).await;
    trial.step(Method::POST, &of("assign"), &format!("{sixth}/assign"), json!({"project": "acme:shop"})).await;
    trial.step(Method::POST, "/v1/people", "/v1/people", json!({"name": "ada"})).await;
    let mail = json!({"email": "ada@example.net"});
    trial.step(Method::PATCH, "/v1/people/{person}", "/v1/people/ada", mail).await;
    let role = json!({"person": "ada", "role": "viewer", "scope": {"kind": "project", "name": "acme:shop"}});
    let binding = trial.step(Method::POST, "/v1/bindings", "/v1/bindings", role).await;
    let binding = format!("/v1/bindings/{}", id(&binding));
    trial.step(Method::DELETE, "/v1/bindings/{binding}", &binding, Value::Null).await;
    trial.step(Method::DELETE, "/v1/people/{person}", "/v1/people/ada", Value::Null).await;
    let token = trial.step(Method::POST, "/v1/tokens", "/v1/tokens", json!({"name": "laptop"})).await;
    let token = format!("/v1/tokens/{}", id(&token["token"]));
    trial.step(Method::DELETE, "/v1/tokens/{token}", &token, Value::Null).await;
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ ada@laptop";
    let key = json!({"name": "laptop", "key": key});
    let key = trial.step(Method::POST, "/v1/ssh-keys", "/v1/ssh-keys", key).await;
    let key = format!("/v1/ssh-keys/{}", id(&key));
    trial.step(Method::DELETE, "/v1/ssh-keys/{key}", &key, Value::Null).await;

    let agents = trial.bench.ask(Method::GET, "/v1/agents", "").await.1;
    let agents = agents["items"].as_array().unwrap();
    let agent = agents.iter().find(|agent| agent["revoked"].is_null()).unwrap();
    let revoke = format!("/v1/agents/{}/revoke", id(agent));
    trial.step(Method::POST, "/v1/agents/{agent}/revoke", &revoke, json!({})).await;
    trial.step(Method::POST, "/v1/agents/{agent}/replace", "/v1/agents/lab/replace", json!({})).await;

    let document = serde_json::to_value(document()).unwrap();
    let mut all = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys().map(|method| method.to_uppercase()) {
            let can_be_tried = can_be_tried(&method.parse().unwrap(), path);
            let parameters = item[method.to_lowercase()]["parameters"].as_array().cloned().unwrap_or_default();
            let documented = parameters.iter().any(|parameter| parameter["name"] == "Dry-Run");
            assert_eq!(documented, can_be_tried, "{method} {path}");
            if can_be_tried {
                all.insert((method, path.clone()));
            }
        }
    }
    assert_eq!(trial.tried, all);
}

async fn what_cannot_be_tried_is_refused_and_so_is_what_would_be(on: On) {
    let trial = Trial::new(on).await;
    let before = trial.bench.app.store.dump().await;
    for (method, uri, body, value, wanted) in [
        (Method::PUT, "/v1/images/debian", "bytes", "true", "Dry-Run: an upload cannot be tried"),
        (Method::POST, "/v1/vrfs", r#"{"name":"x"}"#, "yes", "Dry-Run: is `true` or `false`"),
        (Method::POST, "/v1/vrfs", r#"{"name":"X Y"}"#, "true", "/name: "),
        (Method::POST, "/v1/vrfs", r#"{"name":"default"}"#, "true", "already taken"),
        (Method::POST, "/v1/claims", r#"{"pool":"nowhere","name":"x"}"#, "true", "there is no such pool"),
    ] {
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .header("authorization", format!("Bearer {}", trial.bench.token))
            .header("content-type", "application/json")
            .header("dry-run", value)
            .body(Body::from(body))
            .unwrap();
        let (status, problem) = trial.bench.send(request).await;
        assert!(status.is_client_error(), "{uri} {value}: {problem}");
        assert!(problem["detail"].as_str().unwrap().contains(wanted), "{uri} {value}: {problem}");
    }
    assert_eq!(before, trial.bench.app.store.dump().await);
}

/// Of claims that are made in one transaction some are kept.
async fn tried_claims_among_others_leave_those_alone(on: On) {
    let trial = Trial::new(on).await;
    for (uri, body) in [
        ("/v1/aggregates", r#"{"prefix":"10.0.0.0/8","source":"private"}"#),
        ("/v1/pools", r#"{"name":"p","kind":"private","prefixes":["10.9.0.0/24"]}"#),
    ] {
        assert_eq!(trial.bench.ask(Method::POST, uri, body).await.0, StatusCode::CREATED);
    }
    let body = r#"{"pool":"p","name":"x"}"#;
    let tried = futures_util::future::join_all((0..10).map(|_| trial.try_it(&Method::POST, "/v1/claims", body)));
    let done = futures_util::future::join_all((0..10).map(|_| trial.bench.ask(Method::POST, "/v1/claims", body)));
    let (tried, done) = futures_util::future::join(tried, done).await;
    assert!(tried.iter().chain(&done).all(|(status, _)| *status == StatusCode::CREATED), "{tried:?} {done:?}");
    let addresses: BTreeSet<_> = done.iter().map(|(_, claim)| claim["prefix"].as_str().unwrap().to_owned()).collect();
    let lowest = (0..10).map(|last| format!("10.9.0.{last}/32")).collect();
    assert_eq!(addresses, lowest);
    let (_, claims) = trial.bench.ask(Method::GET, "/v1/claims", "").await;
    assert_eq!(claims["items"].as_array().unwrap().len(), 10);
}

on_both! {
    whatever_is_tried_is_answered_as_when_it_is_done_and_leaves_nothing,
    what_cannot_be_tried_is_refused_and_so_is_what_would_be,
    tried_claims_among_others_leave_those_alone,
}
