//! The objects that files declare, in the API's own words: ids, times and secrets are left out, and
//! things are called by their names.

use std::{collections::BTreeSet, fmt, net::IpAddr};

use anyhow::Context as _;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Kinds in the order in which they need each other: later ones name earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum)]
pub(crate) enum Kind {
    /// Where racks stand
    Site,
    /// Whose projects are
    Organisation,
    /// What machines and addresses are given to
    Project,
    /// Who logs in, without passwords
    Person,
    /// Spaces in which an address is one place
    Vrf,
    /// Provisioning networks
    Rack,
    /// Address space that pools are made of
    Aggregate,
    /// Addresses to claim from
    Pool,
    /// Classes of machines
    Plan,
    /// Who has which role where
    Binding,
}

impl Kind {
    /// Its name in files, on the command line and in messages.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Site => "site",
            Self::Organisation => "organisation",
            Self::Project => "project",
            Self::Person => "person",
            Self::Vrf => "vrf",
            Self::Rack => "rack",
            Self::Aggregate => "aggregate",
            Self::Pool => "pool",
            Self::Plan => "plan",
            Self::Binding => "binding",
        }
    }

    /// Where the API has them.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Site => "/v1/sites",
            Self::Organisation => "/v1/organisations",
            Self::Project => "/v1/projects",
            Self::Person => "/v1/people",
            Self::Vrf => "/v1/vrfs",
            Self::Rack => "/v1/racks",
            Self::Aggregate => "/v1/aggregates",
            Self::Pool => "/v1/pools",
            Self::Plan => "/v1/plans",
            Self::Binding => "/v1/bindings",
        }
    }

    /// Whether one can be read by itself, with the tag of its version.
    pub(crate) fn has_versions(self) -> bool {
        !matches!(self, Self::Vrf | Self::Aggregate | Self::Binding)
    }

    /// Whether the API removes them.
    pub(crate) fn can_be_removed(self) -> bool {
        !matches!(self, Self::Vrf | Self::Rack)
    }

    /// The fields of the API's answer that are declared.
    fn fields(self) -> &'static [&'static str] {
        match self {
            Self::Site | Self::Organisation | Self::Vrf => &["name"],
            Self::Project => &["name", "organisation"],
            Self::Person => &["name", "email"],
            Self::Rack => &["name", "site", "network"],
            Self::Aggregate => &["prefix", "vrf", "source"],
            Self::Pool => &[
                "name",
                "kind",
                "vrf",
                "rack",
                "site",
                "quarantine_minutes",
                "purpose",
                "prefixes",
                "blocks",
                "grants",
            ],
            Self::Plan => &["name", "description", "rules"],
            Self::Binding => &["person", "role", "scope"],
        }
    }
}

/// One object. What is left out of a file is as the controller has it, or as it makes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Object {
    Site(Site),
    Organisation(Organisation),
    Project(Project),
    Person(Person),
    Vrf(Vrf),
    Rack(Rack),
    Aggregate(Aggregate),
    Pool(Pool),
    Plan(Plan),
    Binding(Binding),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Site {
    pub(super) name: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Organisation {
    pub(super) name: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Project {
    pub(super) name: String,
    pub(super) organisation: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Person {
    pub(super) name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) email: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Vrf {
    pub(super) name: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rack {
    pub(super) name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) site: Option<String>,
    pub(super) network: Network,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Network {
    node: String,
    delegated: [String; 2],
    #[serde(skip_serializing_if = "Option::is_none")]
    gateway: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    dns: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Aggregate {
    pub(super) prefix: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) vrf: Option<String>,
    pub(super) source: Source,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Source {
    Private,
    Registry { name: String },
    Customer { name: String, proof: Proof },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Proof {
    pub(super) kind: ProofKind,
    pub(super) reference: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) state: Option<ProofState>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ProofKind {
    Roa,
    Loa,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ProofState {
    Pending,
    Verified,
    Refused,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pool {
    pub(super) name: String,
    pub(super) kind: PoolKind,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) vrf: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rack: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) site: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) quarantine_minutes: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) purpose: Option<String>,
    pub(super) prefixes: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) blocks: Option<Blocks>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) grants: Option<Vec<Grant>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Blocks {
    length: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    most: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Grant {
    to: Grantee,
    may: BTreeSet<Use>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Grantee {
    Everyone,
    Project(String),
    Role(String),
    Token(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Use {
    Assign,
    Announce,
    Reverse,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PoolKind {
    Public,
    Private,
    Global,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Plan {
    pub(super) name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) description: Option<String>,
    pub(super) rules: Rules,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rules {
    #[serde(skip_serializing_if = "Option::is_none")]
    firmware: Option<Firmware>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vendor: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    product: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    threads: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    disks: Vec<Disks>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    nics: Vec<Nics>,
    /// As the controller has it: which parts and slots there are is its to say.
    #[serde(skip_serializing_if = "Option::is_none")]
    expects: Option<serde_json::Value>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Firmware {
    Bios,
    Uefi,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Disks {
    count: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<DiskKind>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum DiskKind {
    Nvme,
    Ssd,
    Hdd,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Nics {
    count: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    driver: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Binding {
    pub(super) person: String,
    pub(super) role: String,
    pub(super) scope: Scope,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Scope {
    pub(super) kind: ScopeKind,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) name: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ScopeKind {
    Everything,
    Organisation,
    Project,
    Site,
    Rack,
}

/// The VRF and the site that there are from the beginning.
const DEFAULT: &str = "default";

impl Object {
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Site(_) => Kind::Site,
            Self::Organisation(_) => Kind::Organisation,
            Self::Project(_) => Kind::Project,
            Self::Person(_) => Kind::Person,
            Self::Vrf(_) => Kind::Vrf,
            Self::Rack(_) => Kind::Rack,
            Self::Aggregate(_) => Kind::Aggregate,
            Self::Pool(_) => Kind::Pool,
            Self::Plan(_) => Kind::Plan,
            Self::Binding(_) => Kind::Binding,
        }
    }

    /// What tells it from others of its kind.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Site(Site { name })
            | Self::Organisation(Organisation { name })
            | Self::Person(Person { name, .. })
            | Self::Vrf(Vrf { name })
            | Self::Rack(Rack { name, .. })
            | Self::Pool(Pool { name, .. })
            | Self::Plan(Plan { name, .. }) => name.clone(),
            Self::Project(Project { name, organisation }) => format!("{organisation}:{name}"),
            Self::Aggregate(Aggregate { prefix, vrf, .. }) => match vrf.as_deref() {
                None | Some(DEFAULT) => prefix.clone(),
                Some(vrf) => format!("{prefix} in VRF {vrf}"),
            },
            Self::Binding(Binding { person, role, scope }) => match scope.name.as_str() {
                "" => format!("{role} {person} everywhere"),
                name => format!("{role} {person} in {} {name}", ScopeKind::word(scope.kind)),
            },
        }
    }

    /// The object of an answer of the API.
    pub(crate) fn of_answer(kind: Kind, answer: &Value) -> anyhow::Result<Self> {
        let known = kind.fields().iter().filter_map(|field| {
            let value = answer.get(*field).filter(|value| !value.is_null())?;
            Some(((*field).to_owned(), without_nulls(value)))
        });
        let fields = Value::Object(known.collect());
        let object = Value::Object(Map::from_iter([(kind.word().to_owned(), fields)]));
        let object: Self = serde_json::from_value(object).with_context(|| {
            format!("the controller's answer about a {} is not understood; is it much older or newer?", kind.word())
        })?;
        object.canonical().map_err(anyhow::Error::msg)
    }

    /// How many prefixes it has.
    pub(crate) fn prefixes(&self) -> usize {
        if let Self::Pool(pool) = self { pool.prefixes.len() } else { 0 }
    }

    /// What the API is told to make it.
    pub(crate) fn body(&self) -> Value {
        match serde_json::to_value(self) {
            Ok(Value::Object(fields)) => fields.into_iter().next().map(|(_, body)| body).unwrap_or_default(),
            _ => Value::Null,
        }
    }

    /// The same with addresses written in the one way in which they are compared, and nothing that
    /// could be told in two; or what is wrong with it.
    pub(crate) fn canonical(mut self) -> Result<Self, String> {
        match &mut self {
            Self::Aggregate(aggregate) => aggregate.prefix = Prefix::parse(&aggregate.prefix)?.to_string(),
            Self::Pool(pool) => {
                let mut prefixes =
                    pool.prefixes.iter().map(|text| Prefix::parse(text)).collect::<Result<Vec<_>, _>>()?;
                prefixes.sort_unstable();
                prefixes.dedup();
                pool.prefixes = prefixes.iter().map(ToString::to_string).collect();
                for Grant { to, .. } in pool.grants.iter().flatten() {
                    if let Grantee::Project(name) = to
                        && !name.contains(':')
                    {
                        return Err(format!("write the project as ORGANISATION:{name}"));
                    }
                }
            }
            Self::Binding(Binding { scope, .. }) => match (scope.kind, scope.name.as_str()) {
                (ScopeKind::Everything, "") => {}
                (ScopeKind::Everything, _) => return Err("the scope `everything` has no name".into()),
                (kind, "") => return Err(format!("say which {} the scope is", kind.word())),
                (ScopeKind::Project, name) if !name.contains(':') => {
                    return Err(format!("write the project as ORGANISATION:{name}"));
                }
                _ => {}
            },
            _ => {}
        }
        Ok(self)
    }

    /// What it is when a file says this of one that is there: what the file leaves out stays.
    pub(crate) fn over(&self, there: &Self) -> Self {
        let mut whole = self.clone();
        let stays = |field: &mut Option<String>, there: &Option<String>| {
            if field.is_none() {
                field.clone_from(there);
            }
        };
        match (&mut whole, there) {
            (Self::Person(new), Self::Person(old)) => stays(&mut new.email, &old.email),
            (Self::Rack(new), Self::Rack(old)) => stays(&mut new.site, &old.site),
            (Self::Aggregate(new), Self::Aggregate(old)) => {
                stays(&mut new.vrf, &old.vrf);
                if let (Source::Customer { proof, .. }, Source::Customer { proof: old, .. }) =
                    (&mut new.source, &old.source)
                {
                    proof.state = proof.state.or(old.state);
                }
            }
            (Self::Pool(new), Self::Pool(old)) => {
                stays(&mut new.vrf, &old.vrf);
                stays(&mut new.rack, &old.rack);
                stays(&mut new.site, &old.site);
                stays(&mut new.purpose, &old.purpose);
                new.quarantine_minutes = new.quarantine_minutes.or(old.quarantine_minutes);
                new.blocks = match (new.blocks, old.blocks) {
                    (Some(new), Some(old)) => Some(Blocks { most: new.most.or(old.most), ..new }),
                    (new, old) => new.or(old),
                };
                if new.grants.is_none() {
                    new.grants.clone_from(&old.grants);
                }
            }
            (Self::Plan(new), Self::Plan(old)) => stays(&mut new.description, &old.description),
            _ => {}
        }
        whole
    }

    /// Whether this one cannot be made before that one is there.
    pub(crate) fn needs(&self, that: &Self) -> bool {
        let or_default = |name: &Option<String>| name.clone().unwrap_or_else(|| DEFAULT.into());
        match (self, that) {
            (Self::Project(project), Self::Organisation(of)) => project.organisation == of.name,
            (Self::Rack(rack), Self::Site(site)) => or_default(&rack.site) == site.name,
            (Self::Aggregate(aggregate), Self::Vrf(vrf)) => or_default(&aggregate.vrf) == vrf.name,
            (Self::Pool(pool), Self::Vrf(vrf)) => or_default(&pool.vrf) == vrf.name,
            (Self::Pool(pool), Self::Site(site)) => pool.site.as_ref() == Some(&site.name),
            (Self::Pool(pool), Self::Rack(rack)) => pool.rack.as_ref() == Some(&rack.name),
            (Self::Pool(pool), Self::Project(_)) => {
                let name = that.name();
                let is_to = |grant: &Grant| matches!(&grant.to, Grantee::Project(project) if *project == name);
                pool.grants.iter().flatten().any(is_to)
            }
            (Self::Pool(pool), Self::Aggregate(of)) => {
                let Ok(space) = Prefix::parse(&of.prefix) else { return false };
                let within = |text: &String| Prefix::parse(text).is_ok_and(|prefix| space.contains(&prefix));
                or_default(&pool.vrf) == or_default(&of.vrf) && pool.prefixes.iter().any(within)
            }
            (Self::Binding(binding), Self::Person(person)) => binding.person == person.name,
            (Self::Binding(Binding { scope, .. }), that) => {
                let kind = match that {
                    Self::Organisation(_) => ScopeKind::Organisation,
                    Self::Project(_) => ScopeKind::Project,
                    Self::Site(_) => ScopeKind::Site,
                    Self::Rack(_) => ScopeKind::Rack,
                    _ => return false,
                };
                scope.kind == kind && scope.name == that.name()
            }
            _ => false,
        }
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind().word(), self.name())
    }
}

impl ScopeKind {
    fn word(self) -> &'static str {
        match self {
            Self::Everything => "everything",
            Self::Organisation => "organisation",
            Self::Project => "project",
            Self::Site => "site",
            Self::Rack => "rack",
        }
    }
}

/// Fields that are `null` are as if they were not there.
fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let there = fields.iter().filter(|(_, value)| !value.is_null());
            Value::Object(there.map(|(name, value)| (name.clone(), without_nulls(value))).collect())
        }
        Value::Array(all) => Value::Array(all.iter().map(without_nulls).collect()),
        other => other.clone(),
    }
}

/// Addresses that begin alike: ADDRESS/LENGTH.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Prefix {
    address: IpAddr,
    length: u8,
}

impl Prefix {
    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no prefix; write it as ADDRESS/LENGTH, as in 10.9.0.0/16");
        let (address, length) = text.split_once('/').ok_or_else(wrong)?;
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let length: u8 = length.parse().map_err(|_| wrong())?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        if length > width {
            return Err(wrong());
        }
        Ok(Self { address, length })
    }

    fn contains(&self, other: &Self) -> bool {
        let bits = |address: IpAddr| match address {
            IpAddr::V4(address) => u128::from(u32::from(address)) << 96,
            IpAddr::V6(address) => u128::from(address),
        };
        let beyond = 128u32.saturating_sub(self.length.into());
        self.address.is_ipv4() == other.address.is_ipv4()
            && self.length <= other.length
            && bits(self.address).checked_shr(beyond) == bits(other.address).checked_shr(beyond)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Object {
        serde_json::from_value::<Object>(value).unwrap().canonical().unwrap()
    }

    #[test]
    fn what_the_api_answers_is_what_a_file_would_say() {
        let answer = json!({
            "id": "1", "name": "p6", "vrf": "default", "family": 6, "kind": "public", "rack": null,
            "quarantine_minutes": 60, "purpose": "", "prefixes": ["2001:db8::/32"], "created": "x",
        });
        let file = json!({"pool": {
            "name": "p6", "vrf": "default", "kind": "public", "quarantine_minutes": 60, "purpose": "",
            "prefixes": ["2001:DB8:0::/32", "2001:db8::/32"],
        }});
        assert_eq!(Object::of_answer(Kind::Pool, &answer).unwrap(), object(file));
        let newer = json!({"name": "x", "kind": "reserved-for-later", "prefixes": []});
        assert!(Object::of_answer(Kind::Pool, &newer).is_err());
    }

    #[test]
    fn what_a_file_leaves_out_stays() {
        let there = object(json!({"aggregate": {"prefix": "203.0.113.0/24", "vrf": "default", "source": {"customer": {
            "name": "shop", "proof": {"kind": "roa", "reference": "AS64500", "state": "verified"},
        }}}}));
        let file = object(json!({"aggregate": {"prefix": "203.0.113.0/24", "source": {"customer": {
            "name": "shop", "proof": {"kind": "roa", "reference": "AS64500"},
        }}}}));
        assert_eq!(file.name(), there.name());
        assert_eq!(file.over(&there), there);
    }

    #[test]
    fn an_object_needs_what_it_names() {
        let pool =
            object(json!({"pool": {"name": "p", "kind": "private", "rack": "lab", "prefixes": ["10.9.0.0/24"]}}));
        let aggregate = |prefix: &str| object(json!({"aggregate": {"prefix": prefix, "source": "private"}}));
        let needed = [
            aggregate("10.0.0.0/8"),
            aggregate("0.0.0.0/0"),
            object(json!({"vrf": {"name": "default"}})),
            object(json!({"rack": {"name": "lab", "network": {"node": "10.77.0.1/24", "delegated": ["a", "b"]}}})),
        ];
        let not = [
            aggregate("11.0.0.0/8"),
            aggregate("10.9.0.0/25"),
            aggregate("::/0"),
            object(json!({"vrf": {"name": "lab"}})),
            object(json!({"site": {"name": "lab"}})),
        ];
        let of_site =
            object(json!({"pool": {"name": "q", "kind": "private", "site": "lab", "prefixes": ["12.0.0.0/8"]}}));
        assert!(of_site.needs(&not[4]) && !of_site.needs(&needed[3]), "a site and a rack may have one name");
        assert!(needed.iter().all(|that| pool.needs(that)));
        assert!(not.iter().all(|that| !pool.needs(that)));
        let role = object(json!({"binding": {
            "person": "ada", "role": "viewer", "scope": {"kind": "project", "name": "acme:shop"},
        }}));
        assert!(role.needs(&object(json!({"project": {"name": "shop", "organisation": "acme"}}))));
        assert!(!role.needs(&object(json!({"project": {"name": "shop", "organisation": "other"}}))));
        assert!(role.needs(&object(json!({"person": {"name": "ada"}}))));
    }
}
