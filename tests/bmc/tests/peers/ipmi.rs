//! IPMI, judged by ipmitool, FreeIPMI and pyghmi.

use rackhand_bmc_sim::{Act, Boot, Personality, Source};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use crate::bench::subject;

#[tokio::test]
async fn both_mandatory_suites_are_spoken_and_others_are_refused() {
    let mut bmc = subject(Personality::generic(1)).await;
    for suite in [3, 17] {
        bmc.suite = suite;
        let info = bmc.ipmitool(&["mc", "info"]).await.well();
        assert!(info.contains("Firmware Revision         : 2.17"), "{info}");
    }
    bmc.suite = 1;
    assert!(!bmc.ipmitool(&["mc", "info"]).await.is_content);
}

#[tokio::test]
async fn a_wrong_password_and_an_unknown_user_are_refused() {
    let mut bmc = subject(Personality::generic(2)).await;
    bmc.password = "wrong".into();
    assert!(!bmc.ipmitool(&["mc", "info"]).await.is_content);
    bmc.user = "nobody".into();
    assert!(!bmc.ipmitool(&["mc", "info"]).await.is_content);
}

#[tokio::test]
async fn power_and_boot_are_as_ipmitool_sets_them() {
    let bmc = subject(Personality::generic(3)).await;
    assert!(bmc.ipmitool(&["chassis", "power", "status"]).await.well().contains("is off"));
    bmc.ipmitool(&["chassis", "power", "on"]).await.well();
    assert!(bmc.ipmitool(&["chassis", "power", "status"]).await.well().contains("is on"));
    bmc.ipmitool(&["chassis", "bootdev", "pxe", "options=efiboot"]).await.well();
    let shown = bmc.ipmitool(&["chassis", "bootparam", "get", "5"]).await.well();
    assert!(shown.contains("Boot parameter data: a004000000"), "{shown}");
    bmc.ipmitool(&["chassis", "power", "cycle"]).await.well();
    let shown = bmc.ipmitool(&["chassis", "bootparam", "get", "5"]).await.well();
    assert!(shown.contains("Boot parameter data: 0000"), "{shown}");
    bmc.ipmitool(&["chassis", "power", "off"]).await.well();
    let network = Boot { source: Some(Source::Network), uefi: Some(true), ..Boot::default() };
    let expected = [
        Act::Started(Boot::default()),
        Act::BootSet(network.clone()),
        Act::Stopped,
        Act::Started(network),
        Act::Stopped,
    ];
    assert_eq!(bmc.machine.acts(), expected);
    let cycle = bmc.ipmitool(&["chassis", "power", "cycle"]).await;
    assert!(!cycle.is_content && cycle.text.contains("not supported in present state"), "{}", cycle.text);
}

#[tokio::test]
async fn every_preset_tells_its_sensors_inventory_and_identity() {
    for name in Personality::PRESETS {
        let personality = Personality::preset(name, 4).unwrap();
        let (serial, uuid) = (personality.serial.clone(), personality.uuid);
        let bmc = subject(personality).await;
        bmc.ipmitool(&["chassis", "power", "on"]).await.well();
        let list = bmc.ipmitool(&["sdr", "elist"]).await.well();
        for line in ["23 degrees C", "8400 RPM", "12.10 Volts", "3.02 Volts", "264 Watts", "Presence detected"] {
            assert!(list.contains(line), "{name}: {line} is not in\n{list}");
        }
        let sensors = bmc.ipmitool(&["sensor"]).await.well();
        let inlet = sensors.lines().find(|line| line.starts_with("Inlet Temp")).unwrap();
        let parts: Vec<_> = inlet.split('|').map(str::trim).collect();
        assert_eq!(parts[4..], ["na", "0.000", "5.000", "38.000", "42.000", "47.000"], "{name}");
        assert!(bmc.ipmitool(&["fru", "print"]).await.well().contains(&serial), "{name}");
        let guid = bmc.ipmitool(&["mc", "guid"]).await.well();
        assert!(name != "generic" || guid.contains(&uuid.to_string()), "{guid}");
        let reading = bmc.ipmitool(&["dcmi", "power", "reading"]).await.well();
        assert!(reading.contains("264 Watts"), "{reading}");
        assert!(bmc.ipmitool(&["lan", "print", "1"]).await.well().contains("10.20.0.4"), "{name}");
    }
}

#[tokio::test]
async fn a_line_crossed_is_in_the_log_until_it_is_cleared() {
    let bmc = subject(Personality::generic(5)).await;
    assert!(bmc.running.bmc.inject("Inlet Temp", 43.0));
    assert!(bmc.running.bmc.inject("ECC", 1.0));
    let list = bmc.ipmitool(&["sel", "elist"]).await.well();
    assert!(list.contains("Upper Critical going high | Asserted | Reading 43 > Threshold 42 degrees C"), "{list}");
    assert!(list.contains("Memory ECC | Correctable ECC | Asserted"), "{list}");
    let cache = tempfile::tempdir().unwrap();
    let seen = bmc.freeipmi("ipmi-sel", &cache).await.well();
    assert!(seen.contains("Upper Critical - going high"), "{seen}");
    bmc.ipmitool(&["sel", "clear"]).await.well();
    assert!(bmc.ipmitool(&["sel", "elist"]).await.text.contains("SEL has no entries"));
}

#[tokio::test]
async fn a_password_changed_lets_in_over_both_protocols() {
    let mut bmc = subject(Personality::generic(6)).await;
    let users = bmc.ipmitool(&["user", "list", "1"]).await.well();
    assert!(users.lines().any(|line| line.starts_with("2   admin") && line.contains("ADMINISTRATOR")), "{users}");
    bmc.ipmitool(&["user", "set", "password", "2", "twenty-bytes-long-pw", "20"]).await.well();
    assert!(!bmc.ipmitool(&["mc", "info"]).await.is_content);
    assert_eq!(bmc.curl("GET", "/redfish/v1/Systems", None).await.0, 401);
    bmc.password = "twenty-bytes-long-pw".into();
    bmc.ipmitool(&["mc", "info"]).await.well();
    let (status, body) =
        bmc.curl("PATCH", "/redfish/v1/AccountService/Accounts/2", Some(r#"{"Password": "short"}"#)).await;
    assert_eq!(status, 200, "{body}");
    bmc.password = "short".into();
    bmc.ipmitool(&["mc", "info"]).await.well();
}

#[tokio::test]
async fn freeipmi_is_content() {
    let cache = tempfile::tempdir().unwrap();
    for suite in [3, 17] {
        let mut bmc = subject(Personality::generic(7)).await;
        bmc.suite = suite;
        bmc.ipmitool(&["chassis", "power", "on"]).await.well();
        let sensors = bmc.freeipmi("ipmi-sensors", &cache).await.well();
        assert!(sensors.contains("| 12.10      | V     | 'OK'"), "{sensors}");
        assert!(sensors.contains("'Presence detected'"), "{sensors}");
        let info = bmc.freeipmi("bmc-info", &cache).await.well();
        assert!(info.contains("Firmware Revision     : 2.17"), "{info}");
    }
}

#[tokio::test]
async fn pyghmi_is_content() {
    let bmc = subject(Personality::generic(8)).await;
    let script = r#"
from pyghmi.ipmi import command
bmc = command.Command(bmc=address, port=port, userid=user, password=password)
print(bmc.set_power('on', wait=5))
print(bmc.set_bootdev('network', uefiboot=True))
print(bmc.get_bootdev())
print({reading.name: reading.value for reading in bmc.get_sensor_data()})
print(dict(bmc.get_inventory_of_component('System')))
"#;
    let said = bmc.python(script).await.well();
    for part in ["'powerstate': 'on'", "'bootdev': 'network'", "'uefimode': True", "'Inlet Temp': 23.0", "SN000008"] {
        assert!(said.contains(part), "{part} is not in\n{said}");
    }
}

#[tokio::test]
async fn forty_eight_run_in_one_process() {
    let mut bmcs = Vec::new();
    for number in 0..48 {
        bmcs.push(subject(Personality::generic(number)).await);
    }
    for bmc in [&bmcs[0], &bmcs[47]] {
        bmc.ipmitool(&["mc", "guid"]).await.well();
    }
    assert_ne!(bmcs[0].running.fingerprint, bmcs[47].running.fingerprint);
}

#[tokio::test]
async fn the_serial_line_is_shown_and_takes_what_is_typed() {
    let bmc = subject(Personality::generic(9)).await;
    let line = bmc.running.bmc.serial_line().unwrap();
    // A machine that answers each line with what it got.
    let machine = tokio::spawn(async move {
        let (read, mut write) = tokio::io::split(line);
        let mut typed = Vec::new();
        let mut read = BufReader::new(read);
        while read.read_until(b'\r', &mut typed).await.is_ok_and(|length| length > 0) {
            let got = format!("got {}", String::from_utf8_lossy(&typed));
            // More than fits into one packet.
            write.write_all(got.repeat(100).as_bytes()).await.unwrap();
            write.write_all(b" end").await.unwrap();
            typed.clear();
        }
    });
    let script = r#"
import time
from pyghmi.ipmi import console
shown = []
line = console.Console(bmc=address, port=port, userid=user, password=password, force=True,
    iohandler=lambda data: shown.append(data if isinstance(data, bytes) else repr(data).encode()))
end = time.monotonic() + 30
sent = False
while time.monotonic() < end and b' end' not in b''.join(shown):
    if line.connected and not sent:
        line.send_data(b'hello\r')
        sent = True
    console.session.Session.wait_for_rsp(timeout=0.2)
print(b''.join(shown).count(b'got hello'))
"#;
    let said = bmc.python(script).await.well();
    assert_eq!(said.trim(), "100");
    machine.abort();
}
