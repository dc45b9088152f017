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
    /// Has events posted to `base` followed by `name`, which is their context too. What was subscribed to
    /// below `base` otherwise is ended: a BMC has room for few subscriptions. One that is there already
    /// is left as it is.
    pub(super) async fn take_events(&self, base: &str, name: &str) -> Result<(), BmcError> {
        let destination = format!("{base}{name}");
        let (collection, has_types) = self.subscriptions().await?;
        let mut is_there = false;
        for (link, there) in self.below(&collection, base).await? {
            let is_ours = there == destination && !is_there;
            is_there |= is_ours;
            if !is_ours {
                self.end(&link).await?;
            }
        }
        if is_there {
            return Ok(());
        }
        let mut wanted = json!({ "Destination": destination, "Context": name, "Protocol": "Redfish" });
        if has_types {
            wanted["EventTypes"] = json!(["Alert"]);
        }
        self.http.post(&collection, Payload::Json(wanted)).await.map(drop)
    }

    /// Ends all subscriptions below `base`.
    pub(super) async fn leave_events(&self, base: &str) -> Result<(), BmcError> {
        let (collection, _) = self.subscriptions().await?;
        for (link, _) in self.below(&collection, base).await? {
            self.end(&link).await?;
        }
        Ok(())
    }

    /// Where subscriptions are, and whether they choose types.
    async fn subscriptions(&self) -> Result<(Link, bool), BmcError> {
        let service = self.service().await?;
        let unsupported = || fault::unsupported("it sends no events");
        let link = service.root.node().link("EventService").ok_or_else(unsupported)?;
        let resource = self.http.get(&link).await?;
        let Events { is_on, has_types } = events(resource.node());
        if !is_on {
            return Err(unsupported());
        }
        let collection = resource.node().link("Subscriptions").unwrap_or_else(|| link.below("Subscriptions"));
        Ok((collection, has_types))
    }

    /// The subscriptions that post somewhere below `base`, and where.
    async fn below(&self, collection: &Link, base: &str) -> Result<Vec<(Link, String)>, BmcError> {
        let service = self.service().await?;
        let there = self.walk(&service).members(collection).await?;
        let posts = there.into_iter().filter_map(|found| {
            let destination = found.node().word("Destination")?.to_owned();
            Some((found.link, destination))
        });
        Ok(posts.filter(|(_, destination)| destination.starts_with(base)).collect())
    }

    /// Ends a subscription. One that is gone is ended.
    async fn end(&self, subscription: &Link) -> Result<(), BmcError> {
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
