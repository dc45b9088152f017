//! The one network card that the machine booted from, with the address boot gave: no DHCP,
//! no other card. Every wait has a bound; the caller tries again.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use rackhand_common::machine::Mac;
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};
use tokio::time::{Instant, sleep};

use crate::{cmdline::Parameters, inventory};

/// Why the network is not up.
#[derive(Debug, thiserror::Error)]
pub enum NoNetwork {
    /// No driver brought up the card.
    #[error("no network card has the address {0} that the machine booted from: is its driver in this image?")]
    NoCard(Mac),
    /// The cable, or the switch's port.
    #[error("{name} has no carrier after {}s", after.as_secs())]
    NoCarrier {
        /// The card.
        name: String,
        /// How long was waited.
        after: Duration,
    },
    /// The kernel refused.
    #[error("the kernel refused to configure the card")]
    Refused(#[source] rtnetlink::Error),
    /// There is no netlink.
    #[error("cannot talk to the kernel about its network")]
    Netlink(#[source] std::io::Error),
}

impl From<rtnetlink::Error> for NoNetwork {
    fn from(error: rtnetlink::Error) -> Self {
        Self::Refused(error)
    }
}

/// How long to wait for the card to appear, and then for its carrier: spanning tree and
/// autonegotiation take up to half a minute.
const PATIENCE: Duration = Duration::from_secs(45);

/// Brings up the card with our address. Doing it again changes nothing.
pub async fn configure(parameters: &Parameters) -> Result<(), NoNetwork> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(NoNetwork::Netlink)?;
    tokio::select! {
        // It ends only with the handle.
        () = connection => Err(NoNetwork::Refused(rtnetlink::Error::RequestFailed)),
        configured = configure_by(&handle, parameters) => configured,
    }
}

async fn configure_by(handle: &Handle, parameters: &Parameters) -> Result<(), NoNetwork> {
    let card = wait_for_card(parameters.mac).await?;
    up(handle, 1).await?;
    up(handle, card.index).await?;
    handle.address().add(card.index, IpAddr::V4(parameters.address), parameters.length).replace().execute().await?;
    if let Some(gateway) = parameters.gateway {
        let route = RouteMessageBuilder::<std::net::Ipv4Addr>::new().gateway(gateway).output_interface(card.index);
        handle.route().add(route.build()).replace().execute().await?;
    }
    let start = Instant::now();
    let carrier = PathBuf::from("/sys/class/net").join(&card.name).join("carrier");
    while std::fs::read_to_string(&carrier).map_or(true, |text| text.trim() != "1") {
        if start.elapsed() > PATIENCE {
            return Err(NoNetwork::NoCarrier { name: card.name, after: PATIENCE });
        }
        sleep(Duration::from_millis(10)).await;
    }
    tracing::info!(card = card.name, address = %parameters.address, "network is up");
    Ok(())
}

async fn up(handle: &Handle, index: u32) -> Result<(), NoNetwork> {
    handle.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await?;
    Ok(())
}

struct Card {
    name: String,
    index: u32,
}

async fn wait_for_card(mac: Mac) -> Result<Card, NoNetwork> {
    let start = Instant::now();
    loop {
        let found = inventory::cards().into_iter().find(|nic| nic.mac == mac);
        let index =
            |name: &str| std::fs::read_to_string(format!("/sys/class/net/{name}/ifindex")).ok()?.trim().parse().ok();
        if let Some((name, index)) = found.and_then(|nic| Some((nic.name.clone(), index(&nic.name)?))) {
            return Ok(Card { name, index });
        }
        if start.elapsed() > PATIENCE {
            return Err(NoNetwork::NoCard(mac));
        }
        sleep(Duration::from_millis(20)).await;
    }
}
