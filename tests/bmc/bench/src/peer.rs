//! What an operator would run instead: a loop of ipmitool or of FreeIPMI's tools.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Instant,
};

use anyhow::{Context as _, anyhow, ensure};
use nix::sys::resource::UsageWho;

use crate::{
    rack::{Rack, Subject},
    sweep::Sweep,
    usage,
};

/// Others' programs as they are run over a rack.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    kind: Kind,
    /// How many BMCs are asked at once.
    at_once: usize,
    /// Where its SDR caches are.
    cache: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// `sdr elist`, then `sel elist`.
    Ipmitool,
    /// Both in one session, the SDR repository from a file: the least that ipmitool can take.
    IpmitoolCached,
    /// `ipmi-sensors`, then `ipmi-sel`; their SDR cache is theirs by default.
    FreeIpmi,
}

impl Peer {
    pub(crate) fn all(cache: &Path) -> Vec<Self> {
        [
            ("ipmitool, one after the other", Kind::Ipmitool, 1),
            ("ipmitool, 8 at once", Kind::Ipmitool, 8),
            ("ipmitool with SDR cache, one session, 8 at once", Kind::IpmitoolCached, 8),
            ("ipmi-sensors + ipmi-sel with SDR cache, 8 at once", Kind::FreeIpmi, 8),
        ]
        .map(|(name, kind, at_once)| Self { name, kind, at_once, cache: cache.join(format!("{kind:?}")) })
        .into()
    }

    /// Fills its caches: what they cost once is not measured.
    pub(crate) fn prepare(&self, rack: &Rack) -> anyhow::Result<()> {
        fs::create_dir_all(&self.cache)?;
        self.each(rack, |subject| match self.kind {
            Kind::Ipmitool => Ok(()),
            Kind::IpmitoolCached => {
                let cached = self.cached(subject);
                fs::write(cached.with_extension("exec"), "sdr elist\nsel elist\n")?;
                run(ipmitool(subject).args(["sdr", "dump"]).arg(cached)).map(drop)
            }
            Kind::FreeIpmi => {
                fs::create_dir_all(self.cached(subject))?;
                self.ask(subject)
            }
        })
    }

    pub(crate) fn sweep(&self, rack: &Rack) -> anyhow::Result<Sweep> {
        let (cpu, begin) = (usage::cpu(UsageWho::RUSAGE_CHILDREN)?, Instant::now());
        self.each(rack, |subject| self.ask(subject))?;
        let wall = begin.elapsed().as_secs_f64();
        Ok(Sweep { wall, cpu: usage::cpu(UsageWho::RUSAGE_CHILDREN)? - cpu, requests: None })
    }

    /// Does something for each BMC, for so many at once.
    fn each(&self, rack: &Rack, act: impl Fn(&Subject) -> anyhow::Result<()> + Sync) -> anyhow::Result<()> {
        let next = AtomicUsize::new(0);
        let work = || {
            while let Some(subject) = rack.subjects.get(next.fetch_add(1, Ordering::Relaxed)) {
                act(subject)?;
            }
            anyhow::Ok(())
        };
        thread::scope(|scope| {
            let workers: Vec<_> = (0..self.at_once).map(|_| scope.spawn(work)).collect();
            workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| anyhow!("a thread panicked"))?)
        })
    }

    /// Asks one BMC, and sees to it that it told everything.
    fn ask(&self, subject: &Subject) -> anyhow::Result<()> {
        let cached = self.cached(subject);
        let lines = match self.kind {
            Kind::Ipmitool => {
                run(ipmitool(subject).args(["sdr", "elist"]))? + run(ipmitool(subject).args(["sel", "elist"]))?
            }
            Kind::IpmitoolCached => {
                run(ipmitool(subject).arg("-S").arg(&cached).arg("exec").arg(cached.with_extension("exec")))?
            }
            Kind::FreeIpmi => {
                let asked = |program| run(freeipmi(program, subject).arg("--sdr-cache-directory").arg(&cached));
                asked("ipmi-sensors")? + asked("ipmi-sel")?
            }
        };
        let wanted = subject.sensors + subject.events;
        ensure!(lines >= wanted, "{}: {lines} lines for {wanted} sensors and events", self.name);
        Ok(())
    }

    fn cached(&self, subject: &Subject) -> PathBuf {
        self.cache.join(subject.ipmi.port().to_string())
    }
}

fn ipmitool(subject: &Subject) -> Command {
    let mut command = Command::new("ipmitool");
    let (host, port) = (subject.ipmi.ip().to_string(), subject.ipmi.port().to_string());
    command.args(["-I", "lanplus", "-C", "17", "-H", &host, "-p", &port]);
    command.args(["-U", &subject.user, "-P", &subject.password]);
    command
}

fn freeipmi(program: &str, subject: &Subject) -> Command {
    let mut command = Command::new(format!("/usr/sbin/{program}"));
    command.args(["--driver-type=LAN_2_0", "--cipher-suite-id=17", "--quiet-cache", "-l", "ADMIN"]);
    command.args(["-h", &subject.ipmi.to_string(), "-u", &subject.user, "-p", &subject.password]);
    command
}

/// Runs a program, and says how many lines it printed.
fn run(command: &mut Command) -> anyhow::Result<usize> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {command:?}"))?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{:?}: {}: {}", command.get_program(), output.status, told.trim());
    Ok(output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count())
}
