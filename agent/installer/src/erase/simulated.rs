//! Drives as their standards describe them, with what makes real ones hard: they lie, hang, fail,
//! are locked or frozen, hide a part of themselves, are reset in the middle. What a tenant left is
//! known here, so that a test can look whether any of it is left.

use std::{
    io,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use rackhand_common::machine::{Content, Disk as Found};
use tokio_util::sync::CancellationToken;

use super::{Meter, Pace};
use crate::{
    admin::{Admin, AtaAnswer, AtaCommand, CommandError, Data, NvmeCommand, Refusal, Speaks},
    disk::{Buffer, Disk},
};

const SECTOR: usize = 512;

/// What a tenant wrote, everywhere.
pub(super) const TENANT: &[u8; 16] = b"a tenant's data!";

/// What a drive can do and what is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ways {
    pub(super) speaks: Option<Speaks>,
    /// Bits: crypto, block, overwrite.
    pub(super) sanitizes: u8,
    /// Format, or the Security feature set.
    pub(super) formats: bool,
    /// Format with crypto erase, or enhanced security erase.
    pub(super) formats_crypto: bool,
    /// Says it sanitized and did not.
    pub(super) lies_sanitizing: bool,
    /// Says it formatted, or erased by its Security feature set, and did not.
    pub(super) lies_formatting: bool,
    /// Says it wrote zeros and did not.
    pub(super) lies_zeroing: bool,
    /// Says it wrote and did not.
    pub(super) lies_writing: bool,
    /// A sanitize stops for ever at so many of eight parts.
    pub(super) hangs_at: Option<u8>,
    pub(super) fails: bool,
    pub(super) refuses: bool,
    pub(super) frozen: bool,
    /// With a tenant's password: 1 set, 2 set and locked.
    pub(super) password: u8,
    /// TCG Opal: 1 enabled, 2 locked.
    pub(super) opal: u8,
    /// Sectors beyond what is addressed (HPA), or of a detached namespace.
    pub(super) hidden: bool,
    /// Which cannot be opened, or deleted.
    pub(super) sealed: bool,
    /// Bytes in no namespace hold data.
    pub(super) unallocated: bool,
    pub(super) write_fails: bool,
    pub(super) silent: bool,
    /// What it answers without data does not get through: it is behind a bridge.
    pub(super) mute: bool,
}

impl Ways {
    /// A sound drive that can do everything.
    pub(super) fn sound(speaks: Option<Speaks>) -> Self {
        Self {
            speaks,
            sanitizes: 0b111,
            formats: true,
            formats_crypto: true,
            lies_sanitizing: false,
            lies_formatting: false,
            lies_zeroing: false,
            lies_writing: false,
            hangs_at: None,
            fails: false,
            refuses: false,
            frozen: false,
            password: 0,
            opal: 0,
            hidden: false,
            sealed: false,
            unallocated: false,
            write_fails: false,
            silent: false,
            mute: false,
        }
    }
}

struct State {
    /// What can be addressed.
    media: Vec<u8>,
    /// HPA, or another namespace, or capacity in no namespace.
    hidden: Vec<u8>,
    namespaces: Vec<u32>,
    unallocated: bool,
    /// Kind (1 crypto, 2 block, 3 overwrite) and eighths done.
    sanitizing: Option<(u8, u8)>,
    /// Of the latest: 0 never, 1 done, 3 failed.
    log: u8,
    password: Option<[u8; 32]>,
    locked: bool,
    prepared: bool,
    /// Status questions so far; the machine is reset at one of them.
    asked: u32,
    noise: u64,
    begun: u32,
}

/// A drive.
pub(super) struct Simulated {
    ways: Ways,
    state: Mutex<State>,
    /// The machine is reset at this question, which withdraws the order.
    reset_at: Option<u32>,
    pub(super) reset: CancellationToken,
}

fn refused<T>(refusal: Refusal) -> Result<T, CommandError> {
    Err(CommandError::Refused(refusal))
}

/// Invalid command opcode; aborted.
const NVME_NO: Refusal = Refusal::Nvme(0x001);
const ATA_NO: Refusal = Refusal::Ata(0x04);
const SCSI_NO: Refusal = Refusal::Scsi { key: 5, code: 0x20, qualifier: 0 };

impl Simulated {
    pub(super) fn new(ways: Ways, reset_at: Option<u32>) -> Self {
        let full = |len: usize| TENANT.iter().copied().cycle().take(len).collect::<Vec<_>>();
        let has_hidden = ways.hidden || ways.unallocated;
        let state = State {
            media: full(64 * SECTOR),
            hidden: full(if has_hidden { 16 * SECTOR } else { 0 }),
            namespaces: if ways.hidden { vec![1, 2] } else { vec![1] },
            unallocated: ways.unallocated,
            sanitizing: None,
            log: 0,
            password: (ways.password > 0).then_some([7; 32]),
            locked: ways.password == 2,
            prepared: false,
            asked: 0,
            noise: 1,
            begun: 0,
        };
        Self { ways, state: Mutex::new(state), reset_at, reset: CancellationToken::new() }
    }

    pub(super) fn found(&self) -> Found {
        Found {
            name: "sda".into(),
            model: "SIMULATED".into(),
            serial: "S1".into(),
            wwn: Some("naa.5000000000000001".into()),
            size: self.size(),
            sector: SECTOR as u32,
            rotational: false,
            content: Content::Blank,
        }
    }

    /// Whether anything of what a tenant wrote is left anywhere, hidden or not.
    pub(super) fn holds_tenants_data(&self) -> bool {
        let state = self.lock();
        let is_tenants = |bytes: &[u8]| bytes.chunks(TENANT.len()).any(|piece| piece == TENANT);
        is_tenants(&state.media) || is_tenants(&state.hidden)
    }

    /// Whether somebody else's password or lock is left.
    pub(super) fn is_anothers(&self) -> bool {
        self.lock().password.is_some() || self.ways.opal > 0 && self.ways.speaks.is_some()
    }

    /// How many sanitizes were begun.
    pub(super) fn begun(&self) -> u32 {
        self.lock().begun
    }

    /// Power is lost and comes back: passwords lock, a sanitize goes on.
    pub(super) fn restart(&mut self) {
        self.reset_at = None;
        self.reset = CancellationToken::new();
        let mut state = self.lock();
        state.locked = state.password.is_some();
        state.prepared = false;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn blank(state: &mut State, kind: u8) {
        let mut noise = state.noise;
        let (media, hidden) = (&mut state.media, &mut state.hidden);
        for byte in media.iter_mut().chain(hidden.iter_mut()) {
            *byte = if kind == 1 { super::splitmix(&mut noise) as u8 } else { 0 };
        }
        state.noise = noise;
    }

    fn can(&self, kind: u8) -> bool {
        self.ways.sanitizes >> (kind - 1) & 1 == 1
    }

    fn begin(&self, kind: u8, no: Refusal) -> Result<(), CommandError> {
        let mut state = self.lock();
        if !self.can(kind) || self.ways.refuses || state.locked || state.sanitizing.is_some() || self.ways.opal == 2 {
            return refused(no);
        }
        state.begun += 1;
        state.sanitizing = Some((kind, 0));
        Ok(())
    }

    /// Each question moves it on by an eighth: what it is at, and the log's state.
    fn progress(&self) -> (Option<u16>, u8) {
        let mut state = self.lock();
        state.asked += 1;
        if self.reset_at == Some(state.asked) {
            self.reset.cancel();
        }
        let Some((kind, eighths)) = state.sanitizing else { return (None, state.log) };
        if self.ways.hangs_at.is_some_and(|at| eighths >= at) {
            return (Some(u16::from(eighths) << 13), 2);
        }
        if eighths < 7 {
            state.sanitizing = Some((kind, eighths + 1));
            return (Some(u16::from(eighths) << 13), 2);
        }
        state.sanitizing = None;
        state.log = if self.ways.fails { 3 } else { 1 };
        if !self.ways.fails && !self.ways.lies_sanitizing {
            Self::blank(&mut state, kind);
        }
        (None, state.log)
    }

    fn discovery(&self, bytes: &mut [u8]) {
        bytes.fill(0);
        let locking = [0x00, 0x02, 0x10, 12, [0x01, 0x03, 0x07][usize::from(self.ways.opal)], 0, 0, 0];
        let tper = [0x00, 0x01, 0x10, 12, 0x11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        bytes[..4].copy_from_slice(&76u32.to_be_bytes());
        bytes[48..64].copy_from_slice(&tper);
        bytes[64..72].copy_from_slice(&locking);
    }

    fn check(&self, state: &State, at: u64, len: usize) -> io::Result<std::ops::Range<usize>> {
        if state.locked || state.sanitizing.is_some() || self.ways.opal == 2 && self.ways.speaks.is_some() {
            return Err(io::Error::other("locked or sanitizing"));
        }
        let range = at as usize..at as usize + len;
        if range.end > state.media.len() { Err(io::Error::other("beyond the end")) } else { Ok(range) }
    }
}

impl Disk for Simulated {
    fn size(&self) -> u64 {
        self.lock().media.len() as u64
    }

    fn sector(&self) -> u32 {
        SECTOR as u32
    }

    fn read_at(&self, at: u64, bytes: &mut Buffer) -> io::Result<()> {
        let state = self.lock();
        let range = self.check(&state, at, bytes.len())?;
        bytes.copy_from_slice(&state.media[range]);
        Ok(())
    }

    fn write_at(&self, at: u64, bytes: &Buffer) -> io::Result<()> {
        let mut state = self.lock();
        let range = self.check(&state, at, bytes.len())?;
        if self.ways.write_fails {
            return Err(io::Error::other("medium error"));
        }
        if !self.ways.lies_writing {
            state.media[range].copy_from_slice(bytes);
        }
        Ok(())
    }

    fn zero(&self, at: u64, len: u64) -> io::Result<()> {
        let mut state = self.lock();
        let range = self.check(&state, at, len as usize)?;
        if self.ways.write_fails {
            return Err(io::Error::other("medium error"));
        }
        if !self.ways.lies_zeroing && !self.ways.lies_writing {
            state.media[range].fill(0);
        }
        Ok(())
    }

    fn discard(&self, _: u64, _: u64) {}

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn admin(&self) -> Option<&dyn Admin> {
        self.ways.speaks.map(|_| -> &dyn Admin { self })
    }
}

fn put(data: Data<'_>, bytes: &[u8]) {
    if let Data::In(room) = data {
        let len = room.len().min(bytes.len());
        room[..len].copy_from_slice(&bytes[..len]);
    }
}

impl Admin for Simulated {
    fn speaks(&self) -> Speaks {
        self.ways.speaks.unwrap()
    }

    fn nvme(&self, command: NvmeCommand, mut data: Data<'_>) -> Result<u32, CommandError> {
        if !matches!(self.speaks(), Speaks::Nvme(_)) || self.ways.silent {
            return refused(NVME_NO);
        }
        let ways = self.ways;
        match (command.opcode, command.cdw10 & 0xff) {
            (0x06, 0x00) => {
                let mut page = vec![0; 4096];
                page[26] = 0x01;
                put(data, &page);
            }
            (0x06, 0x01) => {
                let mut page = vec![0; 4096];
                let managed = ways.hidden || ways.unallocated;
                page[256] = 0x01 | u8::from(ways.formats) << 1 | u8::from(managed) << 3;
                page[296] = u8::from(self.lock().unallocated);
                page[328] = ways.sanitizes;
                page[524] = u8::from(ways.formats_crypto) << 2;
                put(data, &page);
            }
            (0x06, cns @ (0x02 | 0x10)) => {
                let mut page = vec![0; 4096];
                let state = self.lock();
                let listed = if cns == 0x02 { &state.namespaces[..1] } else { &state.namespaces[..] };
                for (index, number) in listed.iter().enumerate() {
                    page[index * 4..index * 4 + 4].copy_from_slice(&number.to_le_bytes());
                }
                put(data, &page);
            }
            (0x02, 0x81) if ways.sanitizes > 0 => {
                let (part, log) = self.progress();
                let mut page = vec![0; 32];
                page[..2].copy_from_slice(&part.unwrap_or(0xffff).to_le_bytes());
                page[2] = if part.is_some() { 2 } else { log };
                for estimate in [8, 12, 16] {
                    page[estimate..estimate + 4].copy_from_slice(&u32::MAX.to_le_bytes());
                }
                put(data, &page);
            }
            (0x0d, _) => {
                let mut state = self.lock();
                if ways.sealed || !ways.hidden {
                    return refused(NVME_NO);
                }
                state.namespaces.retain(|number| *number != command.namespace);
            }
            (0x80, _) if ways.formats && !ways.refuses && ways.opal < 2 => {
                let erase = command.cdw10 >> 9 & 0x7;
                assert_eq!(command.cdw10 & 0xf, 1, "the format is kept");
                if erase == 2 && !ways.formats_crypto {
                    return refused(Refusal::Nvme(0x002));
                }
                let mut state = self.lock();
                if state.sanitizing.is_some() {
                    return refused(Refusal::Nvme(0x01d));
                }
                if !ways.lies_formatting {
                    state.media.fill(if erase == 2 { 0x5c } else { 0 });
                }
            }
            (0x82, _) => {
                if let Data::In(room) = &mut data {
                    self.discovery(room);
                }
            }
            (0x84, _) => match command.cdw10 & 0x7 {
                1 => self.lock().log = 0,
                2 => self.begin(2, NVME_NO)?,
                3 => self.begin(3, NVME_NO)?,
                4 => self.begin(1, NVME_NO)?,
                _ => return refused(NVME_NO),
            },
            _ => return refused(NVME_NO),
        }
        Ok(0)
    }

    fn ata(&self, command: AtaCommand, mut data: Data<'_>) -> Result<Option<AtaAnswer>, CommandError> {
        if self.speaks() != Speaks::Ata || self.ways.silent {
            return refused(ATA_NO);
        }
        let ways = self.ways;
        let tells = matches!(data, Data::None) && !ways.mute;
        let sectors = |bytes: usize| (bytes / SECTOR) as u64;
        let given = |data: &Data<'_>| match data {
            Data::Out(bytes) => <[u8; 32]>::try_from(&bytes[2..34]).unwrap(),
            _ => panic!("without its password"),
        };
        let mut answer = AtaAnswer { status: 0x50, ..AtaAnswer::default() };
        let security = [0xf1, 0xf2, 0xf3, 0xf4, 0xf6].contains(&command.command);
        if security && (ways.frozen || !ways.formats) {
            return refused(ATA_NO);
        }
        match command.command {
            0xec => {
                let state = self.lock();
                let mut words = [0u16; 256];
                let visible = sectors(state.media.len());
                words[48] = 0x4001;
                words[59] = if ways.sanitizes == 0 { 0 } else { 0x1000 }
                    | u16::from(ways.sanitizes & 1) << 13
                    | u16::from(ways.sanitizes >> 2 & 1) << 14
                    | u16::from(ways.sanitizes >> 1 & 1) << 15;
                words[82] = 0x0400;
                words[83] = 0x4400;
                words[89] = 3;
                for word in 0..4 {
                    words[100 + word] = (visible >> (16 * word)) as u16;
                }
                if ways.formats {
                    words[128] = 1
                        | u16::from(state.password.is_some()) << 1
                        | u16::from(state.locked) << 2
                        | u16::from(ways.frozen) << 3
                        | u16::from(ways.formats_crypto) << 5;
                }
                let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
                put(data, &bytes);
            }
            0x27 => {
                let state = self.lock();
                let all = if ways.hidden {
                    sectors(state.media.len() + state.hidden.len())
                } else {
                    sectors(state.media.len())
                };
                answer.lba = all - 1;
            }
            0x37 => {
                let mut state = self.lock();
                if ways.sealed {
                    return refused(ATA_NO);
                }
                let hidden = std::mem::take(&mut state.hidden);
                state.media.extend(hidden);
                assert_eq!(command.lba + 1, sectors(state.media.len()));
            }
            0x5c => {
                if let Data::In(room) = &mut data {
                    self.discovery(room);
                }
            }
            0xb4 if ways.sanitizes > 0 => match (command.feature, command.lba) {
                (0, _) => {
                    if command.count & 1 == 1 {
                        self.lock().log = 0;
                    }
                    let (part, log) = self.progress();
                    if part.is_none() && log == 3 {
                        return refused(ATA_NO);
                    }
                    answer.lba = part.unwrap_or(0xffff).into();
                    answer.count = u16::from(part.is_some()) << 14 | u16::from(part.is_none() && log == 1) << 15;
                }
                (0x11, 0x4372_7970) => self.begin(1, ATA_NO)?,
                (0x12, 0x426b_4572) => self.begin(2, ATA_NO)?,
                (0x14, 0x4f57_0000_0000) => self.begin(3, ATA_NO)?,
                _ => return refused(ATA_NO),
            },
            0xf1 => {
                let mut state = self.lock();
                if state.password.is_some() || ways.refuses {
                    return refused(ATA_NO);
                }
                state.password = Some(given(&data));
            }
            0xf2 => {
                let mut state = self.lock();
                if state.password != Some(given(&data)) {
                    return refused(ATA_NO);
                }
                state.locked = false;
            }
            0xf3 => self.lock().prepared = true,
            0xf4 => {
                let mut state = self.lock();
                if !std::mem::take(&mut state.prepared) || state.password != Some(given(&data)) {
                    return refused(ATA_NO);
                }
                state.asked += 1;
                if self.reset_at == Some(state.asked) {
                    self.reset.cancel();
                    return Err(CommandError::Unanswered(io::Error::other("power is lost")));
                }
                if ways.fails {
                    return refused(ATA_NO);
                }
                if !ways.lies_formatting {
                    Self::blank(&mut state, 2);
                }
                (state.password, state.locked) = (None, false);
            }
            0xf6 => {
                let mut state = self.lock();
                // The machine is off: nothing reaches the drive.
                if self.reset.is_cancelled() || state.locked || state.password != Some(given(&data)) {
                    return refused(ATA_NO);
                }
                state.password = None;
            }
            _ => return refused(ATA_NO),
        }
        Ok(tells.then_some(answer))
    }

    fn scsi(&self, block: &[u8], mut data: Data<'_>, _: Duration) -> Result<(), CommandError> {
        if self.speaks() != Speaks::Scsi || self.ways.silent {
            return refused(SCSI_NO);
        }
        match block[0] {
            0x12 => put(data, &[0; 36]),
            0x03 => {
                let (part, log) = self.progress();
                let mut sense = [0; 18];
                sense[0] = 0x70;
                match part {
                    Some(part) => {
                        (sense[2], sense[12], sense[13], sense[15]) = (0x02, 0x04, 0x1b, 0x80);
                        sense[16..18].copy_from_slice(&part.to_be_bytes());
                    }
                    None if log == 3 => (sense[2], sense[12], sense[13]) = (0x03, 0x31, 0x03),
                    None => {}
                }
                put(data, &sense);
            }
            0xa3 => {
                let kind = [0, 3, 2, 1][usize::from(block[5])];
                put(data, &[0, if self.can(kind) { 3 } else { 1 }]);
            }
            0xa2 => {
                if let Data::In(room) = &mut data {
                    self.discovery(room);
                }
            }
            0x48 => match block[1] & 0x1f {
                0x1f => self.lock().log = 0,
                action @ 1..=3 => self.begin([0, 3, 2, 1][usize::from(action)], SCSI_NO)?,
                _ => return refused(SCSI_NO),
            },
            _ => return refused(SCSI_NO),
        }
        Ok(())
    }
}

/// Time that passes when somebody waits.
#[derive(Default)]
pub(super) struct SimulatedPace(AtomicU64);

impl Pace for SimulatedPace {
    fn now(&self) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + self.0.load(Ordering::Relaxed) as i64).unwrap()
    }

    fn elapsed(&self) -> Duration {
        Duration::from_secs(self.0.load(Ordering::Relaxed))
    }

    fn wait(&self, time: Duration) {
        self.0.fetch_add(time.as_secs(), Ordering::Relaxed);
    }

    fn during(&self, _: Duration, _: &Meter, act: &mut (dyn FnMut() + Send)) {
        self.wait(Duration::from_secs(60));
        act();
    }
}
