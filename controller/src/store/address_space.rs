//! VRFs, aggregates and pools: what there is to claim from.
//!
//! Invariants:
//! - Aggregates of one VRF are disjoint, and what a pool has is disjoint from what others have:
//!   an address is in one pool of its VRF at most.
//! - A pool has addresses of one family.

use jiff::Timestamp;
use rackhand_common::id::{AggregateId, OrganisationId, PoolId, ProjectId, RackId, SiteId};
use rackhand_controller_core::{
    access::{Grant, Place, Sight},
    ipam::{Family, Kind, Prefix, State, Usage},
};
use serde::{Deserialize, Serialize};

use sqlx::AssertSqlSafe;

use super::{
    Store, StoreError, Tx,
    database::{Builder, Executor, Row, query, query_scalar},
    from_json, id, json,
    machines::parsed,
    micros,
    places::Columns,
    prefixes::{Leaf, prefix, prefix_of},
    taken, timestamp,
};

/// A space of its own, in which an address is one place: what a router calls a VRF.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vrf {
    /// Its number here.
    pub(crate) number: i64,
    /// Its name.
    pub name: String,
    /// When it was created.
    pub created: Timestamp,
}

/// Address space of one origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aggregate {
    /// Its number here.
    pub(crate) number: i64,
    /// Its id.
    pub id: AggregateId,
    /// The VRF's name.
    pub vrf: String,
    /// Which addresses.
    pub prefix: Prefix,
    /// Whose it is, and by what right.
    pub source: Source,
    /// When it was created.
    pub created: Timestamp,
}

/// Whose an aggregate is, and by what right. Grows at the end only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Nobody's in particular: private use (RFC 1918, RFC 4193).
    Private,
    /// Ours, by a registry.
    Registry {
        /// Which, and under what name: as in `RIPE ORG-EX1-RIPE`.
        name: String,
    },
    /// A customer brought it.
    Customer {
        /// Who.
        name: String,
        /// Why we may use it.
        proof: Proof,
    },
}

/// What shows that a customer may have us announce their space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// What kind.
    pub kind: ProofKind,
    /// Where it is: the ROA's ASN and prefix, or the letter's file or ticket.
    pub reference: String,
    /// Whether somebody looked.
    pub state: ProofState,
}

/// A kind of proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProofKind {
    /// A route origin authorisation (RFC 9582).
    Roa,
    /// A letter of authorisation.
    Loa,
}

/// Whether somebody looked at a proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProofState {
    /// Nobody yet.
    Pending,
    /// It was found right.
    Verified,
    /// It was found wrong, or has ended.
    Refused,
}

impl Source {
    /// Whether pools may be made of it.
    pub fn may_be_used(&self) -> bool {
        !matches!(self, Self::Customer { proof, .. } if proof.state != ProofState::Verified)
    }
}

/// Addresses to claim from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Its number here.
    pub(crate) number: i64,
    /// Its id.
    pub id: PoolId,
    /// Its name.
    pub name: String,
    /// The number of its VRF here.
    pub(crate) vrf_number: i64,
    /// The VRF's name.
    pub vrf: String,
    /// The family of all of its addresses.
    pub family: Family,
    /// What they are for.
    pub kind: Kind,
    /// Whose machines may have them.
    pub within: Within,
    /// Seconds that released addresses rest.
    pub quarantine: u32,
    /// What for, in words.
    pub purpose: String,
    /// The blocks of it that each project gets for itself.
    pub blocks: Option<Blocks>,
    /// The number here of the pool that it is carved from.
    pub(crate) parent: Option<i64>,
    /// The name of that pool.
    pub parent_name: Option<String>,
    /// The project whose it is alone.
    pub project: Option<ProjectId>,
    organisation: Option<OrganisationId>,
    site: Option<SiteId>,
    /// Who may do what with its addresses.
    pub grants: Vec<Grant>,
    /// When it was created.
    pub created: Timestamp,
    /// Counts its changes.
    pub version: u64,
}

impl Pool {
    /// Where it stands.
    pub fn place(&self) -> Place {
        let rack = if let Within::Rack(rack) = self.within { Some(rack) } else { None };
        Place { organisation: self.organisation, project: self.project, site: self.site, rack }
    }
}

/// The blocks of a pool that each project gets for itself: the first with its first claim, another
/// when those it has are full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// The depth of each ([`Prefix::depth`]).
    pub depth: u8,
    /// How many a project gets at most.
    pub most: u32,
}

/// Where addresses may be, or are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Within {
    /// At any machine.
    Everywhere,
    /// At the machines of a site's racks.
    Site(SiteId),
    /// At a rack's machines.
    Rack(RackId),
}

impl Within {
    /// The rack's id.
    pub(super) fn rack(self) -> Option<String> {
        if let Self::Rack(rack) = self { Some(rack.to_string()) } else { None }
    }

    /// The site's id; none of a rack, whose site is told by the rack.
    pub(super) fn site(self) -> Option<String> {
        if let Self::Site(site) = self { Some(site.to_string()) } else { None }
    }
}

/// A pool to be created.
#[derive(Clone, Debug)]
pub struct NewPool<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its VRF.
    pub vrf: &'a Vrf,
    /// The family of all of its addresses.
    pub family: Family,
    /// What they are for.
    pub kind: Kind,
    /// Whose machines may have them.
    pub within: Within,
    /// Seconds that released addresses rest.
    pub quarantine: u32,
    /// What for, in words.
    pub purpose: &'a str,
    /// The blocks of it that each project gets for itself.
    pub blocks: Option<Blocks>,
    /// The pool that it is carved from, and the project whose it is alone.
    pub carved: Option<(&'a Pool, ProjectId)>,
    /// Who may do what with its addresses.
    pub grants: &'a [Grant],
}

impl Store {
    /// VRFs in the order of their names, those after `after`, at most `limit`.
    pub async fn vrfs(&self, after: &str, limit: u32) -> Result<Vec<Vrf>, StoreError> {
        query("SELECT * FROM vrfs WHERE name > $1 ORDER BY name LIMIT $2")
            .bind(after)
            .bind(limit)
            .fetch_all(&self.pool)
            .await?
            .iter()
            .map(read_vrf)
            .collect()
    }

    /// The VRF of this name.
    pub async fn vrf(&self, name: &str) -> Result<Vrf, StoreError> {
        vrf(&self.pool, name).await
    }

    /// Aggregates in the order of their creation, after `after`, at most `limit`.
    pub async fn aggregates(&self, after: Option<AggregateId>, limit: u32) -> Result<Vec<Aggregate>, StoreError> {
        query(AssertSqlSafe(format!("{AGGREGATES} WHERE id > $1 ORDER BY id LIMIT $2")))
            .bind(after.map(|id| id.to_string()).unwrap_or_default())
            .bind(limit)
            .fetch_all(&self.pool)
            .await?
            .iter()
            .map(read_aggregate)
            .collect()
    }

    /// Pools in the order of their creation, after `after`, at most `limit`: those that are shared,
    /// and those of projects that can be seen.
    pub async fn pools(&self, sight: &Sight, after: Option<PoolId>, limit: u32) -> Result<Vec<Pool>, StoreError> {
        let mut query = Builder::new(format!("{POOLS} WHERE id > "));
        query.push_bind(after.map(|id| id.to_string()).unwrap_or_default());
        query.push(" AND (project IS NULL OR 1 = 1");
        STANDS.push(&mut query, sight);
        query.push(") ORDER BY id LIMIT ").push_bind(limit);
        query.build().fetch_all(&self.pool).await?.iter().map(read_pool).collect()
    }

    /// The pool with this id or name.
    pub async fn pool(&self, id_or_name: &str) -> Result<Pool, StoreError> {
        pool(&self.pool, id_or_name).await
    }

    /// The pool with this number.
    pub(crate) async fn pool_numbered(&self, number: i64) -> Result<Pool, StoreError> {
        pool_numbered(&self.pool, number).await
    }

    /// A pool's prefixes, lowest first, at most `limit`.
    pub async fn pool_prefixes(&self, pool: &Pool, limit: u32) -> Result<Vec<Prefix>, StoreError> {
        pool_prefixes(&self.pool, pool, limit).await
    }

    /// How much of a pool is used. It counts the pool's leaves.
    pub async fn usage(&self, pool: &Pool) -> Result<Usage, StoreError> {
        let rows = query(
            "SELECT state, depth, COUNT(*) AS count FROM prefixes
             WHERE pool = $1 AND state IN ('free', 'claimed', 'reserved', 'quarantined') GROUP BY state, depth",
        )
        .bind(pool.number)
        .fetch_all(&self.pool)
        .await?;
        let mut usage = Usage::default();
        for row in rows {
            let state: State = parsed("state of a prefix", row.try_get("state")?)?;
            usage.add(state, row.try_get("depth")?, row.try_get::<i64, _>("count")?.unsigned_abs());
        }
        let blocks = query(
            "SELECT depth, COUNT(*) AS count FROM pool_prefixes
             WHERE pool IN (SELECT number FROM pools WHERE parent = $1) GROUP BY depth",
        );
        for row in blocks.bind(pool.number).fetch_all(&self.pool).await? {
            usage.add_blocks(row.try_get("depth")?, row.try_get::<i64, _>("count")?.unsigned_abs());
        }
        Ok(usage)
    }
}

impl Tx {
    /// The present for what is stored of addresses: `now`, or the latest that was stored when the
    /// clock went back since.
    pub(crate) async fn address_time(&mut self, now: Timestamp) -> Result<Timestamp, StoreError> {
        let latest = query_scalar(
            "UPDATE address_clock SET latest = CASE WHEN latest < $1 THEN $1 ELSE latest END RETURNING latest",
        )
        .bind(micros(now))
        .fetch_one(&mut self.inner)
        .await?;
        timestamp(latest)
    }

    /// A pool's prefixes, lowest first, at most `limit`.
    pub async fn pool_prefixes(&mut self, pool: &Pool, limit: u32) -> Result<Vec<Prefix>, StoreError> {
        pool_prefixes(&mut self.inner, pool, limit).await
    }

    /// The VRF of this name.
    pub async fn vrf(&mut self, name: &str) -> Result<Vrf, StoreError> {
        vrf(&mut self.inner, name).await
    }

    /// Creates a VRF.
    pub async fn insert_vrf(&mut self, now: Timestamp, name: &str) -> Result<Vrf, StoreError> {
        self.watch("vrfs", name).await?;
        let row = query("INSERT INTO vrfs (name, created) VALUES ($1, $2) RETURNING *")
            .bind(name)
            .bind(micros(now))
            .fetch_one(&mut self.inner)
            .await
            .map_err(taken("VRF name"))?;
        read_vrf(&row)
    }

    /// The aggregate with this id.
    pub async fn aggregate(&mut self, id: AggregateId) -> Result<Aggregate, StoreError> {
        let row = query(AssertSqlSafe(format!("{AGGREGATES} WHERE id = $1")))
            .bind(id.to_string())
            .fetch_optional(&mut self.inner)
            .await?
            .ok_or(StoreError::NotFound("aggregate"))?;
        read_aggregate(&row)
    }

    /// An aggregate of a VRF that shares addresses with `prefix`: the lowest.
    pub async fn aggregate_at(&mut self, vrf: &str, prefix: Prefix) -> Result<Option<Aggregate>, StoreError> {
        query(AssertSqlSafe(format!(
            "{AGGREGATES} WHERE vrf_name = $1 AND start <= $3 AND finish >= $2 ORDER BY start LIMIT 1"
        )))
        .bind(vrf)
        .bind(prefix.key().to_vec())
        .bind(prefix.last_key().to_vec())
        .fetch_optional(&mut self.inner)
        .await?
        .as_ref()
        .map(read_aggregate)
        .transpose()
    }

    /// Creates an aggregate. That it overlaps with no other of its VRF is for the caller to have
    /// looked at, in this transaction.
    pub async fn insert_aggregate(
        &mut self,
        now: Timestamp,
        vrf: &Vrf,
        prefix: Prefix,
        source: &Source,
    ) -> Result<AggregateId, StoreError> {
        let id = AggregateId::fresh();
        self.watch("aggregates", id).await?;
        let number = query_scalar(
            "INSERT INTO aggregates (id, vrf, start, depth, finish, source, created)
             VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING number",
        )
        .bind(id.to_string())
        .bind(vrf.number)
        .bind(prefix.key().to_vec())
        .bind(prefix.depth())
        .bind(prefix.last_key().to_vec())
        .bind(json(source))
        .bind(micros(now))
        .fetch_one(&mut self.inner)
        .await?;
        self.plant(number, prefix).await?;
        Ok(id)
    }

    /// Says otherwise whose an aggregate is.
    pub async fn set_source(&mut self, aggregate: &Aggregate, source: &Source) -> Result<(), StoreError> {
        self.watch("aggregates", aggregate.id).await?;
        query("UPDATE aggregates SET source = $2 WHERE number = $1")
            .bind(aggregate.number)
            .bind(json(source))
            .execute(&mut self.inner)
            .await?;
        Ok(())
    }

    /// Removes an aggregate of which no pool has anything; [`StoreError::Changed`] when one has.
    pub async fn delete_aggregate(&mut self, aggregate: &Aggregate) -> Result<(), StoreError> {
        self.watch("aggregates", aggregate.id).await?;
        self.uproot(aggregate.number, aggregate.prefix).await?;
        query("DELETE FROM aggregates WHERE number = $1").bind(aggregate.number).execute(&mut self.inner).await?;
        Ok(())
    }

    /// The pool with this id or name.
    pub async fn pool(&mut self, id_or_name: &str) -> Result<Pool, StoreError> {
        pool(&mut self.inner, id_or_name).await
    }

    /// The pool with this number.
    pub(crate) async fn pool_numbered(&mut self, number: i64) -> Result<Pool, StoreError> {
        pool_numbered(&mut self.inner, number).await
    }

    /// Creates a pool without addresses.
    pub async fn insert_pool(&mut self, now: Timestamp, new: &NewPool<'_>) -> Result<Pool, StoreError> {
        let id = PoolId::fresh().to_string();
        self.watch("pools", &id).await?;
        query(
            "INSERT INTO pools (id, name, vrf, family, kind, rack, quarantine, purpose, created,
                                block, blocks, parent, project, grants, site)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)",
        )
        .bind(&id)
        .bind(new.name)
        .bind(new.vrf.number)
        .bind(if new.family == Family::V4 { 4 } else { 6 })
        .bind(new.kind.to_string())
        .bind(new.within.rack())
        .bind(new.quarantine)
        .bind(new.purpose)
        .bind(micros(now))
        .bind(new.blocks.map(|blocks| blocks.depth))
        .bind(new.blocks.map_or(0, |blocks| blocks.most))
        .bind(new.carved.map(|(parent, _)| parent.number))
        .bind(new.carved.map(|(_, project)| project.to_string()))
        .bind(json(&new.grants))
        .bind(new.within.site())
        .execute(&mut self.inner)
        .await
        .map_err(taken("pool name"))?;
        self.pool(&id).await
    }

    /// The pool of a project's blocks of this one, once it has some.
    pub(crate) async fn blocks_of(&mut self, pool: &Pool, project: ProjectId) -> Result<Option<Pool>, StoreError> {
        query(AssertSqlSafe(format!("{POOLS} WHERE parent = $1 AND project = $2")))
            .bind(pool.number)
            .bind(project.to_string())
            .fetch_optional(&mut self.inner)
            .await?
            .as_ref()
            .map(read_pool)
            .transpose()
    }

    /// The pools that are a project's alone.
    pub async fn pools_of(&mut self, project: ProjectId) -> Result<Vec<Pool>, StoreError> {
        query(AssertSqlSafe(format!("{POOLS} WHERE project = $1 ORDER BY id")))
            .bind(project.to_string())
            .fetch_all(&mut self.inner)
            .await?
            .iter()
            .map(read_pool)
            .collect()
    }

    /// Whether a pool has this name.
    pub(crate) async fn is_pool(&mut self, name: &str) -> Result<bool, StoreError> {
        let row = query("SELECT 1 FROM pools WHERE name = $1").bind(name).fetch_optional(&mut self.inner).await?;
        Ok(row.is_some())
    }

    /// How many prefixes a pool has.
    pub(crate) async fn count_prefixes(&mut self, pool: &Pool) -> Result<u32, StoreError> {
        let count: i64 = query_scalar("SELECT COUNT(*) FROM pool_prefixes WHERE pool = $1")
            .bind(pool.number)
            .fetch_one(&mut self.inner)
            .await?;
        Ok(count.try_into().unwrap_or(u32::MAX))
    }

    /// Writes a pool's name, quarantine, purpose and grants, and counts that up.
    pub async fn update_pool(&mut self, pool: &mut Pool) -> Result<(), StoreError> {
        self.watch("pools", pool.id).await?;
        query(
            "UPDATE pools SET name = $2, quarantine = $3, purpose = $4, grants = $5, version = version + 1
             WHERE number = $1",
        )
        .bind(pool.number)
        .bind(&pool.name)
        .bind(pool.quarantine)
        .bind(&pool.purpose)
        .bind(json(&pool.grants))
        .execute(&mut self.inner)
        .await
        .map_err(taken("pool name"))?;
        pool.version += 1;
        Ok(())
    }

    /// Gives a pool a prefix of an aggregate or of another pool, which is in the free leaf `free`.
    pub(crate) async fn add_to_pool(
        &mut self,
        now: Timestamp,
        pool: &Pool,
        free: Leaf,
        prefix: Prefix,
    ) -> Result<(), StoreError> {
        self.take(free, prefix, State::Free).await?;
        self.hand_over(free.aggregate, prefix, free.pool, Some(pool.number)).await?;
        self.watch("pools", pool.id).await?;
        query("UPDATE pools SET extended = extended + 1, version = version + 1 WHERE number = $1")
            .bind(pool.number)
            .execute(&mut self.inner)
            .await?;
        query("INSERT INTO pool_prefixes (pool, start, depth, aggregate) VALUES ($1, $2, $3, $4)")
            .bind(pool.number)
            .bind(prefix.key().to_vec())
            .bind(prefix.depth())
            .bind(free.aggregate)
            .execute(&mut self.inner)
            .await?;
        if pool.project.is_some() {
            self.insert_project_block(now, pool, prefix).await?;
        }
        Ok(())
    }

    /// Which of a pool's prefixes `within` is in, with the aggregate's number.
    pub(crate) async fn pool_prefix(&mut self, pool: i64, within: Prefix) -> Result<Option<(i64, Prefix)>, StoreError> {
        let row = query(
            "SELECT start, depth, aggregate FROM pool_prefixes WHERE pool = $1 AND start <= $2
             ORDER BY start DESC LIMIT 1",
        )
        .bind(pool)
        .bind(within.key().to_vec())
        .fetch_optional(&mut self.inner)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let root = prefix(&row)?;
        Ok(root.contains(within).then_some((row.try_get("aggregate")?, root)))
    }

    /// Removes a pool and gives its space back; [`StoreError::Changed`] when something of it is
    /// not free.
    pub async fn delete_pool(&mut self, now: Timestamp, pool: &Pool) -> Result<(), StoreError> {
        self.watch("pools", pool.id).await?;
        let rows = query(
            "SELECT pool_prefixes.*, aggregates.start AS root, aggregates.depth AS root_depth FROM pool_prefixes
             JOIN aggregates ON aggregates.number = pool_prefixes.aggregate WHERE pool = $1",
        )
        .bind(pool.number)
        .fetch_all(&mut self.inner)
        .await?;
        let of_others: i64 = query_scalar("SELECT COUNT(*) FROM pools WHERE parent = $1")
            .bind(pool.number)
            .fetch_one(&mut self.inner)
            .await?;
        if of_others > 0 {
            return Err(StoreError::Changed("pool"));
        }
        for row in rows {
            let (aggregate, prefix): (i64, _) = (row.try_get("aggregate")?, prefix(&row)?);
            self.hand_over(aggregate, prefix, Some(pool.number), pool.parent).await?;
            let root = match pool.parent {
                Some(parent) => {
                    let root = self.pool_prefix(parent, prefix).await?;
                    root.ok_or(StoreError::NotFound("prefix of a pool"))?.1
                }
                None => prefix_of(row.try_get("root")?, row.try_get("root_depth")?)?,
            };
            let leaf = self.leaf(aggregate, prefix).await?;
            self.set_free(leaf, root).await?;
        }
        if pool.project.is_some() {
            self.end_project_blocks(now, pool).await?;
        }
        for statement in ["DELETE FROM pool_prefixes WHERE pool = $1", "DELETE FROM pools WHERE number = $1"] {
            query(statement).bind(pool.number).execute(&mut self.inner).await?;
        }
        Ok(())
    }
}

const AGGREGATES: &str = "SELECT * FROM (SELECT aggregates.*, vrfs.name AS vrf_name FROM aggregates
    JOIN vrfs ON vrfs.number = aggregates.vrf) AS found";

pub(super) const POOLS: &str = "SELECT * FROM (SELECT pools.*, vrfs.name AS vrf_name, parents.name AS parent_name,
    COALESCE(racks.site, pools.site) AS its_site, projects.organisation AS organisation
    FROM pools JOIN vrfs ON vrfs.number = pools.vrf LEFT JOIN pools AS parents ON parents.number = pools.parent
    LEFT JOIN racks ON racks.id = pools.rack LEFT JOIN projects ON projects.id = pools.project) AS found";

/// Where pools stand. One of a rack or a site can be seen wherever pools can: its addresses are claimed from
/// other places too.
pub(super) const STANDS: Columns = Columns {
    organisation: Some("(SELECT organisation FROM projects WHERE projects.id = found.project)"),
    project: Some("found.project"),
    site: None,
    rack: None,
};

async fn vrf(executor: impl Into<Executor<'_>>, name: &str) -> Result<Vrf, StoreError> {
    let row = query("SELECT * FROM vrfs WHERE name = $1").bind(name).fetch_optional(executor).await?;
    read_vrf(&row.ok_or(StoreError::NotFound("VRF"))?)
}

async fn pool(executor: impl Into<Executor<'_>>, id_or_name: &str) -> Result<Pool, StoreError> {
    // A name cannot look like an id, so one query serves both.
    let row = query(AssertSqlSafe(format!("{POOLS} WHERE id = $1 OR name = $1")))
        .bind(id_or_name)
        .fetch_optional(executor)
        .await?
        .ok_or(StoreError::NotFound("pool"))?;
    read_pool(&row)
}

async fn pool_numbered(executor: impl Into<Executor<'_>>, number: i64) -> Result<Pool, StoreError> {
    let row = query(AssertSqlSafe(format!("{POOLS} WHERE number = $1"))).bind(number).fetch_optional(executor).await?;
    read_pool(&row.ok_or(StoreError::NotFound("pool"))?)
}

async fn pool_prefixes(executor: impl Into<Executor<'_>>, pool: &Pool, limit: u32) -> Result<Vec<Prefix>, StoreError> {
    query("SELECT start, depth FROM pool_prefixes WHERE pool = $1 ORDER BY start LIMIT $2")
        .bind(pool.number)
        .bind(limit)
        .fetch_all(executor)
        .await?
        .iter()
        .map(prefix)
        .collect()
}

fn read_vrf(row: &Row) -> Result<Vrf, StoreError> {
    Ok(Vrf { number: row.try_get("number")?, name: row.try_get("name")?, created: timestamp(row.try_get("created")?)? })
}

fn read_aggregate(row: &Row) -> Result<Aggregate, StoreError> {
    Ok(Aggregate {
        number: row.try_get("number")?,
        id: id(row.try_get("id")?)?,
        vrf: row.try_get("vrf_name")?,
        prefix: prefix(row)?,
        source: from_json("source of an aggregate", row.try_get("source")?)?,
        created: timestamp(row.try_get("created")?)?,
    })
}

pub(super) fn read_pool(row: &Row) -> Result<Pool, StoreError> {
    let most = row.try_get("blocks")?;
    let optional = |column| row.try_get::<Option<&str>, _>(column);
    Ok(Pool {
        number: row.try_get("number")?,
        id: id(row.try_get("id")?)?,
        name: row.try_get("name")?,
        vrf_number: row.try_get("vrf")?,
        vrf: row.try_get("vrf_name")?,
        family: if row.try_get::<i64, _>("family")? == 4 { Family::V4 } else { Family::V6 },
        kind: parsed("kind of a pool", row.try_get("kind")?)?,
        within: match (optional("rack")?, optional("site")?) {
            (Some(rack), _) => Within::Rack(id(rack)?),
            (None, Some(site)) => Within::Site(id(site)?),
            (None, None) => Within::Everywhere,
        },
        quarantine: row.try_get("quarantine")?,
        purpose: row.try_get("purpose")?,
        blocks: row.try_get::<Option<u8>, _>("block")?.map(|depth| Blocks { depth, most }),
        parent: row.try_get("parent")?,
        parent_name: row.try_get("parent_name")?,
        project: row.try_get::<Option<&str>, _>("project")?.map(id).transpose()?,
        organisation: row.try_get::<Option<&str>, _>("organisation")?.map(id).transpose()?,
        site: row.try_get::<Option<&str>, _>("its_site")?.map(id).transpose()?,
        grants: from_json("grants of a pool", row.try_get("grants")?)?,
        created: timestamp(row.try_get("created")?)?,
        version: row.try_get::<i64, _>("version")? as u64,
    })
}
