//! What a supervisor and a monitoring system see: `/healthz`, `/readyz`, `/metrics`.
//!
//! They ask for no token, so they tell numbers only: no names of racks, machines or people.

use std::{
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
    encoding::text::encode,
    metrics::{gauge::Gauge, info::Info},
    registry::Registry,
};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::{fleet::Fleet, store::Store, workflows::Workflows};

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
        workflows.register(&mut registry);
        store.register(&mut registry);
        Self(Arc::new(Inner { store, fleet, shutdown, registry, agents, runs }))
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
    let mut text = String::new();
    encode(&mut text, &inner.registry).expect("a string takes everything");
    ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response()
}
