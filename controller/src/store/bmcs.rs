//! How the BMCs of machines are reached.
//!
//! Invariants:
//! - A password is stored sealed, for its machine alone.
//! - Whatever changes here counts up the revision of the rack's intent: its agent is told.

use jiff::Timestamp;
use rackhand_common::{
    bmc::Access,
    id::{MachineId, RackId},
    seal::Seal,
};

use super::{
    Machine, Store, StoreError, Tx,
    database::{Executor, Row, query},
    from_json, id, json,
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
        let rows = rows(&self.pool, rack, after, limit).await?;
        rows.iter().map(|row| read(&self.seal, row)).collect()
    }
}

impl Tx {
    /// The BMCs of all machines of a rack.
    pub async fn bmcs_of(&mut self, rack: RackId) -> Result<Vec<Access>, StoreError> {
        let seal = self.seal.clone();
        let rows = rows(&mut self.inner, rack, None, u32::MAX).await?;
        let readable = rows.iter().filter_map(|row| match read(&seal, row) {
            Ok(bmc) => Some(bmc.access),
            // The rest of the rack is told what is wanted of it all the same.
            Err(error) => {
                tracing::error!(%rack, error = &error as &dyn std::error::Error, "a BMC is left out");
                None
            }
        });
        Ok(readable.collect())
    }

    /// The BMC of a machine, if it is known.
    pub async fn bmc(&mut self, machine: MachineId) -> Result<Option<StoredBmc>, StoreError> {
        let seal = self.seal.clone();
        one(&mut self.inner, &seal, machine).await
    }

    /// Says how a machine's BMC is reached from now on. No two machines of a rack have theirs at one
    /// place: a mistyped address would switch another machine.
    pub async fn set_bmc(&mut self, now: Timestamp, machine: &Machine, access: &Access) -> Result<(), StoreError> {
        let taken = query(
            "SELECT machines.name FROM machines JOIN bmcs ON bmcs.id = machines.id
             WHERE machines.rack = $1 AND bmcs.at = $2 AND machines.id <> $3",
        )
        .bind(machine.rack.to_string())
        .bind(access.at.to_string())
        .bind(machine.id.to_string())
        .fetch_optional(&mut self.inner)
        .await?;
        if taken.is_some() {
            return Err(StoreError::Taken("address of a BMC in this rack"));
        }
        self.watch("bmcs", machine.id).await?;
        let sealed = access.sealed(&self.seal);
        query(
            "INSERT INTO bmcs (id, at, protocol, login, password, fingerprint, mainboard, changed, version)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 1)
             ON CONFLICT (id) DO UPDATE SET at = $2, protocol = $3, login = $4, password = $5, fingerprint = $6,
                 mainboard = $7, changed = $8, version = bmcs.version + 1",
        )
        .bind(machine.id.to_string())
        .bind(sealed.at.to_string())
        .bind(sealed.protocol.word())
        .bind(sealed.user)
        .bind(sealed.password)
        .bind(sealed.fingerprint)
        .bind(sealed.mainboard.as_ref().map(json))
        .bind(micros(now))
        .execute(&mut self.inner)
        .await?;
        self.touch_rack(machine.rack).await?;
        Ok(())
    }

    /// Has the BMC of a machine be the one on the mainboard that was accepted, or found, last.
    pub async fn follow_mainboard(&mut self, now: Timestamp, machine: &Machine) -> Result<(), StoreError> {
        let Some(bmc) = self.bmc(machine.id).await? else { return Ok(()) };
        let mainboard = machine.mainboard();
        if bmc.access.mainboard == mainboard {
            return Ok(());
        }
        self.set_bmc(now, machine, &Access { mainboard, ..bmc.access }).await
    }

    /// Forgets how a machine's BMC is reached, and how the machine fares: nobody reads it any more.
    pub async fn delete_bmc(&mut self, machine: &Machine) -> Result<(), StoreError> {
        self.forget_health(machine.id).await?;
        self.watch("bmcs", machine.id).await?;
        query("DELETE FROM bmcs WHERE id = $1").bind(machine.id.to_string()).execute(&mut self.inner).await?;
        self.touch_rack(machine.rack).await?;
        Ok(())
    }
}

async fn one(
    executor: impl Into<Executor<'_>>,
    seal: &Seal,
    machine: MachineId,
) -> Result<Option<StoredBmc>, StoreError> {
    let row = query("SELECT * FROM bmcs WHERE id = $1").bind(machine.to_string()).fetch_optional(executor).await?;
    row.map(|row| read(seal, &row)).transpose()
}

async fn rows(
    executor: impl Into<Executor<'_>>,
    rack: RackId,
    after: Option<MachineId>,
    limit: u32,
) -> Result<Vec<Row>, StoreError> {
    let rows = query(
        "SELECT bmcs.* FROM machines JOIN bmcs ON bmcs.id = machines.id
         WHERE machines.rack = $1 AND machines.id > $2 ORDER BY machines.id LIMIT $3",
    )
    .bind(rack.to_string())
    .bind(after.map_or_else(String::new, |after| after.to_string()))
    .bind(limit)
    .fetch_all(executor)
    .await?;
    Ok(rows)
}

fn read(seal: &Seal, row: &Row) -> Result<StoredBmc, StoreError> {
    let access = Access {
        machine: id(row.try_get("id")?)?,
        at: parsed("address of a BMC", row.try_get("at")?)?,
        protocol: parsed("protocol of a BMC", row.try_get("protocol")?)?,
        user: row.try_get("login")?,
        password: row.try_get("password")?,
        fingerprint: row.try_get("fingerprint")?,
        mainboard: row.try_get::<Option<&str>, _>("mainboard")?.map(|text| from_json("mainboard", text)).transpose()?,
    };
    let access = access.opened(seal).map_err(|error| StoreError::Damaged("password of a BMC", error.into()))?;
    let version = row.try_get::<i64, _>("version")? as u64;
    Ok(StoredBmc { access, changed: timestamp(row.try_get("changed")?)?, version })
}

#[cfg(test)]
mod tests {
    use rackhand_common::{bmc::Protocol, machine::Mainboard};

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
            mainboard: Some(Mainboard { serial: "S1".into(), uuid: None }),
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

    async fn no_two_machines_of_a_rack_have_their_bmcs_at_one_place(on: On) {
        let bench = Bench::new(on).await;
        let (one, other) = (bench.adopted(100).await, bench.adopted(101).await);
        let mut tx = bench.store.begin().await.unwrap();
        tx.set_bmc(at(1), &one, &access(one.id)).await.unwrap();
        tx.set_bmc(at(1), &one, &access(one.id)).await.unwrap();
        let taken = tx.set_bmc(at(1), &other, &access(other.id)).await;
        assert!(matches!(taken, Err(StoreError::Taken(_))), "{taken:?}");
    }

    async fn a_bmc_that_cannot_be_read_is_left_out_and_the_rack_told_the_rest(on: On) {
        let bench = Bench::new(on).await;
        for (number, at_) in [(100, "10.0.0.5"), (101, "10.0.0.6")] {
            let machine = bench.adopted(number).await;
            let mut tx = bench.store.begin().await.unwrap();
            let access = Access { at: at_.parse().unwrap(), ..access(machine.id) };
            tx.set_bmc(at(1), &machine, &access).await.unwrap();
            tx.commit().await.unwrap();
        }
        query("UPDATE bmcs SET protocol = 'later' WHERE at = '10.0.0.5'").execute(&bench.store.pool).await.unwrap();
        let (intent, bmcs) = crate::intent::of(&bench.store, bench.rack).await.unwrap();
        let told: Vec<_> = bmcs.bmcs.iter().map(|access| access.at.to_string()).collect();
        assert_eq!((intent.machines.len(), told), (2, vec!["10.0.0.6".to_owned()]));
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
        no_two_machines_of_a_rack_have_their_bmcs_at_one_place,
        a_bmc_that_cannot_be_read_is_left_out_and_the_rack_told_the_rest,
        a_machine_that_is_removed_takes_its_bmc_along,
    }
}
