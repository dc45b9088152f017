//! The files of a machine's config drive (cloud-init's NoCloud), from the templates in
//! `firmware-scripts/install/cloud-init/` and what the controller wants the installed system
//! to know.
//!
//! - `meta-data`: host name, and the run as instance id, so that a reinstall is a new instance.
//! - `network-config` (version 2): DHCP on the card the machine booted from, by its Ethernet
//!   address; the node gives it the address it has always had.
//! - `vendor-data`: ours, everything else: the keys of the default user and of root, phoning home.
//! - `user-data`: the tenant's own, untouched; an empty cloud-config when there is none.
//!
//! cloud-init merges user data over vendor data, so that a tenant can change what we set but
//! need not know it. All is JSON, which is YAML (YAML 1.2 §1.3), and a template is filled in as
//! a value, not as text: what stands in a key or a name cannot end a string.

use std::collections::BTreeMap;

use rackhand_common::{id::RunId, intent::Host, machine::Mac};
use serde_json::{Value, json};

/// cloud-init's marker: the rest of the file is a cloud-config.
const CLOUD_CONFIG: &str = "#cloud-config\n";

const META_DATA: &str = include_str!("../../../firmware-scripts/install/cloud-init/meta-data.json");
const NETWORK_CONFIG: &str = include_str!("../../../firmware-scripts/install/cloud-init/network-config.json");
const VENDOR_DATA: &str = include_str!("../../../firmware-scripts/install/cloud-init/vendor-data.json");

/// The config drive's files by name.
pub fn files(run: RunId, mac: Mac, host: &Host, phone_home: &str) -> BTreeMap<String, String> {
    let values = json!({
        "run": run,
        "name": host.name,
        "mac": mac,
        "ssh_keys": host.ssh_keys,
        "phone_home": phone_home,
    });
    let user_data = host.user_data.clone().unwrap_or_else(|| CLOUD_CONFIG.to_owned() + "{}\n");
    [
        ("meta-data", fill(META_DATA, &values)),
        ("network-config", fill(NETWORK_CONFIG, &values)),
        ("vendor-data", CLOUD_CONFIG.to_owned() + &fill(VENDOR_DATA, &values)),
        ("user-data", user_data),
    ]
    .into_iter()
    .map(|(name, text)| (name.to_owned(), text))
    .collect()
}

/// A template with each string `"@name@"` replaced by the value of that name.
fn fill(template: &str, values: &Value) -> String {
    let mut filled = serde_json::from_str(template).expect("templates are JSON; a test fills each");
    replace(&mut filled, values);
    format!("{filled}\n")
}

fn replace(place: &mut Value, values: &Value) {
    match place {
        Value::String(text) => {
            if let Some(name) = text.strip_prefix('@').and_then(|rest| rest.strip_suffix('@')) {
                *place = values.get(name).expect("templates name only values that are given").clone();
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| replace(item, values)),
        Value::Object(members) => members.values_mut().for_each(|member| replace(member, values)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use expect_test::expect;
    use uuid::Uuid;

    use super::*;

    fn rendered(user_data: Option<&str>) -> BTreeMap<String, String> {
        let host = Host {
            name: "web-1".into(),
            ssh_keys: vec!["ssh-ed25519 AAAA it's: \"me\"".into()],
            user_data: user_data.map(Into::into),
        };
        files(RunId(Uuid::from_u128(2)), Mac([2, 0, 0, 0, 0, 1]), &host, "http://10.77.0.1:8080/phone-home/abc")
    }

    #[test]
    fn a_config_drive_holds_four_files() {
        let mut text = String::new();
        for (name, contents) in rendered(None) {
            text += &format!("--- {name}\n{contents}");
        }
        expect![[r#"
            --- meta-data
            {"instance-id":"00000000-0000-0000-0000-000000000002","local-hostname":"web-1"}
            --- network-config
            {"ethernets":{"provisioning":{"dhcp4":true,"match":{"macaddress":"02:00:00:00:00:01"}}},"version":2}
            --- user-data
            #cloud-config
            {}
            --- vendor-data
            #cloud-config
            {"disable_root":false,"package_update":false,"package_upgrade":false,"phone_home":{"post":["instance_id","hostname"],"tries":10,"url":"http://10.77.0.1:8080/phone-home/abc"},"ssh_authorized_keys":["ssh-ed25519 AAAA it's: \"me\""]}
        "#]].assert_eq(&text);
    }

    #[test]
    fn the_tenants_user_data_is_handed_through_untouched() {
        let script = "#!/bin/sh\necho hello\n";
        assert_eq!(rendered(Some(script))["user-data"], script);
    }

    /// Needs Debian's package `cloud-init`; without it this fails rather than passes.
    #[test]
    fn cloud_init_accepts_what_we_write() {
        let directory = tempfile::tempdir().unwrap();
        // bookworm's cloud-init has a schema for cloud-configs only.
        for name in ["vendor-data", "user-data"] {
            let file = directory.path().join(name);
            std::fs::write(&file, &rendered(None)[name]).unwrap();
            let output = Command::new("cloud-init").args(["schema", "--config-file"]).arg(&file).output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && said.contains("Valid"), "{name}: {said}");
        }
    }
}
