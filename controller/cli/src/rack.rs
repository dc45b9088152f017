//! `rackhand rack`: provisioning networks.

use anyhow::Context as _;
use clap::Subcommand;
use serde_json::json;

use crate::{
    client::Client,
    output::{Output, print},
    show::{Table, table},
    views::Rack,
    watch::{self, Told, Watch},
};

#[derive(Subcommand)]
pub(crate) enum RackCommand {
    /// Create a rack
    #[command(after_help = "  rackhand rack create lab --node 10.77.0.1/24 --delegated 10.77.0.100-10.77.0.199 \\
      --gateway 10.77.0.1 --dns 10.77.0.53")]
    Create {
        /// Its name
        name: String,
        /// The provisioning network, with the node's own address in it
        #[arg(long, value_name = "ADDRESS/LENGTH")]
        node: String,
        /// Addresses the node may give to machines nobody knows yet
        #[arg(long, value_name = "FIRST-LAST")]
        delegated: String,
        /// Default route told to machines
        #[arg(long, value_name = "ADDRESS")]
        gateway: Option<String>,
        /// Name server told to installed systems; may be repeated
        #[arg(long, value_name = "ADDRESS")]
        dns: Vec<String>,
    },
    /// List racks
    List {
        #[command(flatten)]
        watch: Watch,
    },
}

pub(crate) async fn run(client: &Client, command: RackCommand, output: Output) -> anyhow::Result<String> {
    match command {
        RackCommand::List { watch } => {
            let fetch = async || Ok(client.list("/v1/racks").await?.into());
            watch::show(client, output, watch, Told::ByNobody, fetch, |racks: Vec<_>| list(&racks)).await
        }
        RackCommand::Create { name, node, delegated, gateway, dns } => {
            let (first, last) = delegated.split_once('-').context("--delegated wants two addresses: FIRST-LAST")?;
            let network =
                json!({"node": node, "delegated": [first.trim(), last.trim()], "gateway": gateway, "dns": dns});
            let rack = client.post("/v1/racks", json!({"name": name, "network": network})).await?;
            print(output, rack, |rack: Rack| {
                format!("rack {} is there; next: rackhand agent enrol --rack {}", rack.name, rack.name)
            })
        }
    }
}

fn list(racks: &[Rack]) -> Table {
    let rows = racks.iter().map(|rack| {
        let [first, last] = &rack.network.delegated;
        vec![rack.name.clone(), rack.network.node.clone(), format!("{first}-{last}"), rack.id.clone()]
    });
    table(&["NAME", "NODE", "DELEGATED", "ID"], rows)
        .or_say("no racks yet: rackhand rack create NAME --node 10.77.0.1/24 --delegated 10.77.0.100-10.77.0.199")
}
