//! The shell around [`rackhand_netboot::tftp`]: a socket and a task per transfer.
//!
//! Serves the configured files and nothing else; each is read whole when it is asked for, so
//! that replacing it never mixes two versions in one transfer.
//!
//! Invariant: requests with forged senders, which nobody answers for, keep no machine from its
//! loader. When every place is taken, the oldest transfer that was never answered gives way.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use rackhand_common::{
    event::{Event, Stage, What},
    time::{Clock, Mono, Now},
};
use rackhand_netboot::tftp::{Ended, Refused, Request, Transfer};
use tokio::{
    net::UdpSocket,
    sync::watch,
    task::{AbortHandle, JoinSet},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{boot::leases::Leases, spool::Spool};

/// Names as machines ask for them, in lower case, and the files behind them.
pub type Files = BTreeMap<String, PathBuf>;

/// Answers on `socket` until `shutdown`. The socket is bound to the node's own address, so
/// that transfers, which have sockets of their own, answer from the address that was asked.
/// `files` may change: transfers under way go on with the file they began with.
pub async fn serve(
    socket: UdpSocket,
    files: watch::Receiver<Files>,
    clock: Arc<dyn Clock>,
    leases: Leases,
    spool: Spool,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let address = socket.local_addr()?.ip();
    let mut transfers = JoinSet::new();
    let mut clients: HashMap<SocketAddr, Running> = HashMap::new();
    let mut begun = 0;
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
                clients.retain(|_, running| running.task.id() != task);
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
            Ok(request) => match files.borrow().get(&request.file).cloned() {
                Some(_) if of(&clients, client.ip()) >= PER_CLIENT || !make_room(&mut clients) => Refused::Busy,
                Some(path) => {
                    let (clock, leases, spool) = (clock.clone(), leases.clone(), spool.clone());
                    let answered = Arc::new(AtomicBool::new(false));
                    let heard = answered.clone();
                    let task = transfers.spawn(async move {
                        match send(address, client, &request, &path, clock.as_ref(), &heard).await {
                            Ok(Ended::Done) => fetched(client.ip(), request.file, &leases, clock.as_ref(), &spool),
                            Ok(Ended::Lost) if heard.load(Ordering::Relaxed) => {
                                info!(%client, file = request.file, "TFTP client stopped answering")
                            }
                            Ok(Ended::Lost) => debug!(%client, "TFTP client never answered"),
                            Ok(Ended::Aborted { code }) => debug!(%client, code, "TFTP transfer broken off by client"),
                            Err(error) => warn!(%client, path = %path.display(), %error, "TFTP transfer failed"),
                        }
                    });
                    begun += 1;
                    clients.insert(client, Running { task, begun, answered });
                    continue;
                }
                None => Refused::NotFound,
            },
            Err(refused) => refused,
        };
        debug!(%client, %refused, "TFTP request refused");
        // Never waited for: a socket whose buffer is full of answers to addresses that nobody
        // has would stop everyone's requests.
        if let Some(packet) = refused.packet()
            && let Err(error) = socket.try_send_to(&packet, client)
        {
            debug!(%client, %error, "TFTP error not sent");
        }
    }
}

/// A transfer under way.
#[derive(Debug)]
struct Running {
    task: AbortHandle,
    /// Counts up from the first.
    begun: u64,
    /// Whether its client has ever answered.
    answered: Arc<AtomicBool>,
}

async fn send(
    address: IpAddr,
    client: SocketAddr,
    request: &Request,
    path: &Path,
    clock: &dyn Clock,
    answered: &AtomicBool,
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
            Ok(Ok(len)) => {
                answered.store(true, Ordering::Relaxed);
                transfer.handle(clock.now(), &buffer[..len]);
            }
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

fn of(clients: &HashMap<SocketAddr, Running>, source: IpAddr) -> usize {
    clients.keys().filter(|client| client.ip() == source).count()
}

/// Whether there is a place for one more, if need be that of a client that never answered.
fn make_room(clients: &mut HashMap<SocketAddr, Running>) -> bool {
    if clients.len() < AT_ONCE {
        return true;
    }
    let silent = clients.iter().filter(|(_, running)| !running.answered.load(Ordering::Relaxed));
    let Some(oldest) = silent.min_by_key(|(_, running)| running.begun).map(|(client, _)| *client) else { return false };
    if let Some(running) = clients.remove(&oldest) {
        running.task.abort();
    }
    true
}

/// How many transfers run at once: each holds a loader in memory, a quarter of a megabyte.
/// A client beyond it takes the place of one that never answered, or is told to ask again.
const AT_ONCE: usize = 256;

/// How many of them go to one address. Firmware asks for one file, breaks off, and asks again.
const PER_CLIENT: usize = 4;

#[cfg(test)]
mod tests {
    use rackhand_common::id::MachineId;

    use super::*;
    use crate::{boot::leases::Holder, clock::SystemClock};

    #[tokio::test]
    async fn a_client_that_never_answered_gives_way_and_one_that_did_keeps_its_place() {
        let mut clients = HashMap::new();
        for n in 0..AT_ONCE {
            let client = SocketAddr::from(([10, 0, (n / 200) as u8, (n % 200) as u8], 2000));
            let task = tokio::spawn(std::future::pending::<()>()).abort_handle();
            let answered = Arc::new(AtomicBool::new(n % 2 == 0));
            clients.insert(client, Running { task, begun: n as u64, answered });
        }
        assert!(make_room(&mut clients));
        assert_eq!(clients.len(), AT_ONCE - 1);
        assert!(clients.values().all(|running| running.begun != 1), "the oldest that was never answered");
        for running in clients.values() {
            running.answered.store(true, Ordering::Relaxed);
        }
        let task = tokio::spawn(std::future::pending::<()>()).abort_handle();
        let last = Running { task, begun: 1000, answered: Arc::new(AtomicBool::new(true)) };
        clients.insert(SocketAddr::from(([10, 0, 9, 9], 2000)), last);
        assert!(!make_room(&mut clients));
        assert_eq!(clients.len(), AT_ONCE);
    }

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
        let (files, served) = watch::channel(files);
        let serving = tokio::spawn(serve(
            socket,
            served,
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

        let other = dir.path().join("other");
        std::fs::write(&other, [8; 10]).unwrap();
        files.send_replace(Files::from([("snponly.efi".into(), other)]));
        client.send_to(b"\0\x01snponly.efi\0octet\0", server).await.unwrap();
        let (len, _) = client.recv_from(&mut buffer).await.unwrap();
        assert_eq!(buffer[..len], [&[0, 3, 0, 1][..], &[8; 10]].concat());
        shutdown.cancel();
        serving.await.unwrap().unwrap();
    }
}
