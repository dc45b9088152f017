//! The shell around [`rackhand_netboot::dhcp`]: receives a batch, asks the core, commits the
//! leases of the whole batch in one transaction, and only then sends.

use std::{
    fmt, io,
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
};

use futures_util::future::BoxFuture;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, bind, send, socket};
use rackhand_common::{
    bmc::lease::{BmcLease, Card, Management},
    event::{Event, What},
    id::MachineId,
    intent::{Intent, Network},
    machine::Mac,
    time::{Clock, Mono, Now},
};
pub use rackhand_netboot::dhcp::{Destination, LEASE_LASTS, Settings};
use rackhand_netboot::dhcp::{Gate, Guest, Holder, Reply, Request, Server};
use tokio::{net::UdpSocket, sync::watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::{
    boot::leases::{LeaseError, Leases},
    spool::Spool,
};

/// Where DHCP messages come from and go to: the system's sockets, or a test's hand.
pub trait Link: Send + Sync + fmt::Debug + 'static {
    /// At least one message, and those that wait behind it, at most [`BATCH`].
    fn receive(&self) -> BoxFuture<'_, io::Result<Vec<Vec<u8>>>>;

    /// Sends one answer.
    fn send<'a>(&'a self, to: Destination, message: &'a [u8]) -> BoxFuture<'a, io::Result<()>>;
}

/// How many messages are answered with one commit. One takes as long as the disk's flush,
/// during which a burst of a rack's machines queues in the socket.
pub const BATCH: usize = 64;

/// Answers until `shutdown`.
pub async fn serve(
    link: Arc<dyn Link>,
    clock: Arc<dyn Clock>,
    mut intent: watch::Receiver<Option<Arc<Intent>>>,
    leases: Leases,
    settings: Settings,
    spool: Spool,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let mut desk = Desk::open(clock, leases, settings, spool);
    intent.mark_changed();
    loop {
        let batch = tokio::select! {
            biased;
            () = shutdown.cancelled() => return Ok(()),
            changed = intent.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                let newest = intent.borrow_and_update().clone();
                if let Some(newest) = newest {
                    desk.follow(&newest).await;
                }
                continue;
            }
            batch = link.receive() => batch,
        };
        desk.attend(&*link, batch).await;
    }
}

/// The same on the management network, to those that its gate lets in.
pub(super) async fn serve_management(mut desk: Desk, link: Arc<dyn Link>, shutdown: CancellationToken) {
    loop {
        let batch = tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            batch = link.receive() => batch,
        };
        desk.attend(&*link, batch).await;
    }
}

/// Where messages are answered: the core, and the disk behind it.
pub struct Desk {
    server: Server,
    clock: Arc<dyn Clock>,
    leases: Leases,
    spool: Spool,
    /// On the management network: who is let in.
    gate: Option<Gate>,
    /// Newcomers without an address that were complained about.
    starved: u64,
    /// Answers not sent since the last complaint.
    unsent: u64,
    complained: Option<Mono>,
    /// When the controller was told that the range is full, and of how many newcomers.
    alerted: Option<(Mono, u64)>,
}

impl Desk {
    /// A desk with the leases found on disk; silent until it has an intent.
    pub fn open(clock: Arc<dyn Clock>, leases: Leases, settings: Settings, spool: Spool) -> Self {
        let server = Server::new(clock.now(), settings, leases.all());
        Self { server, clock, leases, spool, gate: None, starved: 0, unsent: 0, complained: None, alerted: None }
    }

    /// The desk of a management network: nobody has an address of his own there, and leases that are in
    /// its range no more are ended.
    pub(super) async fn open_management(
        clock: Arc<dyn Clock>,
        leases: Leases,
        settings: Settings,
        spool: Spool,
        network: &Network,
        gate: Gate,
    ) -> Result<Self, LeaseError> {
        let (first, last) = network.delegated;
        let ended = leases.all().into_iter().filter(|holder| !(first..=last).contains(&holder.address));
        let ended: Vec<_> = ended.map(|holder| holder.mac).collect();
        if !ended.is_empty() {
            leases.commit(vec![], ended).await?;
        }
        let mut desk = Self { gate: Some(gate), ..Self::open(clock, leases, settings, spool) };
        desk.server.serve(network, &[]);
        // Whoever was given one before a kill may not have been told of.
        for Holder { mac, address, .. } in desk.leases.all() {
            let card = Card { mac, hostname: None, vendor_class: None, client_id: None };
            desk.tell(Management::Leased(BmcLease { card, address, known_by: None }));
        }
        Ok(desk)
    }

    async fn attend(&mut self, link: &dyn Link, batch: io::Result<Vec<Vec<u8>>>) {
        match batch {
            Ok(batch) => self.answer(link, &batch).await,
            Err(error) => {
                // The interface is down, or is gone: both pass, and machines ask again.
                warn!(%error, "DHCP requests not received");
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    /// Takes a newer intent.
    pub async fn follow(&mut self, intent: &Intent) {
        let ended = self.server.follow(intent);
        if !ended.is_empty()
            && let Err(error) = self.leases.commit(vec![], ended).await
        {
            // They stay in the table, contradicted by the intent, and end at the next start.
            error!(error = %Chain(&error), "leases that ended are still on disk");
        }
    }

    /// Answers a batch. A reply whose lease cannot be committed is not sent.
    pub async fn answer(&mut self, link: &dyn Link, batch: &[Vec<u8>]) {
        let mut replies = self.replies(batch);
        let made: Vec<_> = replies.iter().filter_map(|(reply, _)| reply.commit).collect();
        if !made.is_empty() {
            match self.leases.commit(made.clone(), vec![]).await {
                Ok(()) => {
                    for holder in made {
                        info!(mac = %holder.mac, address = %holder.address, machine = %holder.machine, "address given");
                        self.server.committed(holder.mac);
                    }
                }
                Err(error) => {
                    error!(error = %Chain(&error), "leases not on disk: their clients get no answer");
                    replies.retain(|(reply, _)| reply.commit.is_none());
                }
            }
        }
        for (Reply { to, message, stage, bound, .. }, guest) in replies {
            if let Err(error) = link.send(to, &message).await {
                debug!(?to, %error, "DHCP answer not sent");
                self.unsent += 1;
                continue;
            }
            if let Some((machine, stage)) = stage {
                info!(%machine, "{stage}");
                let at = self.clock.now().wall;
                self.spool.offer(Event { at, machine: Some(machine), what: What::Stage(stage) });
            }
            if let (Some(gate), Some(holder), Some(guest)) = (&mut self.gate, bound, guest)
                && let Some(lease) = gate.bound(self.clock.now().mono, guest, holder)
            {
                self.tell(Management::Leased(lease));
            }
        }
        self.complain();
    }

    /// Says what any machine can cause, but not each time.
    fn complain(&mut self) {
        let Now { mono: now, wall } = self.clock.now();
        let starved = self.server.starved();
        let (alerted, told) = self.alerted.map_or((None, 0), |(at, told)| (Some(at), told));
        if starved > told && alerted.is_none_or(|last| last.until(now) >= ALERT) {
            self.alerted = Some((now, starved));
            let unanswered = starved - told;
            let what = match self.gate {
                Some(_) => What::Management(Box::new(Management::Full { unanswered })),
                None => What::RangeFull { unanswered },
            };
            self.spool.offer(Event { at: wall, machine: None, what });
        }
        let worth_it = starved > self.starved || self.unsent > 0;
        if worth_it && self.complained.is_none_or(|last| last.until(now) >= COMPLAIN) {
            self.complained = Some(now);
            if starved > self.starved {
                self.starved = starved;
                warn!(starved, "no delegated address is free: new machines get no answer");
            }
            if self.unsent > 0 {
                warn!(unsent = self.unsent, "DHCP answers could not be sent");
                self.unsent = 0;
            }
        }
    }

    fn tell(&self, what: Management) {
        info!("{what}");
        let at = self.clock.now().wall;
        self.spool.offer(Event { at, machine: None, what: What::Management(Box::new(what)) });
    }

    /// Whether a request is answered; on the management network, as whose.
    fn admit(&mut self, request: &Request) -> Option<Option<Guest>> {
        let Some(gate) = &mut self.gate else { return Some(None) };
        match gate.admit(self.clock.now().mono, request, self.server.knows(request.mac)) {
            Ok(guest) => Some(Some(guest)),
            Err(stranger) => {
                if let Some(card) = stranger {
                    self.tell(Management::Stranger(card));
                }
                None
            }
        }
    }

    fn replies(&mut self, batch: &[Vec<u8>]) -> Vec<(Reply, Option<Guest>)> {
        let mut replies = Vec::with_capacity(batch.len());
        for mac in self.leases.take_heard() {
            self.server.heard(self.clock.now(), mac);
        }
        for bytes in batch {
            match Request::parse(bytes) {
                Ok(request) => {
                    let Some(guest) = self.admit(&request) else { continue };
                    let reply = self.server.reply(self.clock.now(), &request, MachineId::fresh());
                    debug!(mac = %request.mac, kind = ?request.kind, client = ?request.client, to = ?reply.as_ref().map(|r| r.to), "DHCP");
                    replies.extend(reply.map(|reply| (reply, guest)));
                }
                Err(malformed) => debug!(%malformed, "DHCP message ignored"),
            }
        }
        replies
    }
}

/// The system's sockets on one interface: UDP for who has an address, raw Ethernet for who
/// does not answer ARP yet.
#[derive(Debug)]
pub struct System {
    udp: UdpSocket,
    raw: OwnedFd,
    card: Mac,
    node: Ipv4Addr,
}

impl System {
    /// Takes port 67 on `interface`, whose provisioning address is `node`. Needs
    /// `CAP_NET_BIND_SERVICE` and `CAP_NET_RAW`.
    pub fn open(interface: &str, node: Ipv4Addr) -> io::Result<Self> {
        let udp = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
        udp.set_nonblocking(true)?;
        udp.set_reuse_address(true)?;
        udp.set_broadcast(true)?;
        udp.bind_device(Some(interface.as_bytes()))?;
        udp.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, SERVER).into())?;
        let link = super::router::link_address(interface)?;
        let raw = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
        // Bound with protocol 0: it sends on this interface and receives nothing.
        bind(raw.as_raw_fd(), &link)?;
        let card = Mac(link.addr().ok_or_else(|| io::Error::other("interface has no Ethernet address"))?);
        Ok(Self { udp: UdpSocket::from_std(udp.into())?, raw, card, node })
    }
}

impl Link for System {
    fn receive(&self) -> BoxFuture<'_, io::Result<Vec<Vec<u8>>>> {
        Box::pin(async move {
            let mut buffer = vec![0; 2048];
            let (len, _) = self.udp.recv_from(&mut buffer).await?;
            let mut batch = vec![buffer[..len].to_vec()];
            while batch.len() < BATCH
                && let Ok((len, _)) = self.udp.try_recv_from(&mut buffer)
            {
                batch.push(buffer[..len].to_vec());
            }
            Ok(batch)
        })
    }

    fn send<'a>(&'a self, to: Destination, message: &'a [u8]) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            let to = match to {
                Destination::Relay(relay) => SocketAddrV4::new(relay, SERVER),
                Destination::Unicast(address) => SocketAddrV4::new(address, CLIENT),
                Destination::Broadcast => SocketAddrV4::new(Ipv4Addr::BROADCAST, CLIENT),
                Destination::Raw(mac, address) => {
                    let frame = frame(self.card, mac, self.node, address, message);
                    send(self.raw.as_raw_fd(), &frame, MsgFlags::empty())?;
                    return Ok(());
                }
            };
            // Never waited for: answers to addresses that nobody has fill the socket's buffer
            // until ARP gives up on them, and would stop everyone's. A lost one is asked for again.
            self.udp.try_send_to(message, to.into()).map(drop)
        })
    }
}

/// An Ethernet frame with `payload` in UDP from port 67 to port 68 (RFC 791, 768).
fn frame(source: Mac, destination: Mac, from: Ipv4Addr, to: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let udp_len = u16::try_from(payload.len() + 8).expect("DHCP answers fit an Ethernet frame");
    let mut udp = Vec::with_capacity(payload.len() + 8);
    udp.extend([SERVER, CLIENT, udp_len, 0].iter().flat_map(|word| word.to_be_bytes()));
    udp.extend_from_slice(payload);
    let mut pseudo = Vec::with_capacity(12 + udp.len());
    pseudo.extend(from.octets().into_iter().chain(to.octets()).chain([0, UDP]).chain(udp_len.to_be_bytes()));
    pseudo.extend_from_slice(&udp);
    // A sum of zero means "none" in UDP and is sent as all ones.
    let sum = match checksum(&pseudo) {
        0 => 0xffff,
        sum => sum,
    };
    udp[6..8].copy_from_slice(&sum.to_be_bytes());

    let mut ip = Vec::with_capacity(20);
    ip.extend_from_slice(&[0x45, 0]);
    ip.extend_from_slice(&(udp_len + 20).to_be_bytes());
    ip.extend_from_slice(&[0, 0, 0, 0, 64, UDP, 0, 0]);
    ip.extend(from.octets().into_iter().chain(to.octets()));
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());

    [&destination.0[..], &source.0, &[0x08, 0x00], &ip, &udp].concat()
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !u16::try_from(sum).expect("the carries were folded in")
}

/// Between two complaints about what any machine can cause: newcomers to a full range ask every
/// few seconds, hostile ones at every moment.
const COMPLAIN: std::time::Duration = std::time::Duration::from_secs(10);

/// Between two alerts to the operator about a full range.
const ALERT: std::time::Duration = std::time::Duration::from_secs(600);

/// Between tries to receive while the interface is down.
const RETRY: std::time::Duration = std::time::Duration::from_secs(1);

const SERVER: u16 = 67;
const CLIENT: u16 = 68;
const UDP: u8 = 17;

/// An error and its sources on one line.
struct Chain<'a>(&'a dyn std::error::Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rackhand_common::{event::Stage, id::RackId, intent::Network, machine::Firmware};
    use tokio::sync::{Mutex, mpsc};

    use super::*;
    use crate::clock::SystemClock;

    /// A cable whose other end is the test.
    #[derive(Debug)]
    struct Cable {
        requests: Mutex<mpsc::Receiver<Vec<u8>>>,
        answers: mpsc::Sender<(Destination, Vec<u8>)>,
    }

    impl Link for Cable {
        fn receive(&self) -> BoxFuture<'_, io::Result<Vec<Vec<u8>>>> {
            Box::pin(async {
                let request = self.requests.lock().await.recv().await;
                Ok(vec![request.ok_or(io::ErrorKind::BrokenPipe)?])
            })
        }

        fn send<'a>(&'a self, to: Destination, message: &'a [u8]) -> BoxFuture<'a, io::Result<()>> {
            Box::pin(async move { self.answers.send((to, message.to_vec())).await.map_err(io::Error::other) })
        }
    }

    fn request(mac: Mac, options: &[&[u8]]) -> Vec<u8> {
        let mut bytes = vec![0; 240];
        bytes[..3].copy_from_slice(&[1, 1, 6]);
        bytes[28..34].copy_from_slice(&mac.0);
        bytes[236..].copy_from_slice(&[0x63, 0x82, 0x53, 0x63]);
        bytes.extend(options.concat());
        bytes
    }

    #[tokio::test]
    async fn a_lease_is_on_disk_before_its_client_hears_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let node = Ipv4Addr::new(10, 0, 0, 1);
        let intent = Intent {
            revision: 1,
            rack: RackId::fresh(),
            name: "r1".into(),
            network: Network {
                node: "10.0.0.1/24".parse().unwrap(),
                gateway: None,
                dns: vec![],
                delegated: (Ipv4Addr::new(10, 0, 0, 9), Ipv4Addr::new(10, 0, 0, 9)),
            },
            machines: vec![],
        };
        let (_keep, intent) = watch::channel(Some(Arc::new(intent)));
        let db = Arc::new(redb::Database::create(dir.path().join("boot.redb")).unwrap());
        let leases = Leases::open(db, intent.clone()).unwrap();
        let spool = Spool::open(&dir.path().join("spool.redb"), 100).unwrap();
        let (requests, received) = mpsc::channel(8);
        let (sent, mut answers) = mpsc::channel(8);
        let link = Arc::new(Cable { requests: Mutex::new(received), answers: sent });
        let shutdown = CancellationToken::new();
        let settings = Settings { node, http: Some(SocketAddrV4::new(node, 8080)), lease: LEASE_LASTS };
        let clock = Arc::new(SystemClock::default());
        let serving =
            tokio::spawn(serve(link, clock, intent, leases.clone(), settings, spool.clone(), shutdown.clone()));

        let mac: Mac = "52:54:00:00:00:01".parse().unwrap();
        let rom: &[u8] = b"\x3c\x20PXEClient:Arch:00007:UNDI:003000";
        requests.send(request(mac, &[&[53, 1, 1], rom])).await.unwrap();
        let (to, offer) = answers.recv().await.unwrap();
        let address = Ipv4Addr::new(10, 0, 0, 9);
        assert_eq!(to, Destination::Raw(mac, address));
        assert_eq!(offer[16..20], address.octets());
        assert_eq!(leases.holder(mac), None);

        let selecting: [&[u8]; 3] = [&[53, 1, 3], &[54, 4, 10, 0, 0, 1], &[50, 4, 10, 0, 0, 9]];
        requests.send(request(mac, &[&selecting.concat(), rom])).await.unwrap();
        let (_, ack) = answers.recv().await.unwrap();
        assert_eq!(ack[242], 5);
        let holder = leases.holder(mac).unwrap();
        assert_eq!(holder.address, address);

        let (_, events) = spool.batch(1).await.unwrap();
        assert_eq!(events[0].machine, Some(holder.machine));
        assert_eq!(events[0].what, What::Stage(Stage::RomDhcp(Firmware::Uefi)));
        spool.acknowledge(2).await.unwrap();

        // The range is full now, which is told once in a while.
        for last in 2..9 {
            let newcomer = Mac([0x52, 0x54, 0, 0, 0, last]);
            requests.send(request(newcomer, &[&[53, 1, 1], rom])).await.unwrap();
        }
        requests.send(request(mac, &[&[53, 1, 1], rom])).await.unwrap();
        answers.recv().await.unwrap();
        spool.append(vec![]).await.unwrap();
        let (_, events) = spool.batch(9).await.unwrap();
        let whats: Vec<_> = events.into_iter().map(|event| event.what).collect();
        assert_eq!(whats, [What::RangeFull { unanswered: 1 }]);
        shutdown.cancel();
        serving.await.unwrap().unwrap();
    }

    #[test]
    fn a_raw_frame_has_right_checksums() {
        let frame = frame(
            Mac([2, 0, 0, 0, 0, 1]),
            Mac([2, 0, 0, 0, 0, 2]),
            Ipv4Addr::new(10, 0, 0, 1),
            Ipv4Addr::new(10, 0, 0, 9),
            b"odd",
        );
        assert_eq!(frame[..14], [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0]);
        assert_eq!(checksum(&frame[14..34]), 0);
        let pseudo = [&frame[26..34], &[0, UDP, 0, 11], &frame[34..]].concat();
        assert_eq!(checksum(&pseudo), 0);
    }
}
