//! Chassis power, as an operator wants it.

use rackhand_common::{event::Outcome, machine::Power};
use rackhand_controller_core::workflow::{Cause, Report};

use super::{Look, Sent, failed};
use crate::{
    store::{Parameters, PowerChange, StoreError},
    workflows::Commands,
};

impl<C: Commands> Look<'_, C> {
    pub(super) async fn switch_power(&self) -> Result<Report, StoreError> {
        let Parameters::Power(change) = self.run.parameters else {
            return Ok(failed(Cause::Internal, "the run's parameters name no power change"));
        };
        let mut tx = self.store.begin().await?;
        let command = tx.issue(self.now.wall, self.run, &self.purpose("switch"), change.action()).await?;
        tx.commit().await?;
        match self.send(&command).await? {
            Sent::Waiting(waiting, detail) => Ok(Report::Waiting { waiting, detail, mark: 0 }),
            Sent::Ended(Outcome::Done) => Ok(Report::Done),
            Sent::Ended(Outcome::Refused(reason)) => Ok(failed(Cause::CommandRefused, reason)),
            Sent::Ended(Outcome::Failed(reason) | Outcome::Unsupported(reason)) => Ok(failed(Cause::Power, reason)),
            Sent::Ended(Outcome::Unknown) => match self.look(&command).await? {
                Report::Failed(fault) => {
                    let mut tx = self.store.begin().await?;
                    let power = self.machine(&mut tx).await?.power;
                    match (change, power) {
                        (PowerChange::On, Some(Power::On)) | (PowerChange::Off, Some(Power::Off)) => Ok(Report::Done),
                        // It may have been off in between, or not: switching the machine of
                        // someone off a second time is not ours to decide.
                        (PowerChange::Cycle, Some(Power::On) | None) => Ok(failed(Cause::Power, fault.detail)),
                        _ => Ok(Report::Failed(fault)),
                    }
                }
                other => Ok(other),
            },
        }
    }
}
