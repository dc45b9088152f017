//! What goes wrong, planned from the seed before the world begins: a failing seed is cut down
//! by leaving faults out.

use std::{fmt, time::Duration};

use crate::{history::clock, rng::Rng, version::Version, world::Size};

/// Something that goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// When.
    pub at: Duration,
    /// How long; for a killed process, until it is started again.
    pub lasts: Duration,
    /// What.
    pub kind: Kind,
}

/// The kinds of faults. Racks and machines are counted from 0.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "their text says what they are")]
pub enum Kind {
    KillController,
    KillControllerAtPoint(u64),
    ControllerPowerCut(u64),
    ControllerDiskFull,
    ControllerDiskFails,
    ControllerDiskReadOnly,
    KillAgent(usize),
    AgentStalls(usize),
    KillBoot(usize),
    NodePowerCut(usize),
    PowerCutAtSync { rack: usize, part: Part, sync: u64 },
    Partition(usize),
    LossyUplink(usize),
    SocketGone(usize),
    LossyRack(usize),
    DiskFull { rack: usize, part: Part },
    DiskFails { rack: usize, part: Part },
    ClockJump { rack: Option<usize>, seconds: i64 },
    MachineReset { rack: usize, machine: usize },
    Bmc { rack: usize, machine: usize, trouble: Trouble },
    InstallerHangs { rack: usize, machine: usize },
    MachineDiskFails { rack: usize, machine: usize },
    NoImage(usize),
    DiskSwapped { rack: usize, machine: usize },
    Replaced { process: Process, version: Version },
}

/// A process of the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "their text says what they are")]
pub enum Process {
    Controller,
    Node { rack: usize, part: Part },
}

/// A process of a rack's node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "their text says what they are")]
pub enum Part {
    Agent,
    Boot,
}

/// What is wrong with a machine's power control.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// It does not answer.
    Dead,
    /// Each answer takes half a minute.
    Slow,
    /// It says yes and does nothing.
    Stubborn,
    /// It does what it is told a minute and a half later.
    Late,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::Agent { "agent" } else { "boot" })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", clock(self.at))?;
        let rack = |rack: &usize| format!("r{}", rack + 1);
        let place = |rack: &usize, machine: &usize| format!("r{}m{}", rack + 1, machine + 1);
        match &self.kind {
            Kind::KillController => f.write_str("the controller is killed"),
            Kind::KillControllerAtPoint(point) => {
                write!(f, "the controller is killed at its commit or command number {point} from here")
            }
            Kind::ControllerPowerCut(commit) => {
                write!(f, "the controller's host loses power in its commit number {commit} from here")
            }
            Kind::ControllerDiskFull => f.write_str("the controller's disk is full"),
            Kind::ControllerDiskFails => f.write_str("the controller's disk fails"),
            Kind::ControllerDiskReadOnly => f.write_str("the controller's file system is read-only"),
            Kind::AgentStalls(r) => write!(f, "{}'s agent stands still with its commands", rack(r)),
            Kind::KillAgent(r) => write!(f, "{}'s agent is killed", rack(r)),
            Kind::KillBoot(r) => write!(f, "{}'s boot is killed", rack(r)),
            Kind::NodePowerCut(r) => write!(f, "{}'s node loses power", rack(r)),
            Kind::PowerCutAtSync { rack: r, part, sync } => {
                write!(f, "{}'s {part} loses power at sync {sync} of its disk from here", rack(r))
            }
            Kind::Partition(r) => write!(f, "{} is cut off from the controller", rack(r)),
            Kind::LossyUplink(r) => write!(f, "{}'s uplink loses, delays and repeats", rack(r)),
            Kind::SocketGone(r) => write!(f, "{}'s boot does not reach its agent", rack(r)),
            Kind::LossyRack(r) => write!(f, "{}'s machines lose packets", rack(r)),
            Kind::DiskFull { rack: r, part } => write!(f, "the disk of {}'s {part} is full", rack(r)),
            Kind::DiskFails { rack: r, part } => write!(f, "the disk of {}'s {part} fails", rack(r)),
            Kind::ClockJump { rack: r, seconds } => {
                let whose = r.as_ref().map_or("the controller".to_owned(), rack);
                return write!(f, "the wall clock of {whose} jumps by {seconds} s");
            }
            Kind::MachineReset { rack, machine } => return write!(f, "{} is reset", place(rack, machine)),
            Kind::Bmc { rack, machine, trouble } => {
                let how = match trouble {
                    Trouble::Dead => "does not answer",
                    Trouble::Slow => "takes half a minute for each answer",
                    Trouble::Stubborn => "says yes and does nothing",
                    Trouble::Late => "does what it is told a minute and a half later",
                };
                write!(f, "the BMC of {} {how}", place(rack, machine))
            }
            Kind::InstallerHangs { rack, machine } => write!(f, "{}'s installer hangs", place(rack, machine)),
            Kind::MachineDiskFails { rack, machine } => write!(f, "{}'s disk fails", place(rack, machine)),
            Kind::NoImage(r) => write!(f, "{} cannot fetch images", rack(r)),
            Kind::DiskSwapped { rack, machine } => {
                return write!(f, "{}'s disk is swapped for another when its next order comes", place(rack, machine));
            }
            Kind::Replaced { process, version } => {
                let process = match process {
                    Process::Controller => "the controller".to_owned(),
                    Process::Node { rack: r, part } => format!("{}'s {part}", rack(r)),
                };
                return write!(f, "{process} is replaced by {version}, {} s", self.lasts.as_secs_f32());
            }
        }?;
        write!(f, " for {} s", self.lasts.as_secs())
    }
}

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A partition that is longer than any certificate or deadline.
pub const MONTH: Duration = seconds(30 * 86400);

/// The faults of a seed, in the order of their times. All are over at `length`, but for what
/// a killed process needs to start again.
pub fn plan(rng: &mut Rng, size: Size, length: Duration, month: bool) -> Vec<Fault> {
    let mut faults = Vec::new();
    if month {
        let rack = rng.below(size.racks as u64) as usize;
        faults.push(Fault { at: length / 100, lasts: MONTH, kind: Kind::Partition(rack) });
    }
    for _ in 0..2 + rng.below(11) {
        let at = rng.between(seconds(1), length * 9 / 10);
        let rack = rng.below(size.racks as u64) as usize;
        let machine = rng.below(size.machines as u64) as usize;
        let part = if rng.percent(50) { Part::Agent } else { Part::Boot };
        let short = rng.spread(seconds(1), seconds(120));
        let long = rng.spread(seconds(10), seconds(3000));
        let (lasts, kind) = match rng.below(26) {
            0 => (short, Kind::KillController),
            1 | 2 => (short, Kind::KillControllerAtPoint(1 + rng.below(12))),
            3 => (short, Kind::KillAgent(rack)),
            4 => (short, Kind::KillBoot(rack)),
            5 => (short, Kind::NodePowerCut(rack)),
            6 | 7 => (short, Kind::PowerCutAtSync { rack, part, sync: rng.below(6) }),
            8 | 9 => (long, Kind::Partition(rack)),
            10 => (long, Kind::LossyUplink(rack)),
            11 => (long, Kind::SocketGone(rack)),
            12 => (long, Kind::LossyRack(rack)),
            13 => (long, Kind::DiskFull { rack, part }),
            14 => (short, Kind::DiskFails { rack, part }),
            15 => {
                let far = [60, 3600, 86400, 40 * 86400][rng.below(4) as usize];
                let seconds = if rng.percent(50) { far } else { -far };
                (Duration::ZERO, Kind::ClockJump { rack: Some(rack).filter(|_| rng.percent(60)), seconds })
            }
            16 => (Duration::ZERO, Kind::MachineReset { rack, machine }),
            17 => {
                let troubles = [Trouble::Dead, Trouble::Slow, Trouble::Stubborn, Trouble::Late];
                let trouble = troubles[rng.below(4) as usize];
                (long, Kind::Bmc { rack, machine, trouble })
            }
            18 => (long, Kind::InstallerHangs { rack, machine }),
            19 if rng.percent(50) => (long, Kind::MachineDiskFails { rack, machine }),
            19 => (long, Kind::NoImage(rack)),
            20 | 21 => (long, Kind::ControllerPowerCut(rng.below(12))),
            22 => (long, Kind::ControllerDiskFull),
            23 => (short, Kind::ControllerDiskFails),
            24 => (short, Kind::ControllerDiskReadOnly),
            _ => (long, Kind::AgentStalls(rack)),
        };
        let lasts = lasts.min(length.saturating_sub(at));
        faults.push(Fault { at, lasts, kind });
    }
    faults.sort_by_key(|fault| fault.at);
    faults
}

/// A fleet that goes to the next version and later back, one process after another, while
/// machines start: nothing of it is a trouble to anybody.
pub fn rollout(rng: &mut Rng, size: Size, length: Duration) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (version, from) in [(Version::Next, length / 8), (Version::This, length * 9 / 16)] {
        let mut racks: Vec<_> = (0..size.racks).collect();
        let mut order = Vec::new();
        while !racks.is_empty() {
            let rack = racks.swap_remove(rng.below(racks.len() as u64) as usize);
            let parts = if rng.percent(50) { [Part::Agent, Part::Boot] } else { [Part::Boot, Part::Agent] };
            order.extend(parts.map(|part| Process::Node { rack, part }));
        }
        let place = if rng.percent(50) { 0 } else { order.len() };
        order.insert(place, Process::Controller);
        let mut at = rng.between(from, from + length / 16);
        for process in order {
            let rack = match process {
                Process::Node { rack, .. } => rack,
                Process::Controller => rng.below(size.racks as u64) as usize,
            };
            let lasts = rng.between(seconds(1), seconds(8));
            faults.push(Fault { at, lasts, kind: Kind::Replaced { process, version } });
            // Some machine asks for its boot just then.
            for machine in 0..size.machines {
                if rng.percent(60) {
                    let at = rng.between(at.saturating_sub(seconds(70)), at + seconds(5));
                    faults.push(Fault { at, lasts: Duration::ZERO, kind: Kind::MachineReset { rack, machine } });
                }
            }
            at += rng.between(seconds(5), length / 40);
        }
    }
    faults.sort_by_key(|fault| fault.at);
    faults
}
