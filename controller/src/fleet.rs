//! The agents' connections: one per rack, the newest wins.
//!
//! Invariants:
//! - Nobody is served whose certificate does not name a registered agent that is not revoked;
//!   what may be asked without a certificate is enrolment only, told apart by the protocol.
//! - Whose certificate has ended may renew it, when its key is the registered one, and is
//!   answered nothing else.
//! - A revoked agent is cut off: either [`Fleet::cut`] finds its connection, or the connection,
//!   once it can be found, finds the revocation.
//! - A connection counts only after its number was committed.
//! - No transaction is open while a peer is waited for.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use aws_lc_rs::hmac;
use futures_util::future::BoxFuture;
use quinn::{Connection, Endpoint, Incoming, RecvStream, SendStream, VarInt};
use rackhand_common::{
    bmc::{
        Look, Met, Rotated, Standing, Stranger,
        baseline::{Answered, Ask},
    },
    health::SeriesQuery,
    id::{AgentId, Epoch, MachineId, RackId},
    pki::{self, Identity, KeyPin, NotAPeer, Peer, Role},
    time::{Clock, Mono},
    wire::{
        self, AgentRequest, AgentResponse, CONSOLE_STREAM, Closing, Command, ConsoleRequest, ControllerRequest,
        ControllerResponse, Welcome,
    },
};
use rustls_pki_types::CertificateDer;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    sync::{Notify, Semaphore},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    api::{Agents, Opened, prometheus},
    authority::{AGENT_TTL, Authority, Issued},
    enrol::{self, Limits},
    events, intent, restored,
    store::{Agent, Happened, Store, StoreError},
    succession,
    workflows::{Commands, Unreachable, Workflows},
};

/// How long a handshake, a request's arrival or an answer may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// Connections at once, all together; further ones are refused.
const CONNECTIONS: usize = 2048;

/// With this many connections, whoever comes proves first that its address is its own.
const BUSY: usize = 128;

/// Nodes that enrol at once; further ones are told to come again.
const ENROLMENTS: usize = 64;

/// What a peer may have under way before it is known, and a known agent: streams, and bytes
/// received and not yet read. Two thousand strangers hold a quarter of a gigabyte.
const STRANGER: (u32, u32) = (1, 128 << 10);
const AGENT: (u32, u32) = (4, 4 << 20);

/// Without a wake-up the revision is compared this often.
const RECHECK: Duration = Duration::from_secs(30);

/// So many BMCs of a rack are asked at once, at most: commands need streams too.
const LOOKS: usize = 4;

/// The same alert about an agent is told this often.
const ALERT_AGAIN: Duration = Duration::from_secs(3600);

/// A process that lives answers in this time.
const ALIVE: Duration = Duration::from_secs(2);

/// How long an agent whose events cannot be stored waits for the answer that none was; it waits
/// no longer than [`PATIENCE`].
const UNWRITABLE: Duration = Duration::from_secs(10);

/// The longest request of an agent that is not yet enrolled, in bytes.
const ENROL_LEN: usize = 64 << 10;

/// Requests that are answered to whose certificate has ended: the renewal, and what it asked
/// for before it knew.
const LAPSED_REQUESTS: usize = 4;

/// A handle on the connections; clones are the same.
#[derive(Clone, Debug)]
pub struct Fleet(Arc<Inner>);

struct Inner {
    store: Store,
    authority: Arc<Authority>,
    certify: Arc<events::Certify>,
    clock: Arc<dyn Clock>,
    workflows: Workflows,
    racks: Mutex<HashMap<RackId, Live>>,
    limits: Mutex<Limits>,
    enrolling: Semaphore,
    /// When an alert about an agent was told last. Only those that are or were registered are
    /// among them.
    alerts: Mutex<HashMap<AgentId, Mono>>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fleet").finish_non_exhaustive()
    }
}

#[derive(Clone)]
struct Live {
    agent: AgentId,
    number: u64,
    quic: Connection,
    wake: Arc<Notify>,
    /// Places for looks at BMCs, which are slow.
    looks: Arc<Semaphore>,
    /// Whether it was found not to be revoked since it can be found here: before, it is given
    /// nothing.
    admitted: Arc<AtomicBool>,
}

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
enum Dropped {
    #[error("too slow")]
    Slow(#[from] tokio::time::error::Elapsed),
    #[error("connection lost")]
    Lost(#[from] quinn::ConnectionError),
    #[error("request not received")]
    Read(#[from] quinn::ReadToEndError),
    #[error("answer not sent")]
    Write(#[from] quinn::WriteError),
    #[error("stream closed")]
    Closed(#[from] quinn::ClosedStream),
    #[error("malformed message")]
    Malformed(#[from] wire::Malformed),
    #[error("not let in: {0}")]
    Refused(&'static str),
    #[error("agent {0} is revoked; to let its node in again, enrol it: rackhand agent enrol")]
    Revoked(AgentId),
    #[error("agent {0} comes with a certificate that has ended and a key that is not registered")]
    OtherKey(AgentId),
    #[error("not a peer")]
    NotAPeer(#[from] NotAPeer),
    #[error("database")]
    Store(#[from] StoreError),
}

impl Dropped {
    /// What the peer is told: how its connection ends, and why, for people.
    fn closing(&self) -> (Closing, &'static str) {
        match self {
            Self::Revoked(_) => (Closing::Revoked, "its registration was revoked"),
            Self::NotAPeer(NotAPeer::Ended { .. }) => (Closing::Ended, "its certificate ended too long ago"),
            Self::OtherKey(_) => (Closing::Ended, "its certificate has ended, and its key is not the registered one"),
            Self::Refused(reason) => (Closing::Refused, reason),
            Self::NotAPeer(_) => (Closing::Refused, "its certificate names no agent, or is not valid yet"),
            Self::Store(StoreError::NotFound(_)) => (Closing::Refused, "it is not registered here"),
            Self::Store(StoreError::Full(_)) => (Closing::Refused, "the disk of the controller's database is full"),
            Self::Store(StoreError::Unwritable(_)) => (Closing::Refused, "the controller cannot write its database"),
            Self::Store(StoreError::Unreachable(_)) => (Closing::Refused, "the controller cannot reach its database"),
            Self::Store(StoreError::Busy(_)) => (Closing::Refused, "the controller's database is busy"),
            Self::Slow(_) => (Closing::Refused, "it was too slow"),
            Self::Malformed(_) => (Closing::Refused, "it sent what is not a message"),
            Self::Lost(_) | Self::Read(_) | Self::Write(_) | Self::Closed(_) | Self::Store(_) => (Closing::Refused, ""),
        }
    }
}

fn close(quic: &Connection, closing: Closing, reason: &str) {
    quic.close(VarInt::from_u32(closing as u32), reason.as_bytes());
}

/// A QUIC endpoint for agents at this address. One that is started again knows none of the
/// connections before: it says so to agents that still hold one by a stateless reset (RFC 9000
/// §10.3), and they dial again at once instead of waiting for a silence.
pub fn listen(address: SocketAddr, authority: &Authority, identity: Identity) -> anyhow::Result<Endpoint> {
    // The keys of the process's life: connections live past a certificate that is renewed in it.
    let reset = blake3::derive_key("rackhand 2026-11-24 stateless reset", identity.key.secret_der());
    let mine = blake3::derive_key("rackhand 2026-11-24 connection ids", identity.key.secret_der());
    let mine = u64::from_le_bytes(mine[..8].try_into().expect("eight of 32"));
    let mut endpoint = quinn::EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &reset)));
    // Ids of the process before are ours too: packets to any other are dropped unanswered.
    endpoint.cid_generator(move || Box::new(quinn_proto::HashedConnectionIdGenerator::from_key(mine)));
    let config = server(authority, identity)?;
    let socket = std::net::UdpSocket::bind(address)?;
    let runtime = Arc::new(quinn::TokioRuntime);
    Ok(Endpoint::new(endpoint, Some(config), socket, runtime)?)
}

/// How those who connect are met, with this certificate.
pub fn server(authority: &Authority, identity: Identity) -> anyhow::Result<quinn::ServerConfig> {
    let tls = pki::controller_server(authority.bundle(), identity)?;
    let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(tls)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    let mut transport = quinn::TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(STRANGER.0.into())
        .max_concurrent_uni_streams(0u32.into())
        .stream_receive_window((1u32 << 20).into())
        .receive_window(STRANGER.1.into())
        .datagram_receive_buffer_size(None)
        .keep_alive_interval(Some(Duration::from_secs(5)))
        .max_idle_timeout(Some(Duration::from_secs(15).try_into()?));
    config.transport_config(Arc::new(transport)).max_incoming(256);
    Ok(config)
}

impl Fleet {
    /// A fleet nobody has joined yet.
    pub fn new(
        store: Store,
        authority: Arc<Authority>,
        certify: Arc<events::Certify>,
        clock: Arc<dyn Clock>,
        workflows: Workflows,
    ) -> Self {
        let (racks, limits, alerts) = (Mutex::default(), Mutex::default(), Mutex::default());
        let enrolling = Semaphore::new(ENROLMENTS);
        Self(Arc::new(Inner { store, authority, certify, clock, workflows, racks, limits, enrolling, alerts }))
    }

    /// The rack's intent may have changed: its agent is told, if it is connected.
    pub fn wake(&self, rack: RackId) {
        if let Some(live) = self.live(rack) {
            live.wake.notify_one();
        }
    }

    /// Whether the rack's agent is connected.
    pub fn connected(&self, rack: RackId) -> bool {
        self.live(rack).is_some()
    }

    /// How many agents are connected.
    pub fn count(&self) -> usize {
        self.racks().len()
    }

    /// Cuts the connection of an agent that is being revoked, at once: it is given nothing more.
    pub fn cut(&self, agent: AgentId) {
        self.cut_for(agent, "an operator revoked it");
    }

    fn cut_for(&self, agent: AgentId, why: &str) {
        let mut racks = self.racks();
        let Some((rack, _)) = racks.iter().find(|(_, live)| live.agent == agent) else { return };
        let rack = *rack;
        if let Some(live) = racks.remove(&rack) {
            close(&live.quic, Closing::Revoked, why);
        }
    }

    /// Gives a command to the rack's agent. Whether it arrived is not known when this fails:
    /// the same command may be given again.
    pub async fn command(&self, rack: RackId, command: Command) -> Result<ControllerResponse, Unreachable> {
        self.answer(rack, self.live(rack).as_ref(), &ControllerRequest::Command(command), "a command").await
    }

    /// Has the rack's agent ask the BMC of a machine now.
    pub async fn look(&self, rack: RackId, machine: MachineId, look: Look) -> Result<ControllerResponse, Unreachable> {
        let Some(live) = self.live(rack) else { return Err(self.unreachable(rack).await) };
        let Ok(_place) = live.looks.try_acquire() else {
            let reason = format!("{LOOKS} BMCs of this rack are being asked just now; ask again in a moment");
            return Ok(ControllerResponse::Refused(reason));
        };
        self.answer(rack, Some(&live), &ControllerRequest::Look(machine, look), "a look at a BMC").await
    }

    /// Has the rack's agent tell what it kept of a machine's sensor.
    pub async fn series(
        &self,
        rack: RackId,
        machine: MachineId,
        query: SeriesQuery,
    ) -> Result<ControllerResponse, Unreachable> {
        let Some(live) = self.live(rack) else { return Err(self.unreachable(rack).await) };
        let Ok(_place) = live.looks.try_acquire() else {
            let reason = format!("{LOOKS} things are being asked of this rack just now; ask again in a moment");
            return Ok(ControllerResponse::Refused(reason));
        };
        self.answer(rack, Some(&live), &ControllerRequest::Series(machine, query), "a question about a series").await
    }

    /// Opens a console at the rack's agent.
    async fn open_console(&self, rack: RackId, request: ConsoleRequest) -> Result<Opened, Unreachable> {
        if let Some(live) = self.live(rack) {
            let opened: Result<_, Dropped> = timeout(PATIENCE, async {
                let (mut send, recv) = live.quic.open_bi().await?;
                send.write_all(&[&[CONSOLE_STREAM], &wire::frame(&request)[..]].concat()).await?;
                Ok(Opened { say: Box::new(send), told: Box::new(recv) })
            })
            .await
            .map_err(Dropped::from)
            .flatten();
            match opened {
                Ok(opened) => return Ok(opened),
                Err(error) => {
                    tracing::warn!(%rack, error = &error as &dyn std::error::Error, "a console was not opened")
                }
            }
        }
        Err(self.unreachable(rack).await)
    }

    /// Has the rack's agent give the BMC of a machine its next password, once it has been told that.
    pub async fn rotate(&self, rack: RackId, machine: MachineId, revision: u64) -> Result<Rotated, Unreachable> {
        let Some(live) = self.live(rack) else { return Err(self.unreachable(rack).await) };
        let Ok(_place) = live.looks.acquire().await else { return Err(self.unreachable(rack).await) };
        let failed = |reason: &str| Rotated::Failed { reason: reason.to_owned(), is_begun: false };
        match ask(&live.quic, &ControllerRequest::Rotate(machine, revision)).await {
            Ok(ControllerResponse::Rotated(json)) => Ok(serde_json::from_str(&json).unwrap_or_else(|_| {
                failed("the rack's agent gave an answer that is not understood: upgrade the controller")
            })),
            Ok(ControllerResponse::NotUnderstood(_)) => {
                Ok(failed("the rack's agent is of an earlier version and cannot change passwords: upgrade it"))
            }
            Ok(other) => Ok(Rotated::Later(format!("the rack's agent gave an answer that does not fit: {other:?}"))),
            Err(error) => {
                tracing::warn!(%rack, error = &error as &dyn std::error::Error, "a rotation was not answered");
                Err(self.unreachable(rack).await)
            }
        }
    }

    /// Has the rack's agent log in to a BMC that belongs to no machine yet.
    pub async fn meet(&self, rack: RackId, stranger: Stranger) -> Result<Met, Unreachable> {
        let Some(live) = self.live(rack) else { return Err(self.unreachable(rack).await) };
        let Ok(_place) = live.looks.acquire().await else { return Err(self.unreachable(rack).await) };
        match ask(&live.quic, &ControllerRequest::Meet(stranger)).await {
            Ok(ControllerResponse::Met(json)) => Ok(serde_json::from_str(&json).unwrap_or_else(|_| {
                Met::Failed("the rack's agent gave an answer that is not understood: upgrade the controller".to_owned())
            })),
            Ok(ControllerResponse::NotUnderstood(_)) => {
                Ok(Met::Failed("the rack's agent is of an earlier version and meets no BMCs: upgrade it".to_owned()))
            }
            Ok(other) => Ok(Met::Failed(format!("the rack's agent gave an answer that does not fit: {other:?}"))),
            Err(error) => {
                tracing::warn!(%rack, error = &error as &dyn std::error::Error, "a first login was not answered");
                Err(self.unreachable(rack).await)
            }
        }
    }

    /// Has the rack's agent read the BMC of a machine, and put it back before when there is a record;
    /// nothing when it is of an earlier version and cannot.
    pub async fn baseline(
        &self,
        rack: RackId,
        machine: MachineId,
        epoch: Epoch,
        question: Ask,
    ) -> Result<Option<Answered>, Unreachable> {
        let Some(live) = self.live(rack) else { return Err(self.unreachable(rack).await) };
        let Ok(_place) = live.looks.acquire().await else { return Err(self.unreachable(rack).await) };
        let question = serde_json::to_string(&question).expect("what is asked always serializes");
        match ask(&live.quic, &ControllerRequest::Baseline(machine, epoch, question)).await {
            Ok(ControllerResponse::Baseline(json)) => Ok(Some(serde_json::from_str(&json).unwrap_or_else(|_| {
                let reason = "the rack's agent gave an answer that is not understood: upgrade the controller";
                Answered::Failed(reason.to_owned())
            }))),
            Ok(ControllerResponse::NotUnderstood(_)) => Ok(None),
            Ok(ControllerResponse::Refused(reason)) => Ok(Some(Answered::Later(reason))),
            Ok(other) => {
                let reason = format!("the rack's agent gave an answer that does not fit: {other:?}");
                Ok(Some(Answered::Failed(reason)))
            }
            Err(error) => {
                tracing::warn!(%rack, error = &error as &dyn std::error::Error, "a BMC was not read");
                Err(self.unreachable(rack).await)
            }
        }
    }

    /// What the rack's agent knows of its BMCs; nothing when it is away or of an earlier version.
    pub async fn standings(&self, rack: RackId) -> Vec<Standing> {
        let Some(live) = self.live(rack) else { return Vec::new() };
        match timeout(ALIVE, ask(&live.quic, &ControllerRequest::Standings)).await {
            Ok(Ok(ControllerResponse::Standings(json))) => serde_json::from_str(&json).unwrap_or_default(),
            other => {
                tracing::debug!(%rack, ?other, "the agent does not say how its BMCs stand");
                Vec::new()
            }
        }
    }

    /// What the rack's agent answers, if one is connected and does.
    async fn answer(
        &self,
        rack: RackId,
        live: Option<&Live>,
        request: &ControllerRequest,
        what: &str,
    ) -> Result<ControllerResponse, Unreachable> {
        if let Some(live) = live {
            match ask(&live.quic, request).await {
                Ok(answer) => return Ok(answer),
                Err(error) => {
                    tracing::warn!(%rack, error = &error as &dyn std::error::Error, "{what} was not answered")
                }
            }
        }
        Err(self.unreachable(rack).await)
    }

    async fn unreachable(&self, rack: RackId) -> Unreachable {
        let name = self.0.store.rack(&rack.to_string()).await.map_or_else(|_| rack.to_string(), |rack| rack.name);
        Unreachable { rack: name }
    }

    /// Serves agents until shutdown.
    pub async fn run(self, endpoint: Endpoint, shutdown: CancellationToken) {
        let tracker = TaskTracker::new();
        loop {
            let incoming = tokio::select! {
                incoming = endpoint.accept() => incoming,
                () = shutdown.cancelled() => break,
            };
            let Some(incoming) = incoming else { break };
            if endpoint.open_connections() >= CONNECTIONS {
                incoming.refuse();
                continue;
            }
            if endpoint.open_connections() >= BUSY && incoming.may_retry() && !incoming.remote_address_validated() {
                let _ = incoming.retry();
                continue;
            }
            let fleet = self.clone();
            let shutdown = shutdown.clone();
            tracker.spawn(async move {
                let from = incoming.remote_address();
                tokio::select! {
                    ended = fleet.admit(incoming) => {
                        if let Err(error) = ended {
                            tracing::info!(%from, error = &error as &dyn std::error::Error, "connection ended");
                        }
                    }
                    () = shutdown.cancelled() => {}
                }
            });
        }
        endpoint.close(VarInt::from_u32(Closing::Done as u32), b"the controller stops");
        tracker.close();
        tracker.wait().await;
        endpoint.wait_idle().await;
    }

    async fn admit(&self, incoming: Incoming) -> Result<(), Dropped> {
        let quic = timeout(PATIENCE, incoming).await??;
        let data = quic.handshake_data().and_then(|data| data.downcast::<quinn::crypto::rustls::HandshakeData>().ok());
        let ended = match data.and_then(|data| data.protocol).as_deref() {
            Some(wire::ALPN) => self.agent(&quic).await,
            Some(wire::ALPN_ENROL) => timeout(PATIENCE, self.enrol(&quic)).await.map_err(Dropped::from).flatten(),
            _ => Err(Dropped::Refused("unknown protocol")),
        };
        if let Err(Dropped::Store(error)) = &ended {
            self.0.store.note(error);
        }
        let (closing, reason) = ended.as_ref().err().map_or((Closing::Done, ""), Dropped::closing);
        close(&quic, closing, reason);
        ended
    }

    async fn enrol(&self, quic: &Connection) -> Result<(), Dropped> {
        let Ok(_place) = self.0.enrolling.try_acquire() else {
            return Err(Dropped::Refused("too many nodes enrol at once: try again in a minute"));
        };
        let (send, mut recv) = quic.accept_bi().await?;
        let request: AgentRequest = wire::decode(&recv.read_to_end(ENROL_LEN).await?)?;
        let AgentRequest::Enrol { secret, csr } = request else { return Err(Dropped::Refused("enrolment only")) };
        let now = self.0.clock.now();
        let from = quic.remote_address().ip();
        let admitted = self.0.limits.lock().expect("nothing panics while it is held").admits(from, now.mono);
        let response = if !admitted {
            AgentResponse::Refused("too many attempts to enrol: try again in a minute".into())
        } else {
            let cut = |old| self.cut_for(old, "another node was enrolled for its rack");
            match enrol::redeem(&self.0.store, &self.0.authority, now.wall, (&secret, &csr), from, cut).await {
                Ok((agent, rack, issued)) => self.certificate(agent, rack, &issued),
                Err(error) => {
                    tracing::warn!(from = %quic.remote_address(), error = &error as &dyn std::error::Error, "enrolment refused");
                    AgentResponse::Refused(error.to_string())
                }
            }
        };
        answer(send, &response).await?;
        // The peer closes once it has read the answer.
        quic.closed().await;
        Ok(())
    }

    async fn agent(&self, quic: &Connection) -> Result<(), Dropped> {
        let chain = quic.peer_identity().and_then(|chain| chain.downcast::<Vec<CertificateDer<'static>>>().ok());
        let chain = chain.ok_or(NotAPeer::Anonymous)?;
        let peer = Peer::certified(&chain, self.0.clock.now().wall)?;
        let (Peer::Certified(Role::Agent { agent, rack }) | Peer::Lapsed(Role::Agent { agent, rack })) = peer else {
            return Err(Dropped::Refused("it is not an agent"));
        };
        let key = KeyPin::of_certificate(&chain[0])?;
        let known = self.0.store.agent(agent).await?;
        if known.rack != rack {
            return Err(Dropped::Refused("its certificate is for another rack"));
        }
        if known.revoked.is_some() {
            self.tell_of_old_node(&known, quic.remote_address()).await;
            return Err(Dropped::Revoked(agent));
        }
        if let Peer::Lapsed(_) = peer {
            if !known.has(key) {
                return Err(Dropped::OtherKey(agent));
            }
            return timeout(PATIENCE, self.renew_only(quic, agent, rack)).await?;
        }
        let (send, mut recv) = timeout(PATIENCE, quic.accept_bi()).await??;
        let first = timeout(PATIENCE, recv.read_to_end(ENROL_LEN)).await??;
        let AgentRequest::Hello(hello) = wire::decode(&first)? else {
            return Err(Dropped::Refused("it said no hello"));
        };

        let now = self.0.clock.now().wall;
        let mut tx = self.0.store.begin().await?;
        let certificate = (key, self.0.authority.root_of(&chain[0]));
        let row = tx.welcome(now, agent, certificate, &hello).await.map_err(|error| match error {
            StoreError::NotFound(_) => Dropped::Revoked(agent),
            error => error.into(),
        })?;
        tx.commit().await?;
        let number = row.connection;
        let admitted = Arc::new(AtomicBool::new(false));
        let (wake, looks) = (Arc::new(Notify::new()), Arc::new(Semaphore::new(LOOKS)));
        let live = Live { agent, number, quic: quic.clone(), wake, looks, admitted };
        let old = {
            let mut racks = self.racks();
            match racks.get(&rack) {
                Some(newer) if newer.agent == agent && newer.number > number => {
                    return Err(Dropped::Refused("a newer connection is here"));
                }
                _ => racks.insert(rack, live.clone()),
            }
        };
        let is_another = known.incarnation.is_some_and(|incarnation| incarnation != hello.incarnation);
        let stand_down = async {
            if let Some(old) = &old {
                if is_another && is_alive(&old.quic).await {
                    let reason = |rack: &str| {
                        let (from, newest) = (old.quic.remote_address(), quic.remote_address());
                        succession::two_processes(&known, from, newest, rack, now)
                    };
                    self.alert(agent, rack, reason).await;
                }
                close(&old.quic, Closing::Replaced, "a newer connection took over");
            }
            std::future::pending().await
        };
        let ended = async {
            if self.0.store.agent(agent).await?.revoked.is_some() {
                return Err(Dropped::Revoked(agent));
            }
            live.admitted.store(true, Ordering::Release);
            quic.set_receive_window(AGENT.1.into());
            quic.set_max_concurrent_bi_streams(AGENT.0.into());
            answer(send, &AgentResponse::Welcome(Welcome { connection: number, next_event: row.next_event })).await?;
            tracing::info!(%agent, %rack, connection = number, version = row.version, "agent connected");
            if self.0.store.rack(&rack.to_string()).await?.restored.is_some() {
                self.reconcile(&live, rack, hello.revision).await?;
            }
            tokio::select! {
                ended = self.serve(quic, agent, rack) => ended,
                ended = self.push(&live, &row, hello.revision) => ended,
                ended = stand_down => ended,
            }
        }
        .await;
        if let Some(old) = old {
            close(&old.quic, Closing::Replaced, "a newer connection took over");
        }
        {
            let mut racks = self.racks();
            if racks.get(&rack).is_some_and(|current| (current.agent, current.number) == (agent, number)) {
                racks.remove(&rack);
            }
        }
        let mut tx = self.0.store.begin().await?;
        tx.disconnected(self.0.clock.now().wall, agent, number).await?;
        tx.commit().await?;
        ended
    }

    /// Tells operators that a node which was given up is alive.
    async fn tell_of_old_node(&self, old: &Agent, from: SocketAddr) {
        let agents = match self.0.store.agents_of(old.rack).await {
            Ok(agents) => agents,
            Err(error) => return tracing::error!(error = &error as &dyn std::error::Error, "the database fails"),
        };
        let newest = agents.iter().find(|agent| agent.revoked.is_none());
        let at = |agent: &Agent| {
            self.live(old.rack).filter(|live| live.agent == agent.id).map(|live| live.quic.remote_address())
        };
        let newest = newest.map(|agent| (agent, at(agent)));
        self.alert(old.id, old.rack, |rack| succession::old_node_alive(old, from, rack, newest)).await;
    }

    /// An alert about an agent, once in a while: whoever is not let in comes again and again.
    async fn alert(&self, agent: AgentId, rack: RackId, reason: impl FnOnce(&str) -> String) {
        let now = self.0.clock.now();
        {
            let mut alerts = self.0.alerts.lock().expect("nothing panics while it is held");
            alerts.retain(|_, told| told.until(now.mono) < ALERT_AGAIN);
            if alerts.contains_key(&agent) {
                return;
            }
            alerts.insert(agent, now.mono);
        }
        let told: Result<(), StoreError> = async {
            let mut tx = self.0.store.begin().await?;
            let reason = reason(&tx.rack(&rack.to_string()).await?.name);
            tracing::warn!(%agent, %rack, reason, "two nodes of one rack");
            tx.insert_event(now.wall, rack, None, None, &Happened::Alert { reason }).await?;
            tx.commit().await
        }
        .await;
        if let Err(error) = told {
            tracing::error!(error = &error as &dyn std::error::Error, "an alert cannot be recorded");
        }
    }

    /// Renews the certificate of an agent whose last one has ended.
    async fn renew_only(&self, quic: &Connection, agent: AgentId, rack: RackId) -> Result<(), Dropped> {
        for _ in 0..LAPSED_REQUESTS {
            let (send, mut recv) = quic.accept_bi().await?;
            let request = wire::decode(&recv.read_to_end(ENROL_LEN).await?)?;
            let AgentRequest::Renew { csr } = request else {
                answer(send, &AgentResponse::Lapsed).await?;
                continue;
            };
            let response = self.renew(agent, rack, &csr).await?;
            answer(send, &response).await?;
            tracing::info!(%agent, %rack, "a certificate that had ended was renewed");
            // The peer closes once it has read the answer.
            quic.closed().await;
            return Ok(());
        }
        Err(Dropped::Refused("it does not renew its certificate"))
    }

    async fn renew(&self, agent: AgentId, rack: RackId, csr: &[u8]) -> Result<AgentResponse, Dropped> {
        let now = self.0.clock.now().wall;
        let issued = match self.0.authority.issue(csr, Role::Agent { agent, rack }, AGENT_TTL, now) {
            Ok(issued) => issued,
            Err(error) => return Ok(AgentResponse::Refused(error.to_string())),
        };
        let mut tx = self.0.store.begin().await?;
        match tx.issued(agent, issued.key, issued.until).await {
            Err(StoreError::NotFound(_)) => return Err(Dropped::Revoked(agent)),
            issued => issued?,
        }
        tx.commit().await?;
        Ok(self.certificate(agent, rack, &issued))
    }

    /// Answers requests, one after the other: events must be taken in order.
    async fn serve(&self, quic: &Connection, agent: AgentId, rack: RackId) -> Result<(), Dropped> {
        loop {
            let (send, mut recv) = quic.accept_bi().await?;
            let bytes = timeout(PATIENCE, recv.read_to_end(wire::MAX_LEN)).await??;
            let request = match wire::decode(&bytes) {
                Err(unknown @ wire::Malformed::Unknown(_)) => {
                    tracing::warn!(%agent, %rack, "a request of a later version is not understood");
                    answer(send, &AgentResponse::NotUnderstood(unknown.to_string())).await?;
                    continue;
                }
                request => request?,
            };
            let response = match request {
                AgentRequest::Events { first, events } => {
                    let next = match events::take(&self.0.store, &*self.0.certify, rack, agent, first, events).await {
                        // Nothing was taken, and the agent keeps it. Dropping the connection would cut
                        // off commands too, and have the agent come again at once.
                        Err(error) if error.is_passing() => {
                            tracing::error!(%rack, error = &error as &dyn std::error::Error, "events are not taken");
                            tokio::time::sleep(UNWRITABLE).await;
                            first
                        }
                        taken => taken?,
                    };
                    self.0.workflows.wake();
                    AgentResponse::Next(next)
                }
                AgentRequest::Renew { csr } => self.renew(agent, rack, &csr).await?,
                AgentRequest::Metrics(told) => {
                    let at = prometheus::reached(told, quic.remote_address().ip());
                    // Told again on its next connection: nothing that is worth the end of this one.
                    if let Err(error) = self.0.store.note_metrics(agent, at).await {
                        tracing::error!(%rack, error = &error as &dyn std::error::Error, "where its metrics are is not kept");
                    }
                    AgentResponse::Known
                }
                AgentRequest::Hello(_) | AgentRequest::Enrol { .. } => AgentResponse::Refused("not now".into()),
            };
            answer(send, &response).await?;
        }
    }

    /// Learns from the agent what a restored database does not know.
    async fn reconcile(&self, live: &Live, rack: RackId, on_disk: u64) -> Result<(), Dropped> {
        let ControllerResponse::Reported(told) = ask(&live.quic, &ControllerRequest::Report).await? else {
            return Err(Dropped::Refused("no report, which a restored database needs"));
        };
        restored::reconcile(&self.0.store, self.0.clock.now().wall, rack, on_disk, told).await?;
        self.0.workflows.wake();
        Ok(())
    }

    /// Sends the trust bundle when the agent has another, then the intent whenever the rack's is
    /// newer than the one on the agent's disk.
    async fn push(&self, live: &Live, row: &Agent, on_disk: u64) -> Result<(), Dropped> {
        let (agent, rack) = (row.id, row.rack);
        let bundle = self.0.authority.bundle();
        if row.bundle.as_ref() != Some(&bundle.fingerprint()) {
            let json = serde_json::to_string(bundle).expect("a bundle always serializes");
            match ask(&live.quic, &ControllerRequest::Trust(json)).await {
                Ok(ControllerResponse::Trusted) => {
                    let mut tx = self.0.store.begin().await?;
                    tx.trusts(agent, &bundle.fingerprint()).await?;
                    tx.commit().await?;
                }
                Err(error @ Dropped::Slow(_)) => return Err(error),
                // It is asked again at its next connection, and no root is retired before.
                other => tracing::warn!(%agent, %rack, ?other, "the agent does not take the trust bundle"),
            }
        }
        let mut on_disk = on_disk;
        loop {
            let revision = self.0.store.rack_revision(rack).await?;
            if revision < on_disk {
                tracing::error!(%rack, revision, on_disk, "the node has a newer intent than this database: was an older copy restored?");
            }
            if revision > on_disk {
                let (wanted, bmcs, beside) = intent::of(&self.0.store, rack).await?;
                // First: an agent says that it has this revision when it has both.
                let whole = ControllerRequest::BmcsBeside(bmcs.clone(), beside);
                let told = match ask(&live.quic, &whole).await? {
                    ControllerResponse::NotUnderstood(_) => ask(&live.quic, &ControllerRequest::Bmcs(bmcs)).await?,
                    told => told,
                };
                match told {
                    ControllerResponse::Stored(_) => {}
                    ControllerResponse::NotUnderstood(_) => {
                        tracing::debug!(%rack, "the agent is of an earlier version and takes no BMCs");
                    }
                    refused => {
                        tracing::error!(%rack, ?refused, "the agent does not store how its BMCs are reached");
                        let _ = timeout(RECHECK, live.wake.notified()).await;
                        continue;
                    }
                }
                match ask(&live.quic, &ControllerRequest::Intent(wanted)).await? {
                    ControllerResponse::Stored(stored) => {
                        match self.acknowledged(agent, stored).await {
                            Ok(()) => {
                                on_disk = stored;
                                self.0.workflows.wake();
                                continue;
                            }
                            // It is sent again, and acknowledged again.
                            Err(error) if error.is_passing() => {
                                self.0.store.note(&error);
                                tracing::error!(%rack, error = &error as &dyn std::error::Error,
                                    "that the agent has its intent cannot be stored");
                            }
                            Err(error) => return Err(error.into()),
                        }
                    }
                    refused => tracing::error!(%rack, ?refused, "the agent does not store its intent"),
                }
            }
            // Without a wake-up too: whoever changes a rack may forget to say so.
            let _ = timeout(RECHECK, live.wake.notified()).await;
        }
    }

    async fn acknowledged(&self, agent: AgentId, revision: u64) -> Result<(), StoreError> {
        let mut tx = self.0.store.begin().await?;
        tx.acknowledged(self.0.clock.now().wall, agent, revision).await?;
        tx.commit().await
    }

    fn certificate(&self, agent: AgentId, rack: RackId, issued: &Issued) -> AgentResponse {
        AgentResponse::Certificate {
            agent,
            rack,
            chain: issued.chain.iter().map(|certificate| certificate.to_vec()).collect(),
            bundle: serde_json::to_string(self.0.authority.bundle()).expect("a bundle always serializes"),
        }
    }

    fn live(&self, rack: RackId) -> Option<Live> {
        let serves = |live: &&Live| live.admitted.load(Ordering::Acquire) && live.quic.close_reason().is_none();
        self.racks().get(&rack).filter(serves).cloned()
    }

    fn racks(&self) -> std::sync::MutexGuard<'_, HashMap<RackId, Live>> {
        self.0.racks.lock().expect("nothing panics while it is held")
    }
}

impl Agents for Fleet {
    fn ask(
        &self,
        rack: RackId,
        request: ControllerRequest,
    ) -> BoxFuture<'static, Result<ControllerResponse, Unreachable>> {
        let fleet = self.clone();
        Box::pin(
            async move { fleet.answer(rack, fleet.live(rack).as_ref(), &request, "a question about a console").await },
        )
    }

    fn open(&self, rack: RackId, request: ConsoleRequest) -> BoxFuture<'static, Result<Opened, Unreachable>> {
        let fleet = self.clone();
        Box::pin(async move { fleet.open_console(rack, request).await })
    }
}

impl Commands for Fleet {
    async fn reachable(&self, rack: RackId) -> Result<(), Unreachable> {
        if self.connected(rack) { Ok(()) } else { Err(self.unreachable(rack).await) }
    }

    async fn command(&self, rack: RackId, command: Command) -> Result<ControllerResponse, Unreachable> {
        Fleet::command(self, rack, command).await
    }

    async fn baseline(
        &self,
        rack: RackId,
        machine: MachineId,
        epoch: Epoch,
        ask: Ask,
    ) -> Result<Option<Answered>, Unreachable> {
        Fleet::baseline(self, rack, machine, epoch, ask).await
    }

    fn wake(&self, rack: RackId) {
        Fleet::wake(self, rack);
    }
}

/// Whether a process answers on this connection: one that was killed leaves its connection
/// open for as long as silence may last.
async fn is_alive(quic: &Connection) -> bool {
    let asked = ask::<ControllerResponse>(quic, &ControllerRequest::Report);
    matches!(timeout(ALIVE, asked).await, Ok(Ok(_)))
}

async fn ask<T: DeserializeOwned>(quic: &Connection, request: &impl Serialize) -> Result<T, Dropped> {
    timeout(PATIENCE, async {
        let (mut send, mut recv): (SendStream, RecvStream) = quic.open_bi().await?;
        send.write_all(&wire::encode(request)).await?;
        send.finish()?;
        // An enrolled agent's report is as long as an intent.
        Ok(wire::decode(&recv.read_to_end(wire::MAX_LEN).await?)?)
    })
    .await?
}

async fn answer(mut send: SendStream, response: &AgentResponse) -> Result<(), Dropped> {
    timeout(PATIENCE, send.write_all(&wire::encode(response))).await??;
    send.finish()?;
    Ok(())
}
