//! ATA drives: SANITIZE DEVICE, the Security feature set, and hidden areas (ACS-4; HPA and DCO
//! as of ACS-2, which removed them later; word and bit numbers of IDENTIFY DEVICE).
//!
//! Invariants:
//! - The only password that is ever set is [`PASSWORD`], which everyone may know: a drive that is
//!   left locked by a reset in the middle of an erase is unlocked with it and erased again.
//! - It is set only right before SECURITY ERASE UNIT, which takes it away.

use std::time::Duration;

use rackhand_common::erasure::{Bus, Condition, ConditionKind, Method};

use super::drive::{Drive, Said, Sanitizing, condition, locking};
use crate::admin::{ASKED, Admin, AtaAnswer, AtaCommand, CommandError, Data, not_spoken};

/// Of every drive that we erase by the Security feature set.
pub const PASSWORD: &[u8; 32] = b"rackhand erases this drive\0\0\0\0\0\0";

/// What an erase takes at most when the drive does not tell.
const UNKNOWN: Duration = Duration::from_secs(24 * 3600);

/// What a crypto scramble or block erase takes at most: drives tell nothing.
const FAST: Duration = Duration::from_secs(3600);

/// What an overwrite by the drive takes at most.
const SLOW: Duration = Duration::from_secs(72 * 3600);

mod opcode {
    pub(super) const READ_NATIVE_MAX_EXT: u8 = 0x27;
    pub(super) const SET_MAX_EXT: u8 = 0x37;
    pub(super) const TRUSTED_RECEIVE: u8 = 0x5c;
    pub(super) const ACCESSIBLE_MAX: u8 = 0x78;
    pub(super) const DCO: u8 = 0xb1;
    pub(super) const SANITIZE: u8 = 0xb4;
    pub(super) const IDENTIFY: u8 = 0xec;
    pub(super) const SECURITY_SET_PASSWORD: u8 = 0xf1;
    pub(super) const SECURITY_UNLOCK: u8 = 0xf2;
    pub(super) const SECURITY_ERASE_PREPARE: u8 = 0xf3;
    pub(super) const SECURITY_ERASE_UNIT: u8 = 0xf4;
    pub(super) const SECURITY_DISABLE_PASSWORD: u8 = 0xf6;
    pub(super) const READ_NATIVE_MAX: u8 = 0xf8;
    pub(super) const SET_MAX: u8 = 0xf9;
}

/// An ATA drive.
pub struct Ata<'a>(pub &'a dyn Admin);

/// IDENTIFY DEVICE data.
struct Identity(Vec<u8>);

impl Identity {
    fn word(&self, number: usize) -> u16 {
        super::drive::le16(&self.0, number * 2)
    }

    fn bit(&self, word: usize, bit: u32) -> bool {
        self.word(word) >> bit & 1 == 1
    }

    /// Words 82 to 87 count only when word 83 says so.
    fn supports(&self, word: usize, bit: u32) -> bool {
        self.word(83) >> 14 == 0b01 && self.bit(word, bit)
    }

    fn has_48_bits(&self) -> bool {
        self.supports(83, 10)
    }

    /// Sectors that are addressed.
    fn sectors(&self) -> u64 {
        let words = |numbers: &[usize]| numbers.iter().fold(0, |all, number| all << 16 | u64::from(self.word(*number)));
        if self.has_48_bits() { words(&[103, 102, 101, 100]) } else { words(&[61, 60]) }
    }

    /// Word 128.
    fn security(&self) -> Security {
        let bit = |bit| self.bit(128, bit);
        Security {
            supported: bit(0),
            enabled: bit(1),
            locked: bit(2),
            frozen: bit(3),
            expired: bit(4),
            enhanced: bit(5),
        }
    }

    /// Word 119 bit 8: the Accessible Max Address feature set, which took the place of HPA.
    fn has_accessible_max(&self) -> bool {
        self.word(119) >> 14 == 0b01 && self.bit(119, 8)
    }

    /// Words 89 and 90: in units of two minutes, in eight bits or fifteen; the largest means longer.
    fn erase_time(&self, enhanced: bool) -> Option<Duration> {
        let word = self.word(if enhanced { 90 } else { 89 });
        let (value, most) = if word >> 15 == 1 { (word & 0x7fff, 0x7fff) } else { (word & 0xff, 0xff) };
        (value != 0 && value != most).then(|| Duration::from_secs(u64::from(value) * 120))
    }
}

#[derive(Clone, Copy, Debug)]
struct Security {
    supported: bool,
    enabled: bool,
    locked: bool,
    frozen: bool,
    expired: bool,
    enhanced: bool,
}

impl Ata<'_> {
    fn command(&self, command: AtaCommand) -> Result<Option<AtaAnswer>, CommandError> {
        self.0.ata(AtaCommand { limit: ASKED, ..command }, Data::None)
    }

    fn identify(&self) -> Result<Identity, CommandError> {
        let mut bytes = vec![0; 512];
        let command = AtaCommand { command: opcode::IDENTIFY, count: 1, limit: ASKED, ..AtaCommand::default() };
        self.0.ata(command, Data::In(&mut bytes))?;
        Ok(Identity(bytes))
    }

    /// A command of the Security feature set with its password; `first` is its first word.
    fn security(&self, command: u8, first: u16, limit: Duration) -> Result<(), CommandError> {
        let mut bytes = [0; 512];
        bytes[..2].copy_from_slice(&first.to_le_bytes());
        bytes[2..34].copy_from_slice(PASSWORD);
        self.0.ata(AtaCommand { command, count: 1, limit, ..AtaCommand::default() }, Data::Out(&bytes)).map(drop)
    }

    /// The sectors there are of the drive, HPA and AMA included; `None` when it does not tell.
    fn native(&self, identity: &Identity) -> Option<u64> {
        let told = |command| self.command(command).ok()?.map(|answer| answer.lba).filter(|last| *last > 0);
        let extended = identity.has_48_bits();
        let last = if identity.has_accessible_max() {
            told(AtaCommand { command: opcode::ACCESSIBLE_MAX, extended: true, ..AtaCommand::default() })
        } else if identity.supports(82, 10) && extended {
            told(AtaCommand { command: opcode::READ_NATIVE_MAX_EXT, extended, ..AtaCommand::default() })
        } else if identity.supports(82, 10) {
            told(AtaCommand { command: opcode::READ_NATIVE_MAX, ..AtaCommand::default() })
        } else {
            None
        };
        last.and_then(|last| last.checked_add(1))
    }

    /// The sectors the drive was made with, by its DCO; `None` when it has none.
    fn factory(&self, identity: &Identity) -> Option<u64> {
        if !identity.supports(83, 11) {
            return None;
        }
        let mut bytes = vec![0; 512];
        let command =
            AtaCommand { command: opcode::DCO, feature: 0xc2, count: 1, limit: ASKED, ..AtaCommand::default() };
        self.0.ata(command, Data::In(&mut bytes)).ok()?;
        // Words 3 to 6: the maximum LBA.
        let last = u64::from_le_bytes(bytes[6..14].try_into().expect("it is eight"));
        last.checked_add(1).filter(|sectors| *sectors > 1)
    }

    fn set_max(&self, identity: &Identity, sectors: u64) -> Result<(), CommandError> {
        let last = sectors - 1;
        if identity.has_accessible_max() {
            let command = opcode::ACCESSIBLE_MAX;
            return self
                .command(AtaCommand { command, feature: 1, lba: last, extended: true, ..AtaCommand::default() })
                .map(drop);
        }
        // SET MAX has to follow READ NATIVE MAX; count bit 0: also after a power cycle.
        self.native(identity);
        let extended = identity.has_48_bits();
        let command = if extended { opcode::SET_MAX_EXT } else { opcode::SET_MAX };
        self.command(AtaCommand { command, count: 1, lba: last, extended, ..AtaCommand::default() }).map(drop)
    }
}

impl Drive for Ata<'_> {
    fn look(&self) -> Result<Said, CommandError> {
        let identity = self.identify()?;
        let security = identity.security();
        let (mut methods, mut obstacles, mut conditions) = (Vec::new(), Vec::new(), Vec::new());
        let mut sanitizing = Sanitizing::Never;
        if identity.bit(59, 12) {
            let status = self.sanitize_status()?;
            sanitizing = status.map_or(Sanitizing::Never, |(sanitizing, _)| sanitizing);
            match status {
                None => {
                    let text = "how far a sanitize is does not get through from it, so none is begun";
                    conditions.push(condition(ConditionKind::Silent, text));
                }
                Some((_, true)) => {
                    conditions.push(condition(ConditionKind::Frozen, "its sanitize commands are frozen"));
                }
                Some((_, false)) => {
                    let ways = [
                        (13, Method::AtaSanitizeCrypto),
                        (15, Method::AtaSanitizeBlock),
                        (14, Method::AtaSanitizeOverwrite),
                    ];
                    methods.extend(ways.into_iter().filter(|(bit, _)| identity.bit(59, *bit)).map(|(_, way)| way));
                }
            }
        }
        if security.supported && security.frozen {
            let text = "its security commands are frozen by the machine's firmware until a power cycle";
            conditions.push(condition(ConditionKind::Frozen, text));
        }
        if security.supported && security.locked {
            let again = if security.expired { "; it takes no more passwords until a power cycle" } else { "" };
            obstacles.push(format!("it is locked with an ATA password that is not known{again}"));
        } else if security.supported && security.enabled {
            obstacles
                .push("an ATA password that is not known is set: it will be locked after a power cycle".to_owned());
        } else if security.supported && !security.frozen {
            methods.push(Method::AtaSecurityErase);
            if security.enhanced {
                methods.push(Method::AtaSecurityEraseEnhanced);
            }
        }
        // Word 48 bit 0: trusted computing. Protocol 01h, 0001h: TCG level 0 discovery, in LBA 23:8.
        if identity.word(48) >> 14 == 0b01 && identity.bit(48, 0) {
            let mut bytes = vec![0; 512];
            let command = opcode::TRUSTED_RECEIVE;
            let receive = AtaCommand { command, feature: 1, count: 1, lba: 1 << 8, limit: ASKED, extended: false };
            let asked = self.0.ata(receive, Data::In(&mut bytes));
            obstacles.extend(asked.ok().and_then(|_| locking(&bytes)?.obstacle()));
        }
        conditions.extend(obstacles.iter().map(|text| condition(ConditionKind::Locked, text.clone())));
        let sectors = identity.sectors();
        let native = self.native(&identity);
        if native.is_none() && (identity.has_accessible_max() || identity.supports(82, 10)) {
            let text = "it can hide sectors, and how many it has is not told";
            conditions.push(condition(ConditionKind::HiddenArea, text));
            obstacles.push(text.to_owned());
        }
        let hidden = [native, self.factory(&identity)].into_iter().flatten().max();
        if let Some(all) = hidden.filter(|all| *all > sectors) {
            let text = format!("{} of its {all} sectors are hidden and could not be opened", all - sectors);
            conditions.push(condition(ConditionKind::HiddenArea, text.clone()));
            obstacles.push(text);
        }
        let (bus, beyond) = (Bus::Ata, Vec::new());
        Ok(Said { bus, methods, sanitizing, obstacles, beyond, formats_all: false, conditions })
    }

    fn open(&self) -> Result<Vec<Condition>, CommandError> {
        let mut found = Vec::new();
        if self.sanitizing().is_ok_and(|sanitizing| sanitizing == Sanitizing::Failed) {
            // SANITIZE STATUS EXT that clears the failure of an earlier one.
            let command = opcode::SANITIZE;
            let _ = self.command(AtaCommand { command, count: 1, extended: true, ..AtaCommand::default() });
        }
        let security = self.identify()?.security();
        if security.supported && security.enabled && !security.frozen {
            // Ours, when a reset came in the middle of an erase. Of another's a drive counts this as one of
            // the five attempts it has between power cycles.
            let unlocked = !security.locked || self.security(opcode::SECURITY_UNLOCK, 0, ASKED).is_ok();
            if unlocked && self.security(opcode::SECURITY_DISABLE_PASSWORD, 0, ASKED).is_ok() {
                let text = "an erase of ours was interrupted and had left it with our password, which was removed";
                found.push(condition(ConditionKind::Locked, text));
            }
        }
        let identity = self.identify()?;
        let before = identity.sectors();
        // The HPA first: a DCO cannot be restored while there is one.
        if let Some(native) = self.native(&identity).filter(|native| *native > before) {
            let _ = self.set_max(&identity, native);
        }
        let identity = self.identify()?;
        if self.factory(&identity).is_some_and(|factory| factory > identity.sectors()) {
            let _ = self.command(AtaCommand { command: opcode::DCO, feature: 0xc0, ..AtaCommand::default() });
            let identity = self.identify()?;
            if let Some(native) = self.native(&identity).filter(|native| *native > identity.sectors()) {
                let _ = self.set_max(&identity, native);
            }
        }
        let after = self.identify()?.sectors();
        if after > before {
            let text = format!("{} of its {after} sectors were hidden; they were opened", after - before);
            found.push(condition(ConditionKind::HiddenArea, text));
        }
        Ok(found)
    }

    fn begin(&self, method: Method) -> Result<(), CommandError> {
        // Each has a signature in the LBA, so that no stray command erases (ACS-4 §7.36); count bit 4:
        // one that fails can be left. Overwriting makes one pass of zeros.
        let (feature, count, lba) = match method {
            Method::AtaSanitizeCrypto => (0x0011, 0x10, 0x4372_7970),
            Method::AtaSanitizeBlock => (0x0012, 0x10, 0x426b_4572),
            Method::AtaSanitizeOverwrite => (0x0014, 0x11, 0x4f57 << 32),
            Method::AtaSecurityErase | Method::AtaSecurityEraseEnhanced => {
                let enhanced = method == Method::AtaSecurityEraseEnhanced;
                // A user password at level "high" (bit 8 of word 0 is the level, bit 0 the identifier).
                self.security(opcode::SECURITY_SET_PASSWORD, 0, ASKED)?;
                self.command(AtaCommand { command: opcode::SECURITY_ERASE_PREPARE, ..AtaCommand::default() })?;
                let erased =
                    self.security(opcode::SECURITY_ERASE_UNIT, if enhanced { 0x2 } else { 0 }, self.limit(method));
                if erased.is_err() {
                    let _ = self.security(opcode::SECURITY_DISABLE_PASSWORD, 0, ASKED);
                }
                return erased;
            }
            _ => return Err(not_spoken()),
        };
        let command = opcode::SANITIZE;
        self.command(AtaCommand { command, feature, count, lba, extended: true, ..AtaCommand::default() }).map(drop)
    }

    fn sanitizing(&self) -> Result<Sanitizing, CommandError> {
        if !self.identify()?.bit(59, 12) {
            return Ok(Sanitizing::Never);
        }
        Ok(self.sanitize_status()?.map_or(Sanitizing::Never, |(sanitizing, _)| sanitizing))
    }

    fn limit(&self, method: Method) -> Duration {
        match method {
            Method::AtaSecurityErase | Method::AtaSecurityEraseEnhanced => {
                let enhanced = method == Method::AtaSecurityEraseEnhanced;
                let told = self.identify().ok().and_then(|identity| identity.erase_time(enhanced));
                told.map_or(UNKNOWN, |time| time * 2 + ASKED)
            }
            Method::AtaSanitizeOverwrite => SLOW,
            _ => FAST,
        }
    }

    fn settle(&self, _: Method) -> Vec<Condition> {
        Vec::new()
    }
}

impl Ata<'_> {
    /// SANITIZE STATUS EXT: how far it is, and whether its commands are frozen; `None` when its registers do
    /// not get through.
    fn sanitize_status(&self) -> Result<Option<(Sanitizing, bool)>, CommandError> {
        // Count bit 0 would clear a failure that was told.
        let status = AtaCommand { command: opcode::SANITIZE, extended: true, ..AtaCommand::default() };
        match self.command(status) {
            Ok(None) => Ok(None),
            Ok(Some(answer)) => {
                let bit = |bit: u32| answer.count >> bit & 1 == 1;
                let sanitizing = match (bit(14), bit(15)) {
                    (true, _) => Sanitizing::Running(answer.lba as u16),
                    (false, true) => Sanitizing::Done,
                    (false, false) => Sanitizing::Never,
                };
                Ok(Some((sanitizing, bit(13))))
            }
            // Aborted: the latest one failed (ACS-4 §7.36.7).
            Err(CommandError::Refused(_)) => Ok(Some((Sanitizing::Failed, false))),
            Err(error) => Err(error),
        }
    }
}
