//! Who is answered on the management network, and what is told of that.
//!
//! Invariants:
//! - A program that wants to boot is no BMC, whatever else it says. Nobody is told there what to load.
//! - What says nothing by which a BMC is known gets no address, unless everybody does there. Saying so is
//!   no proof: a lease gives nothing but an address, and has it looked at.
//! - A stranger is told once in a day, and no more than [`MAX_STRANGERS`] are: whoever asks in many names
//!   fills no spool.

use std::{collections::HashMap, time::Duration};

use rackhand_common::{
    bmc::{
        MAX_TEXT,
        lease::{BmcLease, Card},
        text,
        vendor::known_by,
    },
    machine::Mac,
    time::Mono,
};

use super::{
    message::{Client, Request},
    server::Holder,
};

/// The most strangers that are told of in [`FORGOTTEN`].
pub const MAX_STRANGERS: usize = 64;

/// After this time a stranger is told of anew.
const FORGOTTEN: Duration = Duration::from_secs(24 * 3600);

/// How often a lease is told again: one that was lost leaves nothing wrong for ever.
const RESTATE: Duration = Duration::from_secs(3600);

/// The most leases of which it is known that they were told: those of the largest range.
const MAX_TOLD: usize = 4096;

/// The gate of one management network.
#[derive(Debug, Default)]
pub struct Gate {
    /// Whether everybody gets an address.
    serves_all: bool,
    told: HashMap<Mac, (BmcLease, Mono)>,
    strangers: HashMap<Mac, Mono>,
}

/// Whoever is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guest {
    card: Card,
    known_by: Option<String>,
}

impl Gate {
    /// A gate that nobody passed yet.
    pub fn new(serves_all: bool) -> Self {
        Self { serves_all, ..Self::default() }
    }

    /// Lets a request in, or not: then it is to be told, when this is a stranger that was not. `has_address`
    /// when its card was let in before.
    pub fn admit(&mut self, now: Mono, request: &Request, has_address: bool) -> Result<Guest, Option<Card>> {
        let card = card(request);
        let known_by = (request.client == Client::System).then(|| known_by(&card)).flatten();
        if known_by.is_some() || has_address || self.serves_all {
            return Ok(Guest { card, known_by });
        }
        self.strangers.retain(|_, told| told.until(now) < FORGOTTEN);
        if self.strangers.contains_key(&card.mac) || self.strangers.len() >= MAX_STRANGERS {
            return Err(None);
        }
        self.strangers.insert(card.mac, now);
        Err(Some(card))
    }

    /// Its lease, when that is to be told.
    pub fn bound(&mut self, now: Mono, guest: Guest, holder: Holder) -> Option<BmcLease> {
        let Guest { card, known_by: by } = guest;
        let before = self.told.get(&card.mac);
        let lease = BmcLease { card, address: holder.address, known_by: by };
        let mut lease = before.map_or(lease.clone(), |(before, _)| lease.after(before));
        lease.known_by = lease.known_by.and_then(|_| known_by(&lease.card));
        if before.is_some_and(|(before, at)| *before == lease && at.until(now) < RESTATE) {
            return None;
        }
        if self.told.len() >= MAX_TOLD && before.is_none() {
            self.told.clear();
        }
        self.told.insert(lease.card.mac, (lease.clone(), now));
        Some(lease)
    }
}

/// What a request says of its card, made fit to keep and to print.
fn card(request: &Request) -> Card {
    let words = |bytes: Option<&[u8]>| text(&String::from_utf8_lossy(bytes?));
    let digits = |id: &[u8]| id.iter().take(MAX_TEXT / 2).map(|byte| format!("{byte:02x}")).collect();
    Card {
        mac: request.mac,
        hostname: words(request.hostname.as_deref()),
        vendor_class: words(request.vendor_class.as_deref()),
        client_id: request.client_id().map(digits),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddrV4};

    use jiff::Timestamp;
    use proptest::prelude::*;
    use rackhand_common::{id::MachineId, intent::Network, time::Now};

    use super::{
        super::{LEASE_LASTS, Reply, Server, Settings},
        *,
    };

    fn request(card: u8, kind: &[u8], options: &[(u8, &[u8])]) -> Request {
        let mut bytes = vec![0; 240];
        bytes[..3].copy_from_slice(&[1, 1, 6]);
        bytes[28..34].copy_from_slice(&[2, 0, 0, 0, 0, card]);
        bytes[236..].copy_from_slice(&[0x63, 0x82, 0x53, 0x63]);
        bytes.extend_from_slice(kind);
        for (code, value) in options {
            bytes.extend_from_slice(&[*code, u8::try_from(value.len()).unwrap()]);
            bytes.extend_from_slice(value);
        }
        Request::parse(&bytes).unwrap()
    }

    const DISCOVER: &[u8] = &[53, 1, 1];
    const IDRAC: (u8, &[u8]) = (60, b"iDRAC");
    const ROM: (u8, &[u8]) = (60, b"PXEClient:Arch:00007:UNDI:003000");

    fn at(seconds: u64) -> Mono {
        Mono(Duration::from_secs(seconds))
    }

    fn holder(last: u8) -> Holder {
        Holder {
            machine: MachineId(uuid::Uuid::nil()),
            mac: Mac([2, 0, 0, 0, 0, 1]),
            address: Ipv4Addr::new(10, 0, 0, last),
        }
    }

    #[test]
    fn a_stranger_is_told_once_in_a_day_and_no_more_than_some() {
        let mut gate = Gate::new(false);
        let stranger = |card| request(card, DISCOVER, &[(60, b"MSFT 5.0"), (12, b"laptop")]);
        let told = gate.admit(at(0), &stranger(1), false).unwrap_err().unwrap();
        assert_eq!(told.to_string(), "02:00:00:00:00:01 (laptop, MSFT 5.0)");
        assert_eq!(gate.admit(at(9), &stranger(1), false), Err(None));
        let all = (0..=255).filter(|card| gate.admit(at(9), &stranger(*card), false) != Err(None)).count();
        assert_eq!(all, MAX_STRANGERS - 1);
        assert!(gate.admit(at(10 + 24 * 3600), &stranger(1), false).unwrap_err().is_some());
        // Who had an address keeps it, and on a network of its own everybody has one.
        assert!(gate.admit(at(9), &stranger(1), true).is_ok());
        assert!(Gate::new(true).admit(at(0), &stranger(1), false).is_ok());
    }

    #[test]
    fn who_wants_to_boot_is_no_bmc_and_is_not_told_what_to_load() {
        let dell = request(1, DISCOVER, &[ROM, (12, b"idrac-1")]);
        assert!(Gate::new(false).admit(at(0), &dell, false).is_err());
        let node = Ipv4Addr::new(10, 0, 0, 1);
        let network = Network {
            node: "10.0.0.1/24".parse().unwrap(),
            gateway: None,
            dns: vec![],
            delegated: (Ipv4Addr::new(10, 0, 0, 9), Ipv4Addr::new(10, 0, 0, 9)),
        };
        let lengths = [None, Some(SocketAddrV4::new(node, 8080))].map(|http| {
            let now = Now { mono: at(0), wall: Timestamp::UNIX_EPOCH };
            let mut server = Server::new(now, Settings { node, http, lease: LEASE_LASTS }, []);
            server.serve(&network, &[]);
            let Reply { message, stage, .. } = server.reply(now, &dell, MachineId(uuid::Uuid::nil())).unwrap();
            assert_eq!(stage, None);
            // Next server, server name and file, and the options behind them.
            let tells = message[20..24] != [0; 4] || message[44..236].iter().any(|byte| *byte != 0);
            assert_eq!(tells, http.is_some());
            message.iter().rposition(|byte| *byte == 255).unwrap()
        });
        assert!(lengths[0] < lengths[1], "{lengths:?}");
    }

    #[test]
    fn a_lease_is_told_when_it_is_new_or_says_something_else_and_again_after_an_hour() {
        let mut gate = Gate::new(false);
        let mut bound = |seconds, options: &[(u8, &[u8])], last| {
            let guest = gate.admit(at(seconds), &request(1, DISCOVER, options), true).unwrap();
            gate.bound(at(seconds), guest, holder(last))
        };
        let first = bound(0, &[IDRAC, (12, b"idrac-1"), (61, &[1, 2])], 9).unwrap();
        assert_eq!(first.known_by.as_deref(), Some("vendor class and host name of Dell"));
        assert_eq!(first.card.client_id.as_deref(), Some("0102"));
        // A renewal says less.
        assert_eq!(bound(1800, &[], 9), None);
        assert_eq!(bound(3600, &[], 9), Some(first.clone()));
        assert_eq!(bound(3601, &[IDRAC], 10), Some(BmcLease { address: Ipv4Addr::new(10, 0, 0, 10), ..first }));
        assert!(bound(3602, &[IDRAC, (12, b"other")], 10).is_some());
    }

    proptest! {
        #[test]
        fn what_a_card_says_is_bounded_and_fit_to_print(
            class in proptest::collection::vec(any::<u8>(), 0..255),
            name in proptest::collection::vec(any::<u8>(), 0..255),
            id in proptest::collection::vec(any::<u8>(), 0..255),
        ) {
            let request = request(1, DISCOVER, &[(60, &class), (12, &name), (61, &id), (60, &class)]);
            let mut gate = Gate::new(true);
            let guest = gate.admit(at(0), &request, false).unwrap();
            let lease = gate.bound(at(0), guest, holder(9)).unwrap();
            let Card { hostname, vendor_class, client_id, .. } = lease.card;
            for text in [hostname, vendor_class, client_id].into_iter().flatten() {
                prop_assert!(text.len() <= MAX_TEXT && !text.chars().any(char::is_control), "{text:?}");
            }
        }
    }
}
