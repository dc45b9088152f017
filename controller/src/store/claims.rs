//! Claims: addresses and blocks that are somebody's, and those that were.
//!
//! Invariants:
//! - A claim's row stays after its release and is the history: it is written in the transaction
//!   in which its prefix changes, and never afterwards.
//! - A claim that moves keeps its id. Who held it until then is a row of its own, which ends at the
//!   instant at which the claim's begins: rows of one prefix follow each other without a gap.
//! - At any time an address is in one claim of its VRF at most.

use std::{collections::HashMap, fmt, net::IpAddr};

use jiff::Timestamp;
use rackhand_common::{
    id::{ClaimId, MachineId, PoolId, ProjectId, RackId},
    machine::Mac,
};
use rackhand_controller_core::{
    access::{Grant, Sight},
    ipam::Prefix,
};

use super::{
    Announcement, Pool, Present, Store, StoreError, Tx, Vrf, Within,
    database::{Builder, Executor, Row, in_powers_of_two, query, query_scalar},
    from_json, id, json,
    machines::parsed,
    micros,
    places::Columns,
    prefixes::prefix,
    timestamp,
};

/// `until` of what has no end yet.
pub(super) const STILL: i64 = i64::MAX;

/// An address or a block that is, or was, somebody's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Its id.
    pub id: ClaimId,
    /// The number of the aggregate it is in.
    pub(crate) aggregate: i64,
    /// The number of the pool it is from.
    pub(crate) pool_number: i64,
    /// The pool's name when it was claimed.
    pub pool: String,
    /// Which addresses.
    pub prefix: Prefix,
    /// Whether it is nobody's, and not to be handed out.
    pub reserved: bool,
    /// Who holds it.
    pub holder: Holder,
    /// The project it is given to.
    pub project: Option<ProjectId>,
    /// What for, in words.
    pub purpose: String,
    /// Who may do what with its addresses; `None` as its pool says.
    pub grants: Option<Vec<Grant>>,
    /// Who claimed it.
    pub claimed_by: String,
    /// Who released it.
    pub released_by: Option<String>,
    /// Since when.
    pub since: Timestamp,
    /// Until when; `None` while it is.
    pub until: Option<Timestamp>,
    /// Counts its changes.
    pub version: u64,
}

impl Claim {
    /// The address of the other side of a machine's link (RFC 3021, RFC 6164): of a block of two, the even
    /// one.
    pub fn gateway(&self) -> Option<IpAddr> {
        let is_link = self.prefix.size() == 2 && self.holder.machine.is_some();
        is_link.then(|| self.prefix.first())
    }
}

/// Who holds an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The machine.
    pub machine: Option<MachineId>,
    /// The machine's port, by its card.
    pub mac: Option<Mac>,
    /// The machine's name when it was claimed, or that of what else holds it.
    pub name: String,
}

/// Its name, with the port.
impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mac {
            Some(mac) => write!(f, "{} {mac}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// What is written of a claim when it is made.
#[derive(Clone, Debug)]
pub(crate) struct ClaimRow<'a> {
    pub(crate) reserved: bool,
    pub(crate) holder: &'a Holder,
    pub(crate) project: Option<ProjectId>,
    /// Where it is.
    pub(crate) within: Within,
    pub(crate) purpose: &'a str,
    pub(crate) by: &'a str,
}

/// Which claims are asked for: those that meet all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClaimFilter {
    /// That can be seen.
    pub sight: Sight,
    /// Given to this project.
    pub project: Option<ProjectId>,
    /// From this pool.
    pub pool: Option<PoolId>,
    /// Of this machine.
    pub machine: Option<MachineId>,
    /// Held under this name.
    pub name: Option<String>,
    /// That contain this.
    pub containing: Option<Prefix>,
}

impl Store {
    /// The claim with this id, also when it was released.
    pub async fn claim(&self, id: ClaimId) -> Result<Claim, StoreError> {
        claim(&self.pool, id).await
    }

    /// Claims that were not released, in the order they were made, after `after`, at most `limit`.
    pub async fn claims(
        &self,
        filter: &ClaimFilter,
        after: Option<ClaimId>,
        limit: u32,
    ) -> Result<Vec<Claim>, StoreError> {
        let after = after.map(|id| id.to_string()).unwrap_or_default();
        let mut query = Builder::new("");
        if let Some(containing) = filter.containing {
            candidates(&mut query, containing);
            query.push("SELECT claims.* FROM candidate CROSS JOIN claims");
            query.push(
                " WHERE claims.start = candidate.start AND claims.depth = candidate.depth
                  AND claims.vrf IN (SELECT number FROM vrfs)",
            );
            filter.push(&mut query, &after);
            STANDS.push(&mut query, &filter.sight);
            query.push(" ORDER BY claims.id LIMIT ").push_bind(limit);
        } else {
            query.push("SELECT claims.* FROM claims");
            let reach = self.reach(&filter.sight).await?;
            reach.push(&mut query, "claims", &["project", "rack", "site"], "claims.id", limit, |query| {
                filter.push(query, &after)
            });
        }
        query.build().fetch_all(&self.pool).await?.iter().map(read).collect()
    }

    /// What held an address at a time: one claim at most.
    pub async fn holder(
        &self,
        sight: &Sight,
        vrf: &Vrf,
        address: Prefix,
        at: Timestamp,
    ) -> Result<Option<Claim>, StoreError> {
        // Claims of one prefix follow each other, so that of those that ended later than `at` the
        // first is the only one that can have begun before.
        let mut query = Builder::new("");
        candidates(&mut query, address);
        query
            .push(
                "SELECT claims.* FROM candidate CROSS JOIN claims WHERE claims.id = (
                    SELECT id FROM claims AS held
                    WHERE held.start = candidate.start AND held.depth = candidate.depth AND held.vrf = ",
            )
            .push_bind(vrf.number)
            .push(" AND held.until > ")
            .push_bind(micros(at))
            .push(" ORDER BY held.until, held.since LIMIT 1) AND claims.since <= ")
            .push_bind(micros(at));
        STANDS.push(&mut query, sight);
        query.build().fetch_optional(&self.pool).await?.as_ref().map(read).transpose()
    }

    /// Who ever held an address, the latest first, before the one with the id `before`, at most `limit`.
    pub async fn history(
        &self,
        sight: &Sight,
        vrf: &Vrf,
        address: Prefix,
        before: Option<ClaimId>,
        limit: u32,
    ) -> Result<Vec<Claim>, StoreError> {
        let mut query = Builder::new("");
        candidates(&mut query, address);
        query
            .push(
                "SELECT claims.* FROM candidate CROSS JOIN claims
                 WHERE claims.start = candidate.start AND claims.depth = candidate.depth AND claims.vrf = ",
            )
            .push_bind(vrf.number);
        if let Some(before) = before {
            // Ids are in the order of claims, but what was before a move was written down at the move.
            query
                .push(
                    " AND (claims.since, claims.until, claims.id)
                        < (SELECT latest.since, latest.until, latest.id FROM claims AS latest WHERE latest.id = ",
                )
                .push_bind(before.to_string())
                .push(")");
        }
        STANDS.push(&mut query, sight);
        query.push(" ORDER BY claims.since DESC, claims.until DESC, claims.id DESC LIMIT ").push_bind(limit);
        query.build().fetch_all(&self.pool).await?.iter().map(read).collect()
    }
}

/// Where claims stand, for lists of few.
pub(super) const STANDS: Columns = Columns {
    organisation: Some("(SELECT organisation FROM projects WHERE projects.id = claims.project)"),
    project: Some("claims.project"),
    site: Some("COALESCE((SELECT site FROM racks WHERE racks.id = claims.rack), claims.site)"),
    rack: Some("claims.rack"),
};

impl ClaimFilter {
    fn push(&self, query: &mut Builder, after: &str) {
        query.push(" AND claims.until = 9223372036854775807 AND claims.id > ").push_bind(after);
        if let Some(pool) = self.pool {
            // What projects have of it is of it too.
            query.push(
                " AND claims.pool IN (SELECT pools.number FROM pools LEFT JOIN pools AS parents
                     ON parents.number = pools.parent WHERE ",
            );
            query.push("pools.id = ").push_bind(pool.to_string());
            query.push(" OR parents.id = ").push_bind(pool.to_string()).push(")");
        }
        let equal = [
            ("machine", self.machine.map(|machine| machine.to_string())),
            ("project", self.project.map(|project| project.to_string())),
            ("name", self.name.clone()),
        ];
        for (column, value) in equal.into_iter().filter_map(|(column, value)| Some((column, value?))) {
            query.push(format_args!(" AND claims.{column} = ")).push_bind(value);
        }
    }
}

/// Begins a query with the prefixes an address can be in, for an index to be asked for each.
pub(super) fn candidates(query: &mut Builder, within: Prefix) {
    query.push("WITH candidate (start, depth) AS (");
    query.push_values(within.containing(), |mut row, prefix| {
        row.push_bind(prefix.key().to_vec()).push_bind(prefix.depth());
    });
    query.push(") ");
}

impl Tx {
    /// The claim with this id, also when it was released.
    pub async fn claim(&mut self, id: ClaimId) -> Result<Claim, StoreError> {
        claim(&mut self.inner, id).await
    }

    /// The claim of a pool by which exactly these addresses are somebody's.
    pub(crate) async fn claim_of(&mut self, pool: &Pool, prefix: Prefix) -> Result<Option<Claim>, StoreError> {
        query("SELECT * FROM claims WHERE vrf = $1 AND start = $2 AND depth = $3 AND until = $4")
            .bind(pool.vrf_number)
            .bind(prefix.key().to_vec())
            .bind(prefix.depth())
            .bind(STILL)
            .fetch_optional(&mut self.inner)
            .await?
            .as_ref()
            .map(read)
            .transpose()
    }

    /// Whether a machine holds or announces an address.
    pub(crate) async fn has_addresses(&mut self, machine: MachineId) -> Result<bool, StoreError> {
        let row = query(
            "SELECT 1 FROM (
                SELECT machine FROM claims WHERE machine = $1 AND until = 9223372036854775807
                UNION ALL SELECT machine FROM announcements WHERE machine = $1 AND until = 9223372036854775807
             ) AS uses LIMIT 1",
        )
        .bind(machine.to_string())
        .fetch_optional(&mut self.inner)
        .await?;
        Ok(row.is_some())
    }

    /// What a machine holds of its project's, or any project's, in the order it was claimed.
    pub(crate) async fn project_claims_of(&mut self, machine: MachineId) -> Result<Vec<Claim>, StoreError> {
        query(
            "SELECT * FROM claims WHERE machine = $1 AND until = 9223372036854775807 AND project IS NOT NULL ORDER BY id",
        )
        .bind(machine.to_string())
        .fetch_all(&mut self.inner)
        .await?
        .iter()
        .map(read)
        .collect()
    }

    /// Whether a machine that is given to a project (or to none) would hold an address of another's, or
    /// announce one that is not that project's.
    pub(crate) async fn has_addresses_of_others(
        &mut self,
        machine: MachineId,
        project: Option<ProjectId>,
    ) -> Result<bool, StoreError> {
        let row = query(
            "SELECT 1 FROM (
                SELECT project FROM claims WHERE machine = $1 AND until = 9223372036854775807
                UNION ALL SELECT COALESCE(project, '') FROM announcements
                    WHERE machine = $1 AND until = 9223372036854775807
             ) AS uses WHERE project <> $2 LIMIT 1",
        )
        .bind(machine.to_string())
        .bind(project.map(|project| project.to_string()).unwrap_or_default())
        .fetch_optional(&mut self.inner)
        .await?;
        Ok(row.is_some())
    }

    /// What one machine holds is another's, which stands in this rack now.
    pub(crate) async fn move_claims(&mut self, from: MachineId, to: MachineId, rack: RackId) -> Result<(), StoreError> {
        let held: Vec<String> =
            query_scalar("SELECT id FROM claims WHERE machine IN ($1, $2) AND until = 9223372036854775807")
                .bind(from.to_string())
                .bind(to.to_string())
                .fetch_all(&mut self.inner)
                .await?;
        for claim in held {
            self.watch("claims", claim).await?;
        }
        query(
            "UPDATE claims SET machine = $2, rack = $3, version = version + 1
             WHERE machine IN ($1, $2) AND until = 9223372036854775807",
        )
        .bind(from.to_string())
        .bind(to.to_string())
        .bind(rack.to_string())
        .execute(&mut self.inner)
        .await?;
        Ok(())
    }

    /// Writes that a prefix of an aggregate is claimed from a pool.
    pub(crate) async fn insert_claim(
        &mut self,
        now: Timestamp,
        pool: &Pool,
        aggregate: i64,
        prefix: Prefix,
        row: ClaimRow<'_>,
    ) -> Result<Claim, StoreError> {
        let made = self.insert_claim_rows(now, pool, &[((aggregate, prefix), row)]).await?;
        let (claim, row) = made.into_iter().next().ok_or(StoreError::NotFound("claim"))?;
        self.watch_change("claims", claim.id, None, &row)?;
        Ok(claim)
    }

    /// The same of several, and has what is to be kept of each one's request written with the commit.
    pub(crate) async fn insert_claims(
        &mut self,
        now: Timestamp,
        pool: &Pool,
        new: &[((i64, Prefix), ClaimRow<'_>)],
        requests: &[&Present],
    ) -> Result<Vec<Claim>, StoreError> {
        let mut claims = Vec::with_capacity(new.len());
        for ((claim, row), request) in self.insert_claim_rows(now, pool, new).await?.into_iter().zip(requests) {
            let written = async {
                self.watch_change("claims", claim.id, None, &row)?;
                self.settle().await
            };
            Present::clone(request).scope(written).await?;
            claims.push(claim);
        }
        Ok(claims)
    }

    async fn insert_claim_rows(
        &mut self,
        now: Timestamp,
        pool: &Pool,
        new: &[((i64, Prefix), ClaimRow<'_>)],
    ) -> Result<Vec<(Claim, Row)>, StoreError> {
        let mut made = Vec::with_capacity(new.len());
        for some in in_powers_of_two(new) {
            let ids: Vec<_> = some.iter().map(|_| ClaimId::fresh()).collect();
            let mut query = Builder::new(
                "INSERT INTO claims (id, vrf, aggregate, pool, pool_name, start, depth, reserved, machine, mac, name,
                                     project, rack, purpose, claimed_by, since, until, site) ",
            );
            query.push_values(ids.iter().zip(some), |mut values, (id, ((aggregate, prefix), row))| {
                values
                    .push_bind(id.to_string())
                    .push_bind(pool.vrf_number)
                    .push_bind(*aggregate)
                    .push_bind(pool.number)
                    .push_bind(&pool.name)
                    .push_bind(prefix.key().to_vec())
                    .push_bind(prefix.depth())
                    .push_bind(row.reserved)
                    .push_bind(row.holder.machine.map(|machine| machine.to_string()))
                    .push_bind(row.holder.mac.map(|mac| mac.to_string()))
                    .push_bind(&row.holder.name)
                    .push_bind(row.project.map(|project| project.to_string()))
                    .push_bind(row.within.rack())
                    .push_bind(row.purpose)
                    .push_bind(row.by)
                    .push_bind(micros(now))
                    .push_bind(STILL)
                    .push_bind(row.within.site());
            });
            query.push(" RETURNING *");
            let rows = query.build().fetch_all(&mut self.inner).await?;
            let mut rows: HashMap<ClaimId, Row> =
                rows.into_iter().map(|row| Ok((id(row.try_get("id")?)?, row))).collect::<Result<_, StoreError>>()?;
            for (id, ((aggregate, prefix), row)) in ids.into_iter().zip(some) {
                let claim = Claim {
                    id,
                    aggregate: *aggregate,
                    pool_number: pool.number,
                    pool: pool.name.clone(),
                    prefix: *prefix,
                    reserved: row.reserved,
                    holder: row.holder.clone(),
                    project: row.project,
                    purpose: row.purpose.into(),
                    grants: None,
                    claimed_by: row.by.into(),
                    released_by: None,
                    since: now,
                    until: None,
                    version: 1,
                };
                made.push((claim, rows.remove(&id).ok_or(StoreError::NotFound("claim"))?));
            }
        }
        Ok(made)
    }

    /// Writes that a claim which has not ended is another's from now on, or what it is for. Who held it
    /// until now stays in the history.
    pub(crate) async fn move_claim(
        &mut self,
        now: Timestamp,
        id: ClaimId,
        to: Option<(&Holder, Within)>,
        purpose: &str,
        by: &str,
    ) -> Result<Claim, StoreError> {
        let before =
            query("SELECT * FROM claims WHERE id = $1").bind(id.to_string()).fetch_one(&mut self.inner).await?;
        let after = if let Some((holder, within)) = to {
            let past = ClaimId::fresh();
            let held = query(
                "INSERT INTO claims (id, vrf, aggregate, pool, pool_name, start, depth, reserved, machine, mac, name,
                                     project, rack, site, purpose, claimed_by, released_by, since, until, version)
                 SELECT $2, vrf, aggregate, pool, pool_name, start, depth, reserved, machine, mac, name,
                        project, rack, site, purpose, claimed_by, $3, since, $4, version
                 FROM claims WHERE id = $1 RETURNING *",
            )
            .bind(id.to_string())
            .bind(past.to_string())
            .bind(by)
            .bind(micros(now))
            .fetch_one(&mut self.inner)
            .await?;
            self.watch_change("claims", past, None, &held)?;
            query(
                "UPDATE claims SET machine = $2, mac = $3, name = $4, rack = $5, purpose = $6, claimed_by = $7,
                                   since = $8, site = $9, version = version + 1
                 WHERE id = $1 RETURNING *",
            )
            .bind(id.to_string())
            .bind(holder.machine.map(|machine| machine.to_string()))
            .bind(holder.mac.map(|mac| mac.to_string()))
            .bind(&holder.name)
            .bind(within.rack())
            .bind(purpose)
            .bind(by)
            .bind(micros(now))
            .bind(within.site())
            .fetch_one(&mut self.inner)
            .await?
        } else {
            query("UPDATE claims SET purpose = $2, version = version + 1 WHERE id = $1 RETURNING *")
                .bind(id.to_string())
                .bind(purpose)
                .fetch_one(&mut self.inner)
                .await?
        };
        self.watch_change("claims", id, Some(&before), &after)?;
        read(&after)
    }

    /// Says who may do what with a claim's addresses; `None` as its pool says.
    pub(crate) async fn set_claim_grants(
        &mut self,
        id: ClaimId,
        grants: Option<&[Grant]>,
    ) -> Result<Claim, StoreError> {
        self.watch("claims", id).await?;
        let row = query("UPDATE claims SET grants = $2, version = version + 1 WHERE id = $1 RETURNING *")
            .bind(id.to_string())
            .bind(grants.map(|grants| json(&grants)))
            .fetch_one(&mut self.inner)
            .await?;
        read(&row)
    }

    /// Writes that a claim has ended, and with it the names and announcements of its addresses; the claim as
    /// it was, and those announcements. When it had ended before, nothing is written.
    pub(crate) async fn end_claim(
        &mut self,
        now: Timestamp,
        id: ClaimId,
        by: &str,
    ) -> Result<(Claim, Vec<Announcement>), StoreError> {
        let before = query("SELECT * FROM claims WHERE id = $1").bind(id.to_string());
        let before = before.fetch_optional(&mut self.inner).await?.ok_or(StoreError::NotFound("claim"))?;
        let claim = read(&before)?;
        if claim.until.is_some() {
            return Ok((claim, Vec::new()));
        }
        let after =
            query("UPDATE claims SET until = $2, released_by = $3, version = version + 1 WHERE id = $1 RETURNING *")
                .bind(id.to_string())
                .bind(micros(now))
                .bind(by)
                .fetch_one(&mut self.inner)
                .await?;
        self.watch_change("claims", id, Some(&before), &after)?;
        let uses = query(
            "SELECT (SELECT COUNT(*) FROM reverse_names WHERE claim = $1) AS names,
                (SELECT COUNT(*) FROM announcements WHERE claim = $1 AND until = 9223372036854775807) AS announcements",
        );
        let uses = uses.bind(id.to_string()).fetch_one(&mut self.inner).await?;
        if uses.try_get::<i64, _>("names")? > 0 {
            self.delete_reverse_names(id).await?;
        }
        let mut ended = Vec::new();
        if uses.try_get::<i64, _>("announcements")? > 0 {
            ended = self.announcements_of(id).await?;
            self.end_announcements(now, &ended, by).await?;
        }
        Ok((claim, ended))
    }
}

async fn claim(executor: impl Into<Executor<'_>>, id: ClaimId) -> Result<Claim, StoreError> {
    let row = query("SELECT * FROM claims WHERE id = $1").bind(id.to_string()).fetch_optional(executor).await?;
    read(&row.ok_or(StoreError::NotFound("claim"))?)
}

fn read(row: &Row) -> Result<Claim, StoreError> {
    let optional = |column| row.try_get::<Option<&str>, _>(column);
    let until = row.try_get::<i64, _>("until")?;
    Ok(Claim {
        id: id(row.try_get("id")?)?,
        aggregate: row.try_get("aggregate")?,
        pool_number: row.try_get("pool")?,
        pool: row.try_get("pool_name")?,
        prefix: prefix(row)?,
        reserved: row.try_get("reserved")?,
        holder: Holder {
            machine: optional("machine")?.map(id).transpose()?,
            mac: optional("mac")?.map(|mac| parsed("MAC", mac)).transpose()?,
            name: row.try_get("name")?,
        },
        project: optional("project")?.map(id).transpose()?,
        purpose: row.try_get("purpose")?,
        grants: optional("grants")?.map(|grants| from_json("grants of a claim", grants)).transpose()?,
        claimed_by: row.try_get("claimed_by")?,
        released_by: row.try_get("released_by")?,
        since: timestamp(row.try_get("since")?)?,
        until: (until != STILL).then(|| timestamp(until)).transpose()?,
        version: row.try_get::<i64, _>("version")? as u64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Store {
        /// Every claim there ever was.
        pub(crate) async fn history_of_all(&self) -> Result<Vec<Claim>, StoreError> {
            query("SELECT * FROM claims").fetch_all(&self.pool).await?.iter().map(read).collect()
        }
    }
}
