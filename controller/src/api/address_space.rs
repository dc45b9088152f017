//! `/v1/vrfs`, `/v1/aggregates`, `/v1/pools` and `/v1/utilisation`: what there is to claim from.

use std::collections::HashMap;

use axum::{
    Extension,
    extract::{Path, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use rackhand_common::id;
use rackhand_controller_core::{
    access::{self, Action},
    ipam::{self, Prefix, Usage},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    App, Caller, Error,
    claims::prefix,
    extract::{Expected, Json, Page, Query, Window, check_name, check_text, limit, parse, tagged},
    grants::{self, Grant},
};
use crate::{
    addresses::Refused,
    store::{self, NewPool as Made, ProofKind as Kind, ProofState as Looked, Thing},
};

/// The most prefixes that are given to a pool in one request, and shown of it.
const PREFIXES: usize = 100;

/// The most blocks that one project gets of a pool.
const BLOCKS: u32 = 1024;

/// The longest quarantine: a year.
const QUARANTINE_MINUTES: u32 = 365 * 24 * 60;

/// A space in which an address is one place.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Vrf {
    /// Its name.
    #[schema(example = "default")]
    name: String,
    /// When it was created.
    #[schema(value_type = String, format = DateTime)]
    created: Timestamp,
}

impl From<store::Vrf> for Vrf {
    fn from(row: store::Vrf) -> Self {
        Self { name: row.name, created: row.created }
    }
}

/// A VRF to be created.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewVrf {
    /// Its name: lower-case letters, digits, `.`, `-`, `_`; at most 63.
    #[schema(example = "management")]
    name: String,
}

/// List VRFs
///
/// By name. There is always one, `default`.
#[utoipa::path(get, path = "/v1/vrfs", tag = "addresses", params(Window), responses((status = 200, body = Page<Vrf>)))]
pub(super) async fn vrfs(State(app): State<App>, Query(window): Query<Window>) -> Result<impl IntoResponse, Error> {
    let limit = window.limit()?;
    let rows = app.store.vrfs(window.after.as_deref().unwrap_or_default(), limit + 1).await?;
    Ok(axum::Json(Page::of(rows, limit, |row| row.name.clone(), Vrf::from)))
}

/// Create a VRF
///
/// The same addresses can be used once in each.
#[utoipa::path(post, path = "/v1/vrfs", tag = "addresses", request_body = NewVrf,
    responses((status = 201, body = Vrf)))]
pub(super) async fn create_vrf(State(app): State<App>, Json(body): Json<NewVrf>) -> Result<impl IntoResponse, Error> {
    check_name("/name", &body.name)?;
    let mut tx = app.store.begin().await?;
    let vrf = tx.insert_vrf(app.clock.now().wall, &body.name).await?;
    tx.commit().await?;
    Ok((StatusCode::CREATED, axum::Json(Vrf::from(vrf))))
}

/// Address space of one origin.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Aggregate {
    /// Its id.
    #[schema(value_type = uuid::Uuid)]
    id: id::AggregateId,
    /// Its VRF's name.
    #[schema(example = "default")]
    vrf: String,
    /// Which addresses.
    #[schema(example = "198.51.100.0/22")]
    prefix: String,
    /// Whose it is, and by what right.
    source: Source,
    /// Whether pools may be made of it.
    usable: bool,
    /// When it was created.
    #[schema(value_type = String, format = DateTime)]
    created: Timestamp,
}

/// Whose an aggregate is, and by what right.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Source {
    /// Nobody's in particular: private use (RFC 1918, RFC 4193).
    Private,
    /// Ours, by a registry.
    Registry {
        /// Which, and under what name.
        #[schema(example = "RIPE ORG-EX1-RIPE")]
        name: String,
    },
    /// A customer brought it. It can be used once its proof is `verified`.
    Customer {
        /// Who.
        #[schema(example = "example-shop")]
        name: String,
        /// Why we may use it.
        proof: Proof,
    },
}

/// What shows that a customer may have us announce their space.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Proof {
    /// A route origin authorisation or a letter.
    kind: ProofKind,
    /// Where it is: the ROA's ASN and prefix, or the letter's ticket.
    #[schema(example = "AS64500 198.51.100.0/22-24")]
    reference: String,
    /// Whether somebody looked.
    #[serde(default)]
    state: ProofState,
}

/// A kind of proof.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ProofKind {
    /// A route origin authorisation (RFC 9582).
    Roa,
    /// A letter of authorisation.
    Loa,
}

/// Whether somebody looked at a proof.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ProofState {
    /// Nobody yet.
    #[default]
    Pending,
    /// It was found right.
    Verified,
    /// It was found wrong, or has ended.
    Refused,
}

impl From<ProofState> for Looked {
    fn from(state: ProofState) -> Self {
        match state {
            ProofState::Pending => Self::Pending,
            ProofState::Verified => Self::Verified,
            ProofState::Refused => Self::Refused,
        }
    }
}

impl From<store::Source> for Source {
    fn from(row: store::Source) -> Self {
        match row {
            store::Source::Private => Self::Private,
            store::Source::Registry { name } => Self::Registry { name },
            store::Source::Customer { name, proof } => Self::Customer {
                name,
                proof: Proof {
                    kind: match proof.kind {
                        Kind::Roa => ProofKind::Roa,
                        Kind::Loa => ProofKind::Loa,
                    },
                    reference: proof.reference,
                    state: match proof.state {
                        Looked::Pending => ProofState::Pending,
                        Looked::Verified => ProofState::Verified,
                        Looked::Refused => ProofState::Refused,
                    },
                },
            },
        }
    }
}

impl TryFrom<Source> for store::Source {
    type Error = Error;

    fn try_from(source: Source) -> Result<Self, Error> {
        Ok(match source {
            Source::Private => Self::Private,
            Source::Registry { name } => {
                check_text("/source/registry/name", &name, 100)?;
                Self::Registry { name }
            }
            Source::Customer { name, proof } => {
                check_text("/source/customer/name", &name, 100)?;
                check_text("/source/customer/proof/reference", &proof.reference, 500)?;
                let kind = match proof.kind {
                    ProofKind::Roa => Kind::Roa,
                    ProofKind::Loa => Kind::Loa,
                };
                let proof = store::Proof { kind, reference: proof.reference, state: proof.state.into() };
                Self::Customer { name, proof }
            }
        })
    }
}

impl From<store::Aggregate> for Aggregate {
    fn from(row: store::Aggregate) -> Self {
        Self {
            id: row.id,
            vrf: row.vrf,
            prefix: row.prefix.to_string(),
            usable: row.source.may_be_used(),
            source: row.source.into(),
            created: row.created,
        }
    }
}

/// An aggregate to be created.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewAggregate {
    /// Which addresses.
    #[schema(example = "198.51.100.0/22")]
    prefix: String,
    /// The VRF's name; `default` when absent.
    vrf: Option<String>,
    /// Whose it is, and by what right.
    source: Source,
}

/// List aggregates
#[utoipa::path(get, path = "/v1/aggregates", tag = "addresses", params(Window),
    responses((status = 200, body = Page<Aggregate>)))]
pub(super) async fn aggregates(
    State(app): State<App>,
    Query(window): Query<Window>,
) -> Result<impl IntoResponse, Error> {
    let limit = window.limit()?;
    let rows = app.store.aggregates(parse("after", window.after.as_deref())?, limit + 1).await?;
    Ok(axum::Json(Page::of(rows, limit, |row| row.id.to_string(), Aggregate::from)))
}

/// Create an aggregate
///
/// Address space that is ours to use: by a registry, private, or brought by a customer with a proof.
/// Pools are made of it. Aggregates of one VRF do not overlap.
#[utoipa::path(post, path = "/v1/aggregates", tag = "addresses", request_body = NewAggregate,
    responses((status = 201, body = Aggregate)))]
pub(super) async fn create_aggregate(
    State(app): State<App>,
    Json(body): Json<NewAggregate>,
) -> Result<impl IntoResponse, Error> {
    let wanted = prefix("/prefix", &body.prefix)?;
    let source = body.source.try_into()?;
    let mut tx = app.store.begin().await?;
    let vrf = tx.vrf(body.vrf.as_deref().unwrap_or("default")).await?;
    let made = tx.add_aggregate(app.clock.now().wall, &vrf, wanted, &source).await?;
    tx.commit().await?;
    Ok((StatusCode::CREATED, axum::Json(Aggregate::from(made))))
}

/// What came of looking at a customer's proof.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Verdict {
    /// What was found.
    state: ProofState,
    /// Where the proof is now, when that changed.
    reference: Option<String>,
}

/// Say what a customer's proof is worth
///
/// Pools can be made of a customer's aggregate only while its proof is `verified`. Those there are
/// stay when it is refused later.
#[utoipa::path(post, path = "/v1/aggregates/{aggregate}/proof", tag = "addresses", request_body = Verdict,
    params(("aggregate" = String, Path, description = "Id.")), responses((status = 200, body = Aggregate)))]
pub(super) async fn prove(
    State(app): State<App>,
    Path(aggregate): Path<String>,
    Json(body): Json<Verdict>,
) -> Result<impl IntoResponse, Error> {
    if let Some(reference) = &body.reference {
        check_text("/reference", reference, 500)?;
    }
    let id = aggregate_id(&aggregate)?;
    let mut tx = app.store.begin().await?;
    let aggregate = tx.aggregate(id).await?;
    let store::Source::Customer { name, proof } = aggregate.source.clone() else {
        return Err(Refused::NoProof(aggregate.prefix).into());
    };
    let reference = body.reference.unwrap_or(proof.reference);
    let proof = store::Proof { state: body.state.into(), reference, ..proof };
    tx.set_source(&aggregate, &store::Source::Customer { name, proof }).await?;
    let aggregate = tx.aggregate(id).await?;
    tx.commit().await?;
    Ok(axum::Json(Aggregate::from(aggregate)))
}

/// Delete an aggregate
///
/// One that no pool has anything of. What was claimed of it stays in the history.
#[utoipa::path(delete, path = "/v1/aggregates/{aggregate}", tag = "addresses",
    params(("aggregate" = String, Path, description = "Id.")), responses((status = 204)))]
pub(super) async fn delete_aggregate(
    State(app): State<App>,
    Path(aggregate): Path<String>,
) -> Result<impl IntoResponse, Error> {
    let mut tx = app.store.begin().await?;
    let aggregate = tx.aggregate(aggregate_id(&aggregate)?).await?;
    tx.remove_aggregate(&aggregate).await?;
    tx.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}

fn aggregate_id(text: &str) -> Result<id::AggregateId, Error> {
    text.parse().map_err(|_| Error::not_found(format!("`{text}` is not an aggregate's id; /v1/aggregates lists them")))
}

/// Addresses to claim from.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Pool {
    /// Its id.
    #[schema(value_type = uuid::Uuid)]
    id: id::PoolId,
    /// Its name.
    #[schema(example = "public-4")]
    name: String,
    /// Its VRF's name.
    #[schema(example = "default")]
    vrf: String,
    /// 4 or 6.
    #[schema(example = 4)]
    family: u8,
    /// What its addresses are for.
    kind: PoolKind,
    /// Name of the rack whose machines alone may have them; absent: everywhere.
    #[schema(example = "lab")]
    rack: Option<String>,
    /// Minutes that released addresses rest before anybody gets them again.
    quarantine_minutes: u32,
    /// What for.
    purpose: String,
    /// Its prefixes, the first hundred.
    #[schema(example = json!(["198.51.100.0/24"]))]
    prefixes: Vec<String>,
    /// The blocks of it that each project gets for itself.
    blocks: Option<Blocks>,
    /// Name of the pool that it is carved from.
    parent: Option<String>,
    /// The project whose it is alone, as ORGANISATION:NAME.
    #[schema(example = "acme:shop")]
    project: Option<String>,
    /// Who may do what with its addresses.
    grants: Vec<Grant>,
    /// When it was created.
    #[schema(value_type = String, format = DateTime)]
    created: Timestamp,
}

/// Blocks that each project gets for itself: the first with its first claim, another when those it
/// has are full.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Blocks {
    /// The length of each.
    #[schema(minimum = 0, maximum = 128, example = 25)]
    length: u8,
    /// How many a project gets at most.
    #[serde(default = "Blocks::most")]
    #[schema(minimum = 1, maximum = 1024)]
    most: u32,
}

impl Blocks {
    /// So many, when nobody says how many.
    fn most() -> u32 {
        8
    }

    fn checked(self, family: ipam::Family) -> Result<store::Blocks, Error> {
        if self.length == 0 || self.length > family.width() {
            return Err(Error::invalid("/blocks/length", format!("between 1 and {}", family.width())));
        }
        if self.most == 0 || self.most > BLOCKS {
            return Err(Error::invalid("/blocks/most", format!("between 1 and {BLOCKS}")));
        }
        Ok(store::Blocks { depth: self.length + (128 - family.width()), most: self.most })
    }
}

/// What a pool's addresses are for.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum PoolKind {
    /// Reachable from everywhere, in one place.
    Public,
    /// Reachable from inside only.
    Private,
    /// Reachable from everywhere, in any place or in several at once (anycast).
    Global,
}

impl Pool {
    async fn read(store: &store::Store, row: store::Pool) -> Result<Self, Error> {
        let prefixes = store.pool_prefixes(&row, PREFIXES as u32).await?;
        let rack = match row.rack {
            Some(rack) => Some(store.rack(&rack.to_string()).await?.name),
            None => None,
        };
        let projects = store.project_names(of_projects(&row)).await?;
        Ok(Self::of(row, rack, &prefixes, &projects))
    }

    /// A pool as a transaction leaves it, which is then committed.
    pub(super) async fn committed(mut tx: store::Tx, row: store::Pool) -> Result<Self, Error> {
        let prefixes = tx.pool_prefixes(&row, PREFIXES as u32).await?;
        let rack = match row.rack {
            Some(rack) => Some(tx.rack(&rack.to_string()).await?.name),
            None => None,
        };
        let projects = tx.project_names(of_projects(&row)).await?;
        tx.commit().await?;
        Ok(Self::of(row, rack, &prefixes, &projects))
    }

    fn of(
        row: store::Pool,
        rack: Option<String>,
        prefixes: &[Prefix],
        projects: &HashMap<id::ProjectId, String>,
    ) -> Self {
        let blocks =
            row.blocks.map(|blocks| Blocks { length: blocks.depth - (128 - row.family.width()), most: blocks.most });
        Self {
            blocks,
            parent: row.parent_name,
            project: row.project.map(|id| projects.get(&id).cloned().unwrap_or_else(|| id.to_string())),
            grants: row.grants.iter().map(|grant| Grant::of(grant, projects)).collect(),
            id: row.id,
            name: row.name,
            vrf: row.vrf,
            family: family(row.family),
            kind: match row.kind {
                ipam::Kind::Public => PoolKind::Public,
                ipam::Kind::Private => PoolKind::Private,
                ipam::Kind::Global => PoolKind::Global,
            },
            rack,
            quarantine_minutes: row.quarantine / 60,
            purpose: row.purpose,
            prefixes: prefixes.iter().map(ToString::to_string).collect(),
            created: row.created,
        }
    }
}

/// The projects that are to be named of a pool.
fn of_projects(pool: &store::Pool) -> impl Iterator<Item = id::ProjectId> {
    let granted = pool.grants.iter().filter_map(|grant| match grant.to {
        access::Grantee::Project(project) => Some(project),
        _ => None,
    });
    granted.chain(pool.project)
}

fn family(family: ipam::Family) -> u8 {
    match family {
        ipam::Family::V4 => 4,
        ipam::Family::V6 => 6,
    }
}

/// A pool to be created.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewPool {
    /// Its name: lower-case letters, digits, `.`, `-`, `_`; at most 63.
    #[schema(example = "public-4")]
    name: String,
    /// What its addresses are for.
    kind: PoolKind,
    /// Its prefixes, 1 to 100, all of one family and in aggregates.
    #[schema(example = json!(["198.51.100.0/24"]))]
    prefixes: Vec<String>,
    /// The VRF's name; `default` when absent.
    vrf: Option<String>,
    /// Id or name of the rack whose machines alone may have them; absent: everywhere.
    rack: Option<String>,
    /// Minutes that released addresses rest before anybody gets them again, at most a year; a day
    /// when absent.
    #[schema(minimum = 0, maximum = 525600)]
    quarantine_minutes: Option<u32>,
    /// What for: at most 500 characters.
    #[serde(default)]
    purpose: String,
    /// Give each project blocks of it for itself; absent: all claim from all of it.
    blocks: Option<Blocks>,
    /// Who may do what with its addresses; absent: everyone whose role lets them.
    grants: Option<Vec<Grant>>,
}

/// List pools
///
/// Those that are shared, and those of projects that one can see.
#[utoipa::path(get, path = "/v1/pools", tag = "addresses", params(Window),
    responses((status = 200, body = Page<Pool>)))]
pub(super) async fn pools(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Query(window): Query<Window>,
) -> Result<impl IntoResponse, Error> {
    let (limit, sight) = (window.limit()?, caller.sight(Action::AddressRead)?);
    let rows = app.store.pools(&sight, parse("after", window.after.as_deref())?, limit + 1).await?;
    let mut pools = Vec::new();
    for row in &rows {
        pools.push(Pool::read(&app.store, row.clone()).await?);
    }
    Ok(axum::Json(Page::of(pools, limit, |pool| pool.id.to_string(), |pool| pool)))
}

/// Show one pool
#[utoipa::path(get, path = "/v1/pools/{pool}", tag = "addresses",
    params(("pool" = String, Path, description = "Id or name.")), responses((status = 200, body = Pool)))]
pub(super) async fn pool(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(pool): Path<String>,
) -> Result<impl IntoResponse, Error> {
    let pool = visible(&app, &caller, &pool).await?;
    Ok(tagged(pool.version, Pool::read(&app.store, pool).await?))
}

/// The pool that is meant: one that is shared, or of a project that can be seen.
pub(super) async fn visible(app: &App, caller: &Caller, name: &str) -> Result<store::Pool, Error> {
    let pool = app.store.pool(name).await?;
    if pool.project.is_some() {
        caller.find(app, Action::AddressRead, Thing::Pool, name).await?;
    }
    Ok(pool)
}

/// What may be changed about a pool. What is left out stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PoolChange {
    /// Another name: lower-case letters, digits, `.`, `-`, `_`; at most 63.
    #[schema(example = "public-4")]
    name: Option<String>,
    /// Minutes that addresses rest which are released from now on, at most a year.
    #[schema(minimum = 0, maximum = 525600)]
    quarantine_minutes: Option<u32>,
    /// What for: at most 500 characters.
    purpose: Option<String>,
}

/// Change a pool
///
/// What is claimed from it stays what it is. More addresses are given to it at `prefixes`.
#[utoipa::path(patch, path = "/v1/pools/{pool}", tag = "addresses", request_body = PoolChange,
    params(("pool" = String, Path, description = "Id or name.")), responses((status = 200, body = Pool)))]
pub(super) async fn change_pool(
    State(app): State<App>,
    Path(pool): Path<String>,
    expected: Expected,
    Json(body): Json<PoolChange>,
) -> Result<impl IntoResponse, Error> {
    let mut tx = app.store.begin().await?;
    let mut pool = tx.pool(&pool).await?;
    expected.check(pool.version)?;
    if let Some(name) = body.name {
        check_name("/name", &name)?;
        pool.name = name;
    }
    if let Some(minutes) = body.quarantine_minutes {
        pool.quarantine = quarantine(minutes)?;
    }
    if let Some(purpose) = body.purpose {
        check_text("/purpose", &purpose, 500)?;
        pool.purpose = purpose;
    }
    tx.update_pool(&mut pool).await?;
    Ok(tagged(pool.version, Pool::committed(tx, pool).await?))
}

/// Seconds of a quarantine that is not too long.
fn quarantine(minutes: u32) -> Result<u32, Error> {
    if minutes > QUARANTINE_MINUTES {
        return Err(Error::invalid("/quarantine_minutes", format!("at most {QUARANTINE_MINUTES}, which is a year")));
    }
    Ok(minutes * 60)
}

/// Create a pool
///
/// Its prefixes are taken out of aggregates; no two pools of a VRF share an address.
#[utoipa::path(post, path = "/v1/pools", tag = "addresses", request_body = NewPool,
    responses((status = 201, body = Pool, headers(("Location" = String, description = "The pool.")))))]
pub(super) async fn create_pool(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Json(body): Json<NewPool>,
) -> Result<impl IntoResponse, Error> {
    check_name("/name", &body.name)?;
    check_text("/purpose", &body.purpose, 500)?;
    let quarantine = quarantine(body.quarantine_minutes.unwrap_or(24 * 60))?;
    let prefixes = wanted(&body.prefixes)?;
    let blocks = body.blocks.map(|blocks| blocks.checked(prefixes[0].family())).transpose()?;
    let grants = match body.grants {
        Some(grants) => grants::checked(&app, &caller, grants).await?,
        None => vec![access::Grant::to_everyone()],
    };
    let mut tx = app.store.begin().await?;
    let vrf = tx.vrf(body.vrf.as_deref().unwrap_or("default")).await?;
    let rack = match &body.rack {
        Some(rack) => Some(tx.rack(rack).await?.id),
        None => None,
    };
    let new = Made {
        name: &body.name,
        vrf: &vrf,
        family: prefixes[0].family(),
        kind: match body.kind {
            PoolKind::Public => ipam::Kind::Public,
            PoolKind::Private => ipam::Kind::Private,
            PoolKind::Global => ipam::Kind::Global,
        },
        rack,
        quarantine,
        purpose: &body.purpose,
        blocks,
        carved: None,
        grants: &grants,
    };
    let pool = tx.insert_pool(app.clock.now().wall, &new).await?;
    for prefix in prefixes {
        tx.extend_pool(&pool, prefix).await?;
    }
    let pool = Pool::committed(tx, pool).await?;
    Ok((StatusCode::CREATED, [(header::LOCATION, format!("/v1/pools/{}", pool.id))], axum::Json(pool)))
}

/// Prefixes for a pool.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct More {
    /// 1 to 100, of the pool's family and in aggregates.
    #[schema(example = json!(["198.51.101.0/24"]))]
    prefixes: Vec<String>,
}

/// Give a pool more addresses
#[utoipa::path(post, path = "/v1/pools/{pool}/prefixes", tag = "addresses", request_body = More,
    params(("pool" = String, Path, description = "Id or name.")), responses((status = 200, body = Pool)))]
pub(super) async fn extend_pool(
    State(app): State<App>,
    Path(pool): Path<String>,
    expected: Expected,
    Json(body): Json<More>,
) -> Result<impl IntoResponse, Error> {
    let prefixes = wanted(&body.prefixes)?;
    let mut tx = app.store.begin().await?;
    let pool = tx.pool(&pool).await?;
    expected.check(pool.version)?;
    for prefix in prefixes {
        tx.extend_pool(&pool, prefix).await?;
    }
    Ok(axum::Json(Pool::committed(tx, pool).await?))
}

/// Delete a pool
///
/// One in which nothing is claimed, reserved or in quarantine. What was claimed of it stays in the
/// history.
#[utoipa::path(delete, path = "/v1/pools/{pool}", tag = "addresses",
    params(("pool" = String, Path, description = "Id or name.")), responses((status = 204)))]
pub(super) async fn delete_pool(
    State(app): State<App>,
    Path(pool): Path<String>,
    expected: Expected,
) -> Result<impl IntoResponse, Error> {
    let mut tx = app.store.begin().await?;
    let pool = tx.pool(&pool).await?;
    expected.check(pool.version)?;
    tx.remove_pool(app.clock.now().wall, &pool).await?;
    tx.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}

fn wanted(texts: &[String]) -> Result<Vec<Prefix>, Error> {
    if texts.is_empty() || texts.len() > PREFIXES {
        return Err(Error::invalid("/prefixes", format!("between 1 and {PREFIXES}")));
    }
    texts.iter().enumerate().map(|(at, text)| prefix(&format!("/prefixes/{at}"), text)).collect()
}

/// How much of a pool is used. Numbers of addresses are texts of digits: those of IPv6 are larger
/// than numbers in JSON can be.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Utilisation {
    /// The pool's name.
    #[schema(example = "public-4")]
    pool: String,
    /// 4 or 6.
    #[schema(example = 4)]
    family: u8,
    /// All addresses.
    #[schema(example = "256")]
    total: String,
    /// Somebody's.
    claimed: String,
    /// Not handed out.
    reserved: String,
    /// Resting; a minute longer than their time at most.
    quarantined: String,
    /// In blocks that are a project's alone, whatever the project has of them.
    blocks: String,
    /// Can be claimed.
    free: String,
    /// What is not free, of all: 0 to 1.
    #[schema(example = 0.25)]
    used: f64,
    /// Length of the largest block that can be claimed; absent when nothing is free.
    #[schema(example = 25)]
    largest_free: Option<u8>,
    /// How much of what is free lies outside of that block: 0 (none) to 1.
    #[schema(example = 0.5)]
    fragmentation: f64,
}

impl Utilisation {
    fn of(pool: &store::Pool, usage: &Usage) -> Self {
        Self {
            pool: pool.name.clone(),
            family: family(pool.family),
            total: usage.total.to_string(),
            claimed: usage.claimed.to_string(),
            reserved: usage.reserved.to_string(),
            quarantined: usage.quarantined.to_string(),
            blocks: usage.blocks.to_string(),
            free: usage.free.to_string(),
            used: usage.used(),
            largest_free: usage.largest.checked_ilog2().map(|bits| pool.family.width() - bits as u8),
            fragmentation: usage.fragmentation(),
        }
    }

    /// As a line of CSV. Nothing in it needs quotes: a pool's name has no comma.
    fn line(&self) -> String {
        let Self { pool, family, total, claimed, reserved, quarantined, blocks, free, used, fragmentation, .. } = self;
        let largest = self.largest_free.map(|length| length.to_string()).unwrap_or_default();
        format!(
            "{pool},{family},{total},{claimed},{reserved},{quarantined},{blocks},{free},{used},{largest},\
             {fragmentation}\r\n"
        )
    }
}

const CSV_HEADER: &str =
    "pool,family,total,claimed,reserved,quarantined,blocks,free,used,largest_free,fragmentation\r\n";

/// Of which pools, and in what form.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Report {
    /// Only of this pool (id or name).
    pool: Option<String>,
    /// `csv` for a file (RFC 4180); JSON when absent. Pages are the same: `next` is in the header
    /// `Rackhand-Next` then.
    format: Option<Format>,
    /// `next` of the page before; absent for the first page.
    after: Option<String>,
    /// How many pools at most, 1 to 200.
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<u32>,
}

/// The form of a report.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Format {
    /// For programs.
    Json,
    /// For spreadsheets.
    Csv,
}

/// Report how much of the pools is used
#[utoipa::path(get, path = "/v1/utilisation", tag = "addresses", params(Report),
    responses((status = 200, content((Page<Utilisation> = "application/json"), (String = "text/csv")))))]
pub(super) async fn utilisation(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Query(report): Query<Report>,
) -> Result<Response, Error> {
    let (limit, sight) = (limit(report.limit)?, caller.sight(Action::AddressRead)?);
    let rows = match &report.pool {
        Some(pool) => vec![visible(&app, &caller, pool).await?],
        None => app.store.pools(&sight, parse("after", report.after.as_deref())?, limit + 1).await?,
    };
    let mut lines = Vec::new();
    for row in rows.iter().take(limit as usize) {
        lines.push(Utilisation::of(row, &app.store.usage(row).await?));
    }
    let next = (rows.len() > limit as usize).then(|| rows[limit as usize - 1].id.to_string());
    if report.format == Some(Format::Csv) {
        let text: String = std::iter::once(CSV_HEADER.to_owned()).chain(lines.iter().map(Utilisation::line)).collect();
        let mut response = ([(header::CONTENT_TYPE, "text/csv; charset=utf-8; header=present")], text).into_response();
        if let Some(next) = next.and_then(|next| next.parse().ok()) {
            response.headers_mut().insert("rackhand-next", next);
        }
        return Ok(response);
    }
    Ok(axum::Json(Page { items: lines, next }).into_response())
}
