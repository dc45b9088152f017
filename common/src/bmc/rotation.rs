//! Another password for a BMC, in two phases: it is written down everywhere before the BMC is given
//! it, and takes the other's place once the BMC was logged in to with it.
//!
//! Invariants:
//! - At any moment one of both, the present and the next, is known to let in, whoever is killed.
//! - Every BMC gets a password of its own, which nobody ever sees.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Identity;
use crate::id::MachineId;

/// Letters of a fresh password: 16 fit the records of IPMI 1.5, which some BMCs of IPMI 2.0 still
/// keep (§22.30 tells 16 and 20 bytes apart by one bit, and firmware that drops it cuts the rest).
pub const FRESH: usize = 16;

/// Of each of these a fresh password has one at least: the strictest vendors want all four kinds.
/// What looks alike is left out, as it may have to be typed at a console one day; of signs there
/// are only those that no shell, no web form and no XML of a BMC's firmware takes for its own.
const KINDS: [&[u8]; 4] = [b"ABCDEFGHJKLMNPQRSTUVWXYZ", b"abcdefghijkmnopqrstuvwxyz", b"23456789", b"-_."];

/// What a machine's BMC has beside its [`Access`](super::Access); for the agent alone.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beside {
    /// The machine.
    pub machine: MachineId,
    /// Counts how often an operator has said how its BMC is reached: what was denied before is
    /// forgotten by that.
    pub set: u64,
    /// The password that it is to have from now on.
    pub next: Option<String>,
    /// Whether some agent may have given it that already.
    pub is_begun: bool,
}

impl fmt::Debug for Beside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Beside")
            .field("machine", &self.machine)
            .field("set", &self.set)
            .field("is_begun", &self.is_begun)
            .finish_non_exhaustive()
    }
}

/// The user and password that an installer sets at its machine's own BMC, in-band.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InBandUser {
    /// Its name.
    pub user: String,
    /// The password that it is to have.
    pub password: String,
}

// No password in a log line.
impl fmt::Debug for InBandUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InBandUser").field("user", &self.user).finish_non_exhaustive()
    }
}

/// What an agent answers when it is to give a BMC its next password. Travels as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rotated {
    /// It has begun, or has not been told of that password yet: ask again.
    UnderWay,
    /// The BMC was logged in to with it.
    Done,
    /// The BMC does not answer, or is not to be asked now: ask again later.
    Later(String),
    /// It did not work, and trying again is useless before something else has changed.
    Failed {
        /// Why.
        reason: String,
        /// Whether the BMC may have that password nevertheless.
        is_begun: bool,
    },
}

/// What an agent knows of a BMC without asking it. Travels as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// The machine.
    pub machine: MachineId,
    /// Logins that were denied since one was taken.
    #[serde(default)]
    pub denied: u32,
    /// Until when it is not logged in to, so that its account is not locked.
    #[serde(default)]
    pub rests_until: Option<Timestamp>,
    /// What it told of itself last, when that is another mainboard than the machine's.
    #[serde(default)]
    pub other: Option<Identity>,
}

/// A password made of these random bytes, [`FRESH`] letters long.
pub fn fresh_password(random: &[u8; 2 * FRESH]) -> String {
    let all = KINDS.concat();
    let pick = |letters: &[u8], byte: u8| letters[usize::from(byte) % letters.len()];
    let (letters, places) = random.split_at(FRESH);
    let mut password: Vec<u8> = letters.iter().map(|byte| pick(&all, *byte)).collect();
    // Not in front: some firmware takes a sign there for an option.
    let mut free: Vec<usize> = (1..FRESH).collect();
    for (kind, place) in KINDS.iter().zip(places) {
        let place = free.swap_remove(usize::from(*place) % free.len());
        password[place] = pick(kind, letters[place]);
    }
    password[0] = pick(&KINDS[..2].concat(), letters[0]);
    String::from_utf8(password).expect("all letters are ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fresh_password_has_every_kind_of_letter_and_begins_with_one() {
        let mut seen = std::collections::HashSet::new();
        for seed in 0..2000u32 {
            let mut random = [0; 2 * FRESH];
            let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
            for byte in &mut random {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                *byte = (state >> 24) as u8;
            }
            let password = fresh_password(&random);
            assert_eq!(password.len(), FRESH);
            assert!(password.starts_with(|c: char| c.is_ascii_alphabetic()), "{password}");
            for kind in KINDS {
                assert!(password.bytes().any(|byte| kind.contains(&byte)), "{password}");
            }
            assert!(seen.insert(password));
        }
    }
}
