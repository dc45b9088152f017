//! Logging in to a machine beside its own system, and back.

use axum::{
    Extension,
    extract::{Path, State},
    response::IntoResponse,
};
use jiff::{SignedDuration, Timestamp};
use rackhand_common::event;
use rackhand_controller_core::access::Action;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    App, Caller, Error,
    extract::{Expected, Json},
    machines::{Nothing, accepted, check_keys, held},
    runs::Run,
};
use crate::verbs::RescueRequest;

/// How long a rescue takes when nobody says how long.
const USUAL: SignedDuration = SignedDuration::from_hours(24);

/// The longest it may be meant to take: the machine's own system stands still meanwhile.
const LONGEST: SignedDuration = SignedDuration::from_hours(30 * 24);

/// Who is let in, and until when.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Rescue {
    /// Public keys of those who may log in as root, each a line as in `authorized_keys`; absent: those that
    /// the machine was deployed with.
    #[schema(example = json!(["ssh-ed25519 AAAA… me@laptop"]))]
    ssh_keys: Option<Vec<String>>,
    /// When somebody means to be done, at most 30 days from now; absent: in 24 hours.
    #[schema(value_type = Option<String>, format = DateTime)]
    until: Option<Timestamp>,
}

/// Where a rescue system is reached.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RescueLogin {
    /// User to log in as.
    #[schema(example = "root")]
    user: &'static str,
    /// Its address on the provisioning network.
    #[schema(value_type = String, example = "10.77.0.100")]
    address: std::net::Ipv4Addr,
    /// TCP port.
    #[schema(example = 22)]
    port: u16,
    /// Fingerprint of its host key, to compare with what `ssh` shows at the first connection. Each start of
    /// the rescue system has another.
    #[schema(example = "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU")]
    host_key: String,
}

impl From<event::Login> for RescueLogin {
    fn from(event::Login { address, port, host_key }: event::Login) -> Self {
        Self { user: "root", address, port, host_key }
    }
}

/// Rescue a machine
///
/// Starts a run that takes an active machine out of its system and into one in memory, which its owner
/// logs in to over SSH with their keys; nothing is written to its disks. It stays its project's, with its
/// addresses. The machine's `rescue` says where to log in, and by which host key the rescue system is known.
/// It does not end by itself: once `until` has passed the machine has an alert. A run that fails or is
/// cancelled has the machine's own system run again. In rescue already, it begins anew.
#[utoipa::path(post, path = "/v1/machines/{machine}/rescue", tag = "machines", request_body = Rescue,
    params(("machine" = String, Path, description = "Id or name.")),
    responses((status = 202, body = Run, headers(("Location" = String, description = "The run.")))))]
pub(super) async fn rescue(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(machine): Path<String>,
    expected: Expected,
    Json(body): Json<Rescue>,
) -> Result<impl IntoResponse, Error> {
    let now = app.clock.now().wall;
    let latest = now.checked_add(LONGEST).map_err(|_| Error::invalid("/until", "is beyond all time"))?;
    let until = match body.until {
        Some(until) if until <= now => return Err(Error::invalid("/until", "has passed already")),
        Some(until) if until > latest => return Err(Error::invalid("/until", "at most 30 days from now")),
        Some(until) => until,
        None => now.checked_add(USUAL).unwrap_or(latest),
    };
    let mut tx = app.store.begin().await?;
    let machine = held(&caller, &mut tx, Action::MachineDeploy, &machine).await?;
    expected.check(machine.version)?;
    let ssh_keys = match body.ssh_keys {
        Some(keys) => keys,
        None => {
            let last = tx.last_install(machine.id).await?;
            let install = last.as_ref().and_then(|run| run.parameters.install());
            install.map(|install| install.host.ssh_keys.clone()).unwrap_or_default()
        }
    };
    check_keys(&ssh_keys)?;
    if ssh_keys.is_empty() {
        return Err(Error::invalid(
            "/ssh_keys",
            "is needed: the machine was deployed with no key, and nobody could log in",
        ));
    }
    let run = tx.start_rescue(now, &machine, RescueRequest { ssh_keys, until }).await?;
    tx.commit().await?;
    Ok(accepted(&app, run, Vec::new()))
}

/// Leave rescue
///
/// Starts a run that has the rescue system restart the machine into its own system. Whoever is logged in
/// is cut off; what they wrote is on the disks. A rescue system that is not there any more is switched off
/// and on.
#[utoipa::path(post, path = "/v1/machines/{machine}/leave-rescue", tag = "machines", request_body = Nothing,
    params(("machine" = String, Path, description = "Id or name.")),
    responses((status = 202, body = Run, headers(("Location" = String, description = "The run.")))))]
pub(super) async fn leave_rescue(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(machine): Path<String>,
    expected: Expected,
    Json(Nothing {}): Json<Nothing>,
) -> Result<impl IntoResponse, Error> {
    let mut tx = app.store.begin().await?;
    let machine = held(&caller, &mut tx, Action::MachineDeploy, &machine).await?;
    expected.check(machine.version)?;
    let run = tx.start_leave_rescue(app.clock.now().wall, &machine).await?;
    tx.commit().await?;
    Ok(accepted(&app, run, Vec::new()))
}
