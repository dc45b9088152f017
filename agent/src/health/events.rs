//! Events of BMCs (DSP0266 section 12), posted to the node: a BMC that has something to say is read now and
//! not in its turn.
//!
//! Invariants:
//! - Nothing of an event is believed, or even read: it says that something may have happened, and the
//!   BMC's own log says what. Who sends none is read in its turn all the same.
//! - Each BMC posts to a name of its own, which nobody else is told and which is another after each
//!   start. What is posted elsewhere causes nothing.
//! - At most [`CONNECTIONS`] are served at a time, each for at most [`PATIENCE`], in which [`BODY`] bytes
//!   are taken.

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Method, Request, Response, StatusCode, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rackhand_common::id::MachineId;
use rackhand_daemon::place::Listening;
use rustls_pki_types::PrivateKeyDer;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Notify,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Connections at once, all together and of one address.
const CONNECTIONS: usize = 64;
const EACH: usize = 4;

/// How long one may take, with its handshake.
const PATIENCE: Duration = Duration::from_secs(10);

/// How much of an event is taken off its connection, in bytes.
const BODY: usize = 64 << 10;

/// Below this, each BMC has its name.
const PATH: &str = "/redfish-events/";

/// What BMCs post to; clones are the same.
#[derive(Clone)]
pub struct Events(Arc<Inner>);

struct Inner {
    /// The URL up to a BMC's name.
    base: String,
    bells: Mutex<HashMap<MachineId, Bell>>,
    /// Whose BMCs have been told to post here.
    subscribed: Mutex<HashSet<MachineId>>,
}

/// What rings when a BMC posts.
#[derive(Clone, Debug)]
pub(super) struct Bell {
    /// The BMC's name.
    pub(super) name: Arc<str>,
    rung: Arc<Notify>,
}

impl Bell {
    /// Waits until it rings; what rang since the last time counts, once.
    pub(super) async fn rings(&self) {
        self.rung.notified().await;
    }
}

impl Events {
    /// Those posted to this address, by which BMCs reach this node.
    pub fn at(address: SocketAddr) -> Self {
        let base = format!("https://{address}{PATH}");
        Self(Arc::new(Inner { base, bells: Mutex::default(), subscribed: Mutex::default() }))
    }

    /// The URL up to a BMC's name.
    pub(super) fn base(&self) -> &str {
        &self.0.base
    }

    /// That of a machine's BMC.
    pub(super) fn bell(&self, machine: MachineId) -> Bell {
        let fresh = || Bell { name: hex::encode(rand::random::<[u8; 16]>()).into(), rung: Arc::default() };
        self.bells().entry(machine).or_insert_with(fresh).clone()
    }

    /// A machine's BMC posts here, or does not.
    pub(super) fn note_subscribed(&self, machine: MachineId, is_it: bool) {
        let mut subscribed = self.0.subscribed.lock().unwrap_or_else(PoisonError::into_inner);
        if is_it {
            subscribed.insert(machine)
        } else {
            subscribed.remove(&machine)
        };
    }

    /// The machines whose BMCs post here.
    pub(super) fn subscribed(&self) -> Vec<MachineId> {
        self.0.subscribed.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }

    /// Nothing is expected of this machine's BMC any more.
    pub(super) fn forget(&self, machine: MachineId) {
        self.bells().remove(&machine);
        self.note_subscribed(machine, false);
    }

    /// Takes what is posted, until shutdown.
    pub async fn serve(self, listener: TcpListener, tls: TlsAcceptor, shutdown: CancellationToken) {
        let (places, tasks) = (Listening::new(CONNECTIONS, EACH), TaskTracker::new());
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = shutdown.cancelled() => break,
            };
            let (stream, from) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a BMC's connection");
                    sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (events, tls, shutdown) = (self.clone(), tls.clone(), shutdown.clone());
            let place = places.place(from.ip(), false);
            tasks.spawn(async move {
                tokio::select! {
                    served = timeout(PATIENCE, events.connection(stream, tls)) => match served {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => tracing::debug!(%from, error = format!("{error:#}"), "no event"),
                        Err(_) => tracing::debug!(%from, "no event in time"),
                    },
                    () = place.lost.cancelled() => tracing::debug!(%from, "too many connections"),
                    () = shutdown.cancelled() => {}
                }
            });
        }
        tasks.close();
        tasks.wait().await;
    }

    async fn connection(&self, stream: TcpStream, tls: TlsAcceptor) -> Result<()> {
        let stream = tls.accept(stream).await.context("no TLS")?;
        let service = service_fn(|request| self.take(request));
        let served = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(PATIENCE)
            .max_buf_size(16 << 10)
            .serve_connection(TokioIo::new(stream), service);
        served.await.context("no HTTP")
    }

    async fn take(&self, request: Request<Incoming>) -> Result<Response<Empty<Bytes>>, Infallible> {
        let name = request.uri().path().strip_prefix(PATH);
        let is_known = request.method() == Method::POST && name.is_some_and(|name| self.ring(name));
        // A BMC that is answered while it still sends takes that for a failure.
        let status = match Limited::new(request.into_body(), BODY).collect().await {
            _ if !is_known => StatusCode::NOT_FOUND,
            Ok(_) => StatusCode::NO_CONTENT,
            Err(_) => StatusCode::PAYLOAD_TOO_LARGE,
        };
        let mut response = Response::new(Empty::new());
        *response.status_mut() = status;
        Ok(response)
    }

    /// Rings for the BMC of this name, if there is one.
    fn ring(&self, name: &str) -> bool {
        let bells = self.bells();
        let bell = bells.values().find(|bell| *bell.name == *name);
        if let Some(bell) = bell {
            bell.rung.notify_one();
        }
        bell.is_some()
    }

    fn bells(&self) -> MutexGuard<'_, HashMap<MachineId, Bell>> {
        self.0.bells.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A certificate of nobody's, made afresh: BMCs demand TLS, and ask for no name.
pub fn tls(address: SocketAddr) -> Result<TlsAcceptor> {
    let made =
        rcgen::generate_simple_self_signed(vec![address.ip().to_string()]).context("no certificate can be made")?;
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .context("the certificate for BMCs cannot be used")?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use rackhand_common::pki::install_crypto;

    use super::*;

    #[tokio::test]
    async fn what_a_bmc_posts_rings_once_and_what_anybody_else_does_not_at_all() {
        install_crypto();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let (events, shutdown) = (Events::at(at), CancellationToken::new());
        let (bell, other) = (events.bell(MachineId::fresh()), events.bell(MachineId::fresh()));
        assert_ne!(bell.name, other.name);
        let serving = tokio::spawn(events.clone().serve(listener, tls(at).unwrap(), shutdown.clone()));
        let client = reqwest::Client::builder().tls_danger_accept_invalid_certs(true).no_proxy().build().unwrap();
        let base = events.base().to_owned();
        let post = async |method: Method, name: &str, body: Vec<u8>| {
            let asked = client.request(method, format!("{base}{name}")).body(body).send().await;
            asked.map(|answer| answer.status().as_u16()).unwrap_or_default()
        };
        for _ in 0..3 {
            assert_eq!(post(Method::POST, &bell.name, b"{\"@odata.type\": 7".to_vec()).await, 204);
        }
        assert_eq!(post(Method::POST, "0123", Vec::new()).await, 404);
        assert_eq!(post(Method::GET, &other.name, Vec::new()).await, 404);
        bell.rings().await;
        assert!(timeout(Duration::ZERO, bell.rings()).await.is_err(), "three rang once");
        assert!(timeout(Duration::ZERO, other.rings()).await.is_err(), "nothing was posted to it");
        // It rings, and its bytes are not taken.
        assert_ne!(post(Method::POST, &bell.name, vec![b'x'; 4 * BODY]).await, 204);
        bell.rings().await;
        shutdown.cancel();
        serving.await.unwrap();
    }
}
