//! `rackhand firmware`: firmware that was imported, and having it installed on machines, one or a rack of them.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use clap::{Args, Subcommand};
use jiff::Timestamp;
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    client::{Client, Problem, view},
    follow,
    output::{Output, done, print, read},
    run::{Wait, started},
    show::{Table, bytes, or_dash, second, table},
    watch::{self, Told, Watch},
};

#[derive(Subcommand)]
pub(crate) enum FirmwareCommand {
    /// Import firmware: a manifest that says what it is for, and its file
    #[command(after_help = "  rackhand firmware import toy-bmc.toml bmc-2.18.bin

The manifest is TOML: name, component, version, the file's size and SHA-256, which machines it is for.
The file is sent to the controller and kept only if it is what the manifest says; each rack's agent
proves it again before it gives it to a BMC. An import that was cut short is repeated as it was.")]
    Import {
        /// File with the manifest
        manifest: PathBuf,
        /// The firmware itself
        file: PathBuf,
    },
    /// List firmware
    List {
        #[command(flatten)]
        watch: Watch,
    },
    /// Show firmware with its manifest
    Show {
        /// Name or id
        firmware: String,
    },
    /// Delete firmware; machines keep what they have
    Delete {
        /// Name or id
        firmware: String,
    },
    /// Update firmware of a machine that nobody uses, or of a rack's machines, few at a time
    #[command(after_help = "  rackhand firmware update web-1 --wait
  rackhand firmware update web-1 --firmware toy-bmc-2.18
  rackhand firmware update --rack lab --plan large --at-most 10% --stop-after 2

Without --firmware that is installed which the machine's plan names and the machine has not. Each
version is read back: only that tells that it is installed. A machine that is left in doubt is
quarantined. Of a rack those machines are updated that are ready; after as many failures as
--stop-after says no other is begun.")]
    Update {
        /// The machine's name or id
        #[arg(required_unless_present = "rack", conflicts_with = "rack")]
        machine: Option<String>,
        /// What is installed; may be repeated
        #[arg(long, value_name = "NAME", conflicts_with = "rack")]
        firmware: Vec<String>,
        /// A rack, all of whose ready machines are meant
        #[arg(long)]
        rack: Option<String>,
        /// Only machines that are held against this plan
        #[arg(long, requires = "rack")]
        plan: Option<String>,
        /// So many of these machines at once, in percent; one at least
        #[arg(long, value_name = "PERCENT", default_value = "10%", value_parser = percent)]
        at_most: u8,
        /// After so many failures no other machine is begun
        #[arg(long, value_name = "COUNT", default_value_t = 1)]
        stop_after: u32,
        #[command(flatten)]
        wait: Wait,
    },
    /// List what was updated on a machine, and what became of it
    Updates {
        /// Name or id
        machine: String,
    },
    /// Campaigns: updates of a rack's machines, few at a time
    #[command(subcommand)]
    Campaign(CampaignCommand),
}

#[derive(Subcommand)]
pub(crate) enum CampaignCommand {
    /// List campaigns of a rack, the newest first
    List {
        /// Its name or id
        #[arg(long)]
        rack: String,
        #[command(flatten)]
        watch: Watch,
    },
    /// Show a campaign: how far each of its machines is
    Show {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        watch: Watch,
    },
    /// Begin no other machine for now
    Pause {
        #[command(flatten)]
        which: Which,
    },
    /// Have a campaign that is paused go on
    Resume {
        #[command(flatten)]
        which: Which,
    },
    /// Begin no other machine any more; those that are being updated are waited for
    Cancel {
        #[command(flatten)]
        which: Which,
    },
}

#[derive(Args)]
pub(crate) struct Which {
    /// Its id; the rack's newest when left out
    campaign: Option<String>,
    /// The rack's name or id
    #[arg(long)]
    rack: String,
}

#[derive(Deserialize)]
struct Firmware {
    name: String,
    component: String,
    version: String,
    size: u64,
    sha256: String,
    manifest: String,
    here: Option<Timestamp>,
}

#[derive(Deserialize)]
struct Update {
    firmware: String,
    place: String,
    was: Option<String>,
    version: String,
    state: String,
    detail: String,
    updated: Timestamp,
}

#[derive(Deserialize)]
struct Campaign {
    id: String,
    plan: Option<String>,
    at_most: u8,
    stop_after: u32,
    wish: String,
    outcome: Option<String>,
    machines: Vec<Member>,
    created: Timestamp,
}

#[derive(Deserialize)]
struct Member {
    machine: String,
    firmware: Vec<String>,
    state: String,
    detail: String,
}

pub(crate) async fn run(client: &Client, command: FirmwareCommand, output: Output) -> anyhow::Result<String> {
    match command {
        FirmwareCommand::Import { manifest, file } => import(client, &manifest, &file, output).await,
        FirmwareCommand::List { watch } => {
            let fetch = async || Ok(client.list("/v1/firmware").await?.into());
            watch::show(client, output, watch, Told::ByNobody, fetch, |all: Vec<Firmware>| list(&all)).await
        }
        FirmwareCommand::Show { firmware } => {
            let value = client.get(&format!("/v1/firmware/{firmware}")).await?;
            print(output, value, |firmware: Firmware| page(&firmware))
        }
        FirmwareCommand::Delete { firmware } => {
            client.ask(Method::DELETE, &format!("/v1/firmware/{firmware}"), None).await?;
            Ok(done(output, format!("firmware {firmware} is deleted")))
        }
        FirmwareCommand::Update { machine: Some(machine), firmware, wait, .. } => {
            let firmware = Some(firmware).filter(|names| !names.is_empty());
            let body = json!({"firmware": firmware});
            let run = client.post(&format!("/v1/machines/{machine}/update-firmware"), body).await?;
            started(client, run, &wait, output).await
        }
        FirmwareCommand::Update { machine: None, rack, plan, at_most, stop_after, .. } => {
            let rack = rack.context("say which machine, or --rack")?;
            let body = json!({"plan": plan, "at_most": at_most, "stop_after": stop_after});
            let made = client.post(&format!("/v1/racks/{rack}/firmware-campaigns"), body).await?;
            print(output, made, |campaign: Campaign| {
                format!(
                    "campaign {} of {} machines has begun; see how it goes with: rackhand firmware campaign show --rack \
                     {rack} --watch",
                    campaign.id,
                    campaign.machines.len()
                )
            })
        }
        FirmwareCommand::Updates { machine } => {
            let items = client.list(&format!("/v1/machines/{machine}/firmware-updates")).await?;
            print(output, items.into(), |updates: Vec<Update>| history(&updates))
        }
        FirmwareCommand::Campaign(command) => campaign(client, command, output).await,
    }
}

async fn import(client: &Client, manifest: &Path, file: &Path, output: Output) -> anyhow::Result<String> {
    let text = read(manifest)?;
    let told = match client.post("/v1/firmware", json!({"manifest": text})).await {
        // An import that was cut short goes on.
        Err(error) if error.downcast_ref::<Problem>().is_some_and(|problem| problem.kind.ends_with("conflict")) => {
            let name: Name = toml::from_str(&text).context("the manifest is not TOML")?;
            let known: Value = client.get(&format!("/v1/firmware/{}", name.name)).await?;
            let firmware: Firmware = view(known.clone())?;
            ensure!(firmware.manifest == text, "{error}, with another manifest: give this one another name");
            known
        }
        told => told?,
    };
    if client.is_dry() {
        return print(output, told, |firmware: Firmware| page(&firmware));
    }
    let firmware: Firmware = view(told)?;
    let path = format!("/v1/firmware/{}/file", firmware.name);
    let sent: Value = follow::upload(client, &path, file, !output.is_for_people()).await?;
    print(output, sent, |firmware: Firmware| page(&firmware))
}

/// What is asked of a manifest here: everything else is the controller's to judge.
#[derive(Deserialize)]
struct Name {
    name: String,
}

async fn campaign(client: &Client, command: CampaignCommand, output: Output) -> anyhow::Result<String> {
    let (which, wish) = match command {
        CampaignCommand::List { rack, watch } => {
            let path = format!("/v1/racks/{rack}/firmware-campaigns");
            let fetch = async || Ok(client.list(&path).await?.into());
            let shown = |campaigns: Vec<Campaign>| campaigns_table(&campaigns);
            return watch::show(client, output, watch, Told::ByNobody, fetch, shown).await;
        }
        CampaignCommand::Show { which, watch } => {
            let path = which.path(client).await?;
            let fetch = async || client.get(&path).await;
            return watch::show(client, output, watch, Told::ByNobody, fetch, |campaign: Campaign| progress(&campaign))
                .await;
        }
        CampaignCommand::Pause { which } => (which, "pause"),
        CampaignCommand::Resume { which } => (which, "run"),
        CampaignCommand::Cancel { which } => (which, "cancel"),
    };
    let path = which.path(client).await?;
    let value = client.ask(Method::PATCH, &path, Some(json!({"wish": wish}))).await?;
    print(output, value, |campaign: Campaign| progress(&campaign))
}

impl Which {
    async fn path(&self, client: &Client) -> anyhow::Result<String> {
        let all = format!("/v1/racks/{}/firmware-campaigns", self.rack);
        let id = match &self.campaign {
            Some(id) => id.clone(),
            None => {
                let page: Value = client.get(&format!("{all}?limit=1")).await?;
                let newest = page["items"][0]["id"].as_str();
                newest.with_context(|| format!("rack {} had no campaign yet", self.rack))?.to_owned()
            }
        };
        Ok(format!("{all}/{id}"))
    }
}

fn percent(text: &str) -> Result<u8, String> {
    let number = text.strip_suffix('%').unwrap_or(text).trim();
    let percent = number.parse().ok().filter(|percent| (1..=100).contains(percent));
    percent.ok_or_else(|| "is of 1% to 100%".to_owned())
}

fn list(all: &[Firmware]) -> Table {
    let rows = all.iter().map(|firmware| {
        vec![
            firmware.name.clone(),
            firmware.component.clone(),
            firmware.version.clone(),
            bytes(firmware.size),
            if firmware.here.is_some() { "ready" } else { "no file yet" }.to_owned(),
        ]
    });
    table(&["NAME", "COMPONENT", "VERSION", "SIZE", "STATE"], rows)
        .or_say("no firmware yet: rackhand firmware import MANIFEST.toml FILE")
}

fn page(firmware: &Firmware) -> String {
    let here = firmware.here.map_or("its file is not here yet: repeat the import".to_owned(), second);
    format!(
        "{}  {} {}\n  here    {here}\n  size    {}\n  sha256  {}\n\n{}",
        firmware.name,
        firmware.component,
        firmware.version,
        bytes(firmware.size),
        firmware.sha256,
        firmware.manifest.trim_end()
    )
}

fn history(updates: &[Update]) -> Table {
    let rows = updates.iter().map(|update| {
        let was = update.was.as_deref().unwrap_or("-");
        vec![
            update.firmware.clone(),
            update.place.clone(),
            format!("{was} to {}", update.version),
            update.state.clone(),
            or_dash(Some(update.detail.as_str()).filter(|detail| !detail.is_empty())),
            second(update.updated),
        ]
    });
    table(&["FIRMWARE", "OF", "VERSION", "STATE", "WHY", "AT"], rows)
        .shorten(&["WHY"])
        .or_say("nothing was updated yet: rackhand firmware update MACHINE")
}

fn count(campaign: &Campaign, state: &str) -> usize {
    campaign.machines.iter().filter(|member| member.state == state).count()
}

/// Where it is, in a few words.
fn standing(campaign: &Campaign) -> String {
    let ended = campaign.outcome.clone();
    ended.unwrap_or_else(|| match campaign.wish.as_str() {
        "pause" => "paused".to_owned(),
        "cancel" => "being cancelled".to_owned(),
        _ => "going on".to_owned(),
    })
}

fn campaigns_table(campaigns: &[Campaign]) -> Table {
    let rows = campaigns.iter().map(|campaign| {
        vec![
            campaign.id.clone(),
            or_dash(campaign.plan.as_deref()),
            standing(campaign),
            format!("{} of {}", count(campaign, "done"), campaign.machines.len()),
            count(campaign, "failed").to_string(),
            second(campaign.created),
        ]
    });
    table(&["ID", "PLAN", "STATE", "DONE", "FAILED", "MADE"], rows)
        .only_wide(&["MADE"])
        .or_say("no campaigns yet: rackhand firmware update --rack RACK")
}

fn progress(campaign: &Campaign) -> String {
    let mut lines = vec![format!(
        "campaign {}: {}; {} of {} done, {} failed, at most {} % at once, stops after {}",
        campaign.id,
        standing(campaign),
        count(campaign, "done"),
        campaign.machines.len(),
        count(campaign, "failed"),
        campaign.at_most,
        campaign.stop_after
    )];
    let width = campaign.machines.iter().map(|member| member.machine.len()).max().unwrap_or(0);
    lines.extend(campaign.machines.iter().map(|member| {
        let why = if member.detail.is_empty() { String::new() } else { format!("  {}", member.detail) };
        format!("  {:width$}  {:<8}  {}{why}", member.machine, member.state, member.firmware.join(", "))
    }));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::show::Surface;

    #[test]
    fn a_campaign_is_shown_with_what_became_of_each_machine() {
        let campaign: Campaign = serde_json::from_value(json!({
            "id": "01931b1e-0000-7000-8000-000000000001", "plan": "large", "at_most": 10, "stop_after": 1,
            "wish": "run", "outcome": "stopped", "created": "2027-01-01T00:00:00Z", "machines": [
                {"machine": "web-1", "firmware": ["toy-bmc-2.18"], "state": "done", "detail": ""},
                {"machine": "web-10", "firmware": ["toy-bmc-2.18"], "state": "failed", "detail": "2.17 was read"},
            ],
        }))
        .unwrap();
        expect![[r#"
            campaign 01931b1e-0000-7000-8000-000000000001: stopped; 1 of 2 done, 1 failed, at most 10 % at once, stops after 1
              web-1   done      toy-bmc-2.18
              web-10  failed    toy-bmc-2.18  2.17 was read"#]]
        .assert_eq(&progress(&campaign));
        expect![[r#"
            ID                                    PLAN   STATE    DONE    FAILED
            01931b1e-0000-7000-8000-000000000001  large  stopped  1 of 2  1"#]]
        .assert_eq(&campaigns_table(&[campaign]).on(&Surface::default()));
    }

    #[test]
    fn a_share_is_said_with_a_percent_sign_or_without() {
        assert_eq!((percent("10%"), percent("7"), percent("100 %")), (Ok(10), Ok(7), Ok(100)));
        assert!(["0", "101%", "", "%", "ten"].iter().all(|text| percent(text).is_err()));
    }
}
