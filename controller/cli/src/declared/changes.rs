//! What has to be done until a controller has what files say, and in which order.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::{
    object::{Aggregate, Object, Person, ProofState, Rack, Source},
    read::{Declared, Origin},
};

/// An object that the controller has.
#[derive(Clone, Debug)]
pub(crate) struct Live {
    pub(crate) object: Object,
    /// Where the API has it.
    pub(crate) path: String,
    /// The tag of the version that was read; none when it was read in a list, or has none.
    pub(crate) tag: Option<String>,
    /// Why it stays when no file has it.
    pub(crate) stays: Option<&'static str>,
}

/// What is done about an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// It is not there yet.
    Create,
    /// It is not what a file says.
    Change,
    /// It is what a file says.
    Keep,
    /// No file has it.
    Remove,
    /// No file has it, and it stays: why.
    Leave(&'static str),
    /// It is not what a file says, and cannot become that: why.
    Refuse(String),
}

/// One object, and what is done about it.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) action: Action,
    /// As the controller has it.
    pub(crate) before: Option<Object>,
    /// As it is to be.
    pub(crate) after: Option<Object>,
    /// Where it was declared.
    pub(crate) at: Option<Origin>,
    /// What the API is asked for, one after the other.
    pub(crate) requests: Vec<Request>,
    /// Where it is read, with its tag.
    pub(crate) path: Option<String>,
    /// The tag of the version that was looked at.
    pub(crate) tag: Option<String>,
}

/// Something that the API is asked for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Request {
    pub(crate) verb: Verb,
    pub(crate) path: String,
    pub(crate) body: Value,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Post,
    Patch,
    Delete,
}

impl Change {
    /// What it is about.
    pub(crate) fn object(&self) -> &Object {
        self.after.as_ref().or(self.before.as_ref()).expect("a change is of something")
    }

    /// Whether something is to be done.
    pub(crate) fn is_one(&self) -> bool {
        !self.requests.is_empty()
    }

    /// The object that it waits for in vain, of those with which something went wrong.
    pub(crate) fn held_by<'a>(&self, failed: &'a [Object]) -> Option<&'a Object> {
        let object = self.after.as_ref()?;
        failed.iter().find(|failed| object.needs(failed))
    }
}

/// What has to be done, in its order: an object comes behind those that it names, and what is
/// removed goes last, in front of what it names. Fails when a file says something twice.
pub(crate) fn plan(declared: &[Declared], live: &[Live], prune: bool) -> anyhow::Result<Vec<Change>> {
    let key = |object: &Object| (object.kind(), object.name());
    let there: HashMap<_, _> = live.iter().map(|live| (key(&live.object), live)).collect();
    let mut seen = HashMap::new();
    let mut changes = Vec::new();
    for Declared { object, at } in declared {
        if let Some(before) = seen.insert(key(object), at) {
            anyhow::bail!("{object} is declared twice: in {before}, and in {at}");
        }
        changes.push(match there.get(&key(object)) {
            Some(live) => changed(object, live, at),
            None => Change {
                action: Action::Create,
                before: None,
                after: Some(object.clone()),
                at: Some(at.clone()),
                requests: vec![Request {
                    verb: Verb::Post,
                    path: object.kind().path().to_owned(),
                    body: object.body(),
                }],
                path: None,
                tag: None,
            },
        });
    }
    changes.sort_by_key(|change| change.object().kind());
    let mut removed: Vec<_> = live.iter().filter(|live| prune && !seen.contains_key(&key(&live.object))).collect();
    removed.sort_by_key(|live| std::cmp::Reverse(live.object.kind()));
    changes.extend(removed.into_iter().map(|live| {
        let stays = match live.object.kind().can_be_removed() {
            true => live.stays,
            false => Some("the API removes none of its kind"),
        };
        let remove = Request { verb: Verb::Delete, path: live.path.clone(), body: Value::Null };
        Change {
            action: stays.map_or(Action::Remove, Action::Leave),
            before: Some(live.object.clone()),
            after: None,
            at: None,
            requests: if stays.is_none() { vec![remove] } else { Vec::new() },
            path: Some(live.path.clone()),
            tag: live.tag.clone(),
        }
    }));
    Ok(changes)
}

fn changed(declared: &Object, live: &Live, at: &Origin) -> Change {
    let after = declared.over(&live.object);
    let (action, requests) = match requests(&live.object, &after, &live.path) {
        _ if after == live.object => (Action::Keep, Vec::new()),
        Ok(requests) => (Action::Change, requests),
        Err(why) => (Action::Refuse(why), Vec::new()),
    };
    Change {
        action,
        before: Some(live.object.clone()),
        after: Some(after),
        at: Some(at.clone()),
        requests,
        path: Some(live.path.clone()),
        tag: live.tag.clone(),
    }
}

/// What makes of one object the other; or why nothing does.
fn requests(before: &Object, after: &Object, path: &str) -> Result<Vec<Request>, String> {
    let patch = |body: Value| Request { verb: Verb::Patch, path: path.to_owned(), body };
    let post = |below: &str, body: Value| Request { verb: Verb::Post, path: format!("{path}/{below}"), body };
    let fixed = |what: &str| Err(format!("its {what} cannot be changed: remove it and make it anew"));
    match (before, after) {
        (Object::Rack(Rack { network: old, .. }), Object::Rack(Rack { network: new, .. })) if old != new => {
            Err("its network cannot be changed: its machines have their addresses in it".into())
        }
        (Object::Rack(_), Object::Rack(Rack { site, .. })) => Ok(vec![patch(json!({"site": site}))]),
        (Object::Person(_), Object::Person(Person { email, .. })) => Ok(vec![patch(json!({"email": email}))]),
        (Object::Aggregate(Aggregate { source: old, .. }), Object::Aggregate(Aggregate { source: new, .. })) => {
            match (old, new) {
                (Source::Customer { name, proof }, Source::Customer { name: new_name, proof: new })
                    if name == new_name && proof.kind == new.kind =>
                {
                    let state = new.state.unwrap_or(ProofState::Pending);
                    Ok(vec![post("proof", json!({"state": state, "reference": new.reference}))])
                }
                _ => fixed("source"),
            }
        }
        (Object::Pool(old), Object::Pool(new)) => {
            for (what, differs) in [
                ("kind", old.kind != new.kind),
                ("VRF", old.vrf != new.vrf),
                ("rack", old.rack != new.rack),
                ("site", old.site != new.site),
                ("blocks for projects", old.blocks != new.blocks),
            ] {
                if differs {
                    return fixed(what);
                }
            }
            if let Some(gone) = old.prefixes.iter().find(|prefix| !new.prefixes.contains(prefix)) {
                return Err(format!("a pool keeps its prefixes: {gone} cannot be taken from it"));
            }
            let mut requests = Vec::new();
            let mut body = Map::new();
            if old.quarantine_minutes != new.quarantine_minutes {
                body.insert("quarantine_minutes".into(), json!(new.quarantine_minutes));
            }
            if old.purpose != new.purpose {
                body.insert("purpose".into(), json!(new.purpose));
            }
            if old.grants != new.grants {
                body.insert("grants".into(), json!(new.grants));
            }
            if !body.is_empty() {
                requests.push(patch(body.into()));
            }
            let more: Vec<_> = new.prefixes.iter().filter(|prefix| !old.prefixes.contains(prefix)).collect();
            if !more.is_empty() {
                requests.push(post("prefixes", json!({"prefixes": more})));
            }
            Ok(requests)
        }
        (Object::Plan(old), Object::Plan(new)) => {
            let mut body = Map::new();
            if old.description != new.description {
                body.insert("description".into(), json!(new.description));
            }
            if old.rules != new.rules {
                body.insert("rules".into(), json!(new.rules));
            }
            Ok(vec![patch(body.into())])
        }
        // Whatever else there is of them tells one from another.
        _ => Ok(Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;
    use crate::declared::{Form, parse};

    fn live(text: &str) -> Vec<Live> {
        let all = parse("live", Form::Yaml, text).unwrap().into_iter().map(|one| one.object);
        all.enumerate()
            .map(|(number, object)| Live {
                path: format!("{}/{number}", object.kind().path()),
                object,
                tag: Some("\"1\"".into()),
                stays: None,
            })
            .collect()
    }

    fn check(there: &str, files: &str, prune: bool, expected: Expect) {
        let declared = parse("f", Form::Yaml, files).unwrap();
        let told: String = match plan(&declared, &live(there), prune) {
            Ok(changes) => changes
                .iter()
                .map(|change| {
                    let mut text = format!("{:?} {}\n", change.action, change.object());
                    for Request { verb, path, body } in &change.requests {
                        text += &format!("  {verb:?} {path} {body}\n");
                    }
                    text
                })
                .collect(),
            Err(error) => format!("{error}\n"),
        };
        expected.assert_eq(&told);
    }

    const NETWORK: &str = "network: {node: 10.77.0.1/24, delegated: [10.77.0.100, 10.77.0.199]}";

    #[test]
    fn what_is_named_comes_first() {
        let files = format!(
            "binding: {{person: ada, role: viewer, scope: {{kind: rack, name: lab}}}}
pool: {{name: p4, kind: private, prefixes: [10.9.0.0/16]}}
rack: {{name: lab, site: fra1, {NETWORK}}}
---
project: {{name: shop, organisation: acme}}
aggregate: {{prefix: 10.0.0.0/8, source: private}}
---
person: {{name: ada}}
organisation: {{name: acme}}
site: [{{name: fra1}}, {{name: default}}]
"
        );
        check(
            "site: {name: default}",
            &files,
            false,
            expect![[r#"
            Create site fra1
              Post /v1/sites {"name":"fra1"}
            Keep site default
            Create organisation acme
              Post /v1/organisations {"name":"acme"}
            Create project acme:shop
              Post /v1/projects {"name":"shop","organisation":"acme"}
            Create person ada
              Post /v1/people {"name":"ada"}
            Create rack lab
              Post /v1/racks {"name":"lab","network":{"delegated":["10.77.0.100","10.77.0.199"],"node":"10.77.0.1/24"},"site":"fra1"}
            Create aggregate 10.0.0.0/8
              Post /v1/aggregates {"prefix":"10.0.0.0/8","source":"private"}
            Create pool p4
              Post /v1/pools {"kind":"private","name":"p4","prefixes":["10.9.0.0/16"]}
            Create binding viewer ada in rack lab
              Post /v1/bindings {"person":"ada","role":"viewer","scope":{"kind":"rack","name":"lab"}}
        "#]],
        );
    }

    #[test]
    fn only_what_differs_is_changed() {
        let there = format!(
            "pool: {{name: p4, kind: private, vrf: default, quarantine_minutes: 60, purpose: '', prefixes: [10.9.0.0/24]}}
plan: {{name: large, description: '', rules: {{threads: 2}}}}
rack: {{name: lab, site: default, {NETWORK}}}
person: {{name: ada, email: ''}}
aggregate:
- {{prefix: 10.0.0.0/8, vrf: default, source: private}}
- prefix: 203.0.113.0/24
  source: {{customer: {{name: shop, proof: {{kind: roa, reference: AS64500, state: pending}}}}}}
"
        );
        check(
            &there,
            &there,
            false,
            expect![[r#"
            Keep person ada
            Keep rack lab
            Keep aggregate 10.0.0.0/8
            Keep aggregate 203.0.113.0/24
            Keep pool p4
            Keep plan large
        "#]],
        );
        let files = format!(
            "pool: {{name: p4, kind: private, quarantine_minutes: 5, prefixes: [10.9.1.0/24, 10.9.0.0/24]}}
plan: {{name: large, description: databases, rules: {{threads: 2}}}}
rack: {{name: lab, site: fra1, {NETWORK}}}
person: {{name: ada, email: ada@example.net}}
aggregate:
- prefix: 203.0.113.0/24
  source: {{customer: {{name: shop, proof: {{kind: roa, reference: AS64500, state: verified}}}}}}
"
        );
        check(
            &there,
            &files,
            false,
            expect![[r#"
            Change person ada
              Patch /v1/people/3 {"email":"ada@example.net"}
            Change rack lab
              Patch /v1/racks/2 {"site":"fra1"}
            Change aggregate 203.0.113.0/24
              Post /v1/aggregates/5/proof {"reference":"AS64500","state":"verified"}
            Change pool p4
              Patch /v1/pools/0 {"quarantine_minutes":5}
              Post /v1/pools/0/prefixes {"prefixes":["10.9.1.0/24"]}
            Change plan large
              Patch /v1/plans/1 {"description":"databases"}
        "#]],
        );
    }

    #[test]
    fn what_cannot_be_changed_is_refused_with_the_reason() {
        let there = format!(
            "pool:
- {{name: p4, kind: private, vrf: default, prefixes: [10.9.0.0/24]}}
- {{name: q4, kind: private, vrf: default, prefixes: [10.8.0.0/24]}}
rack: {{name: lab, site: default, {NETWORK}}}
aggregate: {{prefix: 10.0.0.0/8, vrf: default, source: private}}
"
        );
        let files = "pool:
- {name: p4, kind: public, prefixes: [10.9.0.0/24]}
- {name: q4, kind: private, prefixes: [10.8.1.0/24]}
rack: {name: lab, network: {node: 10.77.0.1/24, delegated: [10.77.0.100, 10.77.0.150]}}
aggregate: {prefix: 10.0.0.0/8, source: {registry: {name: RIPE}}}
";
        check(
            &there,
            files,
            false,
            expect![[r#"
            Refuse("its network cannot be changed: its machines have their addresses in it") rack lab
            Refuse("its source cannot be changed: remove it and make it anew") aggregate 10.0.0.0/8
            Refuse("its kind cannot be changed: remove it and make it anew") pool p4
            Refuse("a pool keeps its prefixes: 10.8.0.0/24 cannot be taken from it") pool q4
        "#]],
        );
        check(
            "",
            "site: [{name: a}, {name: a}]",
            false,
            expect![[r#"
            site a is declared twice: in f, document 1, and in f, document 1
        "#]],
        );
    }

    #[test]
    fn what_no_file_has_is_removed_last_and_only_when_that_is_wanted() {
        let there = "site: [{name: default}, {name: fra1}]
vrf: {name: default}
organisation: {name: acme}
project: {name: shop, organisation: acme}
";
        let files = "site: {name: default}";
        check(
            there,
            files,
            false,
            expect![[r#"
            Keep site default
        "#]],
        );
        check(
            there,
            files,
            true,
            expect![[r#"
            Keep site default
            Leave("the API removes none of its kind") vrf default
            Remove project acme:shop
              Delete /v1/projects/4 null
            Remove organisation acme
              Delete /v1/organisations/3 null
            Remove site fra1
              Delete /v1/sites/1 null
        "#]],
        );
    }

    #[test]
    fn what_needs_something_that_failed_is_held_by_it() {
        let files = "organisation: {name: acme}
project: {name: shop, organisation: acme}
site: {name: fra1}
";
        let changes = plan(&parse("f", Form::Yaml, files).unwrap(), &[], false).unwrap();
        let failed = [changes[1].object().clone()];
        let held: Vec<_> = changes.iter().map(|change| change.held_by(&failed).map(ToString::to_string)).collect();
        assert_eq!(held, [None, None, Some("organisation acme".to_owned())]);
    }
}
