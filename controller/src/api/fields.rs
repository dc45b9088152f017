//! `fields=`: as much of an answer as its reader asks for, on every GET that is answered with
//! JSON.
//!
//! Which names there are is known from the API's own document: one that is not there is refused
//! like any other field that is wrong.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use axum::{
    body::Body,
    extract::{MatchedPath, Request, State},
    http::{Method, StatusCode, Uri, header, uri::PathAndQuery},
    middleware::Next,
    response::{IntoResponse, Response},
};
use serde_json::Value;
use utoipa::openapi::OpenApi;

use super::Error;

/// Its name in a query.
pub(super) const PARAMETER: &str = "fields";

/// Fields that may be asked for at once.
const MOST: usize = 64;

/// The most levels of one: `inventory.disks.serial` has three.
const DEEPEST: usize = 8;

/// The longest answer that is cut down, in bytes: a page of 200 machines with all their parts has
/// a tenth of it.
const LONGEST: usize = 16 << 20;

/// What is asked for: nothing below a name is all below it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted(BTreeMap<String, Wanted>);

impl Wanted {
    /// Of `id,name,inventory.cpu`.
    fn read(text: &str) -> Result<Self, Error> {
        let mut wanted = Self::default();
        if text.split(',').count() > MOST {
            return Err(Error::invalid(PARAMETER, format!("at most {MOST} fields")));
        }
        for field in text.split(',') {
            let names: Vec<_> = field.trim().split('.').collect();
            if names.iter().any(|name| name.is_empty()) || names.len() > DEEPEST {
                return Err(Error::invalid(PARAMETER, format!("`{field}` is no field; write them as in id,cpu.cores")));
            }
            wanted.add(&names);
        }
        Ok(wanted)
    }

    /// A field within one that is wanted whole adds nothing.
    fn add(&mut self, names: &[&str]) {
        let Some((name, below)) = names.split_first() else {
            self.0.clear();
            return;
        };
        match self.0.get_mut(*name) {
            Some(whole) if whole.0.is_empty() => {}
            Some(part) => part.add(below),
            None => {
                let mut part = Self::default();
                if !below.is_empty() {
                    part.add(below);
                }
                self.0.insert((*name).to_owned(), part);
            }
        }
    }

    /// Leaves of a thing, or of each in a list, what is wanted.
    fn keep(&self, value: &mut Value) {
        match value {
            _ if self.0.is_empty() => {}
            Value::Array(things) => things.iter_mut().for_each(|thing| self.keep(thing)),
            Value::Object(fields) => {
                fields.retain(|name, _| self.0.contains_key(name));
                for (name, value) in fields {
                    self.0[name].keep(value);
                }
            }
            _ => {}
        }
    }
}

/// What each path's GET is answered with.
#[derive(Debug)]
pub(super) struct Shapes {
    document: Value,
    /// The schema of the thing, and whether it comes in pages.
    answers: HashMap<String, (Value, bool)>,
}

impl Shapes {
    /// Those in an OpenAPI document.
    pub(super) fn of(document: &OpenApi) -> Self {
        let document = serde_json::to_value(document).expect("documents always serialize");
        let mut shapes = Self { document, answers: HashMap::new() };
        let paths = shapes.document["paths"].as_object().cloned().unwrap_or_default();
        for (path, item) in paths {
            let schema = &item["get"]["responses"]["200"]["content"]["application/json"]["schema"];
            if schema.is_null() {
                continue;
            }
            let schema = shapes.resolved(schema);
            let answer = match schema["properties"].get("items") {
                Some(items) if schema["properties"].get("next").is_some() => {
                    (shapes.resolved(&items["items"]).clone(), true)
                }
                _ => (schema.clone(), false),
            };
            shapes.answers.insert(path, answer);
        }
        shapes
    }

    /// The paths whose GET knows the parameter.
    pub(super) fn paths(&self) -> impl Iterator<Item = &str> {
        self.answers.keys().map(String::as_str)
    }

    fn resolved<'a>(&'a self, mut schema: &'a Value) -> &'a Value {
        // Optional things are written as one of nothing and the thing.
        while let Some(next) = schema["$ref"].as_str().map_or_else(
            || schema["oneOf"].as_array().and_then(|of| of.iter().find(|one| one["type"] != "null")),
            |name| self.document.pointer(name.trim_start_matches('#')),
        ) {
            schema = next;
        }
        if schema["type"] == "array" { self.resolved(&schema["items"]) } else { schema }
    }

    /// Fails at a name that no such thing has.
    fn check(&self, wanted: &Wanted, schema: &Value, at: &str) -> Result<(), Error> {
        // What the document says no more of may have anything.
        let Some(known) = schema["properties"].as_object() else { return Ok(()) };
        for (name, below) in &wanted.0 {
            let Some(schema) = known.get(name) else {
                let names: Vec<_> = known.keys().map(String::as_str).collect();
                let detail = format!("there is no `{at}{name}`; there are {}", names.join(", "));
                return Err(Error::invalid(PARAMETER, detail));
            };
            self.check(below, self.resolved(schema), &format!("{at}{name}."))?;
        }
        Ok(())
    }
}

/// Answers a GET with the fields that are asked for.
pub(super) async fn sparse(State(shapes): State<Arc<Shapes>>, mut request: Request, next: Next) -> Response {
    let Some(answer) = (request.method() == Method::GET)
        .then(|| request.extensions().get::<MatchedPath>())
        .flatten()
        .and_then(|path| shapes.answers.get(path.as_str()))
    else {
        return next.run(request).await;
    };
    let (schema, paged) = answer;
    let wanted = match taken_out(request.uri_mut()) {
        Ok(Some(text)) => Wanted::read(&text).and_then(|wanted| {
            shapes.check(&wanted, schema, "")?;
            Ok(wanted)
        }),
        Ok(None) => return next.run(request).await,
        Err(error) => Err(error),
    };
    let wanted = match wanted {
        Ok(wanted) => wanted,
        Err(error) => return error.into_response(),
    };
    let response = next.run(request).await;
    let is_json = response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
    if response.status() != StatusCode::OK || !is_json {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let read = async {
        let bytes = axum::body::to_bytes(body, LONGEST).await.map_err(Error::internal)?;
        let mut value: Value = serde_json::from_slice(&bytes).map_err(Error::internal)?;
        wanted.keep(if *paged { &mut value["items"] } else { &mut value });
        serde_json::to_vec(&value).map_err(Error::internal)
    };
    match read.await {
        Ok(bytes) => {
            parts.headers.remove(header::CONTENT_LENGTH);
            Response::from_parts(parts, Body::from(bytes))
        }
        Err(error) => error.into_response(),
    }
}

/// Takes the parameter out of a query, for handlers refuse what they do not know.
fn taken_out(uri: &mut Uri) -> Result<Option<String>, Error> {
    let query = uri.query().unwrap_or_default();
    let mut given = None;
    let mut rest = Vec::new();
    for pair in query.split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        if name != PARAMETER {
            rest.push(pair);
        } else if given.replace(decoded(value)?).is_some() {
            return Err(Error::invalid(PARAMETER, "once is enough: separate fields by commas"));
        }
    }
    if given.is_some() {
        let separator = if rest.is_empty() { "" } else { "?" };
        let path: PathAndQuery =
            format!("{}{separator}{}", uri.path(), rest.join("&")).parse().map_err(Error::malformed)?;
        let mut parts = std::mem::take(uri).into_parts();
        parts.path_and_query = Some(path);
        *uri = Uri::from_parts(parts).map_err(Error::malformed)?;
    }
    Ok(given)
}

/// A query's value: names, dots and commas, the last of which clients may have escaped.
fn decoded(value: &str) -> Result<String, Error> {
    let text = value.replace("%2C", ",").replace("%2c", ",").replace("%20", " ").replace('+', " ");
    match text.contains('%') {
        true => Err(Error::invalid(PARAMETER, "names of fields, separated by commas")),
        false => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn kept(fields: &str, mut value: Value) -> Value {
        Wanted::read(fields).expect("fields").keep(&mut value);
        value
    }

    #[test]
    fn what_is_asked_for_is_left_at_every_level() {
        let machine = json!({
            "id": 1, "name": "a", "inventory": {"cpu": {"model": "x", "cores": 4}, "disks": [{"serial": "s", "size": 9}]}
        });
        assert_eq!(kept("id", machine.clone()), json!({"id": 1}));
        assert_eq!(
            kept("name, inventory.cpu.cores,inventory.disks.serial", machine.clone()),
            json!({"name": "a", "inventory": {"cpu": {"cores": 4}, "disks": [{"serial": "s"}]}})
        );
        let whole = json!({"inventory": machine["inventory"]});
        assert_eq!(kept("inventory.cpu,inventory", machine.clone()), whole);
        assert_eq!(kept("inventory,inventory.cpu", machine), whole);
    }

    #[test]
    fn what_is_no_list_of_fields_is_refused() {
        for wrong in ["", ",", "id,", ".id", "a..b", "a.b.c.d.e.f.g.h.i", &"a,".repeat(70)] {
            assert!(Wanted::read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_parameter_is_taken_out_of_the_query_alone() {
        let taken = |text: &str| {
            let mut uri: Uri = text.parse().expect("a URI");
            let fields = taken_out(&mut uri).map_err(|_| ());
            (fields, uri.to_string())
        };
        assert_eq!(
            taken("/v1/machines?limit=2&fields=id%2Cname&rack=a%20b"),
            (Ok(Some("id,name".into())), "/v1/machines?limit=2&rack=a%20b".into())
        );
        assert_eq!(taken("https://c:1/v1/runs?fields=id"), (Ok(Some("id".into())), "https://c:1/v1/runs".into()));
        assert_eq!(taken("/v1/runs?limit=2"), (Ok(None), "/v1/runs?limit=2".into()));
        assert_eq!(taken("/v1/runs?fields=a&fields=b").0, Err(()));
        assert_eq!(taken("/v1/runs?fields=a%00").0, Err(()));
    }
}
