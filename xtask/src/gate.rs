//! `cargo xtask test`: the whole gate.

use std::time::{Duration, Instant};

use crate::{artefacts, packages, shell::Shell};

/// Runs everything, stops at the first failure, and says where the time went.
pub(crate) fn run(without_rack: bool) -> anyhow::Result<()> {
    let mut clock = Stopwatch::default();
    let result = steps(&mut clock, without_rack);
    clock.print();
    result
}

fn steps(clock: &mut Stopwatch, without_rack: bool) -> anyhow::Result<()> {
    if !without_rack {
        packages::require_root()?;
    }
    clock.step("packages", || {
        packages::install(&[packages::BUILD, packages::IMAGES, packages::RACK, packages::PEERS], true)?;
        if Shell::new(&["cargo", "deny", "--version"]).quiet().run().is_err() {
            Shell::new(&["cargo", "install", "--quiet", "--locked", "cargo-deny"]).run()?;
        }
        Ok(())
    })?;
    clock.step("format", || Shell::new(&["cargo", "fmt", "--all", "--check"]).run())?;
    clock.step("licences and bans", || {
        Shell::new(&["cargo", "deny", "--log-level", "error", "check", "bans", "licenses", "sources"]).run()
    })?;
    clock.step("tests", || Shell::new(&["cargo", "test", "--workspace", "--no-fail-fast"]).run())?;
    clock.step("clippy", || {
        Shell::new(&["cargo", "clippy", "--quiet", "--workspace", "--all-targets", "--", "--deny", "warnings"]).run()
    })?;
    if without_rack {
        return Ok(());
    }
    let made = clock.step("binaries and images", artefacts::make)?;
    clock.step("attacks", || made.attack().run())?;
    clock.step("real boots", || made.rack("stories").run())
}

/// Names each step as it starts and remembers how long it took.
#[derive(Default)]
struct Stopwatch(Vec<(&'static str, Duration)>);

impl Stopwatch {
    fn step<T>(&mut self, name: &'static str, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        println!("== {name}");
        let start = Instant::now();
        let result = work();
        self.0.push((name, start.elapsed()));
        result.map_err(|error| error.context(format!("the gate stopped at: {name}")))
    }

    fn print(&self) {
        println!("\nWhere the time went:");
        for (name, took) in &self.0 {
            println!("{:>7.1} s  {name}", took.as_secs_f64());
        }
    }
}
