//! What a registry's database is told of blocks that are given to projects: `inetnum` and `inet6num` objects
//! in RPSL (RFC 2622, RFC 2725, RFC 4012), with the attributes that the RIPE database asks of an assignment
//! out of an allocation.
//!
//! Nothing in them is invented: what is not known of a block is said by whoever asks. What a claim is for,
//! in words, is its project's business and not in them: they are public.

use std::{fmt, str::FromStr};

use super::{Family, Prefix};

/// What is the same in all objects of a registry's member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registry {
    /// Where the addresses are used.
    pub country: Country,
    /// Who is asked about the networks.
    pub admin: Handle,
    /// Who is asked about how they work.
    pub tech: Handle,
    /// Who may change the objects.
    pub maintainer: Handle,
    /// The registry's database.
    pub source: Handle,
}

/// A name in a registry's database: letters, digits, `-` and `_`, a letter first, 80 characters at most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handle(String);

/// What is no such name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a name in the registry's database, as EX1-RIPE: letters, digits, `-` and `_`, a letter first")]
pub struct NotAHandle;

/// A country by its two letters (ISO 3166-1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Country(String);

/// What is no country's code.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a country by two letters, as NL")]
pub struct NotACountry;

impl FromStr for Handle {
    type Err = NotAHandle;

    fn from_str(text: &str) -> Result<Self, NotAHandle> {
        let is_handle = text.len() <= 80
            && text.starts_with(|first: char| first.is_ascii_alphabetic())
            && text.ends_with(|last: char| last.is_ascii_alphanumeric())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        if is_handle { Ok(Self(text.into())) } else { Err(NotAHandle) }
    }
}

impl FromStr for Country {
    type Err = NotACountry;

    fn from_str(text: &str) -> Result<Self, NotACountry> {
        let is_code = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_alphabetic());
        if is_code { Ok(Self(text.to_ascii_uppercase())) } else { Err(NotACountry) }
    }
}

impl fmt::Display for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Country {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a project's networks, of `ORGANISATION:NAME`: capitals, digits, `-` and `_`.
pub fn netname(project: &str) -> Handle {
    let plain = |letter: char| match letter.to_ascii_uppercase() {
        letter if letter.is_ascii_alphanumeric() || letter == '_' => letter,
        _ => '-',
    };
    let mut name: String = project.chars().map(plain).collect();
    if !name.starts_with(|first: char| first.is_ascii_alphabetic()) {
        name.insert_str(0, "NET-");
    }
    name.truncate(80);
    Handle(name.trim_end_matches(['-', '_']).to_owned())
}

/// The object of a block that is given to a project, of `ORGANISATION:NAME`; it ends with an empty line, as
/// objects in a file do.
pub fn assignment(prefix: Prefix, project: &str, registry: &Registry) -> String {
    let (class, range, status) = match prefix.family() {
        Family::V4 => ("inetnum", format!("{} - {}", prefix.first(), prefix.last()), "ASSIGNED PA"),
        Family::V6 => ("inet6num", prefix.to_string(), "ASSIGNED"),
    };
    let Registry { country, admin, tech, maintainer, source } = registry;
    let attributes = [
        (class, range),
        ("netname", netname(project).to_string()),
        ("descr", project.to_owned()),
        ("country", country.to_string()),
        ("admin-c", admin.to_string()),
        ("tech-c", tech.to_string()),
        ("status", status.to_owned()),
        ("mnt-by", maintainer.to_string()),
        ("source", source.to_string()),
    ];
    let line = |(name, value): (&str, String)| format!("{:<16}{value}\n", format!("{name}:"));
    attributes.into_iter().map(line).chain(["\n".to_owned()]).collect()
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_block_of_either_family_is_an_object_with_its_first_and_last_address_or_its_prefix() {
        let registry = Registry {
            country: "nl".parse().unwrap(),
            admin: "EX1-RIPE".parse().unwrap(),
            tech: "EX2-RIPE".parse().unwrap(),
            maintainer: "EXAMPLE-MNT".parse().unwrap(),
            source: "RIPE".parse().unwrap(),
        };
        let objects: String = ["198.51.100.128/25", "198.51.100.17/32", "2001:db8:100::/56"]
            .iter()
            .map(|prefix| assignment(prefix.parse().unwrap(), "acme:shop", &registry))
            .collect();
        expect![[r#"
            inetnum:        198.51.100.128 - 198.51.100.255
            netname:        ACME-SHOP
            descr:          acme:shop
            country:        NL
            admin-c:        EX1-RIPE
            tech-c:         EX2-RIPE
            status:         ASSIGNED PA
            mnt-by:         EXAMPLE-MNT
            source:         RIPE

            inetnum:        198.51.100.17 - 198.51.100.17
            netname:        ACME-SHOP
            descr:          acme:shop
            country:        NL
            admin-c:        EX1-RIPE
            tech-c:         EX2-RIPE
            status:         ASSIGNED PA
            mnt-by:         EXAMPLE-MNT
            source:         RIPE

            inet6num:       2001:db8:100::/56
            netname:        ACME-SHOP
            descr:          acme:shop
            country:        NL
            admin-c:        EX1-RIPE
            tech-c:         EX2-RIPE
            status:         ASSIGNED
            mnt-by:         EXAMPLE-MNT
            source:         RIPE

        "#]]
        .assert_eq(&objects);
    }

    #[test]
    fn what_would_break_an_object_is_no_handle() {
        for wrong in ["", "1AB", "AB-", "AB\nsource: X", "AB CD", "Ä", &"A".repeat(81)] {
            assert_eq!(wrong.parse::<Handle>(), Err(NotAHandle), "{wrong:?}");
        }
        for wrong in ["", "N", "NLD", "N1", "ÄÖ"] {
            assert_eq!(wrong.parse::<Country>(), Err(NotACountry), "{wrong:?}");
        }
        assert_eq!(netname("1st.example:web_2-").to_string(), "NET-1ST-EXAMPLE-WEB_2");
    }

    proptest! {
        /// Names of projects are at most 63 characters of these, and so are organisations'.
        #[test]
        fn every_project_has_a_netname(
            organisation in "[a-z0-9][a-z0-9._-]{0,62}", project in "[a-z0-9][a-z0-9._-]{0,62}",
        ) {
            let name = netname(&format!("{organisation}:{project}"));
            prop_assert_eq!(name.to_string().parse::<Handle>(), Ok(name));
        }
    }
}
