//! What ends a boot ROM's wait for IPv6: router advertisements (RFC 4861 §4.2) and answers to
//! stateless DHCPv6 (RFC 8415 §18.3.6), both saying that there is nothing to get here.
//!
//! Invariants:
//! - Router lifetime is zero and no prefix is announced: nobody ever routes through the node,
//!   and no machine gets an IPv6 address by it.
//! - An answer repeats the client's transaction and identifier and is never longer than the
//!   question by more than a fixed amount.

use rackhand_common::machine::Mac;

/// Whether an ICMPv6 message asks for an advertisement (RFC 4861 §4.1).
pub fn is_solicitation(message: &[u8]) -> bool {
    message.len() >= 8 && message[..2] == [133, 0]
}

/// A router advertisement from the card `source`. The sender fills in the checksum. Managed
/// and other-configuration flags are clear: with either, iPXE would go on to ask DHCPv6.
pub fn advertisement(source: Mac) -> Vec<u8> {
    let mut message = vec![134, 0, 0, 0, HOP_LIMIT, 0];
    // Router lifetime, reachable time, retransmission timer: zero, for "none" and "unspecified".
    message.extend_from_slice(&[0; 10]);
    // Source link-layer address (§4.6.1), so that nobody has to solicit it.
    message.extend_from_slice(&[1, 1]);
    message.extend_from_slice(&source.0);
    message
}

/// The answer of the card `source` to a DHCPv6 client: that there are no addresses, to a
/// SOLICIT; nothing more to know, to an INFORMATION-REQUEST; silence to all else.
pub fn answer(source: Mac, request: &[u8]) -> Option<Vec<u8>> {
    let (head, options) = request.split_first_chunk::<4>()?;
    let client = option(options, CLIENT_ID);
    let (answer, status) = match head[0] {
        SOLICIT => (ADVERTISE, true),
        INFORMATION_REQUEST => (REPLY, false),
        _ => return None,
    };
    // A SOLICIT must name its client, an INFORMATION-REQUEST may (§16.2, §16.12).
    if status && client.is_none() {
        return None;
    }
    let mut message = vec![answer, head[1], head[2], head[3]];
    if let Some(client) = client {
        push(&mut message, CLIENT_ID, client);
    }
    // DUID-LL over Ethernet (§11.4).
    push(&mut message, SERVER_ID, &[&[0, 3, 0, 1], &source.0[..]].concat());
    if status {
        push(&mut message, STATUS_CODE, &NO_ADDRESSES.to_be_bytes());
    }
    Some(message)
}

/// The first option `wanted` that is whole and no longer than a client identifier may be.
fn option(mut options: &[u8], wanted: u16) -> Option<&[u8]> {
    while let Some((head, rest)) = options.split_first_chunk::<4>() {
        let (value, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes([head[2], head[3]])))?;
        if u16::from_be_bytes([head[0], head[1]]) == wanted {
            return (value.len() <= LONGEST_ID).then_some(value);
        }
        options = rest;
    }
    None
}

fn push(message: &mut Vec<u8>, code: u16, value: &[u8]) {
    let len = u16::try_from(value.len()).expect("options here are at most a client identifier long");
    message.extend_from_slice(&code.to_be_bytes());
    message.extend_from_slice(&len.to_be_bytes());
    message.extend_from_slice(value);
}

const HOP_LIMIT: u8 = 64;

const SOLICIT: u8 = 1;
const ADVERTISE: u8 = 2;
const REPLY: u8 = 7;
const INFORMATION_REQUEST: u8 = 11;

const CLIENT_ID: u16 = 1;
const SERVER_ID: u16 = 2;
const STATUS_CODE: u16 = 13;
const NO_ADDRESSES: u16 = 2;

/// A DUID has a type and at most 128 bytes (§11.1).
const LONGEST_ID: usize = 130;

#[cfg(test)]
mod tests {
    use dhcproto::{Decodable, Decoder, v6};
    use proptest::prelude::*;

    use super::*;

    const CARD: Mac = Mac([2, 0, 0, 0, 0, 1]);

    #[test]
    fn nobody_routes_through_us() {
        let message = advertisement(CARD);
        assert_eq!(message[..16], [134, 0, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(message[16..], [1, 1, 2, 0, 0, 0, 0, 1]);
    }

    #[test]
    fn an_information_request_is_answered_with_its_own_identifier() {
        let reply = answer(CARD, &[11, 1, 2, 3, 0, 1, 0, 4, 0, 3, 0, 9, 0, 8, 0, 2, 0, 0]).unwrap();
        let reply = v6::Message::decode(&mut Decoder::new(&reply)).unwrap();
        assert_eq!((reply.msg_type(), reply.xid()), (v6::MessageType::Reply, [1, 2, 3]));
        assert_eq!(reply.opts().get(v6::OptionCode::ClientId), Some(&v6::DhcpOption::ClientId(vec![0, 3, 0, 9])));
    }

    #[test]
    fn a_solicit_learns_that_there_are_no_addresses() {
        let reply = answer(CARD, &[1, 1, 2, 3, 0, 1, 0, 4, 0, 3, 0, 9]).unwrap();
        let reply = v6::Message::decode(&mut Decoder::new(&reply)).unwrap();
        assert_eq!(reply.msg_type(), v6::MessageType::Advertise);
        let Some(v6::DhcpOption::StatusCode(code)) = reply.opts().get(v6::OptionCode::StatusCode) else {
            panic!("no status")
        };
        assert_eq!(code.status, v6::Status::NoAddrsAvail);
        assert_eq!(answer(CARD, &[1, 1, 2, 3]), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_an_answer_long(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let longest = 4 + 4 + LONGEST_ID + 14 + 6;
            prop_assert!(answer(CARD, &bytes).is_none_or(|reply| reply.len() <= longest));
        }
    }
}
