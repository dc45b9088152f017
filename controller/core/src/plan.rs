//! Plans: classes of machines by what is in them. A plan asks for at least so much; a machine
//! matches when every rule is met, and what is not met is told rule by rule.
//!
//! Invariants:
//! - A disk or network card counts for one rule at most: two rules of two disks want four.
//! - A plan that was suggested from a machine matches it, and no longer when a disk or a network
//!   card is taken out of it.
//!
//! A rule names a network card's driver, which tells its family. Slots, links and speeds are what a
//! plan [expects](crate::expects) of its machines.

use std::{collections::BTreeMap, fmt};

use rackhand_common::machine::{Disk, Firmware, Inventory, Nic};
use serde::{Deserialize, Serialize};

use crate::expects::Expects;

/// What a machine must have. What is left out is not looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rules {
    /// How it boots.
    pub firmware: Option<Firmware>,
    /// Its maker, letters' case aside.
    pub vendor: Option<String>,
    /// Its model, letters' case aside.
    pub product: Option<String>,
    /// Words in its processor's model, letters' case aside.
    pub cpu: Option<String>,
    /// Logical processors, at least.
    pub threads: Option<u32>,
    /// Bytes of memory, at least.
    pub memory: Option<u64>,
    /// Disks, each for one of these.
    pub disks: Vec<DiskRule>,
    /// Network cards, each for one of these.
    pub nics: Vec<NicRule>,
    /// What each of its machines must have to be whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expects: Option<Expects>,
}

/// So many disks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskRule {
    /// How many, at least.
    pub count: u32,
    /// Of this kind.
    #[serde(default)]
    pub kind: Option<Kind>,
    /// Bytes of each, at least.
    #[serde(default)]
    pub size: Option<u64>,
}

/// So many network cards.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NicRule {
    /// How many, at least.
    pub count: u32,
    /// With this kernel driver, which tells the family of cards.
    #[serde(default)]
    pub driver: Option<String>,
}

/// Kinds of disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Flash on PCI Express.
    Nvme,
    /// Other flash, and disks of virtual machines.
    Ssd,
    /// A spinning disk.
    Hdd,
}

impl Kind {
    /// What kind of disk this is.
    pub fn of(disk: &Disk) -> Self {
        match disk {
            _ if disk.name.starts_with("nvme") => Self::Nvme,
            Disk { rotational: true, .. } => Self::Hdd,
            _ => Self::Ssd,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nvme => "NVMe",
            Self::Ssd => "SSD",
            Self::Hdd => "HDD",
        })
    }
}

/// A rule that is not met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Which: `memory`, `disks/0`.
    pub rule: String,
    /// What it wants.
    pub wanted: String,
    /// What the machine has.
    pub found: String,
}

impl Rules {
    /// What of this the machine does not meet; nothing when it matches.
    pub fn mismatches(&self, machine: &Inventory) -> Vec<Mismatch> {
        let mut all = Vec::new();
        let mut check = |rule: &str, met: bool, wanted: String, found: String| {
            if !met {
                all.push(Mismatch { rule: rule.into(), wanted, found });
            }
        };
        if let Some(firmware) = self.firmware {
            check("firmware", firmware == machine.firmware, firmware.to_string(), machine.firmware.to_string());
        }
        for (rule, wanted, found) in
            [("vendor", &self.vendor, &machine.system.vendor), ("product", &self.product, &machine.system.product)]
        {
            if let Some(wanted) = wanted {
                check(rule, wanted.trim().eq_ignore_ascii_case(found.trim()), wanted.clone(), found.clone());
            }
        }
        if let Some(cpu) = &self.cpu {
            let model = machine.cpu.model.to_lowercase();
            let met = cpu.to_lowercase().split_whitespace().all(|word| model.contains(word));
            check("cpu", met, cpu.clone(), machine.cpu.model.clone());
        }
        if let Some(threads) = self.threads {
            check("threads", machine.cpu.threads >= threads, threads.to_string(), machine.cpu.threads.to_string());
        }
        if let Some(memory) = self.memory {
            check("memory", machine.memory >= memory, memory.to_string(), machine.memory.to_string());
        }
        let sizes: Vec<_> = machine.disks.iter().map(|disk| format!("{} {}", Kind::of(disk), disk.size)).collect();
        for index in unmet(&self.disks, &machine.disks) {
            let wanted = self.disks[index].to_string();
            check(&format!("disks/{index}"), false, wanted, listed(&sizes));
        }
        let drivers: Vec<_> = machine.nics.iter().map(|nic| nic.driver.clone()).collect();
        for index in unmet(&self.nics, &machine.nics) {
            let wanted = self.nics[index].to_string();
            check(&format!("nics/{index}"), false, wanted, listed(&drivers));
        }
        all
    }

    /// Whether the machine is of the make that this names: firmware, maker, model and processor, which no
    /// part that is missing changes.
    pub fn names(&self, machine: &Inventory) -> bool {
        const MAKE: [&str; 4] = ["firmware", "vendor", "product", "cpu"];
        self.mismatches(machine).iter().all(|mismatch| !MAKE.contains(&mismatch.rule.as_str()))
    }

    /// A plan that the machine matches, and those that have at least as much of the same: sizes
    /// leave room for what makers call the same size and for what firmware takes of the memory.
    pub fn suggest(machine: &Inventory) -> Self {
        let told = |text: &str| Some(text.trim().to_owned()).filter(|text| !text.is_empty());
        let mut disks = BTreeMap::new();
        for disk in &machine.disks {
            *disks.entry((Kind::of(disk), rounded(disk.size))).or_insert(0) += 1;
        }
        let mut nics = BTreeMap::new();
        for nic in &machine.nics {
            *nics.entry(nic.driver.clone()).or_insert(0) += 1;
        }
        Self {
            firmware: Some(machine.firmware),
            vendor: told(&machine.system.vendor),
            product: told(&machine.system.product),
            cpu: told(&machine.cpu.model),
            threads: Some(machine.cpu.threads),
            memory: Some(rounded(machine.memory)),
            disks: disks
                .into_iter()
                .map(|((kind, size), count)| DiskRule { count, kind: Some(kind), size: Some(size) })
                .collect(),
            nics: nics.into_iter().map(|(driver, count)| NicRule { count, driver: told(&driver) }).collect(),
            expects: None,
        }
    }
}

/// A twentieth less, in whole GB where it has any.
fn rounded(size: u64) -> u64 {
    const GB: u64 = 1_000_000_000;
    let less = size - size / 20;
    if less >= GB { less - less % GB } else { less }
}

fn listed(found: &[String]) -> String {
    if found.is_empty() { "none".into() } else { found.join(", ") }
}

/// What a rule says of one thing.
trait Rule<T>: fmt::Display {
    fn count(&self) -> u32;
    fn takes(&self, thing: &T) -> bool;
}

impl Rule<Disk> for DiskRule {
    fn count(&self) -> u32 {
        self.count
    }

    fn takes(&self, disk: &Disk) -> bool {
        self.kind.is_none_or(|kind| kind == Kind::of(disk)) && self.size.is_none_or(|size| disk.size >= size)
    }
}

impl fmt::Display for DiskRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} disks", self.count)?;
        if let Some(kind) = self.kind {
            write!(f, ", {kind}")?;
        }
        self.size.map_or(Ok(()), |size| write!(f, ", {size} bytes each"))
    }
}

impl Rule<Nic> for NicRule {
    fn count(&self) -> u32 {
        self.count
    }

    fn takes(&self, nic: &Nic) -> bool {
        self.driver.as_ref().is_none_or(|driver| *driver == nic.driver)
    }
}

impl fmt::Display for NicRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} network cards", self.count)?;
        self.driver.as_ref().map_or(Ok(()), |driver| write!(f, " by {driver}"))
    }
}

/// The rules that do not get their number when each thing is for one rule: a bipartite matching,
/// by augmenting paths, with each rule as often on its side as it counts.
fn unmet<T, R: Rule<T>>(rules: &[R], things: &[T]) -> Vec<usize> {
    let mut taken: Vec<Option<usize>> = vec![None; things.len()];
    let mut left = Vec::new();
    for (index, rule) in rules.iter().enumerate() {
        // More than there is of anything is not met, whatever the number.
        let wanted = (rule.count() as usize).min(things.len() + 1);
        let all = (0..wanted).all(|_| place(index, rules, things, &mut taken, &mut vec![false; things.len()]));
        if !all {
            left.push(index);
        }
    }
    left
}

/// Finds one thing more for a rule, having another rule give one up where it can have another.
fn place<T, R: Rule<T>>(
    index: usize,
    rules: &[R],
    things: &[T],
    taken: &mut [Option<usize>],
    seen: &mut [bool],
) -> bool {
    for (at, thing) in things.iter().enumerate() {
        if seen[at] || !rules[index].takes(thing) {
            continue;
        }
        seen[at] = true;
        let free = match taken[at] {
            None => true,
            Some(other) => place(other, rules, things, taken, seen),
        };
        if free {
            taken[at] = Some(index);
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rackhand_common::machine::{Content, Cpu, Mac, System};

    use super::*;

    fn disk(name: &str, size: u64, rotational: bool) -> Disk {
        Disk {
            name: name.into(),
            model: String::new(),
            serial: String::new(),
            wwn: None,
            size,
            sector: 512,
            rotational,
            content: Content::Blank,
        }
    }

    fn nic(driver: &str) -> Nic {
        Nic { name: "eth0".into(), mac: Mac([0; 6]), driver: driver.into(), link: true }
    }

    const TB: u64 = 1_000_000_000_000;

    fn server() -> Inventory {
        Inventory {
            firmware: Firmware::Uefi,
            system: System { vendor: "Dell Inc.".into(), product: "PowerEdge R640".into(), ..System::default() },
            cpu: Cpu { model: "Intel(R) Xeon(R) Gold 6130 CPU @ 2.10GHz".into(), threads: 64 },
            memory: 270_000_000_000,
            nics: vec![nic("mlx5_core"), nic("mlx5_core"), nic("tg3")],
            disks: vec![disk("nvme0n1", TB, false), disk("nvme1n1", 2 * TB, false), disk("sda", 4 * TB, true)],
        }
    }

    fn unmet_rules(rules: &Rules) -> Vec<String> {
        rules.mismatches(&server()).into_iter().map(|mismatch| mismatch.rule).collect()
    }

    #[test]
    fn what_is_not_met_is_told_rule_by_rule() {
        assert_eq!(unmet_rules(&Rules::default()), Vec::<String>::new());
        let wrong = Rules {
            firmware: Some(Firmware::Bios),
            vendor: Some("HPE".into()),
            product: Some("poweredge r640".into()),
            cpu: Some("xeon platinum".into()),
            threads: Some(65),
            memory: Some(270_000_000_001),
            disks: vec![DiskRule { count: 1, kind: Some(Kind::Ssd), size: None }],
            nics: vec![NicRule { count: 3, driver: Some("mlx5_core".into()) }, NicRule { count: 1, driver: None }],
            expects: None,
        };
        assert_eq!(unmet_rules(&wrong), ["firmware", "vendor", "cpu", "threads", "memory", "disks/0", "nics/0"]);
        let found = &wrong.mismatches(&server())[5];
        assert_eq!(found.wanted, "1 disks, SSD");
        assert_eq!(found.found, "NVMe 1000000000000, NVMe 2000000000000, HDD 4000000000000");
    }

    #[test]
    fn a_part_counts_once_and_goes_where_it_is_needed() {
        let rule = |count, kind, size| DiskRule { count, kind, size: Some(size) };
        let of = |disks: Vec<DiskRule>| unmet_rules(&Rules { disks, ..Rules::default() });
        // The first rule could take the large one, which the second needs.
        assert!(of(vec![rule(1, None, TB), rule(1, Some(Kind::Nvme), 2 * TB), rule(1, None, 4 * TB)]).is_empty());
        assert_eq!(of(vec![rule(2, Some(Kind::Nvme), TB), rule(1, Some(Kind::Nvme), TB)]), ["disks/1"]);
        assert_eq!(of(vec![rule(u32::MAX, None, 0)]), ["disks/0"]);
    }

    fn inventory() -> impl Strategy<Value = Inventory> {
        let disks = proptest::collection::vec((0usize..3, 1u64..20_000_000_000_000), 0..12);
        let nics = proptest::collection::vec(0usize..3, 0..8);
        (disks, nics, 1u32..512, 1u64..4_000_000_000_000, any::<bool>()).prop_map(
            |(disks, nics, threads, memory, told)| {
                let server = server();
                Inventory {
                    disks: disks
                        .into_iter()
                        .map(|(kind, size)| disk(["nvme0n1", "sda", "sdb"][kind], size, kind == 2))
                        .collect(),
                    nics: nics.into_iter().map(|driver| nic(["mlx5_core", "ixgbe", ""][driver])).collect(),
                    cpu: Cpu { threads, ..server.cpu },
                    memory,
                    system: if told { server.system } else { System::default() },
                    firmware: server.firmware,
                }
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_suggested_plan_matches_its_machine_and_not_one_with_less(machine in inventory()) {
            let plan = Rules::suggest(&machine);
            prop_assert_eq!(plan.mismatches(&machine), vec![]);
            for at in 0..machine.disks.len() {
                let mut less = machine.clone();
                less.disks.remove(at);
                prop_assert!(!plan.mismatches(&less).is_empty());
            }
            for at in 0..machine.nics.len() {
                let mut less = machine.clone();
                less.nics.remove(at);
                prop_assert!(!plan.mismatches(&less).is_empty());
            }
            let less = Inventory { memory: machine.memory * 3 / 4, ..machine.clone() };
            prop_assert_eq!(plan.mismatches(&less).is_empty(), less.memory >= plan.memory.unwrap());
            let mut more = machine.clone();
            more.disks.extend(machine.disks.clone());
            more.cpu.threads += 1;
            prop_assert_eq!(plan.mismatches(&more), vec![]);
        }

        /// What the matching says is what trying all ways says.
        #[test]
        fn no_way_to_hand_parts_out_is_missed(
            rules in proptest::collection::vec((1u32..3, 0u64..5), 0..4),
            sizes in proptest::collection::vec(0u64..5, 0..6),
        ) {
            let rules: Vec<_> =
                rules.into_iter().map(|(count, size)| DiskRule { count, kind: None, size: Some(size) }).collect();
            let disks: Vec<_> = sizes.iter().map(|&size| disk("sda", size, false)).collect();
            // The largest wants come first and take the largest disks: with sizes alone that is best.
            let mut wants: Vec<u64> =
                rules.iter().flat_map(|rule| vec![rule.size.unwrap(); rule.count as usize]).collect();
            let mut sizes = sizes;
            wants.sort_by(|a, b| b.cmp(a));
            sizes.sort_by(|a, b| b.cmp(a));
            let possible = wants.len() <= sizes.len() && wants.iter().zip(&sizes).all(|(want, size)| size >= want);
            prop_assert_eq!(unmet(&rules, &disks).is_empty(), possible);
        }
    }
}
