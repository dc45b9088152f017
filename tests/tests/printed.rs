//! What the operator's program prints, word for word: commands on a terminal of fixed width against
//! a real controller, in `tests/tests/printed`. Each file is a session, `$ COMMAND` and what it said;
//! `UPDATE_EXPECT=1` writes them anew.
//!
//! What differs each time is replaced by something as long: ids, times, digests, addresses of this
//! controller. The racks' agents are away, so that nothing goes on by itself.

#![expect(clippy::unwrap_used, reason = "the lint does not take helpers in here for tests")]

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
};

use expect_test::expect_file;
use jiff::Timestamp;
use rackhand_common::{
    id::{Epoch, MachineId, RackId},
    intent::{Boot, Network},
    machine::{Content, Cpu, Disk, Firmware, Inventory, Mac, Nic, Power, System},
    pki::install_crypto,
};
use rackhand_controller::{
    controller::{self, Config, File, Running, Seams},
    seal_key,
    store::{DEFAULT_SITE, Happened, Machine, SoundNetwork, Store},
};
use rackhand_controller_core::lifecycle::Lifecycle;
use rackhand_tests::{
    image,
    operator::{self, Operator, PATIENCE},
    wait,
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

/// Columns of the terminal.
const WIDTH: usize = 100;

/// A controller with a rack of three machines, and its operator's program.
struct Bench {
    home: tempfile::TempDir,
    listen: String,
    ca: PathBuf,
    operator: Operator,
    shutdown: CancellationToken,
    running: Running,
}

impl Bench {
    async fn new() -> Self {
        install_crypto();
        let home = tempfile::tempdir().unwrap();
        let listen = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let file: File = serde_json::from_value(json!({
            "data": home.path().join("data"), "names": ["127.0.0.1"],
            "api": {"listen": listen}, "agents": {"listen": "127.0.0.1:0"},
        }))
        .unwrap();
        let config = Config::try_from(file).unwrap();
        let (token, ca) = operator::init(&config, Seams::default()).await.unwrap();
        let store = Store::open(config.place().unwrap(), seal_key::seal(&config.pki()).unwrap()).await.unwrap();
        rack(&store).await;
        store.close().await;
        let shutdown = CancellationToken::new();
        let running = controller::start(config, Seams::default(), shutdown.clone()).await.unwrap();
        let operator = Operator::new(format!("https://{listen}"), &ca, token).unwrap();
        operator.import("debian-12", image::make(&home.path().join("image.raw"), 3).unwrap()).await.unwrap();
        Self { home, listen: listen.to_string(), ca, operator, shutdown, running }
    }

    /// What a terminal shows of a command, errors among the rest, and its status if that is not 0.
    async fn shown(&self, words: &str, width: usize) -> String {
        let test = std::env::current_exe().unwrap();
        let program = test.parent().unwrap().parent().unwrap().join("rackhand");
        assert!(program.is_file(), "{} is not there: run `cargo build --workspace --bins` first", program.display());
        // A terminal of util-linux, whose size is set before the program starts.
        let script = format!("stty cols {width} rows 50; exec {} {words} < /dev/null", program.display());
        let mut command = Command::new("script");
        command.args(["--quiet", "--return", "--command", &script, "/dev/null"]).current_dir(self.home.path());
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", self.home.path());
        command.env("SHELL", "/bin/sh").env("TERM", "xterm").env("NO_COLOR", "1").env("LC_ALL", "C.UTF-8");
        command.env("RACKHAND_CONTROLLER", format!("https://{}", self.listen)).env("RACKHAND_CA", &self.ca);
        command.env("RACKHAND_TOKEN", self.operator.token());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = tokio::task::spawn_blocking(move || {
            let mut child = command.spawn().unwrap();
            // Its end would be typed into the terminal.
            let _open = child.stdin.take();
            child.wait_with_output().unwrap()
        });
        let output = output.await.unwrap();
        let mut text = String::from_utf8(output.stdout).unwrap().replace("\r\n", "\n");
        text += &String::from_utf8(output.stderr).unwrap();
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        match output.status.code() {
            Some(0) => text,
            code => format!("{text}(exit status {})\n", code.unwrap()),
        }
    }

    /// A session of these commands, a line each. `<name>` stands for the id that `ids` has for it.
    async fn session(&self, commands: &str, ids: &BTreeMap<&str, String>) -> String {
        let mut text = String::new();
        for line in commands.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let (line, width) = match line.strip_suffix(" #narrow") {
                Some(line) => (line, 60),
                None => (line, WIDTH),
            };
            let words = ids.iter().fold(line.to_owned(), |line, (name, id)| line.replace(&format!("<{name}>"), id));
            let narrow = if width == WIDTH { String::new() } else { format!("  # {width} columns") };
            text += &format!("$ rackhand {words}{narrow}\n{}\n", self.shown(&words, width).await);
        }
        text.truncate(text.trim_end().len());
        Redacted::default().text(&(text + "\n").replace(&self.listen, "127.0.0.1:8443"))
    }

    async fn end(self) {
        self.shutdown.cancel();
        self.running.ended().await.unwrap();
    }
}

/// A rack whose machines are in three states: one nobody adopted, two ready ones.
async fn rack(store: &Store) {
    let network = Network {
        node: "10.77.0.1/24".parse().unwrap(),
        gateway: None,
        dns: Vec::new(),
        delegated: (Ipv4Addr::new(10, 77, 0, 100), Ipv4Addr::new(10, 77, 0, 199)),
    };
    let mut tx = store.begin().await.unwrap();
    let now = Timestamp::now();
    let rack = tx.insert_rack(now, "lab", DEFAULT_SITE, &SoundNetwork::try_from(network).unwrap()).await.unwrap();
    for (number, name, lifecycle) in
        [(1, "m-0001", Lifecycle::Discovered), (2, "web-1", Lifecycle::Ready), (3, "db-1", Lifecycle::Ready)]
    {
        let machine = machine(rack, number, name, lifecycle, now);
        tx.insert_machine(&machine).await.unwrap();
        let found = Happened::Discovered { name: name.to_owned() };
        tx.insert_event(now, rack, Some(machine.id), None, &found).await.unwrap();
    }
    tx.commit().await.unwrap();
}

fn machine(rack: RackId, number: u8, name: &str, lifecycle: Lifecycle, now: Timestamp) -> Machine {
    let is_adopted = lifecycle != Lifecycle::Discovered;
    let mac = Mac([0x52, 0x54, 0, 0, 0, number]);
    let disk = Disk {
        name: "nvme0n1".into(),
        model: "SAMSUNG MZQL2960".into(),
        serial: format!("S64HNE0R00000{number}"),
        wwn: None,
        size: 960_197_124_096,
        sector: 512,
        rotational: false,
        content: Content::Blank,
    };
    let inventory = Arc::new(Inventory {
        firmware: Firmware::Uefi,
        system: System {
            vendor: "Supermicro".into(),
            product: "SYS-1029U".into(),
            serial: format!("E00{number}"),
            uuid: None,
        },
        cpu: Cpu { model: "Intel(R) Xeon(R) Gold 6230".into(), threads: 80 },
        memory: 384 << 30,
        nics: vec![Nic { name: "eth0".into(), mac, driver: "mlx5_core".into(), link: true }],
        disks: vec![disk],
    });
    Machine {
        id: MachineId::fresh(),
        rack,
        name: name.to_owned(),
        lifecycle,
        epoch: Epoch(1),
        boot: Boot::Installer,
        address: Ipv4Addr::new(10, 77, 0, 99 + number),
        macs: vec![mac],
        accepted: is_adopted.then(|| inventory.clone()),
        inventory,
        connection: 1,
        connected: true,
        power: Some(Power::On),
        stage: None,
        stage_event: 0,
        power_event: 0,
        order: None,
        project: None,
        image: None,
        alert: None,
        held: None,
        uninspected: None,
        rescue: None,
        created: now,
        updated: now,
        version: 1,
    }
}

/// Replaces what differs each time by something as long, the same by the same.
#[derive(Default)]
struct Redacted {
    ids: BTreeMap<String, usize>,
}

impl Redacted {
    fn text(mut self, text: &str) -> String {
        let mut out = String::new();
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            let (taken, put) = if !out.ends_with(|c: char| c.is_ascii_alphanumeric() || c == '-') {
                self.token(rest).unwrap_or((first.len_utf8(), first.to_string()))
            } else {
                (first.len_utf8(), first.to_string())
            };
            out += &put;
            rest = &rest[taken..];
        }
        out
    }

    /// What stands at the beginning, if it is to be replaced: how long it is, and by what.
    fn token(&mut self, text: &str) -> Option<(usize, String)> {
        let has = |form: &str| {
            let fits = |(letter, form): (char, char)| match form {
                'x' => letter.is_ascii_hexdigit() && !letter.is_ascii_uppercase(),
                '9' => letter.is_ascii_digit(),
                form => letter == form,
            };
            text.len() >= form.len() && text.is_char_boundary(form.len()) && text.chars().zip(form.chars()).all(fits)
        };
        if has("xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx") {
            let next = self.ids.len() + 1;
            let number = *self.ids.entry(text[..36].to_owned()).or_insert(next);
            return Some((36, format!("00000000-0000-0000-0000-{number:012}")));
        }
        if has(&"x".repeat(64)) {
            return Some((64, "d".repeat(64)));
        }
        if has("9999-99-99T99:99:99") {
            let fraction = text[19..].split(|c: char| c != '.' && !c.is_ascii_digit()).next().unwrap().len();
            let put = if fraction == 0 { "2026-01-02T03:04:05".to_owned() } else { "2026-01-02T03:04:05.6".to_owned() };
            return Some((19 + fraction, put));
        }
        None
    }
}

async fn check(bench: &Bench, file: &str, commands: &str, ids: &BTreeMap<&str, String>) {
    let session = bench.session(commands, ids).await;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/printed").join(file);
    expect_file![path].assert_eq(&session);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_program_prints_is_as_it_was_published() {
    let bench = Bench::new().await;
    let none = BTreeMap::new();
    check(
        &bench,
        "machines.txt",
        "machine list
         machine list #narrow
         machine list --output wide
         machine list --output csv
         machine list --output name
         machine show web-1
         machine show m-0001
         machine timeline web-1
         --dry-run machine rename web-1 www
         machine rename web-1 www
         machine rename www web-1
         rack list
         agent list
         image list --output name
         machine adopt m-0001
         machine deploy m-0001 --image debian-12
         machine list",
        &none,
    )
    .await;
    check(
        &bench,
        "errors.txt",
        "machine show web-2
         machine adopt web-1
         machine deploy web-1 --image debian-13
         machine release web-1
         machine lst
         machine list --output xml
         rack create lab --node 10.77.0.1/24 --delegated 10.77.0.100-10.77.0.199
         rack create r2 --node 10.78.0.1/24 --delegated 10.79.0.100-10.79.0.199
         pool show nowhere
         ip claim nowhere
         ip release 198.51.100.17
         --controller https://127.0.0.1:1 machine list",
        &none,
    )
    .await;
    check(
        &bench,
        "addresses.txt",
        "aggregate create 198.51.100.0/22 --private
         aggregate list
         pool list
         pool create public-4 --kind private --prefix 198.51.100.0/24 --quarantine 10080
         --dry-run ip claim public-4 --machine web-1
         ip claim public-4 --machine web-1
         ip claim public-4 --address 198.51.100.17 --name vpn --purpose 'customer VPN'
         ip claim public-4 --address 198.51.100.17 --name other
         ip list
         ip list #narrow
         ip list --output csv
         ip who 198.51.100.17
         ip who 198.51.100.18
         ip announce 198.51.100.17 --machine web-1
         ip announce 198.51.100.17 --machine db-1
         ip announce 198.51.100.0 --machine db-1
         ip withdraw 198.51.100.17 --machine db-1
         ip announcements
         ip announcements --address 198.51.100.17
         ip announcements --address 198.51.100.18
         ip grant 198.51.100.17 --role operator --may announce
         ip revoke 198.51.100.17 --everyone
         ip revoke 198.51.100.17 --everyone
         pool grant public-4
         ip revoke 198.51.100.17
         ip blocks 198.51.100.17
         ip release 198.51.100.17
         ip who 198.51.100.17
         ip claim public-4 --address 198.51.100.17 --name other
         pool list
         pool show public-4
         pool list --output yaml
         vrf list",
        &none,
    )
    .await;
    check(
        &bench,
        "people.txt",
        "token list
         organisation create acme
         project create shop --organisation acme
         project list
         person create ada --email ada@example.net
         person list
         role grant viewer ada --everything
         role show --person ada
         role list
         site list
         site delete default",
        &none,
    )
    .await;
    let run = bench.operator.post("/v1/machines/web-1/power", json!({"action": "cycle"})).await.unwrap();
    let run = run["id"].as_str().unwrap().to_owned();
    wait::until("both runs wait for what does not come", PATIENCE, async || {
        let runs = bench.operator.get("/v1/runs").await.map_err(|error| format!("{error:#}"))?;
        let waiting: Vec<_> = runs["items"].as_array().unwrap().iter().map(|run| &run["waiting_for"]).collect();
        if waiting == ["agent", "image stream"] { Ok(()) } else { Err(runs.to_string()) }
    })
    .await;
    let ids = BTreeMap::from([("run", run.clone())]);
    check(
        &bench,
        "runs.txt",
        "run list
         run list --output json
         run show <run>
         machine list
         machine power web-1 cycle
         run retry <run>
         run cancel <run>",
        &ids,
    )
    .await;
    bench.end().await;
}

#[test]
fn what_differs_each_time_is_replaced_and_nothing_else() {
    let (id, other) = ("0193a1b2-1111-7000-8000-00000000abcd", "0193a1b2-1111-7000-8000-00000000abce");
    let text = format!("{id} web-1 {other}, {id}: 2026-11-29T23:57:54.123456Z until 2026-11-29T23:57:54Z 10.77.0.1");
    assert_eq!(
        Redacted::default().text(&text),
        "00000000-0000-0000-0000-000000000001 web-1 00000000-0000-0000-0000-000000000002, \
         00000000-0000-0000-0000-000000000001: 2026-01-02T03:04:05.6Z until 2026-01-02T03:04:05Z 10.77.0.1"
    );
}
