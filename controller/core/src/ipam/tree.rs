//! How space is split and put together again.
//!
//! Invariants:
//! - What is carved out of a free prefix, and what of it stays free, are that prefix: disjoint,
//!   and nothing is lost.
//! - Two free halves are never left beside each other: their parent is free instead. So the
//!   largest block that could be free is.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

use super::Prefix;

/// What a prefix in the tree is. Only one that is split has others in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Can be claimed.
    Free,
    /// Its two halves are in the tree.
    Split,
    /// Somebody's.
    Claimed,
    /// Nobody's, and not to be handed out.
    Reserved,
    /// Was somebody's, and rests before it is handed out again.
    Quarantined,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Free, Self::Split, Self::Claimed, Self::Reserved, Self::Quarantined];
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Free => "free",
            Self::Split => "split",
            Self::Claimed => "claimed",
            Self::Reserved => "reserved",
            Self::Quarantined => "quarantined",
        })
    }
}

/// The word names no state.
#[derive(Debug, thiserror::Error)]
#[error("not the state of a prefix")]
pub struct NotAState;

impl FromStr for State {
    type Err = NotAState;

    fn from_str(text: &str) -> Result<Self, NotAState> {
        Self::ALL.into_iter().find(|state| state.to_string() == text).ok_or(NotAState)
    }
}

/// Which of the free prefixes gives one of this length: the smallest that can, so that large
/// ones stay whole; of those the lowest, so that what is used stays together.
pub fn best_fit(free: impl IntoIterator<Item = Prefix>, length: u8) -> Option<Prefix> {
    free.into_iter().filter(|free| free.length() <= length).min_by_key(|free| (Reverse(free.length()), *free))
}

/// A free prefix with one carved out of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Carved {
    /// Those that are split now: the one it began with first, each the parent of the next.
    pub split: Vec<Prefix>,
    /// What stays free, the largest first.
    pub free: Vec<Prefix>,
    /// What was wanted.
    pub taken: Prefix,
}

/// Carves `wanted` out of `free`; `None` when it is not in there.
pub fn carve(free: Prefix, wanted: Prefix) -> Option<Carved> {
    if !free.contains(wanted) {
        return None;
    }
    let mut carved = Carved { split: Vec::new(), free: Vec::new(), taken: wanted };
    let mut rest = free;
    while rest != wanted {
        let (lower, upper) = rest.halves()?;
        carved.split.push(rest);
        let (inner, outer) = if lower.contains(wanted) { (lower, upper) } else { (upper, lower) };
        carved.free.push(outer);
        rest = inner;
    }
    Some(carved)
}

/// What becomes of free prefixes when several of one length are taken out of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shares {
    /// Of the free ones, those that are taken as they are.
    pub whole: Vec<Prefix>,
    /// Of the free ones, those that are split now.
    pub split: Vec<Prefix>,
    /// What is in those now, with what each is: split, free or claimed.
    pub made: Vec<(Prefix, State)>,
    /// What was taken, in the order of [`best_fit`].
    pub taken: Vec<Prefix>,
}

/// Takes `count` prefixes of this length, as if each was carved out of the [`best_fit`] after the
/// other; `None` when there is not so much.
pub fn share(free: impl IntoIterator<Item = Prefix>, length: u8, count: usize) -> Option<Shares> {
    let fits = free.into_iter().filter(|free| free.length() <= length);
    let mut free: BTreeSet<_> = fits.map(|free| (Reverse(free.length()), free)).collect();
    let (mut shares, mut made) = (Shares::default(), BTreeMap::new());
    for _ in 0..count {
        let (_, from) = free.pop_first()?;
        let carved = carve(from, from.of_length(length))?;
        let becomes = if carved.split.is_empty() { State::Claimed } else { State::Split };
        match (made.get_mut(&from), becomes) {
            (Some(state), _) => *state = becomes,
            (None, State::Split) => shares.split.push(from),
            (None, _) => shares.whole.push(from),
        }
        if becomes == State::Split {
            made.extend(carved.split[1..].iter().map(|prefix| (*prefix, State::Split)));
            made.extend(carved.free.iter().map(|prefix| (*prefix, State::Free)));
            made.insert(carved.taken, State::Claimed);
        }
        free.extend(carved.free.into_iter().map(|free| (Reverse(free.length()), free)));
        shares.taken.push(carved.taken);
    }
    shares.made = made.into_iter().collect();
    Some(shares)
}

/// What to look at when `freed` has become free in the space `root`: if the first, its buddy, is
/// free too, the second is free in place of both, and the question is asked again of that.
pub fn join(freed: Prefix, root: Prefix) -> Option<(Prefix, Prefix)> {
    if freed == root || !root.contains(freed) {
        return None;
    }
    Some((freed.buddy()?, freed.parent()?))
}
