//! `rackhand machine`: from adoption to retirement.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use jiff::{SignedDuration, Timestamp};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    adoption::{self, RunningMachine},
    baseline::{self, BaselineCommand},
    client::{Client, given_only},
    erasure, follow, hardware,
    health::{self, HealthCommand},
    output::{Output, done, print, read},
    run::{Wait, started, waits},
    show::{Table, bytes, or_dash, second, table},
    views::{Erasure, Event, Machine, TestResult},
    watch::{self, Told, Watch},
};

#[derive(Subcommand)]
pub(crate) enum MachineCommand {
    /// List machines
    #[command(after_help = "  rackhand machine list --lifecycle ready --sort name
  rackhand machine list --rack lab --alert
  rackhand machine list --mac 52:54:00:12:34:56")]
    List {
        #[command(flatten)]
        filter: MachineFilter,
        #[command(flatten)]
        watch: Watch,
    },
    /// Show one machine: where it stands, what is in it, what can be done
    Show {
        /// Name or id
        machine: String,
        #[command(flatten)]
        watch: Watch,
    },
    /// Say that a discovered machine is ours
    #[command(after_help = "  rackhand machine adopt m-525400123456 --rename web-1

A machine whose disks hold data is only adopted with --accept-data: a later deploy
overwrites them.")]
    Adopt {
        /// Name or id
        machine: String,
        /// Give it a name at once
        #[arg(long, value_name = "NAME")]
        rename: Option<String>,
        #[command(flatten)]
        accept: Accept,
    },
    /// Say that a machine is ours that was never seen, and that goes on running what it runs
    #[command(after_help = adoption::EXAMPLES)]
    AdoptRunning(RunningMachine),
    /// Print a shell script that tells what a running machine is, for adopt-running --facts
    #[command(after_help = "  rackhand machine facts-script | ssh root@web-1 sh > web-1.json
  rackhand machine adopt-running web-1 --rack r1 --facts web-1.json")]
    FactsScript,
    /// Say that a machine's parts were replaced and are right as they are now
    #[command(after_help = "  rackhand machine show web-1          # what was, what is
  rackhand machine replace-part web-1

A machine whose mainboard, network card or disk is another than when it was adopted is not
deployed and not erased until somebody says so.")]
    ReplacePart {
        /// Name or id
        machine: String,
        #[command(flatten)]
        accept: Accept,
    },
    /// Say that a machine which was discovered is one we had already
    #[command(after_help = "  rackhand machine merge m-7a01 --into web-1

For a machine that came back with another mainboard, or in another rack. It keeps name and
history of web-1; what differs is shown, and wants replace-part.")]
    Merge {
        /// Name or id of the one that was discovered
        machine: String,
        /// Name or id of the one it is
        #[arg(long)]
        into: String,
    },
    /// Remove a machine that is nobody's; should it start again, it is discovered anew
    Forget {
        /// Name or id
        machine: String,
    },
    /// Install an operating system
    #[command(after_help = "  rackhand machine deploy web-1 --image debian-12 --ssh-key ~/.ssh/id_ed25519.pub --wait
  rackhand machine deploy web-1 --image debian-12@3 --ssh-key key.pub
  rackhand machine deploy web-1 --image debian-12 --ssh-key key.pub --user-data cloud-config.yaml
  rackhand machine deploy web-1 --image debian-12 --ssh-key key.pub --project acme:shop")]
    Deploy {
        /// Name or id
        machine: String,
        /// The image: its name, with a version or a digest when it should not be the newest, or its id
        #[arg(long)]
        image: String,
        /// Host name; otherwise the machine's name
        #[arg(long, value_name = "NAME")]
        hostname: Option<String>,
        /// File with public keys that may log in as root and as the first user; may be repeated
        #[arg(long = "ssh-key", value_name = "FILE")]
        ssh_keys: Vec<PathBuf>,
        /// File with user data: cloud-init's, or a configuration for Ignition when the image takes that
        #[arg(long, value_name = "FILE")]
        user_data: Option<PathBuf>,
        /// Identity of the disk to install on; otherwise the smallest that is large enough
        #[arg(long, value_name = "IDENTITY")]
        disk: Option<String>,
        /// Give it to this project (name, ORGANISATION:NAME or id); otherwise it stays whose it is
        #[arg(long)]
        project: Option<String>,
        #[command(flatten)]
        wait: Wait,
    },
    /// Install a system anew on a machine that keeps its owner and its addresses
    #[command(after_help = "  rackhand machine reinstall web-1 --wait
  rackhand machine reinstall web-1 --image debian-13 --wait

What is not said is as it was: image, host name, keys and disk. What is on the system's own disk
is lost; other disks are not touched. User data that was given before is forgotten by the
controller: give it again, or --no-user-data.")]
    Reinstall {
        /// Name or id
        machine: String,
        /// Another image: its name, with a version or a digest when it should not be the newest, or its id
        #[arg(long)]
        image: Option<String>,
        /// Another host name
        #[arg(long, value_name = "NAME")]
        hostname: Option<String>,
        /// File with other public keys that may log in; may be repeated
        #[arg(long = "ssh-key", value_name = "FILE")]
        ssh_keys: Vec<PathBuf>,
        /// File with user data
        #[arg(long, value_name = "FILE", conflicts_with = "no_user_data")]
        user_data: Option<PathBuf>,
        /// There is no user data this time
        #[arg(long)]
        no_user_data: bool,
        /// Identity of another disk to install on
        #[arg(long, value_name = "IDENTITY")]
        disk: Option<String>,
        #[command(flatten)]
        wait: Wait,
    },
    /// Show what in a machine is not as its plan expects, slot by slot
    #[command(after_help = "  rackhand machine findings web-1
  rackhand plan suggest web-1              # what a plan could expect of machines like this one
  rackhand machine inspect web-1 --wait    # has a fresh installer look again

A machine is held against the plan it comes nearest to, of those of its make. Links with fewer
lanes than they could have, memory errors and failing disks are findings without a plan too.")]
    Findings {
        /// Name or id
        machine: String,
    },
    /// Log in to an active machine beside its own system, which stands still meanwhile
    #[command(after_help = "  rackhand machine rescue web-1 --wait
  rackhand machine rescue web-1 --key ~/.ssh/id_ed25519.pub --for 4h --wait
  rackhand machine show web-1             # where to log in, and the host key's fingerprint
  rackhand machine leave-rescue web-1 --wait

The machine is restarted into a system in memory with an SSH server; nothing is written to its disks.
Root logs in by the keys the machine was deployed with, unless others are given; there are no passwords.
Compare the fingerprint that ssh shows with the one `rackhand machine show` shows. When the time is over
the machine has an alert; it does not leave rescue by itself.")]
    Rescue {
        /// Name or id
        machine: String,
        /// File with public keys that may log in, instead of those it was deployed with; may be repeated
        #[arg(long = "key", value_name = "FILE")]
        keys: Vec<PathBuf>,
        /// How long it takes, as 4h or 2d; at most 30 days
        #[arg(long = "for", value_name = "TIME", default_value = "24h", value_parser = span)]
        period: SignedDuration,
        #[command(flatten)]
        wait: Wait,
    },
    /// Have a machine in rescue start its own system again
    #[command(after_help = "  rackhand machine leave-rescue web-1 --wait

Whoever is logged in is cut off; what they wrote is on the disks.")]
    LeaveRescue {
        /// Name or id
        machine: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Restart a machine that nobody uses into a fresh installer, which tells what is in it now
    Inspect {
        /// Name or id
        machine: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Test a machine that nobody uses: memory, processors, disks, network cards, clock
    #[command(after_help = "  rackhand machine test web-1 --wait
  rackhand machine test web-1 --only memory --only cpu
  rackhand machine tests web-1

Its installer runs the tests, which takes an hour or so when all are. The run is done when they are
over; what they showed is listed by `rackhand machine tests`, and a machine that did not pass has an
alert. Tests that write to disks are run only when they are named, with --accept-data-loss.")]
    Test {
        /// Name or id
        machine: String,
        /// Only this test; may be repeated
        #[arg(long, value_name = "TEST")]
        only: Vec<String>,
        /// What is on its disks may be lost
        #[arg(long, requires = "only")]
        accept_data_loss: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// List what tests of a machine showed: the latest of each
    #[command(after_help = "  rackhand machine tests web-1
  rackhand machine tests web-1 --all --only memory
  rackhand machine tests web-1 --output json       # with what each said and measured")]
    Tests {
        /// Name or id
        machine: String,
        /// Earlier ones too, the newest first
        #[arg(long)]
        all: bool,
        /// Only of this test
        #[arg(long, value_name = "TEST")]
        only: Option<String>,
    },
    /// Take a ready machine out of service while somebody works on it
    #[command(after_help = "  rackhand machine maintain web-1 --reason 'fan 3 is loud' --for 4h
  rackhand machine resume web-1

It does not come back by itself: when the time is over it has an alert.")]
    Maintain {
        /// Name or id
        machine: String,
        /// Why, in a few words
        #[arg(long)]
        reason: String,
        /// For how long: 4h, 2d 12h; at most 90 days
        #[arg(long = "for", value_name = "TIME", default_value = "24h", value_parser = span)]
        period: SignedDuration,
    },
    /// Put a machine back into service after maintenance
    Resume {
        /// Name or id
        machine: String,
    },
    /// Have nobody given a machine before it is released, which erases it
    Quarantine {
        /// Name or id
        machine: String,
        /// Why, in a few words
        #[arg(long)]
        reason: String,
    },
    /// Take a machine out of service for good
    #[command(after_help = "  rackhand machine retire web-1 --reason 'out of warranty'
  rackhand machine forget web-1            # once it is out of its rack
  rackhand machine quarantine web-1 --reason 'bought a new board'   # back, by way of a release

It stays in the books: should it start, it is not discovered anew.")]
    Retire {
        /// Name or id
        machine: String,
        /// Why, in a few words
        #[arg(long)]
        reason: String,
    },
    /// Take a machine back and erase its disks
    #[command(after_help = "  rackhand machine release web-1 --wait

Everything on its disks is overwritten and read back. There is no way to undo it.")]
    Release {
        /// Name or id
        machine: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Switch chassis power
    Power {
        /// Name or id
        machine: String,
        /// What to do; off and cycle do not ask the operating system
        action: PowerAction,
        #[command(flatten)]
        wait: Wait,
    },
    /// Give a machine another name
    Rename {
        /// Name or id
        machine: String,
        /// The new name
        name: String,
    },
    /// Show what a machine's BMC is to be like, and accept it
    #[command(subcommand)]
    Baseline(BaselineCommand),
    /// Show how a machine fares, and what its sensors read over time
    #[command(subcommand)]
    Health(HealthCommand),
    /// List what became of a machine's disks in its releases, the newest first
    #[command(after_help = "  rackhand machine erasures web-1

Each is a certificate: see `rackhand erasure show`. They stay when the machine is forgotten.")]
    Erasures {
        /// Name or id
        machine: String,
    },
    /// Show what happened to a machine, oldest first
    Timeline {
        /// Name or id
        machine: String,
    },
}

/// Which machines, and in which order.
#[derive(Args)]
pub(crate) struct MachineFilter {
    /// Only those of this rack
    #[arg(long)]
    rack: Option<String>,
    /// Only those there in their life: discovered, ready, deploying, active, releasing, quarantined,
    /// maintenance, retired
    #[arg(long)]
    lifecycle: Option<String>,
    /// Only those with this image on them: its name, or name@version
    #[arg(long)]
    image: Option<String>,
    /// Only those that match this plan
    #[arg(long)]
    plan: Option<String>,
    /// Only those whose names begin so
    #[arg(long)]
    name: Option<String>,
    /// Only the one with this network card
    #[arg(long)]
    mac: Option<String>,
    /// Only those with an alert
    #[arg(long)]
    alert: bool,
    /// Only those that fare so: ok, warning, critical, unknown
    #[arg(long)]
    health: Option<String>,
    /// By `name`, or in the order in which they were `discovered`
    #[arg(long, default_value = "discovered")]
    sort: String,
}

impl MachineFilter {
    fn query(self) -> Vec<(&'static str, String)> {
        let Self { rack, lifecycle, image, plan, name, mac, alert, health, sort } = self;
        let alert = alert.then(|| "true".to_owned());
        let given = [
            ("rack", rack),
            ("lifecycle", lifecycle),
            ("image", image),
            ("plan", plan),
            ("name", name),
            ("mac", mac),
            ("alert", alert),
            ("health", health),
            ("sort", Some(sort)),
        ];
        given_only(given)
    }
}

#[derive(Args)]
pub(crate) struct Accept {
    /// Disks may hold data, which will be lost
    #[arg(long)]
    accept_data: bool,
    /// Parts may be another machine's: they were moved here
    #[arg(long)]
    accept_parts: bool,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum PowerAction {
    On,
    Off,
    Cycle,
}

pub(crate) async fn run(client: &Client, command: MachineCommand, output: Output) -> anyhow::Result<String> {
    match command {
        MachineCommand::List { filter, watch } => {
            let query = filter.query();
            let fetch = async || Ok(client.list_with("/v1/machines", query.clone()).await?.into());
            watch::show(client, output, watch, Told::ByEvents, fetch, |machines: Vec<_>| list(&machines)).await
        }
        MachineCommand::Show { machine, watch } => {
            let fetch = async || {
                let mut value: Value = client.get(&format!("/v1/machines/{machine}")).await?;
                // A controller of an earlier version knows nothing of slots.
                if let Ok(slots) = client.get::<Value>(&format!("/v1/machines/{machine}/hardware")).await {
                    value["slots"] = slots;
                }
                if let Some(run) = value["run"].as_str() {
                    value["in_progress"] = client.get(&format!("/v1/runs/{run}")).await?;
                }
                Ok(value)
            };
            watch::show(client, output, watch, Told::ByEvents, fetch, |machine| page(&machine)).await
        }
        MachineCommand::Findings { machine } => {
            let value = client.get(&format!("/v1/machines/{machine}/hardware")).await?;
            print(output, value, |known| hardware::table_of(&known))
        }
        MachineCommand::Adopt { machine, rename, accept } => {
            let body = json!({
                "name": rename, "accept_data": accept.accept_data, "accept_parts": accept.accept_parts,
            });
            let value = client.post(&format!("/v1/machines/{machine}/adopt"), body).await?;
            print(output, value, |machine| page(&machine))
        }
        MachineCommand::AdoptRunning(running) => adoption::run(client, running, output).await,
        MachineCommand::FactsScript => Ok(adoption::SCRIPT.trim_end().to_owned()),
        MachineCommand::ReplacePart { machine, accept } => {
            let body = json!({"accept_data": accept.accept_data, "accept_parts": accept.accept_parts});
            let value = client.post(&format!("/v1/machines/{machine}/replace-part"), body).await?;
            print(output, value, |machine| page(&machine))
        }
        MachineCommand::Merge { machine, into } => {
            let value = client.post(&format!("/v1/machines/{into}/merge"), json!({"from": machine})).await?;
            print(output, value, |machine| page(&machine))
        }
        MachineCommand::Forget { machine } => {
            client.ask(Method::DELETE, &format!("/v1/machines/{machine}"), None).await?;
            Ok(done(output, format!("machine {machine} is forgotten")))
        }
        MachineCommand::Deploy { machine, image, hostname, ssh_keys, user_data, disk, project, wait } => {
            let body = json!({
                "image": image,
                "hostname": hostname,
                "ssh_keys": keys(&ssh_keys)?,
                "user_data": user_data.as_deref().map(read).transpose()?,
                "disk": disk,
                "project": project,
            });
            started(client, client.post(&format!("/v1/machines/{machine}/deploy"), body).await?, &wait, output).await
        }
        MachineCommand::Reinstall { machine, image, hostname, ssh_keys, user_data, no_user_data, disk, wait } => {
            let user_data =
                if no_user_data { Some(String::new()) } else { user_data.as_deref().map(read).transpose()? };
            let ssh_keys = if ssh_keys.is_empty() { None } else { Some(keys(&ssh_keys)?) };
            let body = json!({
                "image": image, "hostname": hostname, "ssh_keys": ssh_keys, "user_data": user_data, "disk": disk,
            });
            started(client, client.post(&format!("/v1/machines/{machine}/reinstall"), body).await?, &wait, output).await
        }
        MachineCommand::Rescue { machine, keys: files, period, wait } => {
            let until = Timestamp::now().checked_add(period)?;
            let ssh_keys = if files.is_empty() { None } else { Some(keys(&files)?) };
            let body = json!({"ssh_keys": ssh_keys, "until": until});
            started(client, client.post(&format!("/v1/machines/{machine}/rescue"), body).await?, &wait, output).await
        }
        MachineCommand::LeaveRescue { machine, wait } => {
            let run = client.post(&format!("/v1/machines/{machine}/leave-rescue"), json!({})).await?;
            started(client, run, &wait, output).await
        }
        MachineCommand::Inspect { machine, wait } => {
            let run = client.post(&format!("/v1/machines/{machine}/inspect"), json!({})).await?;
            started(client, run, &wait, output).await
        }
        MachineCommand::Test { machine, only, accept_data_loss, wait } => {
            let only = Some(only).filter(|only| !only.is_empty());
            let body = json!({"only": only, "accept_data_loss": accept_data_loss});
            let run = client.post(&format!("/v1/machines/{machine}/test"), body).await?;
            started(client, run, &wait, output).await
        }
        MachineCommand::Tests { machine, all, only } => {
            let latest = Some("true".to_owned()).filter(|_| !all);
            let query = given_only([("test", only), ("latest", latest)]);
            let items = client.list_with(&format!("/v1/machines/{machine}/tests"), query).await?;
            print(output, items.into(), |items: Vec<TestResult>| tested(&items))
        }
        MachineCommand::Maintain { machine, reason, period } => {
            let until = Timestamp::now().checked_add(period)?;
            upkeep(client, &machine, "maintain", json!({"reason": reason, "until": until}), output).await
        }
        MachineCommand::Resume { machine } => upkeep(client, &machine, "resume", json!({}), output).await,
        MachineCommand::Quarantine { machine, reason } => {
            upkeep(client, &machine, "quarantine", json!({"reason": reason}), output).await
        }
        MachineCommand::Retire { machine, reason } => {
            upkeep(client, &machine, "retire", json!({"reason": reason}), output).await
        }
        MachineCommand::Release { machine, wait } => {
            let run = client.post(&format!("/v1/machines/{machine}/release"), json!({})).await?;
            started(client, run, &wait, output).await
        }
        MachineCommand::Power { machine, action, wait } => {
            let action = match action {
                PowerAction::On => "on",
                PowerAction::Off => "off",
                PowerAction::Cycle => "cycle",
            };
            let run = client.post(&format!("/v1/machines/{machine}/power"), json!({"action": action})).await?;
            started(client, run, &wait, output).await
        }
        MachineCommand::Rename { machine, name } => {
            let path = format!("/v1/machines/{machine}");
            let value = client.ask(Method::PATCH, &path, Some(json!({"name": name}))).await?;
            print(output, value, |machine| page(&machine))
        }
        MachineCommand::Baseline(command) => baseline::run(client, command, output).await,
        MachineCommand::Health(command) => health::run(client, command, output).await,
        MachineCommand::Erasures { machine } => {
            let items = client.list(&format!("/v1/machines/{machine}/erasures")).await?;
            print(output, items.into(), |items: Vec<Erasure>| erasure::listed(&items))
        }
        MachineCommand::Timeline { machine } => {
            let found: Machine = client.get(&format!("/v1/machines/{machine}")).await?;
            let events = client.list_with("/v1/events", vec![("machine", found.id)]).await?;
            print(output, events.into(), |events: Vec<Event>| follow::timeline(&events))
        }
    }
}

/// What tests showed.
fn tested(items: &[TestResult]) -> Table {
    let row = |result: &TestResult| {
        let shown = match (&result.reason, result.outcome.as_str()) {
            (Some(reason), "failed") if !result.part.is_empty() => format!("{reason}; look at {}", result.part),
            (reason, _) => or_dash(reason.as_deref()),
        };
        let took = format!("{}.{} s", result.milliseconds / 1000, result.milliseconds % 1000 / 100);
        vec![result.test.clone(), result.outcome.clone(), second(result.started), took, shown]
    };
    table(&["TEST", "OUTCOME", "BEGAN", "TOOK", "WHY"], items.iter().map(row))
        .or_say("not tested yet: rackhand machine test MACHINE")
}

async fn upkeep(client: &Client, machine: &str, verb: &str, body: Value, output: Output) -> anyhow::Result<String> {
    let value = client.post(&format!("/v1/machines/{machine}/{verb}"), body).await?;
    print(output, value, |machine| page(&machine))
}

/// How long, as people write it.
fn span(text: &str) -> Result<SignedDuration, String> {
    let zero = Timestamp::UNIX_EPOCH;
    let span: jiff::Span = text.parse().map_err(|_| "a time like 4h, 30m or 2d 12h".to_owned())?;
    // A day is 24 hours here: what is meant is how long hands are in a machine.
    span.to_duration(jiff::SpanRelativeTo::days_are_24_hours())
        .ok()
        .filter(|period| period.is_positive() && zero.checked_add(*period).is_ok())
        .ok_or_else(|| "more than nothing, in days, hours or minutes".to_owned())
}

/// Public keys, one a line, as `authorized_keys` has them.
fn keys(paths: &[PathBuf]) -> anyhow::Result<Vec<String>> {
    let mut keys = Vec::new();
    for path in paths {
        let text = read(path)?;
        if text.contains("PRIVATE KEY") {
            anyhow::bail!("{} is a private key; give the public one, which ends in .pub", path.display());
        }
        keys.extend(
            text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).map(Into::into),
        );
    }
    Ok(keys)
}

/// Its image with the version, where the controller tells one.
fn image(machine: &Machine) -> Option<String> {
    let name = machine.image.as_ref()?;
    Some(machine.image_version.map_or_else(|| name.clone(), |version| format!("{name}@{version}")))
}

pub(crate) fn list(machines: &[Machine]) -> Table {
    let rows = machines.iter().map(|machine| {
        vec![
            machine.name.clone(),
            machine.lifecycle.clone(),
            or_dash(machine.power.as_deref()),
            machine.address.clone(),
            or_dash(image(machine).as_deref()),
            or_dash(
                machine
                    .alert
                    .as_deref()
                    .or(machine.held.as_ref().map(|held| held.reason.as_str()))
                    .or(changed(machine))
                    .or(machine.stage.as_deref()),
            ),
            or_dash(machine.health.as_deref()),
            machine.rack.clone(),
            machine.macs.join(" "),
            machine.id.clone(),
        ]
    });
    table(&["NAME", "LIFECYCLE", "POWER", "ADDRESS", "IMAGE", "LATEST", "HEALTH", "RACK", "CARDS", "ID"], rows)
        .shorten(&["LATEST", "IMAGE"])
        .only_wide(&["HEALTH", "RACK", "CARDS", "ID"])
        .or_say("no such machine; power one on in a rack, and it will be discovered")
}

fn changed(machine: &Machine) -> Option<&'static str> {
    (!machine.changes.is_empty()).then_some("parts changed: see `rackhand machine show`")
}

pub(crate) fn page(machine: &Machine) -> String {
    let mut lines = vec![
        format!("{}  {}", machine.name, machine.id),
        format!("  lifecycle  {}", machine.lifecycle),
        format!("  rack       {}", machine.rack),
        format!("  power      {}", or_dash(machine.power.as_deref())),
        format!("  address    {}", machine.address),
        format!("  network    {}", machine.macs.join(", ")),
        format!("  installer  {}", if machine.installer { "connected" } else { "not connected" }),
        format!("  image      {}", or_dash(image(machine).as_deref())),
        format!("  latest     {}", or_dash(machine.stage.as_deref())),
    ];
    if let Some(held) = &machine.held {
        let until = held.until.map(|until| format!(", until {until:.0}")).unwrap_or_default();
        lines.push(format!("  because    {} (since {:.0}{until})", held.reason, held.since));
    }
    if let Some(login) = &machine.rescue {
        let port = if login.port == 22 { String::new() } else { format!("-p {} ", login.port) };
        lines.push(format!("  log in     ssh {port}{}@{}", login.user, login.address));
        lines.push(format!("  host key   {}", login.host_key));
    }
    if let Some(health) = &machine.health {
        lines.push(format!("  health     {health}"));
    }
    if let Some(alert) = &machine.alert {
        lines.push(format!("  ALERT      {alert}"));
    }
    if let Some(condition) = &machine.not_inspected {
        lines.push(format!("  UNSEEN     {condition}"));
    }
    lines.extend(machine.slots.iter().flat_map(hardware::findings));
    for change in &machine.changes {
        let side = |side: &Option<String>| side.clone().unwrap_or_else(|| "nothing".into());
        let (was, is) = (side(&change.was), side(&change.is));
        lines.push(format!("  CHANGED    {}: was {was}, is {is}", change.part.replace('_', " ")));
    }
    if let Some(run) = &machine.run {
        lines.push(format!("  run        {run}"));
        lines.extend(machine.in_progress.iter().filter_map(waits).map(|waits| format!("  waits      {waits}")));
    }
    if let Some(inventory) = &machine.inventory {
        let text = |pointer: &str| inventory.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let number = |pointer: &str| inventory.pointer(pointer).and_then(Value::as_u64).unwrap_or_default();
        lines
            .push(format!("  system     {} {}", text("/system/vendor"), text("/system/product")).trim_end().to_owned());
        lines.push(format!("  processor  {} × {}", number("/cpu/threads"), text("/cpu/model")));
        lines.push(format!("  memory     {}", bytes(number("/memory"))));
        lines.push(format!("  firmware   {}", or_dash(inventory.pointer("/firmware").and_then(Value::as_str))));
        for disk in inventory.get("disks").and_then(Value::as_array).into_iter().flatten() {
            let of = |field: &str| disk.get(field).and_then(Value::as_str).unwrap_or_default();
            let content = match disk.get("content") {
                Some(Value::String(blank)) => blank.clone(),
                Some(data) => data.get("data").and_then(Value::as_str).unwrap_or("unknown").to_owned(),
                None => "unknown".into(),
            };
            let size = disk.get("size").and_then(Value::as_u64).unwrap_or_default();
            let name = [of("model"), of("serial")].into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>();
            let health = machine.slots.as_ref().map(|slots| hardware::health_of(slots, of("name"))).unwrap_or_default();
            lines.push(format!("  disk       {} {} {} ({content}){health}", of("name"), bytes(size), name.join(" ")));
        }
        lines.extend(machine.slots.iter().flat_map(hardware::lines));
    }
    if !machine.changes.is_empty() {
        lines.push(format!("If the parts are right: rackhand machine replace-part {}", machine.name));
    }
    if !machine.verbs.is_empty() {
        lines.push(format!("Possible now: {}", machine.verbs.join(", ")));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::json;

    use super::*;

    fn vm0() -> Machine {
        serde_json::from_value(json!({
            "id": "01931b1e-0000-7000-8000-000000000001", "name": "vm0", "rack": "demo", "lifecycle": "ready",
            "power": "on", "installer": true, "address": "10.77.0.100", "macs": ["52:54:00:00:00:01"],
            "stage": "inventory taken", "image": null, "alert": null, "run": null, "verbs": ["deploy", "power"],
            "inventory": {
                "firmware": "bios", "memory": 2147483648u64, "system": {"vendor": "QEMU", "product": "Standard PC"},
                "cpu": {"model": "QEMU TCG CPU", "threads": 2}, "nics": [],
                "disks": [{"name": "vda", "model": "", "serial": "disk0", "size": 8589934592u64, "content": "blank"}]
            }
        }))
        .unwrap()
    }

    #[test]
    fn a_list_of_machines_is_a_plain_table() {
        let away = Machine { name: "db-1".into(), power: None, stage: None, image: Some("debian-12".into()), ..vm0() };
        expect![[r#"
            NAME  LIFECYCLE  POWER  ADDRESS      IMAGE      LATEST
            vm0   ready      on     10.77.0.100  -          inventory taken
            db-1  ready      -      10.77.0.100  debian-12  -"#]]
        .assert_eq(&list(&[vm0(), away]).to_string());
    }

    #[test]
    fn a_machines_page_tells_what_it_is_and_what_can_be_done() {
        expect![[r#"
            vm0  01931b1e-0000-7000-8000-000000000001
              lifecycle  ready
              rack       demo
              power      on
              address    10.77.0.100
              network    52:54:00:00:00:01
              installer  connected
              image      -
              latest     inventory taken
              system     QEMU Standard PC
              processor  2 × QEMU TCG CPU
              memory     2.0 GiB
              firmware   bios
              disk       vda 8.0 GiB disk0 (blank)
            Possible now: deploy, power"#]]
        .assert_eq(&page(&vm0()));
    }

    #[test]
    fn a_part_that_changed_stands_out_with_both_sides() {
        let changes =
            json!([{"part": "disk", "was": "disk0", "is": null}, {"part": "disk", "was": null, "is": "disk9 (GPT)"}]);
        let swapped = Machine { changes: serde_json::from_value(changes).unwrap(), inventory: None, ..vm0() };
        let page = page(&swapped);
        let (_, page) = page.split_once("inventory taken\n").unwrap();
        expect![[r#"
              CHANGED    disk: was disk0, is nothing
              CHANGED    disk: was nothing, is disk9 (GPT)
            If the parts are right: rackhand machine replace-part vm0
            Possible now: deploy, power"#]]
        .assert_eq(page);
    }

    #[test]
    fn a_private_key_is_never_sent() {
        let directory = std::env::temp_dir().join(format!("rackhand-cli-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let public = directory.join("id.pub");
        std::fs::write(&public, "# mine\nssh-ed25519 AAAA a\n\nssh-rsa BBBB b\n").unwrap();
        assert_eq!(keys(std::slice::from_ref(&public)).unwrap(), ["ssh-ed25519 AAAA a", "ssh-rsa BBBB b"]);
        let private = directory.join("id");
        std::fs::write(&private, "-----BEGIN OPENSSH PRIVATE KEY-----\n").unwrap();
        assert!(keys(&[private]).is_err());
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
