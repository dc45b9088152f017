//! Measures how a rack of BMCs is asked for its sensors and event logs, beside what an operator
//! would run instead: `cargo xtask bench bmc`.
//!
//! Read in this order: [`rack`] is the simulated BMCs, in a process of their own; [`sweep`] asks
//! them by our client, in a process of its own, so that processor time and memory are the client's
//! alone; [`week`] is a node's own parts that read a rack for days; [`peer`] asks them by other programs;
//! [`usage`] is what the kernel says of it all.
//!
//! It is a package of its own so that the simulator needs nothing of the client it judges.

#![expect(clippy::print_stdout, reason = "a command-line tool talks on standard output")]

mod peer;
mod rack;
mod sweep;
mod usage;
mod week;

use anyhow::ensure;
use clap::{Args, Parser, Subcommand, ValueEnum, builder::PossibleValuesParser};
use rackhand_bmc_sim::Personality;

use crate::{peer::Peer, rack::Rack, sweep::Sweep};

/// Asks a rack of simulated BMCs, beside ipmitool and FreeIPMI.
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Command {
    #[command(subcommand)]
    part: Option<Part>,
    #[command(flatten)]
    bench: Bench,
}

#[derive(Debug, Args)]
struct Bench {
    /// How many BMCs the rack has.
    #[arg(long, default_value_t = 48)]
    machines: u16,
    /// What kind they are.
    #[arg(long, default_value = "generic", value_parser = PossibleValuesParser::new(Personality::PRESETS))]
    personality: String,
    /// How many events each has in its log.
    #[arg(long, default_value_t = 16)]
    events: usize,
    /// How often everybody asks the rack; 0 leaves it out.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How often it is then asked over IPMI by one client, to see whether its memory grows; over
    /// Redfish a tenth as often.
    #[arg(long, default_value_t = 2000)]
    sweeps: usize,
    /// For how many days the parts of a node then read it, by a clock that goes faster than this
    /// computer's; 0 leaves it out.
    #[arg(long, default_value_t = 0.0)]
    days: f64,
    /// So many times as fast.
    #[arg(long, default_value_t = 240, value_parser = clap::value_parser!(u32).range(1..=1000))]
    faster: u32,
}

/// What this program does in the processes it starts.
#[derive(Debug, Subcommand)]
enum Part {
    /// Is the rack until its standard input ends.
    #[command(hide = true)]
    Rack { machines: u16, personality: String, events: usize },
    /// Is the client: one first sweep of a rack and some steady ones.
    #[command(hide = true)]
    Sweeps { protocol: Protocol },
    /// Is the client for a long time.
    #[command(hide = true)]
    Growth { protocol: Protocol, sweeps: usize },
    /// Is a node.
    #[command(hide = true)]
    Days { days: f64, faster: u32 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Protocol {
    Ipmi,
    Redfish,
}

impl Protocol {
    const ALL: [(Self, &str); 2] = [(Self::Ipmi, "IPMI"), (Self::Redfish, "Redfish")];

    /// As in the arguments.
    fn word(self) -> &'static str {
        match self {
            Self::Ipmi => "ipmi",
            Self::Redfish => "redfish",
        }
    }
}

fn main() -> anyhow::Result<()> {
    let command = Command::parse();
    // As the agent does: as many threads as there are processors.
    let runtime = tokio::runtime::Runtime::new;
    match command.part {
        None => measure(&command.bench),
        Some(Part::Rack { machines, personality, events }) => {
            runtime()?.block_on(rack::serve(machines, &personality, events))
        }
        Some(Part::Sweeps { protocol }) => runtime()?.block_on(sweep::some(protocol)),
        Some(Part::Growth { protocol, sweeps }) => runtime()?.block_on(sweep::many(protocol, sweeps)),
        Some(Part::Days { days, faster }) => runtime()?.block_on(week::run(days, faster)),
    }
}

/// What one contender took, round by round.
#[derive(Debug, Default)]
struct Line {
    name: String,
    sweeps: Vec<Sweep>,
    /// The most memory its process had, in MB; of one that runs many processes it means little.
    memory: Option<f64>,
}

/// Everybody in turn, so often, so that a slow minute of this computer is everybody's.
fn measure(bench: &Bench) -> anyhow::Result<()> {
    ensure!(bench.machines > 0, "nothing to measure");
    let rack = Rack::start(bench.machines, &bench.personality, bench.events)?;
    let dir = tempfile::tempdir()?;
    let peers = Peer::all(dir.path());
    for peer in &peers {
        peer.prepare(&rack)?;
    }
    let ours =
        Protocol::ALL.iter().flat_map(|(_, name)| [format!("Rackhand, {name}, first"), format!("Rackhand, {name}")]);
    let names = ours.chain(peers.iter().map(|peer| peer.name.to_owned()));
    let mut lines: Vec<Line> = names.map(|name| Line { name, ..Line::default() }).collect();
    for round in 1..=bench.rounds {
        eprintln!("round {round} of {}", bench.rounds);
        let (clients, others) = lines.split_at_mut(2 * Protocol::ALL.len());
        for (pair, (protocol, _)) in clients.chunks_mut(2).zip(Protocol::ALL) {
            let told = rack.client(protocol)?;
            for line in pair.iter_mut() {
                line.memory = Some(line.memory.unwrap_or_default().max(told.memory));
            }
            pair[0].sweeps.push(told.first);
            pair[1].sweeps.extend(told.steady);
        }
        for (line, peer) in others.iter_mut().zip(&peers) {
            line.sweeps.push(peer.sweep(&rack)?);
        }
    }
    if bench.rounds > 0 {
        print(&lines, bench);
    }
    for ((protocol, name), sweeps) in Protocol::ALL.into_iter().zip([bench.sweeps, bench.sweeps / 10]) {
        if sweeps > 0 {
            println!("\n| sweeps over {name} | s | RSS, MB | at most, MB |\n|---:|---:|---:|---:|");
            rack.growth(protocol, sweeps)?;
        }
    }
    if bench.days > 0.0 {
        println!("\n| days | latest answers, minutes old at most | RSS, MB | at most, MB | series, MiB |");
        println!("|---:|---:|---:|---:|---:|");
        rack.days(bench.days, bench.faster)?;
    }
    Ok(())
}

fn print(lines: &[Line], bench: &Bench) {
    println!("{} BMCs, each with {} events in its log; {} rounds\n", bench.machines, bench.events, bench.rounds);
    println!(
        "| a sweep by | wall, s | min–max | CPU, ms | min–max | CPU, times ours over IPMI | requests | peak RSS, MB |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|---:|");
    let cpu = |line: &Line| usage::spread(line.sweeps.iter().map(|sweep| sweep.cpu * 1000.0).collect());
    let (base, ..) = lines.get(1).map(cpu).unwrap_or_default();
    for line in lines {
        let (wall, shortest, longest) = usage::spread(line.sweeps.iter().map(|sweep| sweep.wall).collect());
        let (median, least, most) = cpu(line);
        let requests = line.sweeps.last().and_then(|sweep| sweep.requests);
        let requests = requests.map_or("–".to_owned(), |requests| requests.to_string());
        let memory = line.memory.map_or("–".to_owned(), |memory| format!("{memory:.1}"));
        println!(
            "| {} | {wall:.2} | {shortest:.2}–{longest:.2} | {median:.0} | {least:.0}–{most:.0} | {:.1} | {requests} | {memory} |",
            line.name,
            median / base,
        );
    }
}
