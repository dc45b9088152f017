//! The operator: acts through the controller's HTTPS API with a token, as any client would.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::mpsc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use rackhand_common::machine::Mac;
use rackhand_controller::controller::{self, Config, Seams};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{console::Console, wait};

/// How long anything here may take. Nothing takes a tenth of it but on a machine that is busy
/// with other things.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Makes a controller's data directory; its first administrator's token, and the file of its
/// authority's certificates.
pub async fn init(config: &Config, seams: Seams) -> Result<(String, PathBuf)> {
    let (tell, told) = mpsc::channel();
    controller::init(config, seams, move |token, ca| Ok(tell.send((token.to_owned(), ca.to_owned()))?)).await?;
    told.recv().context("no token was told")
}

/// An operator with a token.
#[derive(Clone, Debug)]
pub struct Operator {
    http: reqwest::Client,
    url: String,
    token: String,
}

impl Operator {
    /// An operator of the controller at this place.
    pub fn new(url: String, ca: &Path, token: String) -> Result<Self> {
        let ca = reqwest::Certificate::from_pem_bundle(&std::fs::read(ca)?)?;
        let http = reqwest::Client::builder().no_proxy().tls_certs_only(ca).timeout(Duration::from_secs(20)).build()?;
        Ok(Self { http, url, token })
    }

    /// The same operator with connections of their own, to this name, which is at this address.
    pub fn under(&self, name: &str, at: SocketAddr, ca: &Path) -> Result<Self> {
        let ca = reqwest::Certificate::from_pem_bundle(&std::fs::read(ca)?)?;
        let http = reqwest::Client::builder().no_proxy().tls_certs_only(ca).timeout(Duration::from_secs(20));
        let http = http.resolve(name, at).build()?;
        Ok(Self { http, url: format!("https://{name}:{}", at.port()), token: self.token.clone() })
    }

    /// Where the controller is.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The token.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// One request; the answer's JSON, or the problem as the error.
    pub async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value> {
        let mut request = self.http.request(method, format!("{}{path}", self.url)).bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(&body);
        }
        answer(request).await
    }

    /// Reads.
    pub async fn get(&self, path: &str) -> Result<Value> {
        self.ask(Method::GET, path, None).await
    }

    /// Reads, and looks no further than that it was answered: how many bytes came. For measuring.
    pub async fn fetch(&self, path: &str) -> Result<usize> {
        let answer = self.http.get(format!("{}{path}", self.url)).bearer_auth(&self.token).send().await?;
        Ok(answer.error_for_status()?.bytes().await?.len())
    }

    /// What the controller counts, which anybody may ask.
    pub async fn metrics(&self) -> Result<String> {
        let answer = self.http.get(format!("{}/metrics", self.url)).send().await?;
        Ok(answer.error_for_status()?.text().await?)
    }

    /// Reads what is no JSON.
    pub async fn text(&self, path: &str) -> Result<String> {
        let answer = self.http.get(format!("{}{path}", self.url)).bearer_auth(&self.token).send().await?;
        let (status, text) = (answer.status(), answer.text().await?);
        anyhow::ensure!(status.is_success(), "{status}: {text}");
        Ok(text)
    }

    /// Opens the console of a machine, by its id.
    pub async fn console(&self, machine: &str) -> Result<Console> {
        let request = self.http.get(format!("{}/v1/machines/{machine}/console", self.url)).bearer_auth(&self.token);
        let request = request.header("connection", "upgrade").header("upgrade", "websocket");
        let answer = request
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
            .send()
            .await?;
        if answer.status() != reqwest::StatusCode::SWITCHING_PROTOCOLS {
            bail!("{}: {}", answer.status(), answer.text().await?);
        }
        Ok(Console::new(answer.upgrade().await?).await)
    }

    /// Acts.
    pub async fn post(&self, path: &str, body: Value) -> Result<Value> {
        self.ask(Method::POST, path, Some(body)).await
    }

    /// Sends an image's file and waits until it is imported.
    pub async fn import(&self, name: &str, file: Vec<u8>) -> Result<Value> {
        self.import_told(name, "cidata", file).await
    }

    /// The same for a system that is told its settings in this format.
    pub async fn import_told(&self, name: &str, settings: &str, file: Vec<u8>) -> Result<Value> {
        let path = format!("/v1/images/{name}");
        let request = self.http.put(format!("{}{path}?settings={settings}", self.url)).bearer_auth(&self.token);
        answer(request.header("content-type", "application/octet-stream").body(file)).await?;
        let image = wait::until("the image is imported", PATIENCE, async || {
            let image = self.get(&path).await.map_err(|error| format!("{error:#}"))?;
            if image["state"] == "importing" { Err(image.to_string()) } else { Ok(image) }
        })
        .await;
        if image["state"] != "ready" {
            bail!("the image was not imported: {image}");
        }
        Ok(image)
    }

    /// Imports firmware: its manifest, and its file.
    pub async fn firmware(&self, manifest: &str, file: &[u8]) -> Result<Value> {
        let made = self.post("/v1/firmware", json!({ "manifest": manifest })).await?;
        let path = format!("/v1/firmware/{}/file", made["name"].as_str().context("no name")?);
        let request = self.http.put(format!("{}{path}", self.url)).bearer_auth(&self.token);
        answer(request.header("content-type", "application/octet-stream").body(file.to_vec())).await
    }

    /// The machine with this card, once the controller knows it.
    pub async fn machine(&self, mac: Mac) -> Result<Option<Value>> {
        let machines = self.get("/v1/machines").await?;
        let mac = Value::from(mac.to_string());
        let has = |machine: &&Value| machine["macs"].as_array().is_some_and(|macs| macs.contains(&mac));
        Ok(machines["items"].as_array().context("not a list")?.iter().find(has).cloned())
    }

    /// Waits until this run is over; the run.
    pub async fn wait_for_end(&self, run: &Value) -> Value {
        let path = format!("/v1/runs/{}", run["id"].as_str().unwrap_or_default());
        wait::until("the run is over", PATIENCE, async || match self.get(&path).await {
            Ok(run) if run["status"] != "running" => Ok(run),
            Ok(run) => Err(format!("{run:#}")),
            Err(error) => Err(format!("{error:#}")),
        })
        .await
    }

    /// Does something to the machine with this card, by the API's verb.
    pub async fn act(&self, mac: Mac, verb: &str, body: Value) -> Result<Value> {
        let machine = self.machine(mac).await?.with_context(|| format!("no machine has {mac}"))?;
        self.post(&format!("/v1/machines/{}/{verb}", machine["id"].as_str().unwrap_or_default()), body).await
    }

    /// The same with a key: asked again with it, nothing is done twice. What is wrong with it is
    /// told by the first word of the error: `in-progress`, `answer-lost`, or the kind of refusal;
    /// `lost` when no answer came.
    pub async fn act_once(&self, machine: &str, verb: &str, body: Value, key: &str) -> Result<Value, String> {
        let request = self.http.post(format!("{}/v1/machines/{machine}/{verb}", self.url)).bearer_auth(&self.token);
        let response = request.header("idempotency-key", key).json(&body).send().await;
        let response = response.map_err(|error| format!("lost: {error}"))?;
        let is_success = response.status().is_success();
        let answer: Value = response.json().await.map_err(|error| format!("lost: {error}"))?;
        let kind = answer["type"].as_str().unwrap_or_default().rsplit(':').next().unwrap_or_default();
        if is_success { Ok(answer) } else { Err(format!("{kind}: {answer}")) }
    }

    /// Asks for a deploy of this image; the run.
    pub async fn deploy(&self, mac: Mac, image: &str) -> Result<Value> {
        self.act(mac, "deploy", json!({ "image": image, "hostname": "web-1", "ssh_keys": [KEY] })).await
    }

    /// All alerts, in words, oldest first.
    pub async fn alerts(&self) -> Result<Vec<String>> {
        let (mut alerts, mut after) = (Vec::new(), "0".to_owned());
        loop {
            let page = self.get(&format!("/v1/events?limit=200&after={after}")).await?;
            let events = page["items"].as_array().context("not a list")?;
            let of_kind = events.iter().filter(|event| event["kind"] == "alert");
            alerts.extend(of_kind.map(|event| event["text"].as_str().unwrap_or_default().to_owned()));
            match page["next"].as_str() {
                Some(next) => after = next.to_owned(),
                None => return Ok(alerts),
            }
        }
    }

    /// What happened to the machine with this card, oldest first: kind and words.
    pub async fn history(&self, mac: Mac) -> Result<Vec<(String, String)>> {
        let machine = self.machine(mac).await?.with_context(|| format!("no machine has {mac}"))?;
        let path = format!("/v1/events?machine={}&limit=200", machine["id"].as_str().unwrap_or_default());
        let events = self.get(&path).await?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let events = events["items"].as_array().context("not a list")?.iter();
        Ok(events.map(|event| (text(&event["kind"]), text(&event["text"]))).collect())
    }
}

/// Whom deployed systems let in.
pub const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHRhbGUgb2YgYSBrZXkgdGhhdCBvcGVucyBub3RoaW5n me@laptop";

async fn answer(request: reqwest::RequestBuilder) -> Result<Value> {
    let response = request.send().await?;
    let status = response.status();
    let text = response.text().await?;
    if !status.is_success() {
        bail!("{status}: {text}");
    }
    Ok(if text.is_empty() { Value::Null } else { serde_json::from_str(&text)? })
}
