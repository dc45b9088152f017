//! Boot's side of the node's socket: intent comes in, events go out, chunks and manifests are
//! fetched. The agent may be away for as long as it likes; boot goes on with what it has.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rackhand_common::{
    bmc::InBandUser,
    id::{MachineId, RunId},
    image::{Digest, SignedManifest},
    wire::{LocalRequest, LocalResponse},
};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::{
    intent,
    local::{Client, LocalError},
    spool::{MAX_BATCH, Spool},
};

/// Requests to the agent at once: chunks of a few machines; each holds up to one chunk.
const AT_ONCE: usize = 8;

/// How long boot waits before it asks again an agent that did not answer.
const PAUSE: Duration = Duration::from_secs(1);

/// Why the agent did not give what was asked for.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotFetched {
    /// There is no such thing; asking again does not help.
    #[error("{0}")]
    NotFound(String),
    /// Not now.
    #[error("{0}")]
    Unavailable(String),
    /// The agent does not answer.
    #[error("agent not reachable")]
    Local(#[from] LocalError),
}

/// Connections to the agent for requests of moderate size; clones share them.
#[derive(Clone, Debug)]
pub(super) struct AgentLink {
    path: PathBuf,
    idle: Arc<Mutex<Vec<Client>>>,
    places: Arc<Semaphore>,
}

impl AgentLink {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), idle: Arc::default(), places: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// A chunk's compressed bytes, as the agent gives them: not verified yet.
    pub(super) async fn chunk(&self, digest: Digest) -> Result<Vec<u8>, NotFetched> {
        match self.ask(&LocalRequest::Chunk(digest)).await? {
            LocalResponse::Chunk(bytes) => Ok(bytes),
            other => Err(unexpected(other)),
        }
    }

    /// A signed manifest, which the agent has checked against the trust bundle.
    pub(super) async fn manifest(&self, digest: Digest) -> Result<SignedManifest, NotFetched> {
        match self.ask(&LocalRequest::Manifest(digest)).await? {
            LocalResponse::Manifest { manifest, signature } => Ok(SignedManifest { manifest, signature }),
            other => Err(unexpected(other)),
        }
    }

    /// A piece of a file of firmware, as the agent gives it.
    pub(super) async fn firmware(&self, sha256: &str, size: u64, offset: u64) -> Result<Vec<u8>, NotFetched> {
        let sha256 = sha256.to_owned();
        match self.ask(&LocalRequest::Firmware { sha256, size, offset }).await? {
            LocalResponse::Firmware(bytes) => Ok(bytes),
            other => Err(unexpected(other)),
        }
    }

    /// What the installer of a machine is to set at its BMC by this order. Kept nowhere here.
    pub(super) async fn bmc_user(
        &self,
        machine: MachineId,
        run: RunId,
        attempt: u32,
    ) -> Result<InBandUser, NotFetched> {
        match self.ask(&LocalRequest::BmcUser(machine, run, attempt)).await? {
            LocalResponse::BmcUser(user) => Ok(user),
            other => Err(unexpected(other)),
        }
    }

    async fn ask(&self, request: &LocalRequest) -> Result<LocalResponse, NotFetched> {
        let _place = self.places.acquire().await.expect("the semaphore is never closed");
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut client = match idle {
            Some(client) => client,
            None => Client::connect(&self.path).await?,
        };
        let response = client.ask(request).await?;
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(client);
        Ok(response)
    }
}

fn unexpected(response: LocalResponse) -> NotFetched {
    match response {
        LocalResponse::NotFound(what) => NotFetched::NotFound(what),
        LocalResponse::Unavailable(why) => NotFetched::Unavailable(why),
        _ => NotFetched::Unavailable("the agent gave an answer that does not fit".into()),
    }
}

/// Keeps boot's intent as new as the agent's.
pub(super) async fn follow_intent(socket: PathBuf, store: intent::Store, shutdown: CancellationToken) {
    let follow = || take_over(socket.clone(), store.clone());
    repeatedly(shutdown, "cannot follow the intent", follow).await;
}

async fn take_over(socket: PathBuf, store: intent::Store) -> anyhow::Result<()> {
    let mut client = Client::connect(&socket).await?;
    loop {
        let after = store.revision();
        match client.ask(&LocalRequest::Intent { after }).await? {
            LocalResponse::Intent(Some(intent)) => {
                let revision = intent.revision;
                store.store(intent).await?;
                tracing::info!(revision, "intent taken over");
            }
            LocalResponse::Intent(None) => {}
            other => return Err(unexpected(other).into()),
        }
    }
}

/// Hands events over to the agent as they come.
pub(super) async fn forward_events(socket: PathBuf, spool: Spool, shutdown: CancellationToken) {
    let forward = || hand_over(socket.clone(), spool.clone());
    repeatedly(shutdown, "cannot hand over events", forward).await;
}

async fn hand_over(socket: PathBuf, spool: Spool) -> anyhow::Result<()> {
    let mut client = Client::connect(&socket).await?;
    loop {
        let (first, events) = spool.batch(MAX_BATCH).await?;
        match client.ask(&LocalRequest::Events { spool: spool.id(), first, events }).await? {
            LocalResponse::Next(next) => spool.acknowledge(next).await?,
            other => return Err(unexpected(other).into()),
        }
    }
}

/// Does `work` again whenever it fails, until shutdown. Says so once per spell of failures.
async fn repeatedly<W>(shutdown: CancellationToken, what: &'static str, work: impl Fn() -> W)
where
    W: Future<Output = anyhow::Result<()>>,
{
    let mut told = String::new();
    loop {
        let result = tokio::select! {
            () = shutdown.cancelled() => return,
            result = work() => result,
        };
        let Err(error) = result else { continue };
        let error = format!("{error:#}");
        if error != told {
            tracing::warn!(error, "{what}; going on with what is here");
            told = error;
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}
