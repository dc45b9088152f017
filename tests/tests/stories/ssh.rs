//! Machines' consoles by SSH, asked for by OpenSSH.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    process::Stdio,
};

use rackhand_tests::{
    Model, VirtualRack,
    operator::{Operator, PATIENCE},
    rack::Service,
    wait,
};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    process::{Child, ChildStdin, Command},
    sync::mpsc,
    time::{Instant, timeout, timeout_at},
};

use crate::console::{answers, bmc, open};

/// Somebody with a key, and their `ssh`.
struct Person {
    key: PathBuf,
    operator: Operator,
    fingerprint: String,
    /// That of the key they added.
    id: String,
}

/// Where consoles are, as `ssh` is told it.
struct Door {
    host: String,
    port: String,
    known_hosts: PathBuf,
}

/// An `ssh` that runs.
struct Ssh {
    child: Child,
    stdin: Option<ChildStdin>,
    told: mpsc::Receiver<Vec<u8>>,
    /// Both of its outputs, as they came.
    shown: String,
}

impl Door {
    async fn of(rack: &VirtualRack) -> Self {
        let told = rack.operator.get("/v1/ssh").await.unwrap();
        let (host, port) = (rack.host(1).to_string(), told["port"].to_string());
        let known_hosts = rack.path("known_hosts");
        std::fs::write(&known_hosts, format!("[{host}]:{port} {}\n", told["key"].as_str().unwrap())).unwrap();
        Self { host, port, known_hosts }
    }

    fn at(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    fn ssh(&self, key: &Path, user: &str, options: &[&str], command: &[&str]) -> Ssh {
        let mut ssh = Command::new("ssh");
        ssh.args(["-F", "none", "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none", "-o", "BatchMode=yes"])
            .args(["-o", "StrictHostKeyChecking=yes", "-o", "GlobalKnownHostsFile=/dev/null", "-p", &self.port])
            .arg("-o")
            .arg(format!("UserKnownHostsFile={}", self.known_hosts.display()))
            .arg("-i")
            .arg(key)
            .args(options)
            .arg(format!("{user}@{}", self.host))
            .args(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = ssh.spawn().expect("install openssh-client");
        let (sender, told) = mpsc::channel(64);
        let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        tokio::spawn(read(out, sender.clone()));
        tokio::spawn(read(err, sender));
        Ssh { stdin: child.stdin.take(), child, told, shown: String::new() }
    }
}

async fn read(mut from: impl tokio::io::AsyncRead + Unpin, to: mpsc::Sender<Vec<u8>>) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if to.send(buffer[..length].to_vec()).await.is_err() {
            return;
        }
    }
}

impl Ssh {
    async fn type_in(&mut self, text: &str) {
        self.stdin.as_mut().unwrap().write_all(text.as_bytes()).await.unwrap();
    }

    /// Waits until this was shown.
    async fn shows(&mut self, wanted: &str) {
        self.shows_so_often(wanted, 1).await;
    }

    async fn shows_so_often(&mut self, wanted: &str, count: usize) {
        let end = Instant::now() + PATIENCE;
        while self.shown.matches(wanted).count() < count {
            match timeout_at(end, self.told.recv()).await {
                Ok(Some(bytes)) => self.shown += &String::from_utf8_lossy(&bytes),
                Ok(None) => panic!("it ended before `{wanted}`:\n{}", self.shown),
                Err(_) => panic!("not in time, `{wanted}`:\n{}", self.shown),
            }
        }
    }

    /// Waits until it has ended; how, and all that was shown.
    async fn ended(mut self) -> (Option<i32>, String) {
        let ended = async {
            while let Some(bytes) = self.told.recv().await {
                self.shown += &String::from_utf8_lossy(&bytes);
            }
            self.child.wait().await.unwrap().code()
        };
        let code = timeout(PATIENCE, ended).await;
        (code.unwrap_or_else(|_| panic!("it goes on:\n{}", self.shown)), self.shown)
    }
}

/// A fresh key of a kind.
async fn keygen(rack: &VirtualRack, name: &str, kind: &[&str]) -> PathBuf {
    let path = rack.path(name);
    let made = Command::new("ssh-keygen").args(["-q", "-N", "", "-C", name, "-f"]).arg(&path).args(kind).status();
    assert!(made.await.expect("install openssh-client").success());
    path
}

async fn added(operator: &Operator, key: &Path) -> Value {
    let public = std::fs::read_to_string(key.with_extension("pub")).unwrap();
    operator.post("/v1/ssh-keys", json!({ "name": "laptop", "key": public })).await.unwrap()
}

/// Somebody with a role, who adds a key to themselves.
async fn person(rack: &VirtualRack, name: &str, role: &str, scope: Value, kind: &[&str]) -> Person {
    let admin = &rack.operator;
    let password = "correct horse battery";
    admin.post("/v1/people", json!({ "name": name, "password": password })).await.unwrap();
    admin.post("/v1/bindings", json!({ "person": name, "role": role, "scope": scope })).await.unwrap();
    let login = admin.post("/v1/login", json!({ "name": name, "password": password })).await.unwrap();
    let token = login["token"].as_str().unwrap().to_owned();
    let operator = Operator::new(admin.url().to_owned(), &rack.path("controller/pki/ca.pem"), token).unwrap();
    let key = keygen(rack, name, kind).await;
    let made = added(&operator, &key).await;
    let text = |field: &str| made[field].as_str().unwrap().to_owned();
    Person { key, operator, fingerprint: text("fingerprint"), id: text("id") }
}

/// A terminal, so that keys are what they are at one.
const TERMINAL: &[&str] = &["-tt"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openssh_opens_consoles_and_who_may_no_longer_loses_them() {
    let mut rack = VirtualRack::new().await;
    let machine = rack.machine(Model::default());
    rack.ready(&machine).await;
    let door = Door::of(&rack).await;
    let of_rack = json!({ "kind": "rack", "name": "r1" });
    let ada = person(&rack, "ada", "technician", of_rack.clone(), &["-t", "ed25519"]).await;
    let bob = person(&rack, "bob", "technician", of_rack, &["-t", "rsa", "-b", "2048"]).await;
    let row = rack.operator.machine(machine.mac()).await.unwrap().unwrap();
    let name = row["name"].as_str().unwrap().to_owned();

    // What only who may is told.
    let (code, shown) = door.ssh(&ada.key, &name, TERMINAL, &[]).ended().await;
    assert!(code == Some(1) && shown.contains("rackhand bmc set"), "{code:?} {shown}");

    let (running, id) = bmc(&rack, &machine).await;
    answers(&running);
    // The agent has been told of the BMC.
    open(&rack, &id).await.leave().await;
    let mut first = door.ssh(&ada.key, &name, TERMINAL, &[]);
    first.shows("the console is open").await;
    first.shows("~~? tells more").await;
    first.type_in("hello").await;
    first.shows("HELLO").await;
    first.shows("[rackhand: you have the keyboard]").await;

    // By its id as well, and with what was printed before. Whoever has no terminal has files.
    let mut second = door.ssh(&bob.key, &id, TERMINAL, &[]);
    second.shows("HELLO").await;
    second.shows("[rackhand: ada has the keyboard; ~w takes it]").await;
    second.type_in("dropped\r").await;
    second.shows_so_often("ada has the keyboard", 2).await;
    let mut file = door.ssh(&bob.key, &name, &["-T"], &["watch"]);
    file.shows("HELLO").await;
    let mut socket = open(&rack, &id).await;
    socket.keyboard(Some("ada"), false).await;
    second.type_in("~w").await;
    second.shows("[rackhand: you have the keyboard]").await;
    first.shows("[rackhand: bob has the keyboard; ~w takes it]").await;
    socket.keyboard(Some("bob"), false).await;
    second.type_in("mine").await;
    for watcher in [&mut first, &mut second, &mut file] {
        watcher.shows("MINE").await;
        assert!(!watcher.shown.contains("DROPPED"), "{}", watcher.shown);
    }
    second.type_in("\r~~?").await;
    second.shows("take the keyboard, whoever has it").await;
    // OpenSSH's own, at the beginning of a line.
    second.type_in("\r~.").await;
    second.ended().await;
    socket.keyboard(None, false).await;

    // One who comes to take it has it; new keys in the middle of it are not noticed.
    let mut third = door.ssh(&bob.key, &name, &["-tt", "-o", "RekeyLimit=1K"], &["take"]);
    third.shows("[rackhand: you have the keyboard]").await;
    let long = "0123456789abcdef".repeat(64);
    for _ in 0..8 {
        third.type_in(&long).await;
    }
    third.shows(&long.to_uppercase().repeat(8)).await;

    // Nothing else is to be had.
    for (options, command) in [
        (vec!["-T"], vec!["id"]),
        (vec!["-T", "-s"], vec!["sftp"]),
        (vec!["-T", "-W", "127.0.0.1:1"], vec![]),
        (vec!["-T", "-o", "ExitOnForwardFailure=yes", "-R", "0:127.0.0.1:1"], vec![]),
    ] {
        let (code, shown) = door.ssh(&ada.key, &name, &options, &command).ended().await;
        assert!(code != Some(0), "{options:?} {command:?}: {shown}");
    }

    // A role that is taken away, and a key that is removed, take the consoles along.
    let bindings = rack.operator.get("/v1/bindings?limit=200").await.unwrap();
    let of_ada = bindings["items"].as_array().unwrap().iter().find(|binding| binding["person"] == "ada");
    let of_ada = of_ada.unwrap_or_else(|| panic!("{bindings:#}"))["id"].as_str().unwrap();
    rack.operator.ask(Method::DELETE, &format!("/v1/bindings/{of_ada}"), None).await.unwrap();
    let (code, shown) = first.ended().await;
    assert!(code == Some(1) && shown.contains("no longer good, or its roles have changed"), "{code:?} {shown}");
    bob.operator.ask(Method::DELETE, &format!("/v1/ssh-keys/{}", bob.id), None).await.unwrap();
    let (code, shown) = third.ended().await;
    assert!(code == Some(1) && shown.contains("the key is no longer good"), "{code:?} {shown}");
    file.ended().await;

    // All of it is written down, but for what was typed.
    let recorded = async || {
        let records = rack.operator.get(&format!("/v1/audit?about={id}&limit=200")).await.unwrap().to_string();
        let wanted = [
            format!("SSH {name} (opened)"),
            format!("SSH {name} (has the keyboard)"),
            format!("SSH {name} (left, 5 bytes typed)"),
            ada.fingerprint.clone(),
            bob.fingerprint.clone(),
            ada.id.clone(),
            "OpenSSH".to_owned(),
        ];
        let missing: Vec<_> = wanted.into_iter().filter(|wanted| !records.contains(wanted)).collect();
        if missing.is_empty() { Ok(records) } else { Err(format!("{missing:?} is missing in {records}")) }
    };
    let records = wait::until("all of it is in the record", PATIENCE, recorded).await;
    assert!(!records.contains("hello") && !records.contains("mine"), "{records}");
    rack.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_wrong_is_refused_alike_and_strangers_keep_nobody_out() {
    let mut rack = VirtualRack::new().await;
    let machine = rack.machine(Model::default());
    rack.ready(&machine).await;
    let door = Door::of(&rack).await;
    let name = rack.operator.machine(machine.mac()).await.unwrap().unwrap()["name"].as_str().unwrap().to_owned();
    rack.operator.post("/v1/organisations", json!({ "name": "other" })).await.unwrap();
    rack.operator.post("/v1/projects", json!({ "name": "theirs", "organisation": "other" })).await.unwrap();
    // It has to be gone by the end of this story.
    let mut silent = TcpStream::connect(door.at()).await.unwrap();

    let theirs = json!({ "kind": "project", "name": "other:theirs" });
    let eve = person(&rack, "eve", "owner", theirs, &["-t", "ed25519"]).await;
    let viewer = json!({ "kind": "rack", "name": "r1" });
    let vic = person(&rack, "vic", "viewer", viewer, &["-t", "ecdsa"]).await;
    let stranger = keygen(&rack, "stranger", &["-t", "ed25519"]).await;
    let mut refusals = VecDeque::new();
    for (key, user) in [
        (&stranger, name.as_str()),
        (&stranger, "nothing"),
        (&eve.key, name.as_str()),
        (&eve.key, "nothing"),
        (&vic.key, name.as_str()),
        (&vic.key, "..%00"),
    ] {
        let (code, shown) = door.ssh(key, user, &["-T"], &[]).ended().await;
        assert_eq!(code, Some(255), "{shown}");
        refusals.push_back(shown.replace(user, "USER"));
    }
    let refusal = refusals.pop_front().unwrap();
    assert!(refusal.contains("Permission denied (publickey)"), "{refusal}");
    assert!(refusals.iter().all(|other| *other == refusal), "{refusal} {refusals:?}");
    let recorded = async || {
        let records = rack.operator.get("/v1/audit?limit=200").await.map_err(|error| format!("{error:#}"))?;
        let by = |who: &str| {
            let is = |record: &&Value| record["by"] == who && record["action"] == format!("SSH {name} (refused)");
            records["items"].as_array().into_iter().flatten().filter(is).count()
        };
        if (by("eve"), by("vic")) == (1, 1) { Ok(()) } else { Err(records.to_string()) }
    };
    wait::until("refusals are in the record", PATIENCE, recorded).await;

    // A key is one person's, and a token for less than all adds none.
    let again = std::fs::read_to_string(eve.key.with_extension("pub")).unwrap();
    let taken = vic.operator.post("/v1/ssh-keys", json!({ "name": "mine", "key": again })).await.unwrap_err();
    assert!(taken.to_string().contains("409"), "{taken:#}");
    let private = std::fs::read_to_string(&eve.key).unwrap();
    let wrong = vic.operator.post("/v1/ssh-keys", json!({ "name": "mine", "key": private })).await.unwrap_err();
    assert!(format!("{wrong:#}").contains("private key"), "{wrong:#}");
    let weak = vic.operator.post("/v1/tokens", json!({ "name": "weak", "actions": ["token.own"] })).await.unwrap();
    let weak = weak["secret"].as_str().unwrap().to_owned();
    let weak = Operator::new(rack.operator.url().to_owned(), &rack.path("controller/pki/ca.pem"), weak).unwrap();
    let public = std::fs::read_to_string(stranger.with_extension("pub")).unwrap();
    let refused = weak.post("/v1/ssh-keys", json!({ "name": "mine", "key": public })).await.unwrap_err();
    assert!(format!("{refused:#}").contains("not good for all that you may"), "{refused:#}");

    // Bytes that are no SSH end their connection, and those that come by the hundred only themselves.
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0xff; 70_000],
        b"SSH-2.0-x\r\n\x00\x00\x00\x0c\xff\xff\xff\xff\xff\xff\xff\xff",
    ] {
        let mut stream = TcpStream::connect(door.at()).await.unwrap();
        let _ = stream.write_all(garbage).await;
        stream.shutdown().await.unwrap_or_default();
        let mut rest = Vec::new();
        let _ = timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("it is ended");
    }
    let mut rest = Vec::new();
    let _ = timeout(PATIENCE, silent.read_to_end(&mut rest)).await.expect("who is silent is ended");
    let mut many = Vec::new();
    for _ in 0..200 {
        many.push(TcpStream::connect(door.at()).await.unwrap());
    }
    let (running, id) = bmc(&rack, &machine).await;
    answers(&running);
    open(&rack, &id).await.leave().await;
    let key = keygen(&rack, "admin", &["-t", "ed25519"]).await;
    added(&rack.operator, &key).await;
    let mut ssh = door.ssh(&key, &name, TERMINAL, &[]);
    ssh.shows("the console is open").await;
    drop(many);

    // The controller says why it goes, is known by the same key when it is back, and so is who comes.
    let kept = rack.reload_controller(|config| config.ssh = None).unwrap();
    assert!(kept.contains("ssh.listen"), "{kept}");
    rack.restart(Service::Controller).await;
    ssh.ended().await;
    let back = async || {
        let (code, shown) = door.ssh(&key, &name, &["-T"], &["sh"]).ended().await;
        // It was let in, and no command is known.
        if code != Some(255) || shown.contains("exec request failed") { Ok(()) } else { Err(shown) }
    };
    wait::until("it is let in again", PATIENCE, back).await;
    rack.stop().await.unwrap();
}
