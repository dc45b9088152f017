//! `rackhand vrf`: spaces in which an address is one place.

use clap::Subcommand;
use serde::Deserialize;
use serde_json::json;

use crate::{
    client::Client,
    output::{Output, print},
    show::table,
    watch::{self, Told, Watch},
};

#[derive(Subcommand)]
pub(crate) enum VrfCommand {
    /// Create a VRF
    #[command(after_help = "  rackhand vrf create management

The same addresses can be used once in each VRF. There is always one, `default`.")]
    Create {
        /// Its name
        name: String,
    },
    /// List VRFs
    List {
        #[command(flatten)]
        watch: Watch,
    },
}

#[derive(Clone, Debug, Deserialize)]
struct Vrf {
    name: String,
}

pub(crate) async fn run(client: &Client, command: VrfCommand, output: Output) -> anyhow::Result<String> {
    match command {
        VrfCommand::Create { name } => {
            print(output, client.post("/v1/vrfs", json!({"name": name})).await?, |vrf: Vrf| {
                format!("VRF {} is there; next: rackhand aggregate create … --vrf {}", vrf.name, vrf.name)
            })
        }
        VrfCommand::List { watch } => {
            let fetch = async || Ok(client.list("/v1/vrfs").await?.into());
            let shown = |vrfs: Vec<Vrf>| table(&["NAME"], vrfs.into_iter().map(|vrf| vec![vrf.name]));
            watch::show(client, output, watch, Told::ByNobody, fetch, shown).await
        }
    }
}
