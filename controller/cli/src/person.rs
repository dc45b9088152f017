//! `rackhand person`: who logs in, and one's own password, second factor and SSH keys.

use std::{
    io::{BufRead as _, IsTerminal as _, Write as _},
    path::PathBuf,
};

use anyhow::Context as _;
use clap::Subcommand;
use jiff::Timestamp;
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    client::Client,
    login::unseen,
    output::{Output, done, print},
    show::{Table, or_dash, second, table},
    watch::{self, Told, Watch},
};

#[derive(Subcommand)]
pub(crate) enum PersonCommand {
    /// Add a person, who can do nothing before a role is granted to them
    #[command(after_help = "  rackhand person create ada --email ada@example.net --password < first-password
  rackhand role grant viewer ada --everything

With --password a first password is read from standard input, in one line of at least 12 characters.")]
    Create {
        /// The name they log in with
        name: String,
        /// Where mail reaches them
        #[arg(long, default_value = "")]
        email: String,
        /// Read a first password from standard input
        #[arg(long)]
        password: bool,
        /// What who vouches for them calls them (`sub` of OpenID Connect): lets them in without a group,
        /// and after they were removed
        #[arg(long)]
        subject: Option<String>,
    },
    /// List people
    List {
        #[command(flatten)]
        watch: Watch,
    },
    /// Set another's password from standard input, or forget their second factor: the device is lost
    Reset {
        /// Name or id
        person: String,
        /// Read a new password from standard input; their logins end
        #[arg(long, required_unless_present = "second_factor")]
        password: bool,
        /// Forget their second factor
        #[arg(long)]
        second_factor: bool,
    },
    /// Remove a person with their tokens and roles
    Delete {
        /// Name or id
        person: String,
    },
    /// Change your own password: the present one, when there is one, and the new one are read in two lines
    Password,
    /// Your own second factor: one-time codes of an authenticator
    #[command(subcommand)]
    SecondFactor(FactorCommand),
    /// Your own SSH keys: by them you open machines' consoles with `ssh`
    #[command(subcommand)]
    Key(KeyCommand),
}

#[derive(Subcommand)]
pub(crate) enum KeyCommand {
    /// Add a public key to yourself
    #[command(after_help = "  rackhand person key add laptop ~/.ssh/id_ed25519.pub
  ssh-add -L | head -n 1 | rackhand person key add agent
  rackhand console web-1 --ssh              # how to open a console then

Ed25519, ECDSA, or RSA from 2048 bits on. Whoever has the private key opens the consoles that you may
open; no other token or code is asked for.")]
    Add {
        /// What to call it
        name: String,
        /// The file, which ends in .pub; otherwise it is read from standard input
        file: Option<PathBuf>,
    },
    /// List your keys; everybody's, if you may see all tokens
    List {
        #[command(flatten)]
        watch: Watch,
    },
    /// Remove a key: consoles that were opened by it end
    Remove {
        /// The id that `rackhand person key list` tells
        id: String,
    },
}

#[derive(Subcommand)]
pub(crate) enum FactorCommand {
    /// Make a secret for the authenticator; your password, when there is one, is read from standard input
    Begin,
    /// Prove that the authenticator has it: from now on a login asks for a code
    Confirm {
        /// Its present code
        code: String,
    },
    /// Remove it: a login no longer asks for a code
    Remove {
        /// Its present code
        code: String,
    },
}

/// A person as the API sends it.
#[derive(Deserialize)]
struct Person {
    id: String,
    name: String,
    email: String,
    has_password: bool,
    has_second_factor: bool,
    issuer: Option<String>,
}

/// An SSH key as the API sends it.
#[derive(Deserialize)]
struct Key {
    id: String,
    name: String,
    owner: String,
    key: String,
    fingerprint: String,
    used: Option<Timestamp>,
}

/// A second factor that was made.
#[derive(Deserialize)]
struct Factor {
    secret: String,
    address: String,
}

pub(crate) async fn run(client: &Client, command: PersonCommand, output: Output) -> anyhow::Result<String> {
    match command {
        PersonCommand::Create { name, email, password, subject } => {
            let password = password.then(|| unseen("First password: ")).transpose()?;
            let mut body = json!({"name": name, "email": email, "password": password});
            if let Some(subject) = subject {
                body["subject"] = Value::String(subject);
            }
            print(output, client.post("/v1/people", body).await?, |made: Person| {
                format!("{0} is there; next: rackhand role grant ROLE {0} --project NAME", made.name)
            })
        }
        PersonCommand::List { watch } => {
            let fetch = async || Ok(client.list("/v1/people").await?.into());
            watch::show(client, output, watch, Told::ByNobody, fetch, show).await
        }
        PersonCommand::Reset { person, password, second_factor } => {
            let password = password.then(|| unseen("New password: ")).transpose()?;
            let mut body = json!({"remove_second_factor": second_factor});
            if let Some(password) = password {
                body["password"] = Value::String(password);
            }
            let reset = client.ask(Method::PATCH, &format!("/v1/people/{person}"), Some(body)).await?;
            print(output, reset, |person: Person| show(vec![person]))
        }
        PersonCommand::Delete { person } => {
            client.ask(Method::DELETE, &format!("/v1/people/{person}"), None).await?;
            Ok(done(output, format!("{person} is removed")))
        }
        PersonCommand::Password => {
            let body =
                json!({"present": unseen("Present password, empty for none: ")?, "new": unseen("New password: ")?});
            client.ask(Method::PUT, "/v1/password", Some(body)).await?;
            Ok(done(output, "your password is changed; your other logins have ended".into()))
        }
        PersonCommand::SecondFactor(FactorCommand::Begin) => {
            let password = unseen("Password, empty for none: ")?;
            let made = client.ask(Method::POST, "/v1/totp", Some(json!({"password": password}))).await?;
            print(output, made, |made: Factor| {
                format!(
                    "Tell your authenticator this secret, or show it the address as a QR code:\n\n  {}\n  {}\n\nThen: \
                     rackhand person second-factor confirm CODE",
                    made.secret, made.address
                )
            })
        }
        PersonCommand::SecondFactor(FactorCommand::Confirm { code }) => {
            client.ask(Method::POST, "/v1/totp/confirm", Some(json!({"code": code}))).await?;
            Ok(done(output, "a login asks for a code from now on".into()))
        }
        PersonCommand::SecondFactor(FactorCommand::Remove { code }) => {
            client.ask(Method::POST, "/v1/totp/remove", Some(json!({"code": code}))).await?;
            Ok(done(output, "a login no longer asks for a code".into()))
        }
        PersonCommand::Key(KeyCommand::Add { name, file }) => {
            let key = match &file {
                Some(file) => {
                    std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?
                }
                None => line("Public key: ")?,
            };
            print(output, client.post("/v1/ssh-keys", json!({"name": name, "key": key.trim()})).await?, |made: Key| {
                format!("{} is yours: {}; next: rackhand console MACHINE --ssh", made.name, made.fingerprint)
            })
        }
        PersonCommand::Key(KeyCommand::List { watch }) => {
            let fetch = async || Ok(client.list("/v1/ssh-keys").await?.into());
            watch::show(client, output, watch, Told::ByNobody, fetch, keys).await
        }
        PersonCommand::Key(KeyCommand::Remove { id }) => {
            client.ask(Method::DELETE, &format!("/v1/ssh-keys/{id}"), None).await?;
            Ok(done(output, "the key is removed".into()))
        }
    }
}

fn keys(keys: Vec<Key>) -> Table {
    let rows = keys.into_iter().map(|key| {
        let kind = key.key.split(' ').next().unwrap_or_default().to_owned();
        vec![key.name, key.owner, kind, key.fingerprint, key.used.map_or("never".into(), second), key.id]
    });
    table(&["NAME", "OWNER", "KIND", "FINGERPRINT", "USED", "ID"], rows)
        .or_say("no SSH keys here yet: rackhand person key add NAME ~/.ssh/id_ed25519.pub")
}

/// One line of standard input, for which a person is asked.
pub(crate) fn line(question: &str) -> anyhow::Result<String> {
    if std::io::stdin().is_terminal() {
        let _ = write!(std::io::stderr(), "{question}");
    }
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).context("standard input cannot be read")?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

fn show(people: Vec<Person>) -> Table {
    let rows = people.into_iter().map(|person| {
        let by = match (person.has_password, person.has_second_factor, &person.issuer) {
            (true, true, _) => "password and code".into(),
            (true, false, _) => "password".into(),
            (false, _, Some(issuer)) => issuer.clone(),
            (false, _, None) => "tokens alone".into(),
        };
        vec![person.name, or_dash(Some(&person.email)), by, person.id]
    });
    table(&["NAME", "MAIL", "LOGS IN BY", "ID"], rows)
}
