//! What is printed, and how: for people, or for programs; and what is asked on a terminal.

use std::io::{IsTerminal as _, Write as _};

use anyhow::Context as _;
use clap::ValueEnum;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    client::view,
    show::{Shown, Surface, csv_line},
};

/// In which form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people; on a terminal, as wide as that
    Table,
    /// The same with every column, whole
    Wide,
    /// What the API answers
    Json,
    /// The same as YAML
    Yaml,
    /// For spreadsheets: every column
    Csv,
    /// Only what other commands call it, one a line
    Name,
}

impl Output {
    /// Whether a person reads it.
    pub(crate) fn is_for_people(self) -> bool {
        matches!(self, Self::Table | Self::Wide)
    }
}

/// The API's answer in the form that is asked for; `shown` is what people see of it.
pub(crate) fn print<T: DeserializeOwned, S: Into<Shown>>(
    output: Output,
    value: Value,
    shown: impl FnOnce(T) -> S,
) -> anyhow::Result<String> {
    print_on(&Surface::present(), output, value, shown)
}

fn print_on<T: DeserializeOwned, S: Into<Shown>>(
    surface: &Surface,
    output: Output,
    value: Value,
    shown: impl FnOnce(T) -> S,
) -> anyhow::Result<String> {
    match output {
        Output::Table => Ok(shown(view(value)?).into().on(surface)),
        Output::Wide => Ok(shown(view(value)?).into().wide(surface)),
        Output::Json => Ok(serde_json::to_string_pretty(&value)?),
        Output::Yaml => Ok(serde_saphyr::to_string(&value)?.trim_end().to_owned()),
        Output::Csv => match shown(view(value.clone())?).into() {
            Shown::Table(table) => Ok(table.csv()),
            Shown::Text(_) => Ok(csv(&value)),
        },
        Output::Name => Ok(names(&value).join("\n")),
    }
}

/// What people are told of something that is answered with nothing.
pub(crate) fn done(output: Output, what: String) -> String {
    if output.is_for_people() { what } else { String::new() }
}

/// What other commands call these things.
pub(crate) fn names(value: &Value) -> Vec<String> {
    match value {
        Value::Array(all) => all.iter().flat_map(names).collect(),
        Value::Object(fields) => {
            // A claim's name is its holder's; addresses tell one from another.
            let claim = fields.contains_key("pool") && fields.contains_key("prefix");
            let known = if claim { &["prefix"][..] } else { &["name", "id", "number", "pool"] };
            let text = |field: &&str| match fields.get(*field)? {
                Value::String(text) if !text.is_empty() => Some(text.clone()),
                Value::Number(number) => Some(number.to_string()),
                _ => None,
            };
            known.iter().find_map(text).into_iter().collect()
        }
        _ => Vec::new(),
    }
}

/// The fields of one thing: their names, and what is in them.
fn csv(value: &Value) -> String {
    let fields = value.as_object().into_iter().flatten();
    let (header, row): (Vec<_>, Vec<_>) = fields
        .map(|(name, value)| match value {
            Value::Null => (name.clone(), String::new()),
            Value::String(text) => (name.clone(), text.clone()),
            value => (name.clone(), value.to_string()),
        })
        .unzip();
    [csv_line(&header), csv_line(&row)].join("\n")
}

/// Lets a person think again; a program has to say `--yes`.
pub(crate) fn confirm(what: &str) -> anyhow::Result<()> {
    anyhow::ensure!(std::io::stdin().is_terminal(), "{what} Say --yes if that is meant.");
    let _ = write!(std::io::stderr(), "{what} Go on? [y/N] ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    anyhow::ensure!(matches!(answer.trim(), "y" | "Y" | "yes"), "nothing was changed");
    Ok(())
}

pub(crate) fn read(path: &std::path::Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde::Deserialize;
    use serde_json::json;

    use super::*;
    use crate::show::table;

    #[derive(Deserialize)]
    struct Thing {
        name: String,
        state: String,
        note: String,
    }

    fn things() -> Value {
        json!([
            {"id": "1", "name": "web-1", "state": "failed", "note": "a chunk, \"7\", never had the right digest"},
            {"id": "2", "name": "db-1", "state": "done", "note": ""},
        ])
    }

    fn shown(things: Vec<Thing>) -> Shown {
        let rows = things.into_iter().map(|thing| vec![thing.name, thing.state, thing.note]);
        table(&["NAME", "STATE", "NOTE"], rows).shorten(&["NOTE"]).only_wide(&["STATE"]).into()
    }

    fn on(width: usize, output: Output) -> String {
        print_on(&Surface { width: Some(width), colour: false }, output, things(), shown).unwrap()
    }

    #[test]
    fn one_answer_has_a_form_for_everybody() {
        let all = [Output::Table, Output::Wide, Output::Json, Output::Yaml, Output::Csv, Output::Name];
        let text = all.map(|output| format!("{output:?}\n{}\n", on(30, output))).concat();
        expect![[r#"
            Table
            NAME   NOTE
            web-1  a chunk, "7", never ha…
            db-1
            Wide
            NAME   STATE   NOTE
            web-1  failed  a chunk, "7", never had the right digest
            db-1   done
            Json
            [
              {
                "id": "1",
                "name": "web-1",
                "note": "a chunk, \"7\", never had the right digest",
                "state": "failed"
              },
              {
                "id": "2",
                "name": "db-1",
                "note": "",
                "state": "done"
              }
            ]
            Yaml
            - id: "1"
              name: web-1
              note: a chunk, "7", never had the right digest
              state: failed
            - id: "2"
              name: db-1
              note: ""
              state: done
            Csv
            name,state,note
            web-1,failed,"a chunk, ""7"", never had the right digest"
            db-1,done,
            Name
            web-1
            db-1
        "#]]
        .assert_eq(&text);
    }

    #[test]
    fn one_thing_is_two_lines_of_csv_and_called_what_commands_take() {
        let claim = json!({"id": "1", "name": "vpn", "pool": "public-4", "prefix": "198.51.100.17/32", "until": null});
        expect![[r#"
            id,name,pool,prefix,until
            1,vpn,public-4,198.51.100.17/32,"#]]
        .assert_eq(&csv(&claim));
        assert_eq!(names(&claim), ["198.51.100.17/32"]);
        assert_eq!(names(&json!({"id": "1", "kind": "deploy"})), ["1"]);
    }
}
