//! `rackhand os`: the catalogue of operating systems.

use clap::Subcommand;
use reqwest::Method;
use serde::Deserialize;

use crate::{
    client::Client,
    output::{Output, print},
    show::{bytes, table},
};

#[derive(Subcommand)]
pub(crate) enum OsCommand {
    /// List the systems of the catalogue
    List,
    /// Show one system: how it is told its settings, what it needs, where its images are
    #[command(after_help = "  rackhand os show debian-12")]
    Show {
        /// Its name
        name: String,
    },
    /// Print a system's kickstart, which makes an image of it for servers
    #[command(after_help = "  rackhand os kickstart rocky-9 > rocky-9.ks
  virt-install --name rocky-9 --memory 3072 --disk rocky-9.qcow2,size=10 --noreboot \\
      --graphics none --location https://dl.rockylinux.org/pub/rocky/9/BaseOS/x86_64/os/ \\
      --initrd-inject rocky-9.ks --extra-args 'inst.ks=file:/rocky-9.ks console=ttyS0'
  rackhand image import rocky-9.qcow2 --os rocky-9 --wait

Of systems of the family `rhel`.")]
    Kickstart {
        /// Its name
        name: String,
    },
}

#[derive(Deserialize)]
struct System {
    name: String,
    title: String,
    firmware: Vec<String>,
    default_user: String,
    minimum_disk: u64,
    settings: String,
    active: String,
    tried: String,
    source: String,
}

pub(crate) async fn run(client: &Client, command: OsCommand, output: Output) -> anyhow::Result<String> {
    match command {
        OsCommand::List => print(output, client.list("/v1/operating-systems").await?.into(), |systems: Vec<System>| {
            let rows = systems.iter().map(|system| {
                vec![
                    system.name.clone(),
                    system.title.clone(),
                    system.settings.clone(),
                    system.firmware.join(","),
                    system.tried.clone(),
                ]
            });
            table(&["NAME", "TITLE", "SETTINGS", "FIRMWARE", "TRIED"], rows).shorten(&["TITLE"])
        }),
        OsCommand::Show { name } => {
            let value = client.ask(Method::GET, &format!("/v1/operating-systems/{name}"), None).await?;
            print(output, value, |system: System| page(&system))
        }
        OsCommand::Kickstart { name } => client.text(&format!("/v1/operating-systems/{name}/kickstart"), &[]).await,
    }
}

fn page(system: &System) -> String {
    let tried = match system.tried.as_str() {
        "booted" => "installed, booted and logged in to before every release",
        _ => "never by us: described from its makers' documentation",
    };
    let lines = [
        format!("{}  {}", system.name, system.title),
        format!("  settings  {}", system.settings),
        format!("  active    {}", system.active),
        format!("  firmware  {}", system.firmware.join(", ")),
        format!("  user      {}", system.default_user),
        format!("  disk      at least {}", bytes(system.minimum_disk)),
        format!("  tried     {tried}"),
        format!("  images    {}", system.source),
    ];
    lines.join("\n")
}
