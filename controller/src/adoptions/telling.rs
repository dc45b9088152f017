//! Has BMCs tell what is in machines that were adopted while they run, and that no installer has looked into.
//!
//! Invariants:
//! - It is only read, out-of-band: nothing is switched or set.
//! - What a BMC tells is shown, and never accepted: nothing destructive goes by it. Its cards alone count, so that the
//!   machine is known when it starts from one of them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use rackhand_common::{
    bmc::{Look, Parts, Seen},
    id::MachineId,
    time::{Clock, Mono},
    wire::ControllerResponse,
};
use rackhand_controller_core::adoption::{MAX_PARTS, with_parts};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{
    fleet::Fleet,
    store::{Happened, Machine, Store, StoreError},
};

/// How often it is looked.
const RECHECK: Duration = Duration::from_secs(2);

/// After how long a BMC that did not tell is asked again.
const AGAIN: Duration = Duration::from_secs(30);

/// Asks until shutdown.
pub async fn run(store: Store, fleet: Fleet, clock: Arc<dyn Clock>, shutdown: CancellationToken) {
    // As many as machines that nobody has looked into.
    let mut asked = BTreeMap::new();
    loop {
        let looked = tokio::select! {
            looked = look(&store, &fleet, &*clock, &mut asked) => looked,
            // What is not kept is asked for again at the next start.
            () = shutdown.cancelled() => return,
        };
        if let Err(error) = looked {
            store.note(&error);
            tracing::error!(error = &error as &dyn std::error::Error, "what BMCs tell of machines is not kept");
        }
        tokio::select! {
            () = sleep(RECHECK) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

async fn look(
    store: &Store,
    fleet: &Fleet,
    clock: &dyn Clock,
    asked: &mut BTreeMap<MachineId, Mono>,
) -> Result<(), StoreError> {
    let machines = store.untold_by_bmc().await?;
    asked.retain(|machine, _| machines.iter().any(|untold| untold.id == *machine));
    for machine in machines {
        let now = clock.now();
        if asked.get(&machine.id).is_some_and(|at| at.until(now.mono) < AGAIN) {
            continue;
        }
        asked.insert(machine.id, now.mono);
        match fleet.look(machine.rack, machine.id, Look::Parts).await {
            Ok(ControllerResponse::Seen(json)) => match serde_json::from_str(&json) {
                Ok(Seen::Parts(parts)) => {
                    if keep(store, now.wall, machine.id, &parts).await? {
                        fleet.wake(machine.rack);
                    }
                }
                _ => tracing::warn!(machine = %machine.id, "what its BMC told is not understood"),
            },
            Ok(other) => tracing::debug!(machine = %machine.id, ?other, "its BMC does not tell what is in it"),
            Err(error) => tracing::debug!(machine = %machine.id, %error, "its BMC cannot be asked"),
        }
    }
    Ok(())
}

/// Keeps what the BMC of a machine told, unless somebody has looked into it meanwhile.
pub(crate) async fn keep(store: &Store, now: Timestamp, machine: MachineId, parts: &Parts) -> Result<bool, StoreError> {
    let mut tx = store.begin().await?;
    let machine = match tx.machine(&machine.to_string()).await {
        Err(StoreError::NotFound(_)) => return Ok(false),
        machine => machine?,
    };
    let Some(known) = machine.uninspected.clone().filter(|_| machine.connection == 0) else { return Ok(false) };
    let inventory = with_parts(&machine.inventory, parts);
    let mut macs = machine.macs.clone();
    for nic in &inventory.nics {
        if macs.len() < MAX_PARTS && !macs.contains(&nic.mac) {
            match tx.machine_by_macs(machine.rack, &[nic.mac]).await? {
                None => macs.push(nic.mac),
                Some(holder) => {
                    tracing::warn!(machine = %machine.id, mac = %nic.mac, holder = holder.name, "its BMC tells a card that is another's");
                }
            }
        }
    }
    let uninspected = Some(crate::store::Uninspected { by_bmc: Some(now), ..known });
    let mut told = Machine { inventory: inventory.into(), macs, uninspected, ..machine };
    tx.update_machine(now, &mut told).await?;
    tx.insert_event(now, told.rack, Some(told.id), None, &Happened::ToldByBmc).await?;
    tx.commit().await?;
    Ok(true)
}
