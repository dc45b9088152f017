//! BMCs that were found on the management network, and the first login to one.

use std::{fmt, net::IpAddr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{At, Identity, Protocol};

/// The most found BMCs that are kept of one rack.
pub const MAX_FOUND: usize = 4096;

/// Ports of the protocols (IPMI 2.0 §13.1.2).
const IPMI: u16 = 623;
const HTTPS: u16 = 443;

/// A BMC that answers on the management network: what it says to anybody, without a login.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// Where it answers.
    pub address: IpAddr,
    /// The port at which it speaks IPMI.
    pub ipmi: Option<u16>,
    /// The port at which it speaks Redfish.
    pub redfish: Option<u16>,
    /// Who made it.
    pub vendor: Option<String>,
    /// What it is called.
    pub model: Option<String>,
    /// UUID of its Redfish service. Often its own, and not the machine's.
    pub uuid: Option<Uuid>,
    /// SHA-256 of the certificate it shows, in hexadecimal.
    pub fingerprint: Option<String>,
}

impl Found {
    /// Nothing but its address.
    pub fn at(address: IpAddr) -> Self {
        Self { address, ipmi: None, redfish: None, vendor: None, model: None, uuid: None, fingerprint: None }
    }

    /// Whether anything answers.
    pub fn is_any(&self) -> bool {
        self.ipmi.is_some() || self.redfish.is_some()
    }

    /// As it was, with what it says now: what is silent this time is not gone for that.
    pub fn and_now(&self, now: &Self) -> Self {
        Self {
            address: self.address,
            ipmi: now.ipmi.or(self.ipmi),
            redfish: now.redfish.or(self.redfish),
            vendor: now.vendor.clone().or_else(|| self.vendor.clone()),
            model: now.model.clone().or_else(|| self.model.clone()),
            uuid: now.uuid.or(self.uuid),
            fingerprint: now.fingerprint.clone().or_else(|| self.fingerprint.clone()),
        }
    }

    /// Where, and what in, it is reached: with a port when it is not its protocol's own.
    pub fn way(&self) -> (At, Protocol) {
        let at = |port: Option<u16>| At { address: self.address, port };
        match (self.redfish, self.ipmi) {
            (Some(HTTPS), None | Some(IPMI)) => (at(None), Protocol::Either),
            (Some(port), _) => (at(Some(port)), Protocol::Redfish),
            (None, port) => (at(port.filter(|port| *port != IPMI)), Protocol::Ipmi),
        }
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let spoken = match (self.redfish, self.ipmi) {
            (Some(_), Some(_)) => "Redfish and IPMI",
            (Some(_), None) => "Redfish",
            (None, _) => "IPMI",
        };
        write!(f, "a BMC answers at {} in {spoken}", self.address)?;
        match (&self.vendor, &self.model) {
            (Some(vendor), Some(model)) => write!(f, ": {vendor} {model}"),
            (Some(word), None) | (None, Some(word)) => write!(f, ": {word}"),
            (None, None) => Ok(()),
        }
    }
}

/// How a BMC is logged in to that belongs to no machine yet.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stranger {
    /// Where it answers.
    pub at: At,
    /// What it speaks.
    pub protocol: Protocol,
    /// Who logs in.
    pub user: String,
    /// The password.
    pub password: String,
    /// SHA-256 of the certificate it has to show, in hexadecimal; `None`: any.
    pub fingerprint: Option<String>,
}

// A log line of a message must not show passwords.
impl fmt::Debug for Stranger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stranger").field("at", &self.at).field("user", &self.user).finish_non_exhaustive()
    }
}

/// What came of a first login. Travels as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Met {
    /// It has begun: ask again.
    UnderWay,
    /// It was let in.
    In {
        /// What and whose the BMC says it is.
        identity: Identity,
        /// SHA-256 of the certificate it shows, in hexadecimal.
        fingerprint: Option<String>,
    },
    /// It was not let in.
    Denied(String),
    /// It is not tried, so that no account is locked.
    Rests {
        /// Until when.
        until: Timestamp,
        /// Why, for people.
        reason: String,
    },
    /// It did not come to that.
    Failed(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_named_when_it_is_not_the_protocols_own() {
        let way = |redfish, ipmi| {
            let (at, protocol) = Found { redfish, ipmi, ..Found::at("10.0.0.5".parse().unwrap()) }.way();
            format!("{at} {}", protocol.word())
        };
        assert_eq!(way(Some(443), Some(623)), "10.0.0.5 either");
        assert_eq!(way(Some(443), None), "10.0.0.5 either");
        assert_eq!(way(Some(8443), Some(623)), "10.0.0.5:8443 redfish");
        assert_eq!(way(Some(443), Some(6230)), "10.0.0.5:443 redfish");
        assert_eq!(way(None, Some(623)), "10.0.0.5 ipmi");
        assert_eq!(way(None, Some(6230)), "10.0.0.5:6230 ipmi");
    }

    #[test]
    fn no_password_is_shown() {
        let stranger = Stranger {
            at: "10.0.0.5".parse().unwrap(),
            protocol: Protocol::Either,
            user: "root".into(),
            password: "canary".into(),
            fingerprint: None,
        };
        assert!(!format!("{stranger:?}").contains("canary"));
    }
}
