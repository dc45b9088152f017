//! A machine's serial console: a session of its own with serial over LAN in it. [`Core`] has no IO,
//! [`Console`] is its shell.
//!
//! Invariants:
//! - The console of somebody else is taken over only when that was asked for.
//! - While it is open, the BMC is asked something every [`KEEP_ALIVE`], so that neither end takes the
//!   other for gone; a console that nobody has any more according to the BMC is over.
//! - A console that is left is deactivated and its session closed, as far as the BMC answers.
//! - Of the BMC's configuration nothing is changed but that serial over LAN is enabled.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use rackhand_common::time::Mono;
use tokio::{
    net::UdpSocket,
    time::{Instant, timeout, timeout_at},
};

use super::{
    session::{Failure, Nonce, Session},
    sol::{self, End, Line, Noticed},
};
use crate::bmc::{BmcError, Credentials};

/// How often the BMC is asked something.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// How long leaving may take.
const LEAVE: Duration = Duration::from_secs(2);

/// The longest datagram that is taken.
const MAX_DATAGRAM: usize = 2048;

/// The port of IPMI (§13.1.2), and as BMCs tell it that mix up its bytes.
const PORT: u16 = 623;
const SWAPPED: u16 = PORT.swap_bytes();

/// What comes of a console.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// It is open: what is printed follows.
    Opened,
    /// The machine printed this.
    Printed(Vec<u8>),
    /// Something else happened on the line.
    Noticed(Noticed),
}

/// Why there is no console, or no more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConsoleError {
    /// Another session has it (completion code 80h); it can be taken over.
    #[error("the console is open elsewhere")]
    InUse,
    /// It was deactivated: by somebody who took it over, or by the BMC.
    #[error("the BMC closed the console")]
    Closed,
    /// The BMC does not do what it is asked.
    #[error(transparent)]
    Bmc(#[from] BmcError),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Asked whether serial over LAN is enabled.
    Asking,
    /// Enabling it.
    Enabling,
    /// Activating it.
    Activating,
    /// Deactivating that of another session.
    TakingOver,
    /// It is open; whether it is asked whether it still is.
    Open { is_asked: bool },
    /// Deactivating our own.
    Leaving,
    /// Nothing more comes.
    Over,
}

/// A console without sockets, clocks or randomness.
#[derive(Debug)]
pub struct Core {
    session: Session,
    line: Line,
    phase: Phase,
    /// The port of the session.
    port: u16,
    takes_over: bool,
    keep_alive: Mono,
    has_opened: bool,
    end: Option<ConsoleError>,
}

impl Core {
    /// Begins to open the console of the BMC at this port, from its present holder if it `takes_over`.
    pub fn new(
        now: Mono,
        credentials: &Credentials,
        nonce: Nonce,
        port: u16,
        takes_over: bool,
    ) -> Result<Self, BmcError> {
        let mut session = Session::new(now, credentials, nonce)?;
        session.request(now, sol::is_enabled());
        Ok(Self {
            session,
            line: Line::new(1),
            phase: Phase::Asking,
            port,
            takes_over,
            keep_alive: now,
            has_opened: false,
            end: None,
        })
    }

    /// Types these; how many of them found room.
    pub fn type_in(&mut self, characters: &[u8]) -> usize {
        self.line.type_in(characters)
    }

    /// Sends a break.
    pub fn send_break(&mut self) {
        self.line.send_break();
    }

    /// What happened. Taken once.
    pub fn told(&mut self) -> Option<Told> {
        if std::mem::take(&mut self.has_opened) {
            return Some(Told::Opened);
        }
        let printed = self.line.printed();
        if !printed.is_empty() {
            return Some(Told::Printed(printed));
        }
        self.line.noticed().map(Told::Noticed)
    }

    /// Why it is over, if it is.
    pub fn end(&self) -> Option<&ConsoleError> {
        self.end.as_ref()
    }

    /// Whether there is nothing more to wait for.
    pub fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    /// Leaves: deactivates the console, then closes the session.
    pub fn leave(&mut self, now: Mono) {
        match self.phase {
            Phase::Open { .. } => {
                self.session.request(now, sol::deactivate());
                self.phase = Phase::Leaving;
            }
            Phase::Leaving | Phase::Over => {}
            _ => self.over(ConsoleError::Closed),
        }
    }

    /// A datagram to send; `vector` is random, and another one each time.
    pub fn transmit(&mut self, now: Mono, vector: [u8; 16]) -> Option<Vec<u8>> {
        if matches!(self.phase, Phase::Open { .. })
            && let Some(packet) = self.line.transmit(now)
        {
            self.session.carry(packet);
        }
        self.look(now);
        self.session.transmit(vector)
    }

    /// A datagram has come.
    pub fn handle(&mut self, now: Mono, bytes: &[u8]) {
        self.session.handle(now, bytes);
        self.look(now);
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub fn timeout(&self) -> Option<Mono> {
        let is_open = matches!(self.phase, Phase::Open { .. });
        let keep_alive = (self.phase == Phase::Open { is_asked: false }).then_some(self.keep_alive);
        let line = self.line.timeout().filter(|_| is_open);
        [self.session.timeout(), line, keep_alive].into_iter().flatten().min()
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Mono) {
        if self.session.timeout().is_some_and(|timeout| timeout <= now) {
            self.session.handle_timeout(now);
        }
        if self.phase == (Phase::Open { is_asked: false }) && self.keep_alive <= now {
            self.session.request(now, sol::status());
            self.phase = Phase::Open { is_asked: true };
        }
        self.look(now);
    }

    fn look(&mut self, now: Mono) {
        while let Some(packet) = self.session.carried() {
            if matches!(self.phase, Phase::Open { .. }) {
                // What is no packet is as good as lost.
                let _ = self.line.receive(now, &packet);
            }
        }
        match self.line.end() {
            Some(End::Deactivated) => self.over(ConsoleError::Closed),
            Some(End::Silent) => {
                self.over(BmcError::Unreachable("it takes nothing of what is typed".to_owned()).into());
            }
            None => {}
        }
        if let Some(answer) = self.session.answer() {
            self.answered(now, answer);
        }
    }

    fn answered(&mut self, now: Mono, answer: Result<Vec<u8>, Failure>) {
        let answer = match answer {
            Err(Failure::Ended(why)) => return self.over(why.into()),
            Err(Failure::Completion(completion)) => Err(completion),
            Ok(data) => Ok(data),
        };
        match (self.phase, answer) {
            (Phase::Asking, Ok(data)) if sol::read_is_enabled(&data) == Ok(false) => {
                self.next(now, Phase::Enabling, sol::enable());
            }
            // Whatever a BMC answers to these, what counts is whether it can be activated.
            (Phase::Asking | Phase::Enabling, _) => self.next(now, Phase::Activating, sol::activate()),
            (Phase::TakingOver, _) => {
                self.takes_over = false;
                self.next(now, Phase::Activating, sol::activate());
            }
            (Phase::Activating, Ok(data)) => self.activated(now, &data),
            (Phase::Activating, Err(0x80)) if self.takes_over => {
                self.next(now, Phase::TakingOver, sol::deactivate());
            }
            (Phase::Activating, Err(completion)) => self.over(refused(completion)),
            (Phase::Open { .. }, Ok(data)) if sol::read_status(&data) == Ok(false) => self.over(ConsoleError::Closed),
            (Phase::Open { .. }, _) => {
                self.keep_alive = now.plus(KEEP_ALIVE);
                self.phase = Phase::Open { is_asked: false };
            }
            (Phase::Leaving | Phase::Over, _) => self.over(ConsoleError::Closed),
        }
    }

    fn next(&mut self, now: Mono, phase: Phase, request: super::packet::Request) {
        self.phase = phase;
        self.session.request(now, request);
    }

    fn activated(&mut self, now: Mono, data: &[u8]) {
        match sol::read_activated(data) {
            Ok(activated) if ![0, PORT, SWAPPED, self.port].contains(&activated.port) => {
                let why = format!("its console is at UDP port {}, of which a session knows nothing", activated.port);
                self.over(BmcError::Unsupported(why).into());
            }
            Ok(activated) => {
                self.line = Line::new(activated.longest);
                self.phase = Phase::Open { is_asked: false };
                self.keep_alive = now.plus(KEEP_ALIVE);
                self.has_opened = true;
            }
            Err(malformed) => self.over(BmcError::from(malformed).into()),
        }
    }

    fn over(&mut self, why: ConsoleError) {
        if self.phase == Phase::Over {
            return;
        }
        self.phase = Phase::Over;
        self.end.get_or_insert(why);
        self.session.close();
    }
}

/// What Activate Payload's own completion codes mean (table 24-2).
fn refused(completion: u8) -> ConsoleError {
    match completion {
        0x80 => ConsoleError::InUse,
        0x81 | 0xc1 => BmcError::Unsupported("it has no serial over LAN, or it is disabled".to_owned()).into(),
        0x82 => BmcError::Refused("it has no more consoles to give".to_owned()).into(),
        0x83 | 0x84 => {
            BmcError::Refused(format!("it wants its console otherwise encrypted ({completion:#04x})")).into()
        }
        other => BmcError::from(Failure::Completion(other)).into(),
    }
}

/// A console over UDP.
pub struct Console {
    socket: UdpSocket,
    core: Core,
    began: Instant,
    buffer: Box<[u8; MAX_DATAGRAM]>,
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console").field("core", &self.core).finish_non_exhaustive()
    }
}

impl Console {
    /// Begins to open the console of the BMC at this address; [`Self::next`] tells what comes of it.
    pub async fn open(address: SocketAddr, credentials: &Credentials, takes_over: bool) -> Result<Self, BmcError> {
        let unreachable = |error: std::io::Error| BmcError::Unreachable(error.to_string());
        let ours: SocketAddr = match address {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(ours).await.map_err(unreachable)?;
        socket.connect(address).await.map_err(unreachable)?;
        let nonce = Nonce { session: rand::random(), random: rand::random() };
        let core = Core::new(Mono::default(), credentials, nonce, address.port(), takes_over)?;
        Ok(Self { socket, core, began: Instant::now(), buffer: Box::new([0; MAX_DATAGRAM]) })
    }

    fn now(&self) -> Mono {
        Mono(self.began.elapsed())
    }

    /// Types these; how many of them found room. They leave with [`Self::next`].
    pub fn type_in(&mut self, characters: &[u8]) -> usize {
        self.core.type_in(characters)
    }

    /// Sends a break.
    pub fn send_break(&mut self) {
        self.core.send_break();
    }

    /// What happens next. May be cancelled: nothing is lost.
    pub async fn next(&mut self) -> Result<Told, ConsoleError> {
        loop {
            self.flush().await;
            if let Some(told) = self.core.told() {
                return Ok(told);
            }
            if let Some(end) = self.core.end() {
                return Err(end.clone());
            }
            self.step(Instant::now() + Duration::from_secs(3600)).await;
        }
    }

    /// Leaves: the BMC is told, and not waited for longer than a moment.
    pub async fn close(mut self) {
        let now = self.now();
        self.core.leave(now);
        let left = async {
            while !self.core.is_over() {
                self.flush().await;
                self.step(Instant::now() + LEAVE).await;
            }
        };
        // The BMC ends it by itself when this is lost.
        let _ = timeout(LEAVE, left).await;
        self.core.over(ConsoleError::Closed);
        self.flush().await;
    }

    /// Waits for a datagram or the next deadline.
    async fn step(&mut self, most: Instant) {
        let until = self.core.timeout().map_or(most, |until| (self.began + until.0).min(most));
        // An ICMP error is as good as a loss, and comes once for a datagram.
        match timeout_at(until, self.socket.recv(&mut self.buffer[..])).await {
            Ok(Ok(length)) => self.core.handle(Mono(self.began.elapsed()), &self.buffer[..length]),
            Ok(Err(_)) => {}
            Err(_) => self.core.handle_timeout(Mono(self.began.elapsed())),
        }
    }

    async fn flush(&mut self) {
        loop {
            let now = self.now();
            let Some(datagram) = self.core.transmit(now, rand::random()) else { return };
            // What is not sent is as good as lost, and is sent again.
            let _ = self.socket.send(&datagram).await;
        }
    }
}
