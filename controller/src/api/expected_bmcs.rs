//! `/v1/racks/{rack}/expected-bmcs`: BMCs as a manifest says, also of machines that nobody has seen yet.

use std::collections::HashSet;

use axum::{
    Extension,
    extract::{Path, State},
    http::StatusCode,
    response::IntoResponse,
};
use jiff::Timestamp;
use rackhand_common::{
    bmc::Access,
    id::{MachineId, RackId},
};
use rackhand_controller_core::access::Action;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    App, Caller, Error,
    bmcs::NewBmcAccess,
    extract::{Json, Page, Query, Window},
};
use crate::{
    rotations,
    store::{self, ExpectedBmc, Thing, Tx},
};

/// So many BMCs can be told of in one request.
const MOST: usize = 1000;

/// The longest serial number.
const SERIAL: usize = 64;

/// A BMC that waits for its machine. Its password is never shown.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Expected {
    /// Serial number of the machine's mainboard.
    #[schema(example = "7G00001")]
    serial: String,
    /// Its address, with a port when it is not its protocol's own.
    #[schema(example = "10.20.0.5")]
    address: String,
    /// What it is asked in.
    #[schema(example = "either")]
    protocol: &'static str,
    /// Who logs in.
    #[schema(example = "root")]
    user: String,
    /// Whether it is given another password as soon as its machine is known.
    rotate: bool,
    /// Since when it waits.
    #[schema(value_type = String, format = DateTime)]
    since: Timestamp,
}

/// What a manifest says of BMCs.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    /// The BMCs, at most 1000.
    bmcs: Vec<ManifestRow>,
    /// Give each another password as soon as it can be.
    #[serde(default)]
    rotate: bool,
    /// Take what is right although other rows are wrong.
    #[serde(default)]
    partial: bool,
    /// From now on, log in to BMCs that are found in this rack and that no manifest tells of with what
    /// their vendor gives them in the factory, and give each another password once it is known whose it
    /// is; or do not. As it was when absent.
    try_factory: Option<bool>,
}

/// What a manifest says of one BMC.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ManifestRow {
    /// Where it stands in the file: wrong ones are named by it.
    line: Option<u32>,
    /// Id or name of its machine, when that is known.
    #[schema(example = "web-1")]
    machine: Option<String>,
    /// Serial number of its machine's mainboard: it waits for that when it is not known.
    #[schema(example = "7G00001")]
    serial: Option<String>,
    /// Its address, with a port when it is not its protocol's own.
    #[schema(example = "10.20.0.5")]
    address: String,
    /// What it is asked in.
    #[schema(example = "either", default = "either")]
    protocol: Option<String>,
    /// Who logs in.
    #[schema(example = "root")]
    user: String,
    /// The password it came with.
    #[schema(example = "calvin")]
    password: String,
    /// SHA-256 of the certificate it has to show, in hexadecimal.
    fingerprint: Option<String>,
}

/// What became of a manifest.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(super) struct Imported {
    /// BMCs of known machines, which are reached by them from now on.
    set: u32,
    /// BMCs that wait for their machines.
    waiting: u32,
    /// BMCs that were reached like that already; also those that have another password since.
    unchanged: u32,
    /// Rows that were wrong.
    refused: Vec<RefusedRow>,
}

/// A row of a manifest that was wrong.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RefusedRow {
    /// Where it stands in the file, or its number from 1.
    line: u32,
    /// What is wrong with it.
    detail: String,
}

/// What is there already.
struct There {
    rack: RackId,
    machines: Vec<store::Machine>,
    bmcs: Vec<store::StoredBmc>,
    named: HashSet<String>,
    addresses: HashSet<String>,
}

enum Taken {
    Set,
    Waiting,
    Unchanged,
}

impl There {
    async fn take(&mut self, tx: &mut Tx, now: Timestamp, row: ManifestRow, rotate: bool) -> Result<Taken, Error> {
        let ManifestRow { machine, serial, address, protocol, user, password, fingerprint, .. } = row;
        let serial = serial.map(|serial| serial.trim().to_owned()).filter(|serial| !serial.is_empty());
        if let Some(serial) = &serial
            && (serial.len() > SERIAL || !serial.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' '))
        {
            return Err(Error::invalid("/serial", format!("is at most {SERIAL} printable ASCII letters")));
        }
        let has_serial = |machine: &&store::Machine| {
            serial.is_some() && machine.mainboard().map(|mainboard| mainboard.serial) == serial
        };
        let known = match (&machine, &serial) {
            (None, None) => return Err(Error::invalid("/machine", "or `serial` is needed: whose BMC is it?")),
            (None, Some(_)) => self.machines.iter().find(has_serial),
            (Some(name), _) => {
                let named = |machine: &&store::Machine| machine.name == *name || machine.id.to_string() == *name;
                let found = self.machines.iter().find(named);
                let found =
                    found.ok_or_else(|| Error::invalid("/machine", "is the id or name of no machine of this rack"))?;
                let told = found.mainboard().map(|mainboard| mainboard.serial).filter(|told| !told.is_empty());
                if let (Some(serial), Some(told)) = (&serial, told)
                    && *serial != told
                {
                    let both = format!("is {serial} here, and {name} has a mainboard with the serial number {told}");
                    return Err(Error::invalid("/serial", both));
                }
                Some(found)
            }
        };
        let wanted = NewBmcAccess { address, protocol, user, password, fingerprint };
        let (id, mainboard) = match known {
            Some(machine) => (machine.id, machine.mainboard()),
            None => (MachineId::fresh(), None),
        };
        let access = wanted.access(id, mainboard)?;
        let who = known.map_or_else(|| serial.clone().unwrap_or_default(), |machine| machine.id.to_string());
        if !self.named.insert(who) {
            return Err(Error::invalid("/serial", "names a machine that another row names as well"));
        }
        if !self.addresses.insert(access.at.to_string()) {
            return Err(Error::invalid("/address", "is in another row as well"));
        }
        let Some(machine) = known else {
            let Access { at, protocol, user, password, fingerprint, .. } = access;
            let serial = serial.unwrap_or_default();
            let expected =
                ExpectedBmc { rack: self.rack, serial, at, protocol, user, password, fingerprint, rotate, since: now };
            tx.expect_bmc(&expected).await?;
            return Ok(Taken::Waiting);
        };
        let is_same = |bmc: &store::StoredBmc| {
            let (known, wanted) = (&bmc.access, &access);
            let has_another = bmc.rotated.is_some() || bmc.next.as_ref().is_some_and(|next| next.is_begun);
            known.machine == machine.id
                && (known.at, known.protocol, &known.user) == (wanted.at, wanted.protocol, &wanted.user)
                && (known.password == wanted.password || has_another)
        };
        if self.bmcs.iter().any(is_same) {
            return Ok(Taken::Unchanged);
        }
        tx.reach_bmc(now, machine, &access).await?;
        if rotate {
            tx.begin_rotation(now, machine, &rotations::fresh()).await?;
        }
        Ok(Taken::Set)
    }
}

/// List the BMCs that wait for their machines
#[utoipa::path(get, path = "/v1/racks/{rack}/expected-bmcs", tag = "bmcs",
    params(("rack" = String, Path, description = "Id or name."), Window),
    responses((status = 200, body = Page<Expected>)))]
pub(super) async fn list(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(rack): Path<String>,
    Query(window): Query<Window>,
) -> Result<impl IntoResponse, Error> {
    let limit = window.limit()?;
    let rack = caller.rack(&app, &rack).await?;
    let rows = app.store.expected_bmcs(rack, window.after.as_deref(), limit + 1).await?;
    let view = |row: ExpectedBmc| Expected {
        serial: row.serial,
        address: row.at.to_string(),
        protocol: row.protocol.word(),
        user: row.user,
        rotate: row.rotate,
        since: row.since,
    };
    Ok(axum::Json(Page::of(rows, limit, |row| row.serial.clone(), view)))
}

/// Say how BMCs are reached as a manifest does
///
/// Each row names a machine, or the serial number of a mainboard: a machine that is known is reached
/// by its BMC from now on, and a BMC whose machine is not waits until that is discovered. The same
/// manifest again changes nothing, also when BMCs have other passwords by then. Nothing is taken when
/// a row is wrong, unless `partial` is said.
#[utoipa::path(post, path = "/v1/racks/{rack}/expected-bmcs", tag = "bmcs", request_body = Manifest,
    params(("rack" = String, Path, description = "Id or name.")), responses((status = 200, body = Imported)))]
pub(super) async fn import(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(rack): Path<String>,
    Json(body): Json<Manifest>,
) -> Result<impl IntoResponse, Error> {
    if body.bmcs.len() > MOST {
        return Err(Error::invalid("/bmcs", format!("are at most {MOST}")));
    }
    let now = app.clock.now().wall;
    let mut tx = app.store.begin().await?;
    let standing = caller.check_in(&mut tx, Action::RackManage, Thing::Rack, &rack).await?;
    let rack: RackId = standing.id.parse().map_err(Error::internal)?;
    let (machines, bmcs) = (tx.machines_of(rack).await?, tx.bmcs_of(rack).await?);
    let mut there = There { rack, machines, bmcs, named: HashSet::new(), addresses: HashSet::new() };
    let mut imported = Imported::default();
    for (row, number) in body.bmcs.into_iter().zip(1..) {
        let line = row.line.unwrap_or(number);
        match there.take(&mut tx, now, row, body.rotate).await {
            Ok(Taken::Set) => imported.set += 1,
            Ok(Taken::Waiting) => imported.waiting += 1,
            Ok(Taken::Unchanged) => imported.unchanged += 1,
            Err(error) if error.is_callers() => {
                imported.refused.push(RefusedRow { line, detail: error.detail().to_owned() });
            }
            Err(error) => return Err(error),
        }
    }
    if !imported.refused.is_empty() && !body.partial {
        let rows = imported.refused.iter().map(|row| format!("line {}: {}", row.line, row.detail));
        return Err(Error::invalid("/bmcs", rows.collect::<Vec<_>>().join("; ")));
    }
    if let Some(tries) = body.try_factory {
        tx.set_try_factory(rack, tries).await?;
    }
    tx.commit().await?;
    (app.changed)(rack);
    Ok(axum::Json(imported))
}

/// Forget the BMCs that wait for their machines
#[utoipa::path(delete, path = "/v1/racks/{rack}/expected-bmcs", tag = "bmcs",
    params(("rack" = String, Path, description = "Id or name.")), responses((status = 204)))]
pub(super) async fn forget(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(rack): Path<String>,
) -> Result<impl IntoResponse, Error> {
    let mut tx = app.store.begin().await?;
    let standing = caller.check_in(&mut tx, Action::RackManage, Thing::Rack, &rack).await?;
    tx.forget_expected_bmcs(standing.id.parse().map_err(Error::internal)?, None).await?;
    tx.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}
