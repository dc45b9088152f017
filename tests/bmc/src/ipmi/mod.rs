//! IPMI 2.0 over RMCP+: [`packet`] takes datagrams apart, [`session`] holds the keys, [`command`]
//! answers. [`Server`] puts them together, without a socket; [`serve`] is its socket.
//!
//! IPMI 1.5 is spoken only where 2.0 needs it, to say what is there before a session.

mod command;
mod packet;
mod session;
mod sol;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    net::UdpSocket,
    task::spawn_blocking,
};

pub use session::SESSIONS;

use self::{
    command::{Context, Memory, No},
    packet::{Packet, Request, V2},
    session::{Gate, Sessions},
    sol::Line,
};
use crate::{Bmc, chassis::Chassis, personality::Role, state::State};

/// After how long a session that is silent is dropped (IPMI 2.0 §6.12.15: 60 s).
const IDLE: SignedDuration = SignedDuration::from_secs(60);

/// How long a machine may take to take what is typed, before that is lost.
const STUCK: Duration = Duration::from_millis(100);

/// The IPMI side of a BMC.
#[derive(Debug, Default)]
pub struct Server {
    sessions: Sessions,
    memory: Memory,
    line: Line,
    /// The session whose console was taken away, which is to be told.
    deprived: Option<u32>,
    typed: Vec<u8>,
    restarts: u64,
    datagrams: u64,
    /// The UDP port of this side, told to consoles.
    pub port: u16,
}

/// Where a RAKP message has its status, behind the headers of RMCP and of an unsealed packet.
const STATUS: usize = 17;

impl Server {
    /// Answers one datagram, or stays silent. `random` is used once.
    pub fn answer(
        &mut self,
        now: Timestamp,
        state: &mut State,
        chassis: &dyn Chassis,
        random: [u8; 16],
        peer: SocketAddr,
        datagram: &[u8],
    ) -> Option<Vec<u8>> {
        if std::mem::replace(&mut self.restarts, state.restarts) != state.restarts {
            self.sessions = Sessions::default();
        }
        self.datagrams += 1;
        let is_lost = state.faults.dropping != 0 && self.datagrams.is_multiple_of(state.faults.dropping);
        if is_lost || state.is_silent(now) || state.is_lan_closed {
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
            Packet::V2(packet) => self.within(now, state, chassis, random, peer, &packet),
        }
    }

    /// What was typed at the console since this was last asked.
    pub fn typed(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.typed)
    }

    /// The machine printed this on its serial line. Without a console it is lost.
    pub fn print(&mut self, characters: &[u8]) {
        if self.sessions.open.iter().any(|session| session.has_console) {
            self.line.print(characters);
        }
    }

    /// Whether the machine may print more.
    pub fn has_room(&self) -> bool {
        self.line.has_room() || !self.sessions.open.iter().any(|session| session.has_console)
    }

    /// What to send to the console now, and where. `random` is used once.
    pub fn transmit(&mut self, now: Timestamp, random: [u8; 16]) -> Option<(SocketAddr, Vec<u8>)> {
        let deprived = self.deprived.take();
        if let Some(session) = self.sessions.open.iter_mut().find(|session| Some(session.id) == deprived) {
            return Some((session.peer?, session.seal(1, random, &sol::DEACTIVATED)?));
        }
        let session = self.sessions.open.iter_mut().find(|session| session.has_console)?;
        let packet = self.line.transmit(now)?;
        Some((session.peer?, session.seal(1, random, &packet)?))
    }

    /// When [`Self::transmit`] has something, though nothing is printed.
    pub fn timeout(&self) -> Option<Timestamp> {
        self.sessions.open.iter().any(|session| session.has_console).then(|| self.line.timeout())?
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
            let (id, user) = state.user(name).filter(|(_, user)| user.is_enabled && !state.is_locked())?;
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
            0x14 => {
                let answer = self.sessions.rakp3(packet.payload);
                // A console that finds the password wrong by RAKP 2 says so, which is a login that was
                // denied as well.
                let is_wrong = packet.payload.get(1) != Some(&0);
                match answer.as_ref().and_then(|answer| answer.get(STATUS)) {
                    Some(0) => state.note_login(true),
                    Some(0x0f) => state.note_login(false),
                    _ if is_wrong => state.note_login(false),
                    _ => {}
                }
                answer
            }
            _ => None,
        }
    }

    fn within(
        &mut self,
        now: Timestamp,
        state: &mut State,
        chassis: &dyn Chassis,
        random: [u8; 16],
        peer: SocketAddr,
        packet: &V2<'_>,
    ) -> Option<Vec<u8>> {
        let (session, payload) = self.sessions.unseal(packet)?;
        session.heard = now;
        session.peer = Some(peer);
        let id = session.id;
        if packet.payload_type == 1 && session.has_console {
            let (typed, answer) = self.line.receive(&payload)?;
            self.typed.extend(typed);
            return session.seal(1, random, &answer?);
        }
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
        let taken = self.sessions.open.iter().any(|session| session.has_console);
        let asking = session;
        let session = session.and_then(|id| self.sessions.open.iter_mut().find(|session| session.id == id));
        let mut context = Context {
            now,
            state,
            chassis,
            memory: &mut self.memory,
            is_in_band: false,
            session,
            sessions: open,
            is_console_taken: taken,
            port: self.port,
        };
        match command::answer(&mut context, request.net_fn, request.command, request.data) {
            Ok(data) => {
                if (request.net_fn, request.command) == (0x06, 0x48) {
                    self.line = Line::default();
                }
                if (request.net_fn, request.command) == (0x06, 0x49) {
                    let holder = self.sessions.open.iter_mut().find(|session| session.has_console);
                    if let Some(holder) = holder {
                        holder.has_console = false;
                        self.deprived = (asking != Some(holder.id)).then_some(holder.id);
                    }
                }
                Some(request.answer(&[&[0][..], &data].concat()))
            }
            Err(No::Code(code)) => Some(request.answer(&[code])),
            Err(No::Silence) => None,
        }
    }
}

/// Answers a request of the machine itself: data behind the completion code 0x00, another code, or silence.
pub(crate) fn in_band(
    now: Timestamp,
    state: &mut State,
    chassis: &dyn Chassis,
    (net_fn, command): (u8, u8),
    data: &[u8],
) -> Result<Vec<u8>, Option<u8>> {
    if state.is_silent(now) {
        return Err(None);
    }
    state.pass(now, chassis);
    let mut context = Context {
        now,
        state,
        chassis,
        memory: &mut Memory::default(),
        is_in_band: true,
        session: None,
        sessions: 0,
        is_console_taken: false,
        port: 0,
    };
    command::answer(&mut context, net_fn, command, data).map_err(|no| match no {
        No::Code(code) => Some(code),
        No::Silence => None,
    })
}

/// Answers on this socket until it is dropped; `line` is the machine's serial line.
pub(crate) async fn serve(socket: UdpSocket, mut line: DuplexStream, bmc: Arc<Bmc>) -> std::io::Result<()> {
    let mut server = Server { port: socket.local_addr()?.port(), ..Server::default() };
    let mut buffer = vec![0; 2048];
    let mut printed = vec![0; 1024];
    let mut has_line = true;
    loop {
        while let Some((peer, packet)) = server.transmit(Timestamp::now(), rand::random()) {
            send(&socket, peer, &packet).await;
        }
        let wait =
            server.timeout().map(|at| Timestamp::now().duration_until(at).max(SignedDuration::ZERO).unsigned_abs());
        let received = tokio::select! {
            received = socket.recv_from(&mut buffer) => received,
            read = line.read(&mut printed), if has_line && server.has_room() => {
                match read {
                    Ok(length) if length > 0 => server.print(&printed[..length]),
                    _ => has_line = false,
                }
                continue;
            }
            () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => continue,
        };
        // What a peer that went away sends back by ICMP is no reason to end.
        let Ok((length, peer)) = received else { continue };
        let datagram = buffer[..length].to_vec();
        let shared = bmc.clone();
        let answered = spawn_blocking(move || {
            let answer = {
                let mut state = shared.lock();
                server.answer(Timestamp::now(), &mut state, &*shared.chassis, rand::random(), peer, &datagram)
            };
            (server, answer)
        });
        let answer: Option<Vec<u8>>;
        (server, answer) = answered.await.map_err(std::io::Error::other)?;
        let typed = server.typed();
        if !typed.is_empty() && tokio::time::timeout(STUCK, line.write_all(&typed)).await.is_err() {
            tracing::debug!("the machine does not take what is typed");
        }
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
