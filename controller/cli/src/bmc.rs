//! `rackhand bmc`: how machines' management controllers are reached, and what they tell.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Subcommand;
use rackhand_common::bmc::Seen;
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    client::Client,
    login::unseen,
    output::{Output, done, print},
    show::{Table, or_dash, table},
    views::Machine,
    watch::{self, Told, Watch},
};

#[derive(Subcommand)]
pub(crate) enum BmcCommand {
    /// Say how a machine's BMC is reached: from then on the machine is switched by it
    #[command(after_help = "  rackhand bmc set web-1 --address 10.20.0.5 --user rackhand
  rackhand bmc set web-1 --address 10.20.0.5 --user rackhand --password-file bmc.txt --protocol ipmi
  rackhand bmc identity web-1              # is it the right machine's?

The password is asked for, or read from standard input or --password-file; it is stored sealed
and never shown. A BMC that speaks Redfish is believed by its certificate: the one given, or the
first it shows.")]
    Set {
        /// Name or id
        machine: String,
        /// Its address; with a port when it is not its protocol's own
        #[arg(long, value_name = "ADDRESS[:PORT]")]
        address: String,
        /// Who logs in
        #[arg(long)]
        user: String,
        /// Read the password from this file
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
        /// What it is asked in: Redfish when it answers to it, else IPMI; or one of them
        #[arg(long, default_value = "either", value_parser = ["either", "redfish", "ipmi"])]
        protocol: String,
        /// SHA-256 of the certificate it has to show, in hexadecimal
        #[arg(long, value_name = "SHA-256")]
        fingerprint: Option<String>,
    },
    /// List a rack's BMCs
    List {
        /// Name or id
        rack: String,
        #[command(flatten)]
        watch: Watch,
    },
    /// Forget how a machine's BMC is reached
    Remove {
        /// Name or id
        machine: String,
    },
    /// Ask a BMC what and whose it is, and whether the machine is on
    Identity {
        /// Name or id
        machine: String,
    },
    /// Ask a BMC for all its sensors
    #[command(after_help = "  rackhand bmc sensors web-1
  rackhand bmc sensors web-1 --output json | jq '.sensors.readings[] | select(.severity == \"critical\")'")]
    Sensors {
        /// Name or id
        machine: String,
    },
    /// Ask a BMC for the hardware's event log, oldest entry first
    Log {
        /// Name or id
        machine: String,
    },
    /// Ask a BMC what the machine is made of
    Parts {
        /// Name or id
        machine: String,
    },
}

#[derive(Clone, Debug, Deserialize)]
struct Access {
    machine: String,
    address: String,
    protocol: String,
    user: String,
    fingerprint: Option<String>,
}

pub(crate) async fn run(client: &Client, command: BmcCommand, output: Output) -> anyhow::Result<String> {
    match command {
        BmcCommand::Set { machine, address, user, password_file, protocol, fingerprint } => {
            let password = match &password_file {
                Some(file) => {
                    let text = std::fs::read_to_string(file);
                    let text = text.with_context(|| format!("cannot read {}", file.display()))?;
                    text.trim_end_matches(['\r', '\n']).to_owned()
                }
                None => unseen("Password of the BMC: ")?,
            };
            let body = json!({
                "address": address, "user": user, "password": password, "protocol": protocol,
                "fingerprint": fingerprint,
            });
            let made = client.ask(Method::PUT, &path(client, &machine).await?, Some(body)).await?;
            print(output, made, |made: Access| {
                format!("{machine} is switched by its BMC at {}; next: rackhand bmc identity {machine}", made.address)
            })
        }
        BmcCommand::List { rack, watch } => {
            let list = format!("/v1/racks/{rack}/bmcs");
            let fetch = async || Ok(client.list(&list).await?.into());
            watch::show(client, output, watch, Told::ByNobody, fetch, |all: Vec<Access>| rows(&all)).await
        }
        BmcCommand::Remove { machine } => {
            client.ask(Method::DELETE, &path(client, &machine).await?, None).await?;
            Ok(done(output, format!("the BMC of {machine} is forgotten")))
        }
        BmcCommand::Identity { machine } => look(client, &machine, "identity", output).await,
        BmcCommand::Sensors { machine } => look(client, &machine, "sensors", output).await,
        BmcCommand::Log { machine } => look(client, &machine, "log", output).await,
        BmcCommand::Parts { machine } => look(client, &machine, "parts", output).await,
    }
}

/// Where a machine's BMC is: below its rack.
async fn path(client: &Client, machine: &str) -> anyhow::Result<String> {
    let found: Machine = client.get(&format!("/v1/machines/{machine}")).await?;
    Ok(format!("/v1/racks/{}/bmcs/{}", found.rack, found.id))
}

async fn look(client: &Client, machine: &str, what: &str, output: Output) -> anyhow::Result<String> {
    let seen: Value = client.get(&format!("{}/{what}", path(client, machine).await?)).await?;
    print(output, seen, |seen: Seen| {
        let ((header, rows), skipped) = seen.rows();
        let nothing = match skipped.len() {
            0 => format!("its BMC tells no {what}"),
            _ => format!("its BMC tells no {what} that can be understood: --output json shows what it told"),
        };
        table(header, rows).or_say(nothing)
    })
}

fn rows(all: &[Access]) -> Table {
    let rows = all.iter().map(|access| {
        vec![
            access.machine.clone(),
            access.address.clone(),
            access.protocol.clone(),
            access.user.clone(),
            or_dash(access.fingerprint.as_deref()),
        ]
    });
    table(&["MACHINE", "ADDRESS", "PROTOCOL", "USER", "CERTIFICATE"], rows)
        .shorten(&["CERTIFICATE"])
        .or_say("no BMCs here yet: rackhand bmc set MACHINE --address ADDRESS --user USER")
}
