//! Looking into machines, taking them out of service, and putting them back.

use axum::{
    Extension,
    extract::{Path, State},
    response::IntoResponse,
};
use jiff::{SignedDuration, Timestamp};
use rackhand_controller_core::{access::Action, lifecycle::Event};
use serde::Deserialize;
use utoipa::ToSchema;

use super::{
    App, Caller, Error,
    extract::{Expected, Json},
    machines::{Machine, Nothing, accepted, committed, held},
    runs::Run,
};
use crate::store::Hold;

/// The longest reason, in characters.
const MAX_REASON: usize = 500;

/// How long maintenance takes when nobody says how long.
const USUAL: SignedDuration = SignedDuration::from_hours(24);

/// The longest it may be meant to take: what takes longer is retired, or said anew.
const LONGEST: SignedDuration = SignedDuration::from_hours(90 * 24);

/// Why a machine is taken out of service.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Why {
    /// In a few words, at most 500 characters.
    #[schema(example = "a fan is loud")]
    reason: String,
}

/// Why a machine is worked on, and until when.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Maintain {
    /// In a few words, at most 500 characters.
    #[schema(example = "fan 3 is replaced")]
    reason: String,
    /// When somebody means to be done, at most 90 days from now; absent: in 24 hours.
    #[schema(value_type = Option<String>, format = DateTime)]
    until: Option<Timestamp>,
}

fn check_reason(reason: &str) -> Result<(), Error> {
    let length = reason.chars().count();
    match reason.trim().is_empty() || length > MAX_REASON || reason.chars().any(char::is_control) {
        true => Err(Error::invalid("/reason", format!("one line of 1 to {MAX_REASON} characters"))),
        false => Ok(()),
    }
}

/// Inspect a machine
///
/// Starts a run that restarts the machine into a fresh installer, which tells what is in it now. For
/// machines that nobody's system runs on: `ready`, `maintenance`, `quarantined`.
#[utoipa::path(post, path = "/v1/machines/{machine}/inspect", tag = "machines", request_body = Nothing,
    params(("machine" = String, Path, description = "Id or name.")),
    responses((status = 202, body = Run, headers(("Location" = String, description = "The run.")))))]
pub(super) async fn inspect(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(machine): Path<String>,
    expected: Expected,
    Json(Nothing {}): Json<Nothing>,
) -> Result<impl IntoResponse, Error> {
    let mut tx = app.store.begin().await?;
    let machine = held(&caller, &mut tx, Action::MachineMaintain, &machine).await?;
    expected.check(machine.version)?;
    let run = tx.start_inspect(app.clock.now().wall, &machine).await?;
    tx.commit().await?;
    Ok(accepted(&app, run, Vec::new()))
}

/// Work on a machine
///
/// A ready machine is nobody's to deploy until `resume`. It does not come back by itself: once `until`
/// has passed it has an alert.
#[utoipa::path(post, path = "/v1/machines/{machine}/maintain", tag = "machines", request_body = Maintain,
    params(("machine" = String, Path, description = "Id or name.")), responses((status = 200, body = Machine)))]
pub(super) async fn maintain(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(machine): Path<String>,
    expected: Expected,
    Json(body): Json<Maintain>,
) -> Result<impl IntoResponse, Error> {
    check_reason(&body.reason)?;
    let now = app.clock.now().wall;
    let latest = now.checked_add(LONGEST).map_err(|_| Error::invalid("/until", "is beyond all time"))?;
    let until = match body.until {
        Some(until) if until <= now => return Err(Error::invalid("/until", "has passed already")),
        Some(until) if until > latest => return Err(Error::invalid("/until", "at most 90 days from now")),
        Some(until) => until,
        None => now.checked_add(USUAL).unwrap_or(latest),
    };
    let why = Hold { reason: body.reason, since: now, until: Some(until) };
    hold(app, caller, (&machine, expected), Event::Maintain, Some(why)).await
}

/// Put a machine back into service
///
/// It was in maintenance, and is ready again. What was replaced in it wants `replace-part` before it can
/// be deployed.
#[utoipa::path(post, path = "/v1/machines/{machine}/resume", tag = "machines", request_body = Nothing,
    params(("machine" = String, Path, description = "Id or name.")), responses((status = 200, body = Machine)))]
pub(super) async fn resume(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(machine): Path<String>,
    expected: Expected,
    Json(Nothing {}): Json<Nothing>,
) -> Result<impl IntoResponse, Error> {
    hold(app, caller, (&machine, expected), Event::Resume, None).await
}

/// Quarantine a machine
///
/// Nobody is given it before it is released, which erases it. Also the way back for one that is retired.
#[utoipa::path(post, path = "/v1/machines/{machine}/quarantine", tag = "machines", request_body = Why,
    params(("machine" = String, Path, description = "Id or name.")), responses((status = 200, body = Machine)))]
pub(super) async fn quarantine(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(machine): Path<String>,
    expected: Expected,
    Json(body): Json<Why>,
) -> Result<impl IntoResponse, Error> {
    check_reason(&body.reason)?;
    let why = Hold { reason: body.reason, since: app.clock.now().wall, until: None };
    hold(app, caller, (&machine, expected), Event::Quarantine, Some(why)).await
}

/// Retire a machine
///
/// Out of service for good, and still known: should it start, it is not discovered anew. It is given to
/// no project and has no addresses. `forget` removes it from the books.
#[utoipa::path(post, path = "/v1/machines/{machine}/retire", tag = "machines", request_body = Why,
    params(("machine" = String, Path, description = "Id or name.")), responses((status = 200, body = Machine)))]
pub(super) async fn retire(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(machine): Path<String>,
    expected: Expected,
    Json(body): Json<Why>,
) -> Result<impl IntoResponse, Error> {
    check_reason(&body.reason)?;
    let why = Hold { reason: body.reason, since: app.clock.now().wall, until: None };
    hold(app, caller, (&machine, expected), Event::Retire, Some(why)).await
}

async fn hold(
    app: App,
    caller: Caller,
    (machine, expected): (&str, Expected),
    event: Event,
    why: Option<Hold>,
) -> Result<impl IntoResponse + use<>, Error> {
    let mut tx = app.store.begin().await?;
    let machine = held(&caller, &mut tx, Action::MachineMaintain, machine).await?;
    expected.check(machine.version)?;
    let machine = tx.hold(app.clock.now().wall, &machine, event, why).await?;
    let answer = committed(tx, &machine).await?;
    (app.changed)(machine.rack);
    Ok(answer)
}
