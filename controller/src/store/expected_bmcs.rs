//! BMCs of machines that nobody has seen yet, as a manifest says: each waits for the machine whose
//! mainboard has its serial number.
//!
//! Invariants:
//! - A password is stored sealed, for its rack and serial number alone.
//! - One that was joined to its machine is no longer here; a machine whose BMC is known gets no other
//!   by one that waits.

use jiff::Timestamp;
use rackhand_common::{
    bmc::{Access, At, Protocol},
    id::RackId,
    seal::Seal,
};

use super::{
    Machine, Store, StoreError, Tx,
    database::{Row, query},
    id,
    machines::parsed,
    micros, timestamp,
};

/// A BMC that waits for its machine.
#[derive(Clone, PartialEq, Eq)]
pub struct ExpectedBmc {
    /// Where the machine is to come.
    pub rack: RackId,
    /// Serial number of its mainboard.
    pub serial: String,
    /// Where the BMC answers.
    pub at: At,
    /// What it speaks.
    pub protocol: Protocol,
    /// Who logs in.
    pub user: String,
    /// The password.
    pub password: String,
    /// SHA-256 of the certificate it has to show, in hexadecimal.
    pub fingerprint: Option<String>,
    /// Whether it is given another password as soon as its machine is known.
    pub rotate: bool,
    /// Since when it waits.
    pub since: Timestamp,
}

// No password in a log line.
impl std::fmt::Debug for ExpectedBmc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExpectedBmc").field("serial", &self.serial).field("at", &self.at).finish_non_exhaustive()
    }
}

impl ExpectedBmc {
    fn key(rack: RackId, serial: &str) -> String {
        format!("{rack}/{serial}")
    }

    /// What its password is sealed for.
    pub(super) fn place_of(key: &str) -> String {
        format!("expected BMC of {key}")
    }
}

impl Store {
    /// Those that wait in a rack, in the order of their serial numbers, after one, at most `limit`.
    pub async fn expected_bmcs(
        &self,
        rack: RackId,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<ExpectedBmc>, StoreError> {
        let rows = query("SELECT * FROM expected_bmcs WHERE rack = $1 AND serial > $2 ORDER BY serial LIMIT $3")
            .bind(rack.to_string())
            .bind(after.unwrap_or_default())
            .bind(limit)
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(|row| read(&self.seal, row)).collect()
    }
}

impl Tx {
    /// Has a BMC wait for its machine, in place of what waited for the same one.
    pub async fn expect_bmc(&mut self, bmc: &ExpectedBmc) -> Result<(), StoreError> {
        let key = ExpectedBmc::key(bmc.rack, &bmc.serial);
        self.watch("expected_bmcs", &key).await?;
        query(
            "INSERT INTO expected_bmcs (id, rack, serial, at, protocol, login, password, fingerprint, rotate, since)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
             ON CONFLICT (id) DO UPDATE SET at = $4, protocol = $5, login = $6, password = $7, fingerprint = $8,
                 rotate = $9",
        )
        .bind(&key)
        .bind(bmc.rack.to_string())
        .bind(&bmc.serial)
        .bind(bmc.at.to_string())
        .bind(bmc.protocol.word())
        .bind(&bmc.user)
        .bind(self.seal.seal(&ExpectedBmc::place_of(&key), &bmc.password))
        .bind(&bmc.fingerprint)
        .bind(i64::from(bmc.rotate))
        .bind(micros(bmc.since))
        .execute(&mut self.inner)
        .await?;
        self.expect_at(bmc.rack, bmc.at.address).await
    }

    /// Says how a machine's BMC is reached when one waited for its mainboard; `fresh` is the password
    /// that it is given when that was wanted. Whether it did.
    pub async fn join_expected_bmc(
        &mut self,
        now: Timestamp,
        machine: &Machine,
        fresh: &str,
    ) -> Result<bool, StoreError> {
        let mainboard = machine.mainboard();
        let Some(serial) =
            mainboard.as_ref().map(|mainboard| mainboard.serial.clone()).filter(|serial| !serial.is_empty())
        else {
            return Ok(false);
        };
        let key = ExpectedBmc::key(machine.rack, &serial);
        let row = query("SELECT * FROM expected_bmcs WHERE id = $1").bind(&key).fetch_optional(&mut self.inner).await?;
        let Some(row) = row else { return Ok(false) };
        if self.bmc(machine.id).await?.is_some() {
            return Ok(false);
        }
        let seal = self.seal.clone();
        let ExpectedBmc { at, protocol, user, password, fingerprint, rotate, .. } = read(&seal, &row)?;
        // Two sides: the BMC there has said whose it is.
        let found = self.found_bmc(machine.rack, at.address).await?.and_then(|found| found.met);
        let told = found.and_then(|met| met.identity.serial);
        if let Some(told) = told.filter(|told| *told != serial) {
            tracing::warn!(machine = %machine.id, %at, told, "the BMC that waited for it says that it is another's");
            return Ok(false);
        }
        let access = Access { machine: machine.id, at, protocol, user, password, fingerprint, mainboard };
        match self.reach_bmc(now, machine, &access).await {
            // Two sides: an operator decides.
            Err(StoreError::Taken(_)) => {
                tracing::warn!(machine = %machine.id, %at, "the BMC that waited for it is another machine's");
                return Ok(false);
            }
            reached => reached?,
        }
        if rotate {
            self.begin_rotation(now, machine, fresh).await?;
        }
        self.watch("expected_bmcs", &key).await?;
        query("DELETE FROM expected_bmcs WHERE id = $1").bind(&key).execute(&mut self.inner).await?;
        Ok(true)
    }

    /// Forgets what waits in a rack: for the machine with this mainboard, or all.
    pub async fn forget_expected_bmcs(&mut self, rack: RackId, serial: Option<&str>) -> Result<(), StoreError> {
        let rows = query("SELECT id FROM expected_bmcs WHERE rack = $1 AND ($2 IS NULL OR serial = $2)")
            .bind(rack.to_string())
            .bind(serial)
            .fetch_all(&mut self.inner)
            .await?;
        for row in rows {
            let key: String = row.try_get("id")?;
            self.watch("expected_bmcs", &key).await?;
            query("DELETE FROM expected_bmcs WHERE id = $1").bind(&key).execute(&mut self.inner).await?;
        }
        Ok(())
    }
}

fn read(seal: &Seal, row: &Row) -> Result<ExpectedBmc, StoreError> {
    let key: &str = row.try_get("id")?;
    let password = seal.open(&ExpectedBmc::place_of(key), row.try_get("password")?);
    let damaged = |error: rackhand_common::seal::NotOpened| StoreError::Damaged("password of a BMC", error.into());
    Ok(ExpectedBmc {
        rack: id(row.try_get("rack")?)?,
        serial: row.try_get("serial")?,
        at: parsed("address of a BMC", row.try_get("at")?)?,
        protocol: parsed("protocol of a BMC", row.try_get("protocol")?)?,
        user: row.try_get("login")?,
        password: password.map_err(damaged)?,
        fingerprint: row.try_get("fingerprint")?,
        rotate: row.try_get::<i64, _>("rotate")? != 0,
        since: timestamp(row.try_get("since")?)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{
        database::query_scalar,
        tests::{Bench, On, at, on_both},
    };

    async fn a_bmc_waits_sealed_for_the_machine_with_its_mainboard_and_is_joined_once(on: On) {
        let bench = Bench::new(on).await;
        let mut machine = bench.adopted(100).await;
        let serial = "7G1".to_owned();
        let parts = machine.accepted.as_mut().unwrap_or(&mut machine.inventory);
        std::sync::Arc::make_mut(parts).system.serial = serial.clone();
        let bmc = |serial: &str, host: &str| ExpectedBmc {
            rack: bench.rack,
            serial: serial.into(),
            at: host.parse().unwrap(),
            protocol: Protocol::Redfish,
            user: "root".into(),
            password: "canary-calvin".into(),
            fingerprint: None,
            rotate: true,
            since: at(1),
        };
        let mut tx = bench.store.begin().await.unwrap();
        tx.expect_bmc(&bmc(&serial, "10.0.0.5")).await.unwrap();
        tx.expect_bmc(&bmc(&serial, "10.0.0.6")).await.unwrap();
        tx.expect_bmc(&bmc("OTHER", "10.0.0.7")).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(bench.store.expected_bmcs(bench.rack, None, 10).await.unwrap().len(), 2);
        let stored: Vec<String> =
            query_scalar("SELECT password FROM expected_bmcs").fetch_all(&bench.store.pool).await.unwrap();
        assert!(!format!("{stored:?}").contains("canary"), "{stored:?}");

        let mut tx = bench.store.begin().await.unwrap();
        assert!(tx.join_expected_bmc(at(2), &machine, "fresh").await.unwrap());
        assert!(!tx.join_expected_bmc(at(2), &machine, "fresh").await.unwrap());
        tx.commit().await.unwrap();
        let joined = bench.store.bmc(machine.id).await.unwrap();
        assert_eq!(
            (joined.access.at.to_string().as_str(), joined.access.password.as_str()),
            ("10.0.0.6", "canary-calvin")
        );
        assert_eq!(joined.next.unwrap().password, "fresh");
        let waiting = bench.store.expected_bmcs(bench.rack, None, 10).await.unwrap();
        assert_eq!(waiting, [bmc("OTHER", "10.0.0.7")]);
        let mut tx = bench.store.begin().await.unwrap();
        tx.forget_expected_bmcs(bench.rack, Some("NONE")).await.unwrap();
        tx.forget_expected_bmcs(bench.rack, None).await.unwrap();
        tx.commit().await.unwrap();
        assert!(bench.store.expected_bmcs(bench.rack, None, 10).await.unwrap().is_empty());
    }

    on_both! {
        a_bmc_waits_sealed_for_the_machine_with_its_mainboard_and_is_joined_once,
    }
}
