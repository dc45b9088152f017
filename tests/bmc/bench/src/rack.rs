//! The simulated BMCs of one rack, as a process of their own: their processor time is not ours.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    sync::Arc,
};

use anyhow::{Context as _, anyhow, ensure};
use rackhand_bmc_sim::{
    Addresses, Bench, Personality, Simulator,
    personality::{Reading, SensorSpec},
    state::PowerAct,
};
use serde::{Deserialize, Serialize};

use crate::{Protocol, sweep::Told};

/// Where a BMC is, who logs in, and what it has to tell.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Subject {
    pub(crate) ipmi: SocketAddr,
    pub(crate) redfish: SocketAddr,
    pub(crate) user: String,
    pub(crate) password: String,
    pub(crate) sensors: usize,
    /// How many of its sensors read a value: those that Redfish has for certain.
    pub(crate) values: usize,
    pub(crate) events: usize,
}

/// The rack while it runs.
#[derive(Debug)]
pub(crate) struct Rack {
    child: Child,
    pub(crate) subjects: Vec<Subject>,
}

impl Rack {
    pub(crate) fn start(machines: u16, personality: &str, events: usize) -> anyhow::Result<Self> {
        let mut child = this()?
            .args(["rack", &machines.to_string(), personality, &events.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("its output is piped")?).read_line(&mut line)?;
        Ok(Self { child, subjects: serde_json::from_str(&line).context("the simulated BMCs do not start")? })
    }

    /// One client's first sweep and steady ones, in a process of its own.
    pub(crate) fn client(&self, protocol: Protocol) -> anyhow::Result<Told> {
        let mut child = self.ask(this()?.args(["sweeps", protocol.word()]).stdout(Stdio::piped()))?;
        let mut text = String::new();
        child.stdout.take().context("its output is piped")?.read_to_string(&mut text)?;
        ensure!(child.wait()?.success(), "a sweep over {protocol:?} failed");
        Ok(serde_json::from_str(&text)?)
    }

    /// Many sweeps by one client, which prints as it goes.
    pub(crate) fn growth(&self, protocol: Protocol, sweeps: usize) -> anyhow::Result<()> {
        let mut child = self.ask(this()?.args(["growth", protocol.word(), &sweeps.to_string()]))?;
        ensure!(child.wait()?.success(), "a sweep over {protocol:?} failed");
        Ok(())
    }

    /// A node's parts for so many days, which print as they go.
    pub(crate) fn days(&self, days: f64, faster: u32) -> anyhow::Result<()> {
        let mut child = self.ask(this()?.args(["days", &days.to_string(), &faster.to_string()]))?;
        ensure!(child.wait()?.success(), "a node's days end in failure");
        Ok(())
    }

    /// Starts a client and tells it of the rack.
    fn ask(&self, client: &mut Command) -> anyhow::Result<Child> {
        let mut child = client.stdin(Stdio::piped()).spawn()?;
        let mut input = child.stdin.take().context("its input is piped")?;
        input.write_all(&serde_json::to_vec(&self.subjects)?)?;
        Ok(child)
    }
}

impl Drop for Rack {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What [`Rack::ask`] told.
pub(crate) fn told() -> anyhow::Result<Vec<Subject>> {
    Ok(serde_json::from_reader(std::io::stdin())?)
}

fn this() -> anyhow::Result<Command> {
    Ok(Command::new(std::env::current_exe()?))
}

/// Is the rack: its machines are on, and their logs hold so many events.
pub(crate) async fn serve(machines: u16, personality: &str, events: usize) -> anyhow::Result<()> {
    let (mut running, mut subjects) = (Vec::new(), Vec::new());
    for number in 1..=machines {
        let personality = Personality::preset(personality, number).context("there is no such personality")?;
        let user = personality.users.first().context("nobody may log in")?.clone();
        let sensors = personality.sensors.len();
        let has_value = |sensor: &&SensorSpec| matches!(sensor.reading, Reading::Analog { .. });
        let values = personality.sensors.iter().filter(has_value).count();
        let addresses = Addresses { plain: None, ..Addresses::default() };
        let one = Simulator::start(personality, Arc::new(Bench::default()), addresses).await?;
        one.bmc.set_power(PowerAct::On).map_err(|error| anyhow!("it does not start: {error:?}"))?;
        // Warm and cool again by turns, each an event.
        for value in [40.0, 23.0].into_iter().cycle().take(4 * events) {
            if one.bmc.lock().log.records().len() < events {
                one.bmc.inject("Inlet Temp", value);
            }
        }
        let events = one.bmc.lock().log.records().len();
        let (ipmi, redfish) = (one.ipmi, one.redfish);
        subjects.push(Subject { ipmi, redfish, user: user.name, password: user.password, sensors, values, events });
        running.push(one);
    }
    println!("{}", serde_json::to_string(&subjects)?);
    // Whoever started this is gone when its end of the pipe is.
    tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await??;
    drop(running);
    Ok(())
}
