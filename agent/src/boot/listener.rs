//! HTTP/1.1 connections from machines, bounded in number and time, in clear or over TLS.
//!
//! Invariants:
//! - One address has at most [`PER_CLIENT`] connections, all together [`CONNECTIONS`]; who gives
//!   way beyond that is in [`rackhand_common::places`]. Known are the addresses that the intent
//!   gives to machines.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use rackhand_common::{intent::Intent, pki::Peer};
use rackhand_daemon::place::Listening;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Open connections per listener: every machine of a full rack with a few each.
const CONNECTIONS: usize = 2048;

/// Open connections of one address: an installer has one to the channel and eight for chunks.
const PER_CLIENT: usize = 32;

/// How long a client may take for its TLS handshake, and for the head of a request.
const PATIENCE: Duration = Duration::from_secs(20);

/// Who is connected; found by handlers in a request's extensions.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    /// Where from.
    pub address: SocketAddr,
    /// Over TLS: the key it holds.
    pub peer: Option<Peer>,
}

/// Serves `routes` until `shutdown`, then lets requests in flight finish.
pub(super) async fn serve(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    routes: Router,
    intent: watch::Receiver<Option<Arc<Intent>>>,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let places = Listening::new(CONNECTIONS, PER_CLIENT);
    let connections = TaskTracker::new();
    loop {
        let (stream, address) = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, most likely: others will be closed soon.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    continue;
                }
            },
        };
        let (tls, routes, shutdown) = (tls.clone(), routes.clone(), shutdown.clone());
        let place = places.place(address.ip(), is_known(&intent, address.ip()));
        connections.spawn(async move {
            let ended = tokio::select! {
                biased;
                () = place.lost.cancelled() => Err(anyhow::anyhow!("too many connections")),
                ended = connection(stream, address, tls, routes, shutdown) => ended,
            };
            if let Err(error) = ended {
                tracing::debug!(%address, error = %format_args!("{error:#}"), "connection ended early");
            }
        });
    }
    connections.close();
    connections.wait().await;
    Ok(())
}

fn is_known(intent: &watch::Receiver<Option<Arc<Intent>>>, address: IpAddr) -> bool {
    let intent = intent.borrow();
    intent.iter().flat_map(|intent| &intent.machines).any(|machine| IpAddr::V4(machine.address) == address)
}

async fn connection(
    stream: TcpStream,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
    routes: Router,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    match tls {
        None => requests(stream, Client { address, peer: None }, routes, shutdown).await,
        Some(tls) => {
            let stream = timeout(PATIENCE, tls.accept(stream)).await??;
            let peer = Peer::pinned(stream.get_ref().1.peer_certificates().unwrap_or_default())?;
            requests(stream, Client { address, peer: Some(peer) }, routes, shutdown).await
        }
    }
}

async fn requests(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    client: Client,
    routes: Router,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let service = TowerToHyperService::new(routes.layer(Extension(client)));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_headers(64)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return Ok(ended?),
        () = shutdown.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    Ok(connection.await?)
}
