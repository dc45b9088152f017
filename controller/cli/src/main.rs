//! The operator's command-line tool: talks to one controller, shows tables and timelines.
//!
//! Exit codes: 0 done, 1 failed or refused, 2 the command line is wrong. What was asked for
//! goes to standard output, progress and problems to standard error.

mod adoption;
mod agent;
mod aggregate;
mod apply;
mod audit;
mod baseline;
mod bmc;
mod browser;
mod client;
mod complete;
mod console;
mod context;
mod declared;
mod erasure;
mod export;
mod firmware;
mod follow;
mod grant;
mod hardware;
mod health;
mod image;
mod ip;
mod live;
mod login;
mod machine;
mod manifest;
mod moment;
mod nearest;
mod organisation;
mod os;
mod output;
mod person;
mod plan;
mod pool;
mod project;
mod rack;
mod raw;
#[cfg(test)]
mod reference;
mod report;
mod role;
mod run;
mod show;
mod site;
mod token;
mod views;
mod vrf;
mod watch;

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use anyhow::ensure;
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;

use crate::{
    audit::AuditCommand,
    client::Client,
    context::{Context, Overrides, Saved},
    erasure::ErasureCommand,
    output::Output,
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
    /// Which of the controllers you are logged in to; otherwise the one in use
    #[arg(long, global = true, env = "RACKHAND_CONTEXT", value_name = "NAME")]
    context: Option<String>,
    /// The controller's address; otherwise the context's
    #[arg(long, global = true, env = "RACKHAND_CONTROLLER", value_name = "URL")]
    controller: Option<String>,
    /// The token; better given in the environment, where other users do not see it
    #[arg(long, global = true, env = "RACKHAND_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// File with the controller's CA certificate (ca.pem)
    #[arg(long, global = true, env = "RACKHAND_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Have the controller try it: refused or answered as it would be, and nothing is done
    #[arg(long, global = true)]
    dry_run: bool,
    /// What to print
    #[arg(long, short, global = true, default_value = "table", value_name = "FORM")]
    output: Output,
}

#[derive(Subcommand)]
enum Command {
    /// Log in, and save which controller to talk to
    #[command(after_help = "With a name and a password, in a browser at who vouches for you, or with a token:

  rackhand login --controller https://rackhand.example:8443 --ca ca.pem --person ada
  rackhand login --controller https://rackhand.example:8443 --ca ca.pem --oidc
  rackhand login --controller https://rackhand.example:8443 --ca ca.pem < token

A password is asked for, or read from standard input or --password-file; a token is read from
standard input. A login is good for twelve hours; then say --person or --oidc again, and not where.

It is saved in ~/.config/rackhand/config.toml, readable by you alone, and is in use until you log in
elsewhere or say `rackhand context use`. Several are told apart by name:

  rackhand login --context lab --controller https://lab.example:8443 --ca lab.pem < token")]
    Login(login::How),
    /// End a login: its token is no longer good, nor kept here
    #[command(after_help = "  rackhand logout
  rackhand --context lab logout

A token that was made by hand is forgotten here and good still. The controller's address is kept.")]
    Logout,
    /// Contexts: the controllers you are logged in to
    #[command(subcommand)]
    Context(context::ContextCommand),
    /// Racks: a provisioning network with one node and its machines
    #[command(subcommand)]
    Rack(rack::RackCommand),
    /// Agents: the nodes' registrations
    #[command(subcommand)]
    Agent(agent::AgentCommand),
    /// Machines: adopt, deploy, release, power
    #[command(subcommand)]
    Machine(machine::MachineCommand),
    /// Images: operating systems to deploy
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// Firmware: what is imported of it, and having it installed
    #[command(subcommand)]
    Firmware(firmware::FirmwareCommand),
    /// Plans: classes of machines by what is in them
    #[command(subcommand)]
    Plan(plan::PlanCommand),
    /// Operating systems: what the catalogue knows of them
    #[command(subcommand)]
    Os(os::OsCommand),
    /// Runs: work in progress on machines, and work that has ended
    #[command(subcommand)]
    Run(run::RunCommand),
    /// Erasures: what became of disks when machines were taken back, and certificates of it
    #[command(subcommand)]
    Erasure(erasure::ErasureCommand),
    /// Audit: who changed what, and whether the record of it is whole
    #[command(subcommand)]
    Audit(AuditCommand),
    /// BMCs: how machines' management controllers are reached, and what they tell
    #[command(subcommand)]
    Bmc(bmc::BmcCommand),
    /// Console: a machine's serial line, and what was recorded of it
    #[command(after_help = "  rackhand console web-1
  rackhand console web-1 --watch            # types nothing
  rackhand console web-1 --take             # takes the keyboard, whoever has it
  rackhand console web-1 --log | less -R    # what was recorded during its latest run
  rackhand console web-1 --log --run RUN

What was printed lately comes first. Whoever types while nobody has the keyboard gets it. At the
beginning of a line `~.` leaves, `~w` takes the keyboard, `~g` gives it up, `~B` sends a break,
`~?` tells these. It is recorded who opened a console and who had the keyboard, not what was typed.")]
    Console(console::Console),
    /// Addresses: claim, release, who has what and who had it
    #[command(subcommand)]
    Ip(ip::IpCommand),
    /// Pools: addresses to claim from
    #[command(subcommand)]
    Pool(pool::PoolCommand),
    /// Reports: what others ask for
    #[command(subcommand)]
    Report(report::ReportCommand),
    /// Aggregates: address space that pools are made of
    #[command(subcommand)]
    Aggregate(aggregate::AggregateCommand),
    /// VRFs: spaces in which an address is one place
    #[command(subcommand)]
    Vrf(vrf::VrfCommand),
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
    /// Make the controller have what files say, after showing what differs
    #[command(after_help = "  rackhand apply -f site.yaml --dry-run     # only shows what would be done
  rackhand apply -f racks/ -f people.toml
  rackhand export | rackhand apply -f -

A document names kinds, and each has one object or a list of them:

  site: {name: fra1}
  ---
  rack:
    name: lab
    site: fra1
    network: {node: 10.77.0.1/24, delegated: [10.77.0.100, 10.77.0.199]}

What a file leaves out stays as it is. An object that was changed by somebody else meanwhile is not
changed. What needs an object that failed is not tried, everything else is; the exit code is 1 then.")]
    Apply(apply::Apply),
    /// Print what the controller has in the form that `rackhand apply` takes
    #[command(after_help = "  rackhand export > all.yaml
  rackhand export plan pool
  rackhand export --output json")]
    Export(export::Export),
    /// Print a completion script for your shell
    #[command(after_help = "  rackhand completion bash > /etc/bash_completion.d/rackhand")]
    Completion {
        /// Which shell
        shell: Shell,
    },
    /// Print the names that fit at the cursor: asked by the completion scripts
    #[command(hide = true)]
    Complete {
        /// What was typed behind `rackhand`
        #[arg(last = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Write man pages and shells' completions into a directory: for packages
    #[command(hide = true)]
    Documentation {
        /// The directory
        directory: PathBuf,
    },
}

fn main() -> ExitCode {
    rackhand_common::pki::install_crypto();
    let cli = Cli::parse();
    // Names come within a second: with a runtime of its own.
    if let Command::Complete { words } = &cli.command {
        return print(&complete::names(&mut Cli::command(), words).join("\n"));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(dispatch(cli))) {
        Ok(text) => print(&text),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn print(text: &str) -> ExitCode {
    if text.is_empty() {
        return ExitCode::SUCCESS;
    }
    match writeln!(std::io::stdout(), "{text}") {
        // Whoever reads us, as `head` does, may stop reading.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    }
}

/// Does what the command line says; the text goes to standard output.
async fn dispatch(cli: Cli) -> anyhow::Result<String> {
    let Global { context, controller, token, ca, dry_run, output } = cli.global;
    if let Command::Completion { shell } = cli.command {
        return complete::script(shell, &mut Cli::command());
    }
    if let Command::Documentation { directory } = &cli.command {
        clap_mangen::generate_to(Cli::command(), directory)?;
        for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
            let path = clap_complete::generate_to(shell, &mut Cli::command(), "rackhand", directory)?;
            std::fs::write(path, complete::script(shell, &mut Cli::command())?)?;
        }
        return Ok(String::new());
    }
    if let Command::Audit(AuditCommand::Verify { anchor, file: Some(file) }) = &cli.command {
        return audit::verify_file(file, *anchor);
    }
    if let Command::Erasure(ErasureCommand::Verify { file, root }) = &cli.command {
        return erasure::verify(file, root.as_deref(), Overrides { context, controller, token, ca });
    }
    ensure!(
        !dry_run || !matches!(cli.command, Command::Login(_) | Command::Logout | Command::Context(_)),
        "this cannot be tried: it changes nothing at a controller, only what is saved here"
    );
    if let Command::Login(how) = cli.command {
        return login::run(how, context, controller, token, ca).await;
    }
    if let Command::Logout = cli.command {
        return login::end(&Saved::of_this_user()?, context, output).await;
    }
    if let Command::Context(command) = cli.command {
        return context::run(&Saved::of_this_user()?, command, output);
    }
    let client = Client::new(Context::resolve(Overrides { context, controller, token, ca })?)?.dry(dry_run);
    let said = match cli.command {
        Command::Login(_)
        | Command::Logout
        | Command::Context(_)
        | Command::Complete { .. }
        | Command::Completion { .. }
        | Command::Documentation { .. } => {
            unreachable!("done above")
        }
        Command::Rack(command) => rack::run(&client, command, output).await,
        Command::Agent(command) => agent::run(&client, command, output).await,
        Command::Machine(command) => machine::run(&client, command, output).await,
        Command::Image(command) => image::run(&client, command, output).await,
        Command::Firmware(command) => firmware::run(&client, command, output).await,
        Command::Plan(command) => plan::run(&client, command, output).await,
        Command::Os(command) => os::run(&client, command, output).await,
        Command::Run(command) => run::run(&client, command, output).await,
        Command::Erasure(command) => erasure::run(&client, command, output).await,
        Command::Audit(command) => audit::run(&client, command, output).await,
        Command::Ip(command) => ip::run(&client, command, output).await,
        Command::Pool(command) => pool::run(&client, command, output).await,
        Command::Report(command) => report::run(&client, command, output).await,
        Command::Bmc(command) => bmc::run(&client, command, output).await,
        Command::Console(command) => console::run(&client, command, output).await,
        Command::Aggregate(command) => aggregate::run(&client, command, output).await,
        Command::Vrf(command) => vrf::run(&client, command, output).await,
        Command::Organisation(command) => organisation::run(&client, command, output).await,
        Command::Project(command) => project::run(&client, command, output).await,
        Command::Site(command) => site::run(&client, command, output).await,
        Command::Person(command) => person::run(&client, command, output).await,
        Command::Role(command) => role::run(&client, command, output).await,
        Command::Token(command) => token::run(&client, command, output).await,
        Command::Apply(command) => apply::run(&client, command, output).await,
        Command::Export(command) => export::run(&client, command, output).await,
    }?;
    if dry_run {
        let _ = writeln!(std::io::stderr(), "dry run: nothing of this was done");
    }
    Ok(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    /// A command's own argument that is called as one of the program's would be given that one's value.
    #[test]
    fn no_command_has_an_argument_that_is_called_as_the_programs_own() {
        fn walk(command: &clap::Command, globals: &[clap::Id], taken: &mut Vec<String>) {
            for part in command.get_subcommands() {
                let own = part.get_arguments().filter(|arg| globals.contains(arg.get_id()));
                taken.extend(own.map(|arg| format!("{} {}", part.get_name(), arg.get_id())));
                walk(part, globals, taken);
            }
        }
        let (program, mut taken) = (Cli::command(), Vec::new());
        let globals = program.get_arguments().filter(|arg| arg.is_global_set()).map(|arg| arg.get_id().clone());
        let globals: Vec<_> = globals.collect();
        assert!(globals.iter().any(|id| id == "token"), "{globals:?}");
        walk(&program, &globals, &mut taken);
        assert!(taken.is_empty(), "{taken:?}");
    }
}
