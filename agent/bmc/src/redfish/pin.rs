//! Whom a connection believes: the one certificate that a BMC had when it was first met.
//!
//! Invariants:
//! - The peer signs the handshake with the key of the certificate it shows.
//! - Once a certificate is known, no other is believed, and nothing is sent to who shows another.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use sha2::{Digest, Sha256};

/// SHA-256 of a certificate in DER.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// The fingerprint of this certificate.
    pub fn of(certificate: &[u8]) -> Self {
        Self(Sha256::digest(certificate).into())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What is known of a BMC's certificate.
#[derive(Debug, Default)]
struct Known {
    pinned: Option<Fingerprint>,
    refused: Option<Fingerprint>,
}

/// Believes the first certificate it sees, and from then on only that one.
#[derive(Clone, Debug)]
pub struct Pin {
    known: Arc<Mutex<Known>>,
    provider: Arc<CryptoProvider>,
}

impl Pin {
    /// Believes only this certificate, or else the first one.
    pub fn new(pinned: Option<Fingerprint>) -> Self {
        Self {
            known: Arc::new(Mutex::new(Known { pinned, refused: None })),
            provider: Arc::new(aws_lc_rs::default_provider()),
        }
    }

    /// The certificate that is believed.
    pub fn pinned(&self) -> Option<Fingerprint> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).pinned
    }

    /// The certificate that was not believed since this was last asked.
    pub fn refused(&self) -> Option<Fingerprint> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).refused.take()
    }

    /// Whether a certificate was not believed since [`refused`](Self::refused) was last asked.
    pub fn has_refused(&self) -> bool {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).refused.is_some()
    }

    /// TLS that believes so.
    pub fn tls(&self) -> Result<ClientConfig, Error> {
        let mut config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(self.clone()))
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

impl ServerCertVerifier for Pin {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let seen = Fingerprint::of(leaf);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.pinned.is_some_and(|pinned| pinned != seen) {
            known.refused = Some(seen);
            return Err(CertificateError::ApplicationVerificationFailure.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let valid = verify_tls12_signature(message, leaf, signed, &self.provider.signature_verification_algorithms)?;
        self.learn(leaf);
        Ok(valid)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let valid = verify_tls13_signature(message, leaf, signed, &self.provider.signature_verification_algorithms)?;
        self.learn(leaf);
        Ok(valid)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl Pin {
    /// Only who has proven to hold the key is who was met first.
    fn learn(&self, leaf: &[u8]) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).pinned.get_or_insert_with(|| Fingerprint::of(leaf));
    }
}
