//! What a BMC is to be like: the record of one, how what is found differs from it, and what puts
//! it back. A core: whoever asks BMCs is elsewhere.
//!
//! Invariants:
//! - A record does not differ from itself.
//! - A BMC that does all that [`plan`] says differs in nothing any more that can be put back.
//! - The account that we log in with is never taken away.
//! - What can be compared and is not told any more is a difference: unknown is not clean.

mod secure_boot;

pub use secure_boot::{DATABASES, Key, KeyKind, MAX_KEYS, SecureBoot, SecureBootChange};

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{Deserialize, Serialize};

use super::{Account, Identity, Lan, Protocol, Skipped};
use crate::{id::RunId, machine::Mac};

/// The most attributes of a BIOS that are kept.
pub const MAX_ATTRIBUTES: usize = 2048;

/// A BMC as it was found once. What it does not tell is absent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    /// What it was asked in.
    pub protocol: Protocol,
    /// The account that it was asked with.
    pub login: String,
    /// What and whose it is, and the version of its firmware.
    pub identity: Identity,
    /// SHA-256 of the certificate it shows, in hexadecimal.
    pub fingerprint: Option<String>,
    /// Who may log in.
    pub accounts: Option<Vec<Account>>,
    /// Its own network.
    pub lan: Option<Lan>,
    /// The settings of the machine's firmware.
    pub bios: Option<BTreeMap<String, Attribute>>,
    /// Those of them that will be another after the next start.
    #[serde(default)]
    pub pending: BTreeMap<String, Attribute>,
    /// What the profile of this model says that some of them are to be, however they were found.
    #[serde(default)]
    pub wanted: BTreeMap<String, Attribute>,
    /// Secure Boot, as the BMC tells it.
    #[serde(default)]
    pub secure_boot: Option<SecureBoot>,
    /// Digest of what is in each key database of Secure Boot, as the installer read it: only where the BMC does
    /// not tell.
    #[serde(default)]
    pub variables: BTreeMap<String, String>,
    /// What could not be read.
    pub unread: Vec<Skipped>,
}

impl Baseline {
    /// One to write tests with.
    pub fn example() -> Self {
        Self {
            protocol: Protocol::Redfish,
            login: "rackhand".to_owned(),
            identity: Identity { firmware: Some("2.17".to_owned()), ..Identity::default() },
            fingerprint: Some("aa".to_owned()),
            accounts: Some(vec![
                Account::example("2", "rackhand", true, "Administrator"),
                Account::example("3", "ops", true, "ReadOnly"),
            ]),
            lan: Some(Lan {
                mac: Some(Mac([2, 0, 0, 0, 0, 1])),
                addresses: vec![([10, 0, 0, 9].into(), 24)],
                gateway: Some([10, 0, 0, 1].into()),
                is_dhcp: Some(false),
                vlan: None,
            }),
            bios: Some([("BootMode".to_owned(), Attribute::Text("Uefi".to_owned()))].into()),
            pending: BTreeMap::new(),
            wanted: BTreeMap::new(),
            secure_boot: None,
            variables: BTreeMap::new(),
            unread: Vec::new(),
        }
    }

    /// Takes over what the installer read of the key databases, where the BMC tells nothing of them.
    pub fn saw(&mut self, variables: &BTreeMap<String, String>) {
        if self.secure_boot.as_ref().is_none_or(|told| told.databases.is_empty()) {
            self.variables = variables.clone();
        }
    }

    /// As the record that it is to be compared with from now on: with the settings that the next start
    /// puts in force anyway, and those of its profile.
    pub fn recorded(mut self) -> Self {
        let (pending, wanted) = (std::mem::take(&mut self.pending), std::mem::take(&mut self.wanted));
        if let Some(bios) = &mut self.bios {
            for (name, value) in pending.into_iter().chain(wanted) {
                bios.entry(name).and_modify(|known| *known = value);
            }
        }
        self
    }
}

impl Account {
    /// One to write tests with.
    pub fn example(id: &str, user: &str, is_enabled: bool, role: &str) -> Self {
        Self {
            id: id.to_owned(),
            user: user.to_owned(),
            is_enabled,
            is_administrator: role == "Administrator",
            role: Some(role.to_owned()),
        }
    }
}

/// What a simulated BMC does.
impl Baseline {
    /// It does what it is told.
    pub fn obey(&mut self, change: Change) {
        let accounts = self.accounts.get_or_insert_default();
        match change {
            Change::Remove(gone) => accounts.retain(|account| *account != gone),
            Change::Account(was, wanted) => {
                for account in accounts.iter_mut().filter(|account| **account == was) {
                    *account = Account { id: was.id.clone(), user: was.user.clone(), ..wanted.clone() };
                }
            }
            Change::Lan(lan) => self.lan = Some(lan),
            Change::Bios(wanted) => self.pending.extend(wanted),
            Change::SecureBoot(wanted) => self.secure_boot.get_or_insert_default().obey(&wanted),
        }
    }

    /// Its machine starts.
    pub fn start(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        if let Some(bios) = &mut self.bios {
            bios.extend(pending);
        }
    }
}

/// The value of an attribute of a BIOS.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Attribute {
    /// On or off.
    Flag(bool),
    /// A number.
    Number(f64),
    /// Text, or one of an enumeration.
    Text(String),
}

impl fmt::Display for Attribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => flag.fmt(f),
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => f.write_str(text),
        }
    }
}

/// What of a BMC differs. Grows at the end only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// What it is asked in, or with which account.
    Login,
    /// Whose BMC it is.
    Identity,
    /// The certificate it shows.
    Certificate,
    /// Its own firmware.
    Firmware,
    /// An account.
    Account,
    /// Its network.
    Network,
    /// A setting of the machine's firmware.
    Bios,
    /// Secure Boot: its state, or a key.
    SecureBoot,
}

impl Subject {
    /// What it is called.
    pub fn word(self) -> &'static str {
        match self {
            Self::Login => "login",
            Self::Identity => "identity",
            Self::Certificate => "certificate",
            Self::Firmware => "firmware",
            Self::Account => "account",
            Self::Network => "network",
            Self::Bios => "bios",
            Self::SecureBoot => "secure_boot",
        }
    }
}

/// What becomes of a difference. Grows at the end only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Remedy {
    /// It is put back at once.
    Reset,
    /// It is put back, and in force after the machine's next start.
    Restart,
    /// Somebody has to look, and accept it or repair the machine.
    Operator,
}

impl Remedy {
    /// What it is called.
    pub fn word(self) -> &'static str {
        match self {
            Self::Reset => "reset",
            Self::Restart => "restart",
            Self::Operator => "operator",
        }
    }
}

/// Something about a BMC that is not as it was recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// What.
    pub subject: Subject,
    /// Which: an account, a setting.
    pub name: String,
    /// As it was recorded; absent when there was none.
    pub recorded: Option<String>,
    /// As it is; absent when there is none, or it is not told.
    pub found: Option<String>,
    /// What becomes of it.
    pub remedy: Remedy,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { subject, name, recorded, found, .. } = self;
        let (recorded, found) = (recorded.as_deref().unwrap_or("nothing"), found.as_deref().unwrap_or("nothing"));
        write!(f, "{} {name}: {found}, recorded {recorded}", subject.word())
    }
}

/// One thing that is done to a BMC to put it back.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Take this account away.
    Remove(Account),
    /// Have the account of this place be what the second says.
    Account(Account, Account),
    /// Have its network be so.
    Lan(Lan),
    /// Have these settings be so after the next start.
    Bios(BTreeMap<String, Attribute>),
    /// Have Secure Boot be so.
    SecureBoot(SecureBootChange),
}

/// What an agent is asked: to read a BMC, and to put it back before when there is a record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ask {
    /// Who asks: an answer that was given once is not given to another.
    pub asker: Asker,
    /// What it is to be like.
    pub record: Option<Baseline>,
}

/// Who asks for a BMC to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Asker {
    /// A run: its attempt at a step, and how often it asked in that.
    Run(RunId, u32, u32),
    /// A person, by a number that is used once.
    Person(uuid::Uuid),
}

/// What an agent answers. Grows at the end only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answered {
    /// It is at it: ask again.
    UnderWay,
    /// It could not do it now: ask again.
    Later(String),
    /// It cannot be done.
    Failed(String),
    /// It was done.
    Done(Box<Restored>),
}

/// How a BMC is now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Restored {
    /// Read after everything was done.
    pub found: Baseline,
    /// What differed before.
    pub before: Vec<Difference>,
    /// What the BMC refused when it was told, in words.
    pub refused: Vec<String>,
    /// What is not known to be as it should although nothing that is read differs, in words.
    pub doubts: Vec<String>,
}

impl Restored {
    /// What is in the way of the machine being given to anybody else.
    pub fn left(&self, record: &Baseline) -> Vec<Difference> {
        compare(record, &self.found)
    }

    /// Whether a start of the machine is all that is missing.
    pub fn is_to_restart(&self, record: &Baseline) -> bool {
        let left = self.left(record);
        let wanted = |name: &String| record.bios.as_ref().and_then(|bios| bios.get(name));
        !left.is_empty()
            && self.doubts.is_empty()
            && left.iter().all(|difference| {
                difference.remedy == Remedy::Restart
                    && self.found.pending.get(&difference.name) == wanted(&difference.name)
            })
    }
}

/// How `found` differs from `record`, in the order of [`Subject`].
pub fn compare(record: &Baseline, found: &Baseline) -> Vec<Difference> {
    let mut told = Told::default();
    if record.protocol != found.protocol || record.login != found.login {
        let way = |of: &Baseline| Some(format!("{} by {}", of.login, of.protocol.word()));
        told.add(Subject::Login, "way", way(record), way(found), Remedy::Operator);
    }
    let uuid = |of: &Baseline| of.identity.uuid.map(|uuid| uuid.to_string());
    told.known(Subject::Identity, "UUID", uuid(record), uuid(found));
    let (recorded, now) = (&record.identity, &found.identity);
    told.known(Subject::Identity, "serial number", recorded.serial.clone(), now.serial.clone());
    told.known(Subject::Certificate, "SHA-256", record.fingerprint.clone(), found.fingerprint.clone());
    told.known(Subject::Firmware, "version", recorded.firmware.clone(), now.firmware.clone());
    accounts(&mut told, record, found);
    network(&mut told, record, found);
    bios(&mut told, record, found);
    secure_boot::compare(&mut told, record, found);
    told.0
}

/// What puts `found` back to `record`, as far as that can be done: what lets somebody in comes first.
pub fn plan(record: &Baseline, found: &Baseline) -> Vec<Change> {
    let mut changes = Vec::new();
    if let (Some(recorded), Some(now)) = (&record.accounts, &found.accounts) {
        for (wanted, account) in paired(recorded, now) {
            match (wanted, account) {
                (None, Some(account)) if account.user != found.login => changes.push(Change::Remove(account.clone())),
                (Some(wanted), Some(account)) if may(wanted) != may(account) && account.user != found.login => {
                    changes.push(Change::Account(account.clone(), wanted.clone()));
                }
                _ => {}
            }
        }
    }
    if let Some(wanted) = &record.lan {
        let mut told = Told::default();
        network(&mut told, record, found);
        if told.0.iter().any(|difference| difference.remedy == Remedy::Reset) {
            changes.push(Change::Lan(wanted.clone()));
        }
    }
    if let (Some(recorded), Some(now)) = (&record.bios, &found.bios) {
        let wanted = |(name, value): &(&String, &Attribute)| {
            let then = found.pending.get(*name).or_else(|| now.get(*name));
            then.is_some() && then != Some(*value)
        };
        let wanted: BTreeMap<_, _> = recorded.iter().filter(wanted).map(|(n, v)| (n.clone(), v.clone())).collect();
        if !wanted.is_empty() {
            changes.push(Change::Bios(wanted));
        }
    }
    changes.extend(secure_boot::plan(record, found).map(Change::SecureBoot));
    changes
}

/// The accounts of `found` that somebody may log in with whose password we do not know: that of
/// each may have been set by whoever had the machine.
pub fn others(found: &Baseline) -> impl Iterator<Item = &Account> {
    let accounts = found.accounts.iter().flatten();
    accounts.filter(|account| account.is_enabled && account.user != found.login)
}

#[derive(Default)]
struct Told(Vec<Difference>);

impl Told {
    fn add(&mut self, subject: Subject, name: &str, recorded: Option<String>, found: Option<String>, remedy: Remedy) {
        self.0.push(Difference { subject, name: name.to_owned(), recorded, found, remedy });
    }

    /// Something that can only be looked at.
    fn known(&mut self, subject: Subject, name: &str, recorded: Option<String>, found: Option<String>) {
        if recorded.is_some() && recorded != found {
            self.add(subject, name, recorded, found, Remedy::Operator);
        }
    }
}

/// Recorded and found accounts that are the same one: by place and name, else by name alone.
fn paired<'a>(recorded: &'a [Account], found: &'a [Account]) -> Vec<(Option<&'a Account>, Option<&'a Account>)> {
    let mut left: Vec<&Account> = found.iter().collect();
    let mut take = |is: &dyn Fn(&Account) -> bool| {
        let at = left.iter().position(|account| is(account))?;
        Some(left.remove(at))
    };
    let mut pairs: Vec<_> = recorded
        .iter()
        .map(|wanted| (Some(wanted), take(&|account| account.id == wanted.id && account.user == wanted.user)))
        .collect();
    for (wanted, account) in pairs.iter_mut().filter(|(_, account)| account.is_none()) {
        *account = wanted.and_then(|wanted| take(&|account| !wanted.user.is_empty() && account.user == wanted.user));
    }
    pairs.extend(left.into_iter().map(|account| (None, Some(account))));
    pairs
}

/// What an account may.
fn may(account: &Account) -> (bool, bool, Option<&str>) {
    (account.is_enabled, account.is_administrator, account.role.as_deref())
}

fn shown(account: &Account) -> String {
    let role = account.role.as_deref().unwrap_or(if account.is_administrator { "administrator" } else { "user" });
    format!("{role}, {}", if account.is_enabled { "enabled" } else { "disabled" })
}

fn accounts(told: &mut Told, record: &Baseline, found: &Baseline) {
    let Some(recorded) = &record.accounts else { return };
    let Some(now) = &found.accounts else {
        let some = Some(format!("{} accounts", recorded.len()));
        return told.add(Subject::Account, "list", some, None, Remedy::Operator);
    };
    for (wanted, account) in paired(recorded, now) {
        let any = wanted.or(account).expect("a pair has one of both at least");
        let name = if any.user.is_empty() { format!("without a name, place {}", any.id) } else { any.user.clone() };
        let is_ours = any.user == found.login;
        let remedy = match (wanted, account) {
            (Some(wanted), Some(account)) if may(wanted) == may(account) => continue,
            // What is gone had a password that nobody here knows.
            (_, None) => Remedy::Operator,
            _ if is_ours => Remedy::Operator,
            _ => Remedy::Reset,
        };
        told.add(Subject::Account, &name, wanted.map(shown), account.map(shown), remedy);
    }
}

fn network(told: &mut Told, record: &Baseline, found: &Baseline) {
    let Some(recorded) = &record.lan else { return };
    let Some(now) = &found.lan else {
        return told.add(Subject::Network, "all of it", Some("told".to_owned()), None, Remedy::Operator);
    };
    let mac = |lan: &Lan| lan.mac.map(|mac| mac.to_string());
    told.known(Subject::Network, "MAC address", mac(recorded), mac(now));
    let mut settable = |name: &str, recorded: Option<String>, found: Option<String>| {
        if recorded != found {
            told.add(Subject::Network, name, recorded, found, Remedy::Reset);
        }
    };
    if recorded.is_dhcp.is_some() {
        let source = |lan: &Lan| lan.is_dhcp.map(|is_dhcp| if is_dhcp { "DHCP" } else { "static" }.to_owned());
        settable("address source", source(recorded), source(now));
    }
    let vlan = |lan: &Lan| Some(lan.vlan.map_or_else(|| "none".to_owned(), |vlan| vlan.to_string()));
    settable("VLAN", vlan(recorded), vlan(now));
    // What a DHCP server gives is its own affair.
    if recorded.is_dhcp != Some(true) {
        let v4 = |lan: &Lan| {
            let v4 = lan.addresses.iter().filter(|(address, _)| address.is_ipv4());
            let shown: BTreeSet<_> = v4.map(|(address, length)| format!("{address}/{length}")).collect();
            Some(shown.into_iter().collect::<Vec<_>>().join(", ")).filter(|shown| !shown.is_empty())
        };
        let gateway = |lan: &Lan| lan.gateway.filter(|gateway| gateway.is_ipv4()).map(|gateway| gateway.to_string());
        if v4(recorded).is_some() {
            settable("address", v4(recorded), v4(now));
        }
        if gateway(recorded).is_some() {
            settable("gateway", gateway(recorded), gateway(now));
        }
    }
}

fn bios(told: &mut Told, record: &Baseline, found: &Baseline) {
    let Some(recorded) = &record.bios else { return };
    let Some(now) = &found.bios else {
        let some = Some(format!("{} settings", recorded.len()));
        return told.add(Subject::Bios, "all of them", some, None, Remedy::Operator);
    };
    for (name, wanted) in recorded {
        let (is, then) = (now.get(name), found.pending.get(name));
        if is == Some(wanted) && then.is_none_or(|then| then == wanted) {
            continue;
        }
        let shown = match (is, then.filter(|then| *then != wanted)) {
            (Some(is), Some(then)) => Some(format!("{is}, {then} after the next start")),
            (is, _) => is.map(ToString::to_string),
        };
        let remedy = if is.is_some() { Remedy::Restart } else { Remedy::Operator };
        told.add(Subject::Bios, name, Some(wanted.to_string()), shown, remedy);
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use proptest::prelude::*;

    use super::*;

    fn record() -> Baseline {
        Baseline::example()
    }

    fn account(id: &str, user: &str, is_enabled: bool, role: &str) -> Account {
        Account::example(id, user, is_enabled, role)
    }

    #[test]
    fn each_kind_of_sabotage_is_named_with_both_sides_and_what_becomes_of_it() {
        let mut found = record();
        found.identity.firmware = Some("2.18".to_owned());
        found.fingerprint = Some("bb".to_owned());
        found.accounts = Some(vec![
            account("2", "rackhand", true, "Administrator"),
            account("3", "ops", true, "Administrator"),
            account("4", "support", true, "Administrator"),
            account("1", "", true, "Administrator"),
        ]);
        let lan = found.lan.as_mut().unwrap();
        (lan.is_dhcp, lan.vlan) = (Some(true), Some(12));
        found.bios = Some([("BootMode".to_owned(), Attribute::Text("Bios".to_owned()))].into());
        let told: Vec<_> = compare(&record(), &found)
            .iter()
            .map(|difference| format!("{difference} ({})", difference.remedy.word()))
            .collect();
        expect![[r#"
            certificate SHA-256: bb, recorded aa (operator)
            firmware version: 2.18, recorded 2.17 (operator)
            account ops: Administrator, enabled, recorded ReadOnly, enabled (reset)
            account support: Administrator, enabled, recorded nothing (reset)
            account without a name, place 1: Administrator, enabled, recorded nothing (reset)
            network address source: DHCP, recorded static (reset)
            network VLAN: 12, recorded none (reset)
            bios BootMode: Bios, recorded Uefi (restart)"#]]
        .assert_eq(&told.join("\n"));
        let others: Vec<_> = others(&found).map(|account| account.user.as_str()).collect();
        assert_eq!(others, ["ops", "support", ""]);
    }

    #[test]
    fn what_is_not_told_any_more_is_not_clean() {
        let found = Baseline { accounts: None, lan: None, bios: None, fingerprint: None, ..record() };
        let told = compare(&record(), &found);
        assert_eq!(told.len(), 4, "{told:?}");
        assert!(told.iter().all(|difference| difference.remedy == Remedy::Operator));
        assert_eq!(plan(&record(), &found), []);
    }

    #[test]
    fn a_setting_that_was_put_back_waits_for_a_start_and_one_that_is_pending_against_us_does_not() {
        let mut found = record();
        found.bios = Some([("BootMode".to_owned(), Attribute::Text("Bios".to_owned()))].into());
        let restored = |found: &Baseline| Restored {
            found: found.clone(),
            before: Vec::new(),
            refused: Vec::new(),
            doubts: Vec::new(),
        };
        assert!(!restored(&found).is_to_restart(&record()));
        found.pending = record().bios.unwrap();
        assert!(restored(&found).is_to_restart(&record()));
        // As recorded now, and another after the next start.
        let mut found = record();
        found.pending = [("BootMode".to_owned(), Attribute::Text("Bios".to_owned()))].into();
        assert_eq!(compare(&record(), &found).len(), 1);
        assert_eq!(plan(&record(), &found), [Change::Bios(record().bios.unwrap())]);
    }

    fn any_account() -> impl Strategy<Value = Account> {
        let role = prop_oneof![Just("Administrator"), Just("Operator"), Just("ReadOnly")];
        let user = prop_oneof![Just(""), Just("rackhand"), Just("ops"), Just("evil")];
        (1..5_u8, user, any::<bool>(), role)
            .prop_map(|(id, user, is_enabled, role)| account(&id.to_string(), user, is_enabled, role))
    }

    fn any_accounts() -> impl Strategy<Value = Option<Vec<Account>>> {
        let distinct = |accounts: Vec<Account>| {
            let by_place: BTreeMap<_, _> = accounts.into_iter().map(|account| (account.id.clone(), account)).collect();
            by_place.into_values().collect()
        };
        prop::option::weighted(0.9, prop::collection::vec(any_account(), 0..5).prop_map(distinct))
    }

    fn any_lan() -> impl Strategy<Value = Option<Lan>> {
        let lan = (any::<Option<bool>>(), any::<bool>(), prop::option::of(1..3_u16), 1..3_u8).prop_map(
            |(is_dhcp, has_gateway, vlan, host)| Lan {
                mac: None,
                addresses: vec![([10, 0, 0, host].into(), 24)],
                gateway: has_gateway.then(|| [10, 0, 0, 254].into()),
                is_dhcp,
                vlan,
            },
        );
        prop::option::weighted(0.9, lan)
    }

    fn any_bios() -> impl Strategy<Value = BTreeMap<String, Attribute>> {
        let value =
            prop_oneof![any::<bool>().prop_map(Attribute::Flag), (0..2_u8).prop_map(|n| Attribute::Number(n.into()))];
        prop::collection::btree_map("[a-c]", value, 0..3)
    }

    prop_compose! {
        fn any_baseline()(
            accounts in any_accounts(), lan in any_lan(), bios in prop::option::weighted(0.9, any_bios()),
            pending in any_bios(), firmware in any::<bool>(), secure_boot in secure_boot::tests::any_secure_boot(),
        ) -> Baseline {
            Baseline {
                accounts, lan, bios, pending, secure_boot,
                identity: Identity { firmware: firmware.then(|| "2.18".to_owned()), ..Identity::default() },
                ..record()
            }
        }
    }

    proptest! {
        #[test]
        fn a_record_does_not_differ_from_itself(record in any_baseline()) {
            let record = Baseline { pending: BTreeMap::new(), ..record };
            prop_assert_eq!(compare(&record, &record), []);
            prop_assert_eq!(plan(&record, &record), []);
        }

        #[test]
        fn whoever_does_what_is_planned_differs_in_nothing_that_can_be_put_back(
            record in any_baseline(), mut found in any_baseline(),
        ) {
            let ours = |of: &Baseline| {
                let accounts = of.accounts.iter().flatten();
                accounts.filter(|account| account.user == of.login).count()
            };
            let before = ours(&found);
            let changes = plan(&record, &found);
            changes.into_iter().for_each(|change| found.obey(change));
            found.start();
            let left = compare(&record, &found);
            prop_assert!(left.iter().all(|difference| difference.remedy == Remedy::Operator), "{:?}", left);
            prop_assert_eq!(ours(&found), before);
        }

        #[test]
        fn a_baseline_is_read_again_as_it_was_written(baseline in any_baseline()) {
            let written = serde_json::to_string(&baseline).unwrap();
            prop_assert_eq!(serde_json::from_str::<Baseline>(&written).unwrap(), baseline);
        }
    }
}
