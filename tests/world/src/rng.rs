//! The one source of chance: SplitMix64 (Steele, Lea, Flood 2014). What is drawn depends on the
//! seed and the order of drawing alone.

use std::time::Duration;

/// A generator.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The generator of this seed; `stream` tells those of one seed apart.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut rng = Self(seed ^ stream.wrapping_mul(0xd134_2543_de82_ef95));
        rng.draw();
        rng
    }

    /// The next number of it.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.draw() % bound
    }

    /// True in `percent` of a hundred cases.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// A time between the two, in milliseconds.
    pub fn between(&mut self, least: Duration, most: Duration) -> Duration {
        let span = (most.saturating_sub(least).as_millis() as u64).max(1);
        least + Duration::from_millis(self.below(span))
    }

    /// A time between the two, each length of it as likely as its double.
    pub fn spread(&mut self, least: Duration, most: Duration) -> Duration {
        let (least, most) = ((least.as_millis() as u64).max(1), (most.as_millis() as u64).max(2));
        let doublings = (most / least).max(1).ilog2() as u64 + 1;
        let base = least << self.below(doublings);
        Duration::from_millis((base + self.below(base)).min(most))
    }

    /// One of them.
    pub fn choose<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        if from.is_empty() { None } else { from.get(self.below(from.len() as u64) as usize) }
    }
}
