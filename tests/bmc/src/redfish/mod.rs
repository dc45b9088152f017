//! Redfish (DSP0266): [`Service`] answers a request, without a socket; [`serve`] is its socket.
//! [`tree`] is what a GET shows.
//!
//! Without authentication one sees the versions, the root, the metadata, and can make a session.
//! [`deliver`] posts events. Not there: `$expand` and other queries, XML beyond the metadata.

mod act;
pub(crate) mod deliver;
mod form;
mod tree;

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Response, StatusCode, body::Incoming, header, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    task::{JoinSet, spawn_blocking},
};
use tokio_rustls::TlsAcceptor;

use self::tree::View;
use crate::{Bmc, chassis::Chassis, personality::Role, state::State};

/// After how long a session that is not used ends.
pub(crate) const IDLE: SignedDuration = SignedDuration::from_secs(1800);

/// How many sessions there may be.
pub const SESSIONS: usize = 16;

/// The most bytes of a body that are read.
const MAX_BODY: usize = 1 << 20;

/// A session of someone logged in.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub(crate) id: u32,
    token: String,
    pub(crate) user: String,
    used: Timestamp,
}

/// A request, as far as it matters.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// GET, HEAD, POST, PATCH or DELETE.
    pub method: Method,
    /// Path, without the query.
    pub path: String,
    /// Query.
    pub query: String,
    /// `X-Auth-Token`.
    pub token: Option<String>,
    /// `Authorization`.
    pub authorization: Option<String>,
    /// `If-Match`.
    pub if_match: Option<String>,
    /// `If-None-Match`.
    pub if_none_match: Option<String>,
    /// `OData-Version`.
    pub odata_version: Option<String>,
    /// `Content-Type`.
    pub content_type: Option<String>,
    /// Body.
    pub body: Vec<u8>,
}

/// An answer.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    /// Status.
    pub status: u16,
    /// Headers beyond those every answer has.
    pub headers: Vec<(&'static str, String)>,
    /// Body, if it is JSON.
    pub body: Option<Value>,
    /// Body, if it is XML.
    pub xml: Option<String>,
}

/// Who asks.
struct Caller {
    role: Role,
    user: String,
}

/// The Redfish side of a BMC.
#[derive(Debug, Default)]
pub struct Service {
    sessions: Vec<Session>,
    last: u32,
    restarts: u64,
}

impl Reply {
    fn ok(body: Value) -> Self {
        Self { status: 200, body: Some(body), ..Self::default() }
    }

    fn empty() -> Self {
        Self { status: 204, ..Self::default() }
    }

    /// An error with its message of the Base registry.
    fn error(status: u16, message: &str, text: &str, arguments: &[&str]) -> Self {
        let id = format!("Base.1.16.0.{message}");
        let severity = if status >= 500 { "Critical" } else { "Warning" };
        let body = json!({ "error": {
            "code": id, "message": text,
            "@Message.ExtendedInfo": [{
                "@odata.type": "#Message.v1_1_2.Message", "MessageId": id, "Message": text,
                "MessageArgs": arguments, "MessageSeverity": severity, "Severity": severity, "Resolution": "None.",
            }],
        } });
        Self { status, body: Some(body), ..Self::default() }
    }

    fn not_found(path: &str) -> Self {
        let text = format!("The requested resource of type Resource named '{path}' was not found.");
        Self::error(404, "ResourceNotFound", &text, &["Resource", path])
    }

    fn forbidden() -> Self {
        Self::error(403, "InsufficientPrivilege", "There are insufficient privileges for the account.", &[])
    }

    fn malformed() -> Self {
        Self::error(400, "MalformedJSON", "The request body submitted was malformed JSON.", &[])
    }

    fn missing(property: &str) -> Self {
        let text = format!("The property {property} is a required property and must be included in the request.");
        Self::error(400, "PropertyMissing", &text, &[property])
    }

    fn value(property: &str, value: &str) -> Self {
        let text = format!("The value '{value}' for the property {property} is not in the list of acceptable values.");
        Self::error(400, "PropertyValueNotInList", &text, &[value, property])
    }

    fn unknown(property: &str) -> Self {
        let text = format!("The property {property} is not in the list of valid properties for the resource.");
        Self::error(400, "PropertyUnknown", &text, &[property])
    }

    fn read_only(property: &str) -> Self {
        let text = format!("The property {property} is a read-only property and cannot be assigned a value.");
        Self::error(400, "PropertyNotWritable", &text, &[property])
    }
}

/// Weak tag of a resource as it is.
fn etag(body: &Value) -> String {
    // Clocks are no change.
    let mut body = body.clone();
    if let Value::Object(members) = &mut body {
        members.remove("DateTime");
    }
    format!("W/\"{}\"", hex::encode(&Sha256::digest(body.to_string())[..8]))
}

fn base64(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| -> Option<u32> {
        Some(
            match byte {
                b'A'..=b'Z' => byte - b'A',
                b'a'..=b'z' => byte - b'a' + 26,
                b'0'..=b'9' => byte - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            }
            .into(),
        )
    };
    let mut bytes = Vec::new();
    for chunk in text.trim_end_matches('=').as_bytes().chunks(4) {
        let bits = chunk.iter().try_fold(0, |bits, byte| Some(bits << 6 | digit(*byte)?))?;
        let whole = (bits << (6 * (4 - chunk.len()))).to_be_bytes();
        bytes.extend(&whole[1..chunk.len()]);
    }
    Some(bytes)
}

impl Service {
    /// Answers one request, or nothing: then the connection ends. `random` is used once.
    pub fn answer(
        &mut self,
        now: Timestamp,
        state: &mut State,
        chassis: &dyn Chassis,
        random: [u8; 16],
        request: &Request,
    ) -> Option<Reply> {
        state.requests += 1;
        if std::mem::replace(&mut self.restarts, state.restarts) != state.restarts {
            self.sessions.clear();
        }
        if state.is_silent(now) {
            return None;
        }
        if state.faults.busy {
            let text = "The service is temporarily unavailable. Retry in 5 seconds.";
            let mut busy = Reply::error(503, "ServiceTemporarilyUnavailable", text, &["5"]);
            busy.headers.push(("Retry-After", "5".into()));
            return Some(busy);
        }
        self.sessions.retain(|session| session.used + IDLE > now);
        state.pass(now, chassis);
        self.route(now, state, chassis, random, request)
    }

    fn route(
        &mut self,
        now: Timestamp,
        state: &mut State,
        chassis: &dyn Chassis,
        random: [u8; 16],
        request: &Request,
    ) -> Option<Reply> {
        if request.odata_version.as_deref().is_some_and(|version| version != "4.0") {
            return Some(Reply::error(412, "PreconditionFailed", "The OData version is not supported.", &[]));
        }
        if request.query.split('&').any(|parameter| parameter.starts_with('$')) {
            let text = "A query parameter that was specified is not supported.";
            return Some(Reply::error(501, "QueryNotSupported", text, &[]));
        }
        let path = request.path.trim_end_matches('/');
        let parts: Vec<_> = path.strip_prefix("/redfish/v1").unwrap_or_default().split('/').skip(1).collect();
        let is_read = matches!(request.method, Method::GET | Method::HEAD);
        if state.faults.redirects && parts.len() > 1 {
            let headers = vec![("Location", format!("https://192.0.2.1{path}"))];
            return Some(Reply { status: 307, headers, ..Reply::default() });
        }
        match path {
            "/redfish" if is_read => return Some(Reply::ok(json!({ "v1": "/redfish/v1/" }))),
            "/redfish/v1/odata" if is_read => return Some(Reply::ok(service_document())),
            "/redfish/v1/$metadata" if is_read => {
                return Some(Reply { status: 200, xml: Some(metadata()), ..Reply::default() });
            }
            "/redfish/v1/SessionService/Sessions" | "/redfish/v1/SessionService/Sessions/Members"
                if request.method == Method::POST =>
            {
                return Some(self.log_in(now, state, random, request));
            }
            _ if !path.starts_with("/redfish/v1") => return Some(Reply::not_found(path)),
            _ => {}
        }
        let caller = self.caller(now, state, request);
        if caller.is_none() && !(parts.is_empty() && is_read) {
            let text = "The service could not authenticate the request.";
            let mut refused = Reply::error(401, "NoValidSession", text, &[]);
            refused.headers.push(("WWW-Authenticate", "Basic realm=\"Redfish\"".into()));
            return Some(refused);
        }
        let is_on = chassis.power();
        let shown = View { now, state, is_on, sessions: &self.sessions }.get(&parts);
        if is_read {
            let Some(mut body) = shown else { return Some(Reply::not_found(path)) };
            let tag = etag(&body);
            body["@odata.etag"] = json!(tag);
            let is_known = request.if_none_match.as_deref() == Some(&tag);
            let mut reply = if is_known { Reply { status: 304, ..Reply::default() } } else { Reply::ok(body) };
            reply.headers.push(("ETag", tag));
            reply.headers.push(("Allow", allowed(&parts).into()));
            return Some(reply);
        }
        let caller = caller?;
        if let Some(body) = &shown {
            let needs = state.personality.quirks.needs_etag && request.method == Method::PATCH;
            match &request.if_match {
                Some(tag) if tag != "*" && *tag != etag(body) => {
                    let text = "The ETag supplied did not match the ETag required to change this resource.";
                    return Some(Reply::error(412, "PreconditionFailed", text, &[]));
                }
                None if needs => {
                    let text = "A precondition header or annotation is required to change this resource.";
                    return Some(Reply::error(428, "PreconditionRequired", text, &[]));
                }
                _ => {}
            }
        }
        self.act(now, state, chassis, &caller, request, &parts, shown.is_some())
    }

    /// Who asks, by token or by name and password.
    fn caller(&mut self, now: Timestamp, state: &State, request: &Request) -> Option<Caller> {
        if let Some(token) = &request.token {
            let session = self.sessions.iter_mut().find(|session| session.token == *token)?;
            session.used = now;
            let (_, user) = state.user(&session.user).filter(|(_, user)| user.is_enabled)?;
            return Some(Caller { role: user.role.filter(|role| *role > Role::None)?, user: session.user.clone() });
        }
        let basic = request.authorization.as_deref()?.strip_prefix("Basic ")?;
        let pair = base64(basic.trim())?;
        let colon = pair.iter().position(|byte| *byte == b':')?;
        let user = String::from_utf8(pair[..colon].to_vec()).ok()?;
        Some(Caller { role: state.log_in(&user, &pair[colon + 1..])?, user })
    }

    fn log_in(&mut self, now: Timestamp, state: &State, random: [u8; 16], request: &Request) -> Reply {
        let Ok(body) = serde_json::from_slice::<Value>(&request.body) else { return Reply::malformed() };
        let Some(user) = body["UserName"].as_str() else { return Reply::missing("UserName") };
        let Some(password) = body["Password"].as_str() else { return Reply::missing("Password") };
        if state.log_in(user, password.as_bytes()).is_none() {
            return Reply::error(401, "ResourceAtUriUnauthorized", "The user name or password is wrong.", &[]);
        }
        if self.sessions.len() >= SESSIONS || state.faults.no_sessions {
            let text =
                "The session establishment failed due to the number of simultaneous sessions exceeding the limit.";
            return Reply::error(503, "SessionLimitExceeded", text, &[]);
        }
        self.last += 1;
        let session = Session { id: self.last, token: hex::encode(random), user: user.to_owned(), used: now };
        let headers = vec![
            ("X-Auth-Token", session.token.clone()),
            ("Location", format!("/redfish/v1/SessionService/Sessions/{}", session.id)),
        ];
        let id = session.id.to_string();
        self.sessions.push(session);
        let view = View { now, state, is_on: false, sessions: &self.sessions };
        Reply { status: 201, headers, body: view.get(&["SessionService", "Sessions", &id]), xml: None }
    }
}

/// The methods a resource takes.
fn allowed(parts: &[&str]) -> &'static str {
    match parts {
        ["SessionService", "Sessions"] | ["EventService", "Subscriptions"] | ["AccountService", "Accounts"] => {
            "GET, HEAD, POST"
        }
        ["Systems", _, "SecureBoot", "SecureBootDatabases", _, "Certificates" | "Signatures"] => "GET, HEAD, POST",
        ["SessionService", "Sessions", _]
        | ["EventService", "Subscriptions", _]
        | ["Systems", _, "SecureBoot", "SecureBootDatabases", _, "Certificates" | "Signatures", _] => {
            "GET, HEAD, DELETE"
        }
        ["AccountService", "Accounts", _] => "GET, HEAD, PATCH, DELETE",
        ["Systems", _]
        | ["Systems", _, "Bios", "Settings"]
        | ["Systems", _, "SecureBoot"]
        | ["Chassis", _]
        | ["Managers", _, "EthernetInterfaces", _] => "GET, HEAD, PATCH",
        _ => "GET, HEAD",
    }
}

fn service_document() -> Value {
    let services =
        ["Systems", "Chassis", "Managers", "SessionService", "AccountService", "UpdateService", "EventService"];
    let mut value = vec![json!({ "name": "Service", "kind": "Singleton", "url": "/redfish/v1/" })];
    value.extend(
        services.map(|name| json!({ "name": name, "kind": "Singleton", "url": format!("/redfish/v1/{name}") })),
    );
    json!({ "@odata.context": "/redfish/v1/$metadata", "value": value })
}

/// The schemas whose types are used, by reference to their publisher.
fn metadata() -> String {
    let plain = [
        "ComputerSystemCollection",
        "ChassisCollection",
        "ManagerCollection",
        "SessionCollection",
        "ProcessorCollection",
        "MemoryCollection",
        "StorageCollection",
        "EthernetInterfaceCollection",
        "LogServiceCollection",
        "LogEntryCollection",
        "ManagerAccountCollection",
        "RoleCollection",
        "SoftwareInventoryCollection",
        "TaskCollection",
        "EventDestinationCollection",
        "VirtualMediaCollection",
        "SensorCollection",
        "FanCollection",
        "PowerSupplyCollection",
        "SecureBootDatabaseCollection",
        "CertificateCollection",
        "SignatureCollection",
    ];
    let versioned = [
        ("ServiceRoot", "v1_15_0"),
        ("SessionService", "v1_1_8"),
        ("Session", "v1_6_0"),
        ("ComputerSystem", "v1_20_0"),
        ("Processor", "v1_18_0"),
        ("Memory", "v1_17_0"),
        ("Storage", "v1_15_0"),
        ("Drive", "v1_17_0"),
        ("EthernetInterface", "v1_9_0"),
        ("Bios", "v1_2_1"),
        ("Settings", "v1_3_5"),
        ("SecureBoot", "v1_1_1"),
        ("SecureBootDatabase", "v1_0_3"),
        ("Certificate", "v1_8_2"),
        ("Signature", "v1_0_3"),
        ("Chassis", "v1_23_0"),
        ("Thermal", "v1_7_1"),
        ("Power", "v1_7_1"),
        ("Sensor", "v1_7_0"),
        ("ThermalSubsystem", "v1_2_0"),
        ("Fan", "v1_4_0"),
        ("ThermalMetrics", "v1_1_0"),
        ("PowerSubsystem", "v1_1_0"),
        ("PowerSupply", "v1_5_0"),
        ("Manager", "v1_18_0"),
        ("VirtualMedia", "v1_6_2"),
        ("LogService", "v1_4_0"),
        ("LogEntry", "v1_15_0"),
        ("AccountService", "v1_13_0"),
        ("ManagerAccount", "v1_10_0"),
        ("Role", "v1_3_1"),
        ("UpdateService", "v1_12_0"),
        ("SoftwareInventory", "v1_9_0"),
        ("TaskService", "v1_2_0"),
        ("Task", "v1_7_2"),
        ("EventService", "v1_10_0"),
        ("EventDestination", "v1_13_1"),
        ("Message", "v1_1_2"),
    ];
    let reference = |schema: &str, includes: &str| {
        format!(
            "<edmx:Reference Uri=\"http://redfish.dmtf.org/schemas/v1/{schema}_v1.xml\">{includes}</edmx:Reference>\n"
        )
    };
    let include = |namespace: &str| format!("<edmx:Include Namespace=\"{namespace}\"/>");
    let mut xml = String::from(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<edmx:Edmx xmlns:edmx=\"http://docs.oasis-open.org/odata/ns/edmx\" Version=\"4.0\">\n",
    );
    xml.extend(plain.map(|schema| reference(schema, &include(schema))));
    xml.extend(
        versioned
            .map(|(schema, version)| reference(schema, &(include(schema) + &include(&format!("{schema}.{version}"))))),
    );
    xml += &reference("RedfishExtensions", "<edmx:Include Namespace=\"RedfishExtensions.v1_0_0\" Alias=\"Redfish\"/>");
    xml += "<edmx:DataServices><Schema xmlns=\"http://docs.oasis-open.org/odata/ns/edm\" Namespace=\"Service\"><EntityContainer Name=\"Service\" Extends=\"ServiceRoot.v1_15_0.ServiceContainer\"/></Schema></edmx:DataServices>\n</edmx:Edmx>\n";
    xml
}

/// A listener's shell: TLS or none, and the BMC behind.
pub(crate) async fn serve(listener: TcpListener, tls: Option<TlsAcceptor>, bmc: Arc<Bmc>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                let (tls, bmc) = (tls.clone(), bmc.clone());
                connections.spawn(async move {
                    match tls {
                        None => connection(stream, bmc).await,
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => connection(stream, bmc).await,
                            Err(error) => tracing::debug!(%error, "no TLS"),
                        },
                    }
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin, bmc: Arc<Bmc>) {
    let service = service_fn(|request| exchange(request, bmc.clone()));
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = served.await {
        tracing::debug!(%error, "a connection ended");
    }
}

async fn exchange(request: hyper::Request<Incoming>, bmc: Arc<Bmc>) -> io::Result<Response<Full<Bytes>>> {
    let (head, body) = request.into_parts();
    let header = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok()).map(String::from);
    let body = Limited::new(body, MAX_BODY).collect().await.map_err(io::Error::other)?;
    let is_head = head.method == Method::HEAD;
    let request = Request {
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        token: header("x-auth-token"),
        authorization: header("authorization"),
        if_match: header("if-match"),
        if_none_match: header("if-none-match"),
        odata_version: header("odata-version"),
        content_type: header("content-type"),
        body: body.to_bytes().to_vec(),
        method: head.method,
    };
    let shared = bmc.clone();
    let reply = spawn_blocking(move || {
        let mut service = shared.redfish();
        let mut state = shared.lock();
        service.answer(Timestamp::now(), &mut state, &*shared.chassis, rand::random(), &request)
    });
    let reply = reply.await.map_err(io::Error::other)?;
    let slow = Duration::from_millis(bmc.lock().faults.slow_ms);
    if !slow.is_zero() {
        tokio::time::sleep(slow).await;
    }
    let reply = reply.ok_or_else(|| io::Error::other("silence"))?;
    response(reply, is_head).map_err(io::Error::other)
}

fn response(reply: Reply, is_head: bool) -> Result<Response<Full<Bytes>>, hyper::http::Error> {
    let status = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response =
        Response::builder().status(status).header("OData-Version", "4.0").header(header::CACHE_CONTROL, "no-cache");
    for (name, value) in reply.headers {
        response = response.header(name, value);
    }
    let body = match (reply.body, reply.xml) {
        (Some(body), _) => {
            let kind = body["@odata.type"].as_str().unwrap_or("#Error").trim_start_matches('#');
            let schema = kind.split('.').take(2).collect::<Vec<_>>().join(".");
            response = response
                .header(header::CONTENT_TYPE, "application/json;charset=utf-8")
                .header(header::LINK, format!("<http://redfish.dmtf.org/schemas/v1/{schema}.json>; rel=describedby"));
            body.to_string()
        }
        (None, Some(xml)) => {
            response = response.header(header::CONTENT_TYPE, "application/xml;charset=utf-8");
            xml
        }
        (None, None) => String::new(),
    };
    if is_head {
        response = response.header(header::CONTENT_LENGTH, body.len());
        return response.body(Full::default());
    }
    response.body(Full::from(body))
}
