//! The seeded world, as part of the gate. A seed that failed is not kept: what the world draws from
//! it changes whenever the world learns something, so what it showed belongs into a test of its own.

use std::time::Duration;

use rackhand_world::{
    search::{search, sum},
    world::{Options, Tally, World},
};

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn a_hundred_seeds_keep_every_promise() {
    let found = search(1, 100, HOUR, None, 2, 3);
    let failed: Vec<_> =
        found.failed.iter().map(|(seed, outcome)| format!("seed {seed}: {}", outcome.violations[0])).collect();
    let again = "cargo xtask sim --minutes 60 --seed SEED prints the history";
    assert!(failed.is_empty(), "{}\n{again}", failed.join("\n"));
    // A world in which nothing happens keeps every promise.
    assert!(found.tally.replaced > 100 && found.tally.swapped > 5, "{:?}", found.tally);
    assert!(found.tally.deploys > 100 && found.tally.releases > 50 && found.tally.restarts > 50, "{:?}", found.tally);
}

#[test]
fn the_same_seed_has_the_same_history() {
    for seed in 1..=6 {
        let run = || World::run(Options::of(seed, HOUR));
        let (first, second) = (run(), run());
        assert!(first.history.lines().count() > 50, "{}", first.history);
        assert_eq!(first.history, second.history, "seed {seed}");
        assert_eq!(first.tally, second.tally);
    }
}

#[test]
fn a_fleet_goes_to_the_next_version_and_back_and_no_machine_misses_its_boot() {
    let (mut all, mut understood) = (Tally::default(), 0);
    for seed in 1..=12 {
        let faults = Some(World::rollout(seed, HOUR));
        let outcome = World::run(Options { faults, ..Options::of(seed, HOUR) });
        let again = format!("cargo xtask sim --minutes 60 --seed {seed} --rollout");
        assert!(outcome.violations.is_empty(), "{}: {again}", outcome.violations[0]);
        assert!(outcome.history.contains("is replaced by the next version"));
        all = sum(all, outcome.tally);
        understood += outcome.history.matches("does not understand").count();
    }
    // Nobody misses a boot where nothing boots, and nothing is missed that all understand.
    assert!(all.replaced >= 12 * 6 && all.boots > 100 && all.deploys > 10 && all.releases > 5, "{all:?}");
    assert!(understood > 10, "{understood} times something was not understood");
}
