//! `/v1/operating-systems`: the catalogue, which comes with the controller.

use axum::{extract::Path, response::IntoResponse};
use rackhand_common::{image::Settings, machine::Firmware};
use rackhand_controller_core::os::{self, Active, System, Tried};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Error,
    extract::{Page, Query, Window},
};

/// An operating system of the catalogue.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct OperatingSystem {
    /// Its name, which an import is given as `os`.
    #[schema(example = "debian-12")]
    name: String,
    /// What people call it.
    #[schema(example = "Debian 12 (bookworm)")]
    title: String,
    /// Whose it is, or is like: `debian`, `ubuntu`, `rhel`, `flatcar`.
    #[schema(example = "debian")]
    family: String,
    /// Its release.
    #[schema(example = "12")]
    version: String,
    /// Firmware modes its images start in: `bios`, `uefi`.
    #[schema(value_type = Vec<String>)]
    firmware: Vec<Firmware>,
    /// The user besides root whom the deploy's keys let in.
    #[schema(example = "debian")]
    default_user: String,
    /// The smallest disk it is of use on, in bytes.
    minimum_disk: u64,
    /// How it is told its settings: `cidata`, `config-2`, `ignition`, `none`.
    #[schema(value_type = String, example = "cidata")]
    settings: Settings,
    /// Whether a deploy can tell it its settings.
    settings_are_written: bool,
    /// What tells that it runs: `phoned-home`, or `started`, which is only that its disk was.
    #[schema(value_type = String, example = "phoned-home")]
    active: Active,
    /// `booted`: installed, booted and logged in to before every release; `no`: written down from its
    /// makers' documentation.
    #[schema(value_type = String, example = "booted")]
    tried: Tried,
    /// Where images of it come from.
    source: String,
    /// Whether there is a kickstart that makes an image of it.
    has_kickstart: bool,
}

impl From<System> for OperatingSystem {
    fn from(system: System) -> Self {
        Self {
            settings_are_written: system.settings != Settings::None,
            has_kickstart: system.kickstart.is_some(),
            name: system.name,
            title: system.title,
            family: system.family,
            version: system.version,
            firmware: system.firmware,
            default_user: system.default_user,
            minimum_disk: u64::from(system.minimum_disk_gib) << 30,
            settings: system.settings,
            active: system.active,
            tried: system.tried,
            source: system.source,
        }
    }
}

/// List operating systems
///
/// The catalogue, by name.
#[utoipa::path(get, path = "/v1/operating-systems", tag = "images", params(Window),
    responses((status = 200, body = Page<OperatingSystem>)))]
pub(super) async fn list(Query(window): Query<Window>) -> Result<impl IntoResponse, Error> {
    let limit = window.limit()?;
    let after = window.after.unwrap_or_default();
    let rows: Vec<_> = os::catalogue().into_iter().filter(|system| system.name > after).collect();
    Ok(axum::Json(Page::of(rows, limit, |system| system.name.clone(), OperatingSystem::from)))
}

/// Show one operating system
#[utoipa::path(get, path = "/v1/operating-systems/{os}", tag = "images",
    params(("os" = String, Path, description = "Name.")), responses((status = 200, body = OperatingSystem)))]
pub(super) async fn show(Path(os): Path<String>) -> Result<impl IntoResponse, Error> {
    Ok(axum::Json(OperatingSystem::from(find(&os)?)))
}

/// Show an operating system's kickstart
///
/// What makes an image of it for servers: a virtual machine is installed with it, and its disk is
/// imported. Of systems of the family `rhel`.
#[utoipa::path(get, path = "/v1/operating-systems/{os}/kickstart", tag = "images",
    params(("os" = String, Path, description = "Name.")),
    responses((status = 200, content_type = "text/plain", body = String)))]
pub(super) async fn kickstart(Path(os): Path<String>) -> Result<String, Error> {
    let none = || Error::not_found(format!("there is no kickstart of `{os}`: import an image that its makers publish"));
    find(&os)?.kickstart().ok_or_else(none)
}

fn find(os: &str) -> Result<System, Error> {
    os::find(os).ok_or_else(|| Error::not_found(format!("the catalogue has no `{os}`")))
}
