//! A prefix of either family.
//!
//! IPv4 is kept as IPv4-mapped IPv6 (RFC 4291 §2.5.5.2), so that there is one arithmetic, one
//! order and one form in the database. IPv6 prefixes within `::ffff:0:0/96` are therefore
//! refused, and so are those around it.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// The bits before an IPv4 address.
const MAPPED: u128 = 0xffff << 32;

/// How many bits are before an IPv4 address.
const MAPPED_LENGTH: u8 = 96;

/// Which protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The length of a single address.
    pub fn width(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// A block of addresses, aligned to its size. It has no bits set beyond its length.
///
/// They are ordered by first address, and what contains comes before what it contains.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    first: u128,
    /// Of 128, also for IPv4.
    depth: u8,
}

impl Prefix {
    /// The prefix of this address and length, or why there is none.
    pub fn new(address: IpAddr, length: u8) -> Result<Self, NotAPrefix> {
        let (first, depth) = match address {
            IpAddr::V4(address) => (MAPPED | u128::from(u32::from(address)), length.saturating_add(MAPPED_LENGTH)),
            IpAddr::V6(address) => (u128::from(address), length),
        };
        if depth > 128 {
            return Err(NotAPrefix::TooLong { width: if address.is_ipv4() { 32 } else { 128 } });
        }
        let canonical = first & mask(depth);
        if address.is_ipv6() && canonical & mask(MAPPED_LENGTH) == MAPPED & mask(depth.min(MAPPED_LENGTH)) {
            return Err(NotAPrefix::Mapped);
        }
        match canonical == first {
            true => Ok(Self { first, depth }),
            false => Err(NotAPrefix::HostBits(Self { first: canonical, depth })),
        }
    }

    /// A single address.
    pub fn single(address: IpAddr) -> Result<Self, NotAPrefix> {
        Self::new(address, if address.is_ipv4() { 32 } else { 128 })
    }

    /// Its family.
    pub fn family(self) -> Family {
        match self.depth >= MAPPED_LENGTH && self.first & mask(MAPPED_LENGTH) == MAPPED {
            true => Family::V4,
            false => Family::V6,
        }
    }

    /// Its length, as it is written.
    pub fn length(self) -> u8 {
        self.depth - self.above()
    }

    fn above(self) -> u8 {
        if self.family() == Family::V4 { MAPPED_LENGTH } else { 0 }
    }

    /// The first address in it.
    pub fn first(self) -> IpAddr {
        self.address(self.first)
    }

    /// The last address in it.
    pub fn last(self) -> IpAddr {
        self.address(self.last_bits())
    }

    fn address(self, bits: u128) -> IpAddr {
        match self.family() {
            Family::V4 => Ipv4Addr::from(bits as u32).into(),
            Family::V6 => Ipv6Addr::from(bits).into(),
        }
    }

    fn last_bits(self) -> u128 {
        self.first | !mask(self.depth)
    }

    /// How many addresses it has. All of IPv6 has one less than it has: 2^128 is no number here.
    pub fn size(self) -> u128 {
        size(self.depth)
    }

    /// Whether all of `other` is in it.
    pub fn contains(self, other: Self) -> bool {
        self.family() == other.family() && self.depth <= other.depth && other.first & mask(self.depth) == self.first
    }

    /// Whether they share an address.
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other) || other.contains(self)
    }

    /// Its two halves; a single address has none.
    pub fn halves(self) -> Option<(Self, Self)> {
        let depth = self.depth + 1;
        let upper = 1u128.checked_shl(128 - u32::from(depth.min(128)))?;
        (depth <= 128).then_some((Self { depth, ..self }, Self { first: self.first | upper, depth }))
    }

    /// What it is a half of; all of a family is half of nothing.
    pub fn parent(self) -> Option<Self> {
        let depth = self.depth.checked_sub(1).filter(|_| self.length() > 0)?;
        Some(Self { first: self.first & mask(depth), depth })
    }

    /// The other half of its parent.
    pub fn buddy(self) -> Option<Self> {
        let (lower, upper) = self.parent()?.halves()?;
        Some(if self == lower { upper } else { lower })
    }

    /// The prefix of this length that begins where this one does: longer ones are in it, shorter
    /// ones contain it. `length` is not more than the family has.
    pub fn of_length(self, length: u8) -> Self {
        let depth = self.above() + length.min(self.family().width());
        Self { first: self.first & mask(depth), depth }
    }

    /// All prefixes that contain it, the longest (itself) first.
    pub fn containing(self) -> impl Iterator<Item = Self> {
        (0..=self.length()).rev().map(move |length| self.of_length(length))
    }

    /// Its first address as it is stored: 16 bytes that sort as addresses do.
    pub fn key(self) -> [u8; 16] {
        self.first.to_be_bytes()
    }

    /// Its last address, in the form of [`Prefix::key`].
    pub fn last_key(self) -> [u8; 16] {
        self.last_bits().to_be_bytes()
    }

    /// Its length as it is stored: of 128, for IPv4 too.
    pub fn depth(self) -> u8 {
        self.depth
    }

    /// A prefix as it was stored; `None` when these are no prefix's.
    pub fn stored(key: [u8; 16], depth: u8) -> Option<Self> {
        let first = u128::from_be_bytes(key);
        (depth <= 128 && first & mask(depth) == first).then_some(Self { first, depth })
    }
}

/// The bits that count for a prefix of this depth. A shift by all of them is none.
fn mask(depth: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(depth)).unwrap_or(0)
}

/// How many addresses a prefix of this depth has.
pub(super) fn size(depth: u8) -> u128 {
    1u128.checked_shl(128 - u32::from(depth)).unwrap_or(u128::MAX)
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first(), self.length())
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is no prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAPrefix {
    /// Neither an address nor an address with a length.
    #[error("write ADDRESS or ADDRESS/LENGTH, as 192.0.2.0/24 or 2001:db8::/32")]
    Malformed,
    /// The length is more than the family has.
    #[error("the length is at most {width}")]
    TooLong {
        /// Bits of an address.
        width: u8,
    },
    /// Bits beyond the length are set.
    #[error("the address has bits set beyond the length; {0} is the prefix it is in")]
    HostBits(Prefix),
    /// Of IPv6, and IPv4 within.
    #[error("write IPv4 as IPv4: ::ffff:0:0/96 is another form of it, and what is around it is no unicast space")]
    Mapped,
}

impl FromStr for Prefix {
    type Err = NotAPrefix;

    /// `ADDRESS/LENGTH`, or an address alone.
    fn from_str(text: &str) -> Result<Self, NotAPrefix> {
        let address = |text: &str| text.parse::<IpAddr>().map_err(|_| NotAPrefix::Malformed);
        let Some((first, length)) = text.split_once('/') else { return Self::single(address(text)?) };
        // `parse` would take a sign and leading zeros.
        let plain = (1..=3).contains(&length.len())
            && length.bytes().all(|b| b.is_ascii_digit())
            && (length == "0" || !length.starts_with('0'));
        let first = address(first)?;
        let width = if first.is_ipv4() { 32 } else { 128 };
        let length = plain.then_some(length).ok_or(NotAPrefix::Malformed)?;
        Self::new(first, length.parse().map_err(|_| NotAPrefix::TooLong { width })?)
    }
}
