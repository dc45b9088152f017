//! The product's processes in a virtual rack: their configuration, started as an operator
//! would, killed as no operator should.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Stdio},
};

use anyhow::{Context, ensure};

use crate::network::{Cabling, Place};

/// One of the product's processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Service {
    Controller,
    Agent,
    Boot,
}

impl Service {
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

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.join("agent.sock")
    }

    pub(crate) fn binary(&self, name: &str) -> PathBuf {
        self.binaries.join(name)
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
        fs::write(
            self.config(Service::Agent),
            format!(
                "state = {}\nsocket = {}\n\n[power]\ncommand = [{}, \"power\", \"--machines\", {}]\n",
                path(&self.state(Service::Agent)),
                path(&self.socket()),
                path(&std::env::current_exe()?),
                path(&self.machines()),
            ),
        )?;
        fs::write(
            self.config(Service::Boot),
            format!(
                "state = {}\nsocket = {}\ninterface = \"prov0\"\naddress = \"10.77.0.1\"\n\n[installer]\nkernel = {}\ninitramfs = {}\n",
                path(&self.state(Service::Boot)),
                path(&self.socket()),
                path(&self.installer.join("kernel")),
                path(&self.installer.join("initramfs")),
            ),
        )?;
        Ok(())
    }
}

/// A running process of the product.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    service: Service,
}

impl Process {
    pub(crate) fn start(files: &Files, cabling: &Cabling, service: Service) -> anyhow::Result<Self> {
        let (program, verb) = service.program();
        let log = File::options().create(true).append(true).open(files.log(service))?;
        let child = cabling
            .command(service.place(), &files.binary(program).to_string_lossy())
            .args([verb, "--config"])
            .arg(files.config(service))
            .env("RUST_LOG", std::env::var("RUST_LOG").unwrap_or_else(|_| "info".into()))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", service.name()))?;
        Ok(Self { child, service })
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL, and nothing else.
    pub(crate) fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Fails when the process has ended by itself.
    pub(crate) fn check(&mut self, files: &Files) -> anyhow::Result<()> {
        let ended = self.child.try_wait()?;
        ensure!(
            ended.is_none(),
            "{} ended by itself; its log is {}",
            self.service.name(),
            files.log(self.service).display()
        );
        Ok(())
    }
}
