//! Reverse DNS: the zones in which addresses have names (RFC 1035 §3.5, RFC 3596 §2.5,
//! RFC 2317), as text that name servers read (RFC 1035 §5).

use std::{fmt, net::IpAddr, str::FromStr};

use super::{Family, Prefix};

/// The name of a host, fully qualified, without the last dot: labels of letters, digits and `-`
/// (RFC 1123 §2.1), in lower case; at most 253 characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostName(String);

/// What is no name of a host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a host's name in full, as web-1.example.net: at least two labels of letters, digits and `-`, each at most 63 \
     and all at most 253 long"
)]
pub struct NotAHostName;

/// A zone of reverse DNS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReverseZone {
    prefix: Prefix,
    name: String,
}

/// What is no zone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("reverse DNS has no zone for {0}: say a prefix whose length is {1}")]
pub struct NotAZone(Prefix, &'static str);

/// Who answers for a zone: what its first records say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    /// Its name servers, the primary first; at least one.
    pub servers: Vec<HostName>,
    /// The mailbox of whoever looks after it, with a dot for the `@`.
    pub contact: HostName,
    /// What secondaries compare: more with every change (RFC 1982).
    pub serial: u32,
}

/// Seconds that answers may be kept.
const TTL: u32 = 3600;

impl HostName {
    /// As text, without the last dot.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for HostName {
    type Err = NotAHostName;

    fn from_str(text: &str) -> Result<Self, NotAHostName> {
        let text = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        // What ends in digits alone is an address.
        let last = text.rsplit('.').next().unwrap_or_default();
        let is_name = text.len() <= 253
            && text.contains('.')
            && text.split('.').all(is_label)
            && !last.bytes().all(|byte| byte.is_ascii_digit());
        if is_name { Ok(Self(text)) } else { Err(NotAHostName) }
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether this is a label of a host's name (RFC 1123 §2.1).
pub fn is_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// The labels of an address from the most to the least significant: octets, or nibbles.
fn labels(address: IpAddr) -> Vec<String> {
    match address {
        IpAddr::V4(address) => address.octets().iter().map(ToString::to_string).collect(),
        IpAddr::V6(address) => address
            .octets()
            .iter()
            .flat_map(|octet| [octet >> 4, octet & 15])
            .map(|nibble| format!("{nibble:x}"))
            .collect(),
    }
}

impl ReverseZone {
    /// The zone of a prefix: one whose length is a multiple of 8 (IPv4) or 4 (IPv6), or a part of
    /// an IPv4 /24 as RFC 2317 has it.
    pub fn of(prefix: Prefix) -> Result<Self, NotAZone> {
        let length = prefix.length();
        let (bits, tree, lengths) = match prefix.family() {
            Family::V4 => (8, "in-addr.arpa", "8, 16, 24, or 25 to 31"),
            Family::V6 => (4, "ip6.arpa", "a multiple of 4"),
        };
        let is_part = prefix.family() == Family::V4 && (25..32).contains(&length);
        if length == 0 || length == prefix.family().width() || !is_part && !length.is_multiple_of(bits) {
            return Err(NotAZone(prefix, lengths));
        }
        let mut labels = labels(prefix.first());
        let part = labels[3.min(labels.len() - 1)].clone();
        labels.truncate(usize::from(length / bits));
        labels.reverse();
        let parent = format!("{}.{tree}", labels.join("."));
        let name = if is_part { format!("{part}/{length}.{parent}") } else { parent };
        Ok(Self { prefix, name })
    }

    /// Its name, without the last dot.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name of an address in it, without the zone's.
    fn owner(&self, address: IpAddr) -> String {
        let mut labels = labels(address);
        let bits = if address.is_ipv4() { 8 } else { 4 };
        labels.drain(..usize::from(self.prefix.length() / bits));
        labels.reverse();
        labels.join(".")
    }

    /// The zone as a file for a name server: a record for each address of `names`, all of which
    /// are in it; with `authority` all that a zone needs, otherwise to be included in one.
    pub fn file<'a>(
        &self,
        authority: Option<&Authority>,
        names: impl IntoIterator<Item = (IpAddr, &'a HostName)>,
    ) -> String {
        let mut text = format!("$ORIGIN {}.\n$TTL {TTL}\n", self.name);
        if let Some(Authority { servers, contact, serial }) = authority {
            let primary = servers.first().map(HostName::as_str).unwrap_or_default();
            // Refresh, retry, expire, and how long it may be kept that there is no name (RFC 1912 §2.2).
            text += &format!("@ IN SOA {primary}. {contact}. ( {serial} 7200 1800 1209600 300 )\n");
            for server in servers {
                text += &format!("@ IN NS {server}.\n");
            }
        }
        for (address, name) in names {
            text += &format!("{} IN PTR {name}.\n", self.owner(address));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn zones_are_octets_nibbles_and_parts_of_a_24() {
        let told: String = [
            "10.0.0.0/8",
            "172.16.0.0/16",
            "198.51.100.0/24",
            "198.51.100.64/26",
            "198.51.100.0/22",
            "0.0.0.0/0",
            "198.51.100.1/32",
            "2001:db8::/32",
            "2001:db8:100::/40",
            "2001:db8::/33",
        ]
        .iter()
        .map(|text| match ReverseZone::of(text.parse().unwrap()) {
            Ok(zone) => format!("{}\n", zone.name()),
            Err(error) => format!("{error}\n"),
        })
        .collect();
        expect![[r#"
            10.in-addr.arpa
            16.172.in-addr.arpa
            100.51.198.in-addr.arpa
            64/26.100.51.198.in-addr.arpa
            reverse DNS has no zone for 198.51.100.0/22: say a prefix whose length is 8, 16, 24, or 25 to 31
            reverse DNS has no zone for 0.0.0.0/0: say a prefix whose length is 8, 16, 24, or 25 to 31
            reverse DNS has no zone for 198.51.100.1/32: say a prefix whose length is 8, 16, 24, or 25 to 31
            8.b.d.0.1.0.0.2.ip6.arpa
            1.0.8.b.d.0.1.0.0.2.ip6.arpa
            reverse DNS has no zone for 2001:db8::/33: say a prefix whose length is a multiple of 4
        "#]]
        .assert_eq(&told);
    }

    #[test]
    fn a_file_has_a_record_for_each_address() {
        let name: HostName = "Web-1.example.net.".parse().unwrap();
        let authority = Authority {
            servers: vec!["ns1.example.net".parse().unwrap(), "ns2.example.net".parse().unwrap()],
            contact: "hostmaster.example.net".parse().unwrap(),
            serial: 7,
        };
        let zone = |text: &str| ReverseZone::of(text.parse().unwrap()).unwrap();
        let at = |text: &str| (text.parse().unwrap(), &name);
        let mut told = zone("198.51.100.0/24").file(Some(&authority), [at("198.51.100.7"), at("198.51.100.255")]);
        told += &zone("198.51.100.64/26").file(None, [at("198.51.100.65")]);
        told += &zone("10.0.0.0/8").file(None, [at("10.1.2.3")]);
        told += &zone("2001:db8::/32").file(None, [at("2001:db8::a5")]);
        expect![[r#"
            $ORIGIN 100.51.198.in-addr.arpa.
            $TTL 3600
            @ IN SOA ns1.example.net. hostmaster.example.net. ( 7 7200 1800 1209600 300 )
            @ IN NS ns1.example.net.
            @ IN NS ns2.example.net.
            7 IN PTR web-1.example.net.
            255 IN PTR web-1.example.net.
            $ORIGIN 64/26.100.51.198.in-addr.arpa.
            $TTL 3600
            65 IN PTR web-1.example.net.
            $ORIGIN 10.in-addr.arpa.
            $TTL 3600
            3.2.1 IN PTR web-1.example.net.
            $ORIGIN 8.b.d.0.1.0.0.2.ip6.arpa.
            $TTL 3600
            5.a.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0 IN PTR web-1.example.net.
        "#]]
        .assert_eq(&told);
    }

    proptest! {
        /// Nothing that a name server would read as something else.
        #[test]
        fn a_hosts_name_has_no_other_letters(text in "[ -~\\n\\t;\"\\\\()$@]{0,70}|[a-z0-9.-]{1,260}") {
            if let Ok(name) = text.parse::<HostName>() {
                prop_assert!(name.as_str().bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte)));
                prop_assert!(name.as_str().len() <= 253 && !name.as_str().contains(".."));
                prop_assert_eq!(name.as_str().parse(), Ok(name.clone()));
            }
        }
    }
}
