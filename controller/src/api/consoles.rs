//! `/v1/machines/{machine}/console`: a machine's serial console as a websocket, and what was recorded
//! of it.
//!
//! Who may switch a machine's power may open its console; but that of a machine with somebody's system
//! on it only who may so for its project, and not who merely runs the rack.
//!
//! Invariants:
//! - A console is opened, its keyboard given, and it is left, only with a record of it; what was typed
//!   is counted and never kept.
//! - Whoever may no longer loses it within [`TRUST`].
//! - A watcher that is slow holds up nobody: the oldest bytes are dropped and it is told how many.
//! - There are at most [`PER_PERSON`], [`PER_RACK`] and [`ALL`] at a time.

use std::{
    collections::{HashMap, VecDeque},
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Extension,
    extract::{
        ConnectInfo, Path, State,
        ws::{Message, WebSocket, WebSocketUpgrade, rejection::WebSocketUpgradeRejection},
    },
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use futures_util::future::BoxFuture;
use rackhand_common::{
    audit::{Change, Record},
    id::{MachineId, RackId},
    wire::{
        self, ConsoleRequest, ControllerRequest, ControllerResponse, FromConsole, MAX_CONSOLE, MAX_CONSOLE_BYTES,
        ToConsole,
    },
};
use rackhand_controller_core::{
    access::{Action, Place},
    lifecycle::Lifecycle,
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::{Notify, mpsc},
    time::{MissedTickBehavior, interval, timeout},
};
use utoipa::IntoParams;
use uuid::Uuid;

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

/// Consoles of one person or project, of one rack, and of all, at a time.
const PER_PERSON: usize = 8;
const PER_RACK: usize = 16;
const ALL: usize = 64;

/// How long what a caller may is believed.
const TRUST: Duration = Duration::from_secs(5);

/// How often a client is asked whether it is there, and how long one that says nothing is kept.
const PING: Duration = Duration::from_secs(15);
const GONE: Duration = Duration::from_secs(60);

/// How long one message to a client may take.
const SLOW: Duration = Duration::from_secs(30);

/// How many printed bytes wait for a client: a whole scroll-back.
const WAITING: usize = (1 << 20) + MAX_CONSOLE_BYTES;

/// How many typed messages may wait for the agent: then the client waits.
const TYPED: usize = 16;

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

/// Who has how many consoles open; clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Seats(Arc<Mutex<HashMap<String, usize>>>);

/// A place for a console; free again when this is dropped.
#[derive(Debug)]
struct Seat {
    seats: Seats,
    keys: [String; 3],
}

impl Seats {
    fn take(&self, person: &str, rack: &str) -> Result<Seat, Error> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let keys = [format!("person {person}"), format!("rack {rack}"), "all".to_owned()];
        for (key, most) in keys.iter().zip([PER_PERSON, PER_RACK, ALL]) {
            if taken.get(key).is_some_and(|count| *count >= most) {
                let whose = key.split_once(' ').map_or("all of them", |(kind, _)| match kind {
                    "person" => "yours",
                    _ => "those of its rack",
                });
                return Err(Error::unavailable(format!(
                    "{most} consoles are open, {whose}, which is the most there can be: close others"
                )));
            }
        }
        for key in &keys {
            *taken.entry(key.clone()).or_default() += 1;
        }
        Ok(Seat { seats: self.clone(), keys })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.0.lock().unwrap_or_else(PoisonError::into_inner);
        for key in &self.keys {
            if let Some(count) = taken.get_mut(key) {
                *count -= 1;
                if *count == 0 {
                    taken.remove(key);
                }
            }
        }
    }
}

/// Which recording.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Which {
    /// Made during this run; absent: during the latest that was recorded.
    run: Option<String>,
}

/// What a client says as text.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case", tag = "do", deny_unknown_fields)]
enum Wish {
    /// Give me the keyboard.
    Take,
    /// I need it no more.
    Give,
    /// Send a break.
    Break,
}

/// What a client is told as text.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case", tag = "event")]
enum Notice {
    /// Who has the keyboard.
    Writer { who: Option<String>, you: bool },
    /// So many bytes were not sent, since the client was too slow.
    Lost { bytes: u64 },
    /// It is over.
    Ended { why: String },
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
    let asked = app.agents.ask(machine.rack, ControllerRequest::Console(machine.id)).await;
    match asked.map_err(Error::unavailable)? {
        ControllerResponse::Console => {}
        other => return Err(refusal(other)),
    }
    let through = headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let record = Record {
        id: Uuid::nil(),
        at: app.clock.now().wall,
        by: caller.name.clone(),
        token: caller.token,
        from: from.map(|Extension(ConnectInfo(from))| from.ip().to_canonical()),
        through: through.chars().take(200).collect(),
        action: format!("GET /v1/machines/{}/console", machine.name),
        request: Trace::present().request,
        changes: vec![Change { kind: "console".to_owned(), id: machine.id.to_string(), before: None, after: None }],
    };
    let request = ConsoleRequest { machine: machine.id, who: caller.name.clone() };
    let opened = app.agents.open(machine.rack, request).await.map_err(Error::unavailable)?;
    note(&app, &record, "opened").await?;
    let console = Console { app, caller, machine: machine.id, record, typed: 0, is_mine: false, is_anyones: true };
    Ok(upgrade
        .max_message_size(MESSAGE)
        .on_upgrade(move |socket| async move {
            let _seat = seat;
            console.carry(socket, opened).await;
        })
        .into_response())
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
async fn allowed(app: &App, caller: &Caller, machine: &str) -> Result<Machine, Error> {
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

/// A console that is open.
struct Console {
    app: App,
    caller: Caller,
    machine: MachineId,
    record: Record,
    /// How many bytes this watcher typed while they counted.
    typed: u64,
    /// Whether this watcher has the keyboard.
    is_mine: bool,
    /// Whether nobody has it.
    is_anyones: bool,
}

impl Console {
    async fn carry(mut self, socket: WebSocket, opened: Opened) {
        let why = self.carried(socket, opened).await;
        let what = format!("left, {} bytes typed", self.typed);
        if let Err(error) = note(&self.app, &self.record, &what).await {
            tracing::error!(error = &error as &dyn std::error::Error, what, "the end of a console cannot be recorded");
        }
        tracing::debug!(machine = %self.machine, who = self.caller.name, why, "a console was left");
    }

    /// Until either side ends; why it did.
    async fn carried(&mut self, mut socket: WebSocket, opened: Opened) -> &'static str {
        let queue = Queue::default();
        let Opened { say, told } = opened;
        let (typing, typed) = mpsc::channel(TYPED);
        let mut agent = std::pin::pin!(async {
            tokio::select! {
                () = listen(told, &queue) => {}
                _ = speak(say, typed) => {}
            }
        });
        let mut is_agent_gone = false;
        let (mut ping, mut trust) = (interval(PING), interval(TRUST));
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        trust.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = tokio::time::Instant::now();
        loop {
            let message = tokio::select! {
                biased;
                () = self.app.shutdown.cancelled() => {
                    let why = "the controller stops; it is back soon if it is only restarted".to_owned();
                    return self.end(socket, why, "shutdown").await;
                }
                _ = trust.tick() => match self.still().await {
                    Ok(()) => continue,
                    Err(error) => return self.end(socket, error.detail().to_owned(), "no longer permitted").await,
                },
                _ = ping.tick() => {
                    // While it is typed faster than the line takes it, the client is not listened to.
                    if heard.elapsed() > GONE && typing.capacity() > 0 {
                        return "the client is gone";
                    }
                    Message::Ping(Default::default())
                }
                told = queue.next() => match told {
                    FromConsole::Ended(why) => return self.end(socket, why, "the agent ended it").await,
                    told => match self.told(told).await {
                        Ok(message) => message,
                        Err(error) => return self.end(socket, error.detail().to_owned(), "not recorded").await,
                    },
                },
                () = &mut agent, if !is_agent_gone => {
                    is_agent_gone = true;
                    queue.add(FromConsole::Ended("the rack's agent is gone: it stopped, or its connection broke".into()));
                    continue;
                }
                received = socket.recv(), if typing.capacity() > 0 => {
                    heard = tokio::time::Instant::now();
                    let said = match received {
                        Some(Ok(Message::Binary(bytes))) => Some(ToConsole::Typed(bytes.to_vec())),
                        Some(Ok(Message::Text(text))) => match serde_json::from_str(&text) {
                            Ok(Wish::Take) => Some(ToConsole::Take),
                            Ok(Wish::Give) => Some(ToConsole::Give),
                            Ok(Wish::Break) => Some(ToConsole::Break),
                            Err(error) => {
                                let why = format!("what was said is not understood: {error}");
                                return self.end(socket, why, "not understood").await;
                            }
                        },
                        Some(Ok(Message::Ping(_) | Message::Pong(_))) => None,
                        Some(Ok(Message::Close(_)) | Err(_)) | None => return "the client left",
                    };
                    if let Some(said) = said {
                        if let ToConsole::Typed(bytes) = &said
                            && (self.is_mine || self.is_anyones)
                        {
                            self.typed += bytes.len() as u64;
                        }
                        // There is room for it.
                        let _ = typing.try_send(said);
                    }
                    continue;
                }
            };
            match timeout(SLOW, socket.send(message)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return "the client left",
                Err(_) => return "the client was too slow",
            }
        }
    }

    /// That the caller may still.
    async fn still(&self) -> Result<(), Error> {
        if !access::still(&self.app, &self.caller).await? {
            return Err(Error::forbidden("the token is no longer good, or its roles have changed: open it again"));
        }
        allowed(&self.app, &self.caller, &self.machine.to_string()).await.map(drop)
    }

    /// As it is sent to the client; getting the keyboard is written down first.
    async fn told(&mut self, told: FromConsole) -> Result<Message, Error> {
        let notice = match told {
            FromConsole::Printed(bytes) => return Ok(Message::Binary(bytes.into())),
            FromConsole::Writer { who, is_you } => {
                if is_you && !self.is_mine {
                    note(&self.app, &self.record, "has the keyboard").await?;
                }
                (self.is_mine, self.is_anyones) = (is_you, who.is_none());
                Notice::Writer { who, you: is_you }
            }
            FromConsole::Lost(bytes) => Notice::Lost { bytes },
            FromConsole::Ended(why) => Notice::Ended { why },
        };
        Ok(Message::Text(text(&notice).into()))
    }

    async fn end(&self, mut socket: WebSocket, why: String, reason: &'static str) -> &'static str {
        let told = async {
            socket.send(Message::Text(text(&Notice::Ended { why }).into())).await?;
            socket.send(Message::Close(None)).await
        };
        // It may be gone already.
        let _ = timeout(Duration::from_secs(2), told).await;
        reason
    }
}

fn text(notice: &Notice) -> String {
    serde_json::to_string(notice).expect("notices always serialize")
}

/// What waits for a client.
#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    added: Notify,
}

#[derive(Default)]
struct Waiting {
    told: VecDeque<FromConsole>,
    /// How many printed bytes are among it.
    bytes: usize,
    /// How many were dropped since the last that the client was sent.
    lost: u64,
}

impl Queue {
    /// Adds what the agent told; the oldest bytes give way.
    fn add(&self, told: FromConsole) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        match &told {
            FromConsole::Printed(bytes) => waiting.bytes += bytes.len(),
            // Only the latest is of interest: there are no more of them than a handful.
            FromConsole::Writer { .. } => waiting.told.retain(|told| !matches!(told, FromConsole::Writer { .. })),
            FromConsole::Lost(bytes) => {
                waiting.lost += bytes;
                drop(waiting);
                return self.added.notify_one();
            }
            FromConsole::Ended(_) => {}
        }
        waiting.told.push_back(told);
        while waiting.bytes > WAITING {
            let oldest = waiting.told.iter().position(|told| matches!(told, FromConsole::Printed(_)));
            let Some(FromConsole::Printed(bytes)) = oldest.and_then(|oldest| waiting.told.remove(oldest)) else {
                break;
            };
            waiting.bytes -= bytes.len();
            waiting.lost += bytes.len() as u64;
        }
        drop(waiting);
        self.added.notify_one();
    }

    fn take(&self) -> Option<FromConsole> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.lost > 0 {
            return Some(FromConsole::Lost(std::mem::take(&mut waiting.lost)));
        }
        let told = waiting.told.pop_front()?;
        if let FromConsole::Printed(bytes) = &told {
            waiting.bytes -= bytes.len();
        }
        Some(told)
    }

    /// The next. May be cancelled: nothing is lost.
    async fn next(&self) -> FromConsole {
        loop {
            if let Some(told) = self.take() {
                return told;
            }
            self.added.notified().await;
        }
    }
}

/// Takes in what the agent tells, however slow the client is: the connection is its rack's, and
/// other things travel on it.
async fn listen(mut told: Box<dyn AsyncRead + Send + Unpin>, queue: &Queue) {
    loop {
        match receive(&mut told).await {
            Ok(Some(told)) => {
                let is_over = matches!(told, FromConsole::Ended(_));
                queue.add(told);
                if is_over {
                    return;
                }
            }
            Ok(None) => return,
            Err(error) => return tracing::debug!(%error, "a console's stream broke"),
        }
    }
}

async fn speak(mut say: Box<dyn AsyncWrite + Send + Unpin>, mut typed: mpsc::Receiver<ToConsole>) -> io::Result<()> {
    while let Some(said) = typed.recv().await {
        say.write_all(&wire::frame(&said)).await?;
    }
    say.shutdown().await
}

/// The next message of the agent; `None` when it has ended.
async fn receive(told: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<FromConsole>> {
    let mut prefix = [0; 4];
    match told.read_exact(&mut prefix).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    };
    let length = u32::from_be_bytes(prefix) as usize;
    if length > MAX_CONSOLE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message that is too long for a console"));
    }
    let mut body = vec![0; length];
    told.read_exact(&mut body).await?;
    wire::decode(&body).map(Some).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(length: usize) -> FromConsole {
        FromConsole::Printed(vec![b'x'; length])
    }

    #[test]
    fn a_client_that_does_not_read_loses_the_oldest_bytes_and_is_told_how_many() {
        let queue = Queue::default();
        queue.add(FromConsole::Writer { who: None, is_you: false });
        for _ in 0..100 {
            queue.add(printed(MAX_CONSOLE_BYTES));
        }
        queue.add(FromConsole::Writer { who: Some("ada".into()), is_you: false });
        let kept = WAITING / MAX_CONSOLE_BYTES;
        let lost = ((100 - kept) * MAX_CONSOLE_BYTES) as u64;
        assert_eq!(queue.take(), Some(FromConsole::Lost(lost)));
        for _ in 0..kept {
            assert_eq!(queue.take(), Some(printed(MAX_CONSOLE_BYTES)));
        }
        assert_eq!(queue.take(), Some(FromConsole::Writer { who: Some("ada".into()), is_you: false }));
        assert_eq!(queue.take(), None);
    }

    #[test]
    fn places_are_counted_by_person_by_rack_and_all_and_are_free_again() {
        let seats = Seats::default();
        let mut taken: Vec<_> = (0..PER_PERSON).map(|_| seats.take("ada", "r1").unwrap()).collect();
        let refused = |person: &str, rack: &str| seats.take(person, rack).is_err();
        assert!(refused("ada", "r2") && !refused("bob", "r1"));
        taken.extend((0..PER_RACK - PER_PERSON).map(|_| seats.take("bob", "r1").unwrap()));
        assert!(refused("eve", "r1") && !refused("eve", "r2"));
        drop(taken);
        assert!(!refused("ada", "r1") && seats.0.lock().unwrap().is_empty());
    }
}
