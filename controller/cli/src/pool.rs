//! `rackhand pool`: addresses to claim from.

use clap::Subcommand;
use jiff::{Timestamp, civil::Date};
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    client::Client,
    grant::{self, Grant, Grantee, USES},
    moment::moment,
    output::{Output, done, print},
    show::{Table, or_dash, table},
    watch::{self, Told, Watch},
};

#[derive(Subcommand)]
pub(crate) enum PoolCommand {
    /// Create a pool
    #[command(after_help = "  rackhand aggregate create 10.0.0.0/8 --private
  rackhand pool create private-4 --kind private --prefix 10.9.0.0/16
  rackhand pool create lab-4 --kind private --prefix 10.10.0.0/24 --rack lab --quarantine 60
  rackhand pool create fra1-4 --kind private --prefix 10.11.0.0/16 --site fra1
  rackhand pool create projects-4 --kind private --prefix 10.64.0.0/12 --project-blocks 25
  rackhand pool create projects-6 --kind public --prefix 2001:db8:100::/40 --project-blocks 56

Its prefixes are taken out of aggregates. With --project-blocks each project gets a block of that length
for itself with its first claim, and another when those it has are full. Addresses that nobody is to get (a gateway, a broadcast
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
        #[arg(long, conflicts_with = "site")]
        rack: Option<String>,
        /// Only for the machines of this site's racks
        #[arg(long)]
        site: Option<String>,
        /// How long released addresses rest before anybody gets them again; a day if not given
        #[arg(long, value_name = "MINUTES")]
        quarantine: Option<u32>,
        /// What for
        #[arg(long, default_value = "")]
        purpose: String,
        /// Give each project blocks of this length for itself
        #[arg(long, value_name = "LENGTH")]
        project_blocks: Option<u8>,
        /// How many blocks a project gets at most; 8 if not given
        #[arg(long, value_name = "NUMBER", requires = "project_blocks")]
        most: Option<u32>,
        /// Let nobody claim from it but who sets up address space, until `rackhand pool grant`
        #[arg(long)]
        no_grants: bool,
    },
    /// Let somebody use a pool's addresses
    #[command(after_help = "  rackhand pool grant transit-4 --project acme:shop --may assign
  rackhand pool grant transit-4 --role operator --may assign --may reverse
  rackhand pool revoke transit-4 --everyone

A role says what somebody may do in their project, a grant whose project may do it with these addresses:
both are needed. It adds to what they may already. A new pool is for everyone to assign and to reverse; revoke
that to keep it for some.")]
    Grant {
        /// Name or id
        pool: String,
        #[command(flatten)]
        to: Grantee,
        /// What: claim addresses, have machines announce them, name them in reverse DNS; all but announce if
        /// not given
        #[arg(long, value_parser = USES)]
        may: Vec<String>,
    },
    /// Take a grant back: what is claimed already stays
    Revoke {
        /// Name or id
        pool: String,
        #[command(flatten)]
        to: Grantee,
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
    List {
        #[command(flatten)]
        watch: Watch,
    },
    /// Show one pool and how much of it is used
    Show {
        /// Name or id
        pool: String,
        #[command(flatten)]
        watch: Watch,
    },
    /// Report how much of all pools is used
    #[command(after_help = "  rackhand pool report
  rackhand pool report --by project
  rackhand pool report --by project --since 2026-11-01T00:00:00Z      # and how that changed
  rackhand pool report --output csv > utilisation.csv

FRAGMENTED tells how much of the free space lies outside of the largest free block.")]
    Report {
        /// Of each project or each site instead of each pool
        #[arg(long, value_parser = ["project", "site"])]
        by: Option<String>,
        /// With --by: and how many more, or fewer, that is than at this time
        #[arg(long, value_name = "TIME", value_parser = moment, requires = "by")]
        since: Option<Timestamp>,
    },
    /// Tell how much of a pool was used from day to day, and when it will be full
    #[command(after_help = "  rackhand pool trend public-4
  rackhand pool trend public-4 --days 731 --output csv > public-4.csv

The picture is as high as the pool was full; a gap is a time of which nothing is known. When it is full is
reckoned from the latest thirty days. The controller takes note once a day (UTC), and keeps two years.")]
    Trend {
        /// Name or id
        pool: String,
        /// The latest so many days
        #[arg(long, value_name = "NUMBER", default_value_t = 90)]
        days: u32,
    },
    /// Draw where a pool has room
    #[command(after_help = "  rackhand pool map private-4

Each prefix is cut into 64 parts of one size: the darker one is, the less of it is free.")]
    Map {
        /// Name or id
        pool: String,
    },
    /// Change a pool's name, quarantine or purpose; what is not given stays
    Change {
        /// Name or id
        pool: String,
        /// Give it another name
        #[arg(long, value_name = "NAME")]
        rename: Option<String>,
        /// How long addresses rest that are released from now on
        #[arg(long, value_name = "MINUTES")]
        quarantine: Option<u32>,
        /// What for
        #[arg(long)]
        purpose: Option<String>,
    },
    /// Delete a pool in which nothing is claimed, reserved or in quarantine
    Delete {
        /// Name or id
        pool: String,
    },
}

#[derive(Clone, Debug, Deserialize)]
struct Blocks {
    length: u8,
    most: u32,
}

#[derive(Clone, Debug, Deserialize)]
struct Pool {
    id: String,
    name: String,
    vrf: String,
    family: u8,
    kind: String,
    rack: Option<String>,
    site: Option<String>,
    quarantine_minutes: u32,
    purpose: String,
    prefixes: Vec<String>,
    blocks: Option<Blocks>,
    parent: Option<String>,
    project: Option<String>,
    grants: Vec<Grant>,
}

impl Pool {
    /// Where machines may have its addresses.
    fn place(&self) -> String {
        match (&self.rack, &self.site) {
            (Some(rack), _) => format!("rack {rack}"),
            (None, Some(site)) => format!("site {site}"),
            (None, None) => "everywhere".into(),
        }
    }
}

/// A pool and how much of it is used.
#[derive(Clone, Debug, Deserialize)]
struct Used {
    #[serde(flatten)]
    pool: Pool,
    usage: Option<Utilisation>,
}

#[derive(Clone, Debug, Deserialize)]
struct Utilisation {
    pool: String,
    total: String,
    claimed: String,
    reserved: String,
    quarantined: String,
    blocks: String,
    free: String,
    used: f64,
    largest_free: Option<u8>,
    fragmentation: f64,
}

pub(crate) async fn run(client: &Client, command: PoolCommand, output: Output) -> anyhow::Result<String> {
    match command {
        PoolCommand::Create {
            name,
            kind,
            prefixes,
            vrf,
            rack,
            site,
            quarantine,
            purpose,
            project_blocks,
            most,
            no_grants,
        } => {
            let mut body = json!({
                "name": name, "kind": kind, "prefixes": prefixes, "vrf": vrf, "rack": rack, "site": site,
                "quarantine_minutes": quarantine, "purpose": purpose,
            });
            if let Some(length) = project_blocks {
                body["blocks"] = json!({"length": length});
            }
            if let Some(most) = most {
                body["blocks"]["most"] = most.into();
            }
            if no_grants {
                body["grants"] = json!([]);
            }
            print(output, client.post("/v1/pools", body).await?, |pool: Pool| {
                format!("pool {} is there; next: rackhand ip claim {} --machine NAME", pool.name, pool.name)
            })
        }
        PoolCommand::Grant { pool, to, may } => {
            let to = to.value(client).await?;
            regrant(client, output, &pool, |grants| Ok(grant::given(grants, &to, &may))).await
        }
        PoolCommand::Revoke { pool, to } => {
            let to = to.value(client).await?;
            regrant(client, output, &pool, |grants| grant::without(grants, &to)).await
        }
        PoolCommand::Extend { pool, prefixes } => {
            let path = format!("/v1/pools/{pool}/prefixes");
            let extended = client.post(&path, json!({"prefixes": prefixes})).await?;
            print(output, extended, |pool: Pool| list(&[pool]))
        }
        PoolCommand::List { watch } => {
            let fetch = async || Ok(client.list("/v1/pools").await?.into());
            watch::show(client, output, watch, Told::ByNobody, fetch, |pools: Vec<_>| list(&pools)).await
        }
        PoolCommand::Show { pool, watch } => {
            let fetch = async || {
                let mut value: Value = client.get(&format!("/v1/pools/{pool}")).await?;
                if output.is_for_people() {
                    let report = client.list_with("/v1/utilisation", vec![("pool", pool.clone())]).await?;
                    value["usage"] = report.into_iter().next().unwrap_or_default();
                }
                Ok(value)
            };
            let shown = |Used { pool, usage }| page(&pool, usage.as_ref());
            watch::show(client, output, watch, Told::ByNobody, fetch, shown).await
        }
        PoolCommand::Map { pool } => {
            let space = client.get(&format!("/v1/pools/{pool}/space")).await?;
            print(output, space, |space: Space| drawing(&space))
        }
        PoolCommand::Trend { pool, days } => {
            let (path, mut query) = (format!("/v1/pools/{pool}/trend"), vec![("days", days.to_string())]);
            if output == Output::Csv {
                query.push(("format", "csv".into()));
                return client.text(&path, &query).await;
            }
            print(output, client.get_with(&path, &query).await?, |trend: Trend| heading(&trend))
        }
        PoolCommand::Report { by: Some(by), since } => {
            let path = format!("/v1/utilisation/{by}s");
            let mut held = client.list(&path).await?;
            if let Some(since) = since {
                let before = client.list_with(&path, vec![("at", since.to_string())]).await?;
                compare(&mut held, before);
            }
            print(output, held.into(), |held: Vec<_>| holdings(&by, &held))
        }
        PoolCommand::Report { by: None, .. } if output == Output::Csv => client.csv("/v1/utilisation").await,
        PoolCommand::Report { by: None, .. } => {
            print(output, client.list("/v1/utilisation").await?.into(), |lines: Vec<_>| report(&lines))
        }
        PoolCommand::Change { pool, rename, quarantine, purpose } => {
            let given =
                [("name", json!(rename)), ("quarantine_minutes", json!(quarantine)), ("purpose", json!(purpose))];
            let body: Value = given.into_iter().filter(|(_, value)| !value.is_null()).collect();
            let changed = client.ask(Method::PATCH, &format!("/v1/pools/{pool}"), Some(body)).await?;
            print(output, changed, |pool: Pool| page(&pool, None))
        }
        PoolCommand::Delete { pool } => {
            client.ask(Method::DELETE, &format!("/v1/pools/{pool}"), None).await?;
            Ok(done(output, format!("pool {pool} is deleted")))
        }
    }
}

/// What a project or a site has.
#[derive(Clone, Debug, Deserialize)]
struct Holding {
    name: Option<String>,
    family: u8,
    claimed: String,
    reserved: String,
    blocks: String,
    before: Option<Counts>,
}

/// What it had.
#[derive(Clone, Debug, Deserialize)]
struct Counts {
    claimed: String,
    reserved: String,
}

/// How much of a pool was used, and where that is heading.
#[derive(Clone, Debug, Deserialize)]
struct Trend {
    pool: String,
    samples: Vec<Sample>,
    change: Option<TrendChange>,
}

#[derive(Clone, Debug, Deserialize)]
struct Sample {
    day: Date,
    total: String,
    free: String,
    used: f64,
}

#[derive(Clone, Debug, Deserialize)]
struct TrendChange {
    since: Date,
    addresses: String,
    full: Option<Date>,
}

/// Where a pool has room.
#[derive(Clone, Debug, Deserialize)]
struct Space {
    free: Vec<FreeBlocks>,
    pictures: Vec<Picture>,
}

#[derive(Clone, Debug, Deserialize)]
struct FreeBlocks {
    length: u8,
    count: u64,
}

#[derive(Clone, Debug, Deserialize)]
struct Picture {
    prefix: String,
    cells: Vec<f64>,
}

/// Puts what each had before beside what it has now; who had something and has nothing is there as well.
fn compare(now: &mut Vec<Value>, before: Vec<Value>) {
    let key = |one: &Value| (one["name"].clone(), one["family"].clone());
    let nothing = json!({"claimed": "0", "reserved": "0", "blocks": "0"});
    for one in now.iter_mut() {
        one["before"] = nothing.clone();
    }
    for had in before {
        let at = now.iter().position(|one| key(one) == key(&had)).unwrap_or_else(|| {
            let mut gone = nothing.clone();
            (gone["name"], gone["family"]) = key(&had);
            now.push(gone);
            now.len() - 1
        });
        now[at]["before"] = had;
    }
}

fn holdings(by: &str, held: &[Holding]) -> Table {
    let addresses = |text: &str| text.parse::<i128>().unwrap_or_default();
    let change = |of: &Holding, before: &Counts| {
        let now = addresses(&of.claimed) + addresses(&of.reserved);
        format!("{:+}", now - addresses(&before.claimed) - addresses(&before.reserved))
    };
    let rows = held.iter().map(|of| {
        vec![
            of.name.clone().unwrap_or_else(|| "(none)".into()),
            format!("IPv{}", of.family),
            of.claimed.clone(),
            of.reserved.clone(),
            of.blocks.clone(),
            of.before.as_ref().map_or_else(|| "-".into(), |before| change(of, before)),
        ]
    });
    let by = if by == "site" { "SITE" } else { "PROJECT" };
    let shown = table(&[by, "FAMILY", "CLAIMED", "RESERVED", "BLOCKS", "CHANGE"], rows).or_say("nothing is claimed");
    if held.iter().any(|of| of.before.is_some()) { shown } else { shown.only_wide(&["CHANGE"]) }
}

/// A picture of what was used, and what it comes to.
fn heading(trend: &Trend) -> String {
    let (Some(first), Some(latest)) = (trend.samples.first(), trend.samples.last()) else {
        return format!("nothing is known of pool {} yet: the controller takes note once a day", trend.pool);
    };
    let mut lines = vec![
        format!("{}  {} to {}", trend.pool, first.day, latest.day),
        format!("  {}", sparkline(&trend.samples)),
        format!("  {:.1} % used: {} of {} are free", latest.used * 100.0, latest.free, latest.total),
    ];
    if let Some(TrendChange { since, addresses, full }) = &trend.change {
        let change = match addresses.strip_prefix('-') {
            Some(fewer) => format!("{fewer} fewer in use than on {since}"),
            None => format!("{addresses} more in use than on {since}"),
        };
        lines.push(match full {
            Some(full) => format!("  {change}; full on {full} if it goes on so"),
            None => format!("  {change}"),
        });
    }
    lines.join("\n")
}

/// As many bars as days, sixty at most: of several days the latest that is known.
fn sparkline(samples: &[Sample]) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    const WIDEST: i64 = 60;
    let days = |from: Date, to: Date| from.duration_until(to).as_hours() / 24;
    let (Some(first), Some(latest)) = (samples.first(), samples.last()) else { return String::new() };
    let each = (days(first.day, latest.day) + 1 + WIDEST - 1) / WIDEST;
    // Counted from the latest, so that the last bar is whole.
    let bar = |sample: &Sample| days(sample.day, latest.day) / each;
    let mut bars = vec![' '; usize::try_from(bar(first)).unwrap_or_default() + 1];
    let last = bars.len() - 1;
    for sample in samples {
        let at = last - usize::try_from(bar(sample)).unwrap_or_default().min(last);
        bars[at] = BARS[((sample.used * 8.0) as usize).min(7)];
    }
    bars.into_iter().collect()
}

/// A line for each prefix, and what is free by length.
fn drawing(space: &Space) -> String {
    const SHADES: [char; 5] = ['·', '░', '▒', '▓', '█'];
    let shade = |used: &f64| match used {
        used if *used <= 0.0 => SHADES[0],
        used if *used >= 1.0 => SHADES[4],
        used => SHADES[1 + (used * 3.0) as usize],
    };
    let width = space.pictures.iter().map(|picture| picture.prefix.len()).max().unwrap_or_default();
    let picture = |picture: &Picture| {
        let cells: String = picture.cells.iter().map(shade).collect();
        format!("{:width$}  {cells}", picture.prefix)
    };
    let mut lines: Vec<_> = space.pictures.iter().map(picture).collect();
    let free: Vec<_> = space.free.iter().map(|free| format!("{} × /{}", free.count, free.length)).collect();
    lines.push(match free.is_empty() {
        true => "nothing is free".into(),
        false => format!("free: {}", free.join(", ")),
    });
    lines.join("\n")
}

/// Changes a pool's grants.
async fn regrant(
    client: &Client,
    output: Output,
    pool: &str,
    change: impl FnOnce(Vec<Value>) -> anyhow::Result<Vec<Value>>,
) -> anyhow::Result<String> {
    let path = format!("/v1/pools/{pool}");
    let changed = grant::change(client, &path, (Method::PATCH, &path), change).await?;
    print(output, changed, |pool: Pool| page(&pool, None))
}

fn list(pools: &[Pool]) -> Table {
    let rows = pools.iter().map(|pool| {
        let first = pool.prefixes.first().cloned().unwrap_or_default();
        let more = pool.prefixes.len().saturating_sub(1);
        vec![
            pool.name.clone(),
            pool.kind.clone(),
            format!("IPv{}", pool.family),
            pool.place(),
            or_dash(pool.project.as_deref()),
            pool.vrf.clone(),
            if more > 0 { format!("{first} and {more} more") } else { first },
            or_dash(Some(&pool.purpose)),
            pool.id.clone(),
        ]
    });
    table(&["NAME", "KIND", "FAMILY", "WHERE", "PROJECT", "VRF", "PREFIXES", "PURPOSE", "ID"], rows)
        .shorten(&["PURPOSE"])
        .only_wide(&["PURPOSE", "ID"])
        .or_say("no pools yet: rackhand pool create NAME --kind private --prefix 10.9.0.0/16")
}

fn page(pool: &Pool, usage: Option<&Utilisation>) -> String {
    let mut lines = vec![
        format!("{}  {}", pool.name, pool.id),
        format!("  kind        {} IPv{}", pool.kind, pool.family),
        format!("  where       {}", pool.place()),
        format!("  vrf         {}", pool.vrf),
        format!("  quarantine  {} minutes", pool.quarantine_minutes),
        format!("  purpose     {}", or_dash(Some(&pool.purpose))),
        format!("  prefixes    {}", pool.prefixes.join(", ")),
    ];
    if let Some(Blocks { length, most }) = pool.blocks {
        lines.push(format!("  blocks      a /{length} for each project, {most} at most"));
    }
    if let (Some(project), Some(parent)) = (&pool.project, &pool.parent) {
        lines.push(format!("  project     {project}, of pool {parent}"));
    }
    lines.push(format!("  grants      {}", grant::words(&pool.grants)));
    if let Some(usage) = usage {
        let largest = usage.largest_free.map_or("none".into(), |length| format!("a /{length}"));
        lines.push(format!("  claimed     {} of {}", usage.claimed, usage.total));
        lines.push(format!("  reserved    {}", usage.reserved));
        lines.push(format!("  resting     {}", usage.quarantined));
        lines.push(format!("  in blocks   {}", usage.blocks));
        lines.push(format!("  free        {}, the largest block {largest}", usage.free));
    }
    lines.join("\n")
}

fn report(lines: &[Utilisation]) -> Table {
    let percent = |share: f64| format!("{:.1} %", share * 100.0);
    let rows = lines.iter().map(|line| {
        vec![
            line.pool.clone(),
            percent(line.used),
            line.total.clone(),
            line.claimed.clone(),
            line.reserved.clone(),
            line.quarantined.clone(),
            line.blocks.clone(),
            line.free.clone(),
            line.largest_free.map_or("-".into(), |length| format!("/{length}")),
            percent(line.fragmentation),
        ]
    });
    let header = ["POOL", "USED", "TOTAL", "CLAIMED", "RESERVED", "RESTING", "BLOCKS", "FREE", "LARGEST", "FRAGMENTED"];
    table(&header, rows)
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn a_pools_map_is_as_dark_as_it_is_full() {
        let space: Space = serde_json::from_value(json!({
            "free": [{"length": 17, "count": 1}, {"length": 32, "count": 3}],
            "pictures": [
                {"prefix": "10.9.0.0/30", "cells": [1.0, 0.99, 0.5, 0.1]},
                {"prefix": "10.10.0.0/30", "cells": [0.0, 0.34, 0.67, 1.0]},
            ],
        }))
        .unwrap();
        expect![[r#"
            10.9.0.0/30   █▓▒░
            10.10.0.0/30  ·▒▓█
            free: 1 × /17, 3 × /32"#]]
        .assert_eq(&drawing(&space));
    }

    #[test]
    fn a_pools_trend_is_a_picture_with_gaps_where_nothing_is_known_and_the_day_on_which_it_is_full() {
        let sample = |day: &str, used: f64| json!({"day": day, "total": "256", "free": "19", "used": used});
        let trend = |samples: Value, change: Value| {
            let trend = json!({"pool": "public-4", "family": 4, "samples": samples, "change": change});
            heading(&serde_json::from_value(trend).unwrap())
        };
        let days = [
            sample("2026-11-24", 0.0),
            sample("2026-11-25", 0.5),
            sample("2026-11-28", 0.93),
            sample("2026-11-29", 1.0),
        ];
        let full = json!({"since": "2026-10-30", "addresses": "48", "full": "2026-12-11"});
        expect![[r#"
            public-4  2026-11-24 to 2026-11-29
              ▁▅  ██
              100.0 % used: 19 of 256 are free
              48 more in use than on 2026-10-30; full on 2026-12-11 if it goes on so"#]]
        .assert_eq(&trend(json!(days), full));
        let fewer = json!({"since": "2026-11-24", "addresses": "-48", "full": null});
        expect![[r#"
            public-4  2026-11-24 to 2026-11-24
              ▁
              0.0 % used: 19 of 256 are free
              48 fewer in use than on 2026-11-24"#]]
        .assert_eq(&trend(json!(days[..1]), fewer));
        expect!["nothing is known of pool public-4 yet: the controller takes note once a day"]
            .assert_eq(&trend(json!([]), Value::Null));
        // Of two years twelve or thirteen days are one bar.
        let long = [sample("2024-11-29", 0.1), sample("2026-11-20", 0.2), sample("2026-11-29", 0.8)];
        expect![[r#"
            public-4  2024-11-29 to 2026-11-29
              ▁                                                       ▇
              80.0 % used: 19 of 256 are free"#]]
        .assert_eq(&trend(json!(long), Value::Null));
    }

    #[test]
    fn holdings_are_compared_with_what_they_were() {
        let one = |name: Value, claimed: &str| json!({"name": name, "family": 4, "claimed": claimed, "reserved": "0", "blocks": "128"});
        let mut now = vec![one(json!("acme:shop"), "5"), one(Value::Null, "1")];
        compare(&mut now, vec![one(json!("acme:shop"), "2"), one(json!("acme:blog"), "3")]);
        let held: Vec<Holding> = serde_json::from_value(now.into()).unwrap();
        expect![[r#"
            PROJECT    FAMILY  CLAIMED  RESERVED  BLOCKS  CHANGE
            acme:shop  IPv4    5        0         128     +3
            (none)     IPv4    1        0         128     +1
            acme:blog  IPv4    0        0         0       -3"#]]
        .assert_eq(&holdings("project", &held).to_string());
    }

    #[test]
    fn a_pools_page_tells_how_much_of_it_is_used() {
        let pool: Pool = serde_json::from_value(json!({
            "id": "1", "name": "private-4", "vrf": "default", "family": 4, "kind": "private", "rack": null,
            "quarantine_minutes": 60, "purpose": "", "prefixes": ["10.9.0.0/24", "10.9.4.0/30"], "created": "x",
            "blocks": {"length": 25, "most": 8}, "parent": null, "project": null,
            "grants": [{"to": {"project": "acme:shop"}, "may": ["assign"]}, {"to": "everyone", "may": ["reverse"]}],
        }))
        .unwrap();
        let usage: Utilisation = serde_json::from_value(json!({
            "pool": "private-4", "family": 4, "total": "260", "claimed": "2", "reserved": "1", "quarantined": "0", "blocks": "0",
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
              blocks      a /25 for each project, 8 at most
              grants      project acme:shop may assign; everyone may reverse
              claimed     2 of 260
              reserved    1
              resting     0
              in blocks   0
              free        257, the largest block a /25"#]]
        .assert_eq(&page(&pool, Some(&usage)));
        expect![[r#"
            POOL       USED   TOTAL  CLAIMED  RESERVED  RESTING  BLOCKS  FREE  LARGEST  FRAGMENTED
            private-4  1.1 %  260    2        1         0        0       257   /25      50.2 %"#]]
        .assert_eq(&report(&[usage]).to_string());
        expect![[r#"
            NAME       KIND     FAMILY  WHERE       PROJECT  VRF      PREFIXES
            private-4  private  IPv4    everywhere  -        default  10.9.0.0/24 and 1 more"#]]
        .assert_eq(&list(&[pool]).to_string());
    }
}
