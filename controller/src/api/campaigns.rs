//! `/v1/racks/{rack}/firmware-campaigns`: firmware of a rack's machines, updated few at a time.

use axum::{
    Extension,
    extract::{Path, State},
    http::{StatusCode, header},
    response::IntoResponse,
};
use jiff::Timestamp;
use rackhand_common::id::RunId;
use rackhand_controller_core::{
    access::Action,
    campaign::{Member, Rules, Wish},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    App, Caller, Error,
    extract::{Expected, Json, Page, Query, Window, parse, tagged},
};
use crate::{
    campaigns,
    store::{self, Thing},
};

/// Firmware of a rack's machines, updated few at a time.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct FirmwareCampaign {
    /// Its id.
    id: Uuid,
    /// The plan whose machines alone are in it.
    plan: Option<String>,
    /// So many of its machines are updated at once, in percent; one at least.
    at_most: u8,
    /// After so many failures no other machine is begun.
    stop_after: u32,
    /// What is wanted of it: `run`, `pause`, `cancel`.
    #[schema(value_type = String, example = "run")]
    wish: Wish,
    /// How it ended: `done`, `stopped` (too many failed), `cancelled`; absent as long as it goes on.
    #[schema(example = "done")]
    outcome: Option<String>,
    /// Its machines, in the order in which they have their turn.
    machines: Vec<CampaignMachine>,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    created: Timestamp,
    /// Who made it.
    created_by: String,
    /// When it ended.
    #[schema(value_type = Option<String>, format = DateTime)]
    ended: Option<Timestamp>,
}

/// A machine of a campaign.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct CampaignMachine {
    /// Its name.
    #[schema(example = "web-1")]
    machine: String,
    /// What is installed.
    firmware: Vec<String>,
    /// `waiting`, `running`, `done`, `failed`, or `skipped` when it was somebody's when its turn came.
    #[schema(value_type = String, example = "running")]
    state: Member,
    /// The run that does it.
    #[schema(value_type = Option<Uuid>)]
    run: Option<RunId>,
    /// Why it failed or was skipped.
    detail: String,
}

impl From<store::Campaign> for FirmwareCampaign {
    fn from(campaign: store::Campaign) -> Self {
        let machine = |machine: store::CampaignMachine| CampaignMachine {
            machine: machine.name,
            firmware: machine.firmware,
            state: machine.state,
            run: machine.run,
            detail: machine.detail,
        };
        Self {
            id: campaign.id,
            plan: campaign.plan,
            at_most: campaign.rules.at_most,
            stop_after: campaign.rules.stop_after,
            wish: campaign.wish,
            outcome: campaign.outcome.map(|outcome| outcome.to_string()),
            machines: campaign.machines.into_iter().map(machine).collect(),
            created: campaign.created,
            created_by: campaign.created_by,
            ended: campaign.ended,
        }
    }
}

/// A campaign to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewFirmwareCampaign {
    /// Only machines that are held against this plan; absent: all whose plan names firmware.
    #[schema(example = "large")]
    plan: Option<String>,
    /// So many of its machines at once, in percent; one at least.
    #[serde(default = "tenth")]
    #[schema(minimum = 1, maximum = 100, default = 10)]
    at_most: u8,
    /// After so many failures no other machine is begun.
    #[serde(default = "one")]
    #[schema(minimum = 1, default = 1)]
    stop_after: u32,
}

fn tenth() -> u8 {
    10
}

fn one() -> u32 {
    1
}

/// What may be changed about a campaign.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct FirmwareCampaignChange {
    /// `pause`: no other machine is begun for now; `run`: it goes on; `cancel`: none is begun any more.
    #[schema(value_type = String, example = "pause")]
    wish: Wish,
}

/// List campaigns of a rack
///
/// The newest first.
#[utoipa::path(get, path = "/v1/racks/{rack}/firmware-campaigns", tag = "firmware",
    params(("rack" = String, Path, description = "Id or name."), Window),
    responses((status = 200, body = Page<FirmwareCampaign>)))]
pub(super) async fn list(
    State(app): State<App>,
    Path(rack): Path<String>,
    Query(window): Query<Window>,
) -> Result<impl IntoResponse, Error> {
    let limit = window.limit()?;
    let rack = app.store.rack(&rack).await?;
    let rows = app.store.campaigns(rack.id, parse("after", window.after.as_deref())?, limit + 1).await?;
    Ok(axum::Json(Page::of(rows, limit, |row| row.id.to_string(), FirmwareCampaign::from)))
}

/// Show a campaign
#[utoipa::path(get, path = "/v1/racks/{rack}/firmware-campaigns/{campaign}", tag = "firmware",
    params(("rack" = String, Path, description = "Id or name."), ("campaign" = String, Path, description = "Id.")),
    responses((status = 200, body = FirmwareCampaign)))]
pub(super) async fn show(
    State(app): State<App>,
    Path((rack, campaign)): Path<(String, String)>,
) -> Result<impl IntoResponse, Error> {
    let rack = app.store.rack(&rack).await?;
    let campaign = app.store.campaign(rack.id, id(&campaign)?).await?;
    Ok(tagged(campaign.version, FirmwareCampaign::from(campaign)))
}

/// Update firmware of a rack's machines
///
/// Of those that are `ready` and whose firmware is not as their plan has it, a few at a time. It goes on by itself,
/// and stops beginning others once as many failed as it says. A rack has one at a time.
#[utoipa::path(post, path = "/v1/racks/{rack}/firmware-campaigns", tag = "firmware",
    request_body = NewFirmwareCampaign, params(("rack" = String, Path, description = "Id or name.")),
    responses((status = 201, body = FirmwareCampaign, headers(("Location" = String, description = "The campaign.")))))]
pub(super) async fn create(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(rack): Path<String>,
    Json(body): Json<NewFirmwareCampaign>,
) -> Result<impl IntoResponse, Error> {
    if !(1..=100).contains(&body.at_most) {
        return Err(Error::invalid("/at_most", "is of 1 to 100 percent"));
    }
    if body.stop_after == 0 {
        return Err(Error::invalid("/stop_after", "is at least 1"));
    }
    let mut tx = app.store.begin().await?;
    caller.check_in(&mut tx, Action::MachineMaintain, Thing::Rack, &rack).await?;
    let rack = tx.rack(&rack).await?;
    let plan = match &body.plan {
        Some(plan) => Some(tx.plan(plan).await?.name),
        None => None,
    };
    if let Some(open) = tx.open_campaign(rack.id).await? {
        return Err(Error::conflict(format!(
            "campaign {open} of this rack goes on; wait for it or cancel it: `rackhand firmware campaign cancel {open} \
             --rack {}`",
            rack.name
        )));
    }
    let rules = Rules { at_most: body.at_most, stop_after: body.stop_after };
    let campaign = campaigns::choose(&mut tx, app.clock.now().wall, rack.id, plan, rules, &caller.name).await?;
    if campaign.machines.is_empty() {
        return Err(Error::conflict(
            "there is nothing to do: no machine of this rack is `ready` and has other firmware than its plan names",
        ));
    }
    tx.insert_campaign(&campaign).await?;
    tx.commit().await?;
    let location = format!("/v1/racks/{}/firmware-campaigns/{}", rack.id, campaign.id);
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], axum::Json(FirmwareCampaign::from(campaign))))
}

/// Pause a campaign, have it go on, or cancel it
///
/// Machines that are being updated are waited for.
#[utoipa::path(patch, path = "/v1/racks/{rack}/firmware-campaigns/{campaign}", tag = "firmware",
    request_body = FirmwareCampaignChange,
    params(("rack" = String, Path, description = "Id or name."), ("campaign" = String, Path, description = "Id.")),
    responses((status = 200, body = FirmwareCampaign)))]
pub(super) async fn change(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path((rack, campaign)): Path<(String, String)>,
    expected: Expected,
    Json(body): Json<FirmwareCampaignChange>,
) -> Result<impl IntoResponse, Error> {
    let mut tx = app.store.begin().await?;
    caller.check_in(&mut tx, Action::MachineMaintain, Thing::Rack, &rack).await?;
    let rack = tx.rack(&rack).await?;
    let mut campaign = tx.campaign(rack.id, id(&campaign)?).await?;
    expected.check(campaign.version)?;
    if let Some(outcome) = campaign.outcome {
        return Err(Error::conflict(format!("it is over: {outcome}")));
    }
    if campaign.wish == Wish::Cancel && body.wish != Wish::Cancel {
        return Err(Error::conflict("it was cancelled; make another one"));
    }
    campaign.wish = body.wish;
    tx.update_campaign(&campaign).await?;
    let campaign = tx.campaign(rack.id, campaign.id).await?;
    tx.commit().await?;
    Ok(tagged(campaign.version, FirmwareCampaign::from(campaign)))
}

fn id(text: &str) -> Result<Uuid, Error> {
    text.parse().map_err(|_| Error::not_found(format!("`{text}` is not a campaign's id")))
}
