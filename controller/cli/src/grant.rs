//! Grants of pools and claims: who may do what with their addresses.

use std::collections::BTreeSet;

use clap::Args;
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::client::Client;

/// What a grant lets do, as `--may` takes it.
pub(crate) const USES: [&str; 3] = ["assign", "announce", "reverse"];

/// What one lets do when nobody says what: all that is not for the whole world to see.
const USUAL: [&str; 2] = ["assign", "reverse"];

#[derive(Args)]
#[group(multiple = false)]
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
    #[arg(long, value_name = "ID")]
    for_token: Option<String>,
}

impl Grantee {
    /// Whether somebody is meant.
    pub(crate) fn is_told(&self) -> bool {
        self.everyone || self.project.is_some() || self.role.is_some() || self.for_token.is_some()
    }

    /// As the API says it.
    pub(crate) async fn value(self, client: &Client) -> anyhow::Result<Value> {
        anyhow::ensure!(self.is_told(), "say whose grant: --everyone, --project, --role or --for-token");
        Ok(match self {
            // A deleted project's grant has its id.
            Self { project: Some(id), .. } if id.parse::<uuid::Uuid>().is_ok() => {
                let found: Option<Value> = client.get(&format!("/v1/projects/{id}")).await.ok();
                json!({"project": found.map_or(id, |found| full_name(&found))})
            }
            Self { project: Some(project), .. } => {
                json!({"project": full_name(&client.get(&format!("/v1/projects/{project}")).await?)})
            }
            Self { role: Some(role), .. } => json!({"role": role}),
            Self { for_token: Some(token), .. } => json!({"token": token}),
            Self { .. } => json!("everyone"),
        })
    }
}

fn full_name(project: &Value) -> String {
    let part = |name: &str| project[name].as_str().unwrap_or_default();
    format!("{}:{}", part("organisation"), part("name"))
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

/// These grants, with one by which `to` may this as well.
pub(crate) fn given(mut grants: Vec<Value>, to: &Value, may: &[String]) -> Vec<Value> {
    let had = taken(&mut grants, to);
    let had = had.iter().flat_map(|grant| grant["may"].as_array().into_iter().flatten()).filter_map(Value::as_str);
    let new = may.iter().map(String::as_str).chain(USUAL.into_iter().filter(|_| may.is_empty()));
    let may: BTreeSet<&str> = had.chain(new).collect();
    grants.push(json!({"to": to, "may": may}));
    grants
}

/// Takes the grants of `to` out of these.
pub(crate) fn taken(grants: &mut Vec<Value>, to: &Value) -> Vec<Value> {
    grants.extract_if(.., |grant| grant["to"] == *to).collect()
}

/// Changes the grants that are read at one path by sending them to another, as they were read or not at all;
/// the answer.
pub(crate) async fn change(
    client: &Client,
    read: &str,
    (method, write): (Method, &str),
    change: impl FnOnce(Vec<Value>) -> anyhow::Result<Vec<Value>>,
) -> anyhow::Result<Value> {
    let (mut now, tag) = client.tagged(read).await?;
    let grants = change(now["grants"].as_array_mut().map(std::mem::take).unwrap_or_default())?;
    let (changed, _) = client.change_if(method, write, Some(json!({"grants": grants})), tag.as_deref()).await?;
    Ok(changed)
}

/// These grants without those of `to`, of which there has to be one.
pub(crate) fn without(mut grants: Vec<Value>, to: &Value) -> anyhow::Result<Vec<Value>> {
    let taken = taken(&mut grants, to);
    anyhow::ensure!(!taken.is_empty(), "there is no such grant; `show` lists those there are");
    Ok(grants)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_adds_to_what_one_may_and_the_usual_when_nothing_is_said() {
        let everyone = json!({"to": "everyone", "may": ["assign"]});
        let (shop, blog) = (json!({"project": "acme:shop"}), json!({"project": "acme:blog"}));
        let grants = given(vec![everyone.clone()], &shop, &["announce".into()]);
        assert_eq!(grants, [everyone.clone(), json!({"to": shop, "may": ["announce"]})]);
        let grants = given(grants, &shop, &[]);
        assert_eq!(grants, [everyone.clone(), json!({"to": shop, "may": ["announce", "assign", "reverse"]})]);
        assert_eq!(without(grants.clone(), &shop).unwrap(), [everyone]);
        assert!(without(grants, &blog).is_err());
    }
}
