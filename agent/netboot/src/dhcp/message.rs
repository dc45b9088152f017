//! A DHCP message as bytes: parsing what clients send, writing what we answer.
//!
//! The codec is our own, because a wrapper around a published one would have to read the raw
//! options a second time: overloaded and split options (RFC 2131 §4.1, RFC 3396), the list in
//! option 93, iPXE's option 175, and lengths a client got wrong.
//!
//! Invariants:
//! - No input panics, and none makes more than its own length be remembered.
//! - What we send fits the client's maximum message size: optional options are left out
//!   rather than overloaded into the header, which firmware reads as file names.

use std::{collections::BTreeMap, net::Ipv4Addr};

use rackhand_common::machine::{Firmware, Mac};

/// A request that is complete and consistent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The client's Ethernet address (`chaddr`).
    pub mac: Mac,
    /// What it asks for.
    pub kind: Kind,
    /// Which program in the machine asks.
    pub client: Client,
    /// Its host name (option 12), as it is.
    pub hostname: Option<Vec<u8>>,
    /// What it says it is (option 60), as it is.
    pub vendor_class: Option<Vec<u8>>,
    /// What an answer repeats.
    pub(super) echo: Echo,
    /// The longest UDP payload the client takes.
    pub(super) limit: usize,
}

/// What a message asks for, by the client's state (RFC 2131 §4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Any offers?
    Discover,
    /// It takes the offer of `server`.
    Selecting {
        /// Whose offer it takes.
        server: Ipv4Addr,
        /// The address offered.
        address: Ipv4Addr,
    },
    /// It has restarted and would like the address it had.
    InitReboot {
        /// That address.
        address: Ipv4Addr,
    },
    /// It uses an address and wants to go on: renewing (unicast) or rebinding (broadcast).
    Renewing {
        /// The address in use.
        address: Ipv4Addr,
    },
    /// Someone else uses the address it was given.
    Decline {
        /// Who gave it.
        server: Ipv4Addr,
        /// The address.
        address: Ipv4Addr,
    },
    /// It no longer needs its address.
    Release {
        /// The address.
        address: Ipv4Addr,
    },
    /// It has an address from elsewhere and wants the other parameters.
    Inform {
        /// Its address.
        address: Ipv4Addr,
    },
}

/// Which program in a machine asks. They follow one another on one card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Client {
    /// A PXE ROM that is not iPXE; `None` for an architecture we have no loader for.
    Rom(Option<Firmware>),
    /// UEFI HTTP boot, which wants the address of what it is to load; `None` as with a ROM.
    Http(Option<Firmware>),
    /// iPXE, as the card's ROM or loaded by one.
    Ipxe(Option<Firmware>),
    /// An operating system, ours or one installed; or something else without a wish to boot.
    System,
}

/// What an answer copies from its request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Echo {
    pub(super) xid: u32,
    pub(super) flags: u16,
    pub(super) relay: Ipv4Addr,
    /// Option 61 (RFC 6842).
    pub(super) client_id: Option<Vec<u8>>,
    /// Option 97 (RFC 4578).
    pub(super) uuid: Option<Vec<u8>>,
    /// Option 82 (RFC 3046).
    pub(super) relay_info: Option<Vec<u8>>,
}

impl Echo {
    pub(super) fn broadcast(&self) -> bool {
        self.flags & BROADCAST != 0
    }
}

/// Bytes that are no request to a server. Nobody is told: there is no one to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Shorter than a header with its cookie.
    #[error("message cut short")]
    Short,
    /// A reply, another kind of hardware, or a hardware address no card can have.
    #[error("not a request from an Ethernet card")]
    NotARequest,
    /// No DHCP cookie, or no message type that a client sends: BOOTP among them.
    #[error("not a DHCP message for a server")]
    NotDhcp,
    /// An option its message type cannot do without is missing or has a wrong length.
    #[error("incomplete message")]
    Incomplete,
}

impl Request {
    /// Reads the payload of a datagram to port 67.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let (header, options) = bytes.split_at_checked(HEADER).ok_or(Malformed::Short)?;
        let mac = Mac(array(header, CHADDR));
        if header[OP] != 1 || header[HTYPE] != 1 || header[HLEN] != 6 || mac.0[0] & 1 != 0 || mac.0 == [0; 6] {
            return Err(Malformed::NotARequest);
        }
        if array(header, COOKIE) != MAGIC {
            return Err(Malformed::NotDhcp);
        }
        let options = Options::read(header, options);
        let own = Ipv4Addr::from(array::<4>(header, CIADDR));
        let kind = kind(&options, own)?;
        Ok(Self {
            mac,
            kind,
            client: client(&options),
            hostname: options.get(HOST_NAME).map(<[u8]>::to_vec),
            vendor_class: options.get(CLASS).map(<[u8]>::to_vec),
            echo: Echo {
                xid: u32::from_be_bytes(array(header, XID)),
                flags: u16::from_be_bytes(array(header, FLAGS)),
                relay: Ipv4Addr::from(array::<4>(header, GIADDR)),
                client_id: options.get(CLIENT_ID).filter(|id| !id.is_empty()).map(<[u8]>::to_vec),
                uuid: options.get(MACHINE_UUID).filter(|uuid| !uuid.is_empty()).map(<[u8]>::to_vec),
                relay_info: options.get(RELAY_INFO).map(<[u8]>::to_vec),
            },
            limit: limit(&options),
        })
    }

    /// What it calls itself to the server (option 61).
    pub fn client_id(&self) -> Option<&[u8]> {
        self.echo.client_id.as_deref()
    }
}

fn kind(options: &Options, own: Ipv4Addr) -> Result<Kind, Malformed> {
    let using = (!own.is_unspecified()).then_some(own);
    let server = options.address(SERVER_ID);
    let wanted = options.address(REQUESTED);
    Ok(match options.get(MESSAGE_TYPE) {
        Some([DISCOVER]) => Kind::Discover,
        Some([REQUEST]) => match (server, wanted, using) {
            (Some(server), Some(address), _) | (Some(server), None, Some(address)) => {
                Kind::Selecting { server, address }
            }
            (None, _, Some(address)) => Kind::Renewing { address },
            (None, Some(address), None) => Kind::InitReboot { address },
            (_, None, None) => return Err(Malformed::Incomplete),
        },
        Some([DECLINE]) => Kind::Decline {
            server: server.ok_or(Malformed::Incomplete)?,
            address: wanted.ok_or(Malformed::Incomplete)?,
        },
        Some([RELEASE]) => Kind::Release { address: using.ok_or(Malformed::Incomplete)? },
        Some([INFORM]) => Kind::Inform { address: using.ok_or(Malformed::Incomplete)? },
        _ => return Err(Malformed::NotDhcp),
    })
}

fn client(options: &Options) -> Client {
    let class = options.get(CLASS).unwrap_or_default();
    let arch = architecture(options, class);
    // iPXE sends its user class as bare text, and option 175, which nothing else sends.
    let user = options.get(USER_CLASS).unwrap_or_default();
    if user.windows(4).any(|part| part == b"iPXE") || options.get(IPXE).is_some() {
        Client::Ipxe(arch)
    } else if class.starts_with(b"PXEClient") {
        Client::Rom(arch)
    } else if class.starts_with(b"HTTPClient") {
        Client::Http(arch)
    } else {
        Client::System
    }
}

/// The first architecture of option 93 (RFC 4578 §2.1, a list) that we have a loader for; of
/// `PXEClient:Arch:00007:…` when a ROM leaves 93 out. 16 is x64 UEFI that boots by HTTP.
fn architecture(options: &Options, class: &[u8]) -> Option<Firmware> {
    let listed = options.get(ARCHITECTURE).unwrap_or_default().chunks_exact(2);
    let listed = listed.map(|code| u16::from_be_bytes([code[0], code[1]]));
    let named = class
        .split(|byte| *byte == b':')
        .nth(2)
        .and_then(|digits| std::str::from_utf8(digits).ok())
        .and_then(|d| d.parse().ok());
    listed.chain(named).find_map(|code| match code {
        0 => Some(Firmware::Bios),
        7 | 9 | 16 => Some(Firmware::Uefi),
        _ => None,
    })
}

/// The longest payload for this client: option 57 counts the IP and UDP headers too, and what
/// it names must still cross an Ethernet in one piece.
fn limit(options: &Options) -> usize {
    let whole = match options.get(MAX_SIZE) {
        Some(&[high, low]) => u16::from_be_bytes([high, low]).clamp(576, 1500),
        _ => 576,
    };
    usize::from(whole) - 28
}

/// Options by code, those in several pieces joined, from the options field and, where option
/// 52 says so, from `file` and `sname`. One cut short by the end of its field is dropped.
#[derive(Debug, Default)]
struct Options(BTreeMap<u8, Vec<u8>>);

impl Options {
    fn read(header: &[u8], field: &[u8]) -> Self {
        let mut options = Self::default();
        options.add(field);
        let overload = options.get(OVERLOAD).and_then(|value| value.first().copied()).unwrap_or(0);
        if overload & 1 != 0 {
            options.add(&header[FILE..COOKIE]);
        }
        if overload & 2 != 0 {
            options.add(&header[SNAME..FILE]);
        }
        options
    }

    fn add(&mut self, mut field: &[u8]) {
        while let Some((&code, rest)) = field.split_first() {
            match code {
                PAD => field = rest,
                END => return,
                _ => {
                    let Some((&len, rest)) = rest.split_first() else { return };
                    let Some((value, rest)) = rest.split_at_checked(usize::from(len)) else { return };
                    self.0.entry(code).or_default().extend_from_slice(value);
                    field = rest;
                }
            }
        }
    }

    fn get(&self, code: u8) -> Option<&[u8]> {
        self.0.get(&code).map(Vec::as_slice)
    }

    fn address(&self, code: u8) -> Option<Ipv4Addr> {
        <[u8; 4]>::try_from(self.get(code)?).ok().map(Ipv4Addr::from)
    }
}

/// An answer being written.
pub(super) struct Answer {
    bytes: Vec<u8>,
    limit: usize,
    /// Option 82 goes last (RFC 3046 §2.2), so its room is kept.
    relay_info: Option<Vec<u8>>,
}

impl Answer {
    /// Starts an answer to `request` from `server`. Options follow, the indispensable first.
    pub(super) fn new(request: &Request, message_type: u8, server: Ipv4Addr) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[OP] = 2;
        bytes[HTYPE] = 1;
        bytes[HLEN] = 6;
        put(&mut bytes, XID, &request.echo.xid.to_be_bytes());
        put(&mut bytes, FLAGS, &request.echo.flags.to_be_bytes());
        put(&mut bytes, GIADDR, &request.echo.relay.octets());
        put(&mut bytes, CHADDR, &request.mac.0);
        put(&mut bytes, COOKIE, &MAGIC);
        let relay_info = request.echo.relay_info.clone();
        let mut answer = Self { bytes, limit: request.limit, relay_info };
        answer.option(MESSAGE_TYPE, &[message_type]);
        answer.option(SERVER_ID, &server.octets());
        answer
    }

    /// Sets the broadcast flag, for a refusal that must pass a relay.
    pub(super) fn broadcast(&mut self) {
        self.bytes[FLAGS] |= 0x80;
    }

    /// The address given (`yiaddr`).
    pub(super) fn yours(&mut self, address: Ipv4Addr) {
        put(&mut self.bytes, YIADDR, &address.octets());
    }

    /// The client's own address, repeated (`ciaddr`).
    pub(super) fn own(&mut self, address: Ipv4Addr) {
        put(&mut self.bytes, CIADDR, &address.octets());
    }

    /// What to load and from whom, in every place some firmware looks for it: old ROMs read
    /// the header only, some UEFI only options 66 and 67.
    pub(super) fn boot(&mut self, server: Ipv4Addr, file: &str) {
        put(&mut self.bytes, SIADDR, &server.octets());
        let name = server.to_string();
        put(&mut self.bytes, SNAME, name.as_bytes());
        // Both header fields end with a zero byte.
        if file.len() < COOKIE - FILE {
            put(&mut self.bytes, FILE, file.as_bytes());
        }
        self.option(BOOT_FILE, file.as_bytes());
        self.option(BOOT_SERVER, name.as_bytes());
    }

    /// Adds an option if there is room for it, in pieces if it is long (RFC 3396).
    pub(super) fn option(&mut self, code: u8, value: &[u8]) {
        let pieces = value.len().div_ceil(255);
        let kept = self.relay_info.as_ref().map_or(0, |info| info.len() + 2);
        if value.is_empty() || self.bytes.len() + value.len() + 2 * pieces + kept + 1 > self.limit {
            return;
        }
        for piece in value.chunks(255) {
            let len = u8::try_from(piece.len()).expect("pieces are at most 255 bytes");
            self.bytes.extend_from_slice(&[code, len]);
            self.bytes.extend_from_slice(piece);
        }
    }

    /// The finished message; some clients drop one shorter than BOOTP's 300 bytes.
    pub(super) fn finish(mut self) -> Vec<u8> {
        if let Some(info) = self.relay_info.take() {
            self.option(RELAY_INFO, &info);
        }
        self.bytes.push(END);
        if self.bytes.len() < 300 {
            self.bytes.resize(300, PAD);
        }
        self.bytes
    }
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("the header's length was checked and the slice is N long")
}

// The header's fields (RFC 2131 §2, figure 1), with the cookie that precedes the options.
const OP: usize = 0;
const HTYPE: usize = 1;
const HLEN: usize = 2;
const XID: usize = 4;
const FLAGS: usize = 10;
const CIADDR: usize = 12;
const YIADDR: usize = 16;
const SIADDR: usize = 20;
const GIADDR: usize = 24;
const CHADDR: usize = 28;
const SNAME: usize = 44;
const FILE: usize = 108;
const COOKIE: usize = 236;
const HEADER: usize = 240;

const MAGIC: [u8; 4] = [0x63, 0x82, 0x53, 0x63];
const BROADCAST: u16 = 0x8000;

// Message types (RFC 2132 §9.6).
const DISCOVER: u8 = 1;
pub(super) const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const DECLINE: u8 = 4;
pub(super) const ACK: u8 = 5;
pub(super) const NAK: u8 = 6;
const RELEASE: u8 = 7;
const INFORM: u8 = 8;

// Options (RFC 2132, 3004, 3046, 4578; 175 is iPXE's).
const PAD: u8 = 0;
pub(super) const SUBNET_MASK: u8 = 1;
pub(super) const ROUTER: u8 = 3;
pub(super) const NAME_SERVERS: u8 = 6;
const HOST_NAME: u8 = 12;
pub(super) const VENDOR: u8 = 43;
const REQUESTED: u8 = 50;
pub(super) const LEASE_TIME: u8 = 51;
const OVERLOAD: u8 = 52;
const MESSAGE_TYPE: u8 = 53;
const SERVER_ID: u8 = 54;
const MAX_SIZE: u8 = 57;
pub(super) const RENEWAL: u8 = 58;
pub(super) const REBINDING: u8 = 59;
pub(super) const CLASS: u8 = 60;
pub(super) const CLIENT_ID: u8 = 61;
const BOOT_SERVER: u8 = 66;
const BOOT_FILE: u8 = 67;
const USER_CLASS: u8 = 77;
const RELAY_INFO: u8 = 82;
const ARCHITECTURE: u8 = 93;
pub(super) const MACHINE_UUID: u8 = 97;
pub(super) const IPXE: u8 = 175;
const END: u8 = 255;
