//! The installers' channel: see [`rackhand_common::channel`] for what is said on it.
//!
//! Invariants:
//! - Nothing is answered to a key without a session but its ticket.
//! - A report is answered once it is on this node's disk.
//! - No machine tells so much or so often that it fills the spool.

use std::sync::Arc;

use axum::{
    Extension, Json, Router,
    extract::{DefaultBodyLimit, Path, Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use rackhand_common::{
    bmc::InBandUser,
    channel::{
        Admitted, Assignment, DeployTask, Drive, EraseTask, FirmwareTask, Found, HOLD, MAX_BODY, News, Present,
        RegainBmcTask, Report, RescueTask, Task, TestTask, ToolboxFile, Warrant,
    },
    event::{Login, MAX_TEXT, Stage, What},
    hardware::Hardware,
    id::{MachineId, RunId},
    image::{Digest, Settings, SignedManifest},
    intent::{Deploy, Intent, MachineIntent, Order, Work},
    pki::{KeyPin, Peer},
    time::Clock,
};
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time::timeout};

use super::{
    agent_link::{AgentLink, NotFetched},
    chunks::{ChunkError, Chunks},
    leases::Leases,
    listener::Client,
    phone_home::PhoneHome,
    ration::Rations,
    seldom::Seldom,
    sessions::{Duty, NotKept, Sessions, duty},
    settings::Told,
    ticket::{NotAdmitted, Session, Tickets},
    toolbox::Toolbox,
};

/// What the channel's handlers share.
#[derive(Clone)]
pub(super) struct Channel {
    pub(super) clock: Arc<dyn Clock>,
    pub(super) intent: watch::Receiver<Option<Arc<Intent>>>,
    pub(super) leases: Leases,
    pub(super) tickets: Tickets,
    pub(super) sessions: Sessions,
    pub(super) chunks: Chunks,
    pub(super) toolbox: Toolbox,
    pub(super) agent: AgentLink,
    pub(super) phone_home: PhoneHome,
    pub(super) seldom: Seldom,
    pub(super) rations: Rations,
}

impl Channel {
    pub(super) fn routes(self) -> Router {
        Router::new()
            .route("/v1/ticket", post(ticket))
            .route("/v1/inventory", put(inventory))
            .route("/v1/hardware", put(hardware))
            .route("/v1/assignment", get(assignment))
            .route("/v1/manifests/{digest}", get(manifest))
            .route("/v1/drives/{settings}", get(drive))
            .route("/v1/bmc-user", get(bmc_user))
            .route("/v1/toolbox", get(toolbox))
            .route("/v1/firmware/{offset}", get(firmware))
            .route("/v1/report", post(report))
            .layer(DefaultBodyLimit::max(MAX_BODY))
            .with_state(self)
    }

    fn key(client: Client) -> Result<KeyPin, Refusal> {
        match client.peer {
            Some(Peer::Pinned(key)) => Ok(key),
            Some(Peer::Certified(_) | Peer::Lapsed(_)) | None => Err(Refusal::NoSession),
        }
    }

    /// The session of whoever asks; it counts as heard.
    async fn session(&self, client: Client) -> Result<Session, Refusal> {
        let session = self.tickets.session(Self::key(client)?).ok_or(Refusal::NoSession)?;
        self.leases.heard(client.address.ip());
        self.sessions.heard(session.machine).await?;
        Ok(session)
    }

    fn assignment(&self, session: &Session) -> Assignment {
        let intent = self.intent.borrow().clone();
        let machine =
            intent.as_deref().and_then(|intent| intent.machines.iter().find(|known| known.id == session.machine));
        let task = match (duty(machine, self.sessions.ended(session.machine)), machine) {
            (Duty::Work(order), Some(machine)) => self.task(session, machine, order),
            (Duty::Reboot, _) => Task::Reboot,
            (Duty::Wait | Duty::Work(_), _) => Task::Wait,
        };
        let json = serde_json::to_vec(&task).expect("tasks always serialize");
        let [a, b, c, d, e, f, g, h, ..] = Digest::of(&json).0;
        Assignment { serial: u64::from_be_bytes([a, b, c, d, e, f, g, h]), task }
    }

    fn task(&self, session: &Session, machine: &MachineIntent, order: &Order) -> Task {
        let warrant = Warrant {
            run: order.run,
            attempt: order.attempt,
            machine: machine.id,
            epoch: machine.epoch,
            disks: order.disks.clone(),
            mainboard: order.work.mainboard().cloned(),
        };
        match &order.work {
            Work::RegainBmc(_) => Task::RegainBmc(RegainBmcTask { warrant }),
            Work::Rescue(rescue) => Task::Rescue(RescueTask { warrant, ssh_keys: rescue.ssh_keys.clone() }),
            Work::Test(test) => {
                let known = self.sessions.testing(machine.id, order.run, order.attempt);
                let (done, begun) = known.map(|known| (known.done, known.begun)).unwrap_or_default();
                Task::Test(TestTask { warrant, scripts: test.scripts.clone(), done, begun })
            }
            Work::Firmware(update) => {
                let begun = self.sessions.is_update_begun(machine.id, order.run, order.attempt);
                Task::Firmware(Box::new(FirmwareTask { warrant, order: (**update).clone(), begun }))
            }
            Work::Erase | Work::EraseOn(_) => {
                let known = self.sessions.erasing(machine.id, order.run, order.attempt);
                let (done, begun) = known.map(|known| (known.done, known.begun)).unwrap_or_default();
                Task::Erase(EraseTask { warrant, done, begun })
            }
            Work::Deploy(deploy) | Work::DeployOn(_, deploy) => Task::Deploy(DeployTask {
                disk: deploy.disk.clone(),
                manifest: deploy.manifest,
                files: self.told(session, order, deploy).files(Settings::Cidata),
                warrant,
            }),
        }
    }

    /// Whether this is a disk of the machine's present order to erase.
    fn check_erasure(&self, machine: MachineId, run: RunId, attempt: u32, disk: &str) -> Result<(), Refusal> {
        let listed = |order: &Order| order.work.erases() && order.disks.iter().any(|listed| listed == disk);
        self.order_is(machine, run, attempt, listed).then_some(()).ok_or(Refusal::NoErasure)
    }

    /// Whether this is a test of the machine's present order.
    fn check_test(&self, machine: MachineId, run: RunId, attempt: u32, script: &str) -> Result<(), Refusal> {
        let listed =
            |order: &Order| order.work.test().is_some_and(|test| test.scripts.iter().any(|listed| listed == script));
        self.order_is(machine, run, attempt, listed).then_some(()).ok_or(Refusal::NoTest)
    }

    /// Whether this is an update of firmware that the machine is ordered; `name` is its manifest's, when it is
    /// told.
    fn check_update(&self, machine: MachineId, run: RunId, attempt: u32, name: Option<&str>) -> Result<(), Refusal> {
        let is_it =
            |order: &Order| order.work.firmware().is_some_and(|update| name.is_none_or(|name| update.name == name));
        self.order_is(machine, run, attempt, is_it).then_some(()).ok_or(Refusal::NoUpdate)
    }

    /// Whether the machine's present order is of this run and try, and `is_so`.
    fn order_is(&self, machine: MachineId, run: RunId, attempt: u32, is_so: impl Fn(&Order) -> bool) -> bool {
        let intent = self.intent.borrow();
        let mut known = intent.iter().flat_map(|intent| &intent.machines);
        let order = known.find(|known| known.id == machine).and_then(|machine| machine.order.as_ref());
        order.is_some_and(|order| (order.run, order.attempt) == (run, attempt) && is_so(order))
    }

    /// What the rescue system of a machine's present order tells of itself, with the address it was given.
    fn login(
        &self,
        Session { machine, mac, .. }: Session,
        (run, attempt): (RunId, u32),
        (port, host_key): (u16, String),
    ) -> Result<What, Refusal> {
        let is_rescue = self.order_is(machine, run, attempt, |order| order.work.rescue().is_some());
        if !is_rescue || port == 0 || !Login::is_fingerprint(&host_key) {
            return Err(Refusal::NoRescue);
        }
        let address = self.leases.holder(mac).ok_or(Refusal::NoAddress)?.address;
        Ok(What::Rescue { run, attempt, login: Login { address, port, host_key } })
    }

    /// What the system is told that this order installs on the session's machine.
    fn told<'a>(&self, session: &Session, order: &Order, deploy: &'a Deploy) -> Told<'a> {
        let phone_home = self.phone_home.url(session.machine, order.run);
        Told { run: order.run, mac: session.mac, host: &deploy.host, phone_home }
    }
}

/// The longest inventory or list of disks that is kept, in bytes of JSON: that of a machine with
/// two hundred disks.
const MAX_KEPT: usize = 64 << 10;

/// Why an installer is not answered as it wishes.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("this key has no session: present a ticket")]
    NoSession,
    #[error("the ticket is not yours")]
    Ticket,
    #[error("this card has no address from this node")]
    NoAddress,
    #[error("this node has no toolbox")]
    NoToolbox,
    #[error("the toolbox cannot be read")]
    Toolbox(#[source] std::io::Error),
    #[error("nothing is to be installed")]
    NoDeploy,
    #[error("no disk of an order to erase, or no sound record of one")]
    NoErasure,
    #[error("no test of an order, or no sound word of one")]
    NoTest,
    #[error("no order to rescue, or no sound fingerprint")]
    NoRescue,
    #[error("no update of firmware that is ordered, or no sound word of one")]
    NoUpdate,
    #[error("there is no such file of firmware: {0}")]
    NoFirmware(String),
    #[error("the file of firmware cannot be had now")]
    Firmware(#[source] NotFetched),
    #[error("no order to regain a BMC, or one that is over")]
    NoRegain,
    #[error("{0}")]
    NoBmcUser(NotFetched),
    #[error("longer than that of any machine")]
    TooLong,
    #[error("too often; try again")]
    TooOften,
    #[error("not now")]
    Chunk(#[from] ChunkError),
    #[error("not recorded; try again")]
    NotKept(#[from] NotKept),
    #[error("not recorded; try again")]
    Tickets(#[from] super::ticket::Unusable),
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::NoSession => StatusCode::UNAUTHORIZED,
            Self::Ticket => StatusCode::FORBIDDEN,
            Self::NoAddress | Self::NoErasure | Self::NoTest | Self::NoRescue | Self::NoUpdate | Self::NoRegain => {
                StatusCode::CONFLICT
            }
            Self::NoBmcUser(NotFetched::NotFound(_)) => StatusCode::CONFLICT,
            Self::NoBmcUser(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::TooLong => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooOften => StatusCode::TOO_MANY_REQUESTS,
            Self::NoDeploy | Self::NoToolbox | Self::NoFirmware(_) | Self::Chunk(ChunkError::NotListed(_)) => {
                StatusCode::NOT_FOUND
            }
            Self::Chunk(_) | Self::Firmware(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::NotKept(_) | Self::Tickets(_) | Self::Toolbox(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        if status.is_server_error() {
            tracing::warn!(error = format!("{:#}", anyhow::Error::from(self)), "an installer's request failed");
            return status.into_response();
        }
        (status, self.to_string()).into_response()
    }
}

async fn ticket(
    State(channel): State<Channel>,
    Extension(client): Extension<Client>,
    Json(present): Json<Present>,
) -> Result<Json<Admitted>, Refusal> {
    let (now, key) = (channel.clock.now(), Channel::key(client)?);
    let mac = present.mac;
    match channel.tickets.present(now, present.ticket, mac, key).await {
        Ok(session) => {
            // Whoever presents it again and again is admitted all the same.
            if channel.rations.lets(now.mono, session.machine) {
                channel.sessions.tell(session.machine, What::Stage(Stage::Installer));
            }
            tracing::info!(machine = %session.machine, address = %client.address, "installer admitted");
            Ok(Json(Admitted { machine: session.machine, time: now.wall }))
        }
        Err(NotAdmitted::Refused { machine, reason }) => {
            // By its reason: one neighbour's noise hides no other's.
            let lets = |machine: &_| channel.seldom.lets(now.mono, *machine, format!("ticket refused: {reason}"));
            if let Some(machine) = machine.filter(lets) {
                tracing::warn!(address = %client.address, %machine, %reason, "ticket refused");
                let reason = format!("{reason}; presented from {} for card {mac}", client.address.ip());
                channel.sessions.tell(machine, What::TicketRefused { reason });
            } else {
                tracing::debug!(address = %client.address, ?machine, %reason, "ticket refused");
            }
            Err(Refusal::Ticket)
        }
        Err(NotAdmitted::Unusable(error)) => Err(error.into()),
    }
}

fn is_kept(told: &impl Serialize) -> Result<(), Refusal> {
    let fits = serde_json::to_vec(told).is_ok_and(|json| json.len() <= MAX_KEPT);
    fits.then_some(()).ok_or(Refusal::TooLong)
}

async fn inventory(
    State(channel): State<Channel>,
    Extension(client): Extension<Client>,
    Json(Found { inventory, hardware }): Json<Found>,
) -> Result<StatusCode, Refusal> {
    let session = channel.tickets.session(Channel::key(client)?).ok_or(Refusal::NoSession)?;
    let holder = channel.leases.holder(session.mac).ok_or(Refusal::NoAddress)?;
    // Each is kept in a spool until the controller has it: whoever may send them must not be
    // able to fill the disk.
    is_kept(&inventory)?;
    if !channel.seldom.lets(channel.clock.now().mono, session.machine, "inventory") {
        return Err(Refusal::TooOften);
    }
    let Session { machine, mac, key } = session;
    // It is within bounds of its own, so that it never keeps an installer from connecting.
    let hardware = hardware.map(Hardware::sound);
    channel.sessions.connected(machine, mac, holder.address, Some(key), inventory, hardware).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn hardware(
    State(channel): State<Channel>,
    Extension(client): Extension<Client>,
    Json(hardware): Json<Hardware>,
) -> Result<StatusCode, Refusal> {
    let Session { machine, mac, .. } = channel.tickets.session(Channel::key(client)?).ok_or(Refusal::NoSession)?;
    if !channel.seldom.lets(channel.clock.now().mono, machine, "hardware") {
        return Err(Refusal::TooOften);
    }
    channel.sessions.told_hardware(machine, mac, hardware.sound()).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Deserialize)]
struct After {
    after: Option<u64>,
}

async fn assignment(
    State(channel): State<Channel>,
    Extension(client): Extension<Client>,
    Query(After { after }): Query<After>,
) -> Result<Json<Assignment>, Refusal> {
    let session = channel.session(client).await?;
    let (mut intent, mut changes) = (channel.intent.clone(), channel.sessions.changes());
    let news = async {
        loop {
            intent.mark_unchanged();
            changes.mark_unchanged();
            let assignment = channel.assignment(&session);
            if Some(assignment.serial) != after {
                return assignment;
            }
            tokio::select! {
                changed = intent.changed() => if changed.is_err() { return assignment },
                _ = changes.changed() => {}
            }
        }
    };
    let assignment = timeout(HOLD, news).await.unwrap_or_else(|_| channel.assignment(&session));
    if assignment.task == Task::Reboot {
        channel.sessions.rebooting(session.machine).await?;
    }
    Ok(Json(assignment))
}

async fn manifest(
    State(channel): State<Channel>,
    Extension(client): Extension<Client>,
    Path(digest): Path<Digest>,
) -> Result<Json<SignedManifest>, Refusal> {
    let machine = channel.session(client).await?.machine;
    let ordered = channel.intent.borrow().iter().flat_map(|intent| &intent.machines).any(|known| {
        let deploy = known.order.as_ref().and_then(|order| order.work.deploy());
        known.id == machine && deploy.is_some_and(|deploy| deploy.manifest == digest)
    });
    if !ordered {
        return Err(ChunkError::NotListed(digest).into());
    }
    Ok(Json(channel.chunks.ordered_manifest(digest).await?))
}

async fn drive(
    State(channel): State<Channel>,
    Extension(client): Extension<Client>,
    Path(settings): Path<Settings>,
) -> Result<Json<Drive>, Refusal> {
    let session = channel.session(client).await?;
    let intent = channel.intent.borrow().clone();
    let order = intent.iter().flat_map(|intent| &intent.machines).find(|known| known.id == session.machine);
    let order = order.and_then(|machine| machine.order.as_ref()).ok_or(Refusal::NoDeploy)?;
    let deploy = order.work.deploy().ok_or(Refusal::NoDeploy)?;
    Ok(Json(channel.told(&session, order, deploy).files(settings)))
}

/// The user of the machine's BMC, for the order that is being carried out and for no other.
async fn bmc_user(
    State(channel): State<Channel>,
    Extension(client): Extension<Client>,
) -> Result<Json<InBandUser>, Refusal> {
    let Session { machine, .. } = channel.session(client).await?;
    let order = {
        let intent = channel.intent.borrow();
        let known = intent.iter().flat_map(|intent| &intent.machines).find(|known| known.id == machine);
        match duty(known, channel.sessions.ended(machine)) {
            Duty::Work(order) if order.work.regains_bmc() => Some((order.run, order.attempt)),
            _ => None,
        }
    };
    let (run, attempt) = order.ok_or(Refusal::NoRegain)?;
    channel.agent.bmc_user(machine, run, attempt).await.map(Json).map_err(Refusal::NoBmcUser)
}

async fn toolbox(
    State(channel): State<Channel>,
    Extension(client): Extension<Client>,
) -> Result<Json<ToolboxFile>, Refusal> {
    channel.session(client).await?;
    let file = channel.toolbox.file().await.map_err(Refusal::Toolbox)?;
    file.map(Json).ok_or(Refusal::NoToolbox)
}

/// A piece of the file that the machine is to be updated with, and of no other.
async fn firmware(
    State(channel): State<Channel>,
    Extension(client): Extension<Client>,
    Path(offset): Path<u64>,
) -> Result<Vec<u8>, Refusal> {
    let machine = channel.session(client).await?.machine;
    let intent = channel.intent.borrow().clone();
    let known = intent.iter().flat_map(|intent| &intent.machines).find(|known| known.id == machine);
    let update = known.and_then(|known| known.order.as_ref()?.work.firmware());
    let update = update.filter(|update| offset < update.size).ok_or(Refusal::NoUpdate)?;
    match channel.agent.firmware(&update.sha256, update.size, offset).await {
        Ok(bytes) => Ok(bytes),
        Err(NotFetched::NotFound(why)) => Err(Refusal::NoFirmware(why)),
        Err(error) => Err(Refusal::Firmware(error)),
    }
}

async fn report(
    State(channel): State<Channel>,
    Extension(client): Extension<Client>,
    Json(report): Json<Report>,
) -> Result<StatusCode, Refusal> {
    let session = channel.session(client).await?;
    let machine = session.machine;
    let (sessions, Report { run, attempt, news }) = (&channel.sessions, report);
    // Progress is told now and then, however often it comes.
    if !matches!(news, News::Progress { .. }) && !channel.rations.lets(channel.clock.now().mono, machine) {
        return Err(Refusal::TooOften);
    }
    match news {
        News::Started => sessions.tell(machine, What::Stage(Stage::OrderStarted(run))),
        News::Progress { done, total } => sessions.progress(machine, run, done, total),
        News::ImageWritten => sessions.tell(machine, What::Stage(Stage::ImageWritten)),
        News::Done { disks } => {
            is_kept(&disks)?;
            let stage = match disks.first() {
                _ if channel.order_is(machine, run, attempt, |order| order.work.test().is_some()) => Stage::Tested,
                Some(disk) if disk.method == "image" => Stage::SettingsWritten,
                _ => Stage::Erased,
            };
            let stage = What::Stage(stage);
            sessions.ended_order(machine, run, attempt, vec![stage, What::Done { run, attempt, disks }]).await?;
        }
        News::Begun(begun) => {
            channel.check_erasure(machine, run, attempt, &begun.disk)?;
            sessions.erasure_begun(machine, run, attempt, begun).await?;
        }
        News::Erased(drive) => {
            channel.check_erasure(machine, run, attempt, &drive.disk)?;
            if !drive.is_sound() {
                return Err(Refusal::NoErasure);
            }
            sessions.erased(machine, run, attempt, drive).await?;
        }
        News::TestBegun(script) => {
            channel.check_test(machine, run, attempt, &script)?;
            sessions.test_begun(machine, run, attempt, script).await?;
        }
        News::Tested(tested) => {
            channel.check_test(machine, run, attempt, &tested.script)?;
            if !tested.is_sound() {
                return Err(Refusal::NoTest);
            }
            sessions.tested(machine, run, attempt, tested).await?;
        }
        News::UpdateBegun => {
            channel.check_update(machine, run, attempt, None)?;
            sessions.update_begun(machine, run, attempt).await?;
        }
        News::Updated(updated) => {
            channel.check_update(machine, run, attempt, Some(&updated.name))?;
            if !updated.is_sound() {
                return Err(Refusal::NoUpdate);
            }
            let over = What::Updated { run, attempt, updated };
            sessions.ended_order(machine, run, attempt, vec![over]).await?;
        }
        News::Rescue { port, host_key } => {
            let login = channel.login(session, (run, attempt), (port, host_key))?;
            sessions.rescued(machine, login).await?;
        }
        News::Failed { cause, detail } => {
            let failed = What::Failed { run, attempt, cause, detail: cut(detail) };
            sessions.ended_order(machine, run, attempt, vec![failed]).await?;
        }
    }
    Ok(StatusCode::NO_CONTENT)
}

/// At most [`MAX_TEXT`] bytes: the end, where the error stands.
fn cut(text: String) -> String {
    let mut start = text.len().saturating_sub(MAX_TEXT);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    text[start..].to_owned()
}
