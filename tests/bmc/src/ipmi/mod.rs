//! IPMI 2.0 over RMCP+: [`packet`] takes datagrams apart, [`session`] holds the keys, [`command`]
//! answers. [`Server`] puts them together, without a socket; [`serve`] is its socket.
//!
//! IPMI 1.5 is spoken only where 2.0 needs it, to say what is there before a session.

mod command;
mod packet;
mod session;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use tokio::{net::UdpSocket, task::spawn_blocking};

pub use session::SESSIONS;

use self::{
    command::{Context, Memory, No},
    packet::{Packet, Request, V2},
    session::{Gate, Sessions},
};
use crate::{Bmc, chassis::Chassis, personality::Role, state::State};

/// After how long a session that is silent is dropped (IPMI 2.0 §6.12.15: 60 s).
const IDLE: SignedDuration = SignedDuration::from_secs(60);

/// The IPMI side of a BMC.
#[derive(Debug, Default)]
pub struct Server {
    sessions: Sessions,
    memory: Memory,
    restarts: u64,
    datagrams: u64,
}

impl Server {
    /// Answers one datagram, or stays silent. `random` is used once.
    pub fn answer(
        &mut self,
        now: Timestamp,
        state: &mut State,
        chassis: &dyn Chassis,
        random: [u8; 16],
        datagram: &[u8],
    ) -> Option<Vec<u8>> {
        if std::mem::replace(&mut self.restarts, state.restarts) != state.restarts {
            self.sessions = Sessions::default();
        }
        self.datagrams += 1;
        let is_lost = state.faults.dropping != 0 && self.datagrams.is_multiple_of(state.faults.dropping);
        if is_lost || state.is_silent(now) {
            return None;
        }
        self.sessions.open.retain(|session| session.heard + IDLE > now);
        state.pass(now, chassis);
        match packet::parse(datagram)? {
            Packet::Ping(tag) => Some(packet::pong(tag)),
            Packet::Plain(message) => {
                let request = Request::parse(message)?;
                Some(packet::plain(&self.reply(now, state, chassis, &request, None)?))
            }
            Packet::V2(packet) if packet.session == 0 => self.opening(now, state, chassis, random, &packet),
            Packet::V2(packet) => self.within(now, state, chassis, random, &packet),
        }
    }

    fn opening(
        &mut self,
        now: Timestamp,
        state: &mut State,
        chassis: &dyn Chassis,
        random: [u8; 16],
        packet: &V2<'_>,
    ) -> Option<Vec<u8>> {
        if packet.payload_type == 0 {
            let request = Request::parse(packet.payload)?;
            let message = self.reply(now, state, chassis, &request, None)?;
            return Some(packet::v2(0, 0, 0, &message));
        }
        let user = |name: &str| {
            let (id, user) = state.user(name).filter(|(_, user)| user.is_enabled)?;
            Some((id, user.password.clone(), user.role.unwrap_or(Role::None)))
        };
        let gate = Gate {
            suites: &state.personality.suites,
            guid: command::guid(state.uuid(), state.personality.quirks.guid),
            is_full: state.faults.no_sessions,
            user: &user,
        };
        match packet.payload_type {
            0x10 => self.sessions.open(now, &gate, packet.payload),
            0x12 => self.sessions.rakp1(&gate, random, packet.payload),
            0x14 => self.sessions.rakp3(packet.payload),
            _ => None,
        }
    }

    fn within(
        &mut self,
        now: Timestamp,
        state: &mut State,
        chassis: &dyn Chassis,
        random: [u8; 16],
        packet: &V2<'_>,
    ) -> Option<Vec<u8>> {
        let (session, payload) = self.sessions.unseal(packet)?;
        session.heard = now;
        let id = session.id;
        if packet.payload_type != 0 {
            return None;
        }
        let request = Request::parse(&payload)?;
        let message = self.reply(now, state, chassis, &request, Some(id));
        let session = self.sessions.open.iter_mut().find(|session| session.id == id)?;
        let answer = message.and_then(|message| session.seal(0, random, &message));
        self.sessions.open.retain(|session| !session.is_open() || session.limit > 0);
        answer
    }

    /// The message that answers a request, made in a session or outside.
    fn reply(
        &mut self,
        now: Timestamp,
        state: &mut State,
        chassis: &dyn Chassis,
        request: &Request<'_>,
        session: Option<u32>,
    ) -> Option<Vec<u8>> {
        let open = self.sessions.open.iter().filter(|session| session.is_open()).count() as u8;
        let session = session.and_then(|id| self.sessions.open.iter_mut().find(|session| session.id == id));
        let mut context =
            Context { now, state, chassis, memory: &mut self.memory, session, sessions: open, has_console: false };
        match command::answer(&mut context, request.net_fn, request.command, request.data) {
            Ok(data) => Some(request.answer(&[&[0][..], &data].concat())),
            Err(No::Code(code)) => Some(request.answer(&[code])),
            Err(No::Silence) => None,
        }
    }
}

/// Answers on this socket until it is dropped.
pub(crate) async fn serve(socket: UdpSocket, bmc: Arc<Bmc>) -> std::io::Result<()> {
    let mut server = Server::default();
    let mut buffer = vec![0; 2048];
    loop {
        // What a peer that went away sends back by ICMP is no reason to end.
        let Ok((length, peer)) = socket.recv_from(&mut buffer).await else { continue };
        let datagram = buffer[..length].to_vec();
        let shared = bmc.clone();
        let answered = spawn_blocking(move || {
            let answer = {
                let mut state = shared.lock();
                server.answer(Timestamp::now(), &mut state, &*shared.chassis, rand::random(), &datagram)
            };
            (server, answer)
        });
        let answer: Option<Vec<u8>>;
        (server, answer) = answered.await.map_err(std::io::Error::other)?;
        let slow = Duration::from_millis(bmc.lock().faults.slow_ms);
        if !slow.is_zero() {
            tokio::time::sleep(slow).await;
        }
        if let Some(answer) = answer {
            send(&socket, peer, &answer).await;
        }
    }
}

async fn send(socket: &UdpSocket, peer: SocketAddr, answer: &[u8]) {
    if let Err(error) = socket.send_to(answer, peer).await {
        tracing::debug!(%error, %peer, "an answer was not sent");
    }
}
