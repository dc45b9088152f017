//! What a BMC says about one thing, read tolerantly (DSP0266 §"JSON data formats").
//!
//! Invariants:
//! - A member of the wrong type is an absent member; nothing here fails or panics.
//! - Text comes out fit to keep ([`text`]).
//! - What is parsed has a bounded number of values: a value takes more memory than its text.
//! - A resource is known by the link it was asked by, whatever its `@odata.id` claims.

use serde_json::Value;

use crate::{
    bmc::BmcError,
    told::{Severity, text},
};

use super::{fault, link::Link};

/// The most values of one body: a log of 4096 entries, expanded, has about 80,000.
pub const MAX_VALUES: usize = 100_000;

/// What something that was read weighs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weight {
    /// Its length in bytes.
    pub bytes: usize,
    /// How many objects, arrays, texts, numbers and the like it has. In memory each takes a few
    /// hundred bytes at worst, however short its text.
    pub values: usize,
}

/// Why bytes are not read as JSON.
#[derive(Debug, thiserror::Error)]
pub enum NotJson {
    /// They are none, or nest more than 128 levels deep.
    #[error(transparent)]
    Syntax(#[from] serde_json::Error),
    /// They have too many values.
    #[error("more than {MAX_VALUES} values")]
    TooMany,
}

/// Reads JSON, unless it would take too much memory.
pub fn json(bytes: &[u8]) -> Result<(Value, Weight), NotJson> {
    let weight = Weight { bytes: bytes.len(), values: values(bytes) };
    if weight.values > MAX_VALUES {
        return Err(NotJson::TooMany);
    }
    Ok((serde_json::from_slice(bytes)?, weight))
}

/// At least as many values as these bytes have if they are JSON: one, and one after each comma and
/// in each bracket.
fn values(bytes: &[u8]) -> usize {
    let (mut values, mut in_text, mut is_escaped) = (1, false, false);
    for byte in bytes {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if in_text => is_escaped = true,
            b'"' => in_text = !in_text,
            b',' | b'[' | b'{' if !in_text => values += 1,
            _ => {}
        }
    }
    values
}

/// The most members of one array that are looked at.
pub const MAX_MEMBERS: usize = crate::told::MAX_ITEMS;

/// A resource as it was read.
#[derive(Clone, Debug)]
pub struct Resource {
    /// Where it was read.
    pub link: Link,
    /// Its version, to be given back when it is changed.
    pub etag: Option<String>,
    /// What it weighed; nothing, when it came as a part of another.
    pub weight: Weight,
    pub(super) value: Value,
}

impl Resource {
    /// Takes a resource that is a JSON object.
    pub fn new(link: Link, etag: Option<String>, value: Value) -> Result<Self, BmcError> {
        if !value.is_object() {
            return Err(fault::malformed(format!("{link} is not an object")));
        }
        let etag = etag.or_else(|| Node(Some(&value)).word("@odata.etag").map(str::to_owned));
        Ok(Self { link, etag, weight: Weight::default(), value })
    }

    /// Reads a resource out of bytes, at most 128 levels deep: the entry for fuzzing.
    pub fn parse(link: Link, bytes: &[u8]) -> Result<Self, BmcError> {
        let (value, weight) = json(bytes).map_err(|error| fault::malformed(format!("{link}: {error}")))?;
        Ok(Self { weight, ..Self::new(link, None, value)? })
    }

    /// What it says.
    pub fn node(&self) -> Node<'_> {
        Node(Some(&self.value))
    }
}

/// Some part of a resource, or nothing: what was asked for may not be there.
#[derive(Clone, Copy, Debug)]
pub struct Node<'a>(pub Option<&'a Value>);

impl<'a> Node<'a> {
    /// The member of this name.
    pub fn at(self, name: &str) -> Self {
        Self(self.0.and_then(|value| value.get(name)))
    }

    /// Whether there is something, be it null.
    pub fn is_there(self) -> bool {
        self.0.is_some()
    }

    /// The member's text as it stands, for words of the standard.
    pub fn word(self, name: &str) -> Option<&'a str> {
        self.at(name).0?.as_str()
    }

    /// The member's text, fit to keep and not empty.
    pub fn text(self, name: &str) -> Option<String> {
        self.word(name).and_then(text)
    }

    /// The first of these members that has text.
    pub fn first_text(self, names: &[&str]) -> Option<String> {
        names.iter().find_map(|name| self.text(name))
    }

    /// The member's number.
    pub fn number(self, name: &str) -> Option<f64> {
        self.at(name).0?.as_f64().filter(|number| number.is_finite())
    }

    /// The member's number, when it is whole and not negative.
    pub fn count(self, name: &str) -> Option<u64> {
        self.at(name).0?.as_u64()
    }

    /// The member's truth.
    pub fn flag(self, name: &str) -> Option<bool> {
        self.at(name).0?.as_bool()
    }

    /// The elements of the member's array.
    pub fn items(self, name: &str) -> impl Iterator<Item = Node<'a>> + use<'a> {
        let items = self.at(name).0.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        items.iter().take(MAX_MEMBERS).map(|item| Node(Some(item)))
    }

    /// The words of the member's array.
    pub fn words(self, name: &str) -> Vec<&'a str> {
        self.items(name).filter_map(|item| item.0?.as_str()).collect()
    }

    /// The members by name.
    pub fn members(self) -> impl Iterator<Item = (&'a str, Node<'a>)> + use<'a> {
        let members = self.0.and_then(Value::as_object);
        members.into_iter().flatten().take(MAX_MEMBERS).map(|(name, value)| (name.as_str(), Node(Some(value))))
    }

    /// The resource that this is a reference to.
    pub fn target(self) -> Option<Link> {
        self.word("@odata.id").and_then(Link::parse)
    }

    /// The resource that the member refers to.
    pub fn link(self, name: &str) -> Option<Link> {
        self.at(name).target()
    }

    /// The resources that the member's array refers to.
    pub fn links(self, name: &str) -> Vec<Link> {
        self.items(name).filter_map(Node::target).collect()
    }

    /// Whether it is more than a reference: members that were asked for with `$expand` are.
    pub fn is_expanded(self) -> bool {
        self.members().any(|(name, _)| !name.starts_with('@'))
    }

    /// How it is, by its `Status.Health`.
    pub fn severity(self) -> Option<Severity> {
        severity(self.at("Status").word("Health")?)
    }

    /// Whether its `Status.State` says that nothing is there.
    pub fn is_absent(self) -> bool {
        self.at("Status").word("State").is_some_and(|state| state.eq_ignore_ascii_case("Absent"))
    }
}

/// How bad the standard's word for it is.
pub fn severity(word: &str) -> Option<Severity> {
    match word.to_ascii_lowercase().as_str() {
        "ok" => Some(Severity::Ok),
        "warning" => Some(Severity::Warning),
        "critical" => Some(Severity::Critical),
        _ => None,
    }
}

/// JSON as a hostile BMC makes it, with the names that parsers look for.
#[cfg(test)]
pub mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const NAMES: &[&str] = &[
        "@odata.id",
        "Id",
        "Name",
        "Status",
        "Health",
        "State",
        "Members",
        "Links",
        "Boot",
        "Actions",
        "target",
        "UUID",
        "SerialNumber",
        "Model",
        "Reading",
        "ReadingType",
        "ReadingCelsius",
        "ReadingUnits",
        "Thresholds",
        "UpperCritical",
        "Temperatures",
        "Fans",
        "Voltages",
        "PowerControl",
        "PowerSupplies",
        "MACAddress",
        "BootSourceOverrideTarget",
        "BootSourceOverrideEnabled",
        "HttpBootUri",
        "PowerState",
        "CapacityBytes",
        "CapacityMiB",
        "TotalCores",
        "Created",
        "Severity",
        "Message",
        "EntryCode",
        "IPv4Addresses",
        "Address",
        "SubnetMask",
        "PrefixLength",
        "IPv6Addresses",
        "VLAN",
        "VLANId",
        "UserName",
        "Enabled",
        "RoleId",
        "Controllers",
        "NetworkPorts",
        "AssociatedNetworkAddresses",
        "Devices",
        "Attributes",
        "SpeedPercent",
        "error",
        "@Message.ExtendedInfo",
        "MessageId",
        "TaskState",
        "Messages",
        "Image",
        "Inserted",
        "MediaTypes",
    ];

    /// Any JSON.
    pub fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            "\\PC{0,20}".prop_map(Value::from),
            prop::sample::select(vec![
                "OK",
                "Critical",
                "Absent",
                "/redfish/v1/Systems/1",
                "Temperature",
                "255.255.0.255",
                "9999-99-99T99:99:99Z",
                "2024-01-02T03:04:05-06:00",
                "::1",
                "00:11:22:33:44:55",
                "Pxe",
                "Percent"
            ])
            .prop_map(Value::from),
        ];
        leaf.prop_recursive(5, 64, 8, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::vec((prop::sample::select(NAMES), inner), 0..8)
                    .prop_map(|members| members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()),
            ]
        })
    }

    /// A resource of any JSON object.
    pub fn any_resource() -> impl Strategy<Value = Resource> {
        any_json().prop_map(|value| {
            let value = if value.is_object() { value } else { json!({ "Members": value }) };
            resource("/redfish/v1/Any/1", value)
        })
    }

    /// The resource of this JSON.
    pub fn resource(link: &str, value: Value) -> Resource {
        Resource::new(Link::parse(link).unwrap(), None, value).unwrap()
    }

    #[test]
    fn a_body_has_a_bounded_number_of_values() {
        let body = |values: usize| format!("[{}]", vec!["1"; values].join(","));
        assert!(json(body(MAX_VALUES - 1).as_bytes()).is_ok());
        assert!(matches!(json(body(MAX_VALUES).as_bytes()), Err(NotJson::TooMany)));
        assert_eq!(values(br#"{"a": "[,\",{", "b": [1, {}]}"#), 6);
    }

    proptest! {
        #[test]
        fn at_least_as_many_values_are_counted_as_there_are(json in any_json()) {
            fn count(value: &Value) -> usize {
                match value {
                    Value::Array(items) => 1 + items.iter().map(count).sum::<usize>(),
                    Value::Object(members) => 1 + members.values().map(count).sum::<usize>(),
                    _ => 1,
                }
            }
            prop_assert!(values(json.to_string().as_bytes()) >= count(&json));
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Resource::parse(Link::root(), &bytes);
        }

        #[test]
        fn no_resource_makes_an_accessor_panic(resource in any_resource()) {
            for (name, _) in resource.node().members() {
                let node = resource.node();
                let _ = (node.text(name), node.number(name), node.links(name), node.at(name).severity());
            }
        }
    }

    #[test]
    fn a_member_of_the_wrong_type_is_absent() {
        let resource = resource(
            "/redfish/v1/X",
            json!({"Name": 7, "Count": "7", "On": "true", "List": {"a": 1}, "Link": {"@odata.id": 5}}),
        );
        let node = resource.node();
        assert_eq!((node.text("Name"), node.number("Count"), node.flag("On")), (None, None, None));
        assert_eq!((node.items("List").count(), node.link("Link")), (0, None));
    }

    #[test]
    fn twenty_thousand_brackets_are_malformed() {
        let bytes = "[".repeat(20_000);
        assert!(matches!(Resource::parse(Link::root(), bytes.as_bytes()), Err(BmcError::Malformed(_))));
    }
}
