//! How much of some space is used, and which addresses are whose by definition.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use super::{Prefix, State, prefix::size};

/// How much there is of each, in addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// All of it.
    pub total: u128,
    /// Can be claimed.
    pub free: u128,
    /// Somebody's.
    pub claimed: u128,
    /// Not handed out.
    pub reserved: u128,
    /// Resting.
    pub quarantined: u128,
    /// In blocks that are a project's alone, whatever the project has of them.
    pub blocks: u128,
    /// Addresses of the largest block that can be claimed.
    pub largest: u128,
}

impl Usage {
    /// Adds `count` prefixes of this state and depth ([`Prefix::depth`]).
    pub fn add(&mut self, state: State, depth: u8, count: u64) {
        let addresses = size(depth.min(128)).saturating_mul(count.into());
        let part = match state {
            // Its halves are counted.
            State::Split => return,
            State::Free => {
                self.largest = self.largest.max(if count > 0 { size(depth.min(128)) } else { 0 });
                &mut self.free
            }
            State::Claimed => &mut self.claimed,
            State::Reserved => &mut self.reserved,
            State::Quarantined => &mut self.quarantined,
        };
        *part = part.saturating_add(addresses);
        self.total = self.total.saturating_add(addresses);
    }

    /// Adds `count` blocks of this depth that are a project's alone.
    pub fn add_blocks(&mut self, depth: u8, count: u64) {
        let addresses = size(depth.min(128)).saturating_mul(count.into());
        self.blocks = self.blocks.saturating_add(addresses);
        self.total = self.total.saturating_add(addresses);
    }

    /// What is not free, of all of it: 0 to 1.
    pub fn used(&self) -> f64 {
        if self.total == 0 { 0.0 } else { (self.total - self.free.min(self.total)) as f64 / self.total as f64 }
    }

    /// How much of what is free lies outside of its largest block: 0 when all of it is one
    /// block, near 1 when it is in crumbs.
    pub fn fragmentation(&self) -> f64 {
        if self.free == 0 { 0.0 } else { 1.0 - self.largest as f64 / self.free as f64 }
    }
}

/// What a pool's addresses are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Reachable from everywhere, in one place.
    Public,
    /// Reachable from inside only.
    Private,
    /// Reachable from everywhere, in any place or in several at once (anycast).
    Global,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Public, Self::Private, Self::Global];

    /// Whether a pool of this kind can have this prefix: what the world does not route is not
    /// public. (Whoever uses public addresses inside may.)
    pub fn takes(self, prefix: Prefix) -> bool {
        self == Self::Private
            || !LOCAL
                .iter()
                .any(|(first, length)| Prefix::new(*first, *length).is_ok_and(|local| local.overlaps(prefix)))
    }
}

/// What nobody announces to the world (RFC 6890): private use, shared, loopback, link-local,
/// multicast and what is above; unique local, link-local and multicast of IPv6.
const LOCAL: [(IpAddr, u8); 11] = [
    (IpAddr::V4(Ipv4Addr::new(0, 0, 0, 0)), 8),
    (IpAddr::V4(Ipv4Addr::new(10, 0, 0, 0)), 8),
    (IpAddr::V4(Ipv4Addr::new(100, 64, 0, 0)), 10),
    (IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8),
    (IpAddr::V4(Ipv4Addr::new(169, 254, 0, 0)), 16),
    (IpAddr::V4(Ipv4Addr::new(172, 16, 0, 0)), 12),
    (IpAddr::V4(Ipv4Addr::new(192, 168, 0, 0)), 16),
    (IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0)), 3),
    (IpAddr::V6(Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0)), 7),
    (IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), 10),
    (IpAddr::V6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0)), 8),
];

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Public => "public",
            Self::Private => "private",
            Self::Global => "global",
        })
    }
}

/// The word names no kind.
#[derive(Debug, thiserror::Error)]
#[error("a pool is public, private or global")]
pub struct NotAKind;

impl FromStr for Kind {
    type Err = NotAKind;

    fn from_str(text: &str) -> Result<Self, NotAKind> {
        Self::ALL.into_iter().find(|kind| kind.to_string() == text).ok_or(NotAKind)
    }
}
