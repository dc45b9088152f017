//! What was done to erase one drive, how that is known, and the certificate of it: the record
//! goes from the installer through boot and agent to the controller, which signs it.
//!
//! A certificate is JSON in the form of RFC 8785, so that it has one sequence of bytes; its
//! signature is ECDSA P-256 with SHA-256 (DER), by a key whose certificate one of the
//! controller's roots issued. Whoever has that root can verify it without asking anybody.
//!
//! Invariants:
//! - A drive is proven clean or has a reason why not, never both and never neither.
//! - What is verified is the text as it stands: fields of later versions are signed too.

use std::fmt;

use jiff::Timestamp;
use rustls_pki_types::{CertificateDer, pem::PemObject};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use x509_parser::{certificate::X509Certificate, extensions::GeneralName};

use crate::id::{MachineId, RunId};

/// The most methods that are tried on one drive, joined ones and repetitions included.
pub const MAX_TRIED: usize = 24;

/// The most conditions that one record names.
pub const MAX_CONDITIONS: usize = 16;

/// The longest text in a record, in bytes; longer ones are cut by whoever makes them.
pub const MAX_WORDS: usize = 512;

/// The longest certificate with signature and chain that is looked at, in bytes.
pub const MAX_CERTIFICATE: usize = 256 << 10;

/// How a drive is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bus {
    /// NVM Express.
    Nvme,
    /// ATA, also behind a SCSI translation.
    Ata,
    /// SCSI (SAS).
    Scsi,
    /// Nothing but reading and writing: a virtual disk, or one behind a RAID controller.
    Blocks,
}

impl fmt::Display for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nvme => "NVMe",
            Self::Ata => "ATA",
            Self::Scsi => "SCSI",
            Self::Blocks => "no administrative commands",
        })
    }
}

/// A way to erase. Grows at the end only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// NVMe Sanitize, crypto erase: the media key is replaced.
    NvmeSanitizeCrypto,
    /// NVMe Sanitize, block erase.
    NvmeSanitizeBlock,
    /// NVMe Sanitize, overwrite.
    NvmeSanitizeOverwrite,
    /// NVMe Format NVM with cryptographic erase.
    NvmeFormatCrypto,
    /// NVMe Format NVM with user data erase.
    NvmeFormat,
    /// ATA CRYPTO SCRAMBLE EXT.
    AtaSanitizeCrypto,
    /// ATA BLOCK ERASE EXT.
    AtaSanitizeBlock,
    /// ATA OVERWRITE EXT.
    AtaSanitizeOverwrite,
    /// ATA SECURITY ERASE UNIT, enhanced.
    AtaSecurityEraseEnhanced,
    /// ATA SECURITY ERASE UNIT, normal.
    AtaSecurityErase,
    /// SCSI SANITIZE, cryptographic erase.
    ScsiSanitizeCrypto,
    /// SCSI SANITIZE, block erase.
    ScsiSanitizeBlock,
    /// SCSI SANITIZE, overwrite.
    ScsiSanitizeOverwrite,
    /// Discarding, then writing zeros to every block that can be addressed.
    Overwrite,
}

impl Method {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::NvmeSanitizeCrypto,
        Self::NvmeSanitizeBlock,
        Self::NvmeSanitizeOverwrite,
        Self::NvmeFormatCrypto,
        Self::NvmeFormat,
        Self::AtaSanitizeCrypto,
        Self::AtaSanitizeBlock,
        Self::AtaSanitizeOverwrite,
        Self::AtaSecurityEraseEnhanced,
        Self::AtaSecurityErase,
        Self::ScsiSanitizeCrypto,
        Self::ScsiSanitizeBlock,
        Self::ScsiSanitizeOverwrite,
        Self::Overwrite,
    ];

    /// Whether the drive goes on with it after the command was answered, also across a reset,
    /// and tells in a status log how far it is.
    pub fn is_sanitize(self) -> bool {
        use Method::*;
        matches!(
            self,
            NvmeSanitizeCrypto
                | NvmeSanitizeBlock
                | NvmeSanitizeOverwrite
                | AtaSanitizeCrypto
                | AtaSanitizeBlock
                | AtaSanitizeOverwrite
                | ScsiSanitizeCrypto
                | ScsiSanitizeBlock
                | ScsiSanitizeOverwrite
        )
    }

    /// What it achieves by NIST SP 800-88 (revision 1, appendix A), once verified. A normal
    /// SECURITY ERASE UNIT purges a spinning disk and clears one of flash.
    pub fn class(self, rotational: bool) -> Class {
        match self {
            Self::Overwrite => Class::Clear,
            Self::AtaSecurityErase if !rotational => Class::Clear,
            _ => Class::Purge,
        }
    }

    /// The word in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::NvmeSanitizeCrypto => "nvme_sanitize_crypto",
            Self::NvmeSanitizeBlock => "nvme_sanitize_block",
            Self::NvmeSanitizeOverwrite => "nvme_sanitize_overwrite",
            Self::NvmeFormatCrypto => "nvme_format_crypto",
            Self::NvmeFormat => "nvme_format",
            Self::AtaSanitizeCrypto => "ata_sanitize_crypto",
            Self::AtaSanitizeBlock => "ata_sanitize_block",
            Self::AtaSanitizeOverwrite => "ata_sanitize_overwrite",
            Self::AtaSecurityEraseEnhanced => "ata_security_erase_enhanced",
            Self::AtaSecurityErase => "ata_security_erase",
            Self::ScsiSanitizeCrypto => "scsi_sanitize_crypto",
            Self::ScsiSanitizeBlock => "scsi_sanitize_block",
            Self::ScsiSanitizeOverwrite => "scsi_sanitize_overwrite",
            Self::Overwrite => "overwrite",
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NvmeSanitizeCrypto => "NVMe sanitize (crypto erase)",
            Self::NvmeSanitizeBlock => "NVMe sanitize (block erase)",
            Self::NvmeSanitizeOverwrite => "NVMe sanitize (overwrite)",
            Self::NvmeFormatCrypto => "NVMe format (crypto erase)",
            Self::NvmeFormat => "NVMe format (user data erase)",
            Self::AtaSanitizeCrypto => "ATA sanitize (crypto scramble)",
            Self::AtaSanitizeBlock => "ATA sanitize (block erase)",
            Self::AtaSanitizeOverwrite => "ATA sanitize (overwrite)",
            Self::AtaSecurityEraseEnhanced => "ATA enhanced security erase",
            Self::AtaSecurityErase => "ATA security erase",
            Self::ScsiSanitizeCrypto => "SCSI sanitize (crypto erase)",
            Self::ScsiSanitizeBlock => "SCSI sanitize (block erase)",
            Self::ScsiSanitizeOverwrite => "SCSI sanitize (overwrite)",
            Self::Overwrite => "overwriting with zeros",
        })
    }
}

/// How sure an erasure is, by NIST SP 800-88.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Not known to be erased.
    None,
    /// Nothing comes back through the drive's interface.
    Clear,
    /// Nothing comes back in a laboratory either.
    Purge,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Clear => "clear",
            Self::Purge => "purge",
        })
    }
}

/// What became of one method.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Done, and verified.
    Proven,
    /// The drive refused the command.
    Refused,
    /// It failed, or what came after it could not be read.
    Failed,
    /// It did not move on.
    Hung,
    /// The drive said that it was done, and was not: what was written before was still there.
    Lied,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Proven => "proven",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Hung => "hung",
            Self::Lied => "said done, and was not",
        })
    }
}

/// A method that was tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tried {
    /// Which.
    pub method: Method,
    /// What became of it.
    pub outcome: Outcome,
    /// In words; empty when there is nothing to say.
    pub detail: String,
    /// Whether an earlier installer had begun it, and the drive had gone on with it.
    pub joined: bool,
    /// When it began, or was joined.
    pub started: Timestamp,
    /// When it was over.
    pub ended: Timestamp,
}

/// What shows that a drive is erased.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Evidence {
    /// A pattern was written to the sampled places before, and is at none of them.
    PatternGone,
    /// The sampled places read back as zeros.
    Zeros,
    /// The drive's own log says that it was done.
    StatusLog,
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PatternGone => "a pattern written before is gone from every sample",
            Self::Zeros => "every sample reads zeros",
            Self::StatusLog => "the drive's status log says done",
        })
    }
}

/// What remains to be known of a drive, erased or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConditionKind {
    /// Its firmware or the machine's has frozen security commands until the next power cycle.
    Frozen,
    /// A password, or the locking of TCG Opal, that is not ours.
    Locked,
    /// An area beyond what is addressed: it was opened and erased, or could not be.
    HiddenArea,
    /// Namespaces beside the one that was accepted.
    Namespaces,
    /// Capacity that belongs to no namespace.
    Unallocated,
    /// It said it had done what it had not.
    Lying,
    /// It cannot be asked what it can do.
    Silent,
}

/// Something that remains to be known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// For programs.
    pub kind: ConditionKind,
    /// For people.
    pub detail: String,
}

/// What was read back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Samples {
    /// Places on the drive, its beginning and end among them.
    pub places: u32,
    /// Bytes read.
    pub bytes: u64,
    /// BLAKE3 of all that was read, in hexadecimal.
    pub digest: String,
}

/// What was done to one drive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriveErasure {
    /// [`Disk::identity`](crate::machine::Disk::identity).
    pub disk: String,
    /// Model.
    pub model: String,
    /// Serial number.
    pub serial: String,
    /// World-wide name.
    pub wwn: Option<String>,
    /// Bytes that can be addressed, after hidden areas were opened.
    pub size: u64,
    /// Bytes of a sector.
    pub sector: u32,
    /// Whether it spins.
    pub rotational: bool,
    /// How it was spoken to.
    pub bus: Bus,
    /// When work on it began.
    pub started: Timestamp,
    /// When it ended.
    pub ended: Timestamp,
    /// Every method tried, in order.
    pub tried: Vec<Tried>,
    /// The one that is proven.
    pub method: Option<Method>,
    /// What that achieves.
    pub class: Class,
    /// What was read back.
    pub samples: Samples,
    /// What shows it.
    pub evidence: Vec<Evidence>,
    /// What remains to be known.
    pub conditions: Vec<Condition>,
    /// Why it is not known to be clean.
    pub reason: Option<String>,
}

impl DriveErasure {
    /// Whether it is known to be clean.
    pub fn is_proven(&self) -> bool {
        self.method.is_some() && self.reason.is_none()
    }

    /// Whether it says of itself what can be: bounds, and proven or a reason.
    pub fn is_sound(&self) -> bool {
        let texts = [&self.disk, &self.model, &self.serial, &self.samples.digest];
        let texts = texts.into_iter().chain(&self.wwn).chain(&self.reason);
        let details = self.tried.iter().map(|tried| &tried.detail);
        let details = details.chain(self.conditions.iter().map(|condition| &condition.detail));
        let fits = |text: &String| text.len() <= MAX_WORDS;
        let bounded = self.tried.len() <= MAX_TRIED && self.conditions.len() <= MAX_CONDITIONS;
        let bounded = bounded && self.evidence.len() <= 3 && texts.chain(details).all(fits);
        let shown = self.tried.last().is_some_and(|tried| {
            tried.outcome == Outcome::Proven && Some(tried.method) == self.method && self.samples.places > 0
        });
        let class = self.method.map_or(Class::None, |method| method.class(self.rotational));
        let clean = self.method.is_some() && self.reason.is_none() && shown && self.class == class;
        let not = self.method.is_none() && self.reason.is_some() && self.class == Class::None;
        bounded && (clean || not)
    }
}

impl DriveErasure {
    /// One of a disk that was overwritten, for simulated machines.
    pub fn example(disk: &str) -> Self {
        let at = Timestamp::UNIX_EPOCH;
        let method = Method::Overwrite;
        let (outcome, joined) = (Outcome::Proven, false);
        Self {
            disk: disk.to_owned(),
            model: "SIMULATED".to_owned(),
            serial: "S1".to_owned(),
            wwn: None,
            size: 1 << 30,
            sector: 512,
            rotational: false,
            bus: Bus::Blocks,
            started: at,
            ended: at,
            tried: vec![Tried { method, outcome, detail: String::new(), joined, started: at, ended: at }],
            method: Some(method),
            class: Class::Clear,
            samples: Samples { places: 1, bytes: 1 << 20, digest: "0".repeat(64) },
            evidence: vec![Evidence::PatternGone, Evidence::Zeros],
            conditions: Vec::new(),
            reason: None,
        }
    }
}

/// A text of at most [`MAX_WORDS`] bytes.
pub fn cut(mut text: String) -> String {
    let mut end = text.len().min(MAX_WORDS);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

/// What certificates say they are.
pub const FORMAT: &str = "rackhand-erasure/1";

/// The URI in the certificate of the key that signs certificates of erasure. It is no role of a
/// peer: nobody can connect with it.
pub const SIGNER: &str = "rackhand://erasures";

/// What is signed: one drive, erased or not, on one machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// [`FORMAT`].
    pub format: String,
    /// Names this certificate.
    pub erasure: uuid::Uuid,
    /// The release it was erased in.
    pub run: RunId,
    /// The machine it was in.
    pub machine: MachineId,
    /// That machine's name at the time.
    pub machine_name: String,
    /// The name of its rack.
    pub rack_name: String,
    /// When the controller signed it.
    pub signed: Timestamp,
    /// What was done.
    pub drive: DriveErasure,
}

/// A certificate with its signature, as it is kept and handed out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedCertificate {
    /// The [`Certificate`], as JSON.
    pub certificate: Value,
    /// Of its [`canonical`] bytes, in hexadecimal: ECDSA P-256 with SHA-256, DER.
    pub signature: String,
    /// Certificates of the key that signed, PEM: its own first, the root's last.
    pub chain: Vec<String>,
}

/// JSON that has no form of RFC 8785 here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a number in it is not a whole one")]
pub struct NotCanonical;

/// The bytes that are signed: RFC 8785, for JSON whose numbers are whole and whose names are ASCII.
pub fn canonical(value: &Value) -> Result<Vec<u8>, NotCanonical> {
    let mut bytes = Vec::new();
    write(value, &mut bytes)?;
    Ok(bytes)
}

fn write(value: &Value, bytes: &mut Vec<u8>) -> Result<(), NotCanonical> {
    match value {
        Value::Number(number) if !number.is_i64() && !number.is_u64() => return Err(NotCanonical),
        Value::Array(items) => {
            bytes.push(b'[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    bytes.push(b',');
                }
                write(item, bytes)?;
            }
            bytes.push(b']');
        }
        Value::Object(fields) => {
            let mut names: Vec<_> = fields.keys().collect();
            names.sort_unstable();
            bytes.push(b'{');
            for (index, name) in names.into_iter().enumerate() {
                if index > 0 {
                    bytes.push(b',');
                }
                bytes.extend(serde_json::to_vec(name).expect("texts always serialize"));
                bytes.push(b':');
                write(&fields[name], bytes)?;
            }
            bytes.push(b'}');
        }
        leaf => bytes.extend(serde_json::to_vec(leaf).expect("texts and whole numbers always serialize")),
    }
    Ok(())
}

/// Why a certificate of erasure is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotCertified {
    /// Not JSON of this form, or too long.
    #[error("it is not a certificate of erasure: {0}")]
    Malformed(String),
    /// The chain's end is none of the roots.
    #[error("the root that it names is none of those given: it was signed by another controller")]
    OtherRoot,
    /// The key's certificate is not of that root.
    #[error("the certificate of the key that signed it was not issued by that root")]
    Chain,
    /// The key is for something else.
    #[error("the key that signed it is not one for certificates of erasure")]
    Purpose,
    /// It says it was signed at a time when the key's certificate did not count.
    #[error("it says it was signed at {0}, when the certificate of its key did not count")]
    Dates(Timestamp),
    /// The signature is not that of these bytes.
    #[error("the signature does not fit: what it says was changed after it was signed")]
    Signature,
}

impl SignedCertificate {
    /// With a signature that is made of its canonical bytes by the key of this chain (PEM).
    pub fn sign(certificate: &Certificate, chain: Vec<String>, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> Self {
        let certificate = serde_json::to_value(certificate).expect("certificates always serialize");
        let bytes = canonical(&certificate).expect("its numbers are whole");
        Self { certificate, signature: hex::encode(sign(&bytes)), chain }
    }

    /// Reads a file.
    pub fn parse(text: &[u8]) -> Result<Self, NotCertified> {
        if text.len() > MAX_CERTIFICATE {
            return Err(NotCertified::Malformed(format!("it is longer than {MAX_CERTIFICATE} bytes")));
        }
        serde_json::from_slice(text).map_err(|error| NotCertified::Malformed(error.to_string()))
    }

    /// What it says, whoever said it.
    pub fn unverified(&self) -> Result<Certificate, NotCertified> {
        let read: Certificate = serde_json::from_value(self.certificate.clone())
            .map_err(|error| NotCertified::Malformed(error.to_string()))?;
        if read.format != FORMAT {
            return Err(NotCertified::Malformed(format!("its format is {:?}, not {FORMAT:?}", read.format)));
        }
        Ok(read)
    }

    /// What it says, when a key that one of `roots` vouches for signed it.
    pub fn verify(&self, roots: &[CertificateDer<'_>]) -> Result<Certificate, NotCertified> {
        let said = self.unverified()?;
        let chain: Vec<_> = self
            .chain
            .iter()
            .map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()))
            .collect::<Result<_, _>>()
            .map_err(|_| NotCertified::Malformed("its chain is not PEM".to_owned()))?;
        let [leaf, root] = &chain[..] else {
            return Err(NotCertified::Malformed("its chain is not of two certificates".to_owned()));
        };
        if !roots.iter().any(|known| known.as_ref() == root.as_ref()) {
            return Err(NotCertified::OtherRoot);
        }
        let parsed = |certificate| match x509_parser::parse_x509_certificate(certificate) {
            Ok(([], certificate)) => Ok(certificate),
            _ => Err(NotCertified::Malformed("its chain is not of certificates".to_owned())),
        };
        let (leaf, root) = (parsed(leaf)?, parsed(root)?);
        let is_issued = leaf.issuer().as_raw() == root.subject().as_raw() && root.is_ca() && !leaf.is_ca();
        if !is_issued || !signed_by(&root, leaf.tbs_certificate.as_ref(), &leaf.signature_value.data) {
            return Err(NotCertified::Chain);
        }
        if names(&leaf).is_none_or(|names| names != [SIGNER]) {
            return Err(NotCertified::Purpose);
        }
        let second = said.signed.as_second();
        let counts = |certificate: &X509Certificate<'_>| {
            let validity = certificate.validity();
            (validity.not_before.timestamp()..=validity.not_after.timestamp()).contains(&second)
        };
        if !counts(&leaf) || !counts(&root) {
            return Err(NotCertified::Dates(said.signed));
        }
        let signature = hex::decode(&self.signature).map_err(|_| NotCertified::Signature)?;
        let bytes = canonical(&self.certificate).map_err(|error| NotCertified::Malformed(error.to_string()))?;
        signed_by(&leaf, &bytes, &signature).then_some(said).ok_or(NotCertified::Signature)
    }
}

/// Whether the certificate's key made this signature: ECDSA P-256 with SHA-256, as all of ours.
fn signed_by(certificate: &X509Certificate<'_>, bytes: &[u8], signature: &[u8]) -> bool {
    let key = &certificate.public_key().subject_public_key.data;
    aws_lc_rs::signature::UnparsedPublicKey::new(&aws_lc_rs::signature::ECDSA_P256_SHA256_ASN1, key)
        .verify(bytes, signature)
        .is_ok()
}

fn names<'a>(certificate: &'a X509Certificate<'_>) -> Option<Vec<&'a str>> {
    let names = certificate.subject_alternative_name().ok()??;
    names
        .value
        .general_names
        .iter()
        .map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None })
        .collect()
}

impl Certificate {
    /// For a printer: what it says, in lines of at most about eighty letters.
    pub fn printed(&self) -> String {
        let drive = &self.drive;
        let or_none = |text: &str| if text.is_empty() { "none told".to_owned() } else { text.to_owned() };
        let mut lines = vec![
            if drive.is_proven() {
                "CERTIFICATE OF ERASURE"
            } else {
                "RECORD OF A DRIVE THAT IS NOT KNOWN TO BE ERASED"
            }
            .to_owned(),
            String::new(),
            format!("Certificate    {}", self.erasure),
            format!("Signed         {:.0}", self.signed),
            format!("Machine        {} ({})", self.machine_name, self.machine),
            format!("Rack           {}", self.rack_name),
            format!("Run            {}", self.run),
            String::new(),
            format!("Model          {}", or_none(&drive.model)),
            format!("Serial number  {}", or_none(&drive.serial)),
            format!("WWN            {}", or_none(drive.wwn.as_deref().unwrap_or_default())),
            format!("Capacity       {} bytes, sectors of {}", drive.size, drive.sector),
            format!("Interface      {}", drive.bus),
            String::new(),
            format!("Begun          {:.0}", drive.started),
            format!("Ended          {:.0}", drive.ended),
        ];
        for tried in &drive.tried {
            let joined = if tried.joined { ", begun before a restart" } else { "" };
            let detail = if tried.detail.is_empty() { String::new() } else { format!(": {}", tried.detail) };
            lines.push(format!("Method         {}: {}{joined}{detail}", tried.method, tried.outcome));
        }
        lines.push(match drive.method {
            Some(_) => format!("Result         erased, NIST SP 800-88 {}", drive.class),
            None => format!("Result         NOT ERASED: {}", drive.reason.as_deref().unwrap_or("no reason is told")),
        });
        if drive.samples.places > 0 {
            lines.push(format!("Samples        {} places, {} bytes", drive.samples.places, drive.samples.bytes));
        }
        lines.extend(drive.evidence.iter().map(|evidence| format!("Shown by       {evidence}")));
        lines.extend(drive.conditions.iter().map(|condition| format!("Remains        {}", condition.detail)));
        // What drives tell of themselves is foreign text: nothing of it may move a terminal's cursor.
        let shown = |line: String| line.replace(|letter: char| letter.is_control(), "?");
        let mut text: String = lines.into_iter().map(|line| shown(line) + "\n").collect();
        text.push('\n');
        text
    }
}
