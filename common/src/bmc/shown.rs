//! What a BMC tells as rows for people, the same in every tool.

use super::{LogEntry, Part, PartKind, Reading, Seen, SensorKind, Severity, Skipped};
use crate::machine::Power;

/// A table's header and its rows.
pub type Rows = (&'static [&'static str], Vec<Vec<String>>);

impl Seen {
    /// As a table, and what was told and not understood.
    pub fn rows(&self) -> (Rows, &[Skipped]) {
        match self {
            Self::Identity { identity, power, protocol, fingerprint } => {
                let fact = |name: &str, value: Option<String>| vec![name.to_owned(), or_dash(value)];
                let power = power.map(|power| if power == Power::On { "on" } else { "off" }.to_owned());
                let facts = vec![
                    fact("machine's vendor", identity.vendor.clone()),
                    fact("machine's model", identity.model.clone()),
                    fact("machine's serial", identity.serial.clone()),
                    fact("machine's UUID", identity.uuid.map(|uuid| uuid.to_string())),
                    fact("machine's power", power),
                    fact("BMC", identity.manager.clone()),
                    fact("BMC's firmware", identity.firmware.clone()),
                    fact("asked by", Some(protocol.word().to_owned())),
                    fact("certificate", fingerprint.clone()),
                ];
                ((&["FACT", "VALUE"], facts), &[])
            }
            Self::Sensors(sensors) => {
                let header = &["SENSOR", "VALUE", "STATE", "WARNS", "CRITICAL"];
                ((header, sensors.readings.iter().map(reading).collect()), &sensors.skipped)
            }
            Self::Log(log) => {
                let header = &["WHEN", "SEVERITY", "SUBJECT", "WHAT", "ID"];
                ((header, log.entries.iter().map(entry).collect()), &log.skipped)
            }
            Self::Parts(parts) => {
                let header = &["PART", "SLOT", "MODEL", "SIZE", "SERIAL", "FIRMWARE", "STATE"];
                ((header, parts.parts.iter().map(part).collect()), &parts.skipped)
            }
        }
    }
}

impl Severity {
    /// In a word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "WARNING",
            Self::Critical => "CRITICAL",
        }
    }
}

impl SensorKind {
    /// The unit of its values.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Temperature => "°C",
            Self::Fan => "rpm",
            Self::FanPercent | Self::Percent => "%",
            Self::Voltage => "V",
            Self::Current => "A",
            Self::Power => "W",
            Self::Energy => "J",
            Self::Processor | Self::Memory | Self::PowerSupply | Self::Drive | Self::Intrusion | Self::Other => "",
        }
    }
}

fn reading(reading: &Reading) -> Vec<String> {
    let valued = |value: f64| format!("{} {}", rounded(value), reading.kind.unit()).trim_end().to_owned();
    let value = reading.value.map(valued).or_else(|| {
        let states = reading.states.join(", ");
        (!states.is_empty()).then_some(states)
    });
    let limits = &reading.thresholds;
    vec![
        reading.name.clone(),
        or_dash(value),
        or_dash(reading.severity.map(|severity| severity.word().to_owned())),
        range(limits.lower_warning, limits.upper_warning),
        range(limits.lower_critical, limits.upper_critical),
    ]
}

/// Where something is out of its range.
fn range(lower: Option<f64>, upper: Option<f64>) -> String {
    let lower = lower.map(|lower| format!("< {}", rounded(lower)));
    let upper = upper.map(|upper| format!("> {}", rounded(upper)));
    let both: Vec<_> = lower.into_iter().chain(upper).collect();
    or_dash((!both.is_empty()).then(|| both.join(", ")))
}

/// At most three places: what sensors are good for.
fn rounded(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn entry(entry: &LogEntry) -> Vec<String> {
    let over = if entry.is_over { "over: " } else { "" };
    vec![
        or_dash(entry.at.map(|at| at.strftime("%Y-%m-%d %H:%M:%S").to_string())),
        or_dash(entry.severity.map(|severity| severity.word().to_owned())),
        or_dash(entry.subject.clone()),
        format!("{over}{}", entry.message),
        entry.id.clone(),
    ]
}

fn part(part: &Part) -> Vec<String> {
    let model: Vec<_> = [&part.vendor, &part.model].into_iter().flatten().map(String::as_str).collect();
    let size = part.size.map(|size| match part.kind {
        PartKind::Processor => format!("{size} cores"),
        _ if size >= 1 << 30 => format!("{} GiB", size >> 30),
        _ => format!("{} MiB", size >> 20),
    });
    vec![
        format!("{:?}", part.kind).to_lowercase(),
        part.slot.clone(),
        or_dash((!model.is_empty()).then(|| model.join(" "))),
        or_dash(size),
        or_dash(part.serial.clone()),
        or_dash(part.firmware.clone()),
        or_dash(part.severity.map(|severity| severity.word().to_owned())),
    ]
}

fn or_dash(text: Option<String>) -> String {
    text.filter(|text| !text.is_empty()).unwrap_or_else(|| "-".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        bmc::{Identity, Sensors, Thresholds},
        machine::Mainboard,
    };

    #[test]
    fn a_bmc_is_another_machines_when_nothing_that_can_be_compared_is_the_same() {
        let uuid: uuid::Uuid = "00112233-4455-6677-8899-aabbccddeeff".parse().unwrap();
        let swapped: uuid::Uuid = "33221100-5544-7766-8899-aabbccddeeff".parse().unwrap();
        let told =
            |serial: Option<&str>, uuid| Identity { serial: serial.map(Into::into), uuid, ..Identity::default() };
        let board = Mainboard { serial: "S1".into(), uuid: Some(uuid) };
        assert!(!told(Some("S1"), None).is_other(&board));
        assert!(!told(Some("chassis"), Some(uuid)).is_other(&board));
        assert!(!told(None, Some(swapped)).is_other(&board));
        assert!(!told(None, None).is_other(&board));
        assert!(told(Some("S2"), None).is_other(&board));
        assert!(told(Some("S2"), Some(uuid::Uuid::from_u128(7))).is_other(&board));
        assert!(!told(Some("S2"), None).is_other(&Mainboard { serial: String::new(), uuid: Some(uuid) }));
    }

    #[test]
    fn a_sensor_shows_its_value_in_its_unit_and_where_it_warns() {
        let hot = Reading {
            name: "CPU1 Temp".into(),
            kind: SensorKind::Temperature,
            value: Some(91.23456),
            states: Vec::new(),
            severity: Some(Severity::Warning),
            thresholds: Thresholds { upper_warning: Some(90.0), upper_critical: Some(100.0), ..Thresholds::default() },
        };
        let supply = Reading {
            name: "PSU1".into(),
            kind: SensorKind::PowerSupply,
            value: None,
            states: vec!["presence detected".into(), "input lost".into()],
            severity: None,
            thresholds: Thresholds::default(),
        };
        let seen = Seen::Sensors(Sensors { readings: vec![hot, supply], skipped: Vec::new() });
        let ((_, rows), _) = seen.rows();
        assert_eq!(rows[0], ["CPU1 Temp", "91.235 °C", "WARNING", "> 90", "> 100"]);
        assert_eq!(rows[1], ["PSU1", "presence detected, input lost", "-", "-", "-"]);
    }
}
