//! Why a file did not become an image.

use std::io;

use super::FetchError;
use crate::store::StoreError;

/// Why a file did not become an image. [`ImportError::cause`] names it for programs.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ImportError {
    #[error("the file is empty")]
    Empty,
    #[error("the image needs {needs} bytes by its own account and has {has}: it was cut short")]
    Truncated { has: u64, needs: u64 },
    #[error("the image has {size} bytes; this controller takes {limit} (images.limit in its configuration)")]
    TooLarge { size: u64, limit: u64 },
    #[error("the image's {size} bytes are not a whole number of {sector}-byte sectors")]
    NotSectors { size: u64, sector: u32 },
    #[error("nothing in the image's partition table says how it boots; say it yourself with `firmware`")]
    NoFirmware,
    #[error("{0}: {1}")]
    Unacceptable(&'static str, String),
    #[error("the {0} file is damaged, was cut short, or wants more memory than it gets")]
    Compressed(&'static str, #[source] io::Error),
    #[error(
        "more than {limit} bytes come out of the compressed file; this controller takes no more (images.limit in its configuration)"
    )]
    Bomb { limit: u64 },
    #[error("the file's SHA-256 is {is} and not the one that was told")]
    Sha256 { is: String },
    #[error(transparent)]
    Fetch(FetchError),
    #[error("`{0}` is not a file in the import directory of the controller")]
    NoFile(String),
    #[error("qemu-img did not finish its work: {0}")]
    Converter(String),
    #[error("the upload ended early: {0}")]
    Upload(String),
    #[error("reading or writing a file of this host failed")]
    Read(#[source] io::Error),
    #[error("compression failed")]
    Compress(#[source] io::Error),
    #[error("the object store failed")]
    Objects(#[source] object_store::Error),
    #[error("the image is not ready: only one that was imported can be looked into")]
    NotReady,
    #[error("the controller stopped meanwhile; import it again, what was stored is not stored twice")]
    Stopped,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ImportError {
    /// The reason in one word, as it stands in the image's row.
    pub fn cause(&self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Truncated { .. } => "truncated",
            Self::TooLarge { .. } | Self::Bomb { .. } => "too-large",
            Self::NotSectors { .. } => "not-sectors",
            Self::NoFirmware => "no-firmware",
            Self::Unacceptable(format, _) | Self::Compressed(format, _) => format,
            Self::Sha256 { .. } => "sha256",
            Self::Fetch(_) => "url",
            Self::NoFile(_) => "no-file",
            Self::Converter(_) => "converter",
            Self::Upload(_) => "upload",
            Self::NotReady => "not-ready",
            Self::Stopped => "interrupted",
            Self::Read(_) | Self::Compress(_) | Self::Objects(_) | Self::Store(_) => "internal",
        }
    }
}

impl From<io::Error> for ImportError {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
}

impl From<object_store::Error> for ImportError {
    fn from(error: object_store::Error) -> Self {
        Self::Objects(error)
    }
}
