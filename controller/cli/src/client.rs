//! Talking to the controller: requests, problems, pages and the stream of events.

use std::{fmt, time::Duration};

use anyhow::Context as _;
use futures_util::StreamExt;
use reqwest::{Method, Response, StatusCode};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{context::Context, views::Event};

/// A controller, logged in to.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    context: Context,
}

/// A refusal as the controller worded it (RFC 9457).
#[derive(Debug, Deserialize)]
pub(crate) struct Problem {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) title: String,
    pub(crate) detail: String,
    pub(crate) instance: Option<String>,
    #[serde(default)]
    pub(crate) errors: Vec<Invalid>,
}

/// A field the controller did not accept.
#[derive(Debug, Deserialize)]
pub(crate) struct Invalid {
    pub(crate) field: String,
    pub(crate) detail: String,
}

impl std::error::Error for Problem {}

impl fmt::Display for Problem {
    /// Title, detail, and what to do next.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n  {}", self.title, self.detail)?;
        if self.errors.len() > 1 {
            for Invalid { field, detail } in &self.errors {
                write!(f, "\n  {field}: {detail}")?;
            }
        }
        match self.kind.rsplit(':').next().unwrap_or_default() {
            "unauthenticated" => f.write_str("\nLog in again: rackhand login --controller … --ca … --token …"),
            "not-found" => f.write_str("\nSee what there is: rackhand machine list, image list, run list, rack list"),
            "conflict" => f.write_str("\nSee where it stands: rackhand machine show NAME"),
            "internal" | "unavailable" => match &self.instance {
                Some(instance) => write!(f, "\nThe controller's log has more under {instance}"),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }
}

#[derive(Deserialize)]
struct Page {
    items: Vec<Value>,
    next: Option<String>,
}

impl Client {
    pub(crate) fn new(context: Context) -> anyhow::Result<Self> {
        let mut builder = reqwest::Client::builder()
            .https_only(true)
            .connect_timeout(Duration::from_secs(10))
            // Events come with a keep-alive every 15 seconds; everything else answers sooner.
            .read_timeout(Duration::from_secs(60))
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("rackhand/", env!("CARGO_PKG_VERSION")));
        if let Some(ca) = &context.ca {
            let certificates =
                reqwest::Certificate::from_pem_bundle(ca.as_bytes()).context("the CA file is not PEM")?;
            builder = builder.tls_certs_only(certificates);
        }
        Ok(Self { http: builder.build().context("cannot set up TLS")?, context })
    }

    /// One request with an optional JSON body; the answer's JSON.
    pub(crate) async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> anyhow::Result<Value> {
        let mut request = self.request(method, path);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = self.send(request).await?;
        if response.status() == StatusCode::NO_CONTENT {
            return Ok(Value::Null);
        }
        response.json().await.context("the controller's answer is not JSON")
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        view(self.ask(Method::GET, path, None).await?)
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> anyhow::Result<Value> {
        self.ask(Method::POST, path, Some(body)).await
    }

    /// All pages of a list. `path` may have a query already.
    pub(crate) async fn list(&self, path: &str) -> anyhow::Result<Vec<Value>> {
        let separator = if path.contains('?') { '&' } else { '?' };
        let mut items = Vec::new();
        let mut after = String::new();
        loop {
            let page: Page = self.get(&format!("{path}{separator}limit=200{after}")).await?;
            items.extend(page.items);
            match page.next {
                Some(next) => after = format!("&after={next}"),
                None => return Ok(items),
            }
        }
    }

    /// Sends a file's bytes; the answer comes after the last.
    pub(crate) async fn upload(&self, path: &str, len: u64, body: reqwest::Body) -> anyhow::Result<Value> {
        let request = self
            .request(Method::PUT, path)
            .header("content-type", "application/octet-stream")
            .header("content-length", len)
            .timeout(Duration::from_secs(24 * 3600))
            .body(body);
        self.send(request).await?.json().await.context("the controller's answer is not JSON")
    }

    /// Events as they happen, from `after` on; the stream ends when the connection does.
    pub(crate) async fn events(&self, filter: &str, after: u64) -> anyhow::Result<Events> {
        let request = self
            .request(Method::GET, &format!("/v1/events/stream?{filter}"))
            .header("last-event-id", after)
            .header("accept", "text/event-stream");
        let stream = self.send(request).await?.bytes_stream();
        Ok(Events { stream: Box::pin(stream), buffer: Vec::new() })
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, format!("{}{path}", self.context.controller)).bearer_auth(&self.context.token)
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> anyhow::Result<Response> {
        let response = request.send().await.with_context(|| {
            format!("cannot reach the controller at {} (is it running, and --ca its ca.pem?)", self.context.controller)
        })?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let bytes = response.bytes().await.unwrap_or_default();
        match serde_json::from_slice::<Problem>(&bytes) {
            Ok(problem) => Err(problem.into()),
            Err(_) => anyhow::bail!("the controller answered {status}: {}", String::from_utf8_lossy(&bytes)),
        }
    }
}

/// JSON as one of our views.
pub(crate) fn view<T: DeserializeOwned>(value: Value) -> anyhow::Result<T> {
    serde_json::from_value(value).context("the controller's answer is not understood; is it much older or newer?")
}

/// A stream of server-sent events.
pub(crate) struct Events {
    stream: std::pin::Pin<Box<dyn futures_util::Stream<Item = reqwest::Result<bytes::Bytes>> + Send>>,
    buffer: Vec<u8>,
}

impl Events {
    /// The next event; `None` when the connection ended.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<Event>> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\n\n") {
                let block: Vec<u8> = self.buffer.drain(..end + 2).collect();
                let block = String::from_utf8_lossy(&block);
                let data: String = block.lines().filter_map(|line| line.strip_prefix("data:")).collect();
                // A block without data is a keep-alive.
                if !data.is_empty() {
                    return view(serde_json::from_str(&data)?).map(Some);
                }
                continue;
            }
            match self.stream.next().await {
                Some(Ok(bytes)) => self.buffer.extend_from_slice(&bytes),
                Some(Err(_)) | None => return Ok(None),
            }
        }
    }
}
