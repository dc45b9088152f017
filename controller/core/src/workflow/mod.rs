//! The workflow engine as a value: [`Run::next`] names what to do, undo or wait for, and
//! [`Run::record`] notes how that went. Whoever holds a run stores it after every record.
//!
//! Invariants:
//! - A crash between doing and recording repeats the step: each step and undo is safe to
//!   repeat, and the undo of a step that never began is harmless.
//! - A run that does not finish undoes every step it reached, in reverse, and carries on
//!   when one undo fails. It always ends, in a named state.
//! - Before a step is given up as overdue it is looked at once more: what happened while
//!   nobody looked still counts.
//! - Deadlines are reckoned on monotonic time. Stored, they are what is left
//!   ([`Remaining`]); a wall clock that jumps decides nothing.
//!
//! A step is a level, not an edge: performing it means looking at the world, doing what is
//! missing and reporting. A step that waits is performed again whenever something may have
//! changed.

mod definitions;
mod words;

pub use definitions::{NotAWorkflow, Rule, Step, Undo, Workflow};
pub use words::{WaitFor, hop};

use std::{fmt, time::Duration};

use rackhand_common::{
    event,
    time::{Mono, Now, Remaining},
};
use serde::{Deserialize, Serialize};

/// One performance of a workflow, in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    workflow: Workflow,
    phase: Phase<Mono>,
}

/// A run as it is stored: deadlines as what is left of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    workflow: Workflow,
    phase: Phase<Remaining>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Phase<T> {
    Doing {
        step: usize,
        cancelled: bool,
        attempt: Attempt<T>,
    },
    /// Everything above `step` is undone.
    Undoing {
        step: usize,
        attempt: Attempt<T>,
        fault: Fault,
        leftovers: Vec<Leftover>,
    },
    Ended(Ended),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Attempt<T> {
    /// Counts from 1.
    number: u32,
    /// What it waits for, once it has been performed.
    wait: Option<Wait<T>>,
    /// Whether something may have changed since it was performed.
    look: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Wait<T> {
    waiting: WaitFor,
    detail: String,
    /// The last mark of movement, see [`Report::Waiting`].
    mark: u64,
    patience: T,
    limit: T,
}

/// What is to be done with a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Perform this step, then record.
    Do {
        /// What to do.
        step: Step,
        /// Which try, from 1.
        attempt: u32,
    },
    /// Undo this step, then record.
    Undo {
        /// What to undo.
        step: Step,
        /// Which try, from 1.
        attempt: u32,
    },
    /// Nothing before something changes or `until` has passed.
    Wait {
        /// What is waited for.
        waiting: WaitFor,
        /// The deadline.
        until: Mono,
    },
    /// It is over.
    Finished(Ended),
}

/// How a step or an undo went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// The world is as the step wants it.
    Done,
    /// It is under way.
    Waiting {
        /// For what.
        waiting: WaitFor,
        /// Where exactly, for people.
        detail: String,
        /// Whatever changes when things move: the start that a boot is counted from, bytes
        /// written. A new mark gives the wait its full patience again.
        mark: u64,
    },
    /// It failed.
    Failed(Fault),
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// For programs.
    pub cause: Cause,
    /// For people.
    pub detail: String,
}

/// Why a step failed, or why a run did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// An operator cancelled the run.
    Cancelled,
    /// Nothing moved for too long.
    Overdue,
    /// The power driver tried and failed.
    Power,
    /// The agent refused a command.
    CommandRefused,
    /// The agent stopped in the middle of a command, and looking did not tell.
    OutcomeUnknown,
    /// The machine started what is on its disk, and was to start from the network.
    StartedDisk,
    /// The installer did not come, in whichever way the machine was started.
    NotBooted,
    /// The installer was lost again and again.
    InstallerLost,
    /// The installer refused or failed.
    Installer(event::Cause),
    /// The machine's BMC is not as it was recorded, or cannot be read.
    Bmc,
    /// Firmware was not updated: nothing was done, or what was done is in doubt.
    Firmware,
    /// What the run was to do can no longer be read or found.
    Internal,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// Every step is done.
    Done,
    /// It failed or was cancelled, and everything it did is undone.
    Undone {
        /// Why.
        fault: Fault,
    },
    /// It failed or was cancelled, and some of what it did could not be undone.
    Stuck {
        /// Why it failed.
        fault: Fault,
        /// What is not undone.
        leftovers: Vec<Leftover>,
    },
}

/// A step that could not be undone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leftover {
    /// Which.
    pub step: Step,
    /// Why not.
    pub fault: Fault,
}

/// What a record or a cancel led to, for the run's history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// A step is done.
    StepDone(Step),
    /// A step failed and is tried again.
    Again {
        /// Which.
        step: Step,
        /// The coming try.
        attempt: u32,
        /// Why the last one failed.
        fault: Fault,
    },
    /// The run failed or was cancelled; what it did is being undone.
    Undoing(Fault),
    /// A step is undone.
    StepUndone(Step),
    /// A step cannot be undone.
    LeftBehind(Leftover),
    /// The run is over.
    Ended(Ended),
}

impl<T> Attempt<T> {
    fn first() -> Self {
        Self::numbered(1)
    }

    fn numbered(number: u32) -> Self {
        Self { number, wait: None, look: true }
    }

    fn convert<U>(&self, deadline: impl Fn(&T) -> U) -> Attempt<U> {
        Attempt {
            number: self.number,
            wait: self.wait.as_ref().map(|wait| Wait {
                waiting: wait.waiting,
                detail: wait.detail.clone(),
                mark: wait.mark,
                patience: deadline(&wait.patience),
                limit: deadline(&wait.limit),
            }),
            look: self.look,
        }
    }
}

impl<T> Phase<T> {
    fn convert<U>(&self, deadline: impl Fn(&T) -> U) -> Phase<U> {
        match self {
            Self::Doing { step, cancelled, attempt } => {
                Phase::Doing { step: *step, cancelled: *cancelled, attempt: attempt.convert(deadline) }
            }
            Self::Undoing { step, attempt, fault, leftovers } => Phase::Undoing {
                step: *step,
                attempt: attempt.convert(deadline),
                fault: fault.clone(),
                leftovers: leftovers.clone(),
            },
            Self::Ended(ended) => Phase::Ended(ended.clone()),
        }
    }
}

impl Attempt<Mono> {
    fn deadline(&self) -> Option<Mono> {
        self.wait.as_ref().map(|wait| wait.patience.min(wait.limit))
    }

    fn is_due(&self, now: Now) -> bool {
        self.look || self.deadline().is_none_or(|deadline| now.mono >= deadline)
    }

    /// Notes that it waits; the fault when it has waited long enough.
    fn wait(
        &mut self,
        now: Now,
        (patience, limit): (Duration, Duration),
        (waiting, detail, mark): (WaitFor, String, u64),
    ) -> Result<(), Fault> {
        self.look = false;
        let (patience, limit) = match &self.wait {
            Some(wait) if wait.mark == mark => (wait.patience, wait.limit),
            Some(wait) => (now.mono.plus(patience), wait.limit),
            None => (now.mono.plus(patience), now.mono.plus(limit)),
        };
        if now.mono >= patience.min(limit) {
            return Err(Fault { cause: Cause::Overdue, detail: format!("waited for {waiting} too long: {detail}") });
        }
        self.wait = Some(Wait { waiting, detail, mark, patience, limit });
        Ok(())
    }
}

impl Run {
    /// A run at its beginning.
    pub fn new(workflow: Workflow) -> Self {
        Self { workflow, phase: Phase::Doing { step: 0, cancelled: false, attempt: Attempt::first() } }
    }

    /// What it performs.
    pub fn workflow(&self) -> Workflow {
        self.workflow
    }

    /// The form to store.
    pub fn store(&self, now: Now) -> Stored {
        Stored { workflow: self.workflow, phase: self.phase.convert(|deadline| Remaining::of(now, *deadline)) }
    }

    /// What is to be done now.
    pub fn next(&self, now: Now) -> Next {
        let rules = self.workflow.rules();
        let (attempt, undo) = match &self.phase {
            Phase::Doing { step, attempt, .. } => ((rules[*step].step, attempt), false),
            Phase::Undoing { step, attempt, .. } => ((rules[*step].step, attempt), true),
            Phase::Ended(ended) => return Next::Finished(ended.clone()),
        };
        let (step, attempt) = attempt;
        match &attempt.wait {
            Some(wait) if !attempt.is_due(now) => {
                Next::Wait { waiting: wait.waiting, until: wait.patience.min(wait.limit) }
            }
            _ if undo => Next::Undo { step, attempt: attempt.number },
            _ => Next::Do { step, attempt: attempt.number },
        }
    }

    /// Something may have changed: what waits is to be looked at.
    pub fn wake(&mut self) {
        if let Phase::Doing { attempt, .. } | Phase::Undoing { attempt, .. } = &mut self.phase {
            attempt.look = true;
        }
    }

    /// An operator wants it stopped and undone. A step whose installer is writing is waited
    /// for first; a run that is already undoing, or over, is left alone.
    pub fn cancel(&mut self) -> Vec<Note> {
        let rules = self.workflow.rules();
        match &mut self.phase {
            Phase::Doing { step, .. } if rules[*step].interruptible => {
                let step = *step;
                self.undo_from(step, cancelled())
            }
            Phase::Doing { cancelled, .. } => {
                *cancelled = true;
                Vec::new()
            }
            Phase::Undoing { .. } | Phase::Ended(_) => Vec::new(),
        }
    }

    /// Notes how the step or undo went that [`next`](Self::next) named.
    pub fn record(&mut self, now: Now, report: Report) -> Vec<Note> {
        match &self.phase {
            Phase::Doing { .. } => self.record_step(now, report),
            Phase::Undoing { .. } => self.record_undo(now, report),
            Phase::Ended(_) => Vec::new(),
        }
    }

    /// The step it is at, its try, and whether it is being undone; `None` when it is over.
    pub fn position(&self) -> Option<(Step, u32, bool)> {
        let rules = self.workflow.rules();
        match &self.phase {
            Phase::Doing { step, attempt, .. } => Some((rules[*step].step, attempt.number, false)),
            Phase::Undoing { step, attempt, .. } => Some((rules[*step].step, attempt.number, true)),
            Phase::Ended(_) => None,
        }
    }

    /// What it waits for, where exactly, and until when.
    pub fn waiting(&self) -> Option<(WaitFor, &str, Mono)> {
        match &self.phase {
            Phase::Doing { attempt, .. } | Phase::Undoing { attempt, .. } => {
                let wait = attempt.wait.as_ref()?;
                Some((wait.waiting, &wait.detail, wait.patience.min(wait.limit)))
            }
            Phase::Ended(_) => None,
        }
    }

    /// Why it is being undone.
    pub fn fault(&self) -> Option<&Fault> {
        match &self.phase {
            Phase::Undoing { fault, .. } | Phase::Ended(Ended::Undone { fault } | Ended::Stuck { fault, .. }) => {
                Some(fault)
            }
            _ => None,
        }
    }

    fn record_step(&mut self, now: Now, report: Report) -> Vec<Note> {
        let Phase::Doing { step, cancelled, attempt } = &mut self.phase else { return Vec::new() };
        let (index, rules) = (*step, self.workflow.rules());
        let rule = &rules[index];
        let fault = match report {
            Report::Done => {
                let mut notes = vec![Note::StepDone(rule.step)];
                if index + 1 == rules.len() {
                    // A cancel that comes with the last step comes too late.
                    notes.extend(self.end(Ended::Done));
                } else if *cancelled {
                    notes.extend(self.undo_from(index, self::cancelled()));
                } else {
                    self.phase = Phase::Doing { step: index + 1, cancelled: false, attempt: Attempt::first() };
                }
                return notes;
            }
            Report::Waiting { waiting, detail, mark } => {
                match attempt.wait(now, (rule.patience, rule.limit), (waiting, detail, mark)) {
                    Ok(()) => return Vec::new(),
                    Err(fault) => fault,
                }
            }
            Report::Failed(fault) => fault,
        };
        if *cancelled {
            return self.undo_from(index, self::cancelled());
        }
        if attempt.number < rule.attempts && rule.again.contains(&fault.cause) {
            *attempt = Attempt::numbered(attempt.number + 1);
            return vec![Note::Again { step: rule.step, attempt: attempt.number, fault }];
        }
        self.undo_from(index, fault)
    }

    fn record_undo(&mut self, now: Now, report: Report) -> Vec<Note> {
        let Phase::Undoing { step, attempt, fault, leftovers } = &mut self.phase else { return Vec::new() };
        let rule = &self.workflow.rules()[*step];
        let undo = rule.undo.expect("only steps that have an undo are undone");
        let failure = match report {
            Report::Done => None,
            Report::Waiting { waiting, detail, mark } => {
                match attempt.wait(now, (undo.patience, undo.limit), (waiting, detail, mark)) {
                    Ok(()) => return Vec::new(),
                    Err(failure) => Some(failure),
                }
            }
            Report::Failed(failure) => Some(failure),
        };
        let mut notes = Vec::new();
        match failure {
            None => notes.push(Note::StepUndone(rule.step)),
            Some(failure) if attempt.number < undo.attempts => {
                *attempt = Attempt::numbered(attempt.number + 1);
                return vec![Note::Again { step: rule.step, attempt: attempt.number, fault: failure }];
            }
            Some(failure) => {
                let leftover = Leftover { step: rule.step, fault: failure };
                leftovers.push(leftover.clone());
                notes.push(Note::LeftBehind(leftover));
            }
        }
        let (below, fault, leftovers) = (*step, fault.clone(), leftovers.clone());
        notes.extend(self.undo_below(below, fault, leftovers));
        notes
    }

    /// Undoes the step at `index` and all before it.
    fn undo_from(&mut self, index: usize, fault: Fault) -> Vec<Note> {
        let mut notes = vec![Note::Undoing(fault.clone())];
        notes.extend(self.undo_below(index + 1, fault, Vec::new()));
        notes
    }

    fn undo_below(&mut self, below: usize, fault: Fault, leftovers: Vec<Leftover>) -> Option<Note> {
        match self.workflow.rules()[..below].iter().rposition(|rule| rule.undo.is_some()) {
            Some(step) => {
                self.phase = Phase::Undoing { step, attempt: Attempt::first(), fault, leftovers };
                None
            }
            None if leftovers.is_empty() => self.end(Ended::Undone { fault }),
            None => self.end(Ended::Stuck { fault, leftovers }),
        }
    }

    fn end(&mut self, ended: Ended) -> Option<Note> {
        self.phase = Phase::Ended(ended.clone());
        Some(Note::Ended(ended))
    }
}

impl Stored {
    /// A run at its beginning.
    pub fn new(workflow: Workflow) -> Self {
        Self { workflow, phase: Phase::Doing { step: 0, cancelled: false, attempt: Attempt::first() } }
    }

    /// The run it is the stored form of, after a restart.
    pub fn resume(&self, now: Now) -> Run {
        let mut run = Run { workflow: self.workflow, phase: self.phase.convert(|left| left.anchor(now)) };
        run.wake();
        run
    }
}

fn cancelled() -> Fault {
    Fault { cause: Cause::Cancelled, detail: "cancelled by an operator".to_owned() }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cancelled => "cancelled",
            Self::Overdue => "overdue",
            Self::Power => "power",
            Self::CommandRefused => "command_refused",
            Self::OutcomeUnknown => "outcome_unknown",
            Self::StartedDisk => "started_disk",
            Self::NotBooted => "not_booted",
            Self::InstallerLost => "installer_lost",
            Self::Bmc => "bmc",
            Self::Firmware => "firmware",
            Self::Installer(event::Cause::WrongMachine) => "wrong_machine",
            Self::Installer(event::Cause::DisksDiffer) => "disks_differ",
            Self::Installer(event::Cause::MainboardDiffers) => "mainboard_differs",
            Self::Installer(event::Cause::NoSuitableDisk) => "no_suitable_disk",
            Self::Installer(event::Cause::ImageUnsuitable) => "image_unsuitable",
            Self::Installer(event::Cause::Image) => "image",
            Self::Installer(event::Cause::DiskError) => "disk_error",
            Self::Installer(event::Cause::Verify) => "verify",
            Self::Installer(event::Cause::BootOrder) => "boot_order",
            Self::Installer(event::Cause::Tpm) => "tpm",
            Self::Installer(event::Cause::Bmc) => "bmc",
            Self::Installer(event::Cause::Internal) => "installer_internal",
            Self::Internal => "internal",
        })
    }
}

#[cfg(test)]
mod tests;
