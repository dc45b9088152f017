//! The terminal of somebody who watches a machine's console: what is typed there goes to the machine, but
//! for the escapes of `ssh`, which are meant for us; and what is said there of who types.
//!
//! Invariants:
//! - An escape counts at the beginning of a line only; `~~` there types one `~`.
//! - What we say ourselves is one line, and has no control characters in it.

use crate::wire::ToConsole;

/// What to print for `~?`; lines end as a raw terminal needs it.
const HELP: &str = "\r\n\
    [rackhand: at the beginning of a line]\r\n\
    \x20 ~.  leave\r\n\
    \x20 ~w  take the keyboard, whoever has it\r\n\
    \x20 ~g  give it up\r\n\
    \x20 ~B  send a break\r\n\
    \x20 ~~  type ~\r\n\
    \x20 ~?  this\r\n";

/// The same behind OpenSSH, which keeps the escapes that it has itself (`~.`, `~B`, `~?`), makes `~~` one
/// `~`, and passes on the others.
const HELP_BEHIND_SSH: &str = "\r\n\
    [rackhand: at the beginning of a line; ssh keeps some for itself, and makes ~~ one ~]\r\n\
    \x20 ~.   leave\r\n\
    \x20 ~w   take the keyboard, whoever has it\r\n\
    \x20 ~g   give it up\r\n\
    \x20 ~~B  send a break\r\n\
    \x20 ~~~  type ~\r\n\
    \x20 ~~?  this\r\n";

/// Where what is typed comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    /// A keyboard.
    Keyboard,
    /// A keyboard whose keys an `ssh` has seen before us.
    BehindSsh,
    /// A file: nothing in it is meant for us.
    File,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Say this to the console.
    Say(ToConsole),
    /// Show this here, as it is.
    Show(String),
    /// Leave.
    Leave,
}

/// The terminal of one who watches.
#[derive(Clone, Debug)]
pub struct Terminal {
    keys: Keys,
    escapes: Escapes,
    /// Nothing is typed.
    only_watches: bool,
    /// Who has the keyboard.
    writer: Option<String>,
    is_mine: bool,
}

impl Terminal {
    /// One whose keys come from there; one that only watches types nothing.
    pub fn new(keys: Keys, only_watches: bool) -> Self {
        let escapes = if keys == Keys::File { Escapes::Off } else { Escapes::Fresh };
        Self { keys, escapes, only_watches, writer: None, is_mine: false }
    }

    /// What to show first.
    pub fn greeting(&self) -> Option<String> {
        match self.keys {
            Keys::Keyboard => Some(notice("at the beginning of a line: ~. leaves, ~? tells more")),
            Keys::BehindSsh => Some(notice("at the beginning of a line: ~. leaves, ~~? tells more")),
            Keys::File => None,
        }
    }

    /// Somebody else, or nobody, has the keyboard now; what to show of that.
    pub fn writer(&mut self, who: Option<String>, is_mine: bool) -> Option<String> {
        let shown = match &who {
            _ if is_mine => (!self.is_mine).then(|| notice("you have the keyboard")),
            Some(_) if who == self.writer => None,
            Some(who) => Some(has_it(who)),
            None => None,
        };
        (self.writer, self.is_mine) = (who, is_mine);
        shown
    }

    /// These bytes were typed.
    pub fn typed(&mut self, bytes: &[u8]) -> Vec<Act> {
        let mut acts = Vec::new();
        for key in self.escapes.read(bytes) {
            acts.push(match (key, &self.writer) {
                (Key::Leave, _) => Act::Leave,
                (Key::Help, _) if self.keys == Keys::BehindSsh => Act::Show(HELP_BEHIND_SSH.to_owned()),
                (Key::Help, _) => Act::Show(HELP.to_owned()),
                _ if self.only_watches => continue,
                (Key::Type(_), Some(who)) if !self.is_mine => Act::Show(has_it(who)),
                (Key::Type(bytes), _) => Act::Say(ToConsole::Typed(bytes)),
                (Key::Take, _) => Act::Say(ToConsole::Take),
                (Key::Give, _) => Act::Say(ToConsole::Give),
                (Key::Break, _) => Act::Say(ToConsole::Break),
            });
        }
        acts
    }
}

fn has_it(who: &str) -> String {
    notice(&format!("{who} has the keyboard; ~w takes it"))
}

/// A line of our own between what the machine prints. In a raw terminal a line begins with a carriage
/// return.
pub fn notice(words: &str) -> String {
    let words: String = words.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect();
    format!("\r\n[rackhand: {words}]\r\n")
}

/// What a key means.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Key {
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
enum Escapes {
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
    fn read(&mut self, bytes: &[u8]) -> Vec<Key> {
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

    #[test]
    fn who_has_not_the_keyboard_is_told_who_has_and_types_nothing() {
        let mut terminal = Terminal::new(Keys::Keyboard, false);
        let say = |text: &str| Act::Say(ToConsole::Typed(text.as_bytes().to_vec()));
        assert_eq!(terminal.writer(None, false), None);
        assert_eq!(terminal.typed(b"ls\r"), [say("ls\r")]);
        assert_eq!(terminal.writer(Some("ada".into()), true).unwrap(), "\r\n[rackhand: you have the keyboard]\r\n");
        assert_eq!(terminal.writer(Some("ada".into()), true), None);
        let bob = "\r\n[rackhand: bob [2J has the keyboard; ~w takes it]\r\n".to_owned();
        assert_eq!(terminal.writer(Some("bob\x1b[2J".into()), false).as_ref(), Some(&bob));
        assert_eq!(terminal.writer(Some("bob\x1b[2J".into()), false), None);
        assert_eq!(terminal.typed(b"rm"), [Act::Show(bob)]);
        assert_eq!(terminal.typed(b"\r~w").pop(), Some(Act::Say(ToConsole::Take)));
        assert_eq!(terminal.writer(None, false), None);
        assert_eq!(terminal.typed(b"~B~g~."), [Act::Say(ToConsole::Break), Act::Say(ToConsole::Give), Act::Leave]);
    }

    #[test]
    fn who_only_watches_types_nothing_and_gets_help_as_their_keys_reach_us() {
        let mut terminal = Terminal::new(Keys::BehindSsh, true);
        assert_eq!(terminal.typed(b"ls\r~w~g~B~?~."), [Act::Show(HELP_BEHIND_SSH.into()), Act::Leave]);
        assert_eq!(Terminal::new(Keys::Keyboard, true).typed(b"~?"), [Act::Show(HELP.into())]);
        assert!(terminal.greeting().unwrap().contains("~~? tells more"));
        let mut file = Terminal::new(Keys::File, false);
        assert_eq!(file.greeting(), None);
        assert_eq!(file.typed(b"~."), [Act::Say(ToConsole::Typed(b"~.".to_vec()))]);
    }
}
