//! The toolbox: programs for tests and rescue, a Debian userland in one squashfs, fetched into memory
//! from this rack's node and run in a root of its own.
//!
//! Invariants:
//! - Nothing of the file is mounted before all of it has the digest that boot told on its pinned channel:
//!   bytes that are not verified reach no decoder, the kernel's included.
//! - It is fetched into memory only if that leaves room to run it.
//! - What programs change is in memory and gone with it; no disk is touched by mounting anything here.

use std::{
    ffi::CString,
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd, RawFd},
        unix::{ffi::OsStrExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use hyper::StatusCode;
use nix::{
    errno::Errno,
    libc,
    mount::{MntFlags, MsFlags, mount, umount2},
};
use rackhand_common::{
    commission::{Ran, Script},
    image::Digest,
};
use tokio::{io::AsyncWriteExt, task::spawn_blocking};
use tokio_util::sync::CancellationToken;

use crate::{
    channel::{Backoff, Channel, Failure, Lane},
    commission,
    machine::Machine,
    rescue::{Ssh, Sshd},
};

/// Why there is no toolbox.
#[derive(Debug, thiserror::Error)]
pub enum ToolboxError {
    /// The rack's node has none.
    #[error(
        "this rack's node has no toolbox: install the package rackhand-toolbox there, or name a file as \
         `installer.toolbox` in its boot.toml"
    )]
    NotThere,
    /// It cannot be had.
    #[error("the toolbox cannot be fetched")]
    Fetch(#[source] Failure),
    /// It came, and again and again was not what boot said.
    #[error("the toolbox came {0} times with other contents than boot says it has")]
    WrongDigest(u32),
    /// The machine has too little memory.
    #[error("the toolbox needs {needed} MiB of memory to run from, and {available} MiB are available", needed = needed >> 20, available = available >> 20)]
    Memory {
        /// Bytes.
        needed: u64,
        /// Bytes.
        available: u64,
    },
    /// It could not be kept or mounted.
    #[error("the toolbox: {0} failed")]
    Mount(&'static str, #[source] io::Error),
}

/// What a script is given beside its result's place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Given {
    /// Its arguments.
    pub arguments: Vec<String>,
    /// What is set in its environment.
    pub environment: Vec<(&'static str, String)>,
}

/// The programs of a toolbox that is ready: the seam between work and what carries it out. A
/// simulated machine has others.
///
/// Everything here blocks, and is called from threads that may.
pub trait Tools: Send + Sync {
    /// The toolbox as it is mounted; `None` on a machine that is simulated.
    fn toolbox(&self) -> Option<&Toolbox>;
    /// Whether there is this program.
    fn has(&self, program: &str) -> bool;
    /// Runs a test to its end, its limit, or until `withdrawn`.
    fn run(&self, script: &Script, withdrawn: &CancellationToken) -> Ran;
    /// Where a file of firmware of this name is to be put, and what its path is for scripts.
    fn room_for_firmware(&self, name: &str) -> io::Result<(PathBuf, String)>;
    /// Runs the script of an update to its end or its limit, and never ends it before.
    fn update(&self, script: &Script, given: &Given) -> Ran;
    /// Lets the holders of these public keys log in as root over SSH; the server answers on return.
    fn let_in(&self, keys: &[String]) -> io::Result<Box<dyn Ssh>>;
}

/// Room that has to stay beside the file: for what programs change, and for them.
const ROOM: u64 = 160 << 20;

/// How often a file that is not what boot said is fetched anew.
const TRIES: u32 = 3;

/// How long nothing may come of it.
const PATIENCE: Duration = Duration::from_secs(20);

/// Fetches the toolbox of this rack and makes it ready, however often boot is away meanwhile.
pub async fn fetch(channel: &Channel, machine: Arc<dyn Machine>) -> Result<Arc<dyn Tools>, ToolboxError> {
    let mut lane = channel.lane();
    for _ in 0..TRIES {
        let file = channel.toolbox(&mut lane).await.map_err(|failure| match failure {
            Failure::Refused(StatusCode::NOT_FOUND, _) => ToolboxError::NotThere,
            failure => ToolboxError::Fetch(failure),
        })?;
        tracing::info!(bytes = file.size, digest = %file.digest, "fetching the toolbox");
        let (made, size) = (machine.clone(), file.size);
        let path = blocking(move || made.room_for_toolbox(size)).await?;
        let mut backoff = Backoff::new();
        let found = loop {
            match download(channel, &path, file.size).await {
                Ok(found) => break found,
                Err(ToolboxError::Fetch(failure @ Failure::Unreachable(_))) => {
                    tracing::warn!(cause = std::error::Error::source(&failure), "toolbox: boot {failure}");
                    backoff.wait().await;
                }
                Err(error) => return Err(error),
            }
        };
        if found == Some(file.digest) {
            return blocking(move || machine.open_toolbox(&path)).await;
        }
        tracing::warn!("the toolbox that came is not the one boot told of");
    }
    Err(ToolboxError::WrongDigest(TRIES))
}

async fn blocking<T: Send + 'static>(
    act: impl FnOnce() -> Result<T, ToolboxError> + Send + 'static,
) -> Result<T, ToolboxError> {
    spawn_blocking(act).await.expect("mounting does not panic")
}

/// Brings the file; the digest of what came, when that was neither more nor less than `size` bytes.
async fn download(channel: &Channel, path: &Path, size: u64) -> Result<Option<Digest>, ToolboxError> {
    let failed = |error| ToolboxError::Mount("keeping it in memory", error);
    let mut file = tokio::fs::File::create(path).await.map_err(failed)?;
    let mut hasher = blake3::Hasher::new();
    let (mut came, mut kept) = (0, Ok(()));
    let take = async |piece: Bytes| {
        came += piece.len() as u64;
        if came > size {
            return Err(io::Error::other("more came than boot said"));
        }
        hasher.update(&piece);
        kept = file.write_all(&piece).await;
        if kept.is_err() { Err(io::Error::other("it cannot be kept")) } else { Ok(()) }
    };
    let streamed = Lane::plain(channel.chunks()).stream("/toolbox", PATIENCE, take).await;
    kept.map_err(failed)?;
    if came > size {
        return Ok(None);
    }
    streamed.map_err(ToolboxError::Fetch)?;
    file.flush().await.map_err(failed)?;
    Ok((came == size).then(|| Digest(*hasher.finalize().as_bytes())))
}

/// Makes room in memory for a toolbox of `size` bytes in the directory `place`: the file to write it into.
pub fn make_room(place: &Path, size: u64) -> Result<PathBuf, ToolboxError> {
    let failed = |error| ToolboxError::Mount("making room", error);
    clear(place);
    let available = available_memory().map_err(failed)?;
    let needed = size.saturating_add(ROOM);
    if available < needed {
        return Err(ToolboxError::Memory { needed, available });
    }
    fs::create_dir_all(place).map_err(failed)?;
    // The other half of what is left is for programs.
    let limit = format!("size={},mode=0755", size + (available - size) / 2);
    mount(Some("tmpfs"), place, Some("tmpfs"), MsFlags::empty(), Some(limit.as_str()))
        .map_err(|errno| failed(errno.into()))?;
    Ok(place.join("squashfs"))
}

/// Takes down what is mounted at `place`, and in it.
fn clear(place: &Path) {
    let mut mounts: Vec<PathBuf> = fs::read_to_string("/proc/self/mounts")
        .unwrap_or_default()
        .lines()
        .filter_map(|line| Some(PathBuf::from(line.split(' ').nth(1)?)))
        .filter(|mount| mount.starts_with(place))
        .collect();
    // The innermost and latest first.
    mounts.reverse();
    for mount in mounts {
        if let Err(errno) = umount2(&mount, MntFlags::MNT_DETACH) {
            tracing::warn!(%errno, mount = %mount.display(), "cannot be taken down");
        }
    }
}

/// What `/proc/meminfo` says is available, in bytes (proc_meminfo(5)).
fn available_memory() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    available_in(&text).ok_or_else(|| io::Error::other("/proc/meminfo does not say what is available"))
}

fn available_in(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kibibytes << 10)
}

/// A toolbox that is mounted; clones are the same. It stays so until the machine restarts.
#[derive(Clone, Debug)]
pub struct Toolbox {
    root: PathBuf,
}

impl Toolbox {
    /// Mounts the squashfs `file` in the directory `place` that [`make_room`] made: read-only beneath, with
    /// room for changes in memory over it, and the kernel's file systems in it.
    pub fn mount(place: &Path, file: &Path) -> Result<Self, ToolboxError> {
        let at = |name| -> Result<PathBuf, ToolboxError> {
            let path = place.join(name);
            fs::create_dir_all(&path).map_err(|error| ToolboxError::Mount("making its directories", error))?;
            Ok(path)
        };
        let (lower, upper, work, root) = (at("lower")?, at("upper")?, at("work")?, at("root")?);
        let failed = |doing| move |errno: Errno| ToolboxError::Mount(doing, errno.into());
        let none = None::<&str>;

        // Open until it is mounted: nobody's, it would be detached.
        let (device, _open) = attach(file).map_err(|error| ToolboxError::Mount("attaching it", error))?;
        mount(Some(&device), &lower, Some("squashfs"), MsFlags::MS_RDONLY, none).map_err(failed("mounting it"))?;
        let layers = format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
        mount(Some("overlay"), &root, Some("overlay"), MsFlags::empty(), Some(layers.as_str()))
            .map_err(failed("making room over it"))?;
        terminals().map_err(failed("mounting terminals"))?;
        for kernel in ["dev", "proc", "sys"] {
            let (from, to) = (Path::new("/").join(kernel), root.join(kernel));
            mount(Some(&from), &to, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)
                .map_err(failed("mounting the kernel's file systems"))?;
        }
        for made in ["run/lock", "run/sshd", "tmp"] {
            fs::create_dir_all(root.join(made))
                .map_err(|error| ToolboxError::Mount("making its directories", error))?;
        }
        tracing::info!("the toolbox is ready");
        Ok(Self { root })
    }

    /// Its root directory, as it is seen from outside.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether it has this program in one of the directories that [`command`](Self::command) looks into.
    pub fn has(&self, program: &str) -> bool {
        let is_there = |directory: &str| fs::metadata(self.root.join(&directory[1..]).join(program)).is_ok();
        PATH.split(':').any(is_there)
    }

    /// A program of the toolbox, to run in its root with its environment, nothing to read and nobody to
    /// write to; to be started by [`pid1::spawn`](crate::pid1::spawn).
    pub fn command(&self, program: &str) -> Command {
        let root = CString::new(self.root.as_os_str().as_bytes()).expect("its path has no zero in it");
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", PATH)
            .envs([("HOME", "/root"), ("LANG", "C.UTF-8"), ("TERM", "linux")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // SAFETY: both are system calls, which may be made between fork and exec, and nothing is
        // allocated: the path was made before.
        unsafe {
            command.pre_exec(move || {
                Errno::result(libc::chroot(root.as_ptr()))?;
                Errno::result(libc::chdir(c"/".as_ptr()))?;
                Ok(())
            })
        };
        command
    }
}

impl Tools for Toolbox {
    fn toolbox(&self) -> Option<&Toolbox> {
        Some(self)
    }

    fn has(&self, program: &str) -> bool {
        self.has(program)
    }

    fn run(&self, script: &Script, withdrawn: &CancellationToken) -> Ran {
        commission::run(self, script, &Given::default(), withdrawn)
    }

    fn room_for_firmware(&self, name: &str) -> io::Result<(PathBuf, String)> {
        let place = self.root.join(FIRMWARE);
        fs::create_dir_all(&place)?;
        Ok((place.join(name), format!("/{FIRMWARE}/{name}")))
    }

    fn update(&self, script: &Script, given: &Given) -> Ran {
        commission::run(self, script, given, &CancellationToken::new())
    }

    fn let_in(&self, keys: &[String]) -> io::Result<Box<dyn Ssh>> {
        Ok(Box::new(Sshd::start(self, keys)?))
    }
}

/// Where files of firmware are, in it.
const FIRMWARE: &str = "run/firmware";

/// Where programs are looked for.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Terminals for who logs in, and memory that programs share; each once.
fn terminals() -> nix::Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for (kind, place, with) in [("devpts", "/dev/pts", "mode=0620,ptmxmode=0666"), ("tmpfs", "/dev/shm", "mode=1777")] {
        let is_there = mounts.lines().any(|line| line.split(' ').nth(1) == Some(place));
        if !is_there {
            fs::create_dir_all(place).map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
            mount(Some(kind), place, Some(kind), MsFlags::MS_NOSUID, Some(with))?;
        }
    }
    Ok(())
}

/// `struct loop_info64` (linux/loop.h).
#[repr(C)]
struct LoopInfo {
    numbers: [u64; 5],
    number: u32,
    encryption: [u32; 2],
    flags: u32,
    names_and_key: [u8; 64 + 64 + 32],
    init: [u64; 2],
}

/// `struct loop_config` (linux/loop.h).
#[repr(C)]
struct LoopConfig {
    file: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

const READ_ONLY: u32 = 1;
/// Detached when nobody has it open or mounted any more.
const AUTOCLEAR: u32 = 4;

mod ioctl {
    nix::ioctl_none_bad!(free_loop, 0x4c82); // LOOP_CTL_GET_FREE
    nix::ioctl_write_ptr_bad!(configure_loop, 0x4c0a, super::LoopConfig); // LOOP_CONFIGURE
}

/// How often another loop device is tried because somebody else took the one that was free.
const LOOPS: u32 = 8;

/// The loop device that has this file for its contents.
fn attach(file: &Path) -> io::Result<(PathBuf, File)> {
    let (control, contents) = (OpenOptions::new().read(true).write(true).open("/dev/loop-control")?, File::open(file)?);
    let mut tries = 0;
    loop {
        // SAFETY: the call takes no argument.
        let number = unsafe { ioctl::free_loop(control.as_raw_fd()) }?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = OpenOptions::new().read(true).open(&path)?;
        match configure(device.as_raw_fd(), contents.as_raw_fd()) {
            Ok(()) => return Ok((path, device)),
            Err(Errno::EBUSY) if tries < LOOPS => tries += 1,
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn configure(device: RawFd, contents: RawFd) -> nix::Result<()> {
    let info = LoopInfo {
        numbers: [0; 5],
        number: 0,
        encryption: [0; 2],
        flags: READ_ONLY | AUTOCLEAR,
        names_and_key: [0; 160],
        init: [0; 2],
    };
    let config = LoopConfig { file: contents.cast_unsigned(), block_size: 0, info, reserved: [0; 8] };
    // SAFETY: the kernel reads one structure of this layout.
    unsafe { ioctl::configure_loop(device, &config) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_available_is_read_as_the_kernel_says_it() {
        let text = "MemTotal:       24576000 kB\nMemFree:         1000 kB\nMemAvailable:    2048 kB\nBuffers: 1 kB\n";
        assert_eq!(available_in(text), Some(2048 << 10));
        assert_eq!(available_in("MemTotal: 24576000 kB\n"), None);
        assert_eq!(available_in("MemAvailable: many kB\n"), None);
    }

    #[test]
    fn the_loop_devices_structure_is_as_long_as_the_kernels() {
        assert_eq!((size_of::<LoopInfo>(), size_of::<LoopConfig>()), (232, 304));
    }
}
