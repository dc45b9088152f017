//! Erasing one drive so that it is known to be clean, or known why it is not: by the strongest
//! method it has, down to overwriting it with zeros.
//!
//! Before each method a pattern that only this erasure knows is written to the places that are
//! read back afterwards, and read back at once: a drive that then says it is done and still has
//! any of it lies, and the next method is tried. What a drive says of itself, and the commands
//! of its methods, are in [`nvme`], [`ata`] and [`scsi`], the order of methods in [`drive`].
//!
//! Invariants:
//! - A drive is proven clean or has a reason, never neither ([`DriveErasure::is_sound`]).
//! - A drive with a password or a lock that is not ours, or an area that stays hidden, is not clean.
//! - A sanitize that an earlier installer of the same order began is waited for, not begun again.
//!
//! What methods achieve is said in the terms of NIST SP 800-88: *clear* or *purge*.

pub mod ata;
pub mod drive;
pub mod nvme;
pub mod scsi;
#[cfg(test)]
mod simulated;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use jiff::Timestamp;
use rackhand_common::{
    channel::Kept,
    erasure::{
        Bus, Class, Condition, ConditionKind, DriveErasure, Evidence, MAX_CONDITIONS, MAX_TRIED, Method, Outcome,
        Samples, Tried, cut,
    },
    id::RunId,
    machine,
};
use rackhand_fail_points::fail_point;
use tokio_util::sync::CancellationToken;

use self::drive::{Drive, Said, Sanitizing, condition, ladder, left_by};
use crate::{
    admin::{CommandError, Speaks},
    disk::{Buffer, Disk},
};

const STEP: u64 = 64 << 20;
const SAMPLE: u64 = 1 << 20;
/// Together with both ends: a remnant of a hundredth of the disk is found with near certainty
/// by a few hundred; 64 bound the time on spinning disks to about a second.
const SAMPLES: u64 = 64;

/// A drive that sanitizes itself is asked how far it is this often.
const ASK: Duration = Duration::from_secs(1);

/// A sanitize that has not moved on for this long hangs. Less than the release's patience.
const STALL: Duration = Duration::from_secs(15 * 60);

/// A sanitize that is not ours is waited for this long.
const OTHERS: Duration = Duration::from_secs(24 * 3600);

/// The order was withdrawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Withdrawn;

/// How time passes.
pub trait Pace: Send + Sync {
    /// The wall clock.
    fn now(&self) -> Timestamp;
    /// Since some time in the past; never goes back.
    fn elapsed(&self) -> Duration;
    /// Returns after this long.
    fn wait(&self, time: Duration);
    /// Does something that tells nothing until it is over, and that takes `limit` at most;
    /// meanwhile `meter` moves on with the time.
    fn during(&self, limit: Duration, meter: &Meter, act: &mut (dyn FnMut() + Send));
}

/// Time as it passes.
pub struct RealPace(pub Instant);

impl Pace for RealPace {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }

    fn wait(&self, time: Duration) {
        std::thread::sleep(time);
    }

    fn during(&self, limit: Duration, meter: &Meter, act: &mut (dyn FnMut() + Send)) {
        let begun = self.elapsed();
        let (over, waits) = std::sync::mpsc::channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                // Ends when the other half is dropped.
                while waits.recv_timeout(ASK) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                    meter.part((self.elapsed() - begun).as_millis() as u64, limit.as_millis() as u64);
                }
            });
            act();
            drop(over);
        });
    }
}

/// How far one drive is, counted into all of them.
pub struct Meter {
    all: Arc<AtomicU64>,
    size: u64,
    mine: AtomicU64,
}

impl Meter {
    /// Of a drive with so many bytes.
    pub fn new(all: Arc<AtomicU64>, size: u64) -> Self {
        Self { all, size, mine: AtomicU64::new(0) }
    }

    fn set(&self, done: u64) {
        let done = done.min(self.size);
        let before = self.mine.swap(done, Ordering::Relaxed);
        self.all.fetch_add(done.wrapping_sub(before), Ordering::Relaxed);
    }

    /// So much of a whole, less than all of it.
    fn part(&self, part: u64, whole: u64) {
        let done = u128::from(self.size) * u128::from(part) / u128::from(whole.max(1));
        self.set(u64::try_from(done).unwrap_or(u64::MAX).min(self.size - self.size / 100));
    }

    /// All of it.
    pub fn full(&self) {
        self.set(self.size);
    }
}

/// One drive to erase.
pub struct Job<'a> {
    /// The drive.
    pub disk: &'a dyn Disk,
    /// As the inventory has it.
    pub found: &'a machine::Disk,
    /// [`seed`] of the order and the drive.
    pub seed: u64,
    /// What an earlier installer of the same order began and did not end.
    pub begun: Option<Method>,
    /// How time passes.
    pub pace: &'a dyn Pace,
    /// How far it is.
    pub meter: &'a Meter,
    /// Cancelled when the order is withdrawn.
    pub withdrawn: &'a CancellationToken,
    /// Notes, where it outlives this machine's restart, what is begun now.
    pub note: &'a (dyn Fn(Method) + Sync),
}

/// What samples and pattern of a drive are chosen by: the same for each installer of a release,
/// and nothing the drive or a tenant could know before.
pub fn seed(run: RunId, disk: &str) -> u64 {
    let hash = blake3::hash(format!("{run} {disk}").as_bytes());
    u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("a hash is longer"))
}

/// Whether a drive is as it was left when an earlier installer of the same order had proven it.
pub fn is_as_left(disk: &dyn Disk, seed: u64, kept: &Kept) -> bool {
    look_at_samples(disk, seed, |_, _| Ok(())).is_ok_and(|samples| samples.digest == kept.digest)
}

/// Why a method has not proven anything.
struct Unproven {
    outcome: Outcome,
    detail: String,
}

fn failed(detail: impl Into<String>) -> Unproven {
    Unproven { outcome: Outcome::Failed, detail: detail.into() }
}

impl From<CommandError> for Unproven {
    fn from(error: CommandError) -> Self {
        let outcome = match error {
            CommandError::Refused(_) => Outcome::Refused,
            CommandError::Unanswered(_) => Outcome::Failed,
        };
        Self { outcome, detail: chain(&error) }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

struct Proof {
    samples: Samples,
    evidence: Vec<Evidence>,
}

/// Erases the drive.
pub fn erase(job: &Job<'_>) -> Result<DriveErasure, Withdrawn> {
    let started = job.pace.now();
    let drive: Option<Box<dyn Drive + '_>> = job.disk.admin().map(|admin| -> Box<dyn Drive + '_> {
        match admin.speaks() {
            Speaks::Nvme(namespace) => Box::new(nvme::Nvme::new(admin, namespace)),
            Speaks::Ata => Box::new(ata::Ata(admin)),
            Speaks::Scsi => Box::new(scsi::Scsi(admin)),
        }
    });
    let mut erasing = Erasing { job, drive: drive.as_deref(), tried: Vec::new(), conditions: Vec::new() };
    let (bus, ended) = erasing.run()?;
    let Erasing { tried, mut conditions, .. } = erasing;
    let (found, words) = (job.found, |text: &str| cut(text.to_owned()));
    conditions.truncate(MAX_CONDITIONS);
    let (proven, reason) = match ended {
        Ok(proven) => (Some(proven), None),
        Err(reason) => (None, Some(cut(reason))),
    };
    let method = proven.as_ref().map(|(method, _)| *method);
    let proof = proven.map_or(Proof { samples: Samples::default(), evidence: Vec::new() }, |(_, proof)| proof);
    job.meter.full();
    Ok(DriveErasure {
        disk: words(&found.identity().unwrap_or_default()),
        model: words(&found.model),
        serial: words(&found.serial),
        wwn: found.wwn.as_deref().map(words),
        size: job.disk.size(),
        sector: job.disk.sector(),
        rotational: found.rotational,
        bus,
        started,
        ended: job.pace.now(),
        tried,
        method,
        class: method.map_or(Class::None, |method| method.class(found.rotational)),
        samples: proof.samples,
        evidence: proof.evidence,
        conditions,
        reason,
    })
}

struct Erasing<'a> {
    job: &'a Job<'a>,
    drive: Option<&'a (dyn Drive + 'a)>,
    tried: Vec<Tried>,
    conditions: Vec<Condition>,
}

type Ended = Result<(Method, Proof), String>;

impl Erasing<'_> {
    /// How the drive is spoken to, and what is proven of it or why nothing is.
    fn run(&mut self) -> Result<(Bus, Ended), Withdrawn> {
        let Some(drive) = self.drive else {
            let said = Said {
                bus: Bus::Blocks,
                methods: Vec::new(),
                sanitizing: Sanitizing::Never,
                obstacles: Vec::new(),
                beyond: Vec::new(),
                formats_all: false,
                conditions: Vec::new(),
            };
            return Ok((Bus::Blocks, self.climb(said)?));
        };
        let bus = match self.job.disk.admin().map(|admin| admin.speaks()) {
            Some(Speaks::Nvme(_)) => Bus::Nvme,
            Some(Speaks::Ata) => Bus::Ata,
            Some(Speaks::Scsi) | None => Bus::Scsi,
        };
        let told = match drive.sanitizing() {
            // Nothing else is answered while it does.
            Ok(Sanitizing::Running(_)) => match self.join(drive)? {
                Joined::Proven(method, proof) => {
                    return Ok((bus, self.settled(drive, method, proof)));
                }
                Joined::Hangs(reason) => return Ok((bus, Err(reason))),
                Joined::Over => self.opened(drive),
            },
            Ok(_) => {
                // One of ours may have ended while nobody looked.
                if let Some(method) = self.job.begun.filter(|method| method.is_sanitize()) {
                    let (started, log) = (self.job.pace.now(), drive.sanitizing().ok());
                    if let Ok(proof) = self.proof(method, log == Some(Sanitizing::Done)) {
                        self.note(method, Outcome::Proven, String::new(), true, started);
                        return Ok((bus, self.settled(drive, method, proof)));
                    }
                }
                self.opened(drive)
            }
            Err(_) => self.opened(drive),
        };
        match told {
            Ok(said) => Ok((bus, self.climb(said)?)),
            Err(error) => {
                let text = format!("it does not tell what it can do: {}", chain(&error));
                self.conditions.push(condition(ConditionKind::Silent, text.clone()));
                Ok((bus, Err(text)))
            }
        }
    }

    fn opened(&mut self, drive: &dyn Drive) -> Result<Said, CommandError> {
        let found = drive.open()?;
        self.conditions.extend(found);
        if let Err(error) = self.job.disk.rescan() {
            self.conditions.push(condition(ConditionKind::Silent, format!("its size cannot be read again: {error}")));
        }
        drive.look()
    }

    /// Waits for a sanitize that is under way.
    fn join(&mut self, drive: &dyn Drive) -> Result<Joined, Withdrawn> {
        let ours = self.job.begun.filter(|method| method.is_sanitize());
        let started = self.job.pace.now();
        let ended = self.sanitized(drive, ours.map_or(OTHERS, |method| drive.limit(method)))?;
        let proof = match (ended, ours) {
            (Err(unproven), ours) if unproven.outcome == Outcome::Hung => {
                let who = ours.map_or("a sanitize that was under way".to_owned(), |method| method.to_string());
                if let Some(method) = ours {
                    self.note(method, unproven.outcome, unproven.detail.clone(), true, started);
                }
                return Ok(Joined::Hangs(format!("{who} {}", unproven.detail)));
            }
            (_, None) => return Ok(Joined::Over),
            (Ok(log), Some(method)) => self.proof(method, log).map(|proof| (method, proof)),
            (Err(unproven), Some(_)) => Err(unproven),
        };
        match (proof, ours) {
            (Ok((method, proof)), _) => {
                self.note(method, Outcome::Proven, String::new(), true, started);
                Ok(Joined::Proven(method, proof))
            }
            (Err(Unproven { outcome, detail }), method) => {
                if let Some(method) = method {
                    self.note(method, outcome, detail, true, started);
                }
                Ok(Joined::Over)
            }
        }
    }

    /// Tries one method after another.
    fn climb(&mut self, said: Said) -> Result<Ended, Withdrawn> {
        self.conditions.extend(said.conditions.iter().cloned());
        if !said.obstacles.is_empty() {
            return Ok(Err(said.obstacles.join("; ")));
        }
        for method in ladder(&said.methods) {
            if self.job.withdrawn.is_cancelled() {
                return Err(Withdrawn);
            }
            if self.tried.len() >= MAX_TRIED {
                break;
            }
            let started = self.job.pace.now();
            self.job.meter.set(0);
            match self.attempt(method)? {
                Ok(proof) => {
                    self.note(method, Outcome::Proven, String::new(), false, started);
                    return Ok(match (left_by(method, &said), self.drive) {
                        (Some(left), _) => Err(left),
                        (None, Some(drive)) => self.settled(drive, method, proof),
                        (None, None) => Ok((method, proof)),
                    });
                }
                Err(Unproven { outcome, detail }) => {
                    self.note(method, outcome, detail, false, started);
                    let Some(drive) = self.drive else { continue };
                    if let Ok(Sanitizing::Running(part)) = drive.sanitizing() {
                        return Ok(Err(format!("{method} hangs at {} % and cannot be ended", percent(part))));
                    }
                    // One that failed is left, where it may be.
                    let _ = drive.open();
                }
            }
        }
        let last = self.tried.last().map(|tried| format!("{}: {}", tried.method, tried.detail));
        Ok(Err(format!("no method erased it; the last was {}", last.unwrap_or_else(|| "none".to_owned()))))
    }

    /// A drive that is proven clean, unless it has become one that is not.
    fn settled(&mut self, drive: &dyn Drive, method: Method, proof: Proof) -> Ended {
        let left = drive.settle(method);
        self.conditions.extend(left);
        match drive.look() {
            Ok(said) if said.obstacles.is_empty() => Ok((method, proof)),
            Ok(said) => Err(said.obstacles.join("; ")),
            Err(error) => Err(format!("after {method} it does not answer: {}", chain(&error))),
        }
    }

    fn note(&mut self, method: Method, outcome: Outcome, detail: String, joined: bool, started: Timestamp) {
        if outcome == Outcome::Lied {
            let text = format!("{method}: it said that it was done, and was not");
            self.conditions.push(condition(ConditionKind::Lying, text));
        }
        let ended = self.job.pace.now();
        tracing::info!(disk = self.job.found.name, %method, %outcome, detail, joined, "erasing");
        if self.tried.len() < MAX_TRIED {
            self.tried.push(Tried { method, outcome, detail: cut(detail), joined, started, ended });
        }
    }

    fn attempt(&self, method: Method) -> Result<Result<Proof, Unproven>, Withdrawn> {
        if let Err(error) = self.write_pattern() {
            return Ok(Err(error));
        }
        let log = match (method, self.drive) {
            (Method::Overwrite, _) => match self.overwrite()? {
                Ok(()) => false,
                Err(unproven) => return Ok(Err(unproven)),
            },
            (method, Some(drive)) => {
                (self.job.note)(method);
                let mut begun = Ok(());
                if method.is_sanitize() {
                    begun = drive.begin(method);
                } else {
                    let limit = drive.limit(method);
                    self.job.pace.during(limit, self.job.meter, &mut || begun = drive.begin(method));
                }
                if let Err(error) = begun {
                    return Ok(Err(error.into()));
                }
                if method.is_sanitize() {
                    match self.sanitized(drive, drive.limit(method))? {
                        Ok(log) => log,
                        Err(unproven) => return Ok(Err(unproven)),
                    }
                } else {
                    false
                }
            }
            (_, None) => return Ok(Err(failed("the drive takes no commands"))),
        };
        Ok(self.proof(method, log))
    }

    /// Waits until the drive is not sanitizing any more: whether its log says that it is done.
    fn sanitized(&self, drive: &dyn Drive, limit: Duration) -> Result<Result<bool, Unproven>, Withdrawn> {
        let pace = self.job.pace;
        let (begun, mut moved, mut last) = (pace.elapsed(), pace.elapsed(), None);
        loop {
            let told = drive.sanitizing();
            let now = pace.elapsed();
            match told {
                Ok(Sanitizing::Done) => return Ok(Ok(true)),
                Ok(Sanitizing::Never) => return Ok(Ok(false)),
                Ok(Sanitizing::Failed) => return Ok(Err(failed("its status log says that it failed"))),
                Ok(Sanitizing::Running(part)) if last != Some(part) => {
                    (last, moved) = (Some(part), now);
                    self.job.meter.part(part.into(), 1 << 16);
                }
                // Some answer nothing for a while.
                Ok(Sanitizing::Running(_)) | Err(_) => {}
            }
            if now - moved >= STALL || now - begun >= limit {
                let at =
                    last.map_or("without telling how far it is".to_owned(), |part| format!("at {} %", percent(part)));
                return Ok(Err(Unproven { outcome: Outcome::Hung, detail: format!("hangs {at}") }));
            }
            if self.job.withdrawn.is_cancelled() {
                return Err(Withdrawn);
            }
            pace.wait(ASK);
        }
    }

    /// Writes the pattern and reads it back: what is not there cannot be missed.
    fn write_pattern(&self) -> Result<(), Unproven> {
        let (disk, seed) = (self.job.disk, self.job.seed);
        let mut bytes = Buffer::zeroed(SAMPLE as usize);
        let size = disk.size();
        for at in samples(size, u64::from(disk.sector()), seed) {
            bytes.set_len(SAMPLE.min(size - at) as usize);
            fill(seed, at, &mut bytes);
            let wrote = || fail_point!("erase.pattern", disk.write_at(at, &bytes));
            wrote().map_err(|error| failed(format!("writing the pattern at {at} failed: {error}")))?;
        }
        disk.flush().map_err(|error| failed(format!("flushing the pattern failed: {error}")))?;
        let missing = |at| failed(format!("what was written at {at} does not read back"));
        look_at_samples(disk, seed, |at, bytes| if is_pattern(seed, at, bytes) { Ok(()) } else { Err(missing(at)) })
            .map(drop)
    }

    fn overwrite(&self) -> Result<Result<(), Unproven>, Withdrawn> {
        let disk = self.job.disk;
        let size = disk.size();
        disk.discard(0, size);
        let mut at = 0;
        while at < size {
            if self.job.withdrawn.is_cancelled() {
                return Err(Withdrawn);
            }
            let len = STEP.min(size - at);
            let overwrite = || fail_point!("erase.overwrite", disk.zero(at, len));
            if let Err(error) = overwrite() {
                return Ok(Err(failed(format!("overwriting at {at} failed: {error}"))));
            }
            at += len;
            self.job.meter.set(at);
        }
        Ok(disk.flush().map_err(|error| failed(format!("flushing failed: {error}"))))
    }

    /// Reads the samples: none of the pattern is there, and after overwriting nothing but zeros.
    fn proof(&self, method: Method, log: bool) -> Result<Proof, Unproven> {
        let seed = self.job.seed;
        let mut zeros = true;
        let lied = |detail| Err(Unproven { outcome: Outcome::Lied, detail });
        let samples = look_at_samples(self.job.disk, seed, |at, bytes| {
            zeros &= bytes.iter().all(|byte| *byte == 0);
            if has_pattern(seed, at, bytes) {
                return lied(format!("what was written before is still there, in the MiB at {at}"));
            }
            if method == Method::Overwrite && !zeros {
                return lied(format!("after overwriting, the MiB at {at} is not zeros"));
            }
            Ok(())
        })?;
        let evidence = [(true, Evidence::PatternGone), (zeros, Evidence::Zeros), (log, Evidence::StatusLog)];
        let evidence = evidence.into_iter().filter_map(|(is, evidence)| is.then_some(evidence)).collect();
        Ok(Proof { samples, evidence })
    }
}

enum Joined {
    Proven(Method, Proof),
    /// It is over, and the drive's erasure has yet to begin.
    Over,
    Hangs(String),
}

fn percent(part: u16) -> u32 {
    (u32::from(part) * 100) >> 16
}

/// Reads every sample and looks at it.
fn look_at_samples(
    disk: &dyn Disk,
    seed: u64,
    mut look: impl FnMut(u64, &[u8]) -> Result<(), Unproven>,
) -> Result<Samples, Unproven> {
    let size = disk.size();
    let mut bytes = Buffer::zeroed(SAMPLE as usize);
    let (mut hash, mut seen) = (blake3::Hasher::new(), Samples::default());
    for at in samples(size, u64::from(disk.sector()), seed) {
        bytes.set_len(SAMPLE.min(size - at) as usize);
        // Whatever the device does not write must not look like zeros.
        bytes.fill(0xff);
        let mut read = || fail_point!("erase.verify", disk.read_at(at, &mut bytes));
        read().map_err(|error| failed(format!("reading back at {at} failed: {error}")))?;
        look(at, &bytes)?;
        hash.update(&bytes);
        seen.places += 1;
        seen.bytes += bytes.len() as u64;
    }
    seen.digest = hash.finalize().to_hex().to_string();
    Ok(seen)
}

/// Any piece of this length of the pattern that is still in its place is a remnant.
const PIECE: usize = 32;

/// The pattern's bytes from this offset on; no two pieces are alike.
fn fill(seed: u64, at: u64, bytes: &mut [u8]) {
    for (index, piece) in bytes.chunks_mut(PIECE).enumerate() {
        piece.copy_from_slice(&piece_at(seed, at + (index * PIECE) as u64)[..piece.len()]);
    }
}

fn piece_at(seed: u64, at: u64) -> [u8; PIECE] {
    let mut state = seed ^ at.rotate_left(23);
    let mut piece = [0; PIECE];
    for word in piece.chunks_exact_mut(8) {
        word.copy_from_slice(&splitmix(&mut state).to_le_bytes());
    }
    piece
}

fn pieces<'a>(seed: u64, at: u64, bytes: &'a [u8]) -> impl Iterator<Item = bool> + 'a {
    let chunks = bytes.chunks(PIECE).enumerate();
    chunks.map(move |(index, piece)| piece == &piece_at(seed, at + (index * PIECE) as u64)[..piece.len()])
}

fn has_pattern(seed: u64, at: u64, bytes: &[u8]) -> bool {
    pieces(seed, at, bytes).any(|same| same)
}

fn is_pattern(seed: u64, at: u64, bytes: &[u8]) -> bool {
    pieces(seed, at, bytes).all(|same| same)
}

/// Where to read back: both ends, and places between; all of a small disk.
fn samples(size: u64, sector: u64, seed: u64) -> Vec<u64> {
    if size <= SAMPLE * (SAMPLES + 2) {
        return (0..size).step_by(SAMPLE as usize).collect();
    }
    let last = (size - SAMPLE) / sector * sector;
    let mut state = seed;
    let between = (0..SAMPLES).map(|_| splitmix(&mut state) % (last / sector) * sector);
    let mut places: Vec<_> = [0, last].into_iter().chain(between).collect();
    places.sort_unstable();
    places.dedup();
    places
}

/// SplitMix64: good enough to be unforeseen by a disk, and the same for the same seed.
fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests;
