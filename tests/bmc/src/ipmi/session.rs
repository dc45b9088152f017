//! Sessions of RMCP+: opening one, RAKP (IPMI 2.0 §13.17 to §13.24), and the sealing of packets
//! (§13.28, §13.29), without sockets and without randomness of its own.
//!
//! Invariants:
//! - Nothing of a session is answered before its RAKP 3 was right.
//! - A packet whose code is wrong, or whose sequence number was seen or is too old, is silence.

use aws_lc_rs::{
    cipher::{AES_128, DecryptingKey, DecryptionContext, EncryptingKey, UnboundCipherKey},
    hmac,
    iv::FixedLength,
};

use super::packet::{self, V2};
use crate::personality::Role;

/// How many sessions there may be, open or being opened.
pub const SESSIONS: usize = 4;

/// How many sequence numbers before the highest are still taken (§6.12.13).
const WINDOW: u32 = 16;

/// One session.
#[derive(Debug)]
pub(crate) struct Session {
    /// The BMC's number for it.
    pub(crate) id: u32,
    /// The console's number for it.
    console: u32,
    suite: Suite,
    console_random: [u8; 16],
    random: [u8; 16],
    /// Role byte of RAKP 1, as it came.
    role: u8,
    name: Vec<u8>,
    key: Vec<u8>,
    guid: [u8; 16],
    /// What it may do at most; 0 until it is opened.
    pub(crate) limit: u8,
    /// What it may do now.
    pub(crate) privilege: u8,
    /// Id of its user.
    pub(crate) user: u8,
    keys: Option<Keys>,
    sequence: u32,
    highest: u32,
    seen: u32,
    /// When it was last heard of.
    pub(crate) heard: jiff::Timestamp,
    /// Whether it has the console of the machine.
    pub(crate) has_console: bool,
    /// Where it was last heard from.
    pub(crate) peer: Option<std::net::SocketAddr>,
}

#[derive(Debug)]
struct Keys {
    integrity: Vec<u8>,
    secrecy: [u8; 16],
}

/// The algorithms of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Suite {
    authentication: u8,
    integrity: u8,
    secrecy: u8,
}

impl Suite {
    /// The algorithms of a suite (table 22-20).
    pub(crate) fn of(id: u8) -> Option<Self> {
        let (authentication, integrity, secrecy) = match id {
            1 => (1, 0, 0),
            2 => (1, 1, 0),
            3 => (1, 1, 1),
            15 => (3, 0, 0),
            16 => (3, 4, 0),
            17 => (3, 4, 1),
            _ => return None,
        };
        Some(Self { authentication, integrity, secrecy })
    }

    /// Its record in the list of a channel's suites.
    pub(crate) fn record(self, id: u8) -> [u8; 5] {
        [0xc0, id, self.authentication, 0x40 | self.integrity, 0x80 | self.secrecy]
    }

    fn mac(self, key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
        let algorithm = if self.authentication == 1 { hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY } else { hmac::HMAC_SHA256 };
        let mut context = hmac::Context::with_key(&hmac::Key::new(algorithm, key));
        for part in parts {
            context.update(part);
        }
        context.sign().as_ref().to_vec()
    }

    /// Bytes of the code that ends a packet, and of RAKP 4's.
    fn code_length(self) -> usize {
        if self.authentication == 1 { 12 } else { 16 }
    }
}

/// Id, password and role of a user.
pub(crate) type Known = (u8, Vec<u8>, Role);

/// What of a BMC an opening session is checked against.
pub(crate) struct Gate<'a> {
    pub(crate) suites: &'a [u8],
    pub(crate) guid: [u8; 16],
    pub(crate) is_full: bool,
    /// The user of a name.
    pub(crate) user: &'a dyn Fn(&str) -> Option<Known>,
}

/// The table of sessions.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    pub(crate) open: Vec<Session>,
    last: u32,
}

/// IPMI's number of what a role may do.
pub(crate) fn privilege(role: Role) -> u8 {
    match role {
        Role::None => 0x0f,
        Role::User => 2,
        Role::Operator => 3,
        Role::Administrator => 4,
    }
}

impl Sessions {
    /// Answers an Open Session Request.
    pub(crate) fn open(&mut self, now: jiff::Timestamp, gate: &Gate<'_>, request: &[u8]) -> Option<Vec<u8>> {
        let (head, rest) = request.split_at_checked(8)?;
        let [tag, asked] = [head[0], head[1] & 0x0f];
        let console = u32::from_le_bytes(head[4..8].try_into().ok()?);
        let refuse = |status: u8| {
            let mut answer = vec![tag, status, asked, 0];
            answer.extend(console.to_le_bytes());
            Some(packet::v2(0x11, 0, 0, &answer))
        };
        // Each proposal is 8 bytes: type, two reserved, length, algorithm. A length of 0 is "any".
        let proposal = |at: usize| {
            let part = rest.get(at * 8..at * 8 + 8)?;
            Some(if part[3] == 0 { None } else { Some(part[4] & 0x3f) })
        };
        let (Some(authentication), Some(integrity), Some(secrecy)) = (proposal(0), proposal(1), proposal(2)) else {
            return refuse(0x12);
        };
        let fits = |suite: &Suite| {
            authentication.is_none_or(|it| it == suite.authentication)
                && integrity.is_none_or(|it| it == suite.integrity)
                && secrecy.is_none_or(|it| it == suite.secrecy)
        };
        let Some(suite) = gate.suites.iter().rev().filter_map(|id| Suite::of(*id)).find(fits) else {
            return refuse(0x11);
        };
        if self.open.len() >= SESSIONS {
            // One that never finished opening makes room first.
            match self.open.iter().position(|session| session.keys.is_none()) {
                Some(at) => drop(self.open.remove(at)),
                None => return refuse(0x01),
            }
        }
        if gate.is_full {
            return refuse(0x01);
        }
        self.last = self.last.checked_add(1).unwrap_or(1);
        let id = 0xa0a0_0000 | self.last & 0xffff;
        self.open.push(Session {
            id,
            console,
            suite,
            console_random: [0; 16],
            random: [0; 16],
            role: 0,
            name: Vec::new(),
            key: Vec::new(),
            guid: gate.guid,
            limit: 0,
            privilege: 0,
            user: 0,
            keys: None,
            sequence: 0,
            highest: 0,
            seen: 0,
            heard: now,
            has_console: false,
            peer: None,
        });
        let mut answer = vec![tag, 0, if asked == 0 { 4 } else { asked }, 0];
        answer.extend(console.to_le_bytes());
        answer.extend(id.to_le_bytes());
        for (kind, algorithm) in (0..).zip([suite.authentication, suite.integrity, suite.secrecy]) {
            answer.extend([kind, 0, 0, 8, algorithm, 0, 0, 0]);
        }
        Some(packet::v2(0x11, 0, 0, &answer))
    }

    /// Answers RAKP 1: who the console says it is.
    pub(crate) fn rakp1(&mut self, gate: &Gate<'_>, random: [u8; 16], message: &[u8]) -> Option<Vec<u8>> {
        let (head, name) = message.split_at_checked(28)?;
        let tag = head[0];
        let id = u32::from_le_bytes(head[4..8].try_into().ok()?);
        let Some(session) = self.open.iter_mut().find(|session| session.id == id && session.keys.is_none()) else {
            return Some(packet::v2(0x13, 0, 0, &[tag, 0x02, 0, 0, 0, 0, 0, 0]));
        };
        let refuse = |status: u8, console: u32| {
            let mut answer = vec![tag, status, 0, 0];
            answer.extend(console.to_le_bytes());
            Some(packet::v2(0x13, 0, 0, &answer))
        };
        let name = match name.get(..usize::from(head[27])) {
            Some(name) if name.len() <= 16 => name,
            _ => return refuse(0x0c, session.console),
        };
        let asked = head[24] & 0x0f;
        let user = std::str::from_utf8(name).ok().and_then(|name| (gate.user)(name));
        let Some((user, key, role)) = user else {
            let console = session.console;
            self.open.retain(|session| session.id != id);
            return refuse(0x0d, console);
        };
        if !(2..=4).contains(&asked) || asked > privilege(role) || role == Role::None {
            let console = session.console;
            self.open.retain(|session| session.id != id);
            return refuse(if (1..=5).contains(&asked) { 0x0a } else { 0x09 }, console);
        }
        session.console_random = head[8..24].try_into().ok()?;
        session.random = random;
        session.role = head[24];
        session.name = name.to_vec();
        session.key = key;
        session.limit = asked;
        session.user = user;
        let code = session.suite.mac(
            &session.key,
            &[
                &session.console.to_le_bytes(),
                &session.id.to_le_bytes(),
                &session.console_random,
                &session.random,
                &session.guid,
                &[session.role, head[27]],
                name,
            ],
        );
        let mut answer = vec![tag, 0, 0, 0];
        answer.extend(session.console.to_le_bytes());
        answer.extend(session.random);
        answer.extend(session.guid);
        answer.extend(code);
        Some(packet::v2(0x13, 0, 0, &answer))
    }

    /// Answers RAKP 3: the console knows the password, or it does not.
    pub(crate) fn rakp3(&mut self, message: &[u8]) -> Option<Vec<u8>> {
        let (head, code) = message.split_at_checked(8)?;
        let (tag, status) = (head[0], head[1]);
        let id = u32::from_le_bytes(head[4..8].try_into().ok()?);
        let Some(session) =
            self.open.iter_mut().find(|session| session.id == id && session.keys.is_none() && session.limit > 0)
        else {
            return Some(packet::v2(0x15, 0, 0, &[tag, 0x02, 0, 0, 0, 0, 0, 0]));
        };
        if status != 0 {
            self.open.retain(|session| session.id != id);
            return None;
        }
        let length = u8::try_from(session.name.len()).ok()?;
        let who = [session.role, length];
        let expected =
            session.suite.mac(&session.key, &[&session.random, &session.console.to_le_bytes(), &who, &session.name]);
        if code != expected {
            let mut answer = vec![tag, 0x0f, 0, 0];
            answer.extend(session.console.to_le_bytes());
            self.open.retain(|session| session.id != id);
            return Some(packet::v2(0x15, 0, 0, &answer));
        }
        let suite = session.suite;
        let sik = suite.mac(&session.key, &[&session.console_random, &session.random, &who, &session.name]);
        let mut secrecy = [0; 16];
        secrecy.copy_from_slice(&suite.mac(&sik, &[&[2; 20]])[..16]);
        session.keys = Some(Keys { integrity: suite.mac(&sik, &[&[1; 20]]), secrecy });
        session.privilege = 2;
        let mut check = suite.mac(&sik, &[&session.console_random, &session.id.to_le_bytes(), &session.guid]);
        check.truncate(suite.code_length());
        let mut answer = vec![tag, 0, 0, 0];
        answer.extend(session.console.to_le_bytes());
        answer.extend(check);
        Some(packet::v2(0x15, 0, 0, &answer))
    }

    /// Opens a packet of a session: which, and what was in it.
    pub(crate) fn unseal(&mut self, packet: &V2<'_>) -> Option<(&mut Session, Vec<u8>)> {
        let session = self.open.iter_mut().find(|session| session.id == packet.session)?;
        let keys = session.keys.as_ref()?;
        let suite = session.suite;
        let is_sealed_as_agreed =
            packet.is_authenticated == (suite.integrity != 0) && packet.is_encrypted == (suite.secrecy != 0);
        if !is_sealed_as_agreed {
            return None;
        }
        if packet.is_authenticated {
            let (covered, code) = packet.covered.split_at_checked(packet.covered.len() - suite.code_length())?;
            let mut expected = suite.mac(&keys.integrity, &[covered]);
            expected.truncate(suite.code_length());
            if code != expected {
                return None;
            }
        }
        let payload =
            if packet.is_encrypted { decrypt(&keys.secrecy, packet.payload)? } else { packet.payload.to_vec() };
        session.takes(packet.sequence).then_some((session, payload))
    }
}

impl Session {
    /// Whether it is opened.
    pub(crate) fn is_open(&self) -> bool {
        self.keys.is_some()
    }

    /// Whether a sequence number is new and not too old; it is seen from then on.
    fn takes(&mut self, sequence: u32) -> bool {
        if sequence == 0 {
            return false;
        }
        if sequence > self.highest {
            let ahead = sequence - self.highest;
            if self.highest != 0 && ahead > WINDOW {
                return false;
            }
            self.seen = self.seen.checked_shl(ahead).unwrap_or(0) | 1;
            self.highest = sequence;
            return true;
        }
        let behind = self.highest - sequence;
        let is_new = behind < WINDOW && self.seen & 1 << behind == 0;
        if is_new {
            self.seen |= 1 << behind;
        }
        is_new
    }

    /// A packet to the console.
    pub(crate) fn seal(&mut self, payload_type: u8, iv: [u8; 16], payload: &[u8]) -> Option<Vec<u8>> {
        let keys = self.keys.as_ref()?;
        self.sequence = self.sequence.checked_add(1).unwrap_or(1);
        let flags = if self.suite.secrecy != 0 { 0x80 } else { 0 } | if self.suite.integrity != 0 { 0x40 } else { 0 };
        let sealed = if self.suite.secrecy != 0 { encrypt(&keys.secrecy, iv, payload)? } else { payload.to_vec() };
        let mut packet = packet::v2(payload_type | flags, self.console, self.sequence, &sealed);
        if self.suite.integrity != 0 {
            // The part that the code covers is a multiple of 4 bytes, from the authentication type on.
            let pad = (4 - (packet.len() - 4 + 2) % 4) % 4;
            packet.extend(std::iter::repeat_n(0xff, pad));
            packet.extend([pad as u8, 7]);
            let mut code = self.suite.mac(&keys.integrity, &[&packet[4..]]);
            code.truncate(self.suite.code_length());
            packet.extend(code);
        }
        Some(packet)
    }
}

/// AES-CBC-128: initialisation vector, then what is padded 1, 2, 3 … and the count of that.
fn encrypt(key: &[u8; 16], iv: [u8; 16], payload: &[u8]) -> Option<Vec<u8>> {
    let pad = (16 - (payload.len() + 1) % 16) % 16;
    let mut bytes = payload.to_vec();
    bytes.extend((1..=pad).map(|byte| byte as u8));
    bytes.push(pad as u8);
    let key = EncryptingKey::cbc(UnboundCipherKey::new(&AES_128, key).ok()?).ok()?;
    let context = aws_lc_rs::cipher::EncryptionContext::Iv128(FixedLength::from(iv));
    key.less_safe_encrypt(&mut bytes, context).ok()?;
    Some([&iv[..], &bytes].concat())
}

fn decrypt(key: &[u8; 16], payload: &[u8]) -> Option<Vec<u8>> {
    let (iv, bytes) = payload.split_first_chunk::<16>()?;
    if bytes.is_empty() || bytes.len() % 16 != 0 {
        return None;
    }
    let mut bytes = bytes.to_vec();
    let key = DecryptingKey::cbc(UnboundCipherKey::new(&AES_128, key).ok()?).ok()?;
    key.decrypt(&mut bytes, DecryptionContext::Iv128(FixedLength::from(*iv))).ok()?;
    let pad = usize::from(*bytes.last()?);
    let length = bytes.len().checked_sub(1 + pad)?;
    let is_padded = (1..).zip(&bytes[length..length + pad]).all(|(expected, byte)| expected == usize::from(*byte));
    (pad < 16 && is_padded).then(|| {
        bytes.truncate(length);
        bytes
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encrypted_is_what_is_decrypted() {
        for length in 0..40 {
            let payload: Vec<u8> = (0..length).collect();
            let sealed = encrypt(&[7; 16], [9; 16], &payload).unwrap();
            assert_eq!(sealed.len() % 16, 0);
            assert_eq!(decrypt(&[7; 16], &sealed).unwrap(), payload);
        }
    }

    #[test]
    fn a_sequence_number_is_taken_once_and_not_when_old() {
        let mut sessions = Sessions::default();
        let gate = Gate { suites: &[3], guid: [0; 16], is_full: false, user: &|_| None };
        let mut request = vec![0, 4, 0, 0, 1, 0, 0, 0];
        for (kind, algorithm) in [(0, 1), (1, 1), (2, 1)] {
            request.extend([kind, 0, 0, 8, algorithm, 0, 0, 0]);
        }
        sessions.open(jiff::Timestamp::UNIX_EPOCH, &gate, &request).unwrap();
        let session = &mut sessions.open[0];
        let taken: Vec<_> = [1, 3, 2, 3, 2, 20, 19, 4, 3, 100, 0].map(|sequence| session.takes(sequence)).into();
        assert_eq!(taken, [true, true, true, false, false, false, true, true, false, false, false]);
    }
}
