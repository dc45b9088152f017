//! The kernel command line's word on where boot is and who we are to it: the parameters of
//! [`rackhand_common::channel`]. Anything else on the line is the kernel's.

use std::net::{Ipv4Addr, SocketAddrV4};

use rackhand_common::{machine::Mac, pki::KeyPin};

/// Where boot is, and who we are to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// Boot's channel (TLS).
    pub boot: SocketAddrV4,
    /// Boot's chunks (plain HTTP).
    pub http: SocketAddrV4,
    /// Boot's public key.
    pub pin: KeyPin,
    /// Presented once per start.
    pub ticket: String,
    /// The card the machine booted from.
    pub mac: Mac,
    /// Our address.
    pub address: Ipv4Addr,
    /// Prefix length of our network.
    pub length: u8,
    /// Default route, when boot is not on our network.
    pub gateway: Option<Ipv4Addr>,
}

/// The command line is not one that boot wrote.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A parameter is not there.
    #[error("kernel command line has no {0}=")]
    Missing(&'static str),
    /// A parameter cannot be read.
    #[error("kernel command line: {0}= cannot be understood")]
    Unreadable(&'static str),
}

/// The parameters on this command line. Of a parameter given twice the last counts, as with
/// the kernel's own.
pub fn parse(line: &str) -> Result<Parameters, Malformed> {
    let find = |name: &'static str| {
        line.split_ascii_whitespace()
            .rev()
            .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
            .ok_or(Malformed::Missing(name))
    };
    let address = find("rackhand.address")?;
    let unreadable = || Malformed::Unreadable("rackhand.address");
    let (address, length) = address.split_once('/').ok_or_else(unreadable)?;
    let length = length.parse().ok().filter(|length| *length <= 32).ok_or_else(unreadable)?;
    let ticket = find("rackhand.ticket")?;
    if ticket.is_empty() || !ticket.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(Malformed::Unreadable("rackhand.ticket"));
    }
    Ok(Parameters {
        boot: read("rackhand.boot", find("rackhand.boot")?)?,
        http: read("rackhand.http", find("rackhand.http")?)?,
        pin: read("rackhand.pin", find("rackhand.pin")?)?,
        ticket: ticket.to_owned(),
        mac: read("rackhand.mac", find("rackhand.mac")?)?,
        address: address.parse().map_err(|_| unreadable())?,
        length,
        gateway: find("rackhand.gateway").ok().map(|text| read("rackhand.gateway", text)).transpose()?,
    })
}

fn read<T: std::str::FromStr>(name: &'static str, text: &str) -> Result<T, Malformed> {
    text.parse().map_err(|_| Malformed::Unreadable(name))
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    const GOOD: &str = "quiet console=ttyS0 rackhand.boot=10.77.0.1:8444 rackhand.http=10.77.0.1:8080 \
        rackhand.pin=00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff \
        rackhand.ticket=00112233445566778899aabbccddeeff rackhand.mac=52:54:00:12:34:56 rackhand.address=10.77.0.100/24";

    fn check(line: &str, expected: Expect) {
        let text = match parse(line) {
            Ok(p) => format!(
                "{} {} {}/{} via {:?}, {} ticket {}…",
                p.boot,
                p.http,
                p.address,
                p.length,
                p.gateway,
                p.mac,
                &p.ticket[..4]
            ),
            Err(error) => error.to_string(),
        };
        expected.assert_eq(&text);
    }

    #[test]
    fn the_line_boot_writes_is_understood() {
        check(GOOD, expect!["10.77.0.1:8444 10.77.0.1:8080 10.77.0.100/24 via None, 52:54:00:12:34:56 ticket 0011…"]);
        check(
            &format!("{GOOD} rackhand.gateway=10.77.0.254\n"),
            expect![
                "10.77.0.1:8444 10.77.0.1:8080 10.77.0.100/24 via Some(10.77.0.254), 52:54:00:12:34:56 ticket 0011…"
            ],
        );
    }

    #[test]
    fn a_line_with_something_missing_or_wrong_names_it() {
        check("quiet", expect!["kernel command line has no rackhand.address="]);
        check(
            &GOOD.replace("rackhand.pin=00", "rackhand.pin=x"),
            expect!["kernel command line: rackhand.pin= cannot be understood"],
        );
        check(&GOOD.replace("/24", "/33"), expect!["kernel command line: rackhand.address= cannot be understood"]);
        check(
            &GOOD.replace("rackhand.ticket=0", "rackhand.ticket=g"),
            expect!["kernel command line: rackhand.ticket= cannot be understood"],
        );
    }
}
