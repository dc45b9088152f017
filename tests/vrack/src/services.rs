//! The product's processes in a virtual rack: their configuration, started as an operator
//! would, killed as no operator should.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write as _,
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, bail, ensure};

use crate::{
    bmc,
    machine::Machine,
    network::{Cabling, Place},
    run::is_ending,
};

/// One of the product's processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Service {
    Controller,
    Agent,
    Boot,
}

impl Service {
    pub(crate) const ALL: [Self; 3] = [Self::Controller, Self::Agent, Self::Boot];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Controller => "controller",
            Self::Agent => "agent",
            Self::Boot => "boot",
        }
    }

    fn place(self) -> Place {
        match self {
            Self::Controller => Place::Controller,
            Self::Agent | Self::Boot => Place::Node,
        }
    }

    fn program(self) -> (&'static str, &'static str) {
        match self {
            Self::Controller => ("rackhand-controller", "serve"),
            Self::Agent => ("rackhand-agent", "serve"),
            Self::Boot => ("rackhand-agent", "boot"),
        }
    }
}

/// Where a virtual rack keeps everything.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    pub(crate) directory: PathBuf,
    pub(crate) binaries: PathBuf,
    pub(crate) installer: PathBuf,
}

impl Files {
    pub(crate) fn machines(&self) -> PathBuf {
        self.directory.join("machines")
    }

    pub(crate) fn config(&self, service: Service) -> PathBuf {
        self.directory.join(service.name()).with_extension("toml")
    }

    pub(crate) fn state(&self, service: Service) -> PathBuf {
        self.directory.join("state").join(service.name())
    }

    pub(crate) fn log(&self, service: Service) -> PathBuf {
        self.directory.join("logs").join(service.name()).with_extension("log")
    }

    /// Where its fail points are armed.
    pub(crate) fn fail_points(&self, service: Service) -> PathBuf {
        self.directory.join("fail-points").join(service.name())
    }

    fn pid_file(&self, service: Service) -> PathBuf {
        self.directory.join(service.name()).with_extension("pid")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.join("agent.sock")
    }

    pub(crate) fn binary(&self, name: &str) -> PathBuf {
        self.binaries.join(name)
    }

    /// Has the node look for BMCs where those of this rack are.
    pub(crate) fn look_for_bmcs(&self, cabling: &Cabling) -> anyhow::Result<()> {
        let mut config = File::options().append(true).open(self.config(Service::Agent))?;
        let networks = cabling.bmcs();
        Ok(writeln!(config, "\n[discovery]\nnetworks = [\"{networks}\"]\nevery = 5")?)
    }

    /// Writes the three configuration files.
    pub(crate) fn configure(&self, cabling: &Cabling) -> anyhow::Result<()> {
        fs::create_dir_all(self.directory.join("logs"))?;
        fs::create_dir_all(self.machines())?;
        let path = |path: &Path| format!("{:?}", path.display().to_string());
        fs::write(
            self.config(Service::Controller),
            format!(
                "data = {}\nnames = [\"{}\", \"{}\"]\n",
                path(&self.state(Service::Controller)),
                cabling.controller(),
                cabling.controller_from_node(),
            ),
        )?;
        let rules = self.directory.join("health");
        fs::create_dir_all(&rules)?;
        fs::write(rules.join("rack.toml"), RULES)?;
        fs::write(
            self.config(Service::Agent),
            format!(
                "state = {}\nsocket = {}\n\n[power]\ncommand = [{}, \"power\", \"--machines\", {}]\n\n[health]\nsensors = 5\nrules = {}\n",
                path(&self.state(Service::Agent)),
                path(&self.socket()),
                path(&std::env::current_exe()?),
                path(&self.machines()),
                path(&rules),
            ),
        )?;
        fs::write(
            self.config(Service::Boot),
            format!(
                "state = {}\nsocket = {}\ninterface = \"prov0\"\naddress = \"10.77.0.1\"\n\n[installer]\nkernel = {}\ninitramfs = {}\ntoolbox = {}\n",
                path(&self.state(Service::Boot)),
                path(&self.socket()),
                path(&self.installer.join("kernel")),
                path(&self.installer.join("initramfs")),
                path(&self.installer.join("toolbox.squashfs")),
            ),
        )?;
        Ok(())
    }
}

/// Nobody watches a fan that stands for two minutes.
const RULES: &str = r#"[[rule]]
name = "fan"
for = "5s"
clear = "5s"
while_on = true
part = "replace the fan {subject}"
reading = { kind = ["fan", "fan_percent"], by_bmc = true }
"#;

/// A process of the product. Whoever started it reaps it; another process knows it by the
/// number in its file.
#[derive(Debug)]
struct Process {
    pid: i32,
    child: Option<Child>,
}

impl Process {
    fn start(files: &Files, cabling: &Cabling, service: Service) -> anyhow::Result<Self> {
        ensure!(!is_ending(), "the virtual rack is being taken apart");
        let (program, verb) = service.program();
        let log = File::options().create(true).append(true).open(files.log(service))?;
        let child = cabling
            .command(service.place(), &files.binary(program).to_string_lossy())
            .args([verb, "--config"])
            .arg(files.config(service))
            .env("RUST_LOG", std::env::var("RUST_LOG").unwrap_or_else(|_| "info".into()))
            .env(rackhand_fail_points::DIRECTORY, files.fail_points(service))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C on a terminal is for the demo, not for what it shows.
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {}", service.name()))?;
        let pid = i32::try_from(child.id())?;
        fs::write(files.pid_file(service), format!("{pid}\n"))?;
        Ok(Self { pid, child: Some(child) })
    }

    /// The one that another process started.
    fn found(files: &Files, service: Service) -> anyhow::Result<Self> {
        let pid = fs::read_to_string(files.pid_file(service))?.trim().parse()?;
        Ok(Self { pid, child: None })
    }

    /// How it ended, once it has.
    fn ended(&mut self, service: Service) -> anyhow::Result<Option<String>> {
        let Some(child) = &mut self.child else {
            let comm = fs::read_to_string(format!("/proc/{}/comm", self.pid)).unwrap_or_default();
            let state = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
            // Fifteen bytes of a name are kept.
            let alive = service.program().0.starts_with(comm.trim()) && !comm.is_empty() && !state.contains(") Z ");
            return Ok((!alive).then(|| "ended".to_owned()));
        };
        Ok(child.try_wait()?.map(|status| match status.signal() {
            Some(9) => "was killed".to_owned(),
            Some(signal) => format!("was ended by signal {signal}"),
            None => format!("ended by itself ({status})"),
        }))
    }

    /// SIGKILL, and nothing else.
    fn kill(mut self) -> anyhow::Result<()> {
        if let Some(child) = &mut self.child {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }
}

/// The product's processes of one rack. Cheap to clone: all clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Services {
    files: Files,
    cabling: Cabling,
    running: Arc<Mutex<BTreeMap<Service, Process>>>,
}

impl Services {
    pub(crate) fn new(files: Files, cabling: Cabling) -> Self {
        Self { files, cabling, running: Arc::default() }
    }

    /// Those that another process started.
    pub(crate) fn found(files: Files, cabling: Cabling) -> anyhow::Result<Self> {
        let services = Self::new(files, cabling);
        for service in Service::ALL {
            let process = Process::found(&services.files, service)?;
            services.running().insert(service, process);
        }
        Ok(services)
    }

    pub(crate) fn start(&self, service: Service) -> anyhow::Result<()> {
        let mut running = self.running();
        running.insert(service, Process::start(&self.files, &self.cabling, service)?);
        Ok(())
    }

    /// SIGKILL.
    pub(crate) fn kill(&self, service: Service) -> anyhow::Result<()> {
        let process = self.running().remove(&service);
        process.with_context(|| format!("{} does not run", service.name()))?.kill()
    }

    /// Its process id.
    pub(crate) fn pid(&self, service: Service) -> anyhow::Result<i32> {
        let running = self.running();
        Ok(running.get(&service).with_context(|| format!("{} does not run", service.name()))?.pid)
    }

    /// Fails when a process that should run does not.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        for (service, process) in self.running().iter_mut() {
            if let Some(how) = process.ended(*service)? {
                bail!("{} {how}; its log is {}", service.name(), self.files.log(*service).display());
            }
        }
        Ok(())
    }

    /// Starts again what has ended, as systemd does in a real rack; says what that was.
    pub(crate) fn restart_ended(&self) -> anyhow::Result<Vec<String>> {
        let mut told = Vec::new();
        for (service, process) in self.running().iter_mut() {
            if let Some(how) = process.ended(*service)? {
                *process = Process::start(&self.files, &self.cabling, *service)?;
                told.push(format!("{} {how}; started again, as systemd would", service.name()));
            }
        }
        Ok(told)
    }

    /// Starts BMCs again that have ended, as they restart by themselves; says which.
    pub(crate) fn restart_bmcs(&self) -> anyhow::Result<Vec<String>> {
        let mut told = Vec::new();
        // The directory is filled while the rack is built.
        for machine in Machine::all(&self.files.machines()).unwrap_or_default() {
            if bmc::reinstall_ended(&self.files, &self.cabling, &machine)? {
                told.push(format!("the BMC of {} was killed; it starts again", machine.label.serial));
            }
        }
        Ok(told)
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<Service, Process>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
