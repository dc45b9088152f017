//! The virtual rack's own command: what its machines' power driver calls, and the stories.

mod machine;
mod network;
mod run;
mod varstore;

use std::path::PathBuf;

use anyhow::Context;
use clap::{Parser, Subcommand};
use machine::Machine;
use rackhand_common::machine::{Firmware, Power};

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
    Try {
        firmware: String,
        dir: PathBuf,
    },
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().verb {
        Verb::Power { machines, verb } => {
            let mac = std::env::var("RACKHAND_MAC").context("RACKHAND_MAC is not set")?.parse()?;
            let machine = Machine::find(&machines, mac)?;
            match verb.as_str() {
                "status" => println!("{}", if machine.power() == Power::On { "on" } else { "off" }),
                "on" => machine.power_on()?,
                "off" => machine.power_off()?,
                "network-boot-once" => machine.network_boot_once()?,
                other => anyhow::bail!("unknown power verb {other:?}"),
            }
        }
        Verb::Try { firmware, dir } => {
            let c = network::Cabling::new("try", 9);
            c.lay(2)?;
            let m = Machine::rack(
                &dir,
                &c.namespace(network::Place::Lan),
                0,
                if firmware == "bios" { Firmware::Bios } else { Firmware::Uefi },
                8 << 30,
            )?;
            m.power_on()?;
        }
    }
    Ok(())
}
