//! `/v1/racks/{rack}/bmcs`: how the BMCs of a rack's machines are reached, and what they tell.
//!
//! Below the rack and not below the machine: a BMC is its operator's, also while the machine is a
//! tenant's.

use axum::{
    Extension,
    extract::{Path, State},
    http::StatusCode,
    response::IntoResponse,
};
use jiff::Timestamp;
use rackhand_common::{
    bmc::{Access, At, Identity, Look, MAX_PASSWORD, MAX_USER, NoProtocol, Protocol, Seen, Standing},
    id,
    machine::Mainboard,
    wire::ControllerResponse,
};
use rackhand_controller_core::access::Action;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    App, Caller, Error,
    extract::{Expected, Json, Page, Query, Window, parse, tagged},
    machines::{Nothing, accepted},
    runs::Run,
};
use crate::{
    rotations,
    store::{self, Thing, Tx},
};

/// Digits of a fingerprint.
const FINGERPRINT: usize = 64;

/// How the BMC of a machine is reached. Its password is never shown.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BmcAccess {
    /// The machine.
    #[schema(value_type = uuid::Uuid)]
    machine: id::MachineId,
    /// What the machine is called.
    #[schema(example = "web-1")]
    machine_name: String,
    /// Its address, with a port when it is not its protocol's own.
    #[schema(example = "10.20.0.5")]
    address: String,
    /// What it is asked in: `redfish`, `ipmi`, or `either` of them, Redfish when it answers to it.
    #[schema(example = "either")]
    protocol: &'static str,
    /// Who logs in.
    #[schema(example = "rackhand")]
    user: String,
    /// SHA-256 of the certificate it has to show; absent: the one it shows first.
    fingerprint: Option<String>,
    /// Since when it is so.
    #[schema(value_type = String, format = DateTime)]
    changed: Timestamp,
    /// When it got another password last.
    #[schema(value_type = Option<String>, format = DateTime)]
    rotated: Option<Timestamp>,
    /// The change of its password that was asked for, as long as it is not done.
    rotation: Option<BmcRotation>,
    /// Logins that were denied since one was taken, as far as the rack's agent says.
    denied: Option<u32>,
    /// Until when it is not logged in to, so that its account is not locked.
    #[schema(value_type = Option<String>, format = DateTime)]
    rests_until: Option<Timestamp>,
    /// What it told of itself last, when that is another mainboard than the machine's: nothing is
    /// changed by it. The other side is `mainboard`.
    #[schema(value_type = Option<Object>)]
    other: Option<Identity>,
    /// The mainboard that it has to be on.
    #[schema(value_type = Option<Object>)]
    mainboard: Option<Mainboard>,
}

/// A change of a BMC's password that is not done.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BmcRotation {
    /// Since when it is asked for.
    #[schema(value_type = String, format = DateTime)]
    since: Timestamp,
    /// What it waits for.
    detail: Option<String>,
    /// Why it was given up: it goes on when it is asked for again.
    failed: Option<String>,
    /// Whether the BMC may have the new password already. The rack's agent finds that out.
    is_begun: bool,
}

/// How the BMC of a machine is to be reached.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewBmcAccess {
    /// Its address, with a port when it is not its protocol's own.
    #[schema(example = "10.20.0.5")]
    pub(super) address: String,
    /// What it is asked in: `redfish`, `ipmi`, or `either` of them, Redfish when it answers to it.
    #[schema(example = "either", default = "either")]
    pub(super) protocol: Option<String>,
    /// Who logs in: at most 16 letters.
    #[schema(example = "rackhand")]
    pub(super) user: String,
    /// The password, at most 20 letters; it is never shown again.
    #[schema(example = "correct horse")]
    pub(super) password: String,
    /// SHA-256 of the certificate it has to show, in hexadecimal, with or without colons; when
    /// absent the one it shows first is the only one from then on.
    pub(super) fingerprint: Option<String>,
}

impl BmcAccess {
    fn of(row: store::StoredBmc) -> Self {
        let store::StoredBmc { machine_name, access, changed, rotated, rotation, next, .. } = row;
        let is_begun = next.is_some_and(|next| next.is_begun);
        Self {
            machine: access.machine,
            machine_name,
            address: access.at.to_string(),
            protocol: access.protocol.word(),
            user: access.user,
            fingerprint: access.fingerprint,
            changed,
            rotated,
            rotation: rotation.map(|store::Rotation { since, detail, failed }| BmcRotation {
                since,
                detail,
                failed,
                is_begun,
            }),
            denied: None,
            rests_until: None,
            other: None,
            mainboard: access.mainboard,
        }
    }

    /// With what the rack's agent knows of it.
    fn standing(self, standings: &[Standing]) -> Self {
        let Some(standing) = standings.iter().find(|standing| standing.machine == self.machine) else { return self };
        let Standing { denied, rests_until, other, .. } = standing.clone();
        Self { denied: Some(denied), rests_until, other, ..self }
    }
}

impl NewBmcAccess {
    /// The same checked, for a machine with this mainboard.
    pub(super) fn access(self, machine: id::MachineId, mainboard: Option<Mainboard>) -> Result<Access, Error> {
        let at: At = self.address.parse().map_err(|error| Error::invalid("/address", error))?;
        if at.address.is_unspecified() || at.address.is_multicast() {
            return Err(Error::invalid("/address", "is not one that a BMC can have"));
        }
        let protocol = match self.protocol.as_deref() {
            None => Protocol::Either,
            Some(word) => word.parse().map_err(|error: NoProtocol| Error::invalid("/protocol", error))?,
        };
        if protocol == Protocol::Either && at.port.is_some() {
            return Err(Error::invalid("/protocol", "has to be named with a port: it is one protocol's"));
        }
        check_word("/user", &self.user, MAX_USER)?;
        check_word("/password", &self.password, MAX_PASSWORD)?;
        let fingerprint = self.fingerprint.map(|text| digits(&text)).transpose()?;
        let (user, password) = (self.user, self.password);
        Ok(Access { machine, at, protocol, user, password, fingerprint, mainboard })
    }
}

/// BMCs take ASCII, and IPMI ends both with a zero.
fn check_word(field: &str, word: &str, most: usize) -> Result<(), Error> {
    let is_right = (1..=most).contains(&word.len()) && word.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    is_right.then_some(()).ok_or_else(|| Error::invalid(field, format!("is 1 to {most} printable ASCII letters")))
}

fn digits(text: &str) -> Result<String, Error> {
    let digits = text.replace(':', "").to_ascii_lowercase();
    let is_right = digits.len() == FINGERPRINT && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_right.then_some(digits).ok_or_else(|| Error::invalid("/fingerprint", "is 64 hexadecimal digits"))
}

/// The machine, when it is one of this rack; whether the caller may do this with the rack was decided.
async fn of_rack(app: &App, caller: &Caller, rack: &str, machine: &str) -> Result<store::Machine, Error> {
    let rack = caller.rack(app, rack).await?;
    let found = app.store.machine(machine).await?;
    in_rack(found, rack, machine)
}

fn in_rack(found: store::Machine, rack: id::RackId, machine: &str) -> Result<store::Machine, Error> {
    let elsewhere = || Error::not_found(format!("no machine of this rack has the id or name {machine}"));
    (found.rack == rack).then_some(found).ok_or_else(elsewhere)
}

/// The same in a transaction, in which the caller may do this with the rack.
async fn held(
    caller: &Caller,
    tx: &mut Tx,
    action: Action,
    rack: &str,
    machine: &str,
) -> Result<store::Machine, Error> {
    let standing = caller.check_in(tx, action, Thing::Rack, rack).await?;
    let rack = standing.id.parse().map_err(Error::internal)?;
    let found = tx.machine(machine).await?;
    in_rack(found, rack, machine)
}

/// List a rack's BMCs
///
/// In the order in which their machines were discovered.
#[utoipa::path(get, path = "/v1/racks/{rack}/bmcs", tag = "bmcs",
    params(("rack" = String, Path, description = "Id or name."), Window),
    responses((status = 200, body = Page<BmcAccess>)))]
pub(super) async fn list(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(rack): Path<String>,
    Query(window): Query<Window>,
) -> Result<impl IntoResponse, Error> {
    let limit = window.limit()?;
    let rack = caller.rack(&app, &rack).await?;
    let after = parse("after", window.after.as_deref())?;
    let rows = app.store.bmcs(rack, after, limit + 1).await?;
    let standings = if rows.is_empty() { Vec::new() } else { (app.standings)(rack).await };
    let cursor = |row: &store::StoredBmc| row.access.machine.to_string();
    Ok(axum::Json(Page::of(rows, limit, cursor, |row| BmcAccess::of(row).standing(&standings))))
}

/// Show how a machine's BMC is reached
#[utoipa::path(get, path = "/v1/racks/{rack}/bmcs/{machine}", tag = "bmcs",
    params(("rack" = String, Path, description = "Id or name."), ("machine" = String, Path, description = "Id or name.")),
    responses((status = 200, body = BmcAccess)))]
pub(super) async fn show(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path((rack, machine)): Path<(String, String)>,
) -> Result<impl IntoResponse, Error> {
    let machine = of_rack(&app, &caller, &rack, &machine).await?;
    let row = app.store.bmc(machine.id).await?;
    let standings = (app.standings)(machine.rack).await;
    Ok(tagged(row.version, BmcAccess::of(row).standing(&standings)))
}

/// Say how a machine's BMC is reached
///
/// From then on its agent switches the machine by its BMC, in place of a power command that is
/// configured on the node.
#[utoipa::path(put, path = "/v1/racks/{rack}/bmcs/{machine}", tag = "bmcs", request_body = NewBmcAccess,
    params(("rack" = String, Path, description = "Id or name."), ("machine" = String, Path, description = "Id or name.")),
    responses((status = 200, body = BmcAccess)))]
pub(super) async fn set(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path((rack, machine)): Path<(String, String)>,
    expected: Expected,
    Json(body): Json<NewBmcAccess>,
) -> Result<impl IntoResponse, Error> {
    let mut tx = app.store.begin().await?;
    let machine = held(&caller, &mut tx, Action::RackManage, &rack, &machine).await?;
    let access = body.access(machine.id, machine.mainboard())?;
    let known = tx.bmc(machine.id).await?;
    expected.check(known.map_or(0, |known| known.version))?;
    tx.reach_bmc(app.clock.now().wall, &machine, &access).await?;
    let row = tx.bmc(machine.id).await?.ok_or(store::StoreError::NotFound("BMC of this machine"))?;
    tx.commit().await?;
    (app.changed)(machine.rack);
    Ok(tagged(row.version, BmcAccess::of(row)))
}

/// Give a machine's BMC another password
///
/// A random one, which nobody sees. The rack's agent sets it in the account that it logs in with,
/// logs in anew to prove it, and only then the one before is forgotten: interrupted anywhere, one of
/// both is known to work, and the next request goes on. `rotation` of the BMC tells how far it is;
/// it is absent when it is done.
#[utoipa::path(post, path = "/v1/racks/{rack}/bmcs/{machine}/rotate", tag = "bmcs",
    params(("rack" = String, Path, description = "Id or name."), ("machine" = String, Path, description = "Id or name.")),
    responses((status = 202, body = BmcAccess)))]
pub(super) async fn rotate(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path((rack, machine)): Path<(String, String)>,
) -> Result<impl IntoResponse, Error> {
    let mut tx = app.store.begin().await?;
    let machine = held(&caller, &mut tx, Action::RackManage, &rack, &machine).await?;
    tx.begin_rotation(app.clock.now().wall, &machine, &rotations::fresh()).await?;
    let row = tx.bmc(machine.id).await?.ok_or(store::StoreError::NotFound("BMC of this machine"))?;
    tx.commit().await?;
    (app.changed)(machine.rack);
    Ok((StatusCode::ACCEPTED, tagged(row.version, BmcAccess::of(row))))
}

/// Have a machine's BMC let us in again
///
/// For a BMC that takes the password no more that is known, or has lost its user. Starts a run in which the
/// machine's installer sets user and a fresh password in-band, enables the user, has it be an administrator on the
/// BMC's LANs, and opens those; then the rack's agent logs in with it, and only then the one before is forgotten.
/// For machines that nobody's system runs on: `ready`, `maintenance`, `quarantined`. An installer that is not there
/// is waited for: the machine has to be switched by hand when its BMC does not.
#[utoipa::path(post, path = "/v1/racks/{rack}/bmcs/{machine}/regain", tag = "bmcs", request_body = Nothing,
    params(("rack" = String, Path, description = "Id or name."), ("machine" = String, Path, description = "Id or name.")),
    responses((status = 202, body = Run, headers(("Location" = String, description = "The run.")))))]
pub(super) async fn regain(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path((rack, machine)): Path<(String, String)>,
    Json(Nothing {}): Json<Nothing>,
) -> Result<impl IntoResponse, Error> {
    let mut tx = app.store.begin().await?;
    let machine = held(&caller, &mut tx, Action::RackManage, &rack, &machine).await?;
    let run = tx.start_regain_bmc(app.clock.now().wall, &machine).await?;
    tx.commit().await?;
    Ok(accepted(&app, run, Vec::new()))
}

/// Forget how a machine's BMC is reached
#[utoipa::path(delete, path = "/v1/racks/{rack}/bmcs/{machine}", tag = "bmcs",
    params(("rack" = String, Path, description = "Id or name."), ("machine" = String, Path, description = "Id or name.")),
    responses((status = 204)))]
pub(super) async fn remove(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path((rack, machine)): Path<(String, String)>,
    expected: Expected,
) -> Result<impl IntoResponse, Error> {
    let mut tx = app.store.begin().await?;
    let machine = held(&caller, &mut tx, Action::RackManage, &rack, &machine).await?;
    let known = tx.bmc(machine.id).await?.ok_or(store::StoreError::NotFound("BMC of this machine"))?;
    expected.check(known.version)?;
    tx.delete_bmc(&machine).await?;
    tx.commit().await?;
    (app.changed)(machine.rack);
    Ok(StatusCode::NO_CONTENT)
}

/// Ask a machine's BMC now
///
/// `identity` (what and whose it is, the machine's power), `sensors`, `log` (the hardware's event
/// log, oldest entry first) or `parts`. The rack's agent asks; what the BMC told and could not be
/// understood is under `skipped`.
#[utoipa::path(get, path = "/v1/racks/{rack}/bmcs/{machine}/{what}", tag = "bmcs",
    params(("rack" = String, Path, description = "Id or name."), ("machine" = String, Path, description = "Id or name."),
        ("what" = String, Path, description = "`identity`, `sensors`, `log` or `parts`.")),
    responses((status = 200, description = "What it told, under the name of what was asked.", body = Object)))]
pub(super) async fn look(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path((rack, machine, what)): Path<(String, String, String)>,
) -> Result<impl IntoResponse, Error> {
    let look = match what.as_str() {
        "identity" => Look::Identity,
        "sensors" => Look::Sensors,
        "log" => Look::Log,
        "parts" => Look::Parts,
        _ => return Err(Error::not_found("a BMC is asked for `identity`, `sensors`, `log` or `parts`")),
    };
    let machine = of_rack(&app, &caller, &rack, &machine).await?;
    app.store.bmc(machine.id).await?;
    let seen = match (app.look)(machine.rack, machine.id, look).await.map_err(Error::unavailable)? {
        ControllerResponse::Seen(json) => serde_json::from_str::<Seen>(&json).map_err(Error::internal)?,
        ControllerResponse::Refused(reason) => return Err(Error::unavailable(reason)),
        ControllerResponse::NotUnderstood(_) => {
            return Err(Error::unavailable(
                "the rack's agent is of an earlier version and cannot ask BMCs: upgrade it",
            ));
        }
        other => {
            return Err(Error::unavailable(format!("the rack's agent gave an answer that does not fit: {other:?}")));
        }
    };
    Ok(axum::Json(seen))
}
