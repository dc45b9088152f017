//! A connection's place among [`Places`], given back when it is dropped.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rackhand_common::places::Places;
use tokio_util::sync::CancellationToken;

/// The places of a listener; clones are the same.
#[derive(Clone, Debug)]
pub struct Listening(Arc<Mutex<Places<CancellationToken>>>);

impl Listening {
    /// `all` places, of which one address has at most `each`.
    pub fn new(all: usize, each: usize) -> Self {
        Self(Arc::new(Mutex::new(Places::new(all, each))))
    }

    /// A place for a connection from this address. Whoever has to give way for it is told.
    pub fn place(&self, address: IpAddr, known: bool) -> Place {
        let lost = CancellationToken::new();
        let (number, former) = self.lock().take(address, known, lost.clone());
        if let Some(former) = former {
            former.cancel();
        }
        Place { among: self.clone(), address, number, lost }
    }

    fn lock(&self) -> MutexGuard<'_, Places<CancellationToken>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's place.
#[derive(Debug)]
pub struct Place {
    among: Listening,
    address: IpAddr,
    number: u64,
    /// Cancelled when it was given to another.
    pub lost: CancellationToken,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.among.lock().leave(self.address, self.number);
    }
}
