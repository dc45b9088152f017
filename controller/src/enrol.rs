//! Enrolment: a one-time code for a node, and its exchange for a certificate.
//!
//! A code is `RH1.SECRET.PIN`: 128 random bits, and the hash of the root's key by which the
//! node knows this controller. Only the secret's SHA-256 is kept.

use std::time::Duration;

use jiff::Timestamp;
use rackhand_common::{
    id::{AgentId, RackId},
    pki::{KeyPin, Role},
};
use sha2::{Digest as _, Sha256};

use crate::{
    authority::{AGENT_TTL, Authority, AuthorityError, Issued},
    store::{Happened, Store, StoreError},
};

/// How long a code can be used, unless said otherwise.
pub const CODE_TTL: Duration = Duration::from_secs(24 * 3600);

/// Why a node is not enrolled.
#[derive(Debug, thiserror::Error)]
pub enum NotEnrolled {
    /// The code is wrong, used or expired; which of them is not told.
    #[error("the enrolment code is not valid: it is wrong, was used, or has expired")]
    Code,
    /// The request is not acceptable.
    #[error("no certificate can be issued")]
    Certificate(#[source] AuthorityError),
    /// The database failed.
    #[error("the enrolment cannot be recorded")]
    Store(#[source] StoreError),
}

impl From<StoreError> for NotEnrolled {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// A fresh code for a node that will know the controller by `root`, and the hash to keep.
pub fn fresh_code(root: KeyPin) -> (String, [u8; 32]) {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let random: u128 = rand::random();
    // 22 digits of six bits hold 128 bits; the first has only two of them.
    let secret: String =
        (0..22).rev().map(|digit| char::from(ALPHABET[(random >> (6 * digit)) as usize & 63])).collect();
    let hash = hash(&secret);
    (format!("RH1.{secret}.{root}"), hash)
}

/// Exchanges a code's secret for a certificate and registers the agent, or neither.
pub async fn redeem(
    store: &Store,
    authority: &Authority,
    now: Timestamp,
    secret: &str,
    csr: &[u8],
) -> Result<(AgentId, RackId, Issued), NotEnrolled> {
    let agent = AgentId::fresh();
    let mut tx = store.begin().await?;
    let rack = tx.redeem(now, &hash(secret), agent).await.map_err(|error| match error {
        StoreError::NotFound(_) => NotEnrolled::Code,
        error => NotEnrolled::Store(error),
    })?;
    let issued = authority.issue(csr, Role::Agent { agent, rack }, AGENT_TTL, now).map_err(NotEnrolled::Certificate)?;
    for old in tx.insert_agent(now, agent, rack, issued.key, issued.until).await? {
        let by = format!("the enrolment of agent {agent}");
        tx.insert_event(now, rack, None, None, &Happened::AgentRevoked { agent: old, by }).await?;
    }
    tx.insert_event(now, rack, None, None, &Happened::AgentEnrolled { agent }).await?;
    tx.commit().await?;
    tracing::info!(%agent, %rack, "enrolled");
    Ok((agent, rack, issued))
}

fn hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret).into()
}

/// At most so many attempts to enrol at once, and one more every second.
#[derive(Debug)]
pub struct Limit {
    left: f64,
    at: rackhand_common::time::Mono,
}

impl Limit {
    const BURST: f64 = 10.0;

    /// A limit that has not been used.
    pub fn new() -> Self {
        Self { left: Self::BURST, at: rackhand_common::time::Mono::default() }
    }

    /// Whether one more attempt is let through now.
    pub fn admits(&mut self, now: rackhand_common::time::Mono) -> bool {
        self.left = (self.left + self.at.until(now).as_secs_f64()).min(Self::BURST);
        self.at = now;
        let admitted = self.left >= 1.0;
        if admitted {
            self.left -= 1.0;
        }
        admitted
    }
}

impl Default for Limit {
    fn default() -> Self {
        Self::new()
    }
}
