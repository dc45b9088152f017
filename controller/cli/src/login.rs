//! `rackhand login`: which controller to talk to, and as whom.

use std::{
    io::{IsTerminal as _, Read as _, Write as _},
    path::PathBuf,
};

use anyhow::Context as _;
use reqwest::Method;
use serde_json::Value;

use crate::{
    client::Client,
    context::{Context, Saved},
};

pub(crate) async fn run(
    name: Option<String>,
    controller: Option<String>,
    token: Option<String>,
    ca: Option<PathBuf>,
) -> anyhow::Result<String> {
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
    let saved = Saved::of_this_user()?;
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
