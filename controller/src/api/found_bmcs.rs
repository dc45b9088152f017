//! `/v1/racks/{rack}/found-bmcs`: BMCs that answer on a rack's management network, and whose they are.

use axum::{
    Extension,
    extract::{Path, State},
    response::IntoResponse,
};
use jiff::Timestamp;
use rackhand_common::{bmc::Identity, id::MachineId, machine::Mac};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    App, Caller, Error,
    extract::{Page, Query, Window},
};
use crate::store::{ExpectedBmc, FoundBmc, StoredBmc, StoredLease};

/// A BMC that answers on the management network.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Found {
    /// Its address.
    #[schema(example = "10.20.0.5")]
    address: String,
    /// The port at which it speaks IPMI.
    #[schema(example = 623)]
    ipmi: Option<u16>,
    /// The port at which it speaks Redfish.
    #[schema(example = 443)]
    redfish: Option<u16>,
    /// Who made it, as it says to anybody.
    #[schema(example = "Dell")]
    vendor: Option<String>,
    /// What it is called, as it says to anybody.
    model: Option<String>,
    /// UUID of its Redfish service: often its own, and not the machine's.
    uuid: Option<Uuid>,
    /// SHA-256 of the certificate it shows, in hexadecimal.
    fingerprint: Option<String>,
    /// How it was found: `dhcp` when it was given its address by the rack's node, `range` when it was looked for
    /// where it is, and `manifest` when a manifest names its address.
    #[schema(example = json!(["dhcp"]))]
    found_by: Vec<&'static str>,
    /// Its Ethernet address, when the rack's node gave it its address.
    #[schema(value_type = Option<String>, example = "ac:1f:6b:00:00:01")]
    mac: Option<Mac>,
    /// The host name that it told then.
    hostname: Option<String>,
    /// The vendor class that it told then.
    #[schema(example = "udhcp 1.36.1")]
    vendor_class: Option<String>,
    /// By what it looked like a BMC then, in words.
    #[schema(example = "OUI of Supermicro")]
    known_by: Option<String>,
    /// When it was found.
    #[schema(value_type = String, format = DateTime)]
    first_seen: Timestamp,
    /// When it was told last that it answers: at least once an hour.
    #[schema(value_type = String, format = DateTime)]
    last_seen: Timestamp,
    /// `joined` when it is a machine's; `found` while it was not logged in to, `denied` when it did not
    /// take the password, `met` when its machine is not known, `disputed` when it is not agreed whose it
    /// is.
    #[schema(example = "joined")]
    state: &'static str,
    /// Why it is so, with both sides when that is disputed.
    detail: Option<String>,
    /// The machine it is of.
    #[schema(value_type = Option<Uuid>)]
    machine: Option<MachineId>,
    /// What that is called.
    #[schema(example = "web-1")]
    machine_name: Option<String>,
    /// What and whose it said it is when it was logged in to.
    #[schema(value_type = Option<Object>)]
    identity: Option<Identity>,
}

impl Found {
    fn of(row: FoundBmc, bmcs: &[StoredBmc], leases: &[StoredLease], expected: &[ExpectedBmc]) -> Self {
        let FoundBmc { found, first_seen, last_seen, intake, detail, met, .. } = row;
        let joined = bmcs.iter().find(|bmc| bmc.access.at.address == found.address);
        let machine = joined.map(|bmc| bmc.access.machine);
        let lease = leases.iter().map(|row| &row.lease).find(|lease| found.address == lease.address);
        let is_expected = expected.iter().any(|row| row.at.address == found.address);
        let way = if lease.is_some() { "dhcp" } else { "range" };
        let card = lease.map(|lease| lease.card.clone());
        Self {
            address: found.address.to_string(),
            ipmi: found.ipmi,
            redfish: found.redfish,
            vendor: found.vendor,
            model: found.model,
            uuid: found.uuid,
            fingerprint: found.fingerprint,
            found_by: [way].into_iter().chain(is_expected.then_some("manifest")).collect(),
            mac: card.as_ref().map(|card| card.mac),
            hostname: card.as_ref().and_then(|card| card.hostname.clone()),
            vendor_class: card.and_then(|card| card.vendor_class),
            known_by: lease.and_then(|lease| lease.known_by.clone()),
            first_seen,
            last_seen,
            state: if machine.is_some() { "joined" } else { intake.word() },
            detail: detail.filter(|_| machine.is_none()),
            machine,
            machine_name: joined.map(|bmc| bmc.machine_name.clone()),
            identity: met.map(|met| met.identity),
        }
    }
}

/// List the BMCs that were found in a rack
///
/// Those that answer in the networks that the rack's node looks in (`discovery.networks` in its
/// `agent.toml`), and those that were given an address by it (`[management]` in its `boot.toml`), in the order
/// of their addresses as text. One that is silent for three sweeps is no longer there.
#[utoipa::path(get, path = "/v1/racks/{rack}/found-bmcs", tag = "bmcs",
    params(("rack" = String, Path, description = "Id or name."), Window),
    responses((status = 200, body = Page<Found>)))]
pub(super) async fn list(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(rack): Path<String>,
    Query(window): Query<Window>,
) -> Result<impl IntoResponse, Error> {
    let limit = window.limit()?;
    let rack = caller.rack(&app, &rack).await?;
    let rows = app.store.found_bmcs(rack, window.after.as_deref(), limit + 1).await?;
    let bmcs = if rows.is_empty() { Vec::new() } else { app.store.bmcs(rack, None, u32::MAX).await? };
    let (leases, expected) = if rows.is_empty() {
        Default::default()
    } else {
        (app.store.bmc_leases(rack).await?, app.store.expected_bmcs(rack, None, u32::MAX).await?)
    };
    let cursor = |row: &FoundBmc| row.found.address.to_string();
    Ok(axum::Json(Page::of(rows, limit, cursor, |row| Found::of(row, &bmcs, &leases, &expected))))
}
