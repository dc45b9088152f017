//! `rackhand-controller`: made once, then served.

use std::{
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use rackhand_common::{pki::install_crypto, time::Clock as _};
use rackhand_controller::{
    backup,
    clock::SystemClock,
    controller::{self, Config, File, Seams, people, rotation, sealing},
    doctor,
};
use rackhand_daemon::{Format, Log, Signals, memory};

/// The controller: the operators' API, the database, the racks' agents.
///
/// A new controller is made once and then served, by systemd as a rule:
///
///   rackhand-controller init --name rackhand.example.net   (prints the first administrator's token, once)
///   systemctl enable --now rackhand-controller
///
/// Operators then use the program `rackhand`, from anywhere that reaches port 8443.
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
    /// Makes the data directory, the certificate authority and the first administrator's token.
    ///
    /// Prints the token once: it is kept as a hash only. Also writes the configuration file from
    /// the flags when there is none. Interrupted, it can be repeated; once a token was printed, it
    /// refuses to run again and changes nothing. Run it as root or as the user the controller runs
    /// as: what root writes belongs to the data directory's owner.
    Init {
        #[command(flatten)]
        place: Place,
    },
    /// Runs the controller until SIGTERM or SIGINT.
    ///
    /// What stands in the configuration file (flags win over it):
    ///
    ///   data = "/var/lib/rackhand/controller"
    ///   names = ["rackhand.example.net", "192.0.2.10"]   # in its certificate; agents are told the first
    ///   log = "info"                           # or by module: info,rackhand_controller=debug
    ///
    ///   [api]
    ///   listen = "0.0.0.0:8443"                # HTTPS, TCP
    ///   requests_per_second = 100              # of one token
    ///   certificate = "/etc/ssl/rackhand.pem"  # what operators are shown in place of our own,
    ///   key = "/etc/ssl/private/rackhand.key"  # read again at each reload; or, obtained and renewed:
    ///   [api.acme]                             # port 443 of `names` must reach api.listen
    ///   directory = "https://acme-v02.api.letsencrypt.org/directory"
    ///   contact = ["mailto:ops@example.net"]
    ///
    ///   [agents]
    ///   listen = "0.0.0.0:4433"                # QUIC, UDP
    ///   address = "rackhand.example.net:4433"  # what new agents are told
    ///
    ///   [images]
    ///   limit = 68719476736                    # bytes of the largest image
    ///   import = "/srv/images"                 # files on this host that may be imported
    ///   sources = ["10.0.0.0/8"]               # private prefixes and hosts that images may be fetched from
    ///
    ///   [oidc]                                 # people log in at a provider too (OpenID Connect)
    ///   issuer = "https://login.example.net"
    ///   client_id = "rackhand"
    ///   secret_file = "/etc/rackhand/oidc-secret"   # none for a public client
    ///   scopes = ["email", "profile"]
    ///   name_claim = "email"
    ///   groups_claim = "groups"
    ///   [[oidc.roles]]                         # everybody in this group; repeat for more
    ///   group = "noc"
    ///   role = "operator"
    ///   scope = "everything"                   # or: organisation, project, site, rack and a name
    ///
    /// At SIGHUP it takes over all of it but `data` and what it listens on, and nobody is cut off.
    ///
    /// `/healthz`, `/readyz` and `/metrics` are answered on the API's port without a token.
    #[command(verbatim_doc_comment)]
    Serve {
        #[command(flatten)]
        place: Place,
        /// Where HTTPS is served (TCP); `api.listen`.
        #[arg(long, value_name = "ADDRESS:PORT", env = "RACKHAND_CONTROLLER_API_LISTEN")]
        api_listen: Option<SocketAddr>,
        /// Where agents connect to (UDP); `agents.listen`.
        #[arg(long, value_name = "ADDRESS:PORT", env = "RACKHAND_CONTROLLER_AGENTS_LISTEN")]
        agents_listen: Option<SocketAddr>,
        /// What new agents are told; `agents.address`.
        #[arg(long, value_name = "HOST:PORT", env = "RACKHAND_CONTROLLER_AGENTS_ADDRESS")]
        agents_address: Option<String>,
    },
    /// Replaces the root of trust, in steps that shut no rack out.
    ///
    /// Two roots are believed as a rule, and one of them issues. A rotation:
    ///
    ///   ca rotate   certificates come from the newer root; agents renew within a day
    ///   ca retire   the older root is forgotten and its key destroyed
    ///   ca next     a new root is added for the next rotation; agents learn it when they connect
    ///
    /// Stop the controller for each step and start it again; racks do not notice. A step that an
    /// agent has not followed up to is refused and names the agent.
    #[command(verbatim_doc_comment)]
    Ca {
        /// What to do.
        #[arg(value_enum)]
        step: Step,
        #[command(flatten)]
        place: Place,
    },
    /// Keeps the key that secrets in the database are sealed with.
    #[command(subcommand)]
    Seal(SealCommand),
    /// Writes the database, the keys and a list of the images' objects into one file, also while
    /// the controller runs.
    ///
    /// The file is as secret as the data directory. Images themselves are not in it: keep the
    /// objects' directory another way, or import the images again.
    Backup {
        /// The file; one that is there is replaced once the new one is complete.
        file: PathBuf,
        #[command(flatten)]
        place: Place,
    },
    /// Puts a backup in place of this controller's data; the controller must not be running.
    ///
    /// Afterwards nothing is allocated, erased or switched in a rack before its agent has
    /// connected and reported what was done since the backup. Runs that were in progress are
    /// ended as failed.
    Restore {
        /// The file that `backup` wrote.
        file: PathBuf,
        /// Replace data that is there; it is kept beside, in `replaced-TIME`.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        place: Place,
    },
    /// Helps a person whom nobody else can help, from this host.
    #[command(subcommand)]
    Person(PersonCommand),
    /// Looks at this controller's installation and says what is wrong and what to do about it.
    ///
    /// Run it as root. The exit status is 0 when all is well, 1 when something needs a look, 2
    /// when something does not work.
    Doctor {
        #[command(flatten)]
        place: Place,
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

#[derive(Debug, Subcommand)]
enum SealCommand {
    /// Replaces that key (`pki/seal.key`) by a new one; the controller must not be running.
    ///
    /// Every sealed secret (user data of deploys under way, second factors, kept answers) is opened
    /// with the old key and sealed with the new one, then the old key is destroyed. Racks do not
    /// notice. Interrupted at any moment it loses nothing: run it again, or start the controller, which
    /// finishes it. Do this when a copy of the key or of a backup may be in wrong hands, and whenever
    /// somebody leaves who could read it. Backups made before hold the old key and can be restored
    /// with it; remove those that were not to be read.
    Rotate {
        #[command(flatten)]
        place: Place,
    },
}

#[derive(Debug, Subcommand)]
enum PersonCommand {
    /// Sets a person's password: the last administrator lost theirs, or their only token.
    ///
    /// The new password is one line of standard input. The person's logins end, tokens that they made
    /// do not. The controller may run; what was done is in the audit record. As long as somebody else
    /// can log in, `rackhand person reset` does the same from anywhere.
    Password {
        /// Name or id; `init` made `admin`.
        name: String,
        /// Forget their second factor too.
        #[arg(long)]
        forget_second_factor: bool,
        #[command(flatten)]
        place: Place,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Step {
    /// Shows the roots, and how far each agent has followed. The controller may run.
    Status,
    /// Adds a root to the trust bundle.
    Next,
    /// Issues from the newest root.
    Rotate,
    /// Forgets the older root and destroys its key.
    Retire,
}

#[derive(Debug, Args)]
struct Place {
    /// The configuration file.
    #[arg(long, env = "RACKHAND_CONTROLLER_CONFIG", default_value = "/etc/rackhand/controller.toml")]
    config: PathBuf,
    /// Directory of everything that must survive a restart; `data` [default: /var/lib/rackhand/controller].
    #[arg(long, value_name = "DIR", env = "RACKHAND_CONTROLLER_DATA")]
    data: Option<PathBuf>,
    /// A DNS name or address of this controller, the one that agents use first; repeat for more; `names`.
    #[arg(long = "name", value_name = "NAME", env = "RACKHAND_CONTROLLER_NAMES", value_delimiter = ',')]
    names: Vec<String>,
}

impl Place {
    /// The file, if there is one, with the flags over it.
    fn file(&self) -> Result<(File, bool)> {
        let read = File::read(&self.config)?;
        let exists = read.is_some();
        let mut file = read.unwrap_or_default();
        if self.data.is_some() {
            file.data.clone_from(&self.data);
        }
        if !self.names.is_empty() {
            file.names.clone_from(&self.names);
        }
        Ok((file, exists))
    }

    fn config(&self, file: File) -> Result<Config> {
        let place = || format!("{} and the flags", self.config.display());
        Config::try_from(file).map_err(anyhow::Error::msg).with_context(place)
    }
}

/// What `doctor` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

fn main() -> ExitCode {
    install_crypto();
    let arguments = Arguments::parse();
    match run(arguments.command, Log::begin(arguments.log)) {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "rackhand-controller: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(command: Command, log: Log) -> Result<ExitCode> {
    memory::close().context("cannot keep this process from leaving core dumps")?;
    let done = match command {
        Command::Doctor { place, output } => {
            let findings = match place.file().and_then(|(file, _)| place.config(file)) {
                Ok(config) => doctor::examine(&config, SystemClock::default().now().wall).await,
                Err(error) => doctor::unusable(&error),
            };
            return show(&findings, output);
        }
        Command::Init { place } => init(&place).await,
        Command::Serve { place, api_listen, agents_listen, agents_address } => {
            let signals = Signals::listen().context("cannot wait for signals")?;
            let load = move || {
                let (mut file, _) = place.file()?;
                file.api.listen = api_listen.or(file.api.listen);
                file.agents.listen = agents_listen.or(file.agents.listen);
                file.agents.address = agents_address.clone().or(file.agents.address);
                place.config(file)
            };
            let config = load()?;
            log.take(&config.log);
            let running = controller::start(config, Seams::default(), signals.shutdown.clone()).await?;
            tracing::info!(api = %running.api, agents = %running.agents, "ready");
            running.run(signals, load, log).await
        }
        Command::Ca { step, place } => {
            let (file, _) = place.file()?;
            let config = place.config(file)?;
            let text = match step {
                Step::Status => rotation::status(&config).await?,
                Step::Next => rotation::next(&config, SystemClock::default().now().wall).await?,
                Step::Rotate => rotation::rotate(&config).await?,
                Step::Retire => rotation::retire(&config).await?,
            };
            writeln!(std::io::stdout(), "{}", text.trim_end()).context("nothing can be printed")
        }
        Command::Seal(SealCommand::Rotate { place }) => {
            let (file, _) = place.file()?;
            let config = place.config(file)?;
            let said = sealing::rotate(&config, SystemClock::default().now().wall).await?;
            writeln!(std::io::stdout(), "{said}").context("nothing can be printed")
        }
        Command::Backup { file, place } => {
            let (written, _) = place.file()?;
            let config = place.config(written)?;
            let made = backup::backup(&config, &file, SystemClock::default().now().wall).await?;
            writeln!(
                std::io::stdout(),
                "{} holds the database and {} files of keys and certificates; {} objects of images are listed, not held.",
                file.display(),
                made.pki.len(),
                made.objects.len()
            )?;
            Ok(())
        }
        Command::Restore { file, force, place } => {
            let (written, _) = place.file()?;
            let config = place.config(written)?;
            let restored = backup::restore(&config, &file, force, SystemClock::default().now().wall).await?;
            write!(std::io::stdout(), "{restored}")?;
            Ok(())
        }
        Command::Person(PersonCommand::Password { name, forget_second_factor, place }) => {
            let (file, _) = place.file()?;
            let config = place.config(file)?;
            controller::become_owner(&config.data)?;
            let password = password()?;
            let now = SystemClock::default().now();
            people::set_password(&config, now, &name, &password, forget_second_factor).await?;
            writeln!(std::io::stdout(), "the password of {name} is set, and their logins have ended")?;
            Ok(())
        }
        Command::Documentation { directory } => {
            use clap_complete::Shell;
            clap_mangen::generate_to(Arguments::command(), &directory)?;
            for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
                clap_complete::generate_to(shell, &mut Arguments::command(), "rackhand-controller", &directory)?;
            }
            Ok(())
        }
    };
    done.map(|()| ExitCode::SUCCESS)
}

/// One line of standard input. On a terminal what is typed is not shown.
fn password() -> Result<String> {
    use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};
    let stdin = std::io::stdin();
    let shown = tcgetattr(&stdin).ok();
    if let Some(shown) = &shown {
        let mut hidden = shown.clone();
        hidden.local_flags.remove(LocalFlags::ECHO);
        tcsetattr(&stdin, SetArg::TCSANOW, &hidden).context("the terminal cannot be set")?;
        let _ = write!(std::io::stderr(), "New password: ");
    }
    let mut line = String::new();
    let read = stdin.read_line(&mut line);
    if let Some(shown) = &shown {
        tcsetattr(&stdin, SetArg::TCSANOW, shown).context("the terminal cannot be set")?;
        let _ = writeln!(std::io::stderr());
    }
    read.context("standard input cannot be read")?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

async fn init(place: &Place) -> Result<()> {
    let (file, exists) = place.file()?;
    if exists {
        let written = File::read(&place.config)?.unwrap_or_default();
        ensure!(
            (written.data, &written.names) == (file.data.clone(), &file.names),
            "{} exists and says otherwise than the flags; change it there, and run this without flags",
            place.config.display()
        );
    }
    let config = place.config(file)?;
    if !exists {
        controller::write_config(&place.config, place.data.as_deref(), &place.names)?;
    }
    controller::become_owner(&config.data)?;
    controller::init(&config, Seams::default(), |token, ca| tell(&config, token, ca, &place.config)).await
}

fn tell(config: &Config, token: &str, ca: &Path, file: &Path) -> Result<()> {
    let (url, ca, file) = (config.url(), ca.display(), file.display());
    let mut out = std::io::stdout().lock();
    write!(
        out,
        "The controller is made.\n\
         \n\
         Administrator's token, shown this once:\n\
         \n\
         \x20 {token}\n\
         \n\
         Next:\n\
         \n\
         \x20 1. Start it: systemctl enable --now rackhand-controller\n\
         \x20    or: rackhand-controller serve --config {file}\n\
         \x20 2. Copy {ca} to where you work, and there:\n\
         \x20      export RACKHAND_CONTROLLER={url}\n\
         \x20      export RACKHAND_CA=./ca.pem\n\
         \x20      export RACKHAND_TOKEN=<the token>\n\
         \x20      rackhand rack list\n\
         \x20 3. Your first rack: rackhand rack create --help\n"
    )
    .and_then(|()| out.flush())
    .context("the token cannot be printed")
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
