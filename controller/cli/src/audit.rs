//! `rackhand audit`: who changed what, and whether the record of it is whole.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::Subcommand;
use jiff::Timestamp;
use rackhand_common::audit::{Anchor, Linked, Verifier};
use serde::Deserialize;
use serde_json::Value;

use crate::{
    client::{Client, Page, given_only},
    output::Output,
    show::{Table, or_dash, second, table},
    watch::{self, Told, Watch},
};

/// A record is chained within a second or two; one that is not after this long will not be.
const CHAINED: Duration = Duration::from_secs(60);

#[derive(Subcommand)]
pub(crate) enum AuditCommand {
    /// List what was changed, the newest first
    #[command(after_help = "  rackhand audit list --about web-1
  rackhand audit list --by deploy-bot --limit 20")]
    List {
        /// Only what was done with the token of this name
        #[arg(long, value_name = "TOKEN")]
        by: Option<String>,
        /// Only changes to this thing: a machine's name, or any id
        #[arg(long, value_name = "NAME")]
        about: Option<String>,
        /// How many
        #[arg(long, default_value_t = 50)]
        limit: usize,
        #[command(flatten)]
        watch: Watch,
    },
    /// Verify that no record was altered or left out since it was made
    #[command(after_help = "  rackhand audit verify                    # prints the anchor to write down
  rackhand audit verify --anchor 1207:9f86d081…   # and proves it later
  rackhand audit verify --file audit.jsonl        # of an export; asks no controller

Every record's link covers the record and the link before it. All links are computed anew here, from
the first on. Whoever can write the controller's database could make all of them anew: an anchor that
is kept elsewhere, out of their reach, shows that too.")]
    Verify {
        /// A place in the chain that was written down earlier
        #[arg(long, value_name = "NUMBER:LINK")]
        anchor: Option<Anchor>,
        /// An export, instead of the controller's record
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Print all records, one JSON object a line, the oldest first
    #[command(after_help = "  rackhand audit export > audit.jsonl
  rackhand audit export --after 1207 >> audit.jsonl   # what came since")]
    Export {
        /// Only those behind the record with this number
        #[arg(long, value_name = "NUMBER", default_value_t = 0)]
        after: u64,
    },
}

/// How far the controller's chain goes.
#[derive(Deserialize)]
struct ChainEnd {
    unlinked: u64,
    oldest_unlinked: Option<Timestamp>,
}

pub(crate) async fn run(client: &Client, command: AuditCommand, output: Output) -> anyhow::Result<String> {
    match command {
        AuditCommand::List { by, about, limit, watch } => {
            let fetch = async || newest(client, by.as_deref(), about.as_deref(), limit).await;
            watch::show(client, output, watch, Told::ByNobody, fetch, |records: Vec<Linked>| list(&records)).await
        }
        AuditCommand::Verify { file: Some(file), anchor } => verify_file(&file, anchor),
        AuditCommand::Verify { file: None, anchor } => {
            let mut verifier = Verifier::new(anchor);
            let mut broken = Ok(());
            follow(client, 0, |linked| {
                broken = verifier.take(linked);
                Ok(broken.is_ok())
            })
            .await?;
            broken.context("the audit record is not whole")?;
            let end = verifier.end().context("the audit record is not whole")?;
            let chain: ChainEnd = client.get("/v1/audit/end").await?;
            let late = chain.oldest_unlinked.filter(|at| Timestamp::now().duration_since(*at).unsigned_abs() > CHAINED);
            if let Some(at) = late {
                bail!(
                    "{} records, the oldest of {}, are not in the chain: see the controller's log",
                    chain.unlinked,
                    second(at)
                );
            }
            Ok(whole(end))
        }
        AuditCommand::Export { after } => {
            let mut out = std::io::stdout().lock();
            follow(client, after, |linked| {
                writeln!(out, "{}", serde_json::to_string(linked)?)?;
                Ok(true)
            })
            .await?;
            Ok(String::new())
        }
    }
}

/// The newest records, at most so many.
async fn newest(client: &Client, by: Option<&str>, about: Option<&str>, limit: usize) -> anyhow::Result<Value> {
    let (mut items, mut after) = (Vec::new(), None);
    while items.len() < limit {
        let mut query = vec![("limit", (limit - items.len()).min(200).to_string())];
        let given = [("by", by.map(str::to_owned)), ("about", about.map(str::to_owned)), ("after", after)];
        query.extend(given_only(given));
        let page: Page = client.get_with("/v1/audit", &query).await?;
        items.extend(page.items);
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    Ok(items.into())
}

/// Gives every record behind `after`, the oldest first, to `take`, until it has enough.
async fn follow(
    client: &Client,
    after: u64,
    mut take: impl FnMut(&Linked) -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let mut after = after.to_string();
    loop {
        let query = [("order", "oldest".to_owned()), ("limit", "200".to_owned()), ("after", after)];
        let page: Page = client.get_with("/v1/audit", &query).await?;
        for item in page.items {
            if !take(&serde_json::from_value(item).context("this is not an audit record as this version knows it")?)? {
                return Ok(());
            }
        }
        match page.next {
            Some(next) => after = next,
            None => return Ok(()),
        }
    }
}

pub(crate) fn verify_file(file: &Path, anchor: Option<Anchor>) -> anyhow::Result<String> {
    let cannot = || format!("cannot read {}", file.display());
    let mut verifier = Verifier::new(anchor);
    for (number, line) in BufReader::new(std::fs::File::open(file).with_context(cannot)?).lines().enumerate() {
        let linked = serde_json::from_str(&line.with_context(cannot)?);
        let linked: Linked = linked.with_context(|| format!("line {} is not an audit record", number + 1))?;
        verifier.take(&linked).context("the audit record is not whole")?;
    }
    Ok(whole(verifier.end().context("the audit record is not whole")?))
}

fn whole(end: Anchor) -> String {
    match end.number {
        0 => "nothing was recorded yet".into(),
        number => format!("{number} records, none altered or missing\nanchor: {end}"),
    }
}

fn list(records: &[Linked]) -> Table {
    let rows = records.iter().map(|Linked { number, record, .. }| {
        let changes = record.changes.iter().map(|change| {
            let what = match (&change.before, &change.after) {
                (None, None) => "used",
                (None, _) => "made",
                (_, None) => "removed",
                _ => "altered",
            };
            format!("{} {what}", change.kind)
        });
        vec![
            number.to_string(),
            second(record.at),
            record.by.clone(),
            or_dash(record.from.map(|from| from.to_string()).as_deref()),
            record.action.clone(),
            or_dash(Some(&changes.collect::<Vec<_>>().join(", "))),
        ]
    });
    table(&["NUMBER", "WHEN", "WHO", "FROM", "ASKED FOR", "CHANGED"], rows)
        .shorten(&["CHANGED", "ASKED FOR"])
        .or_say("no such change was recorded")
}

#[cfg(test)]
mod tests {
    use rackhand_common::audit::{Record, START, link};
    use uuid::Uuid;

    use super::*;

    fn export(dir: &Path, length: u64) -> PathBuf {
        let mut previous = START;
        let lines = (1..=length).map(|number| {
            let record = Record {
                id: Uuid::from_u128(number.into()),
                at: Timestamp::UNIX_EPOCH,
                by: "admin".into(),
                token: Uuid::nil(),
                from: None,
                through: String::new(),
                action: "POST /v1/racks".into(),
                request: Uuid::nil(),
                changes: Vec::new(),
            };
            previous = link(&previous, number, &record);
            serde_json::to_string(&Linked { number, link: hex::encode(previous), record }).unwrap() + "\n"
        });
        let file = dir.join("audit.jsonl");
        std::fs::write(&file, lines.collect::<String>()).unwrap();
        file
    }

    #[test]
    fn an_export_is_verified_without_a_controller() {
        let dir = tempfile::tempdir().unwrap();
        let file = export(dir.path(), 3);
        let said = verify_file(&file, None).unwrap();
        let anchor = said.lines().last().unwrap().strip_prefix("anchor: ").unwrap().parse().unwrap();
        assert_eq!(verify_file(&file, Some(anchor)).unwrap(), said);
        let text = std::fs::read_to_string(&file).unwrap();
        let check = |text: &str, wanted: &str| {
            std::fs::write(&file, text).unwrap();
            let error = format!("{:#}", verify_file(&file, Some(anchor)).unwrap_err());
            assert!(error.contains(wanted), "{error}");
        };
        check(&text.replacen("admin", "nobody", 1), "record 1 was altered");
        check(&text.lines().skip(1).map(|line| format!("{line}\n")).collect::<String>(), "record 1 is missing");
        check(&text.lines().take(2).map(|line| format!("{line}\n")).collect::<String>(), "record 3 is missing");
        check("hello\n", "line 1 is not an audit record");
    }
}
