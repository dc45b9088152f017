//! `/v1/claims` and `/v1/addresses`: what is whose, and whose it was.

use std::{collections::HashMap, net::IpAddr};

use axum::{
    Extension,
    extract::{Path, State},
    http::{StatusCode, header},
    response::IntoResponse,
};
use jiff::Timestamp;
use rackhand_common::{id, machine::Mac};
use rackhand_controller_core::{
    access::{self, Action, Place, Use},
    ipam::{NotAPrefix, Prefix},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    App, Caller, Error,
    extract::{Expected, Json, Page, Query, check_text, limit, parse, tagged},
    grants::{self, Grant},
    pools,
};
use crate::{
    addresses::{Move, NewClaim as Wish, NewHolder, Refused, Wanted},
    store::{self, ClaimFilter, Thing, Vrf},
};

/// An address or a block that is, or was, somebody's.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Claim {
    /// Its id.
    #[schema(value_type = uuid::Uuid)]
    id: id::ClaimId,
    /// The addresses: a block, or one of length 32 or 128.
    #[schema(example = "198.51.100.6/31")]
    prefix: String,
    /// The first of them.
    #[schema(value_type = String, example = "198.51.100.6")]
    first: IpAddr,
    /// The last of them.
    #[schema(value_type = String, example = "198.51.100.7")]
    last: IpAddr,
    /// Of a machine's point-to-point block (/31 or /127): the even address, which is the switch's. The odd one
    /// is the machine's.
    #[schema(value_type = Option<String>, example = "198.51.100.6")]
    gateway: Option<IpAddr>,
    /// Name of the pool they are from.
    #[schema(example = "public-4")]
    pool: String,
    /// Whether they are nobody's, and not to be handed out.
    reserved: bool,
    /// The machine that holds them.
    #[schema(value_type = Option<uuid::Uuid>)]
    machine: Option<id::MachineId>,
    /// The machine's port, by its card.
    #[schema(value_type = Option<String>, example = "52:54:00:12:34:56")]
    mac: Option<Mac>,
    /// Name of what holds them: of the machine, at the time, or another.
    #[schema(example = "web-1")]
    name: String,
    /// The project it is given to, as ORGANISATION:NAME; absent when it is nobody's in particular.
    #[schema(example = "acme:shop")]
    project: Option<String>,
    /// What for.
    purpose: String,
    /// Who may do what with them; absent: as their pool says.
    grants: Option<Vec<Grant>>,
    /// Who claimed it.
    claimed_by: String,
    /// Who released it.
    released_by: Option<String>,
    /// Since when it holds them.
    #[schema(value_type = String, format = DateTime)]
    since: Timestamp,
    /// Until when; absent while it does.
    #[schema(value_type = Option<String>, format = DateTime)]
    until: Option<Timestamp>,
}

impl Claim {
    fn of(row: store::Claim, projects: &HashMap<id::ProjectId, String>) -> Self {
        Self {
            id: row.id,
            prefix: row.prefix.to_string(),
            first: row.prefix.first(),
            last: row.prefix.last(),
            gateway: row.gateway(),
            pool: row.pool,
            reserved: row.reserved,
            machine: row.holder.machine,
            mac: row.holder.mac,
            name: row.holder.name,
            project: row.project.map(|id| projects.get(&id).cloned().unwrap_or_else(|| id.to_string())),
            purpose: row.purpose,
            grants: row.grants.map(|grants| grants.iter().map(|grant| Grant::of(grant, projects)).collect()),
            claimed_by: row.claimed_by,
            released_by: row.released_by,
            since: row.since,
            until: row.until,
        }
    }
}

/// What is to be claimed. `machine` or `name` says for whom.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewClaim {
    /// Id or name of the pool.
    #[schema(example = "public-4")]
    pool: String,
    /// Length of the block to be found; a single address when neither this nor `prefix` is there.
    #[schema(minimum = 0, maximum = 128, example = 31)]
    length: Option<u8>,
    /// These addresses, as `198.51.100.6` or `198.51.100.6/31`.
    #[schema(example = "198.51.100.6/31")]
    prefix: Option<String>,
    /// For this machine: id or name.
    machine: Option<String>,
    /// For this port of the machine: a card's address.
    #[schema(value_type = Option<String>, example = "52:54:00:12:34:56")]
    mac: Option<Mac>,
    /// For something that is no machine: at most 100 characters.
    name: Option<String>,
    /// Make them nobody's, so that they are not handed out: a gateway, a broadcast address, a range
    /// in use elsewhere.
    #[serde(default)]
    reserve: bool,
    /// For this project (id, name or ORGANISATION:NAME); the machine's when absent.
    #[schema(example = "acme:shop")]
    project: Option<String>,
    /// What for: at most 500 characters.
    #[serde(default)]
    purpose: String,
}

impl NewClaim {
    /// What is wished for, when the caller may.
    async fn permitted(self, app: &App, caller: &Caller) -> Result<Wish, Error> {
        let named = self.project.clone();
        let mut wish = self.wish()?;
        let pool = pools::visible(app, caller, &wish.pool).await?;
        let of = pool.place();
        let mut place = match &wish.holder {
            NewHolder::Machine(machine, _) => {
                let machine = caller.find(app, Action::MachineRead, Thing::Machine, machine).await?.place;
                if machine.project.is_none() { machine.given_to(of) } else { machine }
            }
            NewHolder::Name(_) => of,
        };
        if let Some(name) = named {
            let project = caller.project(app, &name).await?;
            if place.project != Some(project.id) {
                caller.check(Action::ProjectUse, "project", project.place())?;
            }
            place = place.given_to(project.place());
        }
        caller.may_use(&pool, Use::Assign, place)?;
        if wish.reserved {
            caller.require(Action::AddressSpace, of)?;
        }
        wish.project = place.project;
        Ok(wish)
    }

    fn wish(self) -> Result<Wish, Error> {
        let wanted = match (self.length, self.prefix) {
            (None, None) => Wanted::Any,
            (Some(length), None) => Wanted::Length(length),
            (None, Some(text)) => Wanted::Prefix(prefix("/prefix", &text)?),
            (Some(_), Some(_)) => return Err(Error::invalid("/length", "give `length` or `prefix`, not both")),
        };
        let holder = holder(self.machine, self.mac, self.name)?;
        check_text("/purpose", &self.purpose, 500)?;
        let NewClaim { pool, reserve: reserved, purpose, .. } = self;
        Ok(Wish { pool, wanted, holder, reserved, project: None, purpose })
    }
}

/// Whoever is meant: a machine, one of its cards, or something else.
fn holder(machine: Option<String>, mac: Option<Mac>, name: Option<String>) -> Result<NewHolder, Error> {
    match (machine, name) {
        (Some(machine), None) => Ok(NewHolder::Machine(machine, mac)),
        (None, _) if mac.is_some() => Err(Error::invalid("/mac", "a card is a `machine`'s: say which")),
        (None, Some(name)) => {
            check_text("/name", &name, 100)?;
            if name.trim().is_empty() {
                return Err(Error::invalid("/name", "say what holds it"));
            }
            Ok(NewHolder::Name(name))
        }
        _ => Err(Error::invalid("/machine", "say for whom: a `machine`, or the `name` of something else")),
    }
}

/// A prefix or an address in a field.
pub(super) fn prefix(field: &str, text: &str) -> Result<Prefix, Error> {
    text.parse().map_err(|error: NotAPrefix| Error::invalid(field, error))
}

/// Claim addresses
///
/// A block of a `length`, the smallest free space that has one and the lowest of that; a `prefix`
/// that is free; or a single address. No two claims of one VRF ever share an address. It is on disk
/// before it is answered. Sent with an `Idempotency-Key`, it can be asked again when no answer came.
#[utoipa::path(post, path = "/v1/claims", tag = "addresses", request_body = NewClaim,
    responses((status = 201, body = Claim, headers(("Location" = String, description = "The claim.")))))]
pub(super) async fn create(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Json(body): Json<NewClaim>,
) -> Result<impl IntoResponse, Error> {
    let wish = body.permitted(&app, &caller).await?;
    let claim = match app.addresses.claim(wish, caller.name.clone()).await {
        Ok(claim) => view(&app, claim).await?,
        Err(refused) => return Err(hidden(&app, &caller, refused).await?.into()),
    };
    Ok((StatusCode::CREATED, [(header::LOCATION, format!("/v1/claims/{}", claim.id))], axum::Json(claim)))
}

/// The refusal without what the caller may not see: whose the addresses are that were wanted.
pub(super) async fn hidden(app: &App, caller: &Caller, refused: Refused) -> Result<Refused, Error> {
    let Refused::Held { wanted, held, claim: Some(claim) } = refused else { return Ok(refused) };
    let place: Place = app.store.standing(Thing::Claim, &claim.id.to_string()).await?.place;
    let claim = caller.rights.permit(Action::AddressRead, place).then_some(claim);
    Ok(Refused::Held { wanted, held, claim })
}

async fn view(app: &App, row: store::Claim) -> Result<Claim, Error> {
    let projects = app.store.project_names(of_projects([&row])).await?;
    Ok(Claim::of(row, &projects))
}

/// The projects that are to be named of claims.
fn of_projects<'a>(claims: impl IntoIterator<Item = &'a store::Claim>) -> impl Iterator<Item = id::ProjectId> {
    claims
        .into_iter()
        .flat_map(|claim| grants::projects(claim.grants.as_deref().unwrap_or_default()).chain(claim.project))
}

/// Which claims.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Which {
    /// Only those from this pool (id or name).
    pool: Option<String>,
    /// Only those of this machine (id or name).
    machine: Option<String>,
    /// Only those of this project (id, name or ORGANISATION:NAME).
    project: Option<String>,
    /// Only those held under this name.
    name: Option<String>,
    /// Only those that contain this address or block.
    address: Option<String>,
    /// `next` of the page before; absent for the first page.
    after: Option<String>,
    /// How many at most, 1 to 200.
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<u32>,
}

/// List claims
///
/// Those that were not released, the oldest first.
#[utoipa::path(get, path = "/v1/claims", tag = "addresses", params(Which),
    responses((status = 200, body = Page<Claim>)))]
pub(super) async fn list(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Query(which): Query<Which>,
) -> Result<impl IntoResponse, Error> {
    let (limit, sight) = (limit(which.limit)?, caller.sight(Action::AddressRead)?);
    let mut filter = ClaimFilter { name: which.name, sight, ..ClaimFilter::default() };
    if let Some(pool) = which.pool {
        filter.pool = Some(pools::visible(&app, &caller, &pool).await?.id);
    }
    if let Some(machine) = which.machine {
        filter.machine = Some(caller.machine(&app, &machine).await?);
    }
    if let Some(project) = which.project {
        filter.project = Some(caller.project(&app, &project).await?.id);
    }
    filter.containing = which.address.map(|address| prefix("address", &address)).transpose()?;
    let rows = app.store.claims(&filter, parse("after", which.after.as_deref())?, limit + 1).await?;
    let projects = app.store.project_names(of_projects(&rows)).await?;
    Ok(axum::Json(Page::of(rows, limit, |row| row.id.to_string(), |row| Claim::of(row, &projects))))
}

/// Show one claim
///
/// Also one that was released.
#[utoipa::path(get, path = "/v1/claims/{claim}", tag = "addresses",
    params(("claim" = String, Path, description = "Id.")), responses((status = 200, body = Claim)))]
pub(super) async fn show(State(app): State<App>, Path(claim): Path<String>) -> Result<impl IntoResponse, Error> {
    let claim = app.store.claim(id(&claim)?).await?;
    Ok(tagged(claim.version, view(&app, claim).await?))
}

/// What of a claim is to be otherwise. What is left out stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ClaimChange {
    /// The machine that shall hold it: id or name.
    #[schema(example = "web-2")]
    machine: Option<String>,
    /// The port of that machine: a card's address.
    #[schema(value_type = Option<String>, example = "52:54:00:12:34:56")]
    mac: Option<Mac>,
    /// What shall hold it, if no machine: at most 100 characters.
    name: Option<String>,
    /// What for: at most 500 characters.
    purpose: Option<String>,
}

/// Move a claim
///
/// To another machine, another port or another name, at one instant: at no time are its addresses
/// nobody's, or anybody's else. Its id, its project and the names of its addresses stay, and who held them
/// until then is in their history. It takes a grant of the pool to `assign`, as a claim does.
#[utoipa::path(patch, path = "/v1/claims/{claim}", tag = "addresses", request_body = ClaimChange,
    params(("claim" = String, Path, description = "Id.")), responses((status = 200, body = Claim)))]
pub(super) async fn change(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(claim): Path<String>,
    expected: Expected,
    Json(body): Json<ClaimChange>,
) -> Result<impl IntoResponse, Error> {
    let (id, ClaimChange { machine, mac, name, purpose }) = (id(&claim)?, body);
    check_text("/purpose", purpose.as_deref().unwrap_or_default(), 500)?;
    let to = match (&machine, &mac, &name) {
        (None, None, None) => None,
        _ => Some(holder(machine, mac, name)?),
    };
    let grants = match &to {
        Some(to) => may_hold(&app, &caller, id, to).await?,
        None => None,
    };
    let claim = app.addresses.hand_on(id, expected.versions(), Move { to, purpose, grants }, caller.name).await?;
    Ok(tagged(claim.version, view(&app, claim).await?))
}

/// That the caller may have a claim held by another, where that stands; the grants of its own that it has.
async fn may_hold(
    app: &App,
    caller: &Caller,
    id: id::ClaimId,
    to: &NewHolder,
) -> Result<Option<Vec<access::Grant>>, Error> {
    let claim = app.store.claim(id).await?;
    if let Some(until) = claim.until {
        return Err(Refused::Over(id, until).into());
    }
    let pool = app.store.pool_numbered(claim.pool_number).await?;
    let of = pool.place();
    let place = match to {
        NewHolder::Machine(machine, _) => caller.find(app, Action::MachineRead, Thing::Machine, machine).await?.place,
        NewHolder::Name(_) => of,
    };
    let project = app.store.standing(Thing::Claim, &id.to_string()).await?.place;
    caller.may_use_claim(&claim, &pool, Use::Assign, place.given_to(project))?;
    if claim.reserved {
        caller.require(Action::AddressSpace, of)?;
    }
    Ok(claim.grants)
}

/// Grants of a claim's addresses.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ClaimGrants {
    /// Whether they are the claim's own, and not its pool's.
    own: bool,
    /// Who may do what with the addresses.
    grants: Vec<Grant>,
}

/// Grants for a claim's addresses.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewClaimGrants {
    /// All of them; none: only whoever sets up address space may do anything with the addresses.
    grants: Vec<Grant>,
}

/// Show who may use a claim
///
/// The grants that count for its addresses: its own, or its pool's.
#[utoipa::path(get, path = "/v1/claims/{claim}/grants", tag = "addresses",
    params(("claim" = String, Path, description = "Id.")), responses((status = 200, body = ClaimGrants)))]
pub(super) async fn show_grants(State(app): State<App>, Path(claim): Path<String>) -> Result<impl IntoResponse, Error> {
    let claim = app.store.claim(id(&claim)?).await?;
    let (own, counting) = (claim.grants.is_some(), counting(&app, &claim).await?);
    let projects = app.store.project_names(grants::projects(&counting)).await?;
    let grants = counting.iter().map(|grant| Grant::of(grant, &projects)).collect();
    Ok(tagged(claim.version, ClaimGrants { own, grants }))
}

/// The grants that count for a claim.
async fn counting(app: &App, claim: &store::Claim) -> Result<Vec<access::Grant>, Error> {
    match &claim.grants {
        Some(own) => Ok(own.clone()),
        None => Ok(app.store.pool_numbered(claim.pool_number).await?.grants),
    }
}

/// Grant the use of a claim
///
/// From now on these grants say who may move, announce and name its addresses, and no more those of its
/// pool. Releasing it takes no grant.
#[utoipa::path(put, path = "/v1/claims/{claim}/grants", tag = "addresses", request_body = NewClaimGrants,
    params(("claim" = String, Path, description = "Id.")), responses((status = 200, body = Claim)))]
pub(super) async fn set_grants(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(claim): Path<String>,
    expected: Expected,
    Json(body): Json<NewClaimGrants>,
) -> Result<impl IntoResponse, Error> {
    let id = id(&claim)?;
    let known = counting(&app, &app.store.claim(id).await?).await?;
    let grants = grants::checked(&app, &caller, body.grants, &known).await?;
    grant(&app, id, &expected, Some(&grants)).await
}

/// Have its pool say who may use a claim
///
/// Its own grants are gone, and those of its pool count again.
#[utoipa::path(delete, path = "/v1/claims/{claim}/grants", tag = "addresses",
    params(("claim" = String, Path, description = "Id.")), responses((status = 200, body = Claim)))]
pub(super) async fn remove_grants(
    State(app): State<App>,
    Path(claim): Path<String>,
    expected: Expected,
) -> Result<impl IntoResponse, Error> {
    grant(&app, id(&claim)?, &expected, None).await
}

async fn grant(
    app: &App,
    id: id::ClaimId,
    expected: &Expected,
    grants: Option<&[access::Grant]>,
) -> Result<impl IntoResponse + use<>, Error> {
    let mut tx = app.store.begin().await?;
    let claim = tx.claim(id).await?;
    expected.check(claim.version)?;
    if let Some(until) = claim.until {
        return Err(Refused::Over(id, until).into());
    }
    let claim = match claim.grants.as_deref() == grants {
        true => claim,
        false => tx.set_claim_grants(id, grants).await?,
    };
    let projects = tx.project_names(of_projects([&claim])).await?;
    tx.commit().await?;
    Ok(tagged(claim.version, Claim::of(claim, &projects)))
}

/// Release a claim
///
/// Its addresses rest for the quarantine of their pool before anybody gets them again; what was
/// reserved is free at once. The claim stays in the addresses' history.
#[utoipa::path(delete, path = "/v1/claims/{claim}", tag = "addresses",
    params(("claim" = String, Path, description = "Id.")), responses((status = 200, body = Claim)))]
pub(super) async fn release(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(claim): Path<String>,
    expected: Expected,
) -> Result<impl IntoResponse, Error> {
    let claim = app.addresses.release(id(&claim)?, expected.versions(), caller.name).await?;
    Ok(axum::Json(view(&app, claim).await?))
}

fn id(text: &str) -> Result<id::ClaimId, Error> {
    text.parse().map_err(|_| Error::not_found(format!("`{text}` is not a claim's id; /v1/claims lists them")))
}

/// Of what in an address's history.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct When {
    /// Only what was true at this time.
    #[param(value_type = Option<String>, format = DateTime, example = "2026-11-24T12:00:00Z")]
    pub(super) at: Option<Timestamp>,
    /// In this VRF; `default` when absent.
    vrf: Option<String>,
    /// `next` of the page before; absent for the first page.
    pub(super) after: Option<String>,
    /// How many at most, 1 to 200.
    #[param(minimum = 1, maximum = 200, default = 50)]
    pub(super) limit: Option<u32>,
}

impl When {
    /// The VRF that is asked about, and the address.
    pub(super) async fn of(&self, app: &App, address: &str) -> Result<(Vrf, Prefix), Error> {
        address_in(app, self.vrf.as_deref(), address).await
    }
}

/// A VRF that a query names, `default` when it names none, and the address in it that a path has.
pub(super) async fn address_in(app: &App, vrf: Option<&str>, address: &str) -> Result<(Vrf, Prefix), Error> {
    let address: IpAddr = address.parse().map_err(|_| Error::invalid("address", "write an IPv4 or IPv6 address"))?;
    let address = Prefix::single(address).map_err(|error| Error::invalid("address", error))?;
    Ok((app.store.vrf(vrf.unwrap_or("default")).await?, address))
}

/// Who held an address
///
/// Everybody who ever did, by itself or in a block, the latest first; with `at`, who did then, or none. A
/// claim that was moved is there once for each who held it.
#[utoipa::path(get, path = "/v1/addresses/{address}/history", tag = "addresses",
    params(("address" = String, Path, description = "An IPv4 or IPv6 address."), When),
    responses((status = 200, body = Page<Claim>)))]
pub(super) async fn history(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(address): Path<String>,
    Query(when): Query<When>,
) -> Result<impl IntoResponse, Error> {
    let (limit, sight) = (limit(when.limit)?, caller.sight(Action::AddressRead)?);
    let (vrf, address) = when.of(&app, &address).await?;
    let rows = match when.at {
        Some(at) => app.store.holder(&sight, &vrf, address, at).await?.into_iter().collect(),
        None => app.store.history(&sight, &vrf, address, parse("after", when.after.as_deref())?, limit + 1).await?,
    };
    let projects = app.store.project_names(of_projects(&rows)).await?;
    Ok(axum::Json(Page::of(rows, limit, |row| row.id.to_string(), |row| Claim::of(row, &projects))))
}

/// A block of a pool that is, or was, a project's own.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ProjectBlock {
    /// Its addresses.
    #[schema(example = "10.64.0.0/25")]
    prefix: String,
    /// Name of the project's pool, when it got the block.
    #[schema(example = "projects-4.shop")]
    pool: String,
    /// The project, as ORGANISATION:NAME; of one that was deleted, as it was when it got the block.
    #[schema(example = "acme:shop")]
    project: String,
    /// Since when.
    #[schema(value_type = String, format = DateTime)]
    since: Timestamp,
    /// Until when; absent while it is.
    #[schema(value_type = Option<String>, format = DateTime)]
    until: Option<Timestamp>,
}

impl ProjectBlock {
    fn of(row: store::ProjectBlock, projects: &HashMap<id::ProjectId, String>) -> Self {
        let project = projects.get(&row.project).cloned().unwrap_or(row.project_name);
        Self { prefix: row.prefix.to_string(), pool: row.pool, project, since: row.since, until: row.until }
    }
}

/// In whose block an address was
///
/// Every project that ever had the address in a block of its own, the latest first; with `at`, the one that
/// did then, or none.
#[utoipa::path(get, path = "/v1/addresses/{address}/blocks", tag = "addresses",
    params(("address" = String, Path, description = "An IPv4 or IPv6 address."), When),
    responses((status = 200, body = Page<ProjectBlock>)))]
pub(super) async fn blocks(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(address): Path<String>,
    Query(when): Query<When>,
) -> Result<impl IntoResponse, Error> {
    let (limit, sight) = (limit(when.limit)?, caller.sight(Action::AddressRead)?);
    let (vrf, address) = when.of(&app, &address).await?;
    let after = parse("after", when.after.as_deref())?;
    let rows = app.store.project_blocks(&sight, &vrf, address, when.at, after, limit + 1).await?;
    let projects = app.store.project_names(rows.iter().map(|row| row.project)).await?;
    Ok(axum::Json(Page::of(rows, limit, |row| row.number.to_string(), |row| ProjectBlock::of(row, &projects))))
}
