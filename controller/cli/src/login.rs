//! `rackhand login` and `rackhand logout`: which controller to talk to, and as whom.

use std::{
    io::{IsTerminal as _, Read as _, Write as _},
    path::PathBuf,
};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    browser,
    client::{Client, Problem},
    context::{Context, Saved},
    output::{Output, done},
    person::line,
};

/// How to prove who one is; without any of these, with a token.
#[derive(Args)]
pub(crate) struct How {
    /// Log in with a name and a password, which is asked for, or read from standard input
    #[arg(long, value_name = "NAME")]
    person: Option<String>,
    /// Read the password from this file
    #[arg(long, value_name = "FILE", requires = "person")]
    password_file: Option<PathBuf>,
    /// A code of the second factor; asked for on a terminal
    #[arg(long, requires = "person")]
    code: Option<String>,
    /// Log in at who vouches for you (OpenID Connect), in a browser
    #[arg(long, conflicts_with = "person")]
    oidc: bool,
}

/// What a login is answered with.
#[derive(Deserialize)]
pub(crate) struct LoggedIn {
    token: String,
}

pub(crate) async fn run(
    how: How,
    name: Option<String>,
    controller: Option<String>,
    token: Option<String>,
    ca: Option<PathBuf>,
) -> anyhow::Result<String> {
    let saved = Saved::of_this_user()?;
    let mut context = saved.place(name.as_deref(), controller, ca)?;
    context.token = match (&how.person, how.oidc, token) {
        (Some(person), ..) => by_password(&context, person, &how).await?,
        (None, true, _) => browser::log_in(&Client::new(context.clone())?).await?.token,
        (None, false, Some(token)) => token.trim().to_owned(),
        (None, false, None) => read_token()?,
    };
    let who = Client::new(context.clone())?.ask(Method::GET, "/v1/whoami", None).await?;
    let name = saved.keep(name, context.clone())?;
    let word = |field: &str| who.get(field).and_then(Value::as_str).unwrap_or("?").to_owned();
    Ok(format!(
        "logged in to {} (version {}) as `{}`; saved as `{name}` in {}",
        context.controller,
        word("version"),
        word("name"),
        saved.path().display()
    ))
}

fn read_token() -> anyhow::Result<String> {
    let mut token = String::new();
    match std::io::stdin().is_terminal() {
        true => {
            let _ = write!(std::io::stderr(), "Token: ");
            std::io::stdin().read_line(&mut token)?
        }
        false => std::io::stdin().take(1024).read_to_string(&mut token)?,
    };
    Ok(token.trim().to_owned())
}

async fn by_password(context: &Context, name: &str, how: &How) -> anyhow::Result<String> {
    let asks = how.password_file.is_none() && std::io::stdin().is_terminal();
    let password = match &how.password_file {
        Some(file) => {
            let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
            text.trim_end_matches(['\r', '\n']).to_owned()
        }
        None => unseen("Password: ")?,
    };
    // A refusal does not tell what was wrong: whether a code is wanted is asked before.
    let code = match (&how.code, asks) {
        (Some(code), _) => Some(code.clone()),
        (None, true) => Some(line("Code of your second factor, empty for none: ")?),
        (None, false) => None,
    };
    let code = code.filter(|code| !code.is_empty());
    let wants_code = code.is_none();
    let body = json!({"name": name, "password": password, "code": code});
    match Client::new(context.clone())?.ask(Method::POST, "/v1/login", Some(body)).await {
        Ok(done) => Ok(serde_json::from_value::<LoggedIn>(done)?.token),
        Err(error) => match error.downcast_ref::<Problem>() {
            Some(problem) if problem.kind.ends_with(":unauthenticated") && wants_code => {
                bail!("{}\nIf you have a second factor, its code is wanted too: --code CODE", problem.detail)
            }
            Some(problem) if problem.kind.ends_with(":unauthenticated") => bail!("{}", problem.detail),
            _ => Err(error),
        },
    }
}

/// One line of standard input that is a secret: what is typed is not shown.
pub(crate) fn unseen(question: &str) -> anyhow::Result<String> {
    if !std::io::stdin().is_terminal() {
        return line(question);
    }
    let terminal = console::Term::stderr();
    ensure!(terminal.is_term(), "standard error is no terminal to ask for a password on: give it on standard input");
    terminal.write_str(question).and_then(|()| terminal.read_secure_line()).context("the terminal cannot be read")
}

/// A token as the API sends it.
#[derive(Deserialize)]
struct Token {
    id: String,
    login: bool,
}

/// Ends a login: its token is no longer good, nor kept here.
pub(crate) async fn end(saved: &Saved, name: Option<String>, output: Output) -> anyhow::Result<String> {
    let (name, context) = saved.in_use(name.as_deref())?;
    ensure!(!context.token.is_empty(), "you are logged out of {} already", context.controller);
    let client = Client::new(context.clone())?;
    let over = match this_token(&client).await {
        Ok(Some(Token { id, login: true })) => {
            client.ask(Method::DELETE, &format!("/v1/tokens/{id}"), None).await?;
            "its token is no longer good"
        }
        // Made to be kept, perhaps elsewhere too.
        Ok(_) => "its token was made by hand and is good elsewhere still: `rackhand token revoke` ends it",
        Err(error) => match error.downcast_ref::<Problem>() {
            Some(problem) if problem.kind.ends_with(":unauthenticated") => "its token was no longer good",
            _ => return Err(error.context(format!("to forget it here alone: rackhand context delete {name}"))),
        },
    };
    saved.log_out(&name)?;
    Ok(done(output, format!("logged out of {}, saved as `{name}`; {over}", context.controller)))
}

/// The token in use; `None` for one that may not look at tokens.
async fn this_token(client: &Client) -> anyhow::Result<Option<Token>> {
    let who = client.ask(Method::GET, "/v1/whoami", None).await?;
    let tokens = match client.list("/v1/tokens").await {
        Err(error) if error.downcast_ref::<Problem>().is_some_and(|problem| problem.kind.ends_with(":forbidden")) => {
            return Ok(None);
        }
        tokens => tokens?,
    };
    let this = tokens.into_iter().find(|token| token["id"] == who["token"]);
    Ok(this.map(serde_json::from_value).transpose()?)
}
