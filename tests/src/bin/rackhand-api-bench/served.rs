//! The real controller as a process of its own, so that its memory is its own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use rackhand_controller::controller::{Config, File};
use rackhand_tests::operator::Operator;
use serde_json::json;

/// A controller's data directory, and the program once it was started.
pub(crate) struct Served {
    pub(crate) config: Config,
    file: PathBuf,
    token: String,
    child: Option<Child>,
}

impl Served {
    /// Makes a data directory by the program, with a database in it or the one at this URL.
    pub(crate) fn init(dir: &Path, database: Option<&str>) -> Result<Self> {
        let file = dir.join("controller.toml");
        let api = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let agents = std::net::UdpSocket::bind("127.0.0.1:0")?.local_addr()?;
        let mut written = json!({
            "data": dir.join("data"), "names": ["127.0.0.1"], "log": "warn",
            "api": {"listen": api, "requests_per_second": 1_000_000}, "agents": {"listen": agents},
        });
        if let Some(url) = database {
            written["database"] = json!({"url": url});
        }
        fs::write(&file, toml::to_string(&written)?)?;
        let config = Config::try_from(serde_json::from_value::<File>(written)?).map_err(anyhow::Error::msg)?;
        let made = program()?.arg("init").arg("--config").arg(&file).output()?;
        let told = String::from_utf8(made.stdout)?;
        ensure!(made.status.success(), "init: {}", String::from_utf8_lossy(&made.stderr));
        let token = told.split_whitespace().find(|word| word.starts_with("rh_")).context("init prints a token")?;
        Ok(Self { config, file, token: token.to_owned(), child: None })
    }

    /// Runs the program until it answers.
    pub(crate) async fn start(&mut self) -> Result<()> {
        let child = program()?.arg("serve").arg("--config").arg(&self.file).stdout(Stdio::null()).spawn()?;
        self.child = Some(child);
        let operator = self.operator()?;
        for _ in 0..300 {
            if operator.get("/v1/whoami").await.is_ok() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        anyhow::bail!("the controller does not answer")
    }

    /// Its first administrator.
    pub(crate) fn operator(&self) -> Result<Operator> {
        Operator::new(format!("https://{}", self.config.api), &self.config.pki().join("ca.pem"), self.token.clone())
    }

    /// A line of `/proc/PID/status`, in MB.
    pub(crate) fn memory(&self, line: &str) -> Result<u64> {
        let child = self.child.as_ref().context("it runs")?;
        let status = fs::read_to_string(format!("/proc/{}/status", child.id()))?;
        let line = status.lines().find_map(|text| text.strip_prefix(line)).context("the kernel tells it")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? / 1024)
    }

    /// Kills the program.
    pub(crate) fn stop(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}

/// The controller that was built with this program.
fn program() -> Result<Command> {
    let beside = std::env::current_exe()?.with_file_name("rackhand-controller");
    ensure!(beside.exists(), "{} is not there: build all programs", beside.display());
    Ok(Command::new(beside))
}
