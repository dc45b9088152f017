//! The operator's command-line tool: talks to one controller, shows tables and timelines.
//!
//! Exit codes: 0 done, 1 failed or refused, 2 the command line is wrong. What was asked for
//! goes to standard output, progress and problems to standard error.

mod agent;
mod aggregate;
mod audit;
mod client;
mod context;
mod follow;
mod image;
mod ip;
mod login;
mod machine;
mod nearest;
mod output;
mod pool;
mod rack;
mod run;
mod show;
mod views;
mod vrf;
mod watch;

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use anyhow::ensure;
use clap::{Args, CommandFactory as _, Parser, Subcommand};

use crate::{
    audit::AuditCommand,
    client::Client,
    context::{Context, Overrides, Saved},
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
    /// Save which controller to talk to, after trying the token
    #[command(after_help = "Without --token the token is read from standard input:

  rackhand login --controller https://rackhand.example:8443 --ca ca.pem < token

It is saved in ~/.config/rackhand/config.toml, readable by you alone, and is in use until you log in
elsewhere or say `rackhand context use`. Several are told apart by name:

  rackhand login --context lab --controller https://lab.example:8443 --ca lab.pem < token")]
    Login,
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
    /// Runs: work in progress on machines, and work that has ended
    #[command(subcommand)]
    Run(run::RunCommand),
    /// Audit: who changed what, and whether the record of it is whole
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Addresses: claim, release, who has what and who had it
    #[command(subcommand)]
    Ip(ip::IpCommand),
    /// Pools: addresses to claim from
    #[command(subcommand)]
    Pool(pool::PoolCommand),
    /// Aggregates: address space that pools are made of
    #[command(subcommand)]
    Aggregate(aggregate::AggregateCommand),
    /// VRFs: spaces in which an address is one place
    #[command(subcommand)]
    Vrf(vrf::VrfCommand),
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

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    rackhand_common::pki::install_crypto();
    match dispatch(Cli::parse()).await {
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
async fn dispatch(cli: Cli) -> anyhow::Result<String> {
    let Global { context, controller, token, ca, dry_run, output } = cli.global;
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
    ensure!(
        !dry_run || !matches!(cli.command, Command::Login | Command::Context(_)),
        "this cannot be tried: it changes nothing at a controller, only what is saved here"
    );
    if let Command::Login = cli.command {
        return login::run(context, controller, token, ca).await;
    }
    if let Command::Context(command) = cli.command {
        return context::run(&Saved::of_this_user()?, command, output);
    }
    let client = Client::new(Context::resolve(Overrides { context, controller, token, ca })?)?.dry(dry_run);
    let said = match cli.command {
        Command::Login | Command::Context(_) | Command::Completion { .. } | Command::Documentation { .. } => {
            unreachable!("done above")
        }
        Command::Rack(command) => rack::run(&client, command, output).await,
        Command::Agent(command) => agent::run(&client, command, output).await,
        Command::Machine(command) => machine::run(&client, command, output).await,
        Command::Image(command) => image::run(&client, command, output).await,
        Command::Run(command) => run::run(&client, command, output).await,
        Command::Audit(command) => audit::run(&client, command, output).await,
        Command::Ip(command) => ip::run(&client, command, output).await,
        Command::Pool(command) => pool::run(&client, command, output).await,
        Command::Aggregate(command) => aggregate::run(&client, command, output).await,
        Command::Vrf(command) => vrf::run(&client, command, output).await,
    }?;
    if dry_run {
        let _ = writeln!(std::io::stderr(), "dry run: nothing of this was done");
    }
    Ok(said)
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
              login       Save which controller to talk to, after trying the token
              rack        Racks: a provisioning network with one node and its machines
              agent       Agents: the nodes' registrations
              machine     Machines: adopt, deploy, release, power
              image       Images: operating systems to deploy
              run         Runs: work in progress on machines, and work that has ended
              audit       Audit: who changed what, and whether the record of it is whole
              ip          Addresses: claim, release, who has what and who had it
              pool        Pools: addresses to claim from
              aggregate   Aggregates: address space that pools are made of
              vrf         VRFs: spaces in which an address is one place
              completion  Print a completion script for your shell
              help        Print this message or the help of the given subcommand(s)

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
}
