//! What a console printed lately, which each watcher reads at a pace of its own.
//!
//! Invariants:
//! - No more than [`KEPT`] bytes are kept, whoever is slow.
//! - A reader gets every byte once and in order, or is told how many it lost.

use std::collections::VecDeque;

/// How many bytes are kept of what was printed.
pub(super) const KEPT: usize = 1 << 20;

/// The latest bytes, numbered from the first there ever was.
#[derive(Debug, Default)]
pub(super) struct Scrollback {
    bytes: VecDeque<u8>,
    /// The number of the byte that comes next.
    end: u64,
}

/// What a reader finds.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// So many bytes are gone.
    Lost(u64),
    /// These are next.
    Bytes(Vec<u8>),
    /// Nothing new.
    Nothing,
}

impl Scrollback {
    /// The number of the oldest byte kept.
    pub(super) fn start(&self) -> u64 {
        self.end - self.bytes.len() as u64
    }

    /// The number of the byte that is printed next.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// This was printed.
    pub(super) fn print(&mut self, bytes: &[u8]) {
        self.end += bytes.len() as u64;
        let bytes = &bytes[bytes.len().saturating_sub(KEPT)..];
        let over = (self.bytes.len() + bytes.len()).saturating_sub(KEPT);
        self.bytes.drain(..over);
        self.bytes.extend(bytes);
    }

    /// What comes at this number, at most so many bytes; the reader's number moves on.
    pub(super) fn read(&self, at: &mut u64, most: usize) -> Read {
        let start = self.start();
        if *at < start {
            let lost = start - *at;
            *at = start;
            return Read::Lost(lost);
        }
        let skip = usize::try_from(*at - start).expect("within what is kept");
        let bytes: Vec<u8> = self.bytes.iter().skip(skip).take(most).copied().collect();
        if bytes.is_empty() {
            return Read::Nothing;
        }
        *at += bytes.len() as u64;
        Read::Bytes(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_gets_all_in_order_and_one_that_was_too_slow_is_told_what_it_lost() {
        let mut scrollback = Scrollback::default();
        scrollback.print(b"hello");
        let (mut quick, mut slow) = (0, 0);
        assert_eq!(scrollback.read(&mut quick, 3), Read::Bytes(b"hel".to_vec()));
        assert_eq!(scrollback.read(&mut quick, 3), Read::Bytes(b"lo".to_vec()));
        assert_eq!(scrollback.read(&mut quick, 3), Read::Nothing);
        scrollback.print(&vec![b'x'; KEPT]);
        assert_eq!(scrollback.read(&mut slow, 3), Read::Lost(5));
        assert_eq!(scrollback.read(&mut slow, 3), Read::Bytes(b"xxx".to_vec()));
        assert_eq!(scrollback.read(&mut quick, 1), Read::Bytes(b"x".to_vec()));
        scrollback.print(&vec![b'y'; 3 * KEPT]);
        assert_eq!((scrollback.bytes.len(), scrollback.start()), (KEPT, 5 + 3 * KEPT as u64));
    }
}
