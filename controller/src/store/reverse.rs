//! Names of addresses, by which reverse DNS answers.
//!
//! Invariants:
//! - An address has a name only while a claim holds it: the release that ends the claim takes its
//!   names away in the same transaction.

use std::net::IpAddr;

use jiff::Timestamp;
use rackhand_common::id::ClaimId;
use rackhand_controller_core::ipam::{HostName, Prefix};

use super::{
    Claim, Store, StoreError, Tx, Vrf,
    database::{Executor, Row, query},
    id,
    machines::parsed,
    micros,
    prefixes::prefix_of,
    timestamp,
};

/// The name of an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReverseName {
    /// Of which address.
    pub address: IpAddr,
    /// The claim that holds it.
    pub claim: ClaimId,
    /// The name.
    pub name: HostName,
    /// Since when.
    pub changed: Timestamp,
}

impl Store {
    /// The name of an address.
    pub async fn reverse_name(&self, vrf: &Vrf, address: IpAddr) -> Result<ReverseName, StoreError> {
        reverse_name(&self.pool, vrf, address).await
    }

    /// Names of the addresses of a prefix, lowest first, at most `limit`.
    pub async fn reverse_names(&self, vrf: &Vrf, within: Prefix, limit: u32) -> Result<Vec<ReverseName>, StoreError> {
        query("SELECT * FROM reverse_names WHERE vrf = $1 AND start BETWEEN $2 AND $3 ORDER BY start LIMIT $4")
            .bind(vrf.number)
            .bind(within.key().to_vec())
            .bind(within.last_key().to_vec())
            .bind(limit)
            .fetch_all(&self.pool)
            .await?
            .iter()
            .map(read)
            .collect()
    }
}

impl Tx {
    /// The name of an address.
    pub async fn reverse_name(&mut self, vrf: &Vrf, address: IpAddr) -> Result<ReverseName, StoreError> {
        reverse_name(&mut self.inner, vrf, address).await
    }

    /// Gives an address of a claim a name, or takes it away.
    pub async fn set_reverse_name(
        &mut self,
        now: Timestamp,
        vrf: &Vrf,
        claim: &Claim,
        address: IpAddr,
        name: Option<&HostName>,
    ) -> Result<(), StoreError> {
        let id = key(vrf, address);
        self.watch("reverse_names", &id).await?;
        query("DELETE FROM reverse_names WHERE id = $1").bind(&id).execute(&mut self.inner).await?;
        let Some(name) = name else { return Ok(()) };
        let start = Prefix::single(address).map_err(|_| StoreError::NotFound("address"))?;
        query("INSERT INTO reverse_names (id, vrf, start, claim, name, changed) VALUES ($1, $2, $3, $4, $5, $6)")
            .bind(&id)
            .bind(vrf.number)
            .bind(start.key().to_vec())
            .bind(claim.id.to_string())
            .bind(name.as_str())
            .bind(micros(now))
            .execute(&mut self.inner)
            .await?;
        Ok(())
    }

    /// Takes the names of a claim's addresses away.
    pub(super) async fn delete_reverse_names(&mut self, claim: ClaimId) -> Result<(), StoreError> {
        query("DELETE FROM reverse_names WHERE claim = $1").bind(claim.to_string()).execute(&mut self.inner).await?;
        Ok(())
    }
}

/// What the row of an address is called.
fn key(vrf: &Vrf, address: IpAddr) -> String {
    format!("{}/{address}", vrf.name)
}

async fn reverse_name(
    executor: impl Into<Executor<'_>>,
    vrf: &Vrf,
    address: IpAddr,
) -> Result<ReverseName, StoreError> {
    let row =
        query("SELECT * FROM reverse_names WHERE id = $1").bind(key(vrf, address)).fetch_optional(executor).await?;
    read(&row.ok_or(StoreError::NotFound("name of this address"))?)
}

fn read(row: &Row) -> Result<ReverseName, StoreError> {
    Ok(ReverseName {
        address: prefix_of(row.try_get("start")?, 128)?.first(),
        claim: id(row.try_get("claim")?)?,
        name: parsed("name of an address", row.try_get("name")?)?,
        changed: timestamp(row.try_get("changed")?)?,
    })
}
