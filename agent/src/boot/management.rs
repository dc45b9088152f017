//! The management network: an interface of the node's on which BMCs, and nobody else, are given addresses.
//!
//! Invariants:
//! - Boot's own work does not wait for it: a card that is missing, or a port that is taken, is waited for
//!   for as long as it takes, and machines boot meanwhile.
//! - Its leases are in boot's store, in a table of their own, and on disk before their ACK, as the
//!   provisioning network's.
//! - Whoever has the range's addresses was given them here: it has no other DHCP server.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use ipnet::Ipv4Net;
use rackhand_common::{intent::Network, time::Clock};
use rackhand_netboot::dhcp::Gate;
use serde::Deserialize;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{
    card,
    dhcp::{self, Desk, Link},
    leases::Leases,
};
use crate::spool::Spool;

/// Between two looks for its card.
const LOOK: Duration = Duration::from_secs(2);

/// The largest range: as many BMCs as are kept of a rack.
const MAX_RANGE: u32 = rackhand_common::bmc::MAX_FOUND as u32;

/// `[management]` in boot.toml.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManagementFile {
    /// The network card on the management network.
    pub interface: String,
    /// This node's address on it, with the length of its prefix.
    pub address: Ipv4Net,
    /// The first and the last address that BMCs are given.
    pub range: (Ipv4Addr, Ipv4Addr),
    /// The router they are told; default none.
    pub gateway: Option<Ipv4Addr>,
    /// The name servers they are told, at most three; default none.
    #[serde(default)]
    pub dns: Vec<Ipv4Addr>,
    /// Who is given an address: `bmcs`, what looks like one by its vendor class, host name or OUI; or
    /// `all`, on a network where nothing else is. Default `bmcs`.
    #[serde(default)]
    pub serves: Serves,
    /// For how many seconds they are told that an address is theirs; default an hour.
    #[serde(default = "super::default_lease")]
    pub lease: u32,
}

/// Who is given an address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Serves {
    /// What looks like a BMC.
    #[default]
    Bmcs,
    /// Whoever asks.
    All,
}

/// The same checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Management {
    /// The network card.
    pub interface: String,
    /// This node's address, what BMCs are told beside theirs, and the range.
    pub network: Network,
    /// Who is given an address.
    pub serves: Serves,
    /// For how long they are told that it is theirs.
    pub lease: Duration,
}

impl Management {
    /// The same checked, beside the card on the provisioning network.
    pub(super) fn new(file: ManagementFile, provisioning: &str) -> Result<Self, String> {
        let ManagementFile { interface, address, range, gateway, dns, serves, lease } = file;
        if interface.is_empty() || interface.len() > 15 {
            return Err("management.interface must be the name of a network card, as `ip link` shows it".into());
        }
        if interface == provisioning {
            return Err(format!(
                "management.interface is {interface}, which is the card on the provisioning network: machines and \
                 BMCs are told different things, and need a network or VLAN each"
            ));
        }
        let network = address.trunc();
        let is_host = |at: &Ipv4Addr| network.contains(at) && ![network.network(), network.broadcast()].contains(at);
        if !is_host(&address.addr()) {
            return Err(format!(
                "management.address {address} is no host's: write this node's own, such as 10.20.0.1/24"
            ));
        }
        let (first, last) = range;
        if !is_host(&first) || !is_host(&last) || first > last {
            return Err(format!("management.range is the first and the last of some addresses in {network}"));
        }
        if u32::from(last) - u32::from(first) >= MAX_RANGE {
            return Err(format!("management.range has more than {MAX_RANGE} addresses"));
        }
        if gateway.is_some_and(|gateway| !is_host(&gateway)) {
            return Err(format!("management.gateway is not in {network}"));
        }
        if dns.len() > 3 {
            return Err("management.dns names more than three".into());
        }
        if !(10..=7 * 86_400).contains(&lease) {
            return Err(format!("management.lease must be between 10 seconds and a week, and is {lease} seconds"));
        }
        let network = Network { node: address, gateway, dns, delegated: range };
        Ok(Self { interface, network, serves, lease: Duration::from_secs(lease.into()) })
    }

    fn node(&self) -> Ipv4Addr {
        self.network.node.addr()
    }
}

/// What answers on the management network.
pub(super) struct Service {
    pub(super) config: Management,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) leases: Leases,
    pub(super) spool: Spool,
    /// How messages come and go; the configured network card when absent.
    pub(super) link: Option<Arc<dyn Link>>,
}

impl Service {
    /// Answers until shutdown.
    pub(super) async fn run(self, shutdown: CancellationToken) {
        let mut told = String::new();
        while !shutdown.is_cancelled() {
            let Err(error) = self.serve(&shutdown).await else { continue };
            let error = format!("{error:#}");
            if error != told {
                tracing::warn!(error, "BMCs are given no addresses on the management network; trying again");
                told = error;
            }
            tokio::select! {
                () = sleep(LOOK) => {}
                () = shutdown.cancelled() => {}
            }
        }
    }

    async fn serve(&self, shutdown: &CancellationToken) -> anyhow::Result<()> {
        let Management { interface, network, serves, lease } = &self.config;
        let node = self.config.node();
        let (link, card) = match &self.link {
            Some(link) => (link.clone(), None),
            None => {
                let card = card::here(interface, node)?;
                let link = dhcp::System::open(interface, node)?;
                (Arc::new(link) as Arc<dyn Link>, Some(card))
            }
        };
        let settings = dhcp::Settings { node, http: None, lease: *lease };
        let gate = Gate::new(*serves == Serves::All);
        let (clock, leases, spool) = (self.clock.clone(), self.leases.clone(), self.spool.clone());
        let desk = Desk::open_management(clock, leases, settings, spool, network, gate).await?;
        tracing::info!(interface, address = %node, "giving addresses to BMCs");
        let serving = dhcp::serve_management(desk, link, shutdown.clone());
        match card {
            Some(card) => tokio::select! {
                () = serving => {}
                gone = card.stays(shutdown.clone()) => gone?,
            },
            None => serving.await,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        let file = toml::from_str::<ManagementFile>(text).map_err(|error| error.to_string());
        file.and_then(|file| Management::new(file, "prov0")).err().unwrap_or_default()
    }

    #[test]
    fn a_management_network_is_checked_and_mistakes_are_named() {
        let with = |more: &str| {
            let mut lines = vec![
                "interface = \"mgmt0\"",
                "address = \"10.20.0.1/24\"",
                "range = [\"10.20.0.100\", \"10.20.0.199\"]",
            ];
            let key = more.split(' ').next().unwrap();
            lines.retain(|line| !line.starts_with(key) || key.is_empty());
            refused(&(lines.join("\n") + "\n" + more))
        };
        for good in ["", "gateway = \"10.20.0.254\"", "serves = \"all\"", "lease = 600", "dns = [\"10.20.0.2\"]"] {
            assert_eq!(with(good), "", "{good}");
        }
        for (bad, words) in [
            ("interface = \"prov0\"", "provisioning network"),
            ("interface = \"\"", "name of a network card"),
            ("address = \"10.20.0.0/24\"", "no host's"),
            ("address = \"10.21.0.1/24\"", "management.range"),
            ("range = [\"10.20.0.199\", \"10.20.0.100\"]", "management.range"),
            ("range = [\"10.20.0.100\", \"10.20.0.255\"]", "management.range"),
            ("gateway = \"10.20.1.1\"", "management.gateway"),
            ("dns = [\"10.0.0.1\", \"10.0.0.2\", \"10.0.0.3\", \"10.0.0.4\"]", "management.dns"),
            ("lease = 5", "management.lease"),
            ("serves = \"some\"", "unknown variant"),
            ("pxe = true", "unknown field"),
        ] {
            assert!(with(bad).contains(words), "{bad}: {}", with(bad));
        }
    }
}
