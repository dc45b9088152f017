//! A BMC's own network: LAN configuration parameters (IPMI 2.0 §23.2) and the channel that is its
//! LAN (§22.24).

use std::net::{IpAddr, Ipv4Addr};

use rackhand_common::machine::Mac;

use crate::packet::{Malformed, Reader, Request};

/// A LAN configuration parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parameter {
    /// IP address.
    Address = 3,
    /// Where the address comes from.
    Source = 4,
    /// Ethernet address.
    Mac = 5,
    /// Subnet mask.
    Mask = 6,
    /// Default gateway.
    Gateway = 12,
    /// VLAN id.
    Vlan = 20,
}

/// Asks for a parameter of a channel.
pub fn parameter(channel: u8, parameter: Parameter) -> Request {
    Request::new(0x0c, 0x02, &[channel & 0x0f, parameter as u8, 0x00, 0x00])
}

/// Has a parameter of a channel be so (§23.1).
pub fn set_parameter(channel: u8, parameter: Parameter, value: &[u8]) -> Request {
    Request::new(0x0c, 0x01, &[&[channel & 0x0f, parameter as u8], value].concat())
}

/// Where an address comes from, as it is written.
pub fn source(is_dhcp: bool) -> [u8; 1] {
    [if is_dhcp { 2 } else { 1 }]
}

/// A mask, as it is written.
pub fn mask(length: u8) -> [u8; 4] {
    u32::MAX.checked_shl(32 - u32::from(length.min(32))).unwrap_or(0).to_be_bytes()
}

/// A VLAN, as it is written; off when there is none.
pub fn vlan(vlan: Option<u16>) -> [u8; 2] {
    vlan.map_or([0, 0], |vlan| (vlan & 0x0fff | 0x8000).to_le_bytes())
}

/// Asks what the channel is that the session came in on.
pub fn this_channel() -> Request {
    channel(0x0e)
}

/// Asks what a channel is (§22.24).
pub fn channel(number: u8) -> Request {
    Request::new(0x06, 0x42, &[number & 0x0f])
}

/// Reads whether a channel is a LAN: a medium of type 802.3 or another one (§6.5).
pub fn read_is_lan(data: &[u8]) -> Result<bool, Malformed> {
    let [_number, medium] = Reader::new(data).array()?;
    Ok(matches!(medium & 0x7f, 0x04 | 0x06))
}

/// How a channel is reached (§22.22, table 22-26).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelAccess {
    /// Access mode, alerting and authentication: the second byte without its two highest bits.
    mode: u8,
    /// The most privilege that anybody has on it.
    privilege: u8,
}

/// The mode of a channel that is there whether or not the machine is on.
const ALWAYS: u8 = 2;

impl ChannelAccess {
    /// Whether an administrator is let in at any time.
    pub fn is_open(self) -> bool {
        self.mode & 7 == ALWAYS && self.privilege >= 4
    }
}

/// Asks how a channel is reached at present.
pub fn channel_access(channel: u8) -> Request {
    Request::new(0x06, 0x41, &[channel & 0x0f, 0x80])
}

/// Reads how a channel is reached.
pub fn read_channel_access(data: &[u8]) -> Result<ChannelAccess, Malformed> {
    let [mode, privilege] = Reader::new(data).array()?;
    Ok(ChannelAccess { mode: mode & 0x3f, privilege: privilege & 0x0f })
}

/// Has a channel let administrators in at any time, and otherwise be as it `is`: until the BMC restarts, or
/// from then on.
pub fn open_channel(channel: u8, is: ChannelAccess, lasts: bool) -> Request {
    let part = if lasts { 0x40 } else { 0x80 };
    Request::new(0x06, 0x40, &[channel & 0x0f, part | is.mode & 0x38 | ALWAYS, part | 4])
}

/// Reads the number of a channel.
pub fn read_channel(data: &[u8]) -> Result<u8, Malformed> {
    Ok(Reader::new(data).u8()? & 0x0f)
}

fn after_revision<const N: usize>(data: &[u8]) -> Result<[u8; N], Malformed> {
    let mut reader = Reader::new(data);
    reader.u8()?;
    reader.array()
}

/// Reads an IPv4 address; absent when it is 0.0.0.0.
pub fn read_address(data: &[u8]) -> Result<Option<IpAddr>, Malformed> {
    let address = Ipv4Addr::from(after_revision::<4>(data)?);
    Ok((!address.is_unspecified()).then_some(IpAddr::V4(address)))
}

/// Reads a mask as the length of a prefix.
pub fn read_mask(data: &[u8]) -> Result<u8, Malformed> {
    let mask = u32::from_be_bytes(after_revision(data)?);
    let length = mask.leading_ones();
    if mask.count_ones() != length {
        return Err(Malformed("a subnet mask with holes"));
    }
    Ok(u8::try_from(length).expect("at most 32"))
}

/// Reads an Ethernet address; absent when it is all zeros.
pub fn read_mac(data: &[u8]) -> Result<Option<Mac>, Malformed> {
    let octets = after_revision(data)?;
    Ok((octets != [0; 6]).then_some(Mac(octets)))
}

/// Reads whether DHCP gives the address; absent when it is neither DHCP nor static.
pub fn read_is_dhcp(data: &[u8]) -> Result<Option<bool>, Malformed> {
    let [source] = after_revision(data)?;
    Ok(match source & 0x0f {
        1 => Some(false),
        2 => Some(true),
        _ => None,
    })
}

/// Reads the VLAN; absent when it is off.
pub fn read_vlan(data: &[u8]) -> Result<Option<u16>, Malformed> {
    let [low, high] = after_revision(data)?;
    Ok((high & 0x80 != 0).then_some(u16::from_le_bytes([low, high & 0x0f])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_as_it_was() {
        let told = |value: &[u8]| [&[0x11][..], value].concat();
        for length in 0..=32 {
            assert_eq!(read_mask(&told(&mask(length))), Ok(length));
        }
        for wanted in [None, Some(1), Some(4094)] {
            assert_eq!(read_vlan(&told(&vlan(wanted))), Ok(wanted));
        }
        for is_dhcp in [true, false] {
            assert_eq!(read_is_dhcp(&told(&source(is_dhcp))), Ok(Some(is_dhcp)));
        }
        assert_eq!(set_parameter(1, Parameter::Source, &source(true)).data, [1, 4, 2]);
    }

    #[test]
    fn parameters_are_read() {
        assert_eq!(read_address(&[0x11, 10, 0, 0, 9]).unwrap(), Some("10.0.0.9".parse().unwrap()));
        assert_eq!(read_address(&[0x11, 0, 0, 0, 0]).unwrap(), None);
        assert_eq!(read_mask(&[0x11, 255, 255, 252, 0]), Ok(22));
        assert!(read_mask(&[0x11, 255, 0, 255, 0]).is_err());
        assert_eq!(read_mac(&[0x11, 2, 0, 0, 0, 0, 1]).unwrap(), Some(Mac([2, 0, 0, 0, 0, 1])));
        assert_eq!(read_is_dhcp(&[0x11, 2]), Ok(Some(true)));
        assert_eq!(read_vlan(&[0x11, 0x34, 0x81]), Ok(Some(0x134)));
        assert_eq!(read_vlan(&[0x11, 0x34, 0x01]), Ok(None));
        assert!(read_address(&[0x11, 10]).is_err());
        // 802.3, IPMB, and a channel that says too little.
        assert_eq!(read_is_lan(&[1, 0x04, 1, 0x80]), Ok(true));
        assert_eq!(read_is_lan(&[0, 0x01, 1, 0]), Ok(false));
        assert!(read_is_lan(&[1]).is_err());
    }
}
