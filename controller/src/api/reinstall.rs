//! A system anew, on a machine that keeps its owner.

use axum::{
    Extension,
    extract::{Path, State},
    response::IntoResponse,
};
use rackhand_common::intent::DiskRule;
use rackhand_controller_core::access::Action;
use serde::Deserialize;
use utoipa::ToSchema;

use super::{
    App, Caller, Error,
    extract::{Expected, Json},
    machines::{Deploy, accepted, held, request},
    runs::Run,
};
use crate::{
    store::{self, OrderEnd},
    verbs::Denied,
};

/// What is to be installed in place of what runs; whatever is absent is as it was.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Reinstall {
    /// The image: a name for its newest version that is ready, a name and version, or an id.
    #[schema(example = "debian-12")]
    image: Option<String>,
    /// Host name (an RFC 1123 label).
    #[schema(example = "web-1")]
    hostname: Option<String>,
    /// Public keys of those who may log in, each a line as in `authorized_keys`.
    ssh_keys: Option<Vec<String>>,
    /// User data, at most 512 KiB. What was given before is forgotten: say it again, or say that there is
    /// none by an empty text.
    user_data: Option<String>,
    /// Identity of the disk to install on.
    disk: Option<String>,
}

/// Reinstall a machine
///
/// Starts a run that takes an active machine out of its system and installs one anew, with the image,
/// keys and disk it had unless others are named. It stays its project's, with its addresses; disks that
/// the system was not installed on are not touched. **What is on the system's own disk is lost.** A run
/// that fails or is cancelled before anything was written has the old system run again.
#[utoipa::path(post, path = "/v1/machines/{machine}/reinstall", tag = "machines", request_body = Reinstall,
    params(("machine" = String, Path, description = "Id or name.")),
    responses((status = 202, body = Run, headers(("Location" = String, description = "The run.")))))]
pub(super) async fn reinstall(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(machine): Path<String>,
    expected: Expected,
    Json(body): Json<Reinstall>,
) -> Result<impl IntoResponse, Error> {
    let mut tx = app.store.begin().await?;
    let machine = held(&caller, &mut tx, Action::MachineDeploy, &machine).await?;
    expected.check(machine.version)?;
    // Only a release leads out of `active`: it is of the system that runs.
    let last = tx.last_install(machine.id).await?;
    let before = last.as_ref().and_then(|run| run.parameters.install());
    if body.user_data.is_none() && before.is_some_and(|before| before.user_data_forgotten) {
        return Err(Denied::UserDataForgotten.into());
    }
    let image = match (body.image, before) {
        (Some(image), _) => image,
        (None, Some(before)) => before.image_name.clone(),
        (None, None) => return Err(Error::invalid("/image", "is needed: what was installed here is not known")),
    };
    let deploy = Deploy {
        hostname: body.hostname.or_else(|| before.map(|before| before.host.name.clone())),
        ssh_keys: body.ssh_keys.or_else(|| before.map(|before| before.host.ssh_keys.clone())).unwrap_or_default(),
        user_data: body.user_data.filter(|data| !data.is_empty()),
        disk: body.disk.or_else(|| last.as_ref().and_then(disk)),
        project: None,
        image,
    };
    let (name, request) = (deploy.image.clone(), request(deploy, &machine.name)?);
    let image = tx.image(&name).await?;
    let run = tx.start_reinstall(app.clock.now().wall, &machine, &image, request).await?;
    tx.commit().await?;
    let warnings = image.deprecated.then(|| format!("image {} is deprecated", image.named()));
    Ok(accepted(&app, run, warnings.into_iter().collect()))
}

/// The disk that a run installed on.
fn disk(run: &store::Run) -> Option<String> {
    match (&run.result.as_ref()?.end, &run.parameters.install()?.disk) {
        (OrderEnd::Done(disks), _) => disks.first().map(|work| work.disk.clone()),
        (OrderEnd::Failed { .. }, DiskRule::Identity(identity)) => Some(identity.clone()),
        (OrderEnd::Failed { .. }, DiskRule::Smallest) => None,
    }
}
