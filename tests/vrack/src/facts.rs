//! Tries facts one after another and tells how many held: those of the stories, of the packages
//! and of the attacks. Its last line is what the gate counts.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Instant,
};

use anyhow::{anyhow, ensure};

use crate::watch::Watch;

/// What becomes of the facts behind one that did not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// They are tried all the same.
    GoOn,
    /// They begin where it should have ended: none of them holds.
    Stop,
}

/// How many facts held.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tally {
    passed: usize,
    failed: usize,
}

/// Tries those of `facts` that are `wanted` in a `world`. `holds` tries one and gives what is
/// worth saying of it; `broken` is called after one that did not hold.
pub(crate) fn tell<W, F: Copy>(
    world: &mut W,
    facts: &[(&str, F)],
    wanted: impl Fn(&str) -> bool,
    holds: impl Fn(&mut W, F) -> anyhow::Result<String>,
    broken: impl Fn(&mut W) -> anyhow::Result<Then>,
) -> anyhow::Result<Tally> {
    let chosen: Vec<_> = facts.iter().filter(|(name, _)| wanted(name)).collect();
    let (start, mut tally) = (Instant::now(), Tally { passed: 0, failed: 0 });
    for (name, fact) in &chosen {
        let began = Instant::now();
        let _watch = Watch::over(name);
        let held = catch_unwind(AssertUnwindSafe(|| holds(world, *fact))).unwrap_or_else(|_| Err(anyhow!("panicked")));
        let took = began.elapsed().as_secs_f64();
        match held {
            Ok(said) => {
                tally.passed += 1;
                println!("{}", format!("test {name} ... ok ({took:.1} s) {said}").trim_end());
            }
            Err(error) => {
                tally.failed += 1;
                println!("test {name} ... FAILED ({took:.1} s)\n{error:?}\n");
                if broken(world)? == Then::Stop {
                    tally.failed = chosen.len() - tally.passed;
                    break;
                }
            }
        }
    }
    println!("\nit took {:.1} s", start.elapsed().as_secs_f64());
    Ok(tally)
}

impl Tally {
    /// Whether none failed.
    pub(crate) fn all_held(self) -> bool {
        self.failed == 0
    }

    /// The last line, and an error unless every fact held and there was one.
    pub(crate) fn end(self) -> anyhow::Result<()> {
        println!("{} passed, {} failed", self.passed, self.failed);
        ensure!(self.failed == 0, "not every fact held");
        ensure!(self.passed > 0, "no fact has this name");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Fact = fn(&mut Vec<&'static str>) -> anyhow::Result<String>;

    const FACTS: &[(&str, Fact)] = &[
        ("one_holds", |tried| {
            tried.push("one");
            Ok(String::new())
        }),
        ("two_panics", |tried| {
            tried.push("two");
            panic!("as it should")
        }),
        ("three_holds", |tried| {
            tried.push("three");
            Ok("well".into())
        }),
    ];

    fn told(then: Then, wanted: &str) -> (Vec<&'static str>, Tally) {
        let mut tried = Vec::new();
        let tally =
            tell(&mut tried, FACTS, |name| name.contains(wanted), |world, fact| fact(world), |_| Ok(then)).unwrap();
        (tried, tally)
    }

    #[test]
    fn facts_behind_a_broken_one_are_tried_or_counted_as_broken() {
        let (tried, tally) = told(Then::GoOn, "");
        assert_eq!((tried, tally.passed, tally.failed), (vec!["one", "two", "three"], 2, 1));
        let (tried, tally) = told(Then::Stop, "");
        assert_eq!((tried, tally.passed, tally.failed), (vec!["one", "two"], 1, 2));
        assert!(!tally.all_held() && tally.end().is_err());
    }

    #[test]
    fn nothing_tried_is_no_success() {
        let (tried, tally) = told(Then::GoOn, "holds");
        assert_eq!(tried, ["one", "three"]);
        assert!(tally.end().is_ok());
        assert!(told(Then::GoOn, "four").1.end().is_err());
    }
}
