//! Keys out of the bytes that a terminal sends for them (ECMA-48, and what xterm made of it).
//!
//! A lone escape is the key of that name once nothing has come behind it for a moment: its sequences begin with
//! the same byte, and may arrive in pieces.

/// The longest sequence that is waited for, in bytes; a longer one is no key of ours.
const LONGEST: usize = 16;

/// A key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    /// A letter, digit or sign.
    Letter(char),
    Enter,
    Escape,
    Tab,
    Backspace,
    Up,
    Down,
    Left,
    Right,
    PageUp,
    PageDown,
    Home,
    End,
    /// Ctrl-C.
    Interrupt,
    /// Ctrl-L.
    Refresh,
}

/// Reads what comes, a byte at a time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Keyboard {
    /// The beginning of a sequence or of a letter in UTF-8.
    begun: Vec<u8>,
}

impl Keyboard {
    /// Takes a byte; the keys that are whole with it.
    pub(crate) fn take(&mut self, byte: u8) -> Vec<Key> {
        match self.begun.as_slice() {
            [] if byte == 0x1b || byte >= 0x80 => {
                self.begun.push(byte);
                Vec::new()
            }
            [] => single(byte).into_iter().collect(),
            [0x1b] if matches!(byte, b'[' | b'O') => {
                self.begun.push(byte);
                Vec::new()
            }
            [0x1b] => {
                self.begun.clear();
                let mut keys = vec![Key::Escape];
                keys.extend(self.take(byte));
                keys
            }
            [0x1b, _, parameters @ ..] if matches!(byte, 0x40..=0x7e) => {
                let key = sequence(parameters, byte);
                self.begun.clear();
                key.into_iter().collect()
            }
            // No letter goes on with this: the one that was begun never ends.
            [first, ..] if *first != 0x1b && byte < 0x80 => {
                self.begun.clear();
                self.take(byte)
            }
            _ => {
                self.begun.push(byte);
                self.letter().into_iter().collect()
            }
        }
    }

    /// Nothing came for a moment: an escape was one.
    pub(crate) fn quiet(&mut self) -> Option<Key> {
        let was_escape = self.begun == [0x1b];
        self.begun.clear();
        was_escape.then_some(Key::Escape)
    }

    /// Whether the next byte may change what the last ones meant.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.begun.is_empty()
    }

    /// A letter of several bytes, if it is whole; what can become none is forgotten.
    fn letter(&mut self) -> Option<Key> {
        // A sequence is text, too, while it lasts.
        if self.begun[0] == 0x1b && self.begun.len() < LONGEST {
            return None;
        }
        let letter = match std::str::from_utf8(&self.begun) {
            Ok(text) => text.chars().next().filter(|letter| !letter.is_control()),
            Err(error) if error.error_len().is_none() => return None,
            Err(_) => None,
        };
        self.begun.clear();
        letter.map(Key::Letter)
    }
}

fn single(byte: u8) -> Option<Key> {
    match byte {
        0x03 => Some(Key::Interrupt),
        0x0c => Some(Key::Refresh),
        b'\t' => Some(Key::Tab),
        b'\r' | b'\n' => Some(Key::Enter),
        0x08 | 0x7f => Some(Key::Backspace),
        b' '..=b'~' => Some(Key::Letter(byte.into())),
        _ => None,
    }
}

/// What stands between the bracket and the last byte, and that byte.
fn sequence(parameters: &[u8], last: u8) -> Option<Key> {
    match (parameters, last) {
        (_, b'A') => Some(Key::Up),
        (_, b'B') => Some(Key::Down),
        (_, b'C') => Some(Key::Right),
        (_, b'D') => Some(Key::Left),
        (_, b'H') | (b"1" | b"7", b'~') => Some(Key::Home),
        (_, b'F') | (b"4" | b"8", b'~') => Some(Key::End),
        (b"5", b'~') => Some(Key::PageUp),
        (b"6", b'~') => Some(Key::PageDown),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keys(bytes: &[u8]) -> Vec<Key> {
        let mut keyboard = Keyboard::default();
        let mut keys: Vec<_> = bytes.iter().flat_map(|byte| keyboard.take(*byte)).collect();
        keys.extend(keyboard.quiet());
        keys
    }

    #[test]
    fn keys_are_known_by_what_terminals_send() {
        use Key::*;
        assert_eq!(keys(b"j\r\t\x7f\x03\x0c"), [Letter('j'), Enter, Tab, Backspace, Interrupt, Refresh]);
        assert_eq!(keys(b"\x1b[A\x1bOB\x1b[5~\x1b[6~\x1b[1~\x1b[F"), [Up, Down, PageUp, PageDown, Home, End]);
        assert_eq!(keys(b"\x1b[1;5C"), [Right]);
        assert_eq!(keys(b"\x1b"), [Escape]);
        assert_eq!(keys(b"\x1bq"), [Escape, Letter('q')]);
        assert_eq!(keys("ü€".as_bytes()), [Letter('ü'), Letter('€')]);
        // What is none of ours swallows nothing behind it.
        assert_eq!(keys(b"\x1b[15~q\xffq"), [Letter('q'), Letter('q')]);
    }

    proptest! {
        #[test]
        fn no_bytes_break_it(bytes in any::<Vec<u8>>()) {
            let mut keyboard = Keyboard::default();
            for byte in bytes {
                keyboard.take(byte);
                prop_assert!(keyboard.begun.len() <= LONGEST);
            }
        }
    }
}
