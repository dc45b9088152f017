//! `/v1/announcements`: which machines announce which addresses, and which did.

use axum::{
    Extension,
    extract::{Path, State},
    http::StatusCode,
    response::IntoResponse,
};
use jiff::Timestamp;
use rackhand_common::id;
use rackhand_controller_core::access::{Action, Use};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    App, Caller, Error,
    claims::When,
    extract::{Page, Query, limit, parse},
};
use crate::store::{self, AnnouncementFilter, Thing};

/// That a machine announces the addresses of a claim, or did.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Announcement {
    /// Its id.
    #[schema(value_type = uuid::Uuid)]
    id: id::AnnouncementId,
    /// The claim.
    #[schema(value_type = uuid::Uuid)]
    claim: id::ClaimId,
    /// The claim's addresses.
    #[schema(example = "198.51.100.53/32")]
    prefix: String,
    /// The machine.
    #[schema(value_type = uuid::Uuid)]
    machine: id::MachineId,
    /// The machine's name when it began.
    #[schema(example = "web-1")]
    name: String,
    /// The machine's rack.
    #[schema(value_type = uuid::Uuid)]
    rack: id::RackId,
    /// The project that the addresses are given to, as ORGANISATION:NAME.
    #[schema(example = "acme:shop")]
    project: Option<String>,
    /// Who had it announced.
    announced_by: String,
    /// Who withdrew it.
    withdrawn_by: Option<String>,
    /// Since when.
    #[schema(value_type = String, format = DateTime)]
    since: Timestamp,
    /// Until when; absent while it is.
    #[schema(value_type = Option<String>, format = DateTime)]
    until: Option<Timestamp>,
}

impl Announcement {
    /// `project` is the name of the claim's.
    fn of(row: store::Announcement, project: Option<String>) -> Self {
        Self {
            id: row.id,
            claim: row.claim,
            prefix: row.prefix.to_string(),
            machine: row.machine,
            name: row.name,
            rack: row.rack,
            project: project.or_else(|| row.project.map(|id| id.to_string())),
            announced_by: row.announced_by,
            withdrawn_by: row.withdrawn_by,
            since: row.since,
            until: row.until,
        }
    }
}

/// Announce a claim
///
/// Has a machine announce its addresses. One that is held by a name can be announced by several machines:
/// from a global or private pool anywhere (anycast), from a public one in one site. What a machine holds it alone can
/// announce. It takes a grant to `announce`, which pools do not have unless an administrator gives it.
/// The controller keeps who may announce what; it does not speak BGP.
#[utoipa::path(put, path = "/v1/claims/{claim}/announcements/{machine}", tag = "addresses",
    params(("claim" = String, Path, description = "Id."), ("machine" = String, Path, description = "Id or name.")),
    responses((status = 200, body = Announcement)))]
pub(super) async fn announce(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path((claim, machine)): Path<(String, String)>,
) -> Result<impl IntoResponse, Error> {
    let mut tx = app.store.begin().await?;
    let standing = caller.check_in(&mut tx, Action::AddressAnnounce, Thing::Claim, &claim).await?;
    let machine = caller.check_in(&mut tx, Action::MachineRead, Thing::Machine, &machine).await?;
    // Who answers for the machine has to clean up after it.
    caller.require(Action::AddressAnnounce, machine.place)?;
    let claim = tx.claim(standing.id.parse().map_err(Error::internal)?).await?;
    let mut pool = tx.pool_numbered(claim.pool_number).await?;
    // A project's own blocks are announced as far as the pool is that they are carved from.
    if let Some(parent) = pool.parent {
        let also = tx.pool_numbered(parent).await?.grants;
        pool.grants.extend(also.into_iter().filter(|grant| grant.may.contains(&Use::Announce)));
    }
    caller.may_use_claim(&claim, &pool, Use::Announce, machine.place.given_to(standing.place))?;
    let now = tx.address_time(app.clock.now().wall).await?;
    let machine = tx.machine(&machine.id).await?;
    let announced = tx.announce(now, &claim, &pool, &machine, &caller.name).await?;
    let projects = tx.project_names(announced.project).await?;
    tx.commit().await?;
    Ok(axum::Json(Announcement::of(announced, projects.into_values().next())))
}

/// Withdraw a claim
///
/// Has a machine announce its addresses no longer; other machines go on. It takes no grant, and the role
/// where the claim is or where the machine is.
#[utoipa::path(delete, path = "/v1/claims/{claim}/announcements/{machine}", tag = "addresses",
    params(("claim" = String, Path, description = "Id."), ("machine" = String, Path, description = "Id or name.")),
    responses((status = 204)))]
pub(super) async fn withdraw(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path((claim, machine)): Path<(String, String)>,
) -> Result<impl IntoResponse, Error> {
    let none = || Error::not_found("there is no such announcement; `rackhand ip announcements` lists them");
    let mut tx = app.store.begin().await?;
    let (of, by) = match (tx.standing(Thing::Claim, &claim).await, tx.standing(Thing::Machine, &machine).await) {
        (Ok(claim), Ok(machine)) => (claim, machine),
        (Err(store::StoreError::NotFound(_)), _) | (_, Err(store::StoreError::NotFound(_))) => return Err(none()),
        (Err(error), _) | (_, Err(error)) => return Err(error.into()),
    };
    let claim = of.id.parse().map_err(Error::internal)?;
    let mut found = tx.announcements_of(claim).await?.into_iter().filter(|one| one.machine.to_string() == by.id);
    let found = found.next().ok_or_else(none)?;
    // It stands where the claim does and where the machine does.
    if ![of.place, by.place].into_iter().any(|place| caller.rights.permit(Action::AddressAnnounce, place)) {
        return Err(match caller.rights.permit(Action::AddressRead, by.place.given_to(of.place)) {
            true => Error::forbidden("it takes the role to announce addresses where the claim or the machine is"),
            false => none(),
        });
    }
    let now = tx.address_time(app.clock.now().wall).await?;
    tx.withdraw(now, found, &caller.name).await?;
    tx.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Which announcements.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Which {
    /// Only those of this claim (id).
    #[param(value_type = Option<uuid::Uuid>)]
    claim: Option<id::ClaimId>,
    /// Only those by this machine (id or name).
    machine: Option<String>,
    /// Only those by machines of this rack (id or name).
    rack: Option<String>,
    /// Only those of this project's addresses (id, name or ORGANISATION:NAME).
    project: Option<String>,
    /// `next` of the page before; absent for the first page.
    after: Option<String>,
    /// How many at most, 1 to 200.
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<u32>,
}

/// List announcements
///
/// Those that were not withdrawn, the oldest first: what a router's filters are made of.
#[utoipa::path(get, path = "/v1/announcements", tag = "addresses", params(Which),
    responses((status = 200, body = Page<Announcement>)))]
pub(super) async fn list(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Query(which): Query<Which>,
) -> Result<impl IntoResponse, Error> {
    let (limit, sight) = (limit(which.limit)?, caller.sight(Action::AddressRead)?);
    let mut filter = AnnouncementFilter { sight, claim: which.claim, ..AnnouncementFilter::default() };
    if let Some(machine) = which.machine {
        filter.machine = Some(caller.machine(&app, &machine).await?);
    }
    if let Some(rack) = which.rack {
        filter.rack = Some(caller.rack(&app, &rack).await?);
    }
    if let Some(project) = which.project {
        filter.project = Some(caller.project(&app, &project).await?.id);
    }
    let rows = app.store.announcements(&filter, parse("after", which.after.as_deref())?, limit + 1).await?;
    page(&app, rows, limit).await
}

/// Who announced an address
///
/// Every machine that ever did, by itself or in a block, the latest first; with `at`, those that did then.
#[utoipa::path(get, path = "/v1/addresses/{address}/announcements", tag = "addresses",
    params(("address" = String, Path, description = "An IPv4 or IPv6 address."), When),
    responses((status = 200, body = Page<Announcement>)))]
pub(super) async fn history(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(address): Path<String>,
    Query(when): Query<When>,
) -> Result<impl IntoResponse, Error> {
    let (limit, sight) = (limit(when.limit)?, caller.sight(Action::AddressRead)?);
    let (vrf, address) = when.of(&app, &address).await?;
    let after = parse("after", when.after.as_deref())?;
    let rows = app.store.announcement_history(&sight, &vrf, address, when.at, after, limit + 1).await?;
    page(&app, rows, limit).await
}

async fn page(app: &App, rows: Vec<store::Announcement>, limit: u32) -> Result<impl IntoResponse + use<>, Error> {
    let projects = app.store.project_names(rows.iter().filter_map(|row| row.project)).await?;
    let view = |row: store::Announcement| {
        let project = row.project.and_then(|project| projects.get(&project).cloned());
        Announcement::of(row, project)
    };
    Ok(axum::Json(Page::of(rows, limit, |row| row.id.to_string(), view)))
}
