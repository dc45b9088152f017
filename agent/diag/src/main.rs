//! `rackhand-diag`: how the rack and its machines stand, told by the agent on this node,
//! also while the controller cannot be reached.

mod console;
mod raw;
mod replace;
mod report;
mod show;
mod top;

use std::{
    collections::VecDeque,
    io::{self, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use clap::{CommandFactory as _, Parser, Subcommand, ValueEnum};
use jiff::Timestamp;
use rackhand_common::{
    bmc::{Look, Seen},
    event::Event,
    explanation::Explanation,
    health::Standing,
    wire::{self, LocalRequest, LocalResponse, MachineView},
};

/// Shows how this rack and its machines stand, as the agent on this node knows it.
///
/// Works without the controller. Run it on the rack node, as root or as a member of the
/// group `rackhand`.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "\
Examples:
  rackhand-diag top
  rackhand-diag status
  rackhand-diag machines
  rackhand-diag why web-1
  rackhand-diag identify web-1
  rackhand-diag replace-part web-1
  rackhand-diag report web-1 > web-1.txt
  rackhand-diag timeline 52:54:00:12:34:56 --follow
  rackhand-diag bmc web-1 sensors
  rackhand-diag health web-1
  rackhand-diag console web-1"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// How to print: tables for people, JSON for programs.
    #[arg(long, short, global = true, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// The agent's socket (`socket` in agent.toml).
    #[arg(long, global = true, env = "RACKHAND_SOCKET", default_value = "/run/rackhand/agent.sock")]
    socket: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The rack on one screen, as it changes: its machines, and one of them with verdict, start and console.
    ///
    /// Shows what the other commands print. `?` tells its keys. Nothing is typed to a machine before `w`.
    Top,
    /// The node itself: uplink, intent, spool, certificate, boot process, health.
    Status,
    /// All machines of the rack: power, installer, and what was last heard of each.
    Machines,
    /// Why a machine is as it is, which part is to blame, and what to do.
    ///
    /// One verdict from all that this node knows: the machine's way from power to a running system, its
    /// orders, sensors and event log, its BMC, and the node itself.
    Why {
        /// Its id, its name, or any of its network cards' addresses.
        machine: String,
    },
    /// Lights a machine's identification lamp, so that you open the right one.
    Identify {
        /// Its id, its name, or any of its network cards' addresses.
        machine: String,
        /// How many minutes; it is put out by itself then.
        #[arg(long = "for", value_name = "MINUTES", default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=1440))]
        minutes: u32,
        /// Put it out.
        #[arg(long, conflicts_with = "minutes")]
        off: bool,
    },
    /// Replaces a disk, memory module or network card of a machine that is nobody's, step by step.
    ///
    /// The machine is switched off and its lamp lit; once the new part is in, it is started into its installer,
    /// and what is in it is held against what was: exactly that part is to be another one. All of it works
    /// while the controller is away, which takes it over once it is back. How far it is, is kept by the agent:
    /// asked for again, it goes on there.
    ReplacePart {
        /// Its id, its name, or any of its network cards' addresses.
        machine: String,
        #[command(flatten)]
        wishes: replace::Wishes,
    },
    /// One page about a machine, to print or to send: verdict, parts, latest start, event log, console.
    Report {
        /// Its id, its name, or any of its network cards' addresses.
        machine: String,
    },
    /// One machine's latest events, oldest first.
    Timeline {
        /// Its id, its name, or any of its network cards' addresses.
        machine: String,
        /// Go on printing as events come; end with Ctrl-C.
        #[arg(long, short)]
        follow: bool,
    },
    /// Asks a machine's BMC now.
    Bmc {
        /// Its id, its name, or any of its network cards' addresses.
        machine: String,
        /// What it is asked for.
        #[arg(value_enum, default_value_t = What::Sensors)]
        what: What,
    },
    /// How machines fare, why, and what to replace.
    Health {
        /// Its id, its name, or any of its network cards' addresses; all machines otherwise.
        machine: Option<String>,
    },
    /// A machine's serial console: at the beginning of a line `~.` leaves, `~?` tells more.
    Console {
        /// Its id, its name, or any of its network cards' addresses.
        machine: String,
        /// Only watch: nothing is typed.
        #[arg(long, conflicts_with = "take")]
        watch: bool,
        /// Take the keyboard, whoever has it, and the console, when another session at the BMC has it.
        #[arg(long)]
        take: bool,
        /// Print what was recorded during the latest run.
        #[arg(long, conflicts_with_all = ["watch", "take"])]
        log: bool,
    },
    /// Writes man pages and shells' completions into a directory: for packages.
    #[command(hide = true)]
    Documentation {
        /// The directory.
        directory: PathBuf,
    },
}

/// What a BMC is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// What and whose it is, and whether the machine is on.
    Identity,
    /// All its sensors.
    Sensors,
    /// The hardware's event log, oldest entry first.
    Log,
    /// What the machine is made of.
    Parts,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of our output has seen enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "rackhand-diag: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn run(arguments: Arguments) -> Result<()> {
    if let Command::Documentation { directory } = &arguments.command {
        use clap_complete::Shell;
        clap_mangen::generate_to(Arguments::command(), directory)?;
        for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
            clap_complete::generate_to(shell, &mut Arguments::command(), "rackhand-diag", directory)?;
        }
        return Ok(());
    }
    if let Command::ReplacePart { machine, wishes } = arguments.command {
        return replace::replace(&arguments.socket, &machine, wishes, arguments.output);
    }
    if let Command::Top = arguments.command {
        return top::show(&arguments.socket, arguments.output);
    }
    let mut agent = connect(&arguments.socket)?;
    let mut out = io::stdout().lock();
    let json = arguments.output == Output::Json;
    match arguments.command {
        Command::Status => match ask(&mut agent, &LocalRequest::Status)? {
            LocalResponse::Status(view) if json => print_json(&mut out, &view)?,
            LocalResponse::Status(view) => write!(out, "{}", show::status(&view, Timestamp::now()))?,
            other => bail!(refusal(other)),
        },
        Command::Machines => match ask(&mut agent, &LocalRequest::Machines)? {
            LocalResponse::Machines(views) if json => print_json(&mut out, &views)?,
            LocalResponse::Machines(views) => write!(out, "{}", show::machines(&views, Timestamp::now()))?,
            other => bail!(refusal(other)),
        },
        Command::Why { machine } => {
            let explanation = why(&mut agent, machine)?;
            if json {
                print_json(&mut out, &explanation)?;
            } else {
                write!(out, "{}", show::explanation(&explanation, Timestamp::now()))?;
            }
        }
        Command::Identify { machine, minutes, off } => {
            let seconds = if off { 0 } else { minutes * 60 };
            match ask(&mut agent, &LocalRequest::Identify(machine.clone(), seconds))? {
                LocalResponse::Identified if json => {
                    print_json(&mut out, &serde_json::json!({ "lit_seconds": seconds }))?
                }
                LocalResponse::Identified if off => writeln!(out, "the lamp of {machine} is off")?,
                LocalResponse::Identified => {
                    writeln!(out, "the lamp of {machine} is lit for {minutes} min; --off puts it out")?;
                }
                other => bail!(refusal(other)),
            }
        }
        Command::Report { machine } => {
            let report = report::gather(&mut agent, &machine)?;
            if json {
                print_json(&mut out, &report)?;
            } else {
                write!(out, "{}", report.page(Timestamp::now()))?;
            }
        }
        Command::Timeline { machine, follow } => {
            let (view, events) = timeline(&mut agent, &machine)?;
            if json && !follow {
                print_json(&mut out, &events)?;
                return Ok(());
            }
            if !json {
                write!(out, "{}", show::machine(&view, Timestamp::now()))?;
            }
            let mut clock = show::Stopwatch::default();
            print_events(&mut out, &mut clock, &events, json)?;
            let mut shown = VecDeque::from(events);
            if !follow {
                return Ok(());
            }
            loop {
                out.flush()?;
                std::thread::sleep(Duration::from_secs(1));
                let (_, events) = timeline(&mut agent, &machine)?;
                let fresh = show::fresh(&shown, &events).to_vec();
                print_events(&mut out, &mut clock, &fresh, json)?;
                shown = VecDeque::from(events);
            }
        }
        Command::Bmc { machine, what } => {
            let look = match what {
                What::Identity => Look::Identity,
                What::Sensors => Look::Sensors,
                What::Log => Look::Log,
                What::Parts => Look::Parts,
            };
            let told = match ask(&mut agent, &LocalRequest::Look(machine, look))? {
                LocalResponse::Seen(told) => told,
                other => bail!(refusal(other)),
            };
            let seen: Seen = serde_json::from_str(&told).context("what the agent saw is not understood")?;
            if json {
                print_json(&mut out, &seen)?;
            } else {
                write!(out, "{}", show::seen(&seen))?;
            }
        }
        Command::Health { machine } => {
            let told = match ask(&mut agent, &LocalRequest::Health(machine))? {
                LocalResponse::Health(told) => told,
                other => bail!(refusal(other)),
            };
            let standings: Vec<Standing> =
                serde_json::from_str(&told).context("what the agent tells is not understood")?;
            if json {
                print_json(&mut out, &standings)?;
            } else {
                write!(out, "{}", show::health(&standings, Timestamp::now()))?;
            }
        }
        Command::Console { machine, log: true, .. } => console::recorded(&mut agent, &machine, &mut out)?,
        Command::Console { machine, watch, take, .. } => {
            drop(out);
            console::show(agent, machine, watch, take)?;
        }
        Command::Documentation { .. } | Command::ReplacePart { .. } | Command::Top => unreachable!("done above"),
    }
    Ok(())
}

/// Who uses this node.
fn user() -> Option<String> {
    ["SUDO_USER", "USER"].iter().find_map(|name| std::env::var(name).ok())
}

fn print_events(out: &mut impl io::Write, clock: &mut show::Stopwatch, events: &[Event], json: bool) -> Result<()> {
    for event in events {
        if json {
            serde_json::to_writer(&mut *out, event)?;
            writeln!(out)?;
        } else {
            writeln!(out, "{}", clock.line(event))?;
        }
    }
    Ok(())
}

fn print_json(out: &mut impl io::Write, value: &impl serde::Serialize) -> Result<()> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    Ok(writeln!(out)?)
}

fn timeline(agent: &mut UnixStream, machine: &str) -> Result<(MachineView, Vec<Event>)> {
    match ask(agent, &LocalRequest::Timeline(machine.into()))? {
        LocalResponse::Timeline { machine, events } => Ok((machine, events)),
        LocalResponse::NotFound(reason) => {
            bail!("{reason}\n`rackhand-diag machines` lists what this node knows")
        }
        other => bail!(refusal(other)),
    }
}

fn why(agent: &mut UnixStream, machine: String) -> Result<Explanation> {
    match ask(agent, &LocalRequest::Why(machine))? {
        LocalResponse::Why(told) => serde_json::from_str(&told).context("what the agent tells is not understood"),
        LocalResponse::NotFound(reason) => bail!(
            "{reason}\n`rackhand-diag machines` lists what this node knows. One that is new appears there once it asks the \
             network for a boot program: is it on, is the network its first boot device, is that card cabled to this rack?"
        ),
        other => bail!(refusal(other)),
    }
}

fn connect(socket: &Path) -> Result<UnixStream> {
    let stream = UnixStream::connect(socket).map_err(|error| {
        let advice = match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                "is rackhand-agent running? See: systemctl status rackhand-agent"
            }
            io::ErrorKind::PermissionDenied => "run it as root, or as a member of the group `rackhand`",
            _ => "is this the agent's socket? It is `socket` in /etc/rackhand/agent.toml",
        };
        anyhow::anyhow!("cannot reach the agent at {}: {error}\n{advice}", socket.display())
    })?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.set_write_timeout(Some(Duration::from_secs(30)))?;
    Ok(stream)
}

fn ask(agent: &mut UnixStream, request: &LocalRequest) -> Result<LocalResponse> {
    let conversation = |agent: &mut UnixStream| -> io::Result<Vec<u8>> {
        agent.write_all(&wire::frame(request))?;
        let mut prefix = [0; 4];
        agent.read_exact(&mut prefix)?;
        let mut body = vec![0; wire::frame_len(prefix).map_err(io::Error::other)?];
        agent.read_exact(&mut body)?;
        Ok(body)
    };
    let body = conversation(agent)
        .context("the agent stopped answering; see: systemctl status rackhand-agent, journalctl -u rackhand-agent")?;
    wire::decode(&body)
        .context("the agent's answer is not understood: are rackhand-diag and rackhand-agent of one version?")
}

fn refusal(response: LocalResponse) -> String {
    match response {
        LocalResponse::NotFound(reason) | LocalResponse::Unavailable(reason) => reason,
        _ => "the agent answered something else: are rackhand-diag and rackhand-agent of one version?".into(),
    }
}
