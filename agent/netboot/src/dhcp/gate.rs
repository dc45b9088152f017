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
        let Guest { card, known_by } = guest;
        let before = self.told.get(&card.mac);
        let mut lease = BmcLease { card, address: holder.address, known_by };
        // A renewal may leave out what the first request said.
        if let Some((before, _)) = before {
            let (card, told) = (&mut lease.card, &before.card);
            card.hostname = card.hostname.take().or_else(|| told.hostname.clone());
            card.vendor_class = card.vendor_class.take().or_else(|| told.vendor_class.clone());
            card.client_id = card.client_id.take().or_else(|| told.client_id.clone());
            lease.known_by = lease.known_by.or_else(|| before.known_by.clone());
        }
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
