//! Redfish against services that are odd, and services that are hostile.

#![expect(clippy::unwrap_used, reason = "the lint does not take helpers in here for tests")]

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use expect_test::{Expect, expect};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use zeroize::Zeroizing;

use rackhand_bmc::{
    Bmc, BmcError, Credentials,
    redfish::{Bounds, Redfish, Target, Which, link::Link, secure_boot::ResetKeys},
    told::{BootOverride, BootSource, baseline::Attribute},
};
use rackhand_common::machine::Power;

/// What a service was asked.
#[derive(Clone, Debug)]
struct Asked {
    method: String,
    path: String,
    headers: HashMap<String, String>,
    body: Value,
}

impl Asked {
    fn is(&self, method: &str, path: &str) -> bool {
        self.method == method && self.path.trim_end_matches('/') == path
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// What it answers.
enum Told {
    Json(u16, Vec<(&'static str, String)>, Value),
    /// These bytes, and then the connection ends.
    Raw(Vec<u8>),
    /// A head, and then a body without end.
    Endless,
    /// These bytes, then nothing, and the connection stays.
    Unfinished(Vec<u8>),
    /// Nothing, and the connection stays.
    Silence,
}

fn status(status: u16) -> Told {
    Told::Json(status, Vec::new(), Value::Null)
}

fn well(value: Value) -> Told {
    Told::Json(200, Vec::new(), value)
}

fn headed(status: u16, name: &'static str, value: &str) -> Told {
    Told::Json(status, vec![(name, value.to_owned())], Value::Null)
}

/// A service on loopback, which ends with the test.
struct Service {
    url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    task: JoinHandle<()>,
}

impl Drop for Service {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Service {
    async fn answering(answer: impl Fn(&Asked) -> Told + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let answer = Arc::new(answer);
        let heard = asked.clone();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (answer, heard) = (answer.clone(), heard.clone());
                connections.spawn(async move { serve(stream, &*answer, &heard).await });
            }
        });
        Self { url, asked, task }
    }

    /// A service of these resources, where `other` answers first if it wants to.
    async fn of(tree: Value, other: impl Fn(&Asked) -> Option<Told> + Send + Sync + 'static) -> Self {
        Self::answering(move |asked| {
            if let Some(told) = other(asked) {
                return told;
            }
            let path = asked.path.split('?').next().unwrap().trim_end_matches('/');
            match tree.get(path) {
                Some(resource) if asked.method == "GET" => well(resource.clone()),
                Some(_) => status(204),
                None => status(404),
            }
        })
        .await
    }

    fn redfish(&self) -> Redfish {
        self.redfish_within(bounds())
    }

    fn redfish_within(&self, bounds: Bounds) -> Redfish {
        let credentials = Credentials { user: "root".to_owned(), password: Zeroizing::new("hunter2".to_owned()) };
        let url = self.url.clone();
        Redfish::new(Target { url, credentials, fingerprint: None, system: Which::Only, bounds }).unwrap()
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    fn lines(&self) -> Vec<String> {
        self.asked().iter().map(|asked| format!("{} {}", asked.method, asked.path)).collect()
    }

    fn count(&self, method: &str, path: &str) -> usize {
        self.asked().iter().filter(|asked| asked.is(method, path)).count()
    }

    /// The body of the last request of this method.
    fn last(&self, method: &str) -> Value {
        let asked = self.asked();
        asked.iter().rev().find(|asked| asked.method == method).map(|asked| asked.body.clone()).unwrap_or_default()
    }
}

async fn serve(
    stream: TcpStream,
    answer: &(impl Fn(&Asked) -> Told + ?Sized),
    heard: &Mutex<Vec<Asked>>,
) -> Option<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await.ok()? == 0 {
                return None;
            }
            match line.trim_end() {
                "" => break,
                line => lines.push(line.to_owned()),
            }
        }
        let mut first = lines.first()?.split(' ');
        let (method, path) = (first.next()?.to_owned(), first.next()?.to_owned());
        let headers: HashMap<String, String> = lines[1..]
            .iter()
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.ok()?;
        let body = serde_json::from_slice(&body).unwrap_or_else(|_| String::from_utf8_lossy(&body).into());
        let asked = Asked { method, path, headers, body };
        heard.lock().unwrap().push(asked.clone());
        match answer(&asked) {
            Told::Json(status, headers, body) => {
                let body = if body.is_null() { String::new() } else { body.to_string() };
                let mut head = format!("HTTP/1.1 {status} X\r\n");
                if status != 204 {
                    head += &format!("Content-Length: {}\r\n", body.len());
                }
                for (name, value) in headers {
                    head += &format!("{name}: {value}\r\n");
                }
                stream.write_all(format!("{head}\r\n{body}").as_bytes()).await.ok()?;
            }
            Told::Raw(bytes) => {
                stream.write_all(&bytes).await.ok()?;
                return None;
            }
            Told::Endless => {
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999\r\n\r\n[").await.ok()?;
                loop {
                    stream.write_all(&[b'['; 65536]).await.ok()?;
                }
            }
            Told::Unfinished(bytes) => {
                stream.write_all(&bytes).await.ok()?;
                std::future::pending::<()>().await;
            }
            Told::Silence => std::future::pending::<()>().await,
        }
    }
}

fn bounds() -> Bounds {
    Bounds { settle: Duration::from_millis(5), ..Bounds::default() }
}

/// A service with one system, and with these members and resources besides.
fn machine(extra: Value) -> Value {
    let mut tree = json!({
        "/redfish/v1": {
            "Systems": {"@odata.id": "/redfish/v1/Systems"}, "Chassis": {"@odata.id": "/redfish/v1/Chassis"},
            "Managers": {"@odata.id": "/redfish/v1/Managers"},
        },
        "/redfish/v1/Systems": {"Members": [{"@odata.id": "/redfish/v1/Systems/1"}]},
        "/redfish/v1/Systems/1": {"Id": "1", "PowerState": "On", "Boot": {
            "BootSourceOverrideEnabled": "Disabled", "BootSourceOverrideTarget": "None"}},
        "/redfish/v1/Chassis": {"Members": [{"@odata.id": "/redfish/v1/Chassis/1"}]},
        "/redfish/v1/Chassis/1": {"Id": "1", "Name": "Chassis"},
        "/redfish/v1/Managers": {"Members": [{"@odata.id": "/redfish/v1/Managers/1"}]},
        "/redfish/v1/Managers/1": {"Id": "1", "ManagerType": "BMC", "FirmwareVersion": "2.8"},
    });
    for (path, resource) in extra.as_object().unwrap() {
        let place = &mut tree[path];
        match (place.as_object_mut(), resource.as_object()) {
            (Some(there), Some(more)) => there.extend(more.clone()),
            _ => *place = resource.clone(),
        }
    }
    tree
}

fn plain(_: &Asked) -> Option<Told> {
    None
}

// Hostile.

#[tokio::test]
async fn redirects_in_a_circle_end() {
    let service = Service::answering(|_| headed(301, "Location", "/redfish/v1/")).await;
    let error = service.redfish().power().await.unwrap_err();
    assert!(matches!(error, BmcError::Malformed(_)), "{error}");
    assert_eq!(service.lines().len(), 3);
}

#[tokio::test]
async fn a_redirect_to_another_host_is_not_followed() {
    let other = Service::answering(|_| well(json!({}))).await;
    let elsewhere = format!("{}/redfish/v1/Systems", other.url);
    let service = Service::of(machine(json!({})), move |asked| {
        asked.is("GET", "/redfish/v1/Systems").then(|| headed(307, "Location", &elsewhere))
    })
    .await;
    assert!(service.redfish().power().await.is_err());
    assert_eq!(other.lines(), [""; 0]);
}

#[tokio::test]
async fn an_alias_on_the_same_host_is_followed() {
    let service = Service::of(machine(json!({"/redfish/v1/Systems/2": {"PowerState": "Off"}})), |asked| {
        asked.is("GET", "/redfish/v1/Systems/1").then(|| headed(307, "Location", "/redfish/v1/Systems/2"))
    })
    .await;
    assert_eq!(service.redfish().power().await, Ok(Power::Off));
}

#[tokio::test]
async fn a_body_without_end_is_malformed() {
    let service = Service::answering(|_| Told::Endless).await;
    let error = service.redfish().power().await.unwrap_err();
    assert!(matches!(&error, BmcError::Malformed(why) if why.contains("longer than")), "{error}");
}

#[tokio::test]
async fn twenty_thousand_brackets_are_malformed() {
    let body = "[".repeat(20_000);
    let raw = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let service = Service::answering(move |_| Told::Raw(raw.clone().into_bytes())).await;
    let error = service.redfish().power().await.unwrap_err();
    assert!(matches!(&error, BmcError::Malformed(why) if why.contains("recursion limit")), "{error}");
}

#[tokio::test]
async fn a_silent_endpoint_gets_more_time_and_not_for_ever() {
    let service = Service::answering(|_| Told::Silence).await;
    let (shortest, longest) = (Duration::from_millis(50), Duration::from_millis(150));
    let redfish = service.redfish_within(Bounds { shortest, longest, ..bounds() });
    let mut told = String::new();
    for _ in 0..3 {
        told += &format!("{}\n", redfish.power().await.unwrap_err());
    }
    expect![[r#"
        unreachable: /redfish/v1/: no answer within 0.05 s
        unreachable: /redfish/v1/: no answer within 0.1 s
        unreachable: /redfish/v1/: no answer within 0.15 s
    "#]]
    .assert_eq(&told);
}

#[tokio::test]
async fn a_call_ends_however_many_answers_are_slow() {
    let service = Service::answering(|_| Told::Silence).await;
    let redfish = service.redfish_within(Bounds { call: Duration::from_millis(50), ..bounds() });
    let error = redfish.sensors().await.unwrap_err();
    assert_eq!(error, BmcError::Unreachable("not done within 0.05 s".to_owned()));
}

#[tokio::test]
async fn a_walk_beyond_the_trait_ends_in_time_too() {
    let service = Service::of(machine(json!({})), plain).await;
    let redfish = service.redfish_within(Bounds { call: Duration::ZERO, ..bounds() });
    assert!(matches!(redfish.virtual_media().await, Err(BmcError::Unreachable(_))));
}

#[tokio::test]
async fn a_connection_dropped_in_mid_body_is_unreachable() {
    let raw = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"Systems\":";
    let service = Service::answering(|_| Told::Raw(raw.to_vec())).await;
    let error = service.redfish().power().await.unwrap_err();
    assert!(matches!(error, BmcError::Unreachable(_)), "{error}");
    assert_eq!(service.lines().len(), 2, "what only reads is asked once more");
}

#[tokio::test]
async fn http2_and_other_nonsense_is_unreachable() {
    for raw in
        ["PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "\0\0\x12\x04\0\0\0\0\0", "HTTP/1.1 999999 X\r\n\r\n", "SSH-2.0-x\r\n"]
    {
        let service = Service::answering(move |_| Told::Raw(raw.as_bytes().to_vec())).await;
        let error = service.redfish().power().await.unwrap_err();
        assert!(matches!(error, BmcError::Unreachable(_)), "{raw:?}: {error}");
    }
}

#[tokio::test]
async fn a_change_that_changes_nothing_is_refused() {
    let service = Service::of(machine(json!({})), |asked| (asked.method == "PATCH").then(|| well(json!({})))).await;
    let wanted = BootOverride { source: Some(BootSource::Network), is_lasting: false, uefi: None };
    let error = service.redfish().set_boot(wanted).await.unwrap_err();
    assert_eq!(error, BmcError::Refused("the boot override was taken and did nothing: it shows None".to_owned()));
    let sent = json!({"Boot": {"BootSourceOverrideEnabled": "Once", "BootSourceOverrideTarget": "Pxe"}});
    assert_eq!(service.last("PATCH"), sent);
}

#[tokio::test]
async fn a_collection_that_goes_on_for_ever_ends() {
    let tree = machine(json!({
        "/redfish/v1/Systems/1": {"Memory": {"@odata.id": "/redfish/v1/Memory"}},
        "/redfish/v1/Memory": {"Members@odata.nextLink": "/redfish/v1/Memory?$skip=1", "Members": [
            {"@odata.id": "/redfish/v1/Memory/1"}, {"@odata.id": "/redfish/v1/Memory/1"}, {"@odata.id": "/redfish/v1/Memory"}]},
        "/redfish/v1/Memory/1": {"Name": "A1", "CapacityMiB": 1024},
    }));
    let service = Service::of(tree, plain).await;
    let parts = service.redfish().parts().await.unwrap();
    assert_eq!(parts.parts.iter().filter(|part| part.slot == "A1").count(), 1);
}

#[tokio::test]
async fn three_unanswered_resources_end_a_walk() {
    let members: Vec<Value> = (0..100).map(|n| json!({"@odata.id": format!("/redfish/v1/Memory/{n}")})).collect();
    let tree = machine(json!({
        "/redfish/v1/Systems/1": {"Memory": {"@odata.id": "/redfish/v1/Memory"}},
        "/redfish/v1/Memory": {"Members": members},
    }));
    let service = Service::of(tree, |asked| asked.path.contains("/Memory/").then(|| status(500))).await;
    let error = service.redfish().parts().await.unwrap_err();
    assert!(matches!(error, BmcError::Unreachable(_)), "{error}");
    assert!(service.lines().len() < 15, "{:?}", service.lines());
}

#[tokio::test]
async fn dangling_links_and_malformed_members_are_skipped_and_reported() {
    let tree = machine(json!({
        "/redfish/v1/Systems/1": {"Memory": {"@odata.id": "/redfish/v1/Memory"}, "Storage": {"@odata.id": "https://evil/"},
                                  "Processors": {"@odata.id": "/redfish/v1/Gone"}, "PCIeDevices": "none"},
        "/redfish/v1/Memory": {"Members": [{"@odata.id": "/redfish/v1/Memory/1"}, {"@odata.id": "/redfish/v1/Memory/2"}, null,
                                           {"@odata.id": 7}, {"@odata.id": "/redfish/v1/Memory/3"}]},
        "/redfish/v1/Memory/1": {"@odata.id": "/redfish/v1/Wrong", "Name": "A1", "CapacityMiB": 1024, "Manufacturer": ["x"]},
        "/redfish/v1/Memory/3": [],
    }));
    let service = Service::of(tree, plain).await;
    let parts = service.redfish().parts().await.unwrap();
    let found = parts.parts.iter().map(|part| format!("{:?} {} {:?}\n", part.kind, part.slot, part.size));
    let skipped = parts.skipped.iter().map(|skipped| format!("skipped {}: {}\n", skipped.place, skipped.why));
    expect![[r#"
        Memory A1 Some(1073741824)
        Chassis Chassis None
        skipped /redfish/v1/Gone: not supported: /redfish/v1/Gone: 404 Not Found
        skipped /redfish/v1/Memory/2: not supported: /redfish/v1/Memory/2: 404 Not Found
        skipped /redfish/v1/Memory: its member 2 is no link
        skipped /redfish/v1/Memory: its member 3 is no link
        skipped /redfish/v1/Memory/3: malformed answer: /redfish/v1/Memory/3 is not an object
    "#]]
    .assert_eq(&found.chain(skipped).collect::<String>());
}

#[tokio::test]
async fn what_a_walk_keeps_is_bounded() {
    let links: Vec<Value> =
        (0..40).map(|n| json!({"@odata.id": format!("/redfish/v1/Chassis/1/Sensors/{n}")})).collect();
    let tree = machine(json!({
        "/redfish/v1/Chassis/1": {"Sensors": {"@odata.id": "/redfish/v1/Chassis/1/Sensors"}},
        "/redfish/v1/Chassis/1/Sensors": {"Members": links},
    }));
    for fat in [json!("x".repeat(1 << 20)), vec![1; 50_000].into()] {
        let service = Service::of(tree.clone(), move |asked| {
            let is_sensor = asked.path.starts_with("/redfish/v1/Chassis/1/Sensors/");
            is_sensor.then(|| well(json!({"Name": asked.path, "Reading": 1, "Oem": fat})))
        })
        .await;
        let told = service.redfish().sensors().await.unwrap();
        assert!((4..=17).contains(&told.readings.len()), "{} of 40 were kept", told.readings.len());
        let [skipped] = &told.skipped[..] else { panic!("{:?}", told.skipped) };
        assert_eq!(skipped.why, "this and what follows: it has too many resources");
    }
}

#[tokio::test]
async fn the_one_system_there_is_room_for_is_not_taken_for_the_only_one() {
    let links: Vec<Value> = (0..20).map(|n| json!({"@odata.id": format!("/redfish/v1/Systems/{n}")})).collect();
    let tree = machine(json!({"/redfish/v1/Systems": {"Members": links}}));
    let fat = "x".repeat(1 << 20);
    let service = Service::of(tree, move |asked| {
        let is_system = asked.path.starts_with("/redfish/v1/Systems/");
        is_system.then(|| well(json!({"Id": asked.path, "Oem": fat})))
    })
    .await;
    let error = service.redfish().power().await.unwrap_err();
    assert!(error.to_string().ends_with("it has too many resources"), "{error}");
}

#[tokio::test]
async fn a_body_of_too_many_values_is_malformed() {
    let many = vec![1; 100_001];
    let service = Service::of(machine(json!({"/redfish/v1/Systems/1": {"Oem": many}})), plain).await;
    let error = service.redfish().power().await.unwrap_err();
    assert!(error.to_string().ends_with("more than 100000 values"), "{error}");
}

#[tokio::test]
async fn a_machine_of_too_many_sensors_or_parts_is_not_asked_for_more() {
    let fans: Vec<Value> = (0..4096).map(|n| json!({"Name": format!("Fan {n}")})).collect();
    let link = |n: u8| json!({"@odata.id": format!("/redfish/v1/Chassis/{n}")});
    let service = Service::of(
        machine(json!({
            "/redfish/v1/Chassis": {"Members": [link(1), link(2)]},
            "/redfish/v1/Chassis/1": {"Thermal": {"@odata.id": "/redfish/v1/Chassis/1/Thermal"}},
            "/redfish/v1/Chassis/1/Thermal": {"Fans": fans},
            "/redfish/v1/Chassis/2": {"Id": "2"},
        })),
        plain,
    )
    .await;
    let told = service.redfish().sensors().await.unwrap();
    assert_eq!(told.readings.len(), 4096);
    assert_eq!(told.skipped.len(), 1, "{:?}", told.skipped);
    let told = service.redfish().parts().await.unwrap();
    assert_eq!(told.parts.len(), 4096);
    assert_eq!(told.skipped.len(), 1, "{:?}", told.skipped);
    assert_eq!(service.count("GET", "/redfish/v1/Chassis/2"), 0);
}

#[tokio::test]
async fn words_of_a_service_are_fit_to_print() {
    let allowed = vec!["\u{1b}[2J".repeat(100); 100];
    let reset = json!({"#ComputerSystem.Reset": {"ResetType@Redfish.AllowableValues": allowed}});
    let service = Service::of(machine(json!({"/redfish/v1/Systems/1": {"Actions": reset}})), plain).await;
    let error = service.redfish().set_power(Power::Off).await.unwrap_err().to_string();
    assert!(error.len() < 300 && !error.contains(char::is_control), "{error:?}");
}

// Sessions.

const SESSIONS: &str = "/redfish/v1/SessionService/Sessions";

fn with_sessions() -> Value {
    machine(json!({"/redfish/v1": {"Links": {"Sessions": {"@odata.id": SESSIONS}}}}))
}

fn session(token: &str) -> Told {
    Told::Json(201, vec![("X-Auth-Token", token.to_owned()), ("Location", format!("{SESSIONS}/{token}"))], Value::Null)
}

#[tokio::test]
async fn a_session_is_used_and_ended() {
    let service = Service::of(with_sessions(), |asked| {
        let is_in = asked.header("x-auth-token") == Some("t1") || asked.is("GET", "/redfish/v1");
        match (asked.is("POST", SESSIONS), is_in) {
            (true, _) => Some(session("t1")),
            (false, true) if asked.method == "DELETE" => Some(status(204)),
            (false, true) => None,
            (false, false) => Some(status(401)),
        }
    })
    .await;
    let redfish = service.redfish();
    assert_eq!(redfish.power().await, Ok(Power::On));
    redfish.close().await.unwrap();
    assert!(service.asked().iter().all(|asked| asked.header("authorization").is_none()));
    assert_eq!((service.count("POST", SESSIONS), service.count("DELETE", &format!("{SESSIONS}/t1"))), (1, 1));
    assert_eq!(redfish.requests(), service.lines().len() as u64);
}

#[tokio::test]
async fn a_session_that_has_ended_is_renewed_once() {
    let logins = Arc::new(Mutex::new(0));
    let seen = logins.clone();
    let has_ended = Arc::new(AtomicBool::new(false));
    let ended = has_ended.clone();
    let service = Service::of(with_sessions(), move |asked| {
        let mut logins = seen.lock().unwrap();
        if asked.is("POST", SESSIONS) {
            *logins += 1;
            return Some(session(&format!("t{logins}")));
        }
        (ended.load(Ordering::Relaxed)
            && asked.is("GET", "/redfish/v1/Systems/1")
            && asked.header("x-auth-token") == Some("t1"))
        .then(|| status(401))
    })
    .await;
    let redfish = service.redfish();
    assert_eq!(redfish.power().await, Ok(Power::On));
    has_ended.store(true, Ordering::Relaxed);
    pass(Duration::from_secs(6)).await;
    assert_eq!(redfish.power().await, Ok(Power::On));
    assert_eq!(*logins.lock().unwrap(), 2);
    assert_eq!(service.count("DELETE", &format!("{SESSIONS}/t1")), 1, "the session before was left");
}

/// Has time pass at once.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

#[tokio::test]
async fn a_young_session_is_not_renewed_for_what_is_not_shown() {
    let service = Service::of(with_sessions(), |asked| {
        if asked.is("POST", SESSIONS) {
            return Some(session("t1"));
        }
        asked.is("GET", "/redfish/v1/Systems/1").then(|| status(401))
    })
    .await;
    let redfish = service.redfish();
    for _ in 0..5 {
        assert!(matches!(redfish.power().await, Err(BmcError::Denied(_))));
    }
    assert_eq!(service.count("POST", SESSIONS), 1);
}

#[tokio::test]
async fn a_denied_password_is_not_tried_again_soon() {
    let service = Service::of(with_sessions(), |asked| asked.is("POST", SESSIONS).then(|| status(401))).await;
    let redfish = service.redfish();
    for _ in 0..5 {
        assert!(matches!(redfish.power().await, Err(BmcError::Denied(_))));
    }
    let error = redfish.power().await.unwrap_err().to_string();
    assert!(error.starts_with("denied: not tried again for "), "{error}");
    assert_eq!(service.count("POST", SESSIONS), 1);
    pass(Duration::from_secs(301)).await;
    assert!(redfish.power().await.is_err());
    assert_eq!(service.count("POST", SESSIONS), 2);
}

#[tokio::test]
async fn a_password_that_basic_authentication_denies_is_not_tried_again_soon() {
    let service = Service::of(machine(json!({})), |asked| (!asked.is("GET", "/redfish/v1")).then(|| status(401))).await;
    let redfish = service.redfish();
    for _ in 0..5 {
        assert!(matches!(redfish.power().await, Err(BmcError::Denied(_))));
    }
    assert_eq!(service.asked().iter().filter(|asked| asked.header("authorization").is_some()).count(), 1);
}

#[tokio::test]
async fn one_resource_that_basic_authentication_is_not_shown_denies_nothing_else() {
    let service =
        Service::of(machine(json!({})), |asked| asked.is("GET", "/redfish/v1/Chassis/1").then(|| status(401))).await;
    let redfish = service.redfish();
    assert_eq!(redfish.sensors().await.unwrap().skipped.len(), 1);
    assert_eq!(redfish.power().await, Ok(Power::On));
}

#[tokio::test]
async fn a_session_made_by_a_call_that_was_given_up_is_ended() {
    let service = Service::of(with_sessions(), |asked| {
        let head =
            format!("HTTP/1.1 201 X\r\nX-Auth-Token: t1\r\nLocation: {SESSIONS}/t1\r\nContent-Length: 100\r\n\r\n{{");
        match asked.method.as_str() {
            "POST" => Some(Told::Unfinished(head.into_bytes())),
            "DELETE" => Some(status(204)),
            _ => None,
        }
    })
    .await;
    let redfish = service.redfish_within(Bounds { call: Duration::from_millis(300), ..bounds() });
    assert!(matches!(redfish.power().await, Err(BmcError::Unreachable(_))));
    redfish.close().await.unwrap();
    assert_eq!(service.count("DELETE", &format!("{SESSIONS}/t1")), 1);
}

#[tokio::test]
async fn an_echoed_token_is_not_told() {
    let service = Service::of(with_sessions(), |asked| match asked.method.as_str() {
        "POST" => Some(session("t0ken")),
        "GET" if asked.is("GET", "/redfish/v1/Systems/1") => {
            Some(Told::Json(400, Vec::new(), json!({"error": {"message": "t0ken of hunter2 is odd"}})))
        }
        _ => None,
    })
    .await;
    let error = service.redfish().power().await.unwrap_err();
    assert!(!error.to_string().contains("t0ken"), "{error}");
}

#[tokio::test]
async fn refused_sessions_fall_back_to_basic_authentication() {
    for refusal in [404, 405, 500, 503] {
        let service = Service::of(with_sessions(), move |asked| {
            let is_in = asked.header("authorization") == Some("Basic cm9vdDpodW50ZXIy");
            match (asked.is("POST", SESSIONS), is_in || asked.is("GET", "/redfish/v1")) {
                (true, _) => Some(status(refusal)),
                (false, true) => None,
                (false, false) => Some(status(401)),
            }
        })
        .await;
        assert_eq!(service.redfish().power().await, Ok(Power::On), "{refusal}");
    }
}

#[tokio::test]
async fn a_wrong_password_is_tried_once() {
    let service = Service::of(with_sessions(), |asked| {
        let wrong = || Told::Json(401, Vec::new(), json!({"error": {"message": "hunter2 is wrong"}}));
        (!asked.is("GET", "/redfish/v1")).then(wrong)
    })
    .await;
    let error = service.redfish().power().await.unwrap_err();
    assert_eq!(error, BmcError::Denied(format!("{SESSIONS}: 401 [password] is wrong")));
    assert_eq!(service.lines(), ["GET /redfish/v1/".to_owned(), format!("POST {SESSIONS}")]);
}

#[tokio::test]
async fn a_wrong_password_of_ilo_is_tried_once() {
    let told = json!({"error": {"@Message.ExtendedInfo": [{"MessageId": "iLO.2.14.UnauthorizedLoginAttempt"}]}});
    let service = Service::of(with_sessions(), move |asked| {
        asked.is("POST", SESSIONS).then(|| Told::Json(400, Vec::new(), told.clone()))
    })
    .await;
    assert!(matches!(service.redfish().power().await, Err(BmcError::Denied(_))));
    assert_eq!(service.lines().len(), 2);
}

#[tokio::test]
async fn what_is_printed_has_no_secret() {
    let service = Service::of(with_sessions(), |asked| asked.is("POST", SESSIONS).then(|| session("t0ken"))).await;
    let redfish = service.redfish();
    redfish.power().await.unwrap();
    let printed = format!("{redfish:?}");
    assert!(!printed.contains("hunter2") && !printed.contains("t0ken"), "{printed}");
}

#[tokio::test]
async fn a_busy_service_is_asked_again_within_bounds() {
    let busy = |asked: &Asked| asked.is("GET", "/redfish/v1").then(|| headed(503, "Retry-After", "0"));
    let service = Service::of(machine(json!({})), busy).await;
    let error = service.redfish().power().await.unwrap_err();
    assert!(matches!(error, BmcError::Unreachable(_)), "{error}");
    assert_eq!(service.lines().len(), 3);
}

// Changes.

#[tokio::test]
async fn power_without_an_actions_block_is_set_at_the_standard_place() {
    let service = Service::of(machine(json!({})), |asked| (asked.method == "POST").then(|| status(204))).await;
    service.redfish().set_power(Power::Off).await.unwrap();
    assert_eq!(service.count("POST", "/redfish/v1/Systems/1/Actions/ComputerSystem.Reset"), 1);
    assert_eq!(service.last("POST"), json!({"ResetType": "ForceOff"}));
}

#[tokio::test]
async fn power_that_is_as_wanted_is_left_alone() {
    let service = Service::of(machine(json!({})), plain).await;
    service.redfish().set_power(Power::On).await.unwrap();
    assert!(service.asked().iter().all(|asked| asked.method == "GET"));
}

#[tokio::test]
async fn a_resource_that_changed_meanwhile_is_read_again_once() {
    let tree = machine(json!({"/redfish/v1/Systems/1": {"IndicatorLED": "Off"}}));
    let system = tree["/redfish/v1/Systems/1"].clone();
    let service = Service::of(tree, move |asked| match asked.method.as_str() {
        "GET" if asked.is("GET", "/redfish/v1/Systems/1") => {
            Some(Told::Json(200, vec![("ETag", "W/\"7\"".to_owned())], system.clone()))
        }
        "PATCH" => Some(status(if asked.header("if-match") == Some("\"7\"") { 204 } else { 412 })),
        _ => None,
    })
    .await;
    service.redfish().identify(Duration::from_secs(60)).await.unwrap();
    let asked = service.asked();
    let patches = asked.iter().filter(|asked| asked.method == "PATCH");
    assert_eq!(patches.map(|asked| asked.header("if-match").unwrap()).collect::<Vec<_>>(), ["W/\"7\"", "\"7\""]);
}

#[tokio::test]
async fn after_our_own_password_changed_the_new_one_is_used() {
    let tree = machine(json!({
        "/redfish/v1": {"AccountService": {"@odata.id": "/redfish/v1/AccountService"}},
        "/redfish/v1/AccountService": {"Accounts": {"@odata.id": "/redfish/v1/AccountService/Accounts"}},
        "/redfish/v1/AccountService/Accounts": {"Members": [{"@odata.id": "/redfish/v1/AccountService/Accounts/2"}]},
        "/redfish/v1/AccountService/Accounts/2": {"Id": "2", "UserName": "root", "RoleId": "Administrator", "Enabled": true},
    }));
    let password = Arc::new(Mutex::new("hunter2".to_owned()));
    let service = Service::of(tree, move |asked| {
        if asked.is("GET", "/redfish/v1") {
            return None;
        }
        let mut password = password.lock().unwrap();
        let expected = if *password == "hunter2" { "Basic cm9vdDpodW50ZXIy" } else { "Basic cm9vdDpodW50ZXIz" };
        if asked.header("authorization") != Some(expected) {
            return Some(status(401));
        }
        let wanted = asked.body["Password"].as_str()?;
        if wanted.len() < 7 {
            let message = format!("{wanted} is too short");
            return Some(well(json!({"@Message.ExtendedInfo": [{"Message": message, "Severity": "Critical"}]})));
        }
        *password = wanted.to_owned();
        Some(status(204))
    })
    .await;
    let redfish = service.redfish();
    let refused = redfish.set_password("root", "abc").await.unwrap_err().to_string();
    assert_eq!(refused, "refused: /redfish/v1/AccountService/Accounts/2: [password] is too short");
    redfish.set_password("root", "hunter3").await.unwrap();
    assert_eq!(redfish.power().await, Ok(Power::On));
    let accounts = redfish.accounts().await.unwrap().accounts;
    assert!(accounts.len() == 1 && accounts[0].is_administrator && accounts[0].is_enabled);
}

#[tokio::test]
async fn a_log_with_a_newer_entry_is_not_emptied() {
    let entry = |id: &str| json!({"@odata.id": format!("/redfish/v1/Logs/Sel/Entries/{id}"), "Id": id, "Message": "x"});
    let tree = machine(json!({
        "/redfish/v1/Systems/1": {"LogServices": {"@odata.id": "/redfish/v1/Logs"}},
        "/redfish/v1/Logs": {"Members": [{"@odata.id": "/redfish/v1/Logs/Lclog"}, {"@odata.id": "/redfish/v1/Logs/Sel"}]},
        "/redfish/v1/Logs/Lclog": {"Id": "Lclog"},
        "/redfish/v1/Logs/Sel": {"Id": "Sel", "MaxNumberOfRecords": 2, "Entries": {"@odata.id": "/redfish/v1/Logs/Sel/Entries"},
                                 "Actions": {"#LogService.ClearLog": {"target": "/redfish/v1/Logs/Sel/Clear"}}},
        "/redfish/v1/Logs/Sel/Entries": {"Members": [entry("2"), entry("1")]},
        "/redfish/v1/Logs/Sel/Clear": {},
    }));
    let service = Service::of(tree, plain).await;
    let redfish = service.redfish();
    let log = redfish.log().await.unwrap();
    assert!(log.has_overflowed);
    assert_eq!(log.entries.iter().map(|entry| entry.id.as_str()).collect::<Vec<_>>(), ["1", "2"]);
    assert!(matches!(redfish.clear_log(Some("1")).await, Err(BmcError::Refused(_))));
    assert_eq!(service.count("POST", "/redfish/v1/Logs/Sel/Clear"), 0);
    redfish.clear_log(Some("2")).await.unwrap();
    assert_eq!(service.count("POST", "/redfish/v1/Logs/Sel/Clear"), 1);
}

#[tokio::test]
async fn lenovo_without_insert_actions_has_its_media_patched() {
    let empty = json!({"MediaTypes": ["CD"], "Image": null, "Inserted": false, "Actions": {"Oem": {}}});
    let drive = Mutex::new(empty);
    let tree = machine(json!({
        "/redfish/v1/Managers/1": {"VirtualMedia": {"@odata.id": "/redfish/v1/Managers/1/VirtualMedia"}},
        "/redfish/v1/Managers/1/VirtualMedia": {"Members": [{"@odata.id": "/redfish/v1/Managers/1/VirtualMedia/Remote1"}]},
    }));
    let service = Service::of(tree, move |asked| {
        if !asked.path.ends_with("/Remote1") {
            return None;
        }
        let mut drive = drive.lock().unwrap();
        for (name, value) in asked.body.as_object().into_iter().flatten() {
            drive[name] = value.clone();
        }
        Some(well(drive.clone()))
    })
    .await;
    let redfish = service.redfish();
    let drives = redfish.virtual_media().await.unwrap();
    assert!(drives.len() == 1 && drives[0].is_cd() && !drives[0].is_inserted);
    redfish.insert_media(&drives[0].link, "http://192.0.2.1/a.iso").await.unwrap();
    assert!(redfish.virtual_media().await.unwrap()[0].is_inserted);
    redfish.eject_media(&drives[0].link).await.unwrap();
    assert!(!redfish.virtual_media().await.unwrap()[0].is_inserted);
}

#[tokio::test]
async fn media_that_stay_after_they_were_ejected_are_reported() {
    let tree = machine(json!({
        "/redfish/v1/Managers/1/Cd": {"Id": "Cd", "Image": "http://192.0.2.1/a.iso", "Inserted": true},
        "/redfish/v1/Managers/1/Cd/Actions/VirtualMedia.EjectMedia": {},
    }));
    let service = Service::of(tree, plain).await;
    let cd = Link::parse("/redfish/v1/Managers/1/Cd").unwrap();
    let error = service.redfish().eject_media(&cd).await.unwrap_err();
    assert!(matches!(&error, BmcError::Refused(why) if why.contains("did nothing")), "{error}");
}

#[tokio::test]
async fn an_image_is_pushed_and_its_task_waited_for() {
    let looks = Mutex::new(0);
    let tree = machine(json!({
        "/redfish/v1": {"UpdateService": {"@odata.id": "/redfish/v1/UpdateService"}},
        "/redfish/v1/UpdateService": {"MultipartHttpPushUri": "/redfish/v1/UpdateService/update-multipart"},
    }));
    let service = Service::of(tree, move |asked| {
        if asked.is("POST", "/redfish/v1/UpdateService/update-multipart") {
            return Some(headed(202, "Location", "/redfish/v1/TaskService/TaskMonitors/0"));
        }
        if !asked.path.contains("/TaskMonitors/") {
            return None;
        }
        let mut looks = looks.lock().unwrap();
        *looks += 1;
        Some(match *looks {
            1 => headed(202, "Retry-After", "0"),
            // The BMC restarts on the way.
            2 | 3 => Told::Raw(Vec::new()),
            4 => status(202),
            5 => well(json!({"TaskState": "Exception", "Messages": [{"Message": "Image is not signed"}]})),
            _ => well(json!({})),
        })
    })
    .await;
    let redfish = service.redfish();
    let task = redfish.update_with("bmc.tar", Bytes::from_static(b"\x7fELF"), &[]).await.unwrap().unwrap();
    let error = redfish.wait_for(&task).await.unwrap_err();
    assert_eq!(error, BmcError::Refused(format!("{task}: Image is not signed")));
    redfish.wait_for(&task).await.unwrap();
    let body = service.last("POST").as_str().unwrap().to_owned();
    assert!(body.contains("name=\"UpdateFile\"; filename=\"bmc.tar\""), "{body}");
}

#[tokio::test]
async fn one_subscription_is_had_below_a_base_and_nobody_elses_is_touched() {
    const ALL: &str = "/redfish/v1/EventService/Subscriptions";
    let of = |number: u32, destination: &str| json!({ "@odata.id": format!("{ALL}/{number}"), "Destination": destination, "Context": "x" });
    let there = Arc::new(Mutex::new(vec![
        of(1, "https://192.0.2.9/other"),
        of(2, "https://192.0.2.1/events/of-a-process-before"),
        of(3, "https://192.0.2.1/events/of-another"),
    ]));
    let tree = machine(json!({
        "/redfish/v1": {"EventService": {"@odata.id": "/redfish/v1/EventService"}},
        "/redfish/v1/EventService": {"Subscriptions": {"@odata.id": ALL}},
    }));
    let kept = there.clone();
    let service = Service::of(tree, move |asked| {
        let rest = asked.path.strip_prefix(ALL)?;
        let mut there = kept.lock().unwrap();
        match (asked.method.as_str(), rest) {
            ("POST", "") => {
                let mut made = asked.body.clone();
                let at = format!("{ALL}/9");
                made["@odata.id"] = json!(at);
                there.push(made);
                Some(headed(201, "Location", &at))
            }
            ("DELETE", _) => {
                there.retain(|one| one["@odata.id"] != asked.path);
                Some(headed(204, "Allow", "GET"))
            }
            _ => Some(well(json!({ "Members": there.clone() }))),
        }
    })
    .await;
    let destinations = || {
        let there = there.lock().unwrap();
        there.iter().map(|one| one["Destination"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let (redfish, base) = (service.redfish(), "https://192.0.2.1/events/");
    for _ in 0..2 {
        redfish.subscribe(base, "fresh").await.unwrap();
        assert_eq!(destinations(), ["https://192.0.2.9/other", "https://192.0.2.1/events/fresh"]);
    }
    assert_eq!(service.count("POST", ALL), 1);
    redfish.unsubscribe(base).await.unwrap();
    assert_eq!(destinations(), ["https://192.0.2.9/other"]);
    let without = Service::of(machine(json!({})), |_| None).await;
    let refused = without.redfish().subscribe(base, "fresh").await;
    assert!(matches!(refused, Err(BmcError::Unsupported(_))), "{refused:?}");
}

#[tokio::test]
async fn members_are_expanded_where_that_works() {
    let member = "/redfish/v1/Memory/1";
    let tree = machine(json!({
        "/redfish/v1": {"ProtocolFeaturesSupported": {"ExpandQuery": {"NoLinks": true, "Levels": true}}},
        "/redfish/v1/Systems/1": {"Memory": {"@odata.id": "/redfish/v1/Memory"}},
        "/redfish/v1/Memory": {"Members": [{"@odata.id": member}]},
        member: {"Name": "A1"},
    }));
    for works in [true, false] {
        let service = Service::of(tree.clone(), move |asked| match asked.path.as_str() {
            "/redfish/v1/Memory?$expand=.($levels=1)" if works => {
                Some(well(json!({"Members": [{"@odata.id": member, "Name": "A1"}]})))
            }
            path if path.contains("$expand") => Some(status(501)),
            _ => None,
        })
        .await;
        let parts = service.redfish().parts().await.unwrap().parts;
        assert!(parts.iter().any(|part| part.slot == "A1"), "{parts:?}");
        assert_eq!(service.count("GET", member), usize::from(!works));
    }
}

// Vendors.

#[tokio::test]
async fn idrac_gets_accounts_into_its_empty_places() {
    let tree = machine(json!({
        "/redfish/v1": {"AccountService": {"@odata.id": "/redfish/v1/AccountService"}},
        "/redfish/v1/AccountService": {"Accounts": {"@odata.id": "/redfish/v1/Accounts"}},
        "/redfish/v1/Accounts": {"Members": [{"@odata.id": "/redfish/v1/Accounts/1"},
            {"@odata.id": "/redfish/v1/Accounts/2"}, {"@odata.id": "/redfish/v1/Accounts/3"}]},
        "/redfish/v1/Accounts/1": {"Id": "1", "UserName": ""},
        "/redfish/v1/Accounts/2": {"Id": "2", "UserName": "root", "RoleId": "Administrator"},
        "/redfish/v1/Accounts/3": {"Id": "3", "UserName": ""},
    }));
    let service =
        Service::of(tree, |asked| matches!(asked.method.as_str(), "POST" | "DELETE").then(|| status(405))).await;
    let redfish = service.redfish();
    let new = Credentials { user: "rack".to_owned(), password: Zeroizing::new("s3cret".to_owned()) };
    redfish.create_account(&new, true).await.unwrap();
    assert_eq!(service.count("PATCH", "/redfish/v1/Accounts/3"), 1);
    assert_eq!(service.last("PATCH")["UserName"], "rack");
    redfish.delete_account("root").await.unwrap();
    assert_eq!(service.last("PATCH"), json!({"UserName": "", "Enabled": false}));
    redfish.enable_account("root", false).await.unwrap();
    assert_eq!(service.last("PATCH"), json!({"Enabled": false}));
    assert!(matches!(redfish.enable_account("nobody", true).await, Err(BmcError::Unsupported(_))));
}

#[tokio::test]
async fn idrac_gets_its_bios_attributes_by_its_settings() {
    let tree = machine(json!({
        "/redfish/v1/Systems/1": {"Bios": {"@odata.id": "/redfish/v1/Systems/1/Bios"}},
        "/redfish/v1/Systems/1/Bios": {"Attributes": {"BootMode": "Bios", "NumLock": "On", "Retries": 3},
            "@Redfish.Settings": {"SettingsObject": {"@odata.id": "/redfish/v1/Systems/1/Bios/Settings"}, "SupportedApplyTimes": ["OnReset"]}},
        "/redfish/v1/Systems/1/Bios/Settings": {"Attributes": {"BootMode": "Uefi", "NumLock": "On"}},
    }));
    let service = Service::of(tree, plain).await;
    let redfish = service.redfish();
    let bios = redfish.bios().await.unwrap();
    assert_eq!(bios.attributes.len(), 3);
    assert_eq!(bios.pending, BTreeMap::from([("BootMode".to_owned(), Attribute::Text("Uefi".to_owned()))]));
    redfish.set_bios(&BTreeMap::from([("Retries".to_owned(), Attribute::Number(5.0))])).await.unwrap();
    assert_eq!(service.count("PATCH", "/redfish/v1/Systems/1/Bios/Settings"), 1);
    let sent = json!({"Attributes": {"Retries": 5}, "@Redfish.SettingsApplyTime": {"ApplyTime": "OnReset"}});
    assert_eq!(service.last("PATCH"), sent);
    let unknown = BTreeMap::from([("Nope".to_owned(), Attribute::Flag(true))]);
    assert_eq!(redfish.set_bios(&unknown).await, Err(BmcError::Refused("the BIOS has no attribute Nope".to_owned())));
    redfish.reset_secure_boot_keys(ResetKeys::Default).await.unwrap_err();
}

#[tokio::test]
async fn supermicro_with_simple_storage_is_read() {
    let tree = machine(json!({
        "/redfish/v1/Systems/1": {"Manufacturer": "Supermicro", "Model": "SYS-6019U", "SerialNumber": "A263",
            "Processors": {"@odata.id": "/redfish/v1/Systems/1/Processors"},
            "SimpleStorage": {"@odata.id": "/redfish/v1/Systems/1/SimpleStorage"}},
        "/redfish/v1/Systems/1/Processors": {"Members": [{"@odata.id": "/redfish/v1/Systems/1/Processors/1"}]},
        "/redfish/v1/Systems/1/Processors/1": {"Id": "1", "Socket": "CPU1", "TotalCores": 20, "SerialNumber": "N/A"},
        "/redfish/v1/Systems/1/SimpleStorage": {"Members": [{"@odata.id": "/redfish/v1/Systems/1/SimpleStorage/1"}]},
        "/redfish/v1/Systems/1/SimpleStorage/1": {"Devices": [{"Name": "SATA 0", "CapacityBytes": 240_057_409_536_u64}, {}]},
        "/redfish/v1/Managers/1": {"Model": "ASPEED", "EthernetInterfaces": {"@odata.id": "/redfish/v1/Managers/1/EthernetInterfaces"}},
        "/redfish/v1/Managers/1/EthernetInterfaces": {"Members": [{"@odata.id": "/redfish/v1/Managers/1/EthernetInterfaces/1"}]},
        "/redfish/v1/Managers/1/EthernetInterfaces/1": {"MACAddress": "AC:1F:6B:00:00:01",
            "IPv4Addresses": [{"Address": "192.0.2.8", "SubnetMask": "255.255.0.0", "AddressOrigin": "DHCP"}]},
        "/redfish/v1/Chassis/1": {"Thermal": {"@odata.id": "/redfish/v1/Chassis/1/Thermal"}, "Power": {"@odata.id": "/redfish/v1/Chassis/1/Power"}},
        "/redfish/v1/Chassis/1/Thermal": {"Temperatures": [{"Name": "CPU1 Temp", "ReadingCelsius": 38}, {"Name": "CPU2 Temp", "ReadingCelsius": null}],
            "Fans": [{"Name": "FAN1", "Reading": 5300, "ReadingUnits": "RPM"}]},
        "/redfish/v1/Chassis/1/Power": {"Voltages": [{"Name": "12V", "ReadingVolts": 12.1}], "PowerSupplies": {}},
    }));
    check(
        tree,
        expect![[r#"
        Some("Supermicro") Some("SYS-6019U") Some("A263") Some("ASPEED")
        CPU1 Temp Temperature Some(38.0) None
        CPU2 Temp Temperature None None
        FAN1 Fan Some(5300.0) None
        12V Voltage Some(12.1) None
        Processor CPU1 Some("N/A") Some(20) []
        Drive SATA 0 None Some(240057409536) []
        Chassis Chassis None None []
        Fan FAN1 None None []
        Ok(([(192.0.2.8, 16)], Some(true)))
    "#]],
    )
    .await;
}

async fn check(tree: Value, expected: Expect) {
    let service = Service::of(tree, plain).await;
    let redfish = service.redfish();
    let identity = redfish.identity().await.unwrap();
    let mut told = format!("{:?} {:?} {:?} {:?}\n", identity.vendor, identity.model, identity.serial, identity.manager);
    let sensors = redfish.sensors().await.unwrap();
    for reading in sensors.readings {
        told += &format!("{} {:?} {:?} {:?}\n", reading.name, reading.kind, reading.value, reading.severity);
    }
    let parts = redfish.parts().await.unwrap();
    for part in parts.parts {
        told += &format!("{:?} {} {:?} {:?} {:?}\n", part.kind, part.slot, part.serial, part.size, part.macs);
    }
    for skipped in sensors.skipped.iter().chain(&parts.skipped) {
        told += &format!("skipped {}: {}\n", skipped.place, skipped.why);
    }
    told += &format!("{:?}\n", redfish.lan().await.map(|lan| (lan.addresses, lan.is_dhcp)));
    expected.assert_eq(&told);
}

#[tokio::test]
async fn openbmc_with_both_schemas_is_read_once_and_expanded() {
    let tree = machine(json!({
        "/redfish/v1": {"ProtocolFeaturesSupported": {"ExpandQuery": {"NoLinks": true, "Levels": true, "MaxLevels": 2}}},
        "/redfish/v1/Systems/1": {"Manufacturer": "Tyan", "Model": "S7106", "SerialNumber": "", "UUID": null,
            "EthernetInterfaces": {"@odata.id": "/redfish/v1/Systems/1/EthernetInterfaces"}},
        "/redfish/v1/Systems/1/EthernetInterfaces": {"Members": [
            {"@odata.id": "/redfish/v1/Systems/1/EthernetInterfaces/0", "Name": "hostusb0", "MACAddress": "02:00:00:00:00:01"}]},
        "/redfish/v1/Managers/1": {"Model": "OpenBmc", "EthernetInterfaces": {"@odata.id": "/redfish/v1/Managers/1/EthernetInterfaces"}},
        "/redfish/v1/Managers/1/EthernetInterfaces": {"Members": [{"@odata.id": "/redfish/v1/Managers/1/EthernetInterfaces/eth0",
            "Id": "eth0", "DHCPv4": {"DHCPEnabled": false}, "IPv4Addresses": [{"Address": "192.0.2.7", "SubnetMask": "255.255.255.0"}]}]},
        "/redfish/v1/Chassis/1": {
            "Sensors": {"@odata.id": "/redfish/v1/Chassis/1/Sensors"}, "Thermal": {"@odata.id": "/redfish/v1/Chassis/1/Thermal"},
            "Power": {"@odata.id": "/redfish/v1/Chassis/1/Power"},
            "ThermalSubsystem": {"@odata.id": "/redfish/v1/Chassis/1/ThermalSubsystem"}},
        "/redfish/v1/Chassis/1/Sensors": {"Members": [
            {"@odata.id": "/redfish/v1/Chassis/1/Sensors/t", "Name": "Inlet", "Reading": 22.5, "ReadingType": "Temperature"},
            {"@odata.id": "/redfish/v1/Chassis/1/Sensors/f", "Name": "Fan 1", "Reading": 4000, "ReadingType": "Rotational"}]},
        "/redfish/v1/Chassis/1/ThermalSubsystem": {"Fans": {"@odata.id": "/redfish/v1/Chassis/1/ThermalSubsystem/Fans"}},
        "/redfish/v1/Chassis/1/ThermalSubsystem/Fans": {"Members": [
            {"@odata.id": "/redfish/v1/Chassis/1/ThermalSubsystem/Fans/1", "Name": "Fan 1"}]},
        "/redfish/v1/Chassis/1/Thermal": {"Temperatures": [{"Name": "Inlet Temp", "ReadingCelsius": 22}], "Fans": [{"Name": "Fan1", "Reading": 1}]},
        "/redfish/v1/Chassis/1/Power": {"PowerControl": [{"Name": "Chassis Power", "PowerConsumedWatts": 120}],
            "PowerSupplies": [{"Name": "PSU1", "SerialNumber": "P1", "Status": {"Health": "OK"}}]},
    }));
    check(
        tree,
        expect![[r#"
        Some("Tyan") Some("S7106") None Some("OpenBmc")
        Inlet Temperature Some(22.5) None
        Fan 1 Fan Some(4000.0) None
        Chassis Power Power Some(120.0) None
        PSU1 PowerSupply None Some(Ok)
        Chassis Chassis None None []
        PowerSupply PSU1 Some("P1") None []
        Fan Fan 1 None None []
        Nic hostusb0 None None [02:00:00:00:00:01]
        Ok(([(192.0.2.7, 24)], Some(false)))
    "#]],
    )
    .await;
}

#[tokio::test]
async fn ilo_with_the_older_schemas_is_read() {
    let adapter = "/redfish/v1/Chassis/1/NetworkAdapters/DC07";
    let tree = machine(json!({
        "/redfish/v1/Systems/1": {"Manufacturer": "HPE", "Model": "ProLiant DL360 Gen10", "SerialNumber": "CZJ1234567 ",
            "Memory": {"@odata.id": "/redfish/v1/Systems/1/Memory/"}, "Storage": {"@odata.id": "/redfish/v1/Systems/1/Storage/"}},
        "/redfish/v1/Managers/1": {"Model": "iLO 5"},
        "/redfish/v1/Systems/1/Memory": {"Members": [{"@odata.id": "/redfish/v1/Systems/1/Memory/proc1dimm1/"},
            {"@odata.id": "/redfish/v1/Systems/1/Memory/proc1dimm2/"}]},
        "/redfish/v1/Systems/1/Memory/proc1dimm1": {"DeviceLocator": "PROC 1 DIMM 1", "CapacityMiB": 16384, "SerialNumber": "M1"},
        "/redfish/v1/Systems/1/Memory/proc1dimm2": {"DeviceLocator": "PROC 1 DIMM 2", "CapacityMiB": 0, "Status": {"State": "Absent"}},
        "/redfish/v1/Systems/1/Storage": {"Members": [{"@odata.id": "/redfish/v1/Systems/1/Storage/DA000000/"}]},
        "/redfish/v1/Systems/1/Storage/DA000000": {"Drives": [{"@odata.id": "/redfish/v1/Systems/1/Storage/DA000000/Drives/0/"}],
            "StorageControllers": [{"MemberId": "0", "Name": "NVMe", "SerialNumber": null}]},
        "/redfish/v1/Systems/1/Storage/DA000000/Drives/0": {"Name": "1TB NVMe", "CapacityBytes": 1_000_000_000_000_u64, "SerialNumber": "D1"},
        "/redfish/v1/Chassis/1": {"Thermal": {"@odata.id": "/redfish/v1/Chassis/1/Thermal/"}, "Power": {"@odata.id": "/redfish/v1/Chassis/1/Power/"},
            "NetworkAdapters": {"@odata.id": "/redfish/v1/Chassis/1/NetworkAdapters/"}},
        "/redfish/v1/Chassis/1/Thermal": {
            "Temperatures": [{"Name": "01-Inlet Ambient", "ReadingCelsius": 21, "Status": {"Health": "OK", "State": "Enabled"}}],
            "Fans": [{"Name": "Fan 1", "Reading": 14, "ReadingUnits": "Percent", "Status": {"Health": "OK", "State": "Enabled"}}]},
        "/redfish/v1/Chassis/1/Power": {"PowerControl": [{"MemberId": "0", "PowerConsumedWatts": 90}],
            "PowerSupplies": [null, {"Name": "HpeServerPowerSupply", "SerialNumber": "P1"}]},
        "/redfish/v1/Chassis/1/NetworkAdapters": {"Members": [{"@odata.id": adapter}]},
        adapter: {"Name": "HPE Ethernet 1Gb 2-port", "NetworkPorts": {"@odata.id": format!("{adapter}/NetworkPorts")}},
        format!("{adapter}/NetworkPorts"): {"Members": [
            {"@odata.id": format!("{adapter}/NetworkPorts/1")}, {"@odata.id": format!("{adapter}/NetworkPorts/2")}]},
        format!("{adapter}/NetworkPorts/1"): {"AssociatedNetworkAddresses": ["AA:BB:CC:00:00:01"]},
        format!("{adapter}/NetworkPorts/2"): {"AssociatedNetworkAddresses": ["AA:BB:CC:00:00:02", "00:00:00:00:00:00"]},
    }));
    check(
        tree,
        expect![[r#"
        Some("HPE") Some("ProLiant DL360 Gen10") Some("CZJ1234567") Some("iLO 5")
        01-Inlet Ambient Temperature Some(21.0) Some(Ok)
        Fan 1 FanPercent Some(14.0) Some(Ok)
        0 Power Some(90.0) None
        HpeServerPowerSupply PowerSupply None None
        Memory PROC 1 DIMM 1 Some("M1") Some(17179869184) []
        Memory PROC 1 DIMM 2 None Some(0) []
        Card NVMe None None []
        Drive 1TB NVMe Some("D1") Some(1000000000000) []
        Chassis Chassis None None []
        Nic HPE Ethernet 1Gb 2-port None None [aa:bb:cc:00:00:01, aa:bb:cc:00:00:02]
        PowerSupply HpeServerPowerSupply Some("P1") None []
        Fan Fan 1 None None []
        Err(Unsupported("it shows no network of its own"))
    "#]],
    )
    .await;
}

#[tokio::test]
async fn a_service_of_nulls_is_read() {
    let names = ["Manufacturer", "Model", "UUID", "Memory", "Processors", "Storage", "Links", "Boot", "Actions"];
    let nulls: BTreeMap<&str, Value> = names.into_iter().map(|name| (name, Value::Null)).collect();
    let tree = machine(json!({
        "/redfish/v1/Systems/1": nulls,
        "/redfish/v1/Chassis/1": {"Name": null, "Id": null, "Thermal": null, "Power": [], "Sensors": {}},
        "/redfish/v1/Managers/1": {"FirmwareVersion": null, "EthernetInterfaces": null},
    }));
    check(
        tree,
        expect![[r#"
        None None None None
        Err(Unsupported("it shows no network of its own"))
    "#]],
    )
    .await;
}
