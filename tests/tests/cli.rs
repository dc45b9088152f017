//! The operator's program against a whole rack: what it prints, tries and watches.

#![expect(clippy::unwrap_used, reason = "the lint does not take helpers in here for tests")]

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use rackhand_tests::{Model, VirtualRack, operator::PATIENCE};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{ChildStdout, Command},
    time::timeout,
};

/// The program that was built with this test.
fn program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().unwrap().parent().unwrap().join("rackhand");
    assert!(path.is_file(), "{} is not there: run `cargo build --workspace --bins` first", path.display());
    path
}

/// The program as the rack's operator runs it, with a home of its own.
struct Cli<'a> {
    rack: &'a VirtualRack,
    home: &'a Path,
}

impl Cli<'_> {
    fn command(&self, words: &str) -> Command {
        let mut command = Command::new(program());
        command.args(words.split(' ')).env("HOME", self.home).env_remove("XDG_CONFIG_HOME").kill_on_drop(true);
        for name in ["RACKHAND_CONTEXT", "RACKHAND_CONTROLLER", "RACKHAND_TOKEN", "RACKHAND_CA"] {
            command.env_remove(name);
        }
        command
    }

    /// Standard output and standard error of a command that does what it should.
    async fn run(&self, words: &str) -> (String, String) {
        let output = self.command(words).output().await.unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let (out, err) = (text(output.stdout), text(output.stderr));
        assert!(output.status.success(), "rackhand {words}: {out}{err}");
        (out, err)
    }

    /// What a command that fails says.
    async fn refused(&self, words: &str) -> String {
        let output = self.command(words).output().await.unwrap();
        assert!(!output.status.success(), "rackhand {words}");
        String::from_utf8(output.stderr).unwrap()
    }

    async fn log_in(&self) {
        let ca = self.rack.path("controller/pki/ca.pem");
        let login = format!(
            "login --context lab --controller {} --ca {} --token {}",
            self.rack.operator.url(),
            ca.display(),
            self.rack.operator.token()
        );
        self.run(&login).await;
    }
}

async fn next(lines: &mut Lines<BufReader<ChildStdout>>) -> Value {
    let line = timeout(PATIENCE, lines.next_line()).await.expect("a line comes").unwrap().expect("it goes on");
    serde_json::from_str(&line).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operators_program_prints_tries_and_watches() {
    let mut rack = VirtualRack::new().await;
    let machine = rack.machine(Model::default());
    rack.ready(&machine).await;
    let home = tempfile::tempdir().unwrap();
    let cli = Cli { rack: &rack, home: home.path() };
    assert!(cli.refused("machine list").await.contains("rackhand login --controller"));
    cli.log_in().await;
    assert_eq!(cli.run("context list -o name").await.0, "lab\n");

    let name = cli.run("machine list --output name").await.0.trim().to_owned();
    let (yaml, _) = cli.run("machine list --output yaml").await;
    assert!(yaml.contains(&format!("name: {name}")), "{yaml}");
    let (csv, _) = cli.run("machine list --output csv").await;
    assert!(csv.starts_with("name,lifecycle,power,address,image,latest,health,rack,cards,id\n"), "{csv}");
    let typo = cli.refused(&format!("machine show {name}x")).await;
    assert!(typo.contains(&format!("did you mean `{name}`?")), "{typo}");

    // Tried, it is refused or shown as it would be; and nothing is there afterwards.
    let (tried, said) = cli.run(&format!("--dry-run machine rename {name} web-1")).await;
    assert!(tried.contains("web-1") && said.contains("dry run"), "{tried}{said}");
    assert_eq!(cli.run("machine list --output name").await.0.trim(), name);
    let refused = cli.refused(&format!("--dry-run machine deploy {name} --image nowhere")).await;
    assert!(refused.contains("there is no such image"), "{refused}");

    // Where there is no terminal, what changes is a line of JSON.
    let mut watching = cli.command("machine list --watch").stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    assert_eq!(next(&mut lines).await["name"], name.as_str());
    cli.run(&format!("machine rename {name} web-1")).await;
    while next(&mut lines).await["name"] != "web-1" {}
    watching.kill().await.unwrap();

    // A run's logs are followed to its end, and one that was done is not tried again.
    let run = cli.run("machine power web-1 cycle --output name").await.0.trim().to_owned();
    let (followed, _) = cli.run(&format!("run logs {run} --follow")).await;
    assert!(followed.contains("power begins") && followed.trim_end().ends_with("run done"), "{followed}");
    let (logs, _) = cli.run(&format!("run logs {run}")).await;
    assert!(logs.starts_with("STEP") && logs.contains("switch power") && logs.contains("run done"), "{logs}");
    let refused = cli.refused(&format!("run retry {run}")).await;
    assert!(refused.contains("the run did what it was to do"), "{refused}");
    rack.stop().await.unwrap();
}

/// What comes of a command that is given this on standard input.
async fn told(cli: &Cli<'_>, words: &str, input: &str) -> std::process::Output {
    let mut command = cli.command(words);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).await.unwrap();
    child.wait_with_output().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_logs_in_with_a_password_and_out_and_the_host_helps_who_lost_theirs() {
    let rack = VirtualRack::new().await;
    let home = tempfile::tempdir().unwrap();
    let cli = Cli { rack: &rack, home: home.path() };
    cli.log_in().await;
    let set = told(&cli, "person password", "\nfirst correct horse\n").await;
    assert!(set.status.success(), "{set:?}");
    // A token that was made by hand is forgotten and not ended; where it led is kept.
    let (out, _) = cli.run("logout").await;
    assert!(out.contains("was made by hand and is good elsewhere still"), "{out}");
    assert!(cli.refused("machine list").await.contains("you are logged out of https://"));

    let file = home.path().join("password");
    std::fs::write(&file, "first correct horse\n").unwrap();
    let (out, _) = cli.run(&format!("login --person admin --password-file {}", file.display())).await;
    assert!(out.contains("as `admin`; saved as `lab`"), "{out}");
    cli.run("machine list").await;
    let token = || {
        let text = std::fs::read_to_string(home.path().join(".config/rackhand/config.toml")).unwrap();
        let token = text.lines().find_map(|line| line.strip_prefix("token = ")).unwrap();
        token.trim_matches('"').to_owned()
    };
    let login = token();
    let (out, _) = cli.run("logout").await;
    assert!(out.contains("its token is no longer good"), "{out}");
    let ended = cli.command("token list").env("RACKHAND_TOKEN", login).output().await.unwrap();
    assert!(String::from_utf8_lossy(&ended.stderr).contains("not known here"), "{ended:?}");

    let wrong = told(&cli, "login --person admin", "second correct horse\n").await;
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(said.contains("name, password or code is wrong") && said.contains("--code"), "{said}");
    let config = home.path().join("controller.toml");
    let data = rack.path("controller");
    std::fs::write(&config, format!("data = {data:?}\nnames = [\"127.0.0.1\"]\n")).unwrap();
    let mut host = Command::new(program().with_file_name("rackhand-controller"));
    let words = ["person", "password", "admin", "--forget-second-factor", "--config", config.to_str().unwrap()];
    let mut host = host.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    host.stdin.take().unwrap().write_all(b"second correct horse\n").await.unwrap();
    assert!(host.wait_with_output().await.unwrap().status.success());
    let right = told(&cli, "login --person admin", "second correct horse\n").await;
    assert!(right.status.success(), "{right:?}");
    cli.run("machine list").await;
    rack.stop().await.unwrap();
}
