//! `rackhand export`: what a controller has, in the form in which `rackhand apply` takes it.

use std::collections::BTreeMap;

use anyhow::ensure;
use clap::{Args, ValueEnum as _};

use crate::{
    client::{Client, Problem},
    declared::{Kind, Object},
    live,
    output::Output,
};

/// As many prefixes of a pool does the API show.
const PREFIXES: usize = 100;

#[derive(Args)]
pub(crate) struct Export {
    /// Only of these kinds; all that you may see if not given
    kinds: Vec<Kind>,
}

pub(crate) async fn run(client: &Client, Export { mut kinds }: Export, output: Output) -> anyhow::Result<String> {
    ensure!(output != Output::Csv, "objects have no form as CSV; say --output yaml or json");
    let is_all = kinds.is_empty();
    if is_all {
        kinds = Kind::value_variants().to_vec();
    }
    kinds.sort_unstable();
    kinds.dedup();
    let mut objects = Vec::new();
    for kind in kinds {
        match live::of_kind(client, kind).await {
            Ok(all) => {
                let made_by_itself = [Some(live::DERIVED), Some(live::CARVED)];
                let ours = all.into_iter().filter(|live| !made_by_itself.contains(&live.stays));
                objects.extend(ours.map(|live| live.object));
            }
            // Of everything one gets what one may see.
            Err(error) if is_all && is_forbidden(&error) => {
                eprintln!("left out, since you may not see them: {}", kind.path().trim_start_matches("/v1/"));
            }
            Err(error) => return Err(error),
        }
    }
    for object in &objects {
        if object.prefixes() >= PREFIXES {
            eprintln!("{object} has {PREFIXES} prefixes here and may have more: the API shows no more of them");
        }
    }
    written(&objects, output)
}

fn is_forbidden(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Problem>().is_some_and(|problem| problem.kind.ends_with(":forbidden"))
}

fn written(objects: &[Object], output: Output) -> anyhow::Result<String> {
    match output {
        Output::Json => {
            let mut kinds = BTreeMap::<_, Vec<_>>::new();
            for object in objects {
                kinds.entry(object.kind().word()).or_default().push(object.body());
            }
            Ok(serde_json::to_string_pretty(&kinds)?)
        }
        Output::Name => Ok(objects.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")),
        _ => {
            let documents: Result<Vec<_>, _> = objects.iter().map(serde_saphyr::to_string).collect();
            Ok(documents?.join("---\n").trim_end().to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::declared::{Form, parse};

    #[test]
    fn what_is_written_is_read_as_the_same() {
        let text = "site: {name: 'yes'}
plan:
  name: '1.0'
  description: 'a: \"b\" # c'
  rules: {firmware: uefi, vendor: Dell Inc., threads: 2, disks: [{count: 2, kind: nvme}], nics: [{count: 1}]}
aggregate:
- {prefix: 10.0.0.0/8, vrf: default, source: private}
- {prefix: 198.51.100.0/24, source: {registry: {name: RIPE}}}
- prefix: 2001:db8::/32
  source: {customer: {name: shop, proof: {kind: loa, reference: '17', state: refused}}}
pool: {name: p, kind: global, prefixes: ['2001:db8::/48'], purpose: \"a\\nb\", quarantine_minutes: 0}
rack: {name: lab, network: {node: 10.77.0.1/24, delegated: [10.77.0.100, 10.77.0.199], dns: [10.77.0.2]}}
binding:
- {person: ada, role: owner, scope: {kind: everything}}
- {person: ada, role: viewer, scope: {kind: project, name: 'acme:shop'}}
";
        let objects = |form, text: &str| {
            let mut all: Vec<_> = parse("f", form, text).unwrap().into_iter().map(|one| one.object).collect();
            all.sort_by_key(|object| (object.kind(), object.name()));
            all
        };
        let all = objects(Form::Yaml, text);
        assert_eq!(objects(Form::Yaml, &written(&all, Output::Table).unwrap()), all);
        assert_eq!(objects(Form::Json, &written(&all, Output::Json).unwrap()), all);
    }
}
