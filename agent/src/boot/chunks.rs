//! Image chunks and manifests in the rack: fetched once through the agent, kept on disk,
//! served to every machine that needs them.
//!
//! Invariants:
//! - A chunk leaves the cache only after its BLAKE3 was compared, at every read: a file torn
//!   by a power cut or rotten on its disk is fetched again. Files are therefore not synced.
//! - Asked for by a machine, only what a present order lists is fetched: names made up reach
//!   neither agent nor controller.
//! - Many machines that want a chunk at once cause one fetch.
//! - The cache stays within its limit, but never drops a manifest of a present order nor a
//!   chunk that it lists. Nothing is dropped before it is known what these are.
//! - A download that breaks off leaves nothing behind; the next begins anew. A chunk that cannot
//!   be kept, the disk being full, is served all the same.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::body::Body;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use rackhand_common::{
    image::{Digest, SignedManifest},
    intent::Intent,
};
use rackhand_fail_points::fail_point;
use tokio::{
    io::AsyncReadExt as _,
    sync::{Semaphore, watch},
};
use tokio_util::sync::CancellationToken;

use super::agent_link::{AgentLink, NotFetched};

/// Chunks fetched ahead at once for an order that has just come.
const AHEAD: usize = 4;

/// Chunks read from disk at once: more than disks do better with.
const READING: usize = 16;

/// What a reader of a chunk has in memory.
const PIECE: usize = 256 << 10;

/// Why a chunk or manifest cannot be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum ChunkError {
    /// The agent did not give it.
    #[error("cannot be fetched: {0}")]
    NotFetched(#[from] NotFetched),
    /// No present order lists it, as far as is known by now.
    #[error("no order lists {0}")]
    NotListed(Digest),
    /// What the agent gave is something else.
    #[error("the bytes fetched are not those of {0}")]
    WrongBytes(Digest),
}

/// The cache; clones share it.
#[derive(Clone, Debug)]
pub(super) struct Chunks(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    directory: PathBuf,
    limit: AtomicU64,
    agent: AgentLink,
    /// Chunks that are read and compared at once: each is in memory whole meanwhile.
    reading: Semaphore,
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
    /// The chunks of every manifest that a present order names.
    orders: HashMap<Digest, HashSet<Digest>>,
    /// All of these, once they are known.
    pinned: Option<HashSet<Digest>>,
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

    /// An order needs this manifest, and these chunks of it as far as they are known.
    fn pin(&mut self, manifest: Digest, chunks: impl IntoIterator<Item = Digest>) {
        self.orders.entry(manifest).or_default().extend(chunks);
        if let Some(pinned) = &mut self.pinned {
            pinned.insert(manifest);
            pinned.extend(&self.orders[&manifest]);
        }
    }

    /// Whether it is here, or an order needs it.
    fn knows(&self, digest: Digest) -> bool {
        self.sizes.contains_key(&digest) || self.orders.values().any(|chunks| chunks.contains(&digest))
    }

    /// These are all manifests that orders need.
    fn pin_only(&mut self, manifests: &HashSet<Digest>) {
        self.orders.retain(|manifest, _| manifests.contains(manifest));
        let chunks = self.orders.values().flatten();
        self.pinned = Some(manifests.iter().chain(chunks).copied().collect());
    }

    /// What has to go to come back under `limit`, least recently used first.
    fn evict(&mut self, limit: u64) -> Vec<Digest> {
        let Some(pinned) = &self.pinned else { return Vec::new() };
        let (mut gone, mut left) = (Vec::new(), self.bytes);
        for digest in self.by_use.values().filter(|digest| !pinned.contains(*digest)) {
            if left <= limit {
                break;
            }
            left -= self.sizes[digest].0;
            gone.push(*digest);
        }
        for digest in &gone {
            self.forget(*digest);
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
            limit: AtomicU64::new(limit),
            agent,
            reading: Semaphore::new(READING),
            shelf: Mutex::new(shelf),
            fetching: Mutex::default(),
        };
        Ok(Self(Arc::new(inner)))
    }

    /// A chunk for whoever asks over the network: its length and its bytes. It is read again in
    /// pieces as they are taken, so that a thousand slow readers do not hold a thousand chunks.
    pub(super) async fn body(&self, digest: Digest) -> Result<(usize, Body), ChunkError> {
        let bytes = self.listed_chunk(digest).await?;
        // What was compared is what this file has: another version would be another file.
        let body = match tokio::fs::File::open(self.path(digest)).await {
            Ok(file) => Body::from_stream(pieces(file)),
            Err(_) => Body::from(bytes.clone()),
        };
        Ok((bytes.len(), body))
    }

    async fn listed_chunk(&self, digest: Digest) -> Result<Bytes, ChunkError> {
        if !lock(&self.0.shelf).knows(digest) {
            return Err(ChunkError::NotListed(digest));
        }
        self.chunk(digest).await
    }

    /// The manifest of a present order; what it lists may be asked for from then on.
    pub(super) async fn ordered_manifest(&self, digest: Digest) -> Result<SignedManifest, ChunkError> {
        let signed = self.manifest(digest).await?;
        if let Ok(manifest) = signed.parse_unverified() {
            lock(&self.0.shelf).pin(digest, manifest.chunks.into_iter().flatten().map(|chunk| chunk.digest));
        }
        Ok(signed)
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
                    Ok(bytes) => Ok(self.keep(digest, bytes).await),
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
        let _place = self.0.reading.acquire().await.expect("the semaphore is never closed");
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

    /// Puts the bytes on disk, if they fit there; gives them on in any case.
    async fn keep(&self, digest: Digest, bytes: Vec<u8>) -> Bytes {
        let bytes = Bytes::from(bytes);
        let (path, copy) = (self.path(digest), bytes.clone());
        let beside = path.with_extension("part");
        let write = move || {
            fs::write(&beside, &copy).and_then(|()| fs::rename(&beside, &path)).inspect_err(|_| {
                let _ = fs::remove_file(&beside);
            })
        };
        let written = tokio::task::spawn_blocking(move || fail_point!("chunk.keep", write()));
        match written.await.map_err(io::Error::other).flatten() {
            Ok(()) => lock(&self.0.shelf).used(digest, bytes.len() as u64),
            Err(error) => tracing::warn!(%digest, %error, "a chunk is served but cannot be kept"),
        }
        self.evict().await;
        bytes
    }

    async fn evict(&self) {
        let gone = lock(&self.0.shelf).evict(self.0.limit.load(Ordering::Relaxed));
        for digest in gone {
            let _ = tokio::fs::remove_file(self.path(digest)).await;
        }
    }

    /// Holds about this many bytes at most from now on; what is too much now goes with the next
    /// chunk that comes.
    pub(super) fn hold(&self, limit: u64) {
        self.0.limit.store(limit, Ordering::Relaxed);
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
            lock(&self.0.shelf).pin(*digest, []);
            let manifest = self.manifest(*digest).await.map(|signed| signed.parse_unverified());
            match manifest {
                Ok(Ok(manifest)) => {
                    let listed: Vec<_> = manifest.chunks.into_iter().flatten().map(|chunk| chunk.digest).collect();
                    lock(&self.0.shelf).pin(*digest, listed.iter().copied());
                    chunks.extend(listed);
                }
                Ok(Err(error)) => tracing::error!(%digest, %error, "an order's manifest is not usable"),
                // The installer asks again, and with it we do.
                Err(error) => tracing::warn!(%digest, %error, "an order's manifest is not here yet"),
            }
        }
        lock(&self.0.shelf).pin_only(&wanted);
        self.evict().await;
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

/// A file in pieces, each read when it is wanted.
/// What is in the file, from where it stands.
pub(super) fn pieces(file: tokio::fs::File) -> impl Stream<Item = io::Result<Bytes>> {
    stream::try_unfold(file, async |mut file| {
        let mut piece = vec![0; PIECE];
        let len = file.read(&mut piece).await?;
        piece.truncate(len);
        Ok((len > 0).then(|| (Bytes::from(piece), file)))
    })
}

/// Manifests of the orders in an intent.
fn manifests(intent: &Intent) -> HashSet<Digest> {
    let orders = intent.machines.iter().filter_map(|machine| machine.order.as_ref());
    orders.filter_map(|order| order.work.deploy()).map(|deploy| deploy.manifest).collect()
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
    use std::sync::atomic::{AtomicUsize, Ordering};

    use rackhand_common::{
        id::ImageId,
        image::{Chunk, Manifest, Settings},
        wire::{self, LocalRequest, LocalResponse},
    };
    use tokio::io::AsyncWriteExt as _;

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
        assert_eq!(shelf.evict(20), []);
        shelf.pin(digest(2), []);
        shelf.pin_only(&HashSet::from([digest(2)]));
        assert_eq!(shelf.evict(20), [digest(3), digest(4)]);
        assert_eq!(shelf.evict(5), [digest(1)]);
        assert_eq!(shelf.bytes, 10);
    }

    #[tokio::test]
    async fn only_what_an_order_lists_is_asked_of_the_agent() {
        let dir = tempfile::tempdir().unwrap();
        let (link, asked) = agent(dir.path(), vec![give(b"chunk")]);
        let chunks = Chunks::open(&dir.path().join("chunks"), 1 << 20, link).unwrap();
        for n in 0..100 {
            assert!(matches!(chunks.listed_chunk(digest(n)).await, Err(ChunkError::NotListed(_))));
        }
        assert_eq!(asked.load(Ordering::SeqCst), 0);
        assert!(lock(&chunks.0.fetching).is_empty());
        lock(&chunks.0.shelf).pin(digest(1), [Digest::of(b"chunk")]);
        assert_eq!(chunks.listed_chunk(Digest::of(b"chunk")).await.unwrap(), "chunk");
    }

    #[tokio::test]
    async fn a_slow_reader_gets_a_whole_chunk_and_holds_a_piece_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let content: Vec<u8> = (0..PIECE * 4 + 7).map(|n| (n / 3) as u8).collect();
        let (link, _) = agent(dir.path(), vec![give(&content)]);
        let chunks = Chunks::open(&dir.path().join("chunks"), 1 << 20, link).unwrap();
        let name = Digest::of(&content);
        lock(&chunks.0.shelf).pin(digest(1), [name]);
        let (length, body) = chunks.body(name).await.unwrap();
        // It goes on when the chunk has left the cache meanwhile.
        fs::remove_file(chunks.path(name)).unwrap();
        let (mut stream, mut got) = (body.into_data_stream(), Vec::new());
        while let Some(piece) = stream.next().await {
            let piece = piece.unwrap();
            assert!(piece.len() <= PIECE, "{} bytes at once", piece.len());
            got.extend_from_slice(&piece);
        }
        assert_eq!((length, got.len()), (content.len(), content.len()));
        assert!(got == content);
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

    /// What the agent on the node does when it is asked, in this order.
    enum Answer {
        Give(LocalResponse),
        /// Half of an answer, and the connection is gone.
        BreakOff(LocalResponse),
    }

    /// An agent with these answers, and how often it was asked.
    fn agent(dir: &Path, answers: Vec<Answer>) -> (AgentLink, Arc<AtomicUsize>) {
        let socket = dir.join("agent.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let (asked, count) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let counted = asked.clone();
        let answers = Arc::new(answers);
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let (answers, counted, count) = (answers.clone(), counted.clone(), count.clone());
                tokio::spawn(async move {
                    let mut prefix = [0; 4];
                    while stream.read_exact(&mut prefix).await.is_ok() {
                        let mut request = vec![0; wire::frame_len(prefix).unwrap()];
                        stream.read_exact(&mut request).await.unwrap();
                        wire::decode::<LocalRequest>(&request).unwrap();
                        counted.fetch_add(1, Ordering::SeqCst);
                        match answers.get(count.fetch_add(1, Ordering::SeqCst)) {
                            Some(Answer::Give(response)) => stream.write_all(&wire::frame(response)).await.unwrap(),
                            Some(Answer::BreakOff(response)) => {
                                let frame = wire::frame(response);
                                return stream.write_all(&frame[..frame.len() / 2]).await.unwrap();
                            }
                            None => panic!("asked too often"),
                        }
                    }
                });
            }
        });
        (AgentLink::new(&socket), asked)
    }

    fn give(bytes: &[u8]) -> Answer {
        Answer::Give(LocalResponse::Chunk(bytes.to_vec()))
    }

    fn files(cache: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(cache).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn a_damaged_chunk_is_fetched_again_and_is_whole_then() {
        let dir = tempfile::tempdir().unwrap();
        let (link, asked) = agent(dir.path(), vec![give(b"chunk"), give(b"chunk")]);
        let cache = dir.path().join("chunks");
        fs::create_dir(&cache).unwrap();
        let digest = Digest::of(b"chunk");
        fs::write(cache.join(digest.to_string()), b"chu").unwrap();
        let chunks = Chunks::open(&cache, 1 << 20, link).unwrap();
        for _ in 0..2 {
            assert_eq!(chunks.chunk(digest).await.unwrap(), "chunk");
        }
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        assert_eq!(fs::read(cache.join(digest.to_string())).unwrap(), b"chunk");
        // Rotten while it is in use.
        fs::write(cache.join(digest.to_string()), b"chunk!").unwrap();
        assert_eq!(chunks.chunk(digest).await.unwrap(), "chunk");
        assert_eq!(asked.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_download_that_breaks_off_or_is_wrong_leaves_nothing_and_the_next_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let half = || Answer::BreakOff(LocalResponse::Chunk(b"chunk".to_vec()));
        let busy = Answer::Give(LocalResponse::Unavailable("not now".into()));
        // The link asks a second time itself before it gives up.
        let (link, _) = agent(dir.path(), vec![half(), half(), busy, give(b"other"), half(), give(b"chunk")]);
        let cache = dir.path().join("chunks");
        let chunks = Chunks::open(&cache, 1 << 20, link).unwrap();
        let digest = Digest::of(b"chunk");
        assert!(matches!(chunks.chunk(digest).await, Err(ChunkError::NotFetched(NotFetched::Local(_)))));
        assert!(matches!(chunks.chunk(digest).await, Err(ChunkError::NotFetched(NotFetched::Unavailable(_)))));
        assert!(matches!(chunks.chunk(digest).await, Err(ChunkError::WrongBytes(_))));
        assert_eq!(files(&cache), Vec::<String>::new());
        assert_eq!(chunks.chunk(digest).await.unwrap(), "chunk");
        assert_eq!(files(&cache), [digest.to_string()]);
        assert!(lock(&chunks.0.fetching).is_empty());
    }

    #[tokio::test]
    async fn many_machines_that_want_a_chunk_cause_one_fetch() {
        let dir = tempfile::tempdir().unwrap();
        let (link, asked) = agent(dir.path(), vec![give(b"chunk")]);
        let chunks = Chunks::open(&dir.path().join("chunks"), 1 << 20, link).unwrap();
        let mut machines = tokio::task::JoinSet::new();
        for _ in 0..100 {
            let chunks = chunks.clone();
            machines.spawn(async move { chunks.chunk(Digest::of(b"chunk")).await.unwrap() });
        }
        assert!(machines.join_all().await.iter().all(|bytes| bytes == "chunk"));
        assert_eq!(asked.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn the_disk_is_bounded_and_what_a_present_order_needs_stays() {
        let dir = tempfile::tempdir().unwrap();
        let chunk = |n: u8| vec![n; 100];
        let name = |n: u8| Digest::of(&chunk(n));
        let manifest = Manifest {
            image: ImageId::fresh(),
            name: "it".into(),
            size: 512,
            sector: 512,
            firmware: Vec::new(),
            settings: Settings::None,
            sha256: String::new(),
            compression: String::new(),
            chunks: vec![Some(Chunk { digest: name(1), compressed: 100 })],
        };
        let manifest = serde_json::to_string(&manifest).unwrap();
        let signed = SignedManifest { manifest: manifest.clone(), signature: String::new() };
        let manifest_len = serde_json::to_vec(&signed).unwrap().len() as u64;
        let wanted = HashSet::from([signed.digest()]);
        let given = Answer::Give(LocalResponse::Manifest { manifest, signature: String::new() });
        let mut answers = vec![given];
        answers.extend((1..=20).map(|n| give(&chunk(n))));
        let (link, _) = agent(dir.path(), answers);
        let cache = dir.path().join("chunks");
        let limit = manifest_len + 300;
        let chunks = Chunks::open(&cache, limit, link.clone()).unwrap();
        chunks.fetch_all(wanted.clone()).await;
        for n in 2..=20 {
            chunks.chunk(name(n)).await.unwrap();
            let bytes: u64 = fs::read_dir(&cache).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
            assert!(bytes <= limit, "{bytes}");
            assert!(cache.join(name(1).to_string()).exists());
        }
        assert!(!cache.join(name(2).to_string()).exists());

        // After a restart too, although nobody knows at first what orders need.
        let chunks = Chunks::open(&cache, 0, link).unwrap();
        assert_eq!(chunks.chunk(name(20)).await.unwrap(), chunk(20));
        assert!(cache.join(name(1).to_string()).exists());
        chunks.fetch_all(wanted).await;
        let mut kept = vec![signed.digest().to_string(), name(1).to_string()];
        kept.sort();
        assert_eq!(files(&cache), kept);
        chunks.fetch_all(HashSet::new()).await;
        assert_eq!(files(&cache), Vec::<String>::new());
    }

    #[tokio::test]
    async fn a_chunk_that_cannot_be_kept_is_served() {
        let dir = tempfile::tempdir().unwrap();
        let (link, _) = agent(dir.path(), vec![give(b"chunk"), give(b"chunk")]);
        let cache = dir.path().join("chunks");
        let chunks = Chunks::open(&cache, 1 << 20, link).unwrap();
        fs::remove_dir(&cache).unwrap();
        assert_eq!(chunks.chunk(Digest::of(b"chunk")).await.unwrap(), "chunk");
        fs::create_dir(&cache).unwrap();
        assert_eq!(chunks.chunk(Digest::of(b"chunk")).await.unwrap(), "chunk");
        assert_eq!(files(&cache).len(), 1);
    }
}
