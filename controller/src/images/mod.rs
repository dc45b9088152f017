//! Operating system images: importing them, and serving their chunks to agents.
//!
//! An import receives a raw or qcow2 file (an upload, or a file in the import directory of
//! this host), makes it raw, reads its layout, cuts it into chunks and puts each into the
//! object store under the BLAKE3 of its compressed bytes, then the signed manifest that lists
//! them, and last marks the row as ready.
//!
//! Invariants:
//! - An image is ready only after all its objects are on stable storage.
//! - An object never changes: its name is its digest. What was damaged on its disk is put right
//!   by the next import that has it.
//! - No file is opened by a tool before its header was found to name no other file.
//! - An import that a crash ended is `failed` after the next start, with the reason; chunks it
//!   left are used by the next import of the same image.

mod cut;
mod layout;
mod qcow2;

use std::{
    fmt, io,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use axum::{
    Extension, Router,
    body::Body,
    extract::{self, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, pin_mut};
use object_store::{ObjectStore, ObjectStoreExt, PutMode, local::LocalFileSystem, path::Path as ObjectPath};
use rackhand_common::{
    id::ImageId,
    image::{self, Chunk, Digest, Manifest, Settings, SignedManifest},
    machine::Firmware,
    pki::{Peer, Role},
    time::Clock,
};
use rackhand_fail_points::fail_point;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::Command,
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::store::{Image, Store, StoreError, Stored, is_dry_run};

/// Signs an image's manifest: ECDSA P-256 with SHA-256 by the controller's image key, DER.
pub type Sign = Arc<dyn Fn(&[u8]) -> Vec<u8> + Send + Sync>;

/// How often a running import notes its progress, at most.
const PROGRESS: Duration = Duration::from_millis(500);

/// The longest a conversion may take. 64 GiB at a slow disk's 50 MB/s take 22 minutes.
const CONVERSION: Duration = Duration::from_secs(45 * 60);

/// Memory a conversion may use. qemu-img needs less than 200 MB for the largest images.
const CONVERSION_MEMORY: u64 = 2 << 30;

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
}

impl Config {
    /// The usual places below the controller's data directory, and 64 GiB.
    pub fn below(data: &Path) -> Self {
        Self { objects: data.join("objects"), spool: data.join("spool"), import: data.join("import"), limit: 64 << 30 }
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
}

/// Whether this can be an image's name: like a DNS label or several, and no id.
pub fn is_name(name: &str) -> bool {
    name.len() <= 63
        && name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_'))
        && name.parse::<ImageId>().is_err()
}

/// Why a file did not become an image. [`ImportError::cause`] names it for programs.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ImportError {
    #[error("the file is empty")]
    Empty,
    #[error("the image needs {needs} bytes by its own account and has {has}: it was cut short")]
    Truncated { has: u64, needs: u64 },
    #[error("the image has {size} bytes; this controller takes {limit} (images.limit in its configuration)")]
    TooLarge { size: u64, limit: u64 },
    #[error("the image's {size} bytes are not a whole number of {sector}-byte sectors")]
    NotSectors { size: u64, sector: u32 },
    #[error("nothing in the image's partition table says how it boots; say it yourself with `firmware`")]
    NoFirmware,
    #[error("qcow2: {0}")]
    Qcow2(&'static str),
    #[error("qcow2: {0}")]
    Unacceptable(String),
    #[error("`{0}` is not a file in the import directory of the controller")]
    NoFile(String),
    #[error("qemu-img did not finish its work: {0}")]
    Converter(String),
    #[error("the upload ended early: {0}")]
    Upload(String),
    #[error("reading or writing a file of this host failed")]
    Read(#[source] io::Error),
    #[error("compression failed")]
    Compress(#[source] io::Error),
    #[error("the object store failed")]
    Objects(#[source] object_store::Error),
    #[error("the controller stopped meanwhile; import it again, what was stored is not stored twice")]
    Stopped,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ImportError {
    /// The reason in one word, as it stands in the image's row.
    pub fn cause(&self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Truncated { .. } => "truncated",
            Self::TooLarge { .. } => "too-large",
            Self::NotSectors { .. } => "not-sectors",
            Self::NoFirmware => "no-firmware",
            Self::Qcow2(_) | Self::Unacceptable(_) => "qcow2",
            Self::NoFile(_) => "no-file",
            Self::Converter(_) => "converter",
            Self::Upload(_) => "upload",
            Self::Stopped => "interrupted",
            Self::Read(_) | Self::Compress(_) | Self::Objects(_) | Self::Store(_) => "internal",
        }
    }
}

impl From<io::Error> for ImportError {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
}

impl From<object_store::Error> for ImportError {
    fn from(error: object_store::Error) -> Self {
        Self::Objects(error)
    }
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
    /// Lets in what is no larger than `limit`, and files from `import`, from now on.
    pub fn admit(&self, limit: u64, import: &Path) {
        let mut config = self.0.config.write().unwrap_or_else(PoisonError::into_inner);
        (config.limit, config.import) = (limit, import.to_owned());
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
            self.spawn(image.id, request, path);
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
                self.spawn(id, request, path);
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

    /// Removes chunks and manifests that no image lists, unless an import is under way.
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
                let signed = self.0.objects.get(&manifest_path(stored.manifest)).await?.bytes().await?;
                let manifest = serde_json::from_slice::<SignedManifest>(&signed)
                    .ok()
                    .and_then(|signed| signed.parse_unverified().ok())
                    .ok_or_else(|| ImportError::Converter(format!("manifest {} cannot be read", stored.manifest)))?;
                used.extend(manifest.chunks.iter().flatten().map(|chunk| chunk_path(chunk.digest)));
            }
        }
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
        Router::new()
            .route("/agents/v1/chunks/{digest}", get(serve_chunk))
            .route("/agents/v1/manifests/{digest}", get(serve_manifest))
            .layer(axum::middleware::from_fn_with_state(self.clone(), agents_only))
            .with_state(self.clone())
    }

    fn fits(&self, size: u64) -> Result<(), ImportError> {
        let limit = self.config().limit;
        if size > limit { Err(ImportError::TooLarge { size, limit }) } else { Ok(()) }
    }

    async fn start(&self, request: &Request, doing: &str, total: u64) -> Result<Image, ImportError> {
        let mut tx = self.0.store.begin().await?;
        let id = tx.start_import(self.0.clock.now().wall, &request.name, request.settings, doing, total).await?;
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

    fn spawn(&self, id: ImageId, request: Request, path: PathBuf) {
        let images = self.clone();
        self.0.tracker.spawn(async move {
            let _share = images.0.imports.read().await;
            let raw = images.config().spool.join(format!("{id}.raw"));
            let result = tokio::select! {
                result = images.import(id, &request, &path, &raw) => result,
                () = images.0.shutdown.cancelled() => Err(ImportError::Stopped),
            };
            match &result {
                Ok(stored) => tracing::info!(image = %request.name, %id, size = stored.size, stored = stored.stored, "image imported"),
                Err(error) => images.fail(id, error).await,
            }
            remove(&raw).await;
            if path.starts_with(images.config().spool) {
                remove(&path).await;
            }
        });
    }

    async fn import(&self, id: ImageId, request: &Request, path: &Path, raw: &Path) -> Result<Stored, ImportError> {
        let mut header = [0; qcow2::HEADER];
        let mut file = tokio::fs::File::open(path).await?;
        let len = file.metadata().await?.len();
        let read = file.read(&mut header).await?;
        let path = if header[..read].starts_with(&qcow2::MAGIC) {
            let size = qcow2::check(&header[..read]).map_err(|error| ImportError::Unacceptable(error.to_string()))?;
            self.fits(size)?;
            self.0.store.import_progress(id, "converting", 0, size).await?;
            convert(path, raw, size).await?;
            raw
        } else {
            self.fits(len)?;
            path
        };
        let stored = self.store(id, request, path).await?;
        let mut tx = self.0.store.begin().await?;
        tx.finish_import(id, &stored).await?;
        tx.commit().await?;
        Ok(stored)
    }

    /// Cuts a raw file and stores its chunks and manifest.
    async fn store(&self, id: ImageId, request: &Request, path: &Path) -> Result<Stored, ImportError> {
        let mut file = tokio::fs::File::open(path).await?;
        let size = file.metadata().await?.len();
        let mut head = Vec::new();
        (&mut file).take(layout::HEAD as u64).read_to_end(&mut head).await?;
        let layout = layout::look(&head);
        let sector = layout.sector.unwrap_or(512);
        if size == 0 {
            return Err(ImportError::Empty);
        }
        if layout.needs > size {
            return Err(ImportError::Truncated { has: size, needs: layout.needs });
        }
        if !size.is_multiple_of(u64::from(sector)) {
            return Err(ImportError::NotSectors { size, sector });
        }
        let firmware = request.firmware.clone().unwrap_or(layout.firmware);
        if firmware.is_empty() {
            return Err(ImportError::NoFirmware);
        }

        let mut progress = Progress::new(self, id, "storing", size);
        let mut chunks = Vec::with_capacity(size.div_ceil(image::CHUNK) as usize);
        let mut sha256 = None;
        let pieces = cut::cut(std::fs::File::open(path)?, size);
        pin_mut!(pieces);
        while let Some(piece) = pieces.next().await {
            match piece? {
                cut::Piece::Zeros(len) => {
                    chunks.push(None);
                    progress.add(len).await?;
                }
                cut::Piece::Data { raw, digest, compressed } => {
                    chunks.push(Some(Chunk { digest, compressed: compressed.len() as u32 }));
                    self.put(&chunk_path(digest), compressed).await?;
                    progress.add(raw).await?;
                }
                cut::Piece::End(whole) => sha256 = Some(whole),
            }
        }
        let sha256 = sha256.ok_or(ImportError::Stopped)?;
        let distinct: std::collections::HashMap<_, _> =
            chunks.iter().flatten().map(|chunk| (chunk.digest, u64::from(chunk.compressed))).collect();

        let manifest = Manifest {
            image: id,
            name: request.name.clone(),
            size,
            sector,
            firmware: firmware.clone(),
            settings: request.settings,
            sha256: sha256.clone(),
            compression: format!("zstd {} level {} checksum", zstd::zstd_safe::version_string(), cut::LEVEL),
            chunks,
        };
        let manifest = serde_json::to_string(&manifest).expect("manifests always serialize");
        let signature = hex::encode((self.0.sign)(manifest.as_bytes()));
        let signed = SignedManifest { manifest, signature };
        let digest = signed.digest();
        self.put(&manifest_path(digest), serde_json::to_vec(&signed).expect("manifests always serialize").into())
            .await?;
        Ok(Stored { manifest: digest, size, stored: distinct.values().sum(), sector, firmware, sha256 })
    }

    /// Stores an object unless it is there: same name, same bytes. One that is there and is not
    /// what its name says was damaged on its disk; it is put right for every image that has it.
    async fn put(&self, path: &ObjectPath, bytes: Bytes) -> Result<(), ImportError> {
        fail_point!("image.put", self.keep(path, bytes.clone()).await)
    }

    async fn keep(&self, path: &ObjectPath, bytes: Bytes) -> Result<(), ImportError> {
        match self.0.objects.put_opts(path, bytes.clone().into(), PutMode::Create.into()).await {
            Ok(_) => return Ok(()),
            Err(object_store::Error::AlreadyExists { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let found = async { self.0.objects.get(path).await?.bytes().await };
        match found.await {
            Ok(found) if found == bytes => return Ok(()),
            Ok(_) => tracing::warn!(%path, "an object was damaged in the store; it is written anew"),
            Err(error) => {
                tracing::warn!(%path, error = &error as &dyn std::error::Error, "an object cannot be read; it is written anew");
            }
        }
        self.0.objects.put_opts(path, bytes.into(), PutMode::Overwrite.into()).await?;
        Ok(())
    }

    async fn fail(&self, id: ImageId, error: &ImportError) {
        tracing::warn!(%id, error = error as &dyn std::error::Error, "import failed");
        let result: Result<(), StoreError> = async {
            let mut tx = self.0.store.begin().await?;
            tx.fail_import(id, error.cause(), &error.to_string()).await?;
            tx.commit().await
        }
        .await;
        if let Err(error) = result {
            // The next start names it.
            tracing::error!(%id, error = &error as &dyn std::error::Error, "cannot note that the import failed");
        }
    }
}

/// An upload whose request may be dropped at any moment.
struct Unfinished {
    images: Images,
    id: ImageId,
    path: PathBuf,
    armed: bool,
}

impl Unfinished {
    fn disarm(mut self) {
        self.armed = false;
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        let (images, id, path) = (self.images.clone(), self.id, self.path.clone());
        self.images.0.tracker.spawn(async move {
            images.fail(id, &ImportError::Upload("the client went away".into())).await;
            remove(&path).await;
        });
    }
}

/// Notes an import's progress in its row, not too often.
struct Progress<'a> {
    images: &'a Images,
    id: ImageId,
    doing: &'static str,
    done: u64,
    total: u64,
    noted: Option<Instant>,
}

impl<'a> Progress<'a> {
    fn new(images: &'a Images, id: ImageId, doing: &'static str, total: u64) -> Self {
        Self { images, id, doing, done: 0, total, noted: None }
    }

    async fn add(&mut self, bytes: u64) -> Result<(), StoreError> {
        self.done += bytes;
        if self.noted.is_some_and(|noted| noted.elapsed() < PROGRESS) {
            return Ok(());
        }
        self.noted = Some(Instant::now());
        self.images.0.store.import_progress(self.id, self.doing, self.done, self.total).await
    }
}

/// Makes a raw file of a qcow2 file whose header was accepted. The tool runs with bounded
/// memory, time and output, and sees nothing of this process's environment.
async fn convert(from: &Path, to: &Path, size: u64) -> Result<(), ImportError> {
    // Reading beyond a shortened file yields zeros, silently; `check` is what notices it.
    // Its exit code 3 means that space is wasted, which is none of our business.
    qemu_img(&["check", "-q", "-f", "qcow2"], &[from], size, &[0, 3]).await?;
    qemu_img(&["convert", "-f", "qcow2", "-O", "raw"], &[from, to], size, &[0]).await
}

async fn qemu_img(arguments: &[&str], files: &[&Path], size: u64, good: &[i32]) -> Result<(), ImportError> {
    let mut command = Command::new("prlimit");
    command
        .arg(format!("--as={CONVERSION_MEMORY}"))
        .arg(format!("--cpu={}", CONVERSION.as_secs()))
        .arg(format!("--fsize={}", size.max(1 << 20)))
        .arg("--core=0")
        .arg("qemu-img")
        .args(arguments)
        .args(files)
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let output = tokio::time::timeout(CONVERSION, command.output())
        .await
        .map_err(|_| ImportError::Converter(format!("it took longer than {} minutes", CONVERSION.as_secs() / 60)))?
        .map_err(|error| ImportError::Converter(format!("it cannot be started ({error}); is qemu-utils installed?")))?;
    match output.status.code() {
        Some(code) if good.contains(&code) => Ok(()),
        Some(2) if arguments[0] == "check" => Err(ImportError::Qcow2("its tables are damaged, or it was cut short")),
        _ => {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = said.trim().lines().last().unwrap_or("it said nothing").chars().take(300).collect::<String>();
            Err(ImportError::Converter(format!("{}: {said}", output.status)))
        }
    }
}

async fn remove(path: &Path) {
    match tokio::fs::remove_file(path).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), error = &error as &dyn std::error::Error, "cannot remove");
        }
        _ => (),
    }
}

/// Two levels, so that no directory gets a million entries.
fn chunk_path(digest: Digest) -> ObjectPath {
    let name = digest.to_string();
    ObjectPath::from_iter(["chunks", &name[..2], &name])
}

fn manifest_path(digest: Digest) -> ObjectPath {
    ObjectPath::from_iter(["manifests", &digest.to_string()])
}

/// Lets through whom the agents' listener would serve too: a registered agent that is not
/// revoked, as of this request.
async fn agents_only(
    State(images): State<Images>,
    peer: Option<Extension<Option<Peer>>>,
    request: extract::Request,
    next: axum::middleware::Next,
) -> Response {
    let Some(Extension(Some(Peer::Certified(Role::Agent { agent, rack })))) = peer else {
        return (StatusCode::UNAUTHORIZED, "this needs the certificate of an enrolled agent\n").into_response();
    };
    match images.0.store.agent(agent).await {
        Ok(known) if known.rack == rack && known.revoked.is_none() => next.run(request).await,
        Ok(_) | Err(StoreError::NotFound(_)) => {
            (StatusCode::FORBIDDEN, "this agent is revoked: enrol its node again\n").into_response()
        }
        Err(error) => {
            tracing::error!(%agent, error = &error as &dyn std::error::Error, "the database fails");
            (StatusCode::SERVICE_UNAVAILABLE, "the database fails\n").into_response()
        }
    }
}

async fn serve_chunk(State(images): State<Images>, extract::Path(digest): extract::Path<String>) -> Response {
    serve(&images, digest.parse().ok().map(chunk_path), "application/zstd").await
}

async fn serve_manifest(State(images): State<Images>, extract::Path(digest): extract::Path<String>) -> Response {
    serve(&images, digest.parse().ok().map(manifest_path), "application/json").await
}

async fn serve(images: &Images, path: Option<ObjectPath>, kind: &'static str) -> Response {
    let Some(path) = path else {
        return (StatusCode::BAD_REQUEST, "not a digest\n").into_response();
    };
    match images.0.objects.get(&path).await {
        Ok(object) => {
            let len = object.meta.size;
            let headers = [
                (header::CONTENT_TYPE, kind.to_owned()),
                (header::CONTENT_LENGTH, len.to_string()),
                (header::CACHE_CONTROL, "immutable".to_owned()),
            ];
            (headers, Body::from_stream(object.into_stream())).into_response()
        }
        Err(object_store::Error::NotFound { .. }) => (StatusCode::NOT_FOUND, "no such object\n").into_response(),
        Err(error) => {
            tracing::error!(%path, error = &error as &dyn std::error::Error, "the object store failed");
            (StatusCode::INTERNAL_SERVER_ERROR, "the object store failed\n").into_response()
        }
    }
}

#[cfg(test)]
mod tests;
