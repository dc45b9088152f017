//! The certificate authority: its roots, the image key, and the controller's own identity.
//!
//! Everything is in one directory, mode 0700, its files 0600. It is made whole by renaming a
//! finished directory into place. `ca.json` says which roots count and which one issues; it is
//! replaced whole, and what other files say otherwise is set right by [`Authority::settle`].
//!
//! Invariants:
//! - At most two roots count, in the order of their numbers, and one of them issues. A number
//!   is never used again.
//! - A certificate's role is decided here; of a request only the public key is used, after its
//!   signature has shown that the private half is held.
//! - A chain ends with the root itself, so that a node that knows only the root's hash can check.

use std::{
    fs, io,
    io::Write as _,
    net::IpAddr,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, fchown},
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;
use rackhand_common::{
    erasure::{Certificate, SIGNER, SignedCertificate},
    pki::{CONTROLLER_NAME, Identity, KeyPin, Role, TrustBundle, Unusable},
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SigningKey,
};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, pem::PemObject};
use serde::{Deserialize, Serialize};

/// The type that rcgen wants, which it does not let us name.
macro_rules! offset_date_time {
    ($time:expr) => {
        rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(u64::try_from($time.as_second()).unwrap_or(0))
    };
}

/// How long an agent's certificate lasts; agents renew at half of it.
pub const AGENT_TTL: Duration = Duration::from_secs(48 * 3600);

/// How long the controller's own certificate lasts.
const CONTROLLER_TTL: Duration = Duration::from_secs(825 * 24 * 3600);

/// At a start with less than this left, the controller's certificate is made anew.
pub(crate) const CONTROLLER_MARGIN: Duration = Duration::from_secs(200 * 24 * 3600);

/// Which roots count.
const STATE: &str = "ca.json";

/// The controller's own key and certificate.
const CONTROLLER: &str = "controller.pem";

/// The key of certificates of erasure, and its certificate.
const ERASURES: &str = "erasures.pem";

/// Certificates begin this long ago: the clocks of nodes differ.
const SKEW: Duration = Duration::from_secs(3600);

/// Why the authority cannot do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// It has been made before.
    #[error("{0} exists already")]
    Exists(PathBuf),
    /// A file cannot be read or written.
    #[error("cannot use {0}")]
    File(PathBuf, #[source] io::Error),
    /// A stored key or certificate is not one.
    #[error("{0} is damaged")]
    Damaged(PathBuf, #[source] Box<dyn std::error::Error + Send + Sync>),
    /// A name is not a host name.
    #[error("{0} is neither a host name nor an address")]
    Name(String),
    /// The request is malformed, or not signed by its own key.
    #[error("the certificate request is not acceptable")]
    Request(#[source] rcgen::Error),
    /// Cryptography failed.
    #[error("cannot make a key or certificate")]
    Make(#[source] rcgen::Error),
    /// A rotation's steps come in their order.
    #[error("{0}")]
    Order(&'static str),
    /// TLS cannot be built of it.
    #[error("cannot be used for TLS")]
    Unusable(#[from] Unusable),
}

impl From<rcgen::Error> for AuthorityError {
    fn from(error: rcgen::Error) -> Self {
        Self::Make(error)
    }
}

/// A certificate fresh from the authority.
#[derive(Clone, Debug)]
pub struct Issued {
    /// Leaf first, root last.
    pub chain: Vec<CertificateDer<'static>>,
    /// Hash of its key.
    pub key: KeyPin,
    /// Its end.
    pub until: Timestamp,
}

/// The key that signs certificates of erasure, with what vouches for it.
#[derive(Debug)]
pub struct Certifier {
    key: KeyPair,
    chain: Vec<String>,
}

impl Certifier {
    /// Signs a certificate.
    pub fn certify(&self, certificate: &Certificate) -> SignedCertificate {
        let sign = |bytes: &[u8]| self.key.sign(bytes).expect("a P-256 key that was read signs");
        SignedCertificate::sign(certificate, self.chain.clone(), sign)
    }
}

/// Which roots count: `ca.json`. Absent in a directory that has never been rotated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Roots {
    /// Numbers of those in the trust bundle, the oldest first.
    bundle: Vec<u32>,
    /// Number of the one that issues.
    issuer: u32,
}

impl Default for Roots {
    fn default() -> Self {
        Self { bundle: vec![1, 2], issuer: 1 }
    }
}

impl Roots {
    /// The newest root.
    fn newest(&self) -> u32 {
        self.bundle.last().copied().unwrap_or_default()
    }
}

/// A root in the trust bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// Counts up.
    pub number: u32,
    /// Hash of its key.
    pub pin: KeyPin,
    /// Its end.
    pub until: Timestamp,
    /// Whether certificates come from it.
    pub issues: bool,
}

/// The opened authority.
#[derive(Debug)]
pub struct Authority {
    dir: PathBuf,
    roots: Roots,
    certificates: Vec<CertificateDer<'static>>,
    root: CertificateDer<'static>,
    root_key: KeyPair,
    image_key: KeyPair,
    bundle: TrustBundle,
}

impl Authority {
    /// Makes a new authority in `dir`, which must not exist.
    pub fn init(dir: &Path, now: Timestamp) -> Result<Self, AuthorityError> {
        if dir.exists() {
            return Err(AuthorityError::Exists(dir.to_owned()));
        }
        let fresh = dir.with_extension("new");
        let at = |path: &Path| {
            let path = path.to_owned();
            move |error| AuthorityError::File(path, error)
        };
        match fs::remove_dir_all(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&fresh)(error)),
            _ => (),
        }
        fs::DirBuilder::new().mode(0o700).create(&fresh).map_err(at(&fresh))?;
        let mut roots = String::new();
        for number in Roots::default().bundle {
            roots += &make_root(&fresh, number, now)?;
        }
        write(&fresh.join("ca.pem"), roots.as_bytes())?;
        let key = KeyPair::generate()?;
        write(&fresh.join("image.key"), key.serialize_pem().as_bytes())?;
        write(&fresh.join("image.pem"), self_signed("Rackhand images", false, now, &key)?.as_bytes())?;
        sync(&fresh)?;
        fs::rename(&fresh, dir).map_err(at(dir))?;
        sync(dir.parent().unwrap_or(Path::new("/")))?;
        Self::open(dir)
    }

    /// The authority that [`Authority::init`] made.
    pub fn open(dir: &Path) -> Result<Self, AuthorityError> {
        let text = |name: &str| {
            let path = dir.join(name);
            fs::read_to_string(&path).map_err(|error| AuthorityError::File(path, error))
        };
        let key = |name: &str| {
            KeyPair::from_pem(&text(name)?).map_err(|error| AuthorityError::Damaged(dir.join(name), error.into()))
        };
        let roots: Roots = match fs::read(dir.join(STATE)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Roots::default(),
            Err(error) => return Err(AuthorityError::File(dir.join(STATE), error)),
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| AuthorityError::Damaged(dir.join(STATE), error.into()))?,
        };
        let texts = roots.bundle.iter().map(|number| text(&format!("root-{number}.pem")));
        let bundle = TrustBundle { roots: texts.collect::<Result<_, _>>()?, image_key: text("image.pem")? };
        bundle.root_store()?;
        bundle.image_key()?;
        let mut certificates = Vec::new();
        for (number, root) in roots.bundle.iter().zip(&bundle.roots) {
            let certificate = CertificateDer::from_pem_slice(root.as_bytes())
                .map_err(|error| AuthorityError::Damaged(dir.join(format!("root-{number}.pem")), error.into()))?;
            certificates.push(certificate);
        }
        let issuer = roots.bundle.iter().position(|number| *number == roots.issuer);
        let issuer = issuer.ok_or_else(|| AuthorityError::Damaged(dir.join(STATE), "its issuer is no root".into()))?;
        let (root, root_key) = (certificates[issuer].clone(), key(&format!("root-{}.key", roots.issuer))?);
        Ok(Self { dir: dir.to_owned(), roots, certificates, root, root_key, image_key: key("image.key")?, bundle })
    }

    /// The roots in the trust bundle, the oldest first.
    pub fn roots(&self) -> Vec<Root> {
        let root = |(number, certificate): (&u32, &CertificateDer<'_>)| Root {
            number: *number,
            pin: KeyPin::of_certificate(certificate).unwrap_or(KeyPin([0; 32])),
            until: ends(certificate).unwrap_or(Timestamp::UNIX_EPOCH),
            issues: *number == self.roots.issuer,
        };
        self.roots.bundle.iter().zip(&self.certificates).map(root).collect()
    }

    /// The root in the bundle that issued this certificate, which a handshake has verified.
    pub fn root_of(&self, leaf: &CertificateDer<'_>) -> Option<KeyPin> {
        let (_, leaf) = x509_parser::parse_x509_certificate(leaf).ok()?;
        let issuer = self.certificates.iter().find(|root| {
            x509_parser::parse_x509_certificate(root)
                .is_ok_and(|(_, root)| root.subject().as_raw() == leaf.issuer().as_raw())
        });
        KeyPin::of_certificate(issuer?).ok()
    }

    /// Makes a root and adds it to the trust bundle. There must be one only.
    pub fn add_root(&mut self, now: Timestamp) -> Result<(), AuthorityError> {
        if self.roots.bundle.len() != 1 {
            return Err(AuthorityError::Order("there are two roots already"));
        }
        let number = self.roots.newest() + 1;
        make_root(&self.dir, number, now)?;
        sync(&self.dir)?;
        self.change(Roots { bundle: vec![self.roots.issuer, number], issuer: self.roots.issuer })
    }

    /// Issues from the newest root from now on.
    pub fn issue_from_newest(&mut self) -> Result<(), AuthorityError> {
        if self.roots.issuer == self.roots.newest() {
            return Err(AuthorityError::Order("certificates come from the newest root already"));
        }
        self.change(Roots { bundle: self.roots.bundle.clone(), issuer: self.roots.newest() })
    }

    /// Forgets the older root and destroys its key.
    pub fn retire_oldest(&mut self) -> Result<(), AuthorityError> {
        if self.roots.bundle.len() != 2 || self.roots.issuer != self.roots.newest() {
            return Err(AuthorityError::Order("no root is there that nothing comes from any more"));
        }
        self.change(Roots { bundle: vec![self.roots.issuer], issuer: self.roots.issuer })
    }

    fn change(&mut self, roots: Roots) -> Result<(), AuthorityError> {
        let json = serde_json::to_vec(&roots).expect("numbers always serialize");
        replace(&self.dir, STATE, &json)?;
        *self = Self::open(&self.dir)?;
        self.settle()
    }

    /// Makes the other files say what `ca.json` says, after a change that was interrupted. Only
    /// whoever holds the lock of the data directory may call it.
    pub fn settle(&self) -> Result<(), AuthorityError> {
        let failed = |error| AuthorityError::File(self.dir.clone(), error);
        let roots = self.bundle.roots.concat();
        if fs::read_to_string(self.ca_file()).ok().as_deref() != Some(&roots) {
            replace(&self.dir, "ca.pem", roots.as_bytes())?;
        }
        for entry in fs::read_dir(&self.dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path.file_stem().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix("root-"));
            if name.and_then(|name| name.parse().ok()).is_some_and(|number| !self.roots.bundle.contains(&number)) {
                fs::remove_file(&path).map_err(|error| AuthorityError::File(path, error))?;
            }
        }
        sync(&self.dir)
    }

    /// Whom everyone is to believe.
    pub fn bundle(&self) -> &TrustBundle {
        &self.bundle
    }

    /// The file with the roots, for operators' tools.
    pub fn ca_file(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// The pin of the root that issues, as it stands in enrolment codes.
    pub fn root_pin(&self) -> KeyPin {
        KeyPin::of(&self.root_key.subject_public_key_info())
    }

    /// Signs an image's manifest: ECDSA P-256 with SHA-256, DER.
    pub fn sign_image(&self, bytes: &[u8]) -> Vec<u8> {
        self.image_key.sign(bytes).expect("a P-256 key that was read signs")
    }

    /// A certificate with this role for the key of a PKCS #10 request.
    pub fn issue(&self, csr: &[u8], role: Role, ttl: Duration, now: Timestamp) -> Result<Issued, AuthorityError> {
        let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr))
            .map_err(AuthorityError::Request)?;
        self.certify(&request.public_key, role, &[], ttl, now)
    }

    /// The controller's own certificate and key for these names and addresses, made anew when
    /// there is none, when its end is near or when the names are others.
    pub fn controller(&self, names: &[String], now: Timestamp) -> Result<Identity, AuthorityError> {
        let path = self.dir.join(CONTROLLER);
        let mut all: Vec<String> = vec![CONTROLLER_NAME.into(), "localhost".into(), "127.0.0.1".into(), "::1".into()];
        all.extend(names.iter().filter(|name| !all.contains(name)).cloned().collect::<Vec<_>>());
        let heading = format!("# {}\n", all.join(" "));
        if let Ok(text) = fs::read_to_string(&path)
            && text.starts_with(&heading)
            && let Some(identity) = identity(&text)
            && identity.chain.last() == Some(&self.root)
            && ends(&identity.chain[0]).is_some_and(|end| until(now, CONTROLLER_MARGIN) < end)
        {
            return Ok(identity);
        }
        let key = KeyPair::generate()?;
        let issued = self.certify(&key, Role::Controller, &all, CONTROLLER_TTL, now)?;
        let mut text = heading + &key.serialize_pem();
        for certificate in &issued.chain {
            text += &pem(certificate);
        }
        replace(&self.dir, CONTROLLER, text.as_bytes())?;
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        Ok(Identity { chain: issued.chain, key })
    }

    /// What signs certificates of erasure: its key and certificate, made anew when there are none,
    /// when their end is near or when another root issues.
    pub fn certifier(&self, now: Timestamp) -> Result<Certifier, AuthorityError> {
        let read = || {
            let text = fs::read_to_string(self.dir.join(ERASURES)).ok()?;
            let identity = identity(&text)?;
            let lasts = ends(&identity.chain[0]).is_some_and(|end| until(now, CONTROLLER_MARGIN) < end);
            let is_ours = identity.chain.last() == Some(&self.root) && lasts;
            let key = KeyPair::from_pem(&text).ok().filter(|_| is_ours)?;
            Some(Certifier { key, chain: identity.chain.iter().map(|certificate| pem(certificate)).collect() })
        };
        if let Some(certifier) = read() {
            return Ok(certifier);
        }
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "Rackhand certificates of erasure");
        params.not_before = offset_date_time!(back(now));
        params.not_after = offset_date_time!(until(now, CONTROLLER_TTL));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // Signing documents (RFC 9336 §3): no TLS takes it.
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(vec![1, 3, 6, 1, 5, 5, 7, 3, 36])];
        params.subject_alt_names.push(SanType::URI(SIGNER.try_into()?));
        let issuer = Issuer::from_ca_cert_der(&self.root, &self.root_key)?;
        let certificate = params.signed_by(&key, &issuer)?;
        let chain = vec![pem(certificate.der()), pem(&self.root)];
        replace(&self.dir, ERASURES, (key.serialize_pem() + &chain.concat()).as_bytes())?;
        Ok(Certifier { key, chain })
    }

    fn certify(
        &self,
        key: &impl PublicKeyData,
        role: Role,
        names: &[String],
        ttl: Duration,
        now: Timestamp,
    ) -> Result<Issued, AuthorityError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "Rackhand");
        params.not_before = offset_date_time!(back(now));
        let end = until(now, ttl);
        params.not_after = offset_date_time!(end);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![match role {
            Role::Controller => ExtendedKeyUsagePurpose::ServerAuth,
            Role::Agent { .. } => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        params.subject_alt_names.push(SanType::URI(role.to_string().try_into()?));
        for name in names {
            params.subject_alt_names.push(match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => {
                    SanType::DnsName(name.as_str().try_into().map_err(|_| AuthorityError::Name(name.to_owned()))?)
                }
            });
        }
        let issuer = Issuer::from_ca_cert_der(&self.root, &self.root_key)?;
        let certificate = params.signed_by(key, &issuer)?;
        let chain = vec![certificate.der().clone(), self.root.clone()];
        Ok(Issued { chain, key: KeyPin::of(&key.subject_public_key_info()), until: end })
    }
}

fn self_signed(name: &str, is_root: bool, now: Timestamp, key: &KeyPair) -> Result<String, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = offset_date_time!(back(now));
    params.not_after = offset_date_time!(until(now, Duration::from_secs(20 * 365 * 24 * 3600)));
    if is_root {
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    } else {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    }
    Ok(params.self_signed(key)?.pem())
}

fn identity(text: &str) -> Option<Identity> {
    let chain = CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<Vec<_>, _>>().ok()?;
    let key = PrivateKeyDer::from_pem_slice(text.as_bytes()).ok()?;
    (!chain.is_empty()).then_some(Identity { chain, key })
}

/// The end of the first certificate in a PEM file.
pub(crate) fn end(text: &str) -> Option<Timestamp> {
    ends(&CertificateDer::pem_slice_iter(text.as_bytes()).next()?.ok()?)
}

fn ends(certificate: &[u8]) -> Option<Timestamp> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Timestamp::from_second(certificate.validity().not_after.timestamp()).ok()
}

fn pem(certificate: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in certificate.chunks(48) {
        for group in line.chunks(3) {
            let bits = group.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
            for digit in 0..4 {
                text.push(if digit <= group.len() {
                    ALPHABET[(bits >> (18 - 6 * digit)) as usize & 63].into()
                } else {
                    '='
                });
            }
        }
        text.push('\n');
    }
    text + "-----END CERTIFICATE-----\n"
}

fn back(now: Timestamp) -> Timestamp {
    now.checked_sub(SKEW).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// Whole seconds, as a certificate tells it.
fn until(now: Timestamp, ttl: Duration) -> Timestamp {
    let end = now.as_second().saturating_add(i64::try_from(ttl.as_secs()).unwrap_or(0));
    Timestamp::from_second(end).unwrap_or(now)
}

/// Makes a root's key and certificate; the certificate, PEM.
fn make_root(dir: &Path, number: u32, now: Timestamp) -> Result<String, AuthorityError> {
    let key = KeyPair::generate()?;
    let certificate = self_signed(&format!("Rackhand root {number}"), true, now, &key)?;
    write(&dir.join(format!("root-{number}.key")), key.serialize_pem().as_bytes())?;
    write(&dir.join(format!("root-{number}.pem")), certificate.as_bytes())?;
    Ok(certificate)
}

/// Puts these bytes in a file's place, all or nothing, on stable storage.
pub(crate) fn replace(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), AuthorityError> {
    let (path, fresh) = (dir.join(name), dir.join(format!("{name}.new")));
    write(&fresh, bytes)?;
    fs::rename(&fresh, &path).map_err(|error| AuthorityError::File(path, error))?;
    sync(dir)
}

/// Writes a file readable by the directory's owner alone, also when root rotates the roots of a
/// controller that runs as another user.
fn write(path: &Path, bytes: &[u8]) -> Result<(), AuthorityError> {
    let written = || {
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        let owner = fs::metadata(path.parent().unwrap_or(Path::new("/")))?;
        if file.metadata()?.uid() != owner.uid() {
            fchown(&file, Some(owner.uid()), Some(owner.gid()))?;
        }
        file.write_all(bytes)?;
        file.sync_all()
    };
    written().map_err(|error| AuthorityError::File(path.to_owned(), error))
}

fn sync(dir: &Path) -> Result<(), AuthorityError> {
    fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(|error| AuthorityError::File(dir.to_owned(), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotation_that_was_interrupted_leaves_the_roots_as_they_were() {
        let dir = tempfile::tempdir().unwrap();
        let pki = dir.path().join("pki");
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let mut authority = Authority::init(&pki, now).unwrap();
        authority.issue_from_newest().unwrap();
        authority.retire_oldest().unwrap();
        let before = fs::read(pki.join("ca.pem")).unwrap();
        // A root was made and does not count yet; the file for operators says too much.
        make_root(&pki, 3, now).unwrap();
        fs::write(pki.join("ca.pem"), "other").unwrap();

        let mut authority = Authority::open(&pki).unwrap();
        authority.settle().unwrap();
        assert_eq!(fs::read(pki.join("ca.pem")).unwrap(), before);
        assert!(!pki.join("root-3.key").exists() && !pki.join("root-1.key").exists());
        assert_eq!(authority.roots().iter().map(|root| (root.number, root.issues)).collect::<Vec<_>>(), [(2, true)]);
        authority.add_root(now).unwrap();
        let numbers: Vec<_> = authority.roots().iter().map(|root| (root.number, root.issues)).collect();
        assert_eq!(numbers, [(2, true), (3, false)]);
        assert!(authority.add_root(now).is_err() && authority.retire_oldest().is_err());
    }

    #[test]
    fn a_certificate_of_erasure_is_verified_by_the_root_alone_until_one_letter_is_another() {
        use rackhand_common::{
            erasure::{DriveErasure, FORMAT, NotCertified},
            id::{MachineId, RunId},
        };
        let dir = tempfile::tempdir().unwrap();
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let init = |name: &str| Authority::init(&dir.path().join(name), now).unwrap();
        let (authority, other) = (init("pki"), init("other"));
        let certificate = |signed| Certificate {
            format: FORMAT.into(),
            erasure: uuid::Uuid::from_u128(1),
            run: RunId(uuid::Uuid::from_u128(2)),
            machine: MachineId(uuid::Uuid::from_u128(3)),
            machine_name: "web-1".into(),
            rack_name: "lab".into(),
            signed,
            drive: DriveErasure::example("d1"),
        };
        let signed = authority.certifier(now).unwrap().certify(&certificate(now));
        // As it comes out of a file, in which fields stand in any order.
        let file = serde_json::to_vec_pretty(&signed).unwrap();
        let read = SignedCertificate::parse(&file).unwrap();
        assert_eq!(read.verify(&authority.certificates), Ok(certificate(now)));
        // The key is kept.
        let again = Authority::open(&dir.path().join("pki")).unwrap().certifier(now).unwrap();
        assert_eq!(again.chain, signed.chain);

        let changed = |change: &dyn Fn(&mut SignedCertificate)| {
            let mut changed = read.clone();
            change(&mut changed);
            changed.verify(&authority.certificates).unwrap_err()
        };
        let serial = |signed: &mut SignedCertificate| signed.certificate["drive"]["serial"] = "S2".into();
        assert_eq!(changed(&serial), NotCertified::Signature);
        let more = |signed: &mut SignedCertificate| signed.certificate["more"] = 1.into();
        assert_eq!(changed(&more), NotCertified::Signature);
        let digit = |signed: &mut SignedCertificate| signed.signature.replace_range(20..21, "x");
        assert_eq!(changed(&digit), NotCertified::Signature);
        assert_eq!(read.verify(&other.certificates), Err(NotCertified::OtherRoot));
        assert_eq!(read.verify(&[]), Err(NotCertified::OtherRoot));
        let anothers = other.certifier(now).unwrap().certify(&certificate(now));
        let leaf = |signed: &mut SignedCertificate| signed.chain[0].clone_from(&anothers.chain[0]);
        assert_eq!(changed(&leaf), NotCertified::Chain);
        let late = Timestamp::from_second(1_800_000_000 + 900 * 24 * 3600).unwrap();
        let backdated = authority.certifier(now).unwrap().certify(&certificate(late));
        assert_eq!(backdated.verify(&authority.certificates), Err(NotCertified::Dates(late)));
        // Another key of ours, for something else.
        let identity = authority.controller(&[], now).unwrap();
        let text = fs::read_to_string(dir.path().join("pki/controller.pem")).unwrap();
        let chain = identity.chain.iter().map(|certificate| pem(certificate)).collect();
        let stranger = Certifier { key: KeyPair::from_pem(&text).unwrap(), chain };
        let stranger = stranger.certify(&certificate(now)).verify(&authority.certificates);
        assert_eq!(stranger, Err(NotCertified::Purpose));
    }

    #[test]
    fn the_root_of_a_certificate_is_known() {
        rackhand_common::pki::install_crypto();
        let dir = tempfile::tempdir().unwrap();
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let mut authority = Authority::init(&dir.path().join("pki"), now).unwrap();
        for number in [0, 1] {
            let leaf = authority.controller(&["a.example".into()], now).unwrap().chain.remove(0);
            assert_eq!(authority.root_of(&leaf), Some(authority.roots()[number].pin));
            let _ = authority.issue_from_newest();
        }
    }
}
