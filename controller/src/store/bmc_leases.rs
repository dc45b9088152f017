//! Cards on management networks that were given an address by their rack's node, and which of them are
//! the BMC of a machine that is to be followed to another address.
//!
//! Invariants:
//! - At most [`MAX_FOUND`] are kept of one rack: the one that was told longest ago goes.
//! - By what a machine's BMC was known is kept from when its card moved on: what was found where it was
//!   goes.

use std::net::{IpAddr, Ipv4Addr};

use jiff::Timestamp;
use rackhand_common::{
    bmc::{Found, MAX_FOUND, lease::BmcLease},
    id::{MachineId, RackId},
    machine::Mac,
};
use serde::{Deserialize, Serialize};

use super::{
    Store, StoreError, Tx,
    database::{Executor, Row, query},
    from_json, id, json, micros, timestamp,
};

/// A card that was given an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredLease {
    /// The rack whose node gave it.
    pub rack: RackId,
    /// Which card, and what it says of itself.
    pub lease: BmcLease,
    /// When it was told first, by the node's clock.
    pub first_seen: Timestamp,
    /// When it was told last, by the node's clock.
    pub last_seen: Timestamp,
    /// The machine whose BMC it was at another address, while that is reached there.
    pub moved: Option<Moved>,
}

/// A machine's BMC whose card was given another address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// The machine.
    pub machine: MachineId,
    /// Where it is still reached.
    pub from: Ipv4Addr,
    /// SHA-256 of the certificate that it was known by, in hexadecimal.
    pub fingerprint: Option<String>,
    /// Whether it did not take the present password when that was tried last, and may have the next one.
    #[serde(default)]
    pub is_next_first: bool,
}

fn key(rack: RackId, mac: Mac) -> String {
    format!("{rack}/{mac}")
}

impl Store {
    /// The leases of a rack, the latest first, at most [`MAX_FOUND`].
    pub async fn bmc_leases(&self, rack: RackId) -> Result<Vec<StoredLease>, StoreError> {
        let rows = query("SELECT * FROM bmc_leases WHERE rack = $1 ORDER BY last_seen DESC, id")
            .bind(rack.to_string())
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(read).collect()
    }
}

impl Tx {
    /// Takes over that a card was given an address; whether that is new, or it says something else of itself.
    pub async fn bmc_is_leased(&mut self, now: Timestamp, rack: RackId, lease: &BmcLease) -> Result<bool, StoreError> {
        let key = key(rack, lease.card.mac);
        let known = one(&mut self.inner, &key).await?;
        let lease = &known.as_ref().map_or_else(|| lease.clone(), |known| lease.clone().after(&known.lease));
        let moved = match &known {
            Some(known) if known.lease.address == lease.address => known.moved.clone(),
            Some(known) => {
                let before = known.moved.as_ref();
                let from = before.map_or(known.lease.address, |moved| moved.from);
                self.silent_is_gone(rack, known.lease.address).await?;
                let moved = self.moved_from(rack, from).await?.filter(|_| from != lease.address);
                let is_same = |moved: &Moved| before.is_some_and(|before| before.machine == moved.machine);
                moved.map(|moved| if is_same(&moved) { before.cloned().unwrap_or(moved) } else { moved })
            }
            None => None,
        };
        query(
            "INSERT INTO bmc_leases (id, rack, address, lease, first_seen, last_seen, moved)
             VALUES ($1, $2, $3, $4, $5, $5, $6)
             ON CONFLICT (id) DO UPDATE SET address = $3, lease = $4, last_seen = $5, moved = $6",
        )
        .bind(&key)
        .bind(rack.to_string())
        .bind(lease.address.to_string())
        .bind(json(lease))
        .bind(micros(now))
        .bind(moved.as_ref().map(json))
        .execute(&mut self.inner)
        .await?;
        query(
            "DELETE FROM bmc_leases WHERE rack = $1 AND id NOT IN
                 (SELECT id FROM bmc_leases WHERE rack = $1 ORDER BY last_seen DESC, id LIMIT $2)",
        )
        .bind(rack.to_string())
        .bind(MAX_FOUND as i64)
        .execute(&mut self.inner)
        .await?;
        // Listed before it answers.
        if self.found_bmc(rack, lease.address.into()).await?.is_none() {
            self.bmc_is_found(now, rack, &Found::at(lease.address.into())).await?;
        }
        Ok(known.is_none_or(|known| known.lease != *lease))
    }

    /// The machine whose BMC is reached at an address, and by what that is known.
    async fn moved_from(&mut self, rack: RackId, from: Ipv4Addr) -> Result<Option<Moved>, StoreError> {
        let bmcs = self.bmcs_of(rack).await?;
        let address = IpAddr::from(from);
        let Some(bmc) = bmcs.into_iter().find(|bmc| bmc.access.at.address == address) else { return Ok(None) };
        let fingerprint = match bmc.access.fingerprint {
            Some(fingerprint) => Some(fingerprint),
            None => self.found_bmc(rack, address).await?.and_then(|found| found.found.fingerprint),
        };
        Ok(Some(Moved { machine: bmc.access.machine, from, fingerprint, is_next_first: false }))
    }

    /// Forgets what was listed at an address before it answered.
    async fn silent_is_gone(&mut self, rack: RackId, address: Ipv4Addr) -> Result<(), StoreError> {
        let found = self.found_bmc(rack, address.into()).await?;
        if found.is_some_and(|found| !found.found.is_any()) {
            self.bmc_is_gone(rack, address.into()).await?;
        }
        Ok(())
    }

    /// Notes how it is with the machine's BMC that a card was elsewhere.
    pub async fn note_moved_bmc(&mut self, lease: &StoredLease, moved: Option<&Moved>) -> Result<(), StoreError> {
        query("UPDATE bmc_leases SET moved = $3 WHERE id = $1 AND address = $2")
            .bind(key(lease.rack, lease.lease.card.mac))
            .bind(lease.lease.address.to_string())
            .bind(moved.map(json))
            .execute(&mut self.inner)
            .await?;
        Ok(())
    }
}

async fn one(executor: impl Into<Executor<'_>>, key: &str) -> Result<Option<StoredLease>, StoreError> {
    let row = query("SELECT * FROM bmc_leases WHERE id = $1").bind(key).fetch_optional(executor).await?;
    row.as_ref().map(read).transpose()
}

fn read(row: &Row) -> Result<StoredLease, StoreError> {
    let moved = row.try_get::<Option<&str>, _>("moved")?;
    Ok(StoredLease {
        rack: id(row.try_get("rack")?)?,
        lease: from_json("lease of a BMC", row.try_get("lease")?)?,
        first_seen: timestamp(row.try_get("first_seen")?)?,
        last_seen: timestamp(row.try_get("last_seen")?)?,
        moved: moved.map(|text| from_json("move of a BMC", text)).transpose()?,
    })
}

#[cfg(test)]
mod tests {
    use rackhand_common::bmc::{Access, Protocol, lease::Card};

    use super::*;
    use crate::store::tests::{Bench, On, at, on_both};

    fn lease(card: u8, last: u8) -> BmcLease {
        let mac = Mac([2, 0, 0, 0, 0, card]);
        let card = Card { mac, hostname: Some("bmc".into()), vendor_class: None, client_id: None };
        BmcLease { card, address: Ipv4Addr::new(10, 0, 0, last), known_by: None }
    }

    async fn a_bmc_whose_card_moves_is_followed_from_where_its_machine_has_it(on: On) {
        let bench = Bench::new(on).await;
        let machine = bench.adopted(100).await;
        let mut tx = bench.store.begin().await.unwrap();
        assert!(tx.bmc_is_leased(at(1), bench.rack, &lease(1, 5)).await.unwrap());
        // As boot tells it when it starts.
        let mut bare = lease(1, 5);
        bare.card.hostname = None;
        assert!(!tx.bmc_is_leased(at(2), bench.rack, &bare).await.unwrap());
        let listed = tx.found_bmc(bench.rack, [10, 0, 0, 5].into()).await.unwrap().unwrap();
        assert!(!listed.found.is_any());
        // Nobody's BMC is followed nowhere, and what never answered is listed no more.
        assert!(tx.bmc_is_leased(at(3), bench.rack, &lease(1, 6)).await.unwrap());
        assert!(tx.found_bmc(bench.rack, [10, 0, 0, 5].into()).await.unwrap().is_none());
        let shown = Found { redfish: Some(443), fingerprint: Some("aa".into()), ..Found::at([10, 0, 0, 6].into()) };
        tx.bmc_is_found(at(4), bench.rack, &shown).await.unwrap();
        let access = Access {
            machine: machine.id,
            at: "10.0.0.6:443".parse().unwrap(),
            protocol: Protocol::Redfish,
            user: "root".into(),
            password: "x".into(),
            fingerprint: None,
            mainboard: None,
        };
        tx.set_bmc(at(5), &machine, &access).await.unwrap();
        // Twice, before anybody looked.
        for last in [7, 8] {
            tx.bmc_is_leased(at(6), bench.rack, &lease(1, last)).await.unwrap();
        }
        tx.commit().await.unwrap();
        let [known] = bench.store.bmc_leases(bench.rack).await.unwrap().try_into().unwrap();
        let moved = Moved {
            machine: machine.id,
            from: Ipv4Addr::new(10, 0, 0, 6),
            fingerprint: Some("aa".into()),
            is_next_first: false,
        };
        assert_eq!((known.lease.address, &known.moved), (Ipv4Addr::new(10, 0, 0, 8), &Some(moved)));
        assert_eq!((known.first_seen, known.last_seen), (at(1), at(6)));
        let mut tx = bench.store.begin().await.unwrap();
        tx.bmc_is_leased(at(7), bench.rack, &lease(1, 6)).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(bench.store.bmc_leases(bench.rack).await.unwrap()[0].moved, None);
    }

    on_both! { a_bmc_whose_card_moves_is_followed_from_where_its_machine_has_it }
}
