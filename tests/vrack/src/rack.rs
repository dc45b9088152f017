//! A virtual rack: a controller, a rack node and machines, from nothing to serving.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use rackhand_common::machine::Firmware;

use crate::{
    bmc,
    machine::Machine,
    network::{Cabling, Place},
    operator::{Operator, items},
    run::{output, run},
    services::{Files, Service, Services},
    supervisor::Supervisor,
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

impl Parts {
    /// Where the rack of this name, built of these parts, keeps everything.
    pub(crate) fn files(&self, name: &str) -> anyhow::Result<Files> {
        Ok(Files {
            directory: directory(name),
            binaries: self.binaries.canonicalize().context("no binaries")?,
            installer: self.installer.canonicalize().context("no installer image")?,
        })
    }
}

/// What becomes of a process that ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Care {
    /// It is started again, and a machine that lost power is switched on: the demo's.
    Supervised,
    /// It is a failure: the stories'.
    Strict,
}

/// A virtual rack and everything in it.
#[derive(Debug)]
pub(crate) struct Rack {
    pub(crate) cabling: Cabling,
    pub(crate) files: Files,
    pub(crate) operator: Operator,
    pub(crate) machines: Vec<Machine>,
    image: PathBuf,
    services: Services,
    supervisor: Option<Supervisor>,
}

/// Where the rack of this name lives.
pub(crate) fn directory(name: &str) -> PathBuf {
    Path::new("/var/tmp").join(format!("rackhand-{name}"))
}

/// Makes a controller's data; the operator who holds its first token.
pub(crate) fn init_controller(files: &Files, cabling: &Cabling) -> anyhow::Result<Operator> {
    let init = output(
        Command::new(files.binary("rackhand-controller"))
            .args(["init", "--config"])
            .arg(files.config(Service::Controller)),
    )?;
    let token = init.split_whitespace().find(|word| word.starts_with("rh_")).context("init printed no token")?;
    Ok(Operator {
        program: files.binary("rackhand"),
        controller: format!("https://{}:8443", cabling.controller()),
        ca: files.state(Service::Controller).join("pki/ca.pem"),
        token: token.to_owned(),
    })
}

/// Enrols the node for the rack `r1` with a fresh code.
pub(crate) fn enrol_node(files: &Files, cabling: &Cabling, operator: &Operator) -> anyhow::Result<()> {
    let code = operator.ask(&["agent", "enrol", "--rack", "r1"])?;
    let code = code["code"].as_str().context("no enrolment code")?;
    let controller = format!("{}:4433", cabling.controller_from_node());
    let mut enrol = cabling.command(Place::Node, &files.binary("rackhand-agent").to_string_lossy());
    enrol.args(["enrol", "--controller", &controller, "--code", code, "--config"]);
    output(enrol.arg(files.config(Service::Agent))).map(drop)
}

impl Rack {
    /// Builds everything anew and starts it; tells `progress` what it is doing.
    pub(crate) fn build(
        name: &str,
        number: u8,
        parts: &Parts,
        firmware: &[Firmware],
        care: Care,
        progress: impl Fn(&str),
    ) -> anyhow::Result<Self> {
        let cabling = Cabling::new(name, number);
        progress("laying cables: four network namespaces, a bridge, a tap and a BMC per machine");
        cabling.lay(firmware.len())?;
        let files = parts.files(name)?;
        let _ = fs::remove_dir_all(&files.directory);
        files.configure(&cabling)?;

        progress("controller: init, serve");
        let operator = init_controller(&files, &cabling)?;
        let mut rack = Self {
            machines: Vec::new(),
            image: parts.image.clone(),
            services: Services::new(files.clone(), cabling.clone()),
            supervisor: None,
            cabling,
            files,
            operator,
        };
        if care == Care::Supervised {
            rack.files.look_for_bmcs(&rack.cabling)?;
            rack.supervisor = Some(Supervisor::spawn(rack.services.clone(), rack.files.machines()));
        }
        rack.start(Service::Controller)?;
        rack.wait_for("controller", |rack| rack.operator.ask(&["rack", "list"]).map(drop))?;

        progress("rack node: enrol with a one-time code, serve, boot");
        rack.wait_for("rack", |rack| {
            let racks = rack.operator.ask(&["rack", "list"])?;
            if items(&racks)?.is_empty() {
                let delegated = "10.77.0.100-10.77.0.199";
                rack.operator.ask(&["rack", "create", "r1", "--node", "10.77.0.1/24", "--delegated", delegated])?;
            }
            Ok(())
        })?;
        rack.wait_for("enrolment", |rack| enrol_node(&rack.files, &rack.cabling, &rack.operator))?;
        rack.start(Service::Agent)?;
        rack.start(Service::Boot)?;

        for (slot, firmware) in firmware.iter().enumerate() {
            let namespace = rack.cabling.namespace(Place::Lan);
            let machine = Machine::rack(&rack.files.machines(), &namespace, slot, *firmware, DISK)?;
            bmc::install(&rack.files, &rack.cabling, &machine)?;
            rack.machines.push(machine);
        }
        Ok(rack)
    }

    /// Imports the Debian image, as an operator does; again when the controller was killed
    /// meanwhile.
    pub(crate) fn import(&self) -> anyhow::Result<()> {
        let image = self.image.to_string_lossy();
        let words = ["image", "import", &image, "--name", "debian-12", "--wait"];
        for _ in 0..3 {
            if self.operator.type_in(&words).is_ok() {
                return Ok(());
            }
            self.wait_for("controller", |rack| {
                for image in items(&rack.operator.ask(&["image", "list"])?)? {
                    rack.operator.ask(&["image", "delete", image["id"].as_str().context("an image has no id")?])?;
                }
                Ok(())
            })?;
            println!("   the import was cut short; once more");
        }
        bail!("the image cannot be imported; the controller's log is {}", self.files.log(Service::Controller).display())
    }

    pub(crate) fn start(&self, service: Service) -> anyhow::Result<()> {
        self.services.start(service)
    }

    /// SIGKILL.
    pub(crate) fn kill(&self, service: Service) -> anyhow::Result<()> {
        self.services.kill(service)
    }

    pub(crate) fn services(&self) -> &Services {
        &self.services
    }

    /// Fails when a process that should run does not, and nobody starts it again.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        match &self.supervisor {
            Some(supervisor) => supervisor.check(),
            None => self.services.check(),
        }
    }

    pub(crate) fn wait_for(&self, what: &str, attempt: impl Fn(&Self) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let end = Instant::now() + START;
        loop {
            let Err(error) = attempt(self) else { return Ok(()) };
            self.check()?;
            if Instant::now() > end {
                let logs = self.files.directory.join("logs");
                return Err(error.context(format!("no {what} after {START:?}; logs are in {}", logs.display())));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// A key pair for logging in to deployed machines: the path of its private half.
    pub(crate) fn ssh_key(&self) -> anyhow::Result<PathBuf> {
        let key = self.files.directory.join("ssh-key");
        if !key.exists() {
            run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-C", "operator", "-f", &key.to_string_lossy()])?;
        }
        Ok(key)
    }

    /// Runs a command on a deployed machine over SSH; waits until SSH answers. `login` is
    /// `user@address`.
    pub(crate) fn ssh(&self, login: &str, command: &str, patience: Duration) -> anyhow::Result<String> {
        let key = self.ssh_key()?;
        let end = Instant::now() + patience;
        loop {
            let mut ssh = self.cabling.command(Place::Node, "ssh");
            ssh.args(["-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]);
            ssh.args(["-o", "ConnectTimeout=5", "-o", "LogLevel=ERROR", "-i"]).arg(&key);
            ssh.args([login, command]);
            match output(&mut ssh) {
                Ok(answer) => return Ok(answer),
                Err(error) if Instant::now() > end => return Err(error.context("no login over SSH")),
                Err(_) => std::thread::sleep(Duration::from_millis(500)),
            }
        }
    }

    /// The technician's tool on the node, with these words.
    pub(crate) fn technician(&self, words: &[&str]) -> Command {
        let mut command = self.cabling.command(Place::Node, &self.files.binary("rackhand-diag").to_string_lossy());
        command.args(words).arg("--socket").arg(self.files.socket());
        command
    }

    /// Ends everything and removes it.
    pub(crate) fn tear_down(self) {
        drop(self.supervisor);
        self.cabling.cut();
        let _ = fs::remove_dir_all(&self.files.directory);
    }
}
