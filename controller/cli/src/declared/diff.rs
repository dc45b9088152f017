//! What is to be done, for people: each object with the lines that differ.

use std::fmt::Write as _;

use super::{
    changes::{Action, Change},
    object::Object,
};
use crate::show::Surface;

const GREEN: &str = "32";
const RED: &str = "31";
const YELLOW: &str = "33";
const DIM: &str = "2";

/// All of it, and how much it is.
pub(crate) fn shown(changes: &[Change], surface: &Surface) -> String {
    if changes.iter().all(|change| change.action == Action::Keep) {
        return match changes.len() {
            1 => "nothing to do: the one object is as it is declared".into(),
            all => format!("nothing to do: all {all} objects are as they are declared"),
        };
    }
    let mut text = String::new();
    for change in changes {
        let (word, colour) = match &change.action {
            Action::Create => ("create", GREEN),
            Action::Change => ("change", YELLOW),
            Action::Keep => ("unchanged", DIM),
            Action::Remove => ("remove", RED),
            Action::Leave(_) => ("left", DIM),
            Action::Refuse(_) => ("CANNOT CHANGE", RED),
        };
        let mut head = format!("{word} {}", change.object());
        if let (Some(at), false) = (&change.at, change.action == Action::Keep) {
            let _ = write!(head, "  ({at})");
        }
        match &change.action {
            Action::Leave(why) => head = format!("{head}: {why}"),
            Action::Refuse(why) => head = format!("{head}: {why}"),
            _ => {}
        }
        text += &surface.paint(&head, Some(colour));
        text.push('\n');
        if change.action == Action::Keep || matches!(change.action, Action::Leave(_)) {
            continue;
        }
        let (before, after) = (lines(change.before.as_ref()), lines(change.after.as_ref()));
        for (mark, line) in differences(&before, &after) {
            let line = format!("  {mark} {line}");
            let colour = match mark {
                '+' => Some(GREEN),
                '-' => Some(RED),
                _ => None,
            };
            text += &surface.paint(line.trim_end(), colour);
            text.push('\n');
        }
    }
    let count = |of: fn(&Action) -> bool| changes.iter().filter(|change| of(&change.action)).count();
    let counts = [
        (count(|action| *action == Action::Create), "to create"),
        (count(|action| *action == Action::Change), "to change"),
        (count(|action| *action == Action::Remove), "to remove"),
        (count(|action| matches!(action, Action::Refuse(_))), "that cannot be changed so"),
        (count(|action| *action == Action::Keep), "unchanged"),
    ];
    let told = counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}"));
    text + &told.collect::<Vec<_>>().join(", ")
}

/// An object as YAML.
fn lines(object: Option<&Object>) -> Vec<String> {
    let text = object.map(|object| serde_saphyr::to_string(&object).unwrap_or_default()).unwrap_or_default();
    // The first names its kind, and the others are indented below it.
    text.lines().skip(1).map(|line| line.strip_prefix("  ").unwrap_or(line).to_owned()).collect()
}

/// All lines, with `-` those that only the first has, with `+` those that only the second has: as
/// few of them as there can be.
fn differences<'a>(before: &'a [String], after: &'a [String]) -> Vec<(char, &'a str)> {
    // How many lines the ends behind two places have in common at most.
    let mut common = vec![vec![0usize; after.len() + 1]; before.len() + 1];
    for (i, old) in before.iter().enumerate().rev() {
        for (j, new) in after.iter().enumerate().rev() {
            common[i][j] = if old == new { common[i + 1][j + 1] + 1 } else { common[i + 1][j].max(common[i][j + 1]) };
        }
    }
    let (mut i, mut j, mut lines) = (0, 0, Vec::new());
    while i < before.len() || j < after.len() {
        match (before.get(i), after.get(j)) {
            (Some(old), Some(new)) if old == new => {
                lines.push((' ', old.as_str()));
                (i, j) = (i + 1, j + 1);
            }
            (Some(old), new) if new.is_none() || common[i + 1][j] >= common[i][j + 1] => {
                lines.push(('-', old.as_str()));
                i += 1;
            }
            (_, Some(new)) => {
                lines.push(('+', new.as_str()));
                j += 1;
            }
            (_, None) => break,
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::declared::{Form, Live, parse, plan};

    fn changes(there: &str, files: &str) -> Vec<Change> {
        let live = parse("live", Form::Yaml, there).unwrap().into_iter().map(|one| Live {
            path: one.object.kind().path().to_owned(),
            object: one.object,
            tag: None,
            stays: None,
        });
        plan(&parse("lab.yaml", Form::Yaml, files).unwrap(), &live.collect::<Vec<_>>(), true).unwrap()
    }

    #[test]
    fn every_object_is_shown_with_the_lines_that_differ() {
        let there = "site: [{name: fra1}, {name: old}]
vrf: {name: default}
pool: {name: p4, kind: private, vrf: default, quarantine_minutes: 60, purpose: '', prefixes: [10.9.0.0/24]}
";
        let files = "site: {name: fra1}
---
pool: {name: p4, kind: private, quarantine_minutes: 5, prefixes: [10.9.0.0/24, 10.9.1.0/24]}
---
plan: {name: large, rules: {threads: 2, disks: [{count: 2, kind: nvme}]}}
";
        let changes = changes(there, files);
        expect![[r#"
            unchanged site fra1
            change pool p4  (lab.yaml, document 2)
                name: p4
                kind: private
                vrf: default
              - quarantine_minutes: 60
              + quarantine_minutes: 5
                purpose: ""
                prefixes:
                - 10.9.0.0/24
              + - 10.9.1.0/24
            create plan large  (lab.yaml, document 3)
              + name: large
              + rules:
              +   threads: 2
              +   disks:
              +   - count: 2
              +     kind: nvme
            left vrf default: the API removes none of its kind
            remove site old
              - name: old
            1 to create, 1 to change, 1 to remove, 1 unchanged"#]]
        .assert_eq(&shown(&changes, &Surface::default()));
        let coloured = shown(&changes[1..2], &Surface { width: None, colour: true });
        expect![[r#"
            ^[33mchange pool p4  (lab.yaml, document 2)^[0m
                name: p4
                kind: private
                vrf: default
            ^[31m  - quarantine_minutes: 60^[0m
            ^[32m  + quarantine_minutes: 5^[0m
                purpose: ""
                prefixes:
                - 10.9.0.0/24
            ^[32m  + - 10.9.1.0/24^[0m
            1 to change"#]]
        .assert_eq(&coloured.replace('\x1b', "^"));
    }

    #[test]
    fn nothing_to_do_is_one_line() {
        let same = "site: [{name: fra1}, {name: ams1}]";
        expect!["nothing to do: all 2 objects are as they are declared"]
            .assert_eq(&shown(&changes(same, same), &Surface::default()));
    }
}
