//! `/v1/erasures`: what became of disks when machines were taken back, signed.
//!
//! A certificate is answered as it was signed: it is verified by its own bytes, with the root's
//! certificate and without this controller.

use axum::{
    Extension,
    extract::{Path, State},
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use rackhand_common::{
    erasure::{self, SignedCertificate},
    id::{MachineId, RunId},
};
use rackhand_controller_core::access::Action;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::{
    App, Caller, Error,
    extract::{Page, Query, Window, limit, parse},
};

/// What became of one disk in one release.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Erasure {
    /// Id of its certificate.
    id: Uuid,
    /// The machine it was in; it may be forgotten.
    #[schema(value_type = Uuid)]
    machine: MachineId,
    /// That machine's name at the time.
    #[schema(example = "web-1")]
    machine_name: String,
    /// The release.
    #[schema(value_type = Uuid)]
    run: RunId,
    /// The disk's identity: WWN, or model and serial number.
    #[schema(example = "naa.5000c500a1b2c3d4")]
    disk: String,
    /// Model.
    model: String,
    /// Serial number.
    serial: String,
    /// Bytes.
    size: u64,
    /// Whether it is known to be clean.
    proven: bool,
    /// The method that is proven; absent when none is.
    #[schema(example = "nvme_sanitize_crypto")]
    method: Option<&'static str>,
    /// By NIST SP 800-88: `none`, `clear` or `purge`.
    #[schema(example = "purge")]
    class: String,
    /// Why it is not known to be clean.
    reason: Option<String>,
    /// When work on it ended.
    #[schema(value_type = String, format = DateTime)]
    ended: Timestamp,
}

impl Erasure {
    fn of(signed: &SignedCertificate) -> Result<Self, Error> {
        let said = signed.unverified().map_err(Error::internal)?;
        let erasure::Certificate { erasure, run, machine, machine_name, drive, .. } = said;
        Ok(Self {
            id: erasure,
            machine,
            machine_name,
            run,
            proven: drive.is_proven(),
            method: drive.method.map(erasure::Method::word),
            class: drive.class.to_string(),
            disk: drive.disk,
            model: drive.model,
            serial: drive.serial,
            size: drive.size,
            reason: drive.reason,
            ended: drive.ended,
        })
    }

    fn page(rows: Vec<SignedCertificate>, limit: u32) -> Result<Page<Self>, Error> {
        let rows = rows.iter().map(Self::of).collect::<Result<Vec<_>, _>>()?;
        Ok(Page::of(rows, limit, |row| row.id.to_string(), |row| row))
    }
}

/// A certificate of erasure with its signature, as a file for whoever wants to verify it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ErasureCertificate {
    /// What is signed: machine, drive, methods tried, samples, result. Fields are added in later versions.
    #[schema(value_type = Object)]
    certificate: Value,
    /// ECDSA P-256 with SHA-256 (DER, hexadecimal) of the certificate in the form of RFC 8785.
    signature: String,
    /// Certificates of the key that signed, PEM: its own, then the root's.
    chain: Vec<String>,
}

/// List what became of a machine's disks
///
/// In all its releases, the newest first.
#[utoipa::path(get, path = "/v1/machines/{machine}/erasures", tag = "erasures",
    params(("machine" = String, Path, description = "Id or name."), Window),
    responses((status = 200, body = Page<Erasure>)))]
pub(super) async fn of_machine(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(machine): Path<String>,
    Query(window): Query<Window>,
) -> Result<impl IntoResponse, Error> {
    let (limit, sight) = (window.limit()?, caller.sight(Action::MachineRead)?);
    let machine = caller.machine(&app, &machine).await?;
    let before = parse("after", window.after.as_deref())?;
    let rows = app.store.erasures(&sight, Some(machine), None, before, limit + 1).await?;
    Ok(axum::Json(Erasure::page(rows, limit)?))
}

/// Of which disks.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Which {
    /// Only of the machine with this id, which may be forgotten.
    #[param(value_type = Option<String>)]
    machine: Option<Uuid>,
    /// Only of the drive with this serial number.
    serial: Option<String>,
    /// `next` of the page before; absent for the first page.
    after: Option<String>,
    /// How many at most, 1 to 200.
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<u32>,
}

/// List what became of disks
///
/// In all releases that can be seen, the newest first; also of machines that are forgotten.
#[utoipa::path(get, path = "/v1/erasures", tag = "erasures", params(Which),
    responses((status = 200, body = Page<Erasure>)))]
pub(super) async fn list(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Query(which): Query<Which>,
) -> Result<impl IntoResponse, Error> {
    let (limit, sight) = (limit(which.limit)?, caller.sight(Action::MachineRead)?);
    let (machine, before) = (which.machine.map(MachineId), parse("after", which.after.as_deref())?);
    let rows = app.store.erasures(&sight, machine, which.serial.as_deref(), before, limit + 1).await?;
    Ok(axum::Json(Erasure::page(rows, limit)?))
}

/// Show a certificate of erasure
///
/// With its signature, to be kept as a file and verified with the root's certificate alone; for a printer
/// with `Accept: text/plain`.
#[utoipa::path(get, path = "/v1/erasures/{erasure}", tag = "erasures",
    params(("erasure" = String, Path, description = "Id.")),
    responses((status = 200,
        content((ErasureCertificate = "application/json"), (String = "text/plain")))))]
pub(super) async fn show(
    State(app): State<App>,
    Path(erasure): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Error> {
    let signed = app.store.erasure(&erasure).await?;
    let accepted = headers.get(header::ACCEPT).and_then(|accepted| accepted.to_str().ok()).unwrap_or_default();
    if accepted.split(',').any(|form| form.trim().split(';').next() == Some("text/plain")) {
        let text = signed.unverified().map_err(Error::internal)?.printed();
        return Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response());
    }
    let SignedCertificate { certificate, signature, chain } = signed;
    Ok(axum::Json(ErasureCertificate { certificate, signature, chain }).into_response())
}
