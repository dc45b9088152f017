use expect_test::{Expect, expect};
use proptest::prelude::*;
use rackhand_common::bmc::{Severity, Thresholds};

use super::*;

fn at(second: u64) -> Now {
    Now {
        mono: Mono(Duration::from_secs(second)),
        wall: Timestamp::from_second(1_800_000_000 + second as i64).unwrap(),
    }
}

fn rules(text: &str) -> Rules {
    Rules::read([("test.toml", text)]).unwrap()
}

fn reading(name: &str, kind: SensorKind, value: Option<f64>, severity: Option<Severity>) -> Reading {
    let thresholds = Thresholds {
        lower_critical: (kind == SensorKind::Fan).then_some(500.0),
        upper_warning: (kind == SensorKind::Temperature).then_some(80.0),
        upper_critical: (kind == SensorKind::Temperature).then_some(90.0),
        ..Thresholds::default()
    };
    Reading { name: name.into(), kind, value, states: Vec::new(), severity, thresholds }
}

fn sensors(readings: Vec<Reading>) -> Sensors {
    Sensors { readings, skipped: Vec::new() }
}

fn entry(id: u32, subject: &str, message: &str) -> LogEntry {
    LogEntry {
        id: id.to_string(),
        at: None,
        severity: None,
        subject: Some(subject.into()),
        message: message.into(),
        is_over: false,
    }
}

/// Second and value of a temperature, one a line; the verdict after each.
fn told(text: &str, steps: &[(u64, Option<f64>)], expected: Expect) {
    let (rules, mut watched) = (rules(text), Watched::new(at(0)));
    let mut lines = String::new();
    for (second, value) in steps {
        let now = sensors(vec![reading("CPU1", SensorKind::Temperature, *value, None)]);
        watched.sensors(&rules, at(*second), Some(Power::On), &now);
        let value = value.map_or("nothing".into(), |value| value.to_string());
        lines += &format!("at {second:3} {value:>7}: {}\n", watched.verdict().unwrap());
    }
    expected.assert_eq(&lines);
}

const HOT: &str = r#"
[[rule]]
name = "hot"
for = "60s"
clear = "120s"
part = "look at {subject}"
reading = { kind = ["temperature"], warning = { above = 80 }, critical = { above = 90 }, slack = 3 }
"#;

#[test]
fn a_line_counts_once_it_was_past_for_as_long_as_the_rule_says_and_until_it_was_well_inside_for_as_long() {
    told(
        HOT,
        &[
            (0, Some(70.0)),
            (60, Some(95.0)),
            (90, Some(79.0)),
            (120, Some(95.0)),
            (180, Some(95.0)),
            (240, Some(88.0)),
            (300, Some(86.0)),
            (360, None),
            (420, Some(86.0)),
            (480, Some(78.0)),
            (540, Some(76.0)),
            (660, Some(76.0)),
        ],
        expect![[r#"
            at   0      70: health is ok
            at  60      95: health is ok
            at  90      79: health is ok
            at 120      95: health is ok
            at 180      95: health is critical: CPU1: 95 °C, at most 90 °C (look at CPU1)
            at 240      88: health is critical: CPU1: 88 °C, at most 80 °C (look at CPU1)
            at 300      86: health is critical: CPU1: 86 °C, at most 80 °C (look at CPU1)
            at 360 nothing: health is critical: CPU1: 86 °C, at most 80 °C (look at CPU1)
            at 420      86: health is warning: CPU1: 86 °C, at most 80 °C (look at CPU1)
            at 480      78: health is warning: CPU1: 78 °C (look at CPU1)
            at 540      76: health is warning: CPU1: 78 °C (look at CPU1)
            at 660      76: health is ok
        "#]],
    );
}

#[test]
fn the_bmc_s_own_lines_and_opinion_count_and_ours_only_hold_longer() {
    let rules = rules("[[rule]]\nname = \"t\"\nreading = { by_bmc = true, slack = 2 }");
    let mut watched = Watched::new(at(0));
    let mut lines = String::new();
    for (second, value, severity) in [
        (0, 50.0, Some(Severity::Ok)),
        (1, 80.0, Some(Severity::Warning)),
        (2, 79.0, Some(Severity::Ok)),
        (3, 77.0, Some(Severity::Ok)),
        (4, 90.0, None),
        (5, 89.0, None),
        (6, 70.0, Some(Severity::Critical)),
        (7, 70.0, Some(Severity::Ok)),
    ] {
        let now = sensors(vec![reading("CPU1", SensorKind::Temperature, Some(value), severity)]);
        watched.sensors(&rules, at(second), None, &now);
        lines += &format!("{value} {severity:?}: {}\n", watched.verdict().unwrap().state);
    }
    expect![[r#"
        50 Some(Ok): ok
        80 Some(Warning): warning
        79 Some(Ok): warning
        77 Some(Ok): ok
        90 None: critical
        89 None: critical
        70 Some(Critical): critical
        70 Some(Ok): ok
    "#]]
    .assert_eq(&lines);
}

#[test]
fn states_of_a_discrete_sensor_are_found_by_their_words() {
    let rules =
        rules("[[rule]]\nname = \"s\"\nreading = { kind = [\"power_supply\"], critical_states = [\"*failure*\"] }");
    let mut watched = Watched::new(at(0));
    let mut supply = reading("PSU1", SensorKind::PowerSupply, None, None);
    supply.states = vec!["presence detected".into(), "failure detected".into()];
    watched.sensors(&rules, at(0), None, &sensors(vec![supply.clone()]));
    assert_eq!(watched.verdict().unwrap().to_string(), "health is critical: PSU1: presence detected, failure detected");
    supply.states.pop();
    watched.sensors(&rules, at(1), None, &sensors(vec![supply]));
    assert_eq!(watched.verdict().unwrap().state, State::Ok);
}

#[test]
fn entries_of_the_log_count_from_the_first_look_on_by_part_and_for_a_while() {
    let rules = rules(
        "[[rule]]\nname = \"ecc\"\npart = \"replace {subject}\"\n\
         log = { message = [\"*ecc*\"], at_least = 3, within = \"1h\", state = \"warning\" }",
    );
    let mut watched = Watched::new(at(0));
    let mut log = Log { entries: (0..9).map(|id| entry(id, "DIMM_A1", "Correctable ECC")).collect(), ..Log::default() };
    watched.sensors(&rules, at(0), None, &sensors(Vec::new()));
    watched.log(&rules, at(0), &log);
    assert_eq!(watched.verdict().unwrap().state, State::Ok, "what was there before is counted");
    log.entries.extend([entry(9, "DIMM_A1", "Correctable ECC"), entry(10, "DIMM_B1", "Correctable ECC")]);
    log.entries.push(LogEntry { is_over: true, ..entry(11, "DIMM_A1", "Correctable ECC") });
    watched.log(&rules, at(600), &log);
    watched.log(&rules, at(660), &log);
    assert_eq!(watched.verdict().unwrap().state, State::Ok, "an entry is counted twice");
    log.entries.extend([entry(12, "DIMM_A1", "Correctable ECC"), entry(13, "DIMM_A1", "Correctable ECC")]);
    watched.log(&rules, at(1200), &log);
    let verdict = watched.verdict().unwrap().to_string();
    assert_eq!(verdict, "health is warning: DIMM_A1: 3 times in the log within 1 h: Correctable ECC (replace DIMM_A1)");
    // Remembered over a restart in which 55 minutes passed.
    let memory = serde_json::to_string(&watched.memory(at(1200))).unwrap();
    let later = Now { mono: Mono(Duration::from_secs(5)), wall: at(1200 + 3300).wall };
    let mut again = Watched::of(serde_json::from_str(&memory).unwrap(), later);
    assert_eq!(again.verdict(), watched.verdict());
    again.log(&rules, later, &log);
    assert_eq!(again.verdict().unwrap().state, State::Ok, "the first of the three is an hour old");
    // The log was cleared.
    log.entries = (0..3).map(|id| entry(id, "DIMM_C1", "Correctable ECC")).collect();
    again.log(&rules, later, &log);
    assert!(again.verdict().unwrap().to_string().contains("DIMM_C1: 3 times"), "{:?}", again.verdict());
}

#[test]
fn what_is_absent_is_found_only_where_it_was_and_while_the_machine_is_on() {
    let rules = rules(
        "[[rule]]\nname = \"gone\"\nwhile_on = true\nabsent = { of = \"sensor\", kind = [\"fan\"], state = \"warning\" }\n\
         [[rule]]\nname = \"bmc\"\nfor = \"60s\"\nabsent = { of = \"bmc\", state = \"unknown\" }",
    );
    let fan = |value| sensors(vec![reading("FAN1", SensorKind::Fan, value, None)]);
    let mut watched = Watched::new(at(0));
    watched.silent(&rules, at(0), "no answer");
    assert_eq!(watched.verdict(), None, "decided before anything was known");
    watched.sensors(&rules, at(1), Some(Power::On), &fan(None));
    assert_eq!(watched.verdict().unwrap().state, State::Ok);
    watched.sensors(&rules, at(2), Some(Power::On), &fan(Some(900.0)));
    watched.sensors(&rules, at(3), Some(Power::Off), &fan(None));
    assert_eq!(watched.verdict().unwrap().state, State::Ok);
    watched.sensors(&rules, at(4), Some(Power::On), &sensors(Vec::new()));
    assert_eq!(watched.verdict().unwrap().to_string(), "health is warning: FAN1: reads nothing");
    watched.silent(&rules, at(5), "no answer");
    watched.silent(&rules, at(65), "no answer");
    assert_eq!(
        watched.verdict().unwrap().to_string(),
        "health is warning: FAN1: reads nothing; BMC: no answer",
        "silence takes what was found away"
    );
    watched.sensors(&rules, at(66), Some(Power::On), &fan(Some(900.0)));
    assert_eq!(watched.verdict().unwrap().state, State::Ok);
}

#[test]
fn a_rule_that_is_gone_takes_what_it_found_along_and_another_sensor_of_a_name_is_told_apart() {
    let hot = rules("[[rule]]\nname = \"hot\"\nreading = { warning = { above = 10 } }");
    let twice = sensors(vec![
        reading("Temp", SensorKind::Temperature, Some(5.0), None),
        reading("Temp", SensorKind::Temperature, Some(50.0), None),
    ]);
    let mut watched = Watched::new(at(0));
    watched.sensors(&hot, at(0), None, &twice);
    assert_eq!(watched.verdict().unwrap().causes[0].subject, "Temp (2)");
    watched.sensors(&rules("[[rule]]\nname = \"other\"\nreading = { warning = { above = 99 } }"), at(1), None, &twice);
    assert_eq!(watched.verdict().unwrap().state, State::Ok);
}

#[test]
fn news_are_what_was_not_told_and_stay_so_until_they_are() {
    let rules = rules("[[rule]]\nname = \"hot\"\nreading = { warning = { above = 10 } }");
    let temperature = |value| sensors(vec![reading("CPU1", SensorKind::Temperature, Some(value), None)]);
    let mut watched = Watched::new(at(0));
    assert_eq!(watched.news(), None);
    watched.sensors(&rules, at(0), None, &temperature(50.0));
    let news = watched.news().unwrap();
    assert_eq!(watched.news(), Some(news.clone()));
    watched.has_told(news);
    watched.sensors(&rules, at(1), None, &temperature(51.0));
    assert_eq!(watched.news(), None, "a reading is no news");
    let mut again = Watched::of(watched.memory(at(1)), at(0));
    assert_eq!(again.news(), None, "told again after a restart");
    again.sensors(&rules, at(2), None, &temperature(5.0));
    assert_eq!(again.news().unwrap().state, State::Ok);
}

proptest! {
    /// However a value jumps, no state is left before its time.
    #[test]
    fn a_latch_changes_only_after_it_was_otherwise_for_long_enough(
        seen in prop::collection::vec((1u64..40, any::<bool>()), 1..200),
        holds in 0u64..100,
        clears in 0u64..100,
    ) {
        let (mut latch, mut now) = (Latch::default(), 0);
        // Since when what is seen is what it is.
        let (mut run, mut last) = (None, None);
        for (step, is_so) in seen {
            now += step;
            if last != Some(is_so) {
                (last, run) = (Some(is_so), Some(now));
            }
            let before = latch.is_on();
            latch.see(at(now).mono, is_so, Duration::from_secs(holds), Duration::from_secs(clears));
            let lasted = now - run.unwrap();
            let needed = if before { clears } else { holds };
            prop_assert_eq!(latch.is_on() != before, is_so != before && lasted >= needed);
        }
    }

    /// Whatever is read, a verdict is as bad as its worst cause, remembered as it is, and bounded.
    #[test]
    fn a_verdict_is_its_worst_cause_and_is_remembered(
        steps in prop::collection::vec(
            (0u8..3, prop::collection::vec((0u8..4, prop::option::of(-50.0f64..150.0)), 0..6), any::<bool>()), 1..30),
    ) {
        let rules = Rules::with(&[]).unwrap();
        let (mut watched, mut second) = (Watched::new(at(0)), 0);
        let mut log = Log::default();
        for (what, values, is_on) in steps {
            second += 90;
            match what {
                0 => {
                    let kinds = [SensorKind::Temperature, SensorKind::Fan];
                    let told = values.iter().map(|(n, value)| {
                        reading(&format!("S{n}"), kinds[usize::from(*n) % 2], *value, None)
                    });
                    let power = if is_on { Power::On } else { Power::Off };
                    watched.sensors(&rules, at(second), Some(power), &sensors(told.collect()));
                }
                1 => {
                    for (n, _) in values {
                        let id = log.entries.len() as u32;
                        log.entries.push(entry(id, &format!("DIMM{n}"), "Uncorrectable ECC"));
                    }
                    watched.log(&rules, at(second), &log);
                }
                _ => watched.silent(&rules, at(second), "no answer"),
            }
            if let Some(verdict) = watched.verdict() {
                let worst = verdict.causes.iter().map(|cause| cause.state).max().unwrap_or(State::Ok);
                prop_assert_eq!(verdict.state, worst);
                let memory = serde_json::to_string(&watched.memory(at(second))).unwrap();
                let again = Watched::of(serde_json::from_str(&memory).unwrap(), at(second));
                prop_assert_eq!(again.verdict(), Some(verdict));
            }
        }
    }
}
