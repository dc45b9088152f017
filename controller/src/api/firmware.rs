//! `/v1/firmware`: what is imported of it; `/v1/machines/{machine}/update-firmware` and `/firmware-updates`:
//! having it installed, and what became of that.

use axum::{
    Extension,
    body::Body,
    extract::{Path, State},
    http::{StatusCode, header},
    response::IntoResponse,
};
use jiff::Timestamp;
use rackhand_common::id::RunId;
use rackhand_controller_core::{access::Action, firmware::Manifest};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    App, Caller, Error,
    extract::{Expected, Json, Page, Query, Window, parse},
    machines::{accepted, held},
    runs::Run,
};
use crate::store;

/// The most that one run installs.
const MAX_UPDATES: usize = 32;

/// Firmware that was imported.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Firmware {
    /// Its id.
    id: Uuid,
    /// Its name, by which plans and updates name it.
    #[schema(example = "toy-bmc-2.18")]
    name: String,
    /// What it is the firmware of: `bmc`, `bios`, `nic`, …
    #[schema(example = "bmc")]
    component: String,
    /// The version that is there once it is installed.
    #[schema(example = "2.18")]
    version: String,
    /// Bytes of its file.
    size: u64,
    /// SHA-256 of its file.
    sha256: String,
    /// Whether the machine has to start anew.
    restart: bool,
    /// Its manifest, as it was given.
    manifest: String,
    /// Since when its file is here, whole; absent while it has not come.
    #[schema(value_type = Option<String>, format = DateTime)]
    here: Option<Timestamp>,
    /// When it was told of.
    #[schema(value_type = String, format = DateTime)]
    created: Timestamp,
}

impl From<store::Firmware> for Firmware {
    fn from(store::Firmware { id, text, manifest, here, created }: store::Firmware) -> Self {
        let Manifest { name, component, version, size, sha256, restart, .. } = manifest;
        Self { id, name, component, version, size, sha256, restart, manifest: text, here, created }
    }
}

/// Firmware to be imported.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewFirmware {
    /// Its manifest: TOML, as in docs/operator/firmware.md.
    manifest: String,
}

/// What is installed.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct UpdateFirmware {
    /// Names of imported firmware; absent: whatever the machine's plan has otherwise.
    #[schema(example = json!(["toy-bmc-2.18"]))]
    firmware: Option<Vec<String>>,
}

/// An update of a machine's firmware.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct FirmwareUpdate {
    /// Names it.
    id: Uuid,
    /// Which firmware.
    #[schema(example = "toy-bmc-2.18")]
    firmware: String,
    /// Whose version it is: `bmc`, `bios`, a member of the BMC's firmware inventory, or the parts that a script
    /// updates.
    #[schema(example = "bmc")]
    place: String,
    /// The version before, as far as it was read.
    #[schema(example = "2.17")]
    was: Option<String>,
    /// The version that was wanted.
    #[schema(example = "2.18")]
    version: String,
    /// `asked`, `staged` (the machine has to start anew), `confirming`, `installed` (that version was read),
    /// `refused` (nothing was changed) or `failed` (it is not known what is there now).
    #[schema(example = "installed")]
    state: &'static str,
    /// Why, when it was not installed.
    detail: String,
    /// The end of what the script said, when one was run.
    output: Option<String>,
    /// The script's result.
    #[schema(value_type = Option<Object>)]
    result: Option<serde_json::Value>,
    /// The run that did it.
    #[schema(value_type = Uuid)]
    run: RunId,
    /// When it moved last.
    #[schema(value_type = String, format = DateTime)]
    updated: Timestamp,
}

impl From<store::FirmwareUpdate> for FirmwareUpdate {
    fn from(update: store::FirmwareUpdate) -> Self {
        let store::FirmwareUpdate { id, run, name, place, was, version, state, detail, tested, updated, .. } = update;
        let (place, state) = (place.to_string(), state.word());
        let result = tested.as_ref().and_then(|tested| serde_json::from_str(&tested.result).ok());
        let output = tested.map(|tested| tested.output);
        Self { id, firmware: name, place, was, version, state, detail, output, result, run, updated }
    }
}

/// List firmware
///
/// In the order of its import, also what has no file yet.
#[utoipa::path(get, path = "/v1/firmware", tag = "firmware", params(Window),
    responses((status = 200, body = Page<Firmware>)))]
pub(super) async fn list(State(app): State<App>, Query(window): Query<Window>) -> Result<impl IntoResponse, Error> {
    let limit = window.limit()?;
    let rows = app.store.firmwares(parse("after", window.after.as_deref())?, limit + 1).await?;
    Ok(axum::Json(Page::of(rows, limit, |row| row.id.to_string(), Firmware::from)))
}

/// Show firmware
#[utoipa::path(get, path = "/v1/firmware/{firmware}", tag = "firmware",
    params(("firmware" = String, Path, description = "Id or name.")), responses((status = 200, body = Firmware)))]
pub(super) async fn show(State(app): State<App>, Path(firmware): Path<String>) -> Result<impl IntoResponse, Error> {
    Ok(axum::Json(Firmware::from(app.store.firmware(&firmware).await?)))
}

/// Tell of firmware
///
/// By its manifest, which says what its file is and which machines it is for. It can be installed once its file
/// was uploaded. A manifest is not changed: another version has another name.
#[utoipa::path(post, path = "/v1/firmware", tag = "firmware", request_body = NewFirmware,
    responses((status = 201, body = Firmware, headers(("Location" = String, description = "The firmware.")))))]
pub(super) async fn create(State(app): State<App>, Json(body): Json<NewFirmware>) -> Result<impl IntoResponse, Error> {
    let manifest = Manifest::parse(&body.manifest).map_err(|error| Error::invalid("/manifest", error))?;
    let mut tx = app.store.begin().await?;
    let id = tx.insert_firmware(app.clock.now().wall, &body.manifest, &manifest).await?;
    let firmware = Firmware::from(tx.firmware(&id.to_string()).await?);
    tx.commit().await?;
    Ok((StatusCode::CREATED, [(header::LOCATION, format!("/v1/firmware/{id}"))], axum::Json(firmware)))
}

/// Upload the file of firmware
///
/// The body is the file, of the size and with the SHA-256 that its manifest says; another one is refused and
/// not kept.
#[utoipa::path(put, path = "/v1/firmware/{firmware}/file", tag = "firmware",
    params(("firmware" = String, Path, description = "Id or name.")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, body = Firmware)))]
pub(super) async fn upload(
    State(app): State<App>,
    Path(firmware): Path<String>,
    body: Body,
) -> Result<impl IntoResponse, Error> {
    let known = app.store.firmware(&firmware).await?;
    app.images.receive_firmware(&known.manifest, body.into_data_stream()).await?;
    let mut tx = app.store.begin().await?;
    tx.firmware_is_here(app.clock.now().wall, known.id).await?;
    let firmware = Firmware::from(tx.firmware(&known.id.to_string()).await?);
    tx.commit().await?;
    Ok(axum::Json(firmware))
}

/// Delete firmware
///
/// Machines keep what they have; a plan that names it says that it is not imported. A run that has not sent it
/// yet installs nothing.
#[utoipa::path(delete, path = "/v1/firmware/{firmware}", tag = "firmware",
    params(("firmware" = String, Path, description = "Id or name.")), responses((status = 204)))]
pub(super) async fn delete(State(app): State<App>, Path(firmware): Path<String>) -> Result<impl IntoResponse, Error> {
    let mut tx = app.store.begin().await?;
    let firmware = tx.firmware(&firmware).await?;
    tx.delete_firmware(firmware.id).await?;
    tx.commit().await?;
    if !store::is_dry_run() {
        app.images.sweep().await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Update a machine's firmware
///
/// Starts a run that has its BMC, or scripts in its installer, install firmware, one after the other in the order
/// of their manifests, and reads each version back. For machines that nobody's system runs on: `ready`, `maintenance`, `quarantined`. One that
/// is left in doubt is quarantined.
#[utoipa::path(post, path = "/v1/machines/{machine}/update-firmware", tag = "firmware", request_body = UpdateFirmware,
    params(("machine" = String, Path, description = "Id or name.")),
    responses((status = 202, body = Run, headers(("Location" = String, description = "The run.")))))]
pub(super) async fn update(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(machine): Path<String>,
    expected: Expected,
    Json(UpdateFirmware { firmware }): Json<UpdateFirmware>,
) -> Result<impl IntoResponse, Error> {
    if firmware.as_ref().is_some_and(|names| names.is_empty() || names.len() > MAX_UPDATES) {
        let why = format!("1 to {MAX_UPDATES} names; without it what its plan has otherwise is installed");
        return Err(Error::invalid("/firmware", why));
    }
    let mut tx = app.store.begin().await?;
    let machine = held(&caller, &mut tx, Action::MachineMaintain, &machine).await?;
    expected.check(machine.version)?;
    let run = tx.start_firmware(app.clock.now().wall, &machine, firmware).await?;
    tx.commit().await?;
    Ok(accepted(&app, run, Vec::new()))
}

/// List updates of a machine's firmware
///
/// The newest first; the last 200 are kept.
#[utoipa::path(get, path = "/v1/machines/{machine}/firmware-updates", tag = "firmware",
    params(("machine" = String, Path, description = "Id or name."), Window),
    responses((status = 200, body = Page<FirmwareUpdate>)))]
pub(super) async fn updates(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(machine): Path<String>,
    Query(window): Query<Window>,
) -> Result<impl IntoResponse, Error> {
    let (limit, before) = (window.limit()?, parse("after", window.after.as_deref())?);
    let machine = caller.machine(&app, &machine).await?;
    let rows = app.store.firmware_updates(machine, before, limit + 1).await?;
    Ok(axum::Json(Page::of(rows, limit, |row| row.id.to_string(), FirmwareUpdate::from)))
}
