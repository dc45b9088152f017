//! The workflows we have, as data: their steps, how long each may take, which failures are
//! tried again, and what undoes it.

use std::{fmt, str::FromStr, time::Duration};

use rackhand_common::event::Cause as Installer;
use serde::{Deserialize, Serialize};

use super::{Cause, Ended};
use crate::{boot_ladder, lifecycle::Event};

/// What is done to a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Workflow {
    /// From ready to active.
    Deploy,
    /// From active, or from quarantine, to ready.
    Release,
    /// Chassis power; moves no lifecycle.
    Power,
    /// Another system on an active machine, or the same anew; it stays its project's throughout.
    Reinstall,
    /// A fresh look at what is in the machine; moves no lifecycle.
    Inspect,
    /// Tests of the machine, run in its installer; moves no lifecycle, whatever they show.
    Test,
    /// An active machine out of its system and into one in memory that its owner logs in to.
    Rescue,
    /// Back into its own system.
    LeaveRescue,
    /// Firmware of a machine that nobody uses, brought to other versions by its BMC.
    UpdateFirmware,
    /// The BMC of a machine that nobody uses, given its user and password in-band.
    RegainBmc,
}

/// Something a workflow does. Each is safe to repeat, and so is its undo.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Have the installer connected; start the machine into it where it is not. Then have the
    /// machine's BMC recorded where it is not.
    BootInstaller,
    /// Start the machine into a fresh installer, whatever runs on it now.
    RestartInstaller,
    /// Have the installer write the image and settings.
    WriteImage,
    /// Have the machine start its own disk and wait until its system calls home.
    StartSystem,
    /// Have the installer overwrite every disk and read back.
    EraseDisks,
    /// Switch chassis power.
    SwitchPower,
    /// Take the machine out of its own system, into a fresh installer. Undone, its system runs
    /// again unless something was written over it.
    LeaveSystem,
    /// Have the installer run tests. Undone, none runs any more.
    RunTests,
    /// Have the installer let the machine's owner log in.
    StartRescue,
    /// Have the machine start its own disk again, which nothing was written to.
    EndRescue,
    /// Have the machine's BMC be as it was recorded, with another password.
    RestoreBmc,
    /// Have each version be the one that is wanted, with a start of the machine where one needs it.
    UpdateFirmware,
    /// Have the machine's BMC have a password that was made in this run, set by a login or by the machine's
    /// installer. Undone, no installer sets one any more.
    SetBmcPassword,
}

/// The rules of one step.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// What is done.
    pub step: Step,
    /// How long nothing may move: no power-on, no byte written.
    pub patience: Duration,
    /// How long an attempt may take in all.
    pub limit: Duration,
    /// How often it is tried.
    pub attempts: u32,
    /// Failures after which it is tried again.
    pub again: &'static [Cause],
    /// Whether a cancel stops it at once. One that does not is waited for: its installer
    /// is writing.
    pub interruptible: bool,
    /// How it is undone; `None` when it leaves nothing behind.
    pub undo: Option<Undo>,
}

/// The rules of a step's undo.
#[derive(Clone, Copy, Debug)]
pub struct Undo {
    /// As for the step.
    pub patience: Duration,
    /// As for the step.
    pub limit: Duration,
    /// How often it is tried, whatever its failure.
    pub attempts: u32,
}

const fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(60 * minutes)
}

/// A large server needs ten minutes of self-test before it asks the network for anything.
const BOOT: Duration = minutes(15);
const BOOT_LIMIT: Duration = minutes(30);

const RESTART: Undo = Undo { patience: BOOT, limit: BOOT_LIMIT, attempts: 2 };

/// As many as there are ways to start it, with one more to say that none is left.
const BOOTS: u32 = boot_ladder::MAX_TRIES as u32 + 1;

const BOOT_AGAIN: &[Cause] =
    &[Cause::Overdue, Cause::Power, Cause::CommandRefused, Cause::OutcomeUnknown, Cause::StartedDisk];

const RESTART_INSTALLER: Rule = Rule {
    step: Step::RestartInstaller,
    patience: BOOT,
    limit: BOOT_LIMIT,
    attempts: BOOTS,
    again: BOOT_AGAIN,
    interruptible: true,
    undo: None,
};

const WRITE_IMAGE: Rule = Rule {
    step: Step::WriteImage,
    // Longer than a machine that was reset in mid-write needs to come back.
    patience: minutes(20),
    limit: minutes(240),
    attempts: 2,
    again: &[Cause::Installer(Installer::Image)],
    interruptible: false,
    undo: Some(RESTART),
};

const START_SYSTEM: Rule = Rule {
    step: Step::StartSystem,
    patience: BOOT,
    limit: BOOT_LIMIT,
    // The second time the machine is switched off and on.
    attempts: 2,
    again: BOOT_AGAIN,
    interruptible: true,
    undo: Some(RESTART),
};

const BOOT_INSTALLER: Rule = Rule {
    step: Step::BootInstaller,
    patience: BOOT,
    limit: BOOT_LIMIT,
    attempts: BOOTS,
    again: BOOT_AGAIN,
    interruptible: true,
    undo: None,
};

const DEPLOY: &[Rule] = &[BOOT_INSTALLER, WRITE_IMAGE, START_SYSTEM];

const SET_BMC_PASSWORD: Rule = Rule {
    step: Step::SetBmcPassword,
    // Somebody may have to go there and switch the machine: its BMC does not.
    patience: minutes(60),
    limit: minutes(120),
    attempts: 1,
    again: &[],
    interruptible: true,
    undo: Some(Undo { patience: minutes(5), limit: minutes(5), attempts: 2 }),
};

const REGAIN_BMC: &[Rule] = &[SET_BMC_PASSWORD];

const RELEASE: &[Rule] = &[
    RESTART_INSTALLER,
    Rule {
        step: Step::EraseDisks,
        patience: minutes(20),
        // 20 TB at 200 MB/s, written and read back, is two days and a half.
        limit: minutes(72 * 60),
        attempts: 1,
        again: &[],
        interruptible: false,
        undo: Some(RESTART),
    },
    SET_BMC_PASSWORD,
    Rule {
        step: Step::RestoreBmc,
        patience: BOOT,
        limit: minutes(60),
        attempts: 1,
        again: &[],
        interruptible: true,
        // What is put back stays so.
        undo: None,
    },
];

const LEAVE_SYSTEM: Rule = Rule {
    step: Step::LeaveSystem,
    patience: BOOT,
    limit: BOOT_LIMIT,
    attempts: BOOTS,
    again: BOOT_AGAIN,
    interruptible: true,
    undo: Some(Undo { patience: minutes(5), limit: BOOT_LIMIT, attempts: 2 }),
};

const REINSTALL: &[Rule] = &[LEAVE_SYSTEM, WRITE_IMAGE, START_SYSTEM];

const RESCUE: &[Rule] = &[
    LEAVE_SYSTEM,
    Rule {
        step: Step::StartRescue,
        // The toolbox is fetched, some hundred megabytes, by a machine that may have to be brought back.
        patience: minutes(20),
        limit: minutes(40),
        attempts: 2,
        again: &[Cause::Installer(Installer::Internal)],
        interruptible: true,
        // What was started ends with the installer, which the undo of the step before ends.
        undo: None,
    },
];

const LEAVE_RESCUE: &[Rule] = &[Rule {
    step: Step::EndRescue,
    patience: minutes(5),
    limit: BOOT_LIMIT,
    // The second time the machine is switched off and on.
    attempts: 2,
    again: BOOT_AGAIN,
    interruptible: false,
    undo: None,
}];

const INSPECT: &[Rule] = &[RESTART_INSTALLER];

const TEST: &[Rule] = &[
    BOOT_INSTALLER,
    Rule {
        step: Step::RunTests,
        // Longer than any test may take, and than a machine that restarts in one needs to come back.
        patience: minutes(150),
        limit: minutes(24 * 60),
        attempts: 1,
        again: &[],
        // What a test writes it may leave half-written: nothing on the disks is anybody's.
        interruptible: true,
        undo: Some(RESTART),
    },
];

const UPDATE_FIRMWARE: &[Rule] = &[
    BOOT_INSTALLER,
    Rule {
        step: Step::UpdateFirmware,
        // The BMC's own bound is the manifest's; here it is its agent or the machine that does not come back.
        patience: minutes(60),
        limit: minutes(24 * 60),
        // Nobody flashes again what may be half flashed.
        attempts: 1,
        again: &[],
        // A device is not interrupted: what was begun is waited for, and the next is not begun.
        interruptible: false,
        // What a device has, it has.
        undo: None,
    },
];

const POWER: &[Rule] = &[Rule {
    step: Step::SwitchPower,
    patience: minutes(5),
    limit: minutes(5),
    // Of a command whose outcome is unknown the step looks first; what it then finds undone
    // it does again.
    attempts: 2,
    again: &[Cause::OutcomeUnknown],
    interruptible: false,
    undo: None,
}];

impl Workflow {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Deploy,
        Self::Release,
        Self::Power,
        Self::Reinstall,
        Self::Inspect,
        Self::Test,
        Self::Rescue,
        Self::LeaveRescue,
        Self::UpdateFirmware,
        Self::RegainBmc,
    ];

    /// Its steps, in order.
    pub fn rules(self) -> &'static [Rule] {
        match self {
            Self::Deploy => DEPLOY,
            Self::Release => RELEASE,
            Self::Power => POWER,
            Self::Reinstall => REINSTALL,
            Self::Inspect => INSPECT,
            Self::Test => TEST,
            Self::Rescue => RESCUE,
            Self::LeaveRescue => LEAVE_RESCUE,
            Self::UpdateFirmware => UPDATE_FIRMWARE,
            Self::RegainBmc => REGAIN_BMC,
        }
    }

    /// What its end means for the machine's life.
    pub fn event(self, ended: &Ended) -> Option<Event> {
        match (self, ended) {
            (Self::Deploy, Ended::Done) => Some(Event::Deployed),
            (Self::Deploy, Ended::Undone { .. }) => Some(Event::Undone),
            (Self::Release, Ended::Done) => Some(Event::Released),
            (Self::Deploy, Ended::Stuck { .. }) | (Self::Release, _) => Some(Event::Broke),
            (Self::Reinstall, _) => Some(Event::Reinstalled),
            (Self::Test, _) => Some(Event::Tested),
            (Self::UpdateFirmware, _) => Some(Event::Updated),
            (Self::Rescue, Ended::Done) => Some(Event::Rescued),
            (Self::Rescue, _) | (Self::LeaveRescue, Ended::Done) => Some(Event::LeftRescue),
            (Self::Power | Self::Inspect | Self::LeaveRescue | Self::RegainBmc, _) => None,
        }
    }
}

impl fmt::Display for Workflow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Deploy => "deploy",
            Self::Release => "release",
            Self::Power => "power",
            Self::Reinstall => "reinstall",
            Self::Inspect => "inspect",
            Self::Test => "test",
            Self::Rescue => "rescue",
            Self::LeaveRescue => "leave-rescue",
            Self::UpdateFirmware => "update-firmware",
            Self::RegainBmc => "regain-bmc",
        })
    }
}

/// The word names no workflow.
#[derive(Debug, thiserror::Error)]
#[error("not a workflow")]
pub struct NotAWorkflow;

impl FromStr for Workflow {
    type Err = NotAWorkflow;

    fn from_str(text: &str) -> Result<Self, NotAWorkflow> {
        Self::ALL.into_iter().find(|workflow| workflow.to_string() == text).ok_or(NotAWorkflow)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BootInstaller => "boot installer",
            Self::RestartInstaller => "restart into installer",
            Self::WriteImage => "write image",
            Self::StartSystem => "start system",
            Self::EraseDisks => "erase disks",
            Self::SwitchPower => "switch power",
            Self::LeaveSystem => "leave system",
            Self::RunTests => "run tests",
            Self::StartRescue => "start rescue",
            Self::EndRescue => "end rescue",
            Self::RestoreBmc => "restore BMC",
            Self::UpdateFirmware => "update firmware",
            Self::SetBmcPassword => "set BMC password",
        })
    }
}
