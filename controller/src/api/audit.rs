//! `/v1/audit`: who changed what; and the layer that has it written down.

use std::net::SocketAddr;

use axum::{
    Json,
    extract::{ConnectInfo, Request, State},
    http::{Method, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use rackhand_common::audit::{Linked, Record};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::{
    App, Caller, Error,
    extract::{Page, Query, limit, parse},
    trace::Trace,
};
use crate::store::{Asked, AuditFilter, StoreError};

/// As much of a client's name for itself as is kept, in characters.
const THROUGH: usize = 200;

/// Has what a request changes written into the record, in the transactions that change it.
pub(super) async fn recorded(State(app): State<App>, request: Request, next: Next) -> Response {
    let Some(caller) = request.extensions().get::<Caller>().filter(|_| request.method() != Method::GET).cloned() else {
        return next.run(request).await;
    };
    let through = request.headers().get(header::USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let record = Record {
        id: Uuid::nil(),
        at: app.clock.now().wall,
        by: caller.name,
        token: caller.token,
        from: request.extensions().get::<ConnectInfo<SocketAddr>>().map(|from| from.ip().to_canonical()),
        through: through.chars().take(THROUGH).collect(),
        action: format!("{} {}", request.method(), request.uri().path()),
        request: Trace::present().request,
        changes: Vec::new(),
    };
    Asked { record }.scope(next.run(request)).await
}

/// Which records.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Which {
    /// Only what was done by this person, or with a token of this project.
    by: Option<String>,
    /// Only changes to this thing: an id, or a machine's name.
    about: Option<String>,
    /// `newest` first, or `oldest` first: the order of the chain, in which it can be verified.
    #[param(default = "newest")]
    order: Option<Order>,
    /// `next` of the page before; absent for the first page.
    after: Option<String>,
    /// How many at most, 1 to 200.
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<u32>,
}

/// The order of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Order {
    Newest,
    Oldest,
}

/// Something that was changed.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AuditRecord {
    /// Its place in the chain: 1 for the first, and one more for each.
    number: u64,
    /// SHA-256, in hexadecimal, over the link before it, the number as 8 bytes, big-endian, and
    /// the fields from `id` to `changes` as they stand here, as JSON without spaces.
    #[schema(example = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08")]
    link: String,
    /// Its id.
    id: Uuid,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
    /// Who: a person's name, or ORGANISATION:PROJECT for a project's token.
    #[schema(example = "admin")]
    by: String,
    /// The id of the token.
    token: Uuid,
    /// From which address.
    #[schema(value_type = Option<String>, example = "192.0.2.7")]
    from: Option<std::net::IpAddr>,
    /// Through what: the client's own name for itself.
    #[schema(example = "rackhand/0.1.0")]
    through: String,
    /// What was asked for.
    #[schema(example = "POST /v1/machines/web-1/deploy")]
    action: String,
    /// Names the request: `X-Request-Id` of its answer.
    request: Uuid,
    /// What became of it.
    changes: Vec<Change>,
}

/// A thing that was made, altered or removed.
#[derive(Debug, Serialize, ToSchema)]
struct Change {
    /// Which kind of thing: `machine`, `run`, `rack`, `agent`, `image`, `enrolment code`, `claim`, `pool`,
    /// `aggregate`, `VRF`, `console`, `organisation`, `project`, `site`, `person`, `binding`, `token`.
    #[schema(example = "machine")]
    kind: String,
    /// Its id.
    id: String,
    /// SHA-256 of what was stored of it before; null when it was made.
    before: Option<String>,
    /// SHA-256 of what is stored of it since; null when it was removed.
    after: Option<String>,
}

impl From<Linked> for AuditRecord {
    fn from(Linked { number, link, record }: Linked) -> Self {
        let Record { id, at, by, token, from, through, action, request, changes } = record;
        let change = |change: rackhand_common::audit::Change| Change {
            kind: change.kind,
            id: change.id,
            before: change.before,
            after: change.after,
        };
        let changes = changes.into_iter().map(change).collect();
        Self { number, link, id, at, by, token, from, through, action, request, changes }
    }
}

/// List audit records
///
/// What callers of this API changed. A record is in the chain, and so here, about a second after
/// it was made.
#[utoipa::path(get, path = "/v1/audit", tag = "audit", params(Which),
    responses((status = 200, body = Page<AuditRecord>)))]
pub(super) async fn list(State(app): State<App>, Query(which): Query<Which>) -> Result<impl IntoResponse, Error> {
    let limit = limit(which.limit)?;
    let about = match which.about {
        Some(about) => match app.store.machine(&about).await {
            Ok(machine) => Some(machine.id.to_string()),
            Err(StoreError::NotFound(_)) => Some(about),
            Err(error) => return Err(error.into()),
        },
        None => None,
    };
    let filter = AuditFilter { by: which.by, about, newest_first: which.order != Some(Order::Oldest) };
    let rows = app.store.records(parse("after", which.after.as_deref())?, &filter, limit + 1).await?;
    Ok(Json(Page::of(rows, limit, |row| row.number.to_string(), AuditRecord::from)))
}

/// How far the chain of records goes.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ChainEnd {
    /// The number of its last record; 0 when there is none.
    number: u64,
    /// That record's link: written down elsewhere, it proves later that nothing before it changed.
    link: String,
    /// Records that are not in the chain yet.
    unlinked: u64,
    /// When the oldest of those was made. Longer than seconds ago means that something is wrong.
    #[schema(value_type = Option<String>, format = DateTime)]
    oldest_unlinked: Option<Timestamp>,
}

/// Show the end of the audit chain
#[utoipa::path(get, path = "/v1/audit/end", tag = "audit", responses((status = 200, body = ChainEnd)))]
pub(super) async fn end(State(app): State<App>) -> Result<impl IntoResponse, Error> {
    let end = app.store.chain_end().await?;
    Ok(Json(ChainEnd {
        number: end.number,
        link: hex::encode(end.link),
        unlinked: end.unlinked,
        oldest_unlinked: end.oldest_unlinked,
    }))
}
