//! Talking to boot. A [`Lane`] is one kept-alive HTTP/1.1 connection; the [`Channel`] speaks
//! [`rackhand_common::channel`] over lanes of TLS with raw public keys, and is patient: boot
//! restarts, cables are pulled, and the machine waits connected through all of it. Only a
//! ticket that is refused again and again is given up, since no other will come to this start.

use std::{io, net::SocketAddrV4, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, StatusCode, client::conn::http1::SendRequest};
use hyper_util::rt::TokioIo;
use rackhand_common::{
    bmc::InBandUser,
    channel::{
        Admitted, Assignment, Drive, Found, HOLD, MAX_BODY, MAX_DRIVE, MAX_MANIFEST, MAX_PIECE, Present, Report,
        ToolboxFile,
    },
    hardware::Hardware,
    image::{Digest, Manifest, Settings, SignedManifest},
    pki,
};
use rackhand_fail_points::fail_point;
use rustls_pki_types::{PrivateKeyDer, ServerName};
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};
use tokio::{
    io::AsyncWriteExt as _,
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_rustls::TlsConnector;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::cmdline::Parameters;

/// Why one request was not answered as hoped.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Nobody there, or the connection broke: ask again.
    #[error("cannot be reached")]
    Unreachable(#[source] io::Error),
    /// An answer, and it is no.
    #[error("answered {0}: {1}")]
    Refused(StatusCode, String),
    /// An answer that makes no sense.
    #[error("gave an answer that cannot be understood: {0}")]
    Malformed(String),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Unreachable(error)
    }
}

fn unreachable(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Failure {
    Failure::Unreachable(io::Error::other(error))
}

/// Why there is no file of firmware.
#[derive(Debug, thiserror::Error)]
pub enum NoFile {
    /// It cannot be had.
    #[error("the file cannot be fetched")]
    Fetch(#[source] Failure),
    /// It does not fit into memory.
    #[error("the file cannot be kept in memory")]
    Kept(#[source] io::Error),
    /// It is another one.
    #[error("the file that came has not the SHA-256 that was ordered")]
    OtherDigest,
}

/// One connection at a time to one server, kept open between requests and opened anew when
/// it broke.
pub struct Lane {
    to: SocketAddrV4,
    tls: Option<Arc<rustls::ClientConfig>>,
    open: Option<Open>,
}

struct Open {
    sender: SendRequest<Full<Bytes>>,
    _connection: AbortOnDropHandle<()>,
}

/// An address on the same network answers at once or not at all.
const CONNECT: Duration = Duration::from_secs(5);

impl Lane {
    /// Plain HTTP.
    pub fn plain(to: SocketAddrV4) -> Self {
        Self { to, tls: None, open: None }
    }

    /// TLS.
    pub fn secure(to: SocketAddrV4, tls: Arc<rustls::ClientConfig>) -> Self {
        Self { to, tls: Some(tls), open: None }
    }

    /// The body of a good answer to one request, at most `limit` bytes of it. Dropped in the
    /// middle, it closes the connection and the next request opens another.
    pub async fn ask(
        &mut self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
        limit: usize,
        patience: Duration,
    ) -> Result<Bytes, Failure> {
        let mut open = match self.open.take() {
            Some(open) if !open.sender.is_closed() => open,
            _ => timeout(CONNECT, self.connect()).await.map_err(unreachable)??,
        };
        let mut request = Request::builder().method(method).uri(path).header("host", self.to.to_string());
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let request = request.body(Full::new(body.unwrap_or_default())).expect("paths are made of digests and digits");
        let exchange = async {
            open.sender.ready().await.map_err(unreachable)?;
            let response = open.sender.send_request(request).await.map_err(unreachable)?;
            let status = response.status();
            let body = Limited::new(response.into_body(), limit).collect().await.map_err(unreachable)?.to_bytes();
            Ok::<_, Failure>((status, body))
        };
        let (status, body) = timeout(patience, exchange).await.map_err(unreachable)??;
        self.open = Some(open);
        if status.is_success() {
            Ok(body)
        } else {
            Err(Failure::Refused(status, String::from_utf8_lossy(&body).chars().take(200).collect()))
        }
    }

    /// Gives each piece of a good answer's body to `take`, as it comes. Nothing may come for as long as
    /// `patience`; how long all of it takes is for the caller to bound.
    pub async fn stream(
        &mut self,
        path: &str,
        patience: Duration,
        mut take: impl AsyncFnMut(Bytes) -> io::Result<()>,
    ) -> Result<(), Failure> {
        let mut open = timeout(CONNECT, self.connect()).await.map_err(unreachable)??;
        let request = Request::builder().uri(path).header("host", self.to.to_string()).body(Full::default());
        let request = request.expect("the path is a literal");
        let asked = async {
            open.sender.ready().await.map_err(unreachable)?;
            open.sender.send_request(request).await.map_err(unreachable)
        };
        let mut response = timeout(patience, asked).await.map_err(unreachable)??;
        if !response.status().is_success() {
            return Err(Failure::Refused(response.status(), String::new()));
        }
        while let Some(frame) = timeout(patience, response.frame()).await.map_err(unreachable)? {
            if let Ok(piece) = frame.map_err(unreachable)?.into_data() {
                take(piece).await?;
            }
        }
        Ok(())
    }

    async fn connect(&self) -> Result<Open, Failure> {
        let stream = TcpStream::connect(self.to).await.map_err(unreachable)?;
        stream.set_nodelay(true).map_err(unreachable)?;
        let Some(tls) = &self.tls else { return handshake(TokioIo::new(stream)).await };
        let name = ServerName::from(std::net::IpAddr::V4(*self.to.ip()));
        let stream = TlsConnector::from(tls.clone()).connect(name, stream).await.map_err(unreachable)?;
        handshake(TokioIo::new(stream)).await
    }
}

async fn handshake<T>(stream: T) -> Result<Open, Failure>
where
    T: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
{
    let (sender, connection) = hyper::client::conn::http1::handshake(stream).await.map_err(unreachable)?;
    let connection = AbortOnDropHandle::new(tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection to boot ended");
        }
    }));
    Ok(Open { sender, _connection: connection })
}

/// The pauses between tries: doubling from a tenth of a second to five.
#[derive(Debug)]
pub struct Backoff(Duration);

impl Backoff {
    /// From the start.
    pub fn new() -> Self {
        Self(Duration::from_millis(100))
    }

    /// Waits, longer at each call.
    pub async fn wait(&mut self) {
        sleep(self.0).await;
        self.0 = (self.0 * 2).min(Duration::from_secs(5));
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new()
    }
}

/// How long an answer that needs no waiting may take.
const ANSWER: Duration = Duration::from_secs(15);
const MANIFEST: Duration = Duration::from_secs(60);

/// How often boot says no to a ticket before it is given up: about a minute. A ticket that was
/// not presented in time, or to a boot that lost its tables, would be refused for ever.
const REFUSALS: u32 = 8;

/// Boot, as the installer knows it: where it is, its pinned key, and our ticket.
pub struct Channel {
    parameters: Parameters,
    present: Bytes,
    tls: Arc<rustls::ClientConfig>,
    given_up: CancellationToken,
}

impl Channel {
    /// To boot at the place the command line names, under this fresh key.
    pub fn new(
        parameters: Parameters,
        key: PrivateKeyDer<'static>,
        uuid: Option<uuid::Uuid>,
    ) -> Result<Self, pki::Unusable> {
        let present = Present { ticket: parameters.ticket.clone(), mac: parameters.mac, uuid };
        let present = serde_json::to_vec(&present).expect("messages always serialize").into();
        let tls = Arc::new(pki::installer_client(parameters.pin, key)?);
        Ok(Self { parameters, present, tls, given_up: CancellationToken::new() })
    }

    /// A lane of this channel.
    pub fn lane(&self) -> Lane {
        Lane::secure(self.parameters.boot, self.tls.clone())
    }

    /// Where boot is.
    pub fn place(&self) -> SocketAddrV4 {
        self.parameters.boot
    }

    /// Where chunks come from.
    pub fn chunks(&self) -> SocketAddrV4 {
        self.parameters.http
    }

    /// Returns once the ticket was given up: it has expired, or is another's by now, and only
    /// a restart brings a fresh one.
    pub async fn given_up(&self) {
        self.given_up.cancelled().await;
    }

    /// Presents the ticket until boot accepts it, or has refused it [so often](REFUSALS).
    pub async fn present(&self, lane: &mut Lane) -> Admitted {
        let mut backoff = Backoff::new();
        let mut refusals = Refusals::default();
        loop {
            let answer = lane.ask(Method::POST, "/v1/ticket", Some(self.present.clone()), MAX_BODY, ANSWER).await;
            match answer.and_then(parse) {
                Ok(admitted) => return admitted,
                Err(failure) => {
                    complain("ticket", &failure);
                    if refusals.count(&failure) {
                        self.given_up.cancel();
                    }
                    if let Failure::Refused(..) = failure {
                        sleep(Duration::from_secs(5)).await;
                    }
                    backoff.wait().await;
                }
            }
        }
    }

    /// Sends what was found in the machine.
    pub async fn send_inventory(&self, lane: &mut Lane, found: &Found) -> Result<(), Failure> {
        let body = serde_json::to_vec(found).expect("messages always serialize").into();
        self.call(lane, Method::PUT, "/v1/inventory", Some(body), MAX_BODY, ANSWER).await.map(drop)
    }

    /// Sends what is in the machine in detail. A boot that is older takes none.
    pub async fn send_hardware(&self, lane: &mut Lane, hardware: &Hardware) -> Result<(), Failure> {
        let body = serde_json::to_vec(hardware).expect("messages always serialize").into();
        self.call(lane, Method::PUT, "/v1/hardware", Some(body), MAX_BODY, ANSWER).await.map(drop)
    }

    /// The assignment, as soon as it is not the one with this serial.
    pub async fn assignment(&self, lane: &mut Lane, after: Option<u64>) -> Result<Assignment, Failure> {
        let path = after.map_or("/v1/assignment".to_owned(), |after| format!("/v1/assignment?after={after}"));
        self.call(lane, Method::GET, &path, None, MAX_BODY, HOLD + ANSWER).await.and_then(parse)
    }

    /// The manifest with this digest.
    pub async fn manifest(&self, lane: &mut Lane, digest: Digest) -> Result<Manifest, Failure> {
        let path = format!("/v1/manifests/{digest}");
        let signed: SignedManifest =
            self.call(lane, Method::GET, &path, None, MAX_MANIFEST, MANIFEST).await.and_then(parse)?;
        if signed.digest() != digest {
            return Err(Failure::Malformed("a manifest with another digest than asked for".to_owned()));
        }
        signed.parse_unverified().map_err(|error| Failure::Malformed(error.to_string()))
    }

    /// What the toolbox of this rack is, at [`Self::chunks`].
    pub async fn toolbox(&self, lane: &mut Lane) -> Result<ToolboxFile, Failure> {
        self.call(lane, Method::GET, "/v1/toolbox", None, MAX_BODY, MANIFEST).await.and_then(parse)
    }

    /// Brings the file of firmware that this machine is to be updated with to `path`, piece by piece, however
    /// often boot is away meanwhile. Whole, with this SHA-256, or not at all.
    pub async fn firmware(&self, sha256: &str, size: u64, path: PathBuf) -> Result<(), NoFile> {
        let mut lane = self.lane();
        let mut file = tokio::fs::File::create(path).await.map_err(NoFile::Kept)?;
        let (mut hash, mut came) = (Sha256::new(), 0);
        while came < size {
            let piece = self
                .call(&mut lane, Method::GET, &format!("/v1/firmware/{came}"), None, MAX_PIECE, ANSWER)
                .await
                .map_err(NoFile::Fetch)?;
            came += piece.len() as u64;
            if piece.is_empty() || came > size {
                return Err(NoFile::Fetch(Failure::Malformed("no piece of the file".to_owned())));
            }
            hash.update(&piece);
            file.write_all(&piece).await.map_err(NoFile::Kept)?;
        }
        file.flush().await.map_err(NoFile::Kept)?;
        if hex::encode(hash.finalize()) == sha256 { Ok(()) } else { Err(NoFile::OtherDigest) }
    }

    /// The files of the machine's config drive in this format.
    pub async fn drive(&self, lane: &mut Lane, settings: Settings) -> Result<Drive, Failure> {
        let name = serde_json::to_value(settings).expect("closed enums always serialize");
        let path = format!("/v1/drives/{}", name.as_str().expect("it is a word"));
        self.call(lane, Method::GET, &path, None, MAX_DRIVE, ANSWER).await.and_then(parse)
    }

    /// What is to be set at the machine's BMC.
    pub async fn bmc_user(&self, lane: &mut Lane) -> Result<InBandUser, Failure> {
        self.call(lane, Method::GET, "/v1/bmc-user", None, MAX_BODY, MANIFEST).await.and_then(parse)
    }

    /// Brings a report to boot's disk.
    pub async fn report(&self, lane: &mut Lane, report: &Report) -> Result<(), Failure> {
        let body = serde_json::to_vec(report).expect("messages always serialize").into();
        self.call(lane, Method::POST, "/v1/report", Some(body), MAX_BODY, ANSWER).await.map(drop)
    }

    /// Asks until there is an answer. A boot that does not know our key any more gets the
    /// ticket again.
    async fn call(
        &self,
        lane: &mut Lane,
        method: Method,
        path: &str,
        body: Option<Bytes>,
        limit: usize,
        patience: Duration,
    ) -> Result<Bytes, Failure> {
        let mut backoff = Backoff::new();
        loop {
            let mut ask = async || {
                fail_point!("channel.ask", lane.ask(method.clone(), path, body.clone(), limit, patience).await)
            };
            let failure = match ask().await {
                Ok(body) => return Ok(body),
                Err(failure) => failure,
            };
            complain(path, &failure);
            match failure {
                Failure::Unreachable(_) => {}
                Failure::Refused(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => {
                    self.present(lane).await;
                }
                Failure::Refused(status, _)
                    if status.is_server_error()
                        || [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS].contains(&status) => {}
                final_answer => return Err(final_answer),
            }
            backoff.wait().await;
        }
    }
}

fn parse<T: DeserializeOwned>(body: Bytes) -> Result<T, Failure> {
    serde_json::from_slice(&body).map_err(|error| Failure::Malformed(error.to_string()))
}

fn complain(what: &str, failure: &Failure) {
    let cause = std::error::Error::source(failure).map(ToString::to_string).unwrap_or_default();
    tracing::warn!(what, cause, "boot {failure}");
}

/// How often boot has said no to the ticket.
#[derive(Debug, Default)]
struct Refusals(u32);

impl Refusals {
    /// Whether the ticket is to be given up after this.
    fn count(&mut self, failure: &Failure) -> bool {
        if matches!(failure, Failure::Refused(StatusCode::FORBIDDEN, _)) {
            self.0 += 1;
        }
        self.0 >= REFUSALS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_that_is_refused_again_and_again_is_given_up_and_one_of_a_sick_boot_is_not() {
        let mut refusals = Refusals::default();
        let sick = Failure::Refused(StatusCode::INTERNAL_SERVER_ERROR, String::new());
        let away = Failure::Unreachable(io::ErrorKind::ConnectionRefused.into());
        assert!((0..1000).all(|_| !refusals.count(&sick) && !refusals.count(&away)));
        let no = Failure::Refused(StatusCode::FORBIDDEN, String::new());
        assert!((1..REFUSALS).all(|_| !refusals.count(&no)));
        assert!(refusals.count(&no));
    }
}
