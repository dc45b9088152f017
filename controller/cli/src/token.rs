//! `rackhand token`: for programs, and for people who work with them.

use clap::Subcommand;
use jiff::Timestamp;
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    client::Client,
    output::{Output, done, print},
    show::{Table, second, table},
    watch::{self, Told, Watch},
};

#[derive(Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token; its secret is printed this once
    #[command(after_help = "  rackhand token create laptop
  rackhand token create dashboard --action machine.read --action event.read --days 365
  rackhand token create ci --project acme:shop --role collaborator     # the project's, not yours
  rackhand token create rack-tool --scope rack:lab

Yours may what you may, and no more than the token you make it with. A project's goes on when you leave.")]
    Create {
        /// Its name
        name: String,
        /// Make it this project's, for a program that works for it
        #[arg(long)]
        project: Option<String>,
        /// With --project: its role there; collaborator if not given
        #[arg(long, requires = "project")]
        role: Option<String>,
        /// Good for this action only; may be repeated (rackhand role list)
        #[arg(long = "action", value_name = "ACTION")]
        actions: Vec<String>,
        /// Good there only: organisation:NAME, project:NAME, site:NAME or rack:NAME; may be repeated
        #[arg(long = "scope", value_name = "KIND:NAME")]
        scopes: Vec<String>,
        /// How long it is good; 0 for a token that does not end by itself
        #[arg(long, default_value_t = 90)]
        days: u32,
    },
    /// List your tokens, and those that you may see
    List {
        #[command(flatten)]
        watch: Watch,
    },
    /// Revoke a token: it is refused from now on
    Revoke {
        /// The id that `rackhand token list` tells
        id: String,
    },
}

/// A token as the API sends it.
#[derive(Deserialize)]
struct Token {
    id: String,
    name: String,
    owner: String,
    prefix: String,
    actions: Option<Vec<String>>,
    scopes: Option<Vec<String>>,
    expires: Option<Timestamp>,
    used: Option<Timestamp>,
}

#[derive(Deserialize)]
struct Made {
    secret: String,
    token: Token,
}

pub(crate) async fn run(client: &Client, command: TokenCommand, output: Output) -> anyhow::Result<String> {
    match command {
        TokenCommand::Create { name, project, role, actions, scopes, days } => {
            let mut body = json!({"name": name, "project": project, "role": role, "days": days});
            if !actions.is_empty() {
                body["actions"] = actions.into();
            }
            if !scopes.is_empty() {
                body["scopes"] = scopes.iter().map(|scope| place(scope)).collect::<anyhow::Result<Vec<_>>>()?.into();
            }
            print(output, client.post("/v1/tokens", body).await?, |made: Made| {
                format!(
                    "Token {}, shown this once:\n\n  {}\n\nrackhand token revoke {}",
                    made.token.name, made.secret, made.token.id
                )
            })
        }
        TokenCommand::List { watch } => {
            let fetch = async || Ok(client.list("/v1/tokens").await?.into());
            watch::show(client, output, watch, Told::ByNobody, fetch, show).await
        }
        TokenCommand::Revoke { id } => {
            client.ask(Method::DELETE, &format!("/v1/tokens/{id}"), None).await?;
            Ok(done(output, "the token is revoked".into()))
        }
    }
}

/// `KIND:NAME`, of which a project's name can have a colon too.
fn place(text: &str) -> anyhow::Result<Value> {
    match text.split_once(':') {
        Some((kind, name)) if !name.is_empty() => Ok(json!({"kind": kind, "name": name})),
        _ => anyhow::bail!("`{text}` is no scope; write KIND:NAME, as rack:lab or project:acme:shop"),
    }
}

fn show(tokens: Vec<Token>) -> Table {
    let rows = tokens.into_iter().map(|token| {
        let good_for = [token.actions, token.scopes].into_iter().flatten().flatten().collect::<Vec<_>>().join(" ");
        vec![
            token.name,
            token.owner,
            format!("{}…", token.prefix),
            if good_for.is_empty() { "all its owner may".into() } else { good_for },
            token.expires.map_or("never".into(), second),
            token.used.map_or("never".into(), second),
            token.id,
        ]
    });
    table(&["NAME", "OWNER", "BEGINS", "GOOD FOR", "EXPIRES", "USED", "ID"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_is_a_kind_and_a_name_that_may_have_a_colon() {
        assert_eq!(place("rack:lab").unwrap(), json!({"kind": "rack", "name": "lab"}));
        assert_eq!(place("project:acme:shop").unwrap(), json!({"kind": "project", "name": "acme:shop"}));
        assert!(place("lab").is_err() && place("rack:").is_err());
    }
}
