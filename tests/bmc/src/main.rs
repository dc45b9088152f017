//! A simulated BMC as a process of its own.
#![expect(clippy::print_stdout, reason = "a command-line tool")]

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, ensure};
use clap::{Args, Parser, Subcommand, builder::PossibleValuesParser};
use rackhand_bmc_sim::{
    Addresses, Bench, Chassis, Nvram, Personality, Role, Script, Simulator, control, personality::UserSpec,
};
use tokio::{
    io::DuplexStream,
    net::{TcpListener, UnixStream},
    signal::unix::{SignalKind, signal},
};

/// A simulated BMC: IPMI 2.0 and Redfish in front of a machine.
#[derive(Debug, Parser)]
#[command(version, subcommand_negates_reqs = true, args_conflicts_with_subcommands = true)]
struct Command {
    #[command(subcommand)]
    other: Option<Other>,
    #[command(flatten)]
    bmc: BmcArguments,
}

#[derive(Debug, Args)]
struct BmcArguments {
    /// Address to listen at.
    #[arg(long, value_name = "ADDR", required = true)]
    listen: Option<IpAddr>,
    /// UDP port of IPMI; 0 is any.
    #[arg(long, default_value_t = 623)]
    ipmi_port: u16,
    /// TCP port of Redfish over HTTPS; 0 is any.
    #[arg(long, default_value_t = 443)]
    redfish_port: u16,
    /// TCP port of Redfish over plain HTTP; none without.
    #[arg(long)]
    plain_port: Option<u16>,
    /// What kind of BMC it is.
    #[arg(long, default_value = "generic", value_parser = PossibleValuesParser::new(Personality::PRESETS))]
    personality: String,
    /// Number of the machine: its serial number, UUID and MACs come of it.
    #[arg(long, default_value_t = 1)]
    number: u16,
    /// Serial number of the machine instead.
    #[arg(long)]
    serial: Option<String>,
    /// System UUID of the machine instead.
    #[arg(long)]
    uuid: Option<uuid::Uuid>,
    /// Name of the administrator, at most 16 bytes; with --password.
    #[arg(long, requires = "password")]
    user: Option<String>,
    /// Password of the administrator, at most 20 bytes.
    #[arg(long, requires = "user", env = "RACKHAND_BMC_PASSWORD", hide_env_values = true)]
    password: Option<String>,
    /// Unix socket of the machine's serial line, as QEMU makes it; Serial over LAN shows it.
    #[arg(long, value_name = "PATH")]
    serial_line: Option<PathBuf>,
    /// Directory for what it keeps while it has no power: certificate and users.
    #[arg(long, value_name = "DIRECTORY")]
    nvram: Option<PathBuf>,
    /// Control (sensors, faults) over HTTP at this address; it is for loopback.
    #[arg(long, value_name = "ADDR:PORT")]
    control: Option<SocketAddr>,
    /// Command that drives the machine, last of all: run with `status`, `on`, `off`, `network-boot-once`
    /// or `disk-boot`. It finds the machine in the environment (RACKHAND_MAC). Without one, the machine is
    /// in memory only.
    #[arg(long, num_args = 1.., allow_hyphen_values = true, value_name = "CMD")]
    machine_command: Vec<String>,
}

#[derive(Debug, Subcommand)]
enum Other {
    /// Controls a BMC that runs.
    Ctl {
        /// Address of its control.
        #[arg(long, value_name = "ADDR:PORT")]
        control: SocketAddr,
        #[command(subcommand)]
        what: Control,
    },
}

#[derive(Debug, Subcommand)]
enum Control {
    /// Shows its state.
    State,
    /// Has a sensor read this (states as bits for a discrete one), or nothing: `-`.
    Sensor {
        /// Name of the sensor.
        name: String,
        /// What it reads.
        #[arg(allow_hyphen_values = true)]
        value: String,
    },
    /// Sets what is wrong, as JSON: `{"busy": true}`; `{}` mends everything.
    Faults {
        /// The faults.
        faults: String,
    },
    /// Restarts the BMC: silent for so many milliseconds, sessions lost.
    Restart {
        /// Milliseconds.
        #[arg(default_value_t = 3000)]
        silent: u32,
    },
    /// The machine started by itself.
    Started,
    /// Switches the machine on or off, as its button would.
    Power {
        /// Whether it is to be on: `true` or `false`.
        #[arg(action = clap::ArgAction::Set)]
        on: bool,
    },
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let command = Command::parse();
    match command.other {
        Some(Other::Ctl { control, what }) => tell(control, &what).await,
        None => run(command.bmc).await,
    }
}

async fn run(arguments: BmcArguments) -> anyhow::Result<()> {
    let listen = arguments.listen.context("--listen is missing")?;
    let mut personality =
        Personality::preset(&arguments.personality, arguments.number).context("there is no such personality")?;
    if let Some(serial) = arguments.serial {
        personality.serial = serial;
    }
    if let Some(uuid) = arguments.uuid {
        personality.uuid = uuid;
    }
    if let Some((name, password)) = arguments.user.zip(arguments.password) {
        ensure!(name.len() <= 16 && password.len() <= 20, "a name has at most 16 bytes, a password 20");
        personality.users = vec![UserSpec { name, password, role: Role::Administrator }];
    }
    let chassis: Arc<dyn Chassis> = if arguments.machine_command.is_empty() {
        Arc::new(Bench::default())
    } else {
        Arc::new(Script::new(arguments.machine_command))
    };
    let at = |port| SocketAddr::new(listen, port);
    let addresses = Addresses {
        ipmi: at(arguments.ipmi_port),
        redfish: at(arguments.redfish_port),
        plain: arguments.plain_port.map(at),
    };
    let mut terminated = signal(SignalKind::terminate())?;
    let nvram = arguments.nvram.map(Nvram::open).transpose().context("nothing can be kept")?;
    let running = Simulator::start_with(personality, chassis, addresses, nvram).await;
    let running = running.context("the BMC does not start")?;
    println!("ipmi {}", running.ipmi);
    println!("redfish {}", running.redfish);
    println!("fingerprint {}", hex::encode(running.fingerprint));
    if let Some(plain) = running.plain {
        println!("plain {plain}");
    }
    match arguments.control {
        None => println!("ready"),
        Some(control) => {
            let listener = TcpListener::bind(control).await.context("no control")?;
            println!("control {}", listener.local_addr()?);
            println!("ready");
            tokio::spawn(control::serve(listener, running.bmc.clone()));
        }
    }
    if let Some((path, line)) = arguments.serial_line.zip(running.bmc.serial_line()) {
        tokio::spawn(async move { connect(&path, line).await });
    }
    tokio::select! {
        _ = terminated.recv() => {}
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    Ok(())
}

/// Joins the serial line to a socket, and again when that ends, as it does with each start of QEMU.
async fn connect(path: &Path, mut line: DuplexStream) {
    loop {
        if let Ok(mut socket) = UnixStream::connect(path).await {
            let ended = tokio::io::copy_bidirectional(&mut line, &mut socket).await;
            tracing::debug!(?ended, "the serial line ended");
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn tell(control: SocketAddr, what: &Control) -> anyhow::Result<()> {
    let (method, path, body) = match what {
        Control::State => ("GET", "/state".into(), String::new()),
        Control::Sensor { name, value } if value == "-" => {
            ("PUT", format!("/sensors/{name}"), r#"{"available": false}"#.into())
        }
        Control::Sensor { name, value } => {
            let value: f64 = value.parse().context("what a sensor reads is a number")?;
            ("PUT", format!("/sensors/{name}"), serde_json::json!({ "value": value }).to_string())
        }
        Control::Faults { faults } => ("PUT", "/faults".into(), faults.clone()),
        Control::Restart { silent } => ("POST", "/restart".into(), format!(r#"{{"silent_ms": {silent}}}"#)),
        Control::Started => ("POST", "/started".into(), String::new()),
        Control::Power { on } => ("PUT", "/power".into(), format!(r#"{{"on": {on}}}"#)),
    };
    let (status, answer) = control::ask(control, method, &path, &body).await.context("its control does not answer")?;
    ensure!(status == 200, "refused: {answer}");
    println!("{answer}");
    Ok(())
}
