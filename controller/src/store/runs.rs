//! Runs: one row per performance of a workflow on a machine.
//!
//! Invariants:
//! - A machine has at most one run in progress.
//! - The engine's columns are written by the runner alone ([`Tx::save_run`]); what an
//!   operator wants of a run and what the rack tells of it have columns of their own.

use std::collections::HashMap;

use jiff::Timestamp;
use rackhand_common::{
    event::{Cause, DiskWork},
    firmware::Update,
    id::{Epoch, ImageId, MachineId, RackId, RunId},
    image::Digest,
    intent::{DiskRule, Host},
    machine::Mainboard,
    seal::{NotOpened, Seal, Sealed},
    wire::Action,
};
use rackhand_controller_core::{
    access::Sight,
    boot_ladder::Rung,
    workflow::{self, Step, WaitFor, Workflow},
};
use serde::{Deserialize, Serialize};

use sqlx::AssertSqlSafe;

use super::{
    Store, StoreError, Tx,
    database::{Builder, Executor, Row, query},
    from_json, id, json, micros,
    places::OF_RACKS,
    taken, timestamp,
};

/// A run as it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Which.
    pub id: RunId,
    /// The machine's rack.
    pub rack: RackId,
    /// The machine it is performed on.
    pub machine: MachineId,
    /// The machine's present name, read with the run and never written with it.
    pub machine_name: String,
    /// The allocation epoch of everything it orders and commands.
    pub epoch: Epoch,
    /// What is done, with what.
    pub parameters: Parameters,
    /// How far the engine is.
    pub engine: workflow::Stored,
    /// Whether it is over, and how.
    pub status: RunStatus,
    /// The step it is at.
    pub step: Option<Step>,
    /// Which try of it.
    pub attempt: u32,
    /// Whether that step is being undone.
    pub undoing: bool,
    /// What it waits for.
    pub waiting_for: Option<WaitFor>,
    /// Since when it waits for that.
    pub waiting_since: Option<Timestamp>,
    /// By when it should have moved on.
    pub waiting_until: Option<Timestamp>,
    /// By which way the machine was last started into the installer.
    pub way: Option<String>,
    /// Where it is, or why it failed, for people.
    pub detail: Option<String>,
    /// Why it failed or is being undone, for programs.
    pub cause: Option<String>,
    /// Whether an operator wants it cancelled.
    pub cancel: bool,
    /// Bytes of its order done.
    pub done: u64,
    /// Bytes of its order to do; zero before the installer has told.
    pub total: u64,
    /// Whether an installer began an order of it: from then on disks may be changed.
    pub begun: bool,
    /// What became of its latest order.
    pub result: Option<OrderResult>,
    /// Whether the system it installed called home.
    pub phoned_home: bool,
    /// When it was asked for.
    pub created: Timestamp,
    /// When it last changed.
    pub updated: Timestamp,
    /// When it was over.
    pub ended: Option<Timestamp>,
}

/// What a run does, with what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Parameters {
    /// Install a system.
    Deploy(Deploy),
    /// Take the machine back and erase it.
    Release(Release),
    /// Switch its power.
    Power(PowerChange),
    /// Install a system where another one is.
    Reinstall(Deploy),
    /// See what is in it.
    Inspect,
    /// Test it.
    Test(Tests),
    /// Let its owner log in to it beside its own system.
    Rescue(Rescue),
    /// Have its own system run again.
    LeaveRescue,
    /// Update its firmware.
    Firmware(FirmwareUpdates),
    /// Have its BMC let us in again.
    RegainBmc,
}

/// What is updated, in this order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirmwareUpdates {
    /// As their manifests had it when the run was asked for.
    pub updates: Vec<Update>,
    /// The machine's mainboard, as it was accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mainboard: Option<Mainboard>,
}

/// What is tested.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tests {
    /// Names of the tests.
    pub scripts: Vec<String>,
    /// Whether one of them may destroy what is on disks.
    pub destructive: bool,
    /// Identities of all disks the machine had when the run was asked for.
    pub disks: Vec<String>,
    /// Its mainboard, as it was accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mainboard: Option<Mainboard>,
    /// Whether the machine goes back into service when it has passed them all.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub resumes: bool,
}

/// What is installed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deploy {
    /// The image.
    pub image: ImageId,
    /// Its name when the run was asked for.
    pub image_name: String,
    /// Its version.
    #[serde(default = "first")]
    pub image_version: u32,
    /// Its manifest.
    pub manifest: Digest,
    /// How the disk is chosen.
    pub disk: DiskRule,
    /// What the system is told.
    pub host: Host,
    /// Identities of all disks the machine had when the run was asked for.
    pub disks: Vec<String>,
    /// Its mainboard, as it was accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mainboard: Option<Mainboard>,
    /// Whether it had user data, which was forgotten when the run was over.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub user_data_forgotten: bool,
}

/// The version of images that were deployed before they had versions.
fn first() -> u32 {
    1
}

/// What is erased.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// Identities of all disks the machine had when the run was asked for: one that vanished
    /// since is not erased, and must not be forgotten.
    pub disks: Vec<String>,
    /// Its mainboard, as it was accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mainboard: Option<Mainboard>,
}

/// Who is let in, and for how long.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rescue {
    /// Public keys, in `authorized_keys` form, of root.
    pub ssh_keys: Vec<String>,
    /// Its mainboard, as it was accepted.
    pub mainboard: Option<Mainboard>,
    /// When somebody means to be done. It does not end by itself.
    pub until: Timestamp,
}

/// A change of chassis power.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PowerChange {
    /// Have it on.
    On,
    /// Have it off, at once.
    Off,
    /// Off, then on.
    Cycle,
}

impl PowerChange {
    /// The command that does it.
    pub fn action(self) -> Action {
        match self {
            Self::On => Action::PowerOn,
            Self::Off => Action::PowerOff,
            Self::Cycle => Action::PowerCycle,
        }
    }
}

impl Parameters {
    /// The workflow they are for.
    pub fn workflow(&self) -> Workflow {
        match self {
            Self::Deploy(_) => Workflow::Deploy,
            Self::Release(_) => Workflow::Release,
            Self::Power(_) => Workflow::Power,
            Self::Reinstall(_) => Workflow::Reinstall,
            Self::Inspect => Workflow::Inspect,
            Self::Test(_) => Workflow::Test,
            Self::Rescue(_) => Workflow::Rescue,
            Self::LeaveRescue => Workflow::LeaveRescue,
            Self::Firmware(_) => Workflow::UpdateFirmware,
            Self::RegainBmc => Workflow::RegainBmc,
        }
    }

    /// What is installed, where something is.
    pub fn install(&self) -> Option<&Deploy> {
        match self {
            Self::Deploy(deploy) | Self::Reinstall(deploy) => Some(deploy),
            Self::Release(_)
            | Self::Power(_)
            | Self::Inspect
            | Self::Test(_)
            | Self::Rescue(_)
            | Self::LeaveRescue
            | Self::Firmware(_)
            | Self::RegainBmc => None,
        }
    }

    /// The same, to be changed.
    pub fn install_mut(&mut self) -> Option<&mut Deploy> {
        match self {
            Self::Deploy(deploy) | Self::Reinstall(deploy) => Some(deploy),
            Self::Release(_)
            | Self::Power(_)
            | Self::Inspect
            | Self::Test(_)
            | Self::Rescue(_)
            | Self::LeaveRescue
            | Self::Firmware(_)
            | Self::RegainBmc => None,
        }
    }
}

/// Whether a run is over, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunStatus {
    /// In progress, or being undone.
    Running,
    /// Every step is done.
    Done,
    /// Failed; `cause` says why.
    Failed,
    /// Cancelled by an operator.
    Cancelled,
}

/// What became of an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderResult {
    /// The try it belongs to.
    pub attempt: u32,
    /// How it ended.
    pub end: OrderEnd,
}

/// How an order ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OrderEnd {
    /// Done, with what was done to each disk.
    Done(Vec<DiskWork>),
    /// Refused or failed.
    Failed {
        /// Why, for programs.
        cause: Cause,
        /// Why, for people.
        detail: String,
    },
}

/// A run with its machine's present name.
const SELECT: &str =
    "SELECT runs.*, machines.name AS machine_name FROM runs JOIN machines ON machines.id = runs.machine";

impl Sealed for Parameters {
    fn sealed(&self, seal: &Seal, run: RunId) -> Self {
        let mut sealed = self.clone();
        if let Some(install) = sealed.install_mut() {
            install.host = install.host.sealed(seal, run);
        }
        sealed
    }

    fn opened(mut self, seal: &Seal, run: RunId) -> Result<Self, NotOpened> {
        if let Some(install) = self.install_mut() {
            install.host = install.host.clone().opened(seal, run)?;
        }
        Ok(self)
    }
}

impl Store {
    /// The run with this id.
    pub async fn run(&self, id: RunId) -> Result<Run, StoreError> {
        run(&self.seal, &self.pool, id).await
    }

    /// Runs that can be seen, the newest first, those before `before`, at most `limit`; of one machine or all.
    pub async fn runs(
        &self,
        sight: &Sight,
        machine: Option<MachineId>,
        before: Option<RunId>,
        limit: u32,
    ) -> Result<Vec<Run>, StoreError> {
        let mut query = Builder::new(SELECT);
        self.reach(sight).await?.push(&mut query, "runs", OF_RACKS, "runs.id DESC", limit, |query| {
            if let Some(machine) = machine {
                query.push(" AND runs.machine = ").push_bind(machine.to_string());
            }
            if let Some(before) = before {
                query.push(" AND runs.id < ").push_bind(before.to_string());
            }
        });
        query.build().fetch_all(&self.pool).await?.iter().map(|row| read(&self.seal, row)).collect()
    }

    /// The runs in progress on these machines: a machine has one at most.
    pub async fn running_on(
        &self,
        machines: impl IntoIterator<Item = MachineId>,
    ) -> Result<HashMap<MachineId, RunId>, StoreError> {
        let machines: Vec<_> = machines.into_iter().map(|machine| machine.to_string()).collect();
        if machines.is_empty() {
            return Ok(HashMap::new());
        }
        // As the index of runs in progress has it.
        let mut query = Builder::new("SELECT machine, id FROM runs WHERE status = 'running' AND machine IN ");
        query.push_list(machines);
        let rows = query.build().fetch_all(&self.pool).await?;
        rows.iter().map(|row| Ok((id(row.try_get("machine")?)?, id(row.try_get("id")?)?))).collect()
    }

    /// All runs in progress, the oldest first.
    pub async fn runs_in_progress(&self) -> Result<Vec<Run>, StoreError> {
        query(AssertSqlSafe(format!("{SELECT} WHERE runs.status = $1 ORDER BY runs.id")))
            .bind(RunStatus::Running.word())
            .fetch_all(&self.pool)
            .await?
            .iter()
            .map(|row| read(&self.seal, row))
            .collect()
    }
}

impl Tx {
    /// The run with this id.
    pub async fn run(&mut self, id: RunId) -> Result<Run, StoreError> {
        run(&self.seal, &mut self.inner, id).await
    }

    /// The machine's run in progress.
    pub async fn run_in_progress(&mut self, machine: MachineId) -> Result<Option<RunId>, StoreError> {
        let row = query("SELECT id FROM runs WHERE machine = $1 AND status = $2")
            .bind(machine.to_string())
            .bind(RunStatus::Running.word())
            .fetch_optional(&mut self.inner)
            .await?;
        row.map(|row| id(row.try_get("id")?)).transpose()
    }

    /// The latest run that put a system on the machine.
    pub async fn last_install(&mut self, machine: MachineId) -> Result<Option<Run>, StoreError> {
        // As the words of `Parameters` are stored.
        query(AssertSqlSafe(format!(
            "{SELECT} WHERE runs.machine = $1 AND runs.status = $2 AND
                (runs.parameters LIKE '{{\"deploy\":%' OR runs.parameters LIKE '{{\"reinstall\":%')
             ORDER BY runs.id DESC LIMIT 1"
        )))
        .bind(machine.to_string())
        .bind(RunStatus::Done.word())
        .fetch_optional(&mut self.inner)
        .await?
        .as_ref()
        .map(|row| read(&self.seal, row))
        .transpose()
    }

    /// A row for a run that begins.
    pub async fn insert_run(&mut self, run: &Run) -> Result<(), StoreError> {
        self.watch("runs", run.id).await?;
        query(
            "INSERT INTO runs (id, rack, machine, epoch, parameters, engine, status, step, attempt, undoing,
                cancel, done, total, phoned_home, created, updated, waiting_for, waiting_until, waiting_since, project)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19,
                (SELECT project FROM machines WHERE machines.id = $3))",
        )
        .bind(run.id.to_string())
        .bind(run.rack.to_string())
        .bind(run.machine.to_string())
        .bind(run.epoch.0 as i64)
        .bind(json(&run.parameters.sealed(&self.seal, run.id)))
        .bind(json(&run.engine))
        .bind(run.status.word())
        .bind(run.step.as_ref().map(json))
        .bind(run.attempt)
        .bind(run.undoing)
        .bind(run.cancel)
        .bind(run.done as i64)
        .bind(run.total as i64)
        .bind(run.phoned_home)
        .bind(micros(run.created))
        .bind(micros(run.updated))
        .bind(run.waiting_for.map(|waiting| waiting.to_string()))
        .bind(run.waiting_until.map(micros))
        .bind(run.waiting_since.map(micros))
        .execute(&mut self.inner)
        .await
        .map_err(taken("machine"))?;
        Ok(())
    }

    /// Writes the engine's columns, and nothing of what others write.
    pub async fn save_run(&mut self, now: Timestamp, run: &Run) -> Result<(), StoreError> {
        query(
            "UPDATE runs SET engine = $2, status = $3, step = $4, attempt = $5, undoing = $6, waiting_for = $7,
                waiting_until = $8, detail = $9, cause = $10, updated = $11, ended = $12,
                waiting_since = $13
             WHERE id = $1",
        )
        .bind(run.id.to_string())
        .bind(json(&run.engine))
        .bind(run.status.word())
        .bind(run.step.as_ref().map(json))
        .bind(run.attempt)
        .bind(run.undoing)
        .bind(run.waiting_for.map(|waiting| waiting.to_string()))
        .bind(run.waiting_until.map(micros))
        .bind(&run.detail)
        .bind(&run.cause)
        .bind(micros(now))
        .bind(run.ended.map(micros))
        .bind(run.waiting_since.map(micros))
        .execute(&mut self.inner)
        .await?;
        Ok(())
    }

    /// Notes what a run is to act upon that its installer found: nobody had looked into its machine when the run
    /// was asked for. What is known already stays.
    pub async fn run_learns(
        &mut self,
        run: RunId,
        disks: &[String],
        mainboard: Option<&Mainboard>,
    ) -> Result<(), StoreError> {
        let mut run = self.run(run).await?;
        let (known, board) = match &mut run.parameters {
            Parameters::Release(release) => (&mut release.disks, &mut release.mainboard),
            Parameters::Reinstall(deploy) => (&mut deploy.disks, &mut deploy.mainboard),
            _ => return Ok(()),
        };
        if !known.is_empty() {
            return Ok(());
        }
        (*known, *board) = (disks.to_vec(), mainboard.cloned());
        query("UPDATE runs SET parameters = $2 WHERE id = $1")
            .bind(run.id.to_string())
            .bind(json(&run.parameters.sealed(&self.seal, run.id)))
            .execute(&mut self.inner)
            .await?;
        Ok(())
    }

    /// Notes by which way its machine is started into the installer.
    pub async fn run_goes(&mut self, run: RunId, way: Rung) -> Result<(), StoreError> {
        query("UPDATE runs SET way = $2 WHERE id = $1")
            .bind(run.to_string())
            .bind(way.to_string())
            .execute(&mut self.inner)
            .await?;
        Ok(())
    }

    /// Forgets what a run that is over was to tell its system in confidence: user data holds
    /// passwords and keys.
    pub async fn forget_user_data(&mut self, run: &mut Run) -> Result<(), StoreError> {
        let Some(deploy) = run.parameters.install_mut() else { return Ok(()) };
        if deploy.host.user_data.take().is_none() {
            return Ok(());
        }
        deploy.user_data_forgotten = true;
        query("UPDATE runs SET parameters = $2 WHERE id = $1")
            .bind(run.id.to_string())
            .bind(json(&run.parameters.sealed(&self.seal, run.id)))
            .execute(&mut self.inner)
            .await?;
        Ok(())
    }

    /// Notes that an operator wants it cancelled.
    pub async fn want_cancelled(&mut self, now: Timestamp, run: RunId) -> Result<(), StoreError> {
        self.watch("runs", run).await?;
        query("UPDATE runs SET cancel = 1, updated = $2 WHERE id = $1")
            .bind(run.to_string())
            .bind(micros(now))
            .execute(&mut self.inner)
            .await?;
        Ok(())
    }

    /// Notes how much of the order is done; only of a run in progress on this machine.
    pub async fn run_progress(
        &mut self,
        now: Timestamp,
        machine: MachineId,
        run: RunId,
        done: u64,
        total: u64,
    ) -> Result<(), StoreError> {
        query(
            "UPDATE runs SET done = $3, total = $4, updated = $5 WHERE id = $1 AND machine = $2 AND status = 'running'",
        )
        .bind(run.to_string())
        .bind(machine.to_string())
        .bind(done as i64)
        .bind(total as i64)
        .bind(micros(now))
        .execute(&mut self.inner)
        .await?;
        Ok(())
    }

    /// Notes that an installer begins an order; only of a run in progress on this machine.
    pub async fn run_begun(&mut self, machine: MachineId, run: RunId) -> Result<(), StoreError> {
        query("UPDATE runs SET begun = 1 WHERE id = $1 AND machine = $2 AND status = 'running'")
            .bind(run.to_string())
            .bind(machine.to_string())
            .execute(&mut self.inner)
            .await?;
        Ok(())
    }

    /// Notes what became of an order; only of a run in progress on this machine, and never
    /// over the result of a later try.
    pub async fn run_result(
        &mut self,
        now: Timestamp,
        machine: MachineId,
        run: RunId,
        result: &OrderResult,
    ) -> Result<(), StoreError> {
        let Some(known) = self.running(machine, run).await? else { return Ok(()) };
        if known.result.is_some_and(|known| known.attempt >= result.attempt) {
            return Ok(());
        }
        query("UPDATE runs SET result = $2, updated = $3 WHERE id = $1")
            .bind(run.to_string())
            .bind(json(result))
            .bind(micros(now))
            .execute(&mut self.inner)
            .await?;
        Ok(())
    }

    /// Notes that the system the run installed called home.
    pub async fn run_phoned_home(&mut self, now: Timestamp, machine: MachineId, run: RunId) -> Result<(), StoreError> {
        query("UPDATE runs SET phoned_home = 1, updated = $3 WHERE id = $1 AND machine = $2 AND status = 'running'")
            .bind(run.to_string())
            .bind(machine.to_string())
            .bind(micros(now))
            .execute(&mut self.inner)
            .await?;
        Ok(())
    }

    async fn running(&mut self, machine: MachineId, id: RunId) -> Result<Option<Run>, StoreError> {
        match self.run(id).await {
            Ok(run) => Ok((run.machine == machine && run.status == RunStatus::Running).then_some(run)),
            Err(StoreError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl RunStatus {
    /// The word it is stored and shown as.
    pub fn word(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    fn of_word(word: &str) -> Result<Self, StoreError> {
        [Self::Running, Self::Done, Self::Failed, Self::Cancelled]
            .into_iter()
            .find(|status| status.word() == word)
            .ok_or_else(|| StoreError::Damaged("run status", word.into()))
    }
}

async fn run(seal: &Seal, executor: impl Into<Executor<'_>>, id: RunId) -> Result<Run, StoreError> {
    query(AssertSqlSafe(format!("{SELECT} WHERE runs.id = $1")))
        .bind(id.to_string())
        .fetch_optional(executor)
        .await?
        .as_ref()
        .map(|row| read(seal, row))
        .transpose()?
        .ok_or(StoreError::NotFound("run"))
}

fn read(seal: &Seal, row: &Row) -> Result<Run, StoreError> {
    let run = id(row.try_get("id")?)?;
    let parameters: Parameters = from_json("run parameters", row.try_get("parameters")?)?;
    let optional = |column| row.try_get::<Option<String>, _>(column);
    let time = |column| row.try_get::<Option<i64>, _>(column).map_err(StoreError::from)?.map(timestamp).transpose();
    Ok(Run {
        id: run,
        rack: id(row.try_get("rack")?)?,
        machine: id(row.try_get("machine")?)?,
        machine_name: row.try_get("machine_name")?,
        epoch: Epoch(row.try_get::<i64, _>("epoch")? as u64),
        parameters: parameters.opened(seal, run).map_err(|e| StoreError::Damaged("run parameters", e.into()))?,
        engine: from_json("run state", row.try_get("engine")?)?,
        status: RunStatus::of_word(row.try_get("status")?)?,
        step: optional("step")?.map(|text| from_json("step", &text)).transpose()?,
        attempt: row.try_get("attempt")?,
        undoing: row.try_get("undoing")?,
        waiting_for: optional("waiting_for")?.as_deref().map(WaitFor::of_word),
        waiting_since: time("waiting_since")?,
        waiting_until: time("waiting_until")?,
        way: optional("way")?,
        detail: row.try_get("detail")?,
        cause: row.try_get("cause")?,
        cancel: row.try_get("cancel")?,
        done: row.try_get::<i64, _>("done")? as u64,
        total: row.try_get::<i64, _>("total")? as u64,
        result: optional("result")?.map(|text| from_json("order result", &text)).transpose()?,
        phoned_home: row.try_get("phoned_home")?,
        begun: row.try_get("begun")?,
        created: timestamp(row.try_get("created")?)?,
        updated: timestamp(row.try_get("updated")?)?,
        ended: time("ended")?,
    })
}
