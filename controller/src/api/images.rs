//! `/v1/images`.

use axum::{
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::IntoResponse,
};
use rackhand_common::{image::Settings, machine::Firmware};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    App, Error,
    extract::{Json, Page, Query, Window, check_name, parse},
};
use crate::{
    images::Request,
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
    /// Once failed: why.
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<ImportFailure>,
}

/// How far an import is.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ImportProgress {
    /// What is being done: `receiving`, `reading`, `converting`, `storing`.
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
    /// For programs: `empty`, `truncated`, `too-large`, `not-sectors`, `no-firmware`, `qcow2`,
    /// `converter`, `upload`, `interrupted`, `internal`.
    cause: String,
    /// For people.
    detail: String,
}

impl From<Row> for Image {
    fn from(row: Row) -> Self {
        let mut image = Self {
            id: row.id,
            name: row.name,
            created: row.created,
            state: "importing",
            settings: row.settings,
            progress: None,
            content: None,
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

/// A file to import that lies on the controller's host.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ImportFile {
    /// The image's name: lower-case letters, digits, `.`, `-`, `_`; at most 63.
    #[schema(example = "debian-12")]
    name: String,
    /// A file's name in the controller's import directory (`import` in its data directory).
    #[schema(example = "debian-12.qcow2")]
    file: String,
    /// How the system is told its settings: `cidata` (cloud-init's NoCloud, the default) or `none`.
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
    /// How the system is told its settings: `cidata` (cloud-init's NoCloud, the default) or `none`.
    #[param(value_type = Option<String>)]
    settings: Option<Settings>,
    /// Firmware modes it boots in, separated by commas, when its partition table does not
    /// tell: `bios`, `uefi`, `bios,uefi`.
    firmware: Option<String>,
}

fn request(name: String, settings: Option<Settings>, firmware: Option<Vec<Firmware>>) -> Result<Request, Error> {
    check_name("/name", &name)?;
    let firmware = firmware.map(|mut modes| {
        modes.sort_unstable();
        modes.dedup();
        modes
    });
    if firmware.as_ref().is_some_and(Vec::is_empty) {
        return Err(Error::invalid("/firmware", "name at least one mode, or leave it out"));
    }
    Ok(Request { name, settings: settings.unwrap_or(Settings::Cidata), firmware })
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
#[utoipa::path(get, path = "/v1/images/{image}", tag = "images",
    params(("image" = String, Path, description = "Id or name.")), responses((status = 200, body = Image)))]
pub(super) async fn show(State(app): State<App>, Path(image): Path<String>) -> Result<impl IntoResponse, Error> {
    Ok(axum::Json(Image::from(app.store.image(&image).await?)))
}

/// Import a file of the controller's host
///
/// A raw or qcow2 file in the controller's import directory. The answer comes at once; follow
/// the image until its state is `ready` or `failed`. Importing the same contents again stores
/// nothing twice.
#[utoipa::path(post, path = "/v1/images", tag = "images", request_body = ImportFile,
    responses((status = 202, body = Image, headers(("Location" = String, description = "The image.")))))]
pub(super) async fn import(State(app): State<App>, Json(body): Json<ImportFile>) -> Result<impl IntoResponse, Error> {
    let request = request(body.name, body.settings, body.firmware)?;
    Ok(accepted(app.images.import_file(request, &body.file).await?))
}

/// Upload and import an image
///
/// The body is a raw or qcow2 file of any length up to the controller's limit. The answer
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
    let request = request(image, parameters.settings, firmware)?;
    let len = headers.get(header::CONTENT_LENGTH).and_then(|len| len.to_str().ok()).and_then(|len| len.parse().ok());
    Ok(accepted(app.images.import_upload(request, len, body.into_data_stream()).await?))
}

/// Delete an image
///
/// Refused while a machine runs it or a run needs it. Its bytes are removed unless another
/// image shares them.
#[utoipa::path(delete, path = "/v1/images/{image}", tag = "images",
    params(("image" = String, Path, description = "Id or name.")), responses((status = 204)))]
pub(super) async fn delete(State(app): State<App>, Path(image): Path<String>) -> Result<impl IntoResponse, Error> {
    let mut tx = app.store.begin().await?;
    let image = tx.image(&image).await?;
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
