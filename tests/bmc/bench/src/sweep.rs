//! Our client: every BMC of a rack is asked for its sensors and its event log, all at once.

use std::{sync::Arc, time::Instant};

use anyhow::{Context as _, ensure};
use nix::sys::resource::UsageWho;
use rackhand_bmc::{
    Bmc, Credentials,
    ipmi::Ipmi,
    redfish::{Bounds, Redfish, Target, Which},
};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::{
    Protocol,
    rack::{self, Subject},
    usage,
};

/// How many sweeps follow the first one of a client.
const STEADY: usize = 4;

/// What one sweep of a rack took.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Sweep {
    /// Seconds.
    pub(crate) wall: f64,
    /// Seconds of processor time.
    pub(crate) cpu: f64,
    /// Where they can be counted.
    pub(crate) requests: Option<u64>,
}

/// What a client tells who started it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Told {
    /// The first sweep: logs in and finds out what there is.
    pub(crate) first: Sweep,
    /// Those after it.
    pub(crate) steady: Vec<Sweep>,
    /// The most memory it had, in MB.
    pub(crate) memory: f64,
}

/// One BMC as our client has it.
struct Asked {
    client: Client,
    subject: Subject,
}

enum Client {
    Ipmi(Box<Ipmi>),
    Redfish(Box<Redfish>),
}

impl Asked {
    fn new(protocol: Protocol, subject: Subject) -> anyhow::Result<Self> {
        let credentials = Credentials { user: subject.user.clone(), password: subject.password.clone().into() };
        let client = match protocol {
            Protocol::Ipmi => Client::Ipmi(Box::new(Ipmi::new(subject.ipmi, credentials))),
            Protocol::Redfish => Client::Redfish(Box::new(Redfish::new(Target {
                url: format!("https://{}", subject.redfish),
                credentials,
                fingerprint: None,
                system: Which::Only,
                bounds: Bounds::default(),
            })?)),
        };
        Ok(Self { client, subject })
    }

    fn bmc(&self) -> &dyn Bmc {
        match &self.client {
            Client::Ipmi(ipmi) => &**ipmi,
            Client::Redfish(redfish) => &**redfish,
        }
    }

    fn requests(&self) -> u64 {
        match &self.client {
            Client::Ipmi(ipmi) => ipmi.sent().0,
            Client::Redfish(redfish) => redfish.requests(),
        }
    }

    /// Reads everything, and sees to it that it is everything.
    async fn read(&self) -> anyhow::Result<()> {
        let sensors = self.bmc().sensors().await?;
        ensure!(sensors.skipped.is_empty(), "{:?}", sensors.skipped);
        let wanted = match &self.client {
            Client::Ipmi(_) => self.subject.sensors,
            Client::Redfish(_) => self.subject.values,
        };
        let found = sensors.readings.len();
        ensure!(found >= wanted, "{found} sensors of {wanted}");
        let log = self.bmc().log().await?;
        let (wanted, found) = (self.subject.events, log.entries.len());
        ensure!(found == wanted, "{found} events of {wanted}");
        Ok(())
    }

    async fn close(&self) -> anyhow::Result<()> {
        match &self.client {
            Client::Ipmi(ipmi) => ipmi.close().await,
            Client::Redfish(redfish) => redfish.close().await?,
        }
        Ok(())
    }
}

fn clients(protocol: Protocol) -> anyhow::Result<Vec<Arc<Asked>>> {
    rack::told()?.into_iter().map(|subject| Ok(Arc::new(Asked::new(protocol, subject)?))).collect()
}

async fn sweep(rack: &[Arc<Asked>]) -> anyhow::Result<Sweep> {
    let requests = || rack.iter().map(|asked| asked.requests()).sum::<u64>();
    let (cpu, asked, begin) = (usage::cpu(UsageWho::RUSAGE_SELF)?, requests(), Instant::now());
    let mut reading = JoinSet::new();
    for asked in rack.iter().cloned() {
        reading.spawn(async move { asked.read().await.with_context(|| format!("{}", asked.subject.ipmi)) });
    }
    while let Some(read) = reading.join_next().await {
        read??;
    }
    let wall = begin.elapsed().as_secs_f64();
    Ok(Sweep { wall, cpu: usage::cpu(UsageWho::RUSAGE_SELF)? - cpu, requests: Some(requests() - asked) })
}

/// One first sweep and some steady ones; prints what they took.
pub(crate) async fn some(protocol: Protocol) -> anyhow::Result<()> {
    let rack = clients(protocol)?;
    let first = sweep(&rack).await?;
    let mut steady = Vec::new();
    for _ in 0..STEADY {
        steady.push(sweep(&rack).await?);
    }
    let told = Told { first, steady, memory: usage::memory("VmHWM:")? };
    println!("{}", serde_json::to_string(&told)?);
    close(&rack).await
}

/// So many sweeps by the same clients; after each tenth of them prints how much memory there is.
pub(crate) async fn many(protocol: Protocol, sweeps: usize) -> anyhow::Result<()> {
    let rack = clients(protocol)?;
    let begin = Instant::now();
    let tenth = sweeps.div_ceil(10);
    for number in 1..=sweeps {
        sweep(&rack).await.with_context(|| format!("sweep {number}"))?;
        if number == 1 || number % tenth == 0 || number == sweeps {
            let (now, most) = (usage::memory("VmRSS:")?, usage::memory("VmHWM:")?);
            println!("| {number} | {:.0} | {now:.1} | {most:.1} |", begin.elapsed().as_secs_f64());
        }
    }
    close(&rack).await
}

async fn close(rack: &[Arc<Asked>]) -> anyhow::Result<()> {
    for asked in rack {
        asked.close().await?;
    }
    Ok(())
}
