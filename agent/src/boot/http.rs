//! Plain HTTP for machines: boot scripts, the installer's kernel and initial RAM disk, toolbox,
//! image chunks, and installed systems that call home.
//!
//! What is served here is not secret, but for the ticket in a boot script. Who asks is decided
//! by the address it asks from, which DHCP gave it, not by what it says of itself.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddrV4},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use axum::{
    Extension, Router,
    body::Body,
    extract::{DefaultBodyLimit, Path, Query, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use ipnet::Ipv4Net;
use rackhand_common::{
    event::{Event, Stage, What},
    id::RunId,
    image::Digest,
    intent::Intent,
    machine::Mac,
    pki::KeyPin,
    time::Clock,
};
use rackhand_netboot::{
    ipxe::{self, Script},
    target::{self, Target},
};
use serde::Deserialize;
use tokio::sync::watch;

use super::{
    agent_link::NotFetched,
    chunks::{ChunkError, Chunks},
    leases::{Holder, Leases},
    listener::Client,
    media::Media,
    phone_home::PhoneHome,
    seldom::Seldom,
    tftp,
    ticket::Tickets,
    toolbox::Toolbox,
};
use crate::spool::Spool;

/// The longest body: what cloud-init posts when it calls home.
const MAX_BODY: usize = 64 << 10;

/// What the handlers share.
#[derive(Clone)]
pub(super) struct Site {
    pub(super) clock: Arc<dyn Clock>,
    pub(super) intent: watch::Receiver<Option<Arc<Intent>>>,
    pub(super) leases: Leases,
    pub(super) tickets: Tickets,
    pub(super) chunks: Chunks,
    pub(super) phone_home: PhoneHome,
    pub(super) spool: Spool,
    pub(super) kernel: ServedFile,
    pub(super) initramfs: ServedFile,
    pub(super) toolbox: Toolbox,
    /// Loaders by their names, as TFTP has them.
    pub(super) loaders: watch::Receiver<tftp::Files>,
    pub(super) media: Media,
    /// Where this is served.
    pub(super) http: SocketAddrV4,
    /// Where the installers' channel is.
    pub(super) channel: SocketAddrV4,
    /// Boot's public key there.
    pub(super) pin: KeyPin,
    /// Runs whose system has called home: told once.
    pub(super) home: Arc<Mutex<HashSet<RunId>>>,
    pub(super) seldom: Seldom,
}

impl Site {
    pub(super) fn routes(self) -> Router {
        Router::new()
            .route("/boot.ipxe", get(script))
            .route("/kernel", get(kernel))
            .route("/initramfs", get(initramfs))
            .route("/loader/{name}", get(loader))
            .route(
                "/media/boot.iso",
                get(async |State(site): State<Self>, headers: HeaderMap| site.media.answer(&headers).await),
            )
            .route("/toolbox", get(async |State(site): State<Self>| site.toolbox.answer().await))
            .route("/chunks/{digest}", get(chunk))
            .route("/phone-home/{token}", post(phone_home))
            .route("/healthz", get(async || "ok\n"))
            .layer(DefaultBodyLimit::max(MAX_BODY))
            .with_state(self)
    }

    fn holder(&self, client: Client) -> Option<Holder> {
        match client.address.ip() {
            IpAddr::V4(address) => self.leases.by_address(address),
            IpAddr::V6(_) => None,
        }
    }

    /// Tells a stage of the machine that asks. One that asks again and again is told now and then.
    fn stage(&self, client: Client, stage: Stage) {
        let now = self.clock.now();
        if let Some(Holder { machine, .. }) = self.holder(client)
            && self.seldom.lets(now.mono, machine, stage.to_string())
        {
            self.spool.offer(Event { at: now.wall, machine: Some(machine), what: What::Stage(stage) });
        }
    }

    /// What a machine is told to boot, and what that is called in its timeline.
    async fn script(&self, holder: Option<Holder>, asked: Option<Mac>) -> (String, Option<String>) {
        let (http, mac) = (self.http, asked);
        let error = |reason: &str| (ipxe::render(&Script::Error { reason, http, mac }), Some(reason.to_owned()));
        if let (Some(holder), Some(asked)) = (&holder, asked)
            && holder.mac != asked
        {
            return error("the card that asks is not the card that has this address");
        }
        let intent = self.intent.borrow().clone();
        match (target::decide(intent.as_deref(), holder.as_ref()), intent, holder) {
            (Target::Wait(waiting), ..) => {
                let reason = waiting.to_string();
                (ipxe::render(&Script::Wait { reason: &reason, http, mac }), Some(reason))
            }
            (Target::Disk, Some(intent), Some(holder)) => {
                let machine = intent.machines.iter().find(|machine| machine.id == holder.machine);
                let name = machine.map_or("this machine", |machine| machine.name.as_str());
                (ipxe::render(&Script::Disk { name }), Some("its own disk".into()))
            }
            (Target::Installer, Some(intent), Some(holder)) => match self.mint(holder).await {
                Ok(Some(ticket)) => {
                    let installer = self.installer(ticket, &holder, &intent);
                    (ipxe::render(&Script::Installer(installer)), Some("installer".into()))
                }
                Ok(None) => {
                    let reason = "this card asks too often";
                    (ipxe::render(&Script::Wait { reason, http, mac }), Some(reason.into()))
                }
                Err(failed) => {
                    tracing::error!(error = format!("{failed:#}"), "no ticket can be made");
                    error("this rack node cannot store a ticket; look at its disk")
                }
            },
            (Target::Disk | Target::Installer, ..) => error("this rack node is confused"),
        }
    }

    async fn mint(&self, holder: Holder) -> anyhow::Result<Option<[u8; 16]>> {
        Ok(self.tickets.mint(self.clock.now(), holder.machine, holder.mac).await?)
    }

    fn installer(&self, ticket: [u8; 16], holder: &Holder, intent: &Intent) -> ipxe::Installer {
        let length = intent.network.node.prefix_len();
        ipxe::Installer {
            http: self.http,
            boot: self.channel,
            pin: self.pin,
            ticket,
            mac: holder.mac,
            address: Ipv4Net::new(holder.address, length).expect("the length is another prefix's"),
            gateway: intent.network.gateway,
        }
    }
}

#[derive(Debug, Deserialize)]
struct Asked {
    mac: Option<String>,
}

async fn script(
    State(site): State<Site>,
    Extension(client): Extension<Client>,
    Query(asked): Query<Asked>,
) -> impl IntoResponse {
    // What cannot be read is treated as not said: the address decides.
    let asked = asked.mac.and_then(|mac| mac.parse().ok());
    site.leases.heard(client.address.ip());
    let holder = site.holder(client);
    let (script, target) = site.script(holder, asked).await;
    if let Some(target) = target {
        site.stage(client, Stage::Script(target));
    }
    ([(header::CONTENT_TYPE, "text/plain"), (header::CACHE_CONTROL, "no-store")], script)
}

/// A loader, for UEFI HTTP boot.
async fn loader(State(site): State<Site>, Extension(client): Extension<Client>, Path(name): Path<String>) -> Response {
    let Some(path) = site.loaders.borrow().get(&name.to_ascii_lowercase()).cloned() else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let answer = ServedFile::new(path).answer().await;
    if answer.status().is_success() {
        site.leases.heard(client.address.ip());
        site.stage(client, Stage::Loader(name));
    }
    answer
}

async fn kernel(State(site): State<Site>, Extension(client): Extension<Client>) -> Response {
    site.stage(client, Stage::Kernel);
    site.kernel.answer().await
}

async fn initramfs(State(site): State<Site>, Extension(client): Extension<Client>) -> Response {
    site.stage(client, Stage::Initramfs);
    site.initramfs.answer().await
}

async fn chunk(State(site): State<Site>, Path(digest): Path<Digest>) -> Response {
    match site.chunks.body(digest).await {
        Ok((length, body)) => {
            let kind = HeaderValue::from_static("application/zstd");
            ([(header::CONTENT_TYPE, kind), (header::CONTENT_LENGTH, length.into())], body).into_response()
        }
        Err(ChunkError::NotFetched(NotFetched::NotFound(why))) => (StatusCode::NOT_FOUND, why).into_response(),
        // One that has just got its order asks again.
        Err(ChunkError::NotListed(_)) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        Err(error) => {
            tracing::warn!(%digest, error = format!("{:#}", anyhow::Error::from(error)), "a chunk cannot be served");
            StatusCode::SERVICE_UNAVAILABLE.into_response()
        }
    }
}

async fn phone_home(State(site): State<Site>, Path(token): Path<String>) -> StatusCode {
    let Some((machine, run)) = site.phone_home.caller(&token) else { return StatusCode::NOT_FOUND };
    let again = site.home.lock().unwrap_or_else(PoisonError::into_inner).contains(&run);
    if again {
        return StatusCode::OK;
    }
    let event = Event { at: site.clock.now().wall, machine: Some(machine), what: What::PhonedHome { run } };
    match site.spool.append(vec![event]).await {
        Ok(()) => {
            site.home.lock().unwrap_or_else(PoisonError::into_inner).insert(run);
            StatusCode::OK
        }
        // cloud-init tries again.
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// A file served whole from memory, read again when it was replaced.
#[derive(Clone, Debug)]
pub(super) struct ServedFile(Arc<Mutex<Served>>);

#[derive(Debug)]
struct Served {
    path: PathBuf,
    kept: Option<(SystemTime, Bytes)>,
}

impl ServedFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self(Arc::new(Mutex::new(Served { path, kept: None })))
    }

    /// Serves this file from now on; answers under way go on with the one before.
    pub(super) fn become_file(&self, path: PathBuf) {
        *self.served() = Served { path, kept: None };
    }

    fn served(&self) -> MutexGuard<'_, Served> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn answer(&self) -> Response {
        match self.bytes().await {
            Ok(bytes) => ([(header::CONTENT_TYPE, "application/octet-stream")], Body::from(bytes)).into_response(),
            Err(error) => {
                tracing::error!(file = %self.served().path.display(), %error, "cannot serve a file every machine needs");
                StatusCode::NOT_FOUND.into_response()
            }
        }
    }

    pub(super) async fn bytes(&self) -> std::io::Result<Bytes> {
        let (path, kept) = {
            let served = self.served();
            (served.path.clone(), served.kept.clone())
        };
        let modified = tokio::fs::metadata(&path).await?.modified()?;
        if let Some((of, bytes)) = kept
            && of == modified
        {
            return Ok(bytes);
        }
        let bytes = Bytes::from(tokio::fs::read(&path).await?);
        let mut served = self.served();
        if served.path == path {
            served.kept = Some((modified, bytes.clone()));
        }
        Ok(bytes)
    }
}
