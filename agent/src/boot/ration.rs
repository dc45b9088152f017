//! How much an installer may tell: [`AT_ONCE`] things, and one more in every [`EVERY`]. Whoever
//! is told that it is too often comes again; what it tells is kept in a spool, which no machine
//! may fill.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rackhand_common::{id::MachineId, time::Mono};

/// An order makes about four reports beside its progress, and two for each disk that is erased.
const AT_ONCE: u32 = 16;

/// Orders follow each other by minutes.
const EVERY: Duration = Duration::from_secs(2);

/// The most machines that are remembered: all of a large rack's. Beyond it none is heard until
/// some of them have been silent.
const MOST: usize = 16_384;

/// When each machine's ration will be whole again, of those whose is not; clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Rations(Arc<Mutex<HashMap<MachineId, Mono>>>);

impl Rations {
    /// Whether this machine may tell one thing more now.
    pub(super) fn lets(&self, now: Mono, machine: MachineId) -> bool {
        let mut whole = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if whole.len() >= MOST {
            whole.retain(|_, then| *then > now);
        }
        if whole.len() >= MOST && !whole.contains_key(&machine) {
            return false;
        }
        let then = whole.entry(machine).or_default();
        if now.until(*then) > EVERY * (AT_ONCE - 1) {
            return false;
        }
        *then = (*then).max(now).plus(EVERY);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Mono {
        Mono(Duration::from_secs(seconds))
    }

    #[test]
    fn a_machine_tells_so_much_at_once_and_then_as_fast_as_time_passes() {
        let (rations, machine) = (Rations::default(), MachineId::fresh());
        let told = |seconds| (0..100).filter(|_| rations.lets(at(seconds), machine)).count();
        assert_eq!([told(0), told(1), told(2), told(3), told(12), told(3600)], [16, 0, 1, 0, 5, 16]);
        assert!(rations.lets(at(3600), MachineId::fresh()));
    }

    #[test]
    fn what_is_remembered_is_bounded_and_forgotten_when_it_is_over() {
        let rations = Rations::default();
        for _ in 0..2 * MOST {
            rations.lets(at(0), MachineId::fresh());
        }
        assert_eq!(rations.0.lock().unwrap().len(), MOST);
        assert!(!rations.lets(at(1), MachineId::fresh()));
        assert!(rations.lets(at(2), MachineId::fresh()));
        assert_eq!(rations.0.lock().unwrap().len(), 1);
    }
}
