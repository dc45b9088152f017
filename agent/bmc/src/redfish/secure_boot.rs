//! UEFI Secure Boot (DSP0268 SecureBoot, SecureBootDatabase, Certificate, Signature).

use std::collections::BTreeMap;

use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::{
    bmc::BmcError,
    told::baseline::{self, DATABASES, Key, KeyKind, MAX_KEYS, SecureBootChange},
};

use super::{
    Redfish, fault,
    http::Payload,
    link::Link,
    resource::{Node, Resource},
    tree::action,
};

/// The longest certificate or signature that is kept, in bytes of text.
const MAX_CONTENT: usize = 16 << 10;

/// One database, and where its entries are.
#[derive(Debug, Default)]
struct Database {
    certificates: Option<Link>,
    signatures: Option<Link>,
    /// By digest.
    keys: BTreeMap<String, (Key, Link)>,
}

/// What an entry of a database is, and its digest: of the certificate in DER, or of the signature as shown.
fn key(entry: &Resource) -> Option<(String, Key)> {
    let node = entry.node();
    let fits = |text: &&str| text.len() <= MAX_CONTENT;
    if let Some(pem) = node.word("CertificateString").filter(fits) {
        let digest = match CertificateDer::from_pem_slice(pem.as_bytes()) {
            Ok(certificate) => Sha256::digest(&certificate),
            Err(_) => Sha256::digest(pem.trim()),
        };
        return Some((hex::encode(digest), Key { kind: KeyKind::Certificate, content: pem.to_owned() }));
    }
    let signature = node.word("SignatureString").filter(fits)?;
    let kind = node.text("SignatureType").unwrap_or_default();
    let digest = hex::encode(Sha256::digest(format!("{kind} {}", signature.trim())));
    Some((digest, Key { kind: KeyKind::Signature(kind), content: signature.to_owned() }))
}

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

    /// Its key databases, as far as the BMC has them: all of each, or none of it.
    async fn key_databases(&self) -> Result<BTreeMap<String, Database>, BmcError> {
        let resource = self.secure_boot_resource().await?;
        let service = self.service().await?;
        let mut walk = self.walk(&service);
        walk.is_strict = true;
        let mut databases = BTreeMap::new();
        for shown in walk.members_at(resource.node(), "SecureBootDatabases").await? {
            let node = shown.node();
            let Some(name) = node.word("DatabaseId").filter(|name| DATABASES.contains(name)) else { continue };
            let mut database = Database {
                certificates: node.link("Certificates"),
                signatures: node.link("Signatures"),
                keys: BTreeMap::new(),
            };
            for entries in ["Certificates", "Signatures"] {
                for entry in walk.members_at(node, entries).await? {
                    let (digest, key) = key(&entry).ok_or_else(|| {
                        fault::malformed(format!("{}: it is no certificate and no signature", entry.link))
                    })?;
                    database.keys.insert(digest, (key, entry.link.clone()));
                }
            }
            if database.keys.len() > MAX_KEYS {
                return Err(fault::malformed(format!("its database {name} has more than {MAX_KEYS} keys")));
            }
            databases.insert(name.to_owned(), database);
        }
        Ok(databases)
    }

    /// Secure Boot with its key databases, for a record.
    pub(super) async fn read_secure_boot(&self) -> Result<baseline::SecureBoot, BmcError> {
        let SecureBoot { is_enabled, mode, .. } = Self::secure_boot(self).await?;
        let keys = |database: Database| database.keys.into_iter().map(|(digest, (key, _))| (digest, key)).collect();
        let databases = self.key_databases().await?.into_iter().map(|(name, database)| (name, keys(database)));
        Ok(baseline::SecureBoot { is_enabled, mode, databases: databases.collect() })
    }

    /// Does what puts Secure Boot back. Keys that a reset of them put there again are not put there twice.
    pub(super) async fn restore_secure_boot(&self, wanted: &SecureBootChange) -> Result<(), BmcError> {
        if wanted.reset_keys {
            self.reset_secure_boot_keys(ResetKeys::Default).await?;
        }
        let databases = self.key_databases().await?;
        for (name, digest) in &wanted.remove {
            if let Some((_, link)) = databases.get(name).and_then(|database| database.keys.get(digest)) {
                self.http.delete(link).await?;
            }
        }
        for (name, digest, Key { kind, content }) in &wanted.insert {
            let Some(database) = databases.get(name).filter(|database| !database.keys.contains_key(digest)) else {
                continue;
            };
            let (collection, body) = match kind {
                KeyKind::Certificate => {
                    (&database.certificates, json!({ "CertificateString": content, "CertificateType": "PEM" }))
                }
                KeyKind::Signature(kind) => (
                    &database.signatures,
                    json!({ "SignatureString": content, "SignatureType": kind, "SignatureTypeRegistry": "UEFI" }),
                ),
            };
            let collection = collection
                .as_ref()
                .ok_or_else(|| fault::unsupported(format!("its database {name} takes no such key")))?;
            self.http.post(collection, Payload::Json(body)).await?;
        }
        match wanted.enable {
            Some(is_enabled) => Self::set_secure_boot(self, is_enabled).await,
            None => Ok(()),
        }
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
