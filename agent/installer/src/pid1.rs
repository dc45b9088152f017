//! What the first process of a system has to do and no other program does for it.
//!
//! Order matters: without devtmpfs on `/dev` there is no randomness, and the first
//! cryptographic call would panic.

use std::{fs, io, path::Path, time::Duration};

use nix::{
    mount::{MsFlags, mount},
    sys::{
        reboot::{RebootMode, reboot},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

/// Mounts the kernel's file systems. To be called before anything else.
pub fn mount_kernel_file_systems() -> io::Result<()> {
    let none = None::<&str>;
    for (kind, place) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys"), ("tmpfs", "/run")] {
        fs::create_dir_all(place)?;
        mount(Some(kind), place, Some(kind), MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, none)?;
    }
    Ok(())
}

/// Mounts the firmware's variables; on a machine started by BIOS there are none. Their
/// driver must be loaded.
pub fn mount_efi_variables() -> io::Result<()> {
    let place = Path::new("/sys/firmware/efi/efivars");
    if place.exists() {
        mount(Some("efivarfs"), place, Some("efivarfs"), MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, None::<&str>)?;
    }
    Ok(())
}

/// Makes a panic restart the machine: nobody is there to look at it, and PXE brings us back.
/// The pause lets a person read the console, and the node sees no storm of restarts.
pub fn restart_after_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::thread::sleep(Duration::from_secs(10));
        let Err(errno) = restart();
        tracing::error!(%errno, "cannot restart");
    }));
}

/// Flushes and restarts the machine now.
pub fn restart() -> nix::Result<std::convert::Infallible> {
    nix::unistd::sync();
    reboot(RebootMode::RB_AUTOBOOT)
}

/// Collects processes that ended: the first process inherits all orphans.
pub fn reap() {
    while let Ok(status) = waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
        if status == WaitStatus::StillAlive {
            break;
        }
    }
}

/// Feeds the machine's watchdog, if it has one, for as long as it is polled: a machine that
/// hangs restarts by itself. Never returns.
pub async fn feed_watchdog() {
    let Ok(mut watchdog) = fs::OpenOptions::new().write(true).open("/dev/watchdog") else {
        return std::future::pending().await;
    };
    tracing::info!("watchdog armed");
    // Hardware and software watchdogs bite after 15 s or more unless told otherwise.
    let mut beat = tokio::time::interval(Duration::from_secs(5));
    loop {
        beat.tick().await;
        if let Err(error) = io::Write::write_all(&mut watchdog, b"\n") {
            tracing::warn!(%error, "the watchdog takes no food");
        }
    }
}
