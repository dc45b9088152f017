//! Events told to another program, which verifies them by its own means.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use rackhand_common::id::MachineId;
use rackhand_controller::webhooks;
use rackhand_tests::{Model, VirtualRack, operator::PATIENCE, rack::Service, wait};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpListener,
};

/// Thirty-two zero bytes.
const SECRET: &str = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

/// A message as it came.
#[derive(Clone, Debug)]
struct Message {
    id: String,
    at: String,
    signature: String,
    body: String,
}

/// A program that is told, and refuses while it is told to.
#[derive(Clone, Debug, Default)]
struct Pager {
    had: Arc<Mutex<Vec<Message>>>,
    refuses: Arc<AtomicBool>,
}

impl Pager {
    /// Answers on a port of its own.
    async fn start() -> (Self, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (pager, url) = (Self::default(), format!("http://{}/rackhand", listener.local_addr().unwrap()));
        let answering = pager.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let pager = answering.clone();
                tokio::spawn(async move { pager.answer(stream).await });
            }
        });
        (pager, url)
    }

    async fn answer(&self, stream: tokio::net::TcpStream) {
        let mut stream = BufReader::new(stream);
        loop {
            let (mut line, mut headers) = (String::new(), std::collections::BTreeMap::new());
            if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
                return;
            }
            assert_eq!(line.trim_end(), "POST /rackhand HTTP/1.1");
            loop {
                line.clear();
                stream.read_line(&mut line).await.unwrap();
                let Some((name, value)) = line.trim_end().split_once(": ") else { break };
                headers.insert(name.to_ascii_lowercase(), value.to_owned());
            }
            let mut body = vec![0; headers["content-length"].parse().unwrap()];
            stream.read_exact(&mut body).await.unwrap();
            let status = if self.refuses.load(Ordering::SeqCst) {
                "503 Service Unavailable"
            } else {
                let header = |name: &str| headers[name].clone();
                self.had.lock().unwrap().push(Message {
                    id: header("webhook-id"),
                    at: header("webhook-timestamp"),
                    signature: header("webhook-signature"),
                    body: String::from_utf8(body).unwrap(),
                });
                "204 No Content"
            };
            stream.write_all(format!("HTTP/1.1 {status}\r\n\r\n").as_bytes()).await.unwrap();
        }
    }

    /// The texts of what it was told, in order.
    fn texts(&self) -> Vec<String> {
        let had = self.had.lock().unwrap();
        had.iter()
            .map(|message| serde_json::from_str::<Value>(&message.body).unwrap()["data"]["text"].clone())
            .map(|text| text.as_str().unwrap().to_owned())
            .collect()
    }

    async fn is_told(&self, words: &str) {
        let told = async || {
            let texts = self.texts();
            if texts.iter().any(|text| text.contains(words)) { Ok(()) } else { Err(format!("{texts:?}")) }
        };
        wait::until(&format!("the pager is told {words:?}"), PATIENCE, told).await;
    }
}

/// What OpenSSL makes of a message under [`SECRET`].
fn signed_by_openssl(message: &Message) -> String {
    let key = format!("hexkey:{}", "00".repeat(32));
    let mut openssl = Command::new("sh");
    openssl.args(["-c", "openssl dgst -sha256 -mac HMAC -macopt \"$0\" -binary | openssl base64 -A", &key]);
    let mut child = openssl.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    write!(child.stdin.take().unwrap(), "{}.{}.{}", message.id, message.at, message.body).unwrap();
    format!("v1,{}", String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pager_is_told_of_what_happens_once_it_answers_again_and_across_restarts() {
    let mut rack = VirtualRack::new().await;
    let machine = rack.machine(Model::default());
    let row = rack.ready(&machine).await;
    let id: MachineId = row["id"].as_str().unwrap().parse().unwrap();
    let (pager, url) = Pager::start().await;
    let secret = rack.path("pager.secret");
    fs::write(&secret, SECRET).unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let kinds = Some(["held".to_owned(), "resumed".to_owned()].to_vec());
    let file = webhooks::File { name: "pager".into(), url, secret_file: secret, kinds, ca: None };
    let configs = webhooks::Config::all(vec![file]).unwrap();
    let configure = |rack: &VirtualRack| rack.reload_controller(|config| config.webhooks = configs.clone()).unwrap();
    assert!(configure(&rack).contains("webhooks"));

    let hold = async |rack: &VirtualRack, reason: &str| {
        let path = format!("/v1/machines/{id}");
        rack.operator.ask(Method::POST, &format!("{path}/maintain"), Some(json!({"reason": reason}))).await.unwrap();
        rack.operator.ask(Method::POST, &format!("{path}/resume"), Some(json!({}))).await.unwrap();
    };
    // What was before it was begun is not told: it is begun before the first of these, or between them.
    let begun = async || {
        hold(&rack, "begun").await;
        if pager.texts().is_empty() { Err("nothing".to_owned()) } else { Ok(()) }
    };
    wait::until("the pager is begun", PATIENCE, begun).await;
    hold(&rack, "first").await;
    pager.is_told("first").await;
    let message = pager.had.lock().unwrap()[0].clone();
    assert_eq!(message.signature, signed_by_openssl(&message));
    let body: Value = serde_json::from_str(&message.body).unwrap();
    assert_eq!(body["data"]["machine"], json!(id), "{body}");
    assert_eq!(body["type"], body["data"]["kind"], "{body}");
    assert_eq!(message.id, format!("event-{}", body["data"]["id"]));

    pager.refuses.store(true, Ordering::SeqCst);
    hold(&rack, "second").await;
    rack.restart(Service::Controller).await;
    hold(&rack, "third").await;
    pager.refuses.store(false, Ordering::SeqCst);
    configure(&rack);
    pager.is_told("third").await;
    let texts = pager.texts();
    let place = |words: &str| texts.iter().position(|text| text.contains(words)).unwrap();
    assert!(place("first") < place("second") && place("second") < place("third"), "{texts:?}");
    assert!(texts.iter().all(|text| text.contains("maintenance") || text.contains("in service again")), "{texts:?}");
    rack.stop().await.unwrap();
}
