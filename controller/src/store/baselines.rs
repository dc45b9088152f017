//! What the BMCs of machines are to be like, and how each was found last.
//!
//! Invariants:
//! - A record is made once, when a BMC is read for the first time in nobody's hands, and changed by
//!   an operator alone.
//! - A BMC that is reached in another way by now, or forgotten, has no record.

use jiff::Timestamp;
use rackhand_common::{
    bmc::baseline::{Baseline, Restored},
    id::MachineId,
};

use super::{
    Store, StoreError, Tx,
    database::{Executor, Row, query},
    from_json, id, json, micros, timestamp,
};

const BASELINE: &str = "record of a BMC";

/// How the BMC of a machine is to be, and is.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredBaseline {
    /// The machine.
    pub machine: MachineId,
    /// What it is to be like.
    pub record: Option<Baseline>,
    /// Since when.
    pub recorded: Option<Timestamp>,
    /// Who said so; `None` when it was found so.
    pub accepted_by: Option<String>,
    /// How it was found last.
    pub found: Baseline,
    /// When that was.
    pub found_at: Timestamp,
    /// What it refused then, and what is in doubt, in words.
    pub remarks: Vec<String>,
    /// Counts its changes.
    pub version: u64,
}

impl Store {
    /// How the BMC of a machine is to be, when it was ever read.
    pub async fn baseline(&self, machine: MachineId) -> Result<Option<StoredBaseline>, StoreError> {
        one(&self.pool, machine).await
    }
}

impl Tx {
    /// How the BMC of a machine is to be, when it was ever read.
    pub async fn baseline(&mut self, machine: MachineId) -> Result<Option<StoredBaseline>, StoreError> {
        one(&mut self.inner, machine).await
    }

    /// Adds to what a BMC told what the machine's installer told in its place.
    pub async fn add_told_in_band(&mut self, machine: MachineId, restored: &mut Restored) -> Result<(), StoreError> {
        if let Some(known) = self.hardware(machine).await? {
            restored.found.saw(&known.hardware.secure_boot_keys);
        }
        Ok(())
    }

    /// Notes how a BMC was found.
    pub async fn note_baseline(
        &mut self,
        now: Timestamp,
        machine: MachineId,
        restored: &Restored,
    ) -> Result<(), StoreError> {
        self.watch("bmc_baselines", machine).await?;
        let remarks: Vec<_> = restored.refused.iter().chain(&restored.doubts).collect();
        query(
            "INSERT INTO bmc_baselines (id, found, found_at, remarks, version) VALUES ($1, $2, $3, $4, 1)
             ON CONFLICT (id) DO UPDATE SET found = $2, found_at = $3, remarks = $4, version = bmc_baselines.version + 1",
        )
        .bind(machine.to_string())
        .bind(json(&restored.found))
        .bind(micros(now))
        .bind(json(&remarks))
        .execute(&mut self.inner)
        .await?;
        Ok(())
    }

    /// Has a BMC be as it was found last from now on; `by` whoever says so.
    pub async fn record_baseline(
        &mut self,
        now: Timestamp,
        machine: MachineId,
        by: Option<&str>,
    ) -> Result<(), StoreError> {
        let found = self.baseline(machine).await?.ok_or(StoreError::NotFound(BASELINE))?.found;
        self.watch("bmc_baselines", machine).await?;
        query(
            "UPDATE bmc_baselines SET record = $2, recorded = $3, accepted_by = $4, remarks = '[]', version = version + 1
             WHERE id = $1",
        )
        .bind(machine.to_string())
        .bind(json(&found.recorded()))
        .bind(micros(now))
        .bind(by)
        .execute(&mut self.inner)
        .await?;
        Ok(())
    }

    /// The BMC's own firmware was brought to this version: that is no difference from its record.
    pub async fn note_bmc_firmware(
        &mut self,
        now: Timestamp,
        machine: MachineId,
        version: &str,
    ) -> Result<(), StoreError> {
        let Some(mut known) = self.baseline(machine).await? else { return Ok(()) };
        self.watch("bmc_baselines", machine).await?;
        known.found.identity.firmware = Some(version.to_owned());
        if let Some(record) = &mut known.record {
            record.identity.firmware = Some(version.to_owned());
        }
        query("UPDATE bmc_baselines SET record = $2, found = $3, found_at = $4, version = version + 1 WHERE id = $1")
            .bind(machine.to_string())
            .bind(known.record.as_ref().map(json))
            .bind(json(&known.found))
            .bind(micros(now))
            .execute(&mut self.inner)
            .await?;
        Ok(())
    }

    /// Forgets how a machine's BMC is to be.
    pub async fn forget_baseline(&mut self, machine: MachineId) -> Result<(), StoreError> {
        self.watch("bmc_baselines", machine).await?;
        query("DELETE FROM bmc_baselines WHERE id = $1").bind(machine.to_string()).execute(&mut self.inner).await?;
        Ok(())
    }
}

async fn one(executor: impl Into<Executor<'_>>, machine: MachineId) -> Result<Option<StoredBaseline>, StoreError> {
    let row =
        query("SELECT * FROM bmc_baselines WHERE id = $1").bind(machine.to_string()).fetch_optional(executor).await?;
    row.as_ref().map(read).transpose()
}

fn read(row: &Row) -> Result<StoredBaseline, StoreError> {
    let record: Option<String> = row.try_get("record")?;
    let recorded: Option<i64> = row.try_get("recorded")?;
    Ok(StoredBaseline {
        machine: id(row.try_get("id")?)?,
        record: record.map(|text| from_json(BASELINE, &text)).transpose()?,
        recorded: recorded.map(timestamp).transpose()?,
        accepted_by: row.try_get("accepted_by")?,
        found: from_json(BASELINE, row.try_get("found")?)?,
        found_at: timestamp(row.try_get("found_at")?)?,
        remarks: from_json("remarks on a BMC", row.try_get("remarks")?)?,
        version: row.try_get::<i64, _>("version")?.unsigned_abs(),
    })
}
