//! A virtual rack: a controller, a rack node and machines, from nothing to serving.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use rackhand_common::machine::Firmware;

use crate::{
    machine::Machine,
    network::{Cabling, Place},
    operator::Operator,
    run::{output, run},
    services::{Files, Process, Service},
};

/// A process that is to be up is given this long.
const START: Duration = Duration::from_secs(60);

/// Bytes of a machine's disk.
pub(crate) const DISK: u64 = 6 << 30;

/// What a virtual rack is built of.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Parts {
    /// The directory of the product's binaries.
    #[arg(long)]
    pub(crate) binaries: PathBuf,
    /// The directory of the installer's kernel and initial RAM disk.
    #[arg(long)]
    pub(crate) installer: PathBuf,
    /// A Debian 12 disk image.
    #[arg(long)]
    pub(crate) image: PathBuf,
}

/// A virtual rack and everything in it.
#[derive(Debug)]
pub(crate) struct Rack {
    pub(crate) cabling: Cabling,
    pub(crate) files: Files,
    pub(crate) operator: Operator,
    pub(crate) machines: Vec<Machine>,
    image: PathBuf,
    processes: BTreeMap<Service, Process>,
}

/// Where the rack of this name lives.
pub(crate) fn directory(name: &str) -> PathBuf {
    Path::new("/var/tmp").join(format!("rackhand-{name}"))
}

impl Rack {
    /// Builds everything anew and starts it; tells `progress` what it is doing.
    pub(crate) fn build(
        name: &str,
        number: u8,
        parts: &Parts,
        firmware: &[Firmware],
        progress: impl Fn(&str),
    ) -> anyhow::Result<Self> {
        let cabling = Cabling::new(name, number);
        progress("laying cables: three network namespaces, a bridge, a tap per machine");
        cabling.lay(firmware.len())?;
        let directory = directory(name);
        let _ = fs::remove_dir_all(&directory);
        let files = Files {
            directory: directory.clone(),
            binaries: parts.binaries.canonicalize().context("no binaries")?,
            installer: parts.installer.canonicalize().context("no installer image")?,
        };
        files.configure(&cabling)?;

        progress("controller: init, serve");
        let init = output(
            Command::new(files.binary("rackhand-controller"))
                .args(["init", "--config"])
                .arg(files.config(Service::Controller)),
        )?;
        let token = init.split_whitespace().find(|word| word.starts_with("rh_")).context("init printed no token")?;
        let operator = Operator {
            program: files.binary("rackhand"),
            controller: format!("https://{}:8443", cabling.controller()),
            ca: files.state(Service::Controller).join("pki/ca.pem"),
            token: token.to_owned(),
        };
        let mut rack = Self {
            machines: Vec::new(),
            image: parts.image.clone(),
            processes: BTreeMap::new(),
            cabling,
            files,
            operator,
        };
        rack.start(Service::Controller)?;
        rack.wait_for("controller", |rack| rack.operator.ask(&["rack", "list"]).is_ok())?;

        progress("rack node: enrol with a one-time code, serve, boot");
        rack.operator.ask(&[
            "rack",
            "create",
            "r1",
            "--node",
            "10.77.0.1/24",
            "--delegated",
            "10.77.0.100-10.77.0.199",
        ])?;
        let code = rack.operator.ask(&["agent", "enrol", "--rack", "r1"])?;
        let code = code["code"].as_str().context("no enrolment code")?;
        let controller = format!("{}:4433", rack.cabling.controller_from_node());
        output(
            rack.cabling
                .command(Place::Node, &rack.files.binary("rackhand-agent").to_string_lossy())
                .args(["enrol", "--controller", &controller, "--code", code, "--config"])
                .arg(rack.files.config(Service::Agent)),
        )?;
        rack.start(Service::Agent)?;
        rack.start(Service::Boot)?;

        for (slot, firmware) in firmware.iter().enumerate() {
            let namespace = rack.cabling.namespace(Place::Lan);
            rack.machines.push(Machine::rack(&rack.files.machines(), &namespace, slot, *firmware, DISK)?);
        }
        Ok(rack)
    }

    /// Imports the Debian image, as an operator does.
    pub(crate) fn import(&self) -> anyhow::Result<()> {
        self.operator.show(&["image", "import", &self.image.to_string_lossy(), "--name", "debian-12", "--wait"])
    }

    pub(crate) fn start(&mut self, service: Service) -> anyhow::Result<()> {
        let process = Process::start(&self.files, &self.cabling, service)?;
        self.processes.insert(service, process);
        Ok(())
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self, service: Service) -> anyhow::Result<()> {
        self.processes.remove(&service).with_context(|| format!("{} does not run", service.name()))?.kill()
    }

    /// Fails when a process that should run does not.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        self.processes.values_mut().try_for_each(|process| process.check(&self.files))
    }

    fn wait_for(&mut self, what: &str, is: impl Fn(&Self) -> bool) -> anyhow::Result<()> {
        let end = Instant::now() + START;
        while !is(self) {
            self.check()?;
            if Instant::now() > end {
                bail!("{what} is not up after {START:?}; logs are in {}", self.files.directory.join("logs").display());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// A key pair for logging in to deployed machines: the path of its private half.
    pub(crate) fn ssh_key(&self) -> anyhow::Result<PathBuf> {
        let key = self.files.directory.join("ssh-key");
        if !key.exists() {
            run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-C", "operator", "-f", &key.to_string_lossy()])?;
        }
        Ok(key)
    }

    /// Runs a command on a deployed machine over SSH, as its owner; waits until SSH answers.
    pub(crate) fn ssh(&self, address: &str, command: &str, patience: Duration) -> anyhow::Result<String> {
        let key = self.ssh_key()?;
        let end = Instant::now() + patience;
        loop {
            let mut ssh = self.cabling.command(Place::Node, "ssh");
            ssh.args(["-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]);
            ssh.args(["-o", "ConnectTimeout=5", "-o", "LogLevel=ERROR", "-i"]).arg(&key);
            ssh.arg(format!("debian@{address}")).arg(command);
            match output(&mut ssh) {
                Ok(answer) => return Ok(answer),
                Err(error) if Instant::now() > end => return Err(error.context("no login over SSH")),
                Err(_) => std::thread::sleep(Duration::from_millis(500)),
            }
        }
    }

    /// Ends everything and removes it.
    pub(crate) fn tear_down(self) {
        self.cabling.cut();
        let _ = fs::remove_dir_all(&self.files.directory);
    }
}
