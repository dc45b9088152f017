//! Datagrams and messages as bytes: RMCP (IPMI 2.0 §13.1.3), the session headers of IPMI 1.5 and
//! RMCP+ (§13.6), and the message inside them (§13.8).
//!
//! Invariants:
//! - No bytes make a parser panic.
//! - A message is believed only when both its checksums are right.

use std::fmt;

/// Bytes that mean nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub &'static str);

/// A payload's type (§13.27.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A message.
    Ipmi,
    /// Serial over LAN.
    Sol,
    /// RMCP+ Open Session Request.
    OpenRequest,
    /// RMCP+ Open Session Response.
    OpenResponse,
    /// RAKP Message 1.
    Rakp1,
    /// RAKP Message 2.
    Rakp2,
    /// RAKP Message 3.
    Rakp3,
    /// RAKP Message 4.
    Rakp4,
}

impl Kind {
    /// As it is written.
    pub fn code(self) -> u8 {
        match self {
            Self::Ipmi => 0x00,
            Self::Sol => 0x01,
            Self::OpenRequest => 0x10,
            Self::OpenResponse => 0x11,
            Self::Rakp1 => 0x12,
            Self::Rakp2 => 0x13,
            Self::Rakp3 => 0x14,
            Self::Rakp4 => 0x15,
        }
    }

    fn of(code: u8) -> Result<Self, Malformed> {
        Ok(match code {
            0x00 => Self::Ipmi,
            0x01 => Self::Sol,
            0x10 => Self::OpenRequest,
            0x11 => Self::OpenResponse,
            0x12 => Self::Rakp1,
            0x13 => Self::Rakp2,
            0x14 => Self::Rakp3,
            0x15 => Self::Rakp4,
            _ => return Err(Malformed("a payload of unknown type")),
        })
    }
}

/// A datagram, taken apart but not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Datagram<'a> {
    /// In IPMI 1.5's form, outside a session.
    Plain {
        /// A message.
        payload: &'a [u8],
    },
    /// In RMCP+'s form.
    Plus(Plus<'a>),
}

/// A datagram in RMCP+'s form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plus<'a> {
    /// What its payload is.
    pub kind: Kind,
    /// Whether its payload says to be encrypted.
    pub is_encrypted: bool,
    /// Whether it says to have an integrity code.
    pub is_authenticated: bool,
    /// Session it is for, as its receiver numbers it; zero outside one.
    pub session: u32,
    /// Its number in the session.
    pub sequence: u32,
    /// Payload as it came.
    pub payload: &'a [u8],
    /// What follows the payload: padding, its length, next header, integrity code.
    pub trailer: &'a [u8],
    /// Everything from the session header on, which the integrity code covers but for itself.
    pub covered: &'a [u8],
}

const RMCP: [u8; 4] = [0x06, 0x00, 0xff, 0x07];
const PLAIN: u8 = 0x00;
const PLUS: u8 = 0x06;
const ENCRYPTED: u8 = 0x80;
const AUTHENTICATED: u8 = 0x40;

/// Takes a datagram apart.
pub fn datagram(bytes: &[u8]) -> Result<Datagram<'_>, Malformed> {
    let mut reader = Reader::new(bytes);
    let [version, _, _, class] = reader.array()?;
    if version != RMCP[0] || class != RMCP[3] {
        return Err(Malformed("not RMCP with IPMI in it"));
    }
    let covered = reader.rest;
    match reader.u8()? {
        PLAIN => {
            let _sequence_and_session: [u8; 8] = reader.array()?;
            let length = reader.u8()?;
            Ok(Datagram::Plain { payload: reader.take(length.into())? })
        }
        PLUS => {
            let kind = reader.u8()?;
            let session = reader.u32()?;
            let sequence = reader.u32()?;
            let length = reader.u16()?;
            let payload = reader.take(length.into())?;
            Ok(Datagram::Plus(Plus {
                kind: Kind::of(kind & 0x3f)?,
                is_encrypted: kind & ENCRYPTED != 0,
                is_authenticated: kind & AUTHENTICATED != 0,
                session,
                sequence,
                payload,
                trailer: reader.rest,
                covered,
            }))
        }
        _ => Err(Malformed("an authentication type that was not asked for")),
    }
}

/// A datagram in IPMI 1.5's form, outside a session.
pub fn plain(payload: &[u8]) -> Vec<u8> {
    let mut bytes = RMCP.to_vec();
    bytes.extend([PLAIN, 0, 0, 0, 0, 0, 0, 0, 0]);
    bytes.push(u8::try_from(payload.len()).expect("what is sent outside a session is short"));
    bytes.extend(payload);
    bytes
}

/// A datagram in RMCP+'s form, outside a session.
pub fn plus(kind: Kind, payload: &[u8]) -> Vec<u8> {
    let mut bytes = RMCP.to_vec();
    bytes.extend(header(kind.code(), 0, 0, payload));
    bytes
}

/// A datagram of a session; `sign` gives the integrity code of what it is given.
pub fn secured(kind: Kind, session: u32, sequence: u32, payload: &[u8], sign: impl Fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let mut covered = header(kind.code() | ENCRYPTED | AUTHENTICATED, session, sequence, payload);
    // Table 13-8: what is covered, with the two bytes after the padding, is a multiple of four.
    let padding = (4 - (covered.len() + 2) % 4) % 4;
    covered.extend(std::iter::repeat_n(0xff, padding));
    covered.extend([u8::try_from(padding).expect("less than four"), 0x07]);
    let code = sign(&covered);
    let mut bytes = RMCP.to_vec();
    bytes.extend(covered);
    bytes.extend(code);
    bytes
}

fn header(kind: u8, session: u32, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![PLUS, kind];
    bytes.extend(session.to_le_bytes());
    bytes.extend(sequence.to_le_bytes());
    bytes.extend(u16::try_from(payload.len()).expect("what is sent is short").to_le_bytes());
    bytes.extend(payload);
    bytes
}

/// A request to the BMC.
#[derive(Clone, PartialEq, Eq)]
pub struct Request {
    /// Network function, even.
    pub netfn: u8,
    /// Logical unit of the BMC it is for: sensors may belong to another than the first.
    pub lun: u8,
    /// Command.
    pub command: u8,
    /// Its data.
    pub data: Vec<u8>,
}

impl Request {
    /// A request to the first logical unit.
    pub fn new(netfn: u8, command: u8, data: &[u8]) -> Self {
        Self { netfn, lun: 0, command, data: data.to_vec() }
    }

    /// As a message with this number, below 64.
    pub fn message(&self, sequence: u8) -> Vec<u8> {
        let head = [BMC, self.netfn << 2 | self.lun & 3];
        let mut body = vec![CONSOLE, sequence << 2, self.command];
        body.extend(&self.data);
        let mut bytes = head.to_vec();
        bytes.push(checksum(&head));
        bytes.extend(&body);
        bytes.push(checksum(&body));
        bytes
    }
}

/// Shows no data: it may be a password.
impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "request {:#04x}/{:#04x} of {} bytes", self.netfn, self.command, self.data.len())
    }
}

/// A response of the BMC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Network function, odd.
    pub netfn: u8,
    /// Number of the request that it answers.
    pub sequence: u8,
    /// Command of that request.
    pub command: u8,
    /// How it went (table 5-2).
    pub completion: u8,
    /// Its data.
    pub data: Vec<u8>,
}

const BMC: u8 = 0x20;
const CONSOLE: u8 = 0x81;

/// Reads a response, which is all of the payload.
pub fn response(bytes: &[u8]) -> Result<Response, Malformed> {
    let [_to, netfn, _, _from, sequence, command, completion, ..] = *bytes else {
        return Err(Malformed("a message that is cut short"));
    };
    let (head, body) = bytes.split_at(3);
    let [data @ .., _] = &body[4..] else { return Err(Malformed("a message that is cut short")) };
    if sum(head) != 0 || sum(body) != 0 {
        return Err(Malformed("a message with a wrong checksum"));
    }
    Ok(Response { netfn: netfn >> 2, sequence: sequence >> 2, command, completion, data: data.to_vec() })
}

/// What makes the sum of these bytes zero.
pub fn checksum(bytes: &[u8]) -> u8 {
    sum(bytes).wrapping_neg()
}

/// The sum of these bytes; zero over a range that ends in its checksum.
pub fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// Bytes read from the front, least significant first.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    /// What was not read yet.
    pub rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads these.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The next so many bytes.
    pub fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(Malformed("an answer that is cut short"))?;
        self.rest = rest;
        Ok(taken)
    }

    /// The next bytes, as many as fit.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(Malformed("an answer that is cut short"))?;
        self.rest = rest;
        Ok(*taken)
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, Malformed> {
        self.array().map(|[byte]| byte)
    }

    /// Two bytes.
    pub fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_le_bytes)
    }

    /// Four bytes.
    pub fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn get_channel_authentication_capabilities_is_what_ipmitool_sends() {
        let request = Request::new(0x06, 0x38, &[0x8e, 0x04]);
        expect!["0600ff07000000000000000000092018c88100388e04b5"].assert_eq(&hex::encode(plain(&request.message(0))));
    }

    /// What OpenIPMI's simulator answers to the request above.
    const CAPABILITIES: &str = "0600ff0700000000000000000010811c6320003800019704030000000009";

    #[test]
    fn an_answer_outside_a_session_is_read() {
        let bytes = hex::decode(CAPABILITIES).unwrap();
        let Ok(Datagram::Plain { payload }) = datagram(&bytes) else { panic!("{:?}", datagram(&bytes)) };
        let expected =
            Response { netfn: 0x07, sequence: 0, command: 0x38, completion: 0, data: vec![1, 0x97, 4, 3, 0, 0, 0, 0] };
        assert_eq!(response(payload), Ok(expected));
    }

    #[test]
    fn a_message_with_one_wrong_bit_is_not_believed() {
        let good = hex::decode(&CAPABILITIES[28..]).unwrap();
        assert!(response(&good).is_ok());
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(response(&bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn what_is_covered_is_padded_to_four_bytes() {
        for length in 0..40 {
            let payload = vec![0; length];
            let bytes = secured(Kind::Ipmi, 1, 2, &payload, |covered| {
                assert_eq!(covered.len() % 4, 0);
                vec![0xaa; 12]
            });
            let Ok(Datagram::Plus(plus)) = datagram(&bytes) else { panic!("{length}") };
            assert_eq!((plus.payload, plus.session, plus.sequence), (&payload[..], 1, 2));
        }
    }

    #[test]
    fn debug_shows_no_data_of_a_request() {
        let debug = format!("{:?}", Request::new(0x06, 0x47, b"secret"));
        assert_eq!(debug, "request 0x06/0x47 of 6 bytes");
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..80), rmcp in any::<bool>()) {
            let mut bytes = bytes;
            if rmcp && bytes.len() > 4 {
                bytes[..4].copy_from_slice(&RMCP);
                bytes[4] = if bytes[4] & 1 == 0 { PLAIN } else { PLUS };
            }
            let _ = datagram(&bytes);
            let _ = response(&bytes);
        }
    }
}
