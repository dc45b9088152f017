//! Attacks on the controller's two ports, from a network that reaches them; an operator on
//! another one, and a node that is enrolled, must not notice.

use std::{
    fs,
    io::Write,
    net::{Ipv4Addr, SocketAddrV4, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use rackhand_common::{machine::Mac, wire::ALPN_ENROL};
use rustls::{
    RootCertStore, Side,
    crypto::{CryptoProvider, aws_lc_rs},
    quic,
};
use rustls_pki_types::ServerName;

use super::{
    client::{connect_to, until},
    intruder::{borrowed, mac_of, trickle},
    range::{FEEBLE, FLOOD, LEAD, Machine, PATIENCE, Range},
    wire::{Card, Ends, flood, udp},
};
use crate::{
    network::{Cabling, Place},
    operator::items,
    rack::enrol_node,
    run::run,
    services::Service,
};

/// The controller on the intruder's network.
const CONTROLLER: Ipv4Addr = Ipv4Addr::new(10, 79, 0, 1);
const API: SocketAddrV4 = SocketAddrV4::new(CONTROLLER, 8443);
const AGENTS: u16 = 4433;

/// The most that the controller's memory may grow under any of these. Full tables are: 1024 TLS
/// connections at some forty kilobytes, and handshakes of agents at some thirty.
const GROWTH: u64 = 128 << 20;

/// The most files it may have open: its 1024 connections' and its own.
const OPEN: usize = 1024 + 128;

/// How long an operator's command may take meanwhile, its own start and handshake in it.
const ANSWER: Duration = Duration::from_secs(5);

/// How many of them.
const COMMANDS: u32 = 5;

/// Connects the controller and the intruder by a network of their own.
pub(super) fn plug(cabling: &Cabling) -> anyhow::Result<()> {
    let (here, there) = (cabling.namespace(Place::Controller), Machine::Intruder.namespace());
    run("ip", &["-n", &here, "link", "add", "crowd0", "type", "veth", "peer", "name", "net1", "netns", there])?;
    run("ip", &["-n", &here, "addr", "add", &format!("{CONTROLLER}/24"), "dev", "crowd0"])?;
    run("ip", &["-n", &here, "link", "set", "crowd0", "up"])?;
    run("ip", &["-n", there, "link", "set", "net1", "up"]).map(drop)
}

/// Waits for the controller and makes a rack that nodes are enrolled for.
pub(super) fn furnish(range: &Range) -> anyhow::Result<()> {
    until(Instant::now() + Duration::from_secs(60), || range.operator.ask(&["rack", "list"]))?;
    let delegated = "10.77.0.100-10.77.0.199";
    range.operator.ask(&["rack", "create", "r1", "--node", "10.77.0.1/24", "--delegated", delegated]).map(drop)
}

/// Ten thousand datagrams a second of whatever comes.
pub(super) fn garbage(range: &mut Range) -> anyhow::Result<String> {
    datagrams(range, |number| {
        let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut bytes: Vec<u8> = (0..1200)
            .map(|_| {
                // Marsaglia's xorshift.
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state as u8
            })
            .collect();
        // Every other looks like a first packet of version 1 until it is opened.
        if number % 2 == 0 {
            bytes[..6].copy_from_slice(&[0xc3, 0, 0, 0, 1, 8]);
            bytes[14..18].copy_from_slice(&[0, 0, 0x44, 0x90]);
        }
        bytes
    })
}

/// Ten thousand beginnings of good handshakes a second, each of another connection, whose
/// senders never answer: each costs an exchange of keys and a signature, if it is taken up.
pub(super) fn forged_handshakes(range: &mut Range) -> anyhow::Result<String> {
    let hello = client_hello()?;
    let suite = aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
    let suite = suite.tls13().and_then(rustls::Tls13CipherSuite::quic_suite).context("no QUIC with this suite")?;
    // One alone is answered: it is what it should be.
    let mac = mac_of(range, Place::Controller, "crowd0")?;
    Machine::Intruder.acts(|| {
        let card = Card::open("net1")?;
        card.send(&udp(towards_agents(card.mac, mac, 0), &initial(suite, &hello, 0)?));
        let answered = |frame: &[u8]| (frame.get(34..36)? == AGENTS.to_be_bytes() && frame.len() > 1200).then_some(());
        card.find(Instant::now() + PATIENCE, answered)?.context("a first packet alone is not answered")
    })?;
    datagrams(range, |number| initial(suite, &hello, number + 1).unwrap_or_default())
}

/// The first message of an anonymous node that enrols.
fn client_hello() -> anyhow::Result<Vec<u8>> {
    // With one small share: it fits a datagram.
    let provider = CryptoProvider { kx_groups: vec![aws_lc_rs::kx_group::X25519], ..aws_lc_rs::default_provider() };
    let mut tls = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    tls.alpn_protocols = vec![ALPN_ENROL.to_vec()];
    // The one parameter that has to be there: initial_source_connection_id (RFC 9000 §18.2).
    let parameters = [&[0x0f, 8][..], &SOURCE].concat();
    let name = ServerName::try_from("rackhand-controller")?;
    let mut connection = quic::ClientConnection::new(Arc::new(tls), quic::Version::V1, name, parameters)?;
    let mut hello = Vec::new();
    connection.write_hs(&mut hello);
    Ok(hello)
}

/// The connection id of whoever sends a first packet.
const SOURCE: [u8; 8] = *b"intruder";

/// A whole first packet (RFC 9000 §17.2.2, RFC 9001 §5) of the connection of this number.
fn initial(suite: quic::Suite, hello: &[u8], number: u64) -> anyhow::Result<Vec<u8>> {
    let to = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
    let keys = suite.keys(&to, Side::Client, quic::Version::V1).local;
    let (packet_number, varint) = ([0; 4], |value: usize| (0x4000 | value as u16).to_be_bytes());
    let mut header = [&[0xc3, 0, 0, 0, 1, 8][..], &to, &[8], &SOURCE, &[0]].concat();
    let length = 1200 - header.len() - 2;
    header.extend(varint(length));
    header.extend(packet_number);
    let mut payload = [&[6, 0][..], &varint(hello.len()), hello].concat();
    payload.resize(length - packet_number.len() - keys.packet.tag_len(), 0);
    let tag = keys.packet.encrypt_in_place(0, &header, &mut payload)?;
    let mut packet = [&header, &payload[..], tag.as_ref()].concat();
    let (head, rest) = packet.split_at_mut(header.len());
    let (head, number) = head.split_at_mut(header.len() - packet_number.len());
    keys.header.encrypt_in_place(&rest[..keys.header.sample_len()], &mut head[0], number)?;
    Ok(packet)
}

/// A datagram from one of fifty addresses, and from many ports of each, to the agents' port.
fn towards_agents(source: Mac, destination: Mac, number: u64) -> Ends {
    let from = (borrowed(CONTROLLER, number as u32), 1024 + (number / 50 % 60_000) as u16);
    Ends { source, destination, from, to: (CONTROLLER, AGENTS) }
}

/// Floods the agents' port with these, and has a node enrolled meanwhile.
fn datagrams(range: &Range, datagram: impl Fn(u64) -> Vec<u8> + Sync) -> anyhow::Result<String> {
    let mac = mac_of(range, Place::Controller, "crowd0")?;
    let attack = |over: &AtomicBool| {
        let card = Card::open("net1")?;
        let frame = |number| udp(towards_agents(card.mac, mac, number), &datagram(number));
        let mut least = u64::MAX;
        while !over.load(Ordering::Relaxed) || least == u64::MAX {
            least = least.min(flood(&card, FLOOD / 2, frame));
        }
        ensure!(least >= FEEBLE, "only {least} datagrams a second were sent");
        Ok(format!("{least} datagrams a second"))
    };
    obeys_during(range, LEAD, attack, |range| {
        let began = Instant::now();
        until(began + PATIENCE, || {
            let _ = fs::remove_dir_all(range.files.state(Service::Agent));
            enrol_node(&range.files, &range.cabling, &range.operator)
        })
        .context("a node is not enrolled meanwhile")?;
        Ok(format!("a node enrolled in {:.1} s, ", began.elapsed().as_secs_f64()))
    })
}

pub(super) fn half_open_handshakes(range: &mut Range) -> anyhow::Result<String> {
    let attack = |over: &AtomicBool| trickle(over, API, &[0x16, 3, 1, 2, 0], &[1]);
    obeys_during(range, FLOOD, attack, |_| Ok(String::new()))
}

/// Whole handshakes, and then headers and bodies that come byte by byte.
pub(super) fn slow_requests(range: &mut Range) -> anyhow::Result<String> {
    let ca = fs::read(&range.operator.ca)?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_pki_types::pem::PemObject::pem_slice_iter(&ca).filter_map(Result::ok));
    let tls = Arc::new(rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth());
    let name = ServerName::try_from(range.cabling.controller())?;
    let begun = |number: u32| -> anyhow::Result<rustls::StreamOwned<rustls::ClientConnection, TcpStream>> {
        let tcp = connect_to(borrowed(CONTROLLER, number), API)?;
        let mut stream = rustls::StreamOwned::new(rustls::ClientConnection::new(tls.clone(), name.clone())?, tcp);
        stream.write_all(match number % 2 {
            0 => b"GET /v1/racks HTTP/1.1\r\nhost: x\r\nx: ",
            _ => b"POST /v1/racks HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999\r\n\r\n",
        })?;
        stream.sock.set_nonblocking(true)?;
        Ok(stream)
    };
    let attack = |over: &AtomicBool| {
        let (opened, numbers) = (AtomicU64::new(0), AtomicU64::new(0));
        let opens = || {
            let mut open = Vec::new();
            while !over.load(Ordering::Relaxed) {
                let number = numbers.fetch_add(1, Ordering::Relaxed) as u32;
                if open.len() < 1_000
                    && let Ok(stream) = begun(number)
                {
                    opened.fetch_add(1, Ordering::Relaxed);
                    open.push(stream);
                }
                open.retain_mut(|stream| {
                    let said = stream.write(b"y").and_then(|_| stream.flush());
                    !said.is_err_and(|error| error.kind() != std::io::ErrorKind::WouldBlock)
                });
            }
        };
        thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(opens))));
        Ok(format!("{} slow requests", opened.into_inner()))
    };
    obeys_during(range, FLOOD, attack, |_| Ok(String::new()))
}

/// Has an operator give commands while the intruder does `attack`, which has been under way for
/// `lead` then, and `others` act beside. Then the controller has to come to rest.
fn obeys_during(
    range: &Range,
    lead: Duration,
    attack: impl FnOnce(&AtomicBool) -> anyhow::Result<String> + Send,
    others: impl FnOnce(&Range) -> anyhow::Result<String>,
) -> anyhow::Result<String> {
    let (before, start, over) = (range.usage(Service::Controller)?, Instant::now(), AtomicBool::new(false));
    let process = range.services.pid(Service::Controller)?;
    let (obeyed, open, said) = thread::scope(|scope| {
        let attacking = scope.spawn(|| Machine::Intruder.acts(|| attack(&over)));
        thread::sleep(lead);
        let obeyed = commands(range).and_then(|slowest| Ok((slowest, others(range)?)));
        let open = fs::read_dir(format!("/proc/{process}/fd")).map(Iterator::count);
        over.store(true, Ordering::Relaxed);
        (obeyed, open, attacking.join().unwrap_or_else(|_| bail!("the attack panicked")))
    });
    let (lasted, after, open) = (start.elapsed(), range.usage(Service::Controller)?, open?);
    let measured = format!(
        "{}; controller: {open} files open, {} MiB before, {} after, {:.0} % of a processor",
        said?,
        before.memory >> 20,
        after.memory >> 20,
        (after.processor - before.processor).as_secs_f64() / lasted.as_secs_f64() * 100.0
    );
    let (slowest, others) = obeyed.with_context(|| format!("under attack ({measured})"))?;
    let grown = after.memory.saturating_sub(before.memory);
    ensure!(grown <= GROWTH, "the controller has grown by {} MiB ({measured})", grown >> 20);
    ensure!(open <= OPEN, "the controller holds too many connections ({measured})");
    let rest = range.comes_to_rest(Service::Controller)?;
    Ok(format!(
        "{others}the slowest of {COMMANDS} commands in {:.2} s beside {measured}; at rest after {:.1} s",
        slowest.as_secs_f64(),
        rest.as_secs_f64()
    ))
}

/// How long the slowest of an operator's commands took.
fn commands(range: &Range) -> anyhow::Result<Duration> {
    let mut slowest = Duration::ZERO;
    for _ in 0..COMMANDS {
        let began = Instant::now();
        let racks = range.operator.ask(&["rack", "list"])?;
        ensure!(items(&racks)?.len() == 1, "an operator is told {racks}");
        slowest = slowest.max(began.elapsed());
    }
    ensure!(slowest <= ANSWER, "an operator waited {slowest:?}");
    Ok(slowest)
}
