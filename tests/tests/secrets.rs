//! Canaries: every secret of a whole run is one, and afterwards everything that was written,
//! logged, shown or answered is searched for them. In a program of its own, because it takes
//! the log of everything in it.

#![expect(clippy::unwrap_used, reason = "the lint does not take helpers in here for tests")]

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use rackhand_tests::{Model, Service, VirtualRack, operator::KEY, operator::PATIENCE, wait};
use serde_json::{Value, json};

/// A secret, and where it may stand: files whose names, as seen from the rack's directory,
/// begin with one of these. `must` of them do, or the search itself would be broken.
struct Canary {
    what: &'static str,
    forms: Vec<Vec<u8>>,
    allowed: &'static [&'static str],
    must: &'static [&'static str],
}

impl Canary {
    fn text(what: &'static str, text: &str, allowed: &'static [&'static str], must: &'static [&'static str]) -> Self {
        Self { what, forms: vec![text.as_bytes().to_vec()], allowed, must }
    }

    /// Bytes, also as hexadecimal.
    fn bytes(what: &'static str, bytes: &[u8], allowed: &'static [&'static str]) -> Self {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        Self {
            what,
            forms: vec![bytes.to_vec(), hex.to_uppercase().into_bytes(), hex.into_bytes()],
            allowed,
            must: allowed,
        }
    }

    /// Where in `text` it stands.
    fn find(&self, text: &[u8]) -> Option<usize> {
        self.forms.iter().find_map(|form| {
            let first = form[0];
            let mut from = 0;
            loop {
                let at = from + text.get(from..)?.iter().position(|byte| *byte == first)?;
                if text[at..].starts_with(form) {
                    return Some(at);
                }
                from = at + 1;
            }
        })
    }
}

/// Names and contents of everything there is to search.
type Found = Vec<(String, Vec<u8>)>;

/// Every canary that stands where it may not, with file and offset; and every one that is
/// missing where it must be.
fn leaks(found: &Found, canaries: &[Canary]) -> Vec<String> {
    let mut leaks = Vec::new();
    for canary in canaries {
        let mut seen: Vec<&str> = Vec::new();
        for (name, text) in found {
            let Some(at) = canary.find(text) else { continue };
            seen.push(name);
            if !canary.allowed.iter().any(|allowed| name.starts_with(allowed)) {
                let around = &text[at.saturating_sub(60)..(at + 60).min(text.len())];
                leaks.push(format!("{} in {name} at byte {at}: {:?}", canary.what, String::from_utf8_lossy(around)));
            }
        }
        for must in canary.must {
            if !seen.iter().any(|name| name.starts_with(must)) {
                leaks.push(format!("{} is not in {must}, where it has to be: is the search broken?", canary.what));
            }
        }
    }
    leaks
}

fn files(directory: &Path, below: &str, found: &mut Found) {
    let mut paths: Vec<PathBuf> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        let name = format!("{below}{}", path.file_name().unwrap().to_string_lossy());
        if path.is_dir() {
            files(&path, &format!("{name}/"), found);
        } else if path.is_file() {
            found.push((name, fs::read(&path).unwrap()));
        }
    }
}

/// Everything that can be read of the rack: files, log, the API's answers, metrics, the screen.
async fn everything(rack: &VirtualRack, machine: &rackhand_tests::Machine, log: &Path) -> Found {
    let mut found = vec![("log".to_owned(), fs::read(log).unwrap())];
    files(&rack.path(""), "", &mut found);
    let mut paths: Vec<String> =
        ["agents", "events?limit=200", "images", "images/sim-1", "machines", "racks", "racks/r1", "runs", "whoami"]
            .map(|path| format!("/v1/{path}"))
            .into();
    let row = rack.operator.machine(machine.mac()).await.unwrap().unwrap();
    paths.push(format!("/v1/machines/{}", row["id"].as_str().unwrap()));
    for run in rack.operator.get("/v1/runs").await.unwrap()["items"].as_array().unwrap() {
        paths.push(format!("/v1/runs/{}", run["id"].as_str().unwrap()));
    }
    for path in paths {
        let answer = rack.operator.get(&path).await.unwrap();
        assert_ne!(answer, Value::Null);
        found.push((format!("answer of {path}"), answer.to_string().into_bytes()));
    }
    for (name, text) in rack.metrics().await.unwrap() {
        assert!(text.ends_with("# EOF\n"), "{name}: {text}");
        found.push((name.to_owned(), text.into_bytes()));
    }
    found.push(("screen".to_owned(), machine.screen().into_bytes()));
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_stand_where_they_have_to_and_nowhere_else() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    tracing_subscriber::fmt().with_env_filter("debug").with_ansi(false).with_writer(File::create(&log).unwrap()).init();

    let mut rack = VirtualRack::new().await;
    rack.image("sim-1", 3).await;
    // A code nobody uses, and one that a second node uses at once.
    let (unused, used) = (rack.code().await.unwrap(), rack.code().await.unwrap());
    let machine = rack.machine(Model::default());
    rack.ready(&machine).await;
    let line = machine.installer_line().unwrap();
    let (_, ticket) = line.split_once("rackhand.ticket=").unwrap();
    let ticket = ticket.split_whitespace().next().unwrap().to_owned();
    let private = "b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAcanary9f31";
    let user_data = format!("#cloud-config\n# tenants-canary-4d1b\n# -----BEGIN OPENSSH PRIVATE KEY-----{private}");
    let deploy = json!({ "image": "sim-1", "hostname": "web-1", "ssh_keys": [KEY], "user_data": user_data });
    rack.operator.act(machine.mac(), "deploy", deploy).await.unwrap();
    rack.becomes(&machine, "active").await;
    let system = machine.system_up(PATIENCE).await;
    assert!(system.user_data.contains("tenants-canary-4d1b"), "the tenant did not get it");
    rack.enrol(&used, &rack.path("second")).await.unwrap();
    for service in [Service::Boot, Service::Agent, Service::Controller] {
        rack.restart(service).await;
    }
    wait::until("the API answers again", PATIENCE, async || {
        rack.operator.get("/v1/whoami").await.map_err(|e| e.to_string())
    })
    .await;

    let secret = |code: &str| code.split('.').nth(1).unwrap().to_owned();
    let boot_key = fs::read(rack.path("boot/boot.key")).unwrap();
    let calls = fs::read(rack.path("boot/phone-home.key")).unwrap();
    let identity: Value = serde_json::from_slice(&fs::read(rack.path("agent/identity.json")).unwrap()).unwrap();
    let agent_key = identity["key"].as_str().unwrap().to_owned();
    let canaries = [
        Canary::text("the operator's token", rack.operator.token(), &[], &[]),
        Canary::text("an unused enrolment code", &secret(&unused), &[], &[]),
        Canary::text("a used enrolment code", &secret(&used), &[], &[]),
        // The run that carries it out may keep it; the tenant's own disk has it.
        Canary::text("user data", "tenants-canary-4d1b", &["controller/", "serial-1"], &["serial-1"]),
        Canary::text("a tenant's private key", private, &["controller/", "serial-1"], &["serial-1"]),
        // Boot has to know it again, and the installer shows its command line to nobody.
        Canary::text("a boot ticket", &ticket, &["boot/boot.redb"], &["boot/boot.redb"]),
        Canary::bytes("boot's key", &boot_key, &["boot/boot.key"]),
        Canary::bytes("the key of calls home", &calls, &["boot/phone-home.key"]),
        Canary::text("the agent's key", &agent_key, &["agent/identity.json"], &["agent/identity.json"]),
    ];
    let found = everything(&rack, &machine, &log).await;
    assert!(found.iter().any(|(name, text)| name == "log" && text.len() > 10_000), "nothing was logged");
    let leaked = leaks(&found, &canaries);
    let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
    assert!(leaked.is_empty(), "{}\n\nsearched: {names:#?}", leaked.join("\n"));
    rack.stop().await.unwrap();
}

#[test]
fn a_canary_that_got_out_is_named_with_file_and_offset() {
    let found =
        vec![("log".to_owned(), b"all is well: hidden-1".to_vec()), ("boot/key".to_owned(), b"hidden-1".to_vec())];
    let canary = Canary::text("a secret", "hidden-1", &["boot/"], &["boot/", "agent/"]);
    let said = leaks(&found, &[canary]);
    assert_eq!(said.len(), 2);
    assert!(said[0].starts_with("a secret in log at byte 13"), "{said:?}");
    assert!(said[1].starts_with("a secret is not in agent/"), "{said:?}");
    let key = Canary::bytes("a key", &[0xab, 0xcd, 0xef], &[]);
    assert_eq!(leaks(&vec![("x".into(), b"key=abcdef".to_vec())], &[key]).len(), 1);
}
