//! The toolbox: a Debian userland as one squashfs, which the installer runs programs from on machines that
//! are tested or rescued.
//!
//! It has what hardware is looked at and worked hard with, and what somebody who logs in expects. The same
//! packages make the same bytes: every file is of one time, owners are numbers, and what a build makes up
//! (host keys, caches, logs, a machine's id) is taken out. `manifest.json` beside it names every package
//! with its version. Must run as root: the tree has other owners' files.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::{
    os_image::{host_apt_options, host_sources, in_phases, remove, write},
    shell::{output, run},
};

/// What tests run, and what somebody works with who rescues a machine; their needs come by themselves.
const PACKAGES: &[&str] = &[
    // What tests run.
    "ethtool",
    "fio",
    "hdparm",
    "iperf3",
    "ipmitool",
    "jq",
    "lm-sensors",
    "memtester",
    "nvme-cli",
    "smartmontools",
    "stress-ng",
    // What shows and mends a machine.
    "bash",
    "cloud-guest-utils",
    "dmidecode",
    "dosfstools",
    "e2fsprogs",
    "gdisk",
    "iproute2",
    "iputils-ping",
    "kmod",
    "less",
    "lvm2",
    "mdadm",
    "mount",
    "nano",
    "openssh-server",
    "parted",
    "pciutils",
    "procps",
    "rsync",
    "tcpdump",
    "vim-tiny",
    "xfsprogs",
];

const SUITE: &str = "bookworm";

/// The time of every file, 2025-01-01: another one would make other bytes of the same packages.
const TIME: &str = "1735689600";

/// The file's name, beside the installer's.
pub(crate) const FILE: &str = "toolbox.squashfs";

/// What names the packages in it.
pub(crate) const MANIFEST: &str = "toolbox.json";

/// What `toolbox.json` tells.
#[derive(Debug, Serialize)]
struct Manifest {
    /// Debian's release.
    suite: &'static str,
    /// SHA-256 of the squashfs.
    sha256: String,
    /// Its bytes.
    size: u64,
    /// Every package in it, with its version.
    packages: BTreeMap<String, String>,
}

/// Makes the toolbox and its manifest in `out`, unless those there were made by this same recipe. Files are
/// replaced whole.
pub(crate) fn build(out: &Path, cache: &Path) -> Result<()> {
    let recipe = hex::encode(Sha256::digest(include_str!("toolbox.rs")));
    let stamp = cache.join("toolbox.recipe");
    let made = out.join(FILE);
    if made.exists() && fs::read_to_string(&stamp).is_ok_and(|made_by| made_by == recipe) {
        return Ok(());
    }
    let work = cache.join("toolbox.work");
    remove_tree(&work)?;
    for directory in [&work, out] {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    let tree = work.join("tree");
    bootstrap(&work, &tree)?;
    let packages = packages(&tree)?;
    tidy(&tree)?;

    println!("   compressing the toolbox");
    let unfinished = out.join(format!("{FILE}.part"));
    remove(&unfinished)?;
    // Reproducible by itself since 4.4, given times.
    run(Command::new("mksquashfs")
        .arg(&tree)
        .arg(&unfinished)
        .args(["-noappend", "-quiet", "-no-progress", "-no-exports", "-no-xattrs"])
        .args(["-comp", "zstd", "-Xcompression-level", "19", "-b", "256K"])
        .args(["-mkfs-time", TIME, "-all-time", TIME])
        .stdout(Stdio::null()))?;
    let bytes = fs::read(&unfinished)?;
    let manifest =
        Manifest { suite: SUITE, sha256: hex::encode(Sha256::digest(&bytes)), size: bytes.len() as u64, packages };
    let manifest_part = out.join(format!("{MANIFEST}.part"));
    fs::write(&manifest_part, serde_json::to_vec_pretty(&manifest)?)?;
    fs::rename(&unfinished, &made)?;
    fs::rename(&manifest_part, out.join(MANIFEST))?;
    fs::write(&stamp, recipe)?;
    println!("   {} MiB, SHA-256 {}", manifest.size >> 20, manifest.sha256);
    remove_tree(&work)
}

fn bootstrap(work: &Path, tree: &Path) -> Result<()> {
    let sources = work.join("sources.list");
    fs::write(&sources, host_sources(SUITE)?)?;
    let mut mmdebstrap = Command::new("mmdebstrap");
    mmdebstrap
        .env("SOURCE_DATE_EPOCH", TIME)
        .args(["--mode=root", "--variant=essential", "--format=directory"])
        .arg(format!("--include={}", PACKAGES.join(",")))
        .arg("--aptopt=APT::Install-Recommends \"false\"");
    for unread in ["man", "locale", "doc", "info", "lintian", "bash-completion"] {
        mmdebstrap.arg(format!("--dpkgopt=path-exclude=/usr/share/{unread}/*"));
    }
    mmdebstrap.arg("--dpkgopt=path-include=/usr/share/doc/*/copyright");
    for option in host_apt_options()? {
        mmdebstrap.arg(format!("--aptopt={option}"));
    }
    in_phases(mmdebstrap.arg(SUITE).arg(tree).arg(&sources))
}

fn packages(tree: &Path) -> Result<BTreeMap<String, String>> {
    let admin = format!("--admindir={}", tree.join("var/lib/dpkg").display());
    let list = output(Command::new("dpkg-query").args([&admin, "--show", "--showformat=${Package} ${Version}\n"]))?;
    let packages: BTreeMap<_, _> =
        list.lines().filter_map(|line| line.split_once(' ')).map(|(a, b)| (a.to_owned(), b.to_owned())).collect();
    for wanted in PACKAGES {
        ensure!(packages.contains_key(*wanted), "{wanted} was not installed");
    }
    Ok(packages)
}

/// Takes out what only this build made, and what a system in RAM has of its own.
fn tidy(tree: &Path) -> Result<()> {
    for unwanted in [
        "etc/machine-id",
        "etc/resolv.conf",
        "etc/hostname",
        "var/lib/dbus/machine-id",
        "var/cache/ldconfig/aux-cache",
        "var/lib/systemd/random-seed",
        "etc/apt/apt.conf.d/99mmdebstrap",
        "etc/dpkg/dpkg.cfg.d/99mmdebstrap",
    ] {
        remove(&tree.join(unwanted))?;
    }
    for emptied in ["boot", "var/log", "var/cache/apt", "var/cache/debconf", "var/lib/apt/lists", "tmp", "run"] {
        empty(&tree.join(emptied))?;
    }
    // Where what a volume manager or sshd keeps while it runs.
    for made in ["run/lock", "run/sshd"] {
        fs::create_dir_all(tree.join(made))?;
    }
    for entry in fs::read_dir(tree.join("etc/ssh"))? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("ssh_host_")) {
            remove(&path)?;
        }
    }
    symlink("/proc/self/mounts", tree.join("etc/mtab")).or_else(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => Ok(()),
        _ => Err(error),
    })?;
    write(&tree.join("etc/hosts"), "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n")?;
    // Nobody logs in with a password: there is none.
    let shadow = fs::read_to_string(tree.join("etc/shadow"))?;
    let root = shadow.lines().find(|line| line.starts_with("root:")).context("the toolbox has no root")?;
    ensure!(root.starts_with("root:*:") || root.starts_with("root:!"), "root has a password: {root}");
    Ok(())
}

fn empty(directory: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(directory) else { return Ok(()) };
    for entry in entries {
        let entry = entry?;
        let path: PathBuf = entry.path();
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(path)?;
        } else {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot clear {}", path.display()))
        }
        _ => Ok(()),
    }
}
