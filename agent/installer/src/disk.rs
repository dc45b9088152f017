//! A disk, as the work on it sees it: whole sectors at offsets. [`BlockDevice`] is the real
//! one; [`FileDisk`] is a file in a directory, for simulated machines.
//!
//! Offsets and lengths are whole sectors; whoever passes others gets an error. Nothing is
//! cached: what [`Disk::write_at`] wrote is at the device, and [`Disk::flush`] brings it out
//! of the device's own cache.

use std::{
    fs::{self, File, OpenOptions},
    io,
    ops::{Deref, DerefMut},
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::admin::{Admin, Passthrough};

/// Sectors at offsets.
pub trait Disk: Send + Sync + 'static {
    /// Bytes in all.
    fn size(&self) -> u64;
    /// Bytes of a logical sector.
    fn sector(&self) -> u32;
    /// Reads all of `bytes`.
    fn read_at(&self, at: u64, bytes: &mut Buffer) -> io::Result<()>;
    /// Writes all of `bytes`.
    fn write_at(&self, at: u64, bytes: &Buffer) -> io::Result<()>;
    /// Makes this range read back as zeros, by whatever is fastest and certain.
    fn zero(&self, at: u64, len: u64) -> io::Result<()>;
    /// Tells the device that nobody needs this range. A hint: it may do nothing, and what the
    /// range reads afterwards is anybody's guess.
    fn discard(&self, at: u64, len: u64);
    /// Returns once everything written is on stable storage.
    fn flush(&self) -> io::Result<()>;
    /// Its administrative commands, when it takes any.
    fn admin(&self) -> Option<&dyn Admin> {
        None
    }
    /// Looks at its size anew, after hidden areas of it were opened.
    fn rescan(&self) -> io::Result<()> {
        Ok(())
    }
    /// What it shares with other disks so that they can only be erased one after another: the
    /// controller of NVMe namespaces.
    fn shared(&self) -> Option<String> {
        None
    }
}

/// Memory at an address that O_DIRECT takes: a multiple of 4096.
pub struct Buffer {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

const ALIGNMENT: usize = 4096;

impl Buffer {
    /// Zeros.
    pub fn zeroed(len: usize) -> Self {
        let memory = vec![0; len + ALIGNMENT];
        // The heap does not move when the `Vec` does, and it is never grown.
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        Self { memory, start, len }
    }

    /// A copy of these bytes.
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut buffer = Self::zeroed(bytes.len());
        buffer.copy_from_slice(bytes);
        buffer
    }

    /// Uses only the first `len` bytes of what it was made with.
    pub fn set_len(&mut self, len: usize) {
        self.len = len.min(self.memory.len() - ALIGNMENT);
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

/// A whole disk of this machine, opened past the page cache and for nobody else.
pub struct BlockDevice {
    name: String,
    file: Arc<File>,
    size: AtomicU64,
    sector: u32,
    admin: Option<Passthrough>,
}

mod ioctl {
    nix::ioctl_read!(get_size, 0x12, 114, u64); // BLKGETSIZE64 (its size argument is size_t)
    nix::ioctl_read_bad!(get_sector, 0x1268, libc::c_int); // BLKSSZGET
    nix::ioctl_write_ptr_bad!(discard, 0x1277, [u64; 2]); // BLKDISCARD
    nix::ioctl_write_ptr_bad!(zero, 0x127f, [u64; 2]); // BLKZEROOUT
    use nix::libc;
}

impl BlockDevice {
    /// Opens `/dev/NAME`.
    pub fn open(name: &str) -> io::Result<Self> {
        let flags = nix::libc::O_DIRECT | nix::libc::O_EXCL | nix::libc::O_CLOEXEC;
        let path = Path::new("/dev").join(name);
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?;
        let (mut size, mut sector) = (0u64, 0);
        // SAFETY: both calls write one integer of the type behind the pointer.
        unsafe {
            ioctl::get_size(file.as_raw_fd(), &mut size)?;
            ioctl::get_sector(file.as_raw_fd(), &mut sector)?;
        }
        let sector = u32::try_from(sector).map_err(io::Error::other)?;
        let name = name.to_owned();
        Ok(Self { name, file: Arc::new(file), size: AtomicU64::new(size), sector, admin: None })
    }

    /// Opens `/dev/NAME` with its administrative commands.
    pub fn open_with_admin(name: &str) -> io::Result<Self> {
        let mut device = Self::open(name)?;
        device.admin = Passthrough::find(name, device.file.clone());
        Ok(device)
    }

    fn write_zeros(&self, at: u64, len: u64) -> io::Result<()> {
        let mut zeros = Buffer::zeroed(1 << 20);
        let mut done = 0;
        while done < len {
            zeros.set_len((len - done).min(1 << 20) as usize);
            self.write_at(at + done, &zeros)?;
            done += zeros.len() as u64;
        }
        Ok(())
    }
}

impl Disk for BlockDevice {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    fn sector(&self) -> u32 {
        self.sector
    }

    fn read_at(&self, at: u64, bytes: &mut Buffer) -> io::Result<()> {
        self.file.read_exact_at(bytes, at)
    }

    fn write_at(&self, at: u64, bytes: &Buffer) -> io::Result<()> {
        self.file.write_all_at(bytes, at)
    }

    fn zero(&self, at: u64, len: u64) -> io::Result<()> {
        // SAFETY: the call reads two integers behind the pointer.
        match unsafe { ioctl::zero(self.file.as_raw_fd(), &[at, len]) } {
            Ok(_) => Ok(()),
            Err(nix::errno::Errno::EOPNOTSUPP | nix::errno::Errno::ENOTTY) => self.write_zeros(at, len),
            Err(errno) => Err(errno.into()),
        }
    }

    fn discard(&self, at: u64, len: u64) {
        // SAFETY: the call reads two integers behind the pointer.
        if let Err(errno) = unsafe { ioctl::discard(self.file.as_raw_fd(), &[at, len]) } {
            tracing::debug!(%errno, "the disk does not discard");
        }
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    fn admin(&self) -> Option<&dyn Admin> {
        self.admin.as_ref().map(|admin| -> &dyn Admin { admin })
    }

    fn rescan(&self) -> io::Result<()> {
        let device: PathBuf = Path::new("/sys/block").join(&self.name).join("device/rescan");
        if !device.exists() {
            return Ok(());
        }
        fs::write(&device, "1")?;
        let mut size = 0u64;
        // SAFETY: the call writes one integer of the type behind the pointer.
        unsafe { ioctl::get_size(self.file.as_raw_fd(), &mut size)? };
        self.size.store(size, Ordering::Relaxed);
        Ok(())
    }

    /// `nvme0` of `nvme0n1`.
    fn shared(&self) -> Option<String> {
        let rest = self.name.strip_prefix("nvme")?;
        let digits = rest.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(rest.len());
        Some(format!("nvme{}", &rest[..digits]))
    }
}

/// A disk that is a file of 512-byte sectors.
pub struct FileDisk {
    file: File,
    size: u64,
}

impl FileDisk {
    /// Opens the file, which must exist and have its size.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let size = fs::metadata(path)?.len();
        Ok(Self { file, size })
    }

    fn check(&self, at: u64, len: u64) -> io::Result<()> {
        let inside = at.checked_add(len).is_some_and(|end| end <= self.size);
        if inside && at.is_multiple_of(512) && len.is_multiple_of(512) {
            Ok(())
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{len} bytes at {at} of {}", self.size)))
        }
    }
}

impl Disk for FileDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn sector(&self) -> u32 {
        512
    }

    fn read_at(&self, at: u64, bytes: &mut Buffer) -> io::Result<()> {
        self.check(at, bytes.len() as u64)?;
        self.file.read_exact_at(bytes, at)
    }

    fn write_at(&self, at: u64, bytes: &Buffer) -> io::Result<()> {
        self.check(at, bytes.len() as u64)?;
        self.file.write_all_at(bytes, at)
    }

    fn zero(&self, at: u64, len: u64) -> io::Result<()> {
        self.check(at, len)?;
        let zeros = vec![0; 1 << 20];
        let mut done = 0;
        while done < len {
            let step = (len - done).min(1 << 20) as usize;
            self.file.write_all_at(&zeros[..step], at + done)?;
            done += step as u64;
        }
        Ok(())
    }

    fn discard(&self, _: u64, _: u64) {}

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}
