//! Measures claims and releases of addresses through a real controller's API, in pools that are
//! empty and nearly full: `cargo xtask bench ipam`.
//!
//! The controller runs in this process, with its own database, and is asked over HTTPS on loopback.
//! PostgreSQL is a server of its own, as durable as it is set up by default.

#![expect(clippy::print_stdout, reason = "a command-line tool talks on standard output")]

use std::{
    io::Write as _,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use rackhand_common::pki;
use rackhand_controller::{
    controller::{self, Config, File, Seams},
    store::{Pool, Store},
};
use rackhand_postgres::{Durability, Server};
use rackhand_tests::operator::{self, Operator};
use reqwest::Method;
use serde_json::json;
use tokio_util::sync::CancellationToken;

/// What is claimed: a link to one port.
const LENGTH: u8 = 31;

/// How full: every so many-th block is free; none means that all are.
const LEVELS: [(&str, Option<u64>); 4] = [("0 %", None), ("99.9 %", Some(1000)), ("95 %", Some(20)), ("50 %", Some(2))];

/// How long one line of the table is measured, and how often at least.
const TIME: Duration = Duration::from_secs(6);
const ROUNDS: usize = 7;

#[tokio::main]
async fn main() -> Result<()> {
    pki::install_crypto();
    let (named, roots): (Vec<_>, Vec<_>) =
        std::env::args().skip(1).partition(|word| ["sqlite", "postgres"].contains(&word.as_str()));
    let roots = roots.iter().map(|root| root.parse()).collect::<Result<Vec<u8>, _>>();
    let roots = roots.context("say `sqlite` or `postgres` or both, and the pools' lengths, as 16 and 8")?;
    let is_wanted = |name: &str| named.is_empty() || named.iter().any(|wanted| wanted == name);
    let dir = tempfile::tempdir()?;
    let server = is_wanted("postgres").then(|| Server::start(Durability::Default)).transpose()?;
    println!("flush of 4 KiB to this disk: {}\n", flush(dir.path())?);
    println!(
        "| database | pool | full | clients | claims/s | min–max | releases/s | min–max | claim, ms | others wait, ms |"
    );
    println!("|---|---|---:|---:|---:|---:|---:|---:|---:|---:|");
    for root in roots {
        if is_wanted("sqlite") {
            measure(&dir.path().join(root.to_string()), root, None).await?;
        }
        if let Some(server) = &server {
            server.say("postgres", &format!("CREATE DATABASE pool_{root}"))?;
            let url = server.url(&format!("pool_{root}"));
            measure(&dir.path().join(format!("postgres-{root}")), root, Some(&url)).await?;
        }
    }
    Ok(())
}

/// What one flush takes: nothing that is on disk before it is answered is faster by itself.
fn flush(dir: &Path) -> Result<String> {
    let mut file = std::fs::File::create(dir.join("flush"))?;
    let mut took = Vec::new();
    for _ in 0..200 {
        let begin = Instant::now();
        file.write_all(&[7; 4096])?;
        file.sync_data()?;
        took.push(begin.elapsed().as_secs_f64() * 1000.0);
    }
    let (median, min, max) = spread(&mut took);
    Ok(format!("{median:.2} ms ({min:.2}–{max:.2})"))
}

/// Median, least and most.
fn spread(values: &mut [f64]) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    let at = |index: usize| values.get(index).copied().unwrap_or_default();
    (at(values.len() / 2), at(0), at(values.len().saturating_sub(1)))
}

/// All lines of one pool size, on a controller of its own.
async fn measure(dir: &Path, root: u8, url: Option<&str>) -> Result<()> {
    let database = if url.is_some() { "PostgreSQL" } else { "SQLite" };
    let file: File = serde_json::from_value(json!({
        "database": url.map(|url| json!({"url": url})), "data": dir, "names": ["127.0.0.1"],
        "api": {"listen": "127.0.0.1:0", "requests_per_second": 1_000_000}, "agents": {"listen": "127.0.0.1:0"},
    }))?;
    let config = Config::try_from(file).map_err(anyhow::Error::msg)?;
    let (token, ca) = operator::init(&config, Seams::default()).await?;
    let shutdown = CancellationToken::new();
    let running = controller::start(config, Seams::default(), shutdown.clone()).await?;
    let operator = Operator::new(format!("https://{}", running.api), &ca, token)?;
    // The controller's own, so that others wait in the same queue.
    let store = running.store().clone();
    let running = tokio::spawn(running.ended());

    let prefix = format!("10.0.0.0/{root}");
    operator.post("/v1/aggregates", json!({"prefix": prefix, "source": "private"})).await?;
    let pool = json!({"name": "p", "kind": "private", "prefixes": [prefix], "quarantine_minutes": 0});
    operator.post("/v1/pools", pool).await?;
    let pool = store.pool("p").await?;
    for (number, (name, gap)) in LEVELS.into_iter().enumerate() {
        let blocks = 1u64 << (LENGTH - root);
        let free = match gap {
            None => blocks,
            Some(gap) => {
                let begin = Instant::now();
                full(&store, &pool, number == 1, gap).await?;
                eprintln!("{database}: /{root} is {name} full after {:.0} s", begin.elapsed().as_secs_f64());
                blocks / gap
            }
        };
        for clients in [1, 32] {
            // Never more than there are, and not so many that how full it is changes.
            let each = (free / 2 / clients).clamp(1, 50);
            ensure!(each * clients <= free, "a pool of /{root} is too small");
            let others = tokio::spawn(wait_to_write(store.clone()));
            let line = rounds(&operator, clients, each).await?;
            others.abort();
            let waited = WAITED.lock().map_or_else(|_| Vec::new(), |mut waited| std::mem::take(&mut *waited));
            let (typical, _, longest) = spread(&mut waited.clone());
            println!("| {database} | /{root} in /{LENGTH} | {name} | {clients} | {line} | {typical:.1}–{longest:.0} |");
        }
    }
    shutdown.cancel();
    running.await??;
    Ok(())
}

/// How long others waited for their turn to write.
static WAITED: Mutex<Vec<f64>> = Mutex::new(Vec::new());

/// Whoever else writes: asks for a turn twenty times a second.
async fn wait_to_write(store: Store) {
    loop {
        let begin = Instant::now();
        let failed = store.begin().await.map(drop).is_err();
        let took = if failed { f64::INFINITY } else { begin.elapsed().as_secs_f64() * 1000.0 };
        if let Ok(mut waited) = WAITED.lock() {
            waited.push(took);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn full(store: &Store, pool: &Pool, first: bool, gap: u64) -> Result<()> {
    match first {
        true => store.fill(pool, LENGTH, gap).await.map(drop)?,
        false => store.thin(pool, LENGTH, gap).await?,
    }
    Ok(())
}

/// Clients that each claim so many blocks one after the other, then release them.
async fn rounds(operator: &Operator, clients: u64, each: u64) -> Result<String> {
    let (mut claims, mut releases, mut latency) = (Vec::new(), Vec::new(), Vec::new());
    let begin = Instant::now();
    while claims.len() < ROUNDS || begin.elapsed() < TIME {
        let all = (clients * each) as f64;
        let at = Instant::now();
        let held = together(clients, async |_| {
            let (mut held, mut took) = (Vec::new(), Vec::new());
            for _ in 0..each {
                let at = Instant::now();
                let wish = json!({"pool": "p", "length": LENGTH, "name": "bench"});
                let claim = operator.post("/v1/claims", wish).await?;
                took.push(at.elapsed().as_secs_f64() * 1000.0);
                held.push(claim["id"].as_str().context("a claim has an id")?.to_owned());
            }
            Ok((held, took))
        })
        .await?;
        claims.push(all / at.elapsed().as_secs_f64());
        let held = Arc::new(held);
        let at = Instant::now();
        together(clients, async |client| {
            for id in &held[client].0 {
                operator.ask(Method::DELETE, &format!("/v1/claims/{id}"), None).await?;
            }
            Ok(())
        })
        .await?;
        releases.push(all / at.elapsed().as_secs_f64());
        latency.extend(held.iter().flat_map(|(_, took)| took.iter().copied()));
    }
    let ((claim, least, most), (release, fewest, highest)) = (spread(&mut claims), spread(&mut releases));
    let (typical, ..) = spread(&mut latency);
    Ok(format!("{claim:.0} | {least:.0}–{most:.0} | {release:.0} | {fewest:.0}–{highest:.0} | {typical:.1}"))
}

/// What so many clients do at once.
async fn together<T>(clients: u64, act: impl AsyncFn(usize) -> Result<T>) -> Result<Vec<T>> {
    futures_util::future::try_join_all((0..clients as usize).map(|client| act(client))).await
}
