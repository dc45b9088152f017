//! Files of objects: YAML with several documents, TOML or JSON. A document names kinds, and each has
//! one object or a list of them.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer},
};

use super::object::{self, Object};

/// The form of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// YAML, which JSON is as well.
    Yaml,
    Toml,
    Json,
}

/// Where an object was declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    /// The file, as it was named.
    pub(crate) file: String,
    /// Which document of it, from 1.
    pub(crate) document: usize,
}

/// An object as a file has it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Declared {
    pub(crate) object: Object,
    pub(crate) at: Origin,
}

/// What a file has is not understood.
#[derive(Debug, thiserror::Error)]
#[error("{at}: {what}")]
pub(crate) struct Misread {
    at: Origin,
    what: String,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, document {}", self.file, self.document)
    }
}

impl Form {
    /// By a file's name; none when it is no such file.
    pub(crate) fn of_name(name: &str) -> Option<Self> {
        match name.rsplit_once('.')?.1 {
            "yaml" | "yml" => Some(Self::Yaml),
            "toml" => Some(Self::Toml),
            "json" => Some(Self::Json),
            _ => None,
        }
    }
}

/// The objects of a file, in its order.
pub(crate) fn parse(file: &str, form: Form, text: &str) -> Result<Vec<Declared>, Misread> {
    let mut found = Vec::new();
    let documents = if form == Form::Yaml { documents(text) } else { vec![text.to_owned()] };
    for (number, text) in documents.iter().enumerate() {
        let at = Origin { file: file.to_owned(), document: number + 1 };
        let read: Result<Document, String> = match form {
            Form::Yaml => serde_saphyr::from_str(text).map_err(|error| error.without_snippet().to_string()),
            Form::Toml => toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned()),
            Form::Json => serde_json::from_str(text).map_err(|error| error.to_string()),
        };
        let misread = |what| Misread { at: at.clone(), what };
        for object in read.map_err(misread)?.0 {
            let named = object.to_string();
            let object = object.canonical().map_err(|what| misread(format!("{named}: {what}")))?;
            found.push(Declared { object, at: at.clone() });
        }
    }
    Ok(found)
}

/// The documents of a YAML text that have something in them, each behind as many empty lines as
/// come before it, so that lines are counted as in the file.
fn documents(text: &str) -> Vec<String> {
    let mut documents = vec![String::new()];
    for (number, line) in text.lines().enumerate() {
        // At the beginning of a line these end a document, whatever is open (YAML 1.2, 9.1.2).
        let rest = ["---", "..."].iter().find_map(|mark| line.strip_prefix(mark));
        let rest = rest.filter(|rest| rest.is_empty() || rest.starts_with([' ', '\t']));
        match rest {
            Some(rest) => {
                let mut document = "\n".repeat(number);
                // As far to the right as it stands.
                document += "   ";
                document += rest;
                documents.push(document + "\n");
            }
            None => {
                if let Some(document) = documents.last_mut() {
                    document.push_str(line);
                    document.push('\n');
                }
            }
        }
    }
    let says = |line: &str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
    documents.retain(|document| document.lines().any(says));
    documents
}

/// One document.
struct Document(Vec<Object>);

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Kinds;

        impl<'de> Visitor<'de> for Kinds {
            type Value = Document;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("kinds with their objects, as in `site: {name: fra1}`")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Document, A::Error> {
                let mut found = Vec::new();
                macro_rules! read {
                    ($($word:literal $kind:ident,)*) => {
                        while let Some(kind) = map.next_key::<String>()? {
                            match kind.as_str() {
                                $($word => {
                                    let all = map.next_value::<Several<object::$kind>>()?;
                                    found.extend(all.0.into_iter().map(Object::$kind));
                                })*
                                other => return Err(de::Error::unknown_field(other, &[$($word),*])),
                            }
                        }
                    };
                }
                read! {
                    "site" Site, "organisation" Organisation, "project" Project, "person" Person, "vrf" Vrf,
                    "rack" Rack, "aggregate" Aggregate, "pool" Pool, "plan" Plan, "binding" Binding,
                }
                Ok(Document(found))
            }
        }

        deserializer.deserialize_map(Kinds)
    }
}

/// One, or a list.
struct Several<T>(Vec<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Several<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMore<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for OneOrMore<T> {
            type Value = Several<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object, or a list of them")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Several<T>, A::Error> {
                Ok(Several(vec![T::deserialize(MapAccessDeserializer::new(map))?]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Several<T>, A::Error> {
                let mut all = Vec::new();
                while let Some(one) = seq.next_element()? {
                    all.push(one);
                }
                Ok(Several(all))
            }
        }

        deserializer.deserialize_any(OneOrMore(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn read(form: Form, text: &str, expected: Expect) {
        let told = match parse("f", form, text) {
            Ok(all) => all.iter().map(|one| format!("{}: {}\n", one.at.document, one.object)).collect(),
            Err(error) => format!("{error}\n"),
        };
        expected.assert_eq(&told);
    }

    #[test]
    fn every_form_says_the_same() {
        let yaml = "\
# All there is.
---
site:
  - name: fra1
  - {name: ams1}
--- # The next.
rack:
  name: lab
  site: fra1
  network: {node: 10.77.0.1/24, delegated: [10.77.0.100, 10.77.0.199]}
...
---
aggregate: {prefix: 10.0.0.0/8, source: private}
pool: {name: p4, kind: private, prefixes: [10.9.0.0/16]}
";
        read(
            Form::Yaml,
            yaml,
            expect![[r#"
                1: site fra1
                1: site ams1
                2: rack lab
                3: aggregate 10.0.0.0/8
                3: pool p4
            "#]],
        );
        let toml = r#"
[[site]]
name = "fra1"
[[site]]
name = "ams1"
[rack]
name = "lab"
site = "fra1"
network = {node = "10.77.0.1/24", delegated = ["10.77.0.100", "10.77.0.199"]}
[aggregate]
prefix = "10.0.0.0/8"
source = "private"
[pool]
name = "p4"
kind = "private"
prefixes = ["10.9.0.0/16"]
"#;
        let objects = |all: Vec<Declared>| {
            let mut all: Vec<_> = all.into_iter().map(|one| one.object).collect();
            all.sort_by_key(|object| (object.kind(), object.name()));
            all
        };
        let of_yaml = objects(parse("f", Form::Yaml, yaml).unwrap());
        assert_eq!(objects(parse("f", Form::Toml, toml).unwrap()), of_yaml);
        let mut kinds = std::collections::BTreeMap::<_, Vec<_>>::new();
        for object in &of_yaml {
            kinds.entry(object.kind().word()).or_default().push(object.body());
        }
        let json = serde_json::to_string_pretty(&kinds).unwrap();
        assert_eq!(objects(parse("f", Form::Json, &json).unwrap()), of_yaml);
        assert_eq!(objects(parse("f", Form::Yaml, &json).unwrap()), of_yaml);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        read(
            Form::Yaml,
            "site: {name: fra1}\n---\nrake: {name: lab}\n",
            expect![[r#"
            f, document 2: unknown field `rake`, expected one of site, organisation, project, person, vrf, rack, aggregate, pool, plan, binding at line 3, column 1
        "#]],
        );
        read(
            Form::Yaml,
            "site: {name: fra1}\n---\nsite:\n  name: fra2\n  nmae: x\n",
            expect![[r#"
            f, document 2: unknown field `nmae`, expected one of name at line 5, column 3
        "#]],
        );
        read(
            Form::Yaml,
            "\n\nproject:\n  - name: shop\n",
            expect![[r#"
            f, document 1: missing field `organisation` at line 4, column 5
        "#]],
        );
        read(
            Form::Yaml,
            "pool:\n  name: p\n  kind: secret\n  prefixes: []\n",
            expect![[r#"
            f, document 1: unknown variant `secret`, expected one of public, private, global at line 3, column 9
        "#]],
        );
        read(
            Form::Yaml,
            "plan:\n  name: p\n  rules:\n    disks:\n      - {count: 1, sise: 3}\n",
            expect![[r#"
            f, document 1: unknown field `sise`, expected one of count, kind, size at line 5, column 20
        "#]],
        );
        read(
            Form::Yaml,
            "site: fra1\n",
            expect![[r#"
            f, document 1: invalid type: string "fra1", expected an object, or a list of them at line 1, column 1
        "#]],
        );
        read(
            Form::Yaml,
            "- site\n",
            expect![[r#"
            f, document 1: expected mapping start at line 1, column 1
        "#]],
        );
        read(
            Form::Yaml,
            "site: [\n",
            expect![[r#"
            f, document 1: unclosed bracket '[' at line 1, column 7
        "#]],
        );
        read(
            Form::Json,
            "{\"site\": {\n\"name\": \"x\", \"nmae\": 1}}",
            expect![[r#"
            f, document 1: unknown field `nmae`, expected `name` at line 2 column 19
        "#]],
        );
        read(
            Form::Toml,
            "[site]\nname = \"x\"\nnmae = 1\n",
            expect![[r#"
            f, document 1: TOML parse error at line 3, column 1
              |
            3 | nmae = 1
              | ^^^^
            unknown field `nmae`, expected `name`
        "#]],
        );
        read(
            Form::Yaml,
            "aggregate: {prefix: 10.0.0.0, source: private}\n",
            expect![[r#"
            f, document 1: aggregate 10.0.0.0: `10.0.0.0` is no prefix; write it as ADDRESS/LENGTH, as in 10.9.0.0/16
        "#]],
        );
        read(
            Form::Yaml,
            "binding: {person: ada, role: viewer, scope: {kind: project, name: shop}}\n",
            expect![[r#"
            f, document 1: binding viewer ada in project shop: write the project as ORGANISATION:shop
        "#]],
        );
    }

    #[test]
    fn a_mark_within_a_line_ends_no_document() {
        read(
            Form::Yaml,
            "plan:\n  name: p\n  description: a --- b\n  rules: {}\n---x: y\n",
            expect![[r#"
            f, document 1: unknown field `---x`, expected one of site, organisation, project, person, vrf, rack, aggregate, pool, plan, binding at line 5, column 1
        "#]],
        );
        read(Form::Yaml, "# nothing\n---\n---\n", expect![""]);
    }
}
