//! How the BMCs of machines are reached.
//!
//! Invariants:
//! - A password is stored sealed, for its machine alone.
//! - Whatever changes here counts up the revision of the rack's intent: its agent is told.

use jiff::Timestamp;
use rackhand_common::{
    bmc::{Access, Protocol},
    id::{MachineId, RackId},
    seal::Seal,
};

use super::{
    Machine, Store, StoreError, Tx,
    database::{Executor, Row, query},
    id,
    machines::parsed,
    micros, timestamp,
};

/// The BMC of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredBmc {
    /// How it is reached.
    pub access: Access,
    /// Since when.
    pub changed: Timestamp,
    /// Counts its changes.
    pub version: u64,
}

impl Store {
    /// The BMC of a machine.
    pub async fn bmc(&self, machine: MachineId) -> Result<StoredBmc, StoreError> {
        one(&self.pool, &self.seal, machine).await?.ok_or(StoreError::NotFound("BMC of this machine"))
    }

    /// The BMCs of a rack's machines, in the order of their machines' ids, after one, at most `limit`.
    pub async fn bmcs(&self, rack: RackId, after: Option<MachineId>, limit: u32) -> Result<Vec<StoredBmc>, StoreError> {
        some(&self.pool, &self.seal, rack, after, limit).await
    }
}

impl Tx {
    /// The BMCs of all machines of a rack.
    pub async fn bmcs_of(&mut self, rack: RackId) -> Result<Vec<Access>, StoreError> {
        let seal = self.seal.clone();
        let rows = some(&mut self.inner, &seal, rack, None, u32::MAX).await?;
        Ok(rows.into_iter().map(|row| row.access).collect())
    }

    /// The BMC of a machine, if it is known.
    pub async fn bmc(&mut self, machine: MachineId) -> Result<Option<StoredBmc>, StoreError> {
        let seal = self.seal.clone();
        one(&mut self.inner, &seal, machine).await
    }

    /// Says how a machine's BMC is reached from now on.
    pub async fn set_bmc(&mut self, now: Timestamp, machine: &Machine, access: &Access) -> Result<(), StoreError> {
        self.watch("bmcs", machine.id).await?;
        let sealed = access.sealed(&self.seal);
        query(
            "INSERT INTO bmcs (id, at, protocol, login, password, fingerprint, changed, version)
             VALUES ($1, $2, $3, $4, $5, $6, $7, 1)
             ON CONFLICT (id) DO UPDATE SET at = $2, protocol = $3, login = $4, password = $5, fingerprint = $6,
                 changed = $7, version = bmcs.version + 1",
        )
        .bind(machine.id.to_string())
        .bind(sealed.at.to_string())
        .bind(word(sealed.protocol))
        .bind(sealed.user)
        .bind(sealed.password)
        .bind(sealed.fingerprint)
        .bind(micros(now))
        .execute(&mut self.inner)
        .await?;
        self.touch_rack(machine.rack).await?;
        Ok(())
    }

    /// Forgets how a machine's BMC is reached.
    pub async fn delete_bmc(&mut self, machine: &Machine) -> Result<(), StoreError> {
        self.watch("bmcs", machine.id).await?;
        query("DELETE FROM bmcs WHERE id = $1").bind(machine.id.to_string()).execute(&mut self.inner).await?;
        self.touch_rack(machine.rack).await?;
        Ok(())
    }
}

/// What a protocol is called in the database and by operators.
pub fn word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Either => "either",
        Protocol::Redfish => "redfish",
        Protocol::Ipmi => "ipmi",
    }
}

/// The protocol that is called so.
pub fn protocol(word: &str) -> Option<Protocol> {
    [Protocol::Either, Protocol::Redfish, Protocol::Ipmi].into_iter().find(|protocol| self::word(*protocol) == word)
}

async fn one(
    executor: impl Into<Executor<'_>>,
    seal: &Seal,
    machine: MachineId,
) -> Result<Option<StoredBmc>, StoreError> {
    let row = query("SELECT * FROM bmcs WHERE id = $1").bind(machine.to_string()).fetch_optional(executor).await?;
    row.map(|row| read(seal, &row)).transpose()
}

async fn some(
    executor: impl Into<Executor<'_>>,
    seal: &Seal,
    rack: RackId,
    after: Option<MachineId>,
    limit: u32,
) -> Result<Vec<StoredBmc>, StoreError> {
    query(
        "SELECT bmcs.* FROM machines JOIN bmcs ON bmcs.id = machines.id
         WHERE machines.rack = $1 AND machines.id > $2 ORDER BY machines.id LIMIT $3",
    )
    .bind(rack.to_string())
    .bind(after.map_or_else(String::new, |after| after.to_string()))
    .bind(limit)
    .fetch_all(executor)
    .await?
    .iter()
    .map(|row| read(seal, row))
    .collect()
}

fn read(seal: &Seal, row: &Row) -> Result<StoredBmc, StoreError> {
    let protocol = protocol(row.try_get("protocol")?)
        .ok_or_else(|| StoreError::Damaged("protocol of a BMC", "it is of a later version".into()))?;
    let access = Access {
        machine: id(row.try_get("id")?)?,
        at: parsed("address of a BMC", row.try_get("at")?)?,
        protocol,
        user: row.try_get("login")?,
        password: row.try_get("password")?,
        fingerprint: row.try_get("fingerprint")?,
    };
    let access = access.opened(seal).map_err(|error| StoreError::Damaged("password of a BMC", error.into()))?;
    let version = row.try_get::<i64, _>("version")? as u64;
    Ok(StoredBmc { access, changed: timestamp(row.try_get("changed")?)?, version })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{
        database::query_scalar,
        tests::{Bench, On, at, on_both},
    };

    fn access(machine: MachineId) -> Access {
        Access {
            machine,
            at: "10.0.0.5:623".parse().unwrap(),
            protocol: Protocol::Ipmi,
            user: "admin".into(),
            password: "canary-5e11".into(),
            fingerprint: None,
        }
    }

    async fn a_bmc_is_kept_with_its_password_sealed_and_its_rack_told(on: On) {
        let bench = Bench::new(on).await;
        let machine = bench.adopted(100).await;
        let before = bench.store.rack_revision(bench.rack).await.unwrap();
        let mut tx = bench.store.begin().await.unwrap();
        tx.set_bmc(at(1), &machine, &access(machine.id)).await.unwrap();
        tx.commit().await.unwrap();
        let kept = bench.store.bmc(machine.id).await.unwrap();
        assert_eq!((kept.access.clone(), kept.changed, kept.version), (access(machine.id), at(1), 1));
        assert_eq!(bench.store.bmcs(bench.rack, None, 10).await.unwrap(), [kept]);
        assert_eq!(bench.store.bmcs(bench.rack, Some(machine.id), 10).await.unwrap(), []);
        let stored: String = query_scalar("SELECT password FROM bmcs").fetch_one(&bench.store.pool).await.unwrap();
        assert!(!stored.contains("canary"), "{stored}");
        assert!(bench.store.rack_revision(bench.rack).await.unwrap() > before);

        let mut tx = bench.store.begin().await.unwrap();
        tx.set_bmc(at(2), &machine, &Access { at: "10.0.0.6".parse().unwrap(), ..access(machine.id) }).await.unwrap();
        assert_eq!(tx.bmc(machine.id).await.unwrap().unwrap().version, 2);
        tx.delete_bmc(&machine).await.unwrap();
        tx.commit().await.unwrap();
        assert!(matches!(bench.store.bmc(machine.id).await, Err(StoreError::NotFound(_))));
    }

    async fn a_machine_that_is_removed_takes_its_bmc_along(on: On) {
        let bench = Bench::new(on).await;
        let machine = bench.machine(100);
        bench.insert(&machine).await.unwrap();
        let mut tx = bench.store.begin().await.unwrap();
        tx.set_bmc(at(1), &machine, &access(machine.id)).await.unwrap();
        tx.delete_machine(&machine).await.unwrap();
        tx.commit().await.unwrap();
        assert!(bench.store.bmcs(bench.rack, None, 10).await.unwrap().is_empty());
    }

    on_both! {
        a_bmc_is_kept_with_its_password_sealed_and_its_rack_told,
        a_machine_that_is_removed_takes_its_bmc_along,
    }
}
