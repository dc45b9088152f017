//! `rackhand organisation`: customers, and the provider itself.

use clap::Subcommand;
use reqwest::Method;
use serde::Deserialize;
use serde_json::json;

use crate::{
    client::Client,
    output::{Output, done, print},
    show::{Table, table},
    watch::{self, Told, Watch},
};

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
    List {
        #[command(flatten)]
        watch: Watch,
    },
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
        OrganisationCommand::List { watch } => {
            let fetch = async || Ok(client.list("/v1/organisations").await?.into());
            watch::show(client, output, watch, Told::ByNobody, fetch, list).await
        }
        OrganisationCommand::Rename { organisation, name } => {
            let path = format!("/v1/organisations/{organisation}");
            let renamed = client.ask(Method::PATCH, &path, Some(json!({"name": name}))).await?;
            print(output, renamed, |now: Organisation| format!("organisation {organisation} is {} now", now.name))
        }
        OrganisationCommand::Delete { organisation } => {
            client.ask(Method::DELETE, &format!("/v1/organisations/{organisation}"), None).await?;
            Ok(done(output, format!("organisation {organisation} is removed")))
        }
    }
}

fn list(all: Vec<Organisation>) -> Table {
    table(&["NAME", "ID"], all.into_iter().map(|one| vec![one.name, one.id]))
        .or_say("no organisations yet: rackhand organisation create NAME")
}
