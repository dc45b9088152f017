//! `/v1/runs`.

use axum::{
    Extension,
    extract::{Path, State},
    response::IntoResponse,
};
use jiff::Timestamp;
use rackhand_common::id;
use rackhand_controller_core::access::Action;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    App, Caller, Error,
    extract::{Json, Page, Query, limit, parse},
    machines::{Nothing, accepted, check_user_data, held},
};
use crate::{
    store::{self, Thing},
    verbs::Retried,
};

/// One performance of a workflow on one machine.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Run {
    /// Its id.
    #[schema(value_type = uuid::Uuid)]
    id: id::RunId,
    /// The machine it is performed on.
    #[schema(value_type = uuid::Uuid)]
    machine: id::MachineId,
    /// That machine's name.
    #[schema(example = "web-1")]
    machine_name: String,
    /// What is done: `deploy`, `release`, `power`, `reinstall`, `inspect`, `rescue`, `leave-rescue`.
    #[schema(example = "deploy")]
    kind: String,
    /// `running`, or how it ended: `done`, `failed`, `cancelled`.
    #[schema(example = "running")]
    status: &'static str,
    /// The step it is at.
    #[schema(example = "write image")]
    step: Option<String>,
    /// Which try of that step.
    attempt: u32,
    /// Whether what was done is being undone.
    undoing: bool,
    /// Whether an operator wants it cancelled.
    cancel: bool,
    /// What it waits for: `agent`, `power`, `POST`, `DHCP`, `loader`, `installer`, `image stream`, `erasure`,
    /// `tests`, `disk boot`, `operating system`, `BMC`, `controller`; others may be added.
    waiting_for: Option<String>,
    /// Since when it waits for that.
    #[schema(value_type = Option<String>, format = DateTime)]
    waiting_since: Option<Timestamp>,
    /// By when it should have moved on; later than that is overdue.
    #[schema(value_type = Option<String>, format = DateTime)]
    waiting_until: Option<Timestamp>,
    /// By which way the machine was last started into the installer: `UEFI HTTP boot, once`, `network boot, once`,
    /// `network boot, at every start`, `virtual media`.
    way: Option<String>,
    /// How much of the disks is done.
    progress: Progress,
    /// Why it failed or is being undone, for programs.
    cause: Option<String>,
    /// Where it is, or why it failed, for people.
    detail: Option<String>,
    /// What whoever asked for it should know; only in the answer to that.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
    /// When it was asked for.
    #[schema(value_type = String, format = DateTime)]
    created: Timestamp,
    /// When it last changed.
    #[schema(value_type = String, format = DateTime)]
    updated: Timestamp,
    /// When it was over.
    #[schema(value_type = Option<String>, format = DateTime)]
    ended: Option<Timestamp>,
}

/// How much is done.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Progress {
    /// Bytes done.
    pub(super) done: u64,
    /// Bytes to do; zero when nobody knows yet.
    pub(super) total: u64,
}

impl Run {
    /// With what whoever asks for it should know.
    pub(super) fn with(self, warnings: Vec<String>) -> Self {
        Self { warnings, ..self }
    }

    pub(super) fn location(&self) -> String {
        format!("/v1/runs/{}", self.id)
    }

    /// What it is and how it stands, in one line.
    pub(super) fn line(&self) -> String {
        let why = [&self.cause, &self.detail].into_iter().flatten().filter_map(|why| why.lines().next());
        let line = format!("{} {}  run {}  {}", self.kind, self.machine_name, self.id, self.status);
        std::iter::once(line.as_str()).chain(why).collect::<Vec<_>>().join(": ")
    }
}

impl From<store::Run> for Run {
    fn from(row: store::Run) -> Self {
        Self {
            id: row.id,
            machine: row.machine,
            machine_name: row.machine_name,
            kind: row.parameters.workflow().to_string(),
            status: row.status.word(),
            step: row.step.map(|step| step.to_string()),
            attempt: row.attempt,
            undoing: row.undoing,
            cancel: row.cancel,
            waiting_for: row.waiting_for.map(|what| what.to_string()),
            waiting_since: row.waiting_since,
            waiting_until: row.waiting_until,
            way: row.way,
            progress: Progress { done: row.done, total: row.total },
            cause: row.cause,
            detail: row.detail,
            warnings: Vec::new(),
            created: row.created,
            updated: row.updated,
            ended: row.ended,
        }
    }
}

/// Which runs.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Which {
    /// Only those on this machine (id or name).
    machine: Option<String>,
    /// `next` of the page before; absent for the first page.
    after: Option<String>,
    /// How many at most, 1 to 200.
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<u32>,
}

/// List runs
///
/// The newest first.
#[utoipa::path(get, path = "/v1/runs", tag = "runs", params(Which), responses((status = 200, body = Page<Run>)))]
pub(super) async fn list(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Query(which): Query<Which>,
) -> Result<impl IntoResponse, Error> {
    let (limit, sight) = (limit(which.limit)?, caller.sight(Action::RunRead)?);
    let machine = match &which.machine {
        Some(machine) => Some(caller.machine(&app, machine).await?),
        None => None,
    };
    let rows = app.store.runs(&sight, machine, parse("after", which.after.as_deref())?, limit + 1).await?;
    Ok(axum::Json(Page::of(rows, limit, |row| row.id.to_string(), Run::from)))
}

/// Show one run
#[utoipa::path(get, path = "/v1/runs/{run}", tag = "runs",
    params(("run" = String, Path, description = "Id.")), responses((status = 200, body = Run)))]
pub(super) async fn show(State(app): State<App>, Path(run): Path<String>) -> Result<impl IntoResponse, Error> {
    Ok(axum::Json(Run::from(app.store.run(id(&run)?).await?)))
}

/// Cancel a run
///
/// Stops it at the next moment at which that is safe and undoes what it did. It is over when
/// its status is `cancelled`; until then it is `running`.
#[utoipa::path(post, path = "/v1/runs/{run}/cancel", tag = "runs", request_body = Nothing,
    params(("run" = String, Path, description = "Id.")), responses((status = 200, body = Run)))]
pub(super) async fn cancel(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(run): Path<String>,
    Json(Nothing {}): Json<Nothing>,
) -> Result<impl IntoResponse, Error> {
    let mut tx = app.store.begin().await?;
    caller.check_in(&mut tx, Action::RunCancel, Thing::Run, &run).await?;
    let run = tx.cancel(app.clock.now().wall, id(&run)?).await?;
    tx.commit().await?;
    (app.changed)(run.rack);
    Ok(axum::Json(Run::from(run)))
}

/// What a run has forgotten that is tried again.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Retry {
    /// The user data of a deploy, which is forgotten when its run is over.
    user_data: Option<String>,
}

/// Try a run again
///
/// Starts another run with the same wishes on the same machine, for one that failed or was cancelled.
/// Refused when the machine's state does not permit it, or it was given out, taken back or given to
/// another project since. Whoever may ask for what the run does may do this.
#[utoipa::path(post, path = "/v1/runs/{run}/retry", tag = "runs", request_body = Retry,
    params(("run" = String, Path, description = "Id.")),
    responses((status = 202, body = Run, headers(("Location" = String, description = "The new run.")))))]
pub(super) async fn retry(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(run): Path<String>,
    Json(body): Json<Retry>,
) -> Result<impl IntoResponse, Error> {
    if let Some(data) = &body.user_data {
        check_user_data(data)?;
    }
    let mut tx = app.store.begin().await?;
    let stands = caller.check_in(&mut tx, Action::RunRead, Thing::Run, &run).await?;
    let run = tx.run(id(&run)?).await?;
    let action = match run.parameters {
        store::Parameters::Deploy(_)
        | store::Parameters::Reinstall(_)
        | store::Parameters::Rescue(_)
        | store::Parameters::LeaveRescue => Action::MachineDeploy,
        store::Parameters::Inspect | store::Parameters::Test(_) | store::Parameters::Firmware(_) => {
            Action::MachineMaintain
        }
        store::Parameters::Release(_) => Action::MachineRelease,
        store::Parameters::Power(_) => Action::MachinePower,
        store::Parameters::RegainBmc => Action::RackManage,
    };
    let machine = held(&caller, &mut tx, action, &run.machine.to_string()).await?;
    let now = app.clock.now().wall;
    let Retried { run, deprecated } = tx.retry(now, &run, stands.place.project, &machine, body.user_data).await?;
    tx.commit().await?;
    let warnings = deprecated.map(|image| format!("image {image} is deprecated"));
    Ok(accepted(&app, run, warnings.into_iter().collect()))
}

/// A run's id in a path.
pub(super) fn id(text: &str) -> Result<id::RunId, Error> {
    text.parse().map_err(|_| Error::not_found(format!("`{text}` is not a run's id")))
}
