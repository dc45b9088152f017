//! What the controller wants of a rack, computed from rows: the same rows give the same
//! intent, and its revision rises with every change of them.
//!
//! Invariant: a machine that nobody adopted is listed, so that it keeps its address and its
//! installer, but has never an order.

use rackhand_common::{
    bmc::{Beside, Bmcs},
    id::RackId,
    intent::{Boot, Intent, MachineIntent, Network},
    life::{Life, Lives},
};
use rackhand_controller_core::lifecycle::Lifecycle;

use crate::store::{Machine, Store, StoreError, StoredBmc};

/// The rack's intent, how its BMCs are reached, and what there is beside each.
pub async fn of(store: &Store, rack: RackId) -> Result<(Intent, Bmcs, Vec<Beside>), StoreError> {
    // One transaction: the revision belongs to exactly these machines.
    let mut tx = store.begin().await?;
    let rack = tx.rack(&rack.to_string()).await?;
    let machines = tx.machines_of(rack.id).await?;
    let stored = tx.bmcs_of(rack.id).await?;
    let beside = stored.iter().map(StoredBmc::beside).collect();
    let bmcs = stored.into_iter().map(|bmc| bmc.access).collect();
    let bmcs = Bmcs { revision: rack.revision, rack: rack.id, bmcs };
    Ok((intent(rack.revision, rack.id, &rack.name, rack.network, &machines), bmcs, beside))
}

/// Where the machines of a rack are in their lives.
pub async fn lives(store: &Store, rack: RackId) -> Result<Lives, StoreError> {
    let mut tx = store.begin().await?;
    let revision = tx.rack(&rack.to_string()).await?.revision;
    let machines = tx.machines_of(rack).await?.iter().map(|machine| (machine.id, life(machine.lifecycle))).collect();
    Ok(Lives { revision, rack, machines })
}

/// A lifecycle as a rack's node is told it.
pub fn life(lifecycle: Lifecycle) -> Life {
    match lifecycle {
        Lifecycle::Discovered => Life::Discovered,
        Lifecycle::Ready => Life::Ready,
        Lifecycle::Deploying => Life::Deploying,
        Lifecycle::Active => Life::Active,
        Lifecycle::Rescue => Life::Rescue,
        Lifecycle::Releasing => Life::Releasing,
        Lifecycle::Quarantined => Life::Quarantined,
        Lifecycle::Maintenance => Life::Maintenance,
        Lifecycle::Retired => Life::Retired,
    }
}

/// The intent of a rack with these machines.
pub fn intent(revision: u64, rack: RackId, name: &str, network: Network, machines: &[Machine]) -> Intent {
    Intent { revision, rack, name: name.to_owned(), network, machines: machines.iter().map(machine).collect() }
}

/// What the rack is told of one machine.
pub fn machine(machine: &Machine) -> MachineIntent {
    let adopted = machine.lifecycle != Lifecycle::Discovered;
    MachineIntent {
        id: machine.id,
        name: machine.name.clone(),
        macs: machine.macs.clone(),
        address: machine.address,
        epoch: machine.epoch,
        boot: if adopted { machine.boot } else { Boot::Installer },
        order: machine.order.clone().filter(|_| adopted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use rackhand_common::{
        id::RunId,
        intent::{Order, Work},
    };

    use crate::store::tests::{Bench, On, at, mac, on_both};

    async fn a_machine_nobody_adopted_keeps_its_installer_and_has_no_order(on: On) {
        let bench = Bench::new(on).await;
        let order = Order { run: RunId::fresh(), attempt: 1, disks: Vec::new(), work: Work::Erase };
        let row = Machine { boot: Boot::Disk, order: Some(order), ..bench.machine(100) };
        bench.insert(&row).await.unwrap();
        let intent = of(&bench.store, bench.rack).await.unwrap().0;
        let [told] = intent.machines.as_slice() else { panic!("{intent:?}") };
        assert_eq!((told.boot, &told.order, &told.macs), (Boot::Installer, &None, &vec![mac(100)]));
        assert_eq!(machine(&Machine { lifecycle: Lifecycle::Active, order: None, ..row }).boot, Boot::Disk);
    }

    async fn the_revision_rises_with_what_is_told_and_with_nothing_else(on: On) {
        let bench = Bench::new(on).await;
        let mut machine = bench.adopted(100).await;
        let mut before = of(&bench.store, bench.rack).await.unwrap().0;
        type Change = fn(&mut Machine);
        let changes: [(bool, Change); 8] = [
            (true, |machine| machine.name = "web".to_owned()),
            (true, |machine| machine.boot = Boot::Disk),
            (true, |machine| machine.epoch = machine.epoch.next()),
            (true, |machine| machine.macs.push(mac(7))),
            (true, |machine| machine.macs.reverse()),
            (false, |machine| machine.connected = !machine.connected),
            (false, |machine| machine.alert = Some("look".to_owned())),
            (false, |_| {}),
        ];
        for (index, (tells, change)) in changes.into_iter().enumerate() {
            change(&mut machine);
            let mut tx = bench.store.begin().await.unwrap();
            tx.update_machine(at(3), &mut machine).await.unwrap();
            tx.commit().await.unwrap();
            let after = of(&bench.store, bench.rack).await.unwrap().0;
            assert_eq!(after.revision > before.revision, tells, "change {index}");
            assert_eq!(after != before, tells, "change {index}");
            before = after;
        }
    }

    on_both! {
        a_machine_nobody_adopted_keeps_its_installer_and_has_no_order,
        the_revision_rises_with_what_is_told_and_with_nothing_else,
    }
}
