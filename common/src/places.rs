//! Places for connections, bounded in number: whose is given to a newcomer when none is free.
//!
//! Invariants:
//! - One address has at most so many places, all together so many.
//! - Beyond its own bound an address loses its oldest place. Beyond the bound of all, the one of
//!   strangers that has the most loses its oldest, and only without any stranger one of those
//!   that are known: whoever opens connections by the hundred, or from hundreds of addresses,
//!   takes places from itself and its like.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
};

/// Who has a place. `T` is how its connection is told that it lost it.
#[derive(Debug)]
pub struct Places<T> {
    all: usize,
    each: usize,
    taken: HashMap<IpAddr, Held<T>>,
    count: usize,
    next: u64,
}

/// The places of one address, the oldest first.
#[derive(Debug)]
struct Held<T> {
    known: bool,
    places: VecDeque<(u64, T)>,
}

impl<T> Places<T> {
    /// `all` places, of which one address has at most `each`.
    pub fn new(all: usize, each: usize) -> Self {
        Self { all, each, taken: HashMap::new(), count: 0, next: 0 }
    }

    /// A place for one more, by its number, and what was told of the place that it had to take
    /// from another. `known` says whether its address is that of somebody we serve.
    pub fn take(&mut self, address: IpAddr, known: bool, told: T) -> (u64, Option<T>) {
        let lost = if self.taken.get(&address).is_some_and(|held| held.places.len() >= self.each) {
            self.take_away(address)
        } else if self.count >= self.all {
            let most = self.taken.iter().max_by_key(|(_, held)| (!held.known, held.places.len()));
            most.map(|(address, _)| *address).and_then(|most| self.take_away(most))
        } else {
            None
        };
        let number = self.next;
        self.next += 1;
        self.count += 1;
        let held = self.taken.entry(address).or_insert_with(|| Held { known, places: VecDeque::new() });
        held.known = known;
        held.places.push_back((number, told));
        (number, lost)
    }

    fn take_away(&mut self, address: IpAddr) -> Option<T> {
        let number = self.taken.get(&address)?.places.front()?.0;
        self.leave(address, number)
    }

    /// A connection ended. One that lost its place has none to give back.
    pub fn leave(&mut self, address: IpAddr, number: u64) -> Option<T> {
        let held = self.taken.get_mut(&address)?;
        let at = held.places.iter().position(|(held, _)| *held == number);
        let left = at.and_then(|at| held.places.remove(at)).map(|(_, told)| told);
        self.count -= usize::from(left.is_some());
        if held.places.is_empty() {
            self.taken.remove(&address);
        }
        left
    }

    /// How many places are taken.
    pub fn taken(&self) -> usize {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: usize = 256;
    const EACH: usize = 8;

    fn address(number: usize) -> IpAddr {
        IpAddr::from([10, 0, (number >> 8) as u8, number as u8])
    }

    #[test]
    fn whoever_has_the_most_connections_loses_the_oldest_of_them() {
        let mut places = Places::new(ALL, EACH);
        places.take(address(0), false, 0);
        for number in 1..=EACH {
            assert_eq!(places.take(address(1), false, number).1, None);
        }
        assert_eq!(places.take(address(1), false, 99).1, Some(1), "beyond its own bound it loses its own oldest");
        for number in 0..ALL * 2 {
            let (_, lost) = places.take(address(2 + number % 40), false, 1000 + number);
            assert_ne!(lost, Some(0), "a machine with one connection keeps it");
        }
        assert_eq!(places.taken(), ALL);
    }

    /// More strange addresses than there are places, with one connection each.
    #[test]
    fn those_that_are_known_keep_their_places_whatever_strangers_do() {
        let mut places = Places::new(ALL, EACH);
        for machine in 0..20 {
            for connection in 0..3 {
                places.take(address(machine), true, (machine, connection));
            }
        }
        for stranger in 0..ALL * 4 {
            let (_, lost) = places.take(address(1000 + stranger), false, (1000 + stranger, 0));
            assert!(lost.is_none_or(|(whose, _)| whose >= 1000), "{lost:?} lost its place to a stranger");
        }
        let (_, lost) = places.take(address(20), true, (20, 0));
        assert!(lost.is_some_and(|(whose, _)| whose >= 1000), "a machine that comes late takes a stranger's place");
        assert_eq!(places.taken(), ALL);
    }

    #[test]
    fn a_place_comes_back_once_however_a_connection_ends() {
        let mut places = Places::new(ALL, EACH);
        let held: Vec<_> = (0..EACH + 3).map(|_| places.take(address(1), false, ()).0).collect();
        assert_eq!(places.taken(), EACH);
        for number in held {
            places.leave(address(1), number);
        }
        assert_eq!(places.taken(), 0);
        assert!(places.taken.is_empty());
    }
}
