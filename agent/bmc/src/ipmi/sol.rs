//! Serial over LAN as bytes and numbers, without a session (IPMI 2.0 §15, §24, §26).
//!
//! Invariants:
//! - What the BMC printed is taken once and in order; what is typed arrives once, in order, as long as
//!   the BMC acknowledges.
//! - One packet of ours is on its way at a time, and is repeated until it is acknowledged or the line
//!   is given up.
//! - No more than [`TYPED`] and [`PRINTED`] bytes wait: what is printed beyond that is not acknowledged,
//!   and comes again.
//!
//! Deliberately not here: flow control by the console's modem lines, and alerts that share the port.

use std::{collections::VecDeque, time::Duration};

use rackhand_common::time::Mono;

use super::packet::{Malformed, Request};

/// How many typed bytes may wait to be sent.
pub const TYPED: usize = 4096;

/// How many printed bytes may wait to be taken.
pub const PRINTED: usize = 16 << 10;

/// The most characters in a packet of ours: as many as fit beside the header in the least that BMCs
/// take.
const LONGEST: usize = 200;

/// How many characters are sent at once to a BMC that tells no usable size.
const SHORT: usize = 32;

/// When a packet that was not acknowledged is sent again, and how often it is sent.
const RETRY: Duration = Duration::from_millis(400);
const TRIES: u8 = 12;

/// How often in a row the BMC may take nothing of what is typed before that is dropped.
const REFUSALS: u8 = 10;

/// So many numbers back a packet is one that came before (numbers go from 1 to 15 and around): a BMC
/// that gives a packet up leaves out one number or two, and not more.
const OLD: u8 = 12;

// The operation byte of a packet to the BMC, and the status byte of one from it (table 15-2).
const BREAK: u8 = 0x10;
const NACK: u8 = 0x40;
const UNAVAILABLE: u8 = 0x20;
const DEACTIVATED: u8 = 0x10;
const OVERRUN: u8 = 0x08;
const BREAK_SEEN: u8 = 0x04;

/// A packet of the BMC (table 15-2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Its number, 1 to 15; 0 when it only acknowledges.
    pub number: u8,
    /// The number of the packet of ours that it acknowledges; 0 for none.
    pub acknowledged: u8,
    /// How many characters of that were taken.
    pub accepted: u8,
    /// The line's state.
    pub status: u8,
    /// What was printed.
    pub characters: &'a [u8],
}

/// Takes a packet of the BMC apart.
pub fn packet(bytes: &[u8]) -> Result<Packet<'_>, Malformed> {
    let [number, acknowledged, accepted, status, characters @ ..] = bytes else {
        return Err(Malformed("a packet of serial over LAN that is cut short"));
    };
    let (number, acknowledged) = (number & 0x0f, acknowledged & 0x0f);
    Ok(Packet { number, acknowledged, accepted: *accepted, status: *status, characters })
}

/// The channel of a request about serial over LAN: the one it came by.
const CHANNEL: u8 = 0x0e;

/// Get SOL Configuration Parameters: whether it is enabled (§26.3).
pub fn is_enabled() -> Request {
    Request::new(0x0c, 0x22, &[CHANNEL, 0x01, 0, 0])
}

/// Reads the answer to [`is_enabled`].
pub fn read_is_enabled(data: &[u8]) -> Result<bool, Malformed> {
    match data {
        [_revision, enabled, ..] => Ok(enabled & 1 != 0),
        _ => Err(Malformed("a parameter that is cut short")),
    }
}

/// Set SOL Configuration Parameters: enables it (§26.2).
pub fn enable() -> Request {
    Request::new(0x0c, 0x21, &[CHANNEL, 0x01, 0x01])
}

/// Activate Payload: serial over LAN, encrypted and authenticated; alerts wait meanwhile (§24.1).
pub fn activate() -> Request {
    Request::new(0x06, 0x48, &[0x01, 0x01, 0xc0 | 0x04, 0, 0, 0])
}

/// Deactivate Payload: serial over LAN, of whoever has it (§24.2).
pub fn deactivate() -> Request {
    Request::new(0x06, 0x49, &[0x01, 0x01, 0, 0, 0, 0])
}

/// Get Payload Activation Status of serial over LAN (§24.4).
pub fn status() -> Request {
    Request::new(0x06, 0x4a, &[0x01])
}

/// Reads the answer to [`status`]: whether anybody has it.
pub fn read_status(data: &[u8]) -> Result<bool, Malformed> {
    match data {
        [_capacity, low, rest @ ..] => Ok(*low != 0 || rest.first().is_some_and(|high| *high != 0)),
        _ => Err(Malformed("a payload's status that is cut short")),
    }
}

/// What Activate Payload answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Activated {
    /// How many characters fit into a packet to the BMC.
    pub longest: usize,
    /// The UDP port that it is spoken to at.
    pub port: u16,
}

/// Reads the answer to [`activate`].
pub fn read_activated(data: &[u8]) -> Result<Activated, Malformed> {
    let [_, _, _, _, in_low, in_high, _, _, port_low, port_high, ..] = *data else {
        return Err(Malformed("an activation that is cut short"));
    };
    let size = usize::from(u16::from_le_bytes([in_low, in_high]));
    // Some BMCs tell nothing, or the bytes in the other order.
    let longest = if (8..=1024).contains(&size) { (size - 4).min(LONGEST) } else { SHORT };
    Ok(Activated { longest, port: u16::from_le_bytes([port_low, port_high]) })
}

/// What the BMC says of the line beside what is printed on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Noticed {
    /// Characters were lost between the machine and the BMC.
    Overrun,
    /// The machine sent a break.
    Break,
    /// What was typed was not taken, and is dropped: a machine that is off has nobody to type to.
    NotTaken,
}

/// The line between the machine and us, as packets.
#[derive(Debug)]
pub struct Line {
    longest: usize,
    typed: VecDeque<u8>,
    /// Whether a break is to be sent, after what was typed before.
    wants_break: bool,
    /// The number of our last packet.
    last: u8,
    pending: Option<Pending>,
    /// Nothing new is sent before: the BMC took less than it was sent.
    held: Option<Mono>,
    refusals: u8,
    /// The number of the BMC's last packet.
    heard: u8,
    printed: Vec<u8>,
    /// The number, and how many characters, of a packet to be acknowledged.
    acknowledge: Option<(u8, u8)>,
    noticed: VecDeque<Noticed>,
    end: Option<End>,
}

#[derive(Debug)]
struct Pending {
    number: u8,
    operation: u8,
    characters: Vec<u8>,
    sent: u8,
    again: Mono,
}

/// Why a line is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The BMC says so: somebody took the console, or switched it off.
    Deactivated,
    /// The BMC does not acknowledge.
    Silent,
}

impl Line {
    /// A line that was activated just now, to a BMC that takes so many characters at once.
    pub fn new(longest: usize) -> Self {
        Self {
            longest: longest.clamp(1, LONGEST),
            typed: VecDeque::new(),
            wants_break: false,
            last: 0,
            pending: None,
            held: None,
            refusals: 0,
            heard: 0,
            printed: Vec::new(),
            acknowledge: None,
            noticed: VecDeque::new(),
            end: None,
        }
    }

    /// Types these; how many of them found room.
    pub fn type_in(&mut self, characters: &[u8]) -> usize {
        let taken = characters.len().min(self.room());
        self.typed.extend(&characters[..taken]);
        taken
    }

    /// How many more bytes may be typed just now.
    pub fn room(&self) -> usize {
        TYPED.saturating_sub(self.typed.len())
    }

    /// Sends a break (§15.3), after what was typed before.
    pub fn send_break(&mut self) {
        self.wants_break = true;
    }

    /// What was printed since this was last asked.
    pub fn printed(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.printed)
    }

    /// What the BMC noticed. Taken once.
    pub fn noticed(&mut self) -> Option<Noticed> {
        self.noticed.pop_front()
    }

    /// Why it is over, if it is.
    pub fn end(&self) -> Option<End> {
        self.end
    }

    /// A packet of the BMC has come.
    pub fn receive(&mut self, now: Mono, bytes: &[u8]) -> Result<(), Malformed> {
        let packet = packet(bytes)?;
        if packet.status & DEACTIVATED != 0 {
            self.end = Some(End::Deactivated);
        }
        if packet.acknowledged != 0 {
            self.acknowledged(now, packet);
        }
        if packet.number == 0 {
            self.notice(packet.status);
            return Ok(());
        }
        let length =
            u8::try_from(packet.characters.len()).map_err(|_| Malformed("more characters than can be told"))?;
        match (self.heard + 15 - packet.number) % 15 {
            // It came before; its acknowledgement was lost.
            0 if self.heard != 0 => self.acknowledge = Some((packet.number, length)),
            // A late repetition of one before that.
            back if self.heard != 0 && back < OLD => {}
            // No room: it comes again.
            _ if self.printed.len() + packet.characters.len() > PRINTED => {}
            _ => {
                self.notice(packet.status);
                self.heard = packet.number;
                self.printed.extend(packet.characters);
                self.acknowledge = Some((packet.number, length));
            }
        }
        Ok(())
    }

    fn acknowledged(&mut self, now: Mono, packet: Packet<'_>) {
        let Some(pending) = self.pending.take_if(|pending| pending.number == packet.acknowledged) else { return };
        let accepted = usize::from(packet.accepted).min(pending.characters.len());
        let is_all = accepted == pending.characters.len();
        if is_all && packet.status & NACK == 0 {
            self.refusals = 0;
            return;
        }
        for character in pending.characters[accepted..].iter().rev() {
            self.typed.push_front(*character);
        }
        // A break that was refused is not asked for again: it would come at another moment.
        self.refusals = if accepted > 0 { 0 } else { self.refusals + 1 };
        self.held = Some(now.plus(RETRY));
        if self.refusals >= REFUSALS || (self.refusals > 0 && packet.status & UNAVAILABLE != 0) {
            self.refusals = 0;
            self.typed.clear();
            self.wants_break = false;
            self.tell(Noticed::NotTaken);
        }
    }

    fn notice(&mut self, status: u8) {
        if status & OVERRUN != 0 {
            self.tell(Noticed::Overrun);
        }
        if status & BREAK_SEEN != 0 {
            self.tell(Noticed::Break);
        }
    }

    fn tell(&mut self, noticed: Noticed) {
        // Each says the same of all that came since it was last asked.
        if !self.noticed.contains(&noticed) {
            self.noticed.push_back(noticed);
        }
    }

    /// A packet to send now, if there is one.
    pub fn transmit(&mut self, now: Mono) -> Option<Vec<u8>> {
        if let Some((number, count)) = self.acknowledge.take() {
            return Some(vec![0, number, count, 0]);
        }
        if self.end.is_some() {
            return None;
        }
        if let Some(pending) = &mut self.pending {
            if now < pending.again {
                return None;
            }
            if pending.sent >= TRIES {
                self.end = Some(End::Silent);
                return None;
            }
            pending.sent += 1;
            pending.again = now.plus(RETRY);
            return Some(pending.bytes());
        }
        if self.held.is_some_and(|held| now < held) {
            return None;
        }
        self.held = None;
        let (operation, characters) = if !self.typed.is_empty() {
            (0, self.typed.drain(..self.typed.len().min(self.longest)).collect())
        } else if std::mem::take(&mut self.wants_break) {
            (BREAK, Vec::new())
        } else {
            return None;
        };
        self.last = self.last % 15 + 1;
        let pending = Pending { number: self.last, operation, characters, sent: 1, again: now.plus(RETRY) };
        let bytes = pending.bytes();
        self.pending = Some(pending);
        Some(bytes)
    }

    /// When [`Self::transmit`] wants to be called though nothing came.
    pub fn timeout(&self) -> Option<Mono> {
        if self.end.is_some() {
            return None;
        }
        let held = self.held.filter(|_| !self.typed.is_empty() || self.wants_break);
        self.pending.as_ref().map(|pending| pending.again).or(held)
    }
}

impl Pending {
    fn bytes(&self) -> Vec<u8> {
        [&[self.number, 0, 0, self.operation][..], &self.characters].concat()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const NOW: Mono = Mono(Duration::ZERO);

    fn at(millis: u64) -> Mono {
        Mono(Duration::from_millis(millis))
    }

    #[test]
    fn what_is_typed_goes_one_packet_after_another_and_again_until_it_is_acknowledged() {
        let mut line = Line::new(4);
        assert_eq!(line.type_in(b"reboot"), 6);
        assert_eq!(line.transmit(NOW).unwrap(), b"\x01\0\0\0rebo");
        assert_eq!((line.transmit(NOW), line.timeout()), (None, Some(at(400))));
        assert_eq!(line.transmit(at(400)).unwrap(), b"\x01\0\0\0rebo");
        line.receive(at(401), &[0, 2, 4, 0]).unwrap();
        assert_eq!(line.transmit(at(401)), None, "another packet was acknowledged");
        line.receive(at(402), &[0, 1, 4, 0]).unwrap();
        assert_eq!(line.transmit(at(402)).unwrap(), b"\x02\0\0\0ot");
    }

    #[test]
    fn what_the_bmc_did_not_take_is_sent_in_the_next_packet_after_a_while() {
        let mut line = Line::new(200);
        line.type_in(b"abcdef");
        line.transmit(NOW).unwrap();
        line.receive(NOW, &[0, 1, 4, NACK]).unwrap();
        assert_eq!((line.transmit(NOW), line.timeout()), (None, Some(at(400))));
        assert_eq!(line.transmit(at(400)).unwrap(), b"\x02\0\0\0ef");
    }

    #[test]
    fn what_is_typed_to_a_machine_that_is_off_is_dropped_and_told() {
        let mut line = Line::new(200);
        line.type_in(b"abc");
        line.transmit(NOW).unwrap();
        line.receive(NOW, &[0, 1, 0, NACK | UNAVAILABLE]).unwrap();
        assert_eq!(line.noticed(), Some(Noticed::NotTaken));
        assert_eq!((line.transmit(at(9999)), line.noticed()), (None, None));
    }

    #[test]
    fn a_break_follows_what_was_typed_before() {
        let mut line = Line::new(200);
        line.type_in(b"x");
        line.send_break();
        assert_eq!(line.transmit(NOW).unwrap(), b"\x01\0\0\0x");
        line.receive(NOW, &[0, 1, 1, 0]).unwrap();
        assert_eq!(line.transmit(NOW).unwrap(), [2, 0, 0, BREAK]);
        line.receive(NOW, &[0, 2, 0, 0]).unwrap();
        assert_eq!((line.transmit(at(9999)), line.timeout()), (None, None));
    }

    #[test]
    fn what_is_printed_is_taken_once_and_acknowledged_each_time() {
        let mut line = Line::new(200);
        for _ in 0..2 {
            line.receive(NOW, b"\x05\0\0\0login: ").unwrap();
            assert_eq!(line.transmit(NOW).unwrap(), [0, 5, 7, 0]);
        }
        line.receive(NOW, b"\x06\0\0\x0croot").unwrap();
        line.receive(NOW, b"\x05\0\0\0login: ").unwrap();
        assert_eq!(line.printed(), b"login: root");
        assert_eq!((line.noticed(), line.noticed()), (Some(Noticed::Overrun), Some(Noticed::Break)));
    }

    #[test]
    fn what_there_is_no_room_for_is_not_acknowledged_and_comes_again() {
        let mut line = Line::new(200);
        let mut number = 0;
        let mut sent = 0;
        loop {
            number = number % 15 + 1;
            line.receive(NOW, &[&[number, 0, 0, 0][..], &[b'x'; 200]].concat()).unwrap();
            if line.transmit(NOW).is_none() {
                break;
            }
            sent += 200;
        }
        assert_eq!((sent, line.printed().len()), (PRINTED / 200 * 200, PRINTED / 200 * 200));
        line.receive(NOW, &[&[number, 0, 0, 0][..], &[b'x'; 200]].concat()).unwrap();
        assert_eq!(line.transmit(NOW).unwrap(), [0, number, 200, 0]);
    }

    #[test]
    fn a_line_that_was_deactivated_or_is_silent_is_over() {
        let mut line = Line::new(200);
        line.receive(NOW, &[0, 0, 0, DEACTIVATED]).unwrap();
        assert_eq!(line.end(), Some(End::Deactivated));
        let mut line = Line::new(200);
        line.type_in(b"x");
        let mut now = NOW;
        while line.end().is_none() {
            line.transmit(now);
            now = line.timeout().unwrap_or(now);
        }
        assert_eq!((line.end(), now), (Some(End::Silent), at(400 * u64::from(TRIES))));
    }

    #[test]
    fn sizes_that_cannot_be_right_are_not_believed() {
        let longest = |low, high| read_activated(&[0, 0, 0, 0, low, high, 0, 0, 0x6f, 2]).unwrap().longest;
        assert_eq!([longest(200, 0), longest(0, 0), longest(0, 200), longest(0xff, 0)], [196, SHORT, SHORT, 200]);
        assert!(read_activated(&[0; 9]).is_err());
    }

    /// A BMC's end of the line, which numbers, acknowledges and repeats as §15.11 says.
    #[derive(Default)]
    struct Far {
        to_print: VecDeque<u8>,
        got: Vec<u8>,
        last: u8,
        heard: u8,
        pending: Option<(Vec<u8>, Mono)>,
        /// Takes only so much of the packets it is sent; the rest is refused.
        takes: usize,
    }

    impl Far {
        fn receive(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
            let (number, acknowledged) = (bytes[0] & 15, bytes[1] & 15);
            self.pending.take_if(|(sent, _)| acknowledged != 0 && sent[0] == acknowledged);
            if number == 0 {
                return None;
            }
            let taken = bytes[4..].len().min(self.takes);
            let status = if taken < bytes[4..].len() { NACK } else { 0 };
            if std::mem::replace(&mut self.heard, number) != number {
                self.got.extend(&bytes[4..4 + taken]);
            }
            Some(vec![0, number, taken as u8, status])
        }

        fn transmit(&mut self, now: Mono) -> Option<Vec<u8>> {
            match &mut self.pending {
                Some((_, again)) if now < *again => None,
                Some((sent, again)) => {
                    *again = now.plus(Duration::from_millis(300));
                    Some(sent.clone())
                }
                None if self.to_print.is_empty() => None,
                None => {
                    self.last = self.last % 15 + 1;
                    let count = self.to_print.len().min(7);
                    let sent: Vec<u8> = [self.last, 0, 0, 0].into_iter().chain(self.to_print.drain(..count)).collect();
                    self.pending = Some((sent.clone(), now.plus(Duration::from_millis(300))));
                    Some(sent)
                }
            }
        }
    }

    #[derive(Clone, Copy, Debug)]
    enum Fate {
        Arrives,
        Lost,
        Doubled,
        Late,
    }

    fn fate() -> impl Strategy<Value = Fate> {
        prop_oneof![4 => Just(Fate::Arrives), 1 => Just(Fate::Lost), 1 => Just(Fate::Doubled), 1 => Just(Fate::Late)]
    }

    proptest! {
        /// Late is later than a repetition of it, by less than a round of numbers; of two
        /// copies of a datagram the session's own window lets one through, and so it is here.
        #[test]
        fn both_ways_every_byte_arrives_once_and_in_order(
            fates in prop::collection::vec(fate(), 0..120),
            typed in prop::collection::vec(any::<u8>(), 0..60),
            printed in prop::collection::vec(any::<u8>(), 0..80),
            takes in 1_usize..9,
        ) {
            let mut line = Line::new(6);
            let mut far = Far { to_print: printed.iter().copied().collect(), takes, ..Far::default() };
            prop_assert_eq!(line.type_in(&typed), typed.len());
            let mut under_way: BTreeMap<(Mono, usize), (bool, Vec<u8>)> = BTreeMap::new();
            let (mut now, mut sent, mut shown) = (NOW, 0, Vec::new());
            for _ in 0..20_000 {
                let mut out = Vec::new();
                while let Some(packet) = line.transmit(now) { out.push((true, packet)); }
                while let Some(packet) = far.transmit(now) { out.push((false, packet)); }
                for (for_far, packet) in out {
                    let late = match fates.get(sent).copied().unwrap_or(Fate::Arrives) {
                        Fate::Lost => { sent += 1; continue; }
                        Fate::Arrives | Fate::Doubled => 1,
                        Fate::Late => 304,
                    };
                    // What the far end has is not our concern: only its packets to us are late.
                    let late = if for_far { 1 } else { late };
                    sent += 1;
                    under_way.insert((now.plus(Duration::from_millis(late)), sent), (for_far, packet));
                }
                shown.extend(line.printed());
                if under_way.is_empty() && line.timeout().is_none() && far.pending.is_none() && far.to_print.is_empty() {
                    break;
                }
                let next = under_way.keys().next().map(|(at, _)| *at);
                let far_again = far.pending.as_ref().map(|(_, again)| *again);
                now = [next, line.timeout(), far_again].into_iter().flatten().min().unwrap().max(now);
                if let Some(entry) = under_way.first_entry() && entry.key().0 <= now {
                    let (for_far, packet) = entry.remove();
                    if for_far {
                        if let Some(answer) = far.receive(&packet) {
                            let lost = matches!(fates.get(sent), Some(Fate::Lost));
                            sent += 1;
                            if !lost {
                                under_way.insert((now.plus(Duration::from_millis(1)), sent), (false, answer));
                            }
                        }
                    } else {
                        line.receive(now, &packet).unwrap();
                    }
                }
            }
            prop_assert_eq!(line.end(), None);
            prop_assert_eq!(shown, printed);
            prop_assert_eq!(far.got, typed);
        }

        #[test]
        fn no_bytes_make_a_line_panic_or_grow(packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..200)) {
            let mut line = Line::new(200);
            line.type_in(&[b'x'; 5000]);
            let mut now = NOW;
            for packet in packets {
                let _ = line.receive(now, &packet);
                let _ = line.transmit(now);
                now = now.plus(Duration::from_millis(130));
                prop_assert!(line.printed.len() <= PRINTED && line.typed.len() <= TYPED + LONGEST && line.noticed.len() <= 3);
            }
        }
    }
}
