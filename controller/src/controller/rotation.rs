//! Replacing the root of trust, on the data directory of a controller that does not run.
//!
//! A rotation has three steps, and between them the fleet follows: [`next`] adds a root to the
//! trust bundle, which agents are given when they connect; [`rotate`] issues from it, and agents
//! renew within a day; [`retire`] forgets the old root and destroys its key.
//!
//! Invariants:
//! - Certificates come from a root only once every registered agent has it on its disk.
//! - A root is retired only once no registered agent's certificate comes from it.
//! - A step that would shut an agent out is refused, and names it.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;

use rackhand_controller_core::access::Sight;

use super::{Alone, Config, open};
use crate::{
    authority::{Authority, Root},
    store::{Agent, Store},
};

/// The roots, and how far each registered agent is, for people. The controller may run.
pub async fn status(config: &Config) -> Result<String> {
    let authority = authority(config)?;
    let store = open(config).await?;
    let (roots, agents) = (authority.roots(), registered(&store).await?);
    let mut text = String::from("Roots of trust:\n");
    for root in &roots {
        let use_ = if root.issues { "issues certificates" } else { "believed, issues nothing" };
        let _ = writeln!(text, "  root {}  until {}  {use_}\n          {}", root.number, day(root.until), root.pin);
    }
    let bundle = authority.bundle().fingerprint();
    text += if agents.is_empty() { "No agent is registered.\n" } else { "Agents:\n" };
    for agent in &agents {
        let root = roots.iter().find(|root| Some(root.pin) == agent.root);
        let from =
            root.map_or("it has not connected yet".into(), |root| format!("certificate from root {}", root.number));
        let bundle =
            if agent.bundle.as_ref() == Some(&bundle) { "has these roots" } else { "DOES NOT HAVE these roots" };
        let _ = writeln!(text, "  {}; {from}; {bundle}", name(&store, agent).await);
    }
    let step = match &roots[..] {
        [_] => "ca next (whenever you like)",
        [.., newest] if newest.issues => "ca retire (once every agent has renewed, within a day)",
        _ => "ca rotate (whenever you like, once every agent has these roots)",
    };
    let _ = writeln!(text, "Next step of a rotation: rackhand-controller {step}");
    store.close().await;
    Ok(text)
}

/// Adds a root to the trust bundle.
pub async fn next(config: &Config, now: Timestamp) -> Result<String> {
    let _alone = Alone::on(config).await?;
    let mut authority = authority(config)?;
    authority.add_root(now).context("see `rackhand-controller ca status`")?;
    Ok(format!(
        "{} is in the trust bundle. Start the controller: every agent is given it when it connects.\n\
         Operators need the new {} before the next step, `ca rotate`.",
        newest(&authority),
        authority.ca_file().display()
    ))
}

/// Issues from the newest root from now on.
pub async fn rotate(config: &Config) -> Result<String> {
    let _alone = Alone::on(config).await?;
    let mut authority = authority(config)?;
    let bundle = authority.bundle().fingerprint();
    refuse_for(config, "do not have the newest root yet, and would no longer believe this controller", |agent| {
        agent.bundle.as_ref() != Some(&bundle)
    })
    .await?;
    authority.issue_from_newest().context("see `rackhand-controller ca status`")?;
    Ok(format!(
        "{} issues certificates from now on. Start the controller: agents renew theirs within a day.\n\
         Enrolment codes that were made before are no longer good; make new ones.",
        newest(&authority)
    ))
}

/// Forgets the older root and destroys its key.
pub async fn retire(config: &Config) -> Result<String> {
    let _alone = Alone::on(config).await?;
    let mut authority = authority(config)?;
    let roots = authority.roots();
    let Some(Root { pin, .. }) = roots.last() else { unreachable!("an authority that opened has a root") };
    refuse_for(config, "have a certificate of the older root, and would be shut out", |agent| agent.root != Some(*pin))
        .await?;
    authority.retire_oldest().context("see `rackhand-controller ca status`")?;
    Ok(format!("Only {} is believed from now on; the older root's key is destroyed.", newest(&authority)))
}

/// Refuses a step, naming the registered agents that `lags` is true of.
async fn refuse_for(config: &Config, what: &str, lags: impl Fn(&Agent) -> bool) -> Result<()> {
    let store = open(config).await?;
    let mut names = String::new();
    for agent in registered(&store).await?.iter().filter(|agent| lags(agent)) {
        let _ = write!(names, "\n  {}", name(&store, agent).await);
    }
    store.close().await;
    ensure!(
        names.is_empty(),
        "these agents {what}:{names}\nStart the controller and wait until they have connected, \
         or revoke those that will not come back: rackhand agent revoke AGENT"
    );
    Ok(())
}

async fn registered(store: &Store) -> Result<Vec<Agent>> {
    let mut registered = Vec::new();
    let mut after = None;
    loop {
        let page = store.agents(&Sight::ALL, after, 500).await?;
        let Some(last) = page.last() else { return Ok(registered) };
        after = Some(last.id);
        registered.extend(page.into_iter().filter(|agent| agent.revoked.is_none()));
    }
}

async fn name(store: &Store, agent: &Agent) -> String {
    let rack = store.rack(&agent.rack.to_string()).await.map_or_else(|_| agent.rack.to_string(), |rack| rack.name);
    let seen = agent.seen.map_or("never seen".into(), |seen| format!("last seen {}", day(seen)));
    format!("{} of rack {rack}, {seen}", agent.id)
}

fn authority(config: &Config) -> Result<Authority> {
    Authority::open(&config.pki()).context("cannot use the certificate authority")
}

fn newest(authority: &Authority) -> String {
    authority.roots().last().map_or_else(String::new, |root| format!("Root {}", root.number))
}

fn day(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d").to_string()
}
