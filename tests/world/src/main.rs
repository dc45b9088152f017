//! `rackhand-world`: runs seeds of the simulated installation; what fails is printed with its
//! history, cut down to the faults it needs.

#![expect(clippy::print_stdout, reason = "a command-line tool talks on standard output")]

use std::{process::ExitCode, time::Duration};

use clap::Parser;
use rackhand_world::{
    fault::Fault,
    plant::Plant,
    search::{minimise, search},
    world::{Options, Tally, World},
};

/// Runs seeds of a whole simulated installation.
#[derive(Debug, Parser)]
#[command(name = "rackhand-world")]
struct Arguments {
    /// How many seeds.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// Minutes of virtual time with operators and faults, before all comes to rest.
    #[arg(long, default_value_t = 120)]
    minutes: u64,
    /// Run this seed alone, and print its history.
    #[arg(long)]
    seed: Option<u64>,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// Keep only these of the seed's faults, counted from 0; `none` for none.
    #[arg(long, value_name = "N,N,…")]
    faults: Option<String>,
    /// Let nothing go wrong: the fleet goes to the next version, process by process, and back.
    #[arg(long, requires = "seed", conflicts_with = "plant")]
    rollout: bool,
    /// Plant this bug.
    #[arg(long)]
    plant: Option<String>,
    /// Seeds at once.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Print what the product logs, too (`RUST_LOG` decides what).
    #[arg(long)]
    log: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.log {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    }
    let plant = match &arguments.plant {
        None => None,
        Some(wanted) => match Plant::ALL.into_iter().find(|plant| plant.name() == *wanted) {
            Some(plant) => Some(plant),
            None => {
                let names: Vec<_> = Plant::ALL.into_iter().map(Plant::name).collect();
                println!("no such bug; there are: {}", names.join(", "));
                return ExitCode::FAILURE;
            }
        },
    };
    let length = Duration::from_secs(arguments.minutes * 60);
    match arguments.seed {
        Some(seed) => one(&arguments, seed, length, plant),
        None => many(&arguments, length, plant),
    }
}

fn one(arguments: &Arguments, seed: u64, length: Duration, plant: Option<Plant>) -> ExitCode {
    let mut options = rackhand_world::search::options(seed, length, plant);
    if arguments.rollout {
        options.faults = Some(World::rollout(seed, length));
    }
    if let Some(kept) = &arguments.faults {
        let planned = options.faults.take().unwrap_or_else(|| World::planned(&options));
        let kept: Vec<usize> = kept.split(',').filter_map(|number| number.parse().ok()).collect();
        let faults = planned.into_iter().enumerate().filter(|(index, _)| kept.contains(index));
        options.faults = Some(faults.map(|(_, fault)| fault).collect());
    }
    let size = World::size(seed);
    println!(
        "seed {seed}: {} racks, in each {} machines; operators and faults for {} minutes, then all comes to rest.\n\
         A line is: when, who, what. r1m2 is the second machine of the first rack, #7 an id that was met as the eighth;\n\
         FAULT is what went wrong on purpose, BROKEN a promise that was not kept, where it was noticed.\n",
        size.racks, size.machines, arguments.minutes
    );
    let outcome = World::run(options.clone());
    print!("{}", outcome.history);
    faults(&outcome.faults, &outcome.faults);
    tally(1, outcome.tally);
    let Some(first) = outcome.violations.first() else {
        println!("Every promise was kept.");
        return ExitCode::SUCCESS;
    };
    for violation in &outcome.violations {
        println!("{violation}");
    }
    // Those that were chosen are not cut down again.
    if arguments.faults.is_none() {
        println!("\ncutting down its {} faults", outcome.faults.len());
        let (needed, _) = minimise(&options, first.promise, outcome.faults.clone());
        let kept = faults(&needed, &outcome.faults);
        again(arguments, seed, &kept, plant);
    }
    ExitCode::FAILURE
}

fn many(arguments: &Arguments, length: Duration, plant: Option<Plant>) -> ExitCode {
    let start = std::time::Instant::now();
    let found = search(arguments.first, arguments.seeds, length, plant, arguments.threads, 1);
    tally(found.seeds, found.tally);
    let took = start.elapsed();
    println!("{:.1} s, {:.3} s a seed", took.as_secs_f64(), took.as_secs_f64() / found.seeds.max(1) as f64);
    let Some((seed, outcome)) = found.failed.into_iter().next() else {
        println!("Every promise was kept.");
        return ExitCode::SUCCESS;
    };
    let Some(violation) = outcome.violations.first() else { return ExitCode::SUCCESS };
    println!("\nseed {seed}: {violation}\ncutting down its {} faults", outcome.faults.len());
    let options = rackhand_world::search::options(seed, length, plant);
    let (needed, cut) = minimise(&options, violation.promise, outcome.faults.clone());
    let cut = cut.unwrap_or(World::run(Options { faults: Some(needed.clone()), ..options }));
    println!("{}", cut.history);
    let kept = faults(&needed, &outcome.faults);
    for violation in &cut.violations {
        println!("{violation}");
    }
    again(arguments, seed, &kept, plant);
    ExitCode::FAILURE
}

/// Prints the command that runs this seed again with these faults only.
fn again(arguments: &Arguments, seed: u64, kept: &str, plant: Option<Plant>) {
    let plant = plant.map(|plant| format!(" --plant {}", plant.name())).unwrap_or_default();
    let rollout = if arguments.rollout { " --rollout" } else { "" };
    let kept = if kept.is_empty() { "none" } else { kept };
    println!(
        "\nwith these alone: cargo xtask sim --seed {seed} --minutes {} --faults {kept}{plant}{rollout}\n\
         (with what the product logs: add --log, and RUST_LOG=debug before it)",
        arguments.minutes
    );
}

/// Prints faults; their numbers among all.
fn faults(kept: &[Fault], all: &[Fault]) -> String {
    println!("\nfaults, counted from 0 for --faults:{}", if kept.is_empty() { " none" } else { "" });
    for (index, fault) in all.iter().enumerate().filter(|(_, fault)| kept.contains(fault)) {
        println!("{index:>4}  {fault}");
    }
    let numbers = all.iter().enumerate().filter(|(_, fault)| kept.contains(fault));
    numbers.map(|(index, _)| index.to_string()).collect::<Vec<_>>().join(",")
}

fn tally(seeds: u64, tally: Tally) {
    println!(
        "{seeds} seeds, {:.1} h of virtual time, {} steps: {} deploys, {} releases, {} failed runs, {} power effects, \
         {} processes died, {} replaced, {} boots, {} notes",
        tally.lived.as_secs_f64() / 3600.0,
        tally.steps,
        tally.deploys,
        tally.releases,
        tally.failed,
        tally.switched,
        tally.restarts,
        tally.replaced,
        tally.boots,
        tally.notes
    );
}
