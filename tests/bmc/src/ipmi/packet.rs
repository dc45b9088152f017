//! What is on the wire: RMCP (ASF 2.0), the session headers of IPMI 1.5 and 2.0 (§13.6) and IPMI
//! messages (§13.8), without keys.

/// A datagram without its RMCP header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Packet<'a> {
    /// ASF presence ping, with its tag.
    Ping(u8),
    /// A message outside a session, in the format of IPMI 1.5 without authentication.
    Plain(&'a [u8]),
    /// A packet of IPMI 2.0.
    V2(V2<'a>),
}

/// A packet of IPMI 2.0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct V2<'a> {
    pub(crate) is_encrypted: bool,
    pub(crate) is_authenticated: bool,
    /// Type, without the flags.
    pub(crate) payload_type: u8,
    pub(crate) session: u32,
    pub(crate) sequence: u32,
    pub(crate) payload: &'a [u8],
    /// From the authentication type to the end: what the code at the end covers, and that code.
    pub(crate) covered: &'a [u8],
}

/// One request within a session or without.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request<'a> {
    pub(crate) net_fn: u8,
    pub(crate) command: u8,
    pub(crate) data: &'a [u8],
    responder: u8,
    responder_lun: u8,
    requester: u8,
    /// Sequence and LUN of the requester, as they came.
    requester_sequence: u8,
}

/// RMCP: version 6, no acknowledgement wanted, class 7.
const RMCP: [u8; 4] = [6, 0, 0xff, 7];

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Takes a datagram apart; what makes no sense is silence.
pub(crate) fn parse(datagram: &[u8]) -> Option<Packet<'_>> {
    let (header, body) = datagram.split_at_checked(4)?;
    if header[0] != 6 {
        return None;
    }
    match header[3] & 0x1f {
        6 => {
            let is_ping = body.get(..5)? == [0, 0, 0x11, 0xbe, 0x80];
            is_ping.then_some(Packet::Ping(*body.get(5)?))
        }
        7 => match body.first()? {
            0 => {
                let length = usize::from(*body.get(9)?);
                Some(Packet::Plain(body.get(10..10 + length)?))
            }
            6 => {
                let kind = *body.get(1)?;
                // OEM payloads carry six more bytes here; there are none that we take.
                if kind & 0x3f == 2 {
                    return None;
                }
                let length = usize::from(u16::from_le_bytes([*body.get(10)?, *body.get(11)?]));
                Some(Packet::V2(V2 {
                    is_encrypted: kind & 0x80 != 0,
                    is_authenticated: kind & 0x40 != 0,
                    payload_type: kind & 0x3f,
                    session: u32_at(body, 2)?,
                    sequence: u32_at(body, 6)?,
                    payload: body.get(12..12 + length)?,
                    covered: body,
                }))
            }
            _ => None,
        },
        _ => None,
    }
}

/// The answer to a ping: IPMI is spoken here.
pub(crate) fn pong(tag: u8) -> Vec<u8> {
    let mut packet = vec![6, 0, 0xff, 6, 0, 0, 0x11, 0xbe, 0x40, tag, 0, 16];
    packet.extend([0, 0, 0x11, 0xbe, 0, 0, 0, 0, 0x81, 0, 0, 0, 0, 0, 0, 0]);
    packet
}

/// A message outside a session.
pub(crate) fn plain(message: &[u8]) -> Vec<u8> {
    let mut packet = RMCP.to_vec();
    packet.extend([0; 9]);
    packet.push(u8::try_from(message.len()).unwrap_or(u8::MAX));
    packet.extend(message);
    packet
}

/// A packet of IPMI 2.0 up to its payload's end; what it is sealed with comes after.
pub(crate) fn v2(kind: u8, session: u32, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let mut packet = RMCP.to_vec();
    packet.extend([6, kind]);
    packet.extend(session.to_le_bytes());
    packet.extend(sequence.to_le_bytes());
    packet.extend(u16::try_from(payload.len()).unwrap_or(u16::MAX).to_le_bytes());
    packet.extend(payload);
    packet
}

/// Two's complement of the sum.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)).wrapping_neg()
}

impl<'a> Request<'a> {
    /// Takes a message apart; one with a wrong checksum is silence.
    pub(crate) fn parse(message: &'a [u8]) -> Option<Self> {
        let [head @ .., _] = message else { return None };
        let [responder, function, _, requester, sequence, command, data @ ..] = head else { return None };
        let is_whole = checksum(&message[..3]) == 0 && checksum(&message[3..]) == 0;
        let is_request = function >> 2 & 1 == 0;
        (is_whole && is_request).then_some(Self {
            net_fn: function >> 2,
            command: *command,
            data,
            responder: *responder,
            responder_lun: function & 3,
            requester: *requester,
            requester_sequence: *sequence,
        })
    }

    /// The message that answers it: completion code and data.
    pub(crate) fn answer(&self, answer: &[u8]) -> Vec<u8> {
        let mut message = vec![self.requester, (self.net_fn | 1) << 2 | self.requester_sequence & 3];
        message.push(checksum(&message));
        message.extend([self.responder, self.requester_sequence & 0xfc | self.responder_lun, self.command]);
        message.extend(answer);
        message.push(checksum(&message[3..]));
        message
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_answered_to_whom_it_came_from() {
        // Get Device ID, as in IPMI 2.0's own example of a message.
        let message = [0x20, 0x18, 0xc8, 0x81, 0x04, 0x01, 0x7a];
        let request = Request::parse(&message).unwrap();
        assert_eq!((request.net_fn, request.command, request.data), (6, 1, &[][..]));
        assert_eq!(request.answer(&[0]), [0x81, 0x1c, 0x63, 0x20, 0x04, 0x01, 0x00, 0xdb]);
        let mut damaged = message;
        damaged[5] = 2;
        assert_eq!(Request::parse(&damaged), None);
    }

    #[test]
    fn no_cut_of_a_packet_panics() {
        let packet = v2(0xc0, 1, 2, &[1, 2, 3]);
        for end in 0..packet.len() {
            assert_eq!(parse(&packet[..end]), None, "{end}");
        }
        assert!(matches!(parse(&packet), Some(Packet::V2(_))));
    }
}
