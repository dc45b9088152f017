//! The hostile machine.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpStream},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use anyhow::{Context, ensure};
use rackhand_common::machine::Mac;

use super::{
    client::{connect, connect_to},
    range::{FEEBLE, FLOOD, LEAD, Machine, NODE, Range},
    wire::{Card, Ends, flood, syn},
};
use crate::{network::Place, run::run};

/// The first of the addresses that the intruder has beside its own.
pub(super) const BORROWED: u8 = 201;

pub(super) fn any_mac(number: u64) -> Mac {
    let [.., a, b, c, d] = number.to_be_bytes();
    Mac([0x02, 0x66, a, b, c, d])
}

pub(super) fn node_mac(range: &Range) -> anyhow::Result<Mac> {
    mac_of(range, Place::Node, "prov0")
}

pub(super) fn mac_of(range: &Range, place: Place, card: &str) -> anyhow::Result<Mac> {
    let shown = run("ip", &["-n", &range.cabling.namespace(place), "-brief", "link", "show", card])?;
    Ok(shown.split_whitespace().nth(2).with_context(|| format!("{card} has no address"))?.parse()?)
}

/// A frame from an address of the intruder's to a port of the node.
pub(super) fn towards(node: Mac, number: u64, port: u16) -> Ends {
    // From neighbouring addresses that are nobody's.
    let from = Ipv4Addr::new(10, 77, 0, 40 + (number % 50) as u8);
    let source = Machine::Intruder.mac();
    Ends { source, destination: node, from: (from, 1024 + (number / 50 % 60_000) as u16), to: (NODE, port) }
}

/// One of the addresses that it borrows on the network of this one.
pub(super) fn borrowed(network: Ipv4Addr, number: u32) -> Ipv4Addr {
    let [a, b, c, _] = network.octets();
    Ipv4Addr::new(a, b, c, BORROWED + (number % 50) as u8)
}

/// Opens as many connections as it can from all its addresses on that network, says `start` on
/// each and then a byte now and then, until told to end.
pub(super) fn trickle(over: &AtomicBool, to: SocketAddrV4, start: &[u8], drip: &[u8]) -> anyhow::Result<String> {
    let mut open: Vec<TcpStream> = Vec::new();
    let mut opened = 0;
    let mut number = 0u32;
    while !over.load(Ordering::Relaxed) {
        for _ in 0..100 {
            number += 1;
            if open.len() < 5_000
                && let Ok(mut stream) = connect_to(borrowed(*to.ip(), number), to)
                && stream.write_all(start).is_ok()
                && stream.set_nonblocking(true).is_ok()
            {
                opened += 1;
                open.push(stream);
            }
        }
        open.retain_mut(
            |stream| !matches!(stream.write(drip), Err(error) if error.kind() != std::io::ErrorKind::WouldBlock),
        );
    }
    Ok(format!("{opened} connections opened, {} kept", open.len()))
}

/// Boots the neighbour when `trickle` has taken every place.
pub(super) fn half_open(range: &Range, port: u16, start: &[u8], drip: &[u8]) -> anyhow::Result<String> {
    range.boots_during(FLOOD, |over| trickle(over, SocketAddrV4::new(NODE, port), start, drip))
}

/// Boots the neighbour under ten thousand frames a second.
pub(super) fn under(range: &Range, frame: impl Fn(Mac, u64) -> Vec<u8> + Sync) -> anyhow::Result<String> {
    range.boots_during(LEAD, |over| {
        let card = Card::open("net0")?;
        let mut rates = vec![];
        while !over.load(Ordering::Relaxed) || rates.is_empty() {
            rates.push(flood(&card, FLOOD / 2, |number| frame(card.mac, number)));
        }
        let least = rates.iter().min().copied().unwrap_or_default();
        ensure!(least >= FEEBLE, "only {least} frames a second were sent");
        Ok(format!("{least} frames a second"))
    })
}

/// Half-open connections by the thousand and whole ones as fast as they go.
pub(super) fn tcp_flood(range: &Range, port: u16, said: &'static [u8]) -> anyhow::Result<String> {
    let node = node_mac(range)?;
    range.boots_during(LEAD, |over| {
        let whole = AtomicU64::new(0);
        let asks = |number: u8| {
            while !over.load(Ordering::Relaxed) {
                let from = Ipv4Addr::new(10, 77, 0, BORROWED + number);
                if let Ok(mut stream) = connect(from, port) {
                    let _ = stream.write_all(said);
                    let _ = stream.read(&mut [0; 512]);
                    whole.fetch_add(1, Ordering::Relaxed);
                }
            }
        };
        let rate = thread::scope(|scope| {
            for number in 0..8 {
                scope.spawn(move || asks(number));
            }
            let card = Card::open("net0")?;
            let mut least = u64::MAX;
            while !over.load(Ordering::Relaxed) || least == u64::MAX {
                least = least.min(flood(&card, FLOOD / 2, |number| syn(towards(node, number, port), number as u32)));
            }
            anyhow::Ok(least)
        })?;
        ensure!(rate >= FEEBLE, "only {rate} frames a second were sent");
        Ok(format!("{rate} SYN a second and {} whole connections", whole.into_inner()))
    })
}
