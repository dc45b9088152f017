//! Which BMCs were found, and what of that is told: a core.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use jiff::Timestamp;
use rackhand_common::{
    bmc::{Found, MAX_FOUND},
    event::What,
};
use serde::{Deserialize, Serialize};

/// How often what is known is told again: a telling that was lost leaves nothing wrong for ever.
const RESTATE: Duration = Duration::from_secs(3600);

/// After so many sweeps without an answer a BMC is gone: one that restarts is silent for some minutes.
const GONE: u32 = 3;

/// The BMCs that were found, by their addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Remembered(BTreeMap<IpAddr, Memory>);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Memory {
    found: Found,
    told: Timestamp,
    missed: u32,
}

impl Remembered {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What was written down; nothing when it cannot be read.
    pub(super) fn of_json(bytes: &[u8]) -> Self {
        serde_json::from_slice(bytes).unwrap_or_else(|error| {
            tracing::warn!(%error, "what was found of BMCs before cannot be used: it is looked for anew");
            Self::default()
        })
    }

    pub(super) fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).expect("what was found always serializes")
    }

    /// Takes over who answered of those who were asked; what is to be told of that.
    pub(super) fn swept(&mut self, now: Timestamp, asked: &BTreeSet<IpAddr>, answers: Vec<Found>) -> Vec<What> {
        let mut told = self.missed(asked, &answers);
        told.extend(self.answered(now, answers));
        told
    }

    fn missed(&mut self, asked: &BTreeSet<IpAddr>, answers: &[Found]) -> Vec<What> {
        let mut told = Vec::new();
        let answered: BTreeSet<_> = answers.iter().map(|found| found.address).collect();
        self.0.retain(|address, memory| {
            memory.missed = if answered.contains(address) { 0 } else { memory.missed.saturating_add(1) };
            // Whoever is not asked any more is not waited for.
            let is_gone = memory.missed >= GONE || !asked.contains(address);
            if is_gone {
                told.push(What::BmcGone { address: *address });
            }
            !is_gone
        });
        told
    }

    /// Takes over who answered, apart from a sweep; what is to be told of that.
    pub(super) fn answered(&mut self, now: Timestamp, answers: Vec<Found>) -> Vec<What> {
        let mut told = Vec::new();
        for answer in answers {
            let known = self.0.get(&answer.address);
            let found = known.map_or_else(|| answer.clone(), |known| known.found.and_now(&answer));
            // By a clock that may have been put back.
            let is_old = |known: &Memory| now.duration_since(known.told).unsigned_abs() >= RESTATE;
            if known.is_some_and(|known| known.found == found && !is_old(known)) {
                continue;
            }
            if known.is_none() && self.0.len() >= MAX_FOUND {
                tracing::warn!(address = %answer.address, "there are more BMCs than are kept: this one is left out");
                continue;
            }
            self.0.insert(found.address, Memory { found: found.clone(), told: now, missed: 0 });
            told.push(What::BmcFound(Box::new(found)));
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    /// Sweeps of three addresses: each line is a minute and, for each that answers, its last number
    /// and what it speaks.
    fn check(script: &str, expected: Expect) {
        let asked: BTreeSet<IpAddr> = (1..=3).map(|last| IpAddr::from([10, 0, 0, last])).collect();
        let (mut remembered, mut printed) = (Remembered::default(), String::new());
        for line in script.lines() {
            let mut words = line.split(' ');
            let minute: i64 = words.next().unwrap().parse().unwrap();
            let answers = words.map(|word| {
                let (last, spoken) = word.split_at(1);
                let has = |letter, port| spoken.contains(letter).then_some(port);
                let address = IpAddr::from([10, 0, 0, last.parse().unwrap()]);
                Found { ipmi: has('i', 623), redfish: has('r', 443), ..Found::at(address) }
            });
            let now = Timestamp::from_second(minute * 60).unwrap();
            for what in remembered.swept(now, &asked, answers.collect()) {
                printed += &format!("{minute}: {what}\n");
            }
            let again = Remembered::of_json(&remembered.to_json());
            assert_eq!(again, remembered);
        }
        expected.assert_eq(&printed);
    }

    #[test]
    fn what_is_new_is_told_and_what_is_silent_for_three_sweeps_is_gone() {
        check(
            "0 1i\n10 1i 2r\n20 1ir 2r\n30 1r\n40 1i\n50 1i\n60 1i\n90 1i 2r\n100",
            expect![[r#"
                0: a BMC answers at 10.0.0.1 in IPMI
                10: a BMC answers at 10.0.0.2 in Redfish
                20: a BMC answers at 10.0.0.1 in Redfish and IPMI
                50: no BMC answers at 10.0.0.2 any more
                90: a BMC answers at 10.0.0.1 in Redfish and IPMI
                90: a BMC answers at 10.0.0.2 in Redfish
            "#]],
        );
    }

    #[test]
    fn whoever_is_not_asked_any_more_is_gone() {
        let (address, now) = (IpAddr::from([10, 0, 0, 1]), Timestamp::UNIX_EPOCH);
        let mut remembered = Remembered::default();
        let found = Found { ipmi: Some(623), ..Found::at(address) };
        remembered.swept(now, &BTreeSet::from([address]), vec![found]);
        assert_eq!(remembered.swept(now, &BTreeSet::new(), Vec::new()), [What::BmcGone { address }]);
        assert!(remembered.is_empty());
    }
}
