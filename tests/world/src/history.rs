//! What happened, as text. Ids are called by the order in which they were first seen, so that
//! one seed has one history byte for byte.

use std::{
    collections::HashMap,
    fmt::Write as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::time::Time;

/// The history; clones write the same one.
#[derive(Clone, Debug)]
pub struct History {
    time: Time,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    text: String,
    names: HashMap<String, String>,
    lines: u64,
}

/// Length of a UUID's text.
const ID: usize = 36;

impl History {
    /// An empty one.
    pub fn new(time: &Time) -> Self {
        Self { time: time.clone(), inner: Arc::default() }
    }

    /// Adds a line: `who` did or met `what`.
    pub fn say(&self, who: &str, what: impl AsRef<str>) {
        let mut inner = self.lock();
        let line = inner.rename(what.as_ref());
        let at = clock(self.time.passed());
        let _ = writeln!(inner.text, "{at}  {who:<10}  {line}");
        inner.lines += 1;
    }

    /// Has an id be called by this name.
    pub fn name(&self, id: impl ToString, name: &str) {
        self.lock().names.insert(id.to_string(), name.to_owned());
    }

    /// `text` with the ids in it called by their names.
    pub fn renamed(&self, text: &str) -> String {
        self.lock().rename(text)
    }

    /// All of it.
    pub fn text(&self) -> String {
        self.lock().text.clone()
    }

    /// How many lines.
    pub fn lines(&self) -> u64 {
        self.lock().lines
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn rename(&mut self, text: &str) -> String {
        if text.len() < ID {
            return text.to_owned();
        }
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            match rest.get(..ID).filter(|candidate| is_id(candidate)) {
                Some(id) => {
                    let known = self.names.len();
                    out += self.names.entry(id.to_owned()).or_insert_with(|| format!("#{known}"));
                    rest = &rest[ID..];
                }
                None => {
                    out.push(first);
                    rest = &rest[first.len_utf8()..];
                }
            }
        }
        out
    }
}

fn is_id(text: &str) -> bool {
    text.bytes().enumerate().all(|(index, byte)| match index {
        8 | 13 | 18 | 23 => byte == b'-',
        _ => byte.is_ascii_hexdigit(),
    })
}

/// Days, hours, minutes, seconds.
pub fn clock(passed: Duration) -> String {
    let (seconds, millis) = (passed.as_secs(), passed.subsec_millis());
    let (days, hours, minutes) = (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60);
    let days = if days == 0 { String::new() } else { format!("{days}d ") };
    format!("{days}{hours:02}:{minutes:02}:{:02}.{millis:03}", seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_called_by_their_order() {
        let history = History::new(&Time::default());
        let (a, b) = ("01970000-0000-7000-8000-000000000001", "01970000-0000-7000-8000-000000000002");
        history.name(a, "m1");
        history.say("r1", format!("{b} is not {a}, ä {b}"));
        assert_eq!(history.text(), "00:00:00.000  r1          #1 is not m1, ä #1\n");
    }
}
