//! The agent's connection to the controller: dialled, mutually authenticated, made anew
//! whenever it breaks.
//!
//! Invariants:
//! - A welcome with a lower number than any before is refused: the controller that gave it
//!   does not own this agent any more.
//! - An event leaves the spool only when the controller has acknowledged it.
//! - The private key never leaves the node; a certificate is renewed over the connection it
//!   serves, at half of its life, or as the only thing that can be done once it has ended.
//! - Of two processes that connect as the same agent the newest is served; the other never
//!   dials again.
//! - A node that is not let in goes on serving its rack, says why, and asks again.

mod enrol;
mod fetch;
mod identity;
mod session;

pub use enrol::enrol;
pub use fetch::Fetcher;
pub use identity::{Identity, Registration, Reread, Unusable};

use std::{net::SocketAddr, sync::Arc, time::Duration};

use jiff::Timestamp;
use rackhand_common::{id::Incarnation, time::Clock};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use self::session::Ended;
use crate::{
    backoff::Backoff, bmcs::Bmcs, console::Consoles, firmware::Updates, health::Machines, intent, ledger::Ledger,
    lives, local::UplinkView, power::Call, spool::Spool,
};

/// A connection that lasted this long was a good one: the next attempt comes at once.
const GOOD: Duration = Duration::from_secs(3);

/// What the uplink works with.
pub struct Uplink {
    /// This node as enrolled.
    pub identity: Arc<Identity>,
    /// Where intents go.
    pub intent: intent::Store,
    /// Where it is kept how BMCs are reached.
    pub bmcs: Bmcs,
    /// Where the machines are in their lives.
    pub lives: lives::Store,
    /// How the machines fare.
    pub machines: Machines,
    /// Serial consoles.
    pub consoles: Consoles,
    /// Updates of firmware.
    pub updates: Updates,
    /// Where `/metrics` is answered.
    pub metrics: SocketAddr,
    /// Where events come from.
    pub spool: Spool,
    /// Remembers the highest connection number.
    pub ledger: Ledger,
    /// Where commands go.
    pub calls: mpsc::Sender<Call>,
    /// How it stands, for the technician.
    pub view: watch::Sender<UplinkView>,
    /// The present.
    pub clock: Arc<dyn Clock>,
}

impl Uplink {
    /// Keeps the controller connected until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let incarnation = Incarnation::fresh();
        let mut backoff = Backoff::default();
        let mut told = String::new();
        let mut renewed = None;
        while !shutdown.is_cancelled() {
            let began = self.clock.now();
            let ended = session::run(&self, incarnation, renewed, &shutdown).await;
            if began.mono.until(self.clock.now().mono) >= GOOD {
                backoff = Backoff::default();
            }
            let error = match ended {
                Ok(Ended::Shutdown) => return,
                // With the new certificate, at once.
                Ok(Ended::Renewed) => {
                    renewed = Some(self.clock.now().mono);
                    continue;
                }
                // Dialling again would take the connection from the other, which would dial again.
                Ok(Ended::Replaced) => {
                    let words = "a newer process of this agent has connected: this one has stood down; restart it if \
                                 the other is not to be the rack's agent";
                    tracing::error!("{words}");
                    self.show(false, words.to_owned());
                    return shutdown.cancelled().await;
                }
                Err(error) => format!("{error:#}"),
            };
            let wait = backoff.next(rand::random());
            if error != told {
                tracing::warn!(error, "no controller; the rack is served from what is here");
            }
            let until = self.clock.now().wall + jiff::SignedDuration::try_from(wait).unwrap_or_default();
            self.show(false, format!("not connected ({error}); next attempt {}", brief(until)));
            told = error;
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    fn show(&self, connected: bool, words: String) {
        let certificate_until = self.identity.current().until;
        self.view.send_replace(UplinkView { connected, words, certificate_until });
    }
}

fn brief(time: Timestamp) -> String {
    time.strftime("%H:%M:%S UTC").to_string()
}
