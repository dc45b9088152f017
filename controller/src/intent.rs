//! What the controller wants of a rack, computed from rows: the same rows give the same
//! intent, and its revision rises with every change of them.
//!
//! Invariant: a machine that nobody adopted is listed, so that it keeps its address and its
//! installer, but has never an order.

use rackhand_common::{
    id::RackId,
    intent::{Boot, Intent, MachineIntent, Network},
};
use rackhand_controller_core::lifecycle::Lifecycle;

use crate::store::{Machine, Store, StoreError};

/// The rack's intent.
pub async fn of(store: &Store, rack: RackId) -> Result<Intent, StoreError> {
    // One transaction: the revision belongs to exactly these machines.
    let mut tx = store.begin().await?;
    let rack = tx.rack(&rack.to_string()).await?;
    let machines = tx.machines_of(rack.id).await?;
    Ok(intent(rack.revision, rack.id, &rack.name, rack.network, &machines))
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
