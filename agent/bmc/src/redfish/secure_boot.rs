//! UEFI Secure Boot (DSP0268 SecureBoot).

use serde_json::json;

use crate::bmc::BmcError;

use super::{
    Redfish, fault,
    http::Payload,
    resource::{Node, Resource},
    tree::action,
};

/// How Secure Boot is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecureBoot {
    /// Whether it is on from the next start on.
    pub is_enabled: Option<bool>,
    /// Whether it was on at this start.
    pub is_active: Option<bool>,
    /// "SetupMode", "UserMode", "AuditMode" or "DeployedMode".
    pub mode: Option<String>,
}

/// Which keys are to be there after a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetKeys {
    /// The vendor's.
    Default,
    /// None at all: setup mode.
    None,
    /// All but the platform key: setup mode.
    NoPlatformKey,
}

/// What a SecureBoot says.
pub fn secure_boot(node: Node<'_>) -> SecureBoot {
    SecureBoot {
        is_enabled: node.flag("SecureBootEnable"),
        is_active: node.word("SecureBootCurrentBoot").map(|word| word == "Enabled"),
        mode: node.text("SecureBootMode"),
    }
}

impl Redfish {
    async fn secure_boot_resource(&self) -> Result<Resource, BmcError> {
        let system = self.system().await?;
        let link = system.node().link("SecureBoot");
        self.http.get(&link.ok_or_else(|| fault::unsupported("it shows no Secure Boot"))?).await
    }

    /// How Secure Boot is.
    pub async fn secure_boot(&self) -> Result<SecureBoot, BmcError> {
        Ok(secure_boot(self.secure_boot_resource().await?.node()))
    }

    /// Has Secure Boot on or off from the next start on. Services show the new state at once or
    /// after that start: the caller reads it then.
    pub async fn set_secure_boot(&self, is_enabled: bool) -> Result<(), BmcError> {
        let resource = self.secure_boot_resource().await?;
        if secure_boot(resource.node()).is_enabled == Some(is_enabled) {
            return Ok(());
        }
        self.http.patch(&resource, json!({ "SecureBootEnable": is_enabled })).await.map(drop)
    }

    /// Has the keys replaced.
    pub async fn reset_secure_boot_keys(&self, keys: ResetKeys) -> Result<(), BmcError> {
        let resource = self.secure_boot_resource().await?;
        let kind = match keys {
            ResetKeys::Default => "ResetAllKeysToDefault",
            ResetKeys::None => "DeleteAllKeys",
            ResetKeys::NoPlatformKey => "DeletePK",
        };
        let reset = action(&resource, "SecureBoot.ResetKeys");
        self.http.post(&reset, Payload::Json(json!({ "ResetKeysType": kind }))).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_service_leaves_out_is_unknown() {
        let told = json!({"SecureBootEnable": "true", "SecureBootCurrentBoot": "Disabled", "SecureBootMode": null});
        let expected = SecureBoot { is_enabled: None, is_active: Some(false), mode: None };
        assert_eq!(secure_boot(Node(Some(&told))), expected);
    }
}
