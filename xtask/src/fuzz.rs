//! `cargo xtask fuzz`: every parser of foreign bytes under a coverage-guided fuzzer.
//!
//! libFuzzer comes with its crate, and the compiler's instrumentation with stable rustc, so
//! that neither another toolchain nor another tool is needed.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, bail, ensure};

use crate::shell::{root, target};

/// Count branches and comparisons, as libFuzzer wants them.
const INSTRUMENTATION: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";

/// With `--target`, the instrumentation is not applied to build scripts.
#[cfg(target_arch = "aarch64")]
const TRIPLE: &str = "aarch64-unknown-linux-gnu";
#[cfg(not(target_arch = "aarch64"))]
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// The longest input, in bytes, and the most memory, in MiB.
const LONGEST: u32 = 16 << 10;
const MEMORY: u32 = 1024;

/// Whether the targets, which are a workspace of their own, can be built as things are.
pub(crate) fn check() -> anyhow::Result<()> {
    built(cargo().args(["check", "--quiet", "--locked"]))
}

/// Cargo, in the targets' workspace.
fn cargo() -> Command {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(root().join("tests/fuzz")).env("CARGO_TARGET_DIR", target().join("fuzz"));
    cargo
}

fn built(cargo: &mut Command) -> anyhow::Result<()> {
    let status = cargo.status().context("cannot start cargo")?;
    ensure!(status.success(), "the fuzz targets cannot be built ({status})");
    Ok(())
}

/// Runs the named target, or all, each for its share of `minutes`; fails when one is broken.
pub(crate) fn run(minutes: f64, only: Option<&str>) -> anyhow::Result<()> {
    let crate_root = root().join("tests/fuzz");
    let arguments = ["build", "--locked", "--features", "fuzzer", "--target", TRIPLE];
    built(cargo().args(arguments).env("RUSTFLAGS", INSTRUMENTATION))?;
    let built = target().join("fuzz");

    let mut targets: Vec<String> = fs::read_dir(crate_root.join("corpus"))?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<anyhow::Result<_>>()?;
    targets.sort();
    targets.retain(|name| only.is_none_or(|only| only == name));
    ensure!(!targets.is_empty(), "no target has this name");
    let seconds = (minutes * 60.0 / targets.len() as f64).ceil().max(1.0) as u64;
    let program = built.join(TRIPLE).join("debug/rackhand-fuzz");
    let mut broken = 0;
    println!("{:<16} {:>12} {:>9} {:>8} {:>8}", "target", "executions", "coverage", "corpus", "crashes");
    for name in &targets {
        let found = fuzz(&program, &crate_root, &built, name, seconds)?;
        broken += usize::from(found.crash);
        println!(
            "{name:<16} {:>12} {:>9} {:>8} {:>8}",
            found.executions,
            found.coverage,
            found.corpus,
            u8::from(found.crash)
        );
    }
    if broken > 0 {
        bail!("{broken} targets broke; their inputs are in {}", built.join("found").display());
    }
    Ok(())
}

/// What one run came to.
struct Found {
    executions: u64,
    /// Branches reached.
    coverage: u64,
    /// Inputs that reach something new.
    corpus: u64,
    crash: bool,
}

fn fuzz(program: &Path, crate_root: &Path, built: &Path, name: &str, seconds: u64) -> anyhow::Result<Found> {
    let (grown, found) = (built.join("corpus").join(name), built.join("found").join(name));
    fs::create_dir_all(&grown)?;
    fs::create_dir_all(&found)?;
    let output = Command::new(program)
        .arg(&grown)
        .arg(crate_root.join("corpus").join(name))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={LONGEST}"))
        .arg(format!("-rss_limit_mb={MEMORY}"))
        .arg(format!("-artifact_prefix={}/", found.display()))
        .args(["-timeout=10", "-print_final_stats=1"])
        .env("RACKHAND_FUZZ", name)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let number = |text: &str, name: &str| -> Option<u64> {
        text.split_once(name)?.1.split(|c: char| !c.is_ascii_digit()).find(|word| !word.is_empty())?.parse().ok()
    };
    let last = said.lines().rev().find(|line| line.contains(" cov: ")).unwrap_or_default();
    let crash = !output.status.success();
    if crash {
        let from = said.lines().position(|line| line.contains("panicked") || line.contains("ERROR")).unwrap_or(0);
        for line in said.lines().skip(from).take(12) {
            println!("    {line}");
        }
    }
    Ok(Found {
        executions: number(&said, "stat::number_of_executed_units:").or_else(|| number(last, "#")).unwrap_or(0),
        coverage: number(last, " cov: ").unwrap_or(0),
        corpus: number(last, " corp: ").unwrap_or(0),
        crash,
    })
}
