//! `/v1/racks` and `/v1/agents`.

use std::net::Ipv4Addr;

use axum::{
    Extension,
    extract::{Path, State},
    http::{StatusCode, header},
    response::IntoResponse,
};
use ipnet::{IpNet, Ipv4Net};
use jiff::{SignedDuration, Timestamp};
use rackhand_common::{id, intent::Network as Wanted};
use rackhand_controller_core::access::Action;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    App, Caller, Error,
    extract::{Expected, Json, Page, Query, Window, check_name, parse, tagged},
};
use crate::{
    store::{self, SoundNetwork, Thing},
    succession::{Replaced, Which},
};

/// A rack: one provisioning network with its node and machines.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Rack {
    /// Its id.
    #[schema(value_type = uuid::Uuid)]
    id: id::RackId,
    /// Its name.
    #[schema(example = "lab")]
    name: String,
    /// Name of the site it stands in.
    #[schema(example = "default")]
    site: String,
    /// Its provisioning network.
    network: Network,
    /// Counts the changes of what is wanted of the rack; compare with its agent's `revision`.
    revision: u64,
    /// When it was created.
    #[schema(value_type = String, format = DateTime)]
    created: Timestamp,
}

/// The provisioning network of a rack.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Network {
    /// The subnet, with the node's own address in it.
    #[schema(value_type = String, example = "10.77.0.1/24")]
    node: Ipv4Net,
    /// First and last address of the range from which the node serves machines nobody knows
    /// yet. A machine keeps the address it was discovered with.
    #[schema(value_type = Vec<String>, example = json!(["10.77.0.100", "10.77.0.199"]))]
    delegated: (Ipv4Addr, Ipv4Addr),
    /// Default route told to machines; absent tells none.
    #[schema(value_type = Option<String>, example = "10.77.0.1")]
    gateway: Option<Ipv4Addr>,
    /// Name servers told to installed systems.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    dns: Vec<Ipv4Addr>,
}

impl From<store::Rack> for Rack {
    fn from(row: store::Rack) -> Self {
        let Wanted { node, gateway, dns, delegated } = row.network;
        let network = Network { node, delegated, gateway, dns };
        Self { id: row.id, name: row.name, site: row.site_name, network, revision: row.revision, created: row.created }
    }
}

/// A rack to be created.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewRack {
    /// Its name: lower-case letters, digits, `.`, `-`, `_`; at most 63.
    #[schema(example = "lab")]
    name: String,
    /// The site it stands in (id or name); `default` when absent.
    #[serde(default = "default_site")]
    #[schema(example = "default")]
    site: String,
    /// Its provisioning network.
    network: Network,
}

fn default_site() -> String {
    "default".into()
}

/// List racks
#[utoipa::path(get, path = "/v1/racks", tag = "racks", params(Window), responses((status = 200, body = Page<Rack>)))]
pub(super) async fn list(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Query(window): Query<Window>,
) -> Result<impl IntoResponse, Error> {
    let (limit, sight) = (window.limit()?, caller.sight(Action::RackRead)?);
    let rows = app.store.racks(&sight, parse("after", window.after.as_deref())?, limit + 1).await?;
    Ok(axum::Json(Page::of(rows, limit, |row| row.id.to_string(), Rack::from)))
}

/// Show one rack
#[utoipa::path(get, path = "/v1/racks/{rack}", tag = "racks",
    params(("rack" = String, Path, description = "Id or name.")), responses((status = 200, body = Rack)))]
pub(super) async fn show(State(app): State<App>, Path(rack): Path<String>) -> Result<impl IntoResponse, Error> {
    let rack = app.store.rack(&rack).await?;
    Ok(tagged(rack.version, Rack::from(rack)))
}

/// Create a rack
///
/// Then make an enrolment code for it and enrol its node.
#[utoipa::path(post, path = "/v1/racks", tag = "racks", request_body = NewRack,
    responses((status = 201, body = Rack, headers(("Location" = String, description = "The rack.")))))]
pub(super) async fn create(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Json(body): Json<NewRack>,
) -> Result<impl IntoResponse, Error> {
    check_name("/name", &body.name)?;
    let Network { node, delegated, gateway, dns } = body.network;
    let network = SoundNetwork::try_from(Wanted { node, gateway, dns, delegated })
        .map_err(|unsound| Error::invalid("/network", unsound))?;
    let mut tx = app.store.begin().await?;
    let site = caller.check_in(&mut tx, Action::RackManage, Thing::Site, &body.site).await?;
    let site = tx.site(&site.id).await?;
    let id = tx.insert_rack(app.clock.now().wall, &body.name, site.id, &network).await?;
    let rack = Rack::from(tx.rack(&id.to_string()).await?);
    tx.commit().await?;
    Ok((StatusCode::CREATED, [(header::LOCATION, format!("/v1/racks/{}", rack.id))], axum::Json(rack)))
}

/// What may be changed about a rack.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ChangedRack {
    /// Another site (id or name).
    #[schema(example = "fra1")]
    site: String,
}

/// Move a rack to another site
///
/// Who may do something with it changes with that.
#[utoipa::path(patch, path = "/v1/racks/{rack}", tag = "racks", request_body = ChangedRack,
    params(("rack" = String, Path, description = "Id or name.")), responses((status = 200, body = Rack)))]
pub(super) async fn change(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(rack): Path<String>,
    expected: Expected,
    Json(body): Json<ChangedRack>,
) -> Result<impl IntoResponse, Error> {
    let mut tx = app.store.begin().await?;
    let site = caller.check_in(&mut tx, Action::RackManage, Thing::Site, &body.site).await?;
    let (site, rack) = (tx.site(&site.id).await?, tx.rack(&rack).await?);
    expected.check(rack.version)?;
    tx.move_rack(rack.id, site.id).await?;
    let rack = tx.rack(&rack.id.to_string()).await?;
    tx.commit().await?;
    Ok(tagged(rack.version, Rack::from(rack)))
}

/// For how long a code shall be good, and from where.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewCode {
    /// Minutes, 1 to 10080 (a week); 60 when absent.
    #[schema(minimum = 1, maximum = 10080)]
    minutes: Option<u32>,
    /// Only from this network, as the controller sees the node: ADDRESS/LENGTH; from anywhere when
    /// absent.
    #[schema(example = "192.0.2.0/28")]
    source: Option<String>,
}

impl NewCode {
    fn expires(&self, now: Timestamp) -> Result<Timestamp, Error> {
        let minutes = self.minutes.unwrap_or(60);
        if !(1..=10080).contains(&minutes) {
            return Err(Error::invalid("/minutes", "must be between 1 and 10080"));
        }
        Ok(now + SignedDuration::from_mins(minutes.into()))
    }

    fn source(&self) -> Result<Option<IpNet>, Error> {
        let wrong = |_| Error::invalid("/source", "must be ADDRESS/LENGTH, as 192.0.2.0/28");
        self.source.as_deref().map(str::parse).transpose().map_err(wrong)
    }
}

/// A one-time code by which a node becomes the rack's agent.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct EnrolmentCode {
    /// The code. It is shown this once; only its hash is kept.
    code: String,
    /// When it can no longer be used.
    #[schema(value_type = String, format = DateTime)]
    expires: Timestamp,
    /// The line to run on the node.
    #[schema(example = "rackhand-agent enrol --controller rackhand.example:4433 --code RH1.…")]
    command: String,
}

/// Make an enrolment code
///
/// It is good for one enrolment. The code also carries the hash of the controller's CA key, so
/// that the node recognises the controller. Enrolling another node replaces the rack's agent.
#[utoipa::path(post, path = "/v1/racks/{rack}/enrolment-codes", tag = "racks", request_body = NewCode,
    params(("rack" = String, Path, description = "Id or name.")), responses((status = 201, body = EnrolmentCode)))]
pub(super) async fn enrolment_code(
    State(app): State<App>,
    Path(rack): Path<String>,
    Json(body): Json<NewCode>,
) -> Result<impl IntoResponse, Error> {
    let now = app.clock.now().wall;
    let (expires, source) = (body.expires(now)?, body.source()?);
    let (code, hash) = (app.new_code)();
    let mut tx = app.store.begin().await?;
    let rack = tx.rack(&rack).await?;
    tx.insert_code(now, &hash, rack.id, expires, source).await?;
    tx.commit().await?;
    let command = format!("rackhand-agent enrol --controller {} --code {code}", *app.agents_address.borrow());
    Ok((StatusCode::CREATED, axum::Json(EnrolmentCode { code, expires, command })))
}

/// The registration of a rack's node.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Agent {
    /// Its id.
    #[schema(value_type = uuid::Uuid)]
    id: id::AgentId,
    /// Its rack's name.
    #[schema(example = "lab")]
    rack: String,
    /// Whether it is connected now.
    connected: bool,
    /// Version of its software.
    version: Option<String>,
    /// Revision of the rack's intent that is on its disk.
    revision: u64,
    /// When it was enrolled.
    #[schema(value_type = String, format = DateTime)]
    enrolled: Timestamp,
    /// When it was last heard of.
    #[schema(value_type = Option<String>, format = DateTime)]
    seen: Option<Timestamp>,
    /// Until when its certificate is good; it renews it at half its time.
    #[schema(value_type = String, format = DateTime)]
    certificate_until: Timestamp,
    /// Since when it is no longer let in: it was revoked, or another node was enrolled for the rack.
    #[schema(value_type = Option<String>, format = DateTime)]
    revoked: Option<Timestamp>,
}

impl Agent {
    fn of(row: store::Agent, rack: String) -> Self {
        Self {
            id: row.id,
            rack,
            connected: row.connected.is_some(),
            version: row.version,
            revision: row.revision,
            enrolled: row.enrolled,
            seen: row.seen,
            certificate_until: row.certificate_until,
            revoked: row.revoked,
        }
    }
}

/// List agents
///
/// Those that were replaced too.
#[utoipa::path(get, path = "/v1/agents", tag = "agents", params(Window), responses((status = 200, body = Page<Agent>)))]
pub(super) async fn agents(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Query(window): Query<Window>,
) -> Result<impl IntoResponse, Error> {
    let (limit, sight) = (window.limit()?, caller.sight(Action::AgentRead)?);
    let rows = app.store.agents(&sight, parse("after", window.after.as_deref())?, limit + 1).await?;
    let names = app.store.rack_names(rows.iter().map(|row| row.rack)).await?;
    let view = |row: store::Agent| {
        let rack = names.get(&row.rack).cloned().unwrap_or_else(|| row.rack.to_string());
        Agent::of(row, rack)
    };
    Ok(axum::Json(Page::of(rows, limit, |row| row.id.to_string(), view)))
}

/// Revoke an agent
///
/// For a node that was stolen, lost or replaced. Its connection is cut at once, and neither it nor
/// whoever has its certificate is ever let in again, gets an image, a command or a new certificate.
/// The node goes on booting the machines it knows, from its own disk. To let it in again, enrol it
/// with a new code. Revoking what is revoked changes nothing.
#[utoipa::path(post, path = "/v1/agents/{agent}/revoke", tag = "agents",
    params(("agent" = String, Path, description = "Id.")), responses((status = 200, body = Agent)))]
pub(super) async fn revoke(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(agent): Path<String>,
) -> Result<impl IntoResponse, Error> {
    let agent = agent.parse().map_err(|_| Error::not_found("there is no such agent; /v1/agents lists them"))?;
    let now = app.clock.now().wall;
    let mut tx = app.store.begin().await?;
    let rack = tx.agent(agent).await?.rack;
    tx.dismiss(now, agent, &caller.name).await?;
    let row = tx.agent(agent).await?;
    let name = tx.rack(&rack.to_string()).await?.name;
    // What it was given before this moment is given up in this transaction.
    (app.cut)(agent);
    tx.commit().await?;
    (app.changed)(rack);
    Ok(axum::Json(Agent::of(row, name)))
}

/// A rack's node that was given up, and the code for the one that follows it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Replacement {
    /// The rack's name.
    #[schema(example = "lab")]
    rack: String,
    /// The agent that was revoked; absent when none was let in.
    #[schema(value_type = Option<uuid::Uuid>)]
    agent: Option<id::AgentId>,
    /// Power commands that the old node may or may not have carried out: runs look at their
    /// machines before they go on.
    unknown_commands: usize,
    /// The code. It is shown this once; only its hash is kept.
    code: String,
    /// Until when it can be used.
    #[schema(value_type = String, format = DateTime)]
    expires: Timestamp,
    /// What to run on the new node, as root.
    #[schema(example = "rackhand-agent enrol --controller rackhand.example:4433 --code RH1.…")]
    command: String,
}

/// Replace a rack's node
///
/// For a node that burnt, was stolen or will not come back. Its agent is revoked as by `revoke`,
/// codes of the rack that were not used are void, and a new one is made. The node that enrols with
/// it is given everything the controller knows of the rack: machines keep their ids and addresses,
/// runs in progress go on. Power commands that the old node may have carried out are looked into
/// first. Repeated before the new node has enrolled, it makes another code and voids the one
/// before. An agent that was replaced already is refused, so that no second node is given up.
#[utoipa::path(post, path = "/v1/agents/{agent}/replace", tag = "agents", request_body = NewCode,
    params(("agent" = String, Path, description = "Id of the agent, or id or name of its rack.")),
    responses((status = 201, body = Replacement)))]
pub(super) async fn replace(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(agent): Path<String>,
    Json(body): Json<NewCode>,
) -> Result<impl IntoResponse, Error> {
    let now = app.clock.now().wall;
    let (expires, source) = (body.expires(now)?, body.source()?);
    let (code, hash) = (app.new_code)();
    let mut tx = app.store.begin().await?;
    let which = agent.parse().map_or_else(|_| Which::Rack(agent.clone()), Which::Agent);
    let Replaced { rack, agent, unknown } = tx.replace_node(now, &which, &caller.name).await?;
    tx.insert_code(now, &hash, rack, expires, source).await?;
    let name = tx.rack(&rack.to_string()).await?.name;
    if let Some(agent) = agent {
        // What it was given before this moment is given up in this transaction.
        (app.cut)(agent);
    }
    tx.commit().await?;
    (app.changed)(rack);
    let command = format!("rackhand-agent enrol --controller {} --code {code}", *app.agents_address.borrow());
    let replacement = Replacement { rack: name, agent, unknown_commands: unknown, code, expires, command };
    Ok((StatusCode::CREATED, axum::Json(replacement)))
}
