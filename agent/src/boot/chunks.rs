//! Image chunks and manifests in the rack: fetched once through the agent, kept on disk,
//! served to every machine that needs them.
//!
//! Invariants:
//! - A chunk leaves the cache only after its BLAKE3 was compared, at every read: a file torn
//!   by a power cut or rotten on its disk is fetched again. Files are therefore not synced.
//! - Many machines that want a chunk at once cause one fetch.
//! - The cache stays within its limit, but never drops a chunk that a manifest of a present
//!   order lists.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use rackhand_common::{
    image::{Digest, SignedManifest},
    intent::{Intent, Work},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::agent_link::{AgentLink, NotFetched};

/// Chunks fetched ahead at once for an order that has just come.
const AHEAD: usize = 4;

/// Why a chunk or manifest cannot be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum ChunkError {
    /// The agent did not give it.
    #[error("cannot be fetched: {0}")]
    NotFetched(#[from] NotFetched),
    /// What the agent gave is something else.
    #[error("the bytes fetched are not those of {0}")]
    WrongBytes(Digest),
    /// The cache's disk fails.
    #[error("the cache cannot be written")]
    Disk(#[from] io::Error),
}

/// The cache; clones share it.
#[derive(Clone, Debug)]
pub(super) struct Chunks(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    directory: PathBuf,
    limit: u64,
    agent: AgentLink,
    shelf: Mutex<Shelf>,
    /// One lock per thing being fetched: whoever comes second waits, then finds it here.
    fetching: Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
}

/// What is on disk, in order of last use.
#[derive(Debug, Default)]
struct Shelf {
    sizes: HashMap<Digest, (u64, u64)>,
    by_use: BTreeMap<u64, Digest>,
    bytes: u64,
    uses: u64,
    pinned: HashSet<Digest>,
}

impl Shelf {
    fn used(&mut self, digest: Digest, size: u64) {
        self.forget(digest);
        self.uses += 1;
        self.sizes.insert(digest, (size, self.uses));
        self.by_use.insert(self.uses, digest);
        self.bytes += size;
    }

    fn forget(&mut self, digest: Digest) {
        if let Some((size, use_)) = self.sizes.remove(&digest) {
            self.by_use.remove(&use_);
            self.bytes -= size;
        }
    }

    /// What has to go to come back under `limit`, least recently used first.
    fn evict(&mut self, limit: u64) -> Vec<Digest> {
        let mut gone = Vec::new();
        while self.bytes > limit {
            let Some(digest) = self.by_use.values().find(|digest| !self.pinned.contains(digest)).copied() else {
                break;
            };
            self.forget(digest);
            gone.push(digest);
        }
        gone
    }
}

impl Chunks {
    /// The cache in this directory, holding about `limit` bytes at most.
    pub(super) fn open(directory: &Path, limit: u64, agent: AgentLink) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        let mut found = Vec::new();
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            match entry.file_name().to_string_lossy().parse::<Digest>() {
                Ok(digest) => found.push((metadata.modified()?, digest, metadata.len())),
                // Left half-written by a process that was killed.
                Err(_) => fs::remove_file(entry.path())?,
            }
        }
        found.sort_by_key(|(modified, ..)| *modified);
        let mut shelf = Shelf::default();
        for (_, digest, size) in found {
            shelf.used(digest, size);
        }
        let inner = Inner {
            directory: directory.to_owned(),
            limit,
            agent,
            shelf: Mutex::new(shelf),
            fetching: Mutex::default(),
        };
        Ok(Self(Arc::new(inner)))
    }

    /// A chunk's compressed bytes, verified.
    pub(super) async fn chunk(&self, digest: Digest) -> Result<Bytes, ChunkError> {
        self.find_or(digest, async || {
            let bytes = self.0.agent.chunk(digest).await?;
            if Digest::of(&bytes) != digest {
                return Err(ChunkError::WrongBytes(digest));
            }
            Ok(bytes)
        })
        .await
    }

    /// A signed manifest.
    pub(super) async fn manifest(&self, digest: Digest) -> Result<SignedManifest, ChunkError> {
        let bytes = self
            .find_or(digest, async || {
                let signed = self.0.agent.manifest(digest).await?;
                if signed.digest() != digest {
                    return Err(ChunkError::WrongBytes(digest));
                }
                Ok(serde_json::to_vec(&signed).expect("manifests always serialize"))
            })
            .await?;
        serde_json::from_slice(&bytes).map_err(|_| ChunkError::WrongBytes(digest))
    }

    async fn find_or(
        &self,
        digest: Digest,
        fetch: impl AsyncFnOnce() -> Result<Vec<u8>, ChunkError>,
    ) -> Result<Bytes, ChunkError> {
        if let Some(bytes) = self.read(digest).await {
            return Ok(bytes);
        }
        let turn = lock(&self.0.fetching).entry(digest).or_default().clone();
        let fetched = {
            let _only = turn.lock().await;
            match self.read(digest).await {
                Some(bytes) => Ok(bytes),
                None => match fetch().await {
                    Ok(bytes) => self.write(digest, bytes).await,
                    Err(error) => Err(error),
                },
            }
        };
        drop(turn);
        let mut fetching = lock(&self.0.fetching);
        if fetching.get(&digest).is_some_and(|turn| Arc::strong_count(turn) == 1) {
            fetching.remove(&digest);
        }
        fetched
    }

    /// What is on disk under this name, when it is whole.
    async fn read(&self, digest: Digest) -> Option<Bytes> {
        lock(&self.0.shelf).sizes.get(&digest)?;
        let path = self.path(digest);
        let whole = tokio::task::spawn_blocking(move || {
            let bytes = fs::read(path).ok()?;
            is_whole(digest, &bytes).then(|| Bytes::from(bytes))
        });
        let bytes = whole.await.ok().flatten();
        match &bytes {
            Some(bytes) => lock(&self.0.shelf).used(digest, bytes.len() as u64),
            None => {
                tracing::warn!(%digest, "a cached chunk is damaged and is fetched again");
                lock(&self.0.shelf).forget(digest);
            }
        }
        bytes
    }

    async fn write(&self, digest: Digest, bytes: Vec<u8>) -> Result<Bytes, ChunkError> {
        let bytes = Bytes::from(bytes);
        let (path, copy) = (self.path(digest), bytes.clone());
        let beside = path.with_extension("part");
        let written = tokio::task::spawn_blocking(move || {
            fs::write(&beside, &copy)?;
            fs::rename(&beside, &path)
        });
        written.await.map_err(io::Error::other)??;
        let gone = {
            let mut shelf = lock(&self.0.shelf);
            shelf.used(digest, bytes.len() as u64);
            shelf.evict(self.0.limit)
        };
        for digest in gone {
            let _ = tokio::fs::remove_file(self.path(digest)).await;
        }
        Ok(bytes)
    }

    fn path(&self, digest: Digest) -> PathBuf {
        self.0.directory.join(digest.to_string())
    }

    /// Pins what present orders need, and fetches it ahead of the installers.
    pub(super) async fn fetch_ahead(
        self,
        mut intent: watch::Receiver<Option<Arc<Intent>>>,
        shutdown: CancellationToken,
    ) {
        intent.mark_changed();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = intent.changed() => if changed.is_err() { return },
            }
            let wanted = intent.borrow_and_update().as_deref().map(manifests).unwrap_or_default();
            let ahead = self.fetch_all(wanted);
            tokio::select! {
                () = shutdown.cancelled() => return,
                // A newer intent may want other images, or these no longer.
                changed = intent.changed() => { if changed.is_err() { return }; intent.mark_changed(); }
                () = ahead => {}
            }
        }
    }

    async fn fetch_all(&self, wanted: HashSet<Digest>) {
        let mut chunks = Vec::new();
        for digest in &wanted {
            let manifest = self.manifest(*digest).await.map(|signed| signed.parse_unverified());
            match manifest {
                Ok(Ok(manifest)) => chunks.extend(manifest.chunks.into_iter().flatten().map(|chunk| chunk.digest)),
                Ok(Err(error)) => tracing::error!(%digest, %error, "an order's manifest is not usable"),
                // The installer asks again, and with it we do.
                Err(error) => tracing::warn!(%digest, %error, "an order's manifest is not here yet"),
            }
        }
        lock(&self.0.shelf).pinned = wanted.into_iter().chain(chunks.iter().copied()).collect();
        let fetched = stream::iter(chunks).map(|digest| self.fetch_if_absent(digest)).buffer_unordered(AHEAD);
        fetched.collect::<()>().await;
    }

    async fn fetch_if_absent(&self, digest: Digest) {
        if lock(&self.0.shelf).sizes.contains_key(&digest) {
            return;
        }
        if let Err(error) = self.chunk(digest).await {
            tracing::debug!(%digest, %error, "not fetched ahead");
        }
    }
}

/// Manifests of the orders in an intent.
fn manifests(intent: &Intent) -> HashSet<Digest> {
    let orders = intent.machines.iter().filter_map(|machine| machine.order.as_ref());
    orders
        .filter_map(|order| match &order.work {
            Work::Deploy(deploy) => Some(deploy.manifest),
            Work::Erase => None,
        })
        .collect()
}

/// A chunk is named by its bytes; a manifest by those that were signed.
fn is_whole(digest: Digest, bytes: &[u8]) -> bool {
    Digest::of(bytes) == digest
        || serde_json::from_slice::<SignedManifest>(bytes).is_ok_and(|signed| signed.digest() == digest)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(n: u8) -> Digest {
        Digest([n; 32])
    }

    #[test]
    fn the_least_recently_used_chunk_goes_first_and_a_pinned_one_never() {
        let mut shelf = Shelf::default();
        for n in 1..=4 {
            shelf.used(digest(n), 10);
        }
        shelf.used(digest(1), 10);
        shelf.pinned.insert(digest(2));
        assert_eq!(shelf.evict(20), [digest(3), digest(4)]);
        assert_eq!(shelf.evict(5), [digest(1)]);
        assert_eq!(shelf.bytes, 10);
    }

    #[tokio::test]
    async fn a_damaged_chunk_is_not_served() {
        let directory = tempfile::tempdir().unwrap();
        let nobody = AgentLink::new(&directory.path().join("no.sock"));
        let cache = directory.path().join("chunks");
        fs::create_dir(&cache).unwrap();
        let (good, bad) = (Digest::of(b"good"), Digest::of(b"bad"));
        fs::write(cache.join(good.to_string()), b"good").unwrap();
        fs::write(cache.join(bad.to_string()), b"torn").unwrap();
        fs::write(cache.join("half.part"), b"x").unwrap();
        let chunks = Chunks::open(&cache, 1 << 20, nobody).unwrap();
        assert_eq!(chunks.chunk(good).await.unwrap(), "good");
        assert!(matches!(chunks.chunk(bad).await, Err(ChunkError::NotFetched(_))));
        assert!(!cache.join("half.part").exists());
    }
}
