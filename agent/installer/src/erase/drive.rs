//! What a drive says of itself, whichever commands it takes, and in which order its methods are
//! tried. [`Drive`] is implemented for NVMe, ATA and SCSI by what their standards say.

use std::time::Duration;

use rackhand_common::erasure::{Bus, Condition, ConditionKind, Method, cut};

use crate::admin::CommandError;

/// What a drive says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// How it is spoken to.
    pub bus: Bus,
    /// What it says it can do now, in any order.
    pub methods: Vec<Method>,
    /// Whether it is sanitizing itself.
    pub sanitizing: Sanitizing,
    /// Why it is not clean whatever is done, for people: a password, a lock, an area that cannot be opened.
    pub obstacles: Vec<String>,
    /// What there is beyond the blocks that are addressed here, for people. A sanitize erases it too.
    pub beyond: Vec<String>,
    /// Whether its formatting erases all namespaces there are.
    pub formats_all: bool,
    /// What remains to be known.
    pub conditions: Vec<Condition>,
}

/// How far a drive's sanitizing of itself is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sanitizing {
    /// It never did, as far as it tells.
    Never,
    /// So many of 65536 parts are done.
    Running(u16),
    /// The latest one succeeded.
    Done,
    /// The latest one failed.
    Failed,
}

/// A drive that takes administrative commands.
pub trait Drive: Sync {
    /// Asks it for everything.
    fn look(&self) -> Result<Said, CommandError>;
    /// Opens what is hidden of it: whether it became larger, and what there is to be known. What
    /// cannot be opened is found by the next [`look`](Drive::look).
    fn open(&self) -> Result<Vec<Condition>, CommandError>;
    /// Has it begin. A sanitize goes on by itself afterwards; everything else is done on return.
    fn begin(&self, method: Method) -> Result<(), CommandError>;
    /// How far it is.
    fn sanitizing(&self) -> Result<Sanitizing, CommandError>;
    /// How long the method may take, by what the drive tells of itself.
    fn limit(&self, method: Method) -> Duration;
    /// Cleans up after a method that is proven: what is left behind although it is erased.
    fn settle(&self, method: Method) -> Vec<Condition>;
}

/// What is tried first when it can be done. Those that erase what is beyond the addressed blocks
/// come first, the fast before the slow; the overwriting of everything by the drive takes as long
/// as ours and proves more.
const ORDER: [Method; 14] = [
    Method::NvmeSanitizeCrypto,
    Method::NvmeSanitizeBlock,
    Method::AtaSanitizeCrypto,
    Method::AtaSanitizeBlock,
    Method::ScsiSanitizeCrypto,
    Method::ScsiSanitizeBlock,
    Method::NvmeFormatCrypto,
    Method::NvmeFormat,
    Method::AtaSecurityEraseEnhanced,
    Method::AtaSecurityErase,
    Method::NvmeSanitizeOverwrite,
    Method::AtaSanitizeOverwrite,
    Method::ScsiSanitizeOverwrite,
    Method::Overwrite,
];

/// The methods to try, in order: whatever else a drive can do or says it can, the last is ours.
pub fn ladder(can: &[Method]) -> Vec<Method> {
    ORDER.into_iter().filter(|method| *method == Method::Overwrite || can.contains(method)).collect()
}

/// What the method leaves of the drive, although it did all it does: why the drive is not clean.
pub fn left_by(method: Method, said: &Said) -> Option<String> {
    let covers = match method {
        Method::NvmeFormat | Method::NvmeFormatCrypto => said.formats_all && said.beyond.len() == 1,
        method => method.is_sanitize(),
    };
    (!covers && !said.beyond.is_empty()).then(|| format!("{method} does not reach {}", said.beyond.join(" and ")))
}

pub(super) fn condition(kind: ConditionKind, detail: impl Into<String>) -> Condition {
    Condition { kind, detail: cut(detail.into()) }
}

/// What TCG Opal's level 0 discovery says of locking (TCG Storage Architecture Core 2.01 §3.3.6;
/// Opal SSC 2.02 §3.1.1.3); `None` when there is no such feature.
pub fn locking(discovery: &[u8]) -> Option<Locking> {
    let total = u32::from_be_bytes(discovery.get(..4)?.try_into().ok()?) as usize;
    let mut rest = discovery.get(48..total.saturating_add(4).min(discovery.len()))?;
    while let [high, low, _, len, ..] = *rest {
        let feature = rest.get(..usize::from(len) + 4)?;
        if u16::from_be_bytes([high, low]) == 0x0002 {
            let bits = *feature.get(4)?;
            return Some(Locking { enabled: bits & 0x02 != 0, locked: bits & 0x04 != 0 });
        }
        rest = &rest[feature.len()..];
    }
    None
}

/// The locking of a drive by TCG Opal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Locking {
    /// Somebody took ownership: whoever has the password can lock it at the next power cycle.
    pub enabled: bool,
    /// Some of it cannot be read or written now.
    pub locked: bool,
}

impl Locking {
    /// Why such a drive is not clean.
    pub fn obstacle(self) -> Option<String> {
        let revert = "revert it with the PSID that is printed on the drive's label";
        match self {
            Self { locked: true, .. } => {
                Some(format!("it is locked by TCG Opal with a password that is not known; {revert}"))
            }
            Self { enabled: true, .. } => {
                Some(format!("TCG Opal locking was switched on by somebody who can lock it again; {revert}"))
            }
            _ => None,
        }
    }
}

pub(super) fn le32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |four| u32::from_le_bytes(four.try_into().expect("it is four")))
}

pub(super) fn le16(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |two| u16::from_le_bytes(two.try_into().expect("it is two")))
}
