//! Measures a controller's API over a large estate: `cargo xtask bench api`.
//!
//! The real program serves 1,000 racks, 40,000 machines, a million addresses and five million
//! events; clients ask it over HTTPS on loopback, one after the other or many at once.

#![expect(clippy::print_stdout, reason = "a command-line tool talks on standard output")]

mod estate;
mod served;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rackhand_common::pki;
use rackhand_postgres::{Durability, Server};
use rackhand_tests::operator::{KEY, Operator};
use serde_json::json;

use crate::served::Served;

/// How long one round lasts, and how many there are.
const ROUND: Duration = Duration::from_secs(4);
const ROUNDS: usize = 3;

/// How many clients ask at once.
const CLIENTS: [usize; 3] = [1, 16, 64];

/// What is asked.
#[derive(Clone, Copy, Debug)]
enum Question {
    /// A page of 50 machines, anywhere in the list.
    Page,
    /// The ready machines of one rack by name: three conditions.
    Search,
    /// The machine with one card.
    Card,
    /// One machine.
    Get,
    /// A machine's latest events.
    Events,
    /// A claim of one address.
    Claim,
    /// A deploy call.
    Deploy,
}

const QUESTIONS: [(Question, &str); 7] = [
    (Question::Page, "page of 50 machines"),
    (Question::Search, "ready machines of a rack, by name"),
    (Question::Card, "machine with a card"),
    (Question::Get, "one machine"),
    (Question::Events, "events of a machine"),
    (Question::Claim, "claim"),
    (Question::Deploy, "deploy call"),
];

#[tokio::main]
async fn main() -> Result<()> {
    pki::install_crypto();
    let named: Vec<_> = std::env::args().skip(1).collect();
    let unknown = named.iter().find(|word| !["sqlite", "postgres"].contains(&word.as_str()));
    anyhow::ensure!(unknown.is_none(), "say `sqlite` or `postgres` or both");
    let is_wanted = |name: &str| named.is_empty() || named.iter().any(|wanted| wanted == name);
    println!("| database | what | clients | asked/s | p50, ms | p99, ms | min–max of p99 | refused |");
    println!("|---|---|---:|---:|---:|---:|---:|---:|");
    let mut memory = Vec::new();
    if is_wanted("sqlite") {
        memory.push(questions("SQLite", None).await?);
    }
    if is_wanted("postgres") {
        let server = Server::start(Durability::Default)?;
        server.say("postgres", "CREATE DATABASE estate")?;
        memory.push(questions("PostgreSQL", Some(&server.url("estate"))).await?);
    }
    println!("\n{}", memory.join("\n"));
    Ok(())
}

/// All questions on one database; what memory the controller took.
async fn questions(database: &str, url: Option<&str>) -> Result<String> {
    let dir = tempfile::tempdir()?;
    let begin = Instant::now();
    let mut served = Served::init(dir.path(), url)?;
    let operator = served.operator()?;
    served.start().await?;
    estate::begin(&operator, dir.path()).await?;
    served.stop()?;
    let machines = estate::make(&served).await?;
    eprintln!("{database}: the estate is made after {:.0} s", begin.elapsed().as_secs_f64());
    served.start().await?;

    let mut next = 0;
    for (question, name) in QUESTIONS {
        for clients in CLIENTS {
            let row = measure(&operator, question, clients, machines, &mut next).await?;
            println!("| {database} | {name} | {clients} | {row} |");
        }
    }
    let (now, most) = (served.memory("VmRSS:")?, served.memory("VmHWM:")?);
    served.stop()?;
    Ok(format!("memory of the controller with {database}: {now} MB at the end, at most {most} MB"))
}

/// Some rounds of one question: a row of the table.
async fn measure(
    operator: &Operator,
    question: Question,
    clients: usize,
    machines: u32,
    next: &mut u32,
) -> Result<String> {
    let (mut took, mut tails, mut refused) = (Vec::new(), Vec::new(), 0);
    let begin = Instant::now();
    for _ in 0..ROUNDS {
        let end = Instant::now() + ROUND;
        let first = *next;
        let asked = futures_util::future::join_all((0..clients).map(|client| async move {
            let (mut took, mut refused, mut number) = (Vec::new(), 0usize, first + client as u32);
            while Instant::now() < end {
                let at = Instant::now();
                refused += usize::from(ask(operator, question, scattered(number, machines)).await.is_err());
                took.push(at.elapsed().as_secs_f64() * 1000.0);
                number += clients as u32;
            }
            (took, refused)
        }));
        let mut round = Vec::new();
        for (of_client, not) in asked.await {
            *next = (*next).max(first + (of_client.len() * clients) as u32);
            round.extend(of_client);
            refused += not;
        }
        tails.push(part(&mut round, 0.99));
        took.extend(round);
    }
    let rate = took.len() as f64 / begin.elapsed().as_secs_f64();
    let (median, tail) = (part(&mut took, 0.5), part(&mut took, 0.99));
    let (least, most) = (part(&mut tails, 0.0), part(&mut tails, 1.0));
    Ok(format!("{rate:.0} | {median:.1} | {tail:.1} | {least:.1}–{most:.1} | {refused}"))
}

/// Numbers that follow each other, far apart in the estate; each machine once before any twice.
fn scattered(number: u32, machines: u32) -> u32 {
    (u64::from(number) * 27_644_437 % u64::from(machines)) as u32
}

async fn ask(operator: &Operator, question: Question, machine: u32) -> Result<()> {
    let (name, rack) = (estate::name(machine), estate::rack(machine));
    let path = match question {
        Question::Page => format!("/v1/machines?limit=50&sort=name&after={name}"),
        Question::Search => format!("/v1/machines?rack={rack}&lifecycle=ready&name={}", &name[..name.len() - 1]),
        Question::Card => format!("/v1/machines?mac={}", estate::mac(machine)),
        Question::Get => format!("/v1/machines/{name}"),
        Question::Events => format!("/v1/events?machine={name}"),
        Question::Claim => "/v1/claims".into(),
        Question::Deploy => format!("/v1/machines/{name}/deploy"),
    };
    let body = match question {
        Question::Claim => json!({"pool": estate::POOL, "length": 32, "name": "bench"}),
        Question::Deploy => json!({"image": estate::IMAGE, "hostname": name, "ssh_keys": [KEY]}),
        _ => {
            // What is measured is not how fast this program understands what it gets.
            operator.fetch(&path).await.with_context(|| format!("{question:?} of {name}"))?;
            return Ok(());
        }
    };
    operator.post(&path, body).await.map(drop).with_context(|| format!("{question:?} of {name}"))
}

/// The value below which this part of all lie.
fn part(values: &mut [f64], part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1) as f64;
    values.get((last * part).round() as usize).copied().unwrap_or_default()
}
