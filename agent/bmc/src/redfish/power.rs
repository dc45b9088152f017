//! Chassis power (DSP0268 ComputerSystem: `PowerState`, `#ComputerSystem.Reset`).
//!
//! Invariant: nothing is toggled: a BMC that can only push the button is asked nothing.

use serde_json::{Value, json};

use rackhand_common::machine::Power;

use crate::bmc::BmcError;

use super::{Redfish, fault, http::Payload, resource::Node, tree::action};

/// Chassis power by what a system says. A machine on its way up or down has power.
pub fn power(system: Node<'_>) -> Option<Power> {
    match system.word("PowerState")? {
        "On" | "PoweringOn" | "PoweringOff" | "Paused" => Some(Power::On),
        "Off" => Some(Power::Off),
        _ => None,
    }
}

/// The `ResetType` that sets power to this state, of those that the BMC allows; of all when it
/// does not say.
pub fn reset_type(wanted: Power, allowed: &[&str]) -> Option<&'static str> {
    let fitting: &[&str] = match wanted {
        Power::On => &["On", "ForceOn"],
        Power::Off => &["ForceOff"],
    };
    fitting.iter().copied().find(|kind| allowed.is_empty() || allowed.contains(kind))
}

/// The values that an action's description allows for its parameter (DSP0268 ActionInfo).
pub fn allowed<'a>(info: Node<'a>, parameter: &str) -> Vec<&'a str> {
    let named = info.items("Parameters").find(|item| item.word("Name") == Some(parameter));
    named.map(|item| item.words("AllowableValues")).unwrap_or_default()
}

impl Redfish {
    pub(super) async fn read_power(&self) -> Result<Power, BmcError> {
        let system = self.system().await?;
        power(system.node()).ok_or_else(|| fault::malformed(format!("{} has no power state", system.link)))
    }

    pub(super) async fn reset(&self, wanted: Power) -> Result<(), BmcError> {
        let system = self.system().await?;
        let already = match wanted {
            Power::On => "On",
            Power::Off => "Off",
        };
        if system.node().word("PowerState") == Some(already) {
            return Ok(());
        }
        let reset = system.node().at("Actions").at("#ComputerSystem.Reset");
        let info = match reset.word("@Redfish.ActionInfo").and_then(super::link::Link::parse) {
            Some(link) if !reset.at("ResetType@Redfish.AllowableValues").is_there() => self.http.get(&link).await.ok(),
            _ => None,
        };
        let listed = match &info {
            Some(info) => allowed(info.node(), "ResetType"),
            None => reset.words("ResetType@Redfish.AllowableValues"),
        };
        let kind = reset_type(wanted, &listed)
            .ok_or_else(|| fault::unsupported(format!("power can be set by {} only", listed.join(", "))))?;
        let body: Value = json!({ "ResetType": kind });
        self.http.post(&action(&system, "ComputerSystem.Reset"), Payload::Json(body)).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn power_is_set_and_never_toggled() {
        assert_eq!(reset_type(Power::On, &["PushPowerButton", "ForceOn"]), Some("ForceOn"));
        assert_eq!(reset_type(Power::On, &["PushPowerButton"]), None);
        assert_eq!(reset_type(Power::Off, &["GracefulShutdown", "PowerCycle"]), None);
        assert_eq!(reset_type(Power::Off, &[]), Some("ForceOff"));
    }

    #[test]
    fn a_machine_on_its_way_down_has_power() {
        for (word, expected) in
            [("On", Some(Power::On)), ("PoweringOff", Some(Power::On)), ("Off", Some(Power::Off)), ("?", None)]
        {
            assert_eq!(power(Node(Some(&json!({ "PowerState": word })))), expected);
        }
    }
}
