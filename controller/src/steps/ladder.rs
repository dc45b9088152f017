//! By which way a machine is started into its installer: the rows that
//! [`boot_ladder`](rackhand_controller_core::boot_ladder) decides from.

use rackhand_common::{
    bmc::Protocol,
    event::{Outcome, Stage},
};
use rackhand_controller_core::{
    boot_ladder::{Next, Rung, Seen, Switch, Try, Ways, Went, next},
    workflow::Step,
};

use super::Look;
use crate::{
    store::{Happened, Machine, Parameters, StoreError, StoredCommand, Tx},
    workflows::Commands,
};

/// What ends the purpose of a command that starts a machine into the installer.
const RESTART: &str = "restart";

impl<C: Commands> Look<'_, C> {
    /// This try's command that restarts the machine, unless the machine cannot be started so.
    pub(super) async fn restart_of(&self, tx: &mut Tx) -> Result<Option<StoredCommand>, StoreError> {
        let here = self.purpose(RESTART);
        let restarts = self.restarts(tx).await?;
        let latest = restarts.into_iter().rfind(|(_, command)| command.purpose.starts_with(&here));
        Ok(latest
            .map(|(_, command)| command)
            .filter(|command| !matches!(command.outcome, Some(Outcome::Unsupported(_)))))
    }

    /// Makes the command that restarts the machine in the next way; what to report when none is left.
    pub(super) async fn next_restart(
        &self,
        tx: &mut Tx,
        machine: &Machine,
    ) -> Result<Result<StoredCommand, String>, StoreError> {
        let tries = self.tries(tx).await?;
        let rung = match next(self.ways(tx, machine).await?, &tries) {
            Next::Start(rung) => rung,
            Next::Report(report) => return Ok(Err(report)),
        };
        let purpose = match rung {
            Rung::Network => self.purpose(RESTART),
            other => format!("{} by {other}", self.purpose(RESTART)),
        };
        let command = tx.issue(self.now.wall, self.run, &purpose, rung.action()).await?;
        tx.run_goes(self.run.id, rung).await?;
        let (wall, rack, machine) = (self.now.wall, self.run.rack, Some(machine.id));
        tx.insert_event(wall, rack, machine, Some(self.run.id), &Happened::Starts { way: rung.to_string() }).await?;
        Ok(Ok(command))
    }

    /// The first command of a release of whose commands its BMC has carried out none: only somebody who stands
    /// before the machine can start it. Nothing when there is another way, or it was started.
    pub(super) async fn left_to_people(&self, tx: &mut Tx) -> Result<Option<StoredCommand>, StoreError> {
        let is_release = matches!(self.run.parameters, Parameters::Release(_));
        if !is_release || self.undo || self.step != Step::RestartInstaller || tx.bmc(self.run.machine).await?.is_none()
        {
            return Ok(None);
        }
        let tries = self.tries(tx).await?;
        if tries.iter().any(|tried| matches!(tried.went, Went::Started(_))) {
            return Ok(None);
        }
        let restarts = self.restarts(tx).await?;
        let refused =
            |command: &StoredCommand| matches!(command.outcome, Some(Outcome::Refused(_) | Outcome::Failed(_)));
        Ok(restarts.into_iter().map(|(_, command)| command).find(refused))
    }

    /// The way to bring back a machine whose installer was there in this run.
    pub(super) async fn known_way(&self, tx: &mut Tx, machine: &Machine) -> Result<Rung, StoreError> {
        Ok(self.ways(tx, machine).await?.before.unwrap_or(Rung::Network))
    }

    async fn ways(&self, tx: &mut Tx, machine: &Machine) -> Result<Ways, StoreError> {
        let switch = match tx.bmc(machine.id).await?.map(|bmc| bmc.access.protocol) {
            None => Switch::Command,
            Some(Protocol::Ipmi) => Switch::Ipmi,
            Some(Protocol::Redfish | Protocol::Either) => Switch::Redfish,
        };
        // An earlier step of this run was done only because the installer came.
        let steps = format!("{} ", self.step);
        let earlier = tx.commands_of(self.run.id).await?.into_iter().filter(|command| {
            command.outcome == Some(Outcome::Done) && !command.purpose.trim_start_matches("undo ").starts_with(&steps)
        });
        let before = match earlier.filter_map(|command| Rung::of(command.action)).next_back() {
            Some(rung) => Some(rung),
            None => tx.booted_by(machine.id).await?.and_then(Rung::of),
        };
        Ok(Ways { switch, firmware: machine.inventory.firmware, before })
    }

    /// The commands with which this step, or its undo, restarted the machine, in all of its tries.
    async fn restarts(&self, tx: &mut Tx) -> Result<Vec<(Rung, StoredCommand)>, StoreError> {
        let undo = if self.undo { "undo " } else { "" };
        let mine = format!("{undo}{} ", self.step);
        let commands = tx.commands_of(self.run.id).await?.into_iter();
        let mine = commands.filter(|command| {
            let tried = command.purpose.strip_prefix(&mine).and_then(|rest| rest.split_once(": "));
            tried.is_some_and(|(_, what)| what.starts_with(RESTART))
        });
        Ok(mine.filter_map(|command| Rung::of(command.action).map(|rung| (rung, command))).collect())
    }

    /// How each of them went.
    async fn tries(&self, tx: &mut Tx) -> Result<Vec<Try>, StoreError> {
        let restarts = self.restarts(tx).await?;
        let mut tries = Vec::with_capacity(restarts.len());
        for (index, (rung, command)) in restarts.iter().enumerate() {
            let until = restarts.get(index + 1).map(|(_, later)| later.after);
            let stages = tx.stages_between(command.machine, command.after, until).await?;
            let came = stages.iter().any(|stage| *stage != Stage::PoweredOn);
            let went = match &command.outcome {
                Some(Outcome::Unsupported(reason)) => Went::Unsupported(reason.clone()),
                Some(Outcome::Refused(reason) | Outcome::Failed(reason)) => Went::NotStarted(reason.clone()),
                Some(Outcome::Unknown) if !came => Went::NotStarted(Outcome::Unknown.to_string()),
                None if !came => Went::NotStarted("its node did not say what came of it".to_owned()),
                Some(Outcome::Done | Outcome::Unknown) | None => Went::Started(Seen::of(&stages)),
            };
            tries.push(Try { rung: *rung, went });
        }
        Ok(tries)
    }
}
