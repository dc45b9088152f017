//! Whom a handshake believes. What differs is a [`Client`] or a [`Server`]; how its signature is
//! checked is one piece for all of them: a [`Verifier`].

use std::{fmt::Debug, sync::Arc, time::Duration};

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible, RootCertStore,
    SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature, verify_tls13_signature_with_raw_key},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use rustls_pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};

use super::{KeyPin, provider};

/// What a peer presents, and signs the handshake with the key of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Presents {
    /// A certificate.
    Certificate,
    /// A raw public key (RFC 7250).
    RawKey,
}

/// Which clients are believed.
pub(super) trait Client: Debug + Send + Sync {
    /// What they present.
    const PRESENTS: Presents;
    /// Whether one that presents nothing is turned away.
    const MUST_PRESENT: bool;

    /// The names of whose certificates they may choose from.
    fn hints(&self) -> &[DistinguishedName] {
        &[]
    }

    /// Fails for one that is not.
    fn believe(&self, leaf: &CertificateDer<'_>, others: &[CertificateDer<'_>], now: UnixTime) -> Result<(), Error>;
}

/// Which servers are believed.
pub(super) trait Server: Debug + Send + Sync {
    /// What they present.
    const PRESENTS: Presents;

    /// Fails for one that is not.
    fn believe(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), Error>;
}

/// Believes clients whose certificate our roots vouch for, now or at its end: of one that has
/// ended, [`Peer::certified`](super::Peer::certified) says what it is still good for.
#[derive(Debug)]
pub(super) struct OfOurRoots(pub(super) Arc<dyn ClientCertVerifier>);

impl Client for OfOurRoots {
    const PRESENTS: Presents = Presents::Certificate;
    const MUST_PRESENT: bool = false;

    fn hints(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn believe(&self, leaf: &CertificateDer<'_>, others: &[CertificateDer<'_>], now: UnixTime) -> Result<(), Error> {
        use CertificateError::{Expired, ExpiredContext};
        match self.0.verify_client_cert(leaf, others, now) {
            Err(error @ Error::InvalidCertificate(Expired | ExpiredContext { .. })) => {
                // When it is a root that has ended, this fails again.
                let end = end(leaf).filter(|end| *end < now.as_secs()).ok_or(error)?;
                let then = UnixTime::since_unix_epoch(Duration::from_secs(end));
                self.0.verify_client_cert(leaf, others, then).map(drop)
            }
            verified => verified.map(drop),
        }
    }
}

/// When a certificate ends, in seconds since 1970.
fn end(certificate: &[u8]) -> Option<u64> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    certificate.validity().not_after.timestamp().try_into().ok()
}

/// Believes any client that holds the raw key it presents.
#[derive(Debug)]
pub(super) struct AnyKey;

impl Client for AnyKey {
    const PRESENTS: Presents = Presents::RawKey;
    const MUST_PRESENT: bool = true;

    fn believe(&self, _: &CertificateDer<'_>, _: &[CertificateDer<'_>], _: UnixTime) -> Result<(), Error> {
        Ok(())
    }
}

/// Believes a server whose chain ends in the root with this pin and is of the name that was
/// called.
#[derive(Debug)]
pub(super) struct PinnedRoot(pub(super) KeyPin);

impl Server for PinnedRoot {
    const PRESENTS: Presents = Presents::Certificate;

    fn believe(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), Error> {
        let unknown = || Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let is_pinned = |root: &&CertificateDer<'_>| KeyPin::of_certificate(root).is_ok_and(|pin| pin == self.0);
        let root = others.iter().find(is_pinned).ok_or_else(unknown)?;
        let mut roots = RootCertStore::empty();
        roots.add(root.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(|_| unknown())?
            .verify_server_cert(leaf, others, name, &[], now)
            .map(drop)
    }
}

/// Believes the server that holds this raw key.
#[derive(Debug)]
pub(super) struct PinnedKey(pub(super) KeyPin);

impl Server for PinnedKey {
    const PRESENTS: Presents = Presents::RawKey;

    fn believe(
        &self,
        key: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: UnixTime,
    ) -> Result<(), Error> {
        let other = Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure);
        if KeyPin::of(key) == self.0 { Ok(()) } else { Err(other) }
    }
}

/// Verifies peers that `B` believes; TLS 1.3 only, as all our configurations are.
#[derive(Debug)]
pub(super) struct Verifier<B> {
    believed: B,
    algorithms: WebPkiSupportedAlgorithms,
}

impl<B> Verifier<B> {
    pub(super) fn of(believed: B) -> Arc<Self> {
        Arc::new(Self { believed, algorithms: provider().signature_verification_algorithms })
    }

    /// Fails unless whoever signed the handshake holds the key that was presented.
    fn holds(
        &self,
        presents: Presents,
        message: &[u8],
        presented: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        match presents {
            Presents::Certificate => verify_tls13_signature(message, presented, signed, &self.algorithms),
            Presents::RawKey => {
                let key = SubjectPublicKeyInfoDer::from(presented.as_ref());
                verify_tls13_signature_with_raw_key(message, &key, signed, &self.algorithms)
            }
        }
    }
}

const TOO_OLD: Error = Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered);

impl<B: Server> ServerCertVerifier for Verifier<B> {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.believed.believe(leaf, others, name, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(TOO_OLD)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        presented: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.holds(B::PRESENTS, message, presented, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }

    fn requires_raw_public_keys(&self) -> bool {
        B::PRESENTS == Presents::RawKey
    }
}

impl<B: Client> ClientCertVerifier for Verifier<B> {
    fn client_auth_mandatory(&self) -> bool {
        B::MUST_PRESENT
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.believed.hints()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.believed.believe(leaf, others, now).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(TOO_OLD)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        presented: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.holds(B::PRESENTS, message, presented, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }

    fn requires_raw_public_keys(&self) -> bool {
        B::PRESENTS == Presents::RawKey
    }
}
