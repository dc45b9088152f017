//! The HTTPS listener: HTTP/1.1 over TLS 1.3. A client may present a certificate; who it proves
//! to be at the time of a request stands in that request's extensions as `Option<Peer>`, the
//! client's address as `ConnectInfo<SocketAddr>`.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Extension, Router,
    extract::{ConnectInfo, Request},
    middleware::map_request,
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use rackhand_common::{
    pki::{self, Identity, Peer, TrustBundle, Unusable},
    time::Clock,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How long a handshake, or a request's header, may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Connections at once; further ones wait in the kernel's queue until one ends.
const CONNECTIONS: usize = 1024;

/// TLS for [`serve`].
pub fn tls(bundle: &TrustBundle, identity: Identity) -> Result<TlsAcceptor, Unusable> {
    let mut config = pki::controller_server(bundle, identity)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
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
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let tracker = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = async {
                let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
                (place, listener.accept().await)
            } => accepted,
            () = shutdown.cancelled() => break,
        };
        let (place, (socket, from)) = match accepted {
            (place, Ok(accepted)) => (place, accepted),
            (_, Err(error)) => {
                // Out of file descriptors, or a client that was gone: neither gets better by haste.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (tls, router, clock, shutdown) = (tls.clone(), router.clone(), clock.clone(), shutdown.clone());
        tracker.spawn(async move {
            connection(socket, from, tls, router, clock, shutdown).await;
            drop(place);
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
    let chain = stream.get_ref().1.peer_certificates().map(<[_]>::to_vec).unwrap_or_default();
    let peer = move |mut request: Request| {
        // Looked at for every request: a connection may outlive the certificate it began with.
        request.extensions_mut().insert(Peer::certified(&chain, clock.now().wall).ok());
        std::future::ready(request)
    };
    let router = router.layer(map_request(peer)).layer(Extension(ConnectInfo(from)));
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
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
