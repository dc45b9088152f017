//! Many seeds, and a failing one cut down to the faults it needs.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{
    fault::Fault,
    oracle::Promise,
    plant::Plant,
    world::{Options, Outcome, Tally, World},
};

/// The seeds that failed, and what all of them were worth together.
#[derive(Debug, Default)]
pub struct Found {
    /// Seed and outcome, by seed.
    pub failed: Vec<(u64, Outcome)>,
    /// Everything that happened.
    pub tally: Tally,
    /// Seeds that were run.
    pub seeds: u64,
}

/// Runs `seeds` seeds from `first` on, on so many threads; ends early once `enough` failed.
pub fn search(first: u64, seeds: u64, length: Duration, plant: Option<Plant>, threads: usize, enough: usize) -> Found {
    let next = AtomicU64::new(first);
    let found = Mutex::new(Found::default());
    let lock = || found.lock().unwrap_or_else(PoisonError::into_inner);
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first.saturating_add(seeds) || lock().failed.len() >= enough {
                        return;
                    }
                    let outcome = World::run(options(seed, length, plant));
                    let mut found = lock();
                    found.seeds += 1;
                    found.tally = sum(found.tally, outcome.tally);
                    if !outcome.violations.is_empty() {
                        found.failed.push((seed, outcome));
                    }
                }
            });
        }
    });
    let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    found.failed.sort_by_key(|(seed, _)| *seed);
    found
}

/// The fewest faults found with which this seed still breaks the promise: halves are left out
/// first, then single ones, until nothing more can be.
pub fn minimise(options: &Options, promise: Promise, faults: Vec<Fault>) -> (Vec<Fault>, Option<Outcome>) {
    let breaks = |faults: &[Fault]| {
        let outcome = World::run(Options { faults: Some(faults.to_vec()), ..options.clone() });
        outcome.violations.iter().any(|violation| violation.promise == promise).then_some(outcome)
    };
    let (mut needed, mut outcome) = (faults, None);
    let mut part = needed.len().div_ceil(2).max(1);
    loop {
        let mut at = 0;
        let mut fewer = false;
        while at < needed.len() {
            let mut without = needed.clone();
            without.drain(at..(at + part).min(needed.len()));
            match breaks(&without) {
                Some(broken) => {
                    (needed, outcome, fewer) = (without, Some(broken), true);
                }
                None => at += part,
            }
        }
        match part {
            1 if !fewer => return (needed, outcome),
            1 => {}
            _ => part = part.div_ceil(2),
        }
    }
}

/// Both together.
pub fn sum(a: Tally, b: Tally) -> Tally {
    Tally {
        lived: a.lived + b.lived,
        steps: a.steps + b.steps,
        deploys: a.deploys + b.deploys,
        releases: a.releases + b.releases,
        failed: a.failed + b.failed,
        switched: a.switched + b.switched,
        restarts: a.restarts + b.restarts,
        replaced: a.replaced + b.replaced,
        swapped: a.swapped + b.swapped,
        boots: a.boots + b.boots,
        notes: a.notes + b.notes,
    }
}

/// The world of a seed, with a bug or without.
pub fn options(seed: u64, length: Duration, plant: Option<Plant>) -> Options {
    plant.map_or_else(|| Options::of(seed, length), |plant| planted(plant, seed, length))
}

/// The world of a seed with a planted bug, and what gives it occasion.
fn planted(plant: Plant, seed: u64, length: Duration) -> Options {
    let options = Options { plant: Some(plant), ..Options::of(seed, length) };
    let mut faults = World::planned(&options);
    faults.extend(plant.occasions());
    Options { faults: Some(faults), ..options }
}

/// The first of so many seeds in which a planted bug breaks its promise, as the oracle says.
pub fn caught(plant: Plant, seeds: u64, length: Duration) -> Option<u64> {
    (1..=seeds).find(|seed| {
        let outcome = World::run(planted(plant, *seed, length));
        outcome.violations.iter().any(|violation| violation.promise == plant.breaks())
    })
}
