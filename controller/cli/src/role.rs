//! `rackhand role`: what each role may do, and who has which.

use clap::{Args, Subcommand};
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    client::Client,
    output::{Output, done, print},
    show::{Surface, Table, table},
    watch::{self, Told, Watch},
};

#[derive(Subcommand)]
pub(crate) enum RoleCommand {
    /// List what each role may do
    List,
    /// Grant a role
    #[command(after_help = "  rackhand role grant operator ada --everything
  rackhand role grant technician bob --site fra1
  rackhand role grant collaborator eve --project acme:shop

Nobody can grant what they may not do themselves there.")]
    Grant {
        /// The role: owner, admin, operator, technician, collaborator, billing or viewer
        role: String,
        /// To whom: name or id
        person: String,
        #[command(flatten)]
        scope: Scope,
    },
    /// Show who has which role where
    Show {
        /// Only this person's
        #[arg(long)]
        person: Option<String>,
        #[command(flatten)]
        watch: Watch,
    },
    /// Take a role away
    #[command(after_help = "  rackhand role show --person eve
  rackhand role revoke 01931b1e-0000-7000-8000-000000000000")]
    Revoke {
        /// The id that `rackhand role show` tells
        binding: String,
    },
}

/// Where it counts.
#[derive(Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Scope {
    /// Everywhere
    #[arg(long)]
    everything: bool,
    /// In an organisation: what is given to its projects
    #[arg(long)]
    organisation: Option<String>,
    /// In a project: what is given to it
    #[arg(long)]
    project: Option<String>,
    /// In a site: what stands in its racks
    #[arg(long)]
    site: Option<String>,
    /// In a rack
    #[arg(long)]
    rack: Option<String>,
}

impl Scope {
    fn body(self) -> Value {
        let Self { everything: _, organisation, project, site, rack } = self;
        let named = [("organisation", organisation), ("project", project), ("site", site), ("rack", rack)];
        match named.into_iter().find_map(|(kind, name)| Some((kind, name?))) {
            Some((kind, name)) => json!({"kind": kind, "name": name}),
            None => json!({"kind": "everything"}),
        }
    }
}

/// A binding as the API sends it.
#[derive(Deserialize)]
struct Binding {
    id: String,
    person: String,
    role: String,
    scope: Named,
    granted_by: Option<String>,
}

#[derive(Deserialize)]
struct Named {
    kind: String,
    name: String,
}

#[derive(Deserialize)]
struct Roles {
    roles: Vec<Role>,
    actions: Vec<Action>,
}

#[derive(Deserialize)]
struct Role {
    name: String,
    actions: Vec<String>,
}

#[derive(Deserialize)]
struct Action {
    name: String,
    description: String,
}

pub(crate) async fn run(client: &Client, command: RoleCommand, output: Output) -> anyhow::Result<String> {
    match command {
        RoleCommand::List => print(output, client.ask(Method::GET, "/v1/roles", None).await?, |roles: Roles| {
            // One letter for each role keeps the table on a terminal.
            let has = |role: &Role, action: &Action| role.actions.contains(&action.name);
            let letter = |role: &Role| role.name.chars().next().unwrap_or('-');
            let rows = roles.actions.iter().map(|action| {
                let letters = roles.roles.iter().map(|role| if has(role, action) { letter(role) } else { '-' });
                vec![action.name.clone(), letters.collect(), action.description.clone()]
            });
            let names: Vec<_> = roles.roles.iter().map(|role| format!("{} {}", letter(role), role.name)).collect();
            let said = table(&["ACTION", "ROLES", "WHAT IT IS"], rows).on(&Surface::present());
            format!("{said}\n\n{}", names.join(", "))
        }),
        RoleCommand::Grant { role, person, scope } => {
            let body = json!({"person": person, "role": role, "scope": scope.body()});
            print(output, client.post("/v1/bindings", body).await?, |binding| show(vec![binding]))
        }
        RoleCommand::Show { person, watch } => {
            let query: Vec<_> = person.map(|name| ("person", name)).into_iter().collect();
            let fetch = async || Ok(client.list_with("/v1/bindings", query.clone()).await?.into());
            watch::show(client, output, watch, Told::ByNobody, fetch, show).await
        }
        RoleCommand::Revoke { binding } => {
            client.ask(Method::DELETE, &format!("/v1/bindings/{binding}"), None).await?;
            Ok(done(output, "the role is taken away".into()))
        }
    }
}

fn show(bindings: Vec<Binding>) -> Table {
    let rows = bindings.into_iter().map(|binding| {
        let at = format!("{} {}", binding.scope.kind, binding.scope.name).trim_end().to_owned();
        let by = binding.granted_by.unwrap_or_else(|| "their groups".into());
        vec![binding.person, binding.role, at, by, binding.id]
    });
    table(&["PERSON", "ROLE", "AT", "GRANTED BY", "ID"], rows)
}
