//! How many consoles are open, of whom and where.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use super::Error;

/// Consoles of one person or project, of one rack, and of all, at a time.
const PER_PERSON: usize = 8;
const PER_RACK: usize = 16;
const ALL: usize = 64;

/// Who has how many consoles open; clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Seats(Arc<Mutex<HashMap<String, usize>>>);

/// A place for a console; free again when this is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    seats: Seats,
    keys: [String; 3],
}

impl Seats {
    pub(super) fn take(&self, person: &str, rack: &str) -> Result<Seat, Error> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let keys = [format!("person {person}"), format!("rack {rack}"), "all".to_owned()];
        for (key, most) in keys.iter().zip([PER_PERSON, PER_RACK, ALL]) {
            if taken.get(key).is_some_and(|count| *count >= most) {
                let whose = key.split_once(' ').map_or("all of them", |(kind, _)| match kind {
                    "person" => "yours",
                    _ => "those of its rack",
                });
                return Err(Error::unavailable(format!(
                    "{most} consoles are open, {whose}, which is the most there can be: close others"
                )));
            }
        }
        for key in &keys {
            *taken.entry(key.clone()).or_default() += 1;
        }
        Ok(Seat { seats: self.clone(), keys })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.0.lock().unwrap_or_else(PoisonError::into_inner);
        for key in &self.keys {
            if let Some(count) = taken.get_mut(key) {
                *count -= 1;
                if *count == 0 {
                    taken.remove(key);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_by_person_by_rack_and_all_and_are_free_again() {
        let seats = Seats::default();
        let mut taken: Vec<_> = (0..PER_PERSON).map(|_| seats.take("ada", "r1").unwrap()).collect();
        let refused = |person: &str, rack: &str| seats.take(person, rack).is_err();
        assert!(refused("ada", "r2") && !refused("bob", "r1"));
        taken.extend((0..PER_RACK - PER_PERSON).map(|_| seats.take("bob", "r1").unwrap()));
        assert!(refused("eve", "r1") && !refused("eve", "r2"));
        drop(taken);
        assert!(!refused("ada", "r1") && seats.0.lock().unwrap().is_empty());
    }
}
