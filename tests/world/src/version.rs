//! Processes of the next version, made of this one: they write what this version does not know.
//! In their JSON stores every structure has a field more, and some of their events are of a kind
//! that came with them. Whether this version understands is decided by its own codec and its
//! own reading of stores.

use std::{fmt, fs, path::Path};

use anyhow::Result;
use rackhand_common::{
    event::{Event, What},
    wire::{self, Malformed},
};
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition, TableHandle as _, WriteTransaction};
use serde::{Serialize, Serializer, ser::SerializeStruct as _};
use serde_json::{Value, json};

/// A version of the product.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// The one that is tested.
    #[default]
    This,
    /// The one after it.
    Next,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::This { "this version" } else { "the next version" })
    }
}

/// How the text begins of an event that stands for a kind of the next version.
pub const LATER: &str = "later ";

/// The events as this version's codec reads what a process of the next one sends.
pub fn read(events: &[Event]) -> Result<Vec<Event>, Malformed> {
    wire::decode(&wire::encode(&events.iter().map(Sent).collect::<Vec<_>>()))
}

/// The events as the next version knows them: all of them are notes to it.
pub fn known(mut events: Vec<Event>) -> Vec<Event> {
    for event in &mut events {
        if let What::TicketRefused { reason } = &mut event.what
            && let Some(note) = reason.strip_prefix(LATER)
        {
            *reason = note.to_owned();
        }
    }
    events
}

fn is_later(what: &What) -> Option<&str> {
    match what {
        What::TicketRefused { reason } => reason.strip_prefix(LATER),
        _ => None,
    }
}

/// An event on its way from a process of the next version.
struct Sent<'a>(&'a Event);

/// The codec writes a kind as its number: one that no version has reached.
const LATER_KIND: u32 = 250;

/// A kind of event that this version does not have.
struct Later<'a>(&'a str);

impl Serialize for Sent<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Event { at, machine, what } = self.0;
        let mut event = serializer.serialize_struct("Event", 3)?;
        event.serialize_field("at", at)?;
        event.serialize_field("machine", machine)?;
        match is_later(what) {
            Some(text) => event.serialize_field("what", &Later(text))?,
            None => event.serialize_field("what", what)?,
        }
        event.end()
    }
}

impl Serialize for Later<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_newtype_variant("What", LATER_KIND, "later", self.0)
    }
}

/// Has a store of this version be as the next one would have left it; how many of its values are.
pub fn raise(store: &Database) -> Result<usize> {
    let names: Vec<_> = store.begin_read()?.list_tables()?.map(|table| table.name().to_owned()).collect();
    let (tx, mut raised) = (store.begin_write()?, 0);
    for name in names {
        raised += match name.as_str() {
            "spool_events" => raise_table::<u64>(&tx, &name)?,
            "timelines" => raise_table::<(u128, u64)>(&tx, &name)?,
            "ledger_commands" | "tickets" | "installers" => raise_table::<u128>(&tx, &name)?,
            // The others hold numbers.
            _ => 0,
        }
    }
    tx.commit()?;
    Ok(raised)
}

/// As [`raise`], of a file; nothing where there is none.
pub fn raise_file(path: &Path) -> Result<usize> {
    let Ok(bytes) = fs::read(path) else { return Ok(0) };
    let mut value = serde_json::from_slice(&bytes)?;
    raise_value(&mut value);
    fs::write(path, serde_json::to_vec(&value)?)?;
    Ok(1)
}

fn raise_table<K>(tx: &WriteTransaction, name: &str) -> Result<usize>
where
    K: redb::Key + for<'a> redb::Value<SelfType<'a> = K> + Copy + 'static,
{
    let mut table = tx.open_table(TableDefinition::<K, &[u8]>::new(name))?;
    let mut raised = Vec::new();
    for row in table.iter()? {
        let (key, bytes) = row?;
        let mut value: Value = serde_json::from_slice(bytes.value())?;
        raise_value(&mut value);
        raised.push((key.value(), serde_json::to_vec(&value)?));
    }
    for (key, bytes) in &raised {
        table.insert(key, bytes.as_slice())?;
    }
    Ok(raised.len())
}

/// Adds a field that this version does not know to every structure, and has every event that
/// stands for a later kind be of one. An object of one field is left as it is: it may be the kind
/// of an enum with what belongs to it. So is a duration, whose form is the standard library's.
pub fn raise_value(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            let reason = fields.get("ticket_refused").and_then(|refused| refused["reason"].as_str());
            if let Some(text) = reason.and_then(|reason| reason.strip_prefix(LATER)) {
                *value = json!({ "later": text });
                return;
            }
            fields.values_mut().for_each(raise_value);
            let is_ours = !(fields.contains_key("secs") && fields.contains_key("nanos"));
            if fields.len() > 1 && is_ours {
                fields.insert("came_later".into(), json!({ "of": [1, "next"] }));
            }
        }
        Value::Array(values) => values.iter_mut().for_each(raise_value),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use rackhand_common::machine::Power;

    use super::*;

    fn event(what: What) -> Event {
        Event { at: jiff::Timestamp::UNIX_EPOCH, machine: None, what }
    }

    #[test]
    fn this_version_reads_what_it_knows_and_tells_what_came_later() {
        let known = vec![event(What::Power(Power::On)), event(What::TicketRefused { reason: "note".into() })];
        assert_eq!(read(&known).unwrap(), known);
        let later = event(What::TicketRefused { reason: "later note".into() });
        assert!(matches!(read(&[known[0].clone(), later.clone()]), Err(Malformed::Unknown(_))));
        assert_eq!(super::known(vec![later.clone()]), [known[1].clone()]);
        let mut stored = serde_json::to_value(&later).unwrap();
        raise_value(&mut stored);
        assert_eq!(stored["what"], json!({ "later": "note" }));
        assert!(serde_json::from_value::<Event>(stored).is_err());
    }
}
