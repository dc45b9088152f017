//! Talking to the controller: requests, problems, pages and the stream of events.

use std::{
    fmt,
    io::ErrorKind,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, ensure};
use futures_util::StreamExt;
use reqwest::{Method, Response, StatusCode};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::sync::OnceCell;
use uuid::Uuid;

use crate::{context::Context, nearest::did_you_mean, views::Event};

/// How long an answer that was lost is asked for again, and how often.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(500);

/// A controller, logged in to.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    context: Context,
    /// Whether changes are only tried.
    is_dry: bool,
    /// Whether the controller is known to try, and not to do, what it is asked to try.
    tries: Arc<OnceCell<()>>,
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
            "unauthenticated" => f.write_str("\nLog in again: rackhand login --help tells how"),
            "not-found" => f.write_str(
                "\nSee what there is: rackhand machine list, image list, run list, rack list, pool list, ip list",
            ),
            // What is refused of addresses says in itself where to look.
            "conflict" if self.detail.contains('`') => Ok(()),
            "conflict" | "answer-lost" => {
                f.write_str("\nSee where it stands: rackhand machine show NAME, pool show NAME, ip list")
            }
            "internal" | "unavailable" => match &self.instance {
                Some(instance) => write!(f, "\nThe controller's log has more under {instance}"),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }
}

/// One page of a list.
#[derive(Deserialize)]
pub(crate) struct Page {
    pub(crate) items: Vec<Value>,
    /// Where the next begins.
    pub(crate) next: Option<String>,
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
        let http = builder.build().context("cannot set up TLS")?;
        Ok(Self { http, context, is_dry: false, tries: Arc::default() })
    }

    /// The same controller, of which changes are only tried.
    pub(crate) fn dry(self, is_dry: bool) -> Self {
        Self { is_dry, ..self }
    }

    /// The controller's name or address, as other programs take it.
    pub(crate) fn host(&self) -> anyhow::Result<String> {
        let url = reqwest::Url::parse(&self.context.controller).context("the controller's address is not a URL")?;
        let host = url.host_str().context("the controller's address has no host")?;
        Ok(host.trim_matches(['[', ']']).to_owned())
    }

    /// Whether changes are only tried.
    pub(crate) fn is_dry(&self) -> bool {
        self.is_dry
    }

    /// One request with an optional JSON body; the answer's JSON.
    pub(crate) async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> anyhow::Result<Value> {
        let mut request = self.change(method, path).await?;
        if let Some(body) = body {
            request = request.json(&body);
        }
        self.answer(request, path).await
    }

    /// Reads one thing with the tag of its version.
    pub(crate) async fn tagged(&self, path: &str) -> anyhow::Result<(Value, Option<String>)> {
        self.answer_tagged(self.request(Method::GET, path), path).await
    }

    /// Changes a thing that still has the version with this tag; the answer with the tag it has then.
    pub(crate) async fn change_if(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
        tag: Option<&str>,
    ) -> anyhow::Result<(Value, Option<String>)> {
        let mut request = self.change(method, path).await?;
        if let Some(tag) = tag {
            request = request.header("if-match", tag);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        self.answer_tagged(request, path).await
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        view(self.ask(Method::GET, path, None).await?)
    }

    /// Reads with a query, whose values are escaped.
    pub(crate) async fn get_with<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
    ) -> anyhow::Result<T> {
        view(self.answer(self.request(Method::GET, path).query(query), path).await?)
    }

    /// Asks for something to be done. When the answer is lost on its way it is asked again with
    /// the same key, so that nothing is done twice.
    pub(crate) async fn post(&self, path: &str, body: Value) -> anyhow::Result<Value> {
        let (key, end) = (Uuid::now_v7().to_string(), Instant::now() + PATIENCE);
        let mut lost = false;
        loop {
            let request = self.change(Method::POST, path).await?.header("idempotency-key", &key).json(&body);
            let error = match self.answer(request, path).await {
                Ok(answer) => return Ok(answer),
                Err(error) if Instant::now() > end => return Err(error),
                Err(error) => error,
            };
            let again = match (error.downcast_ref::<Problem>(), error.downcast_ref::<reqwest::Error>()) {
                (Some(problem), _) => problem.kind.ends_with(":in-progress"),
                // Nothing was sent.
                (_, Some(broken)) if broken.is_connect() || broken.is_builder() => lost,
                (_, Some(_)) => true,
                _ => false,
            };
            if !again {
                return Err(error);
            }
            if !std::mem::replace(&mut lost, true) {
                eprintln!("the controller went away before it answered; asking again (nothing is done twice)");
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// All pages of a list.
    pub(crate) async fn list(&self, path: &str) -> anyhow::Result<Vec<Value>> {
        self.list_with(path, Vec::new()).await
    }

    /// The same with a query, whose values are escaped.
    pub(crate) async fn list_with(&self, path: &str, query: Vec<(&str, String)>) -> anyhow::Result<Vec<Value>> {
        let mut items = Vec::new();
        let take = async |response: Response| {
            let page: Page = view(response.json().await.context("the controller's answer is not JSON")?)?;
            items.extend(page.items);
            Ok(page.next)
        };
        self.pages(path, query, take).await?;
        Ok(items)
    }

    /// A text with a query, whose values are escaped.
    pub(crate) async fn text(&self, path: &str, query: &[(&str, String)]) -> anyhow::Result<String> {
        let text = self.send(self.request(Method::GET, path).query(query)).await?.text().await;
        Ok(text.context("the controller's answer is not text")?.trim_end().to_owned())
    }

    /// A list as CSV.
    pub(crate) async fn csv(&self, path: &str) -> anyhow::Result<String> {
        self.csv_with(path, Vec::new()).await
    }

    /// The same with a query, whose values are escaped.
    pub(crate) async fn csv_with(&self, path: &str, mut query: Vec<(&str, String)>) -> anyhow::Result<String> {
        query.push(("format", "csv".into()));
        let mut text = String::new();
        // Every page has the line with the names of the columns.
        let add = |page: &str| {
            text += if text.is_empty() { page } else { page.split_once('\n').map_or("", |(_, rest)| rest) };
        };
        self.text_pages(path, query, add).await?;
        Ok(text.trim_end().to_owned())
    }

    /// A list as another text, with a query whose values are escaped.
    pub(crate) async fn texts(&self, path: &str, query: Vec<(&str, String)>) -> anyhow::Result<String> {
        let mut text = String::new();
        self.text_pages(path, query, |page| text += page).await?;
        Ok(text.trim_end().to_owned())
    }

    async fn text_pages(
        &self,
        path: &str,
        query: Vec<(&str, String)>,
        mut add: impl FnMut(&str),
    ) -> anyhow::Result<()> {
        let take = async |response: Response| {
            let next = response.headers().get("rackhand-next").and_then(|next| next.to_str().ok()).map(str::to_owned);
            add(&response.text().await.context("the controller's answer is not text")?);
            Ok(next)
        };
        self.pages(path, query, take).await
    }

    /// Gives every page to `take`, which tells where the next begins.
    async fn pages(
        &self,
        path: &str,
        mut query: Vec<(&str, String)>,
        mut take: impl AsyncFnMut(Response) -> anyhow::Result<Option<String>>,
    ) -> anyhow::Result<()> {
        query.push(("limit", "200".into()));
        loop {
            let next = take(self.send(self.request(Method::GET, path).query(&query)).await?).await?;
            query.retain(|(name, _)| *name != "after");
            match next {
                Some(next) => query.push(("after", next)),
                None => return Ok(()),
            }
        }
    }

    /// Sends a file's bytes; the answer comes after the last.
    pub(crate) async fn upload(&self, path: &str, len: u64, body: reqwest::Body) -> anyhow::Result<Value> {
        ensure!(!self.is_dry, "an upload cannot be tried: its bytes would have to be sent and kept");
        let request = self
            .request(Method::PUT, path)
            .header("content-type", "application/octet-stream")
            .header("content-length", len)
            .timeout(Duration::from_secs(24 * 3600))
            .body(body);
        self.send(request).await?.json().await.context("the controller's answer is not JSON")
    }

    /// Events as they happen, from `after` or from now on; the stream ends when the connection does.
    pub(crate) async fn events(&self, filter: &str, after: Option<u64>) -> anyhow::Result<Events> {
        let mut request =
            self.request(Method::GET, &format!("/v1/events/stream?{filter}")).header("accept", "text/event-stream");
        if let Some(after) = after {
            request = request.header("last-event-id", after);
        }
        let stream = self.send(request).await?.bytes_stream();
        Ok(Events { stream: Box::pin(stream), buffer: Vec::new() })
    }

    /// A websocket (RFC 6455), when the controller opens one here.
    pub(crate) async fn websocket(&self, path: &str) -> anyhow::Result<reqwest::Upgraded> {
        let request = self
            .request(Method::GET, path)
            .header("connection", "upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", tokio_tungstenite::tungstenite::handshake::client::generate_key());
        let response = self.send(request).await?;
        ensure!(
            response.status() == StatusCode::SWITCHING_PROTOCOLS,
            "the controller does not open a websocket: is there a proxy in between?"
        );
        response.upgrade().await.context("the connection was not kept")
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.context.controller));
        // Whoever logs in has none yet.
        if self.context.token.is_empty() { request } else { request.bearer_auth(&self.context.token) }
    }

    /// A request that is tried only, if that is what is wanted.
    async fn change(&self, method: Method, path: &str) -> anyhow::Result<reqwest::RequestBuilder> {
        let request = self.request(method.clone(), path);
        if !self.is_dry || method == Method::GET {
            return Ok(request);
        }
        // One that does not know of it would do what it is asked.
        let asked = self.tries.get_or_try_init(async || {
            let document = self.send(self.request(Method::GET, "/v1/openapi.json")).await?.text().await?;
            ensure!(
                document.contains("\"Dry-Run\""),
                "this controller is older than --dry-run and would do it: upgrade it"
            );
            Ok(())
        });
        asked.await?;
        Ok(request.header("dry-run", "true"))
    }

    async fn answer(&self, request: reqwest::RequestBuilder, path: &str) -> anyhow::Result<Value> {
        Ok(self.answer_tagged(request, path).await?.0)
    }

    async fn answer_tagged(
        &self,
        request: reqwest::RequestBuilder,
        path: &str,
    ) -> anyhow::Result<(Value, Option<String>)> {
        let response = match self.send(request).await {
            Ok(response) => response,
            Err(error) => return Err(self.advised(error, path).await),
        };
        let tag = response.headers().get("etag").and_then(|tag| tag.to_str().ok()).map(str::to_owned);
        if response.status() == StatusCode::NO_CONTENT {
            return Ok((Value::Null, tag));
        }
        Ok((response.json().await.context("the controller's answer is not JSON")?, tag))
    }

    /// The error, with names that there are when one of them was perhaps meant.
    async fn advised(&self, error: anyhow::Error, path: &str) -> anyhow::Error {
        let mut problem = match error.downcast::<Problem>() {
            Ok(problem) => problem,
            Err(error) => return error,
        };
        let mut parts = path.trim_start_matches("/v1/").split('/');
        if let (true, Some(things), Some(name)) = (problem.kind.ends_with(":not-found"), parts.next(), parts.next())
            && name.parse::<Uuid>().is_err()
            && let Ok(response) = self.send(self.request(Method::GET, &format!("/v1/{things}?limit=200"))).await
            && let Ok(page) = response.json::<Page>().await
        {
            let names: Vec<_> = page.items.iter().filter_map(|thing| thing.get("name")?.as_str()).collect();
            // A name that is there is not what is missing: that is something else in the request.
            if !names.contains(&name) {
                problem.detail += &did_you_mean(name, names);
            }
        }
        problem.into()
    }

    async fn send(&self, mut request: reqwest::RequestBuilder) -> anyhow::Result<Response> {
        let end = Instant::now() + PATIENCE;
        loop {
            let again = request.try_clone();
            let response = request.send().await.map_err(|error| unreachable(error, &self.context.controller))?;
            let status = response.status();
            if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
                return Ok(response);
            }
            let busy = [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE].contains(&status);
            if let (true, Some(again), Some(pause)) = (busy, again, retry_after(response.headers()))
                && Instant::now() + pause < end
            {
                eprintln!("the controller asks for patience ({status}); asking again in {} s", pause.as_secs());
                tokio::time::sleep(pause).await;
                request = again;
                continue;
            }
            let bytes = response.bytes().await.context("the controller's answer broke off")?;
            return match serde_json::from_slice::<Problem>(&bytes) {
                Ok(problem) => Err(problem.into()),
                Err(_) => Err(anyhow!("the controller answered {status}: {}", String::from_utf8_lossy(&bytes))),
            };
        }
    }
}

/// How long the controller wants to be left alone.
fn retry_after(headers: &reqwest::header::HeaderMap) -> Option<Duration> {
    let seconds = headers.get("retry-after")?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).max(PAUSE))
}

/// That no answer came, and what to look at.
fn unreachable(error: reqwest::Error, controller: &str) -> anyhow::Error {
    let what = format!("cannot reach the controller at {controller}: {}", advice(&error));
    anyhow::Error::new(error).context(what)
}

fn advice(error: &reqwest::Error) -> &'static str {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = source {
        let mut cause = cause;
        // What an error of the system carries is no source of it, and it may carry another.
        while let Some(inner) = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            cause = inner;
        }
        match cause.downcast_ref() {
            Some(rustls::Error::InvalidCertificate(wrong)) => return of_certificate(wrong),
            Some(_) => return "it does not speak TLS as we do; is that address the API's, HTTPS on port 8443?",
            None => {}
        }
        match cause.downcast_ref().map(std::io::Error::kind) {
            Some(ErrorKind::ConnectionRefused) => {
                return "nothing listens there; on its host, see `systemctl status rackhand-controller`";
            }
            Some(ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable) => {
                return "there is no route to it; is a VPN down?";
            }
            _ => {}
        }
        source = cause.source();
    }
    match error.is_timeout() {
        true => "it did not answer in time; is the address right, and no firewall between?",
        false if error.is_connect() => "is its name right, and is it running?",
        false => "the connection broke",
    }
}

fn of_certificate(wrong: &rustls::CertificateError) -> &'static str {
    use rustls::CertificateError::{Expired, ExpiredContext, NotValidForName, NotValidForNameContext, NotValidYet};
    match wrong {
        NotValidForName | NotValidForNameContext { .. } => {
            "its certificate is for another name; say --controller by the name that is in it"
        }
        Expired | ExpiredContext { .. } | NotValidYet => {
            "its certificate is not valid at this time; look at this clock, and renew it there"
        }
        _ => "its certificate is not from the CA that is trusted here; --ca is its ca.pem, from its data directory",
    }
}

/// The parameters of a query that were given.
pub(crate) fn given_only<const N: usize>(query: [(&'static str, Option<String>); N]) -> Vec<(&'static str, String)> {
    query.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
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
        self.next_value().await?.map(view).transpose()
    }

    /// The same as it was sent.
    pub(crate) async fn next_value(&mut self) -> anyhow::Result<Option<Value>> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\n\n") {
                let block: Vec<u8> = self.buffer.drain(..end + 2).collect();
                let block = String::from_utf8_lossy(&block);
                let data: String = block.lines().filter_map(|line| line.strip_prefix("data:")).collect();
                // A block without data is a keep-alive.
                if !data.is_empty() {
                    return Ok(Some(serde_json::from_str(&data)?));
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rackhand_common::pki;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };
    use tokio_rustls::TlsAcceptor;

    use super::*;

    /// Answers connection by connection: with nothing, or so. Gives the keys it was sent.
    async fn controller(answers: Vec<Option<String>>) -> (Client, tokio::task::JoinHandle<Vec<String>>) {
        pki::install_crypto();
        let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        let tls = rustls::ServerConfig::builder().with_no_client_auth();
        let tls = TlsAcceptor::from(Arc::new(tls.with_single_cert(vec![made.cert.der().clone()], key).unwrap()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let context = Context {
            controller: format!("https://localhost:{}", listener.local_addr().unwrap().port()),
            ca: Some(made.cert.pem()),
            token: "rh_token".into(),
        };
        let served = tokio::spawn(async move {
            let mut keys = Vec::new();
            for answer in answers {
                let mut stream = tls.accept(listener.accept().await.unwrap().0).await.unwrap();
                let mut request = Vec::new();
                while !request.ends_with(if request.starts_with(b"GET") { &b"\r\n\r\n"[..] } else { b"{}" }) {
                    assert_ne!(stream.read_buf(&mut request).await.unwrap(), 0);
                }
                let request = String::from_utf8(request).unwrap();
                let key = request.lines().find_map(|line| line.strip_prefix("idempotency-key: "));
                keys.push(key.unwrap_or_default().to_owned());
                if let Some(answer) = answer {
                    stream.write_all(answer.as_bytes()).await.unwrap();
                    stream.shutdown().await.unwrap();
                }
            }
            keys
        });
        (Client::new(context).unwrap(), served)
    }

    fn with(status: &str, body: &str) -> Option<String> {
        Some(format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len()))
    }

    fn refused(kind: &str) -> Option<String> {
        with("409 Conflict", &format!(r#"{{"type": "urn:rackhand:problem:{kind}", "title": "t", "detail": "d"}}"#))
    }

    #[tokio::test]
    async fn an_answer_that_was_lost_is_asked_for_again_with_the_same_key() {
        let (client, served) = controller(vec![None, refused("in-progress"), with("201 Created", r#"{"a": 1}"#)]).await;
        assert_eq!(client.post("/v1/racks", serde_json::json!({})).await.unwrap()["a"], 1);
        let keys = served.await.unwrap();
        assert!(keys.iter().all(|key| *key == keys[0]), "{keys:?}");
        let (client, served) = controller(vec![refused("conflict")]).await;
        client.post("/v1/racks", serde_json::json!({})).await.unwrap_err();
        assert_ne!(served.await.unwrap()[0], keys[0]);
    }

    #[tokio::test]
    async fn a_controller_that_does_not_run_is_told_of_at_once() {
        let (client, served) = controller(Vec::new()).await;
        served.await.unwrap();
        let error = client.post("/v1/racks", serde_json::json!({})).await.unwrap_err().to_string();
        assert!(error.contains("cannot reach the controller"), "{error}");
        assert!(error.contains("nothing listens there"), "{error}");
    }

    #[tokio::test]
    async fn a_controller_that_is_not_believed_is_told_of_with_what_to_do() {
        let (client, _) = controller(vec![None]).await;
        let another = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        let client = Client::new(Context { ca: Some(another.cert.pem()), ..client.context }).unwrap();
        let error = client.ask(Method::GET, "/v1/racks", None).await.unwrap_err().to_string();
        assert!(error.contains("not from the CA that is trusted here"), "{error}");
    }

    #[tokio::test]
    async fn a_controller_that_wants_patience_is_asked_again() {
        let busy = with("503 Service Unavailable\r\nretry-after: 0", "{}");
        let (client, served) = controller(vec![busy, with("201 Created", r#"{"a": 1}"#)]).await;
        assert_eq!(client.post("/v1/racks", serde_json::json!({})).await.unwrap()["a"], 1);
        let keys = served.await.unwrap();
        assert_eq!(keys[0], keys[1]);
    }

    #[tokio::test]
    async fn a_name_that_is_not_there_is_answered_with_those_that_are() {
        let page = with("200 OK", r#"{"items": [{"name": "web-1"}, {"name": "db-1"}]}"#);
        let missing =
            r#"{"type": "urn:rackhand:problem:not-found", "title": "t", "detail": "there is no such machine"}"#;
        let (client, _) = controller(vec![with("404 Not Found", missing), page]).await;
        let error = client.post("/v1/machines/wbe-1/adopt", serde_json::json!({})).await.unwrap_err().to_string();
        assert!(error.contains("there is no such machine, did you mean `web-1`?"), "{error}");
    }

    #[tokio::test]
    async fn nothing_is_tried_at_a_controller_that_would_do_it() {
        let (client, served) = controller(vec![with("200 OK", r#"{"paths": {}}"#)]).await;
        let error = client.dry(true).post("/v1/racks", serde_json::json!({})).await.unwrap_err().to_string();
        assert!(error.contains("older than --dry-run"), "{error}");
        assert_eq!(served.await.unwrap().len(), 1);
    }
}
