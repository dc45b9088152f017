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
    event::{Event, What},
    id::MachineId,
    intent::Intent,
    machine::Mac,
    time::Clock,
};
pub use rackhand_netboot::dhcp::{Destination, Settings};
use rackhand_netboot::dhcp::{Reply, Request, Server};
use tokio::{net::UdpSocket, sync::watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::{boot::leases::Leases, spool::Spool};

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

/// Answers until `shutdown`. A reply whose lease cannot be committed is not sent.
#[expect(clippy::too_many_arguments, reason = "the parts boot assembles, each of its own kind")]
pub async fn serve(
    link: Arc<dyn Link>,
    clock: Arc<dyn Clock>,
    mut intent: watch::Receiver<Option<Arc<Intent>>>,
    leases: Leases,
    settings: Settings,
    spool: Spool,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let mut server = Server::new(settings, leases.all());
    let mut starved = 0;
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
                    let ended = server.follow(&newest);
                    if !ended.is_empty() && let Err(error) = leases.commit(vec![], ended).await {
                        // They stay in the table, contradicted by the intent, and end at the next start.
                        error!(error = %Chain(&error), "leases that ended are still on disk");
                    }
                }
                continue;
            }
            batch = link.receive() => batch?,
        };
        let mut replies = answer(&mut server, clock.as_ref(), &batch);
        let made: Vec<_> = replies.iter().filter_map(|reply| reply.commit).collect();
        if !made.is_empty() {
            match leases.commit(made.clone(), vec![]).await {
                Ok(()) => {
                    for holder in made {
                        info!(mac = %holder.mac, address = %holder.address, machine = %holder.machine, "address given");
                        server.committed(holder.mac);
                    }
                }
                Err(error) => {
                    error!(error = %Chain(&error), "leases not on disk: their clients get no answer");
                    replies.retain(|reply| reply.commit.is_none());
                }
            }
        }
        for Reply { to, message, stage, .. } in replies {
            if let Err(error) = link.send(to, &message).await {
                warn!(?to, %error, "DHCP answer not sent");
                continue;
            }
            if let Some((machine, stage)) = stage {
                info!(%machine, "{stage}");
                spool.offer(Event { at: clock.now().wall, machine: Some(machine), what: What::Stage(stage) });
            }
        }
        if server.starved() > starved {
            starved = server.starved();
            warn!(starved, "no delegated address is free: new machines get no answer");
        }
    }
}

fn answer(server: &mut Server, clock: &dyn Clock, batch: &[Vec<u8>]) -> Vec<Reply> {
    let mut replies = Vec::with_capacity(batch.len());
    for bytes in batch {
        match Request::parse(bytes) {
            Ok(request) => {
                let reply = server.reply(clock.now(), &request, MachineId::fresh());
                debug!(mac = %request.mac, kind = ?request.kind, client = ?request.client, to = ?reply.as_ref().map(|r| r.to), "DHCP");
                replies.extend(reply);
            }
            Err(malformed) => debug!(%malformed, "DHCP message ignored"),
        }
    }
    replies
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
            self.udp.send_to(message, to).await.map(drop)
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
