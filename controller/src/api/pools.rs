//! `/v1/pools`: addresses to claim from.

use std::collections::HashMap;

use axum::{
    Extension,
    extract::{Path, State},
    http::{StatusCode, header},
    response::IntoResponse,
};
use jiff::Timestamp;
use rackhand_common::id;
use rackhand_controller_core::{
    access::{self, Action},
    ipam::{self, Prefix},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    App, Caller, Error,
    claims::prefix,
    extract::{Expected, Json, Page, Query, Window, check_name, check_text, parse, tagged},
    grants::{self, Grant},
};
use crate::store::{self, NewPool as Made, Thing, Within};

/// The most prefixes that are given to a pool in one request, and shown of it.
const PREFIXES: usize = 100;

/// The most blocks that one project gets of a pool.
const BLOCKS: u32 = 1024;

/// The longest quarantine: a year.
const QUARANTINE_MINUTES: u32 = 365 * 24 * 60;

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
    /// Name of the rack whose machines alone may have them.
    #[schema(example = "lab")]
    rack: Option<String>,
    /// Name of the site whose racks' machines alone may have them; neither: everywhere.
    site: Option<String>,
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
        let within = match row.within {
            Within::Everywhere => None,
            Within::Rack(rack) => Some(store.rack(&rack.to_string()).await?.name),
            Within::Site(site) => Some(store.site(&site.to_string()).await?.name),
        };
        let projects = store.project_names(of_projects(&row)).await?;
        Ok(Self::of(row, within, &prefixes, &projects))
    }

    /// A pool as a transaction leaves it, which is then committed.
    pub(super) async fn committed(mut tx: store::Tx, row: store::Pool) -> Result<Self, Error> {
        let prefixes = tx.pool_prefixes(&row, PREFIXES as u32).await?;
        let within = match row.within {
            Within::Everywhere => None,
            Within::Rack(rack) => Some(tx.rack(&rack.to_string()).await?.name),
            Within::Site(site) => Some(tx.site(&site.to_string()).await?.name),
        };
        let projects = tx.project_names(of_projects(&row)).await?;
        tx.commit().await?;
        Ok(Self::of(row, within, &prefixes, &projects))
    }

    /// `within` is the name of its rack or site.
    fn of(
        row: store::Pool,
        within: Option<String>,
        prefixes: &[Prefix],
        projects: &HashMap<id::ProjectId, String>,
    ) -> Self {
        let blocks =
            row.blocks.map(|blocks| Blocks { length: blocks.depth - (128 - row.family.width()), most: blocks.most });
        let (rack, site) = if let Within::Site(_) = row.within { (None, within) } else { (within, None) };
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
            site,
            quarantine_minutes: row.quarantine / 60,
            purpose: row.purpose,
            prefixes: prefixes.iter().map(ToString::to_string).collect(),
            created: row.created,
        }
    }
}

/// The projects that are to be named of a pool.
fn of_projects(pool: &store::Pool) -> impl Iterator<Item = id::ProjectId> {
    grants::projects(&pool.grants).chain(pool.project)
}

pub(super) fn family(family: ipam::Family) -> u8 {
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
    /// Id or name of the rack whose machines alone may have them.
    rack: Option<String>,
    /// Id or name of the site whose racks' machines alone may have them; neither: everywhere.
    site: Option<String>,
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
pub(super) async fn list(
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
pub(super) async fn show(
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
        caller.check(Action::AddressRead, Thing::Pool.word(), pool.place())?;
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
    /// Who may do what with its addresses from now on, all of them; none: only whoever sets up address
    /// space may.
    grants: Option<Vec<Grant>>,
}

/// Change a pool
///
/// What is claimed from it stays what it is. More addresses are given to it at `prefixes`.
#[utoipa::path(patch, path = "/v1/pools/{pool}", tag = "addresses", request_body = PoolChange,
    params(("pool" = String, Path, description = "Id or name.")), responses((status = 200, body = Pool)))]
pub(super) async fn change(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(pool): Path<String>,
    expected: Expected,
    Json(body): Json<PoolChange>,
) -> Result<impl IntoResponse, Error> {
    let grants = match body.grants {
        Some(grants) => {
            let known = app.store.pool(&pool).await?.grants;
            Some(grants::checked(&app, &caller, grants, &known).await?)
        }
        None => None,
    };
    let mut tx = app.store.begin().await?;
    let mut pool = tx.pool(&pool).await?;
    expected.check(pool.version)?;
    pool.grants = grants.unwrap_or(pool.grants);
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
pub(super) async fn create(
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
        Some(grants) => grants::checked(&app, &caller, grants, &[]).await?,
        None => vec![access::Grant::to_everyone()],
    };
    let mut tx = app.store.begin().await?;
    let vrf = tx.vrf(body.vrf.as_deref().unwrap_or("default")).await?;
    let within = match (&body.rack, &body.site) {
        (None, None) => Within::Everywhere,
        (Some(rack), None) => Within::Rack(tx.rack(rack).await?.id),
        (None, Some(site)) => Within::Site(tx.site(site).await?.id),
        (Some(_), Some(_)) => return Err(Error::invalid("/site", "give `rack` or `site`, not both")),
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
        within,
        quarantine,
        purpose: &body.purpose,
        blocks,
        carved: None,
        grants: &grants,
    };
    let pool = tx.insert_pool(app.clock.now().wall, &new).await?;
    for prefix in prefixes {
        tx.extend_pool(app.clock.now().wall, &pool, prefix).await?;
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
pub(super) async fn extend(
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
        tx.extend_pool(app.clock.now().wall, &pool, prefix).await?;
    }
    Ok(axum::Json(Pool::committed(tx, pool).await?))
}

/// Delete a pool
///
/// One in which nothing is claimed, reserved or in quarantine. What was claimed of it stays in the
/// history.
#[utoipa::path(delete, path = "/v1/pools/{pool}", tag = "addresses",
    params(("pool" = String, Path, description = "Id or name.")), responses((status = 204)))]
pub(super) async fn delete(
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
