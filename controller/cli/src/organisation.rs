//! `rackhand organisation`: customers, and the provider itself.

use clap::Subcommand;
use reqwest::Method;
use serde::Deserialize;
use serde_json::json;

use crate::{Output, client::Client, print, show::table};

#[derive(Subcommand)]
pub(crate) enum OrganisationCommand {
    /// Create an organisation
    #[command(after_help = "  rackhand organisation create acme
  rackhand project create shop --organisation acme")]
    Create {
        /// Its name
        name: String,
    },
    /// List organisations
    List,
    /// Give an organisation another name
    Rename {
        /// Name or id
        organisation: String,
        /// The new name
        name: String,
    },
    /// Remove an organisation that has no projects
    Delete {
        /// Name or id
        organisation: String,
    },
}

/// An organisation as the API sends it.
#[derive(Deserialize)]
struct Organisation {
    id: String,
    name: String,
}

pub(crate) async fn run(client: &Client, command: OrganisationCommand, output: Output) -> anyhow::Result<String> {
    match command {
        OrganisationCommand::Create { name } => {
            let made = client.post("/v1/organisations", json!({"name": name})).await?;
            print(output, made, |made: Organisation| {
                format!("organisation {0} is there; next: rackhand project create NAME --organisation {0}", made.name)
            })
        }
        OrganisationCommand::List => {
            print(output, client.list("/v1/organisations").await?.into(), |all: Vec<Organisation>| {
                if all.is_empty() {
                    return "no organisations yet: rackhand organisation create NAME".into();
                }
                table(&["NAME", "ID"], all.into_iter().map(|one| vec![one.name, one.id]))
            })
        }
        OrganisationCommand::Rename { organisation, name } => {
            let path = format!("/v1/organisations/{organisation}");
            let renamed = client.ask(Method::PATCH, &path, Some(json!({"name": name}))).await?;
            print(output, renamed, |now: Organisation| format!("organisation {organisation} is {} now", now.name))
        }
        OrganisationCommand::Delete { organisation } => {
            client.ask(Method::DELETE, &format!("/v1/organisations/{organisation}"), None).await?;
            Ok(format!("organisation {organisation} is removed"))
        }
    }
}
