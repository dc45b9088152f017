//! The management network's DHCP: who asks there, and what became of it.

use std::{fmt, net::Ipv4Addr};

use serde::{Deserialize, Serialize};

use crate::machine::Mac;

/// A network card as it asks for an address. Whatever it says of itself, it says to everybody: anybody
/// can say the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Card {
    /// Its Ethernet address.
    pub mac: Mac,
    /// Its host name (option 12), as [`text`](super::text).
    pub hostname: Option<String>,
    /// What it says it is (option 60), likewise.
    pub vendor_class: Option<String>,
    /// What it calls itself to the server (option 61), in hexadecimal; cut like text.
    pub client_id: Option<String>,
}

/// A BMC's card that has an address of this node's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BmcLease {
    /// The card.
    pub card: Card,
    /// Its address.
    pub address: Ipv4Addr,
    /// By what it looks like a BMC's, in words; `None` on a network where everybody gets an address.
    pub known_by: Option<String>,
}

impl BmcLease {
    /// The same with what its card told before and leaves out now, as renewals do.
    pub fn after(self, before: &Self) -> Self {
        let Self { card, address, known_by } = self;
        let told = &before.card;
        let card = Card {
            mac: card.mac,
            hostname: card.hostname.or_else(|| told.hostname.clone()),
            vendor_class: card.vendor_class.or_else(|| told.vendor_class.clone()),
            client_id: card.client_id.or_else(|| told.client_id.clone()),
        };
        Self { card, address, known_by: known_by.or_else(|| before.known_by.clone()) }
    }
}

/// What happens on the management network. Grows at the end only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Management {
    /// A BMC was given an address: when that is new or it says something else of itself, and again from
    /// time to time.
    Leased(BmcLease),
    /// Something asked for an address that does not look like a BMC, and got none.
    Stranger(Card),
    /// BMCs asked for an address and the range is full.
    Full {
        /// How many requests were not answered since this was last told.
        unanswered: u64,
    },
    /// The BMC of the machine was followed to another address: its own card was given that, and it is
    /// the same BMC.
    Moved {
        /// Where it was.
        from: Ipv4Addr,
        /// Where it is.
        to: Ipv4Addr,
        /// Its card.
        mac: Mac,
    },
}

impl fmt::Display for Card {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.mac)?;
        match (&self.hostname, &self.vendor_class) {
            (Some(name), Some(class)) => write!(f, " ({name}, {class})"),
            (Some(word), None) | (None, Some(word)) => write!(f, " ({word})"),
            (None, None) => Ok(()),
        }
    }
}

impl fmt::Display for Management {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Leased(BmcLease { card, address, known_by }) => {
                write!(f, "a BMC's card was given {address}: {card}")?;
                known_by.iter().try_for_each(|known| write!(f, ", known by {known}"))
            }
            Self::Stranger(card) => {
                write!(f, "{card} does not look like a BMC and was given no address on the management network")
            }
            Self::Full { unanswered } => {
                write!(f, "no address for BMCs is free: {unanswered} requests were not answered")
            }
            Self::Moved { from, to, mac } => write!(f, "its BMC is followed from {from} to {to}, by its card {mac}"),
        }
    }
}
