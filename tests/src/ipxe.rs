//! iPXE's command line, as much of it as boot scripts use: <https://ipxe.org/cmd>. A command
//! that is not known here fails the machine loudly: a script that needs more is a change.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Context as _, Result, bail};
use rackhand_common::machine::{Firmware, Mac};

/// What a script led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// A kernel was started with this command line; the initial RAM disk was loaded.
    Kernel(String),
    /// The machine's first disk is started.
    Disk,
    /// iPXE left: the firmware tries its next boot entry.
    Exit,
}

/// iPXE with its network up.
#[derive(Debug)]
pub struct Ipxe {
    /// The card's address.
    pub mac: Mac,
    /// What DHCP gave.
    pub address: Ipv4Addr,
    /// For `${platform}`.
    pub firmware: Firmware,
    /// Every line shown and every address fetched, for whoever looks at the screen.
    pub screen: Vec<String>,
    kernel: Option<(Vec<u8>, String)>,
    initrd: Option<Vec<u8>>,
}

/// How much faster than a real one it sleeps.
const HURRY: u32 = 20;

/// What one command does to the flow.
enum Flow {
    Next(bool),
    Goto(String),
    Chain(String),
    End(End),
}

impl Ipxe {
    /// Freshly started.
    pub fn new(mac: Mac, address: Ipv4Addr, firmware: Firmware) -> Self {
        Self { mac, address, firmware, screen: Vec::new(), kernel: None, initrd: None }
    }

    /// Fetches the script and does what it says, and what the scripts it chains to say.
    pub async fn run(&mut self, url: &str) -> Result<End> {
        let mut script = self.text(url).await?;
        'scripts: loop {
            let lines: Vec<&str> = script.lines().collect();
            anyhow::ensure!(lines.first() == Some(&"#!ipxe"), "not an iPXE script: {script}");
            let mut at = 1;
            while let Some(line) = lines.get(at) {
                at += 1;
                match self.line(line).await? {
                    Flow::Next(true) => {}
                    Flow::Next(false) => bail!("a command failed and ended the script: {line}"),
                    Flow::Goto(label) => {
                        let place = lines.iter().position(|line| line.trim() == format!(":{label}"));
                        at = place.with_context(|| format!("no label {label}"))? + 1;
                    }
                    Flow::Chain(next) => {
                        script = next;
                        continue 'scripts;
                    }
                    Flow::End(end) => return Ok(end),
                }
            }
            bail!("the script ended without starting anything:\n{script}");
        }
    }

    /// A line: commands joined by `&&` and `||`, the next one done according to the status.
    async fn line(&mut self, line: &str) -> Result<Flow> {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') || line.starts_with(':') {
            return Ok(Flow::Next(true));
        }
        let line = self.expand(line);
        let mut good = true;
        let mut joint = "&&";
        let mut words: Vec<&str> = Vec::new();
        // An operator at the end is followed by a command that does nothing, successfully.
        for word in line.split_whitespace().chain(["&&"]) {
            if word != "&&" && word != "||" {
                words.push(word);
                continue;
            }
            if (joint == "&&") == good {
                match self.command(&std::mem::take(&mut words)).await? {
                    Flow::Next(status) => good = status,
                    other => return Ok(other),
                }
            }
            words.clear();
            joint = word;
        }
        Ok(Flow::Next(good))
    }

    async fn command(&mut self, words: &[&str]) -> Result<Flow> {
        let (Some(verb), rest) = (words.first(), words.get(1..).unwrap_or_default()) else {
            return Ok(Flow::Next(true));
        };
        Ok(match (*verb, rest) {
            ("echo", words) => {
                self.screen.push(words.join(" "));
                Flow::Next(true)
            }
            ("iseq", [a, b]) => Flow::Next(a == b),
            ("goto", [label]) => Flow::Goto((*label).to_owned()),
            ("sleep", [seconds]) => {
                tokio::time::sleep(Duration::from_secs(seconds.parse()?) / HURRY).await;
                Flow::Next(true)
            }
            ("imgfree", []) => {
                (self.kernel, self.initrd) = (None, None);
                Flow::Next(true)
            }
            ("kernel", [url, arguments @ ..]) => {
                let fetched = self.bytes(url).await;
                self.kernel = fetched.ok().map(|bytes| (bytes, arguments.join(" ")));
                Flow::Next(self.kernel.is_some())
            }
            ("initrd", ["--name", "initramfs", url]) => {
                self.initrd = self.bytes(url).await.ok();
                Flow::Next(self.initrd.is_some())
            }
            ("boot", []) => match (self.kernel.take(), self.initrd.take()) {
                // It says `initrd=` so that EFI finds the image by its name.
                (Some((kernel, line)), Some(initrd))
                    if !kernel.is_empty() && !initrd.is_empty() && line.contains("initrd=initramfs") =>
                {
                    Flow::End(End::Kernel(line))
                }
                _ => Flow::Next(false),
            },
            ("chain", ["--replace", "--autofree", url]) => match self.text(url).await {
                Ok(script) => Flow::Chain(script),
                Err(_) => Flow::Next(false),
            },
            ("sanboot", ["--no-describe", "--drive", "0x80"]) => Flow::End(End::Disk),
            ("exit", _) => Flow::End(End::Exit),
            _ => bail!("no such command: {words:?}"),
        })
    }

    fn expand(&self, line: &str) -> String {
        let platform = if self.firmware == Firmware::Uefi { "efi" } else { "pcbios" };
        let hexhyp = self.mac.to_string().replace(':', "-");
        line.replace("${platform}", platform).replace("${netX/mac:hexhyp}", &hexhyp)
    }

    async fn text(&mut self, url: &str) -> Result<String> {
        Ok(String::from_utf8(self.bytes(url).await?)?)
    }

    async fn bytes(&mut self, url: &str) -> Result<Vec<u8>> {
        let url = self.expand(url);
        self.screen.push(url.clone());
        fetch(&url, self.address).await
    }
}

/// What firmware fetches by HTTP from the address it was given.
pub(crate) async fn fetch(url: &str, from: Ipv4Addr) -> Result<Vec<u8>> {
    let client = reqwest::Client::builder()
        .no_proxy()
        .local_address(std::net::IpAddr::V4(from))
        .timeout(Duration::from_secs(10))
        .build()?;
    let response = client.get(url).send().await?.error_for_status()?;
    let length = response.content_length().context("firmware wants to know the length")?;
    let bytes = response.bytes().await?;
    anyhow::ensure!(bytes.len() as u64 == length, "cut short");
    Ok(bytes.to_vec())
}
