//! Which machines announce which addresses, and which did.
//!
//! Invariants:
//! - A row stays when it ends and is the history.
//! - Only what a claim holds is announced: whatever ends the claim ends its announcements in the same
//!   transaction.
//! - Of one claim a machine has one announcement at a time at most.

use jiff::Timestamp;
use rackhand_common::id::{AnnouncementId, ClaimId, MachineId, ProjectId, RackId, SiteId};
use rackhand_controller_core::{access::Sight, ipam::Prefix};

use super::{
    Claim, Machine, Store, StoreError, Tx, Vrf,
    claims::{STILL, candidates},
    database::{Builder, Row, query},
    id, micros,
    places::{Columns, OF_RACKS},
    prefixes::prefix,
    timestamp,
};

/// That a machine announces the addresses of a claim by BGP, or did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// Its id.
    pub id: AnnouncementId,
    /// The claim.
    pub claim: ClaimId,
    /// The claim's addresses.
    pub prefix: Prefix,
    /// The machine.
    pub machine: MachineId,
    /// The machine's name when it began.
    pub name: String,
    /// The claim's project.
    pub project: Option<ProjectId>,
    /// The machine's rack.
    pub rack: RackId,
    /// Who said so.
    pub announced_by: String,
    /// Who took it back.
    pub withdrawn_by: Option<String>,
    /// Since when.
    pub since: Timestamp,
    /// Until when; `None` while it is.
    pub until: Option<Timestamp>,
}

/// Which announcements are asked for: those that meet all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AnnouncementFilter {
    /// That can be seen.
    pub sight: Sight,
    /// Of this claim.
    pub claim: Option<ClaimId>,
    /// By this machine.
    pub machine: Option<MachineId>,
    /// By machines of this rack.
    pub rack: Option<RackId>,
    /// Of this project's addresses.
    pub project: Option<ProjectId>,
}

/// Where announcements stand: with the claim's project and in the machine's rack.
const STANDS: Columns = Columns {
    organisation: Some("(SELECT organisation FROM projects WHERE projects.id = announcements.project)"),
    project: Some("announcements.project"),
    site: Some("(SELECT site FROM racks WHERE racks.id = announcements.rack)"),
    rack: Some("announcements.rack"),
};

impl Store {
    /// Announcements that did not end, in the order they began, after `after`, at most `limit`.
    pub async fn announcements(
        &self,
        filter: &AnnouncementFilter,
        after: Option<AnnouncementId>,
        limit: u32,
    ) -> Result<Vec<Announcement>, StoreError> {
        let after = after.map(|id| id.to_string()).unwrap_or_default();
        let mut query = Builder::new("SELECT announcements.* FROM announcements");
        let reach = self.reach(&filter.sight).await?;
        reach.push(&mut query, "announcements", OF_RACKS, "announcements.id", limit, |query| {
            query.push(" AND announcements.until = 9223372036854775807 AND announcements.id > ").push_bind(&after);
            let equal = [
                ("claim", filter.claim.map(|claim| claim.to_string())),
                ("machine", filter.machine.map(|machine| machine.to_string())),
                ("rack", filter.rack.map(|rack| rack.to_string())),
                ("project", filter.project.map(|project| project.to_string())),
            ];
            for (column, value) in equal.into_iter().filter_map(|(column, value)| Some((column, value?))) {
                query.push(format_args!(" AND announcements.{column} = ")).push_bind(value);
            }
        });
        query.build().fetch_all(&self.pool).await?.iter().map(read).collect()
    }

    /// Who announces an address or announced it, by itself or in a block, the latest first, before the
    /// one with the id `before`; with `at` only who did then.
    pub async fn announcement_history(
        &self,
        sight: &Sight,
        vrf: &Vrf,
        address: Prefix,
        at: Option<Timestamp>,
        before: Option<AnnouncementId>,
        limit: u32,
    ) -> Result<Vec<Announcement>, StoreError> {
        let mut query = Builder::new("");
        candidates(&mut query, address);
        query
            .push(
                "SELECT announcements.* FROM candidate CROSS JOIN announcements
                 WHERE announcements.start = candidate.start AND announcements.depth = candidate.depth
                    AND announcements.vrf = ",
            )
            .push_bind(vrf.number);
        if let Some(at) = at {
            query.push(" AND announcements.until > ").push_bind(micros(at));
            query.push(" AND announcements.since <= ").push_bind(micros(at));
        }
        if let Some(before) = before {
            query.push(" AND announcements.id < ").push_bind(before.to_string());
        }
        STANDS.push(&mut query, sight);
        query.push(" ORDER BY announcements.id DESC LIMIT ").push_bind(limit);
        query.build().fetch_all(&self.pool).await?.iter().map(read).collect()
    }
}

impl Tx {
    /// Who announces a claim's addresses, in the order they began.
    pub(crate) async fn announcements_of(&mut self, claim: ClaimId) -> Result<Vec<Announcement>, StoreError> {
        query("SELECT * FROM announcements WHERE claim = $1 AND until = 9223372036854775807 ORDER BY id")
            .bind(claim.to_string())
            .fetch_all(&mut self.inner)
            .await?
            .iter()
            .map(read)
            .collect()
    }

    /// What a machine announces, in the order it began.
    pub(crate) async fn announcements_by(&mut self, machine: MachineId) -> Result<Vec<Announcement>, StoreError> {
        query("SELECT * FROM announcements WHERE machine = $1 AND until = 9223372036854775807 ORDER BY id")
            .bind(machine.to_string())
            .fetch_all(&mut self.inner)
            .await?
            .iter()
            .map(read)
            .collect()
    }

    /// The name of a machine that announces a claim's addresses in another site than this.
    pub(crate) async fn announced_outside(
        &mut self,
        claim: ClaimId,
        site: SiteId,
    ) -> Result<Option<String>, StoreError> {
        let row = query(
            "SELECT announcements.name FROM announcements JOIN racks ON racks.id = announcements.rack
             WHERE announcements.claim = $1 AND announcements.until = 9223372036854775807 AND racks.site <> $2
             ORDER BY announcements.id LIMIT 1",
        )
        .bind(claim.to_string())
        .bind(site.to_string())
        .fetch_optional(&mut self.inner)
        .await?;
        Ok(row.map(|row| row.try_get("name")).transpose()?)
    }

    /// Writes that a machine announces a claim's addresses from now on.
    pub(crate) async fn insert_announcement(
        &mut self,
        now: Timestamp,
        claim: &Claim,
        machine: &Machine,
        by: &str,
    ) -> Result<Announcement, StoreError> {
        let id = AnnouncementId::fresh();
        let row = query(
            "INSERT INTO announcements (id, claim, vrf, start, depth, machine, name, project, rack, announced_by,
                                        since, until)
             SELECT $1, id, vrf, start, depth, $3, $4, project, $5, $6, $7, $8 FROM claims WHERE id = $2 RETURNING *",
        )
        .bind(id.to_string())
        .bind(claim.id.to_string())
        .bind(machine.id.to_string())
        .bind(&machine.name)
        .bind(machine.rack.to_string())
        .bind(by)
        .bind(micros(now))
        .bind(STILL)
        .fetch_one(&mut self.inner)
        .await?;
        self.watch_change("announcements", id, None, &row)?;
        read(&row)
    }

    /// Writes that announcements have ended.
    pub(crate) async fn end_announcements(
        &mut self,
        now: Timestamp,
        ending: &[Announcement],
        by: &str,
    ) -> Result<(), StoreError> {
        for Announcement { id, .. } in ending {
            self.watch("announcements", id).await?;
            query("UPDATE announcements SET until = $2, withdrawn_by = $3 WHERE id = $1")
                .bind(id.to_string())
                .bind(micros(now))
                .bind(by)
                .execute(&mut self.inner)
                .await?;
        }
        Ok(())
    }
}

fn read(row: &Row) -> Result<Announcement, StoreError> {
    let until = row.try_get::<i64, _>("until")?;
    Ok(Announcement {
        id: id(row.try_get("id")?)?,
        claim: id(row.try_get("claim")?)?,
        prefix: prefix(row)?,
        machine: id(row.try_get("machine")?)?,
        name: row.try_get("name")?,
        project: row.try_get::<Option<&str>, _>("project")?.map(id).transpose()?,
        rack: id(row.try_get("rack")?)?,
        announced_by: row.try_get("announced_by")?,
        withdrawn_by: row.try_get("withdrawn_by")?,
        since: timestamp(row.try_get("since")?)?,
        until: (until != STILL).then(|| timestamp(until)).transpose()?,
    })
}
