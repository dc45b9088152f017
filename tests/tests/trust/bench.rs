//! A controller, nodes enrolled with it, and peers that are made of nothing but a certificate.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};
use rackhand_agent::{
    agent::{self, Seams as AgentSeams},
    local, uplink,
};
use rackhand_common::{
    pki::{self, CONTROLLER_NAME, Identity, TrustBundle},
    time::{Clock, Mono, Now},
    wire::{self, ALPN_OBJECTS, AgentRequest, AgentResponse, Closing, LocalRequest, LocalResponse, NodeView},
};
use rackhand_controller::controller::{self, Config, File, Seams};
use rackhand_tests::{operator, wait::until};
use reqwest::{Method, StatusCode};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// How long anything may take here. Promises about time are asserted where they are made.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The system's clock, set wrong by this much.
pub(crate) struct Shifted(SignedDuration, Instant);

/// A clock that is `hours` ahead; behind when negative.
pub(crate) fn ahead(hours: i64) -> Arc<dyn Clock> {
    Arc::new(Shifted(SignedDuration::from_hours(hours), Instant::now()))
}

impl Clock for Shifted {
    fn now(&self) -> Now {
        Now { mono: Mono(self.1.elapsed()), wall: Timestamp::now() + self.0 }
    }
}

/// Asks until the answer is as wanted; panics with the last one when that takes too long.
pub(crate) async fn wait_for<T>(what: &str, ask: impl AsyncFnMut() -> Result<T, String>) -> T {
    until(what, PATIENCE, ask).await
}

/// A process's task and what ends it.
struct Process(CancellationToken, tokio::task::JoinHandle<anyhow::Result<()>>);

impl Process {
    async fn stop(self) {
        self.0.cancel();
        self.1.await.unwrap().unwrap();
    }
}

/// A controller with one rack, `r1`.
pub(crate) struct Controller {
    dir: tempfile::TempDir,
    pub(crate) config: Config,
    token: String,
    process: Option<Process>,
    pub(crate) api: SocketAddr,
    pub(crate) agents: SocketAddr,
}

impl Controller {
    /// Made and started by this clock.
    pub(crate) async fn new(clock: Arc<dyn Clock>) -> Self {
        pki::install_crypto();
        let dir = tempfile::tempdir().unwrap();
        let file: File = serde_json::from_value(json!({
            "data": dir.path().join("data"),
            "names": ["127.0.0.1"],
            "api": {"listen": "127.0.0.1:0"},
            "agents": {"listen": "127.0.0.1:0"},
        }))
        .unwrap();
        let config = Config::try_from(file).unwrap();
        let (token, _) = operator::init(&config, Seams { clock: clock.clone() }).await.unwrap();
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut controller = Self { dir, config, token, process: None, api: nowhere, agents: nowhere };
        controller.start(clock).await;
        controller.create_rack("r1").await;
        controller
    }

    /// Starts it again, at the same ports.
    pub(crate) async fn start(&mut self, clock: Arc<dyn Clock>) {
        assert!(self.process.is_none());
        let shutdown = CancellationToken::new();
        let running = controller::start(self.config.clone(), Seams { clock }, shutdown.clone()).await.unwrap();
        (self.api, self.agents) = (running.api, running.agents);
        (self.config.api, self.config.agents) = (running.api, running.agents);
        self.process = Some(Process(shutdown, tokio::spawn(running.ended())));
    }

    pub(crate) async fn stop(&mut self) {
        self.process.take().unwrap().stop().await;
    }

    pub(crate) fn pki(&self) -> PathBuf {
        self.dir.path().join("data/pki")
    }

    /// What an operator is answered.
    pub(crate) async fn ask(&self, method: Method, path: &str, body: Value) -> Value {
        let (status, text) = self.try_ask(method.clone(), path, body).await;
        assert!(status.is_success(), "{method} {path}: {status} {text}");
        text
    }

    pub(crate) async fn try_ask(&self, method: Method, path: &str, body: Value) -> (StatusCode, Value) {
        let ca = std::fs::read(self.pki().join("ca.pem")).unwrap();
        let client = reqwest::Client::builder()
            .tls_certs_only(reqwest::Certificate::from_pem_bundle(&ca).unwrap())
            .build()
            .unwrap();
        let request = client.request(method.clone(), format!("https://{}{path}", self.api)).bearer_auth(&self.token);
        let request = if method == Method::GET { request } else { request.json(&body) };
        let response = request.send().await.unwrap();
        (response.status(), response.json().await.unwrap())
    }

    /// A fresh enrolment code for `r1`.
    pub(crate) async fn code(&self) -> String {
        self.code_for("r1").await
    }

    pub(crate) async fn code_for(&self, rack: &str) -> String {
        let made = self.ask(Method::POST, &format!("/v1/racks/{rack}/enrolment-codes"), json!({})).await;
        made["code"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn create_rack(&self, name: &str) {
        let network = json!({"node": "10.77.0.1/24", "delegated": ["10.77.0.100", "10.77.0.199"], "gateway": null});
        self.ask(Method::POST, "/v1/racks", json!({"name": name, "network": network})).await;
    }

    /// Waits until this process of the controller has the node connected.
    pub(crate) async fn sees(&self, node: &Node) {
        wait_for("the agent's connection", async || {
            let agent = self.agent(&node.id()).await;
            if agent["connected"] == true { Ok(()) } else { Err(agent.to_string()) }
        })
        .await;
    }

    /// The agent with this id, as operators see it.
    pub(crate) async fn agent(&self, id: &str) -> Value {
        let agents = self.ask(Method::GET, "/v1/agents", Value::Null).await;
        agents["items"].as_array().unwrap().iter().find(|agent| agent["id"] == id).cloned().unwrap_or_default()
    }

    /// Texts of all events of this kind.
    pub(crate) async fn events(&self, kind: &str) -> Vec<String> {
        let events = self.ask(Method::GET, "/v1/events?limit=200", Value::Null).await;
        let of_kind = events["items"].as_array().unwrap().iter().filter(|event| event["kind"] == kind);
        of_kind.map(|event| event["text"].as_str().unwrap().to_owned()).collect()
    }

    /// Connects as whoever this identity belongs to.
    pub(crate) async fn dial(&self, identity: Identity, alpn: &[u8]) -> Result<Dialled, quinn::ConnectionError> {
        dial(self.agents, pki::agent_client(&self.bundle(), identity, &[alpn]).unwrap()).await
    }

    /// The trust bundle as it stands in this directory.
    pub(crate) fn bundle(&self) -> TrustBundle {
        let text = |name: &str| std::fs::read_to_string(self.pki().join(name)).unwrap();
        TrustBundle { roots: vec![text("ca.pem")], image_key: text("image.pem") }
    }
}

/// A QUIC connection with nothing on it yet.
pub(crate) struct Dialled {
    pub(crate) quic: quinn::Connection,
    _endpoint: quinn::Endpoint,
}

pub(crate) async fn dial(at: SocketAddr, tls: rustls::ClientConfig) -> Result<Dialled, quinn::ConnectionError> {
    dial_with(at, tls, quinn::TransportConfig::default()).await
}

pub(crate) async fn dial_with(
    at: SocketAddr,
    tls: rustls::ClientConfig,
    transport: quinn::TransportConfig,
) -> Result<Dialled, quinn::ConnectionError> {
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    let endpoint = quinn::Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport));
    let quic = endpoint.connect_with(config, at, CONTROLLER_NAME).unwrap().await?;
    Ok(Dialled { quic, _endpoint: endpoint })
}

impl Dialled {
    /// One request and its answer.
    pub(crate) async fn ask(&self, request: &AgentRequest) -> anyhow::Result<AgentResponse> {
        self.ask_bytes(&wire::encode(request)).await
    }

    /// The answer to these bytes.
    pub(crate) async fn ask_bytes(&self, request: &[u8]) -> anyhow::Result<AgentResponse> {
        let (mut send, mut receive) = self.quic.open_bi().await?;
        send.write_all(request).await?;
        send.finish()?;
        Ok(wire::decode(&receive.read_to_end(wire::MAX_LEN).await?)?)
    }

    /// How the controller ends the connection, in time.
    pub(crate) async fn closed(&self) -> Option<Closing> {
        match tokio::time::timeout(PATIENCE, self.quic.closed()).await.expect("the connection stays open") {
            quinn::ConnectionError::ApplicationClosed(closed) => Closing::of(closed.error_code.into_inner()),
            _ => None,
        }
    }
}

/// A hello of a process nobody has seen before.
pub(crate) fn hello() -> AgentRequest {
    AgentRequest::Hello(wire::Hello {
        incarnation: rackhand_common::id::Incarnation::fresh(),
        version: "test".into(),
        revision: 0,
        connection: 0,
    })
}

/// A request for a certificate for a fresh key.
pub(crate) fn csr() -> (rcgen::KeyPair, Vec<u8>) {
    let key = rcgen::KeyPair::generate().unwrap();
    let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap().der().to_vec();
    (key, csr)
}

/// A rack node: its directory, and the agent's process when it runs.
pub(crate) struct Node {
    dir: tempfile::TempDir,
    process: Option<Process>,
}

impl Node {
    /// A node that was never enrolled.
    pub(crate) fn blank() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), process: None }
    }

    /// A node that has exchanged this code.
    pub(crate) async fn enrolled(controller: &Controller, code: &str) -> Self {
        let node = Self::blank();
        node.enrol(controller, code).await.unwrap();
        node
    }

    pub(crate) async fn enrol(&self, controller: &Controller, code: &str) -> anyhow::Result<()> {
        agent::prepare(&self.state())?;
        let (agents, api) = (controller.agents.to_string(), controller.api.to_string());
        uplink::enrol(&self.state(), &agents, Some(&api), code).await.map(drop)
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("agent.sock")
    }

    pub(crate) async fn start(&mut self, clock: Arc<dyn Clock>) {
        assert!(self.process.is_none());
        let file = self.dir.path().join("agent.toml");
        let text = format!("state = {:?}\nsocket = {:?}\nmetrics = \"127.0.0.1:0\"\n", self.state(), self.socket());
        std::fs::write(&file, text).unwrap();
        let config = agent::Config::load(&file).unwrap();
        let shutdown = CancellationToken::new();
        let running = agent::start(&config, AgentSeams { clock, power: None }, shutdown.clone()).await.unwrap();
        self.process = Some(Process(shutdown, tokio::spawn(running.wait())));
    }

    pub(crate) async fn stop(&mut self) {
        self.process.take().unwrap().stop().await;
    }

    /// What `rackhand-diag status` would show.
    pub(crate) async fn status(&self) -> NodeView {
        match self.ask(&LocalRequest::Status).await {
            LocalResponse::Status(view) => view,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn ask(&self, request: &LocalRequest) -> LocalResponse {
        local::Client::connect(&self.socket()).await.unwrap().ask(request).await.unwrap()
    }

    /// Waits until the uplink is shown with these words.
    pub(crate) async fn shows(&self, words: &str) -> String {
        wait_for(words, async || {
            let shown = self.status().await.uplink;
            if shown.contains(words) { Ok(shown) } else { Err(shown) }
        })
        .await
    }

    pub(crate) async fn connected(&self) {
        self.shows("connected to").await;
    }

    /// Its agent's id.
    pub(crate) fn id(&self) -> String {
        self.stored()["agent"].as_str().unwrap().to_owned()
    }

    pub(crate) fn stored(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.state().join("identity.json")).unwrap()).unwrap()
    }

    /// Its certificate and key, as whoever copied its disk has them.
    pub(crate) fn stolen(&self) -> Identity {
        stolen(&self.state())
    }
}

fn stolen(state: &Path) -> Identity {
    let stored: Value = serde_json::from_slice(&std::fs::read(state.join("identity.json")).unwrap()).unwrap();
    let bytes = |value: &Value| hex::decode(value.as_str().unwrap()).unwrap();
    Identity {
        chain: stored["chain"].as_array().unwrap().iter().map(|each| CertificateDer::from(bytes(each))).collect(),
        key: PrivateKeyDer::Pkcs8(bytes(&stored["key"]).into()),
    }
}

/// What an image chunk's address answers to whoever has this identity.
pub(crate) async fn chunk_as(controller: &Controller, identity: Identity) -> StatusCode {
    let tls = pki::agent_client(&controller.bundle(), identity, &[b"http/1.1", ALPN_OBJECTS]).unwrap();
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .resolve(CONTROLLER_NAME, controller.api)
        .build()
        .unwrap();
    let url = format!("https://{CONTROLLER_NAME}:{}/agents/v1/chunks/{}", controller.api.port(), "0".repeat(64));
    client.get(url).send().await.unwrap().status()
}
