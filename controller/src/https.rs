//! The HTTPS listener: HTTP/1.1 over TLS 1.3, bounded in connections: one address has at most
//! [`PER_CLIENT`], all together [`CONNECTIONS`], and beyond that the address that has the most
//! loses its oldest, so that whoever opens them by the hundred keeps nobody else out. A client may present a certificate; who it proves
//! to be at the time of a request stands in that request's extensions as `Option<Peer>`, the
//! client's address as `ConnectInfo<SocketAddr>`.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, body::Body, extract::ConnectInfo};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rackhand_common::{
    pki::{self, Identity, Peer, TrustBundle, Unusable},
    time::Clock,
};
use rackhand_daemon::place::Listening;
use tokio::{
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;

use crate::certificates::{ALPN_ACME, Certificates};

/// How long a handshake, or a request's header, may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Connections at once.
const CONNECTIONS: usize = 1024;

/// Connections of one address: a node's for chunks, or those of all operators behind one router.
const PER_CLIENT: usize = 128;

/// TLS for [`serve`]; `identity` is what the certificates begin with.
pub fn tls(bundle: &TrustBundle, identity: Identity, certificates: Arc<Certificates>) -> Result<TlsAcceptor, Unusable> {
    let mut config = pki::controller_server(bundle, identity)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec(), ALPN_ACME.to_vec()];
    config.cert_resolver = certificates;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Serves until shutdown, then lets requests in flight finish.
pub async fn serve(
    listener: TcpListener,
    tls: TlsAcceptor,
    router: Router,
    clock: Arc<dyn Clock>,
    shutdown: CancellationToken,
) {
    let places = Listening::new(CONNECTIONS, PER_CLIENT);
    let tracker = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => break,
        };
        let (socket, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, or a client that was gone: neither gets better by haste.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (tls, router, clock, shutdown) = (tls.clone(), router.clone(), clock.clone(), shutdown.clone());
        let place = places.place(from.ip(), false);
        tracker.spawn(async move {
            tokio::select! {
                biased;
                () = place.lost.cancelled() => tracing::debug!(%from, "too many connections"),
                () = connection(socket, from, tls, router, clock, shutdown) => {}
            }
        });
    }
    drop(listener);
    tracker.close();
    tracker.wait().await;
}

async fn connection(
    socket: TcpStream,
    from: SocketAddr,
    tls: TlsAcceptor,
    router: Router,
    clock: Arc<dyn Clock>,
    shutdown: CancellationToken,
) {
    let _ = socket.set_nodelay(true);
    let stream = match timeout(PATIENCE, tls.accept(socket)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%from, %error, "TLS handshake failed"),
        Err(_) => return tracing::debug!(%from, "TLS handshake took too long"),
    };
    if stream.get_ref().1.alpn_protocol() == Some(ALPN_ACME) {
        // The authority has seen what it wanted to see.
        return;
    }
    let chain = stream.get_ref().1.peer_certificates().map(<[_]>::to_vec).unwrap_or_default();
    // The router itself is shared: a layer of this connection's own would be one around every route.
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let mut request = request.map(Body::new);
        // Looked at for every request: a connection may outlive the certificate it began with.
        request.extensions_mut().insert(Peer::certified(&chain, clock.now().wall).ok());
        request.extensions_mut().insert(ConnectInfo(from));
        router.clone().oneshot(request)
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    tokio::pin!(served);
    let ended = tokio::select! {
        ended = &mut served => ended,
        () = shutdown.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%from, %error, "connection ended");
    }
}
