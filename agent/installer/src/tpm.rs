//! The machine's TPM cleared at a release: what its last holder sealed or put there is gone, and nobody's
//! password is on it (TCG TPM 2.0 Library, part 3 §24.6 `TPM2_Clear`, §30.2 `TPM2_GetCapability`).
//!
//! Invariants:
//! - A TPM counts as cleared when it was read with no password after it took a clear.
//! - No password is guessed: a wrong one for the lockout hierarchy locks it for hours.
//! - An answer is read within its bounds, whatever stands in it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

/// The longest answer that is read, in bytes: one of ours has 27.
const MAX_ANSWER: usize = 4096;

/// What clears it: who has no password in platform firmware's place, and who has the lockout's.
const PLATFORM: u32 = 0x4000_000c;
const LOCKOUT: u32 = 0x4000_000a;

/// `TPM_PT_PERMANENT`: attributes that last over a reset (part 2 §8.6).
const PERMANENT: u32 = 0x200;

/// Of [`PERMANENT`]: passwords of owner, endorsement and lockout are set; lockout may not clear.
const OWNER_AUTH: u32 = 1;
const ENDORSEMENT_AUTH: u32 = 1 << 1;
const LOCKOUT_AUTH: u32 = 1 << 2;
const DISABLE_CLEAR: u32 = 1 << 8;

/// "Clear the TPM" of the Physical Presence Interface (TCG PPI 1.3, table 2).
const PPI_CLEAR: &str = "5";

/// A TPM, and the firmware that may clear it at the machine's next start.
pub trait Tpm: Send {
    /// Has it do one command; its answer.
    fn transmit(&mut self, command: &[u8]) -> io::Result<Vec<u8>>;

    /// Asks the firmware to clear it at the next start.
    fn ask_firmware(&mut self) -> io::Result<()>;
}

/// Why a TPM is not known to be cleared.
#[derive(Debug, thiserror::Error)]
pub enum TpmError {
    /// It did not answer.
    #[error("it does not answer")]
    Io(#[from] io::Error),
    /// It answered something that has no meaning.
    #[error("it answers something that is no answer")]
    Malformed,
    /// It refused, and its firmware was asked.
    #[error(
        "it refuses to be cleared ({0}), so its firmware was asked to clear it at the next start, which may want a key \
         pressed at the machine's console: release the machine again"
    )]
    AskedFirmware(String),
    /// It refused, and so did its firmware.
    #[error("it refuses to be cleared ({0}), and its firmware takes no request: clear it in the firmware's setup")]
    Refused(String, #[source] io::Error),
}

/// Clears it, and reads that it is.
pub fn clear(tpm: &mut dyn Tpm) -> Result<(), TpmError> {
    let before = permanent(tpm)?;
    let mut refused = match by(tpm, PLATFORM)? {
        Ok(()) => None,
        Err(code) => Some(format!("code {code:#x}")),
    };
    if refused.is_some() {
        refused = if before & LOCKOUT_AUTH != 0 {
            Some("somebody set its lockout password".to_owned())
        } else if before & DISABLE_CLEAR != 0 {
            Some("somebody forbade it".to_owned())
        } else {
            by(tpm, LOCKOUT)?.err().map(|code| format!("code {code:#x}"))
        };
    }
    if refused.is_none() && permanent(tpm)? & (OWNER_AUTH | ENDORSEMENT_AUTH | LOCKOUT_AUTH) != 0 {
        refused = Some("it has passwords after it was cleared".to_owned());
    }
    let Some(why) = refused else { return Ok(()) };
    match tpm.ask_firmware() {
        Ok(()) => Err(TpmError::AskedFirmware(why)),
        Err(error) => Err(TpmError::Refused(why, error)),
    }
}

/// `TPM2_Clear` in the name of this hierarchy, with an empty password; its code when it is refused.
fn by(tpm: &mut dyn Tpm, hierarchy: u32) -> Result<Result<(), u32>, TpmError> {
    let mut command = Vec::with_capacity(27);
    command.extend(0x8002_u16.to_be_bytes());
    command.extend(27_u32.to_be_bytes());
    command.extend(0x126_u32.to_be_bytes());
    command.extend(hierarchy.to_be_bytes());
    // One session: a password, of no bytes (part 1 §19.4).
    command.extend(9_u32.to_be_bytes());
    command.extend(0x4000_0009_u32.to_be_bytes());
    command.extend([0; 5]);
    let answer = tpm.transmit(&command)?;
    let (code, _) = opened(&answer)?;
    Ok(if code == 0 { Ok(()) } else { Err(code) })
}

/// Its permanent attributes.
fn permanent(tpm: &mut dyn Tpm) -> Result<u32, TpmError> {
    let mut command = Vec::with_capacity(22);
    command.extend(0x8001_u16.to_be_bytes());
    // Size, TPM2_GetCapability, TPM_CAP_TPM_PROPERTIES, the property, and one of them.
    for word in [22, 0x17a, 6, PERMANENT, 1_u32] {
        command.extend(word.to_be_bytes());
    }
    let answer = tpm.transmit(&command)?;
    match opened(&answer)? {
        // Whether there is more; capability, count, property and value.
        (0, [_, rest @ ..]) if rest.len() == 16 => {
            let word = |at: usize| u32::from_be_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]]);
            if (word(0), word(4), word(8)) == (6, 1, PERMANENT) { Ok(word(12)) } else { Err(TpmError::Malformed) }
        }
        _ => Err(TpmError::Malformed),
    }
}

/// The code of an answer, and what follows it.
fn opened(answer: &[u8]) -> Result<(u32, &[u8]), TpmError> {
    let Some((head, rest)) = answer.split_first_chunk::<10>() else { return Err(TpmError::Malformed) };
    let [0x80, 0x01 | 0x02, a, b, c, d, e, f, g, h] = *head else { return Err(TpmError::Malformed) };
    if u32::from_be_bytes([a, b, c, d]) as usize != answer.len() {
        return Err(TpmError::Malformed);
    }
    Ok((u32::from_be_bytes([e, f, g, h]), rest))
}

/// The TPM of this machine.
pub struct Device {
    file: File,
    request: PathBuf,
}

impl Device {
    /// The first one, when there is one that speaks TPM 2.0.
    pub fn find() -> io::Result<Option<Self>> {
        let class = Path::new("/sys/class/tpm/tpm0");
        match fs::read_to_string(class.join("tpm_version_major")) {
            Ok(version) if version.trim() == "2" => {}
            Ok(_) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        }
        let file = OpenOptions::new().read(true).write(true).open("/dev/tpm0")?;
        Ok(Some(Self { file, request: class.join("ppi/request") }))
    }
}

impl Tpm for Device {
    fn transmit(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
        self.file.write_all(command)?;
        let mut answer = vec![0; MAX_ANSWER];
        let read = self.file.read(&mut answer)?;
        answer.truncate(read);
        Ok(answer)
    }

    fn ask_firmware(&mut self) -> io::Result<()> {
        fs::write(&self.request, PPI_CLEAR)
    }
}

#[cfg(test)]
mod tests;
