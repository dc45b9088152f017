use std::{sync::OnceLock, time::Duration};

use axum::{
    body::Body,
    http::{Method, Request, StatusCode},
};
use expect_test::{Expect, expect};
use http_body_util::BodyExt;
use jiff::Timestamp;
use rackhand_common::{
    bmc::baseline::{Baseline, Restored},
    event::{Event, What},
    id::{AgentId, MachineId},
    machine::{Content, Cpu, Disk, Firmware, Inventory, Mac, System},
    pki::KeyPin,
    time::{Mono, Now},
    wire::{ConsoleRequest, ControllerRequest},
};
use serde_json::{Value, json};
use tower::ServiceExt;

use super::{access::Access, *};
use crate::store::tests::{Ground, On, on_both};

mod addresses;
mod adoptions;
mod consoles;
mod dry_run;
mod matches;
mod plans;
mod runs;
mod versions;

struct Still;

impl Clock for Still {
    fn now(&self) -> Now {
        Now { mono: Mono(Duration::ZERO), wall: Timestamp::UNIX_EPOCH }
    }
}

/// Agents that have recorded the runs of every machine, and open no console.
struct Nodes;

impl Agents for Nodes {
    fn ask(
        &self,
        _: RackId,
        request: ControllerRequest,
    ) -> BoxFuture<'static, Result<ControllerResponse, Unreachable>> {
        let recording = |run: Option<_>, offset| match (run, offset) {
            (Some(run), 0) => format!("recorded in {run}").into_bytes(),
            _ => Vec::new(),
        };
        let answer = match request {
            ControllerRequest::Recording { run, offset, .. } => ControllerResponse::Recording(recording(run, offset)),
            _ => ControllerResponse::Refused("no".into()),
        };
        Box::pin(async { Ok(answer) })
    }

    fn open(&self, _: RackId, _: ConsoleRequest) -> BoxFuture<'static, Result<Opened, Unreachable>> {
        Box::pin(async { Err(Unreachable { rack: "lab".into() }) })
    }
}

/// An API over a store of its own, and a token for it.
pub(super) struct Bench {
    directory: tempfile::TempDir,
    _ground: Ground,
    pub(super) app: App,
    /// Of `app`: making one describes the whole API.
    router: OnceLock<Router>,
    pub(super) token: String,
}

/// How a BMC is read here, always.
fn read_once() -> Restored {
    let (before, refused, doubts) = Default::default();
    Restored { found: Baseline::example(), before, refused, doubts }
}

impl Bench {
    pub(super) async fn new(on: On) -> Self {
        rackhand_common::pki::install_crypto();
        let directory = tempfile::tempdir().unwrap();
        let ground = Ground::new(on);
        let store = ground.store().await;
        let (token, hash) = fresh_token();
        let mut tx = store.begin().await.unwrap();
        tx.insert_first_token(Timestamp::UNIX_EPOCH, "admin", &hash).await.unwrap();
        tx.commit().await.unwrap();
        let clock: Arc<dyn Clock> = Arc::new(Still);
        let shutdown = CancellationToken::new();
        let images = Images::open(
            crate::images::Config { limit: 8 << 20, ..crate::images::Config::below(directory.path()) },
            store.clone(),
            Arc::new(|_| vec![1]),
            clock.clone(),
            shutdown.clone(),
        )
        .await
        .unwrap();
        let (addresses, hand_out) = Addresses::new(store.clone(), clock.clone(), shutdown.clone());
        tokio::spawn(hand_out);
        let app = App {
            store,
            images,
            addresses,
            passwords: Passwords::default(),
            oidc: Oidc::new(None).unwrap(),
            clock,
            changed: Arc::new(|_| ()),
            standings: Arc::new(|_| Box::pin(async { Vec::new() })),
            look: Arc::new(|_, _, _| Box::pin(async { Ok(ControllerResponse::Seen(r#"{"sensors":{}}"#.into())) })),
            series: Arc::new(|_, _, _| Box::pin(async { Ok(ControllerResponse::Refused("no such sensor".into())) })),
            agents: Arc::new(Nodes),
            seats: Seats::default(),
            ssh: None,
            baseline: Arc::new(|_, _, _, _| Box::pin(async { Ok(Some(Answered::Done(Box::new(read_once())))) })),
            cut: Arc::new(|_| ()),
            new_code: Arc::new(|| ("RH1.secret.pin".into(), [7; 32])),
            agents_address: tokio::sync::watch::channel("controller.example:4433".into()).1,
            rate: Rate::new(USUAL),
            shutdown,
        };
        Self { directory, _ground: ground, app, router: OnceLock::new(), token }
    }

    /// For changing what the handlers share.
    fn app_mut(&mut self) -> &mut App {
        self.router.take();
        &mut self.app
    }

    fn router(&self) -> Router {
        self.router.get_or_init(|| router(self.app.clone())).clone()
    }

    pub(super) async fn ask(&self, method: Method, uri: &str, body: impl Into<Body>) -> (StatusCode, Value) {
        self.ask_as(&self.token, method, uri, body).await
    }

    /// The same with somebody's token.
    async fn ask_as(&self, token: &str, method: Method, uri: &str, body: impl Into<Body>) -> (StatusCode, Value) {
        self.send(request(token, method, uri, body)).await
    }

    async fn send(&self, request: Request<Body>) -> (StatusCode, Value) {
        let (status, body) = self.text(request).await;
        (status, if body.is_empty() { Value::Null } else { serde_json::from_str(&body).unwrap() })
    }

    /// The answer as it is.
    async fn text(&self, request: Request<Body>) -> (StatusCode, String) {
        let response = self.router().oneshot(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    /// Status, kind and detail of a refusal.
    pub(super) async fn check(&self, method: Method, uri: &str, body: impl Into<Body>, expected: Expect) {
        let (status, problem) = self.ask(method, uri, body).await;
        let word = |field: &str| problem[field].as_str().unwrap_or("-").to_owned();
        let kind = word("type").replace("urn:rackhand:problem:", "");
        expected.assert_eq(&format!("{} {kind}: {}", status.as_u16(), word("detail")));
    }
}

/// A request with somebody's token.
fn request(token: &str, method: Method, uri: &str, body: impl Into<Body>) -> Request<Body> {
    Request::builder()
        .method(method)
        .uri(uri)
        .header("authorization", format!("Bearer {token}"))
        .header("content-type", "application/json")
        .body(body.into())
        .unwrap()
}

#[test]
fn the_published_document_is_what_the_code_says() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json");
    let now = document().to_pretty_json().unwrap() + "\n";
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(path, &now).unwrap();
    }
    let published = std::fs::read_to_string(path).unwrap_or_default();
    assert!(now == published, "openapi.json differs from the code; rewrite it with UPDATE_EXPECT=1 cargo test");
}

#[test]
fn every_operation_has_an_id_of_its_own() {
    let document = serde_json::to_value(document()).unwrap();
    let items = document["paths"].as_object().unwrap().values();
    let operations = items.flat_map(|item| item.as_object().unwrap().values());
    let mut ids: Vec<_> = operations.filter_map(|operation| operation["operationId"].as_str()).collect();
    let all = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), all);
    assert!(["get_machines", "get_machine", "post_machine_deploy"].iter().all(|id| ids.contains(id)), "{ids:?}");
}

#[test]
fn every_operation_has_exactly_one_row_in_the_access_table() {
    let document = serde_json::to_value(document()).unwrap();
    let mut operations = vec![("GET".to_owned(), "/v1/openapi.json".to_owned())];
    for (path, item) in document["paths"].as_object().unwrap() {
        operations.extend(item.as_object().unwrap().keys().map(|method| (method.to_uppercase(), path.clone())));
    }
    let mut table: Vec<_> = access::TABLE.iter().map(|(m, p, _)| (m.to_string(), (*p).to_owned())).collect();
    operations.sort();
    table.sort();
    assert_eq!(operations, table);
}

async fn no_operation_is_open_to_the_world_but_its_description_and_the_login(on: On) {
    let bench = Bench::new(on).await;
    for (method, path, access) in access::TABLE {
        let uri = path.replace(['{', '}'], "");
        let (status, _) = bench.send(Request::builder().method(method).uri(&uri).body(Body::empty()).unwrap()).await;
        match access {
            Access::Anyone if *method == Method::GET => {
                assert_eq!((status, uri.as_str()), (StatusCode::OK, "/v1/openapi.json"))
            }
            Access::Anyone => {
                assert_eq!((status, uri.starts_with("/v1/login")), (StatusCode::UNSUPPORTED_MEDIA_TYPE, true));
            }
            _ => assert_eq!(status, StatusCode::UNAUTHORIZED, "{method} {uri}"),
        }
    }
    let (status, _) = bench.send(Request::get("/v1/nothing").body(Body::empty()).unwrap()).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
}

async fn a_token_works_until_it_expires(on: On) {
    let mut bench = Bench::new(on).await;
    assert_eq!(bench.ask(Method::GET, "/v1/whoami", "").await.1["name"], "admin");
    let (expired, hash) = fresh_token();
    let mut tx = bench.app.store.begin().await.unwrap();
    let owner = crate::store::Owner::Person(tx.person("admin").await.unwrap().id);
    let expired_token = crate::store::NewToken {
        name: "old",
        owner,
        hash: &hash,
        prefix: "rh_",
        actions: None,
        scopes: None,
        is_login: false,
        expires: Some(Timestamp::UNIX_EPOCH),
    };
    tx.insert_token(Timestamp::UNIX_EPOCH, expired_token).await.unwrap();
    tx.commit().await.unwrap();
    for wrong in [expired, "rh_".to_owned() + &"a".repeat(43), String::new()] {
        bench.token = wrong;
        assert_eq!(bench.ask(Method::GET, "/v1/whoami", "").await.0, StatusCode::UNAUTHORIZED);
    }
}

async fn a_wrong_request_is_told_what_is_wrong(on: On) {
    let bench = Bench::new(on).await;
    let check =
        async |method, uri: &str, body: &str, expected| bench.check(method, uri, body.to_owned(), expected).await;
    check(
        Method::GET,
        "/v1/nothing",
        "",
        expect!["404 not-found: there is nothing at this path; /v1/openapi.json lists what there is"],
    )
    .await;
    check(Method::DELETE, "/v1/images", "", expect!["405 method: this path does not know this method"]).await;
    check(Method::GET, "/v1/images/absent", "", expect!["404 not-found: there is no such image"]).await;
    check(Method::GET, "/v1/images?limit=0", "", expect!["422 invalid: limit: must be between 1 and 200"]).await;
    check(
        Method::GET,
        "/v1/images?offset=3",
        "",
        expect!["400 malformed: Failed to deserialize query string: offset: unknown field `offset`, expected `after` or `limit`"],
    )
    .await;
    check(
        Method::POST,
        "/v1/images",
        r#"{"name": "x", "file": "y", "admin": true}"#,
        expect!["422 invalid: /admin: unknown field `admin`, expected one of `name`, `file`, `url`, `sha256`, `os`, `settings`, `firmware` at line 1 column 34"],
    )
    .await;
    check(
        Method::POST,
        "/v1/images",
        r#"{"name": "../x", "file": "y"}"#,
        expect!["422 invalid: /name: begins with a lower-case letter or digit, continues with those, `.`, `-` or `_`, is at most 63 long and no UUID"],
    )
    .await;
    check(
        Method::POST,
        "/v1/images",
        r#"{"name": "x", "file": "../controller.db"}"#,
        expect!["422 invalid: /file: `../controller.db` is not a file in the import directory of the controller"],
    )
    .await;
    check(
        Method::POST,
        "/v1/images",
        &"[".repeat(20_000),
        expect!["400 malformed: the body is nested deeper than 16 levels"],
    )
    .await;
    check(
        Method::POST,
        "/v1/images",
        &" ".repeat(2 << 20),
        expect!["413 too-large: a JSON body may have 1048576 bytes"],
    )
    .await;
}

async fn brackets_from_strangers_are_not_even_read(on: On) {
    let bench = Bench::new(on).await;
    let body = Body::from_stream(futures_util::stream::pending::<Result<bytes::Bytes, std::io::Error>>());
    let (status, _) = bench.send(Request::post("/v1/images").body(body).unwrap()).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
}

async fn an_image_is_uploaded_listed_and_deleted(on: On) {
    let bench = Bench::new(on).await;
    let (status, image) = bench.ask(Method::PUT, "/v1/images/debian?firmware=bios,uefi", vec![7u8; 8192]).await;
    assert_eq!((status, &image["state"]), (StatusCode::ACCEPTED, &json!("importing")));
    bench.app.images.closed().await;
    let (_, image) = bench.ask(Method::GET, "/v1/images/debian", "").await;
    assert_eq!(image["content"]["firmware"], json!(["bios", "uefi"]), "{image}");

    let (_, page) = bench.ask(Method::GET, "/v1/images?limit=1", "").await;
    assert_eq!((&page["items"][0], page.get("next")), (&image, None));
    assert_eq!(bench.ask(Method::DELETE, "/v1/images/debian", "").await.0, StatusCode::NO_CONTENT);
    assert_eq!(bench.ask(Method::GET, "/v1/images", "").await.1, json!({"items": []}));
    assert_eq!(std::fs::read_dir(bench.directory.path().join("objects/manifests")).unwrap().count(), 0);
}

/// A machine that booted the installer in the rack `lab`, with data on its disk; its name.
pub(super) async fn discovered(bench: &Bench) -> String {
    let network = json!({"node": "10.77.0.1/24", "delegated": ["10.77.0.100", "10.77.0.199"]});
    let (status, rack) =
        bench.ask(Method::POST, "/v1/racks", json!({"name": "lab", "network": network}).to_string()).await;
    assert_eq!(status, StatusCode::CREATED, "{rack}");
    let rack = rack["id"].as_str().unwrap().parse().unwrap();
    appears(bench, rack, 1).await;
    let (_, machines) = bench.ask(Method::GET, "/v1/machines?rack=lab", "").await;
    machines["items"][0]["name"].as_str().unwrap().to_owned()
}

/// Has the machine with this number boot the installer, through an agent of its own.
async fn appears(bench: &Bench, rack: RackId, number: u8) {
    let agent = AgentId::fresh();
    let mut tx = bench.app.store.begin().await.unwrap();
    tx.insert_agent(Timestamp::UNIX_EPOCH, agent, rack, KeyPin([number - 1; 32]), Timestamp::UNIX_EPOCH).await.unwrap();
    tx.commit().await.unwrap();
    let disk = Disk {
        name: "vda".into(),
        model: String::new(),
        serial: format!("disk{number}"),
        wwn: None,
        size: 1 << 30,
        sector: 512,
        rotational: false,
        content: Content::Data("GPT, 3 partitions".into()),
    };
    let inventory = Inventory {
        firmware: Firmware::Bios,
        system: System::default(),
        cpu: Cpu::default(),
        memory: 1 << 30,
        nics: Vec::new(),
        disks: vec![disk],
    };
    let what = What::Connected {
        mac: Mac([0x52, 0x54, 0, 0, 0, number]),
        address: [10, 77, 0, 99 + number].into(),
        inventory,
    };
    let event = Event { at: Timestamp::UNIX_EPOCH, machine: Some(MachineId::fresh()), what };
    crate::events::take(&bench.app.store, &crate::events::unsigned, rack, agent, 1, vec![event]).await.unwrap();
}

async fn a_machine_is_adopted_deployed_and_the_deploy_cancelled(on: On) {
    let bench = Bench::new(on).await;
    let name = discovered(&bench).await;
    let machine = format!("/v1/machines/{name}");

    let (status, problem) = bench.ask(Method::POST, &format!("{machine}/adopt"), "{}").await;
    assert_eq!(status, StatusCode::CONFLICT, "{problem}");
    let adopt = json!({"accept_data": true, "name": "web-1"}).to_string();
    let (status, adopted) = bench.ask(Method::POST, &format!("{machine}/adopt"), adopt).await;
    assert_eq!(
        (status, &adopted["name"], &adopted["lifecycle"], &adopted["rack"]),
        (StatusCode::OK, &json!("web-1"), &json!("ready"), &json!("lab"))
    );
    let verbs = json!([
        "deploy",
        "power",
        "inspect",
        "test",
        "update-firmware",
        "regain-bmc",
        "maintain",
        "quarantine",
        "retire",
        "forget"
    ]);
    assert_eq!(adopted["verbs"], verbs);

    bench.ask(Method::PUT, "/v1/images/debian?firmware=bios", vec![7u8; 8192]).await;
    bench.app.images.closed().await;
    let deploy = |key: &str| json!({"image": "debian", "ssh_keys": [key]}).to_string();
    bench
        .check(
            Method::POST,
            "/v1/machines/web-1/deploy",
            deploy("command=\"reboot\" ssh-ed25519 AAAA"),
            expect!["422 invalid: /ssh_keys/0: not a public key: one line that begins with its type, as `ssh-ed25519 AAAA… comment`"],
        )
        .await;
    let (status, run) = bench.ask(Method::POST, "/v1/machines/web-1/deploy", deploy("ssh-ed25519 AAAA me")).await;
    assert_eq!((status, &run["kind"], &run["status"]), (StatusCode::ACCEPTED, &json!("deploy"), &json!("running")));
    let (_, busy) = bench.ask(Method::GET, "/v1/machines/web-1", "").await;
    assert_eq!((&busy["run"], &busy["verbs"]), (&run["id"], &json!([])));
    bench
        .check(
            Method::POST,
            "/v1/machines/web-1/release",
            "{}",
            expect!["409 conflict: cannot release a machine that is deploying; its run has to end first"],
        )
        .await;
    bench
        .check(
            Method::DELETE,
            "/v1/images/debian",
            "",
            expect!["409 conflict: machine web-1 uses this image; release it first"],
        )
        .await;

    let id = run["id"].as_str().unwrap();
    let (status, cancelled) = bench.ask(Method::POST, &format!("/v1/runs/{id}/cancel"), "{}").await;
    assert_eq!((status, &cancelled["cancel"]), (StatusCode::OK, &json!(true)));
    let (_, runs) = bench.ask(Method::GET, "/v1/runs?machine=web-1", "").await;
    assert_eq!(runs["items"][0], cancelled);

    let (_, events) = bench.ask(Method::GET, "/v1/events?machine=web-1", "").await;
    let told: Vec<_> = events["items"].as_array().unwrap().iter().map(|event| &event["kind"]).collect();
    assert_eq!(told.last().unwrap(), &&json!("cancel_wanted"), "{told:?}");
    assert!(told.contains(&&json!("adopted")) && told.contains(&&json!("run_started")), "{told:?}");
}

async fn a_stream_goes_on_after_the_last_event_seen_and_ends_at_shutdown(on: On) {
    let bench = Bench::new(on).await;
    discovered(&bench).await;
    let (_, events) = bench.ask(Method::GET, "/v1/events", "").await;
    let events = events["items"].as_array().unwrap().clone();
    let request = Request::get("/v1/events/stream")
        .header("authorization", format!("Bearer {}", bench.token))
        .header("last-event-id", "0")
        .body(Body::empty())
        .unwrap();
    let response = bench.router().oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    bench.app.shutdown.cancel();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let body = String::from_utf8(body.to_vec()).unwrap();
    let sent: Vec<Value> = body
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .map(|data| serde_json::from_str(data).unwrap())
        .collect();
    assert_eq!(sent, events);
}

async fn an_enrolment_code_comes_with_the_line_to_run(on: On) {
    let bench = Bench::new(on).await;
    discovered(&bench).await;
    let (status, code) = bench.ask(Method::POST, "/v1/racks/lab/enrolment-codes", r#"{"minutes": 10}"#).await;
    assert_eq!(status, StatusCode::CREATED);
    expect!["rackhand-agent enrol --controller controller.example:4433 --code RH1.secret.pin"]
        .assert_eq(code["command"].as_str().unwrap());
    assert_eq!(code["expires"], "1970-01-01T00:10:00Z");
    bench
        .check(
            Method::POST,
            "/v1/racks/lab/enrolment-codes",
            r#"{"minutes": 0}"#,
            expect!["422 invalid: /minutes: must be between 1 and 10080"],
        )
        .await;
}

async fn a_node_is_replaced_by_its_agent_or_its_rack_and_an_old_agent_is_not_taken_for_the_new_one(on: On) {
    let bench = Bench::new(on).await;
    discovered(&bench).await;
    let (_, agents) = bench.ask(Method::GET, "/v1/agents", "").await;
    let old = agents["items"][0]["id"].as_str().unwrap().to_owned();
    let replace = |which: &str| format!("/v1/agents/{which}/replace");
    let (status, made) = bench.ask(Method::POST, &replace(&old), r#"{"minutes": 10}"#).await;
    assert_eq!((status, &made["agent"], &made["rack"]), (StatusCode::CREATED, &json!(old), &json!("lab")), "{made}");
    expect!["rackhand-agent enrol --controller controller.example:4433 --code RH1.secret.pin"]
        .assert_eq(made["command"].as_str().unwrap());
    let (_, agents) = bench.ask(Method::GET, "/v1/agents", "").await;
    assert!(agents["items"][0]["revoked"].is_string(), "{agents}");
    assert_eq!(bench.ask(Method::GET, "/v1/machines", "").await.1["items"][0]["installer"], json!(false));

    let mut tx = bench.app.store.begin().await.unwrap();
    let (rack, new) = (tx.rack("lab").await.unwrap().id, AgentId::fresh());
    tx.insert_agent(Timestamp::UNIX_EPOCH, new, rack, KeyPin([1; 32]), Timestamp::UNIX_EPOCH).await.unwrap();
    tx.commit().await.unwrap();
    let (status, problem) = bench.ask(Method::POST, &replace(&old), "{}").await;
    assert_eq!(status, StatusCode::CONFLICT, "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains(&format!("agent {new} serves rack lab now")), "{problem}");
    assert_eq!(bench.ask(Method::POST, &replace("nowhere"), "{}").await.0, StatusCode::NOT_FOUND);
}

/// A POST with a key: status, body, and whether the answer is one that was given before.
async fn keyed(bench: &Bench, uri: &str, key: &str, body: &str) -> (StatusCode, Value, bool) {
    let request = Request::post(uri)
        .header("authorization", format!("Bearer {}", bench.token))
        .header("content-type", "application/json")
        .header("idempotency-key", key)
        .body(Body::from(body.to_owned()))
        .unwrap();
    let response = bench.router().oneshot(request).await.unwrap();
    let (status, replayed) = (response.status(), response.headers().contains_key("idempotency-replayed"));
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap(), replayed)
}

const RACK: &str = r#"{"name":"lab","network":{"node":"10.77.0.1/24","delegated":["10.77.0.100","10.77.0.199"]}}"#;

async fn a_post_with_a_key_is_carried_out_once_and_answered_twice(on: On) {
    let bench = Bench::new(on).await;
    let (status, first, replayed) = keyed(&bench, "/v1/racks", "a", RACK).await;
    assert_eq!((status, replayed), (StatusCode::CREATED, false), "{first}");
    assert_eq!(keyed(&bench, "/v1/racks", "a", RACK).await, (StatusCode::CREATED, first, true));
    assert_eq!(bench.ask(Method::GET, "/v1/racks", "").await.1["items"].as_array().unwrap().len(), 1);
    // Without a key, or with another one, it is another request.
    let (status, refused, _) = keyed(&bench, "/v1/racks", "b", RACK).await;
    assert_eq!(status, StatusCode::CONFLICT);
    // A refusal is an answer too.
    assert_eq!(keyed(&bench, "/v1/racks", "b", RACK).await, (StatusCode::CONFLICT, refused, true));
}

async fn a_key_belongs_to_one_request_and_is_one_short_text(on: On) {
    let bench = Bench::new(on).await;
    keyed(&bench, "/v1/racks", "a", RACK).await;
    let (status, problem, _) = keyed(&bench, "/v1/racks", "a", &RACK.replace("lab", "lab2")).await;
    assert_eq!((status, &problem["errors"][0]["field"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("Idempotency-Key")));
    for wrong in ["", &"k".repeat(256), "\u{e9}"] {
        let (status, problem, _) = keyed(&bench, "/v1/racks", wrong, RACK).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{problem}");
    }
    let (status, problem, _) = keyed(&bench, "/v1/racks", "long", &" ".repeat(extract::MAX_BODY + 1)).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE, "{problem}");
}

async fn of_many_that_ask_at_once_with_a_key_one_is_carried_out(on: On) {
    let bench = Bench::new(on).await;
    keyed(&bench, "/v1/racks", "rack", RACK).await;
    let ask = || keyed(&bench, "/v1/racks/lab/enrolment-codes", "code", "{}");
    let answers = futures_util::future::join_all((0..20).map(|_| ask())).await;
    let made: Vec<_> = answers.iter().filter(|(status, _, replayed)| status.is_success() && !replayed).collect();
    assert_eq!(made.len(), 1, "{answers:?}");
    for (status, body, replayed) in &answers {
        let same = status.is_success() && body == &made[0].1;
        let told = *status == StatusCode::CONFLICT && body["type"] == "urn:rackhand:problem:in-progress";
        assert!(same || told, "{status} {body} {replayed}");
    }
}

async fn a_request_that_panics_is_carried_out_when_it_is_asked_again(on: On) {
    let mut bench = Bench::new(on).await;
    keyed(&bench, "/v1/racks", "rack", RACK).await;
    let broken = Arc::new(std::sync::atomic::AtomicBool::new(true));
    bench.app_mut().new_code = Arc::new(move || {
        assert!(!broken.swap(false, std::sync::atomic::Ordering::Relaxed), "as it should");
        ("RH1.secret.pin".into(), [7; 32])
    });
    let (status, ..) = keyed(&bench, "/v1/racks/lab/enrolment-codes", "code", "{}").await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    let (status, answer, replayed) = keyed(&bench, "/v1/racks/lab/enrolment-codes", "code", "{}").await;
    assert_eq!((status, replayed), (StatusCode::CREATED, false), "{answer}");
}

async fn a_client_that_goes_away_finds_the_answer_later(on: On) {
    let bench = Bench::new(on).await;
    let request = keyed(&bench, "/v1/racks", "a", RACK);
    let gave_up = tokio::time::timeout(Duration::ZERO, request).await.is_err();
    assert!(gave_up);
    loop {
        let (status, answer, _) = keyed(&bench, "/v1/racks", "a", RACK).await;
        if status != StatusCode::CONFLICT {
            assert_eq!(status, StatusCode::CREATED, "{answer}");
            break;
        }
        assert_eq!(answer["type"], "urn:rackhand:problem:in-progress");
        tokio::task::yield_now().await;
    }
    assert_eq!(bench.ask(Method::GET, "/v1/racks", "").await.1["items"].as_array().unwrap().len(), 1);
}

async fn every_change_is_in_the_record_and_nothing_secret_of_it(on: On) {
    let bench = Bench::new(on).await;
    let machine = discovered(&bench).await;
    bench.ask(Method::POST, &format!("/v1/machines/{machine}/adopt"), r#"{"accept_data":true,"name":"web-1"}"#).await;
    bench.ask(Method::GET, "/v1/machines", "").await;
    let refused = bench.ask(Method::POST, "/v1/machines/web-1/adopt", "{}").await;
    assert_eq!(refused.0, StatusCode::CONFLICT);
    keyed(&bench, "/v1/racks/lab/enrolment-codes", "code", "{}").await;
    keyed(&bench, "/v1/racks/lab/enrolment-codes", "code", "{}").await;
    while bench.app.store.link_records().await.unwrap() > 0 {}
    let (_, page) = bench.ask(Method::GET, "/v1/audit?order=oldest", "").await;
    let told = page["items"].as_array().unwrap().iter().map(|record| {
        let changes = record["changes"].as_array().unwrap().iter().map(|change| change["kind"].as_str().unwrap());
        let action = record["action"].as_str().unwrap().replace(&machine, "MACHINE");
        format!("{} {}: {}", record["by"].as_str().unwrap(), action, changes.collect::<Vec<_>>().join(", "))
    });
    expect![[r#"
        admin POST /v1/racks: rack
        admin POST /v1/machines/MACHINE/adopt: machine
        admin POST /v1/racks/lab/enrolment-codes: enrolment code"#]]
    .assert_eq(&told.collect::<Vec<_>>().join("\n"));
    assert!(!page.to_string().contains("RH1.secret"));
    let (_, about) = bench.ask(Method::GET, "/v1/audit?about=web-1&limit=1", "").await;
    assert_eq!(about["items"].as_array().unwrap().len(), 1);
    let (_, end) = bench.ask(Method::GET, "/v1/audit/end", "").await;
    assert_eq!((&end["number"], &end["link"]), (&json!(3), &page["items"][2]["link"]));
    bench.check(Method::GET, "/v1/audit?order=sideways", "", expect!["400 malformed: Failed to deserialize query string: order: unknown variant `sideways`, expected `newest` or `oldest`"]).await;
}

/// An operation that changes something without [`Tx::watch`] would leave a record that names nothing.
async fn no_change_is_recorded_without_what_was_changed(on: On) {
    let bench = Bench::new(on).await;
    let machine = discovered(&bench).await;
    let rack = RACK.replace("lab", "lab2");
    let asked = [
        (Method::POST, "/v1/racks".to_owned(), rack.as_str()),
        (Method::POST, format!("/v1/machines/{machine}/adopt"), r#"{"accept_data":true}"#),
        (Method::PATCH, format!("/v1/machines/{machine}"), r#"{"name":"web-1"}"#),
        (Method::PUT, "/v1/images/debian".into(), "not an image"),
        (Method::PATCH, "/v1/images/debian".into(), r#"{"deprecated":true}"#),
        (Method::DELETE, "/v1/images/debian".into(), ""),
        (Method::POST, "/v1/plans".into(), r#"{"name":"large","rules":{"threads":32}}"#),
        (Method::PATCH, "/v1/plans/large".into(), r#"{"description":"databases"}"#),
        (Method::DELETE, "/v1/plans/large".into(), ""),
        (Method::POST, "/v1/agents/lab/replace".into(), "{}"),
        (Method::DELETE, "/v1/machines/web-1".into(), ""),
        (Method::POST, "/v1/vrfs".into(), r#"{"name":"other"}"#),
        (Method::POST, "/v1/aggregates".into(), r#"{"prefix":"10.0.0.0/8","source":"private"}"#),
        (Method::POST, "/v1/pools".into(), r#"{"name":"p","kind":"private","prefixes":["10.9.0.0/24"]}"#),
        (Method::POST, "/v1/pools/p/prefixes".into(), r#"{"prefixes":["10.9.1.0/24"]}"#),
        (Method::POST, "/v1/claims".into(), r#"{"pool":"p","name":"x","reserve":true}"#),
        (Method::POST, "/v1/claims".into(), r#"{"pool":"nowhere","name":"refused"}"#),
    ];
    for (method, path, body) in &asked {
        let (status, answer) = bench.ask(method.clone(), path, body.to_string()).await;
        let refused = answer["type"] == "urn:rackhand:problem:conflict" || body.contains("refused");
        assert!(status.is_success() || refused, "{method} {path}: {answer}");
        if *method == Method::PUT {
            bench.app.images.closed().await;
        }
    }
    let claim = bench.ask(Method::GET, "/v1/claims", "").await.1["items"][0]["id"].as_str().unwrap().to_owned();
    let aggregate = bench.ask(Method::GET, "/v1/aggregates", "").await.1["items"][0]["id"].as_str().unwrap().to_owned();
    for path in [format!("claims/{claim}"), "pools/p".into(), format!("aggregates/{aggregate}")] {
        assert!(bench.ask(Method::DELETE, &format!("/v1/{path}"), "").await.0.is_success(), "{path}");
    }
    while bench.app.store.link_records().await.unwrap() > 0 {}
    let records = bench.ask(Method::GET, "/v1/audit", "").await.1;
    let of_claims = |record: &&Value| record["changes"][0]["id"] == claim;
    assert_eq!(records["items"].as_array().unwrap().iter().filter(of_claims).count(), 2, "claimed and released");
    let claims = records["items"].as_array().unwrap().iter().filter(|record| record["action"] == "POST /v1/claims");
    assert_eq!(claims.count(), 1, "what was refused is not in the record");
    for record in records["items"].as_array().unwrap() {
        assert_ne!(record["changes"], json!([]), "{record}");
    }
}

async fn machines_are_filtered_and_sorted_page_by_page(on: On) {
    let bench = Bench::new(on).await;
    let machine = discovered(&bench).await;
    bench.ask(Method::PATCH, &format!("/v1/machines/{machine}"), r#"{"name":"web-1"}"#).await;
    let found = async |query: &str| {
        let (status, page) = bench.ask(Method::GET, &format!("/v1/machines?{query}"), "").await;
        assert_eq!(status, StatusCode::OK, "{page}");
        page["items"].as_array().unwrap().len()
    };
    let mac = bench.ask(Method::GET, "/v1/machines/web-1", "").await.1["macs"][0].as_str().unwrap().to_owned();
    for (query, wanted) in [
        ("lifecycle=discovered", 1),
        ("lifecycle=ready", 0),
        ("name=web", 1),
        ("name=web-1", 1),
        ("name=web-2", 0),
        ("name=eb", 0),
        ("image=debian-12", 0),
        ("alert=true", 0),
        ("alert=false", 1),
        (&format!("mac={mac}"), 1),
        ("mac=52:54:00:ff:ff:ff", 0),
        ("sort=name&name=w&lifecycle=discovered&rack=lab", 1),
        ("sort=name&after=web-1", 0),
        ("sort=name&after=w", 1),
    ] {
        assert_eq!(found(query).await, wanted, "{query}");
    }
    bench
        .check(
            Method::GET,
            "/v1/machines?lifecycle=happy",
            "",
            expect!["422 invalid: lifecycle: `happy` is not one of ours"],
        )
        .await;
    bench.check(Method::GET, "/v1/machines?mac=1", "", expect!["422 invalid: mac: `1` is not one of ours"]).await;
}

async fn what_changed_since_it_was_read_is_not_changed(on: On) {
    let bench = Bench::new(on).await;
    let machine = discovered(&bench).await;
    let ask = async |method: Method, path: String, tag: Option<&str>, body: &'static str| {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("/v1/machines/{path}"))
            .header("authorization", format!("Bearer {}", bench.token))
            .header("content-type", "application/json");
        if let Some(tag) = tag {
            request = request.header("if-match", tag);
        }
        let request = request.body(Body::from(body)).unwrap();
        let response = bench.router().oneshot(request).await.unwrap();
        let tag = response.headers().get("etag").map(|tag| tag.to_str().unwrap().to_owned());
        (response.status(), tag)
    };
    let (_, read) = ask(Method::GET, machine.clone(), None, "").await;
    let (status, renamed) = ask(Method::PATCH, machine, read.as_deref(), r#"{"name":"web-1"}"#).await;
    assert_eq!(status, StatusCode::OK);
    assert_ne!(renamed, read);
    for (method, path, body) in [
        (Method::PATCH, "web-1", r#"{"name":"web-2"}"#),
        (Method::POST, "web-1/adopt", r#"{"accept_data":true}"#),
        (Method::POST, "web-1/replace-part", "{}"),
        (Method::POST, "web-1/deploy", r#"{"image":"debian"}"#),
        (Method::POST, "web-1/release", "{}"),
        (Method::POST, "web-1/power", r#"{"action":"off"}"#),
        (Method::DELETE, "web-1", ""),
    ] {
        let (status, _) = ask(method, path.into(), read.as_deref(), body).await;
        assert_eq!(status, StatusCode::PRECONDITION_FAILED, "{path}");
    }
    let both = format!("{}, {}", read.unwrap(), renamed.unwrap());
    let adopt = r#"{"accept_data":true}"#;
    assert_eq!(ask(Method::POST, "web-1/adopt".into(), Some(&both), adopt).await.0, StatusCode::OK);
    assert_eq!(ask(Method::PATCH, "web-1".into(), Some("*"), r#"{"name":"web-3"}"#).await.0, StatusCode::OK);
}

async fn addresses_are_claimed_listed_released_and_remembered(on: On) {
    let bench = Bench::new(on).await;
    let machine = discovered(&bench).await;
    let post = async |uri: &str, body: Value| bench.ask(Method::POST, uri, body.to_string()).await;
    let (status, own) = post("/v1/aggregates", json!({"prefix": "10.0.0.0/8", "source": "private"})).await;
    assert_eq!((status, &own["usable"], &own["vrf"]), (StatusCode::CREATED, &json!(true), &json!("default")));
    let pool = json!({
        "name": "private-4", "kind": "private", "prefixes": ["10.9.0.0/24"], "rack": "lab", "quarantine_minutes": 60,
    });
    let (status, pool) = post("/v1/pools", pool).await;
    assert_eq!(
        (status, &pool["family"], &pool["rack"], &pool["prefixes"], &pool["quarantine_minutes"]),
        (StatusCode::CREATED, &json!(4), &json!("lab"), &json!(["10.9.0.0/24"]), &json!(60))
    );
    let (_, pool) = post("/v1/pools/private-4/prefixes", json!({"prefixes": ["10.9.4.0/30"]})).await;
    assert_eq!(pool["prefixes"], json!(["10.9.0.0/24", "10.9.4.0/30"]));
    assert_eq!(bench.ask(Method::GET, "/v1/pools/private-4", "").await.1, pool);
    assert_eq!(bench.ask(Method::GET, "/v1/pools", "").await.1, json!({"items": [pool]}));

    post("/v1/organisations", json!({"name": "acme"})).await;
    post("/v1/projects", json!({"name": "shop", "organisation": "acme"})).await;
    let wish = json!({"pool": "private-4", "length": 31, "machine": machine, "project": "shop"});
    let (status, port) = post("/v1/claims", wish).await;
    assert_eq!(status, StatusCode::CREATED, "{port}");
    assert_eq!(
        (&port["prefix"], &port["last"], &port["name"], &port["claimed_by"], &port["project"]),
        // The smallest free space is used up first.
        (&json!("10.9.4.0/31"), &json!("10.9.4.1"), &json!(machine), &json!("admin"), &json!("acme:shop"))
    );
    let gateway =
        json!({"pool": "private-4", "prefix": "10.9.0.1", "name": "gateway", "reserve": true, "purpose": "router"});
    let (_, gateway) = post("/v1/claims", gateway).await;
    assert_eq!((&gateway["prefix"], &gateway["reserved"]), (&json!("10.9.0.1/32"), &json!(true)));
    let (_, held) = bench.ask(Method::GET, "/v1/claims?address=10.9.4.1", "").await;
    assert_eq!(held, json!({"items": [port]}));
    let (_, page) = bench.ask(Method::GET, "/v1/claims?pool=private-4&limit=1", "").await;
    assert_eq!((&page["items"][0], &page["next"]), (&port, &port["id"]));
    let next = format!("/v1/claims?pool=private-4&limit=1&after={}", port["id"].as_str().unwrap());
    assert_eq!(bench.ask(Method::GET, &next, "").await.1, json!({"items": [gateway]}));

    let (_, report) = bench.ask(Method::GET, "/v1/utilisation", "").await;
    let line = &report["items"][0];
    assert_eq!(
        (&line["total"], &line["claimed"], &line["reserved"], &line["free"], &line["largest_free"]),
        (&json!("260"), &json!("2"), &json!("1"), &json!("257"), &json!(25))
    );
    let csv = Request::get("/v1/utilisation?format=csv&pool=private-4")
        .header("authorization", format!("Bearer {}", bench.token))
        .body(Body::empty())
        .unwrap();
    let csv = bench.router().oneshot(csv).await.unwrap();
    assert_eq!(csv.headers()["content-type"], "text/csv; charset=utf-8; header=present");
    let csv = csv.into_body().collect().await.unwrap().to_bytes();
    expect![[r#"
        pool,family,total,claimed,reserved,quarantined,blocks,free,used,largest_free,fragmentation
        private-4,4,260,2,1,0,0,257,0.011538461538461539,25,0.5019455252918288
    "#]]
    .assert_eq(&String::from_utf8(csv.to_vec()).unwrap().replace("\r\n", "\n"));

    let claim = format!("/v1/claims/{}", port["id"].as_str().unwrap());
    let (status, released) = bench.ask(Method::DELETE, &claim, "").await;
    assert_eq!((status, &released["released_by"]), (StatusCode::OK, &json!("admin")));
    assert_eq!(bench.ask(Method::GET, &claim, "").await.1, released);
    let (status, again) = bench.ask(Method::DELETE, &claim, "").await;
    assert_eq!(status, StatusCode::CONFLICT, "{again}");
    assert_eq!(bench.ask(Method::GET, "/v1/addresses/10.9.4.1/history", "").await.1, json!({"items": [released]}));
    let then = "/v1/addresses/10.9.0.1/history?at=1970-01-01T00:00:00Z";
    assert_eq!(bench.ask(Method::GET, then, "").await.1, json!({"items": [gateway]}));
    let before = "/v1/addresses/10.9.0.1/history?at=1969-12-31T23:59:59Z";
    assert_eq!(bench.ask(Method::GET, before, "").await.1, json!({"items": []}));
    let resting = json!({"pool": "private-4", "prefix": "10.9.4.0/31", "name": "next"}).to_string();
    bench
        .check(
            Method::POST,
            "/v1/claims",
            resting,
            expect!["409 conflict: 10.9.4.0/31 is in quarantine until 1970-01-01T01:00:00Z; claim another, or wait"],
        )
        .await;
    bench
        .check(
            Method::DELETE,
            "/v1/pools/private-4",
            "",
            expect!["409 conflict: pool private-4 is not all free: release what is claimed from it, and wait for what is in quarantine"],
        )
        .await;
    let own = format!("/v1/aggregates/{}", own["id"].as_str().unwrap());
    assert_eq!(bench.ask(Method::DELETE, &own, "").await.0, StatusCode::CONFLICT);
}

async fn space_a_customer_brought_is_used_once_its_proof_was_looked_at_and_a_vrf_has_its_own(on: On) {
    let bench = Bench::new(on).await;
    let post = async |uri: &str, body: Value| bench.ask(Method::POST, uri, body.to_string()).await;
    let proof = json!({"kind": "roa", "reference": "AS64500 198.51.100.0/24"});
    let source = json!({"customer": {"name": "shop", "proof": proof}});
    let (status, brought) = post("/v1/aggregates", json!({"prefix": "198.51.100.0/24", "source": source})).await;
    assert_eq!((status, &brought["usable"]), (StatusCode::CREATED, &json!(false)), "{brought}");
    assert_eq!(brought["source"]["customer"]["proof"]["state"], "pending");
    let pool = json!({"name": "public-4", "kind": "public", "prefixes": ["198.51.100.0/24"]});
    let (status, problem) = post("/v1/pools", pool.clone()).await;
    assert_eq!(status, StatusCode::CONFLICT, "{problem}");
    let prove = format!("/v1/aggregates/{}/proof", brought["id"].as_str().unwrap());
    let (_, proven) = post(&prove, json!({"state": "verified"})).await;
    assert_eq!((&proven["usable"], &proven["source"]["customer"]["proof"]["kind"]), (&json!(true), &json!("roa")));
    assert_eq!(post("/v1/pools", pool).await.0, StatusCode::CREATED);

    assert_eq!(post("/v1/vrfs", json!({"name": "lab"})).await.0, StatusCode::CREATED);
    let (_, vrfs) = bench.ask(Method::GET, "/v1/vrfs", "").await;
    assert_eq!((&vrfs["items"][0]["name"], &vrfs["items"][1]["name"]), (&json!("default"), &json!("lab")));
    let registry = json!({"registry": {"name": "RIPE ORG-EX1-RIPE"}});
    let (status, same) =
        post("/v1/aggregates", json!({"prefix": "198.51.100.0/24", "vrf": "lab", "source": registry})).await;
    assert_eq!(status, StatusCode::CREATED, "{same}");
    assert_eq!(bench.ask(Method::GET, "/v1/aggregates", "").await.1, json!({"items": [proven, same]}));
    let prove = format!("/v1/aggregates/{}/proof", same["id"].as_str().unwrap());
    assert_eq!(post(&prove, json!({"state": "refused"})).await.0, StatusCode::CONFLICT);
    let same = format!("/v1/aggregates/{}", same["id"].as_str().unwrap());
    assert_eq!(bench.ask(Method::DELETE, &same, "").await.0, StatusCode::NO_CONTENT);
    assert_eq!(bench.ask(Method::DELETE, "/v1/pools/public-4", "").await.0, StatusCode::NO_CONTENT);
    assert_eq!(bench.ask(Method::GET, "/v1/pools", "").await.1, json!({"items": []}));
}

async fn a_wrong_claim_is_told_what_is_wrong(on: On) {
    let bench = Bench::new(on).await;
    let check = async |body: Value, expected| {
        bench.check(Method::POST, "/v1/claims", body.to_string(), expected).await;
    };
    check(json!({"pool": "nowhere", "name": "x"}), expect!["404 not-found: there is no such pool"]).await;
    check(
        json!({"pool": "p"}),
        expect!["422 invalid: /machine: say for whom: a `machine`, or the `name` of something else"],
    )
    .await;
    check(
        json!({"pool": "p", "name": "x", "machine": "y"}),
        expect!["422 invalid: /machine: say for whom: a `machine`, or the `name` of something else"],
    )
    .await;
    check(json!({"pool": "p", "name": " "}), expect!["422 invalid: /name: say what holds it"]).await;
    check(json!({"pool": "p", "name": "x".repeat(101)}), expect!["422 invalid: /name: at most 100 characters"]).await;
    check(
        json!({"pool": "p", "name": "x", "purpose": "a\nb"}),
        expect!["422 invalid: /purpose: one line, without control characters"],
    )
    .await;
    check(
        json!({"pool": "p", "name": "x", "mac": "52:54:00:00:00:01"}),
        expect!["422 invalid: /mac: a card is a `machine`'s: say which"],
    )
    .await;
    check(
        json!({"pool": "p", "name": "x", "length": 31, "prefix": "10.0.0.0/31"}),
        expect!["422 invalid: /length: give `length` or `prefix`, not both"],
    )
    .await;
    check(
        json!({"pool": "p", "name": "x", "prefix": "10.0.0.1/31"}),
        expect!["422 invalid: /prefix: the address has bits set beyond the length; 10.0.0.0/31 is the prefix it is in"],
    )
    .await;
    bench
        .check(
            Method::GET,
            "/v1/addresses/10.0.0.0%2F8/history",
            "",
            expect!["422 invalid: address: write an IPv4 or IPv6 address"],
        )
        .await;
    bench
        .check(
            Method::GET,
            "/v1/claims?address=::ffff:10.0.0.1",
            "",
            expect!["422 invalid: address: write IPv4 as IPv4: ::ffff:0:0/96 is another form of it, and what is around it is no unicast space"],
        )
        .await;
    let prefixes: Vec<_> = (0..101).map(|third| format!("10.0.{third}.0/24")).collect();
    let many = json!({"name": "p", "kind": "private", "prefixes": prefixes}).to_string();
    bench.check(Method::POST, "/v1/pools", many, expect!["422 invalid: /prefixes: between 1 and 100"]).await;
    let long = json!({"name": "p", "kind": "private", "prefixes": ["10.0.0.0/8"], "quarantine_minutes": 525_601});
    bench
        .check(
            Method::POST,
            "/v1/pools",
            long.to_string(),
            expect!["422 invalid: /quarantine_minutes: at most 525600, which is a year"],
        )
        .await;
}

async fn a_claim_with_a_key_is_made_once(on: On) {
    let bench = Bench::new(on).await;
    for (uri, body) in [
        ("/v1/aggregates", r#"{"prefix":"10.0.0.0/8","source":"private"}"#),
        ("/v1/pools", r#"{"name":"p","kind":"private","prefixes":["10.9.0.0/24"]}"#),
    ] {
        assert_eq!(bench.ask(Method::POST, uri, body).await.0, StatusCode::CREATED);
    }
    let answers = {
        let ask = || keyed(&bench, "/v1/claims", "key", r#"{"pool":"p","name":"x"}"#);
        let mut answers = futures_util::future::join_all((0..20).map(|_| ask())).await;
        answers.push(ask().await);
        answers
    };
    let (_, first, _) = answers.iter().find(|(status, ..)| status.is_success()).unwrap();
    assert_eq!(answers.last(), Some(&(StatusCode::CREATED, first.clone(), true)));
    assert_eq!(bench.ask(Method::GET, "/v1/claims", "").await.1, json!({"items": [first]}));
    // The mark is in the claim's own transaction: a process that finds it does not claim again.
    bench.app.store.forget_answers().await.unwrap();
    let (status, problem, _) = keyed(&bench, "/v1/claims", "key", r#"{"pool":"p","name":"x"}"#).await;
    assert_eq!(problem["type"], "urn:rackhand:problem:answer-lost", "{status} {problem}");
}

async fn an_answer_has_the_fields_that_were_asked_for(on: On) {
    let bench = Bench::new(on).await;
    bench.ask(Method::POST, "/v1/racks", RACK).await;
    let sparse = async |uri: &str| bench.ask(Method::GET, uri, "").await;
    assert_eq!(sparse("/v1/racks/lab?fields=name").await, (StatusCode::OK, json!({"name": "lab"})));
    assert_eq!(sparse("/v1/racks?limit=1&fields=name").await, (StatusCode::OK, json!({"items": [{"name": "lab"}]})));
    assert_eq!(sparse("/v1/whoami?fields=name").await, (StatusCode::OK, json!({"name": "admin"})));
    // Of what is not there, the problem is whole.
    let (status, problem) = sparse("/v1/racks/other?fields=name").await;
    assert_eq!((status, &problem["status"]), (StatusCode::NOT_FOUND, &json!(404)));
    let (status, problem) = sparse("/v1/machines?fields=name,inventory.cpu.model,lifecycel").await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(problem["errors"][0]["field"], "fields");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.starts_with("fields: there is no `lifecycel`; there are "), "{detail}");
}

async fn a_request_has_a_name_everywhere_and_its_clients_trace_beside_it(on: On) {
    let bench = Bench::new(on).await;
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    for (token, status) in [("rh_wrong", StatusCode::UNAUTHORIZED), (bench.token.as_str(), StatusCode::NOT_FOUND)] {
        let request = Request::get("/v1/racks/none")
            .header("authorization", format!("Bearer {token}"))
            .header("traceparent", format!("00-{trace}-00f067aa0ba902b7-01"))
            .body(Body::empty())
            .unwrap();
        let response = bench.router().oneshot(request).await.unwrap();
        assert_eq!(response.status(), status);
        let name = response.headers()["x-request-id"].to_str().unwrap().to_owned();
        let problem: Value = serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap();
        assert_eq!(problem["instance"], format!("urn:uuid:{name}"));
        assert_eq!(problem["trace_id"], trace);
    }
    // Work on a task of its own, which a key makes it, has the same name in the record.
    let response = bench
        .router()
        .oneshot(
            Request::post("/v1/vrfs")
                .header("authorization", format!("Bearer {}", bench.token))
                .header("content-type", "application/json")
                .header("idempotency-key", "k")
                .body(Body::from(json!({"name": "management"}).to_string()))
                .unwrap(),
        )
        .await
        .unwrap();
    assert!(response.status().is_success());
    let name = response.headers()["x-request-id"].to_str().unwrap().to_owned();
    bench.app.store.link_records().await.unwrap();
    let (_, records) = bench.ask(Method::GET, "/v1/audit", "").await;
    assert_eq!(records["items"][0]["request"], name);
}

async fn a_token_that_asks_too_often_is_told_to_wait(on: On) {
    let mut bench = Bench::new(on).await;
    bench.app_mut().rate = Rate::new(std::num::NonZeroU32::MIN);
    // Five at once, and one more each second: however slow this machine is, forty at once are too many.
    let asked = (0..40).map(|_| {
        let request =
            Request::get("/v1/whoami").header("authorization", format!("Bearer {}", bench.token)).body(Body::empty());
        bench.router().oneshot(request.unwrap())
    });
    let answers: Vec<_> = futures_util::future::join_all(asked).await.into_iter().map(Result::unwrap).collect();
    let (ok, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status() == StatusCode::OK);
    assert!(ok.len() >= 5 && !refused.is_empty(), "{} of 40", ok.len());
    for answer in refused {
        assert_eq!(answer.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(answer.headers()["retry-after"], "1");
    }
}

async fn the_reference_is_there_for_a_browser_and_needs_nothing_from_elsewhere(on: On) {
    let bench = Bench::new(on).await;
    let page = async |uri: &str| {
        let response = bench.router().oneshot(Request::get(uri).body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{uri}");
        String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
    };
    let html = page("/v1/reference/").await;
    assert!(!html.contains("src=\"http") && !html.contains("href=\"http"), "{html}");
    assert!(page("/v1/reference/swagger-initializer.js").await.contains("/v1/openapi.json"));
}

on_both! {
    no_operation_is_open_to_the_world_but_its_description_and_the_login,
    a_token_works_until_it_expires,
    a_wrong_request_is_told_what_is_wrong,
    brackets_from_strangers_are_not_even_read,
    an_image_is_uploaded_listed_and_deleted,
    a_machine_is_adopted_deployed_and_the_deploy_cancelled,
    a_stream_goes_on_after_the_last_event_seen_and_ends_at_shutdown,
    an_enrolment_code_comes_with_the_line_to_run,
    a_node_is_replaced_by_its_agent_or_its_rack_and_an_old_agent_is_not_taken_for_the_new_one,
    a_post_with_a_key_is_carried_out_once_and_answered_twice,
    a_key_belongs_to_one_request_and_is_one_short_text,
    of_many_that_ask_at_once_with_a_key_one_is_carried_out,
    a_request_that_panics_is_carried_out_when_it_is_asked_again,
    a_client_that_goes_away_finds_the_answer_later,
    every_change_is_in_the_record_and_nothing_secret_of_it,
    no_change_is_recorded_without_what_was_changed,
    machines_are_filtered_and_sorted_page_by_page,
    what_changed_since_it_was_read_is_not_changed,
    addresses_are_claimed_listed_released_and_remembered,
    space_a_customer_brought_is_used_once_its_proof_was_looked_at_and_a_vrf_has_its_own,
    a_wrong_claim_is_told_what_is_wrong,
    a_claim_with_a_key_is_made_once,
    an_answer_has_the_fields_that_were_asked_for,
    a_request_has_a_name_everywhere_and_its_clients_trace_beside_it,
    a_token_that_asks_too_often_is_told_to_wait,
    the_reference_is_there_for_a_browser_and_needs_nothing_from_elsewhere,
}
