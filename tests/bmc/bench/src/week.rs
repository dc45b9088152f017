//! A rack's node over days: the agent's own parts that read BMCs, decide and keep series, for whom time
//! goes faster than for this computer, so that a week of looks takes less than an hour.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use jiff::{SignedDuration, Timestamp};
use rackhand_agent::{
    bmcs::Bmcs,
    health::{Config, HealthFile, Latest, Machines, series::Series},
    local::UplinkView,
    spool::{Spool, open_database},
};
use rackhand_common::{
    bmc::{self, Access, At, Protocol},
    id::{MachineId, RackId},
    time::{Clock, Mono, Now},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    rack::{self, Subject},
    usage,
};

/// How many days make a line.
const LINE: f64 = 0.5;

const DAY: f64 = 86400.0;

/// A clock that goes so many times as fast as this computer's.
struct Fast {
    start: Instant,
    at: Timestamp,
    times: u32,
}

impl Fast {
    fn elapsed(&self) -> Duration {
        self.start.elapsed() * self.times
    }
}

impl Clock for Fast {
    fn now(&self) -> Now {
        let elapsed = self.elapsed();
        let since = SignedDuration::try_from(elapsed).expect("a bench ends before the end of time");
        Now { mono: Mono(elapsed), wall: self.at + since }
    }
}

fn access(subject: &Subject) -> Access {
    Access {
        machine: MachineId::fresh(),
        at: At { address: subject.ipmi.ip(), port: Some(subject.ipmi.port()) },
        protocol: Protocol::Ipmi,
        user: subject.user.clone(),
        password: subject.password.clone(),
        fingerprint: None,
        mainboard: None,
    }
}

/// Reads a rack for so many days of a clock that goes `times` times as fast, each BMC's sensors every minute of it
/// and its log every ten; prints, each half day, what memory there is and how much is kept.
pub(crate) async fn run(days: f64, times: u32) -> anyhow::Result<()> {
    let subjects = rack::told()?;
    let dir = tempfile::tempdir()?;
    let clock = Arc::new(Fast { start: Instant::now(), at: Timestamp::now(), times });
    let rack = RackId::fresh();
    let networks = vec!["127.0.0.0/8".parse()?];
    let bmcs = Bmcs::open(dir.path(), rack, Some(networks), Default::default(), clock.clone())?;
    let wanted = bmc::Bmcs { revision: 1, rack, bmcs: subjects.iter().map(access).collect() };
    bmcs.store(wanted, Vec::new()).await?;

    let database = open_database(&dir.path().join("agent.redb"))?;
    let spool = Spool::within(database.clone(), 64 << 20, None)?;
    let path = dir.path().join("series.redb");
    let (series, writer) = Series::open(&path)?;
    let file = HealthFile { rules: dir.path().join("rules"), at_once: 16, ..HealthFile::default() };
    let config = Config::try_from(file).map_err(anyhow::Error::msg)?;
    let config = Config { sensors: config.sensors / times, log: config.log / times, ..config };
    let (_config, configured) = watch::channel(config);
    let machines = Machines::open(database, bmcs.clone(), spool, series, clock.clone(), configured, None).await?;
    let away = UplinkView { connected: false, words: String::new(), certificate_until: clock.at };
    let (_uplink, uplink) = watch::channel(away);

    let shutdown = CancellationToken::new();
    let reading = tokio::spawn(machines.clone().run(uplink, shutdown.clone()));
    let writing = tokio::spawn(writer.run(clock.clone(), shutdown.clone()));
    let mut day = 0.0;
    while day < days {
        day = days.min(day + LINE);
        tokio::time::sleep(Duration::from_secs_f64(day * DAY).saturating_sub(clock.elapsed()) / times).await;
        let oldest = oldest_answer(&machines.shown(), subjects.len(), clock.now().wall)?;
        println!("| {day:.1} | {oldest} | {} |", memory(&path)?);
    }
    shutdown.cancel();
    reading.await?;
    writing.await?;
    bmcs.close().await;
    Ok(())
}

/// How many minutes ago, by the fast clock, the BMC answered that answered longest ago.
fn oldest_answer(shown: &BTreeMap<MachineId, Latest>, machines: usize, now: Timestamp) -> anyhow::Result<String> {
    ensure!(shown.len() == machines, "only {} BMCs are read", shown.len());
    let mut oldest = now;
    for latest in shown.values() {
        let silent = || format!("a BMC has not answered at all: {:?}", latest.silent);
        oldest = oldest.min(latest.answered.with_context(silent)?);
    }
    let age = now.duration_since(oldest);
    ensure!(age < SignedDuration::from_mins(10), "a BMC has not answered for {age:#}");
    Ok(format!("{:.1}", age.as_secs_f64() / 60.0))
}

fn memory(series: &Path) -> anyhow::Result<String> {
    let kept = std::fs::metadata(series)?.len() >> 20;
    Ok(format!("{:.1} | {:.1} | {kept}", usage::memory("VmRSS:")?, usage::memory("VmHWM:")?))
}
