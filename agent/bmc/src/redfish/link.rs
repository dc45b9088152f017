//! Where a resource is: `@odata.id` (DSP0266 §"Resource identifier property"), as data of the BMC.
//!
//! Invariant: a [`Link`] is a path of the BMC that gave it. It names no other host, climbs out of
//! nothing and breaks no header, so that following one never takes a token elsewhere.

use std::fmt;

use reqwest::Url;

/// The longest link that is followed, in bytes.
const MAX_LEN: usize = 1024;

/// A path of a BMC, without a fragment.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Link(String);

impl Link {
    /// The place that every service has (DSP0266 §"Redfish-defined URIs").
    pub fn root() -> Self {
        Self("/redfish/v1/".to_owned())
    }

    /// Takes a reference to a path of the same host; `None` for anything else. What follows `#`
    /// names a part of that resource and is dropped.
    pub fn parse(raw: &str) -> Option<Self> {
        let (path, _) = raw.split_once('#').unwrap_or((raw, ""));
        let is_local = path.starts_with('/') && !path.starts_with("//") && path.len() <= MAX_LEN;
        let is_clean = !path.chars().any(|c| c.is_control() || c.is_whitespace() || c == '\\');
        let route = path.split('?').next().unwrap_or_default();
        let climbs = route.split('/').any(|segment| {
            let segment = segment.replace("%2e", ".").replace("%2E", ".");
            segment == "." || segment == ".."
        });
        (is_local && is_clean && !climbs).then(|| Self(path.to_owned()))
    }

    /// Takes what a `Location` header says: a path, or a whole URL of this very host.
    pub fn of_location(raw: &str, base: &Url) -> Option<Self> {
        if raw.starts_with('/') {
            return Self::parse(raw);
        }
        let url = Url::parse(raw).ok()?;
        let query = url.query().map(|query| format!("?{query}")).unwrap_or_default();
        (url.origin() == base.origin()).then(|| Self::parse(&format!("{}{query}", url.path()))).flatten()
    }

    /// The resource below this one, for services that do not link it.
    pub fn below(&self, rest: &str) -> Self {
        Self(format!("{}/{rest}", self.route().trim_end_matches('/')))
    }

    /// The same resource, asked with this query.
    pub fn with_query(&self, query: &str) -> Self {
        Self(format!("{}?{query}", self.route()))
    }

    /// The path without its query.
    pub fn route(&self) -> &str {
        self.0.split('?').next().unwrap_or_default()
    }

    /// The last segment: what the BMC calls the resource.
    pub fn name(&self) -> &str {
        self.route().trim_end_matches('/').rsplit('/').next().unwrap_or_default()
    }

    /// The path and its query, as they go into a request.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_paths_of_the_same_host_are_links() {
        let base = Url::parse("https://10.0.0.9/").unwrap();
        let raw = [
            "/redfish/v1/Systems/1",
            "/redfish/v1/Chassis/1/Thermal#/Temperatures/0",
            "/redfish/v1/Systems/1/LogServices/SEL/Entries?$skip=50",
            "",
            "redfish/v1",
            "//evil/redfish/v1",
            "/\\evil",
            "/redfish/v1/../../etc",
            "/redfish/v1/%2E%2e/etc",
            "/redfish/v1/a\r\nX-Auth-Token: 1",
            "https://10.0.0.9/redfish/v1/TaskService/Tasks/1",
            "https://10.0.0.8/redfish/v1/TaskService/Tasks/1",
            "http://10.0.0.9/redfish/v1/TaskService/Tasks/1",
            "https://10.0.0.9@evil/",
        ];
        let told: String = raw
            .iter()
            .map(|raw| format!("{raw:?}: {:?} {:?}\n", Link::parse(raw), Link::of_location(raw, &base)))
            .collect();
        expect![[r#"
            "/redfish/v1/Systems/1": Some(/redfish/v1/Systems/1) Some(/redfish/v1/Systems/1)
            "/redfish/v1/Chassis/1/Thermal#/Temperatures/0": Some(/redfish/v1/Chassis/1/Thermal) Some(/redfish/v1/Chassis/1/Thermal)
            "/redfish/v1/Systems/1/LogServices/SEL/Entries?$skip=50": Some(/redfish/v1/Systems/1/LogServices/SEL/Entries?$skip=50) Some(/redfish/v1/Systems/1/LogServices/SEL/Entries?$skip=50)
            "": None None
            "redfish/v1": None None
            "//evil/redfish/v1": None None
            "/\\evil": None None
            "/redfish/v1/../../etc": None None
            "/redfish/v1/%2E%2e/etc": None None
            "/redfish/v1/a\r\nX-Auth-Token: 1": None None
            "https://10.0.0.9/redfish/v1/TaskService/Tasks/1": None Some(/redfish/v1/TaskService/Tasks/1)
            "https://10.0.0.8/redfish/v1/TaskService/Tasks/1": None None
            "http://10.0.0.9/redfish/v1/TaskService/Tasks/1": None None
            "https://10.0.0.9@evil/": None None
        "#]].assert_eq(&told);
    }

    proptest! {
        #[test]
        fn a_link_stays_on_its_host(raw in "\\PC*|/[/\\\\.%@:a-z]*") {
            let base = Url::parse("https://bmc.example/").unwrap();
            if let Some(link) = Link::parse(&raw) {
                let url = base.join(link.as_str()).unwrap();
                prop_assert_eq!(url.origin(), base.origin());
            }
        }
    }
}
