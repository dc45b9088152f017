//! A machine's BMC whose card was given another address: whether it is followed there.
//!
//! Invariants:
//! - A card's address proves nothing: anybody can have it. No password is told before the BMC at the new
//!   address shows the certificate that the machine's was known by; one that was known by none is asked by
//!   IPMI alone, in which it proves first that it has the password.
//! - Whoever was let in is followed only when it says that it is of the same machine.

use rackhand_common::{
    bmc::{Access, At, Found, Protocol},
    id::MachineId,
    machine::Mac,
};

use super::{Expected, Known, Owner, Told, owner};

/// How a BMC that may be a machine's is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// Where, what in, and the certificate it has to show.
    Ask(At, Protocol, Option<String>),
    /// Not yet: why, for people.
    Wait(&'static str),
    /// Not at all: why, for people.
    Not(String),
}

/// How the BMC found at the new address is asked whether it is the one that is reached by `access`; it was
/// known by this certificate.
pub fn way(access: &Access, believed: Option<&str>, found: &Found) -> Way {
    let at = At { address: found.address, port: access.at.port };
    match (believed, &found.fingerprint) {
        _ if !found.is_any() => Way::Wait("it has an address, and does not answer yet"),
        (Some(believed), Some(shown)) if believed == shown => {
            Way::Ask(at, Protocol::Redfish, Some(believed.to_owned()))
        }
        (Some(_), Some(_)) => Way::Not(
            "it has the card of a machine's BMC, and shows another certificate: it is not given the password".into(),
        ),
        (Some(_), None) => Way::Wait("it has the card of a machine's BMC, and shows no certificate yet"),
        (None, _) if access.protocol == Protocol::Redfish => Way::Not(
            "it has the card of a machine's BMC, whose certificate is not known: it is not given the password".into(),
        ),
        (None, _) if found.ipmi.is_none() => {
            Way::Wait("it has the card of a machine's BMC, and does not speak IPMI yet")
        }
        (None, _) => Way::Ask(At { port: access.at.port.or(found.ipmi), ..at }, Protocol::Ipmi, None),
    }
}

/// Whether the BMC that told this is the machine's, whose card is `mac`; why not, for people. `is_known`
/// when it showed the certificate that the machine's was known by.
pub fn is_its(
    told: &Told,
    (others, expected, machines): (&[Told], &[Expected], &[Known]),
    (machine, mac): (MachineId, Mac),
    is_known: bool,
) -> Result<(), String> {
    let mut machines = machines.to_vec();
    for known in machines.iter_mut().filter(|known| known.id == machine) {
        // Where it was before.
        known.bmc = None;
        let lans = known.in_band.iter_mut().flat_map(|bmc| &mut bmc.lan);
        for lan in lans.filter(|lan| lan.mac == Some(mac)) {
            lan.address = Some(told.address);
        }
    }
    match owner(told, others, expected, &machines) {
        Owner::Machine(owner) if owner == machine => Ok(()),
        Owner::Machine(other) => {
            let name = machines.iter().find(|known| known.id == other).map_or("?", |known| &known.name);
            Err(format!("it has the card of another machine's BMC, and says that it is {name}'s"))
        }
        Owner::Unknown(_) if is_known && told.identity.serial.is_none() && told.identity.uuid.is_none() => Ok(()),
        Owner::Unknown(words) => Err(format!("it has the card of a machine's BMC; {words}")),
        Owner::Disputed(words) => Err(words),
    }
}

#[cfg(test)]
mod tests {
    use rackhand_common::{
        bmc::Identity,
        hardware::{self, BmcLan},
        machine::Mainboard,
    };
    use uuid::Uuid;

    use super::*;

    fn access(protocol: Protocol) -> Access {
        Access {
            machine: MachineId(Uuid::from_u128(1)),
            at: "10.0.0.5".parse().unwrap(),
            protocol,
            user: "root".into(),
            password: "canary".into(),
            fingerprint: None,
            mainboard: None,
        }
    }

    #[test]
    fn no_password_is_told_to_whoever_shows_another_certificate_or_none() {
        let found = |redfish: Option<&str>, ipmi| Found {
            redfish: redfish.map(|_| 443),
            fingerprint: redfish.map(ToOwned::to_owned),
            ipmi,
            ..Found::at([10, 0, 0, 9].into())
        };
        let at: At = "10.0.0.9".parse().unwrap();
        let either = access(Protocol::Either);
        let pinned = Way::Ask(at, Protocol::Redfish, Some("aa".into()));
        assert_eq!(way(&either, Some("aa"), &found(Some("aa"), Some(623))), pinned);
        assert!(matches!(way(&either, Some("aa"), &found(Some("bb"), Some(623))), Way::Not(_)));
        // Not by IPMI either, whoever had a certificate.
        assert!(matches!(way(&either, Some("aa"), &found(None, Some(623))), Way::Wait(_)));
        assert!(matches!(way(&either, Some("aa"), &found(None, None)), Way::Wait(_)));
        assert!(matches!(way(&access(Protocol::Redfish), None, &found(Some("bb"), Some(623))), Way::Not(_)));
        let proves = Way::Ask(At { port: Some(623), ..at }, Protocol::Ipmi, None);
        assert_eq!(way(&access(Protocol::Ipmi), None, &found(None, Some(623))), proves);
        assert!(matches!(way(&either, None, &found(Some("bb"), None)), Way::Wait(_)));
    }

    #[test]
    fn it_is_followed_when_it_says_that_it_is_of_the_same_machine() {
        let mac = Mac([2, 0, 0, 0, 0, 9]);
        let known = |number: u128, serial: &str, bmc: u8, in_band: bool| {
            let lan = BmcLan { mac: Some(mac), address: Some([10, 0, 0, bmc].into()), ..BmcLan::default() };
            let in_band = in_band.then(|| hardware::Bmc { lan: vec![lan], ..hardware::Bmc::default() });
            Known {
                id: MachineId(Uuid::from_u128(number)),
                name: format!("m-{number}"),
                mainboard: Some(Mainboard { serial: serial.into(), uuid: None }),
                in_band,
                bmc: Some([10, 0, 0, bmc].into()),
            }
        };
        let told = |serial: Option<&str>| Told {
            address: [10, 0, 0, 9].into(),
            identity: Identity { serial: serial.map(ToOwned::to_owned), ..Identity::default() },
        };
        let its = |told: Told, machines: &[Known], is_known| {
            is_its(&told, (&[], &[], machines), (machines[0].id, mac), is_known)
        };
        for in_band in [false, true] {
            let machines = [known(1, "A", 5, in_band), known(2, "B", 6, false)];
            assert_eq!(its(told(Some("A")), &machines, false), Ok(()));
            assert!(its(told(Some("B")), &machines, true).is_err());
            assert!(its(told(Some("C")), &machines, true).is_err());
        }
        let machines = [known(1, "A", 5, false)];
        assert_eq!(its(told(None), &machines, true), Ok(()));
        assert!(its(told(None), &machines, false).is_err());
    }
}
