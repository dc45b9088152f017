//! Orders for the installer: given, waited for, and taken back.

use rackhand_common::{
    event::{self, Stage},
    intent::{self, Boot, Order, Work},
};
use rackhand_controller_core::{
    identity::Part,
    workflow::{Cause, Report, Step, WaitFor, hop},
};

use super::{Look, failed, installer::started_disk};
use crate::{
    store::{Machine, OrderEnd, Parameters, StoreError, StoredCommand, Tests, Tx},
    verbs::{disk_identities, listed},
    workflows::Commands,
};

/// How often a machine that is lost in the middle of an order is brought back.
const BRING_BACK: u32 = 3;

impl<C: Commands> Look<'_, C> {
    pub(super) fn deploy_order(&self) -> Option<Order> {
        let deploy = self.run.parameters.install()?;
        Some(Order {
            run: self.run.id,
            attempt: self.attempt,
            disks: deploy.disks.clone(),
            work: Work::deploying(
                intent::Deploy { manifest: deploy.manifest, disk: deploy.disk.clone(), host: deploy.host.clone() },
                deploy.mainboard.clone(),
            ),
        })
    }

    pub(super) fn erase_order(&self) -> Option<Order> {
        let Parameters::Release(release) = &self.run.parameters else { return None };
        let work = Work::erasing(release.mainboard.clone());
        Some(Order { run: self.run.id, attempt: self.attempt, disks: release.disks.clone(), work })
    }

    pub(super) fn test_order(&self) -> Option<Order> {
        let Parameters::Test(Tests { scripts, disks, mainboard, .. }) = &self.run.parameters else { return None };
        let work = Work::Test(intent::Test { scripts: scripts.clone(), mainboard: mainboard.clone() });
        Some(Order { run: self.run.id, attempt: self.attempt, disks: disks.clone(), work })
    }

    pub(super) fn rescue_order(&self) -> Option<Order> {
        let Parameters::Rescue(rescue) = &self.run.parameters else { return None };
        let work =
            Work::Rescue(intent::Rescue { ssh_keys: rescue.ssh_keys.clone(), mainboard: rescue.mainboard.clone() });
        Some(Order { run: self.run.id, attempt: self.attempt, disks: Vec::new(), work })
    }

    /// Has the order given, and waits for what becomes of it.
    pub(super) async fn order(&self, order: Option<Order>) -> Result<Report, StoreError> {
        let Some(order) = order else { return Ok(failed(Cause::Internal, "the run's parameters fit no order")) };
        if let Some(result) = self.run.result.as_ref().filter(|result| result.attempt == order.attempt) {
            return Ok(match &result.end {
                OrderEnd::Done(_) => self.proven().await?,
                OrderEnd::Failed { cause, detail } => failed(Cause::Installer(*cause), detail),
            });
        }
        let mut tx = self.store.begin().await?;
        let mut machine = self.machine(&mut tx).await?;
        if order.disks.is_empty() && (order.work.erases() || order.work.deploy().is_some()) {
            return Ok(not_learnt(&machine));
        }
        machine.boot = Boot::Installer;
        machine.order = Some(order);
        if !machine.connected && comes_back(&machine) {
            let mark = if self.step == Step::RunTests { tx.tests_in(self.run.id).await? } else { self.run.done };
            self.commit(tx, &mut machine).await?;
            let (waiting, detail) = hop(machine.stage.as_ref());
            let detail = format!("installer was lost; {detail}");
            // Bytes count, hops do not: a machine that restarts over and over moves nowhere, and
            // one whose installer goes on, the request not being its own, does.
            return Ok(Report::Waiting { waiting, detail, mark });
        }
        let back = if machine.connected { None } else { self.bring_back(&mut tx, &machine).await? };
        self.commit(tx, &mut machine).await?;
        if machine.connected {
            return self.at_work().await;
        }
        match back {
            Some(command) => match self.restarted(&machine, &command).await? {
                Report::Done => self.at_work().await,
                other => Ok(other),
            },
            None => Ok(failed(Cause::InstallerLost, format!("the installer was lost {BRING_BACK} times"))),
        }
    }

    /// An order that was reported done is, unless what was told of one of its disks says otherwise.
    async fn proven(&self) -> Result<Report, StoreError> {
        let mut tx = self.store.begin().await?;
        let unproven = tx.unproven_in(self.run.id).await?;
        if unproven.is_empty() {
            return Ok(Report::Done);
        }
        let detail = format!("not every disk is known to be erased: {}", unproven.join(", "));
        Ok(failed(Cause::Installer(event::Cause::Verify), detail))
    }

    /// The command that brings back a machine whose installer was lost: the latest one that
    /// neither a connection nor a start from disk has followed, or a new one.
    async fn bring_back(&self, tx: &mut Tx, machine: &Machine) -> Result<Option<StoredCommand>, StoreError> {
        for time in 1..=BRING_BACK {
            let purpose = self.purpose(&format!("bring back {time}"));
            match tx.command(self.run.id, &purpose).await? {
                Some(command) if machine.connection > command.after || started_disk(machine, &command) => {}
                Some(command) => return Ok(Some(command)),
                None => {
                    let way = self.known_way(tx, machine).await?;
                    return tx.issue(self.now.wall, self.run, &purpose, way.action()).await.map(Some);
                }
            }
        }
        Ok(None)
    }

    async fn at_work(&self) -> Result<Report, StoreError> {
        if let Parameters::Test(tests) = &self.run.parameters {
            let mark = self.store.begin().await?.tests_in(self.run.id).await?;
            let detail = format!("{mark} of {} tests are over", tests.scripts.len());
            return Ok(Report::Waiting { waiting: WaitFor::Tests, detail, mark });
        }
        let waiting = match self.step {
            Step::UpdateFirmware => {
                let detail = format!("its installer is at it since {} s", self.run.done);
                return Ok(Report::Waiting { waiting: WaitFor::Firmware, detail, mark: self.run.done });
            }
            Step::StartRescue => {
                let detail = "rescue system fetches its tools and starts its SSH server".to_owned();
                return Ok(Report::Waiting { waiting: WaitFor::Installer, detail, mark: 0 });
            }
            Step::EraseDisks => WaitFor::Erasure,
            _ => WaitFor::Image,
        };
        let (done, total) = (self.run.done, self.run.total);
        let detail = match done.saturating_mul(100).checked_div(total) {
            Some(percent) => format!("{percent} % of {} MiB", total >> 20),
            None => "installer has not begun".to_owned(),
        };
        Ok(Report::Waiting { waiting, detail, mark: done })
    }

    /// Takes the order back. An installer that has not reported may still be writing: it is
    /// restarted.
    pub(super) async fn revoke_order(&self) -> Result<Report, StoreError> {
        let mut tx = self.store.begin().await?;
        let mut machine = self.machine(&mut tx).await?;
        let given = machine.order.as_ref().map(|order| order.attempt);
        let reported = self.run.result.as_ref().map(|result| result.attempt);
        let idle = given.is_none_or(|given| reported.is_some_and(|reported| reported >= given));
        // Once a restart was begun, only a fresh installer tells that nothing is written.
        if idle && self.attempt == 1 && self.restart_of(&mut tx).await?.is_none() {
            machine.boot = Boot::Installer;
            machine.order = None;
            self.commit(tx, &mut machine).await?;
            return Ok(Report::Done);
        }
        drop(tx);
        self.boot_installer(true).await
    }
}

/// Why nothing is written to a machine that nobody had looked into when its run began, and that is still not
/// known: nothing of it was ordered.
fn not_learnt(machine: &Machine) -> Report {
    let changes = machine.changes();
    if !changes.is_empty() {
        let cause = match changes[0].part {
            Part::Mainboard => event::Cause::MainboardDiffers,
            Part::NetworkCard | Part::Disk => event::Cause::DisksDiffer,
        };
        let name = &machine.name;
        return failed(
            Cause::Installer(cause),
            format!(
                "it is not as was said when it was adopted: {}; if it is right as it is, `rackhand machine replace-part \
                 {name}`",
                listed(&changes)
            ),
        );
    }
    let why = match disk_identities(machine) {
        Err(denied) => denied.to_string(),
        Ok(_) => machine.alert.clone().unwrap_or_else(|| "no installer has told what is in it".to_owned()),
    };
    failed(Cause::Installer(event::Cause::DisksDiffer), why)
}

/// Whether the machine was reset and is on its way back: it gets the same order again.
fn comes_back(machine: &Machine) -> bool {
    let on_its_way = matches!(
        machine.stage,
        Some(
            Stage::PoweredOn
                | Stage::RomDhcp(_)
                | Stage::Loader(_)
                | Stage::IpxeDhcp
                | Stage::Script(_)
                | Stage::Kernel
                | Stage::Initramfs
                | Stage::Installer
                | Stage::Inventoried
        )
    );
    on_its_way && machine.stage_event > machine.connection
}
