//! The installer's log: to the console for whoever watches it, and its last lines in memory
//! for the report of a failure.

use std::{
    collections::VecDeque,
    io::{self, Write},
    sync::{Arc, Mutex, PoisonError},
};

use tracing_subscriber::fmt::MakeWriter;

/// How many lines are remembered.
const LINES: usize = 100;

/// The last lines of the log. A writer for `tracing_subscriber`; clones share the lines.
#[derive(Clone, Debug, Default)]
pub struct Log {
    lines: Arc<Mutex<VecDeque<String>>>,
}

impl Log {
    /// The last lines, as many as fit into `max` bytes.
    pub fn tail(&self, max: usize) -> String {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let mut room = max;
        let kept = lines.iter().rev().take_while(|line| {
            let fits = line.len() <= room;
            room = room.saturating_sub(line.len());
            fits
        });
        let mut kept: Vec<_> = kept.map(String::as_str).collect();
        kept.reverse();
        kept.concat()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == LINES {
            lines.pop_front();
        }
        lines.push_back(String::from_utf8_lossy(bytes).into_owned());
        drop(lines);
        // A console that cannot be written to is no reason to stop.
        let _ = io::stderr().write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_lines_that_fit_are_told() {
        let mut log = Log::default();
        for number in 0..300 {
            // A line comes in one piece, as `tracing_subscriber` writes it.
            log.write_all(format!("{number}\n").as_bytes()).unwrap();
        }
        assert_eq!(log.tail(12), "297\n298\n299\n");
        assert_eq!(log.tail(1 << 20).lines().next(), Some("200"));
    }
}
