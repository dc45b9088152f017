//! The system's clock, for [`controller`](crate::controller).

use std::time::Instant;

use jiff::Timestamp;
use rackhand_common::time::{Clock, Mono, Now};

/// The machine's own clocks.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl Default for SystemClock {
    fn default() -> Self {
        Self { start: Instant::now() }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Now {
        Now { mono: Mono(self.start.elapsed()), wall: Timestamp::now() }
    }
}
