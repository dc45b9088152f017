//! Writing an image: chunks come several at a time, are checked before they are decoded, and
//! are decoded while the one before is written.
//!
//! Invariants:
//! - No byte reaches the decoder whose BLAKE3 is not the manifest's.
//! - Every byte of the image's range is written or zeroed; a hole is never skipped.
//! - Where the processor hashes in hardware, the SHA-256 of all that was decoded is compared
//!   with the manifest's as well. Where it does not, that would take longer than the writing,
//!   and the chunks' own digests have to do.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use hyper::{Method, StatusCode};
use rackhand_common::image::{CHUNK, Chunk, Digest, MAX_COMPRESSED, Manifest};
use sha2::{Digest as _, Sha256};
use tokio::{sync::mpsc, task::spawn_blocking};
use tokio_util::sync::CancellationToken;

use crate::{
    channel::{Backoff, Failure, Lane},
    disk::{Buffer, Disk},
};

/// Why an image is not on the disk.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A chunk did not come.
    #[error("chunk {0} cannot be fetched")]
    Fetch(Digest, #[source] Failure),
    /// A chunk came, and again and again was not what it should be.
    #[error("chunk {0} came {1} times with other contents than its digest")]
    WrongDigest(Digest, u32),
    /// A chunk with the right digest is not one.
    #[error("chunk {0} does not decode to {1} bytes")]
    Undecodable(Digest, usize),
    /// All chunks were right and the whole is not.
    #[error("the image's SHA-256 is {found}, not {wanted}")]
    WrongSum {
        /// In the manifest.
        wanted: String,
        /// Of what was decoded.
        found: String,
    },
    /// The disk failed.
    #[error("writing the disk at {at} failed")]
    Disk {
        /// Byte offset.
        at: u64,
        /// How.
        #[source]
        error: io::Error,
    },
    /// The order was withdrawn.
    #[error("the order was withdrawn")]
    Withdrawn,
}

/// Where chunks come from, by the digest of their compressed bytes.
pub trait Source: Send + Sync {
    /// The bytes; already checked.
    fn fetch(&self, chunk: Chunk) -> impl Future<Output = Result<Bytes, ImageError>> + Send;
}

/// Chunks in flight at once: enough that one slow answer does not stop the disk.
const IN_FLIGHT: usize = 4;

/// Decoded chunks in memory: one being decoded, one waiting, one being written.
const BUFFERS: usize = 3;

enum Piece<T> {
    Data { at: u64, len: usize, bytes: T },
    Hole { at: u64, len: usize },
}

/// Writes the image to the start of the disk. `done` counts bytes of the raw image. Returns
/// before the disk has flushed its cache.
pub async fn write(
    disk: Arc<dyn Disk>,
    manifest: &Manifest,
    source: &impl Source,
    done: Arc<AtomicU64>,
    withdrawn: &CancellationToken,
) -> Result<(), ImageError> {
    // Bounded by the fetches in flight: a slow disk stops the fetching.
    let (fetched, to_decode) = mpsc::channel(IN_FLIGHT);
    let (decoded, to_write) = sync_channel(BUFFERS);
    let (emptied, to_fill) = sync_channel(BUFFERS);
    for _ in 0..BUFFERS {
        emptied.send(Buffer::zeroed(CHUNK as usize)).expect("there is room for all of them");
    }
    let sum = hashes_in_hardware().then(|| manifest.sha256.clone());
    let decoder = spawn_blocking(move || decode(to_decode, decoded, to_fill, sum));
    let writer = spawn_blocking(move || store(&*disk, to_write, emptied, &done));

    let pieces = manifest.chunks.iter().enumerate().map(|(index, chunk)| {
        let (at, len) = (index as u64 * CHUNK, manifest.chunk_len(index));
        async move {
            match *chunk {
                None => Ok(Piece::Hole { at, len }),
                Some(chunk) => source.fetch(chunk).await.map(|bytes| Piece::Data { at, len, bytes: (chunk, bytes) }),
            }
        }
    });
    let feed = async {
        let mut pieces = stream::iter(pieces).buffered(IN_FLIGHT);
        while let Some(piece) = pieces.next().await {
            if fetched.send(piece?).await.is_err() {
                break; // A later stage failed, and says why.
            }
        }
        Ok(())
    };
    let fed = tokio::select! {
        fed = feed => fed,
        () = withdrawn.cancelled() => Err(ImageError::Withdrawn),
    };
    drop(fetched);
    // Both end soon: their inputs are closed. The last stage's word counts most.
    let (decoded, written) = (decoder.await, writer.await);
    written.expect("the writer does not panic")?;
    let decoded = decoded.expect("the decoder does not panic");
    fed?;
    decoded
}

fn decode(
    mut pieces: mpsc::Receiver<Piece<(Chunk, Bytes)>>,
    decoded: SyncSender<Piece<Buffer>>,
    empty: Receiver<Buffer>,
    wanted: Option<String>,
) -> Result<(), ImageError> {
    let zeros = [0; 1 << 16];
    let mut decoder = zstd::bulk::Decompressor::new().expect("a decoder needs nothing but memory");
    let mut sum = Sha256::new();
    while let Some(piece) = pieces.blocking_recv() {
        let piece = match piece {
            Piece::Hole { at, len } => {
                let mut left = if wanted.is_some() { len } else { 0 };
                while left > 0 {
                    let step = left.min(zeros.len());
                    sum.update(&zeros[..step]);
                    left -= step;
                }
                Piece::Hole { at, len }
            }
            Piece::Data { at, len, bytes: (chunk, compressed) } => {
                let Ok(mut buffer) = empty.recv() else { return Ok(()) };
                buffer.set_len(len);
                if !matches!(decoder.decompress_to_buffer(&compressed, &mut buffer[..]), Ok(got) if got == len) {
                    return Err(ImageError::Undecodable(chunk.digest, len));
                }
                if wanted.is_some() {
                    sum.update(&buffer[..]);
                }
                Piece::Data { at, len, bytes: buffer }
            }
        };
        if decoded.send(piece).is_err() {
            return Ok(()); // The writer failed, and says why.
        }
    }
    match (wanted, hex::encode(sum.finalize())) {
        (Some(wanted), found) if wanted != found => Err(ImageError::WrongSum { wanted, found }),
        _ => Ok(()),
    }
}

fn store(
    disk: &dyn Disk,
    pieces: Receiver<Piece<Buffer>>,
    emptied: SyncSender<Buffer>,
    done: &AtomicU64,
) -> Result<(), ImageError> {
    for piece in pieces {
        let len = match piece {
            Piece::Hole { at, len } => {
                disk.zero(at, len as u64).map_err(|error| ImageError::Disk { at, error })?;
                len
            }
            Piece::Data { at, len, bytes } => {
                disk.write_at(at, &bytes).map_err(|error| ImageError::Disk { at, error })?;
                // The decoder may be through already.
                let _ = emptied.send(bytes);
                len
            }
        };
        done.fetch_add(len as u64, Ordering::Relaxed);
    }
    Ok(())
}

fn hashes_in_hardware() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("sha");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("sha2");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

/// Chunks from boot by plain HTTP, over connections kept open.
pub struct HttpSource {
    from: std::net::SocketAddrV4,
    idle: Mutex<Vec<Lane>>,
}

/// How long one chunk is asked for before the image is given up: boot, restarted, is back in
/// seconds, and its own fetching from a slow controller may take a while.
const PATIENCE: Duration = Duration::from_secs(180);
const ONE_ANSWER: Duration = Duration::from_secs(60);

/// Damage on the wire does not repeat; a wrong file does.
const WRONG_ANSWERS: u32 = 3;

impl HttpSource {
    /// From boot's HTTP address.
    pub fn new(from: std::net::SocketAddrV4) -> Self {
        Self { from, idle: Mutex::default() }
    }
}

impl Source for HttpSource {
    async fn fetch(&self, chunk: Chunk) -> Result<Bytes, ImageError> {
        let lane = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut lane = lane.unwrap_or_else(|| Lane::plain(self.from));
        let path = format!("/chunks/{}", chunk.digest);
        let limit = (chunk.compressed as usize).min(MAX_COMPRESSED);
        let (start, mut backoff, mut wrong) = (Instant::now(), Backoff::new(), 0);
        loop {
            match lane.ask(Method::GET, &path, None, limit, ONE_ANSWER).await {
                Ok(bytes) if Digest::of(&bytes) == chunk.digest => {
                    self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(lane);
                    return Ok(bytes);
                }
                Ok(_) => {
                    wrong += 1;
                    tracing::warn!(digest = %chunk.digest, "chunk came with other contents");
                    if wrong == WRONG_ANSWERS {
                        return Err(ImageError::WrongDigest(chunk.digest, wrong));
                    }
                }
                Err(failure) => {
                    let gone = matches!(&failure, Failure::Refused(StatusCode::NOT_FOUND | StatusCode::GONE, _));
                    if gone || start.elapsed() > PATIENCE {
                        return Err(ImageError::Fetch(chunk.digest, failure));
                    }
                    tracing::warn!(digest = %chunk.digest, "chunk: boot {failure}");
                }
            }
            backoff.wait().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use expect_test::{Expect, expect};
    use proptest::prelude::*;
    use rackhand_common::{id::ImageId, image::Settings, machine::Firmware};

    use super::*;
    use crate::disk::FileDisk;

    struct Shelf(BTreeMap<Digest, Bytes>);

    impl Source for Shelf {
        async fn fetch(&self, chunk: Chunk) -> Result<Bytes, ImageError> {
            self.0.get(&chunk.digest).cloned().ok_or(ImageError::WrongDigest(chunk.digest, 3))
        }
    }

    fn import(raw: &[u8]) -> (Manifest, Shelf) {
        let mut shelf = Shelf(BTreeMap::new());
        let mut chunk = |raw: &[u8]| {
            if raw.iter().all(|byte| *byte == 0) {
                return None;
            }
            let bytes = Bytes::from(zstd::bulk::compress(raw, 3).unwrap());
            let chunk = Chunk { digest: Digest::of(&bytes), compressed: bytes.len() as u32 };
            shelf.0.insert(chunk.digest, bytes);
            Some(chunk)
        };
        let chunks = raw.chunks(CHUNK as usize).map(&mut chunk).collect();
        let manifest = Manifest {
            image: ImageId::fresh(),
            name: "test".into(),
            size: raw.len() as u64,
            sector: 512,
            firmware: vec![Firmware::Bios],
            settings: Settings::None,
            sha256: hex::encode(Sha256::digest(raw)),
            compression: "test".into(),
            chunks,
        };
        (manifest, shelf)
    }

    /// A disk full of old data.
    fn used_disk(size: usize) -> (tempfile::NamedTempFile, Arc<dyn Disk>) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![0xaa; size]).unwrap();
        let disk = Arc::new(FileDisk::open(file.path()).unwrap());
        (file, disk)
    }

    async fn write_all(disk: Arc<dyn Disk>, manifest: &Manifest, shelf: &Shelf) -> Result<u64, ImageError> {
        let done = Arc::new(AtomicU64::new(0));
        write(disk, manifest, shelf, done.clone(), &CancellationToken::new()).await?;
        Ok(done.load(Ordering::Relaxed))
    }

    /// `.` is a chunk of zeros, `#` one with data; the last is short by `short` sectors.
    fn raw(pattern: &str, short: usize) -> Vec<u8> {
        let mut raw = Vec::new();
        for (number, kind) in pattern.chars().enumerate() {
            let mut chunk = vec![0; CHUNK as usize];
            if kind == '#' {
                chunk.iter_mut().step_by(97).for_each(|byte| *byte = number as u8 + 1);
            }
            raw.extend(chunk);
        }
        raw.truncate(raw.len() - short * 512);
        raw
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(8))]
        #[test]
        fn a_used_disk_holds_the_image_and_nothing_of_the_old(pattern in "[.#]{1,6}", short in 0usize..8192) {
            let raw = raw(&pattern, short);
            let (file, disk) = used_disk(raw.len() + (1 << 20));
            let (manifest, shelf) = import(&raw);
            let runtime = tokio::runtime::Runtime::new().unwrap();
            prop_assert_eq!(runtime.block_on(write_all(disk, &manifest, &shelf)).unwrap(), raw.len() as u64);
            let found = std::fs::read(file.path()).unwrap();
            prop_assert!(found[..raw.len()] == raw);
            prop_assert!(found[raw.len()..].iter().all(|byte| *byte == 0xaa));
        }
    }

    fn check(size: usize, harm: impl FnOnce(&mut Manifest, &mut Shelf), expected: Expect) {
        let (_file, disk) = used_disk(size);
        let (mut manifest, mut shelf) = import(&raw("#.#", 0));
        harm(&mut manifest, &mut shelf);
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let error = runtime.block_on(write_all(disk, &manifest, &shelf)).unwrap_err().to_string();
        let masked = error.split(' ').map(|word| if word.len() == 64 { "DIGEST" } else { word });
        expected.assert_eq(&masked.collect::<Vec<_>>().join(" "));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let size = 3 * CHUNK as usize;
        check(
            size,
            |_, shelf| drop(shelf.0.pop_last()),
            expect!["chunk DIGEST came 3 times with other contents than its digest"],
        );
        check(
            size,
            |manifest, shelf| {
                let short = Bytes::from(zstd::bulk::compress(&[1; 512], 3).unwrap());
                shelf.0.insert(manifest.chunks[2].unwrap().digest, short);
            },
            expect!["chunk DIGEST does not decode to 4194304 bytes"],
        );
        check(size - 512, |_, _| (), expect!["writing the disk at 8388608 failed"]);
    }

    #[tokio::test]
    async fn a_withdrawn_order_stops() {
        let (_file, disk) = used_disk(3 * CHUNK as usize);
        let (manifest, shelf) = import(&raw("###", 0));
        let withdrawn = CancellationToken::new();
        withdrawn.cancel();
        let outcome = write(disk, &manifest, &shelf, Arc::default(), &withdrawn).await;
        assert!(outcome.is_ok() || matches!(outcome, Err(ImageError::Withdrawn)));
    }
}
