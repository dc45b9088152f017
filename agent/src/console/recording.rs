//! Recordings on disk: what a machine printed during a run.
//!
//! One file for each run: `console/<machine>/<run>.log` in the state directory, readable by the agent
//! alone.
//!
//! Invariants:
//! - A recording has at most [`MAX`] bytes, a machine [`PER_MACHINE`] recordings, and all together have
//!   at most [`TOTAL`] bytes and [`MAX`] for each that is being made; the oldest go first.
//! - A run that goes on after a restart goes on in its file.
//! - A disk that is full ends a recording, and nothing else.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use rackhand_common::id::{MachineId, RunId};

/// The most bytes of one recording.
pub(super) const MAX: u64 = 4 << 20;

/// The most recordings of one machine.
const PER_MACHINE: usize = 5;

/// The most bytes of all recordings.
const TOTAL: u64 = 256 << 20;

/// The most bytes told at once.
const PIECE: u64 = 1 << 20;

/// The last line of a recording that is full.
const FULL: &[u8] = b"\r\n[rackhand: the recording ends here: it is full]\r\n";

/// Where recordings are.
#[derive(Clone, Debug)]
pub(super) struct Shelf {
    dir: PathBuf,
}

/// One that is being made.
#[derive(Debug)]
pub(super) struct Recording {
    file: File,
    /// How many bytes it has.
    len: u64,
}

/// One that was found.
struct Found {
    path: PathBuf,
    changed: SystemTime,
    len: u64,
}

impl Shelf {
    /// That of an agent with this state directory.
    pub(super) fn within(state: &Path) -> Self {
        Self { dir: state.join("console") }
    }

    fn of(&self, machine: MachineId) -> PathBuf {
        self.dir.join(machine.to_string())
    }

    /// Begins the recording of a run, or goes on with it; whether it was there before. Older ones
    /// make room.
    pub(super) fn record(&self, machine: MachineId, run: RunId) -> io::Result<(Recording, bool)> {
        let dir = self.of(machine);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        let path = dir.join(format!("{run}.log"));
        self.make_room(machine, &path)?;
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path)?;
        let len = file.metadata()?.len();
        // Its name has to last as long as its bytes.
        File::open(&dir)?.sync_all()?;
        Ok((Recording { file, len }, len > 0))
    }

    /// Removes the oldest, of this machine and of all, but for the one at `kept`.
    fn make_room(&self, machine: MachineId, kept: &Path) -> io::Result<()> {
        let mut own = found(&self.of(machine))?;
        own.retain(|one| one.path != kept);
        while own.len() >= PER_MACHINE {
            fs::remove_file(own.remove(0).path)?;
        }
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path.is_dir() {
                all.extend(found(&path)?);
            }
        }
        all.sort_by_key(|one| one.changed);
        let mut total: u64 = all.iter().map(|one| one.len).sum();
        for one in all.iter().filter(|one| one.path != kept) {
            if total + MAX <= TOTAL {
                break;
            }
            fs::remove_file(&one.path)?;
            total -= one.len;
        }
        Ok(())
    }

    /// Some of a recording, behind so many bytes; of the latest when no run is named. `None` when
    /// there is none.
    pub(super) fn read(&self, machine: MachineId, run: Option<RunId>, offset: u64) -> io::Result<Option<Vec<u8>>> {
        let path = match run {
            Some(run) => Some(self.of(machine).join(format!("{run}.log"))),
            None => found(&self.of(machine))?.pop().map(|one| one.path),
        };
        let Some(path) = path else { return Ok(None) };
        let mut file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        file.seek(SeekFrom::Start(offset))?;
        let mut bytes = Vec::new();
        file.take(PIECE).read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }
}

/// The recordings in a machine's directory, the oldest first; none when it has none.
fn found(dir: &Path) -> io::Result<Vec<Found>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let about = match fs::metadata(&path) {
            // It was removed meanwhile, to make room.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            about => about?,
        };
        found.push(Found { path, changed: about.modified()?, len: about.len() });
    }
    found.sort_by_key(|one| one.changed);
    Ok(found)
}

impl Recording {
    /// Adds these; whether there is room for more.
    pub(super) fn add(&mut self, bytes: &[u8]) -> io::Result<bool> {
        let room = MAX.saturating_sub(self.len + FULL.len() as u64);
        let taken = &bytes[..bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX))];
        self.file.write_all(taken)?;
        self.len += taken.len() as u64;
        if taken.len() == bytes.len() {
            return Ok(true);
        }
        self.file.write_all(FULL)?;
        Ok(false)
    }

    /// Has it on stable storage.
    pub(super) fn end(self) -> io::Result<()> {
        self.file.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// The recording of another run, made so long ago.
    fn old(shelf: &Shelf, machine: MachineId, len: u64, ago: u64) -> RunId {
        let run = RunId::fresh();
        let (recording, _) = shelf.record(machine, run).unwrap();
        recording.file.set_len(len).unwrap();
        recording.file.set_modified(SystemTime::now() - Duration::from_secs(ago)).unwrap();
        run
    }

    #[test]
    fn a_run_is_recorded_in_one_file_also_over_a_restart_and_the_latest_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::within(dir.path());
        let (machine, run) = (MachineId::fresh(), RunId::fresh());
        assert_eq!(shelf.read(machine, None, 0).unwrap(), None);
        old(&shelf, machine, 7, 60);
        for (text, is_old) in [("grub> ", false), ("linux", true)] {
            let (mut recording, was_there) = shelf.record(machine, run).unwrap();
            assert_eq!(was_there, is_old);
            assert!(recording.add(text.as_bytes()).unwrap());
            recording.end().unwrap();
        }
        assert_eq!(shelf.read(machine, Some(run), 0).unwrap().unwrap(), b"grub> linux");
        assert_eq!(shelf.read(machine, None, 6).unwrap().unwrap(), b"linux");
        assert_eq!(shelf.read(machine, None, 600).unwrap().unwrap(), b"");
        assert_eq!(shelf.read(machine, Some(RunId::fresh()), 0).unwrap(), None);
    }

    #[test]
    fn a_recording_has_an_end_and_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::within(dir.path());
        let (mut recording, _) = shelf.record(MachineId::fresh(), RunId::fresh()).unwrap();
        let half = vec![b'x'; MAX as usize / 2];
        assert!(recording.add(&half).unwrap());
        assert!(!recording.add(&half).unwrap());
        assert_eq!(recording.file.metadata().unwrap().len(), MAX);
    }

    #[test]
    fn the_oldest_make_room() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::within(dir.path());
        let machine = MachineId::fresh();
        let runs: Vec<_> = (0..PER_MACHINE as u64 + 2).map(|n| old(&shelf, machine, 1, 1000 - n)).collect();
        let is_there = |machine, run: &RunId| shelf.read(machine, Some(*run), 0).unwrap().is_some();
        let there: Vec<_> = runs.iter().map(|run| is_there(machine, run)).collect();
        assert_eq!(there, [false, false, true, true, true, true, true]);
        // Sparse files: the lengths are what is counted.
        let others: Vec<_> = (0..3).map(|n| (MachineId::fresh(), 500 - n)).collect();
        let large: Vec<_> = others.iter().map(|(one, ago)| old(&shelf, *one, TOTAL / 3, *ago)).collect();
        old(&shelf, MachineId::fresh(), 1, 0);
        assert!(!is_there(machine, &runs[6]) && !is_there(others[0].0, &large[0]));
        assert!(is_there(others[1].0, &large[1]) && is_there(others[2].0, &large[2]));
    }
}
