//! `/v1/racks/{rack}/running-machines`: machines that are adopted while they run.

use std::net::{IpAddr, Ipv4Addr};

use axum::{
    Extension,
    extract::{Path, State},
    http::StatusCode,
    response::IntoResponse,
};
use rackhand_common::{
    id::RackId,
    machine::{Cpu, Firmware, Mac, System},
};
use rackhand_controller_core::{
    access::{Action, Place, Use},
    adoption::{MAX_PARTS, Told, ToldDisk},
    ipam::Prefix,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    App, Caller, Error,
    claims::{hidden, prefix},
    extract::{Json, check_text},
    machines::{Machine, check_host_name},
};
use crate::{
    adoptions::{Holding, NotAdopted, Running},
    store::{StoreError, Thing, Tx},
};

/// The longest text about a machine.
const MAX_TEXT: usize = 128;

/// The most addresses that one machine is said to have.
const MAX_HELD: usize = 64;

/// A machine that runs a system that was not installed by this controller.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RunningMachine {
    /// The name it gets: an RFC 1123 label, unique among all machines.
    #[schema(example = "web-1")]
    name: String,
    /// Address of its BMC, one of `found-bmcs` that has said whose it is: what that said counts where nothing else is
    /// said here.
    #[schema(value_type = Option<String>, example = "10.20.0.5")]
    bmc: Option<IpAddr>,
    /// Serial number of its mainboard (SMBIOS type 1).
    #[schema(example = "7G00001")]
    #[serde(default)]
    serial: String,
    /// UUID of its mainboard (SMBIOS type 1). Needed when there is no serial number.
    uuid: Option<Uuid>,
    /// Its network cards, the one that it boots from first. They can be left out when its BMC tells them.
    #[schema(value_type = Vec<String>, example = json!(["52:54:00:12:34:56"]))]
    #[serde(default)]
    macs: Vec<Mac>,
    /// Give it to this project (id, name or ORGANISATION:NAME); absent: it is in use, and no project's.
    #[schema(example = "acme:shop")]
    project: Option<String>,
    /// Its address on the provisioning network. When absent: the first of `holds` that is there, or else one that nobody
    /// has and that is outside of the range of the rack's node.
    #[schema(value_type = Option<String>, example = "10.77.0.20")]
    address: Option<Ipv4Addr>,
    /// Addresses and blocks that it has, which are claimed for it. Each has to be free in a pool.
    #[schema(example = json!(["198.51.100.7"]))]
    #[serde(default)]
    holds: Vec<String>,
    /// Addresses that were seen on it: like `holds` where a pool has them, and left alone where none has.
    #[serde(default)]
    seen: Vec<String>,
    /// Who made it.
    #[serde(default)]
    vendor: String,
    /// What its maker calls it.
    #[serde(default)]
    product: String,
    /// How its firmware boots: `bios`, `uefi`.
    #[schema(value_type = Option<String>, example = "uefi")]
    firmware: Option<Firmware>,
    /// Model of its processors.
    #[serde(default)]
    cpu: String,
    /// Logical processors.
    #[serde(default)]
    threads: u32,
    /// Bytes of memory.
    #[serde(default)]
    memory: u64,
    /// Its disks, as its system has them.
    #[serde(default)]
    disks: Vec<RunningDisk>,
}

/// A disk as the system of a machine has it.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RunningDisk {
    /// What the system calls it.
    #[schema(example = "nvme0n1")]
    #[serde(default)]
    name: String,
    /// Model.
    #[serde(default)]
    model: String,
    /// Serial number.
    #[serde(default)]
    serial: String,
    /// World-wide name.
    wwn: Option<String>,
    /// Bytes.
    #[serde(default)]
    size: u64,
}

/// A machine that was adopted while it runs.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AdoptedMachine {
    /// It.
    machine: Machine,
    /// Whether it had been adopted before: what was so already stayed.
    was_known: bool,
    /// What it holds, of what was said.
    #[schema(example = json!(["198.51.100.7/32"]))]
    claimed: Vec<String>,
    /// What was seen on it and is in no pool.
    unclaimed: Vec<String>,
}

impl RunningMachine {
    fn told(&self) -> Result<Told, Error> {
        for (field, list) in [("/macs", self.macs.len()), ("/disks", self.disks.len())] {
            if list > MAX_PARTS {
                return Err(Error::invalid(field, format!("at most {MAX_PARTS}")));
            }
        }
        let texts =
            [("/serial", &self.serial), ("/vendor", &self.vendor), ("/product", &self.product), ("/cpu", &self.cpu)];
        for (field, text) in texts {
            check_text(field, text, MAX_TEXT)?;
        }
        for (index, disk) in self.disks.iter().enumerate() {
            for text in [&disk.name, &disk.model, &disk.serial].into_iter().chain(&disk.wwn) {
                check_text(&format!("/disks/{index}"), text, MAX_TEXT)?;
            }
        }
        let mut macs = Vec::new();
        for mac in &self.macs {
            if mac.0[0] & 1 == 1 || *mac == Mac([0; 6]) {
                return Err(Error::invalid("/macs", format!("{mac} is no card's address")));
            }
            if !macs.contains(mac) {
                macs.push(*mac);
            }
        }
        let disk = |disk: &RunningDisk| ToldDisk {
            name: disk.name.clone(),
            model: disk.model.clone(),
            serial: disk.serial.trim().to_owned(),
            wwn: disk.wwn.clone().filter(|wwn| !wwn.is_empty()),
            size: disk.size,
        };
        Ok(Told {
            system: System {
                vendor: self.vendor.clone(),
                product: self.product.clone(),
                serial: self.serial.trim().to_owned(),
                // What boards say that were never given one (SMBIOS §7.2.1).
                uuid: self.uuid.filter(|uuid| !uuid.is_nil() && !uuid.is_max()),
            },
            firmware: self.firmware,
            cpu: Cpu { model: self.cpu.clone(), threads: self.threads },
            memory: self.memory,
            macs,
            disks: self.disks.iter().map(disk).collect(),
        })
    }

    /// What it has of pools, each once, where the caller may hand that out there; and what no pool has.
    async fn holdings(&self, tx: &mut Tx, caller: &Caller, place: Place) -> Result<(Vec<Holding>, Vec<Prefix>), Error> {
        if self.holds.len() > MAX_HELD || self.seen.len() > MAX_HELD {
            return Err(Error::invalid("/holds", format!("at most {MAX_HELD}")));
        }
        let (mut holdings, mut unclaimed) = (Vec::<Holding>::new(), Vec::new());
        let said = self.holds.iter().enumerate().map(|(index, text)| (format!("/holds/{index}"), text, true));
        let seen = self.seen.iter().enumerate().map(|(index, text)| (format!("/seen/{index}"), text, false));
        for (field, text, must) in said.chain(seen) {
            let prefix = prefix(&field, text)?;
            if holdings.iter().any(|holding| holding.prefix == prefix) {
                continue;
            }
            let Some(pool) = tx.pool_with(prefix).await? else {
                if must {
                    return Err(Error::invalid(&field, format!("{prefix} is in no pool; leave it out, or make one")));
                }
                unclaimed.push(prefix);
                continue;
            };
            let place = if place.project.is_none() { place.given_to(pool.place()) } else { place };
            caller.may_use(&pool, Use::Assign, place)?;
            holdings.push(Holding { pool, prefix, project: place.project });
        }
        Ok((holdings, unclaimed))
    }
}

/// Adopt a running machine
///
/// Has a machine be `active` that was never seen: it runs a system that was not installed by this controller, and goes
/// on running it. Nothing is switched, written or started; it boots its own disk when it asks the network. Who it is
/// comes from what is said here and from its BMC, which is joined to it. What it has of addresses is claimed for it in
/// the same transaction. What somebody else has already (a card, a mainboard, an address, a BMC) is a conflict that
/// names them, and nothing is kept. Said once more it is answered as it is, with 200.
///
/// Its disks are learnt when it next starts an installer, by a reinstall, a rescue or a release, which stops where its
/// mainboard or a part is not as was said.
#[utoipa::path(post, path = "/v1/racks/{rack}/running-machines", tag = "machines", request_body = RunningMachine,
    params(("rack" = String, Path, description = "Id or name.")),
    responses((status = 201, body = AdoptedMachine), (status = 200, body = AdoptedMachine, description = "It was known.")))]
pub(super) async fn adopt_running(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(rack): Path<String>,
    Json(body): Json<RunningMachine>,
) -> Result<impl IntoResponse, Error> {
    check_host_name("/name", &body.name)?;
    let told = body.told()?;
    let project = caller.project_to_use(&app, body.project.as_deref()).await?;
    let now = app.clock.now().wall;
    let mut tx = app.store.begin().await?;
    let standing = caller.check_in(&mut tx, Action::MachineAdopt, Thing::Rack, &rack).await?;
    let mut place = standing.place;
    if let Some(project) = &project {
        caller.require(Action::MachineAssign, place)?;
        place = place.given_to(project.place());
    }
    let rack: RackId = standing.id.parse().map_err(Error::internal)?;
    if project.is_none() {
        // One that is known is its project's, and so is what it has.
        match tx.machine(&body.name).await {
            Ok(known) if known.rack == rack => place = tx.standing(Thing::Machine, &body.name).await?.place,
            Ok(_) | Err(StoreError::NotFound(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let (holdings, unclaimed) = body.holdings(&mut tx, &caller, place).await?;
    let running = Running {
        name: body.name,
        told,
        bmc: body.bmc,
        project: project.map(|project| (project.id, project.full_name())),
        address: body.address,
    };
    let adopted = match tx.adopt_running(now, rack, running, &holdings, &caller.name).await {
        Err(NotAdopted::Refused(refused)) => {
            drop(tx);
            return Err(hidden(&app, &caller, refused).await?.into());
        }
        adopted => adopted?,
    };
    let row = tx.machine(&adopted.machine.id.to_string()).await?;
    let rack_name = tx.rack(&row.rack.to_string()).await?.name;
    let projects = tx.project_names(row.project).await?;
    let run = tx.run_in_progress(row.id).await?;
    let health = tx.machine_health(row.id).await?.map(|known| known.verdict.state);
    tx.commit().await?;
    (app.changed)(row.rack);
    let status = if adopted.was_known { StatusCode::OK } else { StatusCode::CREATED };
    let answer = AdoptedMachine {
        machine: Machine::of(row, rack_name, &projects, run, health),
        was_known: adopted.was_known,
        claimed: adopted.claims.iter().map(|claim| claim.prefix.to_string()).collect(),
        unclaimed: unclaimed.iter().map(ToString::to_string).collect(),
    };
    Ok((status, axum::Json(answer)))
}
