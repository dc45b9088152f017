//! Grants of pools and claims: who may do what with their addresses.

use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::client::Client;

/// What a grant lets do, as `--may` takes it.
pub(crate) const USES: [&str; 3] = ["assign", "announce", "reverse"];

/// What one lets do when nobody says what: all that is not for the whole world to see.
const USUAL: [&str; 2] = ["assign", "reverse"];

#[derive(Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Grantee {
    /// Whoever has the role for it
    #[arg(long)]
    everyone: bool,
    /// Whoever does it for this project: name, ORGANISATION:NAME or id
    #[arg(long)]
    project: Option<String>,
    /// Whoever has this very role where the addresses are
    #[arg(long)]
    role: Option<String>,
    /// Whoever has the token with this id
    #[arg(long)]
    token: Option<String>,
}

impl Grantee {
    /// As the API says it.
    pub(crate) async fn value(self, client: &Client) -> anyhow::Result<Value> {
        Ok(match self {
            Self { project: Some(project), .. } => {
                let found: Value = client.get(&format!("/v1/projects/{project}")).await?;
                let part = |name: &str| found[name].as_str().unwrap_or_default().to_owned();
                json!({"project": format!("{}:{}", part("organisation"), part("name"))})
            }
            Self { role: Some(role), .. } => json!({"role": role}),
            Self { token: Some(token), .. } => json!({"token": token}),
            Self { .. } => json!("everyone"),
        })
    }
}

/// Who may do what.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Grant {
    to: Value,
    may: Vec<String>,
}

impl Grant {
    fn words(&self) -> String {
        let to = match self.to.as_object().and_then(|to| to.iter().next()) {
            Some((kind, name)) => format!("{kind} {}", name.as_str().unwrap_or_default()),
            None => "everyone".into(),
        };
        format!("{to} may {}", self.may.join(", "))
    }
}

/// All of them, for people.
pub(crate) fn words(grants: &[Grant]) -> String {
    if grants.is_empty() {
        return "none".into();
    }
    grants.iter().map(Grant::words).collect::<Vec<_>>().join("; ")
}

/// These grants with another of `to`, in place of what they had.
pub(crate) fn given(mut grants: Vec<Value>, to: &Value, may: &[String]) -> Vec<Value> {
    grants.retain(|grant| grant["to"] != *to);
    let may = if may.is_empty() { json!(USUAL) } else { json!(may) };
    grants.push(json!({"to": to, "may": may}));
    grants
}

/// These grants without that of `to`; `None` when there is none.
pub(crate) fn taken(mut grants: Vec<Value>, to: &Value) -> Option<Vec<Value>> {
    let before = grants.len();
    grants.retain(|grant| grant["to"] != *to);
    (grants.len() < before).then_some(grants)
}
