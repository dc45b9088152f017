//! `/v1/machines`.

use std::{collections::HashMap, net::Ipv4Addr, sync::Arc};

use axum::{
    Extension,
    extract::{Path, State},
    http::{StatusCode, header},
    response::IntoResponse,
};
use jiff::Timestamp;
use rackhand_common::{
    health, id,
    intent::{DiskRule, Host},
    machine::{Inventory, Mac, Power},
};
use rackhand_controller_core::{
    access::{Action, Sight},
    identity,
    ipam::is_label,
    lifecycle::Lifecycle,
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    App, Caller, Error,
    extract::{Expected, Json, Page, Query, check_name, limit, parse, tagged},
    plans,
    rescue::RescueLogin,
    runs::Run,
};
use crate::{
    store::{self, Thing, Tx},
    verbs::{Accept, DeployRequest},
};

/// The longest user data, in bytes: what fits the config drive with room to spare.
const MAX_USER_DATA: usize = 512 << 10;

/// The most public keys of one deploy.
const MAX_KEYS: usize = 100;

/// A physical server.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Machine {
    /// Its id.
    #[schema(value_type = uuid::Uuid)]
    id: id::MachineId,
    /// Its name.
    #[schema(example = "web-1")]
    name: String,
    /// Its rack's name.
    #[schema(example = "lab")]
    rack: String,
    /// The project it is given to, as ORGANISATION:NAME; absent while it is nobody's.
    #[schema(example = "acme:shop")]
    project: Option<String>,
    /// Where it is in its life: `discovered` (seen, not yet ours), `ready` (can be deployed),
    /// `deploying`, `active` (its system runs), `rescue` (its owner works on it from memory), `releasing`,
    /// `quarantined` (look at it), `maintenance` (somebody works on it), `retired`.
    #[schema(value_type = String, example = "ready")]
    lifecycle: Lifecycle,
    /// What can be done with it now: `adopt`, `deploy`, `reinstall`, `rescue`, `leave-rescue`, `release`,
    /// `power`, `inspect`, `test`, `maintain`, `resume`, `quarantine`, `retire`, `forget`.
    verbs: Vec<&'static str>,
    /// Counts how often it was given out or taken back; older orders are refused.
    epoch: u64,
    /// Its address on the provisioning network, in every stage.
    #[schema(value_type = String, example = "10.77.0.100")]
    address: Ipv4Addr,
    /// Its network cards; the first is the one it boots from.
    #[schema(value_type = Vec<String>, example = json!(["52:54:00:12:34:56"]))]
    macs: Vec<Mac>,
    /// Chassis power as last read: `on`, `off`; absent when nobody has read it.
    #[schema(value_type = Option<String>)]
    power: Option<Power>,
    /// Whether its installer is connected and waits for work.
    installer: bool,
    /// The latest hop on its way, in words.
    #[schema(example = "inventory taken")]
    stage: Option<String>,
    /// Name of the image on it, when it is active.
    image: Option<String>,
    /// That image's version.
    image_version: Option<u32>,
    /// What an operator should look at.
    alert: Option<String>,
    /// Why it is out of service or in rescue, while it is.
    held: Option<Hold>,
    /// Where its rescue system is reached, once it can be; `installer` says whether it is there now.
    rescue: Option<RescueLogin>,
    /// How it fares: `ok`, `warning`, `critical` or `unknown`; absent while nobody has told.
    #[schema(example = "ok")]
    health: Option<&'static str>,
    /// The run in progress on it.
    #[schema(value_type = Option<uuid::Uuid>)]
    run: Option<id::RunId>,
    /// What its installer found in it last: firmware, system, cpu, memory, nics, disks. While `not_inspected` says
    /// so: what operators and its BMC told, without what nobody did.
    #[schema(value_type = Object)]
    inventory: Shown,
    /// That no installer has looked into it, and what is not known for that: it was adopted while it ran. Absent
    /// once one has.
    #[schema(example = "no installer has looked into it: it was adopted while it ran")]
    not_inspected: Option<String>,
    /// Parts that are not those accepted when it was adopted: until `replace-part` says that
    /// they are right, nothing is written to its disks.
    changes: Vec<PartChange>,
    /// When it was discovered.
    #[schema(value_type = String, format = DateTime)]
    created: Timestamp,
    /// When it last changed.
    #[schema(value_type = String, format = DateTime)]
    updated: Timestamp,
}

/// What is in a machine.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Shown {
    /// As an installer found it.
    Found(Inventory),
    /// As was said.
    Told(serde_json::Value),
}

/// What is in a machine that nobody has looked into, without what nobody said.
fn told(inventory: &Inventory, known: &store::Uninspected) -> Shown {
    let mut told = serde_json::to_value(inventory).unwrap_or_default();
    if let Some(fields) = told.as_object_mut().filter(|_| known.firmware.is_none()) {
        fields.remove("firmware");
    }
    Shown::Told(told)
}

/// What is not known of a machine that nobody has looked into, in words.
fn not_inspected(machine: &store::Machine, known: &store::Uninspected) -> String {
    let mut words =
        "no installer has looked into it: it was adopted while it ran, and its disks are learnt when it next \
                     starts one (reinstall, rescue, release)"
            .to_owned();
    if machine.macs.is_empty() {
        words += "; nobody has told which network cards it has: were it to start from the network, it would be taken \
                  for a stranger";
    }
    if known.by_bmc.is_none() {
        words += "; its BMC has not told what is in it";
    }
    words
}

/// Why a machine is out of service.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Hold {
    /// In somebody's words, or what a run failed at.
    #[schema(example = "fan 3 is replaced")]
    reason: String,
    /// From when on.
    #[schema(value_type = String, format = DateTime)]
    since: Timestamp,
    /// When somebody meant to be done with it.
    #[schema(value_type = Option<String>, format = DateTime)]
    until: Option<Timestamp>,
}

/// A part that is not what was accepted.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PartChange {
    /// Which kind: `mainboard`, `network_card`, `disk`.
    #[schema(value_type = String, example = "disk")]
    part: identity::Part,
    /// What was accepted; absent when the part is new.
    #[schema(example = "Samsung/S1")]
    was: Option<String>,
    /// What was found; absent when the part is gone.
    #[schema(example = "Samsung/S2 (GPT, 3 partitions)")]
    is: Option<String>,
}

impl From<identity::Change> for PartChange {
    fn from(identity::Change { part, was, is }: identity::Change) -> Self {
        Self { part, was, is }
    }
}

impl Machine {
    pub(super) fn of(
        row: store::Machine,
        rack: String,
        projects: &HashMap<id::ProjectId, String>,
        run: Option<id::RunId>,
        health: Option<health::State>,
    ) -> Self {
        let changes = row.changes().into_iter().map(PartChange::from).collect();
        let not_inspected = row.uninspected.as_ref().map(|known| not_inspected(&row, known));
        // Most are as they were accepted, and shared with that: alone, it need not be copied.
        drop(row.accepted);
        Self {
            changes,
            id: row.id,
            name: row.name,
            rack,
            project: row.project.map(|id| projects.get(&id).cloned().unwrap_or_else(|| id.to_string())),
            lifecycle: row.lifecycle,
            // With a run in progress everything else has to wait for it.
            verbs: if run.is_some() { Vec::new() } else { row.lifecycle.verbs().collect() },
            epoch: row.epoch.0,
            address: row.address,
            macs: row.macs,
            power: row.power,
            installer: row.connected,
            stage: row.stage.map(|stage| stage.to_string()),
            image_version: row.image.as_ref().map(|image| image.version),
            image: row.image.map(|image| image.name),
            alert: row.alert,
            held: row.held.map(|store::Hold { reason, since, until }| Hold { reason, since, until }),
            rescue: row.rescue.map(RescueLogin::from),
            health: health.map(health::State::word),
            run,
            inventory: match &row.uninspected {
                Some(known) if row.connection == 0 => told(&row.inventory, known),
                _ => Shown::Found(Arc::unwrap_or_clone(row.inventory)),
            },
            not_inspected,
            created: row.created,
            updated: row.updated,
        }
    }
}

/// Which machines.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Which {
    /// Only those of this rack (id or name).
    rack: Option<String>,
    /// Only those given to this project (id, name or ORGANISATION:NAME).
    project: Option<String>,
    /// Only those there in their life: `discovered`, `ready`, `deploying`, `active`, `rescue`, `releasing`,
    /// `quarantined`, `maintenance`, `retired`.
    lifecycle: Option<String>,
    /// Only those with this image on them: its name, or its name and version (`debian-12@3`).
    image: Option<String>,
    /// Only those that match this plan (id or name).
    plan: Option<String>,
    /// Only those whose names begin so.
    name: Option<String>,
    /// Only the one with this network card.
    mac: Option<String>,
    /// Only those that an operator should look at (`true`), or all others (`false`).
    alert: Option<bool>,
    /// Only those that fare so: `ok`, `warning`, `critical`, `unknown`.
    health: Option<String>,
    /// By their `name`, or in the order in which they were `discovered`.
    #[param(default = "discovered")]
    sort: Option<Sort>,
    /// `next` of the page before; absent for the first page.
    after: Option<String>,
    /// How many at most, 1 to 200.
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<u32>,
}

/// By what a list of machines is sorted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Sort {
    /// The order of their discovery.
    #[default]
    Discovered,
    /// Their names.
    Name,
}

/// List machines
///
/// In the order of their discovery, or by name.
#[utoipa::path(get, path = "/v1/machines", tag = "machines", params(Which),
    responses((status = 200, body = Page<Machine>)))]
pub(super) async fn list(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Query(which): Query<Which>,
) -> Result<impl IntoResponse, Error> {
    let limit = limit(which.limit)?;
    let rack = match &which.rack {
        Some(rack) => Some(caller.rack(&app, rack).await?),
        None => None,
    };
    let project = match &which.project {
        Some(project) => Some(caller.project(&app, project).await?.id),
        None => None,
    };
    let filter = store::MachineFilter {
        sight: caller.sight(Action::MachineRead)?,
        rack,
        project,
        lifecycle: parse("lifecycle", which.lifecycle.as_deref())?,
        image: which.image.map(|image| versioned(&image)).transpose()?,
        name: which.name,
        mac: parse("mac", which.mac.as_deref())?,
        alert: which.alert,
        health: parse("health", which.health.as_deref())?,
    };
    let sort = which.sort.unwrap_or_default();
    let order = match sort {
        Sort::Discovered => store::MachineOrder::Discovered(parse("after", which.after.as_deref())?),
        Sort::Name => store::MachineOrder::Name(which.after),
    };
    let rows = match &which.plan {
        Some(plan) => plans::matching(&app, plan, &filter, order, limit + 1).await?,
        None => app.store.machines(&filter, order, limit + 1).await?,
    };
    let names = app.store.rack_names(rows.iter().map(|row| row.rack)).await?;
    let projects = app.store.project_names(rows.iter().filter_map(|row| row.project)).await?;
    let running = app.store.running_on(rows.iter().map(|row| row.id)).await?;
    let health = app.store.health_states(rows.iter().map(|row| row.id)).await?;
    let view = |row: store::Machine| {
        let health = health.get(&row.id).copied();
        let run = running.get(&row.id).copied();
        let rack = names.get(&row.rack).cloned().unwrap_or_else(|| row.rack.to_string());
        Machine::of(row, rack, &projects, run, health)
    };
    let cursor = |row: &store::Machine| match sort {
        Sort::Discovered => row.id.to_string(),
        Sort::Name => row.name.clone(),
    };
    Ok(axum::Json(Page::of(rows, limit, cursor, view)))
}

/// An image's name, with a version or without.
fn versioned(image: &str) -> Result<(String, Option<u32>), Error> {
    match image.split_once('@') {
        Some((name, version)) => Ok((name.into(), parse("image", Some(version))?)),
        None => Ok((image.into(), None)),
    }
}

/// Show one machine
#[utoipa::path(get, path = "/v1/machines/{machine}", tag = "machines",
    params(("machine" = String, Path, description = "Id or name.")), responses((status = 200, body = Machine)))]
pub(super) async fn show(State(app): State<App>, Path(machine): Path<String>) -> Result<impl IntoResponse, Error> {
    view(&app, &machine).await
}

/// The machine, if this may be done with it where it stands in this transaction: it may have been
/// given to another project since the request was let in.
pub(super) async fn held(caller: &Caller, tx: &mut Tx, action: Action, machine: &str) -> Result<store::Machine, Error> {
    let standing = caller.check_in(tx, action, Thing::Machine, machine).await?;
    Ok(tx.machine(&standing.id).await?)
}

async fn view(app: &App, machine: &str) -> Result<impl IntoResponse + use<>, Error> {
    let row = app.store.machine(machine).await?;
    let rack = app.store.rack(&row.rack.to_string()).await?.name;
    let projects = app.store.project_names(row.project).await?;
    let latest = app.store.runs(&Sight::ALL, Some(row.id), None, 1).await?;
    let run = latest.iter().find(|run| run.status == store::RunStatus::Running).map(|run| run.id);
    let health = app.store.machine_health(row.id).await?.map(|known| known.verdict.state);
    Ok(answer(row, rack, &projects, run, health))
}

/// A machine as a transaction leaves it, which is then committed.
pub(super) async fn committed(mut tx: store::Tx, machine: &store::Machine) -> Result<impl IntoResponse + use<>, Error> {
    let row = tx.machine(&machine.id.to_string()).await?;
    let rack = tx.rack(&row.rack.to_string()).await?.name;
    let projects = tx.project_names(row.project).await?;
    let run = tx.run_in_progress(row.id).await?;
    let health = tx.machine_health(row.id).await?.map(|known| known.verdict.state);
    tx.commit().await?;
    Ok(answer(row, rack, &projects, run, health))
}

fn answer(
    row: store::Machine,
    rack: String,
    projects: &HashMap<id::ProjectId, String>,
    run: Option<id::RunId>,
    health: Option<health::State>,
) -> impl IntoResponse + use<> {
    tagged(row.version, Machine::of(row, rack, projects, run, health))
}

/// What may be changed about a machine.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Change {
    /// Another name: an RFC 1123 label, unique among all machines.
    #[schema(example = "web-1")]
    name: String,
}

/// Rename a machine
///
/// A running system keeps the host name it was deployed with.
#[utoipa::path(patch, path = "/v1/machines/{machine}", tag = "machines", request_body = Change,
    params(("machine" = String, Path, description = "Id or name.")), responses((status = 200, body = Machine)))]
pub(super) async fn rename(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(machine): Path<String>,
    expected: Expected,
    Json(body): Json<Change>,
) -> Result<impl IntoResponse, Error> {
    check_host_name("/name", &body.name)?;
    let mut tx = app.store.begin().await?;
    let mut machine = held(&caller, &mut tx, Action::MachineAdopt, &machine).await?;
    expected.check(machine.version)?;
    machine.name = body.name;
    tx.update_machine(app.clock.now().wall, &mut machine).await?;
    let answer = committed(tx, &machine).await?;
    (app.changed)(machine.rack);
    Ok(answer)
}

/// How a machine is adopted.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Adopt {
    /// A name to give it at once.
    #[schema(example = "web-1")]
    name: Option<String>,
    /// Its disks may hold data, which a later deploy will destroy.
    #[serde(default)]
    accept_data: bool,
    /// It may have parts that are another machine's: they were moved here.
    #[serde(default)]
    accept_parts: bool,
}

/// Adopt a machine
///
/// Says that a discovered machine is ours: from then on it can be deployed. Refused when its
/// disks hold data, unless `accept_data` says that they may be lost, or when it has parts of a
/// machine that was adopted before, unless `accept_parts` says that they were moved.
#[utoipa::path(post, path = "/v1/machines/{machine}/adopt", tag = "machines", request_body = Adopt,
    params(("machine" = String, Path, description = "Id or name.")), responses((status = 200, body = Machine)))]
pub(super) async fn adopt(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(machine): Path<String>,
    expected: Expected,
    Json(body): Json<Adopt>,
) -> Result<impl IntoResponse, Error> {
    let now = app.clock.now().wall;
    let mut tx = app.store.begin().await?;
    let machine = held(&caller, &mut tx, Action::MachineAdopt, &machine).await?;
    expected.check(machine.version)?;
    let accept = Accept { data: body.accept_data, parts: body.accept_parts };
    let mut machine = tx.adopt(now, &machine, accept).await?;
    if let Some(name) = body.name {
        check_host_name("/name", &name)?;
        machine.name = name;
        tx.update_machine(now, &mut machine).await?;
    }
    let answer = committed(tx, &machine).await?;
    (app.changed)(machine.rack);
    Ok(answer)
}

/// What is accepted of a machine's new parts.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ReplacePart {
    /// New disks may hold data, which a later deploy or release will destroy.
    #[serde(default)]
    accept_data: bool,
    /// New parts may be another machine's: they were moved here.
    #[serde(default)]
    accept_parts: bool,
}

/// Accept replaced parts
///
/// Says that the machine's parts as its installer found them last are right: a mainboard,
/// network card or disk was replaced. Until then nothing is written to its disks.
#[utoipa::path(post, path = "/v1/machines/{machine}/replace-part", tag = "machines", request_body = ReplacePart,
    params(("machine" = String, Path, description = "Id or name.")), responses((status = 200, body = Machine)))]
pub(super) async fn replace_part(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(machine): Path<String>,
    expected: Expected,
    Json(body): Json<ReplacePart>,
) -> Result<impl IntoResponse, Error> {
    let mut tx = app.store.begin().await?;
    let machine = held(&caller, &mut tx, Action::MachineAdopt, &machine).await?;
    expected.check(machine.version)?;
    let accept = Accept { data: body.accept_data, parts: body.accept_parts };
    let machine = tx.replace_part(app.clock.now().wall, &machine, accept).await?;
    committed(tx, &machine).await
}

/// Which machine turned out to be another.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Merge {
    /// Id or name of the machine that was discovered; it is no machine of its own afterwards.
    #[schema(example = "m-7a01")]
    from: String,
}

/// Merge a discovered machine into this one
///
/// For a machine that came back as a stranger: with another mainboard and so with other network
/// cards, or in another rack. It keeps its name, lifecycle and history, and takes the other's
/// cards and inventory; what differs is then shown in `changes` and wants `replace-part`.
#[utoipa::path(post, path = "/v1/machines/{machine}/merge", tag = "machines", request_body = Merge,
    params(("machine" = String, Path, description = "Id or name.")), responses((status = 200, body = Machine)))]
pub(super) async fn merge(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(machine): Path<String>,
    Json(body): Json<Merge>,
) -> Result<impl IntoResponse, Error> {
    let mut tx = app.store.begin().await?;
    let from = held(&caller, &mut tx, Action::MachineForget, &body.from).await?;
    let into = held(&caller, &mut tx, Action::MachineForget, &machine).await?;
    let merged = tx.merge(app.clock.now().wall, &from, &into).await?;
    let answer = committed(tx, &merged).await?;
    (app.changed)(into.rack);
    (app.changed)(merged.rack);
    Ok(answer)
}

/// Forget a machine
///
/// Removes a machine that is nobody's, with its runs; what happened stays among the events.
/// Should it start again in a rack, it is discovered anew.
#[utoipa::path(delete, path = "/v1/machines/{machine}", tag = "machines",
    params(("machine" = String, Path, description = "Id or name.")), responses((status = 204)))]
pub(super) async fn forget(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(machine): Path<String>,
    expected: Expected,
) -> Result<impl IntoResponse, Error> {
    let mut tx = app.store.begin().await?;
    let machine = held(&caller, &mut tx, Action::MachineForget, &machine).await?;
    expected.check(machine.version)?;
    tx.forget(app.clock.now().wall, &machine).await?;
    tx.commit().await?;
    (app.changed)(machine.rack);
    Ok(StatusCode::NO_CONTENT)
}

/// Whose a machine shall be.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Assign {
    /// The project (id, name or ORGANISATION:NAME); null takes it back.
    #[schema(example = "acme:shop")]
    project: Option<String>,
}

/// Give a machine to a project
///
/// The project's members can then deploy, release and switch it. What a project uses is not taken
/// from it: release it first, which also takes it back.
#[utoipa::path(post, path = "/v1/machines/{machine}/assign", tag = "machines", request_body = Assign,
    params(("machine" = String, Path, description = "Id or name.")), responses((status = 200, body = Machine)))]
pub(super) async fn assign(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(machine): Path<String>,
    expected: Expected,
    Json(body): Json<Assign>,
) -> Result<impl IntoResponse, Error> {
    let project = caller.project_to_use(&app, body.project.as_deref()).await?;
    let mut tx = app.store.begin().await?;
    let machine = held(&caller, &mut tx, Action::MachineAssign, &machine).await?;
    expected.check(machine.version)?;
    let project = project.map(|project| (project.id, project.full_name()));
    let machine = tx.assign(app.clock.now().wall, &machine, project).await?;
    committed(tx, &machine).await
}

/// What is to be installed.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Deploy {
    /// The image: a name for its newest version that is ready, a name and version (`debian-12@3`,
    /// `debian-12@sha256:…`), or an id.
    #[schema(example = "debian-12")]
    pub(super) image: String,
    /// Host name (an RFC 1123 label); the machine's name when absent.
    #[schema(example = "web-1")]
    pub(super) hostname: Option<String>,
    /// Public keys of those who may log in, each a line as in `authorized_keys`.
    #[serde(default)]
    #[schema(example = json!(["ssh-ed25519 AAAA… me@laptop"]))]
    pub(super) ssh_keys: Vec<String>,
    /// User data, at most 512 KiB: cloud-init's, or a configuration for Ignition when the image's
    /// `settings` are `ignition`.
    pub(super) user_data: Option<String>,
    /// Give it to this project (id, name or ORGANISATION:NAME); absent: it stays what it is.
    #[schema(example = "acme:shop")]
    pub(super) project: Option<String>,
    /// Identity of the disk to install on; when absent the smallest that holds the image.
    pub(super) disk: Option<String>,
}

/// Deploy a machine
///
/// Starts a run that boots the installer where it is not connected already, writes the image,
/// and restarts the machine into its new system. The run is over when that system calls home.
/// A run that fails leaves the machine ready, and says why.
#[utoipa::path(post, path = "/v1/machines/{machine}/deploy", tag = "machines", request_body = Deploy,
    params(("machine" = String, Path, description = "Id or name.")),
    responses((status = 202, body = Run, headers(("Location" = String, description = "The run.")))))]
pub(super) async fn deploy(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(machine): Path<String>,
    expected: Expected,
    Json(body): Json<Deploy>,
) -> Result<impl IntoResponse, Error> {
    let project = match &body.project {
        Some(name) => Some(caller.project(&app, name).await?),
        None => None,
    };
    let mut tx = app.store.begin().await?;
    let mut machine = held(&caller, &mut tx, Action::MachineDeploy, &machine).await?;
    expected.check(machine.version)?;
    if let Some(project) = project.filter(|project| machine.project != Some(project.id)) {
        held(&caller, &mut tx, Action::MachineAssign, &machine.id.to_string()).await?;
        caller.check(Action::ProjectUse, "project", project.place())?;
        tx.check_addresses(&machine, Some(project.id)).await?;
        machine.project = Some(project.id);
    }
    let (image, request) = (body.image.clone(), request(body, &machine.name)?);
    let image = tx.image(&image).await?;
    let run = tx.start_deploy(app.clock.now().wall, &machine, &image, request).await?;
    tx.commit().await?;
    let warnings = image.deprecated.then(|| format!("image {} is deprecated", image.named()));
    Ok(accepted(&app, run, warnings.into_iter().collect()))
}

pub(super) fn request(body: Deploy, machine: &str) -> Result<DeployRequest, Error> {
    let name = body.hostname.unwrap_or_else(|| machine.into());
    check_host_name("/hostname", &name)?;
    check_keys(&body.ssh_keys)?;
    if let Some(data) = &body.user_data {
        check_user_data(data)?;
    }
    Ok(DeployRequest {
        disk: body.disk.map_or(DiskRule::Smallest, DiskRule::Identity),
        host: Host { name, ssh_keys: body.ssh_keys, user_data: body.user_data },
    })
}

/// Whether these are public keys that may be let in.
pub(super) fn check_keys(keys: &[String]) -> Result<(), Error> {
    if keys.len() > MAX_KEYS {
        return Err(Error::invalid("/ssh_keys", format!("at most {MAX_KEYS} keys")));
    }
    for (index, key) in keys.iter().enumerate() {
        // Options before the key could run commands; whoever wants them uses user data.
        let known = ["ssh-", "ecdsa-", "sk-"].iter().any(|kind| key.starts_with(kind));
        if !known || key.split_whitespace().count() < 2 || key.len() > 16 << 10 || key.chars().any(char::is_control) {
            return Err(Error::invalid(
                &format!("/ssh_keys/{index}"),
                "not a public key: one line that begins with its type, as `ssh-ed25519 AAAA… comment`",
            ));
        }
    }
    Ok(())
}

/// Nothing has to be said.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Nothing {}

/// Release a machine
///
/// Takes a machine back: restarts it into the installer, overwrites every disk and reads it
/// back. **Everything on it is lost.** It is ready again only when every byte was verified;
/// otherwise it is quarantined, and can be released again.
#[utoipa::path(post, path = "/v1/machines/{machine}/release", tag = "machines", request_body = Nothing,
    params(("machine" = String, Path, description = "Id or name.")),
    responses((status = 202, body = Run, headers(("Location" = String, description = "The run.")))))]
pub(super) async fn release(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(machine): Path<String>,
    expected: Expected,
    Json(Nothing {}): Json<Nothing>,
) -> Result<impl IntoResponse, Error> {
    let mut tx = app.store.begin().await?;
    let machine = held(&caller, &mut tx, Action::MachineRelease, &machine).await?;
    expected.check(machine.version)?;
    let run = tx.start_release(app.clock.now().wall, &machine).await?;
    tx.commit().await?;
    Ok(accepted(&app, run, Vec::new()))
}

/// A change of chassis power.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ChangePower {
    /// What to do.
    action: PowerAction,
}

/// What to do with chassis power.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum PowerAction {
    /// Switch on; nothing when it is on.
    On,
    /// Switch off at once, without asking the operating system.
    Off,
    /// Off, then on.
    Cycle,
}

/// Switch power
///
/// Starts a run that has the rack's node switch the machine's chassis power.
#[utoipa::path(post, path = "/v1/machines/{machine}/power", tag = "machines", request_body = ChangePower,
    params(("machine" = String, Path, description = "Id or name.")),
    responses((status = 202, body = Run, headers(("Location" = String, description = "The run.")))))]
pub(super) async fn power(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(machine): Path<String>,
    expected: Expected,
    Json(body): Json<ChangePower>,
) -> Result<impl IntoResponse, Error> {
    let change = match body.action {
        PowerAction::On => store::PowerChange::On,
        PowerAction::Off => store::PowerChange::Off,
        PowerAction::Cycle => store::PowerChange::Cycle,
    };
    let mut tx = app.store.begin().await?;
    let machine = held(&caller, &mut tx, Action::MachinePower, &machine).await?;
    expected.check(machine.version)?;
    let run = tx.start_power(app.clock.now().wall, &machine, change).await?;
    tx.commit().await?;
    Ok(accepted(&app, run, Vec::new()))
}

/// A run that begins: wakes those who perform it, and says where to follow it.
pub(super) fn accepted(app: &App, run: store::Run, warnings: Vec<String>) -> impl IntoResponse + use<> {
    (app.changed)(run.rack);
    let run = Run::from(run).with(warnings);
    (StatusCode::ACCEPTED, [(header::LOCATION, run.location())], axum::Json(run))
}

pub(super) fn check_user_data(data: &str) -> Result<(), Error> {
    match data.len() > MAX_USER_DATA {
        true => Err(Error::invalid("/user_data", format!("at most {MAX_USER_DATA} bytes"))),
        false => Ok(()),
    }
}

pub(super) fn check_host_name(field: &str, name: &str) -> Result<(), Error> {
    check_name(field, name)?;
    match is_label(name) {
        true => Ok(()),
        false => Err(Error::invalid(field, "must be an RFC 1123 label: letters, digits and inner `-`, at most 63")),
    }
}
