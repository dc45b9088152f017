//! One import: from a file, or what is fetched, to chunks and a manifest in the object store.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt as _, pin_mut};
use object_store::{ObjectStoreExt as _, PutMode, path::Path as ObjectPath};
use rackhand_common::{
    id::ImageId,
    image::{self, Chunk, Manifest, SignedManifest},
};
use rackhand_fail_points::fail_point;
use sha2::Digest as _;
use tokio::{io::AsyncReadExt as _, time::Instant};

use super::{
    Images, ImportError, Request, check, chunk_path,
    convert::{self, Format},
    cut,
    fetch::{self, Patience},
    layout, manifest_path, unpack,
    unpack::Compression,
};
use crate::store::{StoreError, Stored};

/// How often a running import notes its progress, at most.
const PROGRESS: Duration = Duration::from_millis(500);

impl Images {
    pub(super) fn spawn(&self, id: ImageId, request: Request, origin: Origin) {
        let images = self.clone();
        self.0.tracker.spawn(async move {
            let _share = images.0.imports.read().await;
            // What is made on the way; all of it goes when the import ends.
            let scratch = images.config().spool.join(id.to_string());
            let result = tokio::select! {
                result = images.import(id, &request, &origin, &scratch) => result,
                () = images.0.shutdown.cancelled() => Err(ImportError::Stopped),
            };
            match &result {
                Ok(stored) => tracing::info!(image = %request.name, %id, size = stored.size, stored = stored.stored, "image imported"),
                Err(error) => images.fail(id, error).await,
            }
            if let Err(error) = tokio::fs::remove_dir_all(&scratch).await {
                tracing::warn!(path = %scratch.display(), error = &error as &dyn std::error::Error, "cannot remove");
            }
            if let Origin::File(path) = &origin
                && path.starts_with(images.config().spool)
            {
                remove(path).await;
            }
        });
    }

    async fn import(
        &self,
        id: ImageId,
        request: &Request,
        origin: &Origin,
        scratch: &Path,
    ) -> Result<Stored, ImportError> {
        tokio::fs::create_dir(scratch).await?;
        let mut path = match origin {
            Origin::File(path) => path.clone(),
            Origin::Url(url) => {
                let (to, config) = (scratch.join("fetched"), self.config());
                let mut progress = Progress::new(self, id, "fetching", 0);
                fetch::fetch(url.clone(), &config.sources, &to, config.limit, Patience::USUAL, &mut progress).await?;
                to
            }
        };
        if let Some(told) = &request.sha256 {
            let is = self.sha256(id, &path).await?;
            if is != *told {
                return Err(ImportError::Sha256 { is });
            }
        }
        if let Some(compression) = compression(&path).await? {
            let to = scratch.join("unpacked");
            self.unpack(id, compression, &path, &to).await?;
            path = to;
        }
        match Format::of(&path)? {
            Format::Raw => self.fits(tokio::fs::metadata(&path).await?.len())?,
            format @ (Format::Qcow2(size) | Format::Vmdk(size)) => {
                self.fits(size)?;
                self.0.store.import_progress(id, "converting", 0, size).await?;
                let to = scratch.join("raw");
                convert::convert(format, &path, &to, size).await?;
                path = to;
            }
        }
        let stored = self.store(id, request, &path).await?;
        let said = check::Said { settings: request.settings, firmware: stored.firmware.clone() };
        let findings = check::check(check::Place::File(path), said).await;
        let mut tx = self.0.store.begin().await?;
        tx.finish_import(id, &stored).await?;
        tx.note_findings(id, &findings).await?;
        tx.commit().await?;
        Ok(stored)
    }

    /// SHA-256 of a file as it is, hexadecimal.
    async fn sha256(&self, id: ImageId, path: &Path) -> Result<String, ImportError> {
        let mut file = tokio::fs::File::open(path).await?;
        let mut progress = Progress::new(self, id, "checking", file.metadata().await?.len());
        let (mut hash, mut block) = (sha2::Sha256::new(), vec![0; 1 << 20]);
        loop {
            let len = file.read(&mut block).await?;
            if len == 0 {
                return Ok(hex::encode(hash.finalize()));
            }
            hash.update(&block[..len]);
            progress.add(len as u64).await?;
        }
    }

    /// Takes a compressed file's contents out. Progress is told in bytes of what there is to
    /// read: nobody knows how much will come of it.
    async fn unpack(&self, id: ImageId, compression: Compression, from: &Path, to: &Path) -> Result<u64, ImportError> {
        let meter = unpack::Meter::default();
        let mut progress = Progress::new(self, id, "unpacking", tokio::fs::metadata(from).await?.len());
        let limit = self.config().limit;
        let work = unpack::unpack(compression, from, to, limit, &meter);
        pin_mut!(work);
        loop {
            tokio::select! {
                result = &mut work => return result,
                () = tokio::time::sleep(PROGRESS) => progress.add(meter.read() - progress.done).await?,
            }
        }
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

    pub(super) async fn fail(&self, id: ImageId, error: &ImportError) {
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

/// Where an image's file comes from.
#[derive(Clone, Debug)]
pub(super) enum Origin {
    /// A file on this host.
    File(PathBuf),
    /// A server.
    Url(reqwest::Url),
}

/// How a file is compressed.
async fn compression(path: &Path) -> Result<Option<Compression>, ImportError> {
    let mut head = Vec::new();
    tokio::fs::File::open(path).await?.take(16).read_to_end(&mut head).await?;
    Ok(Compression::of(&head))
}

/// An upload whose request may be dropped at any moment.
pub(super) struct Unfinished {
    pub(super) images: Images,
    pub(super) id: ImageId,
    pub(super) path: PathBuf,
    pub(super) armed: bool,
}

impl Unfinished {
    pub(super) fn disarm(mut self) {
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
pub(super) struct Progress<'a> {
    images: &'a Images,
    id: ImageId,
    doing: &'static str,
    pub(super) done: u64,
    pub(super) total: u64,
    noted: Option<Instant>,
}

impl<'a> Progress<'a> {
    pub(super) fn new(images: &'a Images, id: ImageId, doing: &'static str, total: u64) -> Self {
        Self { images, id, doing, done: 0, total, noted: None }
    }

    pub(super) async fn add(&mut self, bytes: u64) -> Result<(), StoreError> {
        self.done += bytes;
        if self.noted.is_some_and(|noted| noted.elapsed() < PROGRESS) {
            return Ok(());
        }
        self.noted = Some(Instant::now());
        self.images.0.store.import_progress(self.id, self.doing, self.done, self.total).await
    }
}

pub(super) async fn remove(path: &Path) {
    match tokio::fs::remove_file(path).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), error = &error as &dyn std::error::Error, "cannot remove");
        }
        _ => (),
    }
}
