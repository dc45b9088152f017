//! The bytes of an image, read as those of a disk: from a raw file, or put together from its
//! chunks. What may be read, and for how long, is bounded here for all that read.

use std::{
    cell::RefCell,
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::FileExt as _,
    path::PathBuf,
    rc::Rc,
    time::{Duration, Instant},
};

use rackhand_common::image::{CHUNK, Digest, MAX_COMPRESSED, Manifest};

/// How many bytes a look into an image may read. One of a usual image reads some tens of MiB.
const READ: u64 = 1 << 30;

/// How often it may read.
const READS: u32 = 1 << 20;

/// How long it may go on reading: less than a request may take.
const TIME: Duration = Duration::from_secs(20);

/// Chunks that are kept as they were last read, 4 MiB each.
const KEPT: usize = 8;

/// Where an image's bytes are.
pub(super) enum Bytes {
    /// In a raw file.
    File(File, u64),
    /// In chunks, below this directory.
    Chunks { manifest: Box<Manifest>, directory: PathBuf, kept: Vec<(usize, Vec<u8>)> },
}

impl Bytes {
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::File(_, len) => *len,
            Self::Chunks { manifest, .. } => manifest.size,
        }
    }

    fn read_at(&mut self, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        match self {
            Self::File(file, _) => file.read_exact_at(buffer, at),
            Self::Chunks { manifest, directory, kept } => {
                let mut done = 0;
                while done < buffer.len() {
                    let at = at + done as u64;
                    let (index, within) = ((at / CHUNK) as usize, (at % CHUNK) as usize);
                    let chunk = manifest.chunks.get(index).ok_or(io::ErrorKind::UnexpectedEof)?;
                    let len = (buffer.len() - done).min(manifest.chunk_len(index) - within);
                    let target = &mut buffer[done..done + len];
                    match chunk {
                        None => target.fill(0),
                        Some(chunk) => {
                            if !kept.iter().any(|(known, _)| *known == index) {
                                kept.truncate(KEPT - 1);
                                kept.insert(0, (index, read(directory, chunk.digest, manifest.chunk_len(index))?));
                            }
                            let (_, raw) = kept.iter().find(|(known, _)| *known == index).expect("it was just put in");
                            target.copy_from_slice(&raw[within..within + len]);
                        }
                    }
                    done += len;
                }
                Ok(())
            }
        }
    }
}

/// One chunk's raw bytes. What is not what its name says reaches no decoder.
fn read(directory: &std::path::Path, digest: Digest, len: usize) -> io::Result<Vec<u8>> {
    let name = digest.to_string();
    let mut compressed = Vec::new();
    let file = fs::File::open(directory.join(&name[..2]).join(&name))?;
    file.take(MAX_COMPRESSED as u64 + 1).read_to_end(&mut compressed)?;
    if Digest::of(&compressed) != digest {
        return Err(io::Error::other("a chunk is damaged in the store; import the image again"));
    }
    let raw = zstd::bulk::decompress(&compressed, len)?;
    if raw.len() == len { Ok(raw) } else { Err(io::Error::other("a chunk has another length than its manifest says")) }
}

struct Bounded {
    bytes: Bytes,
    read: u64,
    reads: u32,
    end: Instant,
}

/// A part of the disk: a partition, or all of it. Clones read the same disk, and what they read
/// is counted together.
#[derive(Clone)]
pub(super) struct Part {
    disk: Rc<RefCell<Bounded>>,
    pub(super) start: u64,
    pub(super) len: u64,
    position: u64,
}

impl Part {
    /// All of the disk.
    pub(super) fn whole(bytes: Bytes) -> Self {
        let len = bytes.len();
        let disk = Bounded { bytes, read: 0, reads: 0, end: Instant::now() + TIME };
        Self { disk: Rc::new(RefCell::new(disk)), start: 0, len, position: 0 }
    }

    /// What lies there of this; less when this ends before.
    pub(super) fn part(&self, start: u64, len: u64) -> Self {
        let start = start.min(self.len);
        Self { disk: self.disk.clone(), start: self.start + start, len: len.min(self.len - start), position: 0 }
    }

    pub(super) fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        let end = at.checked_add(buffer.len() as u64).filter(|end| *end <= self.len);
        if end.is_none() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let disk = &mut *self.disk.borrow_mut();
        disk.read += buffer.len() as u64;
        disk.reads += 1;
        if disk.read > READ || disk.reads > READS || Instant::now() > disk.end {
            return Err(io::Error::other("it takes more reading than any sound image"));
        }
        disk.bytes.read_at(self.start + at, buffer)
    }

    /// The first bytes, at most this many.
    pub(super) fn head(&self, most: usize) -> io::Result<Vec<u8>> {
        let mut head = vec![0; most.min(self.len as usize)];
        self.read_at(0, &mut head)?;
        Ok(head)
    }
}

impl Read for Part {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = (buffer.len() as u64).min(self.len.saturating_sub(self.position)) as usize;
        self.read_at(self.position, &mut buffer[..len])?;
        self.position += len as u64;
        Ok(len)
    }
}

impl Seek for Part {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.len.checked_add_signed(by),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

/// The FAT reader can write, too. Nothing here does.
impl Write for Part {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl ext4_view::Ext4Read for Part {
    fn read(
        &mut self,
        start: u64,
        buffer: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync + 'static>> {
        Ok(self.read_at(start, buffer)?)
    }
}
