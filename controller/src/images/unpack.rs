//! Takes an image out of a gzip, xz, zstd or bzip2 file: by decoders of ours, on a confined
//! thread, and never more of it than the controller takes.
//!
//! Blocks of zeros become holes, so that a small file makes a small one.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufReader, Read, Seek as _, SeekFrom, Write as _},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use super::{
    ImportError,
    sandbox::{Reach, confined},
};

/// Memory an xz file may ask its decoder for, in KiB: more than `xz -9` wants, which is 65 MiB.
const XZ_MEMORY: u32 = 256 << 10;

/// The largest window of a zstd file, as a power of two: 128 MiB, as the tool `zstd` takes unasked.
const ZSTD_WINDOW: u32 = 27;

/// How much is decoded at a time; so long are the zeros that become a hole.
const BLOCK: usize = 256 << 10;

/// How a file is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    Gzip,
    Xz,
    Zstd,
    Bzip2,
}

impl Compression {
    /// What the first bytes of a file tell.
    pub(super) fn of(head: &[u8]) -> Option<Self> {
        // A disk may begin with three letters; the block behind them it will not have.
        let bzip2 = head.starts_with(b"BZh") && head.get(4..10) == Some(&[0x31, 0x41, 0x59, 0x26, 0x53, 0x59]);
        match head {
            [0x1f, 0x8b, 8, ..] => Some(Self::Gzip),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Self::Xz),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Self::Zstd),
            _ if bzip2 => Some(Self::Bzip2),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Bzip2 => "bzip2",
        }
    }

    fn decoder(self, file: Source) -> io::Result<Box<dyn Read>> {
        let file = BufReader::with_capacity(BLOCK, file);
        Ok(match self {
            Self::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
            Self::Xz => Box::new(lzma_rust2::XzReader::new_mem_limit(file, true, XZ_MEMORY)),
            Self::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(file)),
            Self::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(file)?;
                decoder.window_log_max(ZSTD_WINDOW)?;
                Box::new(decoder)
            }
        })
    }
}

/// How much of the compressed file was read, and whether anybody still wants the rest.
#[derive(Clone, Debug, Default)]
pub(super) struct Meter {
    read: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
}

impl Meter {
    /// Bytes of the compressed file that were read.
    pub(super) fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }
}

/// Has the thread stop when the import is given up.
struct Over(Arc<AtomicBool>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

struct Source {
    file: File,
    meter: Meter,
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.meter.over.load(Ordering::Relaxed) {
            return Err(io::Error::other("given up"));
        }
        let len = self.file.read(buffer)?;
        self.meter.read.fetch_add(len as u64, Ordering::Relaxed);
        Ok(len)
    }
}

/// Writes what is in `from` to the new file `to`, `limit` bytes at most; returns how many.
pub(super) async fn unpack(
    compression: Compression,
    from: &Path,
    to: &Path,
    limit: u64,
    meter: &Meter,
) -> Result<u64, ImportError> {
    File::create_new(to)?;
    let reach = Reach { read: vec![from.to_owned()], write: vec![to.to_owned()], programs: false };
    let (from, to, meter) = (from.to_owned(), to.to_owned(), meter.clone());
    let _over = Over(meter.over.clone());
    confined(reach, move || {
        let source = Source { file: File::open(&from)?, meter };
        let target = OpenOptions::new().write(true).open(&to)?;
        copy(compression, source, target, limit)
    })
    .await?
}

fn copy(compression: Compression, source: Source, mut target: File, limit: u64) -> Result<u64, ImportError> {
    let broken = |error: io::Error| ImportError::Compressed(compression.name(), error);
    let meter = source.meter.clone();
    let mut decoder = compression.decoder(source).map_err(broken)?;
    let mut block = vec![0; BLOCK];
    let mut written = 0u64;
    loop {
        // A file that makes much of little is asked here, too, whether it is still wanted.
        if meter.over.load(Ordering::Relaxed) {
            return Err(ImportError::Stopped);
        }
        let mut len = 0;
        while len < BLOCK {
            match decoder.read(&mut block[len..]) {
                Ok(0) => break,
                Ok(more) => len += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(broken(error)),
            }
        }
        if len == 0 {
            break;
        }
        written += len as u64;
        if written > limit {
            return Err(ImportError::Bomb { limit });
        }
        if block[..len].iter().all(|&byte| byte == 0) {
            target.seek(SeekFrom::Current(len as i64))?;
        } else {
            target.write_all(&block[..len])?;
        }
    }
    // Zeros at the end are behind the last byte that was written.
    target.set_len(written)?;
    Ok(written)
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::MetadataExt as _, process::Command};

    use super::*;

    const TOOLS: [(&str, Compression); 4] = [
        ("gzip", Compression::Gzip),
        ("xz", Compression::Xz),
        ("zstd", Compression::Zstd),
        ("bzip2", Compression::Bzip2),
    ];

    /// What the tool of this name makes of `bytes`.
    fn packed(tool: &str, bytes: &[u8]) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, bytes).unwrap();
        let done = Command::new(tool).args(["-q", "-c"]).arg(&file).output();
        let done = done.unwrap_or_else(|error| panic!("these tests need {tool}: {error}"));
        assert!(done.status.success(), "{done:?}");
        done.stdout
    }

    async fn unpacked(packed: &[u8], limit: u64) -> Result<(Vec<u8>, u64), ImportError> {
        let dir = tempfile::tempdir().unwrap();
        let [from, to] = ["from", "to"].map(|name| dir.path().join(name));
        std::fs::write(&from, packed).unwrap();
        let compression = Compression::of(packed).unwrap();
        let meter = Meter::default();
        let len = unpack(compression, &from, &to, limit, &meter).await?;
        assert_eq!(meter.read(), packed.len() as u64);
        assert_eq!(std::fs::metadata(&to).unwrap().len(), len);
        Ok((std::fs::read(&to).unwrap(), std::fs::metadata(&to).unwrap().blocks() * 512))
    }

    #[tokio::test]
    async fn what_the_tools_pack_comes_out_again_with_its_holes() {
        let mut bytes: Vec<u8> = (0..100_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        bytes.resize(8 << 20, 0);
        for (tool, compression) in TOOLS {
            let mut file = packed(tool, &bytes);
            assert_eq!(Compression::of(&file), Some(compression));
            let (out, on_disk) = unpacked(&file, 8 << 20).await.unwrap();
            assert!(out == bytes, "{tool}");
            assert!(on_disk < 2 << 20, "{tool}: {on_disk}");
            // Two files one behind the other are one file to these tools, and so they are here.
            file.extend(packed(tool, &bytes));
            assert_eq!(unpacked(&file, 16 << 20).await.unwrap().0.len(), 16 << 20, "{tool}");
        }
    }

    #[tokio::test]
    async fn a_bomb_ends_at_the_limit() {
        for (tool, _) in TOOLS {
            let bomb = packed(tool, &vec![0; 64 << 20]);
            assert!(bomb.len() < 128 << 10, "{tool}: {}", bomb.len());
            let refused = unpacked(&bomb, 10 << 20).await;
            assert!(matches!(refused, Err(ImportError::Bomb { limit: 10_485_760 })), "{tool}: {refused:?}");
        }
    }

    #[tokio::test]
    async fn a_file_that_was_cut_short_or_damaged_is_refused() {
        let bytes: Vec<u8> = (0..200_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        for (tool, _) in TOOLS {
            let whole = packed(tool, &bytes);
            for len in [whole.len() / 2, whole.len() - 3] {
                let refused = unpacked(&whole[..len], 8 << 20).await;
                assert!(matches!(refused, Err(ImportError::Compressed(..))), "{tool} {len}: {refused:?}");
            }
            let mut flipped = whole.clone();
            flipped[whole.len() / 2] ^= 0x10;
            if tool == "zstd" {
                // Its checksum is optional, and the tool writes one.
                assert_eq!(whole[4] & 4, 4);
            }
            let refused = unpacked(&flipped, 8 << 20).await;
            assert!(matches!(refused, Err(ImportError::Compressed(..))), "{tool}: {refused:?}");
        }
    }

    #[tokio::test]
    async fn a_file_that_asks_for_much_memory_is_refused() {
        // A window of 2 GiB, in the header of a frame.
        let wide = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 1, 0, 0];
        assert!(matches!(unpacked(&wide, 8 << 20).await, Err(ImportError::Compressed("zstd", _))));
    }

    #[test]
    fn a_disk_is_not_taken_for_a_compressed_file() {
        for head in [&b"BZh9 is a boot sector"[..], b"\xeb\x63\x90", b"", b"\x1f\x8b", &[0; 512]] {
            assert_eq!(Compression::of(head), None);
        }
    }
}
