//! What the installed system of a machine is told, in the format its image reads, from the
//! templates in `firmware-scripts/install/` and what the controller wants it to know. Each format
//! is a set of files on the config drive.
//!
//! - `cidata` (cloud-init's NoCloud): `meta-data`, host name, and the run as instance id, so that a
//!   reinstall is a new instance; `network-config` (version 2), DHCP on the card the machine booted
//!   from, by its Ethernet address, since the node gives it the address it has always had;
//!   `vendor-data`, ours, everything else: the keys of the default user and of root, phoning home;
//!   `user-data`, the tenant's own, untouched, an empty cloud-config when there is none.
//! - `config-2` (OpenStack's config drive): the same in `openstack/latest/`, with the vendor data as a
//!   member of `vendor_data.json`.
//! - `ignition`: a config drive whose user data is an Ignition configuration (specification 3.3.0).
//!   The tenant's own is merged over it, by Ignition.
//!
//! cloud-init merges user data over vendor data, so that a tenant can change what we set but
//! need not know it. All is JSON, which is YAML (YAML 1.2 §1.3), and a template is filled in as
//! a value, not as text: what stands in a key or a name cannot end a string. Only templates that
//! are no JSON are filled in as text, with values of harmless characters.

use std::fmt::Write as _;

use rackhand_common::{channel::Drive, id::RunId, image::Settings, intent::Host, machine::Mac};
use serde_json::{Value, json};

/// cloud-init's marker: the rest of the file is a cloud-config.
const CLOUD_CONFIG: &str = "#cloud-config\n";

const META_DATA: &str = include_str!("../../../firmware-scripts/install/cloud-init/meta-data.json");
const NETWORK_CONFIG: &str = include_str!("../../../firmware-scripts/install/cloud-init/network-config.json");
const VENDOR_DATA: &str = include_str!("../../../firmware-scripts/install/cloud-init/vendor-data.json");

const CONFIG_2_META_DATA: &str = include_str!("../../../firmware-scripts/install/config-2/meta_data.json");
const CONFIG_2_NETWORK_DATA: &str = include_str!("../../../firmware-scripts/install/config-2/network_data.json");
const CONFIG_2_VENDOR_DATA: &str = include_str!("../../../firmware-scripts/install/config-2/vendor_data.json");

const IGNITION: &str = include_str!("../../../firmware-scripts/install/ignition/config.json");
const NETWORK_UNIT: &str = include_str!("../../../firmware-scripts/install/ignition/provisioning.network");
const PHONE_HOME_CURL: &str = include_str!("../../../firmware-scripts/install/ignition/phone-home.curl");
const PHONE_HOME_SERVICE: &str = include_str!("../../../firmware-scripts/install/ignition/phone-home.service");

/// What an installed system is told, whatever its format.
pub struct Told<'a> {
    /// The run that installs it.
    pub run: RunId,
    /// The card its machine booted from.
    pub mac: Mac,
    /// What the controller wants it to know.
    pub host: &'a Host,
    /// Where it calls home.
    pub phone_home: String,
}

impl Told<'_> {
    /// The config drive's files by their paths; none when nothing is told.
    pub fn files(&self, settings: Settings) -> Drive {
        let files = match settings {
            Settings::Cidata => self.cidata(),
            Settings::Config2 => self.config_2(),
            Settings::Ignition => self.ignition(),
            Settings::None => Vec::new(),
        };
        files.into_iter().map(|(name, text)| (name.to_owned(), text)).collect()
    }

    fn cidata(&self) -> Vec<(&str, String)> {
        let values = self.values();
        vec![
            ("meta-data", fill(META_DATA, &values)),
            ("network-config", fill(NETWORK_CONFIG, &values)),
            ("vendor-data", CLOUD_CONFIG.to_owned() + &fill(VENDOR_DATA, &values)),
            ("user-data", self.user_data()),
        ]
    }

    fn config_2(&self) -> Vec<(&str, String)> {
        self.openstack(self.user_data())
    }

    /// Whoever reads Ignition from here may look for keys and host name in the meta data as well.
    fn ignition(&self) -> Vec<(&str, String)> {
        let mut values = self.values();
        let url = |text: &str| json!(data_url(text));
        let merged: Vec<_> = self.host.user_data.iter().map(|own| json!({"source": data_url(own)})).collect();
        // Ignition refuses a configuration that lists a key twice.
        let mut different = Vec::new();
        for key in &self.host.ssh_keys {
            if !different.contains(key) {
                different.push(key.clone());
            }
        }
        values["merged"] = merged.into();
        values["different_keys"] = different.into();
        values["hostname"] = url(&(self.host.name.clone() + "\n"));
        values["network"] = url(&fill_text(NETWORK_UNIT, &values));
        values["phone_home_curl"] = url(&fill_text(PHONE_HOME_CURL, &values));
        values["phone_home_service"] = PHONE_HOME_SERVICE.into();
        self.openstack(fill(IGNITION, &values))
    }

    fn openstack(&self, user_data: String) -> Vec<(&str, String)> {
        let mut values = self.values();
        values["vendor_data"] = (CLOUD_CONFIG.to_owned() + &fill(VENDOR_DATA, &values)).into();
        vec![
            ("openstack/latest/meta_data.json", fill(CONFIG_2_META_DATA, &values)),
            ("openstack/latest/network_data.json", fill(CONFIG_2_NETWORK_DATA, &values)),
            ("openstack/latest/vendor_data.json", fill(CONFIG_2_VENDOR_DATA, &values)),
            ("openstack/latest/user_data", user_data),
        ]
    }

    fn user_data(&self) -> String {
        self.host.user_data.clone().unwrap_or_else(|| CLOUD_CONFIG.to_owned() + "{}\n")
    }

    fn values(&self) -> Value {
        let keys = &self.host.ssh_keys;
        let named = keys.iter().enumerate().map(|(index, key)| (format!("key-{index:03}"), json!(key)));
        json!({
            "run": self.run,
            "name": self.host.name,
            "mac": self.mac,
            // cloud-init's schema knows no empty list of them.
            "ssh_keys": (!keys.is_empty()).then_some(keys),
            "named_keys": named.collect::<serde_json::Map<_, _>>(),
            "phone_home": self.phone_home,
        })
    }
}

/// A template with each string `"@name@"` replaced by the value of that name. A member whose value is
/// null is left out.
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
        Value::Object(members) => {
            members.values_mut().for_each(|member| replace(member, values));
            members.retain(|_, member| !member.is_null());
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// A template that is no JSON, with each `@name@` replaced by the text of that name. Run, card, host
/// name (an RFC 1123 label) and our own URL have no character that means anything in one.
fn fill_text(template: &str, values: &Value) -> String {
    ["run", "mac", "name", "phone_home"].iter().fold(template.to_owned(), |text, name| {
        text.replace(&format!("@{name}@"), values[*name].as_str().expect("these are texts"))
    })
}

/// The text as a URL that has it in itself (RFC 2397).
fn data_url(text: &str) -> String {
    text.bytes().fold("data:,".to_owned(), |mut url, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => url.push(char::from(byte)),
            byte => write!(url, "%{byte:02X}").expect("a String takes everything"),
        }
        url
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command};

    use expect_test::{Expect, expect};
    use tempfile::TempDir;
    use uuid::Uuid;

    use super::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);

    fn host(name: &str, keys: &[&str], user_data: Option<&str>) -> Host {
        let ssh_keys = keys.iter().map(|key| (*key).to_owned()).collect();
        Host { name: name.into(), ssh_keys, user_data: user_data.map(Into::into) }
    }

    fn rendered(settings: Settings, host: &Host) -> Drive {
        let phone_home = "http://10.77.0.1:8080/phone-home/abc".to_owned();
        Told { run: RunId(Uuid::from_u128(2)), mac: MAC, host, phone_home }.files(settings)
    }

    fn shown(settings: Settings, expected: Expect) {
        let mut text = String::new();
        for (name, contents) in rendered(settings, &host("web-1", &["ssh-ed25519 AAAA it's: \"me\""], None)) {
            text += &format!("--- {name}\n{contents}");
        }
        expected.assert_eq(&text);
    }

    #[test]
    fn a_config_drive_for_nocloud_holds_four_files() {
        shown(
            Settings::Cidata,
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
        "#]],
        );
    }

    #[test]
    fn a_config_drive_like_openstacks_says_the_same_in_its_own_words() {
        shown(
            Settings::Config2,
            expect![[r##"
            --- openstack/latest/meta_data.json
            {"hostname":"web-1","launch_index":0,"name":"web-1","public_keys":{"key-000":"ssh-ed25519 AAAA it's: \"me\""},"uuid":"00000000-0000-0000-0000-000000000002"}
            --- openstack/latest/network_data.json
            {"links":[{"ethernet_mac_address":"02:00:00:00:00:01","id":"provisioning","type":"phy"}],"networks":[{"id":"provisioning-ipv4","link":"provisioning","type":"ipv4_dhcp"}],"services":[]}
            --- openstack/latest/user_data
            #cloud-config
            {}
            --- openstack/latest/vendor_data.json
            {"cloud-init":"#cloud-config\n{\"disable_root\":false,\"package_update\":false,\"package_upgrade\":false,\"phone_home\":{\"post\":[\"instance_id\",\"hostname\"],\"tries\":10,\"url\":\"http://10.77.0.1:8080/phone-home/abc\"},\"ssh_authorized_keys\":[\"ssh-ed25519 AAAA it's: \\\"me\\\"\"]}\n"}
        "##]],
        );
    }

    #[test]
    fn a_config_drive_for_ignition_has_its_configuration_as_user_data() {
        shown(
            Settings::Ignition,
            expect![[r##"
            --- openstack/latest/meta_data.json
            {"hostname":"web-1","launch_index":0,"name":"web-1","public_keys":{"key-000":"ssh-ed25519 AAAA it's: \"me\""},"uuid":"00000000-0000-0000-0000-000000000002"}
            --- openstack/latest/network_data.json
            {"links":[{"ethernet_mac_address":"02:00:00:00:00:01","id":"provisioning","type":"phy"}],"networks":[{"id":"provisioning-ipv4","link":"provisioning","type":"ipv4_dhcp"}],"services":[]}
            --- openstack/latest/user_data
            {"ignition":{"config":{"merge":[]},"version":"3.3.0"},"passwd":{"users":[{"name":"core","sshAuthorizedKeys":["ssh-ed25519 AAAA it's: \"me\""]}]},"storage":{"files":[{"contents":{"source":"data:,web-1%0A"},"mode":420,"overwrite":true,"path":"/etc/hostname"},{"contents":{"source":"data:,%5BMatch%5D%0AMACAddress%3D02%3A00%3A00%3A00%3A00%3A01%0A%0A%5BNetwork%5D%0ADHCP%3Dipv4%0A"},"mode":420,"overwrite":true,"path":"/etc/systemd/network/10-provisioning.network"},{"contents":{"source":"data:,url%20%3D%20%22http%3A%2F%2F10.77.0.1%3A8080%2Fphone-home%2Fabc%22%0Adata%20%3D%20%22instance_id%3D00000000-0000-0000-0000-000000000002%22%0Adata%20%3D%20%22hostname%3Dweb-1%22%0A"},"mode":384,"overwrite":true,"path":"/etc/rackhand/phone-home.curl"}]},"systemd":{"units":[{"contents":"[Unit]\nDescription=Tell whoever installed this system that it runs\nWants=network-online.target\nAfter=network-online.target\nConditionPathExists=/etc/rackhand/phone-home.curl\n# Tried for ten minutes.\nStartLimitIntervalSec=1h\nStartLimitBurst=60\n\n[Service]\nType=oneshot\n# What was set up is on disk before anybody hears of it: its power may be cut from then on.\nExecStartPre=/usr/bin/sync\nExecStart=/usr/bin/curl --silent --show-error --fail --max-time 20 --config /etc/rackhand/phone-home.curl\n# Once is enough, and what the file has is nobody else's business.\nExecStartPost=/usr/bin/rm /etc/rackhand/phone-home.curl\nRestart=on-failure\nRestartSec=10\n\n[Install]\nWantedBy=multi-user.target\n","enabled":true,"name":"phone-home.service"}]}}
            --- openstack/latest/vendor_data.json
            {"cloud-init":"#cloud-config\n{\"disable_root\":false,\"package_update\":false,\"package_upgrade\":false,\"phone_home\":{\"post\":[\"instance_id\",\"hostname\"],\"tries\":10,\"url\":\"http://10.77.0.1:8080/phone-home/abc\"},\"ssh_authorized_keys\":[\"ssh-ed25519 AAAA it's: \\\"me\\\"\"]}\n"}
        "##]],
        );
    }

    #[test]
    fn who_is_told_nothing_has_no_files() {
        assert_eq!(rendered(Settings::None, &host("web-1", &[], None)), Drive::new());
    }

    #[test]
    fn the_tenants_user_data_is_handed_through_untouched() {
        let script = "#!/bin/sh\necho hello\n";
        let host = host("web-1", &[], Some(script));
        assert_eq!(rendered(Settings::Cidata, &host)["user-data"], script);
        assert_eq!(rendered(Settings::Config2, &host)["openstack/latest/user_data"], script);
    }

    /// Hosts with little, with much and with what is hard to quote.
    fn hosts() -> Vec<Host> {
        let keys: Vec<_> = (0..64).map(|number| format!("ssh-rsa {} user{number}@example", "B".repeat(700))).collect();
        let keys: Vec<_> = keys.iter().map(String::as_str).collect();
        vec![
            host("web-1", &[], None),
            host("0", &["ssh-ed25519 AAAA it's: \"me\" #& {[*!|>%@`\\n", "sk-ssh-ed25519@openssh.com AAAA é ☃"], None),
            host("no", &["ssh-ed25519 AAAA twice", "ssh-ed25519 AAAA twice"], Some("#cloud-config\npackages: [jq]\n")),
            host(&"x".repeat(63), &keys, Some("#!/bin/sh\necho '#cloud-config'\n")),
        ]
    }

    /// The drive's files where a source of cloud-init's takes them from.
    fn seeded(source: &str, files: &Drive) -> TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = directory.path().join("seed").join(source).join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        directory
    }

    /// What cloud-init understands, drive by drive. Needs Debian's package `cloud-init`; without it
    /// this fails rather than passes.
    fn cloud_init(source: &str, drives: &[TempDir]) -> Result<Vec<Value>, String> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cloud_init.py");
        let mut command = Command::new("/usr/bin/python3");
        command.arg(script);
        for drive in drives {
            command.arg(source).arg(drive.path()).arg(MAC.to_string());
        }
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if !output.status.success() {
            return Err(said);
        }
        Ok(String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect())
    }

    /// cloud-init reads of each host what it is to be told; with `keys` when they are meta data too.
    fn cloud_init_understands(settings: Settings, source: &str, card: &str, keys: bool) {
        let hosts = hosts();
        let drives: Vec<_> = hosts.iter().map(|host| seeded(source, &rendered(settings, host))).collect();
        let understood = cloud_init(source, &drives).unwrap_or_else(|said| panic!("{said}"));
        assert_eq!(understood.len(), hosts.len());
        for (host, understood) in hosts.iter().zip(understood) {
            let user = match host.user_data.as_deref() {
                Some(script) if script.starts_with("#!") => json!(script),
                Some(_) => json!({"packages": ["jq"]}),
                None => json!({}),
            };
            let network = format!("[Match]\nMACAddress={MAC}\nName={card}\n\n[Network]\nDHCP=ipv4\n\n");
            let mut expected = json!({
                "instance": Uuid::from_u128(2),
                "name": host.name,
                "keys": if keys { host.ssh_keys.clone() } else { Vec::new() },
                "vendor": {
                    "ssh_authorized_keys": host.ssh_keys,
                    "disable_root": false,
                    "package_update": false,
                    "package_upgrade": false,
                    "phone_home": {
                        "url": "http://10.77.0.1:8080/phone-home/abc",
                        "post": ["instance_id", "hostname"],
                        "tries": 10,
                    },
                },
                "user": user,
                "network": [network],
            });
            if host.ssh_keys.is_empty() {
                expected["vendor"].as_object_mut().unwrap().remove("ssh_authorized_keys");
            }
            assert_eq!(understood, expected, "{}", host.name);
        }
    }

    #[test]
    fn cloud_init_takes_what_we_write_for_nocloud() {
        cloud_init_understands(Settings::Cidata, "nocloud", "provisioning", false);
    }

    #[test]
    fn cloud_init_takes_what_we_write_as_openstack_does() {
        cloud_init_understands(Settings::Config2, "config_drive", "eno1", true);
    }

    #[test]
    fn cloud_init_refuses_what_is_broken() {
        for (settings, source, name, from, to, why) in [
            (Settings::Cidata, "nocloud", "vendor-data", "\"tries\":10", "\"tries\":\"often\"", "phone_home.tries"),
            (Settings::Cidata, "nocloud", "vendor-data", "[\"ssh-ed25519 AAAA twice\"", "[1", "ssh_authorized_keys.0"),
            (Settings::Cidata, "nocloud", "network-config", "\"version\"", "\"verse\"", "correct version"),
            (Settings::Cidata, "nocloud", "meta-data", "local-hostname", "hostname", "local-hostname"),
            (Settings::Config2, "config_drive", "openstack/latest/meta_data.json", "uuid", "id", "No 'uuid' entry"),
            (
                Settings::Config2,
                "config_drive",
                "openstack/latest/network_data.json",
                "00:01",
                "00:02",
                "Unable to find",
            ),
            (Settings::Config2, "config_drive", "openstack/latest/vendor_data.json", "tries", "try", "phone_home"),
        ] {
            let mut drive = rendered(settings, &host("web-1", &["ssh-ed25519 AAAA twice"], None));
            let text = drive.get_mut(name).unwrap();
            assert!(text.contains(from), "{name}: {text}");
            *text = text.replacen(from, to, 1);
            let said = cloud_init(source, &[seeded(source, &drive)]).expect_err(name);
            assert!(said.contains(why), "{name}: {said}");
        }
    }

    /// What Ignition's own program says of a configuration. Needs Debian's package `ignition`.
    fn ignition(configuration: &str) -> Result<(), String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), configuration).unwrap();
        let output = Command::new("ignition-validate").arg(file.path()).output().expect("Debian's package `ignition`");
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        // It warns of what it lets pass.
        (output.status.success() && said.is_empty()).then_some(()).ok_or(said)
    }

    #[test]
    fn ignition_takes_what_we_write_for_it() {
        let mut hosts = hosts();
        hosts.push(host("web-1", &["ssh-ed25519 AAAA me"], Some(r#"{"ignition":{"version":"3.3.0"},"x":"é%\n"}"#)));
        for host in hosts {
            let drive = rendered(Settings::Ignition, &host);
            let configuration = &drive["openstack/latest/user_data"];
            ignition(configuration).unwrap_or_else(|said| panic!("{}: {said}", host.name));
            let parsed: Value = serde_json::from_str(configuration).unwrap();
            let merged = parsed["ignition"]["config"]["merge"].as_array().unwrap();
            let merged: Vec<_> = merged.iter().map(|own| text_of(&own["source"])).collect();
            assert_eq!(merged, host.user_data.clone().into_iter().collect::<Vec<_>>());
            let files = parsed["storage"]["files"].as_array().unwrap();
            assert_eq!(text_of(&files[0]["contents"]["source"]), host.name.clone() + "\n");
        }
    }

    /// What Ignition would carry out of a configuration, with all that is merged over it.
    fn carried_out(configuration: &str) -> Value {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("config.ign"), configuration).unwrap();
        let output = Command::new("/usr/lib/dracut/modules.d/30ignition/ignition")
            .args(["-platform", "file", "-stage", "fetch", "-log-to-stdout", "-root", "root"])
            .args(["-config-cache", "carried-out", "-state-file", "state"])
            .current_dir(directory.path())
            .env_remove("IGNITION_CONFIG_FILE")
            .output()
            .expect("Debian's package `ignition`");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        serde_json::from_slice(&fs::read(directory.path().join("carried-out")).unwrap()).unwrap()
    }

    #[test]
    fn ignition_merges_the_tenants_configuration_over_ours() {
        let own = json!({
            "ignition": {"version": "3.2.0"},
            "passwd": {"users": [{"name": "core", "groups": ["docker"]}, {"name": "tenant"}]},
            "storage": {"files": [{"path": "/etc/hostname", "mode": 0o600, "contents": {"source": "data:,theirs"}}]},
        });
        let host = host("web-1", &["ssh-ed25519 AAAA me"], Some(&own.to_string()));
        let all = carried_out(&rendered(Settings::Ignition, &host)["openstack/latest/user_data"]);
        let users = all["passwd"]["users"].as_array().unwrap();
        assert_eq!(users.iter().map(|user| &user["name"]).collect::<Vec<_>>(), ["core", "tenant"]);
        assert_eq!(users[0]["sshAuthorizedKeys"], json!(["ssh-ed25519 AAAA me"]));
        assert_eq!(users[0]["groups"], json!(["docker"]));
        let files = all["storage"]["files"].as_array().unwrap();
        assert_eq!(files.len(), 3);
        assert_eq!((&files[0]["contents"]["source"], &files[0]["mode"]), (&json!("data:,theirs"), &json!(0o600)));
        assert_eq!(all["systemd"]["units"][0]["enabled"], json!(true));
    }

    #[test]
    fn ignition_refuses_what_is_broken() {
        let drive = rendered(Settings::Ignition, &host("web-1", &["ssh-ed25519 AAAA me"], None));
        for (from, to, why) in [
            ("3.3.0", "2.0.0", "unsupported config version"),
            ("\"/etc/hostname\"", "\"etc/hostname\"", "path not absolute"),
            ("data:,web", "dta:,web", "invalid url scheme"),
            ("[\"ssh-ed25519 AAAA me\"]", "[\"a b\",\"a b\"]", "duplicate entry"),
            ("enabled", "unable", "Unused key unable"),
        ] {
            let configuration = &drive["openstack/latest/user_data"];
            assert!(configuration.contains(from), "{from}");
            let said = ignition(&configuration.replacen(from, to, 1)).expect_err(to);
            assert!(said.contains(why), "{to}: {said}");
        }
    }

    /// What stands in a `data:` URL.
    fn text_of(url: &Value) -> String {
        let mut bytes = url.as_str().unwrap().strip_prefix("data:,").unwrap().bytes();
        let mut text = Vec::new();
        while let Some(byte) = bytes.next() {
            let digits = (byte == b'%').then(|| [bytes.next().unwrap(), bytes.next().unwrap()]);
            text.push(digits.map_or(byte, |digits| hex::decode(digits).unwrap()[0]));
        }
        String::from_utf8(text).unwrap()
    }

    /// A unit of ours calls home once, as curl reads it, and systemd has nothing to say against it.
    #[test]
    fn the_unit_that_calls_home_is_one_for_systemd_and_curl() {
        let directory = tempfile::tempdir().unwrap();
        let unit = directory.path().join("phone-home.service");
        fs::write(&unit, PHONE_HOME_SERVICE).unwrap();
        let output = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&unit).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!said.lines().any(|line| line.contains("phone-home")), "{said}");
        let started = PHONE_HOME_SERVICE.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();

        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let called = std::thread::spawn({
            let listener = listener.try_clone().unwrap();
            move || answered(&listener)
        });
        let host = host("web-1", &[], None);
        let phone_home = format!("http://{}/phone-home/abc", listener.local_addr().unwrap());
        let drive =
            Told { run: RunId(Uuid::from_u128(2)), mac: MAC, host: &host, phone_home }.files(Settings::Ignition);
        let parsed: Value = serde_json::from_str(&drive["openstack/latest/user_data"]).unwrap();
        let file = &parsed["storage"]["files"][2];
        let (path, config) = (file["path"].as_str().unwrap(), directory.path().join("curl"));
        assert!(started.ends_with(&format!("--config {path}")), "{started}");
        fs::write(&config, text_of(&file["contents"]["source"])).unwrap();
        let mut words: Vec<_> = started.split(' ').collect();
        *words.last_mut().unwrap() = config.to_str().unwrap();
        let curl = Command::new(words[0]).args(&words[1..]).args(["--noproxy", "*"]).output().unwrap();
        assert!(curl.status.success(), "{}", String::from_utf8_lossy(&curl.stderr));
        let called = called.join().unwrap();
        assert!(called.starts_with("POST /phone-home/abc HTTP/1.1\r\n"), "{called}");
        assert!(
            called.ends_with("\r\n\r\ninstance_id=00000000-0000-0000-0000-000000000002&hostname=web-1"),
            "{called}"
        );
    }

    /// One request, answered well.
    fn answered(listener: &std::net::TcpListener) -> String {
        use std::io::{Read as _, Write as _};
        let mut stream = listener.accept().unwrap().0;
        let (mut request, mut piece) = (String::new(), [0; 4096]);
        while !request.ends_with("hostname=web-1") {
            let len = stream.read(&mut piece).unwrap();
            assert!(len > 0, "{request}");
            request += std::str::from_utf8(&piece[..len]).unwrap();
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
        request
    }
}
