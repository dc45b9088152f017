//! `rackhand report`: what others ask for.

use clap::{Subcommand, ValueEnum};
use serde::Deserialize;

use crate::{
    client::{Client, given_only},
    output::{Output, print},
    show::{Table, table},
};

#[derive(Subcommand)]
pub(crate) enum ReportCommand {
    /// Report which public blocks are given to which project, as registries ask
    #[command(after_help = "  rackhand report assignments
  rackhand report assignments --output csv > assignments.csv
  rackhand report assignments --format rpsl --country NL --admin-c EX1-RIPE --tech-c EX1-RIPE \\
      --mnt-by EXAMPLE-MNT --source RIPE > assignments.rpsl

Of public and global pools, out of what a registry gave us: the blocks that are a project's own, and what
projects claim outside of those. With --format rpsl each is an inetnum or inet6num object for the
registry's database; netname is made of the project's name, and what else objects need has to be said.")]
    Assignments {
        /// Objects of a registry's database
        #[arg(long, value_enum)]
        format: Option<Format>,
        /// In this VRF
        #[arg(long, default_value = "default")]
        vrf: String,
        #[command(flatten)]
        registry: Registry,
    },
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Format {
    /// RPSL (RFC 2622, RFC 4012)
    Rpsl,
}

#[derive(clap::Args)]
pub(crate) struct Registry {
    /// Where the addresses are used, by two letters
    #[arg(long, value_name = "CODE", required_if_eq("format", "rpsl"), requires = "format")]
    country: Option<String>,
    /// Who is asked about the networks
    #[arg(long, value_name = "HANDLE", required_if_eq("format", "rpsl"), requires = "format")]
    admin_c: Option<String>,
    /// Who is asked about how they work
    #[arg(long, value_name = "HANDLE", required_if_eq("format", "rpsl"), requires = "format")]
    tech_c: Option<String>,
    /// Who may change the objects
    #[arg(long, value_name = "MAINTAINER", required_if_eq("format", "rpsl"), requires = "format")]
    mnt_by: Option<String>,
    /// The registry's database
    #[arg(long, value_name = "NAME", required_if_eq("format", "rpsl"), requires = "format")]
    source: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
struct Assignment {
    prefix: String,
    project: String,
    netname: String,
    pool: String,
}

const PATH: &str = "/v1/assignments";

pub(crate) async fn run(client: &Client, command: ReportCommand, output: Output) -> anyhow::Result<String> {
    let ReportCommand::Assignments { format, vrf, registry } = command;
    match (format, output) {
        (Some(Format::Rpsl), _) => {
            let Registry { country, admin_c, tech_c, mnt_by, source } = registry;
            let given = [
                ("format", Some("rpsl".into())),
                ("vrf", Some(vrf)),
                ("country", country),
                ("admin_c", admin_c),
                ("tech_c", tech_c),
                ("mnt_by", mnt_by),
                ("source", source),
            ];
            client.texts(PATH, given_only(given)).await
        }
        (None, Output::Csv) => client.csv_with(PATH, vec![("vrf", vrf)]).await,
        (None, _) => {
            let assignments = client.list_with(PATH, vec![("vrf", vrf)]).await?;
            print(output, assignments.into(), |assignments: Vec<_>| list(&assignments))
        }
    }
}

fn list(assignments: &[Assignment]) -> Table {
    let rows = assignments
        .iter()
        .map(|one| vec![one.prefix.clone(), one.project.clone(), one.netname.clone(), one.pool.clone()]);
    table(&["ADDRESSES", "PROJECT", "NETNAME", "POOL"], rows)
        .or_say("no public block of a registry's space is given to a project")
}
