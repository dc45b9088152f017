//! The config drive: a small FAT16 volume with files, from which the installed system takes its
//! settings: labelled `CIDATA` for cloud-init's NoCloud source, `config-2` for OpenStack's.
//!
//! Follows Microsoft's FAT specification (fatgen103): boot sector, two FATs, directories
//! with long names, clusters of one sector. Files lie one behind the other. The installer
//! mounts nothing, and writes this in one piece.

use std::collections::BTreeMap;

use rackhand_common::{channel::Drive, image::Settings};

/// Bytes of the volume: enough clusters (over 4085) to be FAT16, and room for the settings.
pub const LEN: u64 = 4 << 20;

/// The settings do not fit into the volume.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the settings do not fit into a config drive of 4 MiB")]
pub struct TooMuch;

/// What a config drive is found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    /// Name of its partition.
    pub partition: &'static str,
    volume: &'static [u8; 11],
}

impl Label {
    /// That of the drive for a system that is told its settings so; none when it is told nothing.
    pub fn of(settings: Settings) -> Option<Self> {
        match settings {
            Settings::Cidata => Some(Self { partition: "cidata", volume: b"CIDATA     " }),
            // Lower case against the custom of FAT: not every reader knows it in capitals.
            Settings::Config2 | Settings::Ignition => Some(Self { partition: "config-2", volume: b"config-2   " }),
            Settings::None => None,
        }
    }
}

/// The whole volume with these files in it, each in the directories that its path names. `serial`
/// tells it from its predecessor on the same disk. Names are at most 255 characters.
pub fn render(label: Label, files: &Drive, sector: u32, serial: u32) -> Result<Vec<u8>, TooMuch> {
    // A volume of 4096-byte sectors has too few clusters for FAT16; FAT12 then.
    let sector = sector as usize;
    let geometry = Geometry::of(sector);
    let mut tree = Directory::default();
    for (path, text) in files {
        tree.add(path, text);
    }
    let mut volume = Volume { bytes: vec![0; LEN as usize], fat: Fat::new(&geometry), geometry };
    volume.geometry.boot_sector(label, serial, &mut volume.bytes[..sector]);
    let mut root = vec![volume_label(label)];
    root.extend(volume.fill(&tree, 0)?);
    if root.len() > ROOT_ENTRIES {
        return Err(TooMuch);
    }
    let at = volume.geometry.root;
    volume.bytes[at..at + root.len() * 32].copy_from_slice(root.as_flattened());
    let table = volume.fat.render();
    for copy in 0..2 {
        let at = sector * (1 + copy * volume.geometry.fat_sectors);
        volume.bytes[at..at + table.len()].copy_from_slice(&table);
    }
    Ok(volume.bytes)
}

/// Files and directories, as their paths say.
#[derive(Default)]
struct Directory<'a> {
    directories: BTreeMap<&'a str, Directory<'a>>,
    files: BTreeMap<&'a str, &'a str>,
}

impl<'a> Directory<'a> {
    fn add(&mut self, path: &'a str, text: &'a str) {
        match path.split_once('/') {
            Some((name, rest)) => self.directories.entry(name).or_default().add(rest, text),
            None => {
                self.files.insert(path, text);
            }
        }
    }

    /// How many entries it has, but for those of itself and of its parent.
    fn len(&self) -> usize {
        self.directories.keys().chain(self.files.keys()).map(|name| 1 + pieces(name)).sum()
    }
}

struct Volume {
    bytes: Vec<u8>,
    fat: Fat,
    geometry: Geometry,
}

impl Volume {
    /// Writes what is in a directory that begins at the cluster `own`, 0 for the root. Its entries.
    fn fill(&mut self, directory: &Directory<'_>, own: u16) -> Result<Vec<[u8; 32]>, TooMuch> {
        let mut all = Vec::new();
        for (name, inner) in &directory.directories {
            let first = self.fat.allocate(((2 + inner.len()) * 32).div_ceil(self.geometry.sector))?;
            let mut listed = vec![entry(b".          ", DIRECTORY, first, 0), entry(b"..         ", DIRECTORY, own, 0)];
            listed.extend(self.fill(inner, first)?);
            self.write(first, listed.as_flattened())?;
            all.extend(entries(name, all.len(), DIRECTORY, first, 0));
        }
        for (name, text) in &directory.files {
            let first = self.fat.allocate(text.len().div_ceil(self.geometry.sector))?;
            if first != 0 {
                self.write(first, text.as_bytes())?;
            }
            all.extend(entries(name, all.len(), FILE, first, text.len()));
        }
        Ok(all)
    }

    fn write(&mut self, cluster: u16, bytes: &[u8]) -> Result<(), TooMuch> {
        let at = self.geometry.cluster(cluster);
        self.bytes.get_mut(at..at + bytes.len()).ok_or(TooMuch)?.copy_from_slice(bytes);
        Ok(())
    }
}

const ROOT_ENTRIES: usize = 512;

/// Attributes of entries.
const FILE: u8 = 0x20;
const DIRECTORY: u8 = 0x10;
const VOLUME_LABEL: u8 = 0x08;

struct Geometry {
    sector: usize,
    sectors: usize,
    fat_sectors: usize,
    /// Byte offset of the root directory.
    root: usize,
    /// Byte offset of the first cluster.
    data: usize,
    clusters: usize,
    wide: bool,
}

impl Geometry {
    fn of(sector: usize) -> Self {
        let sectors = LEN as usize / sector;
        let wide = sectors > 4085 + 200;
        let fat_bytes = if wide { sectors * 2 } else { sectors * 3 / 2 + 3 };
        let fat_sectors = fat_bytes.div_ceil(sector);
        let root = sector * (1 + 2 * fat_sectors);
        let data = root + (ROOT_ENTRIES * 32).next_multiple_of(sector);
        Self { sector, sectors, fat_sectors, root, data, clusters: (LEN as usize - data) / sector, wide }
    }

    fn cluster(&self, number: u16) -> usize {
        self.data + (usize::from(number) - 2) * self.sector
    }

    fn boot_sector(&self, label: Label, serial: u32, boot: &mut [u8]) {
        let short = |number: usize| u16::try_from(number).expect("a volume of 4 MiB has small numbers").to_le_bytes();
        boot[..3].copy_from_slice(&[0xeb, 0x3c, 0x90]);
        boot[3..11].copy_from_slice(b"RACKHAND");
        boot[11..13].copy_from_slice(&short(self.sector));
        boot[13] = 1; // sectors of a cluster
        boot[14..16].copy_from_slice(&short(1)); // reserved
        boot[16] = 2; // FATs
        boot[17..19].copy_from_slice(&short(ROOT_ENTRIES));
        boot[19..21].copy_from_slice(&short(self.sectors));
        boot[21] = MEDIA;
        boot[22..24].copy_from_slice(&short(self.fat_sectors));
        boot[24..26].copy_from_slice(&short(32)); // sectors of a track
        boot[26..28].copy_from_slice(&short(64)); // heads
        boot[36] = 0x80; // drive
        boot[38] = 0x29; // the next three are there
        boot[39..43].copy_from_slice(&serial.to_le_bytes());
        boot[43..54].copy_from_slice(label.volume);
        boot[54..62].copy_from_slice(if self.wide { b"FAT16   " } else { b"FAT12   " });
        boot[510..512].copy_from_slice(&[0x55, 0xaa]);
    }
}

const MEDIA: u8 = 0xf8;
const END: u16 = 0xffff;

struct Fat {
    entries: Vec<u16>,
    clusters: usize,
    wide: bool,
}

impl Fat {
    fn new(geometry: &Geometry) -> Self {
        Self { entries: vec![0xff00 | u16::from(MEDIA), END], clusters: geometry.clusters, wide: geometry.wide }
    }

    /// The first of so many clusters in a row; 0 for none.
    fn allocate(&mut self, count: usize) -> Result<u16, TooMuch> {
        if count == 0 {
            return Ok(0);
        }
        let first = self.entries.len();
        if first + count > self.clusters + 2 {
            return Err(TooMuch);
        }
        let next = |cluster: usize| u16::try_from(cluster).expect("clusters are fewer than 65,525");
        self.entries.extend((first + 1..first + count).map(next));
        self.entries.push(END);
        Ok(next(first))
    }

    fn render(&self) -> Vec<u8> {
        if self.wide {
            return self.entries.iter().flat_map(|entry| entry.to_le_bytes()).collect();
        }
        // Two entries of 12 bits in three bytes.
        let pairs = self.entries.chunks(2);
        pairs
            .flat_map(|pair| {
                let (low, high) = (pair[0] & 0xfff, pair.get(1).map_or(0, |entry| entry & 0xfff));
                let bits = u32::from(low) | u32::from(high) << 12;
                bits.to_le_bytes().into_iter().take(3)
            })
            .collect()
    }
}

fn volume_label(label: Label) -> [u8; 32] {
    let mut entry = [0; 32];
    entry[..11].copy_from_slice(label.volume);
    entry[11] = VOLUME_LABEL;
    entry
}

/// Into how many entries of 13 characters a long name is cut.
fn pieces(name: &str) -> usize {
    name.encode_utf16().count().div_ceil(13)
}

/// The directory entries of a file or directory: its long name in pieces, last first, then its short
/// one, which only has to be unique among its neighbours.
fn entries(name: &str, number: usize, kind: u8, first: u16, len: usize) -> Vec<[u8; 32]> {
    let short = format!("FILE{number:04}   ");
    let short: [u8; 11] = short.as_bytes()[..11].try_into().expect("padded to eleven characters");
    let sum = short.iter().fold(0u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte));

    let pieces = pieces(name);
    let mut units: Vec<u16> = name.encode_utf16().collect();
    if !units.len().is_multiple_of(13) {
        units.push(0);
        units.resize(pieces * 13, 0xffff);
    }
    let mut all: Vec<_> = units
        .chunks(13)
        .enumerate()
        .map(|(index, piece)| {
            let mut entry = [0; 32];
            entry[0] = (index + 1) as u8 | if index + 1 == pieces { 0x40 } else { 0 };
            entry[11] = 0x0f;
            entry[13] = sum;
            let places = (1..11).step_by(2).chain((14..26).step_by(2)).chain((28..32).step_by(2));
            for (at, unit) in places.zip(piece) {
                entry[at..at + 2].copy_from_slice(&unit.to_le_bytes());
            }
            entry
        })
        .rev()
        .collect();
    all.push(entry(&short, kind, first, len));
    all
}

fn entry(short: &[u8; 11], kind: u8, first: u16, len: usize) -> [u8; 32] {
    let mut entry = [0; 32];
    entry[..11].copy_from_slice(short);
    entry[11] = kind;
    // 1980-01-01: a date of zero is not one.
    entry[16..18].copy_from_slice(&0x21u16.to_le_bytes());
    entry[24..26].copy_from_slice(&0x21u16.to_le_bytes());
    entry[26..28].copy_from_slice(&first.to_le_bytes());
    entry[28..32].copy_from_slice(&(len as u32).to_le_bytes());
    entry
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    fn peer(program: &str, arguments: &[&str]) -> String {
        let output = Command::new(program).args(arguments).output().expect("mtools and dosfstools are installed");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{program}: {text}{}", String::from_utf8_lossy(&output.stderr));
        text
    }

    fn label(settings: Settings) -> Label {
        Label::of(settings).unwrap()
    }

    fn peers_read(settings: Settings, files: &Drive, sector: u32) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let written = render(label(settings), files, sector, 7).unwrap();
        assert_eq!(written.len() as u64, LEN);
        std::fs::write(file.path(), written).unwrap();
        let path = file.path().to_str().unwrap();
        peer("/usr/sbin/fsck.fat", &["-n", path]);
        for (name, text) in files {
            assert_eq!(&peer("mcopy", &["-i", path, &format!("::{name}"), "-"]), text, "{name}");
        }
        let found = peer("/usr/sbin/blkid", &["-p", "-s", "LABEL", "-o", "value", path]);
        assert_eq!(found.trim(), if settings == Settings::Cidata { "CIDATA" } else { "config-2" });
    }

    #[test]
    fn other_programs_read_what_was_written() {
        let files = [("meta-data", "instance-id: 1\n"), ("network-config", "version: 2\n"), ("empty", "")];
        let mut files: Drive = files.map(|(name, text)| (name.to_owned(), text.to_owned())).into();
        files.insert("user-data".to_owned(), "x".repeat(100_000));
        for sector in [512, 4096] {
            peers_read(Settings::Cidata, &files, sector);
        }
    }

    #[test]
    fn other_programs_read_what_is_in_directories() {
        let mut files: Drive = (0..40).map(|n| (format!("openstack/latest/file-{n}.json"), format!("{n}\n"))).collect();
        files.insert("openstack/content/0000/deeper".to_owned(), "x".repeat(100_000));
        files.insert("top".to_owned(), String::new());
        for sector in [512, 4096] {
            peers_read(Settings::Config2, &files, sector);
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let much = "x".repeat(LEN as usize);
        for name in ["user-data", "openstack/latest/user_data"] {
            let files = [(name.to_owned(), much.clone())].into();
            assert_eq!(render(label(Settings::Ignition), &files, 512, 7), Err(TooMuch));
        }
        let many = (0..300).map(|number| (format!("file-{number}"), String::new())).collect();
        assert_eq!(render(label(Settings::Cidata), &many, 512, 7), Err(TooMuch));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn any_set_of_files_is_read_back(
            files in prop::collection::btree_map("([0-9][a-z]{0,14}/){0,2}[a-z][a-z-]{0,40}", "[ -~\n]{0,3000}", 0..6),
        ) {
            peers_read(Settings::Config2, &files, 512);
        }
    }
}
