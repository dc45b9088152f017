//! The virtual rack's own command: what its machines' power driver calls, the demo, the
//! gate's stories, and the boot bench.

#![expect(clippy::print_stdout, reason = "a command-line tool talks on standard output")]

mod attacker;
mod bench;
mod bmc;
mod demo;
mod facts;
mod leased;
mod machine;
mod matrix;
mod metal;
mod narrator;
mod network;
mod operator;
mod packages;
mod peers;
mod rack;
mod reference;
mod run;
mod services;
mod story;
mod supervisor;
mod varstore;
mod watch;

use std::path::PathBuf;

use anyhow::Context;
use clap::{Parser, Subcommand};
use rackhand_common::machine::{Mac, Power};

use crate::{machine::Machine, rack::Parts};

#[derive(Debug, Parser)]
#[command(about = "A virtual rack of QEMU machines in network namespaces")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// The power driver: the agent runs it with the machine's network card in RACKHAND_MAC.
    Power {
        /// The directory of the machines.
        #[arg(long)]
        machines: PathBuf,
        /// `status`, `on`, `off` or `network-boot-once`.
        verb: String,
    },
    /// Shows two machines go from power-off to a login and back.
    Demo {
        #[command(flatten)]
        parts: Parts,
        /// Leave everything running at the end.
        #[arg(long)]
        keep: bool,
    },
    /// Looks after a rack that a demo left running.
    #[command(hide = true)]
    Tend {
        #[command(flatten)]
        parts: Parts,
    },
    /// Measures boots and image writing.
    Bench {
        #[command(flatten)]
        parts: Parts,
        /// How often each is measured.
        #[arg(long, default_value_t = 3)]
        repeat: usize,
    },
    /// Boots the metal installer image on a machine with servers' card and disks, and measures it beside
    /// the cloud one.
    Metal {
        #[command(flatten)]
        parts: Parts,
        /// The directory of the cloud image's kernel and initial RAM disk.
        #[arg(long)]
        cloud: PathBuf,
        /// How often each is booted.
        #[arg(long, default_value_t = 3)]
        repeat: usize,
    },
    /// Tries the Debian packages on a machine of their own.
    Packages {
        #[command(flatten)]
        tried: packages::Tried,
    },
    /// Tells the gate's stories; the last line says how many were true.
    Stories {
        #[command(flatten)]
        parts: Parts,
        /// Only those with this in their names, which may want what others arrive at; may be
        /// repeated.
        #[arg(long)]
        only: Vec<String>,
    },
    /// Every fail point of the real programs, and disks and programs that fail in other ways,
    /// while computers are deployed and released; the last line says how many worlds held.
    Matrix {
        #[command(flatten)]
        parts: Parts,
        /// Only the fields and faults whose names contain this.
        #[arg(long)]
        only: Option<String>,
        /// On so many racks at once.
        #[arg(long, default_value_t = 8)]
        racks: u8,
        /// Only every so many fields.
        #[arg(long, default_value_t = 1)]
        every: usize,
    },
    /// A BMC with a real DHCP client is given an address, found and joined; the last line says how many facts
    /// held.
    Leased {
        #[command(flatten)]
        parts: Parts,
    },
    /// Is a computer of the matrix.
    #[command(hide = true)]
    Computer {
        /// Where all that outlives its power is.
        #[arg(long)]
        directory: PathBuf,
    },
    /// The power driver of the matrix's computers.
    #[command(hide = true)]
    ComputerPower {
        /// The directory of the computers.
        #[arg(long)]
        computers: PathBuf,
        /// `status`, `on`, `off` or `network-boot-once`.
        verb: String,
    },
    /// Asks for an address, as a network card that nobody knows.
    #[command(hide = true)]
    Lease {
        /// The card.
        #[arg(long)]
        mac: Mac,
    },
    /// A hostile neighbour tries what it can; the last line says how many facts held.
    Attack {
        /// The directory of the product's binaries.
        #[arg(long)]
        binaries: PathBuf,
        /// Only the facts whose names contain this.
        #[arg(long)]
        only: Option<String>,
    },
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().verb {
        Verb::Power { machines, verb } => power(&machines, &verb),
        Verb::Demo { parts, keep } => demo::run(&parts, keep),
        Verb::Tend { parts } => demo::tend(&parts),
        Verb::Bench { parts, repeat } => bench::run(&parts, repeat),
        Verb::Metal { parts, cloud, repeat } => metal::run(&parts, &cloud, repeat),
        Verb::Stories { parts, only } => story::tell(&parts, &only),
        Verb::Packages { tried } => packages::tell(&tried),
        Verb::Matrix { parts, only, racks, every } => matrix::tell(&parts, only.as_deref(), racks, every),
        Verb::Leased { parts } => leased::tell(&parts),
        Verb::Computer { directory } => matrix::computer::be(&directory),
        Verb::ComputerPower { computers, verb } => {
            println!("{}", matrix::computer::power(&computers, own_card()?, &verb)?);
            Ok(())
        }
        Verb::Lease { mac } => {
            println!("{}", matrix::computer::lease(mac)?);
            Ok(())
        }
        Verb::Attack { binaries, only } => attacker::tell(&binaries, only.as_deref()),
    }
}

fn power(machines: &std::path::Path, verb: &str) -> anyhow::Result<()> {
    let machine = Machine::find(machines, own_card()?)?;
    match verb {
        "status" => {
            println!("{}", if machine.power() == Power::On { "on" } else { "off" });
            Ok(())
        }
        "on" => machine.power_on(),
        "off" => machine.power_off(),
        "network-boot-once" => machine.network_boot_once(),
        "disk-boot" => machine.disk_boot(),
        other => anyhow::bail!("unknown power verb {other:?}"),
    }
}

/// The card of the machine that the agent wants switched.
fn own_card() -> anyhow::Result<Mac> {
    Ok(std::env::var("RACKHAND_MAC").context("RACKHAND_MAC is not set")?.parse()?)
}
