//! Bringing a machine into the installer.

use rackhand_common::{
    event::{Outcome, Stage},
    intent::Boot,
    machine::Power,
    wire::Action,
};
use rackhand_controller_core::workflow::{Cause, Report, WaitFor, hop};

use super::{Look, Sent, failed};
use crate::{
    store::{Machine, StoreError, StoredCommand, Tx},
    workflows::Commands,
};

impl<C: Commands> Look<'_, C> {
    /// Has the installer connected and without an order; `fresh` restarts the machine even
    /// when one is.
    pub(super) async fn boot_installer(&self, fresh: bool) -> Result<Report, StoreError> {
        let mut tx = self.store.begin().await?;
        let mut machine = self.machine(&mut tx).await?;
        let issued = self.restart_of(&mut tx).await?;
        machine.boot = Boot::Installer;
        machine.order = None;
        if machine.connected && !fresh && issued.is_none() {
            self.commit(tx, &mut machine).await?;
            return Ok(Report::Done);
        }
        if issued.is_none() {
            // From here on only a connection made later counts.
            machine.connected = false;
        }
        let command = tx.issue(self.now.wall, self.run, &self.purpose(RESTART), Action::NetworkBoot).await?;
        self.commit(tx, &mut machine).await?;
        self.restarted(&machine, &command).await
    }

    /// This try's command that restarts the machine.
    pub(super) async fn restart_of(&self, tx: &mut Tx) -> Result<Option<StoredCommand>, StoreError> {
        tx.command(self.run.id, &self.purpose(RESTART)).await
    }

    /// Waits for the installer of a machine that `command` restarts.
    pub(super) async fn restarted(&self, machine: &Machine, command: &StoredCommand) -> Result<Report, StoreError> {
        if machine.connected && machine.connection > command.after {
            return Ok(Report::Done);
        }
        match self.send(command).await? {
            Sent::Waiting(waiting, detail) => Ok(Report::Waiting { waiting, detail, mark: 0 }),
            Sent::Ended(Outcome::Done) if started_disk(machine, command) => Ok(failed(
                Cause::StartedDisk,
                "the machine started the system on its disk instead of the installer: it got no answer from the \
                 network, or its firmware does not boot from there",
            )),
            Sent::Ended(Outcome::Done) => Ok(on_its_way(machine, command)),
            Sent::Ended(Outcome::Refused(reason)) => Ok(failed(Cause::CommandRefused, reason)),
            Sent::Ended(Outcome::Failed(reason)) => Ok(failed(Cause::Power, reason)),
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

const RESTART: &str = "restart";

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
    let waiting = if waiting == WaitFor::System { WaitFor::Installer } else { waiting };
    Report::Waiting { waiting, detail: detail.to_owned(), mark: machine.power_event.max(command.after) }
}
