//! Faults that need no fail point, on programs as they are released: a disk that is full, a
//! system call that fails or in which the program is killed (injected by strace), a program that
//! stands still for minutes.

use std::{
    collections::BTreeMap,
    fmt,
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    PATIENCE,
    rig::{Arrival, Rig, Way},
    travel,
};
use crate::{run::run, services::Service};

/// How long a disk stays full while a way is gone.
const FULL: Duration = Duration::from_secs(8);

/// How long a program stands still.
const STILL: Duration = Duration::from_secs(130);

/// Bytes of a small disk.
const SMALL: u64 = 64 << 20;

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The program's disk is full for a while.
    Full(Service),
    /// Every thread's n-th such call on the program's files fails with this error, or kills it,
    /// for a second.
    Call(Service, &'static str, &'static str, u32),
    /// The program stands still for minutes.
    Still(Service),
    /// None: the order of boot's system calls when it gives an address.
    LeaseOrder,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full(service) => write!(f, "{}: its disk is full", service.name()),
            Self::Call(service, call, what, number) => {
                write!(f, "{}: {call} number {number} gives {what}", service.name())
            }
            Self::LeaseOrder => f.write_str("boot: a lease is synced before its ACK leaves, call by call"),
            Self::Still(service) => write!(f, "{}: stands still for {} s", service.name(), STILL.as_secs()),
        }
    }
}

/// The faults with `only` in their names, or all.
pub(crate) fn wanted(only: Option<&str>) -> Vec<Fault> {
    let mut faults = Vec::new();
    for service in Service::ALL {
        // SQLite's way to stable storage, and redb's.
        let sync = if service == Service::Controller { "fsync" } else { "fdatasync" };
        for (call, what) in [
            ("pwrite64", "error=ENOSPC"),
            ("pwrite64", "error=EIO"),
            ("pwrite64", "signal=SIGKILL"),
            (sync, "error=EIO"),
            (sync, "signal=SIGKILL"),
        ] {
            faults.extend([1, 4].map(|number| Fault::Call(service, call, what, number)));
        }
        faults.push(Fault::Call(service, "rename", "error=ENOSPC", 1));
    }
    // Controller renames nothing on these ways.
    faults.retain(|fault| !matches!(fault, Fault::Call(Service::Controller, "rename", ..)));
    faults.push(Fault::LeaseOrder);
    faults.extend(Service::ALL.map(Fault::Full));
    faults.extend(Service::ALL.map(Fault::Still));
    faults.retain(|fault| only.is_none_or(|only| fault.to_string().contains(only)));
    faults
}

impl Fault {
    /// Has it strike while the computer is deployed and released, and checks the world after each.
    pub(crate) async fn suffer(self, rig: &mut Rig) -> anyhow::Result<()> {
        match self {
            Self::Full(service) => full(rig, service).await,
            Self::LeaseOrder => lease_order(rig),
            Self::Call(service, call, what, number) => {
                let mut has_struck = false;
                for way in [Way::Deploy, Way::Release] {
                    let injector = Injector::attach(rig, service, call, what, number)?;
                    // A way that such a fault fails must name it.
                    travel(rig, way, what.starts_with("error")).await?;
                    has_struck |= injector.detach();
                }
                ensure!(has_struck, "there was no such call");
                Ok(())
            }
            Self::Still(service) => {
                stop_for_a_while(rig, service, Way::Deploy).await?;
                travel(rig, Way::Release, false).await.map(drop)
            }
        }
    }
}

/// strace beside a running program, until a moment after the call was struck: it counts the
/// calls of each thread, and would go on to strike those of every new one.
struct Injector {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    log: PathBuf,
}

/// Whether strace's log tells of a call that was struck, or of a program's end.
fn has_struck(log: &Path) -> bool {
    fs::read_to_string(log).is_ok_and(|log| log.contains("INJECTED") || log.contains("+++ killed"))
}

/// How long calls are struck.
const STRIKES: Duration = Duration::from_secs(1);

/// How long strace may take to let go of a program.
const DETACHING: Duration = Duration::from_secs(5);

impl Injector {
    fn attach(rig: &Rig, service: Service, call: &str, what: &str, number: u32) -> anyhow::Result<Self> {
        rig.rack.services().restart_ended()?;
        let pid = rig.rack.services().pid(service)?;
        let log = rig.rack.files.directory.join("logs").join(format!("strace-{}.log", service.name()));
        let _ = fs::remove_file(&log);
        let mut strace = Command::new("strace");
        strace.args(["-f", "-q", "-p", &pid.to_string(), "-e", &format!("trace={call}")]);
        strace.args(["-e", &format!("inject={call}:{what}:when={number}")]).arg("-o").arg(&log);
        for file in stores(&rig.rack.files.state(service))? {
            strace.arg("-P").arg(file);
        }
        let child = strace.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut child = child.context("strace does not start: is it installed?")?;
        let traced = format!("/proc/{pid}/status");
        let is_traced = || {
            let status = fs::read_to_string(&traced).unwrap_or_default();
            status.lines().any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"))
        };
        let end = Instant::now() + Duration::from_secs(10);
        while !is_traced() && !has_struck(&log) {
            ensure!(
                Instant::now() < end && child.try_wait()?.is_none(),
                "strace does not attach to {}",
                service.name()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        let over = Arc::new(AtomicBool::new(false));
        let (until, seen) = (over.clone(), log.clone());
        let thread = std::thread::spawn(move || {
            while !until.load(Ordering::Relaxed) && !has_struck(&seen) {
                std::thread::sleep(Duration::from_millis(50));
            }
            if !until.load(Ordering::Relaxed) {
                std::thread::sleep(STRIKES);
            }
            detach(child);
        });
        Ok(Self { over, thread: Some(thread), log })
    }

    /// Whether it struck.
    fn detach(self) -> bool {
        let log = self.log.clone();
        drop(self);
        has_struck(&log)
    }
}

fn detach(mut strace: Child) {
    if let Ok(pid) = i32::try_from(strace.id()) {
        // At SIGTERM it lets go of its tracees first; it has ended by itself when they have.
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
    let end = Instant::now() + DETACHING;
    while matches!(strace.try_wait(), Ok(None)) {
        if Instant::now() > end {
            // It may wait for ever for a thread of a program that was ending just then; whatever
            // it still traces goes on when it is gone.
            println!("strace did not let go of its program within {DETACHING:?} and is killed");
            let _ = strace.kill();
            let _ = strace.wait();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Drop for Injector {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // One that panicked said so on standard error.
            let _ = thread.join();
        }
    }
}

/// The files of a program that matter, and what they are replaced by.
fn stores(state: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = vec![state.join("intent.new"), state.join("intent.json")];
    for entry in fs::read_dir(state)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.ends_with(".redb") || name.contains(".db") {
            found.push(path);
        }
    }
    Ok(found)
}

/// How strace shows the beginning of a frame to one of the cards nobody knows, `52:54:00:79:…`.
const STRANGERS: &str = r#""RT\0y"#;

/// A card nobody knows is given an address; between the sending of the OFFER and that of the ACK
/// a sync of the store of leases has ended.
fn lease_order(rig: &mut Rig) -> anyhow::Result<()> {
    let pid = rig.rack.services().pid(Service::Boot)?;
    let log = rig.rack.files.directory.join("logs/strace-order.log");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-q", "-y", "-p", &pid.to_string(), "-e", "trace=fdatasync,sendto,sendmsg", "-o"]).arg(&log);
    let child = strace.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let child = child.context("strace does not start: is it installed?")?;
    std::thread::sleep(STRIKES);
    rig.stranger()?;
    detach(child);
    let mut syncing = BTreeMap::new();
    let (mut sends, mut synced_after) = (0, Vec::new());
    for line in fs::read_to_string(&log)?.lines() {
        let (thread, call) = line.split_once(' ').unwrap_or_default();
        let is_lease = if call.contains("resumed") {
            syncing.remove(thread).unwrap_or_default()
        } else {
            call.contains("fdatasync") && call.contains("boot.redb")
        };
        if call.contains("unfinished") {
            syncing.insert(thread, is_lease);
        } else if is_lease && call.ends_with("= 0") {
            synced_after.push(sends);
        } else if call.trim_start().starts_with("send") && call.contains(STRANGERS) {
            sends += 1;
        }
    }
    ensure!(sends >= 2, "strace saw {sends} answers, and there are two");
    ensure!(synced_after.contains(&(sends - 1)), "the ACK left before its lease was synced: {}", log.display());
    Ok(())
}

/// Moves a program's state onto a small disk, fills that while a way is gone, and makes room.
async fn full(rig: &Rig, service: Service) -> anyhow::Result<()> {
    let state = rig.rack.files.state(service);
    let beside = state.with_extension("large");
    rig.rack.kill(service)?;
    fs::rename(&state, &beside)?;
    fs::create_dir(&state)?;
    let size = format!("size={SMALL},mode=0700");
    mount(Some("tmpfs"), &state, Some("tmpfs"), MsFlags::empty(), Some(size.as_str()))?;
    run("cp", &["-a", &format!("{}/.", beside.display()), &state.to_string_lossy()])?;
    rig.rack.start(service)?;
    let told = filled(rig, service, &state).await;
    if let Err(error) = rig.rack.kill(service) {
        told.and(Err(error))?;
        return Ok(());
    }
    let back = run("cp", &["-a", &format!("{}/.", state.display()), &beside.to_string_lossy()]);
    umount2(&state, MntFlags::MNT_DETACH)?;
    fs::remove_dir(&state)?;
    fs::rename(&beside, &state)?;
    rig.rack.start(service)?;
    back?;
    told
}

async fn filled(rig: &Rig, service: Service, state: &Path) -> anyhow::Result<()> {
    // It runs, and then nothing more fits.
    travel(rig, Way::Deploy, false).await.context("before the disk was full")?;
    let ballast = state.join("ballast");
    fill(&ballast)?;
    let effects = rig.computer.effects()?.len();
    let going = rig.go(Way::Release, PATIENCE);
    let room = async {
        tokio::time::sleep(FULL).await;
        fs::remove_file(&ballast)
    };
    let (arrival, room) = tokio::join!(going, room);
    room?;
    if let Arrival::Failed(why) = arrival? {
        println!("   {}: the release failed while its disk was full: {why}", service.name());
        rig.rest(Way::Release).await?;
        ensure!(rig.go(Way::Release, PATIENCE).await? == Arrival::There, "with room again, the release failed");
    }
    rig.check(Way::Release, effects).await
}

fn fill(ballast: &Path) -> anyhow::Result<()> {
    let mut file = File::create(ballast)?;
    let mut block = vec![1; 1 << 20];
    while !block.is_empty() {
        match file.write(&block) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::StorageFull => block.truncate(block.len() / 2),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Has a program stand still in the middle of a way, which arrives when it goes on.
async fn stop_for_a_while(rig: &Rig, service: Service, way: Way) -> anyhow::Result<()> {
    let effects = rig.computer.effects()?.len();
    let pid = Pid::from_raw(rig.rack.services().pid(service)?);
    let going = rig.go(way, PATIENCE + STILL);
    let still = async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        kill(pid, Signal::SIGSTOP)?;
        tokio::time::sleep(STILL).await;
        kill(pid, Signal::SIGCONT)
    };
    let (arrival, still) = tokio::join!(going, still);
    still?;
    let arrival = arrival?;
    ensure!(arrival == Arrival::There, "{way:?} failed because {} stood still: {arrival:?}", service.name());
    rig.check(way, effects).await
}
