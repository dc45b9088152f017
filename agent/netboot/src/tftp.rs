//! TFTP reads (RFC 1350, 2347, 2348, 2349) of one file by one client, without sockets.
//!
//! A [`Transfer`] yields what to send by [`Transfer::transmit`], takes what arrived by
//! [`Transfer::handle`], and names its next deadline by [`Transfer::timeout`].
//!
//! Invariants:
//! - Every transfer ends: each packet is repeated a bounded number of times, and the whole has
//!   a deadline.
//! - One packet leaves for each that arrives or is overdue, never more: a forged request
//!   amplifies nothing.
//! - A duplicate acknowledgement sends nothing (no Sorcerer's Apprentice).
//! - Only options that were asked for and understood are acknowledged, `blksize` never above
//!   what was asked or fits an Ethernet frame: ROMs drop fragments.
//!
//! Not here: writing, netascii, windows (RFC 7440), multicast.

use std::{sync::Arc, time::Duration};

use rackhand_common::time::{Mono, Now};

/// A read request that makes sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The file's name as it is looked up: no directories, lower case.
    pub file: String,
    /// Longest block the client takes.
    block_size: Option<u16>,
    /// Seconds until it wants a packet repeated.
    timeout: Option<u8>,
    /// Whether it asked for the file's size.
    size: bool,
}

/// Why a request is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Not a request at all: no answer.
    #[error("not a request")]
    NotARequest,
    /// It wants to write.
    #[error("writing is not possible here")]
    Write,
    /// No mode, or not `octet`.
    #[error("only octet mode is served")]
    Mode,
    /// The request is too long, or a text in it does not end.
    #[error("malformed request")]
    Malformed,
    /// No such file.
    #[error("no such file")]
    NotFound,
    /// This client has too many transfers already.
    #[error("too many transfers at once")]
    Busy,
}

impl Refused {
    /// The error packet that says so, if one may be sent.
    pub fn packet(self) -> Option<Vec<u8>> {
        let code = match self {
            Self::NotARequest => return None,
            Self::NotFound => 1,
            Self::Write => 2,
            Self::Mode | Self::Malformed => 4,
            Self::Busy => 0,
        };
        Some(error(code, &self.to_string()))
    }
}

impl Request {
    /// Reads a datagram that came to the server's port.
    pub fn parse(bytes: &[u8]) -> Result<Self, Refused> {
        let (opcode, rest) = bytes.split_first_chunk().ok_or(Refused::NotARequest)?;
        match u16::from_be_bytes(*opcode) {
            RRQ => {}
            WRQ => return Err(Refused::Write),
            _ => return Err(Refused::NotARequest),
        }
        // RFC 2347 allows no longer request.
        if bytes.len() > 512 {
            return Err(Refused::Malformed);
        }
        let mut texts = rest.split(|byte| *byte == 0).collect::<Vec<_>>();
        // What follows the last zero is padding; a text that does not end is no text.
        texts.pop();
        let mut texts = texts.into_iter();
        let file = name(texts.next().ok_or(Refused::Malformed)?).ok_or(Refused::NotFound)?;
        if !texts.next().ok_or(Refused::Mode)?.eq_ignore_ascii_case(b"octet") {
            return Err(Refused::Mode);
        }
        let mut request = Self { file, block_size: None, timeout: None, size: false };
        while let (Some(option), Some(value)) = (texts.next(), texts.next()) {
            let number = std::str::from_utf8(value).ok().and_then(|digits| digits.parse::<u32>().ok());
            let Some(number) = number else { continue };
            if option.eq_ignore_ascii_case(b"blksize") {
                request.block_size = u16::try_from(number).ok().filter(|size| (8..=65464).contains(size));
            } else if option.eq_ignore_ascii_case(b"timeout") {
                // A longer one would only make a dead transfer last; the option may be ignored.
                request.timeout = u8::try_from(number).ok().filter(|seconds| (1..=30).contains(seconds));
            } else if option.eq_ignore_ascii_case(b"tsize") {
                request.size = true;
            }
        }
        Ok(request)
    }
}

/// The last part of a path, in lower case. Firmware pads names with 0xFF, and writes `\`,
/// `//` and its own idea of a directory; files here have none, so nothing can be climbed.
fn name(path: &[u8]) -> Option<String> {
    let end = path.iter().rposition(|byte| *byte != 0xff)? + 1;
    let path = std::str::from_utf8(&path[..end]).ok()?;
    let parts: Vec<_> = path.split(['/', '\\']).filter(|part| !part.is_empty()).collect();
    match parts[..] {
        [file] if file != "." && file != ".." => Some(file.to_ascii_lowercase()),
        _ => None,
    }
}

/// One file on its way to one client.
#[derive(Debug)]
pub struct Transfer {
    content: Arc<[u8]>,
    block_size: usize,
    wait: Duration,
    /// The option acknowledgement, while it is what the client has to answer.
    options: Option<Vec<u8>>,
    /// The block the client has to acknowledge, from 1; 0 for the options.
    block: u64,
    tries: u32,
    due: bool,
    repeat_at: Mono,
    end_at: Mono,
    ended: Option<Ended>,
}

/// How a transfer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The client has the whole file, as far as we can know: it acknowledged the last block,
    /// or was sent it as often as we repeat.
    Done,
    /// The client stopped answering.
    Lost,
    /// The client broke it off: normal after it asked for the size only.
    Aborted {
        /// Its error code.
        code: u16,
    },
}

impl Transfer {
    /// Starts sending `content`.
    pub fn new(now: Now, request: &Request, content: Arc<[u8]>) -> Self {
        let block_size = request.block_size.map(|size| size.min(LARGEST_BLOCK));
        let mut options = vec![0, OACK];
        for (name, value) in [
            ("blksize", block_size.map(u64::from)),
            ("timeout", request.timeout.map(u64::from)),
            ("tsize", request.size.then_some(content.len() as u64)),
        ] {
            if let Some(value) = value {
                options.extend_from_slice(format!("{name}\0{value}\0").as_bytes());
            }
        }
        let options = (options.len() > 2).then_some(options);
        let wait = request.timeout.map_or(WAIT, |seconds| Duration::from_secs(seconds.into()));
        Self {
            content,
            block_size: usize::from(block_size.unwrap_or(512)),
            wait,
            block: if options.is_some() { 0 } else { 1 },
            options,
            tries: 0,
            due: true,
            repeat_at: now.mono.plus(wait),
            end_at: now.mono.plus(LONGEST),
            ended: None,
        }
    }

    /// What to send now, if anything.
    pub fn transmit(&mut self) -> Option<Vec<u8>> {
        if !std::mem::take(&mut self.due) || self.ended.is_some() {
            return None;
        }
        if let Some(options) = &self.options {
            return Some(options.clone());
        }
        let data = self.data();
        let mut packet = Vec::with_capacity(4 + data.len());
        packet.extend_from_slice(&[0, DATA]);
        packet.extend_from_slice(&self.wire_block().to_be_bytes());
        packet.extend_from_slice(data);
        Some(packet)
    }

    /// Takes a datagram from the client. Whatever makes no sense here is ignored.
    pub fn handle(&mut self, now: Now, packet: &[u8]) {
        let Some((&[0, opcode, high, low], _)) = packet.split_first_chunk() else { return };
        let number = u16::from_be_bytes([high, low]);
        match opcode {
            _ if self.ended.is_some() => {}
            ACK if number == self.wire_block() => self.acknowledged(now.mono),
            ERROR => self.ended = Some(Ended::Aborted { code: number }),
            _ => {}
        }
    }

    /// When [`Self::handle_timeout`] wants to be called; `None` once it ended.
    pub fn timeout(&self) -> Option<Mono> {
        self.ended.is_none().then_some(self.repeat_at.min(self.end_at))
    }

    /// Repeats what was not answered, or gives up.
    pub fn handle_timeout(&mut self, now: Now) {
        if self.ended.is_some() || now.mono < self.repeat_at.min(self.end_at) {
            return;
        }
        self.tries += 1;
        if self.tries >= TRIES || now.mono >= self.end_at {
            // The acknowledgement of the last block is often lost: the client has started the file.
            self.ended = Some(if self.is_last() && self.tries >= TRIES { Ended::Done } else { Ended::Lost });
            return;
        }
        self.due = true;
        self.repeat_at = now.mono.plus(self.wait);
    }

    /// How it ended, once it has.
    pub fn ended(&self) -> Option<&Ended> {
        self.ended.as_ref()
    }

    fn acknowledged(&mut self, now: Mono) {
        if self.is_last() {
            self.ended = Some(Ended::Done);
            return;
        }
        self.options = None;
        self.block += 1;
        self.tries = 0;
        self.due = true;
        self.repeat_at = now.plus(self.wait);
    }

    /// The block's number as sent, which goes on with 0 after 65535.
    fn wire_block(&self) -> u16 {
        (self.block & 0xffff) as u16
    }

    fn data(&self) -> &[u8] {
        let start = (self.block.saturating_sub(1) as usize).saturating_mul(self.block_size).min(self.content.len());
        &self.content[start..self.content.len().min(start + self.block_size)]
    }

    /// A block shorter than the others, possibly empty, ends the file.
    fn is_last(&self) -> bool {
        self.options.is_none() && self.data().len() < self.block_size
    }
}

/// An error packet.
fn error(code: u16, text: &str) -> Vec<u8> {
    [&[0, ERROR][..], &code.to_be_bytes(), text.as_bytes(), &[0]].concat()
}

const RRQ: u16 = 1;
const WRQ: u16 = 2;
const DATA: u8 = 3;
const ACK: u8 = 4;
const ERROR: u8 = 5;
const OACK: u8 = 6;

/// An Ethernet frame's 1500 bytes less IP, UDP and TFTP headers: 32 bytes.
const LARGEST_BLOCK: u16 = 1468;

/// Until a packet is repeated, unless the client says otherwise.
const WAIT: Duration = Duration::from_secs(1);

/// How often a packet is sent.
const TRIES: u32 = 6;

/// How long a loader may take: at one block a second nobody would wait for it.
const LONGEST: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use jiff::Timestamp;
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> Now {
        Now { mono: Mono(Duration::from_secs(seconds)), wall: Timestamp::UNIX_EPOCH }
    }

    fn request(text: &str) -> Result<Request, Refused> {
        let mut bytes = vec![0, 1];
        bytes.extend(text.replace(' ', "\0").bytes());
        bytes.push(0);
        Request::parse(&bytes)
    }

    fn show(packet: &[u8]) -> String {
        match packet[1] {
            DATA => format!("data {} of {} bytes", u16::from_be_bytes([packet[2], packet[3]]), packet.len() - 4),
            OACK => format!("oack {}", String::from_utf8_lossy(&packet[2..]).replace('\0', " ").trim_end()),
            _ => format!("{packet:?}"),
        }
    }

    /// Line by line: seconds, then `ack N`, `error N` or `wait`; what the transfer sends is printed.
    fn check(options: &str, size: usize, script: &str, expect: Expect) {
        let request = request(&format!("f octet {options}")).unwrap();
        let mut transfer = Transfer::new(at(0), &request, vec![7; size].into());
        let mut out = String::new();
        let mut print = |time: &str, transfer: &mut Transfer| {
            while let Some(packet) = transfer.transmit() {
                out.push_str(&format!("{time}: {}\n", show(&packet)));
            }
            if let Some(ended) = transfer.ended() {
                out.push_str(&format!("{time}: {ended:?}\n"));
            }
        };
        print("0s", &mut transfer);
        for line in script.lines() {
            let words: Vec<_> = line.split_whitespace().collect();
            let now = at(words[0].trim_end_matches('s').parse().unwrap());
            let number = words.get(2).map_or(0, |n| n.parse::<u16>().unwrap()).to_be_bytes();
            match words[1] {
                "ack" => transfer.handle(now, &[0, ACK, number[0], number[1]]),
                "error" => transfer.handle(now, &[0, ERROR, number[0], number[1], 0]),
                "wait" => transfer.handle_timeout(now),
                other => panic!("{other}"),
            }
            print(words[0], &mut transfer);
        }
        expect.assert_eq(&out);
    }

    #[test]
    fn only_understood_options_are_acknowledged_and_blocks_fit_a_frame() {
        check(
            "tsize 0 blksize 9000 windowsize 4",
            3000,
            "0s ack 0\n0s ack 1\n0s ack 2\n0s ack 3",
            expect![[r#"
            0s: oack blksize 1468 tsize 3000
            0s: data 1 of 1468 bytes
            0s: data 2 of 1468 bytes
            0s: data 3 of 64 bytes
            0s: Done
        "#]],
        );
    }

    #[test]
    fn a_file_of_whole_blocks_ends_with_an_empty_one() {
        check(
            "",
            1024,
            "0s ack 1\n0s ack 2\n0s ack 3",
            expect![[r#"
            0s: data 1 of 512 bytes
            0s: data 2 of 512 bytes
            0s: data 3 of 0 bytes
            0s: Done
        "#]],
        );
    }

    #[test]
    fn a_duplicate_acknowledgement_sends_nothing() {
        check(
            "",
            1500,
            "0s ack 1\n0s ack 1\n0s ack 7\n0s ack 2",
            expect![[r#"
            0s: data 1 of 512 bytes
            0s: data 2 of 512 bytes
            0s: data 3 of 476 bytes
        "#]],
        );
    }

    #[test]
    fn an_unanswered_block_is_repeated_and_then_given_up() {
        check(
            "timeout 2",
            600,
            "2s wait\n3s ack 0\n5s wait\n7s wait\n9s wait\n11s wait\n13s wait\n15s wait",
            expect![[r#"
                0s: oack timeout 2
                2s: oack timeout 2
                3s: data 1 of 512 bytes
                5s: data 1 of 512 bytes
                7s: data 1 of 512 bytes
                9s: data 1 of 512 bytes
                11s: data 1 of 512 bytes
                13s: data 1 of 512 bytes
                15s: Lost
            "#]],
        );
    }

    #[test]
    fn a_lost_final_acknowledgement_counts_as_done() {
        check(
            "",
            10,
            "1s wait\n2s wait\n3s wait\n4s wait\n5s wait\n6s wait",
            expect![[r#"
            0s: data 1 of 10 bytes
            1s: data 1 of 10 bytes
            2s: data 1 of 10 bytes
            3s: data 1 of 10 bytes
            4s: data 1 of 10 bytes
            5s: data 1 of 10 bytes
            6s: Done
        "#]],
        );
    }

    #[test]
    fn a_client_that_wanted_only_the_size_breaks_off() {
        check(
            "tsize 0",
            10,
            "0s error 8",
            expect![[r#"
            0s: oack tsize 10
            0s: Aborted { code: 8 }
        "#]],
        );
    }

    #[test]
    fn block_numbers_go_on_after_the_last() {
        let request = request("f octet blksize 8").unwrap();
        let mut transfer = Transfer::new(at(0), &request, vec![7; 8 * 65_537 + 1].into());
        let mut packets = 0;
        let mut number = [0, 0];
        while let Some(packet) = transfer.transmit() {
            packets += 1;
            number = if packet[1] == OACK { [0, 0] } else { [packet[2], packet[3]] };
            transfer.handle(at(0), &[0, ACK, number[0], number[1]]);
        }
        assert_eq!((packets, number, transfer.ended()), (1 + 65_538, [0, 2], Some(&Ended::Done)));
    }

    #[test]
    fn names_have_no_directories_to_climb() {
        let file = |name: &[u8]| Request::parse(&[&[0, 1], name, b"\0octet\0"].concat()).map(|request| request.file);
        for good in [&b"snponly.efi"[..], b"SNPONLY.EFI", b"/snponly.efi", b"\\\\snponly.efi", b"//snponly.efi\xff"] {
            assert_eq!(file(good).as_deref(), Ok("snponly.efi"));
        }
        for bad in [&b"../snponly.efi"[..], b"..\\x", b"/etc/passwd", b"", b"..", b"/", b"\xff\xff", b"\xc3\x28"] {
            assert_eq!(file(bad), Err(Refused::NotFound), "{bad:?}");
        }
        assert_eq!(file(b"%2e%2e%2fx").as_deref(), Ok("%2e%2e%2fx"), "never decoded");
    }

    #[test]
    fn what_is_not_a_read_in_octet_mode_is_refused() {
        assert_eq!(Request::parse(b"\0\x02f\0octet\0"), Err(Refused::Write));
        assert_eq!(Request::parse(b"\0\x01f\0"), Err(Refused::Mode));
        assert_eq!(Request::parse(b"\0\x01f\0netascii\0"), Err(Refused::Mode));
        assert_eq!(Request::parse(b"\0\x01f"), Err(Refused::Malformed));
        assert_eq!(Request::parse(&[&b"\0\x01"[..], &[b'f'; 600], b"\0octet\0"].concat()), Err(Refused::Malformed));
        assert_eq!(Request::parse(b"\0\x04\0\x01"), Err(Refused::NotARequest));
        assert_eq!(Refused::NotARequest.packet(), None);
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_parser(bytes in proptest::collection::vec(any::<u8>(), 0..700)) {
            let _ = Request::parse(&bytes);
        }

        #[test]
        fn every_transfer_ends(
            size in 0usize..5000,
            block in proptest::option::of(8u16..2000),
            events in proptest::collection::vec((any::<bool>(), 0u8..3, any::<u16>()), 0..200),
        ) {
            let options = block.map(|block| format!("blksize {block}")).unwrap_or_default();
            let request = request(&format!("f octet {options}")).unwrap();
            let mut transfer = Transfer::new(at(0), &request, vec![7; size].into());
            let mut now = Mono::default();
            for (current, kind, number) in events {
                let sent = transfer.transmit();
                prop_assert!(transfer.transmit().is_none(), "one packet at a time");
                let wire = if current { transfer.wire_block() } else { number };
                let [high, low] = wire.to_be_bytes();
                let when = Now { mono: now, wall: Timestamp::UNIX_EPOCH };
                match kind {
                    0 => transfer.handle(when, &[0, ACK, high, low]),
                    1 => transfer.handle(when, &[0, DATA, high]),
                    _ => if let Some(next) = transfer.timeout() {
                        now = next;
                        transfer.handle_timeout(Now { mono: now, wall: Timestamp::UNIX_EPOCH });
                    }
                }
                prop_assert!(sent.is_none_or(|packet| packet.len() <= 4 + 1468));
            }
            for _ in 0..TRIES + 1 {
                if let Some(next) = transfer.timeout() {
                    transfer.handle_timeout(Now { mono: next, wall: Timestamp::UNIX_EPOCH });
                }
            }
            prop_assert!(transfer.ended().is_some());
        }
    }
}
