//! Racks: a provisioning network and the revision of what is wanted of it.

use std::{
    collections::{BTreeSet, HashMap},
    net::Ipv4Addr,
};

use jiff::Timestamp;
use rackhand_common::{
    id::{RackId, SiteId},
    intent::Network,
};
use rackhand_controller_core::access::Sight;

use sqlx::AssertSqlSafe;

use super::{
    Store, StoreError, Tx,
    database::{Builder, Executor, Row, query, query_scalar},
    id, micros,
    places::Columns,
    taken, timestamp,
};

/// A rack as it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rack {
    /// Names it for programs.
    pub id: RackId,
    /// Names it for people; unique.
    pub name: String,
    /// The site it stands in.
    pub site: SiteId,
    /// That site's name.
    pub site_name: String,
    /// Its provisioning network.
    pub network: Network,
    /// Revision of its intent: counts up with every change of anything the intent tells.
    pub revision: u64,
    /// When it was made.
    pub created: Timestamp,
    /// Counts the changes of what is said about it here; its intent has a revision of its own.
    pub version: u64,
    /// When the database was restored from a backup, while the rack's agent has not reported
    /// since: until then nothing is allocated, erased or switched in it.
    pub restored: Option<Timestamp>,
}

/// Why a provisioning network cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsound {
    /// No room for a node and a machine.
    #[error("the subnet {0} has no room for machines: its prefix must be /29 or shorter")]
    TooSmall(ipnet::Ipv4Net),
    /// The address of the subnet itself or its broadcast address.
    #[error("{0} is the subnet's network or broadcast address and cannot be {1}")]
    NotAHost(Ipv4Addr, &'static str),
    /// Not in the subnet.
    #[error("{0} is not in the subnet and cannot be {1}")]
    Outside(Ipv4Addr, &'static str),
    /// First after last.
    #[error("the delegated range ends before it begins")]
    Backwards,
    /// An address of the range is somebody's.
    #[error("the delegated range contains {0}, which is {1}")]
    Occupied(Ipv4Addr, &'static str),
}

/// A provisioning network that was looked at: whatever is stored of a rack has passed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SoundNetwork(Network);

impl SoundNetwork {
    /// The network itself.
    pub fn network(&self) -> &Network {
        &self.0
    }
}

impl TryFrom<Network> for SoundNetwork {
    type Error = Unsound;

    fn try_from(network: Network) -> Result<Self, Unsound> {
        let subnet = network.node.trunc();
        if subnet.prefix_len() > 29 || subnet.prefix_len() < 8 {
            return Err(Unsound::TooSmall(subnet));
        }
        let host = |address: Ipv4Addr, role| {
            if !subnet.contains(&address) {
                return Err(Unsound::Outside(address, role));
            }
            if address == subnet.network() || address == subnet.broadcast() {
                return Err(Unsound::NotAHost(address, role));
            }
            Ok(())
        };
        let (first, last) = network.delegated;
        host(network.node.addr(), "the node's address")?;
        host(first, "the delegated range's first address")?;
        host(last, "the delegated range's last address")?;
        if first > last {
            return Err(Unsound::Backwards);
        }
        if let Some(gateway) = network.gateway {
            host(gateway, "the gateway")?;
        }
        let taken = [(Some(network.node.addr()), "the node's address"), (network.gateway, "the gateway")];
        for (address, role) in taken {
            if let Some(address) = address.filter(|address| (first..=last).contains(address)) {
                return Err(Unsound::Occupied(address, role));
            }
        }
        Ok(Self(network))
    }
}

const SELECT: &str = "SELECT racks.*, sites.name AS site_name FROM racks LEFT JOIN sites ON sites.id = racks.site";

impl Store {
    /// The rack with this id or name.
    pub async fn rack(&self, id_or_name: &str) -> Result<Rack, StoreError> {
        rack(&self.pool, id_or_name).await
    }

    /// Racks that can be seen, in the order they were made, after `after`, at most `limit`.
    pub async fn racks(&self, sight: &Sight, after: Option<RackId>, limit: u32) -> Result<Vec<Rack>, StoreError> {
        let mut query = Builder::new(format!("{SELECT} WHERE racks.id > "));
        query.push_bind(after.map(|id| id.to_string()).unwrap_or_default());
        let columns = Columns { site: Some("racks.site"), rack: Some("racks.id"), ..Columns::default() };
        columns.push(&mut query, sight);
        query.push(" ORDER BY racks.id LIMIT ").push_bind(limit);
        query.build().fetch_all(&self.pool).await?.iter().map(read).collect()
    }

    /// Names of these racks.
    pub async fn rack_names(
        &self,
        racks: impl IntoIterator<Item = RackId>,
    ) -> Result<HashMap<RackId, String>, StoreError> {
        let racks: BTreeSet<_> = racks.into_iter().collect();
        if racks.is_empty() {
            return Ok(HashMap::new());
        }
        let mut query = Builder::new("SELECT id, name FROM racks WHERE id IN ");
        query.push_list(racks.iter().map(ToString::to_string));
        let rows = query.build().fetch_all(&self.pool).await?;
        rows.iter().map(|row| Ok((id(row.try_get("id")?)?, row.try_get("name")?))).collect()
    }

    /// Whether a rack waits for its agent's report after a restore.
    pub async fn any_restored(&self) -> Result<bool, StoreError> {
        let restored: i64 =
            query_scalar("SELECT COUNT(*) FROM racks WHERE restored IS NOT NULL").fetch_one(&self.pool).await?;
        Ok(restored > 0)
    }

    /// The revision of a rack's intent.
    pub async fn rack_revision(&self, id: RackId) -> Result<u64, StoreError> {
        let revision: Option<i64> = query_scalar("SELECT revision FROM racks WHERE id = $1")
            .bind(id.to_string())
            .fetch_optional(&self.pool)
            .await?;
        revision.map(|revision| revision as u64).ok_or(StoreError::NotFound("rack"))
    }
}

impl Tx {
    /// The rack with this id or name.
    pub async fn rack(&mut self, id_or_name: &str) -> Result<Rack, StoreError> {
        rack(&mut self.inner, id_or_name).await
    }

    /// Makes a rack.
    pub async fn insert_rack(
        &mut self,
        now: Timestamp,
        name: &str,
        site: SiteId,
        network: &SoundNetwork,
    ) -> Result<RackId, StoreError> {
        let id = RackId::fresh();
        self.watch("racks", id).await?;
        query("INSERT INTO racks (id, name, network, revision, created, site) VALUES ($1, $2, $3, 1, $4, $5)")
            .bind(id.to_string())
            .bind(name)
            .bind(json(network.network()))
            .bind(micros(now))
            .bind(site.to_string())
            .execute(&mut self.inner)
            .await
            .map_err(taken("rack name"))?;
        Ok(id)
    }

    /// All racks wait for their agents' reports: the database was restored.
    pub async fn freeze_racks(&mut self, now: Timestamp) -> Result<u64, StoreError> {
        let frozen = query("UPDATE racks SET restored = $1").bind(micros(now)).execute(&mut self.inner).await?;
        Ok(frozen.rows_affected())
    }

    /// The rack's agent has reported, and has this revision on its disk: the next one is higher.
    pub async fn thaw_rack(&mut self, id: RackId, on_disk: u64) -> Result<(), StoreError> {
        query(
            "UPDATE racks
             SET restored = NULL, revision = CASE WHEN revision > $2 THEN revision ELSE $2 END + 1
             WHERE id = $1",
        )
        .bind(id.to_string())
        .bind(i64::try_from(on_disk).unwrap_or(0))
        .execute(&mut self.inner)
        .await?;
        Ok(())
    }

    /// Counts up the revision of a rack's intent; to be called in every transaction that
    /// changes anything the intent tells. Gives the new revision.
    pub async fn touch_rack(&mut self, id: RackId) -> Result<u64, StoreError> {
        let revision: Option<i64> =
            query_scalar("UPDATE racks SET revision = revision + 1 WHERE id = $1 RETURNING revision")
                .bind(id.to_string())
                .fetch_optional(&mut self.inner)
                .await?;
        revision.map(|revision| revision as u64).ok_or(StoreError::NotFound("rack"))
    }
}

async fn rack(executor: impl Into<Executor<'_>>, id_or_name: &str) -> Result<Rack, StoreError> {
    // An id is preferred, should a name look like one.
    let row = query(AssertSqlSafe(format!(
        "{SELECT} WHERE racks.id = $1 OR racks.name = $1 ORDER BY CASE WHEN racks.id = $1 THEN 0 ELSE 1 END LIMIT 1"
    )))
    .bind(id_or_name)
    .fetch_optional(executor)
    .await?
    .ok_or(StoreError::NotFound("rack"))?;
    read(&row)
}

fn read(row: &Row) -> Result<Rack, StoreError> {
    Ok(Rack {
        id: row.try_get::<&str, _>("id")?.parse().map_err(|e| StoreError::Damaged("id", Box::new(e)))?,
        name: row.try_get("name")?,
        site: id(row.try_get("site")?)?,
        site_name: row.try_get::<Option<String>, _>("site_name")?.unwrap_or_default(),
        network: serde_json::from_str(row.try_get("network")?)
            .map_err(|e| StoreError::Damaged("network", Box::new(e)))?,
        revision: row.try_get::<i64, _>("revision")? as u64,
        created: timestamp(row.try_get("created")?)?,
        version: row.try_get::<i64, _>("version")? as u64,
        restored: row.try_get::<Option<i64>, _>("restored")?.map(timestamp).transpose()?,
    })
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("a network always serializes")
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(script: &str, expect: Expect) {
        let mut out = String::new();
        for line in script.lines() {
            let mut words = line.split_whitespace();
            let mut next = || words.next().unwrap();
            let network = Network {
                node: next().parse().unwrap(),
                delegated: (next().parse().unwrap(), next().parse().unwrap()),
                gateway: words.next().map(|word| word.parse().unwrap()),
                dns: Vec::new(),
            };
            let verdict = match SoundNetwork::try_from(network) {
                Ok(_) => "sound".to_owned(),
                Err(unsound) => unsound.to_string(),
            };
            out += &format!("{line}: {verdict}\n");
        }
        expect.assert_eq(&out);
    }

    #[test]
    fn a_network_that_cannot_work_is_refused_with_the_reason() {
        check(
            "10.77.0.1/24 10.77.0.100 10.77.0.150 10.77.0.1
10.77.0.1/24 10.77.0.100 10.77.0.100
10.77.0.1/30 10.77.0.2 10.77.0.2
10.77.0.0/24 10.77.0.100 10.77.0.150
10.77.0.1/24 10.77.0.200 10.77.0.255
10.77.0.1/24 10.77.0.0 10.77.0.9
10.77.0.1/24 10.77.0.9 10.77.1.9
10.77.0.1/24 10.77.0.9 10.77.0.8
10.77.0.5/24 10.77.0.2 10.77.0.8
10.77.0.1/24 10.77.0.2 10.77.0.8 10.77.0.4
10.77.0.1/24 10.77.0.2 10.77.0.8 10.78.0.4",
            expect![[r#"
                10.77.0.1/24 10.77.0.100 10.77.0.150 10.77.0.1: sound
                10.77.0.1/24 10.77.0.100 10.77.0.100: sound
                10.77.0.1/30 10.77.0.2 10.77.0.2: the subnet 10.77.0.0/30 has no room for machines: its prefix must be /29 or shorter
                10.77.0.0/24 10.77.0.100 10.77.0.150: 10.77.0.0 is the subnet's network or broadcast address and cannot be the node's address
                10.77.0.1/24 10.77.0.200 10.77.0.255: 10.77.0.255 is the subnet's network or broadcast address and cannot be the delegated range's last address
                10.77.0.1/24 10.77.0.0 10.77.0.9: 10.77.0.0 is the subnet's network or broadcast address and cannot be the delegated range's first address
                10.77.0.1/24 10.77.0.9 10.77.1.9: 10.77.1.9 is not in the subnet and cannot be the delegated range's last address
                10.77.0.1/24 10.77.0.9 10.77.0.8: the delegated range ends before it begins
                10.77.0.5/24 10.77.0.2 10.77.0.8: the delegated range contains 10.77.0.5, which is the node's address
                10.77.0.1/24 10.77.0.2 10.77.0.8 10.77.0.4: the delegated range contains 10.77.0.4, which is the gateway
                10.77.0.1/24 10.77.0.2 10.77.0.8 10.78.0.4: 10.78.0.4 is not in the subnet and cannot be the gateway
            "#]],
        );
    }
}
