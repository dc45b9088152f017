//! The seam through which a drive's administrative commands go, beside reading and writing:
//! NVMe admin commands (NVM Express Base Specification 2.0), ATA commands (ACS-4) and SCSI
//! command blocks (SPC-5, SBC-4). What is asked and what answers mean is decided in
//! [`erase`](crate::erase); here bytes are only carried. [`Passthrough`] is the kernel's way.
//!
//! All of it blocks for as long as the drive takes, at most the command's own limit.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, RawFd},
    sync::Arc,
    time::Duration,
};

use nix::libc;

/// What comes with a command.
#[derive(Debug)]
pub enum Data<'a> {
    /// Nothing.
    None,
    /// What the drive answers, as much as there is room.
    In(&'a mut [u8]),
    /// What the drive is given.
    Out(&'a [u8]),
}

/// An NVMe admin command (Base Specification §3.3.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NvmeCommand {
    /// Opcode.
    pub opcode: u8,
    /// Namespace, or all: 0xffffffff.
    pub namespace: u32,
    /// Command dwords 10 and 11.
    pub cdw10: u32,
    /// See `cdw10`.
    pub cdw11: u32,
    /// How long the drive may take.
    pub limit: Duration,
}

/// An ATA command's registers, as 48-bit commands have them (ACS-4 §7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AtaCommand {
    /// Command.
    pub command: u8,
    /// Features.
    pub feature: u16,
    /// Count.
    pub count: u16,
    /// LBA, 48 bits.
    pub lba: u64,
    /// Whether it is a 48-bit command.
    pub extended: bool,
    /// How long the drive may take.
    pub limit: Duration,
}

/// An ATA command's registers after it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AtaAnswer {
    /// Error.
    pub error: u8,
    /// Count.
    pub count: u16,
    /// LBA.
    pub lba: u64,
    /// Status.
    pub status: u8,
}

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The drive answered that it does not do it: NVMe status, ATA error register, SCSI sense.
    #[error("refused by the drive ({0})")]
    Refused(Refusal),
    /// There is no answer: no such way, or the time was over.
    #[error("not answered by the drive")]
    Unanswered(#[source] io::Error),
}

/// A drive's own words for no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Status code type and code (NVMe Base Specification §3.3.3.2.1).
    Nvme(u16),
    /// The error register.
    Ata(u8),
    /// Sense key, additional sense code and its qualifier (SPC-5 §4.4).
    Scsi {
        /// Key.
        key: u8,
        /// Code.
        code: u8,
        /// Qualifier.
        qualifier: u8,
    },
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Nvme(status) => write!(f, "NVMe status {status:#05x}"),
            Self::Ata(error) => write!(f, "ATA error {error:#04x}"),
            Self::Scsi { key, code, qualifier } => write!(f, "SCSI sense {key:x}/{code:02x}/{qualifier:02x}"),
        }
    }
}

/// Which commands a drive takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// NVMe admin commands; this disk is the namespace with this number.
    Nvme(u32),
    /// ATA commands.
    Ata,
    /// SCSI command blocks.
    Scsi,
}

/// A drive's administrative commands.
pub trait Admin: Send + Sync {
    /// Which of the three it takes; commands of the others are answered with an error.
    fn speaks(&self) -> Speaks;
    /// An NVMe admin command; dword 0 of its completion.
    fn nvme(&self, command: NvmeCommand, data: Data<'_>) -> Result<u32, CommandError>;
    /// An ATA command; its data is whole sectors of 512 bytes. The registers are asked for after a
    /// command without data; `None` when what is between here and the drive does not carry them whole.
    fn ata(&self, command: AtaCommand, data: Data<'_>) -> Result<Option<AtaAnswer>, CommandError>;
    /// A SCSI command block.
    fn scsi(&self, block: &[u8], data: Data<'_>, limit: Duration) -> Result<(), CommandError>;
}

/// An answer to a command of another kind of drive.
pub(crate) fn not_spoken() -> CommandError {
    CommandError::Unanswered(io::Error::new(io::ErrorKind::Unsupported, "the drive takes no such commands"))
}

/// The kernel's ways to a drive: `NVME_IOCTL_ADMIN_CMD`, and `SG_IO` with ATA PASS-THROUGH (16)
/// (SAT-4 §12.2) for ATA drives.
pub struct Passthrough {
    file: Arc<File>,
    speaks: Speaks,
}

/// `struct nvme_passthru_cmd` (linux/nvme_ioctl.h).
#[repr(C)]
#[derive(Default)]
pub struct NvmePassthru {
    opcode: u8,
    flags: u8,
    reserved: u16,
    namespace: u32,
    cdw2: u32,
    cdw3: u32,
    metadata: u64,
    address: u64,
    metadata_len: u32,
    data_len: u32,
    cdw10: u32,
    cdw11: u32,
    cdw12: u32,
    cdw13: u32,
    cdw14: u32,
    cdw15: u32,
    timeout: u32,
    result: u32,
}

/// `struct sg_io_hdr` (scsi/sg.h).
#[repr(C)]
pub struct SgIo {
    interface: libc::c_int,
    direction: libc::c_int,
    block_len: u8,
    sense_len: u8,
    pieces: u16,
    data_len: u32,
    data: *mut libc::c_void,
    block: *const u8,
    sense: *mut u8,
    timeout: u32,
    flags: u32,
    pack: libc::c_int,
    user: *mut libc::c_void,
    status: u8,
    masked_status: u8,
    message_status: u8,
    sense_written: u8,
    host_status: u16,
    driver_status: u16,
    residue: libc::c_int,
    duration: u32,
    info: u32,
}

mod ioctl {
    use super::{NvmePassthru, SgIo};
    nix::ioctl_none!(namespace, b'N', 0x40); // NVME_IOCTL_ID
    nix::ioctl_readwrite!(admin, b'N', 0x41, NvmePassthru); // NVME_IOCTL_ADMIN_CMD
    nix::ioctl_readwrite_bad!(sg_io, 0x2285, SgIo); // SG_IO
}

/// SCSI status CHECK CONDITION, and GOOD (SAM-6 §5.3.1).
const CHECK_CONDITION: u8 = 0x02;

/// A question of any kind is answered within this, or the drive is not there.
pub(crate) const ASKED: Duration = Duration::from_secs(20);

impl Passthrough {
    /// The way to the drive behind this block device: an ATA drive when it answers IDENTIFY
    /// DEVICE, else a SCSI one when it answers INQUIRY. `None` when it takes neither.
    pub fn find(name: &str, file: Arc<File>) -> Option<Self> {
        if name.starts_with("nvme") {
            // SAFETY: the call takes no argument.
            let namespace = unsafe { ioctl::namespace(file.as_raw_fd()) }.ok()?;
            return Some(Self { file, speaks: Speaks::Nvme(u32::try_from(namespace).ok()?) });
        }
        let ata = Self { file: file.clone(), speaks: Speaks::Ata };
        let identify = AtaCommand { command: 0xec, count: 1, limit: ASKED, ..AtaCommand::default() };
        if ata.ata(identify, Data::In(&mut [0; 512])).is_ok() {
            return Some(ata);
        }
        let scsi = Self { file, speaks: Speaks::Scsi };
        let inquiry = [0x12, 0, 0, 0, 36, 0];
        scsi.scsi(&inquiry, Data::In(&mut [0; 36]), ASKED).is_ok().then_some(scsi)
    }

    /// Sends a command block; the sense data, when there is any.
    fn send(&self, block: &[u8], data: Data<'_>, limit: Duration) -> io::Result<Option<Vec<u8>>> {
        let mut sense = [0u8; 64];
        let (direction, pointer, len) = match data {
            Data::None => (-1, std::ptr::null_mut(), 0), // SG_DXFER_NONE
            Data::Out(bytes) => (-2, bytes.as_ptr().cast_mut().cast(), bytes.len()), // SG_DXFER_TO_DEV
            Data::In(bytes) => (-3, bytes.as_mut_ptr().cast(), bytes.len()), // SG_DXFER_FROM_DEV
        };
        let mut header = SgIo {
            interface: libc::c_int::from(b'S'),
            direction,
            block_len: u8::try_from(block.len()).map_err(io::Error::other)?,
            sense_len: sense.len() as u8,
            pieces: 0,
            data_len: u32::try_from(len).map_err(io::Error::other)?,
            data: pointer,
            block: block.as_ptr(),
            sense: sense.as_mut_ptr(),
            timeout: milliseconds(limit),
            flags: 0,
            pack: 0,
            user: std::ptr::null_mut(),
            status: 0,
            masked_status: 0,
            message_status: 0,
            sense_written: 0,
            host_status: 0,
            driver_status: 0,
            residue: 0,
            duration: 0,
            info: 0,
        };
        let device: RawFd = self.file.as_raw_fd();
        // SAFETY: the header has the layout of `sg_io_hdr`; its pointers are to `block`, `sense` and `data`
        // with the lengths beside them, which live until the call returns, and only `sense` and data of
        // direction "in", which is borrowed mutably, are written.
        unsafe { ioctl::sg_io(device, &mut header) }?;
        if header.host_status != 0 {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("host status {:#x}", header.host_status)));
        }
        let written = usize::from(header.sense_written).min(sense.len());
        match header.status {
            0 if written == 0 => Ok(None),
            0 | CHECK_CONDITION => Ok(Some(sense[..written].to_vec())),
            other => Err(io::Error::other(format!("SCSI status {other:#x}"))),
        }
    }
}

fn milliseconds(limit: Duration) -> u32 {
    u32::try_from(limit.as_millis()).unwrap_or(u32::MAX)
}

impl Admin for Passthrough {
    fn speaks(&self) -> Speaks {
        self.speaks
    }

    fn nvme(&self, command: NvmeCommand, data: Data<'_>) -> Result<u32, CommandError> {
        let (address, len) = match data {
            Data::None => (0, 0),
            Data::In(bytes) => (bytes.as_mut_ptr() as u64, bytes.len()),
            Data::Out(bytes) => (bytes.as_ptr() as u64, bytes.len()),
        };
        let mut passthru = NvmePassthru {
            opcode: command.opcode,
            namespace: command.namespace,
            address,
            data_len: u32::try_from(len).map_err(|error| CommandError::Unanswered(io::Error::other(error)))?,
            cdw10: command.cdw10,
            cdw11: command.cdw11,
            timeout: milliseconds(command.limit),
            ..NvmePassthru::default()
        };
        // SAFETY: the command has the layout of `nvme_passthru_cmd`; its address is that of `data`, which
        // lives until the call returns, and the opcode's lowest bits tell the kernel to write only into
        // data that is borrowed mutably (NVMe opcodes carry their direction).
        match unsafe { ioctl::admin(self.file.as_raw_fd(), &mut passthru) } {
            Ok(0) => Ok(passthru.result),
            Ok(status) => Err(CommandError::Refused(Refusal::Nvme((status & 0x7ff) as u16))),
            Err(errno) => Err(CommandError::Unanswered(errno.into())),
        }
    }

    fn ata(&self, command: AtaCommand, data: Data<'_>) -> Result<Option<AtaAnswer>, CommandError> {
        let AtaCommand { command: opcode, feature, count, lba, extended, limit } = command;
        let lba = lba.to_be_bytes();
        // Protocol: 3 no data, 4 PIO in, 5 PIO out; the length is the count, in sectors. The registers are
        // wanted back (CK_COND) of what has no data only: of a PIO transfer some controllers keep the status
        // from before its end, with DRQ set, which the kernel takes for a failure.
        let (protocol, transfer): (u8, u8) = match &data {
            Data::None => (3, 0x20),
            Data::In(_) => (4, 0x0e),
            Data::Out(_) => (5, 0x06),
        };
        // The device register's LBA bits 27:24 of a 28-bit command, and its LBA bit.
        let device = 0x40 | if extended { 0 } else { lba[4] & 0x0f };
        let block = [
            0x85,
            protocol << 1 | u8::from(extended),
            transfer,
            (feature >> 8) as u8,
            feature as u8,
            (count >> 8) as u8,
            count as u8,
            lba[4],
            lba[7],
            lba[3],
            lba[6],
            lba[2],
            lba[5],
            device,
            opcode,
            0,
        ];
        let sense = self.send(&block, data, limit).map_err(CommandError::Unanswered)?;
        let Some(answer) = sense.as_deref().and_then(registers) else {
            return match sense.as_deref().and_then(refusal) {
                Some(Refusal::Scsi { key: 0 | 1, .. }) | None => Ok(None),
                Some(refusal) => Err(CommandError::Refused(refusal)),
            };
        };
        // ERR or DF (ACS-4 §6.2).
        if answer.status & 0x21 != 0 {
            return Err(CommandError::Refused(Refusal::Ata(answer.error)));
        }
        Ok(Some(answer))
    }

    fn scsi(&self, block: &[u8], data: Data<'_>, limit: Duration) -> Result<(), CommandError> {
        let sense = self.send(block, data, limit).map_err(CommandError::Unanswered)?;
        match sense.as_deref().and_then(refusal) {
            None | Some(Refusal::Scsi { key: 0 | 1, .. }) => Ok(()),
            Some(refusal) => Err(CommandError::Refused(refusal)),
        }
    }
}

/// The registers in sense data: the ATA Status Return descriptor, or what fixed format has room for when
/// that is all of it (SAT-4 §12.2.2.6 and §12.2.2.7).
fn registers(sense: &[u8]) -> Option<AtaAnswer> {
    match sense.first()? & 0x7f {
        0x70 => return fixed_registers(sense),
        0x72 => {}
        _ => return None,
    }
    let mut rest = sense.get(8..)?;
    while let [kind, len, ..] = *rest {
        let descriptor = rest.get(..usize::from(len) + 2)?;
        if kind == 0x09
            && let [_, _, _, error, count_high, count, l3, l0, l4, l1, l5, l2, _, status] = *descriptor
        {
            let lba = u64::from_be_bytes([0, 0, l5, l4, l3, l2, l1, l0]);
            return Some(AtaAnswer { error, count: u16::from_be_bytes([count_high, count]), lba, status });
        }
        rest = &rest[descriptor.len()..];
    }
    None
}

/// With ATA PASS-THROUGH INFORMATION AVAILABLE the information field is error, status, device and count,
/// and the command-specific one the lower half of the LBA and whether the upper halves are zero.
fn fixed_registers(sense: &[u8]) -> Option<AtaAnswer> {
    let [_, _, _, error, status, _, count, _, flags, l0, l1, l2, 0x00, 0x1d, ..] = *sense else { return None };
    let is_cut = flags & 0x60 != 0;
    let lba = u64::from(u32::from_be_bytes([0, l2, l1, l0]));
    (!is_cut).then_some(AtaAnswer { error, count: u16::from(count), lba, status })
}

/// Key, code and qualifier of sense data in either format (SPC-5 §4.4).
pub(crate) fn refusal(sense: &[u8]) -> Option<Refusal> {
    let at = |index: usize| sense.get(index).copied().unwrap_or(0);
    match at(0) & 0x7f {
        0x72 | 0x73 => Some(Refusal::Scsi { key: at(1) & 0x0f, code: at(2), qualifier: at(3) }),
        0x70 | 0x71 => Some(Refusal::Scsi { key: at(2) & 0x0f, code: at(12), qualifier: at(13) }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_structures_have_the_kernels_sizes() {
        assert_eq!((size_of::<NvmePassthru>(), std::mem::offset_of!(NvmePassthru, result)), (72, 68));
        assert_eq!((size_of::<SgIo>(), std::mem::offset_of!(SgIo, status)), (88, 64));
    }

    #[test]
    fn registers_are_found_among_descriptors_of_sense_data() {
        let mut sense = vec![0x72, 1, 0, 0x1d, 0, 0, 0, 18, 0x00, 0x02, 7, 7];
        sense.extend([0x09, 0x0c, 1, 0x04, 0x12, 0x34, 4, 1, 5, 2, 6, 3, 0xe0, 0x51]);
        let answer = AtaAnswer { error: 4, count: 0x1234, lba: 0x0000_0605_0403_0201, status: 0x51 };
        assert_eq!(registers(&sense), Some(answer));
        // Cut anywhere, it is no answer and no panic.
        for len in 0..sense.len() {
            assert_eq!(registers(&sense[..len]), None, "{len}");
        }
        let mut fixed = [0x70, 0, 1, 0x04, 0x51, 0x40, 0x34, 10, 0, 1, 2, 3, 0x00, 0x1d];
        let answer = AtaAnswer { error: 4, count: 0x34, lba: 0x0003_0201, status: 0x51 };
        assert_eq!(registers(&fixed), Some(answer));
        // Its upper halves are not zero and not told.
        for cut in [0x40, 0x20] {
            fixed[8] = cut;
            assert_eq!(registers(&fixed), None);
        }
        let fixed = [0xf0, 0, 0x02, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x04, 0x1b];
        assert_eq!(registers(&fixed), None);
        assert_eq!(refusal(&fixed), Some(Refusal::Scsi { key: 2, code: 4, qualifier: 0x1b }));
    }
}
