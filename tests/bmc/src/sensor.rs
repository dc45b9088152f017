//! Sensors as they read: the conversion between values and bytes (IPMI 2.0 §36.3), the lines that
//! were crossed, and the events that come of it (§42).

use crate::personality::{Kind, Reading, Scale, SensorSpec, Thresholds};

/// A sensor as it reads.
#[derive(Clone, Debug)]
pub struct Sensor {
    /// What it is, with its present reading and thresholds.
    pub spec: SensorSpec,
    /// The number it has over IPMI.
    pub number: u8,
    /// Reads nothing, whatever the machine's power.
    pub is_unavailable: bool,
    /// Whether scanning is on.
    pub is_scanned: bool,
}

/// Something a sensor tells: a line crossed or a state changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Which sensor.
    pub number: u8,
    /// IPMI's code for what it measures.
    pub sensor_type: u8,
    /// Event type code: 0x01 threshold, 0x6F sensor-specific.
    pub event_type: u8,
    /// Whether it is over.
    pub is_over: bool,
    /// Event data 1 to 3.
    pub data: [u8; 3],
}

/// How a sensor stands, worst first told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    /// As it should be.
    Ok,
    /// To be looked at.
    Warning,
    /// To be acted upon.
    Critical,
}

/// The thresholds in the order of their bits: LNC, LC, LNR, UNC, UC, UNR.
pub(crate) fn in_order(thresholds: &Thresholds) -> [Option<f64>; 6] {
    [
        thresholds.lower_warning,
        thresholds.lower_critical,
        thresholds.lower_fatal,
        thresholds.upper_warning,
        thresholds.upper_critical,
        thresholds.upper_fatal,
    ]
}

/// Event offsets of the thresholds in that order: going low for the lower, high for the upper.
const OFFSETS: [u8; 6] = [0, 2, 4, 7, 9, 0x0b];

impl Scale {
    /// The byte that comes nearest to this value.
    pub fn raw(self, value: f64) -> u8 {
        let offset = f64::from(self.b) * 10f64.powi(self.b_exponent.into());
        let raw = ((value / 10f64.powi(self.exponent.into()) - offset) / f64::from(self.m)).round();
        if self.is_signed { raw.clamp(-128.0, 127.0) as i8 as u8 } else { raw.clamp(0.0, 255.0) as u8 }
    }

    /// The value of a byte.
    pub fn value(self, raw: u8) -> f64 {
        let offset = f64::from(self.b) * 10f64.powi(self.b_exponent.into());
        (f64::from(self.m) * f64::from(self.ordinal(raw)) + offset) * 10f64.powi(self.exponent.into())
    }

    /// The byte as a number that compares as its value does.
    pub(crate) fn ordinal(self, raw: u8) -> i16 {
        if self.is_signed { i16::from(raw as i8) } else { i16::from(raw) }
    }
}

impl Kind {
    /// Sensor type code (IPMI 2.0 table 42-3).
    pub fn sensor_type(self) -> u8 {
        match self {
            Kind::Temperature => 0x01,
            Kind::Voltage => 0x02,
            Kind::Current => 0x03,
            Kind::Fan => 0x04,
            Kind::Intrusion => 0x05,
            Kind::Processor => 0x07,
            Kind::PowerSupply => 0x08,
            Kind::Power => 0x0b,
            Kind::Memory => 0x0c,
            Kind::DriveSlot => 0x0d,
        }
    }

    /// Unit code (IPMI 2.0 table 43-15); none for a discrete sensor.
    pub fn unit(self) -> u8 {
        match self {
            Kind::Temperature => 1,
            Kind::Voltage => 4,
            Kind::Current => 5,
            Kind::Power => 6,
            Kind::Fan => 18,
            _ => 0,
        }
    }
}

impl Sensor {
    /// Whether it reads nothing now.
    pub fn reads_nothing(&self, is_on: bool) -> bool {
        self.is_unavailable || !self.is_scanned || self.spec.needs_power && !is_on
    }

    /// Which thresholds the reading is at or past, as bits in their order.
    pub fn crossed(&self) -> u8 {
        let Reading::Analog { value, scale, thresholds } = &self.spec.reading else { return 0 };
        let at = |value: f64| scale.ordinal(scale.raw(value));
        let reading = at(*value);
        let lines = in_order(thresholds).into_iter().enumerate();
        let past = lines.filter(|(bit, line)| {
            line.is_some_and(|line| if *bit < 3 { reading <= at(line) } else { reading >= at(line) })
        });
        past.fold(0, |bits, (bit, _)| bits | 1 << bit)
    }

    /// How it stands.
    pub fn health(&self) -> Health {
        match &self.spec.reading {
            Reading::Analog { .. } => match self.crossed() {
                0 => Health::Ok,
                bits if bits & 0b11_0110 != 0 => Health::Critical,
                _ => Health::Warning,
            },
            Reading::Discrete(states) => {
                let asserted = (0..16).filter(|bit| states & 1 << bit != 0);
                asserted.map(|bit| state_health(self.spec.kind, bit)).max().unwrap_or(Health::Ok)
            }
        }
    }

    /// Has it read another value; what it tells of that.
    pub fn set_value(&mut self, to: f64) -> Vec<Event> {
        let before = self.crossed();
        if let Reading::Analog { value, .. } = &mut self.spec.reading {
            *value = to;
        }
        self.crossings(before)
    }

    /// Draws the lines elsewhere; what it tells of that.
    pub fn set_thresholds(&mut self, to: Thresholds) -> Vec<Event> {
        let before = self.crossed();
        if let Reading::Analog { thresholds, .. } = &mut self.spec.reading {
            *thresholds = to;
        }
        self.crossings(before)
    }

    /// Has it assert other states; what it tells of that.
    pub fn set_states(&mut self, to: u16) -> Vec<Event> {
        let Reading::Discrete(states) = &mut self.spec.reading else { return Vec::new() };
        let changed = *states ^ to;
        *states = to;
        let bits = (0..15u8).filter(|bit| changed & 1 << bit != 0);
        bits.map(|bit| Event {
            number: self.number,
            sensor_type: self.spec.kind.sensor_type(),
            event_type: 0x6f,
            is_over: to & 1 << bit == 0,
            data: [bit, 0xff, 0xff],
        })
        .collect()
    }

    fn crossings(&self, before: u8) -> Vec<Event> {
        let Reading::Analog { value, scale, thresholds } = &self.spec.reading else { return Vec::new() };
        let after = self.crossed();
        let lines = in_order(thresholds).into_iter().enumerate();
        let changed = lines.filter(|(bit, _)| (before ^ after) & 1 << bit != 0);
        changed
            .map(|(bit, line)| Event {
                number: self.number,
                sensor_type: self.spec.kind.sensor_type(),
                event_type: 0x01,
                is_over: after & 1 << bit == 0,
                // Bits 7:4 say that bytes 2 and 3 are the reading and the threshold.
                data: [0x50 | OFFSETS[bit], scale.raw(*value), line.map_or(0xff, |line| scale.raw(line))],
            })
            .collect()
    }
}

/// What a state of a discrete sensor is called (IPMI 2.0 table 42-3).
pub fn state_name(sensor_type: u8, offset: u8) -> &'static str {
    match (sensor_type, offset) {
        (0x05, 0) => "General chassis intrusion",
        (0x07, 0) => "IERR",
        (0x07, 1) => "Thermal trip",
        (0x07, 7) => "Processor presence detected",
        (0x08, 0) => "Presence detected",
        (0x08, 1) => "Power supply failure detected",
        (0x08, 2) => "Predictive failure",
        (0x08, 3) => "Power supply input lost",
        (0x0c, 0) => "Correctable ECC",
        (0x0c, 1) => "Uncorrectable ECC",
        (0x0c, 5) => "Correctable ECC logging limit reached",
        (0x0d, 0) => "Drive presence",
        (0x0d, 1) => "Drive fault",
        (0x0d, 2) => "Predictive failure",
        _ => "State asserted",
    }
}

/// What an event of a threshold is called, by its offset.
pub fn threshold_name(offset: u8) -> &'static str {
    match offset {
        0 => "Lower Non-critical - going low",
        2 => "Lower Critical - going low",
        4 => "Lower Non-recoverable - going low",
        7 => "Upper Non-critical - going high",
        9 => "Upper Critical - going high",
        0x0b => "Upper Non-recoverable - going high",
        _ => "Threshold crossed",
    }
}

/// How bad a state of a discrete sensor is.
pub(crate) fn state_health(kind: Kind, offset: u8) -> Health {
    match (kind, offset) {
        (Kind::PowerSupply | Kind::DriveSlot, 0) | (Kind::Processor, 7) => Health::Ok,
        (Kind::Memory, 0 | 5) | (Kind::PowerSupply | Kind::DriveSlot, 2) => Health::Warning,
        _ => Health::Critical,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::personality::Personality;

    fn sensor(name: &str) -> Sensor {
        let spec = Personality::generic(1).sensors.into_iter().find(|spec| spec.name == name).unwrap();
        Sensor { spec, number: 1, is_unavailable: false, is_scanned: true }
    }

    #[test]
    fn every_byte_is_the_byte_of_its_value() {
        for spec in Personality::generic(1).sensors {
            let Reading::Analog { scale, .. } = spec.reading else { continue };
            for raw in 0..=255 {
                assert_eq!(scale.raw(scale.value(raw)), raw, "{}", spec.name);
            }
        }
    }

    #[test]
    fn a_line_crossed_is_told_once_and_its_end_too() {
        let mut inlet = sensor("Inlet Temp");
        let offsets = |events: Vec<Event>| events.iter().map(|e| (e.data[0] & 15, e.is_over)).collect::<Vec<_>>();
        assert_eq!(offsets(inlet.set_value(43.0)), [(7, false), (9, false)]);
        assert_eq!(inlet.health(), Health::Critical);
        assert_eq!(offsets(inlet.set_value(43.5)), []);
        assert_eq!(offsets(inlet.set_value(40.0)), [(9, true)]);
        assert_eq!(offsets(inlet.set_value(-3.0)), [(0, false), (1 << 1, false), (7, true)]);
    }

    #[test]
    fn a_state_that_changes_is_told() {
        let mut supply = sensor("PS1 Status");
        let events = supply.set_states(0b1001);
        assert_eq!(events.len(), 1);
        assert_eq!((events[0].data[0], events[0].is_over), (3, false));
        assert_eq!(supply.health(), Health::Critical);
    }
}
