//! Machines' consoles by SSH (RFC 4251 to 4254): `ssh -p 2222 MACHINE@CONTROLLER`, with a key that one has
//! added to oneself.
//!
//! Read in this order: [`keys`] are keys as they are written, [`client`] is who comes and what they ask
//! for, [`line`] a console as it is shown to them.
//!
//! Invariants:
//! - Who may is decided by what decides it for the API, and looked at again while it lasts.
//! - Whatever is wrong, the key, the machine or the right to it, is refused in the same way after the same
//!   time, and only to who has proven to have the key. It is written into the audit record.
//! - A connection that has not proven anything has [`PATIENCE`] and [`STRANGE`] bytes, and there are at most
//!   [`STRANGERS`] of them; one that has may have one console, and is ended when it has none.
//! - Nothing is carried out, forwarded or transferred.

mod client;
mod keys;
mod line;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use rackhand_daemon::place::{Listening, Place};
use russh::{
    MethodKind, MethodSet, Preferred, SshId, compression,
    keys::{Algorithm, HashAlg, PrivateKey},
    server::{Config, run_stream},
};
use tokio::{
    io::{self, AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::client::{Client, Stage};
pub use self::keys::{Door, HostKey, NotAKey, PublicKey, host_key};
use crate::api::App;

/// How long somebody has to prove who they are, and then to ask for a console.
const PATIENCE: Duration = Duration::from_secs(20);

/// What somebody may send before, in bytes: handshakes have 2 KiB, and each key 1 KiB at most.
const STRANGE: usize = 256 << 10;

/// Connections of strangers, all together and of one address.
const STRANGERS: usize = 64;
const PER_CLIENT: usize = 8;

/// How long every refusal takes.
const SLOW: Duration = Duration::from_millis(500);

/// Refusals before a connection ends: OpenSSH's own, as an `ssh-agent` may have as many keys.
const REFUSALS: usize = 6;

/// How often a client that is silent is asked whether it is there, and how often in vain.
const ASK: Duration = Duration::from_secs(15);
const UNANSWERED: usize = 3;

/// How long the end of a console waits for its client to go.
const FAREWELL: Duration = Duration::from_secs(2);

/// Serves until shutdown, then lets consoles say why they end.
pub(crate) async fn serve(listener: TcpListener, key: HostKey, app: App, shutdown: CancellationToken) {
    let config = Arc::new(config(key.0));
    let places = Listening::new(STRANGERS, PER_CLIENT);
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
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let place = places.place(from.ip(), false);
        tracker.spawn(connection(socket, from, config.clone(), app.clone(), place, shutdown.clone()));
    }
    drop(listener);
    tracker.close();
    tracker.wait().await;
}

fn config(key: PrivateKey) -> Config {
    // No SHA-1.
    let signatures = [
        Algorithm::Ed25519,
        Algorithm::Ecdsa { curve: russh::keys::EcdsaCurve::NistP256 },
        Algorithm::Ecdsa { curve: russh::keys::EcdsaCurve::NistP384 },
        Algorithm::Ecdsa { curve: russh::keys::EcdsaCurve::NistP521 },
        Algorithm::Rsa { hash: Some(HashAlg::Sha512) },
        Algorithm::Rsa { hash: Some(HashAlg::Sha256) },
    ];
    let preferred = Preferred {
        key: signatures.to_vec().into(),
        // What a machine prints is not worth a decompressor for everybody who comes along.
        compression: [compression::NONE].to_vec().into(),
        ..Preferred::DEFAULT
    };
    Config {
        server_id: SshId::Standard("SSH-2.0-rackhand".into()),
        methods: MethodSet::from(&[MethodKind::PublicKey][..]),
        auth_rejection_time: SLOW,
        auth_rejection_time_initial: Some(Duration::ZERO),
        keys: vec![key],
        preferred,
        max_auth_attempts: REFUSALS,
        // Those who have not proven anything have PATIENCE, consoles their own end.
        inactivity_timeout: None,
        keepalive_interval: Some(ASK),
        keepalive_max: UNANSWERED,
        ..Config::default()
    }
}

/// A connection until either side ends it, or it has had its time.
async fn connection(
    socket: TcpStream,
    from: SocketAddr,
    config: Arc<Config>,
    app: App,
    place: Place,
    shutdown: CancellationToken,
) {
    let _ = socket.set_nodelay(true);
    let (stage, stages) = watch::channel(Stage::Strange);
    let consoles = TaskTracker::new();
    let client = Client::new(app, from, stage, consoles.clone());
    // The session runs in a task of its library's own: with its end of this pipe gone, it ends.
    let (near, far) = io::duplex(64 << 10);
    let session = async {
        match run_stream(config, far, client).await {
            Ok(session) => session.await,
            Err(error) => Err(error),
        }
    };
    let stops = async {
        shutdown.cancelled().await;
        sleep(FAREWELL).await;
    };
    tokio::select! {
        ended = session => if let Err(error) = ended {
            tracing::debug!(%from, error = &error as &dyn std::error::Error, "an SSH connection ended");
        },
        () = pump(socket, near, stages.clone()) => {}
        why = late(stages, place) => tracing::debug!(%from, why, "an SSH connection was ended"),
        () = stops => {}
    }
    consoles.close();
    consoles.wait().await;
}

/// Carries bytes both ways until one side ends, or has said too much for a stranger.
async fn pump(socket: TcpStream, near: DuplexStream, stages: watch::Receiver<Stage>) {
    let (mut from_client, mut to_client) = socket.into_split();
    let (mut from_us, mut to_us) = io::split(near);
    let inwards = async {
        let (mut buffer, mut said) = (vec![0; 16 << 10], 0);
        while let Ok(length @ 1..) = from_client.read(&mut buffer).await {
            if *stages.borrow() == Stage::Strange {
                said += length;
                if said > STRANGE {
                    return;
                }
            }
            if to_us.write_all(&buffer[..length]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = inwards => {}
        _ = io::copy(&mut from_us, &mut to_client) => {}
    }
}

/// Returns when a connection has had its time; why.
async fn late(mut stages: watch::Receiver<Stage>, place: Place) -> &'static str {
    tokio::select! {
        known = timeout(PATIENCE, stages.wait_for(|stage| *stage >= Stage::Known)) => if known.is_err() {
            return "it has not proven anything";
        },
        () = place.lost.cancelled() => return "too many connections",
    }
    drop(place);
    if timeout(PATIENCE, stages.wait_for(|stage| *stage >= Stage::Open)).await.is_err() {
        return "it has not asked for a console";
    }
    // The sender goes with its session, which ends the connection by itself.
    let _ = stages.wait_for(|stage| *stage >= Stage::Over).await;
    sleep(FAREWELL).await;
    "its console is over"
}
