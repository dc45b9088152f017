//! What BMCs are logged in to with as they come from the factory: data, in `firmware-scripts/bmc`.
//!
//! A BMC of a vendor that is not among them is not tried: a wrong password counts towards locking
//! its account.

use std::sync::LazyLock;

use serde::Deserialize;

/// A user and a password that everybody knows.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Factory {
    /// Who logs in.
    pub user: String,
    /// The password.
    pub password: String,
}

/// The BMCs of some vendors.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    /// Names of the vendor, in any case; `*` at the end stands for anything.
    vendor: Vec<String>,
    /// What the BMC is called, likewise; any when absent.
    #[serde(default)]
    model: Vec<String>,
    /// What it comes with.
    factory: Factory,
}

/// Those that come with the product.
static RULES: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    let parsed = FILES.iter().map(|(name, text)| {
        toml::from_str(text).unwrap_or_else(|error| panic!("firmware-scripts/bmc/{name}: {error}"))
    });
    parsed.collect()
});

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("../../../../firmware-scripts/bmc/", $name)))),*]
    };
}

const FILES: [(&str, &str); 7] = files![
    "american-megatrends.toml",
    "dell.toml",
    "fujitsu.toml",
    "gigabyte.toml",
    "lenovo.toml",
    "openbmc.toml",
    "supermicro.toml",
];

/// What a BMC of this vendor and model comes with from the factory.
pub fn factory(vendor: Option<&str>, model: Option<&str>) -> Option<&'static Factory> {
    let fits = |patterns: &[String], word: Option<&str>| {
        word.is_some_and(|word| patterns.iter().any(|pattern| is_like(pattern, word)))
    };
    let rule =
        RULES.iter().find(|rule| fits(&rule.vendor, vendor) && (rule.model.is_empty() || fits(&rule.model, model)));
    rule.map(|rule| &rule.factory)
}

fn is_like(pattern: &str, word: &str) -> bool {
    let (pattern, word) = (pattern.to_ascii_lowercase(), word.trim().to_ascii_lowercase());
    pattern.strip_suffix('*').map_or_else(|| word == pattern, |start| word.starts_with(start))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use rackhand_common::bmc::{MAX_PASSWORD, MAX_USER};

    use super::*;

    #[test]
    fn a_vendor_is_known_by_any_of_its_names_and_nobody_else_is_tried() {
        let user = |vendor| factory(Some(vendor), None).map(|factory| factory.user.as_str());
        assert_eq!(user("Dell Inc."), Some("root"));
        assert_eq!(user("SUPERMICRO"), Some("ADMIN"));
        assert_eq!(user("Super Micro Computer, Inc."), Some("ADMIN"));
        assert_eq!(user("Lenovo"), Some("USERID"));
        assert_eq!(user("AMI"), Some("admin"));
        assert_eq!(user("AMIcable Servers"), None);
        assert_eq!((user("HPE"), user(""), factory(None, None)), (None, None, None));
    }

    #[test]
    fn every_file_is_read_and_can_be_used() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../firmware-scripts/bmc");
        let there = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let known: BTreeSet<_> = FILES.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(there.collect::<BTreeSet<_>>(), known);
        for rule in &*RULES {
            let Factory { user, password } = &rule.factory;
            assert!(!rule.vendor.is_empty(), "{rule:?}");
            assert!((1..=MAX_USER).contains(&user.len()) && (1..=MAX_PASSWORD).contains(&password.len()), "{user}");
        }
    }
}
