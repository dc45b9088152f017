//! `/v1/machines/{machine}/test` and `/tests`: testing machines, and what that showed.

use axum::{
    Extension,
    extract::{Path, State},
    response::IntoResponse,
};
use jiff::Timestamp;
use rackhand_common::{
    commission::{self, MAX_TESTS, Script, Tested},
    id::RunId,
};
use rackhand_controller_core::access::Action;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::{
    App, Caller, Error,
    extract::{Expected, Json, Page, Query, limit, parse},
    machines::{accepted, held},
    runs::Run,
};
use crate::store;

/// Which tests are run.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Test {
    /// Names of the tests; absent: all that destroy nothing.
    #[schema(example = json!(["memory", "cpu"]))]
    only: Option<Vec<String>>,
    /// Whether what is on the machine's disks may be lost: some tests write to them.
    #[serde(default)]
    accept_data_loss: bool,
}

/// What a test of a machine showed.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TestResult {
    /// Names it.
    id: Uuid,
    /// The test's name.
    #[schema(example = "memory")]
    test: String,
    /// `passed`, `failed`, `skipped` when it does not apply to this machine, or `broken` when it could not be
    /// carried out.
    #[schema(example = "failed")]
    outcome: String,
    /// Why, where it did not pass.
    #[schema(example = "module DIMM_A1: 2 errors")]
    reason: Option<String>,
    /// What to look at when it did not pass.
    #[schema(example = "a memory module")]
    part: String,
    /// The run that asked for it.
    #[schema(value_type = Uuid)]
    run: RunId,
    /// When it began.
    #[schema(value_type = String, format = DateTime)]
    started: Timestamp,
    /// How long it took, in milliseconds.
    milliseconds: u64,
    /// What it found, in the fields that it declares.
    #[schema(value_type = Option<Object>)]
    result: Option<Value>,
    /// The end of what it said.
    output: String,
}

impl From<store::TestResult> for TestResult {
    fn from(store::TestResult { id, run, tested }: store::TestResult) -> Self {
        let Tested { script, outcome, reason, part, output, result, started, milliseconds } = tested;
        Self {
            id,
            test: script,
            outcome: outcome.to_string(),
            reason: Some(reason).filter(|reason| !reason.is_empty()),
            part,
            run,
            started,
            milliseconds,
            result: serde_json::from_str(&result).ok(),
            output,
        }
    }
}

/// Test a machine
///
/// Starts a run that has the machine's installer run tests, in the order that suits them. For machines that
/// nobody's system runs on: `ready`, `maintenance`, `quarantined`. The run is `done` when the tests are over,
/// whatever they showed; a machine that did not pass has an alert that says why.
#[utoipa::path(post, path = "/v1/machines/{machine}/test", tag = "machines", request_body = Test,
    params(("machine" = String, Path, description = "Id or name.")),
    responses((status = 202, body = Run, headers(("Location" = String, description = "The run.")))))]
pub(super) async fn test(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(machine): Path<String>,
    expected: Expected,
    Json(Test { only, accept_data_loss }): Json<Test>,
) -> Result<impl IntoResponse, Error> {
    let scripts = chosen(only)?;
    let mut tx = app.store.begin().await?;
    let machine = held(&caller, &mut tx, Action::MachineMaintain, &machine).await?;
    expected.check(machine.version)?;
    let run = tx.start_test(app.clock.now().wall, &machine, scripts, accept_data_loss, false).await?;
    tx.commit().await?;
    Ok(accepted(&app, run, Vec::new()))
}

/// The tests that are meant, each once.
fn chosen(only: Option<Vec<String>>) -> Result<Vec<String>, Error> {
    let all = commission::scripts();
    let Some(mut only) = only else {
        return Ok(all.iter().filter(|script| !script.destructive).map(|script| script.name.clone()).collect());
    };
    if only.is_empty() || only.len() > MAX_TESTS {
        return Err(Error::invalid("/only", format!("1 to {MAX_TESTS} tests; without it all are run")));
    }
    if let Some(at) = only.iter().position(|name| commission::script(name).is_none()) {
        let known: Vec<_> = all.iter().map(|Script { name, .. }| name.as_str()).collect();
        return Err(Error::invalid(&format!("/only/{at}"), format!("is no test; there are {}", known.join(", "))));
    }
    only.sort();
    only.dedup();
    Ok(only)
}

/// Of which tests.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Which {
    /// Only of this test.
    test: Option<String>,
    /// Only the latest of each test.
    #[serde(default)]
    latest: bool,
    /// `next` of the page before; absent for the first page.
    after: Option<String>,
    /// How many at most, 1 to 200.
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<u32>,
}

/// List what tests of a machine showed
///
/// The newest first; of each test the last 50 are kept.
#[utoipa::path(get, path = "/v1/machines/{machine}/tests", tag = "machines",
    params(("machine" = String, Path, description = "Id or name."), Which),
    responses((status = 200, body = Page<TestResult>)))]
pub(super) async fn results(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(machine): Path<String>,
    Query(which): Query<Which>,
) -> Result<impl IntoResponse, Error> {
    let (limit, before) = (limit(which.limit)?, parse("after", which.after.as_deref())?);
    let machine = caller.machine(&app, &machine).await?;
    let rows = app.store.test_results(machine, which.test.as_deref(), which.latest, before, limit + 1).await?;
    Ok(axum::Json(Page::of(rows, limit, |row| row.id.to_string(), TestResult::from)))
}
