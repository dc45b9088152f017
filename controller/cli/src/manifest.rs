//! Manifests of BMCs as vendors and people write them: CSV (RFC 4180) with a line of names, or JSON.
//!
//! Invariant: a wrong line is named by its number, and nothing of the file is used.

use anyhow::{Context as _, bail, ensure};
use serde_json::{Map, Value, json};

/// What a row can say.
const NAMES: [&str; 7] = ["machine", "serial", "address", "protocol", "user", "password", "fingerprint"];

/// What every row has to say.
const NEEDED: [&str; 3] = ["address", "user", "password"];

/// The rows of a manifest, each with its `line`, as the controller takes them.
pub(crate) fn rows(text: &str) -> anyhow::Result<Vec<Value>> {
    let text = text.trim_start_matches('\u{feff}');
    if text.trim_start().starts_with(['[', '{']) { of_json(text) } else { of_csv(text) }
}

fn of_json(text: &str) -> anyhow::Result<Vec<Value>> {
    let all: Vec<Map<String, Value>> = serde_json::from_str(text).context("it is no JSON list of objects")?;
    all.into_iter()
        .zip(1u32..)
        .map(|(row, number)| checked(row, number).with_context(|| format!("object {number}")))
        .collect()
}

fn of_csv(text: &str) -> anyhow::Result<Vec<Value>> {
    let mut records =
        records(text)?.into_iter().filter(|(_, fields)| fields.iter().any(|field| !field.trim().is_empty()));
    let (_, names) = records.next().context("it is empty: its first line has the names")?;
    let names: Vec<String> = names.iter().map(|name| name.trim().to_ascii_lowercase()).collect();
    for needed in NEEDED {
        ensure!(
            names.iter().any(|name| name == needed),
            "its first line has no `{needed}`; the names are {}",
            NAMES.join(",")
        );
    }
    let row = |(line, fields): (u32, Vec<String>)| {
        let of_line = || format!("line {line}");
        if fields.len() != names.len() {
            bail!("line {line}: {} fields, and {} names in the first line", fields.len(), names.len());
        }
        let row = names.iter().cloned().zip(fields.into_iter().map(Value::from)).collect();
        checked(row, line).with_context(of_line)
    };
    records.map(row).collect()
}

/// A row without what is empty, and with its line.
fn checked(mut row: Map<String, Value>, line: u32) -> anyhow::Result<Value> {
    row.retain(|_, value| !value.is_null() && value.as_str() != Some(""));
    for (name, value) in &row {
        ensure!(NAMES.contains(&name.as_str()), "`{name}` is not known; the names are {}", NAMES.join(","));
        ensure!(value.is_string(), "`{name}` is no text");
    }
    for needed in NEEDED {
        ensure!(row.contains_key(needed), "`{needed}` is missing");
    }
    row.insert("line".to_owned(), json!(line));
    Ok(Value::Object(row))
}

/// The records of a CSV text, each with the number of the line it begins in.
fn records(text: &str) -> anyhow::Result<Vec<(u32, Vec<String>)>> {
    let (mut records, mut fields, mut field) = (Vec::new(), Vec::new(), String::new());
    let (mut line, mut began, mut is_quoted) = (1u32, 1u32, false);
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        line += u32::from(letter == '\n');
        match letter {
            '"' if is_quoted && letters.peek() == Some(&'"') => {
                letters.next();
                field.push('"');
            }
            '"' if is_quoted => is_quoted = false,
            '"' if field.is_empty() => is_quoted = true,
            ',' if !is_quoted => fields.push(std::mem::take(&mut field)),
            '\r' if !is_quoted && letters.peek() == Some(&'\n') => {}
            '\n' if !is_quoted => {
                fields.push(std::mem::take(&mut field));
                records.push((began, std::mem::take(&mut fields)));
                began = line;
            }
            letter => field.push(letter),
        }
    }
    ensure!(!is_quoted, "line {began}: a quotation mark is not closed");
    if !field.is_empty() || !fields.is_empty() {
        fields.push(field);
        records.push((began, fields));
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_and_json_say_the_same() {
        let csv =
            "serial,machine,address,user,password\r\n7G1,,10.0.0.5,root,\"cal,\"\"vin\"\r\n\n,web-1,10.0.0.6,root,x\n";
        let told = json!([
            {"serial": "7G1", "address": "10.0.0.5", "user": "root", "password": "cal,\"vin", "line": 2},
            {"machine": "web-1", "address": "10.0.0.6", "user": "root", "password": "x", "line": 4},
        ]);
        assert_eq!(json!(rows(csv).unwrap()), told);
        let mut written = told;
        for row in written.as_array_mut().unwrap() {
            row.as_object_mut().unwrap().remove("line");
        }
        assert_eq!(rows(&written.to_string()).unwrap().len(), 2);
    }

    #[test]
    fn a_wrong_line_is_named() {
        let why = |text: &str| format!("{:#}", rows(text).unwrap_err());
        assert_eq!(why("address,user,password\n10.0.0.5,root\n"), "line 2: 2 fields, and 3 names in the first line");
        assert_eq!(why("address,user,password\n10.0.0.5,root,x\n10.0.0.6,,x"), "line 3: `user` is missing");
        assert!(why("address,user\n").contains("no `password`"));
        assert!(why("address,user,password\n1,\"2,3\n").contains("line 2: a quotation mark"));
        assert!(
            why("[{\"address\": \"a\", \"user\": \"u\", \"password\": 5}]").contains("object 1: `password` is no text")
        );
        assert!(why("[{\"colour\": \"a\"}]").contains("`colour` is not known"));
        assert!(why("").contains("empty"));
    }
}
