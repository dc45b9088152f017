//! A DHCP client (RFC 2131 §4.4) as boot ROMs, iPXE and installed systems are, with the options
//! each of them sends (RFC 2132, RFC 4578, RFC 4361).

use std::{net::Ipv4Addr, time::Duration};

use rackhand_common::machine::{Firmware, Mac};
use tokio::time::timeout;
use uuid::Uuid;

use crate::segment::Card;

/// Which program asks.
#[derive(Clone, Copy, Debug)]
pub enum Program<'a> {
    /// The firmware's PXE client.
    Rom(Firmware, Uuid),
    /// The firmware's HTTP boot.
    Http(Uuid),
    /// iPXE.
    Ipxe(Firmware, Uuid),
    /// An installed system with this name.
    System(&'a str),
    /// A BMC that says that it is this, and has this name.
    Bmc(&'a str, &'a str),
}

/// What a client was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its address.
    pub address: Ipv4Addr,
    /// The server that gave it.
    pub server: Ipv4Addr,
    /// Where the boot file is (`siaddr`).
    pub next_server: Ipv4Addr,
    /// The boot file, as option 67 or the header says.
    pub file: String,
}

/// Asks once, and waits this long; nothing when nobody answers.
pub async fn ask_once(card: &mut dyn Card, mac: Mac, program: Program<'_>, patience: Duration) -> Option<Lease> {
    timeout(patience, handshake(card, mac, program)).await.ok().flatten()
}

/// Asks until there is a lease.
pub async fn obtain(card: &mut dyn Card, mac: Mac, program: Program<'_>) -> Lease {
    // Firmware begins with 4 s and doubles up to 32.
    let mut patience = Duration::from_millis(400);
    loop {
        if let Ok(Some(lease)) = timeout(patience, handshake(card, mac, program)).await {
            card.take(lease.address);
            return lease;
        }
        patience = (patience * 2).min(Duration::from_secs(3));
    }
}

/// DISCOVER, OFFER, REQUEST, ACK; nothing when the server says no.
async fn handshake(card: &mut dyn Card, mac: Mac, program: Program<'_>) -> Option<Lease> {
    let xid = Uuid::new_v4().as_fields().0;
    card.send(message(xid, mac, program, DISCOVER, &[]));
    let offer = answer(card, xid, mac, program, &[OFFER]).await;
    let address = offer.yours();
    let server = offer.address(54).expect("only answers with a server's address are taken");
    let chosen = [&[50, 4][..], &address.octets(), &[54, 4], &server.octets()].concat();
    card.send(message(xid, mac, program, REQUEST, &chosen));
    let end = answer(card, xid, mac, program, &[ACK, NAK]).await;
    if end.kind() != Some(ACK) || end.yours() != address {
        return None;
    }
    let file = end.option(67).map_or_else(|| end.file(), <[u8]>::to_vec);
    let file = String::from_utf8_lossy(&file).trim_end_matches('\0').to_owned();
    Some(Lease { address, server, next_server: end.next_server(), file })
}

/// The next answer that this program would take.
async fn answer(card: &mut dyn Card, xid: u32, mac: Mac, program: Program<'_>, kinds: &[u8]) -> Answer {
    loop {
        let Some(answer) = Answer::read(card.receive(None).await) else { continue };
        let ours = answer.xid() == xid && answer.0[28..34] == mac.0 && answer.address(54).is_some();
        let wanted = answer.kind().is_some_and(|kind| kinds.contains(&kind));
        if ours && wanted && (answer.kind() == Some(NAK) || bootable(&answer, program)) {
            return answer;
        }
    }
}

/// What a boot program insists on: without it, it goes on waiting for a better offer.
fn bootable(answer: &Answer, program: Program<'_>) -> bool {
    match program {
        // PXE 2.1 §2.2.3: an offer with a class of PXEClient; and, lest it look for a boot
        // server, with discovery control 8 and the file in the same offer.
        Program::Rom(..) => {
            let control =
                answer.option(43).is_some_and(|vendor| vendor.len() >= 3 && vendor[0] == 6 && vendor[2] & 8 != 0);
            answer.option(60) == Some(b"PXEClient") && control && answer.option(67).is_some()
        }
        // UEFI 2.10 §24.7.2: an offer to boot from has its class.
        Program::Http(_) => answer.option(60) == Some(b"HTTPClient") && answer.option(67).is_some(),
        Program::Ipxe(..) => answer.option(67).is_some(),
        Program::System(_) | Program::Bmc(..) => answer.option(51).is_some() && answer.option(1).is_some(),
    }
}

fn message(xid: u32, mac: Mac, program: Program<'_>, kind: u8, chosen: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 240];
    bytes[..3].copy_from_slice(&[1, 1, 6]);
    bytes[4..8].copy_from_slice(&xid.to_be_bytes());
    bytes[28..34].copy_from_slice(&mac.0);
    bytes[236..].copy_from_slice(&[0x63, 0x82, 0x53, 0x63]);
    bytes.extend([53, 1, kind]);
    bytes.extend(chosen);
    let mut option = |code: u8, value: &[u8]| {
        bytes.extend([code, u8::try_from(value.len()).expect("no option here is long")]);
        bytes.extend(value);
    };
    match program {
        Program::Rom(firmware, uuid) | Program::Ipxe(firmware, uuid) => {
            let arch: u16 = if firmware == Firmware::Bios { 0 } else { 7 };
            option(
                55,
                &[1, 2, 3, 4, 5, 6, 12, 13, 15, 17, 18, 22, 23, 28, 40, 41, 42, 43, 50, 51, 54, 58, 59, 60, 66, 67, 97],
            );
            option(57, &1472u16.to_be_bytes());
            option(97, &[&[0][..], uuid.as_bytes()].concat());
            option(93, &arch.to_be_bytes());
            option(94, &[1, 3, 16]);
            option(60, format!("PXEClient:Arch:{arch:05}:UNDI:003016").as_bytes());
            if let Program::Ipxe(..) = program {
                option(77, b"iPXE");
                option(61, &[&[1][..], &mac.0].concat());
                // Its encapsulated options: version 1.21.1, HTTP, and a few more it can do.
                option(175, &[177, 5, 1, 0x80, 0x86, 0x10, 0x0e, 235, 3, 1, 21, 1, 19, 1, 1]);
            }
        }
        Program::Http(uuid) => {
            // As OVMF.
            option(55, &[1, 3, 6, 12, 15, 43, 54, 60, 67, 97]);
            option(57, &1472u16.to_be_bytes());
            option(97, &[&[0][..], uuid.as_bytes()].concat());
            option(93, &16_u16.to_be_bytes());
            option(94, &[1, 3, 0]);
            option(60, b"HTTPClient:Arch:00016:UNDI:003000");
        }
        Program::System(name) => {
            // As systemd-networkd: an IAID and a DUID for a client identifier.
            let duid = [&[255][..], &mac.0[2..], &[0, 2, 0, 0, 0xab, 0x11], &mac.0, &[1, 2]].concat();
            option(61, &duid);
            option(55, &[1, 3, 6, 12, 15, 26, 33, 42, 119, 121]);
            option(57, &1472u16.to_be_bytes());
            option(12, name.as_bytes());
        }
        Program::Bmc(class, name) => {
            // As busybox's udhcpc.
            option(61, &[&[1][..], &mac.0].concat());
            option(57, &576u16.to_be_bytes());
            option(55, &[1, 3, 6, 12, 15, 28, 42]);
            option(60, class.as_bytes());
            option(12, name.as_bytes());
        }
    }
    bytes.push(255);
    bytes
}

/// An answer whose header is whole.
struct Answer(Vec<u8>);

impl Answer {
    fn read(bytes: Vec<u8>) -> Option<Self> {
        let whole = bytes.len() >= 300 && bytes[0] == 2 && bytes[236..240] == [0x63, 0x82, 0x53, 0x63];
        whole.then_some(Self(bytes))
    }

    fn xid(&self) -> u32 {
        u32::from_be_bytes([self.0[4], self.0[5], self.0[6], self.0[7]])
    }

    fn yours(&self) -> Ipv4Addr {
        Ipv4Addr::new(self.0[16], self.0[17], self.0[18], self.0[19])
    }

    fn next_server(&self) -> Ipv4Addr {
        Ipv4Addr::new(self.0[20], self.0[21], self.0[22], self.0[23])
    }

    fn file(&self) -> Vec<u8> {
        self.0[108..236].to_vec()
    }

    fn kind(&self) -> Option<u8> {
        self.option(53).and_then(|value| value.first().copied())
    }

    fn address(&self, code: u8) -> Option<Ipv4Addr> {
        <[u8; 4]>::try_from(self.option(code)?).ok().map(Ipv4Addr::from)
    }

    fn option(&self, wanted: u8) -> Option<&[u8]> {
        let mut rest = &self.0[240..];
        loop {
            match rest {
                [0, tail @ ..] => rest = tail,
                [255, ..] | [] | [_] => return None,
                [code, len, tail @ ..] => {
                    let (value, tail) = tail.split_at_checked(usize::from(*len))?;
                    if *code == wanted {
                        return Some(value);
                    }
                    rest = tail;
                }
            }
        }
    }
}

const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const ACK: u8 = 5;
const NAK: u8 = 6;
