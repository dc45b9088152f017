//! `rackhand project`: what machines and addresses are given to.

use clap::Subcommand;
use reqwest::Method;
use serde::Deserialize;
use serde_json::json;

use crate::{
    client::Client,
    machine,
    output::{Output, done, print},
    show::{Table, table},
    watch::{self, Told, Watch},
};

#[derive(Subcommand)]
pub(crate) enum ProjectCommand {
    /// Create a project
    #[command(after_help = "  rackhand project create shop --organisation acme
  rackhand role grant collaborator ada --project acme:shop")]
    Create {
        /// Its name
        name: String,
        /// Whose it is: name or id
        #[arg(long)]
        organisation: String,
    },
    /// List projects
    List {
        /// Only those of this organisation
        #[arg(long)]
        organisation: Option<String>,
        #[command(flatten)]
        watch: Watch,
    },
    /// Give a machine to a project, whose members can then deploy, release and switch it
    #[command(after_help = "  rackhand project give shop web-1
  rackhand project take web-1              # while the project does not use it

A machine that is released is nobody's again.")]
    Give {
        /// The project: name, ORGANISATION:NAME or id
        project: String,
        /// The machine: name or id
        machine: String,
    },
    /// Take a machine back from a project that does not use it
    Take {
        /// The machine: name or id
        machine: String,
    },
    /// Give a project another name
    Rename {
        /// Name, ORGANISATION:NAME or id
        project: String,
        /// The new name
        name: String,
    },
    /// Remove a project that has neither machines nor addresses, with its tokens
    Delete {
        /// Name, ORGANISATION:NAME or id
        project: String,
    },
}

/// A project as the API sends it.
#[derive(Deserialize)]
struct Project {
    id: String,
    name: String,
    organisation: String,
}

pub(crate) async fn run(client: &Client, command: ProjectCommand, output: Output) -> anyhow::Result<String> {
    match command {
        ProjectCommand::Create { name, organisation } => {
            let made = client.post("/v1/projects", json!({"name": name, "organisation": organisation})).await?;
            print(output, made, |made: Project| {
                format!(
                    "project {0}:{1} is there; next: rackhand role grant collaborator PERSON --project {0}:{1}",
                    made.organisation, made.name
                )
            })
        }
        ProjectCommand::List { organisation, watch } => {
            let query: Vec<_> = organisation.map(|name| ("organisation", name)).into_iter().collect();
            let fetch = async || Ok(client.list_with("/v1/projects", query.clone()).await?.into());
            watch::show(client, output, watch, Told::ByNobody, fetch, list).await
        }
        ProjectCommand::Give { project, machine } => assign(client, &machine, Some(&project), output).await,
        ProjectCommand::Take { machine } => assign(client, &machine, None, output).await,
        ProjectCommand::Rename { project, name } => {
            let path = format!("/v1/projects/{project}");
            let renamed = client.ask(Method::PATCH, &path, Some(json!({"name": name}))).await?;
            print(output, renamed, |now: Project| format!("project {project} is {}:{} now", now.organisation, now.name))
        }
        ProjectCommand::Delete { project } => {
            client.ask(Method::DELETE, &format!("/v1/projects/{project}"), None).await?;
            Ok(done(output, format!("project {project} is removed")))
        }
    }
}

async fn assign(client: &Client, machine: &str, project: Option<&str>, output: Output) -> anyhow::Result<String> {
    let value = client.post(&format!("/v1/machines/{machine}/assign"), json!({"project": project})).await?;
    print(output, value, |machine| machine::page(&machine))
}

fn list(all: Vec<Project>) -> Table {
    table(&["ORGANISATION", "NAME", "ID"], all.into_iter().map(|one| vec![one.organisation, one.name, one.id]))
        .or_say("no projects yet: rackhand project create NAME --organisation NAME")
}
