//! This node as the controller knows it, kept in one file so that key, certificate and trust
//! bundle are always replaced together.

use std::{io, path::Path};

use jiff::Timestamp;
use rackhand_common::{
    id::{AgentId, RackId},
    pki::{Identity, TrustBundle},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
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
    /// The file is not a registration.
    #[error("the node's identity file is damaged; enrol again")]
    Damaged,
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
        Ok(crate::intent::replace(&state.join(FILE), &json)?)
    }

    /// For TLS.
    pub(super) fn identity(&self) -> Identity {
        Identity {
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
