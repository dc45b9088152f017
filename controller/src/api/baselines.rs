//! `/v1/machines/{machine}/baseline`: what a machine's BMC is to be like, and how it was found last.

use std::time::Duration;

use axum::{
    Extension,
    extract::{Path, State},
    response::IntoResponse,
};
use jiff::Timestamp;
use rackhand_common::{
    bmc::baseline::{self, Answered, Ask, Asker, Restored, compare},
    id,
};
use rackhand_controller_core::access::Action;
use serde::Serialize;
use serde_json::Value;
use tokio::time::{Instant, sleep};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    App, Caller, Error,
    extract::{Expected, Json, tagged},
    machines::{Nothing, held},
};
use crate::store::{self, StoredBaseline};

/// How long a BMC is waited for: less than a request may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// How often its rack's agent is asked meanwhile, beside the time that it takes to answer.
const AGAIN: Duration = Duration::from_millis(200);

/// What a machine's BMC is to be like, and how it was found last.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct MachineBaseline {
    /// The machine.
    #[schema(value_type = uuid::Uuid)]
    machine: id::MachineId,
    /// The machine's name.
    #[schema(example = "web-1")]
    name: String,
    /// What it is to be like: identity, certificate, accounts, network and firmware settings. Absent
    /// before it was recorded, which a deploy does.
    #[schema(value_type = Option<Object>)]
    record: Option<Value>,
    /// Since when.
    #[schema(value_type = Option<String>, format = DateTime)]
    recorded: Option<Timestamp>,
    /// Who accepted it; absent when it was found so and nobody has looked.
    accepted_by: Option<String>,
    /// How it was found last; absent before it was read.
    #[schema(value_type = Option<Object>)]
    found: Option<Value>,
    /// When.
    #[schema(value_type = Option<String>, format = DateTime)]
    found_at: Option<Timestamp>,
    /// In what both differ.
    differences: Vec<BaselineDifference>,
    /// What the BMC refused then, and what is in doubt although nothing that is read differs.
    remarks: Vec<String>,
}

/// Something about a BMC that is not as it was recorded.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BaselineDifference {
    /// `login`, `identity`, `certificate`, `firmware`, `account`, `network`, `bios` or `secure_boot`.
    #[schema(example = "account")]
    subject: &'static str,
    /// Which.
    #[schema(example = "support")]
    name: String,
    /// As it was recorded; absent when there was none.
    recorded: Option<String>,
    /// As it was found; absent when there was none, or it was not told.
    #[schema(example = "Administrator, enabled")]
    found: Option<String>,
    /// What a release does about it: `reset` (puts it back), `restart` (puts it back, with a start of
    /// the machine) or `operator` (quarantines the machine).
    #[schema(example = "reset")]
    remedy: &'static str,
}

impl From<baseline::Difference> for BaselineDifference {
    fn from(difference: baseline::Difference) -> Self {
        let baseline::Difference { subject, name, recorded, found, remedy } = difference;
        Self { subject: subject.word(), name, recorded, found, remedy: remedy.word() }
    }
}

fn view(machine: store::Machine, known: Option<StoredBaseline>) -> impl IntoResponse + use<> {
    let json = |baseline: &baseline::Baseline| serde_json::to_value(baseline).expect("a record always serializes");
    let record = known.as_ref().and_then(|known| known.record.as_ref());
    let differences = known.as_ref().zip(record).map(|(known, record)| compare(record, &known.found));
    let view = MachineBaseline {
        machine: machine.id,
        name: machine.name,
        record: record.map(json),
        recorded: known.as_ref().and_then(|known| known.recorded),
        accepted_by: known.as_ref().and_then(|known| known.accepted_by.clone()),
        found: known.as_ref().map(|known| json(&known.found)),
        found_at: known.as_ref().map(|known| known.found_at),
        differences: differences.into_iter().flatten().map(Into::into).collect(),
        remarks: known.as_ref().map(|known| known.remarks.clone()).unwrap_or_default(),
    };
    tagged(known.map_or(0, |known| known.version), view)
}

/// Show what a machine's BMC is to be like
///
/// And how it was found when it was read last: by a deploy, a release, or `read`.
#[utoipa::path(get, path = "/v1/machines/{machine}/baseline", tag = "machines",
    params(("machine" = String, Path, description = "Id or name.")), responses((status = 200, body = MachineBaseline)))]
pub(super) async fn show(State(app): State<App>, Path(machine): Path<String>) -> Result<impl IntoResponse, Error> {
    let machine = app.store.machine(&machine).await?;
    let known = app.store.baseline(machine.id).await?;
    Ok(view(machine, known))
}

/// Read a machine's BMC
///
/// Its rack's agent reads it now, and changes nothing. What differs from its record is shown.
#[utoipa::path(post, path = "/v1/machines/{machine}/baseline/read", tag = "machines", request_body = Nothing,
    params(("machine" = String, Path, description = "Id or name.")), responses((status = 200, body = MachineBaseline)))]
pub(super) async fn read(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(machine): Path<String>,
    Json(Nothing {}): Json<Nothing>,
) -> Result<impl IntoResponse, Error> {
    let mut tx = app.store.begin().await?;
    let machine = held(&caller, &mut tx, Action::MachineAdopt, &machine).await?;
    tx.bmc(machine.id).await?.ok_or(store::StoreError::NotFound("BMC of this machine"))?;
    drop(tx);
    let mut restored = ask(&app, &machine).await?;
    let mut tx = app.store.begin().await?;
    // It may have been taken away meanwhile.
    let machine = held(&caller, &mut tx, Action::MachineAdopt, &machine.id.to_string()).await?;
    tx.add_told_in_band(machine.id, &mut restored).await?;
    tx.note_baseline(app.clock.now().wall, machine.id, &restored).await?;
    let known = tx.baseline(machine.id).await?;
    tx.commit().await?;
    Ok(view(machine, known))
}

async fn ask(app: &App, machine: &store::Machine) -> Result<Restored, Error> {
    let ask = Ask { asker: Asker::Person(Uuid::now_v7()), record: None };
    let until = Instant::now() + PATIENCE;
    loop {
        let answered = (app.baseline)(machine.rack, machine.id, machine.epoch, ask.clone()).await;
        let reason = match answered.map_err(Error::unavailable)? {
            Some(Answered::Done(restored)) => return Ok(*restored),
            Some(Answered::Failed(reason)) => return Err(Error::unavailable(format!("its BMC: {reason}"))),
            Some(Answered::Later(reason)) => reason,
            Some(Answered::UnderWay) => "it is being read; ask again in a moment".to_owned(),
            None => {
                let reason = "the rack's agent is of an earlier version and cannot read BMCs so: upgrade it";
                return Err(Error::unavailable(reason));
            }
        };
        if Instant::now() >= until {
            return Err(Error::unavailable(format!("its BMC: {reason}")));
        }
        sleep(AGAIN).await;
    }
}

/// Accept a machine's BMC as it was found last
///
/// That is its record from now on: what a release puts it back to, and compares it with. Whoever
/// accepts says that nothing in it is a former tenant's.
#[utoipa::path(post, path = "/v1/machines/{machine}/baseline/accept", tag = "machines", request_body = Nothing,
    params(("machine" = String, Path, description = "Id or name.")), responses((status = 200, body = MachineBaseline)))]
pub(super) async fn accept(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(machine): Path<String>,
    expected: Expected,
    Json(Nothing {}): Json<Nothing>,
) -> Result<impl IntoResponse, Error> {
    let mut tx = app.store.begin().await?;
    let machine = held(&caller, &mut tx, Action::MachineAdopt, &machine).await?;
    let known = tx.baseline(machine.id).await?;
    let known =
        known.ok_or_else(|| Error::conflict("its BMC was never read: `rackhand machine baseline read` first"))?;
    expected.check(known.version)?;
    tx.record_baseline(app.clock.now().wall, machine.id, Some(&caller.name)).await?;
    let known = tx.baseline(machine.id).await?;
    tx.commit().await?;
    Ok(view(machine, known))
}
