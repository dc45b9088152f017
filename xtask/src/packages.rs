//! The Debian packages a command needs, installed when they are absent.

use std::io::{IsTerminal, Write};

use anyhow::{Context, bail, ensure};

use crate::shell::{Shell, is_root, root, target};

/// To build: a C compiler for aws-lc, blake3, SQLite and zstd.
pub(crate) const BUILD: &[&str] = &["gcc", "libc6-dev", "make"];

/// To build libFuzzer.
pub(crate) const FUZZ: &[&str] = &["g++"];

/// To make the images of the installer, the operating system and the toolbox.
pub(crate) const IMAGES: &[&str] = &[
    "mmdebstrap",
    "debian-archive-keyring",
    "mtools",
    "dosfstools",
    "e2fsprogs",
    "gdisk",
    "kmod",
    "cpio",
    "zstd",
    "grub-common",
    "grub-pc-bin",
    "grub-efi-amd64-bin",
    "squashfs-tools",
];

/// To make Debian packages.
pub(crate) const DIST: &[&str] = &["dpkg-dev", "binutils", "gzip", "xz-utils"];

/// To run a virtual rack and its machines.
pub(crate) const RACK: &[&str] =
    &["qemu-system-x86", "qemu-utils", "ovmf", "ipxe", "ipxe-qemu", "iproute2", "util-linux", "openssh-client"];

/// What tests use as peers nobody here wrote.
pub(crate) const PEERS: &[&str] = &[
    "cloud-init",
    "ignition",
    "isc-dhcp-client",
    "udhcpc",
    "busybox",
    "atftp",
    "tftp-hpa",
    "curl",
    "systemd",
    "procps",
    "prometheus",
    "strace",
    "pebble",
    "freeipmi-tools",
    "ipmitool",
    "openipmi",
    "openssh-client",
    "python3-venv",
    // What man sets pages with.
    "groff-base",
    // Images for the controller's tests.
    "bzip2",
    "e2fsprogs",
    "gzip",
    "xz-utils",
    "zstd",
];

/// What a BMC is asked with otherwise, for a bench.
pub(crate) const BMC: &[&str] = &["freeipmi-tools", "ipmitool"];

/// The server that tests of the controller's store and benches run on.
pub(crate) const DATABASE: &[&str] = &["postgresql-15"];

/// Installs what is missing of `wanted`. Says what, and asks first unless told `yes`.
pub(crate) fn install(wanted: &[&[&str]], yes: bool) -> anyhow::Result<()> {
    let missing: Vec<&str> = wanted.concat().into_iter().filter(|package| !installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("Debian packages to install: {}", missing.join(" "));
    if !yes {
        ensure!(std::io::stdin().is_terminal(), "run again with --yes to install them, or install them yourself");
        print!("Install them now? [y/N] ");
        std::io::stdout().flush()?;
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer)?;
        if !matches!(answer.trim(), "y" | "Y" | "yes") {
            bail!("nothing was installed");
        }
    }
    let apt = |arguments: &[&str]| {
        let mut words = vec!["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "-o", "Dpkg::Use-Pty=0"];
        words.extend(arguments);
        Shell::as_root(&words).quiet().run()
    };
    apt(&["update"]).context("apt-get update failed")?;
    if missing.contains(&"cloud-init") {
        // It is here to be asked what it thinks of our settings, not to set this machine up at its next start.
        Shell::as_root(&["install", "-D", "-m", "644", "/dev/null", "/etc/cloud/cloud-init.disabled"]).quiet().run()?;
    }
    let mut arguments = vec!["install", "--yes", "--no-install-recommends", "--allow-downgrades"];
    // A newer qemu-utils from elsewhere would conflict with Debian's qemu-system-x86.
    let pinned = missing.contains(&"qemu-system-x86").then(|| candidate_of_release("qemu-utils")).flatten();
    arguments.extend(missing);
    arguments.extend(pinned.as_deref());
    apt(&arguments).context("apt-get install failed")
}

/// Installs the peers of `tests/requirements.txt` into `target/python`, unless they are there.
pub(crate) fn python() -> anyhow::Result<()> {
    let (wanted, place) = (root().join("tests/requirements.txt"), target().join("python"));
    let (text, mark) = (std::fs::read(&wanted)?, place.join("requirements.txt"));
    if std::fs::read(&mark).is_ok_and(|installed| installed == text) {
        return Ok(());
    }
    let pip = place.join("bin/pip");
    Shell::new(&["python3", "-m", "venv", "--clear"]).arg(&place).quiet().run().context("cannot make target/python")?;
    let install = Shell::new(&[&pip.to_string_lossy(), "install", "--quiet", "--disable-pip-version-check", "-r"]);
    install.arg(wanted).quiet().run().context("pip install failed")?;
    // Last, so that what was interrupted is done again.
    Ok(std::fs::write(mark, text)?)
}

fn installed(package: &str) -> bool {
    Shell::new(&["dpkg-query", "-W", "-f=${db:Status-Status}", package])
        .read()
        .is_ok_and(|status| status == "installed")
}

/// `package=version` as the release's archive has it, whatever is installed.
fn candidate_of_release(package: &str) -> Option<String> {
    let versions = Shell::new(&["apt-cache", "madison", package]).read().ok()?;
    let version = versions.lines().next()?.split('|').nth(1)?.trim().to_owned();
    Some(format!("{package}={version}"))
}

/// Says early what would otherwise fail late.
pub(crate) fn require_root() -> anyhow::Result<()> {
    ensure!(is_root(), "the virtual rack needs root for its network namespaces: run it with sudo");
    Ok(())
}
