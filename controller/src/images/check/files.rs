//! The files of an ext2, ext3 or ext4 file system, read without mounting it and within bounds.

use ext4_view::Ext4;

use super::disk::Part;

/// The largest file that is read.
const FILE: u64 = 16 << 20;

/// The most entries of a directory that are looked at.
const ENTRIES: usize = 10_000;

/// The most groups of blocks: those of 8 TiB. More are no file system but a way to use memory up.
const GROUPS: u64 = 1 << 16;

/// What a partition holds.
pub(super) enum Content {
    Ext(Box<Files>),
    /// A file system that nobody here can read, or something that is none; by name.
    Other(&'static str),
    Broken(String),
    Unknown,
}

/// A file system that can be looked into.
pub(super) struct Files(Ext4);

/// Finds out what a partition holds.
pub(super) fn look(part: &Part) -> Content {
    let head = match part.head(68 << 10) {
        Ok(head) => head,
        Err(error) => return Content::Broken(error.to_string()),
    };
    let has = |at: usize, magic: &[u8]| head.get(at..at + magic.len()) == Some(magic);
    if has(1024 + 56, &[0x53, 0xef]) {
        if let Err(why) = sane(&head[1024..], part.len) {
            return Content::Broken(why.into());
        }
        return match Ext4::load(Box::new(part.clone())) {
            Ok(ext4) => Content::Ext(Box::new(Files(ext4))),
            Err(error) => Content::Broken(error.to_string()),
        };
    }
    for (at, magic, name) in [
        (0, &b"XFSB"[..], "xfs"),
        (0x10040, b"_BHRfS_M", "btrfs"),
        (0, b"hsqs", "squashfs"),
        (512, b"LABELONE", "LVM"),
        (0, b"LUKS\xba\xbe", "LUKS"),
    ] {
        if has(at, magic) {
            return Content::Other(name);
        }
    }
    Content::Unknown
}

/// Whether the superblock describes a file system that fits its partition: its reader allocates by
/// what stands there.
fn sane(superblock: &[u8], len: u64) -> Result<(), &'static str> {
    let u32_at = |at: usize| superblock.get(at..at + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let wide = u32_at(0x60) & 0x80 != 0;
    let blocks = u64::from(u32_at(4)) | if wide { u64::from(u32_at(0x150)) << 32 } else { 0 };
    let (shift, per_group) = (u32_at(0x18), u64::from(u32_at(0x20)));
    if shift > 6 || per_group == 0 || blocks == 0 {
        return Err("its superblock makes no sense");
    }
    if blocks.checked_mul(1024 << shift).is_none_or(|size| size > len) {
        return Err("it is larger than its partition");
    }
    if blocks.div_ceil(per_group) > GROUPS {
        return Err("it has more groups of blocks than any file system of its size");
    }
    Ok(())
}

impl Files {
    pub(super) fn exists(&self, path: &str) -> bool {
        self.0.exists(path).unwrap_or(false)
    }

    /// A file's contents; nothing when there is none, it is too large or cannot be read.
    pub(super) fn read(&self, path: &str) -> Option<Vec<u8>> {
        let mut file = self.0.open(path).ok()?;
        let len = file.metadata().len();
        if len > FILE {
            return None;
        }
        let mut bytes = vec![0; len as usize];
        let mut done = 0;
        while done < bytes.len() {
            match file.read_bytes(&mut bytes[done..]).ok()? {
                0 => return None,
                more => done += more,
            }
        }
        Some(bytes)
    }

    /// A file's contents as text.
    pub(super) fn text(&self, path: &str) -> Option<String> {
        self.read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The names in a directory, sorted.
    pub(super) fn names(&self, path: &str) -> Vec<String> {
        let Ok(entries) = self.0.read_dir(path) else { return Vec::new() };
        let mut names: Vec<_> = entries
            .take(ENTRIES)
            // After one that cannot be read, nothing is known of those that follow.
            .map_while(Result::ok)
            .filter_map(|entry| Some(entry.file_name().as_str().ok()?.to_owned()))
            .filter(|name| name != "." && name != "..")
            .collect();
        names.sort();
        names
    }
}
