//! `rackhand bmc`: how machines' management controllers are reached, and what they tell.

use std::{path::PathBuf, time::Duration};

use anyhow::Context as _;
use clap::Subcommand;
use jiff::Timestamp;
use rackhand_common::{
    bmc::{Identity, Seen},
    machine::Mainboard,
};
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    client::Client,
    login::unseen,
    manifest,
    output::{self, Output, done, print},
    run::{Wait, started},
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
    /// Give a machine's BMC another password: a random one, which nobody sees
    #[command(after_help = "  rackhand bmc rotate web-1
  rackhand bmc rotate --rack r1            # one after the other, until one fails
  rackhand bmc rotate --rack r1 --keep-going

The rack's agent sets it, logs in with it to prove it, and only then the one before is forgotten.
What is interrupted goes on by itself; what failed goes on when it is asked for again.")]
    Rotate {
        /// Name or id
        #[arg(required_unless_present = "rack")]
        machine: Option<String>,
        /// Those of all machines of this rack, one after the other
        #[arg(long, value_name = "RACK", conflicts_with = "machine")]
        rack: Option<String>,
        /// Go on with the next one when one fails
        #[arg(long, requires = "rack")]
        keep_going: bool,
    },
    /// Have a machine's BMC let us in again that takes our password no more, or has lost our user
    #[command(after_help = "  rackhand bmc regain web-1 --wait

The installer on the machine sets user and a fresh password in-band, enables the user, has it be an
administrator and opens the BMC's LAN to it; the rack's agent then logs in with it to prove it. The machine
has to be nobody's: ready, in maintenance or quarantined. When its installer is not there, switch the
machine off and on by hand and have it start from the network. A release does the same by itself.")]
    Regain {
        /// Name or id
        machine: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Say how BMCs are reached as a manifest does, also those of machines that nobody has seen yet
    #[command(after_help = "  rackhand bmc import delivery.csv --rack r1 --rotate

A CSV file has a line of names and then a line for each BMC; a JSON file is a list of objects with
the same names:

  serial,machine,address,protocol,user,password,fingerprint
  7G00001,,10.20.0.5,,root,calvin,

`address`, `user` and `password` are needed, and `serial` (of the mainboard) or `machine` (id or
name). A BMC whose machine is not known waits for it. Nothing is taken when a line is wrong. The same
file again changes nothing, also when BMCs have other passwords by then.

  rackhand bmc import --rack r1 --try-factory yes

BMCs that the rack's node finds and no manifest tells of are then logged in to with what their vendor
gives them in the factory, and get another password once it is known whose they are.")]
    Import {
        /// CSV or JSON
        #[arg(required_unless_present = "try_factory")]
        file: Option<PathBuf>,
        /// The rack they are in
        #[arg(long)]
        rack: String,
        /// Take what is right although other lines are wrong
        #[arg(long)]
        partial: bool,
        /// Give each another password as soon as it can be
        #[arg(long)]
        rotate: bool,
        /// Whether found BMCs that no manifest tells of are tried with their factory passwords
        #[arg(long, value_name = "yes|no", value_parser = ["yes", "no"])]
        try_factory: Option<String>,
    },
    /// List the BMCs that answer on a rack's management network, and whose they are
    #[command(after_help = "  rackhand bmc found r1
  rackhand bmc found r1 --output json | jq '.[] | select(.state == \"disputed\") | .detail'

`joined`: it is a machine's. `found`: it was not logged in to. `denied`: it did not take the password.
`met`: its machine was not seen yet. `disputed`: who says whose it is do not agree. Which networks are
looked in is said in agent.toml on the rack's node, and where BMCs are given addresses in boot.toml.
FOUND BY: `dhcp` by the address that the node gave it, `range` where it was looked for, and `manifest`
when one names its address.")]
    Found {
        /// Name or id
        rack: String,
        #[command(flatten)]
        watch: Watch,
    },
    /// List a rack's BMCs that wait for their machines
    Expected {
        /// Name or id
        rack: String,
        /// Forget them all
        #[arg(long)]
        forget: bool,
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
    /// Controllers of before do not say it.
    machine_name: Option<String>,
    address: String,
    protocol: String,
    user: String,
    fingerprint: Option<String>,
    rotated: Option<Timestamp>,
    rotation: Option<Rotation>,
    denied: Option<u32>,
    rests_until: Option<Timestamp>,
    other: Option<Identity>,
    mainboard: Option<Mainboard>,
}

#[derive(Deserialize)]
struct Imported {
    set: u32,
    waiting: u32,
    unchanged: u32,
    refused: Vec<RefusedRow>,
}

#[derive(Deserialize)]
struct RefusedRow {
    line: u32,
    detail: String,
}

#[derive(Deserialize)]
struct Expected {
    serial: String,
    address: String,
    user: String,
    rotate: bool,
}

#[derive(Clone, Debug, Deserialize)]
struct Found {
    address: String,
    ipmi: Option<u16>,
    redfish: Option<u16>,
    vendor: Option<String>,
    model: Option<String>,
    #[serde(default)]
    found_by: Vec<String>,
    mac: Option<String>,
    hostname: Option<String>,
    vendor_class: Option<String>,
    last_seen: Timestamp,
    state: String,
    detail: Option<String>,
    machine: Option<String>,
    machine_name: Option<String>,
    identity: Option<Identity>,
}

#[derive(Clone, Debug, Deserialize)]
struct Rotation {
    detail: Option<String>,
    failed: Option<String>,
}

impl Access {
    /// What its machine is called, or its id.
    fn name(&self) -> &str {
        self.machine_name.as_deref().unwrap_or(&self.machine)
    }

    /// What there is to say of it, the most urgent first.
    fn state(&self) -> String {
        let rotation = self.rotation.as_ref();
        if let Some(other) = &self.other {
            let wanted = self.mainboard.as_ref().map_or_else(|| "another".to_owned(), ToString::to_string);
            let serial = other.serial.as_deref().unwrap_or("none");
            return format!("is on mainboard {serial}, and not on {wanted}: switches nothing");
        }
        if let Some(until) = self.rests_until {
            let denied = self.denied.unwrap_or_default();
            return format!("{denied} logins denied, none is tried before {}", until.strftime("%Y-%m-%d %H:%M UTC"));
        }
        if let Some(failed) = rotation.and_then(|rotation| rotation.failed.as_deref()) {
            return format!("new password: FAILED: {failed}");
        }
        if let Some(rotation) = rotation {
            return format!("new password: {}", rotation.detail.as_deref().unwrap_or("under way"));
        }
        match (self.denied, self.rotated) {
            (Some(denied @ 1..), _) => format!("{denied} login denied"),
            (_, Some(rotated)) => format!("password of {}", rotated.strftime("%Y-%m-%d")),
            _ => "-".to_owned(),
        }
    }
}

/// How often it is asked whether a BMC has its password.
const AGAIN: Duration = Duration::from_secs(1);

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
        BmcCommand::Rotate { machine: Some(machine), .. } => {
            let made = rotate(client, &path(client, &machine).await?, &machine).await?;
            print(output, made, |_: Access| format!("the BMC of {machine} has another password"))
        }
        BmcCommand::Rotate { rack, keep_going, .. } => {
            let rack = rack.context("a machine or --rack is needed")?;
            let path = format!("/v1/racks/{rack}/bmcs");
            let all: Vec<Access> = serde_json::from_value(client.list(&path).await?.into())?;
            let (mut done, mut failed) = (0, 0);
            for bmc in &all {
                match rotate(client, &format!("{path}/{}", bmc.machine), bmc.name()).await {
                    Ok(_) => done += 1,
                    Err(error) if keep_going => {
                        failed += 1;
                        eprintln!("{error:#}");
                    }
                    Err(error) => {
                        let left = all.len() - done - 1;
                        return Err(error
                            .context(format!("{done} BMCs of {rack} have another password, {left} were not tried")));
                    }
                }
            }
            anyhow::ensure!(failed == 0, "{failed} of {} BMCs of {rack} have no other password", all.len());
            Ok(output::done(output, format!("{done} BMCs of {rack} have another password")))
        }
        BmcCommand::Regain { machine, wait } => {
            let path = format!("{}/regain", path(client, &machine).await?);
            started(client, client.post(&path, json!({})).await?, &wait, output).await
        }
        BmcCommand::Import { file, rack, partial, rotate, try_factory } => {
            let rows = match &file {
                Some(file) => {
                    let text = std::fs::read_to_string(file);
                    let text = text.with_context(|| format!("cannot read {}", file.display()))?;
                    manifest::rows(&text).with_context(|| format!("{} is no manifest", file.display()))?
                }
                None => Vec::new(),
            };
            let tries = try_factory.map(|word| word == "yes");
            let body = json!({ "bmcs": rows, "partial": partial, "rotate": rotate, "try_factory": tries });
            let made = client.ask(Method::POST, &format!("/v1/racks/{rack}/expected-bmcs"), Some(body)).await?;
            print(output, made, |made: Imported| {
                let Imported { set, waiting, unchanged, refused } = made;
                let mut text =
                    format!("{set} are reached, {waiting} wait for their machines, {unchanged} are as they were");
                for row in refused {
                    text += &format!("\nline {} is not taken: {}", row.line, row.detail);
                }
                text
            })
        }
        BmcCommand::Found { rack, watch } => {
            let list = format!("/v1/racks/{rack}/found-bmcs");
            let fetch = async || Ok(client.list(&list).await?.into());
            watch::show(client, output, watch, Told::ByNobody, fetch, |all: Vec<Found>| found(&all)).await
        }
        BmcCommand::Expected { rack, forget: true } => {
            client.ask(Method::DELETE, &format!("/v1/racks/{rack}/expected-bmcs"), None).await?;
            Ok(done(output, format!("no BMC waits for its machine in {rack}")))
        }
        BmcCommand::Expected { rack, .. } => {
            let all: Value = client.list(&format!("/v1/racks/{rack}/expected-bmcs")).await?.into();
            print(output, all, |all: Vec<Expected>| {
                let rows = all.iter().map(|bmc| {
                    let rotate = if bmc.rotate { "gets another" } else { "stays" };
                    vec![bmc.serial.clone(), bmc.address.clone(), bmc.user.clone(), rotate.to_owned()]
                });
                table(&["SERIAL", "ADDRESS", "USER", "PASSWORD"], rows).or_say("no BMC waits for its machine")
            })
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

/// Has a BMC get another password and waits for that.
async fn rotate(client: &Client, path: &str, machine: &str) -> anyhow::Result<Value> {
    client.ask(Method::POST, &format!("{path}/rotate"), None).await?;
    let mut said = None;
    loop {
        tokio::time::sleep(AGAIN).await;
        let now: Value = client.get(path).await?;
        let bmc: Access = serde_json::from_value(now.clone())?;
        let Some(rotation) = bmc.rotation else { return Ok(now) };
        if let Some(failed) = rotation.failed {
            anyhow::bail!("the BMC of {machine} has no other password: {failed}");
        }
        if rotation.detail.is_some() && said != rotation.detail {
            eprintln!("{machine}: {}", rotation.detail.as_deref().unwrap_or_default());
            said = rotation.detail;
        }
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
            access.name().to_owned(),
            access.address.clone(),
            access.protocol.clone(),
            access.user.clone(),
            or_dash(access.fingerprint.as_deref()),
            access.state(),
        ]
    });
    table(&["MACHINE", "ADDRESS", "PROTOCOL", "USER", "CERTIFICATE", "STATE"], rows)
        .shorten(&["CERTIFICATE"])
        .or_say("no BMCs here yet: rackhand bmc set MACHINE --address ADDRESS --user USER")
}

fn found(all: &[Found]) -> Table {
    let rows = all.iter().map(|bmc| {
        let speaks = match (bmc.redfish, bmc.ipmi) {
            (Some(_), Some(_)) => "redfish, ipmi",
            (Some(_), None) => "redfish",
            (None, Some(_)) => "ipmi",
            (None, None) => "-",
        };
        let card: Vec<_> = [&bmc.hostname, &bmc.vendor_class].into_iter().flatten().map(String::as_str).collect();
        let told: Vec<_> = [&bmc.vendor, &bmc.model].into_iter().flatten().map(String::as_str).collect();
        let serial = bmc.identity.as_ref().and_then(|identity| identity.serial.as_deref());
        vec![
            bmc.address.clone(),
            bmc.found_by.join(", "),
            or_dash(bmc.mac.as_deref()),
            or_dash(Some(card.join(", ").as_str()).filter(|card| !card.is_empty())),
            speaks.to_owned(),
            or_dash(Some(told.join(" ").as_str()).filter(|told| !told.is_empty())),
            or_dash(serial),
            bmc.last_seen.strftime("%Y-%m-%d %H:%M UTC").to_string(),
            bmc.state.clone(),
            or_dash([&bmc.detail, &bmc.machine_name, &bmc.machine].into_iter().find_map(|told| told.as_deref())),
        ]
    });
    table(&["ADDRESS", "FOUND BY", "MAC", "SAYS BY DHCP", "SPEAKS", "BMC", "SERIAL", "SEEN", "STATE", "DETAIL"], rows)
        .or_say(
            "no BMC was found here: which networks are looked in is said in agent.toml (discovery.networks), and \
             where BMCs are given addresses in boot.toml (management)",
        )
}
