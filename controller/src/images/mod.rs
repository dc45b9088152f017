//! Operating system images: importing them, and serving their chunks to agents.
//!
//! An import receives a file (an upload, one of the import directory of this host, or what is
//! at a URL), takes it out of its compression, makes a raw file of a virtual disk's, reads its
//! layout, cuts it into chunks and puts each into the object store under the BLAKE3 of its
//! compressed bytes, then the signed manifest that lists them, and last marks the row as ready.
//!
//! Invariants:
//! - An image is ready only after all its objects are on stable storage.
//! - An object never changes: its name is its digest. What was damaged on its disk is put right
//!   by the next import that has it.
//! - No file is opened by a tool before its header was found to name no other file.
//! - An import that a crash ended is `failed` after the next start, with the reason; chunks it
//!   left are used by the next import of the same image.

mod check;
mod convert;
mod cut;
mod error;
mod fetch;
mod firmware;
mod import;
mod layout;
mod qcow2;
mod sandbox;
mod serve;
mod unpack;
mod vmdk;

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use axum::Router;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, pin_mut};
use object_store::{ObjectStore, ObjectStoreExt, local::LocalFileSystem, path::Path as ObjectPath};
use rackhand_common::{
    id::ImageId,
    image::{Digest, Manifest, Settings, SignedManifest},
    machine::Firmware,
    time::Clock,
};
use tokio::io::AsyncWriteExt;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::import::{Origin, Progress, Unfinished, remove};
pub use self::{
    check::{Finding, Severity},
    error::ImportError,
    fetch::{FetchError, Source},
    sandbox::{Files, Given, probe},
};
use crate::store::{Image, NewImage, Store, is_dry_run};

/// Signs an image's manifest: ECDSA P-256 with SHA-256 by the controller's image key, DER.
pub type Sign = Arc<dyn Fn(&[u8]) -> Vec<u8> + Send + Sync>;

/// Where images are kept, and what is let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Directory of the object store.
    pub objects: PathBuf,
    /// Directory for uploads and conversions in progress; emptied at start.
    pub spool: PathBuf,
    /// Directory from which files may be imported by name.
    pub import: PathBuf,
    /// The largest raw image accepted, in bytes.
    pub limit: u64,
    /// Where images may be fetched from although the address points inwards.
    pub sources: Vec<Source>,
}

impl Config {
    /// The usual places below the controller's data directory, and 64 GiB.
    pub fn below(data: &Path) -> Self {
        Self {
            objects: data.join("objects"),
            spool: data.join("spool"),
            import: data.join("import"),
            limit: 64 << 30,
            sources: Vec::new(),
        }
    }
}

/// What an operator says about an image to be imported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its name; see [`is_name`].
    pub name: String,
    /// The settings format the system in it understands.
    pub settings: Settings,
    /// Firmware modes it boots in, when the operator knows better than its partition table.
    pub firmware: Option<Vec<Firmware>>,
    /// The catalogue's name for the system in it.
    pub os: Option<String>,
    /// SHA-256 that the file must have as it comes, lower-case hexadecimal.
    pub sha256: Option<String>,
}

/// Whether this is a SHA-256 in lower-case hexadecimal.
pub fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Whether this can be an image's name: like a DNS label or several, and no id.
pub fn is_name(name: &str) -> bool {
    name.len() <= 63
        && name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_'))
        && name.parse::<ImageId>().is_err()
}

/// A handle on everything about images; clones share it.
#[derive(Clone)]
pub struct Images(Arc<Inner>);

struct Inner {
    /// What of it is let in may change, its directories stay.
    config: RwLock<Config>,
    store: Store,
    objects: Arc<dyn ObjectStore>,
    sign: Sign,
    clock: Arc<dyn Clock>,
    shutdown: CancellationToken,
    tracker: TaskTracker,
    /// Held shared by every import, exclusively while unused objects are swept out: an import
    /// counts on chunks that are already there.
    imports: tokio::sync::RwLock<()>,
}

impl fmt::Debug for Images {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Images").field("config", &self.0.config).finish_non_exhaustive()
    }
}

impl Images {
    /// Lets in what is no larger than `limit`, and files from `import` and `sources`, from now on.
    pub fn admit(&self, limit: u64, import: &Path, sources: &[Source]) {
        let mut config = self.0.config.write().unwrap_or_else(PoisonError::into_inner);
        (config.limit, config.import, config.sources) = (limit, import.to_owned(), sources.to_owned());
    }

    fn config(&self) -> Config {
        self.0.config.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes the directories, and names what an earlier process left unfinished.
    pub async fn open(
        config: Config,
        store: Store,
        sign: Sign,
        clock: Arc<dyn Clock>,
        shutdown: CancellationToken,
    ) -> Result<Self, ImportError> {
        match tokio::fs::remove_dir_all(&config.spool).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => (),
        }
        for directory in [&config.objects, &config.spool, &config.import] {
            tokio::fs::create_dir_all(directory).await?;
        }
        let mut tx = store.begin().await?;
        let ended = tx.fail_unfinished_imports(ImportError::Stopped.cause(), &ImportError::Stopped.to_string()).await?;
        tx.commit().await?;
        if ended > 0 {
            tracing::warn!(ended, "imports that were under way at the last stop have failed");
        }
        let given = sandbox::probe();
        if !given.is_whole() {
            tracing::warn!("what reads a foreign image here is not kept apart as it could be: it {given}");
        }
        let objects = Arc::new(LocalFileSystem::new_with_prefix(&config.objects)?.with_fsync(true));
        Ok(Self(Arc::new(Inner {
            config: RwLock::new(config),
            store,
            objects,
            sign,
            clock,
            shutdown,
            tracker: TaskTracker::new(),
            imports: tokio::sync::RwLock::new(()),
        })))
    }

    /// Begins to import the file with this name in the import directory. The answer is the
    /// image that is being imported, in the background.
    pub async fn import_file(&self, request: Request, name: &str) -> Result<Image, ImportError> {
        let plain = !name.is_empty() && !name.contains(['/', '\0']) && name != "." && name != "..";
        let path = self.config().import.join(name);
        // A symbolic link could lead to any file the controller may read, its keys among them.
        let file =
            plain.then_some(tokio::fs::symlink_metadata(&path)).ok_or_else(|| ImportError::NoFile(name.into()))?;
        let len = match file.await {
            Ok(found) if found.is_file() => found.len(),
            _ => return Err(ImportError::NoFile(name.into())),
        };
        let image = self.start(&request, "reading", len).await?;
        if !is_dry_run() {
            self.spawn(image.id, request, Origin::File(path));
        }
        Ok(image)
    }

    /// Begins to fetch and import what is at this URL. The answer is the import's row; it runs on
    /// in the background.
    pub async fn import_url(&self, request: Request, url: &str) -> Result<Image, ImportError> {
        let url = fetch::parse(url)?;
        let image = self.start(&request, "fetching", 0).await?;
        if !is_dry_run() {
            self.spawn(image.id, request, Origin::Url(url));
        }
        Ok(image)
    }

    /// Receives a file and begins to import it. The answer comes when the last byte is here;
    /// the rest runs on in the background.
    pub async fn import_upload<E: fmt::Display>(
        &self,
        request: Request,
        len: Option<u64>,
        body: impl Stream<Item = Result<Bytes, E>>,
    ) -> Result<Image, ImportError> {
        if let Some(size) = len {
            self.fits(size)?;
        }
        let image = self.start(&request, "receiving", len.unwrap_or(0)).await?;
        let id = image.id;
        let path = self.config().spool.join(format!("{id}.upload"));
        // The client may go away at any await: the row must not stay behind as importing.
        let unfinished = Unfinished { images: self.clone(), id, path: path.clone(), armed: true };
        match self.receive(id, len, &path, body).await {
            Ok(()) => {
                unfinished.disarm();
                self.spawn(id, request, Origin::File(path));
                Ok(image)
            }
            Err(error) => {
                unfinished.disarm();
                self.fail(id, &error).await;
                remove(&path).await;
                Err(error)
            }
        }
    }

    /// Removes chunks and manifests that no image lists, and files of no firmware, unless an import is under way.
    pub async fn sweep(&self) -> Result<usize, ImportError> {
        let Ok(_alone) = self.0.imports.try_write() else { return Ok(0) };
        let mut used = std::collections::HashSet::new();
        let mut after = None;
        loop {
            let page = self.0.store.images(after, 100).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.id);
            for stored in page.iter().filter_map(|image| image.stored()) {
                used.insert(manifest_path(stored.manifest));
                let manifest = self.manifest(stored.manifest).await?;
                used.extend(manifest.chunks.iter().flatten().map(|chunk| chunk_path(chunk.digest)));
            }
        }
        used.extend(self.0.store.firmware_files().await?.iter().map(|sha256| firmware_path(sha256)));
        let mut removed = 0;
        let mut objects = self.0.objects.list(None);
        while let Some(object) = objects.next().await {
            let object = object?;
            if !used.contains(&object.location) {
                self.0.objects.delete(&object.location).await?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Waits for imports under way to notice the shutdown.
    pub async fn closed(&self) {
        self.0.tracker.close();
        self.0.tracker.wait().await;
    }

    /// What agents fetch, below `/agents/v1`. Every request must carry `Option<Peer>` in its
    /// extensions, put there by the TLS server; only a registered agent is answered.
    pub fn router(&self) -> Router {
        serve::router(self)
    }

    fn fits(&self, size: u64) -> Result<(), ImportError> {
        let limit = self.config().limit;
        if size > limit { Err(ImportError::TooLarge { size, limit }) } else { Ok(()) }
    }

    async fn start(&self, request: &Request, doing: &str, total: u64) -> Result<Image, ImportError> {
        let mut tx = self.0.store.begin().await?;
        let new = NewImage { name: &request.name, settings: request.settings, os: request.os.as_deref() };
        let id = tx.start_import(self.0.clock.now().wall, &new, doing, total).await?;
        let image = tx.image(&id.to_string()).await?;
        tx.commit().await?;
        Ok(image)
    }

    async fn receive<E: fmt::Display>(
        &self,
        id: ImageId,
        len: Option<u64>,
        path: &Path,
        body: impl Stream<Item = Result<Bytes, E>>,
    ) -> Result<(), ImportError> {
        let mut progress = Progress::new(self, id, "receiving", len.unwrap_or(0));
        let mut file = tokio::io::BufWriter::with_capacity(1 << 20, tokio::fs::File::create(path).await?);
        pin_mut!(body);
        while let Some(bytes) = body.next().await {
            let bytes = bytes.map_err(|error| ImportError::Upload(error.to_string()))?;
            self.fits(progress.done + bytes.len() as u64)?;
            file.write_all(&bytes).await?;
            progress.add(bytes.len() as u64).await?;
        }
        if len.is_some_and(|len| len != progress.done) {
            return Err(ImportError::Upload(format!("{} bytes came", progress.done)));
        }
        file.flush().await?;
        Ok(())
    }

    /// Looks into an image that is stored.
    pub async fn check(&self, image: &Image) -> Result<Vec<Finding>, ImportError> {
        let stored = image.stored().ok_or(ImportError::NotReady)?;
        let manifest = Box::new(self.manifest(stored.manifest).await?);
        let said = check::Said { settings: image.settings, firmware: stored.firmware.clone() };
        let chunks = self.config().objects.join("chunks");
        Ok(check::check(check::Place::Chunks(manifest, chunks), said).await)
    }

    async fn manifest(&self, digest: Digest) -> Result<Manifest, ImportError> {
        let signed = self.0.objects.get(&manifest_path(digest)).await?.bytes().await?;
        serde_json::from_slice::<SignedManifest>(&signed)
            .ok()
            .and_then(|signed| signed.parse_unverified().ok())
            .ok_or_else(|| ImportError::Converter(format!("manifest {digest} cannot be read")))
    }
}

/// Two levels, so that no directory gets a million entries.
fn chunk_path(digest: Digest) -> ObjectPath {
    let name = digest.to_string();
    ObjectPath::from_iter(["chunks", &name[..2], &name])
}

fn firmware_path(sha256: &str) -> ObjectPath {
    ObjectPath::from_iter(["firmware", sha256])
}

fn manifest_path(digest: Digest) -> ObjectPath {
    ObjectPath::from_iter(["manifests", &digest.to_string()])
}

#[cfg(test)]
mod tests;
