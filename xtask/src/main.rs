//! Builds, demonstrates, tests and measures Rackhand.

#![expect(clippy::print_stdout, reason = "a command-line tool talks on standard output")]

mod artefacts;
mod catalogue;
mod demo;
mod dist;
mod fuzz;
mod gate;
mod installer_image;
mod os_image;
mod packages;
mod shell;
mod toolbox;

use clap::{Parser, Subcommand};
use installer_image::Flavour;
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
    /// Runs seeds of a whole simulated installation, in virtual time and with faults.
    ///
    /// A seed that breaks a promise is printed with its history, cut down to the faults it
    /// needs, and with the command that runs it again.
    Sim {
        /// How many seeds.
        #[arg(long, default_value_t = 1000)]
        seeds: u64,
        /// Minutes of virtual time with operators and faults, before all comes to rest.
        #[arg(long, default_value_t = 120)]
        minutes: u64,
        /// Run this seed alone, and print its history.
        #[arg(long)]
        seed: Option<u64>,
        /// Further arguments of `rackhand-world`: `--first N`, `--faults N,N`, `--rollout`, `--plant BUG`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        more: Vec<String>,
    },
    /// Fails the real programs at every point they have for it, fills and breaks their disks, and
    /// holds them still, while computers are deployed and released.
    Matrix {
        /// Only the fields and faults whose names contain this, as in `release: boot`.
        #[arg(long)]
        only: Option<String>,
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
    InstallerImage {
        /// For which machines.
        #[arg(default_value = "cloud")]
        flavour: Flavour,
        /// Leaves out the firmware that some servers' network cards need, where apt has no
        /// non-free-firmware.
        #[arg(long)]
        without_firmware: bool,
    },
    /// Makes a Debian 12 disk image.
    OsImage,
    /// Makes the toolbox: the programs that tests and rescue run on machines, as a squashfs beside the installer.
    Toolbox,
    /// Makes Debian packages in target/dist.
    Dist {
        /// Their version.
        #[arg(long, default_value = env!("CARGO_PKG_VERSION"))]
        package_version: String,
        /// Of unoptimised binaries and the installer image that is there: sooner built.
        #[arg(long)]
        debug: bool,
    },
    /// Stories that take longer than the gate has.
    Soak {
        #[command(subcommand)]
        what: Soak,
    },
}

#[derive(Debug, Subcommand)]
enum Soak {
    /// The Debian packages on a Debian machine with its systemd: installed, killed, upgraded,
    /// downgraded, removed, purged. Ten minutes and more.
    Packages {
        /// Of unoptimised binaries and the installer image that is there: sooner built.
        #[arg(long)]
        debug: bool,
    },
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
    /// From power-on to a connected installer, of the metal image on servers' parts beside the cloud one.
    Metal {
        /// How often each is booted.
        #[arg(long, default_value_t = 3)]
        repeat: u32,
        /// As for `installer-image`.
        #[arg(long)]
        without_firmware: bool,
    },
    /// The API over 1,000 racks, 40,000 machines, a million addresses and five million events.
    ///
    /// Needs some 5 GB in the directory for temporary files.
    Api {
        /// On this database alone.
        #[arg(long)]
        database: Option<Database>,
    },
    /// Claims and releases of addresses through the API, in pools from empty to 99.9 % full.
    Ipam {
        /// On this database alone.
        #[arg(long)]
        database: Option<Database>,
        /// The pools' lengths; one of /8 takes some minutes and 6 GB in the directory for temporary files.
        #[arg(long, value_delimiter = ',', default_values_t = [16, 8])]
        pools: Vec<u8>,
    },
    /// Sensors and event logs of a rack of simulated BMCs, beside ipmitool and FreeIPMI.
    ///
    /// Rackhand's client asks all BMCs over IPMI, and over Redfish, as a first sweep (log in, find out
    /// what there is) and as those that follow; wall time, processor time, requests, memory. Then it
    /// asks on and on, to show that its memory does not grow.
    Bmc {
        /// How many BMCs the rack has.
        #[arg(long, default_value_t = 48)]
        machines: u16,
        /// How many events each has in its log.
        #[arg(long, default_value_t = 16)]
        events: u32,
        /// How often everybody asks the rack; 0 leaves it out.
        #[arg(long, default_value_t = 5)]
        rounds: u32,
        /// How often one client then asks over IPMI, its memory printed after each tenth; over
        /// Redfish a tenth as often. 0 leaves it out.
        #[arg(long, default_value_t = 2000)]
        sweeps: u32,
        /// For how many days the parts of a node then read the rack, by a clock that goes faster
        /// than this computer's; 0 leaves it out, 7 take 42 minutes.
        #[arg(long, default_value_t = 0)]
        days: u32,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Database {
    Sqlite,
    Postgres,
}

/// The databases to measure, as the benches call them, with what they need installed.
fn databases(only: Option<Database>) -> anyhow::Result<&'static [&'static str]> {
    if only != Some(Database::Sqlite) {
        packages::install(&[packages::DATABASE], true)?;
    }
    Ok(match only {
        None => &["sqlite", "postgres"],
        Some(Database::Sqlite) => &["sqlite"],
        Some(Database::Postgres) => &["postgres"],
    })
}

fn binaries(debug: bool) -> std::path::PathBuf {
    target().join(if debug { "debug" } else { "release" })
}

/// Builds what packages hold, and them.
fn dist(version: &str, debug: bool) -> anyhow::Result<Vec<std::path::PathBuf>> {
    packages::install(&[packages::BUILD, packages::IMAGES, packages::DIST], true)?;
    let build = Shell::new(&["cargo", "build", "--workspace", "--bins"]);
    if debug { build } else { build.arg("--release") }.run()?;
    let installer = cache().join("installer");
    if !debug || !installer.join("manifest.json").exists() {
        installer_image::build(Flavour::Cloud, false, &installer)?;
    }
    if !debug {
        toolbox::build(&installer, &cache())?;
        dist::released(&binaries(debug))?;
    }
    dist::packages(&binaries(debug), &installer, &target().join("dist"), version)
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().verb {
        Verb::Demo { down: Some(DemoVerb::Down), .. } => demo::down(),
        Verb::Demo { yes, keep, down: None } => {
            packages::install(&[packages::BUILD, packages::IMAGES, packages::RACK], yes)?;
            let demo = artefacts::make(&[])?.rack("demo");
            if keep { demo.arg("--keep") } else { demo }.become_it()
        }
        Verb::Test { without_rack } => gate::run(without_rack),
        Verb::Bench { what: Bench::Boot { repeat } } => {
            packages::install(&[packages::BUILD, packages::IMAGES, packages::RACK], true)?;
            artefacts::make_released()?.rack("bench").arg("--repeat").arg(repeat.to_string()).run()
        }
        Verb::Bench { what: Bench::Metal { repeat, without_firmware } } => {
            packages::install(&[packages::BUILD, packages::IMAGES, packages::RACK, packages::IN_BAND], true)?;
            artefacts::make_released()?.metal(without_firmware)?.arg("--repeat").arg(repeat.to_string()).run()
        }
        Verb::Bench { what: Bench::Ipam { database, pools } } => {
            let databases = databases(database)?;
            let bench = "rackhand-ipam-bench";
            Shell::new(&["cargo", "build", "--quiet", "--release", "--workspace", "--bin", bench]).run()?;
            let run = Shell::new(&[&target().join("release").join(bench).to_string_lossy()]);
            let run = databases.iter().fold(run, |run, database| run.arg(*database));
            pools.into_iter().fold(run, |run, pool| run.arg(pool.to_string())).run()
        }
        Verb::Bench { what: Bench::Api { database } } => {
            let databases = databases(database)?;
            Shell::new(&["cargo", "build", "--quiet", "--release", "--workspace", "--bins"]).run()?;
            let run = Shell::new(&[&target().join("release/rackhand-api-bench").to_string_lossy()]);
            databases.iter().fold(run, |run, database| run.arg(*database)).run()
        }
        Verb::Bench { what: Bench::Bmc { machines, events, rounds, sweeps, days } } => {
            packages::install(&[packages::BUILD, packages::BMC], true)?;
            let bench = "rackhand-bmc-bench";
            Shell::new(&["cargo", "build", "--quiet", "--release", "--package", bench]).run()?;
            Shell::new(&[&target().join("release").join(bench).to_string_lossy()])
                .args(["--machines", &machines.to_string(), "--events", &events.to_string()])
                .args(["--rounds", &rounds.to_string(), "--sweeps", &sweeps.to_string()])
                .args(["--days", &days.to_string()])
                .run()
        }
        Verb::Sim { seeds, minutes, seed, more } => {
            // Released: a seed takes a fraction of the time, and there are many.
            Shell::new(&["cargo", "build", "--quiet", "--release", "--workspace", "--bin", "rackhand-world"]).run()?;
            let world = target().join("release/rackhand-world");
            let mut sim = Shell::new(&[&world.to_string_lossy()]);
            sim = match seed {
                Some(seed) => sim.arg("--seed").arg(seed.to_string()),
                None => sim.arg("--seeds").arg(seeds.to_string()),
            };
            sim = sim.arg("--minutes").arg(minutes.to_string());
            more.into_iter().fold(sim, Shell::arg).run()
        }
        Verb::Matrix { only } => {
            packages::install(&[packages::BUILD, packages::IMAGES, packages::RACK, packages::PEERS], true)?;
            let matrix = artefacts::make(&[])?.rack("matrix");
            match only {
                Some(only) => matrix.arg("--only").arg(only),
                None => matrix,
            }
            .run()
        }
        Verb::Fuzz { minutes, target } => {
            packages::install(&[packages::BUILD, packages::FUZZ], true)?;
            fuzz::run(minutes, target.as_deref())
        }
        Verb::InstallerImage { flavour, without_firmware } => {
            packages::install(&[packages::BUILD, packages::IMAGES], true)?;
            installer_image::build(flavour, without_firmware, &cache().join(flavour.directory()))
        }
        Verb::OsImage => {
            packages::install(&[packages::IMAGES], true)?;
            os_image::build(&cache().join("debian-12.raw"), &cache())
        }
        Verb::Toolbox => {
            packages::install(&[packages::IMAGES], true)?;
            toolbox::build(&cache().join("installer"), &cache())
        }
        Verb::Dist { package_version, debug } => {
            for package in dist(&package_version, debug)? {
                println!("{}", package.display());
            }
            Ok(())
        }
        Verb::Soak { what: Soak::Packages { debug } } => {
            let version = env!("CARGO_PKG_VERSION");
            dist(version, debug)?;
            // The same programs: what is tried is the way from one version to the next and back.
            let newer = format!("{version}+next");
            dist(&newer, debug)?;
            packages::install(&[packages::RACK], true)?;
            let image = cache().join("debian-12.raw");
            os_image::build(&image, &cache())?;
            Shell::new(&[&binaries(debug).join("rackhand-vrack").to_string_lossy(), "packages"])
                .arg("--packages")
                .arg(target().join("dist"))
                .args(["--version", version, "--newer", &newer, "--image"])
                .arg(image)
                .run()
        }
    }
}
