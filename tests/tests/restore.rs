//! Yesterday's database is restored beside a rack that went on: a real controller and a real
//! agent over loopback, with a power driver that only remembers.

#![expect(clippy::unwrap_used, reason = "the lint does not take helpers in here for tests")]

use std::{
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use jiff::Timestamp;
use rackhand_agent::{
    agent,
    power::{Answer, Power, Target},
    uplink,
};
use rackhand_common::{
    event::{Event, What},
    id::MachineId,
    intent::{Boot, Intent},
    machine::{Content, Cpu, Disk, Firmware, Inventory, Mac, Nic, Power as State, System},
    pki::install_crypto,
};
use rackhand_controller::{
    backup,
    controller::{self, Config, File},
};
use rackhand_tests::{operator, wait::until};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Switches nothing and remembers what was asked.
#[derive(Default)]
struct Memory(Mutex<Vec<(MachineId, String)>>);

impl Memory {
    fn note(&self, machine: &Target, what: &str) {
        self.0.lock().unwrap().push((machine.id, what.to_owned()));
    }
}

impl Power for Memory {
    fn status<'a>(&'a self, _: &'a Target) -> Answer<'a, State> {
        Box::pin(async { Ok(State::On) })
    }

    fn set<'a>(&'a self, machine: &'a Target, wanted: State) -> Answer<'a, ()> {
        self.note(machine, &format!("{wanted:?}"));
        Box::pin(async { Ok(()) })
    }

    fn network_boot_once<'a>(&'a self, machine: &'a Target) -> Answer<'a, ()> {
        self.note(machine, "network-boot-once");
        Box::pin(async { Ok(()) })
    }
}

/// A controller that runs until it is stopped.
struct Controller {
    config: Config,
    stop: CancellationToken,
    ended: tokio::task::JoinHandle<anyhow::Result<()>>,
    api: SocketAddr,
    http: reqwest::Client,
    token: String,
}

impl Controller {
    async fn start(config: &Config, token: &str) -> Self {
        let stop = CancellationToken::new();
        let running = controller::start(config.clone(), controller::Seams::default(), stop.clone()).await.unwrap();
        let ca = std::fs::read(config.pki().join("ca.pem")).unwrap();
        let roots = reqwest::Certificate::from_pem_bundle(&ca).unwrap();
        let http = reqwest::Client::builder().tls_certs_only(roots).build().unwrap();
        // Found again at the same ports after a restart.
        let config = Config { api: running.api, agents: running.agents, ..config.clone() };
        let api = running.api;
        Self { config, stop, ended: tokio::spawn(running.ended()), api, http, token: token.to_owned() }
    }

    async fn stop(self) -> Config {
        self.stop.cancel();
        self.ended.await.unwrap().unwrap();
        self.config
    }

    async fn ask(&self, request: reqwest::RequestBuilder) -> (u16, Value) {
        let response = request.bearer_auth(&self.token).send().await.unwrap();
        let status = response.status().as_u16();
        let body = response.bytes().await.unwrap();
        (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    async fn get(&self, path: &str) -> Value {
        let (status, body) = self.ask(self.http.get(format!("https://{}{path}", self.api))).await;
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        self.ask(self.http.post(format!("https://{}{path}", self.api)).json(&body)).await
    }

    async fn machine(&self, id: MachineId) -> Value {
        self.get(&format!("/v1/machines/{id}")).await
    }
}

async fn wait<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    until(what, PATIENCE, async || look().await.ok_or_else(|| "nothing yet".to_owned())).await
}

async fn start_agent(dir: &Path, power: &Arc<Memory>, stop: &CancellationToken) -> agent::Running {
    let config = agent_config(dir);
    let seams = agent::Seams { power: Some(power.clone()), ..agent::Seams::default() };
    agent::start(&config, seams, stop.clone()).await.unwrap()
}

fn agent_config(dir: &Path) -> agent::Config {
    let file = dir.join("agent.toml");
    let text =
        format!("state = {:?}\nsocket = {:?}\nmetrics = \"127.0.0.1:0\"\n", dir.join("agent"), dir.join("agent.sock"));
    std::fs::write(&file, text).unwrap();
    agent::Config::load(&file).unwrap()
}

fn connected(id: MachineId, number: u8) -> Event {
    let mac = Mac([2, 0, 0, 0, 0, number]);
    let disk = Disk {
        name: "vda".into(),
        model: String::new(),
        serial: format!("d{number}"),
        wwn: None,
        size: 8 << 30,
        sector: 512,
        rotational: false,
        content: Content::Blank,
    };
    let inventory = Inventory {
        firmware: Firmware::Bios,
        system: System::default(),
        cpu: Cpu::default(),
        memory: 1 << 30,
        nics: vec![Nic { name: "eth0".into(), mac, driver: "virtio_net".into(), link: true }],
        disks: vec![disk],
    };
    let what = What::Connected { mac, address: [10, 77, 0, 100 + number].into(), inventory };
    Event { at: Timestamp::now(), machine: Some(id), what }
}

fn on_disk(agent: &agent::Running) -> Option<Arc<Intent>> {
    agent.intent.subscribe().borrow().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn yesterdays_database_erases_nothing_and_gives_no_address_twice() {
    install_crypto();
    let dir = tempfile::tempdir().unwrap();
    let file = File {
        data: Some(dir.path().join("data")),
        names: vec!["127.0.0.1".into()],
        api: controller::ApiFile { listen: Some("127.0.0.1:0".parse().unwrap()), ..Default::default() },
        agents: controller::AgentsFile { listen: Some("127.0.0.1:0".parse().unwrap()), address: None },
        ..File::default()
    };
    let config = Config::try_from(file).unwrap();
    let (token, _) = operator::init(&config, controller::Seams::default()).await.unwrap();

    // A rack with two machines, both ours.
    let controller = Controller::start(&config, &token).await;
    let network = json!({"node": "10.77.0.1/24", "delegated": ["10.77.0.100", "10.77.0.199"]});
    let rack = json!({"name": "r1", "network": network});
    let (status, rack) = controller.post("/v1/racks", rack).await;
    assert_eq!(status, 201, "{rack}");
    let (status, code) = controller.post("/v1/racks/r1/enrolment-codes", json!({})).await;
    assert_eq!(status, 201, "{code}");
    let state = agent_config(dir.path()).state;
    agent::prepare(&state).unwrap();
    let at = controller.config.agents.to_string();
    uplink::enrol(&state, &at, None, code["code"].as_str().unwrap()).await.unwrap();
    let power = Arc::new(Memory::default());
    let stop_agent = CancellationToken::new();
    let agent = start_agent(dir.path(), &power, &stop_agent).await;
    let [tenants, free, newcomer] = [1, 2, 3].map(|_| MachineId::fresh());
    agent.spool.append(vec![connected(tenants, 1), connected(free, 2)]).await.unwrap();
    for machine in [tenants, free] {
        let path = format!("/v1/machines/{machine}/adopt");
        wait("the adoption", async || (controller.post(&path, json!({})).await.0 == 200).then_some(())).await;
    }
    std::fs::create_dir_all(&config.images.import).unwrap();
    std::fs::write(config.images.import.join("system.raw"), vec![7; 1 << 20]).unwrap();
    let image = json!({"name": "system", "file": "system.raw", "firmware": ["bios"]});
    let (status, said) = controller.post("/v1/images", image).await;
    assert_eq!(status, 202, "{said}");
    wait("the import", async || (controller.get("/v1/images/system").await["state"] == "ready").then_some(())).await;

    let file = dir.path().join("yesterday");
    backup::backup(&controller.config, &file, Timestamp::now()).await.unwrap();

    // Today one machine is being given to a tenant, and another one comes.
    let deploy = json!({"image": "system"});
    let (status, run) = controller.post(&format!("/v1/machines/{tenants}/deploy"), deploy.clone()).await;
    assert_eq!(status, 202, "{run}");
    agent.spool.append(vec![connected(newcomer, 3)]).await.unwrap();
    let before = wait("the agent's intent", async || {
        on_disk(&agent).filter(|intent| {
            intent.machines.len() == 3
                && intent.machines.iter().any(|machine| machine.id == tenants && machine.order.is_some())
        })
    })
    .await;
    let connection = agent.ledger.connection().await.unwrap();
    stop_agent.cancel();
    agent.wait().await.unwrap();
    let config = controller.stop().await;

    backup::restore(&config, &file, true, Timestamp::now()).await.unwrap();
    power.0.lock().unwrap().clear();

    // The agent has not reported: nothing can be done, and it is said why.
    let controller = Controller::start(&config, &token).await;
    for (path, body) in [
        (format!("/v1/machines/{free}/deploy"), deploy.clone()),
        (format!("/v1/machines/{tenants}/deploy"), deploy.clone()),
        (format!("/v1/machines/{free}/power"), json!({"action": "cycle"})),
    ] {
        let (status, problem) = controller.post(&path, body).await;
        assert_eq!(status, 409, "{path}: {problem}");
        assert!(problem["detail"].as_str().unwrap().contains("has not reported since"), "{problem}");
    }

    // It is accepted again, under a higher number, and told a higher revision.
    let stop_agent = CancellationToken::new();
    let agent = start_agent(dir.path(), &power, &stop_agent).await;
    let after =
        wait("a newer intent", async || on_disk(&agent).filter(|intent| intent.revision > before.revision)).await;
    assert!(agent.ledger.connection().await.unwrap() > connection);
    let told = |intent: &Intent, id| intent.machines.iter().find(|machine| machine.id == id).unwrap().clone();
    for id in [tenants, free, newcomer] {
        assert!(told(&after, id).epoch > told(&before, id).epoch);
        assert_eq!(told(&after, id).address, told(&before, id).address);
        assert_eq!(told(&after, id).macs, told(&before, id).macs);
        assert_eq!(told(&after, id).order, None);
    }

    // The tenant's machine and the one nobody knew are out of reach, the other is not.
    for (id, lifecycle) in [(tenants, "quarantined"), (newcomer, "quarantined"), (free, "ready")] {
        let machine = controller.machine(id).await;
        assert_eq!(machine["lifecycle"], lifecycle, "{machine}");
        assert_eq!(machine["alert"].is_string(), lifecycle == "quarantined", "{machine}");
    }
    let (status, problem) = controller.post(&format!("/v1/machines/{tenants}/deploy"), deploy.clone()).await;
    assert_eq!(status, 409, "{problem}");
    let (status, run) = controller.post(&format!("/v1/machines/{free}/deploy"), deploy).await;
    assert_eq!(status, 202, "{run}");
    wait("the deploy's first command", async || {
        power.0.lock().unwrap().iter().any(|(machine, _)| *machine == free).then_some(())
    })
    .await;
    let switched = power.0.lock().unwrap().clone();
    assert!(switched.iter().all(|(machine, _)| *machine == free), "{switched:?}");
    assert_eq!(told(&on_disk(&agent).unwrap(), tenants).boot, Boot::Installer);

    stop_agent.cancel();
    agent.wait().await.unwrap();
    controller.stop().await;
}
