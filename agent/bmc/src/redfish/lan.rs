//! A BMC's own network (DSP0268 EthernetInterface below Manager).

use std::net::{IpAddr, Ipv4Addr};

use rackhand_common::machine::Mac;
use serde_json::{Value, json};

use crate::{bmc::BmcError, told::Lan};

use super::{
    Redfish, fault,
    resource::{Node, Resource},
};

/// The most addresses of one interface that are kept.
const MAX_ADDRESSES: usize = 64;

/// What one interface says.
pub fn lan(interface: Node<'_>) -> Lan {
    let addresses = || interface.items("IPv4Addresses");
    let v4 = addresses().filter_map(|item| {
        let address: Ipv4Addr = specified(item.word("Address")?)?;
        let mask: Ipv4Addr = item.word("SubnetMask")?.trim().parse().ok()?;
        let prefix = mask.to_bits().leading_ones();
        (prefix == mask.to_bits().count_ones()).then_some((IpAddr::V4(address), prefix as u8))
    });
    let v6 = interface.items("IPv6Addresses").filter_map(|item| {
        let address = specified(item.word("Address")?)?;
        let prefix = item.count("PrefixLength").and_then(|prefix| u8::try_from(prefix).ok())?;
        (prefix <= 128).then_some((IpAddr::V6(address), prefix))
    });
    let gateway = addresses().find_map(|item| specified(item.word("Gateway")?)).map(IpAddr::V4);
    let origin = addresses().find_map(|item| item.word("AddressOrigin"));
    let vlan = interface.at("VLAN");
    Lan {
        mac: ["MACAddress", "PermanentMACAddress"].iter().find_map(|name| mac(interface.word(name)?)),
        addresses: v4.chain(v6).take(MAX_ADDRESSES).collect(),
        gateway: gateway.or_else(|| interface.word("IPv6DefaultGateway").and_then(specified).map(IpAddr::V6)),
        is_dhcp: interface.at("DHCPv4").flag("DHCPEnabled").or_else(|| origin.map(|origin| origin == "DHCP")),
        vlan: (vlan.flag("VLANEnable") == Some(true))
            .then(|| vlan.count("VLANId").and_then(|id| u16::try_from(id).ok()))
            .flatten()
            .filter(|id| (1..=4094).contains(id)),
    }
}

/// What has an interface that is `now` be as `wanted`.
fn change(wanted: &Lan, now: &Lan) -> Value {
    let mut change = json!({});
    if wanted.is_dhcp.is_some() && wanted.is_dhcp != now.is_dhcp {
        change["DHCPv4"] = json!({ "DHCPEnabled": wanted.is_dhcp });
    }
    if wanted.vlan != now.vlan {
        change["VLAN"] = match wanted.vlan {
            Some(vlan) => json!({ "VLANEnable": true, "VLANId": vlan }),
            None => json!({ "VLANEnable": false }),
        };
    }
    let v4 =
        |lan: &Lan| lan.addresses.iter().find_map(|(address, length)| address_v4(*address).map(|v4| (v4, *length)));
    let gateway = |lan: &Lan| lan.gateway.and_then(address_v4);
    if let Some((address, length)) = v4(wanted).filter(|_| wanted.is_dhcp == Some(false))
        && ((v4(wanted), gateway(wanted)) != (v4(now), gateway(now)) || now.is_dhcp != Some(false))
    {
        let mask = Ipv4Addr::from(u32::MAX.checked_shl(32 - u32::from(length.min(32))).unwrap_or(0));
        let mut told = json!({ "Address": address, "SubnetMask": mask });
        if let Some(gateway) = gateway(wanted) {
            told["Gateway"] = json!(gateway);
        }
        change["IPv4StaticAddresses"] = json!([told]);
    }
    change
}

fn address_v4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

/// An Ethernet address that belongs to something.
pub(super) fn mac(word: &str) -> Option<Mac> {
    word.trim().parse().ok().filter(|mac: &Mac| mac.0 != [0; 6] && mac.0 != [0xff; 6])
}

/// An address that is one.
fn specified<T: std::str::FromStr + Into<IpAddr> + Copy>(word: &str) -> Option<T> {
    word.trim().parse().ok().filter(|address: &T| !(*address).into().is_unspecified())
}

impl Redfish {
    pub(super) async fn read_lan(&self) -> Result<Lan, BmcError> {
        self.own_interface().await.map(|(_, lan)| lan)
    }

    pub(super) async fn write_lan(&self, wanted: &Lan) -> Result<(), BmcError> {
        let (interface, now) = self.own_interface().await?;
        let change = change(wanted, &now);
        if change == json!({}) {
            return Ok(());
        }
        // What came with the collection has no tag of its own.
        let interface = self.http.get(&interface.link).await?;
        self.http.patch(&interface, change).await.map(drop)
    }

    /// The interface that we reach it by, or the first that has an address.
    async fn own_interface(&self) -> Result<(Resource, Lan), BmcError> {
        let service = self.service().await?;
        let mut walk = self.walk(&service);
        let mut lans = Vec::new();
        for link in &service.managers {
            let Some(manager) = walk.read(link).await? else { continue };
            let interfaces: Vec<Resource> = walk.members_at(manager.node(), "EthernetInterfaces").await?;
            lans.extend(interfaces.into_iter().map(|interface| {
                let told = lan(interface.node());
                (interface, told)
            }));
        }
        let host: Option<IpAddr> = self.http.host().trim_matches(['[', ']']).parse().ok();
        let is_ours = |lan: &Lan| host.is_some_and(|host| lan.addresses.iter().any(|(address, _)| *address == host));
        let ours = lans.iter().position(|(_, lan)| is_ours(lan));
        let ours = ours.or_else(|| lans.iter().position(|(_, lan)| !lan.addresses.is_empty()));
        match ours {
            Some(ours) => Ok(lans.swap_remove(ours)),
            None => lans.into_iter().next().ok_or_else(|| fault::unsupported("it shows no network of its own")),
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use proptest::prelude::*;
    use serde_json::json;

    use super::{super::resource::tests::any_json, *};

    #[test]
    fn an_interface_is_read() {
        let told = lan(Node(Some(&json!({
            "MACAddress": "AA:BB:CC:00:11:22",
            "IPv4Addresses": [
                {"Address": "10.0.0.9", "SubnetMask": "255.255.255.0", "Gateway": "10.0.0.1", "AddressOrigin": "DHCP"},
                {"Address": "10.0.0.10", "SubnetMask": "255.0.255.0"},
                {"Address": "0.0.0.0", "SubnetMask": "0.0.0.0"}, null],
            "IPv6Addresses": [{"Address": "fe80::1", "PrefixLength": 64}, {"Address": "fe80::2", "PrefixLength": 300}],
            "VLAN": {"VLANEnable": true, "VLANId": 12}}))));
        expect!["Lan { mac: Some(aa:bb:cc:00:11:22), addresses: [(10.0.0.9, 24), (fe80::1, 64)], gateway: Some(10.0.0.1), is_dhcp: Some(true), vlan: Some(12) }"].assert_eq(&format!("{told:?}"));
    }

    #[test]
    fn only_what_is_otherwise_is_written() {
        let wanted = Lan {
            mac: None,
            addresses: vec![("10.0.0.9".parse().unwrap(), 22)],
            gateway: Some("10.0.0.1".parse().unwrap()),
            is_dhcp: Some(false),
            vlan: None,
        };
        let check = |now: Lan, expect: expect_test::Expect| expect.assert_eq(&change(&wanted, &now).to_string());
        check(wanted.clone(), expect!["{}"]);
        check(Lan { vlan: Some(7), ..wanted.clone() }, expect![[r#"{"VLAN":{"VLANEnable":false}}"#]]);
        check(
            Lan { is_dhcp: Some(true), ..wanted.clone() },
            expect![[
                r#"{"DHCPv4":{"DHCPEnabled":false},"IPv4StaticAddresses":[{"Address":"10.0.0.9","Gateway":"10.0.0.1","SubnetMask":"255.255.252.0"}]}"#
            ]],
        );
    }

    proptest! {
        #[test]
        fn no_json_makes_the_reader_panic(json in any_json()) {
            lan(Node(Some(&json)));
        }
    }
}
