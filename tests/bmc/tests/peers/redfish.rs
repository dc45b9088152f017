//! Redfish, judged by curl, by a walk over every link, and by pyghmi.

use std::collections::BTreeSet;

use rackhand_bmc_sim::{Act, Boot, Personality, Source};
use serde_json::Value;

use crate::bench::{Subject, subject, until};

/// Every `@odata.id` within.
fn links(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(members) => {
            found.extend(members.get("@odata.id").and_then(Value::as_str).map(String::from));
            members.values().for_each(|value| links(value, found));
        }
        Value::Array(items) => items.iter().for_each(|item| links(item, found)),
        _ => {}
    }
}

async fn walk(bmc: &Subject) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    let mut ahead = BTreeSet::from(["/redfish/v1/".to_owned()]);
    while let Some(path) = ahead.pop_first() {
        if path.contains('#') || !seen.insert(path.clone()) {
            continue;
        }
        let resource = bmc.get(&path).await;
        assert_eq!(resource["@odata.id"], path.as_str());
        assert!(resource["@odata.type"].as_str().is_some_and(|kind| kind.starts_with('#')), "{path}: no type");
        assert!(resource["Name"].is_string(), "{path}: no name");
        if let Some(members) = resource["Members"].as_array() {
            assert_eq!(resource["Members@odata.count"], members.len(), "{path}");
        } else {
            assert!(resource["Id"].is_string(), "{path}: no id");
        }
        let mut found = BTreeSet::new();
        links(&resource, &mut found);
        ahead.extend(found.into_iter().filter(|path| !seen.contains(path)));
    }
    seen
}

#[tokio::test]
async fn every_link_of_every_preset_leads_to_a_resource_of_that_path() {
    for name in Personality::PRESETS {
        let bmc = subject(Personality::preset(name, 30).unwrap()).await;
        bmc.running.bmc.inject("Inlet Temp", 43.0);
        let seen = walk(&bmc).await;
        let has = |part: &str| seen.iter().any(|path| path.contains(part));
        assert!(seen.len() > 40, "{name}: {seen:?}");
        assert!(has("/Thermal") && has("/Power"), "{name}");
        assert!(has("/LogServices/") && has("/Drives/") && has("/VirtualMedia/") && has("/Bios/Settings"), "{name}");
    }
}

#[tokio::test]
async fn nothing_but_the_root_is_seen_without_authentication() {
    let bmc = subject(Personality::generic(31)).await;
    let paths = walk(&bmc).await;
    for path in ["/redfish", "/redfish/v1/", "/redfish/v1/odata", "/redfish/v1/$metadata"] {
        assert_eq!(bmc.curl_as(None, "GET", path, None).await.0, 200, "{path}");
    }
    for path in paths.iter().filter(|path| *path != "/redfish/v1/") {
        assert_eq!(bmc.curl_as(None, "GET", path, None).await.0, 401, "{path}");
        assert_eq!(bmc.curl_as(Some("admin:wrong"), "GET", path, None).await.0, 401, "{path}");
    }
}

#[tokio::test]
async fn pyghmi_controls_power_and_boot() {
    let bmc = subject(Personality::generic(32)).await;
    let script = r#"
from pyghmi.redfish import command
from pyghmi.util import webclient
# It knows no port but 443.
init = webclient.SecureHTTPConnection.__init__
webclient.SecureHTTPConnection.__init__ = lambda self, host, port=None, **rest: init(self, host, redfish, **rest)
bmc = command.Command(address, user, password, verifycallback=lambda certificate: True)
print(bmc.get_power())
print(bmc.set_power('on', wait=5))
print(bmc.set_bootdev('network', uefiboot=True))
print(bmc.get_bootdev())
print({reading.name: reading.value for reading in bmc.get_sensor_data()})
"#;
    let said = bmc.python(script).await.well();
    for part in ["'powerstate': 'on'", "'bootdev': 'network'", "'Inlet Temp': 23"] {
        assert!(said.contains(part), "{part} is not in\n{said}");
    }
    let network = Boot { source: Some(Source::Network), uefi: Some(true), ..Boot::default() };
    assert_eq!(bmc.machine.acts(), [Act::Started(Boot::default()), Act::BootSet(network)]);
}

#[tokio::test]
async fn an_override_set_here_shows_over_ipmi() {
    let bmc = subject(Personality::dell_like(33)).await;
    let path = "/redfish/v1/Systems/System.Embedded.1";
    let boot = r#"{"Boot": {"BootSourceOverrideTarget": "Pxe", "BootSourceOverrideEnabled": "Once", "BootSourceOverrideMode": "UEFI"}}"#;
    let (status, body) = bmc.curl("PATCH", path, Some(boot)).await;
    assert_eq!(status, 200, "{body}");
    let shown = bmc.ipmitool(&["chassis", "bootparam", "get", "5"]).await.well();
    assert!(shown.contains("Boot parameter data: a004000000"), "{shown}");
}

#[tokio::test]
async fn a_change_needs_the_etag_where_the_bmc_says_so() {
    let bmc = subject(Personality::hpe_like(34)).await;
    let body = r#"{"IndicatorLED": "Blinking"}"#;
    assert_eq!(bmc.curl("PATCH", "/redfish/v1/Systems/1", Some(body)).await.0, 428);
    let mut command = std::process::Command::new("curl");
    let login = format!("{}:{}", bmc.user, bmc.password);
    let url = format!("https://{}/redfish/v1/Systems/1", bmc.running.redfish);
    command.args(["-sk", "-o", "/dev/null", "-w", "%{http_code}", "-X", "PATCH", "-u", &login]);
    command.args(["-H", "If-Match: \"stale\"", "-d", body, &url]);
    assert_eq!(crate::bench::run(command, "apt-get install curl").await.text, "412");
}

#[tokio::test]
async fn firmware_is_flashed_by_a_task() {
    let bmc = subject(Personality::generic(35)).await;
    let body = r#"{"ImageURI": "https://depot.example/bmc-2.18.bin"}"#;
    let path = "/redfish/v1/UpdateService/Actions/UpdateService.SimpleUpdate";
    assert_eq!(bmc.curl("POST", path, Some(body)).await.0, 202);
    until("the task is completed", async || {
        bmc.get("/redfish/v1/TaskService/Tasks/1").await["TaskState"] == "Completed"
    })
    .await;
    assert_eq!(bmc.get("/redfish/v1/Managers/1").await["FirmwareVersion"], "2.18");
    assert!(bmc.ipmitool(&["mc", "info"]).await.well().contains("2.18"));
}

#[tokio::test]
async fn settings_of_the_firmware_wait_for_the_next_start() {
    let bmc = subject(Personality::generic(36)).await;
    let body = r#"{"Attributes": {"SriovGlobalEnable": "Enabled"}}"#;
    let (status, said) = bmc.curl("PATCH", "/redfish/v1/Systems/1/Bios/Settings", Some(body)).await;
    assert_eq!(status, 200, "{said}");
    assert_eq!(bmc.get("/redfish/v1/Systems/1/Bios").await["Attributes"]["SriovGlobalEnable"], "Disabled");
    bmc.ipmitool(&["chassis", "power", "on"]).await.well();
    assert_eq!(bmc.get("/redfish/v1/Systems/1/Bios").await["Attributes"]["SriovGlobalEnable"], "Enabled");
}
