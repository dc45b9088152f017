//! Attacks on addresses: DHCP, DHCPv6 and router advertisements.

use std::{
    collections::HashSet,
    net::{Ipv4Addr, Ipv6Addr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use rackhand_common::machine::Mac;

use super::{
    client::{ask_from, boots, from_client, obtain},
    intruder::{any_mac, under},
    range::{FEEBLE, FLOOD, KNOWN, LEASE, Machine, NODE, PATIENCE, Range, known, planned},
    wire::{self, Answer, Card, Ends, ICMPV6, dhcp, ipv6, udp},
};
use crate::{network::Place, run::run, services::Service};

pub(super) fn forged_release_and_decline(range: &mut Range) -> anyhow::Result<String> {
    let node = range.cabling.namespace(Place::Node);
    let end = Instant::now() + PATIENCE;
    let stranger = any_mac(0xf0f0);
    Machine::Neighbour.acts(|| {
        let card = Card::open("net0")?;
        let given = obtain(&card, stranger, end)?.context("a stranger is given no address")?;
        let victims = [(known(1), planned(1)), (known(2), planned(2)), (stranger, given)];
        Machine::Intruder.acts(|| {
            let card = Card::open("net0")?;
            for (mac, address) in victims {
                let wanted = [&[50, 4][..], &address.octets(), &[54, 4], &NODE.octets()].concat();
                // In the victim's name and in its own, from its own address and from the victim's.
                for chaddr in [mac, card.mac] {
                    for from in [Ipv4Addr::UNSPECIFIED, address, Machine::Intruder.address()] {
                        let ends = Ends { from: (from, 68), source: card.mac, ..from_client(chaddr) };
                        card.send(&udp(ends, &dhcp(chaddr, 1, address, &[&[53, 1, 7], &wanted])));
                        // A card's own word that its address is in use cannot be told from a forged
                        // one; where the plan says which address it has, it changes nothing.
                        if chaddr != stranger {
                            card.send(&udp(ends, &dhcp(chaddr, 1, Ipv4Addr::UNSPECIFIED, &[&[53, 1, 4], &wanted])));
                        }
                    }
                }
            }
            Ok(())
        })?;
        for (mac, address) in victims {
            let now = obtain(&card, mac, end)?;
            ensure!(now == Some(address), "{mac} had {address} and now has {now:?}");
        }
        // Nobody knows the stranger, and it works at its address when it is declined in its name.
        run("ip", &["-n", Machine::Neighbour.namespace(), "addr", "replace", &format!("{given}/24"), "dev", "net0"])?;
        ensure!(ask_from(given, "GET", "/boot.ipxe")?.0 == 200, "the stranger has no script");
        Machine::Intruder.acts(|| decline(&Card::open("net0")?, stranger, given))?;
        for number in 0..3 {
            let newcomer = obtain(&card, any_mac(0xf100 + number), end)?;
            ensure!(newcomer.is_some_and(|address| address != given), "a newcomer was given {newcomer:?}");
        }
        ensure!(ask_from(given, "GET", "/boot.ipxe")?.0 == 200, "the stranger lost its script");
        run("ip", &["-n", Machine::Neighbour.namespace(), "addr", "del", &format!("{given}/24"), "dev", "net0"])?;
        // Whoever has this address next has another card.
        run("ip", &["-n", &node, "neigh", "flush", "dev", "prov0"])?;
        let again = obtain(&card, stranger, end)?;
        ensure!(again.is_some(), "the stranger is given no other address");
        Ok(String::new())
    })
}

/// Says that this card found its address in use.
fn decline(card: &Card, mac: Mac, address: Ipv4Addr) -> anyhow::Result<()> {
    let declined = [&[53, 1, 4, 50, 4][..], &address.octets(), &[54, 4], &NODE.octets()].concat();
    card.send(&udp(from_client(mac), &dhcp(mac, 1, Ipv4Addr::UNSPECIFIED, &[&declined])));
    // Before the next message, as far as a bridge keeps their order.
    thread::sleep(Duration::from_millis(20));
    Ok(())
}

/// A range of a hundred addresses, and forty cards that decline theirs.
pub(super) fn many_declines(_: &mut Range) -> anyhow::Result<String> {
    Machine::Intruder.acts(|| {
        let (card, mut given) = (Card::open("net0")?, Vec::new());
        for number in 0..40 {
            let mac = any_mac(0xdec0 + number);
            let address = obtain(&card, mac, Instant::now() + LEASE + PATIENCE)?.context("no address at first")?;
            given.push((mac, address, Instant::now()));
        }
        for (mac, address, _) in &given {
            decline(&card, *mac, *address)?;
        }
        let mut changed = 0;
        for (mac, address, at) in &given {
            let now = obtain(&card, *mac, Instant::now() + LEASE + PATIENCE)?.context("no address afterwards")?;
            // The range is full: a lease whose time is over may have gone to another.
            changed += u64::from(now != *address && at.elapsed() < LEASE);
        }
        ensure!((1..=25).contains(&changed), "{changed} addresses were taken out of use");
        Ok(format!("{changed} of {} declined addresses rest", given.len()))
    })
}

pub(super) fn broken_messages(range: &mut Range) -> anyhow::Result<String> {
    let (mac, zero) = (any_mac(0xbad), Ipv4Addr::UNSPECIFIED);
    let mut sick: Vec<Vec<u8>> = vec![vec![], vec![1], vec![0; 239], vec![0xff; 240], vec![0x35; 1400]];
    let discover: &[u8] = &[53, 1, 1];
    let name = |code: u8, bytes: &[u8]| [&[code, bytes.len() as u8], bytes].concat();
    let control: Vec<u8> = (0..=253).collect();
    for options in [
        vec![],
        vec![discover.to_vec(), vec![61, 255, 1, 2]],
        vec![discover.to_vec(), vec![61, 0], vec![12, 0], vec![97, 0], vec![93, 0], vec![94, 1, 1], vec![60, 0]],
        vec![discover.to_vec(), name(61, &control), name(12, &control), name(60, &control), name(77, &control)],
        vec![discover.to_vec(), name(12, &[b'a'; 254]), name(61, &[0; 254]), name(97, &[1; 254])],
        // Overloaded into file and sname, which point back at each other.
        vec![discover.to_vec(), vec![52, 1, 3]],
        vec![discover.to_vec(), vec![52, 0]],
        vec![discover.to_vec(), vec![52, 255]],
        // In pieces (RFC 3396), also the message type.
        vec![vec![53, 0], discover.to_vec(), vec![53, 0]],
        vec![discover.to_vec(), discover.to_vec()],
        vec![discover.to_vec(), name(61, &[1; 255]), name(61, &[2; 255]), name(61, &[3; 255])],
        // A maximum size of nothing, of everything, of one byte.
        vec![discover.to_vec(), vec![57, 2, 0, 0]],
        vec![discover.to_vec(), vec![57, 2, 255, 255]],
        vec![discover.to_vec(), vec![57, 1, 9]],
        vec![discover.to_vec(), vec![94, 2, 1, 3], vec![93, 3, 0, 7, 0], name(82, &[1; 250])],
        vec![vec![53, 1, 3]],
        vec![vec![53, 1, 3], vec![50, 3, 10, 77, 0], vec![54, 5, 10, 77, 0, 1, 0]],
        vec![vec![53, 1, 3], vec![50, 4, 0, 0, 0, 0], vec![54, 4, 255, 255, 255, 255]],
        vec![vec![53, 1, 4]],
        vec![vec![53, 1, 7]],
        vec![vec![53, 1, 8]],
        vec![vec![53, 1, 0]],
        vec![vec![53, 1, 255]],
    ] {
        let options: Vec<&[u8]> = options.iter().map(Vec::as_slice).collect();
        sick.push(dhcp(mac, 7, zero, &options));
        let mut unended = dhcp(mac, 7, Ipv4Addr::new(8, 8, 8, 8), &options);
        unended.pop();
        sick.push(unended);
    }
    for (at, value) in [(0, 2), (1, 6), (2, 0), (2, 255), (3, 255), (10, 255), (24, 127), (28, 255), (236, 0)] {
        let mut header = dhcp(mac, 7, zero, &[discover]);
        header[at] = value;
        sick.push(header);
    }
    for length in 0..300 {
        let mut cut = dhcp(mac, 7, zero, &[discover, &[60, 9], b"PXEClient", &[93, 2, 0, 7]]);
        cut.truncate(length);
        sick.push(cut);
    }
    let renewal = dhcp(mac, 7, Ipv4Addr::new(172, 16, 0, 9), &[&[53, 1, 3]]);
    Machine::Intruder.acts(|| {
        let card = Card::open("net0")?;
        for message in &sick {
            card.send(&udp(from_client(card.mac), message));
        }
        // The renewal of a lease that never was, by unicast from an address of no network here.
        let socket = UdpSocket::bind((Machine::Intruder.address(), 0))?;
        socket.send_to(&renewal, (NODE, 67))?;
        Ok(())
    })?;
    boots().context("before the restart")?;
    range.restart()?;
    Ok(format!("{} messages", sick.len() + 1))
}

pub(super) fn router_solicitations(_: &mut Range) -> anyhow::Result<String> {
    let routers = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let counting = scope.spawn(|| {
            Machine::Neighbour.acts(|| {
                let (card, mut seen) = (Card::open("net0")?, 0);
                while !over.load(Ordering::Relaxed) {
                    let advertised =
                        |frame: &Vec<u8>| frame.len() > 54 && frame[12..14] == [0x86, 0xdd] && frame[54] == 134;
                    seen += u64::from(card.receive()?.is_some_and(|frame| advertised(&frame)));
                }
                Ok(seen)
            })
        });
        let sent = Machine::Intruder.acts(|| {
            let card = Card::open("net0")?;
            Ok(wire::flood(&card, FLOOD, |n| ipv6(card.mac, n as u16, routers, ICMPV6, &[133, 0, 0, 0, 0, 0, 0, 0])))
        });
        over.store(true, Ordering::Relaxed);
        let seen = counting.join().unwrap_or_else(|_| bail!("panicked"))?;
        let rate = sent?;
        ensure!(rate >= FEEBLE, "only {rate} a second were sent");
        let most = FLOOD.as_secs() * 20 + 20;
        ensure!(seen > 0, "no advertisement at all");
        ensure!(seen <= most, "{rate} solicitations a second brought everyone {seen} advertisements in {FLOOD:?}");
        Ok(format!("{rate} solicitations a second, {seen} advertisements"))
    })
}

pub(super) fn flood(range: &mut Range) -> anyhow::Result<String> {
    under(range, |_, number| {
        // Old and new clients, of every kind of message.
        let mac = any_mac(number % 3000);
        let kind = [1, 3, 1, 8][(number % 4) as usize];
        // Answers to addresses that nobody has, so that they wait for ARP in boot's own queue.
        let nobody = Ipv4Addr::new(10, 77, 0, 40 + (number / 4 % 50) as u8);
        let own = if kind == 8 { nobody } else { Ipv4Addr::UNSPECIFIED };
        let options: [&[u8]; 3] = [&[53, 1, kind], &[54, 4, 10, 77, 0, 1], &[50, 4, 10, 77, 0, (number % 256) as u8]];
        let options = if kind == 1 { &options[..1] } else { &options[..] };
        udp(from_client(mac), &dhcp(mac, number as u32, own, options))
    })
}

pub(super) fn dhcpv6_flood(range: &mut Range) -> anyhow::Result<String> {
    let agents = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
    under(range, move |mac, number| {
        let client: &[u8] = &[0, 1, 0, 10, 0, 3, 0, 1, 2, 0, 0, 0, 0, 9];
        let message = [&[[1, 11][(number % 2) as usize], 0, 0, number as u8][..], client].concat();
        let length = (message.len() + 8) as u16;
        let header: Vec<u8> = [546, 547, length, 0].iter().flat_map(|word: &u16| word.to_be_bytes()).collect();
        ipv6(mac, number as u16, agents, 17, &[&header[..], &message].concat())
    })
}

pub(super) fn starvation(range: &mut Range) -> anyhow::Result<String> {
    let before = range.usage(Service::Boot)?;
    let given = Machine::Intruder.acts(|| {
        let card = Card::open("net0")?;
        let mut given = HashSet::new();
        for number in 0..6_000u64 {
            let mac = any_mac(0x100_0000 + number);
            let discover = dhcp(mac, number as u32, Ipv4Addr::UNSPECIFIED, &[&[53, 1, 1]]);
            card.send(&udp(from_client(mac), &discover));
            while let Some(frame) = card.receive_now()? {
                let Some(offer) = Answer::read(&frame).filter(|answer| answer.kind == 2) else { continue };
                let wanted = [&[53, 1, 3, 54, 4][..], &NODE.octets(), &[50, 4], &offer.address.octets()].concat();
                let request = dhcp(offer.mac, offer.transaction, Ipv4Addr::UNSPECIFIED, &[&wanted]);
                card.send(&udp(from_client(offer.mac), &request));
                given.insert(offer.address);
            }
        }
        Ok(given.len())
    })?;
    ensure!(given > 50, "the range was not taken: {given} addresses");
    Machine::Neighbour.acts(|| {
        let card = Card::open("net0")?;
        for number in 1..=KNOWN {
            let start = Instant::now();
            let address = obtain(&card, known(number), start + PATIENCE)?;
            ensure!(address == Some(planned(number)), "machine {number} was given {address:?}");
        }
        let newcomer = obtain(&card, any_mac(0x200_0000), Instant::now() + Duration::from_secs(2))?;
        ensure!(newcomer.is_none(), "an address was free after all: {newcomer:?}");
        Ok(())
    })?;
    let full = Instant::now();
    Machine::Neighbour.acts(|| {
        let newcomer = obtain(&Card::open("net0")?, any_mac(0x200_0001), full + LEASE + PATIENCE)?;
        ensure!(newcomer.is_some(), "the range is full although nobody uses it");
        Ok(())
    })?;
    let waited = full.elapsed().as_secs_f64();
    ensure!(range.log()?.contains("no delegated address is free"), "nobody is told that the range is full");
    let grown = range.usage(Service::Boot)?.memory.saturating_sub(before.memory);
    ensure!(grown < 16 << 20, "boot has grown by {} MiB", grown >> 20);
    Ok(format!(
        "{given} addresses taken, {KNOWN} known machines answered, a new one after {waited:.1} s, {} KiB grown",
        grown >> 10
    ))
}
