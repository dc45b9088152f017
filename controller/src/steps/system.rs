//! Starting the installed system.

use std::time::Duration;

use rackhand_common::{
    event::{Outcome, Stage},
    intent::Boot,
    wire::Action,
};
use rackhand_controller_core::workflow::{Cause, Report, WaitFor, hop};

use super::{LOST_MAY_ACT, Look, Sent, failed};
use crate::{
    store::{Machine, StoreError, Tx},
    workflows::{Commands, may_have_written},
};

impl<C: Commands> Look<'_, C> {
    /// Has the machine start its own disk, and waits until the system calls home. The
    /// installer restarts it once the intent says disk; from the second try on it is
    /// switched off and on.
    pub(super) async fn start_system(&self) -> Result<Report, StoreError> {
        if self.run.phoned_home {
            return self.settled().await;
        }
        let mut tx = self.store.begin().await?;
        let mut machine = self.machine(&mut tx).await?;
        machine.boot = Boot::Disk;
        machine.order = None;
        let command = match self.attempt {
            1 => None,
            _ => Some(tx.issue(self.now.wall, self.run, &self.purpose(CYCLE), Action::PowerCycle).await?),
        };
        self.commit(tx, &mut machine).await?;
        if let Some(command) = &command {
            match self.send(command).await? {
                Sent::Waiting(waiting, detail) => return Ok(Report::Waiting { waiting, detail, mark: 0 }),
                Sent::Ended(Outcome::Done) => {}
                Sent::Ended(Outcome::Refused(reason)) => return Ok(failed(Cause::CommandRefused, reason)),
                Sent::Ended(Outcome::Failed(reason) | Outcome::Unsupported(reason)) => {
                    return Ok(failed(Cause::Power, reason));
                }
                Sent::Ended(Outcome::Unknown) if machine.stage_event > command.after => {}
                Sent::Ended(Outcome::Unknown) => return self.look(command).await,
            }
        }
        let (waiting, detail) = match (&machine.stage, &command) {
            (Some(Stage::Rebooting | Stage::OsDhcp), None) => hop(machine.stage.as_ref()),
            (_, None) if machine.connected => (WaitFor::Installer, "written, has not restarted yet"),
            (_, None) => (WaitFor::DiskBoot, "restarted, has not been heard of"),
            (stage, Some(command)) => hop(stage.as_ref().filter(|_| machine.stage_event > command.after)),
        };
        // Counted from its restart.
        let mark = match &machine.stage {
            Some(Stage::Rebooting | Stage::OsDhcp) if command.is_none() => machine.stage_event,
            _ => command.map_or(0, |command| machine.power_event.max(command.after)),
        };
        Ok(Report::Waiting { waiting, detail: detail.to_owned(), mark })
    }

    /// Has the system that was there before run again, unless its disk may be changed: then the
    /// machine stays in its installer.
    pub(super) async fn return_to_system(&self) -> Result<Report, StoreError> {
        let mut tx = self.store.begin().await?;
        let mut machine = self.machine(&mut tx).await?;
        let changed = may_have_written(self.run);
        machine.boot = if changed { Boot::Installer } else { Boot::Disk };
        machine.order = None;
        if changed || !tx.has_commands(self.run.id).await? {
            self.commit(tx, &mut machine).await?;
            return Ok(Report::Done);
        }
        self.cycled(tx, machine).await
    }

    /// Has the system run again that a rescue interrupted. The installer restarts the machine itself, so
    /// that what people changed in a rescue is on its disks; where none is there, and at the second try,
    /// the machine is switched off and on.
    pub(super) async fn end_rescue(&self) -> Result<Report, StoreError> {
        let mut tx = self.store.begin().await?;
        let mut machine = self.machine(&mut tx).await?;
        machine.boot = Boot::Disk;
        machine.order = None;
        if self.attempt > 1 || tx.command(self.run.id, &self.purpose(CYCLE)).await?.is_some() {
            return self.cycled(tx, machine).await;
        }
        if machine.connected {
            self.commit(tx, &mut machine).await?;
            let detail = "rescue system is told to restart the machine, and is still there".to_owned();
            return Ok(Report::Waiting { waiting: WaitFor::Installer, detail, mark: 0 });
        }
        let is_gone = matches!(machine.stage, Some(Stage::Rebooting | Stage::OsDhcp));
        if is_gone && machine.stage_event > machine.connection {
            self.commit(tx, &mut machine).await?;
            return Ok(Report::Done);
        }
        self.cycled(tx, machine).await
    }

    /// Switches the machine off and on, into what its row says.
    async fn cycled(&self, mut tx: Tx, mut machine: Machine) -> Result<Report, StoreError> {
        let command = tx.issue(self.now.wall, self.run, &self.purpose(CYCLE), Action::PowerCycle).await?;
        self.commit(tx, &mut machine).await?;
        match self.send(&command).await? {
            Sent::Waiting(waiting, detail) => Ok(Report::Waiting { waiting, detail, mark: 0 }),
            Sent::Ended(Outcome::Done) => Ok(Report::Done),
            Sent::Ended(Outcome::Refused(reason)) => Ok(failed(Cause::CommandRefused, reason)),
            Sent::Ended(Outcome::Failed(reason) | Outcome::Unsupported(reason)) => Ok(failed(Cause::Power, reason)),
            Sent::Ended(Outcome::Unknown) if machine.stage_event > command.after => Ok(Report::Done),
            Sent::Ended(Outcome::Unknown) => self.look(&command).await,
        }
    }

    /// The system runs. It is handed over once nothing of ours can reach its power any more:
    /// an agent performs a machine's commands in the order they came, so when a look that
    /// was sent last is answered, every command before it is over or will never be begun.
    async fn settled(&self) -> Result<Report, StoreError> {
        let mut tx = self.store.begin().await?;
        // A node that was given up and is alive may still begin what it was given last.
        if let Some(lost) = tx.lost_last(self.run.machine).await? {
            let passed = Duration::try_from(self.now.wall.duration_since(lost)).unwrap_or(LOST_MAY_ACT);
            if passed < LOST_MAY_ACT {
                let until = lost.checked_add(LOST_MAY_ACT).unwrap_or(lost).strftime("%H:%M:%S UTC");
                let detail =
                    format!("the system runs; a node that was given up may act on its last command until {until}");
                return Ok(Report::Waiting { waiting: WaitFor::Power, detail, mark: 1 });
            }
        }
        let purpose = self.purpose("last look");
        let last = match tx.command(self.run.id, &purpose).await? {
            Some(last) => last,
            None if !tx.has_open_command(self.run.id).await? => return Ok(Report::Done),
            None => tx.issue(self.now.wall, self.run, &purpose, Action::PowerStatus).await?,
        };
        tx.commit().await?;
        match self.send(&last).await? {
            Sent::Waiting(waiting, detail) => Ok(Report::Waiting { waiting, detail, mark: 1 }),
            Sent::Ended(_) => Ok(Report::Done),
        }
    }
}

const CYCLE: &str = "cycle";
