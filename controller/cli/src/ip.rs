//! `rackhand ip`: claims of addresses, and who had what.

use std::net::IpAddr;

use clap::{Args, Subcommand};
use jiff::Timestamp;
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    client::{Client, given_only, view},
    grant::{self, Grant, Grantee, USES},
    moment::moment,
    output::{Output, done, print},
    show::{Table, or_dash, second, table},
    watch::{self, Told, Watch},
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
    /// Move a claim to another machine, port or name
    #[command(after_help = "  rackhand ip move 198.51.100.17 --machine web-2
  rackhand ip move 198.51.100.16/28 --name vpn
  rackhand ip move 10.9.0.4/31 --machine web-1 --mac 52:54:00:12:34:57

At one instant it is the other's: at no time are the addresses nobody's, or anybody's else. The names that
reverse DNS answers for them stay; what other machines announce of it ends when a machine holds it. `rackhand
ip who` tells who held them until when. The controller does not configure the machines: what answers for the
addresses there is yours to move.")]
    Move {
        /// The address or block, as `rackhand ip list` shows it, or the claim's id
        claim: String,
        #[command(flatten)]
        holder: Holder,
        /// With an address: in this VRF, when several have it
        #[arg(long, value_name = "POOL")]
        pool: Option<String>,
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
        #[command(flatten)]
        watch: Watch,
    },
    /// Say what reverse DNS answers for an address
    #[command(after_help = "  rackhand ip name 198.51.100.17                            # what it answers
  rackhand ip name 198.51.100.17 web-1.example.net
  rackhand ip name 198.51.100.17 --remove

An address has a name while it is claimed. Name servers get the names by `rackhand ip zone`.")]
    Name {
        /// The address
        address: String,
        /// The host's name in full; without it, what it is now
        #[arg(conflicts_with = "remove")]
        name: Option<String>,
        /// Take the name away
        #[arg(long)]
        remove: bool,
        /// In this VRF
        #[arg(long, default_value = "default")]
        vrf: String,
    },
    /// Print a zone of reverse DNS as a file for a name server
    #[command(
        after_help = "  rackhand ip zone 198.51.100.0/24 > 100.51.198.in-addr.arpa.inc       # to $INCLUDE in a zone
  rackhand ip zone 198.51.100.0/24 --server ns1.example.net --server ns2.example.net > 100.51.198.in-addr.arpa

The length is 8, 16, 24 or 25 to 31 (RFC 2317) for IPv4, a multiple of 4 for IPv6."
    )]
    Zone {
        /// Its addresses
        #[arg(value_name = "ADDRESS/LENGTH")]
        prefix: String,
        /// A name server of the zone, the primary first; may be repeated
        #[arg(long = "server", value_name = "NAME")]
        servers: Vec<String>,
        /// The mailbox of whoever looks after it, with a dot for the `@`
        #[arg(long, value_name = "NAME", requires = "servers")]
        contact: Option<String>,
        /// In this VRF
        #[arg(long, default_value = "default")]
        vrf: String,
    },
    /// Have a machine announce a claim's addresses
    #[command(after_help = "  rackhand ip claim anycast-4 --name resolver --project acme:shop
  rackhand ip announce 192.0.2.53 --machine dns-1
  rackhand ip announce 192.0.2.53 --machine dns-2
  rackhand ip withdraw 192.0.2.53 --machine dns-1

What is held by a name can be announced by several machines: from a global or private pool in any
site (anycast), from a public one in one site. What a machine holds it alone can announce. It takes
a grant to announce, of the pool or of the claim. Filters are made of what `rackhand ip
announcements` lists: the controller speaks no BGP.")]
    Announce {
        /// The address or block, as `rackhand ip list` shows it, or the claim's id
        claim: String,
        /// By this machine: name or id
        #[arg(long)]
        machine: String,
        /// With an address: in this VRF, when several have it
        #[arg(long, value_name = "POOL")]
        pool: Option<String>,
    },
    /// Have a machine announce a claim's addresses no longer
    Withdraw {
        /// The address or block, as `rackhand ip list` shows it, or the claim's id
        claim: String,
        /// By this machine: name or id
        #[arg(long)]
        machine: String,
        /// With an address: in this VRF, when several have it
        #[arg(long, value_name = "POOL")]
        pool: Option<String>,
    },
    /// List which machines announce which addresses, or who announced one
    #[command(after_help = "  rackhand ip announcements --machine dns-1
  rackhand ip announcements --output json                       # for a router's filters
  rackhand ip announcements --address 192.0.2.53                # who does, and who ever did
  rackhand ip announcements --address 192.0.2.53 --at 2026-11-24T12:00:00Z")]
    Announcements {
        /// Only by this machine
        #[arg(long, conflicts_with = "address")]
        machine: Option<String>,
        /// Only by machines of this rack
        #[arg(long, conflicts_with = "address")]
        rack: Option<String>,
        /// Only of this project's addresses
        #[arg(long, conflicts_with = "address")]
        project: Option<String>,
        /// Of this address, also those that were withdrawn
        #[arg(long)]
        address: Option<String>,
        /// Only at this time, as 2026-11-24, 2026-11-24T12:00 (both UTC) or 2026-11-24T13:00:00+01:00
        #[arg(long, value_name = "TIME", value_parser = moment, requires = "address")]
        at: Option<Timestamp>,
        /// With an address: in this VRF
        #[arg(long, requires = "address")]
        vrf: Option<String>,
    },
    /// Let somebody use a claim's addresses
    #[command(after_help = "  rackhand ip grant 192.0.2.53 --project acme:shop --may announce
  rackhand ip grant 198.51.100.17 --for-token 01931b1e-0000-7000-8000-000000000000 --may assign
  rackhand ip revoke 198.51.100.17 --everyone

A claim's addresses are used as the grants of its pool say. With the first grant of its own it takes
those along, and from then on its own count alone. Each adds to what somebody may already. Only who
sets up address space gives them.")]
    Grant {
        /// The address or block, as `rackhand ip list` shows it, or the claim's id
        claim: String,
        #[command(flatten)]
        to: Grantee,
        /// What: say who holds them, have machines announce them, name them in reverse DNS; all but announce
        /// if not given
        #[arg(long, value_parser = USES)]
        may: Vec<String>,
        /// With an address: in this VRF, when several have it
        #[arg(long, value_name = "POOL")]
        pool: Option<String>,
    },
    /// Take a grant of a claim back, or all: then those of its pool count again
    #[command(after_help = "  rackhand ip revoke 198.51.100.17 --project acme:shop
  rackhand ip revoke 198.51.100.17                              # as its pool says")]
    Revoke {
        /// The address or block, as `rackhand ip list` shows it, or the claim's id
        claim: String,
        #[command(flatten)]
        to: Grantee,
        /// With an address: in this VRF, when several have it
        #[arg(long, value_name = "POOL")]
        pool: Option<String>,
    },
    /// Show one claim
    Show {
        /// The address or block, as `rackhand ip list` shows it, or the claim's id
        claim: String,
        /// With an address: in this VRF, when several have it
        #[arg(long, value_name = "POOL")]
        pool: Option<String>,
    },
    /// Tell who has an address, and who had it
    #[command(after_help = "  rackhand ip who 198.51.100.17
  rackhand ip who 198.51.100.17 --at 2026-11-24T12:00:00Z     # for a complaint about that time

Whose block it was in: `rackhand ip blocks`. Which machines announced it: `rackhand ip announcements`.")]
    Who {
        #[command(flatten)]
        past: Past,
    },
    /// Tell which project has an address in a block of its own, and which had
    #[command(after_help = "  rackhand ip blocks 10.64.0.17
  rackhand ip blocks 10.64.0.17 --at 2026-11-24T12:00:00Z")]
    Blocks {
        #[command(flatten)]
        past: Past,
    },
}

/// An address, and when.
#[derive(Args)]
pub(crate) struct Past {
    /// The address
    address: String,
    /// Only at this time, as 2026-11-24, 2026-11-24T12:00 (both UTC) or 2026-11-24T13:00:00+01:00
    #[arg(long, value_name = "TIME", value_parser = moment)]
    at: Option<Timestamp>,
    /// In this VRF
    #[arg(long, default_value = "default")]
    vrf: String,
}

impl Past {
    fn query(&self) -> Vec<(&'static str, String)> {
        given_only([("vrf", Some(self.vrf.clone())), ("at", self.at.map(|at| at.to_string()))])
    }
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
    grants: Option<Vec<Grant>>,
    claimed_by: String,
    since: Timestamp,
    until: Option<Timestamp>,
}

/// That a machine announces addresses, or did.
#[derive(Clone, Debug, Deserialize)]
struct Announcement {
    id: String,
    prefix: String,
    name: String,
    project: Option<String>,
    announced_by: String,
    since: Timestamp,
    until: Option<Timestamp>,
}

/// A block that is, or was, a project's own.
#[derive(Clone, Debug, Deserialize)]
struct ProjectBlock {
    prefix: String,
    pool: String,
    project: String,
    since: Timestamp,
    until: Option<Timestamp>,
}

/// What reverse DNS answers for an address.
#[derive(Clone, Debug, Deserialize)]
struct AddressName {
    address: String,
    name: String,
}

pub(crate) async fn run(client: &Client, command: IpCommand, output: Output) -> anyhow::Result<String> {
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
        IpCommand::Move { claim, holder, pool } => {
            let id = the_claim(client, "move", claim, pool.as_deref()).await?;
            let Holder { machine, mac, name } = holder;
            let given = [("machine", machine), ("mac", mac), ("name", name)];
            let body: Value = given.into_iter().filter_map(|(name, value)| Some((name, json!(value?)))).collect();
            let moved = client.ask(Method::PATCH, &format!("/v1/claims/{id}"), Some(body)).await?;
            print(output, moved, |claim: Claim| format!("{} is {}'s", claim.prefix, held_by(&claim)))
        }
        IpCommand::Release { claim, pool } => {
            let id = the_claim(client, "release", claim, pool.as_deref()).await?;
            let released = client.ask(Method::DELETE, &format!("/v1/claims/{id}"), None).await?;
            print(output, released, |claim: Claim| format!("{} of {} is released", claim.prefix, claim.name))
        }
        IpCommand::List { pool, machine, name, address, watch } => {
            let given = [("pool", pool), ("machine", machine), ("name", name), ("address", address)];
            let query = given_only(given);
            let fetch = async || Ok(client.list_with("/v1/claims", query.clone()).await?.into());
            watch::show(client, output, watch, Told::ByNobody, fetch, |claims: Vec<_>| list(&claims)).await
        }
        IpCommand::Name { address, name, remove, vrf } => {
            let path = format!("/v1/addresses/{address}/name?vrf={vrf}");
            if remove {
                client.ask(Method::DELETE, &path, None).await?;
                return Ok(done(output, format!("{address} has no name any more")));
            }
            let named = match name {
                Some(name) => client.ask(Method::PUT, &path, Some(json!({"name": name}))).await?,
                None => client.get(&path).await?,
            };
            print(output, named, |named: AddressName| format!("{} is {}", named.address, named.name))
        }
        IpCommand::Zone { prefix, servers, contact, vrf } => {
            let servers = Some(servers.join(",")).filter(|servers| !servers.is_empty());
            let given = [("prefix", Some(prefix)), ("vrf", Some(vrf)), ("servers", servers), ("contact", contact)];
            client.text("/v1/reverse-zone", &given_only(given)).await
        }
        IpCommand::Announce { claim, machine, pool } => {
            let id = the_claim(client, "announce", claim, pool.as_deref()).await?;
            let path = format!("/v1/claims/{id}/announcements/{machine}");
            let announced = client.ask(Method::PUT, &path, None).await?;
            print(output, announced, |one: Announcement| format!("{} announces {}", one.name, one.prefix))
        }
        IpCommand::Withdraw { claim, machine, pool } => {
            let id = the_claim(client, "withdraw", claim.clone(), pool.as_deref()).await?;
            client.ask(Method::DELETE, &format!("/v1/claims/{id}/announcements/{machine}"), None).await?;
            Ok(done(output, format!("{machine} announces {claim} no longer")))
        }
        IpCommand::Announcements { address: Some(address), at, vrf, .. } => {
            let query = given_only([("vrf", vrf), ("at", at.map(|at| at.to_string()))]);
            let found = client.list_with(&format!("/v1/addresses/{address}/announcements"), query).await?;
            let nobody = never("announced", &address, at);
            print(output, found.into(), |found: Vec<_>| announcements(&found).or_say(nobody))
        }
        IpCommand::Announcements { machine, rack, project, .. } => {
            let query = given_only([("machine", machine), ("rack", rack), ("project", project)]);
            let found = client.list_with("/v1/announcements", query).await?;
            print(output, found.into(), |found: Vec<_>| {
                announcements(&found).or_say("nothing is announced: rackhand ip announce ADDRESS --machine NAME")
            })
        }
        IpCommand::Grant { claim, to, may, pool } => {
            let to = to.value(client).await?;
            let id = the_claim(client, "grant", claim, pool.as_deref()).await?;
            regrant(client, output, &id, |grants| Ok(grant::given(grants, &to, &may))).await
        }
        IpCommand::Revoke { claim, to, pool } if to.is_told() => {
            let to = to.value(client).await?;
            let id = the_claim(client, "revoke", claim, pool.as_deref()).await?;
            regrant(client, output, &id, |grants| grant::without(grants, &to)).await
        }
        IpCommand::Revoke { claim, to: _, pool } => {
            let id = the_claim(client, "revoke", claim, pool.as_deref()).await?;
            let claim = client.ask(Method::DELETE, &format!("/v1/claims/{id}/grants"), None).await?;
            print(output, claim, |claim: Claim| page(&claim))
        }
        IpCommand::Show { claim, pool } => {
            let id = the_claim(client, "show", claim, pool.as_deref()).await?;
            print(output, client.get(&format!("/v1/claims/{id}")).await?, |claim: Claim| page(&claim))
        }
        IpCommand::Who { past } => {
            let claims = client.list_with(&format!("/v1/addresses/{}/history", past.address), past.query()).await?;
            print(output, claims.into(), |claims: Vec<_>| show_history(&past.address, past.at, &claims))
        }
        IpCommand::Blocks { past } => {
            let found = client.list_with(&format!("/v1/addresses/{}/blocks", past.address), past.query()).await?;
            let nobody = never("had a block of its own with", &past.address, past.at);
            print(output, found.into(), |found: Vec<_>| blocks(&found).or_say(nobody))
        }
    }
}

/// Changes a claim's grants, which are those of its pool before it has its own.
async fn regrant(
    client: &Client,
    output: Output,
    id: &str,
    change: impl FnOnce(Vec<Value>) -> anyhow::Result<Vec<Value>>,
) -> anyhow::Result<String> {
    let path = format!("/v1/claims/{id}/grants");
    let changed = grant::change(client, &path, (Method::PUT, &path), change).await?;
    print(output, changed, |claim: Claim| page(&claim))
}

fn page(claim: &Claim) -> String {
    let until = claim.until.map_or_else(|| "now".into(), second);
    let grants = claim.grants.as_deref().map_or_else(|| format!("those of pool {}", claim.pool), grant::words);
    [
        format!("{}  {}", claim.prefix, claim.id),
        format!("  held by     {}", held_by(claim)),
        format!("  pool        {}", claim.pool),
        format!("  project     {}", or_dash(claim.project.as_deref())),
        format!("  purpose     {}", or_dash(Some(&claim.purpose))),
        format!("  grants      {grants}"),
        format!("  from        {} until {until}", second(claim.since)),
        format!("  claimed by  {}", claim.claimed_by),
    ]
    .join("\n")
}

/// That nobody did something with an address.
fn never(did: &str, address: &str, at: Option<Timestamp>) -> String {
    match at {
        Some(at) => format!("nobody {did} {address} at {}", second(at)),
        None => format!("nobody ever {did} {address}"),
    }
}

fn announcements(found: &[Announcement]) -> Table {
    let rows = found.iter().map(|one| {
        vec![
            one.prefix.clone(),
            one.name.clone(),
            or_dash(one.project.as_deref()),
            second(one.since),
            one.until.map_or_else(|| "now".into(), second),
            one.announced_by.clone(),
            one.id.clone(),
        ]
    });
    table(&["ADDRESS", "MACHINE", "PROJECT", "SINCE", "UNTIL", "ANNOUNCED BY", "ID"], rows)
        .shorten(&["PROJECT", "ANNOUNCED BY"])
        .only_wide(&["ID"])
}

fn blocks(found: &[ProjectBlock]) -> Table {
    let rows = found.iter().map(|one| {
        let until = one.until.map_or_else(|| "now".into(), second);
        vec![one.project.clone(), one.prefix.clone(), second(one.since), until, one.pool.clone()]
    });
    table(&["PROJECT", "BLOCK", "SINCE", "UNTIL", "POOL"], rows)
}

/// The id of the claim with this id, or of exactly these addresses.
async fn the_claim(client: &Client, verb: &str, claim: String, pool: Option<&str>) -> anyhow::Result<String> {
    if !claim.contains(['.', ':']) {
        return Ok(claim);
    }
    let address = claim.as_str();
    let query = given_only([("address", Some(address.to_owned())), ("pool", pool.map(str::to_owned))]);
    let found = client.list_with("/v1/claims", query).await?;
    let claims: Vec<Claim> = view(found.into())?;
    // As the controller writes it.
    let (first, length) =
        address.split_once('/').unwrap_or((address, if address.contains(':') { "128" } else { "32" }));
    let whole = first.parse::<IpAddr>().map(|first| format!("{first}/{length}")).unwrap_or_default();
    match claims.as_slice() {
        [] => anyhow::bail!("{address} is not claimed; see who had it: rackhand ip who ADDRESS"),
        [one] if one.prefix == whole => Ok(one.id.clone()),
        [one] => anyhow::bail!(
            "{address} is part of {}, which {} holds; to {verb} all of it: rackhand ip {verb} {}",
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

/// What holds it, with its port.
fn held_by(claim: &Claim) -> String {
    match &claim.mac {
        _ if claim.reserved => format!("{} (reserved)", claim.name),
        Some(mac) => format!("{} {mac}", claim.name),
        None => claim.name.clone(),
    }
}

fn list(claims: &[Claim]) -> Table {
    let rows = claims.iter().map(|claim| {
        vec![
            claim.prefix.clone(),
            held_by(claim),
            claim.pool.clone(),
            or_dash(claim.project.as_deref()),
            second(claim.since),
            or_dash(Some(&claim.purpose)),
            claim.claimed_by.clone(),
            claim.id.clone(),
        ]
    });
    table(&["ADDRESS", "HELD BY", "POOL", "PROJECT", "SINCE", "PURPOSE", "CLAIMED BY", "ID"], rows)
        .shorten(&["PURPOSE", "PROJECT"])
        .only_wide(&["CLAIMED BY", "ID"])
        .or_say("nothing is claimed: rackhand ip claim POOL --machine NAME")
}

fn show_history(address: &str, at: Option<Timestamp>, claims: &[Claim]) -> Table {
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
        .shorten(&["PROJECT", "CLAIMED BY"])
        .or_say(never("held", address, at))
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
        .assert_eq(&list(&claims()).to_string());
        expect![[r#"
            SINCE                 UNTIL                 HELD BY                  IN           PROJECT    CLAIMED BY
            2026-01-01T00:00:00Z  now                   web-1 52:54:00:00:00:01  10.9.0.4/31  acme:shop  admin
            2026-01-01T00:00:00Z  2026-01-02T00:00:00Z  gateway (reserved)       10.9.0.1/32  -          admin"#]]
        .assert_eq(&show_history("10.9.0.1", None, &claims()).to_string());
        let at = "2026-01-01T12:00:00Z".parse().unwrap();
        expect!["nobody held 10.9.0.9 at 2026-01-01T12:00:00Z"]
            .assert_eq(&show_history("10.9.0.9", Some(at), &[]).to_string());
    }

    #[test]
    fn a_claim_tells_whose_grants_count() {
        let mut claim = claims().remove(0);
        expect![[r#"
            10.9.0.4/31  1
              held by     web-1 52:54:00:00:00:01
              pool        private-4
              project     acme:shop
              purpose     -
              grants      those of pool private-4
              from        2026-01-01T00:00:00Z until now
              claimed by  admin"#]]
        .assert_eq(&page(&claim));
        let own = json!([{"to": {"project": "acme:shop"}, "may": ["announce"]}, {"to": "everyone", "may": ["assign"]}]);
        claim.grants = serde_json::from_value(own).unwrap();
        let told = page(&claim);
        let grants = told.lines().find(|line| line.starts_with("  grants")).unwrap();
        expect!["  grants      project acme:shop may announce; everyone may assign"].assert_eq(grants);
    }

    #[test]
    fn announcements_and_blocks_are_tables() {
        let found: Vec<Announcement> = serde_json::from_value(json!([
            {
                "id": "1", "claim": "2", "prefix": "192.0.2.53/32", "machine": "3", "name": "dns-1",
                "project": "acme:shop", "announced_by": "ann", "withdrawn_by": null, "since": "2026-01-01T00:00:00Z",
                "until": null,
            },
            {
                "id": "4", "claim": "2", "prefix": "192.0.2.53/32", "machine": "5", "name": "dns-2", "project": null,
                "announced_by": "ann", "withdrawn_by": "bob", "since": "2026-01-01T00:00:00Z",
                "until": "2026-01-02T00:00:00Z",
            },
        ]))
        .unwrap();
        expect![[r#"
            ADDRESS        MACHINE  PROJECT    SINCE                 UNTIL                 ANNOUNCED BY
            192.0.2.53/32  dns-1    acme:shop  2026-01-01T00:00:00Z  now                   ann
            192.0.2.53/32  dns-2    -          2026-01-01T00:00:00Z  2026-01-02T00:00:00Z  ann"#]]
        .assert_eq(&announcements(&found).to_string());
        let found: Vec<ProjectBlock> = serde_json::from_value(json!([{
            "prefix": "10.64.0.0/25", "pool": "projects-4.shop", "project": "acme:shop",
            "since": "2026-01-01T00:00:00Z", "until": null,
        }]))
        .unwrap();
        expect![[r#"
            PROJECT    BLOCK         SINCE                 UNTIL  POOL
            acme:shop  10.64.0.0/25  2026-01-01T00:00:00Z  now    projects-4.shop"#]]
        .assert_eq(&blocks(&found).to_string());
    }
}
