//! Sensors: the Sensors collection and the subsystems of today, the Thermal and Power of before
//! (DSP0268 Sensor, ThermalSubsystem, PowerSubsystem, EnvironmentMetrics, Thermal, Power).
//!
//! Invariant: of each chassis, a kind of sensor is read in one schema only, the newer one.

use std::collections::HashSet;

use crate::{
    bmc::BmcError,
    told::{MAX_ITEMS, Reading, SensorKind, Sensors, Thresholds, text},
};

use super::{
    Redfish,
    link::Link,
    resource::{Node, Resource},
    walk::{Walk, keep},
};

/// Joules in a kilowatt-hour.
const JOULES_PER_KILOWATT_HOUR: f64 = 3.6e6;

/// A sensor of the Sensors collection.
pub fn sensor(node: Node<'_>) -> Option<Reading> {
    let kind = kind(node);
    let lines = node.at("Thresholds");
    let line = |name: &str| lines.at(name).number("Reading");
    let mut reading = Reading {
        thresholds: Thresholds {
            lower_warning: line("LowerCaution"),
            lower_critical: line("LowerCritical").or_else(|| line("LowerFatal")),
            upper_warning: line("UpperCaution"),
            upper_critical: line("UpperCritical").or_else(|| line("UpperFatal")),
        },
        ..plain(node, kind)?
    };
    reading.value = value(node, node.number("Reading"));
    if node.word("ReadingType") == Some("EnergykWh") || node.word("ReadingUnits") == Some("kW.h") {
        reading.value = reading.value.map(|hours| hours * JOULES_PER_KILOWATT_HOUR);
    }
    Some(reading)
}

/// What a sensor measures: by its type, else by its unit.
fn kind(node: Node<'_>) -> SensorKind {
    let unit = node.word("ReadingUnits").unwrap_or_default();
    let is_fan = node.word("PhysicalContext") == Some("Fan");
    match (node.word("ReadingType").unwrap_or_default(), unit) {
        ("Temperature", _) | ("", "Cel") => SensorKind::Temperature,
        ("Rotational" | "Percent" | "", "%" | "Percent") if is_fan => SensorKind::FanPercent,
        ("Rotational", "%" | "Percent") => SensorKind::FanPercent,
        ("Rotational", _) | ("", "RPM") => SensorKind::Fan,
        ("Voltage", _) | ("", "V") => SensorKind::Voltage,
        ("Current", _) | ("", "A") => SensorKind::Current,
        ("Power", _) | ("", "W") => SensorKind::Power,
        ("EnergyJoules" | "EnergykWh", _) | ("", "J" | "kW.h") => SensorKind::Energy,
        ("Percent" | "Humidity", _) | ("", "%") => SensorKind::Percent,
        _ => SensorKind::Other,
    }
}

/// A reading of this kind with a name and a severity, and nothing read.
fn plain(node: Node<'_>, kind: SensorKind) -> Option<Reading> {
    Some(Reading {
        name: node.first_text(&["Name", "FanName", "DeviceName", "MemberId", "Id"])?,
        kind,
        value: None,
        states: Vec::new(),
        severity: node.severity(),
        thresholds: Thresholds::default(),
    })
}

/// What is read, when there is something to read.
fn value(node: Node<'_>, number: Option<f64>) -> Option<f64> {
    number.filter(|_| {
        !matches!(node.at("Status").word("State"), Some("Absent" | "Disabled" | "UnavailableOffline" | "Deferring"))
    })
}

/// Something that is there or not, and well or not.
fn discrete(node: Node<'_>, kind: SensorKind) -> Option<Reading> {
    let mut reading = plain(node, kind)?;
    reading.states.extend(node.at("Status").text("State"));
    Some(reading)
}

/// The lines of the older schemas.
fn old_thresholds(node: Node<'_>) -> Thresholds {
    let line = |name: &str| node.number(name);
    Thresholds {
        lower_warning: line("LowerThresholdNonCritical"),
        lower_critical: line("LowerThresholdCritical").or_else(|| line("LowerThresholdFatal")),
        upper_warning: line("UpperThresholdNonCritical"),
        upper_critical: line("UpperThresholdCritical").or_else(|| line("UpperThresholdFatal")),
    }
}

/// What the older Thermal says: temperatures and fans.
pub fn thermal(thermal: Node<'_>) -> Vec<Reading> {
    let temperatures = thermal.items("Temperatures").filter_map(|node| {
        let reading = plain(node, SensorKind::Temperature)?;
        Some(Reading { value: value(node, node.number("ReadingCelsius")), thresholds: old_thresholds(node), ..reading })
    });
    let fans = thermal.items("Fans").filter_map(|node| {
        let is_percent = node.first_text(&["ReadingUnits", "Units"]).is_some_and(|unit| unit == "Percent");
        let kind = if is_percent { SensorKind::FanPercent } else { SensorKind::Fan };
        let number = node.number("Reading").or_else(|| node.number("ReadingRPM"));
        let reading = plain(node, kind)?;
        Some(Reading { value: value(node, number), thresholds: old_thresholds(node), ..reading })
    });
    temperatures.chain(fans).collect()
}

/// What the older Power says: watts, volts and power supplies.
pub fn power(power: Node<'_>) -> Vec<Reading> {
    let control = power.items("PowerControl").filter_map(|node| {
        let reading = plain(node, SensorKind::Power)?;
        Some(Reading { value: value(node, node.number("PowerConsumedWatts")), ..reading })
    });
    let voltages = power.items("Voltages").filter_map(|node| {
        let reading = plain(node, SensorKind::Voltage)?;
        Some(Reading { value: value(node, node.number("ReadingVolts")), thresholds: old_thresholds(node), ..reading })
    });
    let supplies = power.items("PowerSupplies").filter_map(|node| discrete(node, SensorKind::PowerSupply));
    control.chain(voltages).chain(supplies).collect()
}

/// What the EnvironmentMetrics or ThermalMetrics of something say, called by its name.
pub fn metrics(of: &str, metrics: Node<'_>) -> Vec<Reading> {
    let excerpts = [
        ("TemperatureCelsius", SensorKind::Temperature, 1.0),
        ("HumidityPercent", SensorKind::Percent, 1.0),
        ("PowerWatts", SensorKind::Power, 1.0),
        ("EnergyJoules", SensorKind::Energy, 1.0),
        ("EnergykWh", SensorKind::Energy, JOULES_PER_KILOWATT_HOUR),
    ];
    let single = excerpts.into_iter().filter_map(|(name, kind, factor)| {
        let value = metrics.at(name).number("Reading")? * factor;
        Some((text(&format!("{of} {name}"))?, kind, value))
    });
    let named = |node: Node<'_>, kind| {
        Some((node.first_text(&["DeviceName", "PhysicalContext"])?, kind, node.number("Reading")?))
    };
    let temperatures =
        metrics.items("TemperatureReadingsCelsius").filter_map(|node| named(node, SensorKind::Temperature));
    let fans = metrics.items("FanSpeedsPercent").filter_map(|node| named(node, SensorKind::FanPercent));
    let found = single.chain(temperatures).chain(fans);
    found
        .map(|(name, kind, value)| Reading {
            name,
            kind,
            value: Some(value),
            states: Vec::new(),
            severity: None,
            thresholds: Thresholds::default(),
        })
        .collect()
}

/// What a fan of ThermalSubsystem says.
pub fn fan(node: Node<'_>) -> Option<Reading> {
    let speed = node.at("SpeedPercent");
    match (speed.number("SpeedRPM"), speed.number("Reading")) {
        (Some(rpm), _) => Some(Reading { value: value(node, Some(rpm)), ..plain(node, SensorKind::Fan)? }),
        (None, percent) => Some(Reading { value: value(node, percent), ..plain(node, SensorKind::FanPercent)? }),
    }
}

impl Redfish {
    pub(super) async fn read_sensors(&self) -> Result<Sensors, BmcError> {
        let service = self.service().await?;
        let mut walk = self.walk(&service);
        let mut readings = Vec::new();
        for link in &service.chassis {
            if readings.len() >= MAX_ITEMS {
                walk.skip(link, "this and what follows: it has too many sensors");
                break;
            }
            let Some(chassis) = walk.read(link).await? else { continue };
            keep(&mut readings, of_chassis(&chassis, &mut walk).await?);
        }
        Ok(Sensors { readings, skipped: walk.skipped })
    }
}

async fn of_chassis(chassis: &Resource, walk: &mut Walk<'_>) -> Result<Vec<Reading>, BmcError> {
    use SensorKind::{Fan, FanPercent, Power, PowerSupply, Temperature, Voltage};
    let node = chassis.node();
    let mut readings = Vec::new();
    for sensor_resource in walk.members_at(node, "Sensors").await? {
        match sensor(sensor_resource.node()) {
            Some(reading) => keep(&mut readings, [reading]),
            None => walk.skip(&sensor_resource.link, "a sensor without a name"),
        }
    }
    let has = |readings: &[Reading], kinds: &[SensorKind]| readings.iter().any(|r| kinds.contains(&r.kind));
    if let Some(subsystem) = walk.follow(node, "ThermalSubsystem").await? {
        if !has(&readings, &[Fan, FanPercent]) {
            let fans = walk.members_at(subsystem.node(), "Fans").await?;
            keep(&mut readings, fans.iter().filter_map(|resource| fan(resource.node())));
        }
        if !has(&readings, &[Temperature])
            && let Some(found) = walk.follow(subsystem.node(), "ThermalMetrics").await?
        {
            keep(&mut readings, metrics(chassis.link.name(), found.node()));
        }
    }
    if let Some(subsystem) = walk.follow(node, "PowerSubsystem").await? {
        let supplies = walk.members_at(subsystem.node(), "PowerSupplies").await?;
        keep(&mut readings, supplies.iter().filter_map(|supply| discrete(supply.node(), PowerSupply)));
    }
    if !has(&readings, &[Power])
        && let Some(found) = walk.follow(node, "EnvironmentMetrics").await?
    {
        let known: HashSet<SensorKind> = readings.iter().map(|reading| reading.kind).collect();
        let found = metrics(chassis.link.name(), found.node());
        keep(&mut readings, found.into_iter().filter(|reading| !known.contains(&reading.kind)));
    }
    for (name, kinds, parse) in [
        ("Thermal", &[Temperature, Fan, FanPercent][..], thermal as fn(Node<'_>) -> Vec<Reading>),
        ("Power", &[Power, Voltage, PowerSupply], power),
    ] {
        let is_told = |kind: SensorKind, readings: &[Reading]| match kind {
            Fan | FanPercent => has(readings, &[Fan, FanPercent]),
            kind => has(readings, &[kind]),
        };
        if kinds.iter().all(|kind| is_told(*kind, &readings)) {
            continue;
        }
        let place: Option<Link> = node.link(name);
        if let Some(old) = match place {
            Some(place) => walk.read(&place).await?,
            None => None,
        } {
            let found = parse(old.node());
            let fresh: Vec<Reading> = found.into_iter().filter(|found| !is_told(found.kind, &readings)).collect();
            keep(&mut readings, fresh);
        }
    }
    Ok(readings)
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::{super::resource::tests::any_json, *};

    fn check(readings: impl IntoIterator<Item = Reading>, expected: Expect) {
        let lines = readings.into_iter().map(|reading| {
            let Thresholds { lower_warning, lower_critical, upper_warning, upper_critical } = reading.thresholds;
            let lines = [lower_critical, lower_warning, upper_warning, upper_critical];
            let lines = lines.map(|line| line.map_or("-".to_owned(), |line| line.to_string())).join(" ");
            let Reading { name, kind, value, states, severity, .. } = reading;
            format!("{name}: {kind:?} {value:?} {states:?} {severity:?} [{lines}]\n")
        });
        expected.assert_eq(&lines.collect::<String>());
    }

    fn sensors(raw: Value) -> Vec<Reading> {
        Node(Some(&json!({ "Members": raw }))).items("Members").filter_map(sensor).collect()
    }

    #[test]
    fn sensors_of_openbmc_are_read() {
        check(
            sensors(json!([
                {"Id": "temperature_CPU1", "Name": "CPU1", "Reading": 44.5, "ReadingType": "Temperature", "ReadingUnits": "Cel",
                 "Status": {"Health": "OK", "State": "Enabled"},
                 "Thresholds": {"UpperCaution": {"Reading": 85.0}, "UpperCritical": {"Reading": 90.0}, "LowerCaution": null}},
                {"Id": "fantach_FAN1", "Name": "FAN1", "Reading": 4200, "ReadingType": "Rotational", "ReadingUnits": "RPM",
                 "Status": {"Health": "Critical", "State": "Enabled"}},
                {"Id": "fanpwm_PWM1", "Name": "PWM1", "Reading": 31.4, "ReadingType": "Percent", "ReadingUnits": "%", "PhysicalContext": "Fan"},
                {"Id": "energy", "Name": "Energy", "Reading": 2, "ReadingType": "EnergykWh", "ReadingUnits": "kW.h"},
                {"Id": "absent", "Name": "DIMM9", "Reading": 0, "ReadingType": "Temperature", "Status": {"State": "Absent", "Health": null}},
                {"Name": null, "Id": null, "Reading": 3}, {"Id": "odd", "Reading": "3", "ReadingType": 5}
            ])),
            expect![[r#"
                CPU1: Temperature Some(44.5) [] Some(Ok) [- - 85 90]
                FAN1: Fan Some(4200.0) [] Some(Critical) [- - - -]
                PWM1: FanPercent Some(31.4) [] None [- - - -]
                Energy: Energy Some(7200000.0) [] None [- - - -]
                DIMM9: Temperature None [] None [- - - -]
                odd: Other None [] None [- - - -]
            "#]],
        );
    }

    #[test]
    fn thermal_and_power_of_ilo_are_read() {
        let told = json!({
            "Temperatures": [
                {"MemberId": "0", "Name": "01-Inlet Ambient", "ReadingCelsius": 21, "UpperThresholdCritical": 42, "UpperThresholdFatal": 47,
                 "Status": {"Health": "OK", "State": "Enabled"}},
                {"MemberId": "1", "Name": "15-PCI", "ReadingCelsius": 0, "Status": {"State": "Absent"}}, null],
            "Fans": [{"MemberId": "0", "Name": "Fan 1", "Reading": 22, "ReadingUnits": "Percent", "Status": {"Health": "OK", "State": "Enabled"}},
                     {"MemberId": "1", "FanName": "Fan 2", "ReadingRPM": 2200}, "no"]});
        check(
            thermal(Node(Some(&told))),
            expect![[r#"
            01-Inlet Ambient: Temperature Some(21.0) [] Some(Ok) [- - - 42]
            15-PCI: Temperature None [] None [- - - -]
            Fan 1: FanPercent Some(22.0) [] Some(Ok) [- - - -]
            Fan 2: Fan Some(2200.0) [] None [- - - -]
        "#]],
        );
        let told = json!({
            "PowerControl": [{"MemberId": "0", "PowerConsumedWatts": 184}],
            "Voltages": {"not": "an array"},
            "PowerSupplies": [{"Name": "HpeServerPowerSupply", "Status": {"Health": "OK", "State": "Enabled"}},
                              {"Name": "Bay 2", "Status": {"Health": "Warning", "State": "UnavailableOffline"}}]});
        check(
            power(Node(Some(&told))),
            expect![[r#"
            0: Power Some(184.0) [] None [- - - -]
            HpeServerPowerSupply: PowerSupply None ["Enabled"] Some(Ok) [- - - -]
            Bay 2: PowerSupply None ["UnavailableOffline"] Some(Warning) [- - - -]
        "#]],
        );
    }

    #[test]
    fn excerpts_of_the_subsystems_are_read() {
        let told = json!({
            "TemperatureSummaryCelsius": {"Internal": {"Reading": 39}},
            "TemperatureReadingsCelsius": [{"Reading": 24, "DeviceName": "Intake"}, {"Reading": null, "DeviceName": "x"}],
            "PowerWatts": {"Reading": 374, "DataSourceUri": "/redfish/v1/Chassis/1U/Sensors/TotalPower"},
            "EnergykWh": {"Reading": 1.5}});
        check(
            metrics("1U", Node(Some(&told))),
            expect![[r#"
            1U PowerWatts: Power Some(374.0) [] None [- - - -]
            1U EnergykWh: Energy Some(5400000.0) [] None [- - - -]
            Intake: Temperature Some(24.0) [] None [- - - -]
        "#]],
        );
        let told =
            json!({"Name": "Bay 1", "SpeedPercent": {"Reading": 45, "SpeedRPM": 2200}, "Status": {"Health": "OK"}});
        check(
            fan(Node(Some(&told))),
            expect![[r#"
            Bay 1: Fan Some(2200.0) [] Some(Ok) [- - - -]
        "#]],
        );
    }

    proptest! {
        #[test]
        fn no_json_makes_the_readers_panic(json in any_json()) {
            let node = Node(Some(&json));
            let _ = (sensor(node), thermal(node), power(node), metrics("x", node), fan(node));
        }
    }
}
