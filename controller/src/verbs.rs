//! What operators ask of machines. Each verb checks, and writes rows, the rack's revision
//! and the event in the caller's transaction; what takes time is a run that
//! [`workflows`](crate::workflows) performs afterwards.
//!
//! Invariants:
//! - The allocation epoch rises whenever a machine is given out or taken back, so that whatever
//!   was ordered or commanded before is refused from then on.
//! - Nothing destructive begins on a machine whose parts are not those an operator accepted, and
//!   no part of another machine is accepted without being named.

use jiff::Timestamp;
use rackhand_common::{
    bmc::Access,
    commission,
    firmware::Update,
    id::{ProjectId, RunId},
    image::Settings,
    intent::{Boot, DiskRule, Host},
    machine::{Content, Disk, Mainboard},
};
use rackhand_controller_core::{
    firmware::{self, Manifest},
    identity::{Change, Part},
    lifecycle::{Event, Forbidden, Lifecycle},
    workflow,
};

use crate::{
    store::{
        Deploy, FirmwareUpdates, Happened, Hold, Image, ImageVersion, Machine, Parameters, PowerChange, Release,
        Rescue, Run, RunStatus, StoreError, Tests, Tx,
    },
    workflows,
};

/// Why a verb was not done.
#[derive(Debug, thiserror::Error)]
pub enum Denied {
    /// The machine's state does not permit it.
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
    /// Another run is in progress on the machine.
    #[error("run {0} is in progress on this machine")]
    Busy(RunId),
    /// Disks hold data, and the operator has not said that it may be lost.
    #[error("disks hold data that a deploy or release will destroy: {}", named(.0))]
    HasData(Vec<Disk>),
    /// Parts are not those that were accepted.
    #[error("its parts changed since they were accepted: {}", listed(.0))]
    Changed(Vec<Change>),
    /// Its health is critical, and nobody says that it is given out all the same.
    #[error(
        "machine {0} is critical: {1}; it is well again by itself when that is over (`rackhand machine health show \
         {0}`), or is given out all the same for a time that you say: `rackhand machine health override {0}`"
    )]
    Critical(String, String),
    /// It is not as its plan, which is strict, expects.
    #[error(
        "machine {machine} is not as plan {plan} expects: {}; put that right and have it looked at \
         (`rackhand machine inspect {machine}`), or change the plan, which is strict", findings.join("; ")
    )]
    Unexpected {
        /// Its name.
        machine: String,
        /// The plan's.
        plan: String,
        /// What is not as it should be.
        findings: Vec<String>,
    },
    /// Tests destroy what is on disks, and the operator has not said that it may be lost.
    #[error("what is on its disks is lost by these tests: {}; say `accept_data_loss` to run them", .0.join(", "))]
    Destructive(Vec<String>),
    /// Its BMC is what updates it, and nobody said how that is reached.
    #[error(
        "nobody has said how the BMC of machine {0} is reached, which is what updates its firmware: `rackhand bmc set`"
    )]
    NoBmc(String),
    /// The file of firmware has not come.
    #[error("the file of firmware {0} is not here yet: `rackhand firmware import` sends it")]
    FirmwareNotHere(String),
    /// The firmware is not for this machine.
    #[error("firmware {name} is not for machine {machine}: {reason}")]
    FirmwareUnfit {
        /// Its name.
        name: String,
        /// The machine's.
        machine: String,
        /// Why not.
        reason: String,
    },
    /// Nobody has looked into it.
    #[error("no installer has looked into machine {0}: `rackhand machine inspect {0}` first")]
    NotInspected(String),
    /// Two would be installed in one place.
    #[error("both {0} and {1} are for the same: name one of them")]
    FirmwareTwice(String, String),
    /// There is nothing to do.
    #[error("nothing of the firmware of machine {0} is other than its plan has it; name what is to be installed")]
    FirmwareAsWanted(String),
    /// Nothing changed.
    #[error("its parts are those that were accepted")]
    Unchanged,
    /// Parts are another machine's.
    #[error("it has parts of other machines: {}", elsewhere(.0))]
    Elsewhere(Vec<(Part, String, String)>),
    /// Only a machine that nobody adopted can turn out to be another.
    #[error("{0} is {1}: only a machine that is discovered can be merged into another")]
    NotNew(String, Lifecycle),
    /// A machine cannot be merged into itself.
    #[error("that is the same machine")]
    Same,
    /// The machine has no disk that tells its identity: an order could not name it.
    #[error("the machine has a disk that tells neither a serial number nor a WWN: {0}")]
    NamelessDisk(String),
    /// The machine has no disk.
    #[error("the machine has no disk")]
    NoDisk,
    /// The rule names a disk that the machine does not have.
    #[error("the machine has no disk {0}")]
    NoSuchDisk(String),
    /// The image is not imported, or its import failed.
    #[error("image {0} is not ready")]
    ImageNotReady(String),
    /// The image is not for new deploys any more.
    #[error("image {0} has expired at {1}: deploy another version, or set another `expires`")]
    ImageExpired(ImageVersion, Timestamp),
    /// The image cannot run on this machine.
    #[error("image {image} cannot be deployed here: {reason}")]
    ImageUnsuitable {
        /// Its name.
        image: String,
        /// Why.
        reason: String,
    },
    /// The image's system would stop at what it is told.
    #[error(
        "image {0} is told its settings by Ignition: user data is a configuration of its own for it, JSON with \
         `ignition.version` 3.0.0 to 3.3.0, as `butane --strict` writes it"
    )]
    NotForIgnition(ImageVersion),
    /// The machine holds or announces addresses.
    #[error(
        "machine {0} holds or announces addresses; release or withdraw them first: `rackhand ip list --machine {0}` \
         and `rackhand ip announcements --machine {0}` show them"
    )]
    HasAddresses(String),
    /// The machine announces addresses.
    #[error(
        "machine {0} announces addresses; withdraw them first: `rackhand ip announcements --machine {0}` shows them"
    )]
    Announces(String),
    /// The machine holds or announces addresses that are given to another project.
    #[error(
        "machine {0} holds or announces addresses of another project than it is to be given to; move, release or \
         withdraw them first: `rackhand ip list --machine {0}` and `rackhand ip announcements --machine {0}` show them"
    )]
    HasAddressesOfOthers(String),
    /// A project uses the machine.
    #[error("machine {0} is in use by a project; release it first")]
    InUse(String),
    /// The run is over.
    #[error("the run is over")]
    RunOver,
    /// The run was done: there is nothing to try again.
    #[error("the run did what it was to do; ask for another one")]
    RunDone,
    /// The run's machine is in other hands since.
    #[error("machine {0} was given out, taken back or given to another project since; ask for it anew")]
    Outlived(String),
    /// What the run's system was to be told in confidence is not kept.
    #[error("the run's user data was forgotten when it was over: give it again, as `user_data`")]
    UserDataForgotten,
    /// User data for a run that had none.
    #[error("the run had no user data; ask for another one to tell it some")]
    NoUserData,
    /// The run's image was deleted since.
    #[error("image {0}, which the run was to install, is no longer there; deploy another one")]
    ImageGone(ImageVersion),
    /// The database was restored, and what the rack did since its backup is not known.
    #[error(
        "the database was restored from a backup, and the agent of rack {0} has not reported since: what was done \
         meanwhile is not known, and nothing is allocated, erased or switched there before it connects"
    )]
    RackRestored(String),
    /// The database failed, or the row is not there.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What an operator wants installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeployRequest {
    /// How to choose the disk.
    pub disk: DiskRule,
    /// What the system is told.
    pub host: Host,
}

/// Whom an owner lets in to their machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RescueRequest {
    /// Their public keys, in `authorized_keys` form.
    pub ssh_keys: Vec<String>,
    /// When somebody means to be done.
    pub until: Timestamp,
}

/// A run that tries again what another did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retried {
    /// The new run.
    pub run: Run,
    /// The image, when it is deprecated by now.
    pub deprecated: Option<ImageVersion>,
}

/// What an operator accepts of a machine's parts as found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accept {
    /// Disks may hold data, which a later deploy or release will destroy.
    pub data: bool,
    /// Parts may be another machine's; they are this one's from now on.
    pub parts: bool,
}

impl Tx {
    /// Says that a discovered machine is ours, with the parts found in it.
    pub async fn adopt(&mut self, now: Timestamp, machine: &Machine, accept: Accept) -> Result<Machine, Denied> {
        self.check_rack(machine).await?;
        let lifecycle = machine.lifecycle.on(Event::Adopt)?;
        let machine = Machine { lifecycle, boot: Boot::Installer, order: None, ..machine.clone() };
        self.accept(now, machine, disks_with_data, accept, &Happened::Adopted).await
    }

    /// Says that the parts found last are the machine's. New disks with data need its word.
    pub async fn replace_part(&mut self, now: Timestamp, machine: &Machine, accept: Accept) -> Result<Machine, Denied> {
        self.check_rack(machine).await?;
        self.check_idle(machine).await?;
        let changes = machine.changes();
        if changes.is_empty() {
            return Err(Denied::Unchanged);
        }
        self.accept(now, machine.clone(), new_disks_with_data, accept, &Happened::PartsAccepted { changes }).await
    }

    /// Takes the parts found last for the machine's: a technician replaced one at the rack's node, and it is
    /// all that changed. New disks with data, and other machines' parts, need an operator's word all the same.
    pub(crate) async fn take_part(
        &mut self,
        now: Timestamp,
        machine: &Machine,
        accept: Accept,
        by: String,
    ) -> Result<Machine, Denied> {
        self.check_rack(machine).await?;
        self.check_idle(machine).await?;
        let happened = Happened::PartTaken { by, changes: machine.changes() };
        self.accept(now, machine.clone(), new_disks_with_data, accept, &happened).await
    }

    async fn accept(
        &mut self,
        now: Timestamp,
        mut machine: Machine,
        doubtful: impl Fn(&Machine) -> Vec<Disk>,
        accept: Accept,
        happened: &Happened,
    ) -> Result<Machine, Denied> {
        let elsewhere = self.parts_of_others(&machine).await?;
        if !elsewhere.is_empty() && !accept.parts {
            return Err(Denied::Elsewhere(elsewhere));
        }
        let with_data = doubtful(&machine);
        if !with_data.is_empty() && !accept.data {
            return Err(Denied::HasData(with_data));
        }
        machine.accepted = Some(machine.inventory.clone());
        machine.uninspected = None;
        machine.alert = None;
        self.update_machine(now, &mut machine).await?;
        self.claim_parts(&machine).await?;
        self.follow_mainboard(now, &machine).await?;
        self.insert_event(now, machine.rack, Some(machine.id), None, happened).await?;
        Ok(machine)
    }

    /// Says that a machine which was discovered is really `into`: with another mainboard, or in
    /// another rack. `into` takes its cards and what was found in it, keeps its name, and its
    /// address where the rack is the same. What differs is then to be accepted as well.
    pub async fn merge(&mut self, now: Timestamp, from: &Machine, into: &Machine) -> Result<Machine, Denied> {
        if from.id == into.id {
            return Err(Denied::Same);
        }
        if from.lifecycle != Lifecycle::Discovered {
            return Err(Denied::NotNew(from.name.clone(), from.lifecycle));
        }
        self.check_rack(from).await?;
        self.check_rack(into).await?;
        self.check_idle(into).await?;
        // Where it is announced was looked at for the place it had, and for whose it was.
        for (machine, stays) in [(from, false), (into, from.rack == into.rack)] {
            if !stays && !self.announcements_by(machine.id).await?.is_empty() {
                return Err(Denied::Announces(machine.name.clone()));
            }
        }
        self.check_addresses(from, into.project).await?;
        let bmc = self.bmc(from.id).await?;
        let known = self.hardware(from.id).await?;
        self.delete_machine(from).await?;
        self.move_events(from.id, into.id).await?;
        self.move_claims(from.id, into.id, from.rack).await?;
        let mut merged = Machine {
            rack: from.rack,
            address: if from.rack == into.rack { into.address } else { from.address },
            macs: from.macs.clone(),
            inventory: from.inventory.clone(),
            // Its installer was admitted under another id: only a new start counts.
            connected: false,
            ..into.clone()
        };
        self.update_machine(now, &mut merged).await?;
        if let Some(known) = known {
            self.set_hardware(known.taken, merged.id, &known.hardware).await?;
        }
        match bmc {
            Some(bmc) => {
                self.set_bmc(now, &merged, &Access { machine: merged.id, ..bmc.access }).await?;
                self.put_next(merged.id, bmc.next.as_ref()).await?;
            }
            // A BMC is its mainboard's, and its address its rack's: with another of either, the old
            // one may answer for another machine by now.
            None if from.rack != into.rack || another_mainboard(from, into) => self.delete_bmc(&merged).await?,
            None => {}
        }
        let happened = Happened::Merged { name: from.name.clone() };
        self.insert_event(now, merged.rack, Some(merged.id), None, &happened).await?;
        Ok(merged)
    }

    /// Gives a machine to a project, told with its name, or takes it back from one that does not use it.
    pub async fn assign(
        &mut self,
        now: Timestamp,
        machine: &Machine,
        project: Option<(ProjectId, String)>,
    ) -> Result<Machine, Denied> {
        self.check_idle(machine).await?;
        let (project, name) = project.unzip();
        if machine.project == project {
            return Ok(machine.clone());
        }
        let is_free = matches!(machine.lifecycle, Lifecycle::Discovered | Lifecycle::Ready);
        if machine.project.is_some() && !is_free {
            return Err(Denied::InUse(machine.name.clone()));
        }
        self.check_addresses(machine, project).await?;
        let mut machine = Machine { project, ..machine.clone() };
        self.update_machine(now, &mut machine).await?;
        self.insert_event(now, machine.rack, Some(machine.id), None, &Happened::Assigned { project: name }).await?;
        Ok(machine)
    }

    /// That a machine which is given to a project has no addresses of another's.
    pub async fn check_addresses(&mut self, machine: &Machine, project: Option<ProjectId>) -> Result<(), Denied> {
        match self.has_addresses_of_others(machine.id, project).await? {
            true => Err(Denied::HasAddressesOfOthers(machine.name.clone())),
            false => Ok(()),
        }
    }

    /// Removes a machine that is nobody's, with its runs; its events stay. Should it start
    /// again, it is discovered anew.
    pub async fn forget(&mut self, now: Timestamp, machine: &Machine) -> Result<(), Denied> {
        self.check_rack(machine).await?;
        machine.lifecycle.on(Event::Forget)?;
        self.check_idle(machine).await?;
        if self.has_addresses(machine.id).await? {
            return Err(Denied::HasAddresses(machine.name.clone()));
        }
        self.delete_machine(machine).await?;
        let happened = Happened::Forgotten { name: machine.name.clone() };
        self.insert_event(now, machine.rack, Some(machine.id), None, &happened).await?;
        Ok(())
    }

    /// Begins a run that installs a system.
    pub async fn start_deploy(
        &mut self,
        now: Timestamp,
        machine: &Machine,
        image: &Image,
        request: DeployRequest,
    ) -> Result<Run, Denied> {
        let lifecycle = machine.lifecycle.on(Event::Deploy)?;
        self.check_idle(machine).await?;
        if let Some(reasons) = self.is_critical(now, machine.id).await? {
            return Err(Denied::Critical(machine.name.clone(), reasons));
        }
        let examined = self.examined(machine).await?;
        if let Some(plan) = examined.plan.filter(|_| examined.strict && !examined.findings.is_empty()) {
            let findings = examined.findings.iter().map(ToString::to_string).collect();
            return Err(Denied::Unexpected { machine: machine.name.clone(), plan, findings });
        }
        let deploy = installation(now, machine, image, request)?;
        let machine = Machine { lifecycle, epoch: machine.epoch.next(), order: None, image: None, ..machine.clone() };
        self.start(now, machine, Parameters::Deploy(deploy)).await
    }

    /// Begins a run that installs a system on a machine whose system runs, which stays whose it is.
    pub async fn start_reinstall(
        &mut self,
        now: Timestamp,
        machine: &Machine,
        image: &Image,
        request: DeployRequest,
    ) -> Result<Run, Denied> {
        let lifecycle = machine.lifecycle.on(Event::Reinstall)?;
        self.check_idle(machine).await?;
        let deploy = installation(now, machine, image, request)?;
        let machine = Machine { held: None, ..out_of_rescue(lifecycle, machine) };
        self.start(now, Machine { epoch: machine.epoch.next(), ..machine }, Parameters::Reinstall(deploy)).await
    }

    /// Begins a run that takes the machine out of its system and lets its owner log in beside it.
    pub async fn start_rescue(
        &mut self,
        now: Timestamp,
        machine: &Machine,
        request: RescueRequest,
    ) -> Result<Run, Denied> {
        let lifecycle = machine.lifecycle.on(Event::Rescue)?;
        self.check_idle(machine).await?;
        let RescueRequest { ssh_keys, until } = request;
        let rescue = Rescue { ssh_keys, mainboard: mainboard(machine), until };
        self.start(now, out_of_rescue(lifecycle, machine), Parameters::Rescue(rescue)).await
    }

    /// Begins a run that has the machine's own system run again.
    pub async fn start_leave_rescue(&mut self, now: Timestamp, machine: &Machine) -> Result<Run, Denied> {
        let lifecycle = machine.lifecycle.on(Event::LeaveRescue)?;
        self.check_idle(machine).await?;
        self.start(now, Machine { lifecycle, ..machine.clone() }, Parameters::LeaveRescue).await
    }

    /// Begins a run that starts the machine into a fresh installer, which tells what is in it.
    pub async fn start_inspect(&mut self, now: Timestamp, machine: &Machine) -> Result<Run, Denied> {
        let lifecycle = machine.lifecycle.on(Event::Inspect)?;
        self.check_idle(machine).await?;
        self.start(now, Machine { lifecycle, ..machine.clone() }, Parameters::Inspect).await
    }

    /// Begins a run that has the machine's installer set user and password of its BMC in-band.
    pub async fn start_regain_bmc(&mut self, now: Timestamp, machine: &Machine) -> Result<Run, Denied> {
        let lifecycle = machine.lifecycle.on(Event::RegainBmc)?;
        self.check_idle(machine).await?;
        self.bmc(machine.id).await?.ok_or(StoreError::NotFound("BMC of this machine"))?;
        self.start(now, Machine { lifecycle, ..machine.clone() }, Parameters::RegainBmc).await
    }

    /// Begins a run that tests the machine, which goes back into service from maintenance once it has passed
    /// if that `resumes` it. No destructive test is run unless that is `accepted`.
    pub async fn start_test(
        &mut self,
        now: Timestamp,
        machine: &Machine,
        scripts: Vec<String>,
        accepted: bool,
        resumes: bool,
    ) -> Result<Run, Denied> {
        let lifecycle = machine.lifecycle.on(Event::Test)?;
        self.check_idle(machine).await?;
        if machine.uninspected.is_some() {
            return Err(Denied::NotInspected(machine.name.clone()));
        }
        let known = scripts.iter().filter_map(|name| commission::script(name));
        let destructive = known.filter(|script| script.destructive).map(|script| script.name.clone());
        let destructive: Vec<_> = destructive.collect();
        let disks = if destructive.is_empty() {
            machine.inventory.disks.iter().filter_map(Disk::identity).collect()
        } else {
            if !accepted {
                return Err(Denied::Destructive(destructive));
            }
            check_parts(machine)?;
            disk_identities(machine)?
        };
        let destructive = !destructive.is_empty();
        let tests = Tests { scripts, destructive, disks, mainboard: mainboard(machine), resumes };
        self.start(now, Machine { lifecycle, order: None, ..machine.clone() }, Parameters::Test(tests)).await
    }

    /// Begins a run that installs this firmware, in the order of its manifests; when none is named, what its
    /// plan has otherwise.
    pub async fn start_firmware(
        &mut self,
        now: Timestamp,
        machine: &Machine,
        names: Option<Vec<String>>,
    ) -> Result<Run, Denied> {
        let lifecycle = machine.lifecycle.on(Event::UpdateFirmware)?;
        self.check_idle(machine).await?;
        let names = match names {
            Some(names) => names,
            None => self.examined_with_drift(machine).await?.1.into_iter().map(|drift| drift.name).collect(),
        };
        if names.is_empty() {
            return Err(Denied::FirmwareAsWanted(machine.name.clone()));
        }
        let hardware = self.hardware(machine.id).await?.map(|known| known.hardware);
        let mut manifests = Vec::new();
        for name in names {
            let firmware = self.firmware(&name).await?;
            if firmware.here.is_none() {
                return Err(Denied::FirmwareNotHere(firmware.manifest.name));
            }
            let unfit = firmware.manifest.unfit(&machine.inventory, hardware.as_ref());
            if let Some(reason) = unfit {
                let (name, machine) = (firmware.manifest.name, machine.name.clone());
                return Err(Denied::FirmwareUnfit { name, machine, reason });
            }
            manifests.push(firmware.manifest);
        }
        firmware::in_order(&mut manifests);
        let updates: Vec<Update> = manifests.iter().filter_map(Manifest::update).collect();
        if updates.iter().any(|update| update.script.is_none()) && self.bmc(machine.id).await?.is_none() {
            return Err(Denied::NoBmc(machine.name.clone()));
        }
        for (at, update) in updates.iter().enumerate() {
            if let Some(before) = updates[..at].iter().find(|before| before.place == update.place) {
                return Err(Denied::FirmwareTwice(before.name.clone(), update.name.clone()));
            }
        }
        let parameters = Parameters::Firmware(FirmwareUpdates { updates, mainboard: mainboard(machine) });
        self.start(now, Machine { lifecycle, order: None, ..machine.clone() }, parameters).await
    }

    /// Takes a machine out of service, or back into it; `held` says why it is out of it.
    pub async fn hold(
        &mut self,
        now: Timestamp,
        machine: &Machine,
        event: Event,
        held: Option<Hold>,
    ) -> Result<Machine, Denied> {
        let lifecycle = machine.lifecycle.on(event)?;
        self.check_idle(machine).await?;
        if event == Event::Retire {
            if machine.project.is_some() {
                return Err(Denied::InUse(machine.name.clone()));
            }
            if self.has_addresses(machine.id).await? {
                return Err(Denied::HasAddresses(machine.name.clone()));
            }
        }
        let happened = match &held {
            Some(Hold { reason, until, .. }) => Happened::Held { lifecycle, reason: reason.clone(), until: *until },
            None => Happened::Resumed { lifecycle },
        };
        let was_overdue = machine.alert.is_some() && machine.alert == machine.overdue();
        let alert = machine.alert.clone().filter(|_| !was_overdue);
        let mut machine = Machine { lifecycle, held, alert, ..machine.clone() };
        self.update_machine(now, &mut machine).await?;
        self.insert_event(now, machine.rack, Some(machine.id), None, &happened).await?;
        Ok(machine)
    }

    /// Begins a run that takes the machine back and erases it.
    pub async fn start_release(&mut self, now: Timestamp, machine: &Machine) -> Result<Run, Denied> {
        let lifecycle = machine.lifecycle.on(Event::Release)?;
        self.check_idle(machine).await?;
        check_parts(machine)?;
        // Of one that nobody has looked into they are learnt from the installer, before it gets its order.
        let disks = if machine.uninspected.is_some() { Vec::new() } else { disk_identities(machine)? };
        let mainboard = mainboard(machine);
        let machine = out_of_rescue(lifecycle, machine);
        let machine = Machine { epoch: machine.epoch.next(), ..machine };
        self.start(now, machine, Parameters::Release(Release { disks, mainboard })).await
    }

    /// Begins a run that switches the machine's power.
    pub async fn start_power(&mut self, now: Timestamp, machine: &Machine, change: PowerChange) -> Result<Run, Denied> {
        let lifecycle = machine.lifecycle.on(Event::Power)?;
        self.check_idle(machine).await?;
        self.start(now, Machine { lifecycle, ..machine.clone() }, Parameters::Power(change)).await
    }

    /// Begins a run with the wishes of one that failed or was cancelled, which was begun for
    /// `project`. What was given out or taken back since is not touched by it: the epoch tells.
    pub async fn retry(
        &mut self,
        now: Timestamp,
        run: &Run,
        project: Option<ProjectId>,
        machine: &Machine,
        user_data: Option<String>,
    ) -> Result<Retried, Denied> {
        match run.status {
            RunStatus::Running => return Err(Denied::Busy(run.id)),
            RunStatus::Done => return Err(Denied::RunDone),
            RunStatus::Failed | RunStatus::Cancelled => {}
        }
        if machine.epoch != run.epoch || machine.project != project {
            return Err(Denied::Outlived(machine.name.clone()));
        }
        let deploy = match &run.parameters {
            Parameters::Deploy(deploy) | Parameters::Reinstall(deploy) => deploy,
            _ if user_data.is_some() => return Err(Denied::NoUserData),
            Parameters::Inspect => {
                return Ok(Retried { run: self.start_inspect(now, machine).await?, deprecated: None });
            }
            Parameters::RegainBmc => {
                return Ok(Retried { run: self.start_regain_bmc(now, machine).await?, deprecated: None });
            }
            // What it may destroy was accepted when it was asked for first.
            Parameters::Test(Tests { scripts, destructive, resumes, .. }) => {
                let run = self.start_test(now, machine, scripts.clone(), *destructive, *resumes).await?;
                return Ok(Retried { run, deprecated: None });
            }
            Parameters::Release(_) => {
                return Ok(Retried { run: self.start_release(now, machine).await?, deprecated: None });
            }
            Parameters::Power(change) => {
                return Ok(Retried { run: self.start_power(now, machine, *change).await?, deprecated: None });
            }
            Parameters::Rescue(rescue) => {
                let request = RescueRequest { ssh_keys: rescue.ssh_keys.clone(), until: rescue.until };
                return Ok(Retried { run: self.start_rescue(now, machine, request).await?, deprecated: None });
            }
            Parameters::Firmware(FirmwareUpdates { updates, .. }) => {
                let names = updates.iter().map(|update| update.name.clone()).collect();
                return Ok(Retried { run: self.start_firmware(now, machine, Some(names)).await?, deprecated: None });
            }
            Parameters::LeaveRescue => {
                return Ok(Retried { run: self.start_leave_rescue(now, machine).await?, deprecated: None });
            }
        };
        match (deploy.user_data_forgotten, &user_data) {
            (true, None) => return Err(Denied::UserDataForgotten),
            (false, Some(_)) => return Err(Denied::NoUserData),
            _ => {}
        }
        let image = match self.image(&deploy.image.to_string()).await {
            Err(StoreError::NotFound(_)) => {
                let (name, version) = (deploy.image_name.clone(), deploy.image_version);
                return Err(Denied::ImageGone(ImageVersion { name, version }));
            }
            image => image?,
        };
        let host = Host { user_data, ..deploy.host.clone() };
        let request = DeployRequest { disk: deploy.disk.clone(), host };
        let run = match &run.parameters {
            Parameters::Reinstall(_) => self.start_reinstall(now, machine, &image, request).await?,
            _ => self.start_deploy(now, machine, &image, request).await?,
        };
        Ok(Retried { run, deprecated: image.deprecated.then(|| image.named()) })
    }

    /// Asks for a run to be stopped and undone.
    pub async fn cancel(&mut self, now: Timestamp, run: RunId) -> Result<Run, Denied> {
        let run = self.run(run).await?;
        if run.status != RunStatus::Running {
            return Err(Denied::RunOver);
        }
        if run.cancel {
            return Ok(run);
        }
        self.want_cancelled(now, run.id).await?;
        self.insert_event(now, run.rack, Some(run.machine), Some(run.id), &Happened::CancelWanted).await?;
        Ok(self.run(run.id).await?)
    }

    async fn check_rack(&mut self, machine: &Machine) -> Result<(), Denied> {
        let rack = self.rack(&machine.rack.to_string()).await?;
        if rack.restored.is_some() { Err(Denied::RackRestored(rack.name)) } else { Ok(()) }
    }

    async fn check_idle(&mut self, machine: &Machine) -> Result<(), Denied> {
        self.check_rack(machine).await?;
        match self.run_in_progress(machine.id).await? {
            Some(run) => Err(Denied::Busy(run)),
            None => Ok(()),
        }
    }

    async fn start(&mut self, now: Timestamp, mut machine: Machine, parameters: Parameters) -> Result<Run, Denied> {
        self.update_machine(now, &mut machine).await?;
        let workflow = parameters.workflow();
        let run = Run {
            id: RunId::fresh(),
            rack: machine.rack,
            machine: machine.id,
            machine_name: machine.name.clone(),
            epoch: machine.epoch,
            parameters,
            engine: workflow::Stored::new(workflow),
            status: RunStatus::Running,
            step: Some(workflow.rules()[0].step),
            attempt: 1,
            undoing: false,
            waiting_for: Some(workflow::WaitFor::Controller),
            waiting_since: Some(now),
            waiting_until: now.checked_add(workflows::TICK).ok(),
            way: None,
            detail: None,
            cause: None,
            cancel: false,
            done: 0,
            total: 0,
            begun: false,
            result: None,
            phoned_home: false,
            created: now,
            updated: now,
            ended: None,
        };
        self.insert_run(&run).await?;
        self.insert_event(now, run.rack, Some(run.machine), Some(run.id), &Happened::RunStarted { workflow }).await?;
        Ok(run)
    }
}

/// The machine as a run finds it that ends whatever its rescue system does.
fn out_of_rescue(lifecycle: Lifecycle, machine: &Machine) -> Machine {
    Machine { lifecycle, order: None, rescue: None, ..machine.clone() }
}

/// What a run installs, where that can be installed on this machine.
fn installation(now: Timestamp, machine: &Machine, image: &Image, request: DeployRequest) -> Result<Deploy, Denied> {
    check_parts(machine)?;
    let stored = image.stored().ok_or_else(|| Denied::ImageNotReady(image.name.clone()))?;
    if let Some(expired) = image.expires.filter(|expires| *expires <= now) {
        return Err(Denied::ImageExpired(image.named(), expired));
    }
    if image.settings == Settings::Ignition && request.host.user_data.as_deref().is_some_and(|own| !is_ignition(own)) {
        return Err(Denied::NotForIgnition(image.named()));
    }
    let deploy = |disks| Deploy {
        image: image.id,
        image_name: image.name.clone(),
        image_version: image.version,
        manifest: stored.manifest,
        disk: request.disk.clone(),
        host: request.host.clone(),
        disks,
        mainboard: mainboard(machine),
        user_data_forgotten: false,
    };
    // What is in it is learnt from the installer, which looks itself whether the image fits.
    if machine.uninspected.is_some() {
        return Ok(deploy(Vec::new()));
    }
    let unsuitable = |reason: String| Denied::ImageUnsuitable { image: image.name.clone(), reason };
    let firmware = machine.inventory.firmware;
    if !stored.firmware.contains(&firmware) {
        return Err(unsuitable(format!("it does not boot by {firmware}")));
    }
    let identities = disk_identities(machine)?;
    let disks = &machine.inventory.disks;
    let candidates: Vec<&Disk> = match &request.disk {
        DiskRule::Smallest => disks.iter().collect(),
        DiskRule::Identity(wanted) if !identities.contains(wanted) => {
            return Err(Denied::NoSuchDisk(wanted.clone()));
        }
        DiskRule::Identity(wanted) => disks.iter().filter(|disk| disk.identity().as_ref() == Some(wanted)).collect(),
    };
    if !candidates.iter().any(|disk| disk.size >= stored.size && disk.sector == stored.sector) {
        return Err(unsuitable(format!(
            "it needs a disk of {} bytes with sectors of {} bytes",
            stored.size, stored.sector
        )));
    }
    Ok(deploy(identities))
}

/// Whether it is a configuration that Ignition merges over ours, of our version or an older one.
fn is_ignition(text: &str) -> bool {
    let parsed: Option<serde_json::Value> = serde_json::from_str(text).ok();
    let version = parsed.as_ref().and_then(|own| own["ignition"]["version"].as_str());
    version.is_some_and(|version| ["3.0.0", "3.1.0", "3.2.0", "3.3.0"].contains(&version))
}

fn check_parts(machine: &Machine) -> Result<(), Denied> {
    let changes = machine.changes();
    if changes.is_empty() { Ok(()) } else { Err(Denied::Changed(changes)) }
}

/// The machine's disks that hold something.
pub fn disks_with_data(machine: &Machine) -> Vec<Disk> {
    machine.inventory.disks.iter().filter(|disk| disk.content != Content::Blank).cloned().collect()
}

/// Those of them that were not accepted yet.
fn new_disks_with_data(machine: &Machine) -> Vec<Disk> {
    let known: Vec<_> = machine.accepted.iter().flat_map(|accepted| &accepted.disks).map(Disk::identity).collect();
    disks_with_data(machine).into_iter().filter(|disk| !known.contains(&disk.identity())).collect()
}

/// Identities of all the machine's disks, for an order that names them all.
pub fn disk_identities(machine: &Machine) -> Result<Vec<String>, Denied> {
    if machine.inventory.disks.is_empty() {
        return Err(Denied::NoDisk);
    }
    machine
        .inventory
        .disks
        .iter()
        .map(|disk| disk.identity().ok_or_else(|| Denied::NamelessDisk(disk.name.clone())))
        .collect()
}

/// The machine's mainboard as an operator accepted it, for an order that is for no other.
pub(crate) fn mainboard(machine: &Machine) -> Option<Mainboard> {
    machine.accepted.as_ref()?.system.mainboard()
}

/// Whether these two machines have different mainboards, as far as they tell.
fn another_mainboard(one: &Machine, other: &Machine) -> bool {
    let (one, other) = (one.inventory.system.mainboard(), other.inventory.system.mainboard());
    one.zip(other).is_some_and(|(one, other)| one.is_other(&other))
}

/// Changes in one line, for people.
pub(crate) fn listed(changes: &[Change]) -> String {
    changes.iter().map(Change::to_string).collect::<Vec<_>>().join("; ")
}

/// Parts and whose they are, in one line, for people.
pub(crate) fn elsewhere(parts: &[(Part, String, String)]) -> String {
    parts.iter().map(|(part, identity, name)| format!("{part} {identity} is {name}'s")).collect::<Vec<_>>().join("; ")
}

fn named(disks: &[Disk]) -> String {
    let named = disks.iter().map(|disk| {
        let content = match &disk.content {
            Content::Blank => "blank",
            Content::Data(words) => words,
        };
        format!("{} ({content})", disk.identity().unwrap_or_else(|| disk.name.clone()))
    });
    named.collect::<Vec<_>>().join(", ")
}
