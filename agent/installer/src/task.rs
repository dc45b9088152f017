//! Carrying out one order: check everything, say so, write, check, say so.
//!
//! Invariants:
//! - Before the first write of every order, one begun again too, the machine is looked at anew:
//!   the warrant's machine and epoch are ours, its mainboard, as far as both are known, is the
//!   one found, and the disks found are exactly the disks it lists.
//! - A disk without an identity is never written.
//! - Whatever goes wrong has a [`Cause`]; nothing here ends the installer.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rackhand_common::{
    bmc::InBandUser,
    channel::{Begun, DeployTask, Drive, EraseTask, Kept, News, RegainBmcTask, RescueTask, Warrant},
    erasure::{Method, Outcome},
    event::{Cause, DiskWork},
    id::{Epoch, MachineId},
    image::Manifest,
    intent::DiskRule,
    machine::{Disk, Inventory, Mainboard},
};
use rackhand_fail_points::fail_point;
use rackhand_ipmi::regain::NotRegained;
use tokio::{
    sync::{mpsc, oneshot},
    task::{JoinSet, spawn_blocking},
};
use tokio_util::sync::CancellationToken;

use crate::{
    bmc::{self, NoAnswer},
    channel::Failure,
    config_drive::{self, Label},
    disk::{self, Buffer},
    erase::{self, Job, Meter, RealPace},
    gpt::{self, BASIC_DATA, Guid, Table},
    image::{self, Head, ImageError, Source},
    machine::{BootOrderError, Machine},
    rescue,
    toolbox::{ToolboxError, Tools},
    tpm::{self, TpmError},
};

/// Why an order was not carried out, for people; [`TaskError::cause`] is for programs.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each says in its text what it is")]
pub enum TaskError {
    #[error("the order is for machine {wanted}, this is {found}")]
    WrongMachine { wanted: MachineId, found: MachineId },
    #[error("the order is of epoch {wanted}, which is over: {found} has been seen")]
    OldEpoch { wanted: Epoch, found: Epoch },
    #[error("the order is for mainboard {wanted}, the machine has {found}")]
    OtherMainboard { wanted: Mainboard, found: Mainboard },
    #[error("the order lists the disks [{wanted}], the machine has [{found}]")]
    DisksDiffer { wanted: String, found: String },
    #[error("no disk with an identity holds the image's {0} bytes and its settings")]
    NoneHolds(u64),
    #[error("no disk is {0}")]
    NoSuchDisk(String),
    #[error("the image is unsuitable: {0}")]
    Unsuitable(String),
    #[error("the image's manifest cannot be had")]
    Manifest(#[source] Failure),
    #[error("the machine's settings cannot be had in the image's format")]
    Drive(#[source] Failure),
    #[error("the image could not be written")]
    Image(#[source] ImageError),
    #[error("disk {disk}: {doing} failed")]
    Disk {
        disk: String,
        doing: &'static str,
        #[source]
        error: io::Error,
    },
    #[error("disk {0}: {1} does not read back as written")]
    Verify(String, &'static str),
    #[error("{}", not_erased(.0))]
    NotErased(Vec<NotErased>),
    #[error("the settings could not be written: {0}")]
    Settings(String),
    #[error("the boot order could not be set")]
    BootOrder(#[source] BootOrderError),
    #[error("the TPM is not known to be cleared")]
    Tpm(#[source] TpmError),
    #[error("the toolbox cannot be had")]
    Toolbox(#[source] ToolboxError),
    #[error("the SSH server could not be started, or not again")]
    Ssh(#[source] io::Error),
    #[error("the user of its BMC cannot be had")]
    BmcUser(#[source] Failure),
    #[error("the machine has no way to its BMC in-band")]
    NoBmc,
    #[error("the way to its BMC cannot be opened")]
    BmcInterface(#[source] io::Error),
    #[error("its BMC is not known to let us in")]
    NotRegained(#[source] NotRegained<NoAnswer>),
    #[error("the order was withdrawn")]
    Withdrawn,
}

impl TaskError {
    /// The cause, for programs.
    pub fn cause(&self) -> Cause {
        match self {
            Self::WrongMachine { .. } | Self::OldEpoch { .. } => Cause::WrongMachine,
            Self::OtherMainboard { .. } => Cause::MainboardDiffers,
            Self::DisksDiffer { .. } => Cause::DisksDiffer,
            Self::NoneHolds(_) | Self::NoSuchDisk(_) => Cause::NoSuitableDisk,
            Self::Unsuitable(_) => Cause::ImageUnsuitable,
            Self::Image(ImageError::Disk { .. }) | Self::Disk { .. } => Cause::DiskError,
            Self::Manifest(_) | Self::Image(_) => Cause::Image,
            Self::Verify(..) => Cause::Verify,
            Self::NotErased(disks) if disks.iter().any(|disk| disk.lied) => Cause::Verify,
            Self::NotErased(_) => Cause::DiskError,
            Self::BootOrder(_) => Cause::BootOrder,
            Self::Tpm(_) => Cause::Tpm,
            Self::BmcUser(_) | Self::NoBmc | Self::BmcInterface(_) | Self::NotRegained(_) => Cause::Bmc,
            Self::Drive(_) | Self::Settings(_) | Self::Toolbox(_) | Self::Ssh(_) | Self::Withdrawn => Cause::Internal,
        }
    }
}

/// Who we are, as far as boot said and earlier orders showed.
#[derive(Clone, Copy, Debug)]
pub struct Admission {
    /// From the ticket.
    pub machine: MachineId,
    /// The highest epoch of any order in this session.
    pub epoch: Epoch,
}

/// Where news of the work goes while it is done.
pub trait Reporter: Send + Sync {
    /// Returns when boot has it on its disk.
    fn tell(&self, news: News) -> impl Future<Output = ()> + Send;
    /// The same, and whether boot has it on its disk.
    fn keep(&self, news: News) -> impl Future<Output = bool> + Send;
}

/// Everything an order needs beside itself.
pub struct Work<'a, R, S> {
    /// The machine.
    pub machine: Arc<dyn Machine>,
    /// Who we are.
    pub admission: Admission,
    /// Where news goes.
    pub reporter: &'a R,
    /// Where chunks come from.
    pub source: &'a S,
    /// Cancelled when the order is withdrawn.
    pub withdrawn: &'a CancellationToken,
}

impl<R: Reporter, S: Source> Work<'_, R, S> {
    /// Writes an image, its settings and the boot order.
    pub async fn deploy(
        &self,
        task: &DeployTask,
        manifest: Manifest,
        drive: Drive,
    ) -> Result<Vec<DiskWork>, TaskError> {
        let inventory = self.inventory().await;
        fail_point!(crash "order.check", check(&task.warrant, self.admission, &inventory))?;
        let label = Label::of(manifest.settings).filter(|_| !drive.is_empty());
        let (chosen, identity) = choose(&task.disk, &manifest, label.is_some(), &inventory)?;
        let disk = self.open(chosen, &identity).await?;
        tracing::info!(image = manifest.name, disk = identity, name = chosen.name, "deploying");
        self.reporter.tell(News::Started).await;

        let done = Arc::new(AtomicU64::new(0));
        let write = image::write(disk.clone(), &manifest, self.source, done.clone(), self.withdrawn);
        let head = self.with_progress(write, done, manifest.size).await.map_err(|error| match error {
            ImageError::Withdrawn => TaskError::Withdrawn,
            error => TaskError::Image(error),
        })?;
        let (size, drive) = (manifest.size, label.map(|label| (label, drive)));
        let on = disk.clone();
        self.blocking(&identity, "flushing the image", move || fail_point!("image.flush", on.flush())).await?;
        self.reporter.tell(News::ImageWritten).await;

        let (on, name) = (disk, identity.clone());
        let table =
            spawn_blocking(move || finish(&*on, &name, size, head, drive)).await.expect("finishing does not panic")?;
        if let Some(table) = table {
            let machine = self.machine.clone();
            let ordered = spawn_blocking(move || fail_point!("boot-order.set", machine.boot_from(&table))).await;
            ordered.expect("setting the boot order does not panic").map_err(TaskError::BootOrder)?;
        }
        tracing::info!(disk = identity, "deployed");
        Ok(vec![DiskWork { disk: identity, method: "image".to_owned(), bytes: size, verified: 0 }])
    }

    /// Erases every disk, all at once but for those that share a controller, and reads back. Those
    /// that an earlier installer of the same order proved clean, and that are still as it left them,
    /// are not erased again.
    pub async fn erase(&self, task: &EraseTask) -> Result<Vec<DiskWork>, TaskError> {
        let inventory = self.inventory().await;
        fail_point!(crash "order.check", check(&task.warrant, self.admission, &inventory))?;
        let mut groups: BTreeMap<String, Vec<Target>> = BTreeMap::new();
        for found in &inventory.disks {
            // Those without an identity are not in the warrant.
            if let Some(identity) = found.identity() {
                let disk = self.open(found, &identity).await?;
                let kept = task.done.iter().find(|kept| kept.disk == identity).cloned();
                let begun = task.begun.iter().rev().find(|begun| begun.disk == identity).map(|begun| begun.method);
                let group = disk.shared().unwrap_or_else(|| identity.clone());
                let target = Target {
                    seed: erase::seed(task.warrant.run, &identity),
                    found: found.clone(),
                    identity,
                    disk,
                    kept,
                    begun,
                };
                groups.entry(group).or_default().push(target);
            }
        }
        tracing::info!(disks = groups.values().map(Vec::len).sum::<usize>(), "erasing");
        self.reporter.tell(News::Started).await;

        let done = Arc::new(AtomicU64::new(0));
        let total = groups.values().flatten().map(|target| target.disk.size()).sum();
        // Whoever tells something waits until it is told: each disk tells one thing at a time.
        let (tell, mut told) = mpsc::channel::<(News, oneshot::Sender<()>)>(1);
        let mut erasing = JoinSet::new();
        for group in groups.into_values() {
            let (done, withdrawn, tell) = (done.clone(), self.withdrawn.clone(), tell.clone());
            erasing.spawn_blocking(move || {
                group.into_iter().map(|target| target.erase(&done, &withdrawn, &tell)).collect::<Vec<_>>()
            });
        }
        drop(tell);
        let telling = async {
            while let Some((news, answer)) = told.recv().await {
                self.reporter.tell(news).await;
                let _ = answer.send(());
            }
        };
        // One that fails does not stop the others: what can be erased is.
        let work = async { tokio::join!(erasing.join_all(), telling).0 };
        let erased = self.with_progress(work, done, total).await;
        let mut works = Vec::new();
        let mut failures = Vec::new();
        for ended in erased.into_iter().flatten() {
            match ended.map_err(|erase::Withdrawn| TaskError::Withdrawn)? {
                Ok(work) => works.push(work),
                Err(failure) => failures.push(failure),
            }
        }
        works.sort_by(|a, b| a.disk.cmp(&b.disk));
        failures.sort();
        if !failures.is_empty() {
            return Err(TaskError::NotErased(failures));
        }
        let machine = self.machine.clone();
        let forgotten = spawn_blocking(move || fail_point!("boot-entries.forget", machine.forget_systems())).await;
        forgotten.expect("forgetting boot entries does not panic").map_err(TaskError::BootOrder)?;
        let machine = self.machine.clone();
        let cleared = spawn_blocking(move || match machine.tpm()? {
            Some(mut tpm) => tpm::clear(&mut *tpm),
            None => Ok(()),
        });
        cleared.await.expect("clearing a TPM does not panic").map_err(TaskError::Tpm)?;
        Ok(works)
    }

    /// Lets people log in until the order is withdrawn, with the programs of the toolbox that `tools` brings.
    pub async fn rescue(
        &self,
        task: &RescueTask,
        tools: impl Future<Output = Result<Arc<dyn Tools>, ToolboxError>>,
    ) -> TaskError {
        let inventory = self.inventory().await;
        if let Err(error) = check_machine(&task.warrant, self.admission, &inventory) {
            return error;
        }
        match self.withdrawn.run_until_cancelled(tools).await {
            None => TaskError::Withdrawn,
            Some(Err(error)) => TaskError::Toolbox(error),
            Some(Ok(tools)) => rescue::let_in(tools, task.ssh_keys.clone(), self.reporter, self.withdrawn).await,
        }
    }

    /// Gives the machine's own BMC the user and password that `asked` brings, which nothing has before the
    /// machine is known to be the one that is meant.
    pub async fn regain_bmc(
        &self,
        task: &RegainBmcTask,
        asked: impl Future<Output = Result<InBandUser, Failure>>,
    ) -> Result<(), TaskError> {
        let inventory = self.inventory().await;
        check_machine(&task.warrant, self.admission, &inventory)?;
        self.reporter.tell(News::Started).await;
        let user = self.withdrawn.run_until_cancelled(asked).await.ok_or(TaskError::Withdrawn)?;
        let user = user.map_err(TaskError::BmcUser)?;
        let machine = self.machine.clone();
        let regained = spawn_blocking(move || {
            let interface = machine.bmc_interface().map_err(TaskError::BmcInterface)?;
            let mut interface = interface.ok_or(TaskError::NoBmc)?;
            let began = Instant::now();
            let left = || bmc::REGAIN.saturating_sub(began.elapsed());
            bmc::regain(&mut *interface, &left, &user).map_err(TaskError::NotRegained)
        });
        let regained = regained.await.expect("asking a BMC does not panic")?;
        tracing::info!(
            place = regained.place,
            is_new = regained.is_new,
            is_tested = regained.is_tested,
            channels = ?regained.channels,
            "the BMC has its user"
        );
        Ok(())
    }

    pub(crate) async fn inventory(&self) -> Inventory {
        let machine = self.machine.clone();
        spawn_blocking(move || machine.inventory()).await.expect("taking the inventory does not panic")
    }

    async fn open(&self, found: &Disk, identity: &str) -> Result<Arc<dyn disk::Disk>, TaskError> {
        let (machine, found) = (self.machine.clone(), found.clone());
        self.blocking(identity, "opening", move || machine.open(&found)).await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        disk: &str,
        doing: &'static str,
        act: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, TaskError> {
        let outcome = spawn_blocking(act).await.expect("disk access does not panic");
        outcome.map_err(|error| TaskError::Disk { disk: disk.to_owned(), doing, error })
    }

    /// The work's outcome; meanwhile tells every second how far it is.
    async fn with_progress<T>(&self, work: impl Future<Output = T>, done: Arc<AtomicU64>, total: u64) -> T {
        let over = CancellationToken::new();
        let work = async {
            let _over = over.clone().drop_guard();
            work.await
        };
        let telling = async {
            let mut last = 0;
            while over.run_until_cancelled(tokio::time::sleep(Duration::from_secs(1))).await.is_some() {
                let done = done.load(Ordering::Relaxed);
                if done != last {
                    last = done;
                    // A report on its way is cut off when the work is over.
                    over.run_until_cancelled(self.reporter.tell(News::Progress { done, total })).await;
                }
            }
        };
        tokio::join!(work, telling).0
    }
}

/// A disk to erase.
struct Target {
    identity: String,
    found: Disk,
    disk: Arc<dyn disk::Disk>,
    seed: u64,
    kept: Option<Kept>,
    begun: Option<Method>,
}

type Telling = mpsc::Sender<(News, oneshot::Sender<()>)>;

impl Target {
    fn erase(
        self,
        done: &Arc<AtomicU64>,
        withdrawn: &CancellationToken,
        telling: &Telling,
    ) -> Result<Result<DiskWork, NotErased>, erase::Withdrawn> {
        let Self { identity, found, disk, seed, kept, begun } = self;
        let meter = Meter::new(done.clone(), disk.size());
        if let Some(kept) = kept {
            if erase::is_as_left(&*disk, seed, &kept) {
                tracing::info!(disk = identity, "erased before this machine was restarted, and as it was left");
                meter.full();
                let method = kept.method.word().to_owned();
                return Ok(Ok(DiskWork { disk: identity, method, bytes: disk.size(), verified: 0 }));
            }
            tracing::warn!(disk = identity, "was erased before this machine was restarted, and has changed since");
        }
        let tell = |news| {
            let (answer, answered) = oneshot::channel();
            // Nobody listens when the order is withdrawn.
            if telling.blocking_send((news, answer)).is_ok() {
                let _ = answered.blocking_recv();
            }
        };
        let note = |method| tell(News::Begun(Begun { disk: identity.clone(), method }));
        let pace = RealPace(Instant::now());
        let job = Job { disk: &*disk, found: &found, seed, begun, pace: &pace, meter: &meter, withdrawn, note: &note };
        let record = erase::erase(&job)?;
        tell(News::Erased(Box::new(record.clone())));
        Ok(match (record.method, record.reason) {
            (Some(method), None) => Ok(DiskWork {
                disk: identity,
                method: method.word().to_owned(),
                bytes: record.size,
                verified: record.samples.bytes,
            }),
            (_, reason) => {
                let lied = record.tried.last().is_some_and(|tried| tried.outcome == Outcome::Lied);
                Err(NotErased { disk: identity, reason: reason.unwrap_or_default(), lied })
            }
        })
    }
}

/// A disk that is not known to be clean.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NotErased {
    /// Its identity.
    pub disk: String,
    /// Why not, for people.
    pub reason: String,
    /// Whether the last method said it was done and was not.
    pub lied: bool,
}

fn not_erased(disks: &[NotErased]) -> String {
    let told: Vec<_> = disks.iter().map(|NotErased { disk, reason, .. }| format!("disk {disk}: {reason}")).collect();
    format!("not every disk is known to be erased: {}", told.join("; "))
}

/// Whether the machine is the one that is meant, in the latest epoch it has heard of, on the mainboard
/// that is meant.
pub fn check_machine(warrant: &Warrant, admission: Admission, inventory: &Inventory) -> Result<(), TaskError> {
    if warrant.machine != admission.machine {
        return Err(TaskError::WrongMachine { wanted: warrant.machine, found: admission.machine });
    }
    if warrant.epoch < admission.epoch {
        return Err(TaskError::OldEpoch { wanted: warrant.epoch, found: admission.epoch });
    }
    if let (Some(wanted), Some(found)) = (warrant.mainboard.clone(), inventory.system.mainboard())
        && wanted.is_other(&found)
    {
        return Err(TaskError::OtherMainboard { wanted, found });
    }
    Ok(())
}

/// Whether the machine may be written at all: [it](check_machine) is the one that is meant, with exactly
/// the disks that are listed.
pub fn check(warrant: &Warrant, admission: Admission, inventory: &Inventory) -> Result<(), TaskError> {
    check_machine(warrant, admission, inventory)?;
    let mut wanted = warrant.disks.clone();
    let mut found: Vec<_> = inventory.disks.iter().filter_map(Disk::identity).collect();
    wanted.sort();
    found.sort();
    let ambiguous = found.windows(2).any(|pair| pair[0] == pair[1]);
    if wanted != found || ambiguous {
        return Err(TaskError::DisksDiffer { wanted: wanted.join(", "), found: found.join(", ") });
    }
    Ok(())
}

/// Room behind the image for the config drive on its boundary and the backup table.
const ROOM_FOR_SETTINGS: u64 = config_drive::LEN + (2 << 20);

/// The disk for the image, and its identity.
fn choose<'a>(
    rule: &DiskRule,
    manifest: &Manifest,
    drive: bool,
    inventory: &'a Inventory,
) -> Result<(&'a Disk, String), TaskError> {
    if !manifest.firmware.contains(&inventory.firmware) {
        return Err(TaskError::Unsuitable(format!("it does not boot by {}", inventory.firmware)));
    }
    let needed = manifest.size + if drive { ROOM_FOR_SETTINGS } else { 0 };
    let named = || inventory.disks.iter().filter_map(|disk| Some((disk, disk.identity()?)));
    let chosen = match rule {
        DiskRule::Smallest => named()
            .filter(|(disk, _)| disk.size >= needed)
            .min_by(|(a, a_name), (b, b_name)| (a.size, a_name).cmp(&(b.size, b_name)))
            .ok_or(TaskError::NoneHolds(needed))?,
        DiskRule::Identity(wanted) => {
            let (disk, name) =
                named().find(|(_, name)| name == wanted).ok_or_else(|| TaskError::NoSuchDisk(wanted.clone()))?;
            if disk.size < needed {
                return Err(TaskError::NoneHolds(needed));
            }
            (disk, name)
        }
    };
    if chosen.0.sector != manifest.sector {
        return Err(TaskError::Unsuitable(format!(
            "it was made for sectors of {} bytes, {} has {}",
            manifest.sector, chosen.1, chosen.0.sector
        )));
    }
    Ok(chosen)
}

/// What makes an image on a disk a system of this machine: the disk's end is cleared of what
/// was there, the partition table grows to the disk, the config drive is added, and last comes
/// the image's head, which makes the disk one that firmware boots. The table, when the image
/// has one.
fn finish(
    disk: &dyn disk::Disk,
    name: &str,
    image: u64,
    Head(mut head): Head,
    drive: Option<(Label, Drive)>,
) -> Result<Option<Table>, TaskError> {
    let failed = |doing| move |error| TaskError::Disk { disk: name.to_owned(), doing, error };
    // Old RAID, LVM and partition metadata stands at disks' ends.
    let end = (disk.size() / (1 << 20) * (1 << 20)).saturating_sub(8 << 20).max(image);
    disk.zero(end, disk.size() - end).map_err(failed("clearing the end"))?;

    let mut parts = Vec::new();
    let table = match Table::read(&head[..gpt::HEAD.min(head.len())], disk.sector()) {
        Ok(mut table) => {
            let no_room = |error: gpt::NoRoom| TaskError::Settings(error.to_string());
            table.spread(disk.size()).map_err(no_room)?;
            if let Some((label, files)) = &drive {
                let id = Guid(uuid::Uuid::new_v4().to_bytes_le());
                let partition = table.append(config_drive::LEN, BASIC_DATA, id, label.partition).map_err(no_room)?;
                let serial = u32::from_le_bytes([id.0[0], id.0[1], id.0[2], id.0[3]]);
                let volume = config_drive::render(*label, files, disk.sector(), serial)
                    .map_err(|error| TaskError::Settings(error.to_string()))?;
                parts.push(("the config drive", partition.first * u64::from(disk.sector()), volume));
            }
            let (at, backup) = table.backup();
            parts.push(("the backup partition table", at, backup));
            let mbr = head[..440].try_into().expect("440 bytes were taken");
            let primary = table.primary(mbr);
            head[..primary.len()].copy_from_slice(&primary);
            Some(table)
        }
        Err(gpt::NotATable::Absent) if drive.is_none() => None,
        Err(error) => return Err(TaskError::Unsuitable(error.to_string())),
    };
    // The very first sector goes alone and last: without it no firmware takes the disk for
    // bootable, and one sector is written or is not.
    let sector = disk.sector() as usize;
    parts.push(("the image's head", sector as u64, head[sector..].to_vec()));
    parts.push(("the first sector", 0, head[..sector].to_vec()));
    for (what, at, bytes) in parts {
        let written = Buffer::copy_of(&bytes);
        let write = || fail_point!("image.finish", disk.write_at(at, &written));
        write().map_err(failed("writing settings and partition table"))?;
        disk.flush().map_err(failed("flushing"))?;
        let mut found = Buffer::zeroed(bytes.len());
        disk.read_at(at, &mut found).map_err(failed("reading back"))?;
        if found[..] != bytes[..] {
            return Err(TaskError::Verify(name.to_owned(), what));
        }
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::disk::FileDisk;

    /// A disk whose first sector cannot be written by itself.
    struct Stubborn(FileDisk);

    impl disk::Disk for Stubborn {
        fn size(&self) -> u64 {
            self.0.size()
        }
        fn sector(&self) -> u32 {
            self.0.sector()
        }
        fn read_at(&self, at: u64, bytes: &mut Buffer) -> io::Result<()> {
            self.0.read_at(at, bytes)
        }
        fn write_at(&self, at: u64, bytes: &Buffer) -> io::Result<()> {
            if at == 0 { Err(io::Error::other("power failed")) } else { self.0.write_at(at, bytes) }
        }
        fn zero(&self, at: u64, len: u64) -> io::Result<()> {
            self.0.zero(at, len)
        }
        fn discard(&self, _: u64, _: u64) {}
        fn flush(&self) -> io::Result<()> {
            self.0.flush()
        }
    }

    /// An image of 4 MiB with boot code and one partition, as the head of itself.
    fn head() -> Head {
        let image = tempfile::NamedTempFile::new().unwrap();
        let mut raw = vec![0; 4 << 20];
        raw[..440].fill(0xeb);
        fs::write(image.path(), raw).unwrap();
        let made = std::process::Command::new("sgdisk").args(["-n", "1:2048:+1M"]).arg(image.path()).output().unwrap();
        assert!(made.status.success());
        Head(Buffer::copy_of(&fs::read(image.path()).unwrap()))
    }

    fn drive() -> (Label, Drive) {
        let label = Label::of(rackhand_common::image::Settings::Cidata).unwrap();
        (label, [("user-data".to_owned(), "#cloud-config\n".to_owned())].into())
    }

    fn blank_disk() -> (tempfile::NamedTempFile, FileDisk) {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(32 << 20).unwrap();
        let disk = FileDisk::open(file.path()).unwrap();
        (file, disk)
    }

    #[test]
    fn an_order_for_another_mainboard_is_refused_with_both_named() {
        let (known, other) = (uuid::Uuid::from_u128(1), uuid::Uuid::from_u128(2));
        let board = |serial: &str, uuid| Mainboard { serial: serial.into(), uuid };
        let machine = MachineId::fresh();
        let judge = |wanted: Option<Mainboard>, serial: &str, uuid| {
            let run = rackhand_common::id::RunId::fresh();
            let warrant =
                Warrant { run, attempt: 2, machine, epoch: Epoch(3), disks: vec!["m/d1".into()], mainboard: wanted };
            let disk = Disk {
                name: "vda".into(),
                model: "m".into(),
                serial: "d1".into(),
                wwn: None,
                size: 1 << 30,
                sector: 512,
                rotational: false,
                content: rackhand_common::machine::Content::Blank,
            };
            let system = rackhand_common::machine::System { serial: serial.into(), uuid, ..Default::default() };
            let inventory = Inventory {
                firmware: rackhand_common::machine::Firmware::Bios,
                system,
                cpu: Default::default(),
                memory: 0,
                nics: Vec::new(),
                disks: vec![disk],
            };
            check(&warrant, Admission { machine, epoch: Epoch(3) }, &inventory)
        };
        let wanted = Some(board("S1", Some(known)));
        judge(wanted.clone(), "S1", Some(known)).unwrap();
        // What one side does not tell says nothing; an order of an older node has no mainboard.
        judge(wanted.clone(), "", Some(known)).unwrap();
        judge(wanted.clone(), "", None).unwrap();
        judge(None, "S2", Some(other)).unwrap();
        for (serial, uuid) in [("S2", Some(known)), ("S1", Some(other)), ("S2", None), ("", Some(other))] {
            let refused = judge(wanted.clone(), serial, uuid).unwrap_err();
            assert_eq!(refused.cause(), Cause::MainboardDiffers, "{serial} {uuid:?}");
            let words = format!("the order is for mainboard S1 ({known}), the machine has {}", board(serial, uuid));
            assert_eq!(refused.to_string(), words);
        }
    }

    #[test]
    fn a_finished_disk_has_boot_code_a_grown_table_and_its_settings() {
        let (file, disk) = blank_disk();
        finish(&disk, "disk", 4 << 20, head(), Some(drive())).unwrap();
        let found = fs::read(file.path()).unwrap();
        assert!(found[..440].iter().all(|byte| *byte == 0xeb));
        let table = Table::read(&found, 512).unwrap();
        let drive = table.partitions().find(|partition| partition.number == 2).unwrap();
        assert_eq!(found[drive.first as usize * 512 + 510..][..2], [0x55, 0xaa]);
        assert_eq!(&found[found.len() - 512..][..8], b"EFI PART");
    }

    #[test]
    fn the_sector_that_makes_a_disk_bootable_is_written_last() {
        let (file, disk) = blank_disk();
        finish(&Stubborn(disk), "disk", 4 << 20, head(), Some(drive())).unwrap_err();
        let found = fs::read(file.path()).unwrap();
        assert!(found[..512].iter().all(|byte| *byte == 0));
        assert!(found[512..].starts_with(b"EFI PART") && &found[found.len() - 512..][..8] == b"EFI PART");
    }
}
