//! The node's own health: sampled once a minute into an event, and as Prometheus metrics on
//! a loopback port. What of its machines: [`machines`] reads their BMCs, [`rules`] and
//! [`standing`] decide, [`series`] keeps what was read, [`events`] has BMCs say that something happened.

pub mod events;
mod machines;
mod pace;
pub mod rules;
pub mod series;
pub mod standing;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use axum::{Router, extract::State, http::header::CONTENT_TYPE, response::IntoResponse, routing::get};
use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};
use tokio::{net::TcpListener, sync::watch, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use rackhand_common::{
    event::{Event, NodeHealth, Outcome, What},
    health,
    time::Clock,
};

pub use self::machines::{Config, HealthFile, Latest, Machines};
use crate::{intent, local::UplinkView, spool::Spool};

/// How often health is sampled.
const PERIOD: Duration = Duration::from_secs(60);

/// Samples health until `shutdown`: into `latest`, and as an event into the spool.
pub async fn sample(
    state: PathBuf,
    spool: Spool,
    clock: Arc<dyn Clock>,
    latest: watch::Sender<Option<NodeHealth>>,
    shutdown: CancellationToken,
) {
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = shutdown.cancelled() => return,
        }
        let dir = state.clone();
        let Ok(health) = tokio::task::spawn_blocking(move || measure(&dir)).await else { continue };
        latest.send_replace(Some(health.clone()));
        spool.offer(Event { at: clock.now().wall, machine: None, what: What::Node(health) });
    }
}

/// The node's health now. What the system does not tell is zero.
pub fn measure(state: &Path) -> NodeHealth {
    let memory = sysinfo::System::new().map_or((0, 0), |mut system| {
        system.refresh_memory();
        (system.used_memory(), system.total_memory())
    });
    let load = sysinfo::System::load_average().map_or(0.0, |load| load.one);
    let disk = nix::sys::statvfs::statvfs(state).map_or((0, 0), |fs| {
        let block = fs.fragment_size();
        let total = fs.blocks() * block;
        (total.saturating_sub(fs.blocks_available() * block), total)
    });
    NodeHealth {
        load: (load * 100.0).clamp(0.0, f64::from(u32::MAX)) as u32,
        memory,
        disk,
        uptime: sysinfo::System::uptime().unwrap_or_default(),
    }
}

/// The agent's metrics. Gauges are read when they are asked for.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    spooled: Gauge,
    revision: Gauge,
    machines: Gauge,
    uplink: Gauge,
    certificate: Gauge,
    load: Gauge<f64, AtomicU64>,
    memory: Gauge,
    disk: Gauge,
    commands: Family<Ended, Counter>,
    fares: Family<Fares, Gauge>,
    sensors: Family<Sensor, Gauge<f64, AtomicU64>>,
}

/// A machine and one of the states.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Fares {
    machine: String,
    state: &'static str,
}

/// A machine's sensor.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Sensor {
    machine: String,
    sensor: String,
    unit: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    outcome: &'static str,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("rackhand_agent");
        let (spooled, revision, machines, uplink, certificate) =
            (Gauge::default(), Gauge::default(), Gauge::default(), Gauge::default(), Gauge::default());
        let (load, memory, disk) = (Gauge::default(), Gauge::default(), Gauge::default());
        let commands = Family::<Ended, Counter>::default();
        registry.register("spooled_events", "Events not yet taken by the controller", spooled.clone());
        registry.register("intent_revision", "Revision of the intent acted on; 0 for none", revision.clone());
        registry.register("machines", "Machines in the intent", machines.clone());
        registry.register("uplink_connected", "1 while the controller is connected", uplink.clone());
        let unit = Unit::Seconds;
        registry.register_with_unit(
            "certificate_remaining",
            "Time until the node's certificate ends; negative afterwards",
            unit,
            certificate.clone(),
        );
        registry.register("load1", "Load over one minute", load.clone());
        registry.register_with_unit("memory_used", "Memory in use", Unit::Bytes, memory.clone());
        registry.register_with_unit("state_used", "Space in use where the state is kept", Unit::Bytes, disk.clone());
        registry.register("commands", "Power commands that ended, by outcome", commands.clone());
        let (fares, sensors) = (Family::default(), Family::default());
        registry.register("machine_health", "1 for the state that a machine is in, 0 for the others", fares.clone());
        registry.register("machine_sensor", "What a machine's sensor read last, in its unit", sensors.clone());
        Self {
            registry,
            spooled,
            revision,
            machines,
            uplink,
            certificate,
            load,
            memory,
            disk,
            commands,
            fares,
            sensors,
        }
    }
}

impl Metrics {
    /// Counts a power command that ended.
    pub fn commanded(&self, outcome: &Outcome) {
        let outcome = match outcome {
            Outcome::Done => "done",
            Outcome::Refused(_) => "refused",
            Outcome::Failed(_) => "failed",
            Outcome::Unknown => "unknown",
        };
        self.commands.get_or_create(&Ended { outcome }).inc();
    }
}

/// What metrics are read from.
pub struct Sources {
    /// Counters kept along the way.
    pub metrics: Arc<Metrics>,
    /// Events waiting.
    pub spool: Spool,
    /// The intent acted on.
    pub intent: intent::Store,
    /// How the uplink stands.
    pub uplink: watch::Receiver<UplinkView>,
    /// The node's own health.
    pub health: watch::Receiver<Option<NodeHealth>>,
    /// How the machines fare.
    pub machines: Machines,
    /// The present.
    pub clock: Arc<dyn Clock>,
}

impl Sources {
    /// What is known of machines whose BMCs are read, under their names.
    fn tell_machines(&self) {
        let metrics = &self.metrics;
        metrics.fares.clear();
        metrics.sensors.clear();
        let intent = self.intent.current();
        let named = |id| intent.as_ref()?.machines.iter().find(|machine| machine.id == id).map(|machine| &machine.name);
        for (id, latest) in self.machines.shown() {
            let machine = named(id).cloned().unwrap_or_else(|| id.to_string());
            for state in health::State::ALL {
                let is_it = latest.verdict.as_ref().is_some_and(|verdict| verdict.state == state);
                let labels = Fares { machine: machine.clone(), state: state.word() };
                metrics.fares.get_or_create(&labels).set(is_it.into());
            }
            for (sensor, kind, value) in latest.readings.into_iter().take(series::MAX_SENSORS.into()) {
                let labels = Sensor { machine: machine.clone(), sensor, unit: kind.unit() };
                metrics.sensors.get_or_create(&labels).set(value);
            }
        }
    }

    /// All metrics in OpenMetrics text.
    fn text(&self) -> String {
        let metrics = &self.metrics;
        let count = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        metrics.spooled.set(count(self.spool.waiting()));
        metrics.revision.set(count(self.intent.revision()));
        metrics.machines.set(self.intent.current().map_or(0, |intent| count(intent.machines.len() as u64)));
        {
            let uplink = self.uplink.borrow();
            metrics.uplink.set(uplink.connected.into());
            metrics.certificate.set(uplink.certificate_until.as_second() - self.clock.now().wall.as_second());
        }
        if let Some(health) = &*self.health.borrow() {
            metrics.load.set(f64::from(health.load) / 100.0);
            metrics.memory.set(count(health.memory.0));
            metrics.disk.set(count(health.disk.0));
        }
        self.tell_machines();
        let mut text = String::new();
        text::encode(&mut text, &metrics.registry).expect("a string takes all that is written");
        text
    }
}

/// Answers `GET /metrics` until `shutdown`.
pub async fn serve(listener: TcpListener, sources: Sources, shutdown: CancellationToken) -> std::io::Result<()> {
    let router = Router::new().route("/metrics", get(metrics)).with_state(Arc::new(sources));
    axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await
}

async fn metrics(State(sources): State<Arc<Sources>>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], sources.text())
}
