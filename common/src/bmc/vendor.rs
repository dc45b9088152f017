//! Vendors' BMCs, as data: `firmware-scripts/bmc`, a file for each. What one is called, what it comes
//! with from the factory, and how it asks for an address.

use std::sync::LazyLock;

use serde::{Deserialize, Deserializer, de::Error as _};

use super::lease::Card;

/// The BMCs of one vendor.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vendor {
    /// Names of the vendor, in any case; `*` at either end stands for anything. At least one.
    pub vendor: Vec<String>,
    /// What the BMC is called, likewise; any when there is none.
    #[serde(default)]
    pub model: Vec<String>,
    /// What everybody knows that it comes with; absent when each has a password of its own.
    pub factory: Option<Factory>,
    /// What it tells a DHCP server that it is (option 60), likewise.
    #[serde(default)]
    pub vendor_class: Vec<String>,
    /// Its host name as it comes from the factory (option 12), likewise.
    #[serde(default)]
    pub hostname: Vec<String>,
    /// What Ethernet addresses of this vendor begin with. Its other cards' may begin so, too.
    #[serde(default)]
    pub oui: Vec<Oui>,
}

/// A user and a password that everybody knows.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Factory {
    /// Who logs in.
    pub user: String,
    /// The password.
    pub password: String,
}

/// The first three octets of Ethernet addresses, which the IEEE gives to whoever makes cards; as text
/// `00:25:90`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Oui(pub [u8; 3]);

impl<'de> Deserialize<'de> for Oui {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let mut octets = [0; 3];
        let digits = text.replace(':', "");
        let is_whole = text.len() == 8 && hex::decode_to_slice(&digits, &mut octets).is_ok();
        is_whole.then_some(Self(octets)).ok_or_else(|| D::Error::custom("an OUI is three octets, as in 00:25:90"))
    }
}

/// Those that come with the product.
pub fn vendors() -> &'static [Vendor] {
    static VENDORS: LazyLock<Vec<Vendor>> = LazyLock::new(|| {
        let parsed = FILES.iter().map(|(name, text)| {
            toml::from_str(text).unwrap_or_else(|error| panic!("firmware-scripts/bmc/{name}: {error}"))
        });
        parsed.collect()
    });
    &VENDORS
}

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("../../../firmware-scripts/bmc/", $name)))),*]
    };
}

const FILES: [(&str, &str); 9] = files![
    "american-megatrends.toml",
    "dell.toml",
    "fujitsu.toml",
    "gigabyte.toml",
    "hpe.toml",
    "lenovo.toml",
    "nvidia.toml",
    "openbmc.toml",
    "supermicro.toml",
];

impl Vendor {
    /// What the vendor is called.
    pub fn name(&self) -> &str {
        self.vendor.first().map_or("", |name| name.trim_end_matches('*'))
    }

    /// Whether a BMC says that it is of this vendor, and of one of these models.
    pub fn fits(&self, vendor: Option<&str>, model: Option<&str>) -> bool {
        is_any(&self.vendor, vendor) && (self.model.is_empty() || is_any(&self.model, model))
    }

    /// By what this vendor's BMCs are known that fits a card.
    fn signs(&self, card: &Card) -> Signs {
        let [a, b, c, ..] = card.mac.0;
        Signs {
            count: 0,
            is_oui: self.oui.contains(&Oui([a, b, c])),
            is_hostname: is_any(&self.hostname, card.hostname.as_deref()),
            is_vendor_class: is_any(&self.vendor_class, card.vendor_class.as_deref()),
        }
        .counted()
    }
}

/// By what a card is known; more of it first, then what says most about whose it is: busybox's vendor
/// class is everybody's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Signs {
    count: u8,
    is_oui: bool,
    is_hostname: bool,
    is_vendor_class: bool,
}

impl Signs {
    fn counted(self) -> Self {
        Self { count: self.named().map(|(is, _)| u8::from(is)).iter().sum(), ..self }
    }

    fn named(&self) -> [(bool, &'static str); 3] {
        [(self.is_vendor_class, "vendor class"), (self.is_hostname, "host name"), (self.is_oui, "OUI")]
    }
}

/// By what a card looks like a BMC's, in words: "vendor class and OUI of Dell"; `None` when it does not.
pub fn known_by(card: &Card) -> Option<String> {
    let seen = vendors().iter().map(|vendor| (vendor.signs(card), vendor));
    // The first of those that are known as well.
    let (signs, vendor) = seen.rev().max_by_key(|(signs, _)| *signs).filter(|(signs, _)| signs.count > 0)?;
    let names: Vec<_> = signs.named().into_iter().filter_map(|(is, name)| is.then_some(name)).collect();
    let name = vendor.name();
    Some(match &names[..] {
        [first, second, third] => format!("{first}, {second} and {third} of {name}"),
        [first, second] => format!("{first} and {second} of {name}"),
        some => format!("{} of {name}", some.concat()),
    })
}

fn is_any(patterns: &[String], word: Option<&str>) -> bool {
    word.is_some_and(|word| patterns.iter().any(|pattern| is_like(pattern, word)))
}

/// Whether a word is like a pattern, in any case; `*` at either end stands for anything.
pub fn is_like(pattern: &str, word: &str) -> bool {
    let (pattern, word) = (pattern.to_ascii_lowercase(), word.trim().to_ascii_lowercase());
    match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (Some(end), None) => word.ends_with(end),
        (None, Some(start)) => word.starts_with(start),
        (None, None) => word == pattern,
        (Some(_), Some(_)) => word.contains(pattern.trim_matches('*')),
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use expect_test::{Expect, expect};

    use super::{
        super::{MAX_PASSWORD, MAX_USER},
        *,
    };

    #[test]
    fn every_file_is_read_and_can_be_used() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../firmware-scripts/bmc");
        let there = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let known: BTreeSet<_> = FILES.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(there.collect::<BTreeSet<_>>(), known);
        let mut ouis = BTreeSet::new();
        for vendor in vendors() {
            assert!(!vendor.name().is_empty(), "{vendor:?}");
            if let Some(Factory { user, password }) = &vendor.factory {
                assert!((1..=MAX_USER).contains(&user.len()) && (1..=MAX_PASSWORD).contains(&password.len()), "{user}");
            }
            for oui in &vendor.oui {
                assert!(ouis.insert(*oui), "{oui:?} is two vendors'");
            }
            // None of them is everybody's.
            for pattern in vendor.vendor_class.iter().chain(&vendor.hostname) {
                assert!(pattern.trim_matches('*').len() >= 3, "{pattern}");
            }
        }
    }

    fn check(mac: &str, vendor_class: &str, hostname: &str, expected: Expect) {
        let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let card = Card {
            mac: mac.parse().unwrap(),
            hostname: text(hostname),
            vendor_class: text(vendor_class),
            client_id: None,
        };
        expected.assert_eq(&known_by(&card).unwrap_or_else(|| "nothing".to_owned()));
    }

    #[test]
    fn a_card_is_known_by_what_says_most_about_whose_it_is() {
        let own = "52:54:00:00:00:01";
        check(own, "iDRAC", "", expect!["vendor class of Dell"]);
        check("18:66:da:00:00:01", "idrac", "iDRAC-9QD4VG2", expect!["vendor class, host name and OUI of Dell"]);
        check(own, "CPQRIB3 (HP ProLiant DL360 G6 iLO)", "", expect!["vendor class of HPE"]);
        check(own, "", "ILOCZ1234", expect!["host name of HPE"]);
        check(own, "", "xcc-7x02-j300cw5m", expect!["host name of Lenovo"]);
        check(own, "udhcp 1.36.1", "", expect!["vendor class of OpenBMC"]);
        check("ac:1f:6b:00:00:01", "udhcp 1.23.1", "", expect!["OUI of Supermicro"]);
        check(own, "udhcp 1.36.1", "romulus-bmc", expect!["vendor class and host name of OpenBMC"]);
        check(own, "NVIDIA/BF/BMC", "", expect!["vendor class of NVIDIA"]);
        check(own, "", "", expect!["nothing"]);
        check(own, "MSFT 5.0", "laptop", expect!["nothing"]);
        check(own, "Cisco IP Phone", "bmc", expect!["nothing"]);
    }

    #[test]
    fn an_oui_is_three_octets() {
        let parse = |text: &str| toml::from_str::<Vendor>(&format!("vendor = [\"A\"]\noui = [\"{text}\"]")).is_ok();
        assert!(parse("00:25:90") && parse("AC:1f:6b"));
        for bad in ["", "00:25", "00:25:9", "00:25:90:01", "0025:900", "00-25-90", "00:25:9g"] {
            assert!(!parse(bad), "{bad}");
        }
    }
}
