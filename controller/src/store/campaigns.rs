//! Campaigns: updates of a rack's machines, few at a time.
//!
//! Invariants:
//! - A rack has at most one that is not over.
//! - Which machines are in one, and what each gets, is decided when it is made and never changes.
//! - A machine's run and that it is running stand in one transaction.

use jiff::Timestamp;
use rackhand_common::id::{MachineId, RackId, RunId};
use rackhand_controller_core::campaign::{Member, Outcome, Rules, Wish};
use uuid::Uuid;

use super::{
    Store, StoreError, Tx,
    database::{Builder, Row, query},
    from_json, id, json, micros, timestamp,
};

const CAMPAIGN: &str = "firmware campaign";

/// A campaign.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Campaign {
    /// Names it; later ones sort behind.
    pub id: Uuid,
    /// The rack.
    pub rack: RackId,
    /// Only machines of this plan are in it.
    pub plan: Option<String>,
    /// What it goes by.
    pub rules: Rules,
    /// What an operator wants of it.
    pub wish: Wish,
    /// How it ended, when it has.
    pub outcome: Option<Outcome>,
    /// When it was made.
    pub created: Timestamp,
    /// Who made it.
    pub created_by: String,
    /// When it ended.
    pub ended: Option<Timestamp>,
    /// Counts its changes.
    pub version: u64,
    /// Its machines, in the order in which they have their turn.
    pub machines: Vec<CampaignMachine>,
}

/// A machine of a campaign.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CampaignMachine {
    /// The machine.
    pub machine: MachineId,
    /// Its present name; its id when it was forgotten.
    pub name: String,
    /// What it gets, by names.
    pub firmware: Vec<String>,
    /// How far it is.
    pub state: Member,
    /// The run that updates it.
    pub run: Option<RunId>,
    /// Why it failed or was skipped, for people.
    pub detail: String,
}

impl Store {
    /// A campaign of a rack.
    pub async fn campaign(&self, rack: RackId, campaign: Uuid) -> Result<Campaign, StoreError> {
        let row = select(rack, Some(campaign)).build().fetch_optional(&self.pool).await?;
        let row = row.ok_or(StoreError::NotFound(CAMPAIGN))?;
        whole(&self.pool, &row).await
    }

    /// Campaigns of a rack, the newest first, those before `before`, at most `limit`.
    pub async fn campaigns(&self, rack: RackId, before: Option<Uuid>, limit: u32) -> Result<Vec<Campaign>, StoreError> {
        let mut query = select(rack, None);
        if let Some(before) = before {
            query.push(" AND id < ").push_bind(before.to_string());
        }
        query.push(" ORDER BY id DESC LIMIT ").push_bind(i64::from(limit));
        let mut campaigns = Vec::new();
        for row in query.build().fetch_all(&self.pool).await? {
            campaigns.push(whole(&self.pool, &row).await?);
        }
        Ok(campaigns)
    }

    /// Every campaign that is not over: its rack and id.
    pub async fn open_campaigns(&self) -> Result<Vec<(RackId, Uuid)>, StoreError> {
        let rows = query("SELECT rack, id FROM firmware_campaigns WHERE outcome IS NULL ORDER BY id")
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(|row| Ok((id(row.try_get("rack")?)?, id(row.try_get("id")?)?))).collect()
    }
}

impl Tx {
    /// A campaign of a rack.
    pub async fn campaign(&mut self, rack: RackId, campaign: Uuid) -> Result<Campaign, StoreError> {
        let row = select(rack, Some(campaign)).build().fetch_optional(&mut self.inner).await?;
        let row = row.ok_or(StoreError::NotFound(CAMPAIGN))?;
        let mut read = read(&row)?;
        let rows = members(campaign).build().fetch_all(&mut self.inner).await?;
        read.machines = rows.iter().map(read_machine).collect::<Result<_, _>>()?;
        Ok(read)
    }

    /// The campaign of a rack that is not over.
    pub async fn open_campaign(&mut self, rack: RackId) -> Result<Option<Uuid>, StoreError> {
        let row = query("SELECT id FROM firmware_campaigns WHERE rack = $1 AND outcome IS NULL")
            .bind(rack.to_string())
            .fetch_optional(&mut self.inner)
            .await?;
        row.map(|row| id(row.try_get("id")?)).transpose()
    }

    /// Makes a campaign.
    pub async fn insert_campaign(&mut self, campaign: &Campaign) -> Result<(), StoreError> {
        self.watch("firmware_campaigns", campaign.id).await?;
        query(
            "INSERT INTO firmware_campaigns (id, rack, plan, at_most, stop_after, wish, created, created_by, version)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 1)",
        )
        .bind(campaign.id.to_string())
        .bind(campaign.rack.to_string())
        .bind(campaign.plan.as_deref())
        .bind(i64::from(campaign.rules.at_most))
        .bind(i64::from(campaign.rules.stop_after))
        .bind(campaign.wish.to_string())
        .bind(micros(campaign.created))
        .bind(&campaign.created_by)
        .execute(&mut self.inner)
        .await?;
        for (place, machine) in campaign.machines.iter().enumerate() {
            query(
                "INSERT INTO firmware_campaign_machines (campaign, place, machine, firmware, state, detail)
                 VALUES ($1, $2, $3, $4, $5, '')",
            )
            .bind(campaign.id.to_string())
            .bind(place as i64)
            .bind(machine.machine.to_string())
            .bind(json(&machine.firmware))
            .bind(machine.state.to_string())
            .execute(&mut self.inner)
            .await?;
        }
        Ok(())
    }

    /// Writes what is wanted of a campaign, and how it ended. Fails with [`StoreError::Changed`] when
    /// somebody else did since it was read.
    pub async fn update_campaign(&mut self, campaign: &Campaign) -> Result<(), StoreError> {
        self.watch("firmware_campaigns", campaign.id).await?;
        let changed = query(
            "UPDATE firmware_campaigns SET wish = $3, outcome = $4, ended = $5, version = version + 1
             WHERE id = $1 AND version = $2",
        )
        .bind(campaign.id.to_string())
        .bind(campaign.version as i64)
        .bind(campaign.wish.to_string())
        .bind(campaign.outcome.map(|outcome| outcome.to_string()))
        .bind(campaign.ended.map(micros))
        .execute(&mut self.inner)
        .await?;
        if changed.rows_affected() == 1 { Ok(()) } else { Err(StoreError::Changed(CAMPAIGN)) }
    }

    /// Writes how far a machine of a campaign is.
    pub async fn note_member(
        &mut self,
        campaign: Uuid,
        machine: MachineId,
        (state, run, detail): (Member, Option<RunId>, &str),
    ) -> Result<(), StoreError> {
        query(
            "UPDATE firmware_campaign_machines SET state = $3, run = $4, detail = $5
             WHERE campaign = $1 AND machine = $2",
        )
        .bind(campaign.to_string())
        .bind(machine.to_string())
        .bind(state.to_string())
        .bind(run.map(|run| run.to_string()))
        .bind(detail)
        .execute(&mut self.inner)
        .await?;
        Ok(())
    }
}

fn select(rack: RackId, campaign: Option<Uuid>) -> Builder {
    let mut query = Builder::new("SELECT * FROM firmware_campaigns WHERE rack = ");
    query.push_bind(rack.to_string());
    if let Some(campaign) = campaign {
        query.push(" AND id = ").push_bind(campaign.to_string());
    }
    query
}

fn members(campaign: Uuid) -> Builder {
    let mut query = Builder::new(
        "SELECT m.*, COALESCE(machines.name, m.machine) AS machine_name FROM firmware_campaign_machines m
         LEFT JOIN machines ON machines.id = m.machine WHERE m.campaign = ",
    );
    query.push_bind(campaign.to_string()).push(" ORDER BY m.place");
    query
}

async fn whole(pool: &super::database::Database, row: &Row) -> Result<Campaign, StoreError> {
    let mut campaign = read(row)?;
    let rows = members(campaign.id).build().fetch_all(pool).await?;
    campaign.machines = rows.iter().map(read_machine).collect::<Result<_, _>>()?;
    Ok(campaign)
}

fn read(row: &Row) -> Result<Campaign, StoreError> {
    let word = |name: &str| row.try_get::<String, _>(name).map(|word| json(&word));
    let number = |name: &str| row.try_get::<i64, _>(name);
    let outcome: Option<String> = row.try_get("outcome")?;
    let ended: Option<i64> = row.try_get("ended")?;
    let damaged = |error: std::num::TryFromIntError| StoreError::Damaged(CAMPAIGN, error.into());
    Ok(Campaign {
        id: id(row.try_get("id")?)?,
        rack: id(row.try_get("rack")?)?,
        plan: row.try_get("plan")?,
        rules: Rules {
            at_most: number("at_most")?.try_into().map_err(damaged)?,
            stop_after: number("stop_after")?.try_into().map_err(damaged)?,
        },
        wish: from_json("wish of a campaign", &word("wish")?)?,
        outcome: outcome.map(|word| from_json("outcome of a campaign", &json(&word))).transpose()?,
        created: timestamp(number("created")?)?,
        created_by: row.try_get("created_by")?,
        ended: ended.map(timestamp).transpose()?,
        version: number("version")?.unsigned_abs(),
        machines: Vec::new(),
    })
}

fn read_machine(row: &Row) -> Result<CampaignMachine, StoreError> {
    let run: Option<String> = row.try_get("run")?;
    let state: String = row.try_get("state")?;
    Ok(CampaignMachine {
        machine: id(row.try_get("machine")?)?,
        name: row.try_get("machine_name")?,
        firmware: from_json("firmware of a campaign", row.try_get("firmware")?)?,
        state: from_json("state of a machine of a campaign", &json(&state))?,
        run: run.map(|run| id(&run)).transpose()?,
        detail: row.try_get("detail")?,
    })
}
