//! `/v1/machines/{machine}/health`: how a machine fares, what its sensors read over time, and what
//! an operator says against it.

use axum::{
    Extension,
    extract::{Path, State},
    http::StatusCode,
    response::IntoResponse,
};
use jiff::{SignedDuration, Timestamp};
use rackhand_common::{
    health::{Cause, SeriesQuery},
    id,
    wire::ControllerResponse,
};
use rackhand_controller_core::access::Action;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    App, Caller, Error,
    extract::{Json, Query},
    machines::held,
};
use crate::store::{self, Happened};

/// Transitions that are shown.
const SHOWN: u32 = 50;

/// The longest time that an override may be made for.
const LONGEST: SignedDuration = SignedDuration::from_hours(90 * 24);

/// The longest reason of an override, in bytes.
const MAX_REASON: usize = 500;

/// How much of a series is shown when nobody says since when.
const USUAL: SignedDuration = SignedDuration::from_hours(24);

/// How a machine fares.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct MachineHealth {
    /// The machine.
    #[schema(value_type = uuid::Uuid)]
    machine: id::MachineId,
    /// The machine's name.
    #[schema(example = "web-1")]
    name: String,
    /// `ok`, `warning` (look at it), `critical` (it is not given to anybody), `unknown` (its BMC does
    /// not answer, or nobody reads it).
    #[schema(example = "critical")]
    state: &'static str,
    /// Since when, by its node's clock; absent while nothing was told of it.
    #[schema(value_type = Option<String>, format = DateTime)]
    since: Option<Timestamp>,
    /// When its node said so last, by its clock.
    #[schema(value_type = Option<String>, format = DateTime)]
    heard: Option<Timestamp>,
    /// Why it is not ok, the worst first.
    causes: Vec<HealthCause>,
    /// That it is given out all the same, while that is in force.
    #[serde(rename = "override")]
    overridden: Option<HealthOverride>,
    /// How it fared before, the newest first.
    transitions: Vec<HealthTransition>,
}

/// Why a machine is not ok.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct HealthCause {
    /// The rule that says so.
    #[schema(example = "fan")]
    rule: String,
    /// What it leads to: `warning`, `critical` or `unknown`.
    #[schema(example = "critical")]
    state: &'static str,
    /// The sensor or part, as the BMC calls it.
    #[schema(example = "FAN2")]
    subject: String,
    /// What it read.
    #[schema(example = "0 rpm, at least 500 rpm")]
    reading: String,
    /// Since when, by the node's clock.
    #[schema(value_type = String, format = DateTime)]
    since: Timestamp,
    /// What to replace or to look at.
    #[schema(example = "replace the fan FAN2")]
    part: Option<String>,
}

/// That a machine is given out although it is critical.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct HealthOverride {
    /// Why.
    #[schema(example = "the part is ordered, and the tenant knows")]
    reason: String,
    /// Who said so.
    by: String,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    made: Timestamp,
    /// Until when; it ends by itself.
    #[schema(value_type = String, format = DateTime)]
    expires: Timestamp,
}

/// How a machine fared from then on.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct HealthTransition {
    /// When, by the node's clock.
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
    /// How.
    #[schema(example = "ok")]
    state: &'static str,
    /// Why.
    causes: Vec<HealthCause>,
}

/// An override to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewHealthOverride {
    /// Why: at most 500 bytes.
    #[schema(example = "the part is ordered, and the tenant knows")]
    reason: String,
    /// Until when: at most 90 days from now.
    #[schema(value_type = String, format = DateTime)]
    expires: Timestamp,
}

/// Which part of a series.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Which {
    /// The sensor, as the BMC calls it; a name that is not there is answered with those that are.
    sensor: String,
    /// From then on; a day before `to` when absent.
    #[param(value_type = Option<String>, format = DateTime)]
    from: Option<Timestamp>,
    /// Until then; now when absent.
    #[param(value_type = Option<String>, format = DateTime)]
    to: Option<Timestamp>,
}

/// What a sensor read over time.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Series {
    /// The sensor.
    #[schema(example = "CPU1 Temp")]
    sensor: String,
    /// The unit of its values.
    #[schema(example = "°C")]
    unit: String,
    /// Seconds that one point stands for; 0: each is one reading.
    #[schema(example = 300)]
    step: u32,
    /// Oldest first; at most 2000.
    points: Vec<SeriesPoint>,
}

/// A reading, or those of a span of time.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SeriesPoint {
    /// When it was, or began.
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
    /// The lowest.
    min: f64,
    /// The mean.
    mean: f64,
    /// The highest.
    max: f64,
}

impl From<Cause> for HealthCause {
    fn from(cause: Cause) -> Self {
        let Cause { rule, state, subject, reading, since, part } = cause;
        Self { rule, state: state.word(), subject, reading, since, part }
    }
}

impl From<store::HealthOverride> for HealthOverride {
    fn from(row: store::HealthOverride) -> Self {
        let store::HealthOverride { reason, by, made, expires } = row;
        Self { reason, by, made, expires }
    }
}

impl From<store::HealthTransition> for HealthTransition {
    fn from(row: store::HealthTransition) -> Self {
        let causes = row.causes.into_iter().map(Into::into).collect();
        Self { at: row.at, state: row.state.word(), causes }
    }
}

/// Show how a machine fares
///
/// What its rack's agent makes of its sensors and its hardware's event log. A machine that is `ready`
/// and `critical` is not deployed.
#[utoipa::path(get, path = "/v1/machines/{machine}/health", tag = "machines",
    params(("machine" = String, Path, description = "Id or name.")), responses((status = 200, body = MachineHealth)))]
pub(super) async fn show(State(app): State<App>, Path(machine): Path<String>) -> Result<impl IntoResponse, Error> {
    let machine = app.store.machine(&machine).await?;
    let known = app.store.machine_health(machine.id).await?;
    let overridden = app.store.health_override(app.clock.now().wall, machine.id).await?;
    let transitions = app.store.health_transitions(machine.id, SHOWN).await?;
    let state = known.as_ref().map_or("unknown", |known| known.verdict.state.word());
    Ok(axum::Json(MachineHealth {
        machine: machine.id,
        name: machine.name,
        state,
        since: known.as_ref().map(|known| known.verdict.since),
        heard: known.as_ref().map(|known| known.heard),
        causes: known.into_iter().flat_map(|known| known.verdict.causes).map(Into::into).collect(),
        overridden: overridden.map(Into::into),
        transitions: transitions.into_iter().map(Into::into).collect(),
    }))
}

/// Have a critical machine given out all the same
///
/// Until `expires`, when it ends by itself, the machine can be deployed as if it were well. What is
/// found is shown as before.
#[utoipa::path(put, path = "/v1/machines/{machine}/health/override", tag = "machines",
    request_body = NewHealthOverride, params(("machine" = String, Path, description = "Id or name.")),
    responses((status = 200, body = HealthOverride)))]
pub(super) async fn set(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(machine): Path<String>,
    Json(body): Json<NewHealthOverride>,
) -> Result<impl IntoResponse, Error> {
    let now = app.clock.now().wall;
    let reason = body.reason.trim().to_owned();
    if !(1..=MAX_REASON).contains(&reason.len()) || reason.chars().any(char::is_control) {
        return Err(Error::invalid("/reason", format!("is 1 to {MAX_REASON} bytes in one line")));
    }
    if body.expires <= now || body.expires.duration_since(now) > LONGEST {
        return Err(Error::invalid("/expires", "is to come, and at most 90 days from now"));
    }
    let mut tx = app.store.begin().await?;
    let machine = held(&caller, &mut tx, Action::MachineAdopt, &machine).await?;
    let wanted = store::HealthOverride { reason, by: caller.name.clone(), made: now, expires: body.expires };
    tx.set_health_override(&machine, &wanted).await?;
    let happened =
        Happened::HealthOverridden { reason: wanted.reason.clone(), by: wanted.by.clone(), expires: wanted.expires };
    tx.insert_event(now, machine.rack, Some(machine.id), None, &happened).await?;
    tx.commit().await?;
    Ok(axum::Json(HealthOverride::from(wanted)))
}

/// Take an override back
#[utoipa::path(delete, path = "/v1/machines/{machine}/health/override", tag = "machines",
    params(("machine" = String, Path, description = "Id or name.")),
    responses((status = 204, description = "There is none now.")))]
pub(super) async fn remove(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(machine): Path<String>,
) -> Result<impl IntoResponse, Error> {
    let now = app.clock.now().wall;
    let mut tx = app.store.begin().await?;
    let machine = held(&caller, &mut tx, Action::MachineAdopt, &machine).await?;
    if tx.remove_health_override(now, &machine).await? {
        let happened = Happened::HealthOverrideRemoved { by: caller.name.clone() };
        tx.insert_event(now, machine.rack, Some(machine.id), None, &happened).await?;
    }
    tx.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Show what a sensor read over time
///
/// The rack's agent keeps it: each reading for two days, spans of five minutes for thirty, hours for a
/// year. It answers as finely as what is asked for is still kept, and fits.
#[utoipa::path(get, path = "/v1/machines/{machine}/health/series", tag = "machines",
    params(("machine" = String, Path, description = "Id or name."), Which),
    responses((status = 200, body = Series)))]
pub(super) async fn series(
    State(app): State<App>,
    Path(machine): Path<String>,
    Query(which): Query<Which>,
) -> Result<impl IntoResponse, Error> {
    let to = which.to.unwrap_or_else(|| app.clock.now().wall);
    let from = which.from.unwrap_or_else(|| to.checked_sub(USUAL).unwrap_or(Timestamp::MIN));
    if from >= to {
        return Err(Error::invalid("/from", "is before `to`"));
    }
    let machine = app.store.machine(&machine).await?;
    app.store.bmc(machine.id).await?;
    let query = SeriesQuery { sensor: which.sensor, from, to };
    let told = match (app.series)(machine.rack, machine.id, query).await.map_err(Error::unavailable)? {
        ControllerResponse::Seen(json) => json,
        ControllerResponse::Refused(reason) => return Err(Error::not_found(reason)),
        ControllerResponse::NotUnderstood(_) => {
            return Err(Error::unavailable(
                "the rack's agent is of an earlier version and keeps no series: upgrade it",
            ));
        }
        other => {
            return Err(Error::unavailable(format!("the rack's agent gave an answer that does not fit: {other:?}")));
        }
    };
    let told: rackhand_common::health::Series = serde_json::from_str(&told).map_err(Error::internal)?;
    let point = |point: rackhand_common::health::Point| SeriesPoint {
        at: point.at,
        min: point.min,
        mean: point.mean,
        max: point.max,
    };
    Ok(axum::Json(Series {
        sensor: told.sensor,
        unit: told.unit,
        step: told.step,
        points: told.points.into_iter().map(point).collect(),
    }))
}
