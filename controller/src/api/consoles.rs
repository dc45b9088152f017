//! `/v1/machines/{machine}/console`: a machine's serial console as a websocket, and what was recorded
//! of it.
//!
//! Who may switch a machine's power may open its console; but that of a machine with somebody's system
//! on it only who may so for its project, and not who merely runs the rack.
//!
//! [`carry`] is a console that is open, [`socket`] a watcher's end of it, [`seats`] how many there may be.
//!
//! Invariant: a console is opened only with a record of it.

mod carry;
mod seats;
mod socket;

pub(crate) use self::carry::{Console, End, Left, Proof};
pub use self::seats::Seats;

use std::net::{IpAddr, SocketAddr};

use axum::{
    Extension,
    extract::{
        ConnectInfo, Path, State,
        ws::{WebSocketUpgrade, rejection::WebSocketUpgradeRejection},
    },
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use futures_util::future::BoxFuture;
use rackhand_common::{
    audit::{Change, Record},
    id::RackId,
    wire::{ConsoleRequest, ControllerRequest, ControllerResponse, MAX_CONSOLE_BYTES},
};
use rackhand_controller_core::{
    access::{Action, Place},
    lifecycle::Lifecycle,
};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use utoipa::IntoParams;
use uuid::Uuid;

use self::socket::Socket;
use super::{
    App, Caller, Error, access,
    extract::{Query, text_page},
    runs,
    trace::Trace,
};
use crate::{
    store::{Machine, StoreError, Thing},
    workflows::Unreachable,
};

/// The longest message of a client, in bytes.
const MESSAGE: usize = MAX_CONSOLE_BYTES;

/// How many pieces a recording has at most; an agent gives a mebibyte at a time.
const PIECES: usize = 8;

/// How many of a machine's latest runs are looked at for one that was recorded.
const RUNS: u32 = 10;

/// A console of a rack's agent: what is said and what is told.
pub struct Opened {
    /// To the agent.
    pub say: Box<dyn AsyncWrite + Send + Unpin>,
    /// From the agent.
    pub told: Box<dyn AsyncRead + Send + Unpin>,
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opened").finish_non_exhaustive()
    }
}

/// The racks' agents, as far as consoles go.
pub trait Agents: Send + Sync {
    /// Asks the agent of a rack.
    fn ask(
        &self,
        rack: RackId,
        request: ControllerRequest,
    ) -> BoxFuture<'static, Result<ControllerResponse, Unreachable>>;

    /// Opens a console.
    fn open(&self, rack: RackId, request: ConsoleRequest) -> BoxFuture<'static, Result<Opened, Unreachable>>;
}

/// Which recording.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Which {
    /// Made during this run; absent: during the latest that was recorded.
    run: Option<String>,
}

/// Open a machine's serial console
///
/// A websocket. Binary messages are bytes of the console, both ways: first what was printed lately.
/// Text is JSON: a client says `{"do": "take"}`, `{"do": "give"}` (the keyboard) or
/// `{"do": "break"}`, and is told `{"event": "writer", "who": …, "you": …}`,
/// `{"event": "lost", "bytes": …}` and `{"event": "ended", "why": …}`. Who types while nobody has the
/// keyboard gets it; what others type is dropped. The console of a machine that has somebody's
/// system on it is opened for its project's people only.
#[utoipa::path(get, path = "/v1/machines/{machine}/console", tag = "machines",
    params(("machine" = String, Path, description = "Id or name.")),
    responses((status = 101, description = "The websocket follows.")))]
pub(super) async fn open(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    from: Option<Extension<ConnectInfo<SocketAddr>>>,
    Path(machine): Path<String>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Error> {
    let machine = allowed(&app, &caller, &machine).await?;
    let upgrade =
        upgrade.map_err(|_| Error::malformed("a console is a websocket: ask with `Upgrade: websocket` (RFC 6455)"))?;
    let through = headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let asked = Asked {
        from: from.map(|Extension(ConnectInfo(from))| from.ip()),
        through: through.chars().take(200).collect(),
        action: format!("GET /v1/machines/{}/console", machine.name),
    };
    let console = begin(&app, caller, Proof::Token, &machine, asked).await?;
    Ok(upgrade
        .max_message_size(MESSAGE)
        .on_upgrade(move |socket| async move { console.carry(&mut Socket::new(socket)).await })
        .into_response())
}

/// How a console was asked for, for the record.
pub(crate) struct Asked {
    /// From where.
    pub(crate) from: Option<IpAddr>,
    /// Through what: the client's own name for itself, or its key.
    pub(crate) through: String,
    /// What was asked for.
    pub(crate) action: String,
}

/// Opens the console of a machine for a caller who may have it, and writes that down.
pub(crate) async fn begin(
    app: &App,
    caller: Caller,
    proof: Proof,
    machine: &Machine,
    asked: Asked,
) -> Result<Console, Error> {
    let seat = app.seats.take(&caller.name, &machine.rack.to_string())?;
    match app.store.bmc(machine.id).await {
        Err(StoreError::NotFound(_)) => {
            return Err(Error::conflict(format!(
                "no BMC is set for {0}: `rackhand bmc set {0} --address ADDRESS --user USER`",
                machine.name
            )));
        }
        known => drop(known?),
    }
    let answer = app.agents.ask(machine.rack, ControllerRequest::Console(machine.id)).await;
    match answer.map_err(Error::unavailable)? {
        ControllerResponse::Console => {}
        other => return Err(refusal(other)),
    }
    let record = Record {
        id: Uuid::nil(),
        at: app.clock.now().wall,
        by: caller.name.clone(),
        token: caller.token,
        from: asked.from.map(|from| from.to_canonical()),
        through: asked.through,
        action: asked.action,
        request: Trace::present().request,
        changes: vec![Change { kind: "console".to_owned(), id: machine.id.to_string(), before: None, after: None }],
    };
    let request = ConsoleRequest { machine: machine.id, who: caller.name.clone() };
    let opened = app.agents.open(machine.rack, request).await.map_err(Error::unavailable)?;
    note(app, &record, "opened").await?;
    Ok(Console { app: app.clone(), caller, proof, machine: machine.id, record, opened, seat })
}

/// Show what was recorded of a machine's console
///
/// As it was printed, escape sequences and all; during each run of a machine whose BMC has a console.
#[utoipa::path(get, path = "/v1/machines/{machine}/console/log", tag = "machines",
    params(("machine" = String, Path, description = "Id or name."), Which),
    responses((status = 200, content_type = "text/plain", body = String)))]
pub(super) async fn log(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(machine): Path<String>,
    Query(which): Query<Which>,
) -> Result<Response, Error> {
    let machine = app.store.machine(&machine).await?;
    let runs = match &which.run {
        Some(run) => {
            // A recording is of whoever had the machine then.
            caller.find(&app, Action::RunRead, Thing::Run, run).await?;
            let run = app.store.run(runs::id(run)?).await?;
            if run.machine != machine.id {
                return Err(Error::not_found("that run was another machine's"));
            }
            vec![run.id]
        }
        None => {
            let latest = app.store.runs(&caller.sight(Action::RunRead)?, Some(machine.id), None, RUNS).await?;
            latest.iter().map(|run| run.id).collect()
        }
    };
    let mut why = "no run of it was recorded yet".to_owned();
    for run in runs {
        let mut text = Vec::new();
        for _ in 0..PIECES {
            let offset = text.len() as u64;
            let request = ControllerRequest::Recording { machine: machine.id, run: Some(run), offset };
            match app.agents.ask(machine.rack, request).await.map_err(Error::unavailable)? {
                ControllerResponse::Recording(piece) if piece.is_empty() => break,
                ControllerResponse::Recording(piece) => text.extend(piece),
                ControllerResponse::Refused(reason) => {
                    why = reason;
                    break;
                }
                other => return Err(refusal(other)),
            }
        }
        if !text.is_empty() {
            let text = String::from_utf8_lossy(&text).into_owned();
            return Ok(text_page("text/plain; charset=utf-8", text, None));
        }
    }
    Err(Error::not_found(why))
}

/// The machine, when the caller may have its console. That power may be switched was decided; a system
/// that runs is its project's.
pub(crate) async fn allowed(app: &App, caller: &Caller, machine: &str) -> Result<Machine, Error> {
    let standing = caller.find(app, Action::MachinePower, Thing::Machine, machine).await?;
    let found = app.store.machine(&standing.id).await?;
    let of_project = Place { site: None, rack: None, ..standing.place };
    let is_theirs = matches!(found.lifecycle, Lifecycle::Active | Lifecycle::Rescue) && found.project.is_some();
    if is_theirs && !caller.rights.permit(Action::MachinePower, of_project) {
        return Err(Error::forbidden(
            "the machine is in use, and its console is its project's: ask one of the project's people to open it",
        ));
    }
    Ok(found)
}

fn refusal(response: ControllerResponse) -> Error {
    match response {
        // Asking again is of no use.
        ControllerResponse::Refused(reason) => Error::conflict(reason),
        ControllerResponse::NotUnderstood(_) => {
            Error::unavailable("the rack's agent is of an earlier version and knows no consoles: upgrade it")
        }
        other => Error::unavailable(format!("the rack's agent gave an answer that does not fit: {other:?}")),
    }
}

/// Writes down what became of a console.
async fn note(app: &App, record: &Record, what: &str) -> Result<(), StoreError> {
    let (id, at) = (Uuid::now_v7(), app.clock.now().wall);
    let action = format!("{} ({what})", record.action);
    let mut tx = app.store.begin().await?;
    tx.note(Record { id, at, action, ..record.clone() });
    tx.commit().await
}
