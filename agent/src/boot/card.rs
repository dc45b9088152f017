//! The network card on the provisioning network: it may come after boot does, and it may be
//! taken away and come back as another.

use std::{io, net::Ipv4Addr, time::Duration};

use anyhow::{Result, bail};
use nix::{ifaddrs::getifaddrs, net::if_::if_nametoindex};
use rackhand_daemon::systemd;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// How long a card that is missing is waited for before boot gives up and is started anew;
/// below the unit's `TimeoutStartSec`.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often it is looked.
const LOOK: Duration = Duration::from_millis(500);

/// A card that was there with its address.
#[derive(Debug)]
pub(super) struct Card {
    interface: String,
    index: u32,
}

/// Why the card cannot be used.
#[derive(Debug, thiserror::Error)]
enum Missing {
    #[error("there is no network card {0} (`interface` in boot.toml)")]
    Card(String),
    #[error("the network card {0} has not the address {1} (`address` in boot.toml)")]
    Address(String, Ipv4Addr),
    #[error("network cards cannot be listed")]
    Listing(#[from] nix::Error),
}

/// Whether the card is there with this address.
pub fn card_is_there(interface: &str, address: Ipv4Addr) -> Result<()> {
    find(interface, address)?;
    Ok(())
}

/// The card, when it is there and has the address.
pub(super) fn here(interface: &str, address: Ipv4Addr) -> Result<Card> {
    Ok(find(interface, address)?)
}

/// The card, as soon as it is there and has the address. Says once what it waits for.
pub(super) async fn wait(interface: &str, address: Ipv4Addr, shutdown: &CancellationToken) -> Result<Card> {
    let end = Instant::now() + PATIENCE;
    let mut told = false;
    loop {
        let missing = match find(interface, address) {
            Ok(card) => {
                if told {
                    systemd::status("the network card is there");
                }
                return Ok(card);
            }
            Err(missing) => missing,
        };
        if Instant::now() > end {
            return Err(missing.into());
        }
        if !std::mem::replace(&mut told, true) {
            tracing::warn!("{missing}; waiting for it");
            systemd::status(&format!("waiting: {missing}"));
        }
        tokio::select! {
            () = sleep(LOOK) => {}
            () = shutdown.cancelled() => bail!("told to stop while {missing}"),
        }
    }
}

fn find(interface: &str, address: Ipv4Addr) -> Result<Card, Missing> {
    let index = if_nametoindex(interface).map_err(|_| Missing::Card(interface.to_owned()))?;
    let has = getifaddrs()?
        .filter(|found| found.interface_name == interface)
        .any(|found| found.address.as_ref().and_then(|at| at.as_sockaddr_in()).is_some_and(|at| at.ip() == address));
    if has {
        Ok(Card { interface: interface.to_owned(), index })
    } else {
        Err(Missing::Address(interface.to_owned(), address))
    }
}

impl Card {
    /// Returns at shutdown; fails once the card is gone or is another one of the same name.
    /// Sockets stay bound to the one that is gone and would hear nothing any more.
    pub(super) async fn stays(self, shutdown: CancellationToken) -> io::Result<()> {
        while if_nametoindex(self.interface.as_str()) == Ok(self.index) {
            tokio::select! {
                () = sleep(LOOK) => {}
                () = shutdown.cancelled() => return Ok(()),
            }
        }
        Err(io::Error::new(io::ErrorKind::NotFound, format!("the network card {} was taken away", self.interface)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_card_that_does_not_come_is_named_after_a_while_and_not_before() {
        let shutdown = CancellationToken::new();
        let began = Instant::now();
        let error = wait("rh-none0", Ipv4Addr::LOCALHOST, &shutdown).await.unwrap_err();
        assert_eq!(error.to_string(), "there is no network card rh-none0 (`interface` in boot.toml)");
        assert!(began.elapsed() >= PATIENCE, "{:?}", began.elapsed());

        let error = wait("lo", Ipv4Addr::new(192, 0, 2, 1), &shutdown).await.unwrap_err();
        assert_eq!(error.to_string(), "the network card lo has not the address 192.0.2.1 (`address` in boot.toml)");
    }

    #[tokio::test]
    async fn a_card_with_its_address_is_found_and_stays_until_it_is_another() {
        let shutdown = CancellationToken::new();
        let card = wait("lo", Ipv4Addr::LOCALHOST, &shutdown).await.unwrap();
        let another = Card { interface: "lo".into(), index: card.index + 1 };
        assert_eq!(
            another.stays(shutdown.clone()).await.unwrap_err().to_string(),
            "the network card lo was taken away"
        );
        shutdown.cancel();
        card.stays(shutdown).await.unwrap();
    }
}
