//! `/v1/utilisation`, `/v1/pools/{pool}/space` and `/v1/pools/{pool}/trend`: how much of pools is used and
//! was, who has how many addresses, and where there is room.

use std::collections::{BTreeMap, BTreeSet};

use axum::{
    Extension,
    extract::{Path, State},
    response::{IntoResponse, Response},
};
use jiff::{SignedDuration, Timestamp, civil::Date};
use rackhand_controller_core::{
    access::Action,
    ipam::{self, Prefix, Sample, Usage, picture},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    App, Caller, Error,
    extract::{Page, Query, Window, limit, parse, text_page},
    pools::{family, visible},
};
use crate::store::{self, By, Held};

/// So many of a pool's prefixes have a picture.
const PICTURES: u32 = 16;

/// As many free prefixes of a pool are looked at: the largest, when there are more.
const LOOKED_AT: u32 = 100_000;

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
            largest_free: largest(pool, usage),
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

/// The length of the largest block of a pool that can be claimed.
fn largest(pool: &store::Pool, usage: &Usage) -> Option<u8> {
    usage.largest.checked_ilog2().map(|bits| pool.family.width() - bits as u8)
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
        return Ok(text_page("text/csv; charset=utf-8; header=present", text, next));
    }
    Ok(axum::Json(Page { items: lines, next }).into_response())
}

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
    let view = |((id, of), usage): ((Option<String>, _), Usage)| Holding {
        name: id.map(|id| names.get(&id).cloned().unwrap_or(id)),
        family: family(of),
        claimed: usage.claimed.to_string(),
        reserved: usage.reserved.to_string(),
        blocks: usage.blocks.to_string(),
    };
    Ok(Page::of(rows, limit, |(key, _)| cursor(key), view))
}

/// Of when.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Then {
    /// How it was at this time, by the history; how it is when absent.
    #[param(value_type = Option<String>, format = DateTime, example = "2026-11-01T00:00:00Z")]
    at: Option<Timestamp>,
    /// `next` of the page before; absent for the first page.
    after: Option<String>,
    /// How many at most, 1 to 200.
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<u32>,
}

/// Report how many addresses each project has
///
/// Or had at a time. Of those that one can see. It counts all claims: a second for a million.
#[utoipa::path(get, path = "/v1/utilisation/projects", tag = "addresses", params(Then),
    responses((status = 200, body = Page<Holding>)))]
pub(super) async fn of_projects(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Query(Then { at, after, limit }): Query<Then>,
) -> Result<impl IntoResponse, Error> {
    let held = app.store.held(&caller.sight(Action::AddressRead)?, By::Project, at).await?;
    let window = Window { after, limit };
    let names = async |ids: Vec<String>| {
        let ids = ids.iter().filter_map(|id| id.parse().ok());
        let names = app.store.project_names(ids).await?;
        Ok(names.into_iter().map(|(id, name)| (id.to_string(), name)).collect())
    };
    Ok(axum::Json(page(&window, held, names).await?))
}

/// Report how many addresses each site has
///
/// Or had at a time. Of those that one can see: what is held by machines in its racks, or claimed from a pool
/// of it or one of them. A rack counts where it stands now. It counts all claims: a second for a million.
#[utoipa::path(get, path = "/v1/utilisation/sites", tag = "addresses", params(Then),
    responses((status = 200, body = Page<Holding>)))]
pub(super) async fn of_sites(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Query(Then { at, after, limit }): Query<Then>,
) -> Result<impl IntoResponse, Error> {
    let held = app.store.held(&caller.sight(Action::AddressRead)?, By::Site, at).await?;
    let window = Window { after, limit };
    let names = async |ids: Vec<String>| {
        let mut names = BTreeMap::new();
        for id in ids.into_iter().collect::<BTreeSet<_>>() {
            // One that was deleted since has its id for a name.
            match app.store.site(&id).await {
                Ok(site) => drop(names.insert(id, site.name)),
                Err(store::StoreError::NotFound(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(names)
    };
    Ok(axum::Json(page(&window, held, names).await?))
}

/// Of how many days, and in what form.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Days {
    /// The samples of this many days, the latest, 1 to 731. (Where it is heading does not depend on it.)
    #[param(minimum = 1, maximum = 731, default = 90)]
    days: Option<u32>,
    /// `csv` for a file (RFC 4180) of the samples; JSON when absent.
    format: Option<Format>,
}

/// How much of a pool was used, and where that is heading.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Trend {
    /// The pool's name.
    #[schema(example = "public-4")]
    pool: String,
    /// 4 or 6.
    #[schema(example = 4)]
    family: u8,
    /// How much of it was used, on each day of which that is known.
    samples: Vec<DaySample>,
    /// How much more of it is used than some time ago; absent when only one day is known.
    change: Option<TrendChange>,
}

/// How much of a pool was used at the beginning of a day (UTC). Numbers of addresses are texts of digits:
/// those of IPv6 are larger than numbers in JSON can be.
#[derive(Debug, Serialize, ToSchema)]
struct DaySample {
    /// The day.
    #[schema(value_type = String, format = Date)]
    day: Date,
    /// All addresses.
    #[schema(example = "256")]
    total: String,
    /// Somebody's.
    claimed: String,
    /// Not handed out.
    reserved: String,
    /// Resting.
    quarantined: String,
    /// In blocks that are a project's alone.
    blocks: String,
    /// Could be claimed.
    free: String,
    /// What was not free, of all: 0 to 1.
    #[schema(example = 0.25)]
    used: f64,
    /// Length of the largest block that could be claimed; absent when nothing was free.
    #[schema(example = 25)]
    largest_free: Option<u8>,
}

/// Where the use of a pool is heading.
#[derive(Debug, Serialize, ToSchema)]
struct TrendChange {
    /// The day that the latest is compared with: thirty days before, or the nearest that is known.
    #[schema(value_type = String, format = Date)]
    since: Date,
    /// How many addresses more are not free than were then; with a `-`, fewer.
    #[schema(example = "48")]
    addresses: String,
    /// The day on which nothing will be free any more if it goes on so; absent when it does not get fuller,
    /// or not within a hundred years.
    #[schema(value_type = Option<String>, format = Date)]
    full: Option<Date>,
}

impl DaySample {
    fn of(pool: &store::Pool, Sample { day, usage }: &Sample) -> Self {
        Self {
            day: *day,
            total: usage.total.to_string(),
            claimed: usage.claimed.to_string(),
            reserved: usage.reserved.to_string(),
            quarantined: usage.quarantined.to_string(),
            blocks: usage.blocks.to_string(),
            free: usage.free.to_string(),
            used: usage.used(),
            largest_free: largest(pool, usage),
        }
    }

    /// As a line of CSV.
    fn line(&self) -> String {
        let Self { day, total, claimed, reserved, quarantined, blocks, free, used, .. } = self;
        let largest = self.largest_free.map(|length| length.to_string()).unwrap_or_default();
        format!("{day},{total},{claimed},{reserved},{quarantined},{blocks},{free},{used},{largest}\r\n")
    }
}

const TREND_HEADER: &str = "day,total,claimed,reserved,quarantined,blocks,free,used,largest_free\r\n";

/// Report how much of a pool was used, and where that is heading
///
/// The controller notes it once a day, in the first minutes of the day (UTC), and keeps two years. A day
/// on which it did not run is missing.
#[utoipa::path(get, path = "/v1/pools/{pool}/trend", tag = "addresses",
    params(("pool" = String, Path, description = "Id or name."), Days),
    responses((status = 200, content((Trend = "application/json"), (String = "text/csv")))))]
pub(super) async fn trend(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(pool): Path<String>,
    Query(report): Query<Days>,
) -> Result<Response, Error> {
    let days = match report.days.unwrap_or(90) {
        days @ 1..=store::KEPT => days,
        _ => return Err(Error::invalid("days", format!("must be between 1 and {}", store::KEPT))),
    };
    let pool = visible(&app, &caller, &pool).await?;
    let known = app.store.samples(&pool).await?;
    // Days that are missing count: what is asked for is a time.
    let first = known
        .last()
        .and_then(|latest| latest.day.checked_sub(SignedDuration::from_hours(24 * (i64::from(days) - 1))).ok());
    let shown = known.iter().filter(|sample| first.is_none_or(|first| sample.day >= first));
    let samples: Vec<_> = shown.map(|sample| DaySample::of(&pool, sample)).collect();
    if report.format == Some(Format::Csv) {
        let lines = samples.iter().map(DaySample::line);
        let text: String = std::iter::once(TREND_HEADER.to_owned()).chain(lines).collect();
        return Ok(text_page("text/csv; charset=utf-8; header=present", text, None));
    }
    let change = ipam::trend(&known).map(|ipam::Trend { since, change, full }| TrendChange {
        since,
        addresses: change.to_string(),
        full,
    });
    let family = family(pool.family);
    Ok(axum::Json(Trend { pool: pool.name, family, samples, change }).into_response())
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
