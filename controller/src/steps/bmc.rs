//! The BMC of a machine: recorded before anybody is given the machine, and put back to that record
//! after.
//!
//! Invariants:
//! - A machine that has a BMC is handed out with a record of it.
//! - A release ends well only when the BMC was read as it was recorded after everything was done, and
//!   has a password that was made in this release ([`regain`](super::regain)).
//! - Nothing that cannot be read again counts as put back.

use rackhand_common::bmc::baseline::{Answered, Ask, Asker, Baseline, Difference, Restored};
use rackhand_controller_core::workflow::{Cause, Report, WaitFor};

use super::{Look, failed};
use crate::{store::StoreError, workflows::Commands};

/// How many differences a reason names.
const NAMED: usize = 4;

/// What came of asking for the BMC.
enum Heard {
    Done(Box<Restored>),
    /// The rack's agent is of an earlier version.
    NotUnderstood,
    Not(Report),
}

impl<C: Commands> Look<'_, C> {
    /// Has the BMC recorded unless it is, or there is none.
    pub(super) async fn record_bmc(&self) -> Result<Report, StoreError> {
        let mut tx = self.store.begin().await?;
        let machine = self.run.machine;
        let is_recorded = tx.baseline(machine).await?.is_some_and(|known| known.record.is_some());
        if is_recorded || tx.bmc(machine).await?.is_none() {
            return Ok(Report::Done);
        }
        drop(tx);
        match self.ask_bmc(None, 1).await? {
            Heard::Done(restored) => {
                let mut tx = self.store.begin().await?;
                tx.note_baseline(self.now.wall, machine, &restored).await?;
                tx.record_baseline(self.now.wall, machine, None).await?;
                tx.commit().await?;
                Ok(Report::Done)
            }
            // Its release says that there is no record.
            Heard::NotUnderstood => Ok(Report::Done),
            Heard::Not(report) => Ok(report),
        }
    }

    /// Has the BMC put back to its record; a start of the machine in between when its firmware's settings need
    /// one. It has a password of this release's by now.
    pub(super) async fn restore_bmc(&self) -> Result<Report, StoreError> {
        let machine = self.run.machine;
        let mut tx = self.store.begin().await?;
        if tx.bmc(machine).await?.is_none() {
            return Ok(Report::Done);
        }
        let Some(record) = tx.baseline(machine).await?.and_then(|known| known.record) else {
            if tx.last_install(machine).await?.is_some() {
                let name = &self.run.machine_name;
                return Ok(failed(
                    Cause::Bmc,
                    format!(
                        "there is no record of how its BMC was before it was handed out: look at it with `rackhand \
                         machine baseline read {name}`, and if it is as it should be `rackhand machine baseline accept \
                         {name}`, then release the machine again"
                    ),
                ));
            }
            drop(tx);
            return self.record_bmc().await;
        };
        let issued = self.restart_of(&mut tx).await?;
        drop(tx);
        if issued.is_some() {
            match self.boot_installer(true).await? {
                Report::Done => {}
                other => return Ok(other),
            }
        }
        let restored = match self.ask_bmc(Some(&record), 1 + u32::from(issued.is_some())).await? {
            Heard::Done(restored) => restored,
            Heard::NotUnderstood => {
                return Ok(waiting(WaitFor::Agent, "the rack's agent is of an earlier version: upgrade it"));
            }
            Heard::Not(report) => return Ok(report),
        };
        let mut tx = self.store.begin().await?;
        tx.note_baseline(self.now.wall, machine, &restored).await?;
        tx.commit().await?;
        let left = restored.left(&record);
        if left.is_empty() && restored.doubts.is_empty() {
            return Ok(Report::Done);
        }
        if issued.is_none() && restored.is_to_restart(&record) {
            return self.boot_installer(true).await;
        }
        Ok(failed(Cause::Bmc, reason(&self.run.machine_name, &left, &restored)))
    }

    async fn ask_bmc(&self, record: Option<&Baseline>, count: u32) -> Result<Heard, StoreError> {
        let asker = Asker::Run(self.run.id, self.attempt, count);
        let ask = Ask { asker, record: record.cloned() };
        let answered = self.commands.baseline(self.run.rack, self.run.machine, self.run.epoch, ask).await;
        Ok(match answered {
            Err(unreachable) => Heard::Not(waiting(WaitFor::Agent, &unreachable.to_string())),
            Ok(None) => Heard::NotUnderstood,
            Ok(Some(Answered::UnderWay)) => Heard::Not(waiting(WaitFor::Bmc, "its BMC is being read")),
            Ok(Some(Answered::Later(reason))) => Heard::Not(waiting(WaitFor::Bmc, &reason)),
            Ok(Some(Answered::Failed(reason))) => {
                Heard::Not(failed(Cause::Bmc, format!("its BMC cannot be read: {reason}")))
            }
            Ok(Some(Answered::Done(mut restored))) => {
                self.store.begin().await?.add_told_in_band(self.run.machine, &mut restored).await?;
                Heard::Done(restored)
            }
        })
    }
}

pub(super) fn waiting(waiting: WaitFor, detail: &str) -> Report {
    Report::Waiting { waiting, detail: detail.to_owned(), mark: 0 }
}

fn reason(name: &str, left: &[Difference], restored: &Restored) -> String {
    let differences = left.iter().map(ToString::to_string);
    let mut named: Vec<_> = restored.doubts.iter().cloned().chain(differences).collect();
    let more = named.len().saturating_sub(NAMED);
    named.truncate(NAMED);
    named.extend((more > 0).then(|| format!("and {more} more")));
    named.extend(restored.refused.first().map(|refused| format!("the BMC refused {refused}")));
    format!(
        "its BMC is not as it was recorded: {}; see `rackhand machine baseline show {name}`, put it right or accept it, \
         and release the machine again",
        named.join("; ")
    )
}
