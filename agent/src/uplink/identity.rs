//! This node as the controller knows it, kept in one file so that key, certificate and trust
//! bundle are always replaced together.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::Timestamp;
use rackhand_common::{
    id::{AgentId, RackId},
    pki::{self, TrustBundle},
};
use rackhand_fail_points::fail_point;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, watch};
use x509_parser::prelude::{FromDer, X509Certificate};

const FILE: &str = "identity.json";

/// What enrolment gave, and renewal replaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// Where the controller is: `HOST:PORT`, QUIC.
    pub controller: String,
    /// Where its API is: `HOST:PORT`, HTTPS.
    pub api: String,
    /// Who we are.
    pub agent: AgentId,
    /// The rack we serve.
    pub rack: RackId,
    /// Whom we believe.
    pub bundle: TrustBundle,
    /// When the certificate begins.
    pub since: Timestamp,
    /// When it ends.
    pub until: Timestamp,
    /// Leaf first, DER.
    pub(super) chain: Vec<Vec<u8>>,
    /// PKCS #8, DER.
    pub(super) key: Vec<u8>,
}

/// The file. Bytes are hexadecimal.
#[derive(Serialize, Deserialize)]
struct Stored {
    controller: String,
    api: String,
    agent: AgentId,
    rack: RackId,
    bundle: TrustBundle,
    chain: Vec<String>,
    key: String,
}

/// Why there is no registration.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// The node was never enrolled.
    #[error(
        "this node is not enrolled: run `rackhand-agent enrol` with a code from `rackhand agent enrol --rack NAME`"
    )]
    NotEnrolled,
    /// The file cannot be read or written.
    #[error("the node's identity cannot be read or written")]
    Disk(#[from] io::Error),
    /// A trust bundle has no root that this node believes already, or is not one.
    #[error("the trust bundle is not one of the controller this node is enrolled with")]
    Bundle,
    /// The file is not a registration.
    #[error("the node's identity file is damaged; enrol again")]
    Damaged,
}

/// The registration in use and its file: changed one after the other, on disk before in use.
#[derive(Debug)]
pub struct Identity {
    state: PathBuf,
    current: watch::Sender<Arc<Registration>>,
    changing: Mutex<()>,
}

/// What the file of a node that runs holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reread {
    /// The registration in use.
    Same,
    /// Another key, certificate or trust bundle of this agent: in use from now on.
    Taken,
    /// Another agent's registration, or another rack's: a restart is needed.
    Another,
}

impl Identity {
    /// Of the node whose state is in this directory.
    pub fn load(state: &Path) -> Result<Self, Unusable> {
        let current = watch::Sender::new(Arc::new(Registration::load(state)?));
        Ok(Self { state: state.to_owned(), current, changing: Mutex::default() })
    }

    /// The registration in use.
    pub fn current(&self) -> Arc<Registration> {
        self.current.borrow().clone()
    }

    /// The registration and its successors.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Registration>> {
        self.current.subscribe()
    }

    /// Reads the file again, in case someone else wrote it.
    pub fn read_again(&self) -> Result<Reread, Unusable> {
        // One that is being replaced is the newest there is.
        let Ok(_changing) = self.changing.try_lock() else { return Ok(Reread::Same) };
        let (used, found) = (self.current(), Registration::load(&self.state)?);
        if *used == found {
            return Ok(Reread::Same);
        }
        if (used.agent, used.rack) != (found.agent, found.rack) {
            return Ok(Reread::Another);
        }
        self.current.send_replace(Arc::new(found));
        Ok(Reread::Taken)
    }

    /// Replaces it by what `change` makes of it.
    pub(super) async fn replace(
        &self,
        change: impl FnOnce(&Registration) -> Result<Registration, Unusable>,
    ) -> Result<Arc<Registration>, Unusable> {
        let _changing = self.changing.lock().await;
        let new = Arc::new(change(&self.current())?);
        let (state, kept) = (self.state.clone(), new.clone());
        tokio::task::spawn_blocking(move || kept.save(&state)).await.map_err(io::Error::other)??;
        self.current.send_replace(new.clone());
        Ok(new)
    }
}

impl Registration {
    /// The registration kept in this directory.
    pub fn load(state: &Path) -> Result<Self, Unusable> {
        let bytes = match std::fs::read(state.join(FILE)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Unusable::NotEnrolled),
            read => read?,
        };
        let stored: Stored = serde_json::from_slice(&bytes).map_err(|_| Unusable::Damaged)?;
        let decode = |text: &String| hex::decode(text).map_err(|_| Unusable::Damaged);
        let chain = stored.chain.iter().map(decode).collect::<Result<Vec<_>, _>>()?;
        let (since, until) = validity(&chain).ok_or(Unusable::Damaged)?;
        Ok(Self {
            controller: stored.controller,
            api: stored.api,
            agent: stored.agent,
            rack: stored.rack,
            bundle: stored.bundle,
            since,
            until,
            chain,
            key: decode(&stored.key)?,
        })
    }

    /// A registration of what the controller answered.
    pub(super) fn of(
        (controller, api): (String, String),
        (agent, rack): (AgentId, RackId),
        chain: Vec<Vec<u8>>,
        key: Vec<u8>,
        bundle: &str,
    ) -> Result<Self, Unusable> {
        let bundle = serde_json::from_str(bundle).map_err(|_| Unusable::Damaged)?;
        let (since, until) = validity(&chain).ok_or(Unusable::Damaged)?;
        Ok(Self { controller, api, agent, rack, bundle, since, until, chain, key })
    }

    /// The same with another trust bundle, given as its JSON text. It has to vouch for the
    /// controller that we believe now, or we would shut ourselves out.
    pub(super) fn trusting(&self, bundle: &str) -> Result<Self, Unusable> {
        let bundle: TrustBundle = serde_json::from_str(bundle).map_err(|_| Unusable::Bundle)?;
        let usable = bundle.root_store().is_ok_and(|store| !store.is_empty()) && bundle.image_key().is_ok();
        let shared = bundle.roots.iter().any(|root| self.bundle.roots.contains(root));
        if usable && shared { Ok(Self { bundle, ..self.clone() }) } else { Err(Unusable::Bundle) }
    }

    /// Keeps it: whole, on stable storage, readable by us alone.
    pub(super) fn save(&self, state: &Path) -> Result<(), Unusable> {
        let stored = Stored {
            controller: self.controller.clone(),
            api: self.api.clone(),
            agent: self.agent,
            rack: self.rack,
            bundle: self.bundle.clone(),
            chain: self.chain.iter().map(hex::encode).collect(),
            key: hex::encode(&self.key),
        };
        let json = serde_json::to_vec_pretty(&stored).expect("registrations always serialize");
        Ok(fail_point!("identity.keep", crate::intent::replace(&state.join(FILE), &json))?)
    }

    /// For TLS.
    pub(super) fn identity(&self) -> pki::Identity {
        pki::Identity {
            chain: self.chain.iter().cloned().map(CertificateDer::from).collect(),
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.clone())),
        }
    }

    /// Whether the certificate has lived half of its life.
    pub(super) fn to_be_renewed(&self, now: Timestamp) -> bool {
        now >= self.since + self.until.duration_since(self.since) / 2
    }
}

fn validity(chain: &[Vec<u8>]) -> Option<(Timestamp, Timestamp)> {
    let (_, leaf) = X509Certificate::from_der(chain.first()?).ok()?;
    let time = |time: x509_parser::time::ASN1Time| Timestamp::from_second(time.timestamp()).ok();
    Some((time(leaf.validity().not_before)?, time(leaf.validity().not_after)?))
}
