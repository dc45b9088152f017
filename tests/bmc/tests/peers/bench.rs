//! A BMC on a bench, and the peers that ask it.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use rackhand_bmc_sim::{Addresses, Bench, Personality, Running, Simulator};

/// A BMC with its machine, and who logs in.
pub(crate) struct Subject {
    pub(crate) running: Running,
    pub(crate) machine: Arc<Bench>,
    pub(crate) user: String,
    pub(crate) password: String,
    pub(crate) suite: u8,
}

/// What a peer printed, and whether it was content.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) is_content: bool,
    pub(crate) text: String,
}

pub(crate) async fn subject(personality: Personality) -> Subject {
    let machine = Arc::new(Bench::default());
    let user = personality.users[0].clone();
    let running = Simulator::start(personality, machine.clone(), Addresses::default()).await.unwrap();
    Subject { running, machine, user: user.name, password: user.password, suite: 17 }
}

impl Said {
    /// What it printed, when it was content.
    #[track_caller]
    pub(crate) fn well(self) -> String {
        assert!(self.is_content, "{}", self.text);
        self.text
    }
}

/// Runs a peer to its end, at most 60 s; killed when that is over.
pub(crate) async fn run(mut command: Command, advice: &str) -> Said {
    let advice = advice.to_owned();
    let child = tokio::process::Command::from({
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    })
    .kill_on_drop(true)
    .spawn()
    .unwrap_or_else(|error| panic!("{error}: {advice}"));
    let output = tokio::time::timeout(Duration::from_secs(60), child.wait_with_output()).await;
    let output = output.expect("a peer ends within a minute").unwrap();
    let text = [output.stdout, output.stderr].concat();
    Said { is_content: output.status.success(), text: String::from_utf8_lossy(&text).into_owned() }
}

impl Subject {
    pub(crate) async fn ipmitool(&self, arguments: &[&str]) -> Said {
        let mut command = Command::new("ipmitool");
        let (port, suite) = (self.running.ipmi.port().to_string(), self.suite.to_string());
        command.args(["-I", "lanplus", "-H", "127.0.0.1", "-p", &port, "-C", &suite]);
        command.args(["-N", "2", "-R", "3", "-U", &self.user, "-P", &self.password]).args(arguments);
        run(command, "apt-get install ipmitool").await
    }

    pub(crate) async fn freeipmi(&self, program: &str, cache: &tempfile::TempDir) -> Said {
        let mut command = Command::new(format!("/usr/sbin/{program}"));
        command.env("HOME", cache.path());
        command.arg("--driver-type=LAN_2_0").arg(format!("--cipher-suite-id={}", self.suite));
        command.args(["-h", &self.running.ipmi.to_string(), "-u", &self.user, "-p", &self.password, "-l", "ADMIN"]);
        if program != "bmc-info" {
            command.arg("--quiet-cache");
        }
        run(command, "apt-get install freeipmi-tools").await
    }

    /// Runs Python with these lines; pyghmi is there, and `address`, `port`, `user`, `password` are set.
    pub(crate) async fn python(&self, lines: &str) -> Said {
        let python = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/python/bin/python"));
        let head = format!(
            "address, port, redfish, user, password = {:?}, {}, {}, {:?}, {:?}\n",
            "127.0.0.1",
            self.running.ipmi.port(),
            self.running.redfish.port(),
            self.user,
            self.password
        );
        let mut command = Command::new(python);
        command.arg("-c").arg(head + lines).env_remove("REQUESTS_CA_BUNDLE");
        run(command, "target/python is made from tests/requirements.txt by the gate (`cargo xtask test`)").await
    }

    /// Asks by curl; status and body.
    pub(crate) async fn curl(&self, method: &str, path: &str, body: Option<&str>) -> (u16, String) {
        let login = format!("{}:{}", self.user, self.password);
        self.curl_as(Some(&login), method, path, body).await
    }

    pub(crate) async fn curl_as(
        &self,
        login: Option<&str>,
        method: &str,
        path: &str,
        body: Option<&str>,
    ) -> (u16, String) {
        let mut command = Command::new("curl");
        command.args(["--silent", "--insecure", "--globoff", "--write-out", "\n%{http_code}", "-X", method]);
        if let Some(login) = login {
            command.args(["--user", login]);
        }
        if let Some(body) = body {
            command.args(["--header", "Content-Type: application/json", "--data", body]);
        }
        command.arg(format!("https://{}{path}", self.running.redfish));
        let said = run(command, "apt-get install curl").await;
        let (body, status) = said.text.rsplit_once('\n').unwrap();
        (status.trim().parse().unwrap(), body.to_owned())
    }

    pub(crate) async fn get(&self, path: &str) -> serde_json::Value {
        let (status, body) = self.curl("GET", path, None).await;
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap()
    }
}

/// Waits until something holds.
pub(crate) async fn until(wanted: &str, mut holds: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !holds().await {
        assert!(Instant::now() < end, "not within 30 s: {wanted}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
