//! `rackhand machine baseline`: what a machine's BMC is to be like, and how it differs.

use clap::Subcommand;
use jiff::Timestamp;
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    client::Client,
    output::{Output, print},
    show::second,
};

#[derive(Subcommand)]
pub(crate) enum BaselineCommand {
    /// Show what a machine's BMC is to be like, and in what it differed when it was read last
    #[command(after_help = "  rackhand machine baseline show web-1
  rackhand machine baseline show web-1 --output json

Accounts, network, certificate, firmware and the firmware's settings are recorded before a machine
is handed out, and put back when it is released. With `reset` and `restart` a release puts it back;
with `operator` it quarantines the machine.")]
    Show {
        /// Name or id
        machine: String,
    },
    /// Read a machine's BMC now; nothing is changed
    #[command(after_help = "  rackhand machine baseline read web-1

What was read is compared with the record, and is what `accept` accepts.")]
    Read {
        /// Name or id
        machine: String,
    },
    /// Accept a machine's BMC as it was found last: that is its record from now on
    #[command(after_help = "  rackhand machine baseline read web-1
  rackhand machine baseline accept web-1

Look first: whoever accepts says that nothing in it is a former tenant's. After a change of your
own, of an account or of the BMC's firmware, this is how it is made known.")]
    Accept {
        /// Name or id
        machine: String,
    },
}

#[derive(Clone, Debug, Deserialize)]
struct Baseline {
    name: String,
    record: Option<Value>,
    recorded: Option<Timestamp>,
    accepted_by: Option<String>,
    found_at: Option<Timestamp>,
    differences: Vec<Difference>,
    remarks: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
struct Difference {
    subject: String,
    name: String,
    recorded: Option<String>,
    found: Option<String>,
    remedy: String,
}

pub(crate) async fn run(client: &Client, command: BaselineCommand, output: Output) -> anyhow::Result<String> {
    let value: Value = match command {
        BaselineCommand::Show { machine } => client.get(&format!("/v1/machines/{machine}/baseline")).await?,
        BaselineCommand::Read { machine } => ask(client, &machine, "read").await?,
        BaselineCommand::Accept { machine } => ask(client, &machine, "accept").await?,
    };
    print(output, value, |baseline: Baseline| page(&baseline))
}

async fn ask(client: &Client, machine: &str, verb: &str) -> anyhow::Result<Value> {
    client.ask(Method::POST, &format!("/v1/machines/{machine}/baseline/{verb}"), Some(json!({}))).await
}

fn page(baseline: &Baseline) -> String {
    let mut page = match (&baseline.record, baseline.recorded) {
        (Some(_), Some(recorded)) => {
            let by = match &baseline.accepted_by {
                Some(by) => format!("accepted by {by}"),
                None => "as it was found, accepted by nobody yet".to_owned(),
            };
            format!("{}: recorded {}, {by}\n", baseline.name, second(recorded))
        }
        _ => format!("{}: nothing is recorded of its BMC; a deploy records it\n", baseline.name),
    };
    page += &match baseline.found_at {
        None => "never read\n".to_owned(),
        Some(at) if baseline.record.is_none() => format!("read {}\n", second(at)),
        Some(at) if baseline.differences.is_empty() => format!("read {}: as it was recorded\n", second(at)),
        Some(at) => format!("read {}: differs\n", second(at)),
    };
    for Difference { subject, name, recorded, found, remedy } in &baseline.differences {
        let (recorded, found) = (recorded.as_deref().unwrap_or("nothing"), found.as_deref().unwrap_or("nothing"));
        page += &format!("  {subject} {name}: {found}, recorded {recorded} ({remedy})\n");
    }
    for remark in &baseline.remarks {
        page += &format!("  {remark}\n");
    }
    page
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn a_page_says_what_differs_and_what_becomes_of_it() {
        let baseline: Baseline = serde_json::from_value(json!({
            "name": "web-1", "record": {}, "recorded": "2027-01-01T00:00:00Z", "accepted_by": null,
            "found_at": "2027-01-02T00:00:00Z",
            "differences": [
                {"subject": "account", "name": "support", "recorded": null, "found": "Administrator, enabled", "remedy": "reset"},
                {"subject": "certificate", "name": "SHA-256", "recorded": "aa", "found": "bb", "remedy": "operator"},
            ],
            "remarks": ["removing the account \"support\": refused: no"],
        }))
        .unwrap();
        expect![[r#"
            web-1: recorded 2027-01-01T00:00:00Z, as it was found, accepted by nobody yet
            read 2027-01-02T00:00:00Z: differs
              account support: Administrator, enabled, recorded nothing (reset)
              certificate SHA-256: bb, recorded aa (operator)
              removing the account "support": refused: no
        "#]]
        .assert_eq(&page(&baseline));
    }
}
