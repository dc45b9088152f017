//! Certificates of erasure: what became of each disk in releases.
//!
//! Invariants:
//! - A certificate is written once and never changed, and stays when machine and run are forgotten.

use std::collections::BTreeMap;

use rackhand_common::{
    erasure::{Certificate, SignedCertificate},
    id::{MachineId, RackId, RunId},
};
use rackhand_controller_core::access::Sight;
use uuid::Uuid;

use super::{
    Store, StoreError, Tx,
    database::{Builder, query},
    from_json, json,
    places::OF_RACKS,
};

const CERTIFICATE: &str = "certificate of erasure";

impl Store {
    /// The certificate with this id.
    pub async fn erasure(&self, id: &str) -> Result<SignedCertificate, StoreError> {
        let row = query("SELECT certificate FROM erasures WHERE id = $1").bind(id).fetch_optional(&self.pool).await?;
        from_json(CERTIFICATE, row.ok_or(StoreError::NotFound("erasure"))?.try_get("certificate")?)
    }

    /// Certificates that can be seen, the newest first, those before `before`, at most `limit`; of one
    /// machine, or of one drive by its serial number, or all.
    pub async fn erasures(
        &self,
        sight: &Sight,
        machine: Option<MachineId>,
        serial: Option<&str>,
        before: Option<Uuid>,
        limit: u32,
    ) -> Result<Vec<SignedCertificate>, StoreError> {
        let mut query = Builder::new("SELECT erasures.certificate FROM erasures");
        self.reach(sight).await?.push(&mut query, "erasures", OF_RACKS, "erasures.id DESC", limit, |query| {
            if let Some(machine) = machine {
                query.push(" AND erasures.machine = ").push_bind(machine.to_string());
            }
            if let Some(serial) = serial {
                query.push(" AND erasures.serial = ").push_bind(serial.to_owned());
            }
            if let Some(before) = before {
                query.push(" AND erasures.id < ").push_bind(before.to_string());
            }
        });
        let rows = query.build().fetch_all(&self.pool).await?;
        rows.iter().map(|row| from_json(CERTIFICATE, row.try_get("certificate")?)).collect()
    }
}

impl Tx {
    /// Keeps a certificate. Its project is the one its run was for.
    pub async fn insert_erasure(
        &mut self,
        rack: RackId,
        certificate: &Certificate,
        signed: &SignedCertificate,
    ) -> Result<(), StoreError> {
        self.watch("erasures", certificate.erasure).await?;
        query(
            "INSERT INTO erasures (id, rack, project, machine, run, disk, serial, proven, certificate)
             VALUES ($1, $2, (SELECT project FROM runs WHERE id = $4), $3, $4, $5, $6, $7, $8)",
        )
        .bind(certificate.erasure.to_string())
        .bind(rack.to_string())
        .bind(certificate.machine.to_string())
        .bind(certificate.run.to_string())
        .bind(&certificate.drive.disk)
        .bind(&certificate.drive.serial)
        .bind(certificate.drive.is_proven())
        .bind(json(signed))
        .execute(&mut self.inner)
        .await?;
        Ok(())
    }

    /// How many certificates a run has.
    pub async fn erasures_in(&mut self, run: RunId) -> Result<u64, StoreError> {
        let row = query("SELECT COUNT(*) AS count FROM erasures WHERE run = $1")
            .bind(run.to_string())
            .fetch_one(&mut self.inner)
            .await?;
        Ok(row.try_get::<i64, _>("count")?.unsigned_abs())
    }

    /// The disks of a run of which the latest that was told is that they are not known to be erased.
    pub async fn unproven_in(&mut self, run: RunId) -> Result<Vec<String>, StoreError> {
        let rows = query("SELECT disk, proven FROM erasures WHERE run = $1 ORDER BY id")
            .bind(run.to_string())
            .fetch_all(&mut self.inner)
            .await?;
        let mut latest = BTreeMap::new();
        for row in &rows {
            latest.insert(row.try_get::<String, _>("disk")?, row.try_get::<bool, _>("proven")?);
        }
        Ok(latest.into_iter().filter(|(_, proven)| !proven).map(|(disk, _)| disk).collect())
    }
}
