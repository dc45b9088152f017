//! How the BMCs of machines are reached.
//!
//! Invariants:
//! - A password is stored sealed, for its machine alone.
//! - Whatever changes here counts up the revision of the rack's intent: its agent is told.

use std::fmt;

use jiff::Timestamp;
use rackhand_common::{
    bmc::{Access, Beside},
    id::{MachineId, RackId, RunId},
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
    /// What its machine is called.
    pub machine_name: String,
    /// How it is reached.
    pub access: Access,
    /// The password that it is to have from now on.
    pub next: Option<Next>,
    /// The rotation that was asked for, as long as it is not done.
    pub rotation: Option<Rotation>,
    /// When it got another password last.
    pub rotated: Option<Timestamp>,
    /// The run whose installer has set the next password in-band, as it says.
    pub regained_in: Option<RunId>,
    /// Counts how often an operator has said how it is reached, and an installer has set its password.
    pub told: u64,
    /// Since when.
    pub changed: Timestamp,
    /// Counts its changes.
    pub version: u64,
}

/// A password that a BMC is to have.
#[derive(Clone, PartialEq, Eq)]
pub struct Next {
    /// The password.
    pub password: String,
    /// Whether an agent may have set it already.
    pub is_begun: bool,
}

// No password in a log line.
impl fmt::Debug for Next {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Next").field("is_begun", &self.is_begun).finish_non_exhaustive()
    }
}

/// A rotation that is not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// Since when it is asked for.
    pub since: Timestamp,
    /// What it waits for, for people.
    pub detail: Option<String>,
    /// Why it was given up, when it was.
    pub failed: Option<String>,
}

impl StoredBmc {
    /// What its rack's agent is told beside how it is reached.
    pub fn beside(&self) -> Beside {
        Beside {
            machine: self.access.machine,
            set: self.told,
            next: self.next.as_ref().map(|next| next.password.clone()),
            is_begun: self.next.as_ref().is_some_and(|next| next.is_begun),
        }
    }
}

impl Store {
    /// The rotations under way, with the rack of each.
    pub async fn rotations(&self) -> Result<Vec<(RackId, StoredBmc)>, StoreError> {
        let rows = query(
            "SELECT bmcs.*, machines.rack, machines.name AS machine_name FROM machines JOIN bmcs ON bmcs.id = machines.id
             WHERE bmcs.rotating_since IS NOT NULL AND bmcs.rotating_failed IS NULL ORDER BY bmcs.rotating_since, bmcs.id",
        )
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(|row| Ok((id(row.try_get("rack")?)?, read(&self.seal, row)?))).collect()
    }

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
    pub async fn bmcs_of(&mut self, rack: RackId) -> Result<Vec<StoredBmc>, StoreError> {
        let seal = self.seal.clone();
        let rows = rows(&mut self.inner, rack, None, u32::MAX).await?;
        let readable = rows.iter().filter_map(|row| match read(&seal, row) {
            Ok(bmc) => Some(bmc),
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

    /// The same by an operator, who knows best: a rotation that was asked for is no longer, and only
    /// the password that may have been set already is kept.
    pub async fn reach_bmc(&mut self, now: Timestamp, machine: &Machine, access: &Access) -> Result<(), StoreError> {
        self.set_bmc(now, machine, access).await?;
        query(
            "UPDATE bmcs SET told = told + 1, rotating_since = NULL, rotating_detail = NULL, rotating_failed = NULL,
                 next = CASE WHEN next_begun = 0 THEN NULL ELSE next END
             WHERE id = $1",
        )
        .bind(machine.id.to_string())
        .execute(&mut self.inner)
        .await?;
        Ok(())
    }

    /// Has a machine's BMC get another password: this one, unless one may have been set already and
    /// nobody knows.
    pub async fn begin_rotation(&mut self, now: Timestamp, machine: &Machine, fresh: &str) -> Result<(), StoreError> {
        self.watch("bmcs", machine.id).await?;
        let changed = query(
            "UPDATE bmcs SET next = COALESCE(next, $2), rotating_since = $3, rotating_detail = NULL,
                 rotating_failed = NULL, version = version + 1
             WHERE id = $1",
        )
        .bind(machine.id.to_string())
        .bind(self.seal.seal(&Access::place_of_next(machine.id), fresh))
        .bind(micros(now))
        .execute(&mut self.inner)
        .await?;
        if changed.rows_affected() == 0 {
            return Err(StoreError::NotFound("BMC of this machine"));
        }
        self.touch_rack(machine.rack).await.map(drop)
    }

    /// Has a machine's installer be able to set the next password of its BMC: this one, unless one may have been
    /// set already and nobody knows.
    pub async fn begin_in_band(&mut self, machine: &Machine, fresh: &str) -> Result<(), StoreError> {
        self.watch("bmcs", machine.id).await?;
        query("UPDATE bmcs SET next = COALESCE(next, $2), next_begun = 1, version = version + 1 WHERE id = $1")
            .bind(machine.id.to_string())
            .bind(self.seal.seal(&Access::place_of_next(machine.id), fresh))
            .execute(&mut self.inner)
            .await?;
        self.touch_rack(machine.rack).await.map(drop)
    }

    /// The installer of a machine says that it has set the next password of its BMC: the rack's agent is to prove
    /// it, and may try a login for that whatever was denied before.
    pub async fn begin_proof(&mut self, now: Timestamp, machine: &Machine, run: RunId) -> Result<(), StoreError> {
        self.watch("bmcs", machine.id).await?;
        query(
            "UPDATE bmcs SET regained_in = $2, told = told + 1, rotating_since = $3, rotating_detail = NULL,
                 rotating_failed = NULL, version = version + 1
             WHERE id = $1",
        )
        .bind(machine.id.to_string())
        .bind(run.to_string())
        .bind(micros(now))
        .execute(&mut self.inner)
        .await?;
        self.touch_rack(machine.rack).await.map(drop)
    }

    /// Notes that an agent may set the next password from now on.
    pub async fn rotation_begun(&mut self, machine: MachineId, rack: RackId) -> Result<(), StoreError> {
        query("UPDATE bmcs SET next_begun = 1 WHERE id = $1")
            .bind(machine.to_string())
            .execute(&mut self.inner)
            .await?;
        self.touch_rack(rack).await.map(drop)
    }

    /// Notes what a rotation waits for.
    pub async fn rotation_waits(&mut self, machine: MachineId, detail: &str) -> Result<(), StoreError> {
        query("UPDATE bmcs SET rotating_detail = $2 WHERE id = $1")
            .bind(machine.to_string())
            .bind(detail)
            .execute(&mut self.inner)
            .await?;
        Ok(())
    }

    /// The BMC has this password, which was its next; false when it is to have another by now.
    pub async fn rotation_done(
        &mut self,
        now: Timestamp,
        machine: MachineId,
        rack: RackId,
        next: &str,
    ) -> Result<bool, StoreError> {
        let known = self.bmc(machine).await?.and_then(|bmc| bmc.next);
        if known.is_none_or(|known| known.password != next) {
            return Ok(false);
        }
        query(
            "UPDATE bmcs SET password = $2, next = NULL, next_begun = 0, rotating_since = NULL, rotating_detail = NULL,
                 rotating_failed = NULL, rotated = $3, version = version + 1
             WHERE id = $1",
        )
        .bind(machine.to_string())
        .bind(self.seal.seal(&Access::place_of(machine), next))
        .bind(micros(now))
        .execute(&mut self.inner)
        .await?;
        self.touch_rack(rack).await?;
        Ok(true)
    }

    /// Gives a rotation up. The next password is forgotten unless the BMC may have it.
    pub async fn rotation_failed(
        &mut self,
        machine: MachineId,
        rack: RackId,
        reason: &str,
        is_begun: bool,
    ) -> Result<(), StoreError> {
        query(
            "UPDATE bmcs SET rotating_failed = $2, rotating_detail = NULL, next_begun = $3,
                 next = CASE WHEN $3 = 0 THEN NULL ELSE next END, version = version + 1
             WHERE id = $1",
        )
        .bind(machine.to_string())
        .bind(reason)
        .bind(i64::from(is_begun))
        .execute(&mut self.inner)
        .await?;
        self.touch_rack(rack).await.map(drop)
    }

    /// Has a machine's BMC be one that may have another password as well.
    pub async fn put_next(&mut self, machine: MachineId, next: Option<&Next>) -> Result<(), StoreError> {
        let place = Access::place_of_next(machine);
        query("UPDATE bmcs SET next = $2, next_begun = $3 WHERE id = $1")
            .bind(machine.to_string())
            .bind(next.map(|next| self.seal.seal(&place, &next.password)))
            .bind(i64::from(next.is_some_and(|next| next.is_begun)))
            .execute(&mut self.inner)
            .await?;
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
        self.forget_baseline(machine.id).await?;
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
    let row = query(
        "SELECT bmcs.*, machines.name AS machine_name FROM bmcs JOIN machines ON machines.id = bmcs.id
         WHERE bmcs.id = $1",
    )
    .bind(machine.to_string())
    .fetch_optional(executor)
    .await?;
    row.map(|row| read(seal, &row)).transpose()
}

async fn rows(
    executor: impl Into<Executor<'_>>,
    rack: RackId,
    after: Option<MachineId>,
    limit: u32,
) -> Result<Vec<Row>, StoreError> {
    let rows = query(
        "SELECT bmcs.*, machines.name AS machine_name FROM machines JOIN bmcs ON bmcs.id = machines.id
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
    let place = Access::place_of_next(access.machine);
    let next = row.try_get::<Option<&str>, _>("next")?.map(|next| seal.open(&place, next)).transpose();
    let next = next.map_err(|error| StoreError::Damaged("next password of a BMC", error.into()))?;
    let is_begun = row.try_get::<i64, _>("next_begun")? != 0;
    let at = |column: &str| row.try_get::<Option<i64>, _>(column)?.map(timestamp).transpose();
    let (detail, failed) = (row.try_get("rotating_detail")?, row.try_get("rotating_failed")?);
    Ok(StoredBmc {
        machine_name: row.try_get("machine_name")?,
        access,
        next: next.map(|password| Next { password, is_begun }),
        rotation: at("rotating_since")?.map(|since| Rotation { since, detail, failed }),
        rotated: at("rotated")?,
        regained_in: row.try_get::<Option<&str>, _>("regained_in")?.map(id).transpose()?,
        told: row.try_get::<i64, _>("told")? as u64,
        changed: timestamp(row.try_get("changed")?)?,
        version: row.try_get::<i64, _>("version")? as u64,
    })
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

    async fn a_next_password_is_kept_sealed_beside_the_present_one_until_one_of_them_is_proved(on: On) {
        let bench = Bench::new(on).await;
        let machine = bench.adopted(100).await;
        let mut tx = bench.store.begin().await.unwrap();
        assert!(matches!(tx.begin_rotation(at(1), &machine, "canary-next").await, Err(StoreError::NotFound(_))));
        tx.set_bmc(at(1), &machine, &access(machine.id)).await.unwrap();
        tx.begin_rotation(at(2), &machine, "canary-next").await.unwrap();
        tx.commit().await.unwrap();
        let kept = bench.store.bmc(machine.id).await.unwrap();
        let password = |kept: &StoredBmc| kept.next.as_ref().map(|next| (next.password.clone(), next.is_begun));
        assert_eq!(
            (kept.access.password.as_str(), password(&kept)),
            ("canary-5e11", Some(("canary-next".into(), false)))
        );
        assert!(!format!("{kept:?}").contains("canary"), "{kept:?}");
        let stored: String = query_scalar("SELECT next FROM bmcs").fetch_one(&bench.store.pool).await.unwrap();
        assert!(!stored.contains("canary"), "{stored}");
        let [(rack, under)] = bench.store.rotations().await.unwrap().try_into().unwrap();
        assert_eq!((rack, under), (bench.rack, kept));

        // Given up in the middle and asked for again, it is the same: the BMC may have it.
        let mut tx = bench.store.begin().await.unwrap();
        tx.rotation_begun(machine.id, bench.rack).await.unwrap();
        tx.rotation_failed(machine.id, bench.rack, "silent", true).await.unwrap();
        tx.reach_bmc(at(3), &machine, &access(machine.id)).await.unwrap();
        tx.begin_rotation(at(4), &machine, "another").await.unwrap();
        tx.commit().await.unwrap();
        let kept = bench.store.bmc(machine.id).await.unwrap();
        assert_eq!((password(&kept), kept.told), (Some(("canary-next".into(), true)), 1));

        let before = bench.store.rack_revision(bench.rack).await.unwrap();
        let mut tx = bench.store.begin().await.unwrap();
        assert!(!tx.rotation_done(at(5), machine.id, bench.rack, "another").await.unwrap());
        assert!(tx.rotation_done(at(5), machine.id, bench.rack, "canary-next").await.unwrap());
        tx.commit().await.unwrap();
        let kept = bench.store.bmc(machine.id).await.unwrap();
        assert_eq!((kept.access.password.as_str(), &kept.next, &kept.rotation), ("canary-next", &None, &None));
        assert_eq!(kept.rotated, Some(at(5)));
        assert!(bench.store.rack_revision(bench.rack).await.unwrap() > before);

        // One that was never set is forgotten.
        let mut tx = bench.store.begin().await.unwrap();
        tx.begin_rotation(at(6), &machine, "never").await.unwrap();
        tx.rotation_failed(machine.id, bench.rack, "no", false).await.unwrap();
        tx.commit().await.unwrap();
        let kept = bench.store.bmc(machine.id).await.unwrap();
        assert_eq!((&kept.next, kept.rotation.unwrap().failed.as_deref()), (&None, Some("no")));
        assert!(bench.store.rotations().await.unwrap().is_empty());
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
        let (intent, bmcs, _) = crate::intent::of(&bench.store, bench.rack).await.unwrap();
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
        a_next_password_is_kept_sealed_beside_the_present_one_until_one_of_them_is_proved,
        no_two_machines_of_a_rack_have_their_bmcs_at_one_place,
        a_bmc_that_cannot_be_read_is_left_out_and_the_rack_told_the_rest,
        a_machine_that_is_removed_takes_its_bmc_along,
    }
}
