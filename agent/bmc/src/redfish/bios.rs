//! BIOS attributes and what they will be after the next start (DSP0268 Bios, Settings).

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{
    bmc::BmcError,
    told::{
        Bios,
        baseline::{Attribute, MAX_ATTRIBUTES},
        text,
    },
};

use super::{
    Redfish, fault,
    http::Payload,
    resource::{Node, Resource},
    tree::action,
};

/// The attributes that a Bios or its settings list. Null and what is no value is left out.
pub fn attributes(bios: Node<'_>) -> BTreeMap<String, Attribute> {
    let value = |node: Node<'_>| match node.0? {
        Value::String(word) => Some(Attribute::Text(text(word).unwrap_or_default())),
        Value::Number(number) => number.as_f64().map(Attribute::Number),
        Value::Bool(flag) => Some(Attribute::Flag(*flag)),
        _ => None,
    };
    let all = bios.at("Attributes").members().filter_map(|(name, node)| Some((text(name)?, value(node)?)));
    all.take(MAX_ATTRIBUTES).collect()
}

fn json_of(attribute: &Attribute) -> Value {
    match attribute {
        Attribute::Text(text) => text.clone().into(),
        // An enumeration of numbers compares 1 and 1.0 as different in some services.
        Attribute::Number(number) if number.fract() == 0.0 && number.abs() < 9e15 => (*number as i64).into(),
        Attribute::Number(number) => (*number).into(),
        Attribute::Flag(flag) => (*flag).into(),
    }
}

impl Redfish {
    async fn bios_resource(&self) -> Result<Resource, BmcError> {
        let system = self.system().await?;
        let link = system.node().link("Bios");
        self.http.get(&link.ok_or_else(|| fault::unsupported("it shows no BIOS"))?).await
    }

    /// The attributes of the BIOS.
    pub(super) async fn read_bios(&self) -> Result<Bios, BmcError> {
        let bios = self.bios_resource().await?;
        let service = self.service().await?;
        let mut walk = self.walk(&service);
        let attributes_now = attributes(bios.node());
        let settings = walk.follow(bios.node().at("@Redfish.Settings"), "SettingsObject").await?;
        let mut pending = settings.map(|settings| attributes(settings.node())).unwrap_or_default();
        pending.retain(|name, value| attributes_now.get(name) != Some(value));
        Ok(Bios { attributes: attributes_now, pending, skipped: walk.skipped })
    }

    /// Has these attributes be so after the next start. A name that the BIOS does not have is
    /// refused before anything is sent.
    pub(super) async fn write_bios(&self, wanted: &BTreeMap<String, Attribute>) -> Result<(), BmcError> {
        let bios = self.bios_resource().await?;
        let known = attributes(bios.node());
        if let Some(unknown) = wanted.keys().find(|name| !known.is_empty() && !known.contains_key(*name)) {
            return Err(fault::refused(format!("the BIOS has no attribute {unknown}")));
        }
        let values: serde_json::Map<String, Value> =
            wanted.iter().map(|(name, value)| (name.clone(), json_of(value))).collect();
        let settings = bios.node().at("@Redfish.Settings");
        let times = settings.words("SupportedApplyTimes");
        let mut change = json!({ "Attributes": values });
        if times.contains(&"OnReset") {
            change["@Redfish.SettingsApplyTime"] = json!({ "ApplyTime": "OnReset" });
        }
        match settings.link("SettingsObject") {
            Some(link) => {
                let settings = self.http.get(&link).await?;
                self.http.patch(&settings, change).await.map(drop)
            }
            None => self.http.patch(&bios, change).await.map(drop),
        }
    }

    /// Has the BIOS be as it left its factory, after the next start.
    pub async fn reset_bios(&self) -> Result<(), BmcError> {
        let bios = self.bios_resource().await?;
        self.http.post(&action(&bios, "Bios.ResetBios"), Payload::Json(json!({}))).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::resource::tests::any_json, *};

    #[test]
    fn what_is_no_value_is_no_attribute() {
        let told = json!({"Attributes": {"BootMode": "Uefi", "NumLock": true, "Retries": 3, "Asset": null, "Odd": [1], "Empty": ""}});
        let names: Vec<String> = attributes(Node(Some(&told))).into_keys().collect();
        assert_eq!(names, ["BootMode", "Empty", "NumLock", "Retries"]);
        assert_eq!(json_of(&Attribute::Number(3.0)).to_string(), "3");
    }

    proptest! {
        #[test]
        fn no_json_makes_the_reader_panic(json in any_json()) {
            attributes(Node(Some(&json)));
        }
    }
}
