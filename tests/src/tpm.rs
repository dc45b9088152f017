//! A machine's TPM, as much of it as a release asks for: TPM 2.0 Library, part 3 §24.6 and §30.2, and the firmware's
//! side of the Physical Presence Interface.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rackhand_installer::tpm::Tpm;

/// A TPM; clones are the same.
#[derive(Clone, Debug, Default)]
pub struct SimulatedTpm(Arc<Mutex<Inside>>);

#[derive(Debug, Default)]
struct Inside {
    /// Whether its owner's password is set.
    owner: bool,
    /// Whether the lockout hierarchy's is.
    lockout: bool,
    /// What its firmware was asked to do at the next start.
    request: Option<u8>,
    /// How often somebody tried a password that was wrong.
    wrong: u32,
}

impl SimulatedTpm {
    /// A tenant takes it: as owner, and with the lockout hierarchy's password when it wants nobody to clear it.
    pub fn take(&self, with_lockout: bool) {
        let mut inside = self.lock();
        (inside.owner, inside.lockout) = (true, with_lockout);
    }

    /// Whether it has anybody's password.
    pub fn is_taken(&self) -> bool {
        let inside = self.lock();
        inside.owner || inside.lockout
    }

    /// How often somebody tried a password that was wrong, of those that lock it.
    pub fn wrong_passwords(&self) -> u32 {
        self.lock().wrong
    }

    /// The machine starts: its firmware does what it was asked.
    pub(crate) fn start(&self) {
        let mut inside = self.lock();
        if inside.request.take() == Some(5) {
            (inside.owner, inside.lockout) = (false, false);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn answer(tag: u16, code: u32, rest: &[u8]) -> Vec<u8> {
    let len = u32::try_from(10 + rest.len()).expect("answers here are short");
    [&tag.to_be_bytes()[..], &len.to_be_bytes(), &code.to_be_bytes(), rest].concat()
}

impl Tpm for SimulatedTpm {
    fn transmit(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
        let word =
            |at: usize| command.get(at..at + 4).map(|word| u32::from_be_bytes([word[0], word[1], word[2], word[3]]));
        // TPM_RC_COMMAND_SIZE.
        if word(2) != u32::try_from(command.len()).ok() {
            return Ok(answer(0x8001, 0x142, &[]));
        }
        let mut inside = self.lock();
        Ok(match word(6) {
            Some(0x17a) if (word(10), word(14), word(18)) == (Some(6), Some(0x200), Some(1)) => {
                let attributes = u32::from(inside.owner) | u32::from(inside.lockout) << 2;
                let words = [6, 1, 0x200, attributes].map(u32::to_be_bytes).concat();
                answer(0x8001, 0, &[&[0][..], &words].concat())
            }
            // Its firmware gives the platform hierarchy a password of its own at every start: TPM_RC_BAD_AUTH.
            Some(0x126) if word(10) == Some(0x4000_000c) => answer(0x8001, 0x9a2, &[]),
            Some(0x126) if word(10) == Some(0x4000_000a) && inside.lockout => {
                inside.wrong += 1;
                answer(0x8001, 0x98e, &[])
            }
            Some(0x126) if word(10) == Some(0x4000_000a) && word(14) == Some(9) && word(18) == Some(0x4000_0009) => {
                (inside.owner, inside.lockout) = (false, false);
                answer(0x8002, 0, &[0, 0, 0, 0, 0, 0, 0, 0, 0])
            }
            // TPM_RC_COMMAND_CODE.
            _ => answer(0x8001, 0x143, &[]),
        })
    }

    fn ask_firmware(&mut self) -> io::Result<()> {
        self.lock().request = Some(5);
        Ok(())
    }
}
