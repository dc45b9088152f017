//! The seeded world, as part of the gate. A seed that failed is not kept: what the world draws from
//! it changes whenever the world learns something, so what it showed belongs into a test of its own.

use std::time::Duration;

use rackhand_world::{
    search::search,
    world::{Options, World},
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
