//! Boot as a whole, over loopback: scripts, files, the channel, and restarts of all of it.

#![expect(clippy::unwrap_used, reason = "the lint does not take helpers in here for tests")]

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rackhand_agent::{
    boot::{Config, File, Running, Seams, dhcp, start},
    spool,
};
use rackhand_common::{
    channel::{Admitted, Assignment, Drive, News, Present, Report, Task},
    event::{Event, What},
    id::{Epoch, ImageId, MachineId, RackId, RunId},
    image::{CHUNK, Chunk, Digest, Manifest, Settings, SignedManifest},
    intent::{Boot, Deploy, DiskRule, Host, Intent, MachineIntent, Network, Order, Rescue, Work},
    machine::{Cpu, Firmware, Inventory, Mac, System},
    pki,
    wire::{LocalRequest, LocalResponse, decode, frame, frame_len},
};
use rustls_pki_types::{PrivateKeyDer, pem::PemObject as _};
use serde::de::DeserializeOwned;
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpStream, UnixListener, UnixStream},
    sync::watch,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

const MAC: &str = "52:54:00:00:00:01";

/// A network on which nobody asks for an address.
#[derive(Debug)]
struct Silence;

impl dhcp::Link for Silence {
    fn receive(&self) -> BoxFuture<'_, io::Result<Vec<Vec<u8>>>> {
        Box::pin(std::future::pending())
    }

    fn send<'a>(&'a self, _: dhcp::Destination, _: &'a [u8]) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async { Ok(()) })
    }
}

/// A node with one machine, which is everything that comes from loopback.
struct Node {
    directory: TempDir,
    machine: MachineId,
    rack: RackId,
    /// HTTP's and the channel's, chosen at the first start: machines go on asking there.
    ports: OnceLock<(u16, u16)>,
}

/// A boot of this node.
struct Up {
    boot: Running,
    pin: pki::KeyPin,
    shutdown: CancellationToken,
}

impl Node {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("kernel"), vec![7; 786_437]).unwrap();
        fs::write(directory.path().join("initramfs"), b"ram disk").unwrap();
        Self { directory, machine: MachineId::fresh(), rack: RackId::fresh(), ports: OnceLock::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    async fn start(&self) -> Up {
        pki::install_crypto();
        let (http, channel) = self.ports.get().copied().unwrap_or_default();
        let toml = format!(
            "state = {:?}\nsocket = {:?}\ninterface = \"lo\"\naddress = \"127.0.0.1\"\n\
             http = {http}\nchannel = {channel}\ntftp_port = 0\ninstaller = {{ kernel = {:?}, initramfs = {:?} }}\n",
            self.path("state"),
            self.path("agent.sock"),
            self.path("kernel"),
            self.path("initramfs"),
        );
        let config = Config::try_from(toml::from_str::<File>(&toml).unwrap()).unwrap();
        let seams = Seams { link: Some(Arc::new(Silence)), ..Seams::default() };
        let shutdown = CancellationToken::new();
        let boot = start(&config, seams, shutdown.clone()).await.unwrap();
        self.ports.get_or_init(|| (boot.http.port(), boot.channel.port()));
        let key = PrivateKeyDer::try_from(fs::read(self.path("state/boot.key")).unwrap()).unwrap();
        Up { boot, pin: pki::pin_of(&key).unwrap(), shutdown }
    }

    fn intent(&self, revision: u64, boot: Boot, order: Option<Order>) -> Intent {
        Intent {
            revision,
            rack: self.rack,
            name: "r1".into(),
            network: Network {
                node: "127.0.0.1/8".parse().unwrap(),
                gateway: None,
                dns: vec![],
                delegated: ("127.1.0.1".parse().unwrap(), "127.1.0.9".parse().unwrap()),
            },
            machines: vec![MachineIntent {
                id: self.machine,
                name: "m-1".into(),
                macs: vec![mac()],
                address: Ipv4Addr::LOCALHOST,
                epoch: Epoch(3),
                boot,
                order,
            }],
        }
    }
}

fn mac() -> Mac {
    MAC.parse().unwrap()
}

fn inventory() -> Inventory {
    Inventory {
        firmware: Firmware::Bios,
        system: System::default(),
        cpu: Cpu::default(),
        memory: 1 << 30,
        nics: vec![],
        disks: vec![],
    }
}

async fn stop(up: Up) {
    up.shutdown.cancel();
    up.boot.ended().await.unwrap();
}

/// The agent's side of the socket: gives the intent, the chunks it has, and takes events.
#[derive(Clone)]
struct Agent {
    intent: watch::Sender<Option<Intent>>,
    chunks: Arc<Vec<Vec<u8>>>,
    /// How often a chunk was asked for.
    asked: Arc<Mutex<usize>>,
    events: Arc<Mutex<Vec<Event>>>,
}

impl Agent {
    fn start(node: &Node, intent: Intent, chunks: Vec<Vec<u8>>) -> Self {
        let this = Self {
            intent: watch::Sender::new(Some(intent)),
            chunks: Arc::new(chunks),
            asked: Arc::default(),
            events: Arc::default(),
        };
        let listener = UnixListener::bind(node.path("agent.sock")).unwrap();
        let agent = this.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(agent.clone().answer(stream));
            }
        });
        this
    }

    async fn answer(self, mut stream: UnixStream) -> io::Result<()> {
        loop {
            let mut prefix = [0; 4];
            stream.read_exact(&mut prefix).await?;
            let mut body = vec![0; frame_len(prefix).unwrap()];
            stream.read_exact(&mut body).await?;
            let response = match decode(&body).unwrap() {
                LocalRequest::Intent { after } => {
                    let mut intent = self.intent.subscribe();
                    let newer = |intent: &Option<Intent>| intent.as_ref().is_some_and(|intent| intent.revision > after);
                    LocalResponse::Intent(intent.wait_for(newer).await.unwrap().clone())
                }
                LocalRequest::Events { first, events, .. } => {
                    let next = first + events.len() as u64;
                    self.events.lock().unwrap().extend(events);
                    LocalResponse::Next(next)
                }
                LocalRequest::Chunk(digest) => {
                    *self.asked.lock().unwrap() += 1;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    let found = self.chunks.iter().find(|chunk| Digest::of(chunk) == digest).cloned();
                    found.map_or(LocalResponse::NotFound("no such chunk".into()), LocalResponse::Chunk)
                }
                LocalRequest::Manifest(digest) if digest == listing(&self.chunks).digest() => {
                    let SignedManifest { manifest, signature } = listing(&self.chunks);
                    LocalResponse::Manifest { manifest, signature }
                }
                _ => LocalResponse::NotFound("not here".into()),
            };
            stream.write_all(&frame(&response)).await?;
        }
    }

    fn told(&self) -> Vec<String> {
        self.events.lock().unwrap().iter().map(|event| event.what.to_string()).collect()
    }

    async fn hears(&self, wanted: &str) {
        let heard = async {
            while !self.told().iter().any(|event| event.starts_with(wanted)) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let told = || format!("{wanted}: {:#?}", self.told());
        timeout(Duration::from_secs(10), heard).await.unwrap_or_else(|_| panic!("{}", told()));
    }
}

/// The manifest of an image of these chunks.
fn listing(chunks: &[Vec<u8>]) -> SignedManifest {
    let listed = |chunk: &Vec<u8>| Some(Chunk { digest: Digest::of(chunk), compressed: chunk.len() as u32 });
    let manifest = Manifest {
        image: ImageId(uuid::Uuid::nil()),
        name: "debian-12".into(),
        size: chunks.len() as u64 * CHUNK,
        sector: 512,
        firmware: vec![Firmware::Bios],
        settings: Settings::Cidata,
        sha256: String::new(),
        compression: String::new(),
        chunks: chunks.iter().map(listed).collect(),
    };
    SignedManifest { manifest: serde_json::to_string(&manifest).unwrap(), signature: String::new() }
}

/// Waits until boot's script for the machine says this.
async fn script_says(up: &Up, wanted: &str) -> String {
    let said = async {
        loop {
            let (status, _, script) = web(up, "GET", &format!("/boot.ipxe?mac={MAC}")).await;
            assert_eq!(status, StatusCode::OK);
            let script = String::from_utf8(script.to_vec()).unwrap();
            if script.contains(wanted) {
                return script;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(10), said).await.unwrap_or_else(|_| panic!("never said {wanted}"))
}

/// One request on a connection of its own.
async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    method: &str,
    path: &str,
    body: Vec<u8>,
) -> (StatusCode, Option<String>, Bytes) {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "boot")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body)))
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    let (status, length) = (response.status(), response.headers().get("content-length").cloned());
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, length.map(|length| length.to_str().unwrap().to_owned()), body)
}

async fn web(running: &Up, method: &str, path: &str) -> (StatusCode, Option<String>, Bytes) {
    exchange(TcpStream::connect(SocketAddr::from(running.boot.http)).await.unwrap(), method, path, vec![]).await
}

/// An installer: a key, and what it says on the channel.
struct Installer {
    key: Vec<u8>,
}

impl Installer {
    fn new() -> Self {
        Self { key: rcgen::KeyPair::generate().unwrap().serialize_pem().into_bytes() }
    }

    async fn ask(&self, running: &Up, method: &str, path: &str, body: &impl serde::Serialize) -> (StatusCode, Bytes) {
        let key = PrivateKeyDer::from_pem_slice(&self.key).unwrap();
        let tls = TlsConnector::from(Arc::new(pki::installer_client(running.pin, key).unwrap()));
        let tcp = TcpStream::connect(SocketAddr::from(running.boot.channel)).await.unwrap();
        let name = rustls_pki_types::ServerName::try_from("boot").unwrap();
        let stream = tls.connect(name, tcp).await.unwrap();
        let (status, _, body) = exchange(stream, method, path, serde_json::to_vec(body).unwrap()).await;
        (status, body)
    }

    async fn present(&self, running: &Up, ticket: &str) -> (StatusCode, Bytes) {
        let present = Present { ticket: ticket.to_owned(), mac: mac(), uuid: None };
        self.ask(running, "POST", "/v1/ticket", &present).await
    }

    async fn assignment(&self, running: &Up) -> Assignment {
        parsed(self.ask(running, "GET", "/v1/assignment", &()).await)
    }

    async fn report(&self, running: &Up, order: &Order, news: News) -> StatusCode {
        let report = Report { run: order.run, attempt: order.attempt, news };
        self.ask(running, "POST", "/v1/report", &report).await.0
    }
}

fn parsed<T: DeserializeOwned>((status, body): (StatusCode, Bytes)) -> T {
    assert_eq!(status, StatusCode::OK, "{body:?}");
    serde_json::from_slice(&body).unwrap()
}

/// The ticket in a fresh script.
async fn ticket(up: &Up) -> String {
    let script = script_says(up, "rackhand.ticket=").await;
    let (_, rest) = script.split_once("rackhand.ticket=").unwrap();
    rest.split_whitespace().next().unwrap().to_owned()
}

fn deploy(host: &str) -> Order {
    let host = Host { name: host.into(), ssh_keys: vec!["ssh-ed25519 AAAA me".into()], user_data: None };
    let deploy = Deploy { manifest: Digest([1; 32]), disk: DiskRule::Smallest, host };
    Order { run: RunId::fresh(), attempt: 1, disks: vec!["d".into()], work: Work::Deploy(deploy) }
}

#[tokio::test]
async fn a_script_is_for_the_address_that_asks_whatever_card_it_names() {
    let node = Node::new();
    let up = node.start().await;
    script_says(&up, "has not been told about its rack").await;
    let agent = Agent::start(&node, node.intent(1, Boot::Installer, None), vec![]);
    script_says(&up, "rackhand.mac=52:54:00:00:00:01 rackhand.address=127.0.0.1/8").await;
    let (_, _, script) = web(&up, "GET", "/boot.ipxe?mac=52:54:00:00:00:02").await;
    let script = String::from_utf8(script.to_vec()).unwrap();
    assert!(script.contains("cannot boot this machine") && !script.contains("ticket"), "{script}");
    agent.intent.send_replace(Some(node.intent(2, Boot::Disk, None)));
    script_says(&up, "m-1 starts from its own disk").await;
    stop(up).await;
}

#[tokio::test]
async fn kernel_and_ram_disk_are_served_whole_with_their_length() {
    let node = Node::new();
    let up = node.start().await;
    let (status, length, body) = web(&up, "HEAD", "/kernel").await;
    assert_eq!((status, length.as_deref(), body.len()), (StatusCode::OK, Some("786437"), 0));
    let (_, length, body) = web(&up, "GET", "/kernel").await;
    assert_eq!((length.as_deref(), body.len()), (Some("786437"), 786_437));
    assert_eq!(web(&up, "GET", "/initramfs").await.2, "ram disk");
    assert_eq!(web(&up, "GET", "/etc/passwd").await.0, StatusCode::NOT_FOUND);
    stop(up).await;
}

#[tokio::test]
async fn many_machines_that_want_a_chunk_cause_one_fetch_and_a_restart_none() {
    let node = Node::new();
    let chunk = b"compressed".to_vec();
    let mut order = deploy("web-1");
    if let Work::Deploy(deploy) = &mut order.work {
        deploy.manifest = listing(std::slice::from_ref(&chunk)).digest();
    }
    let agent = Agent::start(&node, node.intent(1, Boot::Installer, Some(order)), vec![chunk.clone()]);
    let path = format!("/chunks/{}", Digest::of(&chunk));
    let up = node.start().await;
    let asked = (0..8).map(async |_| {
        loop {
            let (status, _, body) = web(&up, "GET", &path).await;
            // Until the order has come, nobody knows of it.
            if status != StatusCode::SERVICE_UNAVAILABLE {
                break (status, body);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let answers = futures_util::future::join_all(asked).await;
    assert!(answers.iter().all(|(status, body)| *status == StatusCode::OK && *body == chunk), "{answers:?}");
    stop(up).await;
    let up = node.start().await;
    assert_eq!(web(&up, "GET", &path).await.2, chunk);
    assert_eq!(*agent.asked.lock().unwrap(), 1);
    let absent = format!("/chunks/{}", Digest([3; 32]));
    assert_eq!(web(&up, "GET", &absent).await.0, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(*agent.asked.lock().unwrap(), 1, "what nobody ordered is fetched from nobody");
    stop(up).await;
}

#[tokio::test]
async fn a_deploy_goes_on_across_restarts_of_boot() {
    let node = Node::new();
    let (order, installer) = (deploy("web-1"), Installer::new());
    let agent = Agent::start(&node, node.intent(1, Boot::Installer, Some(order.clone())), vec![]);

    let up = node.start().await;
    let (pin, ticket) = (up.pin, ticket(&up).await);
    stop(up).await;

    // The script was fetched from the boot before.
    let up = node.start().await;
    assert_eq!(up.pin, pin);
    assert_eq!(installer.ask(&up, "GET", "/v1/assignment", &()).await.0, StatusCode::UNAUTHORIZED);
    let admitted: Admitted = parsed(installer.present(&up, &ticket).await);
    assert_eq!(admitted.machine, node.machine);
    assert_eq!(Installer::new().present(&up, &ticket).await.0, StatusCode::FORBIDDEN);
    assert_eq!(installer.ask(&up, "PUT", "/v1/inventory", &inventory()).await.0, StatusCode::NO_CONTENT);
    let first = installer.assignment(&up).await;
    stop(up).await;

    // The session outlives it too, and the same work has the same number.
    let up = node.start().await;
    assert_eq!(installer.assignment(&up).await, first);
    let Task::Deploy(task) = first.task else { panic!("{first:?}") };
    assert_eq!((task.warrant.run, task.warrant.machine, task.warrant.epoch), (order.run, node.machine, Epoch(3)));
    assert_eq!(installer.report(&up, &order, News::Started).await, StatusCode::NO_CONTENT);
    assert_eq!(installer.report(&up, &order, News::Done { disks: vec![] }).await, StatusCode::NO_CONTENT);
    stop(up).await;

    // Done is not forgotten: no second write, and a restart once the intent says so.
    let up = node.start().await;
    assert_eq!(installer.assignment(&up).await.task, Task::Wait);
    agent.intent.send_replace(Some(node.intent(2, Boot::Disk, None)));
    script_says(&up, "own disk").await;
    assert_eq!(installer.assignment(&up).await.task, Task::Reboot);

    // The installed system calls home where its settings say, and is told of once.
    let (_, path) = task.files["vendor-data"].split_once("/phone-home/").unwrap();
    let path = format!("/phone-home/{}", path.split('"').next().unwrap());
    assert_eq!(web(&up, "POST", &path).await.0, StatusCode::OK);
    assert_eq!(web(&up, "POST", &path).await.0, StatusCode::OK);
    assert_eq!(web(&up, "POST", "/phone-home/x.y.z").await.0, StatusCode::NOT_FOUND);
    for wanted in ["ticket refused", "installer connected from", "order done", "restarting", "installed system called"]
    {
        agent.hears(wanted).await;
    }
    stop(up).await;
    let home = What::PhonedHome { run: order.run };
    assert_eq!(agent.events.lock().unwrap().iter().filter(|event| event.what == home).count(), 1);
}

#[tokio::test]
async fn a_rescue_stands_across_restarts_of_boot_and_tells_sound_fingerprints_only() {
    let node = Node::new();
    let rescue = Rescue { ssh_keys: vec!["ssh-ed25519 AAAA me".into()], mainboard: None };
    let order = Order { run: RunId::fresh(), attempt: 1, disks: vec![], work: Work::Rescue(rescue) };
    let installer = Installer::new();
    let agent = Agent::start(&node, node.intent(1, Boot::Installer, Some(order.clone())), vec![]);
    let up = node.start().await;
    let ticket = ticket(&up).await;
    let _: Admitted = parsed(installer.present(&up, &ticket).await);
    assert_eq!(installer.ask(&up, "PUT", "/v1/inventory", &inventory()).await.0, StatusCode::NO_CONTENT);
    let first = installer.assignment(&up).await;
    let Task::Rescue(task) = &first.task else { panic!("{first:?}") };
    assert_eq!(
        (task.warrant.run, task.ssh_keys.as_slice()),
        (order.run, ["ssh-ed25519 AAAA me".to_owned()].as_slice())
    );
    let news = |host_key: &str, port| News::Rescue { port, host_key: host_key.into() };
    let good = format!("SHA256:{}", "a".repeat(43));
    for (host_key, port) in [("SHA256:short", 22), (good.as_str(), 0), ("SHA256:\nroot", 22)] {
        assert_eq!(installer.report(&up, &order, news(host_key, port)).await, StatusCode::CONFLICT);
    }
    let other = Order { run: RunId::fresh(), ..order.clone() };
    assert_eq!(installer.report(&up, &other, news(&good, 22)).await, StatusCode::CONFLICT);
    assert_eq!(installer.report(&up, &order, news(&good, 22)).await, StatusCode::NO_CONTENT);
    stop(up).await;

    // Told of, it stands still: the same work has the same number.
    let up = node.start().await;
    assert_eq!(installer.assignment(&up).await, first);
    agent.hears("rescue system takes logins: root@").await;
    agent.intent.send_replace(Some(node.intent(2, Boot::Disk, None)));
    script_says(&up, "own disk").await;
    assert_eq!(installer.assignment(&up).await.task, Task::Reboot);
    stop(up).await;
}

#[tokio::test]
async fn a_config_drive_is_had_in_each_format_by_whom_it_is_for_and_while_it_is_ordered() {
    let node = Node::new();
    let agent = Agent::start(&node, node.intent(1, Boot::Installer, Some(deploy("web-1"))), vec![]);
    let up = node.start().await;
    let (installer, ticket) = (Installer::new(), ticket(&up).await);
    assert_eq!(installer.ask(&up, "GET", "/v1/drives/config-2", &()).await.0, StatusCode::UNAUTHORIZED);
    let _: Admitted = parsed(installer.present(&up, &ticket).await);

    let cidata: Drive = parsed(installer.ask(&up, "GET", "/v1/drives/cidata", &()).await);
    let Task::Deploy(task) = installer.assignment(&up).await.task else { panic!("no deploy") };
    assert_eq!(cidata, task.files);
    let home = |drive: &Drive, name: &str| {
        let (_, token) = drive[name].split_once("/phone-home/").or(drive[name].split_once("phone-home%2F")).unwrap();
        token.split(['"', '%', '\\']).next().unwrap().to_owned()
    };
    for (settings, name) in [("config-2", "vendor_data.json"), ("ignition", "user_data")] {
        let drive: Drive = parsed(installer.ask(&up, "GET", &format!("/v1/drives/{settings}"), &()).await);
        let name = format!("openstack/latest/{name}");
        assert_eq!(home(&drive, &name), home(&cidata, "vendor-data"), "{settings}");
        assert!(drive["openstack/latest/meta_data.json"].contains("\"hostname\":\"web-1\""), "{drive:?}");
    }
    assert_eq!(parsed::<Drive>(installer.ask(&up, "GET", "/v1/drives/none", &()).await), Drive::new());
    assert_eq!(installer.ask(&up, "GET", "/v1/drives/floppy", &()).await.0, StatusCode::BAD_REQUEST);

    agent.intent.send_replace(Some(node.intent(2, Boot::Disk, None)));
    script_says(&up, "own disk").await;
    assert_eq!(installer.ask(&up, "GET", "/v1/drives/config-2", &()).await.0, StatusCode::NOT_FOUND);
    stop(up).await;
}

#[tokio::test]
async fn known_machines_boot_with_the_agent_gone_and_boot_restarted() {
    let node = Node::new();
    let agent = Agent::start(&node, node.intent(1, Boot::Installer, None), vec![]);
    let up = node.start().await;
    ticket(&up).await;
    stop(up).await;
    drop(agent);
    fs::remove_file(node.path("agent.sock")).unwrap();
    let up = node.start().await;
    let installer = Installer::new();
    let _: Admitted = parsed(installer.present(&up, &ticket(&up).await).await);
    stop(up).await;
}

#[tokio::test]
async fn of_many_keys_that_race_with_one_ticket_one_wins() {
    let node = Node::new();
    let _agent = Agent::start(&node, node.intent(1, Boot::Installer, None), vec![]);
    let up = node.start().await;
    let ticket = ticket(&up).await;
    let installers: Vec<_> = (0..8).map(|_| Installer::new()).collect();
    let answers = futures_util::future::join_all(installers.iter().map(|one| one.present(&up, &ticket))).await;
    assert_eq!(answers.iter().filter(|(status, _)| *status == StatusCode::OK).count(), 1);
    stop(up).await;
}

#[tokio::test]
async fn an_installer_that_waits_hears_of_its_order_at_once() {
    let node = Node::new();
    let agent = Agent::start(&node, node.intent(1, Boot::Installer, None), vec![]);
    let up = node.start().await;
    let installer = Installer::new();
    let _: Admitted = parsed(installer.present(&up, &ticket(&up).await).await);
    let waiting = installer.assignment(&up).await;
    assert_eq!(waiting.task, Task::Wait);
    let path = format!("/v1/assignment?after={}", waiting.serial);
    let held = installer.ask(&up, "GET", &path, &());
    let ordered = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        agent.intent.send_replace(Some(node.intent(2, Boot::Installer, Some(deploy("web-1")))));
    };
    let both = async { tokio::join!(held, ordered) };
    let (answer, ()) = timeout(Duration::from_secs(5), both).await.unwrap();
    assert!(matches!(parsed::<Assignment>(answer).task, Task::Deploy(_)));
    stop(up).await;
}

#[tokio::test]
async fn secrets_are_for_their_owner_only_and_one_boot_has_the_state() {
    let node = Node::new();
    let up = node.start().await;
    let mode = |name: &str| fs::metadata(node.path("state").join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(""), mode("boot.key"), mode("phone-home.key")), (0o700, 0o600, 0o600));
    assert!(spool::open_database(&node.path("state/boot.redb")).is_err());
    stop(up).await;
}
