//! `rackhand aggregate`: address space that pools are made of.

use clap::{Args, Subcommand};
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    client::Client,
    output::{Output, done, print},
    show::{Table, or_dash, table},
    watch::{self, Told, Watch},
};

#[derive(Subcommand)]
pub(crate) enum AggregateCommand {
    /// Add address space to make pools of
    #[command(after_help = "  rackhand aggregate create 10.0.0.0/8 --private
  rackhand aggregate create 198.51.100.0/22 --registry 'RIPE ORG-EX1-RIPE'
  rackhand aggregate create 203.0.113.0/24 --customer shop --roa 'AS64500 203.0.113.0/24'

A customer's space can be used once somebody has looked at the proof: rackhand aggregate prove")]
    Create {
        /// Which addresses
        #[arg(value_name = "ADDRESS/LENGTH")]
        prefix: String,
        #[command(flatten)]
        source: Source,
        /// A customer's route origin authorisation: ASN and prefix
        #[arg(long, value_name = "REFERENCE", requires = "customer", conflicts_with = "loa")]
        roa: Option<String>,
        /// A customer's letter of authorisation: where it is
        #[arg(long, value_name = "REFERENCE", requires = "customer")]
        loa: Option<String>,
        /// Its VRF
        #[arg(long, default_value = "default")]
        vrf: String,
    },
    /// Say what a customer's proof is worth
    #[command(after_help = "  rackhand aggregate list                    # shows ids
  rackhand aggregate prove 01931b1e-0000-7000-8000-000000000000 verified")]
    Prove {
        /// The aggregate's id
        aggregate: String,
        /// What was found
        #[arg(value_parser = ["verified", "refused", "pending"])]
        state: String,
    },
    /// List aggregates
    List {
        #[command(flatten)]
        watch: Watch,
    },
    /// Delete an aggregate that no pool has anything of
    Delete {
        /// Its id
        aggregate: String,
    },
}

#[derive(Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Source {
    /// Private use (RFC 1918, RFC 4193)
    #[arg(long)]
    private: bool,
    /// Ours, by a registry: which, and under what name
    #[arg(long, value_name = "NAME")]
    registry: Option<String>,
    /// A customer brought it: who
    #[arg(long, value_name = "NAME")]
    customer: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
struct Aggregate {
    id: String,
    vrf: String,
    prefix: String,
    source: Value,
    usable: bool,
}

pub(crate) async fn run(client: &Client, command: AggregateCommand, output: Output) -> anyhow::Result<String> {
    match command {
        AggregateCommand::Create { prefix, source, roa, loa, vrf } => {
            let source = match (source.registry, source.customer, roa, loa) {
                (Some(name), ..) => json!({"registry": {"name": name}}),
                (None, Some(name), Some(roa), _) => {
                    json!({"customer": {"name": name, "proof": {"kind": "roa", "reference": roa}}})
                }
                (None, Some(name), None, Some(loa)) => {
                    json!({"customer": {"name": name, "proof": {"kind": "loa", "reference": loa}}})
                }
                (None, Some(_), None, None) => anyhow::bail!("a customer's space needs a proof: --roa or --loa"),
                (None, None, ..) => json!("private"),
            };
            let body = json!({"prefix": prefix, "vrf": vrf, "source": source});
            print(output, client.post("/v1/aggregates", body).await?, |made: Aggregate| match made.usable {
                true => format!("{} is there; next: rackhand pool create NAME --kind … --prefix …", made.prefix),
                false => format!("{} is there; look at its proof, then: {}", made.prefix, prove(&made.id)),
            })
        }
        AggregateCommand::Prove { aggregate, state } => {
            let proven = client.post(&format!("/v1/aggregates/{aggregate}/proof"), json!({"state": state})).await?;
            print(output, proven, |aggregate: Aggregate| list(&[aggregate]))
        }
        AggregateCommand::List { watch } => {
            let fetch = async || Ok(client.list("/v1/aggregates").await?.into());
            watch::show(client, output, watch, Told::ByNobody, fetch, |all: Vec<_>| list(&all)).await
        }
        AggregateCommand::Delete { aggregate } => {
            client.ask(Method::DELETE, &format!("/v1/aggregates/{aggregate}"), None).await?;
            Ok(done(output, format!("aggregate {aggregate} is deleted")))
        }
    }
}

fn prove(id: &str) -> String {
    format!("rackhand aggregate prove {id} verified")
}

fn list(aggregates: &[Aggregate]) -> Table {
    let rows = aggregates.iter().map(|aggregate| {
        let text = |pointer: &str| aggregate.source.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let (kind, reference) = (text("/customer/proof/kind"), text("/customer/proof/reference"));
        let (whose, right) = match (text("/customer/name"), text("/registry/name")) {
            ("", "") => ("private".to_owned(), String::new()),
            ("", registry) => ("ours".to_owned(), registry.to_owned()),
            (customer, _) => {
                (customer.to_owned(), format!("{} {reference}, {}", kind.to_uppercase(), text("/customer/proof/state")))
            }
        };
        vec![aggregate.prefix.clone(), whose, or_dash(Some(&right)), aggregate.vrf.clone(), aggregate.id.clone()]
    });
    table(&["PREFIX", "WHOSE", "BY", "VRF", "ID"], rows)
        .shorten(&["BY", "WHOSE"])
        .or_say("no aggregates yet: rackhand aggregate create 10.0.0.0/8 --private")
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn an_aggregate_says_by_what_right_it_is_ours() {
        let aggregates: Vec<Aggregate> = serde_json::from_value(json!([
            {"id": "1", "vrf": "default", "prefix": "10.0.0.0/8", "source": "private", "usable": true},
            {
                "id": "2", "vrf": "default", "prefix": "198.51.100.0/22", "usable": true,
                "source": {"registry": {"name": "RIPE ORG-EX1-RIPE"}},
            },
            {
                "id": "3", "vrf": "default", "prefix": "203.0.113.0/24", "usable": false, "source": {"customer": {
                    "name": "shop", "proof": {"kind": "roa", "reference": "AS64500", "state": "pending"},
                }},
            },
        ]))
        .unwrap();
        expect![[r#"
            PREFIX           WHOSE    BY                    VRF      ID
            10.0.0.0/8       private  -                     default  1
            198.51.100.0/22  ours     RIPE ORG-EX1-RIPE     default  2
            203.0.113.0/24   shop     ROA AS64500, pending  default  3"#]]
        .assert_eq(&list(&aggregates).to_string());
    }
}
