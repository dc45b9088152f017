//! What racks tell of parts that technicians replaced at their nodes, perhaps while this controller was away:
//! the machine is taken out of service, its new part accepted in place of the old one, tested, and the
//! machine put back.
//!
//! Invariants:
//! - A part is accepted only on a machine that nobody uses and no run is at work on, and only if what its
//!   installer found is the machine as it was accepted but for that part. Data on a new disk, and a part of
//!   another machine, want an operator's word as ever.
//! - Only a machine that was taken out of service for this replacement is put back by it.

use jiff::{SignedDuration, Timestamp};
use rackhand_common::{
    event::Event,
    replacement::{Kind, Part, PartReplaced, Step},
};
use rackhand_controller_core::{
    identity::{self, only_replaced},
    lifecycle::{self, Lifecycle},
};

use crate::{
    events::alert,
    store::{Hold, Machine, StoreError, Tx},
    verbs::{Accept, Denied, listed},
};

/// How long somebody may have a machine open before that is overdue.
const USUAL: SignedDuration = SignedDuration::from_hours(24);

/// Does what is told of a machine of this rack; what cannot be done becomes an alert that says why and what to do.
pub(crate) async fn told(tx: &mut Tx, event: &Event, machine: Machine, told: &PartReplaced) -> Result<(), StoreError> {
    let done = match &told.step {
        Step::Begun => begun(tx, event.at, &machine, told).await,
        Step::Done { new, .. } => done(tx, event.at, &machine, told, new).await,
        Step::Abandoned => abandoned(tx, event.at, &machine, told).await,
    };
    match done {
        Ok(()) => Ok(()),
        Err(Denied::Store(error)) => Err(error),
        Err(denied) => {
            let next = match denied {
                Denied::HasData(_) => "; if that may be lost: `rackhand machine replace-part ",
                Denied::Elsewhere(_) => "; if they are this one's now: `rackhand machine replace-part ",
                _ => "; look at it: `rackhand machine show ",
            };
            let flags = match denied {
                Denied::HasData(_) => " --accept-data`",
                Denied::Elsewhere(_) => " --accept-parts`",
                _ => "`",
            };
            let reason = format!("{told}, and nothing comes of it: {denied}{next}{}{flags}", machine.name);
            // As it is by now: part of it may be done.
            let machine = tx.machine(&machine.id.to_string()).await?;
            alert(tx, machine.rack, event, Some(machine), reason).await
        }
    }
}

async fn begun(tx: &mut Tx, now: Timestamp, machine: &Machine, told: &PartReplaced) -> Result<(), Denied> {
    match machine.lifecycle {
        Lifecycle::Maintenance | Lifecycle::Quarantined => Ok(()),
        _ => tx.hold(now, machine, lifecycle::Event::Maintain, Some(hold(told))).await.map(drop),
    }
}

async fn done(tx: &mut Tx, now: Timestamp, machine: &Machine, told: &PartReplaced, new: &Part) -> Result<(), Denied> {
    // Also whether it may be tested at all: it is nobody's, and no run is at work on it.
    machine.lifecycle.on(lifecycle::Event::Test)?;
    let mut machine = machine.clone();
    let changes = machine.changes();
    if !changes.is_empty() {
        if !is_all_that_changed(&machine, &told.old, new) {
            return Err(Denied::Changed(changes));
        }
        machine = tx.take_part(now, &machine, Accept::default(), told.by.clone()).await?;
    }
    let tests = told.old.kind.tests().iter().map(|test| (*test).to_owned()).collect();
    let resumes = is_held_for(&machine, told);
    tx.start_test(now, &machine, tests, false, resumes).await.map(drop)
}

async fn abandoned(tx: &mut Tx, now: Timestamp, machine: &Machine, told: &PartReplaced) -> Result<(), Denied> {
    let changes = machine.changes();
    if !changes.is_empty() {
        tracing::warn!(machine = %machine.id, changes = listed(&changes), "a replacement was given up with other parts in the machine");
        return Err(Denied::Changed(changes));
    }
    if is_held_for(machine, told) {
        tx.hold(now, machine, lifecycle::Event::Resume, None).await?;
    }
    Ok(())
}

fn is_all_that_changed(machine: &Machine, old: &Part, new: &Part) -> bool {
    let Some(accepted) = &machine.accepted else { return false };
    let is_only = |part, was: &[&str], is: &[&str]| only_replaced(accepted, &machine.inventory, part, was, is);
    match old.kind {
        Kind::Disk => is_only(identity::Part::Disk, &[&old.identity], &[&new.identity]),
        Kind::NetworkCard => {
            let (was, is): (Vec<_>, Vec<_>) = (old.identity.split(' ').collect(), new.identity.split(' ').collect());
            is_only(identity::Part::NetworkCard, &was, &is)
        }
        // No machine is known by its memory: whatever changed is something else.
        Kind::Memory => false,
    }
}

/// Why a machine is out of service while this replacement is under way.
fn hold(told: &PartReplaced) -> Hold {
    let PartReplaced { by, old, began, .. } = told;
    Hold { reason: format!("{by} replaces {old}"), since: *began, until: began.checked_add(USUAL).ok() }
}

/// Whether it is out of service for this replacement, and nothing else.
fn is_held_for(machine: &Machine, told: &PartReplaced) -> bool {
    machine.lifecycle == Lifecycle::Maintenance && machine.held.as_ref() == Some(&hold(told))
}
