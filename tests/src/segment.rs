//! The Ethernet segment between boot and the machines, as far as DHCP needs one: requests are
//! broadcast and reach boot, answers go to a card, to an address, or to all. What is sent
//! while boot is away is lost.

use std::{
    io,
    net::Ipv4Addr,
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::future::BoxFuture;
use rackhand_agent::boot::dhcp::{BATCH, Destination, Link};
use rackhand_common::machine::Mac;
use tokio::sync::{broadcast, mpsc};

/// Requests in boot's socket; further ones are lost, as the kernel would lose them.
const QUEUE: usize = 256;

/// What a machine's card is plugged into.
pub trait Cable: std::fmt::Debug + Send + Sync {
    /// The card's socket, before it has an address.
    fn card(&self, mac: Mac) -> Box<dyn Card>;
}

/// A machine's card.
pub trait Card: Send {
    /// Broadcasts a request.
    fn send(&self, message: Vec<u8>);

    /// The next answer for this card, or for whoever has `address`.
    fn receive(&mut self, address: Option<Ipv4Addr>) -> BoxFuture<'_, Vec<u8>>;

    /// Has this address from now on.
    fn take(&self, address: Ipv4Addr);
}

/// The segment; clones are the same.
#[derive(Clone, Debug)]
pub struct Segment {
    server: Arc<Mutex<Option<mpsc::Sender<Vec<u8>>>>>,
    answers: broadcast::Sender<(Destination, Vec<u8>)>,
}

impl Default for Segment {
    fn default() -> Self {
        Self { server: Arc::default(), answers: broadcast::Sender::new(QUEUE) }
    }
}

impl Segment {
    /// The server's socket; the one before hears nothing more.
    pub fn server(&self) -> Arc<dyn Link> {
        let (requests, received) = mpsc::channel(QUEUE);
        *self.server.lock().unwrap_or_else(PoisonError::into_inner) = Some(requests);
        Arc::new(Server { received: tokio::sync::Mutex::new(received), segment: self.clone() })
    }
}

impl Cable for Segment {
    fn card(&self, mac: Mac) -> Box<dyn Card> {
        Box::new(SegmentCard { mac, segment: self.clone(), answers: self.answers.subscribe() })
    }
}

#[derive(Debug)]
struct Server {
    received: tokio::sync::Mutex<mpsc::Receiver<Vec<u8>>>,
    segment: Segment,
}

impl Link for Server {
    fn receive(&self) -> BoxFuture<'_, io::Result<Vec<Vec<u8>>>> {
        Box::pin(async {
            let mut received = self.received.lock().await;
            let mut batch = Vec::new();
            match received.recv_many(&mut batch, BATCH).await {
                0 => std::future::pending().await,
                _ => Ok(batch),
            }
        })
    }

    fn send<'a>(&'a self, to: Destination, message: &'a [u8]) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            // A segment on which nobody listens takes a message too.
            let _ = self.segment.answers.send((to, message.to_vec()));
            Ok(())
        })
    }
}

#[derive(Debug)]
struct SegmentCard {
    mac: Mac,
    segment: Segment,
    answers: broadcast::Receiver<(Destination, Vec<u8>)>,
}

impl Card for SegmentCard {
    fn send(&self, message: Vec<u8>) {
        if let Some(server) = &*self.segment.server.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = server.try_send(message);
        }
    }

    fn receive(&mut self, address: Option<Ipv4Addr>) -> BoxFuture<'_, Vec<u8>> {
        Box::pin(async move {
            loop {
                match self.answers.recv().await {
                    Ok((Destination::Raw(mac, _), message)) if mac == self.mac => return message,
                    Ok((Destination::Unicast(to), message)) if Some(to) == address => return message,
                    Ok((Destination::Broadcast, message)) => return message,
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
                }
            }
        })
    }

    /// Every address of a loopback network is everybody's already.
    fn take(&self, _: Ipv4Addr) {}
}
