//! `/v1/runs/{run}/logs`: what is known of a run. Steps are read off the events that the run left:
//! each begins when what came before it was over.

use axum::{
    Extension,
    extract::{Path, State},
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use rackhand_controller_core::{
    access::Action,
    workflow::{Cause, Step, Workflow},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    App, Caller, Error,
    events::Event,
    extract::{Query, limit, parse, text_page},
    runs::{Run, id},
};
use crate::store::{self, EventFilter, Happened, RunStatus, StoredEvent};

/// How many events are read at a time.
const BATCH: u32 = 200;

/// What is known of a run.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RunLogs {
    /// The run.
    run: Run,
    /// Its steps, each try by itself, in their order.
    steps: Vec<RunStep>,
    /// What happened in it, and what its machine told meanwhile, the oldest first.
    events: Vec<Event>,
    /// Give this as `after` for more events; absent when there are no more.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// One try of a step, or of undoing it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RunStep {
    /// Which step.
    #[schema(example = "write image")]
    step: String,
    /// Which try of it.
    attempt: u32,
    /// Whether what it did was undone.
    undoing: bool,
    /// When it began.
    #[schema(value_type = String, format = DateTime)]
    began: Timestamp,
    /// When it was over; absent while it goes on.
    #[schema(value_type = Option<String>, format = DateTime)]
    ended: Option<Timestamp>,
    /// `running`, `done`, `failed`, `cancelled`; of undoing: `running`, `done`, `failed`, `left behind`.
    #[schema(example = "done")]
    outcome: &'static str,
    /// Why it failed, for programs.
    cause: Option<String>,
    /// Why, for people.
    detail: Option<String>,
}

/// How much of it, and in what form.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Which {
    /// `text` for lines that people read; JSON when absent. Pages are the same: `next` is in the
    /// header `Rackhand-Next` then.
    format: Option<LogFormat>,
    /// `next` of the page before; absent for the first page.
    after: Option<String>,
    /// How many events at most, 1 to 200.
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<u32>,
}

/// The form of logs.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum LogFormat {
    /// For programs.
    Json,
    /// For people.
    Text,
}

/// Show what is known of a run
///
/// Its steps with their times and outcomes, and what happened in it. To follow a run that goes on,
/// follow `/v1/events/stream` after the last event here.
#[utoipa::path(get, path = "/v1/runs/{run}/logs", tag = "runs",
    params(("run" = String, Path, description = "Id."), Which),
    responses((status = 200, content((RunLogs = "application/json"), (String = "text/plain")))))]
pub(super) async fn logs(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(run): Path<String>,
    Query(which): Query<Which>,
) -> Result<Response, Error> {
    let limit = limit(which.limit)?;
    let after: u64 = parse("after", which.after.as_deref())?.unwrap_or(0);
    let sight = caller.sight(Action::EventRead)?;
    let run = app.store.run(id(&run)?).await?;
    let own = own(&app, &EventFilter { sight: sight.clone(), run: Some(run.id), ..EventFilter::default() }).await?;
    let steps = steps(&run, &own);
    let mut events = meanwhile(&app, &run, &own, sight, after, limit + 1).await?;
    let more = events.len() > limit as usize;
    events.truncate(limit as usize);
    let next = more.then(|| events.last().map(|event| event.id.to_string())).flatten();
    let events: Vec<_> = events.into_iter().map(Event::from).collect();
    let run = Run::from(run);
    if which.format == Some(LogFormat::Text) {
        let text = text(&run, &steps, &events, after == 0);
        return Ok(text_page("text/plain; charset=utf-8", text, next));
    }
    Ok(axum::Json(RunLogs { run, steps, events, next }).into_response())
}

/// All events of a run.
async fn own(app: &App, filter: &EventFilter) -> Result<Vec<StoredEvent>, Error> {
    let mut all = Vec::new();
    loop {
        let after = all.last().map_or(0, |event: &StoredEvent| event.id);
        let rows = app.store.events(after, filter, BATCH).await?;
        let more = rows.len() == BATCH as usize;
        all.extend(rows);
        if !more {
            return Ok(all);
        }
    }
}

/// Events of a run, and those of its machine that came between and are no other run's.
async fn meanwhile(
    app: &App,
    run: &store::Run,
    own: &[StoredEvent],
    sight: rackhand_controller_core::access::Sight,
    after: u64,
    limit: u32,
) -> Result<Vec<StoredEvent>, Error> {
    let (Some(first), Some(last)) = (own.first(), own.last()) else { return Ok(Vec::new()) };
    let end = if run.status == RunStatus::Running { u64::MAX } else { last.id };
    let filter = EventFilter { sight, machine: Some(run.machine), ..EventFilter::default() };
    let (mut found, mut after) = (Vec::new(), after.max(first.id - 1));
    loop {
        let rows = app.store.events(after, &filter, BATCH).await?;
        let more = rows.len() == BATCH as usize;
        let past = rows.last().is_some_and(|row| row.id > end);
        after = rows.last().map_or(after, |row| row.id);
        let ours = |row: &StoredEvent| row.id <= end && row.run.is_none_or(|of| of == run.id);
        found.extend(rows.into_iter().filter(ours));
        if !more || past || found.len() >= limit as usize {
            found.truncate(limit as usize);
            return Ok(found);
        }
    }
}

/// A run's steps, of what it left and where it is.
fn steps(run: &store::Run, events: &[StoredEvent]) -> Vec<RunStep> {
    let (mut steps, began) = over(run.parameters.workflow(), run.created, events);
    if let (RunStatus::Running, Some(step)) = (run.status, run.step) {
        steps.push(RunStep {
            step: step.to_string(),
            attempt: run.attempt,
            undoing: run.undoing,
            began,
            ended: None,
            outcome: "running",
            cause: None,
            detail: run.detail.clone(),
        });
    }
    steps
}

/// The steps that are over, and since when another one goes on.
fn over(workflow: Workflow, created: Timestamp, events: &[StoredEvent]) -> (Vec<RunStep>, Timestamp) {
    let rules = workflow.rules();
    let mut steps: Vec<RunStep> = Vec::new();
    let (mut began, mut attempt, mut undoing, mut done) = (created, 1, false, 0);
    for StoredEvent { at, body, .. } in events {
        let mut over = |step: Step, attempt, undoing, outcome, why: Option<(&Cause, &str)>| {
            steps.push(RunStep {
                step: step.to_string(),
                attempt,
                undoing,
                began,
                ended: Some(*at),
                outcome,
                cause: why.map(|(cause, _)| cause.to_string()),
                detail: why.map(|(_, detail)| detail.to_owned()),
            });
        };
        match body {
            Happened::RunStarted { .. } => {}
            Happened::StepDone { step } => {
                over(*step, attempt, undoing, "done", None);
                done = rules.iter().position(|rule| rule.step == *step).map_or(done, |at| at + 1);
                attempt = 1;
            }
            Happened::Again { step, attempt: coming, cause, detail } => {
                over(*step, coming.saturating_sub(1), undoing, "failed", Some((cause, detail.as_str())));
                attempt = *coming;
            }
            Happened::Undoing { cause, detail } => {
                // A run that is cancelled when a step is done has begun no other.
                let is_between = *cause == Cause::Cancelled && *at == began && done > 0;
                if let Some(rule) = rules.get(done).filter(|_| !is_between) {
                    let outcome = if *cause == Cause::Cancelled { "cancelled" } else { "failed" };
                    over(rule.step, attempt, false, outcome, Some((cause, detail.as_str())));
                }
                (attempt, undoing) = (1, true);
            }
            Happened::StepUndone { step } => {
                over(*step, attempt, true, "done", None);
                attempt = 1;
            }
            Happened::LeftBehind { step, detail } => {
                over(*step, attempt, true, "left behind", None);
                if let Some(left) = steps.last_mut() {
                    left.detail = Some(detail.clone());
                }
                attempt = 1;
            }
            // Nothing else ends a step.
            _ => continue,
        }
        began = *at;
    }
    (steps, began)
}

fn text(run: &Run, steps: &[RunStep], events: &[Event], is_first: bool) -> String {
    let mut lines = Vec::new();
    if is_first {
        lines.push(run.line());
        for step in steps {
            let undoing = if step.undoing { "undo " } else { "" };
            let ended = step.ended.map_or("                    ".to_owned(), second);
            let mut line = format!(
                "{}  {ended}  {undoing}{}, attempt {}: {}",
                second(step.began),
                step.step,
                step.attempt,
                step.outcome
            );
            for why in [&step.cause, &step.detail].into_iter().flatten() {
                line = format!("{line}: {}", why.lines().next().unwrap_or_default());
            }
            lines.push(line);
        }
    }
    lines.extend(events.iter().map(Event::line));
    lines.join("\n") + "\n"
}

/// A time to the second.
pub(super) fn second(time: Timestamp) -> String {
    Timestamp::from_second(time.as_second()).unwrap_or(time).to_string()
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use rackhand_common::id::RackId;

    use super::*;

    fn check(events: Vec<(i64, Happened)>, expected: Expect) {
        let at = |second| Timestamp::from_second(second).unwrap();
        let rack = RackId::fresh();
        let events = events.into_iter().enumerate().map(|(number, (second, body))| StoredEvent {
            id: number as u64 + 1,
            at: at(second),
            rack,
            machine: None,
            run: None,
            body,
        });
        let (steps, since) = over(Workflow::Deploy, at(0), &events.collect::<Vec<_>>());
        let mut told = String::new();
        for step in steps {
            let times = (step.began.as_second(), step.ended.unwrap().as_second());
            let undoing = if step.undoing { "undo " } else { "" };
            let why = step.cause.or(step.detail).unwrap_or_default();
            told += &format!("{}-{} {undoing}{} {}: {} {why}", times.0, times.1, step.step, step.attempt, step.outcome);
            told = told.trim_end().to_owned() + "\n";
        }
        expected.assert_eq(&format!("{told}since {}", since.as_second()));
    }

    fn done(step: Step) -> Happened {
        Happened::StepDone { step }
    }

    fn undoing(cause: Cause) -> Happened {
        Happened::Undoing { cause, detail: "why".into() }
    }

    #[test]
    fn steps_are_read_off_what_a_run_left() {
        let started = || Happened::RunStarted { workflow: Workflow::Deploy };
        let ended = |status| Happened::RunEnded { status, cause: None, detail: None };
        check(
            vec![
                (0, started()),
                (7, done(Step::BootInstaller)),
                (8, Happened::Alert { reason: "overdue".into() }),
                (20, done(Step::WriteImage)),
                (30, done(Step::StartSystem)),
                (30, ended(RunStatus::Done)),
            ],
            expect![[r#"
                0-7 boot installer 1: done
                7-20 write image 1: done
                20-30 start system 1: done
                since 30"#]],
        );
        let again = Happened::Again { step: Step::WriteImage, attempt: 2, cause: Cause::Overdue, detail: "w".into() };
        let left = Happened::LeftBehind { step: Step::BootInstaller, detail: "no answer".into() };
        check(
            vec![
                (0, started()),
                (7, done(Step::BootInstaller)),
                (9, again),
                (12, undoing(Cause::Overdue)),
                (15, Happened::StepUndone { step: Step::WriteImage }),
                (19, left),
                (19, ended(RunStatus::Failed)),
            ],
            expect![[r#"
                0-7 boot installer 1: done
                7-9 write image 1: failed overdue
                9-12 write image 2: failed overdue
                12-15 undo write image 1: done
                15-19 undo boot installer 1: left behind no answer
                since 19"#]],
        );
        // Cancelled within a step, and when one was just done.
        check(
            vec![(0, started()), (7, done(Step::BootInstaller)), (9, undoing(Cause::Cancelled))],
            expect![[r#"
            0-7 boot installer 1: done
            7-9 write image 1: cancelled cancelled
            since 9"#]],
        );
        check(
            vec![(0, started()), (7, done(Step::BootInstaller)), (7, undoing(Cause::Cancelled))],
            expect![[r#"
            0-7 boot installer 1: done
            since 7"#]],
        );
    }
}
