//! Which cards were given addresses on the management network, as boot tells: these are looked at without
//! waiting for a sweep.
//!
//! Invariants:
//! - What [`Leased::note`] returned for is on disk: boot's events are acknowledged after that.
//! - An address is one card's: the one that has it last.
//! - At most [`MAX_FOUND`] are kept; the one that was told longest ago goes.

use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::Timestamp;
use rackhand_common::{
    bmc::{
        MAX_FOUND,
        lease::{BmcLease, Management},
    },
    event::{Event, What},
    machine::Mac,
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::intent::replace;

/// Name of the file in the state directory.
const FILE: &str = "bmc-leases.json";

/// The leases; clones are the same.
#[derive(Clone, Debug)]
pub struct Leased {
    path: PathBuf,
    told: watch::Sender<Arc<Told>>,
    /// Held while the file is being replaced.
    writing: Arc<tokio::sync::Mutex<()>>,
}

/// Cards and the addresses they were given: a core.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Told(BTreeMap<Mac, Entry>);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    address: Ipv4Addr,
    at: Timestamp,
    /// How often it was told that this card was given this address, or says something else of itself.
    #[serde(default)]
    times: u64,
}

impl Told {
    fn takes(&mut self, at: Timestamp, lease: &BmcLease) {
        let mac = lease.card.mac;
        self.0.retain(|other, entry| *other == mac || entry.address != lease.address);
        let times = self.0.get(&mac).filter(|entry| entry.address == lease.address).map_or(0, |entry| entry.times);
        self.0.insert(mac, Entry { address: lease.address, at, times: times + 1 });
        while self.0.len() > MAX_FOUND {
            let oldest = self.0.iter().min_by_key(|(_, entry)| entry.at).map(|(mac, _)| *mac);
            oldest.map(|mac| self.0.remove(&mac));
        }
    }

    /// Every address, and what changes when its card was given it anew.
    pub(super) fn addresses(&self) -> BTreeMap<IpAddr, (Mac, u64)> {
        self.0.iter().map(|(mac, entry)| (IpAddr::V4(entry.address), (*mac, entry.times))).collect()
    }
}

impl Leased {
    /// Those in this directory; none when the file cannot be read: boot tells again.
    pub fn open(state: &Path) -> Self {
        let path = state.join(FILE);
        let told = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(%error, "{FILE} cannot be used: boot tells it again");
                Told::default()
            }),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(%error, "{FILE} cannot be read: boot tells it again");
                }
                Told::default()
            }
        };
        Self { path, told: watch::Sender::new(Arc::new(told)), writing: Arc::default() }
    }

    /// Takes over what boot's events tell of leases.
    pub async fn note(&self, events: &[Event]) -> io::Result<()> {
        let leases = events.iter().filter_map(|event| match &event.what {
            What::Management(told) => match &**told {
                Management::Leased(lease) => Some((event.at, lease)),
                _ => None,
            },
            _ => None,
        });
        let leases: Vec<_> = leases.collect();
        if leases.is_empty() {
            return Ok(());
        }
        let _alone = self.writing.lock().await;
        let mut next = Told::clone(&self.told.borrow());
        for (at, lease) in leases {
            next.takes(at, lease);
        }
        let (path, bytes) = (self.path.clone(), serde_json::to_vec_pretty(&next).expect("leases always serialize"));
        tokio::task::spawn_blocking(move || replace(&path, &bytes)).await.map_err(io::Error::other).flatten()?;
        self.told.send_replace(Arc::new(next));
        Ok(())
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Arc<Told>> {
        self.told.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use rackhand_common::bmc::lease::Card;

    use super::*;

    fn event(second: i64, card: u8, last: u8) -> Event {
        let card = Card { mac: Mac([2, 0, 0, 0, 0, card]), hostname: None, vendor_class: None, client_id: None };
        let lease = BmcLease { card, address: Ipv4Addr::new(10, 0, 0, last), known_by: None };
        let what = What::Management(Box::new(Management::Leased(lease)));
        Event { at: Timestamp::from_second(second).unwrap(), machine: None, what }
    }

    fn shown(leased: &Leased) -> String {
        let told = leased.told.borrow().addresses();
        let words = told.iter().map(|(address, (mac, times))| format!("{address}:{}x{times}", mac.0[5]));
        words.collect::<Vec<_>>().join(" ")
    }

    #[tokio::test]
    async fn an_address_is_the_cards_that_was_given_it_last_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let leased = Leased::open(dir.path());
        leased.note(&[event(1, 1, 9), event(1, 2, 10)]).await.unwrap();
        assert_eq!(shown(&leased), "10.0.0.9:1x1 10.0.0.10:2x1");
        leased.note(&[event(2, 1, 9), event(3, 3, 10)]).await.unwrap();
        assert_eq!(shown(&leased), "10.0.0.9:1x2 10.0.0.10:3x1");
        leased.note(&[event(4, 1, 11)]).await.unwrap();
        let again = Leased::open(dir.path());
        assert_eq!(shown(&again), "10.0.0.10:3x1 10.0.0.11:1x1");
        fs::write(dir.path().join(FILE), "{").unwrap();
        assert_eq!(shown(&Leased::open(dir.path())), "");
    }

    #[test]
    fn no_more_are_kept_than_bmcs_of_a_rack() {
        let mut told = Told::default();
        for number in 0..MAX_FOUND as u32 + 9 {
            let [_, _, a, b] = number.to_be_bytes();
            let card = Card { mac: Mac([2, 0, 0, 0, a, b]), hostname: None, vendor_class: None, client_id: None };
            let address = Ipv4Addr::from(0x0a00_0000 + number);
            told.takes(Timestamp::from_second(number.into()).unwrap(), &BmcLease { card, address, known_by: None });
        }
        assert_eq!(told.0.len(), MAX_FOUND);
        assert!(!told.0.contains_key(&Mac([2, 0, 0, 0, 0, 8])) && told.0.contains_key(&Mac([2, 0, 0, 0, 0, 9])));
    }
}
