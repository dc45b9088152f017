//! `rackhand image`: importing images, their versions, and what was found in them.

use std::path::Path;

use anyhow::Context as _;
use clap::Subcommand;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    client::{Client, view},
    follow,
    moment::moment,
    output::{Output, done, print},
    run::Wait,
    show::{Table, bytes, or_dash, second, table},
    views::{Finding, Image},
    watch::{self, Told, Watch},
};

#[derive(Subcommand)]
pub(crate) enum ImageCommand {
    /// Import an image: send a file to the controller, or have it fetch one
    #[command(after_help = "  rackhand image import debian-12.qcow2.xz --os debian-12 --wait
  rackhand image import https://images.example.net/debian-12.qcow2 --sha256 4f1d…
  rackhand image import disk.raw --name appliance --firmware bios --settings none

Another import of the same name is its next version: deploys of debian-12 use the newest, and
debian-12@1 stays what it was. The controller fetches nothing from private networks unless
images.sources in its configuration names them.")]
    Import {
        /// A raw, qcow2 or vmdk file, also as gz, xz, zst or bz2; or its https:// or http:// address
        file: String,
        /// The image's name; otherwise the file's name without its endings
        #[arg(long)]
        name: Option<String>,
        /// SHA-256 that the file must have, as `sha256sum` prints it
        #[arg(long, value_name = "HEX")]
        sha256: Option<String>,
        /// The system in it, by the catalogue's name
        #[arg(long, value_name = "NAME")]
        os: Option<String>,
        /// How its system is told host name and keys: cidata (cloud-init's NoCloud), config-2 (OpenStack's
        /// config drive), ignition, or none; by default as the catalogue has it
        #[arg(long, value_parser = ["cidata", "config-2", "ignition", "none"])]
        settings: Option<String>,
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
    #[command(after_help = "  rackhand image show debian-12      # the newest version that is ready
  rackhand image show debian-12@3")]
    Show {
        /// Name, name@version or id
        image: String,
        #[command(flatten)]
        watch: Watch,
    },
    /// Look into an image for what keeps machines from starting or being reached
    #[command(after_help = "  rackhand image check debian-12

The exit code is 1 when something is wrong, and 0 for warnings.")]
    Check {
        /// Name, name@version or id
        image: String,
    },
    /// Say that another image should be used: deploys of this one go on, with a warning
    #[command(after_help = "  rackhand image deprecate debian-12@1
  rackhand image deprecate debian-12@1 --undo")]
    Deprecate {
        /// Name, name@version or id
        image: String,
        /// It is to be used again
        #[arg(long)]
        undo: bool,
    },
    /// Say from when on an image is not deployed any more; machines that have it keep it
    #[command(after_help = "  rackhand image expire debian-12@1 --at 2027-06-30
  rackhand image expire debian-12@1 --never")]
    Expire {
        /// Name, name@version or id
        image: String,
        /// The time
        #[arg(long, value_name = "TIME", value_parser = moment, required_unless_present = "never")]
        at: Option<jiff::Timestamp>,
        /// It does not expire
        #[arg(long, conflicts_with = "at")]
        never: bool,
    },
    /// Delete an image that no machine uses
    Delete {
        /// Name, name@version or id
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
        ImageCommand::Check { image } => {
            let value = client.post(&format!("/v1/images/{image}/check"), json!({})).await?;
            let checked: Image = view(value.clone())?;
            let found = checked.findings.unwrap_or_default();
            let text = print(output, value, |_: Image| findings(&found))?;
            anyhow::ensure!(found.iter().all(|finding| finding.severity != "error"), "{text}");
            Ok(text)
        }
        ImageCommand::Deprecate { image, undo } => change(client, &image, json!({"deprecated": !undo}), output).await,
        ImageCommand::Expire { image, at, never: _ } => change(client, &image, json!({"expires": at}), output).await,
        ImageCommand::Delete { image } => {
            client.ask(Method::DELETE, &format!("/v1/images/{image}"), None).await?;
            Ok(done(output, format!("image {image} is deleted")))
        }
        ImageCommand::Import { file, name, sha256, os, settings, firmware, wait } => {
            let name = match name {
                Some(name) => name,
                None => named(&file).context("say its --name")?,
            };
            let quiet = !output.is_for_people();
            let sent: Image = if file.starts_with("https://") || file.starts_with("http://") {
                let mut body = json!({"name": name, "url": file, "settings": settings, "sha256": sha256, "os": os});
                if !firmware.is_empty() {
                    body["firmware"] = firmware.into();
                }
                view(client.post("/v1/images", body).await?)?
            } else {
                let firmware = (!firmware.is_empty()).then(|| firmware.join(","));
                let given = [("settings", settings), ("firmware", firmware), ("sha256", sha256), ("os", os)];
                let given = given.into_iter().filter_map(|(key, value)| Some(format!("{key}={}", value?)));
                let path = format!("/v1/images/{name}?{}", given.collect::<Vec<_>>().join("&"));
                follow::upload(client, &path, Path::new(&file), quiet).await?
            };
            if wait.wait {
                follow::import(client, &sent.id, wait.patience(), quiet).await?;
            }
            let value = client.ask(Method::GET, &format!("/v1/images/{}", sent.id), None).await?;
            print(output, value, |image| page(&image))
        }
    }
}

async fn change(client: &Client, image: &str, change: Value, output: Output) -> anyhow::Result<String> {
    let value = client.ask(Method::PATCH, &format!("/v1/images/{image}"), Some(change)).await?;
    print(output, value, |image| page(&image))
}

/// What a file's name says of the image's: all but the endings of compression and format.
fn named(file: &str) -> Option<String> {
    let file = file.split(['?', '#']).next()?;
    let name = file.rsplit('/').next()?.to_lowercase();
    let without = |name: &str, endings: &[&str]| {
        let (stem, ending) = name.rsplit_once('.')?;
        (endings.is_empty() || endings.contains(&ending)).then(|| stem.to_owned())
    };
    let unpacked = without(&name, &["gz", "xz", "zst", "bz2"]);
    let stem = match &unpacked {
        Some(unpacked) => without(unpacked, &["raw", "img", "qcow2", "vmdk"]).unwrap_or_else(|| unpacked.clone()),
        None => without(&name, &[]).unwrap_or(name),
    };
    (!stem.is_empty()).then_some(stem)
}

fn list(images: &[Image]) -> Table {
    let rows = images.iter().map(|image| {
        let content = image.content.as_ref();
        vec![
            format!("{}@{}", image.name, image.version),
            image.state.clone(),
            or_dash(content.map(|content| bytes(content.size)).as_deref()),
            or_dash(content.map(|content| bytes(content.stored)).as_deref()),
            or_dash(content.map(|content| content.firmware.join(",")).as_deref()),
            or_dash(remark(image).as_deref()),
            second(image.created),
            image.id.clone(),
        ]
    });
    table(&["NAME", "STATE", "SIZE", "STORED", "FIRMWARE", "REMARK", "IMPORTED", "ID"], rows)
        .shorten(&["REMARK", "NAME"])
        .only_wide(&["IMPORTED", "ID"])
        .or_say("no images yet: rackhand image import FILE --name debian-12")
}

/// What somebody who wants to deploy an image should know.
fn remark(image: &Image) -> Option<String> {
    let failure = image.failure.as_ref().map(|failure| failure.detail.clone());
    let expires = image.expires.map(|expires| format!("expires {}", second(expires)));
    let errors = image.findings.iter().flatten().filter(|finding| finding.severity == "error").count();
    let word = if errors == 1 { "error" } else { "errors" };
    let found = (errors > 0).then(|| format!("{errors} {word}: see `rackhand image show`"));
    failure.or(found).or(image.deprecated.then(|| "deprecated".into())).or(expires)
}

fn page(image: &Image) -> String {
    let mut lines = vec![
        format!("{}@{}  {}", image.name, image.version, image.id),
        format!("  state     {}", image.state),
        format!("  imported  {}", second(image.created)),
        format!("  settings  {}", image.settings),
        format!("  system    {}", or_dash(image.os.as_deref())),
    ];
    if image.deprecated {
        lines.push("  DEPRECATED: another version or image should be used".into());
    }
    if let Some(expires) = image.expires {
        lines.push(format!("  expires   {}", second(expires)));
    }
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
    if let Some(found) = &image.findings {
        lines.push(findings(found));
    }
    lines.join("\n")
}

fn findings(findings: &[Finding]) -> String {
    let lines = findings.iter().map(|finding| {
        let advice = if finding.advice.is_empty() { String::new() } else { format!("; {}", finding.advice) };
        format!("  {:<12}  {}: {}{advice}", finding.severity, finding.subject, finding.found)
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::show::Surface;

    #[test]
    fn a_files_name_is_the_images_without_what_is_about_the_file() {
        for (file, name) in [
            ("debian-12.qcow2", Some("debian-12")),
            ("./images/Debian-12.5.qcow2.xz", Some("debian-12.5")),
            ("https://images.example.net/12/disk.vmdk?token=1.2", Some("disk")),
            ("disk.gz", Some("disk")),
            ("debian-12.5.gz", Some("debian-12.5")),
            ("appliance", Some("appliance")),
            ("https://images.example.net/", None),
        ] {
            assert_eq!(named(file).as_deref(), name, "{file}");
        }
    }

    #[test]
    fn a_page_and_a_list_say_what_to_know_before_a_deploy() {
        let image: Image = serde_json::from_value(json!({
            "id": "01931b1e-0000-7000-8000-000000000001", "name": "debian-12", "version": 2, "os": "debian-12",
            "deprecated": true, "expires": "2027-06-30T00:00:00Z", "created": "2026-01-01T00:00:00Z",
            "state": "ready", "settings": "cidata", "findings": [
                {"severity": "good", "subject": "kernel", "found": "6.1.0-28-amd64"},
                {"severity": "warning", "subject": "serial console", "found": "none", "advice": "add console=ttyS0"},
            ],
            "content": {"size": 2147483648u64, "stored": 1048576, "sector": 512, "firmware": ["bios", "uefi"],
                "sha256": "aa", "manifest": "bb"},
        }))
        .unwrap();
        expect![[r#"
            debian-12@2  01931b1e-0000-7000-8000-000000000001
              state     ready
              imported  2026-01-01T00:00:00Z
              settings  cidata
              system    debian-12
              DEPRECATED: another version or image should be used
              expires   2027-06-30T00:00:00Z
              size      2.0 GiB, stored in 1.0 MiB
              sector    512 bytes
              firmware  bios, uefi
              sha256    aa
              manifest  bb
              good          kernel: 6.1.0-28-amd64
              warning       serial console: none; add console=ttyS0"#]]
        .assert_eq(&page(&image));
        expect![[r#"
            NAME         STATE  SIZE     STORED   FIRMWARE   REMARK
            debian-12@2  ready  2.0 GiB  1.0 MiB  bios,uefi  deprecated"#]]
        .assert_eq(&list(&[image]).on(&Surface::default()));
    }
}
