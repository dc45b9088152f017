//! BMCs that nobody has said anything of: the networks they may be in are asked, gently, who speaks
//! IPMI or Redfish there.
//!
//! Invariants:
//! - Nobody is logged in to, and no password is shown.
//! - So many addresses a second are asked as is configured, and no more than [`AT_ONCE`] at a time; a
//!   sweep is over before the next one begins.
//! - Only where BMCs may be asked at all (`bmc.networks`).
//! - Whoever was given an address by this node ([`Leased`]) is looked at within moments, whether a sweep is
//!   under way or none is configured; again ever more seldom until it answers, and with each sweep.
//! - What is told is in the spool before it counts as told: a kill tells it once more.

mod leased;
mod remembered;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use ipnet::IpNet;
use jiff::Timestamp;
use rackhand_bmc::probe;
use rackhand_common::{
    bmc::Found,
    event::{Event, What},
    time::Clock,
};
use serde::Deserialize;
use tokio::{
    sync::{Mutex, watch},
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    bmcs::check_place,
    intent::replace,
    spool::{Spool, SpoolError},
};

pub use leased::Leased;
use leased::Told;
use remembered::Remembered;

/// Name of the file in the state directory.
const FILE: &str = "found-bmcs.json";

/// The most addresses that are asked in one sweep: a /20.
const MAX_ADDRESSES: u64 = 4096;

/// So many addresses are asked at a time: one that is silent takes some seconds.
const AT_ONCE: usize = 64;

/// How long an answer in IPMI is waited for.
const WAIT: Duration = Duration::from_secs(1);

/// From a lease whose holder does not answer yet to the next look at it; then twice as long each time. A
/// BMC that starts has its address a minute or two before it answers.
const SOON: Duration = Duration::from_secs(2);

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
    /// Where BMCs may be at all, when not everywhere.
    pub may_be: Option<Vec<IpNet>>,
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
        let may_be = bmc_networks.map(<[IpNet]>::to_vec);
        Ok(Self { networks, every: Duration::from_secs(every), per_second, ipmi, redfish, may_be })
    }

    /// Every address that is asked.
    fn addresses(&self, leased: &Told) -> BTreeSet<IpAddr> {
        let leased = leased.addresses().into_keys().filter(|address| self.may_ask(*address));
        self.networks.iter().flat_map(IpNet::hosts).chain(leased).collect()
    }

    fn may_ask(&self, address: IpAddr) -> bool {
        check_place(address, self.may_be.as_deref()).is_ok()
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
    /// Who was given an address by this node.
    pub leased: Leased,
}

impl Discovery {
    /// Looks until shutdown.
    pub async fn run(self, shutdown: CancellationToken) {
        let remembered = Mutex::new(load(&self.state));
        // What is not told at shutdown is found again at the next start.
        tokio::select! {
            () = self.sweep_for_ever(&remembered) => {}
            () = self.follow_leases(&remembered) => {}
            () = shutdown.cancelled() => {}
        }
    }

    async fn sweep_for_ever(&self, remembered: &Mutex<Remembered>) {
        let (mut configured, leased) = (self.config.clone(), self.leased.subscribe());
        loop {
            let config = configured.borrow_and_update().clone();
            let asked = config.addresses(&leased.borrow());
            if !asked.is_empty() || !remembered.lock().await.is_empty() {
                let found = self.ask_all(&config, asked.clone()).await;
                self.keep(remembered, |remembered, at| remembered.swept(at, &asked, found)).await;
            }
            tokio::select! {
                () = sleep(config.every) => {}
                changed = configured.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Looks at whoever was given an address, as soon as that is known and until it answers.
    async fn follow_leases(&self, remembered: &Mutex<Remembered>) {
        let (config, mut leased) = (self.config.clone(), self.leased.subscribe());
        let (mut known, mut due) = (BTreeMap::new(), BTreeMap::new());
        leased.mark_changed();
        loop {
            let next = due.values().map(|(at, _)| *at).min();
            tokio::select! {
                changed = leased.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let now = leased.borrow_and_update().addresses();
                    due.retain(|address, _| now.contains_key(address));
                    for (address, told) in &now {
                        if known.get(address) != Some(told) {
                            due.insert(*address, (Instant::now(), SOON));
                        }
                    }
                    known = now;
                }
                () = async { sleep_until(next.unwrap_or_else(Instant::now)).await }, if next.is_some() => {
                    let config = config.borrow().clone();
                    let now = Instant::now();
                    let overdue = due.iter().filter(|(_, (at, _))| *at <= now).map(|(address, _)| *address);
                    let (asked, not): (BTreeSet<_>, BTreeSet<_>) = overdue.partition(|address| config.may_ask(*address));
                    for address in not {
                        tracing::warn!(%address, "a BMC has an address of ours that is in none of `bmc.networks`");
                        due.remove(&address);
                    }
                    let found = self.ask_all(&config, asked.clone()).await;
                    for address in asked {
                        let is_there = found.iter().any(|found| found.address == address);
                        match due.get_mut(&address) {
                            // The sweeps go on.
                            Some((_, wait)) if is_there || *wait > config.every => drop(due.remove(&address)),
                            Some((at, wait)) => (*at, *wait) = (Instant::now() + *wait, *wait * 2),
                            None => {}
                        }
                    }
                    if !found.is_empty() {
                        self.keep(remembered, |remembered, at| remembered.answered(at, found)).await;
                    }
                }
            }
        }
    }

    async fn ask_all(&self, config: &Config, asked: BTreeSet<IpAddr>) -> Vec<Found> {
        let mut pace = interval(Duration::from_secs(1) / config.per_second);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let paced = stream::unfold((pace, asked.into_iter()), |(mut pace, mut left)| async move {
            let address = left.next()?;
            pace.tick().await;
            Some((address, (pace, left)))
        });
        let answers = paced.map(|address| ask(address, config)).buffer_unordered(AT_ONCE);
        answers.filter_map(async |found| found).collect().await
    }

    /// Takes over and tells what was found, the one before the other counts.
    async fn keep(&self, remembered: &Mutex<Remembered>, take: impl FnOnce(&mut Remembered, Timestamp) -> Vec<What>) {
        let mut remembered = remembered.lock().await;
        let mut next = remembered.clone();
        let at = self.clock.now().wall;
        let told = take(&mut next, at);
        if next == *remembered {
            return;
        }
        match self.write(at, told, &next).await {
            Ok(()) => *remembered = next,
            Err(error) => {
                let error = format!("{:#}", anyhow::Error::from(error));
                tracing::error!(error, "what was found of BMCs cannot be written down");
            }
        }
    }

    async fn write(&self, at: Timestamp, told: Vec<What>, next: &Remembered) -> Result<(), NotKept> {
        let events = told.into_iter().map(|what| Event { at, machine: None, what });
        self.spool.append(events.collect()).await?;
        let (path, bytes) = (self.state.join(FILE), next.to_json());
        tokio::task::spawn_blocking(move || replace(&path, &bytes)).await.map_err(io::Error::other).flatten()?;
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
        assert_eq!(small.addresses(&Told::default()).len(), 6 + 1);
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
