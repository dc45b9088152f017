//! What the first process of a system has to do and no other program does for it.
//!
//! Order matters: without devtmpfs on `/dev` there is no randomness, and the first
//! cryptographic call would panic.

use std::{
    collections::BTreeSet,
    fs, io,
    path::Path,
    process::{Child, Command, ExitStatus},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nix::{
    mount::{MsFlags, mount},
    sys::{
        reboot::{RebootMode, reboot},
        signal::{Signal, killpg},
        wait::{WaitPidFlag, waitpid},
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

/// Programs that [`spawn`] started and that nobody has waited for yet: how they ended is theirs to hear
/// who started them.
static STARTED: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

fn started() -> MutexGuard<'static, BTreeSet<i32>> {
    STARTED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A program that was started, with all that it starts itself as long as that stays in its process
/// group. Dropped, they are killed.
#[derive(Debug)]
pub struct Started {
    child: Child,
    ended: bool,
}

/// Starts a program as the head of a process group of its own.
pub fn spawn(command: &mut Command) -> io::Result<Started> {
    std::os::unix::process::CommandExt::process_group(command, 0);
    // Held until it is noted: one that ends at once is not taken for an orphan.
    let mut started = started();
    let child = command.spawn()?;
    started.insert(child.id().cast_signed());
    Ok(Started { child, ended: false })
}

impl Started {
    /// Its process id, which is its group's.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended; `None` while it runs.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        let status = self.child.try_wait()?;
        if status.is_some() && !std::mem::replace(&mut self.ended, true) {
            started().remove(&self.child.id().cast_signed());
        }
        Ok(status)
    }

    /// Ends its whole group without asking.
    pub fn kill(&self) {
        // Of a group that is empty there is nothing to end.
        let _ = killpg(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGKILL);
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        self.kill();
        if !self.ended {
            let _ = self.child.wait();
            started().remove(&self.child.id().cast_signed());
        }
    }
}

/// Collects processes that ended and that nobody else waits for: the first process inherits all
/// orphans.
pub fn reap() {
    // Held meanwhile: nothing is started and not noted.
    let started = started();
    for pid in orphans(&started) {
        // One that is gone already was nobody's to lose.
        let _ = waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG));
    }
}

/// Children of this process that ended, and that nobody waits for (proc_pid_stat(5)).
fn orphans(started: &BTreeSet<i32>) -> impl Iterator<Item = i32> {
    let own = std::process::id().to_string();
    fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(move |entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        // A program's name may have parentheses and spaces in it; nothing behind it has.
        let mut fields = stat.rsplit_once(") ")?.1.split(' ');
        let ended = fields.next() == Some("Z") && fields.next() == Some(&own);
        (ended && !started.contains(&pid)).then_some(pid)
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(started: &mut Started) -> ExitStatus {
        let end = std::time::Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(status) = started.try_wait().unwrap() {
                return status;
            }
            assert!(std::time::Instant::now() < end, "the program does not end");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_program_whose_end_somebody_waits_for_is_no_orphan() {
        let mut waited_for = spawn(Command::new("sh").args(["-c", "exit 7"])).unwrap();
        let mut orphan = Command::new("true").spawn().unwrap();
        // Looked for and not collected: other tests wait for programs of theirs.
        let is_orphan = |id: u32| orphans(&started()).any(|pid| pid == id.cast_signed());
        while !is_orphan(orphan.id()) {
            std::thread::yield_now();
        }
        orphan.wait().unwrap();
        let has_ended = || fs::read_to_string(format!("/proc/{}/stat", waited_for.id())).unwrap().contains(") Z ");
        while !has_ended() {
            std::thread::yield_now();
        }
        assert!(!is_orphan(waited_for.id()));
        assert_eq!(ended(&mut waited_for).code(), Some(7));
    }

    #[test]
    fn what_a_program_left_behind_in_its_group_ends_with_it() {
        let place = tempfile::tempdir().unwrap();
        let told = place.path().join("pid");
        let script = format!("sleep 600 & echo $! > {}; exit 0", told.display());
        let mut started = spawn(Command::new("sh").args(["-c", &script])).unwrap();
        assert!(ended(&mut started).success());
        let left: i32 = fs::read_to_string(&told).unwrap().trim().parse().unwrap();
        let lives = || fs::read_to_string(format!("/proc/{left}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
        assert!(lives());
        drop(started);
        let end = std::time::Instant::now() + Duration::from_secs(20);
        while lives() {
            assert!(std::time::Instant::now() < end, "it still runs");
            std::thread::yield_now();
        }
    }
}
