//! Tables and pages for people.

use jiff::Timestamp;
use rackhand_common::audit::Linked;
use serde_json::Value;

use crate::views::{Agent, Machine, Rack, Replacement, Run};

/// A table without lines: easy to read, and to cut with other tools.
pub(crate) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut all = vec![header.iter().map(|&title| title.to_owned()).collect::<Vec<_>>()];
    all.extend(rows);
    let widths: Vec<_> = (0..header.len())
        .map(|column| all.iter().map(|row| row[column].chars().count()).max().unwrap_or_default())
        .collect();
    let lines = all.iter().map(|row| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Absent things as a dash, so that columns can be counted.
pub(crate) fn or_dash(text: Option<&str>) -> String {
    text.filter(|text| !text.is_empty()).unwrap_or("-").to_owned()
}

pub(crate) fn machines(machines: &[Machine]) -> String {
    if machines.is_empty() {
        return "no such machine; power one on in a rack, and it will be discovered".into();
    }
    let rows = machines.iter().map(|machine| {
        vec![
            machine.name.clone(),
            machine.lifecycle.clone(),
            or_dash(machine.power.as_deref()),
            machine.address.clone(),
            or_dash(image(machine).as_deref()),
            or_dash(machine.alert.as_deref().or(changed(machine)).or(machine.stage.as_deref())),
        ]
    });
    table(&["NAME", "LIFECYCLE", "POWER", "ADDRESS", "IMAGE", "LATEST"], rows)
}

/// Its image with the version, where the controller tells one.
fn image(machine: &Machine) -> Option<String> {
    let name = machine.image.as_ref()?;
    Some(machine.image_version.map_or_else(|| name.clone(), |version| format!("{name}@{version}")))
}

fn changed(machine: &Machine) -> Option<&'static str> {
    (!machine.changes.is_empty()).then_some("parts changed: see `rackhand machine show`")
}

pub(crate) fn machine(machine: &Machine) -> String {
    let mut lines = vec![
        format!("{}  {}", machine.name, machine.id),
        format!("  lifecycle  {}", machine.lifecycle),
        format!("  rack       {}", machine.rack),
        format!("  power      {}", or_dash(machine.power.as_deref())),
        format!("  address    {}", machine.address),
        format!("  network    {}", machine.macs.join(", ")),
        format!("  installer  {}", if machine.installer { "connected" } else { "not connected" }),
        format!("  image      {}", or_dash(image(machine).as_deref())),
        format!("  latest     {}", or_dash(machine.stage.as_deref())),
    ];
    if let Some(alert) = &machine.alert {
        lines.push(format!("  ALERT      {alert}"));
    }
    for change in &machine.changes {
        let side = |side: &Option<String>| side.clone().unwrap_or_else(|| "nothing".into());
        let (was, is) = (side(&change.was), side(&change.is));
        lines.push(format!("  CHANGED    {}: was {was}, is {is}", change.part.replace('_', " ")));
    }
    if let Some(run) = &machine.run {
        lines.push(format!("  run        {run}"));
    }
    if let Some(inventory) = &machine.inventory {
        let text = |pointer: &str| inventory.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let number = |pointer: &str| inventory.pointer(pointer).and_then(Value::as_u64).unwrap_or_default();
        lines
            .push(format!("  system     {} {}", text("/system/vendor"), text("/system/product")).trim_end().to_owned());
        lines.push(format!("  processor  {} × {}", number("/cpu/threads"), text("/cpu/model")));
        lines.push(format!("  memory     {}", bytes(number("/memory"))));
        lines.push(format!("  firmware   {}", text("/firmware")));
        for disk in inventory.get("disks").and_then(Value::as_array).into_iter().flatten() {
            let of = |field: &str| disk.get(field).and_then(Value::as_str).unwrap_or_default();
            let content = match disk.get("content") {
                Some(Value::String(blank)) => blank.clone(),
                Some(data) => data.get("data").and_then(Value::as_str).unwrap_or("unknown").to_owned(),
                None => "unknown".into(),
            };
            let size = disk.get("size").and_then(Value::as_u64).unwrap_or_default();
            let name = [of("model"), of("serial")].into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>();
            lines.push(format!("  disk       {} {} {} ({content})", of("name"), bytes(size), name.join(" ")));
        }
    }
    if !machine.changes.is_empty() {
        lines.push(format!("If the parts are right: rackhand machine replace-part {}", machine.name));
    }
    if !machine.verbs.is_empty() {
        lines.push(format!("Possible now: {}", machine.verbs.join(", ")));
    }
    lines.join("\n")
}

pub(crate) fn runs(runs: &[Run]) -> String {
    if runs.is_empty() {
        return "no runs yet: `rackhand machine deploy` starts one".into();
    }
    let rows = runs.iter().map(|run| {
        let took = run.ended.map(|ended| relative(ended, run.created));
        vec![
            run.id.clone(),
            run.kind.clone(),
            run.machine_name.clone(),
            run.status.clone(),
            or_dash(took.as_deref()),
            or_dash(run.cause.as_deref().or(run.waiting_for.as_deref())),
        ]
    });
    table(&["RUN", "KIND", "MACHINE", "STATUS", "TOOK", "BECAUSE"], rows)
}

pub(crate) fn run(run: &Run) -> String {
    let mut lines = vec![
        format!("{} {}  {}", run.kind, run.machine_name, run.id),
        format!("  status   {}", run.status),
        format!("  started  {}", second(run.created)),
    ];
    if let Some(step) = &run.step {
        lines.push(format!("  step     {step}, attempt {}", run.attempt));
    }
    if let Some(waiting) = &run.waiting_for {
        let until = run.waiting_until.map(|until| format!(", until {}", second(until))).unwrap_or_default();
        lines.push(format!("  waiting  for {waiting}{until}"));
    }
    if let Some(ended) = run.ended {
        lines.push(format!("  ended    {} after {}", second(ended), relative(ended, run.created)));
    }
    if let Some(cause) = &run.cause {
        lines.push(format!("  cause    {cause}"));
    }
    if let Some(detail) = &run.detail {
        lines.extend(detail.lines().map(|line| format!("  | {line}")));
    }
    lines.join("\n")
}

pub(crate) fn racks(racks: &[Rack]) -> String {
    if racks.is_empty() {
        return "no racks yet: rackhand rack create NAME --node 10.77.0.1/24 --delegated 10.77.0.100-10.77.0.199"
            .into();
    }
    let rows = racks.iter().map(|rack| {
        let [first, last] = &rack.network.delegated;
        vec![rack.name.clone(), rack.network.node.clone(), format!("{first}-{last}"), rack.id.clone()]
    });
    table(&["NAME", "NODE", "DELEGATED", "ID"], rows)
}

pub(crate) fn agents(agents: &[Agent]) -> String {
    if agents.is_empty() {
        return "no agents yet: rackhand agent enrol --rack NAME".into();
    }
    let rows = agents.iter().map(|agent| {
        vec![
            agent.id.clone(),
            agent.rack.clone(),
            match agent {
                Agent { revoked: Some(_), .. } => "revoked",
                Agent { connected: true, .. } => "connected",
                _ => "away",
            }
            .into(),
            or_dash(agent.version.as_deref()),
            or_dash(agent.seen.map(second).as_deref()),
        ]
    });
    table(&["AGENT", "RACK", "STATE", "VERSION", "SEEN"], rows)
}

/// What was done, and what to do on the new node.
pub(crate) fn replacement(made: &Replacement) -> String {
    let mut text = match &made.agent {
        Some(agent) => format!("Agent {agent} of rack {} is revoked.\n", made.rack),
        None => format!("Rack {} has no agent that is let in; codes made before are void.\n", made.rack),
    };
    if made.unknown_commands > 0 {
        text += &format!(
            "{} power commands may or may not have been carried out: runs look at their machines first.\n",
            made.unknown_commands
        );
    }
    text += &format!(
        "Run this on the new node as root, once, before {}; then: systemctl restart rackhand-agent rackhand-boot\n",
        second(made.expires)
    );
    text
}

pub(crate) fn records(records: &[Linked]) -> String {
    if records.is_empty() {
        return "no such change was recorded".into();
    }
    let rows = records.iter().map(|Linked { number, record, .. }| {
        let changes = record.changes.iter().map(|change| {
            let what = match (&change.before, &change.after) {
                (None, _) => "made",
                (_, None) => "removed",
                _ => "altered",
            };
            format!("{} {what}", change.kind)
        });
        vec![
            number.to_string(),
            second(record.at),
            record.by.clone(),
            or_dash(record.from.map(|from| from.to_string()).as_deref()),
            record.action.clone(),
            or_dash(Some(&changes.collect::<Vec<_>>().join(", "))),
        ]
    });
    table(&["NUMBER", "WHEN", "WHO", "FROM", "ASKED FOR", "CHANGED"], rows)
}

/// A time to the second.
pub(crate) fn second(time: Timestamp) -> String {
    Timestamp::from_second(time.as_second()).unwrap_or(time).to_string()
}

/// How long after `start`: `+0:07.3`, as people read a stop watch.
pub(crate) fn relative(time: Timestamp, start: Timestamp) -> String {
    let tenths = (time.as_millisecond() - start.as_millisecond()).max(0) / 100;
    let (hours, minutes, seconds) = (tenths / 36_000, tenths / 600 % 60, tenths / 10 % 60);
    match hours {
        0 => format!("{minutes}:{seconds:02}.{}", tenths % 10),
        _ => format!("{hours}:{minutes:02}:{seconds:02}"),
    }
}

/// A size in binary units, to a tenth.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut divisor = 1u64;
    while unit + 1 < UNITS.len() && bytes / divisor >= 1024 {
        unit += 1;
        divisor *= 1024;
    }
    if unit == 0 {
        return format!("{bytes} B");
    }
    let tenths = (u128::from(bytes) * 10 / u128::from(divisor)) as u64;
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::json;

    use super::*;

    fn vm0() -> Machine {
        serde_json::from_value(json!({
            "id": "01931b1e-0000-7000-8000-000000000001", "name": "vm0", "rack": "demo", "lifecycle": "ready",
            "power": "on", "installer": true, "address": "10.77.0.100", "macs": ["52:54:00:00:00:01"],
            "stage": "inventory taken", "image": null, "alert": null, "run": null, "verbs": ["deploy", "power"],
            "inventory": {
                "firmware": "bios", "memory": 2147483648u64, "system": {"vendor": "QEMU", "product": "Standard PC"},
                "cpu": {"model": "QEMU TCG CPU", "threads": 2}, "nics": [],
                "disks": [{"name": "vda", "model": "", "serial": "disk0", "size": 8589934592u64, "content": "blank"}]
            }
        }))
        .unwrap()
    }

    #[test]
    fn a_revoked_agent_is_shown_as_such() {
        let agent = |id: &str, connected| -> Agent {
            serde_json::from_value(json!({
                "id": id, "rack": "demo", "connected": connected, "version": "0.1.0", "seen": null, "revoked": null,
            }))
            .unwrap()
        };
        let revoked = Agent { revoked: Some(Timestamp::UNIX_EPOCH), ..agent("a3", false) };
        expect![[r#"
            AGENT  RACK  STATE      VERSION  SEEN
            a1     demo  connected  0.1.0    -
            a2     demo  away       0.1.0    -
            a3     demo  revoked    0.1.0    -"#]]
        .assert_eq(&agents(&[agent("a1", true), agent("a2", false), revoked]));
    }

    #[test]
    fn a_replacement_says_what_is_in_doubt_and_what_comes_next() {
        let made = |agent: Option<&str>, unknown| -> Replacement {
            let made =
                json!({"rack": "lab", "agent": agent, "unknown_commands": unknown, "expires": "2027-01-01T00:00:00Z"});
            serde_json::from_value(made).unwrap()
        };
        expect![[r#"
            Agent a1 of rack lab is revoked.
            2 power commands may or may not have been carried out: runs look at their machines first.
            Run this on the new node as root, once, before 2027-01-01T00:00:00Z; then: systemctl restart rackhand-agent rackhand-boot
            Rack lab has no agent that is let in; codes made before are void.
            Run this on the new node as root, once, before 2027-01-01T00:00:00Z; then: systemctl restart rackhand-agent rackhand-boot
        "#]]
        .assert_eq(&(replacement(&made(Some("a1"), 2)) + &replacement(&made(None, 0))));
    }

    #[test]
    fn a_list_of_machines_is_a_plain_table() {
        let away = Machine {
            name: "db-1".into(),
            power: None,
            stage: None,
            image: Some("debian-12".into()),
            image_version: Some(3),
            ..vm0()
        };
        expect![[r#"
            NAME  LIFECYCLE  POWER  ADDRESS      IMAGE        LATEST
            vm0   ready      on     10.77.0.100  -            inventory taken
            db-1  ready      -      10.77.0.100  debian-12@3  -"#]]
        .assert_eq(&machines(&[vm0(), away]));
    }

    #[test]
    fn a_machines_page_tells_what_it_is_and_what_can_be_done() {
        expect![[r#"
            vm0  01931b1e-0000-7000-8000-000000000001
              lifecycle  ready
              rack       demo
              power      on
              address    10.77.0.100
              network    52:54:00:00:00:01
              installer  connected
              image      -
              latest     inventory taken
              system     QEMU Standard PC
              processor  2 × QEMU TCG CPU
              memory     2.0 GiB
              firmware   bios
              disk       vda 8.0 GiB disk0 (blank)
            Possible now: deploy, power"#]]
        .assert_eq(&machine(&vm0()));
    }

    #[test]
    fn a_part_that_changed_stands_out_with_both_sides() {
        let changes =
            json!([{"part": "disk", "was": "disk0", "is": null}, {"part": "disk", "was": null, "is": "disk9 (GPT)"}]);
        let swapped = Machine { changes: serde_json::from_value(changes).unwrap(), inventory: None, ..vm0() };
        let page = machine(&swapped);
        let (_, page) = page.split_once("inventory taken\n").unwrap();
        expect![[r#"
              CHANGED    disk: was disk0, is nothing
              CHANGED    disk: was nothing, is disk9 (GPT)
            If the parts are right: rackhand machine replace-part vm0
            Possible now: deploy, power"#]]
        .assert_eq(page);
    }

    #[test]
    fn a_run_that_failed_says_why() {
        let failed: Run = serde_json::from_value(json!({
            "id": "01931b1e-0000-7000-8000-000000000002", "machine": "01931b1e-0000-7000-8000-000000000001", "machine_name": "vm0", "kind": "deploy", "status": "failed",
            "step": "order", "attempt": 3, "waiting_for": null, "waiting_until": null, "cause": "image",
            "detail": "chunk 7 never had the right digest\nlast lines", "created": "2026-01-01T00:00:00Z",
            "ended": "2026-01-01T00:01:07.35Z"
        }))
        .unwrap();
        expect![[r#"
            RUN                                   KIND    MACHINE  STATUS  TOOK    BECAUSE
            01931b1e-0000-7000-8000-000000000002  deploy  vm0      failed  1:07.3  image"#]]
        .assert_eq(&runs(std::slice::from_ref(&failed)));
        expect![[r#"
            deploy vm0  01931b1e-0000-7000-8000-000000000002
              status   failed
              started  2026-01-01T00:00:00Z
              step     order, attempt 3
              ended    2026-01-01T00:01:07Z after 1:07.3
              cause    image
              | chunk 7 never had the right digest
              | last lines"#]]
        .assert_eq(&run(&failed));
    }

    #[test]
    fn sizes_and_times_are_short() {
        assert_eq!([0, 1023, 1024, 1536, 10 << 30].map(bytes), ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "10.0 GiB"]);
        let at = |ms| Timestamp::from_millisecond(ms).unwrap();
        assert_eq!(relative(at(67_350), at(0)), "1:07.3");
        assert_eq!(relative(at(3_600_000 + 61_000), at(0)), "1:01:01");
        assert_eq!(relative(at(0), at(5)), "0:00.0");
    }
}
