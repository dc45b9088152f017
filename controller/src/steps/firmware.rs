//! Firmware, updated by a machine's BMC, one after the other.
//!
//! Invariants:
//! - What the agent is asked for the first time stands in a row before: should the answer never come, the
//!   machine is in doubt.
//! - Only the agent that was asked first is asked: one of a node that followed could send it a second time.
//! - One is begun only when the one before is installed, as the version said that was read.
//! - A cancel stops before the next one, never in one.

use rackhand_common::{
    firmware::{Answered, Ask, Place, Update},
    id::AgentId,
    intent::Boot,
    wire::Action,
};
use rackhand_controller_core::workflow::{Cause, Report, WaitFor};

use super::{Look, failed};
use crate::{
    store::{FirmwareUpdate, Parameters, StoreError, UpdateState},
    workflows::Commands,
};

impl<C: Commands> Look<'_, C> {
    /// Has each update of the run done.
    pub(super) async fn update_firmware(&self) -> Result<Report, StoreError> {
        let Parameters::Firmware(wanted) = &self.run.parameters else {
            return Ok(failed(Cause::Internal, "the run's parameters name no firmware"));
        };
        let known = self.store.begin().await?.updates_of(self.run.id).await?;
        for update in &wanted.updates {
            let known = known.get(&update.name);
            if known.is_some_and(|known| known.state == UpdateState::Installed) {
                continue;
            }
            if known.is_none() && self.run.cancel {
                return Ok(failed(Cause::Cancelled, format!("cancelled before {}", update.name)));
            }
            match self.update(update, known).await? {
                Report::Done => {}
                other => return Ok(other),
            }
        }
        Ok(Report::Done)
    }

    async fn update(&self, update: &Update, known: Option<&FirmwareUpdate>) -> Result<Report, StoreError> {
        let was = known.and_then(|known| known.was.as_deref());
        let agents = self.store.begin().await?.agents_of(self.run.rack).await?;
        let serving = agents.iter().find(|agent| agent.revoked.is_none()).map(|agent| agent.id);
        let (state, agent) = match known {
            Some(FirmwareUpdate { state: UpdateState::Failed | UpdateState::Refused, detail, .. }) => {
                return Ok(failed(Cause::Firmware, detail));
            }
            // Another node knows nothing of what this one has sent.
            Some(FirmwareUpdate { state: UpdateState::Asked, agent, name, .. }) if serving != Some(*agent) => {
                let detail = format!("{name}: the rack's node was given up in the middle of it, and may have sent it");
                self.note(update, *agent, UpdateState::Failed, was, &detail).await?;
                return Ok(failed(Cause::Firmware, detail));
            }
            Some(known) => (known.state, known.agent),
            None => {
                let Some(agent) = serving else {
                    return Ok(waiting(WaitFor::Agent, "the rack has no node that is enrolled".to_owned(), 0));
                };
                self.note(update, agent, UpdateState::Asked, None, "").await?;
                (UpdateState::Asked, agent)
            }
        };
        if state == UpdateState::Staged {
            match self.restart_for(update).await? {
                Report::Done => self.note(update, agent, UpdateState::Confirming, was, "").await?,
                other => return Ok(other),
            }
        }
        let confirm = matches!(state, UpdateState::Staged | UpdateState::Confirming);
        let ask = Ask { run: self.run.id, update: update.clone(), confirm };
        let answered = self.commands.firmware(self.run.rack, self.run.machine, self.run.epoch, ask).await;
        let name = &update.name;
        match answered {
            Err(unreachable) => Ok(waiting(WaitFor::Agent, unreachable.to_string(), 0)),
            Ok(None) => {
                let detail = "the rack's agent is of an earlier version: upgrade it".to_owned();
                Ok(waiting(WaitFor::Agent, detail, 0))
            }
            Ok(Some(Answered::UnderWay { detail, mark })) => {
                Ok(waiting(WaitFor::Firmware, format!("{name}: {detail}"), mark))
            }
            Ok(Some(Answered::Later(reason))) => Ok(waiting(WaitFor::Bmc, format!("{name}: {reason}"), 0)),
            Ok(Some(Answered::Staged)) if confirm => {
                let detail = format!("{name}: its BMC wants another start of the machine, which had one");
                self.note(update, agent, UpdateState::Failed, was, &detail).await?;
                Ok(failed(Cause::Firmware, detail))
            }
            Ok(Some(Answered::Staged)) => {
                self.note(update, agent, UpdateState::Staged, was, "").await?;
                self.restart_for(update).await
            }
            Ok(Some(Answered::Installed { was })) => {
                self.note(update, agent, UpdateState::Installed, was.as_deref(), "").await?;
                Ok(Report::Done)
            }
            Ok(Some(Answered::Refused(reason))) => {
                let detail = format!("{name} was not installed, and nothing is changed: {reason}");
                self.note(update, agent, UpdateState::Refused, was, &detail).await?;
                Ok(failed(Cause::Firmware, detail))
            }
            Ok(Some(Answered::Failed(reason))) => {
                let detail = format!("{name}: {reason}");
                self.note(update, agent, UpdateState::Failed, was, &detail).await?;
                Ok(failed(Cause::Firmware, detail))
            }
        }
    }

    async fn note(
        &self,
        update: &Update,
        agent: AgentId,
        state: UpdateState,
        was: Option<&str>,
        detail: &str,
    ) -> Result<(), StoreError> {
        let mut tx = self.store.begin().await?;
        let machine = self.run.machine;
        tx.note_update(self.now.wall, (machine, self.run.id, agent), update, (state, was, detail)).await?;
        if state == UpdateState::Installed && update.place == Place::Bmc {
            tx.note_bmc_firmware(self.now.wall, machine, &update.version).await?;
        }
        tx.commit().await
    }

    /// Has the machine started anew, into a fresh installer, for what its BMC has staged; done when that is
    /// connected.
    async fn restart_for(&self, update: &Update) -> Result<Report, StoreError> {
        let purpose = self.purpose(&format!("restart for {}", update.name));
        let mut tx = self.store.begin().await?;
        let mut machine = self.machine(&mut tx).await?;
        machine.boot = Boot::Installer;
        if tx.command(self.run.id, &purpose).await?.is_none() {
            // From here on only a connection made later counts.
            machine.connected = false;
        }
        let command = tx.issue(self.now.wall, self.run, &purpose, Action::NetworkBoot).await?;
        self.commit(tx, &mut machine).await?;
        self.restarted(&machine, &command).await
    }
}

fn waiting(waiting: WaitFor, detail: String, mark: u64) -> Report {
    Report::Waiting { waiting, detail, mark }
}
