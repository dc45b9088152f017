//! Image manifests: what an operating system image consists of, signed by the controller.
//!
//! An image is the raw contents of a disk, cut into chunks of [`CHUNK`] bytes. Each chunk is
//! compressed by itself with zstd and named by the BLAKE3 of its *compressed* bytes, so that
//! nothing unverified reaches the decoder; its frame carries a checksum of its contents
//! (RFC 8878 §3.1.1), so that what was decoded is checked too. A chunk of zeros has no bytes
//! at all and is discarded or zeroed on the disk, never skipped.

use std::{fmt, str::FromStr};

use rustls::crypto::CryptoProvider;
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use crate::{id::ImageId, machine::Firmware};

/// Bytes of raw image per chunk; the last one may be shorter.
pub const CHUNK: u64 = 4 << 20;

/// The most chunks a manifest may list: 8 TiB of image.
pub const MAX_CHUNKS: usize = 2 << 20;

/// The longest a chunk's compressed form may be; longer ones are refused unread.
pub const MAX_COMPRESSED: usize = (CHUNK + CHUNK / 64 + 1024) as usize;

/// BLAKE3 of a chunk's compressed bytes, or of a manifest's JSON.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not 64 hexadecimal digits.
#[derive(Debug, thiserror::Error)]
#[error("not a BLAKE3 digest (64 lower-case hexadecimal digits)")]
pub struct NotADigest;

impl FromStr for Digest {
    type Err = NotADigest;

    fn from_str(text: &str) -> Result<Self, NotADigest> {
        let mut bytes = [0; 32];
        let lower = text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        (lower && hex::decode_to_slice(text, &mut bytes).is_ok()).then_some(Self(bytes)).ok_or(NotADigest)
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { self.0.serialize(serializer) }
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
        } else {
            <[u8; 32]>::deserialize(deserializer).map(Self)
        }
    }
}

/// How an image wants to be told its host name, users and network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Settings {
    /// A FAT file system labelled `cidata` (cloud-init's NoCloud).
    Cidata,
    /// Nothing is told.
    None,
    /// A FAT file system labelled `config-2` (OpenStack's config drive, cloud-init's ConfigDrive).
    #[serde(rename = "config-2")]
    Config2,
    /// A config drive like [`Settings::Config2`] whose user data is a configuration for Ignition, as
    /// Ignition's platform `openstack` reads it.
    Ignition,
}

/// What an image consists of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The import it belongs to.
    pub image: ImageId,
    /// The operator's name for it, as `debian-12`.
    pub name: String,
    /// Bytes of the whole raw image.
    pub size: u64,
    /// The logical sector size the image was made for, in bytes.
    pub sector: u32,
    /// Firmware modes it can boot in.
    pub firmware: Vec<Firmware>,
    /// The settings format it understands.
    pub settings: Settings,
    /// SHA-256 of the whole raw image, lower-case hexadecimal.
    pub sha256: String,
    /// zstd level and library version of the import: equal ones share chunks.
    pub compression: String,
    /// One entry per [`CHUNK`] of raw image, in order; `None` where all bytes are zero.
    pub chunks: Vec<Option<Chunk>>,
}

/// A chunk with bytes in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// BLAKE3 of the compressed bytes.
    pub digest: Digest,
    /// Length of the compressed bytes.
    pub compressed: u32,
}

impl Manifest {
    /// Raw bytes of chunk `index`: [`CHUNK`] but for the last.
    pub fn chunk_len(&self, index: usize) -> usize {
        let start = index as u64 * CHUNK;
        self.size.saturating_sub(start).min(CHUNK) as usize
    }

    fn check(&self) -> Result<(), &'static str> {
        if self.chunks.len() > MAX_CHUNKS {
            return Err("more chunks than any image has");
        }
        if self.chunks.len() as u64 != self.size.div_ceil(CHUNK) {
            return Err("the number of chunks does not fit the size");
        }
        if !matches!(self.sector, 512 | 4096) || !self.size.is_multiple_of(u64::from(self.sector)) {
            return Err("the size is not a whole number of sectors");
        }
        if self.chunks.iter().flatten().any(|chunk| chunk.compressed as usize > MAX_COMPRESSED) {
            return Err("a chunk is longer than any compressed chunk");
        }
        Ok(())
    }
}

/// A manifest's JSON with the controller's signature over exactly these bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedManifest {
    /// The manifest as JSON text.
    pub manifest: String,
    /// ECDSA P-256 with SHA-256 (DER), by the controller's image key, hexadecimal.
    pub signature: String,
}

/// Why a manifest is not believed.
#[derive(Debug, thiserror::Error)]
pub enum Untrusted {
    /// The signature is not by the image key.
    #[error("the manifest is not signed by the controller's image key")]
    Signature,
    /// The JSON is not a manifest.
    #[error("the manifest is malformed")]
    Malformed(#[source] serde_json::Error),
    /// The manifest contradicts itself.
    #[error("the manifest contradicts itself: {0}")]
    Inconsistent(&'static str),
}

impl SignedManifest {
    /// The digest that names this manifest in orders and intents.
    pub fn digest(&self) -> Digest {
        Digest::of(self.manifest.as_bytes())
    }

    /// The manifest, when it is signed by `image_key`: a DER certificate whose subject key is
    /// the controller's image key, taken from the trust bundle. Its dates are not looked at.
    pub fn verify(&self, image_key: &CertificateDer<'_>) -> Result<Manifest, Untrusted> {
        let signature = hex::decode(&self.signature).map_err(|_| Untrusted::Signature)?;
        let (_, certificate) = x509_parser::parse_x509_certificate(image_key).map_err(|_| Untrusted::Signature)?;
        let key = &certificate.public_key().subject_public_key.data;
        let verifies = |provider: &CryptoProvider| {
            let algorithms = provider.signature_verification_algorithms.mapping;
            let (_, p256) =
                algorithms.iter().find(|(scheme, _)| *scheme == rustls::SignatureScheme::ECDSA_NISTP256_SHA256)?;
            p256.iter()
                .any(|algorithm| algorithm.verify_signature(key, self.manifest.as_bytes(), &signature).is_ok())
                .then_some(())
        };
        verifies(&rustls::crypto::aws_lc_rs::default_provider()).ok_or(Untrusted::Signature)?;
        self.parse_unverified()
    }

    /// The manifest without a look at its signature: for those who got it over a channel
    /// that proves its origin (the installer's pinned connection to boot).
    pub fn parse_unverified(&self) -> Result<Manifest, Untrusted> {
        let manifest: Manifest = serde_json::from_str(&self.manifest).map_err(Untrusted::Malformed)?;
        manifest.check().map_err(Untrusted::Inconsistent)?;
        Ok(manifest)
    }
}
