//! The certificate authority: two roots, the image key, and the controller's own identity.
//!
//! Everything is in one directory, mode 0700, its files 0600. It is made whole by renaming a
//! finished directory into place; only the controller's identity is replaced later.
//!
//! Invariants:
//! - A certificate's role is decided here; of a request only the public key is used, after its
//!   signature has shown that the private half is held.
//! - A chain ends with the root itself, so that a node that knows only the root's hash can check.

use std::{
    fs, io,
    io::Write as _,
    net::IpAddr,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;
use rackhand_common::pki::{CONTROLLER_NAME, Identity, KeyPin, Role, TrustBundle, Unusable};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SigningKey,
};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, pem::PemObject};

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

/// The opened authority.
#[derive(Debug)]
pub struct Authority {
    dir: PathBuf,
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
        for number in [1, 2] {
            let key = KeyPair::generate()?;
            let certificate = self_signed(&format!("Rackhand root {number}"), true, now, &key)?;
            write(&fresh.join(format!("root-{number}.key")), key.serialize_pem().as_bytes())?;
            write(&fresh.join(format!("root-{number}.pem")), certificate.as_bytes())?;
            roots += &certificate;
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
        let bundle =
            TrustBundle { roots: vec![text("root-1.pem")?, text("root-2.pem")?], image_key: text("image.pem")? };
        let root = CertificateDer::from_pem_slice(bundle.roots[0].as_bytes())
            .map_err(|error| AuthorityError::Damaged(dir.join("root-1.pem"), error.into()))?;
        bundle.root_store()?;
        bundle.image_key()?;
        Ok(Self { dir: dir.to_owned(), root, root_key: key("root-1.key")?, image_key: key("image.key")?, bundle })
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
        let path = self.dir.join("controller.pem");
        let mut all: Vec<String> = vec![CONTROLLER_NAME.into(), "localhost".into(), "127.0.0.1".into(), "::1".into()];
        all.extend(names.iter().filter(|name| !all.contains(name)).cloned().collect::<Vec<_>>());
        let heading = format!("# {}\n", all.join(" "));
        if let Ok(text) = fs::read_to_string(&path)
            && text.starts_with(&heading)
            && let Some(identity) = identity(&text)
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
        let fresh = self.dir.join("controller.pem.new");
        write(&fresh, text.as_bytes())?;
        fs::rename(&fresh, &path).map_err(|error| AuthorityError::File(path, error))?;
        sync(&self.dir)?;
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        Ok(Identity { chain: issued.chain, key })
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

fn write(path: &Path, bytes: &[u8]) -> Result<(), AuthorityError> {
    let written =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path).and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        });
    written.map_err(|error| AuthorityError::File(path.to_owned(), error))
}

fn sync(dir: &Path) -> Result<(), AuthorityError> {
    fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(|error| AuthorityError::File(dir.to_owned(), error))
}
