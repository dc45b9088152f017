//! HTTP/1.1 connections from machines, bounded in number and time, in clear or over TLS.
//!
//! Invariants:
//! - One address has at most [`PER_CLIENT`] connections, all together [`CONNECTIONS`].
//! - Beyond either, the address that has the most loses its oldest: whoever opens connections
//!   by the hundred takes places from itself, not from a machine with one or two.

use std::{
    collections::{HashMap, VecDeque},
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use rackhand_common::pki::Peer;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
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
    shutdown: CancellationToken,
) -> io::Result<()> {
    let places = Arc::new(Mutex::new(Places::default()));
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
        let place = Place::take(&places, address.ip());
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

/// Who is connected: by address, the oldest connection first.
#[derive(Debug, Default)]
struct Places {
    taken: HashMap<IpAddr, VecDeque<(u64, CancellationToken)>>,
    count: usize,
    next: u64,
}

impl Places {
    /// A place for one more, if need be that of another connection, which is told.
    fn take(&mut self, address: IpAddr) -> (u64, CancellationToken) {
        if self.taken.get(&address).is_some_and(|held| held.len() >= PER_CLIENT) {
            self.take_away(address);
        } else if self.count >= CONNECTIONS {
            let most = self.taken.iter().max_by_key(|(_, held)| held.len()).map(|(address, _)| *address);
            most.into_iter().for_each(|most| self.take_away(most));
        }
        let (number, lost) = (self.next, CancellationToken::new());
        self.next += 1;
        self.count += 1;
        self.taken.entry(address).or_default().push_back((number, lost.clone()));
        (number, lost)
    }

    /// The oldest connection of an address loses its place.
    fn take_away(&mut self, address: IpAddr) {
        if let Some((number, lost)) = self.taken.get(&address).and_then(|held| held.front()).cloned() {
            lost.cancel();
            self.leave(address, number);
        }
    }

    fn leave(&mut self, address: IpAddr, number: u64) {
        let Some(held) = self.taken.get_mut(&address) else { return };
        if let Some(at) = held.iter().position(|(held, _)| *held == number) {
            held.remove(at);
            self.count -= 1;
        }
        if held.is_empty() {
            self.taken.remove(&address);
        }
    }
}

/// A connection's place, given back when it is dropped.
#[derive(Debug)]
struct Place {
    places: Arc<Mutex<Places>>,
    address: IpAddr,
    number: u64,
    lost: CancellationToken,
}

impl Place {
    fn take(places: &Arc<Mutex<Places>>, address: IpAddr) -> Self {
        let (number, lost) = lock(places).take(address);
        Self { places: places.clone(), address, number, lost }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.places).leave(self.address, self.number);
    }
}

fn lock(places: &Mutex<Places>) -> MutexGuard<'_, Places> {
    places.lock().unwrap_or_else(PoisonError::into_inner)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: usize) -> IpAddr {
        IpAddr::from([10, 0, (number >> 8) as u8, number as u8])
    }

    #[test]
    fn whoever_has_the_most_connections_loses_the_oldest_of_them() {
        let mut places = Places::default();
        let (_, machine) = places.take(address(0));
        let first: Vec<_> = (0..PER_CLIENT).map(|_| places.take(address(1)).1).collect();
        assert!(first.iter().all(|lost| !lost.is_cancelled()));
        places.take(address(1));
        assert!(first[0].is_cancelled() && !first[1].is_cancelled(), "beyond its own bound it loses its own oldest");
        for number in 0..CONNECTIONS * 2 {
            places.take(address(2 + number % 200));
        }
        assert_eq!(places.count, CONNECTIONS);
        assert!(!machine.is_cancelled(), "a machine with one connection keeps it");
    }

    #[test]
    fn a_place_comes_back_once_however_a_connection_ends() {
        let places = Arc::new(Mutex::new(Places::default()));
        let held: Vec<_> = (0..PER_CLIENT + 3).map(|_| Place::take(&places, address(1))).collect();
        assert_eq!(lock(&places).count, PER_CLIENT);
        drop(held);
        assert_eq!(lock(&places).count, 0);
        assert!(lock(&places).taken.is_empty());
    }
}
