//! Writing an image: chunks come several at a time, are checked before they are decoded, and
//! are decoded while the one before is written.
//!
//! Invariants:
//! - No byte reaches the decoder whose BLAKE3 is not the manifest's, and none leaves it whose
//!   checksum is not its frame's.
//! - The image's first chunk, with its boot code and partition table, is zeroed before anything
//!   else is written, and left to the caller, as [`Head`]: a machine that restarts in between
//!   finds nothing to boot and falls through to the network.
//! - Every other byte of the image's range is written or zeroed; a hole is never skipped.
//!
//! Deliberately not here: the SHA-256 of the whole. All of the image is verified piece by
//! piece, and that sum is slower than the disk on processors without instructions for it.

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
use rackhand_fail_points::fail_point;
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

/// Decoded chunks in memory: one each being decoded, waiting and being written.
const BUFFERS: usize = 3;

/// The image's first chunk, decoded and checked. All else of the image is on the disk.
pub struct Head(pub Buffer);

impl std::fmt::Debug for Head {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Head of {} bytes", self.0.len())
    }
}

struct Piece<T> {
    at: u64,
    len: usize,
    /// None is a hole.
    bytes: Option<T>,
}

/// Writes all of the image but its first chunk to the disk, and clears that one's place.
/// `done` counts bytes of the raw image. Returns before the disk has flushed its cache.
pub async fn write(
    disk: Arc<dyn Disk>,
    manifest: &Manifest,
    source: &impl Source,
    done: Arc<AtomicU64>,
    withdrawn: &CancellationToken,
) -> Result<Head, ImageError> {
    // Bounded by the fetches in flight: a slow disk stops the fetching.
    let (fetched, to_decode) = mpsc::channel(IN_FLIGHT);
    // Bounded by the memory there is: neither holds up the other by more than that.
    let (decoded, to_write) = sync_channel(BUFFERS);
    let (home, to_fill) = sync_channel(BUFFERS);
    for _ in 0..BUFFERS {
        home.send(Buffer::zeroed(CHUNK as usize)).expect("there is room for all of them");
    }
    let head = manifest.chunk_len(0);
    let decoder = spawn_blocking(move || decode(to_decode, &decoded, &to_fill));
    let writer = spawn_blocking(move || store(&*disk, head, to_write, &home, &done));

    let pieces = manifest.chunks.iter().enumerate().map(|(index, chunk)| {
        let (at, len) = (index as u64 * CHUNK, manifest.chunk_len(index));
        async move {
            let bytes = match *chunk {
                None => None,
                Some(chunk) => Some((chunk, source.fetch(chunk).await?)),
            };
            Ok(Piece { at, len, bytes })
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
    let head = written.expect("the writer does not panic")?;
    fed?;
    decoded.expect("the decoder does not panic")?;
    Ok(Head(head))
}

fn decode(
    mut pieces: mpsc::Receiver<Piece<(Chunk, Bytes)>>,
    decoded: &SyncSender<Piece<Buffer>>,
    empty: &Receiver<Buffer>,
) -> Result<(), ImageError> {
    let mut decoder = zstd::bulk::Decompressor::new().expect("a decoder needs nothing but memory");
    while let Some(Piece { at, len, bytes }) = pieces.blocking_recv() {
        let bytes = match bytes {
            None => None,
            Some((chunk, compressed)) => {
                let Ok(mut buffer) = empty.recv() else { break }; // The writer failed, and says why.
                buffer.set_len(len);
                if !matches!(decoder.decompress_to_buffer(&compressed, &mut buffer[..]), Ok(got) if got == len) {
                    return Err(ImageError::Undecodable(chunk.digest, len));
                }
                Some(buffer)
            }
        };
        if decoded.send(Piece { at, len, bytes }).is_err() {
            break; // The writer failed, and says why.
        }
    }
    Ok(())
}

/// Writes what it gets, and returns the first chunk, whose place it clears first of all.
fn store(
    disk: &dyn Disk,
    head: usize,
    pieces: Receiver<Piece<Buffer>>,
    home: &SyncSender<Buffer>,
    done: &AtomicU64,
) -> Result<Buffer, ImageError> {
    let failed = |at| move |error| ImageError::Disk { at, error };
    let clear = || fail_point!("image.clear", disk.zero(0, head as u64).and_then(|()| disk.flush()));
    clear().map_err(failed(0))?;
    let mut first = Buffer::zeroed(head);
    for Piece { at, len, bytes } in pieces {
        match &bytes {
            Some(bytes) if at == 0 => first.copy_from_slice(bytes),
            None if at == 0 => (),
            Some(bytes) => {
                let write = || fail_point!("image.write", disk.write_at(at, bytes));
                write().map_err(failed(at))?;
            }
            None => disk.zero(at, len as u64).map_err(failed(at))?,
        }
        if let Some(buffer) = bytes {
            // The decoder may be through already. This never waits: there is room for all of them.
            let _ = home.send(buffer);
        }
        done.fetch_add(len as u64, Ordering::Relaxed);
    }
    Ok(first)
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

    fn compress(raw: &[u8]) -> Vec<u8> {
        let mut compressor = zstd::bulk::Compressor::new(3).unwrap();
        compressor.set_parameter(zstd::zstd_safe::CParameter::ChecksumFlag(true)).unwrap();
        compressor.compress(raw).unwrap()
    }

    fn import(raw: &[u8]) -> (Manifest, Shelf) {
        let mut shelf = Shelf(BTreeMap::new());
        let mut chunk = |raw: &[u8]| {
            if raw.iter().all(|byte| *byte == 0) {
                return None;
            }
            let bytes = Bytes::from(compress(raw));
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
            sha256: String::new(),
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
        let head = write(disk.clone(), manifest, shelf, done.clone(), &CancellationToken::new()).await?;
        let mut found = Buffer::zeroed(head.0.len());
        disk.read_at(0, &mut found).unwrap();
        assert!(found.iter().all(|byte| *byte == 0), "the first chunk is left to the caller");
        disk.write_at(0, &head.0).unwrap();
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
        let masked = error.split(' ').map(|word| match word.trim_end_matches(',') {
            digest if digest.len() == 64 => word.replace(digest, "DIGEST"),
            _ => word.to_owned(),
        });
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
                let short = Bytes::from(compress(&[1; 512]));
                shelf.0.insert(manifest.chunks[2].unwrap().digest, short);
            },
            expect!["chunk DIGEST does not decode to 4194304 bytes"],
        );
        check(
            size,
            |manifest, shelf| {
                let contents = shelf.0.get_mut(&manifest.chunks[2].unwrap().digest).unwrap();
                let mut other = contents.to_vec();
                *other.last_mut().unwrap() ^= 1;
                *contents = other.into();
            },
            expect!["chunk DIGEST does not decode to 4194304 bytes"],
        );
        check(size - 512, |_, _| (), expect!["writing the disk at 8388608 failed"]);
    }

    /// Remembers what was done to it, in order, and fails at a sector if told so.
    struct Diary {
        disk: FileDisk,
        broken: Option<u64>,
        lines: Mutex<Vec<String>>,
    }

    impl Diary {
        fn note(&self, what: &str, at: u64) -> io::Result<()> {
            self.lines.lock().unwrap().push(format!("{what} {}", at / CHUNK));
            if self.broken == Some(at) { Err(io::Error::other("worn out")) } else { Ok(()) }
        }
    }

    impl Disk for Diary {
        fn size(&self) -> u64 {
            self.disk.size()
        }
        fn sector(&self) -> u32 {
            self.disk.sector()
        }
        fn read_at(&self, at: u64, bytes: &mut Buffer) -> io::Result<()> {
            self.disk.read_at(at, bytes)
        }
        fn write_at(&self, at: u64, bytes: &Buffer) -> io::Result<()> {
            self.note("write", at)?;
            self.disk.write_at(at, bytes)
        }
        fn zero(&self, at: u64, len: u64) -> io::Result<()> {
            self.note("zero", at)?;
            self.disk.zero(at, len)
        }
        fn discard(&self, _: u64, _: u64) {}
        fn flush(&self) -> io::Result<()> {
            self.lines.lock().unwrap().push("flush".to_owned());
            self.disk.flush()
        }
    }

    fn check_order(broken: Option<u64>, expected: Expect) {
        let (file, _) = used_disk(4 * CHUNK as usize);
        let disk = FileDisk::open(file.path()).unwrap();
        let diary = Arc::new(Diary { disk, broken, lines: Mutex::default() });
        let (manifest, shelf) = import(&raw("##.#", 0));
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let outcome =
            runtime.block_on(write(diary.clone(), &manifest, &shelf, Arc::default(), &CancellationToken::new()));
        assert_eq!(outcome.is_ok(), broken.is_none());
        expected.assert_eq(&diary.lines.lock().unwrap().join(", "));
        let found = std::fs::read(file.path()).unwrap();
        assert!(found[..CHUNK as usize].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn nothing_is_written_before_the_old_boot_code_is_gone() {
        check_order(None, expect!["zero 0, flush, write 1, zero 2, write 3"]);
    }

    #[test]
    fn a_disk_whose_writing_broke_off_has_nothing_to_boot() {
        check_order(Some(3 * CHUNK), expect!["zero 0, flush, write 1, zero 2, write 3"]);
        check_order(Some(CHUNK), expect!["zero 0, flush, write 1"]);
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
