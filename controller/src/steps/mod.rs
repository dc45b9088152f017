//! The steps that touch the world. Performing one means: look at the rows, write what is
//! missing, send what has to be sent, and say how things stand. Each may be performed any
//! number of times.
//!
//! Invariants:
//! - A command is a row before it is sent, one per purpose; sent again it has the same id.
//! - A command is noted as offered before a node is given it.
//! - No transaction is open while an agent is talked to.
//! - A command whose outcome is unknown is looked into before anything is done again.

mod bmc;
mod firmware;
mod installer;
mod ladder;
mod order;
mod power;
mod regain;
mod system;

use std::time::Duration;

use rackhand_common::{
    event::Outcome,
    time::Now,
    wire::{Action, Command, ControllerResponse},
};
use rackhand_controller_core::{
    boot_ladder::Rung,
    workflow::{Cause, Fault, Report, Step, WaitFor},
};
use rackhand_fail_points::fail_point;

use crate::{
    store::{Machine, Run, Store, StoreError, StoredCommand, Tx},
    workflows::Commands,
};

/// How long after its receipt a command may be started.
const WITHIN: Duration = Duration::from_secs(120);

/// How long a command may act that was given to a node before it was given up: until it is
/// begun, and then as long as slow hardware takes to be off and on.
const LOST_MAY_ACT: Duration = Duration::from_secs(120 + 2 * 120 + 30);

/// A command that an agent has, and whose outcome has not come, is sent again after this
/// long: the agent answers from its ledger. Only the event can be what was lost.
const ASK_AGAIN: Duration = Duration::from_secs(30);

/// One look at one step of one run.
pub(crate) struct Look<'a, C> {
    pub(crate) store: &'a Store,
    pub(crate) commands: &'a C,
    pub(crate) now: Now,
    pub(crate) run: &'a Run,
    pub(crate) step: Step,
    pub(crate) attempt: u32,
    pub(crate) undo: bool,
}

/// Where a command is.
enum Sent {
    /// On its way: what is waited for.
    Waiting(WaitFor, String),
    /// Over.
    Ended(Outcome),
}

impl<C: Commands> Look<'_, C> {
    /// Performs the step, or its undo.
    pub(crate) async fn perform(&self) -> Result<Report, StoreError> {
        match point(self.step) {
            Some(point) => fail_point!(point, self.act().await),
            None => self.act().await,
        }
    }

    async fn act(&self) -> Result<Report, StoreError> {
        match (self.step, self.undo) {
            (Step::BootInstaller, false) => match self.boot_installer(false).await? {
                Report::Done => self.record_bmc().await,
                other => Ok(other),
            },
            (Step::RestoreBmc, false) => self.restore_bmc().await,
            (Step::SetBmcPassword, false) => self.set_bmc_password().await,
            (Step::SetBmcPassword, true) => self.take_back_bmc_password().await,
            (Step::RestartInstaller | Step::LeaveSystem, false) => self.boot_installer(true).await,
            (Step::WriteImage, false) => self.order(self.deploy_order()).await,
            (Step::EraseDisks, false) => self.order(self.erase_order()).await,
            (Step::RunTests, false) => self.order(self.test_order()).await,
            (Step::StartRescue, false) => self.order(self.rescue_order()).await,
            (Step::StartSystem, false) => self.start_system().await,
            (Step::EndRescue, false) => self.end_rescue().await,
            (Step::SwitchPower, false) => self.switch_power().await,
            (Step::UpdateFirmware, false) => self.update_firmware().await,
            (Step::WriteImage | Step::EraseDisks | Step::RunTests, true) => self.revoke_order().await,
            (Step::StartSystem, true) => self.boot_installer(false).await,
            (Step::LeaveSystem, true) => self.return_to_system().await,
            // They leave nothing behind.
            (
                Step::BootInstaller
                | Step::RestartInstaller
                | Step::SwitchPower
                | Step::StartRescue
                | Step::EndRescue
                | Step::RestoreBmc
                | Step::UpdateFirmware,
                true,
            ) => Ok(Report::Done),
        }
    }

    /// Names what a command is for. The attempt is part of it: another try is another
    /// command.
    fn purpose(&self, what: &str) -> String {
        let undo = if self.undo { "undo " } else { "" };
        format!("{undo}{} {}: {what}", self.step, self.attempt)
    }

    /// Has a machine whose installer did not come boot by its own order again. For a run that is about to
    /// end: its node does the same by itself, later, and also when it cannot be reached now.
    pub(crate) async fn end_boot(&self) -> Result<(), StoreError> {
        let mut tx = self.store.begin().await?;
        let commands = tx.commands_of(self.run.id).await?;
        // A command that only switches the machine off and on ends a way by itself.
        let latest = commands.iter().rfind(|command| command.action != Action::PowerStatus);
        let Some(latest) = latest.filter(|command| Rung::of(command.action).is_some()) else { return Ok(()) };
        let machine = self.machine(&mut tx).await?;
        if tx.bmc(machine.id).await?.is_none() || machine.connection > latest.after {
            return Ok(());
        }
        let command = tx.issue(self.now.wall, self.run, "end: boot order", Action::EndBoot).await?;
        tx.commit().await?;
        self.send(&command).await.map(drop)
    }

    async fn machine(&self, tx: &mut Tx) -> Result<Machine, StoreError> {
        tx.machine(&self.run.machine.to_string()).await
    }

    /// Writes the machine and commits; the rack is woken when what it is told changed.
    async fn commit(&self, mut tx: Tx, machine: &mut Machine) -> Result<(), StoreError> {
        tx.update_machine(self.now.wall, machine).await?;
        tx.commit().await?;
        self.commands.wake(self.run.rack);
        Ok(())
    }

    /// Sends a command unless the agent has it, and says where it is.
    async fn send(&self, command: &StoredCommand) -> Result<Sent, StoreError> {
        if let Some(outcome) = &command.outcome {
            return Ok(Sent::Ended(outcome.clone()));
        }
        let on_its_way = || Sent::Waiting(WaitFor::Power, format!("{} by the power driver", doing(command.action)));
        if let Some(sent) = command.sent {
            let passed = Duration::try_from(self.now.wall.duration_since(sent)).unwrap_or(ASK_AGAIN);
            if passed < ASK_AGAIN {
                return Ok(on_its_way());
            }
        }
        if let Err(unreachable) = self.commands.reachable(command.rack).await {
            return Ok(Sent::Waiting(WaitFor::Agent, unreachable.to_string()));
        }
        if command.offered.is_none() {
            // Written first: should its node be lost now, nobody knows whether it has it.
            let mut tx = self.store.begin().await?;
            let is_open = tx.command_offered(self.now.wall, command.id).await?;
            tx.commit().await?;
            if !is_open {
                return Ok(Sent::Waiting(WaitFor::Agent, "its node was given up".to_owned()));
            }
        }
        let message = Command {
            id: command.id,
            machine: command.machine,
            epoch: command.epoch,
            within: WITHIN,
            action: command.action,
        };
        let answer = fail_point!(
            "command.send",
            Ok::<_, StoreError>(self.commands.command(command.rack, message.clone()).await)
        )?;
        match answer {
            Err(unreachable) => Ok(Sent::Waiting(WaitFor::Agent, unreachable.to_string())),
            Ok(ControllerResponse::Known(outcome)) => {
                let mut tx = self.store.begin().await?;
                tx.command_ended(command.rack, command.id, &outcome).await?;
                tx.commit().await?;
                Ok(Sent::Ended(outcome))
            }
            Ok(ControllerResponse::Accepted) => {
                let mut tx = self.store.begin().await?;
                tx.command_sent(self.now.wall, command.id).await?;
                tx.commit().await?;
                Ok(on_its_way())
            }
            // Not in its ledger, so without effect: most likely it has not stored the
            // intent with this epoch yet.
            Ok(ControllerResponse::Refused(reason)) => {
                Ok(Sent::Waiting(WaitFor::Agent, format!("agent does not take the command: {reason}")))
            }
            // There are other ways than those that its agent does not know yet.
            Ok(ControllerResponse::NotUnderstood(_)) if is_newer(command.action) => {
                let outcome = Outcome::Unsupported("the rack's agent is of an earlier version".to_owned());
                let mut tx = self.store.begin().await?;
                tx.command_ended(command.rack, command.id, &outcome).await?;
                tx.commit().await?;
                Ok(Sent::Ended(outcome))
            }
            // Without effect, and the agent may be the next to be upgraded.
            Ok(ControllerResponse::NotUnderstood(reason)) => {
                Ok(Sent::Waiting(WaitFor::Agent, format!("agent does not understand the command: {reason}")))
            }
            Ok(
                ControllerResponse::Stored(_)
                | ControllerResponse::Trusted
                | ControllerResponse::Reported(_)
                | ControllerResponse::Seen(_)
                | ControllerResponse::Console
                | ControllerResponse::Recording(_)
                | ControllerResponse::Rotated(_)
                | ControllerResponse::Standings(_)
                | ControllerResponse::Met(_)
                | ControllerResponse::Baseline(_)
                | ControllerResponse::Firmware(_),
            ) => Ok(Sent::Waiting(WaitFor::Agent, "agent answered another question".to_owned())),
        }
    }
}

/// The fail point of a step; those that need a toolbox have none, as the rack of the crash matrix has no toolbox.
fn point(step: Step) -> Option<&'static str> {
    Some(match step {
        Step::BootInstaller => "step.boot installer",
        Step::RestartInstaller => "step.restart into installer",
        Step::WriteImage => "step.write image",
        Step::StartSystem => "step.start system",
        Step::EraseDisks => "step.erase disks",
        Step::SwitchPower => "step.switch power",
        Step::LeaveSystem => "step.leave system",
        Step::RunTests => "step.run tests",
        Step::RestoreBmc => "step.restore BMC",
        Step::SetBmcPassword => "step.set BMC password",
        // Nor has its BMC firmware that could be updated.
        Step::StartRescue | Step::EndRescue | Step::UpdateFirmware => return None,
    })
}

fn failed(cause: Cause, detail: impl Into<String>) -> Report {
    Report::Failed(Fault { cause, detail: detail.into() })
}

/// Whether agents of the version before do not know it.
fn is_newer(action: Action) -> bool {
    matches!(action, Action::HttpBoot | Action::LastingNetworkBoot | Action::MediaBoot | Action::EndBoot)
}

fn doing(action: Action) -> &'static str {
    match action {
        Action::PowerOn => "switched on",
        Action::PowerOff => "switched off",
        Action::PowerCycle => "switched off and on",
        Action::NetworkBoot => "restarted from the network",
        Action::HttpBoot => "restarted by UEFI HTTP boot",
        Action::LastingNetworkBoot => "restarted from the network, as at every start",
        Action::MediaBoot => "restarted from virtual media",
        Action::EndBoot => "put back to its own boot order",
        Action::PowerStatus => "power read",
    }
}
