//! `/v1/utilisation/projects`, `/v1/utilisation/sites` and `/v1/pools/{pool}/space`: who has how
//! many addresses, and where there is room.

use std::collections::BTreeMap;

use axum::{
    Extension,
    extract::{Path, State},
    response::IntoResponse,
};
use rackhand_controller_core::{
    access::Action,
    ipam::{Prefix, picture},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    App, Caller, Error,
    address_space::{family, visible},
    extract::{Page, Query, Window},
};
use crate::store::{By, Held};

/// So many of a pool's prefixes have a picture.
const PICTURES: u32 = 16;

/// As many free prefixes of a pool are looked at: the largest, when there are more.
const LOOKED_AT: u32 = 100_000;

/// How many addresses of a family a project or a site has. Numbers of addresses are texts of
/// digits: those of IPv6 are larger than numbers in JSON can be.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Holding {
    /// The project as ORGANISATION:NAME, or the site's name; absent for what is nobody's in particular.
    #[schema(example = "acme:shop")]
    name: Option<String>,
    /// 4 or 6.
    #[schema(example = 4)]
    family: u8,
    /// Addresses that are claimed.
    claimed: String,
    /// Addresses that are reserved: not handed out.
    reserved: String,
    /// Addresses in a project's own blocks, whatever it has claimed of them.
    blocks: String,
}

/// A page of what each has. Its cursor is the id and the family of the last.
async fn page(
    window: &Window,
    held: Held,
    names: impl AsyncFnOnce(Vec<String>) -> Result<BTreeMap<String, String>, Error>,
) -> Result<Page<Holding>, Error> {
    let limit = window.limit()?;
    let cursor = |(id, of): &(Option<String>, _)| format!("{}.{}", id.as_deref().unwrap_or_default(), family(*of));
    let after = window.after.clone().unwrap_or_default();
    let mut rows: Vec<_> = held.into_iter().filter(|(key, _)| cursor(key) > after).collect();
    rows.truncate(limit as usize + 1);
    let names = names(rows.iter().filter_map(|((id, _), _)| id.clone()).collect()).await?;
    let view = |((id, of), usage): ((Option<String>, _), rackhand_controller_core::ipam::Usage)| Holding {
        name: id.map(|id| names.get(&id).cloned().unwrap_or(id)),
        family: family(of),
        claimed: usage.claimed.to_string(),
        reserved: usage.reserved.to_string(),
        blocks: usage.blocks.to_string(),
    };
    Ok(Page::of(rows, limit, |(key, _)| cursor(key), view))
}

/// Report how many addresses each project has
///
/// Of those that one can see. It counts all claims: a second for a million.
#[utoipa::path(get, path = "/v1/utilisation/projects", tag = "addresses", params(Window),
    responses((status = 200, body = Page<Holding>)))]
pub(super) async fn of_projects(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Query(window): Query<Window>,
) -> Result<impl IntoResponse, Error> {
    let held = app.store.held(&caller.sight(Action::AddressRead)?, By::Project).await?;
    let names = async |ids: Vec<String>| {
        let ids = ids.iter().filter_map(|id| id.parse().ok());
        let names = app.store.project_names(ids).await?;
        Ok(names.into_iter().map(|(id, name)| (id.to_string(), name)).collect())
    };
    Ok(axum::Json(page(&window, held, names).await?))
}

/// Report how many addresses each site has
///
/// Of those that one can see: what is held by machines in its racks, or claimed from a pool of one of
/// them. It counts all claims: a second for a million.
#[utoipa::path(get, path = "/v1/utilisation/sites", tag = "addresses", params(Window),
    responses((status = 200, body = Page<Holding>)))]
pub(super) async fn of_sites(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Query(window): Query<Window>,
) -> Result<impl IntoResponse, Error> {
    let held = app.store.held(&caller.sight(Action::AddressRead)?, By::Site).await?;
    let names = async |ids: Vec<String>| {
        let mut names = BTreeMap::new();
        for id in ids {
            if !names.contains_key(&id) {
                let name = app.store.site(&id).await?.name;
                names.insert(id, name);
            }
        }
        Ok(names)
    };
    Ok(axum::Json(page(&window, held, names).await?))
}

/// Where a pool has room.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Space {
    /// Its free blocks by length, the largest first.
    free: Vec<FreeBlocks>,
    /// Pictures of its prefixes, the first sixteen.
    pictures: Vec<Picture>,
}

/// Free blocks of one length.
#[derive(Debug, Serialize, ToSchema)]
struct FreeBlocks {
    /// The length.
    #[schema(example = 25)]
    length: u8,
    /// How many.
    #[schema(example = 3)]
    count: u64,
}

/// What of a prefix is not free.
#[derive(Debug, Serialize, ToSchema)]
struct Picture {
    /// The prefix.
    #[schema(example = "10.9.0.0/16")]
    prefix: String,
    /// It in at most 64 parts of one size, in their order: how much of each is not free, 0 to 1.
    #[schema(example = json!([1.0, 0.5, 0.0, 0.0]))]
    cells: Vec<f64>,
}

/// Show where a pool has room
///
/// Its free blocks, and a picture of its prefixes. A pool with more than 100,000 free blocks is told of
/// by the largest of them.
#[utoipa::path(get, path = "/v1/pools/{pool}/space", tag = "addresses",
    params(("pool" = String, Path, description = "Id or name.")), responses((status = 200, body = Space)))]
pub(super) async fn space(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(pool): Path<String>,
) -> Result<impl IntoResponse, Error> {
    let pool = visible(&app, &caller, &pool).await?;
    let free = app.store.free_space(&pool, LOOKED_AT).await?;
    let mut lengths = BTreeMap::new();
    for prefix in &free {
        *lengths.entry(prefix.length()).or_insert(0) += 1;
    }
    let prefixes = app.store.pool_prefixes(&pool, PICTURES).await?;
    let drawn = |prefix: Prefix| Picture { prefix: prefix.to_string(), cells: picture(prefix, free.iter().copied()) };
    Ok(axum::Json(Space {
        free: lengths.into_iter().map(|(length, count)| FreeBlocks { length, count }).collect(),
        pictures: prefixes.into_iter().map(drawn).collect(),
    }))
}
