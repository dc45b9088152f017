//! The shell around [`rackhand_netboot::tftp`]: a socket and a task per transfer.
//!
//! Serves the configured files and nothing else; each is read whole when it is asked for, so
//! that replacing it never mixes two versions in one transfer.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
};

use rackhand_common::{
    event::{Event, Stage, What},
    time::{Clock, Mono, Now},
};
use rackhand_netboot::tftp::{Ended, Refused, Request, Transfer};
use tokio::{
    net::UdpSocket,
    task::{Id, JoinSet},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{boot::leases::Leases, spool::Spool};

/// Names as machines ask for them, in lower case, and the files behind them.
pub type Files = BTreeMap<String, PathBuf>;

/// Answers on `socket` until `shutdown`. The socket is bound to the node's own address, so
/// that transfers, which have sockets of their own, answer from the address that was asked.
pub async fn serve(
    socket: UdpSocket,
    files: Files,
    clock: Arc<dyn Clock>,
    leases: Leases,
    spool: Spool,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let address = socket.local_addr()?.ip();
    let mut transfers = JoinSet::new();
    let mut clients: HashMap<SocketAddr, Id> = HashMap::new();
    // One byte more than a request may have, so that a longer one is seen to be.
    let mut buffer = [0; 513];
    loop {
        let (len, client) = tokio::select! {
            biased;
            () = shutdown.cancelled() => return Ok(()),
            Some(ended) = transfers.join_next_with_id() => {
                let task = match ended {
                    Ok((task, ())) => task,
                    Err(error) => error.id(),
                };
                clients.retain(|_, running| *running != task);
                continue;
            }
            received = socket.recv_from(&mut buffer) => match received {
                Ok(received) => received,
                // An ICMP error for something sent earlier says nothing about the next request.
                Err(error) => { debug!(%error, "TFTP request not received"); continue; }
            },
        };
        if clients.contains_key(&client) {
            continue; // It repeats its request: the first answer is on its way, or will be repeated.
        }
        let refused = match Request::parse(&buffer[..len]) {
            Ok(_) if clients.len() >= AT_ONCE || of(&clients, client.ip()) >= PER_CLIENT => Refused::Busy,
            Ok(request) => match files.get(&request.file) {
                Some(path) => {
                    let path = path.clone();
                    let (clock, leases, spool) = (clock.clone(), leases.clone(), spool.clone());
                    let task = transfers.spawn(async move {
                        match send(address, client, &request, &path, clock.as_ref()).await {
                            Ok(Ended::Done) => fetched(client.ip(), request.file, &leases, clock.as_ref(), &spool),
                            Ok(Ended::Lost) => info!(%client, file = request.file, "TFTP client stopped answering"),
                            Ok(Ended::Aborted { code }) => debug!(%client, code, "TFTP transfer broken off by client"),
                            Err(error) => warn!(%client, path = %path.display(), %error, "TFTP transfer failed"),
                        }
                    });
                    clients.insert(client, task.id());
                    continue;
                }
                None => Refused::NotFound,
            },
            Err(refused) => refused,
        };
        debug!(%client, %refused, "TFTP request refused");
        if let Some(packet) = refused.packet()
            && let Err(error) = socket.send_to(&packet, client).await
        {
            debug!(%client, %error, "TFTP error not sent");
        }
    }
}

async fn send(
    address: IpAddr,
    client: SocketAddr,
    request: &Request,
    path: &Path,
    clock: &dyn Clock,
) -> io::Result<Ended> {
    let socket = UdpSocket::bind((address, 0)).await?;
    // Connected: packets from another transfer identifier never get here.
    socket.connect(client).await?;
    let content: Arc<[u8]> = match tokio::fs::read(path).await {
        Ok(content) => content.into(),
        Err(error) => {
            let packet = Refused::NotFound.packet().unwrap_or_default();
            socket.send(&packet).await?;
            return Err(error);
        }
    };
    let mut transfer = Transfer::new(clock.now(), request, content);
    let mut buffer = [0; 1500];
    loop {
        while let Some(packet) = transfer.transmit() {
            // Not sent is lost, and lost is repeated.
            if let Err(error) = socket.send(&packet).await {
                debug!(%client, %error, "TFTP block not sent");
            }
        }
        let Some(deadline) = transfer.timeout() else { break };
        let Now { mono, .. } = clock.now();
        match timeout(Mono::until(mono, deadline), socket.recv(&mut buffer)).await {
            Ok(Ok(len)) => transfer.handle(clock.now(), &buffer[..len]),
            Ok(Err(error)) => {
                // Port unreachable: it may still be closing one socket and opening another.
                debug!(%client, %error, "TFTP answer not received");
                tokio::time::sleep(Mono::until(mono, deadline)).await;
                transfer.handle_timeout(clock.now());
            }
            Err(_) => transfer.handle_timeout(clock.now()),
        }
    }
    Ok(transfer.ended().cloned().unwrap_or(Ended::Lost))
}

fn fetched(client: IpAddr, file: String, leases: &Leases, clock: &dyn Clock, spool: &Spool) {
    info!(%client, file, "loader fetched");
    let IpAddr::V4(address) = client else { return };
    if let Some(holder) = leases.by_address(address) {
        let what = What::Stage(Stage::Loader(file));
        spool.offer(Event { at: clock.now().wall, machine: Some(holder.machine), what });
    }
}

fn of(clients: &HashMap<SocketAddr, Id>, source: IpAddr) -> usize {
    clients.keys().filter(|client| client.ip() == source).count()
}

/// How many transfers run at once: each holds a loader in memory, a quarter of a megabyte.
/// A client beyond it is told to ask again.
const AT_ONCE: usize = 256;

/// How many of them go to one address. Firmware asks for one file, breaks off, and asks again.
const PER_CLIENT: usize = 4;

#[cfg(test)]
mod tests {
    use rackhand_common::id::MachineId;
    use tokio::sync::watch;

    use super::*;
    use crate::{boot::leases::Holder, clock::SystemClock};

    #[tokio::test]
    async fn a_client_gets_a_configured_file_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("loader");
        std::fs::write(&path, vec![7; 1000]).unwrap();
        let db = Arc::new(redb::Database::create(dir.path().join("boot.redb")).unwrap());
        let (_keep, intent) = watch::channel(None);
        let leases = Leases::open(db, intent).unwrap();
        let machine = MachineId::fresh();
        let mac = "52:54:00:00:00:01".parse().unwrap();
        leases.commit(vec![Holder { machine, mac, address: "127.0.0.1".parse().unwrap() }], vec![]).await.unwrap();
        let spool = Spool::open(&dir.path().join("spool.redb"), 100).unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let server = socket.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let files = Files::from([("snponly.efi".into(), path)]);
        let serving = tokio::spawn(serve(
            socket,
            files,
            Arc::new(SystemClock::default()),
            leases,
            spool.clone(),
            shutdown.clone(),
        ));

        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let mut buffer = [0; 2000];
        client.send_to(b"\0\x01/etc/passwd\0octet\0", server).await.unwrap();
        let (len, _) = client.recv_from(&mut buffer).await.unwrap();
        assert_eq!(buffer[..4], [0, 5, 0, 1], "{:?}", &buffer[..len]);

        client.send_to(b"\0\x01SNPONLY.EFI\0octet\0", server).await.unwrap();
        let (len, from) = client.recv_from(&mut buffer).await.unwrap();
        assert_eq!((len, &buffer[..4]), (516, &[0, 3, 0, 1][..]));
        assert_ne!(from, server, "each transfer has its own port");
        client.send_to(&[0, 4, 0, 1], from).await.unwrap();
        let (len, _) = client.recv_from(&mut buffer).await.unwrap();
        assert_eq!((len, &buffer[..4]), (4 + 488, &[0, 3, 0, 2][..]));
        client.send_to(&[0, 4, 0, 2], from).await.unwrap();

        let (_, events) = spool.batch(1).await.unwrap();
        assert_eq!(events[0].what, What::Stage(Stage::Loader("snponly.efi".into())));
        assert_eq!(events[0].machine, Some(machine));
        shutdown.cancel();
        serving.await.unwrap().unwrap();
    }
}
