//! Which certificate whoever connects to the HTTPS port is shown.
//!
//! Invariants:
//! - Agents are shown the one of our own roots, which is all they believe; so nothing about the
//!   other can shut a rack out.
//! - The other one, from files or by ACME, is shown for the names that it is for alone. By an
//!   address, or a name that it does not cover, one is shown that says so: our own.

use std::{
    collections::HashMap,
    fs,
    path::Path,
    sync::{Arc, PoisonError, RwLock},
};

use anyhow::{Context as _, Result, ensure};
use rackhand_common::{pki::Identity, wire::ALPN_OBJECTS};
use rustls::{
    client::verify_server_name,
    crypto::aws_lc_rs,
    server::{ClientHello, ParsedCertificate, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _};

/// What an authority asks with that wants to see who controls a name (RFC 8737).
pub const ALPN_ACME: &[u8] = b"acme-tls/1";

/// The certificates in use; each connection is shown those of its beginning.
#[derive(Debug)]
pub struct Certificates(RwLock<Shown>);

#[derive(Debug)]
struct Shown {
    ours: Arc<CertifiedKey>,
    public: Option<Arc<CertifiedKey>>,
    /// By name: answers to an authority.
    proofs: HashMap<String, Arc<CertifiedKey>>,
}

impl Certificates {
    /// Our own and no other.
    pub fn new(ours: Identity) -> Result<Self> {
        let shown = Shown { ours: certified(ours)?, public: None, proofs: HashMap::new() };
        Ok(Self(RwLock::new(shown)))
    }

    /// Shows another one of our own from now on.
    pub fn show_ours(&self, ours: Arc<CertifiedKey>) {
        self.change(|shown| shown.ours = ours);
    }

    /// Shows this one to whoever is no agent from now on, or none.
    pub fn show_public(&self, public: Option<Arc<CertifiedKey>>) {
        self.change(|shown| shown.public = public);
    }

    /// Answers an authority that asks for a name, until [`forget_proofs`](Self::forget_proofs).
    pub fn prove(&self, name: String, proof: Arc<CertifiedKey>) {
        self.change(|shown| drop(shown.proofs.insert(name, proof)));
    }

    /// Answers no authority any more.
    pub fn forget_proofs(&self) {
        self.change(|shown| shown.proofs.clear());
    }

    fn change(&self, change: impl FnOnce(&mut Shown)) {
        change(&mut self.0.write().unwrap_or_else(PoisonError::into_inner));
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let offers = |name| hello.alpn().is_some_and(|mut offered| offered.any(|offered| offered == name));
        let shown = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if offers(ALPN_ACME) {
            return shown.proofs.get(hello.server_name()?).cloned();
        }
        let public = shown.public.as_ref().filter(|_| !offers(ALPN_OBJECTS));
        let public = public.filter(|public| hello.server_name().is_some_and(|name| covers(public, name)));
        Some(public.unwrap_or(&shown.ours).clone())
    }
}

/// Whether a certificate is for this name.
pub fn covers(certificate: &CertifiedKey, name: &str) -> bool {
    let leaf = certificate.end_entity_cert().and_then(ParsedCertificate::try_from);
    let name = ServerName::try_from(name);
    leaf.is_ok_and(|leaf| name.is_ok_and(|name| verify_server_name(&leaf, &name).is_ok()))
}

/// A chain, leaf first, with its key, which must be the leaf's.
pub fn certified(Identity { chain, key }: Identity) -> Result<Arc<CertifiedKey>> {
    let certified = CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider())?;
    certified.keys_match().context("the key is not the certificate's")?;
    Ok(Arc::new(certified))
}

/// The chain and the key in these files (PEM, which may be one), for at least one of `names`.
pub fn read(certificate: &Path, key: &Path, names: &[String]) -> Result<Arc<CertifiedKey>> {
    let text = fs::read(certificate).with_context(|| format!("cannot read {}", certificate.display()))?;
    let chain = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
    let chain = chain.with_context(|| format!("{} has no PEM certificates", certificate.display()))?;
    ensure!(!chain.is_empty(), "{} has no PEM certificate", certificate.display());
    let key_text = fs::read(key).with_context(|| format!("cannot read {}", key.display()))?;
    let of_file = PrivateKeyDer::from_pem_slice(&key_text);
    let of_file = of_file.with_context(|| format!("{} has no PEM private key", key.display()))?;
    let certified = certified(Identity { chain, key: of_file })
        .with_context(|| format!("{} and {} do not belong together", certificate.display(), key.display()))?;
    ensure!(
        names.iter().any(|name| covers(&certified, name)),
        "the certificate in {} is for none of this controller's names ({}): nobody would be shown it",
        certificate.display(),
        names.join(", ")
    );
    Ok(certified)
}

#[cfg(test)]
mod tests {
    use rackhand_common::pki::install_crypto;
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn made(dir: &Path, file: &str, name: &str) {
        let key = KeyPair::generate().unwrap();
        let made = CertificateParams::new(vec![name.to_owned()]).unwrap().self_signed(&key).unwrap();
        fs::write(dir.join(format!("{file}.crt")), made.pem()).unwrap();
        fs::write(dir.join(format!("{file}.key")), key.serialize_pem()).unwrap();
    }

    #[test]
    fn files_that_cannot_be_shown_are_refused_with_the_reason() {
        install_crypto();
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        made(dir.path(), "a", "a.example.net");
        made(dir.path(), "b", "*.example.org");
        fs::write(at("empty"), "").unwrap();
        let read = |certificate: &str, key: &str, name: &str| {
            read(&at(certificate), &at(key), &[name.to_owned()]).map_err(|error| format!("{error:#}"))
        };
        read("a.crt", "a.key", "a.example.net").unwrap();
        read("b.crt", "b.key", "rack.example.org").unwrap();
        for (certificate, key, name, why) in [
            ("none", "a.key", "a.example.net", "cannot read"),
            ("empty", "a.key", "a.example.net", "has no PEM certificate"),
            ("a.crt", "a.crt", "a.example.net", "has no PEM private key"),
            ("a.crt", "b.key", "a.example.net", "do not belong together"),
            ("a.crt", "a.key", "b.example.net", "is for none of this controller's names (b.example.net)"),
            ("b.crt", "b.key", "a.b.example.org", "is for none of"),
        ] {
            let error = read(certificate, key, name).unwrap_err();
            assert!(error.contains(why), "{certificate} {key} {name}: {error}");
        }
    }
}
