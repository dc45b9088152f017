//! One connection to the controller, from dialling to its end.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use quinn::{Connection, ConnectionError, RecvStream, SendStream, VarInt};
use rackhand_common::{
    event::{Event, What},
    id::{Epoch, Incarnation, MachineId},
    pki::{self, CONTROLLER_NAME},
    time::Mono,
    wire::{
        self, ALPN, AgentRequest, AgentResponse, CONSOLE_STREAM, Closing, ConsoleRequest, ControllerRequest,
        ControllerResponse, FromConsole, Hello, Welcome,
    },
};
use rcgen::{CertificateParams, KeyPair};
use tokio::{sync::oneshot, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Uplink, brief,
    enrol::{any, resolve},
    identity::{Identity, Registration},
};
use crate::{
    bmcs::Bmcs,
    console::{self, Consoles},
    firmware::Updates,
    health::Machines,
    intent, lives,
    power::Call,
    spool::{MAX_BATCH, Spool},
};

/// How long dialling, a request or an answer may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// How often it is looked whether the certificate is to be renewed.
const LOOK: Duration = Duration::from_secs(60);

/// A certificate is not renewed again before this has passed: a node whose clock is ahead
/// finds every certificate old.
const RENEW_AGAIN: Duration = Duration::from_secs(3600);

/// What to do with a node that is not let in any more.
const ENROL_AGAIN: &str = "the rack is served from this node's disk, but no command, image or change reaches it; \
    to let the node in again run `rackhand agent enrol --rack NAME` as an operator, the line it prints here, \
    and then `systemctl restart rackhand-agent`";

/// Requests of the controller at once: an intent and a rack's commands.
const REQUESTS: u32 = 64;

/// Why a connection ended, when not by an error.
pub(super) enum Ended {
    /// The agent stops.
    Shutdown,
    /// There is a new certificate to connect with.
    Renewed,
    /// Another process has connected as this agent, after us.
    Replaced,
}

/// Dials, says hello and works until something ends it. `renewed` is when the certificate was
/// renewed last by this process.
pub(super) async fn run(
    uplink: &Uplink,
    incarnation: Incarnation,
    renewed: Option<Mono>,
    shutdown: &CancellationToken,
) -> Result<Ended> {
    let registration = uplink.identity.current();
    let dialled = tokio::select! {
        () = shutdown.cancelled() => return Ok(Ended::Shutdown),
        dialled = timeout(PATIENCE, dial(&registration)) => dialled,
    };
    let (endpoint, connection) = dialled.with_context(|| format!("{} does not answer", registration.controller))??;
    let ended = tokio::select! {
        () = shutdown.cancelled() => Ok(Ended::Shutdown),
        ended = work(uplink, &registration, incarnation, renewed, &connection) => ended,
    };
    let ended = match closing(&connection) {
        // One of our own is dialled only when this one is closed already: it is another process's.
        Some((Closing::Replaced, _)) => Ok(Ended::Replaced),
        Some((closing, reason)) => ended.map_err(|error| dismissed(closing, &reason, &registration).unwrap_or(error)),
        None => ended,
    };
    connection.close(0u32.into(), b"");
    let _ = timeout(Duration::from_secs(1), endpoint.wait_idle()).await;
    ended
}

/// Why the controller closed the connection, when it did, and what it said.
fn closing(connection: &Connection) -> Option<(Closing, String)> {
    let Some(ConnectionError::ApplicationClosed(closed)) = connection.close_reason() else { return None };
    let reason = String::from_utf8_lossy(&closed.reason).chars().take(200).collect();
    Some((Closing::of(closed.error_code.into_inner())?, reason))
}

/// What a refusal means for this node.
fn dismissed(closing: Closing, reason: &str, registration: &Registration) -> Option<anyhow::Error> {
    match closing {
        Closing::Revoked => Some(anyhow!("this node is REVOKED by the controller ({reason}): {ENROL_AGAIN}")),
        Closing::Ended => Some(anyhow!(
            "this node's certificate ENDED {} and can no longer be renewed ({reason}): {ENROL_AGAIN}",
            registration.until
        )),
        Closing::Refused => Some(anyhow!("the controller does not let this node in: {reason}")),
        Closing::Replaced | Closing::Done => None,
    }
}

async fn dial(registration: &Registration) -> Result<(quinn::Endpoint, Connection)> {
    let address = resolve(&registration.controller).await?;
    let tls = pki::agent_client(&registration.bundle, registration.identity(), &[ALPN])?;
    let mut config = quinn::ClientConfig::new(Arc::new(quinn::crypto::rustls::QuicClientConfig::try_from(tls)?));
    let mut transport = quinn::TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(REQUESTS.into())
        .max_concurrent_uni_streams(0u32.into())
        .keep_alive_interval(Some(Duration::from_secs(5)))
        .max_idle_timeout(Some(Duration::from_secs(15).try_into()?));
    config.transport_config(Arc::new(transport));
    let endpoint = quinn::Endpoint::client(any(address))?;
    let connection = endpoint.connect_with(config, address, CONTROLLER_NAME)?.await?;
    Ok((endpoint, connection))
}

async fn work(
    uplink: &Uplink,
    registration: &Registration,
    incarnation: Incarnation,
    renewed: Option<Mono>,
    connection: &Connection,
) -> Result<Ended> {
    let hello = Hello {
        incarnation,
        version: env!("CARGO_PKG_VERSION").into(),
        // Both are sent again when one is missing: by an agent that was upgraded, for one.
        revision: uplink.intent.revision().min(uplink.bmcs.revision()),
        connection: uplink.ledger.connection().await?,
    };
    let highest = hello.connection;
    let welcome = match ask(connection, &AgentRequest::Hello(hello)).await? {
        AgentResponse::Welcome(welcome) => welcome,
        AgentResponse::Lapsed if !rested(uplink, renewed) => {
            bail!("the controller finds this node's new certificate ended already: is its clock right?")
        }
        AgentResponse::Lapsed => {
            tracing::warn!(until = %registration.until, "this node's certificate has ended: renewing it");
            return renew(uplink, connection).await.map(|()| Ended::Renewed);
        }
        AgentResponse::Refused(reason) => bail!("the controller refused: {reason}"),
        other => bail!("the controller gave an answer that does not fit: {other:?}"),
    };
    let Welcome { connection: number, next_event } = welcome;
    ensure!(
        number >= highest,
        "the controller welcomed us as connection {number}, after {highest}: an older copy of its database was restored"
    );
    uplink.ledger.welcomed(number).await?;
    tracing::info!(controller = registration.controller, connection = number, "connected");
    uplink.show(true, format!("connected to {} since {}", registration.controller, brief(uplink.clock.now().wall)));
    let asks = |request| {
        let connection = connection.clone();
        async move { ask(&connection, &request).await }
    };
    let told = async {
        tell_metrics(connection, uplink.metrics).await?;
        forward(&uplink.spool, next_event, asks).await
    };
    tokio::select! {
        ended = told => ended.map(|()| Ended::Renewed),
        ended = serve(uplink, connection) => ended.map(|()| Ended::Renewed),
        ended = renew_in_time(uplink, renewed, connection) => ended.map(|()| Ended::Renewed),
        closed = connection.closed() => Err(closed.into()),
    }
}

/// Tells where metrics are to be had, which a controller of an earlier version does not want to know.
async fn tell_metrics(connection: &Connection, at: SocketAddr) -> Result<()> {
    match ask(connection, &AgentRequest::Metrics(at)).await? {
        AgentResponse::Known | AgentResponse::NotUnderstood(_) => Ok(()),
        other => bail!("the controller gave an answer that does not fit: {other:?}"),
    }
}

/// Hands events over, as they come, in order. One that a controller of an earlier version does not
/// know is found by halving what is sent, and told as a gap of one.
async fn forward<A: Future<Output = Result<AgentResponse>>>(
    spool: &Spool,
    next_event: u64,
    ask: impl Fn(AgentRequest) -> A,
) -> Result<()> {
    // What the controller has already, but we were never told so.
    spool.acknowledge(next_event).await?;
    let mut most = MAX_BATCH;
    loop {
        let (first, mut events) = spool.batch(most).await?;
        let (count, at) = (events.len(), events.first().map(|event| event.at));
        let mut answer = ask(AgentRequest::Events { first, events: std::mem::take(&mut events) }).await?;
        if let (AgentResponse::NotUnderstood(reason), Some(at)) = (&answer, at) {
            if count > 1 {
                most = count / 2;
                continue;
            }
            tracing::warn!(event = first, reason, "the controller does not know an event: it is told as lost");
            let lost = Event { at, machine: None, what: What::Gap { lost: 1 } };
            answer = ask(AgentRequest::Events { first, events: vec![lost] }).await?;
        }
        match answer {
            AgentResponse::Next(next) => spool.acknowledge(next).await?,
            AgentResponse::Refused(reason) => bail!("the controller refused events: {reason}"),
            other => bail!("the controller gave an answer that does not fit: {other:?}"),
        }
        most = MAX_BATCH;
    }
}

/// Answers the controller's requests.
async fn serve(uplink: &Uplink, connection: &Connection) -> Result<()> {
    let requests = TaskTracker::new();
    loop {
        let (send, receive) = connection.accept_bi().await?;
        let desk = Desk {
            intent: uplink.intent.clone(),
            bmcs: uplink.bmcs.clone(),
            lives: uplink.lives.clone(),
            machines: uplink.machines.clone(),
            consoles: uplink.consoles.clone(),
            updates: uplink.updates.clone(),
            calls: uplink.calls.clone(),
            identity: uplink.identity.clone(),
        };
        requests.spawn(async move {
            if let Err(error) = converse(send, receive, desk).await {
                tracing::warn!(error = format!("{error:#}"), "a request of the controller was not answered");
            }
        });
    }
}

/// What the controller's requests are answered from.
struct Desk {
    intent: intent::Store,
    bmcs: Bmcs,
    lives: lives::Store,
    machines: Machines,
    consoles: Consoles,
    updates: Updates,
    calls: tokio::sync::mpsc::Sender<Call>,
    identity: Arc<Identity>,
}

/// Tells a console, which lasts, from requests, which are answered in time.
async fn converse(send: SendStream, mut receive: RecvStream, desk: Desk) -> Result<()> {
    let mut first = [0];
    timeout(PATIENCE, receive.read_exact(&mut first)).await??;
    if first[0] == CONSOLE_STREAM {
        return console(send, receive, desk.consoles).await;
    }
    timeout(PATIENCE, answer(send, receive, first[0], desk)).await?
}

/// Carries a console until the controller or the console ends it.
async fn console(mut send: SendStream, mut receive: RecvStream, consoles: Consoles) -> Result<()> {
    let request = timeout(PATIENCE, rackhand_daemon::console::receive::<ConsoleRequest>(&mut receive)).await??;
    let ConsoleRequest { machine, who } = request.context("a console without a machine")?;
    let watch = match consoles.watch(machine, &who) {
        Ok(watch) => watch,
        Err(reason) => {
            send.write_all(&wire::frame(&FromConsole::Ended(reason))).await?;
            send.finish()?;
            return Ok(());
        }
    };
    if let Err(error) = console::serve(watch, &mut receive, &mut send).await {
        // Its watcher, or the connection, is gone.
        tracing::debug!(%machine, %error, "a console ended");
    }
    let _ = receive.stop(VarInt::from_u32(0));
    let _ = send.finish();
    Ok(())
}

/// Answers a request, whose first byte was read already.
async fn answer(mut send: SendStream, mut receive: RecvStream, first: u8, desk: Desk) -> Result<()> {
    let Desk { intent, bmcs, lives, machines, consoles, updates, calls, identity } = desk;
    let rest = receive.read_to_end(wire::MAX_LEN - 1).await?;
    let request = match wire::decode(&[&[first], &rest[..]].concat()) {
        Err(unknown @ wire::Malformed::Unknown(_)) => {
            tracing::warn!("a request of a later version of the controller is not understood");
            send.write_all(&wire::encode(&ControllerResponse::NotUnderstood(unknown.to_string()))).await?;
            send.finish()?;
            return Ok(());
        }
        request => request?,
    };
    let response = match request {
        ControllerRequest::Intent(wanted) => stored(intent.store(wanted).await),
        ControllerRequest::Bmcs(wanted) => stored(bmcs.store(wanted, Vec::new()).await),
        ControllerRequest::BmcsBeside(wanted, beside) => stored(bmcs.store(wanted, beside).await),
        ControllerRequest::Lives(wanted) => stored(lives.store(wanted).await),
        ControllerRequest::Rotate(machine, revision) => {
            let rotated = bmcs.rotate(machine, revision).await;
            ControllerResponse::Rotated(serde_json::to_string(&rotated)?)
        }
        ControllerRequest::Meet(stranger) => {
            ControllerResponse::Met(serde_json::to_string(&bmcs.meet(stranger).await)?)
        }
        // The intent with this epoch may be on its way.
        ControllerRequest::Baseline(machine, epoch, _) | ControllerRequest::Firmware(machine, epoch, _)
            if !knows(&intent, machine, epoch) =>
        {
            ControllerResponse::Refused(format!("the rack's agent knows no machine {machine} in epoch {epoch}"))
        }
        ControllerRequest::Baseline(machine, _, ask) => {
            ControllerResponse::Baseline(serde_json::to_string(&bmcs.baseline(machine, &ask).await)?)
        }
        ControllerRequest::Firmware(machine, _, ask) => {
            ControllerResponse::Firmware(serde_json::to_string(&updates.update(machine, &ask).await)?)
        }
        ControllerRequest::Standings => ControllerResponse::Standings(serde_json::to_string(&bmcs.standings())?),
        ControllerRequest::Look(machine, look) => match bmcs.look(machine, look).await {
            Ok(json) => ControllerResponse::Seen(json),
            Err(reason) => ControllerResponse::Refused(reason),
        },
        ControllerRequest::Series(machine, query) => match machines.series(machine, query).await {
            Ok(json) => ControllerResponse::Seen(json),
            Err(reason) => ControllerResponse::Refused(reason),
        },
        ControllerRequest::Console(machine) => match consoles.check(machine) {
            Ok(()) => ControllerResponse::Console,
            Err(reason) => ControllerResponse::Refused(reason),
        },
        ControllerRequest::Recording { machine, run, offset } => match consoles.recording(machine, run, offset).await {
            Ok(bytes) => ControllerResponse::Recording(bytes),
            Err(reason) => ControllerResponse::Refused(reason),
        },
        ControllerRequest::Report => {
            let on_disk = intent.subscribe().borrow().clone();
            ControllerResponse::Reported(on_disk.map(|intent| intent.as_ref().clone()))
        }
        ControllerRequest::Command(command) => {
            let (answer, answered) = oneshot::channel();
            calls.send(Call { command, answer }).await.context("the agent stops")?;
            answered.await.context("the agent stops")?
        }
        ControllerRequest::Trust(bundle) => match identity.replace(|old| old.trusting(&bundle)).await {
            Ok(_) => {
                tracing::info!("the controller's trust bundle was renewed");
                ControllerResponse::Trusted
            }
            Err(error) => ControllerResponse::Refused(format!("{:#}", anyhow::Error::from(error))),
        },
    };
    send.write_all(&wire::encode(&response)).await?;
    send.finish()?;
    Ok(())
}

/// Whether the machine is in this allocation epoch, by the intent that is acted on.
fn knows(intent: &intent::Store, machine: MachineId, epoch: Epoch) -> bool {
    let known = intent.current();
    known.is_some_and(|intent| intent.machines.iter().any(|known| known.id == machine && known.epoch == epoch))
}

/// What is said of what was to be kept.
fn stored(kept: std::result::Result<u64, intent::Refused>) -> ControllerResponse {
    match kept {
        Ok(revision) => ControllerResponse::Stored(revision),
        Err(error) => ControllerResponse::Refused(format!("{:#}", anyhow::Error::from(error))),
    }
}

/// Renews the certificate at half of its life.
async fn renew_in_time(uplink: &Uplink, renewed: Option<Mono>, connection: &Connection) -> Result<()> {
    loop {
        let now = uplink.clock.now().wall;
        if rested(uplink, renewed) && uplink.identity.current().to_be_renewed(now) {
            return renew(uplink, connection).await;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Whether the last renewal is long enough ago for another.
fn rested(uplink: &Uplink, renewed: Option<Mono>) -> bool {
    renewed.is_none_or(|renewed| renewed.until(uplink.clock.now().mono) >= RENEW_AGAIN)
}

/// Returns once the certificate was renewed and kept.
async fn renew(uplink: &Uplink, connection: &Connection) -> Result<()> {
    let key = KeyPair::generate()?;
    let csr = CertificateParams::default().serialize_request(&key)?.der().to_vec();
    match ask(connection, &AgentRequest::Renew { csr }).await? {
        AgentResponse::Certificate { agent, rack, chain, bundle } => {
            let old = uplink.identity.current();
            ensure!((agent, rack) == (old.agent, old.rack), "the controller renewed another agent's certificate");
            let change = |old: &Registration| {
                let addresses = (old.controller.clone(), old.api.clone());
                Registration::of(addresses, (agent, rack), chain, key.serialize_der(), &bundle)
            };
            let new = uplink.identity.replace(change).await?;
            tracing::info!(until = %new.until, "certificate renewed");
            Ok(())
        }
        AgentResponse::Refused(reason) => bail!("the controller does not renew the certificate: {reason}"),
        other => bail!("the controller gave an answer that does not fit: {other:?}"),
    }
}

async fn ask(connection: &Connection, request: &AgentRequest) -> Result<AgentResponse> {
    let answered = timeout(PATIENCE, async {
        let (mut send, mut receive) = connection.open_bi().await?;
        send.write_all(&wire::encode(request)).await?;
        send.finish()?;
        anyhow::Ok(wire::decode(&receive.read_to_end(wire::MAX_LEN).await?)?)
    });
    answered.await.context("the controller does not answer")?
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[tokio::test]
    async fn an_event_that_an_earlier_controller_does_not_know_is_counted_and_the_others_arrive() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(&dir.path().join("spool.redb"), 1000).unwrap();
        let event = |what| Event { at: jiff::Timestamp::UNIX_EPOCH, machine: None, what };
        let told = |number: u32| What::TicketRefused { reason: number.to_string() };
        // For this controller `Lost` is of a later version.
        let events = (0..300).map(|n| event(if n == 3 || n == 170 { What::Lost } else { told(n) })).collect();
        spool.append(events).await.unwrap();
        let (taken, asked) = (Mutex::new(Vec::new()), Mutex::new(0));
        let controller = |request| {
            *asked.lock().unwrap() += 1;
            let AgentRequest::Events { first, events } = request else { panic!("not events") };
            if events.iter().any(|event| event.what == What::Lost) {
                return std::future::ready(Ok(AgentResponse::NotUnderstood("later".into())));
            }
            let mut taken = taken.lock().unwrap();
            assert_eq!(first, taken.len() as u64 + 1);
            taken.extend(events);
            std::future::ready(Ok(AgentResponse::Next(taken.len() as u64 + 1)))
        };
        let all = async {
            while spool.waiting() > 0 {
                tokio::task::yield_now().await;
            }
        };
        let arrived = async {
            tokio::select! {
                ended = forward(&spool, 1, controller) => ended.unwrap(),
                () = all => {}
            }
        };
        timeout(Duration::from_secs(60), arrived).await.expect("all events are handed over");
        let lost = |n| n == 3 || n == 170;
        let expected = (0..300).map(|n| event(if lost(n) { What::Gap { lost: 1 } } else { told(n) }));
        assert_eq!(*taken.lock().unwrap(), expected.collect::<Vec<_>>());
        assert!(*asked.lock().unwrap() < 60, "{} requests", asked.lock().unwrap());
    }
}
