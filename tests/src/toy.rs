//! A toy drive: its firmware is a file, and what talks to it is a program in the place of nvme-cli, which real
//! scripts of `firmware-scripts/firmware` call.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use rackhand_common::commission::{Exit, MAX_OUTPUT, Ran, Script};
use rackhand_installer::toolbox::Given;

const PROGRAM: &str = include_str!("../toy/nvme");

/// How long anything that was started may go on without power.
const LOOK: Duration = Duration::from_millis(10);

/// How it takes an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// As it should.
    Works,
    /// Not before it is told to go on.
    Waits,
    /// It is never done.
    Hangs,
    /// It says that it did, and did not.
    Lies,
    /// It says that it did not.
    Fails,
}

/// A toy drive; clones are the same.
#[derive(Clone, Debug)]
pub struct ToyDrive(Arc<tempfile::TempDir>);

impl ToyDrive {
    /// One with this version of its firmware.
    pub fn new(version: &str) -> io::Result<Self> {
        let toy = Self(Arc::new(tempfile::tempdir()?));
        fs::create_dir_all(toy.at("toy"))?;
        fs::write(toy.at("nvme"), PROGRAM)?;
        fs::set_permissions(toy.at("nvme"), fs::Permissions::from_mode(0o755))?;
        fs::write(toy.at("toy/firmware"), format!("{version}\n"))?;
        toy.become_(Way::Works)?;
        Ok(toy)
    }

    /// Takes updates in this way from now on.
    pub fn become_(&self, way: Way) -> io::Result<()> {
        fs::write(self.at("toy/way"), format!("{way:?}").to_lowercase())
    }

    /// Has one that waits go on.
    pub fn go_on(&self) -> io::Result<()> {
        File::create(self.at("toy/go")).map(drop)
    }

    /// The version that it tells.
    pub fn version(&self) -> String {
        let firmware = fs::read(self.at("toy/firmware")).unwrap_or_default();
        String::from_utf8_lossy(&firmware).lines().next().unwrap_or_default().to_owned()
    }

    /// How often it was told to take firmware.
    pub fn sent(&self) -> usize {
        fs::read_to_string(self.at("toy/sent")).unwrap_or_default().lines().count()
    }

    /// Its machine starts.
    pub fn restart(&self) {
        let _none_is_there = fs::rename(self.at("toy/next"), self.at("toy/firmware"));
    }

    /// Where a file is put for a script.
    pub fn room(&self, name: &str) -> (PathBuf, String) {
        let path = self.at(name);
        (path.clone(), path.display().to_string())
    }

    /// Runs a script, as long as `is_on`.
    pub fn run(&self, script: &Script, given: &Given, is_on: impl Fn() -> bool) -> io::Result<Ran> {
        let (file, result, output) = (self.at("script"), self.at("result"), self.at("output"));
        fs::write(&file, &script.text)?;
        File::create(&result)?;
        let says = File::create(&output)?;
        let path = std::env::var("PATH").unwrap_or_default();
        let began = Instant::now();
        let mut child = Command::new("bash")
            .arg(&file)
            .args(&given.arguments)
            .envs(given.environment.iter().map(|(name, value)| (name, value)))
            .env("RACKHAND_RESULT", &result)
            .env("PATH", format!("{}:{path}", self.0.path().display()))
            .stdin(Stdio::null())
            .stdout(says.try_clone()?)
            .stderr(says)
            .process_group(0)
            .spawn()?;
        let exit = loop {
            if let Some(status) = child.try_wait()? {
                break status.code().map_or(Exit::Signal(9), Exit::Code);
            }
            if began.elapsed() > script.limit || !is_on() {
                // With all it started.
                Command::new("kill").args(["-9", "--", &format!("-{}", child.id())]).status()?;
                child.wait()?;
                break Exit::Limit;
            }
            std::thread::park_timeout(LOOK);
        };
        let read = |path: &Path| -> io::Result<Vec<u8>> {
            let mut bytes = Vec::new();
            File::open(path)?.take(MAX_OUTPUT as u64).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        Ok(Ran { exit, output: read(&output)?, result: read(&result)?, took: began.elapsed() })
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}
