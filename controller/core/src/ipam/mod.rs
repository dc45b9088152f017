//! IP address management, without IO: prefixes of both families by one arithmetic, the tree by
//! which space is split and put together again, figures of what is used and where that is heading, reverse
//! DNS, and what registries are told.
//!
//! Space that is handed out is a tree of disjoint prefixes: an *aggregate* is its root, a
//! prefix is either split in its two halves or a leaf, and only a leaf is free, claimed,
//! reserved or in quarantine. So two prefixes that are handed out can never overlap, and what is
//! next free is the first row of an index.

mod picture;
mod prefix;
mod reverse;
pub mod rpsl;
mod tree;
mod trend;
mod usage;

pub use self::{
    picture::{CELLS, picture},
    prefix::{Family, NotAPrefix, Prefix},
    reverse::{Authority, HostName, NotAHostName, NotAZone, ReverseZone, is_label},
    tree::{Carved, NotAState, Shares, State, best_fit, carve, join, share},
    trend::{RATE_DAYS, Sample, Trend, trend},
    usage::{Kind, NotAKind, Usage},
};

#[cfg(test)]
mod tests;
