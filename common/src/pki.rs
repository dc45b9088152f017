//! Who may be whom: certificate roles, the trust bundle, pinned keys, and the TLS
//! configurations built of them. Keys are made and certificates issued elsewhere (by the
//! controller's `enrol`, by the agent's `uplink`); here they are checked.
//!
//! Invariants:
//! - A [`Peer`] exists only as the result of verifying a certificate against the trust
//!   bundle, or of matching a pinned key.
//! - A handshake proves that an agent's certificate is of our root and that its key is held;
//!   what it is worth today is said by [`Peer::certified`] alone: everything before its end,
//!   renewal only for [`GRACE`] afterwards, nothing later.
//! - No TLS session is resumed: whoever connects proves everything again.
//! - A role is a URI in the certificate's subject alternative names, never its common name.
//! - A pinned key has no dates: a machine's clock may say 1970.

mod verifier;

use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use jiff::Timestamp;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::CryptoProvider,
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    sign::{CertifiedKey, SigningKey},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, SubjectPublicKeyInfoDer, pem::PemObject};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use self::verifier::{AnyKey, OfOurRoots, PinnedKey, PinnedRoot, Verifier};
use crate::{
    id::{AgentId, RackId},
    wire::{ALPN, ALPN_ENROL},
};

/// The name every controller's certificate carries for agents, whatever its address.
pub const CONTROLLER_NAME: &str = "controller.rackhand.internal";

/// How long after the end of its certificate an agent may still come to renew it: a rack that
/// was cut off for a month comes back by itself.
pub const GRACE: Duration = Duration::from_secs(45 * 24 * 3600);

const SCHEME: &str = "rackhand";

/// Makes aws-lc-rs the process's cryptography. To be called first in every binary and test;
/// later calls change nothing.
pub fn install_crypto() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// What a certificate of ours is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// A controller.
    Controller,
    /// The agent of a rack.
    Agent {
        /// Its registration.
        agent: AgentId,
        /// The rack it may act for.
        rack: RackId,
    },
}

impl fmt::Display for Role {
    /// The URI that stands in the certificate.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Controller => write!(f, "{SCHEME}://controller"),
            Self::Agent { agent, rack } => write!(f, "{SCHEME}://agent/{agent}/rack/{rack}"),
        }
    }
}

impl FromStr for Role {
    type Err = NotAPeer;

    fn from_str(uri: &str) -> Result<Self, NotAPeer> {
        let path = uri.strip_prefix(SCHEME).and_then(|rest| rest.strip_prefix("://")).ok_or(NotAPeer::NoRole)?;
        match path.split('/').collect::<Vec<_>>()[..] {
            ["controller"] => Ok(Self::Controller),
            ["agent", agent, "rack", rack] => Ok(Self::Agent {
                agent: agent.parse().map_err(|_| NotAPeer::NoRole)?,
                rack: rack.parse().map_err(|_| NotAPeer::NoRole)?,
            }),
            _ => Err(NotAPeer::NoRole),
        }
    }
}

/// Who is at the other end, proven by the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Peer {
    /// The holder of a certificate with this role.
    Certified(Role),
    /// The holder of one that has ended, at most [`GRACE`] ago: it may renew it, and nothing else.
    Lapsed(Role),
    /// The holder of the private half of this key: a machine's installer, or boot.
    Pinned(KeyPin),
}

/// Why nobody is believed to be at the other end.
#[derive(Debug, thiserror::Error)]
pub enum NotAPeer {
    /// No certificate or key was presented.
    #[error("the peer presented no certificate")]
    Anonymous,
    /// The certificate has no role of ours, or several.
    #[error("the peer's certificate names no role")]
    NoRole,
    /// The bytes are not a certificate.
    #[error("the peer's certificate is malformed")]
    Malformed,
    /// The certificate begins later than now.
    #[error("the peer's certificate is not valid yet")]
    Early,
    /// The certificate ended longer than [`GRACE`] ago.
    #[error("the peer's certificate ended {until}, too long ago to be renewed")]
    Ended {
        /// What it was for.
        role: Role,
        /// When it ended.
        until: Timestamp,
    },
}

impl Peer {
    /// The peer of a finished handshake in which the certificate chain was verified against
    /// the trust bundle. `chain` is what rustls returns as the peer's certificates.
    pub fn certified(chain: &[CertificateDer<'_>], now: Timestamp) -> Result<Self, NotAPeer> {
        let leaf = chain.first().ok_or(NotAPeer::Anonymous)?;
        let (_, certificate) = x509_parser::parse_x509_certificate(leaf).map_err(|_| NotAPeer::Malformed)?;
        let names = certificate.subject_alternative_name().map_err(|_| NotAPeer::Malformed)?.ok_or(NotAPeer::NoRole)?;
        let mut roles = names.value.general_names.iter().filter_map(|name| match name {
            x509_parser::extensions::GeneralName::URI(uri) => uri.parse().ok(),
            _ => None,
        });
        let (Some(role), None) = (roles.next(), roles.next()) else { return Err(NotAPeer::NoRole) };
        let time = |seconds| Timestamp::from_second(seconds).map_err(|_| NotAPeer::Malformed);
        let since = time(certificate.validity().not_before.timestamp())?;
        let until = time(certificate.validity().not_after.timestamp())?;
        match now {
            _ if now < since => Err(NotAPeer::Early),
            _ if now <= until => Ok(Self::Certified(role)),
            _ if now.duration_since(until).unsigned_abs() <= GRACE => Ok(Self::Lapsed(role)),
            _ => Err(NotAPeer::Ended { role, until }),
        }
    }

    /// The peer of a finished handshake with raw public keys.
    pub fn pinned(keys: &[CertificateDer<'_>]) -> Result<Self, NotAPeer> {
        keys.first().map(|key| Self::Pinned(KeyPin::of(key))).ok_or(NotAPeer::Anonymous)
    }
}

/// SHA-256 of a public key's SubjectPublicKeyInfo (DER).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyPin(pub [u8; 32]);

impl KeyPin {
    /// The pin of this SubjectPublicKeyInfo.
    pub fn of(spki: &[u8]) -> Self {
        Self(Sha256::digest(spki).into())
    }

    /// The pin of this certificate's subject key.
    pub fn of_certificate(certificate: &[u8]) -> Result<Self, NotAPeer> {
        let (_, certificate) = x509_parser::parse_x509_certificate(certificate).map_err(|_| NotAPeer::Malformed)?;
        Ok(Self::of(certificate.public_key().raw))
    }
}

impl fmt::Display for KeyPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for KeyPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for KeyPin {
    type Err = hex::FromHexError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut pin = [0; 32];
        hex::decode_to_slice(text, &mut pin)?;
        Ok(Self(pin))
    }
}

impl Serialize for KeyPin {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for KeyPin {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Whom to believe: two roots, so that one can be replaced while the other vouches, and the
/// certificate of the key that signs image manifests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustBundle {
    /// Roots, PEM: the one that issues now, and the one that will next.
    pub roots: Vec<String>,
    /// The image key's certificate, PEM.
    pub image_key: String,
}

/// A trust bundle or a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// Not PEM.
    #[error("cannot read PEM")]
    Pem(#[source] rustls_pki_types::pem::Error),
    /// rustls refuses it.
    #[error("cannot be used for TLS")]
    Tls(#[source] rustls::Error),
    /// No client verifier can be built of the roots.
    #[error("the roots cannot verify anyone")]
    Verifier(#[source] rustls::server::VerifierBuilderError),
}

impl From<rustls::Error> for Unusable {
    fn from(error: rustls::Error) -> Self {
        Self::Tls(error)
    }
}

impl TrustBundle {
    /// Names this bundle: SHA-256 of its JSON text, in hexadecimal.
    pub fn fingerprint(&self) -> String {
        let json = serde_json::to_vec(self).expect("a bundle always serializes");
        hex::encode(Sha256::digest(&json))
    }

    /// The image key's certificate, for [`SignedManifest::verify`](crate::image::SignedManifest::verify).
    pub fn image_key(&self) -> Result<CertificateDer<'static>, Unusable> {
        CertificateDer::from_pem_slice(self.image_key.as_bytes()).map_err(Unusable::Pem)
    }

    /// The roots as rustls keeps them.
    pub fn root_store(&self) -> Result<Arc<RootCertStore>, Unusable> {
        let mut store = RootCertStore::empty();
        for root in &self.roots {
            store.add(CertificateDer::from_pem_slice(root.as_bytes()).map_err(Unusable::Pem)?)?;
        }
        Ok(Arc::new(store))
    }
}

/// A certificate chain, leaf first, and its private key.
#[derive(Debug)]
pub struct Identity {
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's key.
    pub key: PrivateKeyDer<'static>,
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self { chain: self.chain.clone(), key: self.key.clone_key() }
    }
}

/// TLS of an enrolled agent towards the controller (QUIC, and HTTPS for chunks).
pub fn agent_client(bundle: &TrustBundle, identity: Identity, alpn: &[&[u8]]) -> Result<ClientConfig, Unusable> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(bundle.root_store()?)
        .with_client_auth_cert(identity.chain, identity.key)?;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config.enable_early_data = false;
    Ok(config)
}

/// TLS of a node that has an enrolment code: it believes whoever presents a chain that ends
/// in the root whose key hash stands in the code.
pub fn enrol_client(root: KeyPin) -> Result<ClientConfig, Unusable> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Verifier::of(PinnedRoot(root)))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_ENROL.to_vec()];
    Ok(config)
}

/// TLS of the controller's QUIC endpoint. Client certificates are verified when presented;
/// whether one must be is decided by the protocol chosen: see [`Peer::certified`].
pub fn controller_server(bundle: &TrustBundle, identity: Identity) -> Result<ServerConfig, Unusable> {
    let verifier = WebPkiClientVerifier::builder_with_provider(bundle.root_store()?, provider())
        .allow_unauthenticated()
        .build()
        .map_err(Unusable::Verifier)?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Verifier::of(OfOurRoots(verifier)))
        .with_single_cert(identity.chain, identity.key)?;
    config.alpn_protocols = vec![ALPN.to_vec(), ALPN_ENROL.to_vec()];
    config.max_early_data_size = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// TLS of the installer towards boot: raw public keys on both sides, boot's pinned.
pub fn installer_client(boot: KeyPin, key: PrivateKeyDer<'static>) -> Result<ClientConfig, Unusable> {
    let resolver = rustls::client::AlwaysResolvesClientRawPublicKeys::new(raw_key(key)?);
    Ok(ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Verifier::of(PinnedKey(boot)))
        .with_client_cert_resolver(Arc::new(resolver)))
}

/// TLS of boot towards installers: raw public keys on both sides. Any client key is let in;
/// what it may do is decided by the ticket bound to it.
pub fn boot_server(key: PrivateKeyDer<'static>) -> Result<ServerConfig, Unusable> {
    let resolver = rustls::server::AlwaysResolvesServerRawPublicKeys::new(raw_key(key)?);
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Verifier::of(AnyKey))
        .with_cert_resolver(Arc::new(resolver));
    config.max_early_data_size = 0;
    Ok(config)
}

/// The pin of this private key's public half.
pub fn pin_of(key: &PrivateKeyDer<'_>) -> Result<KeyPin, Unusable> {
    let signing = provider().key_provider.load_private_key(key.clone_key())?;
    Ok(KeyPin::of(&spki(&*signing)?))
}

fn spki(signing: &dyn SigningKey) -> Result<SubjectPublicKeyInfoDer<'_>, Unusable> {
    signing.public_key().ok_or(Unusable::Tls(rustls::Error::General("key has no public half".into())))
}

fn raw_key(key: PrivateKeyDer<'static>) -> Result<Arc<CertifiedKey>, Unusable> {
    let signing = provider().key_provider.load_private_key(key)?;
    let public = CertificateDer::from(spki(&*signing)?.to_vec());
    Ok(Arc::new(CertifiedKey::new(vec![public], signing)))
}

#[cfg(test)]
mod tests {
    use super::*;

    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
    use rustls::{ClientConnection, ServerConnection};
    use rustls_pki_types::ServerName;

    fn handshake(
        client: ClientConfig,
        server: ServerConfig,
    ) -> Result<(ClientConnection, ServerConnection), rustls::Error> {
        let name = ServerName::try_from(CONTROLLER_NAME).unwrap();
        let mut client = ClientConnection::new(Arc::new(client), name)?;
        let mut server = ServerConnection::new(Arc::new(server))?;
        for _ in 0..10 {
            let mut bytes = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut bytes).unwrap();
            }
            while !bytes.is_empty() {
                let mut rest = &bytes[..];
                server.read_tls(&mut rest).unwrap();
                bytes = rest.to_vec();
                server.process_new_packets()?;
            }
            while server.wants_write() {
                server.write_tls(&mut bytes).unwrap();
            }
            while !bytes.is_empty() {
                let mut rest = &bytes[..];
                client.read_tls(&mut rest).unwrap();
                bytes = rest.to_vec();
                client.process_new_packets()?;
            }
        }
        Ok((client, server))
    }

    fn key() -> PrivateKeyDer<'static> {
        KeyPair::generate().unwrap().into()
    }

    #[test]
    fn an_installer_believes_only_the_pinned_boot_and_boot_learns_the_installers_key() {
        let (boot, installer) = (key(), key());
        let pin = pin_of(&boot).unwrap();
        let (_, server) =
            handshake(installer_client(pin, installer.clone_key()).unwrap(), boot_server(boot.clone_key()).unwrap())
                .unwrap();
        let peer = Peer::pinned(server.peer_certificates().unwrap()).unwrap();
        assert_eq!(peer, Peer::Pinned(pin_of(&installer).unwrap()));

        let impostor = boot_server(key()).unwrap();
        assert!(handshake(installer_client(pin, installer).unwrap(), impostor).is_err());
    }

    struct Ca {
        certificate: rcgen::Certificate,
        issuer: Issuer<'static, KeyPair>,
    }

    fn ca() -> Ca {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        Ca { certificate, issuer: Issuer::new(params, key) }
    }

    fn issue(ca: &Ca, role: Role) -> Identity {
        issue_at(ca, role, now(), Duration::from_secs(3600))
    }

    #[expect(clippy::disallowed_methods, reason = "a handshake looks at the system's clock")]
    fn now() -> Timestamp {
        Timestamp::now()
    }

    fn issue_at(ca: &Ca, role: Role, since: Timestamp, ttl: Duration) -> Identity {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![CONTROLLER_NAME.to_owned()]).unwrap();
        let since = Duration::from_secs(since.as_second().try_into().unwrap());
        params.not_before = rcgen::date_time_ymd(1970, 1, 1) + since;
        params.not_after = params.not_before + ttl;
        params.subject_alt_names.push(SanType::URI(role.to_string().try_into().unwrap()));
        let leaf = params.signed_by(&key, &ca.issuer).unwrap();
        Identity { chain: vec![leaf.der().clone(), ca.certificate.der().clone()], key: key.into() }
    }

    fn bundle(ca: &Ca) -> TrustBundle {
        TrustBundle { roots: vec![ca.certificate.pem()], image_key: ca.certificate.pem() }
    }

    #[test]
    fn an_agents_certificate_names_its_rack() {
        let ca = ca();
        let role = Role::Agent { agent: AgentId::fresh(), rack: RackId::fresh() };
        let (_, server) = handshake(
            agent_client(&bundle(&ca), issue(&ca, role), &[ALPN]).unwrap(),
            controller_server(&bundle(&ca), issue(&ca, Role::Controller)).unwrap(),
        )
        .unwrap();
        assert_eq!(Peer::certified(server.peer_certificates().unwrap(), now()).unwrap(), Peer::Certified(role));
    }

    #[test]
    fn a_certificate_that_ended_is_good_for_renewal_for_45_days_and_then_for_nothing() {
        const DAY: Duration = Duration::from_secs(24 * 3600);
        let ca = ca();
        let role = Role::Agent { agent: AgentId::fresh(), rack: RackId::fresh() };
        let peer = |ended_ago: Duration| {
            let identity = issue_at(&ca, role, now() - ended_ago - 2 * DAY, 2 * DAY);
            let client = agent_client(&bundle(&ca), identity, &[ALPN]).unwrap();
            let server = controller_server(&bundle(&ca), issue(&ca, Role::Controller)).unwrap();
            let (_, server) = handshake(client, server).unwrap();
            Peer::certified(server.peer_certificates().unwrap(), now())
        };
        assert_eq!(peer(30 * DAY).unwrap(), Peer::Lapsed(role));
        assert_eq!(peer(GRACE - Duration::from_secs(60)).unwrap(), Peer::Lapsed(role));
        let late = peer(GRACE + Duration::from_secs(60));
        assert!(matches!(late, Err(NotAPeer::Ended { role: of, .. }) if of == role), "{late:?}");
    }

    #[test]
    fn a_certificate_that_ended_is_believed_only_of_our_root_and_never_before_it_begins() {
        let (ours, theirs) = (ca(), ca());
        let role = Role::Agent { agent: AgentId::fresh(), rack: RackId::fresh() };
        let hour = Duration::from_secs(3600);
        let attempt = |ca, since| {
            let client = agent_client(&bundle(&ours), issue_at(ca, role, since, hour), &[ALPN]).unwrap();
            handshake(client, controller_server(&bundle(&ours), issue(&ours, Role::Controller)).unwrap())
        };
        assert!(attempt(&ours, now() - 2 * hour).is_ok());
        assert!(attempt(&theirs, now() - 2 * hour).is_err());
        assert!(attempt(&ours, now() + hour).is_err());
    }

    #[test]
    fn a_certificate_of_another_root_is_refused() {
        let (ours, theirs) = (ca(), ca());
        let role = Role::Agent { agent: AgentId::fresh(), rack: RackId::fresh() };
        let client = agent_client(&bundle(&ours), issue(&theirs, role), &[ALPN]).unwrap();
        let server = controller_server(&bundle(&ours), issue(&ours, Role::Controller)).unwrap();
        assert!(handshake(client, server).is_err());
    }

    #[test]
    fn an_enrolling_node_believes_the_root_in_its_code_and_no_other() {
        let (ours, theirs) = (ca(), ca());
        let pin = KeyPin::of_certificate(ours.certificate.der()).unwrap();
        let server = |ca| controller_server(&bundle(ca), issue(ca, Role::Controller)).unwrap();
        let (_, connection) = handshake(enrol_client(pin).unwrap(), server(&ours)).unwrap();
        assert!(connection.peer_certificates().is_none());
        assert!(handshake(enrol_client(pin).unwrap(), server(&theirs)).is_err());
    }

    #[test]
    fn a_certificate_with_two_roles_has_none() {
        let ca = ca();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        for _ in 0..2 {
            params.subject_alt_names.push(SanType::URI(Role::Controller.to_string().try_into().unwrap()));
        }
        let leaf = params.signed_by(&key, &ca.issuer).unwrap();
        assert!(matches!(Peer::certified(&[leaf.der().clone()], now()), Err(NotAPeer::NoRole)));
    }
}
