//! `/v1/events`: what happened, as pages and as a stream of server-sent events.

use std::{
    collections::VecDeque,
    convert::Infallible,
    time::{Duration, Instant},
};

use axum::{
    Extension,
    extract::State,
    http::HeaderMap,
    response::{
        IntoResponse,
        sse::{self, KeepAlive, Sse},
    },
};
use futures_util::{Stream, stream};
use jiff::Timestamp;
use rackhand_common::{event::What, id};
use rackhand_controller_core::access::Action;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    App, Caller, Error, access,
    extract::{Page, Query, limit, parse},
    logs::second,
    runs::Progress,
};
use crate::{
    store::{EventFilter, Happened, StoredEvent},
    verbs::listed,
};

/// How often the table is looked at for a stream. People watch: a quarter of a second is at
/// once, and costs one indexed read.
const LOOK: Duration = Duration::from_millis(250);

/// How long a stream goes on before it is asked again whether its caller may still see it.
const TRUST: Duration = Duration::from_secs(5);

/// How many events a stream reads at a time.
const BATCH: u32 = 100;

/// Something that happened.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Event {
    /// Its number; later ones are higher.
    pub(crate) id: u64,
    /// When: by the node's clock for what happened in a rack.
    #[schema(value_type = String, format = DateTime)]
    pub(crate) at: Timestamp,
    /// Where.
    #[schema(value_type = uuid::Uuid)]
    rack: id::RackId,
    /// The machine it is about; absent when it is about the node.
    #[schema(value_type = Option<uuid::Uuid>)]
    machine: Option<id::MachineId>,
    /// The run it belongs to.
    #[schema(value_type = Option<uuid::Uuid>)]
    run: Option<id::RunId>,
    /// The kind, for programs: `stage`, `connected`, `lost`, `progress`, `done`, `failed`,
    /// `phoned_home`, `health`, `run_started`, `starts`, `waits`, `step_done`, `run_ended`, `addresses_moved`, `alert` and
    /// others.
    #[schema(example = "stage")]
    pub(crate) kind: String,
    /// What happened, in words.
    #[schema(example = "BIOS boot ROM asked for an address")]
    text: String,
    /// Of `progress` events: how much is done.
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<Progress>,
}

impl From<StoredEvent> for Event {
    fn from(row: StoredEvent) -> Self {
        let progress = match &row.body {
            Happened::Told(What::Progress { done, total, .. }) => Some(Progress { done: *done, total: *total }),
            _ => None,
        };
        Self {
            id: row.id,
            at: row.at,
            rack: row.rack,
            machine: row.machine,
            run: row.run,
            kind: kind(&row.body),
            text: text(&row.body),
            progress,
        }
    }
}

impl Event {
    /// When, and what happened, in one line.
    pub(super) fn line(&self) -> String {
        format!("{}  {}", second(self.at), self.text)
    }
}

/// The name of the event's variant, as it is stored.
fn kind(body: &Happened) -> String {
    let value = match body {
        Happened::Told(what) => serde_json::to_value(what),
        other => serde_json::to_value(other),
    };
    match value {
        Ok(serde_json::Value::String(kind)) => kind,
        Ok(serde_json::Value::Object(fields)) => fields.into_iter().next().map(|(kind, _)| kind).unwrap_or_default(),
        _ => String::new(),
    }
}

fn text(body: &Happened) -> String {
    match body {
        Happened::Told(what) => what.to_string(),
        Happened::Discovered { name } => format!("discovered; named {name}"),
        Happened::Adopted => "adopted".into(),
        Happened::AdoptedRunning { by } => format!("adopted by {by} while it runs: nothing was switched"),
        Happened::ToldByBmc => "its BMC told what is in it".into(),
        Happened::Inspected => "looked into for the first time: it is the machine that was adopted".into(),
        Happened::RunStarted { workflow } => format!("{workflow} begins"),
        Happened::StepDone { step } => format!("done: {step}"),
        Happened::Again { step, attempt, cause, detail } => {
            format!("{step} failed ({cause}: {detail}); attempt {attempt} follows")
        }
        Happened::CancelWanted => "an operator cancels the run".into(),
        Happened::Undoing { cause, detail } => format!("undoing what was done ({cause}: {detail})"),
        Happened::Starts { way } => format!("starts into its installer: {way}"),
        Happened::Waits { waiting, detail, until } => {
            let until = until.map(|until| format!(", until {}", second(until))).unwrap_or_default();
            format!("waits for {waiting} ({detail}){until}")
        }
        Happened::StepUndone { step } => format!("undone: {step}"),
        Happened::LeftBehind { step, detail } => format!("could not undo {step}: {detail}"),
        Happened::RunEnded { status, cause, detail } => {
            let mut text = format!("run {}", status.word());
            if let Some(cause) = cause {
                text = format!("{text}: {cause}");
            }
            match detail.as_deref().and_then(|detail| detail.lines().next()) {
                Some(detail) => format!("{text}: {detail}"),
                None => text,
            }
        }
        Happened::Alert { reason } => format!("ALERT: {reason}"),
        Happened::PartsChanged { changes } => format!("ALERT: {}", listed(changes)),
        Happened::PartsAccepted { changes } => format!("an operator accepts its parts: {}", listed(changes)),
        Happened::PartTaken { by, changes } => format!("the part that {by} put in is accepted: {}", listed(changes)),
        Happened::Merged { name } => format!("an operator says that {name}, discovered lately, is this machine"),
        Happened::Forgotten { name } => format!("an operator removed {name}"),
        Happened::Assigned { project: Some(project) } => format!("given to project {project}"),
        Happened::Assigned { project: None } => "taken back from its project".into(),
        Happened::AddressesAnnounced { prefix } => format!("announces {prefix}"),
        Happened::AddressesWithdrawn { prefix } => format!("announces {prefix} no longer"),
        Happened::Held { lifecycle, reason, until: Some(until) } => format!("{lifecycle} until {until:.0}: {reason}"),
        Happened::Held { lifecycle, reason, until: None } => format!("{lifecycle}: {reason}"),
        Happened::Resumed { lifecycle } => format!("in service again: {lifecycle}"),
        Happened::AddressesMoved { prefix, from, to } => format!("{prefix} moved from {from} to {to}"),
        Happened::AgentEnrolled { agent } => format!("agent {agent} enrolled"),
        Happened::AgentRevoked { agent, by } => format!("agent {agent} revoked by {by}"),
        Happened::NodeReplaced { agent: Some(agent), by } => {
            format!("the node of agent {agent} was given up by {by}; another one is waited for")
        }
        Happened::NodeReplaced { agent: None, by } => {
            format!("a node is waited for; {by} made a new code, and those before are void")
        }
        Happened::HealthOverridden { reason, by, expires } => {
            format!("{by} has it given out although it is critical, until {expires}: {reason}")
        }
        Happened::HealthOverrideRemoved { by } => format!("{by} has it given out only when it is not critical"),
        Happened::CommandLost { agent, .. } => {
            format!("power command: outcome unknown: agent {agent}, which may have it, is not let in any more")
        }
    }
}

/// Which events.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Which {
    /// Only those of this rack (id or name).
    rack: Option<String>,
    /// Only those about this machine (id or name).
    machine: Option<String>,
    /// Only those that belong to this run.
    run: Option<String>,
    /// Only those after the event with this number. For pages: `next` of the page before.
    after: Option<String>,
    /// How many at most, 1 to 200; of no effect on a stream.
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<u32>,
}

impl Which {
    async fn filter(&self, app: &App, caller: &Caller) -> Result<EventFilter, Error> {
        let sight = caller.sight(Action::EventRead)?;
        let mut filter = EventFilter { run: parse("run", self.run.as_deref())?, sight, ..EventFilter::default() };
        if let Some(rack) = &self.rack {
            filter.rack = Some(caller.rack(app, rack).await?);
        }
        if let Some(machine) = &self.machine {
            filter.machine = Some(caller.machine(app, machine).await?);
        }
        Ok(filter)
    }
}

/// List events
///
/// The oldest first. To follow what happens, use the stream.
#[utoipa::path(get, path = "/v1/events", tag = "events", params(Which), responses((status = 200, body = Page<Event>)))]
pub(super) async fn list(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Query(which): Query<Which>,
) -> Result<impl IntoResponse, Error> {
    let limit = limit(which.limit)?;
    let after = parse("after", which.after.as_deref())?.unwrap_or(0);
    let rows = app.store.events(after, &which.filter(&app, &caller).await?, limit + 1).await?;
    Ok(axum::Json(Page::of(rows, limit, |row| row.id.to_string(), Event::from)))
}

/// Follow events
///
/// Server-sent events: each has the event's number as its `id`, its kind as `event` and the
/// event's JSON as `data`. Begins after the number in `Last-Event-ID` or `after`, otherwise
/// with what happens from now on; clients that reconnect miss nothing. A comment is sent every
/// 15 seconds when nothing happens.
#[utoipa::path(get, path = "/v1/events/stream", tag = "events",
    params(Which, ("Last-Event-ID" = Option<u64>, Header, description = "Number of the last event seen.")),
    responses((status = 200, body = Event, content_type = "text/event-stream")))]
pub(super) async fn follow(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Query(which): Query<Which>,
    headers: HeaderMap,
) -> Result<impl IntoResponse, Error> {
    let filter = which.filter(&app, &caller).await?;
    let header = headers.get("last-event-id").and_then(|value| value.to_str().ok());
    let after = match parse("Last-Event-ID", header)? {
        Some(after) => after,
        None => match parse("after", which.after.as_deref())? {
            Some(after) => after,
            None => app.store.newest_event().await?,
        },
    };
    Ok(Sse::new(stream(app, caller, filter, after)).keep_alive(KeepAlive::default()))
}

/// A stream of what the caller may see. It ends when that is no longer what it was, or the token is no
/// longer good: the client comes back and is asked again who it is.
fn stream(
    app: App,
    caller: Caller,
    filter: EventFilter,
    after: u64,
) -> impl Stream<Item = Result<sse::Event, Infallible>> {
    let begin = (app, caller, filter, after, VecDeque::new(), Instant::now());
    stream::unfold(begin, move |(app, caller, filter, mut after, mut waiting, mut asked)| async move {
        while waiting.is_empty() {
            if asked.elapsed() > TRUST {
                asked = Instant::now();
                if !matches!(access::still(&app, &caller).await, Ok(true)) {
                    return None;
                }
            }
            match app.store.events(after, &filter, BATCH).await {
                Ok(rows) => waiting.extend(rows),
                Err(error) => {
                    // The client reconnects and goes on where it was.
                    tracing::error!(error = &error as &dyn std::error::Error, "cannot read events for a stream");
                    return None;
                }
            }
            if waiting.is_empty() {
                tokio::select! {
                    () = app.shutdown.cancelled() => return None,
                    () = tokio::time::sleep(LOOK) => (),
                }
            }
        }
        let event = Event::from(waiting.pop_front()?);
        after = after.max(event.id);
        let data = serde_json::to_string(&event).expect("events always serialize");
        let sent = sse::Event::default().id(event.id.to_string()).event(&event.kind).data(data);
        Some((Ok(sent), (app, caller, filter, after, waiting, asked)))
    })
}
