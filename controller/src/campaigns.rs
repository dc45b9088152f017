//! Updates of a rack's firmware, few machines at a time: chosen once, and moved on from rows alone.
//!
//! Invariants:
//! - Which are begun is decided by [`rackhand_controller_core::campaign`].
//! - A machine's run and that it is running are written in one transaction: after a crash anywhere none is begun
//!   twice.
//! - A machine that is somebody's when its turn comes is skipped; one that does something else just then is waited
//!   for.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use rackhand_common::{id::RackId, time::Clock};
use rackhand_controller_core::{
    campaign::{Member, Next, Rules, Wish},
    lifecycle::Lifecycle,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    store::{Campaign, CampaignMachine, RunStatus, Store, StoreError, Tx},
    verbs::Denied,
    workflows::Workflows,
};

/// How often campaigns are looked at.
const EVERY: Duration = Duration::from_secs(2);

/// A campaign of the machines of a rack that nobody has and whose firmware is not as their plan has it.
pub async fn choose(
    tx: &mut Tx,
    now: Timestamp,
    rack: RackId,
    plan: Option<String>,
    rules: Rules,
    by: &str,
) -> Result<Campaign, StoreError> {
    let mut free = tx.machines_of(rack).await?;
    free.retain(|machine| machine.lifecycle == Lifecycle::Ready);
    free.sort_by(|a, b| a.name.cmp(&b.name));
    let mut machines = Vec::new();
    for machine in free {
        let (examined, drift) = tx.examined_with_drift(&machine).await?;
        if drift.is_empty() || plan.is_some() && examined.plan != plan {
            continue;
        }
        let firmware = drift.into_iter().map(|drift| drift.name).collect();
        let (state, run, detail) = (Member::Waiting, None, String::new());
        machines.push(CampaignMachine { machine: machine.id, name: machine.name, firmware, state, run, detail });
    }
    Ok(Campaign {
        id: Uuid::now_v7(),
        rack,
        plan,
        rules,
        wish: Wish::Run,
        outcome: None,
        created: now,
        created_by: by.to_owned(),
        ended: None,
        version: 1,
        machines,
    })
}

/// Moves campaigns on until shutdown.
pub async fn run(store: Store, workflows: Workflows, clock: Arc<dyn Clock>, shutdown: CancellationToken) {
    loop {
        match look(&store, clock.now().wall).await {
            Ok(0) => {}
            Ok(_) => workflows.wake(),
            Err(error) => {
                store.note(&error);
                tracing::error!(error = &error as &dyn std::error::Error, "campaigns cannot be moved on");
            }
        }
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// Looks at every campaign once; how many runs were begun.
pub(crate) async fn look(store: &Store, now: Timestamp) -> Result<usize, StoreError> {
    let mut begun = 0;
    for (rack, campaign) in store.open_campaigns().await? {
        let mut tx = store.begin().await?;
        match move_on(&mut tx, now, rack, campaign).await {
            Ok(some) => {
                tx.commit().await?;
                begun += some;
            }
            // An operator wants something else of it: seen at the next look.
            Err(StoreError::Changed(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(begun)
}

async fn move_on(tx: &mut Tx, now: Timestamp, rack: RackId, campaign: Uuid) -> Result<usize, StoreError> {
    let mut campaign = tx.campaign(rack, campaign).await?;
    for member in &mut campaign.machines {
        let Some(run) = member.run.filter(|_| member.state == Member::Running) else { continue };
        let ended = match tx.run(run).await {
            Ok(run) => match run.status {
                RunStatus::Running => continue,
                RunStatus::Done => (Member::Done, String::new()),
                RunStatus::Cancelled => (Member::Skipped, "its run was cancelled".to_owned()),
                RunStatus::Failed => (Member::Failed, run.detail.unwrap_or_default()),
            },
            Err(StoreError::NotFound(_)) => (Member::Failed, "its run is not there any more".to_owned()),
            Err(error) => return Err(error),
        };
        tx.note_member(campaign.id, member.machine, (ended.0, Some(run), &ended.1)).await?;
        (member.state, member.detail) = ended;
    }
    let states: Vec<_> = campaign.machines.iter().map(|member| member.state).collect();
    match campaign.rules.next(campaign.wish, &states) {
        Next::Wait => Ok(0),
        Next::Over(outcome) => {
            (campaign.outcome, campaign.ended) = (Some(outcome), Some(now));
            tx.update_campaign(&campaign).await?;
            tracing::info!(campaign = %campaign.id, %outcome, "a firmware campaign is over");
            Ok(0)
        }
        Next::Begin(places) => {
            let mut begun = 0;
            for place in places {
                begun += usize::from(begin(tx, now, campaign.id, &campaign.machines[place]).await?);
            }
            Ok(begun)
        }
    }
}

/// Begins to update a machine, or says why not; whether it was begun.
async fn begin(tx: &mut Tx, now: Timestamp, campaign: Uuid, member: &CampaignMachine) -> Result<bool, StoreError> {
    let skipped = match tx.machine(&member.machine.to_string()).await {
        Ok(machine) if machine.lifecycle != Lifecycle::Ready => format!("it is {} by now", machine.lifecycle),
        Ok(machine) => match tx.start_firmware(now, &machine, Some(member.firmware.clone())).await {
            Ok(run) => {
                tx.note_member(campaign, machine.id, (Member::Running, Some(run.id), "")).await?;
                return Ok(true);
            }
            // It has its turn when that is over.
            Err(Denied::Busy(_) | Denied::RackRestored(_)) => return Ok(false),
            Err(Denied::Store(error)) if !matches!(error, StoreError::NotFound(_)) => return Err(error),
            Err(denied) => denied.to_string(),
        },
        Err(StoreError::NotFound(_)) => "it is not there any more".to_owned(),
        Err(error) => return Err(error),
    };
    tx.note_member(campaign, member.machine, (Member::Skipped, None, &skipped)).await?;
    Ok(false)
}

#[cfg(test)]
mod tests;
