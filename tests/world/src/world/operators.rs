//! Operators: they adopt, deploy, release, cancel and switch machines, through the controller's
//! own verbs.

use std::time::Duration;

use rackhand_common::{
    intent::{DiskRule, Host},
    time::Clock as _,
};
use rackhand_controller::{
    store::{MachineFilter, MachineOrder, PowerChange},
    verbs::{Accept, Denied, DeployRequest},
};
use rackhand_controller_core::lifecycle::Lifecycle;

use super::{Happens, World, seconds};

impl World {
    pub(super) async fn operates(&mut self) {
        if self.time.passed() >= self.length.max(self.faults_end().saturating_sub(seconds(3600))) {
            return;
        }
        let wait = if self.month {
            self.operator.spread(seconds(60), seconds(3 * 86400))
        } else {
            self.operator.spread(seconds(20), seconds(900))
        };
        self.after(wait, Happens::Operator);
        if self.controller.runner.is_none() {
            return;
        }
        let machines =
            self.truth.machines(&MachineFilter::default(), MachineOrder::default(), 100).await.unwrap_or_default();
        let dice = self.operator.below(100);
        let Some(machine) = self.operator.choose(&machines).cloned() else { return };
        let now = self.controller.clock.now().wall;
        let store = self.controller.store.clone();
        let change = [PowerChange::On, PowerChange::Off, PowerChange::Cycle][self.operator.below(3) as usize];
        let id = machine.id;
        let (verb, result) = match machine.lifecycle {
            Lifecycle::Discovered => {
                let adopt = self.controlled(async move {
                    let mut tx = store.begin().await?;
                    let machine = tx.machine(&id.to_string()).await?;
                    tx.adopt(now, &machine, Accept { data: true, parts: false }).await?;
                    tx.commit().await?;
                    Ok::<_, Denied>(None)
                });
                ("adopt", adopt.await)
            }
            Lifecycle::Ready if dice < 75 => {
                let deploy = self.controlled(async move {
                    let mut tx = store.begin().await?;
                    let machine = tx.machine(&id.to_string()).await?;
                    let image = tx.image("debian-12").await?;
                    let host = Host { name: "web".into(), ssh_keys: Vec::new(), user_data: None };
                    let request = DeployRequest { disk: DiskRule::Smallest, host };
                    let run = tx.start_deploy(now, &machine, &image, request).await?;
                    tx.commit().await?;
                    Ok(Some(run.id))
                });
                ("deploy", deploy.await)
            }
            Lifecycle::Active | Lifecycle::Quarantined if dice < 40 => {
                let release = self.controlled(async move {
                    let mut tx = store.begin().await?;
                    let machine = tx.machine(&id.to_string()).await?;
                    let run = tx.start_release(now, &machine).await?;
                    tx.commit().await?;
                    Ok(Some(run.id))
                });
                ("release", release.await)
            }
            Lifecycle::Deploying | Lifecycle::Releasing if dice < 20 => {
                let cancel = self.controlled(async move {
                    let mut tx = store.begin().await?;
                    let Some(run) = tx.run_in_progress(id).await? else { return Ok(None) };
                    tx.cancel(now, run).await?;
                    tx.commit().await?;
                    Ok(Some(run))
                });
                ("cancel", cancel.await)
            }
            Lifecycle::Ready | Lifecycle::Active | Lifecycle::Quarantined if dice < 85 => {
                let power = self.controlled(async move {
                    let mut tx = store.begin().await?;
                    let machine = tx.machine(&id.to_string()).await?;
                    let run = tx.start_power(now, &machine, change).await?;
                    tx.commit().await?;
                    Ok(Some(run.id))
                });
                ("power", power.await)
            }
            _ => return,
        };
        let what = if verb == "power" { format!("power {change:?}") } else { verb.to_owned() };
        match result {
            None => self.say("operator", format!("{what} {id}: no answer")),
            Some(Ok(run)) => {
                let run = run.map(|run| format!(", run {run}")).unwrap_or_default();
                self.say("operator", format!("{what} {id}{run}"));
            }
            Some(Err(denied)) => self.say("operator", format!("{what} {id}: {denied}")),
        }
        if self.controller.runner.is_some() {
            self.wake_runner(Duration::from_millis(10));
        }
    }
}
