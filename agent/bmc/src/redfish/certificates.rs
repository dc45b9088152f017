//! The certificates that a BMC has (DSP0268 CertificateService, CertificateLocations,
//! ManagerNetworkProtocol, Certificate).

use jiff::Timestamp;

use crate::{bmc::BmcError, told::Skipped};

use super::{
    Redfish,
    link::Link,
    resource::{Node, Resource},
};

/// The longest certificate that is kept, in bytes of PEM.
const MAX_PEM: usize = 16 << 10;

/// One certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Where it is.
    pub link: Link,
    /// Whom it names.
    pub subject: Option<String>,
    /// Who vouches for it.
    pub issuer: Option<String>,
    /// When it ends.
    pub ends: Option<Timestamp>,
    /// The certificate itself, when the BMC shows it as PEM.
    pub pem: Option<String>,
}

/// What a certificate says.
pub fn certificate(resource: &Resource) -> Certificate {
    let node = resource.node();
    let name = |of: Node<'_>| of.first_text(&["CommonName", "DisplayString", "Organization"]);
    let is_pem = |pem: &&str| pem.len() <= MAX_PEM && pem.contains("-----BEGIN CERTIFICATE-----");
    Certificate {
        link: resource.link.clone(),
        subject: name(node.at("Subject")),
        issuer: name(node.at("Issuer")),
        ends: node.word("ValidNotAfter").and_then(|word| word.trim().parse().ok()),
        pem: node.word("CertificateString").filter(is_pem).map(str::to_owned),
    }
}

impl Redfish {
    /// Every certificate that the BMC shows: those it lists, and those it answers HTTPS with.
    pub async fn certificates(&self) -> Result<(Vec<Certificate>, Vec<Skipped>), BmcError> {
        let service = self.service().await?;
        let mut walk = self.walk(&service);
        let mut found = Vec::new();
        if let Some(certificates) = walk.follow(service.root.node(), "CertificateService").await?
            && let Some(locations) = walk.follow(certificates.node(), "CertificateLocations").await?
        {
            found.extend(walk.members_at(locations.node().at("Links"), "Certificates").await?);
        }
        for manager in &service.managers {
            let Some(manager) = walk.read(manager).await? else { continue };
            if let Some(protocol) = walk.follow(manager.node(), "NetworkProtocol").await? {
                found.extend(walk.members_at(protocol.node().at("HTTPS"), "Certificates").await?);
            }
        }
        Ok((found.iter().map(certificate).collect(), walk.skipped))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::{
        super::resource::tests::{any_resource, resource},
        *,
    };

    #[test]
    fn what_is_no_certificate_is_not_kept_as_one() {
        let told = certificate(&resource(
            "/redfish/v1/C/1",
            json!({
            "Subject": {"CommonName": "bmc"}, "Issuer": "me", "ValidNotAfter": "2030-01-01T00:00:00Z", "CertificateString": "<html>"}),
        ));
        assert_eq!((told.subject.as_deref(), told.issuer, told.pem), (Some("bmc"), None, None));
        assert!(told.ends.is_some());
    }

    proptest! {
        #[test]
        fn no_json_makes_the_reader_panic(resource in any_resource()) {
            certificate(&resource);
        }
    }
}
