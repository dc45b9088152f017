//! What is in a machine, slot by slot, as lines of its page and as `rackhand machine findings`.

use std::collections::BTreeMap;

use jiff::Timestamp;
use rackhand_common::hardware::{Bmc, Dimm, Drive, Hardware};
use serde::Deserialize;

use crate::show::{Table, bytes, or_dash, table};

/// What is in a machine, and what is not as it should be.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct MachineHardware {
    name: String,
    taken: Option<Timestamp>,
    hardware: Option<Hardware>,
    plan: Option<String>,
    strict: bool,
    findings: Vec<Finding>,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, Deserialize)]
struct Finding {
    component: String,
    place: String,
    text: String,
}

/// Lines of a machine's page that say what is not as it should be.
pub(crate) fn findings(known: &MachineHardware) -> Vec<String> {
    known.findings.iter().map(|finding| format!("  FINDING    {}", finding.text)).collect()
}

/// A table of what is not as it should be.
pub(crate) fn table_of(known: &MachineHardware) -> Table {
    let rows = known
        .findings
        .iter()
        .map(|finding| vec![finding.component.clone(), or_dash(Some(&finding.place)), finding.text.clone()]);
    let MachineHardware { name, plan, strict, .. } = known;
    let nothing = match (plan, known.taken) {
        (Some(plan), Some(taken)) => {
            let kind = if *strict { "the strict plan" } else { "plan" };
            format!("{name} is as {kind} {plan} expects, by what was in it at {taken:.0}")
        }
        (None, Some(taken)) => format!(
            "no fault in {name} by what was in it at {taken:.0}; no plan expects anything of machines of its make \
             (rackhand plan suggest {name})"
        ),
        (_, None) => format!("nothing is known of what is in {name}: rackhand machine inspect {name}"),
    };
    table(&["COMPONENT", "PLACE", "FINDING"], rows).shorten(&["FINDING"]).or_say(nothing)
}

/// Lines of a machine's page that say what is in its slots. Disks have theirs already.
pub(crate) fn lines(known: &MachineHardware) -> Vec<String> {
    let Some(hardware) = &known.hardware else { return Vec::new() };
    let mut lines = Vec::new();
    let mut line = |what: &str, text: String| {
        if !text.trim().is_empty() {
            lines.push(format!("  {what:<10} {}", text.trim_end()));
        }
    };
    line("board", words([&hardware.board.vendor, &hardware.board.product, &hardware.board.serial]));
    line("bios", words([&hardware.bios.vendor, &hardware.bios.version, &hardware.bios.date]));
    for socket in &hardware.processors {
        let text = match socket.populated {
            true => format!("{}: {} ({} cores, {} threads)", socket.slot, socket.model, socket.cores, socket.threads),
            false => format!("{}: empty", socket.slot),
        };
        line("socket", text);
    }
    for text in modules(&hardware.memory) {
        line("dimm", text);
    }
    for ecc in hardware.ecc.iter().filter(|ecc| ecc.corrected > 0 || ecc.uncorrected > 0) {
        line("ecc", format!("{}: {} corrected, {} not", ecc.label, ecc.corrected, ecc.uncorrected));
    }
    for port in &hardware.ports {
        let speed = match (port.speed, port.link) {
            (Some(speed), _) => format!("{speed} Mb/s"),
            (None, true) => "link, its speed is not told".to_owned(),
            (None, false) => "no link".to_owned(),
        };
        let firmware = if port.firmware.is_empty() { String::new() } else { format!(", firmware {}", port.firmware) };
        let optics = port.optics.as_ref().map(|optics| words([&optics.vendor, &optics.part, &optics.serial]));
        let optics = optics.map(|optics| format!(", {optics}")).unwrap_or_default();
        let errors = if port.crc_errors > 0 { format!(", {} wrong checksums", port.crc_errors) } else { String::new() };
        line("port", format!("{}: {speed}{firmware}{optics}{errors}", port.name));
    }
    for device in &hardware.devices {
        let slot = device.slot.as_ref().map(|slot| format!("{slot}: ")).unwrap_or_default();
        let link = device.link.map(|link| format!(", {link}")).unwrap_or_default();
        let errors = match (device.corrected, device.uncorrected) {
            (0, 0) => String::new(),
            (corrected, uncorrected) => format!(", {} errors on its link", corrected.saturating_add(uncorrected)),
        };
        line("device", format!("{slot}{device}{link}{errors}"));
    }
    for text in hardware.bmc.iter().flat_map(in_band) {
        line("bmc", text);
    }
    line("tpm", hardware.tpm.clone().unwrap_or_default());
    line("secure", hardware.secure_boot.map_or("", |on| if on { "boot is on" } else { "boot is off" }).to_owned());
    lines
}

/// What its BMC says in-band: what it is, and each of its LAN channels.
fn in_band(bmc: &Bmc) -> Vec<String> {
    let firmware = if bmc.firmware.is_empty() { String::new() } else { format!("firmware {}", bmc.firmware) };
    let guid = bmc.guid.map(|guid| format!("GUID {guid}")).unwrap_or_default();
    let serial = if bmc.serial.is_empty() { String::new() } else { format!("serial number {}", bmc.serial) };
    let told: Vec<_> = [&bmc.maker, &firmware, &serial, &guid].into_iter().filter(|text| !text.is_empty()).collect();
    let what = told.into_iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    let lan = bmc.lan.iter().map(|lan| {
        let address = lan.address.map_or_else(|| "no address".to_owned(), |address| address.to_string());
        let source = lan.is_dhcp.map_or("", |is_dhcp| if is_dhcp { " by DHCP" } else { ", static" });
        let mac = lan.mac.map(|mac| format!(" ({mac})")).unwrap_or_default();
        format!("LAN channel {}: {address}{source}{mac}", lan.channel)
    });
    [format!("in-band: {what}")].into_iter().chain(lan).collect()
}

/// How a disk says it fares, to stand behind its line.
pub(crate) fn health_of(known: &MachineHardware, disk: &str) -> String {
    let drives = known.hardware.iter().flat_map(|hardware| &hardware.drives);
    let Some(Drive { firmware, health, .. }) = drives.into_iter().find(|drive| drive.name == disk) else {
        return String::new();
    };
    let mut told = Vec::new();
    if !firmware.is_empty() {
        told.push(format!("firmware {firmware}"));
    }
    if let Some(health) = health {
        match &health.failing[..] {
            [] => told.push("healthy".into()),
            reasons => told.push(format!("FAILING: {}", reasons.join(", "))),
        }
        told.extend(health.used.map(|used| format!("{used} % of its life used")));
        told.extend(health.bad_blocks.filter(|count| *count > 0).map(|count| format!("{count} bad blocks")));
        told.extend(health.temperature.map(|celsius| format!("{celsius} °C")));
        told.extend(health.hours.map(|hours| format!("{hours} h")));
    }
    told.iter().map(|text| format!(", {text}")).collect()
}

/// Modules that are alike in one line, with the slots they are in, and those that are empty.
fn modules(memory: &[Dimm]) -> Vec<String> {
    let mut alike: BTreeMap<(u64, &str, u32, &str, &str), Vec<&str>> = BTreeMap::new();
    let mut empty = Vec::new();
    for dimm in memory {
        match dimm.size {
            0 => empty.push(dimm.slot.as_str()),
            size => alike.entry((size, &dimm.kind, dimm.speed, &dimm.vendor, &dimm.part)).or_default().push(&dimm.slot),
        }
    }
    let line = |((size, kind, speed, vendor, part), slots): ((u64, &str, u32, &str, &str), Vec<&str>)| {
        let speed = if speed > 0 { format!("{speed} MT/s") } else { String::new() };
        let what = words([&kind.to_owned(), &speed, &vendor.to_owned(), &part.to_owned()]);
        format!("{} × {} {what} in {}", slots.len(), bytes(size), slots.join(", ")).replace("  ", " ")
    };
    let mut lines: Vec<_> = alike.into_iter().map(line).collect();
    if !empty.is_empty() {
        lines.push(format!("empty: {}", empty.join(", ")));
    }
    lines
}

fn words<'a>(words: impl IntoIterator<Item = &'a String>) -> String {
    let told: Vec<_> = words.into_iter().filter(|word| !word.is_empty()).map(String::as_str).collect();
    told.join(" ")
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::json;

    use super::*;

    fn known() -> MachineHardware {
        serde_json::from_value(json!({
            "name": "web-1", "taken": "2027-01-01T00:00:00Z", "plan": "large", "strict": true,
            "findings": [{"component": "memory", "place": "A3", "text": "DIMM A3 is missing: 2 of 3"}],
            "hardware": {
                "board": {"vendor": "Dell Inc.", "product": "08D89F"},
                "bios": {"vendor": "Dell Inc.", "version": "2.10.2", "date": "02/24/2021"},
                "processors": [{"slot": "CPU1", "populated": true, "model": "Xeon", "cores": 8, "threads": 16},
                               {"slot": "CPU2"}],
                "memory": [
                    {"slot": "A1", "size": 34359738368u64, "kind": "DDR4", "speed": 2933, "part": "M393"},
                    {"slot": "A2", "size": 34359738368u64, "kind": "DDR4", "speed": 2933, "part": "M393"},
                    {"slot": "A3"}],
                "ecc": [{"label": "CPU#0 DIMM#1", "corrected": 4}, {"label": "CPU#0 DIMM#2"}],
                "ports": [{"name": "eth0", "speed": 25000, "firmware": "14.31",
                           "optics": {"vendor": "FINISAR", "part": "FTLX"}}, {"name": "eth1"}],
                "devices": [{"address": "0000:3b:00.0", "vendor": 0x15b3, "device": 0x1017, "class": 0x20000,
                             "slot": "PCIE2", "link": {"speed": 8000, "lanes": 8}}],
                "drives": [{"name": "sda", "firmware": "HXT7", "health": {"failing": ["it warns"], "used": 3,
                            "hours": 9, "temperature": 31, "bad_blocks": 2}}],
                "bmc": {"maker": "Dell", "firmware": "6.10", "guid": "4c4c4544-0051-4810-8052-b4c04f4c4d32",
                        "lan": [{"channel": 1, "mac": "02:00:00:00:00:09", "address": "10.20.0.9", "is_dhcp": true},
                                {"channel": 8}]},
                "tpm": "2.0", "secure_boot": false
            }
        }))
        .unwrap()
    }

    #[test]
    fn a_machines_slots_are_told_in_lines() {
        let known = known();
        let text = [vec!["web-1".to_owned()], findings(&known), lines(&known)].concat().join("\n");
        expect![[r#"
            web-1
              FINDING    DIMM A3 is missing: 2 of 3
              board      Dell Inc. 08D89F
              bios       Dell Inc. 2.10.2 02/24/2021
              socket     CPU1: Xeon (8 cores, 16 threads)
              socket     CPU2: empty
              dimm       2 × 32.0 GiB DDR4 2933 MT/s M393 in A1, A2
              dimm       empty: A3
              ecc        CPU#0 DIMM#1: 4 corrected, 0 not
              port       eth0: 25000 Mb/s, firmware 14.31, FINISAR FTLX
              port       eth1: no link
              device     PCIE2: 0000:3b:00.0, Mellanox network card 15b3:1017, x8 at 8.0 GT/s
              bmc        in-band: Dell, firmware 6.10, GUID 4c4c4544-0051-4810-8052-b4c04f4c4d32
              bmc        LAN channel 1: 10.20.0.9 by DHCP (02:00:00:00:00:09)
              bmc        LAN channel 8: no address
              tpm        2.0
              secure     boot is off"#]]
        .assert_eq(&text);
        assert_eq!(
            health_of(&known, "sda"),
            ", firmware HXT7, FAILING: it warns, 3 % of its life used, 2 bad blocks, 31 °C, 9 h"
        );
        assert_eq!(health_of(&known, "sdb"), "");
    }

    #[test]
    fn no_findings_say_by_what() {
        let mut known = known();
        expect![[r#"
            COMPONENT  PLACE  FINDING
            memory     A3     DIMM A3 is missing: 2 of 3"#]]
        .assert_eq(&table_of(&known).to_string());
        known.findings.clear();
        expect!["web-1 is as the strict plan large expects, by what was in it at 2027-01-01T00:00:00Z"]
            .assert_eq(&table_of(&known).to_string());
        known.taken = None;
        expect!["nothing is known of what is in web-1: rackhand machine inspect web-1"]
            .assert_eq(&table_of(&known).to_string());
    }
}
