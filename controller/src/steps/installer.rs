//! Bringing a machine into the installer.

use rackhand_common::{
    event::{Outcome, Stage},
    intent::Boot,
    machine::Power,
    wire::Action,
};
use rackhand_controller_core::{
    boot_ladder::Rung,
    workflow::{Cause, Report, WaitFor, hop},
};

use super::{Look, Sent, failed};
use crate::{
    store::{Machine, StoreError, StoredCommand},
    workflows::Commands,
};

impl<C: Commands> Look<'_, C> {
    /// Has the installer connected and without an order; `fresh` restarts the machine even
    /// when one is. Each way of starting it that its BMC does not have is passed over at once.
    pub(super) async fn boot_installer(&self, fresh: bool) -> Result<Report, StoreError> {
        for _ in 0..=Rung::ALL.len() {
            let mut tx = self.store.begin().await?;
            let mut machine = self.machine(&mut tx).await?;
            let issued = self.restart_of(&mut tx).await?;
            machine.boot = Boot::Installer;
            machine.order = None;
            if machine.connected && !fresh && issued.is_none() {
                self.commit(tx, &mut machine).await?;
                return Ok(Report::Done);
            }
            let command = match issued {
                Some(issued) => issued,
                None => match self.next_restart(&mut tx, &machine).await? {
                    Ok(command) => {
                        // From here on only a connection made later counts.
                        machine.connected = false;
                        command
                    }
                    Err(report) => {
                        let Some(command) = self.left_to_people(&mut tx).await? else {
                            return Ok(failed(Cause::NotBooted, report));
                        };
                        self.commit(tx, &mut machine).await?;
                        return Ok(by_hand(&machine, &command));
                    }
                },
            };
            self.commit(tx, &mut machine).await?;
            if has_come(&machine, &command) {
                return Ok(Report::Done);
            }
            match self.send(&command).await? {
                Sent::Ended(Outcome::Unsupported(_)) => {}
                sent => return self.restarted_as(&machine, &command, sent).await,
            }
        }
        Ok(failed(Cause::Internal, "more ways of starting the machine were tried than there are"))
    }

    /// Waits for the installer of a machine that `command` restarts.
    pub(super) async fn restarted(&self, machine: &Machine, command: &StoredCommand) -> Result<Report, StoreError> {
        if has_come(machine, command) {
            return Ok(Report::Done);
        }
        let sent = self.send(command).await?;
        self.restarted_as(machine, command, sent).await
    }

    async fn restarted_as(&self, machine: &Machine, command: &StoredCommand, sent: Sent) -> Result<Report, StoreError> {
        match sent {
            Sent::Waiting(waiting, detail) => Ok(Report::Waiting { waiting, detail, mark: 0 }),
            Sent::Ended(Outcome::Done) if started_disk(machine, command) => Ok(failed(
                Cause::StartedDisk,
                "the machine started the system on its disk instead of the installer: it got no answer from the \
                 network, or its firmware does not boot from there",
            )),
            Sent::Ended(Outcome::Done) => Ok(on_its_way(machine, command)),
            Sent::Ended(Outcome::Refused(reason)) => Ok(failed(Cause::CommandRefused, reason)),
            Sent::Ended(Outcome::Failed(reason) | Outcome::Unsupported(reason)) => Ok(failed(Cause::Power, reason)),
            Sent::Ended(Outcome::Unknown) if machine.stage_event > command.after => {
                // It asked the network for something since: it was restarted.
                Ok(on_its_way(machine, command))
            }
            Sent::Ended(Outcome::Unknown) => self.look(command).await,
        }
    }

    /// The outcome of `command` is unknown: reads the power before anything is done again.
    pub(super) async fn look(&self, command: &StoredCommand) -> Result<Report, StoreError> {
        let mut tx = self.store.begin().await?;
        let look =
            tx.issue(self.now.wall, self.run, &format!("look after {}", command.id), Action::PowerStatus).await?;
        tx.commit().await?;
        match self.send(&look).await? {
            Sent::Waiting(waiting, detail) => Ok(Report::Waiting { waiting, detail, mark: 0 }),
            Sent::Ended(outcome) => {
                let mut tx = self.store.begin().await?;
                let power = match self.machine(&mut tx).await?.power {
                    Some(Power::On) => "on",
                    Some(Power::Off) => "off",
                    None => "not known",
                };
                Ok(failed(
                    Cause::OutcomeUnknown,
                    format!(
                        "the agent stopped in the middle of a command; power is {power} now (reading it: {outcome})"
                    ),
                ))
            }
        }
    }
}

/// A machine that its BMC does not start is started by somebody who stands before it, and its installer has the
/// BMC let us in again.
fn by_hand(machine: &Machine, command: &StoredCommand) -> Report {
    if has_come(machine, command) {
        return Report::Done;
    }
    let why = command.outcome.as_ref().map(ToString::to_string).unwrap_or_default();
    let detail = format!(
        "its BMC does not start it ({why}): switch the machine off and on by hand, and have it start from the network; \
         its installer regains its BMC"
    );
    Report::Waiting { waiting: WaitFor::Installer, detail, mark: 0 }
}

/// Whether the installer has connected that `command` is to bring.
fn has_come(machine: &Machine, command: &StoredCommand) -> bool {
    machine.connected && machine.connection > command.after
}

/// Whether the machine that `command` restarted runs an installed system: one has asked for its
/// address since the power came back, and no installer has connected.
pub(super) fn started_disk(machine: &Machine, command: &StoredCommand) -> bool {
    let since = machine.power_event.max(command.after);
    machine.stage == Some(Stage::OsDhcp) && machine.stage_event > since && !machine.connected
}

/// The boot is counted from the power-on, and told by its latest hop.
fn on_its_way(machine: &Machine, command: &StoredCommand) -> Report {
    let stage = machine.stage.as_ref().filter(|_| machine.stage_event > command.after);
    let (waiting, detail) = hop(stage);
    // After all hops the system is what remains; before an installer it is the wrong one.
    let waiting = match waiting {
        WaitFor::DiskBoot | WaitFor::System => WaitFor::Installer,
        other => other,
    };
    Report::Waiting { waiting, detail: detail.to_owned(), mark: machine.power_event.max(command.after) }
}
