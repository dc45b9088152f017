//! Keeps what a machine can make happen at will from filling spool and log: the same thing of
//! the same machine is told once in a while.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rackhand_common::{id::MachineId, time::Mono};

/// How long the same thing is not told again.
const WHILE: Duration = Duration::from_secs(5);

/// The most that is remembered: some things of every address of a large rack. Beyond it
/// nothing is told until some of it is old.
const MOST: usize = 16_384;

/// What was told of whom lately; clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Seldom(Arc<Mutex<HashMap<(MachineId, String), Mono>>>);

impl Seldom {
    /// Whether `what` of this machine is to be told now. `what` is of our making, never of the
    /// machine's, which would make each time another.
    pub(super) fn lets(&self, now: Mono, machine: MachineId, what: impl Into<String>) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (machine, what.into());
        if told.get(&key).is_some_and(|last| last.until(now) < WHILE) {
            return false;
        }
        if told.len() >= MOST {
            told.retain(|_, last| last.until(now) < WHILE);
        }
        if told.len() >= MOST {
            return false;
        }
        told.insert(key, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_of_one_machine_is_told_once_in_a_while_and_all_of_it_is_bounded() {
        let (seldom, machine) = (Seldom::default(), MachineId::fresh());
        let at = |seconds| Mono(Duration::from_secs(seconds));
        assert!(seldom.lets(at(0), machine, "kernel"));
        assert!(seldom.lets(at(0), machine, "initramfs"));
        assert!(!seldom.lets(at(4), machine, "kernel"));
        assert!(seldom.lets(at(5), machine, "kernel"));
        for _ in 0..2 * MOST {
            seldom.lets(at(6), MachineId::fresh(), "kernel");
        }
        assert_eq!(seldom.0.lock().unwrap().len(), MOST);
        assert!(seldom.lets(at(12), MachineId::fresh(), "kernel"));
    }
}
