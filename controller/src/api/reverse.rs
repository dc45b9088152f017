//! `/v1/addresses/{address}/name` and `/v1/reverse-zone`: what reverse DNS answers for addresses.

use std::net::IpAddr;

use axum::{
    Extension,
    extract::{Path, State},
    http::{StatusCode, header},
    response::IntoResponse,
};
use jiff::Timestamp;
use rackhand_common::id;
use rackhand_controller_core::{
    access::{Action, Use},
    ipam::{Authority, HostName, NotAHostName, ReverseZone},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    App, Caller, Error,
    claims::{address_in, prefix},
    extract::{Expected, Json, Query, tagged},
};
use crate::store::{self, Thing, Vrf};

/// The most names in one zone's file.
const NAMES: u32 = 65_536;

/// The most name servers of a zone.
const SERVERS: usize = 13;

/// What reverse DNS answers for an address.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AddressName {
    /// The address.
    #[schema(value_type = String, example = "198.51.100.17")]
    address: IpAddr,
    /// The host's name in full.
    #[schema(example = "web-1.example.net")]
    name: String,
    /// The claim that holds the address.
    #[schema(value_type = uuid::Uuid)]
    claim: id::ClaimId,
    /// Since when.
    #[schema(value_type = String, format = DateTime)]
    changed: Timestamp,
}

/// A name for an address.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewAddressName {
    /// The host's name in full: labels of letters, digits and `-`.
    #[schema(example = "web-1.example.net")]
    name: String,
}

/// In which VRF.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Where {
    /// In this VRF; `default` when absent.
    vrf: Option<String>,
}

impl AddressName {
    fn of(row: store::ReverseName) -> Self {
        Self { address: row.address, name: row.name.to_string(), claim: row.claim, changed: row.changed }
    }
}

/// Somebody's address: the claim that it is in now, when that can be seen.
async fn held(app: &App, caller: &Caller, address: &str, place: &Where) -> Result<(Vrf, IpAddr, store::Claim), Error> {
    let (vrf, single) = address_in(app, place.vrf.as_deref(), address).await?;
    let address = single.first();
    let sight = caller.sight(Action::AddressRead)?;
    let claim = app.store.holder(&sight, &vrf, single, app.clock.now().wall).await?;
    let claim = claim.ok_or_else(|| Error::not_found(format!("nobody holds {address}; claim it first")))?;
    Ok((vrf, address, claim))
}

/// That the caller may name addresses of this claim.
async fn may_name(app: &App, caller: &Caller, claim: &store::Claim) -> Result<(), Error> {
    let place = app.store.standing(Thing::Claim, &claim.id.to_string()).await?.place;
    let pool = app.store.pool_numbered(claim.pool_number).await?;
    caller.may_use_claim(claim, &pool, Use::Reverse, place)
}

/// Show an address's name
///
/// What reverse DNS answers for it.
#[utoipa::path(get, path = "/v1/addresses/{address}/name", tag = "addresses",
    params(("address" = String, Path, description = "An IPv4 or IPv6 address."), Where),
    responses((status = 200, body = AddressName)))]
pub(super) async fn show(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(address): Path<String>,
    Query(place): Query<Where>,
) -> Result<impl IntoResponse, Error> {
    let (vrf, address, _) = held(&app, &caller, &address, &place).await?;
    let named = app.store.reverse_name(&vrf, address).await?;
    Ok(tagged(version(&named), AddressName::of(named)))
}

/// Name an address
///
/// One that a claim holds; the name goes when the claim ends. It needs a grant of the pool to name
/// its addresses in reverse DNS.
#[utoipa::path(put, path = "/v1/addresses/{address}/name", tag = "addresses", request_body = NewAddressName,
    params(("address" = String, Path, description = "An IPv4 or IPv6 address."), Where),
    responses((status = 200, body = AddressName)))]
pub(super) async fn set(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(address): Path<String>,
    expected: Expected,
    Query(place): Query<Where>,
    Json(body): Json<NewAddressName>,
) -> Result<impl IntoResponse, Error> {
    let name: HostName = body.name.parse().map_err(|error: NotAHostName| Error::invalid("/name", error))?;
    let (vrf, address, claim) = held(&app, &caller, &address, &place).await?;
    may_name(&app, &caller, &claim).await?;
    let mut tx = look(&app, &vrf, &claim, address, &expected).await?;
    tx.set_reverse_name(app.clock.now().wall, &vrf, &claim, address, Some(&name)).await?;
    let named = tx.reverse_name(&vrf, address).await?;
    tx.commit().await?;
    Ok(tagged(version(&named), AddressName::of(named)))
}

/// Take an address's name away
#[utoipa::path(delete, path = "/v1/addresses/{address}/name", tag = "addresses",
    params(("address" = String, Path, description = "An IPv4 or IPv6 address."), Where),
    responses((status = 204)))]
pub(super) async fn remove(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(address): Path<String>,
    expected: Expected,
    Query(place): Query<Where>,
) -> Result<impl IntoResponse, Error> {
    let (vrf, address, claim) = held(&app, &caller, &address, &place).await?;
    may_name(&app, &caller, &claim).await?;
    let mut tx = look(&app, &vrf, &claim, address, &expected).await?;
    tx.reverse_name(&vrf, address).await?;
    tx.set_reverse_name(app.clock.now().wall, &vrf, &claim, address, None).await?;
    tx.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What tells one name of an address from the next: when it was said.
fn version(named: &store::ReverseName) -> u64 {
    named.changed.as_microsecond().unsigned_abs()
}

/// A transaction in which the address is held as it was when the caller was let name it, and has the name, or
/// none, that the caller knows.
async fn look(
    app: &App,
    vrf: &Vrf,
    claim: &store::Claim,
    address: IpAddr,
    expected: &Expected,
) -> Result<store::Tx, Error> {
    let mut tx = app.store.begin().await?;
    // It may have been released since it was looked at, or been given other grants.
    let now_held = tx.claim(claim.id).await?;
    if now_held.until.is_some() {
        return Err(Error::not_found(format!("nobody holds {address}; claim it first")));
    }
    if now_held.grants != claim.grants {
        return Err(Error::conflict(format!("the grants of {} changed just now; try again", claim.prefix)));
    }
    let named = match tx.reverse_name(vrf, address).await {
        Ok(named) => version(&named),
        Err(store::StoreError::NotFound(_)) => 0,
        Err(error) => return Err(error.into()),
    };
    expected.check(named)?;
    Ok(tx)
}

/// Which zone.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Which {
    /// The zone's addresses: a length of 8, 16, 24 or 25 to 31 (RFC 2317) for IPv4, a multiple of 4
    /// for IPv6.
    #[param(example = "198.51.100.0/24")]
    prefix: String,
    /// In this VRF; `default` when absent.
    vrf: Option<String>,
    /// The zone's name servers, separated by commas, the primary first: with them the file is all
    /// that a zone needs, without them it is to be included in one.
    #[param(example = "ns1.example.net,ns2.example.net")]
    servers: Option<String>,
    /// The mailbox of whoever looks after the zone, with a dot for the `@`; `hostmaster` beside the
    /// primary name server when absent.
    #[param(example = "hostmaster.example.net")]
    contact: Option<String>,
}

/// Export a zone of reverse DNS
///
/// As a file for a name server (RFC 1035 §5), with a record for each address that has a name. Its
/// serial number is the time in seconds.
#[utoipa::path(get, path = "/v1/reverse-zone", tag = "addresses", params(Which),
    responses((status = 200, content_type = "text/dns", body = String)))]
pub(super) async fn zone(State(app): State<App>, Query(which): Query<Which>) -> Result<impl IntoResponse, Error> {
    let within = prefix("prefix", &which.prefix)?;
    let zone = ReverseZone::of(within).map_err(|error| Error::invalid("prefix", error))?;
    let authority = authority(&app, &which)?;
    let vrf = app.store.vrf(which.vrf.as_deref().unwrap_or("default")).await?;
    let names = app.store.reverse_names(&vrf, within, NAMES + 1).await?;
    if names.len() > NAMES as usize {
        return Err(Error::conflict(format!("more than {NAMES} addresses have names; export smaller zones")));
    }
    let text = zone.file(authority.as_ref(), names.iter().map(|named| (named.address, &named.name)));
    Ok(([(header::CONTENT_TYPE, "text/dns")], text))
}

fn authority(app: &App, which: &Which) -> Result<Option<Authority>, Error> {
    let Some(servers) = &which.servers else { return Ok(None) };
    let servers: Result<Vec<HostName>, NotAHostName> = servers.split(',').map(|name| name.trim().parse()).collect();
    let servers = servers.map_err(|error| Error::invalid("servers", error))?;
    if servers.len() > SERVERS {
        return Err(Error::invalid("servers", format!("at most {SERVERS}")));
    }
    let beside = || {
        let primary = servers.first().map(HostName::as_str).unwrap_or_default();
        format!("hostmaster.{}", primary.split_once('.').map_or(primary, |(_, domain)| domain))
    };
    let contact = which.contact.clone().unwrap_or_else(beside);
    let contact = contact.parse().map_err(|error: NotAHostName| Error::invalid("contact", error))?;
    let serial = app.clock.now().wall.as_second();
    Ok(Some(Authority { servers, contact, serial: serial as u32 }))
}
