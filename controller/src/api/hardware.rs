//! `/v1/machines/{machine}/hardware`: what is in a machine, slot by slot, and what of it is not as it
//! should be.

use axum::{
    extract::{Path, State},
    response::IntoResponse,
};
use jiff::Timestamp;
use rackhand_common::{hardware::Hardware, id};
use rackhand_controller_core::expects;
use serde::Serialize;
use utoipa::ToSchema;

use super::{App, Error};

/// What is in a machine.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct MachineHardware {
    /// The machine.
    #[schema(value_type = uuid::Uuid)]
    machine: id::MachineId,
    /// The machine's name.
    #[schema(example = "web-1")]
    name: String,
    /// When its installer looked, by its node's clock; absent while none told.
    #[schema(value_type = Option<String>, format = DateTime)]
    taken: Option<Timestamp>,
    /// What its installer found: board, bios, chassis, processors, memory (by slots), ecc, slots, devices, ports,
    /// drives, tpm, secure_boot, bmc (as it answers in-band); absent while none told.
    #[schema(value_type = Option<Object>)]
    hardware: Option<Hardware>,
    /// The plan it is held against: of those whose make it has, the one it comes nearest to.
    #[schema(example = "large")]
    plan: Option<String>,
    /// Whether that plan refuses deploys while there are findings.
    strict: bool,
    /// What is not as it should be.
    findings: Vec<HardwareFinding>,
}

/// Something in a machine that is not as it should be.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct HardwareFinding {
    /// About which kind of part: `memory`, `processor`, `disk`, `port`, `device`, `firmware`, `machine`.
    #[schema(value_type = String, example = "memory")]
    component: expects::Component,
    /// Where it is: the name of a slot, disk or port; empty when no place is known.
    #[schema(example = "A3")]
    place: String,
    /// What is wrong.
    #[schema(example = "DIMM A3 is missing: 15 of 16")]
    text: String,
}

/// Show what is in a machine
///
/// Slot by slot, as its installer found it last, with what is not as it should be: what its plan expects
/// otherwise, links with fewer lanes than they could have, memory errors, disks that say that they fail.
#[utoipa::path(get, path = "/v1/machines/{machine}/hardware", tag = "machines",
    params(("machine" = String, Path, description = "Id or name.")),
    responses((status = 200, body = MachineHardware)))]
pub(super) async fn show(State(app): State<App>, Path(machine): Path<String>) -> Result<impl IntoResponse, Error> {
    let machine = app.store.machine(&machine).await?;
    let known = app.store.hardware(machine.id).await?;
    let examined = app.store.examined(&machine).await?;
    let finding = |expects::Finding { component, place, text }| HardwareFinding { component, place, text };
    Ok(axum::Json(MachineHardware {
        machine: machine.id,
        name: machine.name,
        taken: known.as_ref().map(|known| known.taken),
        hardware: known.map(|known| known.hardware),
        plan: examined.plan,
        strict: examined.strict,
        findings: examined.findings.into_iter().map(finding).collect(),
    }))
}
