//! Enrolment: a one-time code for a node, and its exchange for a certificate.
//!
//! A code is `RH1.SECRET.PIN`: 128 random bits, and the hash of the root's key by which the
//! node knows this controller. Only the secret's SHA-256 is kept.

use std::{collections::HashMap, net::IpAddr, time::Duration};

use jiff::Timestamp;
use rackhand_common::{
    id::{AgentId, RackId},
    pki::{KeyPin, Role},
    time::Mono,
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
    #[error(
        "the enrolment code is not valid: it is wrong, was used, or has expired; \
         make a new one with `rackhand agent enrol --rack NAME`"
    )]
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

/// Exchanges a code's secret for a certificate and registers the agent, or neither. Whoever was
/// the rack's agent until now is revoked, and `cut` ends its connection before anything is
/// committed: what it was given until then is known to be given up.
pub async fn redeem(
    store: &Store,
    authority: &Authority,
    now: Timestamp,
    (secret, csr): (&str, &[u8]),
    from: IpAddr,
    cut: impl Fn(AgentId),
) -> Result<(AgentId, RackId, Issued), NotEnrolled> {
    let agent = AgentId::fresh();
    let mut tx = store.begin().await?;
    let rack = tx.redeem(now, &hash(secret), agent, from).await.map_err(|error| match error {
        StoreError::NotFound(_) => NotEnrolled::Code,
        error => NotEnrolled::Store(error),
    })?;
    let issued = authority.issue(csr, Role::Agent { agent, rack }, AGENT_TTL, now).map_err(NotEnrolled::Certificate)?;
    for old in tx.insert_agent(now, agent, rack, issued.key, issued.until).await? {
        cut(old);
        tx.dismissed(now, rack, old, &format!("the enrolment of agent {agent}")).await?;
    }
    tx.insert_event(now, rack, None, None, &Happened::AgentEnrolled { agent }).await?;
    tx.commit().await?;
    tracing::info!(%agent, %rack, "enrolled");
    Ok((agent, rack, issued))
}

fn hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret).into()
}

/// How many attempts to enrol are let through: so many at once, and so many a second after.
#[derive(Clone, Copy, Debug)]
struct Rate {
    burst: f64,
    per_second: f64,
}

/// From one address, or one /64 of IPv6: five at once, then one every ten seconds.
const OF_ONE: Rate = Rate { burst: 5.0, per_second: 0.1 };

/// From everywhere: what a fleet that is enrolled by a script needs.
const OF_ALL: Rate = Rate { burst: 30.0, per_second: 2.0 };

#[derive(Clone, Copy, Debug)]
struct Bucket {
    left: f64,
    at: Mono,
}

impl Bucket {
    /// What is left of it now.
    fn at(self, now: Mono, rate: Rate) -> Self {
        let left = (self.left + self.at.until(now).as_secs_f64() * rate.per_second).min(rate.burst);
        Self { left, at: now }
    }
}

/// Attempts to enrol, counted by where they come from. Those that were refused cost nothing, so
/// sources are remembered only of attempts that were let through: a few hundred at most.
#[derive(Debug, Default)]
pub struct Limits {
    all: Option<Bucket>,
    sources: HashMap<IpAddr, Bucket>,
}

impl Limits {
    /// Whether one more attempt from there is let through now.
    pub fn admits(&mut self, from: IpAddr, now: Mono) -> bool {
        self.sources.retain(|_, bucket| {
            *bucket = bucket.at(now, OF_ONE);
            bucket.left < OF_ONE.burst
        });
        let full = |rate: Rate| Bucket { left: rate.burst, at: now };
        let mut all = self.all.map_or(full(OF_ALL), |bucket| bucket.at(now, OF_ALL));
        let source = source(from);
        let mut one = self.sources.get(&source).copied().unwrap_or(full(OF_ONE));
        let admitted = one.left >= 1.0 && all.left >= 1.0;
        if admitted {
            one.left -= 1.0;
            all.left -= 1.0;
            self.sources.insert(source, one);
        }
        self.all = Some(all);
        admitted
    }
}

/// Whoever has one address of an IPv6 network has all of its /64.
fn source(from: IpAddr) -> IpAddr {
    match from.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) & !u128::from(u64::MAX)).into()),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use rackhand_common::pki::install_crypto;

    use super::*;
    use crate::store::tests::{Bench, On, at, on_both};

    const FROM: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7));

    async fn code(bench: &Bench, authority: &Authority, expires: Timestamp) -> String {
        let (code, hash) = fresh_code(authority.root_pin());
        let mut tx = bench.store.begin().await.unwrap();
        tx.insert_code(at(0), &hash, bench.rack, expires, None).await.unwrap();
        tx.commit().await.unwrap();
        code.split('.').nth(1).unwrap().to_owned()
    }

    fn csr() -> Vec<u8> {
        let key = rcgen::KeyPair::generate().unwrap();
        rcgen::CertificateParams::default().serialize_request(&key).unwrap().der().to_vec()
    }

    async fn of_many_nodes_that_present_one_code_at_once_one_is_enrolled(on: On) {
        install_crypto();
        let bench = Bench::new(on).await;
        let dir = tempfile::tempdir().unwrap();
        let authority = std::sync::Arc::new(Authority::init(&dir.path().join("pki"), at(0)).unwrap());
        let secret = code(&bench, &authority, at(60)).await;
        let mut nodes = tokio::task::JoinSet::new();
        for _ in 0..64 {
            let (store, authority, secret) = (bench.store.clone(), authority.clone(), secret.clone());
            nodes.spawn(async move { redeem(&store, &authority, at(1), (&secret, &csr()), FROM, drop).await });
        }
        let results = nodes.join_all().await;
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
        assert!(results.iter().all(|result| matches!(result, Ok(_) | Err(NotEnrolled::Code))), "{results:?}");
        let registered = bench.store.agents_of(bench.rack).await.unwrap();
        assert_eq!(registered.iter().filter(|agent| agent.revoked.is_none()).count(), 1);
    }

    async fn a_code_for_one_network_is_refused_from_elsewhere_and_not_used_up_by_it(on: On) {
        install_crypto();
        let bench = Bench::new(on).await;
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::init(&dir.path().join("pki"), at(0)).unwrap();
        let (code, hash) = fresh_code(authority.root_pin());
        let mut tx = bench.store.begin().await.unwrap();
        let source = Some("192.0.2.9/28".parse().unwrap());
        tx.insert_code(at(0), &hash, bench.rack, at(60), source).await.unwrap();
        tx.commit().await.unwrap();
        let secret = code.split('.').nth(1).unwrap();
        for elsewhere in ["192.0.2.16", "10.0.0.1", "2001:db8::7"] {
            let from = elsewhere.parse().unwrap();
            let refused = redeem(&bench.store, &authority, at(1), (secret, &csr()), from, drop).await;
            assert!(matches!(refused, Err(NotEnrolled::Code)), "{elsewhere}");
        }
        // As a socket for both families tells an IPv4 peer.
        let mapped = "::ffff:192.0.2.7".parse().unwrap();
        redeem(&bench.store, &authority, at(2), (secret, &csr()), mapped, drop).await.unwrap();
    }

    async fn wrong_used_and_expired_codes_are_refused_in_the_same_words(on: On) {
        install_crypto();
        let bench = Bench::new(on).await;
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::init(&dir.path().join("pki"), at(0)).unwrap();
        let (used, expired) = (code(&bench, &authority, at(60)).await, code(&bench, &authority, at(1)).await);
        // A request that is no use does not use up the code.
        let useless = redeem(&bench.store, &authority, at(1), (&used, b"not a request"), FROM, drop).await;
        assert!(matches!(useless, Err(NotEnrolled::Certificate(_))), "{useless:?}");
        redeem(&bench.store, &authority, at(1), (&used, &csr()), FROM, drop).await.unwrap();
        let mut words = std::collections::BTreeSet::new();
        for secret in ["wrong", &used, &expired] {
            let refused = redeem(&bench.store, &authority, at(2), (secret, &csr()), FROM, drop).await;
            words.insert(refused.unwrap_err().to_string());
        }
        assert_eq!(words.len(), 1, "{words:?}");
        assert!(words.first().unwrap().contains("rackhand agent enrol --rack"));
    }

    #[test]
    fn attempts_are_bounded_for_each_source_and_in_total() {
        let mut limits = Limits::default();
        let second = |n| Mono(Duration::from_secs(n));
        let v4 = |n: u32| IpAddr::V4(n.into());
        let admitted = |limits: &mut Limits, from: &dyn Fn(u32) -> IpAddr, now| {
            (0..1000).filter(|n| limits.admits(from(*n), now)).count()
        };
        assert_eq!(admitted(&mut limits, &|_| v4(1), second(0)), 5);
        assert_eq!(admitted(&mut limits, &|_| v4(1), second(10)), 1);
        // One /64 is one source; an IPv4 address is the same in both notations.
        let v6 = |n: u32| IpAddr::V6((0x2001_0db8_u128 << 96 | u128::from(n)).into());
        assert_eq!(admitted(&mut limits, &v6, second(10)), 5);
        assert!(!limits.admits("::ffff:0.0.0.1".parse().unwrap(), second(10)));
        assert_eq!(admitted(&mut limits, &|n| v4(100 + n), second(100)), 30);
        assert_eq!(admitted(&mut limits, &|n| v4(2000 + n), second(105)), 10);
        assert!(limits.sources.len() <= 40);
        assert_eq!(admitted(&mut limits, &|_| v4(1), second(200)), 5);
        assert_eq!(limits.sources.len(), 1);
    }

    on_both! {
        a_code_for_one_network_is_refused_from_elsewhere_and_not_used_up_by_it,
        wrong_used_and_expired_codes_are_refused_in_the_same_words,
    }

    on_both! { in parallel:
        of_many_nodes_that_present_one_code_at_once_one_is_enrolled,
    }
}
