//! Firmware that was imported, and what was updated with it.
//!
//! Invariants:
//! - A manifest never changes: another version is another name.
//! - An update of a run is written down before its agent is asked for it the first time. One that is not
//!   [settled](UpdateState::is_settled) when its run ends leaves the machine in doubt.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use rackhand_common::{
    commission::Tested,
    firmware::{Place, Update, Updated},
    id::{AgentId, MachineId, RunId},
};
use rackhand_controller_core::firmware::{Manifest, Reading};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    Machine, Store, StoreError, Tx,
    database::{Builder, Executor, Row, query},
    from_json, id, json, micros, taken, timestamp,
};

const FIRMWARE: &str = "firmware";

/// How many updates of one machine are kept.
const KEPT: i64 = 200;

/// Firmware that was imported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Firmware {
    /// Names it for programs.
    pub id: Uuid,
    /// The manifest, as it was given.
    pub text: String,
    /// The manifest.
    pub manifest: Manifest,
    /// Since when its file is here, whole; `None` before.
    pub here: Option<Timestamp>,
    /// When it was told of.
    pub created: Timestamp,
}

/// How far an update is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpdateState {
    /// The agent is asked for it.
    Asked,
    /// The BMC took it: the machine has to start anew.
    Staged,
    /// The machine was started anew: the version is to be read.
    Confirming,
    /// The version that was read is the one that was wanted.
    Installed,
    /// The device is as it was.
    Refused,
    /// What the device has is not known, or not what was wanted.
    Failed,
}

impl UpdateState {
    /// Whether it is known what the device has.
    pub fn is_settled(self) -> bool {
        matches!(self, Self::Installed | Self::Refused)
    }

    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Asked => "asked",
            Self::Staged => "staged",
            Self::Confirming => "confirming",
            Self::Installed => "installed",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }

    fn of_word(word: &str) -> Result<Self, StoreError> {
        from_json("state of an update", &json(&word))
    }
}

/// One update of one machine, as it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirmwareUpdate {
    /// Names it; later ones sort behind.
    pub id: Uuid,
    /// The machine.
    pub machine: MachineId,
    /// The run that does it.
    pub run: RunId,
    /// The agent that was asked for it first, and alone may have sent it.
    pub agent: AgentId,
    /// The manifest's name.
    pub name: String,
    /// Whose version it is.
    pub place: Place,
    /// The version before, when it was read.
    pub was: Option<String>,
    /// The version that was wanted.
    pub version: String,
    /// How far it is.
    pub state: UpdateState,
    /// Where it is, or why it ended so, for people.
    pub detail: String,
    /// What an installer told of it last, when a script does it.
    pub told: Option<Told>,
    /// What the script said.
    pub tested: Option<Tested>,
    /// When it changed last.
    pub updated: Timestamp,
}

/// What an installer told of an update by a script.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// Which order of the run it was.
    pub attempt: u32,
    /// How it ended.
    pub updated: Updated,
}

impl Store {
    /// Firmware by its id or name.
    pub async fn firmware(&self, id_or_name: &str) -> Result<Firmware, StoreError> {
        one(&self.pool, id_or_name).await
    }

    /// Firmware in the order in which it was told of, after `after`, at most `limit`.
    pub async fn firmwares(&self, after: Option<Uuid>, limit: u32) -> Result<Vec<Firmware>, StoreError> {
        query("SELECT * FROM firmware WHERE id > $1 ORDER BY id LIMIT $2")
            .bind(after.map(|id| id.to_string()).unwrap_or_default())
            .bind(limit)
            .fetch_all(&self.pool)
            .await?
            .iter()
            .map(read)
            .collect()
    }

    /// SHA-256 of every file that is here, or is being received.
    pub async fn firmware_files(&self) -> Result<BTreeSet<String>, StoreError> {
        Ok(manifests(&self.pool).await?.into_values().map(|manifest| manifest.sha256).collect())
    }

    /// Updates of a machine, the newest first, those before `before`, at most `limit`.
    pub async fn firmware_updates(
        &self,
        machine: MachineId,
        before: Option<Uuid>,
        limit: u32,
    ) -> Result<Vec<FirmwareUpdate>, StoreError> {
        let mut query = Builder::new("SELECT * FROM firmware_updates WHERE machine = ");
        query.push_bind(machine.to_string());
        if let Some(before) = before {
            query.push(" AND id < ").push_bind(before.to_string());
        }
        query.push(" ORDER BY id DESC LIMIT ").push_bind(i64::from(limit));
        query.build().fetch_all(&self.pool).await?.iter().map(read_update).collect()
    }
}

impl Tx {
    /// Firmware by its id or name.
    pub async fn firmware(&mut self, id_or_name: &str) -> Result<Firmware, StoreError> {
        one(&mut self.inner, id_or_name).await
    }

    /// Notes firmware, whose file is still to come.
    pub async fn insert_firmware(
        &mut self,
        now: Timestamp,
        text: &str,
        manifest: &Manifest,
    ) -> Result<Uuid, StoreError> {
        let id = Uuid::now_v7();
        self.watch(FIRMWARE, id).await?;
        query("INSERT INTO firmware (id, name, text, manifest, created) VALUES ($1, $2, $3, $4, $5)")
            .bind(id.to_string())
            .bind(&manifest.name)
            .bind(text)
            .bind(json(manifest))
            .bind(micros(now))
            .execute(&mut self.inner)
            .await
            .map_err(taken("name of firmware"))?;
        Ok(id)
    }

    /// Its file is here, whole.
    pub async fn firmware_is_here(&mut self, now: Timestamp, id: Uuid) -> Result<(), StoreError> {
        self.watch(FIRMWARE, id).await?;
        query("UPDATE firmware SET here = $2 WHERE id = $1")
            .bind(id.to_string())
            .bind(micros(now))
            .execute(&mut self.inner)
            .await?;
        Ok(())
    }

    /// Removes firmware; machines keep what they have.
    pub async fn delete_firmware(&mut self, id: Uuid) -> Result<(), StoreError> {
        self.watch(FIRMWARE, id).await?;
        query("DELETE FROM firmware WHERE id = $1").bind(id.to_string()).execute(&mut self.inner).await?;
        Ok(())
    }

    /// Updates of a run, by their names.
    pub async fn updates_of(&mut self, run: RunId) -> Result<BTreeMap<String, FirmwareUpdate>, StoreError> {
        let rows = query("SELECT * FROM firmware_updates WHERE run = $1")
            .bind(run.to_string())
            .fetch_all(&mut self.inner)
            .await?;
        rows.iter().map(|row| read_update(row).map(|update| (update.name.clone(), update))).collect()
    }

    /// Notes what an installer told of an update that is under way. What is not asked of it any more is nothing
    /// new.
    pub async fn update_told(
        &mut self,
        now: Timestamp,
        machine: MachineId,
        run: RunId,
        attempt: u32,
        updated: &Updated,
    ) -> Result<(), StoreError> {
        let told = Told { attempt, updated: Updated { tested: None, ..updated.clone() } };
        query(
            "UPDATE firmware_updates SET told = $4, tested = COALESCE($5, tested), updated = $6
             WHERE run = $1 AND name = $2 AND machine = $3 AND state IN ('asked', 'confirming')",
        )
        .bind(run.to_string())
        .bind(&updated.name)
        .bind(machine.to_string())
        .bind(json(&told))
        .bind(updated.tested.as_ref().map(json))
        .bind(micros(now))
        .execute(&mut self.inner)
        .await?;
        Ok(())
    }

    /// Notes how far an update of a run is.
    pub async fn note_update(
        &mut self,
        now: Timestamp,
        (machine, run, agent): (MachineId, RunId, AgentId),
        update: &Update,
        (state, was, detail): (UpdateState, Option<&str>, &str),
    ) -> Result<(), StoreError> {
        query(
            "INSERT INTO firmware_updates (id, machine, run, agent, name, place, was, version, state, detail, updated)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
             ON CONFLICT (run, name) DO UPDATE SET was = $7, state = $9, detail = $10, updated = $11",
        )
        .bind(Uuid::now_v7().to_string())
        .bind(machine.to_string())
        .bind(run.to_string())
        .bind(agent.to_string())
        .bind(&update.name)
        .bind(json(&update.place))
        .bind(was)
        .bind(&update.version)
        .bind(state.word())
        .bind(detail)
        .bind(micros(now))
        .execute(&mut self.inner)
        .await?;
        query(
            "DELETE FROM firmware_updates WHERE machine = $1 AND id NOT IN
             (SELECT id FROM firmware_updates WHERE machine = $1 ORDER BY id DESC LIMIT $2)",
        )
        .bind(machine.to_string())
        .bind(KEPT)
        .execute(&mut self.inner)
        .await?;
        Ok(())
    }
}

/// Every manifest whose file is here, by its name: an operator imports few.
pub(super) async fn manifests(executor: impl Into<Executor<'_>>) -> Result<BTreeMap<String, Manifest>, StoreError> {
    let rows = query("SELECT * FROM firmware").fetch_all(executor).await?;
    rows.iter().map(|row| read(row).map(|firmware| (firmware.manifest.name.clone(), firmware.manifest))).collect()
}

/// Versions of a machine's firmware that were read: after updates, and of its BMC for its record.
pub(super) async fn readings(executor: impl Into<Executor<'_>>, machine: &Machine) -> Result<Vec<Reading>, StoreError> {
    let rows = query(
        "SELECT place, version, updated AS at, NULL AS found FROM firmware_updates
            WHERE machine = $1 AND state = 'installed'
         UNION ALL SELECT NULL, NULL, found_at, found FROM bmc_baselines WHERE id = $1",
    )
    .bind(machine.id.to_string())
    .fetch_all(executor)
    .await?;
    let mut readings = Vec::new();
    for row in rows {
        let at = timestamp(row.try_get("at")?)?;
        let found: Option<String> = row.try_get("found")?;
        let (place, version) = match found {
            Some(found) => {
                let found: rackhand_common::bmc::baseline::Baseline = from_json("record of a BMC", &found)?;
                (Place::Bmc, found.identity.firmware)
            }
            None => {
                let place = from_json("place of firmware", row.try_get("place")?)?;
                (place, Some(row.try_get("version")?))
            }
        };
        readings.extend(version.map(|version| Reading { place, version, at }));
    }
    Ok(readings)
}

async fn one(executor: impl Into<Executor<'_>>, id_or_name: &str) -> Result<Firmware, StoreError> {
    let row = query("SELECT * FROM firmware WHERE id = $1 OR name = $1")
        .bind(id_or_name)
        .fetch_optional(executor)
        .await?
        .ok_or(StoreError::NotFound(FIRMWARE))?;
    read(&row)
}

fn read(row: &Row) -> Result<Firmware, StoreError> {
    let here: Option<i64> = row.try_get("here")?;
    Ok(Firmware {
        id: id(row.try_get("id")?)?,
        text: row.try_get("text")?,
        manifest: from_json("manifest of firmware", row.try_get("manifest")?)?,
        here: here.map(timestamp).transpose()?,
        created: timestamp(row.try_get("created")?)?,
    })
}

fn read_update(row: &Row) -> Result<FirmwareUpdate, StoreError> {
    let (told, tested): (Option<String>, Option<String>) = (row.try_get("told")?, row.try_get("tested")?);
    Ok(FirmwareUpdate {
        id: id(row.try_get("id")?)?,
        machine: id(row.try_get("machine")?)?,
        run: id(row.try_get("run")?)?,
        agent: id(row.try_get("agent")?)?,
        name: row.try_get("name")?,
        place: from_json("place of firmware", row.try_get("place")?)?,
        was: row.try_get("was")?,
        version: row.try_get("version")?,
        state: UpdateState::of_word(row.try_get("state")?)?,
        detail: row.try_get("detail")?,
        told: told.map(|told| from_json("word of an installer", &told)).transpose()?,
        tested: tested.map(|tested| from_json("word of a script", &tested)).transpose()?,
        updated: timestamp(row.try_get("updated")?)?,
    })
}
