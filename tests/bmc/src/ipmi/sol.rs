//! Serial over LAN (IPMI 2.0 §15): what a machine prints goes to a console in numbered packets,
//! each acknowledged before the next; what is typed there goes to the machine.

use std::collections::VecDeque;

use jiff::{SignedDuration, Timestamp};

/// When a packet that was not acknowledged is sent again, and how often.
const RETRY: SignedDuration = SignedDuration::from_millis(200);
const RETRIES: u8 = 7;

/// The most characters in one packet, as told when the payload is activated.
const LONGEST: usize = 200;

/// How much printed text may wait; a console that is slower slows the machine's line down.
pub(crate) const ROOM: usize = 4096;

/// A packet that says that the console is deactivated.
pub(crate) const DEACTIVATED: [u8; 4] = [0, 0, 0, 0x10];

/// NACK, among the bits of the fourth byte.
const NACK: u8 = 0x40;

/// The serial line between a machine and one console.
#[derive(Debug, Default)]
pub(crate) struct Line {
    printed: VecDeque<u8>,
    last: u8,
    pending: Option<Pending>,
    heard: u8,
}

#[derive(Debug)]
struct Pending {
    sequence: u8,
    characters: Vec<u8>,
    due: Timestamp,
    tries: u8,
}

impl Line {
    /// The machine printed this.
    pub(crate) fn print(&mut self, characters: &[u8]) {
        self.printed.extend(characters);
    }

    /// Whether more may be printed.
    pub(crate) fn has_room(&self) -> bool {
        self.printed.len() < ROOM
    }

    /// A packet of the console: what was typed, and the packet that acknowledges it.
    pub(crate) fn receive(&mut self, packet: &[u8]) -> Option<(Vec<u8>, Option<Vec<u8>>)> {
        let [sequence, acknowledged, accepted, status, characters @ ..] = packet else { return None };
        let (sequence, acknowledged) = (sequence & 0x0f, acknowledged & 0x0f);
        if let Some(pending) = self.pending.take_if(|pending| acknowledged != 0 && pending.sequence == acknowledged) {
            let accepted = if status & NACK != 0 { usize::from(*accepted) } else { pending.characters.len() };
            for character in pending.characters.iter().skip(accepted).rev() {
                self.printed.push_front(*character);
            }
        }
        if sequence == 0 {
            return Some((Vec::new(), None));
        }
        let answer = vec![0, sequence, characters.len() as u8, 0];
        // The same number again is a packet whose acknowledgement was lost.
        let is_new = std::mem::replace(&mut self.heard, sequence) != sequence;
        Some((if is_new { characters.to_vec() } else { Vec::new() }, Some(answer)))
    }

    /// What to send now, if anything.
    pub(crate) fn transmit(&mut self, now: Timestamp) -> Option<Vec<u8>> {
        if self.pending.as_ref().is_some_and(|pending| pending.due <= now && pending.tries >= RETRIES) {
            self.pending = None;
        }
        match &mut self.pending {
            Some(pending) if pending.due > now => return None,
            Some(pending) => {
                pending.tries += 1;
                pending.due = now + RETRY;
            }
            None if self.printed.is_empty() => return None,
            None => {
                self.last = self.last % 15 + 1;
                let characters = self.printed.drain(..self.printed.len().min(LONGEST)).collect();
                self.pending = Some(Pending { sequence: self.last, characters, due: now + RETRY, tries: 0 });
            }
        }
        let pending = self.pending.as_ref()?;
        Some([&[pending.sequence, 0, 0, 0], &pending.characters[..]].concat())
    }

    /// When there is something to send again.
    pub(crate) fn timeout(&self) -> Option<Timestamp> {
        self.pending.as_ref().map(|pending| pending.due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::constant(1_800_000_000, 0);

    #[test]
    fn one_packet_is_on_its_way_until_it_is_acknowledged() {
        let mut line = Line::default();
        line.print(b"login: ");
        assert_eq!(line.transmit(NOW).unwrap(), b"\x01\0\0\0login: ");
        line.print(b"more");
        assert_eq!(line.transmit(NOW), None);
        assert_eq!(line.transmit(NOW + RETRY).unwrap(), b"\x01\0\0\0login: ");
        line.receive(&[0, 1, 7, 0]).unwrap();
        assert_eq!(line.transmit(NOW + RETRY).unwrap(), b"\x02\0\0\0more");
    }

    #[test]
    fn what_is_typed_is_taken_once() {
        let mut line = Line::default();
        assert_eq!(line.receive(b"\x01\0\0\0root").unwrap(), (b"root".to_vec(), Some(vec![0, 1, 4, 0])));
        assert_eq!(line.receive(b"\x01\0\0\0root").unwrap(), (Vec::new(), Some(vec![0, 1, 4, 0])));
        assert_eq!(line.receive(&[1]), None);
    }

    #[test]
    fn what_a_console_had_no_room_for_comes_again() {
        let mut line = Line::default();
        line.print(b"abcdef");
        line.transmit(NOW).unwrap();
        line.receive(&[0, 1, 4, NACK]).unwrap();
        assert_eq!(line.transmit(NOW).unwrap(), b"\x02\0\0\0ef");
    }
}
