//! Ethernet frames as a hostile machine makes them: any source, any content.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::Context;
use nix::{
    ifaddrs::getifaddrs,
    sys::{
        socket::{
            AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt, socket, sockopt,
        },
        time::TimeVal,
    },
};
use rackhand_common::machine::Mac;

/// A network card held raw: it sends whole frames and sees all that arrive.
#[derive(Debug)]
pub(crate) struct Card {
    socket: OwnedFd,
    pub(crate) mac: Mac,
}

impl Card {
    /// The card of this name in the namespace of the calling thread.
    pub(crate) fn open(name: &str) -> anyhow::Result<Self> {
        let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
        let link = getifaddrs()?
            .filter(|found| found.interface_name == name)
            .find_map(|found| found.address?.as_link_addr().copied())
            .with_context(|| format!("no interface {name}"))?;
        bind(socket.as_raw_fd(), &link)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(0, 50_000))?;
        Ok(Self { socket, mac: Mac(link.addr().context("the interface has no Ethernet address")?) })
    }

    /// Sends a frame; one that finds the queue full is lost, as on any network.
    pub(crate) fn send(&self, frame: &[u8]) {
        let _ = send(self.socket.as_raw_fd(), frame, MsgFlags::empty());
    }

    /// The next frame, or nothing within a twentieth of a second.
    pub(crate) fn receive(&self) -> anyhow::Result<Option<Vec<u8>>> {
        self.take(MsgFlags::empty())
    }

    fn take(&self, flags: MsgFlags) -> anyhow::Result<Option<Vec<u8>>> {
        let mut buffer = vec![0; 2048];
        match recv(self.socket.as_raw_fd(), &mut buffer, flags) {
            Ok(len) => {
                buffer.truncate(len);
                Ok(Some(buffer))
            }
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => Ok(None),
            Err(error) => Err(io::Error::from(error).into()),
        }
    }

    /// The next frame, if one waits.
    pub(crate) fn receive_now(&self) -> anyhow::Result<Option<Vec<u8>>> {
        self.take(MsgFlags::MSG_DONTWAIT)
    }

    /// The first frame until `end` of which `take` makes something.
    pub(crate) fn find<T>(&self, end: Instant, mut take: impl FnMut(&[u8]) -> Option<T>) -> anyhow::Result<Option<T>> {
        while Instant::now() < end {
            if let Some(found) = self.receive()?.as_deref().and_then(&mut take) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

/// Sends what `frame` makes of each number, ten thousand a second, until `end`; how many a
/// second it came to.
pub(crate) fn flood(card: &Card, lasts: Duration, mut frame: impl FnMut(u64) -> Vec<u8>) -> u64 {
    let start = Instant::now();
    let mut sent = 0;
    while start.elapsed() < lasts {
        let due = start.elapsed().as_micros() as u64 / 100;
        for number in sent..due.max(sent) {
            card.send(&frame(number));
        }
        sent = due.max(sent);
        std::thread::sleep(Duration::from_millis(2));
    }
    sent * 1000 / start.elapsed().as_millis() as u64
}

/// Both ends of a datagram.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends {
    pub(crate) source: Mac,
    pub(crate) destination: Mac,
    pub(crate) from: (Ipv4Addr, u16),
    pub(crate) to: (Ipv4Addr, u16),
}

pub(crate) const EVERYONE: Mac = Mac([0xff; 6]);

/// A frame with a UDP datagram.
pub(crate) fn udp(ends: Ends, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() + 8) as u16;
    // A sum of zero means that there is none (RFC 768).
    let header: Vec<u8> = [ends.from.1, ends.to.1, length, 0].iter().flat_map(|word| word.to_be_bytes()).collect();
    ipv4(ends, 17, &[&header, payload].concat())
}

/// A frame with the first segment of a TCP connection.
pub(crate) fn syn(ends: Ends, sequence: u32) -> Vec<u8> {
    let mut segment = [ends.from.1.to_be_bytes(), ends.to.1.to_be_bytes()].concat();
    segment.extend(sequence.to_be_bytes());
    segment.extend([0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    let pseudo = [&ends.from.0.octets()[..], &ends.to.0.octets(), &[0, 6, 0, 20], &segment].concat();
    segment[16..18].copy_from_slice(&checksum(&pseudo).to_be_bytes());
    ipv4(ends, 6, &segment)
}

fn ipv4(ends: Ends, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = vec![0x45, 0];
    header.extend(((payload.len() + 20) as u16).to_be_bytes());
    header.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
    header.extend(ends.from.0.octets().into_iter().chain(ends.to.0.octets()));
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    [&ends.destination.0[..], &ends.source.0, &[0x08, 0x00], &header, payload].concat()
}

/// A frame from a link-local address to an IPv6 multicast group.
pub(crate) fn ipv6(source: Mac, number: u16, group: Ipv6Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let from = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0xbad, number);
    let length = payload.len() as u32;
    let pseudo = [&from.octets()[..], &group.octets(), &length.to_be_bytes(), &[0, 0, 0, protocol], payload].concat();
    let at = if protocol == ICMPV6 { 2 } else { 6 };
    let mut payload = payload.to_vec();
    payload[at..at + 2].copy_from_slice(&checksum(&pseudo).to_be_bytes());
    let mut header = vec![0x60, 0, 0, 0];
    header.extend((length as u16).to_be_bytes());
    header.extend([protocol, 255]);
    header.extend(from.octets().into_iter().chain(group.octets()));
    let [.., a, b, c, d] = group.octets();
    [&[0x33, 0x33, a, b, c, d][..], &source.0, &[0x86, 0xdd], &header, &payload].concat()
}

pub(crate) const ICMPV6: u8 = 58;

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !(sum as u16)
}

/// The payload of a UDP datagram to `port`, if the frame is one.
pub(crate) fn payload(frame: &[u8], port: u16) -> Option<&[u8]> {
    let ours = frame.len() >= 42 && frame[12..15] == [0x08, 0x00, 0x45] && frame[23] == 17;
    (ours && frame[36..38] == port.to_be_bytes()).then(|| &frame[42..])
}

/// A DHCP message from a client.
pub(crate) fn dhcp(mac: Mac, transaction: u32, own: Ipv4Addr, options: &[&[u8]]) -> Vec<u8> {
    let mut message = vec![0; 240];
    message[..3].copy_from_slice(&[1, 1, 6]);
    message[4..8].copy_from_slice(&transaction.to_be_bytes());
    message[12..16].copy_from_slice(&own.octets());
    message[28..34].copy_from_slice(&mac.0);
    message[236..].copy_from_slice(&[0x63, 0x82, 0x53, 0x63]);
    message.extend(options.concat());
    message.push(255);
    message
}

/// A DHCP answer: to whom, in which transaction, of which type, with which address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) mac: Mac,
    pub(crate) transaction: u32,
    pub(crate) kind: u8,
    pub(crate) address: Ipv4Addr,
}

impl Answer {
    /// The answer in this frame. Our server's type is always its first option.
    pub(crate) fn read(frame: &[u8]) -> Option<Self> {
        let message = payload(frame, 68)?;
        let kind = *message.get(242)?;
        let address: [u8; 4] = message[16..20].try_into().ok()?;
        let transaction: [u8; 4] = message[4..8].try_into().ok()?;
        let mac = Mac(message[28..34].try_into().ok()?);
        Some(Self { mac, transaction: u32::from_be_bytes(transaction), kind, address: address.into() })
    }
}
