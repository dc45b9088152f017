//! A database restored from a backup beside racks that went on.
//!
//! What was done since the backup is known to the racks alone. So a restored database comes up
//! [frozen](freeze), and each rack is [reconciled](reconcile) with what its agent tells before
//! anything is asked of it again.
//!
//! Invariants:
//! - While a rack is frozen no run goes on and none begins there, and its agent is told no
//!   intent: it keeps the one it has.
//! - Reconciling makes nothing destructive: a machine of which the agent knows another epoch
//!   boots what it was told last, and is out of reach for a deploy until an operator releases it.
//! - Afterwards revision, epochs and connection number are above all that the lost database
//!   gave out: what it ordered is refused wherever it still is on its way.

use std::sync::Arc;

use jiff::Timestamp;
use rackhand_common::{
    id::{Epoch, RackId},
    intent::{Boot, Intent, MachineIntent},
    machine::{Cpu, Firmware, Inventory, System},
};
use rackhand_controller_core::lifecycle::{Event, Forbidden, Lifecycle};

use crate::store::{Happened, Machine, Parameters, RunStatus, Store, StoreError, Tx};

/// Epochs begin anew this much higher: what the lost database gave out and the agent never
/// heard of lies between.
const JUMP: u64 = 1000;

/// What was frozen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Frozen {
    /// Racks that wait for their agents.
    pub racks: u64,
    /// Runs that were in progress.
    pub runs: usize,
}

/// Marks a database as restored: ends its runs and lets no rack be touched.
pub async fn freeze(store: &Store, now: Timestamp) -> Result<Frozen, StoreError> {
    let runs = store.runs_in_progress().await?;
    let mut tx = store.begin().await?;
    for mut run in runs.iter().cloned() {
        let detail = "the database was restored from a backup made while this was in progress".to_owned();
        (run.status, run.ended, run.detail) = (RunStatus::Failed, Some(now), Some(detail.clone()));
        (run.waiting_for, run.waiting_since, run.waiting_until) = (None, None, None);
        tx.save_run(now, &run).await?;
        tx.forget_user_data(&mut run).await?;
        let ended = Happened::RunEnded { status: RunStatus::Failed, cause: None, detail: Some(detail) };
        tx.insert_event(now, run.rack, Some(run.machine), Some(run.id), &ended).await?;
        let mut machine = tx.machine(&run.machine.to_string()).await?;
        machine.order = None;
        if matches!(run.parameters, Parameters::Rescue(_)) {
            machine.lifecycle = move_on(&machine, Event::LeftRescue)?;
            (machine.boot, machine.rescue, machine.held) = (Boot::Disk, None, None);
        }
        if matches!(machine.lifecycle, Lifecycle::Deploying | Lifecycle::Releasing) {
            doubt(&mut machine, "its run was in progress when the restored backup was made")?;
            // Whatever is on its disk: the installer would be the first step to losing it.
            machine.boot = Boot::Disk;
        }
        tx.update_machine(now, &mut machine).await?;
    }
    tx.forget_connections().await?;
    let racks = tx.freeze_racks(now).await?;
    tx.commit().await?;
    Ok(Frozen { racks, runs: runs.len() })
}

/// Takes what the agent of a frozen rack tells, and lets the rack be worked with again.
/// `on_disk` is the revision it said it has; `told` the intent itself.
pub async fn reconcile(
    store: &Store,
    now: Timestamp,
    rack: RackId,
    on_disk: u64,
    told: Option<Intent>,
) -> Result<(), StoreError> {
    let mut tx = store.begin().await?;
    let (told, revision) = match told.filter(|told| told.rack == rack) {
        Some(told) => (told.machines, told.revision.max(on_disk)),
        None => (Vec::new(), on_disk),
    };
    for known in tx.machines_of(rack).await? {
        let mut machine = judge(&known, told.iter().find(|told| told.id == known.id))?;
        tx.update_machine(now, &mut machine).await?;
        if let Some(reason) = machine.alert.filter(|alert| Some(alert) != known.alert.as_ref()) {
            tx.insert_event(now, rack, Some(machine.id), None, &Happened::Alert { reason }).await?;
        }
    }
    for told in &told {
        match tx.machine(&told.id.to_string()).await {
            Err(StoreError::NotFound(_)) => learn(&mut tx, now, rack, told).await?,
            found => drop(found?),
        }
    }
    tx.thaw_rack(rack, revision).await?;
    tx.commit().await?;
    tracing::info!(%rack, revision, "the rack's agent has reported what was done since the restored backup");
    Ok(())
}

/// What becomes of a machine when its rack tells this of it.
fn judge(known: &Machine, told: Option<&MachineIntent>) -> Result<Machine, StoreError> {
    let epoch = told.map_or(known.epoch, |told| told.epoch.max(known.epoch));
    let mut machine = Machine { epoch: Epoch(epoch.0.saturating_add(JUMP)), connected: false, ..known.clone() };
    match told {
        // Neither given out nor taken back since; but its owner was done with a rescue.
        Some(told) if told.epoch == known.epoch => {
            if known.lifecycle == Lifecycle::Rescue && told.boot == Boot::Disk {
                machine.lifecycle = move_on(known, Event::LeftRescue)?;
                (machine.boot, machine.order, machine.rescue, machine.held) = (Boot::Disk, None, None, None);
            }
        }
        Some(told) => {
            doubt(&mut machine, "it was given out or taken back after the restored backup was made")?;
            machine.boot = if machine.lifecycle == Lifecycle::Active { Boot::Disk } else { told.boot };
        }
        None => {
            doubt(&mut machine, "its rack does not know what was done with it since the restored backup was made")?;
            machine.boot = Boot::Disk;
        }
    }
    Ok(machine)
}

fn move_on(machine: &Machine, event: Event) -> Result<Lifecycle, StoreError> {
    let damaged = |forbidden: Forbidden| StoreError::Damaged("lifecycle", forbidden.into());
    machine.lifecycle.on(event).map_err(damaged)
}

fn doubt(machine: &mut Machine, why: &str) -> Result<(), StoreError> {
    if machine.lifecycle == Lifecycle::Rescue {
        (machine.order, machine.rescue, machine.held) = (None, None, None);
    }
    machine.lifecycle = move_on(machine, Event::Doubted)?;
    machine.alert = Some(format!("{why}: find out whose it is before you release it"));
    Ok(())
}

/// A machine that came after the backup: its address stays its own.
async fn learn(tx: &mut Tx, now: Timestamp, rack: RackId, told: &MachineIntent) -> Result<(), StoreError> {
    let holder = match tx.machine_by_address(rack, told.address).await? {
        Some(holder) => Some(holder),
        None => tx.machine_by_macs(rack, &told.macs).await?,
    };
    if let Some(mut holder) = holder {
        let reason = format!("the rack knows another machine, {}, with an address or card of this one", told.name);
        tx.insert_event(now, rack, Some(holder.id), None, &Happened::Alert { reason: reason.clone() }).await?;
        doubt(&mut holder, &reason)?;
        return tx.update_machine(now, &mut holder).await;
    }
    let name = match tx.machine(&told.name).await {
        Err(StoreError::NotFound(_)) => told.name.clone(),
        found => {
            drop(found?);
            format!("m-{}", &told.id.to_string()[24..])
        }
    };
    let nothing = Arc::new(Inventory {
        firmware: Firmware::Bios,
        system: System::default(),
        cpu: Cpu::default(),
        memory: 0,
        nics: Vec::new(),
        disks: Vec::new(),
    });
    let mut machine = Machine {
        id: told.id,
        rack,
        project: None,
        name: name.clone(),
        lifecycle: Lifecycle::Discovered,
        epoch: Epoch(told.epoch.0.saturating_add(JUMP)),
        boot: told.boot,
        address: told.address,
        macs: told.macs.clone(),
        // Whatever is found in it is new, and wants an operator's word before anything is written.
        accepted: Some(nothing.clone()),
        inventory: nothing,
        connection: 0,
        connected: false,
        power: None,
        stage: None,
        stage_event: 0,
        power_event: 0,
        order: None,
        image: None,
        alert: None,
        held: None,
        uninspected: None,
        rescue: None,
        created: now,
        updated: now,
        version: 1,
    };
    doubt(&mut machine, "it came after the restored backup was made")?;
    tx.insert_machine(&machine).await?;
    tx.insert_event(now, rack, Some(machine.id), None, &Happened::Discovered { name }).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;
    use crate::store::tests::{Bench, On, at, on_both};

    /// Each line: a lifecycle and epoch in the database, and an epoch and boot target told, if any.
    async fn check(on: On, script: &str, expected: Expect) {
        let bench = Bench::new(on).await;
        let row = bench.machine(100);
        let mut out = String::new();
        for line in script.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let known = Machine {
                lifecycle: words[0].parse().unwrap(),
                epoch: Epoch(words[1].parse().unwrap()),
                boot: if words[0] == "active" { Boot::Disk } else { Boot::Installer },
                ..row.clone()
            };
            let told = words.get(2).map(|epoch| MachineIntent {
                epoch: Epoch(epoch.parse().unwrap()),
                boot: if words[3] == "disk" { Boot::Disk } else { Boot::Installer },
                ..crate::intent::machine(&known)
            });
            let after = judge(&known, told.as_ref()).unwrap();
            let alert = if after.alert.is_some() { ", alert" } else { "" };
            out += &format!("{line}: {} {} {:?}{alert}\n", after.lifecycle, after.epoch, after.boot);
        }
        expected.assert_eq(&out);
    }

    async fn a_machine_given_out_since_keeps_its_system_and_is_out_of_a_deploys_reach(on: On) {
        check(
            on,
            "ready 1 1 installer\nready 1 2 installer\nready 1 2 disk\nready 1\nactive 2 2 disk\nactive 2 4 disk\n\
             active 2 3 installer\nactive 2\ndiscovered 1 1 installer\ndiscovered 1 2 disk\nquarantined 3 3 disk\n\
             ready 5 4 installer\nrescue 2 2 installer\nrescue 2 2 disk\nrescue 2 3 installer\nrescue 2",
            expect![[r#"
                ready 1 1 installer: ready 1001 Installer
                ready 1 2 installer: quarantined 1002 Installer, alert
                ready 1 2 disk: quarantined 1002 Disk, alert
                ready 1: quarantined 1001 Disk, alert
                active 2 2 disk: active 1002 Disk
                active 2 4 disk: active 1004 Disk, alert
                active 2 3 installer: active 1003 Disk, alert
                active 2: active 1002 Disk, alert
                discovered 1 1 installer: discovered 1001 Installer
                discovered 1 2 disk: quarantined 1002 Disk, alert
                quarantined 3 3 disk: quarantined 1003 Installer
                ready 5 4 installer: quarantined 1005 Installer, alert
                rescue 2 2 installer: rescue 1002 Installer
                rescue 2 2 disk: active 1002 Disk
                rescue 2 3 installer: active 1003 Disk, alert
                rescue 2: active 1002 Disk, alert
            "#]],
        )
        .await;
    }

    async fn a_machine_that_came_since_keeps_its_address(on: On) {
        let bench = Bench::new(on).await;
        let known = bench.adopted(100).await;
        freeze(&bench.store, at(5)).await.unwrap();
        let (intent, ..) = crate::intent::of(&bench.store, bench.rack).await.unwrap();
        let mut newcomer = crate::intent::machine(&bench.machine(101));
        (newcomer.epoch, newcomer.boot, newcomer.name) = (Epoch(7), Boot::Disk, known.name.clone());
        let mut told = intent.clone();
        told.revision = 70;
        told.machines.push(newcomer.clone());
        // One whose address is another's already.
        told.machines.push(MachineIntent { id: rackhand_common::id::MachineId::fresh(), ..newcomer.clone() });
        reconcile(&bench.store, at(6), bench.rack, 71, Some(told)).await.unwrap();

        let rack = bench.store.rack(&bench.rack.to_string()).await.unwrap();
        assert_eq!((rack.revision, rack.restored), (72, None));
        let learnt = bench.store.machine(&newcomer.id.to_string()).await.unwrap();
        assert_eq!((learnt.address, learnt.macs, learnt.boot), (newcomer.address, newcomer.macs, Boot::Disk));
        assert_eq!((learnt.lifecycle, learnt.epoch), (Lifecycle::Quarantined, Epoch(1007)));
        assert_ne!(learnt.name, known.name);
        assert!(learnt.alert.unwrap().contains("another machine"));
        let (after, ..) = crate::intent::of(&bench.store, bench.rack).await.unwrap();
        assert_eq!(after.machines.len(), 2);
    }

    on_both! {
        a_machine_given_out_since_keeps_its_system_and_is_out_of_a_deploys_reach,
        a_machine_that_came_since_keeps_its_address,
    }
}
