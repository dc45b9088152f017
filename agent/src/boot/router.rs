//! The shell around [`rackhand_netboot::router`]: ends the wait of boot ROMs that try IPv6
//! first. Its failure costs seconds of every boot and nothing else, so it never stops boot.

use std::{
    io,
    net::{Ipv6Addr, SocketAddrV6},
    time::Duration,
};

use nix::{ifaddrs::getifaddrs, net::if_::if_nametoindex, sys::socket::LinkAddr};
use rackhand_common::machine::Mac;
use rackhand_netboot::router::{advertisement, answer, is_solicitation};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::UdpSocket,
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// Advertises on `interface` and answers DHCPv6 there until `shutdown`. Needs `CAP_NET_RAW`
/// and `CAP_NET_BIND_SERVICE`; without them, or without IPv6 on the interface, it warns and
/// tries again now and then.
pub async fn serve(interface: String, shutdown: CancellationToken) {
    let mut warned = false;
    loop {
        let run = async {
            let node = Node::open(&interface)?;
            tokio::select! {
                result = node.advertise() => result,
                result = node.inform() => result,
            }
        };
        let ended = tokio::select! {
            () = shutdown.cancelled() => return,
            ended = run => ended,
        };
        if let Err(error) = ended
            && !std::mem::replace(&mut warned, true)
        {
            warn!(interface, %error, "no IPv6 answers: boot ROMs will wait for some seconds");
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = sleep_until(Instant::now() + RETRY) => {}
        }
    }
}

struct Node {
    /// A raw socket in the datagram socket's type: receiving and sending are the same calls.
    icmp: UdpSocket,
    dhcp: UdpSocket,
    index: u32,
    card: Mac,
}

impl Node {
    fn open(interface: &str) -> io::Result<Self> {
        let index = if_nametoindex(interface)?;
        let card = link_address(interface)?.addr().ok_or_else(|| io::Error::other("no Ethernet address"))?;

        let icmp = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
        icmp.set_nonblocking(true)?;
        icmp.bind_device(Some(interface.as_bytes()))?;
        // Receivers drop advertisements that could have crossed a router (RFC 4861 §6.1.2).
        icmp.set_multicast_hops_v6(255)?;
        icmp.set_multicast_if_v6(index)?;
        icmp.set_multicast_loop_v6(false)?;
        icmp.join_multicast_v6(&ALL_ROUTERS, index)?;

        let dhcp = Socket::new(Domain::IPV6, Type::DGRAM, None)?;
        dhcp.set_nonblocking(true)?;
        dhcp.set_only_v6(true)?;
        dhcp.set_reuse_address(true)?;
        dhcp.bind_device(Some(interface.as_bytes()))?;
        dhcp.bind(&SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, 547, 0, 0).into())?;
        dhcp.join_multicast_v6(&ALL_DHCP_AGENTS, index)?;

        Ok(Self {
            icmp: UdpSocket::from_std(icmp.into())?,
            dhcp: UdpSocket::from_std(dhcp.into())?,
            index,
            card: Mac(card),
        })
    }

    /// An advertisement now and then, and at once to whoever asks.
    async fn advertise(&self) -> io::Result<()> {
        let everyone = SocketAddrV6::new(ALL_NODES, 0, 0, self.index);
        let message = advertisement(self.card);
        let mut timer = interval(UNASKED);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut buffer = [0; 1500];
        loop {
            tokio::select! {
                _ = timer.tick() => {}
                solicited = self.solicited(&mut buffer) => solicited?,
            }
            // Fails while the interface has no link-local address yet, or no carrier.
            if let Err(error) = self.icmp.send_to(&message, everyone).await {
                debug!(%error, "router advertisement not sent");
            }
            // Whoever asks meanwhile has just been answered, or is with the next.
            sleep(BETWEEN).await;
        }
    }

    async fn solicited(&self, buffer: &mut [u8]) -> io::Result<()> {
        loop {
            let (len, _) = self.icmp.recv_from(buffer).await?;
            if is_solicitation(&buffer[..len]) {
                return Ok(());
            }
        }
    }

    async fn inform(&self) -> io::Result<()> {
        let mut buffer = [0; 1500];
        loop {
            let (len, from) = self.dhcp.recv_from(&mut buffer).await?;
            // Never waited for: senders that do not exist would fill the socket's buffer.
            if let Some(reply) = answer(self.card, &buffer[..len])
                && let Err(error) = self.dhcp.try_send_to(&reply, from)
            {
                debug!(%error, "DHCPv6 answer not sent");
            }
        }
    }
}

/// The link-level address of `interface`.
pub(super) fn link_address(interface: &str) -> io::Result<LinkAddr> {
    getifaddrs()?
        .filter(|found| found.interface_name == interface)
        .find_map(|found| found.address?.as_link_addr().copied())
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no interface {interface}")))
}

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
const ALL_DHCP_AGENTS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);

/// Between unasked advertisements. A ROM whose solicitation was lost waits no longer.
const UNASKED: Duration = Duration::from_secs(3);

/// Between any two: each goes to every machine, whoever asked for it.
const BETWEEN: Duration = Duration::from_millis(100);

/// Before the sockets are opened again.
const RETRY: Duration = Duration::from_secs(5);
