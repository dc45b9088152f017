//! A BMC that runs: its sockets, and the handle on its state.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use rustls::{ServerConfig, crypto::aws_lc_rs::default_provider};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest, Sha256};
use tokio::{
    io::DuplexStream,
    net::{TcpListener, UdpSocket},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    chassis::Chassis,
    faults::Faults,
    ipmi,
    nvram::Nvram,
    personality::Personality,
    redfish,
    state::{PowerAct, State},
};

/// How many bytes may be on the serial line either way before the writer waits.
const LINE: usize = 4096;

/// How often it is looked whether there is something new to keep.
const FLUSH: Duration = Duration::from_millis(50);

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
    redfish: Mutex<redfish::Service>,
    line: Mutex<Option<DuplexStream>>,
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

    pub(crate) fn redfish(&self) -> MutexGuard<'_, redfish::Service> {
        self.redfish.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The machine's end of its serial line, once: what is written there is what it prints, what is
    /// read what was typed at a console. Serial over LAN shows it.
    pub fn serial_line(&self) -> Option<DuplexStream> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Asks it as its own machine does, by IPMI's system interface, where whoever is root needs no password: data
    /// behind the completion code 0x00, another code, or silence.
    pub fn in_band(&self, net_fn: u8, command: u8, data: &[u8]) -> Result<Vec<u8>, Option<u8>> {
        ipmi::in_band(Timestamp::now(), &mut self.lock(), &*self.chassis, (net_fn, command), data)
    }

    /// Has a sensor read this; false when there is none of this name.
    pub fn inject(&self, sensor: &str, value: f64) -> bool {
        self.lock().inject(Timestamp::now(), sensor, value)
    }

    /// Whether the machine's identification light is on.
    pub fn is_identified(&self) -> bool {
        self.lock().identify(Timestamp::now()).is_some()
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
    /// Where it speaks Redfish over HTTPS.
    pub redfish: SocketAddr,
    /// Where it speaks Redfish over plain HTTP, if it does.
    pub plain: Option<SocketAddr>,
    /// SHA-256 of its certificate.
    pub fingerprint: [u8; 32],
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
        Self::start_with(personality, chassis, addresses, None).await
    }

    /// The same, with what it keeps while it has no power.
    pub async fn start_with(
        personality: Personality,
        chassis: Arc<dyn Chassis>,
        addresses: Addresses,
        nvram: Option<Nvram>,
    ) -> io::Result<Running> {
        let (has_ipmi, has_redfish) = (personality.has_ipmi, personality.has_redfish);
        let (tls, fingerprint) = certificate(&personality.serial, nvram.as_ref()).map_err(io::Error::other)?;
        let mut state = State::new(personality);
        if let Some(users) = nvram.as_ref().map(Nvram::users).transpose()?.flatten() {
            state.users = users;
        }
        let (near, far) = tokio::io::duplex(LINE);
        let bmc = Arc::new(Bmc {
            state: Mutex::new(state),
            redfish: Mutex::default(),
            line: Mutex::new(Some(near)),
            chassis,
        });
        let stop = CancellationToken::new();
        let socket = UdpSocket::bind(addresses.ipmi).await?;
        let listener = TcpListener::bind(addresses.redfish).await?;
        let plain = match addresses.plain {
            Some(address) => Some(TcpListener::bind(address).await?),
            None => None,
        };
        let running = Running {
            ipmi: socket.local_addr()?,
            redfish: listener.local_addr()?,
            plain: plain.as_ref().map(TcpListener::local_addr).transpose()?,
            fingerprint,
            bmc: bmc.clone(),
            _stop: stop.clone().drop_guard(),
        };
        if let Some(nvram) = nvram {
            tokio::spawn(stop.clone().run_until_cancelled_owned(keep(nvram, bmc.clone())));
        }
        // Without a protocol, its port is closed.
        if has_ipmi {
            tokio::spawn(stop.clone().run_until_cancelled_owned(ipmi::serve(socket, far, bmc.clone())));
        }
        if has_redfish {
            tokio::spawn(stop.clone().run_until_cancelled_owned(redfish::serve(listener, Some(tls), bmc.clone())));
            tokio::spawn(stop.clone().run_until_cancelled_owned(redfish::deliver::run(bmc.clone())));
            if let Some(plain) = plain {
                tokio::spawn(stop.run_until_cancelled_owned(redfish::serve(plain, None, bmc)));
            }
        }
        Ok(running)
    }
}

/// Keeps users soon after they were changed, as a BMC does that writes its flash when it has the time.
async fn keep(nvram: Nvram, bmc: Arc<Bmc>) {
    let mut kept = Vec::new();
    loop {
        let users = bmc.lock().users.clone();
        if users != kept {
            match nvram.keep_users(&users) {
                Ok(()) => kept = users,
                Err(error) => tracing::error!(%error, "users are not kept"),
            }
        }
        tokio::time::sleep(FLUSH).await;
    }
}

/// A self-signed certificate of this BMC, and its fingerprint.
fn certificate(
    serial: &str,
    nvram: Option<&Nvram>,
) -> Result<(TlsAcceptor, [u8; 32]), Box<dyn std::error::Error + Send + Sync>> {
    let names = vec![format!("bmc-{}", serial.to_lowercase()), "localhost".into(), "127.0.0.1".into()];
    let (der, key) = match nvram {
        Some(nvram) => nvram.certificate(names)?,
        None => {
            let made = rcgen::generate_simple_self_signed(names)?;
            let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
            (made.cert.der().clone(), key)
        }
    };
    let fingerprint = Sha256::digest(&der).into();
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![der], key)?;
    Ok((TlsAcceptor::from(Arc::new(config)), fingerprint))
}
