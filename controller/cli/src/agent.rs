//! `rackhand agent`: the nodes' registrations.

use std::io::Write as _;

use clap::Subcommand;
use serde_json::json;

use crate::{
    client::{Client, view},
    output::{Output, confirm, print},
    show::{Table, or_dash, second, table},
    views::{Agent, Code, Replacement},
    watch::{self, Told, Watch},
};

#[derive(Subcommand)]
pub(crate) enum AgentCommand {
    /// List agents and whether they are connected
    List {
        #[command(flatten)]
        watch: Watch,
    },
    /// Make a one-time code for a rack's node and print the line to run there
    Enrol {
        /// The rack
        #[arg(long)]
        rack: String,
        /// How long the code is good
        #[arg(long, value_name = "MINUTES", default_value_t = 60)]
        minutes: u32,
        /// Only from this network, as the controller sees the node
        #[arg(long, value_name = "ADDRESS/LENGTH")]
        source: Option<String>,
    },
    /// Put another node in the place of a rack's, which burnt, was stolen or will not come back
    #[command(
        after_help = "  rackhand agent replace lab                # by rack, or by the id `rackhand agent list` shows

The old node's agent is revoked and a one-time code is made. Then, on the new node:

  1. install the package rackhand-agent and give it the old one's network configuration
  2. run the printed line there, once, as root
  3. systemctl restart rackhand-agent rackhand-boot
  4. rackhand agent list                    # shows it connected

The new node is given everything from here: machines keep their names, ids and addresses, and runs
go on. Power commands that the old node may have carried out are looked into before anything is done
again. Run it again if the code was lost or has ended: it makes another and voids the one before.
Take the old node off the network: should it come back it is given nothing, which is an alert, but
it answers machines from its disk."
    )]
    Replace {
        /// The agent's id, or its rack
        agent: String,
        /// How long the code is good
        #[arg(long, value_name = "MINUTES", default_value_t = 60)]
        minutes: u32,
        /// Only from this network, as the controller sees the node
        #[arg(long, value_name = "ADDRESS/LENGTH")]
        source: Option<String>,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Cut an agent off for good: its node was stolen or lost
    #[command(after_help = "  rackhand agent list
  rackhand agent revoke 01931b1e-0000-7000-8000-000000000000

Its connection is cut at once; it gets no command, image or certificate any more. Its rack's
machines still boot what the node has on its disk. To let the node in again, enrol it again.")]
    Revoke {
        /// Its id
        agent: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

pub(crate) async fn run(client: &Client, command: AgentCommand, output: Output) -> anyhow::Result<String> {
    match command {
        AgentCommand::List { watch } => {
            let fetch = async || Ok(client.list("/v1/agents").await?.into());
            watch::show(client, output, watch, Told::ByNobody, fetch, |agents: Vec<_>| list(&agents)).await
        }
        AgentCommand::Enrol { rack, minutes, source } => {
            let path = format!("/v1/racks/{rack}/enrolment-codes");
            let code = client.post(&path, json!({"minutes": minutes, "source": source})).await?;
            if client.is_dry() {
                return print(output, code, |code: Code| {
                    format!("a code is made, good until {}", second(code.expires))
                });
            }
            if output.is_for_people() {
                let expires = view::<Code>(code.clone())?.expires;
                let _ = writeln!(std::io::stderr(), "Run this on the rack's node, once, before {}:", second(expires));
            }
            print(output, code, |code: Code| code.command)
        }
        AgentCommand::Replace { agent, minutes, source, yes } => {
            if !yes && !client.is_dry() {
                confirm(&format!(
                    "The node of {agent} is given up for good; a new one has to be enrolled in its place."
                ))?;
            }
            let made = client
                .post(&format!("/v1/agents/{agent}/replace"), json!({"minutes": minutes, "source": source}))
                .await?;
            if output.is_for_people() {
                let _ = write!(std::io::stderr(), "{}", replacement(&view(made.clone())?));
            }
            if client.is_dry() {
                return print(output, made, |_: Code| "and a code for the new node is made");
            }
            print(output, made, |code: Code| code.command)
        }
        AgentCommand::Revoke { agent, yes } => {
            if !yes && !client.is_dry() {
                confirm(&format!(
                    "Agent {agent} is cut off for good; its rack gets no commands until a node is enrolled again."
                ))?;
            }
            let revoked = client.post(&format!("/v1/agents/{agent}/revoke"), json!({})).await?;
            print(output, revoked, |agent: Agent| {
                format!("agent {} is revoked; next: rackhand agent enrol --rack {}", agent.id, agent.rack)
            })
        }
    }
}

fn list(agents: &[Agent]) -> Table {
    let rows = agents.iter().map(|agent| {
        vec![
            agent.id.clone(),
            agent.rack.clone(),
            match agent {
                Agent { revoked: Some(_), .. } => "revoked",
                Agent { connected: true, .. } => "connected",
                _ => "away",
            }
            .into(),
            or_dash(agent.version.as_deref()),
            or_dash(agent.seen.map(second).as_deref()),
        ]
    });
    table(&["AGENT", "RACK", "STATE", "VERSION", "SEEN"], rows)
        .or_say("no agents yet: rackhand agent enrol --rack NAME")
}

/// What was done, and what to do on the new node.
fn replacement(made: &Replacement) -> String {
    let mut text = match &made.agent {
        Some(agent) => format!("Agent {agent} of rack {} is revoked.\n", made.rack),
        None => format!("Rack {} has no agent that is let in; codes made before are void.\n", made.rack),
    };
    if made.unknown_commands > 0 {
        text += &format!(
            "{} power commands may or may not have been carried out: runs look at their machines first.\n",
            made.unknown_commands
        );
    }
    text += &format!(
        "Run this on the new node as root, once, before {}; then: systemctl restart rackhand-agent rackhand-boot\n",
        second(made.expires)
    );
    text
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use jiff::Timestamp;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_revoked_agent_is_shown_as_such() {
        let agent = |id: &str, connected| -> Agent {
            serde_json::from_value(json!({
                "id": id, "rack": "demo", "connected": connected, "version": "0.1.0", "seen": null, "revoked": null,
            }))
            .unwrap()
        };
        let revoked = Agent { revoked: Some(Timestamp::UNIX_EPOCH), ..agent("a3", false) };
        expect![[r#"
            AGENT  RACK  STATE      VERSION  SEEN
            a1     demo  connected  0.1.0    -
            a2     demo  away       0.1.0    -
            a3     demo  revoked    0.1.0    -"#]]
        .assert_eq(&list(&[agent("a1", true), agent("a2", false), revoked]).to_string());
    }

    #[test]
    fn a_replacement_says_what_is_in_doubt_and_what_comes_next() {
        let made = |agent: Option<&str>, unknown| -> Replacement {
            let made =
                json!({"rack": "lab", "agent": agent, "unknown_commands": unknown, "expires": "2027-01-01T00:00:00Z"});
            serde_json::from_value(made).unwrap()
        };
        expect![[r#"
            Agent a1 of rack lab is revoked.
            2 power commands may or may not have been carried out: runs look at their machines first.
            Run this on the new node as root, once, before 2027-01-01T00:00:00Z; then: systemctl restart rackhand-agent rackhand-boot
            Rack lab has no agent that is let in; codes made before are void.
            Run this on the new node as root, once, before 2027-01-01T00:00:00Z; then: systemctl restart rackhand-agent rackhand-boot
        "#]]
        .assert_eq(&(replacement(&made(Some("a1"), 2)) + &replacement(&made(None, 0))));
    }
}
