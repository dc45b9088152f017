//! By which way a machine is started into the installer next, after those that were tried.
//!
//! It is decided here and not on the node, because here stands what was tried, in the run's commands,
//! and what was seen of each start, in the machine's events: both survive either side's death. What
//! a BMC can is found out by asking it: a way it does not have costs one answer and no start.
//!
//! Invariants:
//! - It ends: after [`MAX_TRIES`] tries at the latest there is a report.
//! - A way is not tried that cannot help after what was seen, and none twice, but for one more start where
//!   only one was made, and for a start that was not carried out.
//! - A report names every way that was tried, and what was seen of it.

use std::fmt;

use rackhand_common::{event::Stage, machine::Firmware, wire::Action};

/// The most tries there can be: each way, and two starts that were not carried out.
pub const MAX_TRIES: usize = Rung::ALL.len() + 3;

/// How many starts that were not carried out are enough: whoever switches the machine does not work.
const NOT_STARTED: usize = 3;

/// How many starts a machine gets at least: the first may have met a network that was just not there.
const STARTS: usize = 2;

/// One way of starting a machine into the installer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rung {
    /// UEFI HTTP boot of the node's loader, once.
    Http,
    /// The network, once.
    Network,
    /// The network, at every start until the installer is there.
    LastingNetwork,
    /// The node's image in a virtual drive of the BMC.
    Media,
}

impl Rung {
    /// All of them, in the order they are tried in.
    pub const ALL: [Self; 4] = [Self::Http, Self::Network, Self::LastingNetwork, Self::Media];

    /// The command that does it.
    pub fn action(self) -> Action {
        match self {
            Self::Http => Action::HttpBoot,
            Self::Network => Action::NetworkBoot,
            Self::LastingNetwork => Action::LastingNetworkBoot,
            Self::Media => Action::MediaBoot,
        }
    }

    /// The way that a command goes, if it starts into the installer.
    pub fn of(action: Action) -> Option<Self> {
        Self::ALL.into_iter().find(|rung| rung.action() == action)
    }
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http => "UEFI HTTP boot, once",
            Self::Network => "network boot, once",
            Self::LastingNetwork => "network boot, at every start",
            Self::Media => "virtual media",
        })
    }
}

/// Who switches a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch {
    /// An operator's command, which knows one way.
    Command,
    /// A BMC that speaks IPMI, which has no virtual drive and can be told no address.
    Ipmi,
    /// A BMC that speaks Redfish, or of which nobody said what it speaks.
    Redfish,
}

/// What is known of a machine before anything is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ways {
    /// Who switches it.
    pub switch: Switch,
    /// How its firmware booted when its installer was there last.
    pub firmware: Firmware,
    /// The way that had its installer come last.
    pub before: Option<Rung>,
}

impl Ways {
    /// The ways there may be, in the order they are tried in: what worked before comes first.
    fn rungs(self) -> Vec<Rung> {
        let may = |rung: &Rung| match rung {
            Rung::Network => true,
            Rung::LastingNetwork => self.switch != Switch::Command,
            Rung::Media => self.switch == Switch::Redfish,
            Rung::Http => self.switch == Switch::Redfish && self.firmware == Firmware::Uefi,
        };
        let mut rungs: Vec<_> = Rung::ALL.into_iter().filter(may).collect();
        rungs.sort_by_key(|rung| Some(*rung) != self.before);
        rungs
    }
}

/// One way that was tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Try {
    /// Which.
    pub rung: Rung,
    /// How it went.
    pub went: Went,
}

/// How a try went that did not have the installer come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Went {
    /// The machine cannot be started so; it was not.
    Unsupported(String),
    /// It was to be started and was not, or nobody knows.
    NotStarted(String),
    /// It was started, and came so far.
    Started(Seen),
}

/// How far a start came at most, as the node saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Seen {
    /// Nothing came from it.
    Nothing,
    /// The system on its disk started.
    Disk,
    /// Its firmware asked for an address.
    Address,
    /// It fetched a loader, which may have its address.
    Loader,
    /// It was told what to boot.
    Script,
    /// It fetched a kernel, and whatever came after.
    Kernel,
}

impl Seen {
    /// How far these hops came.
    pub fn of<'a>(stages: impl IntoIterator<Item = &'a Stage>) -> Self {
        stages.into_iter().map(Self::at).max().unwrap_or(Self::Nothing)
    }

    fn at(stage: &Stage) -> Self {
        match stage {
            Stage::PoweredOn | Stage::Rebooting => Self::Nothing,
            Stage::OsDhcp => Self::Disk,
            Stage::RomDhcp(_) => Self::Address,
            Stage::Loader(_) | Stage::IpxeDhcp => Self::Loader,
            Stage::Script(_) => Self::Script,
            Stage::Kernel
            | Stage::Initramfs
            | Stage::Installer
            | Stage::Inventoried
            | Stage::OrderStarted(_)
            | Stage::ImageWritten
            | Stage::SettingsWritten
            | Stage::Erased
            | Stage::Tested => Self::Kernel,
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Nothing => "nothing came from its network card",
            Self::Disk => "it started what is on its disk",
            Self::Address => "its firmware asked for an address and fetched no loader",
            Self::Loader => "it fetched its loader and no boot script",
            Self::Script => "it fetched its boot script and no kernel",
            Self::Kernel => "it fetched the installer's kernel, and no installer connected",
        }
    }

    /// What somebody who stands before the machine should look at.
    fn advice(self) -> &'static str {
        match self {
            Self::Nothing => {
                "does it pass its self-test (its screen, or its console), is the card it boots from cabled, and is \
                 network boot of that card enabled in its firmware"
            }
            Self::Disk => "its firmware does not follow its BMC: put the network first in its boot order",
            Self::Address => {
                "does a switch or another DHCP server stand between it and its node, and is TFTP let through"
            }
            Self::Loader => {
                "does its switch port pass traffic as soon as it has a link (spanning tree), and its screen"
            }
            Self::Script | Self::Kernel => {
                "its screen or its console: the installer was given to it and does not start"
            }
        }
    }
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Start the machine in this way.
    Start(Rung),
    /// No way is left: what was tried, what was seen, and what to look at.
    Report(String),
}

/// What is to be done after these tries, oldest first.
pub fn next(ways: Ways, tries: &[Try]) -> Next {
    let report = || Next::Report(report(tries));
    let not_started = tries.iter().filter(|tried| matches!(tried.went, Went::NotStarted(_))).count();
    if tries.len() >= MAX_TRIES || not_started >= NOT_STARTED {
        return report();
    }
    let starts: Vec<_> = tries.iter().filter_map(started).collect();
    if let Some(Try { rung, went: Went::NotStarted(_) }) = tries.last()
        && tries.iter().filter(|tried| tried.rung == *rung).count() == 1
    {
        return Next::Start(*rung);
    }
    // What fetched its boot script came all the way; another way leads to the same place.
    let arrived = starts.iter().any(|(_, seen)| *seen >= Seen::Script);
    let fresh = |rung: &Rung| tries.iter().all(|tried| tried.rung != *rung);
    let way = ways.rungs().into_iter().find(|rung| !arrived && fresh(rung) && may_help(*rung, &starts));
    match (way, starts.last()) {
        (Some(rung), _) => Next::Start(rung),
        (None, Some((rung, _))) if starts.len() < STARTS && may_repeat(*rung, tries) => Next::Start(*rung),
        _ => report(),
    }
}

/// Whether a way can lead further than these starts did.
fn may_help(rung: Rung, starts: &[(Rung, Seen)]) -> bool {
    match rung {
        // The firmware followed the BMC when it was asked once: to be asked always changes nothing.
        Rung::LastingNetwork => !starts.iter().any(|(tried, seen)| *tried == Rung::Network && *seen >= Seen::Address),
        Rung::Network => !starts.iter().any(|(tried, seen)| *tried == Rung::LastingNetwork && *seen >= Seen::Address),
        Rung::Http | Rung::Media => true,
    }
}

/// Whether a way that was tried may be once more: it is there, and was not carried out once at most.
fn may_repeat(rung: Rung, tries: &[Try]) -> bool {
    let mut tried = tries.iter().filter(|tried| tried.rung == rung);
    tried.clone().count() <= 2 && !tried.any(|tried| matches!(tried.went, Went::Unsupported(_)))
}

fn started(tried: &Try) -> Option<(Rung, Seen)> {
    match tried.went {
        Went::Started(seen) => Some((tried.rung, seen)),
        Went::Unsupported(_) | Went::NotStarted(_) => None,
    }
}

fn report(tries: &[Try]) -> String {
    let starts: Vec<_> = tries.iter().filter_map(started).collect();
    let each: Vec<_> = tries
        .iter()
        .map(|Try { rung, went }| match went {
            Went::Unsupported(reason) => format!("{rung}: not possible, {reason}"),
            Went::NotStarted(reason) => format!("{rung}: not started, {reason}"),
            Went::Started(seen) => format!("{rung}: {}", seen.words()),
        })
        .collect();
    let look = match starts.iter().map(|(_, seen)| *seen).max() {
        Some(furthest) => furthest.advice(),
        None => "its BMC, or the command that switches it: the machine was never started",
    };
    format!("its installer did not come: {}. Look at: {look}", each.join("; "))
}

#[cfg(test)]
mod tests;
