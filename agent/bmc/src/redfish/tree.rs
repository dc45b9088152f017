//! What there is: from the service root to the machine, its chassis and its managers
//! (DSP0266 §"Resource tree", DSP0268 ServiceRoot, ComputerSystem, Chassis, Manager).
//!
//! Invariant: a service of several systems is asked about the one that is meant, or about none.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::bmc::BmcError;

use super::{
    fault,
    link::Link,
    resource::{Node, Resource},
    walk::Walk,
};

/// The most chassis or managers of one machine that are looked at.
const MAX_AROUND: usize = 32;

/// Which system of a service is meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Which {
    /// The only one there is.
    Only,
    /// The one of this `Id`.
    Id(String),
    /// The one of this system UUID.
    Uuid(Uuid),
    /// The one of this serial number.
    Serial(String),
}

impl Which {
    fn is(&self, system: &Resource) -> bool {
        let node = system.node();
        match self {
            Self::Only => true,
            Self::Id(id) => node.word("Id") == Some(id) || system.link.name() == id,
            Self::Uuid(uuid) => node.word("UUID").and_then(|text| text.trim().parse().ok()) == Some(*uuid),
            Self::Serial(serial) => ["SerialNumber", "SKU"].iter().any(|name| node.text(name).as_ref() == Some(serial)),
        }
    }

    /// The system that is meant among these.
    pub fn choose(&self, systems: Vec<Resource>) -> Result<Resource, BmcError> {
        let there = systems.len();
        let mut fitting = systems.into_iter().filter(|system| self.is(system));
        match (fitting.next(), fitting.next()) {
            (Some(system), None) => Ok(system),
            (Some(_), Some(_)) => Err(fault::refused(format!("it has several systems that are meant, of {there}"))),
            (None, _) => Err(fault::unsupported(format!("none of its {there} systems is the one that is meant"))),
        }
    }
}

/// Where everything is that belongs to one machine.
#[derive(Clone, Debug)]
pub struct Service {
    /// The service root.
    pub root: Resource,
    /// The machine.
    pub system: Link,
    /// Its chassis.
    pub chassis: Vec<Link>,
    /// What manages it: BMCs.
    pub managers: Vec<Link>,
    /// Whether `$expand` is understood.
    pub expands: bool,
}

impl Service {
    /// Finds the machine and what belongs to it.
    pub async fn discover(root: Resource, which: &Which, walk: &mut Walk<'_>) -> Result<Self, BmcError> {
        let expands = expands(root.node());
        let collection = root.node().link("Systems").unwrap_or_else(|| Link::root().below("Systems"));
        // A system that is not shown could be the one that is meant.
        walk.is_strict = true;
        let systems = walk.members(&collection).await?;
        walk.is_strict = false;
        if systems.is_empty()
            && let Some(skipped) = walk.skipped.first()
        {
            return Err(fault::malformed(format!("it shows no system: {}: {}", skipped.place, skipped.why)));
        }
        let is_alone = systems.len() == 1;
        let system = which.choose(systems)?;
        let links = system.node().at("Links");
        let mut around = async |own: &str, all: &str| {
            let mut links = links.links(own);
            // What belongs to a lone machine is all there is, also what it forgot to link.
            if is_alone || links.is_empty() {
                for link in collection_links(root.node().link(all), walk).await? {
                    if !links.contains(&link) {
                        links.push(link);
                    }
                }
            }
            links.truncate(MAX_AROUND);
            Ok::<_, BmcError>(links)
        };
        let chassis = around("Chassis", "Chassis").await?;
        let managers = around("ManagedBy", "Managers").await?;
        Ok(Self { system: system.link, chassis, managers, expands, root })
    }
}

async fn collection_links(collection: Option<Link>, walk: &mut Walk<'_>) -> Result<Vec<Link>, BmcError> {
    let Some(collection) = collection else { return Ok(Vec::new()) };
    let page = walk.read(&collection).await?;
    Ok(page.map(|page| page.node().links("Members")).unwrap_or_default())
}

/// Where sessions are made, if the service has any.
pub fn sessions(root: Node<'_>) -> Option<Link> {
    root.at("Links").link("Sessions").or_else(|| root.link("SessionService").map(|service| service.below("Sessions")))
}

/// Whether the service says that it understands `$expand`.
pub fn expands(root: Node<'_>) -> bool {
    let query = root.at("ProtocolFeaturesSupported").at("ExpandQuery");
    query.flag("NoLinks") == Some(true) && query.flag("Levels") != Some(false)
}

/// Where an action is done: the target that the resource names, or the standard's place for it
/// (DSP0266 §"POST action").
pub fn action(resource: &Resource, name: &str) -> Link {
    let target = resource.node().at("Actions").at(&format!("#{name}")).word("target");
    target.and_then(Link::parse).unwrap_or_else(|| resource.link.below(&format!("Actions/{name}")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::resource::tests::resource, *};

    fn systems() -> Vec<Resource> {
        vec![
            resource(
                "/redfish/v1/Systems/1",
                json!({"Id": "1", "UUID": "27946b59-9e44-4fa7-8e91-f3527a1ef094", "SerialNumber": " A1 "}),
            ),
            resource("/redfish/v1/Systems/2", json!({"Id": 2, "UUID": null, "SKU": "B2"})),
        ]
    }

    #[test]
    fn the_system_that_is_meant_is_chosen() {
        let uuid = "27946b59-9e44-4fa7-8e91-f3527a1ef094".parse().unwrap();
        for (which, expected) in [
            (Which::Id("2".to_owned()), Some("2")),
            (Which::Uuid(uuid), Some("1")),
            (Which::Serial("A1".to_owned()), Some("1")),
            (Which::Serial("B2".to_owned()), Some("2")),
            (Which::Serial("C3".to_owned()), None),
            (Which::Only, None),
        ] {
            let chosen = which.choose(systems()).ok();
            assert_eq!(chosen.as_ref().map(|system| system.link.name()), expected, "{which:?}");
        }
    }

    #[test]
    fn an_action_without_a_target_is_at_the_standard_place() {
        let told = resource(
            "/redfish/v1/Systems/1",
            json!({"Actions": {"#ComputerSystem.Reset": {"target": "/redfish/v1/Reset"}}}),
        );
        assert_eq!(action(&told, "ComputerSystem.Reset").as_str(), "/redfish/v1/Reset");
        let foreign = json!({"Actions": {"#ComputerSystem.Reset": {"target": "https://evil/Reset"}}});
        let untold = resource("/redfish/v1/Systems/1/", foreign);
        assert_eq!(
            action(&untold, "ComputerSystem.Reset").as_str(),
            "/redfish/v1/Systems/1/Actions/ComputerSystem.Reset"
        );
    }
}
