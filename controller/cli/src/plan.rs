//! `rackhand plan`: classes of machines by what is in them.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Subcommand;
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    client::{Client, view},
    output::{Output, done, print, read},
    show::{Table, or_dash, table},
    watch::{self, Told, Watch},
};

#[derive(Subcommand)]
pub(crate) enum PlanCommand {
    /// List plans
    List {
        #[command(flatten)]
        watch: Watch,
    },
    /// Show one plan, and which machines match it
    #[command(after_help = "  rackhand plan show large

A machine that does not match is shown with what it lacks. Those that match, in tables and for
scripts: rackhand machine list --plan large")]
    Show {
        /// Name or id
        plan: String,
    },
    /// Make a plan: of a machine that has what is wanted, or of a file of rules
    #[command(after_help = "  rackhand plan create large --like web-1
  rackhand plan suggest web-1 > large.json        # then edit it
  rackhand plan create large --rules large.json

A rule that is left out of the file is not looked at:

  {\"threads\": 32, \"memory\": 128000000000, \"disks\": [{\"count\": 2, \"kind\": \"nvme\", \"size\": 900000000000}]}")]
    Create {
        /// Its name
        name: String,
        /// What it is for
        #[arg(long, default_value = "")]
        description: String,
        /// A machine that has what is wanted
        #[arg(long, value_name = "MACHINE", required_unless_present = "rules")]
        like: Option<String>,
        /// File with rules, in JSON
        #[arg(long, value_name = "FILE", conflicts_with = "like")]
        rules: Option<PathBuf>,
    },
    /// Print the rules of a plan that a machine matches
    Suggest {
        /// Name or id
        machine: String,
    },
    /// Delete a plan; machines stay what they are
    Delete {
        /// Name or id
        plan: String,
    },
}

#[derive(Deserialize)]
struct Plan {
    id: String,
    name: String,
    description: String,
    rules: Value,
}

#[derive(Deserialize)]
struct Match {
    machine: String,
    matches: bool,
    mismatches: Vec<Mismatch>,
}

#[derive(Deserialize)]
struct Mismatch {
    rule: String,
    wanted: String,
    found: String,
}

pub(crate) async fn run(client: &Client, command: PlanCommand, output: Output) -> anyhow::Result<String> {
    match command {
        PlanCommand::List { watch } => {
            let fetch = async || Ok(client.list("/v1/plans").await?.into());
            watch::show(client, output, watch, Told::ByNobody, fetch, |plans: Vec<Plan>| list(&plans)).await
        }
        PlanCommand::Show { plan } => {
            let mut value = client.ask(Method::GET, &format!("/v1/plans/{plan}"), None).await?;
            let machines = client.list(&format!("/v1/plans/{plan}/machines")).await?;
            value["machines"] = machines.clone().into();
            let machines: Vec<Match> = view(machines.into())?;
            print(output, value, |plan: Plan| page(&plan, &machines))
        }
        PlanCommand::Create { name, description, like, rules } => {
            let rules: Value = match (like, rules) {
                (Some(machine), _) => client.get(&format!("/v1/machines/{machine}/suggested-plan")).await?,
                (None, Some(file)) => serde_json::from_str(&read(&file)?).context("the file of rules is not JSON")?,
                (None, None) => anyhow::bail!("say --like MACHINE or --rules FILE"),
            };
            let body = json!({"name": name, "description": description, "rules": rules});
            print(output, client.post("/v1/plans", body).await?, |plan: Plan| page(&plan, &[]))
        }
        PlanCommand::Suggest { machine } => {
            let rules: Value = client.get(&format!("/v1/machines/{machine}/suggested-plan")).await?;
            // For people too: it is what `plan create --rules` reads.
            let output = if output.is_for_people() { Output::Json } else { output };
            print(output, rules, |_: Value| String::new())
        }
        PlanCommand::Delete { plan } => {
            client.ask(Method::DELETE, &format!("/v1/plans/{plan}"), None).await?;
            Ok(done(output, format!("plan {plan} is deleted")))
        }
    }
}

fn list(plans: &[Plan]) -> Table {
    let rows = plans.iter().map(|plan| vec![plan.name.clone(), or_dash(Some(&plan.description)), rules(&plan.rules)]);
    table(&["NAME", "DESCRIPTION", "RULES"], rows)
        .shorten(&["DESCRIPTION", "RULES"])
        .or_say("no plans yet: rackhand plan create NAME --like MACHINE")
}

/// The rules' names, which are few; what they say is on the plan's page.
fn rules(rules: &Value) -> String {
    let asks = |value: &Value| value.as_array().is_none_or(|rules| !rules.is_empty());
    let names = rules.as_object().into_iter().flatten().filter(|(_, value)| asks(value)).map(|(name, _)| name.clone());
    or_dash(Some(&names.collect::<Vec<_>>().join(", ")))
}

fn page(plan: &Plan, machines: &[Match]) -> String {
    let mut lines = vec![format!("{}  {}", plan.name, plan.id)];
    if !plan.description.is_empty() {
        lines.push(format!("  {}", plan.description));
    }
    for (rule, value) in plan.rules.as_object().into_iter().flatten() {
        match value {
            Value::Array(rules) => lines.extend(rules.iter().map(|value| format!("  {rule:<9} {}", words(value)))),
            value => lines.push(format!("  {rule:<9} {}", words(value))),
        }
    }
    for machine in machines {
        let lacks = machine
            .mismatches
            .iter()
            .map(|Mismatch { rule, wanted, found }| format!("{rule}: wants {wanted}, has {found}"));
        let verdict = if machine.matches { "matches".to_owned() } else { lacks.collect::<Vec<_>>().join("; ") };
        lines.push(format!("  {}: {verdict}", machine.machine));
    }
    lines.join("\n")
}

/// A value of a rule without JSON's marks.
fn words(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Object(fields) => {
            fields.iter().map(|(name, value)| format!("{name} {}", words(value))).collect::<Vec<_>>().join(", ")
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::show::Surface;

    #[test]
    fn a_plans_page_says_what_it_wants_and_who_lacks_what() {
        let plan: Plan = serde_json::from_value(json!({
            "id": "01931b1e-0000-7000-8000-000000000001", "name": "large", "description": "databases",
            "rules": {"firmware": "uefi", "threads": 32, "disks": [{"count": 2, "kind": "nvme"}], "nics": []},
        }))
        .unwrap();
        let machines: Vec<Match> = serde_json::from_value(json!([
            {"machine": "web-1", "matches": true, "mismatches": []},
            {"machine": "web-2", "matches": false,
             "mismatches": [{"rule": "threads", "wanted": "32", "found": "16"}]},
        ]))
        .unwrap();
        expect![[r#"
            large  01931b1e-0000-7000-8000-000000000001
              databases
              disks     count 2, kind nvme
              firmware  uefi
              threads   32
              web-1: matches
              web-2: threads: wants 32, has 16"#]]
        .assert_eq(&page(&plan, &machines));
        expect![[r#"
            NAME   DESCRIPTION  RULES
            large  databases    disks, firmware, threads"#]]
        .assert_eq(&list(&[plan]).on(&Surface::default()));
    }
}
