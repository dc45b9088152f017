//! What and whose a BMC is (DSP0268 ComputerSystem, Manager), and its light.

use serde_json::json;
use uuid::Uuid;

use crate::{bmc::BmcError, told::Identity};

use super::{Redfish, fault, resource::Node};

/// Which machine it is, by its system and its manager.
pub fn identity(system: Node<'_>, manager: Node<'_>) -> Identity {
    Identity {
        vendor: system.text("Manufacturer"),
        model: system.text("Model"),
        serial: system.text("SerialNumber"),
        uuid: system.word("UUID").and_then(uuid),
        firmware: manager.text("FirmwareVersion"),
        manager: manager.first_text(&["Model", "Name"]),
    }
}

/// A UUID that names one machine: neither all zeros nor all ones.
pub(super) fn uuid(word: &str) -> Option<Uuid> {
    word.trim().parse().ok().filter(|uuid: &Uuid| !uuid.is_nil() && !uuid.is_max())
}

/// The change that lights a resource or puts its light out; `None` when it has no light.
fn light(node: Node<'_>, is_lit: bool) -> Option<serde_json::Value> {
    if node.flag("LocationIndicatorActive").is_some() {
        return Some(json!({ "LocationIndicatorActive": is_lit }));
    }
    let allowed = node.words("IndicatorLED@Redfish.AllowableValues");
    let word = match is_lit {
        false => "Off",
        true if !allowed.is_empty() && !allowed.contains(&"Blinking") => "Lit",
        true => "Blinking",
    };
    node.word("IndicatorLED").is_some().then(|| json!({ "IndicatorLED": word }))
}

impl Redfish {
    pub(super) async fn read_identity(&self) -> Result<Identity, BmcError> {
        let system = self.system().await?;
        let service = self.service().await?;
        let mut walk = self.walk(&service);
        let mut manager = None;
        for link in &service.managers {
            let found = walk.read(link).await?;
            let is_bmc = found.as_ref().is_some_and(|found| found.node().word("ManagerType") == Some("BMC"));
            if is_bmc || manager.is_none() {
                manager = found;
            }
            if is_bmc {
                break;
            }
        }
        Ok(identity(system.node(), manager.as_ref().map_or(Node(None), |manager| manager.node())))
    }

    /// Redfish knows no duration: the light stays until it is put out.
    pub(super) async fn set_light(&self, is_lit: bool) -> Result<(), BmcError> {
        let system = self.system().await?;
        if let Some(change) = light(system.node(), is_lit) {
            return self.http.patch(&system, change).await.map(drop);
        }
        let service = self.service().await?;
        let mut walk = self.walk(&service);
        for link in &service.chassis {
            let Some(chassis) = walk.read(link).await? else { continue };
            if let Some(change) = light(chassis.node(), is_lit) {
                return self.http.patch(&chassis, change).await.map(drop);
            }
        }
        Err(fault::unsupported("it has no identification light"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_of_no_machine_is_absent() {
        for (word, is_there) in [
            ("27946B59-9E44-4FA7-8E91-F3527A1EF094", true),
            ("00000000-0000-0000-0000-000000000000", false),
            ("ffffffff-ffff-ffff-ffff-ffffffffffff", false),
            ("n/a", false),
        ] {
            let system = json!({"UUID": word, "Model": 7});
            let told = identity(Node(Some(&system)), Node(None));
            assert_eq!((told.uuid.is_some(), told.model), (is_there, None), "{word}");
        }
    }

    #[test]
    fn the_newer_light_is_preferred() {
        let both = json!({"IndicatorLED": "Off", "LocationIndicatorActive": false});
        assert_eq!(light(Node(Some(&both)), true), Some(json!({"LocationIndicatorActive": true})));
        let old = json!({"IndicatorLED": "Off"});
        assert_eq!(light(Node(Some(&old)), true), Some(json!({"IndicatorLED": "Blinking"})));
        assert_eq!(light(Node(Some(&json!({"IndicatorLED": null}))), true), None);
    }
}
