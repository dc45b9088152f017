//! A password for a machine's BMC that only we know: by a login, or by the machine's own installer where the
//! BMC lets us in no more.
//!
//! Invariants:
//! - The next password is in the row, as one that the BMC may have, before an installer is given the order to
//!   set it. The order itself has no password in it.
//! - An installer is given it only while its machine is nobody's: a release has erased it before.
//! - Nobody switches the machine for it: its BMC may be what cannot be reached.

use rackhand_common::intent::{self, Boot, Order, Work};
use rackhand_controller_core::{
    regain::{self, Next, Rotation, Seen},
    workflow::{Cause, Report, WaitFor},
};

use super::{Look, bmc::waiting, failed};
use crate::{
    rotations,
    store::{Machine, OrderEnd, Parameters, StoreError, StoredBmc, Tx},
    workflows::Commands,
};

/// Orders of a run are told apart by their try: those of the steps before count from 1.
const TRIES: u32 = 1 << 16;

impl<C: Commands> Look<'_, C> {
    /// Has the machine's BMC have a password that was made in this run.
    pub(super) async fn set_bmc_password(&self) -> Result<Report, StoreError> {
        let mut tx = self.store.begin().await?;
        let mut machine = self.machine(&mut tx).await?;
        let is_release = matches!(self.run.parameters, Parameters::Release(_));
        let Some(bmc) = tx.bmc(machine.id).await? else {
            return Ok(match is_release {
                true => Report::Done,
                false => failed(Cause::Bmc, "nobody has said how its BMC is reached: `rackhand bmc set`"),
            });
        };
        // What there is no record of is not touched by a release: it is recorded, or looked at by somebody.
        if is_release && tx.baseline(machine.id).await?.is_none_or(|known| known.record.is_none()) {
            return Ok(Report::Done);
        }
        let seen = self.seen(&bmc);
        match regain::next(&seen, is_release) {
            Next::Done => {
                self.take_back(tx, &mut machine).await?;
                Ok(Report::Done)
            }
            Next::Wait(detail) => Ok(waiting(WaitFor::Bmc, &format!("its BMC gets another password: {detail}"))),
            Next::Fail(reason) => Ok(failed(Cause::Bmc, reason)),
            Next::Rotate => {
                tx.begin_rotation(self.now.wall, &machine, &rotations::fresh()).await?;
                tx.commit().await?;
                self.commands.wake(self.run.rack);
                Ok(waiting(WaitFor::Bmc, "its BMC gets another password"))
            }
            Next::Prove => {
                tx.begin_proof(self.now.wall, &machine, self.run.id).await?;
                self.take_back(tx, &mut machine).await?;
                Ok(waiting(WaitFor::Bmc, "its node logs in to its BMC with what the installer has set"))
            }
            Next::InBand => self.order_in_band(tx, machine).await,
        }
    }

    fn seen(&self, bmc: &StoredBmc) -> Seen {
        let began = self.run.created;
        let rotation = bmc.rotation.as_ref().filter(|rotation| rotation.failed.is_none() || rotation.since >= began);
        let rotation = rotation.map(|rotation| match &rotation.failed {
            Some(reason) => Rotation::Failed(reason.clone()),
            None => Rotation::UnderWay(rotation.detail.as_deref().unwrap_or("asked for").to_owned()),
        });
        let result = self.run.result.as_ref().filter(|result| result.attempt == TRIES + self.attempt);
        let in_band = result.map(|result| match &result.end {
            OrderEnd::Done(_) => Ok(()),
            // Behind the reason are the last lines of its log.
            OrderEnd::Failed { detail, .. } => Err(detail.lines().next().unwrap_or_default().to_owned()),
        });
        Seen {
            is_ours: bmc.rotated.is_some_and(|rotated| rotated >= began),
            rotation,
            in_band,
            is_proving: bmc.regained_in == Some(self.run.id),
        }
    }

    /// Has the machine's installer set what is next, and waits for it.
    async fn order_in_band(&self, mut tx: Tx, mut machine: Machine) -> Result<Report, StoreError> {
        let order = Order {
            run: self.run.id,
            attempt: TRIES + self.attempt,
            disks: Vec::new(),
            work: Work::RegainBmc(intent::RegainBmc { mainboard: machine.mainboard() }),
        };
        if machine.order.as_ref() != Some(&order) {
            tx.begin_in_band(&machine, &rotations::fresh()).await?;
            (machine.boot, machine.order) = (Boot::Installer, Some(order));
        }
        let is_there = machine.connected;
        self.commit(tx, &mut machine).await?;
        Ok(match is_there {
            true => waiting(WaitFor::Installer, "installer sets its BMC's user and password in-band"),
            false => waiting(
                WaitFor::Installer,
                "installer is to set its BMC's user and password in-band and is not there: switch the machine off and \
                 on by hand, and have it start from the network",
            ),
        })
    }

    /// No installer sets a password any more.
    pub(super) async fn take_back_bmc_password(&self) -> Result<Report, StoreError> {
        let mut tx = self.store.begin().await?;
        let mut machine = self.machine(&mut tx).await?;
        self.take_back(tx, &mut machine).await?;
        Ok(Report::Done)
    }

    async fn take_back(&self, tx: Tx, machine: &mut Machine) -> Result<(), StoreError> {
        machine.order = machine.order.take().filter(|order| !order.work.regains_bmc());
        self.commit(tx, machine).await
    }
}
