//! What sensors read: Get Sensor Reading (IPMI 2.0 §35.14), Get Sensor Thresholds (§35.9), the
//! conversion of readings (§36.3) and their units (§43.17).

use super::{
    packet::{Malformed, Reader, Request},
    sdr::{Raw, Sensor},
    states,
};
use crate::told::{Reading, SensorKind, Severity, Thresholds};

/// How a reading becomes a value: `y = L[(M·x + B·10^K1)·10^K2]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// The three bytes that say the unit.
    pub units: [u8; 3],
    /// L (table 43-1, byte 24).
    pub linearization: u8,
    /// M.
    pub m: i16,
    /// B.
    pub b: i16,
    /// K2.
    pub result_exponent: i8,
    /// K1.
    pub b_exponent: i8,
}

impl Scale {
    /// The value of a reading, in the BMC's unit; absent when it is not finite, or when the
    /// sensor's factors differ from reading to reading.
    pub fn value(&self, raw: u8) -> Option<f64> {
        let x = match self.units[0] >> 6 {
            0 => f64::from(raw),
            // One's complement: minus zero is zero.
            1 if raw & 0x80 != 0 => -f64::from(!raw),
            1 => f64::from(raw),
            2 => f64::from(raw.cast_signed()),
            _ => return None,
        };
        let power = |exponent: i8| 10_f64.powi(exponent.into());
        let linear = (f64::from(self.m) * x + f64::from(self.b) * power(self.b_exponent)) * power(self.result_exponent);
        let value = match self.linearization {
            0x00 => linear,
            0x01 => linear.ln(),
            0x02 => linear.log10(),
            0x03 => linear.log2(),
            0x04 => linear.exp(),
            0x05 => 10_f64.powf(linear),
            0x06 => linear.exp2(),
            0x07 => linear.recip(),
            0x08 => linear.powi(2),
            0x09 => linear.powi(3),
            0x0a => linear.sqrt(),
            0x0b => linear.cbrt(),
            _ => return None,
        };
        value.is_finite().then_some(value)
    }

    /// The value in the unit of its kind.
    fn told(&self, raw: u8, kind: SensorKind) -> Option<f64> {
        let value = self.value(raw)?;
        Some(match (kind, self.units[1]) {
            (SensorKind::Temperature, FAHRENHEIT) => (value - 32.0) / 1.8,
            (SensorKind::Temperature, KELVIN) => value - 273.15,
            _ => value,
        })
    }
}

const FAHRENHEIT: u8 = 0x02;
const KELVIN: u8 = 0x03;
const FAN: u8 = 0x04;

/// What a sensor measures: by its unit when it has values, by its type otherwise.
pub fn kind(sensor: &Sensor) -> SensorKind {
    let Some(scale) = sensor.scale else { return states::kind(sensor.kind) };
    let [how, base, _] = scale.units;
    let is_percent = how & 0x01 != 0;
    let is_rate_or_product = how & 0x3e != 0;
    match base {
        _ if is_percent && sensor.kind == FAN => SensorKind::FanPercent,
        _ if is_percent => SensorKind::Percent,
        // Revolutions are per minute already; some BMCs say so twice.
        0x12 => SensorKind::Fan,
        _ if is_rate_or_product => SensorKind::Other,
        0x01 | FAHRENHEIT | KELVIN => SensorKind::Temperature,
        0x04 => SensorKind::Voltage,
        0x05 => SensorKind::Current,
        0x06 => SensorKind::Power,
        0x07 => SensorKind::Energy,
        _ => SensorKind::Other,
    }
}

/// Asks what a sensor reads.
pub fn reading(sensor: &Sensor) -> Request {
    Request { lun: sensor.lun, ..Request::new(0x04, 0x2d, &[sensor.number]) }
}

/// Asks for a sensor's thresholds.
pub fn thresholds(sensor: &Sensor) -> Request {
    Request { lun: sensor.lun, ..Request::new(0x04, 0x27, &[sensor.number]) }
}

/// Reads a sensor's thresholds.
pub fn read_thresholds(data: &[u8]) -> Result<Raw, Malformed> {
    let mut reader = Reader::new(data);
    let readable = reader.u8()?;
    Ok(Raw::of(readable, reader.array()?))
}

/// Reads what a sensor reads. Nothing that it says counts while it is not scanned.
pub fn read_reading(sensor: &Sensor, data: &[u8]) -> Result<Reading, Malformed> {
    let mut reader = Reader::new(data);
    let [raw, flags] = reader.array()?;
    let asserted = u16::from_le_bytes([reader.u8().unwrap_or(0), reader.u8().unwrap_or(0)]);
    let is_there = flags & 0x20 == 0 && flags & 0x40 != 0;
    let is_told = data.len() > 2;
    let mut told = absent(sensor);
    if !is_there {
        return Ok(told);
    }
    told.value = sensor.scale.and_then(|scale| scale.told(raw, told.kind));
    if sensor.has_thresholds() {
        told.severity = is_told.then(|| compared(asserted));
    } else {
        let states = states::states(sensor.reading, sensor.kind, asserted & 0x7fff);
        told.severity = states.iter().map(|state| state.severity).max().unwrap_or(Some(Severity::Ok));
        told.states = states.into_iter().map(|state| state.words.into_owned()).collect();
    }
    Ok(told)
}

/// A sensor that reads nothing just now.
pub fn absent(sensor: &Sensor) -> Reading {
    let kind = kind(sensor);
    Reading {
        name: sensor.name.clone(),
        kind,
        value: None,
        states: Vec::new(),
        severity: None,
        thresholds: lines(sensor, kind),
    }
}

fn lines(sensor: &Sensor, kind: SensorKind) -> Thresholds {
    let Some(scale) = sensor.scale else { return Thresholds::default() };
    let [lnc, lc, lnr, unc, uc, unr] = sensor.thresholds.0.map(|raw| raw.and_then(|raw| scale.told(raw, kind)));
    Thresholds { lower_warning: lnc, lower_critical: lc.or(lnr), upper_warning: unc, upper_critical: uc.or(unr) }
}

/// What comparing with thresholds comes to (table 35-14).
fn compared(asserted: u16) -> Severity {
    match asserted {
        asserted if asserted & 0b11_0110 != 0 => Severity::Critical,
        asserted if asserted & 0b00_1001 != 0 => Severity::Warning,
        _ => Severity::Ok,
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    const PLAIN: Scale = Scale { units: [0, 1, 0], linearization: 0, m: 1, b: 0, result_exponent: 0, b_exponent: 0 };

    fn sensor(scale: Option<Scale>, kind: u8, reading: u8) -> Sensor {
        Sensor {
            owner: 0x20,
            lun: 0,
            number: 1,
            name: "a".to_owned(),
            kind,
            reading,
            scale,
            thresholds: Raw([Some(10), Some(5), None, Some(80), None, Some(95)]),
        }
    }

    #[test]
    fn readings_are_scaled_and_linearised() {
        let check = |scale: Scale, raw: u8| match scale.value(raw) {
            Some(value) => format!("{value:.4}\n"),
            None => "none\n".to_owned(),
        };
        let mut seen = String::new();
        seen += &check(Scale { m: 2, b: -5, b_exponent: 1, ..PLAIN }, 100);
        seen += &check(Scale { m: 61, result_exponent: -3, units: [0, 4, 0], ..PLAIN }, 200);
        seen += &check(Scale { units: [0x80, 1, 0], ..PLAIN }, 0xfe);
        seen += &check(Scale { units: [0x40, 1, 0], ..PLAIN }, 0xfe);
        for linearization in 0..=0x0c {
            seen += &check(Scale { linearization, ..PLAIN }, 3);
        }
        seen += &check(Scale { linearization: 7, ..PLAIN }, 0);
        expect![[r#"
            150.0000
            12.2000
            -2.0000
            -1.0000
            3.0000
            1.0986
            0.4771
            1.5850
            20.0855
            1000.0000
            8.0000
            0.3333
            9.0000
            27.0000
            1.7321
            1.4422
            none
            none
        "#]]
        .assert_eq(&seen);
    }

    #[test]
    fn a_temperature_is_told_in_celsius() {
        let fahrenheit = Scale { units: [0, FAHRENHEIT, 0], ..PLAIN };
        assert_eq!(fahrenheit.told(212, SensorKind::Temperature), Some(100.0));
    }

    #[test]
    fn a_sensor_that_is_not_scanned_reads_nothing() {
        let sensor = sensor(Some(PLAIN), 1, 1);
        assert_eq!(read_reading(&sensor, &[42, 0xc0, 0xc0]).unwrap().value, Some(42.0));
        assert_eq!(read_reading(&sensor, &[42, 0xe0, 0xc0]).unwrap().value, None);
        assert_eq!(read_reading(&sensor, &[42, 0x80, 0xc0]).unwrap().value, None);
        assert!(read_reading(&sensor, &[42]).is_err());
    }

    #[test]
    fn the_worst_line_crossed_is_the_severity() {
        let sensor = sensor(Some(PLAIN), 1, 1);
        let severity = |asserted| read_reading(&sensor, &[42, 0xc0, asserted]).unwrap().severity;
        assert_eq!(severity(0xc0), Some(Severity::Ok));
        assert_eq!(severity(0xc8), Some(Severity::Warning));
        assert_eq!(severity(0xd8), Some(Severity::Critical));
        assert_eq!(read_reading(&sensor, &[42, 0xc0]).unwrap().severity, None);
        let lines = read_reading(&sensor, &[42, 0xc0]).unwrap().thresholds;
        assert_eq!((lines.lower_critical, lines.upper_critical), (Some(5.0), Some(95.0)));
    }

    #[test]
    fn a_discrete_sensor_has_states() {
        let supply = read_reading(&sensor(None, 0x08, 0x6f), &[0, 0xc0, 0x03, 0x80]).unwrap();
        assert_eq!(supply.states, ["Presence detected", "Power Supply Failure detected"]);
        assert_eq!((supply.kind, supply.severity), (SensorKind::PowerSupply, Some(Severity::Critical)));
    }
}
