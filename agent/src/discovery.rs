//! BMCs that nobody has said anything of: the networks they may be in are asked, gently, who speaks
//! IPMI or Redfish there.
//!
//! Invariants:
//! - Nobody is logged in to, and no password is shown.
//! - So many addresses a second are asked as is configured, and no more than [`AT_ONCE`] at a time; a
//!   sweep is over before the next one begins.
//! - Only where BMCs may be asked at all (`bmc.networks`).
//! - What is told is in the spool before it counts as told: a kill tells it once more.

mod remembered;

use std::{
    collections::BTreeSet,
    fs, io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use ipnet::IpNet;
use rackhand_bmc::probe;
use rackhand_common::{bmc::Found, event::Event, time::Clock};
use serde::Deserialize;
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    bmcs::check_place,
    intent::replace,
    spool::{Spool, SpoolError},
};

use remembered::Remembered;

/// Name of the file in the state directory.
const FILE: &str = "found-bmcs.json";

/// The most addresses that are asked in one sweep: a /20.
const MAX_ADDRESSES: u64 = 4096;

/// So many addresses are asked at a time: one that is silent takes some seconds.
const AT_ONCE: usize = 64;

/// How long an answer in IPMI is waited for.
const WAIT: Duration = Duration::from_secs(1);

/// `[discovery]` in agent.toml.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiscoveryFile {
    /// Networks that are asked for BMCs, of at most 4096 addresses together; default none.
    #[serde(default)]
    pub networks: Vec<IpNet>,
    /// Seconds from the end of one sweep to the beginning of the next; default 600.
    #[serde(default = "default_every")]
    pub every: u64,
    /// Addresses that are asked in a second; default 20.
    #[serde(default = "default_per_second")]
    pub per_second: u32,
    /// Port of IPMI; default 623.
    #[serde(default = "default_ipmi")]
    pub ipmi: u16,
    /// Port of Redfish; default 443.
    #[serde(default = "default_redfish")]
    pub redfish: u16,
}

impl Default for DiscoveryFile {
    fn default() -> Self {
        Self {
            networks: Vec::new(),
            every: default_every(),
            per_second: default_per_second(),
            ipmi: default_ipmi(),
            redfish: default_redfish(),
        }
    }
}

fn default_every() -> u64 {
    600
}

fn default_per_second() -> u32 {
    20
}

fn default_ipmi() -> u16 {
    623
}

fn default_redfish() -> u16 {
    443
}

/// Where BMCs are looked for, and how gently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The networks.
    pub networks: Vec<IpNet>,
    /// From the end of one sweep to the beginning of the next.
    pub every: Duration,
    /// Addresses that are asked in a second.
    pub per_second: u32,
    /// Port of IPMI.
    pub ipmi: u16,
    /// Port of Redfish.
    pub redfish: u16,
}

impl Config {
    /// The same checked, on a node that asks BMCs in these networks.
    pub fn new(file: DiscoveryFile, bmc_networks: Option<&[IpNet]>) -> Result<Self, String> {
        let DiscoveryFile { networks, every, per_second, ipmi, redfish } = file;
        let addresses = networks.iter().map(|network| {
            let bits = u32::from(network.max_prefix_len() - network.prefix_len());
            1u64.checked_shl(bits).unwrap_or(u64::MAX)
        });
        if addresses.fold(0, u64::saturating_add) > MAX_ADDRESSES {
            return Err(format!(
                "discovery.networks have more than {MAX_ADDRESSES} addresses together: name smaller ones"
            ));
        }
        for network in &networks {
            check_place(network.network(), bmc_networks)
                .and_then(|()| check_place(network.broadcast(), bmc_networks))
                .map_err(|error| format!("discovery.networks: {network}: {error}"))?;
        }
        if !(1..=86400).contains(&every) {
            return Err("discovery.every is 1 to 86400 seconds".into());
        }
        if !(1..=1000).contains(&per_second) {
            return Err("discovery.per_second is 1 to 1000: so many addresses are asked in a second".into());
        }
        if ipmi == 0 || redfish == 0 {
            return Err("discovery.ipmi and discovery.redfish are ports".into());
        }
        Ok(Self { networks, every: Duration::from_secs(every), per_second, ipmi, redfish })
    }

    /// Every address that is asked.
    fn addresses(&self) -> BTreeSet<IpAddr> {
        self.networks.iter().flat_map(IpNet::hosts).collect()
    }
}

/// Looks for BMCs until shutdown.
pub struct Discovery {
    /// Where it is kept what was found.
    pub state: PathBuf,
    /// Where it is told.
    pub spool: Spool,
    /// The present.
    pub clock: Arc<dyn Clock>,
    /// Where BMCs are looked for.
    pub config: watch::Receiver<Config>,
}

impl Discovery {
    /// Looks until shutdown.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut remembered = load(&self.state);
        loop {
            let config = self.config.borrow_and_update().clone();
            if !config.networks.is_empty() || !remembered.is_empty() {
                let swept = tokio::select! {
                    swept = self.sweep(&config, &mut remembered) => swept,
                    // What is not told is found again at the next start.
                    () = shutdown.cancelled() => return,
                };
                if let Err(error) = swept {
                    let error = format!("{:#}", anyhow::Error::from(error));
                    tracing::error!(error, "what was found of BMCs cannot be written down");
                }
            }
            tokio::select! {
                () = sleep(config.every) => {}
                changed = self.config.changed() => if changed.is_err() { return },
                () = shutdown.cancelled() => return,
            }
        }
    }

    async fn sweep(&self, config: &Config, remembered: &mut Remembered) -> Result<(), NotKept> {
        let asked = config.addresses();
        let mut pace = interval(Duration::from_secs(1) / config.per_second);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let paced = stream::unfold((pace, asked.clone().into_iter()), |(mut pace, mut left)| async move {
            let address = left.next()?;
            pace.tick().await;
            Some((address, (pace, left)))
        });
        let answers = paced.map(|address| ask(address, config)).buffer_unordered(AT_ONCE);
        let found: Vec<_> = answers.filter_map(async |found| found).collect().await;
        let at = self.clock.now().wall;
        let mut next = remembered.clone();
        let told = next.swept(at, &asked, found);
        if next == *remembered {
            return Ok(());
        }
        let events = told.into_iter().map(|what| Event { at, machine: None, what });
        self.spool.append(events.collect()).await?;
        let (path, bytes) = (self.state.join(FILE), next.to_json());
        tokio::task::spawn_blocking(move || replace(&path, &bytes)).await.map_err(io::Error::other).flatten()?;
        *remembered = next;
        Ok(())
    }
}

/// Why it is not kept what was found.
#[derive(Debug, thiserror::Error)]
enum NotKept {
    #[error("the spool")]
    Spool(#[from] SpoolError),
    #[error("{FILE}")]
    Disk(#[from] io::Error),
}

/// What answers at an address.
async fn ask(address: IpAddr, config: &Config) -> Option<Found> {
    let (ipmi, redfish) = (SocketAddr::new(address, config.ipmi), SocketAddr::new(address, config.redfish));
    let (ipmi, redfish) = tokio::join!(probe::ipmi(ipmi, WAIT), probe::redfish(redfish));
    let says = redfish.as_ref().map(|service| service.says.clone()).unwrap_or_default();
    let found = Found {
        ipmi: ipmi.map(|_| config.ipmi),
        redfish: redfish.as_ref().map(|_| config.redfish),
        vendor: says.vendor.or_else(|| ipmi.and_then(|speaks| speaks.vendor).map(ToOwned::to_owned)),
        model: says.product,
        uuid: says.uuid,
        fingerprint: redfish.and_then(|service| service.fingerprint),
        ..Found::at(address)
    };
    found.is_any().then_some(found)
}

/// What was found before; nothing when that cannot be read: it is found again.
fn load(state: &Path) -> Remembered {
    match fs::read(state.join(FILE)) {
        Ok(bytes) => Remembered::of_json(&bytes),
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(%error, "{FILE} cannot be read: what is in it is looked for anew");
            }
            Remembered::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str, networks: Option<&[IpNet]>) -> Result<Config, String> {
        Config::new(toml::from_str(text).unwrap(), networks)
    }

    #[test]
    fn what_is_asked_is_bounded_and_where_bmcs_may_be() {
        let small = config("networks = [\"10.20.0.0/29\", \"10.21.0.7/32\"]", None).unwrap();
        assert_eq!(small.addresses().len(), 6 + 1);
        let refused = |text: &str, networks: Option<&[IpNet]>| config(text, networks).unwrap_err();
        assert!(refused("networks = [\"10.0.0.0/19\"]", None).contains("more than 4096"));
        assert!(refused("networks = [\"2001:db8::/64\"]", None).contains("more than 4096"));
        assert!(refused("networks = [\"127.0.0.0/24\"]", None).contains("127.0.0.0/24"));
        let management = ["10.20.0.0/16".parse().unwrap()];
        assert!(refused("networks = [\"10.21.0.0/24\"]", Some(&management)).contains("bmc.networks"));
        assert!(config("networks = [\"10.20.9.0/24\"]", Some(&management)).is_ok());
        assert!(refused("per_second = 0", None).contains("per_second"));
        assert!(refused("every = 0", None).contains("every"));
    }
}
