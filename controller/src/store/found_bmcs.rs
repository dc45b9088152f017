//! BMCs that answer on management networks, as racks' agents found them, and what came of the first
//! login to those that are no machine's.
//!
//! Invariants:
//! - At most [`MAX_FOUND`] are kept of one rack, whatever its agent tells.
//! - One that shows another certificate is another BMC: what was known of the one before is forgotten.
//! - No password is kept here.

use std::{net::IpAddr, str::FromStr};

use jiff::Timestamp;
use rackhand_common::{
    bmc::{Found, Identity, MAX_FOUND},
    id::RackId,
};
use serde::{Deserialize, Serialize};

use super::{
    Store, StoreError, Tx,
    database::{Executor, Row, query, query_scalar},
    from_json, id, json,
    machines::parsed,
    micros, timestamp,
};

/// A BMC that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundBmc {
    /// The rack whose agent found it.
    pub rack: RackId,
    /// What it says to anybody.
    pub found: Found,
    /// When it was found, by the node's clock.
    pub first_seen: Timestamp,
    /// When it was told last that it answers, by the node's clock.
    pub last_seen: Timestamp,
    /// How far its intake is.
    pub intake: Intake,
    /// Why, for people.
    pub detail: Option<String>,
    /// What it said once it was logged in to.
    pub met: Option<MetBmc>,
    /// It is not logged in to before.
    pub again: Timestamp,
}

/// How far the intake of a BMC is that is no machine's yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intake {
    /// It is not logged in to: nobody says how, or it does not answer.
    Found,
    /// It does not take the password.
    Denied,
    /// It was logged in to, and its machine is not known.
    Met,
    /// Who says whose it is do not agree.
    Disputed,
}

impl Intake {
    const ALL: [Self; 4] = [Self::Found, Self::Denied, Self::Met, Self::Disputed];

    /// What it is called.
    pub fn word(self) -> &'static str {
        match self {
            Self::Found => "found",
            Self::Denied => "denied",
            Self::Met => "met",
            Self::Disputed => "disputed",
        }
    }
}

impl FromStr for Intake {
    type Err = NoIntake;

    fn from_str(word: &str) -> Result<Self, NoIntake> {
        Self::ALL.into_iter().find(|intake| intake.word() == word).ok_or(NoIntake)
    }
}

/// The word names no state of an intake.
#[derive(Debug, thiserror::Error)]
#[error("is no state of a BMC's intake")]
pub struct NoIntake;

/// What a BMC said once it was logged in to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetBmc {
    /// What and whose it is.
    pub identity: Identity,
    /// The certificate it showed.
    pub fingerprint: Option<String>,
    /// Whether it took what it came with from the factory, and not what a manifest says.
    pub by_factory: bool,
}

impl FoundBmc {
    fn key(rack: RackId, address: IpAddr) -> String {
        format!("{rack}/{address}")
    }
}

impl Store {
    /// The racks in which BMCs were found that are no machine's, and whether they are tried with what
    /// they come with from the factory.
    pub async fn racks_with_found_bmcs(&self) -> Result<Vec<(RackId, bool)>, StoreError> {
        let rows = query(
            "SELECT DISTINCT racks.id, racks.try_factory FROM found_bmcs JOIN racks ON racks.id = found_bmcs.rack
             WHERE NOT EXISTS (SELECT 1 FROM machines JOIN bmcs ON bmcs.id = machines.id
                 WHERE machines.rack = found_bmcs.rack AND (bmcs.at = found_bmcs.address
                     OR bmcs.at LIKE found_bmcs.address || ':%' OR bmcs.at LIKE '[' || found_bmcs.address || ']:%'))
             ORDER BY racks.id",
        )
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(|row| Ok((id(row.try_get("id")?)?, row.try_get::<i64, _>("try_factory")? != 0))).collect()
    }

    /// The BMCs found in a rack, in the order of their addresses as text, after one, at most `limit`.
    pub async fn found_bmcs(&self, rack: RackId, after: Option<&str>, limit: u32) -> Result<Vec<FoundBmc>, StoreError> {
        let rows = query("SELECT * FROM found_bmcs WHERE rack = $1 AND address > $2 ORDER BY address LIMIT $3")
            .bind(rack.to_string())
            .bind(after.unwrap_or_default())
            .bind(limit)
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(read).collect()
    }
}

impl Tx {
    /// Takes over that a BMC answers; whether it is new, or says something else of itself.
    pub async fn bmc_is_found(&mut self, now: Timestamp, rack: RackId, found: &Found) -> Result<bool, StoreError> {
        let key = FoundBmc::key(rack, found.address);
        let known = one(&mut self.inner, &key).await?;
        if let Some(known) = &known {
            let shown = known.found.fingerprint.as_ref().zip(found.fingerprint.as_ref());
            let is_other = shown.is_some_and(|(before, now)| before != now);
            query("UPDATE found_bmcs SET found = $2, last_seen = $3 WHERE id = $1")
                .bind(&key)
                .bind(json(found))
                .bind(micros(now))
                .execute(&mut self.inner)
                .await?;
            if is_other {
                self.meet_bmc_anew(&key).await?;
            }
            return Ok(known.found != *found);
        }
        let all: i64 = query_scalar("SELECT COUNT(*) FROM found_bmcs WHERE rack = $1")
            .bind(rack.to_string())
            .fetch_one(&mut self.inner)
            .await?;
        if all as usize >= MAX_FOUND {
            tracing::warn!(%rack, address = %found.address, "a rack tells of more BMCs than are kept");
            return Ok(false);
        }
        query(
            "INSERT INTO found_bmcs (id, rack, address, found, first_seen, last_seen, state, again)
             VALUES ($1, $2, $3, $4, $5, $5, $6, 0)",
        )
        .bind(&key)
        .bind(rack.to_string())
        .bind(found.address.to_string())
        .bind(json(found))
        .bind(micros(now))
        .bind(Intake::Found.word())
        .execute(&mut self.inner)
        .await?;
        Ok(true)
    }

    /// Forgets a BMC that does not answer any more; whether it was known.
    pub async fn bmc_is_gone(&mut self, rack: RackId, address: IpAddr) -> Result<bool, StoreError> {
        let gone = query("DELETE FROM found_bmcs WHERE id = $1")
            .bind(FoundBmc::key(rack, address))
            .execute(&mut self.inner)
            .await?;
        Ok(gone.rows_affected() > 0)
    }

    /// The BMC found at an address, if there is one.
    pub async fn found_bmc(&mut self, rack: RackId, address: IpAddr) -> Result<Option<FoundBmc>, StoreError> {
        one(&mut self.inner, &FoundBmc::key(rack, address)).await
    }

    /// Notes how far the intake of a BMC is.
    pub async fn note_found_bmc(&mut self, bmc: &FoundBmc) -> Result<(), StoreError> {
        query("UPDATE found_bmcs SET state = $2, detail = $3, met = $4, again = $5 WHERE id = $1")
            .bind(FoundBmc::key(bmc.rack, bmc.found.address))
            .bind(bmc.intake.word())
            .bind(&bmc.detail)
            .bind(bmc.met.as_ref().map(json))
            .bind(micros(bmc.again))
            .execute(&mut self.inner)
            .await?;
        Ok(())
    }

    /// Has what is known of the BMC at an address be found out anew: how it is logged in to is said
    /// now.
    pub(super) async fn expect_at(&mut self, rack: RackId, address: IpAddr) -> Result<(), StoreError> {
        self.meet_bmc_anew(&FoundBmc::key(rack, address)).await
    }

    async fn meet_bmc_anew(&mut self, key: &str) -> Result<(), StoreError> {
        query("UPDATE found_bmcs SET state = $2, detail = NULL, met = NULL, again = 0 WHERE id = $1")
            .bind(key)
            .bind(Intake::Found.word())
            .execute(&mut self.inner)
            .await?;
        Ok(())
    }

    /// Says whether BMCs of a rack that no manifest tells of are tried with what they come with from
    /// the factory. Those that did not take that before are tried once more.
    pub async fn set_try_factory(&mut self, rack: RackId, tries: bool) -> Result<(), StoreError> {
        self.watch("racks", rack).await?;
        query("UPDATE racks SET try_factory = $2 WHERE id = $1")
            .bind(rack.to_string())
            .bind(i64::from(tries))
            .execute(&mut self.inner)
            .await?;
        query("UPDATE found_bmcs SET state = $2, detail = NULL, again = 0 WHERE rack = $1 AND state = $3")
            .bind(rack.to_string())
            .bind(Intake::Found.word())
            .bind(Intake::Denied.word())
            .execute(&mut self.inner)
            .await?;
        Ok(())
    }
}

async fn one(executor: impl Into<Executor<'_>>, key: &str) -> Result<Option<FoundBmc>, StoreError> {
    let row = query("SELECT * FROM found_bmcs WHERE id = $1").bind(key).fetch_optional(executor).await?;
    row.as_ref().map(read).transpose()
}

fn read(row: &Row) -> Result<FoundBmc, StoreError> {
    Ok(FoundBmc {
        rack: id(row.try_get("rack")?)?,
        found: from_json("found BMC", row.try_get("found")?)?,
        first_seen: timestamp(row.try_get("first_seen")?)?,
        last_seen: timestamp(row.try_get("last_seen")?)?,
        intake: parsed("state of an intake", row.try_get("state")?)?,
        detail: row.try_get("detail")?,
        met: row.try_get::<Option<&str>, _>("met")?.map(|text| from_json("identity of a BMC", text)).transpose()?,
        again: timestamp(row.try_get("again")?)?,
    })
}

#[cfg(test)]
mod tests {
    use rackhand_common::bmc::{Access, Protocol};

    use super::*;
    use crate::store::tests::{Bench, On, at, on_both};

    fn found(last: u8, fingerprint: &str) -> Found {
        let fingerprint = Some(fingerprint.to_owned());
        Found { redfish: Some(443), fingerprint, ..Found::at([10, 0, 0, last].into()) }
    }

    async fn a_found_bmc_is_kept_until_it_is_gone_and_one_with_another_certificate_is_met_anew(on: On) {
        let bench = Bench::new(on).await;
        let mut tx = bench.store.begin().await.unwrap();
        assert!(tx.bmc_is_found(at(1), bench.rack, &found(5, "aa")).await.unwrap());
        assert!(!tx.bmc_is_found(at(2), bench.rack, &found(5, "aa")).await.unwrap());
        let mut known = tx.found_bmc(bench.rack, [10, 0, 0, 5].into()).await.unwrap().unwrap();
        assert_eq!((known.first_seen, known.last_seen, known.intake), (at(1), at(2), Intake::Found));
        known.intake = Intake::Met;
        known.detail = Some("nobody's".into());
        known.met = Some(MetBmc { identity: Identity::default(), fingerprint: None, by_factory: true });
        tx.note_found_bmc(&known).await.unwrap();
        assert_eq!(tx.found_bmc(bench.rack, [10, 0, 0, 5].into()).await.unwrap(), Some(known));
        assert!(tx.bmc_is_found(at(3), bench.rack, &found(5, "bb")).await.unwrap());
        let other = tx.found_bmc(bench.rack, [10, 0, 0, 5].into()).await.unwrap().unwrap();
        assert_eq!((other.intake, other.met, other.detail), (Intake::Found, None, None));
        tx.commit().await.unwrap();
        assert_eq!(bench.store.racks_with_found_bmcs().await.unwrap(), [(bench.rack, false)]);

        let mut tx = bench.store.begin().await.unwrap();
        assert!(tx.bmc_is_gone(bench.rack, [10, 0, 0, 5].into()).await.unwrap());
        assert!(!tx.bmc_is_gone(bench.rack, [10, 0, 0, 5].into()).await.unwrap());
        tx.commit().await.unwrap();
        assert!(bench.store.found_bmcs(bench.rack, None, 9).await.unwrap().is_empty());
    }

    async fn whoever_was_denied_is_tried_once_more_when_an_operator_says_so(on: On) {
        let bench = Bench::new(on).await;
        let mut tx = bench.store.begin().await.unwrap();
        tx.bmc_is_found(at(1), bench.rack, &found(5, "aa")).await.unwrap();
        let mut known = tx.found_bmc(bench.rack, [10, 0, 0, 5].into()).await.unwrap().unwrap();
        (known.intake, known.again) = (Intake::Denied, at(99));
        tx.note_found_bmc(&known).await.unwrap();
        tx.set_try_factory(bench.rack, true).await.unwrap();
        tx.commit().await.unwrap();
        let [known] = bench.store.found_bmcs(bench.rack, None, 9).await.unwrap().try_into().unwrap();
        assert_eq!((known.intake, known.again), (Intake::Found, Timestamp::UNIX_EPOCH));
        assert_eq!(bench.store.racks_with_found_bmcs().await.unwrap(), [(bench.rack, true)]);
    }

    async fn the_bmc_of_a_machine_is_not_looked_into(on: On) {
        let bench = Bench::new(on).await;
        let machine = bench.adopted(100).await;
        for (number, place) in ["10.0.0.5", "10.0.0.5:443", "10.0.0.55"].iter().enumerate() {
            let mut tx = bench.store.begin().await.unwrap();
            tx.bmc_is_found(at(1), bench.rack, &found(5, "aa")).await.unwrap();
            let access = Access {
                machine: machine.id,
                at: place.parse().unwrap(),
                protocol: Protocol::Redfish,
                user: "root".into(),
                password: "x".into(),
                fingerprint: None,
                mainboard: None,
            };
            tx.set_bmc(at(2), &machine, &access).await.unwrap();
            tx.commit().await.unwrap();
            let left = bench.store.racks_with_found_bmcs().await.unwrap();
            assert_eq!(left.len(), usize::from(number == 2), "{place}");
        }
    }

    on_both! {
        a_found_bmc_is_kept_until_it_is_gone_and_one_with_another_certificate_is_met_anew,
        whoever_was_denied_is_tried_once_more_when_an_operator_says_so,
        the_bmc_of_a_machine_is_not_looked_into,
    }
}
