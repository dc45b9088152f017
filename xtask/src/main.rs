//! Builds, demonstrates, tests and measures Rackhand.

#![expect(clippy::print_stdout, reason = "a command-line tool talks on standard output")]

mod artefacts;
mod fuzz;
mod gate;
mod installer_image;
mod os_image;
mod packages;
mod shell;

use clap::{Parser, Subcommand};
use shell::{Shell, cache, target};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// A virtual rack provisions two machines before your eyes.
    ///
    /// Installs the Debian packages it lacks, builds everything, makes the installer and a
    /// Debian 12 image, starts a controller and a rack node in network namespaces, and takes
    /// one BIOS and one UEFI machine from power-off to a login over SSH and back.
    Demo {
        /// Install missing packages without asking.
        #[arg(long)]
        yes: bool,
        /// Leave everything running at the end.
        #[arg(long)]
        keep: bool,
        #[command(subcommand)]
        down: Option<DemoVerb>,
    },
    /// The whole gate: format, lints, tests, licences, and real machines booting.
    Test {
        /// Leave out the virtual rack: needs neither root nor network once built.
        #[arg(long)]
        without_rack: bool,
    },
    /// Measures, side by side with what a user would run instead.
    Bench {
        #[command(subcommand)]
        what: Bench,
    },
    /// Fuzzes every parser of foreign bytes.
    Fuzz {
        /// How long, all targets together.
        #[arg(long, default_value_t = 15.0)]
        minutes: f64,
        /// Only this target.
        target: Option<String>,
    },
    /// Makes the installer's kernel and initial RAM disk.
    InstallerImage,
    /// Makes a Debian 12 disk image.
    OsImage,
}

#[derive(Debug, Subcommand)]
enum DemoVerb {
    /// Ends and removes a demo's rack, whatever state it is in.
    Down,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// From power-on to a connected installer, and from a deploy call to a login.
    Boot {
        /// How often each is measured.
        #[arg(long, default_value_t = 3)]
        repeat: u32,
    },
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().verb {
        Verb::Demo { down: Some(DemoVerb::Down), .. } => {
            Shell::as_root(&[&target().join("debug/rackhand-vrack").to_string_lossy(), "down"]).run()
        }
        Verb::Demo { yes, keep, down: None } => {
            packages::install(&[packages::BUILD, packages::IMAGES, packages::RACK], yes)?;
            let demo = artefacts::make()?.rack("demo");
            if keep { demo.arg("--keep") } else { demo }.run()
        }
        Verb::Test { without_rack } => gate::run(without_rack),
        Verb::Bench { what: Bench::Boot { repeat } } => {
            packages::install(&[packages::BUILD, packages::IMAGES, packages::RACK], true)?;
            artefacts::make_released()?.rack("bench").arg("--repeat").arg(repeat.to_string()).run()
        }
        Verb::Fuzz { minutes, target } => {
            packages::install(&[packages::BUILD, packages::FUZZ], true)?;
            fuzz::run(minutes, target.as_deref())
        }
        Verb::InstallerImage => {
            packages::install(&[packages::BUILD, packages::IMAGES], true)?;
            installer_image::build(&cache().join("installer"))
        }
        Verb::OsImage => {
            packages::install(&[packages::IMAGES], true)?;
            os_image::build(&cache().join("debian-12.raw"), &cache())
        }
    }
}
