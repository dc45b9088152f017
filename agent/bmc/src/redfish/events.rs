//! Subscriptions to events (DSP0268 EventService, EventDestination). A service without them is
//! polled by its log.

use serde_json::json;

use crate::bmc::BmcError;

use super::{Redfish, fault, http::Payload, link::Link, resource::Node};

/// What an EventService lets us know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Events {
    is_on: bool,
    has_types: bool,
}

fn events(node: Node<'_>) -> Events {
    let is_on = node.flag("ServiceEnabled") != Some(false);
    // Types are the older way to choose events; services that list none refuse them.
    Events { is_on, has_types: node.words("EventTypesForSubscription").contains(&"Alert") }
}

impl Redfish {
    /// Has events posted to this address with this context, and gives the subscription. One that
    /// is there already for the same address and context is taken.
    pub async fn subscribe(&self, destination: &str, context: &str) -> Result<Link, BmcError> {
        let service = self.service().await?;
        let unsupported = || fault::unsupported("it sends no events");
        let link = service.root.node().link("EventService").ok_or_else(unsupported)?;
        let resource = self.http.get(&link).await?;
        let Events { is_on, has_types } = events(resource.node());
        if !is_on {
            return Err(unsupported());
        }
        let collection = resource.node().link("Subscriptions").unwrap_or_else(|| link.below("Subscriptions"));
        let there = self.walk(&service).members(&collection).await?;
        let is_ours =
            |node: Node<'_>| node.word("Destination") == Some(destination) && node.word("Context") == Some(context);
        if let Some(ours) = there.into_iter().find(|found| is_ours(found.node())) {
            return Ok(ours.link);
        }
        let mut wanted = json!({ "Destination": destination, "Context": context, "Protocol": "Redfish" });
        if has_types {
            wanted["EventTypes"] = json!(["Alert"]);
        }
        let reply = self.http.post(&collection, Payload::Json(wanted)).await?;
        let made = reply.location.or_else(|| Node(Some(&reply.body)).target());
        made.ok_or_else(|| fault::malformed(format!("{collection}: a subscription that is nowhere")))
    }

    /// Ends a subscription. One that is gone is ended.
    pub async fn unsubscribe(&self, subscription: &Link) -> Result<(), BmcError> {
        match self.http.delete(subscription).await {
            Err(BmcError::Unsupported(_)) => Ok(()),
            answer => answer.map(drop),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_chosen_only_where_they_are_offered() {
        let old = json!({"ServiceEnabled": true, "EventTypesForSubscription": ["Alert", 3]});
        assert_eq!(events(Node(Some(&old))), Events { is_on: true, has_types: true });
        let new = json!({"RegistryPrefixes": ["OpenBMC"], "EventTypesForSubscription": null});
        assert_eq!(events(Node(Some(&new))), Events { is_on: true, has_types: false });
    }
}
