//! SCSI drives: SANITIZE (SBC-4 §5.39), its progress by REQUEST SENSE (SPC-5 §6.38), and what is
//! supported by REPORT SUPPORTED OPERATION CODES (SPC-5 §6.35).

use std::time::Duration;

use rackhand_common::erasure::{Bus, Condition, ConditionKind, Method};

use super::drive::{Drive, Said, Sanitizing, condition, locking};
use crate::admin::{ASKED, Admin, CommandError, Data, Refusal, not_spoken};

const SANITIZE: u8 = 0x48;

/// Fixed-format sense data, with the progress indication.
const SENSE: usize = 18;

/// What a crypto or block erase takes at most, and what an overwrite does: drives tell neither.
const FAST: Duration = Duration::from_secs(3600);
const SLOW: Duration = Duration::from_secs(72 * 3600);

/// Service actions, and the methods they are.
const ACTIONS: [(u8, Method); 3] =
    [(0x01, Method::ScsiSanitizeOverwrite), (0x02, Method::ScsiSanitizeBlock), (0x03, Method::ScsiSanitizeCrypto)];

/// A logical unit.
pub struct Scsi<'a>(pub &'a dyn Admin);

impl Scsi<'_> {
    fn ask(&self, block: &[u8], len: usize) -> Result<Vec<u8>, CommandError> {
        let mut bytes = vec![0; len];
        self.0.scsi(block, Data::In(&mut bytes), ASKED)?;
        Ok(bytes)
    }

    fn is_supported(&self, action: u8) -> bool {
        // One command with its service action (reporting options 011b).
        let block = [0xa3, 0x0c, 0x03, SANITIZE, 0, action, 0, 0, 0, 32, 0, 0];
        self.ask(&block, 32).is_ok_and(|answer| answer[1] & 0x7 == 0x3)
    }
}

impl Drive for Scsi<'_> {
    fn look(&self) -> Result<Said, CommandError> {
        self.ask(&[0x12, 0, 0, 0, 36, 0], 36)?;
        let can = ACTIONS.into_iter().filter(|(action, _)| self.is_supported(*action));
        let methods = can.map(|(_, method)| method).collect();
        let (mut obstacles, mut conditions) = (Vec::new(), Vec::new());
        // SECURITY PROTOCOL IN, protocol 01h, 0001h: TCG level 0 discovery.
        let discovery = self.ask(&[0xa2, 0x01, 0, 0x01, 0, 0, 0, 0, 0x02, 0, 0, 0], 512);
        if let Some(obstacle) = discovery.ok().and_then(|bytes| locking(&bytes)?.obstacle()) {
            conditions.push(condition(ConditionKind::Locked, obstacle.clone()));
            obstacles.push(obstacle);
        }
        let sanitizing = self.sanitizing()?;
        Ok(Said { bus: Bus::Scsi, methods, sanitizing, obstacles, beyond: Vec::new(), formats_all: false, conditions })
    }

    fn open(&self) -> Result<Vec<Condition>, CommandError> {
        if self.sanitizing().is_ok_and(|sanitizing| sanitizing == Sanitizing::Failed) {
            // EXIT FAILURE MODE.
            let _ = self.0.scsi(&[SANITIZE, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0], Data::None, ASKED);
        }
        Ok(Vec::new())
    }

    fn begin(&self, method: Method) -> Result<(), CommandError> {
        let action = ACTIONS.into_iter().find(|(_, known)| *known == method).ok_or_else(not_spoken)?.0;
        // IMMED, so that the answer comes at once, and AUSE: one that fails can be left.
        let head = 0x80 | 0x20 | action;
        if method == Method::ScsiSanitizeOverwrite {
            // One pass of an initialization pattern of four zeros.
            let parameters = [0x01, 0, 0, 4, 0, 0, 0, 0];
            return self.0.scsi(&[SANITIZE, head, 0, 0, 0, 0, 0, 0, 8, 0], Data::Out(&parameters), ASKED);
        }
        self.0.scsi(&[SANITIZE, head, 0, 0, 0, 0, 0, 0, 0, 0], Data::None, ASKED)
    }

    fn sanitizing(&self) -> Result<Sanitizing, CommandError> {
        let sense = self.ask(&[0x03, 0, 0, 0, SENSE as u8, 0], SENSE)?;
        Ok(match crate::admin::refusal(&sense) {
            Some(Refusal::Scsi { code: 0x04, qualifier: 0x1b, .. }) => {
                let told = sense[15] & 0x80 != 0;
                Sanitizing::Running(if told { u16::from_be_bytes([sense[16], sense[17]]) } else { 0 })
            }
            Some(Refusal::Scsi { code: 0x31, qualifier: 0x03, .. }) => Sanitizing::Failed,
            // There is no log of past ones: nothing is under way and nothing failed.
            _ => Sanitizing::Never,
        })
    }

    fn limit(&self, method: Method) -> Duration {
        if method == Method::ScsiSanitizeOverwrite { SLOW } else { FAST }
    }

    fn settle(&self, _: Method) -> Vec<Condition> {
        Vec::new()
    }
}
