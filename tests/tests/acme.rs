//! The controller's certificate from an authority, by ACME: obtained from Pebble, kept over a
//! restart, and shown to operators alone.

#![expect(clippy::unwrap_used, reason = "the lint does not take helpers in here for tests")]

use std::{
    fs,
    net::{SocketAddr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use rackhand_common::pki::install_crypto;
use rackhand_controller::controller::{self, Config, File, Running, Seams};
use rackhand_tests::{
    operator::{self, Operator},
    wait,
};
use rcgen::{CertificateParams, KeyPair};
use serde_json::json;
use tokio_util::sync::CancellationToken;

const NAME: &str = "rackhand.example.net";

/// Longer than an authority takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// An authority, and the name server it asks.
struct Authority {
    children: Vec<Child>,
    directory: String,
    roots: String,
    ca: PathBuf,
}

impl Authority {
    /// One that looks at names on this port.
    fn start(dir: &Path, port: u16) -> Self {
        let key = KeyPair::generate().unwrap();
        let own = CertificateParams::new(vec!["127.0.0.1".into(), "localhost".into()]).unwrap();
        let ca = dir.join("authority.pem");
        fs::write(&ca, own.self_signed(&key).unwrap().pem()).unwrap();
        fs::write(dir.join("authority.key"), key.serialize_pem()).unwrap();
        let (listen, management, dns) = (free_tcp(), free_tcp(), free_udp());
        let config = json!({"pebble": {
            "listenAddress": listen, "managementListenAddress": management,
            "certificate": ca, "privateKey": dir.join("authority.key"), "httpPort": 1, "tlsPort": port,
        }});
        let file = dir.join("pebble.json");
        fs::write(&file, config.to_string()).unwrap();
        let dns = dns.to_string();
        let names = run(
            "pebble-challtestsrv",
            &["-dns01", &dns, "-http01", "", "-https01", "", "-tlsalpn01", "", "-defaultIPv6", ""],
            &["-management", &free_tcp().to_string()],
        );
        let pebble = run("pebble", &["-config", file.to_str().unwrap(), "-dnsserver", &dns], &[]);
        Self {
            children: vec![names, pebble],
            directory: format!("https://{listen}/dir"),
            roots: format!("https://{management}/roots/0"),
            ca,
        }
    }

    /// The root of what it issues, in a file.
    async fn root(&self, dir: &Path) -> PathBuf {
        let ca = reqwest::Certificate::from_pem(&fs::read(&self.ca).unwrap()).unwrap();
        let http = reqwest::Client::builder().no_proxy().tls_certs_only([ca]).build().unwrap();
        let root = wait::until("the authority answers", PATIENCE, async || {
            let answer = http.get(&self.roots).send().await.map_err(|error| format!("{error:?}"))?;
            answer.text().await.map_err(|error| format!("{error:?}"))
        });
        let file = dir.join("issued.pem");
        fs::write(&file, root.await).unwrap();
        file
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn run(program: &str, one: &[&str], other: &[&str]) -> Child {
    let mut command = Command::new(program);
    command.args(one).args(other).env("PEBBLE_VA_NOSLEEP", "1").stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap_or_else(|error| panic!("{program} does not start ({error}): install the package pebble"))
}

fn free_tcp() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn free_udp() -> SocketAddr {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

async fn started(config: &Config) -> (Running, CancellationToken) {
    let shutdown = CancellationToken::new();
    let running = controller::start(config.clone(), Seams::default(), shutdown.clone()).await.unwrap();
    (running, shutdown)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_certifies_the_names_and_the_racks_do_not_notice() {
    install_crypto();
    let _ = tracing_subscriber::fmt().with_test_writer().try_init();
    let dir = tempfile::tempdir().unwrap();
    let api = free_tcp();
    let authority = Authority::start(dir.path(), api.port());
    let file: File = serde_json::from_value(json!({
        "data": dir.path().join("data"), "names": [NAME, "127.0.0.1"],
        "api": {"listen": api, "acme": {"directory": authority.directory, "ca": authority.ca}},
        "agents": {"listen": "127.0.0.1:0"},
    }))
    .unwrap();
    let config = Config::try_from(file).unwrap();
    let (token, ours) = operator::init(&config, Seams::default()).await.unwrap();
    let root = authority.root(dir.path()).await;
    let by_address = Operator::new(format!("https://{api}"), &ours, token).unwrap();
    let (running, shutdown) = started(&config).await;

    // With our own until there is another one.
    let by_name = async |root: &Path| by_address.under(NAME, api, root).unwrap().get("/v1/whoami").await;
    let issued = async || by_name(&root).await.map_err(|error| format!("{error:?}"));
    wait::until("a certificate is obtained", PATIENCE, issued).await;
    by_name(&ours).await.expect_err("this name is shown what the authority issued");
    by_address.get("/v1/whoami").await.expect("an address is shown our own");
    agent_is_shown_ours(api, &ours).await;
    shutdown.cancel();
    running.ended().await.unwrap();

    // What was obtained is kept: the authority is not there any more.
    drop(authority);
    let (running, shutdown) = started(&config).await;
    wait::until("the kept certificate is shown", PATIENCE, issued).await;
    shutdown.cancel();
    running.ended().await.unwrap();
}

/// Whoever offers what agents do is shown our own, also under a certified name.
async fn agent_is_shown_ours(api: SocketAddr, ours: &Path) {
    let mut roots = rustls::RootCertStore::empty();
    let text = fs::read(ours).unwrap();
    for root in <rustls_pki_types::CertificateDer as rustls_pki_types::pem::PemObject>::pem_slice_iter(&text) {
        roots.add(root.unwrap()).unwrap();
    }
    let mut tls = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    tls.alpn_protocols = vec![b"http/1.1".to_vec(), rackhand_common::wire::ALPN_OBJECTS.to_vec()];
    let socket = tokio::net::TcpStream::connect(api).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(tls));
    let stream = connector.connect(NAME.try_into().unwrap(), socket).await.expect("our own certificate");
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
}
