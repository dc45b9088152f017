//! Times as people give them.

use jiff::{Timestamp, civil::DateTime, tz::TimeZone};

/// A time of RFC 3339; or a date, or a date and a time of day, of UTC.
pub(crate) fn moment(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    let utc: DateTime = text.parse().map_err(|_| {
        "that is no time: give a date of UTC (2026-11-24), with a time of day (2026-11-24T12:00), or with where that is \
         (2026-11-24T13:00:00+01:00)"
            .to_owned()
    })?;
    TimeZone::UTC.to_timestamp(utc).map_err(|_| "that is further away than times go".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_taken_for_their_beginning_in_utc() {
        for (given, meant) in [
            ("2026-03-01", "2026-03-01T00:00:00Z"),
            ("2026-03-01T12:30", "2026-03-01T12:30:00Z"),
            ("2026-03-01 12:30:15", "2026-03-01T12:30:15Z"),
            ("2026-03-01T12:30:00Z", "2026-03-01T12:30:00Z"),
            ("2026-03-01T12:30:00+01:00", "2026-03-01T11:30:00Z"),
        ] {
            assert_eq!(moment(given), Ok(meant.parse().unwrap()), "{given}");
        }
        for wrong in ["", "yesterday", "2026-13-01", "2026-02-30", "12:30", "1772366400"] {
            let told = moment(wrong).unwrap_err();
            assert!(told.contains("2026-11-24"), "{wrong}: {told}");
        }
        moment("9999-12-31T23:59:59.999999999").unwrap_err();
    }
}
