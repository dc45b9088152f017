//! What a supervisor and a monitoring system see: `/healthz`, `/readyz`, `/metrics`.
//!
//! They ask for no token, so they tell numbers only: no names of racks, machines or people.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{family::Family, gauge::Gauge, info::Info},
    registry::Registry,
};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use rackhand_common::health;
use rackhand_controller_core::lifecycle::Lifecycle;

use crate::{
    fleet::Fleet,
    store::{Store, StoreError},
    workflows::Workflows,
};

/// How long the database may take to answer before it counts as not answering.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is looked at; clones are the same.
#[derive(Clone, Debug)]
pub struct Telemetry(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Store,
    fleet: Fleet,
    shutdown: CancellationToken,
    registry: Registry,
    agents: Gauge<u64, AtomicU64>,
    runs: Gauge<u64, AtomicU64>,
    lives: Family<Life, Gauge<u64, AtomicU64>>,
    fares: Family<Fares, Gauge<u64, AtomicU64>>,
}

/// Where machines are in their life.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Life {
    lifecycle: String,
}

/// How machines fare.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Fares {
    state: String,
}

impl Telemetry {
    /// Looks at these.
    pub fn new(store: Store, fleet: Fleet, workflows: &Workflows, shutdown: CancellationToken) -> Self {
        let (agents, runs) = (Gauge::default(), Gauge::default());
        let mut registry = Registry::default();
        registry.register(
            "rackhand_controller_build",
            "The version that runs",
            Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]),
        );
        registry.register("rackhand_controller_agents_connected", "Agents connected now", agents.clone());
        registry.register("rackhand_runs_in_progress", "Runs that have not ended", runs.clone());
        let (lives, fares) = (Family::default(), Family::default());
        registry.register("rackhand_machines", "Machines, by where they are in their life", lives.clone());
        registry.register("rackhand_machines_health", "Machines whose BMCs are read, by how they fare", fares.clone());
        workflows.register(&mut registry);
        store.register(&mut registry);
        Self(Arc::new(Inner { store, fleet, shutdown, registry, agents, runs, lives, fares }))
    }

    /// The three routes.
    pub fn router(&self) -> Router {
        Router::new()
            .route("/healthz", get(async || "alive\n"))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics))
            .with_state(self.clone())
    }

    /// Why this process does no work now, if so: a reason to start it again.
    pub async fn unready(&self) -> Option<&'static str> {
        if self.0.shutdown.is_cancelled() {
            return Some("stopping");
        }
        match timeout(PATIENCE, self.0.store.newest_event()).await {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => {
                tracing::error!(error = &error as &dyn std::error::Error, "the database fails");
                Some("the database fails")
            }
            Err(_) => Some("the database does not answer"),
        }
    }
}

impl Inner {
    /// Every lifecycle and state is told, also when no machine is in it.
    async fn count_machines(&self) -> Result<(), StoreError> {
        let lives: HashMap<_, _> = self.store.machines_by_lifecycle().await?.into_iter().collect();
        for lifecycle in Lifecycle::ALL.map(|lifecycle| lifecycle.to_string()) {
            let count = lives.get(&lifecycle).copied().unwrap_or_default();
            self.lives.get_or_create(&Life { lifecycle }).set(count);
        }
        let fares: HashMap<_, _> = self.store.machines_by_health().await?.into_iter().collect();
        for state in health::State::ALL.map(|state| state.word().to_owned()) {
            let count = fares.get(&state).copied().unwrap_or_default();
            self.fares.get_or_create(&Fares { state }).set(count);
        }
        Ok(())
    }
}

async fn readyz(State(telemetry): State<Telemetry>) -> Response {
    // A disk that is full is no better after another start.
    match telemetry.unready().await.or_else(|| telemetry.0.store.unwritable()) {
        None => "ready\n".into_response(),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

async fn metrics(State(telemetry): State<Telemetry>) -> Response {
    let inner = &telemetry.0;
    inner.agents.set(inner.fleet.count() as u64);
    match timeout(PATIENCE, inner.store.runs_in_progress()).await {
        Ok(Ok(runs)) => {
            inner.runs.set(runs.len() as u64);
        }
        _ => return (StatusCode::SERVICE_UNAVAILABLE, "the database does not answer\n").into_response(),
    }
    if !matches!(timeout(PATIENCE, inner.count_machines()).await, Ok(Ok(()))) {
        return (StatusCode::SERVICE_UNAVAILABLE, "the database does not answer\n").into_response();
    }
    let mut text = String::new();
    encode(&mut text, &inner.registry).expect("a string takes everything");
    ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response()
}
