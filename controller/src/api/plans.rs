//! `/v1/plans`: classes of machines, and which machines are of them.

use axum::{
    Extension,
    extract::{Path, State},
    http::{StatusCode, header},
    response::IntoResponse,
};
use rackhand_common::machine::Firmware;
use rackhand_controller_core::{
    access::Action,
    expects::Expects,
    lifecycle::Lifecycle,
    plan::{self, Kind, Mismatch},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    App, Caller, Error,
    extract::{Expected, Json, Page, Query, Window, check_name, check_text, parse, tagged},
};
use crate::store::{self, Machine, MachineFilter, MachineOrder};

/// The most rules of one kind in a plan.
const MAX_RULES: usize = 32;

/// The longest description or word of a rule, in characters.
const MAX_TEXT: usize = 200;

/// How many machines are read at a time to find those of a plan.
const BATCH: u32 = 200;

/// A class of machines.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Plan {
    /// Its id.
    id: Uuid,
    /// Its name.
    #[schema(example = "large")]
    name: String,
    /// What it is for.
    description: String,
    /// What a machine of it has.
    rules: PlanRules,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    created: jiff::Timestamp,
}

/// What a machine must have; what is left out is not looked at.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PlanRules {
    /// How it boots: `bios`, `uefi`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "uefi")]
    firmware: Option<Firmware>,
    /// Its maker, letters' case aside.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "Dell Inc.")]
    vendor: Option<String>,
    /// Its model, letters' case aside.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "PowerEdge R640")]
    product: Option<String>,
    /// Words in its processor's model, letters' case aside.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "Xeon Gold")]
    cpu: Option<String>,
    /// Logical processors, at least.
    #[serde(skip_serializing_if = "Option::is_none")]
    threads: Option<u32>,
    /// Bytes of memory, at least.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<u64>,
    /// Its disks; each counts for one of these.
    #[serde(default)]
    disks: Vec<DisksRule>,
    /// Its network cards; each counts for one of these.
    #[serde(default)]
    nics: Vec<NicsRule>,
    /// What each of its machines must have to be whole: memory by slots, processors, disks, ports, devices with
    /// the lanes of their links, versions of firmware; `strict` refuses deploys with a finding.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>, example = json!({"strict": true, "memory": {"slots": ["A1", "A2"]}}))]
    expects: Option<Expects>,
}

/// So many disks.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DisksRule {
    /// How many, at least.
    #[schema(minimum = 1)]
    count: u32,
    /// Of this kind: `nvme`, `ssd`, `hdd`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "nvme")]
    kind: Option<Kind>,
    /// Bytes of each, at least.
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
}

/// So many network cards.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NicsRule {
    /// How many, at least.
    #[schema(minimum = 1)]
    count: u32,
    /// With this kernel driver, which tells the family of cards.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "mlx5_core")]
    driver: Option<String>,
}

impl From<plan::Rules> for PlanRules {
    fn from(rules: plan::Rules) -> Self {
        let disk = |plan::DiskRule { count, kind, size }| DisksRule { count, kind, size };
        let nic = |plan::NicRule { count, driver }| NicsRule { count, driver };
        Self {
            firmware: rules.firmware,
            vendor: rules.vendor,
            product: rules.product,
            cpu: rules.cpu,
            threads: rules.threads,
            memory: rules.memory,
            disks: rules.disks.into_iter().map(disk).collect(),
            nics: rules.nics.into_iter().map(nic).collect(),
            expects: rules.expects,
        }
    }
}

impl TryFrom<PlanRules> for plan::Rules {
    type Error = Error;

    fn try_from(rules: PlanRules) -> Result<Self, Error> {
        for (field, text) in
            [("/rules/vendor", &rules.vendor), ("/rules/product", &rules.product), ("/rules/cpu", &rules.cpu)]
        {
            check_text(field, text.as_deref().unwrap_or_default(), MAX_TEXT)?;
        }
        if rules.disks.len() > MAX_RULES || rules.nics.len() > MAX_RULES {
            return Err(Error::invalid("/rules", format!("at most {MAX_RULES} rules of one kind")));
        }
        let counts = rules.disks.iter().map(|rule| rule.count).chain(rules.nics.iter().map(|rule| rule.count));
        if counts.into_iter().any(|count| count == 0) {
            return Err(Error::invalid("/rules", "a `count` is at least 1; leave out what is not looked at"));
        }
        if let Some(wrong) = rules.expects.as_ref().and_then(Expects::unsound) {
            return Err(Error::invalid("/rules/expects", wrong));
        }
        for rule in &rules.nics {
            check_text("/rules/nics", rule.driver.as_deref().unwrap_or_default(), MAX_TEXT)?;
        }
        Ok(Self {
            firmware: rules.firmware,
            vendor: rules.vendor,
            product: rules.product,
            cpu: rules.cpu,
            threads: rules.threads,
            memory: rules.memory,
            disks: rules
                .disks
                .into_iter()
                .map(|DisksRule { count, kind, size }| plan::DiskRule { count, kind, size })
                .collect(),
            nics: rules.nics.into_iter().map(|NicsRule { count, driver }| plan::NicRule { count, driver }).collect(),
            expects: rules.expects,
        })
    }
}

impl From<store::Plan> for Plan {
    fn from(row: store::Plan) -> Self {
        Self { id: row.id, name: row.name, description: row.description, rules: row.rules.into(), created: row.created }
    }
}

/// A plan to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewPlan {
    /// Its name: lower-case letters, digits, `.`, `-`, `_`; at most 63.
    #[schema(example = "large")]
    name: String,
    /// What it is for.
    #[serde(default)]
    description: String,
    /// What a machine of it has.
    rules: PlanRules,
}

/// What may be changed about a plan. What is left out stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PlanChange {
    /// What it is for.
    description: Option<String>,
    /// What a machine of it has: all of it anew.
    rules: Option<PlanRules>,
}

/// A machine held against a plan.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PlanMatch {
    /// The plan's name.
    #[schema(example = "large")]
    plan: String,
    /// The machine's name.
    #[schema(example = "web-1")]
    machine: String,
    /// Whether it has all that the plan asks for.
    matches: bool,
    /// What it does not have.
    mismatches: Vec<PlanMismatch>,
}

/// A rule that a machine does not meet.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PlanMismatch {
    /// Which rule.
    #[schema(example = "disks/0")]
    rule: String,
    /// What it asks for.
    wanted: String,
    /// What the machine has.
    found: String,
}

impl PlanMatch {
    /// `critical`: why it is that, when it is.
    fn of(plan: &store::Plan, machine: &Machine, critical: Option<&String>) -> Self {
        let mut mismatches = plan.rules.mismatches(&machine.inventory);
        // Whoever has it keeps it.
        if let Some(reasons) = critical.filter(|_| machine.lifecycle == Lifecycle::Ready) {
            let found = format!("critical: {reasons}");
            mismatches.push(Mismatch { rule: "health".into(), wanted: "not critical".into(), found });
        }
        let view = |Mismatch { rule, wanted, found }| PlanMismatch { rule, wanted, found };
        Self {
            plan: plan.name.clone(),
            machine: machine.name.clone(),
            matches: mismatches.is_empty(),
            mismatches: mismatches.into_iter().map(view).collect(),
        }
    }
}

/// List plans
#[utoipa::path(get, path = "/v1/plans", tag = "plans", params(Window), responses((status = 200, body = Page<Plan>)))]
pub(super) async fn list(State(app): State<App>, Query(window): Query<Window>) -> Result<impl IntoResponse, Error> {
    let limit = window.limit()?;
    let rows = app.store.plans(parse("after", window.after.as_deref())?, limit + 1).await?;
    Ok(axum::Json(Page::of(rows, limit, |row| row.id.to_string(), Plan::from)))
}

/// Show one plan
#[utoipa::path(get, path = "/v1/plans/{plan}", tag = "plans",
    params(("plan" = String, Path, description = "Id or name.")), responses((status = 200, body = Plan)))]
pub(super) async fn show(State(app): State<App>, Path(plan): Path<String>) -> Result<impl IntoResponse, Error> {
    let plan = app.store.plan(&plan).await?;
    Ok(tagged(plan.revision, Plan::from(plan)))
}

/// Make a plan
#[utoipa::path(post, path = "/v1/plans", tag = "plans", request_body = NewPlan,
    responses((status = 201, body = Plan, headers(("Location" = String, description = "The plan.")))))]
pub(super) async fn create(State(app): State<App>, Json(body): Json<NewPlan>) -> Result<impl IntoResponse, Error> {
    check_name("/name", &body.name)?;
    check_text("/description", &body.description, MAX_TEXT)?;
    let rules = body.rules.try_into()?;
    let mut tx = app.store.begin().await?;
    let id = tx.insert_plan(app.clock.now().wall, &body.name, &body.description, &rules).await?;
    let plan = Plan::from(tx.plan(&id.to_string()).await?);
    tx.commit().await?;
    Ok((StatusCode::CREATED, [(header::LOCATION, format!("/v1/plans/{id}"))], axum::Json(plan)))
}

/// Change a plan
#[utoipa::path(patch, path = "/v1/plans/{plan}", tag = "plans", request_body = PlanChange,
    params(("plan" = String, Path, description = "Id or name.")), responses((status = 200, body = Plan)))]
pub(super) async fn change(
    State(app): State<App>,
    Path(plan): Path<String>,
    expected: Expected,
    Json(body): Json<PlanChange>,
) -> Result<impl IntoResponse, Error> {
    let mut tx = app.store.begin().await?;
    let mut plan = tx.plan(&plan).await?;
    expected.check(plan.revision)?;
    if let Some(description) = body.description {
        check_text("/description", &description, MAX_TEXT)?;
        plan.description = description;
    }
    if let Some(rules) = body.rules {
        plan.rules = rules.try_into()?;
    }
    tx.update_plan(&plan).await?;
    let plan = tx.plan(&plan.id.to_string()).await?;
    tx.commit().await?;
    Ok(tagged(plan.revision, Plan::from(plan)))
}

/// Delete a plan
///
/// Machines that matched it stay what they are.
#[utoipa::path(delete, path = "/v1/plans/{plan}", tag = "plans",
    params(("plan" = String, Path, description = "Id or name.")), responses((status = 204)))]
pub(super) async fn delete(
    State(app): State<App>,
    Path(plan): Path<String>,
    expected: Expected,
) -> Result<impl IntoResponse, Error> {
    let mut tx = app.store.begin().await?;
    let plan = tx.plan(&plan).await?;
    expected.check(plan.revision)?;
    tx.delete_plan(plan.id).await?;
    tx.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Hold machines against a plan
///
/// All machines that you may see, in the order of their discovery, each with what it does not have.
#[utoipa::path(get, path = "/v1/plans/{plan}/machines", tag = "plans",
    params(("plan" = String, Path, description = "Id or name."), Window),
    responses((status = 200, body = Page<PlanMatch>)))]
pub(super) async fn machines(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(plan): Path<String>,
    Query(window): Query<Window>,
) -> Result<impl IntoResponse, Error> {
    let limit = window.limit()?;
    let plan = app.store.plan(&plan).await?;
    let order = MachineOrder::Discovered(parse("after", window.after.as_deref())?);
    let filter = MachineFilter { sight: caller.sight(Action::MachineRead)?, ..MachineFilter::default() };
    let rows = app.store.machines(&filter, order, limit + 1).await?;
    let critical = app.store.critical(app.clock.now().wall, rows.iter().map(|row| row.id)).await?;
    let view = |row: Machine| PlanMatch::of(&plan, &row, critical.get(&row.id));
    Ok(axum::Json(Page::of(rows, limit, |row| row.id.to_string(), view)))
}

/// Hold a machine against all plans
#[utoipa::path(get, path = "/v1/machines/{machine}/plans", tag = "plans",
    params(("machine" = String, Path, description = "Id or name."), Window),
    responses((status = 200, body = Page<PlanMatch>)))]
pub(super) async fn of_machine(
    State(app): State<App>,
    Path(machine): Path<String>,
    Query(window): Query<Window>,
) -> Result<impl IntoResponse, Error> {
    let limit = window.limit()?;
    let machine = app.store.machine(&machine).await?;
    let rows = app.store.plans(parse("after", window.after.as_deref())?, limit + 1).await?;
    let critical = app.store.critical(app.clock.now().wall, [machine.id]).await?;
    let view = |row| PlanMatch::of(&row, &machine, critical.get(&machine.id));
    Ok(axum::Json(Page::of(rows, limit, |row| row.id.to_string(), view)))
}

/// Suggest a plan
///
/// The rules of a plan that this machine matches, and those with at least as much of the same: sizes
/// are a twentieth less, since makers call different sizes the same. When its installer told its hardware in
/// detail, with that as what is expected of each. Nothing is kept.
#[utoipa::path(get, path = "/v1/machines/{machine}/suggested-plan", tag = "plans",
    params(("machine" = String, Path, description = "Id or name.")), responses((status = 200, body = PlanRules)))]
pub(super) async fn suggest(State(app): State<App>, Path(machine): Path<String>) -> Result<impl IntoResponse, Error> {
    let machine = app.store.machine(&machine).await?;
    let known = app.store.hardware(machine.id).await?;
    let expects = known.map(|known| Expects::suggest(&machine.inventory, &known.hardware));
    Ok(axum::Json(PlanRules::from(plan::Rules { expects, ..plan::Rules::suggest(&machine.inventory) })))
}

/// Machines of a plan that `filter` is true of, behind `order`: more of them are read until so many match.
pub(super) async fn matching(
    app: &App,
    plan: &str,
    filter: &MachineFilter,
    mut order: MachineOrder,
    limit: u32,
) -> Result<Vec<Machine>, Error> {
    let plan = app.store.plan(plan).await?;
    let mut found = Vec::new();
    loop {
        let rows = app.store.machines(filter, order.clone(), BATCH).await?;
        let more = rows.len() == BATCH as usize;
        if let Some(last) = rows.last() {
            order = match order {
                MachineOrder::Discovered(_) => MachineOrder::Discovered(Some(last.id)),
                MachineOrder::Name(_) => MachineOrder::Name(Some(last.name.clone())),
            };
        }
        let critical = app.store.critical(app.clock.now().wall, rows.iter().map(|row| row.id)).await?;
        let is_one = |row: &Machine| PlanMatch::of(&plan, row, critical.get(&row.id)).matches;
        found.extend(rows.into_iter().filter(is_one));
        if !more || found.len() >= limit as usize {
            found.truncate(limit as usize);
            return Ok(found);
        }
    }
}
