//! What a machine's own BMC says to the machine itself, held against a BMC that was found on the network.
//! The machine is wired to that one and to no other: where it says something, it counts for more than a
//! serial number, which people write into BMCs and forget to.
//!
//! Invariants:
//! - Two machines that name the same BMC are both told; neither is chosen.
//! - An address alone proves nothing against a GUID that says otherwise: it may be another BMC's by now.

use std::net::IpAddr;

use rackhand_common::hardware::Bmc;

use super::{Known, Told, is_same_uuid};

/// How much of what a machine's own BMC says is as the found one has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Likeness {
    /// One of address and GUID.
    One,
    /// Both.
    Both,
}

/// The machines that reach this BMC in-band, as far as they tell: those that fit best.
pub(super) fn naming<'a>(told: &Told, machines: &'a [Known]) -> Vec<&'a Known> {
    let alike = |known: &'a Known| Some((likeness(known.in_band.as_ref()?, told)?, known));
    let alike: Vec<_> = machines.iter().filter_map(alike).collect();
    let most = alike.iter().map(|(likeness, _)| *likeness).max();
    alike.into_iter().filter(|(likeness, _)| Some(*likeness) == most).map(|(_, known)| known).collect()
}

fn likeness(bmc: &Bmc, told: &Told) -> Option<Likeness> {
    match (is_at(bmc, told.address), has_guid(bmc, told)) {
        (Some(true), Some(true)) => Some(Likeness::Both),
        (Some(true), _) | (_, Some(true)) => Some(Likeness::One),
        _ => None,
    }
}

/// Whether its BMC is at this address; absent when it does not say: of IPv6 it tells nothing.
pub(super) fn is_at(bmc: &Bmc, address: IpAddr) -> Option<bool> {
    let address = address.to_canonical();
    let mut addresses = bmc.lan.iter().filter_map(|lan| lan.address).peekable();
    (address.is_ipv4() && addresses.peek().is_some()).then(|| addresses.any(|own| own == address))
}

/// Whether its BMC has the GUID that the found one tells; absent when one of both tells none.
pub(super) fn has_guid(bmc: &Bmc, told: &Told) -> Option<bool> {
    bmc.guid.zip(told.identity.uuid).map(|(own, told)| is_same_uuid(own, told))
}

/// What a machine's own BMC says, in words.
pub(super) fn words(known: &Known) -> String {
    let Some(bmc) = &known.in_band else { return format!("{} tells nothing of its BMC", known.name) };
    let lan = bmc.lan.iter().filter_map(|lan| match (lan.address, lan.mac) {
        (Some(address), Some(mac)) => Some(format!("{address} ({mac})")),
        (Some(address), None) => Some(address.to_string()),
        (None, mac) => mac.map(|mac| format!("no address ({mac})")),
    });
    let guid = bmc.guid.map(|guid| format!("GUID {guid}"));
    let told: Vec<_> = lan.chain(guid).collect();
    format!("{} finds its own BMC in-band at {}", known.name, told.join(", "))
}
