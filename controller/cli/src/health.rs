//! `rackhand machine health`: how a machine fares, its sensors over time, and what is said against it.

use clap::Subcommand;
use jiff::Timestamp;
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    client::{Client, given_only},
    moment::moment,
    output::{Output, done, print},
    show::{Shown, second, table},
};

/// Columns and lines of a chart.
const WIDE: usize = 60;
const HIGH: usize = 10;

#[derive(Subcommand)]
pub(crate) enum HealthCommand {
    /// Show how a machine fares, why, and what to replace
    #[command(after_help = "  rackhand machine health show web-1
  rackhand machine list --health critical --output wide")]
    Show {
        /// Name or id
        machine: String,
    },
    /// Draw what a sensor read over time
    #[command(after_help = "  rackhand machine health series web-1 'CPU1 Temp'
  rackhand machine health series web-1 'CPU1 Temp' --from 2027-01-01 --output csv

A name that is not there is answered with those that are.")]
    Series {
        /// Name or id
        machine: String,
        /// The sensor, as the BMC calls it
        sensor: String,
        /// From then on; otherwise the day before the end
        #[arg(long, value_name = "TIME", value_parser = moment)]
        from: Option<Timestamp>,
        /// Until then; otherwise now
        #[arg(long, value_name = "TIME", value_parser = moment)]
        to: Option<Timestamp>,
    },
    /// Have a critical machine given out all the same, for a time
    #[command(after_help = "  rackhand machine health override web-1 --reason 'the fan is ordered' --until 2027-01-08

It ends by itself, at most 90 days from now.")]
    Override {
        /// Name or id
        machine: String,
        /// Why
        #[arg(long)]
        reason: String,
        /// Until when
        #[arg(long, value_name = "TIME", value_parser = moment)]
        until: Timestamp,
    },
    /// Take an override back
    Clear {
        /// Name or id
        machine: String,
    },
}

#[derive(Clone, Debug, Deserialize)]
struct Health {
    name: String,
    state: String,
    since: Option<Timestamp>,
    heard: Option<Timestamp>,
    causes: Vec<Cause>,
    #[serde(rename = "override")]
    overridden: Option<Override>,
    transitions: Vec<Transition>,
}

#[derive(Clone, Debug, Deserialize)]
struct Cause {
    rule: String,
    state: String,
    subject: String,
    reading: String,
    since: Timestamp,
    part: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
struct Override {
    reason: String,
    by: String,
    expires: Timestamp,
}

#[derive(Clone, Debug, Deserialize)]
struct Transition {
    at: Timestamp,
    state: String,
    causes: Vec<Cause>,
}

#[derive(Clone, Debug, Deserialize)]
struct Series {
    sensor: String,
    unit: String,
    step: u32,
    points: Vec<Point>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
struct Point {
    at: Timestamp,
    min: f64,
    mean: f64,
    max: f64,
}

pub(crate) async fn run(client: &Client, command: HealthCommand, output: Output) -> anyhow::Result<String> {
    match command {
        HealthCommand::Show { machine } => {
            let value: Value = client.get(&format!("/v1/machines/{machine}/health")).await?;
            print(output, value, |health: Health| page(&health))
        }
        HealthCommand::Series { machine, sensor, from, to } => {
            let time = |time: Option<Timestamp>| time.map(|time| time.to_string());
            let query = given_only([("sensor", Some(sensor)), ("from", time(from)), ("to", time(to))]);
            let value: Value = client.get_with(&format!("/v1/machines/{machine}/health/series"), &query).await?;
            print(output, value, |series: Series| match output {
                Output::Csv => Shown::Table(rows(&series)),
                _ => Shown::Text(chart(&series)),
            })
        }
        HealthCommand::Override { machine, reason, until } => {
            let body = json!({"reason": reason, "expires": until});
            let path = format!("/v1/machines/{machine}/health/override");
            let made = client.ask(Method::PUT, &path, Some(body)).await?;
            print(output, made, |made: Override| {
                format!("{machine} is given out although it is critical, until {}", second(made.expires))
            })
        }
        HealthCommand::Clear { machine } => {
            client.ask(Method::DELETE, &format!("/v1/machines/{machine}/health/override"), None).await?;
            Ok(done(output, format!("{machine} is given out only when it is not critical")))
        }
    }
}

fn page(health: &Health) -> String {
    let since = |time: Option<Timestamp>| time.map_or_else(|| "-".into(), second);
    let mut lines = vec![
        format!("{}  {}", health.name, health.state),
        format!("  since      {}", since(health.since)),
        format!("  last told  {}", since(health.heard)),
    ];
    for cause in &health.causes {
        let Cause { rule, state, subject, reading, since, part } = cause;
        lines.push(format!("  {state:9}  {subject}: {reading}, since {} (rule {rule})", second(*since)));
        lines.extend(part.iter().map(|part| format!("             {part}")));
    }
    if let Some(Override { reason, by, expires }) = &health.overridden {
        lines.push(format!("  OVERRIDE   given out all the same until {}, says {by}: {reason}", second(*expires)));
    }
    if !health.transitions.is_empty() {
        lines.push("Before, the newest first:".into());
    }
    for Transition { at, state, causes } in &health.transitions {
        let named: Vec<_> =
            causes.iter().take(3).map(|cause| format!("{}: {}", cause.subject, cause.reading)).collect();
        lines.push(format!("  {}  {state:8}  {}", second(*at), named.join("; ")).trim_end().to_owned());
    }
    if health.heard.is_none() {
        lines.push(format!("Nobody reads its BMC yet: rackhand bmc set {} --address ADDRESS --user USER", health.name));
    }
    lines.join("\n")
}

fn rows(series: &Series) -> crate::show::Table {
    let number = |value: f64| format!("{:.3}", value).trim_end_matches('0').trim_end_matches('.').to_owned();
    let row = |point: &Point| vec![point.at.to_string(), number(point.min), number(point.mean), number(point.max)];
    table(&["AT", "MIN", "MEAN", "MAX"], series.points.iter().map(row))
}

/// A chart of means, with the lowest and the highest around them.
fn chart(series: &Series) -> String {
    let Series { sensor, unit, step, points } = series;
    let (Some(first), Some(last)) = (points.first(), points.last()) else {
        return format!("nothing was kept of {sensor} in that time");
    };
    let lowest = points.iter().map(|point| point.min).fold(f64::INFINITY, f64::min);
    let highest = points.iter().map(|point| point.max).fold(f64::NEG_INFINITY, f64::max);
    let (begin, end) = (first.at.as_second(), last.at.as_second());
    let width = (end - begin).max(1) as f64;
    let mut columns: Vec<Option<(f64, f64, f64, u32)>> = vec![None; WIDE];
    for point in points {
        let at = ((point.at.as_second() - begin) as f64 / width * (WIDE - 1) as f64).round() as usize;
        let column = columns[at.min(WIDE - 1)].get_or_insert((point.min, 0.0, point.max, 0));
        *column = (column.0.min(point.min), column.1 + point.mean, column.2.max(point.max), column.3 + 1);
    }
    let range = if highest > lowest { highest - lowest } else { 1.0 };
    let line_of = |value: f64| (((value - lowest) / range) * (HIGH - 1) as f64).round() as usize;
    let kind = match step {
        0 => "each reading".to_owned(),
        3600.. => format!("spans of {} h", step / 3600),
        _ => format!("spans of {} min", step / 60),
    };
    let mut lines = vec![format!("{sensor} in {unit}, {kind}: * mean, : lowest to highest")];
    for line in (0..HIGH).rev() {
        let value = lowest + range * line as f64 / (HIGH - 1) as f64;
        let label =
            if line == 0 || line == HIGH - 1 || line == HIGH / 2 { format!("{value:.1}") } else { String::new() };
        let cells: String = columns
            .iter()
            .map(|column| match column {
                Some((_, sum, _, count)) if line_of(sum / f64::from(*count)) == line => '*',
                Some((min, _, max, _)) if (line_of(*min)..=line_of(*max)).contains(&line) => ':',
                _ => ' ',
            })
            .collect();
        lines.push(format!("{label:>10} |{cells}").trim_end().to_owned());
    }
    lines.push(format!("{:>10} +{}", "", "-".repeat(WIDE)));
    lines.push(format!("{:>12}{}  to  {}", "", second(first.at), second(last.at)));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn a_machine_that_is_critical_says_why_and_what_to_replace() {
        let cause = json!({
            "rule": "fan", "state": "critical", "subject": "FAN2", "reading": "0 rpm, at least 500 rpm",
            "since": "2027-01-01T00:00:00Z", "part": "replace the fan FAN2",
        });
        let health = json!({
            "name": "web-1", "state": "critical", "since": "2027-01-01T00:00:00Z", "heard": "2027-01-01T01:00:00Z",
            "causes": [cause], "override": {"reason": "ordered", "by": "ada", "expires": "2027-01-08T00:00:00Z"},
            "transitions": [{"at": "2027-01-01T00:00:00Z", "state": "critical", "causes": [cause]},
                {"at": "2026-12-01T00:00:00Z", "state": "ok", "causes": []}],
        });
        expect![[r#"
            web-1  critical
              since      2027-01-01T00:00:00Z
              last told  2027-01-01T01:00:00Z
              critical   FAN2: 0 rpm, at least 500 rpm, since 2027-01-01T00:00:00Z (rule fan)
                         replace the fan FAN2
              OVERRIDE   given out all the same until 2027-01-08T00:00:00Z, says ada: ordered
            Before, the newest first:
              2027-01-01T00:00:00Z  critical  FAN2: 0 rpm, at least 500 rpm
              2026-12-01T00:00:00Z  ok"#]]
        .assert_eq(&page(&serde_json::from_value(health).unwrap()));
    }

    #[test]
    fn a_chart_shows_means_between_the_lowest_and_the_highest() {
        let point = |hour: i64| {
            let mean = 40.0 + (hour % 12) as f64;
            let at = Timestamp::from_second(1_800_000_000 + hour * 3600).unwrap();
            Point { at, min: mean - 2.0, mean, max: mean + 2.0 }
        };
        let series =
            Series { sensor: "CPU1".into(), unit: "°C".into(), step: 3600, points: (0..60).map(point).collect() };
        let drawn = chart(&series);
        assert_eq!(drawn.lines().count(), HIGH + 3, "{drawn}");
        assert!(drawn.lines().all(|line| line.chars().count() <= WIDE + 12), "{drawn}");
        assert_eq!(drawn.matches('*').count(), 60 + 1, "each mean once, and the heading's:\n{drawn}");
        let flat = Series { points: vec![point(0)], ..series.clone() };
        assert!(chart(&flat).contains('*'));
        assert!(chart(&Series { points: Vec::new(), ..series }).starts_with("nothing was kept"));
    }
}
