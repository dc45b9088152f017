//! What racks tell: taken once, in order, and applied in the transaction that counts them.
//!
//! Invariants:
//! - An event is applied at most once, however often it is sent.
//! - What an event means for a run is noted as a state of the run, never as a signal: the
//!   runner finds it whenever it looks.
//! - An installer's connection never touches an active machine, a machine of another rack,
//!   or another machine's address. It becomes an alert instead.

use std::{collections::BTreeSet, net::Ipv4Addr};

use jiff::Timestamp;
use rackhand_common::{
    bmc::lease::Management,
    commission::Tested,
    erasure::{Certificate, DriveErasure, FORMAT, SignedCertificate},
    event::{Event, Stage, What},
    hardware::Hardware,
    health::Verdict,
    id::{AgentId, Epoch, MachineId, RackId, RunId},
    intent::Boot,
    machine::{Inventory, Mac, Power},
};
use rackhand_controller_core::lifecycle::Lifecycle;

use crate::{
    adoptions, replacements, rotations,
    store::{Happened, Machine, OrderEnd, OrderResult, Parameters, RunStatus, Store, StoreError, Tx},
    verbs,
};

/// Says when a certificate of erasure is signed, by this controller's clock, and signs it.
pub type Certify = dyn Fn(Certificate) -> SignedCertificate + Send + Sync;

/// Takes events of an agent's spool, numbered from `first`; the number of the next one. The
/// rack's intent and its runs may have changed afterwards: wake both.
pub async fn take(
    store: &Store,
    certify: &Certify,
    rack: RackId,
    agent: AgentId,
    first: u64,
    events: Vec<Event>,
) -> Result<u64, StoreError> {
    let taken = take_all(store, certify, rack, agent, first, events).await;
    taken.inspect_err(|error| store.note(error))
}

async fn take_all(
    store: &Store,
    certify: &Certify,
    rack: RackId,
    agent: AgentId,
    first: u64,
    events: Vec<Event>,
) -> Result<u64, StoreError> {
    let mut tx = store.begin().await?;
    let teller = tx.agent(agent).await?;
    if teller.revoked.is_some() {
        return Err(StoreError::NotFound("agent"));
    }
    let expected = teller.next_event;
    // Numbers beyond what the database counts are no spool's: nothing of them is taken.
    let after = first.checked_add(events.len() as u64).filter(|after| i64::try_from(*after).is_ok());
    let Some(after) = after.filter(|after| *after > expected) else { return Ok(expected) };
    if first > expected {
        let lost = first - expected;
        tracing::warn!(%rack, %agent, lost, "a node's spool has lost events");
        // By the clock of the node, like what follows.
        let at = events.first().map_or(Timestamp::UNIX_EPOCH, |event| event.at);
        tx.insert_event(at, rack, None, None, &Happened::Told(What::Gap { lost })).await?;
    }
    for (event, number) in events.into_iter().zip(first..) {
        if number >= expected {
            apply(&mut tx, certify, rack, agent, event).await?;
        }
    }
    tx.set_next_event(agent, after).await?;
    tx.commit().await?;
    Ok(after)
}

async fn apply(tx: &mut Tx, certify: &Certify, rack: RackId, agent: AgentId, event: Event) -> Result<(), StoreError> {
    let Some(id) = event.machine else {
        if let What::Node(reading) = &event.what {
            return tx.set_node_health(event.at, agent, reading).await;
        }
        if let What::RangeFull { .. } = &event.what {
            let reason = format!("{}; enlarge the rack's range, or look for cards nobody knows", event.what);
            return alert(tx, rack, &event, None, reason).await;
        }
        if let What::Management(told) = &event.what
            && let Management::Full { .. } = **told
        {
            let reason =
                format!("{told}; enlarge `range` of `[management]` in boot.toml, or look for what is no BMC there");
            return alert(tx, rack, &event, None, reason).await;
        }
        let is_new = match &event.what {
            // Told again from time to time: only what is new happened.
            What::BmcFound(found) => tx.bmc_is_found(event.at, rack, found).await?,
            What::BmcGone { address } => tx.bmc_is_gone(rack, *address).await?,
            What::Management(told) => match &**told {
                Management::Leased(lease) => tx.bmc_is_leased(event.at, rack, lease).await?,
                Management::Stranger(_) | Management::Full { .. } => true,
                // It is said here, and by no node.
                Management::Moved { .. } => false,
            },
            _ => true,
        };
        if is_new {
            tx.insert_event(event.at, rack, None, None, &Happened::Told(event.what)).await?;
        }
        return Ok(());
    };
    if let What::Connected { mac, address, inventory } = &event.what {
        let connection = Connection { id, mac: *mac, address: *address, inventory: inventory.clone() };
        return connected(tx, rack, &event, connection).await;
    }
    let mut machine = match tx.machine(&id.to_string()).await {
        Ok(machine) if machine.rack == rack => Some(machine),
        Ok(_) => {
            return alert(tx, rack, &event, None, format!("told of machine {id}, which stands in another rack")).await;
        }
        // Hops before its installer connects for the first time: its timeline begins here.
        Err(StoreError::NotFound(_)) => None,
        Err(error) => return Err(error),
    };
    if let What::Health(verdict) = &event.what {
        return fares(tx, rack, &event, machine, verdict).await;
    }
    if let What::Hardware { mac, hardware } = &event.what {
        return told_hardware(tx, rack, &event, machine, *mac, hardware).await;
    }
    let mut run = None;
    match &event.what {
        // Counted in the run's row, not kept: one every two seconds.
        What::Progress { run, done, total } => {
            return tx.run_progress(event.at, id, *run, *done, *total).await;
        }
        What::Done { run: of, attempt, disks } => {
            run = Some(*of);
            let result = OrderResult { attempt: *attempt, end: OrderEnd::Done(disks.clone()) };
            tx.run_result(event.at, id, *of, &result).await?;
        }
        What::Failed { run: of, attempt, cause, detail } => {
            run = Some(*of);
            let end = OrderEnd::Failed { cause: *cause, detail: detail.clone() };
            tx.run_result(event.at, id, *of, &OrderResult { attempt: *attempt, end }).await?;
        }
        What::Erased { run: of, drive, .. } => {
            run = Some(*of);
            if let Some(machine) = &machine {
                certify_erasure(tx, certify, event.at, machine, *of, drive).await?;
            }
        }
        What::Tested { run: of, attempt, tested } => {
            run = Some(*of);
            if let Some(machine) = &machine {
                keep_test(tx, event.at, machine, *of, *attempt, tested).await?;
            }
        }
        What::Updated { run: of, attempt, updated } => {
            run = Some(*of);
            tx.update_told(event.at, id, *of, *attempt, updated).await?;
        }
        What::Rescue { run: of, attempt, .. } => {
            run = Some(*of);
            let result = OrderResult { attempt: *attempt, end: OrderEnd::Done(Vec::new()) };
            tx.run_result(event.at, id, *of, &result).await?;
        }
        What::PhonedHome { run: of } => {
            run = Some(*of);
            tx.run_phoned_home(event.at, id, *of).await?;
        }
        What::Commanded { command, outcome } => {
            run = tx.command_ended(rack, *command, outcome).await?.map(|command| command.run);
        }
        What::Stage(Stage::OrderStarted(of)) => {
            run = Some(*of);
            tx.run_begun(id, *of).await?;
        }
        What::Stage(_)
        | What::Lost
        | What::TicketRefused { .. }
        | What::Power(_)
        | What::Node(_)
        | What::Gap { .. }
        | What::RangeFull { .. }
        | What::Health(_)
        | What::Hardware { .. }
        | What::BmcFound(_)
        | What::BmcGone { .. }
        | What::PartReplaced(_)
        | What::Management(_)
        | What::Connected { .. } => {}
    }
    if run.is_none() {
        run = run_of(tx, machine.as_ref()).await?;
    }
    let number = tx.insert_event(event.at, rack, Some(id), run, &Happened::Told(event.what.clone())).await?;
    if let Some(machine) = &mut machine {
        note(machine, number, &event.what);
        if let What::Failed { run: of, detail, .. } = &event.what
            && machine.lifecycle == Lifecycle::Rescue
            && rescued_by(machine, *of)
            && tx.run_in_progress(machine.id).await?.is_none()
        {
            machine.rescue = None;
            let why = detail.lines().next().unwrap_or_default();
            machine.alert = Some(format!("its rescue system started again, and nobody can log in: {why}"));
        }
        tx.update_machine(event.at, machine).await?;
        if let What::PartReplaced(told) = &event.what {
            return replacements::told(tx, &event, machine.clone(), told).await;
        }
    }
    Ok(())
}

/// What an agent makes of a machine. It is told again from time to time: only what is new happened.
async fn fares(
    tx: &mut Tx,
    rack: RackId,
    event: &Event,
    machine: Option<Machine>,
    verdict: &Verdict,
) -> Result<(), StoreError> {
    // Told before the node knew that nobody reads its BMC any more, or that it is gone.
    let Some(machine) = machine else { return Ok(()) };
    if tx.bmc(machine.id).await?.is_none() {
        return Ok(());
    }
    if !tx.set_machine_health(event.at, machine.id, verdict).await? {
        return Ok(());
    }
    let told = tx.machine_health(machine.id).await?.map_or_else(|| verdict.clone(), |known| known.verdict);
    let run = run_of(tx, Some(&machine)).await?;
    tx.insert_event(event.at, rack, Some(machine.id), run, &Happened::Told(What::Health(told))).await?;
    Ok(())
}

/// What an installer found in detail. A state and no history: it is not among the events.
async fn told_hardware(
    tx: &mut Tx,
    rack: RackId,
    event: &Event,
    machine: Option<Machine>,
    mac: Mac,
    hardware: &Hardware,
) -> Result<(), StoreError> {
    let machine = match machine {
        Some(machine) => Some(machine),
        // A node that lost its tables gives a machine we know a new id.
        None => tx.machine_by_macs(rack, &[mac]).await?,
    };
    let Some(machine) = machine else { return Ok(()) };
    // Whatever says that it runs there while the machine is active was told of when it connected.
    if machine.lifecycle == Lifecycle::Active && !leaves_its_system(tx, &machine).await? {
        return Ok(());
    }
    tx.set_hardware(event.at, machine.id, hardware).await
}

/// Keeps the record of a disk that a release of this machine erased, or did not, and signs it. One
/// that is no disk of a release in progress stays an event.
async fn certify_erasure(
    tx: &mut Tx,
    certify: &Certify,
    now: Timestamp,
    machine: &Machine,
    run: RunId,
    drive: &DriveErasure,
) -> Result<(), StoreError> {
    let run = match tx.run(run).await {
        Ok(run) => run,
        Err(StoreError::NotFound(_)) => return Ok(()),
        Err(error) => return Err(error),
    };
    let Parameters::Release(release) = &run.parameters else { return Ok(()) };
    let is_its = run.machine == machine.id && run.status == RunStatus::Running && release.disks.contains(&drive.disk);
    if !is_its || !drive.is_sound() || tx.erasures_in(run.id).await? >= MAX_ERASURES {
        tracing::warn!(machine = %machine.id, run = %run.id, disk = drive.disk, "a record of an erasure is not kept");
        return Ok(());
    }
    let rack_name = tx.rack(&machine.rack.to_string()).await?.name;
    let certificate = Certificate {
        format: FORMAT.to_owned(),
        erasure: uuid::Uuid::now_v7(),
        run: run.id,
        machine: machine.id,
        machine_name: machine.name.clone(),
        rack_name,
        signed: now,
        drive: drive.clone(),
    };
    let signed = certify(certificate.clone());
    tx.insert_erasure(machine.rack, &certificate, &signed).await
}

/// Keeps what a test showed that a run in progress of this machine asked for. What is told of another stays
/// an event.
async fn keep_test(
    tx: &mut Tx,
    now: Timestamp,
    machine: &Machine,
    run: RunId,
    attempt: u32,
    tested: &Tested,
) -> Result<(), StoreError> {
    let run = match tx.run(run).await {
        Ok(run) => run,
        Err(StoreError::NotFound(_)) => return Ok(()),
        Err(error) => return Err(error),
    };
    let Parameters::Test(tests) = &run.parameters else { return Ok(()) };
    let is_its = run.machine == machine.id && run.status == RunStatus::Running;
    if !is_its || !tests.scripts.contains(&tested.script) || !tested.is_sound() {
        tracing::warn!(machine = %machine.id, run = %run.id, test = tested.script, "what a test showed is not kept");
        return Ok(());
    }
    tx.insert_test(now, machine, run.id, attempt, tested).await
}

/// What an event tells of the machine itself.
fn note(machine: &mut Machine, number: u64, what: &What) {
    match what {
        What::Stage(stage) => {
            match stage {
                Stage::PoweredOn => {
                    machine.power_event = number;
                    machine.power = Some(Power::On);
                }
                // Whoever asks for these is not the installer that was connected.
                Stage::RomDhcp(_)
                | Stage::Loader(_)
                | Stage::IpxeDhcp
                | Stage::Script(_)
                | Stage::Kernel
                | Stage::Initramfs
                | Stage::Rebooting => machine.connected = false,
                // Whoever has an installer is believed to until that is silent: anybody can ask for
                // an address in its name.
                Stage::OsDhcp if machine.boot == Boot::Disk => machine.connected = false,
                _ => {}
            }
            machine.stage = Some(stage.clone());
            machine.stage_event = number;
        }
        What::Lost => machine.connected = false,
        What::Rescue { run, login, .. } if rescued_by(machine, *run) => machine.rescue = Some(login.clone()),
        What::Power(power) => {
            machine.power = Some(*power);
            if *power == Power::Off {
                machine.connected = false;
            }
        }
        _ => {}
    }
}

/// Whether the machine's present order is to let people log in, and is of this run.
fn rescued_by(machine: &Machine, run: RunId) -> bool {
    machine.order.as_ref().is_some_and(|order| order.run == run && order.work.rescue().is_some())
}

/// The most records of one release that are kept: several of each disk of the largest machine.
const MAX_ERASURES: u64 = 512;

struct Connection {
    id: MachineId,
    mac: Mac,
    address: Ipv4Addr,
    inventory: Inventory,
}

async fn connected(tx: &mut Tx, rack: RackId, event: &Event, connection: Connection) -> Result<(), StoreError> {
    let Connection { id, mac, address, inventory } = connection;
    let known = match tx.machine(&id.to_string()).await {
        Ok(machine) => Some(machine),
        // A node that lost its tables gives a machine we know a new id.
        Err(StoreError::NotFound(_)) => tx.machine_by_macs(rack, &[mac]).await?,
        Err(error) => return Err(error),
    };
    if let Some(machine) = &known {
        if machine.rack != rack {
            let reason = format!("an installer connected from {mac} as machine {id}, which stands in another rack");
            return alert(tx, rack, event, None, reason).await;
        }
        if machine.lifecycle == Lifecycle::Active && !leaves_its_system(tx, machine).await? {
            // Told late: the machine was switched off and on since, as when a reinstall is cancelled.
            if tx.time_of(machine.power_event).await?.is_some_and(|powered_on| event.at <= powered_on) {
                return Ok(());
            }
            let reason = format!("an installer connected from {mac} as {}, which is active", machine.name);
            return alert(tx, rack, event, Some(machine.clone()), reason).await;
        }
    } else if let Some(holder) = tx.machine_by_address(rack, address).await? {
        let reason = format!("an unknown machine, {mac}, connected from {address}, which is {}'s", holder.name);
        return alert(tx, rack, event, Some(holder), reason).await;
    }
    // The card it booted from comes first.
    let mut macs = vec![mac];
    macs.extend(inventory.nics.iter().map(|nic| nic.mac).filter(|other| *other != mac));
    let mut seen = BTreeSet::new();
    macs.retain(|mac| seen.insert(*mac));
    for candidate in macs.clone() {
        let holder = tx.machine_by_macs(rack, &[candidate]).await?;
        if let Some(holder) = holder.filter(|holder| known.as_ref().is_none_or(|known| known.id != holder.id)) {
            macs.retain(|mac| *mac != candidate);
            let reason = format!("an installer at {address} found {candidate} in itself, which is {}'s", holder.name);
            alert(tx, rack, event, Some(holder), reason).await?;
        }
    }
    match known {
        Some(mut machine) => {
            let run = run_of(tx, Some(&machine)).await?;
            let number =
                tx.insert_event(event.at, rack, Some(machine.id), run, &Happened::Told(event.what.clone())).await?;
            let renamed = machine.id != id || machine.address != address;
            let known = machine.changes();
            machine.macs = macs;
            machine.inventory = inventory.into();
            let changes = machine.changes();
            if !changes.is_empty() && changes != known {
                tracing::warn!(machine = %machine.id, ?changes, "a machine's parts are not those that were accepted");
                tx.insert_event(event.at, rack, Some(machine.id), run, &Happened::PartsChanged { changes }).await?;
            }
            machine.connected = true;
            machine.connection = number;
            let doubt = adoptions::inspect(tx, event.at, &mut machine, run).await?;
            tx.update_machine(event.at, &mut machine).await?;
            if let Some(reason) = doubt {
                alert(tx, rack, event, Some(machine.clone()), reason).await?;
                machine = tx.machine(&machine.id.to_string()).await?;
            }
            tx.join_expected_bmc(event.at, &machine, &rotations::fresh()).await?;
            if renamed {
                // The node goes by its own tables until it is told again.
                tx.touch_rack(rack).await?;
            }
        }
        None => {
            let number = tx.insert_event(event.at, rack, Some(id), None, &Happened::Told(event.what.clone())).await?;
            let name = free_name(tx, mac).await?;
            let machine = Machine {
                id,
                rack,
                project: None,
                name: name.clone(),
                lifecycle: Lifecycle::Discovered,
                epoch: Epoch(1),
                boot: Boot::Installer,
                address,
                macs,
                inventory: inventory.into(),
                accepted: None,
                connection: number,
                connected: true,
                power: Some(Power::On),
                stage: Some(Stage::Inventoried),
                stage_event: number,
                power_event: 0,
                order: None,
                image: None,
                alert: None,
                held: None,
                uninspected: None,
                rescue: None,
                created: event.at,
                updated: event.at,
                version: 1,
            };
            tx.insert_machine(&machine).await?;
            tx.touch_rack(rack).await?;
            tx.insert_event(event.at, rack, Some(id), None, &Happened::Discovered { name }).await?;
            tx.join_expected_bmc(event.at, &machine, &rotations::fresh()).await?;
            let parts = tx.parts_of_others(&machine).await?;
            if !parts.is_empty() {
                return alert(tx, rack, event, Some(machine), verbs::elsewhere(&parts)).await;
            }
        }
    }
    Ok(())
}

/// Tells of something that an operator should look at, and has the machine's alert say so.
pub(crate) async fn alert(
    tx: &mut Tx,
    rack: RackId,
    event: &Event,
    machine: Option<Machine>,
    reason: String,
) -> Result<(), StoreError> {
    tracing::warn!(%rack, reason, "a rack told of something that does not fit");
    let body = Happened::Alert { reason: reason.clone() };
    tx.insert_event(event.at, rack, machine.as_ref().map(|machine| machine.id), None, &body).await?;
    if let Some(mut machine) = machine {
        machine.alert = Some(reason);
        tx.update_machine(event.at, &mut machine).await?;
    }
    Ok(())
}

/// Whether an active machine may start its installer: only a reinstall, which leaves it there when it
/// fails, and a rescue have it do so.
async fn leaves_its_system(tx: &mut Tx, machine: &Machine) -> Result<bool, StoreError> {
    let Some(run) = tx.run_in_progress(machine.id).await? else { return Ok(machine.boot == Boot::Installer) };
    Ok(matches!(tx.run(run).await?.parameters, Parameters::Reinstall(_) | Parameters::Rescue(_)))
}

async fn run_of(tx: &mut Tx, machine: Option<&Machine>) -> Result<Option<RunId>, StoreError> {
    match machine {
        Some(machine) => tx.run_in_progress(machine.id).await,
        None => Ok(None),
    }
}

/// `m-` and the end of its MAC, as much of it as makes the name unique.
async fn free_name(tx: &mut Tx, mac: Mac) -> Result<String, StoreError> {
    let digits: String = mac.0.iter().map(|octet| format!("{octet:02x}")).collect();
    for length in [4, 6, 12] {
        let name = format!("m-{}", &digits[digits.len() - length..]);
        match tx.machine(&name).await {
            Ok(_) => {}
            Err(StoreError::NotFound(_)) => return Ok(name),
            Err(error) => return Err(error),
        }
    }
    // The same MAC in two racks.
    Ok(format!("m-{digits}-{}", &MachineId::fresh().to_string()[24..]))
}

/// Signs nothing.
#[cfg(test)]
pub(crate) fn unsigned(certificate: Certificate) -> SignedCertificate {
    SignedCertificate::sign(&certificate, Vec::new(), |_| Vec::new())
}

#[cfg(test)]
mod tests;
