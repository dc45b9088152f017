//! `rackhand site`: where racks stand.

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
pub(crate) enum SiteCommand {
    /// Create a site
    #[command(after_help = "  rackhand site create fra1
  rackhand site move-rack lab --to fra1")]
    Create {
        /// Its name
        name: String,
    },
    /// List sites
    List {
        #[command(flatten)]
        watch: Watch,
    },
    /// Say that a rack stands in another site; who may do something with it changes with that
    MoveRack {
        /// The rack: name or id
        rack: String,
        /// The site: name or id
        #[arg(long)]
        to: String,
    },
    /// Give a site another name
    Rename {
        /// Name or id
        site: String,
        /// The new name
        name: String,
    },
    /// Remove a site without racks
    Delete {
        /// Name or id
        site: String,
    },
}

/// A site as the API sends it.
#[derive(Deserialize)]
struct Site {
    id: String,
    name: String,
}

/// What is shown of a rack that moved.
#[derive(Deserialize)]
struct Moved {
    name: String,
    site: String,
}

pub(crate) async fn run(client: &Client, command: SiteCommand, output: Output) -> anyhow::Result<String> {
    match command {
        SiteCommand::Create { name } => {
            print(output, client.post("/v1/sites", json!({"name": name})).await?, |made: Site| {
                format!("site {0} is there; next: rackhand site move-rack RACK --to {0}", made.name)
            })
        }
        SiteCommand::List { watch } => {
            let fetch = async || Ok(client.list("/v1/sites").await?.into());
            watch::show(client, output, watch, Told::ByNobody, fetch, list).await
        }
        SiteCommand::MoveRack { rack, to } => {
            let moved = client.ask(Method::PATCH, &format!("/v1/racks/{rack}"), Some(json!({"site": to}))).await?;
            print(output, moved, |now: Moved| format!("rack {} stands in site {} now", now.name, now.site))
        }
        SiteCommand::Rename { site, name } => {
            let renamed = client.ask(Method::PATCH, &format!("/v1/sites/{site}"), Some(json!({"name": name}))).await?;
            print(output, renamed, |now: Site| format!("site {site} is {} now", now.name))
        }
        SiteCommand::Delete { site } => {
            client.ask(Method::DELETE, &format!("/v1/sites/{site}"), None).await?;
            Ok(done(output, format!("site {site} is removed")))
        }
    }
}

fn list(all: Vec<Site>) -> Table {
    table(&["NAME", "ID"], all.into_iter().map(|one| vec![one.name, one.id]))
}
