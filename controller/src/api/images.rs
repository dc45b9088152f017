//! `/v1/images`.

use axum::{
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::IntoResponse,
};
use rackhand_common::{image::Settings, machine::Firmware};
use rackhand_controller_core::os;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    App, Error,
    extract::{Expected, Json, Page, Query, Window, check_name, parse, tagged},
    machines::Nothing,
};
use crate::{
    images::{Finding, Request, Severity, is_sha256},
    store::{self, Image as Row, ImageState},
};

/// An operating system image: the raw contents of a disk, which deploys write to machines.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Image)]
pub(super) struct Image {
    /// Its id.
    #[schema(value_type = uuid::Uuid)]
    id: rackhand_common::id::ImageId,
    /// Its name, which deploys use.
    #[schema(example = "debian-12")]
    name: String,
    /// Counts the imports of this name; a name alone is its newest version that is ready.
    #[schema(example = 3)]
    version: u32,
    /// The catalogue's name for the system in it.
    #[schema(example = "debian-12")]
    os: Option<String>,
    /// Whether another should be used: deploys of it go on, with a warning.
    deprecated: bool,
    /// From when on it is not deployed any more; machines that have it keep it.
    #[schema(value_type = Option<String>, format = DateTime)]
    expires: Option<jiff::Timestamp>,
    /// When its import was asked for.
    #[schema(value_type = String, format = DateTime)]
    created: jiff::Timestamp,
    /// How far it is: `importing`, `ready` (can be deployed) or `failed`.
    #[schema(example = "ready")]
    state: &'static str,
    /// How its system is told host name, users and keys: `cidata` (cloud-init) or `none`.
    #[schema(value_type = String, example = "cidata")]
    settings: Settings,
    /// While importing: how far.
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<ImportProgress>,
    /// Once ready: what it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<ImageContent>,
    /// What a look into it found; absent when nobody has looked.
    #[serde(skip_serializing_if = "Option::is_none")]
    findings: Option<Vec<ImageFinding>>,
    /// Once failed: why.
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<ImportFailure>,
}

/// One thing that was looked at in an image.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ImageFinding {
    /// How bad it is: `good`, `not-examined`, `warning`, `error`.
    #[schema(value_type = String, example = "warning")]
    severity: Severity,
    /// What was looked at.
    #[schema(example = "serial console")]
    subject: String,
    /// What was found.
    found: String,
    /// What to do; empty when there is nothing to do.
    advice: String,
}

impl From<Finding> for ImageFinding {
    fn from(Finding { severity, subject, found, advice }: Finding) -> Self {
        Self { severity, subject, found, advice }
    }
}

/// How far an import is.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ImportProgress {
    /// What is being done: `receiving`, `fetching`, `reading`, `checking`, `unpacking`, `converting`, `storing`.
    doing: String,
    /// Bytes done of it.
    done: u64,
    /// Bytes to do; zero when nobody knows.
    total: u64,
}

/// What a ready image is.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ImageContent {
    /// Bytes of the raw image.
    size: u64,
    /// Bytes it takes in the object store.
    stored: u64,
    /// Logical sector size it was made for.
    sector: u32,
    /// Firmware modes it boots in: `bios`, `uefi`.
    #[schema(value_type = Vec<String>)]
    firmware: Vec<Firmware>,
    /// SHA-256 of the raw image.
    sha256: String,
    /// BLAKE3 of its signed manifest.
    manifest: String,
}

/// Why an import failed.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ImportFailure {
    /// For programs: `empty`, `truncated`, `too-large`, `not-sectors`, `no-firmware`, `qcow2`, `vmdk`,
    /// `gzip`, `xz`, `zstd`, `bzip2`, `sha256`, `url`, `converter`, `upload`, `interrupted`, `internal`.
    cause: String,
    /// For people.
    detail: String,
}

impl From<Row> for Image {
    fn from(row: Row) -> Self {
        let mut image = Self {
            id: row.id,
            name: row.name,
            version: row.version,
            os: row.os,
            deprecated: row.deprecated,
            expires: row.expires,
            created: row.created,
            state: "importing",
            settings: row.settings,
            progress: None,
            content: None,
            findings: row.findings.map(|findings| findings.into_iter().map(ImageFinding::from).collect()),
            failure: None,
        };
        match row.state {
            ImageState::Importing { doing, done, total } => {
                image.progress = Some(ImportProgress { doing, done, total })
            }
            ImageState::Ready(stored) => {
                image.state = "ready";
                image.content = Some(ImageContent {
                    size: stored.size,
                    stored: stored.stored,
                    sector: stored.sector,
                    firmware: stored.firmware,
                    sha256: stored.sha256,
                    manifest: stored.manifest.to_string(),
                });
            }
            ImageState::Failed { cause, detail } => {
                image.state = "failed";
                image.failure = Some(ImportFailure { cause, detail });
            }
        }
        image
    }
}

/// A file to import: one on the controller's host, or what is at a URL.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ImportFile {
    /// The image's name: lower-case letters, digits, `.`, `-`, `_`; at most 63.
    #[schema(example = "debian-12")]
    name: String,
    /// A file's name in the controller's import directory (`import` in its data directory).
    #[schema(example = "debian-12.qcow2")]
    file: Option<String>,
    /// Where it is instead: `https://` or `http://`.
    #[schema(example = "https://images.example.net/debian-12.qcow2")]
    url: Option<String>,
    /// SHA-256 that the file must have as it comes, hexadecimal.
    sha256: Option<String>,
    /// The catalogue's name for the system in it.
    #[schema(example = "debian-12")]
    os: Option<String>,
    /// How the system is told its settings: `cidata` (cloud-init's NoCloud), `config-2` (OpenStack's
    /// config drive), `ignition` (a config drive with a configuration for Ignition) or `none`; by default
    /// what the catalogue says of its `os`, or `cidata`.
    #[schema(value_type = Option<String>)]
    settings: Option<Settings>,
    /// Firmware modes it boots in, when its partition table does not tell: `bios`, `uefi`.
    #[schema(value_type = Option<Vec<String>>)]
    firmware: Option<Vec<Firmware>>,
}

/// What is said about an image that is uploaded.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct UploadParameters {
    /// How the system is told its settings: `cidata` (cloud-init's NoCloud), `config-2` (OpenStack's
    /// config drive), `ignition` (a config drive with a configuration for Ignition) or `none`; by default
    /// what the catalogue says of its `os`, or `cidata`.
    #[param(value_type = Option<String>)]
    settings: Option<Settings>,
    /// Firmware modes it boots in, separated by commas, when its partition table does not
    /// tell: `bios`, `uefi`, `bios,uefi`.
    firmware: Option<String>,
    /// SHA-256 that the file must have as it comes, hexadecimal.
    sha256: Option<String>,
    /// The catalogue's name for the system in it.
    os: Option<String>,
}

/// What is said about an image, wherever it comes from.
struct Said {
    settings: Option<Settings>,
    firmware: Option<Vec<Firmware>>,
    os: Option<String>,
    sha256: Option<String>,
}

fn request(name: String, said: Said) -> Result<Request, Error> {
    check_name("/name", &name)?;
    let firmware = said.firmware.map(|mut modes| {
        modes.sort_unstable();
        modes.dedup();
        modes
    });
    if firmware.as_ref().is_some_and(Vec::is_empty) {
        return Err(Error::invalid("/firmware", "name at least one mode, or leave it out"));
    }
    let sha256 = said.sha256.map(|digest| digest.to_ascii_lowercase());
    if sha256.as_ref().is_some_and(|digest| !is_sha256(digest)) {
        return Err(Error::invalid("/sha256", "64 hexadecimal digits, as `sha256sum` prints them"));
    }
    let settings = match (said.settings, &said.os) {
        (settings, None) => settings.unwrap_or(Settings::Cidata),
        (settings, Some(name)) => {
            let system = os::find(name).ok_or_else(|| {
                Error::invalid("/os", format!("the catalogue has no `{name}`; `rackhand os list` shows what it has"))
            })?;
            settings.unwrap_or(system.settings)
        }
    };
    Ok(Request { name, settings, firmware, os: said.os, sha256 })
}

/// List images
///
/// In the order of their import, also those being imported and those that failed.
#[utoipa::path(get, path = "/v1/images", tag = "images", params(Window), responses((status = 200, body = Page<Image>)))]
pub(super) async fn list(State(app): State<App>, Query(window): Query<Window>) -> Result<impl IntoResponse, Error> {
    let limit = window.limit()?;
    let rows = app.store.images(parse("after", window.after.as_deref())?, limit + 1).await?;
    Ok(axum::Json(Page::of(rows, limit, |row| row.id.to_string(), Image::from)))
}

/// Show one image
///
/// By its id; by its name, for the newest version that is ready; or by name and version
/// (`debian-12@3`), or the SHA-256 of the raw image (`debian-12@sha256:…`).
#[utoipa::path(get, path = "/v1/images/{image}", tag = "images",
    params(("image" = String, Path, description = "Id, name, or name and version.")),
    responses((status = 200, body = Image)))]
pub(super) async fn show(State(app): State<App>, Path(image): Path<String>) -> Result<impl IntoResponse, Error> {
    Ok(answer(app.store.image(&image).await?))
}

fn answer(row: Row) -> impl IntoResponse + use<> {
    tagged(row.revision, Image::from(row))
}

/// What may be changed about an image. What is left out stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ImageChange {
    /// Whether another should be used.
    deprecated: Option<bool>,
    /// From when on it is not deployed any more; `null` for never.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>, format = DateTime)]
    expires: Option<Option<jiff::Timestamp>>,
}

/// Tells a field that is `null` from one that is not there.
fn given<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// Deprecate an image, or have it expire
///
/// A deprecated image is deployed with a warning; one that has expired is not deployed. Machines
/// that have it keep it.
#[utoipa::path(patch, path = "/v1/images/{image}", tag = "images", request_body = ImageChange,
    params(("image" = String, Path, description = "Id, name, or name and version.")),
    responses((status = 200, body = Image)))]
pub(super) async fn change(
    State(app): State<App>,
    Path(image): Path<String>,
    expected: Expected,
    Json(body): Json<ImageChange>,
) -> Result<impl IntoResponse, Error> {
    let mut tx = app.store.begin().await?;
    let mut image = tx.image(&image).await?;
    expected.check(image.revision)?;
    image.deprecated = body.deprecated.unwrap_or(image.deprecated);
    image.expires = body.expires.unwrap_or(image.expires);
    tx.update_image(&mut image).await?;
    tx.commit().await?;
    Ok(answer(image))
}

/// Import a file of the controller's host, or from a URL
///
/// A raw, qcow2 or vmdk file, also as gzip, xz, zstd or bzip2, in the controller's import directory
/// or at a URL. The answer comes at once; follow the image until its state is `ready` or `failed`.
/// Another import of the same name is its next version. Importing the same contents again stores
/// nothing twice. A URL whose host is in a private or local network is refused unless
/// `images.sources` in the controller's configuration names it.
#[utoipa::path(post, path = "/v1/images", tag = "images", request_body = ImportFile,
    responses((status = 202, body = Image, headers(("Location" = String, description = "The image.")))))]
pub(super) async fn import(State(app): State<App>, Json(body): Json<ImportFile>) -> Result<impl IntoResponse, Error> {
    let said = Said { settings: body.settings, firmware: body.firmware, os: body.os, sha256: body.sha256 };
    let request = request(body.name, said)?;
    let image = match (body.file, body.url) {
        (Some(file), None) => app.images.import_file(request, &file).await?,
        (None, Some(url)) => app.images.import_url(request, &url).await?,
        _ => return Err(Error::invalid("/file", "name a `file` or a `url`, one of them")),
    };
    Ok(accepted(image))
}

/// Look into an image
///
/// For what keeps machines from starting with it, from being told their settings or reached, or
/// makes them all the same one; every import ends with such a look. The file system is read without
/// being mounted; one that cannot be read here is said to be not examined.
#[utoipa::path(post, path = "/v1/images/{image}/check", tag = "images", request_body = Nothing,
    params(("image" = String, Path, description = "Id, name, or name and version.")),
    responses((status = 200, body = Image)))]
pub(super) async fn check(
    State(app): State<App>,
    Path(image): Path<String>,
    Json(Nothing {}): Json<Nothing>,
) -> Result<impl IntoResponse, Error> {
    let image = app.store.image(&image).await?;
    let findings = app.images.check(&image).await?;
    let mut tx = app.store.begin().await?;
    tx.note_findings(image.id, &findings).await?;
    let image = tx.image(&image.id.to_string()).await?;
    tx.commit().await?;
    Ok(answer(image))
}

/// Upload and import an image
///
/// The body is a raw, qcow2 or vmdk file, also as gzip, xz, zstd or bzip2, of any length up to the
/// controller's limit. Another import of the same name is its next version. The answer
/// comes when the last byte is received; the import runs on: follow the image until its state
/// is `ready` or `failed`. An upload that ends early leaves a failed image, whose name is free.
#[utoipa::path(put, path = "/v1/images/{image}", tag = "images",
    params(("image" = String, Path, description = "The new image's name."), UploadParameters),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 202, body = Image, headers(("Location" = String, description = "The image.")))))]
pub(super) async fn upload(
    State(app): State<App>,
    Path(image): Path<String>,
    Query(parameters): Query<UploadParameters>,
    headers: HeaderMap,
    body: Body,
) -> Result<impl IntoResponse, Error> {
    let mode = |word: &str| match word.trim() {
        "bios" => Ok(Firmware::Bios),
        "uefi" => Ok(Firmware::Uefi),
        other => Err(Error::invalid("firmware", format!("`{other}` is neither `bios` nor `uefi`"))),
    };
    let firmware = parameters.firmware.map(|words| words.split(',').map(mode).collect::<Result<_, _>>()).transpose()?;
    let said = Said { settings: parameters.settings, firmware, os: parameters.os, sha256: parameters.sha256 };
    let request = request(image, said)?;
    let len = headers.get(header::CONTENT_LENGTH).and_then(|len| len.to_str().ok()).and_then(|len| len.parse().ok());
    Ok(accepted(app.images.import_upload(request, len, body.into_data_stream()).await?))
}

/// Delete an image
///
/// Refused while a machine runs it or a run needs it. Its bytes are removed unless another
/// image shares them. Its version is not given again.
#[utoipa::path(delete, path = "/v1/images/{image}", tag = "images",
    params(("image" = String, Path, description = "Id, name, or name and version.")), responses((status = 204)))]
pub(super) async fn delete(
    State(app): State<App>,
    Path(image): Path<String>,
    expected: Expected,
) -> Result<impl IntoResponse, Error> {
    let mut tx = app.store.begin().await?;
    let image = tx.image(&image).await?;
    expected.check(image.revision)?;
    if matches!(image.state, ImageState::Importing { .. }) {
        return Err(Error::conflict("the image is being imported; delete it when that has ended"));
    }
    if let Some(user) = tx.image_user(&image).await? {
        return Err(Error::conflict(format!("machine {user} uses this image; release it first")));
    }
    tx.delete_image(image.id).await?;
    tx.commit().await?;
    if !store::is_dry_run() {
        app.images.sweep().await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

fn accepted(image: Row) -> impl IntoResponse + use<> {
    let image = Image::from(image);
    (StatusCode::ACCEPTED, [(header::LOCATION, format!("/v1/images/{}", image.id))], axum::Json(image))
}
