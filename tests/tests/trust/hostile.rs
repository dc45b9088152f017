//! Peers that mean harm, while an honest agent is connected.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use rackhand_common::{
    event::{Event, What},
    id::{AgentId, RackId},
    pki::{self, Role},
    wire::{self, ALPN, ALPN_ENROL, AgentRequest, AgentResponse, Closing},
};
use rackhand_controller::authority::Authority;
use reqwest::{Method, StatusCode};
use rustls_pki_types::PrivateKeyDer;
use serde_json::json;

use crate::bench::*;

/// A controller, an honest agent that is connected to it, and the identity of another rack's
/// agent, whose node has turned.
struct Scene {
    controller: Controller,
    honest: Node,
    turned: Node,
}

impl Scene {
    async fn new() -> Self {
        let controller = Controller::new(ahead(0)).await;
        controller.create_rack("r2").await;
        let mut honest = Node::enrolled(&controller, &controller.code().await).await;
        let turned = Node::enrolled(&controller, &controller.code_for("r2").await).await;
        honest.start(ahead(0)).await;
        controller.sees(&honest).await;
        Self { controller, honest, turned }
    }

    /// The honest agent gets what changes, and chunks; a new node is enrolled.
    async fn honest_agent_is_served(&self) {
        assert!(self.honest.status().await.uplink.contains("connected to"));
        assert_eq!(self.controller.agent(&self.honest.id()).await["connected"], true);
        assert_eq!(chunk_as(&self.controller, self.honest.stolen()).await, StatusCode::NOT_FOUND);
    }

    /// A connection of the turned node, welcomed.
    async fn welcomed(&self) -> Dialled {
        let dialled = self.controller.dial(self.turned.stolen(), ALPN).await.unwrap();
        assert!(matches!(dialled.ask(&hello()).await.unwrap(), AgentResponse::Welcome(_)));
        dialled
    }

    fn anonymous(&self, alpn: &[u8]) -> rustls::ClientConfig {
        let mut tls = rustls::ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
            .with_root_certificates(self.controller.bundle().root_store().unwrap())
            .with_no_client_auth();
        tls.alpn_protocols = vec![alpn.to_vec()];
        tls
    }
}

async fn refused(dialled: Result<Dialled, quinn::ConnectionError>) {
    // A certificate that is not believed ends the handshake, which the client has finished by then.
    let Ok(dialled) = dialled else { return };
    assert!(dialled.ask(&hello()).await.is_err());
    assert!(matches!(dialled.closed().await, None | Some(Closing::Refused)));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_registered_agent_with_its_own_certificate_is_let_in() {
    let scene = Scene::new().await;
    let (controller, at) = (&scene.controller, scene.controller.agents);
    refused(dial(at, scene.anonymous(ALPN)).await).await;
    refused(dial(at, scene.anonymous(b"rackhand/9")).await).await;
    // On an enrolment connection nothing but enrolment is understood, whoever asks.
    refused(dial(at, scene.anonymous(ALPN_ENROL)).await).await;
    refused(controller.dial(scene.turned.stolen(), ALPN_ENROL).await).await;

    let elsewhere = Controller::new(ahead(0)).await;
    let stranger = Node::enrolled(&elsewhere, &elsewhere.code().await).await;
    refused(controller.dial(stranger.stolen(), ALPN).await).await;

    // Certificates of our own root that no registration answers to.
    let authority = Authority::open(&controller.pki()).unwrap();
    let id = |node: &Node, field: &str| node.stored()[field].as_str().unwrap().to_owned();
    let (agent, rack): (AgentId, RackId) =
        (id(&scene.turned, "agent").parse().unwrap(), id(&scene.honest, "rack").parse().unwrap());
    for role in [Role::Agent { agent, rack }, Role::Agent { agent: AgentId::fresh(), rack }, Role::Controller] {
        let (key, csr) = csr();
        let issued = authority.issue(&csr, role, Duration::from_secs(3600), jiff::Timestamp::now()).unwrap();
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        refused(controller.dial(pki::Identity { chain: issued.chain, key }, ALPN).await).await;
    }
    scene.honest_agent_is_served().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_of_another_rack_cannot_speak_for_this_one() {
    let scene = Scene::new().await;
    let turned = scene.welcomed().await;
    let before = scene.controller.agent(&scene.honest.id()).await;
    // It is its own rack's events that it can tell, and its own certificate that it can renew.
    let AgentResponse::Certificate { agent, rack, .. } =
        turned.ask(&AgentRequest::Renew { csr: csr().1 }).await.unwrap()
    else {
        panic!("not renewed")
    };
    assert_eq!(json!(agent), scene.turned.stored()["agent"]);
    assert_eq!(json!(rack), scene.turned.stored()["rack"]);
    let enrol = AgentRequest::Enrol { secret: "x".into(), csr: csr().1 };
    assert!(matches!(turned.ask(&enrol).await.unwrap(), AgentResponse::Refused(_)));
    assert_eq!(scene.controller.agent(&scene.honest.id()).await["certificate_until"], before["certificate_until"]);
    scene.honest_agent_is_served().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_and_oversized_messages_end_the_connection_that_brought_them() {
    let scene = Scene::new().await;
    let at = scene.controller.agents;
    let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    for n in 0..2000u32 {
        let bytes: Vec<u8> = (0..1200).map(|i| (i as u32).wrapping_mul(n.wrapping_mul(2_654_435_761)) as u8).collect();
        udp.send_to(&bytes, at).unwrap();
    }
    let send = async |dialled: &Dialled, bytes: Vec<u8>| {
        let (mut send, mut receive) = dialled.quic.open_bi().await.unwrap();
        // The controller may have enough before all is sent.
        let _ = send.write_all(&bytes).await;
        let _ = send.finish();
        // Nothing is answered, or the connection is gone before that can be seen.
        assert_eq!(receive.read_to_end(wire::MAX_LEN).await.unwrap_or_default(), Vec::<u8>::new());
        assert_eq!(dialled.closed().await, Some(Closing::Refused));
    };
    for bytes in [vec![0xff; 100], Vec::new(), vec![0; (64 << 10) + 1]] {
        let enrolling = dial(at, scene.anonymous(ALPN_ENROL)).await.unwrap();
        send(&enrolling, bytes.clone()).await;
        let agent = scene.controller.dial(scene.turned.stolen(), ALPN).await.unwrap();
        send(&agent, bytes).await;
    }
    for bytes in [vec![0xff; 100], vec![0; wire::MAX_LEN + 1]] {
        send(&scene.welcomed().await, bytes).await;
    }
    scene.honest_agent_is_served().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_claims_absurd_numbers_harms_itself_alone() {
    let scene = Scene::new().await;
    for number in [i64::MAX as u64, u64::MAX, 1 << 48] {
        let dialled = scene.controller.dial(scene.turned.stolen(), ALPN).await.unwrap();
        let AgentRequest::Hello(hello) = hello() else { unreachable!("it says hello") };
        let hello = wire::Hello { connection: number, revision: number, version: "9".repeat(60_000), ..hello };
        assert!(matches!(dialled.ask(&AgentRequest::Hello(hello)).await.unwrap(), AgentResponse::Welcome(_)));
        let events = AgentRequest::Events { first: number, events: Vec::new() };
        assert!(matches!(dialled.ask(&events).await.unwrap(), AgentResponse::Next(_)));
        assert_eq!(scene.controller.agent(&scene.turned.id()).await["version"], "9".repeat(64));
    }
    scene.honest_agent_is_served().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_tells_an_impostor_of_its_controller_nothing() {
    let mut scene = Scene::new().await;
    scene.controller.stop().await;
    let mut impostor = Controller::new(ahead(0)).await;
    impostor.stop().await;
    impostor.config.agents = scene.controller.agents;
    impostor.start(ahead(0)).await;
    let shown = scene.honest.shows("invalid peer certificate").await;
    assert!(shown.contains("not connected"), "{shown}");
    assert_eq!(impostor.ask(Method::GET, "/v1/agents", json!({})).await["items"], json!([]));
    impostor.stop().await;
    scene.controller.start(ahead(0)).await;
    scene.controller.sees(&scene.honest).await;
}

/// How many bytes are taken of a stream that is never finished, until no more are.
async fn taken(send: &mut quinn::SendStream) -> usize {
    let piece = vec![0u8; 64 << 10];
    let mut taken = 0;
    while let Ok(Ok(written)) = tokio::time::timeout(Duration::from_millis(500), send.write(&piece)).await {
        taken += written;
    }
    taken
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_peer_can_have_under_way_is_bounded() {
    let scene = Scene::new().await;
    let many = async |dialled: &Dialled| {
        let mut streams = Vec::new();
        while streams.len() < 1000
            && let Ok(Ok((send, _receive))) =
                tokio::time::timeout(Duration::from_millis(500), dialled.quic.open_bi()).await
        {
            streams.push((send, _receive));
        }
        streams
    };
    // One stream before a peer is known; a stranger's bytes are held to 128 KiB, of which it is
    // read at most what an enrolment needs.
    let stranger = dial(scene.controller.agents, scene.anonymous(ALPN_ENROL)).await.unwrap();
    let mut streams = many(&stranger).await;
    assert_eq!(streams.len(), 1);
    assert!(taken(&mut streams[0].0).await <= 256 << 10);

    let turned = scene.welcomed().await;
    let mut streams = many(&turned).await;
    assert_eq!(streams.len(), 4);
    // The first is read as one message, the others wait for it.
    let mut held = 0;
    for (send, _) in &mut streams[1..] {
        send.write_all(&[0]).await.unwrap();
        held += taken(send).await;
    }
    assert!(held <= 5 << 20, "{held}");
    assert!(turned.quic.open_uni().now_or_never().is_none());
    scene.honest_agent_is_served().await;
}

/// The future's value when it is there at once.
trait NowOrNever: Future + Sized {
    fn now_or_never(self) -> Option<Self::Output> {
        let mut future = std::pin::pin!(self);
        match future.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
            std::task::Poll::Ready(value) => Some(value),
            std::task::Poll::Pending => None,
        }
    }
}

impl<F: Future> NowOrNever for F {}

/// All of them at once: each costs the controller's whole patience of 15 s.
#[tokio::test(flavor = "multi_thread")]
async fn peers_that_never_finish_or_never_read_are_dropped_in_time() {
    let scene = Scene::new().await;
    let began = Instant::now();
    let silent = scene.controller.dial(scene.turned.stolen(), ALPN).await.unwrap();
    let enrolling = dial(scene.controller.agents, scene.anonymous(ALPN_ENROL)).await.unwrap();
    let (mut endless, _receive) = enrolling.quic.open_bi().await.unwrap();
    endless.write_all(&[3]).await.unwrap();

    // Takes no stream of the controller's: it can be told nothing.
    scene.controller.create_rack("r3").await;
    let deaf = Node::enrolled(&scene.controller, &scene.controller.code_for("r3").await).await;
    let mut transport = quinn::TransportConfig::default();
    transport.max_concurrent_bidi_streams(0u32.into());
    let tls = pki::agent_client(&scene.controller.bundle(), deaf.stolen(), &[ALPN]).unwrap();
    let deaf_peer = dial_with(scene.controller.agents, tls, transport).await.unwrap();
    assert!(matches!(deaf_peer.ask(&hello()).await.unwrap(), AgentResponse::Welcome(_)));

    // Welcomed, then a request that never ends.
    scene.controller.create_rack("r4").await;
    let slow = Node::enrolled(&scene.controller, &scene.controller.code_for("r4").await).await;
    let slow = scene.controller.dial(slow.stolen(), ALPN).await.unwrap();
    assert!(matches!(slow.ask(&hello()).await.unwrap(), AgentResponse::Welcome(_)));
    let (mut unfinished, _receive) = slow.quic.open_bi().await.unwrap();
    unfinished.write_all(&[1]).await.unwrap();

    for peer in [&silent, &enrolling, &deaf_peer, &slow] {
        assert_eq!(peer.closed().await, Some(Closing::Refused));
    }
    assert!(began.elapsed() < Duration::from_secs(28), "{:?}", began.elapsed());
    scene.honest_agent_is_served().await;
}

/// Many addresses of one machine, which is what loopback has: half-open handshakes and bodies
/// that never end fill the API's places, garbage and forged Initials come to the agents' port.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_both_ports_keeps_neither_agent_nor_operator_out() {
    use tokio::io::AsyncWriteExt as _;

    let mut scene = Scene::new().await;
    let (api, agents) = (scene.controller.api, scene.controller.agents);
    let over = tokio_util::sync::CancellationToken::new();
    let flood = {
        let over = over.clone();
        tokio::spawn(async move {
            let udp: Vec<_> = (2..52)
                .map(|last| std::net::UdpSocket::bind(std::net::SocketAddr::from(([127, 0, 0, last], 0))).unwrap())
                .collect();
            let (start, mut sent) = (Instant::now(), 0u64);
            while !over.is_cancelled() {
                // Half of them look like a first packet of version 1, with a long header.
                let due = (start.elapsed().as_micros() as u64 / 100).max(sent);
                for n in sent..due {
                    let mut bytes: Vec<u8> =
                        (0..1200).map(|i: u64| (i.wrapping_mul(n.wrapping_mul(2_654_435_761)) >> 7) as u8).collect();
                    if n % 2 == 0 {
                        bytes[..6].copy_from_slice(&[0xc3, 0, 0, 0, 1, 8]);
                        bytes[14..24].copy_from_slice(&[8, 1, 2, 3, 4, 5, 6, 7, 8, 0]);
                        bytes[24..26].copy_from_slice(&[0x44, 0x90]);
                    }
                    let _ = udp[(n % 50) as usize].send_to(&bytes, agents);
                }
                sent = due;
                let _ = tokio::time::timeout(Duration::from_millis(2), over.cancelled()).await;
            }
            sent * 1000 / start.elapsed().as_millis() as u64
        })
    };
    let all = std::sync::Arc::new(AtomicU32::new(0));
    let slow = {
        let counted = all.clone();
        let (over, tls) = (over.clone(), scene.anonymous(b"http/1.1"));
        tokio::spawn(async move {
            let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(tls));
            let (mut open, mut opened) = (Vec::new(), 0u32);
            while !over.is_cancelled() {
                let socket = tokio::net::TcpSocket::new_v4().unwrap();
                socket.bind(([127, 0, 0, 2 + (opened % 50) as u8], 0).into()).unwrap();
                let Ok(mut stream) = socket.connect(api).await else { continue };
                opened += 1;
                counted.store(opened, Ordering::Relaxed);
                // Every fourth finishes its handshake and begins a body that has no end.
                if opened % 4 == 0 {
                    let name = "rackhand-controller".try_into().unwrap();
                    if let Ok(Ok(mut tls)) =
                        tokio::time::timeout(Duration::from_secs(1), connector.connect(name, stream)).await
                    {
                        let begun = b"POST /v1/racks HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
                            transfer-encoding: chunked\r\n\r\n4e20\r\n[[[[[[";
                        let _ = tls.write_all(begun).await;
                        open.push(Err(tls));
                    }
                } else {
                    let _ = stream.write_all(&[0x16, 3, 1, 2, 0, 1]).await;
                    open.push(Ok(stream));
                }
                if open.len() > 3000 {
                    open.drain(..500);
                }
            }
            opened
        })
    };
    wait_for("every place of the API to be taken", async || match all.load(Ordering::Relaxed) {
        opened if opened > 2048 => Ok(()),
        opened => Err(format!("{opened} connections")),
    })
    .await;
    for _ in 0..3 {
        let began = Instant::now();
        let racks = scene.controller.ask(Method::GET, "/v1/racks", json!({})).await;
        assert_eq!(racks["items"].as_array().unwrap().len(), 2);
        assert!(began.elapsed() < Duration::from_secs(3), "an operator waited {:?}", began.elapsed());
    }
    scene.honest.stop().await;
    let began = Instant::now();
    scene.honest.start(ahead(0)).await;
    scene.honest.connected().await;
    assert!(began.elapsed() < Duration::from_secs(10), "an agent waited {:?}", began.elapsed());
    scene.honest_agent_is_served().await;
    over.cancel();
    let (rate, opened) = (flood.await.unwrap(), slow.await.unwrap());
    assert!(rate > 2000 && opened > 1024, "too feeble: {rate} datagrams a second, {opened} connections");
}

/// In a process of its own: memory is measured, and other tests' must not be.
#[test]
fn a_crowd_of_strangers_neither_fills_the_memory_nor_keeps_an_agent_out() {
    let alone = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "hostile::a_crowd_of_strangers", "--nocapture"])
        .env(ALONE, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&alone.stdout).into_owned() + &String::from_utf8_lossy(&alone.stderr);
    assert!(alone.status.success() && said.contains("1 passed"), "{said}");
}

const ALONE: &str = "RACKHAND_TEST_CROWD";

/// Run by the test above; does nothing otherwise.
#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_of_strangers() {
    if std::env::var_os(ALONE).is_none() {
        return;
    }
    let mut scene = Scene::new().await;
    let before = resident();
    let mut crowd = Vec::new();
    for _ in 0..300 {
        let tls = scene.anonymous(ALPN_ENROL);
        let open =
            async |stranger: &Dialled| tokio::time::timeout(Duration::from_millis(100), stranger.quic.open_bi()).await;
        if let Ok(stranger) = dial(scene.controller.agents, tls).await
            && let Ok(Ok((mut send, receive))) = open(&stranger).await
        {
            let _ = tokio::time::timeout(Duration::from_millis(100), send.write_all(&[0; 60 << 10])).await;
            crowd.push((stranger, send, receive));
        }
    }
    // The crowd itself lives in this process too.
    let grown = resident().saturating_sub(before);
    assert!(grown < 256 << 20, "{grown} bytes more");
    wait_for("the crowd's dispersal", async || {
        let open = crowd.iter().filter(|(stranger, ..)| stranger.quic.close_reason().is_none()).count();
        if open <= 64 { Ok(()) } else { Err(format!("{open} strangers are held")) }
    })
    .await;
    scene.honest_agent_is_served().await;
    scene.honest.stop().await;
    scene.honest.start(ahead(0)).await;
    scene.honest.connected().await;
    let revoke = format!("/v1/agents/{}/revoke", scene.honest.id());
    scene.controller.ask(Method::POST, &revoke, json!({})).await;
    scene.honest.shows("REVOKED").await;
}

/// Memory of this process, in bytes.
fn resident() -> u64 {
    let pages: u64 = std::fs::read_to_string("/proc/self/statm").unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_of_the_next_version_is_told_what_is_not_understood_and_its_session_lives() {
    let scene = Scene::new().await;
    let dialled = scene.welcomed().await;
    let event = |what| Event { at: jiff::Timestamp::UNIX_EPOCH, machine: None, what };
    let known = || event(What::TicketRefused { reason: "known".into() });
    // The codec writes a variant as its number, up to 250 as one byte.
    let request = vec![250, 4, b'f', b'a', b'n', b's'];
    let mut events =
        wire::encode(&AgentRequest::Events { first: 1, events: vec![known(), event(What::Gap { lost: 3 })] });
    let (gap, lost) = (events.len() - 2, events.len() - 1);
    assert_eq!(events[lost], 3);
    events[gap] = 250;
    for bytes in [request, events] {
        let answer = dialled.ask_bytes(&bytes).await.unwrap();
        let AgentResponse::NotUnderstood(reason) = &answer else { panic!("{answer:?}") };
        assert!(reason.contains("does not know"), "{reason}");
    }

    // Nothing of it was taken; what is understood is, on the same connection.
    let events = vec![known(), event(What::Gap { lost: 1 })];
    assert_eq!(dialled.ask(&AgentRequest::Events { first: 1, events }).await.unwrap(), AgentResponse::Next(3));
    assert!(dialled.quic.close_reason().is_none());
    scene.honest_agent_is_served().await;
}
