//! `cargo xtask test`: the whole gate.

use std::{
    fmt,
    time::{Duration, Instant},
};

use crate::{
    artefacts, fuzz, packages,
    shell::{self, Shell},
};

/// Binaries as the tests have them: by themselves they have other features of their
/// dependencies, and everything would be compiled, and kept, twice.
const WITH_TESTS: &[&str] = &["--tests"];

/// Runs everything, stops at the first failure, and says what passed and where the time went.
pub(crate) fn run(without_rack: bool) -> anyhow::Result<()> {
    let (mut clock, mut tests, mut boots) = (Stopwatch::default(), Tally::default(), Tally::default());
    let result = steps(&mut clock, &mut tests, &mut boots, without_rack);
    clock.print();
    println!("\ntests       {tests}");
    if !without_rack {
        println!("real boots  {boots}");
    }
    match &result {
        Ok(()) if without_rack => println!("The gate is open, as far as it goes without the virtual rack."),
        Ok(()) => println!("The gate is open."),
        Err(_) => println!("The gate is shut."),
    }
    result
}

fn steps(clock: &mut Stopwatch, tests: &mut Tally, boots: &mut Tally, without_rack: bool) -> anyhow::Result<()> {
    if !without_rack {
        packages::require_root()?;
    }
    clock.step("packages", || {
        packages::install(
            &[packages::BUILD, packages::IMAGES, packages::RACK, packages::PEERS, packages::DATABASE, packages::DIST],
            true,
        )?;
        packages::python()?;
        if Shell::new(&["cargo", "deny", "--version"]).quiet().run().is_err() {
            println!("   installing cargo-deny (a few minutes, once)");
            Shell::new(&["cargo", "install", "--locked", "cargo-deny"]).quiet().run()?;
        }
        Ok(())
    })?;
    clock.step("format", || Shell::new(&["cargo", "fmt", "--all", "--check"]).run())?;
    clock.step("licences and bans", || {
        Shell::new(&["cargo", "deny", "--log-level", "error", "check", "bans", "licenses", "sources"]).run()
    })?;
    // Before any test: the documents' commands are compared with the programs themselves.
    clock.step("binaries", || artefacts::binaries(WITH_TESTS).quiet().run())?;
    // Stories spend their time waiting: more of them at once than there are processors.
    clock.step("tests", || {
        let test = ["cargo", "test", "--workspace", "--no-fail-fast", "--", "--test-threads", "6"];
        Shell::new(&test).run_reading(|line| tests.read(line))
    })?;
    clock.step("clippy", || {
        Shell::new(&["cargo", "clippy", "--quiet", "--workspace", "--all-targets", "--", "--deny", "warnings"]).run()
    })?;
    clock.step("fuzz targets", fuzz::check)?;
    if without_rack {
        return Ok(());
    }
    let made = clock.step("binaries and images", || artefacts::make(WITH_TESTS))?;
    clock.step("toolbox", || made.in_the_toolbox().run_reading(|line| tests.read(line)))?;
    clock.step("crash matrix", || made.rack("matrix").run_reading(|line| boots.read(line)))?;
    clock.step("BMCs with leases", || made.rack("leased").run_reading(|line| boots.read(line)))?;
    clock.step("attacks", || made.attack().run_reading(|line| boots.read(line)))?;
    clock.step("real boots", || made.rack("stories").run_reading(|line| boots.read(line)))
}

/// What test runners say in their last lines, summed up.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    runners: u64,
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Tally {
    /// Takes a line; only the closing lines of cargo's test runners and of the virtual rack
    /// count (`test result: ok. 3 passed; 0 failed; …` and `3 passed, 0 failed`).
    fn read(&mut self, line: &str) {
        let counts = match line.strip_prefix("test result: ") {
            Some(counts) => counts.split_once(". ").map_or("", |(_, counts)| counts),
            None => line,
        };
        let figures: Option<Vec<(u64, &str)>> = counts
            .split([';', ','])
            .take_while(|part| !part.contains("finished in"))
            .map(|part| part.trim().split_once(' ').and_then(|(figure, word)| Some((figure.parse().ok()?, word))))
            .collect();
        let Some(figures) = figures else { return };
        let figure = |wanted| figures.iter().find(|(_, word)| *word == wanted).map(|(figure, _)| *figure);
        if let (Some(passed), Some(failed)) = (figure("passed"), figure("failed")) {
            self.runners += 1;
            self.passed += passed;
            self.failed += failed;
            self.ignored += figure("ignored").unwrap_or(0);
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { runners, passed, failed, ignored } = self;
        write!(f, "{passed} passed, {failed} failed, {ignored} ignored: {runners} test runners")
    }
}

/// What is left where things are built: a gate that ran out of it says strange things.
fn free_space() -> Option<String> {
    let target = shell::target();
    let there = target.ancestors().find(|path| path.exists())?;
    let told = Shell::new(&["df", "--human-readable", "--output=avail"]).arg(there).read().ok()?;
    Some(told.lines().nth(1)?.trim().to_owned())
}

/// Names each step as it starts and remembers how long it took.
#[derive(Default)]
struct Stopwatch(Vec<(&'static str, Duration)>);

impl Stopwatch {
    fn step<T>(&mut self, name: &'static str, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        println!("== {name}{}", free_space().map(|space| format!(" ({space} free)")).unwrap_or_default());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_closing_lines_count() {
        let mut tally = Tally::default();
        for line in [
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.42s",
            "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s",
            "5 passed, 1 failed",
            "test 7 passed, 7 failed ... ok",
            "running 40 tests",
            "40 passed",
        ] {
            tally.read(line);
        }
        assert_eq!(tally, Tally { runners: 3, passed: 20, failed: 3, ignored: 1 });
    }
}
