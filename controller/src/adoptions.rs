//! Machines that are adopted while they run: they were never seen, have systems that we did not install, and
//! become active as they are.
//!
//! Invariants:
//! - To adopt one switches nothing, writes nothing and orders nothing: what is told to its rack is that it boots its
//!   own disk.
//! - What is said of it is one transaction with the addresses that it holds: all of it is so, or nothing.
//! - What somebody else has (a card, a mainboard, an address, a BMC) is a conflict that names them.
//! - Its disks are known once an installer has looked into it, and found the machine that was meant.

pub mod telling;

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use jiff::Timestamp;
use rackhand_common::{
    bmc::Identity,
    id::{Epoch, MachineId, ProjectId, RackId, RunId},
    intent::{Boot, MAX_MACHINES},
    machine::{Mac, Mainboard},
};
use rackhand_controller_core::{
    adoption::{self, NoAddress, Told},
    ipam::Prefix,
    lifecycle::{Event, Lifecycle},
};

use crate::{
    addresses::{NewClaim, NewHolder, Refused, Wanted},
    rotations,
    store::{Claim, Happened, Machine, Pool, StoreError, Tx, Uninspected},
    verbs::{self, Denied},
};

/// What is said of a machine that runs.
#[derive(Clone, Debug)]
pub struct Running {
    /// Its name.
    pub name: String,
    /// What is in it.
    pub told: Told,
    /// Where its BMC is, of those that were found in its rack.
    pub bmc: Option<IpAddr>,
    /// The project it is given to, told with its name.
    pub project: Option<(ProjectId, String)>,
    /// Its address on the provisioning network; chosen when absent.
    pub address: Option<Ipv4Addr>,
}

/// Addresses that a machine has, and where they are from.
#[derive(Clone, Debug)]
pub struct Holding {
    /// Their pool.
    pub pool: Pool,
    /// Which.
    pub prefix: Prefix,
    /// The project that they are given to.
    pub project: Option<ProjectId>,
}

/// Why a machine was not adopted.
#[derive(Debug, thiserror::Error)]
pub enum NotAdopted {
    /// Nothing tells its mainboard from another.
    #[error("nobody says which machine it is: say the serial number or UUID of its mainboard, or a BMC that tells one")]
    Nameless,
    /// Nothing tells which cards it has, so that it could not be told to boot its disk.
    #[error(
        "nobody says which network cards it has: were it to start from the network, nobody would know it; say at \
         least the one it boots from"
    )]
    NoCards,
    /// It is another machine, which is known.
    #[error("{what} is machine {name}'s")]
    Known {
        /// What both have.
        what: String,
        /// The machine that is known.
        name: String,
    },
    /// A machine of this name is known, and is not like that.
    #[error("machine {name} is known, and is not what is said here: {differs}")]
    Differs {
        /// The name.
        name: String,
        /// How.
        differs: String,
    },
    /// Its address on the provisioning network is not to be had.
    #[error(transparent)]
    Address(#[from] NoAddress),
    /// Nothing was found there.
    #[error("no BMC was found at {0}; `rackhand bmc found` lists those that were")]
    NoBmc(IpAddr),
    /// What was found there has not said whose it is.
    #[error(
        "the BMC at {address} has not said whose it is{}: `rackhand bmc import` says how it is logged in to; or leave it \
         out, and say serial number or UUID yourself", detail.as_deref().map(|it| format!(" ({it})")).unwrap_or_default()
    )]
    NotMet {
        /// Where.
        address: IpAddr,
        /// Why not.
        detail: Option<String>,
    },
    /// It says that it is another's.
    #[error("the BMC at {address} says that it is of {says}, and you say {told}")]
    OtherBoard {
        /// Where.
        address: IpAddr,
        /// What it says.
        says: String,
        /// What was said.
        told: String,
    },
    /// A rack has only so many machines.
    #[error("the rack has {MAX_MACHINES} machines, which is as many as can be")]
    Full,
    /// Addresses that it has are not to be had.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The rack does not permit it.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The database failed, or the row is not there.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A machine that was adopted.
#[derive(Debug)]
pub struct Adopted {
    /// It.
    pub machine: Machine,
    /// Whether it was before: nothing of it is new but perhaps addresses.
    pub was_known: bool,
    /// The addresses that it holds, of those that were said.
    pub claims: Vec<Claim>,
}

impl Tx {
    /// Has a machine be ours that was never seen, as it runs. Said once more, what is so already stays.
    pub async fn adopt_running(
        &mut self,
        now: Timestamp,
        rack: RackId,
        running: Running,
        holdings: &[Holding],
        by: &str,
    ) -> Result<Adopted, NotAdopted> {
        let Running { name, mut told, bmc, project, address } = running;
        let place = self.rack(&rack.to_string()).await?;
        if place.restored.is_some() {
            return Err(Denied::RackRestored(place.name).into());
        }
        if let Some(bmc) = bmc {
            self.hear_bmc(rack, bmc, &mut told).await?;
        }
        let board = told.system.mainboard().ok_or(NotAdopted::Nameless)?;
        // Its BMC tells them, once it is joined.
        if told.macs.is_empty() && bmc.is_none() {
            return Err(NotAdopted::NoCards);
        }
        let (project, project_name) = project.unzip();
        let machines = self.machines_of(rack).await?;
        let named = match self.machine(&name).await {
            Ok(known) => Some(known),
            Err(StoreError::NotFound(_)) => None,
            Err(error) => return Err(error.into()),
        };
        let (machine, was_known) = if let Some(known) = named {
            if let Some(differs) = differs(&known, rack, &told, project) {
                return Err(NotAdopted::Differs { name, differs });
            }
            (self.learn_cards(now, known, &told.macs).await?, true)
        } else {
            known_already(&machines, &told)?;
            if machines.len() >= MAX_MACHINES {
                return Err(NotAdopted::Full);
            }
            let in_rack = |holding: &Holding| match (holding.prefix.first(), holding.prefix.length()) {
                (IpAddr::V4(address), 32) => place.network.node.contains(&address).then_some(address),
                _ => None,
            };
            let wanted = address.or_else(|| holdings.iter().find_map(in_rack));
            let taken: BTreeSet<_> = machines.iter().map(|machine| machine.address).collect();
            let holder = wanted.and_then(|wanted| machines.iter().find(|machine| machine.address == wanted));
            if let Some(holder) = holder {
                let what = format!("the address {} on the rack's network", holder.address);
                return Err(NotAdopted::Known { what, name: holder.name.clone() });
            }
            let address = adoption::address(&place.network, &taken, wanted)?;
            let machine = new(now, rack, name, address, &told, project)?;
            self.insert_machine(&machine).await?;
            let elsewhere = self.parts_of_others(&machine).await?;
            if !elsewhere.is_empty() {
                return Err(Denied::Elsewhere(elsewhere).into());
            }
            self.claim_parts(&machine).await?;
            self.touch_rack(rack).await?;
            let happened = Happened::AdoptedRunning { by: by.to_owned() };
            self.insert_event(now, rack, Some(machine.id), None, &happened).await?;
            if let Some(project) = project_name {
                let happened = Happened::Assigned { project: Some(project) };
                self.insert_event(now, rack, Some(machine.id), None, &happened).await?;
            }
            self.join_expected_bmc(now, &machine, &rotations::fresh()).await?;
            (machine, false)
        };
        tracing::info!(%rack, machine = %machine.id, %board, was_known, "a machine is adopted while it runs");
        let now = self.address_time(now).await?;
        let mut claims = Vec::new();
        for holding in holdings {
            claims.push(self.hold_for(now, &machine, holding, by).await?);
        }
        Ok(Adopted { machine, was_known, claims })
    }

    /// Has a machine that nobody has looked into have these cards as well.
    async fn learn_cards(&mut self, now: Timestamp, known: Machine, macs: &[Mac]) -> Result<Machine, NotAdopted> {
        let mut machine = known;
        for mac in macs {
            if machine.macs.contains(mac) {
                continue;
            }
            if let Some(holder) = self.machine_by_macs(machine.rack, &[*mac]).await? {
                return Err(NotAdopted::Known { what: format!("network card {mac}"), name: holder.name });
            }
            let nics = Told { macs: vec![*mac], ..Told::default() }.inventory().nics;
            machine.macs.push(*mac);
            Arc::make_mut(&mut machine.inventory).nics.extend(nics.clone());
            if let Some(accepted) = &mut machine.accepted {
                Arc::make_mut(accepted).nics.extend(nics);
            }
        }
        self.update_machine(now, &mut machine).await?;
        Ok(machine)
    }

    /// Takes what a BMC that was found said when it was logged in to, where nobody said it.
    async fn hear_bmc(&mut self, rack: RackId, address: IpAddr, told: &mut Told) -> Result<(), NotAdopted> {
        let found = self.found_bmc(rack, address).await?.ok_or(NotAdopted::NoBmc(address))?;
        // One that is joined was told whose it is by somebody else.
        let Some(met) = found.met else {
            let joined = self.bmcs_of(rack).await?.into_iter().find(|bmc| bmc.access.at.address == address);
            let Some(joined) = joined else { return Err(NotAdopted::NotMet { address, detail: found.detail }) };
            let of = joined.access.mainboard;
            if told.system.mainboard().is_none() {
                let Mainboard { serial, uuid } = of.unwrap_or(Mainboard { serial: String::new(), uuid: None });
                (told.system.serial, told.system.uuid) = (serial, uuid);
                return Ok(());
            }
            if of.zip(told.system.mainboard()).is_some_and(|(joined, told)| !joined.is_other(&told)) {
                return Ok(());
            }
            let name = self.machine(&joined.access.machine.to_string()).await?.name;
            return Err(NotAdopted::Known { what: format!("the BMC at {address}"), name });
        };
        let Identity { vendor, model, serial, uuid, .. } = met.identity;
        if adoption::is_other(&told.system, serial.as_deref(), uuid) {
            let says = [serial, uuid.map(|uuid| uuid.to_string())].into_iter().flatten().collect::<Vec<_>>().join(", ");
            let told = told.system.mainboard().map(|board| board.to_string()).unwrap_or_default();
            return Err(NotAdopted::OtherBoard { address, says, told });
        }
        let system = &mut told.system;
        let fill = |known: &mut String, heard: Option<String>| {
            if known.is_empty() {
                *known = heard.unwrap_or_default();
            }
        };
        fill(&mut system.vendor, vendor);
        fill(&mut system.product, model);
        fill(&mut system.serial, serial);
        // Many tell a UUID of their own: it counts where there is nothing else.
        if system.serial.is_empty() {
            system.uuid = system.uuid.or(uuid);
        }
        Ok(())
    }

    /// Claims what the machine has, unless it holds it already.
    async fn hold_for(
        &mut self,
        now: Timestamp,
        machine: &Machine,
        holding: &Holding,
        by: &str,
    ) -> Result<Claim, NotAdopted> {
        let claim = NewClaim {
            pool: holding.pool.id.to_string(),
            wanted: Wanted::Prefix(holding.prefix),
            holder: NewHolder::Machine(machine.id.to_string(), None),
            reserved: false,
            project: holding.project,
            purpose: PURPOSE.to_owned(),
        };
        match self.hand_out(now, &claim, by).await {
            Err(Refused::Held { claim: Some(claim), .. })
                if claim.holder.machine == Some(machine.id) && claim.prefix == holding.prefix =>
            {
                Ok(*claim)
            }
            claimed => Ok(claimed?),
        }
    }

    /// The pool of the default VRF that has these addresses.
    pub async fn pool_with(&mut self, prefix: Prefix) -> Result<Option<Pool>, StoreError> {
        let aggregate = self.aggregate_at(DEFAULT_VRF, prefix).await?;
        let Some(aggregate) = aggregate.filter(|found| found.prefix.contains(prefix)) else { return Ok(None) };
        match self.leaf(aggregate.number, prefix).await?.pool {
            Some(pool) => self.pool_numbered(pool).await.map(Some),
            None => Ok(None),
        }
    }
}

const PURPOSE: &str = "held when its machine was adopted";

const DEFAULT_VRF: &str = "default";

fn new(
    now: Timestamp,
    rack: RackId,
    name: String,
    address: Ipv4Addr,
    told: &Told,
    project: Option<ProjectId>,
) -> Result<Machine, Denied> {
    let first_seen = Lifecycle::Discovered;
    let inventory = Arc::new(told.inventory());
    Ok(Machine {
        id: MachineId::fresh(),
        rack,
        project,
        name,
        lifecycle: first_seen.on(Event::AdoptRunning)?,
        epoch: Epoch(1),
        boot: Boot::Disk,
        address,
        macs: told.macs.clone(),
        accepted: Some(inventory.clone()),
        inventory,
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
        uninspected: Some(Uninspected { firmware: told.firmware, by_bmc: None }),
        rescue: None,
        created: now,
        updated: now,
        version: 1,
    })
}

/// How a machine that is known is not the one that is said, if it is not.
fn differs(known: &Machine, rack: RackId, told: &Told, project: Option<ProjectId>) -> Option<String> {
    if known.rack != rack {
        return Some("it stands in another rack".to_owned());
    }
    if known.lifecycle != Lifecycle::Active {
        return Some(format!("it is {}", known.lifecycle));
    }
    let boards = known.mainboard().zip(told.system.mainboard());
    if let Some((known, told)) = boards.filter(|(known, told)| known.is_other(told)) {
        return Some(format!("its mainboard is {known}, and not {told}"));
    }
    let is_its = |mac: &&Mac| known.macs.contains(mac);
    // Of one that nobody has looked into more may become known.
    let unknown = told.macs.iter().find(|mac| !is_its(mac));
    if let Some(mac) = unknown.filter(|_| known.uninspected.is_none()) {
        return Some(format!("it has no network card {mac}"));
    }
    (project.is_some() && known.project != project).then(|| "it is not that project's".to_owned())
}

/// That no machine of the rack has a card or the mainboard of the one that is said.
fn known_already(machines: &[Machine], told: &Told) -> Result<(), NotAdopted> {
    for known in machines {
        if let Some(mac) = told.macs.iter().find(|mac| known.macs.contains(mac)) {
            return Err(NotAdopted::Known { what: format!("network card {mac}"), name: known.name.clone() });
        }
        let Some(board) = known.mainboard() else { continue };
        let serial = (!told.system.serial.is_empty()).then_some(&told.system.serial);
        if let Some(serial) = serial.filter(|serial| **serial == board.serial) {
            return Err(NotAdopted::Known { what: format!("serial number {serial}"), name: known.name.clone() });
        }
        if let Some(uuid) = told.system.uuid.filter(|uuid| board.uuid == Some(*uuid)) {
            return Err(NotAdopted::Known { what: format!("UUID {uuid}"), name: known.name.clone() });
        }
    }
    Ok(())
}

/// Takes what an installer found in a machine that nobody had looked into for what it is, when that is what was said
/// of it, and has the run in progress act upon that. Why not, when it is not; nothing is written to it then.
pub(crate) async fn inspect(
    tx: &mut Tx,
    now: Timestamp,
    machine: &mut Machine,
    run: Option<RunId>,
) -> Result<Option<String>, StoreError> {
    if machine.uninspected.is_none() {
        return Ok(None);
    }
    let changes = machine.changes();
    if !changes.is_empty() {
        return Ok(Some(format!("it is not as was said when it was adopted: {}", verbs::listed(&changes))));
    }
    let elsewhere = tx.parts_of_others(machine).await?;
    if !elsewhere.is_empty() {
        return Ok(Some(verbs::elsewhere(&elsewhere)));
    }
    machine.uninspected = None;
    machine.accepted = Some(machine.inventory.clone());
    tx.claim_parts(machine).await?;
    tx.follow_mainboard(now, machine).await?;
    tx.insert_event(now, machine.rack, Some(machine.id), run, &Happened::Inspected).await?;
    if let (Some(run), Ok(disks)) = (run, verbs::disk_identities(machine)) {
        tx.run_learns(run, &disks, verbs::mainboard(machine).as_ref()).await?;
    }
    Ok(None)
}
