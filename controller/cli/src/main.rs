//! The operator's command-line tool: talks to one controller, shows tables and timelines.
//!
//! Exit codes: 0 done, 1 failed or refused, 2 the command line is wrong. What was asked for
//! goes to standard output, progress and problems to standard error.

mod addresses;
mod audit;
mod client;
mod context;
mod follow;
mod organisation;
mod person;
mod project;
mod role;
mod show;
mod site;
mod token;
mod views;

use std::{
    io::{IsTerminal, Read, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    audit::AuditCommand,
    client::{Client, view},
    context::{Context, Overrides},
    views::{Code, Event, Image, Machine},
};

/// Bare-metal provisioning: from power-off to a login.
#[derive(Parser)]
#[command(
    name = "rackhand",
    version,
    max_term_width = 100,
    after_help = "A first machine, from nothing:

  rackhand login --controller https://rackhand.example:8443 --ca ca.pem --token rh_…
  rackhand rack create lab --node 10.77.0.1/24 --delegated 10.77.0.100-10.77.0.199
  rackhand agent enrol --rack lab           # prints the line to run on the rack's node
  rackhand image import debian-12.qcow2 --wait   # the name is taken from the file
  rackhand machine list                     # power a machine on; it appears
  rackhand machine adopt NAME --rename web-1
  rackhand machine deploy web-1 --image debian-12 --ssh-key ~/.ssh/id_ed25519.pub --wait
  ssh root@ADDRESS

Exit codes: 0 done, 1 failed or refused, 2 wrong command line."
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
struct Global {
    /// The controller's address; otherwise the one of the last login
    #[arg(long, global = true, env = "RACKHAND_CONTROLLER", value_name = "URL")]
    controller: Option<String>,
    /// The token; better given in the environment, where other users do not see it
    #[arg(long, global = true, env = "RACKHAND_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// File with the controller's CA certificate (ca.pem)
    #[arg(long, global = true, env = "RACKHAND_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// What to print: tables for people or the API's JSON for programs
    #[arg(long, short, global = true, default_value = "table")]
    output: Output,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

#[derive(Subcommand)]
enum Command {
    /// Save which controller to talk to, after trying the token
    #[command(after_help = "Without --token the token is read from standard input:

  rackhand login --controller https://rackhand.example:8443 --ca ca.pem < token

It is saved in ~/.config/rackhand/config.toml, readable by you alone.")]
    Login,
    /// Racks: a provisioning network with one node and its machines
    #[command(subcommand)]
    Rack(RackCommand),
    /// Agents: the nodes' registrations
    #[command(subcommand)]
    Agent(AgentCommand),
    /// Machines: adopt, deploy, release, power
    #[command(subcommand)]
    Machine(MachineCommand),
    /// Images: operating systems to deploy
    #[command(subcommand)]
    Image(ImageCommand),
    /// Runs: work in progress on machines, and work that has ended
    #[command(subcommand)]
    Run(RunCommand),
    /// Audit: who changed what, and whether the record of it is whole
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Addresses: claim, release, who has what and who had it
    #[command(subcommand)]
    Ip(addresses::IpCommand),
    /// Pools: addresses to claim from
    #[command(subcommand)]
    Pool(addresses::PoolCommand),
    /// Aggregates: address space that pools are made of
    #[command(subcommand)]
    Aggregate(addresses::AggregateCommand),
    /// VRFs: spaces in which an address is one place
    #[command(subcommand)]
    Vrf(addresses::VrfCommand),
    /// Organisations: customers, and the provider itself
    #[command(subcommand)]
    Organisation(organisation::OrganisationCommand),
    /// Projects: what machines and addresses are given to
    #[command(subcommand)]
    Project(project::ProjectCommand),
    /// Sites: where racks stand
    #[command(subcommand)]
    Site(site::SiteCommand),
    /// People: who logs in; your own password and second factor
    #[command(subcommand)]
    Person(person::PersonCommand),
    /// Roles: what each may do, and who has which
    #[command(subcommand)]
    Role(role::RoleCommand),
    /// Tokens: for programs, and for people who work with them
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Print a completion script for your shell
    #[command(after_help = "  rackhand completion bash > /etc/bash_completion.d/rackhand")]
    Completion {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Write man pages and shells' completions into a directory: for packages
    #[command(hide = true)]
    Documentation {
        /// The directory
        directory: PathBuf,
    },
}

#[derive(Args)]
struct Wait {
    /// Stay until it is over and show the timeline as it happens
    #[arg(long)]
    wait: bool,
    /// With --wait: give up watching after this many seconds (the run goes on)
    #[arg(long, value_name = "SECONDS", requires = "wait")]
    timeout: Option<u64>,
}

#[derive(Subcommand)]
enum RackCommand {
    /// Create a rack
    #[command(after_help = "  rackhand rack create lab --node 10.77.0.1/24 --delegated 10.77.0.100-10.77.0.199 \\
      --gateway 10.77.0.1 --dns 10.77.0.53")]
    Create {
        /// Its name
        name: String,
        /// The provisioning network, with the node's own address in it
        #[arg(long, value_name = "ADDRESS/LENGTH")]
        node: String,
        /// Addresses the node may give to machines nobody knows yet
        #[arg(long, value_name = "FIRST-LAST")]
        delegated: String,
        /// Default route told to machines
        #[arg(long, value_name = "ADDRESS")]
        gateway: Option<String>,
        /// Name server told to installed systems; may be repeated
        #[arg(long, value_name = "ADDRESS")]
        dns: Vec<String>,
    },
    /// List racks
    List,
}

#[derive(Subcommand)]
enum AgentCommand {
    /// List agents and whether they are connected
    List,
    /// Make a one-time code for a rack's node and print the line to run there
    Enrol {
        /// The rack
        #[arg(long)]
        rack: String,
        /// How long the code is good
        #[arg(long, value_name = "MINUTES", default_value_t = 60)]
        minutes: u32,
        /// Only from this network, as the controller sees the node
        #[arg(long, value_name = "ADDRESS/LENGTH")]
        source: Option<String>,
    },
    /// Put another node in the place of a rack's, which burnt, was stolen or will not come back
    #[command(
        after_help = "  rackhand agent replace lab                # by rack, or by the id `rackhand agent list` shows

The old node's agent is revoked and a one-time code is made. Then, on the new node:

  1. install the package rackhand-agent and give it the old one's network configuration
  2. run the printed line there, once, as root
  3. systemctl restart rackhand-agent rackhand-boot
  4. rackhand agent list                    # shows it connected

The new node is given everything from here: machines keep their names, ids and addresses, and runs
go on. Power commands that the old node may have carried out are looked into before anything is done
again. Run it again if the code was lost or has ended: it makes another and voids the one before.
Take the old node off the network: should it come back it is given nothing, which is an alert, but
it answers machines from its disk."
    )]
    Replace {
        /// The agent's id, or its rack
        agent: String,
        /// How long the code is good
        #[arg(long, value_name = "MINUTES", default_value_t = 60)]
        minutes: u32,
        /// Only from this network, as the controller sees the node
        #[arg(long, value_name = "ADDRESS/LENGTH")]
        source: Option<String>,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Cut an agent off for good: its node was stolen or lost
    #[command(after_help = "  rackhand agent list
  rackhand agent revoke 01931b1e-0000-7000-8000-000000000000

Its connection is cut at once; it gets no command, image or certificate any more. Its rack's
machines still boot what the node has on its disk. To let the node in again, enrol it again.")]
    Revoke {
        /// Its id
        agent: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

/// Which machines, and in which order.
#[derive(Args)]
struct MachineFilter {
    /// Only those of this rack
    #[arg(long)]
    rack: Option<String>,
    /// Only those there in their life: discovered, ready, deploying, active, releasing, quarantined
    #[arg(long)]
    lifecycle: Option<String>,
    /// Only those with this image on them
    #[arg(long)]
    image: Option<String>,
    /// Only those whose names begin so
    #[arg(long)]
    name: Option<String>,
    /// Only the one with this network card
    #[arg(long)]
    mac: Option<String>,
    /// Only those with an alert
    #[arg(long)]
    alert: bool,
    /// By `name`, or in the order in which they were `discovered`
    #[arg(long, default_value = "discovered")]
    sort: String,
}

impl MachineFilter {
    fn query(self) -> Vec<(&'static str, String)> {
        let Self { rack, lifecycle, image, name, mac, alert, sort } = self;
        let alert = alert.then(|| "true".to_owned());
        let given = [
            ("rack", rack),
            ("lifecycle", lifecycle),
            ("image", image),
            ("name", name),
            ("mac", mac),
            ("alert", alert),
            ("sort", Some(sort)),
        ];
        given.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }
}

#[derive(Subcommand)]
enum MachineCommand {
    /// List machines
    #[command(after_help = "  rackhand machine list --lifecycle ready --sort name
  rackhand machine list --rack lab --alert
  rackhand machine list --mac 52:54:00:12:34:56")]
    List {
        #[command(flatten)]
        filter: MachineFilter,
    },
    /// Show one machine: where it stands, what is in it, what can be done
    Show {
        /// Name or id
        machine: String,
    },
    /// Say that a discovered machine is ours
    #[command(after_help = "  rackhand machine adopt m-525400123456 --rename web-1

A machine whose disks hold data is only adopted with --accept-data: a later deploy
overwrites them.")]
    Adopt {
        /// Name or id
        machine: String,
        /// Give it a name at once
        #[arg(long, value_name = "NAME")]
        rename: Option<String>,
        #[command(flatten)]
        accept: Accept,
    },
    /// Say that a machine's parts were replaced and are right as they are now
    #[command(after_help = "  rackhand machine show web-1          # what was, what is
  rackhand machine replace-part web-1

A machine whose mainboard, network card or disk is another than when it was adopted is not
deployed and not erased until somebody says so.")]
    ReplacePart {
        /// Name or id
        machine: String,
        #[command(flatten)]
        accept: Accept,
    },
    /// Say that a machine which was discovered is one we had already
    #[command(after_help = "  rackhand machine merge m-7a01 --into web-1

For a machine that came back with another mainboard, or in another rack. It keeps name and
history of web-1; what differs is shown, and wants replace-part.")]
    Merge {
        /// Name or id of the one that was discovered
        machine: String,
        /// Name or id of the one it is
        #[arg(long)]
        into: String,
    },
    /// Remove a machine that is nobody's; should it start again, it is discovered anew
    Forget {
        /// Name or id
        machine: String,
    },
    /// Install an operating system
    #[command(after_help = "  rackhand machine deploy web-1 --image debian-12 --ssh-key ~/.ssh/id_ed25519.pub --wait
  rackhand machine deploy web-1 --image debian-12 --ssh-key key.pub --user-data cloud-config.yaml")]
    Deploy {
        /// Name or id
        machine: String,
        /// The image's name or id
        #[arg(long)]
        image: String,
        /// Host name; otherwise the machine's name
        #[arg(long, value_name = "NAME")]
        hostname: Option<String>,
        /// File with public keys that may log in as root and as the first user; may be repeated
        #[arg(long = "ssh-key", value_name = "FILE")]
        ssh_keys: Vec<PathBuf>,
        /// File with cloud-init user data
        #[arg(long, value_name = "FILE")]
        user_data: Option<PathBuf>,
        /// Identity of the disk to install on; otherwise the smallest that is large enough
        #[arg(long, value_name = "IDENTITY")]
        disk: Option<String>,
        #[command(flatten)]
        wait: Wait,
    },
    /// Take a machine back and erase its disks
    #[command(after_help = "  rackhand machine release web-1 --wait

Everything on its disks is overwritten and read back. There is no way to undo it.")]
    Release {
        /// Name or id
        machine: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Switch chassis power
    Power {
        /// Name or id
        machine: String,
        /// What to do; off and cycle do not ask the operating system
        action: PowerAction,
        #[command(flatten)]
        wait: Wait,
    },
    /// Give a machine another name
    Rename {
        /// Name or id
        machine: String,
        /// The new name
        name: String,
    },
    /// Show what happened to a machine, oldest first
    Timeline {
        /// Name or id
        machine: String,
    },
}

#[derive(Args)]
struct Accept {
    /// Disks may hold data, which will be lost
    #[arg(long)]
    accept_data: bool,
    /// Parts may be another machine's: they were moved here
    #[arg(long)]
    accept_parts: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum PowerAction {
    On,
    Off,
    Cycle,
}

#[derive(Subcommand)]
enum ImageCommand {
    /// Send a raw or qcow2 file to the controller and import it
    #[command(after_help = "  rackhand image import debian-12.qcow2 --wait
  rackhand image import disk.raw --name appliance --firmware bios --settings none")]
    Import {
        /// A raw or qcow2 file
        file: PathBuf,
        /// The image's name; otherwise the file's name without its ending
        #[arg(long)]
        name: Option<String>,
        /// How its system is told host name and keys: cidata (cloud-init) or none
        #[arg(long, default_value = "cidata", value_parser = ["cidata", "none"])]
        settings: String,
        /// Firmware modes it boots in, when its partition table does not tell
        #[arg(long, value_delimiter = ',', value_parser = ["bios", "uefi"])]
        firmware: Vec<String>,
        #[command(flatten)]
        wait: Wait,
    },
    /// List images
    List,
    /// Show one image
    Show {
        /// Name or id
        image: String,
    },
    /// Delete an image that no machine uses
    Delete {
        /// Name or id
        image: String,
    },
}

#[derive(Subcommand)]
enum RunCommand {
    /// List runs
    List {
        /// Only those of this machine
        #[arg(long)]
        machine: Option<String>,
    },
    /// Show one run: which step, waiting for what and until when
    Show {
        /// Id
        run: String,
    },
    /// Watch a run's timeline until it is over
    Watch {
        /// Id
        run: String,
        /// Give up watching after this many seconds (the run goes on)
        #[arg(long, value_name = "SECONDS")]
        timeout: Option<u64>,
    },
    /// Stop a run and undo what it did
    Cancel {
        /// Id
        run: String,
    },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    rackhand_common::pki::install_crypto();
    match run(Cli::parse()).await {
        Ok(text) if text.is_empty() => ExitCode::SUCCESS,
        Ok(text) => match writeln!(std::io::stdout(), "{text}") {
            // Whoever reads us, as `head` does, may stop reading.
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
            _ => ExitCode::SUCCESS,
        },
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Does what the command line says; the text goes to standard output.
async fn run(cli: Cli) -> anyhow::Result<String> {
    let Global { controller, token, ca, output } = cli.global;
    if let Command::Completion { shell } = cli.command {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "rackhand", &mut script);
        return Ok(String::from_utf8(script)?);
    }
    if let Command::Documentation { directory } = &cli.command {
        use clap_complete::Shell;
        clap_mangen::generate_to(Cli::command(), directory)?;
        for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
            clap_complete::generate_to(shell, &mut Cli::command(), "rackhand", directory)?;
        }
        return Ok(String::new());
    }
    if let Command::Audit(AuditCommand::Verify { anchor, file: Some(file) }) = &cli.command {
        return audit::verify_file(file, *anchor);
    }
    if let Command::Login = cli.command {
        return login(controller, token, ca).await;
    }
    let client = Client::new(Context::resolve(Overrides { controller, token, ca })?)?;
    match cli.command {
        Command::Login | Command::Completion { .. } | Command::Documentation { .. } => unreachable!("done above"),
        Command::Rack(command) => rack(&client, command, output).await,
        Command::Agent(command) => agent(&client, command, output).await,
        Command::Machine(command) => machine(&client, command, output).await,
        Command::Image(command) => image(&client, command, output).await,
        Command::Run(command) => runs(&client, command, output).await,
        Command::Audit(command) => audit::run(&client, command, output).await,
        Command::Ip(command) => addresses::ip(&client, command, output).await,
        Command::Pool(command) => addresses::pool(&client, command, output).await,
        Command::Aggregate(command) => addresses::aggregate(&client, command, output).await,
        Command::Vrf(command) => addresses::vrf(&client, command, output).await,
        Command::Organisation(command) => organisation::run(&client, command, output).await,
        Command::Project(command) => project::run(&client, command, output).await,
        Command::Site(command) => site::run(&client, command, output).await,
        Command::Person(command) => person::run(&client, command, output).await,
        Command::Role(command) => role::run(&client, command, output).await,
        Command::Token(command) => token::run(&client, command, output).await,
    }
}

async fn login(controller: Option<String>, token: Option<String>, ca: Option<PathBuf>) -> anyhow::Result<String> {
    let controller = controller.context("say which controller: --controller https://HOST:8443")?;
    let token = match token {
        Some(token) => token,
        None => {
            if std::io::stdin().is_terminal() {
                let _ = write!(std::io::stderr(), "Token: ");
            }
            let mut token = String::new();
            match std::io::stdin().is_terminal() {
                true => std::io::stdin().read_line(&mut token)?,
                false => std::io::stdin().take(1024).read_to_string(&mut token)?,
            };
            token
        }
    };
    let context = Context::given(&controller, token.trim().into(), ca)?;
    let who = Client::new(context.clone())?.ask(Method::GET, "/v1/whoami", None).await?;
    let path = context.save()?;
    let word = |field: &str| who.get(field).and_then(Value::as_str).unwrap_or("?").to_owned();
    Ok(format!(
        "logged in to {} (version {}) as `{}`; saved in {}",
        context.controller,
        word("version"),
        word("name"),
        path.display()
    ))
}

/// The API's JSON, or what people see of it.
fn print<T: serde::de::DeserializeOwned>(
    output: Output,
    value: Value,
    text: impl FnOnce(T) -> String,
) -> anyhow::Result<String> {
    match output {
        Output::Json => Ok(serde_json::to_string_pretty(&value)?),
        Output::Table => Ok(text(view(value)?)),
    }
}

async fn rack(client: &Client, command: RackCommand, output: Output) -> anyhow::Result<String> {
    match command {
        RackCommand::List => print(output, client.list("/v1/racks").await?.into(), |racks: Vec<_>| show::racks(&racks)),
        RackCommand::Create { name, node, delegated, gateway, dns } => {
            let (first, last) = delegated.split_once('-').context("--delegated wants two addresses: FIRST-LAST")?;
            let network =
                json!({"node": node, "delegated": [first.trim(), last.trim()], "gateway": gateway, "dns": dns});
            let rack = client.post("/v1/racks", json!({"name": name, "network": network})).await?;
            print(output, rack, |rack: views::Rack| {
                format!("rack {} is there; next: rackhand agent enrol --rack {}", rack.name, rack.name)
            })
        }
    }
}

async fn agent(client: &Client, command: AgentCommand, output: Output) -> anyhow::Result<String> {
    match command {
        AgentCommand::List => {
            print(output, client.list("/v1/agents").await?.into(), |agents: Vec<_>| show::agents(&agents))
        }
        AgentCommand::Enrol { rack, minutes, source } => {
            let path = format!("/v1/racks/{rack}/enrolment-codes");
            let code = client.post(&path, json!({"minutes": minutes, "source": source})).await?;
            if output == Output::Table {
                let expires = view::<Code>(code.clone())?.expires;
                let _ =
                    writeln!(std::io::stderr(), "Run this on the rack's node, once, before {}:", show::second(expires));
            }
            print(output, code, |code: Code| code.command)
        }
        AgentCommand::Replace { agent, minutes, source, yes } => {
            if !yes {
                confirm(&format!(
                    "The node of {agent} is given up for good; a new one has to be enrolled in its place."
                ))?;
            }
            let made = client
                .post(&format!("/v1/agents/{agent}/replace"), json!({"minutes": minutes, "source": source}))
                .await?;
            if output == Output::Table {
                let _ = write!(std::io::stderr(), "{}", show::replacement(&view(made.clone())?));
            }
            print(output, made, |code: Code| code.command)
        }
        AgentCommand::Revoke { agent, yes } => {
            if !yes {
                confirm(&format!(
                    "Agent {agent} is cut off for good; its rack gets no commands until a node is enrolled again."
                ))?;
            }
            let revoked = client.post(&format!("/v1/agents/{agent}/revoke"), json!({})).await?;
            print(output, revoked, |agent: views::Agent| {
                format!("agent {} is revoked; next: rackhand agent enrol --rack {}", agent.id, agent.rack)
            })
        }
    }
}

/// Lets a person think again; a program has to say `--yes`.
fn confirm(what: &str) -> anyhow::Result<()> {
    anyhow::ensure!(std::io::stdin().is_terminal(), "{what} Say --yes if that is meant.");
    let _ = write!(std::io::stderr(), "{what} Go on? [y/N] ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    anyhow::ensure!(matches!(answer.trim(), "y" | "Y" | "yes"), "nothing was changed");
    Ok(())
}

async fn machine(client: &Client, command: MachineCommand, output: Output) -> anyhow::Result<String> {
    match command {
        MachineCommand::List { filter } => {
            let found = client.list_with("/v1/machines", filter.query()).await?;
            print(output, found.into(), |machines: Vec<_>| show::machines(&machines))
        }
        MachineCommand::Show { machine } => {
            let value = client.ask(Method::GET, &format!("/v1/machines/{machine}"), None).await?;
            print(output, value, |machine| show::machine(&machine))
        }
        MachineCommand::Adopt { machine, rename, accept } => {
            let body = json!({
                "name": rename, "accept_data": accept.accept_data, "accept_parts": accept.accept_parts,
            });
            let value = client.post(&format!("/v1/machines/{machine}/adopt"), body).await?;
            print(output, value, |machine| show::machine(&machine))
        }
        MachineCommand::ReplacePart { machine, accept } => {
            let body = json!({"accept_data": accept.accept_data, "accept_parts": accept.accept_parts});
            let value = client.post(&format!("/v1/machines/{machine}/replace-part"), body).await?;
            print(output, value, |machine| show::machine(&machine))
        }
        MachineCommand::Merge { machine, into } => {
            let value = client.post(&format!("/v1/machines/{into}/merge"), json!({"from": machine})).await?;
            print(output, value, |machine| show::machine(&machine))
        }
        MachineCommand::Forget { machine } => {
            client.ask(Method::DELETE, &format!("/v1/machines/{machine}"), None).await?;
            Ok(format!("machine {machine} is forgotten"))
        }
        MachineCommand::Deploy { machine, image, hostname, ssh_keys, user_data, disk, wait } => {
            let body = json!({
                "image": image,
                "hostname": hostname,
                "ssh_keys": keys(&ssh_keys)?,
                "user_data": user_data.as_deref().map(read).transpose()?,
                "disk": disk,
            });
            started(client, client.post(&format!("/v1/machines/{machine}/deploy"), body).await?, &wait, output).await
        }
        MachineCommand::Release { machine, wait } => {
            let run = client.post(&format!("/v1/machines/{machine}/release"), json!({})).await?;
            started(client, run, &wait, output).await
        }
        MachineCommand::Power { machine, action, wait } => {
            let action = match action {
                PowerAction::On => "on",
                PowerAction::Off => "off",
                PowerAction::Cycle => "cycle",
            };
            let run = client.post(&format!("/v1/machines/{machine}/power"), json!({"action": action})).await?;
            started(client, run, &wait, output).await
        }
        MachineCommand::Rename { machine, name } => {
            let path = format!("/v1/machines/{machine}");
            let value = client.ask(Method::PATCH, &path, Some(json!({"name": name}))).await?;
            print(output, value, |machine| show::machine(&machine))
        }
        MachineCommand::Timeline { machine } => {
            let found: Machine = client.get(&format!("/v1/machines/{machine}")).await?;
            let events = client.list(&format!("/v1/events?machine={}", found.id)).await?;
            print(output, events.into(), |events: Vec<Event>| follow::timeline(&events))
        }
    }
}

async fn image(client: &Client, command: ImageCommand, output: Output) -> anyhow::Result<String> {
    match command {
        ImageCommand::List => {
            print(output, client.list("/v1/images").await?.into(), |images: Vec<_>| show::images(&images))
        }
        ImageCommand::Show { image } => {
            let value = client.ask(Method::GET, &format!("/v1/images/{image}"), None).await?;
            print(output, value, |image| show::image(&image))
        }
        ImageCommand::Delete { image } => {
            client.ask(Method::DELETE, &format!("/v1/images/{image}"), None).await?;
            Ok(format!("image {image} is deleted"))
        }
        ImageCommand::Import { file, name, settings, firmware, wait } => {
            let name = match name {
                Some(name) => name,
                None => file.file_stem().and_then(|stem| stem.to_str()).context("say its --name")?.to_lowercase(),
            };
            let mut path = format!("/v1/images/{name}?settings={settings}");
            if !firmware.is_empty() {
                path = format!("{path}&firmware={}", firmware.join(","));
            }
            let quiet = output == Output::Json;
            let sent: Image = follow::upload(client, &path, &file, quiet).await?;
            if wait.wait {
                follow::import(client, &sent.id, wait.timeout.map(Duration::from_secs), quiet).await?;
            }
            let value = client.ask(Method::GET, &format!("/v1/images/{}", sent.id), None).await?;
            print(output, value, |image| show::image(&image))
        }
    }
}

async fn runs(client: &Client, command: RunCommand, output: Output) -> anyhow::Result<String> {
    match command {
        RunCommand::List { machine } => {
            let path = machine.map_or("/v1/runs".into(), |machine| format!("/v1/runs?machine={machine}"));
            print(output, client.list(&path).await?.into(), |runs: Vec<_>| show::runs(&runs))
        }
        RunCommand::Show { run } => {
            let value = client.ask(Method::GET, &format!("/v1/runs/{run}"), None).await?;
            print(output, value, |run| show::run(&run))
        }
        RunCommand::Watch { run, timeout } => {
            follow::run(client, &run, timeout.map(Duration::from_secs), output == Output::Json).await?;
            let value = client.ask(Method::GET, &format!("/v1/runs/{run}"), None).await?;
            print(output, value, |run| show::run(&run))
        }
        RunCommand::Cancel { run } => {
            let value = client.post(&format!("/v1/runs/{run}/cancel"), json!({})).await?;
            print(output, value, |run| show::run(&run))
        }
    }
}

/// What to print of a run that was just started: at once, or when it is over.
async fn started(client: &Client, run: Value, wait: &Wait, output: Output) -> anyhow::Result<String> {
    let id = view::<views::Run>(run.clone())?.id;
    if !wait.wait {
        return print(output, run, |run: views::Run| {
            format!("{} has begun; follow it: rackhand run watch {}", run.kind, run.id)
        });
    }
    let ended = follow::run(client, &id, wait.timeout.map(Duration::from_secs), output == Output::Json).await?;
    let machine = client.ask(Method::GET, &format!("/v1/machines/{}", ended.machine), None).await?;
    match output {
        Output::Json => {
            Ok(serde_json::to_string_pretty(&client.ask(Method::GET, &format!("/v1/runs/{id}"), None).await?)?)
        }
        Output::Table => Ok(show::machines(&[view(machine)?])),
    }
}

fn read(path: &std::path::Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Public keys, one a line, as `authorized_keys` has them.
fn keys(paths: &[PathBuf]) -> anyhow::Result<Vec<String>> {
    let mut keys = Vec::new();
    for path in paths {
        let text = read(path)?;
        if text.contains("PRIVATE KEY") {
            anyhow::bail!("{} is a private key; give the public one, which ends in .pub", path.display());
        }
        keys.extend(
            text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).map(Into::into),
        );
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn help(path: &[&str]) -> String {
        let mut command = Cli::command();
        command.build();
        let found = path.iter().fold(&mut command, |command, name| command.find_subcommand_mut(name).unwrap());
        let help = found.clone().term_width(100).render_long_help().to_string();
        help.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_teaches_the_way_to_a_first_machine() {
        expect![[r#"
            Bare-metal provisioning: from power-off to a login

            Usage: rackhand [OPTIONS] <COMMAND>

            Commands:
              login         Save which controller to talk to, after trying the token
              rack          Racks: a provisioning network with one node and its machines
              agent         Agents: the nodes' registrations
              machine       Machines: adopt, deploy, release, power
              image         Images: operating systems to deploy
              run           Runs: work in progress on machines, and work that has ended
              audit         Audit: who changed what, and whether the record of it is whole
              ip            Addresses: claim, release, who has what and who had it
              pool          Pools: addresses to claim from
              aggregate     Aggregates: address space that pools are made of
              vrf           VRFs: spaces in which an address is one place
              organisation  Organisations: customers, and the provider itself
              project       Projects: what machines and addresses are given to
              site          Sites: where racks stand
              person        People: who logs in; your own password and second factor
              role          Roles: what each may do, and who has which
              token         Tokens: for programs, and for people who work with them
              completion    Print a completion script for your shell
              help          Print this message or the help of the given subcommand(s)

            Options:
                  --controller <URL>
                      The controller's address; otherwise the one of the last login

                      [env: RACKHAND_CONTROLLER=]

                  --token <TOKEN>
                      The token; better given in the environment, where other users do not see it

                      [env: RACKHAND_TOKEN]

                  --ca <FILE>
                      File with the controller's CA certificate (ca.pem)

                      [env: RACKHAND_CA=]

              -o, --output <OUTPUT>
                      What to print: tables for people or the API's JSON for programs

                      [default: table]
                      [possible values: table, json]

              -h, --help
                      Print help

              -V, --version
                      Print version

            A first machine, from nothing:

              rackhand login --controller https://rackhand.example:8443 --ca ca.pem --token rh_…
              rackhand rack create lab --node 10.77.0.1/24 --delegated 10.77.0.100-10.77.0.199
              rackhand agent enrol --rack lab           # prints the line to run on the rack's node
              rackhand image import debian-12.qcow2 --wait   # the name is taken from the file
              rackhand machine list                     # power a machine on; it appears
              rackhand machine adopt NAME --rename web-1
              rackhand machine deploy web-1 --image debian-12 --ssh-key ~/.ssh/id_ed25519.pub --wait
              ssh root@ADDRESS

            Exit codes: 0 done, 1 failed or refused, 2 wrong command line.
        "#]]
        .assert_eq(&help(&[]));
    }

    #[test]
    fn help_of_deploy_shows_examples() {
        expect![[r#"
            Install an operating system

            Usage: rackhand machine deploy [OPTIONS] --image <IMAGE> <MACHINE>

            Arguments:
              <MACHINE>
                      Name or id

            Options:
                  --controller <URL>
                      The controller's address; otherwise the one of the last login

                      [env: RACKHAND_CONTROLLER=]

                  --image <IMAGE>
                      The image's name or id

                  --hostname <NAME>
                      Host name; otherwise the machine's name

                  --token <TOKEN>
                      The token; better given in the environment, where other users do not see it

                      [env: RACKHAND_TOKEN]

                  --ca <FILE>
                      File with the controller's CA certificate (ca.pem)

                      [env: RACKHAND_CA=]

                  --ssh-key <FILE>
                      File with public keys that may log in as root and as the first user; may be repeated

              -o, --output <OUTPUT>
                      What to print: tables for people or the API's JSON for programs

                      [default: table]
                      [possible values: table, json]

                  --user-data <FILE>
                      File with cloud-init user data

                  --disk <IDENTITY>
                      Identity of the disk to install on; otherwise the smallest that is large enough

                  --wait
                      Stay until it is over and show the timeline as it happens

                  --timeout <SECONDS>
                      With --wait: give up watching after this many seconds (the run goes on)

              -h, --help
                      Print help

              rackhand machine deploy web-1 --image debian-12 --ssh-key ~/.ssh/id_ed25519.pub --wait
              rackhand machine deploy web-1 --image debian-12 --ssh-key key.pub --user-data cloud-config.yaml
        "#]]
        .assert_eq(&help(&["machine", "deploy"]));
    }

    #[test]
    fn a_private_key_is_never_sent() {
        let directory = std::env::temp_dir().join(format!("rackhand-cli-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let public = directory.join("id.pub");
        std::fs::write(&public, "# mine\nssh-ed25519 AAAA a\n\nssh-rsa BBBB b\n").unwrap();
        assert_eq!(keys(std::slice::from_ref(&public)).unwrap(), ["ssh-ed25519 AAAA a", "ssh-rsa BBBB b"]);
        let private = directory.join("id");
        std::fs::write(&private, "-----BEGIN OPENSSH PRIVATE KEY-----\n").unwrap();
        assert!(keys(&[private]).is_err());
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
