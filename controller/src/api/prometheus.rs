//! `/v1/prometheus/targets`: where Prometheus finds the nodes of racks, by its HTTP service discovery.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use axum::{Extension, Json, extract::State};
use rackhand_controller_core::access::Action;
use serde::Serialize;
use utoipa::ToSchema;

use super::{App, Caller, Error};

/// Targets with the same labels.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Targets {
    /// `ADDRESS:PORT`, one here.
    #[schema(example = json!(["10.20.0.1:9633"]))]
    targets: Vec<String>,
    /// `rack` and `site` by name; `__meta_rackhand_agent` and `__meta_rackhand_version`, for relabelling.
    #[schema(value_type = Object, example = json!({"rack": "lab", "site": "fra1"}))]
    labels: BTreeMap<&'static str, String>,
}

/// List targets for Prometheus
///
/// In the form of its HTTP service discovery (`http_sd_configs`), all at once: the nodes of racks that answer
/// `/metrics` to others (`metrics` in agent.toml), also while they are away. A token made for `agent.read`
/// is enough.
#[utoipa::path(get, path = "/v1/prometheus/targets", tag = "agents", responses((status = 200, body = Vec<Targets>)))]
pub(super) async fn targets(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<Vec<Targets>>, Error> {
    let known = app.store.metrics(&caller.sight(Action::AgentRead)?).await?;
    let all = known.into_iter().map(|known| Targets {
        targets: vec![known.at],
        labels: BTreeMap::from([
            ("rack", known.rack),
            ("site", known.site),
            ("__meta_rackhand_agent", known.agent.to_string()),
            ("__meta_rackhand_version", known.version.unwrap_or_default()),
        ]),
    });
    Ok(Json(all.collect()))
}

/// Where an agent's metrics are to be had that says it answers there, and comes from this address. One that
/// answers to its own host alone is to be had by nobody else; one that answers everywhere, where it comes
/// from.
pub(crate) fn reached(told: SocketAddr, from: IpAddr) -> Option<SocketAddr> {
    let from = from.to_canonical();
    match told.ip().to_canonical() {
        ip if ip.is_unspecified() => Some(SocketAddr::new(from, told.port())),
        ip if ip.is_loopback() && !from.is_loopback() => None,
        ip => Some(SocketAddr::new(ip, told.port())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_is_scraped_where_others_reach_it() {
        for (told, from, reached_at) in [
            ("10.20.0.1:9633", "192.0.2.7", Some("10.20.0.1:9633")),
            ("0.0.0.0:9633", "::ffff:192.0.2.7", Some("192.0.2.7:9633")),
            ("[::]:9634", "2001:db8::7", Some("[2001:db8::7]:9634")),
            ("127.0.0.1:9633", "192.0.2.7", None),
            ("[::1]:9633", "192.0.2.7", None),
            // All on one host.
            ("127.0.0.1:9633", "127.0.0.1", Some("127.0.0.1:9633")),
        ] {
            let reached = reached(told.parse().unwrap(), from.parse().unwrap()).map(|at| at.to_string());
            assert_eq!(reached.as_deref(), reached_at, "{told} from {from}");
        }
    }
}
