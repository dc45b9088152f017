//! `rackhand ip`, `pool`, `aggregate` and `vrf`: addresses.

use std::net::IpAddr;

use clap::{Args, Subcommand};
use jiff::Timestamp;
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    Output,
    client::{Client, view},
    print,
    show::{or_dash, second, table},
};

#[derive(Subcommand)]
pub(crate) enum IpCommand {
    /// Claim an address or a block
    #[command(after_help = "  rackhand ip claim public-4 --machine web-1               # one address
  rackhand ip claim private-4 --length 31 --machine web-1 --mac 52:54:00:12:34:56
  rackhand ip claim public-4 --address 198.51.100.17 --name vpn --project shop
  rackhand ip claim private-4 --address 10.9.0.1 --reserve --name gateway

Without --address it is the smallest free space that is large enough, and the lowest of that. What is
claimed is nobody else's until it is released, also when the controller is killed meanwhile.
With --reserve the addresses are nobody's and are not handed out.")]
    Claim {
        /// The pool: name or id
        pool: String,
        /// Any block of this length; otherwise a single address
        #[arg(long, conflicts_with = "address")]
        length: Option<u8>,
        /// This address or block
        #[arg(long, value_name = "ADDRESS[/LENGTH]")]
        address: Option<String>,
        #[command(flatten)]
        holder: Holder,
        /// Make them nobody's: a gateway, a range in use elsewhere
        #[arg(long)]
        reserve: bool,
        /// For this project: name, ORGANISATION:NAME or id; the machine's if not given
        #[arg(long)]
        project: Option<String>,
        /// What for
        #[arg(long, default_value = "")]
        purpose: String,
    },
    /// Release a claim
    #[command(after_help = "  rackhand ip release 198.51.100.17
  rackhand ip release 10.9.0.4/31
  rackhand ip release 01931b1e-0000-7000-8000-000000000000

The addresses rest for the quarantine of their pool before anybody gets them again. An address
releases the claim it is in only if it is all of the claim: say the whole block, or the id.")]
    Release {
        /// The address or block, as `rackhand ip list` shows it, or the claim's id
        claim: String,
        /// With an address: in this VRF, when several have it
        #[arg(long, value_name = "POOL")]
        pool: Option<String>,
    },
    /// List what is claimed
    #[command(after_help = "  rackhand ip list --pool public-4
  rackhand ip list --address 198.51.100.17       # whatever it is in now")]
    List {
        /// Only from this pool
        #[arg(long)]
        pool: Option<String>,
        /// Only of this machine
        #[arg(long)]
        machine: Option<String>,
        /// Only held under this name
        #[arg(long)]
        name: Option<String>,
        /// Only what contains this address or block
        #[arg(long, value_name = "ADDRESS[/LENGTH]")]
        address: Option<String>,
    },
    /// Tell who has an address, and who had it
    #[command(after_help = "  rackhand ip who 198.51.100.17
  rackhand ip who 198.51.100.17 --at 2026-11-24T12:00:00Z     # for a complaint about that time")]
    Who {
        /// The address
        address: String,
        /// Only at this time, as 2026-11-24T12:00:00Z or 2026-11-24T13:00:00+01:00
        #[arg(long, value_name = "TIME")]
        at: Option<Timestamp>,
        /// In this VRF
        #[arg(long, default_value = "default")]
        vrf: String,
    },
}

#[derive(Args)]
pub(crate) struct Holder {
    /// For this machine: name or id
    #[arg(long, required_unless_present = "name", conflicts_with = "name")]
    machine: Option<String>,
    /// For this port of the machine: the card's address
    #[arg(long, requires = "machine")]
    mac: Option<String>,
    /// For something that is no machine
    #[arg(long)]
    name: Option<String>,
}

#[derive(Subcommand)]
pub(crate) enum PoolCommand {
    /// Create a pool
    #[command(after_help = "  rackhand aggregate create 10.0.0.0/8 --private
  rackhand pool create private-4 --kind private --prefix 10.9.0.0/16
  rackhand pool create lab-4 --kind private --prefix 10.10.0.0/24 --rack lab --quarantine 60

Its prefixes are taken out of aggregates. Addresses that nobody is to get (a gateway, a broadcast
address) are taken out of it with `rackhand ip claim --reserve`.")]
    Create {
        /// Its name
        name: String,
        /// What its addresses are for: public and global ones are routed by the world
        #[arg(long, value_parser = ["public", "private", "global"])]
        kind: String,
        /// A prefix, IPv4 or IPv6; may be repeated, all of one family
        #[arg(long = "prefix", required = true, value_name = "ADDRESS/LENGTH")]
        prefixes: Vec<String>,
        /// Its VRF
        #[arg(long, default_value = "default")]
        vrf: String,
        /// Only for this rack's machines
        #[arg(long)]
        rack: Option<String>,
        /// How long released addresses rest before anybody gets them again; a day if not given
        #[arg(long, value_name = "MINUTES")]
        quarantine: Option<u32>,
        /// What for
        #[arg(long, default_value = "")]
        purpose: String,
    },
    /// Give a pool more addresses
    Extend {
        /// Name or id
        pool: String,
        /// A prefix; may be repeated
        #[arg(long = "prefix", required = true, value_name = "ADDRESS/LENGTH")]
        prefixes: Vec<String>,
    },
    /// List pools
    List,
    /// Show one pool and how much of it is used
    Show {
        /// Name or id
        pool: String,
    },
    /// Report how much of all pools is used
    #[command(after_help = "  rackhand pool report
  rackhand pool report --csv > utilisation.csv

FRAGMENTED tells how much of the free space lies outside of the largest free block.")]
    Report {
        /// As CSV, for spreadsheets
        #[arg(long)]
        csv: bool,
    },
    /// Delete a pool in which nothing is claimed, reserved or in quarantine
    Delete {
        /// Name or id
        pool: String,
    },
}

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
    List,
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

#[derive(Subcommand)]
pub(crate) enum VrfCommand {
    /// Create a VRF
    #[command(after_help = "  rackhand vrf create management

The same addresses can be used once in each VRF. There is always one, `default`.")]
    Create {
        /// Its name
        name: String,
    },
    /// List VRFs
    List,
}

#[derive(Clone, Debug, Deserialize)]
struct Claim {
    id: String,
    prefix: String,
    pool: String,
    reserved: bool,
    mac: Option<String>,
    name: String,
    project: Option<String>,
    purpose: String,
    claimed_by: String,
    since: Timestamp,
    until: Option<Timestamp>,
}

#[derive(Clone, Debug, Deserialize)]
struct Pool {
    id: String,
    name: String,
    vrf: String,
    family: u8,
    kind: String,
    rack: Option<String>,
    quarantine_minutes: u32,
    purpose: String,
    prefixes: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
struct Utilisation {
    pool: String,
    total: String,
    claimed: String,
    reserved: String,
    quarantined: String,
    free: String,
    used: f64,
    largest_free: Option<u8>,
    fragmentation: f64,
}

#[derive(Clone, Debug, Deserialize)]
struct Aggregate {
    id: String,
    vrf: String,
    prefix: String,
    source: Value,
    usable: bool,
}

#[derive(Clone, Debug, Deserialize)]
struct Vrf {
    name: String,
}

pub(crate) async fn ip(client: &Client, command: IpCommand, output: Output) -> anyhow::Result<String> {
    match command {
        IpCommand::Claim { pool, length, address, holder, reserve, project, purpose } => {
            let Holder { machine, mac, name } = holder;
            let body = json!({
                "pool": pool, "length": length, "prefix": address, "machine": machine, "mac": mac, "name": name,
                "reserve": reserve, "project": project, "purpose": purpose,
            });
            // People want to know what they got; it may go into a script as it is.
            print(output, client.post("/v1/claims", body).await?, |claim: Claim| claim.prefix)
        }
        IpCommand::Release { claim, pool } => {
            let id = match claim.contains(['.', ':']) {
                true => the_claim(client, &claim, pool.as_deref()).await?,
                false => claim,
            };
            let released = client.ask(Method::DELETE, &format!("/v1/claims/{id}"), None).await?;
            print(output, released, |claim: Claim| format!("{} of {} is released", claim.prefix, claim.name))
        }
        IpCommand::List { pool, machine, name, address } => {
            let given = [("pool", pool), ("machine", machine), ("name", name), ("address", address)];
            let query: Vec<_> =
                given.into_iter().filter_map(|(key, value)| Some(format!("{key}={}", escaped(&value?)))).collect();
            let claims = client.list(&format!("/v1/claims?{}", query.join("&"))).await?;
            print(output, claims.into(), |claims: Vec<_>| show_claims(&claims))
        }
        IpCommand::Who { address, at, vrf } => {
            let at_query = at.map(|at| format!("&at={at}")).unwrap_or_default();
            let path = format!("/v1/addresses/{address}/history?vrf={}{at_query}", escaped(&vrf));
            let claims = client.list(&path).await?;
            print(output, claims.into(), |claims: Vec<_>| show_history(&address, at, &claims))
        }
    }
}

/// The id of the claim of exactly these addresses.
async fn the_claim(client: &Client, address: &str, pool: Option<&str>) -> anyhow::Result<String> {
    let pool = pool.map(|pool| format!("&pool={}", escaped(pool))).unwrap_or_default();
    let found = client.list(&format!("/v1/claims?address={}{pool}", escaped(address))).await?;
    let claims: Vec<Claim> = view(found.into())?;
    // As the controller writes it.
    let (first, length) =
        address.split_once('/').unwrap_or((address, if address.contains(':') { "128" } else { "32" }));
    let whole = first.parse::<IpAddr>().map(|first| format!("{first}/{length}")).unwrap_or_default();
    match claims.as_slice() {
        [] => anyhow::bail!("{address} is not claimed; see who had it: rackhand ip who ADDRESS"),
        [one] if one.prefix == whole => Ok(one.id.clone()),
        [one] => anyhow::bail!(
            "{address} is part of {}, which {} holds; to release all of it: rackhand ip release {}",
            one.prefix,
            one.name,
            one.id
        ),
        several => anyhow::bail!(
            "{address} is claimed in several VRFs; say --pool, one of: {}",
            several.iter().map(|claim| claim.pool.as_str()).collect::<Vec<_>>().join(", ")
        ),
    }
}

/// A value in a query.
fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:/".contains(&byte);
    let escape = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    text.bytes().map(escape).collect()
}

pub(crate) async fn pool(client: &Client, command: PoolCommand, output: Output) -> anyhow::Result<String> {
    match command {
        PoolCommand::Create { name, kind, prefixes, vrf, rack, quarantine, purpose } => {
            let body = json!({
                "name": name, "kind": kind, "prefixes": prefixes, "vrf": vrf, "rack": rack,
                "quarantine_minutes": quarantine, "purpose": purpose,
            });
            print(output, client.post("/v1/pools", body).await?, |pool: Pool| {
                format!("pool {} is there; next: rackhand ip claim {} --machine NAME", pool.name, pool.name)
            })
        }
        PoolCommand::Extend { pool, prefixes } => {
            let path = format!("/v1/pools/{pool}/prefixes");
            let extended = client.post(&path, json!({"prefixes": prefixes})).await?;
            print(output, extended, |pool: Pool| show_pools(&[pool]))
        }
        PoolCommand::List => print(output, client.list("/v1/pools").await?.into(), |pools: Vec<_>| show_pools(&pools)),
        PoolCommand::Show { pool } => {
            let value = client.ask(Method::GET, &format!("/v1/pools/{pool}"), None).await?;
            if output == Output::Json {
                return print(output, value, |_: Pool| String::new());
            }
            let report = client.list(&format!("/v1/utilisation?pool={}", escaped(&pool))).await?;
            let usage: Vec<Utilisation> = view(report.into())?;
            Ok(show_pool(&view(value)?, usage.first()))
        }
        PoolCommand::Report { csv: true } => client.text("/v1/utilisation?format=csv").await,
        PoolCommand::Report { csv: false } => {
            print(output, client.list("/v1/utilisation").await?.into(), |lines: Vec<_>| show_report(&lines))
        }
        PoolCommand::Delete { pool } => {
            client.ask(Method::DELETE, &format!("/v1/pools/{pool}"), None).await?;
            Ok(format!("pool {pool} is deleted"))
        }
    }
}

pub(crate) async fn aggregate(client: &Client, command: AggregateCommand, output: Output) -> anyhow::Result<String> {
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
            print(output, proven, |aggregate: Aggregate| show_aggregates(&[aggregate]))
        }
        AggregateCommand::List => {
            print(output, client.list("/v1/aggregates").await?.into(), |all: Vec<_>| show_aggregates(&all))
        }
        AggregateCommand::Delete { aggregate } => {
            client.ask(Method::DELETE, &format!("/v1/aggregates/{aggregate}"), None).await?;
            Ok(format!("aggregate {aggregate} is deleted"))
        }
    }
}

fn prove(id: &str) -> String {
    format!("rackhand aggregate prove {id} verified")
}

pub(crate) async fn vrf(client: &Client, command: VrfCommand, output: Output) -> anyhow::Result<String> {
    match command {
        VrfCommand::Create { name } => {
            print(output, client.post("/v1/vrfs", json!({"name": name})).await?, |vrf: Vrf| {
                format!("VRF {} is there; next: rackhand aggregate create … --vrf {}", vrf.name, vrf.name)
            })
        }
        VrfCommand::List => print(output, client.list("/v1/vrfs").await?.into(), |vrfs: Vec<Vrf>| {
            table(&["NAME"], vrfs.into_iter().map(|vrf| vec![vrf.name]))
        }),
    }
}

/// What holds it, with its port.
fn held_by(claim: &Claim) -> String {
    match &claim.mac {
        _ if claim.reserved => format!("{} (reserved)", claim.name),
        Some(mac) => format!("{} {mac}", claim.name),
        None => claim.name.clone(),
    }
}

fn show_claims(claims: &[Claim]) -> String {
    if claims.is_empty() {
        return "nothing is claimed: rackhand ip claim POOL --machine NAME".into();
    }
    let rows = claims.iter().map(|claim| {
        vec![
            claim.prefix.clone(),
            held_by(claim),
            claim.pool.clone(),
            or_dash(claim.project.as_deref()),
            second(claim.since),
            or_dash(Some(&claim.purpose)),
        ]
    });
    table(&["ADDRESS", "HELD BY", "POOL", "PROJECT", "SINCE", "PURPOSE"], rows)
}

fn show_history(address: &str, at: Option<Timestamp>, claims: &[Claim]) -> String {
    if claims.is_empty() {
        return match at {
            Some(at) => format!("nobody held {address} at {}", second(at)),
            None => format!("nobody ever held {address}"),
        };
    }
    let rows = claims.iter().map(|claim| {
        vec![
            second(claim.since),
            claim.until.map_or("now".into(), second),
            held_by(claim),
            claim.prefix.clone(),
            or_dash(claim.project.as_deref()),
            claim.claimed_by.clone(),
        ]
    });
    table(&["SINCE", "UNTIL", "HELD BY", "IN", "PROJECT", "CLAIMED BY"], rows)
}

fn show_pools(pools: &[Pool]) -> String {
    if pools.is_empty() {
        return "no pools yet: rackhand pool create NAME --kind private --prefix 10.9.0.0/16".into();
    }
    let rows = pools.iter().map(|pool| {
        let first = pool.prefixes.first().cloned().unwrap_or_default();
        let more = pool.prefixes.len().saturating_sub(1);
        vec![
            pool.name.clone(),
            pool.kind.clone(),
            format!("IPv{}", pool.family),
            pool.rack.clone().unwrap_or_else(|| "everywhere".into()),
            pool.vrf.clone(),
            if more > 0 { format!("{first} and {more} more") } else { first },
        ]
    });
    table(&["NAME", "KIND", "FAMILY", "WHERE", "VRF", "PREFIXES"], rows)
}

fn show_pool(pool: &Pool, usage: Option<&Utilisation>) -> String {
    let mut lines = vec![
        format!("{}  {}", pool.name, pool.id),
        format!("  kind        {} IPv{}", pool.kind, pool.family),
        format!("  where       {}", pool.rack.as_deref().unwrap_or("everywhere")),
        format!("  vrf         {}", pool.vrf),
        format!("  quarantine  {} minutes", pool.quarantine_minutes),
        format!("  purpose     {}", or_dash(Some(&pool.purpose))),
        format!("  prefixes    {}", pool.prefixes.join(", ")),
    ];
    if let Some(usage) = usage {
        let largest = usage.largest_free.map_or("none".into(), |length| format!("a /{length}"));
        lines.push(format!("  claimed     {} of {}", usage.claimed, usage.total));
        lines.push(format!("  reserved    {}", usage.reserved));
        lines.push(format!("  resting     {}", usage.quarantined));
        lines.push(format!("  free        {}, the largest block {largest}", usage.free));
    }
    lines.join("\n")
}

fn show_report(lines: &[Utilisation]) -> String {
    let percent = |share: f64| format!("{:.1} %", share * 100.0);
    let rows = lines.iter().map(|line| {
        vec![
            line.pool.clone(),
            percent(line.used),
            line.total.clone(),
            line.claimed.clone(),
            line.reserved.clone(),
            line.quarantined.clone(),
            line.free.clone(),
            line.largest_free.map_or("-".into(), |length| format!("/{length}")),
            percent(line.fragmentation),
        ]
    });
    let header = ["POOL", "USED", "TOTAL", "CLAIMED", "RESERVED", "RESTING", "FREE", "LARGEST", "FRAGMENTED"];
    table(&header, rows)
}

fn show_aggregates(aggregates: &[Aggregate]) -> String {
    if aggregates.is_empty() {
        return "no aggregates yet: rackhand aggregate create 10.0.0.0/8 --private".into();
    }
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
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn claims() -> Vec<Claim> {
        serde_json::from_value(json!([
            {
                "id": "1", "prefix": "10.9.0.4/31", "pool": "private-4", "reserved": false, "machine": "2",
                "mac": "52:54:00:00:00:01", "name": "web-1", "project": "acme:shop", "purpose": "", "claimed_by": "admin",
                "released_by": null, "since": "2026-01-01T00:00:00Z", "until": null,
            },
            {
                "id": "2", "prefix": "10.9.0.1/32", "pool": "private-4", "reserved": true, "machine": null, "mac": null,
                "name": "gateway", "project": null, "purpose": "router", "claimed_by": "admin", "released_by": "admin",
                "since": "2026-01-01T00:00:00Z", "until": "2026-01-02T00:00:00Z",
            },
        ]))
        .unwrap()
    }

    #[test]
    fn claims_and_histories_are_tables() {
        expect![[r#"
            ADDRESS      HELD BY                  POOL       PROJECT    SINCE                 PURPOSE
            10.9.0.4/31  web-1 52:54:00:00:00:01  private-4  acme:shop  2026-01-01T00:00:00Z  -
            10.9.0.1/32  gateway (reserved)       private-4  -          2026-01-01T00:00:00Z  router"#]]
        .assert_eq(&show_claims(&claims()));
        expect![[r#"
            SINCE                 UNTIL                 HELD BY                  IN           PROJECT    CLAIMED BY
            2026-01-01T00:00:00Z  now                   web-1 52:54:00:00:00:01  10.9.0.4/31  acme:shop  admin
            2026-01-01T00:00:00Z  2026-01-02T00:00:00Z  gateway (reserved)       10.9.0.1/32  -          admin"#]]
        .assert_eq(&show_history("10.9.0.1", None, &claims()));
        let at = "2026-01-01T12:00:00Z".parse().unwrap();
        expect!["nobody held 10.9.0.9 at 2026-01-01T12:00:00Z"].assert_eq(&show_history("10.9.0.9", Some(at), &[]));
    }

    #[test]
    fn a_pools_page_tells_how_much_of_it_is_used() {
        let pool: Pool = serde_json::from_value(json!({
            "id": "1", "name": "private-4", "vrf": "default", "family": 4, "kind": "private", "rack": null,
            "quarantine_minutes": 60, "purpose": "", "prefixes": ["10.9.0.0/24", "10.9.4.0/30"], "created": "x",
        }))
        .unwrap();
        let usage: Utilisation = serde_json::from_value(json!({
            "pool": "private-4", "family": 4, "total": "260", "claimed": "2", "reserved": "1", "quarantined": "0",
            "free": "257", "used": 0.0115, "largest_free": 25, "fragmentation": 0.502,
        }))
        .unwrap();
        expect![[r#"
            private-4  1
              kind        private IPv4
              where       everywhere
              vrf         default
              quarantine  60 minutes
              purpose     -
              prefixes    10.9.0.0/24, 10.9.4.0/30
              claimed     2 of 260
              reserved    1
              resting     0
              free        257, the largest block a /25"#]]
        .assert_eq(&show_pool(&pool, Some(&usage)));
        expect![[r#"
            POOL       USED   TOTAL  CLAIMED  RESERVED  RESTING  FREE  LARGEST  FRAGMENTED
            private-4  1.1 %  260    2        1         0        257   /25      50.2 %"#]]
        .assert_eq(&show_report(&[usage]));
        expect![[r#"
            NAME       KIND     FAMILY  WHERE       VRF      PREFIXES
            private-4  private  IPv4    everywhere  default  10.9.0.0/24 and 1 more"#]]
        .assert_eq(&show_pools(&[pool]));
    }

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
        .assert_eq(&show_aggregates(&aggregates));
    }

    #[test]
    fn a_value_in_a_query_is_only_that() {
        assert_eq!(escaped("10.9.0.4/31"), "10.9.0.4/31");
        assert_eq!(escaped("a b&limit=1#é"), "a%20b%26limit%3D1%23%C3%A9");
    }
}
