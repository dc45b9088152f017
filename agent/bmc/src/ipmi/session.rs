//! A session with a BMC, without sockets, clocks or randomness of its own (IPMI 2.0 §13.13–13.24,
//! §22.17–22.19).
//!
//! Invariants:
//! - Every request ends in an answer or an error by [`REQUEST_TIME`], whatever arrives.
//! - Inside a session only what is signed, encrypted, new and asked for is believed.
//! - One request is on its way at a time.
//! - A session that was opened is closed by a message to the BMC, whyever it ends.
//! - A login that failed after a repeated message, or after the BMC proved to know the password, is
//!   tried again before anyone is called wrong: the BMC may have answered two copies of a message
//!   with two random numbers.
//!
//! Deliberately not here: keep-alives (an idle session ends, and the next request opens another; who
//! has a console open asks something now and then), and what serial over LAN means: its packets are
//! carried.

use std::{collections::VecDeque, fmt, time::Duration};

use rackhand_common::{
    bmc::{MAX_PASSWORD, MAX_USER},
    time::Mono,
};
use zeroize::Zeroizing;

use super::{
    crypto::{Handshake, Keys, Suite},
    packet::{self, Datagram, Kind, Malformed, Plus, Reader, Request, Response},
};
use crate::bmc::{BmcError, Credentials};

/// How long a request may take with everything it needs: login, repetitions, a busy BMC.
pub const REQUEST_TIME: Duration = Duration::from_secs(20);

/// How long a session lives without a request; BMCs end theirs after 60 s (§13.14).
pub const IDLE_TIME: Duration = Duration::from_secs(50);

/// How long an answer is waited for, by repetition.
const PATIENCE: [Duration; 4] =
    [Duration::from_millis(500), Duration::from_millis(1000), Duration::from_millis(1500), Duration::from_millis(2000)];

/// How long a busy BMC is left alone.
const BUSY_PAUSE: Duration = Duration::from_millis(300);

/// How many packets of serial over LAN may wait to be taken; the BMC sends one after another, and
/// again what was not acknowledged.
const CARRIED: usize = 16;

/// How often a login is begun anew.
const LOGINS: u8 = 4;

/// What is random in a session.
#[derive(Clone, Copy, Debug)]
pub struct Nonce {
    /// Our number for the session; zero is avoided.
    pub session: u32,
    /// Our part of the session's keys.
    pub random: [u8; 16],
}

/// A session: opened by its first request.
pub struct Session {
    user: Vec<u8>,
    password: Zeroizing<Vec<u8>>,
    nonce: Nonce,
    state: State,
    suite: Suite,
    privilege: Privilege,
    logins: u8,
    /// Whether a message of this login was repeated.
    is_repeated: bool,
    /// Whether a login was confirmed with a code of another key.
    has_other_key: bool,
    outgoing: VecDeque<Outgoing>,
    exchange: Option<Exchange>,
    wanted: Option<Wanted>,
    answer: Option<Result<Vec<u8>, Failure>>,
    /// Packets of serial over LAN that came.
    carried: VecDeque<Vec<u8>>,
    rq_sequence: u8,
    last_heard: Mono,
}

/// What a session may do at the BMC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// Everything.
    Administrator,
    /// Everything but the BMC's own configuration.
    Operator,
}

impl Privilege {
    fn code(self) -> u8 {
        match self {
            Self::Administrator => 0x04,
            Self::Operator => 0x03,
        }
    }
}

enum State {
    /// Nothing was sent.
    Fresh,
    /// Asked what it can.
    Probing,
    /// Open Session Request is out.
    Opening,
    /// RAKP Message 1 is out.
    Proving { bmc: u32 },
    /// RAKP Message 3 is out.
    Confirming { bmc: u32, bmc_random: [u8; 16], guid: [u8; 16], keys: Box<Keys> },
    /// Keys are agreed upon; not ready until the privilege is set.
    Open { secure: Secure, is_ready: bool },
    /// Over; the keys are kept for the message that says so to the BMC.
    Closed { why: BmcError, secure: Option<Secure> },
}

struct Secure {
    bmc: u32,
    keys: Box<Keys>,
    /// The number of the next datagram sent.
    next: u32,
    window: Window,
}

enum Outgoing {
    /// As it is.
    Clear(Vec<u8>),
    /// To be encrypted and signed.
    Sealed(Kind, Vec<u8>),
}

/// What was asked and has no answer.
struct Exchange {
    /// What to send again.
    message: Message,
    /// How often it was sent.
    sent: usize,
    /// When to send it again, or to give up.
    again: Mono,
}

enum Message {
    Clear(Vec<u8>),
    /// A request with its number; `None` while a busy BMC is left alone.
    Request {
        request: Request,
        sequence: Option<u8>,
        purpose: Purpose,
    },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Privilege,
    Asked,
}

struct Wanted {
    request: Request,
    until: Mono,
}

/// Shows no secret.
impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("suite", &self.suite)
            .field("privilege", &self.privilege)
            .finish_non_exhaustive()
    }
}

impl Session {
    /// A session that is not open yet. Refused when the BMC could never take name or password.
    pub fn new(now: Mono, credentials: &Credentials, nonce: Nonce) -> Result<Self, BmcError> {
        if credentials.user.len() > MAX_USER {
            return Err(BmcError::Refused(format!("IPMI takes user names of at most {MAX_USER} bytes")));
        }
        if credentials.password.len() > MAX_PASSWORD {
            return Err(BmcError::Refused(format!("IPMI takes passwords of at most {MAX_PASSWORD} bytes")));
        }
        Ok(Self {
            user: credentials.user.as_bytes().to_vec(),
            password: Zeroizing::new(credentials.password.as_bytes().to_vec()),
            nonce: Nonce { session: nonce.session.max(1), ..nonce },
            state: State::Fresh,
            suite: Suite::Sha256,
            privilege: Privilege::Administrator,
            logins: 0,
            is_repeated: false,
            has_other_key: false,
            outgoing: VecDeque::new(),
            exchange: None,
            wanted: None,
            answer: None,
            carried: VecDeque::new(),
            rq_sequence: 0,
            last_heard: now,
        })
    }

    /// Asks something; [`Self::answer`] has what comes of it. What was asked before and has no
    /// answer is forgotten.
    pub fn request(&mut self, now: Mono, request: Request) {
        self.answer = None;
        if let State::Closed { why, .. } = &self.state {
            self.answer = Some(Err(Failure::Ended(why.clone())));
            return;
        }
        self.wanted = Some(Wanted { request: request.clone(), until: now.plus(REQUEST_TIME) });
        match &self.state {
            State::Fresh => self.probe(now),
            State::Open { is_ready: true, .. } => self.ask(now, request, Purpose::Asked),
            _ => {}
        }
    }

    /// The data that answers the request, or why there is none. Taken once.
    pub fn answer(&mut self) -> Option<Result<Vec<u8>, Failure>> {
        self.answer.take()
    }

    /// Whether nothing more can be asked.
    pub fn is_over(&self, now: Mono) -> bool {
        matches!(self.state, State::Closed { .. })
            || (!matches!(self.state, State::Fresh) && self.last_heard.until(now) > IDLE_TIME)
    }

    /// Whether it is logged in.
    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Open { is_ready: true, .. })
    }

    /// How it is secured.
    pub fn suite(&self) -> Suite {
        self.suite
    }

    /// Ends the session, and tells the BMC without waiting for an answer.
    pub fn close(&mut self) {
        self.end(BmcError::Unreachable("the session was closed".to_owned()));
    }

    /// Sends a packet of serial over LAN (§15.9), when the session is open.
    pub fn carry(&mut self, packet: Vec<u8>) {
        if self.is_open() {
            self.outgoing.push_back(Outgoing::Sealed(Kind::Sol, packet));
        }
    }

    /// A packet of serial over LAN that has come. Taken once.
    pub fn carried(&mut self) -> Option<Vec<u8>> {
        self.carried.pop_front()
    }

    /// A datagram to send; `vector` is random, and another one each time.
    pub fn transmit(&mut self, vector: [u8; 16]) -> Option<Vec<u8>> {
        loop {
            match (self.outgoing.pop_front()?, &mut self.state) {
                (Outgoing::Clear(bytes), _) => return Some(bytes),
                (
                    Outgoing::Sealed(kind, payload),
                    State::Open { secure, .. } | State::Closed { secure: Some(secure), .. },
                ) => {
                    let sealed = secure.keys.encrypt(vector, &payload);
                    let sequence = secure.next;
                    secure.next = secure.next.wrapping_add(1).max(1);
                    return Some(packet::secured(kind, secure.bmc, sequence, &sealed, |covered| {
                        secure.keys.sign(covered)
                    }));
                }
                // Only who has keys queues these, and keeps them.
                (Outgoing::Sealed(..), _) => {}
            }
        }
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub fn timeout(&self) -> Option<Mono> {
        let until = self.wanted.as_ref().map(|wanted| wanted.until);
        match &self.exchange {
            Some(exchange) => Some(until.map_or(exchange.again, |until| until.min(exchange.again))),
            None => until,
        }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Mono) {
        if self.wanted.as_ref().is_some_and(|wanted| wanted.until <= now) {
            return self.end(BmcError::Unreachable("it did not answer in time".to_owned()));
        }
        let Some(exchange) = &mut self.exchange else { return };
        if now < exchange.again {
            return;
        }
        let Some(patience) = PATIENCE.get(exchange.sent) else {
            return self.give_up(now);
        };
        exchange.again = now.plus(*patience);
        exchange.sent += 1;
        match &mut exchange.message {
            Message::Clear(bytes) => {
                self.is_repeated = true;
                self.outgoing.push_back(Outgoing::Clear(bytes.clone()));
            }
            Message::Request { request, sequence, .. } => {
                // A repetition has its request's number, and a fresh one after a refusal.
                let number = sequence.unwrap_or_else(|| {
                    self.rq_sequence = (self.rq_sequence + 1) % 64;
                    self.rq_sequence
                });
                *sequence = Some(number);
                self.outgoing.push_back(Outgoing::Sealed(Kind::Ipmi, request.message(number)));
            }
        }
    }

    /// A datagram has come. What does not belong to the session is dropped.
    pub fn handle(&mut self, now: Mono, bytes: &[u8]) {
        // A hostile datagram must not disturb the session: only what it proves counts.
        let _ = self.accept(now, bytes);
    }

    fn accept(&mut self, now: Mono, bytes: &[u8]) -> Result<(), Malformed> {
        match (packet::datagram(bytes)?, &self.state) {
            (Datagram::Plain { payload }, State::Probing) => self.probed(now, &packet::response(payload)?),
            (Datagram::Plus(plus), State::Open { .. }) => self.secured(now, plus),
            (Datagram::Plus(plus), state) if !plus.is_encrypted && plus.session == 0 => match (plus.kind, state) {
                (Kind::OpenResponse, State::Opening) => self.opened(now, plus.payload),
                (Kind::Rakp2, State::Proving { .. }) => self.proven(now, plus.payload),
                (Kind::Rakp4, State::Confirming { .. }) => self.confirmed(now, plus.payload),
                _ => Err(Malformed("not what was asked for")),
            },
            _ => Err(Malformed("not what was asked for")),
        }
    }

    /// Get Channel Authentication Capabilities, which every BMC answers.
    fn probe(&mut self, now: Mono) {
        self.state = State::Probing;
        let request = Request::new(0x06, 0x38, &[0x8e, self.privilege.code()]);
        self.send(now, packet::plain(&request.message(0)));
    }

    fn probed(&mut self, now: Mono, response: &Response) -> Result<(), Malformed> {
        if (response.netfn, response.command) != (0x07, 0x38) {
            return Err(Malformed("not what was asked for"));
        }
        // Bit 7 of the second byte announces the fourth, whose second bit says IPMI 2.0.
        let speaks_2_0 = match (response.completion, &response.data[..]) {
            (0, [_, kinds, _, extended, ..]) => kinds & 0x80 != 0 && extended & 0x02 != 0,
            // It may dislike the question and still open a session.
            _ => true,
        };
        if speaks_2_0 {
            self.open(now);
        } else {
            self.end(BmcError::Unsupported("it speaks IPMI 1.5 only, or IPMI 2.0 over LAN is off".to_owned()));
        }
        Ok(())
    }

    fn open(&mut self, now: Mono) {
        self.logins += 1;
        if self.logins > LOGINS {
            return self.end(BmcError::Unreachable("no login came to an end".to_owned()));
        }
        self.is_repeated = false;
        self.state = State::Opening;
        let mut payload = vec![self.logins, 0, 0, 0];
        payload.extend(self.nonce.session.to_le_bytes());
        for (kind, algorithm) in (0..).zip(self.suite.algorithms()) {
            payload.extend([kind, 0, 0, 8, algorithm, 0, 0, 0]);
        }
        self.send(now, packet::plus(Kind::OpenRequest, &payload));
    }

    fn opened(&mut self, now: Mono, payload: &[u8]) -> Result<(), Malformed> {
        match open_response(payload)? {
            Open { tag, .. } if tag != self.logins => Err(Malformed("an answer to an earlier login")),
            Open { result: Ok(opened), .. } if opened.console != self.nonce.session => {
                Err(Malformed("another session"))
            }
            Open { result: Ok(opened), .. } if opened.algorithms != self.suite.algorithms() => {
                self.other_suite(now, "it agrees to other algorithms than it was asked for");
                Ok(())
            }
            Open { result: Ok(opened), .. } => {
                self.state = State::Proving { bmc: opened.bmc };
                let mut payload = vec![self.logins, 0, 0, 0];
                payload.extend(opened.bmc.to_le_bytes());
                payload.extend(self.nonce.random);
                payload.extend([self.role(), 0, 0]);
                payload.push(u8::try_from(self.user.len()).expect("checked when the session was made"));
                payload.extend(&self.user);
                self.send(now, packet::plus(Kind::Rakp1, &payload));
                Ok(())
            }
            Open { result: Err(0x04..=0x07 | 0x10..=0x12), .. } => {
                self.other_suite(now, "it takes neither cipher suite 17 nor 3: enable one of them");
                Ok(())
            }
            Open { result: Err(status), .. } => {
                self.rejected(now, status);
                Ok(())
            }
        }
    }

    fn proven(&mut self, now: Mono, payload: &[u8]) -> Result<(), Malformed> {
        let State::Proving { bmc } = self.state else { return Err(Malformed("not what was asked for")) };
        let rakp2 = rakp2(payload)?;
        if rakp2.tag != self.logins || rakp2.console.is_some_and(|console| console != self.nonce.session) {
            return Err(Malformed("another session"));
        }
        let Proof { random, guid, code } = match rakp2.result {
            Ok(proof) => proof,
            Err(status) => {
                self.rejected(now, status);
                return Ok(());
            }
        };
        let handshake = self.handshake(bmc, random, guid);
        let is_ours = handshake.is_rakp2(code);
        let (code, keys) = (handshake.rakp3(), handshake.keys());
        let mut payload = vec![self.logins, if is_ours { 0x00 } else { 0x0f }, 0, 0];
        payload.extend(bmc.to_le_bytes());
        if !is_ours {
            // The BMC is told, so that it frees the session at once.
            self.outgoing.push_back(Outgoing::Clear(packet::plus(Kind::Rakp3, &payload)));
            self.rejected(now, 0x0f);
            return Ok(());
        }
        payload.extend(code);
        self.state = State::Confirming { bmc, bmc_random: random, guid, keys: Box::new(keys) };
        self.send(now, packet::plus(Kind::Rakp3, &payload));
        Ok(())
    }

    fn confirmed(&mut self, now: Mono, payload: &[u8]) -> Result<(), Malformed> {
        let rakp4 = rakp4(payload)?;
        if rakp4.tag != self.logins || rakp4.console.is_some_and(|console| console != self.nonce.session) {
            return Err(Malformed("another session"));
        }
        let code = match rakp4.result {
            Ok(code) => code,
            Err(status) => {
                self.rejected(now, status);
                return Ok(());
            }
        };
        let State::Confirming { bmc, bmc_random, guid, keys } = &self.state else {
            return Err(Malformed("not what was asked for"));
        };
        if !self.handshake(*bmc, *bmc_random, *guid).is_rakp4(keys, code) {
            self.has_other_key = true;
            return Err(Malformed("a wrong code"));
        }
        let State::Confirming { bmc, keys, .. } = std::mem::replace(&mut self.state, State::Fresh) else {
            return Err(Malformed("not what was asked for"));
        };
        self.state = State::Open { secure: Secure { bmc, keys, next: 1, window: Window::default() }, is_ready: false };
        self.last_heard = now;
        self.raise(now);
        Ok(())
    }

    /// Set Session Privilege Level: a session begins as a mere user's.
    fn raise(&mut self, now: Mono) {
        self.ask(now, Request::new(0x06, 0x3b, &[self.privilege.code()]), Purpose::Privilege);
    }

    fn secured(&mut self, now: Mono, plus: Plus<'_>) -> Result<(), Malformed> {
        let State::Open { secure, .. } = &mut self.state else { return Err(Malformed("no session")) };
        if plus.session != self.nonce.session || !plus.is_authenticated || !plus.is_encrypted {
            return Err(Malformed("not of this session"));
        }
        if !secure.keys.is_signed(plus.covered) {
            return Err(Malformed("a wrong code"));
        }
        if !secure.window.is_new(plus.sequence) {
            return Err(Malformed("a repetition"));
        }
        let payload = secure.keys.decrypt(plus.payload)?;
        self.last_heard = now;
        match plus.kind {
            Kind::Ipmi => self.answered(now, packet::response(&payload)?),
            Kind::Sol if self.carried.len() < CARRIED => {
                self.carried.push_back(payload);
                Ok(())
            }
            _ => Err(Malformed("not what was asked for")),
        }
    }

    fn answered(&mut self, now: Mono, response: Response) -> Result<(), Malformed> {
        let Some(Exchange { message: Message::Request { request, sequence: Some(sequence), purpose }, .. }) =
            &self.exchange
        else {
            return Err(Malformed("not what was asked for"));
        };
        let is_it =
            (response.sequence, response.netfn, response.command) == (*sequence, request.netfn | 1, request.command);
        if !is_it {
            return Err(Malformed("an answer to something else"));
        }
        let purpose = *purpose;
        match (response.completion, purpose) {
            (0xc0 | 0xc3, _) => {
                let Some(exchange) = &mut self.exchange else { return Ok(()) };
                if let Message::Request { sequence, .. } = &mut exchange.message {
                    *sequence = None;
                }
                // It is there: patience starts again, and the request's own deadline ends it.
                exchange.sent = 0;
                exchange.again = now.plus(BUSY_PAUSE);
            }
            (0, Purpose::Privilege) => {
                self.exchange = None;
                if let State::Open { is_ready, .. } = &mut self.state {
                    *is_ready = true;
                }
                if let Some(request) = self.wanted.as_ref().map(|wanted| wanted.request.clone()) {
                    self.ask(now, request, Purpose::Asked);
                }
            }
            (_, Purpose::Privilege) if self.privilege == Privilege::Administrator => {
                self.privilege = Privilege::Operator;
                self.raise(now);
            }
            (_, Purpose::Privilege) => {
                self.end(BmcError::Denied("the user is no operator: give it at least that privilege".to_owned()));
            }
            (completion, Purpose::Asked) => {
                self.exchange = None;
                self.wanted = None;
                self.answer =
                    Some(if completion == 0 { Ok(response.data) } else { Err(Failure::Completion(completion)) });
            }
        }
        Ok(())
    }

    /// The BMC ended a login with this status (table 13-15).
    fn rejected(&mut self, now: Mono, status: u8) {
        let why = match status {
            0x09 | 0x0a if self.privilege == Privilege::Administrator => {
                self.privilege = Privilege::Operator;
                return self.open(now);
            }
            0x02 | 0x08 | 0x0d | 0x0f if self.is_repeated => return self.open(now),
            // RAKP Message 2 proved that it knows the password: it goes by another random number.
            0x02 | 0x08 | 0x0f if matches!(self.state, State::Confirming { .. }) => return self.open(now),
            0x01 | 0x0b => BmcError::Unreachable("it has no session free: close others, or wait a minute".to_owned()),
            0x02 | 0x08 => BmcError::Unreachable("it forgot the session while it was opened".to_owned()),
            0x09 | 0x0a => BmcError::Denied("the user is no operator: give it at least that privilege".to_owned()),
            0x0c | 0x0d => BmcError::Denied("it knows no such user, or the user is not enabled for LAN".to_owned()),
            0x0f => BmcError::Denied("wrong password".to_owned()),
            status => BmcError::Refused(format!("it ended the login with status {status:#04x}")),
        };
        self.end(why);
    }

    fn other_suite(&mut self, now: Mono, why: &str) {
        match self.suite {
            Suite::Sha256 => {
                self.suite = Suite::Sha1;
                self.open(now);
            }
            Suite::Sha1 => self.end(BmcError::Refused(why.to_owned())),
        }
    }

    fn give_up(&mut self, now: Mono) {
        match self.state {
            // Some BMCs are silent instead of refusing a suite they do not know.
            State::Opening if self.suite == Suite::Sha256 => self.other_suite(now, ""),
            // Only now: anybody can send a wrong code before the right one comes.
            State::Confirming { .. } if self.has_other_key => {
                self.end(BmcError::Denied("the BMC has a key (Kg) of its own: clear it".to_owned()));
            }
            State::Proving { .. } | State::Confirming { .. } if self.logins < 2 => self.open(now),
            State::Probing => self.end(BmcError::Unreachable("no answer to IPMI over LAN".to_owned())),
            State::Open { .. } => self.end(BmcError::Unreachable("no answer in the session".to_owned())),
            _ => self.end(BmcError::Unreachable("no answer to a login".to_owned())),
        }
    }

    /// Whyever a session ends that was opened: the BMC, which has about four, is told.
    fn end(&mut self, why: BmcError) {
        if self.wanted.take().is_some() {
            self.answer = Some(Err(Failure::Ended(why.clone())));
        }
        self.exchange = None;
        if matches!(self.state, State::Closed { .. }) {
            return;
        }
        self.outgoing.retain(|outgoing| matches!(outgoing, Outgoing::Clear(_)));
        let closed = State::Closed { why: why.clone(), secure: None };
        if let State::Open { secure, .. } = std::mem::replace(&mut self.state, closed) {
            let request = Request::new(0x06, 0x3c, &secure.bmc.to_le_bytes());
            let message = request.message(self.next_rq());
            self.outgoing.push_back(Outgoing::Sealed(Kind::Ipmi, message));
            self.state = State::Closed { why, secure: Some(secure) };
        }
    }

    fn ask(&mut self, now: Mono, request: Request, purpose: Purpose) {
        let sequence = self.next_rq();
        self.outgoing.push_back(Outgoing::Sealed(Kind::Ipmi, request.message(sequence)));
        let message = Message::Request { request, sequence: Some(sequence), purpose };
        self.exchange = Some(Exchange { message, sent: 1, again: now.plus(PATIENCE[0]) });
    }

    fn send(&mut self, now: Mono, bytes: Vec<u8>) {
        self.outgoing.push_back(Outgoing::Clear(bytes.clone()));
        self.exchange = Some(Exchange { message: Message::Clear(bytes), sent: 1, again: now.plus(PATIENCE[0]) });
    }

    fn next_rq(&mut self) -> u8 {
        self.rq_sequence = (self.rq_sequence + 1) % 64;
        self.rq_sequence
    }

    /// The privilege, and that the user is looked up by name alone.
    fn role(&self) -> u8 {
        0x10 | self.privilege.code()
    }

    fn handshake(&self, bmc: u32, bmc_random: [u8; 16], guid: [u8; 16]) -> Handshake<'_> {
        Handshake {
            suite: self.suite,
            console: self.nonce.session,
            bmc,
            console_random: self.nonce.random,
            bmc_random,
            guid,
            role: self.role(),
            user: &self.user,
            password: &self.password,
        }
    }
}

/// Why a request has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The BMC answered this completion code, which is not success.
    Completion(u8),
    /// The session is over.
    Ended(BmcError),
}

/// What completion codes mean that every command has (table 5-2).
impl From<Failure> for BmcError {
    fn from(failure: Failure) -> Self {
        let completion = match failure {
            Failure::Ended(why) => return why,
            Failure::Completion(completion) => completion,
        };
        let code = format!("completion code {completion:#04x}");
        match completion {
            0xc1 | 0xc2 => Self::Unsupported(format!("it does not know this command ({code})")),
            0xc4 | 0xce | 0xd0..=0xd2 => Self::Unreachable(format!("it cannot just now ({code})")),
            0xc5 => Self::Refused(format!("its reservation was lost to another reader ({code})")),
            0xc7..=0xca => Self::Refused(format!("wrong length or range ({code})")),
            0xcb => Self::Unsupported(format!("it has no such sensor, data or record ({code})")),
            0xcc => Self::Refused(format!("it does not take this value ({code})")),
            0xcd => Self::Unsupported(format!("not for this sensor or record ({code})")),
            0xd3 => Self::Unsupported(format!("nothing answers there ({code})")),
            0xd4 => Self::Denied(format!("the user's privilege does not suffice ({code})")),
            0xd5 => Self::Refused(format!("not in its present state ({code})")),
            0xd6 => Self::Unsupported(format!("it was turned off ({code})")),
            _ => Self::Refused(code),
        }
    }
}

/// Which datagrams of a session have come, by number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    highest: u32,
    /// Bit n says that `highest - n` has come.
    seen: u32,
}

impl Window {
    /// Notes a number; whether it had not come before. One too old to tell is not new.
    pub fn is_new(&mut self, sequence: u32) -> bool {
        if sequence == 0 {
            return false;
        }
        if sequence > self.highest {
            self.seen = self.seen.checked_shl(sequence - self.highest).unwrap_or(0) | 1;
            self.highest = sequence;
            return true;
        }
        let Some(bit) = 1_u32.checked_shl(self.highest - sequence) else { return false };
        let is_new = self.seen & bit == 0;
        self.seen |= bit;
        is_new
    }
}

/// An Open Session Response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open {
    /// Which request it answers.
    pub tag: u8,
    /// What was opened, or the status.
    pub result: Result<Opened, u8>,
}

/// What an Open Session Response opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Our number for the session.
    pub console: u32,
    /// The BMC's number for it.
    pub bmc: u32,
    /// Authentication, integrity and confidentiality.
    pub algorithms: [u8; 3],
}

/// Reads an Open Session Response (table 13-10).
pub fn open_response(payload: &[u8]) -> Result<Open, Malformed> {
    let mut reader = Reader::new(payload);
    let [tag, status] = reader.array()?;
    if status != 0 {
        return Ok(Open { tag, result: Err(status) });
    }
    let _privilege: [u8; 2] = reader.array()?;
    let (console, bmc) = (reader.u32()?, reader.u32()?);
    let mut algorithms = [0; 3];
    for (expected, algorithm) in (0..).zip(&mut algorithms) {
        let [kind, _, _, _, number, ..]: [u8; 8] = reader.array()?;
        if kind != expected {
            return Err(Malformed("algorithms out of order"));
        }
        *algorithm = number & 0x3f;
    }
    Ok(Open { tag, result: Ok(Opened { console, bmc, algorithms }) })
}

/// RAKP Message 2 or 4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rakp<T> {
    /// Which message it answers.
    pub tag: u8,
    /// Our number for the session; some BMCs leave it out of a refusal.
    pub console: Option<u32>,
    /// What it says, or the status.
    pub result: Result<T, u8>,
}

/// How a BMC shows that it knows the password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof<'a> {
    /// Its random number.
    pub random: [u8; 16],
    /// Its GUID.
    pub guid: [u8; 16],
    /// The code.
    pub code: &'a [u8],
}

/// Reads RAKP Message 2 (table 13-12).
pub fn rakp2(payload: &[u8]) -> Result<Rakp<Proof<'_>>, Malformed> {
    let mut reader = Reader::new(payload);
    let [tag, status, _, _] = reader.array()?;
    if status != 0 {
        return Ok(Rakp { tag, console: reader.u32().ok(), result: Err(status) });
    }
    let console = reader.u32()?;
    let (random, guid) = (reader.array()?, reader.array()?);
    Ok(Rakp { tag, console: Some(console), result: Ok(Proof { random, guid, code: reader.rest }) })
}

/// Reads RAKP Message 4 (table 13-14): the code.
pub fn rakp4(payload: &[u8]) -> Result<Rakp<&[u8]>, Malformed> {
    let mut reader = Reader::new(payload);
    let [tag, status, _, _] = reader.array()?;
    if status != 0 {
        return Ok(Rakp { tag, console: reader.u32().ok(), result: Err(status) });
    }
    let console = reader.u32()?;
    Ok(Rakp { tag, console: Some(console), result: Ok(reader.rest) })
}

#[cfg(test)]
pub(super) mod tests {
    use std::{
        collections::BTreeMap,
        sync::{
            Arc,
            atomic::{AtomicU32, Ordering},
        },
    };

    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;

    /// What a BMC answers to a network function, a command and its data: a completion code and data.
    type Respond = Box<dyn FnMut(u8, u8, &[u8]) -> (u8, Vec<u8>) + Send>;

    /// A BMC of the test's: the other half of the session.
    pub(in super::super) struct Fake {
        respond: Respond,
        suites: Vec<Suite>,
        password: &'static [u8],
        /// The most privilege its user has.
        privilege: u8,
        /// Whether it refuses Set Session Privilege Level, whatever was agreed upon.
        refuses_privilege: bool,
        /// How often it says that it is busy.
        busy: u32,
        /// Whether a repeated RAKP Message 1 gives another random number.
        is_forgetful: bool,
        suite: Suite,
        console: u32,
        console_random: [u8; 16],
        bmc_random: [u8; 16],
        role: u8,
        user: Vec<u8>,
        pub(in super::super) keys: Option<Keys>,
        sent: u32,
        asked: Vec<String>,
        /// How many sessions were opened.
        pub(in super::super) opened: Arc<AtomicU32>,
    }

    const BMC: u32 = 0x0b3c_0b3c;
    const GUID: [u8; 16] = [7; 16];

    impl Fake {
        pub(in super::super) fn responding(
            respond: impl FnMut(u8, u8, &[u8]) -> (u8, Vec<u8>) + Send + 'static,
        ) -> Self {
            Self { respond: Box::new(respond), ..Self::new() }
        }

        fn new() -> Self {
            Self {
                respond: Box::new(|_, command, _| (0, vec![command])),
                suites: vec![Suite::Sha256, Suite::Sha1],
                password: b"secret",
                privilege: 4,
                refuses_privilege: false,
                busy: 0,
                is_forgetful: false,
                suite: Suite::Sha256,
                console: 0,
                console_random: [0; 16],
                bmc_random: [1; 16],
                role: 0,
                user: Vec::new(),
                keys: None,
                sent: 0,
                asked: Vec::new(),
                opened: Arc::default(),
            }
        }

        fn handshake(&self) -> Handshake<'_> {
            Handshake {
                suite: self.suite,
                console: self.console,
                bmc: BMC,
                console_random: self.console_random,
                bmc_random: self.bmc_random,
                guid: GUID,
                role: self.role,
                user: &self.user,
                password: self.password,
            }
        }

        pub(in super::super) fn handle(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
            let plus = match packet::datagram(bytes).unwrap() {
                Datagram::Plain { .. } => {
                    self.asked.push("capabilities".to_owned());
                    return Some(packet::plain(&answer(0, 0x07, 0x38, 0, &[1, 0x80, 0x04, 0x02, 0, 0, 0, 0])));
                }
                Datagram::Plus(plus) => plus,
            };
            let payload = plus.payload;
            match plus.kind {
                Kind::OpenRequest => {
                    self.console = u32::from_le_bytes(payload[4..8].try_into().unwrap());
                    let wanted = [payload[12], payload[20], payload[28]];
                    self.asked.push(format!("open {wanted:?}"));
                    let Some(suite) = self.suites.iter().find(|suite| suite.algorithms() == wanted) else {
                        return Some(packet::plus(Kind::OpenResponse, &[payload[0], 0x11, 0, 0]));
                    };
                    self.suite = *suite;
                    let mut response = vec![payload[0], 0, 4, 0];
                    response.extend(self.console.to_le_bytes());
                    response.extend(BMC.to_le_bytes());
                    response.extend(&payload[8..32]);
                    Some(packet::plus(Kind::OpenResponse, &response))
                }
                Kind::Rakp1 => {
                    self.console_random = payload[8..24].try_into().unwrap();
                    self.role = payload[24];
                    self.user = payload[28..].to_vec();
                    self.asked.push(format!("rakp1 {:#04x}", self.role));
                    if self.role & 0x0f > self.privilege {
                        return Some(packet::plus(Kind::Rakp2, &[payload[0], 0x0a, 0, 0]));
                    }
                    if self.is_forgetful {
                        self.bmc_random[0] = self.bmc_random[0].wrapping_add(1);
                    }
                    let mut response = vec![payload[0], 0, 0, 0];
                    response.extend(self.console.to_le_bytes());
                    response.extend(self.bmc_random);
                    response.extend(GUID);
                    response.extend(self.handshake().rakp2());
                    Some(packet::plus(Kind::Rakp2, &response))
                }
                Kind::Rakp3 => {
                    self.asked.push(format!("rakp3 {}", payload[1]));
                    if payload[1] != 0 {
                        return None;
                    }
                    let mut response = vec![payload[0], 0, 0, 0];
                    if payload[8..] != self.handshake().rakp3() {
                        response[1] = 0x0f;
                        return Some(packet::plus(Kind::Rakp4, &response));
                    }
                    response.extend(self.console.to_le_bytes());
                    let keys = self.handshake().keys();
                    response.extend(self.handshake().rakp4(&keys));
                    self.keys = Some(keys);
                    self.opened.fetch_add(1, Ordering::Relaxed);
                    Some(packet::plus(Kind::Rakp4, &response))
                }
                Kind::Ipmi => {
                    let keys = self.keys.as_ref()?;
                    if !keys.is_signed(plus.covered) {
                        return None;
                    }
                    let message = keys.decrypt(payload).unwrap();
                    let (netfn, sequence, command) = (message[1] >> 2, message[4], message[5]);
                    self.asked.push(format!("{netfn:#04x}/{command:#04x} number {}", sequence >> 2));
                    let (completion, data) = if command == 0x3b {
                        (
                            if self.refuses_privilege || message[6] > self.privilege { 0x81 } else { 0x00 },
                            vec![message[6]],
                        )
                    } else if self.busy > 0 {
                        self.busy -= 1;
                        (0xc0, vec![])
                    } else {
                        (self.respond)(netfn, command, &message[6..message.len() - 1])
                    };
                    let response = answer(sequence >> 2, netfn | 1, command, completion, &data);
                    self.sent += 1;
                    let sealed = keys.encrypt([9; 16], &response);
                    Some(packet::secured(Kind::Ipmi, self.console, self.sent, &sealed, |covered| keys.sign(covered)))
                }
                _ => None,
            }
        }
    }

    fn answer(sequence: u8, netfn: u8, command: u8, completion: u8, data: &[u8]) -> Vec<u8> {
        let head = [0x81, netfn << 2];
        let mut body = vec![0x20, sequence << 2, command, completion];
        body.extend(data);
        [&head[..], &[packet::checksum(&head)], &body, &[packet::checksum(&body)]].concat()
    }

    /// What befalls a datagram.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Fate {
        Arrives,
        Lost,
        Doubled,
        Late,
    }

    /// Datagrams under way, by when they arrive; `true` are for the BMC.
    #[derive(Default)]
    struct Network {
        fates: Vec<Fate>,
        under_way: BTreeMap<(Mono, usize), (bool, Vec<u8>)>,
        sent: usize,
    }

    impl Network {
        fn send(&mut self, now: Mono, for_bmc: bool, datagram: Vec<u8>) {
            let fate = self.fates.get(self.sent).copied().unwrap_or(Fate::Arrives);
            self.sent += 1;
            let soon = now.plus(Duration::from_millis(1));
            let late = now.plus(Duration::from_millis(700));
            let arrivals: &[Mono] = match fate {
                Fate::Arrives => &[soon],
                Fate::Lost => &[],
                Fate::Doubled => &[soon, soon],
                Fate::Late => &[late],
            };
            for (copy, at) in arrivals.iter().enumerate() {
                self.under_way.insert((*at, self.sent * 2 + copy), (for_bmc, datagram.clone()));
            }
        }
    }

    fn session(password: &str) -> Session {
        let credentials = Credentials { user: "admin".to_owned(), password: password.to_owned().into() };
        Session::new(Mono::default(), &credentials, Nonce { session: 0x1234, random: [3; 16] }).unwrap()
    }

    /// Plays until there is an answer, and tells when.
    fn play(
        session: &mut Session,
        fake: &mut Fake,
        fates: &[Fate],
        mut now: Mono,
        request: Request,
    ) -> (Result<Vec<u8>, Failure>, Mono) {
        let mut network = Network { fates: fates.to_vec(), ..Network::default() };
        session.request(now, request);
        for _ in 0..10_000 {
            // What an answer gave rise to is left to be sent.
            if let Some(answer) = session.answer() {
                return (answer, now);
            }
            while let Some(datagram) = session.transmit([5; 16]) {
                network.send(now, true, datagram);
            }
            let timeout = session.timeout().expect("it waits for something");
            match network.under_way.first_key_value() {
                Some((&(at, _), _)) if at <= timeout => {
                    let (_, (for_bmc, datagram)) = network.under_way.pop_first().unwrap();
                    now = at.max(now);
                    if for_bmc {
                        if let Some(reply) = fake.handle(&datagram) {
                            network.send(now, false, reply);
                        }
                    } else {
                        session.handle(now, &datagram);
                    }
                }
                _ => {
                    now = timeout.max(now);
                    session.handle_timeout(now);
                }
            }
        }
        panic!("it never ends");
    }

    const ASK: fn() -> Request = || Request::new(0x00, 0x01, &[]);

    fn check(fake: Fake, password: &str, expected: Expect) {
        let (mut fake, mut session) = (fake, session(password));
        let (answer, at) = play(&mut session, &mut fake, &[], Mono::default(), ASK());
        let answer = answer.map_err(BmcError::from);
        expected.assert_eq(&format!("{}\n{answer:?} after {:?}\n", fake.asked.join("\n"), at.0));
    }

    #[test]
    fn a_session_is_opened_by_its_first_request() {
        check(
            Fake::new(),
            "secret",
            expect![[r#"
            capabilities
            open [3, 4, 1]
            rakp1 0x14
            rakp3 0
            0x06/0x3b number 1
            0x00/0x01 number 2
            Ok([1]) after 12ms
        "#]],
        );
    }

    #[test]
    fn suite_3_is_asked_for_when_17_is_not_taken() {
        check(
            Fake { suites: vec![Suite::Sha1], ..Fake::new() },
            "secret",
            expect![[r#"
            capabilities
            open [3, 4, 1]
            open [1, 1, 1]
            rakp1 0x14
            rakp3 0
            0x06/0x3b number 1
            0x00/0x01 number 2
            Ok([1]) after 14ms
        "#]],
        );
    }

    #[test]
    fn a_bmc_with_neither_suite_is_told_of() {
        check(
            Fake { suites: vec![], ..Fake::new() },
            "secret",
            expect![[r#"
            capabilities
            open [3, 4, 1]
            open [1, 1, 1]
            Err(Refused("it takes neither cipher suite 17 nor 3: enable one of them")) after 6ms
        "#]],
        );
    }

    #[test]
    fn an_operator_is_content_with_less() {
        check(
            Fake { privilege: 3, ..Fake::new() },
            "secret",
            expect![[r#"
            capabilities
            open [3, 4, 1]
            rakp1 0x14
            open [3, 4, 1]
            rakp1 0x13
            rakp3 0
            0x06/0x3b number 1
            0x00/0x01 number 2
            Ok([1]) after 16ms
        "#]],
        );
    }

    #[test]
    fn a_mere_user_is_denied() {
        check(
            Fake { privilege: 2, ..Fake::new() },
            "secret",
            expect![[r#"
            capabilities
            open [3, 4, 1]
            rakp1 0x14
            open [3, 4, 1]
            rakp1 0x13
            Err(Denied("the user is no operator: give it at least that privilege")) after 10ms
        "#]],
        );
    }

    #[test]
    fn a_wrong_password_is_denied_after_one_login() {
        check(
            Fake::new(),
            "wrong",
            expect![[r#"
                capabilities
                open [3, 4, 1]
                rakp1 0x14
                Err(Denied("wrong password")) after 6ms
            "#]],
        );
    }

    #[test]
    fn a_busy_bmc_is_asked_again_with_another_number() {
        check(
            Fake { busy: 2, ..Fake::new() },
            "secret",
            expect![[r#"
            capabilities
            open [3, 4, 1]
            rakp1 0x14
            rakp3 0
            0x06/0x3b number 1
            0x00/0x01 number 2
            0x00/0x01 number 3
            0x00/0x01 number 4
            Ok([1]) after 616ms
        "#]],
        );
    }

    #[test]
    fn a_bmc_that_is_always_busy_is_given_up_by_the_deadline() {
        let (mut fake, mut session) = (Fake { busy: u32::MAX, ..Fake::new() }, session("secret"));
        let (answer, at) = play(&mut session, &mut fake, &[], Mono::default(), ASK());
        assert!(matches!(answer, Err(Failure::Ended(BmcError::Unreachable(_)))), "{answer:?}");
        assert_eq!(at, Mono(REQUEST_TIME));
    }

    #[test]
    fn a_silent_bmc_is_given_up_in_seconds() {
        let (mut fake, mut session) = (Fake::new(), session("secret"));
        let (answer, at) = play(&mut session, &mut fake, &[Fate::Lost; 100], Mono::default(), ASK());
        assert!(matches!(answer, Err(Failure::Ended(BmcError::Unreachable(_)))), "{answer:?}");
        assert_eq!(at.0, Duration::from_secs(5));
    }

    #[test]
    fn a_password_too_long_is_refused_before_anything_is_sent() {
        let credentials = Credentials { user: "admin".to_owned(), password: "twenty-one-bytes-long".to_owned().into() };
        let why = Session::new(Mono::default(), &credentials, Nonce { session: 1, random: [0; 16] }).unwrap_err();
        assert!(matches!(why, BmcError::Refused(_)));
        assert!(!format!("{:?}", session("secret")).contains("secret"));
    }

    #[test]
    fn an_idle_session_asks_nothing_and_is_over_before_the_bmc_ends_it() {
        let (mut fake, mut session) = (Fake::new(), session("secret"));
        let (_, now) = play(&mut session, &mut fake, &[], Mono::default(), ASK());
        assert_eq!((session.timeout(), session.transmit([5; 16])), (None, None));
        assert!(!session.is_over(now.plus(IDLE_TIME)));
        assert!(session.is_over(now.plus(IDLE_TIME + Duration::from_secs(1))));
    }

    /// What the session still sends, as the BMC reads it.
    fn parting(session: &mut Session, fake: &mut Fake) -> Vec<String> {
        fake.asked.clear();
        while let Some(datagram) = session.transmit([5; 16]) {
            fake.handle(&datagram);
        }
        std::mem::take(&mut fake.asked)
    }

    #[test]
    fn a_session_whose_user_is_no_operator_is_closed() {
        let (mut fake, mut session) = (Fake { refuses_privilege: true, ..Fake::new() }, session("secret"));
        let (answer, _) = play(&mut session, &mut fake, &[], Mono::default(), ASK());
        assert!(matches!(answer, Err(Failure::Ended(BmcError::Denied(_)))), "{answer:?}");
        assert_eq!(parting(&mut session, &mut fake), ["0x06/0x3c number 3"]);
    }

    #[test]
    fn a_session_that_is_given_up_is_closed() {
        let (mut fake, mut session) = (Fake::new(), session("secret"));
        let (_, now) = play(&mut session, &mut fake, &[], Mono::default(), ASK());
        let (answer, _) = play(&mut session, &mut fake, &[Fate::Lost; 100], now, ASK());
        assert!(matches!(answer, Err(Failure::Ended(BmcError::Unreachable(_)))), "{answer:?}");
        assert_eq!(parting(&mut session, &mut fake), ["0x06/0x3c number 4"]);
        session.close();
        assert_eq!(session.transmit([5; 16]), None);
    }

    #[test]
    fn a_session_that_is_always_busy_is_closed_at_the_deadline() {
        let (mut fake, mut session) = (Fake { busy: u32::MAX, ..Fake::new() }, session("secret"));
        let _ = play(&mut session, &mut fake, &[], Mono::default(), ASK());
        let parting = parting(&mut session, &mut fake);
        assert!(parting[0].starts_with("0x06/0x3c"), "{parting:?}");
    }

    #[test]
    fn a_replayed_or_forged_answer_is_not_believed() {
        let (mut fake, mut session) = (Fake::new(), session("secret"));
        let (_, now) = play(&mut session, &mut fake, &[], Mono::default(), ASK());
        session.request(now, Request::new(0x00, 0x09, &[]));
        let good = fake.handle(&session.transmit([5; 16]).unwrap()).unwrap();
        for bit in 0..good.len() * 8 {
            let mut forged = good.clone();
            forged[bit / 8] ^= 1 << (bit % 8);
            // RMCP's version and class are checked, its two other bytes are not.
            if !(8..24).contains(&bit) {
                session.handle(now, &forged);
                assert_eq!(session.answer(), None, "bit {bit}");
            }
        }
        session.handle(now, &good);
        assert_eq!(session.answer(), Some(Ok(vec![0x09])));
        session.request(now, Request::new(0x00, 0x09, &[]));
        session.handle(now, &good);
        assert_eq!(session.answer(), None);
    }

    #[test]
    fn a_late_answer_to_a_request_that_was_abandoned_is_not_believed() {
        let mut fake = Fake { respond: Box::new(|_, _, data| (0, data.to_vec())), ..Fake::new() };
        let mut session = session("secret");
        let (_, now) = play(&mut session, &mut fake, &[], Mono::default(), ASK());
        session.request(now, Request::new(0x00, 0x09, &[1]));
        let late = fake.handle(&session.transmit([5; 16]).unwrap()).unwrap();
        session.request(now, Request::new(0x00, 0x09, &[2]));
        session.handle(now, &late);
        assert_eq!(session.answer(), None);
        let good = fake.handle(&session.transmit([5; 16]).unwrap()).unwrap();
        session.handle(now, &good);
        assert_eq!(session.answer(), Some(Ok(vec![2])));
    }

    #[test]
    fn a_number_is_new_once_and_within_the_window() {
        let mut window = Window::default();
        assert!(!window.is_new(0));
        assert!(window.is_new(5) && !window.is_new(5));
        assert!(window.is_new(3) && !window.is_new(3));
        assert!(window.is_new(100) && !window.is_new(5) && window.is_new(99));
        assert!(window.is_new(u32::MAX) && !window.is_new(100));
    }

    fn fate() -> impl Strategy<Value = Fate> {
        prop_oneof![4 => Just(Fate::Arrives), 2 => Just(Fate::Lost), 1 => Just(Fate::Doubled), 1 => Just(Fate::Late)]
    }

    proptest! {
        #[test]
        fn every_request_ends_in_its_answer_or_unreachable_by_its_deadline(
            fates in prop::collection::vec(fate(), 0..40),
            more in prop::collection::vec(fate(), 0..20),
            is_forgetful: bool,
            has_17: bool,
            busy in 0_u32..3,
        ) {
            let suites = if has_17 { vec![Suite::Sha256, Suite::Sha1] } else { vec![Suite::Sha1] };
            let mut fake = Fake { suites, is_forgetful, busy, ..Fake::new() };
            let mut session = session("secret");
            let mut now = Mono::default();
            for (fates, command) in [(fates, 0x01), (more, 0x09)] {
                let began = now;
                // A BMC that forgets and a network that delays can make a good login look wrong.
                let fates: Vec<_> = fates.into_iter().filter(|fate| !is_forgetful || *fate != Fate::Late).collect();
                let (answer, at) = play(&mut session, &mut fake, &fates, now, Request::new(0x00, command, &[]));
                prop_assert!(began.until(at) <= REQUEST_TIME);
                match answer {
                    Ok(data) => prop_assert_eq!(data, vec![command]),
                    Err(Failure::Ended(BmcError::Unreachable(_))) => {}
                    Err(other) => prop_assert!(false, "{other:?}"),
                }
                now = at;
            }
        }

        #[test]
        fn no_bytes_make_a_session_panic(datagrams in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..100), 1..8)) {
            let mut session = session("secret");
            session.request(Mono::default(), ASK());
            for mut datagram in datagrams {
                if datagram.len() > 6 {
                    datagram[..5].copy_from_slice(&[6, 0, 0xff, 7, 6]);
                }
                session.handle(Mono::default(), &datagram);
                let _ = (open_response(&datagram), rakp2(&datagram), rakp4(&datagram));
            }
            prop_assert!(!session.is_open());
        }
    }
}
