//! Firmware, updated by a machine's BMC or by a script that its installer runs, one after the other.
//!
//! Invariants:
//! - What the agent is asked for the first time stands in a row before: should the answer never come, the
//!   machine is in doubt.
//! - Only the agent that was asked first is asked: one of a node that followed could send it a second time.
//! - One is begun only when the one before is installed, as the version said that was read.
//! - A cancel stops before the next one, never in one.

use rackhand_common::{
    firmware::{self, Answered, Ask, Outcome, Place, Scripted, Update},
    id::AgentId,
    intent::{self, Boot, Work},
    wire::Action,
};
use rackhand_controller_core::workflow::{Cause, Report, WaitFor};

use super::{Look, failed};
use crate::{
    store::{FirmwareUpdate, FirmwareUpdates, OrderEnd, Parameters, StoreError, Told, UpdateState},
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
        let mut was = known.and_then(|known| known.was.clone());
        let agents = self.store.begin().await?.agents_of(self.run.rack).await?;
        let serving = agents.iter().find(|agent| agent.revoked.is_none()).map(|agent| agent.id);
        let (state, agent) = match known {
            Some(FirmwareUpdate { state: UpdateState::Failed | UpdateState::Refused, detail, .. }) => {
                return Ok(failed(Cause::Firmware, detail));
            }
            // Another node knows nothing of what this one has sent.
            Some(FirmwareUpdate { state: UpdateState::Asked, agent, name, .. }) if serving != Some(*agent) => {
                let detail = format!("{name}: the rack's node was given up in the middle of it, and may have sent it");
                self.note(update, *agent, UpdateState::Failed, was.as_deref(), &detail).await?;
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
                Report::Done => self.note(update, agent, UpdateState::Confirming, was.as_deref(), "").await?,
                other => return Ok(other),
            }
        }
        let confirm = matches!(state, UpdateState::Staged | UpdateState::Confirming);
        let answered = match &update.script {
            None => match self.ask_agent(update, confirm).await {
                Ok(answered) => answered,
                Err(report) => return Ok(report),
            },
            Some(by) => match self.ask_installer(update, by, known, confirm).await? {
                Ok((answered, before)) => {
                    was = before.or(was);
                    answered
                }
                Err(report) => return Ok(report),
            },
        };
        let (name, was) = (&update.name, was.as_deref());
        match answered {
            Answered::UnderWay { detail, mark } => Ok(waiting(WaitFor::Firmware, format!("{name}: {detail}"), mark)),
            Answered::Later(reason) => Ok(waiting(WaitFor::Bmc, format!("{name}: {reason}"), 0)),
            Answered::Staged if confirm => {
                let detail = format!("{name}: its BMC wants another start of the machine, which had one");
                self.note(update, agent, UpdateState::Failed, was, &detail).await?;
                Ok(failed(Cause::Firmware, detail))
            }
            Answered::Staged => {
                self.note(update, agent, UpdateState::Staged, was, "").await?;
                self.restart_for(update).await
            }
            Answered::Installed { was: before } => {
                let was = before.as_deref().or(was);
                self.note(update, agent, UpdateState::Installed, was, "").await?;
                Ok(Report::Done)
            }
            Answered::Refused(reason) => {
                let detail = format!("{name} was not installed, and nothing is changed: {reason}");
                self.note(update, agent, UpdateState::Refused, was, &detail).await?;
                Ok(failed(Cause::Firmware, detail))
            }
            Answered::Failed(reason) => {
                let detail = format!("{name}: {reason}");
                self.note(update, agent, UpdateState::Failed, was, &detail).await?;
                Ok(failed(Cause::Firmware, detail))
            }
        }
    }

    /// What the rack's agent answers of an update by the BMC; what is waited for when it does not.
    async fn ask_agent(&self, update: &Update, confirm: bool) -> Result<Answered, Report> {
        let ask = Ask { run: self.run.id, update: update.clone(), confirm };
        match self.commands.firmware(self.run.rack, self.run.machine, self.run.epoch, ask).await {
            Ok(Some(answered)) => Ok(answered),
            Ok(None) => {
                let detail = "the rack's agent is of an earlier version: upgrade it".to_owned();
                Err(waiting(WaitFor::Agent, detail, 0))
            }
            Err(unreachable) => Err(waiting(WaitFor::Agent, unreachable.to_string(), 0)),
        }
    }

    /// What the machine's installer told of an update by a script, and the versions before; what is waited for
    /// until it does. The order is taken back with its answer: no other node gets it.
    async fn ask_installer(
        &self,
        update: &Update,
        by: &Scripted,
        known: Option<&FirmwareUpdate>,
        confirm: bool,
    ) -> Result<Result<(Answered, Option<String>), Report>, StoreError> {
        let Parameters::Firmware(FirmwareUpdates { updates, mainboard }) = &self.run.parameters else {
            return Ok(Err(failed(Cause::Internal, "the run's parameters name no firmware")));
        };
        let place = updates.iter().position(|other| other.name == update.name).unwrap_or_default();
        // Each order of the run has a number of its own: what ended one says nothing of another.
        let attempt = u32::try_from(place).unwrap_or_default() * 2 + 1 + u32::from(confirm);
        let told = known.and_then(|known| known.told.as_ref()).filter(|told| told.attempt == attempt);
        let result = self.run.result.as_ref().filter(|result| result.attempt == attempt);
        let ended = match (told, result.map(|result| &result.end)) {
            (Some(Told { updated, .. }), _) => Some((answer(&updated.outcome, updated.before()), updated.before())),
            // It did not come to look at its parts, or an earlier one that did is not known of.
            (None, Some(OrderEnd::Failed { detail, .. })) => {
                let why = detail.lines().next().unwrap_or_default();
                Some((Answered::Failed(format!("its installer does not do it: {why}")), None))
            }
            (None, _) => None,
        };
        if let Some(ended) = ended {
            let mut tx = self.store.begin().await?;
            let mut machine = self.machine(&mut tx).await?;
            machine.order = None;
            self.commit(tx, &mut machine).await?;
            return Ok(Ok(ended));
        }
        let Update { name, version, from, file, size, sha256, restart, timeout, settle, .. } = update.clone();
        let work = Work::Firmware(Box::new(firmware::Order {
            name,
            by: by.clone(),
            version,
            from,
            file,
            size,
            sha256,
            restart,
            confirm,
            timeout,
            settle,
            mainboard: mainboard.clone(),
        }));
        let order = intent::Order { run: self.run.id, attempt, disks: Vec::new(), work };
        Ok(Err(self.order(Some(order)).await?))
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
        machine.order = None;
        if tx.command(self.run.id, &purpose).await?.is_none() {
            // From here on only a connection made later counts.
            machine.connected = false;
        }
        let command = tx.issue(self.now.wall, self.run, &purpose, Action::NetworkBoot).await?;
        self.commit(tx, &mut machine).await?;
        self.restarted(&machine, &command).await
    }
}

fn answer(outcome: &Outcome, was: Option<String>) -> Answered {
    match outcome {
        Outcome::Installed => Answered::Installed { was },
        Outcome::Staged => Answered::Staged,
        Outcome::Refused(reason) => Answered::Refused(reason.clone()),
        Outcome::Failed(reason) => Answered::Failed(reason.clone()),
    }
}

fn waiting(waiting: WaitFor, detail: String, mark: u64) -> Report {
    Report::Waiting { waiting, detail, mark }
}
