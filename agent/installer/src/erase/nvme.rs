//! NVMe drives: Sanitize, Format NVM, namespaces (NVM Express Base Specification 2.0; byte
//! numbers are those of its figures).
//!
//! A sanitize reaches the whole NVM subsystem, attached or not. A format reaches this namespace,
//! or all attached ones, as FNA says; never what belongs to no namespace.

use std::time::Duration;

use rackhand_common::erasure::{Bus, Condition, ConditionKind, Method};

use super::drive::{Drive, Said, Sanitizing, condition, le16, le32, locking};
use crate::admin::{ASKED, Admin, CommandError, Data, NvmeCommand, not_spoken};

/// Every namespace.
const ALL: u32 = 0xffff_ffff;

mod opcode {
    pub(super) const GET_LOG_PAGE: u8 = 0x02;
    pub(super) const IDENTIFY: u8 = 0x06;
    pub(super) const NAMESPACE_MANAGEMENT: u8 = 0x0d;
    pub(super) const FORMAT: u8 = 0x80;
    pub(super) const SECURITY_RECEIVE: u8 = 0x82;
    pub(super) const SANITIZE: u8 = 0x84;
}

/// Identify's kinds (CNS, figure 273).
mod cns {
    pub(super) const NAMESPACE: u32 = 0x00;
    pub(super) const CONTROLLER: u32 = 0x01;
    pub(super) const ACTIVE: u32 = 0x02;
    pub(super) const ALLOCATED: u32 = 0x10;
}

/// Log page 81h has so many bytes that matter here.
const SANITIZE_STATUS: usize = 32;

/// A list of namespaces is one page.
const PAGE: usize = 4096;

/// What a crypto or block erase takes at most when the drive tells nothing.
const FAST: Duration = Duration::from_secs(3600);

/// What an overwrite takes at most when the drive tells nothing.
const SLOW: Duration = Duration::from_secs(48 * 3600);

/// What a format takes at most: it is answered when it is over, and nothing tells how far it is.
const FORMAT: Duration = Duration::from_secs(30 * 60);

/// One namespace, and the subsystem around it.
pub struct Nvme<'a> {
    admin: &'a dyn Admin,
    namespace: u32,
}

impl<'a> Nvme<'a> {
    /// The drive whose commands go here, as the namespace with this number.
    pub fn new(admin: &'a dyn Admin, namespace: u32) -> Self {
        Self { admin, namespace }
    }

    fn ask(&self, opcode: u8, namespace: u32, cdw10: u32, cdw11: u32, len: usize) -> Result<Vec<u8>, CommandError> {
        let mut bytes = vec![0; len];
        let command = NvmeCommand { opcode, namespace, cdw10, cdw11, limit: ASKED };
        self.admin.nvme(command, Data::In(&mut bytes))?;
        Ok(bytes)
    }

    fn order(&self, opcode: u8, namespace: u32, cdw10: u32, limit: Duration) -> Result<(), CommandError> {
        self.admin.nvme(NvmeCommand { opcode, namespace, cdw10, cdw11: 0, limit }, Data::None).map(drop)
    }

    fn controller(&self) -> Result<Vec<u8>, CommandError> {
        self.ask(opcode::IDENTIFY, 0, cns::CONTROLLER, 0, PAGE)
    }

    fn namespaces(&self, cns: u32) -> Result<Vec<u32>, CommandError> {
        let list = self.ask(opcode::IDENTIFY, 0, cns, 0, PAGE)?;
        let numbers = list.chunks_exact(4).map(|four| le32(four, 0));
        Ok(numbers.take_while(|number| *number != 0).collect())
    }

    /// Namespaces that exist and that this machine does not see as disks.
    fn detached(&self) -> Result<Vec<u32>, CommandError> {
        let active = self.namespaces(cns::ACTIVE)?;
        let allocated = self.namespaces(cns::ALLOCATED)?;
        Ok(allocated.into_iter().filter(|number| !active.contains(number)).collect())
    }

    fn status(&self) -> Result<Vec<u8>, CommandError> {
        let dwords = (SANITIZE_STATUS / 4 - 1) as u32;
        self.ask(opcode::GET_LOG_PAGE, ALL, dwords << 16 | 0x81, 0, SANITIZE_STATUS)
    }
}

/// Optional Admin Command Support, bytes 256 and 257 of Identify Controller.
fn oacs(controller: &[u8]) -> u16 {
    le16(controller, 256)
}

/// Format NVM Attributes, byte 524.
fn fna(controller: &[u8]) -> u8 {
    controller.get(524).copied().unwrap_or(0)
}

impl Drive for Nvme<'_> {
    fn look(&self) -> Result<Said, CommandError> {
        let controller = self.controller()?;
        let (oacs, fna, sanicap) = (oacs(&controller), fna(&controller), le32(&controller, 328));
        let mut methods = Vec::new();
        for (bit, method) in
            [(0, Method::NvmeSanitizeCrypto), (1, Method::NvmeSanitizeBlock), (2, Method::NvmeSanitizeOverwrite)]
        {
            if sanicap >> bit & 1 == 1 {
                methods.push(method);
            }
        }
        if oacs & 0x2 != 0 {
            methods.push(Method::NvmeFormat);
            if fna & 0x4 != 0 {
                methods.push(Method::NvmeFormatCrypto);
            }
        }
        let sanitizing = if sanicap & 0x7 == 0 { Sanitizing::Never } else { self.sanitizing()? };
        let (mut obstacles, mut beyond, mut conditions) = (Vec::new(), Vec::new(), Vec::new());
        if oacs & 0x1 != 0 {
            // Protocol 01h, ComID 0001h: TCG level 0 discovery.
            let discovery = self.ask(opcode::SECURITY_RECEIVE, 0, 0x0100_0100, 512, 512);
            if let Some(obstacle) = discovery.ok().and_then(|bytes| locking(&bytes)?.obstacle()) {
                conditions.push(condition(ConditionKind::Locked, obstacle.clone()));
                obstacles.push(obstacle);
            }
        }
        if oacs & 0x8 != 0 {
            let detached = match self.detached() {
                Ok(detached) if detached.is_empty() => None,
                Ok(detached) => {
                    let numbers: Vec<_> = detached.iter().take(16).map(u32::to_string).collect();
                    Some(format!("namespaces that are not attached ({})", numbers.join(", ")))
                }
                Err(_) => Some("namespaces that it does not list".to_owned()),
            };
            if let Some(text) = detached {
                conditions.push(condition(ConditionKind::Namespaces, format!("there are {text}")));
                beyond.push(text);
            }
            // UNVMCAP, bytes 296 to 311.
            let free = controller
                .get(296..312)
                .map_or(0, |bytes| u128::from_le_bytes(bytes.try_into().expect("it is sixteen")));
            if free > 0 {
                let text = format!("{free} bytes that belong to no namespace");
                conditions.push(condition(ConditionKind::Unallocated, format!("there are {text}")));
                beyond.push(text);
            }
        }
        // Bit 1: an erase by format is of all namespaces; what is in none is not meant.
        let formats_all = fna & 0x2 != 0 && conditions.iter().all(|found| found.kind != ConditionKind::Unallocated);
        Ok(Said { bus: Bus::Nvme, methods, sanitizing, obstacles, beyond, formats_all, conditions })
    }

    /// Other namespaces are not opened: a sanitize reaches them as they are.
    fn open(&self) -> Result<Vec<Condition>, CommandError> {
        if self.sanitizing().is_ok_and(|sanitizing| sanitizing == Sanitizing::Failed) {
            // An earlier one that failed keeps every other command out; this leaves that mode where
            // it may be left. A new sanitize does so too.
            let _ = self.order(opcode::SANITIZE, 0, 0x1, ASKED);
        }
        Ok(Vec::new())
    }

    fn begin(&self, method: Method) -> Result<(), CommandError> {
        // Sanitize's action, and "unrestricted" (AUSE): one that fails leaves the drive to the next method.
        let sanitize = |action: u32| self.order(opcode::SANITIZE, 0, action | 0x8, ASKED);
        match method {
            Method::NvmeSanitizeBlock => sanitize(0x2),
            // One pass (bits 7 to 4) of zeros.
            Method::NvmeSanitizeOverwrite => sanitize(0x3 | 1 << 4),
            Method::NvmeSanitizeCrypto => sanitize(0x4),
            Method::NvmeFormat | Method::NvmeFormatCrypto => {
                let (controller, namespace) =
                    (self.controller()?, self.ask(opcode::IDENTIFY, self.namespace, cns::NAMESPACE, 0, PAGE)?);
                let byte = |at: usize| u32::from(namespace.get(at).copied().unwrap_or(0));
                // The format stays as it is: FLBAS is byte 26, DPS byte 29.
                let (flbas, dps) = (byte(26), byte(29));
                let format = flbas & 0xf | (flbas >> 5 & 0x3) << 12;
                let kept = format | (flbas >> 4 & 1) << 4 | (dps & 0x7) << 5 | (dps >> 3 & 1) << 8;
                let erase = if method == Method::NvmeFormat { 1 } else { 2 };
                let which = if fna(&controller) & 0x3 == 0 { self.namespace } else { ALL };
                self.order(opcode::FORMAT, which, kept | erase << 9, FORMAT)
            }
            _ => Err(not_spoken()),
        }
    }

    fn sanitizing(&self) -> Result<Sanitizing, CommandError> {
        let status = self.status()?;
        Ok(match le16(&status, 2) & 0x7 {
            1 | 4 => Sanitizing::Done,
            2 => Sanitizing::Running(le16(&status, 0)),
            3 => Sanitizing::Failed,
            _ => Sanitizing::Never,
        })
    }

    fn limit(&self, method: Method) -> Duration {
        let (at, default) = match method {
            Method::NvmeSanitizeOverwrite => (8, SLOW),
            Method::NvmeSanitizeBlock => (12, FAST),
            Method::NvmeSanitizeCrypto => (16, FAST),
            _ => return FORMAT,
        };
        match self.status().map(|status| le32(&status, at)) {
            // All ones: no estimate is told. Some tell zero.
            Ok(0 | u32::MAX) | Err(_) => default,
            Ok(seconds) => Duration::from_secs(u64::from(seconds) * 2).max(default),
        }
    }

    /// Namespaces that nobody accepted are deleted; what was in them is erased.
    fn settle(&self, method: Method) -> Vec<Condition> {
        let manages = self.controller().is_ok_and(|controller| oacs(&controller) & 0x8 != 0);
        if !manages || !method.is_sanitize() {
            return Vec::new();
        }
        let mut left = Vec::new();
        for number in self.detached().unwrap_or_default().into_iter().take(64) {
            if let Err(error) = self.order(opcode::NAMESPACE_MANAGEMENT, number, 0x1, FAST) {
                let text = format!("namespace {number} is erased and could not be deleted: {error}");
                left.push(condition(ConditionKind::Namespaces, text));
            }
        }
        left
    }
}
