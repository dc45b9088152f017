//! What is typed at a terminal whose keys go to a machine: with the escapes of `ssh` for what is meant
//! for us.
//!
//! Invariant: an escape counts at the beginning of a line only; `~~` there types one `~`.

/// What to print for `~?`; lines end as a raw terminal needs it.
pub const HELP: &str = "\r\n\
    [rackhand: at the beginning of a line]\r\n\
    \x20 ~.  leave\r\n\
    \x20 ~w  take the keyboard, whoever has it\r\n\
    \x20 ~g  give it up\r\n\
    \x20 ~B  send a break\r\n\
    \x20 ~~  type ~\r\n\
    \x20 ~?  this\r\n";

/// What a key means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// Type these.
    Type(Vec<u8>),
    /// Leave.
    Leave,
    /// Take the keyboard.
    Take,
    /// Give it up.
    Give,
    /// Send a break.
    Break,
    /// Tell what there is.
    Help,
}

/// Finds escapes in what is typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Escapes {
    /// At the beginning of a line.
    Fresh,
    /// Behind a `~` there.
    Tilde,
    /// Elsewhere.
    Within,
    /// None are looked for: what is typed comes from a file.
    Off,
}

impl Escapes {
    /// What these bytes mean.
    pub fn read(&mut self, bytes: &[u8]) -> Vec<Key> {
        let mut keys = Vec::new();
        let mut typed = Vec::new();
        if *self == Self::Off {
            return vec![Key::Type(bytes.to_vec())];
        }
        for byte in bytes {
            let key = match (*self, byte) {
                (Self::Fresh, b'~') => {
                    *self = Self::Tilde;
                    continue;
                }
                (Self::Tilde, b'.') => Some(Key::Leave),
                (Self::Tilde, b'w') => Some(Key::Take),
                (Self::Tilde, b'g') => Some(Key::Give),
                (Self::Tilde, b'B') => Some(Key::Break),
                (Self::Tilde, b'?') => Some(Key::Help),
                (Self::Tilde, b'~') => {
                    typed.push(b'~');
                    *self = Self::Within;
                    None
                }
                (state, byte) => {
                    if state == Self::Tilde {
                        typed.push(b'~');
                    }
                    typed.push(*byte);
                    *self = if matches!(byte, b'\r' | b'\n') { Self::Fresh } else { Self::Within };
                    None
                }
            };
            if let Some(key) = key {
                *self = Self::Fresh;
                if !typed.is_empty() {
                    keys.push(Key::Type(std::mem::take(&mut typed)));
                }
                keys.push(key);
            }
        }
        if !typed.is_empty() {
            keys.push(Key::Type(typed));
        }
        keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(text: &str) -> Key {
        Key::Type(text.as_bytes().to_vec())
    }

    #[test]
    fn escapes_count_at_the_beginning_of_a_line_only() {
        let mut escapes = Escapes::Fresh;
        assert_eq!(escapes.read(b"ls ~/x\r~?"), [typed("ls ~/x\r"), Key::Help]);
        assert_eq!(escapes.read(b"~w~B~g"), [Key::Take, Key::Break, Key::Give]);
        assert_eq!(escapes.read(b"~"), []);
        assert_eq!(escapes.read(b"~a\r~x~.\r"), [typed("~a\r~x~.\r")]);
        assert_eq!(escapes.read(b"~.rest"), [Key::Leave, typed("rest")]);
        assert_eq!(Escapes::Off.read(b"~."), [typed("~.")]);
    }
}
