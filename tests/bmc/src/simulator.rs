//! A BMC that runs: its sockets, and the handle on its state.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::{SignedDuration, Timestamp};
use tokio::net::UdpSocket;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    chassis::Chassis,
    faults::Faults,
    ipmi,
    personality::Personality,
    state::{PowerAct, State},
};

/// What starts BMCs.
#[derive(Debug)]
pub struct Simulator;

/// Where a BMC listens; port 0 is any that is free.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// IPMI over UDP.
    pub ipmi: SocketAddr,
    /// Redfish over HTTPS.
    pub redfish: SocketAddr,
    /// Redfish over plain HTTP, if at all.
    pub plain: Option<SocketAddr>,
}

impl Default for Addresses {
    fn default() -> Self {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self { ipmi: any, redfish: any, plain: Some(any) }
    }
}

/// A BMC and its machine: the state both protocols share.
pub struct Bmc {
    state: Mutex<State>,
    pub(crate) chassis: Arc<dyn Chassis>,
}

impl std::fmt::Debug for Bmc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bmc").finish_non_exhaustive()
    }
}

impl Bmc {
    /// The state, to look at and to change.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a sensor read this; false when there is none of this name.
    pub fn inject(&self, sensor: &str, value: f64) -> bool {
        self.lock().inject(Timestamp::now(), sensor, value)
    }

    /// Changes what is wrong with it.
    pub fn set_faults(&self, faults: Faults) {
        self.lock().faults = faults;
    }

    /// Restarts the BMC itself: it is silent for so long, and its sessions are lost.
    pub fn restart(&self, silent: SignedDuration) {
        self.lock().restart(Timestamp::now(), silent);
    }

    /// Changes the machine's power as its button would.
    pub fn set_power(&self, act: PowerAct) -> Result<(), crate::state::PowerError> {
        self.lock().set_power(Timestamp::now(), &*self.chassis, act)
    }
}

/// A BMC that runs; it stops when this is dropped.
#[derive(Debug)]
pub struct Running {
    /// Where it speaks IPMI.
    pub ipmi: SocketAddr,
    /// Its state.
    pub bmc: Arc<Bmc>,
    _stop: DropGuard,
}

impl Simulator {
    /// Starts a BMC of this personality in front of this machine.
    pub async fn start(
        personality: Personality,
        chassis: Arc<dyn Chassis>,
        addresses: Addresses,
    ) -> io::Result<Running> {
        let has_ipmi = personality.has_ipmi;
        let bmc = Arc::new(Bmc { state: Mutex::new(State::new(personality)), chassis });
        let stop = CancellationToken::new();
        let socket = UdpSocket::bind(addresses.ipmi).await?;
        let ipmi = socket.local_addr()?;
        if has_ipmi {
            let ended = stop.clone().run_until_cancelled_owned(ipmi::serve(socket, bmc.clone()));
            tokio::spawn(ended);
        }
        Ok(Running { ipmi, bmc, _stop: stop.drop_guard() })
    }
}
