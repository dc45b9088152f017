//! `rackhand-agent`: the rack node's two processes, and its enrolment.

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::{CommandFactory as _, Parser, Subcommand, ValueEnum};
use rackhand_agent::{agent, boot, clock::SystemClock, doctor, uplink};
use rackhand_common::{pki::install_crypto, time::Clock as _};
use rackhand_daemon::{Format, Log, Signals, memory};

/// The node of one rack: boots machines, installs them, switches their power.
///
/// A new node is enrolled once and then runs two processes, as two systemd services:
///
///   rackhand-agent enrol --controller HOST:4433 --code RH1...   (the line the controller's operator was given)
///   systemctl enable --now rackhand-agent rackhand-boot
///
/// `rackhand-diag status` then tells how things stand.
#[derive(Debug, Parser)]
#[command(version, verbatim_doc_comment)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// How to log: text for people and the journal, JSON for collectors. `log` in the configuration, or
    /// RUST_LOG, says how much.
    #[arg(long, global = true, env = "RACKHAND_LOG", value_enum, default_value_t = Format::Text)]
    log: Format,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Makes this node's key and exchanges a one-time code for its certificate.
    ///
    /// The code comes from `rackhand agent enrol --rack NAME` and works once. Run this as root
    /// or as the user the agent runs as: what root writes belongs to the state directory's owner.
    Enrol {
        /// The controller, as HOST:PORT; the port is 4433 unless its operator says otherwise.
        #[arg(long)]
        controller: String,
        /// The one-time code: RH1, a dot and the rest.
        #[arg(long, env = "RACKHAND_CODE", hide_env_values = true)]
        code: String,
        /// The controller's API, as HOST:PORT, where images come from; the same host and port
        /// 8443 when left out.
        #[arg(long)]
        api: Option<String>,
        /// The agent's configuration; defaults apply when there is no such file.
        #[arg(long, default_value = "/etc/rackhand/agent.toml")]
        config: PathBuf,
    },
    /// Runs the agent: uplink to the controller, intent, events, power.
    Serve {
        /// The agent's configuration; defaults apply when there is no such file.
        #[arg(long, default_value = "/etc/rackhand/agent.toml")]
        config: PathBuf,
    },
    /// Runs the boot services: DHCP, TFTP, HTTP boot, the installers' channel.
    Boot {
        /// Boot's configuration.
        #[arg(long, default_value = "/etc/rackhand/boot.toml")]
        config: PathBuf,
    },
    /// Looks at this node's installation and says what is wrong and what to do about it.
    ///
    /// Run it as root. The exit status is 0 when all is well, 1 when something needs a look, 2
    /// when something does not work.
    Doctor {
        /// The agent's configuration.
        #[arg(long, default_value = "/etc/rackhand/agent.toml")]
        config: PathBuf,
        /// Boot's configuration.
        #[arg(long, default_value = "/etc/rackhand/boot.toml")]
        boot_config: PathBuf,
        /// How to print: for people, or JSON for programs.
        #[arg(long, short, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Writes man pages and shells' completions into a directory: for packages.
    #[command(hide = true)]
    Documentation {
        /// The directory.
        directory: PathBuf,
    },
}

/// What `doctor` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    install_crypto();
    match run(arguments.command, Log::begin(arguments.log)) {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "rackhand-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(command: Command, log: Log) -> Result<ExitCode> {
    memory::close().context("cannot keep this process from leaving core dumps")?;
    let done = match command {
        Command::Doctor { config, boot_config, output } => {
            let (agent, boot) = (agent::Config::load(&config), boot::Config::load(&boot_config));
            let now = SystemClock::default().now().wall;
            return show(&doctor::examine(agent, boot, now).await, output);
        }
        Command::Enrol { controller, code, api, config } => {
            let config = agent::Config::load(&config)?;
            agent::prepare(&config.state)?;
            agent::become_owner(&config.state)?;
            let enrolled = uplink::enrol(&config.state, &controller, api.as_deref(), &code).await?;
            let mut out = std::io::stdout();
            writeln!(
                out,
                "Enrolled as agent {} of rack {}; the certificate ends {}.",
                enrolled.agent, enrolled.rack, enrolled.until
            )?;
            writeln!(out, "Next: systemctl enable --now rackhand-agent rackhand-boot; then: rackhand-diag status")?;
            Ok(())
        }
        Command::Serve { config } => {
            let signals = Signals::listen().context("cannot wait for signals")?;
            let load = move || agent::Config::load(&config);
            let config = load()?;
            log.take(&config.log);
            agent::prepare(&config.state)?;
            let running = agent::start(&config, agent::Seams::default(), signals.shutdown.clone()).await?;
            running.run(signals, load, log).await
        }
        Command::Boot { config } => {
            let signals = Signals::listen().context("cannot wait for signals")?;
            let load = move || boot::Config::load(&config);
            let config = load()?;
            log.take(&config.log);
            let running = boot::start(&config, boot::Seams::default(), signals.shutdown.clone()).await?;
            running.run(signals, load, log).await
        }
        Command::Documentation { directory } => {
            use clap_complete::Shell;
            clap_mangen::generate_to(Arguments::command(), &directory)?;
            for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
                clap_complete::generate_to(shell, &mut Arguments::command(), "rackhand-agent", &directory)?;
            }
            Ok(())
        }
    };
    done.map(|()| ExitCode::SUCCESS)
}

fn show(findings: &rackhand_common::finding::Findings, output: Output) -> Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    match output {
        Output::Table => write!(out, "{findings}")?,
        Output::Json => {
            serde_json::to_writer_pretty(&mut out, findings)?;
            writeln!(out)?;
        }
    }
    Ok(ExitCode::from(findings.status()))
}
