//! The shell around a Redfish service: HTTP/1.1, TLS, sessions (DSP0266 §"Protocol details",
//! §"Security details").
//!
//! Invariants:
//! - One request at a time, each with a deadline, a bounded body and a bounded number of retries.
//! - Credentials and tokens go to the host of the URL only: no redirect leaves it.
//! - A password that a BMC refuses is not tried again by other means, nor soon: accounts get
//!   locked.
//! - At most one session is ours: the one before is ended before another is made, and one is known
//!   as soon as the head of the answer that made it came, also to a call that is given up then.
//!
//! It does not compress, pipeline or speak HTTP/2: BMCs break on all three.

use std::{
    fmt, io, iter,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use reqwest::{
    Body, Method, StatusCode, Url,
    header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderMap, IF_MATCH, LOCATION, RETRY_AFTER},
};
use serde_json::{Value, json};
use tokio::{
    io::AsyncReadExt as _,
    sync::Mutex,
    time::{Instant, sleep, timeout},
};
use tokio_util::io::ReaderStream;
use zeroize::Zeroizing;

use crate::bmc::{BmcError, Credentials, Logins};

use super::{
    fault,
    link::Link,
    pace::Pace,
    pin::{Fingerprint, Pin},
    resource::{self, Node, Resource, Weight},
};

/// The most that an answer may weigh. A log of a thousand entries, expanded, weighs one MiB.
pub const MAX_BODY: usize = 2 << 20;

/// The most redirects of one request. A service that redirects `/redfish/v1` and an alias needs two.
const MAX_REDIRECTS: usize = 2;

/// How long a denied password is not tried again: BMCs forget failed logins within minutes.
const DENIED_FOR: Duration = Duration::from_secs(300);

/// How long a session is too young to have ended by itself: no BMC ends one that is idle for less
/// than 30 s (DSP0268 SessionService `SessionTimeout`).
const YOUNG: Duration = Duration::from_secs(5);

/// How often a busy BMC is asked in all.
const MAX_BUSY: u32 = 3;

/// The longest that a busy BMC may ask us to wait.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(30);

/// So much of a file is read at once.
const FILE_PIECE: usize = 64 << 10;

/// How long things may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// How long an endpoint is waited for that has not been slow.
    pub shortest: Duration,
    /// How long a slow endpoint is waited for at most.
    pub longest: Duration,
    /// How long one call of the trait may take, whatever the number of its requests.
    pub call: Duration,
    /// How long a change takes to show, before it is read back once more.
    pub settle: Duration,
    /// How long a task may take: an update of firmware.
    pub task: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            shortest: Duration::from_secs(10),
            longest: Duration::from_secs(60),
            call: Duration::from_secs(300),
            settle: Duration::from_secs(1),
            task: Duration::from_secs(30 * 60),
        }
    }
}

/// What is sent.
#[derive(Clone, Debug)]
pub enum Payload {
    /// Nothing.
    Nothing,
    /// JSON.
    Json(Value),
    /// A file of so many bytes, between what stands before and behind it, as this type. It is read as it
    /// is sent; the least speed it travels at is a MiB each ten seconds.
    File {
        /// The type of all of it.
        kind: String,
        /// What stands before it.
        head: Bytes,
        /// Where it is.
        path: PathBuf,
        /// Its bytes.
        size: u64,
        /// What stands behind it.
        tail: Bytes,
    },
}

/// What came back, with a status that says that all is well.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Its status.
    pub status: StatusCode,
    /// Its body, null when there was none.
    pub body: Value,
    /// Where what was made or is being done can be seen.
    pub location: Option<Link>,
    /// When to ask again.
    pub retry_after: Option<Duration>,
    /// What its body weighs.
    pub weight: Weight,
    etag: Option<String>,
}

impl Reply {
    /// What was read there.
    fn resource(self, link: Link) -> Result<Resource, BmcError> {
        let Self { body, weight, etag, .. } = self;
        Ok(Resource { weight, ..Resource::new(link, etag, body)? })
    }
}

/// How we show who we are.
#[derive(Clone)]
enum Login {
    /// Not yet.
    None,
    /// By a token of this session.
    Session {
        token: Zeroizing<String>,
        link: Option<Link>,
        /// Until when an answer of 401 does not mean that it has ended.
        young_until: Instant,
    },
    /// By name and password in every request.
    Basic {
        /// Whether they were taken the last time.
        is_believed: bool,
    },
}

/// Whom a request is from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum From {
    /// Nobody: what everybody may read.
    Nobody,
    /// Nobody yet: it makes a session.
    Stranger,
    /// Whoever is logged in.
    User,
}

/// A login that a BMC did not take.
struct Denial {
    until: Instant,
    why: BmcError,
}

struct State {
    credentials: Credentials,
    login: Login,
    /// Where sessions are made; `None` when the service has none.
    sessions: Option<Link>,
    /// The last login of these credentials, when it was denied.
    denial: Option<Denial>,
    pace: Pace,
}

impl State {
    /// Holds what was denied for a while.
    fn deny(&mut self, why: BmcError) {
        self.login = Login::None;
        self.denial = Some(Denial { until: Instant::now() + DENIED_FOR, why });
    }

    /// Fails while a login that was denied is not to be tried again.
    fn may_log_in(&mut self) -> Result<(), BmcError> {
        let Some(Denial { until, why }) = &self.denial else { return Ok(()) };
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            self.denial = None;
            return Ok(());
        }
        Err(fault::denied(format!("not tried again for {} s, because it was {why}", left.as_secs() + 1)))
    }

    /// What no message may contain.
    fn secrets(&self) -> Vec<String> {
        let mut secrets = vec![self.credentials.password.to_string()];
        if let Login::Session { token, .. } = &self.login {
            secrets.push(token.to_string());
        }
        secrets
    }
}

/// A Redfish service as it is reached.
pub struct Http {
    client: reqwest::Client,
    base: Url,
    pin: Pin,
    bounds: Bounds,
    logins: Option<Arc<dyn Logins>>,
    state: Mutex<State>,
    requests: AtomicU64,
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http")
            .field("base", &self.base.as_str())
            .field("pin", &self.pin.pinned())
            .finish_non_exhaustive()
    }
}

impl Http {
    /// Connects to nothing yet.
    pub fn new(
        url: &str,
        credentials: Credentials,
        pinned: Option<Fingerprint>,
        bounds: Bounds,
    ) -> Result<Self, BmcError> {
        let unfit = |why: &str| fault::refused(format!("the BMC's URL {why}"));
        let base = Url::parse(url).map_err(|_| unfit("is none"))?;
        if !matches!(base.scheme(), "https" | "http") || base.host_str().is_none() {
            return Err(unfit("is neither https nor http"));
        }
        if !base.username().is_empty() || base.password().is_some() {
            return Err(unfit("has credentials in it"));
        }
        let pin = Pin::new(pinned);
        let tls = pin.tls().map_err(|error| unfit(&format!("cannot be reached by TLS: {error}")))?;
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .http1_only()
            .no_proxy()
            .referer(false)
            .redirect(reqwest::redirect::Policy::none())
            .pool_max_idle_per_host(1)
            .user_agent("rackhand")
            .build()
            .map_err(|error| unfit(&format!("cannot be reached: {error}")))?;
        let pace = Pace::new(bounds.shortest, bounds.longest);
        let state = State { credentials, login: Login::None, sessions: None, denial: None, pace };
        let (state, requests) = (Mutex::new(state), AtomicU64::new(0));
        Ok(Self { client, base, pin, bounds, logins: None, state, requests })
    }

    /// Asked and told of every login.
    pub fn counted(self, logins: Arc<dyn Logins>) -> Self {
        Self { logins: Some(logins), ..self }
    }

    async fn logged_in(&self, is_taken: bool) {
        if let Some(logins) = &self.logins {
            logins.ended(is_taken).await;
        }
    }

    /// The certificate that is believed: given, or the first that was met.
    pub fn fingerprint(&self) -> Option<Fingerprint> {
        self.pin.pinned()
    }

    /// How many requests were made.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// How long things may take.
    pub fn bounds(&self) -> &Bounds {
        &self.bounds
    }

    /// The host that is asked.
    pub fn host(&self) -> &str {
        self.base.host_str().unwrap_or_default()
    }

    /// The service root, which everybody may read.
    pub async fn root(&self) -> Result<Resource, BmcError> {
        let link = Link::root();
        let mut state = self.state.lock().await;
        let reply = self.exchange(&mut state, &Method::GET, &link, &Payload::Nothing, None, From::Nobody).await?;
        reply.done(&link, &[])?.resource(link)
    }

    /// Where sessions are made from now on.
    pub async fn log_in_at(&self, sessions: Option<Link>) {
        self.state.lock().await.sessions = sessions;
    }

    /// Logs in with these from now on.
    pub async fn log_in_as(&self, credentials: Credentials) {
        let mut state = self.state.lock().await;
        state.credentials = credentials;
        state.denial = None;
        if let Login::Basic { is_believed } = &mut state.login {
            *is_believed = false;
        }
    }

    /// Whose password is used.
    pub async fn user(&self) -> String {
        self.state.lock().await.credentials.user.clone()
    }

    /// Reads one resource.
    pub async fn get(&self, link: &Link) -> Result<Resource, BmcError> {
        self.request(&Method::GET, link, &Payload::Nothing).await?.resource(link.clone())
    }

    /// Asks what has become of a task, whose monitor may answer anything.
    pub async fn monitor(&self, link: &Link) -> Result<Reply, BmcError> {
        self.request(&Method::GET, link, &Payload::Nothing).await
    }

    /// Has something done or made.
    pub async fn post(&self, link: &Link, payload: Payload) -> Result<Reply, BmcError> {
        self.request(&Method::POST, link, &payload).await
    }

    /// Has something removed.
    pub async fn delete(&self, link: &Link) -> Result<Reply, BmcError> {
        self.request(&Method::DELETE, link, &Payload::Nothing).await
    }

    /// Changes the resource, if it is still as it was read. One that has become another meanwhile
    /// is read again once: what we change does not depend on the rest of it.
    pub async fn patch(&self, resource: &Resource, change: Value) -> Result<Reply, BmcError> {
        let payload = Payload::Json(change);
        let link = &resource.link;
        let (mut answer, mut secrets) = self.ask(&Method::PATCH, link, &payload, resource.etag.as_deref()).await?;
        if answer.status == StatusCode::PRECONDITION_FAILED {
            let again = self.get(link).await?;
            // Some services give weak tags and compare strong ones.
            let etag = again.etag.map(|etag| etag.trim_start_matches("W/").to_owned());
            (answer, secrets) = self.ask(&Method::PATCH, link, &payload, etag.as_deref()).await?;
        }
        answer.changed(link, &secrets)
    }

    /// Ends the session, so that it takes no place of the few there are.
    pub async fn close(&self) -> Result<(), BmcError> {
        let mut state = self.state.lock().await;
        let secrets = state.secrets();
        match self.end(&mut state).await? {
            Some((link, answer)) => answer.done(&link, &secrets).map(drop),
            None => Ok(()),
        }
    }

    /// Ends the session, if there is one with a link, and has none from then on.
    async fn end(&self, state: &mut State) -> Result<Option<(Link, Answer)>, BmcError> {
        let Login::Session { link: Some(link), young_until, .. } = &mut state.login else {
            state.login = Login::None;
            return Ok(None);
        };
        // When this is given up midway, the session may have ended, young as it is.
        *young_until = Instant::now();
        let link = link.clone();
        let answer = self.exchange(state, &Method::DELETE, &link, &Payload::Nothing, None, From::User).await;
        state.login = Login::None;
        Ok(Some((link, answer?)))
    }

    async fn request(&self, method: &Method, link: &Link, payload: &Payload) -> Result<Reply, BmcError> {
        let (answer, secrets) = self.ask(method, link, payload, None).await?;
        if *method == Method::GET { answer.done(link, &secrets) } else { answer.changed(link, &secrets) }
    }

    /// Asks as who we are; a session that has ended is renewed once. Gives what no message may
    /// contain, too.
    async fn ask(
        &self,
        method: &Method,
        link: &Link,
        payload: &Payload,
        etag: Option<&str>,
    ) -> Result<(Answer, Vec<String>), BmcError> {
        let mut state = self.state.lock().await;
        self.log_in(&mut state).await?;
        let mut secrets = state.secrets();
        if let Payload::Json(sent) = payload {
            secrets.extend(fault::secrets(sent));
        }
        let answer = self.exchange(&mut state, method, link, payload, etag, From::User).await?;
        let is_unauthorized = answer.status == StatusCode::UNAUTHORIZED;
        match &mut state.login {
            // A session that was just made is good: it is this that the user may not do.
            Login::Session { young_until, .. } if is_unauthorized && Instant::now() >= *young_until => {
                // It is as good as gone: whether it can still be ended changes nothing.
                drop(self.end(&mut state).await);
                self.log_in(&mut state).await?;
                let answer = self.exchange(&mut state, method, link, payload, etag, From::User).await?;
                secrets.extend(state.secrets());
                Ok((answer, secrets))
            }
            Login::Basic { is_believed } if is_unauthorized => {
                // What was taken a moment ago may be good, and not enough for this.
                if !std::mem::take(is_believed) {
                    self.logged_in(false).await;
                    state.deny(fault::of_status(answer.status, link, Node(Some(&answer.body)), &secrets));
                }
                Ok((answer, secrets))
            }
            Login::Basic { is_believed } => {
                if !*is_believed && answer.status.is_success() {
                    *is_believed = true;
                    self.logged_in(true).await;
                }
                Ok((answer, secrets))
            }
            _ => Ok((answer, secrets)),
        }
    }

    /// Makes a session, or falls back to basic authentication where there are none.
    async fn log_in(&self, state: &mut State) -> Result<(), BmcError> {
        state.may_log_in()?;
        if !matches!(state.login, Login::None | Login::Basic { is_believed: false }) {
            return Ok(());
        }
        if let Some(logins) = &self.logins {
            logins.may().map_err(fault::denied)?;
        }
        if !matches!(state.login, Login::None) {
            return Ok(());
        }
        let Some(sessions) = state.sessions.clone() else {
            state.login = Login::Basic { is_believed: false };
            return Ok(());
        };
        let wanted = json!({
            "UserName": state.credentials.user,
            "Password": state.credentials.password.as_str(),
        });
        let answer =
            self.exchange(state, &Method::POST, &sessions, &Payload::Json(wanted), None, From::Stranger).await?;
        let body = Node(Some(&answer.body));
        if answer.is_login_denied() {
            let why = fault::of_status(StatusCode::UNAUTHORIZED, &sessions, body, &state.secrets());
            state.deny(why.clone());
            self.logged_in(false).await;
            return Err(why);
        }
        if matches!(state.login, Login::Session { .. }) {
            self.logged_in(true).await;
        }
        match &mut state.login {
            Login::Session { link, .. } => *link = link.take().or_else(|| body.target()),
            // Full of sessions, without sessions, or a session without a token.
            login => *login = Login::Basic { is_believed: false },
        }
        Ok(())
    }

    /// One request with its redirects and, when the BMC is busy, its repetitions.
    async fn exchange(
        &self,
        state: &mut State,
        method: &Method,
        link: &Link,
        payload: &Payload,
        etag: Option<&str>,
        from: From,
    ) -> Result<Answer, BmcError> {
        let mut at = link.clone();
        let (mut redirects, mut busy, mut was_dropped) = (0, 0, false);
        loop {
            let answer = match self.once(state, method, &at, payload, etag, from).await {
                // A BMC that closed an idle connection; what only reads may be said twice.
                Err(Fault::Http(_)) if *method == Method::GET && !was_dropped && !self.pin.has_refused() => {
                    was_dropped = true;
                    continue;
                }
                answer => answer.map_err(|fault| self.error(&at, fault))?,
            };
            let status = answer.status;
            if status.is_redirection() && status != StatusCode::NOT_MODIFIED {
                let keeps_method = matches!(status.as_u16(), 307 | 308) || *method == Method::GET;
                redirects += 1;
                match answer.location {
                    Some(next) if keeps_method && redirects <= MAX_REDIRECTS => at = next,
                    _ => return Err(fault::malformed(format!("{link}: redirected to nowhere it may"))),
                }
                continue;
            }
            let is_busy = matches!(status.as_u16(), 429 | 503);
            busy += 1;
            if !is_busy || busy >= MAX_BUSY {
                return Ok(answer);
            }
            sleep(answer.retry_after.unwrap_or(self.bounds.settle).min(MAX_RETRY_AFTER)).await;
        }
    }

    async fn once(
        &self,
        state: &mut State,
        method: &Method,
        link: &Link,
        payload: &Payload,
        etag: Option<&str>,
        from: From,
    ) -> Result<Answer, Fault> {
        let url = self.base.join(link.as_str()).ok().filter(|url| url.origin() == self.base.origin());
        let url = url.ok_or(Fault::Elsewhere)?;
        let mut request =
            self.client.request(method.clone(), url).header(ACCEPT, "application/json").header("OData-Version", "4.0");
        let mut deadline = state.pace.deadline(link.route());
        request = match payload {
            Payload::Nothing => request,
            Payload::Json(value) => request.json(value),
            Payload::File { kind, head, path, size, tail } => {
                deadline += Duration::from_secs(10 * (size >> 20));
                let file = tokio::fs::File::open(path).await.map_err(Fault::File)?;
                let whole = io::Cursor::new(head.clone()).chain(file.take(*size)).chain(io::Cursor::new(tail.clone()));
                let length = size + (head.len() + tail.len()) as u64;
                let body = Body::wrap_stream(ReaderStream::with_capacity(whole, FILE_PIECE));
                request.header(CONTENT_TYPE, kind).header(CONTENT_LENGTH, length).body(body)
            }
        };
        if let Some(etag) = etag {
            request = request.header(IF_MATCH, etag);
        }
        request = match &state.login {
            Login::Session { token, .. } if from == From::User => request.header("X-Auth-Token", token.as_str()),
            Login::Basic { .. } if from == From::User => {
                request.basic_auth(&state.credentials.user, Some(state.credentials.password.as_str()))
            }
            _ => request,
        };
        self.requests.fetch_add(1, Ordering::Relaxed);
        let started = Instant::now();
        let base = &self.base;
        let login = &mut state.login;
        let answer = async {
            let response = request.send().await?;
            let head = Head::read(&response, base);
            if let (From::Stranger, Some(token), true) = (from, &head.token, head.status.is_success()) {
                // Known before its body has come: a session that is forgotten takes a place.
                let (token, link) = (token.clone(), head.location.clone());
                *login = Login::Session { token, link, young_until: Instant::now() + YOUNG };
            }
            Answer::read(head, response).await
        };
        match timeout(deadline, answer).await {
            Err(_) => {
                state.pace.timed_out(link.route());
                Err(Fault::Late(deadline))
            }
            Ok(Err(fault)) => Err(fault),
            Ok(Ok(answer)) => {
                state.pace.answered(link.route(), started.elapsed());
                Ok(answer)
            }
        }
    }

    fn error(&self, link: &Link, fault: Fault) -> BmcError {
        match (self.pin.refused(), self.pin.pinned()) {
            (Some(seen), Some(pinned)) => {
                return fault::changed(format!("its certificate is {seen}, and was {pinned}"));
            }
            (Some(seen), None) => return fault::changed(format!("its certificate is {seen}")),
            (None, _) => {}
        }
        match fault {
            // Before anything was sent.
            Fault::File(error) => fault::refused(format!("the file to be sent cannot be read: {error}")),
            Fault::Elsewhere => fault::malformed(format!("{link} is not on this host")),
            Fault::Late(deadline) => {
                fault::unreachable(format!("{link}: no answer within {} s", deadline.as_secs_f32()))
            }
            Fault::TooLong => fault::malformed(format!("{link}: longer than {MAX_BODY} bytes")),
            Fault::Json(error) => fault::malformed(format!("{link}: {error}")),
            Fault::Http(error) => {
                let error = error.without_url();
                let causes = iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
                let words: Vec<String> = causes.map(ToString::to_string).collect();
                fault::unreachable(format!("{link}: {}", words.join(": ")))
            }
        }
    }
}

/// Why there is no answer.
enum Fault {
    File(io::Error),
    Elsewhere,
    Late(Duration),
    TooLong,
    Json(resource::NotJson),
    Http(reqwest::Error),
}

impl std::convert::From<reqwest::Error> for Fault {
    fn from(error: reqwest::Error) -> Self {
        Self::Http(error)
    }
}

/// What comes before the body of an answer.
struct Head {
    status: StatusCode,
    location: Option<Link>,
    retry_after: Option<Duration>,
    etag: Option<String>,
    token: Option<Zeroizing<String>>,
}

impl Head {
    fn read(response: &reqwest::Response, base: &Url) -> Self {
        let header = |name| word(response.headers(), name);
        Self {
            status: response.status(),
            location: header(LOCATION.as_str()).and_then(|raw| Link::of_location(raw, base)),
            retry_after: header(RETRY_AFTER.as_str()).and_then(|raw| raw.parse().ok()).map(Duration::from_secs),
            etag: header(ETAG.as_str()).map(str::to_owned),
            token: header("X-Auth-Token").filter(|token| !token.is_empty()).map(|token| token.to_owned().into()),
        }
    }
}

/// An answer of any status.
struct Answer {
    status: StatusCode,
    body: Value,
    weight: Weight,
    location: Option<Link>,
    retry_after: Option<Duration>,
    etag: Option<String>,
}

impl Answer {
    async fn read(head: Head, mut response: reqwest::Response) -> Result<Self, Fault> {
        let Head { status, location, retry_after, etag, .. } = head;
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            if bytes.len() + chunk.len() > MAX_BODY {
                return Err(Fault::TooLong);
            }
            bytes.extend_from_slice(&chunk);
        }
        let (body, weight) = match resource::json(&bytes) {
            Ok(read) => read,
            // An error page says enough by its status; a change that is done needs no words.
            Err(_) if !status.is_success() || bytes.is_empty() => (Value::Null, Weight::default()),
            Err(error) => return Err(Fault::Json(error)),
        };
        Ok(Self { status, body, weight, location, retry_after, etag })
    }

    /// The reply, if its status says that all is well.
    fn done(self, link: &Link, secrets: &[String]) -> Result<Reply, BmcError> {
        let Self { status, body, weight, location, retry_after, etag } = self;
        if !status.is_success() {
            return Err(fault::of_status(status, link, Node(Some(&body)), secrets));
        }
        Ok(Reply { status, body, location, retry_after, weight, etag })
    }

    /// Whether it was the name or the password that a session was not made for. iLO says so with
    /// status 400.
    fn is_login_denied(&self) -> bool {
        let is_denied =
            |message: Node<'_>| message.word("MessageId").is_some_and(|id| id.contains("UnauthorizedLoginAttempt"));
        matches!(self.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
            || Node(Some(&self.body)).at("error").items("@Message.ExtendedInfo").any(is_denied)
    }

    /// The reply to a change, if neither its status nor its messages say that it was not made.
    fn changed(self, link: &Link, secrets: &[String]) -> Result<Reply, BmcError> {
        let reply = self.done(link, secrets)?;
        match fault::of_success(link, Node(Some(&reply.body)), secrets) {
            Some(error) => Err(error),
            None => Ok(reply),
        }
    }
}

fn word<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}
