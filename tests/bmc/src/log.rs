//! The system event log (IPMI 2.0 §31, §32).
//!
//! Invariants:
//! - Record ids rise and are not used twice until the log is cleared.
//! - A reservation ends when a record is added, the log is cleared, or another is made (§31.4.2).

use jiff::{SignedDuration, Timestamp};

use crate::sensor::{Event, Health, state_name, threshold_name};

/// How many records fit; what comes after is lost, and the log says so.
pub const CAPACITY: usize = 512;

/// The log.
#[derive(Clone, Debug)]
pub struct Log {
    /// Records, oldest first.
    records: Vec<Record>,
    last: u16,
    reservation: u16,
    is_reserved: bool,
    /// Whether a record was lost for want of room.
    pub has_overflowed: bool,
    /// When a record was last added, by the log's clock.
    pub added: Option<u32>,
    /// When the log was last cleared, by its clock.
    pub cleared: Option<u32>,
    /// How far the log's clock is ahead of the true time.
    pub ahead: SignedDuration,
}

/// One record, as it is on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record(pub [u8; 16]);

impl Default for Log {
    fn default() -> Self {
        Self {
            records: Vec::new(),
            last: 0,
            reservation: 0,
            is_reserved: false,
            has_overflowed: false,
            added: None,
            cleared: None,
            ahead: SignedDuration::ZERO,
        }
    }
}

impl Log {
    /// Its records, oldest first.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// Seconds since 1970 by the log's clock.
    pub fn time(&self, now: Timestamp) -> u32 {
        u32::try_from(now.as_second() + self.ahead.as_secs()).unwrap_or(u32::MAX)
    }

    /// Sets the log's clock.
    pub fn set_time(&mut self, now: Timestamp, time: u32) {
        self.ahead = SignedDuration::from_secs(i64::from(time) - now.as_second());
    }

    /// Adds an event of a sensor.
    pub fn note(&mut self, now: Timestamp, event: Event) {
        let mut record = [0; 16];
        record[2] = 0x02;
        // The BMC itself, on LUN 0, by the event format of IPMI 2.0.
        record[7] = 0x20;
        record[9] = 0x04;
        record[10] = event.sensor_type;
        record[11] = event.number;
        record[12] = event.event_type | if event.is_over { 0x80 } else { 0 };
        record[13..].copy_from_slice(&event.data);
        self.add(now, record);
    }

    /// Adds a record; its id and, unless it is of a kind without, its time are given to it.
    pub fn add(&mut self, now: Timestamp, mut record: [u8; 16]) -> Option<u16> {
        self.is_reserved = false;
        if self.records.len() >= CAPACITY {
            self.has_overflowed = true;
            return None;
        }
        self.last += 1;
        record[..2].copy_from_slice(&self.last.to_le_bytes());
        let time = self.time(now);
        if record[2] < 0xe0 {
            record[3..7].copy_from_slice(&time.to_le_bytes());
        }
        self.records.push(Record(record));
        self.added = Some(time);
        Some(self.last)
    }

    /// A reservation, which is never 0.
    pub fn reserve(&mut self) -> u16 {
        self.reservation = self.reservation.checked_add(1).unwrap_or(1);
        self.is_reserved = true;
        self.reservation
    }

    /// Whether this reservation holds.
    pub fn is_reserved_by(&self, reservation: u16) -> bool {
        self.is_reserved && self.reservation == reservation
    }

    /// Empties it.
    pub fn clear(&mut self, now: Timestamp) {
        self.records.clear();
        self.last = 0;
        self.is_reserved = false;
        self.has_overflowed = false;
        self.cleared = Some(self.time(now));
    }

    /// Lets a reservation hold on after its own use.
    pub(crate) fn keep(&mut self, reservation: u16) {
        self.is_reserved = self.reservation == reservation;
    }

    /// Takes one record away.
    pub fn delete(&mut self, id: u16) -> bool {
        let before = self.records.len();
        self.records.retain(|record| record.id() != id);
        self.is_reserved = false;
        self.records.len() != before
    }

    /// The record of this id, 0 being the first and 0xFFFF the last, and the id of the next.
    pub fn get(&self, id: u16) -> Option<(Record, u16)> {
        let at = match id {
            0 => 0,
            0xffff => self.records.len().checked_sub(1)?,
            id => self.records.iter().position(|record| record.id() == id)?,
        };
        let record = *self.records.get(at)?;
        Some((record, self.records.get(at + 1).map_or(0xffff, Record::id)))
    }
}

impl Record {
    /// Its id.
    pub fn id(&self) -> u16 {
        u16::from_le_bytes([self.0[0], self.0[1]])
    }

    /// Seconds since 1970 by the log's clock, for the kinds that have a time.
    pub fn time(&self) -> Option<u32> {
        (self.0[2] < 0xe0).then(|| u32::from_le_bytes([self.0[3], self.0[4], self.0[5], self.0[6]]))
    }

    /// Whether it tells that something is over.
    pub fn is_over(&self) -> bool {
        self.0[12] & 0x80 != 0
    }

    /// What happened, in words.
    pub fn message(&self) -> String {
        let offset = self.0[13] & 0x0f;
        let what = match self.0[12] & 0x7f {
            0x01 => threshold_name(offset),
            0x6f => state_name(self.0[10], offset),
            _ => "Event",
        };
        format!("{what}{}", if self.is_over() { " (deasserted)" } else { "" })
    }

    /// How bad it is.
    pub fn health(&self) -> Health {
        let offset = self.0[13] & 0x0f;
        match (self.0[12] & 0x7f, offset) {
            _ if self.is_over() || self.0[2] != 2 => Health::Ok,
            (0x01, 0 | 7) => Health::Warning,
            (0x6f, 0) if matches!(self.0[10], 0x08 | 0x0d) => Health::Ok,
            (0x6f, 7) if self.0[10] == 0x07 => Health::Ok,
            (0x6f, 0 | 2 | 5) if matches!(self.0[10], 0x08 | 0x0c | 0x0d) => Health::Warning,
            (0x01 | 0x6f, _) => Health::Critical,
            _ => Health::Ok,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::constant(1_800_000_000, 0);

    #[test]
    fn a_record_added_ends_the_reservation() {
        let mut log = Log::default();
        let first = log.reserve();
        assert!(log.is_reserved_by(first));
        log.add(NOW, [2; 16]);
        assert!(!log.is_reserved_by(first));
        let second = log.reserve();
        log.reserve();
        assert!(!log.is_reserved_by(second));
    }

    #[test]
    fn a_full_log_loses_what_comes_and_says_so() {
        let mut log = Log::default();
        for _ in 0..CAPACITY {
            assert!(log.add(NOW, [2; 16]).is_some());
        }
        assert!(!log.has_overflowed);
        assert!(log.add(NOW, [2; 16]).is_none());
        assert!(log.has_overflowed);
        assert_eq!(log.get(0xffff).unwrap().0.id(), CAPACITY as u16);
    }

    #[test]
    fn the_clock_of_the_log_can_be_set() {
        let mut log = Log::default();
        log.set_time(NOW, 1000);
        log.add(NOW + SignedDuration::from_secs(5), [2; 16]);
        assert_eq!(log.records()[0].time(), Some(1005));
    }
}
