//! `rackhand image`: operating systems to deploy.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Subcommand;
use reqwest::Method;

use crate::{
    client::Client,
    follow,
    output::{Output, done, print},
    run::Wait,
    show::{Table, bytes, or_dash, second, table},
    views::Image,
    watch::{self, Told, Watch},
};

#[derive(Subcommand)]
pub(crate) enum ImageCommand {
    /// Send a raw or qcow2 file to the controller and import it
    #[command(after_help = "  rackhand image import debian-12.qcow2 --wait
  rackhand image import disk.raw --name appliance --firmware bios --settings none")]
    Import {
        /// A raw or qcow2 file
        file: PathBuf,
        /// The image's name; otherwise the file's name without its ending
        #[arg(long)]
        name: Option<String>,
        /// How its system is told host name and keys: cidata (cloud-init) or none
        #[arg(long, default_value = "cidata", value_parser = ["cidata", "none"])]
        settings: String,
        /// Firmware modes it boots in, when its partition table does not tell
        #[arg(long, value_delimiter = ',', value_parser = ["bios", "uefi"])]
        firmware: Vec<String>,
        #[command(flatten)]
        wait: Wait,
    },
    /// List images
    List {
        #[command(flatten)]
        watch: Watch,
    },
    /// Show one image
    Show {
        /// Name or id
        image: String,
        #[command(flatten)]
        watch: Watch,
    },
    /// Delete an image that no machine uses
    Delete {
        /// Name or id
        image: String,
    },
}

pub(crate) async fn run(client: &Client, command: ImageCommand, output: Output) -> anyhow::Result<String> {
    match command {
        ImageCommand::List { watch } => {
            let fetch = async || Ok(client.list("/v1/images").await?.into());
            watch::show(client, output, watch, Told::ByNobody, fetch, |images: Vec<_>| list(&images)).await
        }
        ImageCommand::Show { image, watch } => {
            let fetch = async || client.get(&format!("/v1/images/{image}")).await;
            watch::show(client, output, watch, Told::ByNobody, fetch, |image| page(&image)).await
        }
        ImageCommand::Delete { image } => {
            client.ask(Method::DELETE, &format!("/v1/images/{image}"), None).await?;
            Ok(done(output, format!("image {image} is deleted")))
        }
        ImageCommand::Import { file, name, settings, firmware, wait } => {
            let name = match name {
                Some(name) => name,
                None => file.file_stem().and_then(|stem| stem.to_str()).context("say its --name")?.to_lowercase(),
            };
            let mut path = format!("/v1/images/{name}?settings={settings}");
            if !firmware.is_empty() {
                path = format!("{path}&firmware={}", firmware.join(","));
            }
            let quiet = !output.is_for_people();
            let sent: Image = follow::upload(client, &path, &file, quiet).await?;
            if wait.wait {
                follow::import(client, &sent.id, wait.patience(), quiet).await?;
            }
            let value = client.ask(Method::GET, &format!("/v1/images/{}", sent.id), None).await?;
            print(output, value, |image| page(&image))
        }
    }
}

fn list(images: &[Image]) -> Table {
    let rows = images.iter().map(|image| {
        let content = image.content.as_ref();
        vec![
            image.name.clone(),
            image.state.clone(),
            or_dash(content.map(|content| bytes(content.size)).as_deref()),
            or_dash(content.map(|content| bytes(content.stored)).as_deref()),
            or_dash(content.map(|content| content.firmware.join(",")).as_deref()),
            or_dash(image.failure.as_ref().map(|failure| failure.detail.as_str())),
            second(image.created),
            image.id.clone(),
        ]
    });
    table(&["NAME", "STATE", "SIZE", "STORED", "FIRMWARE", "BECAUSE", "IMPORTED", "ID"], rows)
        .shorten(&["BECAUSE", "NAME"])
        .only_wide(&["IMPORTED", "ID"])
        .or_say("no images yet: rackhand image import FILE --name debian-12")
}

fn page(image: &Image) -> String {
    let mut lines = vec![
        format!("{}  {}", image.name, image.id),
        format!("  state     {}", image.state),
        format!("  imported  {}", second(image.created)),
        format!("  settings  {}", image.settings),
    ];
    if let Some(progress) = &image.progress {
        lines.push(format!("  doing     {} {} of {}", progress.doing, bytes(progress.done), bytes(progress.total)));
    }
    if let Some(content) = &image.content {
        lines.push(format!("  size      {}, stored in {}", bytes(content.size), bytes(content.stored)));
        lines.push(format!("  sector    {} bytes", content.sector));
        lines.push(format!("  firmware  {}", content.firmware.join(", ")));
        lines.push(format!("  sha256    {}", content.sha256));
        lines.push(format!("  manifest  {}", content.manifest));
    }
    if let Some(failure) = &image.failure {
        lines.push(format!("  cause     {}: {}", failure.cause, failure.detail));
    }
    lines.join("\n")
}
