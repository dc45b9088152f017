//! Secure Boot as a record has it: whether it is on, and what is in its key databases (UEFI 2.10 §32.3).
//!
//! Invariants:
//! - A key that was not recorded is never left in PK, KEK or db.
//! - What is forbidden (`dbx`) is never allowed again: entries there that were not recorded are for a person to
//!   look at. Updates of firmware and of systems add some.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use super::{Baseline, Remedy, Subject, Told};

/// The databases that are recorded: the platform key, who may change the others, what may start, and
/// what may not.
pub const DATABASES: [&str; 4] = ["PK", "KEK", "db", FORBIDDEN];

/// What may not start.
const FORBIDDEN: &str = "dbx";

/// The most entries of one database that are kept.
pub const MAX_KEYS: usize = 1024;

/// Secure Boot as its BMC tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecureBoot {
    /// Whether it is on from the next start on.
    pub is_enabled: Option<bool>,
    /// `SetupMode`, `UserMode`, `AuditMode` or `DeployedMode`.
    pub mode: Option<String>,
    /// What is in each database, by its digest; absent when the BMC does not tell.
    #[serde(default)]
    pub databases: BTreeMap<String, BTreeMap<String, Key>>,
}

/// An entry of a database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// What it is.
    pub kind: KeyKind,
    /// The certificate as PEM, or the signature, as the BMC showed it.
    pub content: String,
}

/// What an entry of a database is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyKind {
    /// An X.509 certificate.
    Certificate,
    /// A signature of this type, as UEFI names them: `EFI_CERT_SHA256_GUID`.
    Signature(String),
}

/// What is done to put it back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecureBootChange {
    /// Have the vendor's keys there before all else: there is no platform key any more.
    pub reset_keys: bool,
    /// Take these away: database and digest.
    pub remove: Vec<(String, String)>,
    /// Put these there: database, digest and what it is.
    pub insert: Vec<(String, String, Key)>,
    /// Have it on or off.
    pub enable: Option<bool>,
}

impl fmt::Display for SecureBootChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (removed, inserted) = (self.remove.len(), self.insert.len());
        write!(f, "Secure Boot: {removed} keys to be removed and {inserted} to be put back")
    }
}

impl SecureBoot {
    fn shown(&self, database: &str) -> Option<&BTreeMap<String, Key>> {
        self.databases.get(database)
    }

    /// What a simulated BMC does.
    pub fn obey(&mut self, change: &SecureBootChange) {
        for (database, digest) in &change.remove {
            if let Some(keys) = self.databases.get_mut(database) {
                keys.remove(digest);
            }
        }
        for (database, digest, key) in &change.insert {
            self.databases.entry(database.clone()).or_default().insert(digest.clone(), key.clone());
        }
        self.is_enabled = change.enable.or(self.is_enabled);
    }
}

/// What differs of Secure Boot.
pub(super) fn compare(told: &mut Told, record: &Baseline, found: &Baseline) {
    for (name, recorded) in &record.variables {
        told.known(Subject::SecureBoot, name, Some(short(recorded)), found.variables.get(name).map(|now| short(now)));
    }
    let Some(recorded) = &record.secure_boot else { return };
    let Some(now) = &found.secure_boot else {
        return told.add(Subject::SecureBoot, "all of it", Some("told".to_owned()), None, Remedy::Operator);
    };
    let state = |of: &SecureBoot| of.is_enabled.map(|is_on| if is_on { "on" } else { "off" }.to_owned());
    if recorded.is_enabled.is_some() && recorded.is_enabled != now.is_enabled {
        told.add(Subject::SecureBoot, "state", state(recorded), state(now), Remedy::Reset);
    }
    for (database, wanted) in &recorded.databases {
        let Some(there) = now.shown(database) else {
            let some = Some(format!("{} keys", wanted.len()));
            told.add(Subject::SecureBoot, database, some, None, Remedy::Operator);
            continue;
        };
        for digest in there.keys().filter(|digest| !wanted.contains_key(*digest)) {
            let remedy = if database == FORBIDDEN { Remedy::Operator } else { Remedy::Reset };
            told.add(Subject::SecureBoot, database, None, Some(format!("key {}", short(digest))), remedy);
        }
        for digest in wanted.keys().filter(|digest| !there.contains_key(*digest)) {
            told.add(Subject::SecureBoot, database, Some(format!("key {}", short(digest))), None, Remedy::Reset);
        }
    }
    // Follows from the keys where they are told.
    if recorded.databases.is_empty() {
        told.known(Subject::SecureBoot, "mode", recorded.mode.clone(), now.mode.clone());
    }
}

/// What puts Secure Boot back, if anything does.
pub(super) fn plan(record: &Baseline, found: &Baseline) -> Option<SecureBootChange> {
    let (recorded, now) = (record.secure_boot.as_ref()?, found.secure_boot.as_ref()?);
    let mut change = SecureBootChange {
        enable: recorded.is_enabled.filter(|_| recorded.is_enabled != now.is_enabled),
        ..SecureBootChange::default()
    };
    // The platform key comes last: with it the others can be changed only by whoever has its private half.
    for database in DATABASES.into_iter().rev() {
        let (Some(wanted), Some(there)) = (recorded.shown(database), now.shown(database)) else { continue };
        let extra = there.keys().filter(|digest| database != FORBIDDEN && !wanted.contains_key(*digest));
        change.remove.extend(extra.map(|digest| (database.to_owned(), digest.clone())));
        let missing = wanted.iter().filter(|(digest, _)| !there.contains_key(*digest));
        change.insert.extend(missing.map(|(digest, key)| (database.to_owned(), digest.clone(), key.clone())));
    }
    let has_key = |of: &SecureBoot| of.shown("PK").is_some_and(|keys| !keys.is_empty());
    change.reset_keys = has_key(recorded) && !has_key(now);
    (change != SecureBootChange::default()).then_some(change)
}

/// Enough of a digest to tell it from others.
fn short(digest: &str) -> String {
    digest.chars().take(16).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use expect_test::expect;
    use proptest::prelude::*;

    use super::*;

    pub(in super::super) fn key(content: &str) -> Key {
        Key { kind: KeyKind::Certificate, content: content.to_owned() }
    }

    fn with(databases: &[(&str, &[&str])]) -> SecureBoot {
        let keys = |digests: &[&str]| digests.iter().map(|digest| ((*digest).to_owned(), key(digest))).collect();
        SecureBoot {
            is_enabled: Some(true),
            mode: Some("UserMode".to_owned()),
            databases: databases.iter().map(|(name, digests)| ((*name).to_owned(), keys(digests))).collect(),
        }
    }

    pub(in super::super) fn any_secure_boot() -> impl Strategy<Value = Option<SecureBoot>> {
        let keys = prop::collection::btree_map("[a-d]{1}", Just(key("PEM")), 0..4);
        let databases =
            prop::collection::btree_map(prop::sample::select(DATABASES.map(str::to_owned).to_vec()), keys, 0..5);
        let secure_boot = (any::<Option<bool>>(), databases).prop_map(|(is_enabled, databases)| SecureBoot {
            is_enabled,
            mode: None,
            databases,
        });
        prop::option::weighted(0.9, secure_boot)
    }

    #[test]
    fn keys_of_a_tenant_go_the_vendors_come_back_and_what_is_forbidden_stays_so() {
        let record = Baseline {
            secure_boot: Some(with(&[("PK", &["oem"]), ("KEK", &["oem", "ms"]), ("db", &["ms"]), ("dbx", &["bad"])])),
            ..Baseline::example()
        };
        let mut found = record.clone();
        found.secure_boot = Some(SecureBoot {
            is_enabled: Some(false),
            ..with(&[("PK", &[]), ("KEK", &["oem", "evil"]), ("db", &["ms", "evil"]), ("dbx", &["bad", "new"])])
        });
        let told: Vec<_> = super::super::compare(&record, &found)
            .iter()
            .map(|difference| format!("{difference} ({})", difference.remedy.word()))
            .collect();
        expect![[r#"
            secure_boot state: off, recorded on (reset)
            secure_boot KEK: key evil, recorded nothing (reset)
            secure_boot KEK: nothing, recorded key ms (reset)
            secure_boot PK: nothing, recorded key oem (reset)
            secure_boot db: key evil, recorded nothing (reset)
            secure_boot dbx: key new, recorded nothing (operator)"#]]
        .assert_eq(&told.join("\n"));
        let change = plan(&record, &found).unwrap();
        assert!(change.reset_keys);
        assert_eq!(change.insert.last().map(|(database, ..)| database.as_str()), Some("PK"));
        assert!(change.remove.iter().all(|(database, _)| database != "dbx"));
        // A person who accepts the update of dbx has it in the record.
        let accepted = Baseline { secure_boot: found.secure_boot.clone(), ..record };
        assert_eq!(plan(&accepted, &found), None);
    }

    #[test]
    fn keys_that_are_not_told_any_more_are_not_clean() {
        let record = Baseline { secure_boot: Some(with(&[("PK", &["oem"])])), ..Baseline::example() };
        let silent = Baseline { secure_boot: Some(with(&[])), ..Baseline::example() };
        let told = super::super::compare(&record, &silent);
        assert_eq!((told.len(), told[0].remedy), (1, Remedy::Operator), "{told:?}");
        assert_eq!(super::super::compare(&record, &Baseline::example()).len(), 1);
    }

    #[test]
    fn what_an_installer_saw_of_the_variables_is_compared_where_it_was_recorded() {
        let variables = |digest: &str| [("db".to_owned(), digest.repeat(32))].into();
        let record = Baseline { variables: variables("ab"), ..Baseline::example() };
        let found = Baseline { variables: variables("cd"), ..Baseline::example() };
        let told: Vec<_> = super::super::compare(&record, &found).iter().map(ToString::to_string).collect();
        assert_eq!(told, ["secure_boot db: cdcdcdcdcdcdcdcd, recorded abababababababab"]);
        assert_eq!(super::super::compare(&record, &record), []);
    }
}
